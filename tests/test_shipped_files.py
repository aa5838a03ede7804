"""The int8 files that ship are what the code makes: whoever moves code sees what changed."""

import json

import convert_shipped
import numpy as np
import pytest

from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages
from ddunet_keras.files import as_json
from ddunet_keras.litert.inspect import inspect_model
from ddunet_keras.litert.model import operator_name, read_tflite
from ddunet_keras.model import load_model
from ddunet_keras.presets import WEIGHTS, preset_file

SAME_BYTES = 0.999
"""Share of the constants' bytes that must be the same where a CPU sums floats in another order."""


def test_the_default_file_of_the_package_is_the_one_of_the_folder():
    shipped = convert_shipped.MODELS / "ddunet_c8_256.tflite"
    assert shipped.read_bytes() == preset_file("ddunet_c8", "tflite").read_bytes()


def test_every_file_of_the_folder_is_made_by_the_tool():
    files = {path.stem for path in convert_shipped.MODELS.glob("*.tflite")}
    assert files == {shipped.name for shipped in convert_shipped.SHIPPED}


@pytest.mark.parametrize("path", sorted(convert_shipped.MODELS.glob("*.json")), ids=str)
def test_the_report_beside_a_file_is_what_inspect_says_today(path):
    """But for what was measured."""
    written = json.loads(path.read_text())["report"]
    file = path.with_suffix(".tflite")
    today = as_json(inspect_model(file, latency=False, vela=False, tflm=False).to_dict())
    assert written.keys() == today.keys()
    assert [board["board"] for board in written["boards"]] == [b["board"] for b in today["boards"]]
    for part in ("size", "operators", "arenas", "estimates", "memory"):
        assert written[part] == today[part], part


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddunet_c4_96", "ddunet_c4_256"])  # a form each; the quickest
def test_a_shipped_file_is_made_again(name, shared, tmp_path):
    (shipped,) = [entry for entry in convert_shipped.SHIPPED if entry.name == name]
    data = shared / "data"
    skies = convert_shipped.draw_skies(tmp_path / "skies")
    photos = convert_shipped.photos_for(shipped, data / "swinyseg-base", data / "wsiseg-240", skies)
    model = load_model(WEIGHTS / shipped.model / f"{shipped.model}.keras")
    config = ConversionConfig((shipped.side, shipped.side), target=shipped.target)
    made = build_stages(model, photos.calibration, config).packed
    expected = (convert_shipped.MODELS / f"{name}.tflite").read_bytes()
    if made != expected:  # see SAME_BYTES
        assert_nearly_equal(read_tflite(made), read_tflite(expected))


def assert_nearly_equal(model, expected):
    (graph,), (other,) = model.subgraphs, expected.subgraphs
    kinds = [operator_name(model, operator) for operator in graph.operators]
    assert kinds == [operator_name(expected, operator) for operator in other.operators]
    assert [t.shape for t in graph.tensors] == [t.shape for t in other.tensors]
    assert [t.type for t in graph.tensors] == [t.type for t in other.tensors]
    ours, theirs = (constants(entry) for entry in (model, expected))
    assert ours.size == theirs.size
    assert np.mean(ours == theirs) >= SAME_BYTES


def constants(model):
    data = [np.asarray(b.data, np.uint8) for b in model.buffers if b.data is not None]
    return np.concatenate([array.ravel() for array in data])
