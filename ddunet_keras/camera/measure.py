"""Measures the frames of one camera: what stays the same from frame to frame is made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddunet_keras.prediction import Model
from ddunet_keras.sky import (
    CloudCover,
    Disc,
    Horizon,
    Segmentation,
    check_horizon,
    check_zone,
    cloud_cover,
    find_horizon,
    zone_mask,
)
from ddunet_keras.sky.reading import Photo


class Measure:
    """Finds the clouds in a camera's frames, in the whole sky and in its zones.

    The masks of horizon and zones are read once; they are made anew when the size changes. As the
    camera does not move, the disc that the horizon "auto" found last serves for frames in which it
    finds none, such as dark ones.

    Args:
        model: has `segment`, as `Segmenter` does.
        threshold, horizon: as in `Segmenter.segment`.
        zones: as in `Segmentation.zone_cover`.

    Raises:
        DataError: the horizon's mask cannot be read, or a zone cannot be placed.

    Example:

    >>> measure = Measure(dd.Segmenter(), horizon="circle:32,32,30", zones=["zenith:30"])
    >>> result = measure.segment(Photo(dd.synthetic_sky(0, (64, 64))[0]))
    >>> cover, zones = measure.cover(result)
    >>> list(zones)
    ['zenith:30']
    """

    def __init__(
        self,
        model: Model,
        threshold: float = 0.5,
        horizon: str | None = None,
        zones: Sequence[str] = (),
    ) -> None:
        check_horizon(horizon)
        for zone in zones:
            check_zone(zone, horizon)
        self._model = model
        self._threshold = threshold
        self._horizon = horizon
        self._zones = tuple(zones)
        self._kept: dict[tuple[Any, ...], Any] = {}

    def segment(self, photo: Photo) -> Segmentation:
        """Finds the clouds in a frame, where the horizon leaves sky and the photo is opaque.

        Raises:
            DataError: the horizon does not fit the frame, or the model cannot be run.
        """
        shape = photo.image.shape[:2]
        if self._horizon == "auto":
            horizon = self._find_disc(photo.image)
        else:
            horizon = self._keep(
                ("horizon", shape), lambda: find_horizon(self._horizon, photo.image)
            )
        if photo.valid is not None:
            horizon = Horizon(horizon.valid & photo.valid, horizon.disc)
        return self._model.segment(
            photo.image, threshold=self._threshold, horizon=horizon, force=False
        )

    def cover(self, result: Segmentation) -> tuple[CloudCover, dict[str, float | None]]:
        """Cover of the sky, and of each zone in percent; None where the frame or the zone shows no
        sky, or "auto" found no disc to place it in."""
        zones: dict[str, float | None] = dict.fromkeys(self._zones)
        if not result.measured:
            return result.cloud_cover, zones
        labels = result.labels  # made once for all
        for zone in zones:
            if result.disc is not None or not zone.startswith("zenith:"):
                cover = cloud_cover(labels, self._zone_mask(zone, labels.shape, result.disc))
                zones[zone] = None if cover.okta is None else round(cover.percent, 2)
        return cloud_cover(labels), zones

    def _find_disc(self, image: np.ndarray) -> Horizon:
        horizon = find_horizon("auto", image)
        key = ("disc", image.shape[:2])
        if horizon.disc is None:
            return self._kept.get(key, horizon)
        self._kept.pop(key, None)
        return self._keep(key, lambda: horizon)

    def _zone_mask(self, zone: str, shape: tuple[int, int], disc: Disc | None) -> np.ndarray:
        if zone.startswith("zenith:") and self._horizon == "auto":
            return zone_mask(zone, shape, disc)
        return self._keep((zone, shape), lambda: zone_mask(zone, shape, disc))

    def _keep(self, key, make):
        """What `make` gives, from the last time where the frames' size is the same."""
        shape = key[1]
        if key not in self._kept:
            self._kept = {known: value for known, value in self._kept.items() if known[1] == shape}
            self._kept[key] = make()
        return self._kept[key]
