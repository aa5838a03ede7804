"""The layers against Keras's own layer test and against NumPy, written from the equations."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.testing import TestCase
from marks import slow_case

from ddunet_keras.layers import (
    DMSC,
    DWBG,
    ConvBNReLU,
    FusedBatchNormalization,
    InvertedResidual,
    UpConvBNReLU,
)

# --- NumPy, in float64 ---------------------------------------------------------------------------


def convolve(x, kernel, strides=1):
    """(n, h, w, c) with (k, k, c, out), zeros of k // 2 on every side as in PyTorch and Paddle."""
    size = len(kernel)
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    height, width = ((s - size) // strides + 1 for s in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            top, left = row * strides, column * strides
            window = x[:, top : top + size, left : left + size]
            out[:, row, column] = np.einsum("nijc,ijco->no", window, kernel)
    return out


def convolve_depthwise(x, kernel, dilation=1):
    """(n, h, w, c) with (3, 3, c, 1): pixel by pixel, what lies outside the map is zero."""
    height, width = x.shape[1:3]
    out = np.zeros(x.shape)
    for row in range(height):
        for column in range(width):
            for i in range(3):
                for j in range(3):
                    y, z = row + (i - 1) * dilation, column + (j - 1) * dilation
                    if 0 <= y < height and 0 <= z < width:
                        out[:, row, column] += x[:, y, z] * kernel[i, j, :, 0]
    return out


def convolve_each(x, kernels, biases):
    """Each image of (n, h, w, c) with its own (out, c, 3, 3) kernel and (out,) bias."""
    images = [
        convolve(image[None], kernel.transpose(2, 3, 1, 0)) + bias
        for image, kernel, bias in zip(x, kernels, biases, strict=True)
    ]
    return np.concatenate(images)


def upsample(x, upsampling):
    """Doubles height and width with `numpy.interp`, which repeats what lies beyond the ends."""
    for axis in (1, 2):
        size = x.shape[axis]
        if upsampling == "align_corners":
            position = np.linspace(0, size - 1, 2 * size)
        else:
            position = (np.arange(2 * size) + 0.5) / 2 - 0.5
        x = np.apply_along_axis(lambda v, p=position: np.interp(p, np.arange(len(v)), v), axis, x)
    return x


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Reference:
    """A layer's weights by name, and what they do. Training mode updates the moving averages."""

    def __init__(self, layer, training=False):
        self.weights = weights_of(layer)
        self.training = training

    def __getitem__(self, name):
        return self.weights[name]

    def norm(self, x, name):
        mean, variance = self[f"{name}/moving_mean"], self[f"{name}/moving_variance"]
        if self.training:
            past = mean, variance
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            for key, old, new in zip(("mean", "variance"), past, (mean, variance), strict=True):
                self.weights[f"{name}/moving_{key}"] = 0.9 * old + 0.1 * new
        normalized = (x - mean) / np.sqrt(variance + 1e-5)
        return normalized * self[f"{name}/gamma"] + self[f"{name}/beta"]

    def dense(self, x, name):
        return x @ self[f"{name}/kernel"] + self[f"{name}/bias"]

    def perceptron(self, x, name):
        return self.dense(relu(self.dense(x, f"{name}_1")), f"{name}_2")

    def inverted_residual(self, x, prefix=""):
        y = convolve_depthwise(x, self[f"{prefix}depthwise/kernel"])
        y = np.clip(self.norm(y, f"{prefix}depthwise_norm"), 0, 6)
        y = convolve(y, self[f"{prefix}pointwise/kernel"])
        y = self.norm(y, f"{prefix}pointwise_norm")
        return x + y if x.shape == y.shape else y

    def dmsc(self, x, dilation_rates):
        x = relu(self.norm(convolve(x, self["in_conv/conv/kernel"]), "in_conv/norm"))
        gate = softmax(self.perceptron(x.mean(axis=(1, 2)), "gate"))
        branches = [
            relu(
                self.norm(
                    convolve_depthwise(x, self[f"branch_{i}/kernel"], dilation), f"branch_norm_{i}"
                )
            )
            for i, dilation in enumerate(dilation_rates)
        ]
        mixed = np.einsum("nk,knhwc->nhwc", gate, np.stack(branches))
        mixed = self.inverted_residual(mixed, "residual/")
        mixed = convolve(mixed, self["out_conv/kernel"]) + self["out_conv/bias"]
        return relu(x + self.norm(mixed, "out_norm"))

    def dwbg(self, decoder, encoder, filters):
        averages = np.concatenate([m.mean(axis=(1, 2)) for m in (decoder, encoder)], axis=-1)
        kernels = self.perceptron(averages, "weight")
        kernels = kernels.reshape(-1, filters, decoder.shape[-1], 3, 3)
        return convolve_each(decoder, kernels, self.perceptron(averages, "bias"))


def weights_of(layer):
    """{path below the layer: float64 array}"""
    return {
        v.path.removeprefix(f"{layer.name}/"): ops.convert_to_numpy(v).astype("float64")
        for v in layer.variables
    }


def randomized(layer, *shapes):
    """The built layer with every weight, moving averages too, drawn at random."""
    layer.build(shapes[0] if len(shapes) == 1 else list(shapes))
    rng = np.random.default_rng(1)
    for variable in layer.variables:
        value = rng.normal(0.1, 0.5, variable.shape)
        positive = variable.path.endswith(("variance", "gamma"))
        variable.assign(np.abs(value) + 0.3 if positive else value)
    return layer


def draw(*shape):
    return np.random.default_rng(2).normal(0.3, 1, shape).astype("float32")


def assert_close(actual, expected, tolerance=1e-5):
    """To `tolerance` of the expected values' range."""
    actual = ops.convert_to_numpy(actual)
    assert actual.shape == expected.shape
    scale = max(np.ptp(expected), np.abs(expected).max(), 1e-3)
    assert np.abs(actual - expected).max() <= tolerance * scale


def assert_reference(layer, inputs, function, training):
    reference = Reference(layer, training)
    expected = function(reference)
    assert_close(layer(inputs, **({"training": True} if training else {})), expected)
    for name, value in weights_of(layer).items():
        assert_close(value, reference[name])
    return expected


modes = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])

