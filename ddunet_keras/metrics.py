"""Confusion counts, scores with their averaging named, cloud-cover errors, PR and ROC curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ddunet_keras.files import IGNORE
from ddunet_keras.sky import CloudCover

BINS = 1000
"""Probability bins of the curves: thresholds are 1/1000 apart."""


def resize_align_corners(array: ArrayLike, size: Sequence[int]) -> np.ndarray:
    """Resizes bilinearly so that the corner pixels stay corner pixels (align_corners=True).

    The authors bring the probability map to the mask's size this way before the threshold.

    Args:
        array: (h, w) or (h, w, c), any real type; float32 stays float32, the rest gives float64.
        size: (height, width) of the result, pixels.

    Returns:
        (height, width) or (height, width, c); equal to `array` where the size already agrees.

    Raises:
        ValueError: another rank, or an empty array or size.

    Example:

    >>> resize_align_corners(np.array([[0.0, 1.0]]), (1, 3))
    array([[0. , 0.5, 1. ]])
    """
    values = np.asarray(array)
    if values.ndim not in (2, 3) or 0 in values.shape or len(size) != 2 or min(size) < 1:
        raise ValueError(
            "resize_align_corners needs a non-empty (h, w) or (h, w, c) array and a (height, "
            f"width) of at least 1; received shape {values.shape} and size {tuple(size)}"
        )
    values = values.astype(np.float32 if values.dtype == np.float32 else np.float64)
    for axis, new_length in enumerate(size):
        length = values.shape[axis]
        if length == new_length:
            continue
        position = np.linspace(0, length - 1, new_length)
        low = np.minimum(position.astype(int), max(length - 2, 0))
        high = np.minimum(low + 1, length - 1)
        weight = (position - low).astype(values.dtype)
        weight = weight.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return values


def confusion(labels_pred: ArrayLike, labels_true: ArrayLike, num_classes: int = 2) -> np.ndarray:
    """Counts pixels by true class (row) and predicted class (column).

    Args:
        labels_pred: integers in [0, num_classes), any shape.
        labels_true: integers in [0, num_classes) or `IGNORE`, same shape. Ignored pixels count
            nowhere.
        num_classes: at least 2.

    Returns:
        int64 (num_classes, num_classes).

    Raises:
        ValueError: shapes differ or a label is out of range.

    Example:

    >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 255]))
    array([[1, 1],
           [0, 0]])
    """
    pred = np.asarray(labels_pred)
    true = np.asarray(labels_true)
    if pred.shape != true.shape:
        raise ValueError(
            f"prediction and truth must have one shape; received {pred.shape} and {true.shape}"
        )
    valid = true != IGNORE
    pred = pred[valid]
    true = true[valid]
    for name, labels in (("labels_pred", pred), ("labels_true", true)):
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            raise ValueError(
                f"{name} must be in [0, {num_classes}); received values from {labels.min()} to "
                f"{labels.max()} (pixels to leave out are {IGNORE} in labels_true)"
            )
    index = true.astype(np.int64) * num_classes + pred.astype(np.int64)
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def _ratio(part, whole, absent):
    """part / whole; 0/0 is 1 where the class is absent from truth and prediction, else 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), absent.astype(float))


def image_scores(counts: ArrayLike) -> dict[str, np.ndarray]:
    """Scores of each image from its confusion counts.

    Precision and recall are of the cloud class (the mean over classes 1.. where there are more
    than two), miou is the mean of the intersection over union of all classes, sky included.
    Every mask has defined scores: of a class that neither truth nor prediction contains, precision,
    recall and IoU are 1 (nothing was missed or invented); of a class that only one of the two
    contains, all three are 0.

    Args:
        counts: (..., n, n) of `confusion`, each with at least one pixel.

    Returns:
        accuracy, precision, recall, miou in [0, 1], each of shape (...).

    Example:

    >>> image_scores(np.array([[[4, 0], [0, 0]]]))["miou"]
    array([1.])
    """
    counts = np.asarray(counts)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    true = counts.sum(-1)
    pred = counts.sum(-2)
    absent = true + pred == 0
    return {
        "accuracy": hit.sum(-1) / counts.sum((-2, -1)),
        "precision": _ratio(hit, pred, absent)[..., 1:].mean(-1),
        "recall": _ratio(hit, true, absent)[..., 1:].mean(-1),
        "miou": _ratio(hit, true + pred - hit, absent).mean(-1),
    }


