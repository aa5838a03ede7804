"""Trains a preset on, with another model's opinion in the labels: the last stages of the presets.

    python tools/train_with_teacher.py SWINYSEG WSISEG START.keras TEACHER.keras OUT.keras \\
        --skies skies31 skies31.json --skies skies32 skies32.json --steps 1400 --size 256

A batch holds patches of SWINYSEG (training and validation days of the protocol `date`), whole-sky
photos of WSISEG (the half that `wsiseg_halves.json` names) and synthetic skies.

- **Teacher.** The labels of a patch are its mask and, for the larger part, the probabilities that
  TEACHER gives. The masks are coarse, and leave veils out in one photo that they have in the next.
- **Other cameras.** Some photos are shown as another camera might have taken them. The teacher sees
  the photo itself.
- **Skies by day** are left out but for the cloudless and the overcast: in others, veils are cloud.

Nothing is selected: the last step counts. `--mean-with` writes the mean of its weights and another
model's, which is steadier than either on cameras that neither was trained on.
"""

from __future__ import annotations

# ruff: noqa: I001  ddunet_keras comes before keras, as it sets how TensorFlow starts
import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ddunet_keras import RECIPES, DDUNet, Split, load_model, make_split, open_dataset
from ddunet_keras.cli.console import log
from ddunet_keras.data.augmentation import MONO, Augmentation, through_other_camera
from ddunet_keras.data.datasets import Dataset
from ddunet_keras.files import IGNORE, DataError, atomic_path, first_line
from ddunet_keras.images import normalize
from ddunet_keras.losses import SegmentationLoss
from ddunet_keras.presets import WEIGHTS

import keras
import numpy as np
from PIL import Image

TEACHERS_SHARE = 0.6
"""Of the labels of a patch."""

CLOUDLESS, OVERCAST = 0.03, 0.97
"""Cover up to which, and from which, a synthetic sky of the day is trained on."""

PATCH, WHOLE_SKY, SKY = "patch", "whole-sky", "synthetic"

NOON = 12
"""Synthetic photos of the day are dated before it, those of dusk and night after it."""

KINDS = (PATCH, WHOLE_SKY, SKY)
SHARES = (8, 3, 5)
"""Parts of a batch, for each of `KINDS`."""

PHOTO_AUGMENTATION = Augmentation(other_camera=0)
"""Of patches and whole-sky photos: another camera comes after it, unseen by the teacher."""

SKY_AUGMENTATION = Augmentation(other_camera=0.1)
"""Of synthetic skies, which have many cameras already."""

WARMUP = 0.02
"""Part of the steps in which the learning rate rises."""

REPORTS = 10
"""How often the model is written and the loss is told."""


@dataclass(frozen=True)
class Source:
    """Photos of one kind."""

    kind: str
    photos: list  # (data set, sample)

    def draw(self, random: np.random.Generator):
        """Image and labels of a photo, uint8."""
        dataset, sample = self.photos[random.integers(len(self.photos))]
        return dataset.load(sample)


