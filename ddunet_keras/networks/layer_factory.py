"""The layers that the networks are made of: `LayerFactory` makes and names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from ddunet_keras.layers import AlignCornersUpSampling, FusedBatchNormalization

PADDINGS = ("same", "valid", "symmetric")
"""Of a convolution; "symmetric" pads half of the kernel on every side whatever the strides, as
PyTorch and Paddle do, where "same" pads a stride of 2 on the right and bottom alone."""


def hard_swish(x):
    """`x * relu6(x + 3) / 6`."""
    return x * ops.relu6(x + 3.0) * (1.0 / 6.0)


def global_mean(x):
    """(batch, h, w, c) -> (batch, 1, 1, c), not summed in half precision: large maps overflow."""
    dtype = keras.backend.result_type(x.dtype, "float32")
    return ops.cast(ops.mean(ops.cast(x, dtype), axis=(1, 2), keepdims=True), x.dtype)


class LayerFactory:
    """Makes the layers of one network; each method applies a layer to a symbolic tensor.

    All tensors are (batch, height, width, channels), all sizes fixed. Layers with weights have
    names, by which weights are taken over from one model to another.

    Args:
        policy: dtype policy of the layers.
    """

    def __init__(self, policy: Any):
        self.policy = policy
        # logits are float32 at least, whatever the policy: the loss needs the range
        self.head_dtype = keras.backend.result_type(policy.compute_dtype, "float32")

    def conv(
        self,
        x,
        filters: int,
        kernel_size: int | tuple[int, int],
        name: str,
        *,
        strides: int = 1,
        dilation_rate: int = 1,
        padding: str = "same",
        use_bias: bool = True,
        dtype: Any = None,
    ):
        """A convolution; `padding` is one of `PADDINGS`."""
        if padding == "symmetric":
            x = self._pad(x, kernel_size)
            padding = "valid"
        return layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            dilation_rate=dilation_rate,
            padding=padding,
            use_bias=use_bias,
            kernel_initializer="he_normal",
            data_format="channels_last",
            dtype=dtype or self.policy,
            name=name,
        )(x)

    def _pad(self, x, kernel_size):
        """Zeros on every side, half of the kernel."""
        sides = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        margins = tuple(side // 2 for side in sides)
        return layers.ZeroPadding2D(margins, data_format="channels_last", dtype=x.dtype)(x)

    def depthwise(
        self, x, name: str, *, strides: int = 1, dilation_rate: int = 1, padding: str = "same"
    ):
        """A 3x3 depthwise convolution without bias; `padding` is one of `PADDINGS`."""
        if padding == "symmetric":
            x = self._pad(x, 3)
            padding = "valid"
        return layers.DepthwiseConv2D(
            3,
            strides=strides,
            dilation_rate=dilation_rate,
            padding=padding,
            use_bias=False,
            # He: 9 inputs to each output; Keras would count all channels as inputs
            depthwise_initializer=keras.initializers.RandomNormal(stddev=(2 / 9) ** 0.5),
            data_format="channels_last",
            dtype=self.policy,
            name=name,
        )(x)

    def norm(
        self, x, name: str, *, epsilon: float = 1e-3, momentum: float = 0.99, dtype: Any = None
    ):
        """Batch normalization; epsilon and momentum are Keras's own where none are given."""
        return FusedBatchNormalization(
            momentum=momentum, epsilon=epsilon, dtype=dtype or self.policy, name=name
        )(x)

    def norm_after_activation(self, x, name: str, **norm):
        """`norm` that no convolution stands right before, into which devices could fold it."""
        return self.norm(x, name, **norm)

    def conv_norm(self, x, filters, kernel_size, name, *, epsilon=1e-3, **conv):
        """A convolution and batch normalization, `NAME.conv` and `NAME.norm`."""
        x = self.conv(x, filters, kernel_size, f"{name}.conv", **conv)
        return self.norm(x, f"{name}.norm", epsilon=epsilon)

    def depthwise_norm(self, x, name, *, epsilon=1e-3, **depthwise):
        """A depthwise convolution and batch normalization, `NAME.depthwise` and `NAME.norm`."""
        x = self.depthwise(x, f"{name}.depthwise", **depthwise)
        return self.norm(x, f"{name}.norm", epsilon=epsilon)

    def dense(self, units: int, name: str, activation: str | None = None) -> Callable:
        """A dense layer, as a 1x1 convolution, that may be applied to several (batch, 1, 1, c)."""
        return layers.Conv2D(
            units,
            1,
            activation=activation,
            data_format="channels_last",
            dtype=self.policy,
            name=name,
        )

    def max_pool(self, x, window: int = 2):
        """The largest of each `window` x `window` pixels, with strides of 2, not padded."""
        return layers.MaxPooling2D(window, 2, data_format="channels_last", dtype=x.dtype)(x)

    def repeat_first(self, x, axis: int):
        """A copy of the first row (`axis` 1) or column (`axis` 2) before all others."""
        first = x[:, :1] if axis == 1 else x[:, :, :1]
        return layers.Concatenate(axis, dtype=x.dtype)([first, x])

    def crop(self, x, size: tuple[int, int]):
        """The upper left part of `size` = (height, width)."""
        margins = tuple((0, side - kept) for side, kept in zip(x.shape[1:3], size, strict=True))
        return layers.Cropping2D(margins, data_format="channels_last", dtype=x.dtype)(x)

    def average_pool(self, x, window: tuple[int, int]):
        """Means of rectangles that cover the feature map; those at the border may be smaller."""
        return layers.AveragePooling2D(
            window, padding="same", data_format="channels_last", dtype=x.dtype
        )(x)

    def dropout(self, x, rate: float):
        """Dropout of single values, in training."""
        return layers.Dropout(rate, dtype=x.dtype)(x)

    def channel_dropout(self, x, rate: float):
        """Dropout of whole channels, in training."""
        return layers.SpatialDropout2D(rate, data_format="channels_last", dtype=x.dtype)(x)

    def concatenate(self, tensors):
        """Side by side in the channels."""
        return layers.Concatenate(dtype=tensors[0].dtype)(tensors)

    def resize(self, x, size: tuple[int, int], interpolation: str = "bilinear"):
        """To `size` = (height, width); "bilinear" with half-pixel centres, or "nearest"."""
        if tuple(x.shape[1:3]) == tuple(size):
            return x
        # float32 goes in and comes out: TensorFlow resizes to float32 whatever goes in, while
        # XLA keeps float16 and then finds that the two disagree
        dtype = keras.backend.result_type(x.dtype, "float32")
        resized = ops.image.resize(
            ops.cast(x, dtype), size, interpolation, data_format="channels_last"
        )
        return ops.cast(resized, x.dtype)

    def upsample(self, x, interpolation: str = "nearest"):
        """To twice the size: "nearest", "bilinear", or "align_corners" (bilinear, corners kept)."""
        if interpolation == "align_corners":
            return AlignCornersUpSampling(dtype=x.dtype)(x)
        height, width = x.shape[1:3]
        return self.resize(x, (2 * height, 2 * width), interpolation)

    def head(self, x, channels: int, kernel_size: int, name: str = "logits"):
        """The convolution that gives logits, in float32 at least."""
        return self.conv(x, channels, kernel_size, name, dtype=self.head_dtype)
