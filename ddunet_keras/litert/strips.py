"""Computes the largest stages of an int8 model in horizontal strips, without changing one bit.

A region of operators that look at few rows at a time is run once for each strip of its output's
rows. A strip reads its rows of the region's inputs and a halo, as wide as the region looks. What it
computes near its cut edges is wrong, and is cut off at the end:

    rows        0 1 2 3 4 5 6 7
    strip 0     o o o o + +            o rows of the output that the strip gives
    strip 1         + + o o o o        + halo, computed too and cut off

    the region                      in two strips
    input, 8 rows                   input, 8 rows
      |                               |                          |
      |                             SLICE of rows 0 to 6       SLICE of rows 2 to 8
    CONV_2D 3x3                     CONV_2D 3x3                CONV_2D 3x3
    CONV_2D 3x3                     CONV_2D 3x3                CONV_2D 3x3
      |                             SLICE of o                 SLICE of o
      |                               |                          |
    output, 8 rows                  CONCATENATION, 8 rows ------ +

So every operator stays as it is, padding and all, and only becomes lower. After "patch-based
inference" (Lin et al., MCUNetV2, NeurIPS 2021, arXiv:2110.15352), here in one dimension, in which
the rows of a feature map of batch 1 lie together: the slices and the joined parts then take no
memory of their own (`ddunet_keras.litert.memory.aliases`).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import ALIGNMENT
from ddunet_keras.litert.model import (
    add_constant,
    add_operator,
    add_tensor,
    operator_name,
    tensor_bytes,
)
from ddunet_keras.litert.rows import RowDependency, row_dependency

MAX_REGION = 64
"""Most operators of which a region is made."""
STRIP_COUNTS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Numbers of strips that are tried."""
WORK_OF_A_BYTE = 4
"""Work, in multiplications, for each value that an operator writes or copies."""
PERSISTENT_OF_A_PIECE = 120
"""Bytes of TFLM's persistent allocations for each piece that is cut out of an input or joined to an
output."""


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


# === Regions ===


