"""What is recorded of a frame: a dict, a line of JSON, a row of CSV, a line for people."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ddunet_keras.files import as_json, printable

FIELDS = (
    "time",
    "time_from",
    "frame",
    "percent",
    "okta",
    "valid_fraction",
    "disc",
    "usable",
    "reason",
    "confidence",
    "zones",
    "model",
    "seconds",
    "safe",
    "safe_reason",
    "thumbnail",
)
"""Keys of a record, in order."""

FROZEN = "frozen"
OLD = "old"
UNREADABLE = "unreadable"
MISSING = "missing"
"""Why a frame may be unusable, beside `ddunet_keras.sky.REASONS`. Words on what was wrong follow
the last two after a colon."""

TIME_SOURCES = ("exif", "name", "file", "clock")
"""What may tell when a frame was taken, best first. "exif" is what the file itself holds; of a FITS
file that is its header, and the record says "fits"."""

NAME_TIME = re.compile(
    r"(?<!\d)(20\d\d)[-_.]?(\d\d)[-_.]?(\d\d)"  # year, month, day
    r"([-_.T ]?)(\d\d)[-_.:]?(\d\d)[-_.:]?(\d\d)"  # hour, minute, second
    r"(?:[-_]?\d{3}|[.,]\d{1,9})?"  # fractions of a second
    r"([Zz](?![A-Za-z])|[+-](?:0\d|1[0-4]):?(?:00|15|30|45))?(?!\d)"  # offset from UTC
)
"""A date and a time in a file's name, such as Allsky's and indi-allsky's: local time, unless an
offset from UTC follows. One with a minus needs a T before the hour: else it may be a number."""


def new_record(
    time: datetime, time_from: str, frame: str, model: str, zones: Iterable[str] = ()
) -> dict[str, Any]:
    """A record of a frame of which nothing is known yet: unusable, the numbers None.

    Args:
        time: when it was taken, with its offset from UTC.
        time_from: what says so: one of `TIME_SOURCES`, or "fits".
        frame: path or address.
        model: name of the model.
        zones: parts of the sky with a cover of their own.

    Example:

    >>> record = new_record(datetime(2026, 6, 1, 22, tzinfo=timezone.utc), "exif", "sky.jpg", "m")
    >>> record["time"], record["percent"], record["usable"]
    ('2026-06-01T22:00:00+00:00', None, False)
    """
    known = {
        "time": time.isoformat(timespec="seconds"),
        "time_from": time_from,
        "frame": printable(frame),
        "usable": False,
        "zones": dict.fromkeys(zones),
        "model": model,
    }
    return {field: known.get(field) for field in FIELDS}


def frame_time(
    taken: str | None,
    taken_from: str | None,
    name: str,
    changed: float | None,
    now: float,
    time_from: str = "auto",
) -> tuple[datetime, str]:
    """When a frame was taken, in local time with its offset, and what says so.

    A time without an offset is local time. Where clocks went back, and it was this time twice, it
    is the one that is nearer to when the file was written.

    Args:
        taken, taken_from: what the frame itself holds, as `ddunet_keras.sky.reading.Photo`; None:
            nothing, or it could not be read.
        name: of its file; "" where there is none.
        changed: when the file was last written to, seconds since the epoch; None: unknown.
        now: the clock, seconds since the epoch.
        time_from: "auto": the first of `TIME_SOURCES` that is there; or one of these, and the
            clock where that one is not there.

    Example:

    >>> time, _ = frame_time(None, None, "image-20260601223045.jpg", None, 0.0)
    >>> time.strftime("%d %B, %H:%M:%S")
    '01 June, 22:30:45'
    """
    near = now if changed is None else changed
    for source in TIME_SOURCES:
        if time_from not in ("auto", source):
            continue
        with contextlib.suppress(ValueError, OverflowError, OSError):  # 31 February, the year 1
            if source == "exif" and taken_from in ("exif", "fits"):
                return _local(datetime.fromisoformat(str(taken)), near), taken_from
            if source == "name" and (found := _time_in_name(name)) is not None:
                return _local(found, near), source
            if source == "file" and changed is not None:
                return datetime.fromtimestamp(changed).astimezone(), source
    return datetime.fromtimestamp(now).astimezone(), "clock"


def _time_in_name(name):
    match = NAME_TIME.search(name)
    if match is None:
        return None
    year, month, day, separator, hour, minute, second, offset = match.groups()
    time = datetime(*map(int, (year, month, day, hour, minute, second)))
    if offset is None or (offset[0] == "-" and separator != "T"):
        return time
    if offset in "Zz":
        return time.replace(tzinfo=timezone.utc)
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    east = timedelta(hours=hours, minutes=minutes)
    return time.replace(tzinfo=timezone(-east if offset[0] == "-" else east))


def _local(time, near):
    """A time in the local zone; one without an offset as near to `near` as it can be."""
    if time.tzinfo is not None:
        return time.astimezone()
    both = [time.replace(fold=fold).astimezone() for fold in (0, 1)]
    return min(both, key=lambda local: abs(local.timestamp() - near))


def age_of(record: Mapping[str, Any], now: float) -> float:
    """Seconds since a record's frame was taken; below 0 if its clock is ahead of this one.

    Example:

    >>> age_of({"time": "1970-01-01T01:00:00+01:00"}, 60.0)
    60.0
    """
    return now - datetime.fromisoformat(record["time"]).timestamp()


def columns(zones: Iterable[str]) -> list[str]:
    """Headings of the CSV file: the fields, and a column for each zone in place of `zones`.

    Example:

    >>> columns(["zenith:30"])[9:12]
    ['confidence', 'zone zenith:30', 'model']
    """
    headings = []
    for field in FIELDS:
        headings += [f"zone {zone}" for zone in zones] if field == "zones" else [field]
    return headings


def json_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON, with its end."""
    return json.dumps(as_json(dict(record))) + "\n"


