"""Types of arguments, and the options that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from ddunet_keras.cli.console import fail
from ddunet_keras.data.datasets import LAYOUTS
from ddunet_keras.data.splits import PROTOCOLS
from ddunet_keras.files import DataError
from ddunet_keras.presets import PRESETS, preset_file


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(fail(f"{message} (see {self.prog} --help)"))


def number(kind, low, high, what):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {what}; received {text!r}")
        return value

    return parse


def size_of(step):
    def parse(text):
        numbers = re.fullmatch(r"(\d{1,5})(?:[,x](\d{1,5}))?", text)
        size = numbers and (int(numbers[1]), int(numbers[2] or numbers[1]))
        if not size or min(size) < 16 or size[0] % step or size[1] % step:
            what = f"multiples of {step}" if step > 1 else "16 or more"
            raise argparse.ArgumentTypeError(f"must be SIDE or HEIGHT,WIDTH, {what}; got {text!r}")
        return size

    return parse


def horizon(text):
    circle = r"circle:\s*[-+.\d]+\s*,\s*[-+.\d]+\s*,\s*[.\d]+\s*"
    if text != "auto" and not re.fullmatch(circle, text) and not Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"must be auto, circle:x,y,r or the file of a mask picture; received {text!r}"
        )
    return text


def model_file(text):
    """A model's file, or that of the preset of this name."""
    path = Path(text)
    try:
        return preset_file(text) if text in PRESETS and not path.exists() else path
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


positive = number(int, 1, 10**9, "a positive integer")
seed_number = number(int, 0, 2**32 - 1, "an integer from 0 to 2**32 - 1")
classes = number(int, 2, 255, "an integer from 2 to 255")
count = number(int, 0, 10**9, "0 or a positive integer")
share = number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1")
rate = number(float, 1e-9, 1, "a number above 0, up to 1")
values = number(int, 2, 256, "an integer from 2 to 256")
probability = number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1")

PROTOCOL_HELP = "paper (leaks, for Table I), capture (no photo is shared), date (no day is shared)"
PRESET_NAMES = " or ".join(PRESETS)
MODEL_HELP = f"a .keras or .tflite file, such as RUN/best.keras, or {PRESET_NAMES}"


def command(commands, name, run, text) -> Callable:
    """Adds a command, which `run` carries out; returns the function that adds options to it."""
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(run=run)

    def option(*names, **settings):
        if settings.get("default") is not None and "action" not in settings:
            settings["help"] += " (default: %(default)s)"
        added.add_argument(*names, **settings)

    return option


def data_options(option, num_classes=True) -> None:
    """DATA, --layout and, where asked for, --num-classes."""
    option("data", type=Path, metavar="DATA", help="folder of a data set")
    option("--layout", choices=LAYOUTS, help="how it lies there (default: found by looking)")
    if num_classes:
        option("--num-classes", type=classes, default=2, metavar="N", help="2; HYTA: also 3")


def seed_option(option) -> None:
    option("--seed", type=seed_number, default=0, help="equal seeds, equal results", metavar="N")


def threshold_option(option) -> None:
    option("--threshold", type=probability, default=0.5, metavar="P", help="cloud from here on")


def split_options(option, default=None) -> None:
    """--protocol and --split."""
    said = PROTOCOL_HELP if default else f"{PROTOCOL_HELP} (default: RUN's or date)"
    option("--protocol", choices=PROTOCOLS, default=default, help=said)
    option("--split", type=Path, metavar="FILE", help="a split of your own, in place of --protocol")


def also_option(option, what) -> None:
    option(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("DATA", "SPLIT"),
        help=f"{what} on the training part of another data set, too; may be repeated",
    )
