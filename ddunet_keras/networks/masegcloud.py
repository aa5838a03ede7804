"""MA-SegCloud, a residual network with attention and asymmetric convolutions: `logits`."""

from __future__ import annotations

import numpy as np
from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory, global_mean, hard_swish

# filters of a stage's residual blocks; then (dilation, whether it has attention) of each block,
# the first of which has a convolution in its shortcut
STAGES = (
    ((64, 64, 128), ((1, False), (2, False), (4, True), (1, True))),
    ((128, 128, 256), ((2, False), (4, False), (1, True), (2, True))),
    ((256, 256, 512), ((4, False), (1, True), (2, True), (4, True))),
)

ATTENTION_REDUCTION = 8
SQUEEZE_REDUCTION = 4
"""Channels over the hidden width, of the attention and of squeeze-and-excitation."""

FILTERS = 256
"""Of the feature pyramid and the decoder."""

EPSILON = 1e-5
"""Of the batch normalizations of the decoder."""

DIFFERENCE = np.array([-1.0, 1.0]).reshape(1, 1, 2, 1)
"""Kernel of the convolution that subtracts the first channel from the second."""


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Zhang et al., Remote Sensing 14, 3970, 2022, and the author's code,
    LiwenZhang1/MA-SegCloudv1-. It has 14.64 million parameters, by that code and by a figure of
    the authors of Table I; the table itself says 16.3. The code's last commit does not run; what it
    lacks is from its first. Not known: whether the published figures have hard swish or ReLU within
    the asymmetric modules.

    The last activation, a hard swish, is never below -0.375. So two classes have two channels, as
    in the code, and the logit of cloud is their difference: its sigmoid is their softmax.

    Args:
        image: (batch, height, width, 3), height and width multiples of 16.
        make: makes the layers.
        channels: of the logits.
    """
    x = make.conv_norm(_pad(image), 64, 3, "stem_1", strides=2, padding="valid")
    x = make.conv_norm(ops.relu(x), 64, 3, "stem_2", strides=2, padding="valid")
    stem = x = ops.relu(x)
    stages = []
    for number, (filters, blocks) in enumerate(STAGES, 1):
        x = _stage(x, make, f"stage_{number}", filters, blocks, strides=1 if number == 1 else 2)
        stages.append(x)
    x = make.dropout(_pyramid(stages, make), 0.1)
    x = make.resize(x, stem.shape[1:3])
    skip = ops.relu(make.conv_norm(stem, 48, 1, "skip", epsilon=EPSILON, use_bias=False))
    x = make.concatenate([x, skip])
    for number in (1, 2):
        x = _active_separable(x, make, f"decoder_{number}", FILTERS, EPSILON)
    x = make.head(x, max(2, channels), 1)
    x = hard_swish(make.norm(x, "logits.norm", epsilon=EPSILON, dtype=make.head_dtype))
    if channels == 1:
        x = ops.conv(x, DIFFERENCE.astype(x.dtype), data_format="channels_last")
    return [make.resize(x, image.shape[1:3])]


def _pad(image):
    """By three pixels on each side, so that two convolutions of stride 2 give a quarter."""
    return ops.pad(image, ((0, 0), (3, 3), (3, 3), (0, 0)))


# === Encoder ===


def _stage(x, make, name, filters, blocks, strides):
    for number, (dilation, attends) in enumerate(blocks, 1):
        block = f"{name}.{number}"
        # ReLU in the first blocks of the first stage, and at the end of each stage's first block
        early = name == "stage_1" and number <= 3
        activation = ops.relu if early else hard_swish
        shortcut = x
        y = activation(make.conv_norm(x, filters[0], 1, f"{block}.1", strides=strides))
        y = make.conv_norm(y, filters[1], 3, f"{block}.2", dilation_rate=dilation)
        y = ops.relu(y) if number == 1 else activation(y)
        y = make.conv_norm(y, filters[2], 1, f"{block}.3")
        if attends:
            y = _attention(y, make, f"{block}.attention")
        if number == 1:
            shortcut = make.conv_norm(x, filters[2], 1, f"{block}.shortcut", strides=strides)
        x = ops.relu(shortcut + y) if number == 1 else activation(shortcut + y)
        strides = 1
    return x


def _attention(x, make, name):
    """Convolutional block attention (Woo et al., ECCV 2018): of channels, then of places."""
    channels = x.shape[-1]
    hidden = make.dense(channels // ATTENTION_REDUCTION, f"{name}.hidden", "relu")
    out = make.dense(channels, f"{name}.out")
    largest = ops.max(x, axis=(1, 2), keepdims=True)
    x = x * ops.sigmoid(out(hidden(global_mean(x))) + out(hidden(largest)))
    mean = ops.mean(x, axis=-1, keepdims=True)
    both = make.concatenate([mean, ops.max(x, axis=-1, keepdims=True)])
    return x * ops.sigmoid(make.conv(both, 1, 7, f"{name}.places", use_bias=False))


# === Feature pyramid ===


def _pyramid(stages, make):
    """Three scales, merged from small to large and back to small."""
    large, middle, small = (
        _asymmetric(x, make, f"asymmetric_{number}") for number, x in enumerate(stages, 1)
    )
    middle = make.concatenate([middle, make.upsample(small)])
    middle = _refine(_refine(middle, make, "up_middle_1", 1), make, "up_middle_2", 2)
    large = make.concatenate([large, make.upsample(middle)])
    large = _refine(_refine(large, make, "up_large_1", 4), make, "up_large_2", 1)
    middle = make.concatenate([middle, _halve(large, make, "halve_large")])
    middle = _refine(_refine(middle, make, "down_middle_1", 2), make, "down_middle_2", 4)
    small = make.concatenate([_halve(middle, make, "halve_middle"), small])
    return _refine(_refine(small, make, "down_small_1", 1), make, "down_small_2", 2)


def _refine(x, make, name, dilation):
    x = make.conv_norm(x, FILTERS, 3, name, dilation_rate=dilation)
    return hard_swish(_attention(x, make, f"{name}.attention"))


def _halve(x, make, name):
    x = make.depthwise_norm(x, f"{name}.depthwise", strides=2, padding="symmetric")
    x = make.conv_norm(hard_swish(x), FILTERS, 1, f"{name}.pointwise", use_bias=False)
    return ops.relu6(x)


def _asymmetric(x, make, name):
    """Branches of square, horizontal and vertical kernels, and a shortcut."""
    filters = x.shape[-1]
    width = filters // 8

    def conv(y, number, count, kernel_size):
        return ops.relu(make.conv_norm(y, count, kernel_size, f"{name}.{number}", use_bias=False))

    branches = [
        _separable(conv(x, "0.1", 2 * width, 1), make, f"{name}.0.out", 2 * width),
    ]
    y = _active_separable(conv(x, "1.1", width, 1), make, f"{name}.1.2", 2 * width)
    branches.append(_squeezed(y, make, f"{name}.1.out", 2 * width, dilation_rate=3))
    for number, length in ((2, 5), (3, 7)):
        y = conv(x, f"{number}.1", width, 1)
        y = conv(y, f"{number}.2", 3 * width // 2, (1, length))
        y = conv(y, f"{number}.3", 2 * width, (length, 1))
        y = _squeezed(y, make, f"{name}.{number}.out", 2 * width, dilation_rate=length)
        branches.append(y)
    joined = make.concatenate(branches)
    joined = make.conv_norm(joined, filters, 1, f"{name}.join", use_bias=False)
    shortcut = make.conv_norm(x, filters, 1, f"{name}.shortcut", use_bias=False)
    return ops.relu(joined + shortcut)


def _separable(x, make, name, filters, dilation_rate=1, squeeze=False):
    """Hard swish, then a separable convolution that ends without an activation."""
    x = make.depthwise_norm(hard_swish(x), f"{name}.depthwise", dilation_rate=dilation_rate)
    if squeeze:
        hidden = make.dense(x.shape[-1] // SQUEEZE_REDUCTION, f"{name}.squeeze", "relu6")
        out = make.dense(x.shape[-1], f"{name}.excite")
        x = x * hard_swish(out(hidden(global_mean(x))))
    return make.conv_norm(x, filters, 1, f"{name}.pointwise", use_bias=False)


def _squeezed(x, make, name, filters, dilation_rate):
    return _separable(x, make, name, filters, dilation_rate, squeeze=True)


def _active_separable(x, make, name, filters, epsilon=1e-3):
    """A separable convolution with a hard swish behind each of its two parts."""
    x = hard_swish(make.depthwise_norm(x, f"{name}.depthwise", epsilon=epsilon))
    x = make.conv_norm(x, filters, 1, f"{name}.pointwise", epsilon=epsilon, use_bias=False)
    return hard_swish(x)
