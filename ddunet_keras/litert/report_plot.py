"""The picture of a report: memory over the operators, with the peak marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ddunet_keras.litert.boards import KIB

if TYPE_CHECKING:
    from ddunet_keras.litert.inspect import Report
    from ddunet_keras.litert.memory import MemoryProfile

USUAL, PEAK = "#9ecae1", "#d55e00"
"""Colours of what is alive, and of what is alive at the peak."""

HEADROOM = 1.3
"""Height of the axis over the highest bar or line, with room for the words."""


def plot_memory(profile: MemoryProfile, report: Report, path) -> None:
    """Draws what is alive at each operator; a file with a memory plan also gets the place of each
    tensor in the arena.

    Args:
        profile: memory of the first subgraph.
        report: gives the file's name and TFLM's arena.
        path: a picture file; its suffix names the format.
    """
    from matplotlib.figure import Figure  # without pyplot: no state, no display

    planned = profile.planned
    height = 7 if planned else 4
    figure = Figure(figsize=(10, height), layout="constrained")
    rows = 2 if planned else 1
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    _plot_live(axes[0], profile, report.tflm.get("total", 0) / KIB)
    axes[0].set_title(report.file or "Memory over the operators", parse_math=False)
    if planned:
        _plot_plan(axes[1], profile, planned)
    axes[-1].set_xlabel("operator")
    axes[-1].set_xlim(-0.5, len(profile.live) + 0.5)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _plot_live(axis, profile, arena):
    live = np.array(profile.live) / KIB
    peak = profile.peak_operator
    top = max(live[peak], arena)
    on_the_left = peak < len(live) / 2
    axis.bar(range(len(live)), live, width=1.0, color=USUAL, linewidth=0)
    axis.bar([peak], live[peak], width=1.0, color=PEAK, linewidth=0)
    axis.set_ylim(0, HEADROOM * max(top, 1))
    line_from = (0.0, 0.0) if on_the_left else (1.0, 0.0)
    axis.annotate(
        f"peak: {live[peak]:,.0f} KiB alive at operator {peak}, {profile.names[peak]}",
        (peak, live[peak]),
        xytext=(peak, 1.2 * top),
        ha="left" if on_the_left else "right",
        va="center",
        color=PEAK,
        arrowprops={"arrowstyle": "-", "color": PEAK, "shrinkB": 0, "relpos": line_from},
    )
    if arena:
        axis.axhline(arena, color="#333333", linewidth=1, linestyle="--")
        axis.text(
            len(live) if on_the_left else 0,
            arena * 1.01,
            f"arena of TFLM with its persistent allocations: {arena:,.0f} KiB",
            ha="right" if on_the_left else "left",
            va="bottom",
        )
    axis.set_ylabel("alive, KiB")


def _plot_plan(axis, profile, planned):
    from matplotlib.patches import Rectangle

    axis.set_ylabel("place in the arena, KiB")
    axis.set_ylim(0, 1.05 * planned / KIB)
    for tensor, offset in profile.offsets.items():
        first, last = profile.lifetimes[tensor]
        at_the_peak = first <= profile.peak_operator <= last
        axis.add_patch(
            Rectangle(
                (first - 0.5, offset / KIB),
                last - first + 1,
                profile.sizes[tensor] / KIB,
                facecolor=PEAK if at_the_peak else USUAL,
                edgecolor="white",
                linewidth=0.5,
            )
        )
