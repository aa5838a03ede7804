"""Photos to network inputs and back, with NumPy and Pillow alone.

Training and prediction both go through these functions: a model sees what it was trained on.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_array(picture, rows=8) -> np.ndarray:
    """`np.asarray` of a Pillow picture of mode "RGB", uint8 (h, w, 3), in bands of `rows`.

    `np.asarray` takes twice the memory beside the picture's own, which counts at 12 megapixels.
    """
    array = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, rows):
        array[top : top + rows] = picture.crop(
            (0, top, picture.width, min(top + rows, picture.height))
        )
    return array


def resize_image(image, size) -> np.ndarray:
    """Resizes uint8 (h, w, 3) to `size` = (height, width): bilinear, averaging when it shrinks."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_labels(labels, size) -> np.ndarray:
    """Resizes a uint8 (h, w) label map to `size` = (height, width) by its nearest pixel."""
    if labels.shape == tuple(size):
        return labels
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def rotation_matrix(angle) -> np.ndarray:
    """(2, 2), of an angle in radians, for `warp`."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def warp(image, labels, matrix, shift=(0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Turns, slants, zooms and shifts a photo and its labels about the middle.

    Beyond the border, as far as half of the longer side, the nearest pixel is repeated.

    Args:
        image, labels: uint8 (h, w, 3), interpolated, and (h, w), of which the nearest is taken.
        matrix: (2, 2), maps (x, y) of the result, from its middle, to those of what is given.
        shift: (x, y), pixels, added to the latter.

    Returns:
        Both, of the size that was given.
    """
    h, w = labels.shape
    pad = (max(h, w) + 1) // 2
    center = np.array([w, h]) / 2
    offset = center + shift + pad - matrix @ center
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])

    def transform(array, resample):
        widths = [(pad, pad), (pad, pad), (0, 0)][: array.ndim]
        padded = Image.fromarray(np.pad(array, widths, mode="edge"))
        return np.asarray(padded.transform((w, h), Image.Transform.AFFINE, affine, resample))

    return transform(image, Image.Resampling.BILINEAR), transform(labels, Image.Resampling.NEAREST)


def resize_probabilities(probabilities, size) -> np.ndarray:
    """Resizes float32 (h, w) or (h, w, n) to `size` = (height, width), bilinear."""
    if probabilities.ndim == 3:
        channels = np.moveaxis(probabilities, -1, 0)
        return np.stack([resize_probabilities(c, size) for c in channels], axis=-1)
    if probabilities.shape == tuple(size):
        return probabilities
    picture = Image.fromarray(np.ascontiguousarray(probabilities, "float32"))
    (old, _), (height, width) = probabilities.shape, size
    if height <= old:
        return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    # Pillow widens the few rows, and here each new row is mixed of two: three times faster
    rows = np.asarray(picture.resize((width, old), Image.Resampling.BILINEAR))
    steps = np.diff(rows, axis=0, append=rows[-1:])
    result = np.empty(size, "float32")
    places = ((np.arange(height) + 0.5) * old / height - 0.5).clip(0, old - 1)
    for row, place in zip(result, places, strict=True):
        above = int(place)
        np.multiply(steps[above], np.float32(place - above), out=row)
        row += rows[above]
    return result


def align_corners_matrix(size, new_size) -> np.ndarray:
    """(new_size, size) weights of linear interpolation whose first and last samples stay."""
    position = np.linspace(0, size - 1, new_size) if new_size > 1 else np.zeros(1)
    low = np.minimum(position.astype(int), max(size - 2, 0))
    weight = position - low
    matrix = np.zeros((new_size, size))
    matrix[np.arange(new_size), low] = 1 - weight
    matrix[np.arange(new_size), np.minimum(low + 1, size - 1)] += weight
    return matrix


def normalize(images) -> np.ndarray:
    """Maps pixel values 0..255 to the network's -1..1: x / 127.5 - 1, float32."""
    return np.asarray(images, "float32") / np.float32(127.5) - np.float32(1)
