"""Reads what cameras write: photos of any depth, FITS, mosaics, files that are being written."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageChops, ImageOps

from ddunet_keras.files import (
    OPAQUE,
    DataError,
    StrPath,
    UnreadableError,
    check_image_size,
    first_line,
    has_alpha,
    is_gray,
    opaque_pixels,
    opened_picture,
    source_name,
    without_warnings,
)
from ddunet_keras.images import to_array
from ddunet_keras.sky.bayer import CONTRAST, NO_MOSAIC, PATTERNS, debayer, mosaic_contrast
from ddunet_keras.sky.fits import is_fits, read_fits
from ddunet_keras.sky.stretch import to_8_bits

CHANNEL_ORDERS = ("rgb", "bgr")

RAW_SUFFIXES = (
    *(".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".nef", ".nrw"),
    *(".orf", ".pef", ".raf", ".raw", ".rw2", ".srw", ".x3f"),
)
"""Endings of what DSLRs write; Pillow would read the small preview in some of them."""

FRESH = 5.0
"""Seconds for which a file that was last written to may still be written to."""

PAUSES = (0.2, 0.3, 0.5, 1.0)
"""Seconds between the tries to read a file that is being written."""

JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"

FILLER = bytes(range(254, 0, -1))
"""What is put after a JPEG to see whether anything was missing. Small bytes would not do: they
often mean an even block, which is what decoders put in place of missing data, too."""

ORIENTATION = 0x0112
EXIF_IFD = 0x8769
EXIF_TIMES = ((EXIF_IFD, 0x9003, 0x9011), (EXIF_IFD, 0x9004, 0x9012), (None, 0x0132, 0x9010))
"""Where Exif has a photo's time and its offset from UTC: original, digitized, changed (Exif 2.32,
4.6.5): directory, tag of the time, tag of the offset, which is in `EXIF_IFD`."""

TIFF_SUBFILE_TYPE = 254
TIFF_BITS = 258
TIFF_PHOTOMETRIC = 262
TIFF_PLANAR = 284
TIFF_SAMPLE_FORMAT = 339
DNG_VERSION = 50706
"""Tags of TIFF."""

LOW_BYTES = {
    "B": "L",
    "L": "B",
    "N": "B" if sys.byteorder == "little" else "L",
}
"""Of 16 bits a channel, Pillow's raw mode `RGB;16B` takes the first byte of two, the high one of
big-endian files. What takes the other one is `RGB;16L`."""


@dataclass(frozen=True)
class ReadOptions:
    """What a camera's owner knows of its files.

    Args:
        bayer: pattern of the mosaic in gray files, one of RGGB, BGGR, GRBG and GBRG; "NONE": gray
            files are monochrome, whatever they look like; None: what the file says.
        channel_order: "rgb", or "bgr" for files in which red and blue were exchanged.
        wait: whether to try again, for about two seconds, a file that cannot be read but was
            written to in the last five.

    Raises:
        ValueError: an argument is none of these.

    Example:

    >>> ReadOptions(bayer="rggb").bayer
    'RGGB'
    """

    bayer: str | None = None
    channel_order: str = "rgb"
    wait: bool = False

    def __post_init__(self) -> None:
        if self.bayer is not None:
            pattern = str(self.bayer).upper()
            if pattern not in (*PATTERNS, NO_MOSAIC):
                raise ValueError(
                    f"bayer: expected one of {', '.join(PATTERNS)}, {NO_MOSAIC}, "
                    f"received {self.bayer!r}"
                )
            object.__setattr__(self, "bayer", pattern)
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(
                f"channel_order: expected one of {', '.join(CHANNEL_ORDERS)}, "
                f"received {self.channel_order!r}"
            )


@dataclass(eq=False)
class Photo:
    """A photo as it was read.

    Attributes:
        image: uint8 (h, w, 3), RGB, upright.
        valid: boolean (h, w), True where the photo is not transparent and has a value; None:
            everywhere. Give it as `horizon` to `segment`.
        taken: when, as ISO 8601 text; with its offset from UTC if that is known. None: unknown.
        taken_from: what says so: "exif" (the camera's clock), "fits" (DATE-OBS), "file" (when it
            was last written to) or None.
    """

    image: np.ndarray
    valid: np.ndarray | None = None
    taken: str | None = None
    taken_from: str | None = None


def read_image(path: StrPath) -> np.ndarray:
    """Reads a photo as RGB: `read_photo(path).image`.

    Raises:
        DataError: as `read_photo`.

    Example:

    >>> from ddunet_keras.files import write_image
    >>> write_image(tmp / "sky.png", np.full((2, 3), 200, np.uint8))
    >>> read_image(tmp / "sky.png")[0, 0].tolist()
    [200, 200, 200]
    """
    return read_photo(path).image


def read_photo(source: StrPath | bytes, options: ReadOptions | None = None) -> Photo:
    """Reads a photo of any format, mode and depth.

    What has more than 8 bits is shown with 8 by the rule of `ddunet_keras.sky.stretch.to_8_bits`.
    What is transparent is black in the image and not valid. A JPEG that lacks only its end is
    whole. FITS needs astropy.

    Args:
        source: a path, or the content of a file.
        options: what is known of the camera.

    Raises:
        DataError: the file is missing, empty, no photo, truncated or over `MAX_PIXELS`, a camera's
            raw file, transparent all over, or a mosaic whose pattern is not known. The message
            says in one line what to do.

    Example:

    >>> from ddunet_keras.files import write_image
    >>> write_image(tmp / "sky.png", np.full((2, 3), 200, np.uint8))
    >>> photo = read_photo(tmp / "sky.png")
    >>> photo.image.shape, photo.valid, photo.taken_from
    ((2, 3, 3), None, 'file')
    """
    options = options or ReadOptions()
    frame = _read_when_whole(source, options.wait)
    name = source_name(source)
    values = _with_colors(frame, name, options.bayer)
    valid = frame.valid
    if values.dtype.kind == "f" and np.isnan(values).any():
        has_value = ~np.isnan(values).any(axis=2) if values.ndim == 3 else ~np.isnan(values)
        valid = has_value if valid is None else valid & has_value
    if valid is not None and not valid.any():
        raise DataError(f"{name}: is transparent all over, or has no values")

    image = to_8_bits(values)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    elif options.channel_order == "bgr":
        image = image[..., ::-1]
    if frame.bottom_up:
        image = image[::-1]
        valid = None if valid is None else valid[::-1]
    image = np.ascontiguousarray(image)
    if valid is not None:
        valid = None if valid.all() else valid
    if valid is not None:
        image = np.where(valid[..., None], image, np.uint8(0))
    return Photo(image, valid, *_taken(source, frame))


class _Frame(NamedTuple):
    """What a file holds, before it is shown: values are (h, w) or (h, w, 3) of any type.

    They are upright; `orientation` is that of Exif, by which they were turned.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    taken: str | None = None
    taken_from: str | None = None
    pattern: str | None = None
    bottom_up: bool = False
    orientation: int = 1


