"""`tools/train_with_teacher.py`: what is drawn, what is learned, and the mean of two models."""

import json

import keras
import numpy as np
import pytest
import train_with_teacher as module
from made_whole_sky import write_whole_sky

from ddunet_keras import DDUNet, load_model, open_dataset
from ddunet_keras.data.splits import make_split
from ddunet_keras.data.synthetic import write_synthetic
from ddunet_keras.files import IGNORE, write_json

SIZE = (32, 32)


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "skies", 60, SIZE)


def write_model(path, bias):
    """A network that says cloud (bias > 0) or sky everywhere."""
    model = DDUNet((*SIZE, 3), base_channels=2, variant="dmsc")
    kernel, offset = model.get_layer("head_1").get_weights()
    model.get_layer("head_1").set_weights([0 * kernel, 0 * offset + bias])
    model.save(path)
    return path


def test_skies_by_day_are_cloudless_or_overcast(skies):
    dataset = open_dataset(skies)
    split = make_split(dataset, "date", 0)
    chosen = module.useful_skies(dataset, split)
    names = {sample.name for _, sample in chosen}
    left_out = [dataset.find(name) for name in split.train if dataset.find(name).name not in names]
    assert chosen and left_out
    for sample in left_out:
        _, labels = dataset.load(sample)
        assert sample.time < "12" and 0.03 < np.mean(labels[labels != IGNORE] == 1) < 0.97


@pytest.mark.parametrize("batch_size, patches, skies_drawn", [(16, 8, 5), (10, 5, 3)])
def test_a_batch_has_its_shares_and_repeats(skies, batch_size, patches, skies_drawn):
    dataset = open_dataset(skies)
    photos = [(dataset, sample) for sample in dataset]
    sources = [module.Source(kind, photos) for kind in module.KINDS]
    draw = [
        module.draw_batches(
            sources, module.Batches(SIZE, batch_size, 1.0, 1.0, module.SHARES, seed)
        )
        for seed in (1, 1, 2)
    ]
    first, again, other = (next(batches) for batches in draw)
    for array, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(array, same)
    assert not np.array_equal(first[0], other[0])
    seen, photos, labels, is_patch = first
    assert seen.shape == photos.shape == (batch_size, *SIZE, 3)
    assert labels.shape == (batch_size, *SIZE) and is_patch.sum() == patches
    # all photos but the skies are shown as another camera might, here a mono one
    changed = np.array([not np.array_equal(a, b) for a, b in zip(seen, photos, strict=True)])
    assert changed.tolist() == [True] * (batch_size - skies_drawn) + [False] * skies_drawn
    assert (np.ptp(seen[changed], axis=-1) == 0).all() and np.ptp(photos[changed], axis=-1).any()


@pytest.mark.slow
def test_the_teacher_is_followed(skies, tmp_path, monkeypatch):
    names = write_whole_sky(tmp_path / "dome", 4, SIZE)
    shipped = json.loads((module.WEIGHTS / "wsiseg_halves.json").read_text())
    halves = {**shipped, "train": names[1:], "val": [], "test": names[:1]}
    write_json(tmp_path / "wsiseg_halves.json", halves)
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    make_split(open_dataset(skies), "date", 0).save(tmp_path / "skies.json")
    start = tmp_path / "start.keras"
    keras.utils.set_random_seed(0)
    DDUNet((*SIZE, 3), base_channels=2).save(start)

    def train(out, teacher):
        arguments = [skies, tmp_path / "dome", start, teacher, tmp_path / out]
        arguments += ["--skies", skies, tmp_path / "skies.json", "--size", 32, "--steps", 30]
        arguments += ["--learning-rate", 1e-2]  # with less, thirty steps move little
        assert module.main([str(word) for word in arguments]) == 0
        return load_model(tmp_path / out)

    dataset = open_dataset(skies)
    images = [dataset.load(sample)[0] for sample in list(dataset)[:8]]
    means = []
    for bias in (-6.0, 6.0):
        model = train(f"{bias}.keras", write_model(tmp_path / f"teacher{bias}.keras", bias))
        means.append(np.mean([model.predict_probabilities(image) for image in images]))
    assert means[0] + 0.1 < means[1]


def test_mean_of_two_models():
    models = [DDUNet((*SIZE, 3), base_channels=2) for _ in range(2)]
    expected = [
        (x.numpy() + y.numpy()) / 2 for x, y in zip(*(m.weights for m in models), strict=True)
    ]
    module.mean_of(*models)
    for weight, mean in zip(models[0].weights, expected, strict=True):
        np.testing.assert_allclose(weight.numpy(), mean, atol=1e-7)


@pytest.mark.parametrize("word", ["missing.keras", "out.h5"])
def test_bad_input_is_one_line(word, skies, tmp_path, capsys):
    out = tmp_path / ("out.h5" if word == "out.h5" else "out.keras")
    arguments = [skies, skies, tmp_path / "missing.keras", "x.keras", out, "--skies", skies, "x"]
    with pytest.raises(SystemExit) as stop:
        module.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and word in lines[0]


@pytest.mark.parametrize("change", [{"mono": 1.5}, {"shares": (0, 3, 5)}, {"shares": (8, -1, 5)}])
def test_a_batch_without_meaning_is_refused(change):
    asked = {"other_camera": 0.3, "mono": 0.2, "shares": module.SHARES, "seed": 0} | change
    with pytest.raises(ValueError, match="Received"):
        module.Batches(SIZE, 16, **asked)
