"""Sun and moon over a place, computed by the package astral (extra `[report]`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone

from ddunet_keras.settings import Number, check_settings, document_settings, setting

LATITUDE = Number(float, -90, 90, "degrees north of the equator, -90 to 90")
LONGITUDE = Number(float, -180, 180, "degrees east of Greenwich, -180 to 180")

LIGHTS = (
    ("day", -0.833),
    ("civil twilight", -6.0),
    ("nautical twilight", -12.0),
    ("astronomical twilight", -18.0),
    ("night", -math.inf),
)
"""What it is called while the sun's centre is above so many degrees. At -0.833 its upper edge is at
the horizon, with 34' of refraction and a radius of 16' (Meeus, Astronomical Algorithms, ch. 15)."""


@document_settings
@dataclass(frozen=True)
class Place:
    """Where a camera stands.

    Raises:
        ValueError: an angle is out of its range.

    Example:

    >>> Place(latitude=48.1, longitude=11.6).latitude
    48.1
    """

    latitude: float = setting(LATITUDE, help="degrees north of the equator, south negative")
    longitude: float = setting(LONGITUDE, help="degrees east of Greenwich, west negative")

    def __post_init__(self) -> None:
        check_settings(self)


def light(place: Place, time: datetime) -> str:
    """What the light is called: "day", "civil twilight" and so on, of `LIGHTS`.

    Args:
        time: with its offset from UTC.

    Example:

    >>> from datetime import datetime, timezone
    >>> light(Place(51.5, 0.0), datetime(2026, 6, 21, 12, tzinfo=timezone.utc))
    'day'
    """
    from astral import sun

    # the limits are those of the sun's centre without refraction
    elevation = sun.elevation(_observer(place), time, with_refraction=False)
    return next(name for name, lowest in LIGHTS if elevation > lowest)


def moon_elevation(place: Place, time: datetime) -> float:
    """Degrees of the moon's centre above the horizon, to about one degree.

    Args:
        time: with its offset from UTC.
    """
    from astral import moon

    return moon.elevation(_observer(place), _utc(time))


def moon_illumination(place: Place, time: datetime) -> float:
    """Lit share of the moon's disc, 0 (new) to 1 (full), to about one percent.

    It is (1 - cos e) / 2 with the angle e between sun and moon, which is nearly 180 degrees less
    the phase angle (Meeus, Astronomical Algorithms, ch. 48).

    Args:
        time: with its offset from UTC.

    Example:

    >>> from datetime import datetime, timezone
    >>> full = datetime(2026, 11, 24, 15, tzinfo=timezone.utc)
    >>> moon_illumination(Place(51.5, 0.0), full) > 0.99
    True
    """
    from astral import moon, sun

    observer = _observer(place)
    time = _utc(time)
    sun_height = math.radians(sun.elevation(observer, time, with_refraction=False))
    moon_height = math.radians(moon.elevation(observer, time))
    turned = math.radians(sun.azimuth(observer, time) - moon.azimuth(observer, time))
    cosine = math.sin(sun_height) * math.sin(moon_height)
    cosine += math.cos(sun_height) * math.cos(moon_height) * math.cos(turned)
    return (1 - cosine) / 2


def _utc(time):
    """astral heeds a time's offset for the sun, and not for the moon."""
    return time.astimezone(timezone.utc)


def _observer(place):
    from astral import Observer

    return Observer(place.latitude, place.longitude)
