"""What a photo says of the sky: cloud cover, mask, overlay, where the horizon lies, and whether the
photo says anything at all."""

from ddunet_keras.sky.confidence import cover_confidence
from ddunet_keras.sky.cover import (
    CLOUD_COLORS,
    CONTOUR_COLOR,
    NOT_VALID,
    ROUNDING,
    CloudCover,
    Segmentation,
    blacken,
    class_names,
    cloud_cover,
    segment,
)
from ddunet_keras.sky.description import describe
from ddunet_keras.sky.horizon import check_horizon, horizon_mask
from ddunet_keras.sky.quality import REASONS, FrameQuality, frame_quality

__all__ = [
    "CLOUD_COLORS",
    "CONTOUR_COLOR",
    "NOT_VALID",
    "REASONS",
    "ROUNDING",
    "CloudCover",
    "FrameQuality",
    "Segmentation",
    "blacken",
    "check_horizon",
    "class_names",
    "cloud_cover",
    "cover_confidence",
    "describe",
    "frame_quality",
    "horizon_mask",
    "segment",
]
