"""`ddunet demo`: the other commands, one after the other, on synthetic skies."""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from pathlib import Path

from ddunet_keras.cli.options import command, positive
from ddunet_keras.files import DataError, write_text

MARK = "made-by-ddunet-demo.txt"
"""File by which the demo knows a folder of its own."""


def run_demo(arguments: argparse.Namespace) -> None:
    from ddunet_keras.cli import parser  # only here: that module imports this one

    out = arguments.out
    make_folder(out)
    start = time.perf_counter()
    for step in steps(out, arguments.count, arguments.size, arguments.epochs):
        words = [str(word) for word in step]
        print(f"\n$ ddunet {shlex.join(words)}", flush=True)
        parsed = parser().parse_args(words)
        parsed.run(parsed)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at:")
    for name in ("run/curves.png", "evaluation/sheet.png", "predictions/*_overlay.jpg"):
        print(f"  {out.resolve() / name}")


def make_folder(out: Path) -> None:
    """A new folder that bears the demo's mark, in place of what an earlier demo left there."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise DataError(f"--out {out}: exists and is not of the demo; give another")
        shutil.rmtree(out)
    write_text(out / MARK, "`ddunet demo` made this folder and replaces it when run again.\n")


def steps(out: Path, count: int, size: int, epochs: int) -> list[list]:
    """The words of each command, in order."""
    model = out / "run" / "best.keras"
    photos = out / "photos"
    return [
        ["synthetic", out / "skies", "--count", count, "--size", size],
        ["train", out / "skies", "--out", out / "run", "--base-channels", 4]
        + ["--image-size", size, "--epochs", epochs],
        ["evaluate", model, out / "skies", "--out", out / "evaluation"],
        ["synthetic", photos, "--count", 8, "--size", "480,640", "--seed", 1],
        ["predict", photos / "images", "--model", model, "--out", out / "predictions"],
    ]


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(
        commands,
        "demo",
        run_demo,
        "train, evaluate and predict on synthetic skies, in a few minutes",
    )
    option(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder, made anew each time"
    )
    option("--count", type=positive, default=240, metavar="N", help="number of images")
    option("--size", type=positive, default=96, metavar="N", help="size of the images")
    option("--epochs", type=positive, default=15, metavar="N", help="epochs of the training")
