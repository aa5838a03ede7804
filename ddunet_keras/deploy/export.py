"""What a device gets with a `.tflite` file: C sources for microcontrollers, metadata for Android.

Needs no more than the base install: neither TensorFlow nor Keras, nor TFLM.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras import __version__
from ddunet_keras.files import DataError, write_text
from ddunet_keras.litert.arena_size import arena_size
from ddunet_keras.litert.esp_nn import ESP32_S3
from ddunet_keras.litert.memory import aligned
from ddunet_keras.litert.model import file_bytes, operator_name, read_tflite, set_metadata
from ddunet_keras.segmenter import check_segmenter
from ddunet_keras.sky import class_names

# === C sources for TensorFlow Lite Micro ===

_ADD = {
    "BATCH_MATMUL": "BatchMatMul",
    "BATCH_TO_SPACE_ND": "BatchToSpaceNd",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "SPACE_TO_BATCH_ND": "SpaceToBatchNd",
    "ethos-u": "EthosU",
}

_HEADER = """\
/* Written by ddunet_keras {version}: do not edit, convert again. A segmenter of RGB photos for
   TensorFlow Lite Micro; tflite/micro/sky_app.cc shows its use. */
#ifndef {macro}_H_
#define {macro}_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* The .tflite file, at a multiple of 16 bytes, to be left in flash. */
extern const unsigned char {name}[];
extern const size_t {name}_size;

#ifdef __cplusplus
}}
#endif

/* Input: int8 (1, HEIGHT, WIDTH, 3), each value a pixel's red, green or blue (0 to 255) minus 128.
   That is, value = scale * (input - zero point) is a pixel's deviation from 128. */
#define {macro}_HEIGHT {height}
#define {macro}_WIDTH {width}
#define {macro}_INPUT_SCALE {input_scale}
#define {macro}_INPUT_ZERO_POINT {input_zero_point}

/* Output: int8 (1, HEIGHT, WIDTH, CHANNELS), {kind}: scale * (output - zero point).
   With one channel a pixel is cloud where its output is at least THRESHOLD (probability 0.5); with
   more, the largest channel is its class, and class 0 is sky. */
#define {macro}_CHANNELS {channels}
#define {macro}_OUTPUT_SCALE {output_scale}
#define {macro}_OUTPUT_ZERO_POINT {output_zero_point}
#define {macro}_THRESHOLD {threshold}

/* What the interpreter needs; MicroInterpreter::arena_used_bytes() says how much it takes. On an
   ESP32-S3, ESP-NN's kernels copy feature maps into scratch memory, which lies in the arena.
   Elsewhere it is what TFLM's reference kernels take on a computer: a microcontroller's shorter
   pointers take less, by more than CMSIS-NN's kernels add. */
#ifdef ESP_PLATFORM
#include "sdkconfig.h"
#endif
#ifdef CONFIG_IDF_TARGET_ESP32S3
#define {macro}_ARENA_BYTES {arena_esp32s3}
#else
#define {macro}_ARENA_BYTES {arena}
#endif

/* C++: `MicroMutableOpResolver<{macro}_OPERATORS> resolver;`, then
   `{macro}_REGISTER(resolver)` adds every operator, true if all went well. */
#define {macro}_OPERATORS {operators}
#define {macro}_REGISTER(resolver) \\
  ({register})

#endif /* {macro}_H_ */
"""

_SOURCE = """\
/* Written by ddunet_keras {version}: do not edit, convert again. C11 or C++11. */
#include "{name}.h"

#ifndef __cplusplus
#include <stdalign.h>
#endif

