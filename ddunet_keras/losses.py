"""The loss of deeply supervised segmentation and the scores that follow a training.

Both take labels of any integer or float type, (batch, h, w) or (batch, h, w, 1): class indices, or
for two classes cloud fractions in [0, 1]; pixels labelled `ignore_label` count nowhere.
"""

from __future__ import annotations

import keras
from keras import ops

from ddunet_keras.files import IGNORE
from ddunet_keras.images import align_corners_matrix
from ddunet_keras.layers import PACKAGE


def _resize(maps, size):
    """Bilinear resize of (batch, h, w, c) with align_corners=True."""
    rows, columns = (
        ops.convert_to_tensor(align_corners_matrix(*sides), dtype="float32")
        for sides in zip(maps.shape[1:3], size, strict=True)
    )
    return ops.einsum("ih,bhwc,jw->bijc", rows, maps, columns)


def _float32_logarithms(logits):
    """log(1 - p) and log(p), at least -100, of a sigmoid p that was rounded to float32.

    1 + exp(-logit) is rounded to multiples of 2^-23. That is written out, as backends reach p = 1
    at different logits. Rounding has no gradient, so the exact logarithm lends its own.
    """
    exact = ops.log_sigmoid(-logits)
    sky = ops.round(ops.sigmoid(-logits) * 2.0**23) / 2.0**23
    rounded = ops.log(ops.maximum(sky, 2.0**-23))
    log_sky = ops.where(sky > 0, exact + ops.stop_gradient(rounded - exact), -100.0)
    # exp(-logit) overflows beyond 88.7, so that p is 0
    log_cloud = ops.where(logits > -88.7, ops.log_sigmoid(logits), -100.0)
    return log_sky, log_cloud


def _squeeze(labels):
    if len(labels.shape) == 4 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if len(labels.shape) != 3:
        raise ValueError(
            "Labels must be (batch, height, width) or (batch, height, width, 1). "
            f"Received shape: {tuple(labels.shape)}"
        )
    return labels


