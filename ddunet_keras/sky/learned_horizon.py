"""Finds from frames of one camera what never is sky: trees, houses, the lens's rim, text.

Clouds move, and what is not sky stays. So the slope of brightness, averaged over the frames, is
small in the sky and large along everything that stands before it. Of the parts that such edges
divide the picture into, the sky is the one that most light comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ddunet_keras.files import DataError
from ddunet_keras.images import as_photo, resize_probabilities
from ddunet_keras.sky.horizon import INSIDE, Disc, find_disc

LONGER_SIDE = 512
"""To which frames are made smaller, pixels: enough for a tree's outline, and quick."""

MIN_FRAMES = 8
"""Least number of frames: with fewer, the edges of clouds do not average out."""

DARK = 16.0
"""Added to brightness before its logarithm: keeps noise in the black from counting."""

STATIC_SLOPE = 0.025
"""Least mean slope of the logarithm of brightness, per pixel, at an edge that stays in place."""

STEADY = 3.0
"""Standard errors by which that slope must differ from 0: clouds' edges come and go."""

SHARP_SLOPE = 0.12
ALWAYS = 0.6
"""Text that changes has no steady slope, but in this share of the frames one as sharp as this."""

GAP = 3
"""Gaps between edges that are narrower than twice this, pixels, let no sky through."""

SMALL_PART = 0.02
"""Parts of the sky that something divides count from this share of the largest part."""

SAME_SKY = 0.3
"""Largest difference of the logarithm of brightness between the sky and a pixel beside it that is
sky, too."""

EDGE_HALF = 2
"""Pixels of an edge, which is blurred, that may belong to the sky."""

RED = (127, 0, 0)
"""Mixed into what is not sky where the mask is shown."""

MOVEMENT = 0.02
"""Least standard deviation over time of the logarithm of brightness in the sky: less is a still."""


@dataclass(frozen=True, eq=False)
class LearnedHorizon:
    """What `learn_horizon` found.

    Attributes:
        mask: boolean (h, w) of the frames' size, True where there is sky; a `horizon`.
        disc: of a whole-sky camera, pixels; None if most frames have none.
        frames: number of frames that were looked at.
        clearest: index of the frame with the most contrast, to look at the mask on.
    """

    mask: np.ndarray
    disc: Disc | None
    frames: int
    clearest: int


def learn_horizon(frames: Iterable[np.ndarray]) -> LearnedHorizon:
    """Finds what never is sky from frames of one camera that does not move.

    Args:
        frames: some dozen photos, uint8 (h, w, 3), all of one size, of many days and hours, with
            clouds in some and daylight in about half. They are taken one at a time, and only sums
            over them are kept.

    Returns:
        `LearnedHorizon`; its mask is a `horizon` for `segment`, to be looked at before use.

    Raises:
        DataError: there are fewer than `MIN_FRAMES`, their sizes differ, nothing moves in them, or
            edges are everywhere, so that no sky is left.
        ValueError: a frame is not uint8 (h, w, 3).

    Example:

    >>> skies = [dd.synthetic_sky(seed, (60, 80), view="patch")[0].copy() for seed in range(16)]
    >>> for sky in skies:
    ...     sky[40:] //= 5  # a hedge
    >>> mask = learn_horizon(skies).mask
    >>> bool(mask[:36].all()), bool(mask[42:].any())
    (True, False)
    """
    sums = None
    size = None
    discs = []
    contrasts = []
    for index, frame in enumerate(frames):
        height, width = as_photo(frame).shape[:2]
        size = size or (height, width)
        if size != (height, width):
            raise DataError(
                f"frame {index + 1}: {width}x{height} pixels, those before {size[1]}x{size[0]}; "
                "give frames of one camera and size"
            )
        level = _level(frame)
        sums = sums or _Sums(level.shape)
        sums.add(level)
        discs.append(find_disc(frame))
        contrasts.append(level.std())
    if sums is None or size is None or sums.frames < MIN_FRAMES:
        raise DataError(
            f"{len(contrasts)} frames, at least {MIN_FRAMES} are needed, better some dozen of many "
            "days and hours"
        )
    disc = _vote(discs)
    sky = _find_sky(sums, disc, size)
    probability = resize_probabilities(sky.astype(np.float32), size)
    return LearnedHorizon(probability > 0.5, disc, sums.frames, int(np.argmax(contrasts)))


