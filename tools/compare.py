"""Trains every network of Table I alike, and compares them: accuracy, other cameras, int8, cost.

    python tools/compare.py SWINYSEG OUT --whole-sky WSISEG --cameras dslr ov2640 night-frames
    python tools/compare.py SWINYSEG OUT --networks ddunet_c4 cloudsegnet --seeds 0 --epochs 8

All have the same data, `date` splits, augmentation, loss, optimizer and epochs; `LEARNING_RATES`
has what one network needs otherwise, and those beyond ten million parameters compute in mixed
precision. Seed k gives the split and the initial weights; networks beyond a million parameters
get the first seed alone. OUT gets a folder for each training, `comparison.json`, `comparison.md`
and `comparison.png`. What is there already is not done again, and a training that was interrupted
goes on: stop it at any moment and give the same command again.

At 96 px and 16 epochs the largest network trains for half an hour on two cores that compute
bfloat16; all of them, on two splits, took 2.5 hours. Leave the machine alone at the end: latencies
are measured there, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare_steps import INT8_FILES, convert_run, not_converted, score_run
from compare_table import comparison_markdown, plot_comparison

from ddunet_keras.camera_scores import open_camera
from ddunet_keras.cli.console import log
from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.files import DataError, first_line, read_json, write_json, write_text
from ddunet_keras.litert.child import ChildError, NotInstalledError, in_child
from ddunet_keras.litert.run import measure_latency
from ddunet_keras.litert.vela import run_vela
from ddunet_keras.networks.architectures import NETWORKS

SMALL = 1_000_000
"""Parameters up to which a network is trained on every split."""

LARGE = 10_000_000
"""Parameters from which a network is trained in mixed precision, which takes a quarter to two
fifths of its time away, and its conversion is verified on fewer photos."""

LARGE_VERIFY = 2
"""Photos for that: reference kernels take half a minute for each."""

CHILD_SECONDS = 6 * 3600
"""After which a step is given up: reference kernels are slow on large networks."""

ACCELERATOR = "ethos-u55-128"
"""Arm's NPU that the files for TFLM are compiled for."""

TIMING_TURNS = 5
"""How often each file is timed, in turns: a machine's pace changes with minutes."""


@dataclass(frozen=True)
class Candidate:
    """A network of the comparison.

    Attributes:
        title: in the tables.
        network: name for `build_network`.
        parameters: batch normalization's averages included.
        paper: Table I's million parameters, or None.
        base_channels: of DDUNet, else None.
    """

    title: str
    network: str
    parameters: int
    paper: float | None
    base_channels: int | None = None


CANDIDATES = {
    "ddunet_c4": Candidate("DDUNet, 4 channels", "ddunet", 90_447, 0.09, 4),
    "ddunet_c8": Candidate("DDUNet, 8 channels", "ddunet", 329_447, 0.33, 8),
    **{
        name: Candidate(about.title, name, about.parameters, about.paper)
        for name, about in NETWORKS.items()
    },
    # one title for both in Table I
    "segcloud_described": Candidate("SegCloud, described", "segcloud_described", 18_866_497, 19.61),
    "segcloud_counted": Candidate("SegCloud, counted", "segcloud_counted", 19_600_897, 19.61),
}

