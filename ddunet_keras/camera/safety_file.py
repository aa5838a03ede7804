"""A text file that says whether it is safe, as N.I.N.A. reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.files import StrPath

Notify = Callable[[str, str | None], None]
"""Told of a fault by topic and message, and with None that it is well again."""


class SafetyFile:
    """Keeps a text file that says OPEN while it is safe, and CLOSED otherwise.

    The file is replaced as a whole, when the state changes and every half a minute. Where that is
    not possible, as on a full disk, CLOSED is written into the old file, and if that fails, too,
    the file is removed.

    Args:
        path: of the file; CLOSED is written at once.
        notify: told of faults under the topic "safety file".
        clock: seconds that never go back.
    """

    def __init__(
        self, path: StrPath, notify: Notify, clock: Callable[[], float] = time.monotonic
    ) -> None:
        raise NotImplementedError

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Writes the state; None is unsafe. Never raises."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes CLOSED."""
        raise NotImplementedError
