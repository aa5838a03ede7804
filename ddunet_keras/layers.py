"""Layers of the Dual Dynamic U-Net: `DMSC`, `DWBG` and their building blocks.

All tensors are channels-last, whatever `keras.config.image_data_format()` says. Everything is
written with `keras.ops` and computes the same on TensorFlow, JAX and PyTorch. Source: Li et al.,
"DDUNet: Dual Dynamic U-Net for Highly-Efficient Cloud Segmentation", IGARSS 2025,
arXiv:2501.15385; where its text is open, the authors' code decides.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from ddunet_keras.recipes import UPSAMPLINGS
from ddunet_keras.settings import POSITIVE, Choice, Each

PACKAGE = "ddunet_keras"
"""Name under which the layers are registered for serialization."""


def _fused_batch_norm(inputs, gamma, beta, epsilon):
    """Normalizes by the batch's moments in one kernel: (outputs, mean, variance).

    None where the backend has no such kernel: XLA fuses the composed form by itself.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon
        )
        # the kernel returns the unbiased variance; Keras (and the authors) average the biased one
        count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], variance.dtype)
        return outputs, mean, variance * (1.0 - 1.0 / count)
    if backend == "torch":
        import torch

        outputs, mean, inverse_std = torch.native_batch_norm(
            inputs.permute(0, 3, 1, 2), gamma, beta, None, None, True, 0.0, epsilon
        )
        return outputs.permute(0, 2, 3, 1), mean, inverse_std**-2 - epsilon
    return None


@keras.saving.register_keras_serializable(PACKAGE)
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the channels of a 4D tensor that trains as one fused kernel.

    Keras 3 composes batch normalization from moments; TensorFlow and PyTorch have one kernel for
    it, which makes this network train faster on a CPU (`tools/benchmark_training.py` prints the
    ratio). Arguments, weights and values are those of `keras.layers.BatchNormalization`;
    only its call with `training=True` differs, and only in rounding.

    Args:
        momentum: weight of the past in the moving averages. The authors use 0.9.
        epsilon: added to the variance. The authors use 1e-5.

    Input and output: (batch, height, width, channels).
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not self._is_usual(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = (ops.convert_to_tensor(v) for v in (self.gamma, self.beta))
        if training and self.trainable:
            fused = _fused_batch_norm(inputs, gamma, beta, self.epsilon)
            if fused is None:
                return super().call(inputs, training=training, mask=mask)
            outputs, mean, variance = fused
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                value = ops.stop_gradient(ops.cast(value, average.dtype))
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        else:
            # the mean is subtracted first: x * s + (beta - mean * s) cancels digits
            scale = gamma * ops.rsqrt(self.moving_variance + self.epsilon)
            outputs = (ops.cast(inputs, "float32") - self.moving_mean) * scale + beta
        return ops.cast(outputs, self.compute_dtype)

    def _is_usual(self, inputs, mask):
        """Whether the fused kernels compute what is asked for; the rest is left to Keras."""
        return (
            mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Keras 3.12 has none
            and keras.backend.standardize_dtype(inputs.dtype) != "float64"
        )


def _conv(layer, filters, kernel_size, name, **kwargs):
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        kernel_initializer="he_normal",
        data_format="channels_last",
        dtype=layer.dtype_policy,
        name=name,
        **kwargs,
    )


def _depthwise(layer, name, dilation_rate=1):
    return keras.layers.DepthwiseConv2D(
        3,
        padding="same",
        dilation_rate=dilation_rate,
        use_bias=False,
        # He: 9 inputs to each output; Keras would count all channels as inputs
        depthwise_initializer=keras.initializers.RandomNormal(stddev=(2 / 9) ** 0.5),
        data_format="channels_last",
        dtype=layer.dtype_policy,
        name=name,
    )


def _norm(layer, name):
    return FusedBatchNormalization(dtype=layer.dtype_policy, name=name)


def _dense(layer, units, name, **kwargs):
    return keras.layers.Dense(units, dtype=layer.dtype_policy, name=name, **kwargs)


