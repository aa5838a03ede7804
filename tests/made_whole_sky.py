"""A small data set in WSISEG's layout, for the tests of tools that take one."""

import numpy as np
from PIL import Image

from ddunet_keras.data.synthetic import synthetic_sky
from ddunet_keras.files import IGNORE


def write_whole_sky(root, count, size):
    """Synthetic fisheye photos as WSISEG lies on disk; returns their names."""
    names = [f"ASC100-1006_{number:03d}" for number in range(count)]
    for seed, name in enumerate(names):
        image, labels = synthetic_sky(seed, size, view="fisheye")
        values = np.array([100, 255, 0], np.uint8)[np.where(labels == IGNORE, 2, labels)]
        for folder, picture in (("whole sky images", image), ("annotation", values)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / name, "PNG")
    return names
