"""From the deploy graph to int8: ranges and scales; values near the float model's."""

import functools

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from marks import slow_case

from ddunet_keras.deploy.bias_correction import correct_biases
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages, quantized_model
from ddunet_keras.deploy.graph import build_graph
from ddunet_keras.deploy.ranges import run_float, tensor_ranges
from ddunet_keras.deploy.scales import round_up
from ddunet_keras.deploy.tensorflow_converter import convert_graph, quantize_with_ranges
from ddunet_keras.litert.model import (
    TFLiteError,
    dequantize,
    operator_name,
    read_tflite,
    write_tflite,
)
from ddunet_keras.litert.soundness import check_int8
from ddunet_keras.model import DDUNet
from ddunet_keras.segmenter import check_segmenter

SIZE = (32, 48)


@functools.lru_cache
def network(**settings):
    keras.utils.set_random_seed(0)  # fixtures of the module come before conftest's seed
    return DDUNet((32, 32, 3), **{"base_channels": 2, **settings})


@functools.lru_cache
def photos():
    random = np.random.default_rng(0)
    smooth = random.normal(size=(12, *SIZE, 3)).cumsum(1).cumsum(2)
    smooth -= smooth.min((1, 2, 3), keepdims=True)
    return (255 * smooth / smooth.max((1, 2, 3), keepdims=True)).astype("uint8")


@functools.lru_cache
def float_file(form="portable", output="probability", **settings):
    return convert_graph(build_graph(network(**settings), SIZE, form=form, output=output))


@functools.lru_cache
def int8_file(target="tflm", output="probability", io="int8", **settings):
    """The int8 file before it is rewritten for its target."""
    config = ConversionConfig(SIZE, target=target, output=output, io=io)
    data = float_file(config.form, output, **settings)
    return write_tflite(quantized_model(data, photos(), config))


def run(data, inputs, kernels=OpResolverType.BUILTIN_REF):
    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for value in inputs:
        interpreter.set_tensor(source["index"], value[None].astype(source["dtype"]))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0])
    return np.stack(outputs), source, target


@functools.lru_cache
def truth(output="probability", **settings):
    graph = build_graph(network(**settings), SIZE, output=output)
    return np.concatenate([np.array(graph(p[None].astype("float32") - 128)) for p in photos()])


def pixels():
    return photos().astype("int16") - 128


def operators(data, *kinds):
    """(tensors, operators of these kinds)."""
    model = read_tflite(data)
    (graph,) = model.subgraphs
    return graph.tensors, [op for op in graph.operators if operator_name(model, op) in kinds]


def scales_of(tensors, operator):
    """Scales of an operator's inputs and its output, as double precision holds them."""
    indices = [*operator.inputs, *operator.outputs]
    return [np.float64(tensors[index].quantization.scale[0]) for index in indices]


def test_int8_is_near_the_float_model():
    check_int8(read_tflite(int8_file()))
    raw, source, target = run(int8_file(), pixels())
    assert source["quantization"] == (1.0, 0)
    assert target["quantization"] == (1 / 256, -128)
    assert np.abs((raw + 128.0) / 256 - truth()).mean() < 0.01


@pytest.mark.parametrize("target", ["tflm", slow_case("esp32s3"), "cpu"])
def test_kernels_agree_on_the_scale_of_every_product(target):
    """TFLM divides in double precision, LiteRT in single: a last bit tips what lies halfway."""
    tensors, products = operators(int8_file(target), "MUL", "BATCH_MATMUL")
    for operator in products:
        a, b, c = (np.float32(scale) for scale in scales_of(tensors, operator))
        assert np.float64(a * b / c) == np.float64(a) * np.float64(b) / np.float64(c)
    assert len(products) >= (29 if target == "tflm" else 21)


def test_next_to_no_product_with_a_gate_lies_halfway():
    """XNNPACK rounds what lies halfway to the even number on x86, and up on Arm."""
    tensors, products = operators(int8_file(), "MUL")
    gated = [
        scales
        for scales in map(functools.partial(scales_of, tensors), products)
        if scales[1] == 1 / 256
    ]
    assert len(gated) == 20
    for a, b, c in gated:
        values = np.outer(np.arange(256), np.arange(256)) * (a * b / c)
        assert np.mean(values % 1 == 0.5) < 1e-4


def test_kernels_agree_on_the_scale_of_every_relu():
    tensors, relus = operators(int8_file(), "RELU")
    ratios = []
    for operator in relus:
        a, b = (np.float32(scale) for scale in scales_of(tensors, operator))
        assert np.float64(a / b) == np.float64(a) / np.float64(b)
        ratios.append(float(a / b))
    assert len(ratios) == 4 and max(ratios) > 1


