"""What can be asked of a conversion: targets, and `ConversionConfig`. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PRECISIONS = ("int8", "float16", "float32")
IO_TYPES = ("int8", "uint8", "float32")
OUTPUTS = ("probability", "logits", "mask")


@dataclass(frozen=True)
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
    "ethos-u": Target("portable", "int8", "input of Arm's Vela compiler"),
    "edgetpu": Target("portable", "uint8", "input of Coral's Edge TPU compiler"),
    "android": Target("xnnpack", "uint8", "MediaPipe's ImageSegmenter"),
    "cpu": Target("xnnpack", "int8", "LiteRT with XNNPACK: Raspberry Pi, PC"),
}
"""Name -> what it asks for. Which rewriting passes it gets stands in `passes.PASSES`."""


def _option(default, text, **settings):
    """A field that is an option of `ddunet convert` as well."""
    return field(default=default, metadata={"help": text, **settings})


@dataclass(frozen=True)
class ConversionConfig:
    """How to convert a model.

    Args:
        size: (height, width) of the file's input, multiples of 16.
        target: a name in `TARGETS`.
        precision: "int8" (everything), or weights in "float16" or "float32".
        io: type of input and output: "int8", "uint8" or "float32"; None for the target's.
        output: "probability", "logits" or "mask".
        qat_epochs: epochs of quantization-aware training before the quantization; 0 for none.
        prune: share of each kernel's weights that are set to zero, in (0, 1); None for none.
        cluster: number of values that the weights of a kernel share, at least 2; None for any.
        training_epochs: epochs of pruning, and of clustering.
        ram: KiB that the tensor arena may take; for "tflm" alone.
        c_array: folder for the file as C sources, or None; for "tflm" alone.
        debug: whether to compare each layer with the float model.
        inspect: whether the report has Vela, TFLM and latency, which take half a minute.
        seed: of training and of what is drawn.

    Raises:
        ValueError: a value is out of its range, or two do not go together.

    Example:

    >>> config = ConversionConfig((128, 128), target="android")
    >>> config.io
    'uint8'
    """

    size: tuple[int, int] = _option(None, "of the file's input", required=True)
    target: str = _option("tflm", "device that the file is for", choices=tuple(TARGETS))
    precision: str = _option("int8", "of the weights", choices=PRECISIONS)
    io: str | None = _option(None, "input and output (default: the target's)", choices=IO_TYPES)
    output: str = _option("probability", "what the file gives for a pixel", choices=OUTPUTS)
    qat_epochs: int = _option(0, "epochs of quantization-aware training", flag="--qat")
    prune: float | None = _option(None, "share of each kernel's weights that become zero")
    cluster: int | None = _option(None, "number of values that a kernel's weights share")
    training_epochs: int = _option(8, "epochs of --prune, and of --cluster")
    ram: int | None = _option(None, "tflm: KiB that the arena may take (by strips)", metavar="KIB")
    c_array: Path | None = _option(None, "tflm: folder for the file as C sources", metavar="DIR")
    debug: bool = _option(False, "error of each layer against the float model")
    inspect: bool = _option(True, "no Vela, TFLM and latency", flag="--no-inspect")
    seed: int = _option(0, "equal seeds give equal results")

    def __post_init__(self):
        self._check_choices()
        self._check_size()
        self._check_numbers()
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

    def _check_choices(self):
        known = {"target": TARGETS, "precision": PRECISIONS, "output": OUTPUTS}
        if self.io is not None:
            known["io"] = IO_TYPES
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                raise ValueError(
                    f"`{name}` must be one of {tuple(values)}. Received: {name}={value!r}"
                )

    def _check_size(self):
        sides = self.size if isinstance(self.size, (tuple, list)) else ()
        if len(sides) != 2 or any(not isinstance(n, int) or n < 16 or n % 16 for n in sides):
            raise ValueError(
                f"`size` must be (height, width), multiples of 16. Received: size={self.size!r}"
            )
        object.__setattr__(self, "size", tuple(sides))

    def _check_numbers(self):
        least = {"qat_epochs": 0, "training_epochs": 1, "cluster": 2, "ram": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ValueError(f"`{name}` must be {low} or more. Received: {name}={value!r}")
        if self.prune is not None and not 0 < self.prune < 1:
            raise ValueError(f"`prune` must lie in (0, 1). Received: prune={self.prune!r}")

    def _check_combinations(self):
        if (self.ram or self.c_array) and self.target != "tflm":
            raise ValueError(
                f"`ram` and `c_array` are for target tflm. Received: target={self.target!r}"
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
