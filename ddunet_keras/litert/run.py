"""Runs a `.tflite` file: LiteRT's reference kernels and XNNPACK, TensorFlow Lite Micro (TFLM).

What is not known to be sound runs in a process of its own (`ddunet_keras.litert.child`).
"""

from __future__ import annotations

import functools
import importlib.util
import re
import time
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.child import ChildError, NotInstalledError, in_child
from ddunet_keras.litert.memory import PLAN
from ddunet_keras.litert.model import (
    DTYPES,
    TFLiteError,
    constant,
    first_line,
    operator_name,
    read_tflite,
    tensor_bytes,
    tensor_name,
    write_tflite,
)

MAX_ARENA = 2**31 - 64
"""Largest tensor arena of TFLM, bytes: it counts them in 32 bits."""

ALLOCATION_BYTES = 512
"""More than TFLM keeps in its arena for a tensor beside its values."""

MAX_INPUT_BYTES = 2**28
"""Most bytes of the inputs of a file that is timed or measured."""

TIMEOUT = 60
"""Seconds after which a file that is timed or measured is stopped."""

MEMORY = 2**32
"""Bytes of address space that timing and measuring may have."""

MIN_RUNS, MAX_RUNS = 5, 200
"""Fewest and most runs of which the median time is taken."""


# === Inputs ===


def encode(images: np.ndarray, dtype) -> np.ndarray:
    """uint8 photos as the input of a file: the pixel itself for uint8, else pixel - 128.

    Example:

    >>> encode(np.array([0, 255], np.uint8), np.int8).tolist()
    [-128, 127]
    """
    if images.dtype == dtype or dtype == np.uint8:
        return images.astype(dtype)
    return (images.astype(np.int16) - 128).astype(dtype)


def input_feeds(model: schema.ModelT, images: np.ndarray) -> list[list[np.ndarray]]:
    """One list of input arrays for each photo.

    Args:
        model: as `read_tflite` gives it, with one image as input.
        images: uint8 (n, h, w, 3) photos, or (n, h, w, c) already of the input's type.

    Raises:
        ValueError: the model has other inputs, or `images` another shape.
    """
    graph = model.subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs]
    if len(tensors) != 1 or tensors[0].type not in DTYPES:
        raise ValueError(f"a file with one image as input was expected, it has {len(tensors)}")
    images = np.asarray(images)
    shape = tensors[0].shape[1:]
    if images.ndim != 4 or list(images.shape[1:]) != shape:
        raise ValueError(
            f"images must have shape (n, {', '.join(map(str, shape))}) as the file's input; "
            f"received {images.shape}"
        )
    return [[image[None]] for image in encode(images, DTYPES[tensors[0].type])]


# === LiteRT ===


