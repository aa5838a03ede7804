import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from PIL import Image
from random_tflite import Network
from tiny_tflite import gray_photo, probabilities, tiny_tflite

from ddunet_keras.data.synthetic import synthetic_sky
from ddunet_keras.files import DataError, read_gray
from ddunet_keras.images import resize_image, resize_probabilities
from ddunet_keras.litert.model import add_operator, read_tflite, write_tflite
from ddunet_keras.prediction import find_photos, predict_files
from ddunet_keras.segmenter import Segmenter

SCRIPT = Path(__file__).parents[1] / "tflite" / "python" / "segment.py"


@pytest.fixture
def file(tmp_path):
    """Writes a tiny file, 16 x 32 pixels unless said otherwise."""

    def write(name="tiny.tflite", **settings):
        path = tmp_path / name
        path.write_bytes(tiny_tflite(**settings))
        return path

    return write


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


# --- what it computes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("output", ["probability", "logits", "mask"])
@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_probabilities_are_those_of_numpy(file, io, output, channels):
    segmenter = Segmenter(file(io=io, output=output, channels=channels))
    assert segmenter.image_shape == (16, 32, 3)
    assert segmenter.num_classes == max(2, channels)
    image = gray_photo((16, 32))
    expected = probabilities(image, channels)
    if output == "mask":
        labels = expected.argmax(-1) if channels > 1 else (expected >= 0.5).astype(int)
        expected = np.eye(channels)[labels] if channels > 1 else labels
    found = segmenter.predict_probabilities(image)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1 / 256)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_without_a_cloud_has_no_confidence_either(file, channels):
    """Nothing but zeros may be a mask, or the most decided probabilities."""
    photo = synthetic_sky(0, (48, 64))[0] // 4 + 4  # the file takes the bright for cloud
    for output in ("mask", "probability"):
        result = Segmenter(file(output=output, channels=channels)).segment(photo)
        assert result.usable and result.cloud_cover.percent == 0
        assert (result.confidence is None) == (output == "mask")


def test_every_type_of_input_sees_the_same(file):
    image = np.random.default_rng(1).integers(0, 256, (16, 32, 3), np.uint8)
    found = [Segmenter(file(io=io)).predict_probabilities(image) for io in ("int8", "uint8")]
    np.testing.assert_array_equal(*found)


def test_segment_is_at_the_size_of_the_photo(file):
    segmenter = Segmenter(file())
    photo = np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8)
    result = segmenter.segment(photo, threshold=0.4, horizon="circle:30,20,15")
    inside = np.hypot(np.arange(70) - 30, (np.arange(50) - 20)[:, None]) <= 15
    seen = resize_image(np.where(inside[..., None], photo, np.uint8(0)), (16, 32))
    small = segmenter.predict_probabilities(seen)
    np.testing.assert_array_equal(result.probabilities, resize_probabilities(small, (50, 70)))
    clouds = np.where(result.probabilities >= 0.4, 255, 0)
    np.testing.assert_array_equal(result.mask, np.where(inside, clouds, 128))
    assert result.cloud_cover.fraction == pytest.approx((clouds[inside] == 255).mean())


def test_channel_order(file):
    segmenter = Segmenter(file(output="logits"))
    photo = gray_photo((16, 32)) // np.array([1, 2, 4], np.uint8)
    rgb = segmenter.segment(photo).probabilities
    bgr = segmenter.segment(photo[..., ::-1], channel_order="bgr").probabilities
    np.testing.assert_array_equal(rgb, bgr)
    with pytest.raises(ValueError, match="'gbr'"):
        segmenter.segment(photo, channel_order="gbr")
    with pytest.raises(ValueError, match="float64"):
        segmenter.segment(photo / 255)
    with pytest.raises(ValueError, match="`image`"):
        segmenter.segment(photo[:0])


def test_it_serves_predict_files(tmp_path, file):
    Image.fromarray(gray_photo((40, 60))).save(tmp_path / "sky.png")
    model = Segmenter(file(channels=3))
    (record,) = predict_files(model, find_photos([tmp_path / "sky.png"]), tmp_path / "out")
    mask = read_gray(tmp_path / "out" / record["mask"])
    assert mask.shape == (40, 60) and set(np.unique(mask)) <= {0, 1, 2}
    assert record["cloud_cover"]["fraction"] == pytest.approx((mask > 0).mean())


