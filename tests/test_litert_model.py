"""Files are read whole or refused in one line; what is written is small and reads the same."""

import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from random_tflite import u_net
from tiny_tflite import tiny_tflite

from ddunet_keras.litert import model as model_module
from ddunet_keras.litert.model import (
    TFLiteError,
    constant,
    operator_name,
    read_tflite,
    tensor_bytes,
    write_tflite,
)
from ddunet_keras.litert.run import run_litert


def as_lists(part):
    """A schema object as nested lists and dicts, comparable with ==."""
    if isinstance(part, (list, tuple)):
        return [as_lists(entry) for entry in part]
    if isinstance(part, np.ndarray):
        return part.tolist()
    if hasattr(part, "__dict__"):
        return {name: as_lists(value) for name, value in vars(part).items()}
    return part.decode() if isinstance(part, bytes) else part


def unshared(model):
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_what_is_written_reads_the_same():
    model = read_tflite(u_net())
    again = read_tflite(write_tflite(model))
    assert as_lists(again) == as_lists(model)
    assert write_tflite(again) == write_tflite(model)


def test_equal_parts_are_written_once():
    model = read_tflite(u_net())
    data = write_tflite(model)
    assert len(data) < 0.85 * len(unshared(model))
    photo = np.random.default_rng(0).integers(-128, 128, (1, 32, 32, 3)).astype(np.int8)
    unshared_file, shared_file = (
        run_litert(file, photo, reference=True) for file in (unshared(model), data)
    )
    np.testing.assert_array_equal(unshared_file, shared_file)
    model.buffers += [schema.BufferT(np.arange(200, dtype=np.uint8)) for _ in range(5)]
    added = len(write_tflite(model)) - len(data)
    assert 200 <= added < 260


def test_constants_lie_at_multiples_of_16_bytes():
    model = read_tflite(u_net())
    data = write_tflite(model)
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) > 100:
            assert data.index(bytes(buffer.data)) % 16 == 0


def test_names_and_values():
    model = read_tflite(tiny_tflite())
    (graph,) = model.subgraphs
    first = graph.operators[0]
    assert [operator_name(model, op) for op in graph.operators] == ["CONV_2D", "LOGISTIC"]
    np.testing.assert_array_equal(
        constant(model, graph, first.inputs[1]), np.full((1, 1, 1, 3), 40)
    )
    bias = constant(model, graph, first.inputs[2])
    assert bias.dtype == np.int32 and bias.shape == (1,)
    assert constant(model, graph, first.outputs[0]) is None
    assert tensor_bytes(graph.tensors[graph.inputs[0]]) == 16 * 32 * 3
    model.operatorCodes[0] = schema.OperatorCodeT(32, b"Mine", 1, 32)
    assert operator_name(model, first) == "Mine"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"no model at all, only text", "not a .tflite file"),
        (bytes(8), "not a .tflite file"),
        (b"\x1c\0\0\0TFL3" + np.random.default_rng(0).bytes(500), "not a "),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(TFLiteError, match=rf"model\.tflite: .*{message}") as error:
        read_tflite(path)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(TFLiteError, match=r"none\.tflite: no such file"):
        read_tflite(tmp_path / "none.tflite")
    with pytest.raises(TFLiteError, match="is a folder"):
        read_tflite(tmp_path)
    (tmp_path / "model.tflite").write_bytes(tiny_tflite())
    assert len(read_tflite(str(tmp_path / "model.tflite")).subgraphs) == 1


def test_truncated_and_damaged_files_raise_nothing_else():
    data = tiny_tflite(output="mask", channels=3)
    for end in range(0, len(data), 97):
        with pytest.raises(TFLiteError):
            read_tflite(data[:end])
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(8, len(data), 3):
            damaged[place] = random.integers(256)
        try:
            read_tflite(bytes(damaged))
        except TFLiteError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def first_tensor(model):
    return model.subgraphs[0].tensors[0]