def show_horizon(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame, uint8 (h, w, 3), with everything outside the mask, boolean (h, w), in red.

    Example:

    >>> show_horizon(np.full((1, 2, 3), 200, np.uint8), np.array([[True, False]])).tolist()
    [[[200, 200, 200], [227, 100, 100]]]
    """
    picture = frame.copy()
    outside = ~mask
    picture[outside] = picture[outside] // 2 + np.array(RED, np.uint8)
    return picture


def _level(frame):
    """Logarithm of brightness of a frame made smaller, a little blurred."""
    height, width = frame.shape[:2]
    shrink = max(max(height, width) / LONGER_SIDE, 1)
    size = (max(round(width / shrink), 1), max(round(height / shrink), 1))
    small = Image.fromarray(frame).resize(size, Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur(1))
    return np.log(np.asarray(small).max(axis=-1) + np.float32(DARK))


class _Sums:
    """What is kept of the frames: sums over them, (h, w) each."""

    def __init__(self, shape):
        self.frames = 0
        self.level = np.zeros(shape)
        self.level_squared = np.zeros(shape)
        self.slope = np.zeros((2, *shape))
        self.slope_squared = np.zeros(shape)
        self.sharp = np.zeros(shape)

    def add(self, level):
        slope = np.stack(np.gradient(level))
        squared = (slope**2).sum(axis=0)
        relative = level - np.percentile(level, 75)  # whatever the exposure
        self.frames += 1
        self.level += relative
        self.level_squared += relative**2
        self.slope += slope
        self.slope_squared += squared
        self.sharp += squared > SHARP_SLOPE**2

    @property
    def mean_level(self):
        return self.level / self.frames

    @property
    def movement(self):
        """Standard deviation over time of each pixel's level."""
        variance = self.level_squared / self.frames - self.mean_level**2
        return np.sqrt(variance.clip(0))

    @property
    def edges(self):
        """Where an edge or a text stays in place."""
        mean_squared = ((self.slope / self.frames) ** 2).sum(axis=0)
        variance = (self.slope_squared / self.frames - mean_squared).clip(0)
        error_squared = variance / (self.frames - 1)
        is_steady = mean_squared > STEADY**2 * error_squared
        is_text = self.sharp > ALWAYS * self.frames
        return (is_steady & (mean_squared > STATIC_SLOPE**2)) | is_text


def _vote(discs):
    """The disc of most frames: the median of what was found; None if most have none."""
    found = [disc for disc in discs if disc is not None]
    if 3 * len(found) < len(discs):  # at night, and with snow about, it is hard to find
        return None
    values = np.array([(d.x, d.y, d.radius_x, d.radius_y) for d in found])
    return Disc(*np.median(values, axis=0).tolist())


def _find_sky(sums, disc, size):
    """Boolean, of the small frames' size."""
    edges = sums.edges
    height, width = edges.shape
    within = np.ones(edges.shape, bool)
    if disc is not None:
        across = width / size[1]
        down = height / size[0]
        within = Disc(  # its rim is found as an edge
            (disc.x + 0.5) * across - 0.5,
            (disc.y + 0.5) * down - 0.5,
            disc.radius_x * across / INSIDE,
            disc.radius_y * down / INSIDE,
        ).mask(edges.shape)
    smooth = within & ~edges
    core = _brightest_parts(_erode(smooth, GAP), sums.mean_level)
    if not core.any():
        raise DataError(
            "edges are everywhere in these frames, no sky is left; give frames of one camera that "
            "does not move"
        )
    if np.median(sums.movement[core]) < MOVEMENT:
        raise DataError(
            "nothing moves in these frames, so nothing tells sky from what stands before it; give "
            "frames of many days and hours"
        )
    return _grow(core, smooth, sums.mean_level, within)


def _grow(core, smooth, level, within):
    """The core with what was taken from it, and with the half of its edges that is sky."""
    sky = core
    for _ in range(GAP):
        sky = _dilate(sky) & smooth
    for _ in range(EDGE_HALF):
        count = _sum_beside(sky)
        beside = _sum_beside(np.where(sky, level, 0)) / np.maximum(count, 1)
        sky = sky | (within & (count > 0) & (abs(level - beside) < SAME_SKY))
    return sky


def _erode(mask, pixels):
    return ~_dilate(~mask, pixels)


def _dilate(mask, pixels=1):
    picture = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    return np.asarray(picture.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def _sum_beside(values):
    """Sum over each pixel and its eight neighbours."""
    padded = np.pad(values.astype(float), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _brightest_parts(mask, level):
    """The connected part of a mask that most light comes from, with others as bright as it."""
    if not mask.any():
        return mask
    part = _connected_parts(mask)
    levels = level[mask]
    area = np.bincount(part)
    mean_level = np.bincount(part, levels) / area
    sky = np.bincount(part, np.exp(levels)).argmax()
    is_sky = abs(mean_level - mean_level[sky]) < SAME_SKY
    is_sky &= area >= SMALL_PART * area[sky]
    kept = mask.copy()
    kept[mask] = is_sky[part]
    return kept


def _connected_parts(mask):
    """For each pixel of a mask, in order, the number of the connected part that it lies in.

    Every pixel starts with a number of its own. The runs of the mask along rows, and those along
    columns, take the least number in them, in turns, until nothing changes.
    """
    numbers = np.where(mask, np.arange(mask.size).reshape(mask.shape), mask.size)
    before = None
    while before is None or (numbers != before).any():
        before = numbers
        numbers = _least_in_runs(numbers, mask)
        numbers = _least_in_runs(numbers.T, mask.T).T
    return np.unique(numbers[mask], return_inverse=True)[1]


def _least_in_runs(numbers, mask):
    """Gives each run of the mask along a row the least number in it."""
    starts = np.ones(mask.shape, bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    least = np.minimum.reduceat(numbers.ravel(), np.flatnonzero(starts))
    run = starts.ravel().cumsum() - 1
    return least[run].reshape(mask.shape)
