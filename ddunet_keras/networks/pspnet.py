"""PSPNet on MobileNet: `logits`."""

from __future__ import annotations

from keras import ops

from ddunet_keras.networks.layer_factory import LayerFactory

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1) for _ in range(5)),
    (1024, 2),
    (1024, 1),
)
"""Filters and strides of MobileNet's depthwise separable convolutions."""

BINS = (1, 2, 3, 6)
"""Means on a side of the feature map, in each branch of the pyramid."""

FILTERS = 512


def logits(image, make: LayerFactory, channels: int) -> list:
    """The graph of the network.

    Source: Zhao et al., CVPR 2017, with MobileNet in place of ResNet (Howard et al.,
    arXiv:1704.04861), in the form of `pspnet_Mobile` of bubbliiiing/Semantic-Segmentation, whose
    number of parameters Table I has. That code takes sizes that 192 divides, and gives logits at a
    quarter of the size. Here the pyramid takes any size, and logits have the image's size; that
    changes no weight. Weights start at random.

    Args:
        image: (batch, height, width, 3), height and width multiples of 32.
        make: makes the layers.
        channels: of the logits.
    """
    x = make.conv_norm(image, 32, 3, "stem", strides=2, padding="symmetric", use_bias=False)
    x = ops.relu6(x)
    for number, (filters, strides) in enumerate(BLOCKS, 1):
        name = f"block_{number}"
        x = make.depthwise_norm(x, f"{name}.depthwise", strides=strides, padding="symmetric")
        x = make.conv_norm(ops.relu6(x), filters, 1, f"{name}.pointwise", use_bias=False)
        x = ops.relu6(x)
    height, width = x.shape[1:3]
    branches = [x]
    for bins in BINS:
        window = (max(1, round(height / bins)), max(1, round(width / bins)))
        branch = make.average_pool(x, window)
        branch = make.conv_norm(branch, FILTERS, 1, f"pyramid_{bins}", use_bias=False)
        branches.append(make.resize(ops.relu(branch), (height, width)))
    x = make.conv_norm(make.concatenate(branches), FILTERS, 1, "pyramid", use_bias=False)
    return [make.resize(make.head(ops.relu(x), channels, 3), image.shape[1:3])]
