"""Tells others that it is unsafe when the service itself hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.camera.safety_file import Notify

TOPIC = "service"

SILENCE = 60.0
"""Seconds without a word of the service after which it is unsafe."""

LOOK = 1.0
"""Seconds between two looks at whether the service is silent."""


class Publisher(Protocol):
    """Tells others of each record and of whether it is safe; neither waits nor raises."""

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Takes a new record, or None when some seconds have gone by."""


class Watchdog:
    """Hands everything on to publishers, and tells them "unsafe" when nothing comes for a minute.

    The service may hang where no time limit holds: in a read from a network drive that is away, in
    a camera that answers a byte a second. What was published last would then stay. Used with
    `with`, this looks from a thread of its own.

    Args:
        publishers: whom to tell.
        notify: told under the topic "service" when the service is silent, and when no longer.
        silence: seconds; `SILENCE` by default.

    Attributes:
        was_silent: the service was, since this was last set to False.

    Example:

    >>> from ddunet_keras.camera.watchdog import Watchdog
    >>> class Printer:
    ...     def publish(self, record, state):
    ...         print(state.safe, state.reason)
    >>> with Watchdog([Printer()], lambda topic, message: None, silence=0.6) as watchdog:
    ...     watchdog.publish(None, SafetyState(True, "cloud cover 2.0 %", since=0.0))
    ...     time.sleep(1)  # hangs
    True cloud cover 2.0 %
    False the service hangs
    """

    def __init__(
        self, publishers: Sequence[Publisher], notify: Notify, silence: float | None = None
    ) -> None:
        self.was_silent = False
        # the service may hang in one of them: the others are told all the same
        self._publishers = [(publisher, threading.Lock()) for publisher in publishers]
        self._notify = notify
        self._silence = SILENCE if silence is None else silence
        self._heard_at = time.monotonic()
        self._end = threading.Event()

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Hands on what the service tells."""
        self._heard_at = time.monotonic()
        for publisher, lock in self._publishers:
            with lock:
                publisher.publish(record, state)
        self._notify(TOPIC, None)

    def __enter__(self) -> Watchdog:
        self._heard_at = time.monotonic()
        self._thread = threading.Thread(target=self._look, name=TOPIC, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()

    def _look(self) -> None:
        while not self._end.wait(min(LOOK, self._silence)):
            if time.monotonic() - self._heard_at <= self._silence:
                continue
            self.was_silent = True
            self._notify(TOPIC, f"hangs for more than {self._silence:g} s, which is unsafe")
            state = SafetyState(False, "the service hangs", time.time())
            for publisher, lock in self._publishers:
                if lock.acquire(blocking=False):
                    try:
                        publisher.publish(None, state)
                    finally:
                        lock.release()
