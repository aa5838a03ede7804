"""The tables and the picture of what `compare.py` found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddunet_keras.evaluation import markdown_table
from ddunet_keras.plots import plot_tradeoffs

NOTHING = ""
"""What stands in a table where nothing is known."""

PAPER_SCORES = {
    "ddunet_c8": (95.3, 88.4, "the authors' lists, which leak; means over images"),
    "masegcloud": (96.9, 94.0, "its own paper's: 9:1 over images, which leaks; pooled"),
}
"""Accuracy and MIoU, percent, that Table I of the DDUNet paper has, and how they came about."""


# === Figures of a network over the seeds ===


def runs_of(result: dict, name: str) -> list[dict]:
    return [run for run in result["runs"] if run["network"] == name]


def first_split(result: dict) -> dict:
    """The results on the first seed's split alone, which all networks have: splits differ by more
    than networks do."""
    seeds = [run["seed"] for run in result["runs"]]
    return {**result, "runs": [run for run in result["runs"] if run["seed"] == seeds[0]]}


def networks(result: dict) -> list[str]:
    """Those with a run, the smallest first."""
    parameters = {run["network"]: run["parameters"] for run in result["runs"]}
    return sorted(parameters, key=parameters.__getitem__)


def values(
    runs: Iterable[dict], data: str, score: str, dtype: str = "float32", group: str | None = None
) -> list[float]:
    """A score of each run, percent.

    Args:
        data: name of the data set.
        score: as `benchmark` names it.
        dtype: "float32", or "int8" (of the runs that have an int8 file).
        group: "day", "night", or None for all images.
    """
    found = []
    for run in runs:
        rows = [row for row in run["rows"] if (row["data"], row["dtype"]) == (data, dtype)]
        if group is not None:
            rows = [row for row in rows if row["group"] == group]
        if rows:
            found.append(100 * rows[-1][score])  # the last group holds all images
    return found


def spread(found: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Mean and, of two values or more, standard deviation; `sign` "+" shows that of the mean."""
    if not found:
        return NOTHING
    mean = f"{np.mean(found):{sign},.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {np.std(found, ddof=1):,.{digits}f}"


def int8_values(runs: Iterable[dict], target: str, figure: str) -> list[float]:
    """A figure of the conversions for a target, of the runs that have it."""
    found = [run["int8"][target][figure] for run in runs]
    return [value for value in found if value is not None]


def int8_differences(runs: Iterable[dict], data: str) -> list[float]:
    """Accuracy in int8 less that in float, points, of the runs that have an int8 file."""
    with_file = [run for run in runs if values([run], data, "accuracy", "int8")]
    int8, floats = (values(with_file, data, "accuracy", kind) for kind in ("int8", "float32"))
    return [own - other for own, other in zip(int8, floats, strict=True)]


# === Tables ===


def comparison_markdown(result: dict[str, Any]) -> str:
    """All tables, of a comparison that is complete or not."""
    settings = result["settings"]
    data = settings["data"]
    parts = [
        "# Networks trained alike",
        f"`{result['command']}`",
        f"{settings['size']} px, {settings['epochs']} epochs, recipe {settings['recipe']}, "
        f"protocol {settings['protocol']} of {data}. In percent, on the split of the first seed, "
        "which all networks have, where a table does not say otherwise. Accuracy, F and MIoU: "
        "means over images, F of mean precision and mean recall; scored at the masks' own size.",
        *trained_otherwise(result),
    ]
    if result["runs"]:
        first = first_split(result)
        parts += ["## Test days", accuracy_table(first, data)]
        if any(values([run], data, "accuracy", group="day") for run in first["runs"]):
            parts += ["## Day and night apart", group_table(first, data)]
        parts += other_photos(first)
        parts += ["## int8", INT8_NOTE, int8_table(first, data)]
        if len(first["runs"]) < len(result["runs"]):
            parts += ["## Over the splits", SPLITS_NOTE, splits_table(result, data)]
        parts += ["## The paper's figures beside these", PAPER_NOTE, paper_table(first, data)]
    if result["failures"]:
        lines = [[row["network"], row["seed"], row["reason"]] for row in result["failures"]]
        table = "\n".join(markdown_table(("Network", "Seed", "Reason"), lines))
        parts += ["## What failed", table]
    return "\n\n".join(parts) + "\n"


