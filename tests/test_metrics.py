"""Scores against the authors' numbers, plain loops and cases worked out by hand."""

import numpy as np
import pytest

from ddunet_keras import metrics
from ddunet_keras.files import IGNORE


def counts_of(*pairs, num_classes=2):
    """Confusion counts of (prediction, truth) lists of labels."""
    return np.stack([metrics.confusion(np.array(p), np.array(t), num_classes) for p, t in pairs])


def resize_by_loops(array, height, width):
    rows, columns = array.shape
    result = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = i * (rows - 1) / (height - 1) if height > 1 else 0.0
            x = j * (columns - 1) / (width - 1) if width > 1 else 0.0
            total = 0.0
            for r in range(rows):
                for c in range(columns):
                    total += array[r, c] * max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c))
            result[i, j] = total
    return result


@pytest.mark.shared
def test_reproduces_the_authors_metric_code(shared):
    with np.load(shared / "reference" / "metrics.npz") as file:
        reference = dict(file)
    counts = []
    for logits, mask in zip(reference["logits"], reference["masks"], strict=True):
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float32)))
        probabilities = metrics.resize_align_corners(probabilities, mask.shape)
        counts.append(metrics.confusion(probabilities >= 0.5, mask))
    found = metrics.scores(counts)["image_mean"]
    found["f-measure"] = found.pop("f1")
    for name, value in found.items():
        assert value == pytest.approx(float(reference[f"expected/{name}"]), abs=1e-6), name


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (4, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(9, 4), (1, 1), (3, 1), (2, 8)])
def test_resize_equals_the_definition(shape, size):
    array = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(
        metrics.resize_align_corners(array, size), resize_by_loops(array, *size), atol=1e-12
    )


def test_resize_keeps_corners_channels_and_float32():
    array = np.random.default_rng(1).random((4, 6, 3)).astype(np.float32)
    result = metrics.resize_align_corners(array, (11, 5))
    assert result.shape == (11, 5, 3) and result.dtype == np.float32
    np.testing.assert_array_equal(
        result[[0, 0, -1, -1], [0, -1, 0, -1]], array[[0, 0, -1, -1], [0, -1, 0, -1]]
    )
    for channel in range(3):
        np.testing.assert_allclose(
            result[..., channel], resize_by_loops(array[..., channel], 11, 5), atol=1e-6
        )
    np.testing.assert_array_equal(metrics.resize_align_corners(array, (4, 6)), array)


@pytest.mark.parametrize(
    ("shape", "size"), [((4,), (2, 2)), ((0, 3), (2, 2)), ((3, 3), (0, 2)), ((3, 3), (2, 2, 2))]
)
def test_resize_refuses_what_is_no_map(shape, size):
    with pytest.raises(ValueError, match="received shape"):
        metrics.resize_align_corners(np.zeros(shape), size)


