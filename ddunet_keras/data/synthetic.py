"""Procedural skies with exact masks: data for a first run and for tests, without a download."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import date, timedelta
from numbers import Integral
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from ddunet_keras.files import IGNORE, DataError, StrPath, atomic_path, write_image, write_text

TIMES = ("day", "dusk", "night")
"""Times of day; night has a moon or the glow of a city."""

TIME_SHARES = (0.5, 0.2, 0.3)
"""How often each of `TIMES` is drawn."""

VIEWS = ("patch", "fisheye")
"""What the camera sees: a part of the sky, or all of it in a circle."""

CLOUD_OPACITY = 0.25
"""A pixel is cloud where clouds hide at least this share of the sky behind them."""

THICK_OPACITY = 0.7
"""With three classes, cloud is thick where clouds hide at least this share."""

PHOTOS_A_CAPTURE = 3
PHOTOS_A_DATE = 6
"""Of a written data set: photos that show one sky, and photos of one day."""

# values of a two-class mask by label: sky, cloud, ignored
_MASK_VALUES = np.array([0, 255, *[128] * 254], np.uint8)


class _Genus(NamedTuple):
    """What clouds of a kind look like."""

    tiles: float  # of noise per unit of the cloud plane
    stretch: float  # along the wind
    slope: float  # of the noise's spectrum
    billows: float  # weight of puffs on the noise
    optical_depth: float  # per standard deviation of density


_GENERA = {
    "cumulus": _Genus(0.45, 1.0, 1.8, 0.6, 5.0),
    "altocumulus": _Genus(0.6, 1.4, 1.3, 0.8, 2.5),
    "stratus": _Genus(0.3, 1.6, 1.8, 0.2, 1.8),
    "cirrus": _Genus(0.5, 4.0, 1.6, 0.1, 0.8),
}


class _Palette(NamedTuple):
    """Colours, RGB."""

    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    horizon_below_light: tuple[int, int, int]
    lit_cloud: tuple[int, int, int]
    shaded_cloud: tuple[int, int, int]


_PALETTES = {
    "day": _Palette(
        (28, 77, 153), (140, 179, 224), (179, 204, 230), (255, 255, 255), (115, 125, 143)
    ),
    "dusk": _Palette((33, 48, 97), (117, 107, 133), (255, 153, 82), (255, 179, 128), (71, 66, 87)),
    "night": _Palette((33, 31, 38), (61, 51, 48), (92, 71, 56), (209, 176, 128), (89, 74, 59)),
}


def synthetic_sky(
    seed: int,
    image_size: tuple[int, int] = (256, 256),
    time: str | None = None,
    view: str | None = None,
    num_classes: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic photo of the sky and its exact labels.

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
    day, capture, photo = (np.random.default_rng([seed, stream]) for stream in range(3))
    return _render(day, capture, photo, image_size, time, view, num_classes)


def write_synthetic(
    root: StrPath,
    count: int,
    image_size: tuple[int, int] = (256, 256),
    seed: int = 0,
    num_classes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a data set of synthetic skies that `open_dataset` reads.

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
        date_index = index // PHOTOS_A_DATE
        capture_index = index // PHOTOS_A_CAPTURE
        # the middle number of each seed keeps the streams apart
        day = np.random.default_rng([seed, 3, date_index])
        capture = np.random.default_rng([seed, 4, capture_index])
        photo = np.random.default_rng([seed, 5, index])
        time = TIMES[np.random.default_rng([seed, 6, capture_index]).choice(3, p=TIME_SHARES)]
        image, labels = _render(day, capture, photo, image_size, time, None, num_classes)
        if num_classes == 2:
            labels = _MASK_VALUES[labels]
        with atomic_path(root / "images" / f"{index:04d}.jpg") as temporary:
            Image.fromarray(image).save(temporary, quality=92)
        write_image(root / "masks" / f"{index:04d}.png", labels)
        taken_on = date(2024, 1, 1) + timedelta(date_index)
        hour = {"day": 10, "dusk": 18, "night": 20}[time] + capture_index % 2
        minute = 7 * capture_index % 60
        rows.writerow([f"{index:04d}.jpg", f"{taken_on:%Y%m%d}", f"{hour:02d}{minute:02d}00"])
        if progress is not None:
            progress(index + 1, count)
    write_text(root / "metadata.csv", table.getvalue())
    return root


def _check(seed, image_size, num_classes):
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed: expected an integer from 0, received {seed!r}")
    try:
        height, width = image_size
        good = all(isinstance(side, Integral) and side >= 16 for side in (height, width))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"image_size: expected (height, width) of at least 16 pixels, received {image_size!r}"
        )
    if num_classes not in (2, 3):
        raise ValueError(f"num_classes: expected 2 or 3, received {num_classes!r}")


def _render(day, capture, photo, image_size, time, view, num_classes):
    """A photo and its labels.

    Args:
        day, capture, photo: generators of what a day, a capture and the photo have of their own.
            The order of the draws decides about the picture: do not change it.
    """
    weather = _draw_weather(day)
    time = time or capture.choice(TIMES, p=TIME_SHARES)
    view = view or weather.view
    height, width = image_size
    # from the middle of the picture, in pixels
    x = np.broadcast_to(np.arange(width) - (width - 1) / 2, image_size)
    y = np.broadcast_to(np.arange(height)[:, None] - (height - 1) / 2, image_size)
    if view == "patch":
        rays = _patch_rays(x, y, photo)
        is_sky = np.ones(image_size, bool)
    else:
        rays, is_sky = _fisheye_rays(x, y, day, photo)
    light = _direction(weather.azimuth, weather.elevations[time])
    opacity, brightness = _clouds_along(rays, view, capture, light)
    labels = (opacity >= CLOUD_OPACITY).astype(np.uint8)
    if num_classes == 3:
        labels += opacity >= THICK_OPACITY
    labels[~is_sky] = IGNORE

    image = _paint_sky(rays, light, opacity, brightness, weather, time, photo)
    vignette = weather.vignette * ((x / width) ** 2 + (y / height) ** 2) * 4
    image *= weather.white_balance * (1 - vignette)[..., None]
    texture = _sample(_tile(photo, 1.2), x / width, y / height)[..., None]
    ground = weather.ground * (1 + 0.4 * texture)
    image = np.where(is_sky[..., None], image, ground)
    noise = photo.uniform(0.003, 0.015) * (2 if time == "night" else 1)
    image += noise * photo.standard_normal(image.shape, np.float32)
    return _through_lens_and_jpeg(image, photo), labels


class _Weather(NamedTuple):
    """What the photos of a day have in common."""

    view: str
    azimuth: float  # of sun or moon, radians
    elevations: dict[str, float]  # of sun or moon by time of day, degrees
    tint: np.ndarray  # (5, 3), factors of the palette's colours
    haze: np.float64  # exponent: how fast the sky turns pale towards the horizon
    glare: np.float64  # brightness of the halo about sun or moon
    city: np.float64  # brightness of clouds over city lights
    vignette: np.float64  # how much darker the corners are
    white_balance: np.ndarray  # (3,), factors
    moon: bool  # at night, whether it shines
    ground: np.ndarray  # (3,), colour of what is no sky


def _draw_weather(day):
    view = day.choice(VIEWS, p=[0.65, 0.35])
    azimuth = day.uniform(0, 2 * np.pi)
    elevations = {
        "day": day.uniform(25, 75),
        "dusk": day.uniform(-4, 6),
        "night": day.uniform(20, 70),
    }
    tint = day.normal(1, 0.02, (5, 3)) * day.uniform(0.85, 1.15, (5, 1))
    haze, glare, city, vignette = day.uniform((1.2, 0.5, 0.7, 0.0), (3.0, 1.3, 1.1, 0.2))
    white_balance = day.uniform(0.85, 1.15) * day.normal(1, 0.03, 3)
    moon = day.random() < 0.5
    ground = day.choice([0.0, 0.02, 0.06]) * day.normal(1, 0.15, 3)
    return _Weather(
        view,
        azimuth,
        elevations,
        tint,
        haze,
        glare,
        city,
        vignette,
        white_balance,
        moon,
        ground,
    )


def _direction(azimuth, elevation):
    """Unit vector (east, north, up) of an azimuth in radians and an elevation in degrees."""
    horizontal = np.cos(np.radians(elevation))
    up = np.sin(np.radians(elevation))
    return np.float32([horizontal * np.sin(azimuth), horizontal * np.cos(azimuth), up])


def _patch_rays(x, y, photo):
    """Directions (east, north, up) that the pixels of a camera with a rectilinear lens look to."""
    turn = photo.uniform(0, 2 * np.pi)
    tilt = np.radians(photo.uniform(35, 90))
    half_view = np.radians(photo.uniform(20, 37))
    focal = max(x.max(), y.max()) / np.tan(half_view)
    ahead = focal * np.cos(tilt) + y * np.sin(tilt)
    up = focal * np.sin(tilt) - y * np.cos(tilt)
    east = x * np.cos(turn) + ahead * np.sin(turn)
    north = ahead * np.cos(turn) - x * np.sin(turn)
    rays = np.stack([east, north, up])
    return (rays / np.sqrt((rays**2).sum(axis=0))).astype(np.float32)


def _fisheye_rays(x, y, day, photo):
    """Directions that the pixels of a fisheye camera look to, and where they see the sky."""
    half = min(x.max(), y.max())
    share = day.uniform(0.86, 0.99)  # of the picture's shorter side, that the circle takes
    room = 1 / share - 1  # by which the circle may lie off the middle
    x = x / (half * share) + day.uniform(-1, 1) * room
    y = y / (half * share) + day.uniform(-1, 1) * room
    distance = np.hypot(x, y)
    azimuth = np.arctan2(y, x)

    skyline = _tile(day, 1.0)[0].clip(0)  # trees are rough
    if day.random() < 0.5:
        skyline = np.repeat(skyline[::8], 8).round()  # houses are steps
    skyline = skyline * day.choice([0.0, 0.02, 0.04])
    bearing = (azimuth * 128 / np.pi).astype(int) % 256
    is_sky = distance < 1 - skyline[bearing]

    angle = distance * np.radians(day.uniform(78, 88))  # from the zenith
    azimuth = azimuth + photo.uniform(0, 6.28)
    rays = [np.sin(angle) * np.sin(azimuth), np.sin(angle) * np.cos(azimuth), np.cos(angle)]
    return np.stack(rays).astype(np.float32), is_sky


def _tile(rng, slope, size=256):
    """Periodic fractal noise of mean 0 and deviation 1: amplitudes are frequency ** -slope."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    frequency[0, 0] = np.inf
    spectrum = rng.normal(size=(2, *frequency.shape)) * np.maximum(frequency, 2.0) ** -slope
    tile = np.fft.irfft2(spectrum[0] + 1j * spectrum[1])
    return (tile / tile.std()).astype(np.float32)


