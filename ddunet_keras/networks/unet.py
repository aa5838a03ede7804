"""U-Net with the convolutions of VGG16: `logits`."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory

ENCODER = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Filters and number of the convolutions of each block, as in VGG16."""

DECODER = (512, 256, 128, 64)
"""Filters of the two convolutions of each block."""


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Ronneberger et al., MICCAI 2015, in the form of bubbliiiing/unet-keras, whose number of
    parameters Table I has: VGG16 as the encoder, nearest upsampling, no batch normalization. Not
    known: whether the paper's figures start from ImageNet weights. Here weights start at random.

    Args:
        image: (batch, height, width, 3), height and width multiples of 16.
        make: makes the layers.
        channels: of the logits.
    """
    x = image
    skips = []
    for block, (filters, convolutions) in enumerate(ENCODER, 1):
        if block > 1:
            x = make.max_pool(x)
        for number in range(1, convolutions + 1):
            x = ops.relu(make.conv(x, filters, 3, f"encoder_{block}.conv_{number}"))
        skips.append(x)
    for block, filters in enumerate(DECODER, 1):
        x = make.concatenate([skips[4 - block], make.upsample(x)])
        for number in (1, 2):
            x = ops.relu(make.conv(x, filters, 3, f"decoder_{block}.conv_{number}"))
    return [make.head(x, channels, 1)]
