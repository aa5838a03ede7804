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
_LEVELS = 32  # of the histogram of brightness ...
_BRIGHTEST = 1.25  # ... which ends here, relative to white
_COLOURS = 24  # of the histogram of colours, each way ...
_PUREST = 0.6  # ... which ends here, either way
_TILE = 8  # side of the tiles in which directions of edges are compared, pixels
_LAYOUT_BLOCKS = (32, 16, 8, 4, 2)  # sides of the blocks whose share of the variance is taken
_SMALL = 0.002  # keeps logarithms of gradients finite: half a grey level
_SMALL_COLOUR = 0.0005  # the same of colours


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
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    lit = valid & (planes.max(axis=0) > _BLACK)
    counted = lit if lit.mean() >= MIN_COUNTED else valid
    if not counted.any():
        counted = np.ones_like(valid)
    red, green, blue = planes.astype(np.float32)
    total = red + green + blue
    luminance = total / 3
    light = luminance[counted]
    white = max(_percentiles(light, 95)[0], 1.0)
    relative = luminance / np.float32(white)
    # blue against red, and green against both: clouds and sky differ in the first
    total += 24
    colours = (blue - red) / total, (2 * green - red - blue) / total
    numbers = {
        "counted": _share(counted),
        "level": float(np.log2(1 + white)),
        "dark": _share(light < _DARK),
        "saturated": _share(planes.min(axis=0)[counted] >= _SATURATED),
    }
    numbers |= _describe_brightness(relative[counted])
    numbers |= _describe_edges(relative, counted, white)
    numbers |= _describe_layout(relative, counted)
    numbers |= _describe_colours(*colours, relative, counted)
    return numbers


def _share(chosen):
    return np.count_nonzero(chosen) / chosen.size


def _percentiles(values, *shares):
    """As `np.percentile`, which takes far longer than to sort."""
    ordered = np.sort(values)
    positions = (ordered.size - 1) / 100 * np.array(shares)
    low = positions.astype(int)
    high = np.minimum(low + 1, ordered.size - 1)
    return (ordered[low] + (positions - low) * (ordered[high] - ordered[low])).tolist()


def _describe_brightness(light):
    centred = light - light.mean()
    deviation = float(light.std())
    levels = (light[light <= _BRIGHTEST] * (_LEVELS / _BRIGHTEST)).astype(int)
    counts = np.bincount(levels.clip(max=_LEVELS - 1), minlength=_LEVELS) / light.size
    used = counts[counts > 0]
    return {
        "contrast": deviation,
        "skewness": float((centred * centred * centred).mean() / (deviation**3 + 1e-3)),
        "entropy": float(-(used * np.log2(used)).sum()),
        "largest_level": float(counts.max()),
        "two_largest_levels": float(np.sort(counts)[-2:].sum()),
    }