@pytest.mark.parametrize("form", ["portable", slow_case("xnnpack")])
def test_the_converter_keeps_every_range(form):
    """It unites ranges where an operator has one scale; `tensor_ranges` knows of it."""
    data = float_file(form)
    ranges = tensor_ranges(data, photos())
    quantized = read_tflite(quantize_with_ranges(read_tflite(data), ranges, "int8")).subgraphs[0]
    scales = {t.name: t.quantization.scale for t in quantized.tensors if t.quantization is not None}
    (graph,) = read_tflite(data).subgraphs
    compared = 0
    for index, (low, high) in ranges.items():
        name = graph.tensors[index].name
        if name in scales and index not in graph.outputs:  # the output's is 1/256, always
            np.testing.assert_allclose((high - low) / 255, scales[name], rtol=1e-6)
            compared += 1
    assert compared > 100


def test_a_feature_map_keeps_its_values_beside_its_maximum():
    """As in an attention to places, which joins the mean and the maximum over the channels."""
    image = keras.Input(batch_shape=(1, *SIZE, 3))
    start = keras.initializers.RandomNormal(stddev=0.004, seed=0)
    x = keras.layers.Conv2D(8, 3, padding="same", kernel_initializer=start)(image)
    both = [keras.ops.mean(x, -1, keepdims=True), keras.ops.max(x, -1, keepdims=True)]
    where = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(
        keras.layers.Concatenate()(both)
    )
    model = keras.Model(image, keras.layers.Conv2D(1, 1, activation="sigmoid")(x * where))
    data = convert_graph(model)
    _, (maximum,) = operators(data, "REDUCE_MAX")
    ranges = tensor_ranges(data, photos())
    low = min(value(maximum.inputs[0]).min() for value in run_float(data, photos()))
    assert low < 0.5 * ranges[maximum.inputs[0]][1] * -1  # else there is nothing to clip
    assert ranges[maximum.inputs[0]][0] <= 0.9 * low
    config = ConversionConfig(SIZE)
    raw, *_ = run(write_tflite(quantized_model(data, photos(), config)), pixels())
    expected = np.concatenate([np.array(model(p[None].astype("float32"))) for p in pixels()])
    assert np.abs((raw + 128.0) / 256 - expected).mean() < 0.01


def test_a_file_for_the_cpu_has_what_xnnpack_is_fast_with():
    """No RELU of its own, and a matrix product whose right side has the zero point 0."""
    data = int8_file("cpu")
    raw, *_ = run(data, pixels())
    assert np.abs((raw + 128.0) / 256 - truth()).mean() < 0.01
    tensors, products = operators(data, "BATCH_MATMUL")
    assert not operators(data, "RELU")[1]
    assert tensors[products[0].inputs[1]].quantization.zeroPoint == [0]


@pytest.mark.parametrize(
    "output, width",
    [("probability", 12.48), slow_case("mask", 2.0)],
)
def test_the_head_wastes_no_integers_on_what_the_output_does_not_show(output, width):
    model = read_tflite(int8_file(output=output))
    (graph,) = model.subgraphs
    producers = {operator.outputs[0]: operator for operator in graph.operators}
    last = graph.operators[-1]
    while operator_name(model, last) != "ADD":
        last = producers[last.inputs[0]]
    total, bias = (255 * graph.tensors[i].quantization.scale[0] for i in last.inputs)
    assert total <= 1.01 * (width + bias)


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_io_gives_the_same_values(io):
    data = int8_file(io=io)
    check_int8(read_tflite(data), io)
    inputs = photos() if io == "uint8" else photos().astype("float32") - 128
    raw, source, _ = run(data, inputs)
    assert source["dtype"] == np.dtype(io)
    expected, *_ = run(int8_file(), pixels())
    expected = expected.astype("float32") + 128
    expected = expected if io == "uint8" else expected / 256
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    with pytest.raises(TFLiteError, match="should be int8, this is"):
        check_int8(read_tflite(data), "int8")


@pytest.mark.slow
@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("output", ["probability", "mask"])
def test_packed_files_are_what_was_asked_for(io, output):
    config = ConversionConfig(SIZE, target="cpu", io=io, output=output)
    packed = read_tflite(build_stages(network(), photos(), config).packed)
    check_int8(packed, io)
    assert check_segmenter(packed) == (output, 2)


