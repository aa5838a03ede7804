"""The report of what a file costs, on hand-made files of every kind."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from PIL import Image

from ddunet_keras.litert.boards import BOARDS
from ddunet_keras.litert.cost import CORES, instructions
from ddunet_keras.litert.edge_tpu import edge_tpu_check
from ddunet_keras.litert.inspect import inspect_model
from ddunet_keras.litert.model import DTYPES, TFLiteError, read_tflite, write_tflite
from ddunet_keras.litert.nodes import macs, nodes
from ddunet_keras.litert.vela import ACCELERATORS, run_vela

MODELS = Path(__file__).parents[1] / "tflite" / "models"
CODES = {dtype.name: code for code, dtype in DTYPES.items()}


class File:
    """Builds a `.tflite` file by hand."""

    def __init__(self):
        self.model = schema.ModelT()
        self.model.version, self.model.buffers = 3, [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(self, shape, dtype="int8", data=None, scale=0.05, name=""):
        tensor = schema.TensorT()
        tensor.shape, tensor.type = list(shape), CODES[dtype]
        tensor.name = name or f"t{len(self.graph.tensors)}"
        tensor.buffer = 0
        if dtype in ("int8", "uint8", "int16", "int32"):
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.array([scale], "f4")
            tensor.quantization.zeroPoint = np.array([0])
        if data is not None:
            buffer = schema.BufferT()
            values = np.ascontiguousarray(np.broadcast_to(data, shape), dtype)
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, kind, inputs, outputs, options=None, **values):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind, schema.BuiltinOperator.CUSTOM)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 3 if "CONV_2D" in kind else 2 if kind in ("ADD", "LOGISTIC") else 1
        if code.builtinCode == schema.BuiltinOperator.CUSTOM:
            code.customCode = kind
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes)
        self.model.operatorCodes.append(code)
        operator.inputs, operator.outputs = inputs, outputs
        if kind in USUAL:
            options, values = USUAL[kind]["options"], {**USUAL[kind], **values}
            del values["options"]
        if options:
            operator.builtinOptions = getattr(schema, f"{options}T")()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            for name, value in values.items():
                assert hasattr(operator.builtinOptions, name)
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)

    def write(self, inputs, outputs):
        self.graph.inputs, self.graph.outputs = inputs, outputs
        return write_tflite(self.model)


CONV = {
    "options": "Conv2DOptions",
    "strideW": 1,
    "strideH": 1,
    "dilationWFactor": 1,
    "dilationHFactor": 1,
}
DEPTHWISE = {**CONV, "options": "DepthwiseConv2DOptions", "depthMultiplier": 1}
USUAL = {
    "CONV_2D": CONV,
    "DEPTHWISE_CONV_2D": DEPTHWISE,
    "CONCATENATION": {"options": "ConcatenationOptions", "axis": 3},
    "RESIZE_BILINEAR": {"options": "ResizeBilinearOptions"},
}
"""Options of operators that have none of their own in a test: files without them are not sound."""


def small(channels=4, size=(8, 12), **options):
    """int8: conv 3x3, depthwise 3x3, add, conv 1x1, sigmoid."""
    file = File()
    h, w = size
    image = file.tensor((1, h, w, 3), scale=1.0, name="image")
    kernel = file.tensor((channels, 3, 3, 3), data=1, scale=0.01)
    bias = file.tensor((channels,), "int32", data=0, scale=0.01)
    x = file.tensor((1, h, w, channels), name="stem")
    file.operator("CONV_2D", [image, kernel, bias], [x], **{**CONV, **options})
    kernel = file.tensor((1, 3, 3, channels), data=2, scale=0.01)
    bias = file.tensor((channels,), "int32", data=0, scale=0.05 * 0.01)
    y = file.tensor((1, h, w, channels), name="branch")
    file.operator("DEPTHWISE_CONV_2D", [x, kernel, bias], [y], **DEPTHWISE)
    z = file.tensor((1, h, w, channels), name="sum")
    file.operator("ADD", [x, y], [z], "AddOptions")
    kernel = file.tensor((1, 1, 1, channels), data=3, scale=0.01)
    bias = file.tensor((1,), "int32", data=0, scale=0.05 * 0.01)
    logits = file.tensor((1, h, w, 1), name="logits")
    file.operator("CONV_2D", [z, kernel, bias], [logits], **CONV)
    out = file.tensor((1, h, w, 1), scale=1 / 256, name="probability")
    file.graph.tensors[out].quantization.zeroPoint = np.array([-128])
    file.operator("LOGISTIC", [logits], [out])
    return file.write([image], [out])


def one(kind, inputs, output, options=None, dtype="int8", **values):
    """A file with one operator; an input is a shape, or (value, dtype) for a constant."""
    file = File()
    indices, fed = [], []
    for entry in inputs:
        if isinstance(entry[0], (int, np.integer)):
            indices.append(file.tensor(entry, dtype))
            fed.append(indices[-1])
        else:
            value = np.asarray(entry[0])
            indices.append(file.tensor(value.shape, entry[1], data=value))
    out = file.tensor(output, dtype)
    file.operator(kind, indices, [out], options, **values)
    return read_tflite(file.write(fed, [out]))


def quick(source):
    return inspect_model(source, latency=False, vela=False, tflm=False)


# === Work ===


def counted(output, per_element):
    """Counts one by one, as a loop over the output would."""
    return sum(per_element for _ in np.ndindex(*output))


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "options", "expected"),
    [
        ("CONV_2D", [(1, 6, 8, 3), (np.ones((5, 3, 3, 3)), "int8")], (1, 3, 4, 5), {}, 27),
        (
            "CONV_2D",
            [(1, 6, 8, 4), (np.ones((6, 3, 3, 2)), "int8")],
            (1, 6, 8, 6),
            {},
            18,
        ),  # groups
        (
            "DEPTHWISE_CONV_2D",
            [(1, 6, 8, 4), (np.ones((1, 3, 5, 4)), "int8")],
            (1, 6, 8, 4),
            {},
            15,
        ),
        ("FULLY_CONNECTED", [(1, 7), (np.ones((5, 7)), "int8")], (1, 5), {}, 7),
        ("BATCH_MATMUL", [(2, 6, 3), (2, 3, 5)], (2, 6, 5), {}, 3),
        (
            "BATCH_MATMUL",
            [(2, 3, 6), (2, 3, 5)],
            (2, 6, 5),
            {"options": "BatchMatMulOptions", "adjX": True},
            3,
        ),
        ("ADD", [(1, 4, 4, 2), (1, 4, 4, 2)], (1, 4, 4, 2), {}, 0),
    ],
)
def test_multiply_accumulates(kind, inputs, output, options, expected):
    (node,) = nodes(one(kind, inputs, output, **options))
    assert macs(node) == counted(output, expected)


def test_multiply_accumulates_of_a_transposed_convolution():
    size = (np.array([1, 8, 8, 5]), "int32")
    model = one(
        "TRANSPOSE_CONV", [size, (np.ones((5, 3, 3, 2)), "int8"), (1, 4, 4, 2)], (1, 8, 8, 5)
    )
    # each of the 4 x 4 x 2 elements meets 3 x 3 x 5 weights
    assert macs(nodes(model)[0]) == 4 * 4 * 2 * 45


def test_the_work_of_a_file_agrees_with_vela():
    """Vela counts the convolutions of a file by itself."""
    pytest.importorskip("ethosu")
    report = inspect_model(small(channels=16), latency=False, tflm=False)
    pixels = 8 * 12
    assert report.macs == pixels * (16 * 27 + 16 * 9 + 16)
    assert [layer["macs"] for layer in report.layers] == [
        pixels * 16 * 27,
        pixels * 16 * 9,
        0,
        pixels * 16,
        0,
    ]


# === The whole report ===


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "small.tflite"
    path.write_bytes(small(size=(64, 64)))
    return inspect_model(path)


def test_report_of_an_int8_file(report):
    assert report.operators == {
        "CONV_2D": 2,
        "DEPTHWISE_CONV_2D": 1,
        "ADD": 1,
        "LOGISTIC": 1,
    }
    assert report.inputs[0]["shape"] == [1, 64, 64, 3] and report.inputs[0]["scale"] == 1
    assert report.outputs[0]["zero_point"] == -128
    # the sum, both its inputs: three feature maps of four channels
    assert report.memory["live_peak"] == 3 * 64 * 64 * 4
    assert report.memory["peak_operator"] == 2 and report.memory["peak_kind"] == "ADD"
    assert report.tflm["head"] == 3 * 64 * 64 * 4
    assert report.tflm["total"] == report.tflm["head"] + report.tflm["tail"]
    for name in ACCELERATORS:
        assert report.vela[name]["cpu_operators"] == 0 and report.vela[name]["milliseconds"] > 0
    assert report.vela["ethos-u55-256"]["sram_kib"] >= 64 * 64 * 2 * 4 / 1024
    assert report.edge_tpu["result"] == "PASS"
    assert report.latency["threads_1"] > 0 and report.latency["threads_2"] > 0
    assert report.size["flash"] > report.size["file"] > report.size["constants"] > 0


def test_report_is_json_and_a_table(report):
    assert json.loads(json.dumps(report.to_dict()))["macs"] == report.macs
    table = report.to_markdown()
    for text in (
        "| small.tflite |",
        "| TFLM arena |",
        "not the compiler",
        "ethos-u65-256",
        "ethos-u85-256",
        "RP2350",
    ):
        assert text in table
    assert all(line.startswith("|") or not line for line in table.splitlines())


def test_picture_marks_the_peak(report, tmp_path):
    path = tmp_path / "memory.png"
    replace(report, file="sky_$x^$.tflite").plot(path)  # to Matplotlib, $ is a formula
    with Image.open(path) as picture:
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    peak = np.all(colors == (0xD5, 0x5E, 0x00), axis=1)  # the colour of the peak
    assert picture.width > 800 and peak.sum() > 1000


def test_a_planned_file_shows_its_plan(tmp_path):
    model = read_tflite(small())
    count = len(model.subgraphs[0].tensors)
    offsets = [-1] * count
    for place, tensor in enumerate([0, 3, 6, 7, 10, 11]):
        offsets[tensor] = 512 * place
    buffer, entry = schema.BufferT(), schema.MetadataT()
    values = np.array([1, 0, count, *offsets], "<i4")
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    entry.name, entry.buffer = "OfflineMemoryAllocation", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    report = quick(write_tflite(model))
    assert report.memory["planned"] == 5 * 512 + 96
    report.plot(tmp_path / "plan.png")
    quick(small()).plot(tmp_path / "unplanned.png")
    heights = []
    for name in ("plan", "unplanned"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            heights.append(picture.height)
    assert heights[0] > heights[1]


def test_boards_by_what_they_have(report):
    rows = {row["board"]: row for row in report.boards}
    esp, grove, pico = rows["ESP32-S3, SRAM"], rows["Grove Vision AI V2"], rows["RP2350"]
    assert esp["needs"] == pico["needs"] == "TFLM arena"
    assert esp["need_kib"] == report.arenas["esp32-s3"]["total"] / 1024
    assert pico["need_kib"] == report.arenas["microcontroller"]["total"] / 1024
    assert esp["spare_ram_kib"] == esp["arena_kib"] - esp["need_kib"] and esp["fits"]
    assert grove["needs"] == "Vela SRAM" and grove["milliseconds"] is None
    assert grove["need_kib"] == report.vela["ethos-u55-128"]["sram_kib"]
    assert pico["ram_kib"] == 520 and pico["milliseconds"] is None
    usual = report.estimates["esp32-s3"]["milliseconds"]
    assert esp["milliseconds"] == pytest.approx(usual, rel=1e-3)
    faster = rows["STM32N6 (OpenMV N6)"]["milliseconds"]  # twice the clock
    assert faster == pytest.approx(report.estimates["cortex-m55"]["milliseconds"] / 2, rel=1e-3)
    for board in BOARDS:
        assert board.arena_kib <= board.contiguous_kib <= board.ram_kib


def test_a_board_that_is_too_small_does_not_fit():
    report = inspect_model(small(channels=16, size=(96, 96)), latency=False, vela=False)
    rows = {row["board"]: row for row in report.boards}
    assert math.isclose(report.tflm["head"] / 1024, 432)
    for board in ("ESP32-S3, SRAM", "Arduino Nicla Vision"):  # its 1 MB is in parts
        assert not rows[board]["fits"] and rows[board]["spare_ram_kib"] < 0
    assert rows["STM32H743, H747"]["fits"]
    assert rows["RP2350"]["fits"] and "no room for a frame" in rows["RP2350"]["note"]


MEASURED = {"ddunet_c4_96": (252e6, 163e6), "ddunet_c8_128": (865e6, 517e6)}
"""Instructions of a Cortex-M7 and of an M55 with CMSIS-NN, counted by QEMU (../shared/MCU.md)."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_cost_table_is_near_what_was_counted(name):
    report = quick(MODELS / f"{name}.tflite")
    found = [report.estimates[core]["instructions"] for core in ("cortex-m7", "cortex-m55")]
    assert found == pytest.approx(MEASURED[name], rel=0.05)


