"""The deploy graph of the networks that DDUNet is compared with, for one image at a time.

It has the layers of `ddunet_keras.networks`, with the few that TensorFlow's converter would make
many operators of written otherwise. There is no equalization of channels and no training: these
networks are quantized plainly.
"""

from __future__ import annotations

import keras
import numpy as np

from ddunet_keras.deploy.framework_layers import (
    align_corners_layer,
    crop_layer,
    mask_layer,
    repeat_first_layer,
)
from ddunet_keras.deploy.graph import check_difference
from ddunet_keras.networks.layer_factory import LayerFactory
from ddunet_keras.networks.network import network_logits


class DeployFactory(LayerFactory):
    """Makes the layers of a network as devices have them."""

    def norm_after_activation(self, x, name, **norm):
        """As a 1x1 depthwise convolution, whose int8 weights have a scale for each channel."""
        return keras.layers.DepthwiseConv2D(1, dtype=self.policy, name=name)(x)

    def upsample(self, x, interpolation="nearest"):
        if interpolation == "align_corners":
            return align_corners_layer(keras)(dtype=self.policy)(x)
        return super().upsample(x, interpolation)

    def repeat_first(self, x, axis):
        return repeat_first_layer(keras)(axis, dtype=self.policy)(x)

    def crop(self, x, size):
        return crop_layer(keras)(size, dtype=self.policy)(x)


def build_network_graph(
    model, size, *, output="probability", centered=True, batch_size=1, dtype="float32"
):
    """Builds the deploy graph of a trained network, with its weights.

    Args:
        model: a `ComparedNetwork`.
        size: (height, width) of the input.
        output: "probability", "logits" or "mask", as in `ddunet_keras.deploy.graph.build_graph`.
        centered: whether the input is `pixel - 128` in [-128, 127], as deployed files take it, or
            the model's own `pixel / 127.5 - 1`.
        batch_size: 1 for conversion.
        dtype: what it computes in.

    Returns:
        A functional Keras model.

    Example:

    >>> model = dd.build_network("cloudsegnet", (32, 32, 3))
    >>> build_network_graph(model, (32, 48)).output_shape
    (1, 32, 48, 1)
    """
    image = keras.Input(batch_shape=(batch_size, *size, 3), dtype=dtype, name="image")
    x = _rescaled(image) if centered else image
    factory = DeployFactory(keras.dtype_policies.get(dtype))
    (logits,) = network_logits(x, model.network, factory, model.num_classes)
    graph = keras.Model(image, _answer(logits, output), name=model.network)
    for layer in graph.layers:
        if layer.weights and layer.name != "rescaled":
            layer.set_weights(_weights_for(layer, model.get_layer(layer.name)))
    return graph


def _weights_for(layer, source):
    """The weights of the trained model's layer as its counterpart in the graph has them."""
    if type(layer) is type(source):
        return source.get_weights()
    gamma, beta, mean, variance = (w.astype("float64") for w in source.get_weights())
    scale = gamma / np.sqrt(variance + source.epsilon)
    return [scale[None, None, :, None], beta - scale * mean]


def check_network_graph(model, size) -> float:
    """Compares the deploy graph with the trained model on noise, in float64.

    Returns:
        The largest difference of a logit, as a share of the logits' range.

    Raises:
        ValueError: it is more than `TOLERANCE`.
    """
    images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3))
    own = np.array(model.resized((*size, 3), dtype="float64")(images, training=False))
    graph = build_network_graph(
        model, size, output="logits", centered=False, batch_size=len(images), dtype="float64"
    )
    ours = np.array(graph(images, training=False))
    return check_difference(own, ours)


def _rescaled(image):
    """`pixel - 128` as `pixel / 127.5 - 1`, by one layer that all devices have."""
    layer = keras.layers.DepthwiseConv2D(1, dtype="float32", name="rescaled")
    outputs = layer(image)
    kernel = np.full((1, 1, 3, 1), 1 / 127.5, "float32")
    bias = np.full(3, 0.5 / 127.5, "float32")
    layer.set_weights([kernel, bias])
    return outputs


def _answer(logits, output):
    if output == "logits":
        return logits
    if output == "mask":
        return mask_layer(keras)(name="mask")(logits)
    if logits.shape[-1] == 1:
        return keras.layers.Activation("sigmoid", name="probability")(logits)
    return keras.layers.Softmax(name="probability")(logits)