def _global_average(inputs):
    """(batch, h, w, c) -> (batch, c), not summed in half precision: large feature maps overflow."""
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    return ops.cast(ops.mean(ops.cast(inputs, dtype), axis=(1, 2)), inputs.dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class ConvBNReLU(keras.layers.Layer):
    """Convolution without bias, batch normalization, ReLU.

    Args:
        filters: number of output channels.
        kernel_size: 1 or 3.
        strides: 1 or 2. The feature map is padded by `kernel_size // 2` on every side, as PyTorch
            and Paddle do; TensorFlow's "same" pads a stride of 2 on the right and bottom alone.

    Input: (batch, h, w, c). Output: (batch, ceil(h / strides), ceil(w / strides), filters).
    """

    def __init__(self, filters: int, kernel_size: int = 3, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.filters = POSITIVE.check("filters", filters)
        self.kernel_size = POSITIVE.check("kernel_size", kernel_size)
        self.strides = POSITIVE.check("strides", strides)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd. Received: kernel_size={kernel_size}")
        self.pad = None
        if self.strides > 1 and self.kernel_size > 1:
            self.pad = keras.layers.ZeroPadding2D(
                self.kernel_size // 2,
                data_format="channels_last",
                dtype=self.dtype_policy,
                name="pad",
            )
        self.conv = _conv(
            self,
            self.filters,
            self.kernel_size,
            "conv",
            strides=self.strides,
            padding="valid" if self.pad else "same",
            use_bias=False,
        )
        self.norm = _norm(self, "norm")

    def build(self, input_shape):
        self.conv.build(self.pad.compute_output_shape(input_shape) if self.pad else input_shape)
        self.norm.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None):
        x = self.pad(inputs) if self.pad else inputs
        return ops.relu(self.norm(self.conv(x), training=training))

    def compute_output_shape(self, input_shape):
        batch, *size, _ = input_shape
        size = [None if s is None else -(-s // self.strides) for s in size]
        return (batch, *size, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class InvertedResidual(keras.layers.Layer):
    """Inverted residual without expansion (MobileNetV2 with expansion 1).

    3x3 depthwise convolution, batch normalization, ReLU6, 1x1 convolution, batch normalization; the
    input is added where it has as many channels as the output. Paper: eq. 6, whose "3x3 Conv" is
    this block in the authors' code; only so are there 0.33 M parameters.

    Args:
        filters: number of output channels.

    Input: (batch, h, w, c). Output: (batch, h, w, filters).
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = POSITIVE.check("filters", filters)
        self.depthwise = _depthwise(self, "depthwise")
        self.depthwise_norm = _norm(self, "depthwise_norm")
        self.pointwise = _conv(self, self.filters, 1, "pointwise", use_bias=False)
        self.pointwise_norm = _norm(self, "pointwise_norm")

    def build(self, input_shape):
        self.depthwise.build(input_shape)
        self.depthwise_norm.build(input_shape)
        self.pointwise.build(input_shape)
        self.pointwise_norm.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None):
        x = ops.relu6(self.depthwise_norm(self.depthwise(inputs), training=training))
        x = self.pointwise_norm(self.pointwise(x), training=training)
        return inputs + x if inputs.shape[-1] == self.filters else x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(PACKAGE)
class DMSC(keras.layers.Layer):
    """Dynamic multi-scale convolution: the image weighs the receptive fields it is seen with.

    A 1x1 ConvBNReLU gives x. A gate (global average of x, dense to 2c, ReLU, dense, softmax) weighs
    the outputs of 3x3 depthwise convolutions of several dilations, each with batch normalization
    and ReLU. Their sum goes through an inverted residual and a 1x1 convolution with bias and batch
    normalization; x is added; ReLU. Source: paper, section 2.2, eqs. 1 to 6, and the authors' code.

    Args:
        filters: number of output channels c.
        dilation_rates: one branch for each entry.

    Attributes:
        range_penalty: weight of a loss, in training alone, on what the sum of the branches has
            beyond 6: mean of its square. Few pixels reach far beyond, and int8 must span them;
            0 by default, not saved. `Recipe.range_penalty` sets it.

    Input: (batch, h, w, any). Output: (batch, h, w, filters).

    Raises:
        ValueError: `filters` or a dilation rate is no positive integer, or there is no rate.

    Example:

    >>> layer = DMSC(8)
    >>> layer(np.zeros((2, 32, 48, 8), "float32")).shape
    TensorShape([2, 32, 48, 8])
    """

    def __init__(self, filters: int, dilation_rates: tuple[int, ...] = (1, 2, 3, 4), **kwargs):
        super().__init__(**kwargs)
        self.filters = POSITIVE.check("filters", filters)
        self.dilation_rates = Each(POSITIVE).check("dilation_rates", dilation_rates)
        self.range_penalty = 0.0
        self.in_conv = ConvBNReLU(self.filters, 1, dtype=self.dtype_policy, name="in_conv")
        self.gate_1 = _dense(self, 2 * self.filters, "gate_1", activation="relu")
        self.gate_2 = _dense(self, len(self.dilation_rates), "gate_2")
        self.branches = [
            _depthwise(self, f"branch_{i}", rate) for i, rate in enumerate(self.dilation_rates)
        ]
        self.branch_norms = [_norm(self, f"branch_norm_{i}") for i in range(len(self.branches))]
        self.residual = InvertedResidual(self.filters, dtype=self.dtype_policy, name="residual")
        self.out_conv = _conv(self, self.filters, 1, "out_conv")
        self.out_norm = _norm(self, "out_norm")

    def build(self, input_shape):
        shape = (*input_shape[:-1], self.filters)
        self.in_conv.build(input_shape)
        self.gate_1.build((input_shape[0], self.filters))
        self.gate_2.build((input_shape[0], 2 * self.filters))
        for layer in (*self.branches, *self.branch_norms):
            layer.build(shape)
        self.residual.build(shape)
        self.out_conv.build(shape)
        self.out_norm.build(shape)

    def call(self, inputs, training=None):
        x = self.in_conv(inputs, training=training)
        gate = ops.softmax(self.gate_2(self.gate_1(_global_average(x))))
        mixed = 0.0
        for i, (branch, norm) in enumerate(zip(self.branches, self.branch_norms, strict=True)):
            weight = gate[:, None, None, i : i + 1]
            mixed += weight * ops.relu(norm(branch(x), training=training))
        if training and self.range_penalty:
            beyond = ops.relu(ops.cast(mixed, "float32") - 6.0)
            self.add_loss(self.range_penalty * ops.mean(ops.square(beyond)))
        mixed = self.residual(mixed, training=training)
        return ops.relu(x + self.out_norm(self.out_conv(mixed), training=training))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "dilation_rates": self.dilation_rates,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class DWBG(keras.layers.Layer):
    """Dynamic weights and bias generator: a segmentation head made anew for each image.

    The global averages of the decoder's and the encoder's feature map of a stage, concatenated, go
    through two perceptrons of two layers; one gives a 3x3 kernel, the other a bias. The decoder's
    feature map is convolved with them. Source: paper, section 2.3, eqs. 7 to 9, and the authors'
    code.

    A convolution with one kernel per image has no fast form on most devices. Here the feature map
    is first multiplied by the image's (c, 9 filters) matrix, then one fixed 3x3 convolution with
    one-hot taps shifts and adds the nine products: the same sum, and little more work than a static
    kernel.

    Args:
        filters: number of output channels: 1 for two classes, else one for each class.
        hidden_ratio: hidden width of both perceptrons over the width of the averages.

    Input: [decoder (batch, h, w, c), encoder (batch, h', w', c')]. Output: logits
    (batch, h, w, filters).

    Raises:
        ValueError: an argument is no positive integer, or the input is not a pair.

    Example:

    >>> feature = np.zeros((2, 32, 48, 8), "float32")
    >>> DWBG(1, hidden_ratio=4)([feature, feature]).shape
    TensorShape([2, 32, 48, 1])
    """

    def __init__(self, filters: int, hidden_ratio: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.filters = POSITIVE.check("filters", filters)
        self.hidden_ratio = POSITIVE.check("hidden_ratio", hidden_ratio)

    def build(self, input_shape):
        if len(input_shape) != 2 or not all(isinstance(s, (tuple, list)) for s in input_shape):
            raise ValueError(
                f"DWBG needs [decoder, encoder] feature maps. Received shapes: {input_shape}"
            )
        decoder, encoder = input_shape
        self.channels = decoder[-1]
        width = decoder[-1] + encoder[-1]
        hidden = width * self.hidden_ratio
        taps = 9 * self.filters
        # children depend on the input's width, so they are made here
        self.weight_1 = _dense(self, hidden, "weight_1", activation="relu")
        self.weight_2 = _dense(self, taps * self.channels, "weight_2")
        self.bias_1 = _dense(self, hidden, "bias_1", activation="relu")
        self.bias_2 = _dense(self, self.filters, "bias_2")
        for layer in (self.weight_1, self.bias_1):
            layer.build((decoder[0], width))
        for layer in (self.weight_2, self.bias_2):
            layer.build((decoder[0], hidden))
        # tap (i, j) of filter o is channel (3 i + j) * filters + o
        one_hot = np.zeros((3, 3, 9, self.filters, self.filters), "float32")
        for tap in range(9):
            one_hot[tap // 3, tap % 3, tap] = np.eye(self.filters)
        self.one_hot_taps = one_hot.reshape(3, 3, taps, self.filters)

    def call(self, inputs):
        decoder, encoder = inputs
        averages = ops.concatenate([_global_average(decoder), _global_average(encoder)], axis=-1)
        kernel = self.weight_2(self.weight_1(averages))
        bias = self.bias_2(self.bias_1(averages))
        # (filters, c, 3, 3), the authors' order -> (c, taps)
        kernel = ops.reshape(kernel, (-1, self.filters, self.channels, 9))
        kernel = ops.transpose(kernel, (0, 2, 3, 1))
        kernel = ops.reshape(kernel, (-1, self.channels, 9 * self.filters))
        height, width = decoder.shape[1:3]
        products = ops.matmul(ops.reshape(decoder, (-1, height * width, self.channels)), kernel)
        products = ops.reshape(products, (-1, height, width, 9 * self.filters))
        taps = ops.convert_to_tensor(self.one_hot_taps, dtype=products.dtype)
        logits = ops.conv(products, taps, padding="same", data_format="channels_last")
        return logits + bias[:, None, None, :]

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "hidden_ratio": self.hidden_ratio,
        }


def _upsample_axis(inputs, axis):
    """Doubles one axis linearly so that its first and last samples keep their place."""
    size = inputs.shape[axis]
    index = np.arange(size)
    shape = [-1 if a == axis else 1 for a in range(4)]

    def weights(values):
        return ops.convert_to_tensor(
            np.reshape(values / (2 * size - 1), shape).astype("float32"), dtype=inputs.dtype
        )

    def part(start, stop):
        return inputs[tuple(slice(start, stop) if a == axis else slice(None) for a in range(4))]

    # output 2i lies i / (2n - 1) before input i, output 2i + 1 lies (n - 1 - i) / (2n - 1) behind
    before = ops.concatenate([part(0, 1), part(0, size - 1)], axis=axis)
    behind = ops.concatenate([part(1, size), part(size - 1, size)], axis=axis)
    even = inputs + weights(index) * (before - inputs)
    odd = inputs + weights(size - 1 - index) * (behind - inputs)
    doubled = ops.stack([even, odd], axis=axis + 1)
    shape = [-1, *inputs.shape[1:]]
    shape[axis] = 2 * size
    return ops.reshape(doubled, shape)


def _upsample_align_corners(inputs):
    return _upsample_axis(_upsample_axis(inputs, 1), 2)


@keras.saving.register_keras_serializable(PACKAGE)
class AlignCornersUpSampling(keras.layers.Layer):
    """Bilinear upsampling by 2; the corners keep their place and value, as in the authors' codes.

    Input: (batch, h, w, c). Output: (batch, 2 h, 2 w, c).
    """

    def call(self, inputs):
        return _upsample_align_corners(inputs)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, 2 * height, 2 * width, channels)


@keras.saving.register_keras_serializable(PACKAGE)
class UpConvBNReLU(keras.layers.Layer):
    """Bilinear upsampling by 2, 1x1 convolution without bias, batch normalization, ReLU.

    The convolution runs before the upsampling: both are linear and the interpolation acts on each
    channel alone, so the result is the same with a quarter of the multiplications.

    Args:
        filters: number of output channels.
        upsampling: "bilinear" (half-pixel centres, what devices compute) or "align_corners" (the
            authors').

    Input: (batch, h, w, c). Output: (batch, 2 h, 2 w, filters).
    """

    def __init__(self, filters: int, upsampling: str = "bilinear", **kwargs):
        super().__init__(**kwargs)
        self.filters = POSITIVE.check("filters", filters)
        self.upsampling = Choice(UPSAMPLINGS).check("upsampling", upsampling)
        self.conv = _conv(self, self.filters, 1, "conv", use_bias=False)
        self.norm = _norm(self, "norm")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, inputs, training=None):
        x = self.conv(inputs)
        if self.upsampling == "bilinear":
            size = (2 * inputs.shape[1], 2 * inputs.shape[2])
            # float32 goes in and comes out: TensorFlow resizes to float32 whatever goes in, while
            # XLA keeps float16 and then finds that the two disagree
            dtype = keras.backend.result_type(x.dtype, "float32")
            resized = ops.image.resize(
                ops.cast(x, dtype), size, "bilinear", data_format="channels_last"
            )
            x = ops.cast(resized, x.dtype)
        else:
            x = _upsample_align_corners(x)
        return ops.relu(self.norm(x, training=training))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, 2 * height, 2 * width, self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "upsampling": self.upsampling}
