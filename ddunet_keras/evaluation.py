"""Scores anything that maps images to probabilities, and reports it with the averaging named."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddunet_keras import metrics
from ddunet_keras.files import DataError, StrPath, printable, write_json, write_text
from ddunet_keras.sky import ROUNDING

SHEET_COLUMNS = 3
"""Images in each row (best, median, worst) of the sheet."""

SHEET_PIXELS = 400
"""Longer side to which the sheet's pictures are thinned, so that large photos fit in memory."""

SCORES = ("accuracy", "precision", "recall", "miou")
COLUMNS = ("name", "date", "night", *SCORES, "cover_true", "cover_pred")
"""What is known of each image."""

Predictor = Callable[[np.ndarray], np.ndarray]
"""Image uint8 (h, w, 3) RGB -> probabilities in [0, 1] at any size."""


class ScoredData(Protocol):
    """What `evaluate` asks of a dataset; `Dataset` has it."""

    @property
    def num_classes(self) -> int:
        """Number of classes in the labels."""

    def find(self, name: str) -> Any:
        """The sample of that name; it has name, date and night."""

    def load(self, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (h, w, 3) and labels uint8 (h, w) of a sample."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        about: what was said about the run (protocol, model, seed, ...).
        threshold: cloud is from this probability on (two classes).
        num_classes: classes scored.
        groups: "day", "night" and "day+night" (those that exist; "all" in place of the last where
            an image's time of day is unknown) -> images, left_out, image_mean, pooled (see
            `metrics.scores`), cloud_cover (see `metrics.cloud_cover_errors`), roc_auc and
            average_precision.
        images: a dict for each image that counts, in the order of the names: `COLUMNS`; covers are
            cloud fractions in [0, 1].
        left_out: names of the images without a valid pixel.
        curves: group -> `metrics.curves`.
        sheet: "best", "median", "worst" -> list of (title, photo, truth, prediction).
    """

    about: dict
    threshold: float
    num_classes: int
    groups: dict[str, dict]
    images: tuple[dict, ...]
    left_out: tuple[str, ...]
    curves: dict[str, dict]
    sheet: dict[str, list]

    @property
    def overall(self) -> dict:
        """The group that holds every image."""
        return list(self.groups.values())[-1]

    def to_dict(self) -> dict:
        """Everything but curves and pictures, as JSON holds it."""
        return {
            "about": self.about,
            "threshold": self.threshold,
            "num_classes": self.num_classes,
            "averaging": {
                "image_mean": "accuracy, precision, recall, miou: means over images; f1: harmonic "
                "mean of mean precision and mean recall (the paper's)",
                "pooled": "from the pixels of all images counted together",
            },
            "groups": self.groups,
            "left_out": list(self.left_out),
            "images": list(self.images),
        }

    def to_markdown(self) -> str:
        """Tables with the columns of the paper's Table I, in both averagings, and cloud cover."""
        lines = ["# Evaluation", "", *self._introduction()]
        for kind, title in (
            ("image_mean", "Means over images (the paper's averaging)"),
            ("pooled", "Pooled over the pixels of all images"),
        ):
            lines += ["", f"## {title}", "", *self._score_table(kind)]
            if kind == "image_mean":
                lines += ["", "F is the harmonic mean of mean precision and mean recall."]
        lines += ["", "## Cloud cover of whole images, and areas under the pooled curves", ""]
        lines += self._cover_table()
        return "\n".join(lines) + "\n"

    def _introduction(self):
        about = [f"{key} {value}" for key, value in self.about.items()]
        if self.num_classes == 2:
            about.append(f"threshold {self.threshold:g}")
        else:
            about.append(f"{self.num_classes} classes, the most probable one counts")
        lines = [printable(", ".join(about)) + "."]
        if self.left_out:
            lines.append(f"Left out, no valid pixel: {printable(', '.join(self.left_out))}.")
        if self.num_classes > 2:
            lines.append("Precision and recall are means over the classes other than sky.")
        return lines

    def _score_table(self, kind):
        header = ("Set", "Images", "Accuracy", "Precision", "Recall", "F", "MIoU")
        keys = ("accuracy", "precision", "recall", "f1", "miou")
        rows = [
            [name, group["images"], *(_text(group[kind][key]) for key in keys)]
            for name, group in self.groups.items()
        ]
        return markdown_table(header, rows)

    def _cover_table(self):
        header = (
            "Set",
            "Images",
            "Bias (points)",
            "Mean absolute error (points)",
            "Within 1 okta (%)",
            "ROC area",
            "Average precision",
        )
        rows = [
            [
                name,
                group["images"],
                _text(group["cloud_cover"]["bias"], "{:+.1f}"),
                _text(group["cloud_cover"]["mean_absolute_error"], "{:.1f}"),
                _text(100 * group["cloud_cover"]["share_within_1_okta"], "{:.1f}"),
                _text(group["roc_auc"]),
                _text(group["average_precision"]),
            ]
            for name, group in self.groups.items()
        ]
        return markdown_table(header, rows)

    def save(self, folder: StrPath) -> None:
        """Writes evaluation.json, evaluation.md, per_image.csv, curves.png and sheet.png."""
        from ddunet_keras import plots  # matplotlib is only needed here

        folder = Path(folder)
        write_json(folder / "evaluation.json", self.to_dict())
        write_text(folder / "evaluation.md", self.to_markdown())
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.images)
        write_text(folder / "per_image.csv", table.getvalue())
        threshold = self.threshold if self.num_classes == 2 else None
        plots.plot_curves(self.curves, folder / "curves.png", threshold=threshold)
        plots.plot_sheet(self.sheet, folder / "sheet.png", num_classes=self.num_classes)


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, the others to the right.

    Example:

    >>> markdown_table(["Set", "Images"], [["day", 7]])
    ['| Set | Images |', '| --- | ---: |', '| day | 7 |']
    """
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(map(str, line)) + " |" for line in (header, rule, *rows)]


def _text(value, pattern="{:.3f}"):
    return pattern.format(value) if np.isfinite(value) else "n/a"


def evaluate(
    predictor: Predictor,
    dataset: ScoredData,
    names: Iterable[str],
    *,
    threshold: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    **about: Any,
) -> Evaluation:
    """Scores a predictor on named samples of a dataset, one image at a time.

    Predictions are brought to the mask's own size (bilinear, align_corners=True, as the authors
    do) before the threshold. Ignored pixels count nowhere; an image without any other pixel is left
    out and named. Probability maps are not kept: the images of the sheet are predicted twice.

    Args:
        predictor: image uint8 (h, w, 3) RGB -> probabilities in [0, 1] at any size: cloud
            probability (H, W) for two classes, (H, W, n) for n > 2 (class 0 is sky).
        dataset: has num_classes, find(name) -> sample (with name, date, night) and load(sample) ->
            (image, labels).
        names: of the samples to score.
        threshold: cloud is from this probability on, in (0, 1); two classes only.
        progress: is called with the number of images done and in all.
        **about: protocol, model, seed and whatever else the report should state.

    Returns:
        Evaluation.

    Raises:
        ValueError: no name or one twice, a threshold outside (0, 1), or a prediction of another
            shape or outside [0, 1].
        DataError: a sample cannot be read, or no image has a valid pixel.

    Example:

    >>> from types import SimpleNamespace
    >>> class Skies:
    ...     num_classes = 2
    ...     def find(self, name):
    ...         return SimpleNamespace(name=name, date=None, night=False)
    ...     def load(self, sample):
    ...         return np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.uint8)
    >>> result = evaluate(lambda image: np.full((2, 3), 0.9), Skies(), ["a"], protocol="date")
    >>> result.overall["image_mean"]["accuracy"]
    1.0
    """
    names = list(names)
    _check(names, threshold)
    scored = []
    histograms = {night: np.zeros((2, metrics.BINS), np.int64) for night in (False, True, None)}
    for done, name in enumerate(names, 1):
        image, histogram = _score(predictor, dataset, name, threshold)
        scored.append(image)
        histograms[image.night] += histogram
        if progress is not None:
            progress(done, len(names))
    if all(image.row is None for image in scored):
        raise DataError(f"none of the {len(names)} images has a pixel that is not ignored")

    groups = {}
    curves = {}
    for group, members in _divide(scored).items():
        nights = {image.night for image in members}
        curves[group] = metrics.curves(np.sum([histograms[night] for night in nights], axis=0))
        groups[group] = _summarize(members, curves[group])
    rows = [image.row for image in scored if image.row is not None]
    return Evaluation(
        about=about,
        threshold=float(threshold),
        num_classes=dataset.num_classes,
        groups=groups,
        images=tuple(rows),
        left_out=tuple(image.name for image in scored if image.row is None),
        curves=curves,
        sheet={
            title: [_sheet_entry(predictor, dataset, row, threshold) for row in chosen]
            for title, chosen in _choose(rows).items()
        },
    )


def _check(names, threshold):
    if not names:
        raise ValueError(f"names must hold at least one sample; received {names}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names must differ, or an image counts twice; received {twice!r} twice")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be in (0, 1); received {threshold}")


@dataclass(frozen=True)
class _Scored:
    """What is kept of an image: `row` (`COLUMNS`) is None where no pixel counts."""

    name: str
    night: bool | None
    counts: np.ndarray
    row: dict | None


def _score(predictor, dataset, name, threshold):
    """An image's `_Scored`, and its `metrics.curve_counts`."""
    sample = dataset.find(name)
    image, truth = dataset.load(sample)
    labels, cloud = _predict(predictor, image, truth.shape, dataset.num_classes, threshold, name)
    counts = metrics.confusion(labels, truth, dataset.num_classes)
    row = None
    if counts.sum():
        scores = metrics.image_scores(counts)
        row = {
            "name": name,
            "date": sample.date,
            "night": sample.night,
            **{key: float(scores[key]) for key in SCORES},
            "cover_true": float(counts[1:].sum() / counts.sum()),
            "cover_pred": float(counts[:, 1:].sum() / counts.sum()),
        }
    return _Scored(name, sample.night, counts, row), metrics.curve_counts(cloud, truth)


