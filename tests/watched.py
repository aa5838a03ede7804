"""A watched camera for tests: its frames, a stand-in for the model, and a service to be killed.

`python watched.py SOURCE OUT` watches until it is ended, and prints each frame's name.
"""

import io
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ddunet_keras.camera.config import WatchConfig
from ddunet_keras.camera.watch import Watch
from ddunet_keras.sky import segment


class SkyModel:
    """Stands in for a model: the upper half of the sky is as cloudy as the photo is bright."""

    def segment(self, image, threshold=0.5, horizon=None, force=False):
        def predict(photo):
            probabilities = np.zeros((8, 8), np.float32)
            probabilities[:4] = 1 if photo.mean() > 128 else 0.1
            return probabilities

        return segment(predict, image, threshold, horizon, force=force)


def frame(seed, brightness=150, size=(64, 48)) -> bytes:
    """A JPEG of a noisy gradient; each seed gives another."""
    noise = np.random.default_rng(seed).normal(0, 6, (size[1], size[0], 3))
    gradient = np.linspace(-40, 40, size[0])[None, :, None]
    return encode((brightness + gradient + noise).clip(1, 254).astype(np.uint8))


def black_frame(size=(64, 48)) -> bytes:
    return encode(np.zeros((size[1], size[0], 3), np.uint8))


def encode(image, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=90, **options)
    return content.getvalue()


def put(path: Path, content: bytes) -> Path:
    """Writes a file as a whole, under a hidden name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(content)
    os.replace(hidden, path)
    return path


def main(source: str, out: str) -> None:
    config = WatchConfig(source, out=out, interval=0.5, max_age=86_400, thumbnail_days=1)
    watch = Watch(config, SkyModel(), report=lambda record: print(record["frame"], flush=True))
    watch.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
