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

from ddunet_keras.litert.model import (
    DTYPES,
    TFLiteError,
    dtype_name,
    read_tflite,
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
"""Most multiply-accumulates of a run; a segmenter of 256x256 pixels has less than 10**9. A
Raspberry Pi needs some ten seconds for as many."""

SCALES = (2.0**-40, 2.0**40)
"""Least and largest scale of 8-bit integers; those of trained networks are from 1e-4 to 1."""

MAX_SCALE_RATIO = 2.0**18
"""Most times that an input's scale may be as large as the output's: beyond 2**19 LiteRT's fixed-
point multiplier of an ADD overflows, and it ends the process."""

PRODUCT_RATIOS = (2.0**-32, 2.0**8)
"""From where to where the product of the scales of two factors may be, over the output's scale:
XNNPACK's kernels take no other."""

SCALE_TOLERANCE = 1e-6
"""Relative difference of scales that are the same."""

MAY_LACK_SCALES = ("CAST", "RESHAPE")
"""Operators whose 8-bit integers may be plain numbers, as the classes of a mask are."""

MAX_ACTIVATION = schema.ActivationFunctionType.RELU6
"""The fused activation functions up to this one, NONE, RELU, RELU_N1_TO_1 and RELU6, are known to
every kernel."""

EDGE_TPU_OPERATOR = "edgetpu-custom-op"
"""What Coral's compiler puts in place of the operators that the Edge TPU runs."""

ETHOS_U_OPERATOR = "ethos-u"
"""What Vela puts in place of the operators that an Ethos-U runs: LiteRT has no kernel for it."""


# === The shape of each operator's outputs ===


def _same(node):
    return [node.input(0).shape]


def _broadcast(node):
    return [list(np.broadcast_shapes(node.input(0).shape, node.input(1).shape))]


def _require(condition, reason):
    if not condition:
        raise TFLiteError(reason)


def _windows(node, kernel, sides):
    """Sides of the output of a kernel that slides over a feature map."""
    result = []
    for axis, size, side in zip("HW", kernel, sides, strict=True):
        reach = (size - 1) * node.option(f"dilation{axis}Factor", 1)
        if node.option("padding") == schema.Padding.VALID:
            side -= reach
        _require(side > 0, f"its kernel of {size} is larger than what it slides over")
        result.append(-(-side // node.option(f"stride{axis}")))
    return result


def _check_weights(node, filters, axis):
    """Bias and scales are one for each filter, which are along `axis` of the weights."""
    _require(node.input(2).shape == [filters], "its bias is not one for each filter")
    quantization = node.input(1).quantization
    if quantization is not None and quantization.scale is not None:
        count = len(quantization.scale)
        along = count == filters and quantization.quantizedDimension == axis
        _require(count == 1 or along, "its scales are not one for each filter")
        points = quantization.zeroPoint
        _require(points is None or not np.any(points), "its weights have zero points")


def _convolution(node):
    batch, height, width, channels = node.input(0).shape
    filters, *kernel, depth = node.input(1).shape
    _require(depth == channels, f"its weights are for {depth} channels, it reads {channels}")
    _check_weights(node, filters, axis=0)
    return [[batch, *_windows(node, kernel, (height, width)), filters]]


def _depthwise(node):
    batch, height, width, channels = node.input(0).shape
    one, *kernel, filters = node.input(1).shape
    multiplier = node.option("depthMultiplier")
    _require(
        one == 1 and filters == channels * multiplier,
        f"its weights are for {filters} filters, it reads {channels} channels",
    )
    _check_weights(node, filters, axis=3)
    return [[batch, *_windows(node, kernel, (height, width)), filters]]


def _pool(node):
    batch, height, width, channels = node.input(0).shape
    kernel = node.option("filterHeight"), node.option("filterWidth")
    inside = 0 < kernel[0] <= height and 0 < kernel[1] <= width
    _require(inside, f"its window of {kernel} does not fit into {height, width}")
    return [[batch, *_windows(node, kernel, (height, width)), channels]]


def _matmul(node):
    left, right = (node.input(number).shape for number in (0, 1))
    rows, inner = left[:-3:-1] if node.option("adjX") else left[-2:]
    depth, columns = right[:-3:-1] if node.option("adjY") else right[-2:]
    _require(inner == depth, f"it multiplies {left} by {right}")
    return [[*np.broadcast_shapes(left[:-2], right[:-2]), rows, columns]]


def _axis(node, value, rank):
    """An axis, counted from the front."""
    axis = int(np.ravel(value)[0])
    _require(np.size(value) == 1 and -rank <= axis < rank, f"its axis is {np.ravel(value)[:4]}")
    return axis % rank


def _concatenation(node):
    shapes = [node.input(number).shape for number in range(len(node.operator.inputs))]
    axis = _axis(node, node.option("axis"), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    _require(len(rest) == 1 and len({len(shape) for shape in shapes}) == 1, "its parts do not fit")
    return [[*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]]]


def _split(node):
    shape, parts = node.input(1).shape, len(node.operator.outputs)
    axis = _axis(node, node.value(0), len(shape))
    _require(node.option("numSplits") == parts, f"it has {parts} outputs")
    _require(shape[axis] % parts == 0, f"it splits {shape[axis]} into {parts}")
    return [[*shape[:axis], shape[axis] // parts, *shape[axis + 1 :]]] * parts


def _reshape(node):
    wanted = node.value(1)
    _require(wanted.ndim == 1, "its shape is no list")
    size, wanted = math.prod(node.input(0).shape), wanted.tolist()
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = size // max(1, -math.prod(wanted))
    _require(min(wanted) > 0 and math.prod(wanted) == size, f"it asks for shape {wanted}")
    return [wanted]


def _slice(node):
    shape, (begin, size) = node.input(0).shape, (node.value(number).tolist() for number in (1, 2))
    size = [
        side - start if length == -1 else length
        for side, start, length in zip(shape, begin, size, strict=True)
    ]
    inside = all(
        start >= 0 and length > 0 and start + length <= side
        for side, start, length in zip(shape, begin, size, strict=True)
    )
    _require(inside, f"it cuts {size} at {begin} out of {shape}")
    return [size]


def _pad(node):
    shape, paddings = node.input(0).shape, node.value(1)
    _require(paddings.shape == (len(shape), 2) and paddings.min() >= 0, "its paddings do not fit")
    return [[side + int(sum(pads)) for side, pads in zip(shape, paddings.tolist(), strict=True)]]


def _mean(node):
    shape, rank = node.input(0).shape, len(node.input(0).shape)
    axes = {_axis(node, axis, rank) for axis in np.ravel(node.value(1))}
    _require(len(axes) == np.size(node.value(1)), "it has an axis twice")
    if node.option("keepDims"):
        return [[1 if axis in axes else side for axis, side in enumerate(shape)]]
    return [[side for axis, side in enumerate(shape) if axis not in axes]]


def _resize(node):
    batch, _, _, channels = node.input(0).shape
    height, width = node.value(1).tolist()
    both = node.option("alignCorners") and node.option("halfPixelCenters")
    _require(not both, "it has aligned corners and half pixels")
    return [[batch, height, width, channels]]


def _arg_max(node):
    shape = node.input(0).shape
    axis = _axis(node, node.value(1), len(shape))
    _require(axis == len(shape) - 1, "it does not compare the channels")
    return [shape[:-1]]


# === The table ===


@dataclass(frozen=True)
class Rule:
    """What an operator of a segmenter is.

    Attributes:
        types: its signatures, inputs and outputs; "int8.." is one or more of int8.
        shapes: gives the shapes of the outputs, and says what does not fit.
        constants: numbers of the inputs that must be constants.
        weights: numbers of the inputs that must be constants, or float16 constants made float32.
        rank: number of dimensions of the data, None where any does.
        options: the schema's name of its options, None where nothing is read from them.
        scales: "same" where the output has the scales of the inputs, "product" where the scales of
            two inputs are multiplied, None for any others.
    """

    types: tuple[str, ...]
    shapes: Callable[[Node], list[list[int]]]
    constants: tuple[int, ...] = ()
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
_CASTS = tuple(f"{a} -> {b}" for a in ("bool", "int32") for b in ("int8", "uint8", "float32"))
_QUANTIZATIONS = (
    "uint8 -> int8",
    "int8 -> uint8",
    "int8 -> int8",
    "float32 -> int8",
    "float32 -> uint8",
)
# with a bias: LiteRT's own depthwise kernel reads one even where there is none
_CONVOLUTIONS = ("int8 int8 int32 -> int8", "float32 float32 float32 -> float32")

RULES = {
    "ADD": Rule(_BINARY, _broadcast, options="AddOptions"),
    "ARG_MAX": Rule(_each("T int32 -> int32", *_NUMBERS), _arg_max, constants=(1,)),
    "AVERAGE_POOL_2D": Rule(_UNARY, _pool, rank=4, options="Pool2DOptions", scales="same"),
    "BATCH_MATMUL": Rule(_BINARY, _matmul, rank=4, options="BatchMatMulOptions", scales="product"),
    "CAST": Rule(_CASTS, _same),
    "CONCATENATION": Rule(
        _each("T.. -> T", *_NUMBERS),
        _concatenation,
        options="ConcatenationOptions",
        scales="same",
    ),
    "CONV_2D": Rule(
        _CONVOLUTIONS,
        _convolution,
        weights=(1, 2),
        rank=4,
        options="Conv2DOptions",
        scales="product",
    ),
    "DEPTHWISE_CONV_2D": Rule(
        _CONVOLUTIONS,
        _depthwise,
        weights=(1, 2),
        rank=4,
        options="DepthwiseConv2DOptions",
        scales="product",
    ),
    "DEQUANTIZE": Rule(_each("T -> float32", "int8", "uint8", "float16"), _same),
    "GREATER_EQUAL": Rule(_each("T T -> bool", *_NUMBERS), _broadcast),
    "LOGISTIC": Rule(_UNARY, _same),
    "MEAN": Rule(_WITH_LIST, _mean, constants=(1,), options="ReducerOptions"),
    "MUL": Rule(_BINARY, _broadcast, options="MulOptions", scales="product"),
    "PAD": Rule(_WITH_LIST, _pad, constants=(1,), rank=4, scales="same"),
    "QUANTIZE": Rule(_QUANTIZATIONS, _same),
    "RELU": Rule(_UNARY, _same),
    "RELU6": Rule(_UNARY, _same),
    "RESHAPE": Rule(_each("T int32 -> T", *_ANY), _reshape, constants=(1,), scales="same"),
    "RESIZE_BILINEAR": Rule(
        _WITH_LIST,
        _resize,
        constants=(1,),
        rank=4,
        options="ResizeBilinearOptions",
        scales="same",
    ),
    "SLICE": Rule(_each("T int32 int32 -> T", *_NUMBERS), _slice, constants=(1, 2), scales="same"),
    "SOFTMAX": Rule(_UNARY, _same, options="SoftmaxOptions"),
    "SPLIT": Rule(
        _each("int32 T -> T..", *_NUMBERS),
        _split,
        constants=(0,),
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

    >>> check_sound(read_tflite(dd.presets.preset_file("ddunet_c8", "tflite")))
    """
    _require(len(model.subgraphs) == 1, f"it has {len(model.subgraphs)} subgraphs, not one")
    (graph,) = model.subgraphs
    count = len(graph.operators)
    _require(count <= MAX_OPERATORS, f"it has {count:,} operators, at most {MAX_OPERATORS:,} run")
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
    _require(work <= MAX_MACS, f"it has {work:,} multiply-accumulates, at most {MAX_MACS:,} run")
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
    """Its shape is fixed, and its scale is a plain number."""
    where = f"tensor {index}"
    sides = [*tensor.shape, *([] if tensor.shapeSignature is None else tensor.shapeSignature)]
    _require(
        len(tensor.shape) <= MAX_RANK and min(sides, default=1) > 0,
        f"{where}: its shape {tensor.shape} is not fixed, or of more than {MAX_RANK} dimensions",
    )
    _require(tensor.sparsity is None and not tensor.isVariable, f"{where} is sparse or a variable")
    _require(tensor.type in DTYPES, f"{where} is of {dtype_name(tensor)}")
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return
    _require(not quantization.detailsType, f"{where} has a quantization of its own")
    dtype = DTYPES[tensor.type]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        points = np.asarray([] if quantization.zeroPoint is None else quantization.zeroPoint)
        inside = np.all((points >= limits.min) & (points <= limits.max))
        _require(inside and len(quantization.scale), f"{where} has a zero point out of its range")


def _signature(node):
    inputs = [node.input(number) for number in range(len(node.operator.inputs))]
    _require(None not in inputs, "an input is left out")
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
    _require(
        node.kind != ETHOS_U_OPERATOR,
        "the file is compiled for Arm's Ethos-U, and runs on a device that has one",
    )
    _require(node.kind in RULES, "no operator of a segmenter of images")
    rule = RULES[node.kind]
    inputs, outputs = _signature(node)
    said = f"{' '.join(inputs)} -> {' '.join(outputs)}"
    patterns = [pattern.split(" -> ") for pattern in rule.types]
    _require(
        any(_fits(before, inputs) and _fits(after, outputs) for before, after in patterns),
        f"it is {said[:80]}; known are {', '.join(rule.types)}",
    )
    options = node.operator.builtinOptions
    named = None if options is None else type(options).__name__.removesuffix("T")
    _require(rule.options in (None, named), f"its options are {named}, not {rule.options}")
    activation = node.option("fusedActivationFunction")
    _require(0 <= activation <= MAX_ACTIVATION, f"its activation function is number {activation}")
    data = node.input(1 if node.kind == "SPLIT" else 0)
    _require(rule.rank in (None, len(data.shape)), f"its input has shape {data.shape}")
    for number in rule.constants:
        _require(node.value(number) is not None, f"its input {number} is not constant")
    for number in rule.weights:
        fixed = node.operator.inputs[number] in halves or node.value(number) is not None
        _require(fixed, f"its input {number} is not constant")
    expected, received = rule.shapes(node), [tensor.shape for tensor in node.outputs]
    _require(expected == received, f"its output has shape {received[:2]}, not {expected[:2]}")
    _check_scales(node, rule)
    if node.kind.endswith("CONV_2D"):
        _check_workspace(node)


def _check_scales(node, rule):
    """One scale for each feature map, and those of an operator such as its kernels take."""
    weights = node.operator.inputs[1] if node.kind.endswith("CONV_2D") else None
    scales: dict[int, float] = {}
    for index, tensor in node.tensors():
        if index == weights or dtype_name(tensor) not in ("int8", "uint8"):
            continue
        quantization = tensor.quantization
        if quantization is None or quantization.scale is None:
            _require(node.kind in MAY_LACK_SCALES, f"tensor {index} has no scale")
            continue
        _require(len(quantization.scale) == 1, f"tensor {index} has not one scale")
        scales[index] = float(quantization.scale[0])
        inside = SCALES[0] <= scales[index] <= SCALES[1]
        _require(inside, f"tensor {index} has scale {scales[index]:.3g}")
    own = scales.get(node.operator.outputs[0])
    if own is None:
        return
    ratio = max(scales.values()) / own
    _require(ratio <= MAX_SCALE_RATIO, f"its output's scale is {ratio:.3g} times too small")
    if rule.scales == "same":
        kept = all(abs(scale / own - 1) < SCALE_TOLERANCE for scale in scales.values())
        _require(kept, "its inputs and outputs have different scales")
    if rule.scales == "product":
        second = np.asarray(node.input(1).quantization.scale, float)
        ratios = scales[node.operator.inputs[0]] * second / own
        inside = PRODUCT_RATIOS[0] <= ratios.min() and ratios.max() < PRODUCT_RATIOS[1]
        _require(inside, f"its scales' product is {ratios.min():.3g} to {ratios.max():.3g}")


def _check_workspace(node):
    """LiteRT spreads what each output element of a convolution reads, or a pointer to it."""
    _, height, width, _ = node.output.shape
    _, *kernel, channels = node.input(1).shape
    each = max(8, channels * DTYPES[node.input(1).type].itemsize)
    needs = height * width * math.prod(kernel) * each
    _require(needs <= MAX_LIVE_BYTES, f"it would need {needs / 2**20:,.0f} MiB to work in")


def _check_memory(graph):
    """The feature maps that are alive at the worst operator fit into `MAX_LIVE_BYTES`."""
    last = {index: number for number, o in enumerate(graph.operators) for index in o.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.operators))
    alive = {index: tensor_bytes(graph.tensors[index]) for index in graph.inputs}
    for number, operator in enumerate(graph.operators):
        alive |= {index: tensor_bytes(graph.tensors[index]) for index in operator.outputs}
        _require(
            sum(alive.values()) <= MAX_LIVE_BYTES,
            f"its feature maps take over {MAX_LIVE_BYTES // 2**20:,} MiB at operator {number}",
        )
        alive = {index: size for index, size in alive.items() if last.get(index, -1) > number}


# === Integers alone ===


def check_int8(source, io: str = "int8") -> None:
    """Checks that a file is what was asked for: int8 throughout, built-in operators, fixed shapes.

    Args:
        source: a `.tflite` file, as a path, its bytes or a `ModelT` from `read_tflite`.
        io: the type that input and output shall have: "int8", "uint8" or "float32". An output of
            int8 or uint8, as a mask's, is let through.

    Raises:
        TFLiteError: says what is not so, and where.

    Example:

    >>> check_int8(dd.presets.preset_file("ddunet_c8", "tflite"))
    """
    model = source if isinstance(source, schema.ModelT) else read_tflite(source)
    _require(len(model.subgraphs) == 1, f"it has {len(model.subgraphs)} subgraphs, not one")
    (graph,) = model.subgraphs
    inside = {"int8", "int32", "bool"} | ({"uint8"} if io == "uint8" else set())
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