def scores(counts: ArrayLike) -> dict[str, Any]:
    """Scores of a set of images in both averagings.

    `image_mean` is the paper's averaging (Li et al., IGARSS 2025, Table I; equal to the authors'
    code): accuracy, precision, recall and miou are means over images, and f1 is the harmonic mean
    of the mean precision and the mean recall (not the mean of f1 over images, which is lower and
    not offered). `pooled` counts the pixels of all images together first, so that large images
    weigh more; f1 is then the usual one. error_rate is 1 - accuracy in both. See `image_scores`
    for classes and for empty and full masks.

    Args:
        counts: (images, n, n), one `confusion` an image.

    Returns:
        {"images", "left_out", "image_mean": {...}, "pooled": {...}}: images that count, images left
        out because they have no valid pixel, and the scores accuracy, precision, recall, f1, miou,
        error_rate in [0, 1] (NaN where no image counts).

    Raises:
        ValueError: another shape.

    Example:

    >>> scores([[[3, 1], [0, 4]], [[8, 0], [0, 0]]])["image_mean"]["accuracy"]
    0.9375
    """
    counts = np.asarray(counts)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or counts.shape[1] < 2:
        raise ValueError(f"counts must be (images, n, n) with n >= 2; received {counts.shape}")
    kept = counts[counts.sum((1, 2)) > 0]
    if len(kept):
        image_mean = {key: float(value.mean()) for key, value in image_scores(kept).items()}
        pooled = {key: float(value) for key, value in image_scores(kept.sum(0)).items()}
    else:
        image_mean = dict.fromkeys(("accuracy", "precision", "recall", "miou"), float("nan"))
        pooled = image_mean
    return {
        "images": len(kept),
        "left_out": len(counts) - len(kept),
        "image_mean": _with_f1(image_mean),
        "pooled": _with_f1(pooled),
    }


def _with_f1(values):
    """The scores with the harmonic mean of precision and recall, and the error rate."""
    precision = values["precision"]
    recall = values["recall"]
    total = precision + recall
    return {
        "accuracy": values["accuracy"],
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / total if total > 0 else total,
        "miou": values["miou"],
        "error_rate": 1 - values["accuracy"],
    }


def cloud_cover_errors(fraction_pred: ArrayLike, fraction_true: ArrayLike) -> dict[str, float]:
    """How well the cloud cover of whole images is told.

    Args:
        fraction_pred, fraction_true: (images,) cloud fractions of the valid pixels, in [0, 1].

    Returns:
        bias: mean of predicted minus true cover, percentage points (positive: too much cloud);
        mean_absolute_error: percentage points; share_within_1_okta: share of images in [0, 1]
        whose okta (WMO rule, see `sky.CloudCover`) is off by at most one. NaN without images.

    Raises:
        ValueError: shapes differ or a fraction is outside [0, 1].

    Example:

    >>> cloud_cover_errors([0.5, 1.0], [0.25, 1.0])["mean_absolute_error"]
    12.5
    """
    pred = np.asarray(fraction_pred, float)
    true = np.asarray(fraction_true, float)
    both = np.concatenate([pred.ravel(), true.ravel()])
    if pred.ndim != 1 or pred.shape != true.shape or not np.all((both >= 0) & (both <= 1)):
        raise ValueError(
            "cloud fractions must be two (images,) arrays in [0, 1]; received shapes "
            f"{pred.shape} and {true.shape}, values {both.min(initial=1)} to {both.max(initial=0)}"
        )
    if not len(pred):
        return dict.fromkeys(("bias", "mean_absolute_error", "share_within_1_okta"), float("nan"))
    error = 100 * (pred - true)
    okta_error = _oktas(pred) - _oktas(true)
    return {
        "bias": float(error.mean()),
        "mean_absolute_error": float(np.abs(error).mean()),
        "share_within_1_okta": float(np.mean(np.abs(okta_error) <= 1)),
    }


def _oktas(fractions):
    return np.array([CloudCover(fraction, 1.0).okta for fraction in fractions])


def curve_counts(cloud_probabilities: ArrayLike, labels_true: ArrayLike) -> np.ndarray:
    """Histogram of the cloud probability over the pixels that count, to be summed over images.

    Args:
        cloud_probabilities: in [0, 1], any shape.
        labels_true: same shape; 0 sky, above 0 cloud, `IGNORE` counts nowhere.

    Returns:
        int64 (2, BINS): sky pixels, cloud pixels.

    Example:

    >>> curve_counts(np.array([0.1, 0.9]), np.array([0, 1])).sum(axis=1)
    array([1, 1])
    """
    true = np.asarray(labels_true)
    valid = true != IGNORE
    place = (np.asarray(cloud_probabilities)[valid] * BINS).astype(np.int64).clip(0, BINS - 1)
    index = (true[valid] > 0) * BINS + place
    return np.bincount(index, minlength=2 * BINS).reshape(2, BINS)


def curves(counts: ArrayLike) -> dict[str, Any]:
    """Precision-recall and ROC curve, pooled over the pixels of `curve_counts`.

    Args:
        counts: (2, BINS).

    Returns:
        thresholds, precision, recall (the true positive rate), false_positive_rate: (BINS,) for
        falling thresholds; roc_auc (trapezoids) and average_precision (sum of precision times step
        in recall) in [0, 1]; NaN where there are no sky (roc_auc) or no cloud pixels at all.

    Example:

    >>> curves(curve_counts(np.array([0.1, 0.9]), np.array([0, 1])))["roc_auc"]
    1.0
    """
    false, true = np.cumsum(np.asarray(counts)[:, ::-1], axis=1).astype(float)
    with np.errstate(invalid="ignore"):
        recall = true / true[-1]
        fall_out = false / false[-1]
    precision = np.where(true + false > 0, true / np.maximum(true + false, 1), 1.0)
    step = np.diff(fall_out, prepend=0)
    return {
        "thresholds": np.arange(BINS)[::-1] / BINS,
        "precision": precision,
        "recall": recall,
        "false_positive_rate": fall_out,
        "roc_auc": float(np.sum(step * (recall + np.append(0, recall[:-1])) / 2)),
        "average_precision": float(np.sum(np.diff(recall, prepend=0) * precision)),
    }
