"""The log: a line of JSON and a row of CSV for each frame, neither twice nor lost.

Three things are to be written of a frame, and the process may be killed between any two of them:
that the frame was taken, its line and its row. A small SQLite database holds the first, and keeps
with it, in the same transaction, what is to be appended where. After a restart the append is done
again, at the same place. The database is locked while it is open, so that two services never share
a log.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddunet_keras.camera.records import columns, csv_line, csv_row, json_line
from ddunet_keras.files import DataError, StrPath, WriteError, first_line, write_text

Key = tuple[str, str]
"""What a frame is known by: its folder (or address) and its name there."""

DATABASE = "watch.sqlite"

REMEMBERED = 64
"""Frames back in which a repeated one is looked for: a camera's software may keep a few buffers."""

NAMES_A_QUERY = 500
"""SQLite takes so many values in a query, however old it is."""

MOST_WAITING = 10_000
"""Records that wait in memory while the disk is full; older ones are then given up."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS frames (
    id INTEGER PRIMARY KEY, folder TEXT, name TEXT, digest TEXT, UNIQUE (folder, name));
CREATE TABLE IF NOT EXISTS pending (
    day TEXT, record TEXT, json_size INTEGER, csv_size INTEGER);
"""


class _Entry(NamedTuple):
    record: Mapping[str, Any]
    key: Key | None
    digest: str | None


