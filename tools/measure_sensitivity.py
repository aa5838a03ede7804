"""How far the cloud cover moves when nothing but the photo changes: exposure, colour, surroundings.

    python tools/measure_sensitivity.py WSISEG [--model tflite/models/ddunet_c8_256.tflite]

The photos are whole-sky ones that the presets were not trained on: the test part of
`ddunet_keras/weights/wsiseg_halves.json`, evenly chosen. The horizon is what "auto" finds in the
photo as it was taken, and stays. Exposure multiplies the pixel values: a factor of 0.5 on these is
more than two stops of light. The change is that of the cover, in points; its mean and its largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ddunet_keras as dd
from ddunet_keras.evaluation import markdown_table
from ddunet_keras.presets import WEIGHTS
from ddunet_keras.sky import find_horizon

DARK_RED = (70, 0, 0)
"""What a lamp's light on the lens's rim may look like."""


def expose(factor: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A change that multiplies the pixel values."""

    def change(photo, valid):
        return np.rint(photo * factor).clip(0, 255).astype(np.uint8)

    return change


def make_gray(photo: np.ndarray) -> np.ndarray:
    """The photo as a monochrome camera gives it: luminance by ITU-R BT.601."""
    luminance = photo @ np.array([0.299, 0.587, 0.114])
    return np.repeat(np.rint(luminance).astype(np.uint8)[..., None], 3, axis=-1)


def paint_outside(color: tuple[int, int, int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A change of what is not sky."""

    def change(photo, valid):
        return np.where(valid[..., None], photo, np.uint8(color))

    return change


CHANGES = {
    "exposure x 0.5": expose(0.5),
    "exposure x 1.4": expose(1.4),
    "exposure x 0.25": expose(0.25),
    "grey in place of colour": lambda photo, valid: make_gray(photo),
    "outside the horizon black": paint_outside((0, 0, 0)),
    "outside the horizon dark red": paint_outside(DARK_RED),
}


def measure(model, photos: list[Path]) -> dict[str, np.ndarray]:
    """Change of the cover of each photo, points, by the name of the change."""
    differences: dict[str, list[float]] = {name: [] for name in CHANGES}
    for path in photos:
        photo = dd.read_image(path)
        valid, disc = find_horizon("auto", photo)
        if disc is None:
            raise dd.DataError(f"{path}: has no disc; give whole-sky photos")
        cover = model.segment(photo, horizon=valid, force=True).cloud_cover.percent
        for name, change in CHANGES.items():
            found = model.segment(change(photo, valid), horizon=valid, force=True)
            changed = found.cloud_cover.percent
            differences[name].append(abs(changed - cover))
    return {name: np.array(values) for name, values in differences.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of WSISEG")
    parser.add_argument("--model", type=Path, help="a .tflite or .keras file (default: the preset)")
    parser.add_argument("--split", type=Path, default=WEIGHTS / "wsiseg_halves.json")
    parser.add_argument("--count", type=int, default=30, help="photos (default: 30)")
    options = parser.parse_args()
    is_keras = options.model is not None and options.model.suffix == ".keras"
    model = dd.load_model(options.model) if is_keras else dd.Segmenter(options.model)
    dataset = dd.open_dataset(options.data)
    names = dd.Split.load(options.split).test
    chosen = np.linspace(0, len(names), min(options.count, len(names)), endpoint=False, dtype=int)
    photos = [dataset.find(names[index]).image for index in chosen]
    lines = [
        [name, f"{values.mean():.1f}", f"{values.max():.0f}"]
        for name, values in measure(model, photos).items()
    ]
    print(f"change of the cover of {len(photos)} photos, points\n")
    print("\n".join(markdown_table(("Change", "Mean", "Largest"), lines)))


if __name__ == "__main__":
    main()
