"""Drops from a model what no device reads: smaller files, fewer persistent allocations."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import single_subgraph
from ddunet_keras.litert.model import constant

KEPT_METADATA = b"min_runtime_version"


def strip_names(model: schema.ModelT) -> None:
    """Drops from a model, in place, what no device reads; equal constants become one.

    What goes: names other than those of the inputs, the outputs and the signature; ranges seen in
    calibration; unused tensors, operator kinds and buffers; all metadata but the runtime's version.
    Zero biases, shapes and the like that are equal in value, shape and scale share one tensor.

    Raises:
        TFLiteError: the model has several subgraphs.
    """
    graph = single_subgraph(model)
    _share_constants(model, graph)
    _drop_unused_tensors(model, graph)
    _drop_names(model, graph)
    _drop_unused_operator_kinds(model, graph)
    model.metadata = [entry for entry in model.metadata if entry.name == KEPT_METADATA]
    _share_buffers(model, graph)


def _share_constants(model, graph):
    """Has operators read the first of all equal constants."""
    first_of, shared = {}, {}
    for index, tensor in enumerate(graph.tensors):
        value = constant(model, graph, index)
        if value is not None:
            key = (tensor.type, value.shape, value.tobytes(), _quantization_key(tensor))
            shared[index] = first_of.setdefault(key, index)
    for operator in graph.operators:
        operator.inputs = [shared.get(index, index) for index in operator.inputs]


def _quantization_key(tensor):
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return None
    points = quantization.zeroPoint
    points = b"" if points is None else np.asarray(points).tobytes()
    return np.asarray(quantization.scale).tobytes(), points, quantization.quantizedDimension


def _drop_unused_tensors(model, graph):
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        used.update(operator.inputs, operator.outputs)
    left_out = -1  # an optional input
    kept = sorted(used - {left_out})
    new_index = {old: new for new, old in enumerate(kept)} | {left_out: left_out}
    for part in (graph, *graph.operators):
        part.inputs = [new_index[index] for index in part.inputs]
        part.outputs = [new_index[index] for index in part.outputs]
    graph.tensors = [graph.tensors[index] for index in kept]

    entries = []
    for signature in model.signatureDefs:
        entries += (signature.inputs or []) + (signature.outputs or [])
    if all(entry.tensorIndex in new_index for entry in entries):
        for entry in entries:
            entry.tensorIndex = new_index[entry.tensorIndex]
    else:
        model.signatureDefs = []


def _drop_names(model, graph):
    named = {*graph.inputs, *graph.outputs}
    for index, tensor in enumerate(graph.tensors):
        if index not in named:
            tensor.name = None
        tensor.shapeSignature = None
        if tensor.quantization is not None:
            tensor.quantization.min = None
            tensor.quantization.max = None
    graph.name = None
    model.description = None
    model.metadataBuffer = None


def _drop_unused_operator_kinds(model, graph):
    kinds = sorted({operator.opcodeIndex for operator in graph.operators})
    for operator in graph.operators:
        operator.opcodeIndex = kinds.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[kind] for kind in kinds]


def _share_buffers(model, graph):
    """Gives equal contents one buffer. The first buffer is the empty one, as the format asks."""
    buffers, index_of = [schema.BufferT()], {}
    for part in (*graph.tensors, *model.metadata):
        data = model.buffers[part.buffer].data
        content = b"" if data is None else bytes(data)
        if content and content not in index_of:
            index_of[content] = len(buffers)
            buffers.append(schema.BufferT(np.frombuffer(content, np.uint8)))
        part.buffer = index_of[content] if content else 0
    model.buffers = buffers
