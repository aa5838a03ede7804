"""Procedural skies with exact masks: data for a first run and for tests, without a download."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import date, timedelta
from numbers import Integral
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageFilter

from ddunet_keras.files import IGNORE, DataError, atomic_path, write_image, write_text

TIMES = ("day", "dusk", "night")
VIEWS = ("patch", "fisheye")

CLOUD_OPACITY = 0.25
"""A pixel is cloud where clouds hide at least this share of the sky behind them."""

THICK_OPACITY = 0.7
"""With three classes, cloud is thick where clouds hide at least this share."""

# genus: tiles of noise per unit of the cloud plane, stretch along the wind, slope of the noise's
# spectrum, weight of the billows, optical depth per standard deviation of density
_GENERA = {
    "cumulus": (0.45, 1.0, 1.8, 0.6, 5.0),
    "altocumulus": (0.6, 1.4, 1.3, 0.8, 2.5),
    "stratus": (0.3, 1.6, 1.8, 0.2, 1.8),
    "cirrus": (0.5, 4.0, 1.6, 0.1, 0.8),
}

# zenith, horizon, horizon below the light, lit cloud, shaded cloud
_PALETTES = {
    "day": ((28, 77, 153), (140, 179, 224), (179, 204, 230), (255, 255, 255), (115, 125, 143)),
    "dusk": ((33, 48, 97), (117, 107, 133), (255, 153, 82), (255, 179, 128), (71, 66, 87)),
    "night": ((33, 31, 38), (61, 51, 48), (92, 71, 56), (209, 176, 128), (89, 74, 59)),
}


def synthetic_sky(seed, image_size=(256, 256), time=None, view=None, num_classes=2):
    """A made-up photo of the sky and its exact labels.

    Clouds lie on a plane above the camera and are drawn by fractal noise; the labels come from
    their opacity, before glare, sensor noise and compression touch the photo. The same arguments
    give the same bits.

    Args:
        seed: non-negative integer.
        image_size: (height, width), each at least 16.
        time: "day", "dusk" or "night" (with moon or city glow); drawn by `seed` if None.
        view: "patch", some 40 to 75 degrees of the sky, or "fisheye", all of it in a circle, with
            `IGNORE` around and where trees and houses stand; drawn by `seed` if None.
        num_classes: 2 (sky, cloud) or 3 (sky, thin cloud, thick cloud).

    Returns:
        image, uint8 (h, w, 3), RGB; labels, uint8 (h, w), with 255 (`IGNORE`).

    Raises:
        ValueError: an argument is out of range.

    Example:

    >>> image, labels = synthetic_sky(7, (96, 128), time="night")
    >>> image.shape, labels.shape
    ((96, 128, 3), (96, 128))
    """
    _check(seed, image_size, num_classes)
    for name, value, choices in (("time", time, TIMES), ("view", view, VIEWS)):
        if value is not None and value not in choices:
            raise ValueError(f"{name}: expected one of {choices} or None, received {value!r}")
    day, capture, photo = (np.random.default_rng([seed, k]) for k in range(3))
    return _render(day, capture, photo, image_size, time, view, num_classes)


def write_synthetic(
    root,
    count,
    image_size=(256, 256),
    seed=0,
    num_classes=2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a data set of made-up skies that `open_dataset` reads.

    Three photos show one capture's sky (as crops of it, so they must not be split), two captures
    lie on a date, and a date has one camera, light and weather.

    Args:
        root: new or empty folder; gets `images/0000.jpg`, `masks/0000.png` (sky 0, cloud 255,
            ignored 128; with three classes 0, 1, 2 and 255) and `metadata.csv` (Name, Date, Time).
        count: number of photos, at least 1.
        image_size, seed, num_classes: as in `synthetic_sky`.
        progress: is called with the number of photos done and in all.

    Returns:
        `root` as a Path.

    Raises:
        DataError: `root` has files in it.
        ValueError: an argument is out of range.

    Example:

    >>> write_synthetic(tmp / "skies", 6, (64, 64)).name
    'skies'
    """
    _check(seed, image_size, num_classes)
    if not isinstance(count, Integral) or count < 1:
        raise ValueError(f"count: expected a positive integer, received {count!r}")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: is not an empty folder; give another or delete it")
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["Name", "Date", "Time"])
    for index in range(count):
        on, taken = index // 6, index // 3
        rngs = [np.random.default_rng([seed, *key]) for key in ((3, on), (4, taken), (5, index))]
        time = TIMES[np.random.default_rng([seed, 6, taken]).choice(3, p=(0.5, 0.2, 0.3))]
        hour = {"day": 10, "dusk": 18, "night": 20}[time] + taken % 2
        image, labels = _render(*rngs, image_size, time, None, num_classes)
        if num_classes == 2:
            labels = np.array([0, 255, *[128] * 254], np.uint8)[labels]
        with atomic_path(root / "images" / f"{index:04d}.jpg") as temporary:
            Image.fromarray(image).save(temporary, quality=92)
        write_image(root / "masks" / f"{index:04d}.png", labels)
        when = date(2024, 1, 1) + timedelta(on)
        rows.writerow([f"{index:04d}.jpg", f"{when:%Y%m%d}", f"{hour:02d}{7 * taken % 60:02d}00"])
        if progress is not None:
            progress(index + 1, count)
    write_text(root / "metadata.csv", table.getvalue())
    return root


