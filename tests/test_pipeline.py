import os
from dataclasses import replace

import numpy as np
import pytest

from ddunet_keras import open_dataset, write_synthetic
from ddunet_keras.data.augmentation import NO_AUGMENTATION, Augmentation
from ddunet_keras.data.pipeline import Pipeline
from ddunet_keras.files import IGNORE, DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("skies")
    write_synthetic(root, 10, image_size=(48, 64), seed=3)
    return open_dataset(root)


def names(dataset):
    return [sample.name for sample in dataset]


def coded(size=(40, 40)):
    """A photo whose red and green channels tell where a pixel came from, and its mask."""
    rows, columns = np.indices(size)
    factor = 160 // max(size)
    image = np.stack([rows * factor, columns * factor, np.full(size, 128)], axis=-1)
    image = image.astype("uint8")
    return image, (rows > columns).astype("uint8")


def test_nothing_drawn_means_nothing_changed():
    image, labels = coded()
    result, result_labels = NO_AUGMENTATION(image, labels, (40, 40), np.random.default_rng(0))
    np.testing.assert_array_equal(result, image)
    np.testing.assert_array_equal(result_labels, labels)


@pytest.mark.parametrize("size", [(40, 40), (32, 48)])
def test_mask_follows_the_image(size):
    image, labels = coded((80, 80))
    augmentation = replace(NO_AUGMENTATION, flips=True, quarter_turns=True, crop=0.5)
    for seed in range(30):
        photo, mask = augmentation(image, labels, size, np.random.default_rng(seed))
        assert photo.shape == (*size, 3) and mask.shape == size
        rows, columns = photo[..., 0].astype(int), photo[..., 1].astype(int)
        sure = abs(rows - columns) > 6  # interpolation blurs the border
        np.testing.assert_array_equal(mask[sure], (rows > columns)[sure])


def test_flips_and_turns_reach_all_eight_orientations():
    image, labels = coded()
    augmentation = replace(NO_AUGMENTATION, flips=True, quarter_turns=True)
    seen = {
        augmentation(image, labels, (40, 40), np.random.default_rng(seed))[0].tobytes()
        for seed in range(80)
    }
    assert len(seen) == 8


def test_crop_keeps_at_least_its_share():
    image, labels = coded()
    augmentation = replace(NO_AUGMENTATION, crop=0.5)
    spans = []
    for seed in range(40):
        photo, _ = augmentation(image, labels, (40, 40), np.random.default_rng(seed))
        spans.append((np.ptp(photo[..., 0]) / 4 + 1) / 40)
    assert 0.45 < min(spans) < 0.6 and max(spans) > 0.9


def test_rotation_turns_photo_and_mask_about_the_middle():
    image, labels = coded((80, 80))
    augmentation = replace(NO_AUGMENTATION, rotation=20.0)
    angles = []
    for seed in range(40):
        photo, mask = augmentation(image, labels, (80, 80), np.random.default_rng(seed))
        rows, columns = photo[..., 0] / 2, photo[..., 1] / 2
        assert abs(rows[39:41, 39:41].mean() - 39.5) < 0.6
        assert abs(columns[39:41, 39:41].mean() - 39.5) < 0.6
        down, right = np.gradient(rows[24:56, 24:56])
        assert abs(np.hypot(down.mean(), right.mean()) - 1) < 0.02  # no zoom
        angles.append(np.rad2deg(np.arctan2(right.mean(), down.mean())))
        sure = abs(rows - columns) > 3
        np.testing.assert_array_equal(mask[sure], (rows > columns)[sure])
        assert photo.any(axis=-1).mean() > 0.99  # beyond the border, what is nearest
    assert -20.5 < min(angles) < -15 and 15 < max(angles) < 20.5


