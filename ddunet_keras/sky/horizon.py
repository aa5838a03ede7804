"""Where a photo shows sky at all: a camera's horizon, given or found."""

from __future__ import annotations

import os
import re

import numpy as np
from PIL import Image

from ddunet_keras.files import DataError, read_gray


def horizon_mask(spec, image) -> np.ndarray:
    """Where a photo shows sky at all, by what a camera's owner knows of it.

    Args:
        spec: None: everywhere. `"auto"`: inside the bright disc of a whole-sky photo, everywhere
            in a photo that has no disc on dark surroundings. `"circle:x,y,r"`: pixels whose column
            and row, counted from 0, lie at most `r` from `(x, y)`. The path of a mask picture or an
            array: sky where its value is at least 128, or, if no value is over 1, at least 0.5; it
            is resized if only its scale differs from the photo's.
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
    image = np.asarray(image)
    if image.shape[2:] != (3,) or 0 in image.shape or image.dtype != np.uint8:
        raise ValueError(
            f"image: expected uint8 of shape (h, w, 3), received {image.dtype} of {image.shape}"
        )
    height, width = image.shape[:2]
    if spec is None:
        return np.ones((height, width), bool)
    if isinstance(spec, str) and spec == "auto":
        return _find_disc(image)
    if isinstance(spec, str) and spec.startswith("circle:"):
        valid = _circle(spec, height, width)
    elif isinstance(spec, (str, os.PathLike)):
        if not os.path.exists(spec):
            raise DataError(
                f"horizon {str(spec)!r}: no such mask picture; give one, 'auto' or 'circle:x,y,r'"
            )
        valid = _fit_mask(read_gray(spec), f"horizon {str(spec)!r}", height, width)
    elif isinstance(spec, np.ndarray):
        valid = _fit_mask(spec, "horizon array", height, width)
    else:
        raise DataError(
            f"horizon {spec!r}: expected None, 'auto', 'circle:x,y,r', a path or an array"
        )
    if not valid.any():
        name = "array" if isinstance(spec, np.ndarray) else repr(str(spec))
        raise DataError(f"horizon {name}: leaves no sky in a photo of {width}x{height} pixels")
    return valid


def _circle(spec, height, width):
    number = r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*"
    match = re.fullmatch(f"circle:{number},{number},{number}", spec)
    x, y, radius = map(float, match.groups()) if match else (0.0, 0.0, 0.0)
    if radius <= 0:
        raise DataError(
            f"horizon {spec!r}: expected 'circle:x,y,r', centre and radius (over 0) in pixels of "
            "the photo, such as 'circle:320,240,235.5'"
        )
    return np.hypot(np.arange(width) - x, (np.arange(height) - y)[:, None]) <= radius


def _fit_mask(mask, name, height, width):
    if mask.ndim != 2 or mask.dtype.kind not in "biuf" or not mask.size:
        raise DataError(f"{name}: expected shape (h, w), received {mask.dtype} of {mask.shape}")
    rows, columns = mask.shape
    # rounding to whole pixels changes the proportions a little
    if abs(columns * height / (rows * width) - 1) > 0.01:
        raise DataError(
            f"{name}: {columns}x{rows} pixels for a photo of {width}x{height}; the proportions "
            "must agree"
        )
    sky = mask >= (0.5 if mask.max() <= 1 else 128)
    row, column = (
        (2 * np.arange(n) + 1) * m // (2 * n) for n, m in ((height, rows), (width, columns))
    )
    return sky[row][:, column]


def _find_disc(image, size=256):
    """Where a whole-sky photo's bright disc is; everywhere if there is none.

    On rays from the middle, brightness falls most, in ratio, where the lens's picture ends. An
    ellipse (the photo is made square) is fitted to these points and to ever fewer of them, moved in
    to where the fall starts, and believed if most points lie on it and it is dark outside.
    """
    height, width = image.shape[:2]
    everywhere = np.ones((height, width), bool)
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
    level = np.asarray(small).max(axis=-1)
    angles = np.linspace(0, 2 * np.pi, 240, endpoint=False)[:, None]
    x, y = ((size - 1) / 2 + np.arange(0.7 * size) * f(angles) for f in (np.cos, np.sin))
    inside = (abs(x - (size - 1) / 2) < size / 2) & (abs(y - (size - 1) / 2) < size / 2)
    column, row = (np.rint(p).astype(int).clip(0, size - 1) for p in (x, y))
    # the constant keeps noise in the black from counting as a fall
    ray = np.log(level[row, column] + 16.0)
    # between the mean of samples k, k + 1 of a ray and that of k + 2, k + 3
    fall = (ray[:, :-3] + ray[:, 1:-2] - ray[:, 2:-1] - ray[:, 3:]) / 2 * inside[:, 3:]
    x, y, inside = (x[:, 1:-2] + x[:, 2:-1]) / 2, (y[:, 1:-2] + y[:, 2:-1]) / 2, inside[:, 3:]
    edge = np.arange(len(angles)), fall.argmax(axis=1)
    disc, on = _fit_ellipse(x[edge], y[edge], fall[edge] > 0.12, (0.5, 0.3, 0.2, 0.1, 0.06))
    if disc is None:
        return everywhere
    # the lens's rim may shine: the sky ends where the first clear fall is
    first = (fall > 0.35 * fall[edge][:, None]) & (abs(_radius(disc, x, y) - 1) < 0.08)
    edge = edge[0], first.argmax(axis=1)
    disc, on = _fit_ellipse(x[edge], y[edge], on, (0.08, 0.04, 0.04))
    if disc is None:
        return everywhere
    outside = _radius(disc, np.arange(size), np.arange(size)[:, None]) > 1.05
    in_frame = (inside & (_radius(disc, x, y) > 1.05)).any(axis=1)
    if not outside.any() or on.sum() < 0.7 * in_frame.sum():
        return everywhere
    # neither a moon's halo nor a round cloud
    darkest = min(np.percentile(level[~outside], 10), 64)
    if min(disc[2:]) < 0.2 * size or np.percentile(level[outside], 75) >= darkest:
        return everywhere
    x, y = ((np.arange(n) + 0.5) * size / n - 0.5 for n in (width, height))
    # the rim is blurred: stay a little inside
    return _radius(disc, x, y[:, None]) <= 0.985


def _fit_ellipse(x, y, usable, tolerances):
    """Upright ellipse (cx, cy, rx, ry) through points, None if too few agree; and who agrees."""
    on = usable
    for tolerance in tolerances:
        if on.mean() < 0.25:
            return None, on
        middle_x, middle_y = x[on].mean(), y[on].mean()
        u, v = x[on] - middle_x, y[on] - middle_y
        terms = np.stack([u * u, v * v, u, v], axis=-1)
        a, b, c, d = np.linalg.lstsq(terms, np.ones(len(u)), rcond=None)[0]
        if min(a, b) <= 0:
            return None, on
        k = 1 + c * c / (4 * a) + d * d / (4 * b)
        ellipse = middle_x - c / (2 * a), middle_y - d / (2 * b), (k / a) ** 0.5, (k / b) ** 0.5
        on = usable & (abs(_radius(ellipse, x, y) - 1) < tolerance)
    return ellipse, on


def _radius(ellipse, x, y):
    """Distance from an ellipse's centre, 1 on the ellipse."""
    cx, cy, rx, ry = ellipse
    return np.hypot((x - cx) / rx, (y - cy) / ry)
