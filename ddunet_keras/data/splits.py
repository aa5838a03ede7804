"""Divides a dataset into train, validation and test, by named and repeatable protocols."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddunet_keras.data.datasets import Dataset, Sample
from ddunet_keras.files import DataError, StrPath, read_json, write_json

PROTOCOLS = ("paper", "capture", "date")
"""Names of the protocols of `make_split`, the most flattering first."""

PARTS = ("train", "val", "test")
"""Names of the parts of a split."""

SHARES = {"test": 0.15, "val": 0.10}
"""Shares of the images that the protocols `capture` and `date` aim at; the rest is for training."""

FILE_VERSION = 1
"""Of the JSON that `Split.save` writes."""

TRIES = 2000
"""Random orders of the captures or dates that are tried for parts of the right size."""

TOLERANCE = 0.01
"""An order whose parts miss their shares by no more than this, in all, is taken at once."""

LARGEST_GROUP = 2 / 3
"""Share of a part that may come from one capture or date: more says little about others."""


@dataclass(frozen=True)
class Split:
    """Names of the images to train on, to select on and to report on.

    Attributes:
        protocol: one of `PROTOCOLS`, or `"custom"` for a division of your own.
        seed: that it was drawn with.
        train, val, test: names of samples; `val` may be empty.
        layout: of the dataset it was made for.
        note: what a reader of the numbers must know.

    Raises:
        DataError: a name stands twice, `train` or `test` is empty, or a field has a wrong type.
    """

    protocol: str
    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    layout: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in (*PROTOCOLS, "custom"):
            raise DataError(
                f"protocol={self.protocol!r} is not known, choose from {', '.join(PROTOCOLS)}"
            )
        _check_seed(self.seed)
        for name in ("layout", "note"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"split: {name} must be text, not {getattr(self, name)!r:.60}")
        for part in PARTS:
            names = getattr(self, part)
            if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
                raise DataError(f"split: {part} must be a list of names, not {names!r:.60}")
            object.__setattr__(self, part, tuple(names))
            if not names and part != "val":
                raise DataError(f"split: {part} is empty")
        counts = Counter((*self.train, *self.val, *self.test))
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(f"split: {len(twice)} names stand twice, the first is {twice[0]!r}")

    def with_validation(self) -> Split:
        """The same with the validation images among those to train on: nothing is selected then."""
        note = f"{self.note}; trained on the validation images, too".removeprefix("; ")
        return replace(self, train=self.train + self.val, val=(), note=note)

    def check(self, dataset: Dataset) -> None:
        """Tells whether the split fits a dataset.

        Raises:
            DataError: it was made for another layout, a name is not in `dataset`, or two parts
                share what the protocol keeps apart: a capture (`capture`), a date (`date`).
        """
        if self.layout not in ("", dataset.layout):
            raise DataError(
                f"{dataset.root}: the split was made for layout {self.layout!r}, "
                f"this is {dataset.layout!r}"
            )
        part_of: dict[tuple, str] = {}
        for part in PARTS:
            for name in getattr(self, part):
                sample = dataset.find(name)
                if self.protocol not in ("capture", "date"):
                    continue
                group = _group(sample, self.protocol)
                other = part_of.setdefault(group, part)
                if other != part:
                    raise DataError(
                        f"split: {self.protocol} {' '.join(map(str, group))} ({sample.name}) "
                        f"is in {other} and in {part}; make the split anew"
                    )

    def describe(self, dataset: Dataset) -> dict[str, dict[str, Any]]:
        """Counts per part, for a report: images, sources, captures, dates, day and night."""
        about = {}
        for part in PARTS:
            samples = [dataset.find(name) for name in getattr(self, part)]
            about[part] = {
                "images": len(samples),
                "sources": len({sample.source for sample in samples}),
                "captures": len({(s.date, s.time) for s in samples if s.date}),
                "dates": sorted({sample.date for sample in samples if sample.date}),
                "day": sum(sample.night is False for sample in samples),
                "night": sum(sample.night is True for sample in samples),
            }
        return about

    def save(self, path: StrPath) -> None:
        """Writes the split as JSON, for `Split.load`."""
        write_json(path, {"version": FILE_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: StrPath) -> Split:
        """Reads what `save` wrote. `check` then tells whether it fits a dataset.

        Raises:
            DataError: no such file, not such a file, or a division that overlaps.

        Example:

        >>> Split("custom", 0, train=["a", "b"], val=[], test=["c"]).save(tmp / "split.json")
        >>> Split.load(tmp / "split.json").train
        ('a', 'b')
        """
        content = read_json(path)
        expected = {"version", *(field.name for field in fields(cls))}
        if not isinstance(content, dict) or set(content) != expected:
            raise DataError(
                f"{path}: not a split; it must have the fields {', '.join(sorted(expected))}"
            )
        if content.pop("version") != FILE_VERSION:
            raise DataError(f"{path}: a split of another version; make it anew")
        try:
            return cls(**content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def trained_on(folder: StrPath, dataset: Dataset) -> set[str] | None:
    """Sources of a dataset's images that the model in a folder of `ddunet train` has seen.

    Args:
        folder: with `split.json`, and `run.json`, which names what was trained on as well.
        dataset: what was trained on counts where it has this layout, and most of its names are
            here; else it was another data set.

    Returns:
        Names of images, those of augmentations by what they were made from; None where there is no
        `split.json`.

    Raises:
        DataError: one of the files is damaged.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / "split.json"):
        return None
    split = Split.load(folder / "split.json")
    trainings = [split.train] if split.layout in ("", dataset.layout) else []
    if os.path.lexists(folder / "run.json"):
        trainings += _also_trained_on(folder / "run.json", dataset.layout)
    seen: set[str] = set()
    for names in trainings:
        found = [sample.source for sample in map(dataset.get, names) if sample is not None]
        if 2 * len(found) > len(names):  # some photos may have been removed since
            seen.update(found)
    return seen


