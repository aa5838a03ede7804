"""Reads the checkpoints that the authors of DDUNet and UCloudNet publish.

They are PaddlePaddle's: `.pdparams` and `.pdparam`, pickles of NumPy arrays.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddunet_keras.files import DataError, first_line
from ddunet_keras.networks.ucloudnet import paddle_name as ucloudnet_paddle_name

if TYPE_CHECKING:
    from ddunet_keras.segmentation_network import SegmentationNetwork

MAX_BYTES = 500_000_000
"""Largest checkpoint that is read (bytes); the widest DDUNet of the paper has 5 MB."""


class _Dtype:
    """Stands in for `numpy.dtype`, which believes a pickled state that misstates its own memory."""

    def __init__(self, name, *_):
        self.name, self.order = name, "="

    def __setstate__(self, state):
        self.order = state[1]


class _Array:
    """Stands in for `numpy.ndarray`: keeps the pickled state for `_to_numpy` to check."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state


# what a pickled dict of NumPy arrays asks for, and nothing else
_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}

_LINEAR = {"1": "0", "2": "2"}
"""Places of the linear layers in the authors' two-layer perceptrons."""

# our variable path -> the authors' parameter name, applied in this order
_NAMES = (
    (r"^stem/", "in_conv/"),
    (r"^encoder_(\d)/", r"dmsc_\1/"),
    (r"^down_(\d)/", r"down_\1/downsample/"),
    (r"^up_(\d)/", r"up_\1/conv/"),
    (r"^decoder_(\d)_(\d)/", lambda m: f"double_conv_{int(m[1]) + 5}/conv{m[2]}/conv/"),
    (
        r"^head_(\d)/(weight|bias)_(\d)/",
        lambda m: f"classifier{m[1]}/{m[2]}_layers/{_LINEAR[m[3]]}/",
    ),
    (r"^head_1/", "classifier1/"),
    (r"/residual/", "/conv/conv/"),
    (r"/gate_(\d)/", lambda m: f"/weights_branch/{_LINEAR[m[1]]}/"),
    (r"/branch_(\d)/", r"/dilated_convs/\1/0/"),
    (r"/branch_norm_(\d)/", r"/dilated_convs/\1/1/"),
    (r"/out_conv/", "/out_conv/0/"),
    (r"/out_norm/", "/out_conv/1/"),
    (r"/depthwise_norm/", "/0/1/"),
    (r"/depthwise/", "/0/0/"),
    (r"/pointwise_norm/", "/2/"),
    (r"/pointwise/", "/1/"),
    (r"(^in_conv|/in_conv|^dmsc_\d|/downsample|^up_\d/conv)/conv/(?=kernel$)", r"\1/conv2d/"),
    (r"(^in_conv|/in_conv|^dmsc_\d|/downsample|^up_\d/conv)/norm/", r"\1/bn/"),
    (r"/(kernel|gamma)$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/moving_(mean|variance)$", r"/_\1"),
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only NumPy arrays are admitted"
            ) from None


def _to_numpy(value):
    if not isinstance(value, _Array) or value.state is None:
        raise ValueError(f"is a {type(value).__name__.lstrip('_').lower()}, not an array")
    _, shape, dtype, fortran, data = value.state
    if not isinstance(dtype, _Dtype) or dtype.name not in ("f2", "f4", "f8"):
        raise ValueError(f"has type {getattr(dtype, 'name', dtype)}, a float type was expected")
    array = np.frombuffer(data, np.dtype(dtype.name).newbyteorder(dtype.order))
    return array.reshape(shape, order="F" if fortran else "C").astype(dtype.name)


