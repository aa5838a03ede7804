"""Packed columns against the same network as it was, bit for bit on every kind of kernel."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from marks import slow_case
from random_tflite import Network, photos, random_network, reference, u_net

from ddunet_keras.litert.columns import merge_columns
from ddunet_keras.litert.model import TFLiteError, operator_name, read_tflite, write_tflite
from ddunet_keras.litert.run import run_litert, run_tflm


def rewritten(data):
    """The file of the model with columns packed."""
    model = read_tflite(data)
    merge_columns(model)
    return write_tflite(model)


def merged(data):
    """The rewritten file, which every kind of kernel runs to the same bits."""
    changed = rewritten(data)
    expected = reference(data)
    assert len(np.unique(expected)) > 9
    np.testing.assert_array_equal(reference(changed), expected)
    ours, before = (run_litert(file, photos(data), reference=False) for file in (changed, data))
    np.testing.assert_array_equal(ours, before)
    np.testing.assert_array_equal(run_tflm(changed, photos(data))[0], expected)
    return changed


def made(data, name):
    """Shapes of the outputs of one kind of operator."""
    model = read_tflite(data)
    graph = model.subgraphs[0]
    operators = [o for o in graph.operators if operator_name(model, o) == name]
    return [graph.tensors[operator.outputs[0]].shape for operator in operators]


def scaled(net, weight, axis):
    """Gives each filter of a kernel, and its bias, a scale of its own."""
    for index in (weight, weight + 1):
        tensor = net.graph.tensors[index]
        count = tensor.shape[axis if index == weight else 0]
        factors = np.linspace(0.5, 1.5, count)
        tensor.quantization.scale = (tensor.quantization.scale[0] * factors).astype("float32")
        tensor.quantization.zeroPoint = np.zeros(count, "int64")
        tensor.quantization.quantizedDimension = axis if index == weight else 0


@pytest.mark.parametrize("seed", [*range(4), *map(slow_case, range(4, 12))])
def test_any_network_gives_the_same_bits(seed):
    merged(random_network(seed))


def test_a_network_of_the_kind_it_is_made_for_is_merged_throughout():
    changed = merged(u_net())
    merged_rows = [shape for shape in made(changed, "DEPTHWISE_CONV_2D") if shape[3] >= 16]
    assert len(merged_rows) == len(made(changed, "DEPTHWISE_CONV_2D"))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(("channels", "filters"), [(3, 8), (8, 1), (4, 3)])
def test_a_convolution_of_few_filters_computes_several_columns_at_once(size, channels, filters):
    net = Network(size, (6, 16), channels)
    result = net.conv(net.source, filters, size)
    scaled(net, result - 2, 0)
    ((_, h, w, c),) = made(merged(net.data(result)), "CONV_2D")
    assert h == 6 and w < 16 and w * c == 16 * filters


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [4, 8])
def test_a_depthwise_convolution_of_few_channels_fills_the_lanes(dilation, channels):
    net = Network(dilation, (12, 16), channels)
    result = net.depthwise(net.source, dilation)
    scaled(net, result - 2, 3)
    changed = merged(net.data(result))
    ((_, h, w, c),) = made(changed, "DEPTHWISE_CONV_2D")
    assert h == 12 and w * c == 16 * channels and c >= 16
    # side by side where the columns that are merged do not divide the distance of the taps
    assert bool(made(changed, "CONCATENATION")) == (dilation % (c // channels) != 0)


def test_wide_maps_and_odd_widths_stay_as_they_are():
    net = Network(0, (8, 16), 32)
    wide = net.data(net.conv(net.depthwise(net.source), 32, 1))
    net = Network(0, (8, 15), 8)
    odd = net.data(net.conv(net.depthwise(net.source), 8))
    for data in (wide, odd):
        changed = merged(data)
        for name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            assert made(changed, name) == made(data, name)
        assert not made(changed, "RESHAPE")


def test_a_1x1_convolution_reads_concatenated_maps_below_each_other():
    for channels in (4, 40):
        net = Network(1, (8, 16), channels)
        joined = net.join(net.depthwise(net.source), net.source, net.conv(net.source, channels, 1))
        changed = merged(net.data(net.conv(joined, 5, 1)))
        _, h, w, c = made(changed, "CONCATENATION")[-1]
        assert (h, w * c) == (24, 16 * channels)


def test_few_channels_are_concatenated_by_a_convolution():
    net = Network(2, (8, 16), 4)
    joined = net.join(net.depthwise(net.source), net.source)
    data = net.data(net.sum(net.depthwise(joined), joined))
    changed = merged(data)
    assert len(made(changed, "CONV_2D")) == 1 and not made(data, "CONV_2D")
    # as they are: many channels, and maps of unequal channels
    for channels, others in ((40, 40), (4, 3)):
        net = Network(3, (8, 16), channels)
        joined = net.join(net.source, net.conv(net.source, others))
        changed = merged(net.data(net.sum(joined, joined)))
        assert [1, 8, 16, channels + others] in made(changed, "CONCATENATION")


def test_a_copied_concatenation_is_read_by_any_convolution():
    for size, stride in ((3, 1), (3, 2), (1, 1), (1, 2)):
        net = Network(2, (8, 16), 4)
        joined = net.join(net.depthwise(net.source), net.source)
        twin = net.conv(net.relu(joined), 5, size, stride)
        total = net.sum(net.conv(joined, 5, size, stride), twin)
        changed = merged(net.data(total))
        assert len(made(changed, "CONV_2D")) == 3


def dynamic_head(classes=1, shuffled=False, zero_point=0, size=(6, 16), channels=8):
    """Products with a matrix that is computed, one for each of nine taps, and their shifted sum."""
    net = Network(4, size, channels)
    h, w = size

    def reshaped(x, shape, **kept):
        to = net.graph.constant(np.array(shape, np.int32))
        return net.add("RESHAPE", [x, to], shape, schema.ReshapeOptionsT(list(shape)), **kept)

    axes = net.graph.constant(np.array([1, 2], np.int32))
    means = net.add("MEAN", [net.source, axes], (1, 1, 1, channels), schema.ReducerOptionsT(True))
    taps, kept = 9 * classes, {"scale": 0.02, "zero": zero_point}
    matrix = net.conv(means, channels * taps, 1)
    net.graph.tensors[matrix].quantization.zeroPoint = [zero_point]
    net.graph.tensors[matrix].quantization.scale = [0.02]
    matrix = reshaped(matrix, (1, 1, channels, taps), **kept)
    rows = reshaped(net.conv(net.source, channels, 1), (1, 1, h * w, channels))
    options = schema.BatchMatMulOptionsT(False, False, False)
    products = net.add("BATCH_MATMUL", [rows, matrix], (1, 1, h * w, taps), options)
    products = reshaped(products, (1, h, w, taps))
    kernel = np.zeros((classes, 3, 3, taps), np.int8)
    for row, column, label in np.ndindex(3, 3, classes):
        kernel[label, row, column, (3 * row + column) * classes + label] = 127
    kernel = kernel[:, ::-1] if shuffled else kernel
    weight = net.graph.constant(np.ascontiguousarray(kernel), 1 / 127)
    bias = net.graph.constant(np.arange(classes, dtype=np.int32), 0.05 / 127)
    options = schema.Conv2DOptionsT(schema.Padding.SAME, 1, 1, 0, 1, 1)
    summed = net.add("CONV_2D", [products, weight, bias], (1, h, w, classes), options, scale=0.2)
    return net.data(net.relu(summed))


@pytest.mark.parametrize("channels", [4, 8])
def test_the_products_of_a_dynamic_head_get_a_plane_for_each_row_of_taps(channels):
    data = dynamic_head(channels=channels)
    changed = merged(data)
    ((_, planes, pixels, values),) = made(changed, "BATCH_MATMUL")
    assert planes == 3 and pixels * values == 6 * 16 * 3
    # as it is: a sum with its taps at other places, and a matrix whose zeros are none
    for other in (dynamic_head(shuffled=True), dynamic_head(zero_point=2)):
        assert made(merged(other), "BATCH_MATMUL") == made(other, "BATCH_MATMUL")
    merged(dynamic_head(classes=3))


def test_what_is_read_outside_stays_as_it_is():
    model = read_tflite(dynamic_head())
    graph = model.subgraphs[0]
    (product,) = (o for o in graph.operators if operator_name(model, o) == "BATCH_MATMUL")
    graph.outputs = [*graph.outputs, *product.outputs]
    data = write_tflite(model)
    changed = rewritten(data)
    assert made(changed, "BATCH_MATMUL") == made(data, "BATCH_MATMUL")
    np.testing.assert_array_equal(reference(changed), reference(data))


def test_a_convolution_of_groups_stays_as_it_is():
    net = Network(6, (6, 16), 4)
    shape = (1, 6, 16, 4)
    options = schema.Conv2DOptionsT(schema.Padding.SAME, 1, 1, 0, 1, 1)
    result = net.add("CONV_2D", [net.source, *net.weights((4, 3, 3, 2), 18, 4)], shape, options)
    data = net.data(result)
    changed = rewritten(data)
    assert made(changed, "CONV_2D") == made(data, "CONV_2D")
    np.testing.assert_array_equal(reference(changed), reference(data))


def test_padding_is_of_whole_rows():
    net = Network(2, (6, 16), 4)
    pads = net.graph.constant(np.array([[0, 0], [2, 1], [0, 3], [0, 0]], np.int32))
    padded = net.add("PAD", [net.source, pads], (1, 9, 19, 4), schema.PadOptionsT())
    assert made(merged(net.data(padded)), "PAD") == [[1, 9, 1, 19 * 4]]
    net = Network(2, (6, 16), 4)
    channels = net.graph.constant(np.array([[0, 0], [0, 0], [0, 0], [1, 0]], np.int32))
    padded = net.add("PAD", [net.source, channels], (1, 6, 16, 5), schema.PadOptionsT())
    assert made(merged(net.data(padded)), "PAD") == [[1, 6, 16, 5]]


def test_padding_is_left_to_the_convolution_where_its_map_is_not_merged():
    net = Network(0, (8, 16), 16)
    assert made(merged(net.data(net.down(net.source))), "PAD") == [[1, 10, 18, 16]]
    net = Network(0, (8, 16), 8)
    narrow = net.conv(net.source, 8, size=1)  # whose columns are merged
    assert made(merged(net.data(net.down(narrow))), "PAD") == [[1, 10, 1, 18 * 8]]


def test_a_reshaped_map_takes_the_bytes_of_any_form():
    net = Network(3, (8, 16), 4)
    shape = net.graph.constant(np.array([1, 4, 8, 16], np.int32))
    inputs = [net.conv(net.source, 4, 1), shape]
    rows = net.add("RESHAPE", inputs, (1, 4, 8, 16), schema.ReshapeOptionsT([1, 4, 8, 16]))
    changed = merged(net.data(net.conv(rows, 3, 1)))
    assert len(made(changed, "RESHAPE")) == 3  # into the first convolution, out of it, and the end


def crossing(data):
    """How many maps LiteRT hands from one piece that XNNPACK computes to another."""
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    pieces = [o for o in interpreter._get_ops_details() if o["op_name"] == "DELEGATE"]
    shapes = {d["index"]: d["shape"] for d in interpreter.get_tensor_details()}
    given = {index for piece in pieces for index in piece["outputs"]}
    taken = {index for piece in pieces for index in piece["inputs"]}
    assert len(pieces) == 2
    return sum(shapes[index][1] > 1 for index in given & taken)


def gated_branches(branches):
    """A sum of branches, each multiplied by the Softmax of an average."""
    net = Network(0, (8, 16), 32)
    source = net.conv(net.source, 32, 1)
    axes = net.graph.constant(np.array([1, 2], np.int32))
    mean = net.add("MEAN", [source, axes], (1, 1, 1, 32), schema.ReducerOptionsT(True))
    scale = {"scale": 1 / 256, "zero": -128}
    gate = net.add("SOFTMAX", [mean], (1, 1, 1, 32), schema.SoftmaxOptionsT(1.0), **scale)
    total = source
    for _ in range(branches):
        inputs = [net.depthwise(source), gate]
        product = net.add("MUL", inputs, net.shape(source), schema.MulOptionsT())
        total = net.sum(total, product)
    return net.data(total)


@pytest.mark.parametrize("branches", [2, 5, 40])  # 40: numbers of more than seven bits
def test_what_stands_after_a_softmax_waits_for_it(branches):
    data = gated_branches(branches)
    assert crossing(data) == branches + 1
    assert crossing(merged(data)) == 1


def test_a_file_of_two_graphs_is_refused():
    model = read_tflite(random_network(0))
    model.subgraphs = model.subgraphs * 2
    with pytest.raises(TFLiteError, match="subgraph"):
        merge_columns(model)
