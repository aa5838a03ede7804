"""The loss and the metrics against NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from ddunet_keras.losses import MeanIoU, PixelAccuracy, SegmentationLoss

IGNORE = 255


def sigmoid(x):
    return np.where(x >= 0, 1, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def resize(maps, size):
    """(h, w) with align_corners=True, by `numpy.interp`."""
    for axis in (0, 1):
        old, new = maps.shape[axis], size[axis]
        position = np.linspace(0, old - 1, new)
        maps = np.apply_along_axis(
            lambda v, p=position: np.interp(p, np.arange(len(v)), v), axis, maps
        )
    return maps


def image_loss(labels, logits, iou_weight=0.0):
    """One image: labels (h, w), logits (h', w', 1 or n), in float64, pixel by pixel."""
    labels, logits = np.asarray(labels, float), np.asarray(logits, float)
    classes = logits.shape[-1]
    if classes == 1:
        probabilities = np.concatenate([1 - sigmoid(logits), sigmoid(logits)], axis=-1)
        targets = np.stack([1 - labels, labels], axis=-1)
    else:
        probabilities = softmax(logits)
        targets = np.stack([labels == k for k in range(classes)], axis=-1).astype(float)
    valid = (labels != IGNORE).astype(float)
    targets[valid == 0] = 0
    size = logits.shape[:2]
    if size != labels.shape:
        share = resize(valid, size)
        parts = [resize(targets[..., k], size) for k in range(targets.shape[-1])]
        targets = np.stack(parts, axis=-1) / np.where(share > 0, share, 1)[..., None]
        valid = share
    total = weight = 0.0
    for row in range(size[0]):
        for column in range(size[1]):
            cross = -(targets[row, column] * np.log(probabilities[row, column])).sum()
            total += valid[row, column] * cross
            weight += valid[row, column]
    if weight == 0:
        return 0.0
    loss = total / weight
    if iou_weight:
        scores = []
        for k in range(targets.shape[-1]):
            both = (valid * targets[..., k] * probabilities[..., k]).sum()
            either = (valid * (targets[..., k] + probabilities[..., k])).sum() - both
            scores.append((both + 0.01 * weight) / (either + 0.01 * weight))
        loss += iou_weight * (1 - np.mean(scores))
    return loss


def draw(batch=3, height=8, width=12, channels=1, scale=2.0):
    logits = np.random.default_rng(1).normal(0, scale, (batch, height, width, channels))
    return logits.astype("float32")


def draw_labels(batch=3, height=8, width=12, classes=2, ignored=0.3):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, classes, (batch, height, width)).astype("uint8")
    labels[rng.random(labels.shape) < ignored] = IGNORE
    return labels


def gradient(loss, labels, logits):
    """Of the loss with respect to the logits: what one step of SGD with a rate of 1 subtracts."""

    class Logits(keras.layers.Layer):
        def build(self, input_shape):
            self.logits = self.add_weight(shape=logits.shape[1:], initializer="zeros")

        def call(self, inputs):
            return inputs + self.logits

    layer = Logits()
    model = keras.Sequential([keras.Input(logits.shape[1:]), layer])
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    model.train_on_batch(logits, labels)
    return -ops.convert_to_numpy(layer.logits)


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("iou_weight", [0.0, 0.7])
@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3), (5, 12), (1, 1)], ids=str)
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("channels", [1, 3])
def test_cross_entropy(channels, ignored, size, iou_weight):
    logits = draw(3, *size, channels)
    labels = draw_labels(classes=max(2, channels), ignored=ignored)
    expected = [image_loss(y, x, iou_weight) for y, x in zip(labels, logits, strict=True)]
    loss = SegmentationLoss(iou_weight=iou_weight, reduction=None)
    np.testing.assert_allclose(ops.convert_to_numpy(loss(labels, logits)), expected, rtol=1e-5)
    mean = SegmentationLoss(iou_weight=iou_weight)(labels, logits)
    assert float(mean) == pytest.approx(np.mean(expected), rel=1e-5)


def test_labels_between_sky_and_cloud():
    labels = np.random.default_rng(3).random((2, 8, 12)).astype("float32")
    labels[0, 2:5, :7] = IGNORE
    for size in ((8, 12), (4, 6)):
        logits = draw(2, *size)
        expected = np.mean([image_loss(y, x, 0.5) for y, x in zip(labels, logits, strict=True)])
        value = float(SegmentationLoss(iou_weight=0.5)(labels, logits))
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("rank", [3, 4])
def test_labels_of_any_type_and_rank(dtype, rank):
    logits, labels = draw(), draw_labels()
    expected = float(SegmentationLoss()(labels, logits))
    labels = labels.astype(dtype)
    value = SegmentationLoss()(labels[..., None] if rank == 4 else labels, logits)
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 12), (4, 6)], ids=str)
@pytest.mark.parametrize("options", [{}, {"iou_weight": 0.5}, {"saturating": True}], ids=str)
def test_an_image_without_a_counting_pixel_is_worth_nothing(channels, size, options):
    logits, labels = draw(2, *size, channels), draw_labels(2, classes=max(2, channels))
    labels[1] = IGNORE
    values = ops.convert_to_numpy(SegmentationLoss(reduction=None, **options)(labels, logits))
    assert values[0] > 0.1 and values[1] == 0
    slope = gradient(SegmentationLoss(**options), labels[1:], logits[1:])
    assert np.array_equal(slope, np.zeros_like(slope))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 12), (4, 6)], ids=str)
def test_ignored_pixels_count_nowhere(channels, size):
    """The left half, with margin for the resize, is ignored: its logits change nothing."""
    logits, labels = draw(2, *size, channels), draw_labels(2, classes=max(2, channels), ignored=0)
    labels[:, :, :8] = IGNORE
    loss = SegmentationLoss(iou_weight=0.5)
    value = float(loss(labels, logits))
    logits[:, :, : size[1] // 2] = 50
    assert float(loss(labels, logits)) == pytest.approx(value, rel=1e-6)
    slope = gradient(loss, labels, logits)
    assert not slope[:, : size[1] // 2].any() and slope[:, -1].any()


def test_another_label_can_be_ignored():
    logits, labels = draw(), draw_labels()
    expected = float(SegmentationLoss()(labels, logits))
    labels = np.where(labels == IGNORE, -1, labels.astype("int32"))
    assert float(SegmentationLoss(ignore_label=-1)(labels, logits)) == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("iou_weight", [0.0, 0.5])
def test_the_gradient_is_that_of_numpy(channels, iou_weight):
    logits, labels = draw(1, 4, 5, channels), draw_labels(1, 4, 5, max(2, channels))
    slope = gradient(SegmentationLoss(iou_weight=iou_weight), labels, logits)
    for index in np.ndindex(logits.shape[1:]):
        values = []
        for step in (1e-5, -1e-5):
            moved = logits[0].astype(float)
            moved[index] += step
            values.append(image_loss(labels[0], moved, iou_weight))
        assert slope[index] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"iou_weight": 1.0}, {"saturating": True}], ids=str)
@pytest.mark.parametrize("extreme", [200.0, 1e4])
def test_extreme_logits_have_a_finite_loss_and_gradient(options, extreme):
    logits = np.array([extreme, -extreme] * 2, "float32").reshape(1, 2, 2, 1)
    labels = np.array([0, 0, 1, 1], "uint8").reshape(1, 2, 2)
    loss = SegmentationLoss(**options)
    assert np.isfinite(float(loss(labels, logits)))
    slope = gradient(loss, labels, logits)[..., 0]
    assert np.isfinite(slope).all()
    if not options.get("saturating"):
        # wrong pixels pull with full strength, right ones rest
        assert slope[0, 0] > 0.2 and slope[1, 1] < -0.2
        assert abs(slope[0, 1]) < 1e-6 and abs(slope[1, 0]) < 1e-6
    three = SegmentationLoss(iou_weight=options.get("iou_weight", 0))
    logits = np.concatenate([logits, -logits, np.zeros_like(logits)], axis=-1)
    assert np.isfinite(float(three(labels, logits)))
    assert np.isfinite(gradient(three, labels, logits)).all()


def test_the_exact_loss_grows_with_the_logit():
    labels = np.zeros((1, 1, 1), "uint8")
    for logit in (20, 200, 5000):
        value = SegmentationLoss()(labels, np.full((1, 1, 1, 1), logit, "float32"))
        assert float(value) == pytest.approx(logit)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = draw(1, 64, 64).astype("float16"), draw_labels(1, 64, 64)
    value = SegmentationLoss()(labels, logits)
    assert float(value) == pytest.approx(image_loss(labels[0], logits[0]), rel=1e-5)


# --- as the authors' code ------------------------------------------------------------------------


def float32_entropy(labels, logits):
    """The authors' formula, in float32 as they run it: the sigmoid is rounded before its log."""
    one = np.float32(1)
    with np.errstate(over="ignore", divide="ignore"):
        p = one / (one + np.exp(-logits))
        log_cloud = np.maximum(np.log(p), np.float32(-100))
        log_sky = np.maximum(np.log(one - p), np.float32(-100))
    return -(labels * log_cloud + (one - labels) * log_sky)


