"""Plans where each tensor lies in the arena, so that TFLM need not: it leaves gaps.

A tensor is a rectangle, as wide as its lifetime and as high as its size. Rectangles must not
overlap, and the highest one ends the arena:

    bytes
      |      +-----+
      |      |  c  |           tensors that are placed together (`memory.placement_groups`)
      | +----+-----+--+        are several rectangles that move as one
      | | a  |   b    |
      +-+----+--------+----> operators
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import (
    HOST,
    PLAN,
    MemoryProfile,
    Runtime,
    memory_profile,
    placement_groups,
    single_subgraph,
)
from ddunet_keras.litert.model import set_metadata

ROUNDS = 1200
"""Placements that are tried: a second or two for some hundred operators."""
SMALL = 1 / 256
"""Groups below this share of the most bytes alive take no part in the search: they fit anywhere."""
PLAN_VERSION = 1
NO_OFFSET = -1
"""What the plan says of constants."""


@dataclass(frozen=True)
class _Group:
    """Tensors that are placed together, or the scratch memory of an operator.

    Attributes:
        members: (tensor, offset in the group), the lowest at 0; none for scratch memory.
        rects: a row (start, stop, first operator, last operator) for each member.
        height: bytes from the lowest start to the highest stop.
        span: operators over which any member lives.
    """

    members: list[tuple[int, int]]
    rects: np.ndarray
    height: int
    span: int


@dataclass(frozen=True)
class _Placement:
    """Groups that were placed in this order: {group: start}, and the bytes they take."""

    total: int
    starts: dict[int, int]
    order: list[int]


def plan(
    model: schema.ModelT, enough: int = 0, rounds: int = ROUNDS, runtime: Runtime = HOST
) -> int:
    """Gives each tensor its place in the arena and writes it into the model, in place.

    Groups of tensors are placed one by one at the lowest free place, in three orders: by height, by
    lifetime, and by both. Then one that lives together with the topmost is placed earlier or later,
    over and over, as long as that helps. The search is seeded: a model has one plan.

    Args:
        enough: bytes with which the search is content; the most bytes alive always end it.
        rounds: placements that are tried.
        runtime: whose scratch memory finds room between the tensors. It has no place in the plan:
            TFLM puts it into the lowest gap.

    Returns:
        bytes of the arena that tensors and scratch memory take.

    Raises:
        TFLiteError: the model has several subgraphs or a tensor without a fixed size.
    """
    profile = memory_profile(model, runtime)
    groups = [_group(members, profile) for members in placement_groups(model)]
    groups += _scratch_groups(model, runtime)
    numbers = range(len(groups))
    large = [g for g in numbers if groups[g].height >= profile.peak * SMALL]
    small = [g for g in numbers if groups[g].height < profile.peak * SMALL]
    found = _search(groups, large, max(enough, profile.peak), rounds)
    found = _place(groups, found.order + small)
    _write_plan(model, groups, found.starts)
    return found.total


def _scratch_groups(model: schema.ModelT, runtime: Runtime) -> list[_Group]:
    groups = []
    for number, operator in enumerate(single_subgraph(model).operators):
        size = runtime.scratch_bytes(model, operator)
        if size:
            groups.append(_Group([], np.array([(0, size, number, number)]), size, span=1))
    return groups


def _group(members: list[tuple[int, int]], profile: MemoryProfile) -> _Group:
    low = min(offset for _, offset in members)
    members = [(index, offset - low) for index, offset in members]
    rects = np.array(
        [
            (offset, offset + profile.sizes[index], *profile.lifetimes[index])
            for index, offset in members
        ]
    )
    height = rects[:, 1].max()
    span = rects[:, 3].max() - rects[:, 2].min() + 1
    return _Group(members, rects, height, span)


def _place(groups, order):
    """Puts each group at the lowest free place."""
    placed = np.empty((0, 4), np.int64)
    starts = {}
    for g in order:
        rects = groups[g].rects
        starts[g] = _lowest_start(rects, placed)
        placed = np.concatenate([placed, rects + [starts[g], starts[g], 0, 0]])
    return _Placement(int(placed[:, 1].max(initial=0)), starts, order)


def _search(groups, numbers, enough, rounds):
    """The best placement of these groups that is found."""
    keys = [
        lambda g: -groups[g].height,
        lambda g: -groups[g].span,
        lambda g: -groups[g].height * groups[g].span ** 0.5,
    ]
    random = np.random.default_rng(0)
    firsts = [_place(groups, sorted(numbers, key=key)) for key in keys]
    best = min(firsts, key=lambda placement: placement.total)
    starting_points = firsts + firsts  # each is improved twice, by other random moves
    for found in starting_points:
        for _ in range(rounds // len(starting_points)):
            if best.total <= enough:
                return best
            changed = _place(groups, _moved(groups, found, random))
            if changed.total <= found.total:
                found = changed
            if found.total <= best.total:
                best = found
    return best


def _moved(groups, placement, random):
    """The order with one group moved before or behind another; both live with the topmost one."""
    order = placement.order
    topmost = max(order, key=lambda g: placement.starts[g] + groups[g].height)
    near = [g for g in order if _live_together(groups[topmost].rects, groups[g].rects).any()]
    if len(near) == 1:  # the topmost alone, at the bottom of the arena
        return [*near, *(g for g in order if g not in near)]
    moved, other = random.choice(near, 2, replace=False)
    rest = [g for g in order if g != moved]
    rest.insert(rest.index(other) + random.integers(2), moved)
    return rest


def _live_together(some, others):
    """Which rectangles (start, stop, first, last) live at the same time: (some, others)."""
    return (some[:, None, 2] <= others[None, :, 3]) & (others[None, :, 2] <= some[:, None, 3])


def _lowest_start(rects, placed):
    """The lowest start at which rectangles overlap none of the placed ones."""
    mine, other = np.nonzero(_live_together(rects, placed))
    # a start between `low` and `high` would overlap
    low = placed[other, 0] - rects[mine, 1]
    high = placed[other, 1] - rects[mine, 0]
    order = np.argsort(low, kind="stable")
    start = 0
    for begin, end in zip(low[order].tolist(), high[order].tolist(), strict=True):
        if begin >= start:
            break
        start = max(start, end)
    return start


def _write_plan(model, groups, starts):
    offsets = np.full(len(single_subgraph(model).tensors), NO_OFFSET, "<i4")
    for g, start in starts.items():
        for index, offset in groups[g].members:
            offsets[index] = start + offset
    subgraph = 0
    header = np.array([PLAN_VERSION, subgraph, len(offsets)], "<i4")
    set_metadata(model, PLAN, header.tobytes() + offsets.tobytes())
