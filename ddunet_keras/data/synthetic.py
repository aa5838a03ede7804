"""Procedural skies with exact masks: data for a first run and for tests, without a download."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import date, timedelta
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image

from ddunet_keras.data.clouds import draw_clouds
from ddunet_keras.data.sky_camera import VIEWS, develop, draw_camera, pixel_rays
from ddunet_keras.data.skylight import direction, draw_weather, paint
from ddunet_keras.files import IGNORE, DataError, StrPath, atomic_path, write_image, write_text

TIMES = ("day", "dusk", "night")
"""Times of day; nights have or lack a moon, the lights of a city, the Milky Way, an aurora."""

TIME_SHARES = (0.3, 0.2, 0.5)
"""How often each of `TIMES` is drawn."""

CLOUD_OPACITY = 0.35
"""A pixel is cloud where clouds hide at least this share of the sky behind them. People who paint
masks leave out thinner veils."""

THICK_OPACITY = 0.7
"""With three classes, cloud is thick where clouds hide at least this share."""

PHOTOS_A_CAPTURE = 3
PHOTOS_A_DATE = 6
"""Of a written data set: photos that show one sky, and photos of one day."""

# values of a two-class mask by label: sky, cloud, ignored
_MASK_VALUES = np.array([0, 255, *[128] * 254], np.uint8)


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
        time: "day", "dusk" or "night"; drawn by `seed` if None.
        view: "patch", some 25 to 80 degrees of the sky; "fisheye", all of it in a circle; "wide",
            that circle cut off by the photo's edges; drawn by `seed` if None.
        num_classes: 2 (sky, cloud) or 3 (sky, thin cloud, thick cloud).

    Returns:
        image, uint8 (h, w, 3), RGB; labels, uint8 (h, w), with 255 (`IGNORE`) around the circle
        and where trees, houses or a strip of text hide the sky.

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
    weather = draw_weather(day)
    camera = draw_camera(day)
    time = time or capture.choice(TIMES, p=TIME_SHARES)
    if view:
        camera = camera._replace(view=view)
    rays, is_sky = pixel_rays(camera, image_size, day, photo)
    if camera.text == "strip":
        is_sky[int(0.95 * image_size[0]) :] = False
    light = direction(weather.azimuth, weather.elevations[time])
    scale = 1.0 if camera.view == "patch" else 0.5
    clouds = draw_clouds(rays, scale, capture, light)
    opacity = clouds[0]
    labels = (opacity >= CLOUD_OPACITY).astype(np.uint8)
    if num_classes == 3:
        labels += opacity >= THICK_OPACITY
    labels[~is_sky] = IGNORE
    radiance = paint(rays, light, clouds, weather, time, photo)
    return develop(radiance, is_sky, camera, time, photo), labels
