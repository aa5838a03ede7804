"""Flatbuffers from the deploy graph: types, values, rounding, calibration, training."""

import functools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import Split, make_split
from ddunet_keras.data.synthetic import write_synthetic
from ddunet_keras.deploy import quantize as module
from ddunet_keras.deploy.graph import build_graph
from ddunet_keras.deploy.quantize import (
    calibration_images,
    check_int8,
    float_model,
    quantize,
    train_quantized,
)
from ddunet_keras.files import DataError
from ddunet_keras.litert.model import constant, operator_name, read_tflite, write_tflite
from ddunet_keras.model import DDUNet

SIZE = (32, 48)


@functools.lru_cache
def network(**config):
    keras.utils.set_random_seed(0)  # fixtures of the module come before conftest's seed
    return DDUNet((32, 32, 3), **{"base_channels": 2, **config})


@pytest.fixture(scope="module")
def photos():
    random = np.random.default_rng(0)
    smooth = random.normal(size=(12, *SIZE, 3)).cumsum(1).cumsum(2)
    smooth -= smooth.min((1, 2, 3), keepdims=True)
    return (255 * smooth / smooth.max((1, 2, 3), keepdims=True)).astype("uint8")


@pytest.fixture(scope="module")
def int8(photos):
    return quantize(network(), SIZE, photos)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skies")
    write_synthetic(folder, count=10, image_size=(40, 56), seed=0)
    return open_dataset(folder)


def split_of(dataset):
    names = [sample.name for sample in dataset]
    return Split("paper", 0, tuple(names[:8]), (), tuple(names[8:]))


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


def truth(photos, output="probability", **config):
    graph = build_graph(network(**config), SIZE, output=output)
    return np.concatenate([np.array(graph(p[None].astype("float32") - 128)) for p in photos])


def test_int8_is_near_the_float_model(int8, photos):
    check_int8(int8)
    raw, source, target = run(int8, photos.astype("int16") - 128)
    assert source["quantization"] == (1.0, 0)
    assert target["quantization"] == (1 / 256, -128)
    assert np.abs((raw + 128.0) / 256 - truth(photos)).mean() < 0.01


@pytest.mark.parametrize("head", ["multiply", "matmul"])
def test_kernels_agree_on_the_scale_of_every_product(head, photos):
    """TFLM divides in double precision, LiteRT in single: a last bit tips what lies halfway."""
    model = read_tflite(quantize(network(), SIZE, photos, head=head))
    tensors, found = model.subgraphs[0].tensors, 0
    for operator in model.subgraphs[0].operators:
        if operator_name(model, operator) in ("MUL", "BATCH_MATMUL"):
            indices = [*operator.inputs, *operator.outputs]
            a, b, c = (np.float32(tensors[i].quantization.scale[0]) for i in indices)
            assert np.float64(a * b / c) == np.float64(a) * np.float64(b) / np.float64(c)
            found += 1
    assert found >= (21 if head == "matmul" else 29)


def test_next_to_no_product_with_a_gate_lies_halfway(photos):
    """XNNPACK rounds what lies halfway to the even number on x86, and up on Arm."""
    model = read_tflite(quantize(network(), SIZE, photos))
    tensors, found = model.subgraphs[0].tensors, 0
    for operator in model.subgraphs[0].operators:
        if operator_name(model, operator) != "MUL":
            continue
        indices = [*operator.inputs, *operator.outputs]
        a, b, c = (np.float64(tensors[i].quantization.scale[0]) for i in indices)
        if b == 1 / 256:
            products = np.outer(np.arange(256), np.arange(256)) * (a * b / c)
            assert np.mean(products % 1 == 0.5) < 1e-4
            found += 1
    assert found == 20