@keras.saving.register_keras_serializable(PACKAGE)
class SegmentationLoss(keras.losses.Loss):
    """Cross entropy of logits, mean over the pixels of an image that count, then over images.

    Logits smaller than the labels (the heads of deep supervision) are compared with the labels
    resized bilinearly with align_corners=True, as in the authors' code: soft targets. One channel
    of logits means binary cross entropy, more mean softmax cross entropy.

    Args:
        ignore_label: label of the pixels that count nowhere. A resized target is the mean over the
            counting pixels it is made of, weighted by their share.
        iou_weight: weight of 1 - IoU added to the cross entropy, where IoU is the soft intersection
            over union of an image (Rahman & Wang, ISVC 2016), mean over the classes. One pixel in a
            hundred is added to both, so that a class that an image lacks is no cliff.
        saturating: as the authors' code, which takes the logarithm of a float32 sigmoid and bounds
            it at -100: a pixel whose logit is wrong by 17 or more costs 100 and gives no gradient.
            The default is the exact cross entropy. Two classes only.

    Call: labels (see the module), logits (batch, h', w', 1 or n). Returns a scalar.

    Example:

    >>> loss = SegmentationLoss()
    >>> float(loss(np.array([[[1, 255]]]), np.zeros((1, 1, 2, 1), "float32")))  # ln 2
    0.6931471824645996
    """

    def __init__(
        self,
        ignore_label: int = IGNORE,
        iou_weight: float = 0.0,
        saturating: bool = False,
        name: str = "segmentation_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.ignore_label = ignore_label
        self.iou_weight = iou_weight
        self.saturating = saturating

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            shape = tuple(ops.convert_to_tensor(sample_weight).shape)
            if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
                raise ValueError(
                    "`sample_weight` must be (batch,), one weight for each image; label a pixel "
                    f"{self.ignore_label} to leave it out. Received shape: {shape}"
                )
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        labels = _squeeze(ops.convert_to_tensor(y_true))
        valid = ops.not_equal(labels, self.ignore_label)
        channels = logits.shape[-1]
        if channels == 1:
            target = ops.where(valid, ops.cast(labels, "float32"), 0.0)[..., None]
        else:  # one_hot of -1 is nothing; PyTorch refuses labels beyond the classes
            labels = ops.where(valid, ops.cast(labels, "int32"), -1)
            target = ops.one_hot(labels, channels, dtype="float32")
        valid = ops.cast(valid, "float32")[..., None]
        if labels.shape[1:] != logits.shape[1:3]:
            valid = _resize(valid, logits.shape[1:3])
            target = _resize(target, logits.shape[1:3]) / ops.maximum(valid, 1e-6)
        if channels == 1 and self.saturating:
            log_sky, log_cloud = _float32_logarithms(logits)
            entropy = -target * log_cloud - (1.0 - target) * log_sky
        elif channels == 1:
            softplus = ops.log1p(ops.exp(-ops.abs(logits)))
            entropy = ops.relu(logits) - logits * target + softplus
        else:
            entropy = -ops.sum(target * ops.log_softmax(logits), axis=-1, keepdims=True)
        count = ops.maximum(ops.sum(valid, axis=(1, 2, 3)), 1e-6)
        value = ops.sum(valid * entropy, axis=(1, 2, 3)) / count
        if not self.iou_weight:
            return value
        probability = ops.sigmoid(logits) if channels == 1 else ops.softmax(logits)
        both = ops.sum(target * probability * valid, axis=(1, 2))
        true = ops.sum(target * valid, axis=(1, 2))
        predicted = ops.sum(probability * valid, axis=(1, 2))
        count = count[:, None]
        if channels == 1:  # the sky is what is left of each
            both = ops.concatenate([both, count - true - predicted + both], axis=-1)
            true, predicted = (ops.concatenate([a, count - a], axis=-1) for a in (true, predicted))
        iou = (both + 0.01 * count) / (true + predicted - both + 0.01 * count)
        return value + self.iou_weight * (1.0 - ops.mean(iou, axis=-1))

    def get_config(self):
        return {
            **super().get_config(),
            "ignore_label": self.ignore_label,
            "iou_weight": self.iou_weight,
            "saturating": self.saturating,
        }


class _ConfusionMetric(keras.metrics.Metric):
    """Sums a confusion matrix over all pixels that count, [true, predicted].

    `sample_weight` of `update_state` is (batch,): one weight for each image.
    """

    default_name: str

    def __init__(
        self, num_classes: int = 2, ignore_label: int = IGNORE, name: str | None = None, **kwargs
    ):
        super().__init__(name=name or self.default_name, **kwargs)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.counts = self.add_variable((num_classes, num_classes), "zeros", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels = _squeeze(ops.convert_to_tensor(y_true))
        valid = ops.not_equal(labels, self.ignore_label)
        if y_pred.shape[-1] == 1:
            labels = ops.cast(labels, "float32") >= 0.5
            predicted = y_pred[..., 0] > 0
        else:
            predicted = ops.argmax(y_pred, axis=-1)
        labels = ops.where(valid, ops.cast(labels, "int32"), -1)  # one_hot of -1 is nothing
        true = ops.one_hot(labels, self.num_classes, dtype="float32")
        predicted = ops.one_hot(ops.cast(predicted, "int32"), self.num_classes, dtype="float32")
        if sample_weight is not None:
            true = true * ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1, 1, 1))
        true, predicted = (ops.reshape(a, (-1, self.num_classes)) for a in (true, predicted))
        self.counts.assign(self.counts + ops.matmul(ops.transpose(true), predicted))

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class PixelAccuracy(_ConfusionMetric):
    """Share of the counting pixels that the logits classify rightly, pooled over all images."""

    default_name = "accuracy"

    def result(self):
        return ops.trace(self.counts) / ops.maximum(ops.sum(self.counts), 1e-12)


@keras.saving.register_keras_serializable(PACKAGE)
class MeanIoU(_ConfusionMetric):
    """Mean over the classes of intersection over union, pooled over all images, from logits."""

    default_name = "miou"

    def result(self):
        hits = ops.diagonal(self.counts)
        union = ops.sum(self.counts, axis=0) + ops.sum(self.counts, axis=1) - hits
        seen = ops.cast(union > 0, "float32")
        iou = hits / ops.maximum(union, 1e-12)
        return ops.sum(iou * seen) / ops.maximum(ops.sum(seen), 1.0)
