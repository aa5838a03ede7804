"""Rounding weights to int8 so that their errors cancel on photos (GPTQ).

The nearest integer is the best rounding of one weight, not of a convolution: the inputs of its taps
are correlated, neighbouring pixels above all, so the error of one weight can be taken up by the
next ones. Source: Frantar et al., "GPTQ", ICLR 2023, algorithm 1, without its blocks.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.deploy.ranges import run_float
from ddunet_keras.litert.model import constant, operator_name

POSITIONS = 256
"""Positions of each feature map, on each photo, at which a convolution's inputs are looked at."""

DAMPING = 0.01
"""Added to the second moments' diagonal, as a share of its mean: they need an inverse."""


def round_weights(int8_model, float_model, float_data, images) -> None:
    """Rounds the weights of all convolutions anew, in place.

    The biases take up what rounding adds to each output in the mean.

    Args:
        int8_model: `ModelT` whose weights were rounded to the nearest; its scales stay.
        float_model, float_data: the float model of the same graph, and its file.
        images: uint8 (n, height, width, 3); 32 suffice.
    """
    (float_graph,) = float_model.subgraphs
    pairs = convolution_pairs(int8_model, float_model)
    seen = [[] for _ in pairs]
    for value in run_float(float_data, images):
        for patches, (_, original) in zip(seen, pairs, strict=True):
            kernel_size = float_graph.tensors[original.inputs[1]].shape[1:3]
            x = value(original.inputs[0])
            patches.append(patches_of(x, kernel_size, original.builtinOptions))
    for patches, (operator, original) in zip(seen, pairs, strict=True):
        weights = constant(float_model, float_graph, original.inputs[1])
        _round_convolution(int8_model, operator, weights, np.concatenate(patches))


def convolution_pairs(int8_model, float_model) -> list[tuple]:
    """Pairs of operators (int8, float) of all convolutions, by the names of their outputs."""
    (float_graph,) = float_model.subgraphs
    named = {float_graph.tensors[op.outputs[0]].name: op for op in float_graph.operators}
    pairs = []
    (graph,) = int8_model.subgraphs
    for operator in graph.operators:
        name = graph.tensors[operator.outputs[0]].name
        kind = operator_name(int8_model, operator)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and name in named:
            pairs.append((operator, named[name]))
    return pairs


def patches_of(x, kernel_size, options, count=POSITIONS) -> np.ndarray:
    """What a convolution sees at some positions, evenly spread.

    Args:
        x: (1, height, width, channels).
        kernel_size: (height, width).
        options: of the operator: padding, strides, dilation.
        count: number of positions; all where there are fewer.

    Returns:
        (positions, kernel height, kernel width, channels).
    """
    rates = getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)
    if options.padding == schema.Padding.SAME:
        beside = [rate * (side - 1) // 2 for side, rate in zip(kernel_size, rates, strict=True)]
        x = np.pad(x, ((0, 0), *((width, width) for width in beside), (0, 0)))
    span = [(side - 1) * rate + 1 for side, rate in zip(kernel_size, rates, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x[0], span, (0, 1))
    windows = windows[:: options.strideH, :: options.strideW, :, :: rates[0], :: rates[1]]
    rows, columns = windows.shape[:2]
    chosen = np.unique(np.linspace(0, rows * columns - 1, count).astype(int))
    return windows[chosen // columns, chosen % columns].transpose(0, 2, 3, 1)


def _round_convolution(int8_model, operator, weights, patches) -> None:
    """Rounds one convolution's weights, (filters, h, w, channels) or depthwise (1, h, w, c)."""
    (graph,) = int8_model.subgraphs
    scale = np.array(graph.tensors[operator.inputs[1]].quantization.scale)
    is_depthwise = operator_name(int8_model, operator) == "DEPTHWISE_CONV_2D"
    # to (groups, filters, taps) and (groups, positions, taps): each channel is a group of its own
    # in a depthwise convolution, all are one group in another
    if is_depthwise:
        w = weights.transpose(3, 0, 1, 2).reshape(len(scale), 1, -1)
        x = patches.transpose(3, 0, 1, 2).reshape(len(scale), len(patches), -1)
    else:
        w = weights.reshape(1, len(scale), -1)
        x = patches.reshape(1, len(patches), -1)
    w = w / scale.reshape(len(w), -1, 1)
    mean = x.mean(1, keepdims=True)
    x = x - mean
    moments = (x.transpose(0, 2, 1) @ x).astype("float64") / x.shape[1]
    rounded = gptq(w, moments)
    lost = ((w - rounded) @ mean.transpose(0, 2, 1)).ravel() * scale
    if is_depthwise:
        rounded = rounded.reshape(len(scale), *weights.shape[1:3], 1).transpose(3, 1, 2, 0)
    integers = np.ascontiguousarray(rounded.reshape(weights.shape), "int8")
    set_constant(int8_model, operator.inputs[1], integers)
    shift_bias(int8_model, operator, lost)


def gptq(weights, moments) -> np.ndarray:
    """Integers for weights, one tap after the other; the taps that follow take up its error.

    Args:
        weights: (groups, filters, taps), over their scale.
        moments: (groups, taps, taps), second central moments of the inputs.

    Returns:
        (groups, filters, taps), integers in [-127, 127].
    """
    taps = weights.shape[-1]
    damping = DAMPING * np.trace(moments, axis1=1, axis2=2) / taps + 1e-12
    damped = moments + damping[:, None, None] * np.eye(taps)
    factors = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    remaining = weights.copy()
    rounded = np.empty_like(weights)
    for tap in range(taps):
        rounded[..., tap] = np.clip(np.rint(remaining[..., tap]), -127, 127)
        error = (remaining[..., tap] - rounded[..., tap]) / factors[:, tap, tap, None]
        remaining[..., tap + 1 :] -= error[..., None] * factors[:, tap, None, tap + 1 :]
    return rounded


def set_constant(model, index, array) -> None:
    """Gives a constant tensor another value of its type; what shares its buffer keeps the old."""
    tensors = model.subgraphs[0].tensors
    users = sum(tensor.buffer == tensors[index].buffer for tensor in tensors)
    if users > 1:
        model.buffers.append(schema.BufferT())
        tensors[index].buffer = len(model.buffers) - 1
    model.buffers[tensors[index].buffer].data = np.frombuffer(array.tobytes(), np.uint8)


def shift_bias(model, operator, amount) -> None:
    """Adds to the int32 biases of a convolution.

    Args:
        amount: (filters,) or a number, in the unit of the output.
    """
    (graph,) = model.subgraphs
    index = operator.inputs[2]
    scale = np.array(graph.tensors[index].quantization.scale)
    bias = constant(model, graph, index) + np.rint(amount / scale)
    limits = np.iinfo(np.int32)
    set_constant(model, index, np.clip(bias, limits.min, limits.max).astype("<i4"))
