"""Reads and writes `.tflite` files as the objects of TFLite's schema (`ModelT` and its parts).

Imports neither TensorFlow nor Keras: the schema's classes come with ai-edge-litert.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.sharing_builder import SharingBuilder

IDENTIFIER = b"TFL3"


class TFLiteError(ValueError):
    """A `.tflite` file cannot be used; the message says in one line which, why and what to do."""


def require(condition: object, message: str) -> None:
    """Raises a `TFLiteError` with `message` unless `condition` holds."""
    if not condition:
        raise TFLiteError(message)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


MAX_FILE_BYTES = 2**29
"""Largest file that is read; a segmenter has less than 2 MB."""
MAX_SUBGRAPHS = 64
MAX_PARTS = 20_000
"""Most tensors, operators, buffers and other parts that are read: entries may share one place in
the file, so that a small file can claim to hold very many. Reading so many takes seconds."""
MAX_CLAIMED = 2**28
"""Most bytes of names and elements of lists that are read, for the same reason."""
MAX_RANK = 8
"""LiteRT's own kernels go to 6 dimensions."""
MAX_TENSOR_BYTES = 2**31 - 1
MAX_SHORT_CODE = 127
"""Largest code of an operator in the field of one byte: there it stands for "see the other"."""

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

_DTYPE_NAMES = {code: dtype.name for code, dtype in DTYPES.items()}

# options with names in them
_NAMED_OPTIONS = (schema.BuiltinOptions.VarHandleOptions,)
_NAMED_OPTIONS_2 = (
    schema.BuiltinOptions2.StablehloCustomCallOptions,
    schema.BuiltinOptions2.StableHLOCompositeOptions,
)

_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}
_NUMBERS = {name: code for code, name in _OPERATORS.items()}


def file_bytes(source: str | Path | bytes | bytearray | memoryview) -> bytes:
    """The content of a `.tflite` file, given as a path or as its bytes.

    Raises:
        TFLiteError: the file is missing, a folder, unreadable or over `MAX_FILE_BYTES`.

    Example:

    >>> file_bytes("none.tflite")
    Traceback (most recent call last):
    ddunet_keras.litert.model.TFLiteError: none.tflite: no such file
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    path = Path(source)
    if not path.is_file():
        what = "is a folder, a .tflite file was expected" if path.is_dir() else "no such file"
        raise TFLiteError(f"{path}: {what}")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TFLiteError(f"{path}: {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise TFLiteError(f"{path}: {first_line(error)}") from None


def read_tflite(source: str | Path | bytes | bytearray | memoryview) -> schema.ModelT:
    """Reads and checks a `.tflite` file.

    What passes is whole and consistent: every index points at something, constants have the size
    that their shape asks for, and every operator reads tensors that exist when it runs. Whether an
    operator has the inputs, options and scales of its kind is another question, which
    `ddunet_keras.litert.soundness` asks before LiteRT may run a stranger's file.

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
    data = file_bytes(source)
    try:
        return _parse(data)
    except TFLiteError as error:
        if isinstance(source, (str, Path)):
            raise TFLiteError(f"{source}: {first_line(error)}") from None
        raise


