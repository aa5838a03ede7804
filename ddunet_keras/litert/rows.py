"""Which rows of its inputs an operator needs for some rows of its output.

    convolution 3x3, stride 1             RESIZE_BILINEAR to twice the height
    output rows 2 to 4  (2, 4)            output rows 2 to 4  (2, 4)
    input rows  1 to 5  (1, 5)            input rows  0 to 3  (0, 3)

Rows are given as (first, end), `end` not among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import constant, operator_name

# fmt: off
ELEMENTWISE = frozenset((
    "ABS", "ADD", "CAST", "DEQUANTIZE", "DIV", "GREATER", "GREATER_EQUAL", "HARD_SWISH",
    "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "NEG", "QUANTIZE",
    "RELU", "RELU6", "RELU_N1_TO_1", "SOFTMAX", "SUB", "TANH",
))
# fmt: on
"""Operators whose output row depends on the same row of their inputs alone."""
EXACT_RESIZE_FACTORS = (1, 2, 4, 8)
"""Factors at which a RESIZE computes the same at every row: in fixed point, only powers of 2 are
the same fraction everywhere."""


@dataclass(frozen=True)
class RowDependency:
    """Which rows of its inputs an operator reads: `size` rows for each row of the output, from
    `ratio * row - above` on.

    Attributes:
        inputs: tensors whose rows are meant; the others are read whole.
        ratio: rows of an input for each row of the output.
        above: rows between the output's row, on the input's scale, and the first that is read.
        size: rows that are read.
        padding: rows that the operator adds (above, below): PAD alone.
    """

    inputs: list[int]
    ratio: Fraction = Fraction(1)
    above: Fraction | int = 0
    size: int = 1
    padding: tuple[int, int] = (0, 0)

    def needed(self, first: Fraction | int, end: Fraction | int) -> tuple[int, int]:
        """Rows of the inputs that these rows of the output need, beyond the edges too.

        >>> RowDependency([0], above=1, size=3).needed(2, 4)
        (1, 5)
        """
        low = math.floor(first * self.ratio - self.above)
        high = math.floor((end - 1) * self.ratio - self.above) + self.size
        return low, high


def row_dependency(model: schema.ModelT, operator: schema.OperatorT) -> RowDependency | None:
    """Which rows an operator of a model with one subgraph reads.

    Returns:
        None where an operator looks at all rows, or is none of those known here.
    """
    graph = model.subgraphs[0]
    shapes = {i: graph.tensors[i].shape for i in operator.inputs + operator.outputs if i >= 0}
    output = shapes[operator.outputs[0]]
    has_rows = len(output) == 4 and output[0] == 1 and output[1] >= 2
    if len(operator.outputs) != 1 or not has_rows:
        return None
    computed = [
        i for i in operator.inputs if i >= 0 and model.buffers[graph.tensors[i].buffer].data is None
    ]
    first = operator.inputs[0]
    if first not in computed or any(len(shapes[i]) == 4 and shapes[i][0] != 1 for i in computed):
        return None

    name = operator_name(model, operator)
    if name in ELEMENTWISE:
        return _same_rows(operator, shapes, computed)
    if name == "CONCATENATION" and operator.builtinOptions.axis % 4 == 3:
        found = _same_rows(operator, shapes, computed)
        return found if found and len(found.inputs) == len(operator.inputs) else None
    if computed != [first] or len(shapes[first]) != 4:
        return None
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return _convolution_rows(operator, shapes)
    if name == "PAD":
        return _padded_rows(operator, constant(model, graph, operator.inputs[1]))
    if name in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
        return _resized_rows(operator, shapes)
    return None


def _same_rows(operator, shapes, computed):
    """Output row y needs row y of the inputs that have rows; the others have the same value for
    all rows, such as a gate (1, 1, 1, c)."""
    output = shapes[operator.outputs[0]]
    with_rows = [i for i in computed if len(shapes[i]) == 4 and shapes[i][1] > 1]
    if any(shapes[i][1] != output[1] for i in with_rows):
        return None
    for index in operator.inputs:
        shape = shapes[index]
        if index not in with_rows and math.prod(shape[:-2]) != 1:
            return None
    return RowDependency(with_rows)


def _convolution_rows(operator, shapes):
    source, kernel = operator.inputs[:2]
    options = operator.builtinOptions
    size = (shapes[kernel][1] - 1) * options.dilationHFactor + 1
    above = 0
    if options.padding == schema.Padding.SAME:
        needed_rows = (shapes[operator.outputs[0]][1] - 1) * options.strideH + size
        above = max(needed_rows - shapes[source][1], 0) // 2
    return RowDependency([source], Fraction(options.strideH), above, size)


def _padded_rows(operator, pads):
    if pads is None or pads.shape != (4, 2) or pads[[0, 3]].any():
        return None
    above, below = pads[1].tolist()
    return RowDependency([operator.inputs[0]], above=above, padding=(above, below))


def _resized_rows(operator, shapes):
    """Two rows, between which a row of the output lies."""
    source, options = operator.inputs[0], operator.builtinOptions
    rows, output_rows = shapes[source][1], shapes[operator.outputs[0]][1]
    factor = output_rows // rows
    is_exact = factor in EXACT_RESIZE_FACTORS and factor * rows == output_rows
    if options.alignCorners or not is_exact:
        return None
    center = Fraction(1, 2) if options.halfPixelCenters else Fraction(0)
    return RowDependency([source], Fraction(1, factor), center - center / factor, size=2)