def _read_when_whole(source, wait):
    for pause in PAUSES:
        try:
            return _read(source)
        except UnreadableError:
            if not wait or isinstance(source, bytes) or not _is_fresh(source):
                raise
        time.sleep(pause)
    return _read(source)


def _is_fresh(path):
    with contextlib.suppress(OSError):
        return 0 <= time.time() - os.stat(path).st_mtime < FRESH
    return False


def _read(source):
    name = source_name(source)
    check_image_size(source)
    if Path(name).suffix.lower() in RAW_SUFFIXES:
        raise DataError(_raw_message(name))
    if is_fits(source):
        frame = read_fits(source)
        return _Frame(
            frame.values,
            taken=frame.taken,
            taken_from=None if frame.taken is None else "fits",
            pattern=frame.pattern,
            bottom_up=frame.bottom_up,
        )
    try:
        return _read_picture(source)
    except UnreadableError as error:
        start = _first_bytes(source)
        if start.startswith(JPEG_START):
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            if _is_whole_jpeg(content):
                return _read_picture(content + JPEG_END)
        elif start[:2] in (b"II", b"MM"):
            raise UnreadableError(f"{error}; {_TIFF_ADVICE}") from None
        raise


def _first_bytes(source, count=16):
    if isinstance(source, bytes):
        return source[:count]
    try:
        with open(source, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({first_line(error)})") from None


def _is_whole_jpeg(content):
    """Whether a JPEG lacks its end marker and nothing more.

    Decoders fill what is missing with gray, and do not say so. But if something is missing, what
    is put after the end of the file is decoded in its place; if nothing is, it is skipped.
    """
    content = content.rstrip(b"\xff")  # half of an end marker, or of an escaped 255
    with contextlib.suppress(DataError):
        with opened_picture(content + JPEG_END) as first:
            first.load()
        with opened_picture(content + FILLER + JPEG_END) as second:
            second.load()
        return ImageChops.difference(first, second).getbbox() is None
    return False


# pictures that Pillow reads -----------------------------------------------------------------------


_TIFF_ADVICE = (
    "if it is a TIFF of floats or 16-bit planes in colour, save it as 16-bit TIFF or PNG with "
    "interleaved colours, or as FITS"
)


def _raw_message(name):
    return (
        f"{name}: is a camera's raw file, which is not read; convert it to JPEG or to a 16-bit TIFF"
    )


def _read_picture(source):
    name = source_name(source)
    with opened_picture(source) as picture:
        _refuse_what_pillow_misreads(picture, name)
        raw_mode = _raw_mode_of_16_bits(picture)
        orientation = 1
        if raw_mode is not None:
            values, valid = _read_16_bits(picture, source, raw_mode)
        else:
            orientation = _load(picture)
            valid = opaque_pixels(picture) if has_alpha(picture) else None
            values = _values(picture)
        taken = _exif_time(picture)
    taken_from = None if taken is None else "exif"
    return _Frame(values, valid, taken, taken_from, orientation=orientation)


def _refuse_what_pillow_misreads(picture, name):
    tags = getattr(picture, "tag_v2", None)
    if tags is None:
        return
    if DNG_VERSION in tags or tags.get(TIFF_SUBFILE_TYPE, 0) & 1:  # 1: a preview of another picture
        raise DataError(_raw_message(name))
    bits = max(tags.get(TIFF_BITS, (1,)))
    if bits > 8 and tags.get(TIFF_PHOTOMETRIC) == 0:
        raise DataError(f"{name}: a TIFF of {bits} bits in which white is 0; invert it")
    if bits > 8 and tags.get(TIFF_PLANAR) == 2 and picture.mode in ("RGB", "RGBA", "CMYK"):
        raise DataError(f"{name}: not read; {_TIFF_ADVICE}")


def _load(picture, raw_mode=None):
    """Decodes a picture, in another raw mode if one is given, and turns it upright.

    Returns:
        its orientation, from 1 to 8, as Exif has it.
    """
    if raw_mode is not None:
        tiles = []
        for tile in picture.tile:
            codec, extents, offset, arguments = tile
            changed = raw_mode if isinstance(arguments, str) else (raw_mode, *arguments[1:])
            # a plain tuple before Pillow 11
            make = getattr(tile, "_make", tuple)
            tiles.append(make((codec, extents, offset, changed)))
        picture.tile = tiles
    # loading turns a TIFF upright; of others, Exif may stand at the end of the file
    orientation = getattr(picture, "tag_v2", {}).get(ORIENTATION)
    picture.load()
    with contextlib.suppress(Exception), without_warnings():  # damaged Exif data
        orientation = orientation or picture.getexif().get(ORIENTATION)
    ImageOps.exif_transpose(picture, in_place=True)  # copies only what is turned
    return orientation if orientation in range(1, 9) else 1


def _raw_mode_of_16_bits(picture):
    """Pillow's raw mode of a picture in colour or with alpha that has 16 bits a channel, or None.

    Pillow gives 8 of them.
    """
    if not picture.tile:
        return None
    arguments = picture.tile[0][3]
    raw_mode = arguments if isinstance(arguments, str) else next(iter(arguments or ()), None)
    is_deep = isinstance(raw_mode, str) and re.fullmatch(
        r"(RGB|RGBA|RGBa|RGBX|LA);16[BLN]", raw_mode
    )
    return raw_mode if is_deep else None


def _read_16_bits(picture, source, raw_mode):
    """All 16 bits a channel, from two decodings of 8; and which pixels are opaque, or None."""
    if raw_mode == "LA;16B":  # as many bytes as RGBA has: high and low of each
        _load(picture, "RGBA")
        bytes_of_pixels = np.asarray(picture)
        values = bytes_of_pixels[..., 0].astype(np.uint16) << 8 | bytes_of_pixels[..., 1]
        return values, bytes_of_pixels[..., 2] >= OPAQUE
    is_premultiplied = raw_mode.startswith("RGBa")
    raw_mode = raw_mode.replace("a", "A")  # Pillow would divide what has 8 bits
    _load(picture, raw_mode)
    with opened_picture(source) as again:
        _load(again, raw_mode[:-1] + LOW_BYTES[raw_mode[-1]])
    high, low = _bytes_of(picture), _bytes_of(again)
    values = high[..., :3].astype(np.uint16)
    values <<= 8
    values |= low[..., :3]
    if is_premultiplied:
        alpha = np.maximum(high[..., 3:].astype(np.uint32) << 8 | low[..., 3:], 1)
        values = np.minimum(values * np.uint32(65535) // alpha, 65535).astype(np.uint16)
    valid = high[..., 3] >= OPAQUE if raw_mode.startswith("RGBA") else None
    key = picture.info.get("transparency")  # PNG: the colour that is transparent
    if valid is None and isinstance(key, tuple) and len(key) == 3:
        valid = (values != np.array(key)).any(axis=-1)
    return values, valid


def _bytes_of(picture):
    return to_array(picture) if picture.mode == "RGB" else np.asarray(picture)


def _values(picture):
    """Pixels of a loaded picture: gray (h, w) at its own depth, anything else uint8 (h, w, 3)."""
    if picture.mode in ("1", "LA", "La"):
        return np.asarray(picture.convert("L") if picture.mode != "La" else picture.convert("LA"))
    if not is_gray(picture):
        if picture.mode in ("PA", "RGBa"):
            picture = picture.convert("RGBA")
        return to_array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    values = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})
    is_unsigned = tags.get(TIFF_BITS) == (32,) and tags.get(TIFF_SAMPLE_FORMAT, (1,)) == (1,)
    # Pillow has no unsigned 32 bits
    return values.view(np.uint32) if picture.mode == "I" and is_unsigned else values


