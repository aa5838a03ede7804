"""Reads what a user hands over, and writes results whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import platform
import re
import stat
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

StrPath = str | os.PathLike[str]
"""What functions that take a path accept."""

IGNORE = 255
"""Label of a pixel that is neither cloud nor sky: it counts in no loss, score or cloud cover."""

MAX_PIXELS = 178_000_000
"""Largest picture that is decoded (pixels): a small file can claim to be far larger."""

MAX_IMAGE_BYTES = 8 * MAX_PIXELS
"""Largest picture file that is opened: eight bytes a pixel are 16 bits of RGBA, uncompressed."""

OPAQUE = 128
"""Alpha from which a pixel counts as opaque: half of 255."""

BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
"""Of masks of two classes: sky, ignored, cloud."""

MAX_TEXT_BYTES = 32_000_000
"""Largest table, list or JSON file that is read. Those of SWINySEG have less than 0.3 MB."""

PARTIAL_PREFIX = ".partial-"
"""Start of the names of files that `atomic_path` has not yet finished."""

ABANDONED_AFTER = 24 * 3600
"""Seconds after which nobody still writes a partial file, whoever began it."""

_FILTERING = threading.Lock()  # `warnings.catch_warnings` is for one thread at a time


class DataError(ValueError):
    """A file or folder cannot be used; the message says in one line which, why and what to do.

    The message is made `printable`: it may hold the name of any file.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class UnreadableError(DataError):
    """A file is no picture, or not a whole one: it may be about to be written."""


class WriteError(DataError):
    """A result cannot be written: no room, no permission, a folder of that name, and so on."""


def printable(text: object) -> str:
    r"""Text in one line: escapes line breaks, control characters and bytes that are not UTF-8.

    File names may hold all of these. A terminal would obey them, a table would break, and bytes
    that are not UTF-8 (surrogates, in Python) could not be printed at all.

    Example:

    >>> print(printable("night\n.jpg"))
    night\n.jpg
    """
    characters = str(text)
    if characters.isprintable():
        return characters
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in characters
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none.

    Example:

    >>> first_line(OSError("no room\\nleft")), first_line(KeyError())
    ('no room', 'KeyError')
    """
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def regular_file(path: StrPath) -> Path:
    """The path of a file that can be read to its end.

    A pipe or a device is refused: reading it may wait for ever or fill the memory. Links are
    followed.

    Raises:
        DataError: there is no such file, or it is a folder, a pipe, a device or a socket.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        what = "is a link to a file that is missing" if path.is_symlink() else "no such file"
        raise DataError(f"{path}: {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder, a file was expected")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is a pipe, a device or a socket, a file was expected")
    return path


def read_text(path: StrPath, limit: int = MAX_TEXT_BYTES) -> str:
    """Reads a text in UTF-8, with or without a byte order mark.

    Args:
        path: of a regular file.
        limit: bytes that the file may have.

    Raises:
        DataError: as `regular_file`, or the file is larger or no UTF-8.
    """
    path = regular_file(path)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if len(content) > limit:
        raise DataError(f"{path}: has more bytes than expected; at most {limit:,} are read")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a readable UTF-8 text; save it as UTF-8") from None


def read_json(path: StrPath) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: as `read_text`, or the text is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not a readable JSON file") from None


def list_folder(folder: StrPath) -> list[Path]:
    """What a folder holds, in the order of the names, without hidden files.

    Raises:
        DataError: there is no such folder, it is a file, or it cannot be listed.
    """
    folder = Path(folder)
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be listed ({_reason(error)})") from None


def _reason(error):
    return getattr(error, "strerror", None) or first_line(error)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignores Python's warnings in the block, which is for one thread at a time."""
    with _FILTERING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def opened_picture(source: StrPath | bytes) -> Iterator[Image.Image]:
    """Opens a picture of unknown origin with Pillow; its pixels are not decoded yet.

    Whatever Pillow raises in the block, as when the pixels are decoded, becomes a `DataError`.

    Args:
        source: a path, or the content of a file.

    Raises:
        UnreadableError: the file is empty, or no picture, or not a whole one.
        DataError: as `regular_file`, or the file is larger than `MAX_IMAGE_BYTES`, the picture
            than `MAX_PIXELS`.

    Example:

    >>> write_image(tmp / "sky.png", np.zeros((2, 3), np.uint8))
    >>> with opened_picture(tmp / "sky.png") as picture:
    ...     print(picture.format, picture.size)
    PNG (3, 2)
    """
    name = source_name(source)
    check_image_size(source)
    try:
        # Pillow warns of large pictures; the limit below is the one that counts
        with without_warnings():
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with opened as picture:
            if picture.format == "EPS":  # Pillow would start Ghostscript on it
                raise DataError(f"{name}: EPS is a program that draws, a photo was expected")
            check_pixels(name, picture.width, picture.height)
            if picture.format == "TIFF":
                # else Pillow maps it into memory, and forgets to turn it upright
                picture.filename = ""
            yield picture
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{name}: cannot be read ({_reason(error)})") from None
    except Exception as error:  # Pillow's decoders raise many types on corrupt input
        reason = first_line(error).replace(repr(str(source)), "")
        reason = re.sub("<_io.BytesIO[^>]*>", "", reason).strip() or type(error).__name__
        raise UnreadableError(f"{name}: not a readable image ({reason})") from None