def _sample(tile, x, y):
    """The tile at (x, y), in tiles, interpolated linearly between its four nearest points."""
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


def _clouds_along(rays, view, capture, light):
    """Opacity of the clouds, 0 to 1, and their brightness between shade and light, 0 to 1.

    They lie on a plane above the camera that bends down towards the horizon.
    """
    scale = 0.5 if view == "fisheye" else 1.0
    plane = scale / (_up(rays) + 0.2)
    x = rays[0] * plane
    y = rays[1] * plane
    opacity = np.zeros_like(x)
    brightness = np.ones_like(x)
    for genus, cover in _draw_layers(capture):
        density, lit = _density(x, y, capture, genus, light)
        if cover < 1:
            threshold = NormalDist().inv_cdf(1 - cover)
            depth = genus.optical_depth * (density - threshold).clip(0)
        else:
            depth = (2.0 + density).clip(0.5)
        layer = 1 - np.exp(-depth)
        lit = (1 + 0.3 * lit - 0.35 * np.tanh(depth / 5)).clip(0, 1)
        # a lower layer hides what is above it
        brightness = np.where(layer > 0, brightness + (lit - brightness) * layer, brightness)
        opacity = 1 - (1 - opacity) * (1 - layer)
    return opacity, brightness


def _up(rays):
    """Upward part of the rays; the horizon, where the cloud plane ends, is left out."""
    return rays[2].clip(0.02)


