"""`ddunet horizon`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddunet_keras.cli.console import fail, progress
from ddunet_keras.cli.options import argument_type, command, reading_options, recursive_option
from ddunet_keras.files import DataError, check_writable, read_gray, write_image
from ddunet_keras.prediction import find_photos
from ddunet_keras.settings import ImageSize
from ddunet_keras.sky import learn_horizon, show_horizon, write_horizon_array
from ddunet_keras.sky.horizon import region_mask
from ddunet_keras.sky.reading import ReadOptions, read_photo

C_ARRAY = "ddunet_horizon.h"
"""File of `--c-array`, which `tflite/micro/sky_app.cc` looks for."""


def run_horizon(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    array = None if arguments.c_array is None else arguments.c_array / C_ARRAY
    if array is not None:
        check_writable(array)
    if arguments.mask is not None:
        valid = region_mask(arguments.mask, read_gray(arguments.mask).shape, "horizon")
    else:
        valid = _learn(arguments)
    if array is not None:
        write_horizon_array(array, valid, arguments.size)
        height, width = arguments.size
        frame_height, frame_width = valid.shape
        print(
            f"wrote {array}: one bit for each of {width}x{height} pixels, "
            f"for frames of the proportions {frame_width}x{frame_height}"
        )


def _check_options(arguments):
    if (arguments.mask is None) == (not arguments.inputs):
        raise DataError("give frames, or with --mask a mask that is there already")
    if (arguments.c_array is None) != (arguments.size is None):
        raise DataError("--c-array and --size go together: the array has the network's size")
    if arguments.mask is not None and arguments.c_array is None:
        raise DataError("--mask is for --c-array: there is nothing else to write of a mask")


def _learn(arguments):
    """Finds the mask in frames and writes it; returns where there is sky."""
    out = arguments.out
    if out.suffix.lower() != ".png":
        raise DataError(f"{out}: the mask is a .png file, which loses nothing")
    if out.exists():
        raise DataError(f"{out}: exists, and may have been edited; give another name or delete it")
    picture = out.with_name(f"{out.stem}_on_frame.jpg")
    for path in (out, picture):
        check_writable(path)
    photos = list(find_photos(arguments.inputs, arguments.recursive).values())
    reading = ReadOptions(arguments.bayer, arguments.channel_order)
    folders = {os.path.realpath(path) for path in arguments.inputs if path.is_dir()}
    parent = Path(os.path.realpath(out.parent))
    searched = (parent, *parent.parents) if arguments.recursive else (parent,)
    if folders & set(map(str, searched)):  # a second run would take the mask for a frame
        raise DataError(f"{out}: frames are read from this folder; give another for the mask")
    read: list[Path] = []
    found = learn_horizon(_frames(photos, reading, read))
    write_image(out, found.mask.astype(np.uint8) * np.uint8(255))
    clearest = read_photo(read[found.clearest], reading).image
    write_image(picture, show_horizon(clearest, found.mask))
    print(f"{found.frames} frames: {100 * found.mask.mean():.1f} % of the picture is sky")
    if found.disc is not None:
        disc = found.disc
        radius = min(disc.radius_x, disc.radius_y)
        print(f"disc of the fisheye: circle:{disc.x:.0f},{disc.y:.0f},{radius:.0f}")
    print(f"wrote {out}: white is sky; look at {picture.name}, and edit the mask where it is wrong")
    return found.mask


def _frames(photos: list[Path], reading: ReadOptions, read: list[Path]) -> Iterator[np.ndarray]:
    """The frames that can be read, one at a time; `read` gets their paths."""
    show = progress("looked at")
    size = None
    for done, path in enumerate(photos, 1):
        try:
            frame = read_photo(path, reading).image
        except DataError as error:  # one bad frame of hundreds is no reason to stop
            fail(error)
        else:
            height, width = frame.shape[:2]
            size = size or (height, width)
            if size != (height, width):
                raise DataError(
                    f"{path}: {width}x{height} pixels, {read[0]} has {size[1]}x{size[0]}; give "
                    "frames of one camera and size"
                )
            read.append(path)
            yield frame
        if show is not None:
            show(done, len(photos))


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(
        commands,
        "horizon",
        run_horizon,
        "find what never is sky in frames of one camera: a mask for predict --horizon",
    )
    option(
        "inputs",
        type=Path,
        nargs="*",
        metavar="FRAME|FOLDER",
        help="some dozen frames of many days and hours, or folders of them",
    )
    recursive_option(option)
    option(
        "--out",
        type=Path,
        default=Path("horizon.png"),
        metavar="FILE",
        help="mask to write, white where there is sky; FILE_on_frame.jpg beside it shows it",
    )
    option(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a mask, such as an edited one, to write as a C array, in place of frames",
    )
    option(
        "--c-array",
        type=Path,
        metavar="DIR",
        help=f"folder to write the mask to as C, too, as {C_ARRAY}, for a microcontroller",
    )
    option(
        "--size",
        type=argument_type(ImageSize(multiple=1)),
        metavar="H,W",
        help="height and width of the network's input, for --c-array",
    )
    reading_options(option)
