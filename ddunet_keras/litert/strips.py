"""Computes the largest stages of an int8 `.tflite` in horizontal strips, without changing one bit.

A region of operators that look at few rows at a time is run once for each strip of its output's
rows. A strip reads its rows of the region's inputs and a halo, as wide as the region looks; what it
computes near its cut edges is wrong, and cut off at the end. So every operator stays as it is,
padding and all, and only becomes lower; SLICE and CONCATENATION do the rest. After "patch-based
inference" (Lin et al., MCUNetV2, NeurIPS 2021, arXiv:2110.15352), here in one dimension, in which
the rows of a map of batch 1 lie together: the slices and the joined parts then take no memory of
their own (see `ddunet_keras.litert.schedule.copies`).

Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import (
    add_constant,
    add_operator,
    add_tensor,
    constant,
    operator_name,
    tensor_bytes,
)

# fmt: off
ELEMENTWISE = frozenset((
    "ABS", "ADD", "CAST", "DEQUANTIZE", "DIV", "GREATER", "GREATER_EQUAL", "HARD_SWISH",
    "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "NEG", "QUANTIZE",
    "RELU", "RELU6", "RELU_N1_TO_1", "SOFTMAX", "SUB", "TANH",
))
# fmt: on
"""Operators whose output row depends on the same row of their inputs alone."""
MAX_REGION = 64
"""Most operators of which a region is made."""
STRIPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)


@dataclass(frozen=True)
class _Reach:
    """Which rows of its inputs an operator reads.

    Attributes:
        inputs: tensors that have rows, others are read whole.
        ratio: rows of an input for each row of the output.
        rows: (first, end) of the output -> (first, end) of the inputs, beyond the edges too.
        padding: rows that the operator adds (above, below): PAD alone.
    """

    inputs: list[int]
    ratio: Fraction
    rows: Callable
    padding: tuple[int, int] = (0, 0)


def _same_rows(first, end):
    return first, end


def _reach(model, graph, operator) -> _Reach | None:
    """None where an operator looks at all rows, or is none that strips know."""
    name = operator_name(model, operator)
    shapes = {i: graph.tensors[i].shape for i in operator.inputs + operator.outputs if i >= 0}
    out = shapes[operator.outputs[0]]
    if len(operator.outputs) != 1 or len(out) != 4 or out[0] != 1 or out[1] < 2:
        return None
    moving = [
        i for i in operator.inputs if i >= 0 and model.buffers[graph.tensors[i].buffer].data is None
    ]
    first = operator.inputs[0]
    if first not in moving or any(len(shapes[i]) == 4 and shapes[i][0] != 1 for i in moving):
        return None
    options = operator.builtinOptions
    if name in ELEMENTWISE or (name == "CONCATENATION" and options.axis % 4 == 3):
        cut = [i for i in moving if len(shapes[i]) == 4 and shapes[i][1] > 1]
        whole = [shapes[i] for i in operator.inputs if i not in cut]
        fits = all(shapes[i][1] == out[1] for i in cut)
        flat = all(math.prod(shape[:-2]) == 1 for shape in whole if len(shape) > 2)
        rows_free = all(len(shape) < 3 or shape[-3] == 1 for shape in whole)
        joins = name != "CONCATENATION" or len(cut) == len(operator.inputs)
        return (
            _Reach(cut, Fraction(1), _same_rows) if fits and flat and rows_free and joins else None
        )
    if moving != [first] or len(shapes[first]) != 4:
        return None
    rows = shapes[first][1]
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        stride = options.strideH
        size = (shapes[operator.inputs[1]][1] - 1) * options.dilationHFactor + 1
        above = 0
        if options.padding == schema.Padding.SAME:
            above = max((out[1] - 1) * stride + size - rows, 0) // 2
        return _Reach(
            [first],
            Fraction(stride),
            lambda a, b: (a * stride - above, (b - 1) * stride - above + size),
        )
    if name == "PAD":
        padding = constant(model, graph, operator.inputs[1])
        if padding is None or padding.shape != (4, 2) or padding[[0, 3]].any():
            return None
        above, below = (int(value) for value in padding[1])
        return _Reach([first], Fraction(1), lambda a, b: (a - above, b - above), (above, below))
    if name in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
        factor = out[1] // rows
        # in fixed point only powers of 2 are the same fraction at every row
        if options.alignCorners or factor * rows != out[1] or factor not in (1, 2, 4, 8):
            return None
        shift = Fraction(1, 2) if options.halfPixelCenters else Fraction(0)

        def below(row):
            return math.floor((row + shift) / factor - shift)

        return _Reach([first], Fraction(1, factor), lambda a, b: (below(a), below(b - 1) + 2))
    return None


@dataclass(frozen=True)
class _Region:
    """Operators `members` that are run in strips, once what is in `before` has run.

    `held`: bytes that live meanwhile and are neither cut nor made; `kept`: tensors read later.
    `scales`: rows of each tensor for each of the `height` rows in which strips are counted;
    `padding`: rows that a tensor has above and below these; strips begin at multiples of `grain`.
    """

    before: list[int]
    members: list[int]
    after: list[int]
    inputs: list[int]
    outputs: list[int]
    held: int
    kept: set[int]
    scales: dict[int, Fraction]
    padding: dict[int, tuple[int, int]]
    reaches: dict[int, _Reach]
    height: int
    grain: int

    def windows(self, graph, count):
        """[(first, end, window's first, window's end)] of each strip; none if it is too low."""
        steps = self.height // self.grain
        cuts = [k * steps // count * self.grain for k in range(count)] + [self.height]
        if count > steps:
            return []
        found = []
        for first, end in itertools.pairwise(cuts):
            needed = {i: (first * self.scales[i], end * self.scales[i]) for i in self.outputs}
            for number in reversed(self.members):
                reach = self.reaches[number]
                target = graph.operators[number].outputs[0]
                for index in reach.inputs:
                    low, high = reach.rows(*needed[target])
                    low, high = max(low, 0), min(high, graph.tensors[index].shape[1])
                    old = needed.get(index, (low, high))
                    needed[index] = (min(low, old[0]), max(high, old[1]))
            plain = [i for i in needed if self.padding[i] == (0, 0)]
            low = min(needed[i][0] / self.scales[i] for i in plain)
            high = max(needed[i][1] / self.scales[i] for i in plain)
            low = math.floor(low / self.grain) * self.grain
            high = min(math.ceil(high / self.grain) * self.grain, self.height)
            found.append((first, end, low, high))
        return found


def _region(model, graph, start, stop, reaches, kept):
    """The region of the row-wise operators among `start` .. `stop`, or None.

    None where an operator that is not row-wise lies between two that are, or rows do not fit.
    """
    members = [n for n in range(start, stop) if reaches[n] is not None]
    inside, later = set(), set()
    before, after = [], []
    for number in range(start, stop):
        operator = graph.operators[number]
        if reaches[number] is None:
            waits = (inside | later).intersection(operator.inputs)
            (after if waits else before).append(number)
            later.update(operator.outputs if waits else ())
        elif later.intersection(operator.inputs):
            return None
        else:
            inside.update(operator.outputs)
    rest = set(kept).union(
        *(graph.operators[n].inputs for n in [*after, *range(stop, len(graph.operators))])
    )
    read = {i for n in members for i in graph.operators[n].inputs}
    made = [i for n in members for i in graph.operators[n].outputs]
    outputs = [i for i in made if i in rest or i not in read]
    inputs = list(dict.fromkeys(i for n in members for i in reaches[n].inputs if i not in inside))
    padding = dict.fromkeys(inputs, (0, 0))
    for number in members:
        padding[graph.operators[number].outputs[0]] = reaches[number].padding
    known = set(graph.inputs).union(*(graph.operators[n].outputs for n in [*range(start), *before]))
    held = sum(tensor_bytes(graph.tensors[i]) for i in known & (rest | read) if i not in inputs)
    height = {i: graph.tensors[i].shape[1] - sum(padding[i]) for i in padding}
    base = max(height.values())
    scales = {i: Fraction(rows, base) for i, rows in height.items()}
    for number in members:
        target = graph.operators[number].outputs[0]
        if any(scales[i] != reaches[number].ratio * scales[target] for i in reaches[number].inputs):
            return None
    if any(padding[i] != (0, 0) for i in outputs):
        return None
    grain = math.lcm(*(scale.denominator for scale in scales.values()))
    for index in inputs + outputs:  # cut where the arena's alignment lets parts lie in their whole
        row = tensor_bytes(graph.tensors[index]) // graph.tensors[index].shape[1]
        grain = math.lcm(grain, (16 // math.gcd(16, row) / scales[index]).numerator)
    return _Region(
        before, members, after, inputs, outputs, held, rest, scales, padding, reaches, base, grain
    )


def _rows(region, index, low, high):
    """Rows that a tensor has in a window, with those that PAD adds."""
    return int((high - low) * region.scales[index]) + sum(region.padding[index])


def _peak(graph, region, windows):
    """Most bytes alive while the strips run: what is held, inputs not yet read, outputs so far, and
    what the highest strip needs for itself."""
    row = {i: tensor_bytes(graph.tensors[i]) // graph.tensors[i].shape[1] for i in region.scales}
    first, end, low, high = max(windows, key=lambda window: window[3] - window[2])
    direct = (first, end) == (low, high)
    last = {i: n for n in region.members for i in graph.operators[n].inputs}
    live = own = 0
    for number in region.members:
        operator = graph.operators[number]
        target = operator.outputs[0]
        made = target in region.outputs
        part = row[target] * int((end - first) * region.scales[target]) if made else 0
        size = 0 if made and direct else row[target] * _rows(region, target, low, high)
        own = max(own, live + size + part)
        live += size + part
        for index in {target, *operator.inputs}:
            made = index in region.outputs
            if last.get(index, number) == number and index in row and index not in region.inputs:
                live -= 0 if made and direct else row[index] * _rows(region, index, low, high)
    outside = 0
    for first, _, low, _ in windows:
        left = sum(
            row[i] * int((region.height - (0 if i in region.kept else low)) * region.scales[i])
            for i in region.inputs
        )
        done = sum(row[i] * int(first * region.scales[i]) for i in region.outputs)
        outside = max(outside, left + done)
    return region.held + outside + own


def work(model, operator) -> int:
    """Multiplications of an operator, or four for each value that it writes or copies."""
    graph = model.subgraphs[0]
    count = math.prod(graph.tensors[operator.outputs[0]].shape)
    name = operator_name(model, operator)
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        kernel = graph.tensors[operator.inputs[1]].shape
        return count * math.prod(kernel[1:] if name == "CONV_2D" else kernel[1:3])
    return 4 * count


@dataclass(frozen=True)
class Candidate:
    """Operators `start` .. `stop` run in strips, and what it would cost.

    Attributes:
        windows: (first, end) of each strip's rows of the output, and of the rows it computes.
        peak: bytes alive at the worst moment.
        extra: added work, in the units of `work`.
        records: bytes of the records of the added operators.
    """

    start: int
    stop: int
    windows: list[tuple[int, int, int, int]]
    peak: int
    extra: int
    records: int
    region: _Region


def candidates(model, starts, stops, hot, record) -> list[Candidate]:
    """All ways to run a part of the model in strips.

    Args:
        model: `ModelT` with one subgraph.
        starts, stops: positions in the list of operators at which a part may begin, and end.
        hot: for each operator, whether too much is alive there; a part without one is of no use.
        record: function from an operator to the bytes of its records.
    """
    graph = model.subgraphs[0]
    reaches = [_reach(model, graph, operator) for operator in graph.operators]
    works = [work(model, operator) for operator in graph.operators]
    found = []
    for start in starts:
        for stop in (stop for stop in stops if start < stop <= start + MAX_REGION):
            if not any(hot[start:stop]) or not any(reaches[start:stop]):
                continue
            region = _region(model, graph, start, stop, reaches, graph.outputs)
            if region is None:
                break  # whatever is longer has the same operator in its way
            total = sum(works[n] for n in region.members)
            kept = sum(record(graph.operators[n]) for n in region.members)
            copied = 4 * sum(tensor_bytes(graph.tensors[i]) for i in region.inputs)
            copied += 8 * sum(tensor_bytes(graph.tensors[i]) for i in region.outputs)
            least = math.inf
            for count in STRIPS:
                windows = region.windows(graph, count)
                if not windows:
                    break
                peak = _peak(graph, region, windows)
                if peak < least:
                    rows = sum(high - low for _, _, low, high in windows) / region.height
                    extra = int(total * (rows - 1) + copied * rows)
                    ends = len(region.inputs) + len(region.outputs)
                    added = kept * (count - 1) + 120 * ends * count
                    found.append(Candidate(start, stop, windows, peak, extra, added, region))
                    least = peak
    return found


def select(live, found, limit, weight=0) -> list[Candidate] | None:
    """The candidates, none touching another, that add the least work and keep all below a limit.

    Args:
        live: bytes alive at each operator without strips.
        found: what `candidates` gave.
        limit: bytes that may be alive.
        weight: work that counts as much as a byte of records.

    Returns:
        the choice, in order; None where there is none.
    """
    best = [(0, None)] + [None] * len(live)
    ending = {}
    for candidate in found:
        ending.setdefault(candidate.stop, []).append(candidate)
    for stop in range(1, len(live) + 1):
        ways = []
        if best[stop - 1] is not None and live[stop - 1] <= limit:
            ways.append((best[stop - 1][0], (stop - 1, None)))
        for candidate in ending.get(stop, ()):
            if best[candidate.start] is not None and candidate.peak <= limit:
                cost = candidate.extra + weight * candidate.records + best[candidate.start][0]
                ways.append((cost, (candidate.start, candidate)))
        best[stop] = min(ways, key=lambda way: way[0], default=None)
    if best[-1] is None:
        return None
    chosen, position = [], len(live)
    while position:
        position, candidate = best[position][1]
        chosen += [candidate] if candidate else []
    return chosen[::-1]


def apply(model, chosen) -> None:
    """Rewrites a model so that the chosen parts run in strips, in place."""
    graph = model.subgraphs[0]
    operators = graph.operators
    rewritten, position = [], 0
    for candidate in chosen:
        region = candidate.region
        rewritten += operators[position : candidate.start]
        rewritten += [operators[n] for n in region.before]
        rewritten += _strips(model, graph, region, candidate.windows)
        rewritten += [operators[n] for n in region.after]
        position = candidate.stop
    graph.operators = rewritten + operators[position:]


def _strips(model, graph, region, windows):
    """The operators of all strips, slices first and concatenations last; adds their tensors."""

    def tensor(like, rows):
        first, _, *rest = graph.tensors[like].shape
        return add_tensor(graph, like, [first, rows, *rest])

    def values(numbers):
        return add_constant(model, graph, np.int32(numbers))

    def sliced(source, like, first, rows):
        """SLICE of `rows` rows of `source`, a tensor made like tensor `like`."""
        shape = graph.tensors[like].shape
        begin, size = values([0, first, 0, 0]), values([1, rows, *shape[2:]])
        target = tensor(like, rows)
        return add_operator(model, "SLICE", [source, begin, size], [target], schema.SliceOptionsT())

    slices, body, parts = [], [], {index: [] for index in region.outputs}
    for first, end, low, high in windows:
        names = {}
        for index in region.inputs:
            scale = region.scales[index]
            operator = sliced(index, index, int(low * scale), _rows(region, index, low, high))
            slices.append(operator)
            names[index] = operator.outputs[0]
        for number in region.members:
            operator = copy.copy(graph.operators[number])
            target = operator.outputs[0]
            names[target] = tensor(target, _rows(region, target, low, high))
            operator.inputs = [names.get(index, index) for index in operator.inputs]
            operator.outputs = [names[target]]
            if operator_name(model, operator).startswith("RESIZE"):
                shape = graph.tensors[names[target]].shape
                operator.inputs = [operator.inputs[0], values(shape[1:3])]
            body.append(operator)
            if target in parts:
                scale = region.scales[target]
                if (first, end) != (low, high):
                    offset, rows = int((first - low) * scale), int((end - first) * scale)
                    body.append(sliced(names[target], target, offset, rows))
                parts[target].append(body[-1].outputs[0])
    joined = [
        add_operator(model, "CONCATENATION", parts[i], [i], schema.ConcatenationOptionsT(1, 0))
        for i in region.outputs
    ]
    return slices + body + joined
