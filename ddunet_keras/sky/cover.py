"""From probabilities to what a sky camera's owner reads: cloud cover, mask and overlay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ddunet_keras.files import IGNORE
from ddunet_keras.images import BAND, as_photo, resize_probabilities, resized_bands
from ddunet_keras.sky.confidence import cover_confidence
from ddunet_keras.sky.horizon import Disc, find_horizon
from ddunet_keras.sky.quality import frame_quality
from ddunet_keras.sky.zones import zone_mask

CLOUD_COLORS = (
    (204, 0, 140),
    (240, 228, 66),
    (0, 158, 115),
    (213, 94, 0),
)
"""Overlay colours of the cloud classes, densest first, after Okabe & Ito (2008): the colour-blind
tell them apart, and the first occurs neither in blue nor in city-lit skies. Sky is not tinted."""

CONTOUR_COLOR = (255, 255, 255)
"""Overlay colour of the line between two classes."""

SIDE_A_LINE = 250
"""Pixels of the photo's shorter side for each pixel of that line's width."""

DARKENED = 0.35
"""Share of its brightness that is left in an overlay to what is not valid."""

NOT_VALID = 128
"""Value in a two-class mask picture of a pixel outside the horizon (sky is 0, cloud 255)."""

ROUNDING = 1e-3
"""By which a probability may leave [0, 1]: resizing and dequantizing round."""


@dataclass(frozen=True)
class CloudCover:
    """Share of the visible sky that clouds cover.

    The share is one of pixels: a fisheye photo's pixels are not weighted by solid angle.

    Attributes:
        fraction: cloudy share of the valid pixels, 0 to 1; NaN where no pixel is valid.
        valid_fraction: share of the photo's pixels that are valid, 0 to 1.

    Raises:
        ValueError: a share is outside [0, 1].

    Example:

    >>> cover = CloudCover(fraction=0.98, valid_fraction=1.0)
    >>> cover.percent, cover.okta
    (98.0, 7)
    """

    fraction: float
    valid_fraction: float

    def __post_init__(self) -> None:
        for name in ("fraction", "valid_fraction"):
            # a NumPy scalar would show as one wherever the cover is printed
            value = float(getattr(self, name))
            object.__setattr__(self, name, value)
            if not 0 <= value <= 1 and not math.isnan(value):
                raise ValueError(f"{name}: expected a number in [0, 1], received {value}")

    @property
    def percent(self) -> float:
        """Cloud cover in percent, 0 to 100; NaN where no pixel is valid."""
        return 100.0 * self.fraction

    @property
    def okta(self) -> int | None:
        """Cloud cover in eighths, 0 to 8; None where no pixel is valid.

        0 is kept for a sky without any cloud and 8 for one without any gap, so that a trace of
        cloud is 1 and a trace of sky 7 (WMO-No. 8, Guide to Instruments and Methods of
        Observation, observation of clouds; WMO-No. 306, code table 2700).
        """
        if math.isnan(self.fraction):
            return None
        if self.fraction in (0.0, 1.0):
            return int(8 * self.fraction)
        return min(max(math.floor(8 * self.fraction + 0.5), 1), 7)

    def to_dict(self) -> dict[str, Any]:
        """`fraction`, `percent`, `okta` and `valid_fraction`, as JSON holds them: None for NaN."""
        known = not math.isnan(self.fraction)
        return {
            "fraction": self.fraction if known else None,
            "percent": self.percent if known else None,
            "okta": self.okta,
            "valid_fraction": self.valid_fraction,
        }


def cloud_cover(labels: ArrayLike, valid: ArrayLike | None = None) -> CloudCover:
    """Cloud cover of a label map: every class above 0 is cloud.

    Args:
        labels: integers or booleans (h, w): 0 sky, 1 and more cloud, 255 (`IGNORE`) not counted.
            Of a mask picture, in which 255 is cloud, pass `mask == 255`.
        valid: boolean (h, w), True where a pixel counts; every pixel by default.

    Raises:
        ValueError: `labels` is not (h, w) of integers or booleans, or `valid` has another shape.

    Example:

    >>> cloud_cover(np.array([[0, 1], [2, 255]])).fraction
    0.6666666666666666
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "biu":
        raise ValueError(
            f"labels: expected integers or booleans of shape (h, w), received {labels.dtype} of "
            f"shape {labels.shape}"
        )
    counted = labels != IGNORE
    if valid is not None:
        counted &= _as_valid(valid, labels.shape)
    total = int(np.count_nonzero(counted))
    cloudy = int(np.count_nonzero(counted & (labels > 0)))
    return CloudCover(cloudy / total if total else math.nan, total / max(labels.size, 1))


