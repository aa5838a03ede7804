"""Reads the public sky and cloud datasets as published, and any folder of images and masks."""

from __future__ import annotations

import csv
import difflib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ddunet_keras.files import IGNORE, DataError, read_gray, read_image
from ddunet_keras.images import rotation_matrix, warp

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MAX_TEXT = 32_000_000  # bytes of a metadata file or list; SWINySEG's have under 0.1 MB


@dataclass(frozen=True)
class _Layout:
    """How a dataset lies on disk; masks and their codes (value -> label) by number of classes."""

    looks_like: str
    images: tuple[str, ...]
    masks: dict[int, tuple[str, ...]]
    name: str = ".+"
    endings: tuple[str, ...] = ("", "_gt")
    codes: dict[int, dict[int, int]] = field(default_factory=lambda: {2: {0: 0, 255: 1}})


_IMAGES = ("images", "image", "imgs", "img", "photos")
_MASKS = ("masks", "mask", "gtmaps", "gt", "labels", "label", "annotation", "annotations")
_GTMAPS = (("images",), {2: ("gtmaps",)})
_LAYOUTS = {
    "swinyseg": _Layout(
        "images/d0001.jpg + GTmaps/d0001.png", *_GTMAPS, r"([dn]\d{4})(?:_([1-5]))?"
    ),
    "swimseg": _Layout("images/0001.png + GTmaps/0001_GT.png", *_GTMAPS, r"\d{4}"),
    "swinseg": _Layout("images/001.jpg + GTmaps/001_GT.jpg", *_GTMAPS, r"\d{3}"),
    "hyta": _Layout(
        "images/B1.jpg + 2GT/B1_GT.jpg or 3GT/B1_3GT.png",
        ("images",),
        {2: ("2gt",), 3: ("3gt",)},
        endings=("_gt", "_2gt", "_3gt"),
        codes={2: {0: 0, 255: 1}, 3: {0: 0, 126: 1, 255: 2}},
    ),
    "wsiseg": _Layout(
        "'whole sky images/ASC100-1006_001' + annotation/ASC100-1006_001",
        ("whole sky images", "images"),
        {2: ("annotation",)},
        r"ASC100-1006_\d+",
        codes={2: {0: IGNORE, 100: 0, 255: 1}},
    ),
    "folder": _Layout(
        "images/NAME.jpg + masks/NAME.png",
        _IMAGES,
        dict.fromkeys(range(2, 256), _MASKS),
        endings=("", "_gt", "_mask", "_label"),
    ),
}
LAYOUTS = tuple(_LAYOUTS)
"""Names of the layouts that `open_dataset` knows; `folder` is any folder of images and masks."""


