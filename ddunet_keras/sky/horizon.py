"""Where a photo shows sky at all: a camera's horizon, given or found."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddunet_keras.files import DataError, read_gray
from ddunet_keras.images import as_photo

SIZE = 256
"""Side of the square that the photo is made for the search, pixels."""

RAYS = 240
"""Rays from the middle of the photo on which the disc's edge is looked for."""

CLEAR_FALL = 0.12
"""Least fall of the logarithm of brightness that may be the edge: to 89 %."""

FIRST_FALL = 0.35
"""Share of a ray's largest fall from which a fall may be where the sky ends."""

COARSE = (0.5, 0.3, 0.2, 0.1, 0.06)
FINE = (0.08, 0.04, 0.04)
"""Distances from the ellipse, in radii, within which points are kept, one for each fit."""

INSIDE = 0.985
OUTSIDE = 1.05
"""Radii of what is surely within the disc (its rim is blurred), and surely beyond it."""

MASKS_KEPT = 4
"""Mask pictures that are kept: a camera has one for all of its photos, and perhaps some zones."""

_BAND = 64  # rows of a photo that are worked on at once, to save memory

_FORMS = {
    "horizon": ("None, 'auto', 'circle:x,y,r', a path or an array", "'auto' or 'circle:x,y,r'"),
    "zone": (
        "'zenith:DEGREES', 'circle:x,y,r', a path or an array",
        "'zenith:DEGREES' or 'circle:x,y,r'",
    ),
}
"""What may stand for a region of each kind, and what in place of a path."""


@dataclass(frozen=True)
class Disc:
    """The disc of a whole-sky photo: an upright ellipse, mostly a circle.

    Attributes:
        x, y: column and row of the centre, counted from 0, pixels of the photo.
        radius_x, radius_y: half of its width and of its height, pixels of the photo.

    Example:

    >>> int(Disc(x=2, y=2, radius_x=1, radius_y=1).mask((5, 5)).sum())
    5
    """

    x: float
    y: float
    radius_x: float
    radius_y: float

    def distance(self, x: Any, y: Any) -> Any:
        """Distance of points from the centre: 1 on the edge."""
        return self._distance(x, y) / self.radius_x

    def mask(self, shape: tuple[int, int], share: float = 1.0) -> np.ndarray:
        """Boolean `shape` = (h, w): what lies within this share of the radius."""
        inside = np.empty(shape, bool)
        x = np.arange(shape[1])
        y = np.arange(shape[0])[:, None]
        for start in range(0, shape[0], _BAND):
            rows = slice(start, start + _BAND)
            inside[rows] = self._distance(x, y[rows]) <= share * self.radius_x
        return inside

    def _distance(self, x, y):
        """In pixels of a row; of a circle, without any rounding of the edge."""
        return np.hypot(x - self.x, (y - self.y) * (self.radius_x / self.radius_y))

    def to_dict(self) -> dict[str, float]:
        """`x`, `y`, `radius_x` and `radius_y`, to a tenth of a pixel, as JSON holds them."""
        return {name: round(float(value), 1) for name, value in asdict(self).items()}


class Horizon(NamedTuple):
    """Where a photo shows sky: `valid`, boolean (h, w), and the disc, None where there is none."""

    valid: np.ndarray
    disc: Disc | None


def find_horizon(spec: Any, image: np.ndarray) -> Horizon:
    """Where a photo shows sky at all, and the disc of a whole-sky photo.

    Args:
        spec, image: as in `horizon_mask`.

    Returns:
        `Horizon`. Its disc is the circle that was given, or what "auto" found: None of "auto" tells
        that the photo has no disc on dark surroundings, and all of it is taken for sky.

    Raises:
        As `horizon_mask`.

    Example:

    >>> find_horizon("circle:2,2,1", np.zeros((5, 5, 3), np.uint8)).disc.radius_x
    1.0
    >>> print(find_horizon("auto", np.zeros((5, 5, 3), np.uint8)).disc)
    None
    """
    shape = as_photo(image).shape[:2]
    everywhere = np.ones(shape, bool)
    if spec is None:
        return Horizon(everywhere, None)
    if isinstance(spec, str) and spec == "auto":
        disc = find_disc(image)
        return Horizon(everywhere if disc is None else disc.mask(shape), disc)
    if isinstance(spec, Horizon):
        return Horizon(region_mask(spec.valid, shape, "horizon"), spec.disc)
    disc = None
    if isinstance(spec, str) and spec.startswith("circle:"):
        disc = _parse_circle(spec, "horizon")
    return Horizon(region_mask(spec, shape, "horizon"), disc)


