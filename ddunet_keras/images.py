"""Photos to network inputs and back, with NumPy and Pillow alone.

Training and prediction both go through these functions: a model sees what it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

Size = tuple[int, int]
"""(height, width), pixels."""

BAND = 32
"""Rows of a photo that are worked on at once, where that saves time and memory: some remain in the
processor's cache."""


def to_array(picture: Image.Image, rows: int = BAND) -> np.ndarray:
    """`np.array` of a Pillow picture of mode "RGB", uint8 (h, w, 3), in bands of `rows`.

    `np.array` takes twice the memory beside the picture's own, which counts at 12 megapixels.
    """
    array = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        array[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return array


def as_photo(image: ArrayLike) -> np.ndarray:
    """An image as an array.

    Raises:
        ValueError: it is not uint8 (h, w, 3), or it is empty.
    """
    photo = np.asarray(image)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] != 3 or not photo.size:
        raise ValueError(
            "`image` must be uint8 of shape (height, width, 3). "
            f"Received: {photo.dtype} of shape {photo.shape}"
        )
    return photo


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 (h, w, 3) to `size` = (height, width): bilinear, averaging when it shrinks.

    Columns first, then rows, with 8 bits between, as the programs for devices do. Left to itself,
    Pillow takes some tall images the other way round, from one of its versions on.

    Example:

    >>> resize_image(np.zeros((4, 6, 3), np.uint8), (2, 3)).shape
    (2, 3, 3)
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    narrow = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 (h, w) labels to `size` = (height, width), each by its nearest pixel.

    Example:

    >>> resize_labels(np.array([[0, 255]], np.uint8), (1, 4)).tolist()
    [[0, 0, 255, 255]]
    """
    height, width = size
    if labels.shape == (height, width):
        return labels
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def rotation_matrix(angle: float) -> np.ndarray:
    """(2, 2), of an angle in radians, for `warp`."""
    cos = np.cos(angle)
    sin = np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def warp(
    image: np.ndarray,
    labels: np.ndarray,
    matrix: np.ndarray,
    shift: np.ndarray | Sequence[float] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Turns, slants, zooms and shifts a photo and its labels about the middle.

    Beyond the border, as far as half of the longer side, the nearest pixel is repeated.

    Args:
        image, labels: uint8 (h, w, 3), interpolated, and (h, w), of which the nearest is taken.
        matrix: (2, 2), maps (x, y) of the result, from its middle, to those of what is given.
        shift: (x, y), pixels, added to the latter.

    Returns:
        Both, of the size that was given.

    Example:

    >>> image, labels = np.zeros((4, 4, 3), np.uint8), np.arange(16, dtype=np.uint8).reshape(4, 4)
    >>> warp(image, labels, rotation_matrix(np.pi))[1][0].tolist()
    [15, 14, 13, 12]
    """
    height, width = labels.shape
    pad = (max(height, width) + 1) // 2
    center = np.array([width, height]) / 2
    offset = center + np.asarray(shift) + pad - matrix @ center
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])

    def transform(array, resample):
        widths = [(pad, pad), (pad, pad), (0, 0)][: array.ndim]
        padded = Image.fromarray(np.pad(array, widths, mode="edge"))
        moved = padded.transform((width, height), Image.Transform.AFFINE, affine, resample)
        return np.asarray(moved)

    return transform(image, Image.Resampling.BILINEAR), transform(labels, Image.Resampling.NEAREST)


def resize_probabilities(probabilities: np.ndarray, size: Size) -> np.ndarray:
    """Resizes float32 (h, w) or (h, w, n) to `size` = (height, width), bilinear.

    Example:

    >>> resize_probabilities(np.float32([[0, 1]]), (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    result = np.empty((*size, *probabilities.shape[2:]), np.float32)
    for rows, values in resized_bands(probabilities, size):
        result[rows] = values
    return result


def resized_bands(probabilities: np.ndarray, size: Size) -> Iterator[tuple[slice, np.ndarray]]:
    """What `resize_probabilities` gives, some rows after the other.

    Where all is not needed at once, this is faster, and takes no memory of the photo's size.

    Yields:
        which rows, and their values, float32 (rows, width) or (rows, width, n).

    Example:

    >>> [(rows.start, values.shape) for rows, values in resized_bands(np.eye(2), (64, 9))]
    [(0, (32, 9)), (32, (32, 9))]
    """
    if probabilities.ndim == 3:
        channels = [resized_bands(channel, size) for channel in np.moveaxis(probabilities, -1, 0)]
        for bands in zip(*channels, strict=True):
            yield bands[0][0], np.stack([values for _, values in bands], axis=-1)
        return
    height, width = size
    old_height = min(len(probabilities), height)
    picture = Image.fromarray(np.ascontiguousarray(probabilities, "float32"))
    wide = np.asarray(picture.resize((width, old_height), Image.Resampling.BILINEAR))
    # Pillow makes the few rows wider, and here each new row is mixed of two: three times faster
    differences = np.diff(wide, axis=0, append=wide[-1:])
    positions = ((np.arange(height) + 0.5) * old_height / height - 0.5).clip(0, old_height - 1)
    above = positions.astype(int)
    parts = (positions - above).astype(np.float32)[:, None]
    for start in range(0, height, BAND):
        rows = slice(start, min(start + BAND, height))
        values = differences[above[rows]]
        values *= parts[rows]
        values += wide[above[rows]]
        yield rows, values


def align_corners_matrix(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) weights of linear interpolation whose first and last samples stay.

    Example:

    >>> align_corners_matrix(2, 3).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    position = np.linspace(0, size - 1, new_size) if new_size > 1 else np.zeros(1)
    low = np.minimum(position.astype(int), max(size - 2, 0))
    weight = position - low
    matrix = np.zeros((new_size, size))
    matrix[np.arange(new_size), low] = 1 - weight
    matrix[np.arange(new_size), np.minimum(low + 1, size - 1)] += weight
    return matrix


def normalize(images: ArrayLike) -> np.ndarray:
    """Maps pixel values 0..255 to the network's -1..1: x / 127.5 - 1, float32.

    Example:

    >>> normalize([0, 255]).tolist()
    [-1.0, 1.0]
    """
    return np.asarray(images, "float32") / np.float32(127.5) - np.float32(1)
