"""`ddunet report`."""

from __future__ import annotations

import argparse
import importlib.util
from datetime import date
from pathlib import Path

from ddunet_keras.cli.options import argument_type, command
from ddunet_keras.files import DataError, printable


def run_report(arguments: argparse.Namespace) -> None:
    if importlib.util.find_spec("matplotlib") is None:  # [plot] has it, too, but not the rest
        raise DataError("needs matplotlib: in the clone, pip install '.[report]'")
    from ddunet_keras.camera.day import read_day
    from ddunet_keras.camera.report import summary, write_report
    from ddunet_keras.camera.sun import Place

    for path, suffix in ((arguments.out, ".html"), (arguments.png, ".png")):
        if path is not None and path.suffix.lower() != suffix:  # it might be the log itself
            raise DataError(f"{path}: is not a {suffix} file, which is written here")
    place = None
    if (arguments.latitude is None) != (arguments.longitude is None):
        raise DataError("--latitude and --longitude belong together: give both")
    if arguments.latitude is not None:
        place = Place(arguments.latitude, arguments.longitude)
    day = read_day(arguments.log, arguments.day)
    write_report(day, arguments.out, place, arguments.png)
    figures = ", ".join(f"{name} {value}" for name, value in summary(day).items())
    print(f"{day.date}: {figures}")
    written = [str(path) for path in (arguments.out, arguments.png) if path is not None]
    print(f"wrote {printable(' and '.join(written))}")


def iso_day(text: str) -> date:
    """A day as an argument.

    Example:

    >>> iso_day("2026-11-28")
    datetime.date(2026, 11, 28)
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        reason = f"must be a day as YYYY-MM-DD; received {text!r}"
        raise argparse.ArgumentTypeError(reason) from None


def add_commands(commands: argparse._SubParsersAction) -> None:
    from ddunet_keras.camera.sun import LATITUDE, LONGITUDE

    option = command(
        commands,
        "report",
        run_report,
        "show a day: cloud cover over day and night, usable and safe times, a keogram",
    )
    option(
        "log",
        type=Path,
        metavar="LOG",
        help="a day's .jsonl, or the folder that `ddunet watch` or `ddunet predict` wrote",
    )
    option("--out", type=Path, default=Path("day.html"), metavar="FILE", help="page to write")
    option("--png", type=Path, metavar="FILE", help="write the chart as a picture, too")
    option("--day", type=iso_day, metavar="YYYY-MM-DD", help="which day (default: the newest)")
    option(
        "--latitude",
        type=argument_type(LATITUDE),
        metavar="DEGREES",
        help="of the camera, north positive: shows day, twilight, night and moon",
    )
    option(
        "--longitude",
        type=argument_type(LONGITUDE),
        metavar="DEGREES",
        help="of the camera, east positive",
    )
