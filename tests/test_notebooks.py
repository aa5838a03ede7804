import json
import sys
import types
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SMALL = {
    "01_train": {"IMAGE_SIZE": (32, 32), "BASE_CHANNELS": 2, "EPOCHS": 1, "SKIES": 24},
    "02_quantize": {"SIZE": (64, 64), "SKIES": 128},
    "03_sky_camera": {"SKIES": 6},
}
SHOWN = {"01_train": "protocol", "02_quantize": "TFLM equals", "03_sky_camera": "_overlay.jpg"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, monkeypatch, tmp_path):
    """Every code cell in order in one namespace, the values of the parameters cell made small."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    display = types.ModuleType("IPython.display")
    display.Image = display.Markdown = lambda source: shown.append(source)
    shell = types.ModuleType("IPython")
    shell.version_info, shell.get_ipython = (9, 0), lambda: None  # matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    shown, names = [], {}
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "notebooks are committed without outputs"
        exec(compile("".join(cell["source"]), f"{path.name}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(SMALL[path.stem]) <= set(names)
            names.update(SMALL[path.stem])
    assert any(SHOWN[path.stem] in str(item) for item in shown)
