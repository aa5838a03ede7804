"""Reads and writes `.tflite` files as the objects of TFLite's schema (`ModelT` and its parts).

Imports neither TensorFlow nor Keras: the schema's classes come with ai-edge-litert.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"


class TFLiteError(ValueError):
    """A `.tflite` file cannot be used; the message says in one line which, why and what to do."""


def first_line(error) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


MAX_SUBGRAPHS = 64
MAX_PARTS = 100_000
"""Most tensors, operators and buffers that are read: entries may share one part of the file, so
that a small file can claim to hold very many."""
MAX_TENSOR_BYTES = 2**31 - 1

DTYPES = {schema.TensorType.BOOL: np.dtype(bool)} | {
    getattr(schema.TensorType, f"{kind}{bits}".upper()): np.dtype(f"{kind}{bits}")
    for kind, sizes in (
        ("float", (16, 32, 64)),
        ("int", (8, 16, 32, 64)),
        ("uint", (8, 16, 32, 64)),
    )
    for bits in sizes
}
"""NumPy's type of a tensor, by its code in the schema; other types have none."""

# fmt: off
COMPUTING = frozenset((
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "DIV",
    "ELU", "FULLY_CONNECTED", "HARD_SWISH", "L2_NORMALIZATION", "LEAKY_RELU", "LOGISTIC",
    "LOG_SOFTMAX", "MAXIMUM", "MEAN", "MINIMUM", "MUL", "PRELU", "RELU", "RELU6", "RELU_N1_TO_1",
    "SOFTMAX", "SQUARED_DIFFERENCE", "SUB", "SUM", "TANH", "TRANSPOSE_CONV",
))
# fmt: on
"""Operators that calculate with the scales of 8- and 16-bit tensors: LiteRT ends the whole process
where one is missing."""

_INPUTS = {"CONCATENATION": 1, "RESHAPE": 1, "SLICE": 3} | dict.fromkeys(
    ("CONV_2D", "DEPTHWISE_CONV_2D", "PAD", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), 2
)
_WITH_OPTIONS = frozenset(_INPUTS) - {"PAD", "RESHAPE", "SLICE"}

_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}
_NUMBERS = {name: code for code, name in _OPERATORS.items()}


def read_tflite(source) -> schema.ModelT:
    """Reads and checks a `.tflite` file.

    What passes is whole and consistent: every index points at something, constants have the size
    that their shape asks for, and every operator reads tensors that exist when it runs.

    Args:
        source: a path, or the file's bytes.

    Returns:
        `ModelT`: its lists are lists (empty where the file has none), shapes and indices lists of
        int, constants uint8 arrays.

    Raises:
        TFLiteError: the file is missing, empty, a folder, truncated, inconsistent or of another
            type.

    Example:

    >>> read_tflite(b"no model")
    Traceback (most recent call last):
    ddunet_keras.litert.model.TFLiteError: not a .tflite file: it does not start as one
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parse(bytes(source))
    path = Path(source)
    if not path.is_file():
        what = "is a folder, a .tflite file was expected" if path.is_dir() else "no such file"
        raise TFLiteError(f"{path}: {what}")
    try:
        return _parse(path.read_bytes())
    except (OSError, TFLiteError) as error:
        raise TFLiteError(f"{path}: {first_line(error)}") from None


def write_tflite(model) -> bytes:
    """The file of a `ModelT`: equal vectors and tables are written once, constants at multiples of
    16 bytes.

    Returns:
        the bytes of a `.tflite` file, the same for the same model.
    """
    builder = _SharingBuilder()
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model, operator) -> str:
    """Name of an `OperatorT`'s kind, as "CONV_2D"; a custom operator's is the one in the file."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == schema.BuiltinOperator.CUSTOM:
        return _text(code.customCode) or "CUSTOM"
    return _OPERATORS[number]


def add_operator(model, name, inputs, outputs, options=None) -> schema.OperatorT:
    """A builtin operator for int8, as "CONV_2D", whose kind joins those of the model; it is not put
    into a graph."""
    code = getattr(schema.BuiltinOperator, name)
    kinds = [max(kind.builtinCode, kind.deprecatedBuiltinCode) for kind in model.operatorCodes]
    if code not in kinds:
        kinds.append(code)
        version = 1 if name == "RESHAPE" else 2  # 2 is that of int8
        model.operatorCodes.append(schema.OperatorCodeT(code, None, version, code))
    operator = schema.OperatorT(kinds.index(code), inputs, outputs)
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options
    return operator


