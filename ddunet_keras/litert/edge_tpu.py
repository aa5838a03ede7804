"""Holds a file against the rules that Coral documents for the Edge TPU, as its compiler cannot be
had everywhere.

The rules are those that a convolutional segmenter can break. Source of all of them:
coral.ai/docs/edgetpu/models-intro, "Model requirements" and "Supported operations" (runtime 14).
"""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import dtype_name, tensor_name
from ddunet_keras.litert.nodes import macs, nodes

CONSTANTS_CACHE = 8_000_000
"""Bytes of constants that an Edge TPU keeps on the chip (Coral's documentation: roughly 8 MB)."""

MAX_SOFTMAX = 16_000
"""Most values of a SOFTMAX."""

MEAN_CHANNELS = 4
"""A MEAN over channels needs a multiple of so many."""


def _same_dilation(node):
    across, down = node.option("dilationWFactor", 1), node.option("dilationHFactor", 1)
    return across != down and f"its dilation is {down} in y and {across} in x"


def _mean(node):
    axes, shape = node.value(1), node.input(0).shape
    if axes is None:
        return "its axes are not constant"
    axes = {int(axis) % len(shape) for axis in np.ravel(axes)}
    if len(shape) == 4 and 0 in axes:
        return "it reduces the batch dimension"
    odd = len(shape) - 1 in axes and shape[-1] % MEAN_CHANNELS
    return odd and f"it averages {shape[-1]} channels, which is no multiple of {MEAN_CHANNELS}"


def _pad(node):
    paddings = node.value(1)
    if paddings is None:
        return "its paddings are not constant"
    return len(paddings) == 4 and np.any(paddings[0]) and "it pads the batch dimension"


def _softmax(node):
    shape = node.input(0).shape
    fits = math.prod(shape) == shape[-1] <= MAX_SOFTMAX
    return not fits and f"its input has shape {shape} (allowed: one dimension, at most 16,000)"


_FREE = (
    "ADD",
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "LOGISTIC",
    "MUL",
    "QUANTIZE",
    "RELU",
    "RELU6",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "SLICE",
    "SPLIT",
)
RULES = {
    **dict.fromkeys(_FREE),
    "CONV_2D": _same_dilation,
    "DEPTHWISE_CONV_2D": _same_dilation,
    "MEAN": _mean,
    "PAD": _pad,
    "SOFTMAX": _softmax,
}
"""Operators of a segmenter that an Edge TPU has -> the rule beside them, None where a segmenter
cannot break it."""

MISSING = ("ARG_MAX", "BATCH_MATMUL", "CAST", "DEQUANTIZE", "GREATER_EQUAL")
"""Operators of a segmenter that an Edge TPU lacks."""

_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def edge_tpu_check(model: schema.ModelT) -> dict:
    """Holds a file against the rules that Coral documents for the Edge TPU.

    It is not Coral's compiler, which knows limits that are written nowhere. The compiler splits a
    model once: what follows the first operator that is not mapped runs on the CPU.

    Args:
        model: as `read_tflite` gives it.

    Returns:
        result: "PASS", "WARN" (some operators are documented as not always mapped, or not checked
        here) or "FAIL" (a rule is broken); findings: dicts of level ("WARN", "FAIL"), operator
        (index, None for the whole file), kind, tensor, rule; mapped_operators, operators,
        mapped_macs (share in [0, 1]) before the first FAIL.

    Example:

    >>> from ddunet_keras.litert.model import read_tflite
    >>> from ddunet_keras.presets import preset_file
    >>> model = read_tflite(preset_file("ddunet_c8", "tflite"))  # for a CPU
    >>> edge_tpu_check(model)["result"]
    'FAIL'
    """
    listed = nodes(model)
    findings = _file_findings(model)
    seen = set()
    for node in listed:
        if node.subgraph > 0:
            continue
        for level, tensor, rule in _node_findings(node):
            if rule.startswith("tensor ") and rule in seen:
                continue  # a tensor is named once, where it is first met
            seen.add(rule)
            findings.append(_finding(level, node, tensor, rule))
    broken = [entry["operator"] or 0 for entry in findings if entry["level"] == "FAIL"]
    first = min(broken, default=len(listed))
    work = [macs(node) or 0 for node in listed]
    levels = {entry["level"] for entry in findings}
    return {
        "result": next((level for level in ("FAIL", "WARN") if level in levels), "PASS"),
        "findings": findings,
        "mapped_operators": first,
        "operators": len(listed),
        "mapped_macs": sum(work[:first]) / max(sum(work), 1),
    }


def _finding(level, node, tensor, rule):
    return {
        "level": level,
        "operator": None if node is None else node.index,
        "kind": "" if node is None else node.kind,
        "tensor": tensor,
        "rule": rule,
    }


def _file_findings(model):
    found = []
    if len(model.subgraphs) > 1:
        rule = f"the file has {len(model.subgraphs)} subgraphs, one is supported"
        found.append(_finding("FAIL", None, "", rule))
    constants = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if constants > CONSTANTS_CACHE:
        rule = f"{constants:,} bytes of constants: over 8 MB are streamed, slowly"
        found.append(_finding("WARN", None, "", rule))
    return found


def _node_findings(node):
    """(level, tensor, rule) of what an operator breaks."""
    own = node.name
    outside = {*node.graph.inputs, *node.graph.outputs}
    floats = [index for index, t in node.tensors() if dtype_name(t).startswith("float")]
    if node.kind in ("QUANTIZE", "DEQUANTIZE") and floats and outside.issuperset(floats):
        yield "WARN", own, "float input or output of the file: it is converted on the CPU"
        return
    if node.kind in MISSING:
        yield "FAIL", own, "the Edge TPU has no such operator"
        return
    if node.kind not in RULES:
        yield "WARN", own, "not checked here: see Coral's list of supported operations"
        return
    yield from _tensor_findings(node)
    if node.kind in _WEIGHTS and node.input(1) is not None and node.value(1) is None:
        yield "FAIL", tensor_name(node.input(1)), "its weights must be constant"
    rule = RULES[node.kind]
    try:
        reason = rule is not None and rule(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        reason = "its inputs are not those of its kind"
    if reason:
        yield "FAIL", own, reason
    if node.kind == "RESIZE_BILINEAR":
        yield "WARN", own, "for some sizes it stays on the CPU, for its precision"


def _tensor_findings(node):
    """8-bit integers of fixed shapes, in at most three dimensions."""
    for index, tensor in node.tensors():
        name, dtype = tensor_name(tensor), dtype_name(tensor)
        fixed = node.value_of(index) is not None
        if dtype not in ("int8", "uint8") and not (fixed and dtype in ("int32", "int64")):
            yield "FAIL", name, f"tensor {index} is {dtype}; 8-bit integers are asked for"
        signature = [] if tensor.shapeSignature is None else tensor.shapeSignature
        if min(signature, default=0) < 0:
            yield "FAIL", name, f"tensor {index} has no fixed shape"
        elif not fixed and any(side > 1 for side in tensor.shape[:-3]):
            yield (
                "FAIL",
                name,
                f"tensor {index} has shape {tensor.shape}: only the three innermost dimensions may "
                "be over 1",
            )
