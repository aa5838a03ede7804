"""Models and splits, as the commands name them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddunet_keras.cli.console import start_keras
from ddunet_keras.data.datasets import Dataset
from ddunet_keras.data.splits import Split, make_split
from ddunet_keras.files import DataError

if TYPE_CHECKING:
    from ddunet_keras.segmentation_network import SegmentationNetwork
    from ddunet_keras.segmenter import Segmenter


def open_model(
    path: Path, threads: int | None = None, delegate: str | None = None
) -> SegmentationNetwork | Segmenter:
    """What `segment` and `predict_probabilities` are asked of; a .tflite starts no TensorFlow."""
    if path.suffix == ".tflite":
        from ddunet_keras.segmenter import Segmenter

        return Segmenter(path, threads, delegate)
    if threads or delegate:
        raise DataError("--threads and --delegate are for a .tflite file")
    start_keras()
    from ddunet_keras.model import load_model

    return load_model(path)


def split_beside(path: Path) -> Split | None:
    """The split that a training left beside its model; None where there is none."""
    beside = path.parent / "split.json"
    return Split.load(beside) if os.path.lexists(beside) else None


def choose_split(arguments: argparse.Namespace, dataset: Dataset, trained: Split | None) -> Split:
    """The split that was asked for by file or protocol, else the model's own, else by date."""
    if arguments.split:
        return Split.load(arguments.split)
    if arguments.protocol or trained is None:
        return make_split(dataset, arguments.protocol or "date", arguments.seed)
    return trained