@pytest.mark.parametrize("head", ["multiply", "matmul"])
def test_training_rounds_every_map_as_the_file_does(head, photos):
    """The converter unites ranges where an operator has one scale; training must know of it."""
    plain = module._convert(build_graph(network(), SIZE, head=head))
    ranges = module._ranges(plain, photos)
    file = read_tflite(module._quantize(plain, dict(ranges), "int8")).subgraphs[0].tensors
    scales = {t.name: t.quantization.scale for t in file if t.quantization is not None}
    (graph,) = read_tflite(plain).subgraphs
    tensors, compared = graph.tensors, 0
    for index, (low, high) in ranges.items():
        if tensors[index].name in scales and index not in graph.outputs:  # 1/256, always
            np.testing.assert_allclose((high - low) / 255, scales[tensors[index].name], rtol=1e-6)
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("head", ["multiply", "matmul"])
def test_the_generated_bias_takes_up_what_it_can_foresee(head, photos):
    """Errors of a whole image that follow from what the head sees vanish on other photos, too."""
    model = DDUNet((32, 32, 3), base_channels=2)
    block = model.get_layer("head_1")
    for layer in (block.bias_1, block.bias_2):  # an untrained head sees little, and says less
        layer.set_weights([4 * w for w in layer.get_weights()])
    network_graph = build_graph(model, SIZE, head=head, output="logits")
    plain = module._convert(build_graph(model, SIZE, head=head))
    file = read_tflite(module._quantize(plain, module._ranges(plain, photos), "int8"))
    (graph,) = file.subgraphs
    (generator,) = (
        operator
        for operator in graph.operators
        if "bias_2" in graph.tensors[operator.outputs[0]].name.decode()
    )
    kernel = constant(file, graph, generator.inputs[1])
    wrong = kernel.astype("int16") + np.resize([-60, 60, 0, 40], kernel.shape)
    module._set_constant(file, generator.inputs[1], np.clip(wrong, -127, 127).astype("int8"))

    many = np.concatenate([255 - photos, photos[:, ::-1] // 2, photos[:, :, ::-1], photos])
    tints = np.random.default_rng(1).uniform(0.3, 1, (len(many), 1, 1, 3))
    many = (many * tints).astype("uint8")

    def spread(data):
        raw, *_ = run(data, many[1::2].astype("int16") - 128)
        p = np.clip((raw + 128.0) / 256, 1 / 256, 1 - 1 / 256)
        right = [network_graph(x[None].astype("float32") - 128) for x in many[1::2]]
        right = np.concatenate([np.array(x) for x in right])
        errors, near = np.log(p / (1 - p)) - right, np.abs(right) < 0.7
        return np.std([e[n].mean() for e, n in zip(errors, near, strict=True) if n.any()])

    before = write_tflite(file)
    after = module._refit_bias(before, plain, many[::2], head)
    assert spread(after) < 0.5 * spread(before)


def test_a_static_head_generates_no_bias(photos):
    plain = module._convert(build_graph(network(variant="dmsc"), SIZE))
    data = bytes(module._quantize(plain, module._ranges(plain, photos), "int8"))
    assert module._refit_bias(data, plain, photos, "multiply") == data


def test_kernels_agree_on_the_scale_of_every_relu(photos):
    model = read_tflite(quantize(network(), SIZE, photos))
    tensors, ratios = model.subgraphs[0].tensors, []
    for operator in model.subgraphs[0].operators:
        if operator_name(model, operator) == "RELU":
            indices = operator.inputs[0], operator.outputs[0]
            a, b = (np.float32(tensors[i].quantization.scale[0]) for i in indices)
            assert np.float64(a / b) == np.float64(a) / np.float64(b)
            ratios.append(float(a / b))
    assert len(ratios) == 4 and max(ratios) > 1


def test_a_file_for_the_cpu_has_what_xnnpack_is_fast_with(photos):
    """No RELU of its own, and a matrix product whose right side has the zero point 0."""
    data = quantize(network(), SIZE, photos, head="matmul")
    raw, *_ = run(data, photos.astype("int16") - 128)
    assert np.abs((raw + 128.0) / 256 - truth(photos)).mean() < 0.01
    model = read_tflite(data)
    graph = model.subgraphs[0]
    operators = {operator_name(model, operator): operator for operator in graph.operators}
    assert "RELU" not in operators
    matrix = graph.tensors[operators["BATCH_MATMUL"].inputs[1]]
    assert matrix.quantization.zeroPoint == [0]


@pytest.mark.parametrize("output, width", [("probability", 12.48), ("mask", 2.0)])
def test_the_head_has_no_steps_for_what_the_output_does_not_show(output, width, photos):
    model = read_tflite(quantize(network(), SIZE, photos, output=output))
    graph = model.subgraphs[0]
    makers = {operator.outputs[0]: operator for operator in graph.operators}
    last = graph.operators[-1]
    while operator_name(model, last) != "ADD":
        last = makers[last.inputs[0]]
    total, bias = (255 * graph.tensors[i].quantization.scale[0] for i in last.inputs)
    assert total <= 1.01 * (width + bias)


@pytest.mark.parametrize(
    "head, kernels",
    [("multiply", OpResolverType.BUILTIN_REF), ("matmul", OpResolverType.AUTO)],  # XNNPACK
)
def test_threshold_is_moved_to_where_it_lies_in_float(head, kernels, photos):
    plain = float_model(network(), SIZE, head=head)
    int8 = quantize(network(), SIZE, photos, head=head)
    model = read_tflite(int8)
    (sums,) = [
        operator
        for operator in model.subgraphs[0].operators
        if operator_name(model, operator) == "CONV_2D"
        and (model.subgraphs[0].tensors[operator.outputs[0]].name or b"").find(b"head_1_sum") >= 0
    ]
    module._shift_bias(model, sums, -0.2 * np.ptp(truth(photos, "logits")))
    moved = write_tflite(model)
    errors = []
    for data in (int8, moved, module._center_threshold(moved, plain, photos, head)):
        raw, *_ = run(data, photos.astype("int16") - 128, kernels)
        errors.append(((raw + 128.0) / 256 - truth(photos)).mean())
    assert errors[1] < -0.03
    assert abs(errors[0]) < 0.01 and abs(errors[2]) < 0.01


def test_means_for_the_cpu_are_taken_of_what_users_get(int8, photos):
    graph = read_tflite(int8).subgraphs[0]
    inner = graph.operators[len(graph.operators) // 2].outputs[0]
    indices = [inner, graph.outputs[0]]  # the output is the same where inner maps are asked for
    values = [value(indices[1])[0] for value in module._run(int8, photos, indices)]
    raw, *_ = run(int8, photos.astype("int16") - 128, OpResolverType.AUTO)
    np.testing.assert_array_equal(values, raw)


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_io_gives_the_same_values(io, int8, photos):
    data = quantize(network(), SIZE, photos, io=io)
    check_int8(data, io)
    inputs = photos if io == "uint8" else photos.astype("float32") - 128
    raw, source, _ = run(data, inputs)
    assert source["dtype"] == np.dtype(io)
    expected, *_ = run(int8, photos.astype("int16") - 128)
    expected = expected.astype("float32") + 128
    expected = expected if io == "uint8" else expected / 256
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    with pytest.raises(DataError, match="should be int8, this is"):
        check_int8(data, "int8")


def test_mask_and_classes(photos):
    data = quantize(network(num_classes=3), SIZE, photos, output="mask", head="matmul")
    check_int8(data)
    mask, *_ = run(data, photos.astype("int16") - 128)
    assert mask.shape == (12, *SIZE, 1)
    logits = truth(photos, "logits", num_classes=3)
    lost = logits.max(-1, keepdims=True) - np.take_along_axis(logits, mask.astype(int), -1)
    assert lost.max() < 0.15 * np.ptp(logits)  # another class only where the two are near


@pytest.mark.parametrize("config", [{"variant": "baseline"}, {"upsampling": "align_corners"}])
def test_other_networks(config, photos):
    data = quantize(network(**config), SIZE, photos, output="mask")
    check_int8(data)
    mask, *_ = run(data, photos.astype("int16") - 128)
    assert set(np.unique(mask)) <= {0, 1}
    logits = truth(photos, "logits", **config)
    wrong = mask != (logits >= 0)
    assert np.abs(logits[wrong]).max(initial=0) < 0.15 * np.ptp(logits)  # near the threshold


def test_float_files(photos):
    inputs, expected = photos.astype("float32") - 128, truth(photos)
    whole, half = (float_model(network(), SIZE, dtype=d) for d in ("float32", "float16"))
    assert len(half) < 0.8 * len(whole)
    np.testing.assert_allclose(run(whole, inputs)[0], expected, atol=1e-4)
    np.testing.assert_allclose(run(half, inputs)[0], expected, atol=1e-2)
    with pytest.raises(DataError, match="should be int8, this is float32"):
        check_int8(whole)


def test_nothing_is_printed(photos, capfd):
    quantize(network(variant="baseline"), SIZE, photos)
    assert capfd.readouterr() == ("", "")


def test_rounding_keeps_the_output_better_than_the_nearest():
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 1)) + 0.3 * random.normal(size=(500, 16))  # correlated, as pixels
    weights = random.uniform(-20, 20, (1, 4, 16))
    rounded = module._gptq(weights, (x.T @ x / len(x))[None])
    assert np.array_equal(rounded, np.rint(rounded)) and np.abs(rounded).max() <= 127

    def error(w):
        return np.square(x @ (weights - w)[0].T).mean()

    assert error(rounded) < 0.6 * error(np.rint(weights))


@pytest.mark.parametrize(("rate", "stride"), [(1, 1), (3, 1), (1, 2)])
def test_patches_are_what_a_convolution_sees(rate, stride):
    import keras

    x = np.random.default_rng(0).normal(size=(1, 9, 11, 2)).astype("float32")
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 1)).astype("float32")
    form = {"strides": stride, "padding": "valid" if stride > 1 else "same", "dilation_rate": rate}
    expected = np.array(keras.ops.conv(x, kernel, **form))
    options = type(
        "Options", (), {"padding": int(stride > 1), "strideH": stride, "strideW": stride}
    )
    options.dilationHFactor = options.dilationWFactor = rate
    patches = module._patches(x, (3, 3), options, count=10**6)
    ours = np.tensordot(patches, kernel[..., 0], 3)
    np.testing.assert_allclose(ours, expected.ravel(), atol=1e-5)


