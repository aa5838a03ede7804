"""The segmenter of a deployed `.tflite` file: NumPy, Pillow and LiteRT alone."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
from ai_edge_litert.schema_py_generated import ModelT, TensorType

from ddunet_keras.files import DataError, first_line, silence
from ddunet_keras.images import resize_image
from ddunet_keras.litert.model import TFLiteError, file_bytes, operator_name, read_tflite
from ddunet_keras.litert.soundness import EDGE_TPU_OPERATOR, check_sound
from ddunet_keras.presets import DEFAULT, preset_file
from ddunet_keras.sky import ROUNDING, Segmentation, segment

EDGETPU = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}
"""Library of Coral's Edge TPU by `sys.platform`; elsewhere it is `libedgetpu.so.1`."""

MAX_CLASSES = 255
"""Most classes that a file may tell apart: masks are written as 8-bit pictures, 255 means none."""
MAX_VALUES = 2**26
"""Most values of an output: as float32 they take 256 MiB."""
MAX_THREADS = 1024

_TYPES = {
    TensorType.INT8: "int8",
    TensorType.UINT8: "uint8",
    TensorType.FLOAT32: "float32",
}
# operators after which the values mean the same as before
_PASSING_ON = ("QUANTIZE", "DEQUANTIZE", "CAST", "RESHAPE", "CONCATENATION")
_STDERR = threading.Lock()


