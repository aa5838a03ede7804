"""What the command prints, how it is told to stop, and how it starts Keras without a word."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ddunet_keras.files import printable, silence


class Terminated(BaseException):
    """The process was told to end; raised in place of ending at once, so that results are kept."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # as shells report a process that a signal has ended


@contextlib.contextmanager
def terminated_as_exception() -> Iterator[None]:
    """Raises `Terminated` in the block on SIGTERM (`kill`, `systemctl stop`) and SIGHUP.

    SIGHUP comes when a terminal is closed. A signal that the process was started to ignore, as
    `nohup` does, stays ignored. After the first one, further ones are: tidying up takes a moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(number)

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def print_any_name() -> None:
    """Lets stdout print every file name: what its encoding lacks comes as an escape (`\\udcff`)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(message: object, code: int = 2) -> int:
    """Says an error on stderr and returns the exit code."""
    say("error", message)
    return code


def say(kind: str, message: object) -> None:
    """One line on stderr."""
    print(f"ddunet: {kind}:", printable(" ".join(str(message).split())), file=sys.stderr)


def log(line: str) -> None:
    """A line on stderr that tells how far the work has come."""
    print(f"ddunet: {line}", file=sys.stderr, flush=True)


def progress(done_what: str) -> Callable[[int, int], None] | None:
    """A counter on stderr, where a person reads it."""

    def show(done, total):
        end = "\n" if done == total else ""
        print(f"\r{done_what} {done} of {total}", end=end, file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else None


def describe_progress(done: int, total: int, seconds: float, what: str = "frames") -> str:
    """How far long work has come, how fast it goes, and how long it still takes.

    Example:

    >>> describe_progress(1_200, 100_000, 30.0)
    '1,200 of 100,000 frames, 40.0 a second, 41 min left'
    """
    rate = done / max(seconds, 1e-6)
    left = round((total - done) / max(rate, 1e-6))
    if left < 100:
        time_left = f"{left} s"
    elif left < 100 * 60:
        time_left = f"{round(left / 60)} min"
    else:
        time_left = f"{left // 3600} h {left % 3600 // 60} min"
    return f"{done:,} of {total:,} {what}, {rate:.1f} a second, {time_left} left"


class Progress:
    """A line on stderr about long work: each second at a terminal, else each minute.

    Args:
        total: how much there is to do.
        what: of what.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self.begun = self.shown = time.monotonic()

    def show(self, done: int) -> None:
        """Says how much is done, if it is time to."""
        is_terminal = sys.stderr.isatty()
        now = time.monotonic()
        is_last = is_terminal and done == self.total
        if now - self.shown < (1 if is_terminal else 60) and not is_last:
            return
        self.shown = now
        line = describe_progress(done, self.total, now - self.begun, self.what)
        if is_terminal:
            end = "\n" if is_last else ""
            print(f"\r{line}\033[K", end=end, file=sys.stderr, flush=True)
        else:
            log(line)


def start_keras() -> None:
    """Imports Keras without the lines that TensorFlow writes before it heeds its log level."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return
    with silence(2):
        import keras  # noqa: F401