def test_a_dilated_convolution_costs_more_than_a_plain_one():
    costs = []
    for dilation in (1, 2):
        options = {**DEPTHWISE, "dilationWFactor": dilation, "dilationHFactor": dilation}
        kernel = (np.ones((1, 3, 3, 8)), "int8")
        model = one("DEPTHWISE_CONV_2D", [(1, 8, 8, 8), kernel], (1, 8, 8, 8), **options)
        costs.append([instructions(nodes(model), core) for core in CORES.values()])
    assert np.all(np.array(costs[1]) > 3 * np.array(costs[0]))


# === Other files ===


def test_a_float_file():
    file = File()
    image = file.tensor((1, 8, 8, 3), "float32")
    out = file.tensor((1, 8, 8, 3), "float32")
    file.operator("LOGISTIC", [image], [out])
    report = inspect_model(file.write([image], [out]))
    assert report.inputs[0]["dtype"] == "float32" and report.inputs[0]["scale"] is None
    assert report.edge_tpu["result"] == "FAIL" and report.tflm["total"] > 0
    found = report.vela["ethos-u55-128"]
    assert found["cpu_operators"] == 1 and found["left_on_cpu"][0]["kind"] == "LOGISTIC"
    assert "nothing runs on it: 1 operator on the CPU" in report.to_markdown()


