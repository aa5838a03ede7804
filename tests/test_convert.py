"""The road from a model to a verified file, and what it does when a check fails."""

import json
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from tiny_tflite import tiny_tflite

from ddunet_keras import DDUNet, cli, read_image
from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import Split, make_split
from ddunet_keras.data.synthetic import write_synthetic
from ddunet_keras.deploy import convert as module
from ddunet_keras.deploy import verify
from ddunet_keras.deploy.calibrate import calibration_images, labelled_photos, unlabelled_photos
from ddunet_keras.deploy.config import TFLM_TARGETS, ConversionConfig
from ddunet_keras.deploy.convert import ConversionError, convert
from ddunet_keras.files import DataError, WriteError
from ddunet_keras.segmenter import Segmenter

SIZE = (32, 48)


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "skies", 36, SIZE)


@pytest.fixture(scope="module")
def model():
    """Untrained, but for a head that sees cloud everywhere: a mask that rounding leaves alone."""
    keras.utils.set_random_seed(0)
    model = DDUNet((32, 32, 3), base_channels=2, variant="dmsc")
    head = model.get_layer("head_1")
    head.set_weights([head.get_weights()[0], head.get_weights()[1] + 3])
    return model


@pytest.fixture(scope="module")
def photos(skies):
    dataset = open_dataset(skies)
    return labelled_photos(dataset, make_split(dataset), SIZE, count=8, verify=2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Of the variant that is loaded the fastest, with a head like that of `model`."""
    model = DDUNet((32, 32, 3), base_channels=2, variant="baseline")
    head = model.get_layer("head_1")
    head.set_weights([head.get_weights()[0], head.get_weights()[1] + 3])
    path = tmp_path_factory.mktemp("model") / "small.keras"
    model.save(path)
    return path


def test_calibration_takes_a_quarter_more_from_another_data_set(skies, tmp_path):
    dataset = open_dataset(skies)
    split = make_split(dataset)
    other = open_dataset(write_synthetic(tmp_path / "others", 6, SIZE, seed=5))
    names = tuple(sample.name for sample in other)
    part = Split("custom", 0, names[:3], (), names[3:])
    photos = labelled_photos(dataset, split, SIZE, count=8, verify=2, also=[(other, part)])
    assert len(photos.calibration) == 8 + 2
    seen = {image.tobytes() for image in photos.calibration}
    own = labelled_photos(dataset, split, SIZE, count=8, verify=2)
    trained = {other.load(other.find(name))[0].tobytes() for name in names[:3]}
    assert {image.tobytes() for image in own.calibration} < seen
    assert len(seen & trained) == 2
    np.testing.assert_array_equal(photos.test, own.test)
    assert "others" in photos.about["data"]
    with pytest.raises(DataError, match="no image named"):
        labelled_photos(dataset, split, SIZE, also=[(other, split)])


def test_calibration_sees_the_training_part_alone(skies):
    dataset = open_dataset(skies)
    split = make_split(dataset)
    photos = labelled_photos(dataset, split, SIZE, count=1000, verify=0)
    assert len(photos.calibration) == len(split.train)
    assert len(photos.test) == len(photos.masks) == len(split.test)
    seen = {image.tobytes() for image in photos.calibration}
    assert not seen & {image.tobytes() for image in photos.test}
    few = labelled_photos(dataset, split, SIZE, count=4, verify=3)
    assert (len(few.calibration), len(few.test)) == (4, 3)
    for image, mask in zip(few.test, few.masks, strict=True):
        place = [np.array_equal(image, other) for other in photos.test].index(True)
        np.testing.assert_array_equal(mask, photos.masks[place])


def test_calibration_images_are_from_training_and_stratified():
    class Skies:
        """Ninety photos of the day, thirty of the night; a photo's pixels are its number."""

        def find(self, name):
            return SimpleNamespace(name=name, night=int(name) >= 90)

        def load(self, sample):
            return np.full((20, 20, 3), int(sample.name), "uint8"), None

    split = Split("paper", 0, tuple(map(str, range(120))), (), ("200",))
    images = calibration_images(Skies(), split, (16, 32), count=40)
    numbers = images[:, 0, 0, 0]
    assert images.shape == (40, 16, 32, 3)
    assert len(set(numbers)) == 40 and (numbers >= 90).sum() == 10
    again = calibration_images(Skies(), split, (16, 32), count=40)
    other = calibration_images(Skies(), split, (16, 32), count=40, seed=1)
    assert np.array_equal(images, again) and not np.array_equal(images, other)
    assert len(calibration_images(Skies(), split, (16, 32), count=999)) == 120


def test_a_photo_that_cannot_be_read_is_left_out(skies, tmp_path):
    """One truncated photo of a folder does not stop a conversion, and is named."""
    folder = tmp_path / "mine"
    shutil.copytree(skies, folder)
    dataset = open_dataset(folder)
    split = make_split(dataset)
    for name in (split.train[0], split.test[0]):
        path = dataset.find(name).image
        path.write_bytes(path.read_bytes()[:100])
    photos = labelled_photos(dataset, split, SIZE, count=1000, verify=0)
    assert len(photos.left_out) == 2
    assert len(photos.calibration) == len(split.train) - 1
    assert len(photos.test) == len(photos.masks) == len(split.test) - 1
    paths = sorted((folder / "images").iterdir())
    photos = unlabelled_photos(paths, SIZE, count=1000)
    assert len(photos.left_out) == 2
    assert len(photos.calibration) + len(photos.test) == len(paths) - 2


def test_photos_without_masks_are_divided(skies):
    paths = sorted((skies / "images").iterdir())[:20]
    photos = unlabelled_photos(paths, SIZE, count=100, seed=3)
    assert (len(photos.calibration), len(photos.test), photos.masks) == (16, 4, None)
    everything = {image.tobytes() for image in (*photos.calibration, *photos.test)}
    assert everything == {read_image(path).tobytes() for path in paths}
    with pytest.raises(DataError, match="at least 2 photos, better 100; received 1"):
        unlabelled_photos(paths[:1], SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflm", "esp32s3", "edgetpu", "android"])
def test_every_target_is_written_with_its_report(target, model, photos, tmp_path):
    out = tmp_path / "sky.tflite"
    steps = []
    arrays = tmp_path / "firmware" if target in TFLM_TARGETS else None
    result = convert(
        model,
        photos,
        out,
        ConversionConfig(SIZE, target=target, c_array=arrays, debug=True, inspect=False),
        progress=steps.append,
    )
    assert steps
    written = json.loads(out.with_suffix(".json").read_text())
    assert written["sha256"] == result["sha256"]
    assert written["bytes"] == out.stat().st_size == result["bytes"]
    assert written["layers"] and written["verification"]["passed"]
    said = out.with_suffix(".md").read_text()
    assert "TFLM equals the reference kernels" in said
    assert ("rewriting the file changes nothing" in said) == (target != "edgetpu")
    assert read_image(out.with_suffix(".png")).shape[1] > 300
    if target in TFLM_TARGETS:
        assert sorted(path.suffix for path in arrays.iterdir()) == [".c", ".h"]
    photo = photos.test[0]
    difference = Segmenter(out).predict_probabilities(photo)
    difference -= model.resized((*SIZE, 3)).predict_probabilities(photo)
    assert np.abs(difference).mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_float_files(precision, model, photos, tmp_path):
    out = tmp_path / "sky.tflite"
    config = ConversionConfig(SIZE, target="cpu", precision=precision, inspect=False)
    convert(model, photos, out, config)
    photo = photos.test[0]
    ours = Segmenter(out).predict_probabilities(photo)
    exact = model.resized((*SIZE, 3)).predict_probabilities(photo)
    inner = np.s_[8:-8, 8:-8]  # zeros that pad the border mean another gray, see `build_graph`
    tolerance = {"float16": 0.01, "float32": 5e-3}[precision]
    np.testing.assert_allclose(ours[inner], exact[inner], atol=tolerance)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (32, 40)}, "size=(32, 40)"),
        ({"target": "esp"}, "received: target='esp'"),
        ({"precision": "int4"}, "received: precision='int4'"),
        (
            {"target": "cpu", "ram": 300},
            "for targets tflm, cortex-m, esp32s3. received: target='cpu'",
        ),
        ({"target": "cpu", "c_array": "x"}, "for targets tflm"),
        ({"precision": "float16", "qat_epochs": 1}, "are for int8"),
        ({"c_array": "x", "io": "uint8"}, "for files with int8 input and output"),
        ({"c_array": "x", "precision": "float16"}, "for files with int8 input and output"),
        ({"prune": 1.0}, "prune=1.0"),
        ({"cluster": 1}, "cluster=1"),
        ({"prune": 0.5, "qat_epochs": 3}, "one or the other"),
        ({"target": "android", "output": "mask"}, "mediapipe takes files with"),
        ({"target": "android", "io": "int8"}, "mediapipe takes files with"),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(ValueError) as caught:
        ConversionConfig(**{"size": SIZE, **settings})
    assert words in str(caught.value).lower()


