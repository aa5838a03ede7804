"""`ddunet predict --table`: archives."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ddunet_keras.camera.table import Table
from ddunet_keras.cli.console import Progress, say
from ddunet_keras.cli.options import positive
from ddunet_keras.files import DataError, printable
from ddunet_keras.prediction import STDIN, PredictOptions, free_name

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
"""What stands for a cluster of processes on this computer."""

CONNECT_SECONDS = 20
"""How long the scheduler of a cluster may take to answer."""


def run_archive(
    arguments: argparse.Namespace, photos: dict[str, Path], options: PredictOptions
) -> None:
    """Measures photos into a table; bad ones are rows of it."""
    from ddunet_keras.camera.archive import archive_settings, measure_archive

    model = arguments.model
    if model is not None and model.suffix != ".tflite":
        raise DataError(f"{model}: --table needs a .tflite file, which `ddunet convert` makes")
    if STDIN in map(str, photos.values()):
        raise DataError(f"{STDIN}: --table takes photos in files")
    if arguments.threads or arguments.delegate:
        raise DataError("--threads and --delegate are not for --table, but --workers is")
    workers = arguments.workers or os.cpu_count() or 1
    masks = arguments.out if arguments.masks else None
    settings = archive_settings(options, model)
    table = Table(arguments.table, settings, options.zones, arguments.resume)
    left = frames_left(photos, table)
    if len(left) < len(photos):
        say("note", f"{len(photos) - len(left)} of {len(photos)} frames are in the table already")
    progress = Progress(len(left), "frames")
    counts = {"usable": 0, "unreadable": 0}
    with dask_client(arguments.dask, workers) as client:
        records = measure_archive(
            left, options, model=model, masks=masks, workers=workers, client=client
        )
        with table, contextlib.closing(records):
            for done, record in enumerate(records, 1):
                table.write(record)
                counts["usable"] += record["usable"]
                counts["unreadable"] += str(record["reason"]).startswith("unreadable")
                if arguments.json:
                    print(json.dumps(record), flush=True)
                progress.show(done)
    if not arguments.json:
        print(
            f"wrote {printable(arguments.table)}: {len(table.frames) + len(left)} frames; of the "
            f"{len(left)} that are new, {counts['usable']} are usable and {counts['unreadable']} "
            "could not be read"
        )


def frames_left(photos: dict[str, Path], table: Table) -> dict[str, Path]:
    """The photos that are not in a table, by names that its masks do not have."""
    done = set(map(os.path.abspath, table.frames))
    taken = {name.removesuffix("_mask.png").casefold() for name in table.masks}
    return {
        free_name(name, taken): path
        for name, path in photos.items()
        if printable(os.path.abspath(path)) not in done
    }


@contextlib.contextmanager
def dask_client(address: str | None, workers: int) -> Iterator[Client | None]:
    """A client of a Dask cluster: of one at an address, or of processes on this computer."""
    if address is None:
        yield None
        return
    from distributed import Client, LocalCluster

    if address == LOCAL:
        # nothing but the work itself: no page that shows it, no port that others reach
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise DataError(f"--dask {address}: no Dask scheduler there ({error})") from None
    with client:
        yield client


def archive_options(option) -> None:
    """The options of `ddunet predict` for archives."""
    option(
        "--table",
        type=Path,
        metavar="FILE.csv|FILE.parquet",
        help="for any number of photos: write one table, and neither masks nor overlays",
    )
    option("--resume", action="store_true", help="go on with a table that was begun")
    option("--masks", action="store_true", help="with --table: write masks and overlays, too")
    option(
        "--workers",
        type=positive,
        metavar="N",
        help="with --table: photos that are worked on at once (default: one for each core)",
    )
    option(
        "--dask",
        metavar="ADDRESS|local",
        help="with --table: work on the Dask cluster with this scheduler, such as "
        "tcp://host:8786, or in processes of this computer",
    )


def check_archive_options(arguments: argparse.Namespace) -> None:
    """Refuses the options of a table where none is asked for.

    Raises:
        DataError: one is given.
    """
    for name in ("resume", "masks", "workers", "dask"):
        if getattr(arguments, name):
            raise DataError(f"--{name} is for --table")
