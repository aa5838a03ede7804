"""Evaluation of predictors whose scores are known beforehand."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ddunet_keras import metrics
from ddunet_keras.evaluation import evaluate
from ddunet_keras.files import IGNORE, DataError


class Skies:
    """A dataset in memory: the red channel of an image is the cloud probability, times 255."""

    def __init__(self, items, num_classes=2):
        self.items, self.num_classes = items, num_classes

    def find(self, name):
        if name not in self.items:
            raise DataError(f"no sample {name!r}")
        return SimpleNamespace(name=name, date="20200101", night=self.items[name][2])

    def load(self, sample):
        return self.items[sample.name][:2]


def red(image):
    return image[..., 0] / 255


def sky(probabilities, truth, night=None):
    image = np.zeros((*np.shape(probabilities), 3), np.uint8)
    image[..., 0] = np.rint(255 * np.asarray(probabilities))
    return image, np.array(truth, np.uint8), night


def random_skies(nights, shape=(12, 20), seed=0):
    rng = np.random.default_rng(seed)
    items = {}
    for k, night in enumerate(nights):
        truth = rng.integers(0, 2, shape)
        noise = rng.random(shape) * (0.3 + 0.1 * k)
        items[f"s{k:02d}"] = sky(np.clip(0.75 * truth + noise, 0, 1), truth, night)
    return Skies(items)


@pytest.fixture
def day_and_night():
    return random_skies([False] * 7 + [True] * 3)


def test_groups_agree_with_scores_of_their_images(day_and_night):
    names = sorted(day_and_night.items)
    result = evaluate(red, day_and_night, names, protocol="date")
    assert list(result.groups) == ["day", "night", "day+night"]
    assert [group["images"] for group in result.groups.values()] == [7, 3, 10]
    for group, members in (("day", names[:7]), ("night", names[7:]), ("day+night", names)):
        samples = [day_and_night.items[name] for name in members]
        counts = [metrics.confusion(red(image) >= 0.5, truth) for image, truth, _ in samples]
        expected = metrics.scores(counts)
        assert result.groups[group]["image_mean"] == pytest.approx(expected["image_mean"])
        assert result.groups[group]["pooled"] == pytest.approx(expected["pooled"])
        cover = metrics.cloud_cover_errors(
            [(red(image) >= 0.5).mean() for image, _, _ in samples],
            [truth.mean() for _, truth, _ in samples],
        )
        assert result.groups[group]["cloud_cover"] == pytest.approx(cover)
    assert result.overall is result.groups["day+night"]


@pytest.mark.parametrize(
    ("nights", "groups"),
    [
        ([False, False], ["day"]),
        ([True], ["night"]),
        ([None, None], ["all"]),
        ([True, None], ["night", "all"]),
        ([False, True, None], ["day", "night", "all"]),
    ],
)
def test_only_groups_that_exist_are_reported(nights, groups):
    dataset = random_skies(nights)
    result = evaluate(red, dataset, list(dataset.items))
    assert list(result.groups) == groups
    assert result.overall["images"] == len(nights)


def test_order_of_names_is_kept_and_only_named_samples_are_scored(day_and_night):
    calls = []
    result = evaluate(
        red, day_and_night, ["s03", "s01"], progress=lambda *state: calls.append(state)
    )
    assert [row["name"] for row in result.images] == ["s03", "s01"]
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize("size", [(3, 5), (12, 20), (40, 31)])
def test_predictions_of_any_size_are_scored_at_the_masks_size(day_and_night, size):
    def predictor(image):
        return metrics.resize_align_corners(red(image), size)

    result = evaluate(predictor, day_and_night, ["s00"])
    image, truth, _ = day_and_night.items["s00"]
    labels = metrics.resize_align_corners(predictor(image), truth.shape) >= 0.5
    expected = metrics.scores([metrics.confusion(labels, truth)])
    assert result.overall["pooled"] == pytest.approx(expected["pooled"])


def test_threshold_is_where_cloud_begins():
    dataset = Skies({"a": sky([[0.2, 0.4, 0.6, 0.8]], [[0, 1, 1, 1]])})
    assert evaluate(red, dataset, ["a"], threshold=0.4).overall["pooled"]["accuracy"] == 1
    assert evaluate(red, dataset, ["a"], threshold=0.7).overall["pooled"]["recall"] == (
        pytest.approx(1 / 3)
    )


def test_ignored_pixels_count_nowhere():
    probabilities = [[0.1, 0.9, 0.9, 0.1]]
    plain = Skies({"a": sky(probabilities, [[0, 1, 0, 1]])})
    padded = Skies({"a": sky([[*probabilities[0], 0.9, 0.1]], [[0, 1, 0, 1, IGNORE, IGNORE]])})
    one, other = (evaluate(red, data, ["a"]) for data in (plain, padded))
    assert one.groups == other.groups and one.images == other.images


def test_images_without_a_valid_pixel_are_named_and_left_out(day_and_night):
    day_and_night.items["dark"] = sky(np.zeros((4, 4)), np.full((4, 4), IGNORE), True)
    result = evaluate(red, day_and_night, ["s00", "dark"])
    assert result.left_out == ("dark",)
    assert (result.overall["images"], result.overall["left_out"]) == (1, 1)
    assert "dark" in result.to_markdown() and "n/a" in result.to_markdown()
    with pytest.raises(DataError, match="none of the 1 images"):
        evaluate(red, day_and_night, ["dark"])


def test_clear_and_overcast_skies_have_scores():
    dataset = Skies(
        {
            "clear": sky(np.full((6, 4), 0.1), np.zeros((6, 4))),
            "overcast": sky(np.full((6, 4), 0.9), np.ones((6, 4))),
        }
    )
    result = evaluate(red, dataset, ["clear", "overcast"])
    assert result.overall["image_mean"]["miou"] == 1
    assert result.overall["cloud_cover"]["share_within_1_okta"] == 1
    assert evaluate(red, dataset, ["clear"]).overall["image_mean"]["f1"] == 1


def test_three_classes_are_scored_by_the_most_probable(tmp_path):
    truth = np.array([[0, 1, 2, 2], [0, 1, 1, IGNORE]], np.uint8)
    labels = np.array([[0, 1, 2, 1], [1, 1, 0, 2]])
    dataset = Skies({"a": (np.zeros((2, 4, 3), np.uint8), truth, None)}, num_classes=3)
    result = evaluate(lambda image: np.eye(3)[labels] * 0.5 + 0.1, dataset, ["a"])
    expected = metrics.scores([metrics.confusion(labels, truth, 3)])
    assert result.overall["image_mean"] == pytest.approx(expected["image_mean"])
    assert result.images[0]["cover_true"] == pytest.approx(5 / 7)
    assert result.images[0]["cover_pred"] == pytest.approx(5 / 7)
    assert "3 classes" in result.to_markdown()
    result.save(tmp_path)
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_probability_maps_are_not_hoarded(day_and_night):
    """The sheet repeats nine predictions at most; all else is seen once."""
    dataset = random_skies([False] * 20)
    seen = []
    result = evaluate(lambda image: seen.append(1) or red(image), dataset, list(dataset.items))
    assert len(seen) == 20 + 9
    names = [title.split(",")[0] for row in result.sheet.values() for title, *_ in row]
    assert len(set(names)) == 9
    ranked = [row["name"] for row in sorted(result.images, key=lambda row: -row["miou"])]
    assert names[:3] == ranked[:3] and names[6:] == ranked[:-4:-1]
    assert set(names[3:6]) <= set(ranked[7:13])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_sheet_of_few_images_shows_none_twice(count):
    dataset = random_skies([False] * count)
    sheet = evaluate(red, dataset, list(dataset.items)).sheet
    names = [title for row in sheet.values() for title, *_ in row]
    assert len(names) == len(set(names)) >= min(count, 3)


def test_large_photos_are_thinned_for_the_sheet():
    dataset = Skies({"a": sky(np.full((900, 1300), 0.9), np.ones((900, 1300)))})
    _, *pictures = evaluate(red, dataset, ["a"]).sheet["best"][0]
    assert all(max(picture.shape) <= 400 for picture in pictures)
    assert {picture.shape[:2] for picture in pictures} == {(225, 325)}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.full((4, 5, 1), 0.5), r"s00.*\(height, width\).*received shape \(4, 5, 1\)"),
        (np.full((4, 5, 3), 0.5), r"received shape \(4, 5, 3\)"),
        (np.float32(0.5), r"received shape \(\)"),
        (np.zeros((0, 5)), r"received shape \(0, 5\)"),
        (np.full((4, 5), np.nan), "received nan"),
        (np.array([[0.5, np.inf]]), "received 0.5 to inf"),
        (np.array([[-3.0, 4.0]]), "received -3.0 to 4.0 .*logits"),
        (np.full((4, 5), 128, np.uint8), "to 128"),
    ],
)
def test_bad_predictions_are_named_with_what_was_received(day_and_night, answer, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda image: answer, day_and_night, ["s00"])


def test_predictions_of_two_of_three_classes_are_refused():
    dataset = Skies({"a": sky(np.zeros((2, 2)), np.zeros((2, 2)))}, num_classes=3)
    for shape in ((2, 2), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"\(height, width, 3\) for 3 classes; received"):
            evaluate(lambda image, shape=shape: np.zeros(shape), dataset, ["a"])


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 50, float("nan")])
def test_threshold_outside_its_range_is_refused(day_and_night, threshold):
    with pytest.raises(ValueError, match=r"\(0, 1\); received"):
        evaluate(red, day_and_night, ["s00"], threshold=threshold)


def test_names_must_exist_and_differ(day_and_night):
    with pytest.raises(ValueError, match=r"received \[\]"):
        evaluate(red, day_and_night, [])
    with pytest.raises(ValueError, match="'s01' twice"):
        evaluate(red, day_and_night, ["s01", "s02", "s01"])
    with pytest.raises(DataError, match="nowhere"):
        evaluate(red, day_and_night, ["nowhere"])


def test_labels_out_of_range_are_refused():
    dataset = Skies({"a": sky(np.zeros((2, 2)), np.full((2, 2), 2))})
    with pytest.raises(ValueError, match="labels_true"):
        evaluate(red, dataset, ["a"])


def test_report_states_protocol_model_threshold_and_averaging(day_and_night):
    result = evaluate(
        red,
        day_and_night,
        list(day_and_night.items),
        threshold=0.4,
        protocol="date",
        model="m.keras",
    )
    text = result.to_markdown()
    assert "protocol date, model m.keras, threshold 0.4" in text
    header = "| Set | Images | Accuracy | Precision | Recall | F | MIoU |"
    assert text.count(header) == 2
    paper, pooled = text.split("## Pooled")
    assert "paper's averaging" in paper and "harmonic mean" in paper
    keys = ("accuracy", "precision", "recall", "f1", "miou")
    for part, kind in ((paper, "image_mean"), (pooled, "pooled")):
        scores = result.groups["night"][kind]
        row = " | ".join(f"{scores[key]:.3f}" for key in keys)
        assert f"| night | 3 | {row} |" in part


def test_save_writes_every_file_and_nothing_else(day_and_night, tmp_path):
    result = evaluate(red, day_and_night, list(day_and_night.items), protocol="date", seed=3)
    folder = tmp_path / "new" / "report"
    result.save(folder)
    result.save(folder)  # over an earlier one
    assert sorted(path.name for path in folder.iterdir()) == [
        "curves.png",
        "evaluation.json",
        "evaluation.md",
        "per_image.csv",
        "sheet.png",
    ]
    read = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(result.to_dict()))
    assert read["about"] == {"protocol": "date", "seed": 3}
    assert (folder / "evaluation.md").read_text(encoding="utf-8") == result.to_markdown()
    with (folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == sorted(day_and_night.items)
    assert float(rows[4]["miou"]) == result.images[4]["miou"]
    assert {row["night"] for row in rows} == {"True", "False"}
    for name in ("curves.png", "sheet.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200


def test_scoring_needs_neither_tensorflow_nor_matplotlib():
    code = (
        "import sys, ddunet_keras.evaluation; "
        "print([m for m in ('tensorflow', 'keras', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
