"""CloudU-Netv2, CloudU-Net with attention between encoder and decoder: `logits`."""

from __future__ import annotations

import keras
from keras import ops

from ddunet_keras.layers import PACKAGE
from ddunet_keras.networks.cloudunet import decode, encode
from ddunet_keras.networks.layer_factory import LayerFactory

WIDTHS = (32, 64, 128, 256, 512)
"""Filters of the two convolutions of each stage, the largest feature maps first."""

REDUCTION = 8
"""Channels of the feature map over those of the queries and keys."""


@keras.saving.register_keras_serializable(PACKAGE)
class LearnedScale(keras.layers.Layer):
    """Multiplies by one learned number, which is 0 at first."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="zeros", name="scale")

    def call(self, inputs):
        return inputs * ops.cast(self.scale, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Shi et al., Neural Processing Letters 53, 2021, which has no public code: CloudU-Net
    with bilinear upsampling and with modules of position and channel attention (Fu et al., CVPR
    2019) between encoder and decoder. Widths and layout are a guess by Table I's number of
    parameters, 14.55 million. It agrees where the position attention's three 1x1 convolutions are
    not counted (14,545,635), as a common Keras port of the attention does not; here they are
    weights as they should be, 328,320 more.

    Args:
        image: (batch, height, width, 3), height and width multiples of 16.
        make: makes the layers.
        channels: of the logits.
    """
    x, skips = encode(image, make, WIDTHS)
    width = x.shape[-1]
    position = ops.relu(make.conv_norm(x, width, 3, "position"))
    channel = ops.relu(make.conv_norm(x, width, 3, "channel"))
    x = make.concatenate([_position_attention(position, make), _channel_attention(channel, make)])
    x = decode(x, skips, make, "bilinear")
    return [make.head(x, channels, 1)]


def _position_attention(x, make):
    """Each pixel gets the sum of all pixels' values, weighed by how alike the two are."""
    filters = x.shape[-1]
    query = _as_rows(make.conv(x, filters // REDUCTION, 1, "position.query"))
    key = _as_rows(make.conv(x, filters // REDUCTION, 1, "position.key"))
    value = _as_rows(make.conv(x, filters, 1, "position.value"))
    attention = ops.softmax(_float32_product(query, ops.transpose(key, (0, 1, 3, 2))))
    mixed = ops.matmul(ops.cast(attention, x.dtype), value)
    return _scaled_sum(x, mixed, make, "position.scale")


def _channel_attention(x, make):
    """Each channel gets the sum of all channels, weighed by how alike the two are."""
    rows = _as_rows(x)
    columns = ops.transpose(rows, (0, 1, 3, 2))
    attention = ops.softmax(_float32_product(columns, rows))
    mixed = ops.matmul(rows, ops.cast(ops.transpose(attention, (0, 1, 3, 2)), x.dtype))
    return _scaled_sum(x, mixed, make, "channel.scale")


def _float32_product(left, right):
    """In half precision, sums over all pixels overflow."""
    dtype = keras.backend.result_type(left.dtype, "float32")
    return ops.matmul(ops.cast(left, dtype), ops.cast(right, dtype))


def _as_rows(x):
    """(batch, h, w, c) -> (batch, 1, h w, c): of rank 4, as TFLM has wrong products of rank 3."""
    _, height, width, channels = x.shape
    return ops.reshape(x, (-1, 1, height * width, channels))


def _scaled_sum(x, rows, make, name):
    scaled = LearnedScale(dtype=make.policy, name=name)(ops.reshape(rows, (-1, *x.shape[1:])))
    return x + scaled