def _also_trained_on(run, layout):
    """Of each other data set of this layout in a `run.json`, the names of the images."""
    content = read_json(run)
    try:
        also = content["settings"].get("also", ())
        return [list(other["images"]) for other in also if other["layout"] == layout]
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{run}: not a readable run of `ddunet train`") from None


def make_split(dataset: Dataset, protocol: str = "date", seed: int = 0) -> Split:
    """Divides a dataset.

    ========  ===================================================================================
    paper     train:test 9:1 over images, augmentations included: the dataset's own lists where it
              has them. Augmentations of one image lie on both sides, as published. `val` is empty:
              nothing may be selected on the test images.
    capture   train:val:test about 75:10:15 over captures (date and time): no photo is shared
    date      the same over dates: no sky is shared, so this is the honest number
    ========  ===================================================================================

    `capture` and `date` divide day and night apart, where each has three groups or more, and put
    augmentations of training images into `train` and no other augmentation anywhere.

    Args:
        dataset: from `open_dataset`.
        protocol: one of `PROTOCOLS`.
        seed: equal seeds give equal splits.

    Raises:
        DataError: the dataset lacks what the protocol needs; says which protocol it can have.

    Example:

    >>> dataset = dd.open_dataset(dd.write_synthetic(tmp / "skies", 20, (32, 32)))
    >>> split = make_split(dataset, "paper", seed=0)
    >>> len(split.train), len(split.val), len(split.test)
    (18, 0, 2)
    """
    _check_seed(seed)
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol={protocol!r} is not known, choose from {', '.join(PROTOCOLS)}")
    random = np.random.default_rng(seed)
    if protocol == "paper":
        parts, note = _divide_as_published(dataset, random)
    else:
        parts, note = _divide_by_group(dataset, protocol, random)
    split = Split(protocol, int(seed), **parts, layout=dataset.layout, note=note)
    split.check(dataset)
    return split


def _check_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise DataError(f"seed={seed!r} must be an integer from 0")


def _divide_as_published(dataset, random):
    """Parts and note of the protocol `paper`."""
    note = "no selection on the test images; "
    if len(dataset.lists) == 1:
        raise DataError(f"{dataset.root}: train.txt and val.txt: one is there, the other is not")
    if dataset.lists:
        note += "the dataset's own lists, with augmentations of one image in train and test"
        return {"train": dataset.lists["train"], "val": (), "test": dataset.lists["val"]}, note
    names = sorted(sample.name for sample in dataset)
    if len(names) < 2:
        raise DataError(f"{dataset.root}: {len(names)} image cannot be divided")
    count = max(1, round(len(names) / 10))
    test = {names[index] for index in random.permutation(len(names))[:count]}
    note += "at random over images: train and test may share a sky"
    train = tuple(name for name in names if name not in test)
    return {"train": train, "val": (), "test": tuple(sorted(test))}, note


