import io
import json
import math
import re
import sys
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from c_sources import STRICT, needs_gcc, run
from tiny_tflite import gray_photo, tiny_tflite

from ddunet_keras.cli import main
from ddunet_keras.deploy.export import (
    LABELS_FILE,
    set_mediapipe_metadata,
    with_label_file,
    write_c_array,
)
from ddunet_keras.files import DataError
from ddunet_keras.litert.arena_size import arena_size
from ddunet_keras.litert.esp_nn import ESP32_S3
from ddunet_keras.litert.model import read_tflite, write_tflite
from ddunet_keras.litert.run import measure_arena


def constants(header):
    return dict(re.findall(r"#define (\w+) (\S+)$", header.read_text(), re.MULTILINE))


# --- the array


@needs_gcc
@pytest.mark.parametrize("compiler", [("gcc", "-std=c11"), ("g++", "-std=c++17", "-x", "c++")])
def test_the_array_is_the_file(tmp_path, compiler):
    data = tiny_tflite()
    _, source = write_c_array(data, tmp_path / "firmware", "sky_net", 1000)
    main = tmp_path / "main.c"
    main.write_text(
        '#include "sky_net.h"\n#include <stdio.h>\n'
        "int main(void) {\n"
        "  if ((size_t)sky_net % 16 || SKY_NET_ARENA_BYTES != 1008) return 1;\n"
        "  return fwrite(sky_net, 1, sky_net_size, stdout) != sky_net_size;\n}\n"
    )
    run(*compiler, *STRICT, "-I", source.parent, main, source, "-o", tmp_path / "main")
    assert run(tmp_path / "main").stdout == data


@pytest.mark.parametrize("output", ["probability", "logits", "mask"])
def test_constants_of_input_and_output(tmp_path, output):
    data = tiny_tflite(size=(16, 48), output=output)
    header, _ = write_c_array(data, tmp_path, arena_bytes=1000)
    values = constants(header)
    height, width, channels, threshold = (
        int(values[f"DDUNET_MODEL_{name}"].strip("()"))
        for name in ("HEIGHT", "WIDTH", "CHANNELS", "THRESHOLD")
    )
    assert (height, width, channels) == (16, 48, 1)
    assert values["DDUNET_MODEL_INPUT_SCALE"] == "1.0f"
    assert values["DDUNET_MODEL_INPUT_ZERO_POINT"] == "(0)"
    interpreter = Interpreter(model_content=data)
    scale, zero_point = interpreter.get_output_details()[0]["quantization"]
    steps = np.arange(-128, 128)
    if output == "mask":
        assert threshold == 1
        return
    assert float(values["DDUNET_MODEL_OUTPUT_SCALE"].strip("f")) == np.float32(scale)
    assert int(values["DDUNET_MODEL_OUTPUT_ZERO_POINT"].strip("()")) == zero_point
    value = scale * (steps - zero_point)
    cloudy = value >= (0.5 if output == "probability" else 0)
    np.testing.assert_array_equal(steps >= threshold, cloudy)


def test_every_operator_is_registered_once(tmp_path):
    data = tiny_tflite(output="mask", channels=3)
    header, _ = write_c_array(data, tmp_path, arena_bytes=1000)
    added = re.findall(r"\.Add(\w+)\(\)", header.read_text())
    assert sorted(added) == ["ArgMax", "Cast", "Conv2D", "Reshape"]
    assert constants(header)["DDUNET_MODEL_OPERATORS"] == "4"


SHIPPED = Path(__file__).parents[1] / "tflite" / "models"


def test_the_arena_of_a_shipped_file_is_what_tflm_takes(tmp_path):
    header, _ = write_c_array(SHIPPED / "ddunet_c4_96.tflite", tmp_path)
    on_esp32s3, elsewhere = (
        int(value) for value in re.findall(r"ARENA_BYTES (\d+)", header.read_text())
    )
    taken = measure_arena((SHIPPED / "ddunet_c4_96.tflite").read_bytes())["total"]
    assert taken <= elsewhere <= 1.02 * taken
    assert on_esp32s3 > 1.5 * elsewhere  # ../shared/MCU.md: 444,852 for 272,592


def test_the_arena_stays_in_the_memory_that_it_was_made_for(tmp_path):
    file = SHIPPED / "ddunet_c4_96.tflite"
    reckoned = arena_size(read_tflite(file), ESP32_S3).total
    ram = math.ceil(reckoned / 1024)
    for limit, expected in ((None, 1.01 * reckoned), (ram, 1024 * ram), (ram - 9, reckoned)):
        header, _ = write_c_array(file, tmp_path, ram=limit)
        on_esp32s3 = int(re.findall(r"ARENA_BYTES (\d+)", header.read_text())[0])
        assert expected <= on_esp32s3 + 1 <= expected + 17


