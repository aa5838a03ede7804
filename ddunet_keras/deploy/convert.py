"""From a trained network to a `.tflite` file that was verified: `convert`.

It reads as a compiler does. The trained model becomes one graph; the graph, one float model; the
float model, one int8 model; a list of passes rewrites that for its target; it is written once, and
verified against the stages before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddunet_keras import __version__
from ddunet_keras.deploy.bias_correction import center_threshold, correct_biases
from ddunet_keras.deploy.calibrate import Photos, evenly_spaced
from ddunet_keras.deploy.config import TFLM_TARGETS, ConversionConfig
from ddunet_keras.deploy.equalization import channel_factors
from ddunet_keras.deploy.export import with_label_file, write_c_array
from ddunet_keras.deploy.graph import build_graph, check_graph
from ddunet_keras.deploy.layer_errors import compare_layers, layers_to_markdown
from ddunet_keras.deploy.network_graph import build_network_graph, check_network_graph
from ddunet_keras.deploy.passes import fuse_relus, passes_for, widen_softmaxes
from ddunet_keras.deploy.qat import trained_weights
from ddunet_keras.deploy.ranges import tensor_ranges
from ddunet_keras.deploy.tensorflow_converter import convert_graph, quantize_with_ranges
from ddunet_keras.deploy.verify import Verification, verify
from ddunet_keras.files import (
    DataError,
    as_json,
    atomic_path,
    check_writable,
    write_json,
    write_text,
)
from ddunet_keras.litert.child import in_child
from ddunet_keras.litert.inspect import inspect_model
from ddunet_keras.litert.model import read_tflite, write_tflite
from ddunet_keras.litert.soundness import check_sound
from ddunet_keras.model import DDUNet

STATISTICS_PHOTOS = 64
"""Calibration photos for what is a mean over photos: equalization and bias correction."""

NETWORK_TARGETS = (*TFLM_TARGETS, "cpu")
"""Targets of networks other than DDUNet."""

COMPARED_PHOTOS = 4
"""Photos on which the layers are compared with `debug`."""


class ConversionError(DataError):
    """A conversion did not pass its checks, and no file was written.

    Attributes:
        verification: the `Verification` that says which check failed and where.
        layers: the error of each layer as text, or how to get it.
    """

    def __init__(self, message, verification, layers):
        super().__init__(message)
        self.verification = verification
        self.layers = layers


@dataclass(frozen=True)
class Stages:
    """A model on its way, as bytes of `.tflite` files.

    Attributes:
        float_model: the deploy graph, with float feature maps.
        quantized: the int8 model (or, for other precisions, the float one again).
        packed: rewritten for its target: what is delivered.
        graph_difference: of the deploy graph from the trained model, from `check_graph`.
    """

    float_model: bytes
    quantized: bytes
    packed: bytes
    graph_difference: float


def convert(
    model,
    photos: Photos,
    out,
    config: ConversionConfig,
    *,
    progress: Callable[[str], None] | None = None,
    about: dict | None = None,
) -> dict:
    """Converts, quantizes, fits into memory, verifies, reports and writes.

    Nothing is written unless every check holds: then `out`, and beside it `.json` and `.md` (the
    verification and the report of what the file costs) and `.png` (memory over the operators).

    Args:
        model: a trained `DDUNet`, or another network.
        photos: a `Photos` of `config.size`.
        out: a path that ends in `.tflite`.
        config: how to convert.
        progress: called with a line of text at each step, or None.
        about: further settings for the report, such as the model's name.

    Returns:
        What the `.json` holds: file, bytes, sha256, about, verification, report, layers.

    Raises:
        ConversionError: a check did not hold; its `verification` says which and where.
        TFLiteError: `config.ram` is less than can be reached.
        ValueError: `out` or the photos do not fit.
        WriteError: nothing can be written at `out` or `config.c_array`; found before the work.
    """
    out = Path(out)
    say = progress or (lambda line: None)
    if out.suffix != ".tflite":
        raise ValueError(f"`out` must end in .tflite. Received: {str(out)!r}")
    for suffix in (".tflite", ".json", ".md", ".png"):
        check_writable(out.with_suffix(suffix))
    if config.c_array:
        check_writable(config.c_array / "ddunet_model.h")
    for line in photos.left_out:
        say(f"left out: {line}")
    stages = build_stages(model, photos.calibration, config, say)
    check_sound(read_tflite(stages.packed))  # some networks ask more than int8 kernels do
    layers: list[dict] = []
    if config.debug:
        say("comparing each layer with the float model")
        few = photos.test[:COMPARED_PHOTOS]
        layers, _ = in_child(compare_layers, stages.quantized, stages.float_model, few)
    say(f"verifying on {len(photos.test)} photos")
    checked = verify(
        stages.packed,
        photos.test,
        photos.masks,
        float_predictor=model.resized((*config.size, 3), dtype="float32").predict_probabilities,
        unpacked=None if stages.packed == stages.quantized else stages.quantized,
        output=config.output,
        io=config.io,
    )
    if checked.failed:
        raise _refusal(out, checked, layers, config)
    say("measuring what it costs")
    report = inspect_model(
        stages.packed,
        latency=config.inspect,
        vela=config.inspect,
        tflm=config.inspect,
        name=out.name,
    )
    settings = {**(about or {}), **as_json(asdict(config)), **photos.about}
    settings["graph_difference"] = stages.graph_difference
    settings["left_out"] = list(photos.left_out)
    result = {
        "file": out.name,
        "bytes": len(stages.packed),
        "sha256": hashlib.sha256(stages.packed).hexdigest(),
        "ddunet_keras": __version__,
        "about": settings,
        "verification": checked.to_dict(),
        "report": report.to_dict(),
        "layers": layers,
    }
    _write(out, stages.packed, result, checked, report, config)
    return result


def build_stages(model, images, config: ConversionConfig, say=lambda line: None) -> Stages:
    """All that `convert` does to the model, before it is verified.

    Args:
        model: a trained `DDUNet`, or another network.
        images: uint8 (n, height, width, 3), calibration photos of `config.size`; some 200.
        config: how to convert.
        say: called with a line of text at each step.

    Raises:
        ValueError: the images do not fit, or the graph is not the model.
        TFLiteError: `config.ram` is less than can be reached.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (*config.size, 3) or not len(images):
        raise ValueError(
            f"`images` must be uint8 (n, {config.size[0]}, {config.size[1]}, 3). "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    if isinstance(model, DDUNet):
        graph, difference = _ddunet_graph(model, images, config, say)
    else:
        graph, difference = _network_graph(model, config, say)
    if config.precision == "int8":
        say(f"quantizing, calibrated on {len(images)} photos")
        float_data = convert_graph(graph)
        rewritten = quantized_model(float_data, images, config)
    else:
        say(f"converting to {config.precision}")
        float_data = convert_graph(graph, config.precision)
        rewritten = read_tflite(float_data)
    quantized = write_tflite(rewritten) if config.precision == "int8" else float_data
    passes = passes_for(config)
    for step in passes:
        say(step.name)
        rewritten = step.apply(rewritten, config)
    packed = write_tflite(rewritten) if passes else quantized
    if config.target == "android":
        packed = with_label_file(packed)
    return Stages(float_data, quantized, packed, difference)


def _ddunet_graph(model, images, config, say):
    """The deploy graph of a DDUNet with its final weights, and how far it is from the model."""
    say("equalizing channels, and comparing the deploy graph with the model")
    factors = channel_factors(model, evenly_spaced(images, STATISTICS_PHOTOS))
    difference = check_graph(model, config.size, config.form, factors)
    graph = build_graph(model, config.size, form=config.form, output=config.output, factors=factors)
    if config.trains:
        weights = trained_weights(model, config, images, factors, say)
        for name, values in weights.items():
            graph.get_layer(name).set_weights(values)
    return graph, difference


def _network_graph(model, config, say):
    """The same of another network, which is quantized as it is."""
    if config.trains or config.target not in NETWORK_TARGETS:
        raise ValueError(
            f"of networks other than DDUNet, {', '.join(NETWORK_TARGETS)} are targets, and "
            "--qat, --prune and --cluster are not there. "
            f"Received: {model.network}, target={config.target!r}"
        )
    say("comparing the deploy graph with the model")
    difference = check_network_graph(model, config.size)
    return build_network_graph(model, config.size, output=config.output), difference


def quantized_model(float_data, images, config: ConversionConfig):
    """Post-training quantization.

    Ranges come from the photos, weights are rounded to the nearest integer, and biases take up what
    that adds in the mean.

    Args:
        float_data: bytes of the deploy graph's float file.
        images: calibration photos.

    Returns:
        `ModelT` of the int8 file.
    """
    ranges = tensor_ranges(float_data, images)
    float_model = read_tflite(float_data)
    int8_model = read_tflite(quantize_with_ranges(float_model, ranges, config.io))
    widen_softmaxes(int8_model)
    few = evenly_spaced(images, STATISTICS_PHOTOS)
    correct_biases(int8_model, float_model, float_data, few)
    center_threshold(int8_model)
    if config.form == "xnnpack":
        fuse_relus(int8_model)
    return int8_model


def _refusal(out, checked, layers, config) -> ConversionError:
    first = checked.failed[0]
    detail = "; ".join(text for text in (first.detail, first.advice) if text)
    where = layers_to_markdown(layers) if config.debug else "--debug shows each layer's error"
    return ConversionError(f"{out} was not written; {first.name}: {detail}", checked, where)


def _write(out, data, result, checked: Verification, report, config) -> None:
    """The file and what belongs to it; the file stands only where all of it stands."""
    settings = ", ".join(f"{key} {value}" for key, value in result["about"].items() if value)
    parts = [f"# {out.name}", f"{settings}.", checked.to_markdown(), report.to_markdown()]
    if result["layers"]:
        parts.append(layers_to_markdown(result["layers"]))
    with atomic_path(out) as file:
        file.write_bytes(data)
        with atomic_path(out.with_suffix(".png")) as picture:  # takes longest
            report.plot(picture)
        if config.c_array:
            arena = None if checked.arena is None else checked.arena["total"]
            write_c_array(data, config.c_array, arena_bytes=arena, ram=config.ram)
        write_json(out.with_suffix(".json"), result)
        write_text(out.with_suffix(".md"), "\n\n".join(part.strip() for part in parts) + "\n")