def add_tensor(subgraph, like, shape) -> int:
    """Index of a new computed tensor, of another shape than tensor `like` and else as that."""
    new = copy.copy(subgraph.tensors[like])
    new.shape, new.shapeSignature, new.name, new.buffer = list(shape), None, None, 0
    subgraph.tensors.append(new)
    return len(subgraph.tensors) - 1


def add_constant(model, subgraph, array, quantization=None) -> int:
    """Index of a new constant tensor: an array of int8 or int32."""
    array = np.ascontiguousarray(array)
    model.buffers.append(schema.BufferT(np.frombuffer(array.tobytes(), np.uint8)))
    kind = getattr(schema.TensorType, array.dtype.name.upper())
    new = schema.TensorT(list(array.shape), kind, len(model.buffers) - 1)
    new.quantization = quantization
    subgraph.tensors.append(new)
    return len(subgraph.tensors) - 1


def set_metadata(model, name, content) -> None:
    """Gives a model metadata: bytes under a name, in place of what stood under it."""
    model.metadata = [entry for entry in model.metadata if entry.name != name]
    model.metadata.append(schema.MetadataT(name, len(model.buffers)))
    model.buffers.append(schema.BufferT(np.frombuffer(content, np.uint8)))


def constant(model, subgraph, tensor_index) -> np.ndarray | None:
    """Value of a constant tensor in its own type and shape (read-only); None for any other tensor.

    None as well for types that NumPy has not, such as int4 or strings.
    """
    tensor = subgraph.tensors[tensor_index]
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in DTYPES or tensor.sparsity is not None:
        return None
    return np.frombuffer(bytes(data), DTYPES[tensor.type]).reshape(tensor.shape)


def tensor_bytes(tensor) -> int:
    """Bytes that a `TensorT` takes in memory, without padding.

    Raises:
        TFLiteError: its type has no fixed size, or a dimension is unknown.
    """
    if tensor.type not in DTYPES or any(side < 0 for side in tensor.shape):
        raise TFLiteError(f"tensor {_text(tensor.name)!r} has no fixed size")
    return math.prod(tensor.shape) * DTYPES[tensor.type].itemsize


def dtype_name(tensor) -> str:
    """A `TensorT`'s type as NumPy calls it; "type N" for one that NumPy has not."""
    return DTYPES[tensor.type].name if tensor.type in DTYPES else f"type {tensor.type}"


def _text(name) -> str:
    return (name or b"").decode("utf-8", "replace")


def dequantize(tensor, values) -> np.ndarray:
    """What the integers of a `TensorT` mean, float32; floats stay as they are."""
    quantization = tensor.quantization
    if values.dtype.kind == "f" or quantization is None or quantization.scale is None:
        return values.astype(np.float32)
    return (values.astype(np.float32) - quantization.zeroPoint[0]) * quantization.scale[0]


# === Reading ===


def _parse(data):
    if not data:
        raise TFLiteError("the file is empty")
    if data[4:8] != IDENTIFIER:
        raise TFLiteError("not a .tflite file: it does not start as one")
    try:
        root = schema.Model.GetRootAs(data)
        graphs = root.SubgraphsLength()
        if not 1 <= graphs <= MAX_SUBGRAPHS:
            raise TFLiteError(f"it has {graphs} subgraphs, 1 to {MAX_SUBGRAPHS} are read")
        parts = root.BuffersLength() + root.OperatorCodesLength() + root.MetadataLength()
        for graph in map(root.Subgraphs, range(graphs)):
            parts += graph.TensorsLength() + graph.OperatorsLength()
        if parts > MAX_PARTS:
            raise TFLiteError(f"it has {parts:,} parts, at most {MAX_PARTS:,} are read")
        model = schema.ModelT.InitFromObj(root)
        _normalize(model)
        _check(model)
    except TFLiteError as error:
        raise TFLiteError(f"not a sound .tflite file ({first_line(error)})") from None
    except Exception as error:  # the schema's reader raises many types on corrupt input
        raise TFLiteError(
            f"not a readable .tflite file, truncated or damaged ({first_line(error)})"
        ) from None
    return model


