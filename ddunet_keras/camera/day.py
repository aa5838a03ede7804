"""A day of a camera, read from the log of `ddunet watch` or from a `predictions.json`."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ddunet_keras.camera.records import frame_time
from ddunet_keras.files import (
    MAX_TEXT_BYTES,
    DataError,
    StrPath,
    list_folder,
    opened_picture,
    read_json,
    regular_file,
)

GAP_SECONDS = 300
"""Without a frame for longer than this, time counts as missing, and ..."""

GAP_INTERVALS = 3
"""... for longer than this many usual intervals between two frames."""

THUMBNAIL_SIDE = 160
"""Longer side of a thumbnail, pixels."""

DAY_HOURS = 24


@dataclass(frozen=True)
class Measurement:
    """A frame's line in the log.

    Attributes:
        time: with its offset from UTC.
        percent: cloud cover, 0 to 100; None where it was not measured.
        usable: whether the frame shows the sky.
        reason: why it does not.
        confidence: of the cover, 0 to 1; None where it is not known.
        safe: whether a roof may be open; None where that is not known.
        frame: path or address of the frame.
        thumbnail: path of its small overlay within the day's folder.
        model: name of the model.
    """

    time: datetime
    percent: float | None = None
    usable: bool = False
    reason: str | None = None
    confidence: float | None = None
    safe: bool | None = None
    frame: str = ""
    thumbnail: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Day:
    """The measurements of a day, in the order of time, and what could not be read of them.

    Attributes:
        measurements: at least one.
        folder: where thumbnails are looked for.
        source: file that was read.
        unreadable: number of lines without a meaning.
        other_days: number of records of other days in the same file.
    """

    measurements: tuple[Measurement, ...]
    folder: Path
    source: Path
    unreadable: int = 0
    other_days: int = 0

    @property
    def date(self) -> date:
        return self.measurements[0].time.date()

    @property
    def start(self) -> datetime:
        """Midnight, at the offset from UTC that the first frame has."""
        return self.measurements[0].time.replace(hour=0, minute=0, second=0, microsecond=0)

    @property
    def offset(self) -> str:
        """That of `start` from UTC, such as UTC+01:00."""
        return f"UTC{self.start.isoformat()[len('2026-11-28T00:00:00') :]}"

    @cached_property
    def hours(self) -> np.ndarray:
        """Hours since `start` of each measurement, float64 (n,)."""
        seconds = [(one.time - self.start).total_seconds() for one in self.measurements]
        return np.array(seconds) / 3600

    @property
    def length(self) -> int:
        """Hours that the day has: 24, or more where clocks were set back in it."""
        return max(DAY_HOURS, math.floor(self.hours[-1]) + 1)

    @cached_property
    def held(self) -> np.ndarray:
        """Hours for which each measurement stands, float64 (n,).

        It stands until the next one. Before a gap (`GAP_SECONDS`, `GAP_INTERVALS`), and at the
        end, it stands for the median interval.
        """
        intervals = np.diff(self.hours)
        usual = float(np.median(intervals)) if len(intervals) else 0.0
        longest = max(GAP_SECONDS / 3600, GAP_INTERVALS * usual)
        until_next = np.append(intervals, longest + 1)
        return np.where(until_next <= longest, until_next, usual)

    @cached_property
    def ends(self) -> np.ndarray:
        """Hours since `start` at which each measurement ceases to stand, float64 (n,)."""
        return self.hours + self.held

    @cached_property
    def percents(self) -> np.ndarray:
        """Cloud cover of each measurement in percent, float64 (n,); NaN where there is none."""
        values = [
            math.nan if one.percent is None or not one.usable else one.percent
            for one in self.measurements
        ]
        return np.array(values, float)

    def thumbnail(self, measurement: Measurement) -> Image.Image | None:
        """A measurement's small overlay, RGB; None where there is none that can be read."""
        if measurement.thumbnail is None:
            return None
        path = PurePath(measurement.thumbnail)
        if path.is_absolute() or ".." in path.parts:
            return None  # a log may come from anywhere: only its own folder is looked into
        try:
            with opened_picture(self.folder / path) as picture:
                side = THUMBNAIL_SIDE
                picture.draft("RGB", (side, side))  # JPEG: decodes a large one at a smaller size
                small = picture.convert("RGB")
                small.thumbnail((side, side))
                return small
        except DataError:
            return None


def read_day(path: StrPath, day: date | None = None) -> Day:
    """Reads one day.

    Args:
        path: a log (`.jsonl`, as `ddunet watch` writes it), the folder of its output, or the
            `predictions.json` of `ddunet predict`. A time without offset from UTC is taken for one
            of this computer's time zone.
        day: which; the newest in the file or folder by default.

    Raises:
        DataError: there is no such file, no record in it, or none of that day.

    Example:

    >>> line = '{"time": "2026-11-28T12:00:00+01:00", "percent": 40.0, "usable": true}'
    >>> _ = (tmp / "log.jsonl").write_text(line)
    >>> read_day(tmp / "log.jsonl").measurements[0].percent
    40.0
    """
    source = _log_file(Path(path), day)
    folder = source.parent
    if source.suffix == ".json":
        records = _predictions(source)
    else:
        records = _lines(source)
        folder = folder.parent if folder.name == "log" else folder
    measurements = []
    unreadable = 0
    for record in records:
        try:
            measurements.append(as_measurement(record))
        except ValueError:
            unreadable += 1
    if not measurements:
        found = f"none of its {unreadable} lines is one" if unreadable else "the file is empty"
        raise DataError(f"{source}: holds no record of a frame ({found})")
    measurements.sort(key=lambda one: one.time)
    days = {one.time.date() for one in measurements}
    chosen = day or max(days)
    if chosen not in days:
        raise DataError(f"{source}: holds no frame of {chosen}, but of {min(days)} to {max(days)}")
    of_day = [one for one in measurements if one.time.date() == chosen]
    return Day(tuple(of_day), folder, source, unreadable, len(measurements) - len(of_day))