def _check(seed, image_size, num_classes):
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed: expected an integer from 0, received {seed!r}")
    try:
        height, width = image_size
        good = all(isinstance(n, Integral) and n >= 16 for n in (height, width))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"image_size: expected (height, width) of at least 16 pixels, received {image_size!r}"
        )
    if num_classes not in (2, 3):
        raise ValueError(f"num_classes: expected 2 or 3, received {num_classes!r}")


def _tile(rng, slope, size=256):
    """Periodic fractal noise of mean 0 and deviation 1: amplitudes are frequency ** -slope."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    frequency[0, 0] = np.inf
    spectrum = rng.normal(size=(2, *frequency.shape)) * np.maximum(frequency, 2.0) ** -slope
    tile = np.fft.irfft2(spectrum[0] + 1j * spectrum[1])
    return (tile / tile.std()).astype(np.float32)


def _sample(tile, x, y):
    """The tile at (x, y), in tiles, between its points linearly."""
    size = len(tile)
    x, y = x * size, y * size
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    u, v = x - column, y - row
    column, row = column % size, row % size * size
    right, below = (column + 1) % size, (row + size) % (size * size)
    a, b, c, d = (
        tile.ravel().take(i) for i in (row + column, row + right, below + column, below + right)
    )
    top = a + (b - a) * u
    return top + (c + (d - c) * u - top) * v


def _density(x, y, capture, genus, light):
    """Cloud density of mean 0 and deviation 1 at points of the cloud plane, and how lit it is."""
    scale, stretch, slope, billows, _ = _GENERA[genus]
    base, detail = _tile(capture, slope), _tile(capture, slope)
    wind, scale = capture.uniform(0, 2 * np.pi), scale * capture.uniform(0.7, 1.4)
    cos, sin, start = scale * np.cos(wind), scale * np.sin(wind), capture.uniform(size=2)

    def tiles(x, y):
        return (x * cos + y * sin) / stretch + start[0], y * cos - x * sin + start[1]

    u, v = tiles(x, y)
    first = _sample(base, u, v)
    puffs = (abs(_sample(detail, 1.7 * u + 0.03 * first, 2.1 * v)) - 0.8) / 0.6
    # a point is in the shade of what lies between it and the light
    lit = first - _sample(base, *tiles(x + 0.1 * light[0], y + 0.1 * light[1]))
    return (first + billows * puffs) / np.hypot(1, billows), lit


def _clouds(x, y, capture, light):
    """Opacity of the clouds, 0 to 1, and their brightness between shade and light, 0 to 1."""
    opacity, brightness = np.zeros_like(x), np.ones_like(x)
    fraction = capture.choice([0.0, 1.0, capture.uniform(0.1, 0.9)], p=[0.08, 0.1, 0.82])
    layers = [(capture.choice(list(_GENERA), p=[0.4, 0.2, 0.15, 0.25]), fraction)]
    if capture.random() < 0.35:
        layers.insert(0, ("cirrus", capture.uniform(0.2, 0.6)))
    for genus, cover in layers if fraction > 0 else []:
        density, lit = _density(x, y, capture, genus, light)
        if cover < 1:
            depth = _GENERA[genus][-1] * (density - NormalDist().inv_cdf(1 - cover)).clip(0)
        else:
            depth = (2.0 + density).clip(0.5)
        layer = 1 - np.exp(-depth)
        lit = (1 + 0.3 * lit - 0.35 * np.tanh(depth / 5)).clip(0, 1)
        # a lower layer hides what is above it
        brightness = np.where(layer > 0, brightness + (lit - brightness) * layer, brightness)
        opacity = 1 - (1 - opacity) * (1 - layer)
    return opacity, brightness


def _patch(x, y, photo):
    """Directions (east, north, up) that the pixels of a camera with a plain lens look to."""
    turn, tilt = photo.uniform(0, 2 * np.pi), np.radians(photo.uniform(35, 90))
    focal = max(x.max(), y.max()) / np.tan(np.radians(photo.uniform(20, 37)))
    ahead, up = focal * np.cos(tilt) + y * np.sin(tilt), focal * np.sin(tilt) - y * np.cos(tilt)
    east = x * np.cos(turn) + ahead * np.sin(turn)
    rays = np.stack([east, ahead * np.cos(turn) - x * np.sin(turn), up])
    return (rays / np.sqrt((rays**2).sum(axis=0))).astype(np.float32)


def _fisheye(x, y, day, photo):
    """Directions that the pixels of a fisheye camera look to, and where they see the sky."""
    half, share = min(x.max(), y.max()), day.uniform(0.86, 0.99)
    x, y = (p / (half * share) + day.uniform(-1, 1) * (1 / share - 1) for p in (x, y))
    distance, azimuth = np.hypot(x, y), np.arctan2(y, x)
    # trees are rough, houses are steps
    skyline = _tile(day, 1.0)[0].clip(0)
    skyline = np.repeat(skyline[::8], 8).round() if day.random() < 0.5 else skyline
    skyline = skyline * day.choice([0.0, 0.02, 0.04])
    sky = distance < 1 - skyline[(azimuth * 128 / np.pi).astype(int) % 256]
    angle, azimuth = distance * np.radians(day.uniform(78, 88)), azimuth + photo.uniform(0, 6.28)
    rays = [np.sin(angle) * np.sin(azimuth), np.sin(angle) * np.cos(azimuth), np.cos(angle)]
    return np.stack(rays).astype(np.float32), sky


def _render(day, capture, photo, image_size, time, view, num_classes):
    """A photo from three generators: of what a day, a capture and the photo have of their own."""
    height, width = image_size
    camera, azimuth = day.choice(VIEWS, p=[0.65, 0.35]), day.uniform(0, 2 * np.pi)
    heights = {"day": day.uniform(25, 75), "dusk": day.uniform(-4, 6), "night": day.uniform(20, 70)}
    tint = day.normal(1, 0.02, (5, 3)) * day.uniform(0.85, 1.15, (5, 1))
    haze, glare, city, vignette = day.uniform((1.2, 0.5, 0.7, 0.0), (3.0, 1.3, 1.1, 0.2))
    balance, moon = day.uniform(0.85, 1.15) * day.normal(1, 0.03, 3), day.random() < 0.5
    around = day.choice([0.0, 0.02, 0.06]) * day.normal(1, 0.15, 3)
    time, view = time or capture.choice(TIMES, p=[0.5, 0.2, 0.3]), view or camera

    x = np.broadcast_to(np.arange(width) - (width - 1) / 2, image_size)
    y = np.broadcast_to(np.arange(height)[:, None] - (height - 1) / 2, image_size)
    if view == "patch":
        rays, sky = _patch(x, y, photo), np.ones(image_size, bool)
    else:
        rays, sky = _fisheye(x, y, day, photo)
    # sun or moon; clouds lie on a plane that bends down towards the horizon
    flat, light_up = np.cos(np.radians(heights[time])), np.sin(np.radians(heights[time]))
    light = np.float32([flat * np.sin(azimuth), flat * np.cos(azimuth), light_up])
    up = rays[2].clip(0.02)
    plane = (0.5 if view == "fisheye" else 1.0) / (up + 0.2)
    opacity, brightness = _clouds(rays[0] * plane, rays[1] * plane, capture, light)
    labels = (opacity >= CLOUD_OPACITY).astype(np.uint8)
    if num_classes == 3:
        labels += opacity >= THICK_OPACITY
    labels[~sky] = IGNORE

    zenith, horizon, below, lit, shade = np.float32(_PALETTES[time] * tint / 255)
    toward = np.tensordot(light, rays, 1).clip(-1, 1)[..., None]
    away, opacity = np.arccos(toward), opacity[..., None]
    image = zenith + (1 - up[..., None]) ** haze * (
        horizon + (below - horizon) * ((1 + toward) / 2) ** 2 - zenith
    )
    cloud = shade + (lit - shade) * brightness[..., None]
    glare *= {"day": 0.45, "dusk": 0.3, "night": 0.25 * moon}[time]
    halo = glare * (np.exp(-away / 0.1) + 0.6 * np.exp(-away / 0.4))
    if time == "night":
        image += (photo.random((height, width, 1)) > 0.9997) * photo.uniform(0.1, 0.5)
        cloud *= 0.5 + 2 * halo if moon else city
    image += (cloud - image) * opacity + halo * np.array([1, 0.97, 0.9])
    if time == "day" or (time == "night" and moon):
        image += (0.5 - 0.5 * np.tanh((away - 0.035) / 0.012)) * (1 - 0.8 * opacity)
    image *= balance * (1 - vignette * ((x / width) ** 2 + (y / height) ** 2) * 4)[..., None]
    ground = _sample(_tile(photo, 1.2), x / width, y / height)[..., None]
    image = np.where(sky[..., None], image, around * (1 + 0.4 * ground))
    noise = photo.uniform(0.003, 0.015) * (2 if time == "night" else 1)
    image += noise * photo.standard_normal(image.shape, np.float32)

    image = Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(photo.uniform(0, 0.004) * min(image_size)))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=int(photo.integers(60, 95)))
    return np.asarray(Image.open(packed)), labels
