"""The deploy graph: a trained `DDUNet` as a few kinds of layers, for one image at a time.

It computes what the model computes, which `check_graph` proves before anything is converted. What
is different, each to save memory or time on the device:

- batch normalization is folded into the convolutions, and the heads of deep supervision are gone;
- a 1x1 convolution stands before the bilinear upsampling instead of behind it (they commute, as
  the weights of an interpolation sum to 1), and takes in the 1x1 convolution that ends the stage
  before: a quarter of the work, and half of the largest feature map;
- in DMSC, the last 1x1 convolution of the inverted residual, the residual sum and the 1x1
  convolution behind it are one convolution of both;
- the dynamic head is written as products that every device has, since no device runs a convolution
  whose kernel is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from ddunet_keras.deploy.builder import Features, GraphBuilder, chained, folded
from ddunet_keras.deploy.config import OUTPUTS
from ddunet_keras.deploy.framework_layers import align_corners_layer, mask_layer, matmul_layer
from ddunet_keras.layers import DMSC
from ddunet_keras.model import DDUNet
from ddunet_keras.settings import Choice

GRID = 4
"""Rows and columns of the grid of means that stands for the mean of a large feature map. Each mean
is rounded to int8 on its own, and the layer behind adds them up before it rounds. A single mean's
rounding would move the logits of the whole image."""

FINE_STAGES = 2
"""Encoder stages whose DMSC takes a grid of means. Deeper feature maps are small, and their many
channels would make the gate's kernel large."""

TOLERANCE = 1e-5
"""Largest difference of logits, over their range, that `check_graph` takes for rounding."""


@dataclass(frozen=True)
class GraphForm:
    """How the network is written down for a kind of device. The values are the same.

    Attributes:
        dynamic_head: "products" (nine products of the feature map with a vector, each summed over
            the channels: every device has these operators) or "matmul" (one batched matrix product:
            faster and more accurate, but Vela and the Edge TPU lack it).
        grid_means: "pooled" (means of rectangles, by AVERAGE_POOL_2D) or "interleaved" (means of
            every 16th pixel, by MEAN: XNNPACK has no int8 pooling).
        halved_head: whether the dynamic head's means are taken of feature maps that are halved
            first. Pooling and concatenation keep the scale, so without it both would share theirs.
        joined_channels: a residual block of the decoder with at most so many channels has its sum
            inside its last convolution, by an identity. On XNNPACK the added products take less
            time than an addition and than placing two feature maps side by side. (In DMSC it would
            save half a percent of the time and cost .2 points of MIoU.)
    """

    dynamic_head: str
    grid_means: str
    halved_head: bool
    joined_channels: int


FORMS = {
    "portable": GraphForm("products", "pooled", halved_head=True, joined_channels=0),
    "microcontroller": GraphForm("matmul", "pooled", halved_head=True, joined_channels=0),
    "xnnpack": GraphForm("matmul", "interleaved", halved_head=False, joined_channels=32),
}
"""Name -> form: "portable" for any microcontroller and NPU, "microcontroller" for the CPUs of those
whose kernels are known, "xnnpack" for LiteRT on larger ones."""


def build_graph(
    model,
    size,
    *,
    form="portable",
    output="probability",
    factors=None,
    framework=keras,
    batch_size=1,
    centered=True,
    dtype="float32",
):
    """Builds the deploy graph of a trained model, with its weights.

    Args:
        model: a `DDUNet`.
        size: (height, width) of the input, multiples of 16; the weights fit every size.
        form: a name in `FORMS`.
        output: "probability" (height, width, 1 or n), "logits", or "mask", integers
            (height, width, 1): cloud is 1, or the index of the most probable class.
        factors: of the channels of feature maps inside, from `channel_factors`; the output is the
            same.
        framework: `keras`, or `tf_keras`, which tensorflow-model-optimization needs.
        batch_size: 1 for conversion, more for training.
        centered: whether the input is `pixel - 128` in [-128, 127], as deployed files take it, or
            the model's own `pixel / 127.5 - 1`. The stem's kernel and bias make the difference;
            zeros that pad the border then mean 128 rather than 127.5.
        dtype: what it computes in. The weights are rounded to float32 in any case.

    Returns:
        A functional model of the framework.

    Raises:
        ValueError: an argument has another value than those named here.

    Example:

    >>> model = dd.DDUNet((32, 32, 3), base_channels=2)
    >>> build_graph(model, (32, 48)).output_shape
    (1, 32, 48, 1)
    """
    builder = GraphBuilder(framework, factors or {}, dtype)
    return assemble(builder, model, size, form, output, batch_size, centered)


