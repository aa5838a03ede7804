"""Statistics of a small picture, by which a sky is told from a room, a lawn or a page of text."""

from __future__ import annotations

import numpy as np

SCALES = (1, 2, 4, 8)
"""Sides of the blocks whose means are compared with their neighbours', pixels."""

MIN_COUNTED = 0.25
"""Least share of the pixels that are no black surrounding; else all count."""

_BLACK = 4  # levels, 0 to 255
_DARK = 16
_SATURATED = 250
_LEVELS = 32  # of histograms
_TILE = 8  # side of the tiles in which directions of edges are compared, pixels
_LAYOUT_BLOCKS = (32, 16, 8, 4, 2)  # sides of the blocks whose share of the variance is taken
_SMALL = 0.002  # keeps logarithms of gradients finite: half a grey level


def describe(pixels: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Describes a picture by some fifty numbers: brightness, edges, layout and colours.

    Most are relative to the picture's own brightness, so that exposure changes little.

    Args:
        pixels: uint8 (h, w, 3), with sides of at least 16 pixels, about 128.
        valid: boolean (h, w), True where it may show sky.

    Returns:
        Numbers by name, all finite.

    Example:

    >>> describe(np.full((64, 64, 3), 100, np.uint8), np.ones((64, 64), bool))["contrast"]
    0.0
    """
    values = pixels.astype(np.float32)
    luminance = values.mean(axis=-1)
    lit = valid & (pixels.max(axis=-1) > _BLACK)
    counted = lit if lit.mean() >= MIN_COUNTED else valid
    light = luminance[counted]
    if light.size == 0:
        counted = np.ones_like(valid)
        light = luminance.ravel()
    white = max(float(np.percentile(light, 95)), 1.0)
    relative = luminance / white
    numbers = {
        "counted": float(counted.mean()),
        "level": float(np.log2(1 + white)),
        "dark": float(np.mean(light < _DARK)),
        "saturated": float(np.mean(pixels.min(axis=-1)[counted] >= _SATURATED)),
    }
    numbers |= _describe_brightness(relative[counted])
    numbers |= _describe_edges(relative, luminance, counted)
    numbers |= _describe_layout(relative, counted)
    numbers |= _describe_colours(values, relative, counted)
    return numbers


def _describe_brightness(light):
    deviation = float(light.std())
    counts = np.histogram(light, _LEVELS, (0, 1.25))[0] / light.size
    used = counts[counts > 0]
    centred = light - light.mean()
    return {
        "contrast": deviation,
        "skewness": float((centred**3).mean() / (deviation**3 + 1e-3)),
        "entropy": float(-(used * np.log2(used)).sum()),
        "largest_level": float(counts.max()),
        "two_largest_levels": float(np.sort(counts)[-2:].sum()),
    }


def _halve(array):
    """Means of 2 x 2 pixels."""
    height, width = (side // 2 * 2 for side in array.shape[:2])
    even = array[:height, :width]
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


def _gradients(array, counted):
    """Differences to the right and to below where all three pixels count: two of shape (n,)."""
    inner = counted[:-1, :-1] & counted[:-1, 1:] & counted[1:, :-1]
    across = (array[:-1, 1:] - array[:-1, :-1])[inner]
    down = (array[1:, :-1] - array[:-1, :-1])[inner]
    return across, down


def _describe_edges(relative, luminance, counted):
    numbers = {}
    array = relative
    mask = counted.astype(np.float32)
    for scale in SCALES:
        across, down = _gradients(array, mask == 1)
        size = abs(across) + abs(down)
        if size.size == 0:
            size = np.zeros(1, np.float32)
        for name, value in (
            ("median", np.median(size)),
            ("mean", size.mean()),
            ("p95", np.percentile(size, 95)),
        ):
            numbers[f"gradient_{scale}_{name}"] = float(np.log(value + _SMALL))
        array = _halve(array)
        mask = _halve(mask)
    across, down = _gradients(relative, counted)
    size = abs(across) + abs(down)
    total = float(size.sum()) + 1e-6
    if size.size == 0:
        size = np.zeros(1, np.float32)
    numbers["gradient_1_p99"] = float(np.log(np.percentile(size, 99) + _SMALL))
    numbers["sharp"] = float(np.mean(size > 0.25))
    numbers["along_axes"] = float(abs(abs(across) - abs(down)).sum()) / total
    steps = abs(np.concatenate(_gradients(luminance, counted)))
    numbers["equal_neighbours"] = float(np.mean(steps < 0.4)) if steps.size else 1.0
    return numbers | _describe_tiles(relative, counted)


def _tile_means(array, side):
    """Means of blocks of side x side pixels; what is left over at the end is not used."""
    rows = max(array.shape[0] // side, 1)
    columns = max(array.shape[1] // side, 1)
    blocks = array[: rows * side, : columns * side]
    blocks = blocks.reshape(rows, -1, columns, blocks.shape[1] // columns)
    return blocks.mean(axis=(1, 3))


def _describe_tiles(relative, counted):
    """How edges are spread over the picture, and how far those of a tile have one direction."""
    inside = counted[:-1, :-1] & counted[:-1, 1:] & counted[1:, :-1]
    across = np.where(inside, relative[:-1, 1:] - relative[:-1, :-1], 0)
    down = np.where(inside, relative[1:, :-1] - relative[:-1, :-1], 0)
    weight = _tile_means(inside.astype(np.float32), _TILE)
    used = weight > 0.5
    if not used.any():
        used = np.ones_like(used)
    energy = (_tile_means(abs(across) + abs(down), _TILE) / np.maximum(weight, 0.1))[used]
    xx = _tile_means(across * across, _TILE)[used]
    yy = _tile_means(down * down, _TILE)[used]
    xy = _tile_means(across * down, _TILE)[used]
    one_direction = np.hypot(xx - yy, 2 * xy)
    both = xx + yy
    numbers = {
        f"tile_gradient_p{share}": float(np.log(np.percentile(energy, share) + _SMALL))
        for share in (10, 25, 50, 75, 90)
    }
    numbers["coherence"] = float(one_direction.sum() / (both.sum() + 1e-6))
    numbers["tile_coherence"] = float(np.mean(one_direction / (both + 1e-6)))
    return numbers


def _describe_layout(relative, counted):
    """How much of the variance is in large parts of the picture."""
    light = relative[counted]
    mean = light.mean()
    variance = float(light.var()) + 1e-6
    mask = counted.astype(np.float32)
    deviation = np.where(counted, relative - mean, 0)
    numbers = {}
    for side in _LAYOUT_BLOCKS:
        weight = _tile_means(mask, side)
        block = _tile_means(deviation, side) / np.maximum(weight, 0.05)
        share = float((weight * block * block).sum() / max(weight.sum(), 1e-6)) / variance
        numbers[f"layout_{side}"] = min(share, 2.0)
    row = np.broadcast_to(np.linspace(-1, 1, len(relative))[:, None], relative.shape)[counted]
    covariance = float(((row - row.mean()) * (light - mean)).mean())
    numbers["brighter_below"] = covariance / float(np.sqrt(variance * (row.var() + 1e-6)))
    return numbers


def _describe_colours(values, relative, counted):
    """Blue against red, and green against both: clouds and sky differ in the first."""
    total = values.sum(axis=-1) + 24
    blue = (values[..., 2] - values[..., 0]) / total
    green = (2 * values[..., 1] - values[..., 0] - values[..., 2]) / total
    numbers = {}
    for name, plane in (("blue", blue), ("green", green)):
        part = plane[counted]
        numbers[f"{name}_mean"] = float(part.mean())
        numbers[f"{name}_deviation"] = float(part.std())
        numbers[f"{name}_p5"] = float(np.percentile(part, 5))
        numbers[f"{name}_p95"] = float(np.percentile(part, 95))
    for scale, (first, second, light, mask) in {
        1: (blue, green, relative, counted.astype(np.float32)),
        4: tuple(
            _halve(_halve(plane)) for plane in (blue, green, relative, counted.astype(np.float32))
        ),
    }.items():
        steps = [abs(np.concatenate(_gradients(plane, mask == 1))) for plane in (first, second)]
        sizes = [float(step.mean()) if step.size else 0.0 for step in steps]
        numbers[f"colour_gradient_{scale}"] = float(np.log(sizes[0] + sizes[1] + 0.0005))
        inside = mask == 1
        if not inside.any():
            inside = np.ones_like(inside)
        terms = np.stack([np.ones(inside.sum()), first[inside], light[inside]], axis=-1)
        fit = np.linalg.lstsq(terms, second[inside], rcond=None)[0]
        numbers[f"off_colour_line_{scale}"] = float((second[inside] - terms @ fit).std())
    part = np.stack([blue[counted], green[counted]])
    deviations = part.std(axis=1)
    light = relative[counted]
    centred = light - light.mean()
    numbers["blue_with_light"] = float(
        ((part[0] - part[0].mean()) * centred).mean() / (deviations[0] * centred.std() + 1e-4)
    )
    counts = np.histogram2d(part[0], part[1], 24, ((-0.6, 0.6), (-0.6, 0.6)))[0] / part.shape[1]
    numbers["colours"] = float(np.log2(1 + np.count_nonzero(counts > 0.004)))
    numbers["greens"] = float(np.mean(part[1] > 0.06))
    numbers["reds"] = float(np.mean(part[0] < -0.15))
    return numbers
