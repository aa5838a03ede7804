"""`ddunet synthetic`, `split` and `check`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddunet_keras.cli.console import progress
from ddunet_keras.cli.options import (
    PROTOCOL_HELP,
    argument_type,
    command,
    data_options,
    positive,
    seed_option,
)
from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import PROTOCOLS, make_split
from ddunet_keras.settings import ImageSize


def run_synthetic(arguments: argparse.Namespace) -> None:
    from ddunet_keras.data.synthetic import write_synthetic

    write_synthetic(arguments.out, arguments.count, arguments.size, arguments.seed)
    print(f"wrote {arguments.out}: {arguments.count} images and masks, metadata.csv")


def run_split(arguments: argparse.Namespace) -> None:
    dataset = open_dataset(arguments.data, arguments.layout, arguments.num_classes)
    split = make_split(dataset, arguments.protocol, arguments.seed)
    split.save(arguments.out)
    for part, about in split.describe(dataset).items():
        print(f"{part:5} {about['images']:6} images, {len(about['dates'])} dates")
    print(f"wrote {arguments.out}: {split.note}")


def run_check(arguments: argparse.Namespace) -> None:
    dataset = open_dataset(arguments.data, arguments.layout, arguments.num_classes)
    dataset.verify(progress("checked"))
    print(
        f"{arguments.data}: {len(dataset)} images and masks, all readable, layout {dataset.layout}"
    )


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(
        commands, "synthetic", run_synthetic, "write a data set of synthetic skies with exact masks"
    )
    option("out", type=Path, metavar="OUT", help="new folder")
    option("--count", type=positive, default=120, metavar="N", help="number of images")
    option(
        "--size",
        type=argument_type(ImageSize(1)),
        default="256",
        metavar="H,W",
        help="size of the images",
    )
    seed_option(option)

    option = command(
        commands, "split", run_split, "write the split of a data set to a file, to keep or edit it"
    )
    data_options(option)
    option("--protocol", choices=PROTOCOLS, default="date", help=PROTOCOL_HELP)
    seed_option(option)
    option("--out", type=Path, required=True, metavar="FILE", help="JSON, for --split FILE")

    option = command(
        commands,
        "check",
        run_check,
        "decode every image and mask of a data set and say what is wrong",
    )
    data_options(option)
