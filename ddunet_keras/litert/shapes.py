"""The shapes of an operator's outputs, as its inputs and options give them: one function a kind.

Each takes a `Node` and returns a shape for each output. What does not fit together raises a
`TFLiteError` that says what; where ranks differ, Python's own errors.
"""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import dtype_name, require
from ddunet_keras.litert.nodes import Node

MAX_STRIDE = 2**14
"""Largest stride and dilation; LiteRT calculates with their products in 32 bits. Dilations are as
large as a row is wide where neighbouring columns are merged."""


MAX_SIDE = 2**16
"""More rows or columns than any operator adds or cuts off."""

MAX_SOFTMAX = {"int8": 511, "int16": 4095}
"""Most values of a softmax by the type of its output: where 512 are alike, kernels shift those of
int8 by 32 bits and end the process; the sum of 4,096 overflows."""


def same(node: Node) -> list[list[int]]:
    return [node.shape(0)]


def space_to_batch(node: Node) -> list[list[int]]:
    batch, height, width, channels = node.shape(0)
    block, added = _block_and_ends(node)
    sides = [side + sum(ends) for side, ends in zip((height, width), added, strict=True)]
    fits = not any(side % step for side, step in zip(sides, block, strict=True))
    require(fits, f"its sides {sides} are no multiples of {block}")
    rows, columns = (side // step for side, step in zip(sides, block, strict=True))
    return [[batch * block[0] * block[1], rows, columns, channels]]


def batch_to_space(node: Node) -> list[list[int]]:
    batch, height, width, channels = node.shape(0)
    block, cut = _block_and_ends(node)
    require(batch % (block[0] * block[1]) == 0, f"its batch {batch} is not of {block}")
    rows, columns = (
        side * step - sum(ends)
        for side, step, ends in zip((height, width), block, cut, strict=True)
    )
    require(rows > 0 and columns > 0, f"nothing is left of it by {cut}")
    return [[batch // (block[0] * block[1]), rows, columns, channels]]


def _block_and_ends(node):
    """The block, and what is added or cut at both ends: of rows and of columns."""
    block, ends = node.fixed(1), node.fixed(2)
    require(block.shape == (2,) and ends.shape == (2, 2), "it is not of rows and columns")
    fits = np.all((block > 0) & (block <= MAX_STRIDE)) and np.all((ends >= 0) & (ends < MAX_SIDE))
    require(bool(fits), f"its block is {block.tolist()}, its ends {ends.tolist()}")
    return block.tolist(), ends.tolist()


def softmax(node: Node) -> list[list[int]]:
    shape, kind = node.shape(0), dtype_name(node.output)
    if kind in MAX_SOFTMAX:
        most = MAX_SOFTMAX[kind]
        require(shape[-1] <= most, f"it is over {shape[-1]} values; {kind} kernels take {most}")
    return [shape]


def broadcast(node: Node) -> list[list[int]]:
    return [list(np.broadcast_shapes(node.shape(0), node.shape(1)))]


def _windows(node, kernel, sides):
    """Sides of the output of a kernel that slides over a feature map."""
    result = []
    for axis, size, side in zip("HW", kernel, sides, strict=True):
        stride = node.option(f"stride{axis}")
        dilation = node.option(f"dilation{axis}Factor", 1)
        fits = 0 < stride <= MAX_STRIDE and 0 < dilation <= MAX_STRIDE
        require(fits, f"its stride is {stride}, dilation {dilation}")
        reach = (size - 1) * dilation
        if node.option("padding") == schema.Padding.VALID:
            side -= reach
        require(side > 0, f"its kernel of {size} is larger than what it slides over")
        result.append(-(-side // stride))
    return result


def _check_weights(node, filters, axis):
    """Bias and scales are one for each filter, which are along `axis` of the weights."""
    require(node.shape(2) == [filters], "its bias is not one for each filter")
    quantization = node.input(1).quantization
    if quantization is not None and quantization.scale is not None:
        count = len(quantization.scale)
        along = count == filters and quantization.quantizedDimension == axis
        require(count == 1 or along, "its scales are not one for each filter")
        points = quantization.zeroPoint
        require(points is None or not np.any(points), "its weights have zero points")


def convolution(node: Node) -> list[list[int]]:
    batch, height, width, channels = node.shape(0)
    filters, *kernel, depth = node.shape(1)
    require(depth == channels, f"its weights are for {depth} channels, it reads {channels}")
    _check_weights(node, filters, axis=0)
    return [[batch, *_windows(node, kernel, (height, width)), filters]]


def depthwise(node: Node) -> list[list[int]]:
    batch, height, width, channels = node.shape(0)
    one, *kernel, filters = node.shape(1)
    multiplier = node.option("depthMultiplier")
    require(
        one == 1 and filters == channels * multiplier,
        f"its weights are for {filters} filters, it reads {channels} channels",
    )
    _check_weights(node, filters, axis=3)
    return [[batch, *_windows(node, kernel, (height, width)), filters]]


def pool(node: Node) -> list[list[int]]:
    batch, height, width, channels = node.shape(0)
    kernel = node.option("filterHeight"), node.option("filterWidth")
    inside = 0 < kernel[0] <= height and 0 < kernel[1] <= width
    require(inside, f"its window of {kernel} does not fit into {height, width}")
    return [[batch, *_windows(node, kernel, (height, width)), channels]]


def matmul(node: Node) -> list[list[int]]:
    left, right = list(node.shape(0)), list(node.shape(1))
    if node.option("adjX"):
        left[-2:] = reversed(left[-2:])
    if node.option("adjY"):
        right[-2:] = reversed(right[-2:])
    require(left[-1] == right[-2], f"it multiplies {left} by {right}")
    return [[*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]]]


def _axis(value, rank):
    """An axis, counted from the front."""
    axis = int(np.ravel(value)[0])
    require(np.size(value) == 1 and -rank <= axis < rank, f"its axis is {np.ravel(value)[:4]}")
    return axis % rank


def concatenation(node: Node) -> list[list[int]]:
    shapes = [node.shape(number) for number in range(len(node.operator.inputs))]
    axis = _axis(node.option("axis"), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    require(len(rest) == 1 and len({len(shape) for shape in shapes}) == 1, "its parts do not fit")
    return [[*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]]]


def split(node: Node) -> list[list[int]]:
    shape = node.shape(1)
    parts = len(node.operator.outputs)
    axis = _axis(node.fixed(0), len(shape))
    require(node.option("numSplits") == parts, f"it has {parts} outputs")
    require(shape[axis] % parts == 0, f"it splits {shape[axis]} into {parts}")
    part = [*shape[:axis], shape[axis] // parts, *shape[axis + 1 :]]
    return [part for _ in range(parts)]


def reshape(node: Node) -> list[list[int]]:
    require(node.fixed(1).ndim == 1, "its shape is no list")
    shape = node.fixed(1).tolist()
    size = math.prod(node.shape(0))
    if shape.count(-1) == 1:  # what is left for that side
        shape[shape.index(-1)] = size // max(1, -math.prod(shape))
    require(min(shape) > 0 and math.prod(shape) == size, f"it asks for shape {shape}")
    return [shape]


def cut(node: Node) -> list[list[int]]:
    """Of SLICE."""
    shape = node.shape(0)
    begin = node.fixed(1).tolist()
    size = node.fixed(2).tolist()
    result = []
    for side, start, length in zip(shape, begin, size, strict=True):
        length = side - start if length == -1 else length
        inside = start >= 0 and length > 0 and start + length <= side
        require(inside, f"it cuts {size} at {begin} out of {shape}")
        result.append(length)
    return [result]


def pad(node: Node) -> list[list[int]]:
    shape = node.shape(0)
    paddings = node.fixed(1)
    require(paddings.shape == (len(shape), 2) and paddings.min() >= 0, "its paddings do not fit")
    return [
        [
            side + before + after
            for side, (before, after) in zip(shape, paddings.tolist(), strict=True)
        ]
    ]


def mean(node: Node) -> list[list[int]]:
    shape = node.shape(0)
    listed = np.ravel(node.fixed(1))
    axes = {_axis(axis, len(shape)) for axis in listed}
    require(len(axes) == len(listed), "it has an axis twice")
    if node.option("keepDims"):
        return [[1 if axis in axes else side for axis, side in enumerate(shape)]]
    return [[side for axis, side in enumerate(shape) if axis not in axes]]


def resize(node: Node) -> list[list[int]]:
    batch, _, _, channels = node.shape(0)
    height, width = node.fixed(1).tolist()
    both = node.option("alignCorners") and node.option("halfPixelCenters")
    require(not both, "it has aligned corners and half pixels")
    return [[batch, height, width, channels]]


def arg_max(node: Node) -> list[list[int]]:
    shape = node.shape(0)
    axis = _axis(node.fixed(1), len(shape))
    require(axis == len(shape) - 1, "it does not compare the channels")
    kind = node.option("outputType", node.output.type)
    require(kind == node.output.type, f"its options say type {kind}, its output another")
    return [shape[:-1]]
