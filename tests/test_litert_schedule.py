"""The memory passes against brute force, LiteRT's reference kernels and TFLM."""

import copy
import itertools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from marks import slow_case
from random_tflite import Network, photos, random_network, reference, u_net
from tiny_tflite import tiny_tflite

from ddunet_keras.litert import strips
from ddunet_keras.litert.arena import plan
from ddunet_keras.litert.arena_size import arena_size
from ddunet_keras.litert.cleanup import strip_names
from ddunet_keras.litert.esp_nn import ESP32_S3
from ddunet_keras.litert.memory import HOST, memory_profile, persistent_bytes
from ddunet_keras.litert.model import (
    TFLiteError,
    constant,
    operator_name,
    read_tflite,
    write_tflite,
)
from ddunet_keras.litert.order import reorder, search_order
from ddunet_keras.litert.run import run_tflm
from ddunet_keras.litert.schedule import fit_memory


def seeds(count, few):
    """So many seeds; those beyond the first few are slow tests."""
    return [*range(few), *map(slow_case, range(few, count))]


# === Strips ===


@pytest.mark.parametrize("seed", seeds(12, few=4))
def test_any_region_in_any_number_of_strips_gives_the_same_bits(seed):
    data = random_network(seed)
    expected = reference(data)
    assert len(np.unique(expected)) > 9
    model = read_tflite(data)
    count = len(model.subgraphs[0].operators)
    live = memory_profile(model).live
    found = strips.candidates(model, range(count), range(1, count + 1), [True] * count, HOST)
    assert len({len(candidate.strips) for candidate in found}) > 3
    random = np.random.default_rng(seed)
    for candidate in random.permutation(np.array(found, object))[:8]:
        changed = copy.deepcopy(model)
        strips.apply(changed, [candidate])
        strip_names(changed)
        np.testing.assert_array_equal(reference(write_tflite(changed)), expected)
        peak = memory_profile(changed).peak
        rest = live[: candidate.start] + live[candidate.stop :]
        assert peak <= max([candidate.peak, *rest]) + 16 * len(changed.subgraphs[0].tensors)


def test_operators_that_look_at_all_rows_stay_whole():
    net = Network(0)
    x = net.gate(net.source, net.source)
    model = read_tflite(net.data(x))
    found = strips.candidates(model, [0], [2], [True] * 2, HOST)
    graph = model.subgraphs[0]
    for candidate in found:
        assert [operator_name(model, graph.operators[n]) for n in candidate.region.members] == [
            "ADD"
        ]


def test_the_cheapest_choice_below_a_limit_is_made():
    def part(start, stop, peak, extra):
        return strips.Candidate(start, stop, [], peak, extra, 0, None)

    live = [5, 9, 9, 5, 9, 5]
    parts = [part(1, 3, 6, 10), part(0, 3, 6, 7), part(1, 5, 7, 30), part(4, 5, 6, 5)]
    assert strips.select(live, parts, 6) == [parts[1], parts[3]]
    assert strips.select(live, [parts[0], parts[2]], 7) == [parts[2]]
    assert strips.select(live, parts, 9) == []
    assert strips.select(live, parts, 4) is None


# === Order ===


def test_the_order_found_is_the_best_of_all():
    random = np.random.default_rng(0)
    for _ in range(40):
        count = 7
        writes = [[f"t{number}"] for number in range(count)]
        reads = [["image"]] + [
            [f"t{i}" for i in sorted(set(random.integers(0, number, 2).tolist()))]
            for number in range(1, count)
        ]
        sizes = {f"t{number}": int(random.integers(1, 9)) for number in range(count)} | {"image": 3}
        kept = [f"t{count - 1}"]

        def peak(order, reads=reads, writes=writes, sizes=sizes, kept=kept):
            alive, worst = {"image"}, 0
            for step, number in enumerate(order):
                if not alive.issuperset(reads[number]):
                    return np.inf
                alive.update(writes[number])
                worst = max(worst, sum(sizes[tensor] for tensor in alive))
                later = {tensor for n in order[step + 1 :] for tensor in reads[n]}
                alive &= later | set(kept)
            return worst

        least = min(map(peak, itertools.permutations(range(count))))
        order, found = search_order(reads, writes, sizes, ["image"], kept)
        assert found == peak(order) == least


