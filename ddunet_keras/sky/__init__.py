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
from ddunet_keras.sky.horizon import Disc, Horizon, check_horizon, find_horizon, horizon_mask
from ddunet_keras.sky.horizon_array import write_horizon_array
from ddunet_keras.sky.learned_horizon import LearnedHorizon, learn_horizon, show_horizon
from ddunet_keras.sky.quality import REASONS, FrameQuality, frame_quality
from ddunet_keras.sky.zones import check_zone, zone_mask

__all__ = [
    "CLOUD_COLORS",
    "CONTOUR_COLOR",
    "NOT_VALID",
    "REASONS",
    "ROUNDING",
    "CloudCover",
    "Disc",
    "FrameQuality",
    "Horizon",
    "LearnedHorizon",
    "Segmentation",
    "blacken",
    "check_horizon",
    "check_zone",
    "class_names",
    "cloud_cover",
    "cover_confidence",
    "describe",
    "find_horizon",
    "frame_quality",
    "horizon_mask",
    "learn_horizon",
    "segment",
    "show_horizon",
    "write_horizon_array",
    "zone_mask",
]