def test_the_saturating_loss_is_the_float32_formula():
    """Pixel by pixel, from logits of -120 to 120; where p is near 1 it is a multiple of 2^-24."""
    logits = np.concatenate([np.linspace(-120, 120, 481), np.linspace(-17, 17, 1001)])
    logits = logits.astype("float32")
    loss = SegmentationLoss(saturating=True, reduction=None)
    for label in (0, 1):
        labels = np.full((len(logits), 1, 1), label, "uint8")
        values = ops.convert_to_numpy(loss(labels, logits.reshape(-1, 1, 1, 1)))
        expected = float32_entropy(np.float32(label), logits)
        # from 12 on a rounding to the other neighbour shows
        clear = (np.abs(logits) < 9) | (np.abs(logits) > 18)
        np.testing.assert_allclose(values[clear], expected[clear], rtol=2e-4, atol=1e-6)
        steep = ~clear & (np.abs(logits) < 15)
        np.testing.assert_allclose(values[steep], expected[steep], rtol=0.05, atol=1e-6)
    assert values[logits > 18].max() < 1e-6 and values[logits < -89].min() == 100


def test_the_saturating_loss_bounds_a_wrong_pixel_at_100():
    logits = np.array([18, 40, 300, -300], "float32").reshape(4, 1, 1, 1)
    labels = np.array([0, 0, 0, 1], "uint8").reshape(4, 1, 1)
    loss = SegmentationLoss(saturating=True, reduction=None)
    assert ops.convert_to_numpy(loss(labels, logits)).tolist() == [100, 100, 100, 100]
    assert not gradient(SegmentationLoss(saturating=True), labels[:1], logits[:1]).any()


