"""DeepLabV3+ on MobileNetV2: `logits`."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory, global_mean

# (expansion, filters, strides, dilation) of MobileNetV2's blocks; output stride 8, so from the
# seventh on dilation stands for the strides that are left out
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 24, 1, 1),
    (6, 32, 2, 1),
    (6, 32, 1, 1),
    (6, 32, 1, 1),
    (6, 64, 1, 1),
    *((6, 64, 1, 2) for _ in range(3)),
    *((6, 96, 1, 2) for _ in range(3)),
    (6, 160, 1, 2),
    *((6, 160, 1, 4) for _ in range(2)),
    (6, 320, 1, 4),
)

SKIP = 2
"""Index of the block whose output the decoder reads as well, at a quarter of the size."""

RATES = (6, 12, 18)
"""Dilation of the branches of the spatial pyramid."""

FILTERS = 256
EPSILON = 1e-5
"""Of the batch normalizations behind the encoder."""


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Chen et al., ECCV 2018, with MobileNetV2 (Sandler et al., CVPR 2018), in the form of
    `deeplab_Mobile` of bubbliiiing/Semantic-Segmentation, whose number of parameters Table I has.
    Not known: whether the paper's figures are of output stride 8, as here, or 16. The encoder's
    batch normalization averages with momentum 0.99, where the source, which starts from ImageNet
    weights, has 0.999: here weights start at random.

    Args:
        image: (batch, height, width, 3), height and width multiples of 8.
        make: makes the layers.
        channels: of the logits.
    """
    x = ops.relu6(make.conv_norm(image, 32, 3, "stem", strides=2, use_bias=False))
    for index, (expansion, filters, strides, dilation) in enumerate(BLOCKS):
        y = x
        if expansion > 1:
            expanded = expansion * x.shape[-1]
            y = ops.relu6(make.conv_norm(y, expanded, 1, f"block_{index}.expand", use_bias=False))
        y = make.depthwise_norm(
            y, f"block_{index}.depthwise", strides=strides, dilation_rate=dilation
        )
        y = make.conv_norm(ops.relu6(y), filters, 1, f"block_{index}.project", use_bias=False)
        x = x + y if strides == 1 and x.shape[-1] == filters else y
        if index == SKIP:
            skip = x
    x = make.resize(make.dropout(_pyramid(x, make), 0.1), skip.shape[1:3])
    x = make.concatenate([x, _pointwise(skip, 48, make, "skip")])
    for number in (1, 2):
        x = _separable(x, make, f"decoder_{number}")
    return [make.resize(make.head(x, channels, 1), image.shape[1:3])]


def _pyramid(x, make):
    """Atrous spatial pyramid pooling."""
    average = _pointwise(global_mean(x), FILTERS, make, "pyramid.average")
    branches = [make.resize(average, x.shape[1:3]), _pointwise(x, FILTERS, make, "pyramid.point")]
    branches += [_separable(x, make, f"pyramid.rate_{rate}", rate) for rate in RATES]
    return _pointwise(make.concatenate(branches), FILTERS, make, "pyramid")


def _pointwise(x, filters, make, name):
    return ops.relu(make.conv_norm(x, filters, 1, name, epsilon=EPSILON, use_bias=False))


def _separable(x, make, name, dilation_rate=1):
    x = make.depthwise_norm(x, f"{name}.depthwise", epsilon=EPSILON, dilation_rate=dilation_rate)
    return _pointwise(ops.relu(x), FILTERS, make, f"{name}.pointwise")
