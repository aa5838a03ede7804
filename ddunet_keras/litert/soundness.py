"""Whether LiteRT may run a `.tflite` file that a stranger wrote: `check_sound`.

LiteRT trusts a file. A type, shape or option that a kernel does not expect ends the whole process,
hangs it or takes all memory. So a file is held against a table first: `RULES` has the operators of
an image-to-image segmenter, and for each the types, constants and shapes that it works with. A file
with anything else is refused, whatever else LiteRT may be able to run.

`check_int8` looks at the one thing that conversion promises: integers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert import shapes
from ddunet_keras.litert.model import (
    DTYPES,
    TFLiteError,
    dtype_name,
    require,
    tensor_bytes,
    tensor_name,
)
from ddunet_keras.litert.nodes import Node, macs, nodes

MAX_OPERATORS = 2_000
"""Most operators; segmenters have 150 to 600. LiteRT's time to start grows with their square."""

MAX_RANK = 4
"""Most dimensions of a tensor: (batch, height, width, channels)."""

MAX_LIVE_BYTES = 2**30
"""Most bytes of feature maps that are alive at once, and of a convolution's workspace."""

MAX_MACS = 2 * 10**11
"""Most multiply-accumulates of a run: more than 200 runs of a segmenter of 256x256 pixels, which
has less than 10**9."""

SCALES = (2.0**-40, 2.0**40)
"""Least and largest scale of 8-bit integers; those of the published files are from 2e-7 to 1."""

MAX_SCALE_RATIO = 2.0**18
"""Most times that an input's scale may be as large as the output's: beyond 2**19 LiteRT's fixed-
point multiplier of an ADD overflows, and it ends the process."""

PRODUCT_RATIOS = (2.0**-32, 2.0**8)
"""From where to where the product of the scales of two factors may be, over the output's scale:
XNNPACK's kernels take no other."""

SCALE_TOLERANCE = 1e-6
"""Relative difference of scales that are the same."""

MAY_LACK_SCALES = ("CAST", "RESHAPE")
"""Operators whose 8-bit integers may have none, as the classes of a mask do."""

MAX_ACTIVATION = schema.ActivationFunctionType.RELU6
"""The fused activation functions up to this one, NONE, RELU, RELU_N1_TO_1 and RELU6, are known to
every kernel."""

EDGE_TPU_OPERATOR = "edgetpu-custom-op"
"""What Coral's compiler puts in place of the operators that the Edge TPU runs."""

ETHOS_U_OPERATOR = "ethos-u"
"""What Vela puts in place of the operators that an Ethos-U runs: LiteRT has no kernel for it."""


# === The table ===


@dataclass(frozen=True)
class Rule:
    """What an operator of a segmenter is.

    Attributes:
        types: its signatures, inputs and outputs; "int8.." is one or more of int8.
        shapes: gives the shapes of the outputs, and says what does not fit.
        weights: numbers of the inputs that must be constants, or float16 constants made float32.
        rank: number of dimensions of the data, None where any does.
        options: the schema's name of its options, None where nothing is read from them.
        scales: "same" where the output has the scales of the inputs, "product" where the scales of
            two inputs are multiplied, "below 1" where LiteRT's kernel takes no others, None for
            any.
    """

    types: tuple[str, ...]
    shapes: Callable[[Node], list[list[int]]]
    weights: tuple[int, ...] = ()
    rank: int | None = None
    options: str | None = None
    scales: str | None = None


def _each(signature, *types):
    """A signature for each type in place of "T"."""
    return tuple(" ".join(signature.split()).replace("T", dtype) for dtype in types)


_NUMBERS = ("int8", "float32")
_ANY = ("int8", "uint8", "int32", "bool", "float32")
_UNARY, _BINARY = _each("T -> T", *_NUMBERS), _each("T T -> T", *_NUMBERS)
_WITH_LIST = _each("T int32 -> T", *_NUMBERS)
_WITH_LISTS = _each("T int32 int32 -> T", *_NUMBERS)
_CASTS = tuple(f"{a} -> {b}" for a in ("bool", "int32") for b in ("int8", "uint8", "float32"))
_QUANTIZATIONS = (
    "uint8 -> int8",
    "int8 -> uint8",
    "int8 -> int8",
    "int16 -> int8",
    "float32 -> int8",
    "float32 -> uint8",
)
# with a bias: LiteRT's own depthwise kernel reads one even where there is none
_CONVOLUTIONS = ("int8 int8 int32 -> int8", "float32 float32 float32 -> float32")

