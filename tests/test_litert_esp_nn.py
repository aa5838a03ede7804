"""What ESP-NN asks for on an ESP32-S3, against what was measured (../shared/MCU.md)."""

from pathlib import Path

import pytest

from ddunet_keras.litert.arena_size import arena_size
from ddunet_keras.litert.esp_nn import ESP32_S3, convolution_scratch, depthwise_scratch
from ddunet_keras.litert.memory import HOST, MICROCONTROLLER
from ddunet_keras.litert.model import read_tflite
from ddunet_keras.litert.run import measure_arena
from ddunet_keras.litert.schedule import fit_memory

MODELS = Path(__file__).parents[1] / "tflite" / "models"
NEAR = 0.02
ONE = (1, 1)


def test_scratch_that_was_measured():
    maps = (1, 96, 96, 4), (1, 128, 128, 9)
    assert depthwise_scratch(maps[0], (1, 3, 3, 4), maps[0], ONE, ONE) == 221_440
    assert convolution_scratch((1, 96, 96, 9), (1, 3, 3, 9), (1, 96, 96, 1), ONE, ONE) == 173_180
    assert convolution_scratch(maps[1], (1, 3, 3, 9), (1, 128, 128, 1), ONE, ONE) == 304_508
    assert convolution_scratch(maps[0], (4, 1, 1, 4), maps[0], ONE, (0, 0)) == 73_952


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [
        (3, 20, 32),  # no vector kernel
        (8, 20, 2 * (72 + 20 * 20 * 8) + 32),
        (16, 20, 144 + 22 * 22 * 16 + 16),
        (24, 20, 9 * 32 + 24 * 24 * 32 + 20 * 20 * 32 + 3 * 4 * 32 + 64),
        (16, 80, 144 + 31 * 82 * 16 + 32),  # 31 rows are what fits into 40 KiB
    ],
)
def test_scratch_by_channels(channels, size, expected):
    source = (1, size, size, channels)
    assert depthwise_scratch(source, (1, 3, 3, channels), source, ONE, ONE) == expected


def test_a_small_window_is_copied_alone():
    source = (1, 96, 96, 3)
    window = 32  # 27 products
    expected = 4 * 4 + 16 + 4 * window + 16 + window + 64
    assert convolution_scratch(source, (4, 3, 3, 3), (1, 96, 96, 4), ONE, ONE) == expected


MEASURED = {
    "ddunet_c4_96": (272_592, 259_940, 444_852),
    "ddunet_c8_128": (852_112, 839_444, 970_948),
}
"""Bytes of arena: x86, Cortex-M7, and with ESP-NN's scratch sizes of an ESP32-S3."""


@pytest.mark.parametrize("name", MEASURED)
def test_arenas_that_were_measured(name):
    model = read_tflite(MODELS / f"{name}.tflite")
    for runtime, expected in zip((HOST, MICROCONTROLLER, ESP32_S3), MEASURED[name], strict=True):
        assert arena_size(model, runtime).total == pytest.approx(expected, rel=NEAR)


@pytest.mark.slow
def test_arenas_that_were_measured_of_a_file_in_strips():
    """The measured file was planned otherwise, and took 504,384 bytes on x86."""
    model = fit_memory(read_tflite(MODELS / "ddunet_c8_128.tflite"), 512)
    assert arena_size(model, HOST).total <= 512 * 1024
    assert arena_size(model, ESP32_S3).total == pytest.approx(777_332, rel=NEAR)


@pytest.mark.parametrize("name", ["ddunet_c4_96", "ddunet_c4_256"])  # with a plan, and without
def test_the_planner_is_that_of_tflm(name):
    data = (MODELS / f"{name}.tflite").read_bytes()
    size, taken = arena_size(read_tflite(data)), measure_arena(data)
    assert size.head == taken["head"]
    assert taken["tail"] <= size.tail <= 1.06 * taken["tail"]


def test_scratch_is_named():
    size = arena_size(read_tflite(MODELS / "ddunet_c4_96.tflite"), ESP32_S3)
    operators = read_tflite(MODELS / "ddunet_c4_96.tflite").subgraphs[0].operators
    assert size.scratch == 221_440 and 0 <= size.scratch_operator < len(operators)
    assert arena_size(read_tflite(MODELS / "ddunet_c4_96.tflite")).scratch_operator is None
