"""What a photo says of the sky: cloud cover, mask, overlay, and where the horizon lies."""

from ddunet_keras.sky.cover import (
    CLOUD_COLORS,
    CONTOUR_COLOR,
    NOT_VALID,
    ROUNDING,
    CloudCover,
    Segmentation,
    class_names,
    cloud_cover,
    segment,
)
from ddunet_keras.sky.horizon import Disc, Horizon, check_horizon, find_horizon, horizon_mask
from ddunet_keras.sky.learned_horizon import LearnedHorizon, learn_horizon, show_horizon
from ddunet_keras.sky.zones import check_zone, zone_mask

__all__ = [
    "CLOUD_COLORS",
    "CONTOUR_COLOR",
    "NOT_VALID",
    "ROUNDING",
    "CloudCover",
    "Disc",
    "Horizon",
    "LearnedHorizon",
    "Segmentation",
    "check_horizon",
    "check_zone",
    "class_names",
    "cloud_cover",
    "find_horizon",
    "horizon_mask",
    "learn_horizon",
    "segment",
    "show_horizon",
    "zone_mask",
]