def _predict(predictor, image, shape, num_classes, threshold, name):
    """Labels and cloud probability (h, w) of an image at its mask's size, checked."""
    received = np.asarray(predictor(image))
    classes = () if num_classes == 2 else (num_classes,)
    if received.ndim != 2 + len(classes) or received.shape[2:] != classes:
        expected = ", ".join(map(str, ("height", "width", *classes)))
        raise ValueError(
            f"{name}: the predictor must give probabilities of shape ({expected}) for "
            f"{num_classes} classes; received shape {received.shape}"
        )
    received = received.astype(np.float32)
    low = received.min(initial=1)
    high = received.max(initial=0)
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"{name}: probabilities must be in [0, 1]; received {low} to {high} "
            "(give the sigmoid or softmax of logits)"
        )
    probabilities = metrics.resize_align_corners(received, shape).clip(0, 1)
    if num_classes == 2:
        return (probabilities >= threshold).astype(np.uint8), probabilities
    return probabilities.argmax(-1).astype(np.uint8), 1 - probabilities[..., 0]


def _divide(scored):
    """The images of the day, of the night, and all; only groups that exist and differ."""
    nights = {image.night for image in scored}
    groups = {}
    if False in nights:
        groups["day"] = [image for image in scored if image.night is False]
    if True in nights:
        groups["night"] = [image for image in scored if image.night is True]
    if None in nights:
        groups["all"] = scored
    elif len(groups) == 2:
        groups["day+night"] = scored
    return groups


