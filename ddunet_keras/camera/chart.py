"""The chart of a day: cloud cover over light and darkness, the frames, their keogram."""

from __future__ import annotations

import html
import io
from datetime import timedelta
from itertools import groupby

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ddunet_keras.camera.day import Day, clock, periods
from ddunet_keras.camera.sun import LIGHTS, Place, light, moon_elevation
from ddunet_keras.files import StrPath, atomic_path

# after Okabe and Ito's palette: distinct with every kind of colour vision, and hatched besides
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GRAY = "#666666"

LIGHT_COLORS = dict(
    zip(
        (name for name, _ in LIGHTS),
        ("#FFF8DC", "#E3E7F1", "#CBD3E6", "#B1BCD8", "#97A5C9"),
        strict=True,
    )
)
"""Behind the cover: light enough that its line stands out at night, too."""

FRAME_KINDS = {
    "measured": {"facecolor": BLUE},
    "not usable": {"facecolor": "#F3C9A9", "edgecolor": ORANGE, "hatch": "////"},
}
SAFE_KINDS = {
    "safe": {"facecolor": GREEN},
    "unsafe": {"facecolor": "#F3C9A9", "edgecolor": ORANGE, "hatch": "////"},
}

HOURS_A_TICK = 3
MINUTES_A_LIGHT = 4
"""Time between two looks at sun and moon, which is a degree of the earth's turn."""

TOP = 110
MOON_HEIGHT = 106
"""Upper end of the cover's axis, and where on it the line of the moon is, percent."""

KEOGRAM_COLUMNS = 720
KEOGRAM_ROWS = 96
"""Pixels of the keogram: a column for each two minutes."""

OPAQUE = 255

SVG_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
"""Nothing: a report of the same log is the same file."""


def draw_chart(day: Day, place: Place | None = None) -> Figure:
    """Draws a day.

    From above: cloud cover and confidence, before day, twilight and night; which frames were
    measured; when it was safe, if the log says so; a keogram of the overlays. Missing time is
    empty in all of them.

    Args:
        place: where the camera stands; without it, neither sun nor moon are shown.

    Example:

    >>> from datetime import datetime, timezone
    >>> from ddunet_keras.camera.day import Measurement
    >>> noon = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
    >>> figure = draw_chart(Day((Measurement(noon, 40.0, True),), tmp, tmp / "day.jsonl"))
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['cloud cover, %', 'frames', 'confidence']
    """
    keogram = draw_keogram(day)
    rows = {"cover": 6.0, "frames": 0.35}
    if any(one.safe is not None for one in day.measurements):
        rows["safety"] = 0.35
    if keogram is not None:
        rows["keogram"] = 1.6
    figure = Figure(figsize=(10, 0.6 * sum(rows.values()) + 1), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows), 1, sharex=True, squeeze=False, height_ratios=list(rows.values())
    )
    panels = dict(zip(rows, grid[:, 0], strict=True))
    handles = _draw_lights(panels["cover"], day, place)
    handles += _draw_cover(panels["cover"], day)
    kinds = ["measured" if known else "not usable" for known in np.isfinite(day.percents)]
    handles += _draw_band(panels["frames"], day, kinds, FRAME_KINDS, "frames")
    if "safety" in panels:
        names = {True: "safe", False: "unsafe", None: "unknown"}
        kinds = [names[one.safe] for one in day.measurements]
        handles += _draw_band(panels["safety"], day, kinds, SAFE_KINDS, "roof")
    if keogram is not None:
        axes = panels["keogram"]
        axes.imshow(keogram, extent=(0, day.length, 0, 1), aspect="auto", interpolation="nearest")
        axes.set(yticks=[])
        _label(axes, "keogram")
    for axes in grid[:-1, 0]:
        axes.tick_params(bottom=False)
    ticks = range(0, day.length + 1, HOURS_A_TICK)
    grid[-1, 0].set(
        xlim=(0, day.length),
        xticks=ticks,
        xticklabels=[clock(day, tick) for tick in ticks],
        xlabel=f"{day.date}, {day.offset}",
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, rotation="horizontal", ha="right", va="center", fontsize=9)