def horizon_mask(spec: Any, image: np.ndarray) -> np.ndarray:
    """Where a photo shows sky at all, by what a camera's owner knows of it.

    Args:
        spec: None: everywhere. `"auto"`: inside the bright disc of a whole-sky photo, everywhere
            in a photo that has no disc on dark surroundings (`find_horizon` tells which).
            `"circle:x,y,r"`: pixels whose column and row, counted from 0, lie at most `r` from
            `(x, y)`. The path of a mask picture or an array: sky where its value is at least 128,
            or, if no value is over 1, at least 0.5, and where the picture is not transparent; it is
            resized if only its scale differs from the photo's. A `Horizon`: as it is.
        image: the photo, (h, w, 3) uint8.

    Returns:
        Boolean (h, w), True where the photo shows sky.

    Raises:
        DataError: `spec` has another form, is no readable mask of the photo's proportions, or
            leaves no sky.
        ValueError: `image` has another shape or type.

    Example:

    >>> int(horizon_mask("circle:2,2,1", np.zeros((5, 5, 3), np.uint8)).sum())
    5
    """
    return find_horizon(spec, image).valid


def check_horizon(spec: Any) -> None:
    """Tells before the first photo whether `horizon_mask` can make sense of a text or path.

    Raises:
        DataError: a circle of another form, or no readable mask picture.

    Example:

    >>> check_horizon("circle:320,240,235.5")
    """
    if spec is not None and not (isinstance(spec, str) and spec == "auto"):
        check_region(spec, "horizon")


def region_mask(spec: Any, shape: tuple[int, int], kind: str) -> np.ndarray:
    """The part of a photo that a circle, a mask picture or an array names.

    Args:
        spec: "circle:x,y,r", the path of a mask picture, or an array (see `horizon_mask`).
        shape: (h, w) of the photo.
        kind: "horizon" or "zone": what messages call it.

    Returns:
        Boolean (h, w), True somewhere.

    Raises:
        DataError: as `horizon_mask`.
    """
    height, width = shape
    if isinstance(spec, str) and spec.startswith("circle:"):
        region = _parse_circle(spec, kind).mask(shape)
    elif isinstance(spec, (str, os.PathLike)):
        region = _fit_mask(_read_mask(spec, kind), f"{kind} {str(spec)!r}", height, width)
    elif isinstance(spec, np.ndarray):
        region = _fit_mask(spec, f"{kind} array", height, width)
    else:
        raise DataError(f"{kind} {spec!r}: expected {_FORMS[kind][0]}")
    if not region.any():
        name = "array" if isinstance(spec, np.ndarray) else repr(str(spec))
        raise DataError(f"{kind} {name}: leaves no sky in a photo of {width}x{height} pixels")
    return region


def check_region(spec: Any, kind: str) -> None:
    """Tells before the first photo whether `region_mask` can make sense of a text or path.

    Raises:
        DataError: a circle of another form, or no readable mask picture.
    """
    if isinstance(spec, str) and spec.startswith("circle:"):
        _parse_circle(spec, kind)
    elif isinstance(spec, (str, os.PathLike)):
        _read_mask(spec, kind)


def _parse_circle(spec, kind):
    number = r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*"
    match = re.fullmatch(f"circle:{number},{number},{number}", spec)
    x, y, radius = map(float, match.groups()) if match else (0.0, 0.0, 0.0)
    if radius <= 0:
        raise DataError(
            f"{kind} {spec!r}: expected 'circle:x,y,r', centre and radius (over 0) in pixels of "
            "the photo, such as 'circle:320,240,235.5'"
        )
    return Disc(x, y, radius, radius)


def _read_mask(path, kind):
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        others = _FORMS[kind][1]
        raise DataError(f"{kind} {str(path)!r}: no such mask picture; give one, {others}") from None
    try:
        return _cached_mask(os.fspath(path), about.st_mtime_ns, about.st_size)
    except DataError as error:
        raise DataError(f"{kind} {error}") from None


@functools.lru_cache(maxsize=MASKS_KEPT)
def _cached_mask(path, written, size):
    """A mask picture's values, not to be written to; read again once the file has changed."""
    values = read_gray(path, transparent=0, palette="luminance")
    values.setflags(write=False)
    return values


def _fit_mask(mask, name, height, width):
    if mask.ndim != 2 or mask.dtype.kind not in "biuf" or not mask.size:
        raise DataError(f"{name}: expected shape (h, w), received {mask.dtype} of {mask.shape}")
    rows, columns = mask.shape
    # rounding to full pixels changes the proportions a little
    if abs(columns * height / (rows * width) - 1) > 0.01:
        raise DataError(
            f"{name}: {columns}x{rows} pixels for a photo of {width}x{height}; the proportions "
            "must agree"
        )
    is_sky = mask if mask.dtype == bool else mask >= (0.5 if mask.max() <= 1 else 128)
    if mask.shape == (height, width):
        return is_sky
    return is_sky[_nearest(height, rows)][:, _nearest(width, columns)]


def _nearest(size, source_size):
    """Index of the nearest source pixel for each of `size` pixels."""
    return (2 * np.arange(size) + 1) * source_size // (2 * size)