RULES = {
    "ADD": Rule(_BINARY, shapes.broadcast, options="AddOptions"),
    "ARG_MAX": Rule(_each("T int32 -> int32", *_NUMBERS), shapes.arg_max),
    "AVERAGE_POOL_2D": Rule(_UNARY, shapes.pool, rank=4, options="Pool2DOptions", scales="same"),
    "BATCH_MATMUL": Rule(
        _BINARY, shapes.matmul, rank=4, options="BatchMatMulOptions", scales="product"
    ),
    "BATCH_TO_SPACE_ND": Rule(_WITH_LISTS, shapes.batch_to_space, rank=4, scales="same"),
    "CAST": Rule(_CASTS, shapes.same),
    "CONCATENATION": Rule(
        _each("T.. -> T", *_NUMBERS),
        shapes.concatenation,
        options="ConcatenationOptions",
        scales="same",
    ),
    "CONV_2D": Rule(
        _CONVOLUTIONS,
        shapes.convolution,
        weights=(1, 2),
        rank=4,
        options="Conv2DOptions",
        scales="product",
    ),
    "DEPTHWISE_CONV_2D": Rule(
        _CONVOLUTIONS,
        shapes.depthwise,
        weights=(1, 2),
        rank=4,
        options="DepthwiseConv2DOptions",
        scales="product",
    ),
    "DEQUANTIZE": Rule(_each("T -> float32", "int8", "uint8", "float16"), shapes.same),
    "GREATER_EQUAL": Rule(_each("T T -> bool", *_NUMBERS), shapes.broadcast, scales="below 1"),
    "HARD_SWISH": Rule(_UNARY, shapes.same),
    "LOGISTIC": Rule(_UNARY, shapes.same),
    "MAX_POOL_2D": Rule(_UNARY, shapes.pool, rank=4, options="Pool2DOptions", scales="same"),
    "MEAN": Rule(_WITH_LIST, shapes.mean, options="ReducerOptions"),
    "MUL": Rule(_BINARY, shapes.broadcast, options="MulOptions", scales="product"),
    "PAD": Rule(_WITH_LIST, shapes.pad, rank=4, scales="same"),
    "QUANTIZE": Rule(_QUANTIZATIONS, shapes.same),
    "REDUCE_MAX": Rule(_WITH_LIST, shapes.mean, options="ReducerOptions", scales="same"),
    "RELU": Rule(_UNARY, shapes.same),
    "RELU6": Rule(_UNARY, shapes.same),
    "RESHAPE": Rule(_each("T int32 -> T", *_ANY), shapes.reshape, scales="same"),
    "RESIZE_BILINEAR": Rule(
        _WITH_LIST,
        shapes.resize,
        rank=4,
        options="ResizeBilinearOptions",
        scales="same",
    ),
    "RESIZE_NEAREST_NEIGHBOR": Rule(
        _WITH_LIST,
        shapes.resize,
        rank=4,
        options="ResizeNearestNeighborOptions",
        scales="same",
    ),
    "SLICE": Rule(_WITH_LISTS, shapes.cut, scales="same"),
    "SPACE_TO_BATCH_ND": Rule(_WITH_LISTS, shapes.space_to_batch, rank=4, scales="same"),
    "SOFTMAX": Rule((*_UNARY, "int8 -> int16"), shapes.softmax, options="SoftmaxOptions"),
    "SPLIT": Rule(
        _each("int32 T -> T..", *_NUMBERS),
        shapes.split,
        options="SplitOptions",
        scales="same",
    ),
}
"""Operator -> what a segmenter's is. These are all that conversion makes, for every device, output
and precision."""


# === The check ===


def check_sound(model: schema.ModelT) -> None:
    """Checks that LiteRT can run a model without harm: an image-to-image segmenter of `RULES`.

    Beside `RULES`, an operator for the Edge TPU is let through: without the device LiteRT refuses
    it by itself.

    Args:
        model: as `read_tflite` gives it.

    Raises:
        TFLiteError: it is none; one line says which operator or tensor is wrong, and why.

    Example:

    >>> from ddunet_keras.presets import preset_file
    >>> from ddunet_keras.litert.model import read_tflite
    >>> check_sound(read_tflite(preset_file("ddunet_c8", "tflite")))
    """
    require(len(model.subgraphs) == 1, f"it has {len(model.subgraphs)} subgraphs, not one")
    (graph,) = model.subgraphs
    count = len(graph.operators)
    require(count <= MAX_OPERATORS, f"it has {count:,} operators, at most {MAX_OPERATORS:,} run")
    listed = nodes(model)
    halves = _float16_constants(listed)
    for index in {index for node in listed for index, _ in node.tensors()} | set(graph.inputs):
        _check_tensor(graph.tensors[index], index)
    for node in listed:
        try:
            _check_node(node, halves)
        except TFLiteError as error:
            raise TFLiteError(f"operator {node.index} ({node.kind}): {error}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise TFLiteError(
                f"operator {node.index} ({node.kind}): its inputs are not those of its kind"
            ) from None
    work = sum(macs(node) or 0 for node in listed)
    require(work <= MAX_MACS, f"it has {work:,} multiply-accumulates, at most {MAX_MACS:,} run")
    _check_memory(graph)


