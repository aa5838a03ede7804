"""The command `ddunet`: every subcommand is a few calls of the library, and this alone prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ddunet_keras import __version__
from ddunet_keras.cli import (
    adapt,
    convert,
    data,
    demo,
    evaluate,
    horizon,
    predict,
    report,
    train,
    watch,
)
from ddunet_keras.cli.console import Terminated, fail, print_any_name, terminated_as_exception
from ddunet_keras.cli.options import Parser

EXTRAS = {
    "matplotlib": "plot",
    "astral": "report",
    "pyarrow": "archive",
    "distributed": "dask",
}
"""Package that is imported when it is needed -> extra that installs it; all others: "train"."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ddunet` with the given arguments, those of the process by default.

    Returns:
        The exit code: 0, 2 after an error (one line on stderr), 3 if photos say nothing of the sky
        (see `ddunet predict --help`), 130 after Ctrl-C, 143 after SIGTERM.

    Example:

    >>> main(["synthetic", str(tmp / "skies"), "--count", "4"])  # doctest: +ELLIPSIS
    wrote ...skies: 4 images and masks, metadata.csv
    0
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's own start-up messages
    print_any_name()
    try:
        with terminated_as_exception():
            arguments = parser().parse_args(argv)
            return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except Terminated as stop:
        return fail(stop, stop.exit_code)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if (error.name or "ddunet_keras").startswith("ddunet_keras"):
            raise
        extra = EXTRAS.get(str(error.name), "train")
        return fail(f"needs {error.name}: in the clone, pip install '.[{extra}]'")
    except (ValueError, OSError) as error:
        return fail(error)


def parser() -> Parser:
    """The command line, with all of its commands."""
    whole = Parser(
        prog="ddunet",
        description="Cloud segmentation of sky photos with DDUNet (arXiv 2501.15385).",
        epilog="`ddunet COMMAND --help` explains a command.",
    )
    whole.add_argument("--version", action="version", version=f"ddunet {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    modules = (train, adapt, evaluate, predict, watch, report, horizon, convert, data, demo)
    for module in modules:
        module.add_commands(commands)
    return whole
