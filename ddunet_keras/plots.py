"""Pictures of a training and an evaluation, in colours that colour-blind readers tell apart.

The figures are drawn on matplotlib's Agg canvas directly: no display, no pyplot state.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ddunet_keras.files import IGNORE, DataError, atomic_path

# Okabe and Ito's palette: distinct with every kind of colour vision
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def _figure(width, height):
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colors(items):
    palette = (BLUE, ORANGE, GREEN, PURPLE)
    return [palette[k % len(palette)] for k in range(len(items))]


def _save(figure, path):
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _panel(axes, title, xlabel, ylabel):
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def read_history(path) -> dict[str, list[float]]:
    """Reads the history.csv of a training: one column a quantity, one row an epoch.

    An empty cell (a quantity not measured in that epoch) is NaN.

    Raises:
        DataError: no such file, no row, a ragged row or something that is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file, a history.csv of a training was expected")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file) if row]
        columns = zip(*([float(cell or "nan") for cell in row] for row in rows), strict=True)
        history = {name: list(v) for name, v in zip(header, columns, strict=True)}
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a history.csv with a header and epochs ({error})") from None
    return history


def plot_history(history, path) -> None:
    """Draws loss, accuracy and MIoU, and learning rate over the epochs, training and validation.

    Args:
        history: Keras's `History.history` or the path of a history.csv. Drawn are loss, every
            quantity whose name ends in accuracy or iou, with their val_ pairs, and learning_rate;
            what is missing is not drawn.
        path: of the PNG.

    Raises:
        ValueError: no epoch, lengths that differ, or no loss.

    Example:

    >>> plot_history({"loss": [0.6, 0.4], "val_loss": [0.7, 0.5]}, tmp / "curves.png")
    """
    if isinstance(history, (str, os.PathLike)):
        history = read_history(history)
    lengths = {name: len(values) for name, values in history.items()}
    if not history.get("loss") or len(set(lengths.values())) != 1:
        raise ValueError(
            "history must hold loss and as many values of each quantity, one an epoch; received "
            f"{lengths}"
        )
    epoch = np.arange(1, len(history["loss"]) + 1)

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
    for axes, (title, ylabel, names) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, color in zip(names, _colors(names), strict=True):
            label = "MIoU" if name.lower() in ("miou", "mean_iou") else name.replace("_", " ")
            for key, style, part in ((name, "--", "training"), (f"val_{name}", "-", "validation")):
                if key not in history:
                    continue
                values = np.asarray(history[key], float)
                measured = np.isfinite(values)
                marker = "o" if measured.sum() < 15 else None
                axes.plot(
                    epoch[measured],
                    values[measured],
                    style if f"val_{name}" in history else "-",
                    color=color,
                    marker=marker,
                    label=f"{label}, {part}",
                )
        _panel(axes, title, "epoch", ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if names != ["learning_rate"]:
            axes.legend(fontsize=9)
    _save(figure, path)


def plot_curves(curves, path, *, threshold=None) -> None:
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
    for (name, curve), color in zip(curves.items(), _colors(curves), strict=True):
        recall, precision = curve["recall"], curve["precision"]
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


def plot_sheet(rows, path, *, num_classes=2) -> None:
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
    grays = np.linspace(40, 255, num_classes).astype(np.uint8)
    more, less = IGNORE - 2, IGNORE - 1
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    palette[:num_classes] = grays[:, None]
    for label, color in ((more, ORANGE), (less, BLUE), (IGNORE, PURPLE)):
        palette[label] = np.rint(255 * np.array(to_rgb(color)))

    figure = _figure(max(5.2 * count, 7), 2.2 * len(rows) + 0.9)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        for axes, (title, photo, truth, prediction) in zip(line, row, strict=False):
            judged = np.where(prediction > truth, more, np.where(prediction < truth, less, truth))
            judged[truth == IGNORE] = IGNORE
            # a gray frame parts white clouds from the white page
            edge = max(1, truth.shape[1] // 80)
            frame = ((edge, edge), (edge, edge), (0, 0))
            panels = (photo, palette[truth], palette[judged])
            panels = [np.pad(panel, frame, constant_values=128) for panel in panels]
            axes.imshow(np.concatenate(panels, axis=1), interpolation="nearest")
            axes.set_title(f"{name}: {title}", fontsize=9, loc="left")
    clouds = ["cloud"] if num_classes == 2 else [f"cloud {k}" for k in range(1, num_classes)]
    legend = dict(zip(["sky", *clouds], (f"{gray / 255}" for gray in grays), strict=True))
    legend |= {"too much cloud": ORANGE, "too little cloud": BLUE, "ignored": PURPLE}
    handles = [Patch(facecolor=v, edgecolor="gray", label=k) for k, v in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle("Photo, truth, prediction")
    _save(figure, path)


def plot_benchmark(rows, path) -> None:
    """Draws the accuracy of int8 files over their TFLM arena and over the time a photo takes.

    Args:
        rows: of `ddunet_keras.benchmark`; those with an arena and milliseconds are drawn, each
            file once for each data set, at its group of all images.
        path: of the PNG.

    Raises:
        ValueError: no row has both.
    """
    last = {(row["file"], row["data"]): row for row in rows if row.get("arena")}
    if not last:
        raise ValueError("no row has an arena: the int8 files lie in tflite/models of a clone")
    lines = {}
    for row in last.values():
        kind = f"{row['model']}, {row['data']}, {row['protocol']}"
        lines.setdefault(kind, []).append(row)
    figure = _figure(10, 4.6)
    pair = figure.subplots(1, 2, sharey=True)
    palette = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#000000")
    for number, (kind, line) in enumerate(lines.items()):
        line.sort(key=lambda row: row["arena"])
        scores = [100 * row["accuracy"] for row in line]
        color = palette[number % len(palette)]
        for axes, costs in zip(
            pair,
            ([row["arena"] / 1024 for row in line], [row["milliseconds"] for row in line]),
            strict=True,
        ):
            axes.plot(costs, scores, "o-", color=color, label=kind)
            for row, cost, score in zip(line, costs, scores, strict=True):
                axes.annotate(
                    row["size"][0], (cost, score), (0, 5), textcoords="offset points", fontsize=8
                )
    for axes, label in zip(pair, ("TFLM arena, KiB", "ms a photo, one thread"), strict=True):
        _panel(axes, "", label, "accuracy, %, image mean")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*pair[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("int8 files by input size in pixels")
    _save(figure, path)
