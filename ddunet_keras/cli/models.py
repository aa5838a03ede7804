"""Models and splits, as the commands name them."""

from __future__ import annotations

from ddunet_keras.cli.console import start_keras
from ddunet_keras.data.splits import Split, make_split
from ddunet_keras.files import DataError


def open_model(path, threads=None, delegate=None):
    """What `segment` and `predict_probabilities` are asked of; a .tflite starts no TensorFlow."""
    if path.suffix == ".tflite":
        from ddunet_keras.segmenter import Segmenter

        return Segmenter(path, threads, delegate)
    if threads or delegate:
        raise DataError("--threads and --delegate are for a .tflite file")
    start_keras()
    from ddunet_keras.model import load_model

    return load_model(path)


def split_beside(path):
    """The split that a training left beside its model; None where there is none."""
    beside = path.parent / "split.json"
    return Split.load(beside) if beside.is_file() else None


def choose_split(arguments, dataset, trained):
    if arguments.split:
        return Split.load(arguments.split)
    if arguments.protocol or trained is None:
        return make_split(dataset, arguments.protocol or "date", arguments.seed)
    return trained
