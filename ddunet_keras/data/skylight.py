"""Light of the sky by day, at dusk and by night, for synthetic skies: linear, RGB.

The night's unit is the airglow of a dark site at the zenith. Over it lie the lights of cities (a
glow of the whole sky, and domes over the places), the moon, the Milky Way, stars and aurora. Clouds
are lit from below by what lights the ground, so they are brighter than the sky over a city and
darker than it at a dark site.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddunet_keras.data.clouds import cloud_plane, noise_tile, sample_tile, upward

DISPLAY_GAMMA = 2.2
"""Of the palettes: linear light is a colour to this power."""

CITY_LIGHT = np.array([[1.0, 0.62, 0.28], [0.95, 0.96, 1.0]], np.float32)
"""RGB of sodium lamps and of white LEDs."""

MOONLIT_SKY = np.array([0.75, 0.88, 1.1], np.float32)
AURORA = np.array([[0.25, 1.0, 0.4], [0.9, 0.3, 0.7]], np.float32)
"""RGB of oxygen's green line, and of the reds and purples."""

STAR_SLOPE = 0.9
"""Number of stars that are brighter than a flux: flux ** -slope. With 1.25 (stars in even space)
hardly any bright one would stand in a small picture; observed counts fall more slowly, too."""

BRIGHTEST_STAR = 300.0
"""Flux of the brightest star over that of the faintest."""


class Palette(NamedTuple):
    """Colours as a screen shows them, RGB, 0 to 255."""

    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    horizon_below_light: tuple[int, int, int]
    lit_cloud: tuple[int, int, int]
    shaded_cloud: tuple[int, int, int]


PALETTES = {
    "day": Palette(
        (28, 77, 153), (140, 179, 224), (179, 204, 230), (255, 255, 255), (115, 125, 143)
    ),
    "dusk": Palette((33, 48, 97), (117, 107, 133), (255, 153, 82), (255, 179, 128), (71, 66, 87)),
}


class Weather(NamedTuple):
    """What the photos of a day have in common."""

    azimuth: float  # of sun or moon, radians
    elevations: dict[str, float]  # of sun or moon by time of day, degrees
    tint: np.ndarray  # (5, 3), factors of the palette's colours
    haze: float  # exponent: how fast the sky turns pale towards the horizon
    glare: float  # brightness of the halo about sun or moon
    blue_hour: float  # at dusk, by how much clouds take the sky's colour, 0 to 1
    moon: float  # its light on the sky at night, in airglows; 0: it is down
    city: float  # glow of city lights at the zenith, in airglows
    city_color: np.ndarray  # (3,)
    lit_from_below: float  # brightness of clouds over that glow
    domes: np.ndarray  # (n, 3): azimuth, radians; glow in city glows; width, radians
    airglow_color: np.ndarray  # (3,)
    milky_way: float  # its brightest part in airglows
    aurora: float  # brightness in airglows; 0: none


