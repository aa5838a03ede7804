import ctypes
import io
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tiny_tflite import gray_photo, tiny_tflite

from ddunet_keras.cli import main
from ddunet_keras.deploy.export import (
    LABELS_FILE,
    set_mediapipe_metadata,
    with_label_file,
    write_c_array,
)
from ddunet_keras.files import IGNORE, DataError
from ddunet_keras.litert.model import read_tflite, write_tflite
from ddunet_keras.litert.run import measure_arena
from ddunet_keras.sky import blacken, cloud_cover
from ddunet_keras.sky.quality import find_flaw

MICRO = Path(__file__).parents[1] / "tflite" / "micro"
STUB = Path(__file__).parent / "data" / "tflm_stub.h"
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="no C and C++ compiler is here")


def run(*command, **settings):
    done = subprocess.run([str(word) for word in command], capture_output=True, **settings)
    assert done.returncode == 0, done.stderr.decode()
    return done


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
    assert taken <= elsewhere <= 1.01 * taken
    assert on_esp32s3 > 1.5 * elsewhere  # ../shared/MCU.md: 444,852 for 272,592


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


# --- the C that runs on the device, against NumPy


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    library = tmp_path_factory.mktemp("sky") / "sky.so"
    source = MICRO / "sky.c"
    run("gcc", "-std=c99", *STRICT, "-O2", "-shared", "-fPIC", source, "-o", library)
    return ctypes.CDLL(str(library))


class Cover(ctypes.Structure):
    _fields_ = [("valid", ctypes.c_uint32), ("cloudy", ctypes.c_uint32)]
    _fields_ += [("permille", ctypes.c_int32), ("okta", ctypes.c_int32)]


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def size(*values):
    return [ctypes.c_size_t(value) for value in values]


@needs_gcc
@pytest.mark.parametrize("in_place", [False, True])
def test_rgb888(sky, in_place):
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    window = (0, 0, 30, 20) if in_place else (7, 2, 16, 11)
    left, top, width, height = window
    part = frame[top : top + height, left : left + width]
    expected = (part.astype(int) - 128).astype(np.int8)
    found = frame.view(np.int8) if in_place else np.empty((height, width, 3), np.int8)
    sky.sky_input_rgb888(pointer(frame), *size(30, *window), pointer(found))
    np.testing.assert_array_equal(found, expected)


@needs_gcc
@pytest.mark.parametrize("big_endian", [0, 1])
def test_rgb565_every_colour(sky, big_endian):
    frame = np.arange(65536).reshape(256, 256).astype(">u2" if big_endian else "<u2")
    red, green, blue = frame >> 11, frame >> 5 & 63, frame & 31
    spread = [np.floor(red * 255 / 31 + 0.5), np.floor(green * 255 / 63 + 0.5)]
    spread += [np.floor(blue * 255 / 31 + 0.5)]
    found = np.empty((255, 254, 3), np.int8)
    arguments = *size(256, 2, 1, 254, 255), pointer(found)
    sky.sky_input_rgb565(pointer(frame), ctypes.c_int(big_endian), *arguments)
    pixels = found.astype(int) + 128
    assert abs(pixels - np.stack(spread, -1)[1:, 2:]).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


@needs_gcc
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threshold", [-128, -100, 0, 60, 127])
def test_mask_and_cover(sky, channels, threshold, with_valid):
    random = np.random.default_rng(threshold + 200)
    output = random.integers(-128, 128, (24, 32, channels)).astype(np.int8)
    valid = random.random((24, 32)) < 0.7 if with_valid else np.ones((24, 32), bool)
    labels = output.argmax(-1) if channels > 1 else output[..., 0] >= threshold
    counted = cloud_cover(np.where(valid, labels, IGNORE).astype(np.uint8))
    shown = np.where(valid, labels if channels > 1 else labels * 255, 128)
    mask = output.view(np.uint8) if channels == 1 else np.empty((24, 32), np.uint8)
    valid_bytes = valid.astype(np.uint8)
    cover = Cover()
    sky.sky_segment(
        pointer(output),
        *size(24 * 32, channels),
        ctypes.c_int8(threshold),
        pointer(valid_bytes) if with_valid else None,
        pointer(mask),
        ctypes.byref(cover),
    )
    np.testing.assert_array_equal(mask.reshape(24, 32), shown)
    assert cover.valid == valid.sum()
    assert cover.cloudy / cover.valid == counted.fraction
    assert cover.permille == math.floor(1000 * counted.fraction + 0.5)
    assert cover.okta == counted.okta


