"""Rewrites an int8 model for the kernels of CPUs (XNNPACK), without changing one output bit.

XNNPACK computes 16 channels of a position at a time. A feature map of 8 channels leaves half of
that idle. So neighbouring columns are packed into one column of more channels
(`ddunet_keras.litert.packing`), and each operator is replaced by one that computes the same values
there, with the same weights at other places:

    operator                       becomes
    convolution                    a convolution of packed columns
    depthwise convolution          one of packed columns, where these divide its dilation;
                                   else one of copies that lie side by side
    concatenation of channels      one of rows below each other, which costs no copying pixel by
                                   pixel, for a convolution with one tap in each part
    PAD                            one of whole rows
    dynamic convolution            products of packed columns, one plane for each row of taps
    elementwise operators          the same, in the form in which the first input was computed
    RESHAPE                        nothing: the bytes are those of every form

How many columns an operator packs, and whether it is replaced at all, is decided by its cost
(`ddunet_keras.litert.packing_cost`). What is not replaced gets unpacked inputs.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.cleanup import strip_names
from ddunet_keras.litert.control_dependencies import wait_for_softmax
from ddunet_keras.litert.model import add_operator, operator_name
from ddunet_keras.litert.packing import Forms, Packing
from ddunet_keras.litert.packing_cost import (
    CHUNK_COST,
    COPY_COST,
    WORTHWHILE,
    cheapest,
    convolution_cost,
    depthwise_cost,
    packed_kernel_width,
)
from ddunet_keras.litert.rows import ELEMENTWISE


def merge_columns(model: schema.ModelT) -> None:
    """Makes a model faster on XNNPACK, in place; it computes the same, bit for bit.

    Three passes: `pack_columns`, `strip_names` for what is no longer used, and `wait_for_softmax`,
    which counts operators and so comes last.

    Args:
        model: int8 `ModelT` as `read_tflite` gives it, with one subgraph and fixed shapes.

    Raises:
        TFLiteError: it has several subgraphs.
    """
    pack_columns(model)
    strip_names(model)
    wait_for_softmax(model)


def pack_columns(model: schema.ModelT) -> None:
    """Replaces the operators of a model by ones of packed columns, in place."""
    packing = Packing(model)
    for operator in packing.graph.operators:
        _rewrite(packing, operator)
    for index in packing.graph.outputs:
        packing.packed(index, 1)
    packing.graph.operators = packing.operators


def _rewrite(packing, operator):
    """Adds what replaces an operator, or itself with unpacked inputs."""
    if any(index in packing.forms for index in operator.outputs):
        return  # the convolution of a dynamic one, which was replaced together with its products
    rewrite = REWRITES.get(operator_name(packing.model, operator))
    is_known = rewrite and len(operator.outputs) == 1 and operator.inputs
    if is_known and packing.is_feature_map(operator.inputs[0]) and rewrite(packing, operator):
        return
    operator.inputs = [index if index < 0 else packing.packed(index) for index in operator.inputs]
    packing.operators.append(operator)


# === Rewrites: each returns whether it replaced the operator ===


def convolution(packing: Packing, operator) -> bool:
    """A convolution whose output is as large as its input.

    For 3 taps and 4 columns packed. A row is padded so that the taps of the first column begin with
    the first packed one:

        row                     | a b c d | e f g h |
        padded row              | . a b c | d e f g | h . . . |
        output a reads            . a b
        output b                    a b c
        output c                      b c   d
        output d                        c   d e

        kernel of output a        x x x .   . . . .     4 times the filters, which have the same
        kernel of output b        . x x x   . . . .     weights at different places; the dots
        kernel of output c        . . x x   x . . .     are zeros
        kernel of output d        . . . x   x x . .
    """
    source, options = operator.inputs[0], operator.builtinOptions
    weights = _weights(packing, operator)
    if weights is None:
        return False
    filters, h, w, channels = weights.shape
    if h == w == 1 and source in packing.stacks:
        convolution_of_stack(packing, operator, weights)
        return True
    if h % 2 == 0 or w % 2 == 0 or (w > 1 and options.dilationWFactor > 1):
        return False
    width = packing.shape(source)[2]
    columns, _ = cheapest(width, lambda n: convolution_cost(n, (h, w, channels), filters))
    if columns == 1:
        return False
    if h == w == 1:
        _convolve(packing, operator, packing.packed(source, columns), weights, columns)
        return True
    window = _padded_window(packing, source, options.dilationHFactor * (h // 2), w, columns)
    _convolve(packing, operator, window, weights, columns, padding=schema.Padding.VALID)
    return True


def convolution_of_stack(packing: Packing, operator, weights: np.ndarray) -> None:
    """A 1x1 convolution of feature maps that lie below each other, in place of side by side.

    concatenation of channels         below each other
    | A B | A B | A B |               | A | A | A |     <- first tap
    | A B | A B | A B |               | A | A | A |
                                      | B | B | B |     <- second tap, dilation: height of A
                                      | B | B | B |
    kernel 1x1, channels of A and B   kernel 2x1, channels of A
    """
    source, filters = operator.inputs[0], len(weights)
    parts = packing.stacks[source]
    weights = weights.reshape(filters, len(parts), 1, -1)
    _, rows, width, _ = packing.shape(source)
    columns, _ = cheapest(width, lambda n: convolution_cost(n, weights.shape[1:], filters))
    stack = _stacked(packing, parts, columns)
    options = {"padding": schema.Padding.VALID, "dilationHFactor": rows}
    _convolve(packing, operator, stack, weights, columns, **options)


def concatenation(packing: Packing, operator) -> bool:
    """A concatenation of channels, which XNNPACK copies pixel by pixel.

    It is left to the 1x1 convolution that consumes it, or done by one that copies: with ones on the
    diagonal, where that is cheaper. Both read the parts below each other (`convolution_of_stack`).
    """
    parts, output = operator.inputs, operator.outputs[0]
    options, tensor = operator.builtinOptions, packing.graph.tensors[output]
    shape = packing.shape(parts[0])
    if options.axis % 4 != 3 or options.fusedActivationFunction or len(parts) < 2:
        return False
    if tensor.type != schema.TensorType.INT8:
        return False
    if not all(packing.is_feature_map(i) and packing.shape(i) == shape for i in parts):
        return False

    consumer = packing.only_consumer(output, "CONV_2D")
    weights = _weights(packing, consumer) if consumer else None
    if weights is not None and weights.shape[1:3] == (1, 1):
        packing.stacks[output] = parts
        return True

    _, _, width, channels = shape
    filters, kernel = len(parts) * channels, (len(parts), 1, channels)
    _, cost = cheapest(width, lambda n: convolution_cost(n, kernel, filters))
    if cost + COPY_COST * filters > WORTHWHILE * CHUNK_COST * len(parts):
        return False
    packing.stacks[output] = parts
    ones = np.eye(filters, dtype=np.int8)[:, None, None]
    convolution_of_stack(packing, _copying_convolution(packing, output, ones), ones)
    return True


def depthwise(packing: Packing, operator) -> bool:
    """A depthwise 3x3 convolution, its weights repeated for each of the columns packed.

    With dilation 2 and 2 columns packed, each tap lies a whole packed column beside the next:

        row                     | a b | c d | e f |
        output c reads            a     c     e          dilation 1 of packed columns
        output d reads              b     d     f

    Where the columns packed do not divide the dilation: see `_side_by_side`.
    """
    source, kernel, *bias = operator.inputs
    options = operator.builtinOptions
    weights = _weights(packing, operator)
    if weights is None or weights.shape[1:3] != (3, 3):
        return False
    _, _, width, channels = packing.shape(source)
    dilation = options.dilationWFactor
    columns, _ = cheapest(width, lambda n: depthwise_cost(n, dilation, channels))
    if columns == 1:
        return False
    constants = [_repeated(packing, index, columns) for index in (kernel, *bias)]
    if dilation % columns == 0:
        changed = {"dilationWFactor": dilation // columns}
        packed = packing.packed(source, columns)
    else:
        packed, distance = _side_by_side(packing, operator, columns)
        changed = {"padding": schema.Padding.VALID, "dilationWFactor": distance}
    packing.replace(operator, [packed, *constants], columns, **changed)
    return True


def dynamic_convolution(packing: Packing, operator) -> bool:
    """A 3x3 convolution whose weights are computed, as products and a sum of shifted products.

    It arrives as a BATCH_MATMUL of all pixels with a matrix (channels, 9 taps), a RESHAPE, and a
    CONV_2D whose weights only say which product is shifted where. Each row of 3 taps gets a plane
    of its own, and the planes lie below each other. So the sum reads 3 products in place of 9:

        products of a pixel                    three planes
        | 9 | 9 | 9 | 9 |                      | 3 | 3 | 3 | 3 |   plane 0, for the row above
        | 9 | 9 | 9 | 9 |    h rows            | 3 | 3 | 3 | 3 |
                                               | 3 | 3 | 3 | 3 |   plane 1, for the row itself
        CONV_2D 3x3 of 9 channels              | 3 | 3 | 3 | 3 |
                                               | 3 | 3 | 3 | 3 |   plane 2, for the row below
                                               | 3 | 3 | 3 | 3 |

                                               CONV_2D 3x3 of 3 channels, dilation h + 1 between
                                               rows: from a row in its plane to the next row in
                                               the next plane

    With n columns packed, the matrix of each plane becomes n blocks on a diagonal
    (`_block_diagonal`).
    """
    found = _find_dynamic_convolution(packing, operator)
    if found is None:
        return False
    consumer, weights = found
    (left, right), (output,) = operator.inputs, operator.outputs
    _, height, width, taps = packing.shape(consumer.inputs[0])
    channels, filters = packing.shape(right)[2], len(weights)
    row_taps = taps // 3

    def product_cost(columns):
        return 3 * convolution_cost(columns, (1, 1, channels), row_taps)

    columns, cost = cheapest(width, product_cost)
    sum_columns, sum_cost = cheapest(
        width, lambda n: convolution_cost(n, (3, 3, row_taps), filters)
    )
    _, old_sum_cost = cheapest(width, lambda n: convolution_cost(n, (3, 3, taps), filters))
    old_cost = old_sum_cost + convolution_cost(1, (1, 1, channels), taps)
    if cost + sum_cost > WORTHWHILE * old_cost:
        return False

    matrix = _block_diagonal(packing, right, columns)
    pixels, size = height * width // columns, columns * row_taps
    shape = (1, 1, pixels, columns * channels)
    source = packing.reshape_to(packing.forms_of(left).to_reshape, shape, left)
    planes = packing.new_tensor(output, (1, 3, pixels, size))
    packing.emit_like(operator, [source, matrix], planes)
    stack = packing.new_tensor(output, (1, 3 * height, width, row_taps))
    packing.forms[stack] = Forms(planes, columns=None)
    window = _padded_window(packing, stack, 1, 3, sum_columns)
    changed = {"padding": schema.Padding.VALID, "dilationHFactor": height + 1}
    _convolve(packing, consumer, window, weights, sum_columns, **changed)
    return True


def pad(packing: Packing, operator) -> bool:
    """PAD of rows and columns, as one of whole rows (`Packing.pad_rows`).

    Not where XNNPACK computes it within the convolution that consumes it.
    """
    source, pads = operator.inputs[0], packing.value(operator.inputs[1])
    if pads is None or pads.shape != (4, 2) or pads[[0, 3]].any():
        return False
    is_unpacked = packing.forms_of(source).columns == 1
    if is_unpacked and packing.only_consumer(operator.outputs[0], "CONV_2D"):
        return False
    _, rows, columns, _ = pads.tolist()
    packing.reshape(packing.pad_rows(source, rows, columns), operator.outputs[0])
    return True


def elementwise(packing: Packing, operator) -> bool:
    """An operator that looks at one value of each input, in the form of its first input.

        | a | b | c | d |   ADD   | A | B | C | D |     4 columns of c channels
        | a   b | c   d |   ADD   | A   B | C   D |     2 columns of 2 c channels

    Inputs of a single value stay as they are.
    """
    first, output = operator.inputs[0], operator.outputs[0]
    shape = packing.shape(output)
    maps = [i for i in operator.inputs if i >= 0 and math.prod(packing.shape(i)) > 1]
    if not all(packing.is_feature_map(i) and packing.shape(i) == shape for i in maps):
        return False
    columns = packing.forms_of(first).columns or 1
    inputs = [packing.packed(i, columns) if i in maps else i for i in operator.inputs]
    packing.replace(operator, inputs, columns)
    return True


def reshape(packing: Packing, operator) -> bool:
    """A RESHAPE into a feature map: every form of its input has the bytes of its output.

    | a | b | c | d |   RESHAPE   | a   b |     the input's tensors serve as the output's,
                                  | c   d |     and nothing is computed
    """
    source, output = operator.inputs[0], operator.outputs[0]
    if not packing.is_feature_map(output):
        return False
    packing.forms[output] = Forms(packing.forms_of(source).to_reshape, columns=None)
    return True


# === Parts of the rewrites ===


def _weights(packing, operator):
    """The kernel of a convolution that can be packed; None for another.

    Its weights are constant int8, for all channels of the input (or, depthwise, one filter a
    channel), its strides are 1, and its output is as large as its input.
    """
    source, *constants = operator.inputs
    values = [packing.value(index) for index in constants]
    if any(value is None for value in values):
        return None
    weights, options, shape = values[0], operator.builtinOptions, packing.shape(source)
    is_packable = (
        weights.dtype == np.int8
        and weights.shape[3] == shape[3]
        and (options.strideW, options.strideH) == (1, 1)
        and shape[:3] == packing.shape(operator.outputs[0])[:3]
    )
    return weights if is_packable else None


def _repeated(packing, index, columns, values=None):
    """A constant, repeated along its last axis for each column; or other values in its place, with
    its scales and zero points repeated."""
    if values is None:
        values = np.tile(packing.value(index), columns)
    quantization = copy.copy(packing.graph.tensors[index].quantization)
    if len(quantization.scale) > 1:
        quantization.scale = np.tile(quantization.scale, columns)
        quantization.zeroPoint = np.tile(quantization.zeroPoint, columns)
    return packing.new_constant(values, quantization)


def _convolve(packing, operator, source, weights, columns, **options):
    """Puts a convolution of `source`, already padded and packed, in place of an operator.

    Args:
        weights: its kernel (filters, h, w, channels), which is packed here as `convolution` draws.
    """
    _, kernel, *bias = operator.inputs
    filters, h, w, channels = weights.shape
    width = packed_kernel_width(columns, w)
    packed = np.zeros((columns, filters, h, width, columns, channels), np.int8)
    for column, tap in np.ndindex(columns, w):
        packed_column, place = divmod(column + tap, columns)
        packed[column, :, :, packed_column, place] = weights[:, :, tap]
    packed = packed.reshape(columns * filters, h, width, columns * channels)
    constants = [_repeated(packing, kernel, columns, packed)]
    constants += [_repeated(packing, index, columns) for index in bias]
    packing.replace(operator, [source, *constants], columns, **options)


def _padded_window(packing, index, above, kernel_width, columns):
    """A feature map, padded as `convolution` draws for a kernel of so many columns, and packed.

    Args:
        above: rows of padding above, and as many below.
    """
    _, h, w, c = packing.shape(index)
    left = kernel_width // 2
    more = packed_kernel_width(columns, kernel_width) - 1  # packed columns that padding adds
    padded = packing.pad_rows(index, (above, above), (left, columns * more - left))
    return packing.reshape_to(padded, (1, h + 2 * above, w // columns + more, columns * c), index)


def _stacked(packing, parts, columns):
    """Feature maps of one shape below each other, with columns packed.

    If one of the parts is there as whole rows, all are joined as such: then one RESHAPE of the
    result does for all of them.
    """
    _, h, w, c = packing.shape(parts[0])
    has_rows = any(packing.forms_of(i).with_columns(w) is not None for i in parts)
    joined = w if has_rows else columns
    stack = packing.concatenate([packing.packed(i, joined) for i in parts], axis=1)
    if joined == columns:
        return stack
    return packing.reshape_to(stack, (1, len(parts) * h, w // columns, columns * c), parts[0])


def _find_dynamic_convolution(packing, operator):
    """The CONV_2D that sums the products of a BATCH_MATMUL, and its weights (filters, 3, 3, taps of
    one row) for planes; None where this is no dynamic convolution."""
    (left, right), output = operator.inputs, operator.outputs[0]
    reshaped = packing.only_consumer(output, "RESHAPE")
    consumer = reshaped and packing.only_consumer(reshaped.outputs[0], "CONV_2D")
    weights = _weights(packing, consumer) if consumer else None
    if weights is None or not packing.is_feature_map(right):
        return None
    options = consumer.builtinOptions
    _, height, width, taps = packing.shape(consumer.inputs[0])
    channels = packing.shape(right)[2]
    if (
        weights.shape[1:3] != (3, 3)
        or taps % 3 != 0
        or (options.dilationHFactor, options.dilationWFactor) != (1, 1)
        or operator.builtinOptions.adjX
        or operator.builtinOptions.adjY
        or packing.shape(left) != (1, 1, height * width, channels)
        or packing.shape(right) != (1, 1, channels, taps)
        # padding between the blocks is to be 0
        or packing.graph.tensors[right].quantization.zeroPoint[0] != 0
    ):
        return None
    by_plane = weights.reshape(len(weights), 3, 3, 3, taps // 3)  # filter, row, column, plane, tap
    own = np.stack([by_plane[:, row, :, row] for row in range(3)], axis=1)
    reads_other_planes = np.count_nonzero(own) != np.count_nonzero(weights)
    return None if reads_other_planes else (consumer, own)


def _block_diagonal(packing, matrix, columns):
    """Three planes of a computed matrix (channels, taps), each with a block for each packed column.

    Here one plane of 2 channels and 3 taps, for 2 packed columns. Its rows are padded to the width
    of the blocks and put behind each other. That is repeated, with the width of a block between, so
    that each repetition stands one block further to the right:

        abc     abc...     abc...def...     abc...def... ... abc...def... ...     abc...
        def     def...                                                            def...
                                                                                  ...abc
                                                                                  ...def
    """
    _, _, channels, taps = packing.shape(matrix)
    block, size = taps // 3, columns * (taps // 3)

    def widened(source, more):
        *rest, last = packing.shape(source)
        pads = packing.new_integers([[0, 0], [0, 0], [0, 0], [0, more]])
        target = packing.new_tensor(matrix, (*rest, last + more))
        return packing.emit("PAD", [source, pads], target, schema.PadOptionsT())

    whole = packing.packed(matrix)
    shape = (1, 1, channels, block)
    planes = [packing.slice_channels(whole, plane * block, shape) for plane in range(3)]
    rows = widened(packing.concatenate(planes, axis=1), size - block)
    flat = packing.reshape_to(rows, (1, 3, 1, channels * size), matrix)
    repeated = packing.concatenate([widened(flat, block)] * columns, axis=3)
    cut = packing.slice_channels(repeated, 0, (1, 3, 1, columns * channels * size))
    return packing.reshape_to(cut, (1, 3, columns * channels, size), matrix)


def _copying_convolution(packing, output, weights):
    """A 1x1 convolution that copies channels, as the producer of a tensor."""
    scale = packing.graph.tensors[output].quantization.scale[0]
    filters = len(weights)
    inputs = [output]
    for values, value_scale in ((weights, 1.0), (np.zeros(filters, np.int32), scale)):
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.full(filters, value_scale, np.float32)
        quantization.zeroPoint = np.zeros(filters, np.int64)
        quantization.quantizedDimension = 0
        inputs.append(packing.new_constant(values, quantization))
    options = schema.Conv2DOptionsT(schema.Padding.VALID, 1, 1, 0, 1, 1)
    return add_operator(packing.model, "CONV_2D", inputs, [output], options)


def _side_by_side(packing, operator, columns):
    """Copies of each padded row side by side, in which each tap of a depthwise convolution reads a
    copy of its own.

    Gaps of any values put the copies so far apart that from the place of one tap to that of the
    next are whole packed columns. Here 4 columns, dilation 1 and 2 columns packed, "." is padding
    and "-" a gap:

                          | . a | b c | d . | - . | a b | c d | . - | . a | b c | d . |
        output a reads      .                       a                       b
        output b reads        a                       b                       c

    Returns:
        the copies as a packed feature map, and the packed columns from one tap to the next.
    """
    source, options = operator.inputs[0], operator.builtinOptions
    above, dilation = options.dilationHFactor, options.dilationWFactor
    _, h, w, c = packing.shape(source)
    padded = packing.pad_rows(source, (above, above), (dilation, dilation))
    copies = [padded, padded, padded]
    gap_columns = -3 * dilation % columns
    if gap_columns:
        gap = packing.slice_channels(padded, 0, (1, h + 2 * above, 1, gap_columns * c))
        copies = [padded, gap, padded, gap, padded]
    rows = packing.concatenate(copies, axis=3)
    width = packing.shape(rows)[3] // c
    shape = (1, h + 2 * above, width // columns, columns * c)
    distance = (width - w) // 2  # the last tap of the last column reads the last of all
    return packing.reshape_to(rows, shape, source), distance // columns


REWRITES = {
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": depthwise,
    "CONCATENATION": concatenation,
    "PAD": pad,
    "BATCH_MATMUL": dynamic_convolution,
    "RESHAPE": reshape,
} | dict.fromkeys(ELEMENTWISE - {"SOFTMAX", "DEQUANTIZE"}, elementwise)
"""What replaces each kind of operator. A Softmax looks at all channels of a pixel. What makes a
float output stays the last operator, so that no other tensor is of floats."""
