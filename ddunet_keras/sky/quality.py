"""Whether a frame shows the sky at all, before the network sees it: NumPy and Pillow alone.

The network gives a cloud cover for every picture, for a black one and for a page of text, too. What
says nothing of the sky is recognized here. Black, saturated and flat frames are found by rules that
`tflite/` has as well. What shows something else than the sky is found by a small classifier of the
picture's statistics (`describe`), which `tools/fit_frame_quality.py` fits.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddunet_keras.images import as_photo
from ddunet_keras.sky.description import describe

SIDE = 128
"""Longer side of the small picture that is looked at, pixels."""

MIN_SIDE = 64
"""Shorter side of a frame below which the classifier says nothing, pixels."""

MIN_SMALL_SIDE = 16
"""The same of the small picture: of panoramas."""

BLACK_LEVEL = 4
"""A pixel with a channel above it has light; 0 to 255, as all levels here."""

DARK_LEVEL = 16
"""A pixel with a channel above it belongs to no black surrounding, as a fisheye's."""

SATURATED_LEVEL = 250
"""A pixel is saturated if all of its channels reach it."""

FLAT_DEVIATION = 1
"""Largest difference of a channel from its mean in a picture of one colour."""

FEW = 1 / 1000
"""Share of pixels that does not count: noise, a hot pixel. Stars are more, and so is text."""

BRIGHT_PART = 1 / 4
"""Least share of bright pixels in a frame that may be saturated: stars are fewer."""

SATURATED_PART = 19 / 20
"""Share of the bright pixels that are saturated in a saturated frame."""

SAMPLED_LINES = 32
"""About so many rows and columns are compared pixel by pixel to recognize a drawing."""

HARD_STEP = 12
"""Difference of neighbouring pixels from which they are an edge, and no slope."""

EQUAL_PART = 0.6
"""Least share of equal neighbours in a drawing. Photos of smooth skies reach it, too, but ..."""

HARD_PART = 0.25
"""... least share of edges among the other neighbours: in skies it is at most a tenth."""

COMPARED_PART = 0.25
"""Least share of neighbours that are neither black nor white; else nothing is said of a drawing."""

BLACK = "black"
SATURATED = "saturated"
FLAT = "flat colour"
NO_SKY = "no sky in it"
REASONS = (BLACK, SATURATED, FLAT, NO_SKY)
"""Why a frame may be unusable."""

GREY_SPREAD = 2
"""Largest difference between the channels of a pixel without colour."""

COLOURED_PART = 1 / 100
"""Share of coloured pixels up to which a frame is grey, as one of a mono camera."""

LIMIT = 4.0
"""Standardized numbers of the description are clipped to it, either way."""

COEFFICIENTS = Path(__file__).with_name("frame_quality.json")


@dataclass(frozen=True)
class FrameQuality:
    """Whether a frame can be used.

    Attributes:
        reason: why it cannot, one of `REASONS`; None if it can.
        sky_likeness: how much it looks like the frames of the sky that the classifier was fitted
            to, as logarithm of odds; its threshold is 0. None where a rule decided, or the frame is
            too small or narrow.
        grey_light: median brightness of a frame without colours, 0 to 1; 0 of one with colours.
            By day, only colours tell a clear sky from a cloud with certainty.
    """

    reason: str | None = None
    sky_likeness: float | None = None
    grey_light: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether a cloud cover of the frame means anything."""
        return self.reason is None


def frame_quality(image: np.ndarray, valid: np.ndarray | None = None) -> FrameQuality:
    """Tells whether a frame shows the sky.

    Use it before segmenting a frame; `ddunet_keras.sky.segment` does. It takes some milliseconds.

    Args:
        image: uint8 (h, w, 3), RGB.
        valid: boolean (h, w), True where the frame may show sky; everywhere by default.

    Returns:
        `FrameQuality`, with the first reason that applies:

        - "black": fewer than one pixel in 1,000 is brighter than `BLACK_LEVEL`. A dark night has
          more: stars and noise.
        - "saturated": 95 % of what is no black surrounding is white.
        - "flat colour": all but one pixel in 1,000 have the same colour.
        - "no sky in it": it was drawn and not photographed, such as text, or the classifier takes
          it for something else, such as a room.

    Raises:
        ValueError: `image` is not uint8 (h, w, 3), or `valid` has another shape.

    Example:

    >>> frame_quality(np.zeros((60, 80, 3), np.uint8)).reason
    'black'
    >>> frame_quality(dd.synthetic_sky(0)[0]).usable
    True
    """
    image = as_photo(image)
    pixels, small_valid = shrink_frame(image, valid)
    colours = pixels[small_valid]
    reason = find_flaw(colours)
    if reason is None and is_drawing(image, valid):
        reason = NO_SKY
    if reason is not None:
        return FrameQuality(reason)
    if min(image.shape[:2]) < MIN_SIDE or min(pixels.shape[:2]) < MIN_SMALL_SIDE:
        return FrameQuality()
    likeness = sky_likeness(describe(pixels, small_valid))
    reason = None if likeness >= 0 else NO_SKY
    return FrameQuality(reason, likeness, grey_light(colours))


def shrink_frame(
    image: np.ndarray, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its valid pixels with a longer side of at most `SIDE`.

    Args:
        image: uint8 (h, w, 3).
        valid: boolean (h, w); everywhere by default.

    Returns:
        uint8 (height, width, 3), each pixel the mean of those it replaces, and boolean
        (height, width).

    Raises:
        ValueError: `valid` has another shape.
    """
    height, width = image.shape[:2]
    if valid is not None and np.shape(valid) != (height, width):
        raise ValueError(
            f"valid: expected shape {(height, width)}, received shape {np.shape(valid)}"
        )
    shrink = min(SIDE / max(height, width), 1)
    new_height = max(round(height * shrink), 1)
    new_width = max(round(width * shrink), 1)
    picture = Image.fromarray(image)
    small = np.asarray(
        picture.resize((new_width, new_height), Image.Resampling.BOX, reducing_gap=2.0)
    )
    if valid is None:
        return small, np.ones((new_height, new_width), bool)
    rows = (2 * np.arange(new_height) + 1) * height // (2 * new_height)
    columns = (2 * np.arange(new_width) + 1) * width // (2 * new_width)
    return small, valid[rows][:, columns]