def test_the_saturating_gradient_is_the_exact_one_where_it_is_not_saturated():
    logits, labels = draw(1, scale=3.0), draw_labels(1)
    exact = gradient(SegmentationLoss(), labels, logits)
    saturating = gradient(SegmentationLoss(saturating=True), labels, logits)
    assert np.abs(exact).max() > 1e-3
    np.testing.assert_allclose(saturating, exact, rtol=1e-4, atol=1e-8)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 12), (2, 8, 12, 2), (2, 8, 12, 1, 1), (2,)])
@pytest.mark.parametrize("make", [SegmentationLoss, PixelAccuracy, MeanIoU])
def test_labels_of_another_rank_are_refused(make, shape):
    scorer = make()
    with pytest.raises(ValueError, match=r"Labels must be \(batch, height, width\)") as error:
        scorer(np.zeros(shape, "uint8"), draw(2))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    "item",
    [
        SegmentationLoss(ignore_label=7, iou_weight=0.5, saturating=True, name="x"),
        PixelAccuracy(3, ignore_label=9),
        MeanIoU(4, name="m"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_serialization_needs_no_custom_objects(item):
    config = keras.saving.serialize_keras_object(item)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(item) and copy.get_config() == item.get_config()


# --- the metrics ---------------------------------------------------------------------------------


def confusion(labels, logits, classes):
    """[true, predicted], counted pixel by pixel."""
    table = np.zeros((classes, classes))
    predicted = logits.argmax(axis=-1) if classes > 2 else logits[..., 0] > 0
    for true, guess in zip(labels.ravel(), predicted.ravel(), strict=True):
        if true != IGNORE:
            table[true, int(guess)] += 1
    return table


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_pool_the_pixels_of_all_updates(classes, rank):
    rng = np.random.default_rng(5)
    accuracy, miou = PixelAccuracy(classes), MeanIoU(classes)
    table = np.zeros((classes, classes))
    for batch in (1, 4, 2):
        labels = rng.integers(0, classes, (batch, 8, 12)).astype("uint8")
        labels[rng.random(labels.shape) < 0.3] = IGNORE
        logits = rng.normal(size=(batch, 8, 12, 1 if classes == 2 else classes)).astype("float32")
        logits[..., 0] += 0.5
        table += confusion(labels, logits, classes)
        given = labels[..., None] if rank == 4 else labels
        accuracy.update_state(given, logits)
        miou.update_state(given, logits)
        union = table.sum(axis=0) + table.sum(axis=1) - np.diag(table)
        assert float(accuracy.result()) == pytest.approx(np.trace(table) / table.sum(), abs=1e-6)
        assert float(miou.result()) == pytest.approx(np.mean(np.diag(table) / union), abs=1e-6)
    accuracy.reset_state()
    assert float(accuracy.result()) == 0


def test_a_class_that_nobody_saw_is_no_part_of_the_mean():
    labels, logits = np.zeros((1, 4, 4), "uint8"), np.full((1, 4, 4, 1), -1, "float32")
    assert float(MeanIoU()(labels, logits)) == pytest.approx(1)
    logits[0, 0] = 1  # four false clouds: the class is seen, with no hit
    assert float(MeanIoU()(labels, logits)) == pytest.approx((12 / 16 + 0) / 2)


def test_metrics_of_ignored_pixels_alone():
    labels = np.full((2, 4, 4), IGNORE, "uint8")
    assert float(PixelAccuracy()(labels, draw(2, 4, 4))) == 0
    assert float(MeanIoU()(labels, draw(2, 4, 4))) == 0


def test_half_a_cloud_counts_as_cloud():
    labels = np.array([0.49, 0.5, 0.0, 1.0], "float32").reshape(1, 2, 2)
    logits = np.array([-1, 1, -1, 1], "float32").reshape(1, 2, 2, 1)
    assert float(PixelAccuracy()(labels, logits)) == 1
