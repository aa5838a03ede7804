"""Rewrites an int8 `.tflite` for the kernels of CPUs, without changing one output bit.

XNNPACK computes 16 channels of a position at a time, and a map of 8 leaves half of that idle. In
memory the columns of a row lie one behind another, channels first: a map (1, h, w, c) is as well
one of (1, h, w / n, n c), whose channels are those of n neighbouring columns, without a byte moved.
So a convolution becomes one of such maps, with the same weights at other places and zeros. A
depthwise one does where n divides its dilation; elsewhere it reads copies of its input that lie
side by side.

What XNNPACK copies pixel by pixel is copied by rows or as a whole: PAD becomes one of rows, unless
it is part of the convolution behind it, and a concatenation of channels becomes one of rows below
each other, which a convolution with a tap in each part reads, be it the one that reads it anyway or
one that copies.

XNNPACK has no int8 Softmax. What can be computed before one LiteRT gives it in one piece: so the
maps of all branches, which have left the cache when the Softmax has their weights. Here the file
says that what stands after a Softmax waits for it.

What is done is chosen by its cost, measured on one thread of an x86 with AVX512-VNNI. Arm needs
fewer instructions, too: `tools/benchmark_arm.py`.

Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.model import (
    add_constant,
    add_operator,
    add_tensor,
    constant,
    operator_name,
    read_tflite,
    set_metadata,
    write_tflite,
)
from ddunet_keras.litert.schedule import only_graph, strip_names
from ddunet_keras.litert.strips import ELEMENTWISE

# costs are those of a pixel, in products of one value with the weights of 16 filters: some 0.07 ns
LANES = 16
"""Channels that a kernel computes at a time."""
COPY = 0.7
"""Cost of a byte that is copied with others."""
CHUNK = 40.0
"""Cost of each part of a concatenation of channels."""
POSITION = 40
"""Cost of a convolution at a position, beside its products."""
DEPTHWISE = 15, 105
"""Cost of a depthwise 3x3 convolution at a position, and for each 16 channels there."""
COLUMNS = (2, 4, 8, 16)
"""Numbers of neighbouring columns that are tried."""
GAIN = 0.9
"""Share of the cost as it was that what replaces it must not exceed."""

CONTROL = b"model_control_dependencies"
"""Name of the metadata with pairs of operators, the second of which waits for the first."""


def merge_columns(data) -> bytes:
    """A `.tflite` that computes the same, bit for bit, faster on XNNPACK.

    Args:
        data: bytes of an int8 `.tflite` with one subgraph and fixed shapes.

    Raises:
        TFLiteError: the file is unsound.
    """
    model = read_tflite(data)
    _Merge(model).run()
    strip_names(model)
    _wait_for_softmax(model)
    return write_tflite(model)


def _wait_for_softmax(model):
    """Has LiteRT compute what stands after a Softmax after it. The numbers of operators are those
    of the file as it is, so this comes last.

    Source of the format: `metadata_util.cc` of TensorFlow Lite, version 1.
    """
    graph, edges, found, sources = only_graph(model), [], set(), {}
    for number, operator in enumerate(graph.operators):
        waits = set().union(*(sources.get(index, ()) for index in operator.inputs))
        edges += [(softmax, number) for softmax in sorted(found - waits)]
        if operator_name(model, operator) == "SOFTMAX":
            found.add(number)
            waits.add(number)
        sources |= dict.fromkeys(operator.outputs, waits)
    if edges:  # version, number of graphs, of pairs, and those, as signed numbers: doubled
        numbers = [1, 1, len(edges), *(2 * number for edge in edges for number in edge)]
        set_metadata(model, CONTROL, b"".join(map(_varint, numbers)))


def _varint(number):
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    more, low = divmod(number, 128)
    return bytes([low | 128]) + _varint(more) if more else bytes([low])


def _up(value, multiple):
    return -(-value // multiple) * multiple


def _groups(count, width):
    """How many merged columns a kernel of `width` columns reads, for `count` columns at once."""
    return -(-(count + width - 1) // count)


def _convolution(count, kernel, filters):
    """Cost with `count` columns merged of a convolution whose kernel is (h, w, channels)."""
    h, w, channels = kernel
    products = h * _groups(count, w) * _up(count * channels, 8)
    cost = (products + POSITION) * _up(count * filters, LANES) / LANES / count
    return cost + (COPY * channels if w > 1 and count > 1 else 0)


def _depthwise(count, rate, channels):
    """Cost with `count` columns merged of a depthwise 3x3 convolution whose dilation is `rate`."""
    position, lanes = DEPTHWISE
    cost = (position + lanes * _up(count * channels, LANES) / LANES) / count
    return cost + (5 * COPY * channels if rate % count else 0)


def _cheapest(width, cost):
    """Number of merged columns, of those that divide the width, that costs the least, and cost."""
    costs = {count: cost(count) for count in (1, *COLUMNS) if width % count == 0}
    best = min(costs, key=costs.get)
    best = best if costs[best] <= GAIN * costs[1] else 1
    return best, costs[best]


class _Merge:
    """Rewrites a model's operators one by one.

    `forms`: index of a tensor of the model given -> {n: index of its form with n columns merged},
    the one that is computed first. `stacks`: index of a concatenation that is left to its reader ->
    its parts.
    """

    def __init__(self, model):
        self.model, self.graph = model, only_graph(model)
        self.operators, self.forms, self.stacks, self.readers = [], {}, {}, {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                self.readers.setdefault(index, []).append(operator)

    def run(self):
        for operator in self.graph.operators:
            self.rewrite(operator, operator_name(self.model, operator))
        for index in self.graph.outputs:
            self.form(index)
        self.graph.operators = self.operators

    # === Tensors and operators ===

    def shape(self, index):
        return tuple(self.graph.tensors[index].shape)

    def value(self, index):
        return constant(self.model, self.graph, index)

    def moving(self, index):
        """Whether a tensor is computed, and a map of one image."""
        if index < 0 or self.value(index) is not None:
            return False
        return len(self.shape(index)) == 4 and self.shape(index)[0] == 1

    def reader(self, index, name):
        """The only operator that reads a tensor, where it is of this kind; else None."""
        readers = self.readers.get(index, ())
        if index in self.graph.outputs or len(readers) != 1:
            return None
        return readers[0] if operator_name(self.model, readers[0]) == name else None

    def tensor(self, like, shape):
        return add_tensor(self.graph, like, shape)

    def merged(self, index, count):
        """A new tensor, or this one, of its shape with `count` columns merged."""
        _, h, w, c = self.shape(index)
        return index if count == 1 else self.tensor(index, (1, h, w // count, count * c))

    def constant(self, array, quantization=None):
        return add_constant(self.model, self.graph, array, quantization)

    def repeated(self, array, like, count):
        """A constant with the scales of tensor `like` for each of `count` columns."""
        quantization = copy.copy(self.graph.tensors[like].quantization)
        if len(quantization.scale) > 1:
            quantization.scale = np.tile(quantization.scale, count)
            quantization.zeroPoint = np.tile(quantization.zeroPoint, count)
        return self.constant(array, quantization)

    def add(self, name, inputs, output, options=None):
        self.operators.append(add_operator(self.model, name, inputs, [output], options))
        return output

    def reshape(self, source, target):
        shape = self.shape(target)
        options = schema.ReshapeOptionsT(list(shape))
        return self.add("RESHAPE", [source, self.constant(np.int32(shape))], target, options)

    def native(self, index):
        """(n, tensor) of the form in which a tensor is computed; n is None where it is a reshaped
        one."""
        return next(iter(self.forms.get(index, {1: index}).items()))

    def source(self, index):
        """The form to reshape: the first one that was. XNNPACK moves nothing where a reshape is the
        only reader, so the others are better made from its result."""
        return list(self.forms.get(index, {1: index}).values())[:2][-1]

    def form(self, index, count=1):
        """The tensor with `count` columns merged."""
        forms = self.forms.setdefault(index, {1: index})
        if count not in forms:
            forms[count] = self.reshape(self.source(index), self.merged(index, count))
        return forms[count]

    def put(self, operator, inputs, count=1, **options):
        """The operator with other inputs and options, its output with `count` columns merged."""
        (output,) = operator.outputs
        new = copy.copy(operator)
        new.inputs, new.outputs = inputs, [self.merged(output, count)]
        if options:
            new.builtinOptions = copy.copy(operator.builtinOptions)
            vars(new.builtinOptions).update(options)
        self.forms[output] = {count: new.outputs[0]}
        self.operators.append(new)
        return True

    def padded(self, index, above, below, left, right):
        """A map with padding as one of whole rows: (1, rows, 1, values)."""
        _, h, w, c = self.shape(index)
        pads = self.constant(np.int32([[0, 0], [above, below], [0, 0], [left * c, right * c]]))
        shape = (1, above + h + below, 1, (left + w + right) * c)
        inputs = [self.form(index, w), pads]
        return self.add("PAD", inputs, self.tensor(index, shape), schema.PadOptionsT())

    def part(self, source, start, shape):
        """Values of this shape, from the last axis's value `start` on."""
        begin = self.constant(np.int32([0, 0, 0, start]))
        inputs = [source, begin, self.constant(np.int32(shape))]
        return self.add("SLICE", inputs, self.tensor(source, shape), schema.SliceOptionsT())

    def window(self, index, above, width, count):
        """A map with merged columns and the padding that a kernel of so many columns asks for."""
        _, h, w, c = self.shape(index)
        left, more = width // 2, _groups(count, width) - 1
        padded = self.padded(index, above, above, left, count * more - left)
        shape = (1, h + 2 * above, w // count + more, count * c)
        return self.reshape(padded, self.tensor(index, shape))

    def kernel(self, whole, like, count):
        """A convolution's kernel (filters, h, w, channels), for `count` merged columns, whose taps
        begin w // 2 columns to the left."""
        filters, h, w, channels = whole.shape
        groups = _groups(count, w)
        merged = np.zeros((count, filters, h, groups, count, channels), np.int8)
        for column, tap in np.ndindex(count, w):
            group, member = divmod(column + tap, count)
            merged[column, :, :, group, member] = whole[:, :, tap]
        return self.repeated(merged.reshape(count * filters, h, groups, -1), like, count)

    def biases(self, indices, count):
        return [self.repeated(np.tile(self.value(i), count), i, count) for i in indices]

    def convolve(self, operator, source, whole, count, **options):
        """Puts a convolution of a tensor as it is, with the kernel `whole`, not yet merged."""
        _, kernel, *bias = operator.inputs
        inputs = [source, self.kernel(whole, kernel, count), *self.biases(bias, count)]
        return self.put(operator, inputs, count, **options)

    # === Which operator becomes what ===

    def rewrite(self, operator, name):
        first = operator.inputs[0] if operator.inputs else -1
        done = operator.outputs[0] in self.forms
        if not done and len(operator.outputs) == 1 and self.moving(first):
            output = self.shape(operator.outputs[0])
            if name == "CONV_2D":
                done = self.simple(operator) and self.convolution(operator)
            elif name == "DEPTHWISE_CONV_2D":
                done = self.simple(operator) and self.depthwise(operator)
            elif name == "CONCATENATION":
                done = self.concatenation(operator)
            elif name == "PAD":
                done = self.pad(operator)
            elif name == "BATCH_MATMUL":
                done = self.products(operator)
            elif name in ELEMENTWISE and name != "SOFTMAX":
                whole = [i for i in operator.inputs if i >= 0 and math.prod(self.shape(i)) > 1]
                if all(self.moving(i) and self.shape(i) == output for i in whole):
                    count = self.native(first)[0] or 1
                    inputs = [self.form(i, count) if i in whole else i for i in operator.inputs]
                    done = self.put(operator, inputs, count)
            elif name == "RESHAPE" and self.moving(operator.outputs[0]):
                # the bytes are the same in every form
                self.forms[operator.outputs[0]] = {None: self.source(first)}
                done = True
        if not done:
            operator.inputs = [i if i < 0 else self.form(i) for i in operator.inputs]
            self.operators.append(operator)

    def simple(self, operator):
        """Whether a convolution has constant int8 weights, an output of the input's size and, for
        each filter, weights for all channels or, depthwise, for its own."""
        values = [self.value(index) for index in operator.inputs[1:]]
        options, shape = operator.builtinOptions, self.shape(operator.inputs[0])
        return (
            all(value is not None for value in values)
            and values[0].dtype == np.int8
            and values[0].shape[3] == shape[3]
            and (options.strideW, options.strideH) == (1, 1)
            and shape[:3] == self.shape(operator.outputs[0])[:3]
        )

    # === The rewritten operators: each returns whether it was ===

    def convolution(self, operator):
        source, kernel = operator.inputs[:2]
        whole, options = self.value(kernel), operator.builtinOptions
        parts = self.stacks.get(source, [source])
        if len(parts) > 1:  # a tap in each
            whole = whole.reshape(len(whole), len(parts), 1, -1)
        filters, h, w, channels = whole.shape
        _, rows, columns, _ = self.shape(source)
        even = h % 2 == 0 or w % 2 == 0
        if len(parts) == 1 and (even or (w > 1 and options.dilationWFactor > 1)):
            return False
        count, _ = _cheapest(columns, lambda n: _convolution(n, (h, w, channels), filters))
        if count == 1 and len(parts) == 1:
            return False
        changed = {"padding": schema.Padding.VALID}
        if len(parts) > 1:
            source = self.stacked(parts, count)
            changed["dilationHFactor"] = rows
        elif (h, w) == (1, 1):
            source, changed = self.form(source, count), {}
        else:
            source = self.window(source, options.dilationHFactor * (h // 2), w, count)
        return self.convolve(operator, source, whole, count, **changed)

    def stacked(self, parts, count):
        """Maps of one shape below each other."""
        _, h, w, c = self.shape(parts[0])
        like = w if any(w in self.forms.get(index, ()) for index in parts) else count
        inputs = [self.form(index, like) for index in parts]
        rows = self.tensor(parts[0], (1, len(parts) * h, w // like, like * c))
        self.add("CONCATENATION", inputs, rows, schema.ConcatenationOptionsT(1, 0))
        if like == count:
            return rows
        shape = (1, len(parts) * h, w // count, count * c)
        return self.reshape(rows, self.tensor(parts[0], shape))

    def concatenation(self, operator):
        parts, (output,) = operator.inputs, operator.outputs
        if (
            operator.builtinOptions.axis % 4 != 3
            or operator.builtinOptions.fusedActivationFunction
            or len(parts) < 2
            or self.graph.tensors[output].type != schema.TensorType.INT8
            or not all(self.moving(i) and self.shape(i) == self.shape(parts[0]) for i in parts)
        ):
            return False
        reader = self.reader(output, "CONV_2D")
        if reader and self.simple(reader) and self.shape(reader.inputs[1])[1:3] == (1, 1):
            self.stacks[output] = parts
            return True
        _, _, w, c = self.shape(parts[0])
        kernel, filters = (len(parts), 1, c), len(parts) * c
        _, cost = _cheapest(w, lambda n: _convolution(n, kernel, filters))
        if cost + COPY * filters > GAIN * CHUNK * len(parts):
            return False
        # by a convolution with ones
        step = self.graph.tensors[output].quantization.scale[0]
        values = np.eye(filters, dtype=np.int8)[:, None, None], np.zeros(filters, np.int32)
        weights = []
        for value, scale in zip(values, (1.0, step), strict=True):
            quantization = schema.QuantizationParametersT()
            quantization.scale = np.full(filters, scale, "float32")
            quantization.zeroPoint = np.zeros(filters, "int64")
            quantization.quantizedDimension = 0
            weights.append(self.constant(value, quantization))
        self.stacks[output] = parts
        options = schema.Conv2DOptionsT(schema.Padding.VALID, 1, 1, 0, 1, 1)
        inputs = [output, *weights]
        return self.convolution(add_operator(self.model, "CONV_2D", inputs, [output], options))

    def depthwise(self, operator):
        source, kernel, *bias = operator.inputs
        options = operator.builtinOptions
        _, h, w, c = self.shape(source)
        if self.shape(kernel)[1:3] != (3, 3):
            return False
        rate, across = options.dilationHFactor, options.dilationWFactor
        count, _ = _cheapest(w, lambda n: _depthwise(n, across, c))
        if count == 1:
            return False
        kernel = self.repeated(np.tile(self.value(kernel), count), kernel, count)
        bias = self.biases(bias, count)
        if across % count == 0:
            inputs = [self.form(source, count), kernel, *bias]
            return self.put(operator, inputs, count, dilationWFactor=across // count)
        # copies of each row side by side, so far apart that from one tap's place in its copy to the
        # next one's in the next are whole merged columns
        padded, more = self.padded(source, rate, rate, across, across), -3 * across % count * c
        copies = [padded] * 3
        if more:  # of any values
            gap = self.part(padded, 0, (1, h + 2 * rate, 1, more))
            copies = [padded, gap, padded, gap, padded]
        width = sum(self.shape(i)[3] for i in copies) // c
        rows = self.tensor(source, (1, h + 2 * rate, 1, width * c))
        self.add("CONCATENATION", copies, rows, schema.ConcatenationOptionsT(3, 0))
        shape = (1, h + 2 * rate, width // count, count * c)
        rows = self.reshape(rows, self.tensor(source, shape))
        changed = {"padding": schema.Padding.VALID, "dilationWFactor": (width - w) // 2 // count}
        return self.put(operator, [rows, kernel, *bias], count, **changed)

    def products(self, operator):
        """A dynamic 3x3 convolution: a product with a computed matrix, for each tap, and a sum of
        shifted products. Each row of taps gets a plane, so that the sum reads it alone."""
        (left, right), (output,) = operator.inputs, operator.outputs
        reshape = self.reader(output, "RESHAPE")
        reader = reshape and self.reader(reshape.outputs[0], "CONV_2D")
        if not reader or not self.simple(reader) or not self.moving(right):
            return False
        kernel, options = self.value(reader.inputs[1]), reader.builtinOptions
        (_, h, w, taps), channels = self.shape(reader.inputs[0]), self.shape(right)[2]
        if (
            kernel.shape[1:3] != (3, 3)
            or taps % 3
            or (options.dilationHFactor, options.dilationWFactor) != (1, 1)
            or operator.builtinOptions.adjX
            or operator.builtinOptions.adjY
            or self.shape(left) != (1, 1, h * w, channels)
            or self.shape(right) != (1, 1, channels, taps)
            or self.graph.tensors[right].quantization.zeroPoint[0] != 0  # which pads it
        ):
            return False
        across, filters = taps // 3, len(kernel)
        planes = kernel.reshape(filters, 3, 3, 3, across)  # (filters, h, w, plane, channels)
        own = np.stack([planes[:, row, :, row] for row in range(3)], 1)
        if np.count_nonzero(own) != np.count_nonzero(kernel):
            return False
        count, cost = _cheapest(w, lambda n: 3 * _convolution(n, (1, 1, channels), across))
        columns, summing = _cheapest(w, lambda n: _convolution(n, (3, 3, across), filters))
        _, before = _cheapest(w, lambda n: _convolution(n, (3, 3, taps), filters))
        if cost + summing > GAIN * (before + _convolution(1, (1, 1, channels), taps)):
            return False
        size = count * across

        def small(name, inputs, shape, options):
            return self.add(name, inputs, self.tensor(right, shape), options)

        def wider(source, more):
            shape = list(self.shape(source))
            shape[3] += more
            pads = self.constant(np.int32([[0, 0]] * 3 + [[0, more]]))
            return small("PAD", [source, pads], shape, schema.PadOptionsT())

        def join(parts, axis):
            shape = list(self.shape(parts[0]))
            shape[axis] *= len(parts)
            return small("CONCATENATION", parts, shape, schema.ConcatenationOptionsT(axis, 0))

        whole, shape = self.form(right), (1, 1, channels, across)
        rows = [self.part(whole, row * across, shape) for row in range(3)]
        matrix = wider(join(rows, 1), size - across)
        # block after block on the diagonal
        matrix = self.reshape(matrix, self.tensor(right, (1, 3, 1, channels * size)))
        matrix = join([wider(matrix, across)] * count, 3)
        matrix = self.part(matrix, 0, (1, 3, 1, count * channels * size))
        matrix = self.reshape(matrix, self.tensor(right, (1, 3, count * channels, size)))
        shape = (1, 1, h * w // count, count * channels)
        source = self.reshape(self.source(left), self.tensor(left, shape))
        new = copy.copy(operator)
        new.inputs = [source, matrix]
        new.outputs = [self.tensor(output, (1, 3, h * w // count, size))]
        self.operators.append(new)
        stack = self.tensor(output, (1, 3 * h, w, across))
        self.forms[stack] = {None: new.outputs[0]}
        source = self.window(stack, 1, 3, columns)
        changed = {"padding": schema.Padding.VALID, "dilationHFactor": h + 1}
        return self.convolve(reader, source, own, columns, **changed)

    def pad(self, operator):
        """Of whole rows: their first and last values are the first and last pixels' channels."""
        source, pads = operator.inputs[0], self.value(operator.inputs[1])
        if pads is None or pads.shape != (4, 2) or pads[[0, 3]].any():
            return False
        if self.native(source)[0] == 1 and self.reader(operator.outputs[0], "CONV_2D"):
            return False  # XNNPACK pads within the convolution
        self.reshape(self.padded(source, *pads[1], *pads[2]), operator.outputs[0])
        return True