def make_interpreter(data: bytes, reference: bool, threads: int = 1, keep: bool = False):
    """A LiteRT interpreter, ready to run in this process.

    Args:
        data: bytes of a `.tflite` file.
        reference: True for the reference kernels, False for XNNPACK as users run it.
        threads: number of threads.
        keep: whether every tensor keeps its memory, to be read after a run; XNNPACK is then left
            out.

    Raises:
        RuntimeError: LiteRT refuses the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    if keep and not reference:
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=kernels,
            experimental_preserve_all_tensors=keep,
        )
        interpreter.allocate_tensors()
    except ValueError as error:  # as for an operator that it has not
        raise RuntimeError(first_line(error)) from None
    return interpreter


def invoke(interpreter, feed: Sequence[np.ndarray]) -> None:
    """Sets the inputs of a LiteRT interpreter, in their order, and runs it."""
    for detail, value in zip(interpreter.get_input_details(), feed, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()


def run_litert(data: bytes, images: np.ndarray, *, reference: bool) -> np.ndarray:
    """Runs photos through LiteRT in this process.

    Args:
        data: bytes of a `.tflite` file with one image as input, that `read_tflite` accepts.
        images: uint8 (n, h, w, 3) photos, which are encoded as the input's type asks for, or
            (n, h, w, c) already of that type.
        reference: True for the reference kernels, False for XNNPACK as users run it.

    Returns:
        (n, ...): the first output of each photo, in its own type.

    Raises:
        ValueError: `images` has another shape than the input.
        RuntimeError: LiteRT refuses the file.

    Example:

    >>> from ddunet_keras.presets import preset_file
    >>> data = preset_file("ddunet_c8", "tflite").read_bytes()
    >>> run_litert(data, np.zeros((1, 256, 256, 3), np.uint8), reference=False).shape
    (1, 256, 256, 1)
    """
    feeds = input_feeds(read_tflite(data), images)
    interpreter = make_interpreter(data, reference)
    index = interpreter.get_output_details()[0]["index"]
    results = []
    for feed in feeds:
        invoke(interpreter, feed)
        results.append(interpreter.get_tensor(index)[0])
    return np.stack(results)


def run_litert_in_child(data: bytes, images: np.ndarray, reference: bool) -> np.ndarray:
    """`run_litert` in a process of its own: some files abort LiteRT's.

    Raises:
        ChildError: LiteRT refuses the file or dies of it, or `images` has another shape.
    """
    return in_child(functools.partial(run_litert, reference=reference), data, images)[0]


def measure_latency(data: bytes, threads: int = 1, seconds: float = 1.0) -> float:
    """Median time of LiteRT with XNNPACK on this machine, milliseconds, in a process of its own.

    Args:
        data: bytes of a `.tflite` file; it is run on zeros.
        threads: number of threads.
        seconds: how long it is run, at least `MIN_RUNS` and at most `MAX_RUNS` times.

    Raises:
        ChildError: LiteRT does not run the file, or takes over `TIMEOUT` seconds.
    """
    return in_child(_latency, data, threads, seconds, timeout=TIMEOUT, memory=MEMORY)[0]


def _latency(data, threads, seconds):
    """In the child."""
    interpreter = make_interpreter(data, reference=False, threads=threads)
    feed = [np.zeros(d["shape"], d["dtype"]) for d in interpreter.get_input_details()]
    invoke(interpreter, feed)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < MIN_RUNS or (
        time.perf_counter() - start < seconds and len(times) < MAX_RUNS
    ):
        before = time.perf_counter()
        interpreter.invoke()
        times.append(1000 * (time.perf_counter() - before))
    return float(np.median(times[len(times) // 5 :]))  # the first fifth warms up


# === TensorFlow Lite Micro ===


def run_tflm(
    data: bytes, images: np.ndarray, *, arena_kib: float | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """Runs photos through TensorFlow Lite Micro's kernels, in a process of its own.

    Args:
        data, images: as `run_litert`.
        arena_kib: size of the tensor arena, KiB; by default large enough for any plan.

    Returns:
        (outputs, arena): outputs (n, ...) as `run_litert`; arena, the bytes in use as TFLM's
        recording allocator prints them: `head` for the feature maps, `tail` for its persistent
        allocations of operators and tensors (with pointers of 8 bytes: a 32-bit device needs
        less), `total`.

    Raises:
        NotInstalledError: tflite_micro is not installed.
        ChildError: TFLM refuses the file or the arena is too small; the message is what it prints.
        ValueError: `images` has another shape than the input.
    """
    feeds = input_feeds(read_tflite(data), images)
    values, text = _in_tflm(_tflm_outputs, data, feeds, arena_kib=arena_kib)
    return np.stack([value[0] for value in values]), _printed_arena(text)


def measure_arena(data: bytes) -> dict[str, int]:
    """Bytes that TFLM needs for a file with any inputs, which is run on zeros.

    Returns:
        {"total", "head", "tail"}, as `run_tflm`.

    Raises:
        NotInstalledError: tflite_micro is not installed.
        ChildError: TFLM refuses the file, dies or takes over `TIMEOUT` seconds.
        TFLiteError: the inputs have no numeric type, or over `MAX_INPUT_BYTES`.
    """
    graph = read_tflite(data).subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs]
    size = sum(tensor_bytes(tensor) for tensor in tensors)
    if size > MAX_INPUT_BYTES:
        raise TFLiteError(f"its inputs take {size:,} bytes, at most {MAX_INPUT_BYTES:,} are tried")
    feed = [np.zeros(tensor.shape, DTYPES[tensor.type]) for tensor in tensors]
    _, text = _in_tflm(_tflm_outputs, data, [feed], timeout=TIMEOUT, memory=MEMORY)
    return _printed_arena(text)


def tflm_tensors(
    data: bytes, feed: Sequence[np.ndarray], tensors: Sequence[int]
) -> dict[int, np.ndarray]:
    """Values of any tensors after a run of TFLM, which keeps all of them for it.

    Args:
        data: bytes of a `.tflite` file.
        feed: the input arrays, in their own types.
        tensors: indices of the tensors.

    Raises:
        NotInstalledError, ChildError: as `run_tflm`.
    """
    return _in_tflm(_tflm_tensors, data, feed, tuple(tensors))[0]


def require_tflm() -> None:
    """Does nothing where TFLM can be run.

    Raises:
        NotInstalledError: tflite_micro is not installed.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        raise NotInstalledError(
            "needs pip install '.[mcu]' in the clone (Linux on x86-64 has the package)"
        )


def _in_tflm(function, data, *arguments, arena_kib=None, **limits):
    """Calls `function(data, arena_bytes, *arguments)` in a child process."""
    require_tflm()
    if arena_kib is None:
        # as if no two tensors shared memory; what is not touched costs nothing
        model = read_tflite(data)
        sizes = 0
        for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
            is_constant = model.buffers[tensor.buffer].data is not None
            sizes += ALLOCATION_BYTES + (0 if is_constant else tensor_bytes(tensor))
        arena_bytes = min(2 * sizes + 4 * len(data) + 2**22, MAX_ARENA)
    else:
        arena_bytes = int(arena_kib * 1024)
    return in_child(function, data, arena_bytes, *arguments, **limits)


