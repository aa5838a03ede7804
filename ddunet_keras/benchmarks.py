"""Tables that anyone can repeat: scores of the models that ship, and variants trained alike."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddunet_keras import __version__
from ddunet_keras.camera_scores import Camera, cameras_markdown, score_camera
from ddunet_keras.data.datasets import Dataset, open_dataset
from ddunet_keras.data.splits import Split, make_split, trained_on
from ddunet_keras.evaluation import evaluate, markdown_table
from ddunet_keras.files import DataError, read_json, write_json, write_text
from ddunet_keras.presets import WEIGHTS
from ddunet_keras.recipes import AblationConfig
from ddunet_keras.segmenter import Segmenter

TFLITE = Path(__file__).parents[1] / "tflite" / "models"
"""Where a clone has the int8 files: NAME_SIZE.tflite of the model NAME."""

_SCORES = ("accuracy", "precision", "recall", "f1", "miou")


# === The models that ship ===


def benchmark(
    datasets: Sequence[Dataset],
    *,
    weights: Path = WEIGHTS,
    files: Path = TFLITE,
    trained: Sequence[Path] = (),
    sizes: Sequence[int] | None = None,
    cameras: Sequence[Camera] = (),
    progress: Callable[[str], Any] | None = None,
) -> dict:
    """Scores every model that ships, float and int8, on images that it was not trained on.

    A model is scored on the test part of the split that it was trained by, and of a further data
    set on what its `run.json` does not name among the images that it was trained on as well.

    Args:
        datasets: from `open_dataset`.
        weights: folder with a folder NAME for each model: NAME.keras, run.json, split.json.
        files: folder of NAME_SIZE.tflite, int8. The float model is scored at the same sizes.
        trained: folders that `ddunet train` wrote, of whatever network, to score beside those that
            ship; so is one `.tflite` file in them for each size.
        sizes: only these sides, such as (96, 256).
        cameras: from `open_camera`: the presets are scored on their frames, too, whole and not by a
            split. Nothing may have been trained on them.
        progress: called with a line of text at each step, or None.

    Returns:
        "about" (versions, commit) and "rows": one for each model, data set, dtype, size and
        group ("day", "night", "day+night"), with the means over images that the paper's Table I
        has, MIoU pooled over pixels, errors of the cloud cover, and of int8 files bytes, TFLM's
        arena and milliseconds a photo (one thread, the photo's resizing included; files in turns).
        "cameras": one row for each preset, camera, dtype and size, as `score_camera` gives it.

    Raises:
        DataError: no model is there, two have one name, none was trained on a data set like one of
            these, or neither a data set nor a camera is given.
    """
    say = progress or (lambda line: None)
    runs = sorted(Path(weights).glob("*/run.json")) + [Path(run) / "run.json" for run in trained]
    if not datasets and not cameras:
        raise DataError("nothing to score on: give the folder of a data set or of a camera")
    if not runs:
        raise DataError(f"{weights}: holds no models; benchmark needs a clone of the repository")
    names = [path.parent.resolve().name for path in runs]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{name}: two models have this name; rename one's folder")
    rows: list[dict] = []
    camera_rows: list[dict] = []
    segmenters: dict[str, Segmenter] = {}
    for path in runs:
        shipped = _open_shipped(path.parent, Path(files), sizes)
        tests = [
            (dataset, names, protocol)
            for dataset in datasets
            for names, protocol in [_unseen(dataset, shipped.split, shipped.folder)]
            if names
        ]
        if tests:
            segmenters |= {
                shipped.label(file): segmenter for file, segmenter in shipped.int8.values()
            }
            rows += _score(shipped, tests, say)
        if shipped.split.protocol != "paper":  # those are for Table I alone
            camera_rows += _score_cameras(shipped, cameras, say)
    if datasets and not rows:
        raise DataError("no model that ships was trained on data of these layouts at these sizes")
    if cameras and not camera_rows:
        raise DataError(f"{weights}: holds no preset to score on cameras")
    if segmenters:
        say(f"timing {len(segmenters)} int8 files")
        milliseconds = _milliseconds(segmenters, datasets[0])
        for row in rows:
            if "file" in row:
                row["milliseconds"] = milliseconds[row["file"]]
    return {"about": _about(), "rows": rows, "cameras": camera_rows}


@dataclass(frozen=True)
class _Shipped:
    """A model that ships, or that was trained: its folder, file and training, and its int8 files by
    (height, width)."""

    folder: Path
    file: Path
    settings: dict
    split: Split
    int8: dict[tuple[int, int], tuple[Path, Segmenter]]
    shapes: list[tuple[int, int]]

    @property
    def name(self):
        return self.folder.name

    @cached_property
    def model(self):
        from ddunet_keras.model import load_model  # only here: it imports Keras

        return load_model(self.file)

    def forms(self, shape):
        """What is scored at a size: dtype, what predicts, and what it costs."""
        forms = [("float32", self.model.resized((*shape, 3), dtype="float32"), {})]
        if shape in self.int8:
            file, segmenter = self.int8[shape]
            forms.append(("int8", segmenter, {"file": self.label(file), **_costs(file)}))
        return forms

    def label(self, file):
        """The file's name, with its folder's where that is a training's."""
        return f"{self.name}/{file.name}" if file.parent == self.folder else file.name


def _open_shipped(folder, files, sizes):
    settings = read_json(folder / "run.json")["settings"]
    model = folder / f"{folder.name}.keras"
    converted = sorted(files.glob(f"{folder.name}_[0-9]*.tflite"))
    if not model.is_file():  # a folder that `ddunet train` wrote
        model = folder / "best.keras"
        converted = sorted(folder.glob("*.tflite"))
    int8 = {}
    for file in converted:
        segmenter = Segmenter(file, threads=1)
        height, width = segmenter.image_shape[:2]
        int8[height, width] = (file, segmenter)
    if settings.get("num_classes", 2) > 2:
        raise DataError(f"{folder}: has {settings['num_classes']} classes, and the presets two")
    # without an int8 file, that of training
    shapes = sorted(int8) or [tuple(settings["image_size"])]
    if sizes:
        shapes = [shape for shape in shapes if shape[0] in sizes]
    int8 = {shape: int8[shape] for shape in shapes if shape in int8}
    return _Shipped(folder, model, settings, Split.load(folder / "split.json"), int8, shapes)


def _score(shipped, tests, say):
    """Rows of one model: each data set, size, dtype and group."""
    rows = []
    for dataset, names, protocol in tests:
        for shape in shipped.shapes:
            about = {
                "model": shipped.name,
                "network": shipped.settings.get("network", "ddunet"),
                "variant": shipped.settings.get("variant"),
                "base_channels": shipped.settings.get("base_channels"),
                "protocol": protocol,
                "data": dataset.root.name,
                "size": list(shape),
            }
            for dtype, predictor, costs in shipped.forms(shape):
                say(f"{shipped.name}, {protocol}, {dataset.root.name}, {shape}, {dtype}")
                result = evaluate(predictor.predict_probabilities, dataset, names)
                for group, scores in result.groups.items():
                    row = {**about, "dtype": dtype, **costs, "group": group}
                    rows.append(row | _row(scores))
    return rows


def _score_cameras(shipped, cameras, say):
    """Rows of one model: each camera, size and dtype."""
    if not cameras:
        return []
    rows: dict[str, list[dict]] = {camera.name: [] for camera in cameras}
    for shape in shipped.shapes:
        for dtype, predictor, _ in shipped.forms(shape):
            about = {"model": shipped.name, "size": list(shape), "dtype": dtype}
            for camera in cameras:
                say(f"{shipped.name}, camera {camera.name}, {shape}, {dtype}")
                rows[camera.name].append(about | score_camera(predictor, camera))
    return [row for of_camera in rows.values() for row in of_camera]


def _milliseconds(segmenters, dataset, count=50):
    """Median time that each takes for a photo, in turns: a machine's pace changes with minutes."""
    samples = list(dataset)
    seconds = {name: [] for name in segmenters}
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
    costs = {"bytes": file.stat().st_size}
    report = file.with_suffix(".json")
    if report.is_file():
        arena = read_json(report)["verification"].get("arena")
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


def _head(title, about):
    commit = f", commit {about['commit'][:12]}" if about["commit"] else ""
    return [f"# {title}", f"`{about['command']}`, version {about['ddunet_keras']}{commit}."]


def _percent(share):
    return f"{100 * share:.1f}"


def benchmark_markdown(result: dict) -> str:
    """The tables of `benchmark`, one for each data set and protocol, and those of the cameras."""
    parts = _head("Benchmark", result["about"])
    parts.append("In percent; " + result["about"]["averaging"] + ".")
    for data, protocol in dict.fromkeys((row["data"], row["protocol"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["data"], row["protocol"]) == (data, protocol)]
        parts += [f"## {data}, protocol: {protocol}", _score_table(rows)]
    costs = {row["file"]: row for row in result["rows"] if "file" in row}
    if costs:
        parts += ["## The int8 files", _cost_table(costs)]
    if result["cameras"]:
        parts += ["## Cameras that nothing was trained on", cameras_markdown(result["cameras"])]
    return "\n\n".join(parts) + "\n"


def _score_table(rows):
    header = (
        *("Model", "Size", "Type", "Set", "Images", "Accuracy", "F", "MIoU", "MIoU, pooled"),
        *("Cover error, points", "Within 1 okta", "int8 - float: accuracy", "MIoU"),
    )
    floats = {_form(row): row for row in rows if row["dtype"] == "float32"}
    lines = []
    for row in rows:
        other = floats.get(_form(row), row)
        deltas = [f"{100 * (row[key] - other[key]):+.2f}" for key in ("accuracy", "miou")]
        if other is row:
            deltas = ["", ""]
        lines.append(
            [
                row["model"],
                "x".join(str(side) for side in row["size"]),
                row["dtype"],
                row["group"],
                row["images"],
                *(_percent(row[key]) for key in ("accuracy", "f1", "miou", "pooled_miou")),
                f"{row['cover_error']:.1f}",
                _percent(row["within_1_okta"]),
                *deltas,
            ]
        )
    return "\n".join(markdown_table(header, lines))


def _form(row):
    """What a float row and its int8 row have in common."""
    return row["model"], tuple(row["size"]), row["group"]


def _cost_table(costs):
    lines = []
    for file, row in costs.items():
        arena = f"{row['arena'] / 1024:.0f}" if row.get("arena") else ""
        lines.append([file, f"{row['bytes'] / 1000:.0f}", arena, f"{row['milliseconds']:.0f}"])
    header = ("File", "kB", "TFLM arena, KiB", "ms a photo, one thread here")
    return "\n".join(markdown_table(header, lines))


# === Variants trained alike ===


def ablate(
    data: str | Path,
    out: str | Path,
    *,
    progress: Callable[[str], Any] | None = None,
    **settings: Any,
) -> dict:
    """Trains variants of the network alike, on the same splits, and scores each on its test part.

    Seed k gives the split and the initial weights. Each training is a `ddunet train` of its own in
    `out`; what is there already is not done again, and one that was interrupted goes on.

    Args:
        data: folder of a data set.
        out: folder for the trainings, `ablation.json` and `ablation.md`.
        progress: called with a line of text at each training, or None.
        **settings: the other fields of `ddunet_keras.recipes.AblationConfig`, which says what each
            is.

    Returns:
        "about", "settings" and "rows": one for each training; `ablation_markdown` has means and
        standard deviations over the seeds.

    Raises:
        DataError: a training failed; its last line is in the message.
        ValueError: a setting is out of its range.
    """
    config = AblationConfig(Path(data), Path(out), **settings)
    dataset = open_dataset(config.data, config.layout)
    training = {
        "recipe": config.recipe,
        "image_size": list(config.image_size),
        "epochs": config.epochs,
    }
    combinations = [
        {"protocol": protocol, "seed": seed, "variant": variant, "base_channels": width}
        for protocol in config.protocols
        for seed in config.seeds
        for width in config.base_channels
        for variant in config.variants
    ]
    rows: list[dict] = []
    result = {"about": _about(), "settings": training, "rows": rows}
    for one in combinations:
        name = "{variant}_c{base_channels}_{protocol}_{seed}".format(**one)
        folder = config.out / name
        if (folder / "evaluation.json").is_file():
            _check_training(folder, training)
        else:
            if progress is not None:
                progress(f"training {name}")
            _train_one(config, one, folder)
            _evaluate_one(dataset, one, folder)
        evaluation = read_json(folder / "evaluation.json")
        *_, overall = evaluation["groups"].values()
        run = read_json(folder / "run.json")
        rows.append({**one, "parameters": run["parameters"], **_row(overall)})
        write_json(config.out / "ablation.json", result)
        write_text(config.out / "ablation.md", ablation_markdown(result))
    return result


def _train_one(config, one, folder):
    """`ddunet train` in a process of its own, which gives its memory back when it ends."""
    options = {
        **one,
        "recipe": config.recipe,
        "image_size": ",".join(str(side) for side in config.image_size),
        "epochs": config.epochs,
        "out": folder,
    }
    if config.layout:
        options["layout"] = config.layout
    command = [sys.executable, "-m", "ddunet_keras", "train", str(config.data)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if (folder / "run.json").is_file():
        command.append("--resume")
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{folder.name}: the training failed ({last})")


def _check_training(folder, training):
    """Refuses the results of another training."""
    before = read_json(folder / "run.json")["settings"]
    for key, value in training.items():
        if before.get(key) != value:
            raise DataError(
                f"{folder}: was trained with {key}={before.get(key)!r}, not {value!r}; give the "
                "same options, or choose another --out"
            )


def _evaluate_one(dataset, one, folder):
    from ddunet_keras.model import load_model  # only here: it imports Keras

    split = make_split(dataset, one["protocol"], one["seed"])
    model = load_model(folder / "best.keras")
    result = evaluate(model.predict_probabilities, dataset, split.test, protocol=one["protocol"])
    write_json(folder / "evaluation.json", result.to_dict())


def ablation_markdown(result: dict) -> str:
    """Table II: mean and standard deviation over the seeds, and the difference to the first
    variant on the same splits."""
    parts = _head("Variants trained alike", result["about"])
    parts.append(", ".join(f"{key} {value}" for key, value in result["settings"].items()) + ".")
    parts.append(
        "In percent; mean ± standard deviation over the splits; the difference is the mean, ± its "
        "standard error, of the differences on equal splits. " + result["about"]["averaging"] + "."
    )
    for protocol in dict.fromkeys(row["protocol"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["protocol"] == protocol]
        parts += [f"## Protocol {protocol}", _variant_table(rows)]
    return "\n\n".join(parts) + "\n"


def _variant_table(rows):
    header = (
        *("Variant", "Channels", "Parameters", "Splits", "Accuracy", "MIoU", "MIoU, pooled"),
        *("Cover error, points", "MIoU - first variant's"),
    )
    lines = []
    first: dict[int, dict[int, float]] = {}  # width -> seed -> MIoU of its first variant
    for width, variant in dict.fromkeys((row["base_channels"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["base_channels"], row["variant"]) == (width, variant)]
        reference = first.setdefault(width, {row["seed"]: row["miou"] for row in mine})
        differences = [
            100 * (row["miou"] - reference[row["seed"]]) for row in mine if row["seed"] in reference
        ]
        lines.append(
            [
                variant,
                width,
                f"{mine[0]['parameters']:,}",
                len(mine),
                *(
                    _spread([100 * row[score] for row in mine])
                    for score in ("accuracy", "miou", "pooled_miou")
                ),
                _spread([row["cover_error"] for row in mine]),
                _difference(differences) if any(differences) else "",
            ]
        )
    return "\n".join(markdown_table(header, lines))


def _spread(values):
    """Mean and, of two values or more, standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def _difference(values):
    """Mean, with its sign, and standard error of the mean."""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.1f}{error}"
