"""Says a fault once, when it begins, and once more when it is over."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Notices:
    """Hands on what changes: a fault that begins, that becomes another one, that is over.

    A service meets the same fault every few seconds. Called with each of them, this says it once.
    Threads may share it.

    Args:
        say: takes a line.

    Example:

    >>> notices = Notices(print)
    >>> notices("mqtt", "connection refused")
    mqtt: connection refused
    >>> notices("mqtt", "connection refused")
    >>> notices("mqtt", None)
    mqtt: all right again
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._faults: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, topic: str, message: str | None) -> None:
        """Takes the state of a topic: a fault, or None if it is well."""
        with self._lock:
            if self._faults.get(topic) == message:
                return
            if message is None:
                del self._faults[topic]
            else:
                self._faults[topic] = message
        self._say(f"{topic}: {'all right again' if message is None else message}")
