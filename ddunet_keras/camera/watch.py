"""The service: takes each new frame once, measures it, records it, tells others."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ddunet_keras.camera.config import WatchConfig
from ddunet_keras.camera.log import Log
from ddunet_keras.camera.measure import Measure
from ddunet_keras.camera.records import (
    FROZEN,
    MISSING,
    OLD,
    UNREADABLE,
    age_of,
    frame_time,
    new_record,
)
from ddunet_keras.camera.safety import SafetyMonitor
from ddunet_keras.camera.sources import Frame, open_source
from ddunet_keras.camera.watchdog import Publisher, Watchdog
from ddunet_keras.files import (
    DataError,
    UnreadableError,
    WriteError,
    printable,
    read_json,
    remove_partial_files,
    write_image,
    write_json,
)
from ddunet_keras.prediction import Model
from ddunet_keras.sky import Segmentation
from ddunet_keras.sky.quality import NO_SKY
from ddunet_keras.sky.reading import Photo, ReadOptions, read_photo

STATE = "state.json"
LATEST = "latest.jpg"
THUMBNAILS = "thumbnails"

THUMBNAIL_SIDE = 160
"""Longer side of a thumbnail, pixels."""

TICK = 2.0
"""Seconds between two looks at whether the newest frame has become too old to be safe."""

EMPTY_END = 4096
"""Bytes of zeros at the end of a file for which it is taken for half written."""

FAULTS = {
    OLD: "are old by their own time; see --max-age, --time-from and --backlog",
    FROZEN: "repeat byte for byte: the camera is frozen",
    UNREADABLE: "cannot be read; the log says why",
    MISSING: "no new frame comes",
}
"""What is said of frames by their reason. Those of the sky, such as black, are no fault."""


@dataclass(frozen=True)
class Clock:
    """What the service knows of time.

    Args:
        now: seconds since the epoch. It may jump, also back.
        monotonic: seconds that never go back: for all durations.
        sleep: waits so many seconds.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Watch:
    """Watches a source of frames and keeps `config.out`: log, state.json, latest.jpg, thumbnails.

    Args:
        config: what to watch, and how.
        model: has `segment`, as `Segmenter` does.
        notify: told of faults, by topic and message, and with None when it is well again.
        report: told of each record.
        monitor: decides whether it is safe; None: nobody does.
        publishers: told of each record, and every few seconds of whether it is safe; whoever made
            them closes them.
        clock: for tests.

    Raises:
        DataError: the horizon, a zone or the address cannot be used, or another process uses
            `config.out`.
        WriteError: that cannot be written to.

    Example:

    >>> from ddunet_keras.camera.config import WatchConfig
    >>> write = dd.write_synthetic(tmp / "skies", 1, (48, 64))
    >>> config = WatchConfig(tmp / "skies" / "images", out=tmp / "watch")
    >>> watch = Watch(config, dd.Segmenter())
    >>> watch.once()["usable"]
    True
    >>> watch.close()
    """

    def __init__(
        self,
        config: WatchConfig,
        model: Model,
        notify: Callable[[str, str | None], None] = lambda topic, message: None,
        report: Callable[[Mapping[str, Any]], None] = lambda record: None,
        monitor: SafetyMonitor | None = None,
        publishers: Sequence[Publisher] = (),
        clock: Clock | None = None,
    ) -> None:
        self.config = config
        self._clock = clock or Clock()
        self._notify = notify
        self._report = report
        self._monitor = monitor
        self._watchdog = Watchdog(publishers, notify)
        self._zones = config.zone or ()
        self._measure = Measure(model, config.threshold, config.horizon, self._zones)
        self._reading = ReadOptions(config.bayer, config.channel_order)
        self._log = Log(config.out, self._zones)
        self._source = open_source(config.source, self._log, config.out, self._clock.monotonic)
        remove_partial_files(config.out)

        self._has_begun = False
        self._backlog: deque[Frame] = deque()  # those that are old
        self._half_written: list[Frame] = []
        self._last: Mapping[str, Any] | None = None  # of this process, live or not
        self._newest = _read_state(config.out / STATE)
        self._is_silent = str(self._newest.get("reason")).startswith(MISSING)
        self._heard_at = self._clock.monotonic()  # when the last new frame came
        self._silence_limit = config.max_age
        if monitor is not None:
            self._silence_limit = min(self._silence_limit, monitor.config.max_age)
        self._thumbnail_days: list[str] = []
        self._write_safety(_told(self._safety(None)))

    @property
    def source_name(self) -> str:
        """Folder, file or address, without a password."""
        return self._source.name

    def run(self) -> None:
        """Watches for ever. An exception ends it at any point, without a row lost or doubled."""
        with contextlib.nullcontext() if self._monitor is None else self._watchdog:
            while True:
                self._watch_once()

    def _watch_once(self):
        """Looks for new frames; until the next look, tells the state and takes old frames."""
        next_poll = self._clock.monotonic() + self.config.interval
        self.poll()
        while self._clock.monotonic() < next_poll:
            self.tick()
            until = min(self._clock.monotonic() + TICK, next_poll)
            while self._backlog and self._clock.monotonic() < until:
                self._take(self._backlog.popleft(), is_live=False)
            self._clock.sleep(max(until - self._clock.monotonic(), 0))

    def once(self) -> Mapping[str, Any] | None:
        """Takes all frames that are new, waits for half-written ones, and returns the record of
        the newest; of an earlier call, if none is new; None if there never was one."""
        self.poll()
        while self._half_written:
            self._clock.sleep(1)
            self.poll()
        while self._backlog:
            self._take(self._backlog.popleft(), is_live=False)
        newest = self._newest
        if newest and age_of(newest, self._clock.now()) > self.config.max_age:
            self._say_of_frames(self._source.silence)
            self._record_silence(self._source.silence)
        return self._last or self._newest or None

    def poll(self) -> None:
        """Takes what is new, once."""
        now = self._clock.monotonic()
        waiting = [frame for frame in self._half_written if frame.look(now)]
        self._half_written = []
        for frame in [*waiting, *self._find()]:
            self._take(frame, is_live=True)
        if now - self._heard_at >= self._silence_limit:
            self._say_of_frames(self._source.silence)
            self._record_silence(self._source.silence)
        self._flush()

    def tick(self) -> None:
        """Tells the monitor and the publishers that time has gone by."""
        state = self._safety(None)
        self._write_safety(_told(state))
        self._watchdog.publish(None, state)

    def close(self) -> None:
        """Writes what waits, and lets another process use the folder. Publishers are left open."""
        if self._monitor is not None:
            self._write_safety({"safe": False, "safe_reason": "the service has ended"})
        self._flush()
        self._log.close()

    # frames ---------------------------------------------------------------------------------------

    def _find(self) -> Sequence[Frame]:
        """The frames that are new; none while the source is away."""
        try:
            found = self._source.poll()
        except DataError as error:
            self._notify("source", str(error))
            self._record_silence(_reason(MISSING, error, self._source.name))
            return []
        self._notify("source", None)
        return found if self._has_begun else self._begin(found)

    def _begin(self, found: Sequence[Frame]) -> Sequence[Frame]:
        """Of the frames that the first look finds, only the newest is of now."""
        self._has_begun = True
        older, newest = found[:-1], found[-1:]
        mark = (printable(os.path.abspath(self._source.name)), "")  # known from the first look on
        if not self._log.is_known(mark):
            passed_over = [] if self.config.backlog else older
            try:
                self._log.know([mark, *(frame.key for frame in passed_over)])
                older = [] if passed_over else older
            except WriteError as error:
                self._notify("log", _disk_fault(error))
        self._backlog.extend(older)
        return newest

    def _take(self, frame: Frame, is_live: bool) -> None:
        """Measures and records a frame, unless it is gone or half written."""
        if self._log.is_known(frame.key):
            return  # its folder was away, and it was found a second time
        start = self._clock.monotonic()
        if not frame.look(start):
            return
        try:
            content = frame.read()
            if _ends_empty(content) and not frame.is_settled(start):
                raise UnreadableError(f"{frame.name}: is being written")
            photo, digest, reason = self._look_at(content)
        except UnreadableError as error:
            if not frame.is_settled(start):
                self._half_written.append(frame)
                return
            photo, digest, reason = None, None, _reason(UNREADABLE, error, frame.name)
        except DataError as error:  # it is whole, but what it is cannot be used
            photo, digest, reason = None, None, _reason(UNREADABLE, error, frame.name)

        record = self._new_record(frame, photo)
        is_old = age_of(record, self._clock.now()) > self.config.max_age
        if is_old and is_live and self.config.backlog:
            self._backlog.append(frame)
            return
        if is_old and not self.config.backlog:
            reason = reason or OLD
        result = None
        if reason is None:
            try:
                result = self._measure.segment(photo)
                record |= self._measured(result)
            except DataError as error:  # the horizon does not fit it
                reason = _reason(UNREADABLE, error, frame.name)
        if reason is not None:
            record["reason"] = reason
        record["seconds"] = round(self._clock.monotonic() - start, 3)
        if is_live:
            self._say_of_frames(record["reason"])
        self._finish(record, frame.key, digest, result, is_live)

    def _look_at(self, content):
        """A frame's photo, its digest, and its reason if it repeats an earlier one."""
        digest = hashlib.sha256(content).hexdigest()
        if self._log.is_repeat(digest):
            return None, digest, FROZEN
        return read_photo(content, self._reading), digest, None

    def _new_record(self, frame: Frame, photo: Photo | None) -> dict[str, Any]:
        held, held_by = (None, None) if photo is None else (photo.taken, photo.taken_from)
        time_from = self.config.time_from
        taken, taken_from = frame_time(
            held, held_by, frame.file_name, frame.changed, self._clock.now(), time_from
        )
        return new_record(taken, taken_from, frame.name, self.config.model, self._zones)

    def _measured(self, result: Segmentation) -> dict[str, Any]:
        cover, zones = self._measure.cover(result)
        is_known = cover.okta is not None
        return {
            "percent": round(cover.percent, 2) if is_known else None,
            "okta": cover.okta,
            "valid_fraction": round(cover.valid_fraction, 4),
            "disc": None if self.config.horizon != "auto" else result.disc is not None,
            "usable": result.usable and is_known,
            "reason": result.reason or (None if is_known else NO_SKY),
            "confidence": None if result.confidence is None else round(result.confidence, 3),
            "zones": zones,
        }

    def _say_of_frames(self, reason: str | None) -> None:
        """Says a fault of the frames, or that there is none."""
        kind = (reason or "").partition(":")[0]
        self._notify("frames", FAULTS.get(kind))

    def _record_silence(self, reason: str) -> None:
        """Records, once, that there is no frame."""
        if self._is_silent:
            return
        taken, taken_from = frame_time(None, None, "", None, self._clock.now())
        record = new_record(taken, taken_from, self._source.name, self.config.model, self._zones)
        record["reason"] = reason
        record["seconds"] = 0.0
        self._finish(record, None, None, None, is_live=True)
        self._is_silent = True

    def _finish(self, record, key, digest, result, is_live):
        """Tells everybody of a record."""
        state = None
        if is_live:
            self._heard_at = self._clock.monotonic()
            self._is_silent = False
            state = self._safety(record)
            record |= _told(state)
            self._watchdog.publish(record, state)
        if result is not None:
            record["thumbnail"] = self._write_pictures(record, result, is_live)
        self._log.add(record, key, digest)
        self._flush()
        self._last = dict(record)
        if is_live:
            self._newest = dict(record)
            self._write_state()
        self._report(record)

    def _safety(self, record):
        if self._monitor is None:
            return None
        if self._watchdog.was_silent:
            self._watchdog.was_silent = False
            self._monitor.begin_anew("the service hung")
        return self._monitor.update(record, self._clock.now(), self._clock.monotonic())

    # files ----------------------------------------------------------------------------------------

    def _flush(self):
        try:
            self._log.flush()
        except WriteError as error:
            self._notify("log", _disk_fault(error))
        else:
            self._notify("log", None)

    def _write_state(self):
        try:
            write_json(self.config.out / STATE, self._newest)
        except WriteError as error:
            self._notify(STATE, _disk_fault(error))
        else:
            self._notify(STATE, None)

    def _write_safety(self, told):
        """Brings what `state.json` says of safety up to date."""
        if self._newest and self._newest.get("safe") != told["safe"]:
            self._newest |= told
            self._write_state()

    def _write_pictures(self, record, result: Segmentation, is_live: bool) -> str | None:
        """Writes the overlay of the newest frame, and a thumbnail; its path in the folder."""
        day = record["time"][:10]
        clock = record["time"][11:19].replace(":", "")
        name = f"{THUMBNAILS}/{day}/{clock}.jpg" if self._keeps_thumbnails_of(day) else None
        if name is None and not is_live:
            return None
        overlay = Image.fromarray(result.overlay())
        try:
            if is_live:
                write_image(self.config.out / LATEST, overlay)
            if name is not None:
                overlay.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
                write_image(self.config.out / name, overlay)
        except WriteError as error:
            self._notify("pictures", _disk_fault(error))
            return None
        self._notify("pictures", None)
        return name

    def _keeps_thumbnails_of(self, day: str) -> bool:
        """Whether it is one of the newest days; when a day begins, the oldest one is removed."""
        if self.config.thumbnail_days == 0:
            return False
        if day in self._thumbnail_days:
            return True
        folder = self.config.out / THUMBNAILS
        remove_partial_files(folder / day)
        found = set(os.listdir(folder)) if folder.is_dir() else set()
        days = sorted({day, *filter(_is_day, found)})
        self._thumbnail_days = days[-self.config.thumbnail_days :]
        for old in set(days) - set(self._thumbnail_days):
            shutil.rmtree(folder / old, ignore_errors=True)
        return day in self._thumbnail_days


def _ends_empty(content):
    """Whether a file's end is zeros: a program may give it its size first, and then write it.

    FITS fills its last block of 2,880 bytes with zeros.
    """
    return not any(content[-EMPTY_END:])


def _is_day(name):
    return re.fullmatch(r"\d{4}-\d\d-\d\d", name) is not None


def _reason(kind, error, name):
    """A reason with what went wrong; without the name of the frame, which the record has."""
    text = str(error)
    for start in (f"{printable(name)}: ", "stdin: "):
        text = text.removeprefix(start)
    return f"{kind}: {text}"


def _disk_fault(error):
    """What a `WriteError` says, without the path, which is another for each frame."""
    return "cannot be written" + str(error).rpartition("cannot be written")[2]


def _read_state(path):
    """What the service last wrote; empty if there is nothing that can be read."""
    try:
        state = read_json(path)
        age_of(state, 0.0)
    except (DataError, TypeError, KeyError, ValueError):
        return {}
    return state


def _told(state):
    """What a record says of safety."""
    if state is None:
        return {"safe": None, "safe_reason": None}
    return {"safe": state.safe, "safe_reason": state.reason}