def _float16_constants(listed):
    """Indices of the tensors that a DEQUANTIZE makes of a constant."""
    return {
        index
        for node in listed
        if node.kind == "DEQUANTIZE" and node.value(0) is not None
        for index in node.operator.outputs
    }


def _check_tensor(tensor, index):
    """Its shape is fixed, its type is a number, and its zero points are in that type."""
    where = f"tensor {index}"
    sides = [*tensor.shape, *([] if tensor.shapeSignature is None else tensor.shapeSignature)]
    require(
        len(tensor.shape) <= MAX_RANK and min(sides, default=1) > 0,
        f"{where}: its shape {tensor.shape} is not fixed, or of more than {MAX_RANK} dimensions",
    )
    require(tensor.sparsity is None and not tensor.isVariable, f"{where} is sparse or a variable")
    require(tensor.type in DTYPES, f"{where} is of {dtype_name(tensor)}")
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return
    require(not quantization.detailsType, f"{where} has a quantization of its own")
    dtype = DTYPES[tensor.type]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        points = np.asarray([] if quantization.zeroPoint is None else quantization.zeroPoint)
        inside = np.all((points >= limits.min) & (points <= limits.max))
        complete = len(quantization.scale) and len(points)
        require(inside and complete, f"{where} has no zero point, or one out of its range")


def _signature(node):
    inputs = [node.input(number) for number in range(len(node.operator.inputs))]
    require(None not in inputs, "an input is left out")
    return [dtype_name(tensor) for tensor in inputs], [dtype_name(t) for t in node.outputs]


def _fits(pattern, types):
    """Whether types are those of one side of a signature."""
    *first, last = pattern.split()
    if last.endswith(".."):
        return len(types) >= 1 and not first and set(types) == {last.removesuffix("..")}
    return [*first, last] == types


def _check_node(node, halves):
    if node.kind == EDGE_TPU_OPERATOR:
        return
    require(
        node.kind != ETHOS_U_OPERATOR,
        "the file is compiled for Arm's Ethos-U, and runs on a device that has one",
    )
    require(node.kind in RULES, "no operator of a segmenter of images")
    rule = RULES[node.kind]
    inputs, outputs = _signature(node)
    said = f"{' '.join(inputs)} -> {' '.join(outputs)}"
    patterns = [pattern.split(" -> ") for pattern in rule.types]
    require(
        any(_fits(before, inputs) and _fits(after, outputs) for before, after in patterns),
        f"it is {said[:80]}; known are {', '.join(rule.types)}",
    )
    options = node.operator.builtinOptions
    named = None if options is None else type(options).__name__.removesuffix("T")
    require(rule.options in (None, named), f"its options are {named}, not {rule.options}")
    activation = node.option("fusedActivationFunction")
    require(0 <= activation <= MAX_ACTIVATION, f"its activation function is number {activation}")
    data = node.input(1 if node.kind == "SPLIT" else 0)
    require(rule.rank in (None, len(data.shape)), f"its input has shape {data.shape}")
    for number in rule.weights:
        fixed = node.operator.inputs[number] in halves or node.value(number) is not None
        require(fixed, f"its input {number} is not constant")
    expected, received = rule.shapes(node), [tensor.shape for tensor in node.outputs]
    require(expected == received, f"its output has shape {received[:2]}, not {expected[:2]}")
    _check_scales(node, rule)
    if node.kind.endswith("CONV_2D"):
        _check_workspace(node)


