"""The graph that is converted: a trained `DDUNet` as plain layers with one image a batch.

Batch normalization is folded into the convolutions (exact at inference, Jacob et al., CVPR 2018,
section 3.2), deep supervision is cut off, and the dynamic head has a form that devices run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import keras
import numpy as np

from ddunet_keras.images import align_corners_matrix
from ddunet_keras.layers import DMSC
from ddunet_keras.model import DDUNet, _check_image_shape

HEADS = ("multiply", "matmul")
OUTPUTS = ("probability", "logits", "mask")
GRID = 4
"""Rows and columns of parts of a large map: their means stand for its mean. Each is rounded on its
own, and the layer behind adds them up before it rounds; one mean's rounding would move the logits
of a whole image. For a CPU a part is every 16th pixel, as XNNPACK has means but no pooling."""
JOINED = 32
"""Most channels of a residual block x + f(x) of the decoder that for a CPU has the sum in the
convolution in which f ends, by an identity for x: so many more products take less time than
XNNPACK's addition, and than to place the channels of two maps side by side. In a DMSC it saves half
a percent of the time and costs .2 points of MIoU."""
TOLERANCE = 1e-5
"""Largest difference of logits, over their range, that `check_graph` takes for rounding."""


def build_graph(
    model,
    size,
    *,
    head="multiply",
    output="probability",
    framework=keras,
    batch_size=1,
    centered=True,
    scales=None,
    dtype="float32",
):
    """Builds the flat graph of a trained model, with its weights.

    Args:
        model: a `DDUNet`.
        size: (height, width) of the input, multiples of 16; the weights fit every size.
        head: form of the dynamic head. "multiply": nine products of the map with a vector, each
            summed over the channels; runs everywhere. "matmul": one batched matrix product; faster
            and more accurate on a CPU, but Vela and the Edge TPU lack it. The rest then has the
            form for a CPU, too: see `GRID` and `JOINED`. A static head is a convolution in
            either case.
        output: "probability" (height, width, 1 or n), "logits", or "mask", whole numbers
            (height, width, 1): cloud is 1, or the index of the most probable class.
        framework: `keras`, or `tf_keras`, which tensorflow-model-optimization needs.
        batch_size: 1 for conversion, more for training.
        centered: whether the input is `pixel - 128` in [-128, 127], what deployed files take, or
            the model's own `pixel / 127.5 - 1`. The stem's kernel and bias make the difference;
            zeros that pad the border then mean 128 rather than 127.5.
        scales: factors of the channels of maps inside, from `equalization`; the output is the same.
        dtype: what it calculates in. The weights are rounded to float32 in any case.

    Returns:
        A functional model of Conv2D, DepthwiseConv2D, ZeroPadding2D, ReLU, Softmax, sigmoid,
        AveragePooling2D, GlobalAveragePooling2D, UpSampling2D, Reshape, Concatenate, Add and
        Multiply layers.

    Raises:
        ValueError: an argument has another value than those named here.

    Example:

    >>> model = DDUNet((32, 32, 3), base_channels=2)
    >>> build_graph(model, (32, 48)).output_shape
    (1, 32, 48, 1)
    """
    form = {"batch_size": batch_size, "centered": centered, "scales": scales, "dtype": dtype}
    return _assemble(model, size, head, output, framework=framework, **form)[0]


def equalization(model, images) -> dict[str, np.ndarray]:
    """Factors of the channels that bring all channels of a map to about the same range.

    An int8 map has one scale for all channels, and one whose values are small loses its bits. A
    factor on a channel, and its inverse where the map is read, changes nothing in float as ReLU and
    linear layers pass it on (Nagel et al., ICCV 2019, section 4.1; theirs comes from the weights,
    this one from the maps' ranges on photos).

    Args:
        model: a `DDUNet`.
        images: uint8 (n, height, width, 3), photos at the size of the network.

    Returns:
        `scales` for `build_graph`.
    """
    size, count = images.shape[1:3], min(8, len(images))
    graph, streams = _assemble(model, size, "multiply", "logits", batch_size=count)
    names = sorted({name for members in streams.values() for name, _ in members})
    maps = keras.Model(graph.input, [graph.get_layer(name).output for name in names])
    peaks = []
    for start in range(0, len(images) - count + 1, count):
        batch = images[start : start + count].astype("float32") - 128
        peaks.append([np.abs(y).max((1, 2)) for y in maps.predict_on_batch(batch)])
    peaks = dict(zip(names, map(np.concatenate, zip(*peaks, strict=True)), strict=True))
    scales = {}
    for stream, members in streams.items():
        ranges = [peaks[name][:, part].mean(0) for name, part in members]
        # a channel that is silent here may speak elsewhere: it is not raised without bound
        ranges = [np.maximum(r / max(r.max(), 1e-6), 1 / 32) for r in ranges]
        scale = np.exp(-np.mean(np.log(ranges), 0))
        # what is concatenated, be it bounded by ReLU6, then shares its range
        output, part = next((m for m in members if m[0] == stream), members[0])
        peak = np.quantile((scale * peaks[output][:, part]).max(1), 0.9)
        scales[stream] = scale * 6 / max(peak, 1e-6)
    return scales


def _assemble(
    model,
    size,
    head,
    output,
    *,
    framework=keras,
    batch_size=1,
    centered=True,
    scales=None,
    dtype="float32",
):
    """The graph, and where each stream of `scales` runs: layers and their channels."""
    height, width, _ = _check_image_shape((*size, 3))
    for name, value, known in (("head", head, HEADS), ("output", output, OUTPUTS)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")
    if not isinstance(model, DDUNet):
        raise ValueError(f"`model` must be a DDUNet. Received: {type(model).__name__}")
    build = _Builder(framework, model.upsampling, scales or {}, dtype, for_cpu=head == "matmul")
    image = build.layers.Input(batch_shape=(batch_size, height, width, 3), name="image")

    kernel, bias = _folded(model.get_layer("stem").conv, model.get_layer("stem").norm)
    if centered:  # pixel / 127.5 - 1 is (pixel - 128 + 0.5) / 127.5
        kernel, bias = kernel / 127.5, bias + 0.5 / 127.5 * kernel.sum((0, 1, 2))
    x = build.conv(_Map(image, ((None, 3),)), kernel, bias, "stem", "relu", stream="stem")
    skips = []
    for stage in range(1, 6):
        if stage > 1:
            x = build.conv_bn_relu(x, model.get_layer(f"down_{stage - 1}"))
        encoder = model.get_layer(f"encoder_{stage}")
        if isinstance(encoder, DMSC):
            # deep maps are small, and their many channels would make large kernels
            x = build.dmsc(x, encoder, parts=GRID if stage <= 2 else 1)
        else:
            x = build.conv_bn_relu(x, encoder)
        skips.append(x)
    before = None
    for stage in range(1, 5):
        x = build.up(x, model.get_layer(f"up_{stage}"), before)
        maps, joint = [x, skips[4 - stage]], f"concatenate_{stage}"
        if model.variant == "baseline":
            x, number = build.concatenate(maps, joint), 1
        else:
            x, number = build.residual(maps, model.get_layer(f"decoder_{stage}_1"), joint), 2
        # the last block ends in a 1x1 convolution, and the next stage begins with one
        block = model.get_layer(f"decoder_{stage}_{number}")
        x = build.depthwise(x, _folded(block.depthwise, block.depthwise_norm), block.name)
        before = _folded(block.pointwise, block.pointwise_norm)
    x = build.conv(x, *before, "decoder", stream="decoder")
    last = model.get_layer("head_1")
    if model.variant == "full":
        logits = build.dynamic_head(x, skips[0], last, head)
    else:
        logits = build.conv(x, *last.get_weights(), "logits")
    outputs = build.output(logits.tensor, output)
    return framework.Model(image, outputs, name="ddunet"), build.members


def check_graph(model, size, head, scales=None) -> float:
    """Compares the graph with the trained model, on smooth images and on noise.

    Both calculate in float64, as in float32 the rounding alone comes near the tolerance on large
    maps.

    Args:
        model, size, head, scales: as in `build_graph`.

    Returns:
        The largest difference of a logit, as a share of the logits' range.

    Raises:
        ValueError: it is more than `TOLERANCE`: the graph is not the model, and must not be used.
    """
    random = np.random.default_rng(0)
    shape = (1, *size, 3)
    smooth = np.cumsum(np.cumsum(random.normal(size=shape), 1), 2)
    images = [np.clip(smooth / np.abs(smooth).max() * 2, -1, 1), random.uniform(-1, 1, shape)]
    images = np.concatenate(images).astype("float32")
    own = np.array(model.resized((*size, 3), dtype="float64")(images, training=False))
    form = {"centered": False, "batch_size": 2, "scales": scales, "dtype": "float64"}
    graph = build_graph(model, size, head=head, output="logits", **form)
    ours = np.array(graph(images, training=False))
    difference = float(np.abs(own - ours).max() / max(np.ptp(own), 1e-6))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the deploy graph's logits differ from the model's by {difference:.1e} of their "
            f"range, more than {TOLERANCE:.0e}"
        )
    return difference


def _folded(conv, norm):
    """Kernel and bias of a convolution and the batch normalization behind it, as one."""
    kernel, *bias = (w.astype("float64") for w in conv.get_weights())
    gamma, beta, mean, variance = (w.astype("float64") for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    bias = (bias[0] if bias else 0) - mean
    if kernel.shape[-1] != len(scale):  # depthwise: (h, w, channels, 1)
        return kernel * scale[:, None], bias * scale + beta
    return kernel * scale, bias * scale + beta


def _chain(first, second):
    """Kernel and bias of two 1x1 convolutions, one behind the other without activation, as one."""
    (kernel, bias), (outer, offset) = first, second
    return kernel @ outer, bias @ outer[0, 0] + offset


@dataclass(frozen=True)
class _Map:
    """A tensor and, in order of its channels, the streams (name, channels) that it consists of.

    A stream is a set of channels that one factor each can run through; None takes no factor.
    """

    tensor: object
    streams: tuple


class _Layers:
    """A framework's layers, and some of our own, that calculate in a dtype."""

    def __init__(self, layers, dtype):
        self._layers, self._dtype = layers, dtype

    def __getattr__(self, name):
        return self.typed(getattr(self._layers, name))

    def typed(self, layer):
        return functools.partial(layer, dtype=self._dtype)


class _Builder:
    """Makes layers of one framework with given weights; blocks are named as in the model."""

    def __init__(self, framework, upsampling, scales, dtype, for_cpu):
        self.framework, self.layers = framework, _Layers(framework.layers, dtype)
        self.upsampling, self.scales, self.members = upsampling, scales, {}
        self.for_cpu = for_cpu

    def scale(self, x):
        """The factors of the map's channels."""
        return np.concatenate([self.scales.get(name, np.ones(n)) for name, n in x.streams])

    def record(self, x, name):
        """Notes that this layer's output is of the map's streams, and returns the map."""
        start = 0
        for stream, channels in x.streams:
            if stream is not None:
                part = slice(start, start + channels)
                self.members.setdefault(stream, []).append((name, part))
            start += channels
        return x

    def _weighted(self, layer, inputs, weights):
        outputs = layer(inputs)
        layer.set_weights([np.asarray(w, "float32") for w in weights])
        return outputs

    def conv(
        self,
        x,
        kernel,
        bias,
        name,
        activation=None,
        *,
        strides=1,
        padding="same",
        stream=None,
        fixed=False,
    ):
        filters = kernel.shape[-1]
        streams = stream if isinstance(stream, tuple) else ((stream, filters),)
        scale = self.scale(_Map(None, streams))
        weights = [kernel / self.scale(x)[:, None] * scale] + ([] if fixed else [bias * scale])
        inputs = x.tensor
        if strides > 1:  # on every side, as PyTorch and Paddle do
            inputs = self.layers.ZeroPadding2D(kernel.shape[0] // 2, name=f"{name}_pad")(inputs)
        layer = self.layers.Conv2D(
            filters,
            kernel.shape[:2],
            strides=strides,
            padding="valid" if strides > 1 else padding,
            use_bias=not fixed,
            activation=activation,
            trainable=not fixed,
            name=name,
        )
        return self.record(_Map(self._weighted(layer, inputs, weights), streams), name)

    def depthwise(self, x, weights, name, activation="relu6", stream=None, rate=1):
        kernel, bias = weights
        y = _Map(None, ((stream, len(bias)),))
        scale = self.scale(y)
        layer = self.layers.DepthwiseConv2D(
            3, padding="same", dilation_rate=rate, activation=activation, name=name
        )
        weights = [kernel * (scale / self.scale(x))[:, None], bias * scale]
        return _Map(self._weighted(layer, x.tensor, weights), y.streams)

    def dense(self, x, kernel, bias, name, activation=None):
        """A dense layer of the mean of what `average` gives."""
        rows, columns = x.tensor.shape[1:3]
        kernel = np.tile(kernel / (rows * columns), (rows, columns, 1, 1))
        return self.conv(x, kernel, bias, name, activation, padding="valid")

    def average(self, x, name, parts=GRID):
        """Means of the parts of a map, `parts` to each side: in int8 a mean has a scale of its own,
        and pooling has that of the map."""
        if parts == 1:
            layer = self.layers.GlobalAveragePooling2D(keepdims=True, name=name)
        elif self.for_cpu:
            _, height, width, channels = x.tensor.shape
            parts = parts**2
            shape = (1, height * width // parts, parts * channels)
            rows = self.layers.Reshape(shape, name=f"{name}_rows")(x.tensor)
            means = self.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_means")(rows)
            return _Map(self.layers.Reshape((parts, 1, channels), name=name)(means), x.streams)
        else:
            sides = [side // parts for side in x.tensor.shape[1:3]]
            layer = self.layers.AveragePooling2D(sides, name=name)
        return _Map(layer(x.tensor), x.streams)

    def halve(self, x, name):
        """Means of two by two pixels, which in int8 have a scale of their own."""
        y = _Map(None, ((name, x.tensor.shape[-1]),))
        layer = self.layers.DepthwiseConv2D(
            2, strides=2, use_bias=False, trainable=False, name=name
        )
        kernel = np.full((2, 2, 1, 1), 0.25) * (self.scale(y) / self.scale(x))[:, None]
        return self.record(_Map(self._weighted(layer, x.tensor, [kernel]), y.streams), name)

    def concatenate(self, maps, name):
        tensor = self.layers.Concatenate(name=name)([x.tensor for x in maps])
        return _Map(tensor, sum((x.streams for x in maps), ()))

    def add(self, x, y, name):
        return _Map(self.layers.Add(name=name)([x.tensor, y.tensor]), x.streams)

    def conv_bn_relu(self, x, block):
        weights = _folded(block.conv, block.norm)
        form = {"strides": block.strides, "stream": block.name}
        return self.conv(x, *weights, block.name, "relu", **form)

    def residual(self, maps, block, joint):
        """x + f(x), where x is the maps' concatenation, named `joint`."""
        name, channels = block.name, sum(x.tensor.shape[-1] for x in maps)
        kernel, bias = _folded(block.depthwise, block.depthwise_norm)
        outer, offset = _folded(block.pointwise, block.pointwise_norm)
        if self.for_cpu and channels <= JOINED:
            parts, start = [], 0
            for number, x in enumerate(maps, 1):
                part = slice(start, start := start + x.tensor.shape[-1])
                weights = kernel[:, :, part], bias[part]
                parts.append(self.depthwise(x, weights, f"{name}_depthwise_{number}"))
            x = self.concatenate([*maps, *parts], joint)
            outer = np.concatenate([np.eye(channels)[None, None], outer], 2)
            return self.conv(x, outer, offset, name, stream=sum((x.streams for x in maps), ()))
        x = self.concatenate(maps, joint)
        y = self.depthwise(x, (kernel, bias), f"{name}_depthwise")
        y = self.conv(y, outer, offset, f"{name}_pointwise", stream=x.streams)
        return self.record(self.add(x, y, name), name)

    def dmsc(self, x, block, parts):
        name, layers = block.name, self.layers
        weights = _folded(block.in_conv.conv, block.in_conv.norm)
        x = self.conv(x, *weights, f"{name}_in", "relu", stream=name)
        gate = self.average(x, f"{name}_average", parts)
        gate = self.dense(gate, *block.gate_1.get_weights(), f"{name}_gate_1", "relu")
        # softmax is the same without the mean, which would widen the range
        kernel, bias = (w - w.mean(-1, keepdims=True) for w in block.gate_2.get_weights())
        gate = self.dense(gate, kernel, bias, f"{name}_gate_2")
        gate = layers.Softmax(name=f"{name}_gate")(gate.tensor)
        split = layers.typed(_split(self.framework))
        gates = split(len(block.branches), name=f"{name}_gates")(gate)
        mixed, stream = None, f"{name}_mixed"
        for i, (conv, norm) in enumerate(zip(block.branches, block.branch_norms, strict=True)):
            form = {"activation": "relu", "stream": stream, "rate": conv.dilation_rate}
            y = self.depthwise(x, _folded(conv, norm), f"{name}_branch_{i}", **form)
            product = layers.Multiply(name=f"{name}_weighted_{i}")([y.tensor, gates[i]])
            y = _Map(product, y.streams)
            last = i + 1 == len(block.branches)
            mixed = self.add(mixed, y, stream if last else f"{stream}_{i}") if i else y
        self.record(mixed, stream)
        # mixed + residual(mixed) has one reader, a 1x1 convolution: one does for both
        residual = block.residual
        weights = _folded(residual.depthwise, residual.depthwise_norm)
        y = self.depthwise(mixed, weights, f"{name}_residual")
        own = _folded(block.out_conv, block.out_norm)
        kernel, bias = _chain(_folded(residual.pointwise, residual.pointwise_norm), own)
        y = self.concatenate([mixed, y], f"{name}_both")
        y = self.conv(y, np.concatenate([own[0], kernel], 2), bias, f"{name}_out", stream=x.streams)
        y = layers.ReLU(name=name)(self.add(x, y, f"{name}_add").tensor)
        return self.record(_Map(y, x.streams), name)

    def up(self, x, block, before):
        # the convolution and the interpolation commute: a quarter of the work
        name, weights = block.name, _folded(block.conv, block.norm)
        weights = weights if before is None else _chain(before, weights)
        x = self.conv(x, *weights, f"{name}_conv", stream=name)
        if self.upsampling == "bilinear":
            resize = self.layers.UpSampling2D(interpolation="bilinear", name=f"{name}_resize")
        else:
            resize = self.layers.typed(_align_corners(self.framework))(name=f"{name}_resize")
        x = _Map(self.layers.ReLU(name=name)(resize(x.tensor)), x.streams)
        return self.record(x, name)

    def dynamic_head(self, decoder, encoder, block, head):
        layers, name = self.layers, block.name
        averages = []
        for part, x in enumerate((decoder, encoder), 1):
            # pooling and concatenation keep the scale: without this, both maps would share theirs
            x = x if self.for_cpu else self.halve(x, f"{name}_half_{part}")
            averages.append(self.average(x, f"{name}_average_{part}"))
        averages = self.concatenate(averages, f"{name}_averages")
        hidden = self.dense(averages, *block.weight_1.get_weights(), f"{name}_weight_1", "relu")
        bias = self.dense(averages, *block.bias_1.get_weights(), f"{name}_bias_1", "relu")
        bias = self.dense(bias, *block.bias_2.get_weights(), f"{name}_bias_2")

        # the perceptron's outputs are (filters, channels, taps), in the authors' order
        channels, filters = block.channels, block.filters
        scale = self.scale(decoder)[:, None]
        kernel, offset = block.weight_2.get_weights()
        kernel = kernel.reshape(-1, filters, channels, 9) / scale
        offset = offset.reshape(filters, channels, 9) / scale
        if head == "matmul":
            kernel = kernel.transpose(0, 2, 3, 1).reshape(1, 1, len(kernel), -1)
            offset = offset.transpose(1, 2, 0).ravel()
            matrix = self.conv(hidden, kernel, offset, f"{name}_weight_2").tensor
            matrix = layers.Reshape((1, channels, 9 * filters), name=f"{name}_matrix")(matrix)
            _, height, width, _ = decoder.tensor.shape
            # TFLM computes a product whose left side has rank 3 wrongly
            rows = layers.Reshape((1, height * width, channels), name=f"{name}_rows")
            product = layers.typed(_matmul(self.framework))(name=f"{name}_products")
            taps = product([rows(decoder.tensor), matrix])
            taps = layers.Reshape((height, width, 9 * filters), name=f"{name}_taps")(taps)
        else:
            taps, ones = [], np.ones((1, 1, channels, 1))
            for tap, f in np.ndindex(9, filters):
                part = f"{name}_tap_{tap}_{f}"
                weight = (kernel[None, None, :, f, :, tap], offset[f, :, tap])
                weight = self.conv(hidden, *weight, f"{part}_weight")
                product = layers.Multiply(name=f"{part}_product")([decoder.tensor, weight.tensor])
                taps.append(
                    self.conv(_Map(product, ((None, channels),)), ones, None, part, fixed=True)
                )
            taps = self.concatenate(taps, f"{name}_taps").tensor
        taps = _Map(taps, ((None, 9 * filters),))
        shifted = self.conv(taps, block.one_hot_taps, None, f"{name}_sum", fixed=True)
        return self.add(shifted, bias, "logits")

    def output(self, logits, output):
        layers = self.layers
        if output == "logits":
            return logits
        if output == "mask":
            return _mask(self.framework)(name="mask")(logits)
        if logits.shape[-1] == 1:
            return layers.Activation("sigmoid", name="probability")(logits)
        return layers.Softmax(name="probability")(logits)


def _align_corners(framework):
    import tensorflow as tf

    class AlignCornersUpSampling2D(framework.layers.Layer):
        def call(self, inputs):
            height, width = inputs.shape[1:3]
            # the operator calculates in float32; not the model's own function, which is checked
            if inputs.dtype == tf.float64:
                rows, columns = (align_corners_matrix(n, 2 * n) for n in (height, width))
                return tf.einsum("yh,nhwc,xw->nyxc", rows, inputs, columns)
            size = [2 * height, 2 * width]
            return tf.raw_ops.ResizeBilinear(images=inputs, size=size, align_corners=True)

        def compute_output_shape(self, input_shape):
            batch, height, width, channels = input_shape
            return (batch, 2 * height, 2 * width, channels)

    return AlignCornersUpSampling2D


def _split(framework):
    import tensorflow as tf

    class Split(framework.layers.Layer):
        def __init__(self, parts, **kwargs):
            super().__init__(**kwargs)
            self.parts = parts

        def call(self, inputs):
            return tf.split(inputs, self.parts, axis=-1)

        def compute_output_shape(self, input_shape):
            return [(*input_shape[:-1], input_shape[-1] // self.parts)] * self.parts

        def get_config(self):
            return {**super().get_config(), "parts": self.parts}

    return Split


def _matmul(framework):
    import tensorflow as tf

    class MatMul(framework.layers.Layer):
        def call(self, inputs):
            return tf.matmul(*inputs)

        def compute_output_shape(self, input_shape):
            return (*input_shape[0][:-1], input_shape[1][-1])

    return MatMul


def _mask(framework):
    import tensorflow as tf

    class Mask(framework.layers.Layer):
        def call(self, inputs):
            if inputs.shape[-1] == 1:
                return tf.cast(inputs >= 0, "int8")
            return tf.cast(tf.argmax(inputs, -1, "int32")[..., None], "int8")

        def compute_output_shape(self, input_shape):
            return (*input_shape[:-1], 1)

    return Mask
