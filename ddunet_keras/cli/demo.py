"""`ddunet demo`: the other commands, one after the other, on made-up skies."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

from ddunet_keras.cli.options import command, positive
from ddunet_keras.files import DataError, write_text

MARK = "made-by-ddunet-demo.txt"
"""File by which the demo knows a folder of its own."""


def run_demo(arguments):
    from ddunet_keras.cli import parser  # only here: that module imports this one

    out, model = arguments.out, arguments.out / "run" / "best.keras"
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise DataError(f"--out {out}: exists and is not of the demo; give another")
        shutil.rmtree(out)
    write_text(out / MARK, "`ddunet demo` made this folder and replaces it when run again.\n")
    size = arguments.size
    steps = (
        ("synthetic", out / "skies", "--count", arguments.count, "--size", size),
        ("train", out / "skies", "--out", out / "run", "--base-channels", 4)
        + ("--image-size", size, "--epochs", arguments.epochs),
        ("evaluate", model, out / "skies", "--out", out / "evaluation"),
        ("synthetic", out / "photos", "--count", 8, "--size", "480,640", "--seed", 1),
        ("predict", out / "photos" / "images", "--model", model, "--out", out / "predictions"),
    )
    start = time.perf_counter()
    for step in steps:
        words = [str(word) for word in step]
        print(f"\n$ ddunet {shlex.join(words)}", flush=True)
        step = parser().parse_args(words)
        step.run(step)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at:")
    for name in ("run/curves.png", "evaluation/sheet.png", "predictions/*_overlay.jpg"):
        print(f"  {out.resolve() / name}")


def add_commands(commands) -> None:
    option = command(
        commands, "demo", run_demo, "all of the above on made-up skies, in a few minutes"
    )
    option("--out", type=Path, default=Path("demo"), metavar="DIR", help="is made anew each time")
    option("--count", type=positive, default=240, metavar="N", help="number of images")
    option("--size", type=positive, default=96, metavar="N", help="of the images")
    option("--epochs", type=positive, default=15, metavar="N", help="of the training")
