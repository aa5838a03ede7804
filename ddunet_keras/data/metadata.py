"""Reads `metadata.csv` or `metadata.txt`: when the photos of a data set were taken."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from datetime import date
from pathlib import Path

from ddunet_keras.data.layouts import stem
from ddunet_keras.files import DataError, StrPath, list_folder, read_text
from ddunet_keras.prediction import FITS_SUFFIXES

FILE_NAMES = ("metadata.csv", "metadata.txt")
"""Names that the file may have, in any case."""

NAME_COLUMNS = ("name", "number", "image")
"""Headings of the column that names the image, the preferred one first; else it is the first."""

Capture = tuple[str | None, str | None]
"""Date (YYYYMMDD) and time (HHMMSS, or as the file has it) of a photo; None if not given."""


def read_captures(root: Path, names: Collection[str]) -> dict[str, Capture]:
    """Date and time by image name, from the metadata file of a data set; empty without one.

    The table is separated by commas, semicolons or tabs and has a header with the columns Name (or
    Number or Image), Date and Time in any order and case; other columns are not read.

    Args:
        root: the folder of the data set.
        names: of its images, without file ending.

    Raises:
        DataError: the file cannot be used; names the line.

    Example:

    >>> _ = (tmp / "metadata.csv").write_text("Name,Date,Time\\nd0001.jpg,2013-10-23,93443\\n")
    >>> read_captures(tmp, {"d0001", "d0002"})
    {'d0001': ('20131023', '093443')}
    """
    files = [path for path in list_folder(root) if path.name.lower() in FILE_NAMES]
    if not files:
        return {}
    if len(files) > 1:
        raise DataError(f"{root}: {' and '.join(p.name for p in files)}: keep one of them")
    path = files[0]
    captures: dict[str, Capture] = {}
    header, rows = read_table(path)
    key = _name_column(header, path)
    for line, cells in rows:
        name = _image_name(cells[key], names)
        capture = (_date(cells, path, line), _time(cells))
        if captures.setdefault(name, capture) != capture:
            raise DataError(f"{path}: line {line} gives {name} a second date or time; keep one")
    if captures.keys().isdisjoint(names):
        raise DataError(f"{path}: column {key!r} names none of the {len(names)} images")
    return captures


def read_table(path: StrPath) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """A small table, separated by commas, semicolons or tabs, with a header.

    Args:
        path: of a UTF-8 text.

    Returns:
        The headings in lower case, and for each row that is not empty its line number and its cells
        by heading, read as it is asked for.

    Raises:
        DataError: the file cannot be read or is no table. A row of too few or too many cells raises
            it when it is asked for.

    Example:

    >>> _ = (tmp / "frames.csv").write_text("name;sky\\nnoon.jpg;clear\\n")
    >>> header, rows = read_table(tmp / "frames.csv")
    >>> header, list(rows)
    (['name', 'sky'], [(2, {'name': 'noon.jpg', 'sky': 'clear'})])
    """
    text = read_text(path)
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(lines, [])]
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    return header, _rows(lines, header, path)


def _rows(lines, header, path):
    try:
        for row in lines:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: line {lines.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}"
                )
            yield lines.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error})") from None


def _name_column(header, path):
    known = [name for name in header if name in (*NAME_COLUMNS, "date", "time")]
    if not known or len(set(known)) < len(known):
        raise DataError(
            f"{path}: needs a header with the columns Name, Date, Time, each once, found "
            f"{', '.join(header[:8]) or 'nothing'}; correct it or move it away"
        )
    return next((name for name in NAME_COLUMNS if name in known), header[0])


def image_stem(name: str) -> str:
    """A photo's name without its ending; `sky.fits.gz` has two.

    Example:

    >>> image_stem("sky.1.fits.gz"), image_stem("sky.1.jpg")
    ('sky.1', 'sky.1')
    """
    for suffix in FITS_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return stem(name)


def _image_name(cell, names):
    name = image_stem(cell)
    # the public sets are numbered 0001 or 001, spreadsheets make 1 of it
    for candidate in (name, name.zfill(3), name.zfill(4)):
        if candidate in names:
            return candidate
    return name


def _date(cells, path, line):
    given = cells.get("date", "")
    digits = re.sub(r"[-/.]", "", given)
    if not digits:
        return None
    try:
        if not re.fullmatch("[0-9]{8}", digits):
            raise ValueError
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        raise DataError(f"{path}: line {line}: date {given!r}, expected YYYYMMDD") from None
    return digits


def _time(cells):
    time = cells.get("time") or None
    # without leading zeros 012003 is 12003, in SWINySEG's own table, too
    return time.zfill(6) if time and time.isdigit() else time
