"""What is rewritten in an int8 model, on small graphs made by hand."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_tflite import Graph

from ddunet_keras.deploy.passes import widen_softmaxes
from ddunet_keras.litert.model import operator_name, read_tflite, write_tflite
from ddunet_keras.litert.run import run_litert_in_child, run_tflm
from ddunet_keras.litert.soundness import check_int8, check_sound


def softmax_file(rows, values):
    """Bytes of a file that computes a Softmax over the columns of (1, rows, values, 1), and parsed
    what comes of it by `widen_softmaxes`."""
    graph, scale = Graph(), 0.1
    source = graph.tensor((1, rows, values, 1), "int8", scale)
    shape = graph.constant(np.array((1, 1, rows, values), np.int32))
    wide = graph.operator("RESHAPE", [source, shape], (1, 1, rows, values), "int8", scale)
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    result = graph.operator("SOFTMAX", [wide], (1, 1, rows, values), "int8", 1 / 256, -128, options)
    model = read_tflite(write_tflite(graph.model(source, result)))
    widen_softmaxes(model)
    return model


def kinds(model):
    return [operator_name(model, operator) for operator in model.subgraphs[0].operators]


def test_a_softmax_that_int8_kernels_can_compute_stays():
    assert kinds(softmax_file(2, 511)) == ["RESHAPE", "SOFTMAX"]


@pytest.mark.parametrize("values", [512, 4095])
def test_a_softmax_over_more_is_computed_all_the_same(values):
    model = softmax_file(3, values)
    assert kinds(model) == ["RESHAPE", "SOFTMAX", "QUANTIZE"]
    check_int8(model)
    check_sound(model)
    image = np.random.default_rng(0).integers(-128, 128, (1, 3, values, 1)).astype(np.int8)
    image[0, 0] = 5  # all alike
    image[0, 1] = -128
    image[0, 1, 7] = 20  # one far above the others
    outputs = run_litert_in_child(write_tflite(model), image, True)
    exponentials = np.exp(0.1 * image[0, ..., 0].astype(np.float64))
    expected = exponentials / exponentials.sum(axis=-1, keepdims=True)
    received = (outputs.reshape(3, values).astype(np.float64) + 128) / 256
    np.testing.assert_allclose(received, expected, atol=1 / 256)
    pytest.importorskip("tflite_micro")
    assert np.array_equal(run_tflm(write_tflite(model), image)[0], outputs)
