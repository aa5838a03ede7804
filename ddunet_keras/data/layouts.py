"""How data sets lie on disk: the public ones as published, and any folder of images and masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddunet_keras.files import IGNORE, DataError, list_folder

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that are taken for images and masks."""

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos")
MASK_FOLDERS = ("masks", "mask", "gtmaps", "gt", "labels", "label", "annotation", "annotations")
"""Names of the two folders where a data set follows no published layout, in any case."""

SHOWN = 5
"""Files, values and the like that a message lists before it says "..."."""

SKY_AND_CLOUD = {0: 0, 255: 1}
"""Values of a two-class mask, and the labels that they stand for."""


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        looks_like: an image and its mask, for messages.
        image_folders: names that the folder of images may have, in lower case.
        mask_folders: the same of the masks, by number of classes.
        name: regular expression that the images' names match, without file ending.
        mask_endings: what a mask's name may add to its image's, in lower case.
        codes: value in the mask -> label, by number of classes; of a folder of one's own it depends
            on the mask.
        night: whether all photos are taken at night; None if that is not known or differs.
        resampled: masks were resized by their authors, so that edges are gray.
        file_suffixes: endings of its files.
    """

    looks_like: str
    image_folders: tuple[str, ...]
    mask_folders: dict[int, tuple[str, ...]]
    name: str = "(?s:.+)"  # anything, line breaks included
    mask_endings: tuple[str, ...] = ("", "_gt")
    codes: dict[int, dict[int, int]] = field(default_factory=lambda: {2: SKY_AND_CLOUD})
    night: bool | None = None
    resampled: bool = False
    file_suffixes: tuple[str, ...] = IMAGE_SUFFIXES


LAYOUTS = {
    "swinyseg": Layout(
        "images/d0001.jpg + GTmaps/d0001.png",
        image_folders=("images",),
        mask_folders={2: ("gtmaps",)},
        name=r"(?P<source>[dn]\d{4})(?:_(?P<augmentation>[1-5]))?",
        resampled=True,
    ),
    "swimseg": Layout(
        "images/0001.png + GTmaps/0001_GT.png",
        image_folders=("images",),
        mask_folders={2: ("gtmaps",)},
        name=r"\d{4}",
        night=False,
        resampled=True,
    ),
    "swinseg": Layout(
        "images/001.jpg + GTmaps/001_GT.jpg",
        image_folders=("images",),
        mask_folders={2: ("gtmaps",)},
        name=r"\d{3}",
        night=True,
        resampled=True,
    ),
    "hyta": Layout(
        "images/B1.jpg + 2GT/B1_GT.jpg or 3GT/B1_3GT.png",
        image_folders=("images",),
        mask_folders={2: ("2gt",), 3: ("3gt",)},
        mask_endings=("_gt", "_2gt", "_3gt"),
        codes={2: SKY_AND_CLOUD, 3: {0: 0, 126: 1, 255: 2}},
        resampled=True,
    ),
    "wsiseg": Layout(
        "'whole sky images/ASC100-1006_001' + annotation/ASC100-1006_001",
        image_folders=("whole sky images", "images"),
        mask_folders={2: ("annotation",)},
        name=r"ASC100-1006_\d+",
        codes={2: {0: IGNORE, 100: 0, 255: 1}},
        night=False,
        file_suffixes=(*IMAGE_SUFFIXES, ""),
    ),
    "folder": Layout(
        "images/NAME.jpg + masks/NAME.png",
        image_folders=IMAGE_FOLDERS,
        mask_folders=dict.fromkeys(range(2, 256), MASK_FOLDERS),
        mask_endings=("", "_gt", "_mask", "_label"),
    ),
}
"""Layouts that `open_dataset` knows, by name; `folder` is any folder of images and masks."""


def detect_layout(root: Path) -> str:
    """Name of the layout that a folder has.

    Raises:
        DataError: it has none; the message says what is there and what would do.
    """
    entries = list_folder(root)
    layout = _recognize(root)
    if layout is not None:
        return layout
    if not entries:
        raise DataError(f"{root}: the folder is empty")
    for folder in (*entries, root.resolve().parent):
        if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK) and _recognize(folder):
            hint = f"did you mean {folder}?"
            break
    else:
        known = [f"{spec.looks_like} ({name})" for name, spec in LAYOUTS.items()]
        hint = f"known are {'; '.join(known)}"
    names = list_some(path.name for path in entries)
    raise DataError(f"{root}: no known layout, found {names}; {hint}")


def _recognize(root):
    """Name of the layout of a folder, or None."""
    images = _subfolders(root, (*IMAGE_FOLDERS, *LAYOUTS["wsiseg"].image_folders))
    if images and _subfolders(root, ("2gt", "3gt")):
        return "hyta"
    if not images or not _subfolders(root, MASK_FOLDERS):
        return None
    names = [stem(path.name) for path in list_folder(images[0])]
    for layout in ("swinyseg", "swimseg", "swinseg", "wsiseg"):
        spec = LAYOUTS[layout]
        fits = sum(re.fullmatch(spec.name, name) is not None for name in names)
        # the greater part decides: one stray file must not turn augmentations into images
        if _subfolders(root, spec.mask_folders[2]) and 2 * fits > len(names):
            return layout
    return "folder"


def _subfolders(root, names):
    return [p for p in list_folder(root) if p.name.lower() in names and os.path.isdir(p)]


def find_pairs(root: Path, layout: str, num_classes: int) -> dict[str, tuple[Path, Path]]:
    """Image and mask of each name, in the order of the names.

    Raises:
        DataError: a folder is missing, an image has no mask or a mask no image, two files have one
            name, or names are not those of the layout.
    """
    spec = LAYOUTS[layout]
    images = _files_by_name(_subfolder(root, layout, spec.image_folders), spec)
    masks = _files_by_name(_subfolder(root, layout, spec.mask_folders[num_classes]), spec)
    foreign = [name for name in images if not re.fullmatch(spec.name, name)]
    if foreign:
        raise DataError(
            f"{root}: {list_some(foreign)} not named as in {layout} ({spec.looks_like}); "
            "move them away, or use layout='folder'"
        )
    mask_of = _masks_by_image(root, images, masks, spec.mask_endings)
    return {name: (images[name], mask_of[name]) for name in sorted(images)}


def _subfolder(root, layout, names):
    found = _subfolders(root, names)
    if len(found) == 1:
        return found[0]
    if found:
        listing = ", ".join(path.name for path in found)
        raise DataError(f"{root}: {listing}: which one is meant? Move all but one away")
    raise DataError(
        f"{root}: no folder {' or '.join(names)}, layout {layout!r} has "
        f"{LAYOUTS[layout].looks_like}"
    )


def _files_by_name(folder, spec):
    """The images or masks in a folder by their names without ending."""
    files = {}
    for path in list_folder(folder):
        # links that lead nowhere are taken, too, so that reading them names them
        if os.path.isdir(path) or path.suffix.lower() not in spec.file_suffixes:
            continue
        other = files.setdefault(stem(path.name), path)
        if other is not path:
            raise DataError(f"{folder}: {other.name} and {path.name} share a name; keep one")
    if not files:
        raise DataError(f"{folder}: holds no images ({' '.join(IMAGE_SUFFIXES)})")
    return files


def _masks_by_image(root, images, masks, endings):
    mask_of = {}
    for mask, path in masks.items():
        candidates = [mask[: len(mask) - len(e)] for e in endings if mask.lower().endswith(e)]
        image = next((name for name in candidates if name in images), mask)
        other = mask_of.setdefault(image, path)
        if other is not path:
            raise DataError(f"{root}: {other.name} and {path.name} are masks of {image}; keep one")
    without_mask = images.keys() - mask_of.keys()
    if without_mask:
        listing = list_some(without_mask)
        raise DataError(f"{root}: images without a mask: {listing}; add it or remove them")
    without_image = mask_of.keys() - images.keys()
    if without_image:
        listing = list_some(without_image)
        raise DataError(f"{root}: masks without an image: {listing}; add it or remove them")
    return mask_of


def stem(name: str) -> str:
    """A file's name without the ending of an image; other dots belong to the name.

    Example:

    >>> stem("2024.01.02.jpg")
    '2024.01.02'
    """
    head, dot, suffix = name.rpartition(".")
    return head if dot + suffix.lower() in IMAGE_SUFFIXES else name


def list_some(items: Iterable[Any]) -> str:
    """How many there are, and the first of them in order, for a message.

    Example:

    >>> list_some("gfedcba")
    '7 (a, b, c, d, e, ...)'
    """
    names = [str(item) for item in sorted(items)]
    first = ", ".join(names[:SHOWN])
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} ({first}{more})"
