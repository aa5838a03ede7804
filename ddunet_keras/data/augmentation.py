"""Random variations of a photo and its mask, for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddunet_keras.files import IGNORE
from ddunet_keras.images import rotation_matrix, warp

_LUMA = np.array([[0.299, 0.587, 0.114]])  # ITU-R BT.601, as Pillow's own gray

EXPOSURE = 0.4
"""Of another camera: deviation of the logarithm of its exposure, in displayed values."""

BRIGHTEST_EXPOSURE = 1.6
"""Beyond it, photos are mostly white."""

WARMTH = 0.18
TINT = 0.07
"""Of its white balance: deviations of the logarithm of the gain of red, and inversely of blue, and
of each channel beside that."""

MONO = 0.25
"""Share of the other cameras that are mono; each weighs red, green and blue in its own way."""

VIGNETTE = 0.6
"""Largest loss of brightness in the corners, as a share."""

NOISE = 0.03
"""Largest deviation of the noise, as a share of the full range."""

_RANGES = {
    "crop": (0.05, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "channel_gain": (0, 1),
    "saturation": (0, 1),
    "gamma": (1, 10),
    "horizon_circle": (0, 1),
    "rotation": (0, 45),
    "other_camera": (0, 1),
    "black_outside": (0, 1),
}


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for each image in each epoch; the mask follows the image.

    Args:
        flips: mirror, left to right and top to bottom, each with probability 1/2.
        quarter_turns: turn by 0, 90, 180 or 270 degrees.
        crop: smallest share of height and width that is kept, in (0, 1]; the cut is zoomed to the
            input size. 1 keeps the whole image.
        brightness: largest shift as a share of the full range, either way.
        contrast: largest change of contrast about the middle gray, either way, as a share.
        channel_gain: largest change of each channel's gain, either way: white balance.
        saturation: largest change of saturation, either way.
        gamma: largest exponent of the tone curve; drawn log-uniformly from [1 / gamma, gamma].
        horizon_circle: probability that all but a random circle is black and ignored, as in a
            whole-sky camera.
        rotation: largest turn beside quarter turns, either way, degrees up to 45; beyond the border
            the nearest pixel is repeated.
        other_camera: probability that the photo looks as if another camera had taken it, with
            exposure, white balance, vignette and noise of its own, and some in shades of gray.
        black_outside: probability that the ignored pixels are black, as those outside a given
            horizon are in prediction.

    Raises:
        ValueError: a value is out of its range.

    Example:

    >>> photo, mask = np.zeros((40, 60, 3), "uint8"), np.zeros((40, 60), "uint8")
    >>> photo, mask = Augmentation()(photo, mask, (32, 48), np.random.default_rng(0))
    >>> photo.shape, mask.shape
    ((32, 48, 3), (32, 48))
    """

    flips: bool = True
    quarter_turns: bool = True
    crop: float = 0.4
    brightness: float = 0.1
    contrast: float = 0.15
    channel_gain: float = 0.08
    saturation: float = 0.15
    gamma: float = 1.15
    horizon_circle: float = 0.0
    rotation: float = 0.0
    other_camera: float = 0.2
    black_outside: float = 0.5

    def __post_init__(self):
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"`{name}` must lie in [{low}, {high}]. Received: {name}={value!r}"
                )

    def __call__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        size: tuple[int, int],
        random: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws one variation.

        Args:
            image, labels: uint8 (h, w, 3) and (h, w).
            size: (height, width) of the result.
            random: what is drawn from; equal states give equal results.

        Returns:
            uint8 (height, width, 3) and (height, width).
        """
        if self.rotation:
            angle = np.deg2rad(random.uniform(-self.rotation, self.rotation))
            image, labels = warp(image, labels, rotation_matrix(angle))
        turns = int(random.integers(4)) if self.quarter_turns else 0
        # a quarter turn swaps the sides, so the cut is brought to the swapped size first
        cut_size = size if turns % 2 == 0 else size[::-1]
        photo, mask = self._cut(image, labels, cut_size, random)
        photo = self._recolour(photo, random)
        if random.uniform() < self.other_camera:
            photo = through_other_camera(photo, random)

        image = np.rot90(np.asarray(photo), turns)
        labels = np.rot90(np.asarray(mask), turns)
        if self.flips:
            upside_down, mirrored = random.integers(2, size=2)
            if upside_down:
                image, labels = image[::-1], labels[::-1]
            if mirrored:
                image, labels = image[:, ::-1], labels[:, ::-1]
        if random.uniform() < self.horizon_circle:
            outside = _outside_circle(size, random)
            image = np.where(outside[..., None], 0, image)
            labels = np.where(outside, IGNORE, labels)
        if random.uniform() < self.black_outside:
            image = np.where((labels == IGNORE)[..., None], 0, image)
        return image.astype("uint8"), labels.astype("uint8")

    def _cut(self, image, labels, size, random):
        """A random part of photo and mask, of the image's proportions, zoomed to `size`."""
        height, width = labels.shape
        share = random.uniform(self.crop, 1)
        top, left = random.uniform(0, 1 - share, 2) * (height, width)
        box = (left, top, left + share * width, top + share * height)
        pillow_size = size[::-1]
        photo = Image.fromarray(image).resize(pillow_size, Image.Resampling.BILINEAR, box)
        mask = Image.fromarray(labels).resize(pillow_size, Image.Resampling.NEAREST, box)
        return photo, mask

    def _recolour(self, photo, random):
        """Saturation by a matrix, then a tone curve for each channel.

        Pillow applies both to 8-bit values in C, outside Python's lock.
        """
        amount = 1 + random.uniform(-self.saturation, self.saturation)
        matrix = amount * np.eye(3) + (1 - amount) * _LUMA
        matrix = np.hstack([matrix, np.zeros((3, 1))])
        return photo.convert("RGB", tuple(matrix.ravel())).point(self._tone_table(random))

    def _tone_table(self, random):
        exponent = self.gamma ** random.uniform(-1, 1)
        tone = np.linspace(0, 1, 256) ** exponent
        contrast = 1 + random.uniform(-self.contrast, self.contrast)
        tone = (tone - 0.5) * contrast + 0.5 + random.uniform(-self.brightness, self.brightness)
        gains = 1 + random.uniform(-self.channel_gain, self.channel_gain, 3)
        return np.rint(np.clip(np.outer(gains, tone), 0, 1) * 255).astype(int).ravel().tolist()


