"""The segmenter of a deployed `.tflite` file: NumPy, Pillow and LiteRT alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
from ai_edge_litert.schema_py_generated import TensorType

from ddunet_keras.files import DataError, first_line, silence
from ddunet_keras.images import resize_image
from ddunet_keras.litert.model import TFLiteError, operator_name, read_tflite
from ddunet_keras.presets import DEFAULT, preset_file
from ddunet_keras.sky import Segmentation, segment

EDGETPU = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}
"""Library of Coral's Edge TPU by `sys.platform`; elsewhere it is `libedgetpu.so.1`."""

_TYPES = {
    TensorType.INT8: "int8",
    TensorType.UINT8: "uint8",
    TensorType.FLOAT32: "float32",
}
# operators after which the values mean the same as before
_PASSING_ON = ("QUANTIZE", "DEQUANTIZE", "CAST", "RESHAPE", "CONCATENATION")
_KINDS = {"LOGISTIC": "probability", "SOFTMAX": "probability", "GREATER_EQUAL": "mask"}
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
        threads: threads of LiteRT; by default as many as there are cores.
        delegate: None, "edgetpu" (a file compiled for Coral's Edge TPU, with its runtime
            installed), or the path of another LiteRT delegate's library.

    Attributes:
        image_shape: (height, width, 3) of the file's input.
        num_classes: 2, or n for a file that tells n classes apart.

    Raises:
        DataError: the file is missing, damaged or no segmenter of RGB images, or the delegate's
            library is not installed.
        ValueError: `threads` is not a positive integer.

    Example:

    >>> photo = np.zeros((60, 80, 3), "uint8")
    >>> Segmenter().segment(photo).mask.shape
    (60, 80)
    """

    def __init__(self, path=None, threads=None, delegate=None):
        if threads is None:
            threads = os.cpu_count() or 1
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"`threads` must be a positive integer. Received: threads={threads!r}")
        self._path = path = preset_file(DEFAULT, "tflite") if path is None else path
        try:
            model = read_tflite(path)
        except TFLiteError as error:
            raise DataError(str(error)) from None
        try:
            self._kind, self.num_classes = check_segmenter(model)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        delegates = None if delegate is None else [_load_delegate(delegate)]
        try:
            with _quiet():
                self._interpreter = Interpreter(
                    model_path=str(path), num_threads=threads, experimental_delegates=delegates
                )
                self._interpreter.allocate_tensors()
            (self._input,) = self._interpreter.get_input_details()
            (self._output,) = self._interpreter.get_output_details()
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) from None
        self.image_shape = tuple(int(side) for side in self._input["shape"][1:])
        self._turn = threading.Lock()

    def _refused(self, error):
        reason = first_line(error)
        if "edgetpu-custom-op" in str(error):
            reason = "it is compiled for the Edge TPU: needs delegate edgetpu"
        return DataError(f"{self._path}: LiteRT cannot run it ({reason})")

    def predict_probabilities(self, image) -> np.ndarray:
        """Class probabilities of one photo at the size of the file's input.

        Args:
            image: uint8 (h, w, 3), RGB, of any size.

        Returns:
            float32 (height, width), the probability of cloud; of n > 2 classes
            (height, width, n). A file whose output is a mask gives 0 and 1.
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
        scale, zero_point = self._output["quantization"]
        if scale:
            values = (values.astype(np.float32) - zero_point) * np.float32(scale)
        return as_probabilities(values, self._kind, self.num_classes)

    def segment(self, image, threshold=0.5, horizon=None, channel_order="rgb") -> Segmentation:
        """Finds the clouds in one photo, as `ddunet_keras.sky.segment` says."""
        return segment(self.predict_probabilities, image, threshold, horizon, channel_order)


def check_segmenter(model) -> tuple[str, int]:
    """What the output of a segmenter's `ModelT` holds.

    Returns:
        "probability", "logits" or "mask" (class indices), and the number of classes.

    Raises:
        DataError: it is no segmenter: it has not one RGB input and one output of its size.
    """
    graph = model.subgraphs[0]
    ends = [graph.tensors[index] for index in graph.inputs + graph.outputs]
    shapes = [tensor.shape for tensor in ends]
    fits = len(graph.inputs) == len(graph.outputs) == 1
    fits = fits and all(len(shape) == 4 and min(shape) > 0 for shape in shapes)
    fits = fits and shapes[0] == [1, *shapes[1][1:3], 3] and shapes[1][0] == 1
    fixed = all(t.shapeSignature is None or min(t.shapeSignature, default=1) > 0 for t in ends)
    if not (fits and fixed and all(tensor.type in _TYPES for tensor in ends)):
        has = ", ".join(f"{_TYPES.get(t.type, 'another type')} {tuple(t.shape)}" for t in ends[:4])
        raise DataError(
            "no segmenter of photos: an RGB input (1, h, w, 3) and an output (1, h, w, n) of "
            f"{', '.join(_TYPES.values())} were expected, it has {has or 'none'}"
        )
    kind, source = _output_kind(model, graph)
    classes = graph.tensors[source].shape[-1]
    return kind, max(2, classes)


def _output_kind(model, graph):
    """The output's kind, and the tensor whose last dimension is one for each class."""
    maker = {index: operator for operator in graph.operators for index in operator.outputs}
    output = source = graph.outputs[0]
    while source in maker and operator_name(model, maker[source]) in _PASSING_ON:
        source = maker[source].inputs[0]
    last = operator_name(model, maker[source]) if source in maker else None
    if last == "ARG_MAX":
        return "mask", maker[source].inputs[0]
    # a compiler's operator, as the Edge TPU's, hides the last one: a probability's scale is fixed
    scale = getattr(graph.tensors[output].quantization, "scale", None)
    fixed = scale is not None and list(scale) == [1 / 256]
    return _KINDS.get(last, "probability" if fixed else "logits"), output


def as_probabilities(values, kind, num_classes=2) -> np.ndarray:
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
