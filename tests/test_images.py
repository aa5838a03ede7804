"""Photos to network inputs and back."""

import numpy as np
import pytest
from PIL import Image

from ddunet_keras.images import (
    normalize,
    resize_image,
    resize_labels,
    resize_probabilities,
    to_array,
)


def photo(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype="uint8")


def triangle(size, new_size):
    """(new, old) weights, linear about half-pixel centres; a smaller picture averages."""
    scale = size / new_size
    reach = max(scale, 1)
    centre = (np.arange(new_size)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(np.arange(size) - centre) / reach, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize(image, size):
    rows, columns = (triangle(*pair) for pair in zip(image.shape, size, strict=False))
    return np.einsum("ih,hw...,jw->ij...", rows, image.astype(float), columns, optimize=True)


SIZES = [
    ((40, 60), (32, 48)),
    ((32, 48), (64, 160)),
    ((300, 17), (16, 32)),
    ((1, 1), (32, 16)),
    ((32, 16), (1, 1)),
    ((7, 200), (7, 32)),
]


@pytest.mark.parametrize("old, new", SIZES)
def test_a_photo_is_interpolated_and_averaged(old, new):
    image = photo(*old)
    resized = resize_image(image, new)
    assert resized.shape == (*new, 3) and resized.dtype == np.uint8
    assert np.abs(resized - resize(image, new)).max() <= 1.01  # rounds between rows and columns


@pytest.mark.parametrize("old, new", [((364, 300), (256, 256)), ((480, 270), (256, 96))])
def test_columns_are_resized_first(old, new):
    """As `sky.c` and the page in the browser do it, which Pillow does not for all tall photos."""
    image = photo(*old)
    narrow = np.floor(resize(image, (old[0], new[1])) + 0.5).astype(np.uint8)
    expected = np.floor(resize(narrow, new) + 0.5)
    different = resize_image(image, new) != expected
    assert different.mean() < 0.02  # where a half is rounded; the other way round, a tenth


@pytest.mark.parametrize("old, new", SIZES)
def test_probabilities_are_interpolated(old, new):
    probabilities = np.random.default_rng(1).random(old).astype("float32")
    resized = resize_probabilities(probabilities, new)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, resize(probabilities, new), atol=1e-5)
    assert resized.min() >= -1e-6 and resized.max() <= 1 + 1e-6


def test_probabilities_of_classes_are_interpolated_alone():
    probabilities = np.random.default_rng(1).random((8, 12, 3)).astype("float32")
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    resized = resize_probabilities(probabilities, (20, 30))
    assert resized.shape == (20, 30, 3)
    np.testing.assert_allclose(resized.sum(axis=-1), 1, atol=1e-5)
    for k in range(3):
        expected = resize_probabilities(np.ascontiguousarray(probabilities[..., k]), (20, 30))
        assert np.array_equal(resized[..., k], expected)


@pytest.mark.parametrize("old, new", SIZES)
def test_labels_stay_labels(old, new):
    labels = np.random.default_rng(2).choice([0, 1, 2, 255], old).astype("uint8")
    resized = resize_labels(labels, new)
    assert resized.shape == new and resized.dtype == np.uint8
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * o / n).astype(int), o - 1)
        for o, n in zip(old, new, strict=True)
    )
    assert np.array_equal(resized, labels[np.ix_(rows, columns)])


@pytest.mark.parametrize(
    "function, array",
    [
        (resize_image, photo(8, 12)),
        (resize_labels, photo(8, 12)[..., 0]),
        (resize_probabilities, np.full((8, 12), 0.3, "float32")),
    ],
)
def test_nothing_happens_at_the_same_size(function, array):
    assert np.array_equal(function(array, (8, 12)), array)
    assert np.array_equal(function(array, [8, 12]), array)


def test_a_part_of_a_photo_and_a_mirrored_one():
    image = photo(20, 30)
    for view in (image[::-1], image[:, ::-1], image[2:, 5:], image[..., ::-1]):
        expected = resize_image(view.copy(), (16, 16))
        assert np.array_equal(resize_image(view, (16, 16)), expected)
    probabilities = np.random.default_rng(1).random((20, 30))
    expected = resize_probabilities(probabilities.T.astype("float32").copy(), (16, 16))
    assert np.array_equal(resize_probabilities(probabilities.T, (16, 16)), expected)


def test_a_photo_and_its_labels_stay_in_register():
    """A step between two halves lies at the same place in both."""
    labels = np.zeros((30, 50), "uint8")
    labels[:, 20:] = 1
    image = np.repeat(labels[..., None] * np.uint8(255), 3, axis=-1)
    edges = [
        resize_image(image, (64, 160))[0, :, 0] >= 128,
        resize_labels(labels, (64, 160))[0] == 1,
        resize_probabilities(labels.astype("float32"), (64, 160))[0] >= 0.5,
    ]
    assert [int(edge.argmax()) for edge in edges] == [64, 64, 64]


def test_normalize():
    """(x / 255 - 0.5) / 0.5, as the authors write it."""
    pixels = np.arange(256, dtype="uint8")
    normalized = normalize(pixels)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, (pixels / 255 - 0.5) / 0.5, atol=1e-7)
    assert normalized[0] == -1 and normalized[-1] == 1
    assert normalize(photo(3, 4)[None]).shape == (1, 3, 4, 3)


def test_to_array_is_what_numpy_gives():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 21, 3), np.uint8))
    array = to_array(picture)
    np.testing.assert_array_equal(array, np.asarray(picture))
    assert array.dtype == np.uint8
