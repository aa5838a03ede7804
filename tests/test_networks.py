"""The networks that DDUNet is compared with: one test of the model for all of them."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import ops
from marks import slow_case

import ddunet_keras as dd
from ddunet_keras.files import DataError
from ddunet_keras.losses import MeanIoU, PixelAccuracy, SegmentationLoss
from ddunet_keras.model import LOADABLE, build_network, load_model
from ddunet_keras.networks.architectures import NETWORKS
from ddunet_keras.reference import load_paddle_weights, load_state

SIZE = (32, 64)
SMALL = ("cloudsegnet", "ucloudnet_k2")
LARGE = tuple(name for name in NETWORKS if name not in SMALL)
ALL = (*SMALL, *map(slow_case, LARGE))

WITH_TWO_LOGITS = {
    "unet": 24_891_202,
    "pspnet": 6_918_338,
    "deeplabv3plus": 2_753_714,
    "segcloud_described": 18_866_562,
    "segcloud_counted": 19_600_962,
    "cloudunet": 34_536_962,
    "cloudunetv2": 14_545_668 + 328_320,
}
"""Parameters of the networks with two logits and a softmax, as the sources have them."""


WITHOUT_EFFECT = "position.key/bias"
"""It adds the same to all that the softmax of CloudU-Netv2's attention compares."""


def images(size=SIZE, batch=2):
    return np.random.default_rng(3).uniform(-1, 1, (batch, *size, 3)).astype("float32")


def outputs_of(model, x, **settings):
    """The outputs as a list of arrays, full size first."""
    outputs = model(x, **settings)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [ops.convert_to_numpy(output) for output in outputs]


def randomize(model):
    """Changes the weights that start at zero or one; kernels start at random."""
    random = np.random.default_rng(5)
    for layer in model.layers:
        values = [
            w + random.uniform(-0.1, 0.1, w.shape) if w.ndim < 2 else w for w in layer.get_weights()
        ]
        layer.set_weights(values)


@pytest.fixture(params=ALL, scope="module")
def model(request):
    """A network that no test trains further: the large ones take long to build."""
    keras.utils.set_random_seed(2)
    built = build_network(request.param, image_shape=(*SIZE, 3))
    randomize(built)
    yield built
    keras.backend.clear_session()  # some of them have 30 million weights


def test_a_network_is_a_segmenter(model, tmp_path):
    name = model.network
    assert model.count_params() == NETWORKS[name].parameters
    x = images()
    outputs = outputs_of(model, x)
    scales = (1, 2, 4) if name.startswith("ucloudnet") else (1,)
    assert [o.shape for o in outputs] == [(2, SIZE[0] // s, SIZE[1] // s, 1) for s in scales]
    assert all(o.dtype == np.float32 and np.isfinite(o).all() for o in outputs)

    # a file, and another size with the same weights
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(outputs_of(loaded, x)[0], outputs[0], rtol=1e-5, atol=1e-6)
    other = loaded.resized((40, 24, 3))
    assert outputs_of(other, images((40, 24)))[0].shape == (2, 40, 24, 1)

    photo = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype="uint8")
    probabilities = model.predict_probabilities(photo)
    assert probabilities.shape == SIZE and 0 <= probabilities.min() <= probabilities.max() <= 1
    assert model.segment(photo, force=True).mask.shape == (50, 70)


def test_gradient_reaches_every_weight(model):
    import tensorflow as tf

    x = images()
    with tf.GradientTape() as tape:
        outputs = model(x, training=False)  # batch statistics would cancel the biases
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        weighted = [output * np.linspace(0, 1, output.shape[2])[:, None] for output in outputs]
        loss = sum(tf.reduce_sum(output) for output in weighted)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        if weight.path.endswith(WITHOUT_EFFECT):
            continue
        assert gradient is not None and float(tf.reduce_max(tf.abs(gradient))) > 0, weight.path


def test_a_network_learns(model):
    """Three classes, with pixels that do not count."""
    network = build_network(model.network, (*SIZE, 3), num_classes=3)
    x = images()
    labels = np.zeros((2, *SIZE), "uint8")
    labels[:, :, 20:40] = 1
    labels[:, :, 40:] = 2
    labels[0, :4] = 255
    network.compile(
        optimizer=keras.optimizers.Adam(2e-4),  # at 1e-3 the loss of `unet` leaps
        loss=[SegmentationLoss() for _ in network.outputs],
        metrics=[PixelAccuracy(3), MeanIoU(3)],
        run_eagerly=True,  # compiling takes longer than all that is tested here
    )
    history = network.fit(x, labels, batch_size=2, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert outputs_of(network, x)[0].shape == (2, *SIZE, 3)
    assert network.predict_probabilities(np.zeros((9, 9, 3), "uint8")).shape == (*SIZE, 3)


def test_mixed_precision(model):
    """Logits are float32, and near those of the network in float32."""
    mixed = model.resized((32, 32, 3), dtype="mixed_float16")
    assert mixed.dtype_policy.name == "mixed_float16"
    assert "float16" in {layer.compute_dtype for layer in mixed.layers}
    x = images((32, 32), batch=1)
    (logits,) = outputs_of(mixed, x)
    assert logits.dtype == np.float32
    (expected,) = outputs_of(model.resized((32, 32, 3)), x)
    assert np.abs(logits - expected).mean() < 0.05 * max(1, np.abs(expected).max())


# === Sizes and parameters ===


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_TWO_LOGITS)
def test_parameters_with_two_logits_are_the_sources(name):
    one, three = (
        build_network(name, (32, 32, 3), num_classes=classes).count_params() for classes in (2, 3)
    )
    assert (one + three) / 2 == WITH_TWO_LOGITS[name]
    keras.backend.clear_session()


@pytest.mark.parametrize("name", SMALL)
def test_a_size_that_does_not_fit_is_padded(name):
    model = build_network(name, (26, 58, 3))
    x = images((26, 58))
    shapes = [(2, 26, 58, 1), (2, 13, 29, 1), (2, 7, 15, 1)]
    outputs = outputs_of(model, x)
    assert [output.shape for output in outputs] == shapes[: len(outputs)]
    fitting = model.resized((32, 64, 3))
    padded = np.pad(x, ((0, 0), (0, 6), (0, 6), (0, 0)))
    expected = outputs_of(fitting, padded)[0][:, :26, :58]
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-5)


