"""Trains a model on, so that rounding its feature maps to int8 moves its logits less.

    python tools/train_for_int8.py DATA MODEL.keras OUT.keras --with-validation --also DATA2 SPLIT2

About half of the pixels that int8 decides otherwise than float lie in a shift of the logits of a
whole photo, as the maps of a smooth sky are rounded alike everywhere. Quantization-aware training
has to follow a float model that is as it is. Here the float model itself changes: rounded with a
random phase for each image and channel, its maps shall give the same logits, and unrounded ones
the logits that they gave before. Masks are not needed, batch normalization keeps its averages.
OUT is written after each epoch.
"""

from __future__ import annotations

# ruff: noqa: I001  ddunet_keras comes before keras, as it sets how TensorFlow starts
import argparse
import itertools
import sys
from pathlib import Path

from ddunet_keras import (
    RECIPES,
    Augmentation,
    DataError,
    Pipeline,
    Split,
    load_model,
    make_split,
    open_dataset,
)
from ddunet_keras.data.datasets import Mixture
from ddunet_keras.files import first_line
from ddunet_keras.layers import DMSC, DWBG

import keras
import numpy as np
from keras import ops

LOGIT_LIMIT = 6.24
"""Beyond it a probability changes by less than 1/512: an int8 file gives 0 or 1 there."""

MILD = Augmentation(
    crop=0.8,
    brightness=0.05,
    contrast=0.1,
    channel_gain=0.04,
    saturation=0.1,
    gamma=1.1,
    other_camera=0,
    black_outside=0,
)
"""Near to the photos, as the model's own logits are the targets."""

RANGE_BATCHES = 12
"""Batches that the ranges of activations are taken from."""

NARROWEST = 1 / 32
"""Least range of a channel over the layer's widest: quantization does not resolve it better."""


class Rounding(keras.layers.Layer):
    """Rounds each channel to multiples of its scale, from a random phase on; the gradient passes.

    Args:
        scales: one for each channel.
    """

    def __init__(self, scales, **kwargs):
        super().__init__(**kwargs)
        self.scales = np.asarray(scales, "float32")
        self.random = keras.random.SeedGenerator(0)

    def call(self, inputs):
        shape = (ops.shape(inputs)[0], 1, 1, len(self.scales))
        phase = keras.random.uniform(shape, seed=self.random)
        rounded = (ops.round(inputs / self.scales + phase) - phase) * self.scales
        return inputs + ops.stop_gradient(rounded - inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


def channel_ranges(layers, model, images):
    """Range of each channel of each layer's output: name -> (channels,).

    The lowest and highest values are means over the images, as one odd image shall not count.
    """
    inside = keras.Model(model.inputs[0], [layer.output for layer in layers])
    lowest = {layer.name: [] for layer in layers}
    highest = {layer.name: [] for layer in layers}
    for batch in images:
        for layer, values in zip(layers, inside(batch, training=False), strict=True):
            values = ops.convert_to_numpy(values)
            lowest[layer.name].append(values.min(axis=(1, 2)).mean(axis=0))
            highest[layer.name].append(values.max(axis=(1, 2)).mean(axis=0))
    ranges = {}
    for name in lowest:
        low = np.minimum(np.mean(lowest[name], axis=0), 0)
        high = np.maximum(np.mean(highest[name], axis=0), 0)
        ranges[name] = np.maximum(high - low, NARROWEST * (high - low).max() + 1e-6)
    return ranges


def rounded(model, images, noise):
    """The model, on the same layers, with all feature maps rounded.

    Args:
        model: a `DDUNet`.
        images: batches of inputs, which show the ranges of the activations.
        noise: the scale in 1/255 of a channel's range; behind a DMSC, which rounds several
            feature maps inside, twice as much.
    """
    unrounded = (keras.layers.InputLayer, DWBG)  # the photo, and the logits
    layers = [layer for layer in model.layers if not isinstance(layer, unrounded)]
    scales = {}
    for layer in layers:
        factor = 2 if isinstance(layer, DMSC) else 1
        scales[layer.name] = factor * noise / 255
    for name, width in channel_ranges(layers, model, images).items():
        scales[name] = scales[name] * width

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        return Rounding(scales[layer.name])(outputs) if layer.name in scales else outputs

    return keras.models.clone_model(model, clone_function=lambda x: x, call_function=call)


class Robust(keras.Model):
    """Trains `model`; predicts nothing.

    The loss is the Kullback-Leibler divergence from the logits' first probabilities, and `weight`
    times that which the rounding brings, to second order.
    """

    def __init__(self, model, teacher, noisy, weight):
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.noisy = noisy
        self.weight = weight
        teacher.trainable = False
        self.drift = keras.metrics.Mean("drift")
        self.noise = keras.metrics.Mean("noise")

    def call(self, inputs, training=None):
        # without training: batch normalization keeps its averages, and so the deployed network
        networks = (self.teacher, self.model, self.noisy)
        return [keras.tree.flatten(network(inputs, training=False)) for network in networks]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        truths, outputs, moved_outputs = y_pred
        drift = 0.0
        for weight, truth, logits in zip(
            RECIPES["default"].aux_weights, truths, outputs, strict=False
        ):
            truth = ops.clip(truth, -LOGIT_LIMIT, LOGIT_LIMIT)
            drift += weight * ops.mean(_entropy(truth, logits) - _entropy(truth, truth))
        logits, moved = outputs[0], moved_outputs[0]
        share = ops.sigmoid(logits)
        curvature = ops.stop_gradient(share * (1 - share))
        noise = ops.mean(curvature * ops.square(moved - logits)) / 2
        self.drift.update_state(drift)
        self.noise.update_state(noise)
        return drift + self.weight * noise


def _entropy(truth, logits):
    return ops.softplus(logits) - ops.sigmoid(truth) * logits


def train(model, pipeline, out, *, epochs, learning_rate, noise, weight):
    """Trains a two-class `DDUNet` on, and writes it after each epoch; returns Keras's history."""
    teacher = keras.models.clone_model(model)
    teacher.set_weights(model.get_weights())
    steps = pipeline.steps
    some = itertools.islice(pipeline.data(), min(RANGE_BATCHES, steps))
    noisy = rounded(model, [images for images, _ in some], noise)
    network = Robust(model, teacher, noisy, weight)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, (epochs - 1) * steps), warmup_target=learning_rate, warmup_steps=steps
    )
    network.compile(keras.optimizers.Adam(rate))
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: model.save(out))
    return network.fit(
        pipeline.data(),
        steps_per_epoch=steps,
        epochs=epochs,
        shuffle=False,  # the pipeline does
        callbacks=[keep],
        verbose=2,
    )