def test_the_search_gives_up_where_it_is_told_to():
    reads = [["image"]] * 6
    writes = [[f"t{number}"] for number in range(6)]
    sizes = {f"t{number}": 1 + number for number in range(6)}
    assert search_order(reads, writes, sizes, ["image"], sizes, max_states=3) is None


# === Arena ===


def run_in_planned_arena(data):
    """Paints the arena as the operators of a file would; every read must find what was written."""
    model = read_tflite(data)
    graph = model.subgraphs[0]
    profile = memory_profile(model)
    assert set(profile.offsets) == set(profile.sizes)
    assert all(offset % 16 == 0 for offset in profile.offsets.values())
    arena = np.zeros((profile.planned, 2), np.int64)  # who wrote a byte, and its number
    bytes_of = {}
    for index in profile.sizes:
        tensor = graph.tensors[index]
        bytes_of[index] = int(np.prod(tensor.shape)) * (4 if tensor.type == 2 else 1)

    def place(index):
        start = profile.offsets[index]
        return arena[start : start + bytes_of[index]]

    content = {}
    for index in graph.inputs:
        content[index] = np.stack([np.full(bytes_of[index], -1), np.arange(bytes_of[index])], 1)
        place(index)[:] = content[index]
    for number, operator in enumerate(graph.operators):
        moving = [index for index in operator.inputs if index in profile.sizes]
        for index in moving:
            np.testing.assert_array_equal(place(index), content[index])
        (target,) = operator.outputs
        name = operator_name(model, operator)
        new = np.stack([np.full(bytes_of[target], number), np.arange(bytes_of[target])], 1)
        if name == "SLICE":
            begin = constant(model, graph, operator.inputs[1])
            shape, like = graph.tensors[moving[0]].shape, graph.tensors[target].shape
            corner = tuple(slice(b, b + s) for b, s in zip(begin, like, strict=True))
            new = content[moving[0]].reshape(*shape, 2)[corner].reshape(-1, 2)
        elif name == "CONCATENATION" and operator.builtinOptions.axis == 1:
            new = np.concatenate([content[index] for index in moving])
        place(target)[:] = content[target] = new
    for index in graph.outputs:
        np.testing.assert_array_equal(place(index), content[index])


@pytest.mark.parametrize("seed", seeds(6, few=3))
def test_nothing_overwrites_what_is_still_read(seed):
    model = read_tflite(random_network(seed))
    reorder(model)
    count = len(model.subgraphs[0].operators)
    found = strips.candidates(model, range(count), range(1, count + 1), [True] * count, HOST)
    random = np.random.default_rng(seed)
    for candidate in random.permutation(np.array(found, object))[:5]:
        changed = copy.deepcopy(model)
        strips.apply(changed, [candidate])
        strip_names(changed)
        total = plan(changed, rounds=30)
        profile = memory_profile(changed)
        assert profile.peak <= profile.planned == total
        run_in_planned_arena(write_tflite(changed))


def test_the_profile_counts_what_lives():
    net = Network(0, (16, 16), 4)  # a map of 4 channels takes 1 KiB
    x = net.conv(net.source, 4, 1)
    y = net.conv(x, 8, 1)
    z = net.conv(x, 4, 1)
    profile = memory_profile(read_tflite(net.data(net.join(y, z))))
    assert profile.live == [2048, 3072, 4096, 6144]
    assert profile.peak == 6144 and profile.peak_operator == 3
    assert profile.names == ["CONV_2D"] * 3 + ["CONCATENATION"]
    assert profile.lifetimes[net.source] == (-1, 0)
    assert profile.offsets is None and profile.planned is None


def test_a_plan_of_another_graph_is_no_plan():
    model = fit_memory(read_tflite(u_net((16, 16))))
    assert memory_profile(model).planned > 0
    for data in (None, np.zeros(7, np.uint8), np.zeros(400, np.uint8)):
        model.buffers[model.metadata[-1].buffer].data = data
        assert memory_profile(model).planned is None


# === All passes ===


