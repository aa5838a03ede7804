"""The network as a Keras model: its size, shapes, files, training and `segment`."""

import functools
import json
import os
import zipfile

import keras
import numpy as np
import pytest
from keras import ops
from marks import slow_case

from ddunet_keras.files import DataError, WriteError
from ddunet_keras.images import normalize, resize_image, resize_probabilities
from ddunet_keras.losses import MeanIoU, PixelAccuracy, SegmentationLoss
from ddunet_keras.model import VARIANTS, DDUNet, load_model
from ddunet_keras.sky import horizon_mask


def numpy_of(outputs):
    """A list of arrays, one for each output."""
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [ops.convert_to_numpy(o) for o in outputs]


def images(batch=2, height=32, width=48):
    return np.random.default_rng(3).uniform(-1, 1, (batch, height, width, 3)).astype("float32")


def labels(batch=2, height=32, width=48, num_classes=2):
    shape = (batch, height, width)
    return np.random.default_rng(4).integers(0, num_classes, shape).astype("uint8")


def photo(height=40, width=60):
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype="uint8")


def small(variant="baseline", image_shape=(32, 48, 3), **kwargs):
    return DDUNet(image_shape, base_channels=2, variant=variant, **kwargs)


@functools.lru_cache
def shared_model(variant="baseline"):
    """A model for all tests that leave its weights as they are; to build one takes long."""
    keras.utils.set_random_seed(1)
    return small(variant)


@pytest.fixture(scope="module")
def segmenter():
    return shared_model()


# --- size and shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, base_channels, trainable, total",
    [
        ("baseline", 8, 320_497, 322_449),
        ("dmsc", 8, 275_461, 281_845),
        ("full", 4, 87_255, 90_447),
        slow_case("full", 16, 1_240_407, 1_253_175),
    ],
)
def test_parameter_counts_are_the_papers(variant, base_channels, trainable, total):
    model = DDUNet((32, 48, 3), base_channels, variant)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == trainable
    assert model.count_params() == total


def test_the_defaults_are_the_paper_sized_network():
    model = DDUNet()
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == 323_063
    assert model.count_params() == 329_447
    config = model.get_config()
    assert config["image_shape"] == (304, 304, 3) and config["base_channels"] == 8
    assert config["variant"] == "full" and config["upsampling"] == "bilinear"
    assert config["num_classes"] == 2 and config["deep_supervision"] is True


