"""What a model keeps in the arena of TensorFlow Lite Micro (TFLM), and when.

A tensor lives from the operator that writes it to the last one that reads it; the input lives from
the start, the output to the end. Each takes a multiple of 16 bytes. The most bytes that live at one
operator are the least that an arena can have:

    operator          0    1    2    3
    input           ####                      a to d: outputs of the operators
    a               #########
    b                    ##############
    c                         #########
    d, the output                  ####
                    i+a  a+b  b+c  b+c+d      bytes alive

Slicing and joining along the rows costs no memory where the part lies inside the whole: the
operator then copies bytes onto themselves. `Alias` and `placement_groups` are about that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import TFLiteError, constant, operator_name, tensor_bytes

ALIGNMENT = 16
"""Bytes at whose multiples TFLM puts tensors."""
PLAN = b"OfflineMemoryAllocation"
"""Name of the metadata from which TFLM takes the offsets: int32 (version 1, subgraph 0, number of
tensors, offset of each, -1 for constants)."""
PLAN_HEADER = 3
"""Numbers that stand before the offsets."""


@dataclass(frozen=True)
class Runtime:
    """TFLM as built for a kind of machine: what takes room in its arena beside the tensors.

    Attributes:
        pointer_bytes: 8 on a computer, 4 on a microcontroller.
        scratch: gives the bytes that an operator's kernel works in while it runs. Its arguments are
            model, operator, and None or the rows of its input and output in place of those that
            they have.
    """

    pointer_bytes: int
    scratch: Callable[[schema.ModelT, schema.OperatorT, tuple[int, int] | None], int] | None = None

    def scratch_bytes(
        self,
        model: schema.ModelT,
        operator: schema.OperatorT,
        rows: tuple[int, int] | None = None,
    ) -> int:
        """Bytes that the operator's scratch memory takes in the arena."""
        return aligned(self.scratch(model, operator, rows)) if self.scratch is not None else 0


HOST = Runtime(pointer_bytes=8)
"""The reference kernels on a 64-bit computer, as the Python package runs them."""

MICROCONTROLLER = Runtime(pointer_bytes=4)
"""The reference kernels on a 32-bit microcontroller. CMSIS-NN's take some hundred bytes more."""


def single_subgraph(model: schema.ModelT) -> schema.SubGraphT:
    """The only subgraph of a model.

    Raises:
        TFLiteError: it has several.
    """
    if len(model.subgraphs) != 1:
        raise TFLiteError(f"it has {len(model.subgraphs)} subgraphs, one was expected")
    return model.subgraphs[0]


# === Lifetimes ===


def lifetimes(model: schema.ModelT) -> dict[int, tuple[int, int]]:
    """First and last operator at which each tensor of the arena lives: {index: (first, last)}.

    The input lives from -1 on: it is filled before the first operator runs.
    """
    graph = single_subgraph(model)
    found = dict.fromkeys(graph.inputs, (-1, -1))
    for number, operator in enumerate(graph.operators):
        for index in operator.outputs:
            found[index] = (number, number)
        for index in operator.inputs:
            if index in found:
                found[index] = (found[index][0], number)
            elif index >= 0 and model.buffers[graph.tensors[index].buffer].data is None:
                found[index] = (number, number)  # room that a custom operator works in
    for index in graph.outputs:
        if index in found:
            found[index] = (found[index][0], len(graph.operators) - 1)
    return found


