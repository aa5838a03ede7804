"""The order of a model's operators in which the fewest bytes are alive at the worst moment.

Operators can run in any order in which each comes after its producers, and the order decides what
is alive together. Here two branches make a large feature map and reduce it, and the first order
keeps both large ones:

    order                     large ones alive       order                     large ones alive
    expand A                  A                      expand A                  A
    expand B                  A B                    reduce A                  A
    reduce A                  A B                    expand B                  B
    reduce B                  B                      reduce B                  B
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import single_subgraph, tensor_sizes

MAX_STATES = 4_000
"""Sets of operators that a search looks at before it gives up: a second or two."""
WINDOW = 32
"""Operators that are searched alone where the whole graph has too many orders."""
NEGLIGIBLE = 1 / 512
"""Tensors smaller than this share of the largest count as nothing, which leaves fewer orders."""


def reorder(model: schema.ModelT) -> None:
    """Puts the operators of a model in the order that keeps the fewest bytes alive, in place.

    The whole graph is searched, exactly where it has few enough orders. Then windows of `WINDOW`
    operators are searched alone, each half over the one before. That lowers the moments below the
    worst one, too; the worst one never rises.

    Raises:
        TFLiteError: the model has several subgraphs or a tensor without a fixed size.
    """
    graph = single_subgraph(model)
    sizes = tensor_sizes(model)
    floor = max(sizes.values(), default=0) * NEGLIGIBLE
    weights = {index: size for index, size in sizes.items() if size >= floor}
    reads = [[i for i in operator.inputs if i in sizes] for operator in graph.operators]
    writes = [operator.outputs for operator in graph.operators]

    def best(order, alive, kept):
        found = search_order(
            [reads[i] for i in order], [writes[i] for i in order], weights, alive, kept
        )
        return order if found is None else [order[i] for i in found[0]]

    order = best(list(range(len(reads))), graph.inputs, graph.outputs)
    for start in range(0, len(order), WINDOW // 2):
        stop = start + WINDOW
        written_before = set(graph.inputs).union(*(writes[i] for i in order[:start]))
        read_after = set(graph.outputs).union(*(reads[i] for i in order[stop:]))
        read_inside = {index for i in order[start:stop] for index in reads[i]}
        alive = written_before & (read_after | read_inside)
        order[start:stop] = best(order[start:stop], alive, read_after)
    graph.operators = [graph.operators[i] for i in order]


def search_order(
    reads: Sequence[Sequence[Hashable]],
    writes: Sequence[Sequence[Hashable]],
    sizes: Mapping[Hashable, int],
    alive: Iterable[Hashable],
    kept: Iterable[Hashable],
    max_states: int = MAX_STATES,
) -> tuple[list[int], int] | None:
    """Order of operators in which the fewest bytes are alive at the worst moment.

    A shortest-path search over the sets of operators that are done, where a path is as long as its
    worst moment (Dijkstra). An operator that can run without leaving more bytes alive, and without
    raising the worst moment, is run at once: that never makes the rest worse.

    Args:
        reads, writes: tensors that each operator reads and writes, by any name.
        sizes: {tensor: bytes}; one that takes no memory is left out or 0.
        alive: tensors that live at the start.
        kept: tensors that live to the end.
        max_states: gives up beyond that many sets.

    Returns:
        (order, peak in bytes), the best there is; None where the search gave up.

    Example:

    >>> reads = [["image"], ["image"], ["a"], ["b"]]
    >>> sizes = {"image": 1, "a": 8, "b": 8, "small a": 1, "small b": 1}
    >>> writes = [["a"], ["b"], ["small a"], ["small b"]]
    >>> search_order(reads, writes, sizes, ["image"], ["small a", "small b"])[1]
    10
    """
    graph = _Graph(reads, writes, sizes, kept)
    live = sum(sizes.get(tensor, 0) for tensor in set(alive))
    # (worst moment, turn, operators done, bytes alive, path: nested pairs (path, operator))
    heap: list[tuple] = [(live, 0, 0, live, None)]
    turn = 0
    seen: set[int] = set()  # sets of operators from which all was looked at
    while heap and len(seen) <= max_states:
        peak, _, done, live, path = heapq.heappop(heap)
        done, live, path, ready = graph.run_what_costs_nothing(done, live, peak, path)
        if done in seen:
            continue
        seen.add(done)
        if done == graph.all_done:
            return _unrolled(path), peak
        for number in ready:
            during, after = graph.bytes_alive(number, done, live)
            following = done | 1 << number
            if following not in seen:
                turn -= 1  # of equal peaks the last one found comes first: straight to the end
                entry = (max(peak, during), turn, following, after, (path, number))
                heapq.heappush(heap, entry)
    return None


class _Graph:
    """Operators and tensors of a search; sets of operators are bits of an integer."""

    def __init__(self, reads, writes, sizes, kept):
        self.reads, self.writes, self.sizes, self.kept = reads, writes, sizes, set(kept)
        self.all_done = (1 << len(reads)) - 1
        self.consumers = defaultdict(int)
        producer = {}
        for number in range(len(reads)):
            for tensor in reads[number]:
                self.consumers[tensor] |= 1 << number
            for tensor in writes[number]:
                producer[tensor] = 1 << number
        self.needs = []  # the producers of what each operator reads
        for tensors in reads:
            bits = 0
            for tensor in tensors:
                bits |= producer.get(tensor, 0)
            self.needs.append(bits)

    def bytes_alive(self, number, done, live):
        """Bytes alive while an operator runs, and after it."""
        during = live + sum(self.sizes.get(tensor, 0) for tensor in self.writes[number])
        rest = self.all_done & ~done & ~(1 << number)
        after = during
        for tensor in {*self.reads[number], *self.writes[number]}:
            if tensor not in self.kept and not self.consumers[tensor] & rest:
                after -= self.sizes.get(tensor, 0)
        return during, after

    def run_what_costs_nothing(self, done, live, peak, path):
        """The state after all operators that raise neither the bytes alive nor the peak.

        Returns:
            done, live and path as they are then, and the operators that could run next.
        """
        while True:
            ready = [
                number
                for number, needs in enumerate(self.needs)
                if not done >> number & 1 and needs & done == needs
            ]
            free = None
            for number in ready:
                during, after = self.bytes_alive(number, done, live)
                if after <= live and during <= peak:
                    free = number
                    break
            if free is None:
                return done, live, path, ready
            done, live, path = done | 1 << free, after, (path, free)


def _unrolled(path):
    """The operators of nested pairs (path, operator), first to last."""
    order = []
    while path:
        path, number = path
        order.append(number)
    return order[::-1]
