"""What a `.tflite` file costs on a device: memory, operators, time, and the boards that it fits.

Works on any `.tflite` file. Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ddunet_keras.litert.model import (
    DTYPES,
    TFLiteError,
    constant,
    dtype_name,
    first_line,
    operator_name,
    read_tflite,
)
from ddunet_keras.litert.run import ChildError, NotInstalledError, in_child, tflm_feeds
from ddunet_keras.litert.schedule import MemoryProfile, memory_profile

_QUIET, _STRONG = "#9ecae1", "#d55e00"

RUNTIME_FLASH = 100_000
"""Bytes of flash set aside for TFLM and its kernels beside the file: an allowance, not measured."""

EDGE_TPU_CACHE = 8_000_000
"""Bytes of constants that an Edge TPU keeps on the chip (Coral's documentation: roughly 8 MB)."""

ACCELERATORS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-256")
"""Configurations for which Vela compiles."""


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
"""Makers' figures. Of the RAM, the firmware, the stack and the camera's frame need some as well.
The Grove's Ethos-U55 has 64 MACs: its memory is as here, its time is not."""


# === The graph ===


@dataclass(frozen=True)
class Node:
    """An operator with what the rules and formulas below ask of it.

    Attributes:
        model, graph: where it stands.
        subgraph, index: numbers of the subgraph and of the operator in it.
        operator: the schema's `OperatorT`.
    """

    model: object
    graph: object
    subgraph: int
    index: int
    operator: object

    @property
    def kind(self):
        return operator_name(self.model, self.operator)

    @property
    def name(self):
        """The name of its first output."""
        return _name(self.output) if self.operator.outputs else ""

    @property
    def output(self):
        return self.graph.tensors[self.operator.outputs[0]]

    def input(self, number):
        """The input tensor, or None where there is none."""
        index = self.operator.inputs[number] if number < len(self.operator.inputs) else -1
        return None if index < 0 else self.graph.tensors[index]

    def value(self, number):
        """The input's value where it is a constant, else None."""
        index = self.operator.inputs[number] if number < len(self.operator.inputs) else -1
        return None if index < 0 else constant(self.model, self.graph, index)

    def option(self, name, default=0):
        return getattr(self.operator.builtinOptions, name, default)

    def tensors(self):
        """(index, tensor) of its inputs and outputs."""
        listed = [*self.operator.inputs, *self.operator.outputs]
        return [(i, self.graph.tensors[i]) for i in listed if i >= 0]

    def is_constant(self, index):
        return constant(self.model, self.graph, index) is not None


def nodes(model) -> list[Node]:
    """Every operator of every subgraph."""
    return [
        Node(model, graph, number, index, operator)
        for number, graph in enumerate(model.subgraphs)
        for index, operator in enumerate(graph.operators)
    ]


def _name(tensor):
    return (tensor.name or b"").decode(errors="replace")


def macs(node) -> int | None:
    """Multiply-accumulates of an operator: convolutions and matrix products; 0 for all else.

    With an output of n elements: CONV_2D n kh kw c_in / groups, DEPTHWISE_CONV_2D n kh kw,
    FULLY_CONNECTED n c_in, BATCH_MATMUL n k, CONV_3D n kd kh kw c_in; TRANSPOSE_CONV: each element
    of the input is spread to kh kw c_out.

    Returns:
        an int, or None for a foreign file's operator that lacks an input or a dimension.
    """
    if node.kind not in _MACS:
        return 0
    tensors = (node.output, node.input(1), node.input(2 if node.kind == "TRANSPOSE_CONV" else 0))
    if None in tensors:
        return None
    try:
        return _MACS[node.kind](node, *(tensor.shape for tensor in tensors))
    except IndexError:
        return None


_MACS = {
    "CONV_2D": lambda node, out, kernel, data: math.prod(out) * math.prod(kernel[1:]),
    "DEPTHWISE_CONV_2D": lambda node, out, kernel, data: math.prod(out) * math.prod(kernel[1:3]),
    "FULLY_CONNECTED": lambda node, out, kernel, data: math.prod(out) * kernel[-1],
    "BATCH_MATMUL": lambda node, out, kernel, data: (
        math.prod(out) * data[-2 if node.option("adjX") else -1]
    ),
    "CONV_3D": lambda node, out, kernel, data: math.prod(out) * math.prod(kernel[:4]),
    "TRANSPOSE_CONV": lambda node, out, kernel, data: math.prod(data) * math.prod(kernel[:3]),
}


# === Edge TPU ===


def _no_fused(node):
    return node.option("fusedActivationFunction") and "it has a fused activation function"


def _same_dilation(node):
    across, down = node.option("dilationWFactor", 1), node.option("dilationHFactor", 1)
    return across != down and f"its dilation is {down} in y and {across} in x"


def _concatenation(node):
    if reason := _no_fused(node):
        return reason
    fixed = [i for i in range(len(node.operator.inputs)) if node.value(i) is not None]
    if fixed and (len(node.operator.inputs) != 2 or np.any(node.value(fixed[0]))):
        return "it has a constant input (allowed: two inputs, the constant all zeros)"
    return None


def _axes(node):
    axes = node.value(1)
    rank = len(node.input(0).shape)
    return None if axes is None else {int(axis) % rank for axis in np.ravel(axes)}


def _not_batch(node):
    axes = _axes(node)
    if axes is None:
        return "its axes are not constant"
    return len(node.input(0).shape) == 4 and 0 in axes and "it reduces the batch dimension"


def _mean(node):
    if reason := _not_batch(node):
        return reason
    shape = node.input(0).shape
    deep = len(shape) - 1 in _axes(node) and shape[-1] % 4
    return deep and f"it averages {shape[-1]} channels, which is no multiple of 4"


def _pad(node):
    paddings = node.value(1)
    if paddings is None:
        return "its paddings are not constant"
    return len(paddings) == 4 and np.any(paddings[0]) and "it pads the batch dimension"


def _fully_connected(node):
    if node.option("weightsFormat"):
        return "its weights are not in the default format"
    shape = node.output.shape
    return math.prod(shape) != shape[-1] and f"its output has shape {shape}, not one dimension"


def _softmax(node):
    shape = node.input(0).shape
    if math.prod(shape) != shape[-1] or shape[-1] > 16000:
        return f"its input has shape {shape} (allowed: one dimension, at most 16,000)"
    return None


def _strided_slice(node):
    strides = node.value(3)
    if strides is None or np.any(strides != 1):
        return "its strides are not all 1"
    masks = node.option("ellipsisMask") or node.option("newAxisMask")
    return masks and "it has an ellipsis or new-axis mask"


def _batch_axis(node):
    axis = node.option("axis")
    if node.kind == "SPLIT":
        value = node.value(0)
        axis = None if value is None else int(np.ravel(value)[0])
    rank = len(node.output.shape)
    return (axis is None or (rank == 4 and axis % rank == 0)) and "it works on the batch dimension"


def _prelu(node):
    shape = node.input(1).shape
    return math.prod(shape) != shape[-1] and f"its alpha has shape {shape}, not one dimension"


EDGE_TPU_RULES = {
    **dict.fromkeys(
        ("ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "UNIDIRECTIONAL_SEQUENCE_LSTM")
        + ("MAXIMUM", "MINIMUM", "MUL", "QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE")
        + ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SPACE_TO_DEPTH")
        + ("SQUARED_DIFFERENCE", "SQUEEZE", "SUB", "TANH", "TRANSPOSE", "TRANSPOSE_CONV")
    ),
    "AVERAGE_POOL_2D": _no_fused,
    "MAX_POOL_2D": _no_fused,
    "CONCATENATION": _concatenation,
    "CONV_2D": _same_dilation,
    "DEPTHWISE_CONV_2D": _same_dilation,
    "FULLY_CONNECTED": _fully_connected,
    "MEAN": _mean,
    "PACK": _batch_axis,
    "PAD": _pad,
    "PRELU": _prelu,
    "REDUCE_MAX": _not_batch,
    "REDUCE_MIN": _not_batch,
    "SUM": _not_batch,
    "SOFTMAX": _softmax,
    "SPLIT": _batch_axis,
    "STRIDED_SLICE": _strided_slice,
}
"""Operators of an Edge TPU -> the rule beside them in Coral's table (None: none)."""

_CONSTANT_INPUTS = dict.fromkeys(
    ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"), (1, "weights")
) | {"PRELU": (1, "alpha"), "RESHAPE": (1, "shape")}


def edge_tpu_check(model) -> dict:
    """Holds a file against the rules that Coral documents for the Edge TPU.

    It is not Coral's compiler, which knows limits that are written nowhere. Source:
    coral.ai/docs/edgetpu/models-intro, "Model requirements" and "Supported operations" (runtime
    14). The compiler splits a model once: what follows the first operator that is not mapped runs
    on the CPU.

    Args:
        model: a `ModelT` from `read_tflite`.

    Returns:
        result: "PASS", "WARN" (some operators are documented as not always mapped) or "FAIL" (a
        rule is broken); findings: dicts of level ("WARN", "FAIL"), operator (index, None for the
        whole file), kind, tensor, rule; mapped_operators, operators, mapped_macs (share in [0, 1])
        before the first FAIL.
    """
    findings = []

    def found(level, node, tensor, rule):
        findings.append(
            {
                "level": level,
                "operator": None if node is None else node.index,
                "kind": "" if node is None else node.kind,
                "tensor": tensor,
                "rule": rule,
            }
        )

    listed = nodes(model)
    if len(model.subgraphs) > 1:
        found("FAIL", None, "", f"the file has {len(model.subgraphs)} subgraphs, one is supported")
    weights = sum(len(b.data) for b in model.buffers if b.data is not None)
    if weights > EDGE_TPU_CACHE:
        found("WARN", None, "", f"{weights:,} bytes of constants: over 8 MB are streamed, slowly")
    seen = set()
    for node in listed:
        if node.subgraph == 0:
            for level, tensor, rule in _edge_tpu_findings(node):
                if not (rule.startswith("tensor ") and rule in seen):  # once, where it is first met
                    found(level, node, tensor, rule)
                seen.add(rule)
    broken = [entry["operator"] for entry in findings if entry["level"] == "FAIL"]
    first = min((0 if index is None else index for index in broken), default=len(listed))
    work = [macs(node) or 0 for node in listed]
    levels = {entry["level"] for entry in findings}
    return {
        "result": "FAIL" if "FAIL" in levels else "WARN" if "WARN" in levels else "PASS",
        "findings": findings,
        "mapped_operators": first,
        "operators": len(listed),
        "mapped_macs": sum(work[:first]) / max(sum(work), 1),
    }


def _edge_tpu_findings(node):
    """(level, tensor, rule) of what an operator breaks."""
    own = node.name
    ends = {*node.graph.inputs, *node.graph.outputs}
    floats = [i for i, tensor in node.tensors() if dtype_name(tensor).startswith("float")]
    if node.kind in ("QUANTIZE", "DEQUANTIZE") and floats and ends.issuperset(floats):
        yield "WARN", own, "float input or output of the file: it is converted on the CPU"
        return
    if node.kind not in EDGE_TPU_RULES:
        yield "FAIL", own, "the Edge TPU has no such operator"
        return
    for index, tensor in node.tensors():
        dtype, shape = dtype_name(tensor), tensor.shape
        fixed = node.is_constant(index)
        if dtype not in ("int8", "uint8") and not (fixed and dtype in ("int32", "int64")):
            yield "FAIL", _name(tensor), f"tensor {index} is {dtype}; 8-bit integers are asked for"
        signature = tensor.shapeSignature
        if signature is not None and min(signature, default=0) < 0:
            yield "FAIL", _name(tensor), f"tensor {index} has no fixed shape"
        elif not fixed and any(side > 1 for side in shape[:-3]):
            yield (
                "FAIL",
                _name(tensor),
                f"tensor {index} has shape {shape}: only the three innermost dimensions may be over"
                " 1",
            )
    number, what = _CONSTANT_INPUTS.get(node.kind, (None, None))
    if number is not None and node.input(number) is not None and node.value(number) is None:
        yield "FAIL", _name(node.input(number)), f"its {what} must be constant"
    rule = EDGE_TPU_RULES[node.kind]
    try:
        reason = rule is not None and rule(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        reason = "its inputs are not those of its kind"
    if reason:
        yield "FAIL", own, reason
    if node.kind.startswith("RESIZE_"):
        yield "WARN", own, "for some sizes it stays on the CPU, for its precision"


# === Other programs ===


def run_vela(data, accelerator) -> dict:
    """Compiles a file for an Ethos-U with Arm's Vela and reads what it reports.

    Its memory is that of Vela's default system and memory configuration for the accelerator: on a
    U55 all maps are in the SRAM, on a U65 SRAM is a cache before the DRAM.

    Args:
        data: bytes of a `.tflite` file.
        accelerator: such as "ethos-u55-128".

    Returns:
        milliseconds (operators on the NPU alone), clock_mhz, sram_kib, dram_kib, flash_kib,
        npu_operators and cpu_operators (counts after Vela's own rewriting), left_on_cpu (dicts of
        kind, tensor and reason).

    Raises:
        NotInstalledError: ethos-u-vela is not installed.
        ChildError: Vela refuses the file.
    """
    if importlib.util.find_spec("ethosu") is None:
        raise NotInstalledError("needs pip install 'ddunet-keras[mcu]'")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(data)
        command = [sys.executable, "-m", "ethosu.vela", str(path), "--output-dir", folder]
        try:
            run = subprocess.run(
                [*command, "--accelerator-config", accelerator],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
        except subprocess.TimeoutExpired:
            raise ChildError("Vela was stopped after 600 seconds") from None
        text = run.stdout.decode(errors="replace")
        counts = dict(re.findall(r"(CPU|NPU) operators = (\d+)", text))
        if run.returncode or not counts:
            lines = [s.strip() for s in text.splitlines() if s.strip()]
            lines = [s for s in lines if "a default of" not in s and not s.startswith("During")]
            raise ChildError(f"Vela ended with {run.returncode}: {lines[-1] if lines else ''}")
        rows = []
        for file in Path(folder).glob("*_summary_*.csv"):
            with file.open(newline="") as opened:
                rows += csv.DictReader(opened)
    warned = re.findall(r"\) operator: (\S+), ofm: '(.*)'\nReason: (.*)", text)
    row = rows[0] if rows else {}

    def number(key, factor=1):
        return factor * float(row[key]) if row.get(key) else 0.0

    return {
        "milliseconds": number("inference_time", 1000),
        "clock_mhz": number("core_clock", 1e-6),
        "sram_kib": number("sram_memory_used"),
        "dram_kib": number("dram_memory_used"),
        "flash_kib": number("off_chip_flash_memory_used") + number("on_chip_flash_memory_used"),
        "npu_operators": int(counts.get("NPU", 0)),
        "cpu_operators": int(counts.get("CPU", 0)),
        "left_on_cpu": [
            {"kind": kind, "tensor": tensor, "reason": reason} for kind, tensor, reason in warned
        ],
    }


def _latency_process(data, threads, seconds):
    """In the child: median time of a run in milliseconds, on zeros."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=threads)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    times = []
    interpreter.invoke()
    start = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 200):
        before = time.perf_counter()
        interpreter.invoke()
        times.append(1000 * (time.perf_counter() - before))
    return float(np.median(times[len(times) // 5 :]))


def measure_latency(data, threads=1, seconds=1.0) -> float:
    """Median time of LiteRT with XNNPACK on this machine, milliseconds, in a process of its own.

    Raises:
        ChildError: LiteRT does not run the file.
    """
    return in_child(_latency_process, data, threads, seconds)[0]


def _run_tflm(data, model):
    graph = model.subgraphs[0]
    tensors = [graph.tensors[i] for i in graph.inputs]
    if any(t.type not in DTYPES for t in tensors):
        raise TFLiteError("its inputs have no numeric type")
    feed = [np.zeros(t.shape, DTYPES[t.type]) for t in tensors]
    return tflm_feeds(data, [feed])[1]


def _attempt(wanted, function, *arguments):
    """What `function` returns, or why there is nothing."""
    if not wanted:
        return {"not_run": "not asked for"}
    try:
        return function(*arguments)
    except NotInstalledError as error:
        return {"not_run": str(error)}
    except (ChildError, TFLiteError) as error:
        return {"failed": first_line(error)}


# === The report ===


@dataclass(frozen=True)
class Report:
    """What `inspect_model` found.

    A part that could not be made is {"not_run": why} or {"failed": why}.

    Attributes:
        file: name of the file, "" for bytes.
        size: {"file", "constants", "flash"}, bytes; flash is the file and `RUNTIME_FLASH`.
        inputs, outputs: dicts of name, dtype, shape, scale, zero_point.
        operators: kind -> count, over all subgraphs.
        layers: a dict for each operator: subgraph, operator (index), kind, name, shape, macs
            (see `macs`), live_bytes (of the first subgraph).
        memory: {"live_peak", bytes of maps alive at once; "peak_operator", index; "peak_kind",
            "peak_name"; "planned", bytes of the file's own plan or None}.
        tflm: bytes of TFLM's arena {"total", "head", "tail"}.
        vela: accelerator -> `run_vela`.
        edge_tpu: `edge_tpu_check`.
        latency: {"threads_1", "threads_2"}, milliseconds of LiteRT on this machine.
        boards: dicts of board, needs (what `need_kib` is), need_kib, ram_kib, flash_kib,
            spare_ram_kib, spare_flash_kib, fits (None where `need_kib` is unknown), note.
        profile: `memory.MemoryProfile` of the first subgraph, or None.
    """

    file: str
    size: dict
    inputs: list
    outputs: list
    operators: dict
    layers: list
    memory: dict
    tflm: dict
    vela: dict
    edge_tpu: dict
    latency: dict
    boards: list
    profile: MemoryProfile | None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a run."""
        return sum(layer["macs"] or 0 for layer in self.layers)

    def to_dict(self) -> dict:
        """Everything but `profile`, as plain values for JSON."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        del found["profile"]
        return {**found, "macs": self.macs}

    def to_markdown(self) -> str:
        """A table of figures and one of boards."""
        kib = 1024
        rows = [
            (
                "file",
                f"{self.size['file']:,} bytes, {self.size['constants']:,} of them constants; "
                f"flash about {self.size['flash'] / 1000:.0f} KB with the runtime",
            ),
            ("input", "; ".join(map(_tensor_text, self.inputs))),
            ("output", "; ".join(map(_tensor_text, self.outputs))),
            (
                "operators",
                f"{sum(self.operators.values())}: "
                + ", ".join(f"{count} {kind}" for kind, count in self.operators.items()),
            ),
            ("work", f"{self.macs:,} multiply-accumulates"),
        ]
        memory = _missing(self.memory)
        if not memory:
            memory = (
                f"{self.memory['live_peak'] / kib:.1f} KiB of maps alive at operator "
                f"{self.memory['peak_operator']} ({self.memory['peak_kind']})"
            )
            if self.memory["planned"]:
                memory += f"; planned in {self.memory['planned'] / kib:.1f} KiB"
        rows.append(("memory", memory))
        arena = _missing(self.tflm) or (
            f"{self.tflm['total'] / kib:.1f} KiB: head (maps) {self.tflm['head'] / kib:.1f}, tail "
            f"(records) {self.tflm['tail'] / kib:.1f}"
        )
        rows.append(("TFLM arena", arena))
        for accelerator, found in self.vela.items():
            text = _missing(found)
            if not text:
                left = [f"{entry['kind']} {entry['tensor']!r}" for entry in found["left_on_cpu"]]
                text = (
                    f"{found['milliseconds']:.3g} ms at {found['clock_mhz']:.0f} MHz, SRAM "
                    f"{found['sram_kib']:.0f} KiB, DRAM {found['dram_kib']:.0f} KiB, "
                    if found["npu_operators"]
                    else "nothing runs on it: "
                )
                text += f"{_count(found['cpu_operators'], 'operator')} on the CPU"
                text += f" ({_first_few(left, 3)})" if left else ""
            rows.append((f"Vela, {accelerator}", text))
        check = self.edge_tpu
        text = f"{check['result']} (documented rules, not the compiler)"
        if check["findings"]:
            text += (
                f": {check['mapped_operators']} of {check['operators']} operators and "
                f"{100 * check['mapped_macs']:.1f} % of the work before the first broken rule"
            )
        rows.append(("Edge TPU", text))
        latency = "; ".join(
            f"{_missing(value) or f'{value:.3g} ms'} ({_count(int(key[-1]), 'thread')})"
            for key, value in self.latency.items()
        )
        rows.append(("LiteRT here", latency))
        lines = [f"| {self.file or 'model'} | |", "|---|---|"]
        lines += [f"| {name} | {_cell(text)} |" for name, text in rows]
        if check["findings"]:
            lines += ["", "| Edge TPU | operator | tensor | rule |", "|---|---|---|---|"]
            for entry in _grouped(check["findings"]):
                lines.append("| " + " | ".join(map(_cell, entry)) + " |")
        lines += [
            "",
            "| board | RAM, KiB | needs, KiB | spare, KiB | fits | |",
            "|---|" + "---|" * 5,
        ]
        for row in self.boards:
            fits = {True: "yes", False: "no", None: "not known"}[row["fits"]]
            need = "" if row["need_kib"] is None else f"{row['need_kib']:.0f} ({row['needs']})"
            spare = "" if row["need_kib"] is None else f"{row['spare_ram_kib']:+.0f}"
            lines.append(
                f"| {row['board']} | {row['ram_kib']:,} | {need} | {spare} | {fits} "
                f"| {_cell(row['note'])} |"
            )
        return "\n".join(lines) + "\n"

    def plot(self, path) -> None:
        """Draws the memory over the operators, with the peak marked, to a picture file.

        Above what is alive at each operator; a file with a memory plan also shows where each tensor
        lies in the arena.

        Raises:
            TFLiteError: the file has tensors of no fixed size.
        """
        if reason := _missing(self.memory):
            raise TFLiteError(f"no picture of its memory: {reason}")
        _plot(self, path)


def _missing(part):
    if not isinstance(part, dict):
        return ""
    if "not_run" in part:
        return f"not run: {part['not_run']}"
    return f"failed: {part['failed']}" if "failed" in part else ""


def _count(number, thing):
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _cell(text):
    return str(text).replace("|", "/").replace("\n", " ")


def _tensor_text(tensor):
    text = f"{tensor['dtype']} {'x'.join(map(str, tensor['shape']))}"
    if tensor["scale"] is not None:
        text += f", scale {tensor['scale']:.6g}, zero point {tensor['zero_point']}"
    return text


def _grouped(findings):
    """(level, operators, tensor, rule), findings that break the same rule in one row."""
    groups = {}
    for entry in findings:
        rule = re.sub(r"tensor \d+", "a tensor", entry["rule"])
        groups.setdefault((entry["level"], rule), []).append(entry)
    for (level, rule), entries in groups.items():
        kinds = {}
        for entry in entries:
            if entry["operator"] is not None:
                kinds.setdefault(entry["kind"], []).append(str(entry["operator"]))
        operators = [f"{kind} {_first_few(dict.fromkeys(n), 6)}" for kind, n in kinds.items()]
        tensors = dict.fromkeys(e["tensor"] for e in entries)
        yield level, _first_few(operators), _first_few(tensors, 1), rule


def _first_few(items, most=4):
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _fit_boards(size, tflm, vela, edge_tpu):
    rows = []
    for board in BOARDS:
        needs, need, note = "TFLM arena", None, ""
        if "total" in tflm:
            need = tflm["total"] / 1024
        if board.accelerator in vela:
            found = vela[board.accelerator]
            note = "on the CPU"
            if reason := _missing(found):
                note += f"; Vela {reason}"
            elif found["npu_operators"]:
                needs, need = "Vela SRAM", found["sram_kib"]
                note = f"{_count(found['cpu_operators'], 'operator')} on the CPU"
        elif board.accelerator == "edgetpu":
            note = f"Edge TPU: {edge_tpu['result']}"
        flash = board.flash_kib - size["flash"] / 1024
        rows.append(
            {
                "board": board.name,
                "needs": needs,
                "need_kib": need,
                "ram_kib": board.ram_kib,
                "flash_kib": board.flash_kib,
                "spare_ram_kib": None if need is None else board.ram_kib - need,
                "spare_flash_kib": flash,
                "fits": None if need is None else bool(need <= board.ram_kib and flash >= 0),
                "note": note if flash >= 0 else f"{note}; {-flash:.0f} KiB too little flash",
            }
        )
    return rows


def _ends(graph, indices):
    found = []
    for tensor in (graph.tensors[i] for i in indices):
        quantization = tensor.quantization
        scaled = quantization is not None and quantization.scale is not None
        scaled = scaled and len(quantization.scale) == 1
        points = quantization.zeroPoint if scaled else None
        found.append(
            {
                "name": _name(tensor),
                "dtype": dtype_name(tensor),
                "shape": tensor.shape,
                "scale": float(quantization.scale[0]) if scaled else None,
                "zero_point": int(points[0]) if points is not None else 0 if scaled else None,
            }
        )
    return found


def _profile(model):
    """`memory_profile` of the first subgraph."""
    first = copy.copy(model)
    first.subgraphs = model.subgraphs[:1]
    try:
        profile = memory_profile(first)
        if profile.planned is not None and not 0 < profile.planned < 2**31:
            raise TFLiteError("its memory plan is not sound")
        return profile
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise TFLiteError(f"its memory cannot be followed ({first_line(error)})") from None


def inspect_model(source, *, name="", latency=True, vela=True, tflm=True) -> Report:
    """Reports what a `.tflite` file costs on devices.

    Args:
        source: path or bytes of any `.tflite` file: integer or float, ours or not.
        name: stands in the report; the file's own name by default.
        latency: whether to time LiteRT here, with 1 and 2 threads (about three seconds).
        vela: whether to compile with Vela for `ACCELERATORS`.
        tflm: whether to run the file in TFLM to learn its arena.

    Raises:
        TFLiteError: no sound `.tflite` file; one line that says which and why.

    Example:

    >>> report = inspect_model("sky.tflite")  # doctest: +SKIP
    >>> report.tflm["total"]  # doctest: +SKIP
    870400
    """
    model = read_tflite(source)
    raw = isinstance(source, (bytes, bytearray, memoryview))
    data = bytes(source) if raw else Path(source).read_bytes()
    graph = model.subgraphs[0]
    listed = nodes(model)
    constants = sum(len(b.data) for b in model.buffers if b.data is not None)
    size = {"file": len(data), "constants": constants, "flash": len(data) + RUNTIME_FLASH}
    profile = memory = _attempt(True, _profile, model)
    if isinstance(profile, MemoryProfile):
        memory = {
            "live_peak": profile.peak,
            "peak_operator": profile.peak_operator,
            "peak_kind": listed[profile.peak_operator].kind,
            "peak_name": listed[profile.peak_operator].name,
            "planned": profile.planned,
        }
    known = not _missing(memory)
    layers = [
        {
            "subgraph": node.subgraph,
            "operator": node.index,
            "kind": node.kind,
            "name": node.name,
            "shape": node.output.shape if node.operator.outputs else [],
            "macs": macs(node),
            "live_bytes": profile.live[node.index] if known and node.subgraph == 0 else None,
        }
        for node in listed
    ]
    arena = _attempt(tflm, _run_tflm, data, model)
    compiled = {name: _attempt(vela, run_vela, data, name) for name in ACCELERATORS}
    checked = edge_tpu_check(model)
    timed = {f"threads_{n}": _attempt(latency, measure_latency, data, n) for n in (1, 2)}
    return Report(
        file=name or ("" if raw else Path(source).name),
        size=size,
        inputs=_ends(graph, graph.inputs),
        outputs=_ends(graph, graph.outputs),
        operators=dict(Counter(node.kind for node in listed).most_common()),
        layers=layers,
        memory=memory,
        tflm=arena,
        vela=compiled,
        edge_tpu=checked,
        latency=timed,
        boards=_fit_boards(size, arena, compiled, checked),
        profile=profile if known else None,
    )


def _plot(report, path):
    from matplotlib.figure import Figure  # without pyplot: no state, no display
    from matplotlib.patches import Rectangle

    profile, kib = report.profile, 1024
    live = np.array(profile.live) / kib
    peak, planned = profile.peak_operator, profile.planned
    figure = Figure(figsize=(10, 7 if planned else 4), layout="constrained")
    axes = figure.subplots(2 if planned else 1, 1, sharex=True, squeeze=False)[:, 0]
    top, left = axes[0], peak < len(live) / 2
    top.bar(range(len(live)), live, width=1.0, color=_QUIET, linewidth=0)
    top.bar([peak], live[peak], width=1.0, color=_STRONG, linewidth=0)
    arena = report.tflm.get("total", 0) / kib
    top.set_ylim(0, 1.3 * max(live[peak], arena))
    top.annotate(
        f"peak: {live[peak]:,.0f} KiB alive at operator {peak}, {profile.names[peak]}",
        (peak, live[peak]),
        xytext=(peak, 1.2 * max(live[peak], arena)),
        ha="left" if left else "right",
        va="center",
        color=_STRONG,
        arrowprops={
            "arrowstyle": "-",
            "color": _STRONG,
            "shrinkB": 0,
            "relpos": (0.0 if left else 1.0, 0.0),
        },
    )
    if arena:
        top.axhline(arena, color="#333333", linewidth=1, linestyle="--")
        top.text(
            len(live) if left else 0,
            arena * 1.01,
            f"arena of TFLM with its records: {arena:,.0f} KiB",
            ha="right" if left else "left",
            va="bottom",
        )
    top.set_ylabel("alive, KiB")
    top.set_title(report.file or "Memory over the operators")
    if planned:
        axes[1].set_ylabel("place in the arena, KiB")
        axes[1].set_ylim(0, 1.05 * planned / kib)
        for tensor, offset in profile.offsets.items():
            first, last = profile.lifetimes[tensor]
            axes[1].add_patch(
                Rectangle(
                    (first - 0.5, offset / kib),
                    last - first + 1,
                    profile.sizes[tensor] / kib,
                    facecolor=_STRONG if first <= peak <= last else _QUIET,
                    edgecolor="white",
                    linewidth=0.5,
                )
            )
    axes[-1].set_xlabel("operator")
    axes[-1].set_xlim(-0.5, len(live) + 0.5)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
