"""How many bytes of arena TFLM takes for a file: its memory planner, followed step by step.

What the planner does (`GreedyMemoryPlanner` of TFLM): tensors that have a place in the file's plan
are put there. All else, the kernels' scratch memory too, is taken by size, the largest first, and
put into the lowest gap between what is alive at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import HOST, Runtime, memory_profile, persistent_bytes


@dataclass(frozen=True)
class ArenaSize:
    """Bytes of an arena.

    Attributes:
        head: feature maps and scratch memory.
        tail: persistent allocations, estimated to about 2 %.
        scratch: the most scratch memory of an operator.
        scratch_operator: which one that is, None where none has any.
    """

    head: int
    tail: int
    scratch: int
    scratch_operator: int | None

    @property
    def total(self) -> int:
        return self.head + self.tail


@dataclass(frozen=True)
class _Buffer:
    """Bytes that are alive from one operator to another, and where they are, if that is fixed."""

    size: int
    first: int
    last: int
    offset: int | None = None


def arena_size(model: schema.ModelT, runtime: Runtime = HOST) -> ArenaSize:
    """The arena that TFLM takes for a model.

    Raises:
        TFLiteError: the model has several subgraphs or a tensor without a fixed size.

    Example:

    >>> from ddunet_keras.litert.model import read_tflite
    >>> from ddunet_keras.presets import preset_file
    >>> model = read_tflite(preset_file("ddunet_c8", "tflite"))
    >>> arena_size(model).total > 4 * 2**20  # a file for CPUs
    True
    """
    profile = memory_profile(model)
    offsets = profile.offsets or {}
    buffers = [
        _Buffer(profile.sizes[index], max(first, 0), last, offsets.get(index))
        for index, (first, last) in sorted(profile.lifetimes.items())
    ]
    operators = model.subgraphs[0].operators
    scratch = [runtime.scratch_bytes(model, operator) for operator in operators]
    buffers += [_Buffer(size, n, n) for n, size in enumerate(scratch) if size]
    most = max(scratch, default=0)
    return ArenaSize(
        head=_planned_end(buffers),
        tail=persistent_bytes(model, runtime),
        scratch=most,
        scratch_operator=scratch.index(most) if most else None,
    )


def _planned_end(buffers):
    """Where the last byte ends when all buffers have their places."""
    placed = [(buffer.offset, buffer) for buffer in buffers if buffer.offset is not None]
    free = [buffer for buffer in reversed(buffers) if buffer.offset is None]
    for buffer in sorted(free, key=lambda buffer: -buffer.size):
        placed.append((_lowest_gap(placed, buffer), buffer))
    return max((offset + buffer.size for offset, buffer in placed), default=0)


def _lowest_gap(placed, wanted):
    """The lowest offset at which nothing is that lives together with a buffer."""
    near = [
        (offset, offset + buffer.size)
        for offset, buffer in placed
        if buffer.first <= wanted.last and wanted.first <= buffer.last
    ]
    candidate = 0
    for start, end in sorted(near):
        if start - candidate >= wanted.size:
            break
        candidate = max(candidate, end)
    return candidate
