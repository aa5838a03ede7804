"""What a `.tflite` file costs on devices, whatever file it is: `inspect_model` makes a `Report`.

The parts of the report: `ddunet_keras.litert.memory` follows the memory, `arena_size` reckons
TFLM's arena on a microcontroller, `run` measures it here and LiteRT's time, `cost` estimates TFLM's
time, `vela` compiles for an Ethos-U, `edge_tpu` checks Coral's rules, `boards` says what fits.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.arena_size import arena_size
from ddunet_keras.litert.boards import RUNTIME_FLASH, RUNTIMES, fit_boards, why_missing
from ddunet_keras.litert.child import ChildError, NotInstalledError
from ddunet_keras.litert.cost import CORES, Core, instructions, milliseconds
from ddunet_keras.litert.edge_tpu import edge_tpu_check
from ddunet_keras.litert.memory import MemoryProfile, Runtime, memory_profile
from ddunet_keras.litert.model import (
    TFLiteError,
    dtype_name,
    file_bytes,
    first_line,
    read_tflite,
    tensor_name,
)
from ddunet_keras.litert.nodes import Node, macs, nodes
from ddunet_keras.litert.report_plot import plot_memory
from ddunet_keras.litert.report_text import report_to_markdown
from ddunet_keras.litert.run import measure_arena, measure_latency
from ddunet_keras.litert.vela import ACCELERATORS, run_vela

THREADS = (1, 2)
"""Numbers of threads that LiteRT is timed with."""

MAX_FOLLOWED = 10_000
"""Most inputs and outputs of operators for which the memory is followed: the time grows with the
square. Segmenters have about 1,000."""

MAX_PLANNED = 2**31
"""Bytes that a memory plan must stay below: TFLM counts in 32 bits."""


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
        memory: {"live_peak", bytes of feature maps alive at once; "peak_operator", index;
            "peak_kind", "peak_name"; "planned", bytes of the file's own plan or None}.
        tflm: bytes of TFLM's arena on this machine {"total", "head", "tail"}.
        arenas: key of `boards.RUNTIMES` -> the same on a microcontroller, reckoned, and "scratch",
            the most scratch memory of an operator, and "scratch_operator", its index or None.
        estimates: key of `cost.CORES` -> {"instructions", "milliseconds"} of TFLM, at the core's
            usual clock and in internal memory.
        vela: accelerator -> `run_vela`.
        edge_tpu: `edge_tpu_check`.
        latency: {"threads_1", "threads_2"}, milliseconds of LiteRT on this machine.
        boards: `fit_boards`.
        profile: `MemoryProfile` of the first subgraph, or None.
    """

    file: str
    size: dict
    inputs: list
    outputs: list
    operators: dict
    layers: list
    memory: dict
    tflm: dict
    arenas: dict
    estimates: dict
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
        """Everything but `profile`, as JSON holds it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        del found["profile"]
        return {**found, "macs": self.macs}

    def to_markdown(self) -> str:
        """A table of figures and one of boards."""
        return report_to_markdown(self)

    def plot(self, path: str | Path) -> None:
        """Draws the memory over the operators, with the peak marked, to a picture file.

        Raises:
            TFLiteError: the memory could not be followed, as where tensors have no fixed size.
        """
        if self.profile is None:
            raise TFLiteError(f"no picture of its memory: {why_missing(self.memory)}")
        plot_memory(self.profile, self, path)


def inspect_model(
    source: str | Path | bytes,
    *,
    name: str = "",
    latency: bool = True,
    vela: bool = True,
    tflm: bool = True,
) -> Report:
    """Reports what a `.tflite` file costs on devices.

    LiteRT, TFLM and Vela run in processes of their own, within limits of time and memory.

    Args:
        source: path or bytes of any `.tflite` file: integer or float, ours or not.
        name: stands in the report; the file's own name by default.
        latency: whether to time LiteRT here, with 1 and 2 threads (about three seconds).
        vela: whether to compile with Vela for `ACCELERATORS`.
        tflm: whether to run the file in TFLM to learn its arena.

    Raises:
        TFLiteError: no sound `.tflite` file; one line that says which and why.

    Example:

    >>> from ddunet_keras.presets import preset_file
    >>> file = preset_file("ddunet_c8", "tflite")
    >>> report = inspect_model(file, latency=False, vela=False, tflm=False)
    >>> report.operators["CONV_2D"]
    40
    """
    data = file_bytes(source)
    model = read_tflite(source)
    if not name and isinstance(source, (str, Path)):
        name = Path(source).name
    graph, listed = model.subgraphs[0], nodes(model)
    constants = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    size = {"file": len(data), "constants": constants, "flash": len(data) + RUNTIME_FLASH}
    profile = _attempt(True, _profile, model)
    followed = isinstance(profile, MemoryProfile)
    arenas = {
        key: _attempt(True, _arena, model, runtime) if followed else profile
        for key, runtime in RUNTIMES.items()
    }
    measured = _attempt(tflm, measure_arena, data)
    estimates = {key: _attempt(True, _estimate, listed, core) for key, core in CORES.items()}
    compiled = {key: _attempt(vela, run_vela, data, key) for key in ACCELERATORS}
    checked = edge_tpu_check(model)
    parts = {
        "size": size,
        "tflm": measured,
        "arenas": arenas,
        "estimates": estimates,
        "vela": compiled,
        "edge_tpu": checked,
    }
    return Report(
        file=name,
        **parts,
        inputs=[_tensor(graph.tensors[index]) for index in graph.inputs],
        outputs=[_tensor(graph.tensors[index]) for index in graph.outputs],
        operators=dict(Counter(node.kind for node in listed).most_common()),
        layers=[_layer(node, profile if followed else None) for node in listed],
        memory=_memory(profile, listed) if followed else profile,
        latency={f"threads_{n}": _attempt(latency, measure_latency, data, n) for n in THREADS},
        boards=fit_boards(parts),
        profile=profile if followed else None,
    )


def _attempt(wanted: bool, function: Callable, *arguments: Any) -> Any:
    """What `function` returns, or why there is nothing."""
    if not wanted:
        return {"not_run": "not asked for"}
    try:
        return function(*arguments)
    except NotInstalledError as error:
        return {"not_run": str(error)}
    except (ChildError, TFLiteError) as error:
        return {"failed": first_line(error)}


def _profile(model: schema.ModelT) -> MemoryProfile:
    """`memory_profile` of the first subgraph."""
    links = sum(len(o.inputs) + len(o.outputs) for o in model.subgraphs[0].operators)
    if links > MAX_FOLLOWED:
        raise TFLiteError(
            f"its operators have {links:,} inputs and outputs; the memory is followed up to "
            f"{MAX_FOLLOWED:,}"
        )
    first = copy.copy(model)
    first.subgraphs = model.subgraphs[:1]
    try:
        profile = memory_profile(first)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TFLiteError(f"its memory cannot be followed ({first_line(error)})") from None
    if profile.planned is not None and not 0 < profile.planned < MAX_PLANNED:
        raise TFLiteError("its memory plan is not sound")
    return profile


def _arena(model: schema.ModelT, runtime: Runtime) -> dict:
    try:
        size = arena_size(model, runtime)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TFLiteError(f"its arena cannot be reckoned ({first_line(error)})") from None
    return {"total": size.total, **asdict(size)}


def _estimate(listed: list[Node], core: Core) -> dict:
    try:
        count = instructions(listed, core)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise TFLiteError(f"its work cannot be counted ({first_line(error)})") from None
    return {"instructions": round(count), "milliseconds": milliseconds(count, core)}


def _memory(profile: MemoryProfile, listed: list[Node]) -> dict:
    peak = listed[profile.peak_operator]
    return {
        "live_peak": profile.peak,
        "peak_operator": profile.peak_operator,
        "peak_kind": peak.kind,
        "peak_name": peak.name,
        "planned": profile.planned,
    }


def _layer(node: Node, profile: MemoryProfile | None) -> dict:
    live = None
    if profile is not None and node.subgraph == 0:
        live = profile.live[node.index]
    return {
        "subgraph": node.subgraph,
        "operator": node.index,
        "kind": node.kind,
        "name": node.name,
        "shape": node.output.shape if node.operator.outputs else [],
        "macs": macs(node),
        "live_bytes": live,
    }


def _tensor(tensor: schema.TensorT) -> dict:
    """An input or output of the file; the scale where it has just one."""
    scale = zero_point = None
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale) == 1:
        points = quantization.zeroPoint
        scale = float(quantization.scale[0])
        zero_point = 0 if points is None or not len(points) else int(points[0])
    return {
        "name": tensor_name(tensor),
        "dtype": dtype_name(tensor),
        "shape": tensor.shape,
        "scale": scale,
        "zero_point": zero_point,
    }