def find_disc(image: np.ndarray) -> Disc | None:
    """Where a whole-sky photo's bright disc is.

    On rays from the middle, brightness falls most, in ratio, where the lens's picture ends. An
    ellipse (the photo is made square) is fitted to these points and to ever fewer of them, moved in
    to where the fall starts, and believed if most points lie on it and it is dark outside.

    Args:
        image: the photo, (h, w, 3) uint8.

    Returns:
        The disc, a little smaller than the lens's picture, whose rim is blurred; None where
        there is none.
    """
    height, width = as_photo(image).shape[:2]
    small = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BOX)
    disc = _fit_disc(np.asarray(small).max(axis=-1))
    if disc is None:
        return None
    across = width / SIZE
    down = height / SIZE
    return Disc(
        x=(disc.x + 0.5) * across - 0.5,
        y=(disc.y + 0.5) * down - 0.5,
        radius_x=INSIDE * disc.radius_x * across,
        radius_y=INSIDE * disc.radius_y * down,
    )


def _fit_disc(brightness):
    """The disc's ellipse in a square photo, None if there is no disc."""
    x, y, in_photo, fall = _falls_along_rays(brightness)
    ray = np.arange(RAYS)
    edge = (ray, fall.argmax(axis=1))
    disc, on_disc = _fit_ellipse(x[edge], y[edge], fall[edge] > CLEAR_FALL, COARSE)
    if disc is None:
        return None
    # the lens's rim may shine: the sky ends where the first clear fall is
    is_first = (fall > FIRST_FALL * fall[edge][:, None]) & (abs(disc.distance(x, y) - 1) < FINE[0])
    edge = (ray, is_first.argmax(axis=1))
    disc, on_disc = _fit_ellipse(x[edge], y[edge], on_disc, FINE)
    if disc is None:
        return None

    # rays whose edge the photo shows: where the disc is cut off, there is none
    shows_edge = (in_photo & (disc.distance(x, y) > OUTSIDE)).any(axis=1)
    outside = ~disc.mask((SIZE, SIZE), OUTSIDE)
    if not outside.any() or on_disc.sum() < 0.7 * shows_edge.sum():
        return None
    # neither a moon's halo nor a round cloud: those are small, or bright outside
    if min(disc.radius_x, disc.radius_y) < 0.2 * SIZE:
        return None
    darkest_sky = min(np.percentile(brightness[~outside], 10), 64)
    return disc if np.percentile(brightness[outside], 75) < darkest_sky else None


def _falls_along_rays(brightness):
    """How much brightness falls along rays from the middle.

    Returns:
        x and y of points on the rays, whether the photo reaches them, and the fall of the logarithm
        of brightness there; all (RAYS, points).
    """
    middle = (SIZE - 1) / 2
    angles = np.linspace(0, 2 * np.pi, RAYS, endpoint=False)[:, None]
    distances = np.arange(0.7 * SIZE)  # a little less than half of the diagonal
    x = middle + distances * np.cos(angles)
    y = middle + distances * np.sin(angles)
    in_photo = (abs(x - middle) < SIZE / 2) & (abs(y - middle) < SIZE / 2)
    column = np.rint(x).astype(int).clip(0, SIZE - 1)
    row = np.rint(y).astype(int).clip(0, SIZE - 1)
    # the constant keeps noise in the black from counting as a fall
    level = np.log(brightness[row, column] + 16.0)
    # between the mean of samples k, k + 1 of a ray and that of k + 2, k + 3
    fall = (level[:, :-3] + level[:, 1:-2] - level[:, 2:-1] - level[:, 3:]) / 2
    in_photo = in_photo[:, 3:]
    x = (x[:, 1:-2] + x[:, 2:-1]) / 2
    y = (y[:, 1:-2] + y[:, 2:-1]) / 2
    return x, y, in_photo, fall * in_photo


def _fit_ellipse(x, y, usable, tolerances):
    """Ellipse through points, None if too few agree; and which points agree.

    It is fitted once for each tolerance, to the points that the one before left.
    """
    on_ellipse = usable
    ellipse = None
    for tolerance in tolerances:
        if on_ellipse.mean() < 0.25:
            return None, on_ellipse
        # a u^2 + b v^2 + c u + d v = 1, by least squares
        middle_x = x[on_ellipse].mean()
        middle_y = y[on_ellipse].mean()
        u = x[on_ellipse] - middle_x
        v = y[on_ellipse] - middle_y
        terms = np.stack([u * u, v * v, u, v], axis=-1)
        a, b, c, d = np.linalg.lstsq(terms, np.ones(len(u)), rcond=None)[0]
        if min(a, b) <= 0:
            return None, on_ellipse
        k = 1 + c * c / (4 * a) + d * d / (4 * b)
        ellipse = Disc(
            middle_x - c / (2 * a), middle_y - d / (2 * b), (k / a) ** 0.5, (k / b) ** 0.5
        )
        on_ellipse = usable & (abs(ellipse.distance(x, y) - 1) < tolerance)
    return ellipse, on_ellipse
