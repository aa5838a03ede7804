"""Makes an int8 `.tflite` need less memory on a microcontroller, without changing one output bit.

Four passes, for TensorFlow Lite Micro (TFLM): names and unused parts go (`strip_names`), operators
are put in the order that keeps the fewest bytes alive (`reorder`), the stages that are still too
large are computed in strips (`ddunet_keras.litert.strips`), and the place of each tensor in the
arena is planned in advance (`plan`).

Memory is counted as TFLM counts it: a tensor lives from the operator that writes it to the last one
that reads it, the input from the start, the output to the end, each at a multiple of 16 bytes.
Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert import strips
from ddunet_keras.litert.model import (
    TFLiteError,
    constant,
    operator_name,
    read_tflite,
    set_metadata,
    tensor_bytes,
    write_tflite,
)

ALIGNMENT = 16
PLAN = b"OfflineMemoryAllocation"
"""Name of the metadata from which TFLM takes the offsets: int32 (version 1, subgraph 0, number of
tensors, offset of each, -1 for constants)."""
RECORDS_BASE = 720
RECORDS = {
    "CONV_2D": 118,
    "DEPTHWISE_CONV_2D": 107,
    "MUL": 56,
    "ADD": 72,
    "RESIZE_BILINEAR": 16,
    "RELU": 24,
    "LOGISTIC": 16,
    "SLICE": 16,
}
MAX_STATES = 4_000
PLAN_ROUNDS = 1200
LIMITS = 100
RECORD_WEIGHTS = (0, 100, 1000)


def _aligned(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


# === What lives when ===


def tensor_sizes(model) -> dict[int, int]:
    """Bytes that each tensor takes in the arena: {index: multiple of 16}, constants left out."""
    tensors = only_graph(model).tensors
    return {index: _aligned(tensor_bytes(tensors[index])) for index in sorted(lifetimes(model))}


def lifetimes(model) -> dict[int, tuple[int, int]]:
    """First and last operator at which each tensor of the arena lives: {index: (first, last)}.

    The input lives from -1 on: it is filled before the first operator runs.
    """
    graph = only_graph(model)
    lives = dict.fromkeys(graph.inputs, (-1, -1))
    for number, operator in enumerate(graph.operators):
        for index in operator.outputs:
            lives[index] = (number, number)
        for index in operator.inputs:
            if index in lives:
                lives[index] = (lives[index][0], number)
            elif index >= 0 and model.buffers[graph.tensors[index].buffer].data is None:
                lives[index] = (number, number)  # room that a custom operator works in
    for index in graph.outputs:
        if index in lives:
            lives[index] = (lives[index][0], len(graph.operators) - 1)
    return lives


def copies(model) -> list[tuple[int, int, int]]:
    """Tensors that hold bytes of another one in one piece: (part, whole, offset in the whole).

    A SLICE or CONCATENATION along the outermost side that is not 1, and any RESHAPE. Where the part
    lies inside the whole, the operator copies bytes onto themselves and costs no memory.
    """
    graph, found = only_graph(model), []
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name == "RESHAPE":
            found.append((operator.outputs[0], operator.inputs[0], 0))
        elif name == "SLICE":
            begin = constant(model, graph, operator.inputs[1])
            whole, part = (
                graph.tensors[i].shape for i in (operator.inputs[0], operator.outputs[0])
            )
            sides = [axis for axis in range(len(whole)) if whole[axis] != part[axis]]
            axis = max(sides, default=0)
            if begin is not None and math.prod(part[:axis]) == 1 == math.prod(whole[:axis]):
                row = tensor_bytes(graph.tensors[operator.inputs[0]]) // whole[axis]
                found.append((operator.outputs[0], operator.inputs[0], int(begin[axis]) * row))
        elif name == "CONCATENATION":
            shape = graph.tensors[operator.outputs[0]].shape
            offset, axis = 0, operator.builtinOptions.axis % max(len(shape), 1)
            if math.prod(shape[:axis]) == 1:
                for index in operator.inputs:
                    found.append((index, operator.outputs[0], offset))
                    offset += tensor_bytes(graph.tensors[index])
    return found


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
        return self.live.index(self.peak)

    @property
    def planned(self) -> int | None:
        """Bytes of the arena that the plan in the file takes, TFLM's own records not counted."""
        if not self.offsets:
            return None
        return max(self.offsets[index] + self.sizes[index] for index in self.offsets)


