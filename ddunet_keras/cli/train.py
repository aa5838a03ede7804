"""`ddunet train` and `ablate`."""

from __future__ import annotations

import sys
from pathlib import Path

from ddunet_keras.cli.console import log, start_keras
from ddunet_keras.cli.options import (
    PRESET_NAMES,
    PROTOCOL_HELP,
    also_option,
    command,
    data_options,
    model_file,
    positive,
    rate,
    seed_number,
    seed_option,
    size_of,
    split_options,
)
from ddunet_keras.data.splits import PROTOCOLS, Split

# as ddunet_keras.model and .training have them; importing these would make `--help` wait for Keras
VARIANTS = ("full", "dmsc", "baseline")
RECIPES = ("default", "geometric", "plain", "paper", "authors")


def run_train(arguments):
    start_keras()
    from ddunet_keras.training import train

    options = vars(arguments) | {"split": arguments.split and Split.load(arguments.split)}
    options["also"] = [(folder, Split.load(split)) for folder, split in arguments.also]
    del options["run"]
    verbose = "auto" if sys.stdout.isatty() else 2  # to a file, a line an epoch
    train(**options, verbose=verbose)
    print(f"wrote {arguments.out}: best.keras, last.keras, run.json, split.json, curves.png")


def run_ablate(arguments):
    from ddunet_keras.benchmarks import ablate, ablation_markdown

    start_keras()
    options = {key: value for key, value in vars(arguments).items() if key != "run"}
    print(ablation_markdown(ablate(**options, progress=log)))
    print(f"wrote {arguments.out}: ablation.json, ablation.md, and a folder for each training")


def add_commands(commands) -> None:
    option = command(commands, "train", run_train, "train DDUNet on a data set")
    data_options(option)
    option("--out", type=Path, required=True, metavar="RUN", help="folder for what comes of it")
    split_options(option, default="date")
    option("--with-validation", action="store_true", help="train on the validation part, too")
    also_option(option, "train")
    option("--recipe", choices=RECIPES, default="default", help="loss, optimizer and augmentation")
    option("--variant", choices=VARIANTS, default="full", help="of the network")
    option("--base-channels", type=positive, default=8, metavar="N", help="width of the network")
    option(
        "--image-size", type=size_of(16), metavar="H,W", help="training size (default: recipe's)"
    )
    option("--epochs", type=positive, metavar="N", help="(default: the recipe's)")
    option("--batch-size", type=positive, metavar="N", help="(default: the recipe's)")
    option("--learning-rate", type=rate, metavar="R", help="the highest (default: the recipe's)")
    seed_option(option)
    option(
        "--initial-weights",
        type=model_file,
        metavar="FILE|PRESET",
        help=f".keras, .pdparams or {PRESET_NAMES}, to start from",
    )
    option("--resume", action="store_true", help="continue an interrupted run in RUN")
    option("--deterministic", action="store_true", help="the same bits each time, slower")
    option("--mixed-precision", action="store_true", help="compute in float16 (GPU)")

    option = command(
        commands, "ablate", run_ablate, "train variants alike on the same splits, and compare them"
    )
    data_options(option, num_classes=False)
    option("--out", type=Path, required=True, metavar="DIR", help="for trainings and the table")
    option(
        "--variants", choices=VARIANTS, nargs="+", default=[*VARIANTS[::-1]], help="of the network"
    )
    option("--base-channels", type=positive, nargs="+", default=[4], metavar="N", help="widths")
    option("--protocols", choices=PROTOCOLS, nargs="+", default=["date"], help=PROTOCOL_HELP)
    option(
        "--seeds", type=seed_number, nargs="+", default=[0, 1, 2], metavar="N", help="of the splits"
    )
    option("--recipe", choices=RECIPES, default="default", help="of every training")
    option(
        "--image-size", type=size_of(16), default="96,96", metavar="H,W", help="of every training"
    )
    option("--epochs", type=positive, default=30, metavar="N", help="of every training")