def _ints(values):
    return [] if values is None else [int(value) for value in values]


def _normalize(model):
    for name in ("operatorCodes", "subgraphs", "buffers", "metadata", "signatureDefs"):
        setattr(model, name, getattr(model, name) or [])
    for graph in model.subgraphs:
        graph.inputs, graph.outputs = _ints(graph.inputs), _ints(graph.outputs)
        graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
        for tensor in graph.tensors:
            tensor.shape = _ints(tensor.shape)
        for operator in graph.operators:
            operator.inputs, operator.outputs = _ints(operator.inputs), _ints(operator.outputs)


def _require(condition, message):
    if not condition:
        raise TFLiteError(message)


def _check(model):
    _require(model.version == 3, f"schema version {model.version}, 3 was expected")
    _require(model.operatorCodes and model.buffers, "it has no operators or no buffers")
    for buffer in model.buffers:
        _require(buffer.offset <= 1 and buffer.size <= 1, "a constant lies outside the flatbuffer")
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        _require(number in _OPERATORS, f"operator code {number} is unknown")
        custom = number == schema.BuiltinOperator.CUSTOM
        _require(not custom or code.customCode, "a custom operator has no name")
    for entry in model.metadata:
        _require(entry.buffer < len(model.buffers), "metadata points at no buffer")
    for number, graph in enumerate(model.subgraphs):
        where = f"subgraph {number}"
        _require(graph.operators and graph.outputs, f"{where} computes nothing")
        for index, tensor in enumerate(graph.tensors):
            _check_tensor(model, tensor, f"{where}, tensor {index}")
        _check_order(model, graph, where)
    for signature in model.signatureDefs:
        _require(signature.subgraphIndex < len(model.subgraphs), "a signature has no subgraph")
        count = len(model.subgraphs[signature.subgraphIndex].tensors)
        for entry in (signature.inputs or []) + (signature.outputs or []):
            _require(entry.name is not None, "a signature has an entry without a name")
            _require(entry.tensorIndex < count, "a signature points at no tensor")


def _check_tensor(model, tensor, where):
    _require(tensor.buffer < len(model.buffers), f"{where} points at no buffer")
    _require(all(side >= 0 for side in tensor.shape), f"{where} has shape {tensor.shape}")
    itemsize = DTYPES[tensor.type].itemsize if tensor.type in DTYPES else 16
    size = math.prod(tensor.shape) * itemsize
    _require(size <= MAX_TENSOR_BYTES, f"{where} has shape {tensor.shape}")
    data = model.buffers[tensor.buffer].data
    if data is not None and len(data) and tensor.type in DTYPES and tensor.sparsity is None:
        _require(
            len(data) == size, f"{where} has {len(data)} bytes, its shape asks for {size} bytes"
        )
    _require(not tensor.externalBuffer, f"{where} lies in another file")
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return
    scales = np.asarray(quantization.scale)
    points = np.asarray([0] if quantization.zeroPoint is None else quantization.zeroPoint)
    _require(np.isfinite(scales).all() and (scales >= 0).all(), f"{where} has a bad scale")
    _require(len(points) in (1, len(scales)), f"{where} has scales without zero points")
    if len(scales) > 1:
        axis = quantization.quantizedDimension
        _require(
            0 <= axis < len(tensor.shape) and len(scales) == tensor.shape[axis],
            f"{where} has {len(scales)} scales for its shape {tensor.shape}",
        )