def memory_profile(model) -> MemoryProfile:
    """What a model keeps in memory at each operator, and where if the file has a plan.

    Args:
        model: `ModelT` as `read_tflite` gives it, with one subgraph and fixed shapes.

    Raises:
        TFLiteError: the model has several subgraphs or a tensor without a fixed size.
    """
    graph = only_graph(model)
    sizes, lives = tensor_sizes(model), lifetimes(model)
    groups = _groups(model, sizes, lives)
    steps = len(graph.operators)
    live = np.zeros(steps + 1, np.int64)  # entry 0 is the time before the first operator
    for group in groups:
        if len(group) == 1:
            ((index, _),) = group
            first, last = lives[index]
            live[first + 1 : last + 2] += sizes[index]
            continue
        for step in range(-1, steps):
            pieces = sorted(
                (offset, offset + sizes[index])
                for index, offset in group
                if lives[index][0] <= step <= lives[index][1]
            )
            end = -math.inf
            for start, stop in pieces:
                live[step + 1] += max(0, stop - max(start, end))
                end = max(end, stop)
    names = [operator_name(model, operator) for operator in graph.operators]
    live[1] = max(live[:2])
    return MemoryProfile(live[1:].tolist(), names, lives, sizes, _planned_offsets(model, sizes))


def _planned_offsets(model, sizes):
    for entry in model.metadata:
        data = model.buffers[entry.buffer].data
        if entry.name == PLAN and data is not None and not len(data) % 4:
            values = np.frombuffer(bytes(data), "<i4")[3:].tolist()
            if len(values) == len(model.subgraphs[0].tensors):
                return {index: values[index] for index in sizes if values[index] >= 0}
    return None


def only_graph(model):
    if len(model.subgraphs) != 1:
        raise TFLiteError(f"it has {len(model.subgraphs)} subgraphs, one was expected")
    return model.subgraphs[0]


def _groups(model, sizes, lives):
    """Tensors that keep their distance from each other, as lists of (tensor, offset)."""
    group = {index: [(index, 0)] for index in sizes}
    place = dict.fromkeys(sizes, 0)
    root = {index: (index, 0) for index in sizes}  # whose bytes, from which offset on
    links = set()

    def agree(a, b, shift):
        """Whether tensors a and b, b `shift` bytes after a, may lie so."""
        (first, last), (start, stop) = lives[a], lives[b]
        apart = first > stop or start > last or shift >= sizes[a] or -shift >= sizes[b]
        same = root[a][0] == root[b][0] and root[b][1] - root[a][1] == shift
        return apart or same or (a, b, shift) in links or (b, a, -shift) in links

    found = [link for link in copies(model) if link[0] in sizes and link[1] in sizes]
    # a piece cut out of one map and joined to another had better lie in the joined one
    found.sort(key=lambda link: lives[link[0]] > lives[link[1]])
    for part, whole, offset in found:
        if offset % ALIGNMENT:
            continue
        here, there = group[part], group[whole]
        if here is there:
            continue
        links.add((whole, part, offset))
        before = root[part]
        if lives[part][0] > lives[whole][0]:  # a slice of the whole, not a piece that makes it
            source, start = root[whole]
            root[part] = (source, start + offset)
        shift = place[whole] + offset - place[part]
        if all(agree(a, b, at + shift - place[a]) for b, at in here for a, _ in there):
            for index, at in here:
                place[index] = at + shift
                group[index] = there
            there += [(index, place[index]) for index, _ in here]
        else:
            root[part] = before
            links.discard((whole, part, offset))
    return list({id(members): members for members in group.values()}.values())


# === What the device does not need ===


