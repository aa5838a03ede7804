"""Fits the classifier that tells frames of the sky from other pictures, and measures it.

    python tools/fit_frame_quality.py ../shared/data/swinyseg-base ../shared/data/wsiseg-240 \\
        [--pictures FOLDER]

It writes `ddunet_keras/sky/frame_quality.json`, and prints how well it tells skies from other
pictures that it was not fitted to. It is fitted to the training days of SWINySEG, half of WSISEG
and synthetic skies: as they are, as other cameras would show them, and dressed with rims, trees and
text; against `pictures_without_sky.KINDS` and the photos in FOLDER, which must not show much sky
(each file is a kind, or each folder in it). Run it again when `synthetic_sky` or `describe` has
changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pictures_without_sky import KINDS
from PIL import Image, ImageDraw

import ddunet_keras as dd
from ddunet_keras.data.augmentation import Augmentation
from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import Split
from ddunet_keras.files import write_json
from ddunet_keras.sky.description import describe
from ddunet_keras.sky.quality import COEFFICIENTS, LIMIT, find_flaw, is_drawing, shrink_frame

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "ddunet_keras" / "weights"
SIDE = 256
"""Longer side to which photos are brought before they are changed, pixels."""

SKIES = 1200
"""Synthetic skies; a third of them at night, whatever the shares of `synthetic_sky` are."""

SMOOTH_SKIES = 400

SEEDS = 8
"""Pictures of each kind; every other one as another camera shows it."""

PHOTO_VARIANTS = 4
"""Of each photo without a sky: parts of it, some as other cameras show them."""

HIDDEN = 16
"""Units of the hidden layer."""

STEPS = 300
LEARNING_RATE = 0.01
WEIGHT_DECAY = 3e-3
REFUSED_SKIES = 0.006
"""Share of the skies fitted to that the threshold refuses. Most of these are changed harder than
cameras do; of photos as they are, hardly any is refused."""

OTHER_CAMERA = Augmentation(crop=0.6, gamma=1.4, saturation=0.4, other_camera=1.0)
PART = Augmentation(crop=0.35, gamma=1.4, saturation=0.4, other_camera=0.6)


class Table:
    """Descriptions of pictures, with what is known of each."""

    def __init__(self) -> None:
        self.numbers: list[list[float]] = []
        self.sources: list[str] = []
        self.groups: list[str] = []
        self.drawings: list[bool] = []  # recognized without the classifier
        self.names: list[str] = []

    def add(self, image: np.ndarray, source: str, group: str) -> None:
        pixels, valid = shrink_frame(image)
        if find_flaw(pixels[valid]) is None:  # others never come to the classifier
            numbers = describe(pixels, valid)
            self.names = list(numbers)
            self.numbers.append(list(numbers.values()))
            self.sources.append(source)
            self.groups.append(group)
            self.drawings.append(is_drawing(image))


# --- skies


def smaller(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(picture)


def other_camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    labels = np.zeros(image.shape[:2], np.uint8)
    return OTHER_CAMERA(image, labels, labels.shape, rng)[0]


def part_of(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    labels = np.zeros(image.shape[:2], np.uint8)
    return PART(image, labels, labels.shape, rng)[0]


def smooth_sky(rng: np.random.Generator) -> np.ndarray:
    """Cloudless or overcast: a slope of light, perhaps about the sun, with little or no noise."""
    height = int(rng.choice([120, 144, 192]))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1:1:192j]
    turn = rng.choice([0, rng.uniform(0, 2 * np.pi)])
    slope = 0.5 + 0.5 * (y * np.cos(turn) + x * np.sin(turn)) ** rng.choice([1, 2])
    blue = np.array([40, 90, 170]) * rng.uniform(0.1, 1.1)
    grey = np.full(3, rng.uniform(5, 220))
    brown = np.array([90, 60, 30]) * rng.uniform(0.1, 1.2)
    colours = np.array([blue, grey, brown])[rng.integers(3)] + rng.normal(0, 6, 3)
    other = colours * rng.uniform(1, 2) + rng.uniform(0, 60)
    image = colours + (other - colours) * slope[..., None]
    if rng.random() < 0.3:
        away = np.hypot(y - rng.uniform(-1, 1), x - rng.uniform(-1, 1))
        image = image + 255 * np.exp(-away / rng.uniform(0.05, 0.4))[..., None]
    if rng.random() < 0.3:
        image = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    image = image * (1 - rng.uniform(0, 0.3) * (x * x + y * y)[..., None])
    image = image + rng.choice([0, rng.uniform(0, 4)]) * rng.normal(size=image.shape)
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dressed, or as another camera shows it, or both."""
    how = rng.choice(["dressed", "other camera", "both"])
    if how != "other camera":
        image = dress(image, rng)
    return image if how == "dressed" else other_camera(image, rng)


