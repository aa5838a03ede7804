"""Pictures of a training and an evaluation, in colours that colour-blind readers tell apart.

The figures are drawn on matplotlib's Agg canvas directly: no display, no pyplot state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ddunet_keras.files import IGNORE, StrPath, atomic_path, printable

# Okabe and Ito's palette: distinct with every kind of colour vision
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#000000")

TOO_MUCH = IGNORE - 2
TOO_LITTLE = IGNORE - 1
"""Labels that stand for errors while a sheet is drawn."""


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: StrPath) -> None:
    """Writes the picture; every text is drawn as it is, whatever the names of files hold."""
    for artist in figure.findobj(Text):
        if isinstance(artist, Text):
            artist.set_parse_math(False)
            artist.set_text(printable(artist.get_text()))
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # a box stands for what the font lacks, such as Chinese
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary)


def _panel(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


History = Mapping[str, Sequence[float]]
"""Values of each quantity, one an epoch: Keras's `History.history`."""


def plot_history(history: History, path: StrPath) -> None:
    """Draws loss, accuracy and MIoU, and learning rate over the epochs, training and validation.

    Args:
        history: Keras's `History.history`. Drawn are loss, every quantity whose name ends in
            accuracy or iou, with their val_ pairs, and learning_rate; what is missing is not drawn.
        path: of the PNG.

    Raises:
        ValueError: no epoch, lengths that differ, or no loss.

    Example:

    >>> plot_history({"loss": [0.6, 0.4], "val_loss": [0.7, 0.5]}, tmp / "curves.png")
    """
    lengths = {name: len(values) for name, values in history.items()}
    if not history.get("loss") or len(set(lengths.values())) != 1:
        raise ValueError(
            "history must hold loss and as many values of each quantity, one an epoch; received "
            f"{lengths}"
        )
    scores = [
        name
        for name in history
        if name.lower().endswith(("accuracy", "iou")) and not name.startswith("val_")
    ]
    panels = [("Loss", "loss", ["loss"])]
    if scores:
        panels.append(("Scores", "score (0 to 1)", scores))
    if "learning_rate" in history:
        panels.append(("Learning rate", "learning rate", ["learning_rate"]))

    figure = _figure(4.6 * len(panels), 3.8)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, ylabel, names) in zip(row, panels, strict=True):
        for name, color in zip(names, cycle(COLORS), strict=False):
            _plot_quantity(axes, history, name, color)
        _panel(axes, title, "epoch", ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if names != ["learning_rate"]:
            axes.legend(fontsize=9)
    _save(figure, path)


def _plot_quantity(axes, history, name, color):
    """A quantity over the epochs, and where it was validated, that as a full line."""
    label = "MIoU" if name.lower() in ("miou", "mean_iou") else name.replace("_", " ")
    validated = f"val_{name}" in history
    lines = [(name, "training", "--" if validated else "-")]
    if validated:
        lines.append((f"val_{name}", "validation", "-"))
    for key, part, style in lines:
        values = np.asarray(history[key], float)
        epochs = np.arange(1, len(values) + 1)
        measured = np.isfinite(values)
        axes.plot(
            epochs[measured],
            values[measured],
            style,
            color=color,
            marker="o" if measured.sum() < 15 else None,
            label=f"{label}, {part}",
        )


def plot_curves(
    curves: Mapping[str, Mapping[str, Any]], path: StrPath, *, threshold: float | None = None
) -> None:
    """Draws the precision-recall and the ROC curve of each set of images.

    Args:
        curves: name of the set -> result of `metrics.curves`.
        path: of the PNG.
        threshold: where a dot marks each curve, in [0, 1].

    Raises:
        ValueError: no set.

    Example:

    >>> from ddunet_keras.metrics import curve_counts, curves
    >>> curve = curves(curve_counts(np.array([0.2, 0.6, 0.8]), np.array([0, 0, 1])))
    >>> plot_curves({"night": curve}, tmp / "curves.png", threshold=0.5)
    """
    if not curves:
        raise ValueError(f"curves must hold at least one set; received {curves!r}")
    figure = _figure(10, 5.2)
    left, right = figure.subplots(1, 2)
    for (name, curve), color in zip(curves.items(), cycle(COLORS), strict=False):
        recall = curve["recall"]
        precision = curve["precision"]
        fall_out = curve["false_positive_rate"]
        label = f"{name}, average precision {curve['average_precision']:.3f}"
        left.plot(recall, precision, color=color, label=label)
        label = f"{name}, area {curve['roc_auc']:.3f}"
        right.plot(np.append(0, fall_out), np.append(0, recall), color=color, label=label)
        if threshold is not None:
            here = np.abs(curve["thresholds"] - threshold).argmin()
            left.plot(recall[here], precision[here], "o", color=color)
            right.plot(fall_out[here], recall[here], "o", color=color)
    right.plot([0, 1], [0, 1], ":", color="gray", label="chance")
    dot = "" if threshold is None else f" (dot: threshold {threshold:g})"
    _panel(left, f"Precision and recall of cloud pixels{dot}", "recall", "precision")
    _panel(right, f"ROC of cloud pixels{dot}", "false positive rate", "true positive rate (recall)")
    for axes, place in ((left, "lower left"), (right, "lower right")):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(loc=place, fontsize=9)
    _save(figure, path)


Entry = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""An image of a sheet: title, photo (h, w, 3), truth and prediction (h, w)."""


def plot_sheet(rows: Mapping[str, Sequence[Entry]], path: StrPath, *, num_classes: int = 2) -> None:
    """Draws photo, truth and prediction of images, with the errors coloured.

    Args:
        rows: name of the row -> list of (title, photo, truth, prediction): uint8 (h, w, 3) RGB and
            two label maps of the same (h, w); ignored pixels of the truth are marked in both.
        path: of the PNG.
        num_classes: 2 or more; a class is the lighter the higher its number.

    Raises:
        ValueError: no image.

    Example:

    >>> photo, truth = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8)
    >>> plot_sheet({"worst": [("d0001", photo, truth, 1 - truth)]}, tmp / "sheet.png")
    """
    count = max((len(row) for row in rows.values()), default=0)
    if not count:
        raise ValueError(f"rows must hold at least one image; received {rows!r}")
    palette = _label_colors(num_classes)
    figure = _figure(max(5.2 * count, 7), 2.2 * len(rows) + 0.9)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        for axes, (title, photo, truth, prediction) in zip(line, row, strict=False):
            panels = [photo, palette[truth], palette[_judge(truth, prediction)]]
            axes.imshow(_side_by_side(panels), interpolation="nearest")
            axes.set_title(f"{name}: {title}", fontsize=9, loc="left")
    handles = [
        Patch(facecolor=color, edgecolor="gray", label=label)
        for label, color in _legend(num_classes, palette)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle("Photo, truth, prediction")
    _save(figure, path)


def _label_colors(num_classes):
    """(256, 3), uint8: gray of each class, the lighter the denser, and colours of the errors."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:num_classes] = np.linspace(40, 255, num_classes).astype(np.uint8)[:, None]
    for label, color in ((TOO_MUCH, ORANGE), (TOO_LITTLE, BLUE), (IGNORE, PURPLE)):
        palette[label] = np.rint(255 * np.array(to_rgb(color)))
    return palette


