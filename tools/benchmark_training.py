"""Images trained per second: DDUNet as shipped against a plain Keras form of it, in one run.

    python tools/benchmark_training.py

The plain form is the same network with Keras's own batch normalization and static heads. All train
in turns on the same random images, float32, 160 px, batch 16 unless told otherwise; the median of
the rounds counts. Leave the machine alone while it runs.
"""

from __future__ import annotations

# ruff: noqa: I001  ddunet_keras comes before keras, as it sets how TensorFlow starts
import argparse
import statistics
import time

from ddunet_keras import RECIPES, layers
from ddunet_keras import model as network
from ddunet_keras.training import build_training

import keras
import numpy as np


class StaticHead(keras.layers.Layer):
    """What stands for `DWBG`: a 3x3 convolution whose weights are the same for every image."""

    def __init__(self, filters, hidden_ratio, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(filters, 3, padding="same", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.conv.build(input_shape[0])

    def call(self, inputs):
        return self.conv(inputs[0])


def keras_batch_norm(**kwargs):
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs)


def make_step(batch_norm, head, size, batch_size, base_channels):
    """A function that trains DDUNet, made with these two, on one batch."""
    shipped = layers.FusedBatchNormalization, network.DWBG
    layers.FusedBatchNormalization, network.DWBG = batch_norm, head
    try:
        model = network.DDUNet((size, size, 3), base_channels)
    finally:
        layers.FusedBatchNormalization, network.DWBG = shipped
    model.compile(**RECIPES["default"].compile_arguments(model, steps_per_epoch=100))
    build_training(model)
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch_size, size, size, 3)).astype("float32")
    labels = random.integers(2, size=(batch_size, size, size)).astype("uint8")
    return lambda: model.train_on_batch(images, labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    options = parser.parse_args()
    fused, dynamic = layers.FusedBatchNormalization, network.DWBG
    plain = "Keras batch norm, static heads"
    forms = {
        "as shipped": (fused, dynamic),
        "Keras batch norm, dynamic heads": (keras_batch_norm, dynamic),
        plain: (keras_batch_norm, StaticHead),
    }
    steps = {}
    for name, form in forms.items():
        print(f"preparing: {name}", flush=True)
        steps[name] = make_step(*form, options.size, options.batch_size, options.base_channels)
        steps[name]()
    seconds = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                step()
            seconds[name].append(time.perf_counter() - start)
    images = options.steps * options.batch_size
    speeds = {name: images / statistics.median(times) for name, times in seconds.items()}
    backend = keras.backend.backend()
    print(f"\n{backend}, {options.size} px, batch {options.batch_size}, float32")
    for name, speed in speeds.items():
        print(f"{name:32} {speed:7.1f} images/s {speed / speeds[plain]:6.2f}")


if __name__ == "__main__":
    main()
