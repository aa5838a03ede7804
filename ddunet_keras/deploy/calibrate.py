"""The photos of a conversion: those that calibrate, and others that the file is verified on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ddunet_keras.files import DataError
from ddunet_keras.images import resize_image, resize_labels
from ddunet_keras.sky.reading import read_image

OTHERS_SHARE = 4
"""A further data set gives one photo for so many of the main one's."""

HELD_BACK = 5
"""Of photos without masks, one in so many is kept to verify on."""


@dataclass(frozen=True)
class Photos:
    """The images of a conversion, at the size of the network, and where they came from.

    Attributes:
        calibration: uint8 (n, height, width, 3), from the training part alone.
        test: uint8 (m, height, width, 3), that the file is verified on.
        masks: uint8 (m, height, width) labels of `test`, or None for photos without masks.
        about: settings, for the report.
        left_out: a line for each photo that could not be read.
    """

    calibration: np.ndarray
    test: np.ndarray
    masks: np.ndarray | None
    about: dict
    left_out: tuple[str, ...] = ()


def labelled_photos(dataset, split, size, *, count=200, verify=32, seed=0, also=()) -> Photos:
    """Photos from a data set with masks: `count` to calibrate, from the training part of `split`,
    and `verify` (0 for all) to verify on, from its test part.

    A photo that cannot be read is left out and named in `Photos.left_out`.

    Args:
        dataset: from `ddunet_keras.open_dataset`.
        split: a `Split` of it.
        size: (height, width) that the photos are resized to.
        also: pairs of a further dataset and its `Split`; up to a quarter of `count` more photos to
            calibrate with, from the training part of each.
        seed: of what is drawn.

    Raises:
        DataError: a split does not fit its data set, or no photo of a part can be read.
    """
    split.check(dataset)
    left_out: list[str] = []
    names = _drawn(split.test, verify, seed)
    pairs = _readable(names, lambda name: dataset.load(dataset.find(name)), left_out, "verify")
    calibration = [calibration_images(dataset, split, size, count, seed, left_out)]
    for other, part in also:
        part.check(other)
        share = -(-count // OTHERS_SHARE)
        calibration.append(calibration_images(other, part, size, share, seed, left_out))
    images = np.concatenate(calibration)
    if also:  # mixed evenly, as some steps use the first or every k-th
        images = np.random.default_rng(seed).permutation(images)
    about = {
        "data": ", ".join([dataset.root.name, *(other.root.name for other, _ in also)]),
        "protocol": split.protocol,
        "split_seed": split.seed,
        "calibrated_on": f"{len(images)} training images",
        "verified_on": f"{len(pairs)} of {len(split.test)} test images",
    }
    test = np.stack([resize_image(image, size) for image, _ in pairs])
    masks = np.stack([resize_labels(labels, size) for _, labels in pairs])
    return Photos(images, test, masks, about, tuple(left_out))


def unlabelled_photos(paths, size, *, count=200, verify=32, seed=0) -> Photos:
    """Photos without masks, such as those of a camera: a seeded fifth of them (at most `verify`,
    where that is not 0) is kept from calibration, to verify on.

    Args:
        paths: at least two files that can be read; the others are left out and named.

    Raises:
        DataError: there are fewer.
    """
    paths = list(paths)
    left_out: list[str] = []
    order = np.random.default_rng(seed).permutation(len(paths))
    held = max(1, len(paths) // HELD_BACK)
    held = min(held, verify) if verify else held
    drawn = [paths[index] for index in order[: held + count]]
    images = _readable(drawn, lambda path: resize_image(read_image(path), size), left_out, "read")
    if len(images) < 2:
        raise DataError(
            f"calibration needs at least 2 photos, better 100; received {len(images)} that can be "
            f"read{_reasons(left_out)}"
        )
    held = min(held, len(images) - 1)
    about = {
        "data": "photos without masks",
        "calibrated_on": f"{len(images) - held} photos",
        "verified_on": f"{held} other photos",
    }
    calibration, test = np.stack(images[held:]), np.stack(images[:held])
    return Photos(calibration, test, None, about, tuple(left_out))


def calibration_images(dataset, split, size, count=200, seed=0, left_out=None) -> np.ndarray:
    """Photos from the training part of a split, of day and night in the proportion they have there.

    Args:
        dataset, split, size, seed: as in `labelled_photos`.
        count: number of photos; all where there are fewer.
        left_out: list that gets a line for each photo that cannot be read.

    Returns:
        uint8 (n, height, width, 3).

    Raises:
        DataError: the training part is empty, or none of the photos can be read.
    """
    random = np.random.default_rng(seed)
    strata: dict = {}
    for name in split.train:
        strata.setdefault(dataset.find(name).night, []).append(name)
    if not strata:
        raise DataError(f"{dataset.root}: the split has no training images to calibrate with")
    # systematic: shuffled within day and night, one behind the other, every k-th is taken
    names = [name for stratum in strata.values() for name in random.permutation(stratum)]
    places = np.linspace(0, len(names), min(count, len(names)), endpoint=False)
    chosen = [names[int(place)] for place in places]
    lines: list[str] = [] if left_out is None else left_out

    def load(name):
        image, _ = dataset.load(dataset.find(name))
        return resize_image(image, size)

    return np.stack(_readable(chosen, load, lines, "calibrate"))


def evenly_spaced(images, count) -> np.ndarray:
    """Some of the images, evenly spaced: photos come sorted, those of the day first."""
    places = np.linspace(0, len(images), min(count, len(images)), endpoint=False)
    return images[places.astype(int)]


def _drawn(names, count, seed) -> list:
    names = list(names)
    if not count or count >= len(names):
        return names
    chosen = np.random.default_rng(seed).choice(len(names), count, replace=False)
    return [names[index] for index in sorted(chosen)]


def _readable(items: Iterable, load: Callable, left_out: list[str], purpose: str) -> list:
    """What `load` gives for each item; those whose files are damaged go to `left_out`."""
    found, damaged = [], []
    for item in items:
        try:
            found.append(load(item))
        except DataError as error:
            damaged.append(str(error))
    left_out += damaged
    if damaged and not found:
        raise DataError(f"no photo to {purpose} with can be read{_reasons(damaged)}")
    return found


def _reasons(lines) -> str:
    if not lines:
        return ""
    more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
    return f" ({lines[0]}{more})"
