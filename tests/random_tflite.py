"""Small int8 networks of random layers, made by hand: what the memory passes are tried on."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tiny_tflite import Graph

from ddunet_keras.litert.model import read_tflite, write_tflite
from ddunet_keras.litert.run import run_litert

SCALE, ZERO = 0.05, 3


class Network:
    """Random int8 layers on feature maps of one scale."""

    def __init__(self, seed, size=(16, 16), channels=3):
        self.random = np.random.default_rng(seed)
        self.graph = Graph()
        self.source = self.graph.tensor((1, *size, channels), "int8", SCALE, ZERO)

    def shape(self, x):
        return self.graph.tensors[x].shape

    def add(self, name, inputs, shape, options=None, scale=SCALE, zero=ZERO):
        return self.graph.operator(name, inputs, shape, "int8", scale, zero, options)

    def weights(self, shape, fan, channels):
        weight = self.graph.constant(
            self.random.integers(-127, 128, shape).astype(np.int8), 1 / 73 / fan**0.5
        )
        self.graph.tensors[weight].quantization.quantizedDimension = 0
        bias = self.random.integers(-1000, 1000, channels).astype(np.int32)
        return weight, self.graph.constant(bias, SCALE / 73 / fan**0.5)

    def conv(self, x, filters, size=3, stride=1, padding="SAME", dilation=1):
        _, h, w, c = self.shape(x)
        weights = self.weights((filters, size, size, c), size * size * c, filters)
        rows = h if padding == "SAME" else h - (size - 1) * dilation
        columns = w if padding == "SAME" else w - (size - 1) * dilation
        options = schema.Conv2DOptionsT(
            getattr(schema.Padding, padding), stride, stride, 0, dilation, dilation
        )
        shape = (1, -(-rows // stride), -(-columns // stride), filters)
        return self.add("CONV_2D", [x, *weights], shape, options)

    def depthwise(self, x, dilation=1):
        shape = self.shape(x)
        weights = self.weights((1, 3, 3, shape[3]), 9, shape[3])
        options = schema.DepthwiseConv2DOptionsT(
            schema.Padding.SAME, 1, 1, 1, 1, dilation, dilation
        )
        return self.add("DEPTHWISE_CONV_2D", [x, *weights], shape, options)

    def down(self, x):
        _, h, w, c = self.shape(x)
        pads = self.graph.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
        padded = self.add("PAD", [x, pads], (1, h + 2, w + 2, c), schema.PadOptionsT())
        return self.conv(padded, c, stride=2, padding="VALID")

    def up(self, x):
        _, h, w, c = self.shape(x)
        size = self.graph.constant(np.array([2 * h, 2 * w], np.int32))
        options = schema.ResizeBilinearOptionsT(False, True)
        return self.add("RESIZE_BILINEAR", [x, size], (1, 2 * h, 2 * w, c), options)

    def sum(self, x, y):
        return self.add("ADD", [x, y], self.shape(x), schema.AddOptionsT(0, True))

    def gate(self, x, y):
        """x and the global average of y."""
        axes = self.graph.constant(np.array([1, 2], np.int32))
        shape = (1, 1, 1, self.shape(y)[3])
        mean = self.add("MEAN", [y, axes], shape, schema.ReducerOptionsT(True))
        return self.sum(x, mean)

    def join(self, *parts):
        shape = (*self.shape(parts[0])[:3], sum(self.shape(x)[3] for x in parts))
        return self.add("CONCATENATION", list(parts), shape, schema.ConcatenationOptionsT(3, 0))

    def relu(self, x):
        return self.add("RELU", [x], self.shape(x))

    def data(self, result):
        return write_tflite(self.graph.model(self.source, result))


def random_network(seed):
    """A chain of twelve random layers that also look back at earlier feature maps."""
    random = np.random.default_rng(seed)
    net = Network(seed, (int(random.choice([16, 24, 32])), int(random.choice([8, 12, 16]))))
    outputs = [net.conv(net.source, int(random.choice([2, 4, 6])))]
    for _ in range(12):
        x = outputs[-1]
        shape = net.shape(x)
        twins = [y for y in outputs if net.shape(y) == shape]
        alike = [y for y in outputs if net.shape(y)[:3] == shape[:3]]
        twin, mate = int(random.choice(twins)), int(random.choice(alike))
        layers = [
            lambda x=x: net.conv(x, int(random.integers(1, 6)), int(random.choice([1, 3]))),
            lambda x=x: net.conv(x, 4, dilation=2),
            lambda x=x: net.depthwise(x, int(random.integers(1, 5))),
            lambda x=x, y=twin: net.sum(x, y),
            lambda x=x, y=mate: net.join(x, y),
            lambda x=x, y=twin: net.gate(x, y),
            lambda x=x: net.relu(x),
        ]
        if shape[1] % 4 == 0 and shape[2] % 4 == 0 and shape[1] > 8:
            layers += [lambda x=x: net.down(x), lambda x=x: net.conv(x, 3, stride=2)]
        if shape[1] < 32:
            layers += [lambda x=x: net.up(x)] * 2
        outputs.append(layers[random.integers(len(layers))]())
    return net.data(outputs[-1])


def u_net(size=(32, 32)):
    """Two stages with a gate and a skip connection: what the passes are made for."""
    net = Network(0, size)
    x = net.relu(net.conv(net.source, 8))
    skip = net.sum(net.gate(net.depthwise(x, 2), x), net.depthwise(x, 4))
    low = net.depthwise(net.conv(net.down(skip), 8, 1))
    both = net.join(net.relu(net.up(low)), skip)
    both = net.sum(both, net.conv(net.depthwise(both), 16, 1))
    logits = net.conv(net.conv(both, 4), 1)
    return net.data(net.add("LOGISTIC", [logits], net.shape(logits), None, 1 / 256, -128))


def photos(data, count=2):
    graph = read_tflite(data).subgraphs[0]
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    return np.random.default_rng(1).integers(-128, 128, (count, *shape)).astype(np.int8)


def reference(data):
    return run_litert(data, photos(data), reference=True)
