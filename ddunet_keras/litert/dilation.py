"""Dilated depthwise convolutions as plain ones, bit for bit: a pass for microcontrollers.

Neither CMSIS-NN nor ESP-NN has a fast kernel for a dilated depthwise convolution: TFLM falls back
to its reference kernel. But with dilation d, a pixel only meets those whose row and column are
equal to its own modulo d. So the feature map is taken apart into d * d small ones, which a plain
convolution works on, and put together again:

    row 0   a b a b a b        SPACE_TO_BATCH_ND       a a a   b b b
    row 1   c d c d c d      ------------------->      a a a   b b b   c c c   d d d
    row 2   a b a b a b       with a block of 2                        c c c   d d d
    row 3   c d c d c d

Where sides are no multiples of d, PAD adds pixels of the value zero, as the padding of the
convolution does, and BATCH_TO_SPACE_ND cuts them off again. (SPACE_TO_BATCH_ND could add them, but
TFLM's kernel of August 2026 adds another value than zero.)

ESP-NN's kernels go through a batch, and copy one small map at a time. CMSIS-NN's fast kernels take
no batch. For these the small maps are stacked, one below the other as they lie in memory, with
rows of zeros between them.
"""

from __future__ import annotations

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.cost import Core, instructions
from ddunet_keras.litert.memory import (
    MICROCONTROLLER,
    operator_persistent_bytes,
    single_subgraph,
)
from ddunet_keras.litert.model import add_constant, add_operator, add_tensor, operator_name
from ddunet_keras.litert.nodes import Node

WORTH_OF_A_BYTE = 5000
"""Instructions that must be saved for each byte of TFLM's persistent allocations for the added
operators: what a form saves on small feature maps is not worth its memory."""


def plain_depthwise(model: schema.ModelT, core: Core, batched: bool) -> int:
    """Writes dilated depthwise convolutions as plain ones where that pays, in place.

    Args:
        model: `ModelT` with one subgraph and fixed shapes.
        core: whose costs decide.
        batched: whether the fast kernel takes a batch (ESP-NN) or not (CMSIS-NN).

    Returns:
        how many were rewritten.

    Raises:
        TFLiteError: the model has several subgraphs.
    """
    graph = single_subgraph(model)
    rewritten, count = [], 0
    for operator in graph.operators:
        if not _is_dilated(model, graph, operator):
            rewritten.append(operator)
            continue
        lengths = [len(part) for part in (graph.tensors, model.buffers, model.operatorCodes)]
        parts = _in_parts(model, graph, operator, batched)
        if _saved(model, graph, operator, parts, core) > 0:
            rewritten += parts
            count += 1
        else:
            rewritten.append(operator)
            del graph.tensors[lengths[0] :]
            del model.buffers[lengths[1] :]
            del model.operatorCodes[lengths[2] :]
    graph.operators = rewritten
    return count


def _is_dilated(model, graph, operator):
    """Whether it is a depthwise convolution that the form is exact for."""
    if operator_name(model, operator) != "DEPTHWISE_CONV_2D":
        return False
    options = operator.builtinOptions
    batch, height, width, _ = graph.tensors[operator.inputs[0]].shape
    _, kernel_height, kernel_width, _ = graph.tensors[operator.inputs[1]].shape
    dilation = options.dilationHFactor
    return (
        1 < dilation == options.dilationWFactor
        and dilation < min(height, width)
        and batch == options.strideH == options.strideW == options.depthMultiplier == 1
        and kernel_height % 2 == kernel_width % 2 == 1
        and options.padding == schema.Padding.SAME
    )


def _saved(model, graph, operator, parts, core):
    """Instructions that the parts save, less what their memory is worth."""

    def nodes(operators):
        return [Node(model, graph, 0, -1, o, operator_name(model, o)) for o in operators]

    before = instructions(nodes([operator]), core)
    after = instructions(nodes(parts), core)
    added = sum(operator_persistent_bytes(model, part, MICROCONTROLLER) for part in parts)
    added -= operator_persistent_bytes(model, operator, MICROCONTROLLER)
    return before - after - WORTH_OF_A_BYTE * added


def _in_parts(model, graph, operator, batched):
    """The operators that compute the same."""
    source, target = operator.inputs[0], operator.outputs[0]
    _, height, width, channels = graph.tensors[source].shape
    dilation = operator.builtinOptions.dilationHFactor
    between = 0 if batched else graph.tensors[operator.inputs[1]].shape[1] // 2
    rows, columns = (-(-side // dilation) for side in (height, width))
    rows += between
    block = add_constant(model, graph, np.array([dilation, dilation], np.int32))
    excess = [[0, rows * dilation - height], [0, columns * dilation - width]]
    cut = add_constant(model, graph, np.array(excess, np.int32))
    small = [dilation * dilation, rows, columns, channels]
    stacked = [1, dilation * dilation * rows, columns, channels]

    parts = []
    if np.any(excess):
        source = _padded(model, graph, parts, source, excess)
    apart = add_tensor(graph, source, small)
    nothing = add_constant(model, graph, np.zeros((2, 2), np.int32))
    options = schema.SpaceToBatchNDOptionsT()
    inputs = [source, block, nothing]
    parts.append(add_operator(model, "SPACE_TO_BATCH_ND", inputs, [apart], options))
    if not batched:
        apart = _reshaped(model, graph, parts, apart, stacked)

    plain = copy.copy(operator)
    plain.builtinOptions = copy.copy(operator.builtinOptions)
    plain.builtinOptions.dilationHFactor = plain.builtinOptions.dilationWFactor = 1
    result = add_tensor(graph, target, small if batched else stacked)
    plain.inputs, plain.outputs = [apart, *operator.inputs[1:]], [result]
    parts.append(plain)

    if not batched:
        result = _reshaped(model, graph, parts, result, small)
    options = schema.BatchToSpaceNDOptionsT()
    inputs = [result, block, cut]
    parts.append(add_operator(model, "BATCH_TO_SPACE_ND", inputs, [target], options))
    return parts


def _padded(model, graph, parts, source, excess):
    """A tensor with more rows and columns, whose PAD joins the parts."""
    sides = add_constant(model, graph, np.array([[0, 0], *excess, [0, 0]], np.int32))
    batch, height, width, channels = graph.tensors[source].shape
    rows, columns = height + excess[0][1], width + excess[1][1]
    target = add_tensor(graph, source, [batch, rows, columns, channels])
    parts.append(add_operator(model, "PAD", [source, sides], [target], schema.PadOptionsT()))
    return target


def _reshaped(model, graph, parts, source, shape):
    """A tensor of another shape, whose RESHAPE joins the parts."""
    sides = add_constant(model, graph, np.array(shape, np.int32))
    target = add_tensor(graph, source, shape)
    options = schema.ReshapeOptionsT(shape)
    parts.append(add_operator(model, "RESHAPE", [source, sides], [target], options))
    return target
