"""Scores of a model on the frames of single cameras, which have masks or a word for each sky."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddunet_keras import metrics
from ddunet_keras.data.datasets import Dataset, open_dataset
from ddunet_keras.evaluation import markdown_table
from ddunet_keras.files import DataError, StrPath, read_text
from ddunet_keras.prediction import Model, find_photos
from ddunet_keras.sky.reading import read_image

EXPECTED = {"clear": (0.0, 0.15), "overcast": (0.85, 1.0), "aurora": (0.0, 0.25)}
"""Least and largest cloud cover that a sky of this word should get. Other words judge nothing."""

TABLE = "frames.csv"
"""File with a word for each frame, in the columns name and sky."""

HORIZON = "auto"
"""The horizon of every frame: what a user gets who has told nothing of the camera."""

THRESHOLD = 0.5


@dataclass(frozen=True)
class Camera:
    """Frames of one camera; made by `open_camera`.

    Attributes:
        name: of its folder.
        dataset: the frames with their masks, or None.
        frames: name -> file, where there are no masks.
        words: name -> one word for the sky of this frame, where there are no masks.
    """

    name: str
    dataset: Dataset | None
    frames: Mapping[str, Path]
    words: Mapping[str, str]


def open_camera(folder: StrPath) -> Camera:
    """Finds what a folder has of a camera; decodes no frame.

    Args:
        folder: has `images/` and `masks/` (any layout of `open_dataset`), or `images/` and
            `frames.csv`, a table with the columns name (of the file, without ending) and sky (one
            word: clear, overcast, aurora, or another one).

    Raises:
        DataError: it has neither, or the table cannot be used.

    Example:

    >>> open_camera(dd.write_synthetic(tmp / "skies", 2, (48, 64))).name
    'skies'
    """
    folder = Path(folder)
    table = folder / TABLE
    if not table.is_file():
        return Camera(folder.resolve().name, open_dataset(folder), {}, {})
    frames = find_photos([folder / "images"])
    words = _read_words(table)
    for what, names in (
        (f"{table}: names no file in images/:", words.keys() - frames.keys()),
        (f"{table}: has no line for", frames.keys() - words.keys()),
    ):
        if names:
            raise DataError(f"{what} {min(names)}")
    return Camera(folder.resolve().name, None, frames, words)


def _read_words(path):
    rows = csv.DictReader(io.StringIO(read_text(path)))
    columns = [name.strip().lower() for name in rows.fieldnames or []]
    rows.fieldnames = columns
    if not {"name", "sky"} <= set(columns):
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{path}: needs a header with the columns name and sky, found {found}")
    words = {}
    for row in rows:
        name = (row["name"] or "").strip()
        word = (row["sky"] or "").strip().lower()
        if not name or not word or name in words:
            raise DataError(f"{path}: line {rows.line_num}: needs a new name and a word")
        words[name] = word
    if not words:
        raise DataError(f"{path}: has no frame")
    return words


def score_camera(model: Model, camera: Camera) -> dict[str, Any]:
    """Scores a model on a camera's frames, one at a time, inside the horizon found by "auto".

    Frames that the model itself calls unusable count in `usable` alone.

    Args:
        model: has `segment`, as `DDUNet` and `Segmenter`.
        camera: from `open_camera`.

    Returns:
        camera, frames (their number) and usable (share of them). With masks: accuracy and miou
        (means over frames, 0 to 1), cover_error (mean absolute) and cover_bias (mean), both in
        points, over the pixels that have a label. With words: `words`, for each the number of
        frames, how many are usable, how many of these are right (`EXPECTED`; None for other words),
        and the lowest and highest cover, 0 to 1. None where no frame is usable.

    Raises:
        DataError: a file cannot be read.

    Example:

    >>> camera = open_camera(dd.write_synthetic(tmp / "skies", 2, (48, 64)))
    >>> score_camera(dd.Segmenter(), camera)["frames"]
    2
    """
    scores = _score_words(model, camera) if camera.dataset is None else _score_masks(model, camera)
    return {"camera": camera.name, **scores}


def _score_masks(model, camera):
    counts = []
    usable = 0
    for sample in camera.dataset:
        image, labels = camera.dataset.load(sample)
        result = model.segment(image, THRESHOLD, HORIZON, force=False)
        if result.usable:
            usable += 1
            is_cloud = (result.probabilities >= THRESHOLD).astype(np.uint8)
            counts.append(metrics.confusion(is_cloud, labels))
    counts = np.array([count for count in counts if count.any()])
    scores = dict.fromkeys(("accuracy", "miou", "cover_error", "cover_bias"))
    if len(counts):
        image_scores = metrics.image_scores(counts)
        pixels = counts.sum(axis=(1, 2))
        cover = metrics.cloud_cover_errors(
            counts[:, :, 1].sum(axis=1) / pixels, counts[:, 1].sum(axis=1) / pixels
        )
        scores = {
            "accuracy": float(image_scores["accuracy"].mean()),
            "miou": float(image_scores["miou"].mean()),
            "cover_error": cover["mean_absolute_error"],
            "cover_bias": cover["bias"],
        }
    frames = len(camera.dataset)
    return {"frames": frames, "usable": usable / frames, **scores}


def _score_words(model, camera):
    covers: dict[str, list[float]] = {word: [] for word in sorted(set(camera.words.values()))}
    for name, path in camera.frames.items():
        result = model.segment(read_image(path), THRESHOLD, HORIZON, force=False)
        if result.usable:
            covers[camera.words[name]].append(result.cloud_cover.fraction)
    words = {}
    for word, values in covers.items():
        right = None
        if word in EXPECTED:
            least, largest = EXPECTED[word]
            right = sum(least <= value <= largest for value in values)
        words[word] = {
            "frames": list(camera.words.values()).count(word),
            "usable": len(values),
            "right": right,
            "lowest": min(values, default=None),
            "highest": max(values, default=None),
        }
    frames = len(camera.frames)
    usable = sum(map(len, covers.values()))
    return {"frames": frames, "usable": usable / frames, "words": words}


def cameras_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Tables of the cameras with masks and of those with words.

    Args:
        rows: `score_camera`'s, each with model, size (height, width) and dtype.
    """
    rows = list(rows)
    with_masks = [row for row in rows if "words" not in row]
    with_words = [row for row in rows if "words" in row]
    parts = []
    if with_masks:
        parts.append(_mask_table(with_masks))
    if with_words:
        bounds = [
            f"{word}: {100 * least:.0f} to {100 * largest:.0f} %"
            for word, (least, largest) in EXPECTED.items()
        ]
        parts.append(
            "Frames with a word for the sky: those right of those usable, and their cover in "
            f"percent. Right is {', '.join(bounds)}."
        )
        parts.append(_word_table(with_words))
    return "\n\n".join(parts)