def test_a_custom_operator_harms_nothing():
    file = File()
    image, out = file.tensor((1, 8, 8, 3)), file.tensor((1, 8, 8, 3))
    file.operator("MyOwn", [image], [out])
    report = inspect_model(file.write([image], [out]))
    assert report.operators == {"MyOwn": 1}
    assert "CUSTOM" in report.tflm["failed"] and "MyOwn" in report.latency["threads_1"]["failed"]
    (finding,) = report.edge_tpu["findings"]
    assert report.edge_tpu["result"] == "WARN" and "not checked here" in finding["rule"]
    assert all(row["fits"] is None for row in report.boards if row["needs"] == "TFLM arena")
    assert "failed: " in report.to_markdown()


def test_several_subgraphs():
    model = read_tflite(small())
    model.subgraphs = [model.subgraphs[0], read_tflite(small()).subgraphs[0]]
    report = quick(write_tflite(model))
    assert sum(report.operators.values()) == 10
    assert report.edge_tpu["findings"][0]["rule"] == "the file has 2 subgraphs, one is supported"
    assert {layer["subgraph"] for layer in report.layers} == {0, 1}


def test_a_shape_that_is_not_fixed():
    model = read_tflite(small())
    image = model.subgraphs[0].tensors[0]
    image.shapeSignature = [-1, *image.shape[1:]]
    assert ("FAIL", "tensor 0 has no fixed shape") in rules(read_tflite(write_tflite(model)))


