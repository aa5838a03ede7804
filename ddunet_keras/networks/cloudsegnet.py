"""CloudSegNet, a network of 4,929 parameters: `logits`."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Dev et al., IEEE Geoscience and Remote Sensing Letters 16, 2019, and the authors' code.
    One of their convolutions is not padded, which fits 300 pixels alone; here all are, so that the
    logits have the image's size whatever it is. That changes no weight.

    Args:
        image: (batch, height, width, 3), height and width multiples of 8.
        make: makes the layers.
        channels: of the logits.
    """
    x = image
    for block, filters in enumerate((16, 8, 8), 1):
        x = ops.relu(make.conv(x, filters, 3, f"encoder_{block}"))
        x = make.max_pool(x)
    for block, filters in enumerate((8, 8, 16), 1):
        x = ops.relu(make.conv(x, filters, 3, f"decoder_{block}"))
        x = make.upsample(x)
    return [make.head(x, channels, 5)]
