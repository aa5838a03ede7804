"""Verification: the four programs agree on a sound file, and each wrong file is caught."""

import importlib.util
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.deploy import verify as module
from ddunet_keras.deploy.layer_errors import compare_layers, layers_to_markdown
from ddunet_keras.deploy.scoring import probabilities
from ddunet_keras.deploy.verify import Limits, verify
from ddunet_keras.litert.model import operator_name, read_tflite, write_tflite
from ddunet_keras.litert.run import ChildError, run_litert, run_tflm

SIZE = (16, 24)


def photos(count=5, seed=0):
    """Blue skies with gray blobs, and the blobs."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    images, masks = [], []
    for _ in range(count):
        cy, cx, radius = random.uniform((4, 4, 3), (12, 20, 7))
        cloud = np.hypot(y - cy, x - cx) < radius
        image = np.where(cloud[..., None], (200, 200, 205), (40, 90, 190))
        image = image + random.normal(0, 6, image.shape)
        images.append(image.clip(0, 255).astype(np.uint8))
        masks.append(cloud.astype(np.uint8))
    return np.stack(images), np.stack(masks)


def to_tflite(function, shapes, *, quantized, io="int8"):
    import tensorflow as tf

    signature = [tf.TensorSpec(shape) for shape in shapes]
    concrete = tf.function(function, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    if quantized:
        random = np.random.default_rng(0)
        images = photos(8)[0] - 128.0

        def representative():
            for image in images:
                image.flat[:2] = -128, 127
                rest = [random.normal(size=shape).astype("f4") for shape in shapes[1:]]
                yield [image[None].astype("f4"), *rest]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        if io == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")
        return converter.convert()


def weights():
    random = np.random.default_rng(3)

    def draw(*shape):
        return random.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype("f4")

    last = np.zeros((1, 1, 16, 1), "f4")
    return draw(3, 3, 3, 8) / 60, draw(3, 3, 8, 1), draw(1, 1, 8, 8), draw(3, 3, 8, 8), last


def network(odd=None):
    """A small network with what DDUNet's deploy graph is made of; `odd` is put before the head.

    Its head looks for pixels that are little blue, through a channel that copies red minus blue.
    """
    import tensorflow as tf

    stem, depthwise, gate, down, head = weights()
    stem[..., 0] = 0
    stem[1, 1, :, 0] = 0.01, 0, -0.01
    head[0, 0, 8, 0] = 8.0  # the stem's channel 0, as the concatenation has it

    def run(x):
        x = tf.nn.relu(tf.nn.conv2d(x, stem, 1, "SAME") + 1.0)
        y = tf.nn.relu(tf.nn.depthwise_conv2d(x, depthwise, (1, 1, 1, 1), "SAME"))
        z = tf.nn.relu(
            tf.nn.conv2d(tf.pad(x + y, [[0, 0], [1, 1], [1, 1], [0, 0]]), down, 2, "VALID")
        )
        weight = tf.nn.softmax(tf.nn.conv2d(tf.reduce_mean(z, (1, 2), True), gate, 1, "SAME"))
        z = tf.image.resize(z * weight, SIZE)
        if odd is not None:
            z = odd(z)
        return tf.sigmoid(tf.nn.conv2d(tf.concat([z, x], -1), head, 1, "SAME") - 4.0)

    return run


@pytest.fixture(scope="module")
def files():
    """(int8 file, float32 file, predictor) of one network."""
    import tensorflow as tf

    run, shapes = network(), [(1, *SIZE, 3)]

    def predictor(image):
        return run(tf.constant(image[None] - 128.0, tf.float32))[0, ..., 0].numpy()

    return (
        to_tflite(run, shapes, quantized=True),
        to_tflite(run, shapes, quantized=False),
        predictor,
    )


def edited(data, edit):
    """The file after `edit(model, graph)`."""
    model = read_tflite(data)
    edit(model, model.subgraphs[0])
    return write_tflite(model)


def find(model, kind, number=0):
    listed = [o for o in model.subgraphs[0].operators if operator_name(model, o) == kind]
    return listed[number]


def named(verification, part):
    return next(check for check in verification.checks if part in check.name)


def test_a_sound_file_passes_every_check(files):
    data, _, predictor = files
    images, masks = photos()
    result = verify(data, images, masks, float_predictor=predictor, unpacked=data)
    assert [check.passed for check in result.checks] == [True] * 7, result.to_markdown()
    assert result.passed
    assert result.arena["total"] == result.arena["head"] + result.arena["tail"]
    assert result.arena["head"] >= 2 * 16 * 24 * 8  # two maps of 8 channels at least


def test_a_file_without_names_passes(files):
    """As `memory.strip_names` leaves it."""

    def strip(model, graph):
        for tensor in graph.tensors:
            tensor.name = None

    result = verify(edited(files[0], strip), photos(2)[0], unpacked=files[0])
    assert result.passed, result.to_markdown()


def test_scores_are_those_of_the_labels(files):
    data, _, predictor = files
    images, masks = photos()
    masks[:, :4] = 255
    found = verify(data, images, masks, float_predictor=predictor).scores
    ours = run_litert(data, images, reference=True)[..., 0] >= 0
    theirs = np.stack([predictor(image) for image in images]) >= 0.5
    assert found["agreement"] == pytest.approx(100 * np.mean(ours == theirs))
    xnnpack = run_litert(data, images, reference=False)[..., 0] >= 0
    assert found["agreement_xnnpack"] == pytest.approx(100 * np.mean(xnnpack == theirs))
    unsure = [np.mean(abs(predictor(image) - 0.5) < 0.1) for image in images]
    assert found["unsure"] == pytest.approx(100 * np.mean(unsure))
    valid = masks != 255
    for kind, labels in (("file", ours), ("float", theirs)):
        right = [np.mean((p == t)[v]) for p, t, v in zip(labels, masks, valid, strict=True)]
        assert found["accuracy"][kind] == pytest.approx(100 * np.mean(right))
        cover = [np.mean(p[v]) for p, v in zip(labels, valid, strict=True)]
        assert found["cloud_cover"][kind] == pytest.approx(100 * np.mean(cover))
        ious = []
        for p, t, v in zip(labels, masks, valid, strict=True):
            for value in (False, True):
                a, b = (p == value) & v, ((t == 1) == value) & v
                ious.append(np.sum(a & b) / np.sum(a | b))
        assert found["miou"][kind] == pytest.approx(100 * np.mean(ious))
    difference = found["miou"]["file"] - found["miou"]["float"]
    assert found["miou"]["difference"] == pytest.approx(difference)


def test_markdown_and_dict_say_what_happened(files):
    data, _, predictor = files
    images, masks = photos()
    result = verify(data, images, masks, float_predictor=predictor, limits=Limits(agreement=100.1))
    assert not result.passed and not result.to_dict()["passed"]
    assert "| the masks agree with the float model's | FAILED |" in result.to_markdown()
    assert "| MIoU, % |" in result.to_markdown()


# === One wrong graph for each check ===


def test_a_float_tensor_inside_is_caught():
    import tensorflow as tf

    run = network(odd=lambda z: tf.floor(z * 8.0) / 8.0)
    data = to_tflite(run, [(1, *SIZE, 3)], quantized=True, io="mixed")
    check = named(verify(data, photos(2)[0]), "integers")
    assert check.passed is False and "float" in check.detail.lower()


def test_a_memory_pass_that_swaps_tensors_is_caught(files):
    data = files[0]

    def swap(model, graph):
        operator = find(model, "CONCATENATION")
        operator.inputs = operator.inputs[::-1]

    result = verify(edited(data, swap), photos()[0], unpacked=data)
    check = named(result, "rewriting")
    assert check.passed is False and "values differ, most at image" in check.detail
    assert named(result, "TFLM").passed  # wrong, but the same everywhere


def test_a_memory_plan_that_overlaps_is_caught_and_named(files):
    def plan(model, graph):
        offsets = [-1] * len(graph.tensors)
        for operator in graph.operators:
            offsets[operator.outputs[0]] = 0
        buffer = schema.BufferT()
        values = np.array([1, 0, len(offsets), *offsets], "<i4")
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = "OfflineMemoryAllocation", len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)

    data = files[0]
    result = verify(edited(data, plan), photos()[0], unpacked=data)
    assert named(result, "rewriting").passed  # LiteRT does not read the plan
    check = named(result, "TFLM")
    assert check.passed is False and "memory plan" in check.detail


def test_the_operator_that_tflm_computes_otherwise_is_named():
    """TFLM computes the SUM of int8 wrong over rows and columns, and says nothing."""
    import tensorflow as tf

    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype("f4") / 99

    def run(x):
        x = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.sigmoid(x + tf.reduce_sum(x, (1, 2), keepdims=True) / 300.0)

    data = to_tflite(run, [(1, *SIZE, 3)], quantized=True)
    check = named(verify(data, photos(2)[0]), "TFLM")
    assert check.passed is False
    assert "pixel" in check.detail and "; first in operator 1 (SUM)" in check.detail


def test_an_operator_that_tflm_has_not_is_named():
    import tensorflow as tf

    data = to_tflite(lambda x: tf.nn.gelu(x), [(1, *SIZE, 3)], quantized=True)
    with pytest.raises(ChildError, match="GELU"):
        run_tflm(data, photos(1)[0])


def test_a_file_that_litert_does_not_run_fails(files):
    def age(model, graph):
        """An operator of a version that does not exist."""
        code = model.operatorCodes[find(model, "DEPTHWISE_CONV_2D").opcodeIndex]
        code.version = 99

    result = verify(edited(files[0], age), photos(1)[0])
    assert [(c.name, c.passed) for c in result.checks][1:] == [("LiteRT runs the file", False)]
    assert "DEPTHWISE_CONV_2D" in result.checks[1].detail


def test_a_scale_that_xnnpack_refuses_is_caught_and_named(files):
    def shrink(model, graph):
        """As of a gate that calibration never saw open."""
        quantization = graph.tensors[find(model, "CONV_2D", 2).outputs[0]].quantization
        quantization.scale = quantization.scale * 1e-5

    data = edited(files[0], shrink)
    check = named(verify(data, photos(2)[0]), "XNNPACK")
    assert check.passed is False and "; first operator 6 (CONV_2D)" in check.detail


@pytest.mark.parametrize("far, passed", [(2, True), (3, False)])
def test_xnnpack_may_be_further_from_the_reference_in_one_image_of_twenty(
    far, passed, files, monkeypatch
):
    images = photos(40)[0]

    def litert(data, images, reference):
        outputs = np.zeros((len(images), 4, 4, 1), np.int8)
        outputs[: 0 if reference else far] = 9
        return outputs

    monkeypatch.setattr(module, "run_litert_in_child", litert)
    check = named(verify(files[0], images), "XNNPACK")
    assert check.passed is passed
    assert "most in image 0: 9" in check.detail


def test_a_negated_weight_is_caught_by_agreement_and_scores(files):
    data, _, predictor = files

    def negate(model, graph):
        last = [o for o in graph.operators if operator_name(model, o) == "CONV_2D"][-1]
        buffer = model.buffers[graph.tensors[last.inputs[1]].buffer]
        buffer.data = np.negative(np.frombuffer(bytes(buffer.data), np.int8)).view(np.uint8)

    images, masks = photos()
    result = verify(edited(data, negate), images, masks, float_predictor=predictor)
    failed = {check.name for check in result.checks if check.passed is False}
    assert failed == {"the masks agree with the float model's", "accuracy holds", "miou holds"}
    assert "least in image" in named(result, "masks agree").detail


def test_a_wrong_scale_is_caught_by_agreement(files):
    data, _, predictor = files

    def shrink(model, graph):
        quantization = graph.tensors[find(model, "CONV_2D").inputs[1]].quantization
        quantization.scale = quantization.scale * 0.3

    result = verify(edited(data, shrink), photos()[0], float_predictor=predictor)
    assert named(result, "masks agree").passed is False


def test_without_tflm_the_check_is_not_passed_but_not_run(files, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = verify(files[0], photos(2)[0])
    check = named(result, "TFLM")
    assert check.passed is None and result.arena is None
    assert check.detail.startswith("not run: needs pip install '.[mcu]'")
    assert "| not run | not run:" in result.to_markdown()


def test_a_float_file_is_compared_with_the_model_alone(files):
    _, data, predictor = files
    result = verify(data, photos(2)[0], float_predictor=predictor, io="float32")
    assert result.passed and len(result.checks) == 2
    assert result.scores["agreement"] == 100


# === Running ===


def test_bad_arguments_are_refused(files):
    images = photos(1)[0]
    for arguments in (
        {"images": images.astype(float)},
        {"images": images, "masks": np.zeros((1, 2, 2), np.uint8)},
        {"images": images, "output": "labels"},
        {"images": images, "float_predictor": lambda image: np.zeros((2, 2))},
    ):
        with pytest.raises(ValueError, match="Received"):
            verify(files[0], **arguments)
    with pytest.raises(ValueError, match="Received: exact_images=0"):
        Limits(exact_images=0)


def test_imports_no_framework():
    code = (
        "import ddunet_keras.deploy.verify, ddunet_keras.litert.inspect, sys;"
        "print({'tensorflow', 'keras', 'matplotlib'} & sys.modules.keys())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.stdout.strip() == "set()", run.stderr


# === What outputs mean, and layers ===


def test_probabilities_of_logits_and_masks(files):
    def as_logits(scale, point, channels):
        def edit(model, graph):
            tensor = graph.tensors[graph.outputs[0]]
            tensor.quantization.scale = np.array([scale], "f4")
            tensor.quantization.zeroPoint = np.array([point])

        return edited(files[0], edit)

    raw = np.random.default_rng(0).integers(-128, 128, (2, 3, 4, 1), dtype=np.int8)
    value = (raw[..., 0].astype(float) - 5) * 0.25
    found = probabilities(as_logits(0.25, 5, 1), raw, "logits")
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-value)), rtol=1e-5)
    raw = np.random.default_rng(0).integers(-128, 128, (2, 3, 4, 3), dtype=np.int8)
    power = np.exp((raw.astype(float) - 5) * 0.25)
    found = probabilities(as_logits(0.25, 5, 3), raw, "logits")
    np.testing.assert_allclose(found, power / power.sum(-1, keepdims=True), rtol=1e-4)
    assert probabilities(files[0], raw, "mask").shape == (2, 3, 4)


def test_the_layer_where_the_error_arises_is_named(files):
    data, float_data, _ = files
    images = photos(2)[0]

    def coarse(model, graph):
        """Few steps where the depthwise convolution ends."""
        quantization = graph.tensors[find(model, "DEPTHWISE_CONV_2D").outputs[0]].quantization
        quantization.scale = quantization.scale * 40

    sound = compare_layers(data, float_data, images)
    assert max(row["error"] for row in sound) < 3
    worst = compare_layers(edited(data, coarse), float_data, images)[0]
    assert worst["kind"] == "DEPTHWISE_CONV_2D" and worst["added"] > 3
    table = layers_to_markdown(sound, limit=4)
    assert len(table.splitlines()) == 6


def test_the_error_of_the_last_layer_is_that_of_the_output(files):
    data, float_data, _ = files
    images = photos(3)[0]
    rows = compare_layers(data, float_data, images)
    row = next(row for row in rows if row["kind"] == "LOGISTIC")
    value = (run_litert(data, images, reference=True).astype(float) + 128) / 256
    truth = run_litert(float_data, images, reference=False).astype(float)
    error = np.mean((value - truth) ** 2)
    assert row["error"] == pytest.approx(100 * error**0.5 / np.ptp(truth), rel=1e-3)
    assert row["sqnr_db"] == pytest.approx(10 * np.log10(np.var(truth) / error), rel=1e-3)


def test_files_of_different_graphs_cannot_be_compared(files):
    import tensorflow as tf

    other = to_tflite(lambda x: tf.sigmoid(x[..., :1]), [(1, *SIZE, 3)], quantized=False)
    with pytest.raises(ValueError, match="different graphs"):
        compare_layers(files[0], other, photos(1)[0])