def strip_names(model) -> None:
    """Drops from a model, in place, what no device reads; equal constants become one.

    Names other than those of the inputs, the outputs and the signature, ranges seen in calibration,
    unused tensors, operator kinds and buffers, and all metadata but the runtime's version.
    Zero biases, shapes and the like that are equal in value, shape and scale share one tensor.
    """
    graph = only_graph(model)
    same, first = {}, {}
    for index, tensor in enumerate(graph.tensors):
        value = constant(model, graph, index)
        key = (
            index
            if value is None
            else (tensor.type, *value.shape, value.tobytes(), _scales(tensor))
        )
        same[index] = first.setdefault(key, index)
    for operator in graph.operators:
        operator.inputs = [same.get(index, index) for index in operator.inputs]
    used = {*graph.inputs, *graph.outputs}
    used.update(*(operator.inputs + operator.outputs for operator in graph.operators))
    used = sorted(used - {-1})
    renamed = {old: new for new, old in enumerate(used)} | {-1: -1}
    for part in (graph, *graph.operators):
        part.inputs = [renamed[index] for index in part.inputs]
        part.outputs = [renamed[index] for index in part.outputs]
    graph.tensors = [graph.tensors[index] for index in used]
    entries = [e for s in model.signatureDefs for e in (s.inputs or []) + (s.outputs or [])]
    if any(entry.tensorIndex not in renamed for entry in entries):
        model.signatureDefs, entries = [], []
    for entry in entries:
        entry.tensorIndex = renamed[entry.tensorIndex]

    ends = {*graph.inputs, *graph.outputs}
    for index, tensor in enumerate(graph.tensors):
        tensor.name = tensor.name if index in ends else None
        tensor.shapeSignature = None
        if tensor.quantization is not None:
            tensor.quantization.min = tensor.quantization.max = None
    graph.name = model.description = model.metadataBuffer = None
    kinds = sorted({operator.opcodeIndex for operator in graph.operators})
    for operator in graph.operators:
        operator.opcodeIndex = kinds.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[kind] for kind in kinds]

    model.metadata = [entry for entry in model.metadata if entry.name == b"min_runtime_version"]
    buffers, places = [schema.BufferT()], {}
    for part in (*graph.tensors, *model.metadata):
        data = model.buffers[part.buffer].data
        data = None if data is None or not len(data) else bytes(data)
        if data is not None and data not in places:
            places[data] = len(buffers)
            buffers.append(schema.BufferT(np.frombuffer(data, np.uint8)))
        part.buffer = places.get(data, 0)
    model.buffers = buffers


def _scales(tensor):
    q = tensor.quantization
    if q is None or q.scale is None:
        return None
    points = b"" if q.zeroPoint is None else np.asarray(q.zeroPoint).tobytes()
    return np.asarray(q.scale).tobytes(), points, q.quantizedDimension


# === Order of operators ===


def search_order(reads, writes, sizes, alive, kept, max_states=MAX_STATES):
    """Order of operators in which the fewest bytes are alive at the worst moment.

    A shortest-path search over sets of operators done, where a path is as long as its worst moment
    (Dijkstra). An operator that can run without leaving more bytes alive, and without raising the
    worst moment, is run at once: that never makes the rest worse.

    Args:
        reads, writes: tensors that each operator reads and writes, by any name.
        sizes: {tensor: bytes}; one that takes no memory is left out or 0.
        alive: tensors that live at the start.
        kept: tensors that live to the end.
        max_states: gives up beyond that many sets.

    Returns:
        (order, peak in bytes), the best there is; None where the search gave up.
    """
    readers = defaultdict(int)
    for number, tensors in enumerate(reads):
        for tensor in tensors:
            readers[tensor] |= 1 << number
    writer = {tensor: number for number, tensors in enumerate(writes) for tensor in tensors}
    needs = [
        sum({1 << writer[tensor] for tensor in tensors if tensor in writer}) for tensors in reads
    ]
    kept = set(kept)
    everything = (1 << len(reads)) - 1

    def run(number, done, live):
        """Bytes alive while an operator runs, and after it."""
        during = live + sum(sizes.get(tensor, 0) for tensor in writes[number])
        rest = everything & ~done & ~(1 << number)
        freed = sum(
            sizes.get(tensor, 0)
            for tensor in {*reads[number], *writes[number]}
            if tensor not in kept and not readers[tensor] & rest
        )
        return during, during - freed

    def settle(done, live, peak, path):
        """Runs what costs nothing to run now; gives also what else could run."""
        while True:
            ready = [
                number
                for number in range(len(reads))
                if not done >> number & 1 and needs[number] & done == needs[number]
            ]
            for number in ready:
                during, after = run(number, done, live)
                if after <= live and during <= peak:
                    done, live, path = done | 1 << number, after, (path, number)
                    break
            else:
                return done, live, path, ready

    live = sum(sizes.get(tensor, 0) for tensor in set(alive))
    heap, seen, count = [(live, 0, 0, live, None)], set(), 0
    while heap and len(seen) <= max_states:
        peak, _, done, live, path = heapq.heappop(heap)
        done, live, path, ready = settle(done, live, peak, path)
        if done in seen:
            continue
        seen.add(done)
        if done == everything:
            order = []
            while path:
                path, number = path
                order.append(number)
            return order[::-1], peak
        for number in ready:
            during, after = run(number, done, live)
            following = done | 1 << number
            if following not in seen:
                count -= 1  # of equal peaks the last found first: straight to the end
                entry = (max(peak, during), count, following, after, (path, number))
                heapq.heappush(heap, entry)
    return None