def draw_weather(day: np.random.Generator) -> Weather:
    """Draws a day.

    Example:

    >>> draw_weather(np.random.default_rng(0)).tint.shape
    (5, 3)
    """
    azimuth = day.uniform(0, 2 * np.pi)
    elevations = {
        "day": day.uniform(8, 75),
        "dusk": day.uniform(-4, 6),
        "night": day.uniform(10, 75),
    }
    tint = day.normal(1, 0.03, (5, 3)) * day.uniform(0.75, 1.2, (5, 1))
    haze, glare, blue_hour = day.uniform((1.2, 0.4, 0.0), (3.5, 1.4, 0.9))
    moon = day.choice([0.0, 10 ** day.uniform(-0.3, 1.3)], p=[0.6, 0.4])
    # dark site, suburb, city
    low, high = [(-2.0, -0.5), (-0.3, 0.7), (0.7, 1.7)][day.integers(3)]
    city = 10 ** day.uniform(low, high)
    sodium = day.uniform()
    city_color = sodium * CITY_LIGHT[0] + (1 - sodium) * CITY_LIGHT[1]
    count = day.integers(0, 4)
    domes = np.stack(
        [
            day.uniform(0, 2 * np.pi, count),
            10 ** day.uniform(-0.3, 1.0, count),
            day.uniform(0.3, 0.8, count),
        ],
        axis=-1,
    )
    aurora = day.choice([0.0, 10 ** day.uniform(0.5, 1.7)], p=[0.8, 0.2])
    return Weather(
        azimuth=azimuth,
        elevations=elevations,
        tint=tint,
        haze=haze,
        glare=glare,
        blue_hour=blue_hour,
        moon=moon,
        city=city,
        city_color=city_color,
        lit_from_below=day.uniform(1.5, 7.0),
        domes=domes,
        airglow_color=np.array([0.95, 1.0, 0.8], np.float32) * day.normal(1, 0.1, 3),
        milky_way=day.choice([0.0, day.uniform(0.4, 2.0)], p=[0.4, 0.6]),
        aurora=aurora if city < 1 else 0.0,
    )


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector (east, north, up) of an azimuth in radians and an elevation in degrees.

    Example:

    >>> direction(0, 90).round(6).tolist()
    [0.0, 0.0, 1.0]
    """
    horizontal = np.cos(np.radians(elevation))
    up = np.sin(np.radians(elevation))
    return np.array([horizontal * np.sin(azimuth), horizontal * np.cos(azimuth), up], np.float32)


def paint(
    rays: np.ndarray,
    light: np.ndarray,
    clouds: tuple[np.ndarray, np.ndarray],
    weather: Weather,
    time: str,
    photo: np.random.Generator,
) -> np.ndarray:
    """Linear light (h, w, 3) that comes along rays.

    Args:
        rays: (3, h, w), unit vectors (east, north, up).
        light: (3,), direction of sun or moon.
        clouds: opacity and brightness, as `draw_clouds` gives them.
        weather: of the day.
        time: "day", "dusk" or "night".
        photo: what the photo's own is drawn from, such as the stars' places.

    Example:

    >>> rays = np.broadcast_to(np.float32([0, 0, 1]).reshape(3, 1, 1), (3, 4, 6))
    >>> random = np.random.default_rng(0)
    >>> clouds = np.zeros((4, 6)), np.ones((4, 6))
    >>> paint(rays, np.float32([0, 0, 1]), clouds, draw_weather(random), "day", random).shape
    (4, 6, 3)
    """
    if time == "night":
        return _paint_night(rays, light, clouds, weather, photo)
    return _paint_day(rays, light, clouds, weather, time)


def _paint_day(rays, light, clouds, weather, time):
    opacity, brightness = (part[..., None] for part in clouds)
    colors = np.float32(np.array(PALETTES[time]) * weather.tint / 255) ** DISPLAY_GAMMA
    zenith, horizon, below_light, lit_cloud, shaded_cloud = colors
    if time == "dusk":  # late, all of the sky has one light
        lit_cloud = lit_cloud + weather.blue_hour * (1.5 * horizon - lit_cloud)
        shaded_cloud = shaded_cloud + weather.blue_hour * (zenith - shaded_cloud)
    toward = _cosine(rays, light)
    low_sky = horizon + (below_light - horizon) * ((1 + toward) / 2) ** 2
    image = zenith + (1 - upward(rays)[..., None]) ** weather.haze * (low_sky - zenith)
    cloud = shaded_cloud + (lit_cloud - shaded_cloud) * brightness
    away = np.arccos(toward)
    glare = weather.glare * (0.4 if time == "day" else 0.12)
    halo = glare * (np.exp(-away / 0.1) + 0.4 * np.exp(-away / 0.4))
    image = image + (cloud - image) * opacity + halo * np.float32([1, 0.97, 0.9])
    if time == "day":
        image = image + 4 * _disc(away) * (1 - 0.8 * opacity)
    return image


def _paint_night(rays, light, clouds, weather, photo):
    opacity, brightness = (part[..., None] for part in clouds)
    low = (1 - upward(rays)[..., None]) ** 2
    glow = weather.city * (1 + 2 * low + _domes(rays, weather))
    toward = _cosine(rays, light)
    away = np.arccos(toward)
    moon_halo = np.exp(-away / 0.06) * 8 + np.exp(-away / 0.3) * 1.5

    sky = weather.airglow_color * (1 + low) + weather.city_color * glow
    sky = sky + MOONLIT_SKY * weather.moon * (0.4 + moon_halo * weather.glare * 0.5)
    if weather.milky_way:
        sky = sky + weather.milky_way * _milky_way(rays, photo)
    if weather.aurora:
        sky = sky + weather.aurora * _aurora(rays, photo)
    sky = sky + _stars(rays, photo)

    from_below = weather.lit_from_below * (0.3 + 0.7 * brightness) * glow
    starlit = 0.3 * weather.airglow_color * (0.5 + 0.5 * brightness)
    moonlit = weather.moon * (0.6 + 1.5 * brightness + 2 * moon_halo * (1 - 0.6 * opacity))
    cloud = weather.city_color * from_below + starlit + moonlit
    image = sky + (cloud - sky) * opacity
    if weather.moon:
        image = image + 300 * weather.moon * _disc(away) * (1 - 0.9 * opacity)
    return image


def _cosine(rays, light):
    """Cosine of the angle to the light, (h, w, 1)."""
    return np.tensordot(light, rays, 1).clip(-1, 1)[..., None]


def _disc(away):
    """Of sun or moon, blurred by lens and haze, 0 to 1."""
    return 0.5 - 0.5 * np.tanh((away - 0.035) / 0.012)


def _domes(rays, weather):
    """Glow over places on the horizon, in glows of the zenith."""
    azimuth = np.arctan2(rays[0], rays[1])[..., None]
    elevation = np.arcsin(rays[2].clip(0, 1))[..., None]
    glow = np.zeros_like(azimuth)
    for center, strength, width in weather.domes:
        off = np.angle(np.exp(1j * (azimuth - center)))
        glow += 3 * strength * np.exp(-((off / width) ** 2) - elevation / (0.5 * width))
    return glow


def _milky_way(rays, photo):
    """A band along a great circle with dark rifts, 0 to about 1, (h, w, 3)."""
    pole = direction(photo.uniform(0, 2 * np.pi), photo.uniform(-20, 60))
    latitude = np.arcsin(np.tensordot(pole, rays, 1).clip(-1, 1))
    x, y = cloud_plane(rays, 0.5)
    texture = sample_tile(noise_tile(photo, 1.5), x, y)
    rift = sample_tile(noise_tile(photo, 1.7), x, y)
    band = np.exp(-((latitude / 0.17) ** 2)) * (1 + 0.35 * texture).clip(0.1)
    rifts = np.exp(-((latitude / 0.07) ** 2)) * (rift > 0.2)
    return (band * (1 - 0.6 * rifts))[..., None] * np.float32([0.95, 0.95, 1.0])


def _aurora(rays, photo):
    """Curtains, 0 to about 1, (h, w, 3)."""
    x, y = cloud_plane(rays, 0.5)
    turn = photo.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    image = np.zeros((*x.shape, 3), np.float32)
    for _ in range(photo.integers(1, 4)):
        fold, rays_up = noise_tile(photo, 2.0), noise_tile(photo, 1.0)
        level = np.zeros_like(along)
        middle = photo.uniform(-0.8, 0.8) + 0.25 * sample_tile(fold, 0.15 * along, level)
        distance = (across - middle) / photo.uniform(0.08, 0.5)
        # a sharp lower edge; above it the light fades
        curtain = np.where(distance > 0, np.exp(-distance), np.exp(-((3 * distance) ** 2)))
        curtain *= (1 + 0.5 * sample_tile(rays_up, 0.6 * along, level)).clip(0)
        purple = photo.uniform(0, 0.6) * distance.clip(0, 2)[..., None] / 2
        image += curtain[..., None] * (AURORA[0] + purple * (AURORA[1] - AURORA[0]))
    return image


def _stars(rays, photo):
    """Stars of power-law brightness, in airglows of a pixel, (h, w, 3)."""
    height, width = rays.shape[1:]
    side = min(height, width)
    count = int(10 ** photo.uniform(1.5, 3.3) * (side / 256) * height * width / side**2)
    flux = photo.uniform(size=count).clip(BRIGHTEST_STAR**-STAR_SLOPE) ** (-1 / STAR_SLOPE)
    color = photo.normal(1, 0.12, (count, 3))
    image = np.zeros((height, width, 3), np.float32)
    rows = photo.integers(0, height, count)
    columns = photo.integers(0, width, count)
    np.add.at(image, (rows, columns), (flux[:, None] * color).astype(np.float32))
    # the lens and the reduced size spread them
    spread = photo.uniform(0.35, 0.8) * max(side / 256, 0.5)
    faintest = 10 ** photo.uniform(-0.7, 0.5)
    return faintest * _blurred(image, spread)


def _blurred(image, radius):
    """Gaussian blur of a float image (Pillow's takes bytes alone)."""
    offsets = np.arange(-2, 3)
    weights = np.exp(-0.5 * (offsets / radius) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        moved = [
            w * np.roll(image, offset, axis) for w, offset in zip(weights, offsets, strict=True)
        ]
        image = np.sum(moved, axis=0)
    return image