def write_tflite(model: schema.ModelT) -> bytes:
    """The file of a `ModelT`: equal vectors and tables are written once, constants at multiples of
    16 bytes.

    Returns:
        the bytes of a `.tflite` file, the same for the same model.
    """
    builder = SharingBuilder()
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """Name of an `OperatorT`'s kind, as "CONV_2D"; a custom operator's is the one in the file."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == schema.BuiltinOperator.CUSTOM:
        return _text(code.customCode) or "CUSTOM"
    return _OPERATORS[number]


def add_operator(
    model: schema.ModelT, name: str, inputs: list[int], outputs: list[int], options=None
) -> schema.OperatorT:
    """A builtin operator for int8, as "CONV_2D", whose kind joins those of the model; it is not put
    into a graph."""
    code = getattr(schema.BuiltinOperator, name)
    kinds = [max(kind.builtinCode, kind.deprecatedBuiltinCode) for kind in model.operatorCodes]
    if code not in kinds:
        kinds.append(code)
        version = 1 if name == "RESHAPE" else 2  # 2 is that of int8
        # the first field is of one byte; it is for interpreters of before 2020
        model.operatorCodes.append(
            schema.OperatorCodeT(min(code, MAX_SHORT_CODE), None, version, code)
        )
    operator = schema.OperatorT(kinds.index(code), inputs, outputs)
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options
    return operator


def add_tensor(subgraph: schema.SubGraphT, like: int, shape: Sequence[int]) -> int:
    """Index of a new computed tensor, of another shape than tensor `like` and else as that."""
    new = copy.copy(subgraph.tensors[like])
    new.shape, new.shapeSignature, new.name, new.buffer = list(shape), None, None, 0
    subgraph.tensors.append(new)
    return len(subgraph.tensors) - 1


def add_constant(
    model: schema.ModelT, subgraph: schema.SubGraphT, array: np.ndarray, quantization=None
) -> int:
    """Index of a new constant tensor: an array of int8 or int32."""
    array = np.ascontiguousarray(array)
    model.buffers.append(schema.BufferT(np.frombuffer(array.tobytes(), np.uint8)))
    kind = getattr(schema.TensorType, array.dtype.name.upper())
    new = schema.TensorT(list(array.shape), kind, len(model.buffers) - 1)
    new.quantization = quantization
    subgraph.tensors.append(new)
    return len(subgraph.tensors) - 1


def set_metadata(model: schema.ModelT, name: bytes, content: bytes) -> None:
    """Gives a model metadata: bytes under a name, in place of what stood under it."""
    model.metadata = [entry for entry in model.metadata if entry.name != name]
    model.metadata.append(schema.MetadataT(name, len(model.buffers)))
    model.buffers.append(schema.BufferT(np.frombuffer(content, np.uint8)))


def constant(
    model: schema.ModelT, subgraph: schema.SubGraphT, tensor_index: int
) -> np.ndarray | None:
    """Value of a constant tensor in its own type and shape (read-only); None for any other tensor.

    None as well for types that NumPy has not, such as int4 or strings.
    """
    tensor = subgraph.tensors[tensor_index]
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in DTYPES or tensor.sparsity is not None:
        return None
    value = np.frombuffer(data, DTYPES[tensor.type]).reshape(tensor.shape)
    value.flags.writeable = False
    return value


def tensor_bytes(tensor: schema.TensorT) -> int:
    """Bytes that a `TensorT` takes in memory, without padding.

    Raises:
        TFLiteError: its type has no fixed size, or a dimension is unknown.
    """
    if tensor.type not in DTYPES or any(side < 0 for side in tensor.shape):
        raise TFLiteError(f"tensor {tensor_name(tensor)!r} has no fixed size")
    return math.prod(tensor.shape) * DTYPES[tensor.type].itemsize


def dtype_name(tensor: schema.TensorT) -> str:
    """A `TensorT`'s type as NumPy calls it; "type N" for one that NumPy has not."""
    return _DTYPE_NAMES.get(tensor.type) or f"type {tensor.type}"


def tensor_name(tensor: schema.TensorT) -> str:
    """A `TensorT`'s name, "" where it has none; what cannot be printed becomes "?"."""
    return _text(tensor.name)


def _text(name) -> str:
    text = name if isinstance(name, str) else (name or b"").decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def dequantize(tensor: schema.TensorT, values: np.ndarray) -> np.ndarray:
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
        _check_claims(root, len(data))
        model = schema.ModelT.InitFromObj(root)
        _add_up(_vector_lengths(model))
        _normalize(model)
        _check(model)
    except TFLiteError as error:
        raise TFLiteError(f"not a sound .tflite file ({first_line(error)})") from None
    except Exception as error:  # the schema's reader raises many types on corrupt input
        raise TFLiteError(
            f"not a readable .tflite file, truncated or damaged ({first_line(error)})"
        ) from None
    return model


