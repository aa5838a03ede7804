"""Tables that anyone can repeat: scores of the models that ship, and variants trained alike."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ddunet_keras import __version__
from ddunet_keras.data.splits import Split, make_split, trained_on
from ddunet_keras.evaluation import evaluate, markdown_table
from ddunet_keras.files import DataError, write_json, write_text
from ddunet_keras.presets import WEIGHTS

TFLITE = Path(__file__).parents[1] / "tflite" / "models"
"""Where a clone has the int8 files: NAME_SIZE.tflite of the model NAME."""

_SCORES = ("accuracy", "precision", "recall", "f1", "miou")


def benchmark(datasets, *, weights=WEIGHTS, files=TFLITE, sizes=None, progress=None) -> dict:
    """Scores every model that ships, float and int8, on images that it was not trained on.

    A model is scored on the test part of the split that it was trained by, and of a further data
    set on what its `run.json` does not name among the images that it was trained on as well.

    Args:
        datasets: from `open_dataset`.
        weights: folder with a folder NAME for each model: NAME.keras, run.json, split.json.
        files: folder of NAME_SIZE.tflite, int8. The float model is scored at the same sizes.
        sizes: only these sides, such as (96, 256).
        progress: called with a line of text at each step, or None.

    Returns:
        "about" (versions, commit) and "rows": one for each model, data set, dtype, size and
        group ("day", "night", "day+night"), with the means over images that the paper's Table I
        has, MIoU pooled over pixels, errors of the cloud cover, and of int8 files bytes, TFLM's
        arena and milliseconds a photo (one thread, the photo's resizing included; files in turns).

    Raises:
        DataError: no model is there, or none was trained on a data set like one of these.
    """
    from ddunet_keras.model import load_model
    from ddunet_keras.segmenter import Segmenter

    say = progress or (lambda line: None)
    runs = sorted(Path(weights).glob("*/run.json"))
    if not runs:
        raise DataError(f"{weights}: holds no models; benchmark needs a clone of the repository")
    rows, segmenters = [], {}
    for path in runs:
        name, run = path.parent.name, json.loads(path.read_text(encoding="utf-8"))
        split = Split.load(path.parent / "split.json")
        int8 = {
            segmenter.image_shape[:2]: (file, segmenter)
            for file in sorted(Path(files).glob(f"{name}_[0-9]*.tflite"))
            for segmenter in [Segmenter(file, threads=1)]
            if not sizes or segmenter.image_shape[0] in sizes
        }
        shapes = sorted(int8) or [tuple(run["settings"]["image_size"])]
        places = [(dataset, *_unseen(dataset, split, path.parent)) for dataset in datasets]
        places = [place for place in places if place[1]]
        if not places:
            continue
        segmenters |= {file.name: segmenter for file, segmenter in int8.values()}
        model = load_model(path.parent / f"{name}.keras")
        floats = {shape: model.resized((*shape, 3)) for shape in shapes}
        for dataset, names, protocol in places:
            about = {
                "model": name,
                "variant": run["settings"]["variant"],
                "base_channels": run["settings"]["base_channels"],
                "protocol": protocol,
                "data": dataset.root.name,
            }
            for shape in shapes:
                forms = {"float32": (None, floats[shape])}
                forms |= {"int8": int8[shape]} if shape in int8 else {}
                for dtype, (file, predictor) in forms.items():
                    say(f"{name}, {protocol}, {dataset.root.name}, {shape}, {dtype}")
                    result = evaluate(predictor.predict_probabilities, dataset, names)
                    form = about | {"dtype": dtype, "size": list(shape)}
                    form |= _costs(file) if file is not None else {}
                    for group, scores in result.groups.items():
                        rows.append(form | {"group": group} | _row(scores))
    if not rows:
        raise DataError("no model that ships was trained on data of these layouts")
    say(f"timing {len(segmenters)} int8 files")
    milliseconds = _milliseconds(segmenters, datasets[0])
    for row in rows:
        if "file" in row:
            row["milliseconds"] = milliseconds[row["file"]]
    return {"about": _about(), "rows": rows}


def _milliseconds(segmenters, dataset, count=50):
    """Median time that each takes for a photo, in turns: a machine's pace changes with minutes."""
    samples, seconds = list(dataset), {name: [] for name in segmenters}
    for index in np.linspace(0, len(samples), min(count, len(samples)), endpoint=False, dtype=int):
        image, _ = dataset.load(samples[index])
        for name, segmenter in segmenters.items():
            start = time.perf_counter()
            segmenter.predict_probabilities(image)
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * statistics.median(taken), 1) for name, taken in seconds.items()}


