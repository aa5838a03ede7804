"""Rewrites an int8 `.tflite` for the kernels of CPUs, without changing one output bit.

XNNPACK computes 16 channels of a position at a time, and a map of 8 leaves half of that idle. In
memory the columns of a row lie one behind another, channels first: a map (1, h, w, c) is as well
one of (1, h, w / n, n c), whose channels are those of n neighbouring columns, without a byte moved.
So a convolution becomes one of such maps, with the same weights at other places and zeros. A
depthwise one does where n divides its dilation; elsewhere it reads copies of its input that are
shifted as its taps are, side by side, which copies whole rows. PAD, which XNNPACK copies pixel by
pixel, becomes one of whole rows, too. What is done is chosen by cost (`COPY` to `LANES`), as it was
measured on one thread of an x86 with AVX512-VNNI.

Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.deploy.flatbuffer import constant, operator_name, read_tflite, write_tflite
from ddunet_keras.deploy.memory import only_graph, strip_names
from ddunet_keras.deploy.strips import ELEMENTWISE, add_operator

# costs are in products of one input value with the weights of 16 filters, some 0.07 ns
LANES = 16
"""Channels that a kernel computes at a time."""
COPY = 1.0
"""Cost of a byte that is copied with its row."""
CHUNK = 40.0
"""Cost of each part of a concatenation of channels, at a position."""
POSITION = 40
"""Cost of what a convolution does at a position beside its products."""
DEPTHWISE = 105.0
"""Cost of a depthwise 3x3 convolution of 16 channels at a position, beside `START`."""
START = 15
COLUMNS = (2, 4, 8)
"""Numbers of neighbouring columns that are tried."""
GAIN = 0.9
"""Share of the cost without merging that it must not exceed."""


def merge_columns(data) -> bytes:
    """A `.tflite` that computes the same, bit for bit, faster on XNNPACK.

    Args:
        data: bytes of an int8 `.tflite` with one subgraph and fixed shapes.

    Raises:
        DataError: the file is unsound.
    """
    model = read_tflite(data)
    _Merge(model).run()
    strip_names(model)
    return write_tflite(model)


def _up(value, multiple):
    return -(-value // multiple) * multiple


class _Merge:
    """Rewrites a model's operators one by one.

    `forms`: index of a tensor of the model given -> {n: index of its form with n columns merged},
    the one that is computed first. `orders`: of a concatenation of merged maps, for each column the
    places of its channels.
    """

    def __init__(self, model):
        self.model, self.graph = model, only_graph(model)
        self.operators, self.forms, self.orders = [], {}, {}
        self.readers, self.makers = {}, {}
        for operator in self.graph.operators:
            for index in operator.inputs:
                self.readers.setdefault(index, []).append(operator)
            for index in operator.outputs:
                self.makers[index] = operator

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

    def tensor(self, like, shape):
        new = copy.copy(self.graph.tensors[like])
        new.shape, new.shapeSignature, new.name, new.buffer = list(shape), None, None, 0
        self.graph.tensors.append(new)
        return len(self.graph.tensors) - 1

    def merged(self, index, count):
        """A new tensor, or this one, of its shape with `count` columns merged."""
        _, h, w, c = self.shape(index)
        return index if count == 1 else self.tensor(index, (1, h, w // count, count * c))

    def constant(self, array, like=None, count=1):
        """A constant, with the scales of tensor `like` for each of `count` columns."""
        array = np.ascontiguousarray(array)
        self.model.buffers.append(schema.BufferT(np.frombuffer(array.tobytes(), np.uint8)))
        if like is None:
            new = schema.TensorT(type=schema.TensorType.INT32)
        else:
            new = copy.copy(self.graph.tensors[like])
            new.quantization = copy.copy(new.quantization)
            if len(new.quantization.scale) > 1:
                new.quantization.scale = np.tile(new.quantization.scale, count)
                new.quantization.zeroPoint = np.tile(new.quantization.zeroPoint, count)
        new.shape, new.buffer = list(array.shape), len(self.model.buffers) - 1
        self.graph.tensors.append(new)
        return len(self.graph.tensors) - 1

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

    def form(self, index, count=1):
        """The tensor with `count` columns merged."""
        forms = self.forms.setdefault(index, {1: index})
        if count not in forms:
            forms[count] = self.reshape(self.native(index)[1], self.merged(index, count))
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

    def padded(self, index, above, below, left, right):
        """A map with padding as one of whole rows: (1, rows, 1, values)."""
        _, h, w, c = self.shape(index)
        pads = self.constant(np.int32([[0, 0], [above, below], [0, 0], [left * c, right * c]]))
        shape = (1, above + h + below, 1, (left + w + right) * c)
        inputs = [self.form(index, w), pads]
        return self.add("PAD", inputs, self.tensor(index, shape), schema.PadOptionsT())

    # === Which operator becomes what ===

    def rewrite(self, operator, name):
        first = operator.inputs[0] if operator.inputs else -1
        if len(operator.outputs) != 1 or not self.moving(first):
            pass
        elif name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            count = self.best(operator, name)
            if count > 1:
                return (self.convolution if name == "CONV_2D" else self.depthwise)(operator, count)
        elif name == "CONCATENATION" and self.joined(operator):
            count = self.best(self.readers[operator.outputs[0]][0], "CONV_2D")
            if count > 1:
                return self.concatenation(operator, count)
        elif name == "PAD" and (pads := self.value(operator.inputs[1])) is not None:
            if pads.shape == (4, 2) and not pads[[0, 3]].any():
                self.reshape(self.padded(first, *pads[1], *pads[2]), operator.outputs[0])
                return None
        elif name in ELEMENTWISE and name != "SOFTMAX":
            shape = self.shape(operator.outputs[0])
            whole = [i for i in operator.inputs if i >= 0 and math.prod(self.shape(i)) > 1]
            if all(self.moving(i) and self.shape(i) == shape for i in whole):
                count = self.native(first)[0] or 1
                inputs = [self.form(i, count) if i in whole else i for i in operator.inputs]
                return self.put(operator, inputs, count)
        elif name == "RESHAPE" and self.moving(operator.outputs[0]):
            # the bytes are the same in every form
            self.forms[operator.outputs[0]] = {None: self.native(first)[1]}
            return None
        operator.inputs = [i if i < 0 else self.form(i) for i in operator.inputs]
        self.operators.append(operator)
        return None

    def joined(self, operator):
        """Whether a concatenation of channels has one reader, a 1x1 convolution."""
        (output,) = operator.outputs
        readers = self.readers.get(output, ())
        return (
            operator.builtinOptions.axis % 4 == 3
            and output not in self.graph.outputs
            and [operator_name(self.model, reader) for reader in readers] == ["CONV_2D"]
            and self.shape(readers[0].inputs[1])[1:3] == (1, 1)
            and all(self.moving(i) for i in operator.inputs)
        )

    def best(self, operator, name):
        """For how many merged columns a convolution costs the least; 1 where it cannot be done."""
        options, source = operator.builtinOptions, operator.inputs[0]
        values = [self.value(i) for i in operator.inputs[1:] if i >= 0]
        shape, (_, _, w, filters) = self.shape(source), self.shape(operator.outputs[0])
        if (
            any(value is None for value in values)
            or values[0].dtype != np.int8
            or (options.strideW, options.strideH) != (1, 1)
            or shape[:3] != self.shape(operator.outputs[0])[:3]
        ):
            return 1
        (_, h, width, _), channels, copied = values[0].shape, shape[3], 0
        if name == "DEPTHWISE_CONV_2D":
            if (h, width) != (3, 3) or options.depthMultiplier != 1:
                return 1
        elif h % 2 == 0 or width % 2 == 0 or (width > 1 and options.dilationWFactor > 1):
            return 1
        else:
            maker = self.makers.get(source)
            if maker is not None and operator_name(self.model, maker) == "CONCATENATION":
                copied = CHUNK * len(maker.inputs) if self.joined(maker) else 0
        costs = {}
        for count in (1, *COLUMNS):
            if w % count:
                continue
            if name == "DEPTHWISE_CONV_2D":
                cost = (START + DEPTHWISE * _up(count * channels, LANES) / LANES) / count
                if options.dilationWFactor % count:
                    cost += COPY * (1 + width) * channels
            else:
                taps = h * -(-(count + width - 1) // count)
                products = taps * _up(count * channels, 8) + POSITION
                cost = (products * _up(count * filters, LANES) / LANES + copied) / count
                cost += COPY * channels if count > 1 and width > 1 else 0
            costs[count] = cost
        best = min(costs, key=costs.get)
        return best if costs[best] <= GAIN * costs[1] else 1

    # === The rewritten operators ===

    def convolution(self, operator, count):
        source, kernel, *bias = operator.inputs
        whole = self.value(kernel)
        filters, h, w, channels = whole.shape
        order = self.orders.get(source, np.arange(count * channels).reshape(count, channels))
        groups = -(-(count + w - 1) // count)
        merged = np.zeros((count, filters, h, groups, count * channels), np.int8)
        for column, tap in np.ndindex(count, w):
            group, member = divmod(column + tap, count)
            merged[column, :, :, group, order[member]] = whole[:, :, tap].transpose(2, 0, 1)
        merged = self.constant(merged.reshape(count * filters, h, groups, -1), kernel, count)
        options = {}
        if (h, w) == (1, 1):
            inputs = [self.form(source, count), merged]
        else:
            _, rows, columns, _ = self.shape(source)
            above, left = operator.builtinOptions.dilationHFactor * (h // 2), w // 2
            right = count * (groups - 1) - left
            padded = self.padded(source, above, above, left, right)
            shape = (1, rows + 2 * above, columns // count + groups - 1, count * channels)
            inputs = [self.reshape(padded, self.tensor(source, shape)), merged]
            options = {"padding": schema.Padding.VALID}
        self.put(operator, inputs + self.repeated(bias, count), count, **options)

    def repeated(self, bias, count):
        return [self.constant(np.tile(self.value(i), count), i, count) for i in bias]

    def depthwise(self, operator, count):
        source, kernel, *bias = operator.inputs
        options = operator.builtinOptions
        rate, across = options.dilationHFactor, options.dilationWFactor
        kernel = self.constant(np.tile(self.value(kernel), count), kernel, count)
        bias = self.repeated(bias, count)
        if across % count == 0:
            inputs = [self.form(source, count), kernel, *bias]
            return self.put(operator, inputs, count, dilationWFactor=across // count)
        # copies of each row side by side, so far apart that from one tap's place in its copy to the
        # next one's in the next are whole merged columns
        _, h, w, c = self.shape(source)
        gap = -2 * across % count
        copies = [self.padded(source, rate, rate, across, right) for right in (gap, across)]
        copies = [copies[0], copies[0], copies[1]]
        width = sum(self.shape(i)[3] for i in copies) // c
        rows = self.tensor(source, (1, h + 2 * rate, 1, width * c))
        self.add("CONCATENATION", copies, rows, schema.ConcatenationOptionsT(3, 0))
        shape = (1, h + 2 * rate, width // count, count * c)
        rows = self.reshape(rows, self.tensor(source, shape))
        options = {"padding": schema.Padding.VALID, "dilationWFactor": (width - w) // 2 // count}
        return self.put(operator, [rows, kernel, *bias], count, **options)

    def concatenation(self, operator, count):
        """Of merged maps: the columns of each lie together."""
        self.put(operator, [self.form(i, count) for i in operator.inputs], count)
        parts, start = [], 0
        for index in operator.inputs:
            size = count * self.shape(index)[3]
            parts.append(np.arange(start, start + size).reshape(count, -1))
            start += size
        self.orders[operator.outputs[0]] = np.concatenate(parts, 1)
