"""Width-to-channel packing: the shapes in which a model has each of its feature maps.

A feature map (1, h, w, c) lies in memory row by row, a row column by column, a column channel by
channel. So neighbouring columns can be taken for one column of more channels, and no byte moves:

    shape (1, 1, 4, 2)    | a a | b b | c c | d d |    4 columns of 2 channels
    2 columns packed      | a a   b b | c c   d d |    2 columns of 4 channels
    4 columns packed      | a a   b b   c c   d d |    1 column of 8 channels

`Packing` is a model while its operators are rewritten. For each feature map it knows in which of
these forms the map is there already, and it makes new tensors and operators. The rewrites
themselves are in `ddunet_keras.litert.columns`, what they cost in
`ddunet_keras.litert.packing_cost`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import single_subgraph
from ddunet_keras.litert.model import (
    add_constant,
    add_operator,
    add_tensor,
    constant,
    operator_name,
)


@dataclass
class Forms:
    """The tensors that hold the bytes of one feature map in different shapes.

    Attributes:
        computed: the tensor that an operator writes.
        columns: how many columns are packed in it; None where its shape is another altogether.
        reshaped: tensors made from it by RESHAPE, by the number of columns packed, oldest first.
    """

    computed: int
    columns: int | None = 1
    reshaped: dict[int, int] = field(default_factory=dict)

    def with_columns(self, columns: int) -> int | None:
        """The tensor with so many columns packed, or None where there is none yet."""
        return self.computed if columns == self.columns else self.reshaped.get(columns)

    @property
    def to_reshape(self) -> int:
        """The tensor from which further forms are made: the oldest reshaped one.

        XNNPACK moves no byte for a RESHAPE that is the only consumer of its input. So the computed
        tensor gets one RESHAPE at most.
        """
        return next(iter(self.reshaped.values()), self.computed)


class Packing:
    """A model whose operators are replaced one by one, and the forms of its feature maps.

    Tensors are given by their index in the model as it was read, and feature maps by the index of
    their unpacked form.

    Attributes:
        model: the `ModelT`; tensors, constants and operator kinds are added to it.
        graph: its only subgraph, whose own list of operators stays as it was.
        operators: the operators that replace the given ones, in order.
        forms: those of each feature map that was computed or read so far.
        stacks: inputs of each concatenation that convolutions can read below each other.
    """

    def __init__(self, model: schema.ModelT):
        self.model = model
        self.graph = single_subgraph(model)
        self.operators: list[schema.OperatorT] = []
        self.forms: dict[int, Forms] = {}
        self.stacks: dict[int, list[int]] = {}
        self._consumers: dict[int, list[schema.OperatorT]] = {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                self._consumers.setdefault(index, []).append(operator)

    # --- questions ---

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.graph.tensors[index].shape)

    def value(self, index: int) -> np.ndarray | None:
        """Value of a constant; None for a computed tensor."""
        return constant(self.model, self.graph, index)

    def is_feature_map(self, index: int) -> bool:
        """Whether a tensor is computed and has the shape (1, h, w, c)."""
        if index < 0 or self.value(index) is not None:
            return False
        shape = self.shape(index)
        return len(shape) == 4 and shape[0] == 1

    def only_consumer(self, index: int, name: str) -> schema.OperatorT | None:
        """The operator that alone reads a tensor, where it is of this kind; else None."""
        consumers = self._consumers.get(index, [])
        if index in self.graph.outputs or len(consumers) != 1:
            return None
        return consumers[0] if operator_name(self.model, consumers[0]) == name else None

    def forms_of(self, index: int) -> Forms:
        """The forms of a feature map; only its own, where nothing else is known of it."""
        return self.forms.get(index, Forms(index))

    # --- tensors ---

    def new_constant(self, values, quantization=None) -> int:
        return add_constant(self.model, self.graph, np.asarray(values), quantization)

    def new_integers(self, values) -> int:
        """A constant of int32, such as a shape."""
        return self.new_constant(np.asarray(values, np.int32))

    def new_tensor(self, like: int, shape: Sequence[int]) -> int:
        """A computed tensor of another shape, else like tensor `like`."""
        return add_tensor(self.graph, like, shape)

    def new_packed(self, index: int, columns: int) -> int:
        """A tensor for a feature map with columns packed; itself for 1."""
        if columns == 1:
            return index
        _, h, w, c = self.shape(index)
        return self.new_tensor(index, (1, h, w // columns, columns * c))

    def packed(self, index: int, columns: int = 1) -> int:
        """A feature map with so many columns packed: by a RESHAPE, if it is not there yet."""
        forms = self.forms.setdefault(index, Forms(index))
        found = forms.with_columns(columns)
        if found is None:
            found = self.reshape(forms.to_reshape, self.new_packed(index, columns))
            forms.reshaped[columns] = found
        return found

    # --- operators ---

    def emit(self, name: str, inputs: list[int], output: int, options=None) -> int:
        """Adds an operator of this kind; gives its output."""
        self.operators.append(add_operator(self.model, name, inputs, [output], options))
        return output

    def emit_like(self, operator, inputs: list[int], output: int, **options) -> int:
        """Adds an operator like another, with other inputs and, in part, other options."""
        new = copy.copy(operator)
        new.inputs, new.outputs = inputs, [output]
        if options:
            new.builtinOptions = copy.copy(operator.builtinOptions)
            vars(new.builtinOptions).update(options)
        self.operators.append(new)
        return output

    def replace(self, operator, inputs: list[int], columns: int, **options) -> None:
        """Adds what computes an operator's output with columns packed."""
        (output,) = operator.outputs
        computed = self.emit_like(operator, inputs, self.new_packed(output, columns), **options)
        self.forms[output] = Forms(computed, columns)

    def reshape(self, source: int, target: int) -> int:
        """RESHAPE of one tensor into another."""
        shape = self.shape(target)
        options = schema.ReshapeOptionsT(list(shape))
        return self.emit("RESHAPE", [source, self.new_integers(shape)], target, options)

    def reshape_to(self, source: int, shape: Sequence[int], like: int) -> int:
        """RESHAPE into a new tensor like tensor `like`."""
        return self.reshape(source, self.new_tensor(like, shape))

    def slice_channels(self, source: int, start: int, shape: Sequence[int]) -> int:
        """SLICE of this shape, from channel `start` on."""
        inputs = [source, self.new_integers([0, 0, 0, start]), self.new_integers(shape)]
        target = self.new_tensor(source, shape)
        return self.emit("SLICE", inputs, target, schema.SliceOptionsT())

    def concatenate(self, parts: list[int], axis: int) -> int:
        """CONCATENATION of tensors that agree in all other axes."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        target = self.new_tensor(parts[0], shape)
        return self.emit("CONCATENATION", parts, target, schema.ConcatenationOptionsT(axis, 0))

    def pad_rows(self, index: int, rows: Sequence[int], columns: Sequence[int]) -> int:
        """PAD of a feature map, with each row as one column: XNNPACK then copies row by row.

            w columns of c channels      1 column of w c      PAD by a row above, a column left
                                                              | ...... |
            | aa | bb |                  | aabb |             | ..aabb |
            | cc | dd |                  | ccdd |             | ..ccdd |

        Args:
            index: the feature map (1, h, w, c).
            rows: rows that are added above and below.
            columns: columns that are added on the left and on the right.

        Returns:
            a tensor of shape (1, above + h + below, 1, (left + w + right) c).
        """
        _, h, w, c = self.shape(index)
        (above, below), (left, right) = rows, columns
        pads = self.new_integers([[0, 0], [above, below], [0, 0], [left * c, right * c]])
        inputs = [self.packed(index, w), pads]
        padded = self.new_tensor(index, (1, above + h + below, 1, (left + w + right) * c))
        return self.emit("PAD", inputs, padded, schema.PadOptionsT())
