"""The mosaic that a colour sensor has before its colours are computed: found, and resolved."""

from __future__ import annotations

import numpy as np

PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
"""Colours of the first two pixels of the first row, then of the second."""

NO_MOSAIC = "NONE"
"""Stands for a pattern where a gray file is known to be monochrome."""

TILE = 64
"""Side of the tiles in which a mosaic is looked for, pixels: noise averages out in them."""

CONTRAST = 0.03
"""Least contrast between the pixels of a mosaic, as a share of brightness: twice what any of 408
gray photos has, with JPEG's artefacts and noise. Colours that differ by less are nearly gray."""

MIN_TILES = 4
"""Tiles that are bright enough to judge by; with fewer nothing is said."""

DIM = 0.02
"""Share of the brightest tile's brightness below which a tile is a fisheye's rim, or black."""

MAX_TILES = 4096
"""Tiles, evenly spread, that are looked at."""


def mosaic_contrast(gray: np.ndarray) -> float:
    """How much neighbouring pixels differ with a period of two, as in a Bayer mosaic.

    In a tile, the four components of period two (brightness, columns, rows, chequerboard) are
    sums over all of its pixels with weights that let no gradient through. What noise and texture
    give averages out; a mosaic's colours do not.

    Args:
        gray: (h, w), integers or floats.

    Returns:
        The median over the tiles of the largest component as a share of brightness; 0 where the
        picture is too small or too dark to tell.

    Example:

    >>> mosaic = np.tile([[90, 120], [120, 200]], (64, 64))
    >>> mosaic_contrast(mosaic) > CONTRAST > mosaic_contrast(np.full((128, 128), 120))
    True
    """
    rows, columns = (side // TILE for side in gray.shape)
    if rows * columns < MIN_TILES:
        return 0.0
    step = max(1, int(np.ceil((rows * columns / MAX_TILES) ** 0.5)))
    whole = gray[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
    tiles = whole[::step, :, ::step].transpose(0, 2, 1, 3).reshape(-1, TILE, TILE)
    with np.errstate(over="ignore"):
        tiles = np.nan_to_num(tiles.astype(np.float32), posinf=0, neginf=0)

    smooth = np.hanning(TILE + 2)[1:-1].astype(np.float32)
    smooth /= smooth.sum()
    alternating = smooth * np.tile([1, -1], TILE // 2).astype(np.float32)
    by_row = tiles @ np.stack([smooth, alternating], axis=1)  # (n, TILE, 2)
    components = np.stack([smooth, alternating]) @ by_row  # (n, 2, 2)
    brightness = components[:, 0, 0]
    bright = brightness > max(DIM * brightness.max(), 0)
    if np.count_nonzero(bright) < MIN_TILES:
        return 0.0
    others = np.abs(components[bright].reshape(-1, 4)[:, 1:]).max(axis=1)
    return float(np.median(others / brightness[bright]))


def debayer(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    """Computes the colours of a Bayer mosaic by bilinear interpolation.

    A pixel keeps the colour that it has; each of the two others is the mean of the nearest pixels
    that have it, two or four. The size stays. White balance is left to the camera.

    Args:
        mosaic: (h, w), at least 2x2, of any type.
        pattern: one of `PATTERNS`.

    Returns:
        (h, w, 3), RGB, of the same type.

    Example:

    >>> mosaic = np.tile(np.uint8([[200, 120], [120, 90]]), (2, 2))
    >>> debayer(mosaic, "RGGB")[1, 1].tolist()
    [200, 120, 90]
    """
    height, width = mosaic.shape
    padded = np.pad(mosaic, 1, mode="reflect")  # a reflected pixel keeps its colour
    is_float = mosaic.dtype.kind == "f"
    # sums of four need more bits
    wide = np.result_type(mosaic.dtype, np.float32) if is_float else np.int64
    colors = np.empty((height, width, 3), mosaic.dtype.newbyteorder("="))
    for row in (0, 1):
        for column in (0, 1):
            target = colors[row::2, column::2]
            for channel, color in enumerate("RGB"):
                neighbours = _nearest(pattern, row, column, color)
                total = np.zeros(target.shape[:2], wide)
                for down, right in neighbours:
                    part = padded[1 + row + down :: 2, 1 + column + right :: 2]
                    total += part[: target.shape[0], : target.shape[1]]
                count = len(neighbours)
                target[..., channel] = total / count if is_float else (total + count // 2) // count
    return colors


def _nearest(pattern, row, column, color):
    """Where the nearest pixels of a colour are, as (down, right) of a pixel."""
    for group in (
        [(0, 0)],
        [(0, -1), (0, 1), (-1, 0), (1, 0)],
        [(-1, -1), (-1, 1), (1, -1), (1, 1)],
    ):
        found = [
            (down, right)
            for down, right in group
            if pattern[2 * ((row + down) % 2) + (column + right) % 2] == color
        ]
        if found:
            return found
    raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)}, received {pattern!r}")


def shifted_pattern(pattern: str, right: int, down: int) -> str:
    """The pattern whose first pixel is `right` and `down` from that of another.

    Example:

    >>> shifted_pattern("RGGB", 1, 0)
    'GRBG'
    """
    rows, columns = ((down % 2, (down + 1) % 2), (right % 2, (right + 1) % 2))
    return "".join(pattern[2 * row + column] for row in rows for column in columns)
