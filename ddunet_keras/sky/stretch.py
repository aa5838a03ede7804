"""Pixels of any depth to 8 bits, by one rule."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEVELS = (255, 1023, 4095, 16383, 65535)
"""White in files of 8, 10, 12, 14 and 16 bits."""

SIGNED_LEVELS = (255, 1023, 4095, 16383, 32767)
"""The same in files of 16 bits with a sign, which leaves 15."""

FLOAT_LEVELS = (1, *LEVELS)

MIN_STEPS = 8
"""Different values from which it is no chance that all of them are steps of an 8-bit picture."""

STEP_TOLERANCE = 0.05
"""By which a step of an 8-bit picture may be off, in steps: left-aligned 12 bits round to 0.03."""

OVERSHOOT = 1e-3
"""Share of the pixels of a float picture from 0 to 1 that may be over 1, as resampled stars are."""

REFERENCE = 75
"""Percentile that stands for the brightness of the sky: a fisheye's black rim may fill the lower
half of all pixels, lamps and the moon the top."""

DARK = 1 / 16
"""Share of white below which that brightness is a linear exposure of the night: 16 of 255."""

FAINTEST = 1 / 4096
"""Share of white by which it must exceed black: less is no sky, it is a covered lens."""

BLACK = 0.1
"""Percentile of the pixels that is black in such an exposure: the sensor's offset."""

TARGET = 1 / 4
"""Share of white that the sky's brightness becomes, as in the previews of astronomy programs."""

SAMPLE = 1 << 19
"""Pixels, evenly spread, that the rule looks at; the largest value is that of all."""

_BAND = 64  # rows that are worked on at once: floats of a whole photo are large


class _Range(NamedTuple):
    """How values become brightness from 0 to 1: `x = (value - black) / (white - black)`, clipped,
    then `x / (x + midtone * (1 - x))`, which is `x` for a midtone of 1."""

    black: float
    white: float
    midtone: float


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Shows pixels of any depth with 8 bits, as an ordinary photo would.

    1. White is the smallest of 255, 1023, 4095, 16383 and 65535 that no value exceeds; of floats
       also 1, and of 16 bits with a sign 32767 in place of 65535. (A larger value than all of these
       is white itself.)
    2. An 8-bit picture in a wider file, all of whose values are among 256 even steps, gets its 8
       bits back.
    3. Anything else is scaled to white. If three quarters of its pixels are darker than 1/16 of
       white, it is a linear exposure of the night, and is brightened: the darkest thousandth (at
       most half of the sky's brightness) becomes black, and the 75th percentile becomes 1/4 by the
       midtones transfer function of astronomy programs, which is the same for all channels.

    A constant picture stays one: contrast is at most doubled before the midtones are raised, and
    what exceeds black by less than 1/4096 of white stays black.

    Args:
        values: (h, w) or (h, w, 3), integers or floats of any range. NaN is black, infinity white,
            and what is below zero black. uint8 is given back as it is.

    Returns:
        uint8 of the same shape.

    Example:

    >>> to_8_bits(np.array([[0, 2000, 4000]], np.uint16)).tolist()  # 12 of 16 bits
    [[0, 125, 249]]
    >>> to_8_bits(np.array([[0, 0.5, 1.0]], np.float32)).tolist()
    [[0, 128, 255]]
    """
    if values.dtype == np.uint8:
        return values
    limits = _find_range(values)
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _BAND):
        rows = slice(start, start + _BAND)
        x = values[rows].astype(np.float64)
        np.nan_to_num(x, copy=False, posinf=limits.white, neginf=0)
        result[rows] = np.rint(255 * _brightness(x, limits))
    return result


def _brightness(values, limits):
    x = ((values - limits.black) / (limits.white - limits.black)).clip(0, 1)
    return x / (x + limits.midtone * (1 - x)) if limits.midtone != 1 else x


def _find_range(values):
    """Black, white and midtone of a picture, by the rule of `to_8_bits`."""
    sample = _sample(values)
    numbers = sample[np.isfinite(sample)]
    highest = _highest(values)
    if not numbers.size or highest <= 0:
        return _Range(0, 1, 1)
    is_float = values.dtype.kind == "f"
    levels = FLOAT_LEVELS if is_float else LEVELS
    if values.dtype.kind == "i" and values.dtype.itemsize == 2:
        levels = SIGNED_LEVELS

    white = _white_of_8_bits(numbers, highest, levels)
    if white is not None:
        return _Range(0, white, 1)

    white = next((level for level in levels if highest <= level), highest)
    if is_float and np.mean(numbers > 1) <= OVERSHOOT:
        white = 1

    brightness = sample.mean(axis=-1) if sample.ndim == 2 else sample
    brightness = brightness[np.isfinite(brightness)].clip(0, white)
    if not brightness.size:
        return _Range(0, white, 1)
    black, sky = np.percentile(brightness, (BLACK, REFERENCE))
    black = min(black, sky / 2)
    if sky >= DARK * white or sky - black < FAINTEST * white:
        return _Range(0, white, 1)
    x = (sky - black) / (white - black)
    return _Range(black, white, x / (1 - x) * (1 - TARGET) / TARGET)


def _sample(values):
    """Evenly spread pixels, float64 (n,) or (n, 3)."""
    height, width = values.shape[:2]
    step = max(1, round((height * width / SAMPLE) ** 0.5))
    return values[::step, ::step].reshape(-1, *values.shape[2:]).astype(np.float64)


def _highest(values):
    """The largest finite value."""
    if values.dtype.kind != "f":
        return float(values.max())
    bands = (values[start : start + _BAND] for start in range(0, len(values), _BAND))
    finite = (band[np.isfinite(band)] for band in bands)
    return float(max((band.max() for band in finite if band.size), default=0))


def _white_of_8_bits(numbers, highest, levels):
    """White of an 8-bit picture in a wider file; None if it is something else.

    Its values are multiples of white / 255, or of (white + 1) / 256 where they were shifted.
    """
    different = np.unique(numbers)
    if not MIN_STEPS <= len(different) <= 256 or different[0] < 0:
        return None
    for level in reversed(levels):
        for step in (level / 255, (level + 1) / 256 if level > 1 else 1 / 256):
            numbers_of_steps = np.rint(different / step)
            off = np.abs(different / step - numbers_of_steps).max()
            # a tenth more than half an integer
            tolerance = STEP_TOLERANCE if step < 1 else max(STEP_TOLERANCE, 0.55 / step)
            are_different = len(np.unique(numbers_of_steps)) == len(different)
            if highest <= 255.5 * step and off <= tolerance and are_different:
                return 255 * step
    return None