# --- Keras's own layer test ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")  # of Keras's own test
class TestKerasLayerTest(TestCase):
    """Build, symbolic and eager call, serialization, one compiled step, mixed precision."""

    def run_test(self, layer_cls, init_kwargs, shapes, expected, trainable, moving, **kwargs):
        self.run_layer_test(
            layer_cls,
            init_kwargs=init_kwargs,
            input_shape=shapes,
            expected_output_shape=expected,
            expected_output_dtype="float32",
            expected_num_trainable_weights=trainable,
            expected_num_non_trainable_weights=moving,
            expected_num_losses=0,
            **kwargs,
        )

    def test_fused_batch_normalization(self):
        self.run_test(FusedBatchNormalization, {}, (2, 4, 6, 3), (2, 4, 6, 3), 2, 2)

    def test_conv_bn_relu(self):
        init = {"filters": 5, "strides": 2}
        self.run_test(ConvBNReLU, init, (2, 5, 8, 3), (2, 3, 4, 5), 3, 2)

    def test_inverted_residual(self):
        self.run_test(InvertedResidual, {"filters": 3}, (2, 4, 6, 3), (2, 4, 6, 3), 6, 4)

    def test_dmsc(self):
        init = {"filters": 2, "dilation_rates": (1, 3)}
        # a compiled step costs seconds; tests/test_model.py trains the layer
        self.run_test(DMSC, init, (2, 4, 6, 3), (2, 4, 6, 2), 23, 12, run_training_check=False)

    def test_dwbg(self):
        init = {"filters": 3, "hidden_ratio": 2}
        self.run_test(DWBG, init, ((2, 4, 6, 3), (2, 4, 6, 2)), (2, 4, 6, 3), 8, 0)

    def test_up_conv_bn_relu(self):
        for upsampling in ("bilinear", "align_corners"):
            init = {"filters": 2, "upsampling": upsampling}
            self.run_test(UpConvBNReLU, init, (2, 3, 5, 4), (2, 6, 10, 2), 3, 2)


# --- the equations -------------------------------------------------------------------------------


@modes
def test_fused_batch_normalization(training):
    x = draw(3, 4, 7, 5)
    layer = randomized(FusedBatchNormalization(name="bn"), x.shape)
    reference = Reference(layer, training)
    reference.weights = {f"bn/{k}": v for k, v in reference.weights.items()}
    assert_close(layer(x, training=training), reference.norm(x, "bn"))
    for name, value in weights_of(layer).items():
        assert_close(value, reference[f"bn/{name}"])


