"""DDUNet: cloud segmentation of sky photos, for Keras 3.

`import ddunet_keras` brings in neither Keras nor TensorFlow: the names below are imported when they
are first used, so that what runs on a small device stays small.
"""

from __future__ import annotations

import importlib
import os

# oneDNN makes training about three times as fast on an x86 CPU; TensorFlow turns it on by itself
# only for newer ones, and reads this when it is first imported. Set it to "0" to leave it off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

_HOME = {
    "DDUNet": "model",
    "load_model": "model",
    "PRESETS": "presets",
    "DMSC": "layers",
    "DWBG": "layers",
    "load_paddle_weights": "reference",
    "Augmentation": "data.pipeline",
    "Pipeline": "data.pipeline",
    "RECIPES": "training",
    "Recipe": "training",
    "train": "training",
    "evaluate": "evaluation",
    "benchmark": "benchmarks",
    "ablate": "benchmarks",
    "Dataset": "data.datasets",
    "open_dataset": "data.datasets",
    "Split": "data.splits",
    "make_split": "data.splits",
    "synthetic_sky": "data.synthetic",
    "write_synthetic": "data.synthetic",
    "Segmenter": "segmenter",
    "convert": "deploy.convert",
    "CloudCover": "sky",
    "Segmentation": "sky",
    "cloud_cover": "sky",
    "horizon_mask": "sky",
    "DataError": "files",
    "read_image": "files",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name.startswith(__name__):
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs {error.name}: pip install 'ddunet-keras[train]'",
            name=error.name,
        ) from None


def __dir__():
    return sorted({*globals(), *__all__})