def first_operator(model):
    return model.subgraphs[0].operators[0]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda m: setattr(m, "version", 2), "schema version 2"),
        (lambda m: setattr(m, "subgraphs", []), "0 subgraphs"),
        (lambda m: setattr(m, "subgraphs", m.subgraphs * 65), "65 subgraphs"),
        (lambda m: setattr(m, "buffers", []), "no buffers"),
        (lambda m: setattr(m.buffers[1], "offset", 9), "outside the flatbuffer"),
        (lambda m: setattr(m.operatorCodes[0], "builtinCode", 999), "code 999 is unknown"),
        (lambda m: setattr(first_tensor(m), "buffer", 99), "points at no buffer"),
        (lambda m: setattr(first_tensor(m), "shape", [1, -4, 4, 3]), "has shape"),
        (lambda m: setattr(first_tensor(m), "shape", [2**20] * 3), "has shape"),
        (lambda m: setattr(m.subgraphs[0].tensors[1], "shape", [2, 1, 1, 3]), "asks for 6 bytes"),
        (lambda m: setattr(first_tensor(m).quantization, "scale", [np.nan]), "bad scale"),
        (lambda m: setattr(first_tensor(m).quantization, "scale", [1.0, 1.0]), "2 scales|zero po"),
        (lambda m: setattr(first_operator(m), "opcodeIndex", 9), "has no operator code"),
        (lambda m: setattr(first_operator(m), "inputs", [0, 1, 99]), "reads tensor 99"),
        (lambda m: setattr(first_operator(m), "inputs", [-1, 1, 2]), "reads tensor -1"),
        (lambda m: setattr(first_operator(m), "outputs", [99]), "has no tensor 99"),
        (lambda m: setattr(first_operator(m), "outputs", [1]), "which has a value"),
        (lambda m: m.subgraphs[0].operators.reverse(), "before it is there"),
        (lambda m: m.subgraphs[0].inputs.append(0), "one input twice"),
        (lambda m: setattr(m.subgraphs[0], "outputs", [77]), "has no tensor 77"),
        (lambda m: setattr(m.subgraphs[0], "operators", []), "computes nothing"),
        (lambda m: m.metadata.append(schema.MetadataT(b"x", 99)), "metadata"),
    ],
)
def test_inconsistent_files_are_refused(damage, message):
    model = read_tflite(tiny_tflite())
    damage(model)
    with pytest.raises(TFLiteError, match=message):
        read_tflite(write_tflite(model))


def shared_bomb(kind):
    """A small file whose tensors share one name, or one shape, of 100,000 elements."""
    model = read_tflite(tiny_tflite())
    first = first_tensor(model)
    if kind == "names":
        first.name = b"x" * 100_000
    else:
        first.shapeSignature = np.ones(100_000, np.int32)
    model.subgraphs[0].tensors += [first] * 40
    return write_tflite(model)


@pytest.mark.parametrize("kind", ["names", "shapes"])
def test_a_small_file_that_unpacks_to_all_memory_is_refused(kind, monkeypatch):
    data = shared_bomb(kind)
    assert len(data) < 10**6
    read_tflite(data)
    monkeypatch.setattr(model_module, "MAX_CLAIMED", 10**6)
    with pytest.raises(TFLiteError, match="names and lists take over"):
        read_tflite(data)


def test_a_file_of_too_many_parts_is_refused():
    model = read_tflite(tiny_tflite())
    model.buffers += [schema.BufferT()] * 20_000
    with pytest.raises(TFLiteError, match="parts, at most 20,000 are read"):
        read_tflite(write_tflite(model))


def test_a_bias_may_be_left_out():
    model = read_tflite(tiny_tflite())
    first_operator(model).inputs[2] = -1
    assert first_operator(read_tflite(write_tflite(model))).inputs[2] == -1


def test_imports_no_framework():
    code = (
        "import sys, ddunet_keras.litert.model, ddunet_keras.litert.schedule; "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'tf_keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
