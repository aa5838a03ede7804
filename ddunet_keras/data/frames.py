"""Frames of one's own camera, each with a mask, or only with a word or a number for its sky."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ddunet_keras.data.datasets import Dataset, Sample, open_dataset
from ddunet_keras.data.layouts import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LAYOUTS,
    MASK_FOLDERS,
    list_some,
)
from ddunet_keras.data.metadata import NAME_COLUMNS, image_stem, read_captures, read_table
from ddunet_keras.files import IGNORE, DataError, StrPath, list_folder
from ddunet_keras.prediction import FITS_SUFFIXES
from ddunet_keras.sky import check_horizon, horizon_mask
from ddunet_keras.sky.reading import read_photo

FRAMES_FILE = "frames.csv"
"""Name of the table that says what sky each frame shows, in any case."""

SKY_COLUMNS = ("sky", "cover")
"""Headings of the column with the word or number."""

COVERS = {"clear": 0.0, "overcast": 1.0}
"""Words that tell the cloud cover of a whole frame, a fraction."""

LEAST_GROUPS = 3
"""Days that there must be to hold back whole ones: of two, one is half of all."""

GAP_HOURS = 3
"""Without a frame, after which a new day, or a new night, begins."""

BLOCKS = 8
"""Blocks that frames without dates are divided into, in the order of their names."""


@dataclass(frozen=True)
class Frame:
    """A frame and what is known of its sky.

    Attributes:
        name: of the image, without its ending.
        image: its file.
        cover: cloud cover as a fraction in [0, 1]; None where there is a mask.
        mask: its file; None where only the cover is known.
        date, time: as in `Sample`, None if not known.
    """

    name: str
    image: Path
    cover: float | None = None
    mask: Path | None = None
    date: str | None = None
    time: str | None = None


@dataclass(frozen=True, eq=False)
class CameraFrames:
    """The frames of a folder, in the order of their names; made by `open_frames`.

    Attributes:
        root: the folder.
        frames: those that can be learned from.
        left_out: a line for each kind of image that cannot.
        layout: of the masks; "folder" where there are none.
        horizon: where a frame shows sky, as `horizon_mask` takes it.
    """

    root: Path
    frames: tuple[Frame, ...]
    left_out: tuple[str, ...] = ()
    layout: str = "folder"
    horizon: Any = None

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Reads a frame.

        Returns:
            image: uint8 (height, width, 3), RGB, upright, black outside the horizon.
            labels: uint8 (height, width), 0 sky, 1 cloud, `IGNORE` (255) outside the horizon, where
                the frame is transparent, and where the mask has none of both. Where only the cover
                is known, they are 1 in an overcast frame, else 0: of a cover in between, they tell
                only which pixels count.

        Raises:
            DataError: a file is unreadable, mask and image differ in size, or the mask has
                unexpected values.
            ValueError: the horizon does not fit.
        """
        if frame.mask is None:
            photo = read_photo(frame.image)
            image = photo.image
            labels = np.full(image.shape[:2], frame.cover == 1, np.uint8)
            if photo.valid is not None:
                labels[~photo.valid] = IGNORE
        else:
            dataset = Dataset(self.layout, self.root, (), num_classes=2)
            image, labels = dataset.load(Sample(frame.name, frame.image, frame.mask))
        if self.horizon is None:
            return image, labels
        is_sky = horizon_mask(self.horizon, image)
        return np.where(is_sky[..., None], image, 0), np.where(is_sky, labels, IGNORE)

    def describe(self) -> str:
        """How many frames of which kind there are, in a line.

        Example:

        >>> frames = tuple(Frame(name, Path(f"{name}.jpg"), cover=0.0) for name in ("a", "b"))
        >>> CameraFrames(Path(), frames).describe()
        'frames: 2 clear'
        """
        numbers = [100 * (f.cover or 0.0) for f in self.frames if _kind(f) == NUMBER]
        listed = []
        for kind, count in Counter(_kind(frame) for frame in self.frames).items():
            between = f" of {min(numbers):g} to {max(numbers):g} %" if kind == NUMBER else ""
            listed.append(f"{count} {kind}{between}")
        return f"frames: {', '.join(listed)}"


NUMBER = "with a cover"


def _kind(frame):
    if frame.mask is not None:
        return "with a mask"
    words = {cover: word for word, cover in COVERS.items()}
    return words.get(frame.cover, NUMBER)


