"""Milliseconds for one photo on one CPU thread: what int8, packing and the dynamic head bring.

    python tools/benchmark_inference.py

Four forms of the network take turns, so that all of them meet the same state of the machine, and
the median of the rounds counts: the int8 file of target `cpu`, the same before its columns are
packed, that of the network with a static head (variant `dmsc`), and the float32 Keras model on
TensorFlow. Weights and images are random, which does not change the time. Leave the machine alone
while it runs. It printed, at 256 px on an AMD EPYC with AVX512-VNNI:

    int8, static head      10.6 ms   0.96 x as shipped
    int8, as shipped       11.0 ms   1.00 x as shipped
    float32 Keras          46.1 ms   4.18 x as shipped
"""

from __future__ import annotations

# ruff: noqa: I001  ddunet_keras comes before keras, as it sets how TensorFlow starts
import argparse
import statistics
import time
from collections.abc import Callable

from ddunet_keras import DDUNet
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import Stages, build_stages

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

CALIBRATION_IMAGES = 4
"""The ranges do not change the time, so a few images are enough."""

SHIPPED = "int8, as shipped"


def stages(variant: str, images: np.ndarray, base_channels: int) -> Stages:
    """The stages of a conversion of a network with random weights, for target `cpu`."""
    size = images.shape[1:3]
    model = DDUNet((*size, 3), base_channels, variant=variant, deep_supervision=False)
    return build_stages(model, images, ConversionConfig(size, target="cpu"))


def runner(data: bytes, image: np.ndarray) -> Callable[[], None]:
    """A function that runs a file on one image, on one thread."""
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    interpreter.set_tensor(index, (image[None].astype("int16") - 128).astype("int8"))
    return interpreter.invoke


def measure(forms: dict[str, Callable[[], object]], rounds: int, runs: int) -> dict[str, float]:
    """Median milliseconds of each form; in each round every form has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for run in forms.values():
        run()  # the first run allocates
    for _ in range(rounds):
        for name, run in forms.items():
            start = time.perf_counter()
            for _ in range(runs):
                run()
            seconds[name].append((time.perf_counter() - start) / runs)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=10, help="images of a round")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    shape = (CALIBRATION_IMAGES, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    dynamic = stages("full", images, options.base_channels)
    static = stages("dmsc", images, options.base_channels)
    float_model = DDUNet(shape[1:], options.base_channels, deep_supervision=False)
    inputs = images[:1] / np.float32(127.5) - np.float32(1)
    forms = {
        "int8, static head": runner(static.packed, images[0]),
        "int8, not packed": runner(dynamic.quantized, images[0]),
        SHIPPED: runner(dynamic.packed, images[0]),
        "float32 Keras": lambda: float_model.predict_on_batch(inputs),
    }
    milliseconds = measure(forms, options.rounds, options.runs)

    print(f"\n{options.size} px, base_channels={options.base_channels}, one thread")
    for name, value in milliseconds.items():
        print(f"{name:20} {value:8.1f} ms {value / milliseconds[SHIPPED]:6.2f} x as shipped")


if __name__ == "__main__":
    main()