def _unseen(dataset, split, folder):
    """The images of a dataset that a model may be scored on, and the protocol."""
    if dataset.layout == split.layout:
        split.check(dataset)
        return split.test, split.protocol
    if split.protocol == "paper":  # for Table I alone
        return (), None
    seen = trained_on(folder, dataset)
    names = tuple(sample.name for sample in dataset if sample.source not in seen)
    return names, "the part not trained on" if seen else "not trained on"


def _row(group):
    return {
        "images": group["images"],
        **{key: group["image_mean"][key] for key in _SCORES},
        "pooled_miou": group["pooled"]["miou"],
        "cover_error": group["cloud_cover"]["mean_absolute_error"],
        "within_1_okta": group["cloud_cover"]["share_within_1_okta"],
    }


def _costs(file):
    costs, report = {"file": file.name, "bytes": file.stat().st_size}, file.with_suffix(".json")
    if report.is_file():
        arena = json.loads(report.read_text(encoding="utf-8"))["verification"].get("arena")
        costs["arena"] = arena and arena["total"]
    return costs


def _about():
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "ddunet_keras": __version__,
        "commit": commit.stdout.strip() or None,
        "command": " ".join(["ddunet", *(Path(word).name for word in sys.argv[1:])]),
        "platform": platform.platform(),
        "averaging": "accuracy, precision, recall, MIoU: means over images; F: harmonic mean of "
        "mean precision and mean recall (the paper's); scored at the masks' own size",
    }


def _percent(value, digits=1):
    return f"{100 * value:.{digits}f}"


def _head(title, about):
    commit = f", commit {about['commit'][:12]}" if about["commit"] else ""
    return [f"# {title}", f"`{about['command']}`, version {about['ddunet_keras']}{commit}."]


def benchmark_markdown(result) -> str:
    """The tables of `benchmark`, one for each data set and protocol."""
    parts = _head("Benchmark", result["about"])
    parts.append("In percent; " + result["about"]["averaging"] + ".")
    header = ("Model", "Size", "Type", "Set", "Images", "Accuracy", "F", "MIoU")
    header += ("MIoU, pooled", "Cover error, points", "Within 1 okta", "int8 - float: accuracy")
    header += ("MIoU",)
    places = dict.fromkeys((row["data"], row["protocol"]) for row in result["rows"])
    for place in places:
        lines, floats = [], {}
        for row in result["rows"]:
            if (row["data"], row["protocol"]) != place:
                continue
            key = row["model"], tuple(row["size"]), row["group"]
            floats.setdefault(key, row)
            deltas = ("", "")
            if row["dtype"] != "float32" and floats[key] is not row:
                deltas = (
                    f"{100 * (row[score] - floats[key][score]):+.2f}"
                    for score in ("accuracy", "miou")
                )
            scores = (row["accuracy"], row["f1"], row["miou"], row["pooled_miou"])
            lines.append(
                [row["model"], "x".join(map(str, row["size"])), row["dtype"], row["group"]]
                + [row["images"], *map(_percent, scores), f"{row['cover_error']:.1f}"]
                + [_percent(row["within_1_okta"]), *deltas]
            )
        parts += [f"## {place[0]}, protocol: {place[1]}", "\n".join(markdown_table(header, lines))]
    costs = {row["file"]: row for row in result["rows"] if "file" in row}
    if costs:
        lines = [
            [file, f"{row['bytes'] / 1000:.0f}", row.get("arena") and f"{row['arena'] / 1024:.0f}"]
            + [f"{row['milliseconds']:.0f}"]
            for file, row in costs.items()
        ]
        header = ("File", "kB", "TFLM arena, KiB", "ms a photo, one thread here")
        parts += ["## The int8 files", "\n".join(markdown_table(header, lines))]
    return "\n\n".join(parts) + "\n"


