"""Sets up .venv beside this file, then runs the demo or the tests in it.

    python3 run.py demo      train a small DDUNet on procedural skies, evaluate it, segment photos
    python3 run.py test      the test suite

Needs Python 3.10 to 3.13 and nothing else. Further arguments go to `ddunet demo` and to pytest.
The first run installs the dependencies (about 3 GB); later ones start at once.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "ddunet-installed"
COMMANDS = {"demo": ["-m", "ddunet_keras", "demo"], "test": ["-m", "pytest"]}


def works():
    """Whether the environment's Python starts, has pip and is of a supported version."""
    check = "import sys, pip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))"
    try:
        return not subprocess.run([PYTHON, "-c", check], stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False


def set_up():
    """Makes the environment unless it stands; the stamp comes last, so it means a whole one."""
    wanted = (ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()
    wanted = hashlib.sha256(wanted).hexdigest()
    usable = works()
    if usable and STAMP.is_file() and STAMP.read_text() == wanted:
        return
    if not usable:
        try:
            import ensurepip  # noqa: F401
            import venv
        except ImportError:
            sys.exit("run.py: this Python has no venv; on Debian: sudo apt install python3-venv")
        found = set(os.listdir(VENV)) if VENV.exists() else set()
        # an interrupted removal may have left any part of an environment
        if found and not found & {"pyvenv.cfg", "bin", "lib", "lib64", "Lib", "Scripts", "share"}:
            sys.exit(f"run.py: {VENV} is not a Python environment: move it away")
        print("run.py: making", VENV, flush=True)
        venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=True).create(VENV)
    print("run.py: installing the dependencies, some minutes", flush=True)
    install = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    subprocess.run([*install, "--editable", ".[train,mcu,test]"], cwd=ROOT, check=True)
    STAMP.write_text(wanted)


def main():
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"run.py: needs Python 3.10 to 3.13, this is {sys.version.split()[0]}")
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        set_up()
        command = [PYTHON, *COMMANDS[sys.argv[1]], *sys.argv[2:]]
        return subprocess.run(command, cwd=ROOT).returncode
    except subprocess.CalledProcessError as error:
        sys.exit(f"run.py: set-up failed ({' '.join(map(str, error.cmd))}); run it again")
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