@pytest.mark.slow
def test_mask_and_classes():
    data = int8_file("cpu", "mask", num_classes=3)
    check_int8(read_tflite(data))
    assert check_segmenter(read_tflite(data)) == ("mask", 3)
    mask, *_ = run(data, pixels())
    assert mask.shape == (12, *SIZE, 1)
    logits = truth("logits", num_classes=3)
    lost = logits.max(-1, keepdims=True) - np.take_along_axis(logits, mask.astype(int), -1)
    assert lost.max() < 0.15 * np.ptp(logits)  # another class only where the two are near


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"variant": "baseline"}, {"upsampling": "align_corners"}])
def test_other_networks(settings):
    data = int8_file(output="mask", **settings)
    check_int8(read_tflite(data))
    mask, *_ = run(data, pixels())
    assert set(np.unique(mask)) <= {0, 1}
    logits = truth("logits", **settings)
    wrong = mask != (logits >= 0)
    assert np.abs(logits[wrong]).max(initial=0) < 0.15 * np.ptp(logits)  # near the threshold


@pytest.mark.slow
def test_float_files():
    inputs = photos().astype("float32") - 128
    whole = float_file()
    half = convert_graph(build_graph(network(), SIZE), "float16")
    assert len(half) < 0.8 * len(whole)
    np.testing.assert_allclose(run(whole, inputs)[0], truth(), atol=1e-4)
    np.testing.assert_allclose(run(half, inputs)[0], truth(), atol=1e-2)
    with pytest.raises(TFLiteError, match="should be int8, this is float32"):
        check_int8(read_tflite(whole))


@pytest.mark.slow
def test_nothing_is_printed(capfd):
    build_stages(network(variant="baseline"), photos(), ConversionConfig(SIZE))
    assert capfd.readouterr() == ("", "")


# === The parts ===


@pytest.mark.parametrize("kind", ["DEPTHWISE_CONV_2D", slow_case("CONV_2D")])
def test_biases_take_up_what_rounding_adds_in_the_mean(kind):
    """Weights that are all rounded up move the mean of an output; the bias moves it back."""
    data = float_file()
    float_model, model = read_tflite(data), read_tflite(int8_file())
    (float_graph,), (graph,) = float_model.subgraphs, model.subgraphs
    names = {t.name: index for index, t in enumerate(float_graph.tensors)}
    operator = [op for op in graph.operators if operator_name(model, op) == kind][1]
    output = names[graph.tensors[operator.outputs[0]].name]
    weights = model.buffers[graph.tensors[operator.inputs[1]].buffer]
    values = np.asarray(weights.data, np.uint8).view(np.int8).astype(int)
    weights.data = np.clip(values + 8, -127, 127).astype(np.int8).view(np.uint8)
    truth = np.mean([value(output).mean((0, 1, 2)) for value in run_float(data, photos())], 0)

    def error():
        tensor = graph.tensors[operator.outputs[0]]
        found = []
        for value in run_float(write_tflite(model), photos()):
            found.append(dequantize(tensor, value(operator.outputs[0])).mean((0, 1, 2)))
        return np.abs(np.mean(found, 0) - truth).mean()

    before = error()
    correct_biases(model, float_model, data, photos())
    assert error() < 0.6 * before  # the activation hides a part


@pytest.mark.parametrize("digits", [1, 6, 12])
@pytest.mark.parametrize("odd", [False, True])
def test_scales_are_rounded_up_to_so_many_digits(digits, odd):
    for value in np.random.default_rng(0).lognormal(0, 3, 200):
        rounded = round_up(value, digits, odd)
        mantissa = np.frexp(rounded)[0] * 2.0 ** (digits + odd)  # an odd one may carry
        assert mantissa == int(mantissa)
        least = value if not odd else value * (1 - 2.0**-digits)
        assert least <= rounded <= value * (1 + 2.0 ** (2 - digits))
        if odd:
            exponent = np.frexp(value)[1] - digits
            assert (rounded / 2.0**exponent) % 2 == 1


def test_images_of_another_size_or_type_are_refused():
    config = ConversionConfig(SIZE)
    for images in (np.zeros((2, 16, 16, 3), "uint8"), np.zeros((2, *SIZE, 3), "float32")):
        with pytest.raises(ValueError, match="`images` must be uint8"):
            build_stages(network(), images, config)


@pytest.mark.shared
@pytest.mark.slow
def test_masks_of_the_trained_model_agree(shared):
    """The bundled model on test photos of other dates, at 128 pixels."""
    from ddunet_keras.data.datasets import open_dataset
    from ddunet_keras.data.splits import make_split
    from ddunet_keras.deploy.calibrate import labelled_photos

    dataset = open_dataset(shared / "data" / "swinyseg-base")
    config = ConversionConfig((128, 128))
    found = labelled_photos(dataset, make_split(dataset), config.size, count=100, verify=28)
    model = DDUNet.from_preset("ddunet_c8")
    stages = build_stages(model, found.calibration, config)
    graph = build_graph(model, config.size)
    expected = [np.array(graph(x[None].astype("float32") - 128))[0] >= 0.5 for x in found.test]
    raw, *_ = run(stages.packed, found.test.astype("int16") - 128)
    assert ((raw >= 0) == np.stack(expected)).mean() >= 0.985
