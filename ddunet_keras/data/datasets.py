"""Reads the public sky and cloud datasets as published, and any folder of images and masks."""

from __future__ import annotations

import difflib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ddunet_keras.data.layouts import (
    LAYOUTS,
    SKY_AND_CLOUD,
    detect_layout,
    find_pairs,
    list_some,
    stem,
)
from ddunet_keras.data.metadata import read_captures
from ddunet_keras.files import IGNORE, DataError, StrPath, read_gray, read_text
from ddunet_keras.images import rotation_matrix, warp
from ddunet_keras.sky.reading import read_photo

JPEG_START = b"\xff\xd8"
"""First bytes of a JPEG file, whatever its name ends in."""

EDGE_TOLERANCE = 32
"""How far a value of a JPEG or resampled mask may lie from its code; edges lie further."""

DARKEST_CLOUD = 64
"""Least highest value of a JPEG or resampled mask that is not all sky."""


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

    def __post_init__(self) -> None:
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
        lists: names in `train.txt` and `val.txt` where a SWINySEG folder has them, by `"train"`
            and `"val"`.
    """

    layout: str
    root: Path
    samples: tuple[Sample, ...]
    num_classes: int
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
        sample = self.get(name)
        if sample is not None:
            return sample
        near = difflib.get_close_matches(str(name), self._by_name, n=3)
        hint = f"nearest: {', '.join(near)}" if near else "no name is near"
        raise DataError(f"{self.root}: no image named {name!r} among {len(self)}; {hint}")

    def get(self, name: str) -> Sample | None:
        """What `find` finds, or None; quick where many names may be missing."""
        if not isinstance(name, str):
            return None
        if name in self._by_name:
            return self._by_name[name]
        match = re.fullmatch(LAYOUTS["swinyseg"].name, name)
        if self.layout == "swinyseg" and match and match["source"] in self._by_name:
            source = self._by_name[match["source"]]
            return replace(source, name=name, augmentation=int(match["augmentation"]))
        return None

    def load(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Reads a sample.

        Returns:
            image: uint8 (height, width, 3), RGB, upright.
            labels: uint8 (height, width), class index or `IGNORE` (255), also where the image is
                transparent.

        Raises:
            DataError: a file is unreadable, the sizes differ, or the mask has unexpected values.
        """
        photo = read_photo(sample.image)
        image = photo.image
        values = read_gray(sample.mask, palette="mask" if self.num_classes == 2 else "index")
        height, width = image.shape[:2]
        mask_height, mask_width = values.shape
        if (height, width) != (mask_height, mask_width):
            advice = "they must agree"
            if (height, width) == (mask_width, mask_height):
                advice = "an EXIF tag turns the photo upright: turn the mask, too"
            raise DataError(
                f"{sample.mask}: mask of {mask_width}x{mask_height} for an image of "
                f"{width}x{height} (width x height); {advice}"
            )
        labels = _labels(values, sample.mask, self.layout, self.num_classes)
        if photo.valid is not None:  # transparent: not sky
            labels = np.where(photo.valid, labels, np.uint8(IGNORE))
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
        if len(problems) == 1:
            raise DataError(problems[0])
        if problems:
            others = f"and {len(problems) - 1} more of {len(self)} images"
            raise DataError(f"{problems[0]} ({others})")


