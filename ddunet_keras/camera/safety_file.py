"""A text file that says whether it is safe, as the drivers that N.I.N.A. uses read it."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.files import StrPath, WriteError, write_text

Notify = Callable[[str, str | None], None]
"""Told of a fault by topic and message, and with None that it is well again."""

TOPIC = "safety file"

REFRESH = 30.0
"""Seconds after which the file is written again, though it says the same: its time is then new."""


class SafetyFile:
    """Keeps a text file that says OPEN while it is safe, and CLOSED otherwise.

    Neither word is part of the other, so a program that only searches the text cannot mistake them.
    The file is replaced as a whole, when the state changes and every half a minute. Where CLOSED
    cannot be written so, as on a full disk, it is written over the old text, and if that fails,
    too, the file is removed.

    Args:
        path: of the file; CLOSED is written at once.
        notify: told of faults under the topic "safety file".
        clock: seconds that never go back.

    Example:

    >>> from ddunet_keras.camera.safety import SafetyState
    >>> from ddunet_keras.camera.safety_file import SafetyFile
    >>> file = SafetyFile(tmp / "safety.txt", lambda topic, message: None)
    >>> file.publish(None, SafetyState(True, "cloud cover 2.0 %", since=0.0))
    >>> (tmp / "safety.txt").read_text().splitlines()[0]
    'Roof Status: OPEN'
    >>> file.close()
    >>> (tmp / "safety.txt").read_text().splitlines()[0]
    'Roof Status: CLOSED'
    """

    def __init__(
        self, path: StrPath, notify: Notify, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = Path(path)
        self._notify = notify
        self._clock = clock
        self._written: tuple[bool, float] | None = None  # what the file says, and since when
        self._write(safe=False)

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Writes the state; None is unsafe. A fault of the disk does not raise."""
        safe = state is not None and state.safe
        if self._written is not None:
            said, at = self._written
            if said == safe and self._clock() - at < REFRESH:
                return
        self._write(safe)

    def close(self) -> None:
        """Writes CLOSED."""
        self._write(safe=False)

    def _write(self, safe: bool) -> None:
        """Replaces the file; where that fails and it is unsafe, does what is still possible."""
        text = _text(safe)
        try:
            write_text(self.path, text)
        except WriteError as error:
            self._written = None  # so that the next call tries again
            message = str(error)
            if not safe and not (self._overwrite(text) or self._remove()):
                message += "; it may say OPEN"
            self._notify(TOPIC, message)
            return
        self._written = (safe, self._clock())
        self._notify(TOPIC, None)

    def _overwrite(self, text: str) -> bool:
        """Writes over the old text: the few bytes have room in the block that it takes up."""
        try:
            with open(self.path, "r+b") as file:
                file.write(text.encode())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        return True

    def _remove(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            return False
        return True


def _text(safe: bool) -> str:
    """What the file says."""
    word = "OPEN" if safe else "CLOSED"
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"Roof Status: {word}\nTime: {now:%Y-%m-%d %H:%M:%S} UTC\n"
