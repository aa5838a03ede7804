"""`benchmark` scores what ships on unseen images alone; `ablate` trains alike and goes on."""

import json
import shutil

import numpy as np
import pytest

from ddunet_keras import DDUNet, cli, evaluate, open_dataset, write_synthetic
from ddunet_keras.benchmark import ablate, ablation_markdown, benchmark, benchmark_markdown
from ddunet_keras.data.splits import make_split
from ddunet_keras.deploy.convert import labelled_photos
from ddunet_keras.deploy.quantize import quantize
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
    split, model = make_split(dataset), DDUNet((*SIZE, 3), base_channels=2, variant="dmsc")
    (root / "weights" / "small").mkdir(parents=True)
    model.save(root / "weights" / "small" / "small.keras")
    split.save(root / "weights" / "small" / "split.json")
    settings = {"image_size": SIZE, "variant": "dmsc", "base_channels": 2, "also": []}
    (root / "weights" / "small" / "run.json").write_text(json.dumps({"settings": settings}))
    photos = labelled_photos(dataset, split, SIZE, count=4, verify=1)
    (root / "files").mkdir()
    (root / "files" / "small_32.tflite").write_bytes(quantize(model, SIZE, photos.calibration))
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
    model = DDUNet((*SIZE, 3), base_channels=2, variant="dmsc")
    model.load_weights(weights / "small" / "small.keras")
    expected = evaluate(model.predict_probabilities, dataset, split.test).overall
    assert whole[0]["miou"] == pytest.approx(expected["image_mean"]["miou"], abs=1e-6)
    assert whole[0]["pooled_miou"] == pytest.approx(expected["pooled"]["miou"], abs=1e-6)
    assert whole[1]["milliseconds"] > 0
    assert whole[1]["bytes"] == (files / "small_32.tflite").stat().st_size
    delta = 100 * (whole[1]["accuracy"] - whole[0]["accuracy"])
    assert f"| {delta:+.2f} |" in benchmark_markdown(result)


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


def test_without_models_it_says_what_is_needed(skies, tmp_path):
    with pytest.raises(DataError, match="needs a clone"):
        benchmark([open_dataset(skies)], weights=tmp_path)


@pytest.mark.slow
def test_ablation_trains_each_once_and_compares_on_equal_splits(skies, tmp_path, capsys):
    options = {"variants": ("baseline", "dmsc"), "base_channels": (2,), "seeds": (0, 1)}
    options |= {"image_size": SIZE, "epochs": 1}
    result = ablate(skies, tmp_path, **options)
    assert [(row["variant"], row["seed"]) for row in result["rows"]] == [
        *(("baseline", 0), ("dmsc", 0), ("baseline", 1), ("dmsc", 1))
    ]
    trained = [(tmp_path / f"dmsc_c2_date_{k}" / "last.keras").stat().st_mtime_ns for k in (0, 1)]
    said = []
    again = ablate(skies, tmp_path, progress=said.append, **options)
    assert again["rows"] == result["rows"]
    assert not said
    assert trained == [
        (tmp_path / f"dmsc_c2_date_{k}" / "last.keras").stat().st_mtime_ns for k in (0, 1)
    ]
    miou = {(row["variant"], row["seed"]): 100 * row["miou"] for row in result["rows"]}
    dmsc = [miou["dmsc", 0], miou["dmsc", 1]]
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert f"{np.mean(dmsc):.1f} ± {np.std(dmsc, ddof=1):.1f}" in text
    differences = [miou["dmsc", k] - miou["baseline", k] for k in (0, 1)]
    error = np.std(differences, ddof=1) / 2**0.5
    assert f"{np.mean(differences):+.1f} ± {error:.1f}" in ablation_markdown(result)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ablate(tmp_path / "nowhere", tmp_path / "new", **options)
    code = cli.main(["ablate", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")])
    assert code == 2
