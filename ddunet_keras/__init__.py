"""DDUNet: cloud segmentation of sky photos, for Keras 3.

`import ddunet_keras` brings in neither Keras nor TensorFlow: the names below are imported when they
are first used, so that what runs on a small device stays small.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; the names and modules of _HOME
    from ddunet_keras.adaptation import adapt
    from ddunet_keras.benchmarks import ablate, benchmark
    from ddunet_keras.data.augmentation import Augmentation
    from ddunet_keras.data.datasets import Dataset, open_dataset
    from ddunet_keras.data.pipeline import Pipeline
    from ddunet_keras.data.splits import Split, make_split
    from ddunet_keras.data.synthetic import synthetic_sky, write_synthetic
    from ddunet_keras.deploy.calibrate import labelled_photos, unlabelled_photos
    from ddunet_keras.deploy.config import ConversionConfig
    from ddunet_keras.deploy.convert import convert
    from ddunet_keras.evaluation import evaluate
    from ddunet_keras.files import DataError
    from ddunet_keras.layers import DMSC, DWBG
    from ddunet_keras.model import DDUNet, build_network, load_model
    from ddunet_keras.networks.architectures import NETWORKS
    from ddunet_keras.presets import PRESETS
    from ddunet_keras.recipes import RECIPES, AblationConfig, AdaptConfig, Recipe, TrainingConfig
    from ddunet_keras.reference import load_paddle_weights
    from ddunet_keras.segmenter import Segmenter
    from ddunet_keras.sky import CloudCover, Segmentation, cloud_cover, horizon_mask, learn_horizon
    from ddunet_keras.sky.reading import Photo, ReadOptions, read_image, read_photo
    from ddunet_keras.training import train

# oneDNN makes training about three times as fast on an x86 CPU; TensorFlow turns it on by itself
# only for newer ones, and reads this when it is first imported. Set it to "0" to leave it off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

_HOME = {
    "DDUNet": "model",
    "build_network": "model",
    "load_model": "model",
    "NETWORKS": "networks.architectures",
    "PRESETS": "presets",
    "DMSC": "layers",
    "DWBG": "layers",
    "load_paddle_weights": "reference",
    "Augmentation": "data.augmentation",
    "Pipeline": "data.pipeline",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "TrainingConfig": "recipes",
    "AblationConfig": "recipes",
    "AdaptConfig": "recipes",
    "train": "training",
    "adapt": "adaptation",
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
    "ConversionConfig": "deploy.config",
    "labelled_photos": "deploy.calibrate",
    "unlabelled_photos": "deploy.calibrate",
    "CloudCover": "sky",
    "Segmentation": "sky",
    "cloud_cover": "sky",
    "horizon_mask": "sky",
    "learn_horizon": "sky",
    "DataError": "files",
    "Photo": "sky.reading",
    "ReadOptions": "sky.reading",
    "read_image": "sky.reading",
    "read_photo": "sky.reading",
}
__all__ = [  # the names of _HOME again: editors read no expression here
    "DMSC",
    "DWBG",
    "NETWORKS",
    "PRESETS",
    "RECIPES",
    "AblationConfig",
    "AdaptConfig",
    "Augmentation",
    "CloudCover",
    "ConversionConfig",
    "DDUNet",
    "DataError",
    "Dataset",
    "Photo",
    "Pipeline",
    "ReadOptions",
    "Recipe",
    "Segmentation",
    "Segmenter",
    "Split",
    "TrainingConfig",
    "__version__",
    "ablate",
    "adapt",
    "benchmark",
    "build_network",
    "cloud_cover",
    "convert",
    "evaluate",
    "horizon_mask",
    "labelled_photos",
    "learn_horizon",
    "load_model",
    "load_paddle_weights",
    "make_split",
    "open_dataset",
    "read_image",
    "read_photo",
    "synthetic_sky",
    "train",
    "unlabelled_photos",
    "write_synthetic",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(__name__):
            raise
        extra = "plot" if error.name == "matplotlib" else "train"
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs {error.name}: in the clone, pip install '.[{extra}]'",
            name=error.name,
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