INT8_NOTE = (
    "Accuracy and milliseconds (LiteRT with XNNPACK, one thread of this machine, the network "
    "alone) are of target cpu; agreement of the masks with the float model's, file and arena of "
    "target tflm. Refused: what `ddunet convert` would not write, and why."
)

SPLITS_NOTE = "Mean ± standard deviation; of the networks that were trained on several splits."

PAPER_NOTE = (
    "The paper's figures are of other splits, sizes and trainings, and most are quoted from other "
    "papers: they are no target for those beside them."
)


def trained_otherwise(result: dict) -> list[str]:
    """What was not trained alike, a line each."""
    titles = result["titles"]
    lines = [
        f"{titles[name]} is trained with a learning rate of {rate:g}."
        for name, rate in result["own_learning_rates"].items()
    ]
    if result["mixed_precision"]:
        named = ", ".join(titles[name] for name in result["mixed_precision"])
        lines.append(f"Trained in mixed precision: {named}.")
    return lines


def accuracy_table(result: dict, data: str) -> str:
    header = (
        *("Network", "Parameters", "MACs, million"),
        *("Accuracy", "F", "MIoU", "MIoU, pooled"),
    )
    lines = []
    for name in networks(result):
        runs = runs_of(result, name)
        scores = ("accuracy", "f1", "miou", "pooled_miou")
        lines.append(
            [
                result["titles"][name],
                f"{runs[0]['parameters']:,}",
                NOTHING if runs[0]["macs"] is None else f"{runs[0]['macs'] / 1e6:,.0f}",
                *(spread(values(runs, data, score)) for score in scores),
            ]
        )
    return "\n".join(markdown_table(header, lines))


def splits_table(result: dict, data: str) -> str:
    header = ("Network", "Splits", "Accuracy", "MIoU", "int8 less float")
    lines = []
    for name in networks(result):
        runs = runs_of(result, name)
        if len(runs) > 1:
            scores = [spread(values(runs, data, score)) for score in ("accuracy", "miou")]
            difference = spread(int8_differences(runs, data), digits=2, sign="+")
            lines.append([result["titles"][name], len(runs), *scores, difference])
    return "\n".join(markdown_table(header, lines))


def group_table(result: dict, data: str) -> str:
    columns = [(group, score) for group in ("day", "night") for score in ("accuracy", "miou")]
    header = ("Network", "Day: accuracy", "MIoU", "Night: accuracy", "MIoU")
    lines = []
    for name in networks(result):
        runs = runs_of(result, name)
        cells = [spread(values(runs, data, score, group=group)) for group, score in columns]
        lines.append([result["titles"][name], *cells])
    return "\n".join(markdown_table(header, lines))


def other_photos(result: dict) -> list[str]:
    """The table of cameras and of the whole-sky data set, where there are any."""
    settings = result["settings"]
    whole_sky = settings["whole_sky"]
    if not whole_sky and not settings["cameras"]:
        return []
    header = ["Network"]
    if whole_sky:
        header += [f"{whole_sky}: accuracy", "MIoU"]
    for camera in settings["cameras"]:
        header += camera_header(result, camera)
    lines = []
    for name in networks(result):
        runs = runs_of(result, name)
        line = [result["titles"][name]]
        if whole_sky:
            line += [spread(values(runs, whole_sky, score)) for score in ("accuracy", "miou")]
        for camera in settings["cameras"]:
            line += camera_cells(runs, camera)
        lines.append(line)
    return [
        "## Other cameras",
        "Nothing was trained on these. Of frames with a word for the sky, the share whose cover is "
        "right.",
        "\n".join(markdown_table(header, lines)),
    ]


def camera_rows(runs: Iterable[dict], camera: str) -> list[dict]:
    """The float model's row of each run."""
    rows = [row for run in runs for row in run["cameras"]]
    return [row for row in rows if (row["camera"], row["dtype"]) == (camera, "float32")]


def camera_header(result: dict, camera: str) -> list[str]:
    if any("words" in row for row in camera_rows(result["runs"], camera)):
        return [f"{camera}: right"]
    return [f"{camera}: accuracy", "MIoU"]