def class_names(num_classes: int) -> tuple[str, ...]:
    """What the classes are called: sky first, then ever denser cloud.

    Example:

    >>> class_names(3)
    ('sky', 'thin cloud', 'thick cloud')
    """
    if num_classes == 2:
        return ("sky", "cloud")
    if num_classes == 3:
        return ("sky", "thin cloud", "thick cloud")
    return ("sky", *(f"cloud {index}" for index in range(1, num_classes)))


def _as_valid(valid, shape):
    valid = np.asarray(valid)
    if valid.shape != shape or valid.dtype != bool:
        raise ValueError(
            f"valid: expected booleans of shape {shape}, received {valid.dtype} of shape "
            f"{valid.shape}"
        )
    return valid


def _as_probabilities(probabilities):
    values = np.asarray(probabilities, np.float32)
    if values.ndim not in (2, 3) or values.shape[2:] == (1,) or not values.size:
        raise ValueError(
            f"probabilities: expected shape (h, w) or (h, w, n) with n > 1, received {values.shape}"
        )
    low = values.min()
    high = values.max()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"probabilities: expected values in [0, 1], received {low} to {high}; apply the "
            "sigmoid or softmax to logits"
        )
    return values if low >= 0 and high <= 1 else values.clip(0, 1)


class Segmentation:
    """A photo, what the network says of it, and what follows from that.

    Args:
        image: the photo, uint8 (height, width, 3), RGB.
        probabilities: float (h, w), probability of cloud, or (h, w, n) of each of n classes, of
            which the first is sky; 0 to 1. Of another size than the photo's, as the network gives
            them, they are kept so, and enlarged where they are asked for. None: they were not
            computed, as the photo says nothing of the sky. Then no pixel has a class, and the cloud
            cover is NaN.
        valid: boolean (height, width), True where the photo shows sky; everywhere by default.
        threshold: a pixel is cloud from this probability on, 0 to 1; (h, w, n) probabilities need
            none, the likeliest class counts.
        disc: of a whole-sky photo, where the horizon tells it; None where there is none, or where
            "auto" found none (then all of the photo counts).
        reason: why the photo says nothing of the sky, as `FrameQuality.reason`; None if it does.
        confidence: how far the cloud cover can be trusted, 0 to 1, as `cover_confidence` gives it;
            None where that is not known, 0 where the photo has a reason.

    Attributes:
        usable: whether the photo shows the sky, so that the cloud cover means anything.

    Raises:
        ValueError: an argument has another shape, type or range.

    Example:

    >>> image = np.zeros((2, 2, 3), np.uint8)
    >>> result = Segmentation(image, np.array([[0.1, 0.2], [0.3, 0.9]]))
    >>> result.cloud_cover.percent, result.mask.tolist()
    (25.0, [[0, 0], [0, 255]])
    """

    def __init__(
        self,
        image: np.ndarray,
        probabilities: np.ndarray | None,
        valid: np.ndarray | None = None,
        threshold: float = 0.5,
        disc: Disc | None = None,
        reason: str | None = None,
        confidence: float | None = None,
    ) -> None:
        self.image = as_photo(image)
        shape = self.image.shape[:2]
        if probabilities is None and reason is None:
            raise ValueError("probabilities: None is for a photo that has a `reason`")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a number in [0, 1], received {threshold!r}")
        self._small = None if probabilities is None else _as_probabilities(probabilities)
        self.valid = np.ones(shape, bool) if valid is None else _as_valid(valid, shape)
        self.threshold = threshold
        self._labelled: tuple[float, np.ndarray] | None = None  # labels, and with which threshold
        self.disc = disc
        self.reason = reason
        self.confidence = confidence

    @property
    def usable(self) -> bool:
        return self.reason is None

    @property
    def measured(self) -> bool:
        """Whether there are probabilities: a usable photo has them, another if it was forced."""
        return self._small is not None

    @property
    def probabilities(self) -> np.ndarray | None:
        """float32 (height, width) or (height, width, n), at the photo's size; None if unknown."""
        if self._small is None:
            return None
        height, width = self.image.shape[:2]
        return resize_probabilities(self._small, (height, width))

    @property
    def num_classes(self) -> int:
        """Number of classes, sky among them; 2 where there are no probabilities."""
        return 2 if self._small is None or self._small.ndim == 2 else self._small.shape[-1]

    @property
    def labels(self) -> np.ndarray:
        """uint8 (height, width): class index (0 is sky), 255 (`IGNORE`) where not valid or not
        known. Read-only."""
        if self._labelled is None or self._labelled[0] != self.threshold:
            labels = self._make_labels()
            labels.flags.writeable = False
            self._labelled = self.threshold, labels
        return self._labelled[1]

    def _make_labels(self):
        shape = self.valid.shape
        if self._small is None:
            return np.full(shape, IGNORE, np.uint8)
        labels = np.empty(shape, np.uint8)
        for rows, values in resized_bands(self._small, shape):
            is_binary = values.ndim == 2
            labels[rows] = values >= self.threshold if is_binary else values.argmax(axis=-1)
        np.copyto(labels, IGNORE, where=~self.valid)
        return labels

    @property
    def mask(self) -> np.ndarray:
        """uint8 (h, w), to be saved as a picture and read again as a data set's mask.

        Two classes: sky 0, cloud 255, not valid 128. More: as `labels`.
        """
        labels = self.labels
        if self.num_classes > 2:
            return labels.copy()
        return np.where(labels == IGNORE, np.uint8(NOT_VALID), labels * np.uint8(255))

    @property
    def cloud_cover(self) -> CloudCover:
        """Cloud cover of the valid pixels; NaN where there are no probabilities."""
        if not self.measured:
            return CloudCover(math.nan, float(self.valid.mean()))
        return cloud_cover(self.labels)

    def zone_cover(self, zone: Any) -> CloudCover:
        """Cloud cover of the valid pixels in a part of the photo.

        Args:
            zone: "zenith:DEGREES" (for a photo with a `disc`), "circle:x,y,r", a mask file or a
                boolean array; see `ddunet_keras.sky.zone_mask`.

        Raises:
            DataError: the zone cannot be placed.

        Example:

        >>> image = np.zeros((2, 2, 3), np.uint8)
        >>> result = Segmentation(image, np.array([[0.1, 0.2], [0.3, 0.9]]))
        >>> result.zone_cover(np.array([[False, False], [True, True]])).percent
        50.0
        """
        return cloud_cover(self.labels, zone_mask(zone, self.image.shape[:2], self.disc))

    def overlay(self, alpha: float = 0.45) -> np.ndarray:
        """The photo with clouds tinted, classes outlined and what is not valid darkened.

        Args:
            alpha: opacity of the tint, 0 (the outline alone) to 1.

        Returns:
            uint8 (h, w, 3). The outline's width grows with the photo's size.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number in [0, 1], received {alpha!r}")
        labels = self.labels
        picture = self.image.copy()
        for label in range(1, self.num_classes):
            density = self.num_classes - 1 - label  # 0 is the densest cloud
            _blend(picture, labels == label, CLOUD_COLORS[density % len(CLOUD_COLORS)], alpha)
        _blend(picture, labels == IGNORE, (0, 0, 0), 1 - DARKENED)
        contour = _contour(labels, max(round(min(labels.shape) / SIDE_A_LINE), 1))
        np.copyto(_pixels(picture), _pixels(np.array(CONTOUR_COLOR, np.uint8)), where=contour)
        return picture

    def to_dict(self) -> dict[str, Any]:
        """`cloud_cover` (`CloudCover.to_dict`), `usable`, `reason` and `confidence`."""
        return {
            "cloud_cover": self.cloud_cover.to_dict(),
            "usable": self.usable,
            "reason": self.reason,
            "confidence": self.confidence,
        }


def _pixels(picture):
    """A picture, uint8 (..., 3), with each pixel as one item: NumPy copies these much faster."""
    return picture.view("V3")[..., 0]


def _blend(picture, where, color, opacity):
    """Blends a colour over a part of a picture, uint8 (h, w, 3), in place."""
    weight = round(256 * opacity)
    colors = np.tile(np.array(color, np.uint16), picture.shape[1]) * np.uint16(weight)
    colors += 128  # rounds
    for start in range(0, len(picture), BAND):
        rows = slice(start, start + BAND)
        if not where[rows].any():
            continue
        mixed = picture[rows].reshape(-1, colors.size) * np.uint16(256 - weight)
        mixed += colors
        mixed >>= 8
        blended = mixed.astype(np.uint8).reshape(picture[rows].shape)
        np.copyto(_pixels(picture)[rows], _pixels(blended), where=where[rows])


def _contour(labels, width):
    """Where lines of `width` pixels between two classes run, not along what is not valid."""
    contour = np.zeros(labels.shape, bool)
    # between rows, and with both turned, between columns; `drawn` is a view of `contour`
    for lines, drawn in ((labels, contour), (labels.T, contour.T)):
        before = lines[:-width]
        after = lines[width:]
        differ = before != after
        differ &= before != IGNORE
        differ &= after != IGNORE
        drawn[(width + 1) // 2 :][: len(differ)] |= differ
    return contour


def segment(
    predictor: Callable[[np.ndarray], np.ndarray],
    image: ArrayLike,
    threshold: float = 0.5,
    horizon: Any = None,
    channel_order: str = "rgb",
    force: bool = False,
) -> Segmentation:
    """Finds the clouds in one photo of any size; `DDUNet.segment` and `Segmenter.segment` are this.

    Args:
        predictor: maps uint8 (h, w, 3) RGB to probabilities of a size of its own, as
            `DDUNet.predict_probabilities` does.
        image: uint8 (h, w, 3).
        threshold: probability in (0, 1) from which a pixel is cloud (two classes only).
        horizon: None, "auto", "circle:x,y,r" (pixels of the photo), a mask file or a boolean array;
            outside it nothing counts. See `horizon_mask`.
        channel_order: of `image`, "rgb" or, as OpenCV reads, "bgr".
        force: find clouds in a photo that says nothing of the sky, too.

    The predictor sees black where the horizon says that there is no sky, as in its training, so
    nothing there changes the result.

    Returns:
        `Segmentation` at the photo's own size. If the photo says nothing of the sky (see
        `frame_quality`), it has a `reason`, and unless `force` is given neither probabilities nor
        a cloud cover.

    Raises:
        ValueError: the image is not uint8 (h, w, 3), or another argument is out of its range.

    Example:

    >>> photo, _ = dd.synthetic_sky(0, (48, 64))
    >>> segment(lambda image: np.full((2, 3), 0.9, np.float32), photo).cloud_cover.okta
    8
    >>> segment(lambda image: np.full((2, 3), 0.9, np.float32), np.zeros_like(photo)).reason
    'black'
    """
    photo = as_photo(image)
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"`channel_order` must be 'rgb' or 'bgr'. Received: {channel_order!r}")
    if channel_order == "bgr":
        photo = np.ascontiguousarray(photo[..., ::-1])
    valid, disc = find_horizon(horizon, photo)
    quality = frame_quality(photo, valid)
    reason = quality.reason
    if reason is not None and not force:
        return Segmentation(photo, None, valid, threshold, disc, reason)
    probabilities = predictor(photo if valid.all() else blacken(photo, valid))
    confidence: float | None = 0.0
    if quality.usable:
        confidence = cover_confidence(
            probabilities, valid, threshold, quality.sky_likeness, quality.grey_light
        )
    return Segmentation(photo, probabilities, valid, threshold, disc, reason, confidence)


def blacken(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A photo, black where it shows no sky: so the network sees it, in training and afterwards.

    Args:
        image: uint8 (h, w, 3).
        valid: boolean (h, w), True where it shows sky.

    Example:

    >>> blacken(np.full((1, 2, 3), 9, np.uint8), np.array([[True, False]])).tolist()
    [[[9, 9, 9], [0, 0, 0]]]
    """
    result = np.zeros(image.shape, np.uint8)
    np.copyto(_pixels(result), _pixels(np.ascontiguousarray(image)), where=valid)
    return result
