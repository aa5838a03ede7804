"""`ddunet predict`."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np

from ddunet_keras.cli.console import fail
from ddunet_keras.cli.models import open_model
from ddunet_keras.cli.options import (
    MODEL_HELP,
    command,
    model_file,
    positive,
    threshold_option,
)
from ddunet_keras.files import as_json, printable
from ddunet_keras.prediction import find_photos, predict_files
from ddunet_keras.presets import DEFAULT, preset_file

UNUSABLE = 3
"""Exit code where every photo could be read, but some say nothing of the sky."""

EXIT_CODES = (
    "Exit code: 0; 2 if a photo or an option cannot be used; 3 if all photos could be read, but "
    "some say nothing of the sky (black, saturated, of one colour, or with no sky in it)."
)


def run_predict(arguments: argparse.Namespace) -> int:
    photos = find_photos(arguments.inputs)
    model_path = arguments.model or preset_file(DEFAULT, "tflite")
    model = open_model(model_path, arguments.threads, arguments.delegate)
    model.predict_probabilities(np.zeros((16, 16, 3), np.uint8))  # its start counts for no photo
    records = predict_files(
        model,
        photos,
        arguments.out,
        threshold=arguments.threshold,
        horizon=arguments.horizon,
        force=arguments.force,
        overlay=arguments.overlay,
        model=str(model_path),
    )
    failed = 0
    unusable = 0
    with contextlib.closing(records):  # however this ends, what was found is written
        for record in records:
            if "error" in record:
                failed += 1
                fail(record["error"])
                continue
            unusable += not record["usable"]
            print(json.dumps(as_json(record)) if arguments.json else describe(record), flush=True)
    if not arguments.json:
        found = len(photos) - failed - (0 if arguments.force else unusable)
        what = "masks and overlays" if arguments.overlay else "masks"
        of = "1 photo" if found == 1 else f"{found} photos"
        print(f"wrote {arguments.out}: predictions.json, {what} of {of}")
    if failed:
        return 2
    return UNUSABLE if unusable else 0


def describe(record: dict) -> str:
    """A line on what was found in a photo."""
    cover = record["cloud_cover"]
    image = printable(record["image"])
    if cover["percent"] is None:
        return f"{image}: cannot tell: {record['reason']}"
    doubt = "" if record["usable"] else f" (cannot be trusted: {record['reason']})"
    confidence = record["confidence"]
    trust = "" if confidence is None else f", confidence {confidence:.2f}"
    return (
        f"{image}: {cover['percent']:.1f} % cloud, {cover['okta']} okta{trust}, "
        f"{record['seconds']:.2f} s{doubt}"
    )


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(
        commands,
        "predict",
        run_predict,
        "find the clouds in photos: mask, overlay and cloud cover",
        EXIT_CODES,
    )
    option(
        "inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="photos, or folders of them"
    )
    option(
        "--model", type=model_file, metavar="MODEL", help=f"{MODEL_HELP} (default: {DEFAULT}, int8)"
    )
    option(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="folder for masks, overlays and predictions.json",
    )
    option(
        "--threads",
        type=positive,
        metavar="N",
        help="threads that run a .tflite file (default: one for each core)",
    )
    option(
        "--delegate",
        metavar="NAME",
        help="for a .tflite file: edgetpu, or the library of another LiteRT delegate",
    )
    threshold_option(option)
    option(
        "--horizon",
        metavar="MASK|circle:x,y,r|auto",
        help="where the photo shows sky: a mask picture (white is sky), a circle in pixels, or "
        "auto, which finds the disc of a fisheye",
    )
    option(
        "--force",
        action="store_true",
        help="find clouds in photos that say nothing of the sky, too",
    )
    option("--no-overlay", dest="overlay", action="store_false", help="write no overlays")
    option("--json", action="store_true", help="print one JSON object for each photo")
