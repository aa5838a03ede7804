"""Milliseconds for one image on one CPU thread, in one run: what the dynamic head and int8 bring.

    python tools/benchmark_inference.py

The `cpu` file of DDUNet as shipped, the same network with a static head (variant `dmsc`), both int8
on LiteRT with XNNPACK, and the float32 Keras model on TensorFlow take turns; the median of the
rounds counts. Random weights and images: neither changes the time. Leave the machine alone while it
runs.
"""

from __future__ import annotations

# ruff: noqa: I001  ddunet_keras comes before keras, as it sets how TensorFlow starts
import argparse
import statistics
import time

from ddunet_keras import DDUNet
from ddunet_keras.litert.columns import merge_columns
from ddunet_keras.deploy.convert import TARGETS
from ddunet_keras.deploy.quantize import quantize

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter


def litert(model, size, images):
    """A function that runs the int8 `cpu` file of `model` on one image."""
    data = quantize(model, size, images, head=TARGETS["cpu"].head, output="probability")
    interpreter = Interpreter(model_content=merge_columns(data), num_threads=1)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    interpreter.set_tensor(index, (images[:1].astype("int16") - 128).astype("int8"))
    return interpreter.invoke


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=10, help="images of a round")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    size = (options.size, options.size)
    images = np.random.default_rng(0).integers(0, 256, (4, *size, 3)).astype("uint8")
    full = DDUNet((*size, 3), options.base_channels, deep_supervision=False)
    static = DDUNet((*size, 3), options.base_channels, variant="dmsc")
    inputs = images[:1] / np.float32(127.5) - np.float32(1)
    forms = {
        "int8, static head": litert(static, size, images),
        "int8, as shipped": litert(full, size, images),
        "float32 Keras": lambda: full.predict_on_batch(inputs),
    }
    seconds = {name: [] for name in forms}
    for run in forms.values():
        run()
    for _ in range(options.rounds):
        for name, run in forms.items():
            start = time.perf_counter()
            for _ in range(options.runs):
                run()
            seconds[name].append((time.perf_counter() - start) / options.runs)
    median = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    base = median["int8, as shipped"]
    print(f"\n{options.size} px, base_channels={options.base_channels}, one thread")
    for name, value in median.items():
        print(f"{name:20} {value:8.1f} ms {value / base:6.2f} x as shipped")
    print(f"dynamic over static head: {base / median['int8, static head']:.2f}")


if __name__ == "__main__":
    main()
