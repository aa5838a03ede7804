"""Fractal clouds on a plane above the camera: opacity and light, for synthetic skies."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CLEAR_SHARE = 0.2
OVERCAST_SHARE = 0.2
"""How often a sky has no cloud, and no gap."""

TILE = 256
"""Side of a tile of noise, points."""


class Genus(NamedTuple):
    """What clouds of a kind look like."""

    tiles: float  # of noise per unit of the cloud plane
    stretch: float  # along the wind
    slope: float  # of the noise's spectrum
    billows: float  # weight of puffs on the noise
    optical_depth: float  # per standard deviation of density


GENERA = {
    "cumulus": Genus(0.45, 1.0, 1.8, 0.6, 5.0),
    "altocumulus": Genus(0.6, 1.4, 1.3, 0.8, 2.5),
    "stratus": Genus(0.3, 1.6, 1.8, 0.2, 1.8),
    "cirrus": Genus(0.5, 4.0, 1.6, 0.1, 0.8),
}


def noise_tile(random: np.random.Generator, slope: float) -> np.ndarray:
    """Periodic fractal noise, float32 (`TILE`, `TILE`) of mean 0 and deviation 1.

    Args:
        random: what is drawn from.
        slope: amplitudes are frequency ** -slope.

    Example:

    >>> noise_tile(np.random.default_rng(0), 1.5).shape
    (256, 256)
    """
    amplitude = _amplitudes(slope)
    spectrum = random.normal(size=(2, *amplitude.shape)) * amplitude
    tile = np.fft.irfft2(spectrum[0] + 1j * spectrum[1])
    return (tile / tile.std()).astype(np.float32)


@cache  # few slopes are asked for
def _amplitudes(slope: float) -> np.ndarray:
    """Of the frequencies of a tile, (`TILE`, `TILE` // 2 + 1); its mean has none."""
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)) * TILE
    frequency[0, 0] = np.inf
    return np.maximum(frequency, 2.0) ** -slope


def sample_tile(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A `noise_tile` at (x, y), in tiles, interpolated linearly between its four nearest points.

    Example:

    >>> float(sample_tile(np.eye(4), np.array(0.25), np.array(0.25)))
    1.0
    """
    size = len(tile)
    x = x * size
    y = y * size
    column = np.floor(x).astype(np.int32)
    row = np.floor(y).astype(np.int32)
    u = x - column
    v = y - row
    left = column % size
    right = (left + 1) % size
    # rows as offsets into the flat tile
    above = row % size * size
    below = (above + size) % (size * size)
    flat = tile.ravel()
    above_left = flat.take(above + left)
    above_right = flat.take(above + right)
    below_left = flat.take(below + left)
    below_right = flat.take(below + right)
    top = above_left + (above_right - above_left) * u
    bottom = below_left + (below_right - below_left) * u
    return top + (bottom - top) * v


def cloud_plane(rays: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet a plane above the camera that bends down towards the horizon.

    Args:
        rays: (3, h, w), unit vectors (east, north, up).
        scale: of the plane; a smaller one enlarges what lies on it.

    Returns:
        x and y, (h, w).

    Example:

    >>> x, y = cloud_plane(np.float32([0, 0, 1]).reshape(3, 1, 1), 1.0)
    >>> x.item(), y.item()
    (0.0, 0.0)
    """
    plane = scale / (upward(rays) + 0.2)
    return rays[0] * plane, rays[1] * plane


def upward(rays: np.ndarray) -> np.ndarray:
    """Upward part of rays (3, h, w); the horizon itself, where the cloud plane ends, is left out.

    Example:

    >>> float(upward(np.zeros((3, 1, 1)))[0, 0])
    0.02
    """
    return rays[2].clip(0.02)


def draw_clouds(
    rays: np.ndarray, scale: float, capture: np.random.Generator, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clouds along rays.

    Args:
        rays, scale: as in `cloud_plane`.
        capture: what is drawn from.
        light: (3,), direction of sun or moon.

    Returns:
        Opacity, 0 to 1, and brightness between shade and light, 0 to 1; both (h, w).

    Example:

    >>> rays = np.broadcast_to(np.float32([0, 0, 1]).reshape(3, 1, 1), (3, 4, 6))
    >>> opacity, lit = draw_clouds(rays, 1.0, np.random.default_rng(0), np.float32([0, 0, 1]))
    >>> opacity.shape, lit.shape
    ((4, 6), (4, 6))
    """
    x, y = cloud_plane(rays, scale)
    opacity = np.zeros_like(x)
    brightness = np.ones_like(x)
    for genus, cover in _draw_layers(capture):
        density, lit = _density(x, y, capture, genus, light)
        if cover < 1:
            threshold = NormalDist().inv_cdf(1 - cover)
            depth = genus.optical_depth * (density - threshold).clip(0)
        else:
            depth = (capture.uniform(2.0, 5.0) + density).clip(0.5)
            lit = lit * capture.uniform(0, 1)  # fog and nimbostratus have no shape
        layer = 1 - np.exp(-depth)
        lit = (1 + 0.3 * lit - 0.35 * np.tanh(depth / 5)).clip(0, 1)
        # a lower layer hides what is above it
        brightness = np.where(layer > 0, brightness + (lit - brightness) * layer, brightness)
        opacity = 1 - (1 - opacity) * (1 - layer)
    return opacity, brightness


def _draw_layers(capture):
    """Genus and cover, 0 to 1, of the layers of clouds, the highest first; none in a clear sky."""
    shares = [CLEAR_SHARE, OVERCAST_SHARE, 1 - CLEAR_SHARE - OVERCAST_SHARE]
    cover = capture.choice([0.0, 1.0, capture.uniform(0.1, 0.9)], p=shares)
    name = capture.choice(list(GENERA), p=[0.4, 0.2, 0.15, 0.25])
    layers = [(GENERA[name], cover)]
    if capture.random() < 0.35:
        layers.insert(0, (GENERA["cirrus"], capture.uniform(0.2, 0.6)))
    return layers if cover > 0 else []


def _density(x, y, capture, genus, light):
    """Cloud density of mean 0 and deviation 1 at points of the cloud plane, and how lit it is."""
    base = noise_tile(capture, genus.slope)
    detail = noise_tile(capture, genus.slope)
    wind = capture.uniform(0, 2 * np.pi)
    scale = genus.tiles * capture.uniform(0.7, 1.4)
    cos = scale * np.cos(wind)
    sin = scale * np.sin(wind)
    start = capture.uniform(size=2)

    def tiles(x, y):
        return (x * cos + y * sin) / genus.stretch + start[0], y * cos - x * sin + start[1]

    u, v = tiles(x, y)
    first = sample_tile(base, u, v)
    puffs = (abs(sample_tile(detail, 1.7 * u + 0.03 * first, 2.1 * v)) - 0.8) / 0.6
    # a point is in the shade of what lies between it and the light
    lit = first - sample_tile(base, *tiles(x + 0.1 * light[0], y + 0.1 * light[1]))
    return (first + genus.billows * puffs) / np.hypot(1, genus.billows), lit