def _judge(truth, prediction):
    """The truth where it was met, and the kind of the error where it was not."""
    judged = truth.copy()
    judged[prediction > truth] = TOO_MUCH
    judged[prediction < truth] = TOO_LITTLE
    judged[truth == IGNORE] = IGNORE
    return judged


def _side_by_side(pictures):
    """One picture of several; a gray frame parts white clouds from the white page."""
    edge = max(1, pictures[0].shape[1] // 80)
    frame = ((edge, edge), (edge, edge), (0, 0))
    return np.concatenate([np.pad(p, frame, constant_values=128) for p in pictures], axis=1)


def _legend(num_classes: int, palette: np.ndarray) -> Iterator[tuple[str, Any]]:
    clouds = ["cloud"] if num_classes == 2 else [f"cloud {k}" for k in range(1, num_classes)]
    labels = [*range(num_classes), TOO_MUCH, TOO_LITTLE, IGNORE]
    names = ["sky", *clouds, "too much cloud", "too little cloud", "ignored"]
    for name, label in zip(names, labels, strict=True):
        yield name, palette[label] / 255


def plot_benchmark(rows: Sequence[Mapping[str, Any]], path: StrPath) -> None:
    """Draws the accuracy of int8 files over their TFLM arena and over the time a photo takes.

    Args:
        rows: of `ddunet_keras.benchmark`; those with an arena and milliseconds are drawn, each
            file once for each data set, at its group of all images.
        path: of the PNG.

    Raises:
        ValueError: no row has both.

    Example:

    >>> costs = {"arena": 300_000, "milliseconds": 2.5, "accuracy": 0.9, "size": (96, 96)}
    >>> about = {"file": "c4_96.tflite", "model": "c4", "data": "skies", "protocol": "date"}
    >>> plot_benchmark([about | costs], tmp / "benchmark.png")
    """
    # the last row of a file and a data set is that of all images
    last = {(row["file"], row["data"]): row for row in rows if row.get("arena")}
    if not last:
        raise ValueError("no row has an arena: the int8 files lie in tflite/models of a clone")
    lines: dict[str, list] = {}
    for row in sorted(last.values(), key=lambda row: row["arena"]):
        kind = f"{row['model']}, {row['data']}, {row['protocol']}"
        lines.setdefault(kind, []).append(row)

    figure = _figure(10, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for (kind, line), color in zip(sorted(lines.items()), cycle(COLORS), strict=False):
        scores = [100 * row["accuracy"] for row in line]
        sizes = [row["size"][0] for row in line]
        arenas = [row["arena"] / 1024 for row in line]
        times = [row["milliseconds"] for row in line]
        for axes, costs in ((left, arenas), (right, times)):
            axes.plot(costs, scores, "o-", color=color, label=kind)
            for size, cost, score in zip(sizes, costs, scores, strict=True):
                axes.annotate(size, (cost, score), (0, 5), textcoords="offset points", fontsize=8)
    _cost_panels(left, right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("int8 files by input size in pixels")
    _save(figure, path)


def _cost_panels(left, right):
    """Accuracy over the arena and over the time, both logarithmic."""
    for axes, label in ((left, "TFLM arena, KiB"), (right, "ms a photo, one thread")):
        _panel(axes, "", label, "accuracy, %, image mean")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def plot_tradeoffs(points: Sequence[Mapping[str, Any]], path: StrPath) -> None:
    """Draws the accuracy of networks over their TFLM arena and over the time a photo takes.

    Args:
        points: one for each network: name; accuracy, 0 to 1; arena, bytes; milliseconds.
        path: of the PNG.

    Raises:
        ValueError: there is no point.

    Example:

    >>> costs = {"arena": 300_000, "milliseconds": 2.5}
    >>> plot_tradeoffs([{"name": "c4", "accuracy": 0.9, **costs}], tmp / "tradeoffs.png")
    """
    if not points:
        raise ValueError(f"points must hold at least one network; received {points!r}")
    figure = _figure(10, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    markers = cycle("os^Dv")
    for point, color in zip(points, cycle(COLORS), strict=False):
        style = {"marker": next(markers), "color": color, "linestyle": "none"}
        for axes, cost in ((left, point["arena"] / 1024), (right, point["milliseconds"])):
            axes.plot(cost, 100 * point["accuracy"], label=point["name"], **style)
    _cost_panels(left, right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("int8 files of networks trained alike, on one split")
    _save(figure, path)
