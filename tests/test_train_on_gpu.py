"""The JAX network of `train_on_gpu.py` against the Keras network: values, gradients, averages."""

import gpu_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import train_on_gpu

from ddunet_keras import DDUNet
from ddunet_keras.data.datasets import swinyseg_draw
from ddunet_keras.images import resize_image, warp
from ddunet_keras.layers import DMSC
from ddunet_keras.losses import SegmentationLoss


def _jit(function):
    """Compiled quickly: the code runs once."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=quick)


def _model():
    model = DDUNet((32, 48, 3), base_channels=2)
    rng = np.random.default_rng(0)
    for variable in model.variables:  # no bias, average or scale at its start, which hides errors
        spread = rng.uniform(0.5, 1.5, variable.shape) if "variance" in variable.path else None
        noise = rng.normal(0, 0.1, variable.shape)
        variable.assign(np.asarray(variable) + noise if spread is None else spread)
        if "branch_norm" in variable.path and variable.path.endswith("gamma"):
            variable.assign(np.asarray(variable) * 6)  # beyond 6, where the range penalty begins
    return model


@pytest.mark.slow
def test_network_equals_keras():
    model, rng = _model(), np.random.default_rng(1)
    images = rng.uniform(-1, 1, (3, 32, 48, 3)).astype("float32")
    target = rng.uniform(0, 1, (3, 32, 48)).astype("float32")
    values = {v.path: np.asarray(v) for v in model.variables}
    weights, moving = train_on_gpu.divide({k: jnp.asarray(v) for k, v in values.items()})
    Network, loss = gpu_network.Network, gpu_network.loss
    planar = jnp.asarray(images.transpose(0, 3, 1, 2))
    inferred = _jit(lambda x: Network(weights, moving, False, jnp.float32)(x))(planar)
    for ours, theirs in zip(inferred, model(images, training=False), strict=True):
        limit = 1e-4 * float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs[..., 0], rtol=0, atol=limit)

    def objective(weights):
        network = Network(weights, moving, True, jnp.float32)
        logits = network(planar)
        losses = [w * loss(a, target) for w, a in zip((1, 0.5, 0.2), logits, strict=True)]
        return sum(losses) + 0.1 * network.penalty, network.averages

    (value, averages), gradients = _jit(jax.value_and_grad(objective, has_aux=True))(weights)
    for layer in model.layers:
        if isinstance(layer, DMSC):
            layer.range_penalty = 0.1
    theirs = SegmentationLoss(iou_weight=0.5)
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        losses = [w * theirs(target, a) for w, a in zip((1, 0.5, 0.2), outputs, strict=True)]
        total = tf.add_n([*losses, *model.losses])
    assert min(map(float, model.losses)) > 0  # that penalty counts in what follows
    np.testing.assert_allclose(value, total, rtol=1e-5)
    expected = tape.gradient(total, model.trainable_variables)
    largest = max(float(tf.norm(g)) for g in expected)
    assert len(gradients) == len(expected)
    for variable, gradient in zip(model.trainable_variables, expected, strict=True):
        difference = np.linalg.norm(gradients[variable.path] - gradient)
        limit = 5e-3 * np.linalg.norm(gradient) + 1e-5 * largest
        assert difference < limit, variable.path
    for variable in model.variables:
        if "/moving_" in variable.path:
            mixed = 0.9 * values[variable.path] + 0.1 * averages[variable.path]
            np.testing.assert_allclose(mixed, variable, rtol=1e-4, atol=1e-4)


def test_photos_are_warped_and_resized_as_by_pillow():
    rng, shape = np.random.default_rng(0), (40, 56)
    images = rng.integers(0, 256, (3, *shape, 3), dtype="uint8")
    labels = rng.integers(0, 2, (3, 5, 7), dtype="uint8").repeat(8, 1).repeat(8, 2)
    photos = np.stack(list(map(train_on_gpu.packed, images, labels)))
    draws = [swinyseg_draw(seed, shape) for seed in range(4)]
    transforms = np.array([np.column_stack(draw) for draw in draws], "float32")
    chosen = np.array([2, 0, 1, 0], "int32")
    x, y = _jit(train_on_gpu.warped)(jnp.asarray(photos), chosen, transforms)
    for index, draw, image, cloud in zip(chosen, draws, np.asarray(x), np.asarray(y), strict=True):
        expected, mask = warp(images[index], labels[index], *draw)
        off = abs(image.transpose(1, 2, 0) - expected)
        assert off.max() <= 1 and off.mean() < 0.01  # a sum that is whole but for rounding
        assert cloud.min() >= 0 and cloud.max() <= 1 and ((cloud > 0.5) != mask).mean() < 0.02
    for size in ((48, 64), (24, 32)):
        tall, wide = map(gpu_network.resampling, shape, size)
        resized = np.einsum("ih,hwc,jw->ijc", tall, images[0].astype("float32"), wide)
        assert abs(resized - resize_image(images[0], size)).max() <= 1.01


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"no weights"])
def test_damaged_weights_give_one_line(content, tmp_path, capsys):
    start, out = tmp_path / "start.npz", tmp_path / "out"
    start.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        train_on_gpu.main(["train", str(tmp_path), str(start), str(out)])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and not out.exists()
    assert len(lines) == 1 and str(start) in lines[0]
