"""Converts many models for every target and size, and keeps what each verification said.

    python tools/sweep_conversions.py DATA RESULTS.jsonl MODEL.keras...

For each model and target the sizes are taken in turn, two of them by default, so that every size
meets every target. A model has a process of its own (TensorFlow's converter leaks memory), and a
sweep that was interrupted goes on where it was. Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = ((96, 96), (96, 128), (128, 128), (144, 192), (160, 160), (192, 192), (192, 256))
SIZES += ((224, 224), (240, 320), (256, 256), (304, 304))
TARGETS = ("tflm", "ethos-u", "edgetpu", "android", "cpu")


def cases(models, count):
    """(model, target, size), each size about as often with each target."""
    for number, model in enumerate(models):
        for place, target in enumerate(TARGETS):
            for turn in range(count):
                yield model, target, SIZES[(number + 2 * place + 3 * turn) % len(SIZES)]


def run(data, results, cases, verify):
    """Converts the cases of one model, and appends a line for each."""
    from ddunet_keras import DataError, load_model, make_split, open_dataset
    from ddunet_keras.deploy.convert import convert, labelled_photos

    dataset = open_dataset(data)
    split = make_split(dataset, "date", 0)
    for name, target, size in cases:
        model, start = load_model(name), time.perf_counter()
        photos = labelled_photos(dataset, split, size, count=16, verify=verify)
        line = {"model": name, "variant": model.variant, "base_channels": model.base_channels}
        line |= {"target": target, "size": size}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.tflite"
            try:
                result = convert(model, photos, out, size=size, target=target, inspect=False)
                line |= {"passed": True, "checks": result["verification"]}
            except (DataError, ValueError) as error:
                line |= {"passed": False, "error": str(error)}
        line["seconds"] = round(time.perf_counter() - start, 1)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line["passed"], *(line[key] for key in ("variant", "base_channels")), end=" ")
        print(target, size, line["seconds"], line.get("error", ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sizes", type=int, default=2, help="of each model and target")
    parser.add_argument("--verify", type=int, default=4, help="photos")
    parser.add_argument("--cases", help=argparse.SUPPRESS)  # of the child process
    options = parser.parse_args()
    if options.cases:
        return run(options.data, options.results, json.loads(options.cases), options.verify)
    done = set()
    if options.results.is_file():
        lines = map(json.loads, options.results.read_text(encoding="utf-8").splitlines())
        done = {(line["model"], line["target"], tuple(line["size"])) for line in lines}
    todo = [case for case in cases(options.models, options.sizes) if case not in done]
    ended = []
    for model in options.models:
        mine = [case for case in todo if case[0] == model]
        if mine:
            command = [sys.executable, *sys.argv, "--cases", json.dumps(mine)]
            code = subprocess.run(command, check=False).returncode
            ended += [] if code == 0 else [f"{model}: its process ended with code {code}"]
    lines = list(map(json.loads, options.results.read_text(encoding="utf-8").splitlines()))
    failed = [line for line in lines if not line["passed"]]
    print(f"{len(lines) - len(failed)} of {len(lines)} passed")
    for line in failed:
        print(line["model"], line["target"], line["size"], line["error"])
    for line in ended:
        print(line)
    return 1 if failed or ended else 0


if __name__ == "__main__":
    sys.exit(main())