def _draw_layers(capture):
    """Genus and cover, 0 to 1, of the layers of clouds, the highest first; none in a clear sky."""
    cover = capture.choice([0.0, 1.0, capture.uniform(0.1, 0.9)], p=[0.08, 0.1, 0.82])
    name = capture.choice(list(_GENERA), p=[0.4, 0.2, 0.15, 0.25])
    layers = [(_GENERA[name], cover)]
    if capture.random() < 0.35:
        layers.insert(0, (_GENERA["cirrus"], capture.uniform(0.2, 0.6)))
    return layers if cover > 0 else []


def _density(x, y, capture, genus, light):
    """Cloud density of mean 0 and deviation 1 at points of the cloud plane, and how lit it is."""
    base = _tile(capture, genus.slope)
    detail = _tile(capture, genus.slope)
    wind = capture.uniform(0, 2 * np.pi)
    scale = genus.tiles * capture.uniform(0.7, 1.4)
    cos = scale * np.cos(wind)
    sin = scale * np.sin(wind)
    start = capture.uniform(size=2)

    def tiles(x, y):
        return (x * cos + y * sin) / genus.stretch + start[0], y * cos - x * sin + start[1]

    u, v = tiles(x, y)
    first = _sample(base, u, v)
    puffs = (abs(_sample(detail, 1.7 * u + 0.03 * first, 2.1 * v)) - 0.8) / 0.6
    # a point is in the shade of what lies between it and the light
    lit = first - _sample(base, *tiles(x + 0.1 * light[0], y + 0.1 * light[1]))
    return (first + genus.billows * puffs) / np.hypot(1, genus.billows), lit


