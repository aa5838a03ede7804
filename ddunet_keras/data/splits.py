"""Divides a dataset into train, validation and test, by named and repeatable protocols."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ddunet_keras.data.datasets import Dataset
from ddunet_keras.files import DataError, write_json

PROTOCOLS = ("paper", "capture", "date")
"""Names of the protocols of `make_split`, the most flattering first."""

_PARTS = ("train", "val", "test")
_SHARES = {"test": 0.15, "val": 0.10}
_MAX_BYTES = 64_000_000


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

    def __post_init__(self):
        if self.protocol not in (*PROTOCOLS, "custom"):
            raise DataError(
                f"protocol={self.protocol!r} is not known, choose from {', '.join(PROTOCOLS)}"
            )
        _check_seed(self.seed)
        for name in ("layout", "note"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"split: {name} must be text, not {getattr(self, name)!r:.60}")
        for part in _PARTS:
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
        """Raises DataError if a name is not in `dataset`, or if two parts share what the protocol
        keeps apart: a capture (`capture`), a date (`date`)."""
        if self.layout not in ("", dataset.layout):
            raise DataError(
                f"{dataset.root}: the split was made for layout {self.layout!r}, "
                f"this is {dataset.layout!r}"
            )
        seen = {}
        for part in _PARTS:
            for sample in map(dataset.find, getattr(self, part)):
                if self.protocol in ("capture", "date"):
                    group = _group(sample, self.protocol)
                    if seen.setdefault(group, part) != part:
                        raise DataError(
                            f"split: {self.protocol} {' '.join(map(str, group))} ({sample.name}) "
                            f"is in {seen[group]} and in {part}; make the split anew"
                        )

    def describe(self, dataset: Dataset) -> dict:
        """Counts per part, for a report: images, sources, captures, dates, day and night."""
        about = {}
        for part in _PARTS:
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

    def save(self, path) -> None:
        """Writes the split as JSON, for `Split.load`."""
        write_json(path, {"version": 1, **asdict(self)})

    @classmethod
    def load(cls, path) -> Split:
        """Reads what `save` wrote. `check` then tells whether it fits a dataset.

        Raises:
            DataError: no such file, not such a file, or a division that overlaps.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are too many for a split")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise DataError(f"{path}: not a readable JSON file") from None
        fields = {"version", *cls.__dataclass_fields__}
        if not isinstance(content, dict) or set(content) != fields:
            raise DataError(
                f"{path}: not a split; it must have the fields {', '.join(sorted(fields))}"
            )
        if content.pop("version") != 1:
            raise DataError(f"{path}: a split of another version; make it anew")
        try:
            return cls(**content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def trained_on(folder, dataset: Dataset) -> set[str] | None:
    """Sources of a dataset's images that the model in a folder of `ddunet train` has seen.

    Args:
        folder: with `split.json`, and `run.json`, which names what was trained on as well.
        dataset: where its layout is not that of the training, only the latter counts.

    Returns:
        Names of images, those of augmentations by what they were made from; None where there is no
        `split.json`.

    Raises:
        DataError: one of the files is damaged.
    """
    folder = Path(folder)
    if not (folder / "split.json").is_file():
        return None
    split, run = Split.load(folder / "split.json"), folder / "run.json"
    names = [*split.train] if split.layout in ("", dataset.layout) else []
    if run.is_file():
        try:
            settings = json.loads(run.read_text(encoding="utf-8"))["settings"]
            for other in settings.get("also", ()):
                names += other["images"] if other["layout"] == dataset.layout else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{run}: not a readable run") from None
    try:
        return {dataset.find(name).source for name in names}
    except DataError:  # names of another data set of this layout
        return set()


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

    >>> import tempfile
    >>> from ddunet_keras.data.datasets import open_dataset
    >>> from ddunet_keras.data.synthetic import write_synthetic
    >>> folder = tempfile.mkdtemp()
    >>> _ = write_synthetic(folder, count=20, image_size=(32, 32), seed=0)
    >>> split = make_split(open_dataset(folder), "paper", seed=0)
    >>> len(split.train), len(split.val), len(split.test)
    (18, 0, 2)
    """
    _check_seed(seed)
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol={protocol!r} is not known, choose from {', '.join(PROTOCOLS)}")
    divide = _paper if protocol == "paper" else _grouped
    parts, note = divide(dataset, protocol, np.random.default_rng(seed))
    split = Split(protocol, int(seed), **parts, layout=dataset.layout, note=note)
    split.check(dataset)
    return split


def _check_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise DataError(f"seed={seed!r} must be an integer from 0")


def _paper(dataset, protocol, random):
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


def _group(sample, protocol):
    return (sample.date, sample.time) if protocol == "capture" else (sample.date,)


def _grouped(dataset, protocol, random):
    undated = sum(not sample.date for sample in dataset)
    if undated:
        raise DataError(
            f"{dataset.root}: protocol {protocol!r} needs capture dates, {undated} of "
            f"{len(dataset)} images have none; add metadata.csv (Name,Date,Time) or use 'paper'"
        )
    sources = [sample for sample in dataset if sample.source == sample.name]
    originals = Counter(_group(sample, protocol) for sample in sources)
    nights = Counter(_group(sample, protocol) for sample in sources if sample.night)
    strata = [[], []]
    for group in sorted(originals, key=str):
        strata[2 * nights[group] > originals[group]].append(group)
    if min(map(len, strata)) < 3:
        strata = [strata[0] + strata[1]]
    if len(strata[0]) < 3:
        others = "paper" if protocol == "capture" else "capture or paper"
        raise DataError(
            f"{dataset.root}: protocol {protocol!r} needs three {protocol}s, found "
            f"{len(strata[0])}; use {others}"
        )
    part_of = {}
    for groups in strata:
        part_of |= _assign(groups, [originals[group] for group in groups], random)
    parts = {part: [] for part in _PARTS}
    for sample in dataset:
        # a date of augmentations alone, their originals removed, is fit for training only
        part = part_of.get(_group(sample, protocol), "train")
        if part == "train" or sample.source == sample.name:
            parts[part].append(sample.name)
    note = f"no {protocol} is shared between the parts"
    return {part: tuple(names) for part, names in parts.items()}, note


def _assign(groups, sizes, random, tries=2000, tolerance=0.01):
    """Parts by group: the first random order that meets the shares within tolerance, or the best.

    Groups are uneven (one date of SWIMSEG holds a quarter of it), and a part that is mostly one
    date says little about other dates: what a group holds of its part beyond two thirds counts as
    a miss, too.
    """
    least = 2 if len(groups) >= 6 else 1
    best, best_miss = {}, np.inf
    for _ in range(tries):
        order, parts, miss = random.permutation(len(groups)).tolist(), {}, 0.0
        for part, reserved in (("test", 2 * least), ("val", least)):
            target, taken = _SHARES[part] * sum(sizes), []
            while len(order) > reserved and (
                len(taken) < least
                or abs(sum(taken) + sizes[order[-1]] - target) < abs(sum(taken) - target)
            ):
                index = order.pop()
                parts[groups[index]] = part
                taken.append(sizes[index])
            miss += abs(sum(taken) - target) / sum(sizes)
            if least > 1:
                miss += max(0.0, max(taken) / sum(taken) - 2 / 3)
        if miss < best_miss:
            best, best_miss = parts | {groups[index]: "train" for index in order}, miss
        if miss <= tolerance:
            break
    return best