def dress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sky in the disc of a fisheye or above trees and houses, and with text, or some of these."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = in_disc(image, rng)
    if rng.random() < 0.6:
        image = behind_trees(image, rng)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    where = rng.choice(["nowhere", "corners", "strip"])
    if where == "corners":
        for x, y in ((2, 2), (0.7 * width, 2), (2, 0.93 * height)):
            draw.text((x, y), "21:14:33 gain 20", fill="white", font_size=float(rng.uniform(6, 11)))
    elif where == "strip":
        top = 0.94 * height
        draw.rectangle((0.1 * width, top, 0.9 * width, height), fill="white")
        draw.text((0.2 * width, top), "2026-11-29 21:14", fill="black", font_size=9)
    return np.asarray(picture)


def in_disc(image, rng):
    side = max(image.shape[:2])
    height, width = side, int(side * rng.choice([1, 4 / 3, 16 / 9]))
    sky = np.asarray(Image.fromarray(image).resize((width, height)))
    rows, columns = np.ogrid[:height, :width]
    radius = rng.uniform(0.32, 0.75) * height
    y = height * rng.uniform(0.45, 0.55)
    x = width * rng.uniform(0.45, 0.55)
    distance = np.hypot(rows - y, columns - x) / radius
    shade = np.clip(1.02 - rng.uniform(0, 0.4) * distance**4, 0, 1)
    black = rng.choice([0, rng.uniform(0, 14)]) + rng.uniform(0, 2) * rng.normal(size=sky.shape)
    framed = np.where((distance <= 1)[..., None], sky * shade[..., None], black)
    return framed.clip(0, 255).astype(np.uint8)


def behind_trees(image, rng):
    """Trees or houses that stand up to a quarter of the height at one or more edges."""
    result = image.astype(np.float32)
    for turns in range(4):
        if rng.random() > (0.8 if turns == 0 else 0.25):
            continue
        turned = np.rot90(result, turns)
        rows, columns = turned.shape[:2]
        points = int(rng.integers(4, 30))
        line = np.interp(
            np.arange(columns), np.linspace(0, columns, points), rng.uniform(0, 1, points)
        )
        if rng.random() < 0.4:
            line = np.round(line * 3) / 3  # roofs
        top = rows * (1 - rng.uniform(0.05, 0.28) * line)
        below = np.arange(rows)[:, None] >= top
        level = rng.choice([0.05, 0.2, 0.5]) * np.percentile(result, 90)
        leaves = level * np.exp(rng.uniform(0, 0.7) * rng.normal(size=(rows, columns, 1)))
        colour = 1 + rng.uniform(-0.3, 0.3, 3) * np.array([1, 1, 1])
        turned = np.where(below[..., None], leaves * colour, turned)
        result = np.rot90(turned, -turns)
    return result.clip(0, 255).astype(np.uint8)


def photos_of(folder: Path, names) -> Iterator[tuple[str, np.ndarray]]:
    dataset = open_dataset(folder)
    for name in names:
        yield name, dataset.load(dataset.find(name))[0]


def describe_skies(swinyseg: Path, wsiseg: Path, every: int) -> Table:
    table = Table()
    rng = np.random.default_rng(0)
    split = Split.load(WEIGHTS / "ddunet_c8" / "split.json")
    halves = Split.load(WEIGHTS / "wsiseg_halves.json")
    parts = [
        ("swinyseg", swinyseg, split.train, 1),
        ("swinyseg, other days", swinyseg, split.val + split.test, 1),
        ("wsiseg", wsiseg, halves.train, 3),
        ("wsiseg, other half", wsiseg, halves.val + halves.test, 3),
    ]
    for source, folder, names, variants in parts:
        for name, image in photos_of(folder, names[::every]):
            table.add(image, source, name)
            for _ in range(variants):
                table.add(changed(smaller(image), rng), f"{source}, changed", name)
    for seed in range(0, SKIES, every):
        time = "night" if seed % 3 == 0 else None
        image, _ = dd.synthetic_sky(seed, (144, 192), time=time)
        table.add(image, "synthetic", f"synthetic {seed}")
    for seed in range(0, SMOOTH_SKIES, every):
        image = smooth_sky(rng)
        table.add(dress(image, rng) if seed % 2 else image, "smooth", f"smooth {seed}")
    return table


def describe_other_pictures(folder: Path | None) -> Table:
    table = Table()
    rng = np.random.default_rng(0)
    for name, draw in KINDS.items():
        for seed in range(SEEDS):
            image = draw(np.random.default_rng(seed))
            if seed % 2:
                image = other_camera(smaller(image), rng)
            table.add(image, "drawn", name)
    for path in sorted(folder.rglob("*.*")) if folder else []:
        image = dd.read_image(path)
        name = path.stem if path.parent == folder else path.parent.name
        table.add(image, "photo", name)
        for _ in range(PHOTO_VARIANTS):
            table.add(part_of(smaller(image), rng), "photo, changed", name)
    return table


