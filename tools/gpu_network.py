"""DDUNet for JAX on a GPU: the network of `train_on_gpu.py` and its loss.

Keras on JAX computes the same, but in kernels that make a step of this network, whose feature maps
are large and whose channels are few, many times slower. Here feature maps are (batch, channels,
height, width) in bfloat16, and a depthwise convolution is nine shifted products that XLA fuses.
`tests/test_train_on_gpu.py` compares values, gradients and averages with the Keras network.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddunet_keras.images import align_corners_matrix

EPSILON = 1e-5  # of batch normalization
IOU_WEIGHT = 0.5  # as RECIPES["default"]


def resampling(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) weights of `images.resize_image` along one axis."""
    scale = max(1, size / new_size)
    places = (np.arange(new_size)[:, None] + 0.5) * size / new_size - 0.5
    weights = np.maximum(0, 1 - abs(places - np.arange(size)) / scale)
    return (weights / weights.sum(1, keepdims=True)).astype("float32")


def shifts(maps, rate=1):
    """What each of the nine taps of a 3x3 kernel sees of maps padded with zeros, float32."""
    height, width = maps.shape[2:]
    padded = jnp.pad(maps, ((0, 0), (0, 0), (rate, rate), (rate, rate)))
    for top in (0, rate, 2 * rate):
        for left in (0, rate, 2 * rate):
            yield padded[:, :, top : top + height, left : left + width].astype(jnp.float32)


