"""`ddunet adapt`."""

from __future__ import annotations

import argparse

from ddunet_keras.cli.console import log, start_keras
from ddunet_keras.cli.options import argument_type, command, config_options, config_values
from ddunet_keras.data.frames import open_frames
from ddunet_keras.deploy.config import TARGETS, ConversionConfig
from ddunet_keras.images import resize_image
from ddunet_keras.recipes import AdaptConfig
from ddunet_keras.settings import ImageSize

CALIBRATION_SKIES = 96
"""Synthetic skies that a file is calibrated on beside the own frames, which are few."""

VERIFICATION_SKIES = 16
"""Synthetic skies that it is verified on beside the frames held back."""


def run_adapt(arguments: argparse.Namespace) -> None:
    start_keras()
    from ddunet_keras.adaptation import MODEL_FILE, adapt, adaptation_markdown

    settings = config_values(arguments, AdaptConfig)
    run = adapt(**settings, progress=log)
    print(adaptation_markdown(run))
    model_path = arguments.out / MODEL_FILE
    print(f"wrote {arguments.out}: {MODEL_FILE}, run.json, report.md")
    if not arguments.convert:
        return
    height, width = arguments.size
    path = arguments.out / f"{model_path.stem}_{height}x{width}_{arguments.target}.tflite"
    result = _convert(model_path, path, run["frames"], AdaptConfig(**settings), arguments)
    print(f"wrote {path} ({result['bytes']:,} bytes) and beside it .json, .md, .png")
    print(f"ddunet predict --model {path} PHOTOS segments with it")


def _convert(model_path, path, names, config, arguments):
    """Makes the int8 file, verified on the frames that were held back."""
    from ddunet_keras.deploy.convert import ConversionError, convert
    from ddunet_keras.model import load_model

    frames = open_frames(config.data, config.layout, config.horizon)
    photos = _photos(frames, names, arguments.size)
    conversion = ConversionConfig(arguments.size, target=arguments.target, inspect=False)
    about = {"model_file": model_path.name}
    try:
        return convert(load_model(model_path), photos, path, conversion, progress=log, about=about)
    except ConversionError as error:
        print(error.verification.to_markdown())
        raise


def _photos(frames, names, size):
    """Own frames and synthetic skies: other skies than the few own ones shall fit in as well."""
    import numpy as np

    from ddunet_keras.adaptation import CALIBRATION_SEEDS, black_sky
    from ddunet_keras.deploy.calibrate import Photos

    def own(part):
        images = [frames.load(frame)[0] for frame in frames.frames if frame.name in part]
        return [resize_image(image, size) for image in images]

    def skies(count, first):
        return [black_sky(CALIBRATION_SEEDS + first + k, size)[0] for k in range(count)]

    calibration = own(set(names["trained_on"])) + skies(CALIBRATION_SKIES, 0)
    test = own(set(names["held_back"])) + skies(VERIFICATION_SKIES, CALIBRATION_SKIES)
    about = {
        "data": f"{frames.root.name} and synthetic skies",
        "calibrated_on": f"{len(calibration)} photos",
        "verified_on": f"{len(test)} other photos",
    }
    return Photos(np.stack(calibration), np.stack(test), None, about)


def add_commands(commands: argparse._SubParsersAction) -> None:
    text = "train a model on with frames of one's own camera, and make an int8 .tflite of it"
    option = command(commands, "adapt", run_adapt, text)
    config_options(option, AdaptConfig)
    option(
        "--size",
        type=argument_type(ImageSize(16)),
        default=(256, 256),
        metavar="H,W",
        help="size of the .tflite file's input",
    )
    option("--target", choices=tuple(TARGETS), default="cpu", help="device of the .tflite file")
    option("--no-convert", dest="convert", action="store_false", help="make no .tflite file")