def test_threads_may_share_it(file):
    segmenter = Segmenter(file(size=(64, 64)), threads=1)
    photos = [np.full((64, 64, 3), value, np.uint8) for value in range(8, 248, 8)]
    found = {}

    def work(part):
        for photo in photos[part::4]:
            found[photo[0, 0, 0]] = segmenter.predict_probabilities(photo)

    workers = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for photo in photos:
        np.testing.assert_allclose(found[photo[0, 0, 0]], probabilities(photo), atol=0.05)


@pytest.mark.parametrize("threads", [0, -1, 1.5, 10**6])
def test_threads_are_checked(file, threads):
    with pytest.raises(ValueError, match="threads"):
        Segmenter(file(), threads=threads)


def test_a_delegate_that_is_not_here_is_named(capfd, file):
    with pytest.raises(DataError, match="libedgetpu"):
        Segmenter(file(), delegate="edgetpu")
    with pytest.raises(DataError, match=r"no/such\.so"):
        Segmenter(file(), delegate="no/such.so")
    assert capfd.readouterr() == ("", "")


def test_a_file_for_the_edge_tpu_asks_for_it(tmp_path):
    model = read_tflite(tiny_tflite())
    code, (operator, *_) = schema.OperatorCodeT(), model.subgraphs[0].operators
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode, operator.opcodeIndex = "edgetpu-custom-op", len(model.operatorCodes)
    operator.builtinOptionsType, operator.builtinOptions = 0, None
    model.operatorCodes.append(code)
    path = tmp_path / "tpu.tflite"
    path.write_bytes(write_tflite(model))
    with pytest.raises(DataError, match="delegate edgetpu"):
        Segmenter(path)


