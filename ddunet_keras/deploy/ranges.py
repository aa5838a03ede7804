"""Which range of values each feature map gets in int8: observed on photos, then made to fit.

`tensor_ranges` runs the float file on the calibration photos and gives (low, high) for each
computed tensor. 256 integers lie between the two, so a range that is too wide wastes them and one
that is too narrow cuts values off. What is done, in this order:

1. `observe`: the range between two quantiles; wider where a tensor has few values in an image.
2. `propagate`: what an operator demands of its output: Softmax has a fixed range, logits need none
   beyond which the output no longer changes, pooling and reshaping keep the range of their input.
3. `ddunet_keras.deploy.scales`: scales with few binary digits, with which all kernels round alike.
4. `unite`: tensors that share a scale in the file share a range here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ddunet_keras.deploy.graph import GRID
from ddunet_keras.deploy.scales import exact_ranges, producers
from ddunet_keras.deploy.tensorflow_converter import quiet
from ddunet_keras.litert.model import operator_name, read_tflite
from ddunet_keras.litert.run import encode, invoke, make_interpreter

QUANTILE = 1e-5
"""Share of a tensor's values on the calibration photos that its range leaves out at each end. With
1e-4, photos of other cameras lost some: on 60 of them 0.25 to 0.4 % of the pixels agreed less. With
0, the extremes of single pixels cost all others their resolution."""

BINS = 4096
"""Bins of the histogram from which the quantiles are read."""

FEW_VALUES = GRID**2
"""Positions of a tensor, such as a grid of means, that are few in an image. A hundred photos will
not have shown its extremes."""

MARGIN = 1.4
"""By which the range of such a tensor is wider than what was seen. With 1, the 4-channel preset
lost 18 % of the pixels of some photos of other dates."""

OUTPUT_LIMITS = {"LOGISTIC": (-6.24, 6.24), "GREATER_EQUAL": (-1.0, 1.0)}
"""Last operator -> logits beyond which its output changes no more: by no step of 1/256, or not at
all."""

LEAST_SHARE = 1 / 1000
"""Least width of an output's range, over the widest of its inputs. A feature map that is always
zero has no scale, and kernels refuse one that is far below those of their inputs."""

SAME_SCALE = (
    "AVERAGE_POOL_2D",
    "MAX_POOL_2D",
    "PAD",
    "REDUCE_MAX",
    "RESHAPE",
    "RESIZE_NEAREST_NEIGHBOR",
    "SLICE",
    "SPLIT",
    "STRIDED_SLICE",
    "TRANSPOSE",
)
"""Operators whose output has the scale of their input."""

PASSING_ON = ("RESIZE_BILINEAR", "SLICE", "STRIDED_SLICE")
"""Operators that may stand between a head and what makes probabilities of logits."""

Ranges = dict[int, tuple[float, float]]


def tensor_ranges(float_data, images) -> Ranges:
    """The range of each computed tensor and of the input.

    Args:
        float_data: bytes of a float `.tflite` file of the deploy graph.
        images: uint8 (n, height, width, 3), calibration photos; some 200.

    Returns:
        index of a tensor -> (low, high), with low <= 0 <= high.
    """
    model = read_tflite(float_data)
    ranges = observe(model, float_data, images)
    propagate(model, ranges)
    return unite(model, exact_ranges(model, ranges))


def run_float(float_data, images) -> Iterator:
    """Runs a file on photos; yields for each a function: index of a tensor -> its value."""
    with quiet():
        interpreter = make_interpreter(float_data, reference=False, keep=True)
    dtype = interpreter.get_input_details()[0]["dtype"]
    for image in images:
        invoke(interpreter, [encode(image[None], dtype)])
        yield interpreter.get_tensor


# === 1. What the photos show ===


def observe(model, float_data, images) -> Ranges:
    """Each computed tensor's range between two quantiles of its values on the photos."""
    (graph,) = model.subgraphs
    computed = [index for operator in graph.operators for index in operator.outputs]
    extremes = _extremes(float_data, images, computed)
    counts = _histograms(float_data, images, extremes)
    ranges = {graph.inputs[0]: (-128.0, 127.0)}
    for index in computed:
        low, high = _between_quantiles(counts[index], *extremes[index])
        if math.prod(graph.tensors[index].shape[:-1]) <= FEW_VALUES:
            low, high = MARGIN * low, MARGIN * high
        always_zero = not extremes[index][1] > extremes[index][0]
        ranges[index] = (0.0, 1.0) if always_zero else (low, high)
    return ranges


