"""The scratch memory that ESP-NN's kernels ask for on an ESP32-S3.

ESP-NN is what Espressif's builds of TFLM compute convolutions with. On the ESP32-S3, its vector
kernels copy whole padded feature maps first, and the copies lie in TFLM's arena while the operator
runs. A dilated depthwise convolution asks for as much, and then runs the reference kernel.

The rules are those of `esp_nn_get_conv_scratch_size_esp32s3` and of
`esp_nn_get_depthwise_conv_scratch_size_esp32s3` in https://github.com/espressif/esp-nn, as they
were before version 1.3. Later versions ask for less in convolutions, and for the same in depthwise
ones.
"""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import Runtime, aligned
from ddunet_keras.litert.model import operator_name

INT16 = 2
INT32 = 4
VECTOR = 16
"""Bytes of a vector: rows, kernels and parts of the scratch memory begin at its multiples."""
HALF_VECTOR = 8
"""Channels that a kernel works on at a time: fewer are padded to as many."""
CONVOLUTION_MARGIN = 64
"""For alignment, and for what the assembly reads beyond the ends."""
DEPTHWISE_MARGIN = 16
WIDE_DEPTHWISE_MARGIN = 64
NARROW = 3
"""A depthwise convolution of at most so many channels has no vector kernel."""
WIDE_CHANNELS = 12
"""From so many channels on, a depthwise convolution pads them to a whole vector."""
WHOLE_MAP_BYTES = 40 * 1024
"""A larger padded feature map is copied by rows."""
INT16_MAP_BYTES = 48 * 1024
"""The same for kernels that work on int16."""


def scratch_bytes(
    model: schema.ModelT, operator: schema.OperatorT, rows: tuple[int, int] | None = None
) -> int:
    """Bytes of scratch memory of an operator of the first subgraph on an ESP32-S3.

    Args:
        rows: of its input and output, in place of those that they have.

    Example:

    >>> from ddunet_keras.litert.model import read_tflite
    >>> from ddunet_keras.presets import preset_file
    >>> model = read_tflite(preset_file("ddunet_c8", "tflite"))
    >>> max(scratch_bytes(model, operator) for operator in model.subgraphs[0].operators) > 2**20
    True
    """
    name = operator_name(model, operator)
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return 0
    tensors = model.subgraphs[0].tensors
    if len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0 or not operator.outputs:
        return 0
    source, kernel = (tensors[index] for index in operator.inputs[:2])
    result = tensors[operator.outputs[0]]
    shapes = tuple(list(tensor.shape) for tensor in (source, kernel, result))
    if source.type != schema.TensorType.INT8 or any(len(shape) != 4 for shape in shapes):
        return 0
    if rows is not None:
        shapes[0][1], shapes[2][1] = rows
    options = operator.builtinOptions
    strides = options.strideH, options.strideW
    dilations = options.dilationHFactor, options.dilationWFactor
    padding = _padding(shapes, strides, dilations)
    before, weights, after = shapes
    if name == "CONV_2D":
        return convolution_scratch(before, weights, after, strides, padding)
    multiplier = options.depthMultiplier
    return depthwise_scratch(before, weights, after, strides, padding, multiplier)


ESP32_S3 = Runtime(pointer_bytes=4, scratch=scratch_bytes)
"""ESP-NN's kernels on an ESP32-S3, as ESP-IDF builds TFLM by default."""