def ablate(
    data,
    out,
    *,
    variants=("baseline", "dmsc", "full"),
    base_channels=(4,),
    protocols=("date",),
    seeds=(0, 1, 2),
    recipe="default",
    image_size=(96, 96),
    epochs=30,
    layout=None,
    progress=None,
) -> dict:
    """Trains variants of the network alike, on the same splits, and scores each on its test part.

    Seed k gives the split and the initial weights. Each training is a `ddunet train` of its own in
    `out`; what is there already is not done again, and one that was interrupted goes on.

    Args:
        data: folder of a data set.
        out: folder for the trainings, `ablation.json` and `ablation.md`.
        variants, base_channels, protocols, seeds: every combination is trained.
        recipe, image_size, epochs: of every training.
        layout: of `open_dataset`.
        progress: called with a line of text at each training, or None.

    Returns:
        "about", "settings" and "rows": one for each training; `ablation_markdown` has means and
        standard deviations over the seeds.

    Raises:
        DataError: a training failed; its last line is in the message.
    """
    from ddunet_keras.data.datasets import open_dataset
    from ddunet_keras.model import load_model

    out, rows = Path(out), []
    dataset = open_dataset(data, layout)
    settings = {"recipe": recipe, "image_size": list(image_size), "epochs": epochs}
    for protocol, seed, width, variant in [
        (p, s, w, v) for p in protocols for s in seeds for w in base_channels for v in variants
    ]:
        name = f"{variant}_c{width}_{protocol}_{seed}"
        folder = out / name
        done = folder / "evaluation.json"
        if not done.is_file():
            if progress is not None:
                progress(f"training {name}")
            options = {"protocol": protocol, "seed": seed, "variant": variant} | settings
            options |= {"base_channels": width, "out": folder}
            options |= {"layout": layout} if layout else {}
            command = [sys.executable, "-m", "ddunet_keras", "train", str(data)]
            for key, value in options.items():
                value = ",".join(map(str, value)) if key == "image_size" else str(value)
                command += [f"--{key.replace('_', '-')}", value]
            command += ["--resume"] * (folder / "run.json").is_file()
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                last = (process.stderr.strip().splitlines() or ["no message"])[-1]
                raise DataError(f"{name}: the training failed ({last})")
            split = make_split(dataset, protocol, seed)
            model = load_model(folder / "best.keras")
            result = evaluate(model.predict_probabilities, dataset, split.test, protocol=protocol)
            write_json(done, result.to_dict())
        overall = list(json.loads(done.read_text(encoding="utf-8"))["groups"].values())[-1]
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        row = {"protocol": protocol, "seed": seed, "variant": variant, "base_channels": width}
        rows.append(row | {"parameters": run["parameters"]} | _row(overall))
        result = {"about": _about(), "settings": settings, "rows": rows}
        write_json(out / "ablation.json", result)
        write_text(out / "ablation.md", ablation_markdown(result))
    return result


def ablation_markdown(result) -> str:
    """Table II: mean and standard deviation over the seeds, and the difference to the first
    variant on the same splits."""
    parts = _head("Variants trained alike", result["about"])
    parts.append(", ".join(f"{key} {value}" for key, value in result["settings"].items()) + ".")
    parts.append(
        "In percent; mean ± standard deviation over the splits; the difference is the mean, ± its "
        "standard error, of the differences on equal splits. " + result["about"]["averaging"] + "."
    )
    header = ("Variant", "Channels", "Parameters", "Splits", "Accuracy", "MIoU", "MIoU, pooled")
    header += ("Cover error, points", "MIoU - first variant's")
    for protocol in dict.fromkeys(row["protocol"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["protocol"] == protocol]
        lines, first = [], {}
        for key in dict.fromkeys((row["base_channels"], row["variant"]) for row in rows):
            mine = [row for row in rows if (row["base_channels"], row["variant"]) == key]
            first.setdefault(key[0], {row["seed"]: row["miou"] for row in mine})
            pairs = [(row["miou"], first[key[0]].get(row["seed"])) for row in mine]
            differences = [100 * (a - b) for a, b in pairs if b is not None]
            cells = [
                _spread([scale * row[score] for row in mine])
                for score, scale in (("accuracy", 100), ("miou", 100), ("pooled_miou", 100))
                + (("cover_error", 1),)
            ]
            error = len(differences) ** 0.5
            cells.append(_spread(differences, "+.1f", error) if any(differences) else "")
            lines.append([key[1], key[0], f"{mine[0]['parameters']:,}", len(mine), *cells])
        parts += [f"## Protocol {protocol}", "\n".join(markdown_table(header, lines))]
    return "\n\n".join(parts) + "\n"


def _spread(values, form=".1f", divisor=1.0):
    deviation = f" ± {np.std(values, ddof=1) / divisor:.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"