def _extremes(float_data, images, computed) -> Ranges:
    low = dict.fromkeys(computed, 0.0)
    high = dict.fromkeys(computed, 0.0)
    for value in run_float(float_data, images):
        for index in computed:
            array = value(index)
            low[index] = min(low[index], float(array.min()))
            high[index] = max(high[index], float(array.max()))
    return {index: (low[index], high[index]) for index in computed}


def _histograms(float_data, images, extremes) -> dict[int, np.ndarray]:
    counts = {index: np.zeros(BINS, np.int64) for index in extremes}
    for value in run_float(float_data, images):
        for index, (low, high) in extremes.items():
            width = (high - low) / BINS or 1.0
            bins = ((value(index).ravel() - low) / width).astype("int32")
            counts[index] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    return counts


def _between_quantiles(counts, low, high) -> tuple[float, float]:
    share = np.cumsum(counts) / counts.sum()
    edges = np.linspace(low, high, BINS + 1)
    first, last = np.searchsorted(share, (QUANTILE, 1 - QUANTILE))
    return min(0.0, edges[first]), max(0.0, edges[last + 1])


# === 2. What the operators demand ===


def propagate(model, ranges) -> None:
    """Changes the ranges in place, operator by operator, to what each demands of its output."""
    (graph,) = model.subgraphs
    made_by = producers(graph)
    for operator in graph.operators:
        name = operator_name(model, operator)
        inputs = [ranges[index] for index in operator.inputs if index in ranges]
        output = operator.outputs[0]
        if name == "SOFTMAX":
            ranges[output] = 0.0, 255 / 256  # its scale is fixed
            continue
        if name in SAME_SCALE:
            ranges.update(dict.fromkeys(operator.outputs, inputs[0]))
        if name == "CONCATENATION":
            # `unite` gives its range to them: a feature map's is wider than its maximum's
            united = [*_kept_sources(model, made_by, operator, ranges), output]
            ranges[output] = (
                min(ranges[index][0] for index in united),
                max(ranges[index][1] for index in united),
            )
        if name in OUTPUT_LIMITS:
            _limit_logits(model, ranges, made_by, operator.inputs[0], OUTPUT_LIMITS[name])
        widths = [high - low for low, high in inputs]
        least = math.prod(widths) / 255 if name == "MUL" else max(widths) * LEAST_SHARE
        low, high = ranges[output]
        ranges[output] = low, max(high, low + least)


def _limit_logits(model, ranges, made_by, logits, limits) -> None:
    """Gives logits the range in which they matter; and the terms of the sum that they may be."""
    least, most = limits
    ranges[logits] = limits
    while operator_name(model, made_by[logits]) in PASSING_ON:
        logits = made_by[logits].inputs[0]
        ranges[logits] = limits
    if operator_name(model, made_by[logits]) != "ADD":
        return
    total, bias = made_by[logits].inputs  # of a dynamic head
    low, high = ranges[total]
    # the bias's margin lies beyond what was seen: it must not cut off the sum's confident logits
    bias_low, bias_high = (bound / MARGIN for bound in ranges[bias])
    ranges[total] = max(low, least - bias_high), min(high, most - bias_low)


def _kept_sources(model, made_by, concatenation, ranges) -> list[int]:
    """What parts of a concatenation are made of by operators that keep the scale."""
    makers = [made_by[index] for index in concatenation.inputs if index in ranges]
    kept = [maker for maker in makers if operator_name(model, maker) in SAME_SCALE]
    return [next(index for index in maker.inputs if index in ranges) for maker in kept]


# === 4. One range where the file has one scale ===


def unite(model, ranges) -> Ranges:
    """The ranges as TensorFlow's converter unites them where an operator has one scale."""
    (graph,) = model.subgraphs
    made_by = producers(graph)
    for operator in graph.operators:
        if operator_name(model, operator) == "CONCATENATION":
            parts = [index for index in operator.inputs if index in ranges]
            parts += _kept_sources(model, made_by, operator, ranges)
            ranges.update(dict.fromkeys(parts, ranges[operator.outputs[0]]))
    for operator in graph.operators:
        if operator_name(model, operator) in SAME_SCALE:
            source = next(index for index in operator.inputs if index in ranges)
            ranges.update(dict.fromkeys(operator.outputs, ranges[source]))
    return ranges
