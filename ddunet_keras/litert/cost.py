"""An estimate of how long TFLM takes on three kinds of cores: the one table of costs.

The costs of the Cortex-M7 and M55 were fitted to instructions counted by QEMU for two files, with
TFLM's library of August 2026 and CMSIS-NN; for those they come within 5 %. The costs of the
ESP32-S3 are in clock cycles: from the table in ESP-NN's README where that has the kernel, and
guessed from the M7's where TFLM's reference kernel runs. No board was timed. A compiler, a cache or
a newer library easily change them by a third.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ddunet_keras.litert.nodes import Node, macs


@dataclass(frozen=True)
class Cost:
    """Instructions of a kind of kernel: a sum of the four.

    Attributes:
        product: for each multiply-accumulate.
        element: for each element of the output.
        position: for each row and column of the output, whatever its channels.
        lanes: channels are computed as if they were a multiple of this.
    """

    product: float = 0.0
    element: float = 0.0
    position: float = 0.0
    lanes: int = 1


@dataclass(frozen=True)
class Core:
    """A core, and the library that TFLM uses there.

    Attributes:
        name: for reports.
        clock_mhz: a usual clock.
        unit: what is counted.
        cycles: of what is counted, assumed.
        external_memory: by how much longer it takes where the arena is in external memory.
        costs: kind of kernel -> `Cost`, see `kernel_kind`.
    """

    name: str
    clock_mhz: int
    unit: str
    cycles: float
    external_memory: float
    costs: dict[str, Cost]


REFERENCE = {
    "RESIZE_BILINEAR": Cost(element=120),
    "CONCATENATION": Cost(element=6),
    "SLICE": Cost(element=2),
    "LOGISTIC": Cost(element=454),
    "SOFTMAX": Cost(element=500),
    "RELU": Cost(element=30),
    "PAD": Cost(element=10),
    "MEAN": Cost(product=20),
    "AVERAGE_POOL_2D": Cost(product=20),
    "SPACE_TO_BATCH_ND": Cost(element=1, position=75),
    "BATCH_TO_SPACE_ND": Cost(element=1, position=75),
    "RESHAPE": Cost(element=0.25),
}
"""Kernels that no library has a fast form of. A pooled element counts as a product."""

OTHER = Cost(element=30)
"""What is in no table."""

CORES = {
    "cortex-m7": Core(
        "Cortex-M7 with CMSIS-NN",
        clock_mhz=480,
        unit="instructions",
        cycles=1.0,
        external_memory=2.0,
        costs={
            "pointwise": Cost(product=1.55, element=45),
            "convolution": Cost(product=1.55, element=180),
            "depthwise": Cost(product=9),
            "dilated": Cost(product=34),
            "BATCH_MATMUL": Cost(product=1.55, element=64),
            "MUL": Cost(element=65),
            "ADD": Cost(element=80),
            **REFERENCE,
        },
    ),
    "cortex-m55": Core(
        "Cortex-M55 with CMSIS-NN",
        clock_mhz=400,
        unit="instructions",
        cycles=1.3,
        external_memory=2.0,
        costs={
            "pointwise": Cost(product=0.24, element=16),
            "convolution": Cost(product=0.24, element=65),
            "depthwise": Cost(element=18, position=272),
            "dilated": Cost(product=33),
            "BATCH_MATMUL": Cost(product=0.24, element=40),
            "MUL": Cost(element=51),
            "ADD": Cost(element=17.5),
            **REFERENCE,
        },
    ),
    "esp32-s3": Core(
        "ESP32-S3 with ESP-NN",
        clock_mhz=240,
        unit="cycles",
        cycles=1.0,
        external_memory=1.5,
        costs={
            "pointwise": Cost(product=0.74, element=20),
            "convolution": Cost(product=0.74, element=120),
            "depthwise": Cost(element=50, lanes=8),
            "dilated": Cost(product=40),
            "BATCH_MATMUL": Cost(product=8, element=40),
            "MUL": Cost(element=75),
            "ADD": Cost(element=54),
            **REFERENCE,
        },
    ),
}
"""Key -> core."""


def kernel_kind(node: Node) -> str:
    """The name under which a `Core` has the costs of an operator."""
    if node.kind == "DEPTHWISE_CONV_2D":
        is_dilated = max(node.option("dilationHFactor", 1), node.option("dilationWFactor", 1)) > 1
        return "dilated" if is_dilated else "depthwise"
    if node.kind == "CONV_2D":
        is_pointwise = list(node.shape(1)[1:3]) == [1, 1]
        return "pointwise" if is_pointwise else "convolution"
    return node.kind


def instructions(nodes: Sequence[Node], core: Core) -> float:
    """An estimate of the instructions of one inference (on an ESP32-S3, of the clock cycles).

    Args:
        nodes: of a file with int8 operators and fixed shapes.
        core: one of `CORES`.

    Raises:
        TFLiteError: an operator lacks an input.

    Example:

    >>> from ddunet_keras.litert.model import read_tflite
    >>> from ddunet_keras.litert.nodes import nodes
    >>> from ddunet_keras.presets import preset_file
    >>> listed = nodes(read_tflite(preset_file("ddunet_c8", "tflite")))
    >>> instructions(listed, CORES["cortex-m55"]) < instructions(listed, CORES["cortex-m7"])
    True
    """
    return sum(operator_instructions(node, core) for node in nodes)


def operator_instructions(node: Node, core: Core) -> float:
    """An estimate of the instructions of one operator.

    Raises:
        TFLiteError: it lacks an input.
    """
    cost = core.costs.get(kernel_kind(node), OTHER)
    if not node.outputs or not node.output.shape:
        return 0.0
    shape = node.output.shape
    channels = shape[-1]
    positions = math.prod(shape[:-1])
    padded = -(-channels // cost.lanes) * cost.lanes
    products = macs(node) or 0
    if node.kind in ("MEAN", "AVERAGE_POOL_2D"):
        products = math.prod(node.shape(0))
    return cost.product * products + positions * (cost.element * padded + cost.position)


def milliseconds(count: float, core: Core, external_memory: bool = False) -> float:
    """An estimate of the time that so many instructions take, milliseconds.

    Example:

    >>> milliseconds(48e6, CORES["cortex-m7"])
    100.0
    """
    factor = core.external_memory if external_memory else 1.0
    return count * core.cycles * factor / core.clock_mhz / 1e3
