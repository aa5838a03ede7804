"""The passes that rewrite an int8 model for its target, in their order.

Each works on the parsed model and gives it, or another, back. What the model computes stays the
same, bit for bit, which `ddunet_keras.deploy.verify` proves on the reference kernels. `fuse_relus`
and `widen_softmaxes` are none of `PASSES`: they come before that comparison, as the one changes
what XNNPACK rounds, and without the other nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.deploy.config import TFLM_TARGETS, ConversionConfig
from ddunet_keras.deploy.export import set_mediapipe_metadata
from ddunet_keras.litert.columns import merge_columns
from ddunet_keras.litert.cost import CORES
from ddunet_keras.litert.dilation import plain_depthwise
from ddunet_keras.litert.esp_nn import ESP32_S3
from ddunet_keras.litert.memory import HOST
from ddunet_keras.litert.model import add_constant, add_operator, add_tensor, operator_name
from ddunet_keras.litert.schedule import fit_memory
from ddunet_keras.litert.shapes import MAX_SOFTMAX


@dataclass(frozen=True)
class Pass:
    """One rewriting of a model.

    Attributes:
        name: what it does, for the progress line.
        needs: what the model must be.
        changes: what is different afterwards.
        targets: the names in `TARGETS` that have it.
        apply: (model, config) -> model.
        int8_only: whether files with float feature maps go without it.
    """

    name: str
    needs: str
    changes: str
    targets: tuple[str, ...]
    apply: Callable[[schema.ModelT, ConversionConfig], schema.ModelT]
    int8_only: bool = True


def fuse_relus(model) -> None:
    """Makes each RELU the activation of a sum with zero, in place.

        x ── RELU ── y     becomes     x ── ADD(zero, activation RELU) ── y

    XNNPACK has no int8 RELU, and leaves it to a kernel that is 20 times slower.
    """
    (graph,) = model.subgraphs
    additions = [op for op in graph.operators if operator_name(model, op) == "ADD"]
    if not additions:  # an operator code for ADD is in every deploy graph with a RELU
        return
    for operator in graph.operators:
        if operator_name(model, operator) != "RELU":
            continue
        (source,) = operator.inputs
        quantization = schema.QuantizationParametersT()
        quantization.scale = graph.tensors[source].quantization.scale
        quantization.zeroPoint = [0]
        zero = add_constant(model, graph, np.zeros(1, np.int8), quantization)
        graph.tensors[zero].name = b"zero"
        operator.opcodeIndex = additions[0].opcodeIndex
        operator.inputs = [source, zero]
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
        operator.builtinOptions = schema.AddOptionsT()
        operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU


def widen_softmaxes(model) -> None:
    """Gives each SOFTMAX over more values than int8 kernels take an output of int16, in place.

    x ── SOFTMAX ── y     becomes     x ── SOFTMAX ── int16 ── QUANTIZE ── y
    """
    (graph,) = model.subgraphs
    for place, operator in reversed(list(enumerate(graph.operators))):
        if operator_name(model, operator) != "SOFTMAX":
            continue
        (result,) = operator.outputs
        shape = graph.tensors[result].shape
        if shape[-1] <= MAX_SOFTMAX["int8"]:
            continue
        wide = add_tensor(graph, result, shape)
        quantization = schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = [2.0**-16], [-(2**15)]  # as LiteRT asks
        graph.tensors[wide].type = schema.TensorType.INT16
        graph.tensors[wide].quantization = quantization
        operator.outputs = [wide]
        graph.operators.insert(place + 1, add_operator(model, "QUANTIZE", [wide], [result]))


def _fit_memory(model, config):
    runtime = ESP32_S3 if config.target == "esp32s3" else HOST
    return fit_memory(model, config.ram, runtime)


def _plain_depthwise(model, config):
    if config.target == "esp32s3":
        plain_depthwise(model, CORES["esp32-s3"], batched=True)
    else:
        plain_depthwise(model, CORES["cortex-m55"], batched=False)
    return model


def _merge_columns(model, config):
    merge_columns(model)
    return model


def _set_metadata(model, config):
    set_mediapipe_metadata(model)
    return model


PASSES = (
    Pass(
        "writing dilated convolutions as plain ones",
        "one subgraph with fixed shapes",
        "dilated depthwise convolutions work on feature maps that were taken apart, where that "
        "pays by the table of costs",
        ("cortex-m", "esp32s3"),
        _plain_depthwise,
    ),
    Pass(
        "ordering the operators and planning the arena",
        "one subgraph with fixed shapes",
        "names go; operators stand in the order that keeps the fewest bytes alive; the place of "
        "each tensor is planned; with `ram`, the largest stages are computed in strips; for "
        "esp32s3, with room for ESP-NN's scratch memory",
        TFLM_TARGETS,
        _fit_memory,
    ),
    Pass(
        "merging columns of narrow feature maps",
        "one subgraph with fixed shapes, batch 1",
        "convolutions of few channels compute several neighbouring columns at once, which fills "
        "XNNPACK's lanes; what stands behind a Softmax waits for it; names go",
        ("android", "cpu"),
        _merge_columns,
    ),
    Pass(
        "adding MediaPipe's metadata",
        "a segmenter of RGB images with uint8 or float32 input",
        "the file says how its input is normalized and what its classes are called",
        ("android",),
        _set_metadata,
        int8_only=False,
    ),
)


def passes_for(config) -> list[Pass]:
    """The passes that a conversion has."""
    return [
        step
        for step in PASSES
        if config.target in step.targets and (config.precision == "int8" or not step.int8_only)
    ]