# colours ------------------------------------------------------------------------------------------


def _with_colors(frame, name, bayer):
    """The values of a frame; a mosaic's colours are computed, if its pattern is known."""
    values = frame.values
    if values.ndim == 3:
        if bayer not in (None, NO_MOSAIC):
            raise DataError(f"{name}: has colours; a Bayer pattern is for gray files")
        return values
    pattern = bayer or frame.pattern
    if pattern == NO_MOSAIC:
        return values
    if pattern is None:
        if mosaic_contrast(values) > CONTRAST:
            raise DataError(
                f"{name}: looks like the mosaic of a colour sensor; give its pattern, "
                f"--bayer {PATTERNS[0]} (or {', '.join(PATTERNS[1:])}), or --bayer {NO_MOSAIC}"
            )
        return values
    if pattern not in PATTERNS:
        raise DataError(
            f"{name}: its Bayer pattern {pattern!r} is none of {', '.join(PATTERNS)}; give one, as "
            f"in --bayer {PATTERNS[0]}"
        )
    if min(values.shape) < 2:
        raise DataError(f"{name}: {values.shape[1]}x{values.shape[0]} pixels are no Bayer mosaic")
    in_file_order = turned(values, {6: 8, 8: 6}.get(frame.orientation, frame.orientation))
    return turned(debayer(in_file_order, pattern), frame.orientation)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """A picture as a file holds it, (h, w, ...), turned upright by its orientation in Exif, 1 to 8.

    Example:

    >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


# time ---------------------------------------------------------------------------------------------


def _taken(source, frame):
    """When a photo was taken, and what says so."""
    if frame.taken is not None or isinstance(source, bytes):
        return frame.taken, frame.taken_from
    with contextlib.suppress(OSError, OverflowError, ValueError):  # a year beyond 9999
        changed = datetime.fromtimestamp(os.stat(source).st_mtime).astimezone()
        return changed.isoformat(timespec="seconds"), "file"
    return None, None


def _exif_time(picture):
    """The time in a picture's Exif data as ISO 8601 text, or None."""
    # damaged Exif data raise and warn of many kinds
    with contextlib.suppress(Exception), without_warnings():
        exif: Any = picture.getexif()
        details = exif.get_ifd(EXIF_IFD)
        for directory, time_tag, offset_tag in EXIF_TIMES:
            found = _iso(
                (exif if directory is None else details).get(time_tag), details.get(offset_tag)
            )
            if found is not None:
                return found
    return None


def _iso(text, offset):
    """Exif's "2024:05:01 22:13:05" and "+02:00" as ISO 8601 text; None if it is no time."""
    match = re.fullmatch(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)", str(text).strip("\0 "))
    if match is None:
        return None
    try:
        moment = datetime(*map(int, match.groups()))
    except ValueError:  # 0000:00:00 where a camera has no clock
        return None
    known = re.fullmatch(r"[+-]\d\d:\d\d", str(offset).strip("\0 "))
    return moment.isoformat() + (known[0] if known else "")