def _summarize(images, curves):
    """What `Evaluation.groups` says of some images."""
    rows = [image.row for image in images if image.row is not None]
    return {
        **metrics.scores([image.counts for image in images]),
        "cloud_cover": metrics.cloud_cover_errors(
            [row["cover_pred"] for row in rows], [row["cover_true"] for row in rows]
        ),
        "roc_auc": curves["roc_auc"],
        "average_precision": curves["average_precision"],
    }


def _choose(rows):
    """The rows with the best, median and worst MIoU, none of them twice."""
    rows = sorted(rows, key=lambda row: -row["miou"])
    count = min(SHEET_COLUMNS, max(1, len(rows) // 3))
    best = rows[:count]
    rest = rows[count:]
    worst = rest[-count:][::-1]
    rest = rest[:-count]
    start = max(0, (len(rest) - count + 1) // 2)
    median = rest[start : start + count]
    chosen = {"best": best, "median": median, "worst": worst}
    return {title: members for title, members in chosen.items() if members}


def _sheet_entry(predictor, dataset, row, threshold):
    """Title, photo, truth and prediction of an image, thinned to `SHEET_PIXELS`."""
    name = row["name"]
    image, truth = dataset.load(dataset.find(name))
    labels, _ = _predict(predictor, image, truth.shape, dataset.num_classes, threshold, name)
    step = -(-max(truth.shape) // SHEET_PIXELS)  # rounded up
    title = f"{name}, MIoU {row['miou']:.3f}, accuracy {row['accuracy']:.3f}"
    pictures = (picture[::step, ::step].copy() for picture in (image, truth, labels))
    return (title, *pictures)
