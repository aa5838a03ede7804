"""Boards, what an application may use of them, and whether a file fits."""

from __future__ import annotations

from dataclasses import dataclass

from ddunet_keras.litert.cost import CORES, milliseconds
from ddunet_keras.litert.esp_nn import ESP32_S3
from ddunet_keras.litert.memory import MICROCONTROLLER

RUNTIME_FLASH = 160_000
"""Bytes of flash beside the file, as measured: TFLM with CMSIS-NN's kernels took 115 to 123 KB,
with the reference kernels 83; the C library took 34 to 37."""

KIB = 1024

FRAME_KIB = 320 * 240 * 2 / KIB
"""A frame of a camera: 320x240 pixels, RGB565."""

RUNTIMES = {"microcontroller": MICROCONTROLLER, "esp32-s3": ESP32_S3}
"""Key -> the TFLM for which a report reckons the arena."""


@dataclass(frozen=True)
class Board:
    """A board and what an application may use of it.

    Attributes:
        name: the board, with the memory meant where it has several.
        ram_kib: all memory of that kind, KiB.
        contiguous_kib: the largest part of it at consecutive addresses, which an arena needs.
        arena_kib: what is left of that for the arena beside the framework, its stack and its heap.
        flash_kib: memory for the program and the file, KiB.
        runtime: a key of `RUNTIMES`.
        core: a key of `CORES`, None for those that no estimate is made for.
        clock_mhz: of the core.
        external_memory: whether it is external memory.
        frame_beside: whether a camera's frame can be elsewhere, and need not share the memory.
        accelerator: a Vela configuration or "edgetpu", None where the CPU does the work.
    """

    name: str
    ram_kib: int
    contiguous_kib: int
    arena_kib: int
    flash_kib: int
    runtime: str = "microcontroller"
    core: str | None = None
    clock_mhz: int = 0
    external_memory: bool = False
    frame_beside: bool = True
    accelerator: str | None = None


BOARDS = (
    Board(
        # ESP-IDF: 0x3FC88000 to 0x3FCE9710, of which programs left 298 to 338 KiB at their start
        "ESP32-S3, SRAM",
        ram_kib=512,
        contiguous_kib=389,
        arena_kib=320,
        flash_kib=8 * 1024,
        runtime="esp32-s3",
        core="esp32-s3",
        clock_mhz=240,
        frame_beside=False,
    ),
    Board(
        "ESP32-S3, PSRAM",
        ram_kib=8 * 1024,
        contiguous_kib=8 * 1024,
        arena_kib=8 * 1024 - 512,
        flash_kib=8 * 1024,
        runtime="esp32-s3",
        core="esp32-s3",
        clock_mhz=240,
        external_memory=True,
    ),
    Board(
        # no kernels of its own in ESP-NN; 3 MB of flash is its largest usual partition
        "ESP32-CAM (ESP32, PSRAM)",
        ram_kib=4 * 1024,
        contiguous_kib=4 * 1024,
        arena_kib=4 * 1024 - 512,
        flash_kib=3 * 1024,
    ),
    Board(
        # two banks of 4 KiB lie apart; 64 KiB for data, heap and a line buffer
        "RP2350",
        ram_kib=520,
        contiguous_kib=512,
        arena_kib=448,
        flash_kib=4 * 1024,
        frame_beside=False,
    ),
    Board(
        # Arduino counts 523,624 bytes, of which programs leave 418 to 448 KiB
        "Arduino Nicla Vision",
        ram_kib=1024,
        contiguous_kib=512,
        arena_kib=416,
        flash_kib=1920,
        core="cortex-m7",
        clock_mhz=480,
    ),
    Board(
        # AXI SRAM; the others have 288, 128 and 64 KB at addresses of their own
        "STM32H743, H747",
        ram_kib=1024,
        contiguous_kib=512,
        arena_kib=480,
        flash_kib=2 * 1024,
        core="cortex-m7",
        clock_mhz=480,
    ),
    Board(
        # MicroPython's second heap in the SDRAM, which the module `ml` takes an arena from, less
        # 1 MiB for the script; files lie in 8 MB of flash (boards/OPENMV4P/board_config.h)
        "OpenMV H7 Plus",
        ram_kib=32 * 1024,
        contiguous_kib=4 * 1024,
        arena_kib=3 * 1024,
        flash_kib=8 * 1024,
        core="cortex-m7",
        clock_mhz=480,
        external_memory=True,
    ),
    Board(
        # the same with a heap of 8 MiB (boards/OPENMV_RT1060/board_config.h)
        "OpenMV RT1062",
        ram_kib=32 * 1024,
        contiguous_kib=8 * 1024,
        arena_kib=7 * 1024,
        flash_kib=8 * 1024,
        core="cortex-m7",
        clock_mhz=600,
        external_memory=True,
    ),
    Board(
        # 0x34064000 to 0x343C0000. Its own NPU is no Ethos-U
        "STM32N6 (OpenMV N6)",
        ram_kib=4300,
        contiguous_kib=3440,
        arena_kib=2637,
        flash_kib=32 * 1024,
        core="cortex-m55",
        clock_mhz=800,
    ),
    Board(
        # the manufacturer's examples reserve 1053 KiB for an arena
        "Grove Vision AI V2",
        ram_kib=2432,
        contiguous_kib=2 * 1024,
        arena_kib=1053,
        flash_kib=16 * 1024,
        core="cortex-m55",
        clock_mhz=400,
        accelerator="ethos-u55-128",
    ),
    Board(
        # two banks of 4 MB; half of one is assumed
        "OpenMV AE3",
        ram_kib=13824,
        contiguous_kib=4 * 1024,
        arena_kib=2 * 1024,
        flash_kib=32 * 1024,
        core="cortex-m55",
        clock_mhz=400,
        accelerator="ethos-u55-256",
    ),
    Board(
        "Coral Dev Board Micro",
        ram_kib=64 * 1024,
        contiguous_kib=64 * 1024,
        arena_kib=32 * 1024,
        flash_kib=128 * 1024,
        core="cortex-m7",
        clock_mhz=800,
        external_memory=True,
        accelerator="edgetpu",
    ),
)
"""From manufacturers' data sheets and linker scripts. What a framework leaves depends on the
program: networking takes 50 KiB and more. The Grove's Ethos-U55 has 64 MACs: its memory is as
here."""