@pytest.mark.parametrize(
    "change", ["brightness", "contrast", "channel_gain", "saturation", "gamma"]
)
def test_each_colour_change_changes_the_photo_alone(change):
    image, labels = coded()
    augmentation = replace(NO_AUGMENTATION, **{change: 2.0 if change == "gamma" else 0.5})
    photo, mask = augmentation(image, labels, (40, 40), np.random.default_rng(1))
    assert (photo != image).mean() > 0.2
    np.testing.assert_array_equal(mask, labels)
    if change == "saturation":  # luma stays
        weights = [0.299, 0.587, 0.114]
        assert abs(photo @ weights - image @ weights).mean() < 6


def test_horizon_circle_is_black_and_ignored_outside():
    image, labels = coded()
    augmentation = replace(NO_AUGMENTATION, horizon_circle=1.0)
    photo, mask = augmentation(image, labels, (40, 40), np.random.default_rng(5))
    outside = mask == IGNORE
    assert 0.05 < outside.mean() < 0.8
    assert not photo[outside].any()
    np.testing.assert_array_equal(photo[~outside], image[~outside])


def test_ignored_pixels_become_black():
    image, labels = coded()
    labels = np.where(np.arange(40) < 10, IGNORE, labels).astype("uint8")
    augmentation = replace(NO_AUGMENTATION, black_outside=1.0)
    photo, mask = augmentation(image, labels, (40, 40), np.random.default_rng(0))
    np.testing.assert_array_equal(mask, labels)
    assert not photo[:, :10].any()
    np.testing.assert_array_equal(photo[:, 10:], image[:, 10:])


def test_other_cameras_differ_in_light_and_colour_and_leave_the_mask():
    image = np.full((64, 64, 3), (90, 120, 160), "uint8")
    labels = np.eye(64, dtype="uint8")
    augmentation = replace(NO_AUGMENTATION, other_camera=1.0)
    photos = []
    for seed in range(300):
        photo, mask = augmentation(image, labels, (64, 64), np.random.default_rng(seed))
        np.testing.assert_array_equal(mask, labels)
        photos.append(photo.astype(float))
    is_gray = np.array([np.ptp(photo, axis=-1).max() == 0 for photo in photos])
    assert 0.15 < is_gray.mean() < 0.35
    brightness = np.array([photo.mean() for photo in photos]) / image.mean()
    assert np.percentile(brightness, 5) < 0.5 and np.percentile(brightness, 95) > 1.4
    colored = np.array([photo.mean((0, 1)) for photo in photos])[~is_gray]
    warmth = np.log(colored[:, 0] / colored[:, 2] / (90 / 160))
    assert 0.25 < warmth.std() < 0.55 and abs(warmth.mean()) < 0.1
    corners = np.array([photo[:8, :8].mean() / photo[28:36, 28:36].mean() for photo in photos])
    assert (corners < 0.8).mean() > 0.15
    noise = np.array([np.diff(photo, axis=1).std() for photo in photos])
    assert np.median(noise) < 6 < noise.max()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop", 0),
        ("crop", 1.5),
        ("gamma", 0.5),
        ("brightness", -0.1),
        ("rotation", 50),
        ("other_camera", 2),
    ],
)
def test_augmentation_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must lie in .* Received: {name}={value}"):
        Augmentation(**{name: value})


def test_items_depend_on_seed_epoch_and_position_alone(dataset):
    mild = Augmentation(other_camera=0)  # exposure enlarges what the cache's resampling changes
    first = Pipeline(dataset, names(dataset), (32, 32), 4, mild, seed=7)
    second = Pipeline(dataset, names(dataset), (32, 32), 4, mild, seed=7, cache=False)
    second.item(0, 1)  # another history of reads
    for a, b in zip(first.item(5, 3), second.item(5, 3), strict=True):
        # the cache resamples once more, which smooths noise
        assert abs(a - b).mean() <= (0.03 if first._cache else 0)
    again = first.item(5, 3)[0]
    np.testing.assert_array_equal(again, first.item(5, 3)[0])
    for other in (first.item(6, 3), first.item(5, 4)):
        assert (other[0] != again).any()
    other_seed = Pipeline(dataset, names(dataset), (32, 32), 4, mild, seed=8)
    assert (other_seed.item(5, 3)[0] != again).any()