def test_the_moving_variance_is_the_biased_one():
    layer = FusedBatchNormalization(momentum=0.0)
    x = np.array([1.0, 3.0], "float32").reshape(1, 1, 2, 1)
    layer(x, training=True)
    assert ops.convert_to_numpy(layer.moving_variance) == pytest.approx([1.0], abs=1e-5)


@keras.saving.register_keras_serializable("tests")
class Offset(keras.layers.Layer):
    """Adds a weight as large as the input, so that one step shows the input's gradient."""

    def build(self, input_shape):
        self.offset = self.add_weight(shape=input_shape[1:], initializer="zeros")

    def call(self, inputs):
        return inputs + self.offset


def test_fused_batch_normalization_trains_as_keras_does():
    """One step of SGD with a rate of 1 subtracts the gradients: outputs, gradients and averages."""
    x, y = draw(4, 3, 5, 2), draw(4, 3, 5, 2)[::-1].copy()
    after = []
    for layer in (
        FusedBatchNormalization(),
        keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
    ):
        randomized(layer, x.shape)
        model = keras.Sequential([keras.Input(x.shape[1:]), Offset(), layer])
        model.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
        before = [ops.convert_to_numpy(v).copy() for v in model.variables]
        loss = model.train_on_batch(x, y)
        after.append([loss, *(ops.convert_to_numpy(v) for v in model.variables)])
        # beware of a test that compares what stood still
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(after[-1][1:], before, strict=True))
    for fused, composed in zip(*after, strict=True):
        assert_close(np.asarray(fused), np.asarray(composed), 1e-6)


def test_frozen_batch_normalization_uses_the_moving_averages():
    x = draw(2, 3, 4, 2)
    layer = randomized(FusedBatchNormalization(), x.shape)
    expected = ops.convert_to_numpy(layer(x))
    layer.trainable = False
    before = weights_of(layer)
    assert_close(layer(x, training=True), expected)
    assert all(np.array_equal(before[k], v) for k, v in weights_of(layer).items())


@pytest.mark.parametrize("shape", [(6, 4), (2, 5, 4), (2, 3, 3, 5, 4)])
def test_batch_normalization_of_other_ranks_is_keras_own(shape):
    x = draw(*shape)
    expected = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    layer = FusedBatchNormalization()
    assert_close(layer(x, training=True), ops.convert_to_numpy(expected(x, training=True)))


def test_half_precision_batch_normalization_keeps_float32_averages():
    x = draw(2, 4, 6, 3)
    layer = randomized(FusedBatchNormalization(dtype="mixed_float16", name="bn"), x.shape)
    reference = Reference(layer, training=True)
    reference.weights = {f"bn/{k}": v for k, v in reference.weights.items()}
    output = layer(x, training=True)
    assert keras.backend.standardize_dtype(output.dtype) == "float16"
    assert_close(output, reference.norm(x, "bn"), 3e-3)
    for name, value in weights_of(layer).items():
        assert_close(value, reference[f"bn/{name}"], 1e-3)
    assert {keras.backend.standardize_dtype(v.dtype) for v in layer.variables} == {"float32"}


@modes
@pytest.mark.parametrize(
    "size, kernel_size, strides",
    [
        ((5, 8), 3, 1),
        ((5, 8), 1, 1),
        ((6, 8), 3, 2),
        ((5, 7), 3, 2),
        ((1, 2), 3, 2),
        ((6, 7), 1, 2),
    ],
)
def test_conv_bn_relu(size, kernel_size, strides, training):
    x = draw(2, *size, 3)
    layer = randomized(ConvBNReLU(4, kernel_size, strides), x.shape)
    output = assert_reference(
        layer,
        x,
        lambda r: relu(r.norm(convolve(x, r["conv/kernel"], strides), "norm")),
        training,
    )
    assert output.shape == layer.compute_output_shape(x.shape)


def test_a_stride_pads_the_top_left_too():
    """TensorFlow's "same" would centre the first window on (1, 1), PyTorch and Paddle on (0, 0)."""
    layer = ConvBNReLU(1, strides=2)
    layer.build((1, 4, 4, 1))
    kernel = np.zeros((3, 3, 1, 1))
    kernel[1, 1] = 1
    layer.conv.set_weights([kernel])
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    assert_close(layer(x), np.array([0, 2, 8, 10]).reshape(1, 2, 2, 1) / np.sqrt(1 + 1e-5))


