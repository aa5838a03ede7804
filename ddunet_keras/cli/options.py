"""Types of arguments, and the options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ddunet_keras.cli.console import fail
from ddunet_keras.data.datasets import LAYOUTS
from ddunet_keras.data.splits import PROTOCOLS
from ddunet_keras.files import DataError
from ddunet_keras.presets import PRESETS, preset_file
from ddunet_keras.recipes import PROTOCOL_HELP
from ddunet_keras.settings import (
    CLASSES,
    COUNT,
    POSITIVE,
    SEED,
    Choice,
    Each,
    Flag,
    Number,
    Rule,
)
from ddunet_keras.sky.bayer import NO_MOSAIC, PATTERNS
from ddunet_keras.sky.reading import CHANNEL_ORDERS


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(fail(f"{message} (see {self.prog} --help)"))


def argument_type(rule: Rule) -> Callable[[str], Any]:
    """The rule of a setting as the `type` of an argument."""

    def parse(text):
        try:
            return rule.check("value", rule.parse(text))
        except DataError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            reason = f"must be {rule.words}; received {text!r}"
            raise argparse.ArgumentTypeError(reason) from None

    return parse


def model_file(text):
    """A model's file, or that of the preset of this name."""
    path = Path(text)
    try:
        return preset_file(text) if text in PRESETS and not path.exists() else path
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


positive = argument_type(POSITIVE)
count = argument_type(COUNT)
probability = argument_type(Number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1"))

PRESET_NAMES = " or ".join(PRESETS)
MODEL_HELP = f"a .keras or .tflite file, such as RUN/best.keras, or {PRESET_NAMES}"


def command(commands, name, run, text, epilog=None) -> Callable:
    """Adds a command, which `run` carries out; returns the function that adds options to it."""
    added = commands.add_parser(name, help=text, description=text, epilog=epilog)
    added.set_defaults(run=run)

    def option(*names, unset=False, **settings):
        """`unset`: the default is only shown, and the argument is there only if it is given."""
        default = settings.get("default")
        if default is not None and "action" not in settings:
            shown = default
            if isinstance(default, (tuple, list)):
                separator = " " if settings.get("nargs") else ","
                shown = separator.join(str(value) for value in default)
            settings["help"] += f" (default: {shown})"
        if unset:
            settings["default"] = argparse.SUPPRESS
        added.add_argument(*names, **settings)

    return option


def config_options(
    option: Callable,
    config_class: type,
    skip: Collection[str] = (),
    unset: bool = False,
) -> None:
    """Adds an option for each field of a configuration (see `ddunet_keras.settings`).

    `--image-size` stands for the field `image_size`, and `--no-inspect` for the field `inspect`,
    which is True unless told otherwise. Help, choices and default are the field's.

    Args:
        option: from `command`.
        config_class: a dataclass whose fields come from `setting`.
        skip: names of fields that get no option here.
        unset: whether what is not given is left out of the arguments, not set to its default.
    """
    for field in dataclasses.fields(config_class):
        if field.name in skip:
            continue
        about = field.metadata
        rule = about["rule"]
        required = field.default is dataclasses.MISSING
        words: dict[str, Any] = {"help": about["help"], "unset": unset}
        if isinstance(rule, Each):
            words["nargs"] = "+"
            rule = rule.rule
        if isinstance(rule, Flag):
            words["action"] = "store_false" if field.default else "store_true"
        else:
            words["metavar"] = about["metavar"]
            words["default"] = None if required else field.default
            if isinstance(rule, Choice):
                words["choices"] = rule.values
            else:
                words["type"] = argument_type(rule)
        if about["positional"]:
            del words["default"]
            option(field.name, **words)
            continue
        if required:
            words["required"] = True
        no = "no-" if isinstance(rule, Flag) and field.default else ""
        name = about["option"] or f"--{no}{field.name.replace('_', '-')}"
        option(name, dest=field.name, **words)


def config_values(arguments: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The parsed values of a configuration's fields: `config_class(**config_values(...))`."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def data_options(option, num_classes=True) -> None:
    """DATA, --layout and, where asked for, --num-classes."""
    option("data", type=Path, metavar="DATA", help="folder of a data set")
    option("--layout", choices=LAYOUTS, help="layout of DATA (default: detected)")
    if num_classes:
        option(
            "--num-classes",
            type=argument_type(CLASSES),
            default=2,
            metavar="N",
            help="number of classes: 2; HYTA also has 3",
        )


def seed_option(option) -> None:
    option(
        "--seed",
        type=argument_type(SEED),
        default=0,
        help="equal seeds give equal results",
        metavar="N",
    )


def threshold_option(option) -> None:
    option(
        "--threshold",
        type=probability,
        default=0.5,
        metavar="P",
        help="probability from which a pixel counts as cloud",
    )


def recursive_option(option) -> None:
    option("--recursive", action="store_true", help="look into the folders in folders, too")


def reading_options(option) -> None:
    """--bayer and --channel-order: how the colours of a photo are stored."""
    option(
        "--bayer",
        choices=(*PATTERNS, NO_MOSAIC),
        type=str.upper,
        help="gray files hold the mosaic of a colour sensor, with these colours in the first two "
        "rows: compute the colours; NONE: they are monochrome, whatever they look like",
    )
    option(
        "--channel-order",
        choices=CHANNEL_ORDERS,
        default="rgb",
        help="bgr: red and blue were exchanged when the files were written",
    )


def split_options(option) -> None:
    """--protocol and --split."""
    option("--protocol", choices=PROTOCOLS, help=f"{PROTOCOL_HELP} (default: RUN's or date)")
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
