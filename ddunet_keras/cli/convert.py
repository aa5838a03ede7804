"""`ddunet convert` and `inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from ddunet_keras.cli.console import log, start_keras
from ddunet_keras.cli.models import split_beside
from ddunet_keras.cli.options import (
    PRESET_NAMES,
    also_option,
    command,
    config_options,
    config_values,
    count,
    model_file,
    positive,
    split_options,
)
from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.layouts import LAYOUTS, detect_layout
from ddunet_keras.data.splits import Split, make_split
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.files import DataError, atomic_path, check_writable
from ddunet_keras.prediction import find_photos


def run_convert(arguments):
    start_keras()
    from ddunet_keras.deploy.convert import ConversionError, convert
    from ddunet_keras.model import load_model

    config = ConversionConfig(**config_values(arguments, ConversionConfig))
    height, width = config.size
    out = arguments.out or Path(f"{arguments.model.stem}_{height}x{width}_{config.target}.tflite")
    check_writable(out)  # before the photos are read; `convert` checks what goes beside it, too
    model = load_model(arguments.model)
    photos = _photos(arguments, model.num_classes, config)
    about = {"model_file": arguments.model.name}
    try:
        result = convert(model, photos, out, config, progress=log, about=about)
    except ConversionError as error:
        print(error.verification.to_markdown(), error.layers, sep="\n")
        raise
    print(out.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"wrote {out} ({result['bytes']:,} bytes) and beside it .json, .md, .png")


def _photos(arguments, num_classes, config):
    """The photos of --calibration: a data set, or a folder without masks."""
    from ddunet_keras.deploy.calibrate import labelled_photos, unlabelled_photos

    draw = {"count": arguments.images, "verify": arguments.verify, "seed": config.seed}
    if not arguments.layout:
        paths = _paths_without_masks(arguments.calibration)
        if paths:
            return unlabelled_photos(paths, config.size, **draw)
    dataset = open_dataset(arguments.calibration, arguments.layout, num_classes)
    split = _split(arguments, dataset, config.seed)
    others = [
        (open_dataset(folder, num_classes=num_classes), Split.load(split))
        for folder, split in arguments.also
    ]
    return labelled_photos(dataset, split, config.size, also=others, **draw)


def _paths_without_masks(folder):
    """The photos of a folder that is laid out as no data set; None for anything else.

    A data set with a fault is none of these: what is wrong with it is for `open_dataset` to say.
    """
    if not folder.is_dir() or _has_layout(folder):
        return None
    try:
        return find_photos([folder]).values()
    except DataError:
        return None


def _has_layout(folder) -> bool:
    try:
        detect_layout(folder)
    except DataError:
        return False
    return True


def _split(arguments, dataset, seed):
    """The split that was asked for, else the model's own where it fits the data, else a new one."""
    if arguments.split:
        return Split.load(arguments.split)
    if arguments.protocol:
        return make_split(dataset, arguments.protocol, seed)
    trained = split_beside(arguments.model)
    if trained is not None and _fits(trained, dataset):
        return trained
    split = _new_split(dataset, seed)
    reason = "is not what the model was trained on"
    if trained is None:
        reason = f"may have been trained on, {arguments.model.name} has no split beside it"
    log(f"{dataset.root} {reason}; divided anew: {split.note}")
    return split


def _new_split(dataset, seed):
    """By dates where it has them, else by captures, else by images."""
    for protocol in ("date", "capture"):
        try:
            return make_split(dataset, protocol, seed)
        except DataError:
            continue
    return make_split(dataset, "paper", seed)


def _fits(split, dataset) -> bool:
    try:
        split.check(dataset)
    except DataError:
        return False
    return True


def run_inspect(arguments):
    from ddunet_keras.deploy.export import write_c_array
    from ddunet_keras.litert.inspect import inspect_model

    if arguments.c_array:
        for path in write_c_array(arguments.file, arguments.c_array):
            log(f"wrote {path}")
    report = inspect_model(arguments.file)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report.to_markdown())
    if arguments.plot:
        with atomic_path(arguments.plot) as temporary:
            report.plot(temporary)


def add_commands(commands) -> None:
    text = "make a verified int8 .tflite of a trained model"
    option = command(commands, "convert", run_convert, text)
    option("model", type=model_file, metavar="MODEL", help=f"a .keras file or {PRESET_NAMES}")
    text = "data set that the model was trained on, or a folder of photos (without masks)"
    option("--calibration", type=Path, required=True, metavar="DATA", help=text)
    also_option(option, "calibrate")
    option("--layout", choices=LAYOUTS, help="layout of DATA (default: detected)")
    split_options(option)
    text = "photos to calibrate on, from the training part"
    option("--images", type=positive, default=200, metavar="N", help=text)
    text = "photos to verify on, from the test part; 0 for all"
    option("--verify", type=count, default=32, metavar="N", help=text)
    text = "file to write (default: MODEL_SIZE_TARGET.tflite)"
    option("--out", type=Path, metavar="FILE", help=text)
    config_options(option, ConversionConfig)

    text = "what a .tflite file costs on devices: memory, time, operators"
    option = command(commands, "inspect", run_inspect, text)
    option("file", type=Path, metavar="FILE", help="any .tflite file")
    option("--json", action="store_true", help="print JSON in place of tables")
    option("--plot", type=Path, metavar="PNG", help="picture of the memory over the operators")
    text = "folder for a segmenter with int8 input and output as C sources, for TFLM"
    option("--c-array", type=Path, metavar="DIR", help=text)
