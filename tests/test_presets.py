"""The models that come with the package are whole, and what their cards say they are."""

import json

import numpy as np
import pytest

from ddunet_keras import DataError, DDUNet, load_model, open_dataset, presets
from ddunet_keras.data.splits import Split
from ddunet_keras.presets import DEFAULT, PRESETS, WEIGHTS, preset_file


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_network_that_its_run_describes(name):
    run = json.loads((WEIGHTS / name / "run.json").read_text(encoding="utf-8"))
    model = DDUNet.from_preset(name)
    assert model.count_params() == run["parameters"]
    assert [*model.image_shape] == [*run["settings"]["image_size"], 3]
    assert (model.variant, model.num_classes) == ("full", 2)
    assert len(model.outputs) == 3
    assert Split.load(WEIGHTS / name / "split.json").protocol == "date"


def test_a_preset_takes_another_size_with_the_same_weights():
    model = DDUNet.from_preset("ddunet_c4", (32, 64, 3), deep_supervision=False)
    assert model.input_shape == (None, 32, 64, 3)
    assert len(model.outputs) == 1
    whole = load_model(preset_file("ddunet_c4"))
    for layer in model.layers:
        for ours, theirs in zip(
            layer.get_weights(), whole.get_layer(layer.name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_the_default_file_for_devices_is_there():
    assert preset_file(DEFAULT, "tflite").read_bytes()[4:8] == b"TFL3"


def test_wrong_names_and_damaged_files_are_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Received: name='ddunet_c7'"):
        DDUNet.from_preset("ddunet_c7")
    with pytest.raises(ValueError, match="'ddunet_c4' has no file of kind 'tflite'"):
        preset_file("ddunet_c4", "tflite")
    monkeypatch.setattr(presets, "WEIGHTS", tmp_path)
    with pytest.raises(DataError, match="missing; install ddunet-keras again"):
        preset_file("ddunet_c4")
    path = tmp_path / PRESETS["ddunet_c4"]["weights"]
    path.parent.mkdir()
    path.write_bytes(b"truncated")
    with pytest.raises(DataError, match="damaged"):
        preset_file("ddunet_c4")


@pytest.mark.shared
@pytest.mark.parametrize("name", PRESETS)
def test_the_test_dates_stayed_unseen(shared, name):
    dataset = open_dataset(shared / "data" / "swinyseg-base")
    split = Split.load(WEIGHTS / name / "split.json")
    split.check(dataset)
    dates = [{dataset.find(n).date for n in getattr(split, p)} for p in ("train", "val", "test")]
    assert not dates[2] & (dates[0] | dates[1])
    assert len(split.test) == 168