@pytest.mark.parametrize(
    "variant, num_classes, channels, upsampling",
    [  # each two values meet
        ("full", 2, 1, "bilinear"),
        ("full", 3, 3, "align_corners"),
        ("dmsc", 2, 1, "align_corners"),
        ("dmsc", 3, 3, "bilinear"),
        ("baseline", 2, 1, "bilinear"),
        ("baseline", 3, 3, "align_corners"),
    ],
)
def test_shapes(variant, num_classes, channels, upsampling):
    model = small(variant, (16, 48, 3), num_classes=num_classes, upsampling=upsampling)
    outputs = numpy_of(model(images(3, 16, 48)))
    scales = (1, 2, 4) if variant == "full" else (1,)
    assert [o.shape for o in outputs] == [(3, 16 // s, 48 // s, channels) for s in scales]
    assert all(o.dtype == np.float32 and np.isfinite(o).all() for o in outputs)
    assert [tuple(o.shape[1:]) for o in model.outputs] == [o.shape[1:] for o in outputs]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_does_not_depend_on_its_batch(variant):
    model, x = shared_model(variant), images(3)
    together = numpy_of(model(x))
    alone = numpy_of(model(x[1:2]))
    for whole, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(whole[1:2], one, rtol=1e-4, atol=1e-5)


def test_resized_has_the_same_weights():
    model = small("full")
    for variable in model.variables:
        variable.assign(variable + 0.01)
    same, x = model.resized((32, 48, 3)), images()
    assert not same.deep_supervision
    np.testing.assert_allclose(numpy_of(same(x))[0], numpy_of(model(x))[0], rtol=1e-4, atol=1e-5)
    exact = numpy_of(model.resized((32, 48, 3), dtype="float64")(x))[0]
    assert exact.dtype == "float64"
    np.testing.assert_allclose(exact, numpy_of(model(x))[0], rtol=1e-4, atol=1e-5)
    larger = model.resized((64, 32, 3))
    assert larger.image_shape == (64, 32, 3) and model.image_shape == (32, 48, 3)
    assert larger.count_params() < model.count_params()
    values = {v.path: ops.convert_to_numpy(v) for v in model.variables}
    assert len(larger.variables) < len(values)
    for variable in larger.variables:
        assert np.array_equal(ops.convert_to_numpy(variable), values[variable.path])
    assert numpy_of(larger(images(1, 64, 32)))[0].shape == (1, 64, 32, 1)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image_shape": (33, 32, 3)}, r"multiples of 16\. Received: image_shape=\(33, 32, 3\)"),
        ({"image_shape": (32, 24, 3)}, r"Received: image_shape=\(32, 24, 3\)"),
        ({"image_shape": (32, 32, 1)}, r"Received: image_shape=\(32, 32, 1\)"),
        ({"image_shape": (32, 32)}, r"Received: image_shape=\(32, 32\)"),
        ({"image_shape": (0, 32, 3)}, r"Received: image_shape=\(0, 32, 3\)"),
        ({"image_shape": (-16, 32, 3)}, r"Received: image_shape=\(-16, 32, 3\)"),
        ({"image_shape": (32.0, 32, 3)}, r"Received: image_shape=\(32\.0, 32, 3\)"),
        ({"image_shape": (None, None, 3)}, r"Received: image_shape=\(None, None, 3\)"),
        ({"image_shape": 64}, "Received: image_shape=64"),
        ({"image_shape": None}, "Received: image_shape=None"),
        ({"base_channels": 0}, "`base_channels` must be a positive integer.* base_channels=0"),
        ({"base_channels": 2.5}, "base_channels=2.5"),
        ({"base_channels": "8"}, "base_channels='8'"),
        ({"base_channels": None}, "base_channels=None"),
        ({"variant": "tiny"}, r"one of \('full', 'dmsc', 'baseline'\)\. Received: variant='tiny'"),
        ({"num_classes": 1}, "an integer from 2 to 255. Received: num_classes=1"),
        ({"num_classes": 3.0}, "num_classes=3.0"),
        ({"num_classes": True}, "num_classes=True"),
        ({"upsampling": "nearest"}, "Received: upsampling='nearest'"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_a_bad_argument_is_told_back(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DDUNet(**{"image_shape": (32, 32, 3), "base_channels": 2, **kwargs})


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="base_channel"):
        DDUNet((32, 32, 3), base_channel=2)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"variant": "full", "upsampling": "align_corners"},
        slow_case({"variant": "dmsc", "num_classes": 3, "deep_supervision": False}),
        {"variant": "baseline", "dtype": "mixed_float16", "name": "clouds"},
    ],
    ids=lambda kwargs: kwargs["variant"],
)
def test_a_file_gives_the_same_model(tmp_path, kwargs):
    model, x = small(**kwargs), images()
    for variable in model.variables:  # the moving averages too
        variable.assign(variable + 0.01)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = load_model(path)
    assert type(loaded) is DDUNet and loaded.get_config() == model.get_config()
    assert loaded.dtype_policy.name == model.dtype_policy.name
    for one, other in zip(numpy_of(loaded(x)), numpy_of(model(x)), strict=True):
        assert np.array_equal(one, other)


def test_keras_itself_loads_the_file_without_custom_objects(saved, segmenter):
    loaded = keras.saving.load_model(saved)
    assert type(loaded) is DDUNet and loaded.get_config() == segmenter.get_config()
    assert np.array_equal(*(numpy_of(m(images()))[0] for m in (loaded, segmenter)))


