"""Writes flatbuffers in which equal parts stand once: half of a `.tflite` file is repetition."""

from __future__ import annotations

import flatbuffers
import numpy as np

CONSTANT_ALIGNMENT = 16
"""The schema's `force_align` of constants, bytes."""


class SharingBuilder(flatbuffers.Builder):
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
        self.StartVector(1, x.size, CONSTANT_ALIGNMENT)
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
