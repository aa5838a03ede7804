"""Stands in for OpenMV's module `image`, in CPython and MicroPython: what `tflite/openmv` uses."""

GRAYSCALE, RGB565 = 1, 2
AREA, SCALE_ASPECT_IGNORE = 4, 8


class Image:
    def __init__(self, width, height, pixformat):
        self.size = width, height
        self.channels = 1 if pixformat == GRAYSCALE else 3
        self.data = bytearray(width * height * self.channels)

    def width(self):
        return self.size[0]

    def height(self):
        return self.size[1]

    def bytearray(self):
        return self.data

    def get_pixel(self, x, y):
        start = 3 * (y * self.size[0] + x)
        return tuple(self.data[start : start + 3])

    def draw_image(self, other, x=0, y=0, alpha=255, hint=0):
        """Stretches the other image over this one: sizes are multiples, or equal."""
        assert (x, y) == (0, 0) and hint & SCALE_ASPECT_IGNORE
        for row in range(self.size[1]):
            for column in range(self.size[0]):
                for channel in range(3):
                    drawn = other.mean(column, row, self.size, channel, hint & AREA)
                    place = 3 * (row * self.size[0] + column) + channel
                    blended = alpha * drawn + (255 - alpha) * self.data[place]
                    self.data[place] = (2 * blended + 255) // 510

    def mean(self, column, row, size, channel, averages):
        """Of the pixels that become this one of an image of another size; or the first of them."""
        left, top = column * self.size[0] // size[0], row * self.size[1] // size[1]
        across = self.size[0] // size[0] if averages else 1
        down = self.size[1] // size[1] if averages else 1
        total = 0
        for y in range(top, top + down):
            for x in range(left, left + across):
                place = y * self.size[0] + x
                total += self.data[place * self.channels + min(channel, self.channels - 1)]
        return (2 * total + across * down) // (2 * across * down)