def test_a_whole_network_keeps_its_bits_in_less_memory():
    data = u_net()
    expected = reference(data)
    outputs, before = run_tflm(data, photos(data))
    np.testing.assert_array_equal(outputs, expected)
    totals = [before["total"]]
    least = memory_profile(fit_memory(read_tflite(data))).peak
    for ram in (None, before["total"] / 1024 * 0.8):
        small = write_tflite(fit_memory(read_tflite(data), ram))
        assert ram is not None or len(small) < len(data)
        np.testing.assert_array_equal(reference(small), expected)
        outputs, arena = run_tflm(small, photos(data))
        np.testing.assert_array_equal(outputs, expected)
        run_in_planned_arena(small)
        profile = memory_profile(read_tflite(small))
        assert arena["head"] == profile.planned
        estimate = persistent_bytes(read_tflite(small))
        assert 0 <= estimate - arena["tail"] < 0.05 * estimate
        assert ram is None or arena["total"] <= ram * 1024
        totals.append(arena["total"])
    assert totals[0] >= totals[1] > totals[2]
    assert profile.peak < least and "SLICE" in profile.names


def test_scratch_memory_finds_room_in_the_plan():
    """With ESP-NN's on an ESP32-S3: more than a plan without it leaves, less than it would take."""
    data = u_net()
    expected = reference(data)
    blind = arena_size(fit_memory(read_tflite(data)), ESP32_S3)
    model = fit_memory(read_tflite(data), runtime=ESP32_S3)
    seeing = arena_size(model, ESP32_S3)
    assert seeing.head == memory_profile(model, ESP32_S3).peak <= blind.head
    ram = 0.8 * seeing.total / 1024
    strips_alone = fit_memory(read_tflite(data), ram, ESP32_S3)
    small = arena_size(strips_alone, ESP32_S3)
    assert small.total <= ram * 1024 and small.scratch < seeing.scratch
    for changed in (model, strips_alone):
        np.testing.assert_array_equal(reference(write_tflite(changed)), expected)
        run_in_planned_arena(write_tflite(changed))


def test_names_and_unused_parts_go_and_equal_constants_become_one():
    model = read_tflite(u_net())
    graph = model.subgraphs[0]
    graph.tensors.append(schema.TensorT([1], schema.TensorType.INT8, 0, "unused"))
    model.metadata.append(schema.MetadataT(b"min_runtime_version", len(model.buffers)))
    model.metadata.append(schema.MetadataT(b"CONVERSION_METADATA", len(model.buffers)))
    model.buffers.append(schema.BufferT(np.frombuffer(b"1.2.3", np.uint8)))
    ends = [graph.tensors[index].name for index in graph.inputs + graph.outputs]
    sizes = [constant(model, graph, i) for i in range(len(graph.tensors))]
    strip_names(model)
    small = read_tflite(write_tflite(model))
    graph = small.subgraphs[0]
    assert [graph.tensors[i].name for i in graph.inputs + graph.outputs] == ends
    assert sum(tensor.name is not None for tensor in graph.tensors) == 2
    assert [entry.name for entry in small.metadata] == [b"min_runtime_version"]
    assert bytes(small.buffers[small.metadata[0].buffer].data) == b"1.2.3"
    values = [constant(small, graph, i) for i in range(len(graph.tensors))]
    distinct = {value.tobytes() for value in sizes if value is not None}
    assert {value.tobytes() for value in values if value is not None} == distinct


def test_a_budget_out_of_reach_says_what_is_in_reach():
    with pytest.raises(TFLiteError, match=r"needs about \d+ KiB at least, 4 were asked for"):
        fit_memory(read_tflite(u_net((16, 16))), ram_kib=4)


@pytest.mark.parametrize("ram", [0, -1, float("nan")])
def test_a_budget_must_be_positive(ram):
    with pytest.raises(ValueError, match="Received: ram_kib="):
        fit_memory(read_tflite(tiny_tflite()), ram_kib=ram)


def test_several_subgraphs_are_refused():
    model = read_tflite(tiny_tflite())
    model.subgraphs = model.subgraphs * 2
    with pytest.raises(TFLiteError, match="2 subgraphs"):
        fit_memory(model)


def test_an_unsound_slice_or_concatenation_lies_in_nothing():
    """The profile of a file that no converter made is still a profile."""
    net = Network(0, (16, 16), 4)
    begin, size = (net.graph.constant(np.array(v, np.int32)) for v in ([0, 4], [1, 8]))
    cut = net.add("SLICE", [net.source, begin, size], (1, 8, 16, 4), schema.SliceOptionsT())
    joined = net.add("CONCATENATION", [cut, cut], (1, 16, 16, 4), schema.AddOptionsT())
    profile = memory_profile(read_tflite(net.data(joined)))
    assert profile.live == [1024 + 512, 512 + 1024]