def _check_claims(root, file_bytes):
    """Refuses a file that would unpack to far more than it is: parts of it may share one place."""
    count = root.SubgraphsLength()
    require(1 <= count <= MAX_SUBGRAPHS, f"it has {count} subgraphs, 1 to {MAX_SUBGRAPHS} are read")
    graphs = [root.Subgraphs(number) for number in range(count)]
    parts = root.BuffersLength() + root.OperatorCodesLength() + root.MetadataLength()
    parts += sum(graph.TensorsLength() + graph.OperatorsLength() for graph in graphs)
    signatures = [root.SignatureDefs(i) for i in range(min(root.SignatureDefsLength(), MAX_PARTS))]
    parts += sum(1 + entry.InputsLength() + entry.OutputsLength() for entry in signatures)
    require(parts <= MAX_PARTS, f"it has {parts:,} parts, at most {MAX_PARTS:,} are read")
    _add_up(_claimed_lengths(root, graphs, signatures, file_bytes))


def _add_up(lengths):
    total = 0
    for length in lengths:
        total += length
        require(total <= MAX_CLAIMED, f"its names and lists take over {MAX_CLAIMED:,} bytes")


def _claimed_lengths(root, graphs, signatures, file_bytes):
    """Lengths of the names and lists of tables that unpacking would make, one by one."""
    for number in range(root.OperatorCodesLength()):
        yield len(root.OperatorCodes(number).CustomCode() or b"")
    for number in range(root.MetadataLength()):
        yield len(root.Metadata(number).Name() or b"")
    for signature in signatures:
        entries = [signature.Inputs(i) for i in range(signature.InputsLength())]
        entries += [signature.Outputs(i) for i in range(signature.OutputsLength())]
        for entry in (signature.SignatureKey(), *(entry.Name() for entry in entries)):
            yield len(entry or b"")
    for graph in graphs:
        yield len(graph.Name() or b"")
        for number in range(graph.TensorsLength()):
            tensor = graph.Tensors(number)
            yield len(tensor.Name() or b"") + tensor.VariantTensorsLength()
            if (sparsity := tensor.Sparsity()) is not None:
                yield sparsity.DimMetadataLength()
        for number in range(graph.OperatorsLength()):
            operator = graph.Operators(number)
            if (
                operator.BuiltinOptionsType() in _NAMED_OPTIONS
                or operator.BuiltinOptions2Type() in _NAMED_OPTIONS_2
            ):
                yield file_bytes  # their names may be as long as the file


def _vector_lengths(model):
    """Lengths of the vectors of an unpacked model, which are views of the file so far."""

    def length(vector):
        return 0 if vector is None else len(vector)

    for graph in model.subgraphs or []:
        yield length(graph.inputs) + length(graph.outputs)
        for tensor in graph.tensors or []:
            yield length(tensor.shape) + length(tensor.shapeSignature)
            if tensor.quantization is not None:
                yield length(tensor.quantization.scale) + length(tensor.quantization.zeroPoint)
        for operator in graph.operators or []:
            yield length(operator.inputs) + length(operator.outputs)


def _ints(values):
    return [] if values is None else np.asarray(values).tolist()


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