# --- the classifier


def standardize(numbers: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return ((numbers - mean) / deviation).clip(-LIMIT, LIMIT)


def fit(skies: np.ndarray, others: np.ndarray, seed: int = 0) -> dict:
    """A network with one hidden layer, by Adam on all of the data: its coefficients."""
    numbers = np.concatenate([skies, others])
    is_sky = np.arange(len(numbers)) < len(skies)
    weight = np.where(is_sky, 0.5 / len(skies), 0.5 / len(others))
    mean = numbers.mean(axis=0)
    deviation = numbers.std(axis=0) + 1e-6
    inputs = standardize(numbers, mean, deviation)
    rng = np.random.default_rng(seed)
    width = inputs.shape[1]
    parameters = [
        rng.normal(0, width**-0.5, (width, HIDDEN)),
        np.zeros(HIDDEN),
        rng.normal(0, HIDDEN**-0.5, HIDDEN),
        np.zeros(()),
    ]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    for step in range(1, STEPS + 1):
        hidden = np.tanh(inputs @ parameters[0] + parameters[1])
        odds = hidden @ parameters[2] + parameters[3]
        error = weight * (1 / (1 + np.exp(-odds)) - is_sky)
        back = np.outer(error, parameters[2]) * (1 - hidden**2)
        gradients = [inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum()]
        rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        for index, gradient in enumerate(gradients):
            if parameters[index].ndim:
                gradient = gradient + WEIGHT_DECAY * parameters[index]
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.99 * second[index] + 0.01 * gradient**2
            move = (first[index] / (1 - 0.9**step)) / (
                np.sqrt(second[index] / (1 - 0.99**step)) + 1e-8
            )
            parameters[index] = parameters[index] - rate * move
    model = {
        "mean": mean,
        "deviation": deviation,
        "hidden_weights": parameters[0],
        "hidden_bias": parameters[1],
        "weights": parameters[2],
        "bias": float(parameters[3]),
    }
    model["bias"] -= float(np.quantile(score(model, skies), REFUSED_SKIES))
    return model


def score(model: dict, numbers: np.ndarray) -> np.ndarray:
    inputs = standardize(numbers, model["mean"], model["deviation"])
    hidden = np.tanh(inputs @ model["hidden_weights"] + model["hidden_bias"])
    return hidden @ model["weights"] + model["bias"]


def half_of(groups: np.ndarray, seed: int) -> np.ndarray:
    """Whether each group is in a random half of the groups."""
    names = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(len(names)) < len(names) / 2
    return np.isin(groups, names[chosen])


def report(model, skies: Table, others: Table, seen: np.ndarray) -> None:
    """Prints what is refused: of skies a mistake, of other kinds what is wanted."""
    for title, table, part in (
        ("skies refused", skies, np.ones(len(skies.groups), bool)),
        ("pictures of other kinds refused", others, ~seen),
    ):
        refused = (score(model, np.array(table.numbers)) < 0) | np.array(table.drawings)
        print(title)
        for source in dict.fromkeys(table.sources):
            chosen = part & (np.array(table.sources) == source)
            print(f"  {source:40} {100 * refused[chosen].mean():5.1f} % of {chosen.sum()}")
    kept = ~refused & ~seen
    names, counts = np.unique(np.array(others.groups)[kept], return_counts=True)
    print("  taken for skies:", ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("swinyseg", type=Path)
    parser.add_argument("wsiseg", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take one of so many skies: quicker")
    parser.add_argument("--pictures", type=Path, help="folder of photos that show no sky")
    arguments = parser.parse_args()
    skies = describe_skies(arguments.swinyseg, arguments.wsiseg, arguments.every)
    others = describe_other_pictures(arguments.pictures)
    fitted = np.array(["other days" not in s and "other half" not in s for s in skies.sources])
    sky_numbers = np.array(skies.numbers)[fitted]
    other_numbers = np.array(others.numbers)
    for seed in range(2):
        seen = half_of(np.array(others.groups), seed)
        print(f"\nfitted to half of the kinds, {seed + 1}")
        report(fit(sky_numbers, other_numbers[seen]), skies, others, seen)
    model = fit(sky_numbers, other_numbers)
    print("\nfitted to all kinds")
    report(model, skies, others, np.zeros(len(other_numbers), bool))
    write_json(COEFFICIENTS, {"names": skies.names} | as_lists(model))
    print(f"wrote {COEFFICIENTS}")


def as_lists(model: dict) -> dict:
    """With five digits, which are enough."""
    return {
        name: np.vectorize(lambda value: float(f"{value:.5g}"))(values).tolist()
        for name, values in model.items()
    }


if __name__ == "__main__":
    main()
