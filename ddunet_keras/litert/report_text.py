"""A report of what a file costs, as tables for a person."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ddunet_keras.litert.boards import KIB, count_of, why_missing
from ddunet_keras.litert.cost import CORES

if TYPE_CHECKING:
    from ddunet_keras.litert.inspect import Report

MAX_OPERATORS_LEFT = 3
"""Most operators left on the CPU that a row names."""

RUNTIME_NAMES = {"microcontroller": "", "esp32-s3": "ESP32-S3: "}

_FITS = {True: "yes", False: "no", None: "not known"}


def report_to_markdown(report: Report) -> str:
    """A table of figures, one of what the Edge TPU's rules find, and one of boards."""
    rows = [
        ("file", _file(report)),
        ("input", "; ".join(map(_tensor, report.inputs))),
        ("output", "; ".join(map(_tensor, report.outputs))),
        ("operators", _operators(report)),
        ("work", f"{report.macs:,} multiply-accumulates"),
        ("memory", _memory(report.memory)),
        ("TFLM arena", _arena(report.tflm)),
        ("arena on a microcontroller", _reckoned(report)),
        ("TFLM's time, an estimate", _estimates(report.estimates)),
        *((f"Vela, {name}", _vela(found)) for name, found in report.vela.items()),
        ("Edge TPU", _edge_tpu(report.edge_tpu)),
        ("LiteRT here", _latency(report.latency)),
    ]
    lines = [f"| {_cell(report.file or 'model')} | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in rows]
    if report.edge_tpu["findings"]:
        lines += ["", "| Edge TPU | operator | tensor | rule |", "|---|---|---|---|"]
        for entry in _grouped(report.edge_tpu["findings"]):
            lines.append("| " + " | ".join(map(_cell, entry)) + " |")
    lines += ["", "| board | arena at most, KiB | needs, KiB | spare, KiB | fits | ms, about | |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [_board(row) for row in report.boards]
    return "\n".join(lines) + "\n"


def _file(report):
    size = report.size
    return (
        f"{size['file']:,} bytes, {size['constants']:,} of them constants; flash about "
        f"{size['flash'] / 1000:.0f} KB with the runtime"
    )


def _tensor(tensor):
    text = f"{tensor['dtype']} {'x'.join(map(str, tensor['shape']))}"
    if tensor["scale"] is not None:
        text += f", scale {tensor['scale']:.6g}, zero point {tensor['zero_point']}"
    return text


def _operators(report):
    kinds = [f"{count} {kind}" for kind, count in report.operators.items()]
    return f"{sum(report.operators.values())}: {', '.join(kinds)}"


def _memory(memory):
    if reason := why_missing(memory):
        return reason
    text = (
        f"{memory['live_peak'] / KIB:.1f} KiB of feature maps alive at operator "
        f"{memory['peak_operator']} ({memory['peak_kind']})"
    )
    if memory["planned"]:
        text += f"; planned in {memory['planned'] / KIB:.1f} KiB"
    return text


def _arena(tflm):
    return why_missing(tflm) or (
        f"{tflm['total'] / KIB:.1f} KiB: head (feature maps) {tflm['head'] / KIB:.1f}, tail "
        f"(persistent allocations) {tflm['tail'] / KIB:.1f}"
    )


def _reckoned(report):
    texts = []
    for key, arena in report.arenas.items():
        text = RUNTIME_NAMES[key] + (why_missing(arena) or _reckoned_arena(arena))
        texts.append(text)
    return "; ".join(texts)


def _reckoned_arena(arena):
    text = f"{arena['total'] / KIB:.1f} KiB"
    if arena["scratch"]:
        text += (
            f", ESP-NN's scratch memory included (most at operator {arena['scratch_operator']}: "
            f"{arena['scratch'] / KIB:.1f})"
        )
    return text


def _estimates(estimates):
    texts = []
    for key, found in estimates.items():
        core = CORES[key]
        text = why_missing(found)
        if not text:
            text = (
                f"{_two_digits(found['instructions'] / 1e6)} M {core.unit}, "
                f"{_two_digits(found['milliseconds'])} ms at {core.clock_mhz} MHz"
            )
        texts.append(f"{core.name}: {text}")
    return "; ".join(texts)


def _vela(found):
    if reason := why_missing(found):
        return reason
    text = "nothing runs on it: "
    if found["npu_operators"]:
        text = (
            f"{found['milliseconds']:.3g} ms at {found['clock_mhz']:.0f} MHz, SRAM "
            f"{found['sram_kib']:.0f} KiB, DRAM {found['dram_kib']:.0f} KiB, "
        )
    text += f"{count_of(found['cpu_operators'], 'operator')} on the CPU"
    left = [f"{entry['kind']} {entry['tensor']!r}" for entry in found["left_on_cpu"]]
    return text + (f" ({_first_few(left, MAX_OPERATORS_LEFT)})" if left else "")


def _edge_tpu(check):
    text = f"{check['result']} (documented rules, not the compiler)"
    if check["findings"]:
        text += (
            f": {check['mapped_operators']} of {check['operators']} operators and "
            f"{100 * check['mapped_macs']:.1f} % of the work before the first broken rule"
        )
    return text


def _latency(latency):
    texts = []
    for key, value in latency.items():
        threads = count_of(int(key.removeprefix("threads_")), "thread")
        texts.append(f"{why_missing(value) or f'{value:.3g} ms'} ({threads})")
    return "; ".join(texts)


def _board(row):
    need = spare = ""
    if row["need_kib"] is not None:
        need = f"{row['need_kib']:.0f} ({row['needs']})"
        spare = f"{row['spare_ram_kib']:+.0f}"
    time = "" if row["milliseconds"] is None else f"{_two_digits(row['milliseconds']):,}"
    return (
        f"| {row['board']} | {row['arena_kib']:,} | {need} | {spare} | {_FITS[row['fits']]} "
        f"| {time} | {_cell(row['note'])} |"
    )


def _two_digits(value: float) -> float:
    """An estimate, without digits that it does not have."""
    rounded = float(f"{value:.2g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _cell(text):
    return str(text).replace("|", "/").replace("\n", " ")


def _grouped(findings) -> Iterator[tuple[str, str, str, str]]:
    """(level, operators, tensor, rule), findings that break the same rule in one row."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for entry in findings:
        rule = re.sub(r"tensor \d+", "a tensor", entry["rule"])
        groups.setdefault((entry["level"], rule), []).append(entry)
    for (level, rule), entries in groups.items():
        kinds: dict[str, dict[str, None]] = {}
        for entry in entries:
            if entry["operator"] is not None:
                kinds.setdefault(entry["kind"], {})[str(entry["operator"])] = None
        operators = [f"{kind} {_first_few(numbers, 6)}" for kind, numbers in kinds.items()]
        tensors = dict.fromkeys(entry["tensor"] for entry in entries)
        yield level, _first_few(operators), _first_few(tensors, 1), rule


def _first_few(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
