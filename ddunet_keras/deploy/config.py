"""What can be asked of a conversion: targets, and `ConversionConfig`. Imports no framework."""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

from __future__ import annotations

import dataclasses
from pathlib import Path

from ddunet_keras.settings import (
    COUNT,
    FLAG,
    PATH,
    POSITIVE,
    SEED,
    Choice,
    ImageSize,
    Number,
    check_settings,
    document_settings,
    setting,
)

PRECISIONS = ("int8", "float16", "float32")
IO_TYPES = ("int8", "uint8", "float32")
OUTPUTS = ("probability", "logits", "mask")


@dataclasses.dataclass(frozen=True)
class Target:
    """What a device asks of a file.

    Attributes:
        form: how the network is written down, a name in `ddunet_keras.deploy.graph.FORMS`.
        io: type of input and output where the user names none.
        about: the device, for `--help`.
    """

    form: str
    io: str
    about: str


TARGETS = {
    "tflm": Target("portable", "int8", "any microcontroller, with TensorFlow Lite Micro"),
    "cortex-m": Target("microcontroller", "int8", "Cortex-M, with TFLM and CMSIS-NN"),
    "esp32s3": Target("microcontroller", "int8", "ESP32-S3, with TFLM and ESP-NN"),
    "ethos-u": Target("portable", "int8", "input of Arm's Vela compiler"),
    "edgetpu": Target("portable", "uint8", "input of Coral's Edge TPU compiler"),
    "android": Target("xnnpack", "uint8", "MediaPipe's ImageSegmenter"),
    "cpu": Target("xnnpack", "int8", "LiteRT with XNNPACK: Raspberry Pi, PC"),
}
"""Name -> what it asks for. Which rewriting passes it gets stands in `passes.PASSES`."""

TFLM_TARGETS = ("tflm", "cortex-m", "esp32s3")
"""Targets whose files TensorFlow Lite Micro (TFLM) runs as they are."""


@document_settings
@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """How to convert a model.

    Raises:
        ValueError: a value is out of its range, or two do not go together.

    Example:

    >>> ConversionConfig((128, 128), target="android").io
    'uint8'
    """

    size: tuple[int, int] = setting(
        ImageSize(16), help="height and width of the file's input, multiples of 16", metavar="H,W"
    )
    target: str = setting(Choice(tuple(TARGETS)), "tflm", help="device that the file is for")
    precision: str = setting(
        Choice(PRECISIONS), "int8", help="int8: of all values; else of the weights alone"
    )
    io: str | None = setting(
        Choice(IO_TYPES), None, help="type of input and output (default: the target's)"
    )
    output: str = setting(Choice(OUTPUTS), "probability", help="what the file gives for each pixel")
    qat_epochs: int = setting(
        COUNT,
        0,
        help="epochs of quantization-aware training before the quantization",
        option="--qat",
        metavar="EPOCHS",
    )
    prune: float | None = setting(
        Number(float, 1e-6, 1 - 1e-6, "a number between 0 and 1"),
        None,
        help="share of each kernel's weights that become zero",
        metavar="SHARE",
    )
    cluster: int | None = setting(
        Number(int, 2, 256, "an integer from 2 to 256"),
        None,
        help="number of values that a kernel's weights share",
        metavar="N",
    )
    training_epochs: int = setting(
        POSITIVE, 8, help="epochs of --prune, and of --cluster", metavar="N"
    )
    ram: int | None = setting(
        POSITIVE,
        None,
        help="targets of TFLM: KiB that the arena may take; large stages then run in strips",
        metavar="KIB",
    )
    c_array: Path | None = setting(
        PATH, None, help="targets of TFLM: folder for the file as C sources", metavar="DIR"
    )
    debug: bool = setting(FLAG, False, help="show the error of each layer")
    inspect: bool = setting(FLAG, True, help="report without Vela, TFLM and latency")
    seed: int = setting(SEED, 0, help="equal seeds give equal results", metavar="N")

    def __post_init__(self):
        check_settings(self)
        if self.io is None:
            io = TARGETS[self.target].io if self.precision == "int8" else "float32"
            object.__setattr__(self, "io", io)
        self._check_combinations()

    @property
    def form(self) -> str:
        """How the network is written down, a name in `ddunet_keras.deploy.graph.FORMS`."""
        return TARGETS[self.target].form

    @property
    def trains(self) -> bool:
        """Whether the weights are trained on before the quantization."""
        return bool(self.qat_epochs or self.prune or self.cluster)

    def _check_combinations(self):
        if (self.ram or self.c_array) and self.target not in TFLM_TARGETS:
            raise ValueError(
                f"`ram` and `c_array` are for targets {', '.join(TFLM_TARGETS)}. "
                f"Received: target={self.target!r}"
            )
        if self.c_array and self.io != "int8":
            raise ValueError(
                "`c_array` is for files with int8 input and output. "
                f"Received: precision={self.precision!r}, io={self.io!r}"
            )
        if self.precision != "int8" and (self.trains or self.ram or self.io != "float32"):
            raise ValueError(
                "training, pruning, clustering, `ram` and `io` are for int8. "
                f"Received: precision={self.precision!r}"
            )
        if self.qat_epochs and (self.prune or self.cluster):
            raise ValueError(
                "`qat_epochs` would undo what `prune` and `cluster` do: give one or the other. "
                f"Received: qat_epochs={self.qat_epochs!r}"
            )
        if self.target == "android" and (self.io == "int8" or self.output == "mask"):
            raise ValueError(
                "MediaPipe takes files with uint8 or float32 input and probabilities or logits. "
                f"Received: io={self.io!r}, output={self.output!r}"
            )
