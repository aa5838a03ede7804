"""Stands in for OpenMV's module `csi`: the camera's frames are in the file `frames`, RGB of 8 bits,
and what the IDE would show is appended to the file `shown`."""

import image

RGB565, QVGA = image.RGB565, (320, 240)
SIZE = (32, 24)  # of the frames in the file, lest a test takes long


class CSI:
    def reset(self):
        self.frames = open("frames", "rb")  # noqa: SIM115
        self.frame = None

    def pixformat(self, pixformat):
        assert pixformat == RGB565

    def framesize(self, size):
        assert size == QVGA

    def snapshot(self, time=-1):
        if time >= 0:
            return None
        self.frame = image.Image(SIZE[0], SIZE[1], RGB565)
        data = self.frames.read(len(self.frame.data))
        if not data:
            raise SystemExit
        self.frame.data[:] = data
        return self.frame

    def flush(self):
        with open("shown", "ab") as file:
            file.write(self.frame.data)