def _printed_arena(text):
    found = dict(re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text))
    if len(found) != 3:
        raise ChildError("TFLM did not print its arena")
    return {key: int(value) for key, value in found.items()}


def _tflm_interpreter(data, arena_bytes, keep):
    from tflite_micro import runtime

    config = runtime.InterpreterConfig
    kind = config.kPreserveAllTensors if keep else config.kAllocationRecording
    return runtime.Interpreter.from_bytes(
        data,
        arena_size=arena_bytes,
        intrepreter_config=kind,  # the package spells it so
    )


def _tflm_outputs(data, arena_bytes, feeds):
    """In the child: the first output of each feed; prints the arena."""
    interpreter = _tflm_interpreter(data, arena_bytes, keep=False)
    results = []
    for feed in feeds:
        for index, value in enumerate(feed):
            interpreter.set_input(value, index)
        interpreter.invoke()
        results.append(np.array(interpreter.get_output(0)))
    interpreter.print_allocations()
    return results


def _tflm_tensors(data, arena_bytes, feed, tensors):
    """In the child."""
    interpreter = _tflm_interpreter(data, arena_bytes, keep=True)
    for index, value in enumerate(feed):
        interpreter.set_input(value, index)
    interpreter.invoke()
    return {index: np.array(interpreter.GetTensor(index, 0)["tensor_data"]) for index in tensors}


# === Which operator it was ===


def first_difference(data: bytes, feed: Sequence[np.ndarray]) -> str:
    """Names the first operator that TFLM computes otherwise than LiteRT's reference kernels.

    Both keep every tensor for it, so that nothing shares memory: if no operator differs then, the
    file's memory plan lets one tensor overwrite another.

    Args:
        data: bytes of a `.tflite` file that LiteRT runs.
        feed: the input arrays, in their own types.

    Raises:
        NotInstalledError, ChildError: as `run_tflm`.
    """
    model = read_tflite(data)
    graph = model.subgraphs[0]
    written = [index for operator in graph.operators for index in operator.outputs]
    interpreter = make_interpreter(data, reference=True, keep=True)
    invoke(interpreter, feed)
    model.metadata = [entry for entry in model.metadata if entry.name != PLAN]
    micro = tflm_tensors(write_tflite(model), feed, written)
    for number, operator in enumerate(graph.operators):
        for index in operator.outputs:
            expected, received = interpreter.get_tensor(index), micro[index]
            wrong = np.count_nonzero(expected.ravel() != received.ravel())
            if wrong:
                text = operator_text(model, number)
                return f"{text}: {wrong} of {expected.size} values differ"
    return "no operator by itself: the memory plan lets one tensor overwrite another"


def refused_operator(data: bytes) -> str:
    """Names the first operator that XNNPACK does not take, each tried in a file of its own.

    LiteRT may die of it: to be called by `in_child`.
    """
    model = read_tflite(data)
    graph = model.subgraphs[0]
    for number, operator in enumerate(graph.operators):
        try:
            make_interpreter(write_tflite(_alone(model, operator)), reference=False)
        except RuntimeError:
            scales = {}
            for index in operator.inputs + operator.outputs:
                quantization = graph.tensors[index].quantization if index >= 0 else None
                if quantization is not None and quantization.scale is not None:
                    scales[index] = [f"{scale:.3g}" for scale in quantization.scale[:3]]
            return f"{operator_text(model, number)} with scales {scales}"
    return "no operator by itself"


def _alone(model, operator):
    """A model of one operator of the first subgraph."""
    graph = model.subgraphs[0]
    part = schema.SubGraphT()
    part.tensors = graph.tensors
    part.operators = [operator]
    part.inputs = [i for i in operator.inputs if i >= 0 and constant(model, graph, i) is None]
    part.outputs = operator.outputs
    kept = {graph.tensors[i].buffer for i in operator.inputs + operator.outputs if i >= 0}
    alone = schema.ModelT()
    alone.version = model.version
    alone.operatorCodes = model.operatorCodes
    alone.subgraphs = [part]
    alone.buffers = [
        buffer if index in kept else schema.BufferT() for index, buffer in enumerate(model.buffers)
    ]
    return alone


def operator_text(model: schema.ModelT, number: int) -> str:
    """An operator of the first subgraph in words: its number, kind and output."""
    graph = model.subgraphs[0]
    operator = graph.operators[number]
    index = operator.outputs[0]
    tensor = graph.tensors[index]
    return (
        f"operator {number} ({operator_name(model, operator)}), output tensor {index} "
        f"{tensor_name(tensor)!r} of shape {tensor.shape}"
    )
