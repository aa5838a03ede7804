"""The table of an archive, CSV or Parquet, which a killed process leaves ready to be gone on with.

Rows go into a journal beside the table, `NAME.journal`, a CSV with a row a line. When all is done,
it becomes the table.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ddunet_keras.camera.records import csv_line
from ddunet_keras.files import (
    DataError,
    StrPath,
    WriteError,
    atomic_path,
    check_writable,
    first_line,
    printable,
)

COLUMNS = {
    "time": "text",
    "time_from": "text",
    "frame": "text",
    "percent": "float",
    "okta": "int",
    "valid_fraction": "float",
    "usable": "bool",
    "reason": "text",
    "confidence": "float",
    "mask": "text",
    "model": "text",
    "threshold": "float",
    "horizon": "text",
}
"""Columns and what they hold; a column `zone NAME` for each zone follows."""

SETTINGS = ("model", "threshold", "horizon")
"""Columns that have to agree in all rows."""

ROWS_A_GROUP = 10_000
"""Rows of a Parquet file that are written, and read, at once."""

SUFFIXES = (".csv", ".parquet")

NUL = b"\0"
"""What a disk may show at a file's end after the power was lost."""


class Table:
    """Takes the records of `measure_archive` and makes a table of them.

    To be used in a `with` block. At its end, the journal becomes the table. If the block ends with
    an error, or the process is killed, the journal stays, and a new `Table` goes on with it.

    Args:
        path: `.csv` or `.parquet`; the latter needs pyarrow (extra `[archive]`).
        settings: what all records have in common, from `archive_settings`.
        zones: names of the zones.
        resume: whether to go on with what is there: the journal, or else the table.

    Attributes:
        frames: those that are in the table, as `printable` writes their paths.
        masks: names of the masks that it refers to.

    Raises:
        DataError: it is there, and `resume` is not given; or it was made with other settings or
            zones; or it is damaged.
        WriteError: it cannot be written.

    Example:

    >>> settings = {"model": "m.tflite", "threshold": 0.5, "horizon": None}
    >>> record = dict.fromkeys(COLUMNS) | {"frame": "a.jpg", "percent": 12.5, "zones": {}}
    >>> with Table(tmp / "sky.csv", settings) as table:
    ...     table.write(record | settings)
    >>> (tmp / "sky.csv").read_text().splitlines()[1]
    ',,a.jpg,12.5,,,,,,,m.tflite,0.5,'
    >>> Table(tmp / "sky.csv", settings, resume=True).frames
    {'a.jpg'}
    """

    def __init__(
        self,
        path: StrPath,
        settings: Mapping[str, Any],
        zones: Sequence[str] = (),
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: the table is a .csv or a .parquet file")
        self.is_parquet = self.path.suffix.lower() == ".parquet"
        if self.is_parquet:
            import pyarrow  # noqa: F401  says before hours of work that it is missing
        check_writable(self.path)
        self.journal = self.path.with_name(f"{self.path.name}.journal")
        self.columns = COLUMNS | {f"zone {printable(zone)}": "float" for zone in zones}
        self.frames: set[str] = set()
        self.masks: set[str] = set()
        self._file: Any = None
        if not resume:
            for found in (self.journal, self.path):
                if os.path.lexists(found):
                    raise DataError(f"{found}: is there; --resume goes on with it, or delete it")
        is_complete = not self.journal.exists() and self.path.exists()
        if is_complete:
            self._journal_from_table()
        if self.journal.exists():
            self._repair()
            try:
                self._read_journal(settings)
            except DataError:
                if is_complete:  # leave all as it was
                    self.journal.unlink()
                raise

    def __enter__(self) -> Table:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer: what is written outlives this process if it is killed
            self._file = open(self.journal, "ab", buffering=0)
        except OSError as error:
            raise WriteError(f"{self.journal}: cannot be written ({error.strerror})") from None
        if not self._file.tell():
            self._append(self.columns)
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record, which outlives the process from here on.

        Raises:
            WriteError: there is no room for it.
        """
        values = dict(record)
        for zone, percent in values.pop("zones").items():
            values[f"zone {printable(zone)}"] = percent
        self._append(_as_text(values[name]) for name in self.columns)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._file.close()
        if kind is not None:
            return
        if self.is_parquet:
            self._write_parquet()
            self.journal.unlink()
        else:
            os.replace(self.journal, self.path)

    def _append(self, values):
        data = csv_line(list(values)).encode("utf-8")
        try:
            written = self._file.write(data)
        except OSError as error:
            raise WriteError(f"{self.journal}: cannot be written ({error.strerror})") from None
        if written < len(data):
            raise WriteError(f"{self.journal}: cannot be written to its end; is the disk full?")

    # what is there already ------------------------------------------------------------------------

    def _repair(self):
        """Cuts off a last line that was not written to its end."""
        with open(self.journal, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(end - 2**16, 0)
                file.seek(start)
                block = file.read(end - start).rstrip(NUL)
                newline = block.rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            file.truncate(end)

    def _read_journal(self, settings):
        rows = self._rows()
        header = next(rows, None)
        if header is None:
            return
        if header != list(self.columns):
            raise DataError(
                f"{self.journal}: has other columns ({', '.join(header)}); give the same --zone"
            )
        for row in rows:
            values = dict(zip(header, row, strict=True))
            for name in SETTINGS:
                now = _as_text(settings[name])
                if values[name] != now:
                    raise DataError(
                        f"{self.journal}: was begun with {name} {values[name] or 'none'!r}, "
                        f"received {now or 'none'!r}; give another table"
                    )
            self.frames.add(values["frame"])
            if values["mask"]:
                self.masks.add(values["mask"])

    def _rows(self) -> Iterator[list[str]]:
        """The journal's header and rows."""
        try:
            with open(self.journal, encoding="utf-8", newline="") as file:
                for number, row in enumerate(csv.reader(file), 1):
                    if len(row) != len(self.columns) and number > 1:
                        raise DataError(f"{self.journal}: line {number} is damaged; remove it")
                    yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{self.journal}: is damaged ({first_line(error)})") from None

    def _journal_from_table(self):
        with atomic_path(self.journal) as temporary:
            if not self.is_parquet:
                shutil.copyfile(self.path, temporary)
                return
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.writelines(csv_line(row) for row in self._parquet_rows())

    # Parquet --------------------------------------------------------------------------------------

    def _parquet_rows(self) -> Iterator[list[str]]:
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                yield names
                for batch in file.iter_batches(ROWS_A_GROUP):
                    for values in batch.to_pylist():
                        yield [_as_text(values[name]) for name in names]
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: not a readable table ({first_line(error)})") from None

    def _write_parquet(self):
        import pyarrow
        from pyarrow import parquet

        types = {
            "text": pyarrow.string(),
            "float": pyarrow.float64(),
            "int": pyarrow.int8(),
            "bool": pyarrow.bool_(),
        }
        schema = pyarrow.schema([(name, types[kind]) for name, kind in self.columns.items()])
        rows = self._rows()
        next(rows)  # the header
        with (
            atomic_path(self.path) as temporary,
            parquet.ParquetWriter(temporary, schema) as writer,
        ):
            while group := list(islice(rows, ROWS_A_GROUP)):
                records = [
                    {
                        name: _from_text(text, kind)
                        for (name, kind), text in zip(self.columns.items(), row, strict=True)
                    }
                    for row in group
                ]
                writer.write_batch(pyarrow.RecordBatch.from_pylist(records, schema=schema))


def _as_text(value: Any) -> str:
    """A value in a row: empty for None, `true` or `false`, and no line break in a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return printable(value)


def _from_text(text: str, kind: str) -> Any:
    if text == "":
        return None
    if kind == "bool":
        return text == "true"
    return {"text": str, "float": float, "int": int}[kind](text)
