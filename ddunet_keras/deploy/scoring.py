"""How near the masks of a file are to the float model's, and to people's."""

from __future__ import annotations

import numpy as np

from ddunet_keras.files import IGNORE
from ddunet_keras.litert.model import dequantize, read_tflite
from ddunet_keras.metrics import cloud_cover_errors, confusion, scores
from ddunet_keras.segmenter import as_probabilities
from ddunet_keras.sky import cloud_cover

SCORES = {"accuracy": "accuracy, %", "miou": "MIoU, %", "cloud_cover": "cloud cover, %"}
"""What is compared -> its title in a table."""

AGREEMENTS = {
    "agreement": "masks that agree, %",
    "agreement_xnnpack": "masks that agree, XNNPACK, %",
}

UNSURE_MARGIN = 0.2
"""The float model is unsure of a pixel whose two likeliest classes are nearer than this."""


def probabilities(data, raw, output="probability") -> np.ndarray:
    """What a file's raw outputs mean.

    Args:
        data: bytes of the file.
        raw: (n, h, w, c) as LiteRT or TFLM gave it.
        output: "probability", "logits" or "mask".

    Returns:
        float32 (n, h, w), the probability of cloud, or (n, h, w, c) of each class; of a mask
        int (n, h, w), class indices.
    """
    if output == "mask":
        return raw[..., 0].astype(np.int64)
    (graph,) = read_tflite(data).subgraphs
    return as_probabilities(dequantize(graph.tensors[graph.outputs[0]], raw), output)


def labels_of(values) -> np.ndarray:
    """Class indices (n, h, w) of what `probabilities` gives."""
    if values.dtype.kind == "i":
        return values
    if values.ndim == 4:
        return values.argmax(-1)
    return (values >= 0.5).astype(np.int64)


def unsure_share(float_values) -> float:
    """Percent of the pixels of which the float model is unsure: 3 for trained networks.

    Args:
        float_values: (n, h, w), or (n, h, w, classes).
    """
    if float_values.ndim == 3:
        margin = abs(2 * float_values - 1)
    else:
        two_largest = np.partition(float_values, -2)[..., -2:]
        margin = two_largest[..., 1] - two_largest[..., 0]
    return 100 * float(np.mean(margin < UNSURE_MARGIN))


def score_labels(float_labels, file_labels, masks=None, classes=2) -> dict:
    """Compares the masks of the float model and of a file.

    Args:
        float_labels, file_labels: class indices (n, h, w).
        masks: (n, h, w), class indices of people's masks, `IGNORE` where nothing counts; or None.
        classes: number of classes.

    Returns:
        images; agreement, percent of the pixels, and agreement_by_image; accuracy, miou (with
        masks, means over images) and cloud_cover, percent, each {"float", "file", "difference"};
        cloud_cover also has mean_absolute_difference, percentage points.
    """
    same = float_labels == file_labels
    found: dict = {
        "images": len(same),
        "agreement": 100 * float(same.mean()),
        "agreement_by_image": [100 * float(image.mean()) for image in same],
    }
    both = {"float": float_labels, "file": file_labels}
    if masks is not None:
        means = {kind: _mean_scores(labels, masks, classes) for kind, labels in both.items()}
        for key in ("accuracy", "miou"):
            found[key] = {kind: 100 * means[kind][key] for kind in both}
    covers = {kind: _covers(labels, masks) for kind, labels in both.items()}
    found["cloud_cover"] = {kind: 100 * float(cover.mean()) for kind, cover in covers.items()}
    for key in SCORES:
        if key in found:
            found[key]["difference"] = found[key]["file"] - found[key]["float"]
    errors = cloud_cover_errors(covers["file"], covers["float"])
    found["cloud_cover"]["mean_absolute_difference"] = errors["mean_absolute_error"]
    return found


def _mean_scores(labels, masks, classes) -> dict:
    counts = [confusion(p, t, classes) for p, t in zip(labels, masks, strict=True)]
    return scores(counts)["image_mean"]


def _covers(labels, masks) -> np.ndarray:
    """Cloud cover of each image that has a pixel that counts, in [0, 1]."""
    valid = np.ones(labels.shape, bool) if masks is None else masks != IGNORE
    covers = []
    for image, counts in zip(labels, valid, strict=True):
        if counts.any():
            covers.append(cloud_cover(image, counts).fraction)
    return np.array(covers)