LEARNING_RATES = {"unet": 1e-4}
"""Where it is not the recipe's. U-Net has 22 convolutions without batch normalization, and its
source trains it with 1e-4."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Raises:
        ValueError: a network is not known, or there is none, or no seed; or one stands twice, or
            two folders have one name.
    """

    data: Path
    out: Path
    networks: tuple[str, ...]
    seeds: tuple[int, ...]
    size: int
    epochs: int
    whole_sky: Path | None
    cameras: tuple[Path, ...]
    verify: int

    def __post_init__(self):
        unknown = [name for name in self.networks if name not in CANDIDATES]
        if unknown or not self.networks or not self.seeds:
            raise ValueError(
                f"networks must be of {', '.join(CANDIDATES)}, and seeds at least one. "
                f"Received: networks={self.networks}, seeds={self.seeds}"
            )
        # the tables know folders by their names
        folders = [self.data, *filter(None, [self.whole_sky]), *self.cameras]
        for given in (self.networks, self.seeds, [folder.name for folder in folders]):
            twice = [str(one) for one in given if list(given).count(one) > 1]
            if twice:
                raise ValueError(f"{twice[0]} is given twice, or two folders have that name")

    def runs(self) -> Iterator[tuple[str, int]]:
        """Network and seed of each training: the first seed of all, the smallest first."""
        by_size = sorted(self.networks, key=lambda name: CANDIDATES[name].parameters)
        for seed in self.seeds:
            for name in by_size:
                if seed == self.seeds[0] or CANDIDATES[name].parameters <= SMALL:
                    yield name, seed

    def describe(self) -> dict[str, Any]:
        """The settings, as the results hold them."""
        return {
            "data": self.data.name,
            "protocol": "date",
            "recipe": "default",
            "size": self.size,
            "epochs": self.epochs,
            "whole_sky": None if self.whole_sky is None else self.whole_sky.name,
            "cameras": [folder.name for folder in self.cameras],
        }


def is_large(name: str) -> bool:
    """Whether a network is trained in mixed precision."""
    return CANDIDATES[name].parameters > LARGE


# === The steps of a run ===