def _check_order(model, graph, where):
    """Every index in range, and every tensor written once and before it is read."""
    count = len(graph.tensors)
    for index in graph.inputs + graph.outputs:
        _require(0 <= index < count, f"{where} has no tensor {index}")
    _require(len(set(graph.inputs)) == len(graph.inputs), f"{where} has one input twice")
    taken = {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.isVariable or model.buffers[tensor.buffer].data is not None
    }
    _require(not taken & set(graph.inputs), f"{where} has a constant input")
    taken |= set(graph.inputs)
    known = taken | {index for index, tensor in enumerate(graph.tensors) if 0 in tensor.shape}
    for number, operator in enumerate(graph.operators):
        at = f"{where}, operator {number}"
        _require(operator.opcodeIndex < len(model.operatorCodes), f"{at} has no operator code")
        name = operator_name(model, operator)
        at = f"{at} ({name})"
        _require(operator.outputs or operator.inputs, f"{at} has no tensors")
        least = _INPUTS.get(name, 0)
        _require(len(operator.inputs) >= least, f"{at} has under {least} inputs")
        _require(operator.outputs or not least, f"{at} has no output")
        _require(operator.builtinOptions or name not in _WITH_OPTIONS, f"{at} has no options")
        _require(not operator.largeCustomOptionsSize, f"{at} has options outside the flatbuffer")
        for place, index in enumerate(operator.inputs):
            left_out = index == -1 and (place > 1 or (place == 1 and name not in COMPUTING))
            scratch = name not in _NUMBERS and 0 <= index < count  # as of Vela's "ethos-u"
            _require(
                left_out or scratch or index in known,
                f"{at} reads tensor {index} before it is there",
            )
        for index in operator.outputs:
            _require(0 <= index < count, f"{at} has no tensor {index}")
            _require(index not in taken, f"{at} writes tensor {index}, which has a value")
            taken.add(index)
        known |= taken
        for field in ("strideW", "strideH", "dilationWFactor", "dilationHFactor"):
            value = getattr(operator.builtinOptions, field, 1)
            _require(value > 0, f"{at} has {field} {value}")
        for index in operator.inputs + operator.outputs if name in COMPUTING else ():
            tensor = graph.tensors[index]
            whole = tensor.type in DTYPES and DTYPES[tensor.type].itemsize <= 2
            if index >= 0 and whole and DTYPES[tensor.type].kind in "iu":
                constant_zero = model.buffers[tensor.buffer].data is not None
                scales = [] if tensor.quantization is None else tensor.quantization.scale
                scales = np.asarray([] if scales is None else scales)
                _require(
                    scales.size and (constant_zero or (scales > 0).all()),
                    f"{at}: tensor {index} has no scale",
                )
    _require(known.issuperset(graph.outputs), f"{where} has an output that nothing computes")


# === Writing ===


class _SharingBuilder(flatbuffers.Builder):
    """A flatbuffers.Builder that writes equal strings, vectors and tables once.

    A part is compared with those written before by its bytes and, for references, their targets. If
    there is an equal one, the builder steps back and hands out its offset.
    """

    __slots__ = ("_alignment", "_begin", "_content", "_references", "_seen")

    def __init__(self):
        super().__init__(1 << 20)
        self._seen = {}

    def _mark(self, begin):
        self._begin, self._content, self._references = begin, self.Offset(), []

    def _earlier(self, kind):
        """(key, offset or None) of a part like the one that now ends; if any, steps back."""
        size, end = len(self.Bytes), self.Offset()
        content = bytearray(self.Bytes[size - end : size - self._content])
        for place, _ in self._references:
            content[end - place : end - place + 4] = bytes(4)
        targets = tuple((place - self._content, target) for place, target in self._references)
        key = (kind, bytes(content), targets)
        if key in self._seen:
            self.head = size - self._begin
            self.nested = False
        return key, self._seen.get(key)

    def PrependUOffsetTRelative(self, off):
        super().PrependUOffsetTRelative(off)
        if self.nested:
            self._references.append((self.Offset(), off))

    def StartVector(self, elemSize, numElems, alignment):
        begin = self.Offset()
        super().StartVector(elemSize, numElems, alignment)
        self._alignment = alignment
        self._mark(begin)
        return self.Offset()

    def EndVector(self, numElems=None):
        key, offset = self._earlier(("vector", self.vectorNumElems, self._alignment))
        if offset is None:
            offset = self._seen[key] = super().EndVector(numElems)
        return offset

    def CreateString(self, s, encoding="utf-8", errors="strict"):
        self._alignment = "string"
        self._mark(self.Offset())
        return super().CreateString(s, encoding, errors)

    def CreateNumpyVector(self, x):
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, 16)  # the schema's force_align of constants
        self.head -= x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        return self.EndVector()

    def StartObject(self, numfields):
        super().StartObject(numfields)
        self._mark(self.Offset())

    def EndObject(self):
        slots = tuple(slot and slot - self._content for slot in self.current_vtable)
        key, offset = self._earlier(("table", slots))
        if offset is None:
            offset = self._seen[key] = super().EndObject()
        return offset