def test_an_epoch_shows_every_image_once_in_a_new_order(dataset):
    pipeline = Pipeline(dataset, names(dataset), (48, 64), 5, NO_AUGMENTATION, seed=1)
    whole = Pipeline(dataset, names(dataset), (48, 64))
    known = {whole.item(0, i)[0].tobytes(): i for i in range(10)}
    orders = [[known[pipeline.item(e, p)[0].tobytes()] for p in range(10)] for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]


def test_tf_data_and_py_dataset_give_the_same(dataset):
    pytest.importorskip("tensorflow")
    pipeline = Pipeline(dataset, names(dataset), (32, 48), 4, Augmentation(), seed=2)
    assert pipeline.steps == 2  # 10 images, batches of 4, the smaller one is left out
    batches = list(pipeline.tf_data(initial_epoch=3).take(4).as_numpy_iterator())
    other = pipeline.py_dataset(initial_epoch=3)
    assert len(other) == 2
    expected = [other[0], other[1]]
    other.on_epoch_end()
    expected += [other[0], other[1]]
    for (images, labels), (images_2, labels_2) in zip(batches, expected, strict=True):
        assert images.shape == (4, 32, 48, 3) and images.dtype == np.float32
        assert labels.shape == (4, 32, 48) and labels.dtype == np.uint8
        assert images.min() >= -1 and images.max() <= 1
        np.testing.assert_array_equal(images, images_2)
        np.testing.assert_array_equal(labels, labels_2)


def test_without_augmentation_all_images_come_whole_and_in_order(dataset):
    pytest.importorskip("tensorflow")
    pipeline = Pipeline(dataset, names(dataset), (48, 64), 4)
    images, labels = map(np.concatenate, zip(*pipeline.tf_data().as_numpy_iterator(), strict=True))
    assert pipeline.steps == 3
    for i, sample in enumerate(dataset):
        image, label = dataset.load(sample)
        np.testing.assert_allclose((images[i] + 1) * 127.5, image, atol=1e-4)
        np.testing.assert_array_equal(labels[i], label)
    parts = pipeline.py_dataset()
    np.testing.assert_array_equal(np.concatenate([parts[i][0] for i in range(3)]), images)


def test_cache_reads_each_file_once_and_holds_no_more_than_it_needs(dataset, monkeypatch):
    reads = []
    load = type(dataset).load
    monkeypatch.setattr(type(dataset), "load", lambda d, s: reads.append(s.name) or load(d, s))
    pipeline = Pipeline(dataset, names(dataset), (16, 16), 4, Augmentation(crop=0.5))
    for epoch in range(3):
        for place in range(10):
            pipeline.item(epoch, place)
    assert sorted(reads) == sorted(names(dataset))
    assert {image.shape for image, _ in pipeline._cache.values()} == {(32, 32, 3)}
    uncached = Pipeline(dataset, names(dataset), (16, 16), 4, cache=False)
    uncached.item(0, 0), uncached.item(0, 0)
    assert len(reads) == 12


def test_bad_arguments(dataset):
    with pytest.raises(ValueError, match="`names` must not be empty"):
        Pipeline(dataset, [], (32, 32))
    with pytest.raises(ValueError, match="batch_size=0"):
        Pipeline(dataset, names(dataset), (32, 32), 0)
    with pytest.raises(DataError, match="no image named 'nowhere'"):
        Pipeline(dataset, ["nowhere"], (32, 32))


def test_a_file_that_breaks_while_training_is_named(tmp_path):
    tf = pytest.importorskip("tensorflow")
    write_synthetic(tmp_path / "s", 6, image_size=(32, 32), seed=0)
    dataset = open_dataset(tmp_path / "s")
    broken = dataset.samples[2].image
    broken.write_bytes(broken.read_bytes()[: os.path.getsize(broken) // 2])
    pipeline = Pipeline(dataset, names(dataset), (32, 32), 2)
    with pytest.raises(tf.errors.OpError):
        list(pipeline.tf_data())
    assert isinstance(pipeline.error, DataError)  # TensorFlow passes on no more than a text
    assert str(broken) in str(pipeline.error) and "\n" not in str(pipeline.error)
