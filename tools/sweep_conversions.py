"""Converts models for every target and many sizes, and keeps what each verification said.

    python tools/sweep_conversions.py DATA RESULTS.jsonl MODEL.keras...

To be run after a change to the conversion. Each model and target gets some of the sizes in turn,
two by default, so that every size meets every target. A model has a process of its own, since
TensorFlow's converter leaks memory. A sweep that was interrupted goes on where it was. It prints a
line for each conversion, and at the end how many passed; the exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SIZES = (
    (96, 96),
    (96, 128),
    (128, 128),
    (144, 192),
    (160, 160),
    (192, 192),
    (192, 256),
    (224, 224),
    (240, 320),
    (256, 256),
    (304, 304),
)
TARGETS = ("tflm", "cortex-m", "esp32s3", "ethos-u", "edgetpu", "android", "cpu")
CALIBRATION_PHOTOS = 16
"""The checks hold with so few photos, and a sweep is long."""

Case = tuple[str, str, tuple[int, int]]
"""Model, target, size."""


def all_cases(models: list[str], sizes_each: int) -> Iterator[Case]:
    """The cases of a sweep, each size about as often with each target."""
    for model_number, model in enumerate(models):
        for target_number, target in enumerate(TARGETS):
            for turn in range(sizes_each):
                # 2 and 3 have no factor in common with the 11 sizes: the turns reach them all
                size_number = model_number + 2 * target_number + 3 * turn
                yield model, target, SIZES[size_number % len(SIZES)]


def read_results(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def convert_cases(data: Path, results: Path, cases: list[Case], verify: int) -> None:
    """Converts the cases of one model, and appends a line for each to the results."""
    # imported here, as the process that only starts others does without TensorFlow
    from ddunet_keras import load_model, make_split, open_dataset
    from ddunet_keras.deploy.calibrate import labelled_photos
    from ddunet_keras.deploy.config import ConversionConfig
    from ddunet_keras.deploy.convert import convert

    dataset = open_dataset(data)
    split = make_split(dataset, "date", 0)
    for name, target, (height, width) in cases:
        size = (height, width)
        start = time.perf_counter()
        model = load_model(name)
        config = ConversionConfig(size, target=target, inspect=False)
        photos = labelled_photos(
            dataset, split, config.size, count=CALIBRATION_PHOTOS, verify=verify
        )
        line = {
            "model": name,
            "variant": model.variant,
            "base_channels": model.base_channels,
            "target": target,
            "size": size,
        }
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = convert(model, photos, Path(folder) / "model.tflite", config)
                line |= {"passed": True, "checks": result["verification"]}
            except ValueError as error:  # a check that does not hold is one, too
                line |= {"passed": False, "error": str(error)}
        line["seconds"] = round(time.perf_counter() - start, 1)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line["passed"], name, target, size, line["seconds"], line.get("error", ""))
        sys.stdout.flush()


def sweep(options: argparse.Namespace) -> int:
    """Starts a process for each model that has cases left; returns the exit code."""
    done = {
        (line["model"], line["target"], tuple(line["size"]))
        for line in read_results(options.results)
    }
    left = [case for case in all_cases(options.models, options.sizes) if case not in done]
    died = []
    for model in options.models:
        cases = [case for case in left if case[0] == model]
        if not cases:
            continue
        command = [sys.executable, *sys.argv, "--cases", json.dumps(cases)]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            died.append(f"{model}: its process ended with code {code}")
    lines = read_results(options.results)
    failed = [line for line in lines if not line["passed"]]
    print(f"{len(lines) - len(failed)} of {len(lines)} passed")
    for line in failed:
        print(line["model"], line["target"], line["size"], line["error"])
    for text in died:
        print(text)
    return 1 if failed or died else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sizes", type=int, default=2, help="of each model and target")
    parser.add_argument("--verify", type=int, default=4, help="photos")
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)  # of a child process
    options = parser.parse_args()
    if options.cases is None:
        return sweep(options)
    convert_cases(options.data, options.results, options.cases, options.verify)
    return 0


if __name__ == "__main__":
    sys.exit(main())
