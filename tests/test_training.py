import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
from marks import slow_case

from ddunet_keras import (
    DMSC,
    RECIPES,
    DDUNet,
    Split,
    load_model,
    make_split,
    open_dataset,
    train,
    write_synthetic,
)
from ddunet_keras import training as module
from ddunet_keras.files import DataError
from ddunet_keras.training import L2Adam, Recipe, best_row

SMALL = {"variant": "baseline", "base_channels": 2, "image_size": 32, "batch_size": 16}


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    root = tmp_path_factory.mktemp("skies")
    write_synthetic(root, 48, image_size=(40, 40), seed=5)
    return root


@pytest.fixture(scope="module")
def finished(skies, tmp_path_factory):
    """A training of two epochs and what it returned."""
    out = tmp_path_factory.mktemp("run") / "a"
    return out, train(skies, out, epochs=2, verbose=0, **SMALL)


def weights(path):
    return [np.array(value) for value in load_model(path).get_weights()]


def rows(out):
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_everything(finished):
    out, run = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("best.keras", "last.keras", "history.csv", "run.json", "split.json", "curves.png", "logs")
    }
    assert json.loads((out / "run.json").read_text()) == json.loads(json.dumps(run))
    assert run["settings"]["image_size"] == [32, 32]
    assert run["settings"]["protocol"] == "date"
    assert run["versions"]["keras"] == keras.__version__
    assert run["parameters"] == load_model(out / "last.keras").count_params()
    history = rows(out)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert float(history[-1]["val_miou"]) == run["last"]["val_miou"]
    assert run["best"] == best_row([run["best"], run["last"]], "val_miou")
    split = Split.load(out / "split.json")
    dates = {
        part: {open_dataset(run["settings"]["data"]).find(n).date for n in getattr(split, part)}
        for part in ("train", "val", "test")
    }
    assert not dates["train"] & dates["val"] and not dates["train"] & dates["test"]


def test_the_best_model_is_the_one_with_the_highest_validation_score(finished):
    out, run = finished
    same = run["best"]["epoch"] == run["last"]["epoch"]
    pairs = zip(weights(out / "best.keras"), weights(out / "last.keras"), strict=True)
    assert all((a == b).all() for a, b in pairs) == same


def test_a_run_is_not_overwritten_and_resumed_only_as_it_was(skies, finished):
    out, _ = finished
    before = (out / "last.keras").read_bytes()
    with pytest.raises(DataError, match="holds a run; --resume goes on with it"):
        train(skies, out, epochs=2, verbose=0, **SMALL)
    with pytest.raises(DataError, match="was started with epochs=2, not 3"):
        train(skies, out, epochs=3, resume=True, verbose=0, **SMALL)
    with pytest.raises(DataError, match="was started with seed=0, not 1"):
        train(skies, out, epochs=2, seed=1, resume=True, verbose=0, **SMALL)
    (out / ".partial-xyz.keras").write_bytes(b"PK")  # of a training that was killed
    again = train(skies, out, epochs=2, resume=True, verbose=0, **SMALL)  # nothing is left to do
    assert not list(out.glob(".partial-*"))
    assert again["last"]["epoch"] == 2
    assert (out / "last.keras").read_bytes() == before


