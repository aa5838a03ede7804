"""Parts of the sky that have a cloud cover of their own: around the zenith, or drawn by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ddunet_keras.files import DataError
from ddunet_keras.sky.horizon import Disc, check_region, region_mask

EDGE = 90.0
"""Degrees from the zenith at which the disc of a fisheye ends: at the horizon."""


def zone_mask(spec: Any, shape: tuple[int, int], disc: Disc | None = None) -> np.ndarray:
    """The part of a photo that a zone names.

    Args:
        spec: `"zenith:DEGREES"`: what lies at most so far from the zenith. The disc is taken for
            that of an equidistant fisheye, in which the distance from the centre is proportional
            to the angle from the zenith (Miyamoto, J. Opt. Soc. Am. 54, 1060, 1964), and its edge
            for the horizon, 90 degrees away. `"circle:x,y,r"`, a mask picture or an array: as in
            `horizon_mask`.
        shape: (h, w) of the photo.
        disc: of the photo, from `find_horizon`; "zenith" needs it.

    Returns:
        Boolean (h, w).

    Raises:
        DataError: `spec` has another form, is no readable mask of the photo's proportions, lies
            outside the photo, or needs a disc where there is none.

    Example:

    >>> disc = Disc(x=50, y=50, radius_x=45, radius_y=45)
    >>> int(zone_mask("zenith:30", (101, 101), disc)[50].sum())  # 15 to each side of the zenith
    31
    """
    if not _is_zenith(spec):
        return region_mask(spec, shape, "zone")
    degrees = _parse_zenith(spec)
    if disc is None:
        raise DataError(
            f"zone {spec!r}: needs the disc of a fisheye, and there is none; give the horizon as "
            "'circle:x,y,r', or 'auto' where it finds the disc, or the zone as 'circle:x,y,r'"
        )
    return disc.mask(shape, degrees / EDGE)


def check_zone(spec: Any, horizon: Any) -> None:
    """Tells before the first photo whether a zone can be placed with this horizon.

    Args:
        spec: as in `zone_mask`.
        horizon: as in `horizon_mask`.

    Raises:
        DataError: the zone has another form, is no readable mask, or needs the disc of a fisheye
            that this horizon does not have.

    Example:

    >>> check_zone("zenith:30", "circle:320,240,235.5")
    """
    if not _is_zenith(spec):
        check_region(spec, "zone")
        return
    _parse_zenith(spec)
    has_disc = isinstance(horizon, str) and (horizon == "auto" or horizon.startswith("circle:"))
    if not has_disc:
        raise DataError(
            f"zone {spec!r}: needs the disc of a fisheye: a horizon 'circle:x,y,r' or 'auto'; "
            "with another one, give the zone as 'circle:x,y,r' or a mask"
        )


def _is_zenith(spec):
    return isinstance(spec, str) and spec.startswith("zenith:")


def _parse_zenith(spec):
    match = re.fullmatch(r"zenith:\s*(\d+\.?\d*|\.\d+)\s*", spec)
    degrees = float(match[1]) if match else 0.0
    if not 0 < degrees <= EDGE:
        raise DataError(
            f"zone {spec!r}: expected 'zenith:DEGREES', over 0 and at most 90, such as 'zenith:30'"
        )
    return degrees