def test_all_networks_are_found_by_name():
    assert set(NETWORKS) >= {"unet", "pspnet", "deeplabv3plus", "cloudunet", "masegcloud"}
    assert build_network("ddunet", image_shape=(32, 32, 3)).count_params() == 329_447
    with pytest.raises(ValueError, match=r"`name` must be one of \('ddunet', 'unet'.*name='net'"):
        build_network("net")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"network": "vgg"}, "`network` must be one of .* network='vgg'"),
        ({"image_shape": (32, 32)}, r"`image_shape` must be .* Received: image_shape=\(32, 32\)"),
        ({"image_shape": (8, 32, 3)}, r"16 or more. Received: image_shape=\(8, 32\)"),
        ({"image_shape": (32, 32, 1)}, r"image_shape=\(32, 32, 1\)"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_bad_arguments(arguments, message):
    from ddunet_keras.networks.network import ComparedNetwork

    with pytest.raises(ValueError, match=message):
        ComparedNetwork(**{"network": "cloudsegnet", "image_shape": (32, 32, 3), **arguments})


# === Files ===


def write_description(source, path, **changes):
    """A copy of a model's file whose description differs."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                description = json.loads(data)
                description["config"].update(changes.pop("config", {}))
                description.update(changes)
                data = json.dumps(description)
            new.writestr(name, data)


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "good.keras"
    build_network("cloudsegnet", (32, 32, 3)).save(path)
    return path


LAYER = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}


@pytest.mark.parametrize(
    "changes",
    [
        {"registered_name": "Sequential"},
        {"registered_name": "ddunet_keras>LearnedScale"},
        {"registered_name": None},
        {"class_name": "function"},
        {"config": {"network": "ddunet_keras.evil"}},
        {"config": {"network": ["unet"]}},
        {"config": {"dtype": LAYER}},
        {"config": {"network": "unet"}},
        {"config": {"color": "blue"}},
    ],
)
def test_a_file_that_names_something_else_is_refused(good_file, changes, tmp_path):
    write_description(good_file, tmp_path / "bad.keras", **changes)
    with pytest.raises(DataError, match=r"bad\.keras: no readable"):
        load_model(tmp_path / "bad.keras")


def test_what_is_loadable_is_what_the_package_builds():
    assert sorted(LOADABLE) == ["ddunet_keras>ComparedNetwork", "ddunet_keras>DDUNet"]


# === UCloudNet's published weights ===


@pytest.mark.shared
@pytest.mark.parametrize("width", [2, 4])
def test_ucloudnet_reproduces_its_authors_numbers(width, shared):
    numbers = np.load(shared / "reference" / f"ucloudnet_k{width}.npz")
    x = 2 * numbers["image_nchw"].transpose(0, 2, 3, 1) - 1
    model = build_network(f"ucloudnet_k{width}", x.shape[1:])
    load_paddle_weights(model, shared / "reference" / f"ucloudnet_k{width}.pdparam")
    outputs = outputs_of(model, x, training=False)
    assert len(outputs) == 3
    for index, output in enumerate(outputs):
        expected = numbers[f"logits_{index}_nchw"].transpose(0, 2, 3, 1)
        assert np.abs(output - expected).max() < 1e-4 * np.ptp(expected), index


def paddle_state(model):
    """The weights as the authors would have saved them."""
    from ddunet_keras.networks.ucloudnet import paddle_name

    state = {}
    for weight in model.weights:
        value = ops.convert_to_numpy(weight)
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        state[paddle_name(weight.path.removeprefix(f"{model.name}/"))] = value
    return state


def test_ucloudnet_takes_the_authors_names(tmp_path):
    source = build_network("ucloudnet_k2", (32, 32, 3))
    randomize(source)
    state = paddle_state(source)
    assert len(state) == 147 and state["aux_x4.conv2d.weight"].shape == (1, 8, 1, 1)
    path = tmp_path / "weights.pdparam"
    path.write_bytes(pickle.dumps(state))
    for deep_supervision in (True, False):
        model = build_network("ucloudnet_k2", (32, 32, 3), deep_supervision=deep_supervision)
        load_paddle_weights(model, path)
        x = images((32, 32))
        np.testing.assert_allclose(outputs_of(model, x)[0], outputs_of(source, x)[0], atol=1e-6)
    del state["classifier.bias"]
    with pytest.raises(DataError, match=r"fit ucloudnet_k2 .*missing classifier\.bias"):
        load_state(model, state)
    with pytest.raises(DataError, match=r"ucloudnet_k4 .*has shape \(2, 3, 3, 3\)"):
        load_paddle_weights(build_network("ucloudnet_k4", (32, 32, 3)), path)
    with pytest.raises(DataError, match=r"weights\.pdparam: of cloudsegnet there are no weights"):
        load_paddle_weights(build_network("cloudsegnet", (32, 32, 3)), path)


# === The other backend ===

STEP = """
import json, sys
import keras
import numpy as np
from ddunet_keras.model import build_network
from ddunet_keras.losses import SegmentationLoss

found = {}
for name in sys.argv[2:]:
    model = build_network(name, (32, 64, 3))
    random = np.random.default_rng(7)

    def value_of(weight):
        if weight.ndim < 2:
            return weight + random.uniform(-0.1, 0.1, weight.shape)
        return random.normal(size=weight.shape) * (2 / np.prod(weight.shape[:-1])) ** 0.5

    for layer in model.layers:
        layer.set_weights([value_of(weight) for weight in layer.get_weights()])
    x = random.uniform(-1, 1, (2, 32, 64, 3)).astype("float32")
    logits = model(x, training=False)
    logits = logits[0] if isinstance(logits, (list, tuple)) else logits
    logits = keras.ops.convert_to_numpy(logits)
    found[name] = {"logits": logits[..., 0].ravel()[::37].tolist()}
    if sys.argv[1] == "train":
        labels = (random.uniform(size=(2, 32, 64)) > 0.5).astype("uint8")
        model.compile(
            optimizer=keras.optimizers.SGD(1e-2),
            loss=[SegmentationLoss() for _ in model.outputs],
        )
        history = model.fit(x, labels, batch_size=1, epochs=1, shuffle=False, verbose=0).history
        found[name]["loss"] = history["loss"]
print(json.dumps(found))
"""


def step(backend, names, mode):
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        # compiling is most of the work: for speed here, not of what is compiled
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    result = subprocess.run(
        [sys.executable, "-c", STEP, mode, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "names, mode",
    [(("cloudsegnet",), "train"), (("ucloudnet_k2",), "predict"), (LARGE, "predict")],
    ids=["cloudsegnet", "ucloudnet_k2", "large"],
)
def test_jax_computes_the_same(names, mode):
    pytest.importorskip("jax")
    ours, theirs = step("tensorflow", names, mode), step("jax", names, mode)
    for name in names:
        expected = np.array(ours[name]["logits"])
        np.testing.assert_allclose(
            theirs[name]["logits"], expected, atol=1e-4 * np.ptp(expected), err_msg=name
        )
        if mode == "train":
            assert theirs[name]["loss"] == pytest.approx(ours[name]["loss"], rel=1e-3)


def test_the_package_hands_it_out():
    assert dd.build_network is build_network and dd.NETWORKS is NETWORKS
