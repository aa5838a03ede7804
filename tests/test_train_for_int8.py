"""`train_for_int8.py`: rounding as said; a network that it moves less, with little else moved."""

import numpy as np
import pytest
import tensorflow as tf
import train_for_int8 as module

from ddunet_keras import DDUNet, Pipeline, load_model, open_dataset
from ddunet_keras.data.synthetic import write_synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skies")
    write_synthetic(folder, count=8, image_size=(32, 32), seed=0)
    return folder


def test_rounds_to_steps_from_a_phase_for_each_image_and_channel():
    step = np.array([0.5, 0.01], "float32")
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 40, 50, 2)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = module.Rounding(step)(x)
    assert np.abs(y - x).max(axis=(0, 1, 2)) == pytest.approx(step / 2, rel=0.05)
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones_like(x))
    phases = np.array(y / step) % 1
    for image, channel in np.ndindex(3, 2):  # one phase, and each its own
        turns = np.exp(2j * np.pi * phases[image, ..., channel])
        np.testing.assert_allclose(turns, turns[0, 0], atol=1e-3)
    assert len(np.unique(np.round(phases[:, 0, 0], 3))) == 6


def test_every_feature_map_but_the_heads_is_rounded_and_the_layers_are_shared():
    model = DDUNet((32, 32, 3), base_channels=2)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    noisy = module.rounded(model, [images], noise=2.6)
    count = sum(isinstance(layer, module.Rounding) for layer in noisy.layers)
    assert count == len(model.layers) - 1 - 3  # the input, and heads of deep supervision
    stem = noisy.get_layer("stem")
    assert stem is model.get_layer("stem")
    plain = np.array(model(images, training=False)[0])
    errors = []
    for noise in (1e-3, 2.6, 26):
        noisy = module.rounded(model, [images], noise)
        errors.append(np.abs(np.array(noisy(images, training=False)[0]) - plain).mean())
    assert errors[0] < errors[1] / 100 < errors[2] / 200


def test_loss_is_the_divergence_of_probabilities():
    rng = np.random.default_rng(0)
    truth, logits = rng.normal(size=(2, 1, 4, 4, 1)).astype("float32")
    p, q = (1 / (1 + np.exp(-x.astype("float64"))) for x in (truth, logits))
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    model = DDUNet((32, 32, 3), base_channels=2, variant="baseline")
    network = module.Robust(model, model, model, weight=10)
    same = network.compute_loss(y_pred=[[truth], [logits], [logits]])
    assert float(same) == pytest.approx(expected, rel=1e-4)
    # a small move of the logits costs ten times its divergence
    moved = float(network.compute_loss(y_pred=[[truth], [truth], [truth + 0.01]]))
    r = 1 / (1 + np.exp(-(truth + 0.01).astype("float64")))
    divergence = np.mean(p * np.log(p / r) + (1 - p) * np.log((1 - p) / (1 - r)))
    assert moved == pytest.approx(10 * divergence, rel=0.02)


@pytest.mark.slow
def test_training_lowers_what_rounding_moves(folder, tmp_path):
    model = DDUNet((32, 32, 3), base_channels=2)
    dataset = open_dataset(folder)
    pipeline = Pipeline(dataset, [sample.name for sample in dataset], (32, 32), batch_size=8)
    before = [np.array(w) for w in model.non_trainable_variables]
    out = tmp_path / "robust.keras"
    form = {"epochs": 12, "learning_rate": 3e-3, "noise": 8.0, "weight": 10.0}
    history = module.train(model, pipeline, out, **form).history
    assert history["noise"][-1] < 0.8 * history["noise"][0]
    for old, new in zip(before, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new)  # the averages of batch normalization
    images = np.zeros((1, 32, 32, 3), "float32")
    loaded = load_model(out)(images, training=False)[0]
    np.testing.assert_allclose(loaded, model(images, training=False)[0], atol=1e-6)


@pytest.mark.parametrize("name, message", [("a.h5", "must end in .keras"), ("a.keras", "classes")])
def test_bad_input_is_one_line(name, message, folder, tmp_path, capsys):
    model = DDUNet((32, 32, 3), base_channels=2, variant="baseline", num_classes=3)
    model.save(tmp_path / "three.keras")
    with pytest.raises(SystemExit) as caught:
        module.main([str(folder), str(tmp_path / "three.keras"), str(tmp_path / name)])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / name).exists()
