import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "run.py"


def run_in(folder, *arguments):
    shutil.copy(RUN, folder)
    (folder / "pyproject.toml").write_text("")
    command = [sys.executable, folder / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("tests",)])
def test_it_explains_itself(tmp_path, arguments):
    done = run_in(tmp_path, *arguments)
    assert done.returncode == 1
    assert "run.py demo" in done.stderr and "run.py test" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
def test_an_unsupported_python_is_named(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "version", ".".join(map(str, version)) + " (main)")
    monkeypatch.setattr(sys, "argv", ["run.py", "test"])
    with pytest.raises(SystemExit, match=r"needs Python 3.10 to 3.13, this is 3\.\d+\.\d+;"):
        runpy.run_path(str(RUN), run_name="__main__")


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "notes.txt").write_text("mine")
    done = run_in(tmp_path, "test")
    assert done.returncode == 1
    assert done.stderr.startswith("run.py:") and "not a Python environment" in done.stderr
    assert (tmp_path / ".venv" / "notes.txt").read_text() == "mine"