def test_a_copy_from_the_config_is_the_same_network():
    model = small("full", num_classes=np.int64(3), upsampling="align_corners")
    json.dumps(model.get_config())
    copy = DDUNet.from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, segmenter):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    segmenter.save(path)
    return path


def with_config(saved, path, change):
    """A copy of the file whose config.json went through `change`."""
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                data = json.dumps(change(json.loads(data)))
            target.writestr(name, data)
    return path


def assert_no_model(path, *parts):
    with pytest.raises(DataError) as error:
        load_model(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(part in message for part in parts), message


def test_a_missing_file_and_a_folder(tmp_path):
    assert_no_model(tmp_path / "no.keras", "no such file")
    (tmp_path / "folder.keras").mkdir()
    assert_no_model(tmp_path / "folder.keras", "no such file")


def test_a_file_of_another_suffix(tmp_path, saved):
    other = tmp_path / "model.h5"
    other.write_bytes(saved.read_bytes())
    assert_no_model(other, "not a .keras file")


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5", "model", "model.weights.h5"])
def test_a_name_that_could_not_be_loaded_again_is_refused(tmp_path, segmenter, name):
    with pytest.raises(ValueError, match=r"must end in \.keras\. Received: filepath=") as e:
        segmenter.save(tmp_path / name)
    assert "\n" not in str(e.value) and not any(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path, segmenter, saved, monkeypatch):
    path = tmp_path / "model.keras"
    segmenter.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(WriteError, match="no space"):
        segmenter.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("content", [b"", b"no zip at all", bytes(range(256)) * 40])
def test_a_file_that_is_no_zip(tmp_path, content):
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    assert_no_model(path, "no readable DDUNet model")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path, saved, share):
    data = saved.read_bytes()
    path = tmp_path / "model.keras"
    path.write_bytes(data[: int(share * len(data))])
    assert_no_model(path, "no readable DDUNet model")


@pytest.mark.filterwarnings("ignore")  # what Keras only warns of must be an error all the same
@pytest.mark.parametrize("content", [None, b"", b"\x89HDF\r\n\x1a\n", bytes(range(256)) * 40])
def test_a_file_without_readable_weights(tmp_path, saved, content):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if name != "model.weights.h5":
                target.writestr(name, source.read(name))
            elif content is not None:
                target.writestr(name, content)
    assert_no_model(path, "no readable DDUNet model")


@pytest.mark.filterwarnings("ignore")
def test_a_file_whose_weights_are_another_networks(tmp_path, saved):
    def change(config):
        config["config"]["base_channels"] = 4
        return config

    assert_no_model(with_config(saved, tmp_path / "model.keras", change))


def test_another_keras_model(tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
    assert_no_model(path, "it holds a Sequential, not a DDUNet")


@pytest.mark.parametrize("config", [[], None, 3, "DDUNet", {}, {"registered_name": None}])
def test_a_description_of_another_kind(tmp_path, saved, config):
    assert_no_model(with_config(saved, tmp_path / "model.keras", lambda _: config))


def test_a_description_that_is_far_too_long(tmp_path, saved):
    path = with_config(saved, tmp_path / "model.keras", lambda c: {**c, "more": "x" * 2_000_000})
    assert_no_model(path, "over 1 MB")


EXECUTE = {"module": "os", "class_name": "system", "registered_name": "system", "config": {}}
LAMBDA = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "registered_name": None,
    "config": {
        "function": {
            "class_name": "__lambda__",
            "config": {"code": "4wEAAAA=", "defaults": None, "closure": None},
        }
    },
}
FUNCTION = {
    "module": "os",
    "class_name": "function",
    "registered_name": "system",
    "config": "system",
}
PYTHON_LAMBDA = {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: EXECUTE,
        lambda c: LAMBDA,
        lambda c: FUNCTION,
        lambda c: PYTHON_LAMBDA,
        # under a name of ours
        lambda c: {**EXECUTE, "registered_name": "ddunet_keras>DDUNet"},
        lambda c: {**LAMBDA, "registered_name": "ddunet_keras>DDUNet"},
        lambda c: {**FUNCTION, "registered_name": "ddunet_keras>DDUNet"},
        lambda c: {**PYTHON_LAMBDA, "registered_name": "ddunet_keras>DDUNet"},
        lambda c: {**c, "class_name": "__numpy__", "config": {"value": [1], "dtype": "float32"}},
        lambda c: {**c, "class_name": "__bytes__", "config": {"value": "text"}},
        # in place of an argument
        lambda c: {**c, "config": {**c["config"], "dtype": EXECUTE}},
        lambda c: {**c, "config": {**c["config"], "dtype": LAMBDA}},
        lambda c: {**c, "config": {**c["config"], "dtype": FUNCTION}},
        lambda c: {**c, "config": {**c["config"], "dtype": PYTHON_LAMBDA}},
        lambda c: {**c, "config": {**c["config"], "variant": LAMBDA}},
        lambda c: {**c, "config": {**c["config"], "layers": [LAMBDA]}},
    ],
)
def test_a_file_that_asks_for_foreign_code_runs_none(tmp_path, saved, monkeypatch, change):
    called = []
    monkeypatch.setattr(os, "system", called.append)
    monkeypatch.setattr("keras.src.utils.python_utils.func_load", called.append)
    assert_no_model(with_config(saved, tmp_path / "model.keras", change))
    assert not called