def as_measurement(record: Any) -> Measurement:
    """Checks a record of the log.

    Raises:
        ValueError: it has no time, or a value of another type or range.

    Example:

    >>> as_measurement({"time": "2026-11-28T12:00:00+01:00", "usable": True, "percent": 7}).percent
    7.0
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, received {record!r}")
    return Measurement(
        time=_time(record.get("time")),
        percent=_number(record, "percent", 100),
        usable=bool(_value(record, "usable", bool)),
        reason=_value(record, "reason", str),
        confidence=_number(record, "confidence", 1),
        safe=_value(record, "safe", bool),
        frame=_value(record, "frame", str) or "",
        thumbnail=_value(record, "thumbnail", str),
        model=_value(record, "model", str),
    )


def _value(record, key, kind):
    value = record.get(key)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{key}: expected {kind.__name__}, received {value!r}")
    return value


def _number(record, key, highest):
    value = record.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= highest:
        raise ValueError(f"{key}: expected 0 to {highest}, received {value!r}")
    return float(value)


def _time(text):
    if not isinstance(text, str):
        raise ValueError(f"time: expected ISO 8601, received {text!r}")
    # Python 3.10 does not know Z
    time = datetime.fromisoformat(re.sub("Z$", "+00:00", text))
    try:
        return time if time.tzinfo else time.astimezone()
    except (OverflowError, OSError):  # the year 1 is before some time zones
        raise ValueError(f"time: out of range, received {text!r}") from None


def _log_file(path, day):
    """The file of a day, where a folder is given."""
    if not path.is_dir():
        return regular_file(path)
    folder = path / "log" if (path / "log").is_dir() else path
    logs = {
        file.stem: file
        for file in list_folder(folder)
        if re.fullmatch(r"\d{4}-\d\d-\d\d\.jsonl", file.name)
    }
    if not logs:
        predictions = path / "predictions.json"
        if predictions.is_file():
            return predictions
        raise DataError(f"{path}: holds no log (YYYY-MM-DD.jsonl) and no predictions.json")
    wanted = max(logs) if day is None else day.isoformat()
    if wanted not in logs:
        raise DataError(f"{folder}: no log of {wanted}; it has {min(logs)} to {max(logs)}")
    return regular_file(logs[wanted])


def _lines(path) -> Iterator[Any]:
    """What the lines of a log hold; None for one that is no JSON, such as a last one cut short."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError(f"{path}: has more than {MAX_TEXT_BYTES:,} bytes; give a day's log")
    for line in path.read_bytes().splitlines():
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _predictions(path) -> Iterator[Any]:
    """The records of `ddunet predict` as those of a log."""
    records = read_json(path)
    if not isinstance(records, list):
        raise DataError(f"{path}: expected the list of records that `ddunet predict` writes")
    for record in records:
        if not isinstance(record, dict):
            yield None
            continue
        cover = record.get("cloud_cover")
        yield {
            "time": _time_of(record),
            "percent": cover.get("percent") if isinstance(cover, dict) else None,
            "usable": record.get("usable"),
            "reason": record.get("reason"),
            "confidence": record.get("confidence"),
            "frame": record.get("image"),
            "thumbnail": record.get("overlay"),
            "model": record.get("model"),
        }


def _time_of(record):
    """When a photo was taken, in local time; its name says more than when the file was written."""
    if record.get("taken_from") == "file" and isinstance(record.get("image"), str):
        name = PurePath(record["image"]).name
        time, source = frame_time(None, None, name, changed=None, now=0.0, time_from="name")
        if source == "name":
            return time.isoformat(timespec="seconds")
    if record.get("taken_from") == "fits":  # in UTC
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return _time(record.get("taken")).astimezone().isoformat(timespec="seconds")
    return record.get("taken")


def periods(day: Day, kinds: list[Any]) -> list[tuple[float, float, Any]]:
    """Stretches of time in which neighbouring measurements are of one kind.

    Args:
        kinds: one for each measurement.

    Returns:
        (from, until, kind) in hours since the day's start. Missing time is in none.

    Example:

    >>> from datetime import datetime, timezone
    >>> noon = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
    >>> minutes = [Measurement(noon.replace(minute=minute)) for minute in (0, 15, 30)]
    >>> periods(Day(tuple(minutes), tmp, tmp), ["a", "a", "b"])
    [(12.0, 12.5, 'a'), (12.5, 12.75, 'b')]
    """
    found: list[tuple[float, float, Any]] = []
    for begin, end, kind in zip(day.hours.tolist(), day.ends.tolist(), kinds, strict=True):
        last = found[-1] if found else None
        if last is not None and last[2] == kind and math.isclose(last[1], begin, abs_tol=1e-9):
            found[-1] = (last[0], end, kind)
        else:
            found.append((begin, end, kind))
    return found


def clock(day: Day, hours: float) -> str:
    """Time of day as HH:MM, of hours since the day's start."""
    return f"{day.start + timedelta(hours=hours):%H:%M}"
