"""FITS, as astronomy cameras write it, with astropy (extra `fits`)."""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddunet_keras.files import (
    MAX_IMAGE_BYTES,
    DataError,
    StrPath,
    UnreadableError,
    check_pixels,
    first_line,
    source_name,
    without_warnings,
)
from ddunet_keras.sky.bayer import PATTERNS, shifted_pattern

START = b"SIMPLE  ="
"""What every FITS file begins with."""

GZIP_START = b"\x1f\x8b"

BLOCK = 2880
CARD = 80
END = b"END".ljust(CARD)
"""A header is made of blocks of cards (bytes) and ends with a card of its own (FITS 4.0, 3.3)."""

MAX_HEADER_BLOCKS = 200
"""Longest header that is read: 7,200 cards. Cameras write some dozen."""

MAX_RATIO = 1032
"""Bytes of pixels for each byte of a file: deflate packs no tighter, nor do the tiles of FITS."""

NO_PATTERN = ("", "NONE", "MONO")
"""What programs write into BAYERPAT for a monochrome camera."""


class FitsFrame(NamedTuple):
    """What a FITS file holds.

    Attributes:
        values: (h, w) or (h, w, 3), integers or floats, rows in the file's order.
        pattern: of the Bayer mosaic, from its first pixel on, or None. What BAYERPAT holds if it is
            none of `ddunet_keras.sky.bayer.PATTERNS`.
        bottom_up: whether the first row is the lowest.
        taken: when, as ISO 8601 text in UTC, or None.
    """

    values: np.ndarray
    pattern: str | None
    bottom_up: bool
    taken: str | None


def is_fits(source: StrPath | bytes) -> bool:
    """Whether a file is FITS, compressed with gzip or not, by its first bytes.

    Example:

    >>> is_fits(b"SIMPLE  =                    T")
    True
    """
    try:
        with _opened(source) as file:
            return file.read(len(START)) == START
    except (OSError, EOFError, ValueError, zlib.error):  # said by who reads it
        return False


def read_fits(source: StrPath | bytes) -> FitsFrame:
    """Reads the picture of a FITS file: the primary array or that of the first extension.

    All of BITPIX, scaled by BZERO and BSCALE; NAXIS 2, or 3 with planes (3, h, w) or pixels
    (h, w, 3); compressed as a whole (gzip) or in tiles. Of the header it heeds BAYERPAT with
    XBAYROFF and YBAYROFF, which are taken to speak of the rows in the file's order, ROWORDER
    (bottom-up by default) and DATE-OBS.

    Raises:
        UnreadableError: the file is no whole FITS.
        DataError: astropy is not installed, or the picture is too large or of another shape.
    """
    name = source_name(source)
    file_size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    try:
        from astropy.io import fits
    except ModuleNotFoundError:
        raise DataError(f'{name}: FITS needs astropy: pip install "ddunet-keras[fits]"') from None
    try:
        # astropy warns of headers that are not quite to the standard
        with without_warnings(), _opened(source) as file:
            _check_headers(file, name)
            with fits.open(file, memmap=False, lazy_load_hdus=True) as units:
                return _frame(_picture_unit(units, name), name, file_size)
    except DataError:
        raise
    except Exception as error:  # astropy raises many types on corrupt input
        raise UnreadableError(f"{name}: not a readable FITS ({first_line(error)})") from None


def _opened(source):
    """A file's content, unpacked while it is read if it is compressed with gzip."""
    if isinstance(source, bytes):
        file = io.BytesIO(source)
        return gzip.GzipFile(fileobj=file) if source.startswith(GZIP_START) else file
    with open(source, "rb") as file:
        is_packed = file.read(len(GZIP_START)) == GZIP_START
    return gzip.open(source) if is_packed else open(source, "rb")


def _check_headers(file, name):
    """Finds the ends of the header and, if no data follow, of the next one.

    astropy would look for the end in all of a large file, in memory.
    """
    first = _header(file, name)
    has_data = re.search(rb"(?:^|\n)NAXIS   = +[1-9]", b"\n".join(_cards(first)))
    if not has_data:
        _header(file, name)
    file.seek(0)


def _header(file, name):
    content = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise UnreadableError(f"{name}: not a readable FITS (its header has no end)")
        content += block
        if END in _cards(block):
            return content
    raise DataError(f"{name}: a FITS header of more than {MAX_HEADER_BLOCKS} blocks is not read")


def _cards(content):
    return [content[start : start + CARD] for start in range(0, len(content), CARD)]


def _picture_unit(units, name):
    if units[0].header.get("NAXIS"):
        return units[0]
    try:
        return units[1]
    except IndexError:
        raise DataError(f"{name}: this FITS file holds no picture") from None


def _frame(unit, name, file_size):
    header = unit.header
    shape = [int(side) for side in getattr(unit, "shape", ())]
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    planes = len(shape) == 3 and shape[0] == 3
    pixels = len(shape) == 3 and shape[2] == 3 and not planes
    if not (len(shape) == 2 or planes or pixels) or min(shape) < 1:
        shown = "x".join(str(side) for side in reversed(shape)) or "no"
        raise DataError(
            f"{name}: {shown} values; a FITS picture of width x height, or that x 3, was expected"
        )
    height, width = shape[1:] if planes else shape[:2]
    check_pixels(name, width, height)
    size = math.prod(shape) * abs(int(header["BITPIX"])) // 8
    if size > MAX_IMAGE_BYTES:
        raise DataError(f"{name}: {size:,} bytes, at most {MAX_IMAGE_BYTES:,} are read")
    if size > MAX_RATIO * file_size:  # before memory is taken for it
        raise UnreadableError(f"{name}: not a readable FITS (most of it is missing)")
    values = np.asarray(unit.data).reshape(shape)
    if planes:
        values = np.moveaxis(values, 0, -1)
    is_color = planes or pixels
    return FitsFrame(
        values=values,
        pattern=None if is_color else _pattern(header),
        bottom_up=str(header.get("ROWORDER", "")).strip().upper() != "TOP-DOWN",
        taken=_date(header),
    )


def _pattern(header):
    pattern = str(header.get("BAYERPAT", "")).strip().upper()
    if pattern in NO_PATTERN:
        return None
    if pattern not in PATTERNS:
        return pattern
    return shifted_pattern(pattern, int(header.get("XBAYROFF", 0)), int(header.get("YBAYROFF", 0)))


def _date(header):
    """DATE-OBS, which is UTC (FITS 4.0, 9.1.1), with its offset from UTC."""
    text = str(header.get("DATE-OBS", "")).strip()
    found = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text)
    try:
        date = datetime.fromisoformat(found[0]) if found else None
    except ValueError:  # the 31st of February
        return None
    return None if date is None else f"{date.isoformat()}+00:00"