def find_flaw(colours: np.ndarray) -> str | None:
    """Why pixels say nothing of the sky, by the rules that `tflite/` has, too.

    Args:
        colours: uint8 (n, 3), the valid pixels of a small picture.

    Returns:
        "black", "saturated", "flat colour", or None.

    Example:

    >>> find_flaw(np.full((100, 3), 255, np.uint8))
    'saturated'
    """
    if len(colours) == 0:
        return BLACK
    planes = np.ascontiguousarray(colours.T)  # fast, see `is_drawing`
    brightest = planes.max(axis=0)
    if np.mean(brightest > BLACK_LEVEL) < FEW:
        return BLACK
    bright = np.mean(brightest > DARK_LEVEL)
    saturated = np.mean(planes.min(axis=0) >= SATURATED_LEVEL)
    if bright >= BRIGHT_PART and saturated >= SATURATED_PART * bright:
        return SATURATED
    mean = np.floor(planes.mean(axis=1, keepdims=True) + 0.5).astype(np.int16)
    deviation = abs(planes - mean).max(axis=0)
    if np.mean(deviation > FLAT_DEVIATION) < FEW:
        return FLAT
    return None


def grey_light(colours: np.ndarray) -> float:
    """How bright a frame without colours is.

    Args:
        colours: uint8 (n, 3), the valid pixels of a small picture, at least one.

    Returns:
        The median of their brightest channels, 0 to 1; 0 if they have colours.

    Example:

    >>> grey_light(np.full((9, 3), 51, np.uint8)), grey_light(np.uint8([[90, 100, 120]]))
    (0.2, 0.0)
    """
    planes = np.ascontiguousarray(colours.T)  # fast, see `is_drawing`
    brightest = planes.max(axis=0)
    if np.mean(brightest - planes.min(axis=0) > GREY_SPREAD) > COLOURED_PART:
        return 0.0
    return float(np.median(brightest)) / 255


def is_drawing(image: np.ndarray, valid: np.ndarray | None = None) -> bool:
    """Whether a picture consists of areas of one colour with hard edges: text, plots, test cards.

    Neighbours are compared at full size, in some rows and columns. A photo has noise, and where
    compression has removed it, slopes.

    Args:
        image: uint8 (h, w, 3).
        valid: boolean (h, w); everywhere by default.

    Example:

    >>> card = np.full((90, 120, 3), 40, np.uint8)
    >>> card[30:60, 40:80] = 200
    >>> is_drawing(card)
    True
    """
    if valid is None:
        valid = np.broadcast_to(True, image.shape[:2])
    every_row, every_column = (max(side // SAMPLED_LINES, 1) for side in valid.shape)
    pairs = compared = equal = edges = 0
    for lines, valid_lines in (
        (image[::every_row], valid[::every_row]),
        (image[:, ::every_column].copy().swapaxes(0, 1), valid[:, ::every_column].T),
    ):
        # a plane for each colour: NumPy is ten times slower over a last axis of three
        planes = np.ascontiguousarray(np.moveaxis(lines, -1, 0))
        valid_lines = np.ascontiguousarray(valid_lines)
        dark = planes.max(axis=0) <= DARK_LEVEL
        white = planes.min(axis=0) >= SATURATED_LEVEL
        before = planes[..., :-1]
        after = planes[..., 1:]
        step = (np.maximum(before, after) - np.minimum(before, after)).max(axis=0)
        both_valid = valid_lines[:, 1:] & valid_lines[:, :-1]
        same_end = (dark[:, 1:] & dark[:, :-1]) | (white[:, 1:] & white[:, :-1])
        counted = both_valid & ~same_end
        pairs += int(np.count_nonzero(both_valid))
        compared += int(np.count_nonzero(counted))
        equal += int(np.count_nonzero(counted & (step == 0)))
        edges += int(np.count_nonzero(counted & (step > HARD_STEP)))
    if compared < max(COMPARED_PART * pairs, 1) or equal < EQUAL_PART * compared:
        return False
    return bool(edges >= HARD_PART * (compared - equal))


def sky_likeness(description: dict[str, float]) -> float:
    """How much a described picture looks like the sky.

    Args:
        description: from `describe`.

    Returns:
        The logarithm of the odds, shifted so that from 0 on it counts as sky.
    """
    model = _coefficients()
    numbers = np.array([description[name] for name in model["names"]])
    inputs = ((numbers - model["mean"]) / model["deviation"]).clip(-LIMIT, LIMIT)
    hidden = np.tanh(inputs @ model["hidden_weights"] + model["hidden_bias"])
    return float(hidden @ model["weights"] + model["bias"])


@functools.cache
def _coefficients() -> dict[str, Any]:
    """Names and arrays of the classifier: a network with one hidden layer."""
    read = json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
    names = read.pop("names")
    return {"names": names} | {name: np.array(values) for name, values in read.items()}
