"""Merged columns against the same network as it was, bit for bit on every kind of kernel."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from random_tflite import Network, photos, random_network, reference, u_net

from ddunet_keras.deploy.columns import merge_columns
from ddunet_keras.deploy.flatbuffer import operator_name, read_tflite, write_tflite
from ddunet_keras.deploy.verify import run_litert, run_tflm
from ddunet_keras.files import DataError


def merged(data):
    """The rewritten file, which every kind of kernel runs to the same bits."""
    changed = merge_columns(data)
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


@pytest.mark.parametrize("seed", range(12))
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


def test_concatenated_channels_are_merged_for_a_1x1_convolution_alone():
    net = Network(1, (8, 16), 4)
    joined = net.join(net.depthwise(net.source), net.source, net.conv(net.source, 2, 1))
    result = net.conv(joined, 4, 1)
    assert made(merged(net.data(result)), "CONCATENATION")[-1][2] < 16
    result = net.sum(net.conv(joined, 10, 1), joined)  # a second reader
    assert made(merged(net.data(result)), "CONCATENATION")[-1][2] == 16


def test_padding_is_of_whole_rows():
    net = Network(2, (6, 16), 4)
    pads = net.graph.constant(np.array([[0, 0], [2, 1], [0, 3], [0, 0]], np.int32))
    padded = net.add("PAD", [net.source, pads], (1, 9, 19, 4), schema.PadOptionsT())
    assert made(merged(net.data(padded)), "PAD") == [[1, 9, 1, 19 * 4]]
    net = Network(2, (6, 16), 4)
    channels = net.graph.constant(np.array([[0, 0], [0, 0], [0, 0], [1, 0]], np.int32))
    padded = net.add("PAD", [net.source, channels], (1, 6, 16, 5), schema.PadOptionsT())
    assert made(merged(net.data(padded)), "PAD") == [[1, 6, 16, 5]]


def test_a_reshaped_map_takes_the_bytes_of_any_form():
    net = Network(3, (8, 16), 4)
    shape = net.graph.constant(np.array([1, 4, 8, 16], np.int32))
    inputs = [net.conv(net.source, 4, 1), shape]
    rows = net.add("RESHAPE", inputs, (1, 4, 8, 16), schema.ReshapeOptionsT([1, 4, 8, 16]))
    changed = merged(net.data(net.conv(rows, 3, 1)))
    assert len(made(changed, "RESHAPE")) == 3  # into the first convolution, out of it, and the end


def test_a_file_of_two_graphs_is_refused():
    model = read_tflite(random_network(0))
    model.subgraphs = model.subgraphs * 2
    with pytest.raises(DataError, match="subgraph"):
        merge_columns(write_tflite(model))
