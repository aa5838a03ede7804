"""Running a file on LiteRT's kernels and on TFLM, and the processes that it happens in."""

import importlib.util
import os
import time

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from random_tflite import Network, photos, u_net
from tiny_tflite import gray_photo, logits, tiny_tflite

from ddunet_keras.litert.child import ChildError, NotInstalledError, in_child
from ddunet_keras.litert.model import (
    TFLiteError,
    constant,
    operator_name,
    read_tflite,
    set_metadata,
    write_tflite,
)
from ddunet_keras.litert.run import (
    first_difference,
    measure_arena,
    measure_latency,
    refused_operator,
    run_litert,
    run_litert_in_child,
    run_tflm,
    tflm_tensors,
)

GIB = 2**30


def edited(data, edit):
    """The file after `edit(model, graph)`."""
    model = read_tflite(data)
    edit(model, model.subgraphs[0])
    return write_tflite(model)


def find(model, kind, number=0):
    listed = [o for o in model.subgraphs[0].operators if operator_name(model, o) == kind]
    return listed[number]


# === LiteRT ===


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_photos_are_encoded_as_the_input_asks(io):
    photo = gray_photo((16, 32))
    data = tiny_tflite(io=io, output="logits")
    raw = run_litert(data, photo[None], reference=True).astype(float)
    found = {"int8": raw, "uint8": raw - 128, "float32": raw / 0.375}[io]
    np.testing.assert_allclose(found[0] * 0.375, logits(photo), atol=0.2)


def test_what_has_the_type_of_the_input_is_taken_as_it_is():
    photo = gray_photo((16, 32))[None]
    centred = (photo.astype(int) - 128).astype(np.int8)
    data = tiny_tflite()
    given = run_litert(data, centred, reference=True)
    np.testing.assert_array_equal(run_litert(data, photo, reference=True), given)
    np.testing.assert_array_equal(run_litert_in_child(data, photo, True), given)


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((16, 32, 3))])
def test_images_of_another_shape_are_refused(images):
    with pytest.raises(ValueError, match="images must have shape"):
        run_litert(tiny_tflite(), images, reference=True)


def test_latency_is_a_time_and_a_file_that_litert_refuses_has_none():
    assert 0 < measure_latency(tiny_tflite(), seconds=0.01) < 10_000

    def age(model, graph):
        """An operator of a version that does not exist."""
        model.operatorCodes[find(model, "CONV_2D").opcodeIndex].version = 99

    with pytest.raises(ChildError, match="CONV_2D"):
        measure_latency(edited(tiny_tflite(), age))


def test_the_operator_that_xnnpack_refuses_is_named():
    def shrink(model, graph):
        """As of a gate that calibration never saw open."""
        quantization = graph.tensors[find(model, "CONV_2D", 1).outputs[0]].quantization
        quantization.scale = quantization.scale * 1e-6

    data = edited(u_net(), shrink)
    refused, _ = in_child(refused_operator, data)
    assert "(CONV_2D)" in refused and "with scales" in refused
    assert in_child(refused_operator, u_net())[0] == "no operator by itself"


# === TensorFlow Lite Micro ===

needs_tflm = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="needs tflite_micro"
)


@needs_tflm
def test_tflm_agrees_bit_for_bit_and_measures_its_arena():
    data = u_net()
    images = photos(data)
    outputs, arena = run_tflm(data, images)
    np.testing.assert_array_equal(outputs, run_litert(data, images, reference=True))
    assert arena["total"] == arena["head"] + arena["tail"]
    assert arena["head"] >= 2 * 32 * 32 * 8  # two feature maps of eight channels
    assert measure_arena(data) == arena


@needs_tflm
def test_tflm_takes_the_arena_that_it_reports_and_not_less():
    data = u_net()
    images = photos(data, 1)
    outputs, arena = run_tflm(data, images)
    kib = arena["total"] / 1024
    again, _ = run_tflm(data, images, arena_kib=kib + 0.1)
    np.testing.assert_array_equal(outputs, again)
    with pytest.raises(ChildError, match=r"Failed to .*"):
        run_tflm(data, images, arena_kib=kib - 1)


@needs_tflm
def test_every_tensor_of_tflm_can_be_read():
    data = u_net()
    model = read_tflite(data)
    graph = model.subgraphs[0]
    (image,) = photos(data, 1)
    outputs, _ = run_tflm(data, image[None])
    values = tflm_tensors(data, [image[None]], graph.outputs)
    np.testing.assert_array_equal(values[graph.outputs[0]], outputs)
    assert constant(model, graph, graph.outputs[0]) is None


@needs_tflm
def test_an_operator_that_tflm_has_not_is_named():
    def rename(model, graph):
        code = model.operatorCodes[find(model, "RELU").opcodeIndex]
        code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.GELU, 127

    with pytest.raises(ChildError, match="GELU"):
        run_tflm(edited(u_net(), rename), photos(u_net(), 1))


@needs_tflm
def test_the_operator_that_tflm_computes_otherwise_is_named():
    """TFLM computes the SUM of int8 wrong over rows and columns, and says nothing."""
    net = Network(0, (16, 24))
    x = net.conv(net.source, 8)
    axes = net.graph.constant(np.array([1, 2], np.int32))
    total = net.add("SUM", [x, axes], (1, 1, 1, 8), schema.ReducerOptionsT(True), 3.0, 0)
    data = net.data(net.sum(x, total))
    assert "operator 1 (SUM)" in first_difference(data, list(photos(data, 1)[None]))


@needs_tflm
def test_a_memory_plan_that_overlaps_is_named():
    def plan(model, graph):
        offsets = [-1] * len(graph.tensors)
        for operator in graph.operators:
            offsets[operator.outputs[0]] = 0
        values = np.array([1, 0, len(offsets), *offsets], "<i4")
        set_metadata(model, b"OfflineMemoryAllocation", values.tobytes())

    data = edited(u_net(), plan)
    images = photos(data, 1)
    assert (run_tflm(data, images)[0] != run_litert(data, images, reference=True)).any()
    assert "memory plan" in first_difference(data, [images])


def test_without_tflm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"pip install '\.\[mcu\]'"):
        run_tflm(tiny_tflite(), gray_photo((16, 32))[None])


def test_inputs_that_are_too_large_are_not_tried():
    net = Network(0, (20_000, 20_000))
    data = net.data(net.relu(net.source))
    with pytest.raises(TFLiteError, match="its inputs take"):
        measure_arena(data)


# === Child processes ===


def test_a_child_may_die_or_raise():
    with pytest.raises(ChildError, match="SIGABRT"):
        in_child(os.abort)
    with pytest.raises(ChildError, match="invalid literal"):
        in_child(int, "x")
    assert in_child(int, "7") == (7, "")


def test_a_child_is_stopped_in_time():
    with pytest.raises(ChildError, match=r"after 0\.5 seconds"):
        in_child(time.sleep, 60, timeout=0.5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_child_gets_no_more_memory():
    with pytest.raises(ChildError, match=r"Unable to allocate|MemoryError"):
        in_child(np.ones, 2 * GIB, memory=2 * GIB)


def test_what_a_child_prints_comes_back():
    assert in_child(print, "heard") == (None, "heard\n")
