"""What each step of post-training quantization brings, on photos that tuned nothing.

    python tools/quantization_steps.py ddunet_c8 --size 128 --data DATA --also DATA2 SPLIT2 \\
        --score NAME=FOLDER ... [--file STEP=FILE.tflite ...]

Converts the model four times, each time with one step more: TensorFlow's converter with a
representative dataset and nothing else; cross-layer equalization; our ranges and scales; bias
correction.
Each file runs on LiteRT with XNNPACK. Printed are, for each set of photos, the share of the pixels
in which its masks agree with the float model's (mean, and the worst photo), and accuracy and MIoU
less the float model's, percentage points, means over images at the network's size.

`--score` names a set: a folder of images and masks. What DATA's split tests is always scored.
`--file` scores a file that was made elsewhere, such as one of an earlier version.
docs/deploy.md has the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ddunet_keras import DDUNet, Split, make_split, open_dataset
from ddunet_keras.deploy.calibrate import evenly_spaced, labelled_photos
from ddunet_keras.deploy.config import TARGETS, ConversionConfig
from ddunet_keras.deploy.convert import STATISTICS_PHOTOS, quantized_model
from ddunet_keras.deploy.equalization import channel_factors
from ddunet_keras.deploy.graph import build_graph
from ddunet_keras.deploy.ranges import tensor_ranges
from ddunet_keras.deploy.scoring import labels_of, probabilities, score_labels
from ddunet_keras.deploy.tensorflow_converter import (
    convert_graph,
    quantize_with_ranges,
    quiet,
)
from ddunet_keras.images import resize_image, resize_labels
from ddunet_keras.litert.model import read_tflite, write_tflite
from ddunet_keras.litert.run import run_litert


def steps(model, images, config):
    """Yields (name, file): each file with one step more than the one before."""
    form = {"form": config.form}
    yield (
        "TensorFlow's converter alone",
        by_tensorflow(build_graph(model, config.size, **form), images),
    )
    factors = channel_factors(model, evenly_spaced(images, STATISTICS_PHOTOS))
    graph = build_graph(model, config.size, factors=factors, **form)
    yield "+ equalization", by_tensorflow(graph, images)
    float_data = convert_graph(graph)
    ranges = tensor_ranges(float_data, images)
    yield "+ ranges", quantize_with_ranges(read_tflite(float_data), ranges, "int8")
    yield "+ bias correction", write_tflite(quantized_model(float_data, images, config))


def by_tensorflow(graph, images) -> bytes:
    """The int8 file of TensorFlow's converter with a representative dataset."""
    import tensorflow as tf

    signature = tf.TensorSpec(graph.input_shape, tf.float32)
    function = tf.function(lambda image: graph(image, training=False), autograph=False)
    with quiet():
        function = function.get_concrete_function(signature)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        converter.representative_dataset = lambda: (
            [image[None].astype("float32") - 128] for image in images
        )
        return converter.convert()


def photos_of(folder, size):
    """Images and labels of a whole folder, at the network's size."""
    dataset = open_dataset(folder)
    pairs = [dataset.load(sample) for sample in dataset]
    images = np.stack([resize_image(image, size) for image, _ in pairs])
    return images, np.stack([resize_labels(labels, size) for _, labels in pairs])


def row(name, data, images, masks, floats) -> str:
    """A line of the table."""
    raw = run_litert(data, images, reference=False)
    found = score_labels(floats, labels_of(probabilities(data, raw)), masks)
    worst = min(found["agreement_by_image"])
    figures = [f"{found['agreement']:.2f}", f"{worst:.1f}"]
    figures += [f"{found[key]['difference']:+.2f}" for key in ("accuracy", "miou", "cloud_cover")]
    figures.append(f"{found['cloud_cover']['mean_absolute_difference']:.2f}")
    return f"| {name} | " + " | ".join(figures) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a preset")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--target", choices=tuple(TARGETS), default="tflm")
    parser.add_argument("--data", type=Path, required=True, help="that the model was trained on")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("DATA", "SPLIT"))
    parser.add_argument("--score", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--file", action="append", default=[], metavar="STEP=FILE")
    parser.add_argument("--files-alone", action="store_true", help="convert nothing")
    arguments = parser.parse_args()
    config = ConversionConfig((arguments.size, arguments.size), target=arguments.target)
    model = DDUNet.from_preset(arguments.model, (*config.size, 3), deep_supervision=False)
    dataset = open_dataset(arguments.data)
    also = [(open_dataset(folder), Split.load(split)) for folder, split in arguments.also]
    photos = labelled_photos(dataset, make_split(dataset), config.size, verify=0, also=also)
    sets = {"date": (photos.test, photos.masks)}
    for other, split in also:
        pairs = [other.load(other.find(name)) for name in split.test]
        images = np.stack([resize_image(image, config.size) for image, _ in pairs])
        labels = np.stack([resize_labels(mask, config.size) for _, mask in pairs])
        sets[other.root.name] = images, labels
    for text in arguments.score:
        name, folder = text.split("=", 1)
        sets[name] = photos_of(folder, config.size)
    floats = {
        name: labels_of(np.stack([model.predict_probabilities(image) for image in images]))
        for name, (images, _) in sets.items()
    }
    files = [text.split("=", 1) for text in arguments.file]
    found = [(name, Path(path).read_bytes()) for name, path in files]
    if not arguments.files_alone:
        found = [*steps(model, photos.calibration, config), *found]
    for name, (images, masks) in sets.items():
        print(f"\n{arguments.model}, {arguments.size} px, {len(images)} photos of {name}\n")
        print("| step | agree, % | worst | accuracy | MIoU | cover | cover, absolute |")
        print("|---|---|---|---|---|---|---|")
        for step, data in found:
            print(row(step, data, images, masks, floats[name]), flush=True)


if __name__ == "__main__":
    main()