def _halve(array):
    """Means of 2 x 2 pixels."""
    height, width = (side // 2 * 2 for side in array.shape)
    even = array[:height, :width]
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


def _halve_mask(counted):
    """Where all of 2 x 2 pixels count."""
    return _halve(counted.astype(np.float32)) == 1


def _gradients(array):
    """Differences to the right and to below, (h - 1, w - 1) each."""
    corner = array[:-1, :-1]
    return array[:-1, 1:] - corner, array[1:, :-1] - corner


def _inside(counted):
    """Where all three pixels of `_gradients` count."""
    return counted[:-1, :-1] & counted[:-1, 1:] & counted[1:, :-1]


def _sizes(array, counted):
    """Sizes of the gradients where they count, (n,); of none, one of 0."""
    across, down = _gradients(array)
    sizes = (abs(across) + abs(down))[_inside(counted)]
    return sizes if sizes.size else np.zeros(1, np.float32)


def _log(value):
    return float(np.log(value + _SMALL))


def _describe_edges(relative, counted, white):
    numbers = {}
    array = relative
    mask = counted
    for scale in SCALES:
        sizes = _sizes(array, mask)
        median, p95, p99 = _percentiles(sizes, 50, 95, 99)
        numbers[f"gradient_{scale}_median"] = _log(median)
        numbers[f"gradient_{scale}_mean"] = _log(sizes.mean())
        numbers[f"gradient_{scale}_p95"] = _log(p95)
        if scale == 1:
            numbers["gradient_1_p99"] = _log(p99)
            numbers["sharp"] = _share(sizes > 0.25)
        array = _halve(array)
        mask = _halve_mask(mask)
    inside = _inside(counted)
    across, down = (np.where(inside, gradient, 0) for gradient in _gradients(relative))
    steps = abs(across)
    other_steps = abs(down)
    total = float((steps + other_steps).sum()) + 1e-6
    numbers["along_axes"] = float(abs(steps - other_steps).sum()) / total
    equal = [((step < 0.4 / white) & inside).sum() for step in (steps, other_steps)]
    numbers["equal_neighbours"] = float(sum(equal)) / (2 * inside.sum()) if inside.any() else 1.0
    return numbers | _describe_tiles(across, down, inside)


def _tile_means(array, side):
    """Means of blocks of side x side pixels; what is left over at the end is not used."""
    rows = max(array.shape[0] // side, 1)
    columns = max(array.shape[1] // side, 1)
    blocks = array[: rows * side, : columns * side]
    # first over rows: much faster than over both axes at once
    lines = blocks.reshape(rows, -1, blocks.shape[1]).mean(axis=1)
    return lines.reshape(rows, columns, -1).mean(axis=2)


def _describe_tiles(across, down, inside):
    """How edges are spread over the picture, and how far those of a tile have one direction."""
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
    shares = (10, 25, 50, 75, 90)
    numbers = {
        f"tile_gradient_p{share}": _log(value)
        for share, value in zip(shares, _percentiles(energy, *shares), strict=True)
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
    deviation = (relative - mean) * mask
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


def _describe_colours(blue, green, relative, counted):
    numbers = {}
    for name, plane in (("blue", blue), ("green", green)):
        part = plane[counted]
        numbers[f"{name}_mean"] = float(part.mean())
        numbers[f"{name}_deviation"] = float(part.std())
        numbers[f"{name}_p5"], numbers[f"{name}_p95"] = _percentiles(part, 5, 95)
    quarter = [_halve(_halve(plane)) for plane in (blue, green, relative)]
    quarter_counted = _halve_mask(_halve_mask(counted))
    for scale, planes, mask in (
        (1, (blue, green, relative), counted),
        (4, quarter, quarter_counted),
    ):
        steps = sum(_sizes(plane, mask).mean() / 2 for plane in planes[:2])
        numbers[f"colour_gradient_{scale}"] = float(np.log(steps + _SMALL_COLOUR))
        inside = mask if mask.any() else np.ones_like(mask)
        numbers[f"off_colour_line_{scale}"] = _off_line(*(plane[inside] for plane in planes))
    blues = blue[counted]
    greens = green[counted]
    light = relative[counted]
    covariance = ((blues - blues.mean()) * (light - light.mean())).mean()
    numbers["blue_with_light"] = float(covariance / (blues.std() * light.std() + 1e-4))
    numbers["colours"] = float(np.log2(1 + _count_colours(blues, greens)))
    numbers["greens"] = _share(greens > 0.06)
    numbers["reds"] = _share(blues < -0.15)
    return numbers


def _off_line(blue, green, light):
    """Deviation of green from what blue and light tell of it by linear regression."""
    centred = np.stack([blue, light, green]).astype(float)
    centred -= centred.mean(axis=1, keepdims=True)
    terms = centred[:2]
    fit = np.linalg.lstsq(terms @ terms.T, terms @ centred[2], rcond=None)[0]
    return float((centred[2] - fit @ terms).std())


def _count_colours(blue, green):
    """Number of colours, of 24 x 24, that more than 0.4 % of the pixels have."""
    within = (abs(blue) <= _PUREST) & (abs(green) <= _PUREST)
    colours = np.stack([blue[within], green[within]]).astype(float)
    bins = ((colours + _PUREST) * (_COLOURS / 2 / _PUREST)).astype(int).clip(max=_COLOURS - 1)
    counts = np.bincount(_COLOURS * bins[0] + bins[1])
    return np.count_nonzero(counts > 0.004 * blue.size)