def test_litert_says_nothing_and_others_still_can(capfd, file):
    Segmenter(file()).predict_probabilities(gray_photo((16, 32)))
    assert capfd.readouterr() == ("", "")
    print("heard", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "heard\n"


# --- files that are none of ours


def foreign(kind):
    """Content of a file, and a word of what is said of it."""
    good = tiny_tflite()
    return {
        "empty": (b"", "empty"),
        "truncated": (good[: len(good) // 2], "truncated"),
        "random": (np.random.default_rng(0).bytes(5000), "not a .tflite file"),
        "random behind the mark": (good[:8] + np.random.default_rng(0).bytes(5000), ".tflite file"),
        "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a .tflite file"),
        "gray input": (
            tiny_tflite(size=(16, 16)).replace(*_shapes((1, 16, 16, 3), (1, 48, 16, 1))),
        )
        + ("RGB input",),
        "batch of two": (good.replace(*_shapes((1, 16, 32, 3), (2, 16, 16, 3))), "RGB input"),
    }[kind]


def _shapes(*shapes):
    return [np.array(shape, np.int32).tobytes() for shape in shapes]


KINDS = ["empty", "truncated", "random", "random behind the mark", "picture", "gray input"]
KINDS += ["batch of two"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_file_is_one_line(tmp_path, kind):
    content, word = foreign(kind)
    path = tmp_path / "foreign.tflite"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        Segmenter(path)
    assert str(path) in str(error.value) and word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, word in ((tmp_path / "no.tflite", "no such file"), (tmp_path, "folder")):
        with pytest.raises(DataError, match=word):
            Segmenter(path)


def test_damage_is_an_error_and_never_a_crash(tmp_path):
    (tmp_path / "good.tflite").write_bytes(tiny_tflite())
    code = """
import sys, numpy as np
from ddunet_keras.files import DataError
from ddunet_keras.segmenter import Segmenter
good = np.fromfile(sys.argv[1] + "/good.tflite", np.uint8)
path, random, errors = sys.argv[1] + "/bad.tflite", np.random.default_rng(0), 0
for _ in range(150):
    bad = good.copy()
    bad[random.integers(0, len(bad), random.integers(1, 9))] = random.integers(0, 256)
    bad.tofile(path)
    try:
        Segmenter(path, threads=1).predict_probabilities(np.zeros((16, 32, 3), np.uint8))
    except DataError:
        errors += 1
print(errors)
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 10 < int(done.stdout) < 150


def called_once(model):
    """A subgraph that calls itself, beside a sound segmenter."""
    graph = model.subgraphs[0]
    call = add_operator(model, "CALL_ONCE", list(graph.inputs), [], schema.CallOnceOptionsT(0))
    graph.operators.insert(0, call)


def cycle(model):
    """An operator that reads what it writes; empty tensors count as read before."""
    graph = model.subgraphs[0]
    last = graph.operators[-1]
    graph.tensors[last.outputs[0]].shape = [1, 0, 32, 1]
    last.inputs = list(last.outputs)


def chain(model):
    graph = model.subgraphs[0]
    for _ in range(2100):
        graph.tensors.append(graph.tensors[graph.outputs[0]])
        last = len(graph.tensors) - 1
        graph.operators.append(add_operator(model, "LOGISTIC", graph.outputs, [last]))
        graph.outputs = [last]


def without_scale(model):
    graph = model.subgraphs[0]
    graph.tensors[graph.operators[0].inputs[1]].quantization = None


CRAFTED = {
    "another operator": (lambda model: set_kind(model, "SPARSE_TO_DENSE"), "no operator of a"),
    "another type": (lambda model: set_type(model, "INT16"), "int16"),
    "a call of itself": (called_once, "CALL_ONCE"),
    "a cycle": (cycle, "before it is there"),
    "a chain": (chain, "2,102 operators, at most 2,000"),
    "no scale": (without_scale, "has no scale"),
}


def set_kind(model, name):
    code = getattr(schema.BuiltinOperator, name)
    model.operatorCodes[-1] = schema.OperatorCodeT(code, None, 1, code)


def set_type(model, name):
    graph = model.subgraphs[0]
    graph.tensors[graph.operators[0].outputs[0]].type = getattr(schema.TensorType, name)


@pytest.mark.parametrize("kind", CRAFTED)
def test_litert_sees_no_crafted_file(tmp_path, kind):
    craft, word = CRAFTED[kind]
    model = read_tflite(tiny_tflite())
    craft(model)
    path = tmp_path / "crafted.tflite"
    path.write_bytes(write_tflite(model))
    with pytest.raises(DataError, match=word) as error:
        Segmenter(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("output", ["logits", "mask"])
def test_a_file_of_too_many_classes_is_refused(file, output):
    with pytest.raises(DataError, match=r"300 classes is too large; at most (255|128) classes"):
        Segmenter(file(output=output, channels=300))


def test_an_output_that_is_not_finite_is_an_error(tmp_path):
    net = Network(0, (16, 16))
    graph = net.graph
    image = graph.tensor((1, 16, 16, 3), "float32")
    weights = graph.constant(np.full((1, 1, 1, 3), np.nan, np.float32))
    options = schema.Conv2DOptionsT(schema.Padding.VALID, 1, 1, 0, 1, 1)
    bias = graph.constant(np.zeros(1, np.float32))
    result = graph.operator(
        "CONV_2D", [image, weights, bias], (1, 16, 16, 1), "float32", options=options
    )
    path = tmp_path / "nan.tflite"
    path.write_bytes(write_tflite(graph.model(image, result)))
    with pytest.raises(DataError, match="no logits: its output has values from nan to nan"):
        Segmenter(path).predict_probabilities(gray_photo((16, 16)))


# --- the command


def predict(model, out, *inputs):
    """Exit code, stdout, stderr and what is loaded, of `ddunet predict` in a process of its own."""
    code = """
import sys
from ddunet_keras.cli import main
code = main(sys.argv[1:])
print("loaded:", *sorted(set(sys.modules) & {"tensorflow", "keras", "tf_keras", "jax", "torch"}))
sys.exit(code)
"""
    done = python(code, "predict", *inputs, "--model", model, "--out", out)
    *printed, loaded = done.stdout.splitlines()
    return done.returncode, printed, done.stderr, loaded


def test_predict_brings_no_framework(tmp_path, file):
    photo = gray_photo((50, 70))
    Image.fromarray(photo).save(tmp_path / "sky.png")
    path, out = file(), tmp_path / "out"
    code, printed, err, loaded = predict(path, out, tmp_path / "sky.png")
    assert (code, err, loaded) == (0, "", "loaded:")
    assert "okta" in printed[0]
    (record,) = json.loads((out / "predictions.json").read_text())
    assert record["model"] == str(path)
    expected = Segmenter(path).segment(photo).mask
    np.testing.assert_array_equal(read_gray(out / record["mask"]), expected)
    assert sorted(p.name for p in out.iterdir()) == [
        "predictions.json",
        "sky_mask.png",
        "sky_overlay.jpg",
    ]


@pytest.mark.parametrize("kind", ["empty", "truncated", "random", "gray input"])
def test_predict_says_what_is_wrong_in_one_line(tmp_path, kind):
    Image.fromarray(gray_photo((50, 70))).save(tmp_path / "sky.png")
    path, out = tmp_path / "foreign.tflite", tmp_path / "out"
    path.write_bytes(foreign(kind)[0])
    code, printed, err, loaded = predict(path, out, tmp_path / "sky.png")
    assert (code, printed, loaded) == (2, [], "loaded:")
    assert re.fullmatch(r"ddunet: error: .+\n", err) and str(path) in err
    assert not out.exists()


def test_options_of_tflite_are_refused_for_keras(tmp_path, capsys):
    from ddunet_keras import cli

    Image.fromarray(gray_photo((50, 70))).save(tmp_path / "sky.png")
    command = ["predict", str(tmp_path / "sky.png"), "--model", "m.keras", "--threads", "1"]
    assert cli.main(command) == 2
    assert "--threads" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_twelve_megapixels_fit_into_300_mb(tmp_path, file):
    # VmHWM: `ru_maxrss` of a child starts at its parent's, which may hold TensorFlow
    small = Image.fromarray(synthetic_sky(0, (300, 400), time="day", view="patch")[0])
    small.resize((4000, 3000), Image.Resampling.BICUBIC).save(tmp_path / "sky.jpg")
    code = """
import sys
from ddunet_keras.cli import main
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status").read().split()
print(int(status[status.index("VmHWM:") + 1]) // 1024)
"""
    arguments = ["predict", tmp_path / "sky.jpg", "--model", file(size=(256, 256))]
    done = python(code, *arguments, "--out", tmp_path / "out")
    assert int(done.stdout.split()[-1]) < 300, done.stdout + done.stderr


def test_the_single_file_example_agrees(tmp_path, file):
    photo = gray_photo((50, 70))
    Image.fromarray(photo).save(tmp_path / "sky.png")
    for settings in ({}, {"io": "uint8"}, {"io": "float32", "channels": 3}):
        path = file(**settings)
        command = [sys.executable, SCRIPT, path, tmp_path / "sky.png", tmp_path / "mask.png"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        expected = Segmenter(path).segment(photo)
        np.testing.assert_array_equal(read_gray(tmp_path / "mask.png"), expected.mask)
        assert f"{expected.cloud_cover.percent:.1f} % cloud" in done.stdout


def test_the_single_file_example_says_when_it_cannot_tell(tmp_path, file):
    path = file()
    for value, reason in ((0, "black"), (255, "saturated"), (90, "flat colour")):
        Image.new("RGB", (70, 50), (value,) * 3).save(tmp_path / "sky.png")
        command = [sys.executable, SCRIPT, path, tmp_path / "sky.png", tmp_path / "mask.png"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 3, done.stderr
        assert done.stdout.endswith(f"sky.png: cannot tell: {reason}\n")
        assert not (tmp_path / "mask.png").exists()


def test_the_single_file_example_refuses_what_pillow_would_cut_off(tmp_path, file):
    Image.fromarray(np.full((50, 70), 30_000, np.uint16)).save(tmp_path / "sky.png")
    command = [sys.executable, SCRIPT, file(), tmp_path / "sky.png", tmp_path / "mask.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.endswith("sky.png: more than 8 bits; `ddunet predict` takes it\n")


def test_the_single_file_example_takes_the_transparent_for_no_sky(tmp_path, file):
    photo = np.dstack([gray_photo((50, 70)), np.full((50, 70), 255, np.uint8)])
    photo[:, :30, 3] = 0
    Image.fromarray(photo).save(tmp_path / "sky.png")
    command = [sys.executable, SCRIPT, file(), tmp_path / "sky.png", tmp_path / "mask.png"]
    subprocess.run(command, capture_output=True, timeout=100, check=True)
    assert ((read_gray(tmp_path / "mask.png") == 128) == (photo[..., 3] == 0)).all()


def test_the_single_file_example_heeds_the_horizon(tmp_path, file):
    photo = gray_photo((50, 70))
    valid = np.zeros((50, 70), bool)
    valid[:, 20:] = True
    Image.fromarray(valid).save(tmp_path / "horizon.png")
    masks = []
    for value in (0, 200):
        photo[~valid] = value
        Image.fromarray(photo).save(tmp_path / "sky.png")
        command = [sys.executable, SCRIPT, file(), tmp_path / "sky.png", tmp_path / "mask.png"]
        command += ["--horizon", tmp_path / "horizon.png"]
        subprocess.run(command, capture_output=True, timeout=100, check=True)
        masks.append(read_gray(tmp_path / "mask.png"))
    assert (masks[0][~valid] == 128).all() and (masks[0][valid] != 128).all()
    np.testing.assert_array_equal(masks[0], masks[1])
