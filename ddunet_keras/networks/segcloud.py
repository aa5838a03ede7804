"""SegCloud in two readings: `described_logits` and `counted_logits`."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory

WIDTHS = (64, 128, 256, 512, 512)
"""Filters of the two convolutions of each encoder block."""

DESCRIBED_DECODER = ((512, 512), (512, 256), (256, 128), (128, 64), (64, 64))
COUNTED_DECODER = ((512, 512), (256, 256), (128, 128), (64, 64))
"""Filters of the convolutions of each decoder block, in either reading."""


def described_logits(image, make: LayerFactory, channels: int) -> list:
    """SegCloud as its paper describes it: a symmetric encoder and decoder, without skips.

    Source: Xie et al., Atmospheric Measurement Techniques 13, 2020: an encoder of ten convolutions
    with batch normalization and ReLU and five max poolings, a decoder alike. The widths are a
    reconstruction (those of VGG13), as no code is public; the network has 3.8 % fewer parameters
    than Table I says.

    Args:
        image: (batch, height, width, 3), height and width multiples of 32.
        make: makes the layers.
        channels: of the logits.
    """
    x = image
    for block, filters in enumerate(WIDTHS, 1):
        x = _block(x, make, f"encoder_{block}", (filters, filters))
        x = make.max_pool(x)
    for block, widths in enumerate(DESCRIBED_DECODER, 1):
        x = _block(make.upsample(x), make, f"decoder_{block}", widths)
    return [make.head(x, channels, 1)]


def counted_logits(image, make: LayerFactory, channels: int) -> list:
    """SegCloud as Table I counts it: a U-Net of VGG13 with batch normalization.

    All of it is a guess by the number of parameters, 19.60 million, which only this regular layout
    has. It has skips and four poolings, where the paper describes none and five.

    Args:
        image: (batch, height, width, 3), height and width multiples of 16.
        make: makes the layers.
        channels: of the logits.
    """
    x = image
    skips = []
    for block, filters in enumerate(WIDTHS, 1):
        if block > 1:
            x = make.max_pool(x)
        x = _block(x, make, f"encoder_{block}", (filters, filters))
        skips.append(x)
    for block, widths in enumerate(COUNTED_DECODER, 1):
        x = make.concatenate([make.upsample(x), skips[4 - block]])
        x = _block(x, make, f"decoder_{block}", widths)
    return [make.head(x, channels, 1)]


def _block(x, make, name, filters):
    for number, count in enumerate(filters, 1):
        x = ops.relu(make.conv_norm(x, count, 3, f"{name}.{number}"))
    return x
