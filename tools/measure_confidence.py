"""Compares signs of a wrong cloud cover, and fits the confidence to the one that ships.

    python tools/measure_confidence.py ../shared/data/swinyseg-base ../shared/data/wsiseg-240 \\
        [--cameras ../shared/data/cameras] [--model FILE]

It takes photos that the model was not trained on, as they are and as other cameras would show them,
compares predicted and true cloud cover, and prints how well each sign ranks the errors. Then it
writes `ddunet_keras/sky/confidence.json`. With --cameras, it measures the confidence on cameras
that nothing was fitted to. Run it again when the shipped model has changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure_sensitivity import make_gray

import ddunet_keras as dd
from ddunet_keras.data.augmentation import Augmentation
from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import Split
from ddunet_keras.files import IGNORE, write_json
from ddunet_keras.images import resize_labels, resize_probabilities
from ddunet_keras.sky.confidence import COEFFICIENTS, OKTA, doubts, logistic
from ddunet_keras.sky.cover import blacken
from ddunet_keras.sky.quality import frame_quality

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "ddunet_keras" / "weights"
CAMERAS = ("dslr", "ov2640", "fisheye")
EXPOSURES = (0.7, 1.4)
"""Of the further inferences, whose covers are compared with the first one's."""

VARIANTS = 2
"""Of each photo, as other cameras would show it."""

OTHER_CAMERA = Augmentation(crop=0.6, gamma=1.4, saturation=0.4, other_camera=1.0)
BINS = 5