def test_a_foreign_loss_in_a_file_is_not_looked_at(tmp_path, saved, segmenter):
    """A model to predict with needs no optimizer, loss or metric."""
    path = with_config(
        saved, tmp_path / "model.keras", lambda c: {**c, "compile_config": {"loss": EXECUTE}}
    )
    model = load_model(path)
    assert np.array_equal(*(numpy_of(m(images()))[0] for m in (model, segmenter)))


# --- training ------------------------------------------------------------------------------------


def test_fit_takes_one_set_of_labels_for_three_heads():
    model, x, y = small("full", (32, 32, 3)), images(2, 32, 32), labels(2, 32, 32)
    model.compile(
        keras.optimizers.SGD(0.01),
        [SegmentationLoss() for _ in range(3)],
        loss_weights=[1, 0.4, 0.2],
        metrics=[PixelAccuracy(), MeanIoU()],
        run_eagerly=True,  # to trace the graph takes longer than a step
    )
    before = {w.path: ops.convert_to_numpy(w).copy() for w in model.weights}
    history = model.fit(x, y, batch_size=2, epochs=1, verbose=0).history
    heads = [history[f"head_{i}_loss"][0] for i in (1, 2, 3)]
    assert history["loss"][0] == pytest.approx(heads[0] + 0.4 * heads[1] + 0.2 * heads[2], rel=1e-5)
    assert set(history) == {f"head_{i}_loss" for i in (1, 2, 3)} | {"loss", "accuracy", "miou"}
    still = [p for p, v in before.items() if np.array_equal(v, numpy_of(model_weight(model, p))[0])]
    # a bias before a batch normalization has no gradient but rounding
    assert not [path for path in still if not path.endswith("out_conv/bias")]


def model_weight(model, path):
    return next(w for w in model.weights if w.path == path)


@pytest.fixture(scope="module")
def trained_alone():
    """A model that one test trains, a step for each of its cases."""
    model = small()
    model.compile("sgd", SegmentationLoss(), run_eagerly=True)
    return model


@pytest.mark.parametrize("dtype, rank", [("uint8", 3), ("uint8", 4), ("int64", 3), ("float32", 4)])
def test_labels_of_any_number_type_and_rank_train(trained_alone, dtype, rank):
    x, y = images(), labels().astype(dtype)
    assert np.isfinite(trained_alone.train_on_batch(x, y[..., None] if rank == 4 else y))