@modes
@pytest.mark.parametrize("filters", [3, 5], ids=["skip", "no skip"])
def test_inverted_residual(filters, training):
    x = 4 * draw(2, 4, 7, 3)  # reaches the upper bound of ReLU6
    layer = randomized(InvertedResidual(filters), x.shape)
    assert_reference(layer, x, lambda r: r.inverted_residual(x), training)


@modes
@pytest.mark.parametrize(
    "size, dilation_rates",
    [((6, 9), (1, 2, 3, 4)), ((2, 3), (1, 2, 3, 4)), ((1, 1), (4, 1)), ((5, 4), (2, 3, 1))],
    ids=["four branches", "wider than the map", "one pixel", "three branches"],
)
def test_dmsc(size, dilation_rates, training):
    x = draw(3, *size, 2)
    layer = randomized(DMSC(4, dilation_rates), x.shape)
    assert_reference(layer, x, lambda r: r.dmsc(x, dilation_rates), training)


def test_the_range_penalty_counts_what_lies_beyond_6_in_training_alone():
    layer = DMSC(4, dilation_rates=(2, 2))  # of equal branches the gate's sum is either
    x = draw(2, 6, 8, 3)
    layer(x)
    gamma, beta = np.array([9, 1, 5, 7], "float32"), np.array([1, 0, 2, 3], "float32")
    layer.branches[1].set_weights(layer.branches[0].get_weights())
    for norm in layer.branch_norms:
        norm.gamma.assign(gamma)
        norm.beta.assign(beta)
    layer(x, training=True)
    assert not layer.losses
    layer.range_penalty = 0.5
    layer(x, training=False)
    assert not layer.losses
    mixed = np.array(layer.branches[0](layer.in_conv(x, training=True)))
    mixed = (mixed - mixed.mean((0, 1, 2))) / np.sqrt(mixed.var((0, 1, 2)) + 1e-5) * gamma + beta
    layer(x, training=True)
    expected = 0.5 * np.mean(np.maximum(mixed - 6, 0) ** 2)
    assert expected > 0.1
    np.testing.assert_allclose(layer.losses[0], expected, rtol=1e-4)


def test_the_gate_of_one_image_does_not_see_another():
    x = draw(2, 5, 6, 3)
    layer = randomized(DMSC(3), x.shape)
    together = ops.convert_to_numpy(layer(x))
    for i in range(2):
        assert_close(layer(x[i : i + 1]), together[i : i + 1], 1e-6)


@pytest.mark.parametrize("filters", [1, 3])
@pytest.mark.parametrize("hidden_ratio", [1, 4])
def test_dwbg(filters, hidden_ratio):
    decoder, encoder = draw(3, 4, 7, 3), draw(3, 8, 5, 2) - 0.5
    layer = randomized(DWBG(filters, hidden_ratio), decoder.shape, encoder.shape)
    assert weights_of(layer)["weight_1/kernel"].shape == (5, 5 * hidden_ratio)
    expected = Reference(layer).dwbg(decoder, encoder, filters)
    assert_close(layer([decoder, encoder]), expected)
    assert expected.shape == layer.compute_output_shape([decoder.shape, encoder.shape])


def test_global_averages_do_not_overflow_in_half_precision():
    """float16 ends at 65504; the sum of this map is 163840."""
    x = np.full((1, 64, 64, 2), 40, "float16")
    layer = randomized(DWBG(1, dtype="float16"), x.shape, x.shape)
    assert_close(layer([x, x]), Reference(layer).dwbg(x.astype(float), x.astype(float), 1), 1e-2)


@modes
@pytest.mark.parametrize("upsampling", ["bilinear", "align_corners"])
@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 3), (1, 1)])
def test_up_conv_bn_relu(size, upsampling, training):
    x = draw(2, *size, 3)
    layer = randomized(UpConvBNReLU(2, upsampling), x.shape)
    # the layer upsamples after the convolution; the equation before it
    assert_reference(
        layer,
        x,
        lambda r: relu(r.norm(convolve(upsample(x, upsampling), r["conv/kernel"]), "norm")),
        training,
    )