def _paint_sky(rays, light, opacity, brightness, weather, time, photo):
    """Colours of sky, clouds, stars and light, 0 to about 1, (h, w, 3)."""
    colors = np.float32(np.array(_PALETTES[time]) * weather.tint / 255)
    zenith, horizon, below_light, lit_cloud, shaded_cloud = colors
    toward = np.tensordot(light, rays, 1).clip(-1, 1)[..., None]  # cosine of the angle to the light
    away = np.arccos(toward)
    opacity = opacity[..., None]
    low_sky = horizon + (below_light - horizon) * ((1 + toward) / 2) ** 2
    image = zenith + (1 - _up(rays)[..., None]) ** weather.haze * (low_sky - zenith)
    cloud = shaded_cloud + (lit_cloud - shaded_cloud) * brightness[..., None]
    glare = weather.glare * {"day": 0.45, "dusk": 0.3, "night": 0.25 * weather.moon}[time]
    halo = glare * (np.exp(-away / 0.1) + 0.6 * np.exp(-away / 0.4))
    if time == "night":
        stars = photo.random((*image.shape[:2], 1)) > 0.9997
        image += stars * photo.uniform(0.1, 0.5)
        cloud *= 0.5 + 2 * halo if weather.moon else weather.city
    image += (cloud - image) * opacity + halo * np.array([1, 0.97, 0.9])
    if time == "day" or (time == "night" and weather.moon):
        disc = 0.5 - 0.5 * np.tanh((away - 0.035) / 0.012)
        image += disc * (1 - 0.8 * opacity)
    return image


def _through_lens_and_jpeg(image, photo):
    """uint8 (h, w, 3) of colours from 0 to 1: a little blurred, and compressed."""
    picture = Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8))
    shorter_side = min(picture.size)
    picture = picture.filter(ImageFilter.GaussianBlur(photo.uniform(0, 0.004) * shorter_side))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=int(photo.integers(60, 95)))
    return np.asarray(Image.open(packed))
