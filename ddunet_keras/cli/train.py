"""`ddunet train` and `ablate`."""

from __future__ import annotations

import sys

from ddunet_keras.cli.console import log, start_keras
from ddunet_keras.cli.options import (
    also_option,
    command,
    config_options,
    config_values,
)
from ddunet_keras.recipes import AblationConfig, TrainingConfig


def run_train(arguments):
    start_keras()
    from ddunet_keras.training import train

    verbose = "auto" if sys.stdout.isatty() else 2  # to a file, a line an epoch
    train(**config_values(arguments, TrainingConfig), verbose=verbose)
    print(f"wrote {arguments.out}: best.keras, last.keras, run.json, split.json, curves.png")


def run_ablate(arguments):
    from ddunet_keras.benchmarks import ablate, ablation_markdown

    start_keras()
    result = ablate(**config_values(arguments, AblationConfig), progress=log)
    print(ablation_markdown(result))
    print(f"wrote {arguments.out}: ablation.json, ablation.md, and a folder for each training")


def add_commands(commands) -> None:
    option = command(commands, "train", run_train, "train DDUNet, or a network to compare it with")
    config_options(option, TrainingConfig, skip=("also",))
    also_option(option, "train")

    option = command(
        commands, "ablate", run_ablate, "train variants alike on the same splits, and compare them"
    )
    config_options(option, AblationConfig)