def open_pipeline(options, size):
    """Photos of the training parts of all data sets that are named."""
    datasets = [open_dataset(options.data)]
    splits = [make_split(datasets[0], options.protocol, 0)]
    if options.with_validation:
        splits = [splits[0].with_validation()]
    for folder, path in options.also:
        datasets.append(open_dataset(folder))
        splits.append(Split.load(path))
        splits[-1].check(datasets[-1])
    names = [(index, name) for index, split in enumerate(splits) for name in split.train]
    return Pipeline(Mixture(*datasets), names, size, augmentation=MILD)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path, help=".keras file of two classes")
    parser.add_argument("out", type=Path, help=".keras file")
    parser.add_argument("--protocol", default="date", help="paper, capture or date")
    parser.add_argument("--with-validation", action="store_true", help="train on that part as well")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("DATA", "SPLIT"))
    parser.add_argument("--size", type=int, default=128, help="multiple of 16")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument(
        "--learning-rate", type=float, default=5e-4, help="4 channels need less: 2e-4"
    )
    parser.add_argument("--noise", type=float, default=2.6, help="scale in 1/255 of a range")
    parser.add_argument("--weight", type=float, default=10, help="of the rounding's loss")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix != ".keras":
            raise DataError(f"{options.out}: the name of the trained model must end in .keras")
        model = load_model(options.model)
        if model.num_classes != 2:
            raise DataError(f"{options.model}: has {model.num_classes} classes; 2 were expected")
        size = (options.size, options.size)
        model = model.resized((*size, 3), deep_supervision=len(model.outputs) > 1)
        train(
            model,
            open_pipeline(options, size),
            options.out,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            noise=options.noise,
            weight=options.weight,
        )
    except (DataError, ValueError) as error:
        parser.exit(2, f"error: {first_line(error)}\n")


if __name__ == "__main__":
    sys.exit(main())