def test_no_picture_where_the_memory_cannot_be_followed(tmp_path):
    model = read_tflite(small())
    model.subgraphs[0].tensors[3].type = schema.TensorType.VARIANT
    report = quick(write_tflite(model))
    assert "no fixed size" in report.memory["failed"]
    with pytest.raises(TFLiteError, match="no picture of its memory"):
        report.plot(tmp_path / "memory.png")


@pytest.mark.parametrize("data", [b"", b"GIF89a", small()[:600], b"\x1c\0\0\0TFL3" + bytes(64)])
def test_what_is_no_file_is_told_in_one_line(data, tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(data)
    with pytest.raises(TFLiteError) as caught:
        inspect_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_programs_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = inspect_model(small(), latency=False)
    table = report.to_markdown()
    assert table.count("not run: needs pip install '.[mcu]'") >= 4
    assert all(row["needs"] == "TFLM arena" and row["fits"] for row in report.boards)


# === Crafted files: one line or a report, in bounded time and memory ===


def looped():
    """A subgraph that calls itself."""
    file = File()
    image, out = file.tensor((1, 8, 8, 3)), file.tensor((1, 8, 8, 3))
    file.operator("WHILE", [image], [out], "WhileOptions", condSubgraphIndex=0, bodySubgraphIndex=0)
    return file.write([image], [out])


def chained(count):
    file = File()
    shape = file.tensor((4,), "int32", data=(1, 8, 8, 3))
    image = last = file.tensor((1, 8, 8, 3))
    for _ in range(count):
        out = file.tensor((1, 8, 8, 3))
        file.graph.operators.append(schema.OperatorT(0, [last, shape], [out]))
        last = out
    code = schema.BuiltinOperator.RESHAPE
    file.model.operatorCodes = [schema.OperatorCodeT(code, None, 1, code)]
    return file.write([image], [last])


def huge():
    file = File()
    image, out = file.tensor((1, 30000, 30000, 2)), file.tensor((1, 30000, 30000, 2))
    file.operator("LOGISTIC", [image], [out])
    return file.write([image], [out])


@pytest.mark.parametrize("make", [looped, huge])
def test_what_programs_do_not_survive_ends_in_a_report(make):
    report = inspect_model(make(), vela=False)
    assert "failed" in report.latency["threads_1"] and "failed" in report.tflm
    table = report.to_markdown()
    assert "failed: " in table and all(
        line.startswith("|") or not line for line in table.split("\n")
    )


def test_a_chain_too_long_to_follow_has_no_memory_and_no_picture(tmp_path):
    report = quick(chained(5200))
    assert "followed up to" in report.memory["failed"]
    with pytest.raises(TFLiteError, match="followed up to"):
        report.plot(tmp_path / "memory.png")


def test_names_that_would_write_to_the_terminal_are_shown_as_question_marks():
    file = File()
    image, out = file.tensor((1, 8, 8, 3), name="a\x1b[31mb\nc"), file.tensor((1, 8, 8, 3))
    file.operator("LOGISTIC", [image], [out])
    assert quick(file.write([image], [out])).inputs[0]["name"] == "a?[31mb?c"


def test_the_command_says_in_one_line_what_is_no_file(tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(small()[:600])
    command = [sys.executable, "-m", "ddunet_keras", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("ddunet: error: ") and len(done.stderr.splitlines()) == 1


def test_vela_knows_no_other_accelerator():
    with pytest.raises(ValueError, match=r"ethos-u85-256.*Received: 'ethos-u99'"):
        run_vela(small(), "ethos-u99")


# === Edge TPU ===


def rules(model):
    check = edge_tpu_check(model)
    return [(entry["level"], entry["rule"]) for entry in check["findings"]]


SHAPE = (1, 8, 8, 4)
AXES = {
    "rows": (np.array([1, 2]), "int32"),
    "batch": (np.array([0]), "int32"),
    "channels": (np.array([3]), "int32"),
}
KERNEL = (np.ones((4, 3, 3, 4)), "int8")


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "options", "broken"),
    [
        ("ADD", [SHAPE, SHAPE], SHAPE, {}, None),
        ("CONV_2D", [SHAPE, KERNEL], SHAPE, CONV, None),
        (
            "CONV_2D",
            [SHAPE, KERNEL],
            SHAPE,
            {**CONV, "dilationWFactor": 2},
            "dilation is 1 in y and 2",
        ),
        ("CONV_2D", [SHAPE, (4, 3, 3, 4)], SHAPE, CONV, "its weights must be constant"),
        ("MEAN", [SHAPE, AXES["rows"]], (1, 4), {}, None),
        ("MEAN", [SHAPE, AXES["channels"]], (1, 8, 8), {}, None),
        ("MEAN", [(1, 8, 8, 3), AXES["channels"]], (1, 8, 8), {}, "no multiple of 4"),
        ("MEAN", [SHAPE, AXES["batch"]], (8, 8, 4), {}, "reduces the batch"),
        (
            "PAD",
            [SHAPE, (np.array([[0, 0], [1, 1], [1, 1], [0, 0]]), "int32")],
            (1, 10, 10, 4),
            {},
            None,
        ),
        (
            "PAD",
            [SHAPE, (np.array([[0, 1], [0, 0], [0, 0], [0, 0]]), "int32")],
            (2, 8, 8, 4),
            {},
            "pads the batch",
        ),
        ("SOFTMAX", [(1, 1, 1, 4)], (1, 1, 1, 4), {}, None),
        ("SOFTMAX", [SHAPE], SHAPE, {}, "one dimension"),
        ("SOFTMAX", [(1, 16001)], (1, 16001), {}, "at most 16,000"),
        ("CONCATENATION", [SHAPE, SHAPE], (1, 8, 8, 8), {}, None),
        ("BATCH_MATMUL", [(1, 8, 4), (1, 4, 2)], (1, 8, 2), {}, "no such operator"),
        ("CAST", [SHAPE], SHAPE, {}, "no such operator"),
        ("RELU", [(2, 8, 8, 4)], (2, 8, 8, 4), {}, "three innermost dimensions"),
        ("RELU", [(8, 8, 4)], (8, 8, 4), {}, None),
        ("RELU", [SHAPE], SHAPE, {"dtype": "int16"}, "is int16"),
        ("RELU", [SHAPE], SHAPE, {"dtype": "uint8"}, None),
        ("MEAN", [], SHAPE, {}, "not those of its kind"),
    ],
)
def test_edge_tpu_rules(kind, inputs, output, options, broken):
    found = rules(one(kind, inputs, output, **options))
    if broken is None:
        assert found == []
    else:
        assert any(level == "FAIL" and broken in rule for level, rule in found), found


def test_an_operator_beyond_the_short_list_is_not_checked():
    assert rules(one("MAXIMUM", [SHAPE, SHAPE], SHAPE)) == [
        ("WARN", "not checked here: see Coral's list of supported operations")
    ]


def test_edge_tpu_finding_names_operator_and_tensor_and_what_comes_before():
    model = read_tflite(small(dilationHFactor=2))
    check = edge_tpu_check(model)
    assert check["result"] == "FAIL" and check["mapped_operators"] == 0
    (entry,) = check["findings"]
    assert (entry["operator"], entry["kind"], entry["tensor"]) == (0, "CONV_2D", "stem")
    model = read_tflite(small())
    model.subgraphs[0].operators[3].builtinOptions.dilationHFactor = 2
    check = edge_tpu_check(model)
    assert check["mapped_operators"] == 3
    assert check["mapped_macs"] == pytest.approx((27 * 4 + 9 * 4) / (27 * 4 + 9 * 4 + 4))


def test_edge_tpu_warns_of_resizing_and_of_float_inputs():
    size = (np.array([16, 16]), "int32")
    resize = one("RESIZE_BILINEAR", [SHAPE, size], (1, 16, 16, 4))
    assert edge_tpu_check(resize)["result"] == "WARN"
    file = File()
    image, inside, out = (file.tensor(SHAPE, t) for t in ("float32", "int8", "int8"))
    file.operator("QUANTIZE", [image], [inside])
    file.operator("RELU", [inside], [out])
    assert rules(read_tflite(file.write([image], [out]))) == [
        ("WARN", "float input or output of the file: it is converted on the CPU")
    ]