alignas(16) const unsigned char {name}[] = {{
{rows}
}};
const size_t {name}_size = sizeof({name});
"""


ARENA_MARGIN = 1.01
"""By so much more an arena is than it is reckoned, where it was not measured."""


def write_c_array(
    data, folder, name="ddunet_model", arena_bytes=None, ram: int | None = None
) -> tuple[Path, Path]:
    """Writes a `.tflite` file as C sources that a microcontroller's firmware compiles in.

    `NAME.h` has the array's declaration and, as constants, the sizes, scales and zero points of
    input and output, the arena's size and the operators to register; `NAME.c` has the array.
    `tflite/micro/sky_app.cc` is an application that uses both under their default name.

    Args:
        data: path or bytes of a `.tflite` file with int8 input and output.
        folder: is made if missing; files of these names are replaced.
        name: an identifier of C.
        arena_bytes: what TFLM's interpreter takes on this machine, where it was measured
            (`ddunet_keras.litert.run.run_tflm`); None reckons it (`litert.arena_size`). That of
            an ESP32-S3 is always reckoned.
        ram: KiB that the arena was made to fit into; the margin stays inside.

    Returns:
        the paths of header and source.

    Raises:
        DataError: the file is no segmenter with int8 input and output.
        TFLiteError: the memory that it takes cannot be followed.
        ValueError: `name` is no identifier, or `arena_bytes` is not positive.

    Example:

    >>> from ddunet_keras.presets import preset_file
    >>> file = preset_file("ddunet_c8", "tflite")
    >>> [path.name for path in write_c_array(file, tmp / "firmware")]
    ['ddunet_model.h', 'ddunet_model.c']
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"`name` must be an identifier of C. Received: name={name!r}")
    is_count = isinstance(arena_bytes, (int, np.integer)) and arena_bytes > 0
    if arena_bytes is not None and not is_count:
        raise ValueError(f"`arena_bytes` must be positive. Received: arena_bytes={arena_bytes!r}")
    data = file_bytes(data)
    model = read_tflite(data)
    kind, _ = check_segmenter(model)
    source, result = _input_and_output(model)
    if not source.type == result.type == schema.TensorType.INT8:
        raise DataError("C sources are for files with int8 input and output (--io int8)")
    input_scale, input_zero_point = _quantization(source)
    output_scale, output_zero_point = _quantization(result)
    middle = {"probability": 0.5, "logits": 0.0, "mask": 1.0}[kind]
    names = sorted(set(_resolver_methods(model)))
    if arena_bytes is None:
        arena_bytes = _with_margin(arena_size(model).total, ram)
    arena_esp32s3 = _with_margin(arena_size(model, ESP32_S3).total, ram)
    header = _HEADER.format(
        version=__version__,
        name=name,
        macro=name.upper(),
        height=source.shape[1],
        width=source.shape[2],
        channels=result.shape[3],
        kind={"mask": "the class"}.get(kind, kind),
        input_scale=_c_float(input_scale),
        input_zero_point=f"({input_zero_point})",
        output_scale=_c_float(output_scale),
        output_zero_point=f"({output_zero_point})",
        threshold=f"({math.ceil(middle / output_scale + output_zero_point)})",
        arena=aligned(int(arena_bytes)),
        arena_esp32s3=aligned(arena_esp32s3),
        operators=len(names),
        register=" && \\\n   ".join(f"(resolver).Add{op}() == kTfLiteOk" for op in names),
    )
    rows = "\n".join(
        "  " + "".join(f"{byte}," for byte in data[start : start + 24])
        for start in range(0, len(data), 24)
    )
    folder = Path(folder)
    paths = folder / f"{name}.h", folder / f"{name}.c"
    write_text(paths[0], header)
    write_text(paths[1], _SOURCE.format(version=__version__, name=name, rows=rows))
    return paths


def _with_margin(reckoned, ram):
    wanted = int(reckoned * ARENA_MARGIN)
    return wanted if ram is None else max(reckoned, min(wanted, 1024 * ram))


def _input_and_output(model):
    graph = model.subgraphs[0]
    return graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]


def _quantization(tensor):
    """Scale and zero point; 1 and 0 for the class indices of a mask."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return 1.0, 0
    return float(np.float32(quantization.scale[0])), int(quantization.zeroPoint[0])


def _c_float(value):
    return f"{np.float32(value)!s}f"


def _resolver_methods(model):
    """For each operator the name of the resolver's method, without "Add"."""
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = operator_name(model, operator)
            words = (word.replace("2d", "2D") for word in name.title().split("_"))
            yield _ADD.get(name) or "".join(words)


# === Metadata for MediaPipe on Android ===

LABELS_FILE = "labels.txt"
"""Name of the file of class names that is attached to the `.tflite` file."""

# numbers of the members that are used of the schema's unions and enumerations
_NORMALIZATION_OPTIONS, _FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 1, 2
_RGB, _TENSOR_AXIS_LABELS = 1, 2
_NO_ACTIVATION, _SIGMOID, _SOFTMAX = 0, 1, 2


