"""Puts the page that finds clouds in the browser into a folder, ready for any web server.

    python tflite/web/assemble.py OUT
    python -m http.server --bind 127.0.0.1 --directory OUT

The folder gets the page, the network's file, and the JavaScript and WebAssembly of LiteRT.js, which
npm (part of Node.js) installs. The page fetches nothing from elsewhere. `ddunet_keras` must be
installed.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.files import DataError, first_line
from ddunet_keras.litert.model import add_operator, read_tflite, write_tflite
from ddunet_keras.presets import DEFAULT, preset_file

HERE = Path(__file__).resolve().parent
PAGE = ("index.html", "clouds.js", "style.css")
PACKAGES = ("package.json", "package-lock.json")
"""The versions of LiteRT.js, and their checksums."""

RUNTIME = ("litert_wasm_internal", "litert_wasm_compat_internal")
"""LiteRT.js's runtime for browsers with relaxed SIMD, and for those without."""

UTILS_IN_PACKAGE = 'from "@litertjs/wasm-utils"'
UTILS_BESIDE = 'from "./wasm-utils.js"'
"""Browsers find a module by its path, not by its package."""

UINT8_SHIFT = 128
"""What is added to an int8 to have it as uint8."""


def assemble(out: Path) -> None:
    """Makes the folder `out`.

    Raises:
        DataError: `out` exists, or npm is missing or cannot install LiteRT.js.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; remove it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent
    ) as name:  # renamed at the end: whole, or absent
        temporary = Path(name)
        packages = install_packages(temporary / "npm")
        site = temporary / "site"
        site.mkdir()
        for file in PAGE:
            shutil.copyfile(HERE / file, site / file)
        copy_litert(packages, site / "litert")
        weights = preset_file(DEFAULT, "tflite")
        (site / "ddunet.tflite").write_bytes(with_uint8(weights.read_bytes()))
        shutil.copyfile(weights.parents[1] / "LICENSE", site / "MODEL_LICENSE.txt")
        site.rename(out)


def install_packages(folder: Path) -> Path:
    """Installs the pinned npm packages into a new folder; returns the one that holds them."""
    folder.mkdir()
    for file in PACKAGES:
        shutil.copyfile(HERE / file, folder / file)
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm: not found; it comes with Node.js, on Debian: apt install npm")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        problems = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise DataError(f"npm cannot install LiteRT.js: {'; '.join(problems[:3])}")
    return folder / "node_modules" / "@litertjs"


def copy_litert(packages: Path, folder: Path) -> None:
    """Copies what a browser needs of LiteRT.js into a new folder."""
    folder.mkdir()
    code = (packages / "core" / "dist" / "index.js").read_text(encoding="utf-8")
    if code.count(UTILS_IN_PACKAGE) != 1:
        raise DataError(f"LiteRT.js has changed: {UTILS_IN_PACKAGE} was expected once in it")
    code = code.replace(UTILS_IN_PACKAGE, UTILS_BESIDE)
    (folder / "litert.js").write_text(code, encoding="utf-8")
    shutil.copyfile(packages / "wasm-utils" / "dist" / "index.js", folder / "wasm-utils.js")
    for name in RUNTIME:
        for suffix in (".js", ".wasm"):
            shutil.copyfile(packages / "core" / "wasm" / (name + suffix), folder / (name + suffix))


def with_uint8(file: bytes) -> bytes:
    """An int8 `.tflite` file with uint8 input and output, which compute the same.

    LiteRT.js has no int8 at a model's input and output. A QUANTIZE operator before and one after
    the network add or take 128; all else stays.

    Raises:
        DataError: it is no file with one int8 input and one int8 output.
    """
    model = read_tflite(file)
    graph = model.subgraphs[0]
    ends = [graph.tensors[index] for index in graph.inputs + graph.outputs]
    if len(ends) != 2 or any(tensor.type != schema.TensorType.INT8 for tensor in ends):
        raise DataError("the page needs a file with one int8 input and one int8 output")
    source = add_uint8_tensor(graph, graph.inputs[0])
    result = add_uint8_tensor(graph, graph.outputs[0])
    options = schema.QuantizeOptionsT()
    first = add_operator(model, "QUANTIZE", [source], [graph.inputs[0]], options)
    last = add_operator(model, "QUANTIZE", [graph.outputs[0]], [result], options)
    graph.operators = [first, *graph.operators, last]
    graph.inputs = [source]
    graph.outputs = [result]
    return write_tflite(model)


def add_uint8_tensor(graph: schema.SubGraphT, like: int) -> int:
    """Index of a new uint8 tensor that holds the values of the int8 tensor `like`."""
    tensor = copy.deepcopy(graph.tensors[like])
    tensor.type = schema.TensorType.UINT8
    tensor.name = f"uint8_{like}"
    tensor.quantization.zeroPoint = [tensor.quantization.zeroPoint[0] + UINT8_SHIFT]
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Puts the page and all it needs into a folder.")
    parser.add_argument("out", type=Path, help="folder to make, such as site")
    out = parser.parse_args(arguments).out
    try:
        assemble(out)
    except (DataError, OSError) as error:
        print(f"assemble.py: {first_line(error)}", file=sys.stderr)
        return 2
    print(f"serve it: python -m http.server --bind 127.0.0.1 --directory {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
