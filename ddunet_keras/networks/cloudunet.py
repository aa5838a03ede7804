"""CloudU-Net, a U-Net of dilated convolutions: `logits`. CloudU-Netv2 builds on its parts."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory

WIDTHS = (64, 128, 256, 512, 1024)
"""Filters of the two convolutions of each stage, the largest feature maps first."""

DILATIONS = (1, 2, 5)
"""Of consecutive convolutions, again and again."""


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Shi et al., IEEE Geoscience and Remote Sensing Letters 18, 2020, which has no public
    code: a U-Net of dilated convolutions with batch normalization. Widths and dilations are a
    reconstruction after a reimplementation by others (YLiu-creator/deformableCloudDetection).
    Table I counts 35.49 million parameters; what the other 2.7 % are is not known. The conditional
    random field that the paper applies to the mask has no weights and is left out.

    Args:
        image: (batch, height, width, 3), height and width multiples of 16.
        make: makes the layers.
        channels: of the logits.
    """
    x, skips = encode(image, make, WIDTHS)
    x = decode(x, skips, make, "nearest")
    return [make.head(x, channels, 1)]


def encode(image, make: LayerFactory, widths: tuple[int, ...]):
    """The last stage's feature map, and those of the stages before, the largest first."""
    x = image
    stages = []
    for stage, width in enumerate(widths, 1):
        if stage > 1:
            x = make.max_pool(x)
        x = _block(x, make, width, f"encoder_{stage}", first=2 * (stage - 1))
        stages.append(x)
    return x, stages[:-1]


def decode(x, skips: list, make: LayerFactory, interpolation: str):
    """The feature map of full size; `interpolation` as in `LayerFactory.upsample`."""
    first = 2 * (len(skips) + 1)  # the encoder has used that many dilations
    for stage, skip in enumerate(reversed(skips), 1):
        width = skip.shape[-1]
        x = make.conv(make.upsample(x, interpolation), width, 3, f"up_{stage}")
        x = make.concatenate([skip, x])
        x = _block(x, make, width, f"decoder_{stage}", first + 2 * (stage - 1))
    return x


def _block(x, make, width, name, first):
    """Two convolutions, of the dilation number `first` and the next one."""
    for number in (1, 2):
        dilation = DILATIONS[(first + number - 1) % len(DILATIONS)]
        x = make.conv_norm(x, width, 3, f"{name}.{number}", dilation_rate=dilation)
        x = ops.relu(x)
    return x
