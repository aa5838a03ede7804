"""Sky, thin and thick cloud in HYTA's layout: from the data set to int8 and to masks of photos."""

import json

import numpy as np
import pytest
import three_classes
from PIL import Image

import ddunet_keras as dd
from ddunet_keras import cli
from ddunet_keras.sky import class_names
from ddunet_keras.sky.cover import CLOUD_COLORS

SIZE = (48, 64)


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    return three_classes.write_hyta(tmp_path_factory.mktemp("data") / "hyta", 60, SIZE)


def test_skies_lie_as_hyta_s_do(skies):
    three = dd.open_dataset(skies, num_classes=3)
    two = dd.open_dataset(skies)
    assert three.layout == two.layout == "hyta" and len(three) == len(two) == 60
    three.verify()
    values = {value for path in (skies / "3GT").iterdir() for value in np.unique(Image.open(path))}
    assert values == {0, 126, 255}
    for name in ("B1", "B30"):
        _, classes = three.load(three.find(name))
        _, is_cloud = two.load(two.find(name))
        # masks of two classes are JPEG files, which move edges
        assert np.mean((classes > 0) == is_cloud) > 0.99


@pytest.mark.slow
def test_from_hyta_to_masks_of_three_classes(skies, tmp_path, capsys):
    """Trained, scored, converted and used by the commands, float and int8."""
    run = tmp_path / "run"
    options = ["--num-classes", "3", "--protocol", "paper", "--recipe", "geometric"]
    options += ["--base-channels", "4", "--image-size", "48,64", "--epochs", "20"]
    assert cli.main(["train", str(skies), "--out", str(run), *options]) == 0
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["layout"] == "hyta" and record["settings"]["num_classes"] == 3

    # the file of int8, which is not written unless it agrees with the float model
    best = run / "best.keras"
    file = run / "small.tflite"
    options = ["--size", "48,64", "--target", "tflm", "--no-inspect", "--out", str(file)]
    assert cli.main(["convert", str(best), "--calibration", str(skies), *options]) == 0
    report = json.loads(file.with_suffix(".json").read_text())
    assert report["verification"]["passed"]
    assert report["report"]["outputs"][0]["shape"] == [1, *SIZE, 3]

    scores = {}
    for model in (best, file):
        out = tmp_path / f"{model.stem}_scores"
        arguments = ["evaluate", str(model), str(skies), "--protocol", "paper", "--out", str(out)]
        assert cli.main(arguments) == 0
        assert "3 classes, the most probable one counts" in capsys.readouterr().out
        found = json.loads((out / "evaluation.json").read_text())
        assert found["num_classes"] == 3 and (out / "sheet.png").is_file()
        scores[model.suffix] = found["groups"]["all"]["image_mean"]
    assert scores[".keras"]["accuracy"] > most_frequent_class(skies) + 0.1
    assert scores[".tflite"]["miou"] == pytest.approx(scores[".keras"]["miou"], abs=0.05)

    masks = {}
    photo = skies / "images" / f"{clearest_mixture(skies)}.jpg"
    for model in (best, file):
        out = tmp_path / f"{model.stem}_masks"
        assert cli.main(["predict", str(photo), "--model", str(model), "--out", str(out)]) == 0
        (found,) = json.loads((out / "predictions.json").read_text())
        mask = np.asarray(Image.open(out / found["mask"]))
        masks[model.suffix] = mask
        assert mask.shape == SIZE and set(np.unique(mask)) == {0, 1, 2}
        assert found["cloud_cover"]["fraction"] == pytest.approx((mask > 0).mean(), abs=1e-6)
    assert np.mean(masks[".keras"] == masks[".tflite"]) > 0.95


def clearest_mixture(skies):
    """Name of the photo whose rarest class has the most pixels."""
    dataset = dd.open_dataset(skies, num_classes=3)

    def rarest(sample):
        return np.bincount(dataset.load(sample)[1].ravel(), minlength=3).min()

    return max(dataset, key=rarest).name


def most_frequent_class(skies):
    """Accuracy of a model that gives each pixel of the test part the same class."""
    dataset = dd.open_dataset(skies, num_classes=3)
    labels = [dataset.load(dataset.find(name))[1] for name in dd.make_split(dataset, "paper").test]
    return max(np.mean(np.array(labels) == label) for label in range(3))


def test_overlay_has_a_colour_for_each_cloud():
    photo = np.full((40, 60, 3), 100, np.uint8)
    labels = np.repeat([0, 1, 2], 20)[None].repeat(40, axis=0)
    overlay = dd.Segmentation(photo, np.eye(3)[labels]).overlay(alpha=1)
    assert class_names(3) == ("sky", "thin cloud", "thick cloud")
    assert overlay[20, 10].tolist() == [100] * 3
    assert overlay[20, 30].tolist() == list(CLOUD_COLORS[1])
    assert overlay[20, 50].tolist() == list(CLOUD_COLORS[0])