def _check_scales(node, rule):
    """One scale for each feature map, and those of an operator such as its kernels take."""
    weights = node.operator.inputs[1] if node.kind.endswith("CONV_2D") else None
    scales: dict[int, float] = {}
    for index, tensor in node.tensors():
        if dtype_name(tensor) not in ("int8", "uint8", "int16"):
            continue
        quantization = tensor.quantization
        if quantization is None or quantization.scale is None:
            require(node.kind in MAY_LACK_SCALES, f"tensor {index} has no scale")
            continue
        if index == weights:  # which may have one for each filter
            continue
        require(len(quantization.scale) == 1, f"tensor {index} has not one scale")
        scales[index] = float(quantization.scale[0])
        inside = SCALES[0] <= scales[index] <= SCALES[1]
        require(inside, f"tensor {index} has scale {scales[index]:.3g}")
    if rule.scales == "below 1":
        require(max(scales.values(), default=0) < 1, "one of its scales is not below 1")
    own = scales.get(node.operator.outputs[0])
    if own is None:
        return
    ratio = max(scales.values()) / own
    require(ratio <= MAX_SCALE_RATIO, f"its output's scale is {ratio:.3g} times too small")
    if rule.scales == "same":
        kept = all(abs(scale / own - 1) < SCALE_TOLERANCE for scale in scales.values())
        require(kept, "its inputs and outputs have different scales")
    if rule.scales == "product":
        second = np.asarray(node.input(1).quantization.scale, float)
        ratios = scales[node.operator.inputs[0]] * second / own
        inside = PRODUCT_RATIOS[0] <= ratios.min() and ratios.max() < PRODUCT_RATIOS[1]
        require(inside, f"its scales' product is {ratios.min():.3g} to {ratios.max():.3g}")


def _check_workspace(node):
    """LiteRT spreads what each output element of a convolution reads, or a pointer to it."""
    _, height, width, _ = node.output.shape
    _, *kernel, channels = node.input(1).shape
    each = max(8, channels * DTYPES[node.input(1).type].itemsize)
    needs = height * width * math.prod(kernel) * each
    require(needs <= MAX_LIVE_BYTES, f"it would need {needs / 2**20:,.0f} MiB to work in")


def _check_memory(graph):
    """The feature maps that are alive at the worst operator fit into `MAX_LIVE_BYTES`."""
    last = {index: number for number, o in enumerate(graph.operators) for index in o.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.operators))
    alive = {index: tensor_bytes(graph.tensors[index]) for index in graph.inputs}
    for number, operator in enumerate(graph.operators):
        alive |= {index: tensor_bytes(graph.tensors[index]) for index in operator.outputs}
        require(
            sum(alive.values()) <= MAX_LIVE_BYTES,
            f"its feature maps take over {MAX_LIVE_BYTES // 2**20:,} MiB at operator {number}",
        )
        alive = {index: size for index, size in alive.items() if last.get(index, -1) > number}


# === Integers alone ===


def check_int8(model: schema.ModelT, io: str = "int8") -> None:
    """Checks that a file is what was asked for: int8 throughout, built-in operators, fixed shapes.

    Integers of 16 and 32 bits between the operators are let through.

    Args:
        model: as `read_tflite` gives it.
        io: the type that input and output shall have: "int8", "uint8" or "float32". An output of
            int8 or uint8, as a mask's, is let through.

    Raises:
        TFLiteError: says what is not so, and where.

    Example:

    >>> from ddunet_keras.presets import preset_file
    >>> from ddunet_keras.litert.model import read_tflite
    >>> check_int8(read_tflite(preset_file("ddunet_c8", "tflite")))
    """
    require(len(model.subgraphs) == 1, f"it has {len(model.subgraphs)} subgraphs, not one")
    (graph,) = model.subgraphs
    inside = {"int8", "int16", "int32", "bool"} | ({"uint8"} if io == "uint8" else set())
    for index, tensor in enumerate(graph.tensors):
        name, kind = tensor_name(tensor) or f"tensor {index}", dtype_name(tensor)
        if index in graph.inputs or index in graph.outputs:
            if kind != io and not (index in graph.outputs and kind in ("int8", "uint8")):
                raise TFLiteError(f"{name}: input and output should be {io}, this is {kind}")
        elif kind not in inside:
            raise TFLiteError(f"{name}: a tensor of {kind} in an int8 file")
        signature = [] if tensor.shapeSignature is None else tensor.shapeSignature
        if any(side < 1 for side in (*tensor.shape, *signature)):
            raise TFLiteError(f"{name}: its shape {tensor.shape} is not fixed")
    for node in nodes(model):
        if model.operatorCodes[node.operator.opcodeIndex].customCode:
            raise TFLiteError(
                f"{node.name or f'operator {node.index}'}: {node.kind} is no built-in operator of "
                "TensorFlow Lite"
            )
