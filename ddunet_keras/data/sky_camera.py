"""The camera of synthetic skies: where its pixels look, and what its sensor makes of the light."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ddunet_keras.data.clouds import noise_tile, sample_tile

VIEWS = ("patch", "fisheye", "wide")
"""What the camera sees: a part of the sky, all of it in a circle, or that circle cut off by the
sensor's edges."""

VIEW_SHARES = (0.45, 0.35, 0.2)
"""How often each of `VIEWS` is drawn."""

CIRCLE = {"fisheye": (0.86, 0.99), "wide": (1.05, 1.7)}
"""Least and largest diameter of the circle over the photo's shorter side."""


DUSK_LEVEL = 0.5
"""Exposure at dusk over that by day: cameras do not make up for all of it."""


class SkyCamera(NamedTuple):
    """What the photos of a camera on one day have in common."""

    view: str
    mono: bool
    channel_weights: np.ndarray  # (3,), of a mono sensor
    white_balance: np.ndarray  # (3,), factors
    vignette: float  # how much darker the corners are, 0 to 1
    gamma: float  # of the tone curve
    black: float  # level of no light, 0 to 1
    day_level: float  # brightness that the exposure aims at by day, of the sensor's range
    night_level: float  # and by night
    shot_noise: float  # deviation over the root of the signal
    read_noise: float
    ground: np.ndarray  # (3,), colour of what is no sky, of the photo's mean brightness
    ground_height: float  # of trees and houses, shares of the radius or of the photo's height
    is_town: bool  # houses are steps, trees are rough
    text: str  # where the camera writes: "", "corner" or "strip"


def draw_camera(day: np.random.Generator) -> SkyCamera:
    """Draws a camera.

    Example:

    >>> draw_camera(np.random.default_rng(0)).view in VIEWS
    True
    """
    warm, green = day.normal(0, (0.12, 0.05))
    noise = 10 ** day.uniform(-2.8, -1.7)
    return SkyCamera(
        view=str(day.choice(VIEWS, p=VIEW_SHARES)),
        mono=day.random() < 0.25,
        channel_weights=day.dirichlet([1.5, 1.5, 1.5]),
        white_balance=np.exp([warm, green, -warm]).astype(np.float32),
        vignette=day.choice([0.0, day.uniform(0, 0.6)]),
        gamma=day.uniform(1.7, 2.6),
        black=day.choice([0.0, day.uniform(0, 0.04)]),
        day_level=10 ** day.uniform(-0.9, -0.25),
        night_level=10 ** day.uniform(-2.2, -0.6),
        shot_noise=noise,
        read_noise=0.15 * noise,
        ground=day.choice([0.0, 0.03, 0.1, 0.3, 0.8]) * day.uniform(0.5, 1.3, 3),
        ground_height=day.choice([0.0, 0.03, 0.1]),
        is_town=day.random() < 0.4,
        text=str(day.choice(["", "corner", "strip"], p=[0.7, 0.2, 0.1])),
    )


# === Where the pixels look ===