def tensor_sizes(model: schema.ModelT) -> dict[int, int]:
    """Bytes that each tensor takes in the arena: {index: multiple of 16}, constants left out."""
    tensors = single_subgraph(model).tensors
    return {index: aligned(tensor_bytes(tensors[index])) for index in sorted(lifetimes(model))}


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """The least multiple of `alignment` that is not below a size."""
    return -(-size // alignment) * alignment


# === Tensors inside others ===


@dataclass(frozen=True)
class Alias:
    """A tensor that holds bytes of another one in one piece, `offset` bytes after its start."""

    part: int
    whole: int
    offset: int


def aliases(model: schema.ModelT) -> list[Alias]:
    """The tensors that can lie inside others.

    These are the results of any RESHAPE, and those of a SLICE and the inputs of a CONCATENATION
    along the outermost axis whose size is not 1:

        whole (1, 6, w, c)     | row 0 | row 1 | row 2 | row 3 | row 4 | row 5 |
        SLICE of rows 2 to 4                   | row 2 | row 3 |
    """
    graph = single_subgraph(model)
    found: list[Alias] = []
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name == "RESHAPE":
            found.append(Alias(operator.outputs[0], operator.inputs[0], 0))
        elif name == "SLICE":
            found += _slice_alias(model, graph, operator)
        elif name == "CONCATENATION":
            found += _concatenation_aliases(graph, operator)
    return found


def _slice_alias(model, graph, operator):
    whole, part = operator.inputs[0], operator.outputs[0]
    begin = constant(model, graph, operator.inputs[1])
    shape, part_shape = graph.tensors[whole].shape, graph.tensors[part].shape
    is_sound = begin is not None and begin.shape == (len(shape),) == (len(part_shape),)
    if not is_sound or math.prod(shape) == 0:
        return []
    cut_axes = [axis for axis in range(len(shape)) if shape[axis] != part_shape[axis]]
    axis = max(cut_axes, default=0)
    if math.prod(shape[:axis]) != 1 or math.prod(part_shape[:axis]) != 1:
        return []
    row_bytes = tensor_bytes(graph.tensors[whole]) // shape[axis]
    return [Alias(part, whole, int(begin[axis]) * row_bytes)]


def _concatenation_aliases(graph, operator):
    whole, options = operator.outputs[0], operator.builtinOptions
    shape = graph.tensors[whole].shape
    if not isinstance(options, schema.ConcatenationOptionsT) or not shape:
        return []
    if math.prod(shape[: options.axis % len(shape)]) != 1:
        return []
    found, offset = [], 0
    for part in operator.inputs:
        found.append(Alias(part, whole, offset))
        offset += tensor_bytes(graph.tensors[part])
    return found


def placement_groups(model: schema.ModelT) -> list[list[tuple[int, int]]]:
    """Tensors that are placed together, each at a fixed distance from the others.

    Returns:
        lists of (tensor, offset); offsets of one group count from the same place, which need not be
        its lowest. Every tensor of the arena is in one group.
    """
    return _Groups(tensor_sizes(model), lifetimes(model)).joined(aliases(model))


class _Groups:
    """Joins tensors into groups, alias after alias, where no tensor would overwrite another.

    `members` and `place` are the group of each tensor and its offset there. `origin` says of which
    tensor's bytes, from which offset on, it is a slice; of its own, if it is none.
    """

    def __init__(self, sizes, lives):
        self.sizes, self.lives = sizes, lives
        self.members = {index: [index] for index in sizes}
        self.place = dict.fromkeys(sizes, 0)
        self.origin = {index: (index, 0) for index in sizes}
        self.inside = set()  # (whole, part, offset) of the aliases that were accepted

    def joined(self, found):
        found = [alias for alias in found if alias.part in self.sizes and alias.whole in self.sizes]
        # a piece cut out of one tensor and joined to another had better lie in the joined one
        found.sort(key=self._is_cut)
        for alias in found:
            if alias.offset % ALIGNMENT == 0:
                self._join(alias)
        groups = {id(members): members for members in self.members.values()}
        return [[(index, self.place[index]) for index in members] for members in groups.values()]

    def _is_cut(self, alias):
        """Whether the part is a slice of the whole, not a piece of which the whole is made."""
        return self.lives[alias.part] > self.lives[alias.whole]

    def _join(self, alias):
        part, whole = alias.part, alias.whole
        moved, others = self.members[part], self.members[whole]
        if moved is others:
            return
        link = (whole, part, alias.offset)
        old_origin = self.origin[part]
        self.inside.add(link)
        if self.lives[part][0] > self.lives[whole][0]:
            source, start = self.origin[whole]
            self.origin[part] = (source, start + alias.offset)
        shift = self.place[whole] + alias.offset - self.place[part]
        if not all(self._agree(a, b, shift) for b in moved for a in others):
            self.origin[part] = old_origin
            self.inside.discard(link)
            return
        for index in moved:
            self.place[index] += shift
            self.members[index] = others
        others += moved

    def _agree(self, a, b, shift):
        """Whether tensor b, moved by `shift` bytes, can lie where it comes to lie relative to a."""
        distance = self.place[b] + shift - self.place[a]
        (first, last), (start, stop) = self.lives[a], self.lives[b]
        if first > stop or start > last:  # never alive together
            return True
        if distance >= self.sizes[a] or -distance >= self.sizes[b]:  # beside each other
            return True
        (source, at), (other_source, other_at) = self.origin[a], self.origin[b]
        if source == other_source and other_at - at == distance:  # the same bytes
            return True
        return (a, b, distance) in self.inside or (b, a, -distance) in self.inside


# === Profile ===


@dataclass(frozen=True)
class MemoryProfile:
    """Memory of a model over its operators, in bytes.

    Attributes:
        live: bytes that must be kept at each operator; a part inside its whole counts once.
        names: kind of each operator.
        lifetimes: {tensor: (first, last operator)}, -1 for "before the first".
        sizes: {tensor: bytes}.
        offsets: {tensor: offset in the arena} where the file has a plan, else None.
    """

    live: list[int]
    names: list[str]
    lifetimes: dict[int, tuple[int, int]]
    sizes: dict[int, int]
    offsets: dict[int, int] | None

    @property
    def peak(self) -> int:
        """Most bytes alive at once: no plan can do with less."""
        return max(self.live)

    @property
    def peak_operator(self) -> int:
        """The first operator at which the most bytes are alive."""
        return self.live.index(self.peak)

    @property
    def planned(self) -> int | None:
        """Bytes of the arena that the plan in the file takes, without persistent allocations."""
        if not self.offsets:
            return None
        return max(self.offsets[index] + self.sizes[index] for index in self.offsets)


def memory_profile(model: schema.ModelT, runtime: Runtime = HOST) -> MemoryProfile:
    """What a model keeps in memory at each operator, and where if the file has a plan.

    Args:
        model: `ModelT` as `read_tflite` gives it, with one subgraph and fixed shapes.
        runtime: whose scratch memory counts as alive while its operator runs.

    Raises:
        TFLiteError: the model has several subgraphs or a tensor without a fixed size.
    """
    operators = single_subgraph(model).operators
    sizes, lives = tensor_sizes(model), lifetimes(model)
    live = np.zeros(len(operators) + 1, np.int64)  # entry 0 is the time before the first operator
    for group in placement_groups(model):
        first = min(lives[index][0] for index, _ in group)
        last = max(lives[index][1] for index, _ in group)
        for step in range(first, last + 1):
            live[step + 1] += _covered_bytes(
                (offset, offset + sizes[index])
                for index, offset in group
                if lives[index][0] <= step <= lives[index][1]
            )
    live[1] = max(live[0], live[1])
    for number, operator in enumerate(operators):
        live[number + 1] += runtime.scratch_bytes(model, operator)
    names = [operator_name(model, operator) for operator in operators]
    return MemoryProfile(live[1:].tolist(), names, lives, sizes, _planned_offsets(model, sizes))


def _covered_bytes(pieces):
    """Bytes that pieces (start, stop) cover together."""
    covered, end = 0, -math.inf
    for start, stop in sorted(pieces):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered


def _planned_offsets(model, sizes):
    for entry in model.metadata:
        data = model.buffers[entry.buffer].data
        if entry.name != PLAN or data is None or len(data) % 4 != 0:
            continue
        offsets = np.frombuffer(bytes(data), "<i4")[PLAN_HEADER:].tolist()
        if len(offsets) == len(model.subgraphs[0].tensors):
            return {index: offsets[index] for index in sizes if offsets[index] >= 0}
    return None


# === What TFLM keeps beside the tensors ===

# Fitted to what `RecordingMicroAllocator` prints on a 64-bit machine, to about 2 %, and to what
# TFLM took on a Cortex-M7.
PERSISTENT_BASE = 720
PERSISTENT_OPERATOR = {8: 64, 4: 32}
"""For each operator, by the bytes of a pointer."""
PERSISTENT_TENSOR = {8: 24, 4: 12}
PERSISTENT_CHANNEL = 8
"""A multiplier and a shift for each output channel of a convolution."""
PERSISTENT_KERNELS = {
    "CONV_2D": 118,
    "DEPTHWISE_CONV_2D": 107,
    "MUL": 56,
    "ADD": 72,
    "RESIZE_BILINEAR": 16,
    "RELU": 24,
    "LOGISTIC": 16,
    "SLICE": 16,
    "RESHAPE": 24,
    "SPACE_TO_BATCH_ND": 32,
    "BATCH_TO_SPACE_ND": 16,
}
"""What each kind of kernel keeps, with pointers of 8 bytes."""
PERSISTENT_OTHER_KERNEL = 88
SHORT_POINTERS_SAVE = {8: 0, 4: 20}
"""By how much less that is, in the mean of all kernels."""


def persistent_bytes(model: schema.ModelT, runtime: Runtime = HOST) -> int:
    """Bytes of TFLM's persistent allocations in the arena, estimated to about 2 %."""
    graph = single_subgraph(model)
    other_tensors = len(graph.tensors) - len(graph.operators)
    own = sum(operator_persistent_bytes(model, operator, runtime) for operator in graph.operators)
    return PERSISTENT_BASE + PERSISTENT_TENSOR[runtime.pointer_bytes] * other_tensors + own


def operator_persistent_bytes(
    model: schema.ModelT, operator: schema.OperatorT, runtime: Runtime = HOST
) -> int:
    """Bytes of the persistent allocations of an operator and its output tensor."""
    name, pointer = operator_name(model, operator), runtime.pointer_bytes
    size = PERSISTENT_OPERATOR[pointer] + PERSISTENT_TENSOR[pointer]
    kept = PERSISTENT_KERNELS.get(name, PERSISTENT_OTHER_KERNEL)
    size += max(0, kept - SHORT_POINTERS_SAVE[pointer])
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        size += PERSISTENT_CHANNEL * model.subgraphs[0].tensors[operator.outputs[0]].shape[-1]
    return size
