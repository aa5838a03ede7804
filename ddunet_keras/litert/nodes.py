"""The operators of a `.tflite` file: their kinds, inputs, constants, options and work.

`nodes` lists them; the checks of a file, the rules of the Edge TPU and the report ask them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import TFLiteError, constant, operator_name, tensor_name


@dataclass(frozen=True)
class Node:
    """An operator and the model that it stands in.

    Attributes:
        model, graph: the schema's `ModelT` and `SubGraphT`.
        subgraph, index: numbers of the subgraph and of the operator in it.
        operator: the schema's `OperatorT`.
        kind: as `operator_name` gives it, such as "CONV_2D".
    """

    model: schema.ModelT
    graph: schema.SubGraphT
    subgraph: int
    index: int
    operator: schema.OperatorT
    kind: str

    @property
    def name(self) -> str:
        """The name of its first output."""
        return tensor_name(self.output) if self.operator.outputs else ""

    @property
    def output(self) -> schema.TensorT:
        """Its first output.

        Raises:
            IndexError: it has none.
        """
        return self.graph.tensors[self.operator.outputs[0]]

    @property
    def outputs(self) -> list[schema.TensorT]:
        return [self.graph.tensors[index] for index in self.operator.outputs]

    def _index(self, number: int) -> int:
        inputs = self.operator.inputs
        return inputs[number] if number < len(inputs) else -1

    def input(self, number: int) -> schema.TensorT | None:
        """An input tensor, or None where it is left out."""
        index = self._index(number)
        return None if index < 0 else self.graph.tensors[index]

    def value(self, number: int) -> np.ndarray | None:
        """The value of a constant input, or None for any other."""
        index = self._index(number)
        return None if index < 0 else self.value_of(index)

    def shape(self, number: int) -> list[int]:
        """The shape of an input.

        Raises:
            TFLiteError: it is left out.
        """
        tensor = self.input(number)
        if tensor is None:
            raise TFLiteError(f"its input {number} is left out")
        return tensor.shape

    def fixed(self, number: int) -> np.ndarray:
        """The value of an input that must be a constant.

        Raises:
            TFLiteError: it is none.
        """
        value = self.value(number)
        if value is None:
            raise TFLiteError(f"its input {number} is not constant")
        return value

    def value_of(self, index: int) -> np.ndarray | None:
        """The value of a constant tensor of its graph, or None for any other."""
        return constant(self.model, self.graph, index)

    def option(self, name: str, default: int = 0) -> int:
        """An option, as "strideW", or `default` where the operator has none of that name."""
        return getattr(self.operator.builtinOptions, name, default)

    def tensors(self) -> list[tuple[int, schema.TensorT]]:
        """(index, tensor) of its inputs and outputs."""
        listed = [*self.operator.inputs, *self.operator.outputs]
        return [(index, self.graph.tensors[index]) for index in listed if index >= 0]


def nodes(model: schema.ModelT) -> list[Node]:
    """Every operator of every subgraph.

    Example:

    >>> from ddunet_keras.litert.model import read_tflite
    >>> from ddunet_keras.presets import preset_file
    >>> model = read_tflite(preset_file("ddunet_c8", "tflite"))
    >>> nodes(model)[4].kind
    'CONV_2D'
    """
    return [
        Node(model, graph, number, index, operator, operator_name(model, operator))
        for number, graph in enumerate(model.subgraphs)
        for index, operator in enumerate(graph.operators)
    ]


# multiply-accumulates by the shapes of output, weights (second input) and data
_MACS = {
    "CONV_2D": lambda node, out, kernel, data: math.prod(out) * math.prod(kernel[1:]),
    "DEPTHWISE_CONV_2D": lambda node, out, kernel, data: math.prod(out) * math.prod(kernel[1:3]),
    "FULLY_CONNECTED": lambda node, out, kernel, data: math.prod(out) * kernel[-1],
    "BATCH_MATMUL": lambda node, out, kernel, data: (
        math.prod(out) * data[-2 if node.option("adjX") else -1]
    ),
    "CONV_3D": lambda node, out, kernel, data: math.prod(out) * math.prod(kernel[:4]),
    "TRANSPOSE_CONV": lambda node, out, kernel, data: math.prod(data) * math.prod(kernel[:3]),
}


def macs(node: Node) -> int | None:
    """Multiply-accumulates of an operator: convolutions and matrix products; 0 for all else.

    With an output of n elements: CONV_2D n kh kw c_in / groups, DEPTHWISE_CONV_2D n kh kw,
    FULLY_CONNECTED n c_in, BATCH_MATMUL n k, CONV_3D n kd kh kw c_in; TRANSPOSE_CONV: each element
    of the input is spread to kh kw c_out.

    Returns:
        an int, or None for an operator that lacks an input, an output or a dimension.
    """
    if node.kind not in _MACS:
        return 0
    data = node.input(2 if node.kind == "TRANSPOSE_CONV" else 0)
    kernel = node.input(1)
    if data is None or kernel is None or not node.outputs:
        return None
    try:
        return _MACS[node.kind](node, node.output.shape, kernel.shape, data.shape)
    except IndexError:
        return None