def pixel_rays(
    camera: SkyCamera,
    image_size: tuple[int, int],
    day: np.random.Generator,
    photo: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Directions of a photo's pixels, and where they see the sky.

    Args:
        camera: of the day.
        image_size: (height, width).
        day, photo: what the camera's and the photo's own is drawn from.

    Returns:
        Unit vectors (east, north, up), float32 (3, h, w), and booleans (h, w).

    Example:

    >>> random = np.random.default_rng(0)
    >>> rays, is_sky = pixel_rays(draw_camera(random), (48, 64), random, random)
    >>> rays.shape, is_sky.shape
    ((3, 48, 64), (48, 64))
    """
    x, y = from_middle(image_size)
    if camera.view == "patch":
        return _patch_rays(x, y, photo), _above_skyline(camera, x, y, day)
    return _fisheye_rays(camera, x, y, day, photo)


def from_middle(image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels from the photo's middle, both (h, w).

    Example:

    >>> from_middle((1, 3))[0].tolist()
    [[-1.0, 0.0, 1.0]]
    """
    height, width = image_size
    x = np.broadcast_to(np.arange(width) - (width - 1) / 2, image_size)
    y = np.broadcast_to(np.arange(height)[:, None] - (height - 1) / 2, image_size)
    return x, y


def _patch_rays(x, y, photo):
    """Of a rectilinear lens."""
    turn = photo.uniform(0, 2 * np.pi)
    tilt = np.radians(photo.uniform(30, 90))
    half_view = np.radians(photo.uniform(12, 40))
    focal = max(x.max(), y.max()) / np.tan(half_view)
    ahead = focal * np.cos(tilt) + y * np.sin(tilt)
    up = focal * np.sin(tilt) - y * np.cos(tilt)
    east = x * np.cos(turn) + ahead * np.sin(turn)
    north = ahead * np.cos(turn) - x * np.sin(turn)
    rays = np.stack([east, north, up])
    return (rays / np.sqrt((rays**2).sum(axis=0))).astype(np.float32)


def _above_skyline(camera, x, y, day):
    """Sky above trees or houses that stand at the lower edge."""
    skyline = _skyline(camera, day)
    if not camera.ground_height:
        return np.ones(x.shape, bool)
    height, width = x.shape
    column = ((x / width + 0.5) * 200).astype(int)
    share_from_below = 0.5 - y / height
    return share_from_below > 0.3 * camera.ground_height + skyline[column]


def _fisheye_rays(camera, x, y, day, photo):
    """Of an equidistant fisheye."""
    half = min(x.max(), y.max())
    share = day.uniform(*CIRCLE[camera.view])
    room = max(1 / share - 1, 0)  # by which the circle may lie off the middle
    x = x / (half * share) + day.uniform(-1, 1) * room
    y = y / (half * share) + day.uniform(-1, 1) * room
    distance = np.hypot(x, y)
    azimuth = np.arctan2(y, x)
    bearing = (azimuth * 128 / np.pi).astype(int) % 256
    is_sky = distance < 1 - _skyline(camera, day)[bearing]

    angle = distance * np.radians(day.uniform(78, 88))  # from the zenith
    azimuth = azimuth + photo.uniform(0, 2 * np.pi)
    rays = [np.sin(angle) * np.sin(azimuth), np.sin(angle) * np.cos(azimuth), np.cos(angle)]
    return np.stack(rays).astype(np.float32), is_sky


def _skyline(camera, day):
    """Height of trees and houses around, (256,)."""
    skyline = noise_tile(day, 1.0)[0].clip(0)
    if camera.is_town:
        skyline = np.repeat(skyline[::8], 8).round()
    return skyline * camera.ground_height


# === What the sensor makes of it ===


def develop(
    light: np.ndarray,
    is_sky: np.ndarray,
    camera: SkyCamera,
    time: str,
    photo: np.random.Generator,
) -> np.ndarray:
    """The photo: ground, exposure, vignette, noise, tone curve, text, blur and compression.

    Args:
        light: linear, (h, w, 3).
        is_sky: booleans (h, w); the ground stands elsewhere.
        camera: of the day.
        time: "day", "dusk" or "night".
        photo: what the photo's own is drawn from.

    Returns:
        uint8 (h, w, 3).

    Example:

    >>> random = np.random.default_rng(0)
    >>> sky = np.full((48, 64, 3), 0.4, np.float32)
    >>> develop(sky, np.ones((48, 64), bool), draw_camera(random), "day", random).shape
    (48, 64, 3)
    """
    size = is_sky.shape
    x, y = from_middle(size)
    light = light * camera.white_balance
    if camera.mono:
        light = np.repeat(light @ camera.channel_weights[:, None].astype(np.float32), 3, axis=-1)
    visible = light[is_sky] if is_sky.any() else light
    level = camera.night_level if time == "night" else camera.day_level
    if time == "dusk":
        level *= DUSK_LEVEL
    exposure = level * photo.lognormal(0, 0.2) / np.median(visible)
    light = light * exposure

    texture = sample_tile(noise_tile(photo, 1.2), x / size[1], y / size[0])[..., None]
    ground = level * camera.ground * (1 + 0.5 * texture).clip(0.1)
    if camera.mono:
        ground = np.broadcast_to(ground.mean(-1, keepdims=True), light.shape)
    light = np.where(is_sky[..., None], light, ground).clip(0)
    vignette = camera.vignette * ((x / size[1]) ** 2 + (y / size[0]) ** 2) * 2
    light = light * (1 - vignette)[..., None]
    light = light + _noise(light, camera, photo)
    if time == "night" and photo.random() < 0.12:
        light = light + 2 * _trail(size, photo)[..., None]
    image = camera.black + (1 - camera.black) * light.clip(0, 1) ** (1 / camera.gamma)
    if camera.mono:
        image = np.repeat(image[..., :1], 3, axis=-1)
    return _through_lens_and_jpeg(image, camera, photo)


def _noise(light, camera, photo):
    """Of light and of the readout; red and blue are coarser, as half of a Bayer mosaic's pixels."""
    deviation = np.sqrt(camera.shot_noise**2 * light.clip(0, 1) + camera.read_noise**2)
    noise = photo.standard_normal(light.shape, np.float32)
    if camera.mono:
        noise[..., 1:] = noise[..., :1]
        return deviation * noise
    height, width = light.shape[:2]
    for channel in (0, 2):
        coarse = noise[::2, ::2, channel]
        noise[..., channel] = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return deviation * noise


def _trail(size, photo):
    """The trail of a satellite, a meteor or a plane, 0 or 1, (h, w)."""
    height, width = size
    picture = Image.new("L", (width, height))
    start, end = photo.uniform(0, 1, (2, 2)) * (width, height)
    ImageDraw.Draw(picture).line([*start, *end], fill=255, width=1)
    return np.asarray(picture, np.float32) / 255


def _through_lens_and_jpeg(image, camera, photo):
    """uint8 (h, w, 3) of colours from 0 to 1: a little blurred, written on, and compressed."""
    picture = Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8))
    shorter_side = min(picture.size)
    picture = picture.filter(ImageFilter.GaussianBlur(photo.uniform(0, 0.003) * shorter_side))
    _write_on(picture, camera, photo)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=int(photo.integers(50, 96)))
    return np.asarray(Image.open(packed))


def _write_on(picture, camera, photo):
    """Time and exposure, as cameras write them into their photos."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    hour, minute = photo.integers((0, 0), (24, 60))
    text = f"2024-03-0{photo.integers(1, 10)} {hour:02d}:{minute:02d}\nExp {photo.integers(60)} s"
    size = max(height / 24, 6)
    if camera.text == "corner":
        draw.text((2, 2), text, fill="white", font_size=size)
    elif camera.text == "strip":
        top = int(0.95 * height)
        draw.rectangle((0, top, width, height), fill="white")
        draw.text((width * 0.2, top), text.replace("\n", " "), fill="black", font_size=size)
