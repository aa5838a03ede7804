"""Procedural skies: repeatable, plausible, exactly labelled, and readable as a data set."""

from __future__ import annotations

import csv
import functools
import itertools
from collections import defaultdict

import numpy as np
import pytest

from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.synthetic import TIMES, VIEWS, synthetic_sky, write_synthetic
from ddunet_keras.files import IGNORE, DataError, read_gray
from ddunet_keras.sky import cloud_cover, horizon_mask
from ddunet_keras.sky.reading import read_image


def skies(count, size=(64, 64), **options):
    return [sky(seed, size, **options) for seed in range(count)]


@functools.cache
def sky(seed, size, **options):
    """A sky that several tests look at, and none changes."""
    image, labels = synthetic_sky(seed, size, **options)
    image.flags.writeable = False
    labels.flags.writeable = False
    return image, labels


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(("time", "view"), [*itertools.product(TIMES, VIEWS), (None, None)])
def test_shapes_types_and_labels(time, view, num_classes):
    for size in ((48, 80), (80, 48), (16, 17)):
        image, labels = synthetic_sky(5, size, time, view, num_classes)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert labels.shape == size and labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {*range(num_classes), IGNORE}
        assert view != "fisheye" or IGNORE in labels


def test_the_seed_decides_every_bit():
    for time, view in itertools.product(TIMES, VIEWS):
        first, again = (synthetic_sky(11, (60, 90), time, view) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    pictures = {image.tobytes() for image, _ in skies(20)}
    assert len(pictures) == 20


def test_thin_and_thick_cloud_divide_cloud():
    thick = thin = 0
    for seed in range(12):
        image, two = synthetic_sky(seed, (64, 96))
        same, three = synthetic_sky(seed, (64, 96), num_classes=3)
        assert np.array_equal(image, same)
        assert np.array_equal(np.where(three == 2, 1, three), two)
        thin, thick = thin + (three == 1).sum(), thick + (three == 2).sum()
    assert thin > 0 and thick > 0


def test_cloud_cover_ranges_from_clear_to_overcast():
    covers = np.array([cloud_cover(labels).fraction for _, labels in skies(120)])
    assert (covers == 0).any() and (covers == 1).any()
    assert np.histogram(covers, bins=5, range=(0, 1))[0].min() >= 5
    assert 0.3 < covers.mean() < 0.7


def test_by_day_clouds_are_less_blue_than_the_sky():
    differences = []
    for image, labels in skies(40, time="day", view="patch"):
        red, _, blue = np.moveaxis(image.astype(float), -1, 0)
        ratio = (blue - red) / (blue + red + 1)
        is_mono = np.ptp(image, axis=-1).max() < 8  # JPEG rounds
        if not is_mono and 0.05 < cloud_cover(labels).fraction < 0.95:
            differences.append(ratio[labels == 0].mean() - ratio[labels == 1].mean())
    assert len(differences) > 10 and np.median(differences) > 0.1


def test_at_night_it_is_dark_and_clouds_are_lit_or_dark():
    brightness = {time: np.mean([image for image, _ in skies(40, time=time)]) for time in TIMES}
    assert brightness["night"] < brightness["dusk"] < brightness["day"]
    ratios = []
    for image, labels in skies(60, time="night", view="patch"):
        if 0.1 < cloud_cover(labels).fraction < 0.9:
            ratios.append(np.median(image[labels == 1]) / (np.median(image[labels == 0]) + 1))
    ratios = np.array(ratios)
    assert len(ratios) > 20
    assert (ratios > 1.15).mean() > 0.3, "over cities"
    assert (ratios < 0.87).mean() > 0.1, "at dark sites"


def test_some_cameras_are_mono():
    spans = [np.ptp(image.astype(int), axis=-1).max() for image, _ in skies(60, time="day")]
    assert 0.1 < (np.array(spans) < 8).mean() < 0.5


def test_nights_have_stars_where_no_cloud_is():
    """The brightest points of a clear night stand out, those of an overcast one do not."""
    peaks = {"clear": [], "overcast": []}
    for image, labels in skies(100, (96, 96), time="night", view="patch"):
        cover = cloud_cover(labels).fraction
        if cover in (0, 1):
            gray = image.astype(float).mean(-1)[:60]  # above trees and houses
            peak = np.percentile(gray, 99.9) - np.median(gray)
            peaks["clear" if cover == 0 else "overcast"].append(peak)
    assert min(map(len, peaks.values())) > 10
    assert np.median(peaks["clear"]) > 1.5 * np.median(peaks["overcast"])


def test_labels_follow_what_is_seen():
    """The best threshold on brightness or blueness finds most of the labels in a patch of day."""
    agreements = []
    for image, labels in skies(30, time="day", view="patch"):
        is_mono = np.ptp(image, axis=-1).max() < 8
        if not is_mono and 0.1 < cloud_cover(labels).fraction < 0.9:
            ratio = image[..., 0] / (image[..., 2] + 1.0)
            found = [((ratio > cut) == (labels == 1)).mean() for cut in np.linspace(0.2, 1, 41)]
            agreements.append(max(found))
    assert np.median(agreements) > 0.9


def test_fisheye_is_a_disc_that_the_horizon_finds():
    agreements = []
    for image, labels in skies(40, (96, 120), time="day", view="fisheye"):
        valid = labels != IGNORE
        assert not valid[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        if image[~valid].mean() > 25:  # bright ground
            continue
        found = horizon_mask("auto", image)
        agreements.append((found & valid).sum() / (found | valid).sum())
    assert len(agreements) > 10 and np.median(agreements) > 0.9


@pytest.mark.parametrize("num_classes", [2, 3])
def test_written_skies_read_back_as_a_data_set(tmp_path, num_classes):
    seen = []
    root = write_synthetic(
        tmp_path / "skies", 14, (48, 64), 3, num_classes, lambda *done: seen.append(done)
    )
    assert seen == [(k, 14) for k in range(1, 15)]
    assert sorted(p.name for p in root.iterdir()) == ["images", "masks", "metadata.csv"]
    assert [p.name for p in sorted((root / "images").iterdir())] == [
        f"{k:04d}.jpg" for k in range(14)
    ]
    dataset = open_dataset(root, num_classes=num_classes)
    dataset.verify()
    assert len(dataset) == 14
    codes = {0: 0, 255: 1, 128: IGNORE} if num_classes == 2 else {k: k for k in (0, 1, 2, 255)}
    values = set()
    for sample in dataset:
        image, labels = dataset.load(sample)
        mask = read_gray(sample.mask)
        values |= set(np.unique(labels).tolist())
        assert image.shape == (48, 64, 3)
        assert np.array_equal(np.vectorize(codes.get)(mask), labels)
    assert values == {*range(num_classes), IGNORE}


def test_captures_and_dates_group_photos(tmp_path):
    root = write_synthetic(tmp_path / "skies", 30, (32, 32))
    with open(root / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Name"] for row in rows] == [f"{k:04d}.jpg" for k in range(30)]
    dates = defaultdict(lambda: defaultdict(list))
    for row in rows:
        assert len(row["Date"]) == 8 and len(row["Time"]) == 6
        dates[row["Date"]][row["Time"]].append(row["Name"])
    assert len(dates) == 5
    for captures in dates.values():
        assert [len(names) for names in captures.values()] == [3, 3]
        masks = [read_gray(root / "masks" / f"{n[:4]}.png") for g in captures.values() for n in g]
        assert len({bool((mask == 128).any()) for mask in masks}) == 1, "one camera a date"
    assert len({tuple(captures) for captures in dates.values()}) > 1


def test_a_date_has_one_light(tmp_path):
    """Within a date and time of day, the sky's colour varies less than between dates."""
    root = write_synthetic(tmp_path / "skies", 120, (32, 32))
    with open(root / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    colors = defaultdict(list)
    for row in rows:
        stem = row["Name"][:4]
        sky = read_gray(root / "masks" / f"{stem}.png") == 0
        if row["Time"] < "17" and sky.mean() > 0.1:
            image = read_image(root / "images" / f"{stem}.jpg")
            colors[row["Date"]].append(np.median(image[sky], axis=0))
    groups = [np.array(group) for group in colors.values() if len(group) > 1]
    within = np.mean([group.std(axis=0).mean() for group in groups])
    between = np.std([group.mean(axis=0) for group in groups], axis=0).mean()
    assert len(groups) > 5 and within < between


def test_writing_twice_gives_the_same_files(tmp_path):
    roots = [write_synthetic(tmp_path / name, 4, (32, 48), seed=9) for name in "ab"]
    other = write_synthetic(tmp_path / "c", 4, (32, 48), seed=10)
    for path in sorted(roots[0].rglob("*.*")):
        name = path.relative_to(roots[0])
        assert path.read_bytes() == (roots[1] / name).read_bytes()
    assert (roots[0] / "images/0000.jpg").read_bytes() != (other / "images/0000.jpg").read_bytes()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(DataError, match=f"{tmp_path / name}: is not an empty folder"):
            write_synthetic(tmp_path / name, 1)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert len(list(write_synthetic(tmp_path / "empty", 1, (32, 32)).rglob("*.jpg"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed: .*received -1"),
        ({"seed": 1.5}, "seed: .*received 1.5"),
        ({"seed": None}, "seed: .*received None"),
        ({"image_size": (8, 64)}, r"image_size: .*received \(8, 64\)"),
        ({"image_size": (64, 64, 3)}, r"received \(64, 64, 3\)"),
        ({"image_size": (64.0, 64)}, r"received \(64.0, 64\)"),
        ({"image_size": 64}, "image_size: .*received 64"),
        ({"num_classes": 4}, "num_classes: .*received 4"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_sky(**{"seed": 0, **arguments})
    with pytest.raises(ValueError, match=message):
        write_synthetic(tmp_path / "skies", 1, **arguments)
    assert not (tmp_path / "skies").exists()


@pytest.mark.parametrize(("name", "value"), [("time", "noon"), ("view", "side"), ("time", 3)])
def test_unknown_times_and_views_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected one of .* received {value!r}"):
        synthetic_sky(0, **{name: value})


@pytest.mark.parametrize("count", [0, -3, 2.5, "4", None])
def test_bad_counts_are_named(tmp_path, count):
    with pytest.raises(ValueError, match=f"count: .*received {count!r}"):
        write_synthetic(tmp_path / "skies", count)