def test_calibration_images_are_from_training_and_stratified():
    class Skies:
        """Ninety photos of the day, thirty of the night; a photo's pixels are its number."""

        def find(self, name):
            return SimpleNamespace(name=name, night=int(name) >= 90)

        def load(self, sample):
            return np.full((20, 20, 3), int(sample.name), "uint8"), None

    split = Split("paper", 0, tuple(map(str, range(120))), (), ("200",))
    images = calibration_images(Skies(), split, (16, 32), count=40)
    numbers = images[:, 0, 0, 0]
    assert images.shape == (40, 16, 32, 3)
    assert len(set(numbers)) == 40 and (numbers >= 90).sum() == 10
    again = calibration_images(Skies(), split, (16, 32), count=40)
    other = calibration_images(Skies(), split, (16, 32), count=40, seed=1)
    assert np.array_equal(images, again) and not np.array_equal(images, other)
    assert len(calibration_images(Skies(), split, (16, 32), count=999)) == 120


@pytest.mark.slow
def test_trained_file_is_near_the_float_model(dataset, photos):
    lines = []
    form = {"epochs": 1, "batch_size": 4}
    data = train_quantized(
        network(), SIZE, photos, [(dataset, split_of(dataset))], progress=lines.append, **form
    )
    check_int8(data)
    assert len(lines) == 1 and lines[0].startswith("quantization: epoch 1 of 1, loss")
    raw, *_ = run(data, photos.astype("int16") - 128)
    assert np.abs((raw + 128.0) / 256 - truth(photos)).mean() < 0.02