@needs_gcc
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.3, 0.97, 1])
@pytest.mark.parametrize("colours", [(0, 3), (3, 200), (255, 20), (128, 129), (128, 131)])
def test_frames_without_information(sky, colours, share, with_valid):
    """The same rules as in `ddunet_keras.sky`."""
    random = np.random.default_rng(int(1000 * share))
    pixels = np.full((64, 48, 3), colours[0], np.uint8)
    pixels[random.random((64, 48)) < share] = colours[1]
    pixels[0, 0] = random.integers(0, 256, 3)
    valid = random.random((64, 48)) < 0.7 if with_valid else np.ones((64, 48), bool)
    frame = (pixels.astype(int) - 128).astype(np.int8)
    sky.sky_quality_name.restype = ctypes.c_char_p
    valid_bytes = valid.astype(np.uint8)
    where = pointer(valid_bytes) if with_valid else None
    found = sky.sky_quality_name(sky.sky_check(pointer(frame), *size(64 * 48), where)).decode()
    assert found == (find_flaw(pixels[valid]) or "usable")


@needs_gcc
def test_pixels_outside_the_horizon_become_black(sky):
    random = np.random.default_rng(0)
    frame = random.integers(-128, 128, (20, 30, 3)).astype(np.int8)
    valid = random.random((20, 30)) < 0.5
    expected = blacken((frame.astype(int) + 128).astype(np.uint8), valid).astype(int) - 128
    unchanged = frame.copy()
    sky.sky_blacken(pointer(unchanged), *size(600), None)
    np.testing.assert_array_equal(unchanged, frame)
    valid_bytes = valid.astype(np.uint8)
    sky.sky_blacken(pointer(frame), *size(600), pointer(valid_bytes))
    np.testing.assert_array_equal(frame, expected)


@needs_gcc
def test_okta_of_every_share(sky):
    for total in (8, 16, 17, 1000):
        mask = np.empty(total, np.uint8)
        for cloudy in range(total + 1):
            output = np.where(np.arange(total) < cloudy, 1, -1).astype(np.int8)
            cover = Cover()
            arguments = ctypes.c_int8(0), None, pointer(mask), ctypes.byref(cover)
            sky.sky_segment(pointer(output), *size(total, 1), *arguments)
            assert cover.okta == cloud_cover(output[None] > 0).okta
    arguments = ctypes.c_int8(0), None, pointer(mask), ctypes.byref(cover)
    sky.sky_segment(pointer(output), *size(0, 1), *arguments)
    assert (cover.okta, cover.permille) == (-1, -1)


@needs_gcc
@pytest.mark.parametrize("namespace", ["tflite", "tflite::micro"])
def test_the_application_compiles_and_runs(tmp_path, namespace):
    """Against a stub of TFLM, in which the mean of a pixel's channels is its output."""
    _, array = write_c_array(tiny_tflite(), tmp_path, arena_bytes=4 * 16 * 32)
    main = (MICRO / "main.cc").read_text()
    for header in re.findall(r'#include "(tensorflow/.+)"', main):
        (tmp_path / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / header).write_text(f'#include "{STUB}"\n')
    include = ["-I", tmp_path, "-I", MICRO]
    c = [array, MICRO / "sky.c", MICRO / "board_host.c"]
    for source in c:
        run("gcc", "-std=c11", *STRICT, *include, "-c", source, cwd=tmp_path)
    space = f"-DSTUB_NAMESPACE={namespace}"
    objects = [tmp_path / source.with_suffix(".o").name for source in c]
    target = tmp_path / "sky"
    strict = [*STRICT, "-std=c++17", *include, space]
    run("g++", *strict, MICRO / "main.cc", *objects, "-o", target)
    frames = [gray_photo((16, 32), seed) for seed in range(2)]
    roof = np.zeros((16, 32, 3), np.uint8)
    done = run(target, input=b"".join(frame.tobytes() for frame in [*frames, roof]))
    masks = np.frombuffer(done.stdout, np.uint8).reshape(2, 16, 32)
    clouds = np.stack(frames)[..., 0] >= 128
    np.testing.assert_array_equal(masks, clouds * 255)
    covers = [cloud_cover(mask) for mask in clouds]
    tenths = [math.floor(1000 * cover.fraction + 0.5) / 10 for cover in covers]
    said = [f"cloud cover {t} %, {c.okta} okta" for t, c in zip(tenths, covers, strict=True)]
    assert done.stderr.decode().splitlines() == [*said, "cannot tell: black"]


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
