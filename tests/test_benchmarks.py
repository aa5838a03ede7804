"""`benchmark` scores what ships on unseen images alone; `ablate` trains alike and goes on."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from ddunet_keras import DDUNet, Segmenter, cli, evaluate, open_dataset, write_synthetic
from ddunet_keras.benchmarks import ablate, ablation_markdown, benchmark, benchmark_markdown
from ddunet_keras.camera_scores import open_camera, score_camera
from ddunet_keras.data.splits import make_split
from ddunet_keras.deploy.calibrate import labelled_photos
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages
from ddunet_keras.files import DataError

SIZE = (32, 32)


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "skies", 36, SIZE)


@pytest.fixture(scope="module")
def shipped(skies, tmp_path_factory):
    """A folder of models with one, and a folder of int8 files with one of it."""
    root = tmp_path_factory.mktemp("shipped")
    dataset = open_dataset(skies)
    keras.utils.set_random_seed(0)  # some random weights are too far apart for int8
    split, model = make_split(dataset), DDUNet((*SIZE, 3), base_channels=2, variant="baseline")
    (root / "weights" / "small").mkdir(parents=True)
    model.save(root / "weights" / "small" / "small.keras")
    split.save(root / "weights" / "small" / "split.json")
    settings = {"image_size": SIZE, "variant": "baseline", "base_channels": 2, "also": []}
    (root / "weights" / "small" / "run.json").write_text(json.dumps({"settings": settings}))
    photos = labelled_photos(dataset, split, SIZE, count=4, verify=1)
    (root / "files").mkdir()
    stages = build_stages(model, photos.calibration, ConversionConfig(SIZE))
    (root / "files" / "small_32.tflite").write_bytes(stages.packed)
    # a model's file whose name begins alike
    shutil.copy(root / "files" / "small_32.tflite", root / "files" / "small_paper_32.tflite")
    return root / "weights", root / "files"


def test_each_form_is_scored_on_the_test_part(skies, shipped):
    dataset, (weights, files) = open_dataset(skies), shipped
    result = benchmark([dataset], weights=weights, files=files)
    split = make_split(dataset)
    assert {row["dtype"] for row in result["rows"]} == {"float32", "int8"}
    whole = [row for row in result["rows"] if row["images"] == len(split.test)]
    assert len(whole) == 2
    model = DDUNet((*SIZE, 3), base_channels=2, variant="baseline")
    model.load_weights(weights / "small" / "small.keras")
    expected = evaluate(model.predict_probabilities, dataset, split.test).overall
    assert whole[0]["miou"] == pytest.approx(expected["image_mean"]["miou"], abs=1e-6)
    assert whole[0]["pooled_miou"] == pytest.approx(expected["pooled"]["miou"], abs=1e-6)
    assert whole[1]["milliseconds"] > 0
    assert whole[1]["bytes"] == (files / "small_32.tflite").stat().st_size
    delta = 100 * (whole[1]["accuracy"] - whole[0]["accuracy"])
    assert f"| {delta:+.2f} |" in benchmark_markdown(result)


def test_a_size_that_was_not_asked_for_is_not_scored(skies, shipped):
    weights, files = shipped
    with pytest.raises(DataError, match="at these sizes"):
        benchmark([open_dataset(skies)], weights=weights, files=files, sizes=(96,))


def test_a_model_of_three_classes_is_refused(skies, shipped, tmp_path):
    weights, files = shipped
    shutil.copytree(weights, tmp_path / "weights")
    path = tmp_path / "weights" / "small" / "run.json"
    run = json.loads(path.read_text())
    run["settings"]["num_classes"] = 3
    path.write_text(json.dumps(run))
    with pytest.raises(DataError, match="has 3 classes"):
        benchmark([open_dataset(skies)], weights=path.parents[1], files=files)


def test_of_another_data_set_what_was_trained_on_is_left_out(skies, shipped, tmp_path):
    weights, files = shipped
    other = write_synthetic(tmp_path / "other", 6, SIZE, seed=3)
    names = sorted(path.stem for path in (other / "images").iterdir())
    shutil.copytree(weights, tmp_path / "weights")
    path = tmp_path / "weights" / "small" / "run.json"
    run = json.loads(path.read_text())
    run["settings"]["also"] = [{"layout": "folder", "data": "other", "images": names[:4]}]
    path.write_text(json.dumps(run))
    split = tmp_path / "weights" / "small" / "split.json"
    split.write_text(split.read_text().replace('"layout": "folder"', '"layout": "swinyseg"'))
    rows = benchmark([open_dataset(other)], weights=path.parents[1], files=files)["rows"]
    assert rows[-1]["images"] == 2
    assert rows[-1]["protocol"] == "the part not trained on"


def test_cameras_are_scored_whole_in_each_form(shipped, tmp_path):
    weights, files = shipped
    camera = open_camera(write_synthetic(tmp_path / "dome", 4, SIZE, seed=5))
    result = benchmark([], weights=weights, files=files, cameras=[camera])
    assert result["rows"] == []
    assert [(row["dtype"], row["camera"]) for row in result["cameras"]] == [
        ("float32", "dome"),
        ("int8", "dome"),
    ]
    expected = score_camera(Segmenter(files / "small_32.tflite"), camera)
    assert {key: result["cameras"][1][key] for key in expected} == expected
    assert "| dome | small | 32x32 | int8 | 4 |" in benchmark_markdown(result)


def test_models_of_the_paper_s_protocol_meet_no_cameras(skies, shipped, tmp_path):
    weights = shutil.copytree(shipped[0], tmp_path / "weights")
    split = weights / "small" / "split.json"
    split.write_text(split.read_text().replace('"protocol": "date"', '"protocol": "paper"'))
    cameras = [open_camera(skies)]
    with pytest.raises(DataError, match="no preset"):
        benchmark([], weights=weights, files=shipped[1], cameras=cameras)


def test_without_models_it_says_what_is_needed(skies, tmp_path):
    with pytest.raises(DataError, match="needs a clone"):
        benchmark([open_dataset(skies)], weights=tmp_path)
    with pytest.raises(DataError, match="nothing to score on"):
        benchmark([], weights=tmp_path)


@pytest.mark.slow
def test_ablation_trains_each_once(skies, tmp_path):
    options = {"variants": ("baseline",), "base_channels": (2,), "seeds": (0, 1)}
    options |= {"image_size": SIZE, "epochs": 1}
    result = ablate(skies, tmp_path, **options)
    assert [row["seed"] for row in result["rows"]] == [0, 1]
    trained = [(tmp_path / f"baseline_c2_date_{k}" / "last.keras") for k in (0, 1)]
    times = [path.stat().st_mtime_ns for path in trained]
    said = []
    again = ablate(skies, tmp_path, progress=said.append, **options)
    assert again["rows"] == result["rows"]
    assert not said
    for changed in ({"epochs": 2}, {"recipe": "plain"}, {"image_size": (48, 48)}):
        with pytest.raises(DataError, match=f"was trained with {next(iter(changed))}="):
            ablate(skies, tmp_path, **(options | changed))
    assert times == [path.stat().st_mtime_ns for path in trained]
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    miou = [100 * row["miou"] for row in result["rows"]]
    assert f"{np.mean(miou):.1f} ± {np.std(miou, ddof=1):.1f}" in text


def test_ablation_compares_on_equal_splits():
    def row(variant, seed, miou):
        scores = {"accuracy": 0.9, "miou": miou, "pooled_miou": 0.8, "cover_error": 5.0}
        about = {"protocol": "date", "seed": seed, "variant": variant, "base_channels": 4}
        return about | {"parameters": 82201} | scores

    rows = [row("baseline", 0, 0.70), row("full", 0, 0.73), row("baseline", 1, 0.60)]
    rows += [row("full", 1, 0.61), row("full", 2, 0.99)]
    about = {"command": "ddunet ablate", "ddunet_keras": "1", "commit": None, "averaging": ""}
    text = ablation_markdown({"about": about, "settings": {"epochs": 1}, "rows": rows})
    # 3 and 1 points on the splits that both have: mean 2, standard error 1
    assert "| +2.0 ± 1.0 |" in text
    assert "| full | 4 | 82,201 | 3 |" in text


def test_ablation_of_no_data_is_one_line(tmp_path, capsys):
    code = cli.main(["ablate", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")])
    assert code == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_public_names_keep_their_kind_after_every_import():
    """`ddunet_keras.benchmark` was a function at first access and a module ever after."""
    code = """
import importlib, pkgutil
import ddunet_keras as dd

before = {name: getattr(dd, name) for name in dd.__all__}
for module in pkgutil.walk_packages(dd.__path__, "ddunet_keras."):
    if module.name != "ddunet_keras.__main__":
        importlib.import_module(module.name)
for name, value in before.items():
    assert getattr(dd, name) is value, name
assert callable(dd.benchmark) and callable(dd.ablate)
assert set(dd.__all__) <= set(dir(dd))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
