"""What the command prints, and how it starts Keras without a word."""

from __future__ import annotations

import os
import sys

from ddunet_keras.files import silence


def fail(message, code=2):
    say("error", message)
    return code


def say(kind, message):
    print(f"ddunet: {kind}:", " ".join(str(message).split()), file=sys.stderr)


def start_keras():
    """Imports Keras without the lines that TensorFlow writes before it heeds its log level."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return
    with silence(2):
        import keras  # noqa: F401


def progress(done_what):
    """A counter on stderr, where a person reads it."""

    def show(done, total):
        end = "\n" if done == total else ""
        print(f"\r{done_what} {done} of {total}", end=end, file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else None


def log(line):
    print(f"ddunet: {line}", file=sys.stderr, flush=True)
