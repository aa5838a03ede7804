"""What `compare.py` does with a trained network, each in a process of its own: TensorFlow leaks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import Split
from ddunet_keras.files import first_line

INT8_FILES = {"tflm": "tflm/tflm.tflite", "cpu": "cpu.tflite"}
"""Target -> file in the folder of a training; `benchmark` scores the one right in it."""


def convert_run(folder: Path, data: Path, size: int, verify: int) -> dict[str, Any]:
    """Converts the best model of a training to int8, calibrated on its training images.

    Returns:
        macs: multiply-accumulates of a photo, those of the deploy graph in float.
        int8: target -> refused, why no file was written, or None; bytes of the file; agreement,
        percent of the pixels of `verify` test photos in which its masks are the float model's, and
        least_agreement, of the worst photo; arena, bytes in TFLM. What is not known is None.
    """
    from ddunet_keras.deploy.calibrate import labelled_photos
    from ddunet_keras.model import load_model

    model = load_model(folder / "best.keras")
    split = Split.load(folder / "split.json")
    photos = labelled_photos(open_dataset(data), split, (size, size), verify=verify)
    int8 = {
        target: _convert(model, photos, (size, size), target, folder / file)
        for target, file in INT8_FILES.items()
    }
    return {"macs": _count_macs(model, (size, size)), "int8": int8}


def not_converted(reason: str) -> dict[str, Any]:
    """What `convert_run` gives where it failed as a whole."""
    found = _nothing() | {"refused": reason}
    return {"macs": None, "int8": dict.fromkeys(INT8_FILES, found)}


def _nothing():
    return dict.fromkeys(("refused", "bytes", "agreement", "least_agreement", "arena"))


def _count_macs(model, size):
    from ddunet_keras.deploy.graph import build_graph
    from ddunet_keras.deploy.network_graph import build_network_graph
    from ddunet_keras.deploy.tensorflow_converter import convert_graph
    from ddunet_keras.litert.inspect import inspect_model
    from ddunet_keras.model import DDUNet

    is_ddunet = isinstance(model, DDUNet)
    graph = build_graph(model, size) if is_ddunet else build_network_graph(model, size)
    return inspect_model(convert_graph(graph), latency=False, vela=False, tflm=False).macs


def _convert(model, photos, size, target, out):
    from ddunet_keras.deploy.config import ConversionConfig
    from ddunet_keras.deploy.convert import ConversionError, convert

    found = _nothing()
    out.unlink(missing_ok=True)  # of another conversion, which this one may not repeat
    try:
        result = convert(model, photos, out, ConversionConfig(size, target=target, inspect=False))
    except ConversionError as error:
        failed = [f"{check.name} ({check.detail})" for check in error.verification.failed]
        found["refused"] = f"not so: {'; '.join(failed)}"
        verification = error.verification.to_dict()
    except ValueError as error:
        return found | {"refused": first_line(error)}
    else:
        found["bytes"] = result["bytes"]
        verification = result["verification"]
    scores = verification["scores"]
    if scores:
        found["agreement"] = scores["agreement"]
        found["least_agreement"] = min(scores["agreement_by_image"])
    if verification["arena"]:
        found["arena"] = verification["arena"]["total"]
    return found


def score_run(
    folder: Path, data: Path, whole_sky: Path | None, cameras: Sequence[Path]
) -> dict[str, Any]:
    """Scores a training, float and int8: "about", "rows" and "cameras" of `benchmark`."""
    from ddunet_keras.benchmarks import benchmark
    from ddunet_keras.camera_scores import open_camera

    datasets = [open_dataset(data)]
    if whole_sky is not None:
        datasets.append(open_dataset(whole_sky))
    with tempfile.TemporaryDirectory() as empty:  # in place of the models that ship
        return benchmark(
            datasets,
            weights=Path(empty),
            files=Path(empty),
            trained=[folder],
            cameras=[open_camera(camera) for camera in cameras],
        )