def _group(sample: Sample, protocol: str) -> tuple:
    """What the protocol keeps in one part."""
    return (sample.date, sample.time) if protocol == "capture" else (sample.date,)


def _divide_by_group(dataset, protocol, random):
    """Parts and note of the protocols `capture` and `date`."""
    undated = sum(not sample.date for sample in dataset)
    if undated:
        raise DataError(
            f"{dataset.root}: protocol {protocol!r} needs capture dates, {undated} of "
            f"{len(dataset)} images have none; add metadata.csv (Name,Date,Time) or use 'paper'"
        )
    originals = [sample for sample in dataset if sample.source == sample.name]
    sizes = Counter(_group(sample, protocol) for sample in originals)
    part_of = {}
    for groups in _strata(dataset, protocol, originals, sizes):
        part_of |= _assign(groups, [sizes[group] for group in groups], random)
    parts = {part: [] for part in PARTS}
    for sample in dataset:
        # a date of augmentations alone, their originals removed, is fit for training only
        part = part_of.get(_group(sample, protocol), "train")
        if part == "train" or sample.source == sample.name:
            parts[part].append(sample.name)
    note = f"no {protocol} is shared between the parts"
    return {part: tuple(names) for part, names in parts.items()}, note


def _strata(dataset, protocol, originals, sizes):
    """The groups of the day and those of the night, or all of them where one kind has too few."""
    nights = Counter(_group(sample, protocol) for sample in originals if sample.night)
    day = []
    night = []
    for group in sorted(sizes, key=str):
        mostly_night = 2 * nights[group] > sizes[group]
        stratum = night if mostly_night else day
        stratum.append(group)
    if min(len(day), len(night)) >= len(PARTS):
        return [day, night]
    both = day + night
    if len(both) < len(PARTS):
        others = "paper" if protocol == "capture" else "capture or paper"
        raise DataError(
            f"{dataset.root}: protocol {protocol!r} needs three {protocol}s, found {len(both)}; "
            f"use {others}"
        )
    return [both]


def _assign(groups, sizes, random):
    """Parts by group: the first random order that misses the shares by little, or the best one.

    Groups are uneven (one date of SWIMSEG holds a quarter of it), and a part that is mostly one
    date says little about other dates: what a group holds of its part beyond `LARGEST_GROUP` counts
    as a miss, too.
    """
    least = 2 if len(groups) >= 2 * len(PARTS) else 1
    best = {}
    best_miss = np.inf
    for _ in range(TRIES):
        order = random.permutation(len(groups)).tolist()
        parts, miss = _deal(order, groups, sizes, least)
        if miss < best_miss:
            best = parts
            best_miss = miss
        if miss <= TOLERANCE:
            break
    return best


def _deal(order, groups, sizes, least):
    """Fills test, then validation, from the end of `order`; what is left is for training.

    Args:
        order: indices of the groups; used up.
        groups, sizes: and number of images in each.
        least: groups that each part must have.

    Returns:
        Part by group, and by how much sizes miss the shares, as a share of all images.
    """
    total = sum(sizes)
    parts = {}
    miss = 0.0
    # groups that must be left over for the parts that come later
    for part, reserved in (("test", 2 * least), ("val", least)):
        target = SHARES[part] * total
        taken = []
        while len(order) > reserved:
            size = sizes[order[-1]]
            comes_closer = abs(sum(taken) + size - target) < abs(sum(taken) - target)
            if len(taken) >= least and not comes_closer:
                break
            parts[groups[order.pop()]] = part
            taken.append(size)
        miss += abs(sum(taken) - target) / total
        if least > 1:
            miss += max(0.0, max(taken) / sum(taken) - LARGEST_GROUP)
    for index in order:
        parts[groups[index]] = "train"
    return parts, miss
