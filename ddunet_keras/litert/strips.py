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
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import Runtime, operator_persistent_bytes
from ddunet_keras.litert.model import (
    add_constant,
    add_operator,
    add_tensor,
    operator_name,
    tensor_bytes,
)
from ddunet_keras.litert.regions import Region, Strip, divide, find_region, row_bytes
from ddunet_keras.litert.rows import row_dependency

MAX_REGION = 64
"""Most operators of which a region is made."""
STRIP_COUNTS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Numbers of strips that are tried."""
WORK_OF_A_BYTE = 4
"""Work, in multiplications, for each value that an operator writes or copies."""
PERSISTENT_OF_A_PIECE = 120
"""Bytes of TFLM's persistent allocations for each piece that is cut out of an input or joined to an
output."""


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


def _peak(model, region, strips, runtime):
    """Most bytes alive while the strips run."""
    graph = model.subgraphs[0]
    sizes = {index: row_bytes(graph, index) for index in region.scales}
    highest = max(strips, key=lambda strip: strip.high - strip.low)
    around = max(_bytes_around(region, sizes, strip) for strip in strips)
    return region.held + around + _peak_within(model, region, sizes, highest, runtime)


def _bytes_around(region, sizes, strip):
    """Bytes of the inputs that this strip or a later one reads, and of the outputs so far."""
    total = 0
    for index in region.inputs:
        already_read = 0 if index in region.read_later else strip.low
        total += sizes[index] * int((region.height - already_read) * region.scales[index])
    for index in region.outputs:
        total += sizes[index] * int(strip.first * region.scales[index])
    return total


def _peak_within(model, region, sizes, strip, runtime):
    """Most bytes of what one strip computes itself; `sizes` are bytes of a row."""
    graph = model.subgraphs[0]
    last_consumer = {i: n for n in region.members for i in graph.operators[n].inputs}

    def computed_bytes(index):
        if index in region.outputs and not strip.has_halo:
            return 0  # it is the part of the output itself
        return sizes[index] * region.computed_rows(index, strip)

    live = peak = 0
    for number in region.members:
        operator = graph.operators[number]
        target = operator.outputs[0]
        live += computed_bytes(target)
        if target in region.outputs:
            live += sizes[target] * region.given_rows(target, strip)
        peak = max(peak, live + _scratch(model, region, operator, strip, runtime))
        for index in {target, *operator.inputs}:
            is_own = index in sizes and index not in region.inputs
            if is_own and last_consumer.get(index, number) == number:
                live -= computed_bytes(index)
    return peak


def _scratch(model, region, operator, strip, runtime):
    """Bytes of scratch memory of an operator in a strip."""
    source, target = operator.inputs[0], operator.outputs[0]
    if source not in region.scales:
        return runtime.scratch_bytes(model, operator)
    rows = region.computed_rows(source, strip), region.computed_rows(target, strip)
    return runtime.scratch_bytes(model, operator, rows)


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
    runtime: Runtime,
) -> list[Candidate]:
    """All ways to run a part of a model in strips.

    Args:
        model: `ModelT` with one subgraph.
        starts: positions in the list of operators at which a part may begin.
        stops: positions at which it may end.
        is_hot: for each operator, whether too much is alive there; a part without one is of no use.
        runtime: the TFLM whose persistent allocations and scratch memory count.
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
            region = find_region(graph, start, stop, dependencies)
            if region is None:
                break  # whatever is longer has the same operator in its way
            found += _candidates_of_region(model, start, stop, region, runtime)
    return found


def _candidates_of_region(model, start, stop, region, runtime):
    """A region in rising numbers of strips, where more of them take less memory."""
    graph = model.subgraphs[0]
    operators = [graph.operators[number] for number in region.members]
    region_work = sum(_work(model, operator) for operator in operators)
    persistent = sum(operator_persistent_bytes(model, op, runtime) for op in operators)
    input_bytes = sum(tensor_bytes(graph.tensors[index]) for index in region.inputs)
    output_bytes = sum(tensor_bytes(graph.tensors[index]) for index in region.outputs)
    # an input is cut once; what an output consists of is cut and joined
    copying = WORK_OF_A_BYTE * (input_bytes + 2 * output_bytes)
    pieces = len(region.inputs) + len(region.outputs)
    found, least = [], math.inf
    for count in STRIP_COUNTS:
        strips = divide(graph, region, count)
        if not strips:
            break
        peak = _peak(model, region, strips, runtime)
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
