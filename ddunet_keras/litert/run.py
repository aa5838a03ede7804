"""Runs a `.tflite` file: LiteRT's reference kernels and XNNPACK, TensorFlow Lite Micro (TFLM).

LiteRT and TFLM end the whole process on files that they do not expect, so what is not known to be
sound runs in a process of its own (`in_child`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import (
    DTYPES,
    constant,
    first_line,
    operator_name,
    read_tflite,
    tensor_bytes,
    write_tflite,
)
from ddunet_keras.litert.schedule import PLAN


class NotInstalledError(RuntimeError):
    """A program that a check needs is not installed; the message says how to get it."""


class ChildError(RuntimeError):
    """A child process died or raised; the message is one line with its reason."""


_CHILD = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    function, arguments = pickle.load(file)
try:
    answer = True, function(*arguments)
except Exception as error:
    answer = False, str(error) or type(error).__name__
with open(sys.argv[1], "wb") as file:
    pickle.dump(answer, file)
"""


def in_child(function, *arguments, timeout=900):
    """Calls a module's function in a process of its own, which may die without harm to this one.

    LiteRT and TFLM end the whole process on files that they do not expect, and print to the
    process's own stderr.

    Returns:
        (value, text): what the function returned, and everything that the process printed.

    Raises:
        ChildError: it raised, died or took over `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "call.pickle"
        box.write_bytes(pickle.dumps((function, arguments)))
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            run = subprocess.run(
                [sys.executable, "-c", _CHILD, str(box)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths},
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise ChildError(f"stopped after {timeout} seconds") from None
        text = run.stdout.decode(errors="replace")
        if run.returncode:
            code = -run.returncode
            names = {entry.value: entry.name for entry in signal.Signals}
            ended = f"the process ended with {names.get(code, f'code {run.returncode}')}"
            raise ChildError("; ".join([*_reasons(text), ended]))
        done, value = pickle.loads(box.read_bytes())
    if not done:
        raise ChildError("; ".join([*_reasons(text), value]))
    return value, text


def _reasons(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("INFO:", "WARNING: All log messages", "I0000", "W0000", "[Recording")
    return [line for line in lines if not line.startswith(noise)][:2]


def run_litert_in_child(data, images, reference):
    """`run_litert` in a process of its own: some files abort LiteRT's."""
    return in_child(functools.partial(run_litert, reference=reference), data, images)[0]


def encode(images, dtype):
    """uint8 photos as the input of a file: the pixel itself for uint8, else pixel - 128."""
    if images.dtype == dtype or dtype == np.uint8:
        return images.astype(dtype)
    return (images.astype(np.int16) - 128).astype(dtype)


def input_feeds(model, images):
    """One list of input arrays for each photo."""
    graph = model.subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs]
    if len(tensors) != 1 or tensors[0].type not in DTYPES:
        raise ValueError(f"a file with one image as input was expected, it has {len(tensors)}")
    images = np.asarray(images)
    if images.ndim != 4 or list(images.shape[1:]) != tensors[0].shape[1:]:
        raise ValueError(
            f"images must have shape (n, {', '.join(map(str, tensors[0].shape[1:]))}) as the "
            f"file's input; received {images.shape}"
        )
    encoded = encode(images, DTYPES[tensors[0].type])
    return [[image[None]] for image in encoded]


def make_interpreter(data, reference, threads=1, keep=False):
    """A LiteRT interpreter; `keep` keeps every tensor, for which XNNPACK is left out."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    if keep and not reference:
        kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=kind,
            experimental_preserve_all_tensors=keep,
        )
        interpreter.allocate_tensors()
    except ValueError as error:  # as for an operator that it has not
        raise RuntimeError(first_line(error)) from None
    return interpreter


def invoke(interpreter, feed):
    for detail, value in zip(interpreter.get_input_details(), feed, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()


def run_litert(data, images, *, reference, threads=1) -> np.ndarray:
    """Runs photos through LiteRT in this process.

    Args:
        data: bytes of a `.tflite` file with one image as input, that `read_tflite` accepts.
        images: uint8 (n, h, w, 3) photos, which are encoded as the input's type asks for, or
            (n, h, w, c) already of that type.
        reference: True for the reference kernels, False for XNNPACK as users run it.
        threads: number of threads.

    Returns:
        (n, ...): the first output of each photo, in its own type.

    Raises:
        ValueError: `images` has another shape than the input.
        RuntimeError: LiteRT refuses the file.
    """
    feeds = input_feeds(read_tflite(data), images)
    interpreter = make_interpreter(data, reference, threads)
    index = interpreter.get_output_details()[0]["index"]
    results = []
    for feed in feeds:
        invoke(interpreter, feed)
        results.append(interpreter.get_tensor(index)[0])
    return np.stack(results)


def _tflm_process(data, feeds, arena_bytes, tensors):
    """In the child: outputs of each feed, or with `tensors` those tensors of the last feed."""
    from tflite_micro import runtime

    config = runtime.InterpreterConfig
    kind = config.kPreserveAllTensors if tensors else config.kAllocationRecording
    interpreter = runtime.Interpreter.from_bytes(
        data, arena_size=arena_bytes, intrepreter_config=kind
    )
    results = []
    for feed in feeds:
        for index, value in enumerate(feed):
            interpreter.set_input(value, index)
        interpreter.invoke()
        results.append(np.array(interpreter.get_output(0)))
    if tensors:
        return {i: np.array(interpreter.GetTensor(i, 0)["tensor_data"]) for i in tensors}
    interpreter.print_allocations()
    return results


def tflm_feeds(data, feeds, *, arena_kib=None, tensors=()):
    """As `run_tflm`, for any inputs.

    Args:
        feeds: one list of input arrays, in their own types, for each run.
        tensors: indices of tensors whose values after the last run are wanted.

    Returns:
        (values, arena): the first output of each run, or with `tensors` a dict of index -> value
        and an empty arena.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        raise NotInstalledError(
            "needs pip install 'ddunet-keras[mcu]' (Linux on x86-64 has the package)"
        )
    if arena_kib is None:
        # as if no two tensors shared memory; what is not touched costs nothing
        sizes = 0
        for graph in read_tflite(data).subgraphs:
            sizes += sum(tensor_bytes(tensor) + 512 for tensor in graph.tensors)
        arena_bytes = min(2 * sizes + 4 * len(data) + 2**22, 2**31 - 64)
    else:
        arena_bytes = int(arena_kib * 1024)
    values, text = in_child(_tflm_process, data, feeds, arena_bytes, tuple(tensors))
    found = dict(re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text))
    if not tensors and len(found) != 3:
        raise ChildError("TFLM did not print its arena")
    return values, {key: int(value) for key, value in found.items()}


