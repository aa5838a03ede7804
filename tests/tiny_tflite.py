"""Small `.tflite` files made by hand, in milliseconds, and what they compute in NumPy.

A 1x1 convolution of the pixel minus 128 gives logits: the mean of red, green and blue over 16, and
twice and three times that in the second and third channel. They are exact, without rounding, for
the colours of `gray_photo`.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import write_tflite

TYPES = {name: getattr(schema.TensorType, name.upper()) for name in ("int8", "uint8", "float32")}
_VERSIONS = {schema.BuiltinOperator.CONV_2D: 4, schema.BuiltinOperator.RESHAPE: 1}


def gray_photo(size, seed=0):
    """uint8 (h, w, 3), noise whose logits are multiples of 0.375."""
    grays = np.random.default_rng(seed).integers(-21, 22, size)
    return np.repeat((128 + 6 * grays)[..., None], 3, axis=-1).astype(np.uint8)


def logits(image, channels=1):
    """float (h, w, channels) of uint8 (h, w, 3)."""
    centered = image.astype(np.float64).mean(axis=-1, keepdims=True) - 128
    return centered * (np.arange(channels) + 1) / 16


def probabilities(image, channels=1):
    values = logits(image, channels)
    if channels == 1:
        return 1 / (1 + np.exp(-values[..., 0]))
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def tiny_tflite(size=(16, 32), io="int8", output="probability", channels=1) -> bytes:
    """A segmenter of that input and output, of one convolution."""
    graph = Graph()
    source = centered = graph.tensor((1, *size, 3), io, *_IO.get(io, ()))
    if io != "int8":
        centered = graph.operator("QUANTIZE", [source], (1, *size, 3), "int8", 1.0, 0)
    slopes = 40 * np.arange(1, channels + 1, dtype=np.int8)
    weights = np.ones((channels, 1, 1, 3), np.int8) * slopes[:, None, None, None]
    weights = graph.constant(weights, 1 / 40 / 3 / 16)
    bias = graph.constant(np.zeros(channels, np.int32), 1 / 40 / 3 / 16)
    options = schema.Conv2DOptionsT()
    options.padding, options.strideW, options.strideH = schema.Padding.VALID, 1, 1
    shape = (1, *size, channels)
    inputs = [centered, weights, bias]
    kept = 0.375, 0
    result = graph.operator("CONV_2D", inputs, shape, "int8", *kept, options)
    if output == "probability":
        name = "LOGISTIC" if channels == 1 else "SOFTMAX"
        options = None
        if name == "SOFTMAX":
            options = schema.SoftmaxOptionsT()
            options.beta = 1.0
        kept = 1 / 256, -128
        result = graph.operator(name, [result], shape, "int8", *kept, options)
    elif output == "mask":
        shape = (1, *size, 1)
        if channels == 1:
            zero = graph.constant(np.zeros(1, np.int8), *kept)
            result = graph.operator("GREATER_EQUAL", [result, zero], shape, "bool")
        else:
            axis = graph.constant(np.array(3, np.int32))
            options = schema.ArgMaxOptionsT()
            options.outputType = schema.TensorType.INT32
            result = graph.operator("ARG_MAX", [result, axis], shape[:3], "int32", options=options)
            to = graph.constant(np.array(shape, np.int32))
            result = graph.operator("RESHAPE", [result, to], shape, "int32")
        result = graph.operator("CAST", [result], shape, io)
    if io != "int8" and output != "mask":
        if io == "uint8":
            result = graph.operator("QUANTIZE", [result], shape, io, kept[0], kept[1] + 128)
        else:
            result = graph.operator("DEQUANTIZE", [result], shape, io)
    return write_tflite(graph.model(source, result))


_IO = {"int8": (1.0, 0), "uint8": (1.0, 128)}


class Graph:
    """Builds a graph operator by operator; tensors are known by their indices."""

    def __init__(self):
        self.buffers, self.tensors, self.operators, self.codes = [schema.BufferT()], [], [], {}

    def tensor(self, shape, dtype, scale=None, zero_point=0, buffer=0):
        tensor = schema.TensorT()
        tensor.shape, tensor.type = list(shape), getattr(schema.TensorType, dtype.upper())
        tensor.buffer, tensor.name = buffer, f"t{len(self.tensors)}"
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [scale]
            tensor.quantization.zeroPoint = [zero_point]
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, array, scale=None, zero_point=0):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self.buffers.append(buffer)
        place = len(self.buffers) - 1
        return self.tensor(array.shape, array.dtype.name, scale, zero_point, place)

    def operator(self, name, inputs, shape, dtype, scale=None, zero_point=0, options=None):
        code = getattr(schema.BuiltinOperator, name)
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault(code, len(self.codes))
        output = self.tensor(shape, dtype, scale, zero_point)
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.operators.append(operator)
        return output

    def model(self, source, result):
        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.buffers, model.subgraphs = 3, self.buffers, [graph]
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = [source], [result]
        model.operatorCodes = []
        for number in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
            code.version = _VERSIONS.get(number, 2)
            model.operatorCodes.append(code)
        return model
