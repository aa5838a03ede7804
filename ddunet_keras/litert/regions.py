"""Regions of a model that can run in strips, and how these are cut.

A region is made of operators that look at few rows at a time (`ddunet_keras.litert.rows`). Others
may stand between them in the list of operators, and run before or after all strips:

    as listed                                  as run
    0 CONV_2D                  member          2            before: needs no member's result
    1 MEAN of the result of 0  after           0, 3, 4      in strips
    2 MEAN of the input        before          1            after: needs a whole result
    3 ADD of 2                 member
    4 CONV_2D                  member

Strips overlap by what the region looks at beyond its own rows, the halo.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import ALIGNMENT
from ddunet_keras.litert.model import tensor_bytes
from ddunet_keras.litert.rows import RowDependency


@dataclass(frozen=True)
class Strip:
    """Rows of one strip: it computes `low` to `high`, and gives `first` to `end` of them."""

    first: int
    end: int
    low: int
    high: int

    @property
    def has_halo(self) -> bool:
        return (self.first, self.end) != (self.low, self.high)


@dataclass(frozen=True)
class Region:
    """Operators that can run in strips, and the tensors that enter and leave.

    Feature maps of different heights take part. Strips are counted in rows of the highest one.

    Attributes:
        before: operators that run before the strips.
        members: operators that run in strips.
        after: operators that run after the strips.
        inputs: tensors of which a strip gets rows.
        outputs: tensors to which a strip gives rows.
        held: bytes that live meanwhile and are neither cut nor produced.
        read_later: tensors that are needed after the strips.
        scales: rows of each tensor for each counted row.
        padding: rows that PAD adds to a tensor above and below these.
        dependencies: for each member, which rows it reads.
        height: rows that are counted.
        grain: strips begin at multiples of so many rows, at which every tensor can be cut.
    """

    before: list[int]
    members: list[int]
    after: list[int]
    inputs: list[int]
    outputs: list[int]
    held: int
    read_later: set[int]
    scales: dict[int, Fraction]
    padding: dict[int, tuple[int, int]]
    dependencies: dict[int, RowDependency]
    height: int
    grain: int

    def computed_rows(self, index: int, strip: Strip) -> int:
        """Rows that a tensor has while a strip runs, with those that PAD adds."""
        return int((strip.high - strip.low) * self.scales[index]) + sum(self.padding[index])

    def given_rows(self, index: int, strip: Strip) -> int:
        """Rows of an output that a strip gives."""
        return int((strip.end - strip.first) * self.scales[index])


def find_region(
    graph: schema.SubGraphT,
    start: int,
    stop: int,
    dependencies: Sequence[RowDependency | None],
) -> Region | None:
    """The region of those operators from `start` to `stop` that can run in strips.

    Args:
        dependencies: for each operator of the graph, which rows it reads (`rows.row_dependency`).

    Returns:
        None where the region is cut in two by an operator that cannot, or where rows do not fit.
    """
    parts = _split(graph, start, stop, dependencies)
    if parts is None:
        return None
    before, members, after = parts
    operators = graph.operators
    produced = [operators[n].outputs[0] for n in members]
    read = {index for n in members for index in operators[n].inputs}
    read_later = set(graph.outputs)
    for number in [*after, *range(stop, len(operators))]:
        read_later.update(operators[number].inputs)
    inputs = [index for n in members for index in dependencies[n].inputs if index not in produced]
    inputs = list(dict.fromkeys(inputs))
    outputs = [index for index in produced if index in read_later or index not in read]

    padding = dict.fromkeys(inputs, (0, 0))
    padding |= {operators[n].outputs[0]: dependencies[n].padding for n in members}
    if any(padding[index] != (0, 0) for index in outputs):
        return None
    heights = {index: graph.tensors[index].shape[1] - sum(padding[index]) for index in padding}
    height = max(heights.values())
    scales = {index: Fraction(rows, height) for index, rows in heights.items()}
    for number in members:
        expected = dependencies[number].ratio * scales[operators[number].outputs[0]]
        if any(scales[index] != expected for index in dependencies[number].inputs):
            return None

    computed_before = set(graph.inputs)
    for number in [*range(start), *before]:
        computed_before.update(operators[number].outputs)
    held = (computed_before & (read_later | read)).difference(inputs)
    return Region(
        before=before,
        members=members,
        after=after,
        inputs=inputs,
        outputs=outputs,
        held=sum(tensor_bytes(graph.tensors[index]) for index in held),
        read_later=read_later,
        scales=scales,
        padding=padding,
        dependencies={n: dependencies[n] for n in members},
        height=height,
        grain=_grain(graph, scales, inputs + outputs),
    )


def _split(graph, start, stop, dependencies):
    """(before, members, after) of the operators `start` to `stop`.

    An operator that looks at all rows comes before the strips where it needs none of their results,
    else after them. None where a member would need what comes after.
    """
    before, members, after = [], [], []
    in_strips, afterwards = set(), set()  # tensors
    for number in range(start, stop):
        operator = graph.operators[number]
        if dependencies[number] is not None:
            if afterwards.intersection(operator.inputs):
                return None
            members.append(number)
            in_strips.update(operator.outputs)
        elif (in_strips | afterwards).intersection(operator.inputs):
            after.append(number)
            afterwards.update(operator.outputs)
        else:
            before.append(number)
    return before, members, after


def _grain(graph, scales, cut):
    """The least number of counted rows at which every tensor has a row, and those that are cut or
    joined an offset at which the arena can place a part inside its whole."""
    grain = math.lcm(*(scale.denominator for scale in scales.values()))
    for index in cut:
        rows = ALIGNMENT // math.gcd(ALIGNMENT, row_bytes(graph, index))
        grain = math.lcm(grain, (rows / scales[index]).numerator)
    return grain


def row_bytes(graph: schema.SubGraphT, index: int) -> int:
    """Bytes of one row of a feature map."""
    return tensor_bytes(graph.tensors[index]) // graph.tensors[index].shape[1]


def divide(graph: schema.SubGraphT, region: Region, count: int) -> list[Strip]:
    """The strips of a region; none where it is too low for so many."""
    grains = region.height // region.grain
    if count > grains:
        return []
    cuts = [number * grains // count * region.grain for number in range(count)]
    found = []
    for first, end in itertools.pairwise([*cuts, region.height]):
        low, high = _needed_rows(graph, region, first, end)
        low = math.floor(low / region.grain) * region.grain
        high = min(math.ceil(high / region.grain) * region.grain, region.height)
        found.append(Strip(first, end, low, high))
    return found


def _needed_rows(graph, region, first, end):
    """Rows that must be computed so that rows `first` to `end` of all outputs are right."""
    needed = {i: (first * region.scales[i], end * region.scales[i]) for i in region.outputs}
    for number in reversed(region.members):
        dependency = region.dependencies[number]
        target = graph.operators[number].outputs[0]
        low, high = dependency.needed(*needed[target])
        for index in dependency.inputs:
            inside = max(low, 0), min(high, graph.tensors[index].shape[1])
            known = needed.get(index, inside)
            needed[index] = min(inside[0], known[0]), max(inside[1], known[1])
    # the output of a PAD counts its rows from the padding on; the input of that PAD says the same
    without_padding = [index for index in needed if region.padding[index] == (0, 0)]
    lowest = min(needed[index][0] / region.scales[index] for index in without_padding)
    highest = max(needed[index][1] / region.scales[index] for index in without_padding)
    return lowest, highest