def open_frames(path: StrPath, layout: str | None = None, horizon: Any = None) -> CameraFrames:
    """Opens a folder with frames of one camera.

    Two kinds of folders are read. A data set that `open_dataset` reads has a mask for each image.
    A folder with `frames.csv` has a word or a number for each: the columns are `name` and `sky`
    (or `cover`); `sky` is clear, overcast, or the cloud cover in percent, 0 to 100. Its images lie
    in the folder itself or in `images`. Frames with another word, such as partly, are left out. An
    image that has a mask in `masks` as well, or instead, is learned from with its mask.

    `metadata.csv` (Name, Date, Time) tells when frames were taken, as in a data set.

    Args:
        path: the folder.
        layout: of a data set with masks; found if None.
        horizon: where all frames show sky, as `horizon_mask` takes it; outside they become black.

    Raises:
        DataError: the folder, `frames.csv` or the horizon cannot be used; says what is wrong.

    Example:

    >>> from ddunet_keras.files import write_image
    >>> for name in ("a", "b", "c"):
    ...     write_image(tmp / f"{name}.png", np.zeros((16, 16, 3), np.uint8))
    >>> _ = (tmp / "frames.csv").write_text("name,sky\\na,clear\\nb,37\\nc,partly\\n")
    >>> frames = open_frames(tmp)
    >>> frames.describe()
    'frames: 1 clear, 1 with a cover of 37 to 37 %'
    >>> frames.left_out
    ("1 (c) whose sky is 'partly'",)
    """
    root = Path(os.path.expanduser(path))
    check_horizon(horizon)
    tables = [entry for entry in list_folder(root) if entry.name.lower() == FRAMES_FILE]
    if not tables:
        try:
            dataset = open_dataset(root, layout)
        except DataError as error:
            raise DataError(f"{error}; or give words in {FRAMES_FILE} (name,sky)") from None
        with_masks = tuple(
            Frame(s.name, s.image, mask=s.mask, date=s.date, time=s.time) for s in dataset
        )
        return CameraFrames(root, with_masks, layout=dataset.layout, horizon=horizon)
    if layout not in (None, "folder"):
        raise DataError(f"{root}: has {FRAMES_FILE}, so it is no {layout}; move one of them away")
    images = _images(root)
    masks = _masks(root, images)
    covers, left_out = _read_covers(tables[0], images, masks)
    captures = read_captures(root, images.keys())
    unlabelled = images.keys() - covers.keys() - masks.keys() - left_out.keys()
    listed = [
        f"{list_some(name for name in left_out if left_out[name] == word)} whose sky is {word!r}"
        for word in sorted(set(left_out.values()))
    ]
    if unlabelled:
        listed.append(f"{list_some(unlabelled)} without a word, number or mask")
    frames = []
    for name in sorted(covers.keys() | masks.keys()):
        date, time = captures.get(name, (None, None))
        mask = masks.get(name)
        cover = covers[name] if mask is None else None
        frames.append(Frame(name, images[name], cover, mask, date, time))
    return CameraFrames(root, tuple(frames), tuple(listed), horizon=horizon)


def _images(root):
    """The images of a folder and of its `images`, by name without ending."""
    return _files_by_name([root, *_subfolders(root, IMAGE_FOLDERS)])


def _masks(root, images):
    """The masks of those images that have one, by the image's name."""
    masks = {}
    for name, path in _files_by_name(_subfolders(root, MASK_FOLDERS)).items():
        endings = LAYOUTS["folder"].mask_endings
        candidates = [name[: len(name) - len(e)] for e in endings if name.lower().endswith(e)]
        image = next((candidate for candidate in candidates if candidate in images), None)
        if image is None:
            raise DataError(f"{path}: a mask without an image; add the image or remove the mask")
        masks[image] = path
    return masks


def _subfolders(root, names):
    return [p for p in list_folder(root) if p.name.lower() in names and os.path.isdir(p)]


def _files_by_name(folders):
    files: dict[str, Path] = {}
    for folder in folders:
        for path in list_folder(folder):
            is_image = path.name.lower().endswith((*IMAGE_SUFFIXES, *FITS_SUFFIXES))
            if not is_image or os.path.isdir(path):
                continue
            other = files.setdefault(image_stem(path.name), path)
            if other is not path:
                raise DataError(f"{path}: has the name of {other}; keep one of them")
    return files


def _read_covers(path, images, masks):
    """Cloud covers by name, and the words that tell none, by name."""
    header, rows = read_table(path)
    name_column = next((name for name in NAME_COLUMNS if name in header), None)
    sky_column = next((name for name in SKY_COLUMNS if name in header), None)
    if name_column is None or sky_column is None or len(set(header)) < len(header):
        raise DataError(
            f"{path}: needs a header with the columns name and sky, each once, found "
            f"{', '.join(header[:8]) or 'nothing'}"
        )
    words: dict[str, str] = {}
    for line, cells in rows:
        name = image_stem(cells[name_column])
        if name not in images:
            raise DataError(f"{path}: line {line}: no image {cells[name_column]!r} in the folder")
        word = cells[sky_column].lower()
        if words.setdefault(name, word) != word:
            raise DataError(f"{path}: line {line} gives {name} a second sky; keep one")
    if not words and not masks:
        raise DataError(f"{path}: has no rows; give a word or a number for each frame")
    covers = {name: _cover(word, path, name) for name, word in words.items()}
    known = {name: cover for name, cover in covers.items() if cover is not None}
    left_out = {name: words[name] for name in covers if name not in known and name not in masks}
    _refuse_fractions(known.values(), path)
    if not known and not masks:
        raise DataError(
            f"{path}: no frame is {' or '.join(COVERS)} or has a cover in percent, found "
            f"{list_some(set(words.values()))}"
        )
    return known, left_out