def test_resume_of_broken_files(skies, finished, tmp_path):
    out = tmp_path / "broken"
    shutil.copytree(finished[0], out)
    whole = (out / "last.keras").read_bytes()
    for content in (b"", b"PK\3\4 no zip", whole[: len(whole) // 2]):
        (out / "last.keras").write_bytes(content)
        with pytest.raises(DataError, match=r"last\.keras: cannot be resumed \(.*\); choose") as e:
            train(skies, out, epochs=2, resume=True, verbose=0, **SMALL)
        assert "\n" not in str(e.value)
    (out / "last.keras").write_bytes(whole)
    (out / "history.csv").write_text("epoch,loss,iterations\n1,0.5,3\n")
    with pytest.raises(DataError, match=r"history\.csv: not the history of this run"):
        train(skies, out, epochs=2, resume=True, verbose=0, **SMALL)
    (out / "run.json").write_text("{")
    with pytest.raises(DataError, match="not a readable run"):
        train(skies, out, epochs=2, resume=True, verbose=0, **SMALL)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("resume", [True, slow_case(False)])
def test_a_run_that_was_killed_before_it_stood_is_begun_again(skies, finished, tmp_path, resume):
    """Killed before `run.json`: there is a split, and what was being written."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".partial-abc.json").write_text("{")
    shutil.copy(finished[0] / "split.json", out)
    run = train(skies, out, epochs=1, resume=resume, verbose=0, **SMALL)
    assert run["last"]["epoch"] == 1
    assert not list(out.glob(".partial-*"))


def test_what_is_no_run_is_not_resumed(skies, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("not of a training")
    with pytest.raises(DataError, match=r"holds no run\.json to resume"):
        train(skies, out, epochs=1, resume=True, verbose=0, **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "best"}, "`recipe` must be one of .* Received: recipe='best'"),
        ({"variant": "tiny"}, "`variant` must be one of"),
        ({"image_size": 30}, "multiples of 16"),
        ({"protocol": "week"}, "`protocol` must be one of .* Received: protocol='week'"),
        ({"initial_weights": "none.keras"}, "none.keras: no such file"),
        ({"data": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_bad_arguments_leave_no_run(skies, tmp_path, options, message):
    options = {"data": skies, **SMALL, **options}
    with pytest.raises(ValueError, match=message):
        train(out=tmp_path / "run", epochs=1, verbose=0, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("eagerly")
def test_a_broken_photo_stops_the_training_in_one_line(tmp_path):
    write_synthetic(tmp_path / "s", 48, image_size=(32, 32), seed=5)
    dataset = open_dataset(tmp_path / "s")
    broken = [dataset.find(name).image for name in make_split(dataset).train]
    for photo in broken:  # all, as an epoch leaves some out that fill no batch
        photo.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty") as e:
        train(tmp_path / "s", tmp_path / "run", epochs=1, verbose=0, **SMALL)
    assert any(str(e.value).startswith(f"{photo}: ") for photo in broken)
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("eagerly")
def test_initial_weights_are_where_training_starts(skies, finished, tmp_path):
    still = Recipe(learning_rate=0.0, warmup_epochs=0, weight_decay=0.0)
    source = finished[0] / "last.keras"
    options = {**SMALL, "recipe": still, "initial_weights": source, "verbose": 0}
    train(skies, tmp_path / "run", epochs=1, **options)
    model, start = load_model(tmp_path / "run" / "last.keras"), load_model(source)
    for a, b in zip(model.trainable_weights, start.trainable_weights, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match="its weights do not fit this network"):
        train(skies, tmp_path / "b", epochs=1, **{**options, "base_channels": 4})


@pytest.mark.usefixtures("eagerly")
def test_validation_images_and_another_data_set_are_trained_on_as_well(skies, tmp_path):
    write_synthetic(tmp_path / "others", 9, image_size=(48, 32), seed=6)
    other = open_dataset(tmp_path / "others")
    names = [sample.name for sample in other]
    part = Split("custom", 0, tuple(names[:8]), (), (names[8],), layout="folder")
    also = [(tmp_path / "others", part)]
    options = SMALL | {"batch_size": 8, "epochs": 1, "verbose": 0}
    run = train(skies, tmp_path / "a", with_validation=True, also=also, **options)
    split = make_split(open_dataset(skies))
    assert run["last"]["iterations"] == (len(split.train) + len(split.val) + 8) // 8
    assert run["settings"]["also"][0]["images"] == names[:8]
    assert run["best"] == run["last"]
    assert not any(key.startswith("val_") for key in run["last"])
    assert Split.load(tmp_path / "a" / "split.json").test == split.test
    with pytest.raises(DataError, match="made for layout"):
        train(skies, tmp_path / "b", also=[(skies, replace(part, layout="hyta"))], **options)


@pytest.mark.usefixtures("eagerly")
def test_learning_rate_instead_of_the_recipes(skies, tmp_path):
    train(skies, tmp_path / "run", epochs=2, learning_rate=1e-5, verbose=0, **SMALL)
    # warmed up after the first epoch, and zero after the last
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "run")]
    assert rates == pytest.approx([1e-5, 0.0])


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_mixed_precision_trains(skies, tmp_path):
    run = train(skies, tmp_path / "run", epochs=1, mixed_precision=True, verbose=0, **SMALL)
    assert np.isfinite(run["last"]["loss"])
    model = load_model(tmp_path / "run" / "last.keras")
    on_gpu = any(device.startswith("gpu") for device in keras.distribution.list_devices())
    assert model.get_layer("stem").compute_dtype == ("float16" if on_gpu else "bfloat16")
    assert model.get_layer("stem").variable_dtype == "float32"


# --- recipes


def test_the_tables_of_paper_and_authors():
    paper, authors = RECIPES["paper"], RECIPES["authors"]
    assert (paper.learning_rate, paper.aux_weights) == (1e-3, (1.0, 0.5, 0.2))
    assert (authors.learning_rate, authors.l2, authors.aux_weights) == (5e-4, 5e-4, (1.0, 0.4, 0.2))
    assert (authors.image_size, authors.upsampling) == ((304, 304), "align_corners")
    for recipe in (paper, authors):
        assert (recipe.batch_size, recipe.epochs, recipe.augmentation) == (16, 100, None)
        model = DDUNet((32, 32, 3), 2, "baseline")
        rate = recipe.compile_arguments(model, steps_per_epoch=10)["optimizer"]._learning_rate
        for step in (0, 9, 10, 35):
            expected = recipe.learning_rate * 0.95 ** (step // 10)
            assert float(rate(step)) == pytest.approx(expected, rel=1e-5)


def test_geometric_moves_images_and_keeps_their_colours():
    image = np.zeros((20, 20, 3), "uint8")
    image[:, 10:] = 200, 120, 40
    labels = (image[..., 0] > 0).astype("uint8")
    random, seen = np.random.default_rng(0), set()
    for _ in range(20):
        moved, mask = RECIPES["geometric"].augmentation(image, labels, (20, 20), random)
        assert {tuple(c) for c in moved[:, [0, -1]].reshape(-1, 3)} == {(0, 0, 0), (200, 120, 40)}
        seen.add((int(mask[0, 0]), int(mask.sum())))
    assert {first for first, _ in seen} == {0, 1}  # mirrored or not
    assert len(seen) > 5  # and cut to different sizes


def test_cosine_schedule_rises_for_an_epoch_and_falls_to_zero():
    model = DDUNet((32, 32, 3), 2, "baseline")
    recipe = Recipe(learning_rate=0.01)
    rate = recipe.compile_arguments(model, 10, epochs=5)["optimizer"]._learning_rate
    expected = [0.01 * s / 10 for s in range(10)]
    expected += [0.005 * (1 + np.cos(np.pi * s / 40)) for s in range(41)]
    np.testing.assert_allclose([float(rate(s)) for s in range(51)], expected, atol=1e-7)


def test_decay_spares_biases_and_norms():
    model = DDUNet((32, 32, 3), 2, "full")
    optimizer = RECIPES["default"].compile_arguments(model, 10)["optimizer"]
    optimizer.build(model.trainable_variables)
    decayed = {
        v.path.split("/")[-1] for v in model.trainable_variables if optimizer._use_weight_decay(v)
    }
    assert decayed == {"kernel"}


def test_l2_passes_through_the_moments():
    """Adam by hand (Kingma & Ba, 2015, algorithm 1) on g + l2 w, two steps."""
    start, gradients, l2, rate = np.array([1.0, -2.0]), [[0.1, 0.3], [-0.2, 0.4]], 0.5, 0.1
    variable = keras.Variable(start.astype("float32"))
    optimizer = L2Adam(rate, l2=l2, epsilon=1e-8)
    w, m, v = start.copy(), 0, 0
    for step, gradient in enumerate(gradients, 1):
        g = np.array(gradient) + l2 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
    np.testing.assert_allclose(variable.numpy(), w, rtol=1e-4)
    assert L2Adam.from_config(optimizer.get_config()).l2 == l2


@pytest.mark.parametrize("name", ["paper", "default"])
def test_a_recipe_sets_the_range_penalty(name):
    recipe = replace(RECIPES[name], range_penalty=0.25)
    model = DDUNet((32, 32, 3), 2, "dmsc")
    recipe.compile_arguments(model, steps_per_epoch=10)
    penalties = [layer.range_penalty for layer in model.layers if isinstance(layer, DMSC)]
    assert penalties and set(penalties) == {0.25}


# --- interruption


class StopAfterAnEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_dropout_goes_on_where_it_was(skies, tmp_path, monkeypatch):
    options = {"network": "ucloudnet_k2", "image_size": 32, "batch_size": 16}
    options |= {"epochs": 2, "verbose": 0}
    train(skies, tmp_path / "whole", **options)
    ordinary = module._callbacks
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_callbacks", lambda *a: [*ordinary(*a), StopAfterAnEpoch()])
        train(skies, tmp_path / "resumed", **options)
    assert len(rows(tmp_path / "resumed")) == 1
    train(skies, tmp_path / "resumed", resume=True, **options)
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "resumed"), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.slow
def test_killed_in_mid_epoch_it_ends_with_the_same_bits(skies, tmp_path):
    """SIGKILL at a moment that depends on the machine, twice; then --resume to the end."""
    options = ["--variant", "baseline", "--base-channels", "2", "--image-size", "32"]
    options += ["--batch-size", "2", "--epochs", "8", "--deterministic", "--seed", "3"]

    def start(out, *more):
        command = [sys.executable, "-m", "ddunet_keras", "train", str(skies), "--out", str(out)]
        with open(tmp_path / "output", "wb") as output:
            return subprocess.Popen([*command, *options, *more], stdout=output, stderr=output)

    def finish(process):
        assert process.wait(timeout=300) == 0, (tmp_path / "output").read_text()

    finish(start(tmp_path / "whole"))
    out, resume = tmp_path / "killed", ()
    for epochs in (1, 3):
        process = start(out, *resume)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            # a checkpoint, and some steps beyond it
            if (out / "last.keras").exists() and len(rows(out)) >= epochs:
                time.sleep(0.2)
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert len(rows(out)) < 8
        resume = ("--resume",)
    finish(start(out, *resume))

    for name in ("last.keras", "best.keras"):
        for a, b in zip(weights(tmp_path / "whole" / name), weights(out / name), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(rows(tmp_path / "whole"), rows(out), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert not list(out.glob(".partial-*/*"))