def read_pdparams(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a `.pdparams` file: the authors' parameter names and arrays.

    The file is a pickle. Arrays of floats are admitted; whatever else it asks for is refused before
    it is imported, and no object is built but plain stand-ins, so that a malicious file executes
    nothing.

    Raises:
        DataError: the file is missing, empty, too large, corrupt, or holds anything but arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; a .pdparams checkpoint was expected")
    if not 0 < path.stat().st_size <= MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes; 1 to {MAX_BYTES:,} are read")
    try:
        state = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a corrupt pickle raises nearly any type
        reason = first_line(error)
        raise DataError(f"{path}: not a checkpoint of NumPy arrays ({reason})") from None
    if not isinstance(state, dict):
        kind = type(state).__name__.lstrip("_").lower()
        raise DataError(f"{path}: holds a {kind}, a dict of arrays was expected")
    arrays = {}
    for name, value in state.items():
        # Paddle adds a table of names to what paddle.save writes of a layer
        if name == "StructuredToParameterName@@":
            continue
        if not isinstance(name, str):
            raise DataError(f"{path}: a {type(name).__name__} stands where a name was expected")
        try:
            arrays[name] = _to_numpy(value)
        except Exception as error:  # a forged state raises nearly any type
            reason = first_line(error)
            raise DataError(f"{path}: {name!r} {reason}") from None
    return arrays


def paddle_name(variable_path: str, variant: str = "full") -> str:
    """The authors' name of a DDUNet variable, given its path after the model's name.

    Example:

    >>> paddle_name("encoder_2/residual/pointwise/kernel")
    'dmsc_2.conv.conv.1.weight'
    """
    name = variable_path
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if variant == "baseline":
        name = re.sub(r"^(double_conv_\d)/conv1/", r"\1/", name)
    return name.replace("/", ".")


def _to_keras(array, variable):
    """(out, in, kh, kw) -> Keras's (kh, kw, in, out); a depthwise kernel is (c, 1, kh, kw)."""
    if array.ndim != 4:
        return array
    axes = (
        (2, 3, 0, 1) if "depthwise" in variable.path or "branch_" in variable.path else (2, 3, 1, 0)
    )
    return array.transpose(axes)


def load_state(
    model: SegmentationNetwork, state: Mapping[str, np.ndarray], source: Any = "state"
) -> None:
    """Sets the weights of a DDUNet or a UCloudNet from the authors' parameter names and arrays.

    Raises:
        DataError: a parameter is missing, left over, or of another shape; each is named, and the
            model is left as it was. `source` stands before the message. Or the model is another
            network, of which no authors publish weights.
    """
    published = _published(model, source)
    left, values, problems = dict(state), [], []
    for variable in model.weights:
        name = published.name_of(variable.path.removeprefix(f"{model.name}/"))
        if name not in left:
            problems.append(f"missing {name}")
            continue
        array = left.pop(name)
        value = _to_keras(array, variable)
        if value.shape != tuple(variable.shape):
            problems.append(
                f"{name} has shape {array.shape}, which gives {value.shape}, "
                f"not {tuple(variable.shape)}"
            )
        values.append((variable, value))
    if not model.deep_supervision:
        left = {k: v for k, v in left.items() if not re.match(published.training_only, k)}
    problems += [f"unexpected {name} {array.shape}" for name, array in left.items()]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{source}: does not fit {published.model}: " + "; ".join(problems[:5]) + more
        )
    for variable, value in values:
        variable.assign(value)


@dataclass(frozen=True)
class _Published:
    """How authors name the weights of their network.

    Attributes:
        model: the network, for an error.
        name_of: path of a variable -> the authors' name.
        training_only: pattern of what is not needed without deep supervision.
    """

    model: str
    name_of: Callable[[str], str]
    training_only: str


def _published(model, source) -> _Published:
    about = f"num_classes={model.num_classes}"
    if type(model).__name__ == "DDUNet":
        about = f"base_channels={model.base_channels}, variant={model.variant!r}, {about}"
        training_only = r"classifier[23]\." if model.variant == "full" else r"$"
        return _Published(
            f"DDUNet({about})", lambda path: paddle_name(path, model.variant), training_only
        )
    if model.network.startswith("ucloudnet"):
        return _Published(f"{model.network} ({about})", ucloudnet_paddle_name, r"aux_x[24]\.")
    raise DataError(f"{source}: of {model.network} there are no weights by its authors to read")


def load_paddle_weights(model: SegmentationNetwork, path: str | Path) -> None:
    """Loads a checkpoint of the authors into a DDUNet or a UCloudNet of the same width.

    Build a DDUNet with `upsampling="align_corners"`, as theirs has.

    Args:
        model: a `DDUNet`, or "ucloudnet_k2" or "ucloudnet_k4" of `build_network`.
        path: the `.pdparams` file of a DDUNet, the `.pdparam` file of a UCloudNet.

    Raises:
        DataError: see `read_pdparams` and `load_state`.
    """
    load_state(model, read_pdparams(path), source=path)
