"""Measures the frames of one camera: what stays the same from frame to frame is made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddunet_keras.prediction import Model
from ddunet_keras.sky import (
    Disc,
    Horizon,
    Segmentation,
    check_horizon,
    check_zone,
    find_horizon,
    zone_mask,
)
from ddunet_keras.sky.reading import Photo


class Measure:
    """Finds the clouds in a camera's frames, in the whole sky and in its zones.

    The masks of horizon and zones are read once; they are made anew when the size changes.

    Args:
        model: has `segment`, as `Segmenter` does.
        threshold, horizon: as in `Segmenter.segment`.
        zones: as in `Segmentation.zone_cover`.

    Raises:
        DataError: the horizon's mask cannot be read, or a zone cannot be placed.

    Example:

    >>> measure = Measure(dd.Segmenter(), horizon="circle:32,32,30", zones=["zenith:30"])
    >>> result = measure.segment(Photo(dd.synthetic_sky(0, (64, 64))[0]))
    >>> list(measure.zone_percents(result))
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
            horizon = find_horizon("auto", photo.image)
        else:
            horizon = self._keep(
                ("horizon", shape), lambda: find_horizon(self._horizon, photo.image)
            )
        if photo.valid is not None:
            horizon = Horizon(horizon.valid & photo.valid, horizon.disc)
        return self._model.segment(
            photo.image, threshold=self._threshold, horizon=horizon, force=False
        )

    def zone_percents(self, result: Segmentation) -> dict[str, float | None]:
        """Cover of each zone in percent; None where the frame or the zone shows no sky, or "auto"
        found no disc to place it in."""
        return {zone: self._zone_percent(zone, result) for zone in self._zones}

    def _zone_percent(self, zone, result):
        if result.probabilities is None or (zone.startswith("zenith:") and result.disc is None):
            return None
        mask = self._zone_mask(zone, result.image.shape[:2], result.disc)
        percent = result.zone_cover(mask).percent
        return None if np.isnan(percent) else round(percent, 2)

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