BASE_INSTALL = """
import sys
for name in ("tensorflow", "keras", "tensorflow_model_optimization", "matplotlib", "tflite_micro",
             "ethosu"):
    sys.modules[name] = None  # as if it was not installed
from ddunet_keras.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_writes_c_sources_with_the_base_install(tmp_path):
    command = [sys.executable, "-c", BASE_INSTALL, "inspect", SHIPPED / "ddunet_c4_96.tflite"]
    done = run(*command, "--json", "--c-array", tmp_path / "firmware")
    assert json.loads(done.stdout)["operators"]["CONV_2D"] > 0
    assert "wrote" in done.stderr.decode()
    for path in write_c_array(SHIPPED / "ddunet_c4_96.tflite", tmp_path):
        assert (tmp_path / "firmware" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "no such file"),
        (b"nothing", "not a .tflite file"),
        (tiny_tflite(io="uint8"), "int8 input and output"),
    ],
)
def test_the_command_says_why_there_are_no_c_sources(tmp_path, capsys, file, words):
    path = tmp_path / "file.tflite"
    if file is not None:
        path.write_bytes(file)
    assert main(["inspect", str(path), "--c-array", str(tmp_path / "firmware")]) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and err.count("\n") == 1
    assert not (tmp_path / "firmware").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"name": "2nd"}, "identifier"),
        ({"name": "a b"}, "identifier"),
        ({"arena_bytes": 0}, "arena_bytes"),
        ({"arena_bytes": 1.5}, "arena_bytes"),
        ({"data": tiny_tflite(io="uint8")}, "int8"),
        ({"data": tiny_tflite(io="float32")}, "int8"),
        ({"data": b"nothing"}, "tflite"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, settings, error):
    arguments = {"data": tiny_tflite(), "arena_bytes": 1000} | settings
    with pytest.raises(ValueError, match=error):
        write_c_array(folder=tmp_path / "firmware", **arguments)
    assert not list(tmp_path.iterdir())


# --- metadata


def field(table, slot):
    """Position of a field of a flatbuffer's table."""
    offset = table.Offset(4 + 2 * slot)
    assert offset, f"field {slot} is missing"
    return offset + table.Pos


def follow(table, slot, index=None):
    """The table at a field, or at an index of a field's vector."""
    place = field(table, slot)
    if index is None:
        return flatbuffers.table.Table(table.Bytes, table.Indirect(place))
    return flatbuffers.table.Table(
        table.Bytes, table.Indirect(table.Vector(place - table.Pos) + 4 * index)
    )


def text(table, slot):
    return table.String(field(table, slot)).decode()


def byte(table, slot):
    return table.Get(flatbuffers.number_types.Uint8Flags, field(table, slot))


def number(table, slot):
    vector = table.Vector(field(table, slot) - table.Pos)
    return table.Get(flatbuffers.number_types.Float32Flags, vector)


def root(content, identifier):
    assert content[4:8] == identifier
    return flatbuffers.table.Table(content, int(np.frombuffer(content, "<u4", 1)[0]))


def add_metadata(data):
    """The file as an Android conversion ends."""
    model = read_tflite(data)
    set_mediapipe_metadata(model)
    return with_label_file(write_tflite(model))


@pytest.mark.parametrize(
    ("settings", "mean", "activation", "labels"),
    [
        ({"io": "uint8"}, 0, None, ["cloud"]),
        ({"io": "float32"}, 128, None, ["cloud"]),
        ({"io": "uint8", "output": "logits"}, 0, 1, ["cloud"]),
        ({"io": "float32", "output": "logits", "channels": 3}, 128, 2, None),
        ({"io": "uint8", "channels": 3}, 0, None, ["sky", "thin cloud", "thick cloud"]),
    ],
)
def test_metadata_says_what_mediapipe_reads(settings, mean, activation, labels):
    plain = tiny_tflite(**settings)
    data = add_metadata(plain)
    assert data == add_metadata(plain)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.getinfo(LABELS_FILE).compress_type == zipfile.ZIP_STORED
        names = archive.read(LABELS_FILE).decode().splitlines()
    assert names == (labels or ["sky", "thin cloud", "thick cloud"])

    model = read_tflite(data)
    (entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    metadata = root(bytes(model.buffers[entry.buffer].data), b"M001")
    assert text(metadata, 0) == "DDUNet"
    graph = follow(metadata, 3, 0)
    source, result = follow(graph, 2, 0), follow(graph, 3, 0)
    assert (byte(follow(source, 3), 0), byte(follow(follow(source, 3), 1), 0)) == (2, 1)  # RGB
    unit = follow(source, 4, 0)
    assert byte(unit, 0) == 1  # normalization
    assert (number(follow(unit, 1), 0), number(follow(unit, 1), 1)) == (mean, 1)
    assert (number(follow(source, 5), 0), number(follow(source, 5), 1)) == (255 - mean, -mean)
    file = follow(result, 6, 0)
    assert (text(file, 0), byte(file, 2)) == (LABELS_FILE, 2)  # labels of the last axis
    custom = follow(graph, 9, 0)
    assert text(custom, 0) == "SEGMENTER_METADATA"
    start = custom.Vector(field(custom, 1) - custom.Pos)
    length = custom.VectorLen(field(custom, 1) - custom.Pos)
    options = root(bytes(custom.Bytes[start : start + length]), b"V001")
    if activation is None:  # the default is not written
        assert options.Offset(4) == 0
    else:
        assert byte(options, 0) == activation


def test_a_file_with_metadata_computes_the_same():
    image = gray_photo((16, 32))[None]
    outputs = []
    for data in (tiny_tflite(io="uint8"), add_metadata(tiny_tflite(io="uint8"))):
        interpreter = Interpreter(model_content=data)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(*outputs)


def test_metadata_is_for_what_mediapipe_takes():
    for settings in ({}, {"io": "uint8", "output": "mask"}):
        with pytest.raises(DataError, match="MediaPipe"):
            add_metadata(tiny_tflite(**settings))