@pytest.mark.slow
def test_training_mends_weights_that_are_rounded_badly(dataset, monkeypatch):
    split = split_of(dataset)
    form = {"output": "logits", "epochs": 20, "batch_size": 4}
    images = calibration_images(dataset, split, SIZE)

    def worse(data, *_):
        random, model = np.random.default_rng(0), read_tflite(data)
        graph = model.subgraphs[0]
        for operator in graph.operators:
            if operator_name(model, operator) in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                kernel = constant(model, graph, operator.inputs[1])
                if len(np.unique(kernel)) > 2:  # not a head's fixed one
                    kernel = kernel + random.integers(-9, 10, kernel.shape)
                    kernel = np.clip(kernel, -127, 127).astype("int8")
                    module._set_constant(model, operator.inputs[1], kernel)
        return write_tflite(model)

    monkeypatch.setattr(module, "_best_rounding", worse)

    def error(rate):
        form["rounding_rate"] = rate
        data = train_quantized(network(), SIZE, images, [(dataset, split)], **form)
        raw, _, target = run(data, images.astype("int16") - 128)
        scale, zero_point = target["quantization"]
        logits = scale * (raw - float(zero_point))
        return np.abs(logits - truth(images, output="logits")).mean()

    assert error(0.1) < 0.85 * error(0.0)