def camera_cells(runs: Iterable[dict], camera: str) -> list[str]:
    """Cells for the columns of `camera_header`."""
    rows = camera_rows(runs, camera)
    if any("words" in row for row in rows):
        shares = []
        for row in rows:
            judged = [word for word in row["words"].values() if word["right"] is not None]
            right = sum(word["right"] for word in judged)
            if judged:  # of some words, no cover is right or wrong
                shares.append(100 * right / sum(word["frames"] for word in judged))
        return [spread(shares)]
    cells = []
    for score in ("accuracy", "miou"):
        # None: the model calls no frame usable
        found = [100 * row[score] for row in rows if row[score] is not None]
        cells.append(spread(found))
    return cells


def int8_table(result: dict, data: str) -> str:
    header = (
        *("Network", "Accuracy", "less float's", "Masks that agree", "Worst photo"),
        *("File, kB", "Arena, KiB", "ms", "Ethos-U55, ms", "Refused"),
    )
    lines = []
    for name in networks(result):
        runs = runs_of(result, name)
        int8 = values(runs, data, "accuracy", "int8")
        differences = int8_differences(runs, data)
        milliseconds = result["milliseconds"].get(name)
        lines.append(
            [
                result["titles"][name],
                spread(int8),
                spread(differences, digits=2, sign="+"),
                spread(int8_values(runs, "tflm", "agreement"), digits=2),
                spread(sorted(int8_values(runs, "tflm", "least_agreement"))[:1]),
                spread([size / 1000 for size in int8_values(runs, "tflm", "bytes")[:1]], digits=0),
                spread([size / 1024 for size in int8_values(runs, "tflm", "arena")[:1]], digits=0),
                NOTHING if milliseconds is None else f"{milliseconds:.2f}",
                ethos_u_cell(result["ethos_u"].get(name)),
                refusals(runs),
            ]
        )
    return "\n".join(markdown_table(header, lines))


def ethos_u_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return NOTHING
    if "refused" in found:
        return f"refused: {found['refused']}"
    milliseconds = f"{found['milliseconds']:.1f}"
    left = found["cpu_operators"]
    return f"{milliseconds} and {left} operators on the CPU" if left else milliseconds


def refusals(runs: Sequence[dict]) -> str:
    """For which targets and seeds no file was written, and why."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        for target, found in run["int8"].items():
            if found["refused"]:
                reasons.setdefault(found["refused"], []).append(f"{target}, seed {run['seed']}")
    return "; ".join(f"{' and '.join(where)}: {reason}" for reason, where in reasons.items())


def paper_table(result: dict, data: str) -> str:
    header = (
        *("Network", "Parameters, million", "Table I", "Accuracy", "Table I", "MIoU", "Table I"),
        "Protocol of Table I's",
    )
    lines = []
    for name in networks(result):
        runs = runs_of(result, name)
        paper = result["paper_parameters"][name]
        accuracy, miou, protocol = PAPER_SCORES.get(name, (NOTHING, NOTHING, NOTHING))
        lines.append(
            [
                result["titles"][name],
                f"{runs[0]['parameters'] / 1e6:.3f}",
                NOTHING if paper is None else f"{paper:g}",
                spread(values(runs, data, "accuracy")),
                accuracy,
                spread(values(runs, data, "miou")),
                miou,
                protocol,
            ]
        )
    return "\n".join(markdown_table(header, lines))


# === The picture ===


def plot_comparison(result: dict[str, Any], path: Path) -> None:
    """Draws the accuracy of int8 files over arena and latency, of the networks that have both, on
    the first split."""
    first = first_split(result) if result["runs"] else result
    points = []
    for name in networks(first):
        runs = runs_of(first, name)
        accuracy = values(runs, result["settings"]["data"], "accuracy", "int8")
        arenas = int8_values(runs, "tflm", "arena")
        milliseconds = result["milliseconds"].get(name)
        if accuracy and arenas and milliseconds is not None:
            points.append(
                {
                    "name": result["titles"][name],
                    "accuracy": accuracy[0] / 100,
                    "arena": arenas[0],
                    "milliseconds": milliseconds,
                }
            )
    if points:
        plot_tradeoffs(points, path)