class Log:
    """The log in `out/log`, by day of the frames' own time, and which frames it has.

    Args:
        out: folder, made if missing.
        zones: those of the records. Where a day's CSV file has other columns, it is written anew.

    Raises:
        DataError: another process uses the folder, or its database is damaged.
        WriteError: it cannot be written to.

    Example:

    >>> from datetime import datetime, timezone
    >>> from ddunet_keras.camera.records import new_record
    >>> time = datetime(2026, 6, 1, 22, tzinfo=timezone.utc)
    >>> log = Log(tmp)
    >>> log.add(new_record(time, "exif", "sky.jpg", "m"), ("", "sky.jpg"))
    >>> log.flush()
    >>> log.is_known(("", "sky.jpg")), sorted(path.name for path in (tmp / "log").iterdir())
    (True, ['2026-06-01.csv', '2026-06-01.jsonl'])
    >>> log.close()
    """

    def __init__(self, out: StrPath, zones: Iterable[str] = ()) -> None:
        self._out = Path(out)
        self._folder = self._out / "log"
        self._columns = columns(zones)
        self._queue: deque[_Entry] = deque(maxlen=MOST_WAITING)
        self._ready_day: str | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._database = _open(self._out / DATABASE)
            self._write_pending()
            recent = self._database.execute(
                "SELECT digest FROM frames WHERE digest NOT NULL ORDER BY id DESC LIMIT ?",
                (REMEMBERED,),
            )
            self._digests = deque((digest for (digest,) in recent), maxlen=REMEMBERED)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None

    def _failed(self, error):
        return WriteError(f"{self._out}: cannot be written ({first_line(error)})")

    def add(
        self, record: Mapping[str, Any], key: Key | None = None, digest: str | None = None
    ) -> None:
        """Takes a record; `flush` writes it.

        Args:
            record: see `ddunet_keras.camera.records`.
            key: the frame's; None: it was none.
            digest: of its content, to recognize a frame that repeats.
        """
        self._queue.append(_Entry(record, key, digest))
        if digest is not None:
            self._digests.appendleft(digest)

    def flush(self) -> None:
        """Writes all records that wait.

        Raises:
            WriteError: it failed; they go on waiting.
        """
        try:
            self._write_pending()
            while self._queue:
                # not in the queue any more when it is committed: an interruption may come just then
                entry = self._queue.popleft()
                try:
                    self._commit(entry)
                except (OSError, sqlite3.Error, WriteError):
                    self._queue.appendleft(entry)
                    raise
                self._write_pending()
        except (OSError, sqlite3.Error, WriteError) as error:
            raise self._failed(error) from None

    def know(self, keys: Iterable[Key]) -> None:
        """Takes frames for recorded that shall not be.

        Raises:
            WriteError: it failed.
        """
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR IGNORE INTO frames (folder, name) VALUES (?, ?)", keys
                )
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def is_known(self, key: Key) -> bool:
        """Whether the log has a frame, or is about to."""
        if any(entry.key == key for entry in self._queue):
            return True
        found = self._database.execute("SELECT 1 FROM frames WHERE folder = ? AND name = ?", key)
        return found.fetchone() is not None

    def known_of(self, folder: str, names: Iterable[str]) -> set[str]:
        """Those of some names in a folder that are known; the others of the folder cost nothing."""
        asked = list(names)
        known = {entry.key[1] for entry in self._queue if entry.key and entry.key[0] == folder}
        known &= set(asked)
        for start in range(0, len(asked), NAMES_A_QUERY):
            some = asked[start : start + NAMES_A_QUERY]
            places = ", ".join("?" * len(some))
            found = self._database.execute(
                f"SELECT name FROM frames WHERE folder = ? AND name IN ({places})", (folder, *some)
            )
            known |= {name for (name,) in found}
        return known

    def is_repeat(self, digest: str) -> bool:
        """Whether one of the last frames had the same content."""
        return digest in self._digests

    def close(self) -> None:
        """Lets another process use the folder."""
        self._database.close()

    # a record's way to the disk -------------------------------------------------------------------

    def _files(self, day):
        return self._folder / f"{day}.jsonl", self._folder / f"{day}.csv"

    def _commit(self, entry):
        """The frame is taken from here on, and its line and row will be appended."""
        day = entry.record["time"][:10]
        self._make_ready(day)
        sizes = [_size(path) for path in self._files(day)]
        with self._database:
            if entry.key is not None:
                self._database.execute(
                    "INSERT OR IGNORE INTO frames (folder, name, digest) VALUES (?, ?, ?)",
                    (*entry.key, entry.digest),
                )
            self._database.execute(
                "INSERT INTO pending VALUES (?, ?, ?, ?)", (day, json_line(entry.record), *sizes)
            )

    def _write_pending(self):
        """Appends what was committed; also what an earlier process could not any more."""
        pending = self._database.execute("SELECT * FROM pending").fetchone()
        if pending is None:
            return
        day, line, json_size, csv_size = pending
        json_file, csv_file = self._files(day)
        header = "" if min(csv_size, _size(csv_file)) else csv_line(self._columns)
        _write_at(json_file, json_size, line)
        _write_at(csv_file, csv_size, header + csv_row(json.loads(line), self._columns))
        with self._database:
            self._database.execute("DELETE FROM pending")

    def _make_ready(self, day):
        """Mends a day's files where a power cut has left half a line, or zones have changed."""
        if day == self._ready_day:
            return
        json_file, csv_file = self._files(day)
        for path in (json_file, csv_file):
            _drop_half_line(path)
        if _size(json_file) and _first_line_of(csv_file) != csv_line(self._columns).encode():
            _csv_from_json(json_file, csv_file, self._columns)
        self._ready_day = day


def _open(path):
    database = sqlite3.connect(path, timeout=0, check_same_thread=False)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_SCHEMA)
        with database:  # takes the lock
            database.execute("DELETE FROM pending WHERE 0")
    except sqlite3.Error as error:
        database.close()
        if re.search("locked", str(error)):
            raise DataError(f"{path.parent}: another ddunet watch writes there") from None
        if re.search("malformed|not a database", str(error)):
            raise DataError(f"{path}: is damaged; remove it") from None
        raise
    return database


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _write_at(path: Path, position: int, text: str) -> None:
    """Makes `text` a file's end, from `position` on."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(min(position, _size(path)))
        file.seek(0, os.SEEK_END)
        file.write(text.encode())


def _drop_half_line(path):
    if not _size(path):
        return
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


def _first_line_of(path):
    """In bytes: somebody may have saved the file in another encoding."""
    if not path.exists():
        return b""
    with open(path, "rb") as file:
        return file.readline()


def _csv_from_json(json_file: Path, csv_file: Path, headings: Sequence[str]) -> None:
    rows = [csv_line(headings)]
    with open(json_file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                rows.append(csv_row(json.loads(line), headings))
            except (ValueError, AttributeError):  # somebody has edited the log
                continue
    write_text(csv_file, "".join(rows))
