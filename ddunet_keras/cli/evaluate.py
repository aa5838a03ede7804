"""`ddunet evaluate` and `benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddunet_keras.cli.console import log, progress, say, start_keras
from ddunet_keras.cli.models import choose_split, open_model, split_beside
from ddunet_keras.cli.options import (
    MODEL_HELP,
    command,
    data_options,
    model_file,
    positive,
    seed_option,
    split_options,
    threshold_option,
)
from ddunet_keras.data.datasets import Dataset, open_dataset
from ddunet_keras.data.splits import trained_on
from ddunet_keras.files import DataError, check_writable, write_json, write_text


def run_evaluate(arguments: argparse.Namespace) -> None:
    from ddunet_keras.evaluation import evaluate

    if arguments.out:
        check_writable(arguments.out / "evaluation.json")
    model = open_model(arguments.model)
    dataset = open_dataset(arguments.data, arguments.layout, model.num_classes)
    names, about_split = names_to_score(arguments, dataset)
    result = evaluate(
        model.predict_probabilities,
        dataset,
        names,
        threshold=arguments.threshold,
        progress=progress("scored"),
        model=str(arguments.model),
        data=str(arguments.data),
        part=arguments.part,
        **about_split,
        trained_on=count_trained_on(arguments, dataset, names),
    )
    print(result.to_markdown())
    if arguments.out:
        result.save(arguments.out)
        files = "evaluation.json, evaluation.md, per_image.csv, curves.png, sheet.png"
        print(f"wrote {arguments.out}: {files}")


def names_to_score(
    arguments: argparse.Namespace, dataset: Dataset
) -> tuple[list[str], dict[str, Any]]:
    """Names of the samples of --part, and what the report says of the split."""
    if arguments.part == "all":
        return [sample.name for sample in dataset], {"protocol": "none"}
    split = choose_split(arguments, dataset, split_beside(arguments.model))
    try:
        split.check(dataset)
    except DataError as error:
        raise DataError(f"{error}; --part all needs no split") from None
    names = list(getattr(split, arguments.part))
    if not names:
        raise DataError(f"--part {arguments.part}: empty in protocol {split.protocol!r}")
    return names, {"protocol": split.protocol, "seed": split.seed, "note": split.note}


def count_trained_on(
    arguments: argparse.Namespace, dataset: Dataset, names: list[str]
) -> int | str:
    """How many of these samples the model has seen in training; warns if it should not have."""
    seen = trained_on(arguments.model.parent, dataset)
    if seen is None:
        return "unknown"
    count = sum(dataset.find(name).source in seen for name in names)
    if count and arguments.part != "train":
        say(
            "warning",
            f"the model was trained on {count} of these {len(names)} images, or on "
            f"augmentations of them; see {arguments.model.parent / 'split.json'}",
        )
    return count


def run_benchmark(arguments: argparse.Namespace) -> None:
    if not arguments.data and not arguments.cameras:
        raise DataError("nothing to score on: give DATA or --cameras")
    start_keras()
    from ddunet_keras.benchmarks import benchmark, benchmark_markdown
    from ddunet_keras.camera_scores import open_camera
    from ddunet_keras.plots import plot_benchmark

    check_writable(arguments.out / "benchmark.json")
    datasets = [open_dataset(folder) for folder in arguments.data]
    cameras = [open_camera(folder) for folder in arguments.cameras or ()]
    result = benchmark(
        datasets,
        trained=arguments.trained,
        sizes=arguments.sizes,
        cameras=cameras,
        progress=log,
    )
    text = benchmark_markdown(result)
    print(text)
    out = arguments.out
    write_json(out / "benchmark.json", result)
    write_text(out / "benchmark.md", text)
    if any(row.get("arena") for row in result["rows"]):
        plot_benchmark(result["rows"], out / "benchmark.png")
    elif datasets:
        say("warning", "no int8 file, so no picture: they are in tflite/models of a clone")
    print(f"wrote {out}: benchmark.json, benchmark.md")


def add_commands(commands: argparse._SubParsersAction) -> None:
    option = command(commands, "evaluate", run_evaluate, "score a model on a data set")
    option("model", type=model_file, metavar="MODEL", help=MODEL_HELP)
    data_options(option, num_classes=False)
    split_options(option)
    option(
        "--part",
        choices=("test", "val", "train", "all"),
        default="test",
        help="part of the split to score; all: every image, without a split",
    )
    seed_option(option)
    threshold_option(option)
    option("--out", type=Path, metavar="DIR", help="folder for JSON, Markdown, CSV and pictures")

    option = command(
        commands,
        "benchmark",
        run_benchmark,
        "score the models that ship, float and int8, on unseen images",
    )
    option("data", type=Path, nargs="*", metavar="DATA", help="folder of SWINySEG, and of others")
    option(
        "--cameras",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of frames that nothing was trained on, one for each camera: images/ and "
        "masks/, or images/ and frames.csv (name and sky: clear, overcast, aurora or another word)",
    )
    option(
        "--trained",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="folders that `ddunet train` wrote, of whatever network, to score as well",
    )
    option("--out", type=Path, default=Path("benchmark"), metavar="DIR", help="folder for tables")
    option(
        "--sizes",
        type=positive,
        nargs="+",
        metavar="SIDE",
        help="sizes of the networks' inputs (default: all)",
    )
