"""Biases that take up what rounding the weights adds to each output in the mean.

A weight w becomes the integer r of its scale s, and the output of a convolution is off by
(w - s r) x. The errors of single inputs cancel in a sum over many pixels; their mean does not: a
feature map behind a ReLU has no negative values, so its mean is far from zero. The means of the
inputs are known from photos, so the mean error is known, and is added to the bias. Source: Nagel et
al., ICCV 2019, section 4.2.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.deploy.ranges import PASSING_ON, run_float
from ddunet_keras.deploy.scales import producers
from ddunet_keras.litert.model import constant, operator_name


def correct_biases(int8_model, float_model, float_data, images) -> None:
    """Changes the biases of all convolutions, in place.

    Args:
        int8_model: `ModelT` whose weights are rounded.
        float_model, float_data: the float model of the same graph, and its file.
        images: uint8 (n, height, width, 3); some 64.
    """
    pairs = _convolution_pairs(int8_model, float_model)
    sources = {original.inputs[0] for _, original in pairs}
    means = _channel_means(float_data, images, sources)
    (graph,), (float_graph,) = int8_model.subgraphs, float_model.subgraphs
    for operator, original in pairs:
        weights = constant(float_model, float_graph, original.inputs[1])
        error = weights - _dequantized(int8_model, graph, operator)
        mean = means[original.inputs[0]]
        if operator_name(int8_model, operator) == "DEPTHWISE_CONV_2D":
            lost = error[0].sum((0, 1)) * mean  # (height, width, channels)
        else:
            lost = error.sum((1, 2)) @ mean  # (filters, height, width, channels)
        _shift_bias(int8_model, operator, lost)


def center_threshold(int8_model) -> None:
    """Moves the logits of two classes down by half an integer, in place.

    A pixel is cloud where its integer is at least that of logit zero. Rounding to the nearest would
    give it everything from half an integer below, and so a little too much cloud, always.
    """
    (graph,) = int8_model.subgraphs
    made_by = producers(graph)
    for operator in graph.operators:
        if operator_name(int8_model, operator) in ("LOGISTIC", "GREATER_EQUAL"):
            logits = operator.inputs[0]
            producer = made_by[logits]
            while operator_name(int8_model, producer) in PASSING_ON:
                producer = made_by[producer.inputs[0]]
            if operator_name(int8_model, producer) == "ADD":  # a dynamic head's sum and bias
                producer = made_by[producer.inputs[0]]
            scale = graph.tensors[logits].quantization.scale[0]
            _shift_bias(int8_model, producer, -scale / 2)


def _convolution_pairs(int8_model, float_model) -> list[tuple]:
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


def _channel_means(float_data, images, tensors) -> dict[int, np.ndarray]:
    """Tensor -> (channels,): mean over positions and photos. What pads the border is left out."""
    totals: dict[int, np.ndarray] = {index: np.zeros(1) for index in tensors}
    for value in run_float(float_data, images):
        for index in tensors:
            totals[index] = totals[index] + value(index).mean((0, 1, 2), dtype="float64")
    return {index: total / len(images) for index, total in totals.items()}


def _dequantized(model, graph, operator) -> np.ndarray:
    """The rounded weights as the kernel computes with them, in the float weights' shape."""
    tensor = graph.tensors[operator.inputs[1]]
    scale = np.asarray(tensor.quantization.scale, "float64")
    shape = np.ones(len(tensor.shape), int)
    shape[tensor.quantization.quantizedDimension] = -1
    return constant(model, graph, operator.inputs[1]) * scale.reshape(shape)


def _shift_bias(model, operator, amount) -> None:
    """Adds (filters,), in the unit of the output, to the int32 biases of a convolution."""
    (graph,) = model.subgraphs
    tensor = graph.tensors[operator.inputs[2]]
    scale = np.asarray(tensor.quantization.scale)
    bias = constant(model, graph, operator.inputs[2]) + np.rint(amount / scale)
    limits = np.iinfo(np.int32)
    changed = np.clip(bias, limits.min, limits.max).astype("<i4")
    # a buffer of its own: equal biases share one
    model.buffers.append(schema.BufferT(np.frombuffer(changed.tobytes(), np.uint8)))
    tensor.buffer = len(model.buffers) - 1
