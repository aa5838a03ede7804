"""Makes an int8 model need less memory on a microcontroller, without changing one output bit.

Four passes, for TensorFlow Lite Micro (TFLM):

    strip_names     drops what no device reads                         (`cleanup`)
    reorder         puts the operators in the order that keeps the
                    fewest bytes alive                                 (`order`)
    plan            gives each tensor its place in the arena           (`arena`)
    strips          computes the stages that are still too large in
                    horizontal strips, where less memory is asked for  (`strips`)

`fit_memory` runs them. Memory is counted as TFLM counts it (`memory`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert import strips
from ddunet_keras.litert.arena import plan
from ddunet_keras.litert.cleanup import strip_names
from ddunet_keras.litert.memory import (
    HOST,
    MemoryProfile,
    Runtime,
    memory_profile,
    persistent_bytes,
)
from ddunet_keras.litert.model import TFLiteError
from ddunet_keras.litert.order import NEGLIGIBLE, reorder

HOT = 0.85
"""An operator is too large where more than this share of the arena is alive: what strips add takes
persistent allocations of its own."""
LIMITS = 100
"""Limits of the bytes alive for which strips are chosen."""
PERSISTENT_WEIGHTS = (0, 100, 1000)
"""Work that counts as much as a byte of persistent allocations, when strips are chosen."""


def fit_memory(
    model: schema.ModelT, ram_kib: float | None = None, runtime: Runtime = HOST
) -> schema.ModelT:
    """A model that computes the same, bit for bit, in less memory on TFLM.

    Args:
        model: `ModelT` as `read_tflite` gives it, with one subgraph and fixed shapes; it is
            changed.
        ram_kib: KiB that TFLM's arena may take; None for what whole feature maps need. Strips are
            used only where it asks for them, those that add the least work.
        runtime: the TFLM that the arena is reckoned for. Its scratch memory counts, too.

    Returns:
        the same model, or another one where strips are used.

    Raises:
        TFLiteError: the model has several subgraphs or a tensor without a fixed size, or `ram_kib`
            is out of reach; the message says what is not.
        ValueError: `ram_kib` is no positive number.
    """
    if ram_kib is not None and not ram_kib > 0:
        raise ValueError(f"`ram_kib` must be positive, in KiB. Received: ram_kib={ram_kib!r}")
    strip_names(model)
    reorder(model)
    if ram_kib is None:
        plan(model, runtime=runtime)
        return model
    arena = int(ram_kib * 1024)
    room = arena - persistent_bytes(model, runtime)
    fits = plan(model, room, runtime=runtime) <= room
    return model if fits else _in_strips(model, arena, runtime)


@dataclass(frozen=True)
class _Choice:
    """Parts that would run in strips, the work they add, and the arena that takes, unplanned."""

    parts: list[strips.Candidate]
    extra_work: int
    arena: int


def _in_strips(model, arena, runtime):
    """A copy of an ordered model that takes at most so many bytes of arena.

    Choices are tried from the one that adds the least work. The bytes alive say only roughly what
    the plan will take.
    """
    profile, persistent = memory_profile(model, runtime), persistent_bytes(model, runtime)
    choices = _choices(model, profile, arena, runtime)
    least_estimated = min((choice.arena for choice in choices), default=profile.peak + persistent)
    least_planned = math.inf
    slack = 0
    for choice in sorted(choices, key=lambda choice: (choice.extra_work, choice.arena)):
        if choice.arena + slack > arena:
            continue
        attempt = copy.deepcopy(model)
        strips.apply(attempt, choice.parts)
        strip_names(attempt)
        room = arena - persistent_bytes(attempt, runtime)
        excess = plan(attempt, room, runtime=runtime) - room
        if excess <= 0:
            return attempt
        slack = arena - choice.arena + excess // 4  # only one that leaves more room is worth a try
        least_planned = min(least_planned, arena + excess)
    least = least_planned if least_planned < math.inf else least_estimated
    raise TFLiteError(
        f"the arena needs about {least / 1024:.0f} KiB at least, {arena / 1024:.0f} were asked for"
    )


def _choices(model, profile, arena, runtime):
    """The best choices of strips for many limits of the bytes alive.

    Fewer bytes alive ask for more operators, whose persistent allocations take bytes as well. So
    the lowest limit need not give the smallest arena, and all are tried.
    """
    persistent = persistent_bytes(model, runtime)
    is_hot = [live > HOT * (arena - persistent) for live in profile.live]
    starts, stops = _borders(profile)
    found = strips.candidates(model, starts, stops, is_hot, runtime)
    choices = {}
    for limit in np.linspace(0, profile.peak, LIMITS):
        for weight in PERSISTENT_WEIGHTS:
            parts = strips.select(profile.live, found, limit, weight)
            if parts is None:
                continue
            live = list(profile.live)
            for part in parts:
                live[part.start : part.stop] = [part.peak] * (part.stop - part.start)
            extra_work = sum(part.extra_work for part in parts)
            total = max(live) + persistent + sum(part.persistent for part in parts)
            key = tuple((part.start, part.stop, len(part.strips)) for part in parts)
            choices[key] = _Choice(parts, extra_work, total)
    return choices.values()


def _borders(profile: MemoryProfile):
    """Where parts may begin and end: the operators after which more bytes rest than before them,
    and the positions behind those after which fewer do."""
    floor = max(profile.sizes.values()) * NEGLIGIBLE
    resting = np.zeros(len(profile.live) + 1, np.int64)  # bytes between operators
    for index, (first, last) in profile.lifetimes.items():
        if profile.sizes[index] >= floor:
            resting[first + 1 : last + 1] += profile.sizes[index]
    steps = np.diff(resting)
    return np.flatnonzero(steps > 0).tolist(), (np.flatnonzero(steps < 0) + 1).tolist()
