"""Stands in for OpenMV's module `ml`: cloud is where a pixel's mean is 128 or more."""

SIZE = (12, 16)  # height and width of the network's input


class Array:
    def __init__(self, values):
        self.values = values

    def flatten(self):
        return self.values


class Model:
    input_dtype = ("b",)
    input_shape = ((1, SIZE[0], SIZE[1], 3),)

    def __init__(self, path):
        self.output_shape = ((1, SIZE[0], SIZE[1], 2 if path == "two_channels" else 1),)

    def predict(self, inputs):
        data = inputs[0].bytearray()
        assert (inputs[0].height(), inputs[0].width()) == SIZE
        means = [sum(data[start : start + 3]) / 3 for start in range(0, len(data), 3)]
        return [Array([mean / 256 for mean in means])]
