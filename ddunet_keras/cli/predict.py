"""`ddunet predict`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddunet_keras.cli.archive import archive_options, check_archive_options, run_archive
from ddunet_keras.cli.console import fail, say
from ddunet_keras.cli.models import open_model
from ddunet_keras.cli.options import (
    MODEL_HELP,
    command,
    model_file,
    positive,
    reading_options,
    recursive_option,
    threshold_option,
)
from ddunet_keras.files import MAX_IMAGE_BYTES, DataError, as_json, printable
from ddunet_keras.prediction import (
    STDIN,
    PredictOptions,
    count_left_out,
    find_photos,
    predict_files,
)
from ddunet_keras.presets import DEFAULT, preset_file
from ddunet_keras.sky.reading import ReadOptions

UNUSABLE = 3
"""Exit code where every photo could be read, but some say nothing of the sky."""

EXIT_CODES = (
    "Exit code: 0; 2 if a photo or an option cannot be used; 3 if all photos could be read, but "
    "some say nothing of the sky (black, saturated, of one colour, or with no sky in it). "
    "With --table, such photos are rows of it, and the code is 0."
)


def run_predict(arguments: argparse.Namespace) -> int:
    where = {"recursive": arguments.recursive, "out": arguments.out}
    found = find_photos(arguments.inputs, **where)
    options = PredictOptions(
        threshold=arguments.threshold,
        horizon=arguments.horizon,
        force=arguments.force,
        zones=arguments.zone,
        overlay=arguments.overlay,
        reading=ReadOptions(arguments.bayer, arguments.channel_order, wait=True),
    )
    left_out = describe_left_out(count_left_out(arguments.inputs, **where))
    if arguments.table is not None:
        if left_out:
            say("note", left_out)
        run_archive(arguments, found, options)
        return 0
    check_archive_options(arguments)
    photos: dict[str, Path | bytes] = dict(found)
    photos |= {name: read_stdin() for name, path in photos.items() if str(path) == STDIN}
    model_path = arguments.model or preset_file(DEFAULT, "tflite")
    model = open_model(model_path, arguments.threads, arguments.delegate)
    model.predict_probabilities(np.zeros((16, 16, 3), np.uint8))  # its start counts for no photo
    records = predict_files(
        model,
        photos,
        arguments.out,
        **vars(options),
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
    if arguments.json:
        if left_out:
            say("note", left_out)
    else:
        good = len(photos) - failed - (0 if arguments.force else unusable)
        what = "masks and overlays" if arguments.overlay else "masks"
        of = "1 photo" if good == 1 else f"{good} photos"
        pictures = f", {what} of {of}" if good else ""
        print(f"wrote {arguments.out}: predictions.json{pictures}")
        if left_out:
            print(left_out)
    if failed:
        return 2
    return UNUSABLE if unusable else 0


def read_stdin() -> bytes:
    """The content of a photo that is piped in.

    Raises:
        DataError: nothing is, or nothing but an end, or too much.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(f"{STDIN}: no photo comes on stdin, as in: cat sky.jpg | ddunet predict -")
    content = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
    if not content:
        raise DataError(f"{STDIN}: stdin is empty, a photo was expected")
    return content


def describe_left_out(counts: Mapping[str, int]) -> str:
    """What was left out of folders, in a line; empty if nothing was.

    Example:

    >>> describe_left_out({".txt": 2, "folder": 1})
    'left out 3 of other kinds: 2 .txt, 1 folder (see --recursive)'
    """
    if not counts:
        return ""
    shown = [
        f"{count} {printable(ending)}{' (see --recursive)' if ending == 'folder' else ''}"
        for ending, count in counts.items()
    ]
    return f"left out {sum(counts.values())} of other kinds: {', '.join(shown)}"


def describe(record: dict) -> str:
    """A line on what was found in a photo."""
    cover = record["cloud_cover"]
    image = printable(record["image"])
    if cover["percent"] is None:
        return f"{image}: cannot tell: {record['reason']}"
    parts = [
        f"{cover['percent']:.1f} % cloud",
        f"{cover['okta']} okta",
        *(f"{zone} {_percent(part)}" for zone, part in record["zones"].items()),
    ]
    if record["confidence"] is not None:
        parts.append(f"confidence {record['confidence']:.2f}")
    parts.append(f"{record['seconds']:.2f} s")
    if record["horizon"] == "auto" and record["disc"] is None:
        parts.append("no disc found: all of the photo counts")
    if not record["usable"]:
        parts.append(f"not to be trusted: {record['reason']}")
    return f"{image}: {', '.join(parts)}"


def _percent(cover):
    """The cover of a zone, which may be unknown."""
    if cover is None or cover["percent"] is None:
        return "unknown"
    return f"{cover['percent']:.1f} %"


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(
        commands,
        "predict",
        run_predict,
        "find the clouds in photos: mask, overlay and cloud cover",
        EXIT_CODES,
    )
    option(
        "inputs",
        type=Path,
        nargs="+",
        metavar="IMAGE|FOLDER",
        help="photos, or folders of them; - reads one photo from stdin",
    )
    recursive_option(option)
    option(
        "--model", type=model_file, metavar="MODEL", help=f"{MODEL_HELP} (default: {DEFAULT}, int8)"
    )
    option(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="folder for masks, overlays and predictions.json, which replace earlier ones",
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
    option(
        "--zone",
        action="append",
        default=[],
        metavar="zenith:DEGREES|circle:x,y,r|MASK",
        help="tell the cover of this part of the sky, too: at most so far from the zenith (of an "
        "equidistant fisheye whose disc --horizon gives), a circle or a mask; may be repeated",
    )
    reading_options(option)
    option("--no-overlay", dest="overlay", action="store_false", help="write no overlays")
    option("--json", action="store_true", help="print one JSON object for each photo")
    archive_options(option)
