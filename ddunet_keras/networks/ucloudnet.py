"""UCloudNet, a small residual U-Net with deep supervision: `logits`."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory

STAGES = 5

NORM = {"epsilon": 1e-5, "momentum": 0.9}
"""Of all batch normalizations: Paddle's defaults."""

PADDLE_PARAMETERS = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "_mean",
    "moving_variance": "_variance",
}
"""Keras's name of a weight -> Paddle's. The layers have the authors' names."""


def logits(image, make: LayerFactory, channels: int, base_channels: int = 2) -> list:
    """The graph of the network.

    Source: Li et al., IGARSS 2024, and the authors' code, Att100/UCloudNet, whose published weights
    (`.pdparam`) `ddunet_keras.load_paddle_weights` reads. Convolution, ReLU6 and batch
    normalization have the order of that code; the paper's figure has another.

    Args:
        image: (batch, height, width, 3), height and width multiples of 16.
        make: makes the layers.
        channels: of the logits.
        base_channels: width of the first stage; the paper has 2 and 4.

    Returns:
        Logits at full, half and quarter size; the last two are for training alone.
    """
    x = image * 0.5 + 0.5  # the authors' input is in [0, 1]
    x = _conv(x, make, base_channels, 3, "in_conv")
    skips = []
    for stage in range(STAGES):
        width = base_channels * 2**stage
        if stage > 0:
            x = _conv(_halve(x, make), make, width, 3, f"down_{stage}.conv")
        x = x + _double(x, make, width, f"double_conv_{stage + 1}")
        skips.append(x)
    decoded = []
    for stage in range(1, STAGES):
        width = base_channels * 2 ** (STAGES - 1 - stage)
        x = _conv(make.upsample(x, "align_corners"), make, width, 3, f"up_{stage}.conv")
        x = make.concatenate([x, skips[STAGES - 1 - stage]])
        x = _double(x, make, width, f"double_conv_{STAGES + stage}")
        decoded.append(x)
    *_, quarter, half, full = decoded
    return [
        make.head(make.channel_dropout(full, 0.2), channels, 3, "classifier"),
        _conv(half, make, channels, 1, "aux_x2", make.head_dtype),
        _conv(quarter, make, channels, 1, "aux_x4", make.head_dtype),
    ]


def paddle_name(variable_path: str) -> str:
    """The authors' name of a weight, given its path after the model's name.

    Example:

    >>> paddle_name("down_1.conv.conv2d/kernel")
    'down_1.conv.conv2d.weight'
    """
    layer, _, weight = variable_path.rpartition("/")
    return f"{layer}.{PADDLE_PARAMETERS[weight]}"


def _conv(x, make, filters, kernel_size, name, dtype=None):
    """Convolution without bias, ReLU6, batch normalization."""
    x = make.conv(x, filters, kernel_size, f"{name}.conv2d", use_bias=False, dtype=dtype)
    return make.norm_after_activation(ops.relu6(x), f"{name}.bn", dtype=dtype, **NORM)


def _double(x, make, filters, name):
    return _conv(_conv(x, make, filters, 3, f"{name}.conv1"), make, filters, 3, f"{name}.conv2")


def _halve(x, make):
    """The largest of each 3 x 3 pixels, with strides of 2 and one pixel of padding.

    For even sizes the padding matters above and on the left alone. A copy of the first row and
    column stands there: it is in the same window as the original, and so changes no maximum.
    """
    x = make.repeat_first(make.repeat_first(x, axis=1), axis=2)
    return make.max_pool(x, window=3)
