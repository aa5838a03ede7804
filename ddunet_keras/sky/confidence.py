"""How far a cloud cover can be trusted, by what the network's probabilities look like."""

from __future__ import annotations

import numpy as np


def cover_confidence(
    probabilities: np.ndarray, valid: np.ndarray, threshold: float = 0.5
) -> float | None:
    """Confidence in a cloud cover, 0 to 1."""
    return None
