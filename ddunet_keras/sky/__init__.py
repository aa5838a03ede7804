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
from ddunet_keras.sky.horizon import check_horizon, horizon_mask

__all__ = [
    "CLOUD_COLORS",
    "CONTOUR_COLOR",
    "NOT_VALID",
    "ROUNDING",
    "CloudCover",
    "Segmentation",
    "check_horizon",
    "class_names",
    "cloud_cover",
    "horizon_mask",
    "segment",
]
