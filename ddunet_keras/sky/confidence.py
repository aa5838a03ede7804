"""How far a cloud cover can be trusted, by what the network's probabilities look like."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OKTA = 0.125
"""An eighth of the sky. The confidence is the probability that the error is at most that."""

COEFFICIENTS = Path(__file__).with_name("confidence.json")

_LITTLE = 1e-3  # keeps logarithms finite


def cover_confidence(
    probabilities: np.ndarray,
    valid: np.ndarray,
    threshold: float = 0.5,
    sky_likeness: float | None = None,
    grey_light: float = 0.0,
) -> float | None:
    """Confidence in a cloud cover: the probability that it is right within one okta.

    It is estimated by logistic regression from the probabilities of one inference, and from how
    much the frame looks like those that the model was trained on. How well it does, is in
    `docs/camera.md`; `tools/measure_confidence.py` fits it.

    Args:
        probabilities: of cloud, float (h, w), or (h, w, n) of each of n classes, of which the first
            is sky; 0 to 1; at the network's own size.
        valid: boolean (height, width), True where the photo shows sky, of any size.
        threshold: from which a pixel is cloud.
        sky_likeness: from `frame_quality`; None: not known, and taken for an average one.
        grey_light: from `frame_quality`.

    Returns:
        0 to 1. None where it cannot be known: no pixel is valid, or the network gives a mask and no
        probabilities.

    Example:

    >>> sure = cover_confidence(np.full((8, 8), 0.99), np.ones((8, 8), bool))
    >>> doubtful = cover_confidence(np.full((8, 8), 0.55), np.ones((8, 8), bool))
    >>> sure > doubtful
    True
    """
    cloud = probabilities if probabilities.ndim == 2 else 1 - probabilities[..., 0]
    rows, columns = (
        (2 * np.arange(size) + 1) * old // (2 * size)
        for size, old in zip(cloud.shape, valid.shape, strict=True)
    )
    known = cloud[valid[rows][:, columns]]
    is_mask = known.size > 0 and known.max() == 1 and np.isin(known, (0, 1)).all()
    if known.size == 0 or is_mask:
        return None
    model = _coefficients()
    signs = doubts(known, threshold, sky_likeness, grey_light)
    averages = model["averages"]
    features = [signs.get(name, averages[name]) for name in model["names"]]
    return float(logistic(np.array(features), model))


def doubts(
    cloud: np.ndarray,
    threshold: float = 0.5,
    sky_likeness: float | None = None,
    grey_light: float = 0.0,
) -> dict[str, float]:
    """Signs of a wrong cloud cover; the larger, the more doubtful.

    Args:
        cloud: probabilities of cloud, of the valid pixels, (n,).
        threshold: from which a pixel is cloud.
        sky_likeness, grey_light: from `frame_quality`.

    Returns:
        By name: "undecided", the logarithm of the mean probability of the less likely class;
        "between", that of the share of pixels that would change with the threshold half way to 0 or
        1; "grey", `grey_light`; and, if it is known, "unlike a sky", the sky's likeness with its
        sign changed.
    """
    low = 0.5 * threshold
    high = 0.5 * (1 + threshold)
    undecided = float(np.minimum(cloud, 1 - cloud).mean())
    between = float(np.mean((cloud >= low) & (cloud < high)))
    signs = {
        "undecided": float(np.log(undecided + _LITTLE)),
        "between": float(np.log(between + _LITTLE)),
        "grey": grey_light,
    }
    if sky_likeness is not None:
        signs["unlike a sky"] = -sky_likeness
    return signs


def logistic(features: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
    """Probabilities of logistic regression, of features (..., n)."""
    return 1 / (1 + np.exp(-(features @ np.asarray(model["weights"]) + model["bias"])))


@functools.cache
def _coefficients() -> dict[str, Any]:
    return json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