NO_AUGMENTATION = Augmentation(
    flips=False,
    quarter_turns=False,
    crop=1,
    brightness=0,
    contrast=0,
    channel_gain=0,
    saturation=0,
    gamma=1,
    other_camera=0,
    black_outside=0,
)
"""Changes nothing. A `Pipeline` with it still shuffles."""


def through_other_camera(
    photo: Image.Image, random: np.random.Generator, mono: float = MONO
) -> np.ndarray:
    """An RGB photo as another camera might have taken it, uint8 (h, w, 3): `other_camera`.

    A share `mono` of these cameras, 0 to 1, sees no colours.
    """
    exposure = min(random.lognormal(-0.1, EXPOSURE), BRIGHTEST_EXPOSURE)
    is_mono = random.uniform() < mono
    if is_mono:
        matrix = exposure * np.tile(random.dirichlet([1.5, 1.5, 1.5]), (3, 1))
    else:
        warmth = random.normal(0, WARMTH) * np.array([1, 0, -1])
        gains = np.exp(warmth + random.normal(0, TINT, 3))
        matrix = exposure * np.diag(gains)
    matrix = np.hstack([matrix, np.zeros((3, 1))])
    values = np.array(photo.convert("RGB", tuple(matrix.ravel())), np.float32)
    height, width = values.shape[:2]
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    corner = random.uniform(0, VIGNETTE) * random.integers(2)
    values *= (1 - corner * (rows**2 + columns**2) / 2).astype(np.float32)[..., None]
    noise = random.standard_normal((height, width, 1 if is_mono else 3), np.float32)
    values += 255 * NOISE * random.uniform() ** 2 * noise
    return values.clip(0, 255).round().astype(np.uint8)


def _outside_circle(size, random):
    height, width = size
    radius = random.uniform(0.4, 0.6) * min(size)
    y = height * random.uniform(0.4, 0.6)
    x = width * random.uniform(0.4, 0.6)
    rows, columns = np.ogrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 > radius**2
