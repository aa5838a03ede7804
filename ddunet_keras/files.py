"""Reads the pictures that a user hands over and writes results whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddunet_keras.images import to_array

IGNORE = 255
"""Label of a pixel that is neither cloud nor sky: it counts in no loss, score or cloud cover."""

MAX_PIXELS = 178_000_000
"""Largest picture that is decoded (pixels): a small file can claim to be far larger."""

_OPENING = threading.Lock()  # `warnings.catch_warnings` is for one thread at a time


class DataError(ValueError):
    """A file or folder cannot be used; the message says in one line which, why and what to do."""


def first_line(error) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open(path):
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, an image file was expected")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        with _OPENING, warnings.catch_warnings():
            # Pillow warns of large pictures; the limit below is the one that counts
            warnings.simplefilter("ignore")
            opened = Image.open(path)
        with opened as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {picture.width}x{picture.height} pixels, at most {MAX_PIXELS:,} are "
                    "read; make it smaller"
                )
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)  # copies only what is turned
            return picture
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on corrupt input
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.replace(repr(str(path)), "").strip() or type(error).__name__
        raise DataError(f"{path}: not a readable image ({reason})") from None


def _gray8(picture):
    """One channel of 8 bits from a picture of one channel of any depth, as uint8 (h, w)."""
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    array = np.asarray(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and array.max(initial=0) > 255):
        return (np.clip(array, 0, 65535).astype(np.uint32) // 257).astype(np.uint8)
    array = np.nan_to_num(array)
    if picture.mode == "F" and array.max(initial=0) <= 1.0:
        array = array * 255
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


def read_image(path) -> np.ndarray:
    """Reads a photo as RGB, upright as its EXIF tag says.

    Args:
        path: a file of any format and mode that Pillow reads: gray, palette, with alpha (blended on
            black), CMYK, 16 bits a channel, float.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: the file is missing, empty, no image, truncated or over `MAX_PIXELS`.
    """
    picture = _open(path)
    if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
        return np.repeat(_gray8(picture)[..., None], 3, axis=-1)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return to_array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_gray(path) -> np.ndarray:
    """Reads a mask's values as uint8 (height, width): palette files by index, colour by luminance.

    Raises:
        DataError: as `read_image`.
    """
    picture = _open(path)
    if picture.mode == "P":
        return np.asarray(picture)
    if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
        return _gray8(picture)
    return np.asarray(picture.convert("RGB").convert("L"))


@contextlib.contextmanager
def atomic_path(path):
    """Gives a temporary name beside `path`, renamed to `path` when the block ends without error.

    The temporary name keeps the suffix, so that writers that look at it work. What the block left
    behind is removed on error or interruption: `path` is whole, or as it was.

    Example:

    >>> with atomic_path(tmp / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=".partial-", suffix="".join(path.suffixes[-2:])
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give what a plain open() would have given
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def silence(*descriptors):
    """Sends what is written to these file descriptors (1: stdout, 2: stderr) nowhere.

    Native code writes past Python's streams; what other threads print is lost for the time, too.
    """
    streams = (sys.stdout, sys.stderr)

    def flush():
        for stream in streams:
            with contextlib.suppress(AttributeError, ValueError):  # closed, or none at all
                stream.flush()

    flush()
    copies = [os.dup(descriptor) for descriptor in descriptors]
    try:
        with open(os.devnull, "w") as nowhere:
            for descriptor in descriptors:
                os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        flush()
        for descriptor, copy in zip(descriptors, copies, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def write_image(path, array) -> None:
    """Writes uint8 (h, w) or (h, w, 3) to `path`; the suffix names the format, PNG is lossless."""
    array = np.ascontiguousarray(array)
    # run lengths alone make a mask's PNG no larger, in half the time; other formats ignore it
    options = {"compress_type": zlib.Z_RLE} if array.ndim == 2 else {}
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, **options)


def write_text(path, text) -> None:
    """Writes `text` as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value) -> None:
    """Writes `value` as indented JSON; NaN becomes null, as JSON has no NaN."""

    def clean(item):
        if isinstance(item, dict):
            return {str(key): clean(entry) for key, entry in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(entry) for entry in item]
        if isinstance(item, np.generic):
            item = item.item()
        if isinstance(item, float) and not np.isfinite(item):
            return None
        return str(item) if isinstance(item, Path) else item

    write_text(path, json.dumps(clean(value), indent=2) + "\n")