def _draw_lights(axes, day, place):
    """Day, twilight and night behind the cover, and when the moon is up above it."""
    if place is None:
        return []
    step = MINUTES_A_LIGHT / 60
    begins = np.arange(0, day.length, step)
    times = [day.start + timedelta(hours=begin + step / 2) for begin in begins.tolist()]
    lights = [light(place, time) for time in times]
    for name, group in groupby(zip(begins, lights, strict=True), key=lambda pair: pair[1]):
        run = [begin for begin, _ in group]
        color = LIGHT_COLORS[name]
        # no soft edges: the page would shine through between two of them
        axes.axvspan(run[0], run[-1] + step, color=color, linewidth=0, antialiased=False)
    handles = [
        Patch(facecolor=LIGHT_COLORS[name], edgecolor=GRAY, linewidth=0.5, label=name)
        for name, _ in LIGHTS
        if name in lights
    ]
    up = [moon_elevation(place, time) > 0 for time in times]
    heights = np.where(up, MOON_HEIGHT, np.nan)
    axes.plot(begins + step / 2, heights, color=GRAY, linewidth=2)
    return [*handles, Line2D([], [], color=GRAY, linewidth=2, label="moon up")]


def _draw_cover(axes, day):
    """Cover as a line that ends where it is not known, and confidence as a faint one."""
    hours, percents = _with_gaps(day, day.percents)
    axes.fill_between(hours, percents, color=BLUE, alpha=0.3, linewidth=0)
    axes.plot(hours, percents, color=BLUE, linewidth=1.5)
    axes.set(ylim=(0, TOP), yticks=range(0, 101, 20), ylabel="cloud cover, %")
    axes.grid(axis="y", alpha=0.4)
    values = [np.nan if one.confidence is None else one.confidence for one in day.measurements]
    hours, confidences = _with_gaps(day, np.array(values, float))
    right = axes.twinx()
    right.plot(hours, confidences, color=GRAY, linewidth=0.8, linestyle=":")
    right.set(ylim=(0, TOP / 100), yticks=[0, 0.5, 1], ylabel="confidence")
    return [
        Patch(facecolor=BLUE, alpha=0.6, label="cloud cover"),
        Line2D([], [], color=GRAY, linewidth=0.8, linestyle=":", label="confidence"),
    ]


def _with_gaps(day, values):
    """Hours and values of a line that stays level while a measurement stands, and has NaN after
    it where time is missing."""
    hours = np.stack([day.hours, day.ends, day.ends], axis=1)
    is_followed = np.append(np.isclose(day.ends[:-1], day.hours[1:], atol=1e-9, rtol=0), False)
    after = np.where(is_followed, values, np.nan)
    return hours.ravel(), np.stack([values, values, after], axis=1).ravel()


def _draw_band(axes, day, kinds, styles, name):
    """Coloured stretches of time; a kind without a style stays empty."""
    found = periods(day, kinds)
    for kind, style in styles.items():
        bars = [(begin, end - begin) for begin, end, what in found if what == kind]
        axes.broken_barh(bars, (0, 1), linewidth=0, **style)
    axes.set(ylim=(0, 1), yticks=[])
    _label(axes, name)
    return [Patch(label=kind, linewidth=0, **style) for kind, style in styles.items()]


def draw_keogram(day: Day) -> np.ndarray | None:
    """The middle columns of a day's overlays beside each other.

    Returns:
        uint8 (`KEOGRAM_ROWS`, `KEOGRAM_COLUMNS`, 4), RGBA, transparent where there is no overlay;
        None where there is none at all.
    """
    width = day.length / KEOGRAM_COLUMNS
    begins = np.arange(KEOGRAM_COLUMNS) * width
    newest = np.searchsorted(day.hours, begins + width) - 1  # before the column's end
    stands = (newest >= 0) & (day.ends[newest] > begins)
    keogram = np.zeros((KEOGRAM_ROWS, KEOGRAM_COLUMNS, 4), np.uint8)
    for index in np.unique(newest[stands]):
        picture = day.thumbnail(day.measurements[index])
        if picture is not None:
            middle = picture.width / 2
            strip = picture.resize(
                (1, KEOGRAM_ROWS), box=(middle - 1, 0, middle + 1, picture.height)
            )
            columns = stands & (newest == index)
            keogram[:, columns, :3] = np.asarray(strip)
            keogram[:, columns, 3] = OPAQUE
    return keogram if keogram.any() else None


def chart_svg(figure: Figure, title: str) -> str:
    """A figure as an SVG element for a web page.

    Args:
        title: what screen readers say of it, without markup.
    """
    file = io.StringIO()
    # text stays text; the names of parts follow from the content
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ddunet"}):
        figure.savefig(file, format="svg", metadata=SVG_METADATA)
    text = file.getvalue()
    element = text[text.index("<svg ") :]
    label = html.escape(title, quote=True)
    return element.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def write_chart(figure: Figure, path: StrPath) -> None:
    """Writes a figure as PNG.

    Raises:
        WriteError: it cannot be written there.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
