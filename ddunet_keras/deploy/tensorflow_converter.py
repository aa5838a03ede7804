"""The two calls of TensorFlow's converter: a graph to a float file, a float file to an int8 one."""

from __future__ import annotations

import contextlib
import logging
import warnings

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.files import silence
from ddunet_keras.litert.model import operator_name, write_tflite


@contextlib.contextmanager
def quiet():
    """Silences what the converter, LiteRT and TensorFlow say on the standard streams."""
    with silence(1, 2), without_warnings():
        yield


@contextlib.contextmanager
def without_warnings():
    """Silences Python's warnings and TensorFlow's loggers; what is printed is printed."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def convert_graph(graph, weights="float32") -> bytes:
    """A `.tflite` file with float input and output.

    Args:
        graph: from `build_graph`, of Keras or tf_keras.
        weights: "float32", or "float16" for weights of half the size.
    """
    import tensorflow as tf

    signature = tf.TensorSpec(graph.input_shape, tf.float32)
    function = tf.function(lambda image: graph(image, training=False), autograph=False)
    with quiet():
        # the graph itself must not be handed over: its variables would stay in the file
        function = function.get_concrete_function(signature)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if weights == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def quantize_with_ranges(float_model, ranges, io) -> bytes:
    """The int8 file of a float model, each tensor with a given range; weights are rounded to the
    nearest.

    Args:
        float_model: `ModelT` of a float file; gets the ranges written into it.
        ranges: index of a computed tensor -> (low, high).
        io: type of input and output, "int8", "uint8" or "float32".
    """
    from tensorflow import dtypes
    from tensorflow.lite.python.convert import mlir_quantize

    (graph,) = float_model.subgraphs
    # A concatenation takes the range of its parts. With a range of its own, the converter would
    # leave the operator float that reshapes it.
    concatenated = {
        operator.outputs[0]
        for operator in graph.operators
        if operator_name(float_model, operator) == "CONCATENATION"
    }
    for index in ranges.keys() - concatenated:
        tensor = graph.tensors[index]
        low, high = ranges[index]
        if tensor.quantization is None:
            tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.min = [low]
        tensor.quantization.max = [high]
    io_type = dtypes.as_dtype(io)
    with quiet():
        return mlir_quantize(
            write_tflite(float_model), input_data_type=io_type, output_data_type=io_type
        )
