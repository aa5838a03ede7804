"""Scores anything that maps images to probabilities, and reports it with the averaging named."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddunet_keras import metrics
from ddunet_keras.files import DataError, write_json, write_text

SHEET_COLUMNS = 3
"""Images in each row (best, median, worst) of the sheet."""

SHEET_PIXELS = 400
"""Longer side to which the sheet's pictures are thinned, so that large photos fit in memory."""

COLUMNS = ("name", "date", "night", "accuracy", "precision", "recall", "miou")
COLUMNS += ("cover_true", "cover_pred")
"""What is known of each image."""


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
        head = [f"{key} {value}" for key, value in self.about.items()]
        if self.num_classes == 2:
            head.append(f"threshold {self.threshold:g}")
        else:
            head.append(f"{self.num_classes} classes, the most probable one counts")
        lines = ["# Evaluation", "", ", ".join(head) + "."]
        if self.left_out:
            lines.append(f"Left out, no valid pixel: {', '.join(self.left_out)}.")
        if self.num_classes > 2:
            lines.append("Precision and recall are means over the classes other than sky.")

        keys = ("accuracy", "precision", "recall", "f1", "miou")
        header = ("Set", "Images", "Accuracy", "Precision", "Recall", "F", "MIoU")
        for kind, title in (
            ("image_mean", "Means over images (the paper's averaging)"),
            ("pooled", "Pooled over the pixels of all images"),
        ):
            rows = [
                [name, group["images"], *(_text(group[kind][key]) for key in keys)]
                for name, group in self.groups.items()
            ]
            lines += ["", f"## {title}", "", *markdown_table(header, rows)]
            if kind == "image_mean":
                lines += ["", "F is the harmonic mean of mean precision and mean recall."]

        header = ("Set", "Images", "Bias (points)", "Mean absolute error (points)")
        header += ("Within 1 okta (%)", "ROC area", "Average precision")
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
        lines += ["", "## Cloud cover of whole images, and areas under the pooled curves", ""]
        return "\n".join([*lines, *markdown_table(header, rows)]) + "\n"

    def save(self, folder) -> None:
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


def _groups(nights):
    """Name of each group -> the values of `night` in it; the last one holds every image."""
    groups = {name: {night} for name, night in (("day", False), ("night", True)) if night in nights}
    if None in nights or len(groups) == 2:
        groups["all" if None in nights else "day+night"] = set(nights)
    return groups


def _choose(rows):
    """The rows with the best, median and worst MIoU, none of them twice."""
    rows = sorted(rows, key=lambda row: -row["miou"])
    count = min(SHEET_COLUMNS, max(1, len(rows) // 3))
    best, rows = rows[:count], rows[count:]
    worst, rows = rows[-count:][::-1], rows[:-count]
    start = (len(rows) - count + 1) // 2
    chosen = {"best": best, "median": rows[max(start, 0) :][:count], "worst": worst}
    return {name: members for name, members in chosen.items() if members}


def _text(value, pattern="{:.3f}"):
    return pattern.format(value) if np.isfinite(value) else "n/a"


def markdown_table(header, rows) -> list[str]:
    """Lines of a Markdown table: the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _predict(predictor, image, shape, num_classes, threshold, name):
    """Labels and cloud probability (h, w) of an image at its mask's size, checked."""
    received = np.asarray(predictor(image))
    classes = () if num_classes == 2 else (num_classes,)
    if received.ndim != 2 + len(classes) or received.shape[2:] != classes:
        kind = ", ".join(map(str, ("height", "width", *classes)))
        raise ValueError(
            f"{name}: the predictor must give probabilities of shape ({kind}) for {num_classes} "
            f"classes; received shape {received.shape}"
        )
    received = received.astype(np.float32)
    low, high = received.min(initial=1), received.max(initial=0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"{name}: probabilities must be in [0, 1]; received {low} to {high} "
            "(give the sigmoid or softmax of logits)"
        )
    probabilities = metrics.resize_align_corners(received, shape).clip(0, 1)
    if num_classes == 2:
        return (probabilities >= threshold).astype(np.uint8), probabilities
    return probabilities.argmax(-1).astype(np.uint8), 1 - probabilities[..., 0]


def evaluate(predictor, dataset, names, *, threshold=0.5, progress=None, **about) -> Evaluation:
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
    if not names:
        raise ValueError(f"names must hold at least one sample; received {names}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names must differ, or an image counts twice; received {twice!r} twice")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be in (0, 1); received {threshold}")
    n = dataset.num_classes

    nights, counts, images, left_out = [], [], [], []
    histograms = {night: np.zeros((2, metrics.BINS), np.int64) for night in (False, True, None)}
    for done, name in enumerate(names, 1):
        sample = dataset.find(name)
        image, truth = dataset.load(sample)
        labels, cloud = _predict(predictor, image, truth.shape, n, threshold, name)
        count = metrics.confusion(labels, truth, n)
        counts.append(count)
        nights.append(sample.night)
        if progress is not None:
            progress(done, len(names))
        if not count.sum():
            left_out.append(name)
            continue
        histograms[sample.night] += metrics.curve_counts(cloud, truth)
        row = {"name": name, "date": sample.date, "night": sample.night}
        row |= {key: float(value) for key, value in metrics.image_scores(count).items()}
        row["cover_true"] = float(count[1:].sum() / count.sum())
        row["cover_pred"] = float(count[:, 1:].sum() / count.sum())
        images.append(row)
    if not images:
        raise DataError(f"none of the {len(names)} images has a pixel that is not ignored")

    groups, curves = {}, {}
    for group, members in _groups(nights).items():
        rows = [row for row in images if row["night"] in members]
        chosen = [count for count, night in zip(counts, nights, strict=True) if night in members]
        histogram = np.sum([histograms[night] for night in members], axis=0)
        curves[group] = metrics.curves(histogram)
        groups[group] = {
            **metrics.scores(chosen),
            "cloud_cover": metrics.cloud_cover_errors(
                [row["cover_pred"] for row in rows], [row["cover_true"] for row in rows]
            ),
            "roc_auc": curves[group]["roc_auc"],
            "average_precision": curves[group]["average_precision"],
        }

    def entry(row):
        image, truth = dataset.load(dataset.find(row["name"]))
        labels, _ = _predict(predictor, image, truth.shape, n, threshold, row["name"])
        title = f"{row['name']}, MIoU {row['miou']:.3f}, accuracy {row['accuracy']:.3f}"
        step = -(-max(truth.shape) // SHEET_PIXELS)
        return title, *(array[::step, ::step].copy() for array in (image, truth, labels))

    sheet = {key: [entry(row) for row in rows] for key, rows in _choose(images).items()}
    return Evaluation(
        about, float(threshold), n, groups, tuple(images), tuple(left_out), curves, sheet
    )