# to trace the graphs takes longer than to train
@pytest.mark.parametrize("eagerly", [True, slow_case(False)])
def test_fit_evaluate_and_predict_are_plain_keras(eagerly):
    """And the network learns what it is shown: the brighter half of each image is cloud."""
    x = np.full((4, 32, 32, 3), -0.5, "float32")
    x[:2, :16] = x[2:, :, 16:] = 0.5
    y = (x[..., 0] > 0).astype("uint8")
    y[:, :4] = 255
    model = small(image_shape=(32, 32, 3))
    model.compile(
        keras.optimizers.Adam(0.03),
        SegmentationLoss(),
        metrics=[PixelAccuracy(), MeanIoU()],
        run_eagerly=eagerly,
    )
    history = model.fit(x, y, batch_size=4, epochs=7, verbose=0).history
    assert history["loss"][-1] < 0.3 * history["loss"][0] and history["accuracy"][-1] > 0.97
    more = model.fit(x, y, batch_size=4, validation_data=(x, y), verbose=0).history
    scores = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    assert scores["miou"] == pytest.approx(more["val_miou"][-1])
    logits = model.predict(x, batch_size=4, verbose=0)
    right = (logits[:, 4:, :, 0] > 0) == (y[:, 4:] == 1)
    assert scores["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert scores["loss"] == pytest.approx(float(SegmentationLoss()(y, logits)), rel=1e-5)


def test_three_classes_train():
    model, x, y = small(num_classes=3), images(), labels(num_classes=3)
    metrics = [PixelAccuracy(3), MeanIoU(3)]
    model.compile("sgd", SegmentationLoss(iou_weight=0.5), metrics=metrics, run_eagerly=True)
    scores = model.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(list(scores.values())).all()


def compiled(model, **kwargs):
    losses = [SegmentationLoss() for _ in model.outputs]
    model.compile("sgd", losses, run_eagerly=True, **kwargs)
    return model


def test_one_loss_serves_all_heads():
    model, x, y = shared_model("full"), images(), labels()
    expected = compiled(model).test_on_batch(x, y, return_dict=True)["loss"]
    model.compile("sgd", SegmentationLoss(), run_eagerly=True)
    assert model.test_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-6)


def test_metrics_see_the_output_of_full_size():
    model, x, y = shared_model("full"), images(), labels()
    compiled(model, metrics=[PixelAccuracy(), MeanIoU()])
    scores = model.test_on_batch(x, y, return_dict=True)
    predicted = numpy_of(model(x))[0][..., 0] > 0
    assert scores["accuracy"] == pytest.approx((predicted == y).mean(), abs=1e-6)
    iou = [
        ((predicted == k) & (y == k)).sum() / ((predicted == k) | (y == k)).sum() for k in (0, 1)
    ]
    assert scores["miou"] == pytest.approx(np.mean(iou), abs=1e-6)


def test_sample_weights_count_for_every_head():
    model, x, y = shared_model("full"), images(), labels()
    compiled(model, loss_weights=[1, 0.5, 0.2])
    loss = model.test_on_batch(x, y, sample_weight=np.array([2.0, 0.0]), return_dict=True)["loss"]
    alone = model.test_on_batch(x[:1], y[:1], return_dict=True)["loss"]
    assert loss == pytest.approx(alone, rel=1e-4)


def test_weights_of_pixels_are_refused_in_one_line():
    model, x, y = compiled(small("full")), images(), labels()
    weights = np.ones((2, 32, 48), "float32")
    with pytest.raises(ValueError, match=r"label a pixel 255 .* shape: \(2, 32, 48\)") as e:
        model.train_on_batch(x, y, sample_weight=weights)
    assert "\n" not in str(e.value)


