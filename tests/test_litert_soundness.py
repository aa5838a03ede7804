"""A file that LiteRT would not survive is refused; what conversion makes is let through.

Each case stands for a kind of crafted file that ended the process, hung it or took all memory.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from random_tflite import Network, random_network, u_net
from tiny_tflite import tiny_tflite

from ddunet_keras.litert.model import (
    TFLiteError,
    add_operator,
    constant,
    operator_name,
    read_tflite,
)
from ddunet_keras.litert.shapes import softmax
from ddunet_keras.litert.soundness import MAX_OPERATORS, check_int8, check_sound

MODELS = sorted((Path(__file__).parents[1] / "tflite" / "models").glob("*.tflite"))


def find(model, kind, number=0):
    listed = [o for o in model.subgraphs[0].operators if operator_name(model, o) == kind]
    return listed[number]


def tensor(model, index):
    return model.subgraphs[0].tensors[index]


def output(model, kind):
    return tensor(model, find(model, kind).outputs[0])


def weights(model, kind="CONV_2D"):
    return tensor(model, find(model, kind).inputs[1])


# === What is let through ===


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_published_files_are_sound(path):
    check_sound(read_tflite(path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("output", ["probability", "logits", "mask"])
@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_every_input_and_output_is_sound(io, output, channels):
    check_sound(read_tflite(tiny_tflite(io=io, output=output, channels=channels)))


@pytest.mark.parametrize("seed", range(12))
def test_the_shapes_of_random_networks_are_what_the_rules_derive(seed):
    check_sound(read_tflite(random_network(seed)))


def test_an_operator_for_the_edge_tpu_is_let_through():
    model = read_tflite(u_net())
    code = model.operatorCodes[find(model, "RELU").opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"edgetpu-custom-op"
    check_sound(model)
    code.customCode = b"ethos-u"
    with pytest.raises(TFLiteError, match="Ethos-U"):
        check_sound(model)


# === What is refused ===


def set_to(path, value):
    """An edit that sets an attribute of what `path` finds in the model."""
    *found, name = path

    def edit(model):
        setattr(found[0](model, *found[1:]), name, value)

    return edit


def quantized(path, **values):
    *found, _ = (*path, None)

    def edit(model):
        for name, value in values.items():
            setattr(found[0](model, *found[1:]).quantization, name, np.asarray(value))

    return edit


def another_operator(model):
    find(model, "RELU").opcodeIndex = add_operator(model, "RFFT2D", [], []).opcodeIndex


def two_subgraphs(model):
    model.subgraphs = model.subgraphs * 2


def long_chain(model):
    graph = model.subgraphs[0]
    for _ in range(MAX_OPERATORS):
        graph.tensors.append(graph.tensors[graph.outputs[0]])
        last = len(graph.tensors) - 1
        graph.operators.append(add_operator(model, "RELU", graph.outputs, [last]))
        graph.outputs = [last]


def as_constant(model, kind, place, values):
    """Gives an input of an operator other values."""
    graph = model.subgraphs[0]
    index = find(model, kind).inputs[place]
    array = constant(model, graph, index)
    changed = np.broadcast_to(np.asarray(values, array.dtype), array.shape)
    graph.tensors[index].buffer = len(model.buffers)
    model.buffers.append(schema.BufferT(np.frombuffer(changed.tobytes(), np.uint8)))


def computed_weights(model):
    find(model, "CONV_2D").inputs[1] = find(model, "ADD").outputs[0]


def unscaled(model):
    output(model, "CONCATENATION").quantization = None


CASES = {
    "another operator": (another_operator, r"\(RFFT2D\): no operator of a segmenter"),
    "a second subgraph": (two_subgraphs, "2 subgraphs, not one"),
    "a long chain": (long_chain, "at most 2,000 run"),
    "another type": (set_to((output, "ADD", "type"), schema.TensorType.INT16), "int16"),
    "no type of NumPy's": (set_to((output, "ADD", "type"), schema.TensorType.STRING), "of type"),
    "another shape": (set_to((output, "ADD", "shape"), [1, 32, 32, 9]), "output has shape"),
    "an empty shape": (set_to((output, "ADD", "shape"), [1, 0, 32, 8]), "is not fixed"),
    "a shape that is not fixed": (
        set_to((output, "ADD", "shapeSignature"), np.array([-1, 32, 32, 8])),
        "is not fixed",
    ),
    "a variable": (set_to((output, "ADD", "isVariable"), True), "is sparse or a variable"),
    "no scale": (unscaled, "has no scale"),
    "weights without a scale": (
        lambda model: setattr(weights(model), "quantization", None),
        "has no scale",
    ),
    "a scale of zero": (quantized((output, "RELU"), scale=[0.0]), "has scale 0"),
    "a tiny scale": (quantized((output, "RELU"), scale=[1e-30]), "has scale 1e-30"),
    "scales that an ADD cannot bring together": (
        quantized((output, "ADD"), scale=[1e-8]),
        "times too small",
    ),
    "a sum of other scales": (
        quantized((output, "CONCATENATION"), scale=[7.0]),
        "different scales",
    ),
    "weights far too large": (quantized((weights,), scale=[1e5]), "scales' product"),
    "scales of another axis": (
        quantized((weights,), scale=np.ones(3), zeroPoint=np.zeros(3, int), quantizedDimension=3),
        "not one for each filter",
    ),
    "weights with zero points": (quantized((weights,), zeroPoint=[3]), "have zero points"),
    "a zero point out of range": (
        quantized((output, "RELU"), zeroPoint=[2**40]),
        "out of its range",
    ),
    "no zero point": (
        lambda model: setattr(output(model, "RELU").quantization, "zeroPoint", None),
        "has no zero point",
    ),
    "computed weights": (computed_weights, "input 1 is not constant"),
    "options of another operator": (
        lambda model: setattr(find(model, "CONV_2D"), "builtinOptions", schema.Pool2DOptionsT()),
        "not Conv2DOptions",
    ),
    "an unknown activation": (
        lambda model: setattr(find(model, "ADD").builtinOptions, "fusedActivationFunction", 99),
        "activation function is number 99",
    ),
    "a dilation without end": (
        lambda model: setattr(
            find(model, "DEPTHWISE_CONV_2D").builtinOptions, "dilationWFactor", 2**31 - 1
        ),
        "dilation 2147483647",
    ),
    "a dilation of zero": (
        lambda model: setattr(find(model, "CONV_2D").builtinOptions, "dilationHFactor", 0),
        "dilation 0",
    ),
    "a stride of zero": (
        lambda model: setattr(find(model, "CONV_2D").builtinOptions, "strideW", 0),
        "its stride is 0",
    ),
    "no options": (
        lambda model: setattr(find(model, "CONV_2D"), "builtinOptions", None),
        "its options are None",
    ),
    "no weights": (
        lambda model: find(model, "CONV_2D").inputs.__setitem__(1, -1),
        "an input is left out",
    ),
    "a lone image": (lambda model: find(model, "CONV_2D").inputs.__delitem__(slice(1, 3)), "known"),
    "no inputs": (lambda model: setattr(find(model, "RELU"), "inputs", []), "-> int8"),
    "no bias": (lambda model: find(model, "DEPTHWISE_CONV_2D").inputs.pop(), "int8 int8 -> int8"),
    "negative paddings": (lambda model: as_constant(model, "PAD", 1, -1), "paddings do not fit"),
    "axes out of range": (lambda model: as_constant(model, "MEAN", 1, 9), "its axis is"),
    "another size": (lambda model: as_constant(model, "RESIZE_BILINEAR", 1, 10**9), "has shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_litert_does_not_survive_is_refused_in_one_line(case):
    edit, message = CASES[case]
    model = read_tflite(u_net())
    edit(model)
    with pytest.raises(TFLiteError, match=message) as caught:
        check_sound(model)
    assert len(str(caught.value).splitlines()) == 1


def test_a_comparison_is_of_scales_below_1():
    model = read_tflite(tiny_tflite(output="mask"))
    output(model, "CONV_2D").quantization.scale = np.array([1.0])
    with pytest.raises(TFLiteError, match="not below 1"):
        check_sound(model)


def test_the_class_is_of_the_type_that_the_options_say():
    model = read_tflite(tiny_tflite(output="mask", channels=3))
    find(model, "ARG_MAX").builtinOptions.outputType = schema.TensorType.INT64
    with pytest.raises(TFLiteError, match="its options say type 4"):
        check_sound(model)


def test_feature_maps_that_take_all_memory_are_refused():
    net = Network(0, (8192, 8192))
    with pytest.raises(TFLiteError, match="over 1,024 MiB at operator 0"):
        check_sound(read_tflite(net.data(net.conv(net.source, 16, 1))))


def test_a_kernel_that_takes_all_memory_is_refused():
    net = Network(0, (512, 512), 1)
    with pytest.raises(TFLiteError, match="to work in"):
        check_sound(read_tflite(net.data(net.conv(net.source, 1, 256))))


def test_work_without_end_is_refused():
    net = Network(0, (1024, 1024), 16)
    x = net.source
    for _ in range(100):
        x = net.conv(x, 16)
    with pytest.raises(TFLiteError, match="multiply-accumulates"):
        check_sound(read_tflite(net.data(x)))


# === Integers alone ===


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_int8_files_have_the_input_and_output_asked_for(io):
    model = read_tflite(tiny_tflite(io=io))
    check_int8(model, io)
    other = "float32" if io == "int8" else "int8"
    with pytest.raises(TFLiteError, match=f"should be {other}, this is {io}"):
        check_int8(model, other)


def test_a_float_inside_and_a_foreign_operator_are_no_int8_file():
    model = read_tflite(u_net())
    output(model, "ADD").type = schema.TensorType.FLOAT32
    with pytest.raises(TFLiteError, match="a tensor of float32 in an int8 file"):
        check_int8(model)
    model = read_tflite(u_net())
    model.operatorCodes[0] = schema.OperatorCodeT(32, b"Mine", 1, 32)
    with pytest.raises(TFLiteError, match="Mine is no built-in operator"):
        check_int8(model)


@pytest.mark.parametrize(
    "kind, length, sound",
    [
        ("INT8", 511, True),
        ("INT8", 512, False),
        ("INT16", 4095, True),
        ("INT16", 4096, False),
        ("FLOAT32", 4096, True),
    ],
)
def test_a_softmax_over_many_values_ends_the_process(kind, length, sound):
    shape = [1, 1, 4, length]
    output = SimpleNamespace(type=getattr(schema.TensorType, kind))
    node = SimpleNamespace(shape=lambda number: shape, output=output)
    if sound:
        assert softmax(node) == [shape]
        return
    with pytest.raises(TFLiteError, match=f"over {length} values; {kind.lower()} kernels take"):
        softmax(node)
