"""Dilated depthwise convolutions as plain ones: the same bits, on LiteRT and on TFLM."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from random_tflite import Network, photos, reference

from ddunet_keras.litert.arena_size import arena_size
from ddunet_keras.litert.cost import CORES, instructions
from ddunet_keras.litert.dilation import plain_depthwise
from ddunet_keras.litert.esp_nn import ESP32_S3
from ddunet_keras.litert.memory import HOST
from ddunet_keras.litert.model import (
    TFLiteError,
    add_constant,
    operator_name,
    read_tflite,
    write_tflite,
)
from ddunet_keras.litert.nodes import nodes
from ddunet_keras.litert.run import run_tflm
from ddunet_keras.litert.schedule import fit_memory
from ddunet_keras.litert.soundness import check_sound

FORMS = [("cortex-m55", False), ("esp32-s3", True)]


def kinds(model):
    graph = model.subgraphs[0]
    return [operator_name(model, operator) for operator in graph.operators]


def dilated(size=(48, 48), channels=8, dilations=(2, 3, 4)):
    net = Network(0, size, 3)
    x = net.conv(net.source, channels, 1)
    for dilation in dilations:
        x = net.depthwise(x, dilation)
    return net.data(x)


@pytest.mark.parametrize(("core", "batched"), FORMS)
@pytest.mark.parametrize("size", [(48, 48), (50, 46), (33, 64)])  # multiples of 2, 3 and 4, or not
def test_the_same_bits(core, batched, size):
    data = dilated(size)
    expected = reference(data)
    assert len(np.unique(expected)) > 9
    model = read_tflite(data)
    assert plain_depthwise(model, CORES[core], batched) == 3
    for number, operator in enumerate(model.subgraphs[0].operators):
        if kinds(model)[number] == "DEPTHWISE_CONV_2D":
            assert operator.builtinOptions.dilationHFactor == 1
            source = model.subgraphs[0].tensors[operator.inputs[0]]
            assert (source.shape[0] == 1) != batched  # CMSIS-NN's fast kernel takes no batch
    changed = write_tflite(fit_memory(model))
    np.testing.assert_array_equal(reference(changed), expected)
    np.testing.assert_array_equal(run_tflm(changed, photos(data))[0], expected)


@pytest.mark.parametrize(("core", "batched"), FORMS)
def test_it_costs_less_in_time(core, batched):
    data = dilated()
    before = instructions(nodes(read_tflite(data)), CORES[core])
    model = read_tflite(data)
    plain_depthwise(model, CORES[core], batched)
    assert instructions(nodes(model), CORES[core]) < 0.5 * before


def test_batches_shrink_the_scratch_memory_of_esp_nn():
    data = dilated((64, 64), 4, (4,))
    model = read_tflite(data)
    plain_depthwise(model, CORES["esp32-s3"], batched=True)
    before, after = (arena_size(fit_memory(m), ESP32_S3) for m in (read_tflite(data), model))
    scratch = [
        ESP32_S3.scratch_bytes(model, operator)
        for operator, kind in zip(model.subgraphs[0].operators, kinds(model), strict=True)
        if kind == "DEPTHWISE_CONV_2D"
    ]
    assert max(scratch) < before.scratch / 12  # a map of 1/16, and what does not shrink
    assert after.head < before.head


@pytest.mark.parametrize(("core", "batched"), FORMS)
@pytest.mark.parametrize(
    ("size", "channels"),
    [((8, 8), 4), ((8, 8), 16)],
)
def test_small_maps_are_not_worth_the_memory(core, batched, size, channels):
    data = dilated(size, channels, (2,))
    model = read_tflite(data)
    assert plain_depthwise(model, CORES[core], batched) == 0
    assert write_tflite(model) == write_tflite(read_tflite(data))


@pytest.mark.parametrize(
    "change",
    [
        {"dilationHFactor": 1},
        {"padding": schema.Padding.VALID},
        {"strideH": 2, "strideW": 2},
        {"dilationHFactor": 99, "dilationWFactor": 99},
    ],
)
def test_others_stay_as_they_are(change):
    """Of unequal dilations, with strides, without padding, or wider than the map."""
    model = read_tflite(dilated(dilations=(2,)))
    operator = model.subgraphs[0].operators[kinds(model).index("DEPTHWISE_CONV_2D")]
    for name, value in change.items():
        setattr(operator.builtinOptions, name, value)
    assert plain_depthwise(model, CORES["cortex-m55"], batched=False) == 0


def test_the_arena_of_the_form_is_reckoned():
    """The persistent allocations of the added operators, as TFLM takes them."""
    data = dilated()
    model = read_tflite(data)
    plain_depthwise(model, CORES["cortex-m55"], batched=False)
    model = fit_memory(model)
    taken = run_tflm(write_tflite(model), photos(data))[1]
    size = arena_size(model, HOST)
    assert size.head == taken["head"]
    assert 0 <= size.tail - taken["tail"] < 0.1 * taken["tail"]


def rewritten():
    model = read_tflite(dilated((33, 64)))
    plain_depthwise(model, CORES["esp32-s3"], batched=True)
    return model


def test_the_form_is_sound():
    check_sound(rewritten())


@pytest.mark.parametrize("kind", ["SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"])
@pytest.mark.parametrize(
    ("place", "values", "words"),
    [
        (1, [0, 2], "its block is"),
        (1, [2**30, 2**30], "its block is"),
        (1, [2, 3], "no multiples|not of|output has shape"),
        (2, [[0, -1], [0, 0]], "its ends"),
        (2, [[0, 2**16], [0, 0]], "its ends"),
        (2, [[0, 1], [0, 1]], "no multiples|output has shape"),
        (2, [[0, 60000], [0, 0]], "output has shape|nothing is left"),
    ],
)
def test_crafted_blocks_are_refused(kind, place, values, words):
    model = rewritten()
    graph = model.subgraphs[0]
    operator = graph.operators[kinds(model).index(kind)]
    operator.inputs[place] = add_constant(model, graph, np.array(values, np.int32))
    with pytest.raises(TFLiteError, match=words):
        check_sound(model)