def test_weighted_metrics_weigh_images():
    model, x, y = shared_model("full"), images(), labels()
    compiled(model, metrics=[PixelAccuracy()], weighted_metrics=[PixelAccuracy(name="weighted")])
    scores = model.test_on_batch(x, y, sample_weight=np.array([3.0, 1.0]), return_dict=True)
    right = ((numpy_of(model(x))[0][..., 0] > 0) == y).mean(axis=(1, 2))
    assert scores["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert scores["weighted"] == pytest.approx((3 * right[0] + right[1]) / 4, abs=1e-6)


def test_each_head_may_have_labels_of_its_own():
    model, x, y = shared_model("full"), images(), labels()
    compiled(model)
    given_once = model.test_on_batch(x, y, return_dict=True)["loss"]
    other = np.zeros((2, 16, 24), "uint8")
    loss = model.test_on_batch(x, [y, other, other[:, ::2, ::2]], return_dict=True)["loss"]
    heads = numpy_of(model(x))
    expected = [SegmentationLoss()(t, h) for t, h in zip((y, other, other[:, ::2, ::2]), heads)]  # noqa: B905
    assert loss == pytest.approx(sum(map(float, expected)), rel=1e-4)
    assert loss != pytest.approx(given_once, rel=1e-3)
    named = {"head_1": y, "head_2": other, "head_3": other[:, ::2, ::2]}
    assert model.test_on_batch(x, named, return_dict=True)["loss"] == pytest.approx(loss, rel=1e-6)


def test_mixed_precision_trains_with_float32_weights_and_a_scaled_loss():
    model, x, y = small(dtype="mixed_float16"), images(), labels()
    model.compile("sgd", SegmentationLoss(), metrics=[PixelAccuracy()], run_eagerly=True)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = [ops.convert_to_numpy(w).copy() for w in model.trainable_weights]
    scores = model.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(list(scores.values())).all()
    after = [ops.convert_to_numpy(w) for w in model.trainable_weights]
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in after)
    assert not all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    (logits,) = numpy_of(model(x))
    assert logits.dtype == np.float32
    float32 = small()
    float32.set_weights(model.get_weights())
    (expected,) = numpy_of(float32(x))
    assert 0 < np.abs(logits - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.slow
def test_a_compiled_model_goes_on_from_its_file(tmp_path):
    model, x, y = small("full", dtype="mixed_float16"), images(), labels()
    model.compile(
        keras.optimizers.Adam(0.01),
        [SegmentationLoss(iou_weight=0.5) for _ in model.outputs],
        loss_weights=[1, 0.5, 0.2],
        run_eagerly=True,
    )
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    loaded.run_eagerly = True
    assert loaded.train_on_batch(x, y) == pytest.approx(model.train_on_batch(x, y), rel=1e-4)


# --- segment -------------------------------------------------------------------------------------


def test_probabilities_are_the_sigmoid_of_the_logits(segmenter):
    image = photo(32, 48)
    probabilities = segmenter.predict_probabilities(image)
    (logits,) = numpy_of(segmenter(image[None] / 127.5 - 1))
    assert probabilities.dtype == np.float32 and probabilities.shape == (32, 48)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits[0, ..., 0])), atol=1e-5)


@pytest.mark.parametrize("height, width", [(40, 60), (500, 30), (7, 3), (1, 1)])
def test_a_photo_of_any_size_is_segmented_at_its_own(segmenter, height, width):
    image = photo(height, width)
    result = segmenter.segment(image, force=True)
    assert result.mask.shape == (height, width) and result.overlay().shape == image.shape
    assert np.array_equal(result.image, image) and result.valid.all()
    probabilities = segmenter.predict_probabilities(image)
    assert probabilities.shape == (32, 48)
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    expected = resize_probabilities(probabilities, (height, width))
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    assert np.array_equal(result.mask, np.where(result.probabilities >= 0.5, 255, 0))


def test_a_photo_is_resized_and_normalized_as_in_training(segmenter):
    image = photo(64, 20)
    inputs = normalize(resize_image(image, (32, 48)))[None]
    logits = segmenter.predict_on_batch(inputs)[0, ..., 0]
    np.testing.assert_allclose(
        segmenter.predict_probabilities(image), 1 / (1 + np.exp(-logits)), atol=1e-6
    )