def run_tflm(data, images, *, arena_kib=None):
    """Runs photos through TensorFlow Lite Micro's kernels, in a process of its own.

    Args:
        data, images: as `run_litert`.
        arena_kib: size of the tensor arena, KiB; by default large enough for any plan.

    Returns:
        (outputs, arena): outputs (n, ...) as `run_litert`; arena, the bytes in use as TFLM's
        recording allocator prints them: `head` for the maps, `tail` for its records of operators
        and tensors (pointers of 8 bytes: a 32-bit device needs less), `total`.

    Raises:
        NotInstalledError: tflite_micro is not installed.
        ChildError: TFLM refuses the file or the arena is too small; the message is what it prints.
        ValueError: `images` has another shape than the input.
    """
    values, arena = tflm_feeds(data, input_feeds(read_tflite(data), images), arena_kib=arena_kib)
    return np.stack([value[0] for value in values]), arena


# === Which operator it was ===


def first_difference(data, feed) -> str:
    """Names the first operator that TFLM computes otherwise than LiteRT's reference kernels.

    Both keep every tensor for it, so that nothing shares memory: if no operator differs then, the
    file's memory plan lets one tensor overwrite another.
    """
    model = read_tflite(data)
    graph = model.subgraphs[0]
    written = [index for operator in graph.operators for index in operator.outputs]
    interpreter = make_interpreter(data, reference=True, keep=True)
    invoke(interpreter, feed)
    model.metadata = [entry for entry in model.metadata if entry.name != PLAN]
    micro, _ = tflm_feeds(write_tflite(model), [feed], tensors=written)
    for number, operator in enumerate(graph.operators):
        for index in operator.outputs:
            expected, received = interpreter.get_tensor(index), micro[index]
            if np.array_equal(expected.ravel(), received.ravel()):
                continue
            wrong = np.count_nonzero(expected.ravel() != received.ravel())
            return f"{operator_text(model, number)}: {wrong} of {expected.size} values differ"
    return "no operator by itself: the memory plan lets one tensor overwrite another"


def refused_operator(data) -> str:
    """Names the first operator that XNNPACK does not take, each tried in a file of its own."""
    model = read_tflite(data)
    graph = model.subgraphs[0]
    for number, operator in enumerate(graph.operators):
        used = {i for i in operator.inputs + operator.outputs if i >= 0}
        kept = {graph.tensors[i].buffer for i in used}
        part = schema.SubGraphT()
        part.tensors, part.operators = graph.tensors, [operator]
        part.outputs = operator.outputs
        part.inputs = [i for i in operator.inputs if i >= 0 and constant(model, graph, i) is None]
        alone = schema.ModelT()
        alone.version, alone.operatorCodes, alone.subgraphs = 3, model.operatorCodes, [part]
        alone.buffers = [
            buffer if i in kept else schema.BufferT() for i, buffer in enumerate(model.buffers)
        ]
        try:
            make_interpreter(write_tflite(alone), reference=False)
        except RuntimeError:
            scales = {
                i: [f"{scale:.3g}" for scale in quantization.scale[:3]]
                for i in used
                if (quantization := graph.tensors[i].quantization) is not None
                and quantization.scale is not None
            }
            return f"{operator_text(model, number)} with scales {scales}"
    return "no operator by itself"


def operator_text(model, number):
    graph = model.subgraphs[0]
    operator = graph.operators[number]
    index = operator.outputs[0]
    name = (graph.tensors[index].name or b"").decode(errors="replace")
    return (
        f"operator {number} ({operator_name(model, operator)}), output tensor {index} {name!r} of "
        f"shape {graph.tensors[index].shape}"
    )