def _check(model):
    require(model.version == 3, f"schema version {model.version}, 3 was expected")
    require(model.operatorCodes and model.buffers, "it has no operators or no buffers")
    for buffer in model.buffers:
        require(buffer.offset <= 1 and buffer.size <= 1, "a constant lies outside the flatbuffer")
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        require(number in _OPERATORS, f"operator code {number} is unknown")
        custom = number == schema.BuiltinOperator.CUSTOM
        require(not custom or code.customCode, "a custom operator has no name")
    for entry in model.metadata:
        require(entry.buffer < len(model.buffers), "metadata points at no buffer")
    for number, graph in enumerate(model.subgraphs):
        where = f"subgraph {number}"
        require(graph.operators and graph.outputs, f"{where} computes nothing")
        for index, tensor in enumerate(graph.tensors):
            _check_tensor(model, tensor, f"{where}, tensor {index}")
        _check_graph(model, graph, where)
    for signature in model.signatureDefs:
        require(signature.subgraphIndex < len(model.subgraphs), "a signature has no subgraph")
        count = len(model.subgraphs[signature.subgraphIndex].tensors)
        for entry in (signature.inputs or []) + (signature.outputs or []):
            require(entry.name is not None, "a signature has an entry without a name")
            require(entry.tensorIndex < count, "a signature points at no tensor")


def _check_tensor(model, tensor, where):
    require(tensor.buffer < len(model.buffers), f"{where} points at no buffer")
    shape = tensor.shape
    require(len(shape) <= MAX_RANK, f"{where} has {len(shape)} dimensions")
    require(all(side >= 0 for side in shape), f"{where} has shape {shape}")
    itemsize = DTYPES[tensor.type].itemsize if tensor.type in DTYPES else 16
    size = math.prod(shape) * itemsize
    require(size <= MAX_TENSOR_BYTES, f"{where} has shape {shape}")
    data = model.buffers[tensor.buffer].data
    if data is not None and len(data) and tensor.type in DTYPES and tensor.sparsity is None:
        require(
            len(data) == size, f"{where} has {len(data)} bytes, its shape asks for {size} bytes"
        )
    require(not tensor.externalBuffer, f"{where} lies in another file")
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return
    scales = np.asarray(quantization.scale)
    points = np.asarray([0] if quantization.zeroPoint is None else quantization.zeroPoint)
    require(np.isfinite(scales).all() and (scales >= 0).all(), f"{where} has a bad scale")
    require(len(points) in (1, len(scales)), f"{where} has scales without zero points")
    if len(scales) > 1:
        axis = quantization.quantizedDimension
        require(
            0 <= axis < len(shape) and len(scales) == shape[axis],
            f"{where} has {len(scales)} scales for its shape {shape}",
        )


def _check_graph(model, graph, where):
    """Every index in range, and every tensor written once and before it is read."""
    count = len(graph.tensors)
    for index in graph.inputs + graph.outputs:
        require(0 <= index < count, f"{where} has no tensor {index}")
    require(len(set(graph.inputs)) == len(graph.inputs), f"{where} has one input twice")
    filled = {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.isVariable or model.buffers[tensor.buffer].data is not None
    }
    require(not filled & set(graph.inputs), f"{where} has a constant input")
    filled |= set(graph.inputs)
    written = {index for operator in graph.operators for index in operator.outputs}
    # constants without elements have no data
    readable = filled | {i for i, t in enumerate(graph.tensors) if 0 in t.shape} - written
    for number, operator in enumerate(graph.operators):
        at = f"{where}, operator {number}"
        require(operator.opcodeIndex < len(model.operatorCodes), f"{at} has no operator code")
        name = operator_name(model, operator)
        at = f"{at} ({name})"
        require(operator.outputs or operator.inputs, f"{at} has no tensors")
        require(not operator.largeCustomOptionsSize, f"{at} has options outside the flatbuffer")
        for place, index in enumerate(operator.inputs):
            left_out = index == -1 and place > 0
            scratch = name not in _NUMBERS and 0 <= index < count  # as of Vela's "ethos-u"
            require(
                left_out or scratch or index in readable,
                f"{at} reads tensor {index} before it is there",
            )
        for index in operator.outputs:
            require(0 <= index < count, f"{at} has no tensor {index}")
            require(index not in filled, f"{at} writes tensor {index}, which has a value")
            filled.add(index)
            readable.add(index)
    require(readable.issuperset(graph.outputs), f"{where} has an output that nothing computes")
