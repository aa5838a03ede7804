"""Runs the notebooks and writes what they show into them: do it after a change to a notebook, to a
trained model, or to a table that a notebook shows.

    python tools/run_notebooks.py                             # all of notebooks/, some minutes
    python tools/run_notebooks.py notebooks/02_quantize.ipynb

Each one runs from top to bottom in a process of its own, with the package of this clone. Times and
versions of the run are left out, and large pictures become JPEG. A notebook is replaced only if its
outputs may be committed: `faults` lists what is wrong with them.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image
from traitlets.config import Config

from ddunet_keras.files import write_text

ROOT = Path(__file__).resolve().parents[1]

PARAMETERS = "parameters"
"""Tag of the cell whose values may be changed."""

MAX_NOTEBOOK_BYTES = 400_000
"""Of a notebook with its outputs: a clone holds each version of it."""

MAX_PNG_BYTES = 40_000
MAX_PICTURE_WIDTH = 1000
JPEG_QUALITIES = (80, 70, 60, 50)
"""A larger PNG becomes a JPEG of at most this width, in pixels, and of the first of these qualities
with which the notebook is small enough."""

MACHINE_PATH = re.compile(
    r"(?<![\w./])/(?:work|home|root|tmp|var|usr|opt|mnt|srv|Users|private)/|\b[A-Z]:\\"
)
"""A path that another machine does not have."""

STARTUP_SECONDS = 600
"""Longest time to the first cell, on a busy machine."""

ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),  # this clone's package, whatever is installed
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's log would be taken for a warning
    "TZ": "UTC",
}

Notebook = dict[str, Any]
"""A notebook's JSON, format 4.5."""


def execute(path: Path, values: Mapping[str, Any] | None = None) -> Notebook:
    """Runs a notebook from top to bottom.

    Args:
        path: the notebook, which stays as it is; its folder is the working directory.
        values: by name, in place of those that its cell tagged `PARAMETERS` assigns.

    Returns:
        The notebook with its outputs, and with `values` in it.

    Raises:
        ValueError: the notebook does not assign one of `values`.
        nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    if values:
        _assign(notebook, values)
    with tempfile.TemporaryDirectory() as folder:
        # sockets in files, in place of ports of the network
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        client = NotebookClient(
            notebook,
            config=Config({"KernelManager": sockets}),
            kernel_name="python3",
            startup_timeout=STARTUP_SECONDS,
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            coalesce_streams=True,
            # what TensorFlow's C++ code writes is no output of a cell
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],
        )
        # without the start-up files of this user's IPython
        client.execute(env=os.environ | ENVIRONMENT | {"IPYTHONDIR": folder})
    notebook.metadata.language_info = {"name": "python"}
    return _shrink(notebook)


def _assign(notebook, values):
    cell = next(c for c in notebook["cells"] if PARAMETERS in c["metadata"].get("tags", ()))
    for name, value in values.items():
        if not re.search(rf"^{name} =", cell["source"], flags=re.MULTILINE):
            raise ValueError(f"the notebook's cell of parameters has no {name!r}")
        cell["source"] += f"\n{name} = {value!r}"


def _shrink(notebook):
    """A copy in which large PNGs are JPEGs, smaller ones if the notebook is large otherwise."""
    for quality in JPEG_QUALITIES:
        smaller = copy.deepcopy(notebook)
        for output in _outputs(smaller):
            if "image/png" in output.get("data", {}):
                _compress(output, quality)
        if len(as_text(smaller).encode()) <= MAX_NOTEBOOK_BYTES:
            break
    return smaller


def _compress(output, quality):
    """Makes a JPEG of an output's PNG if it is large."""
    data = output["data"]
    content = base64.b64decode(data["image/png"])
    if len(content) <= MAX_PNG_BYTES:
        return
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    on_white = Image.new("RGBA", picture.size, "white")
    on_white.alpha_composite(picture)
    picture = on_white.convert("RGB")
    if picture.width > MAX_PICTURE_WIDTH:
        height = round(picture.height * MAX_PICTURE_WIDTH / picture.width)
        picture = picture.resize((MAX_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=quality, optimize=True)
    del data["image/png"]
    data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
    if "image/png" in output["metadata"]:  # at which width it is shown
        output["metadata"]["image/jpeg"] = output["metadata"].pop("image/png")


def _outputs(notebook: Notebook) -> Iterator[dict]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield from cell["outputs"]


def faults(notebook: Notebook) -> list[str]:
    """Why a notebook's outputs may not be committed, a line each; empty if they may."""
    found = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        if cell["execution_count"] is None:
            found.append(f"cell {number} was not run")
        if cell["metadata"].get("execution"):
            found.append(f"cell {number} says when it was run")
        for output in cell["outputs"]:
            text = _text(output)
            if output["output_type"] == "error":
                found.append(f"cell {number} ended with an error: {output['ename']}")
            elif output.get("name") == "stderr":
                found.append(f"cell {number} has a warning: {text.strip()}")
            elif path := MACHINE_PATH.search(text):
                found.append(f"cell {number} shows a path of the machine: {path.group()}")
    shown = [kind for output in _outputs(notebook) for kind in output.get("data", {})]
    if not any(kind.startswith("image/") for kind in shown):
        found.append("it shows no picture")
    if not any("|---" in _text(o).replace(" ", "") for o in _outputs(notebook)):
        found.append("it shows no table")
    size = len(as_text(notebook).encode())
    if size > MAX_NOTEBOOK_BYTES:
        found.append(f"it has {size:,} bytes, more than {MAX_NOTEBOOK_BYTES:,}")
    return found


def _text(output):
    """All text of an output; nbformat's files hold it in lines."""
    texts = [output.get("text", "")]
    texts += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(text) for text in texts)


def as_text(notebook: Notebook) -> str:
    """A notebook as its file has it."""
    return nbformat.writes(nbformat.from_dict(notebook)) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="runs notebooks and writes their outputs")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    paths = parser.parse_args(arguments).notebooks
    failed = 0
    for path in paths or sorted((ROOT / "notebooks").glob("*.ipynb")):
        start = time.monotonic()
        notebook = execute(path.resolve())
        found = faults(notebook)
        if found:
            failed += 1
            print(f"{path.name}: not written: {'; '.join(found)}", flush=True)
            continue
        text = as_text(notebook)
        write_text(path, text)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {len(text):,} bytes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