@dataclass(frozen=True)
class Sample:
    """One image with its mask.

    Attributes:
        name: unique within the dataset, without file ending.
        image, mask: the files.
        date: of the capture, `YYYYMMDD`; None if not known.
        time: of the capture, `HHMMSS` or as the metadata has it; None if not known.
        night: taken at night; None if not known.
        augmentation: None for what lies on disk; k for SWINySEG's `NAME_k` where only `NAME` does:
            `Dataset.load` then makes it with `swinyseg_augment`.
        source: name of the image that this is an augmentation of; its own name if of none.
    """

    name: str
    image: Path
    mask: Path
    date: str | None = None
    time: str | None = None
    night: bool | None = None
    augmentation: int | None = None
    source: str = ""

    def __post_init__(self):
        if not self.source:
            object.__setattr__(self, "source", self.name)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and masks in a folder, in the order of their names; made by `open_dataset`.

    Attributes:
        layout: one of `LAYOUTS`.
        root: the folder.
        samples: what lies on disk.
        num_classes: number of classes in the labels.
        class_names: their names, in the order of the labels.
        lists: names in `train.txt` and `val.txt` where a SWINySEG folder has them, by `"train"`
            and `"val"`.
    """

    layout: str
    root: Path
    samples: tuple[Sample, ...]
    num_classes: int
    class_names: tuple[str, ...]
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @cached_property
    def _by_name(self):
        return {sample.name: sample for sample in self.samples}

    def find(self, name: str) -> Sample:
        """The sample of that name; SWINySEG's `NAME_k` is also found where only `NAME` is on disk.

        Raises:
            DataError: there is none; the message has the nearest names.
        """
        if name in self._by_name:
            return self._by_name[name]
        match = re.fullmatch(_LAYOUTS["swinyseg"].name, str(name))
        if self.layout == "swinyseg" and match and match[1] in self._by_name:
            return replace(self._by_name[match[1]], name=name, augmentation=int(match[2]))
        near = difflib.get_close_matches(str(name), self._by_name, n=3)
        hint = f"nearest: {', '.join(near)}" if near else "no name is near"
        raise DataError(f"{self.root}: no image named {name!r} among {len(self)}; {hint}")

    def load(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Reads a sample.

        Returns:
            image: uint8 (height, width, 3), RGB, upright.
            labels: uint8 (height, width), class index or `IGNORE` (255).

        Raises:
            DataError: a file is unreadable, the sizes differ, or the mask has unexpected values.
        """
        image, values = read_image(sample.image), read_gray(sample.mask)
        if image.shape[:2] != values.shape:
            (h, w), (mask_h, mask_w) = image.shape[:2], values.shape
            turned = "; an EXIF tag turns the photo upright: turn the mask, too"
            raise DataError(
                f"{sample.mask}: mask of {mask_w}x{mask_h} for an image of {w}x{h} (width x height)"
                f"{turned if (h, w) == (mask_w, mask_h) else '; they must agree'}"
            )
        labels = _labels(values, sample.mask, self.layout, self.num_classes)
        if sample.augmentation is None:
            return image, labels
        return swinyseg_augment(image, labels, sample.name)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decodes every image and mask on disk.

        Args:
            progress: is called with the number of images done and in all.

        Raises:
            DataError: names the first file that cannot be used, and how many more there are.
        """
        problems = []
        for done, sample in enumerate(self.samples, 1):
            try:
                self.load(sample)
            except DataError as error:
                problems.append(str(error))
            if progress is not None:
                progress(done, len(self))
        if problems:
            more = f" (and {len(problems) - 1} more of {len(self)} images)" * (len(problems) > 1)
            raise DataError(problems[0] + more)


class Mixture:
    """Samples of several datasets, for a `Pipeline` to train on together.

    A name is a pair: index of the dataset, name within it.

    Example:

    >>> Mixture(patches, whole_skies).find((1, "ASC100-1006_001"))  # doctest: +SKIP
    """

    def __init__(self, *datasets):
        self.datasets = datasets

    def find(self, name):
        """The sample of that name, with its dataset."""
        index, name = name
        return self.datasets[index], self.datasets[index].find(name)

    def load(self, sample) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels, as `Dataset.load`."""
        dataset, sample = sample
        return dataset.load(sample)