def train_run(config: Comparison, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains, or goes on, by `ddunet train` in a process of its own; returns its record.

    Raises:
        DataError: the training failed, or the folder holds one of other data or settings.
    """
    candidate = CANDIDATES[name]
    settings = {
        "network": candidate.network,
        "base_channels": candidate.base_channels,
        "seed": seed,
        "image_size": [config.size, config.size],
        "epochs": config.epochs,
        "protocol": "date",
        "learning_rate": LEARNING_RATES.get(name),
        "mixed_precision": is_large(name) or None,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    record = folder / "run.json"
    if record.is_file() and "finished" in read_json(record):
        before = read_json(record)["settings"]
        before["data"] = Path(before["data"]).name
        for key, value in {"data": config.data.name, **given}.items():
            if before[key] != value:
                raise DataError(
                    f"{folder}: was trained with {key}={before[key]!r}, not {value!r}; choose "
                    "another OUT"
                )
        return read_json(record)
    command = [sys.executable, "-m", "ddunet_keras", "train", str(config.data)]
    command += ["--out", str(folder), "--resume"]
    for key, value in given.items():
        command.append(f"--{key.replace('_', '-')}")
        if value is not True:
            command.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{folder.name}: the training failed ({last})")
    return read_json(record)


def remembered(path: Path, asked: dict[str, Any], function, *arguments) -> Any:
    """What a step found, from its file where it was asked the same before."""
    if path.is_file():
        found = read_json(path)
        if found["asked"] == asked:
            return found["answer"]
    answer, _ = in_child(function, *arguments, timeout=CHILD_SECONDS)
    write_json(path, {"asked": asked, "answer": answer})
    return answer


def do_run(config: Comparison, name: str, seed: int) -> dict[str, Any]:
    """Trains, converts and scores a network on the split of a seed.

    Raises:
        DataError, ChildError: a step failed.
    """
    folder = config.out / f"{name}_{seed}"
    log(f"{folder.name}: training")
    record = train_run(config, name, seed, folder)
    log(f"{folder.name}: converting")
    verify = min(config.verify, LARGE_VERIFY) if is_large(name) else config.verify
    asked: dict[str, Any] = {"size": config.size, "verify": verify}
    asked["trained"] = record["finished"]
    arguments: tuple = (folder, config.data, config.size, verify)
    try:
        converted = remembered(folder / "converted.json", asked, convert_run, *arguments)
    except ChildError as error:  # its accuracy in float stands all the same
        log(f"{folder.name}: {first_line(error)}")
        converted = not_converted(first_line(error))
    log(f"{folder.name}: scoring")
    asked |= config.describe() | {"int8": converted["int8"]}
    arguments = (folder, config.data, config.whole_sky, config.cameras)
    scores = remembered(folder / "scores.json", asked, score_run, *arguments)
    return {
        "network": name,
        "seed": seed,
        "parameters": record["parameters"],
        "learning_rate": record["settings"]["learning_rate"],
        "seconds": record["seconds"],
        **converted,
        **scores,
    }


def time_files(files: dict[str, Path]) -> dict[str, float]:
    """Milliseconds of one thread for each file, the median of several turns."""
    taken: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(TIMING_TURNS):
        log(f"timing {len(files)} files, turn {turn + 1} of {TIMING_TURNS}")
        for name, path in files.items():
            taken[name].append(measure_latency(path.read_bytes(), threads=1))
    return {name: round(statistics.median(values), 2) for name, values in taken.items()}


def compile_files(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What Vela says of each file on `ACCELERATOR`: milliseconds and cpu_operators, or refused."""
    found: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        log(f"{name}: compiling for {ACCELERATOR}")
        try:
            compiled = run_vela(path.read_bytes(), ACCELERATOR)
        except (ChildError, NotInstalledError) as error:
            found[name] = {"refused": first_line(error)}
        else:
            found[name] = {key: compiled[key] for key in ("milliseconds", "cpu_operators")}
    return found


# === The comparison ===


def compare(config: Comparison) -> dict[str, Any]:
    """Does what is left of a comparison; writes JSON and table after each run, and the picture.

    Raises:
        DataError: a folder of photos cannot be used. What fails later is named in the results.
    """
    check_photos(config)
    runs: list[dict] = []
    failures: list[dict] = []
    words = ["python tools/compare.py", *(Path(word).name for word in sys.argv[1:])]
    result: dict[str, Any] = {
        "command": " ".join(words),
        "settings": config.describe(),
        "titles": {name: CANDIDATES[name].title for name in config.networks},
        "paper_parameters": {name: CANDIDATES[name].paper for name in config.networks},
        "own_learning_rates": {
            name: rate for name, rate in LEARNING_RATES.items() if name in config.networks
        },
        "mixed_precision": [name for name in config.networks if is_large(name)],
        "runs": runs,
        "failures": failures,
        "milliseconds": {},
        "ethos_u": {},
    }
    files: dict[str, dict[str, Path]] = {target: {} for target in INT8_FILES}
    for name, seed in config.runs():
        try:
            runs.append(do_run(config, name, seed))
        except (DataError, ChildError) as error:
            failures.append({"network": name, "seed": seed, "reason": first_line(error)})
            log(f"{name}_{seed}: {first_line(error)}")
        for target, file in INT8_FILES.items():
            path = config.out / f"{name}_{seed}" / file
            if path.is_file():
                files[target].setdefault(name, path)  # another seed's takes as long
        write_results(config.out, result)
    result["ethos_u"] = compile_files(files["tflm"])
    result["milliseconds"] = time_files(files["cpu"])
    write_results(config.out, result)
    plot_comparison(result, config.out / "comparison.png")
    return result


def check_photos(config: Comparison) -> None:
    """Opens all photos once, ahead of hours of training."""
    open_dataset(config.data)
    if config.whole_sky is not None:
        open_dataset(config.whole_sky)
    for folder in config.cameras:
        open_camera(folder)


def write_results(out: Path, result: dict[str, Any]) -> None:
    write_json(out / "comparison.json", result)
    write_text(out / "comparison.md", comparison_markdown(result))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of SWINySEG")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for trainings and tables")
    parser.add_argument("--networks", nargs="+", default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--size", type=int, default=96, help="side of the input, multiple of 16")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--whole-sky", type=Path, metavar="DATA", help="folder of WSISEG")
    parser.add_argument("--cameras", nargs="+", type=Path, default=[], metavar="DIR")
    parser.add_argument("--verify", type=int, default=8, help="photos to verify a conversion on")
    options = vars(parser.parse_args(arguments))
    for key in ("networks", "seeds"):
        options[key] = tuple(options[key])
    options["data"] = options["data"].resolve()
    options["whole_sky"] = options["whole_sky"] and options["whole_sky"].resolve()
    options["cameras"] = tuple(folder.resolve() for folder in options["cameras"])
    try:
        result = compare(Comparison(**options))
    except ValueError as error:
        parser.exit(2, f"error: {first_line(error)}\n")
    print(comparison_markdown(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
