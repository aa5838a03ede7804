"""The notebooks run as they are, and are committed with outputs that are fit to be shown."""

import json
from pathlib import Path

import nbformat
import pytest
import run_notebooks

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMALL = {
    "01_train": {
        "IMAGE_SIZE": (32, 32),
        "BASE_CHANNELS": 2,
        "EPOCHS": 1,
        "SKIES": 24,
        "VARIANTS": ("full", "baseline"),
    },
    "02_quantize": {"SIZE": (64, 64), "SKIES": 128},
    "03_sky_camera": {"FRAMES": 12, "SKIES": 2, "STEPS": 1},
}
SHOWN = {
    "01_train": ["protocol date", "baseline", "MIoU - first variant"],
    "02_quantize": ["TFLM equals the reference kernels", "arena, KiB"],
    "03_sky_camera": ["mean cloud cover", "own frames, held back, after"],
}


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def text_of(notebook):
    return json.dumps(notebook, ensure_ascii=False)


@pytest.mark.slow
@by_name(NOTEBOOKS)
def test_runs_top_to_bottom(path):
    notebook = run_notebooks.execute(path, SMALL[path.stem])
    assert run_notebooks.faults(notebook) == []
    assert [words for words in SHOWN[path.stem] if words not in text_of(notebook)] == []


@by_name(NOTEBOOKS)
def test_committed_outputs_are_fit_to_be_shown(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert run_notebooks.faults(notebook) == []
    assert [words for words in SHOWN[path.stem] if words not in text_of(notebook)] == []


@by_name(NOTEBOOKS)
def test_package_is_installed_from_one_address(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code[0].count("pip install") == 1
    assert 'SOURCE = ".."' in code[0]
    assert "pip install" not in "".join(code[1:])


# the tool -----------------------------------------------------------------------------------------


def notebook_of(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


GOOD = (
    "SIDE = 300",
    "from IPython.display import Markdown, display\n"
    "from PIL import Image\n"
    "import numpy as np\n"
    "noise = np.random.default_rng(0).integers(0, 256, (SIDE, 4 * SIDE, 3), np.uint8)\n"
    "for _ in range(3):\n"
    "    display(Image.fromarray(noise))\n"
    "Markdown('| a | b |\\n| --- | --- |\\n| 1 | 2 |')",
)


@pytest.mark.slow
def test_tool_writes_outputs_in_place(tmp_path, capsys):
    path = tmp_path / "noise.ipynb"
    nbformat.write(notebook_of(*GOOD), path)
    assert run_notebooks.main([str(path)]) == 0
    assert capsys.readouterr().out.startswith("noise.ipynb: ")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert run_notebooks.faults(written) == []
    *pictures, table = written["cells"][1]["outputs"]
    assert len(pictures) == 3
    assert all("image/jpeg" in picture["data"] for picture in pictures)  # from PNGs of 1 MB
    assert "text/markdown" in table["data"]
    assert "execution" not in written["cells"][1]["metadata"]
    assert written["metadata"]["language_info"] == {"name": "python"}


@pytest.mark.slow
def test_tool_leaves_a_notebook_as_it_is_whose_outputs_are_not_fit(tmp_path, capsys):
    path = tmp_path / "noise.ipynb"
    nbformat.write(notebook_of(*GOOD, "import tempfile\nprint(tempfile.mkdtemp())"), path)
    before = path.read_bytes()
    assert run_notebooks.main([str(path)]) == 1
    assert "not written: cell 2 shows a path of the machine" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.slow
def test_tool_runs_with_other_values(tmp_path):
    path = tmp_path / "side.ipynb"
    nbformat.write(notebook_of("SIDE = 300", "print(SIDE)"), path)
    assert run_notebooks.execute(path, {"SIDE": 20})["cells"][1]["outputs"][0]["text"] == "20\n"
    with pytest.raises(ValueError, match="no 'WIDTH'"):
        run_notebooks.execute(path, {"WIDTH": 20})


def spoilt(change):
    """What is wrong with a good notebook after `change` of its last cell and outputs."""
    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    table = nbformat.v4.new_output("display_data", {"text/markdown": "| a |\n| --- |\n| 1 |"})
    notebook = notebook_of("1")
    notebook.cells[0] |= {"execution_count": 1, "outputs": [picture, table]}
    assert run_notebooks.faults(notebook) == []
    change(notebook.cells[0])
    return run_notebooks.faults(notebook)


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cell: cell.update(execution_count=None), "cell 0 was not run"),
        (lambda cell: cell.metadata.update(execution={"iopub.status.idle": "2026"}), "when"),
        (lambda cell: cell.outputs.append(stream("stderr", "UserWarning: x")), "UserWarning: x"),
        (lambda cell: cell.outputs.append(stream("stdout", "in /tmp/a/b.png")), "shows a path"),
        (lambda cell: cell.outputs.append(stream("stdout", "C:\\skies\\a")), "shows a path"),
        (lambda cell: cell.outputs.append(stream("stdout", "x" * 400_000)), "bytes, more than"),
        (lambda cell: cell.outputs.pop(0), "it shows no picture"),
        (lambda cell: cell.outputs.pop(1), "it shows no table"),
        (
            lambda cell: cell.outputs.append(
                nbformat.v4.new_output("error", ename="KeyError", evalue="1", traceback=[])
            ),
            "error: KeyError",
        ),
    ],
)
def test_faults_of_outputs(change, words):
    (fault,) = spoilt(change)
    assert words in fault


def test_paths_within_the_package_and_addresses_are_no_fault():
    text = "see docs/tmp/a.md, https://a.org/home/b, 3/work/4"
    assert spoilt(lambda cell: cell.outputs.append(stream("stdout", text))) == []