_ABOUT = ("Camera", "Model", "Size", "Type", "Frames", "Usable")


def _about(row):
    size = "x".join(str(side) for side in row["size"])
    return [
        *(row["camera"], row["model"], size, row["dtype"], row["frames"]),
        _percent(row["usable"]),
    ]


def _mask_table(rows):
    lines = [
        [
            *_about(row),
            _percent(row["accuracy"]),
            _percent(row["miou"]),
            _points(row["cover_error"], "{:.1f}"),
            _points(row["cover_bias"], "{:+.1f}"),
        ]
        for row in rows
    ]
    header = (*_ABOUT, "Accuracy", "MIoU", "Cover error, points", "Bias, points")
    return "\n".join(markdown_table(header, lines))


def _word_table(rows):
    named = dict.fromkeys(word for row in rows for word in row["words"])
    words = [word for word in EXPECTED if word in named]
    words += [word for word in named if word not in EXPECTED]
    lines = [[*_about(row), *(_word(row["words"].get(word)) for word in words)] for row in rows]
    return "\n".join(markdown_table((*_ABOUT, *words), lines))


def _word(found):
    """A cell: 3 of 4; 2 to 18 %."""
    if found is None:
        return ""
    judged = f"{found['right']} of {found['usable']}" if found["right"] is not None else "-"
    if not found["usable"]:
        return "none usable"
    return f"{judged}; {100 * found['lowest']:.0f} to {100 * found['highest']:.0f} %"


def _percent(share):
    return "n/a" if share is None else f"{100 * share:.1f}"


def _points(value, pattern):
    return "n/a" if value is None else pattern.format(value)