def source_name(source: StrPath | bytes) -> str:
    """What errors call a photo: its path, or "stdin" for the content of a file."""
    return "stdin" if isinstance(source, bytes) else str(source)


def check_image_size(source: StrPath | bytes) -> None:
    """Looks at a picture file's size before it is opened.

    Raises:
        UnreadableError: the file is empty.
        DataError: as `regular_file`, or it has more than `MAX_IMAGE_BYTES`.
    """
    size = len(source) if isinstance(source, bytes) else regular_file(source).stat().st_size
    name = source_name(source)
    if size == 0:
        raise UnreadableError(f"{name}: the file is empty")
    if size > MAX_IMAGE_BYTES:
        raise DataError(f"{name}: {size:,} bytes, at most {MAX_IMAGE_BYTES:,} are read")


def check_pixels(name: str, width: int, height: int) -> None:
    """Looks at a picture's claimed size before memory is taken for it.

    Raises:
        DataError: it has more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} pixels, at most {MAX_PIXELS:,} are read; make it smaller"
        )


def is_gray(picture: Image.Image) -> bool:
    """Whether a Pillow picture has one channel of brightness, of any depth."""
    return picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16")


def _gray8(picture):
    """One channel of 8 bits from a picture of one channel of any depth, as uint8 (h, w)."""
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    array = np.nan_to_num(np.asarray(picture))
    if picture.mode != "F" and array.max(initial=0) > 255:  # else it has 8 bits in a wider type
        return (np.clip(array, 0, 65535).astype(np.uint32) // 257).astype(np.uint8)
    if picture.mode == "F" and array.max(initial=0) <= 1 and not (array == np.rint(array)).all():
        array = array * 255  # shares; 0 and 1 alone may be classes
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


def has_alpha(picture: Image.Image) -> bool:
    """Whether a Pillow picture says of its pixels how opaque they are."""
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


def opaque_pixels(picture: Image.Image) -> np.ndarray:
    """Boolean (h, w), True where a Pillow picture that `has_alpha` is at least half opaque."""
    return np.asarray(picture.convert("RGBA").getchannel("A")) >= OPAQUE


def read_gray(
    path: StrPath,
    transparent: int | None = None,
    palette: Literal["index", "luminance", "mask"] = "index",
) -> np.ndarray:
    """Reads a mask's values as uint8 (height, width), those of colours as luminance.

    Args:
        path: a file of any format that Pillow reads.
        transparent: the value of transparent pixels; None: the one that they have beneath.
        palette: what to take of a file that has one: "index", in label files the class;
            "luminance" of its colours; "mask": that if nothing but black, white and the grey half
            way is in use, as in a mask of two classes, and else the index.

    Raises:
        DataError: as `opened_picture`.

    Example:

    >>> write_image(tmp / "mask.png", np.array([[0, 255]], np.uint8))
    >>> read_gray(tmp / "mask.png").tolist()
    [[0, 255]]
    """
    with opened_picture(path) as picture:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # copies only what is turned
        if picture.mode == "P" and (
            palette == "index" or (palette == "mask" and not _is_black_and_white(picture))
        ):
            values = np.asarray(picture)
        elif is_gray(picture):
            values = _gray8(picture)
        else:
            values = np.asarray(picture.convert("RGB").convert("L"))
        if transparent is not None and has_alpha(picture):
            values = np.where(opaque_pixels(picture), values, np.uint8(transparent))
        return values


def _is_black_and_white(picture):
    colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=3) or ()}
    # grey and black without white may be the first two colours of anything
    return colours == {BLACK} or (WHITE in colours and colours <= {BLACK, GREY, WHITE})


@contextlib.contextmanager
def atomic_path(path: StrPath) -> Iterator[Path]:
    """Gives a temporary name beside `path`, renamed to `path` when the block ends without error.

    The temporary name keeps the suffix, so that writers that look at it work. What the block left
    behind is removed on error or interruption: `path` is whole, or as it was. A process that is
    killed cannot tidy up; `remove_partial_files` does it for a folder.

    Raises:
        WriteError: nothing can be written there, or there is no room for it.

    Example:

    >>> with atomic_path(tmp / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> (tmp / "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent,
            prefix=f"{PARTIAL_PREFIX}{_this_machine()}-{os.getpid()}-",
            suffix="".join(path.suffixes[-2:]),
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files private; give what a plain open() would have given
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: StrPath) -> None:
    """Finds out whether a file can be written, ahead of the work whose result it shall hold.

    Nothing is made, not even a missing folder: it is looked for the nearest one that exists.

    Raises:
        WriteError: the nearest folder above cannot be written to, or `path` is a folder.

    Example:

    >>> check_writable(tmp / "new" / "model.tflite")
    >>> (tmp / "new").exists()
    False
    """
    path = Path(path)
    if os.path.isdir(path):
        raise WriteError(f"{path}: cannot be written (it is a folder)")
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise WriteError(f"{path}: cannot be written ({folder} is no folder)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WriteError(f"{path}: cannot be written (no permission to write in {folder})")


def _this_machine():
    """A short name of this machine, to tell whether a process number is one of its own."""
    name = platform.node().encode(errors="replace")
    return f"{zlib.crc32(name):08x}"


def remove_partial_files(folder: StrPath) -> None:
    """Removes the unfinished files that killed processes left in a folder.

    A partial file of `atomic_path` is removed if the process that began it runs no longer on this
    machine, or if nobody has touched it for `ABANDONED_AFTER`. The files of running processes stay,
    those of other machines (a shared folder, a container) and of this process among them.

    Args:
        folder: not searched in depth; it may be missing or unreadable.

    Example:

    >>> import os
    >>> _ = (tmp / ".partial-half.png").write_bytes(b"")
    >>> os.utime(tmp / ".partial-half.png", (0, 0))  # last touched in 1970
    >>> remove_partial_files(tmp)
    >>> list(tmp.iterdir())
    []
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        path = Path(folder, name)
        with contextlib.suppress(OSError):  # another process may have removed it
            if name.startswith(PARTIAL_PREFIX) and _is_abandoned(path):
                path.unlink()


def _is_abandoned(path):
    if time.time() - path.lstat().st_mtime > ABANDONED_AFTER:
        return True
    writer = re.match(rf"{re.escape(PARTIAL_PREFIX)}([0-9a-f]{{8}})-(\d+)-", path.name)
    # on Windows, os.kill would end the process in place of asking for it
    if writer is None or writer[1] != _this_machine() or os.name != "posix":
        return False
    try:
        os.kill(int(writer[2]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


@contextlib.contextmanager
def silence(*descriptors: int) -> Iterator[None]:
    """Sends what is written to these file descriptors (1: stdout, 2: stderr) nowhere.

    Native code writes past Python's streams; what other threads print is lost for the time, too.
    """
    streams = (sys.stdout, sys.stderr)

    def flush():
        for stream in streams:
            with contextlib.suppress(AttributeError, ValueError):  # closed, or none at all
                stream.flush()

    flush()
    # a service may have been started without them; asked first, as a copy may take a free number
    open_ones = [descriptor for descriptor in descriptors if _is_open(descriptor)]
    copies = {descriptor: os.dup(descriptor) for descriptor in open_ones}
    try:
        with open(os.devnull, "w") as nowhere:
            for descriptor in copies:
                os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        flush()
        for descriptor, copy in copies.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def write_image(path: StrPath, image: np.ndarray | Image.Image) -> None:
    """Writes a picture to `path`; the suffix names the format, PNG is lossless.

    Args:
        image: uint8 (h, w) or (h, w, 3), or a picture of Pillow's.

    Raises:
        WriteError: as `atomic_path`.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    # run lengths alone make a mask's PNG no larger, in half the time; other formats ignore it
    options: dict[str, Any] = {"compress_type": zlib.Z_RLE} if picture.mode == "L" else {}
    with atomic_path(path) as temporary:
        picture.save(temporary, **options)


def write_text(path: StrPath, text: str) -> None:
    """Writes `text` as UTF-8; of a file name that is no UTF-8 it escapes the bytes (`\\udcff`)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: StrPath, value: Any) -> None:
    """Writes `value` as indented JSON; NaN becomes null, as JSON has no NaN.

    Example:

    >>> write_json(tmp / "cover.json", {"fraction": np.float32(0.5), "okta": float("nan")})
    >>> read_json(tmp / "cover.json")
    {'fraction': 0.5, 'okta': None}
    """
    write_text(path, json.dumps(as_json(value), indent=2) + "\n")


def as_json(item: Any) -> Any:
    """What JSON gives back of a value: lists for tuples, texts for paths, None for NaN."""
    if isinstance(item, dict):
        return {str(key): as_json(entry) for key, entry in item.items()}
    if isinstance(item, (list, tuple)):
        return [as_json(entry) for entry in item]
    if isinstance(item, Path):
        return str(item)
    if isinstance(item, np.generic):
        item = item.item()
    if isinstance(item, float) and not np.isfinite(item):
        return None
    return item