@pytest.mark.parametrize(
    "policy, upsampling",
    [
        ("mixed_float16", "bilinear"),
        ("mixed_bfloat16", "align_corners"),
        slow_case("mixed_float16", "align_corners"),
        slow_case("mixed_bfloat16", "bilinear"),
    ],
)
def test_up_conv_bn_relu_trains_with_xla_in_mixed_precision(policy, upsampling):
    """On a GPU Keras compiles with XLA by itself; the ReLU's gradient is where types must agree."""
    x, y = draw(2, 3, 5, 4), draw(2, 6, 10, 2)
    layer = UpConvBNReLU(2, upsampling, dtype=policy)
    relu_before = keras.layers.Conv2D(4, 1, activation="relu", dtype=policy)
    model = keras.Sequential([keras.Input(x.shape[1:]), relu_before, layer])
    model.compile("sgd", "mse", jit_compile=True)
    kernel = ops.convert_to_numpy(layer.conv.kernel).copy()
    loss = model.train_on_batch(x, y)
    assert np.isfinite(loss)
    assert not np.array_equal(ops.convert_to_numpy(layer.conv.kernel), kernel)
    exact = UpConvBNReLU(2, upsampling)
    exact.build(x.shape)
    exact.set_weights(layer.get_weights())
    before = relu_before(x)
    expected = ops.convert_to_numpy(exact(ops.cast(before, "float32")))
    assert_close(ops.cast(layer(before), "float32"), expected, 2e-2)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", None, True, (4,)])
@pytest.mark.parametrize(
    "layer_cls, argument",
    [
        (ConvBNReLU, "filters"),
        (ConvBNReLU, "kernel_size"),
        (ConvBNReLU, "strides"),
        (InvertedResidual, "filters"),
        (DMSC, "filters"),
        (DWBG, "filters"),
        (DWBG, "hidden_ratio"),
        (UpConvBNReLU, "filters"),
    ],
)
def test_an_argument_that_is_no_positive_integer(layer_cls, argument, value):
    with pytest.raises(ValueError) as error:
        layer_cls(**{"filters": 4, argument: value})
    message = str(error.value)
    assert f"`{argument}` must be a positive integer" in message and repr(value) in message


@pytest.mark.parametrize(
    "make, received",
    [
        (lambda: ConvBNReLU(4, kernel_size=2), "must be odd. Received: kernel_size=2"),
        (lambda: DMSC(4, dilation_rates=()), "Received: dilation_rates=()"),
        (lambda: DMSC(4, dilation_rates=3), "Received: dilation_rates=3"),
        (lambda: DMSC(4, dilation_rates=(1, 0)), "Received: dilation_rates=0"),
        (lambda: UpConvBNReLU(4, upsampling="nearest"), "Received: upsampling='nearest'"),
        (lambda: DWBG(1)(np.zeros((1, 4, 4, 3), "float32")), r"Received shapes: (1, 4, 4, 3)"),
        (lambda: DWBG(1)([np.zeros((1, 4, 4, 3), "float32")] * 3), "needs [decoder, encoder]"),
    ],
)
def test_other_bad_arguments_are_told_back(make, received):
    with pytest.raises(ValueError) as error:
        make()
    assert received in str(error.value)


@pytest.mark.parametrize(
    "layer, shapes",
    [
        (FusedBatchNormalization(momentum=0.5, epsilon=1e-3), [(2, 4, 6, 3)]),
        (ConvBNReLU(4, kernel_size=1, strides=2, name="a"), [(2, 4, 6, 3)]),
        (InvertedResidual(5), [(2, 4, 6, 3)]),
        (DMSC(4, dilation_rates=[1, 5], dtype="mixed_float16"), [(2, 4, 6, 3)]),
        (DWBG(3, hidden_ratio=2), [(2, 4, 6, 3), (2, 4, 6, 2)]),
        (UpConvBNReLU(2, upsampling="align_corners"), [(2, 4, 6, 3)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else "",
)
def test_serialization_needs_no_custom_objects(layer, shapes):
    randomized(layer, *shapes)
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == f"ddunet_keras>{type(layer).__name__}"
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
    copy.set_weights(layer.get_weights())
    inputs = [draw(*shape) for shape in shapes]
    inputs = inputs[0] if len(inputs) == 1 else inputs
    assert np.array_equal(ops.convert_to_numpy(copy(inputs)), ops.convert_to_numpy(layer(inputs)))