def csv_line(values: Sequence[Any]) -> str:
    """Values as a row of CSV, with its end: nothing for None, `true` and `false` as in JSON.

    Example:

    >>> csv_line([None, True, 1.5, "a,b"])
    ',true,1.5,"a,b"\\n'
    """
    words = {None: "", True: "true", False: "false"}
    shown = [
        words[value] if value is None or isinstance(value, bool) else value for value in values
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(shown)
    return text.getvalue()


def csv_row(record: Mapping[str, Any], headings: Iterable[str]) -> str:
    """A record as a row of CSV under these `columns`; what it lacks is empty."""
    zones = {f"zone {zone}": percent for zone, percent in (record.get("zones") or {}).items()}
    known = {**record, **zones}
    return csv_line([known.get(heading) for heading in headings])


def describe(record: Mapping[str, Any]) -> str:
    """A line on a record.

    Example:

    >>> describe({"time": "2026-06-01T22:00:00+00:00", "frame": "sky.jpg", "usable": False,
    ...           "reason": "black"})
    '2026-06-01T22:00:00+00:00 sky.jpg: cannot tell: black'
    """
    start = f"{record['time']} {record['frame']}"
    if not record["usable"]:
        told = "" if record.get("safe") is None else ", unsafe"
        return f"{start}: cannot tell: {record['reason']}{told}"
    parts = [f"{record['percent']:.1f} % cloud", f"{record['okta']} okta"]
    for zone, percent in record["zones"].items():
        parts.append(f"{zone} {'unknown' if percent is None else f'{percent:.1f} %'}")
    if record.get("disc") is False:
        parts.append("no disc found: all of the picture counts")
    if record["confidence"] is not None:
        parts.append(f"confidence {record['confidence']:.2f}")
    if record["safe"] is not None:
        parts.append(f"{'safe' if record['safe'] else 'unsafe'} ({record['safe_reason']})")
    parts.append(f"{record['seconds']:.2f} s")
    return f"{start}: {', '.join(parts)}"
