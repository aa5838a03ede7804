"""`ComparedNetwork`: any network of `NETWORKS` as a Keras model with the interface of `DDUNet`."""

from __future__ import annotations

import importlib
from typing import Any

import keras
from keras import layers

from ddunet_keras.layers import PACKAGE
from ddunet_keras.networks.architectures import NETWORKS
from ddunet_keras.networks.layer_factory import LayerFactory
from ddunet_keras.segmentation_network import SegmentationNetwork
from ddunet_keras.settings import CLASSES, Choice, ImageSize


@keras.saving.register_keras_serializable(PACKAGE)
class ComparedNetwork(SegmentationNetwork):
    """A network of the paper's Table I, built by name; `DDUNet` says how it is used.

    `ddunet_keras.NETWORKS` names the networks, and the function that each entry points to says
    where the network comes from and what in it is a reconstruction.

    Args:
        network: one of `NETWORKS`.
        image_shape: (height, width, 3). Where the strides of the network do not divide them, the
            image is padded on the right and below by zeros, mid-grey, and the logits are cropped.
        num_classes: 2 gives one channel of logits (cloud), more give one channel for each class.
        deep_supervision: whether a network that has outputs of lower size for training (UCloudNet
            alone) gives them.

    Input: (batch, height, width, 3), RGB as `x / 127.5 - 1`, so in [-1, 1]. Output: logits
    (batch, height, width, 1 or num_classes), or a list of them, full size first.

    Raises:
        ValueError: an argument has another value than those named here.

    Example:

    >>> model = ComparedNetwork("cloudsegnet", (60, 100, 3))
    >>> model.count_params(), model.output_shape
    (4929, (None, 60, 100, 1))
    """

    def __init__(
        self,
        network: str,
        image_shape: tuple[int, int, int] = (304, 304, 3),
        num_classes: int = 2,
        deep_supervision: bool = True,
        dtype: Any = None,
        name: str | None = None,
    ):
        network = Choice(tuple(NETWORKS)).check("network", network)
        image_shape = _check_image_shape(image_shape)
        num_classes = CLASSES.check("num_classes", num_classes)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        image = keras.Input(shape=image_shape, name="image")
        factory = LayerFactory(policy)
        logits = network_logits(image, network, factory, num_classes, deep_supervision)
        named = [
            layers.Identity(dtype=factory.head_dtype, name=f"logits_{number}")(output)
            for number, output in enumerate(logits, 1)
        ]
        outputs = named if len(named) > 1 else named[0]
        super().__init__(inputs=image, outputs=outputs, name=name or network)

        self.network = network
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.deep_supervision = bool(deep_supervision)
        # by this `compile` knows that a float16 loss is to be scaled
        self.dtype_policy = policy

    def get_config(self):
        return {
            "network": self.network,
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "deep_supervision": self.deep_supervision,
            "dtype": self.dtype_policy.name,
            "name": self.name,
        }


def network_logits(
    image, network: str, factory: LayerFactory, num_classes: int, deep_supervision: bool = False
) -> list:
    """The outputs of a network for a symbolic image of any size, the largest first.

    Args:
        image: (batch, height, width, 3).
        network: one of `NETWORKS`.
        factory: makes the layers.
        num_classes: 2 or more.
        deep_supervision: whether outputs of lower size, for training alone, come as well.
    """
    architecture = NETWORKS[network]
    module = importlib.import_module(f"ddunet_keras.networks.{architecture.module}")
    build = getattr(module, architecture.function)
    channels = 1 if num_classes == 2 else num_classes
    padded = _pad(image, architecture.stride)
    logits = build(padded, factory, channels, **architecture.options)
    if not deep_supervision:
        logits = logits[:1]
    return [_crop(output, image, padded, factory) for output in logits]


def _pad(image, stride):
    bottom, right = (-side % stride for side in image.shape[1:3])
    if not bottom and not right:
        return image
    margins = ((0, bottom), (0, right))
    return layers.ZeroPadding2D(margins, data_format="channels_last", dtype=image.dtype)(image)


def _crop(logits, image, padded, factory):
    """The part of the logits, which may be of lower size, that the image itself takes."""
    scale = padded.shape[1] // logits.shape[1]
    size = tuple(-(-side // scale) for side in image.shape[1:3])
    return logits if size == tuple(logits.shape[1:3]) else factory.crop(logits, size)


def _check_image_shape(image_shape):
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    if len(shape) != 3 or shape[2] != 3:
        raise ValueError(
            f"`image_shape` must be (height, width, 3). Received: image_shape={image_shape!r}"
        )
    return (*ImageSize(1).check("image_shape", shape[:2]), 3)
