"""Builds layers with given weights, and scales the channels of feature maps on the way.

The deploy graph (`ddunet_keras.deploy.graph`) is made of the few layers here. Each method takes a
`Features`, a tensor that knows which channels it carries, and gives one.

**Scaling channels.** A positive factor on a channel, and its inverse where the channel is consumed,
changes nothing in float: convolutions are linear, and ReLU passes a positive factor on. In int8 it
gives all channels of a feature map about the same range, so that one scale serves them all (see
`ddunet_keras.deploy.equalization`). Channels to which one factor can be given wherever they occur
form a group: a residual sum, for instance, puts both of its inputs and its output into one group.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ddunet_keras.deploy.framework_layers import split_layer


@dataclass(frozen=True)
class Features:
    """A tensor and, in the order of its channels, the groups that the channels belong to.

    Attributes:
        tensor: of the framework, (batch, height, width, channels).
        groups: pairs (name, number of channels); the name None stands for channels that take no
            factor.
    """

    tensor: object
    groups: tuple[tuple[str | None, int], ...]


def folded(conv, norm) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a convolution with its batch normalization folded in.

    Exact at inference: Jacob et al., CVPR 2018, section 3.2.

    Args:
        conv: a Conv2D or DepthwiseConv2D layer.
        norm: the batch normalization behind it.

    Returns:
        float64 kernel, in the layer's own shape, and bias (channels,).
    """
    kernel, *bias = (w.astype("float64") for w in conv.get_weights())
    gamma, beta, mean, variance = (w.astype("float64") for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    shift = (bias[0] if bias else 0) - mean
    is_depthwise = kernel.shape[-1] != len(scale)  # (height, width, channels, 1)
    kernel_scale = scale[:, None] if is_depthwise else scale
    return kernel * kernel_scale, shift * scale + beta


def chained(first, second) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of one 1x1 convolution that does what two in a row do.

    Args:
        first, second: (kernel, bias) each, with no activation between them.
    """
    kernel, bias = first
    outer_kernel, outer_bias = second
    return kernel @ outer_kernel, bias @ outer_kernel[0, 0] + outer_bias


class _TypedLayers:
    """The layers of a framework, all of which compute in one dtype."""

    def __init__(self, layers, dtype):
        self._layers = layers
        self._dtype = dtype

    def __getattr__(self, name):
        return self.typed(getattr(self._layers, name))

    def typed(self, layer):
        return functools.partial(layer, dtype=self._dtype)


class GraphBuilder:
    """Makes layers with weights; the layers bear the names of the trained model's blocks.

    Args:
        framework: `keras`, or `tf_keras`, which tensorflow-model-optimization needs.
        factors: name of a group -> factor of each of its channels; a group that is missing has 1.
        dtype: that the layers compute in. Weights are rounded to float32 in any case.

    Attributes:
        occurrences: name of a group -> where it occurs: pairs of a layer's name and the slice of
            that layer's output channels.
    """

    def __init__(self, framework, factors, dtype):
        self.framework = framework
        self.layers = _TypedLayers(framework.layers, dtype)
        self.factors = factors
        self.occurrences: dict[str, list] = {}

    # === Channel groups ===

    def factors_of(self, groups) -> np.ndarray:
        """(channels,): the factor of each channel of these groups."""
        return np.concatenate([self.factors.get(name, np.ones(count)) for name, count in groups])

    def record(self, x, layer_name) -> Features:
        """Notes that this layer's output carries the groups of `x`; returns `x`."""
        start = 0
        for group, count in x.groups:
            if group is not None:
                channels = slice(start, start + count)
                self.occurrences.setdefault(group, []).append((layer_name, channels))
            start += count
        return x

    # === Layers with weights ===

    def _apply(self, layer, inputs, weights):
        outputs = layer(inputs)
        layer.set_weights([np.asarray(w, "float32") for w in weights])
        return outputs

    def conv(
        self, x, kernel, bias, name, activation=None, *, strides=1, padding="same", groups=None
    ) -> Features:
        """A convolution.

        Args:
            kernel: (height, width, channels, filters), for channels without factors.
            bias: (filters,), or None for a convolution whose weights are fixed, such as a sum.
            groups: of the output's channels, or one group's name; None for channels without factor.
        """
        filters = kernel.shape[-1]
        if not isinstance(groups, tuple):
            groups = ((groups, filters),)
        factors = self.factors_of(groups)
        weights = [kernel / self.factors_of(x.groups)[:, None] * factors]
        if bias is not None:
            weights.append(bias * factors)
        inputs = x.tensor
        if strides > 1:
            # on every side, as PyTorch and Paddle pad; TensorFlow's "same" does not
            pad = self.layers.ZeroPadding2D(kernel.shape[0] // 2, name=f"{name}_pad")
            inputs = pad(inputs)
            padding = "valid"
        layer = self.layers.Conv2D(
            filters,
            kernel.shape[:2],
            strides=strides,
            padding=padding,
            use_bias=bias is not None,
            activation=activation,
            trainable=bias is not None,
            name=name,
        )
        return self.record(Features(self._apply(layer, inputs, weights), groups), name)

    def conv_bn_relu(self, x, block) -> Features:
        """A `ConvBNReLU` of the trained model."""
        kernel, bias = folded(block.conv, block.norm)
        return self.conv(
            x, kernel, bias, block.name, "relu", strides=block.strides, groups=block.name
        )

    def depthwise(
        self, x, kernel, bias, name, activation="relu6", group=None, dilation_rate=1
    ) -> Features:
        """A 3x3 depthwise convolution; its kernel is (3, 3, channels, 1)."""
        groups = ((group, len(bias)),)
        factors = self.factors_of(groups)
        ratio = factors / self.factors_of(x.groups)
        layer = self.layers.DepthwiseConv2D(
            3, padding="same", dilation_rate=dilation_rate, activation=activation, name=name
        )
        weights = [kernel * ratio[:, None], bias * factors]
        return Features(self._apply(layer, x.tensor, weights), groups)

    def dense(self, x, kernel, bias, name, activation=None) -> Features:
        """A dense layer that reads the mean of the grid that `grid_means` gives."""
        rows, columns = x.tensor.shape[1:3]
        grid_kernel = np.tile(kernel / (rows * columns), (rows, columns, 1, 1))
        return self.conv(x, grid_kernel, bias, name, activation, padding="valid")

    def halve(self, x, name) -> Features:
        """Means of two by two pixels; as a convolution, they have a scale of their own."""
        groups = ((name, x.tensor.shape[-1]),)
        ratio = self.factors_of(groups) / self.factors_of(x.groups)
        kernel = np.full((2, 2, 1, 1), 1 / 4) * ratio[:, None]
        layer = self.layers.DepthwiseConv2D(
            2, strides=2, use_bias=False, trainable=False, name=name
        )
        return self.record(Features(self._apply(layer, x.tensor, [kernel]), groups), name)

    # === Layers without weights ===

    def global_mean(self, x, name) -> Features:
        """(batch, 1, 1, channels)."""
        layer = self.layers.GlobalAveragePooling2D(keepdims=True, name=name)
        return Features(layer(x.tensor), x.groups)

    def pooled_means(self, x, name, parts) -> Features:
        """Means of `parts` x `parts` rectangles: (batch, parts, parts, channels)."""
        sides = [side // parts for side in x.tensor.shape[1:3]]
        layer = self.layers.AveragePooling2D(sides, name=name)
        return Features(layer(x.tensor), x.groups)

    def interleaved_means(self, x, name, parts) -> Features:
        """Means of `parts`² sets of pixels, each of which takes every `parts`²-th pixel:
        (parts², 1, 1, channels) as (parts², 1, channels)."""
        _, height, width, channels = x.tensor.shape
        sets = parts**2
        rows_shape = (1, height * width // sets, sets * channels)
        rows = self.layers.Reshape(rows_shape, name=f"{name}_rows")(x.tensor)
        means = self.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_means")(rows)
        return Features(
            self.layers.Reshape((sets, 1, channels), name=name)(means),
            x.groups,
        )

    def concatenate(self, features, name) -> Features:
        """The channels of all `features`, one after the other; of one, itself."""
        if len(features) == 1:
            return features[0]
        layer = self.layers.Concatenate(name=name)
        groups = tuple(group for x in features for group in x.groups)
        return Features(layer([x.tensor for x in features]), groups)

    def add(self, x, y, name) -> Features:
        return Features(self.layers.Add(name=name)([x.tensor, y.tensor]), x.groups)

    def relu(self, x, name) -> Features:
        return Features(self.layers.ReLU(name=name)(x.tensor), x.groups)

    def split(self, tensor, parts, name) -> list:
        """The channels of a tensor in equal parts."""
        layer = self.layers.typed(split_layer(self.framework))
        return layer(parts, name=name)(tensor)
