"""Cross-layer equalization: factors that bring the channels of a feature map to one range.

An int8 feature map has one scale for all of its channels, so a channel whose values are small has
few integers left for them. A positive factor on a channel, and its inverse where the channel is
consumed, changes nothing in float (see `ddunet_keras.deploy.builder`). Source: Nagel et al., ICCV
2019, section 4.1. Their factors come from the weights' ranges; these come from the ranges of the
feature maps on photos, which is what int8 has to hold.
"""

from __future__ import annotations

import keras
import numpy as np

from ddunet_keras.deploy.builder import GraphBuilder
from ddunet_keras.deploy.graph import assemble

BATCH = 8
"""Photos that are run at once."""

QUIETEST = 1 / 32
"""A channel's range, over that of the largest in its feature map, below which it is not raised
further: a channel that is silent on these photos may speak on others."""

COMMON_RANGE = 6.0
"""What every group's range becomes: that of a ReLU6, which cannot be chosen. Feature maps that are
concatenated then share their range."""

RANGE_QUANTILE = 0.9
"""A group's range is this quantile, over the photos, of its largest value."""


def channel_factors(model, images) -> dict[str, np.ndarray]:
    """The factors of every group of channels.

    Args:
        model: a `DDUNet`.
        images: uint8 (n, height, width, 3), photos at the size of the network; some 64.

    Returns:
        `factors` for `build_graph`: name of a group -> (channels,), positive.
    """
    count = min(BATCH, len(images))
    builder = GraphBuilder(keras, {}, "float32")
    graph = assemble(builder, model, images.shape[1:3], "portable", "logits", count)
    peaks = _channel_peaks(graph, builder.occurrences, images, count)
    return {
        group: _factors(group, occurrences, peaks)
        for group, occurrences in builder.occurrences.items()
    }


def _channel_peaks(graph, occurrences, images, count) -> dict[str, np.ndarray]:
    """Layer -> (photos, channels): largest absolute value of each channel on each photo."""
    names = sorted({layer for places in occurrences.values() for layer, _ in places})
    feature_maps = keras.Model(graph.input, [graph.get_layer(name).output for name in names])
    peaks: dict[str, list] = {name: [] for name in names}
    for start in range(0, len(images) - count + 1, count):
        batch = images[start : start + count].astype("float32") - 128
        for name, values in zip(names, feature_maps.predict_on_batch(batch), strict=True):
            peaks[name].append(np.abs(values).max((1, 2)))
    return {name: np.concatenate(found) for name, found in peaks.items()}


def _factors(group, occurrences, peaks) -> np.ndarray:
    """One factor for each channel of a group, by its range wherever it occurs."""
    logarithms = []
    for layer, channels in occurrences:
        ranges = peaks[layer][:, channels].mean(0)
        relative = ranges / max(ranges.max(), 1e-6)
        logarithms.append(np.log(np.maximum(relative, QUIETEST)))
    factors = np.exp(-np.mean(logarithms, 0))
    own = [place for place in occurrences if place[0] == group]
    layer, channels = own[0] if own else occurrences[0]
    largest = (factors * peaks[layer][:, channels]).max(1)
    return factors * COMMON_RANGE / max(np.quantile(largest, RANGE_QUANTILE), 1e-6)