def open_dataset(path, layout: str | None = None, num_classes: int = 2) -> Dataset:
    """Opens a dataset: checks the structure and decodes nothing (`Dataset.verify` does).

    ========  ====================================================================================
    swinyseg  Dev, Nautiyal, Lee, Winkler, GRSL 2019: day and night patches; `NAME_1`..`NAME_5`
              are augmentations of `NAME`; optional `train.txt` and `val.txt`
    swimseg   Dev, Lee, Winkler, J-STARS 2017: day patches
    swinseg   Dev, Savoy, Lee, Winkler, ICIP 2017: night patches
    hyta      Li, Lu, Yang, JTECH 2011; `num_classes=3` (Dev, Lee, Winkler, ICIP 2015) has sky,
              thin and thick cloud
    wsiseg    Xie et al., AMT 2020: whole-sky images; what is neither cloud nor sky is ignored
    folder    a folder of images (`images`, `photos`...) and one of masks (`masks`, `labels`...),
              paired by name, `NAME_GT` and `NAME_mask` included. Two classes: 0 is sky, 1 or 255
              cloud, 128 ignored; JPEG masks are split at 128. More: the index, 255 ignored.
    ========  ====================================================================================

    `metadata.csv` (or tab-separated `metadata.txt`) with the columns Name (or Number), Date and
    Time tells the captures apart, which the splits `capture` and `date` need.

    Args:
        path: the folder.
        layout: one of `LAYOUTS`; None finds it by looking at the folder.
        num_classes: 2; 3 for `hyta`; any number from 2 to 255 for `folder`.

    Raises:
        DataError: the folder or something in it cannot be used; says what is wrong and what to do.

    Example:

    >>> import tempfile
    >>> from ddunet_keras.data.synthetic import write_synthetic
    >>> folder = tempfile.mkdtemp()
    >>> _ = write_synthetic(folder, count=3, image_size=(48, 64), seed=0)
    >>> dataset = open_dataset(folder)
    >>> image, labels = dataset.load(dataset.samples[0])
    >>> dataset.layout, len(dataset), image.shape, labels.shape
    ('folder', 3, (48, 64, 3), (48, 64))
    """
    root = Path(path).expanduser()
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"layout={layout!r} is not known, choose from {', '.join(LAYOUTS)}")
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, give the folder that holds the images and masks")
    layout = layout or _detect(root)
    spec = _LAYOUTS[layout]
    if not isinstance(num_classes, int) or num_classes not in spec.masks:
        known = "2 to 255" if layout == "folder" else " or ".join(map(str, spec.masks))
        raise DataError(f"num_classes={num_classes!r}, but layout {layout!r} has {known}")
    images = _files(_subfolder(root, spec.images, layout), layout)
    masks = _files(_subfolder(root, spec.masks[num_classes], layout), layout)
    if foreign := [name for name in images if not re.fullmatch(spec.name, name)]:
        raise DataError(
            f"{root}: {_some(foreign)} not named as in {layout} ({spec.looks_like}); "
            "move them away, or use layout='folder'"
        )
    pairs, captures = _pair(root, images, masks, spec.endings), _captures(root, images)
    samples = []
    for name, image in sorted(images.items()):
        source, night = name, {"swimseg": False, "wsiseg": False, "swinseg": True}.get(layout)
        if layout == "swinyseg":
            source, night = re.fullmatch(spec.name, name)[1], name[0] == "n"
        date, time = captures.get(source) or captures.get(name, (None, None))
        samples.append(Sample(name, image, pairs[name], date, time, night, source=source))
    lists = {}
    for part in ("train", "val"):
        if layout == "swinyseg" and (root / f"{part}.txt").is_file():
            lines = map(str.strip, _text(root / f"{part}.txt").splitlines())
            lists[part] = tuple(_stem(line) for line in lines if line)
    if num_classes == 2:
        names = ("sky", "cloud")
    elif layout == "hyta":
        names = ("sky", "thin cloud", "thick cloud")
    else:
        names = tuple(f"class {index}" for index in range(num_classes))
    return Dataset(layout, root, tuple(samples), num_classes, names, lists)


