"""Trains sky, thin and thick cloud on synthetic skies in HYTA's layout, and draws one.

    python tools/three_classes.py WORK --out docs/three_classes.jpg

WORK gets `skies` (the data set) and `run` (the training); what is there already is used again. The
picture shows a sky that was not trained on. It takes some 4 minutes on two cores and printed:

    PRINTED
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from draw_readme_picture import JPEG_QUALITY, PHOTO_SIZE, draw
from PIL import Image

import ddunet_keras as dd
from ddunet_keras.data.layouts import LAYOUTS
from ddunet_keras.files import IGNORE, atomic_path, write_image

COUNT = 200
SHOWN_SEED = 10_019
"""Of the sky in the picture, beyond those of the data set. It has all three classes."""

TRAINING_SIZE = (48, 64)

TRAINING = {
    "num_classes": 3,
    "protocol": "paper",  # each sky is drawn by itself: a split over images shares nothing
    "recipe": "geometric",
    "base_channels": 4,
    "image_size": TRAINING_SIZE,
    "batch_size": 8,
    "epochs": 30,
}


def hyta_values(num_classes: int) -> np.ndarray:
    """The value in a mask of HYTA for each label."""
    label_of = LAYOUTS["hyta"].codes[num_classes]
    return np.array(sorted(label_of, key=label_of.__getitem__), np.uint8)


def draw_sky(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Photo and labels (0, 1, 2) of a sky by day; HYTA has no other, and no pixels to ignore."""
    while True:
        image, labels = dd.synthetic_sky(seed, size, time="day", view="patch", num_classes=3)
        if not (labels == IGNORE).any():
            return image, labels
        seed += 1_000_000


def write_hyta(root: Path, count: int, size: tuple[int, int]) -> Path:
    """Writes synthetic skies as HYTA lies on disk: images, masks of two and of three classes."""
    for number in range(1, count + 1):
        image, labels = draw_sky(number, size)
        name = f"B{number}"
        with atomic_path(root / "images" / f"{name}.jpg") as temporary:
            Image.fromarray(image).save(temporary, quality=JPEG_QUALITY)
        with atomic_path(root / "2GT" / f"{name}_GT.jpg") as temporary:
            Image.fromarray(hyta_values(2)[labels.clip(max=1)]).save(temporary)
        write_image(root / "3GT" / f"{name}_3GT.png", hyta_values(3)[labels])
    return root


def shares(labels: np.ndarray) -> str:
    """How much of a photo is thin and thick cloud, in words."""
    thin, thick = (100 * float((labels == label).mean()) for label in (1, 2))
    return f"{thin:.0f} % thin, {thick:.0f} % thick cloud"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--out", type=Path, default=Path("docs/three_classes.jpg"))
    parser.add_argument("--seed", type=int, default=SHOWN_SEED, help="of the sky in the picture")
    options = parser.parse_args()
    skies = options.work / "skies"
    if not skies.exists():
        write_hyta(skies, COUNT, (2 * TRAINING_SIZE[0], 2 * TRAINING_SIZE[1]))
    run = options.work / "run"
    dd.train(skies, run, resume=True, verbose=2, **TRAINING)

    model = dd.load_model(run / "best.keras")
    dataset = dd.open_dataset(skies, num_classes=3)
    test = dd.make_split(dataset, "paper").test
    scores = dd.evaluate(model.predict_probabilities, dataset, test).overall["image_mean"]
    photo, truth = draw_sky(options.seed, PHOTO_SIZE)
    result = model.segment(photo)
    grey = hyta_values(3)[np.stack([truth, result.labels])]
    masks = np.repeat(grey[..., None], 3, axis=-1)
    captions = ["sky", f"truth: {shares(truth)}", f"found: {shares(result.labels)}", "overlay"]
    picture = draw(captions, [photo, *masks, result.overlay()])
    picture.save(options.out, quality=JPEG_QUALITY)
    print(f"{len(test)} skies: accuracy {scores['accuracy']:.3f}, MIoU {scores['miou']:.3f}")
    print(f"{options.out}: {captions[1]}; {captions[2]}")


if __name__ == "__main__":
    main()