class Segmenter:
    """Segments clouds with a `.tflite` file that `ddunet convert` wrote.

    It is used as a `DDUNet` is: `segment`, `predict_probabilities`, `image_shape`, `num_classes`;
    `predict_files` and `evaluate` take it. TensorFlow and Keras are not needed.

    The file takes RGB as int8 `pixel - 128`, uint8 `pixel` or float32 `pixel - 128`, and gives
    probabilities, logits or a mask of any of these types; which, is read from the file.

    Threads may share a Segmenter: they take turns. To have them run at once, give each its own.

    Args:
        path: a `.tflite` file; by default the int8 one of the preset "ddunet_c8", 256x256.
        threads: threads of LiteRT, 1 to 1024; by default as many as there are cores.
        delegate: None, "edgetpu" (a file compiled for Coral's Edge TPU, with its runtime
            installed), or the path of another LiteRT delegate's library.

    Attributes:
        image_shape: (height, width, 3) of the file's input.
        num_classes: 2, or n for a file that tells n classes apart.

    Raises:
        DataError: the file is missing, damaged or no segmenter of RGB images, or the delegate's
            library is not installed. LiteRT sees only files that `check_segmenter` lets through.
        ValueError: `threads` is no integer from 1 to 1024.

    Example:

    >>> photo, _ = dd.synthetic_sky(0, (60, 80))
    >>> Segmenter().segment(photo).mask.shape
    (60, 80)
    """

    def __init__(
        self,
        path: str | Path | None = None,
        threads: int | None = None,
        delegate: str | None = None,
    ):
        if threads is None:
            threads = min(os.cpu_count() or 1, MAX_THREADS)
        if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise ValueError(
                f"`threads` must be a positive integer, at most {MAX_THREADS}. "
                f"Received: threads={threads!r}"
            )
        self._path = preset_file(DEFAULT, "tflite") if path is None else path
        try:
            data = file_bytes(self._path)
        except TFLiteError as error:
            raise DataError(str(error)) from None
        try:
            model = read_tflite(data)
            self._kind, self.num_classes = check_segmenter(model)
        except (DataError, TFLiteError) as error:
            raise DataError(f"{self._path}: {error}") from None
        operators = {operator_name(model, operator) for operator in model.subgraphs[0].operators}
        if delegate is None and EDGE_TPU_OPERATOR in operators:
            raise DataError(f"{self._path}: compiled for the Edge TPU: needs delegate edgetpu")
        delegates = None if delegate is None else [_load_delegate(delegate)]
        try:
            with _quiet():
                # the bytes that were checked, whatever becomes of the file meanwhile
                self._interpreter = Interpreter(
                    model_content=data, num_threads=threads, experimental_delegates=delegates
                )
                self._interpreter.allocate_tensors()
            (self._input,) = self._interpreter.get_input_details()
            (self._output,) = self._interpreter.get_output_details()
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) from None
        height, width, channels = (int(side) for side in self._input["shape"][1:])
        self.image_shape = height, width, channels
        self._turn = threading.Lock()

    def _refused(self, error):
        return DataError(f"{self._path}: LiteRT cannot run it ({first_line(error)})")

    def predict_probabilities(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities of one photo at the size of the file's input.

        Args:
            image: uint8 (h, w, 3), RGB, of any size.

        Returns:
            float32 (height, width), the probability of cloud; of n > 2 classes
            (height, width, n). A file whose output is a mask gives 0 and 1.

        Raises:
            ValueError: `image` is no such array.
            DataError: LiteRT cannot run the file, or its output is no probability.
        """
        pixels = np.ascontiguousarray(resize_image(image, self.image_shape[:2]))[None]
        dtype = self._input["dtype"]
        if dtype != np.uint8:
            pixels = (pixels ^ 128).view(np.int8).astype(dtype, copy=False)
        with self._turn:
            self._interpreter.set_tensor(self._input["index"], pixels)
            try:
                self._interpreter.invoke()
            except RuntimeError as error:
                raise self._refused(error) from None
            values = self._interpreter.get_tensor(self._output["index"])[0]
        scale, zero_point = self._output["quantization"]  # a scale of 0: there is none
        if scale:
            values = (values.astype(np.float32) - zero_point) * np.float32(scale)
        self._check_range(values)
        return as_probabilities(values, self._kind, self.num_classes)

    def _check_range(self, values):
        """A damaged or crafted file may give anything."""
        largest = float(np.finfo(np.float32).max)
        lowest, highest = {
            "mask": (0, self.num_classes - 1),
            "probability": (-ROUNDING, 1 + ROUNDING),
            "logits": (-largest, largest),
        }[self._kind]
        low, high = values.min(), values.max()
        if not (lowest <= low and high <= highest):  # NaN is in no range
            raise DataError(
                f"{self._path}: no {self._kind}: its output has values from {low} to {high}"
            )

    def segment(
        self,
        image: np.ndarray,
        threshold: float = 0.5,
        horizon=None,
        channel_order: str = "rgb",
        force: bool = False,
    ) -> Segmentation:
        """Finds the clouds in one photo, as `ddunet_keras.sky.segment` says.

        A file that gives a mask and no probabilities has no confidence.
        """
        result = segment(
            self.predict_probabilities, image, threshold, horizon, channel_order, force
        )
        if self._kind == "mask" and result.usable:
            result.confidence = None
        return result


def check_segmenter(model: ModelT) -> tuple[str, int]:
    """Checks that a model is a segmenter of RGB images that LiteRT can run without harm.

    Args:
        model: as `read_tflite` gives it.

    Returns:
        what its output holds, "probability", "logits" or "mask" (class indices), and the number of
        classes.

    Raises:
        DataError: it is none: it has not one RGB input and one output of its size, too many
            classes, or something that LiteRT would not survive (see `check_sound`).
    """
    graph = model.subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs + graph.outputs]
    shapes = [tensor.shape for tensor in tensors]
    fits = len(graph.inputs) == len(graph.outputs) == 1
    fits = fits and all(len(shape) == 4 for shape in shapes)
    fits = fits and shapes[0] == [1, *shapes[1][1:3], 3] and shapes[1][0] == 1
    if not (fits and all(tensor.type in _TYPES for tensor in tensors)):
        has = [f"{_TYPES.get(t.type, 'another type')} {tuple(t.shape)}" for t in tensors[:4]]
        raise DataError(
            "no segmenter of photos: an RGB input (1, h, w, 3) and an output (1, h, w, n) of "
            f"{', '.join(_TYPES.values())} were expected, it has {', '.join(has) or 'none'}"
        )
    try:
        check_sound(model)
    except TFLiteError as error:
        raise DataError(f"no segmenter of photos: {error}") from None
    kind, classes = _output_kind(model, graph)
    largest = 128 if kind == "mask" and tensors[1].type == TensorType.INT8 else MAX_CLASSES
    if classes > largest or math.prod(shapes[1]) > MAX_VALUES:
        raise DataError(
            f"no segmenter of photos: its output {tuple(shapes[1])} of {classes} classes is too "
            f"large; at most {largest} classes and {MAX_VALUES:,} values are taken"
        )
    return kind, max(2, classes)


def _output_kind(model, graph):
    """What the output holds, and for how many classes (1: cloud or not)."""
    producers = {index: operator for operator in graph.operators for index in operator.outputs}
    output = source = graph.outputs[0]
    while source in producers and operator_name(model, producers[source]) in _PASSING_ON:
        source = producers[source].inputs[0]
    last = operator_name(model, producers[source]) if source in producers else None
    channels = graph.tensors[output].shape[-1]
    if last in ("ARG_MAX", "GREATER_EQUAL"):
        if channels != 1:
            raise DataError(f"no segmenter of photos: its mask has {channels} channels, not one")
        compared = graph.tensors[producers[source].inputs[0]]
        # what is compared with a threshold has one channel, or some packed columns of it
        return "mask", 1 if last == "GREATER_EQUAL" else compared.shape[-1]
    # a compiler's operator, as the Edge TPU's, hides the last one: a probability's scale is fixed
    scale = getattr(graph.tensors[output].quantization, "scale", None)
    fixed = scale is not None and list(scale) == [1 / 256]
    probable = last in ("LOGISTIC", "SOFTMAX") or fixed
    return "probability" if probable else "logits", channels


def as_probabilities(values: np.ndarray, kind: str, num_classes: int = 2) -> np.ndarray:
    """What a segmenter's outputs mean.

    Args:
        values: (..., n) of any type, dequantized.
        kind: "probability", "logits" or "mask".
        num_classes: n, or of a mask the number of classes in it.

    Returns:
        float32 (...), the probability of cloud, or (..., n) of each class; 0 and 1 of a mask.
    """
    if kind == "mask" and num_classes > 2:
        return np.eye(num_classes, dtype=np.float32)[values[..., 0].astype(np.intp)]
    values = values.astype(np.float32, copy=False)
    if kind == "logits" and values.shape[-1] == 1:
        with np.errstate(over="ignore"):  # far below zero it is 0
            values = 1 / (1 + np.exp(-values))
    elif kind == "logits":
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    return values[..., 0] if values.shape[-1] == 1 else values


def _load_delegate(name):
    library = EDGETPU.get(sys.platform, "libedgetpu.so.1") if name == "edgetpu" else str(name)
    try:
        ctypes.CDLL(library)  # LiteRT's own attempt leaves a traceback on stderr
        with _quiet():
            return load_delegate(library)
    except (OSError, ValueError, AttributeError) as error:
        reason = first_line(error).removeprefix(f"{library}: ")
        advice = "; install Coral's Edge TPU runtime and plug one in" if name == "edgetpu" else ""
        raise DataError(f"delegate {library}: {reason}{advice}") from None


@contextlib.contextmanager
def _quiet():
    """Keeps what LiteRT's own code writes to stderr ("INFO: Created TensorFlow Lite XNNPACK...")
    from the user; its errors come as exceptions."""
    with _STDERR, silence(2):
        yield