@dataclass(frozen=True)
class Batches:
    """What a batch holds.

    Attributes:
        size: (height, width) of its photos.
        batch_size: their number.
        other_camera: share of the real ones that are shown as another camera might.
        mono: share of these cameras that see no colours.
        shares: parts of a batch, for each of `KINDS`.
        seed: of everything that is drawn.

    Raises:
        ValueError: a share is no share, or no patch is left for the teacher.
    """

    size: tuple[int, int]
    batch_size: int
    other_camera: float
    mono: float
    shares: Sequence[int]
    seed: int

    def __post_init__(self):
        for name in ("other_camera", "mono"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1. Received: {getattr(self, name)}")
        if self.shares[0] < 1 or min(self.shares) < 0:
            raise ValueError(f"shares must be 0 or more, of patches 1. Received: {self.shares}")


# === Photos ===


def open_sources(swinyseg: Path, wsiseg: Path, skies: list[tuple[Path, Path]]) -> list[Source]:
    """The photos to train on.

    Raises:
        DataError: a data set or a split cannot be used.
    """
    patches = open_dataset(swinyseg)
    split = make_split(patches, "date", 0).with_validation()
    whole_sky = open_dataset(wsiseg)
    halves = Split.load(WEIGHTS / "wsiseg_halves.json")
    synthetic = []
    for folder, path in skies:
        dataset = open_dataset(folder)
        synthetic += useful_skies(dataset, Split.load(path))
    return [
        Source(PATCH, [(patches, patches.find(name)) for name in split.train]),
        Source(WHOLE_SKY, [(whole_sky, whole_sky.find(name)) for name in halves.train]),
        Source(SKY, synthetic),
    ]


def useful_skies(dataset: Dataset, split: Split) -> list:
    """The skies of a training part, without those of the day that are partly clouded."""
    chosen = []
    for name in split.train:
        sample = dataset.find(name)
        _, labels = dataset.load(sample)
        cover = np.mean(labels[labels != IGNORE] == 1)
        by_day = int(sample.time[:2]) < NOON
        if not (by_day and CLOUDLESS < cover < OVERCAST):
            chosen.append((dataset, sample))
    return chosen


def draw_photo(source: Source, batches: Batches, random: np.random.Generator):
    """A photo as the student sees it, the photo itself, and its labels.

    Returns:
        Two float32 (height, width, 3) in [-1, 1], and uint8 (height, width).
    """
    image, labels = source.draw(random)
    if source.kind == SKY:
        image, labels = SKY_AUGMENTATION(image, labels, batches.size, random)
        return normalize(image), normalize(image), labels
    image, labels = PHOTO_AUGMENTATION(image, labels, batches.size, random)
    seen = image
    if random.uniform() < batches.other_camera:
        seen = through_other_camera(Image.fromarray(image), random, batches.mono)
        is_outside = (labels == IGNORE) & (image.max(-1) == 0)
        seen = np.where(is_outside[..., None], 0, seen).astype("uint8")
    return normalize(seen), normalize(image), labels


def draw_batches(sources: list[Source], batches: Batches) -> Iterator[tuple]:
    """Endless batches: as the student sees them, as they are, labels, and which are patches."""
    parts = dict(zip(KINDS, batches.shares, strict=True))
    repeated = [source for source in sources for _ in range(parts[source.kind])]
    places = range(batches.batch_size)
    chosen = [repeated[place * len(repeated) // len(places)] for place in places]
    is_patch = np.array([source.kind == PATCH for source in chosen])
    with ThreadPoolExecutor(2) as pool:

        def begin(step):
            randoms = [np.random.default_rng([batches.seed, step, place]) for place in places]
            return [
                pool.submit(draw_photo, source, batches, random)
                for source, random in zip(chosen, randoms, strict=True)
            ]

        waiting = begin(0)
        for step in itertools.count(1):
            jobs, waiting = waiting, begin(step)  # the next is drawn while this one is trained on
            photos = [job.result() for job in jobs]
            yield *(np.stack(parts) for parts in zip(*photos, strict=True)), is_patch


# === Training ===


def train(
    model: DDUNet,
    teacher: DDUNet,
    sources: list[Source],
    out: Path,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
) -> DDUNet:
    """Trains `model` on, in place, and writes it to `out` now and then."""
    recipe = RECIPES["default"]
    student = model.resized((*batches.size, 3), deep_supervision=True)
    teacher = teacher.resized((*batches.size, 3))
    count = len(student.outputs)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=learning_rate, warmup_steps=max(1, round(WARMUP * steps))
    )
    student.compile(
        keras.optimizers.AdamW(
            schedule, weight_decay=recipe.weight_decay, global_clipnorm=recipe.clipnorm
        ),
        loss=[SegmentationLoss() for _ in range(count)],
        loss_weights=list(recipe.aux_weights[:count]),
    )
    losses = []
    drawn = draw_batches(sources, batches)
    for step in range(1, steps + 1):
        seen, photos, labels, is_patch = next(drawn)
        targets = labels.astype("float32")
        logits = teacher.predict_on_batch(photos[is_patch])[..., 0]
        opinions = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits))
        own = targets[is_patch]
        mixed = (1 - TEACHERS_SHARE) * own + TEACHERS_SHARE * opinions
        targets[is_patch] = np.where(own == IGNORE, IGNORE, mixed)
        logs = student.train_on_batch(seen, [targets] * count, return_dict=True)
        student.reset_metrics()
        losses.append(float(logs["loss"]))
        if step % max(1, steps // REPORTS) == 0 or step == steps:
            log(f"step {step} of {steps}: loss {np.mean(losses):.4f}")
            losses = []
            model.copy_weights(student)
            save(model, out)
    return model


def mean_of(model: DDUNet, other: DDUNet) -> None:
    """Gives `model` the means of its weights and another's."""
    for weight, same in zip(model.weights, other.weights, strict=True):
        weight.assign((weight.numpy() + same.numpy()) / 2)


def save(model: DDUNet, out: Path) -> None:
    with atomic_path(out) as path:
        model.save(path)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("swinyseg", type=Path)
    parser.add_argument("wsiseg", type=Path)
    parser.add_argument("start", type=Path, help=".keras file to begin with")
    parser.add_argument("teacher", type=Path, help=".keras file")
    parser.add_argument("out", type=Path, help=".keras file")
    parser.add_argument(
        "--skies",
        nargs=2,
        type=Path,
        action="append",
        required=True,
        metavar=("DATA", "SPLIT"),
        help="of `ddunet synthetic` and `ddunet split`; may be repeated",
    )
    parser.add_argument("--mean-with", type=Path, metavar="MODEL")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--size", type=int, default=128, help="multiple of 16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the highest")
    parser.add_argument("--other-camera", type=float, default=0.35, help="share of photos")
    parser.add_argument("--mono", type=float, default=MONO, help="share of those, without colour")
    parser.add_argument(
        "--shares",
        nargs=len(KINDS),
        type=int,
        default=SHARES,
        metavar=("PATCHES", "WHOLE_SKY", "SKIES"),
        help="parts of a batch",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix != ".keras":
            raise DataError(f"{options.out}: the name of the trained model must end in .keras")
        batches = Batches(
            size=(options.size, options.size),
            batch_size=options.batch_size,
            other_camera=options.other_camera,
            mono=options.mono,
            shares=options.shares,
            seed=options.seed,
        )
        model, teacher = load_model(options.start), load_model(options.teacher)
        other = load_model(options.mean_with) if options.mean_with else None
        sources = open_sources(options.swinyseg, options.wsiseg, options.skies)
        train(
            model,
            teacher,
            sources,
            options.out,
            batches,
            steps=options.steps,
            learning_rate=options.learning_rate,
        )
        if other is not None:
            mean_of(model, other)
            save(model, options.out)
    except (DataError, ValueError) as error:
        parser.exit(2, f"error: {first_line(error)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
