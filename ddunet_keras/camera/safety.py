"""Safe or unsafe: decides by the cloud cover whether a roof may be open. No input or output."""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddunet_keras.files import printable
from ddunet_keras.settings import (
    FLAG,
    PATH,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)

PERCENT = Number(float, 0, 100, "0 to 100 percent")
DELAY = Number(float, 0, 86_400, "0 to 86400 seconds")
AGE = Number(float, 1, 86_400, "1 to 86400 seconds")

CLOCK_STEP = 1.0
"""Seconds by which the clock may go back: so much, services that keep it right set it back."""


@document_settings
@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """When the sky is safe for an open roof.

    Clear and cloudy have two limits (hysteresis), so that a cover that swings around one of them
    does not move the roof each time.

    Example:

    >>> from ddunet_keras.camera.safety import SafetyConfig
    >>> SafetyConfig(safe_percent=60, unsafe_percent=50)
    Traceback (most recent call last):
    ValueError: `unsafe_percent` must be `safe_percent` or more. Received: safe_percent=60.0, \
unsafe_percent=50.0
    """

    enabled: bool = setting(FLAG, False, help="decide whether the sky is safe")
    safe_percent: float = setting(PERCENT, 30.0, help="to become safe, the cover is at most this")
    unsafe_percent: float = setting(PERCENT, 50.0, help="a cover above this is unsafe")
    open_delay: float = setting(
        DELAY, 600.0, help="seconds for which all frames are clear before it becomes safe"
    )
    close_delay: float = setting(
        DELAY, 0.0, help="seconds for which frames are cloudy before it becomes unsafe"
    )
    max_age: float = setting(
        AGE, 300.0, help="seconds after which the newest frame is too old, and it becomes unsafe"
    )
    min_confidence: float = setting(
        Number(float, 0, 1, "0 to 1"), 0.5, help="a frame of less confidence is unsafe"
    )
    zone: str | None = setting(
        Text(),
        None,
        help="zone whose cover counts; without it, the whole sky's",
        metavar="ZONE",
        example="zenith:30",
    )
    text_file: Path | None = setting(
        PATH,
        None,
        help="text file that says whether it is safe, for N.I.N.A.",
        metavar="FILE",
        example="/srv/share/safety.txt",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.unsafe_percent < self.safe_percent:
            raise ValueError(
                "`unsafe_percent` must be `safe_percent` or more. Received: "
                f"safe_percent={self.safe_percent}, unsafe_percent={self.unsafe_percent}"
            )


@dataclasses.dataclass(frozen=True)
class SafetyState:
    """Whether it is safe now.

    Args:
        safe: the roof may be open.
        reason: why, or why not, in a few words; the same until the next frame or change.
        since: when `safe` took this value, in seconds since the epoch, by the clock that the
            monitor is given.
    """

    safe: bool
    reason: str
    since: float


class SafetyMonitor:
    """Decides from frame to frame whether it is safe.

    It becomes safe only after all frames of the whole opening delay were clear, and unsafe at once
    whenever something is unknown: at the start, without a frame, with an old or unusable one, with
    a confidence that is low or unknown, when the clock has gone back. The closing delay holds for
    clouds alone.

    Args:
        config: the limits.

    Example:

    >>> from ddunet_keras.camera.safety import SafetyConfig, SafetyMonitor
    >>> monitor = SafetyMonitor(SafetyConfig(open_delay=60))
    >>> frame = {"time": "2026-06-01T22:00:00+00:00", "usable": True, "percent": 2.0,
    ...          "confidence": 0.9}
    >>> monitor.update(frame, 1780351200.0)
    SafetyState(safe=False, reason='cloud cover 2.0 % is low enough, but not yet for 60 s', \
since=1780351200.0)
    >>> frame["time"] = "2026-06-01T22:01:00+00:00"
    >>> monitor.update(frame, 1780351260.0).safe
    True
    >>> monitor.update(None, 1780352000.0)
    SafetyState(safe=False, reason='no frame for more than 300 s', since=1780352000.0)
    """

    def __init__(self, config: SafetyConfig) -> None:
        self.config = config
        self._safe = False
        self._reason = "no frame yet"
        self._since: float | None = None
        self._now = -math.inf
        self._frame_time = -math.inf  # of the newest frame
        self._fresh_at: float | None = None  # when the newest good frame was new
        self._clear_since: float | None = None  # start of an unbroken run of clear frames
        self._cloudy_since: float | None = None  # the same of cloudy frames

    def update(
        self, record: Mapping[str, Any] | None, now: float, monotonic: float | None = None
    ) -> SafetyState:
        """The state after a new frame, or after some time without one.

        Args:
            record: a frame's record; None if there is no new one. Call it so every few seconds.
            now: seconds since the epoch, as `time.time` gives them.
            monotonic: seconds of a clock that nobody sets, as `time.monotonic` gives them: for the
                delays. By default `now`.
        """
        passed = now if monotonic is None else monotonic
        was_safe = self._safe
        if now < self._now - CLOCK_STEP:
            self.begin_anew("the clock went back")
            self._frame_time = -math.inf
        else:
            if self._fresh_at is not None and now - self._fresh_at > self.config.max_age:
                self.begin_anew(f"no frame for more than {self.config.max_age:g} s")
            if record is not None:
                self._take(record, now, passed)
            elif self._cloudy_since is not None:
                self._close_when_due(passed)
        self._now = now
        if self._since is None or self._safe != was_safe:
            self._since = now
        return SafetyState(self._safe, self._reason, self._since)

    def begin_anew(self, reason: str) -> None:
        """Unsafe, as something is unknown. What was counted starts anew."""
        self._safe = False
        self._reason = reason
        self._fresh_at = self._clear_since = self._cloudy_since = None

    def _take(self, record: Mapping[str, Any], now: float, passed: float) -> None:
        """Judges a new frame."""
        try:
            time = self._time_of(record, now)
            percent = self._percent_of(record)
        except _Unknown as unknown:
            self.begin_anew(str(unknown))
            return
        self._frame_time = time
        self._fresh_at = min(time, now)  # the camera's clock may be fast
        self._reason = f"{self._cover_name()} {percent:.1f} %"
        if percent > self.config.unsafe_percent:
            self._clear_since = None
            if self._cloudy_since is None:
                self._cloudy_since = passed
            self._close_when_due(passed)
        elif percent > self.config.safe_percent:
            self._clear_since = self._cloudy_since = None
            if not self._safe:
                self._reason += f", more than {self.config.safe_percent:g} %"
        else:
            self._cloudy_since = None
            if self._clear_since is None:
                self._clear_since = passed
            self._open_when_due(passed)

    def _open_when_due(self, passed: float) -> None:
        if self._clear_since is not None and passed - self._clear_since >= self.config.open_delay:
            self._safe = True
        if not self._safe:
            self._reason += f" is low enough, but not yet for {self.config.open_delay:g} s"

    def _close_when_due(self, passed: float) -> None:
        start = self._cloudy_since
        if start is not None and passed - start >= self.config.close_delay:
            self._safe = False

    def _time_of(self, record: Mapping[str, Any], now: float) -> float:
        """When a frame was taken, in seconds since the epoch."""
        time = _seconds(record.get("time"))
        if time is None:
            raise _Unknown("the frame's time is unknown")
        if now - time > self.config.max_age:
            raise _Unknown(f"the frame is older than {self.config.max_age:g} s")
        if time - now > self.config.max_age:
            raise _Unknown("the frame's time is in the future")
        if time < self._frame_time:
            raise _Unknown("the frame is older than the one before")
        return time

    def _percent_of(self, record: Mapping[str, Any]) -> float:
        """The cloud cover that counts, 0 to 100."""
        if record.get("usable") is not True:
            reason = record.get("reason")
            raise _Unknown(f"unusable frame: {printable(reason)}" if reason else "unusable frame")
        if record.get("disc") is False:
            raise _Unknown("no disc found, so its dark surroundings may count as clear")
        confidence = _number(record.get("confidence"), 1)
        if confidence is None:
            raise _Unknown("the confidence is unknown")
        if confidence < self.config.min_confidence:
            low, limit = confidence, self.config.min_confidence
            raise _Unknown(f"the confidence {low:.2f} is below {limit:g}")
        percent = record.get("percent")
        if self.config.zone is not None:
            zones = record.get("zones")
            percent = zones.get(self.config.zone) if isinstance(zones, Mapping) else None
        percent = _number(percent, 100)
        if percent is None:
            raise _Unknown(f"the {self._cover_name()} is unknown")
        return percent

    def _cover_name(self) -> str:
        return "cloud cover" if self.config.zone is None else f"cloud cover of {self.config.zone}"


class _Unknown(Exception):
    """Something that has to be known for being safe is not; the message says what."""


def _number(value: Any, highest: float) -> float | None:
    """A number from 0 to `highest`; None of everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= highest else None


def _seconds(text: Any) -> float | None:
    """Seconds since the epoch of an ISO 8601 time with its offset from UTC; None of all else."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return None if time.tzinfo is None else time.timestamp()
