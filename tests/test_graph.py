"""The deploy graph: equal to the model in every form, and made of what converts."""

import functools

import keras
import numpy as np
import pytest
from marks import slow_case

from ddunet_keras.deploy import graph
from ddunet_keras.deploy.equalization import channel_factors
from ddunet_keras.deploy.graph import FORMS, build_graph, check_graph
from ddunet_keras.model import DDUNet

SIZE = (32, 48)


@functools.lru_cache
def trained(**config):
    """A small model whose batch normalization is not the identity, as after training."""
    model = DDUNet((32, 32, 3), **{"base_channels": 2, "deep_supervision": True, **config})
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.8, 1.25, variable.shape))
        if variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(random.normal(0, 0.1, variable.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def simple():
    """The network that is built the fastest, for what does not hang on the blocks inside."""
    return trained(variant="baseline")


# more channels than `joined_channels`
WIDE = {"base_channels": 4}


@pytest.mark.parametrize(
    ("form", "config"),
    [
        ("portable", {}),
        ("xnnpack", {"num_classes": 3, "upsampling": "align_corners"}),
        ("portable", {"variant": "dmsc", "num_classes": 3}),
        ("portable", {"variant": "baseline"}),
    ],
)
def test_equals_the_model(form, config):
    assert check_graph(trained(**config), SIZE, form) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "config"),
    [
        ("xnnpack", {"upsampling": "align_corners"}),
        ("xnnpack", {"num_classes": 3}),
        ("portable", {"num_classes": 3}),
        ("microcontroller", {"num_classes": 3}),
        ("xnnpack", {"variant": "baseline"}),
        ("xnnpack", {"variant": "dmsc"}),
        ("xnnpack", WIDE),
        ("xnnpack", {"dtype": "mixed_float16"}),
    ],
)
def test_equals_the_model_in_each_combination(form, config):
    assert check_graph(trained(**config), SIZE, form) <= 1e-5


@pytest.mark.parametrize(("form", "sums"), [("portable", 4), ("xnnpack", 1)])
def test_narrow_residual_blocks_are_one_convolution_for_a_cpu(form, sums):
    built = build_graph(trained(base_channels=4), SIZE, form=form)
    blocks = [built.get_layer(f"decoder_{stage}_1") for stage in range(1, 5)]
    assert [layer.output.shape[-1] for layer in blocks] == [64, 32, 16, 8]
    kinds = [type(layer).__name__ for layer in blocks]
    assert kinds == ["Add"] * sums + ["Conv2D"] * (4 - sums)


@pytest.mark.slow
@pytest.mark.parametrize("upsampling", ["bilinear", "align_corners"])
def test_the_rounding_of_large_feature_maps_is_far_below_the_tolerance(upsampling):
    assert check_graph(trained(upsampling=upsampling), (240, 320), "portable") <= 3e-6


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(1).integers(0, 256, (8, *SIZE, 3), "uint8")


@pytest.fixture(scope="module")
def factors(model, photos):
    return channel_factors(model, photos)


@pytest.mark.parametrize(
    "form", ["microcontroller", *map(slow_case, sorted({*FORMS} - {"microcontroller"}))]
)
def test_equalization_does_not_change_the_output(model, factors, form):
    assert check_graph(model, SIZE, form, factors) <= 1e-5


def test_equalization_changes_channels(model, photos, factors):
    assert any(np.ptp(values) > 0.5 for values in factors.values())

    def peaks(factors):
        built = build_graph(model, SIZE, output="logits", batch_size=8, factors=factors)
        stem = keras.Model(built.input, built.get_layer("stem").output)
        return np.abs(np.array(stem(photos.astype("float32") - 128))).max((1, 2)).mean(0)

    before, after = peaks({}), peaks(factors)
    assert after.max() / after.min() < 1.01 < before.max() / before.min()


def test_check_catches_a_wrong_graph(simple, monkeypatch):
    # batch normalization folded without its shift
    folded = graph.folded
    monkeypatch.setattr(
        graph, "folded", lambda *layers: (folded(*layers)[0], 0 * folded(*layers)[1])
    )
    with pytest.raises(ValueError, match="logits differ from the model's by"):
        check_graph(simple, SIZE, "portable")


def test_centered_input_is_the_pixel_minus_128(simple):
    pixels = np.random.default_rng(2).integers(0, 256, (1, *SIZE, 3)).astype("float32")
    own = build_graph(simple, SIZE, output="logits", centered=False)
    centered = build_graph(simple, SIZE, output="logits")
    expected = own(pixels / 127.5 - 1)
    difference = np.abs(centered(pixels - 128) - expected).max()
    assert difference < 0.02 * np.ptp(expected)  # the padding alone means another gray


@pytest.mark.slow
def test_the_two_frameworks_give_the_same(model):
    import tf_keras

    pixels = np.random.default_rng(3).integers(-128, 128, (1, *SIZE, 3)).astype("float32")
    one = build_graph(model, SIZE)
    other = build_graph(model, SIZE, framework=tf_keras)
    assert isinstance(other, tf_keras.Model)
    np.testing.assert_allclose(one(pixels), other(pixels), atol=1e-5)


def test_outputs_follow_from_the_logits(simple):
    pixels = np.random.default_rng(4).integers(-128, 128, (1, *SIZE, 3)).astype("float32")
    logits, probability, mask = (
        np.array(build_graph(simple, SIZE, output=output)(pixels))
        for output in ("logits", "probability", "mask")
    )
    assert logits.shape == (1, *SIZE, 1)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_array_equal(mask, logits >= 0)


def test_classes_are_a_softmax_and_their_index():
    model = trained(variant="baseline", num_classes=3)
    pixels = np.random.default_rng(5).integers(-128, 128, (1, *SIZE, 3)).astype("float32")
    logits, probability, mask = (
        np.array(build_graph(model, SIZE, output=output)(pixels))
        for output in ("logits", "probability", "mask")
    )
    np.testing.assert_allclose(probability.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probability.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal(mask[..., 0], logits.argmax(-1))


@pytest.mark.parametrize("form", ["portable", "xnnpack"])
def test_dynamic_head_by_hand(form):
    """The head of the graph against nine shifted products written out in NumPy."""
    model = trained()
    built = build_graph(model, (32, 32), form=form, output="logits")
    names = ["decoder", "encoder_1", "logits"]
    maps = keras.Model(built.input, [built.get_layer(name).output for name in names])
    pixels = np.random.default_rng(6).integers(-128, 128, (1, 32, 32, 3)).astype("float32")
    decoder, encoder, logits = (np.array(y[0], "float64") for y in maps(pixels))
    block = model.get_layer("head_1")
    averages = np.concatenate([decoder.mean((0, 1)), encoder.mean((0, 1))])

    def perceptron(first, second):
        (w1, b1), (w2, b2) = first.get_weights(), second.get_weights()
        return np.maximum(averages @ w1 + b1, 0) @ w2 + b2

    kernel = perceptron(block.weight_1, block.weight_2).reshape(2, 3, 3)
    expected = np.full((32, 32), perceptron(block.bias_1, block.bias_2)[0])
    padded = np.pad(decoder, ((1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(3, 3):
        expected += padded[i : i + 32, j : j + 32] @ kernel[:, i, j]
    np.testing.assert_allclose(logits[..., 0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (32, 40)}, "multiples of 16"),
        ({"form": "slices"}, "`form` must be one of"),
        ({"output": "labels"}, "`output` must be one of"),
    ],
)
def test_bad_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_graph(model, **{"size": SIZE, **arguments})


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="must be a DDUNet"):
        build_graph(keras.Sequential(), SIZE)