def _padding(shapes, strides, dilations):
    """Rows above and columns to the left that TFLM pads, 0 for VALID."""
    (_, *source), (_, *kernel), (_, *result) = shapes
    sides = []
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        missing = (result[axis] - 1) * strides[axis] + reach - source[axis]
        sides.append(max(0, missing) // 2)
    return tuple(sides)


def convolution_scratch(source, kernel, result, strides, padding) -> int:
    """Bytes for a CONV_2D.

    Args:
        source: shape of the input, (1, height, width, channels).
        kernel: (filters, height, width, channels).
        result: shape of the output.
        strides, padding: of rows and of columns.

    Example:

    >>> convolution_scratch((1, 96, 96, 9), (1, 3, 3, 9), (1, 96, 96, 1), (1, 1), (1, 1))
    173180
    """
    _, height, width, channels = source
    filters, kernel_height, kernel_width, _ = kernel
    pointwise = (kernel_height, kernel_width) == (1, 1)
    if pointwise and strides == (1, 1) and padding == (0, 0):
        padded = aligned(channels, HALF_VECTOR)
        transposed = 2 * HALF_VECTOR * padded if width * height >= HALF_VECTOR else 0
        copy = width * height * padded if channels % HALF_VECTOR else 0
        return copy + padded * filters + transposed + CONVOLUTION_MARGIN
    row = kernel_width * channels
    window = kernel_height * row
    if row < VECTOR <= window:  # the window of a pixel is copied
        window = aligned(window, VECTOR)
        copies = filters * window + window + 2 * VECTOR
        return filters * INT32 + copies + CONVOLUTION_MARGIN
    kernels = kernel_height * kernel_width * aligned(channels, VECTOR) * filters
    kernels += aligned(row, VECTOR) * kernel_height * filters
    copy = 0
    if padding != (0, 0):
        copy = (height + 2 * padding[0]) * (width + 2 * padding[1]) * channels
    right, bottom = _overhang(source, kernel, result, strides)
    if right > 0 or bottom > 0:  # added even where it is not used
        copy += (height + max(0, bottom)) * (width + max(0, right)) * channels
    return copy + kernels + CONVOLUTION_MARGIN + filters * INT32


def _overhang(source, kernel, result, strides):
    """Columns and rows by which ESP-NN takes the kernel to reach beyond the input."""
    right = result[2] * strides[1] + kernel[2] - 1 - source[2]
    bottom = result[1] * strides[0] + kernel[1] - 1 - source[1]
    return right, bottom


def depthwise_scratch(source, kernel, result, strides, padding, multiplier=1) -> int:
    """Bytes for a DEPTHWISE_CONV_2D, whose dilation does not matter.

    Args:
        source: shape of the input, (1, height, width, channels).
        kernel: (1, height, width, channels).
        result: shape of the output.
        strides, padding: of rows and of columns.
        multiplier: output channels for each channel of the input.

    Example:

    >>> depthwise_scratch((1, 96, 96, 4), (1, 3, 3, 4), (1, 96, 96, 4), (1, 1), (1, 1))
    221440
    """
    _, height, width, channels = source
    weights = kernel[1] * kernel[2] * channels * multiplier
    in_int16 = INT16 * (weights + height * width * channels) + 2 * DEPTHWISE_MARGIN
    if multiplier == 1 and channels % HALF_VECTOR == 0:
        if (kernel[1], kernel[2]) == (3, 3):
            return _depthwise_3x3(source, kernel, result, strides, padding, in_int16)
        if in_int16 - 2 * DEPTHWISE_MARGIN <= INT16_MAP_BYTES:
            return in_int16
        rows = INT16 * width * kernel[1] * channels
        return INT16 * weights + rows + 2 * DEPTHWISE_MARGIN
    if multiplier == 1 and channels > NARROW:
        return _padded_depthwise(source, kernel, result)
    return in_int16 if multiplier % 4 == 0 else 2 * DEPTHWISE_MARGIN


def _depthwise_3x3(source, kernel, result, strides, padding, in_int16):
    """A 3x3 depthwise convolution of a multiple of 8 channels."""
    _, height, width, channels = source
    weights = kernel[1] * kernel[2] * channels
    right, bottom = _overhang(source, kernel, result, strides)
    if channels % VECTOR == 0 and padding in ((1, 1), (0, 0)):
        if padding == (1, 1):
            right = bottom = 2
        if not (right or bottom):
            return weights + DEPTHWISE_MARGIN
        whole = (width + right) * (height + bottom) * channels
        if whole <= WHOLE_MAP_BYTES:
            return weights + whole + DEPTHWISE_MARGIN
        row = (width + right) * channels
        rows = (WHOLE_MAP_BYTES - weights - 2 * DEPTHWISE_MARGIN) // row
        rows = min(max(rows, kernel[1]), height + bottom)
        return weights + rows * row + 2 * DEPTHWISE_MARGIN
    if channels >= WIDE_CHANNELS:
        padded = aligned(channels, VECTOR)
        columns = width + 2 * padding[1] + max(0, right)
        rows = height + 2 * padding[0] + max(0, bottom)
        maps = rows * columns + result[1] * result[2]
        per_channel = 3 * INT32  # shift, multiplier and bias
        return (9 + maps + per_channel) * padded + WIDE_DEPTHWISE_MARGIN
    return in_int16


def _padded_depthwise(source, kernel, result):
    """Channels that are padded to a multiple of 8: input as int16, output and parameters."""
    padded = aligned(source[3], HALF_VECTOR)
    end = aligned(INT16 * kernel[1] * kernel[2] * padded, VECTOR)
    end = aligned(end + INT16 * source[1] * source[2] * padded, VECTOR)
    end = aligned(end + result[1] * result[2] * padded, VECTOR)
    return end + 3 * INT32 * padded + DEPTHWISE_MARGIN