def set_mediapipe_metadata(model) -> None:
    """Gives a model what MediaPipe's ImageSegmenter reads: normalization, activation, and the name
    of the file of class names, which `with_label_file` attaches.

    Source: `metadata_schema.fbs` and `image_segmenter_metadata_schema.fbs` of MediaPipe 1.2.

    Args:
        model: `ModelT` of a file with uint8 or float32 input, whose output is probabilities or
            logits.

    Raises:
        DataError: the file is no segmenter, has int8 input, or its output is a mask.
    """
    kind, _ = check_segmenter(model)
    source, result = _input_and_output(model)
    if source.type == schema.TensorType.INT8 or kind == "mask":
        raise DataError(
            "MediaPipe takes files with uint8 or float32 input (--io) and probabilities or logits"
        )
    mean = 128.0 if source.type == schema.TensorType.FLOAT32 else 0.0
    if kind == "probability":
        activation = _NO_ACTIVATION
    else:
        activation = _SIGMOID if result.shape[3] == 1 else _SOFTMAX
    set_metadata(model, b"TFLITE_METADATA", _metadata(mean, activation))


def with_label_file(data) -> bytes:
    """A segmenter's `.tflite` file with its class names attached, "cloud" or all of `class_names`:
    a zip archive after the flatbuffer, as MediaPipe expects them. LiteRT runs it as before.
    """
    model = read_tflite(data)
    _, num_classes = check_segmenter(model)
    _, result = _input_and_output(model)
    names = class_names(num_classes)[-result.shape[3] :]
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:  # a ZipInfo of its own has no time of day in it
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(names) + "\n")
    return file.getvalue()


def _metadata(mean, activation):
    build = flatbuffers.Builder(1024)
    text = build.CreateString

    def floats(value):
        return build.CreateNumpyVector(np.array([value], np.float32))

    # a table's fields stand in the order of the schema; None leaves one out
    normalization = _table(build, floats(mean), floats(1.0))
    unit = _table(build, np.uint8(_NORMALIZATION_OPTIONS), normalization)
    image = _table(build, np.uint8(_IMAGE_PROPERTIES), _table(build, np.uint8(_RGB)))
    stats = _table(build, floats(255 - mean), floats(-mean))
    units = _vector(build, unit)
    source = _table(build, text("image"), None, None, image, units, stats)
    masks = _table(build, np.uint8(_FEATURE_PROPERTIES), _table(build))
    labels = _table(build, text(LABELS_FILE), None, np.uint8(_TENSOR_AXIS_LABELS))
    files = _vector(build, labels)
    result = _table(build, text("masks"), None, None, masks, None, None, files)
    custom = _table(
        build, text("SEGMENTER_METADATA"), _bytes(build, _segmenter_options(activation))
    )
    sources = _vector(build, source)
    results = _vector(build, result)
    customs = _vector(build, custom)
    graph = _table(build, None, None, sources, results, None, None, None, None, None, customs)
    graphs = _vector(build, graph)
    name, description = text("DDUNet"), text("Clouds in photos of the sky")
    model = _table(build, name, description, None, graphs, None, None, None, text("1.0.0"))
    build.Finish(model, b"M001")
    return bytes(build.Output())


def _segmenter_options(activation):
    build = flatbuffers.Builder(64)
    build.Finish(_table(build, np.uint8(activation), build.CreateString("1.0.0")), b"V001")
    return bytes(build.Output())


def _table(build, *fields):
    """A table: each field an offset, an np.uint8 or None."""
    build.StartObject(len(fields))
    for slot, value in enumerate(fields):
        if isinstance(value, np.uint8):
            build.PrependUint8Slot(slot, int(value), 0)
        elif value is not None:
            build.PrependUOffsetTRelativeSlot(slot, value, 0)
    return build.EndObject()


def _vector(build, offset):
    build.StartVector(4, 1, 4)
    build.PrependUOffsetTRelative(offset)
    return build.EndVector()


def _bytes(build, content):
    build.StartVector(1, len(content), 16)
    for byte in reversed(content):
        build.PrependByte(byte)
    return build.EndVector()