def shifted_sum(maps, kernel, rate):
    """3x3 depthwise convolution of maps with a kernel (9, c)."""
    taps = zip(shifts(maps, rate), kernel[:, :, None, None], strict=True)
    return sum(seen * weights for seen, weights in taps).astype(maps.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(maps, kernel, rate):
    return shifted_sum(maps, kernel, rate)


def depthwise_backward(rate, saved, gradient):
    maps, kernel = saved
    exact = gradient.astype(jnp.float32)
    taps = [jnp.sum(seen * exact, axis=(0, 2, 3)) for seen in shifts(maps, rate)]
    return shifted_sum(gradient, kernel[::-1], rate), jnp.stack(taps)


depthwise.defvjp(lambda m, k, rate: (shifted_sum(m, k, rate), (m, k)), depthwise_backward)


def product(maps, kernel):
    batch, channels, height, width = maps.shape
    kernel = jnp.broadcast_to(kernel.T.astype(maps.dtype), (batch, *kernel.T.shape))
    flat = maps.reshape(batch, channels, height * width)
    out = lax.dot_general(kernel, flat, (((2,), (1,)), ((0,), (0,))))
    return out.reshape(batch, -1, height, width)


@jax.custom_vjp
def pointwise(maps, kernel):
    return product(maps, kernel)


def pointwise_backward(saved, gradient):
    maps, kernel = saved
    flat, other = (a.reshape(*a.shape[:2], -1) for a in (maps, gradient))
    each = lax.dot_general(
        flat, other, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    return product(gradient, kernel.T), jnp.sum(each, axis=0)


pointwise.defvjp(lambda m, k: (product(m, k), (m, k)), pointwise_backward)


def enlarge(maps):
    rows, columns = (jnp.asarray(resampling(n, 2 * n), maps.dtype) for n in maps.shape[2:])
    return jnp.einsum("ih,bchj->bcij", rows, jnp.einsum("bchw,jw->bchj", maps, columns))


class Network:
    """One pass. `averages` are the moments of this batch where `train` is true."""

    def __init__(self, weights, moving, train, dtype=jnp.bfloat16):
        self.weights, self.moving, self.train, self.dtype = weights, moving, train, dtype
        self.averages, self.penalty = {}, 0.0

    def norm(self, name, maps):
        mean, variance = (self.moving[f"{name}/moving_{k}"] for k in ("mean", "variance"))
        gamma, beta = (self.weights[f"{name}/{k}"] for k in ("gamma", "beta"))
        if self.train:  # moments about the moving mean, which lies near: no digits are lost
            near = maps.astype(jnp.float32) - mean[None, :, None, None]
            first, second = (jnp.mean(a, axis=(0, 2, 3)) for a in (near, near * near))
            mean, variance = first + mean, second - first * first
            self.averages[f"{name}/moving_mean"] = lax.stop_gradient(mean)
            self.averages[f"{name}/moving_variance"] = lax.stop_gradient(variance)
        scale = gamma * lax.rsqrt(variance + EPSILON)
        mean, scale, beta = (a[None, :, None, None] for a in (mean, scale, beta))
        return (maps.astype(jnp.float32) - mean) * scale + beta

    def depthwise(self, name, maps, rate=1):
        return depthwise(maps, self.weights[f"{name}/kernel"].reshape(9, -1), rate)

    def conv(self, name, maps, stride=1):
        kernel = self.weights[f"{name}/kernel"]
        if kernel.shape[0] == 1:
            return pointwise(maps, kernel[0, 0])
        return lax.conv_general_dilated(
            maps,
            kernel.astype(maps.dtype),
            window_strides=(stride, stride),
            padding=[(1, 1), (1, 1)],
            dimension_numbers=("NCHW", "HWIO", "NCHW"),
        )

    def conv_norm_relu(self, name, maps, stride=1):
        maps = self.norm(f"{name}/norm", self.conv(f"{name}/conv", maps, stride))
        return jax.nn.relu(maps).astype(self.dtype)

    def dense(self, name, x):
        kernel, bias = (self.weights[f"{name}/{k}"] for k in ("kernel", "bias"))
        return jnp.matmul(x, kernel, precision="highest") + bias

    def residual(self, name, maps):
        x = self.norm(f"{name}/depthwise_norm", self.depthwise(f"{name}/depthwise", maps))
        x = self.conv(f"{name}/pointwise", jnp.clip(x, 0, 6).astype(self.dtype))
        same = x.shape == maps.shape
        x = self.norm(f"{name}/pointwise_norm", x)
        return (maps.astype(jnp.float32) + x if same else x).astype(self.dtype)

    def dmsc(self, name, maps):
        x = self.conv_norm_relu(f"{name}/in_conv", maps)
        gate = jax.nn.relu(self.dense(f"{name}/gate_1", average(x)))
        gate = jax.nn.softmax(self.dense(f"{name}/gate_2", gate))
        mixed = 0.0
        for i, rate in enumerate((1, 2, 3, 4)):
            branch = self.depthwise(f"{name}/branch_{i}", x, rate)
            branch = jax.nn.relu(self.norm(f"{name}/branch_norm_{i}", branch))
            mixed += gate[:, i, None, None, None] * branch
        if self.train:
            self.penalty += jnp.mean(jnp.square(jax.nn.relu(mixed - 6.0)))
        mixed = self.residual(f"{name}/residual", mixed.astype(self.dtype))
        out = self.conv(f"{name}/out_conv", mixed).astype(jnp.float32)
        out += self.weights[f"{name}/out_conv/bias"][None, :, None, None]
        out = self.norm(f"{name}/out_norm", out.astype(self.dtype))
        return jax.nn.relu(x.astype(jnp.float32) + out).astype(self.dtype)

    def head(self, name, decoder, encoder):
        batch, channels, height, width = decoder.shape
        averages = jnp.concatenate([average(decoder), average(encoder)], -1)
        kernel, bias = (
            self.dense(f"{name}/{k}_2", jax.nn.relu(self.dense(f"{name}/{k}_1", averages)))
            for k in ("weight", "bias")
        )
        flat = decoder.astype(jnp.float32).reshape(batch, channels, -1)
        taps = lax.dot_general(
            kernel.reshape(batch, channels, 9), flat, (((1,), (1,)), ((0,), (0,)))
        ).reshape(batch, 9, height, width)
        return sum(seen[:, tap] for tap, seen in enumerate(shifts(taps))) + bias[:, :, None]

    def __call__(self, images):
        """(batch, 3, h, w) in [-1, 1] -> logits at full, half and quarter size."""
        x, skips = self.conv_norm_relu("stem", images.astype(self.dtype)), []
        for stage in range(5):
            x = self.conv_norm_relu(f"down_{stage}", x, 2) if stage else x
            x = self.dmsc(f"encoder_{stage + 1}", x)
            skips.append(x)
        decoded = []
        for stage in range(1, 5):
            x = self.norm(f"up_{stage}/norm", enlarge(self.conv(f"up_{stage}/conv", x)))
            x = jnp.concatenate([jax.nn.relu(x).astype(self.dtype), skips[4 - stage]], 1)
            for part in (1, 2):
                x = self.residual(f"decoder_{stage}_{part}", x)
            decoded.append(x)
        return [self.head(f"head_{i + 1}", decoded[3 - i], skips[i]) for i in range(3)]


def average(maps):
    return jnp.mean(maps.astype(jnp.float32), axis=(2, 3))


def loss(logits, target):
    """Of `SegmentationLoss(iou_weight=IOU_WEIGHT)`; target (batch, h, w) in [0, 1]."""
    if logits.shape != target.shape:
        rows, columns = (
            align_corners_matrix(*sides).astype("float32")
            for sides in zip(target.shape[1:], logits.shape[1:], strict=True)
        )
        target = jnp.einsum("ih,bhw,jw->bij", rows, target, columns)
    entropy = jax.nn.softplus(logits) - logits * target
    probability, count = jax.nn.sigmoid(logits), logits[0].size
    both, true, predicted = (
        jnp.sum(a, axis=(1, 2)) for a in (target * probability, target, probability)
    )
    both = jnp.stack([both, count - true - predicted + both])
    true, predicted = (jnp.stack([a, count - a]) for a in (true, predicted))
    iou = (both + 0.01 * count) / (true + predicted - both + 0.01 * count)
    return jnp.mean(jnp.mean(entropy, axis=(1, 2)) + IOU_WEIGHT * (1 - jnp.mean(iou, axis=0)))