def _cover(word, path, name):
    """Cloud cover, a fraction, that a word or a number of percent stands for; None if none."""
    if word in COVERS:
        return COVERS[word]
    try:
        percent = float(word.removesuffix("%"))
    except ValueError:
        return None
    if not 0 <= percent <= 100:
        raise DataError(f"{path}: {name} has a cover of {word}, expected percent from 0 to 100")
    return percent / 100


def _refuse_fractions(covers, path):
    """Refuses numbers that are all 1 or less: no percents."""
    between = [100 * cover for cover in covers if 0 < cover < 1]
    if between and max(between) <= 1:
        raise DataError(
            f"{path}: the highest cover is {max(between):g} %; covers are in percent, 0 to 100, "
            "and not fractions"
        )


def hold_back(frames: Sequence[Frame], share: float) -> tuple[list[Frame], list[Frame], str]:
    """Divides frames into those to train on and those to report on.

    Whole days or nights are held back, between which there are `GAP_HOURS` without a frame, where
    the times are known; else whole dates; where there are fewer than `LEAST_GROUPS`, blocks of
    frames in the order of their names, as frames with neighbouring names mostly show one sky. They
    are evenly spaced, and nothing is random.

    Args:
        frames: in the order of their names.
        share: of the frames to hold back, from 0 (none) to 0.5; at least one frame is.

    Returns:
        frames to train on, frames held back, and a line that says how they were divided.

    Raises:
        DataError: there are fewer than two frames, or none with a share of 0.

    Example:

    >>> frames = [Frame(f"{hour:02d}", Path(f"{hour:02d}.jpg"), cover=0.0) for hour in range(8)]
    >>> train, held, note = hold_back(frames, 0.25)
    >>> [frame.name for frame in held], note
    (['00', '04'], '2 of 8 frames are held back, as 2 of 8 blocks in the order of names')
    """
    least = 2 if share else 1
    if len(frames) < least:
        raise DataError(
            f"frames to learn from: {len(frames)}, needed: {least} or more (one is held back to "
            "report on); 20 are a good start"
        )
    if not share:
        return list(frames), [], "no frame is held back: the scores are of frames trained on"
    groups, kind = _groups(frames)
    wanted = share * len(frames)
    count = max(1, round(share * len(groups)))
    best: list[int] = []
    best_miss = float("inf")
    for first in range(len(groups)):
        chosen = sorted({(first + len(groups) * k // count) % len(groups) for k in range(count)})
        miss = abs(sum(len(groups[index]) for index in chosen) - wanted)
        if miss < best_miss:
            best = chosen
            best_miss = miss
    held = [frame for index in best for frame in groups[index]]
    names = {frame.name for frame in held}
    train = [frame for frame in frames if frame.name not in names]
    note = (
        f"{len(held)} of {len(frames)} frames are held back, as {len(best)} of {len(groups)} {kind}"
    )
    return train, held, note


def _groups(frames):
    """Groups of frames that may not be divided, in order, and what they are."""
    for kind, keys in (("days or nights", _days(frames)), ("dates", [f.date for f in frames])):
        distinct = [] if None in keys else sorted(set(keys))
        if len(distinct) >= LEAST_GROUPS:
            groups = [
                [frame for frame, key in zip(frames, keys, strict=True) if key == group]
                for group in distinct
            ]
            return groups, kind
    count = min(BLOCKS, len(frames))
    blocks = np.array_split(np.arange(len(frames)), count)
    return [[frames[i] for i in block] for block in blocks], "blocks in the order of names"


def _days(frames):
    """The number of each frame's day or night, or None where its time is not known."""
    times = [_moment(frame) for frame in frames]
    numbers = {}
    number = 0
    before = None
    for time in sorted({time for time in times if time is not None}):
        if before is not None and time - before > timedelta(hours=GAP_HOURS):
            number += 1
        numbers[time] = number
        before = time
    return [numbers.get(time) for time in times]


def _moment(frame):
    digits = re.sub("[-:.]", "", frame.time or "")
    try:
        return datetime.strptime(f"{frame.date}{digits}", "%Y%m%d%H%M%S")
    except ValueError:
        return None
