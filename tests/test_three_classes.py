"""Sky, thin cloud and thick cloud, from HYTA's layout to the device, on the command line."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from ddunet_keras import cli
from ddunet_keras.data.splits import Split
from ddunet_keras.data.synthetic import synthetic_sky
from ddunet_keras.files import write_image

CLASSES = 3
SIZE = (48, 64)
PHOTOS = 96

LEAST_SHARE = 0.1
"""Of each class in a photo: in most synthetic skies one of the three hardly occurs."""


def write_hyta(root, count):
    """Synthetic patches of the day sky, as HYTA lies on disk."""
    number = 0
    for seed in itertools.count():
        image, labels = synthetic_sky(seed, SIZE, time="day", view="patch", num_classes=CLASSES)
        shares = np.bincount(labels.ravel(), minlength=256) / labels.size
        if shares[:CLASSES].min() < LEAST_SHARE or shares[CLASSES:].any():
            continue
        number += 1
        write_image(root / f"images/B{number}.jpg", image)
        write_image(root / f"2GT/B{number}_GT.jpg", np.array([0, 255, 255], np.uint8)[labels])
        write_image(root / f"3GT/B{number}_3GT.png", np.array([0, 126, 255], np.uint8)[labels])
        if number == count:
            return root


def true_labels(root, name):
    with Image.open(root / f"3GT/{name}_3GT.png") as picture:
        return np.searchsorted([0, 126, 255], np.asarray(picture))


def ddunet(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
def test_from_training_to_the_device(tmp_path, capsys):
    hyta, run, file = write_hyta(tmp_path / "hyta", PHOTOS), tmp_path / "run", tmp_path / "3.tflite"
    options = ["--protocol", "paper", "--base-channels", 4, "--image-size", "48,64"]
    options += ["--recipe", "geometric", "--epochs", 40, "--batch-size", 8]
    ddunet("train", hyta, "--out", run, "--num-classes", CLASSES, *options)
    split = ["--split", run / "split.json"]
    ddunet("evaluate", run / "last.keras", hyta, "--out", tmp_path / "scores", *split)
    target = ["--size", "48,64", "--target", "tflm", "--out", file]
    also = ["--also", hyta, run / "split.json"]
    ddunet("convert", run / "last.keras", "--calibration", hyta, *split, *also, *target)
    names = Split.load(run / "split.json").test
    photos = [hyta / f"images/{name}.jpg" for name in names]
    ddunet("predict", *photos, "--model", file, "--out", tmp_path / "masks")
    capsys.readouterr()

    truth = np.stack([true_labels(hyta, name) for name in names])
    masks = np.stack([Image.open(tmp_path / f"masks/{name}_mask.png") for name in names])
    # each class is found where it is far more often than elsewhere
    for label in range(CLASSES):
        found = masks == label
        assert found[truth == label].mean() > 2 * found[truth != label].mean(), label
    # the float model does not differ by more than int8 costs
    scores = json.loads((tmp_path / "scores/evaluation.json").read_text())
    accuracy = scores["groups"]["all"]["pooled"]["accuracy"]
    assert np.mean(masks == truth) == pytest.approx(accuracy, abs=0.02)
    # any cloud counts for the cover
    covers = json.loads((tmp_path / "masks/predictions.json").read_text())
    percent = [record["cloud_cover"]["percent"] for record in covers]
    np.testing.assert_allclose(percent, 100 * (masks > 0).mean((1, 2)), atol=0.01)