def held_back(swinyseg: Path, wsiseg: Path, every: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Photos that the model was not trained on, with labels, and variants of them."""
    split = Split.load(WEIGHTS / "ddunet_c8" / "split.json")
    halves = Split.load(WEIGHTS / "wsiseg_halves.json")
    rng = np.random.default_rng(0)
    for folder, names in ((swinyseg, split.val + split.test), (wsiseg, halves.val + halves.test)):
        dataset = open_dataset(folder)
        for name in names[::every]:
            image, labels = dataset.load(dataset.find(name))
            yield image, labels
            for _ in range(VARIANTS):
                yield OTHER_CAMERA(image, labels, labels.shape, rng)


def of_camera(folder: Path, grey: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A camera's photos with labels; grey: as a mono camera would show them."""
    dataset = open_dataset(folder)
    for sample in dataset:
        image, labels = dataset.load(sample)
        yield make_gray(image) if grey else image, labels


def measure(segmenter: dd.Segmenter | dd.DDUNet, frames) -> dict[str, np.ndarray]:
    """Absolute error of the cover and signs of it, by name, of all usable frames."""
    rows = []
    for image, labels in frames:
        valid = labels != IGNORE
        quality = frame_quality(image, valid)
        if quality.sky_likeness is None or not quality.usable:
            continue
        seen = blacken(image, valid)
        small_valid = resize_labels(valid.view(np.uint8), segmenter.image_shape[:2]).astype(bool)

        def cover(photo, valid=valid):
            probabilities = segmenter.predict_probabilities(photo)
            whole = resize_probabilities(probabilities, valid.shape)
            return probabilities, float(np.mean(whole[valid] >= 0.5))

        probabilities, found = cover(seen)
        others = [cover((seen * e).clip(0, 255).astype(np.uint8))[1] for e in EXPOSURES]
        row = {"error": abs(found - float(np.mean(labels[valid] > 0)))}
        row |= doubts(probabilities[small_valid], 0.5, quality.sky_likeness, quality.grey_light)
        row["darker"] = abs(others[0] - found)
        row["darker or brighter"] = max(abs(other - found) for other in others)
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; equal values have their mean rank. NaN where all are equal."""
    ranks = [mean_ranks(values) for values in (first, second)]
    if any(np.ptp(values) == 0 for values in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 0 on; of equal values their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def halves_of(error: np.ndarray, doubt: np.ndarray) -> tuple[float, float]:
    """Mean errors, in points, of the more and the less confident half; equal doubts are mixed."""
    mixed = np.random.default_rng(0).permutation(len(doubt))
    order = mixed[np.argsort(doubt[mixed], kind="stable")]
    middle = len(order) // 2
    return 100 * error[order[:middle]].mean(), 100 * error[order[middle:]].mean()


def fit_logistic(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights and bias of logistic regression, by Newton's method with a little ridge."""
    inputs = np.column_stack([features, np.ones(len(features))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-(inputs @ weights)))
        slope = inputs.T @ (probability - target) + 1e-3 * weights
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
        weights = weights - np.linalg.solve(curvature + 1e-3 * np.eye(len(weights)), slope)
    return weights


def fit_confidence(table: dict[str, np.ndarray], names: list[str]) -> dict:
    """Logistic regression of being right within an okta; no sign of doubt may raise it."""
    features = np.column_stack([table[name] for name in names])
    weights = fit_logistic(features, table["error"] <= OKTA)
    falling = [name for name, weight in zip(names, weights[:-1], strict=True) if weight < 0]
    if not falling:
        raise ValueError("no sign of doubt goes with errors: the model is sure where it is wrong")
    if len(falling) < len(names):
        return fit_confidence(table, falling)
    return {
        "names": names,
        "weights": weights[:-1].tolist(),
        "bias": float(weights[-1]),
        "averages": {name: float(table[name].mean()) for name in names},
    }


def confidence_of(table: dict[str, np.ndarray], model: dict) -> np.ndarray:
    features = np.column_stack([table[name] for name in model["names"]])
    return logistic(features, model)


def print_signs(title: str, table: dict[str, np.ndarray]) -> None:
    error = table["error"]
    print(f"\n{title}: {len(error)} frames, mean error {100 * error.mean():.1f} points")
    print("| sign | rank correlation | confident half | other half |")
    print("|---|---|---|---|")
    for name, sign in table.items():
        if name != "error":
            better, worse = halves_of(error, sign)
            correlation = rank_correlation(error, sign)
            print(f"| {name} | {correlation:.2f} | {better:.1f} | {worse:.1f} |")


def print_calibration(title: str, error: np.ndarray, confidence: np.ndarray) -> None:
    print(f"\n{title}: error by confidence")
    print("| confidence | frames | mean error | within an okta |")
    print("|---|---|---|---|")
    for part in np.array_split(np.argsort(confidence), BINS):
        low, high = confidence[part].min(), confidence[part].max()
        within = 100 * np.mean(error[part] <= OKTA)
        mean = 100 * error[part].mean()
        print(f"| {low:.2f} to {high:.2f} | {len(part)} | {mean:.1f} | {within:.0f} % |")
    better, worse = halves_of(error, -confidence)
    print(
        f"confident half {better:.1f} points, other half {worse:.1f}, all {100 * error.mean():.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("swinyseg", type=Path)
    parser.add_argument("wsiseg", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take one of so many photos: quicker")
    parser.add_argument("--cameras", type=Path, help="folder with the sets of `ddunet benchmark`")
    parser.add_argument("--model", type=Path, help="a .tflite or .keras file (default: what ships)")
    arguments = parser.parse_args()
    keras = arguments.model and arguments.model.suffix == ".keras"
    segmenter = (dd.load_model if keras else dd.Segmenter)(arguments.model)
    table = measure(segmenter, held_back(arguments.swinyseg, arguments.wsiseg, arguments.every))
    print_signs("held-back photos", table)
    names = list(doubts(np.full(1, 0.5), 0.5, 0.0))
    model = fit_confidence(table, names)
    print_calibration("held-back photos", table["error"], confidence_of(table, model))
    write_json(COEFFICIENTS, model)
    print(f"wrote {COEFFICIENTS}")
    if arguments.cameras:
        folders = [arguments.cameras / name for name in CAMERAS]
        for title, grey in (("all cameras", False), ("all cameras, grey", True)):
            found = [measure(segmenter, of_camera(folder, grey)) for folder in folders]
            for name, part in zip(CAMERAS, found, strict=True):
                print_signs(f"{name}, grey" if grey else name, part)
            joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            print_signs(title, joined)
            print_calibration(title, joined["error"], confidence_of(joined, model))


if __name__ == "__main__":
    main()