def test_bgr_is_rgb_reversed(segmenter):
    image = photo()
    image[..., 2] = 255
    rgb = segmenter.segment(image)
    bgr = segmenter.segment(np.ascontiguousarray(image[..., ::-1]), channel_order="bgr")
    assert np.array_equal(bgr.image, image)
    assert np.array_equal(bgr.probabilities, rgb.probabilities)
    other = segmenter.segment(image, channel_order="bgr")
    assert not np.array_equal(other.probabilities, rgb.probabilities)


def test_the_threshold_moves_pixels_between_sky_and_cloud(segmenter):
    image = photo()
    median = float(np.median(segmenter.segment(image).probabilities))
    fractions = [segmenter.segment(image, threshold=t).cloud_cover.fraction for t in (0, median, 1)]
    assert fractions[0] == 1 and fractions[1] == pytest.approx(0.5, abs=0.02)
    assert fractions[2] == 0


def test_outside_the_horizon_nothing_counts(segmenter):
    image = photo(60, 80)
    result = segmenter.segment(image, horizon="circle:40,30,20")
    assert np.array_equal(result.valid, horizon_mask("circle:40,30,20", image))
    assert result.valid.mean() == pytest.approx(np.pi * 20**2 / (60 * 80), rel=0.02)
    assert (result.mask[~result.valid] == 128).all() and (result.mask[result.valid] != 128).all()
    cloudy = (result.probabilities >= 0.5)[result.valid].mean()
    assert result.cloud_cover.fraction == pytest.approx(cloudy)
    array = segmenter.segment(image, horizon=result.valid)
    assert np.array_equal(array.mask, result.mask)


@pytest.mark.usefixtures("eagerly")
def test_three_classes_are_segmented():
    model = small(num_classes=3)
    for variable in model.get_layer("head_1").weights:
        variable.assign(variable * 5)
    image = photo(24, 70)
    probabilities = model.predict_probabilities(image)
    assert probabilities.shape == (32, 48, 3) and (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    result = model.segment(image)
    assert result.probabilities.shape == (24, 70, 3)
    assert np.array_equal(result.mask, result.probabilities.argmax(axis=-1))
    assert len(np.unique(result.mask)) > 1


@pytest.mark.usefixtures("eagerly")
def test_three_heads_segment_as_the_first():
    model, image = shared_model("full"), photo(32, 48)
    logits = numpy_of(model(normalize(image)[None]))[0][0, ..., 0]
    np.testing.assert_allclose(
        model.segment(image).probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5
    )


@pytest.mark.parametrize(
    "image, received",
    [
        (np.zeros((8, 8, 3)), r"float64 of shape \(8, 8, 3\)"),
        (np.zeros((8, 8, 3), "uint16"), "uint16"),
        (np.zeros((8, 8, 3), bool), "bool"),
        (np.zeros((8, 8), "uint8"), r"uint8 of shape \(8, 8\)"),
        (np.zeros((8, 8, 1), "uint8"), r"\(8, 8, 1\)"),
        (np.zeros((8, 8, 4), "uint8"), r"\(8, 8, 4\)"),
        (np.zeros((1, 8, 8, 3), "uint8"), r"\(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), "uint8"), r"\(0, 8, 3\)"),
        ("sky.jpg", r"of shape \(\)"),
        (None, r"object of shape \(\)"),
    ],
)
def test_what_is_no_photo_is_refused(segmenter, image, received):
    with pytest.raises(ValueError, match=received):
        segmenter.segment(image)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"channel_order": "RGB"}, "must be 'rgb' or 'bgr'. Received: 'RGB'"),
        ({"threshold": 1.5}, "1.5"),
        ({"threshold": float("nan")}, "nan"),
        ({"horizon": "circle:5"}, "circle:5"),
        ({"horizon": "circle:900,900,5"}, "circle:900,900,5"),
        ({"horizon": np.ones((3, 3, 3), bool)}, "horizon array"),
        ({"horizon": "no such file.png"}, "no such file.png"),
    ],
)
def test_a_bad_argument_of_segment_is_told_back(segmenter, kwargs, message):
    with pytest.raises(ValueError, match=message):
        segmenter.segment(photo(), **kwargs)
