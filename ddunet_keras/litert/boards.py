"""Boards, what an application may use of them, and whether a file fits."""

from __future__ import annotations

from dataclasses import dataclass

RUNTIME_FLASH = 100_000
"""Bytes of flash set aside for TFLM and its kernels beside the file: an allowance, not measured."""

KIB = 1024


@dataclass(frozen=True)
class Board:
    """A board and what an application may use of it.

    Attributes:
        name: the board, with the memory meant where it has several.
        ram_kib: memory for the tensor arena, KiB.
        flash_kib: memory for the program and the file, KiB.
        accelerator: a Vela configuration or "edgetpu", None where the CPU does the work.
    """

    name: str
    ram_kib: int
    flash_kib: int
    accelerator: str | None = None


BOARDS = (
    Board("ESP32-S3, SRAM", 512, 8 * 1024),
    Board("RP2350", 520, 4 * 1024),
    Board("Arduino Nicla Vision", 1024, 2 * 1024),
    Board("Grove Vision AI V2", 2 * 1024, 16 * 1024, "ethos-u55-128"),
    Board("OpenMV N6", 2637, 32 * 1024),
    Board("ESP32-S3, PSRAM", 8 * 1024, 8 * 1024),
    Board("OpenMV AE3", 13824, 32 * 1024, "ethos-u55-256"),
    Board("Coral Dev Board Micro", 64 * 1024, 128 * 1024, "edgetpu"),
)
"""Manufacturers' figures. Of the RAM, the firmware, the stack and the camera's frame need some as
well. The Grove's Ethos-U55 has 64 MACs: its memory is as here, its time is not."""


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


def fit_boards(size: dict, tflm: dict, vela: dict, edge_tpu: dict) -> list[dict]:
    """Whether a file fits each of `BOARDS`.

    Args:
        size, tflm, vela, edge_tpu: as in `ddunet_keras.litert.inspect.Report`.

    Returns:
        Dicts of board, needs (what `need_kib` is), need_kib, ram_kib, flash_kib, spare_ram_kib,
        spare_flash_kib, fits (None where `need_kib` is unknown), note.
    """
    return [_fit(board, size, tflm, vela, edge_tpu) for board in BOARDS]


def _fit(board, size, tflm, vela, edge_tpu):
    needs, need, note = "TFLM arena", None, ""
    if "total" in tflm:
        need = tflm["total"] / KIB
    if board.accelerator in vela:
        found = vela[board.accelerator]
        note = "on the CPU"
        if reason := why_missing(found):
            note += f"; Vela {reason}"
        elif found["npu_operators"]:
            needs, need = "Vela SRAM", found["sram_kib"]
            note = f"{count_of(found['cpu_operators'], 'operator')} on the CPU"
    elif board.accelerator == "edgetpu":
        note = f"Edge TPU: {edge_tpu['result']}"
    flash = board.flash_kib - size["flash"] / KIB
    if flash < 0:
        note += f"; {-flash:.0f} KiB too little flash"
    return {
        "board": board.name,
        "needs": needs,
        "need_kib": need,
        "ram_kib": board.ram_kib,
        "flash_kib": board.flash_kib,
        "spare_ram_kib": None if need is None else board.ram_kib - need,
        "spare_flash_kib": flash,
        "fits": None if need is None else bool(need <= board.ram_kib and flash >= 0),
        "note": note,
    }
