"""Compiles a file for an Ethos-U with Arm's Vela, and reads what it says of time and memory."""

from __future__ import annotations

import csv
import importlib.util
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ddunet_keras.litert.child import ChildError, NotInstalledError, in_child

TIMEOUT = 120
"""Seconds after which Vela is stopped; a segmenter takes one or two."""

MEMORY = 2**32
"""Bytes of address space that Vela may have."""


@dataclass(frozen=True)
class Accelerator:
    """What Vela compiles for.

    Attributes:
        system: the clock, and which memories are on the buses: a `System_Config` of Vela's own
            configuration file.
        memory: which of them holds feature maps and constants: a `Memory_Mode` of that file.
    """

    system: str
    memory: str


ACCELERATORS = {
    "ethos-u55-128": Accelerator("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u55-256": Accelerator("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65-256": Accelerator("Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "ethos-u85-256": Accelerator("Ethos_U85_SYS_Flash_High", "Shared_Sram"),
}
"""Accelerators that a report is made for. A U55 and a U85 stand for microcontrollers: feature maps
in the SRAM, constants in the flash. A U65 stands beside a processor with DRAM, for which the SRAM
is a cache. But for the U85, they are what Vela takes by itself."""


def run_vela(data: bytes, accelerator: str) -> dict:
    """Compiles a file for an Ethos-U with Arm's Vela and reads what it reports.

    Args:
        data: bytes of a `.tflite` file.
        accelerator: one of `ACCELERATORS`.

    Returns:
        milliseconds (operators on the NPU alone), clock_mhz, sram_kib, dram_kib, flash_kib,
        npu_operators and cpu_operators (counts after Vela's own rewriting), left_on_cpu (dicts of
        kind, tensor and reason).

    Raises:
        NotInstalledError: ethos-u-vela is not installed.
        ChildError: Vela refuses the file, dies or takes over `TIMEOUT` seconds.
        ValueError: there is no such accelerator.

    Example:

    >>> run_vela(data, "ethos-u55-128")["sram_kib"]  # doctest: +SKIP
    1152.2
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"`accelerator` must be one of {tuple(ACCELERATORS)}. Received: {accelerator!r}"
        )
    if importlib.util.find_spec("ethosu") is None:
        raise NotInstalledError("needs pip install '.[mcu]' in the clone")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(data)
        chosen = ACCELERATORS[accelerator]
        options = ["--output-dir", folder, "--accelerator-config", accelerator]
        options += ["--config", "Arm/vela.ini", "--system-config", chosen.system]
        options += ["--memory-mode", chosen.memory]
        _, text = in_child(_compile, str(path), options, timeout=TIMEOUT, memory=MEMORY)
        row: dict[str, str] = {}
        for file in Path(folder).glob("*_summary_*.csv"):
            with file.open(newline="") as opened:
                row = next(csv.DictReader(opened), {})
    counts = dict(re.findall(r"(CPU|NPU) operators = (\d+)", text))
    if not counts:
        raise ChildError("Vela did not say how many operators it placed")

    def number(key, factor=1.0):
        return factor * float(row.get(key) or 0)

    left = re.findall(r"\) operator: (\S+), ofm: '(.*)'\nReason: (.*)", text)
    return {
        "milliseconds": number("inference_time", 1e3),
        "clock_mhz": number("core_clock", 1e-6),
        "sram_kib": number("sram_memory_used"),
        "dram_kib": number("dram_memory_used"),
        "flash_kib": number("off_chip_flash_memory_used") + number("on_chip_flash_memory_used"),
        "npu_operators": int(counts.get("NPU", 0)),
        "cpu_operators": int(counts.get("CPU", 0)),
        "left_on_cpu": [
            {"kind": kind, "tensor": tensor, "reason": reason} for kind, tensor, reason in left
        ],
    }


def _compile(path, options):
    """In the child."""
    from ethosu.vela.vela import main

    if code := main([path, *options]):
        raise RuntimeError(f"Vela ended with {code}")