def assemble(builder, model, size, form, output, batch_size=1, centered=True):
    """`build_graph` with a given `GraphBuilder`, whose `occurrences` it fills."""
    Choice(tuple(FORMS)).check("form", form)
    Choice(OUTPUTS).check("output", output)
    if not isinstance(model, DDUNet):
        raise ValueError(f"`model` must be a DDUNet. Received: {type(model).__name__}")
    if any(side < 16 or side % 16 for side in size):
        raise ValueError(f"`size` must be multiples of 16. Received: size={size!r}")
    network = _Network(builder, model, FORMS[form])
    image = builder.layers.Input(batch_shape=(batch_size, *size, 3), name="image")
    skips = network.encoder(network.stem(image, centered))
    decoded = network.decoder(skips)
    logits = network.head(decoded, skips[0])
    return builder.framework.Model(image, network.answer(logits, output), name="ddunet")


def check_graph(model, size, form, factors=None) -> float:
    """Compares the deploy graph with the trained model, on a smooth image and on noise.

    Both compute in float64: in float32 the rounding alone comes near the tolerance on large feature
    maps.

    Args:
        model, size, form, factors: as in `build_graph`.

    Returns:
        The largest difference of a logit, as a share of the logits' range.

    Raises:
        ValueError: it is more than `TOLERANCE`: the graph is not the model, and must not be used.
    """
    random = np.random.default_rng(0)
    shape = (1, *size, 3)
    smooth = np.cumsum(np.cumsum(random.normal(size=shape), 1), 2)
    smooth = np.clip(smooth / np.abs(smooth).max() * 2, -1, 1)
    noise = random.uniform(-1, 1, shape)
    images = np.concatenate([smooth, noise]).astype("float32")
    own = np.array(model.resized((*size, 3), dtype="float64")(images, training=False))
    settings = {"centered": False, "batch_size": len(images), "dtype": "float64"}
    graph = build_graph(model, size, form=form, output="logits", factors=factors, **settings)
    return check_difference(own, np.array(graph(images, training=False)))


def check_difference(own, ours) -> float:
    """The largest difference of the graph's logits from the model's, as a share of their range.

    Raises:
        ValueError: it is more than `TOLERANCE`: the graph is not the model, and must not be used.
    """
    difference = float(np.abs(own - ours).max() / max(np.ptp(own), 1e-6))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the deploy graph's logits differ from the model's by {difference:.1e} of their "
            f"range, more than {TOLERANCE:.0e}"
        )
    return difference