def reorder(model, window=32) -> None:
    """Puts the operators of a model in the order that keeps the fewest bytes alive, in place.

    The whole graph is searched, exactly where it has few enough orders. Then windows of `window`
    operators are searched alone, which lowers the moments below the worst one too; the worst one
    never rises. Tensors of less than 1/512 of the largest count as nothing in the search.
    """
    graph = only_graph(model)
    sizes = tensor_sizes(model)
    floor = max(sizes.values(), default=0) / 512
    reads = [[i for i in operator.inputs if i in sizes] for operator in graph.operators]
    writes = [operator.outputs for operator in graph.operators]
    weights = {index: size for index, size in sizes.items() if size >= floor}

    def best(order, alive, kept):
        found = search_order(
            [reads[i] for i in order], [writes[i] for i in order], weights, alive, kept
        )
        return order if found is None else [order[i] for i in found[0]]

    order = best(list(range(len(reads))), graph.inputs, graph.outputs)
    for start in range(0, len(order), window // 2):
        stop = start + window
        before, after = order[:start], order[stop:]
        known = set(graph.inputs).union(*(writes[i] for i in before))
        late = set(graph.outputs).union(*(reads[i] for i in after))
        inside = {tensor for i in order[start:stop] for tensor in reads[i]}
        alive = known & (late | inside)
        order[start:stop] = best(order[start:stop], alive, late)
    graph.operators = [graph.operators[i] for i in order]


# === Places in the arena ===


def plan(model, enough=0, rounds=PLAN_ROUNDS) -> int:
    """Gives each tensor its place in the arena and writes it into the model, in place.

    Parts lie inside their wholes (see `copies`), so that slicing and joining along the rows costs
    no memory. Groups of tensors are placed one by one at the lowest free place; then one that lives
    together with the topmost is placed earlier or later, over and over, as long as it helps.

    Args:
        enough: bytes with which the search is content; the most bytes alive always end it.
        rounds: placements that are tried.

    Returns:
        bytes of the arena that the tensors take.
    """
    graph, profile = only_graph(model), memory_profile(model)
    lives, enough = profile.lifetimes, max(enough, profile.peak)
    groups, rects = [], []
    for members in _groups(model, profile.sizes, lives):
        low = min(offset for _, offset in members)
        groups.append([(index, at - low) for index, at in members])
        rects.append(np.array([(at, at + profile.sizes[i], *lives[i]) for i, at in groups[-1]]))
    height = [rect[:, 1].max() for rect in rects]
    span = [rect[:, 3].max() - rect[:, 2].min() + 1 for rect in rects]
    large = [g for g, size in enumerate(height) if size * 256 >= profile.peak]
    small = [g for g, size in enumerate(height) if size * 256 < profile.peak]

    def place(order):
        placed, starts = np.empty((0, 4), np.int64), {}
        for g in order:
            starts[g] = _lowest(rects[g], placed)
            placed = np.concatenate([placed, rects[g] + [starts[g], starts[g], 0, 0]])
        return int(placed[:, 1].max(initial=0)), starts, order

    random = np.random.default_rng(0)
    keys = (lambda g: -height[g], lambda g: -span[g], lambda g: -height[g] * span[g] ** 0.5)
    best = min((place(sorted(large, key=key)) for key in keys), key=lambda found: found[0])
    for key in keys * 2:
        found = place(sorted(large, key=key))
        for _ in range(rounds // 6):
            if best[0] <= enough:
                break
            _, starts, order = found
            top = rects[max(order, key=lambda g: starts[g] + height[g])]
            near = [g for g in order if _meet(top, rects[g]).any()]
            moved, other = random.choice(near, 2, replace=False) if len(near) > 1 else near * 2
            rest = [g for g in order if g != moved]
            rest.insert(rest.index(other) + random.integers(2) if moved != other else 0, moved)
            found = min(place(rest), found, key=lambda found: found[0])
            best = min(found, best, key=lambda found: found[0])
    total, starts, _ = place(best[2] + small)
    offsets = np.full(len(graph.tensors), -1, "<i4")
    for g, start in starts.items():
        for index, at in groups[g]:
            offsets[index] = start + at
    header = np.array([1, 0, len(offsets)], "<i4")
    set_metadata(model, PLAN, header.tobytes() + offsets.tobytes())
    return total


def _meet(some, others):
    """Which rects (start, stop, first, last) live at the same time: (some, others)."""
    return (some[:, None, 2] <= others[None, :, 3]) & (others[None, :, 2] <= some[:, None, 3])


def _lowest(rects, placed):
    """The lowest start at which rects (start, stop, first, last) touch none of the placed ones."""
    mine, other = np.nonzero(_meet(rects, placed))
    low = placed[other, 0] - rects[mine, 1]  # starts between low and high would overlap
    high = placed[other, 1] - rects[mine, 0]
    order = np.argsort(low, kind="stable")
    start = 0
    for begin, end in zip(low[order].tolist(), high[order].tolist(), strict=True):
        if begin >= start:
            break
        start = max(start, end)
    return start


def records(model) -> int:
    """Bytes of TFLM's own records in the arena, estimated to about 2 %.

    Fitted to what `RecordingMicroAllocator` prints on a 64-bit machine: 64 bytes an operator, 24 a
    tensor, a multiplier and a shift for each output channel of a convolution, and what each kind of
    kernel keeps. On a microcontroller, where pointers are half as long, it is less.
    """
    graph = only_graph(model)
    own = sum(_record(model, operator) for operator in graph.operators)
    return RECORDS_BASE + 24 * (len(graph.tensors) - len(graph.operators)) + own


def _record(model, operator):
    """Bytes of an operator's records, its output tensor's among them."""
    name = operator_name(model, operator)
    size = 64 + 24 + RECORDS.get(name, 88)
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        size += 8 * model.subgraphs[0].tensors[operator.outputs[0]].shape[-1]
    return size


def optimize(data, *, ram=None) -> bytes:
    """A `.tflite` that computes the same, bit for bit, in less memory on TFLM.

    Args:
        data: bytes of a `.tflite` with one subgraph and fixed shapes.
        ram: KiB that TFLM's arena may take; None for what the whole maps need. Strips are used only
            where it asks for them, those that add the least work.

    Raises:
        TFLiteError: the file is unsound, or `ram` is out of reach; the message says what is not.
        ValueError: `ram` is no positive number.
    """
    if ram is not None and not ram > 0:
        raise ValueError(f"`ram` must be a positive number of KiB. Received: ram={ram!r}")
    model = read_tflite(data)
    strip_names(model)
    reorder(model)
    room = math.inf if ram is None else int(ram * 1024) - records(model)
    if plan(model, 0 if ram is None else room) > room:
        model = _in_strips(model, int(ram * 1024))
    return write_tflite(model)


def _in_strips(model, target):
    """A copy of an ordered model that takes at most `target` bytes of arena."""
    profile, base = memory_profile(model), records(model)
    # the records of what strips add lower the limit further
    hot = [live > 0.85 * (target - base) for live in profile.live]
    starts, stops = _borders(profile)
    found = strips.candidates(model, starts, stops, hot, lambda op: _record(model, op))
    # fewer bytes alive ask for more operators, whose records take bytes: try all limits
    choices = {}
    for limit in np.linspace(0, profile.peak, LIMITS):
        for weight in RECORD_WEIGHTS:
            chosen = strips.select(profile.live, found, limit, weight)
            if chosen is not None:
                live = list(profile.live)
                for part in chosen:
                    live[part.start : part.stop] = [part.peak] * (part.stop - part.start)
                total = max(live) + base + sum(part.records for part in chosen)
                extra = sum(part.extra for part in chosen)
                choices[tuple((part.start, part.stop, len(part.windows)) for part in chosen)] = (
                    extra,
                    total,
                    chosen,
                )
    least = min((total for _, total, _ in choices.values()), default=profile.peak + base)
    slack, reached = 0, math.inf
    for _, total, chosen in sorted(choices.values(), key=lambda choice: choice[:2]):
        if total + slack > target:
            continue
        attempt = copy.deepcopy(model)
        strips.apply(attempt, chosen)
        strip_names(attempt)
        room = target - records(attempt)
        over = plan(attempt, room) - room
        if over <= 0:
            return attempt
        slack = target - total + over // 4  # only what leaves more room is worth another try
        reached = min(reached, target + over)
    least = reached if reached < math.inf else least
    raise TFLiteError(
        f"the arena needs about {least / 1024:.0f} KiB at least, {target / 1024:.0f} were asked for"
    )


def _borders(profile):
    """Positions in the list of operators after which more bytes rest, and before which more did."""
    floor = max(profile.sizes.values()) / 512
    rest = np.zeros(len(profile.live) + 1, np.int64)
    for index, (first, last) in profile.lifetimes.items():
        if profile.sizes[index] >= floor:
            rest[first + 1 : last + 1] += profile.sizes[index]
    steps = np.diff(rest)
    return (np.flatnonzero(steps > 0)).tolist(), (np.flatnonzero(steps < 0) + 1).tolist()