def why_missing(part: object) -> str:
    """Why a part of a report could not be made, "" where it was.

    Example:

    >>> why_missing({"failed": "no such operator"})
    'failed: no such operator'
    """
    if not isinstance(part, dict):
        return ""
    if "not_run" in part:
        return f"not run: {part['not_run']}"
    return f"failed: {part['failed']}" if "failed" in part else ""


def count_of(number: int, thing: str) -> str:
    """A number of things, as "1 operator" or "2 operators"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def fit_boards(parts: dict) -> list[dict]:
    """Whether a file fits each of `BOARDS`.

    Args:
        parts: size, tflm, arenas, estimates, vela and edge_tpu, as in
            `ddunet_keras.litert.inspect.Report`.

    Returns:
        Dicts of board, needs (what `need_kib` is), need_kib, arena_kib, contiguous_kib, ram_kib,
        flash_kib, spare_ram_kib, spare_flash_kib, fits (None where `need_kib` is unknown),
        milliseconds (an estimate, None where there is none), note.
    """
    return [_fit(board, parts) for board in BOARDS]


def _fit(board, parts):
    needs, need, notes = "TFLM arena", None, []
    arena = parts["arenas"].get(board.runtime, {})
    if "total" in arena and "failed" not in parts["tflm"]:
        need = arena["total"] / KIB
    time = _milliseconds(board, parts["estimates"])
    if board.accelerator in parts["vela"]:
        found = parts["vela"][board.accelerator]
        reason = why_missing(found)
        if not reason and found["npu_operators"]:
            needs, need, time = "Vela SRAM", found["sram_kib"], None  # see the report of Vela
            notes.append(f"{count_of(found['cpu_operators'], 'operator')} on the CPU")
        else:
            notes.append(f"on the CPU; Vela {reason}" if reason else "on the CPU")
    elif board.accelerator == "edgetpu":
        notes.append(f"Edge TPU: {parts['edge_tpu']['result']}")
    spare = None if need is None else board.arena_kib - need
    if spare is not None and 0 <= spare < FRAME_KIB and not board.frame_beside:
        notes.append("no room for a frame of 320x240 beside it")
    flash = board.flash_kib - parts["size"]["flash"] / KIB
    if flash < 0:
        notes.append(f"{-flash:.0f} KiB too little flash")
    return {
        "board": board.name,
        "needs": needs,
        "need_kib": need,
        "arena_kib": board.arena_kib,
        "contiguous_kib": board.contiguous_kib,
        "ram_kib": board.ram_kib,
        "flash_kib": board.flash_kib,
        "spare_ram_kib": spare,
        "spare_flash_kib": flash,
        "fits": None if spare is None else bool(spare >= 0 and flash >= 0),
        "milliseconds": time,
        "note": "; ".join(notes),
    }


def _milliseconds(board, estimates):
    """The estimated time of a CPU, None where there is none."""
    count = estimates.get(board.core, {}).get("instructions")
    if count is None:
        return None
    core = CORES[board.core]
    time = milliseconds(count, core, board.external_memory)
    return time * core.clock_mhz / board.clock_mhz