class _Network:
    """The blocks of a `DDUNet`, written with a `GraphBuilder` in a `GraphForm`."""

    def __init__(self, builder, model, form):
        self.builder = builder
        self.model = model
        self.form = form

    # === Encoder ===

    def stem(self, image, centered) -> Features:
        block = self.model.get_layer("stem")
        kernel, bias = folded(block.conv, block.norm)
        if centered:
            # pixel / 127.5 - 1 is (pixel - 128 + 0.5) / 127.5
            bias = bias + 0.5 / 127.5 * kernel.sum((0, 1, 2))
            kernel = kernel / 127.5
        pixels = Features(image, ((None, 3),))
        return self.builder.conv(pixels, kernel, bias, "stem", "relu", groups="stem")

    def encoder(self, x) -> list[Features]:
        """The feature maps of the five stages, the largest first."""
        stages = []
        for number in range(1, 6):
            if number > 1:
                x = self.builder.conv_bn_relu(x, self.model.get_layer(f"down_{number - 1}"))
            block = self.model.get_layer(f"encoder_{number}")
            if isinstance(block, DMSC):
                x = self.dmsc(x, block, parts=GRID if number <= FINE_STAGES else 1)
            else:
                x = self.builder.conv_bn_relu(x, block)
            stages.append(x)
        return stages

    def dmsc(self, x, block, parts) -> Features:
        build, name = self.builder, block.name
        x = build.conv(
            x, *folded(block.in_conv.conv, block.in_conv.norm), f"{name}_in", "relu", groups=name
        )
        gates = self.gates(x, block, parts)
        mixed = self.gated_branches(x, block, gates)
        residual = block.residual
        depthwise = folded(residual.depthwise, residual.depthwise_norm)
        y = build.depthwise(mixed, *depthwise, f"{name}_residual")
        # out_conv(mixed + pointwise(y)): one convolution of mixed and y does all of it
        out = folded(block.out_conv, block.out_norm)
        kernel, bias = chained(folded(residual.pointwise, residual.pointwise_norm), out)
        both = build.concatenate([mixed, y], f"{name}_both")
        both_kernel = np.concatenate([out[0], kernel], 2)
        y = build.conv(both, both_kernel, bias, f"{name}_out", groups=x.groups)
        return build.record(build.relu(build.add(x, y, f"{name}_add"), name), name)

    def gates(self, x, block, parts) -> list:
        """One weight for each branch of a DMSC, (batch, 1, 1, 1) each."""
        build, name = self.builder, block.name
        gate = self.means(x, f"{name}_average", parts)
        gate = build.dense(gate, *block.gate_1.get_weights(), f"{name}_gate_1", "relu")
        # softmax is the same without the mean, which would only widen the range
        kernel, bias = (w - w.mean(-1, keepdims=True) for w in block.gate_2.get_weights())
        gate = build.dense(gate, kernel, bias, f"{name}_gate_2")
        gate = build.layers.Softmax(name=f"{name}_gate")(gate.tensor)
        return build.split(gate, len(block.branches), f"{name}_gates")

    def gated_branches(self, x, block, gates) -> Features:
        """The sum of the branches of a DMSC, each times its gate."""
        build, name = self.builder, block.name
        group = f"{name}_mixed"
        last = len(block.branches) - 1
        mixed = None
        for i, (conv, norm) in enumerate(zip(block.branches, block.branch_norms, strict=True)):
            branch = build.depthwise(
                x,
                *folded(conv, norm),
                f"{name}_branch_{i}",
                "relu",
                group,
                dilation_rate=conv.dilation_rate,
            )
            multiply = build.layers.Multiply(name=f"{name}_weighted_{i}")
            weighted = Features(multiply([branch.tensor, gates[i]]), branch.groups)
            if mixed is None:
                mixed = weighted
            else:
                mixed = build.add(mixed, weighted, group if i == last else f"{group}_{i}")
        return build.record(mixed, group)

    # === Decoder ===

    def decoder(self, skips) -> Features:
        """The feature map of full size, from the encoder's five."""
        build, model = self.builder, self.model
        x = skips[4]
        pending = None
        for stage in range(1, 5):
            x = self.upsample(x, model.get_layer(f"up_{stage}"), pending)
            both, joint = [x, skips[4 - stage]], f"concatenate_{stage}"
            if model.variant == "baseline":
                x = build.concatenate(both, joint)
                block = model.get_layer(f"decoder_{stage}_1")
            else:
                x = self.residual(both, model.get_layer(f"decoder_{stage}_1"), joint)
                block = model.get_layer(f"decoder_{stage}_2")
            x = build.depthwise(x, *folded(block.depthwise, block.depthwise_norm), block.name)
            # the block ends in a 1x1 convolution, and the next stage begins with one
            pending = folded(block.pointwise, block.pointwise_norm)
        kernel, bias = folded(block.pointwise, block.pointwise_norm)
        return build.conv(x, kernel, bias, "decoder", groups="decoder")

    def upsample(self, x, block, pending) -> Features:
        """The 1x1 convolution, chained behind a pending one where there is one, then upsampling."""
        build, name = self.builder, block.name
        own = folded(block.conv, block.norm)
        kernel, bias = own if pending is None else chained(pending, own)
        x = build.conv(x, kernel, bias, f"{name}_conv", groups=name)
        if self.model.upsampling == "bilinear":
            resize = build.layers.UpSampling2D(interpolation="bilinear", name=f"{name}_resize")
        else:
            resize = build.layers.typed(align_corners_layer(build.framework))(name=f"{name}_resize")
        x = Features(resize(x.tensor), x.groups)
        return build.record(build.relu(x, name), name)

    def residual(self, features, block, joint) -> Features:
        """x + f(x), where x is the concatenation of `features`, and its layer is named `joint`."""
        build, name = self.builder, block.name
        depthwise = folded(block.depthwise, block.depthwise_norm)
        pointwise = folded(block.pointwise, block.pointwise_norm)
        if len(depthwise[1]) <= self.form.joined_channels:
            return self.joined_residual(features, depthwise, pointwise, name, joint)
        x = build.concatenate(features, joint)
        y = build.depthwise(x, *depthwise, f"{name}_depthwise")
        y = build.conv(y, *pointwise, f"{name}_pointwise", groups=x.groups)
        return build.record(build.add(x, y, name), name)

    def joined_residual(self, features, depthwise, pointwise, name, joint) -> Features:
        """`residual` whose last convolution reads x as well, and adds it by an identity."""
        build = self.builder
        kernel, bias = depthwise
        parts, start = [], 0
        for number, x in enumerate(features, 1):
            stop = start + x.tensor.shape[-1]
            part_kernel, part_bias = kernel[:, :, start:stop], bias[start:stop]
            part_name = f"{name}_depthwise_{number}"
            parts.append(build.depthwise(x, part_kernel, part_bias, part_name))
            start = stop
        everything = build.concatenate([*features, *parts], joint)
        outer, offset = pointwise
        outer = np.concatenate([np.eye(start)[None, None], outer], 2)
        groups = tuple(group for x in features for group in x.groups)
        return build.conv(everything, outer, offset, name, groups=groups)

    # === Heads ===

    def head(self, decoded, skip):
        """Logits, (batch, height, width, 1 or n)."""
        block = self.model.get_layer("head_1")
        if self.model.variant == "full":
            return self.dynamic_head(decoded, skip, block).tensor
        kernel, bias = block.get_weights()
        return self.builder.conv(decoded, kernel, bias, "logits").tensor

    def dynamic_head(self, decoded, skip, block) -> Features:
        """DWBG: nine values for each pixel, one for each tap, and their shifted sum plus a bias.

        The convolution with the generated kernel K is a sum over the taps: sum_t shift_t(K_t x).
        So each pixel's channels are multiplied by the nine K_t first, and a fixed 3x3 convolution
        of ones at the right places shifts and adds.
        """
        build, name = self.builder, block.name
        means = []
        for number, x in enumerate((decoded, skip), 1):
            if self.form.halved_head:
                x = build.halve(x, f"{name}_half_{number}")
            means.append(self.means(x, f"{name}_average_{number}", GRID))
        means = build.concatenate(means, f"{name}_averages")
        hidden = build.dense(means, *block.weight_1.get_weights(), f"{name}_weight_1", "relu")
        bias = build.dense(means, *block.bias_1.get_weights(), f"{name}_bias_1", "relu")
        bias = build.dense(bias, *block.bias_2.get_weights(), f"{name}_bias_2")

        # the perceptron gives (filters, channels, taps), in the authors' order
        filters, channels = block.filters, block.channels
        factors = build.factors_of(decoded.groups)[:, None]
        kernel, offset = block.weight_2.get_weights()
        kernel = kernel.reshape(-1, filters, channels, 9) / factors
        offset = offset.reshape(filters, channels, 9) / factors
        if self.form.dynamic_head == "matmul":
            taps = self.taps_by_matmul(decoded, hidden, kernel, offset, name)
        else:
            taps = self.taps_by_products(decoded, hidden, kernel, offset, name)
        taps = Features(taps, ((None, 9 * filters),))
        shifted = build.conv(taps, block.one_hot_taps, None, f"{name}_sum")
        return build.add(shifted, bias, "logits")

    def taps_by_matmul(self, decoded, hidden, kernel, offset, name):
        build, layers = self.builder, self.builder.layers
        filters, channels, _ = offset.shape
        generator = kernel.transpose(0, 2, 3, 1).reshape(1, 1, len(kernel), -1)
        generator_bias = offset.transpose(1, 2, 0).ravel()
        matrix = build.conv(hidden, generator, generator_bias, f"{name}_weight_2").tensor
        matrix = layers.Reshape((1, channels, 9 * filters), name=f"{name}_matrix")(matrix)
        _, height, width, _ = decoded.tensor.shape
        # of rank 4: TFLM computes a product whose left side has rank 3 wrongly
        rows = layers.Reshape((1, height * width, channels), name=f"{name}_rows")(decoded.tensor)
        product = layers.typed(matmul_layer(build.framework))(name=f"{name}_products")
        taps = product([rows, matrix])
        return layers.Reshape((height, width, 9 * filters), name=f"{name}_taps")(taps)

    def taps_by_products(self, decoded, hidden, kernel, offset, name):
        build, layers = self.builder, self.builder.layers
        filters, channels, _ = offset.shape
        channel_sum = np.ones((1, 1, channels, 1))
        taps = []
        for tap in range(9):
            outputs = []
            for output in range(filters):
                part = f"{name}_tap_{tap}_{output}"
                generator = kernel[None, None, :, output, :, tap]
                weight = build.conv(hidden, generator, offset[output, :, tap], f"{part}_weight")
                multiply = layers.Multiply(name=f"{part}_product")
                product = Features(multiply([decoded.tensor, weight.tensor]), ((None, channels),))
                outputs.append(build.conv(product, channel_sum, None, part))
            # tap by tap, as TFLM concatenates at most ten tensors
            taps.append(build.concatenate(outputs, f"{name}_tap_{tap}"))
        return build.concatenate(taps, f"{name}_taps").tensor

    def means(self, x, name, parts) -> Features:
        """The mean of a feature map, or a grid of means that stands for it."""
        if parts == 1:
            return self.builder.global_mean(x, name)
        if self.form.grid_means == "interleaved":
            return self.builder.interleaved_means(x, name, parts)
        return self.builder.pooled_means(x, name, parts)

    def answer(self, logits, output):
        layers = self.builder.layers
        if output == "logits":
            return logits
        if output == "mask":
            return mask_layer(self.builder.framework)(name="mask")(logits)
        if logits.shape[-1] == 1:
            return layers.Activation("sigmoid", name="probability")(logits)
        return layers.Softmax(name="probability")(logits)