def swinyseg_augment(
    image: np.ndarray, labels: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Makes an augmentation of the kind that SWINySEG comes with, drawn from `name` alone.

    Flips, rotations to 20 degrees, shifts to a tenth, zooms of 0.8 to 1 and shears to 10 degrees
    (Dev et al., GRSL 2019; the shears' size is not published). Beyond the border, the nearest pixel
    is repeated. The published files themselves cannot be reproduced: their draws are not known.

    Args:
        image: uint8 (height, width, 3), resampled bilinearly.
        labels: uint8 (height, width), resampled to the nearest.
        name: the name of the augmentation: equal names give equal results.

    Returns:
        The image and the labels, in the sizes and types that were given.

    Raises:
        ValueError: the shapes or types are others.

    Example:

    >>> labels = np.eye(48, 64, dtype=np.uint8)
    >>> image = np.stack([labels] * 3, axis=-1)
    >>> [array.shape for array in swinyseg_augment(image, labels, "d0001_1")]
    [(48, 64, 3), (48, 64)]
    """
    if image.shape != (*labels.shape, 3) or not image.dtype == labels.dtype == np.uint8:
        raise ValueError(
            "expected uint8 (height, width, 3) and uint8 (height, width), received "
            f"{image.dtype} {image.shape} and {labels.dtype} {labels.shape}"
        )
    return warp(image, labels, *swinyseg_draw(zlib.crc32(name.encode()), labels.shape))


def swinyseg_draw(seed, size) -> tuple[np.ndarray, np.ndarray]:
    """Draws what `swinyseg_augment` does: matrix and shift for `warp`.

    Args:
        seed: of the draw; an integer or a NumPy `Generator`.
        size: (height, width) of the image, pixels.

    Returns:
        (2, 2), and (x, y) in pixels.
    """
    random = np.random.default_rng(seed)
    flip = np.diag(random.choice([-1.0, 1.0], 2))
    angle, shear = np.deg2rad(random.uniform([-20, -10], [20, 10]))
    slant = np.array([[1.0, np.tan(shear)], [0.0, 1.0]])
    matrix = rotation_matrix(angle) @ slant @ np.diag(random.uniform(0.8, 1.0, 2)) @ flip
    return matrix, random.uniform(-0.1, 0.1, 2) * size[::-1]


def _some(items):
    items = sorted(items)
    return f"{len(items)} ({', '.join(map(str, items[:5]))}{', ...' if len(items) > 5 else ''})"


def _stem(name):
    head, dot, suffix = name.rpartition(".")
    return head if dot + suffix.lower() in _SUFFIXES else name


def _entries(folder):
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None


def _files(folder, layout):
    """Images in a folder by their names without ending; WSISEG's have none."""
    found, suffixes = {}, _SUFFIXES | ({""} if layout == "wsiseg" else set())
    for path in _entries(folder):
        if path.is_file() and path.suffix.lower() in suffixes:
            other = found.setdefault(_stem(path.name), path)
            if other is not path:
                raise DataError(f"{folder}: {other.name} and {path.name} share a name; keep one")
    if not found:
        raise DataError(f"{folder}: holds no images ({' '.join(sorted(_SUFFIXES))})")
    return found


def _subfolders(root, names):
    return [p for p in _entries(root) if p.name.lower() in names and p.is_dir()]


def _subfolder(root, names, layout):
    found = _subfolders(root, names)
    if len(found) == 1:
        return found[0]
    if found:
        listing = ", ".join(p.name for p in found)
        raise DataError(f"{root}: {listing}: which one is meant? Move all but one away")
    raise DataError(
        f"{root}: no folder {' or '.join(names)}, layout {layout!r} has "
        f"{_LAYOUTS[layout].looks_like}"
    )


def _looks_like(root):
    """The layout of a folder, or None."""
    images = _subfolders(root, (*_IMAGES, *_LAYOUTS["wsiseg"].images))
    if images and _subfolders(root, ("2gt", "3gt")):
        return "hyta"
    if not images or not _subfolders(root, _MASKS):
        return None
    names = [_stem(path.name) for path in _entries(images[0])]
    for layout in ("swinyseg", "swimseg", "swinseg", "wsiseg"):
        spec = _LAYOUTS[layout]
        fits = sum(bool(re.fullmatch(spec.name, name)) for name in names)
        # the greater part decides: one stray file must not turn augmentations into images
        if _subfolders(root, spec.masks[2]) and 2 * fits > len(names):
            return layout
    return "folder"


def _detect(root):
    layout, entries = _looks_like(root), _entries(root)
    if layout is not None:
        return layout
    if not entries:
        raise DataError(f"{root}: the folder is empty")
    folders = [p for p in (*entries, root.resolve().parent) if p.is_dir() and os.access(p, os.R_OK)]
    near = next((folder for folder in folders if _looks_like(folder)), None)
    known = "; ".join(f"{spec.looks_like} ({name})" for name, spec in _LAYOUTS.items())
    hint = f"did you mean {near}?" if near else f"known are {known}"
    raise DataError(f"{root}: no known layout, found {_some(p.name for p in entries)}; {hint}")


def _pair(root, images, masks, endings):
    pairs = {}
    for stem, path in masks.items():
        cut = [stem[: len(stem) - len(e)] for e in endings if stem.lower().endswith(e)]
        name = next((c for c in cut if c in images), stem)
        other = pairs.setdefault(name, path)
        if other is not path:
            raise DataError(f"{root}: {other.name} and {path.name} are masks of {name}; keep one")
    if alone := images.keys() - pairs.keys():
        raise DataError(f"{root}: images without a mask: {_some(alone)}; add it or remove them")
    if alone := pairs.keys() - images.keys():
        raise DataError(f"{root}: masks without an image: {_some(alone)}; add it or remove them")
    return pairs


def _text(path):
    if path.stat().st_size > _MAX_TEXT:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes, at most {_MAX_TEXT:,} are read")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: not a readable UTF-8 text") from None


def _is_date(digits):
    try:
        return len(digits) == 8 and bool(datetime.strptime(digits, "%Y%m%d"))
    except ValueError:
        return False


def _captures(root, images):
    """(date, time) by image name, from the metadata file, if there is one."""
    files = [p for p in _entries(root) if p.name.lower() in ("metadata.csv", "metadata.txt")]
    if not files:
        return {}
    if len(files) > 1:
        raise DataError(f"{root}: {' and '.join(p.name for p in files)}: keep one of them")
    path, text = files[0], _text(files[0])
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    known = [name for name in header if name in ("name", "number", "image", "date", "time")]
    if not known or len(set(known)) < len(known):
        raise DataError(
            f"{path}: needs a header with the columns Name, Date, Time, each once, found "
            f"{', '.join(header[:8]) or 'nothing'}; correct it or move it away"
        )
    key = next((name for name in ("name", "number", "image") if name in known), header[0])
    captures = {}
    for line, row in enumerate(rows[1:], 2):
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} cells, the header {len(header)}")
        cells = dict(zip(header, map(str.strip, row), strict=True))
        name = _stem(cells[key])
        # the public sets are numbered 0001 or 001, spreadsheets make 1 of it
        name = next((n for n in (name, name.zfill(3), name.zfill(4)) if n in images), name)
        date = re.sub(r"[-/.]", "", cells.get("date", "")) or None
        if date and not _is_date(date):
            raise DataError(f"{path}: line {line}: date {cells['date']!r}, expected YYYYMMDD")
        # without leading zeros 012003 is 12003, in SWINySEG's own table, too
        time = cells.get("time") or None
        capture = (date, time.zfill(6) if time and time.isdigit() else time)
        if captures.setdefault(name, capture) != capture:
            raise DataError(f"{path}: line {line} gives {name} a second date or time; keep one")
    if not captures.keys() & images.keys():
        raise DataError(f"{path}: column {key!r} names none of the {len(images)} images")
    return captures