def test_confusion_has_truth_in_rows_and_counts_ignored_pixels_nowhere():
    pred = np.array([[0, 1, 1], [2, 0, 2]], np.uint8)
    true = np.array([[0, 0, 1], [1, IGNORE, 2]], np.uint8)
    counts = metrics.confusion(pred, true, 3)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert counts.dtype == np.int64
    # what is predicted where the truth is unknown makes no difference, not even a wild value
    pred[1, 1] = 77
    np.testing.assert_array_equal(metrics.confusion(pred, true, 3), counts)


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        ([0, 1], [0, 1, 1], r"received \(2,\) and \(3,\)"),
        ([0, 2], [0, 1], "labels_pred .* from 0 to 2"),
        ([0, IGNORE], [0, 1], "labels_pred .* to 255"),
        ([0, 1], [0, 128], "labels_true .* to 128"),
        ([0, 1], [-1, 0], "labels_true .* from -1"),
    ],
)
def test_confusion_names_bad_labels(pred, true, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion(np.array(pred), np.array(true))


def test_both_averagings_by_hand():
    # image 1: tp 3, fp 1, fn 0, tn 0; image 2: tp 1, fp 0, fn 3, tn 12
    first = ([1, 1, 1, 1], [1, 1, 1, 0])
    second = ([1] + [0] * 15, [1] * 4 + [0] * 12)
    found = metrics.scores(counts_of(first, second))
    assert (found["images"], found["left_out"]) == (2, 0)
    mean, pooled = found["image_mean"], found["pooled"]
    assert mean["accuracy"] == pytest.approx((3 / 4 + 13 / 16) / 2)
    assert mean["precision"] == pytest.approx((3 / 4 + 1) / 2)
    assert mean["recall"] == pytest.approx((1 + 1 / 4) / 2)
    assert mean["f1"] == pytest.approx(2 * 0.875 * 0.625 / (0.875 + 0.625))
    assert mean["miou"] == pytest.approx(((3 / 4 + 0) / 2 + (1 / 4 + 12 / 15) / 2) / 2)
    assert mean["error_rate"] == pytest.approx(1 - mean["accuracy"])
    assert pooled["accuracy"] == pytest.approx(16 / 20)
    assert pooled["precision"] == pytest.approx(4 / 5)
    assert pooled["recall"] == pytest.approx(4 / 7)
    assert pooled["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 3))
    assert pooled["miou"] == pytest.approx((4 / 8 + 12 / 16) / 2)


@pytest.mark.parametrize(
    ("pred", "true", "accuracy", "precision", "recall", "f1", "miou"),
    [
        ([0, 0], [0, 0], 1, 1, 1, 1, 1),  # clear sky, seen as such
        ([1, 1], [1, 1], 1, 1, 1, 1, 1),  # overcast, seen as such
        ([1, 0], [0, 0], 0.5, 0, 0, 0, 0.25),  # cloud invented
        ([0, 0], [1, 1], 0, 0, 0, 0, 0),  # all missed
        ([1, 0], [1, 1], 0.5, 1, 0.5, 2 / 3, 0.25),  # sky invented
        ([0, 1], [1, 0], 0, 0, 0, 0, 0),  # everything the wrong way round
    ],
)
def test_empty_and_full_masks_have_defined_scores(
    pred, true, accuracy, precision, recall, f1, miou
):
    found = metrics.scores(counts_of((pred, true)))
    expected = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    expected |= {"miou": miou, "error_rate": 1 - accuracy}
    assert found["image_mean"] == pytest.approx(expected)
    assert found["pooled"] == pytest.approx(expected)


def test_three_classes_average_precision_and_recall_over_the_clouds():
    pred = [0, 0, 1, 1, 2, 2, 2, 0]
    true = [0, 0, 1, 2, 2, 2, 1, 1]
    found = metrics.scores(counts_of((pred, true), num_classes=3))["image_mean"]
    assert found["precision"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["recall"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 4 + 2 / 4) / 3)
    assert found["accuracy"] == pytest.approx(5 / 8)


def test_images_without_a_valid_pixel_are_left_out_and_counted():
    good, blind = ([1, 0, 1, 1], [1, 0, 0, 1]), ([1, 0, 1, 1], [IGNORE] * 4)
    alone, both = metrics.scores(counts_of(good)), metrics.scores(counts_of(good, blind))
    assert (both["images"], both["left_out"]) == (1, 1)
    assert both["image_mean"] == alone["image_mean"] and both["pooled"] == alone["pooled"]

    none = metrics.scores(counts_of(blind))
    assert (none["images"], none["left_out"]) == (0, 1)
    assert all(np.isnan(value) for value in none["image_mean"].values())


@pytest.mark.parametrize("shape", [(2, 2), (3, 2, 3), (3, 1, 1), (0,)])
def test_scores_name_a_bad_shape(shape):
    with pytest.raises(ValueError, match="received"):
        metrics.scores(np.zeros(shape, int))


def test_cloud_cover_errors_by_hand():
    found = metrics.cloud_cover_errors([0.5, 0.0, 1.0, 0.9], [0.25, 0.001, 1.0, 0.5])
    assert found["bias"] == pytest.approx((25 - 0.1 + 0 + 40) / 4)
    assert found["mean_absolute_error"] == pytest.approx((25 + 0.1 + 0 + 40) / 4)
    # oktas 4-2, 0-1 (a trace of cloud is 1), 8-8, 7-4
    assert found["share_within_1_okta"] == 0.5


def test_okta_keeps_its_extremes_for_skies_without_exception():
    # 0.2 % and 13 % of cloud are both at most 1; 0.999 is 7, so 6 is within one and 5 is not
    near = metrics.cloud_cover_errors([0.002, 0.999], [0.13, 0.75])
    far = metrics.cloud_cover_errors([0.999], [0.62])
    assert (near["share_within_1_okta"], far["share_within_1_okta"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("pred", "true"),
    [([0.5], [0.5, 0.5]), ([1.2], [0.5]), ([np.nan], [0.5]), ([0.5], [-0.1]), (0.5, 0.5)],
)
def test_cloud_cover_errors_refuse_what_is_no_fraction(pred, true):
    with pytest.raises(ValueError, match="received"):
        metrics.cloud_cover_errors(pred, true)


def test_curves_equal_pairwise_ranking_and_steps():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 400)
    truth[:30] = IGNORE
    # few distinct values, so that there are ties; centred in bins, so that binning is exact
    places = np.clip(rng.integers(0, 14, 400) + 4 * (truth == 1), 0, 15)
    probabilities = (places * 50 + 100.5) / 1000
    # counts add over images
    counts = metrics.curve_counts(probabilities[:99], truth[:99])
    counts = counts + metrics.curve_counts(probabilities[99:], truth[99:])
    assert counts.dtype == np.int64 and counts.sum() == 370
    found = metrics.curves(counts)

    cloud, sky = places[truth == 1], places[truth == 0]
    pairs = (cloud[:, None] > sky).mean() + 0.5 * (cloud[:, None] == sky).mean()
    assert found["roc_auc"] == pytest.approx(pairs)
    area, before = 0.0, 0.0
    for level in sorted(set(places), reverse=True):
        recall = (cloud >= level).mean()
        precision = (cloud >= level).sum() / ((cloud >= level).sum() + (sky >= level).sum())
        area, before = area + (recall - before) * precision, recall
    assert found["average_precision"] == pytest.approx(area)
    assert found["recall"][-1] == 1 and found["false_positive_rate"][-1] == 1
    # the curve at a threshold is what the threshold gives
    at = int(np.flatnonzero(found["thresholds"] == 0.5)[0])
    assert found["recall"][at] == pytest.approx((probabilities[truth == 1] >= 0.5).mean())


def test_curves_of_perfect_random_and_one_sided_predictions():
    truth = np.arange(2000) % 2
    perfect = metrics.curves(metrics.curve_counts(truth.astype(float), truth))
    assert perfect["roc_auc"] == 1 and perfect["average_precision"] == 1
    constant = metrics.curves(metrics.curve_counts(np.full(2000, 0.3), truth))
    assert constant["roc_auc"] == 0.5 and constant["average_precision"] == 0.5
    overcast = metrics.curves(metrics.curve_counts(np.full(9, 0.3), np.ones(9, int)))
    assert np.isnan(overcast["roc_auc"]) and overcast["average_precision"] == 1
    clear = metrics.curves(metrics.curve_counts(np.full(9, 0.3), np.zeros(9, int)))
    assert np.isnan(clear["roc_auc"]) and np.isnan(clear["average_precision"])