class Mixture:
    """Concatenated datasets, for a `Pipeline` to train on together.

    A name is a pair: index of the dataset, name within it.

    Example:

    >>> skies = [dd.open_dataset(dd.write_synthetic(tmp / name, 2, (32, 32))) for name in "ab"]
    >>> both = Mixture(*skies)
    >>> image, labels = both.load(both.find((1, "0001")))
    >>> image.shape
    (32, 32, 3)
    """

    def __init__(self, *datasets: Dataset) -> None:
        self.datasets = datasets

    def find(self, name: tuple[int, str]) -> tuple[Dataset, Sample]:
        """The sample of that name, with its dataset."""
        index, name_within = name
        dataset = self.datasets[index]
        return dataset, dataset.find(name_within)

    def load(self, sample: tuple[Dataset, Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels, as `Dataset.load`."""
        dataset, own_sample = sample
        return dataset.load(own_sample)


def open_dataset(path: StrPath, layout: str | None = None, num_classes: int = 2) -> Dataset:
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

    >>> dataset = open_dataset(dd.write_synthetic(tmp / "skies", count=3, image_size=(48, 64)))
    >>> image, labels = dataset.load(dataset.samples[0])
    >>> dataset.layout, len(dataset), image.shape, labels.shape
    ('folder', 3, (48, 64, 3), (48, 64))
    """
    root = Path(os.path.expanduser(path))
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"layout={layout!r} is not known, choose from {', '.join(LAYOUTS)}")
    if os.path.isfile(root):
        raise DataError(f"{root}: is a file, give the folder that holds the images and masks")
    layout = layout or detect_layout(root)
    spec = LAYOUTS[layout]
    if not isinstance(num_classes, int) or num_classes not in spec.mask_folders:
        known = "2 to 255" if layout == "folder" else " or ".join(map(str, spec.mask_folders))
        raise DataError(f"num_classes={num_classes!r}, but layout {layout!r} has {known}")
    pairs = find_pairs(root, layout, num_classes)
    captures = read_captures(root, pairs.keys())
    samples = []
    for name, (image, mask) in pairs.items():
        source = name
        night = spec.night
        if layout == "swinyseg":
            source = name.partition("_")[0]
            night = name.startswith("n")
        date, time = captures.get(source) or captures.get(name) or (None, None)
        samples.append(Sample(name, image, mask, date, time, night, source=source))
    lists = _read_lists(root) if layout == "swinyseg" else {}
    return Dataset(layout, root, tuple(samples), num_classes, lists)


def _read_lists(root):
    """Names in `train.txt` and `val.txt`, those that are there."""
    lists = {}
    for part in ("train", "val"):
        path = root / f"{part}.txt"
        if os.path.lexists(path):
            lines = [line.strip() for line in read_text(path).splitlines()]
            lists[part] = tuple(stem(line) for line in lines if line)
    return lists


def _labels(values, path, layout, num_classes):
    """Labels from a mask's values, through a table of 256 entries."""
    spec = LAYOUTS[layout]
    counts = np.array(Image.fromarray(values).histogram())
    present = np.flatnonzero(counts)
    is_jpeg = _is_jpeg(path)
    if layout != "folder":
        codes = spec.codes[num_classes]
    elif num_classes == 2:
        codes = _folder_codes(is_jpeg, has_ones=1 in present)
    elif is_jpeg:
        raise DataError(f"{path}: JPEG changes the values of {num_classes} classes; use PNG")
    else:
        codes = {index: index for index in range(num_classes)} | {IGNORE: IGNORE}

    has_edges = is_jpeg or spec.resampled
    distance = np.abs(np.arange(256)[:, None] - np.array(list(codes)))
    is_odd = distance.min(axis=1) > (EDGE_TOLERANCE if has_edges else 0)
    # gray edges are admitted up to half of the pixels: beyond that it is a photo
    too_many = counts[is_odd].sum() > (values.size / 2 if has_edges else 0)
    # a mask of class indices would be taken for a clear sky
    too_dark = has_edges and 0 < present[-1] < DARKEST_CLOUD
    if too_many or too_dark:
        raise DataError(
            f"{path}: has values {list_some(present)}; a mask here has {list_some(codes)}"
        )
    labels = np.array(list(codes.values()), np.uint8)
    return labels[distance.argmin(axis=1)][values]


def _is_jpeg(path):
    with open(path, "rb") as file:
        return file.read(len(JPEG_START)) == JPEG_START


def _folder_codes(is_jpeg, has_ones):
    """Codes of a two-class mask in a folder of one's own: cloud is 255 or, in some, 1."""
    if is_jpeg:
        return SKY_AND_CLOUD
    if has_ones:
        return {0: 0, 1: 1, 128: IGNORE}
    return SKY_AND_CLOUD | {128: IGNORE}


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


def swinyseg_draw(
    seed: int | np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
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