def _labels(values, path, layout, num_classes):
    """Labels from a mask's values, through a table of 256 entries."""
    with open(path, "rb") as file:
        lossy = file.read(2) == b"\xff\xd8"  # JPEG, whatever the ending says
    counts = np.array(Image.fromarray(values).histogram())
    present = np.flatnonzero(counts)
    codes = _LAYOUTS[layout].codes.get(num_classes)
    if layout == "folder" and num_classes > 2:
        if lossy:
            raise DataError(f"{path}: JPEG changes the values of {num_classes} classes; use PNG")
        codes = {index: index for index in range(num_classes)} | {IGNORE: IGNORE}
    elif layout == "folder" and not lossy:
        codes = {0: 0, 1: 1, 128: IGNORE} if 1 in present else {0: 0, 128: IGNORE, 255: 1}
    # edges are gray in JPEG and where the public sets were resampled; if most is, it is no mask
    soft = lossy or layout in ("swinyseg", "swimseg", "swinseg", "hyta")
    distance = np.abs(np.arange(256)[:, None] - np.array(list(codes)))
    odd = distance.min(axis=1) > (32 if soft else 0)
    if counts[odd].sum() > (values.size / 2 if soft else 0) or (soft and 0 < present[-1] < 64):
        raise DataError(f"{path}: has values {_some(present)}; a mask here has {_some(codes)}")
    return np.array(list(codes.values()), np.uint8)[distance.argmin(axis=1)][values]