def _find_region(graph, start, stop, dependencies):
    """The region of the operators `start` to `stop` that can run in strips.

    None where it is cut in two by an operator that cannot, or where rows do not fit.
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
        own = dependencies[number].ratio * scales[operators[number].outputs[0]]
        if any(scales[index] != own for index in dependencies[number].inputs):
            return None

    there = set(graph.inputs)
    for number in [*range(start), *before]:
        there.update(operators[number].outputs)
    held = (there & (read_later | read)).difference(inputs)
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
        rows = ALIGNMENT // math.gcd(ALIGNMENT, _row_bytes(graph, index))
        grain = math.lcm(grain, (rows / scales[index]).numerator)
    return grain


def _row_bytes(graph, index):
    return tensor_bytes(graph.tensors[index]) // graph.tensors[index].shape[1]


def _divide(graph, region, count):
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


# === What strips cost ===


def _work(model, operator):
    """Multiplications of an operator, or four for each value that it writes or copies."""
    graph = model.subgraphs[0]
    count = math.prod(graph.tensors[operator.outputs[0]].shape)
    name = operator_name(model, operator)
    if name == "CONV_2D":
        return count * math.prod(graph.tensors[operator.inputs[1]].shape[1:])
    if name == "DEPTHWISE_CONV_2D":
        return count * math.prod(graph.tensors[operator.inputs[1]].shape[1:3])
    return WORK_OF_A_BYTE * count


def _peak(graph, region, strips):
    """Most bytes alive while the strips run."""
    row_bytes = {index: _row_bytes(graph, index) for index in region.scales}
    highest = max(strips, key=lambda strip: strip.high - strip.low)
    around = max(_bytes_around(region, row_bytes, strip) for strip in strips)
    return region.held + around + _peak_within(graph, region, row_bytes, highest)


def _bytes_around(region, row_bytes, strip):
    """Bytes of the inputs that this strip or a later one reads, and of the outputs so far."""
    total = 0
    for index in region.inputs:
        already_read = 0 if index in region.read_later else strip.low
        total += row_bytes[index] * int((region.height - already_read) * region.scales[index])
    for index in region.outputs:
        total += row_bytes[index] * int(strip.first * region.scales[index])
    return total


def _peak_within(graph, region, row_bytes, strip):
    """Most bytes of what one strip computes itself."""
    last_consumer = {i: n for n in region.members for i in graph.operators[n].inputs}

    def computed_bytes(index):
        if index in region.outputs and not strip.has_halo:
            return 0  # it is the part of the output itself
        return row_bytes[index] * region.computed_rows(index, strip)

    live = peak = 0
    for number in region.members:
        operator = graph.operators[number]
        target = operator.outputs[0]
        live += computed_bytes(target)
        if target in region.outputs:
            live += row_bytes[target] * region.given_rows(target, strip)
        peak = max(peak, live)
        for index in {target, *operator.inputs}:
            is_own = index in row_bytes and index not in region.inputs
            if is_own and last_consumer.get(index, number) == number:
                live -= computed_bytes(index)
    return peak


@dataclass(frozen=True)
class Candidate:
    """Operators `start` to `stop` run in strips, and what that would cost.

    Attributes:
        strips: rows of each strip.
        peak: bytes alive at the worst moment.
        extra_work: added work, in multiplications.
        persistent: bytes of TFLM's persistent allocations for the added operators.
        region: which operators and tensors take part.
    """

    start: int
    stop: int
    strips: list[Strip]
    peak: int
    extra_work: int
    persistent: int
    region: Region


def candidates(
    model: schema.ModelT,
    starts: Iterable[int],
    stops: Sequence[int],
    is_hot: Sequence[bool],
    persistent_bytes: Callable[[schema.OperatorT], int],
) -> list[Candidate]:
    """All ways to run a part of a model in strips.

    Args:
        model: `ModelT` with one subgraph.
        starts: positions in the list of operators at which a part may begin.
        stops: positions at which it may end.
        is_hot: for each operator, whether too much is alive there; a part without one is of no use.
        persistent_bytes: gives the bytes of an operator's persistent allocations.
    """
    graph = model.subgraphs[0]
    dependencies = [row_dependency(model, operator) for operator in graph.operators]
    found = []
    for start in starts:
        for stop in stops:
            if not start < stop <= start + MAX_REGION:
                continue
            if not any(is_hot[start:stop]) or not any(dependencies[start:stop]):
                continue
            region = _find_region(graph, start, stop, dependencies)
            if region is None:
                break  # whatever is longer has the same operator in its way
            found += _candidates_of_region(model, start, stop, region, persistent_bytes)
    return found


def _candidates_of_region(model, start, stop, region, persistent_bytes):
    """A region in rising numbers of strips, where more of them take less memory."""
    graph = model.subgraphs[0]
    operators = [graph.operators[number] for number in region.members]
    region_work = sum(_work(model, operator) for operator in operators)
    persistent = sum(persistent_bytes(operator) for operator in operators)
    input_bytes = sum(tensor_bytes(graph.tensors[index]) for index in region.inputs)
    output_bytes = sum(tensor_bytes(graph.tensors[index]) for index in region.outputs)
    # an input is cut once; what an output consists of is cut and joined
    copying = WORK_OF_A_BYTE * (input_bytes + 2 * output_bytes)
    pieces = len(region.inputs) + len(region.outputs)
    found, least = [], math.inf
    for count in STRIP_COUNTS:
        strips = _divide(graph, region, count)
        if not strips:
            break
        peak = _peak(graph, region, strips)
        if peak < least:
            rows = sum(strip.high - strip.low for strip in strips) / region.height
            extra_work = int(region_work * (rows - 1) + copying * rows)
            added = persistent * (count - 1) + PERSISTENT_OF_A_PIECE * pieces * count
            found.append(Candidate(start, stop, strips, peak, extra_work, added, region))
            least = peak
    return found


def select(
    live: Sequence[int], found: Iterable[Candidate], limit: float, weight: float = 0
) -> list[Candidate] | None:
    """The candidates, none touching another, that add the least work and keep all below a limit.

    The best choice for the first operators is built from that for fewer of them:

        operators         0 1 2 3 4 5 6 7
        best up to 8      = best up to 7, where operator 7 itself is below the limit
                          | best up to 5, and a candidate 5 to 8
                          | best up to 2, and a candidate 2 to 8 ...

    Args:
        live: bytes alive at each operator without strips.
        found: what `candidates` gave.
        limit: bytes that may be alive.
        weight: work that counts as much as a byte of persistent allocations.

    Returns:
        the choice, in order; None where there is none.
    """
    ending_at: dict[int, list[Candidate]] = {}
    for candidate in found:
        ending_at.setdefault(candidate.stop, []).append(candidate)
    costs: list[float] = [0]  # of the first operators, up to each position
    last: list[Candidate | None] = [None]  # the candidate that ends there, in the best choice
    for stop in range(1, len(live) + 1):
        is_low = live[stop - 1] <= limit
        cost, best = (costs[-1] if is_low else math.inf), None
        for candidate in ending_at.get(stop, []):
            if candidate.peak > limit:
                continue
            with_candidate = candidate.extra_work + weight * candidate.persistent
            with_candidate += costs[candidate.start]
            if with_candidate < cost:
                cost, best = with_candidate, candidate
        costs.append(cost)
        last.append(best)
    if costs[-1] == math.inf:
        return None
    chosen, position = [], len(live)
    while position > 0:
        ends_here = last[position]
        if ends_here is None:
            position -= 1
        else:
            chosen.append(ends_here)
            position = ends_here.start
    return chosen[::-1]


# === Rewriting ===


def apply(model: schema.ModelT, chosen: Iterable[Candidate]) -> None:
    """Rewrites a model so that the chosen parts run in strips, in place."""
    graph = model.subgraphs[0]
    operators = graph.operators
    rewritten, position = [], 0
    for candidate in chosen:
        region = candidate.region
        rewritten += operators[position : candidate.start]
        rewritten += [operators[number] for number in region.before]
        rewritten += _run_in_strips(model, graph, region, candidate.strips)
        rewritten += [operators[number] for number in region.after]
        position = candidate.stop
    graph.operators = rewritten + operators[position:]


def _run_in_strips(model, graph, region, strips):
    """The operators of all strips, slices of the inputs first and concatenations last."""
    slices, body = [], []
    pieces = {index: [] for index in region.outputs}
    for strip in strips:
        own = {}  # tensors of this strip, by those of the region
        for index in region.inputs:
            first = int(strip.low * region.scales[index])
            rows = region.computed_rows(index, strip)
            slices.append(_slice_of_rows(model, graph, index, index, first, rows))
            own[index] = slices[-1].outputs[0]
        for number in region.members:
            operator = copy.copy(graph.operators[number])
            target = operator.outputs[0]
            own[target] = _with_rows(graph, target, region.computed_rows(target, strip))
            operator.inputs = [own.get(index, index) for index in operator.inputs]
            operator.outputs = [own[target]]
            if operator_name(model, operator).startswith("RESIZE"):
                size = graph.tensors[own[target]].shape[1:3]
                operator.inputs = [operator.inputs[0], _integers(model, graph, size)]
            body.append(operator)
            if target not in region.outputs:
                continue
            if strip.has_halo:
                first = int((strip.first - strip.low) * region.scales[target])
                rows = region.given_rows(target, strip)
                body.append(_slice_of_rows(model, graph, own[target], target, first, rows))
            pieces[target].append(body[-1].outputs[0])
    joined = [
        add_operator(model, "CONCATENATION", pieces[i], [i], schema.ConcatenationOptionsT(1, 0))
        for i in region.outputs
    ]
    return slices + body + joined


def _slice_of_rows(model, graph, source, like, first, rows):
    """A SLICE of `source`, whose shape is that of tensor `like` but for the rows."""
    _, _, *rest = graph.tensors[like].shape
    begin = _integers(model, graph, [0, first, 0, 0])
    size = _integers(model, graph, [1, rows, *rest])
    target = _with_rows(graph, like, rows)
    return add_operator(model, "SLICE", [source, begin, size], [target], schema.SliceOptionsT())


def _with_rows(graph, like, rows):
    """A new tensor like another one, with so many rows."""
    batch, _, *rest = graph.tensors[like].shape
    return add_tensor(graph, like, [batch, rows, *rest])


def _integers(model, graph, values):
    return add_constant(model, graph, np.asarray(values, np.int32))