def test_the_file_has_its_ending(model, photos, tmp_path):
    with pytest.raises(ValueError, match=r"end in \.tflite"):
        convert(model, photos, tmp_path / "sky.bin", ConversionConfig(SIZE))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out", "json", "c_array"])
def test_what_cannot_be_written_is_said_before_the_work(name, model, photos, tmp_path):
    out = tmp_path / "sky.tflite"
    if name == "out":
        out.mkdir()
    elif name == "json":
        out.with_suffix(".json").mkdir()
    (tmp_path / "file").touch()
    config = ConversionConfig(SIZE, c_array=tmp_path / "file" if name == "c_array" else None)
    steps = []
    with pytest.raises(WriteError, match="cannot be written"):
        convert(model, photos, out, config, progress=steps.append)
    assert not steps


@pytest.mark.slow
@pytest.mark.parametrize("scale, unsure", [(1, False), (0.001, True)])
def test_a_file_that_fails_is_not_written(scale, unsure, photos, tmp_path, monkeypatch):
    """The file of another network in place of the model's own."""
    other = DDUNet((32, 32, 3), base_channels=2, variant="dmsc")
    head = other.get_layer("head_1")
    head.set_weights([head.get_weights()[0], head.get_weights()[1] - 6])
    whole = module.build_stages
    monkeypatch.setattr(module, "build_stages", lambda model, *a: whole(other, *a))
    model = DDUNet((32, 32, 3), base_channels=2, variant="dmsc")
    head = model.get_layer("head_1")
    kernel, bias = head.get_weights()
    head.set_weights([scale * kernel, bias])
    with pytest.raises(ConversionError, match="was not written; the masks agree") as caught:
        convert(model, photos, tmp_path / "sky.tflite", ConversionConfig(SIZE, inspect=False))
    assert ("unsure of 100 %" in str(caught.value)) == unsure
    assert not caught.value.verification.passed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_converts_on_photos_alone(file, skies, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["convert", file, "--size", "32,48", "--calibration", skies / "images"]
    code = cli.main([*map(str, arguments), "--images", "8", "--no-inspect"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "wrote small_32x48_tflm.tflite" in out and "TFLM equals" in out
    photo = str(next((skies / "images").iterdir()))
    assert cli.main(["predict", photo, "--model", "small_32x48_tflm.tflite"]) == 0


def test_the_command_takes_labelled_photos_of_ones_own(skies, tmp_path, capsys, monkeypatch):
    """The preset's own split does not fit them: they are divided anew."""
    folder = tmp_path / "mine"
    shutil.copytree(skies / "images", folder / "images")
    shutil.copytree(skies / "masks", folder / "masks")
    given = []

    def refuse(model, photos, out, config, **settings):
        given.append(photos)
        raise DataError("enough")

    monkeypatch.setattr(module, "convert", refuse)
    arguments = ["convert", "ddunet_c4", "--size", "32", "--calibration", folder, "--images", "8"]
    assert cli.main([*map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert "divided anew" in err and err.endswith("ddunet: error: enough\n")
    assert len(given[0].calibration) == 8 and given[0].masks is not None


def test_the_command_says_which_check_failed(file, skies, tmp_path, capsys, monkeypatch):
    failed = verify.Verification((verify.Check("TFLM equals", False, "operator 3"),), {}, None)
    error = ConversionError("sky.tflite was not written; TFLM equals: operator 3", failed, "layers")

    def refuse(*arguments, **keywords):
        raise error

    monkeypatch.setattr(module, "convert", refuse)
    arguments = ["convert", file, "--size", "32,48", "--calibration", skies]
    assert cli.main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    assert "operator 3" in out and "layers" in out
    how_divided, said = err.splitlines()
    assert f"{file.name} has no split beside it; divided anew" in how_divided
    assert said == "ddunet: error: sky.tflite was not written; TFLM equals: operator 3"


def test_the_command_refuses_what_is_no_data(file, tmp_path, capsys):
    arguments = ["convert", file, "--size", "32,48", "--calibration", tmp_path / "nothing"]
    assert cli.main(list(map(str, arguments))) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_says_what_is_wrong_with_a_data_set(file, skies, tmp_path, capsys):
    """It does not take it for a folder of photos without masks."""
    shutil.copytree(skies, tmp_path / "mine")
    mask = next((tmp_path / "mine" / "masks").iterdir())
    mask.unlink()
    (tmp_path / "mine" / "stray.jpg").write_bytes(b"")
    arguments = ["convert", file, "--size", "32,48", "--calibration"]
    assert cli.main([*map(str, arguments), str(tmp_path / "mine")]) == 2
    assert f"images without a mask: 1 ({mask.stem})" in capsys.readouterr().err
    assert cli.main([*map(str, arguments), str(tmp_path)]) == 2
    assert f"did you mean {tmp_path / 'mine'}?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "random", "picture"])
def test_inspect_says_what_is_wrong_in_one_line(kind, tmp_path, capsys):
    path = tmp_path / "model.tflite"
    content = {
        "empty": b"",
        "truncated": tiny_tflite()[:400],
        "random": np.random.default_rng(0).bytes(5000),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    if kind in content:
        path.write_bytes(content[kind])
    assert cli.main(["inspect", str(path), "--plot", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ddunet: error: ") and err.count("\n") == 1
    assert str(path) in err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_inspect_prints_tables_or_json_and_draws(tmp_path, capsys):
    path = tmp_path / "model.tflite"
    path.write_bytes(tiny_tflite())
    assert cli.main(["inspect", str(path), "--plot", str(tmp_path / "a.png")]) == 0
    assert "CONV_2D" in capsys.readouterr().out
    assert read_image(tmp_path / "a.png").shape[1] > 300
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert "tflm" in json.loads(capsys.readouterr().out)
