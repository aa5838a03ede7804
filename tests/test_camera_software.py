"""The module for Allsky and the hook for indi-allsky, called as their hosts document it.

The hosts themselves are not run: what stands here imitates their documented calls. Allsky: its
developer guide ("Module structure") and its flow runner, which imports the module by its name and
calls the function of that name. indi-allsky: `misc/example_image_presave_hook.py` and what its
image worker does with a pre-save hook.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tflite import gray_photo, tiny_tflite

import ddunet_keras as dd

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tflite" / "python"
HOOK_TIMEOUT = 100
"""Seconds; indi-allsky gives 5 unless told otherwise, at most 20, on a computer of its own."""


@pytest.fixture
def sky():
    """A photo in which the shipped model sees clouds and sky."""
    return dd.synthetic_sky(1, (120, 160))[0]


# --- Allsky


class AllskyBase:
    """`ALLSKYMODULEBASE` in so far as a module uses it."""

    def __init__(self, params, event):
        self.params = params
        self.event = event

    def get_param(self, param, default, target_type=str, use_default_if_blank=False):
        return target_type(self.params.get(param, default))


@pytest.fixture
def allsky(monkeypatch, tmp_path):
    """Allsky: `run(frame, **arguments)` is its flow for a frame, `saved` what came of it."""
    shared = types.ModuleType("allsky_shared")
    shared.ALLSKY_OVERLAY = str(tmp_path / "overlay")
    shared.logged = []
    shared.saved = {}

    def save_extra_data(file_name, extra_data, source="", structure=None, custom_fields=None):
        # Allsky keeps what the structure declares, with the value under "value"
        known = structure["values"]
        kept = {
            name: {**known[name], "source": source, "value": value}
            for name, value in extra_data.items()
            if name in known
        }
        shared.saved[file_name] = json.loads(json.dumps(kept))

    shared.log = lambda level, text: shared.logged.append((level, text))
    shared.save_extra_data = save_extra_data
    shared.cleanupModule = lambda data: [
        shared.saved.pop(name, None) for name in data["cleanup"]["files"]
    ]
    base = types.ModuleType("allsky_base")
    base.ALLSKYMODULEBASE = AllskyBase
    monkeypatch.setitem(sys.modules, "allsky_shared", shared)
    monkeypatch.setitem(sys.modules, "allsky_base", base)
    monkeypatch.delitem(sys.modules, "allsky_ddunet", raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    shared.module = importlib.import_module("allsky_ddunet")

    def run(frame, **arguments):
        shared.image = frame
        given = shared.module.ALLSKYDDUNET.meta_data["arguments"] | arguments
        return shared.module.ddunet(given, "postcapture")

    def values():
        saved = shared.saved["allsky_ddunet.json"]
        return {name: entry["value"] for name, entry in saved.items()}

    shared.run = run
    shared.values = values
    yield shared
    sys.modules.pop("allsky_ddunet", None)


def test_allsky_gets_the_cover_of_its_bgr_frame(allsky, sky):
    expected = dd.Segmenter().segment(sky)
    frame = np.ascontiguousarray(sky[..., ::-1])
    before = frame.copy()
    result = allsky.run(frame)
    np.testing.assert_array_equal(allsky.image, before)
    percent = round(expected.cloud_cover.percent, 1)
    assert result == f"Cloud cover {percent:.1f} %, {expected.cloud_cover.okta} okta"
    assert allsky.values() == {
        "AS_DDUNET_PERCENT": percent,
        "AS_DDUNET_OKTA": expected.cloud_cover.okta,
        "AS_DDUNET_CONFIDENCE": round(expected.confidence, 2),
        "AS_DDUNET_USABLE": True,
        "AS_DDUNET_REASON": "",
    }
    assert allsky.logged == [(4, f"INFO: {result}")]


def test_allsky_gets_no_number_for_a_frame_that_says_nothing(allsky, sky):
    allsky.run(sky)
    assert allsky.run(np.zeros((120, 160, 3), np.uint8)) == "Cloud cover unknown: black"
    # nothing of the frame before is left
    assert allsky.values() == {"AS_DDUNET_USABLE": False, "AS_DDUNET_REASON": "black"}


def test_allsky_names_mask_horizon_and_model(allsky, tmp_path):
    model = tmp_path / "tiny.tflite"
    model.write_bytes(tiny_tflite())
    frame = gray_photo((50, 70))
    expected = dd.Segmenter(model).segment(frame, horizon="circle:30,20,15")
    allsky.run(frame, model=str(model), horizon="circle:30,20,15")
    assert allsky.values()["AS_DDUNET_PERCENT"] == round(expected.cloud_cover.percent, 1)

    valid = np.zeros((50, 70), bool)
    valid[:, 20:] = True
    (tmp_path / "overlay" / "images").mkdir(parents=True)
    Image.fromarray(valid).save(tmp_path / "overlay" / "images" / "mask.png")
    expected = dd.Segmenter(model).segment(frame, horizon=valid)
    allsky.run(frame[..., 0], model=str(model), horizon="auto", mask="mask.png")  # a gray frame
    assert allsky.values()["AS_DDUNET_PERCENT"] == round(expected.cloud_cover.percent, 1)


def test_allsky_loads_a_model_once(allsky, monkeypatch, tmp_path):
    model = tmp_path / "tiny.tflite"
    model.write_bytes(tiny_tflite())
    loaded = []
    segmenter = dd.Segmenter
    monkeypatch.setattr(dd, "Segmenter", lambda path: loaded.append(path) or segmenter(path))
    for seed in range(3):
        allsky.run(gray_photo((50, 70), seed), model=str(model))
    assert loaded == [str(model)]


@pytest.mark.parametrize(
    "frame, arguments, said",
    [
        (None, {}, "image"),
        (np.zeros((40, 40, 3), np.uint16), {}, "uint8"),
        (gray_photo((40, 40)), {"model": "missing.tflite"}, "missing.tflite"),
        (gray_photo((40, 40)), {"mask": "missing.png"}, "missing.png"),
        (gray_photo((40, 40)), {"horizon": "disc"}, "disc"),
    ],
    ids=["no frame", "16 bits", "no model", "no mask", "bad horizon"],
)
def test_allsky_goes_on_after_an_error_which_is_logged(allsky, frame, arguments, said):
    result = allsky.run(frame, **arguments)
    assert isinstance(result, str) and said in result
    assert allsky.logged == [(0, result)]
    assert allsky.values() == {
        "AS_DDUNET_USABLE": False,
        "AS_DDUNET_REASON": "error, see the log",
    }


def test_allsky_goes_on_where_the_package_is_missing_or_the_disk_full(allsky, monkeypatch, sky):
    monkeypatch.setitem(sys.modules, "ddunet_keras", None)
    assert "ddunet_keras" in allsky.run(sky)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(allsky, "save_extra_data", full)
    assert "No space left" in allsky.run(sky)
    assert all(level == 0 for level, _ in allsky.logged)


def test_allsky_can_show_the_module(allsky):
    meta_data = allsky.module.ALLSKYDDUNET.meta_data
    assert json.loads(json.dumps(meta_data)) == meta_data
    assert meta_data["module"] == "allsky_ddunet" == allsky.module.__name__
    assert meta_data["arguments"].keys() == meta_data["argumentdetails"].keys()
    assert set(meta_data["events"]) == {"day", "night"}
    allsky.run(np.zeros((40, 40, 3), np.uint8))
    allsky.module.ddunet_cleanup()
    assert allsky.saved == {}


# --- indi-allsky


@pytest.fixture
def hook(tmp_path):
    """Installs the hook with settings, and calls it as indi-allsky does.

    It returns what indi-allsky reads, {} where it reads nothing, and what it logs.
    """

    def call(**settings):
        script = tmp_path / "indi_allsky_hook.py"
        lines = (FOLDER / script.name).read_text(encoding="utf-8").splitlines()
        lines[0] = f"#!{sys.executable}"  # as the installation does
        code = "\n".join(lines)
        for name, value in settings.items():
            code, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.M)
            assert count == 1
        script.write_text(code, encoding="utf-8")
        script.chmod(0o755)
        answer = tmp_path / "answer.json"
        # nothing else is in its environment, not even PATH
        environment = {"DATA_JSON": str(answer), "EXPOSURE": "15.000000", "GAIN": "120.00"}
        environment |= {"BIN": "1", "SUNALT": "-20.1", "NIGHT": "1", "LATITUDE": "48.200"}
        # for `pip install`: the package that is tested, whatever else is installed here
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HOOK_TIMEOUT,
        )
        if done.returncode != 0:
            assert not answer.exists()
            return {}, done.stdout
        values = json.loads(answer.read_text(encoding="utf-8"))
        answer.unlink()
        return values, ""

    return call


def test_indi_allsky_gets_strings_for_its_labels(hook, sky, tmp_path):
    path = tmp_path / "latest.jpg"
    Image.fromarray(sky).save(path)
    expected = dd.Segmenter().segment(dd.read_image(path), horizon="circle:80,60,50")
    values, _ = hook(IMAGE=str(path), HORIZON="circle:80,60,50")
    assert values == {
        "custom_1": f"{expected.cloud_cover.percent:.1f}",
        "custom_2": str(expected.cloud_cover.okta),
        "custom_3": f"{expected.confidence:.2f}",
        "custom_4": "",
    }


def test_indi_allsky_gets_unknown_for_a_black_or_old_picture(hook, tmp_path):
    path = tmp_path / "latest.png"
    Image.new("RGB", (70, 50)).save(path)
    nothing = {"custom_1": "unknown", "custom_2": "unknown", "custom_3": "unknown"}
    assert hook(IMAGE=str(path))[0] == nothing | {"custom_4": "black"}
    os.utime(path, (0, 0))
    values, _ = hook(IMAGE=str(path))
    assert values.items() >= nothing.items() and values["custom_4"].endswith(" s old")


def test_indi_allsky_logs_what_went_wrong(hook, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no photo")
    good = tmp_path / "good.png"
    Image.fromarray(gray_photo((50, 70))).save(good)
    for settings, said in (
        ({"IMAGE": str(tmp_path / "missing.jpg")}, "missing.jpg"),
        ({"IMAGE": str(broken)}, "broken.jpg"),
        ({"IMAGE": str(good), "MODEL": "missing.tflite"}, "missing.tflite"),
        ({"IMAGE": str(good), "HORIZON": "disc"}, "disc"),
    ):
        values, log = hook(**settings)
        assert values == {}
        assert log.startswith("indi_allsky_hook: ") and said in log and log.count("\n") == 1


def test_the_hook_says_who_has_to_start_it():
    done = subprocess.run(
        [sys.executable, FOLDER / "indi_allsky_hook.py"], env={}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "DATA_JSON is not set" in done.stdout