def kernels(data):
    """int8 kernels (filters, weights) of the convolutions that are not depthwise or fixed."""
    model = read_tflite(data)
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if operator_name(model, operator) == "CONV_2D":
            kernel = constant(model, graph, operator.inputs[1])
            kernel = kernel.reshape(len(kernel), -1)
            if len(np.unique(kernel)) > 2 or kernel.size < 9:
                yield kernel


@pytest.mark.slow
def test_pruned_weights_are_zero_in_the_file(dataset, photos):
    form = {"epochs": 2, "batch_size": 4, "prune": 0.5}
    model = network(variant="baseline")
    data = train_quantized(model, SIZE, photos, [(dataset, split_of(dataset))], **form)
    zeros = [(kernel == 0).mean() for kernel in kernels(data) if kernel.size >= 32]
    assert min(zeros) >= 0.49


@pytest.mark.slow
def test_clustered_filters_have_few_values_in_the_file(dataset, photos):
    form = {"epochs": 1, "batch_size": 4, "cluster": 4}
    model = network(variant="baseline")
    data = train_quantized(model, SIZE, photos, [(dataset, split_of(dataset))], **form)
    values = [len(np.unique(row)) for kernel in kernels(data) for row in kernel]
    assert max(values) <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"io": "int16"}, "`io` must be one of"),
        ({"images": np.zeros((2, 16, 16, 3), "uint8")}, "`images` must be uint8"),
        ({"images": np.zeros((2, *SIZE, 3), "float32")}, "`images` must be uint8"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"images": np.zeros((2, *SIZE, 3), "uint8"), **arguments}
    with pytest.raises(ValueError, match=message):
        quantize(network(), SIZE, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune": 1.0}, "`prune` must lie in"),
        ({"cluster": 1}, "`cluster` must be 2 or more"),
        ({"epochs": 0}, "`epochs` must be 1 or more"),
    ],
)
def test_bad_training(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_quantized(network(), SIZE, np.zeros((2, *SIZE, 3), "uint8"), [], **arguments)


def test_bad_dtype():
    with pytest.raises(ValueError, match="`dtype` must be 'float32' or 'float16'"):
        float_model(network(), SIZE, dtype="bfloat16")


def test_check_names_what_is_wrong(int8):
    model = read_tflite(int8)
    operator = model.subgraphs[0].operators[3]
    model.subgraphs[0].tensors[operator.outputs[0]].type = 0  # float32
    with pytest.raises(DataError, match="a tensor of float32 in an int8 file"):
        check_int8(write_tflite(model))
    model = read_tflite(int8)
    model.operatorCodes[0].customCode = b"FlexConv2D"
    with pytest.raises(DataError, match="no built-in operator"):
        check_int8(write_tflite(model))


@pytest.mark.shared
@pytest.mark.slow
def test_masks_of_the_trained_model_agree(shared):
    """The bundled model on test photos of other dates, at 128 pixels."""
    from ddunet_keras.images import resize_image

    dataset = open_dataset(shared / "data" / "swinyseg-base")
    split = make_split(dataset, "date", 0)
    model, size = DDUNet.from_preset("ddunet_c8"), (128, 128)
    data = quantize(model, size, calibration_images(dataset, split, size, 100))
    test = [dataset.load(dataset.find(name))[0] for name in split.test[::6]]
    test = np.stack([resize_image(image, size) for image in test])
    graph = build_graph(model, size)
    expected = [np.array(graph(image[None].astype("float32") - 128))[0] >= 0.5 for image in test]
    raw, *_ = run(data, test.astype("int16") - 128)
    assert ((raw >= 0) == np.stack(expected)).mean() >= 0.985
