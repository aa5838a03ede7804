"""Scales with few binary digits, with which every kernel rounds alike.

A kernel multiplies an integer product by the quotient of its inputs' scales over its output's. TFLM
computes that quotient in double precision and LiteRT in single, and a difference in the last bit
tips a value that lies halfway between two integers. So the scales are widened a little, to numbers
of so few binary digits that the quotient is exact in both. `RULES` says how many, and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddunet_keras.litert.model import operator_name


@dataclass(frozen=True)
class Rule:
    """How many binary digits the scale of an operand has.

    Attributes:
        operator, operand: whose scale it is.
        digits: of the scale's mantissa; of a multiple, where `why` says so.
        why: the reason.
    """

    operator: str
    operand: str
    digits: int
    why: str


RULES = (
    Rule(
        "any",
        "output",
        12,
        "the product of two such scales has 24 digits, which float32 holds exactly",
    ),
    Rule(
        "MUL, BATCH_MATMUL",
        "output",
        1,
        "as a multiple of the first input's scale, or of 1: a power of two, which divides exactly",
    ),
    Rule(
        "MUL by Softmax",
        "output",
        6,
        "Softmax's scale is 1/256, so the first input's scale may be a multiple of this one",
    ),
    Rule(
        "MUL by Softmax",
        "first input",
        10,
        "as a multiple of the output's scale. Its last digit is 1, so that next to no product lies "
        "halfway, which XNNPACK rounds to even on x86 and up on Arm",
    ),
    Rule("RELU", "output", 8, "the input's scale is a multiple of it"),
    Rule("RELU", "input", 8, "as a multiple of the output's scale: the quotient is exact"),
)
"""Besides, the right side of a BATCH_MATMUL has the zero point 0, with which LiteRT is six times
faster."""

DIGITS = {(rule.operator, rule.operand): rule.digits for rule in RULES}


def exact_ranges(model, ranges) -> dict[int, tuple[float, float]]:
    """The ranges, a little wider, so that their scales keep `RULES`.

    Args:
        model: `ModelT` of the float file.
        ranges: index of a computed tensor -> (low, high).

    Returns:
        The same tensors' ranges, 255 scales wide, with zero on an integer.
    """
    assigner = _ScaleAssigner(model, dict(ranges))
    assigner.center_matrices()
    assigner.round_up_all()
    assigner.fit_products()
    assigner.fit_relus()
    return assigner.ranges_of_scales()


def round_up(value, digits, odd=False) -> float:
    """The least number of so many binary digits that is not below a positive value.

    Args:
        odd: whether the last digit is made 1.

    Example:

    >>> round_up(0.7, 3)
    0.75
    """
    mantissa, exponent = math.frexp(value)
    numerator = math.ceil(mantissa * 2**digits)
    if odd:
        numerator |= 1
    return math.ldexp(numerator / 2**digits, exponent)


def producers(graph) -> dict:
    """Index of each computed tensor -> the operator that computes it."""
    return {operator.outputs[0]: operator for operator in graph.operators}


class _ScaleAssigner:
    """Finds a scale for each tensor; `scales` is right once the steps were called in order."""

    def __init__(self, model, ranges):
        self.model = model
        (self.graph,) = model.subgraphs
        self.ranges = ranges
        self.producers = producers(self.graph)
        self.consumers = {i: operator for operator in self.graph.operators for i in operator.inputs}
        self.matrices = self._matrices()
        self.widths: dict[int, float] = {}
        self.scales: dict[int, float] = {}

    def named(self, *names):
        """The operators of these kinds."""
        return [op for op in self.graph.operators if operator_name(self.model, op) in names]

    def _matrices(self) -> set[int]:
        """Right sides of matrix products, and what is reshaped into one."""
        matrices = {operator.inputs[1] for operator in self.named("BATCH_MATMUL")}
        reshaped = {op.inputs[0] for op in self.named("RESHAPE") if op.outputs[0] in matrices}
        return matrices | reshaped

    def center_matrices(self) -> None:
        """Matrices get a range around zero, so that their zero point is 0."""
        for index in self.matrices:
            bound = max(abs(limit) for limit in self.ranges[index])
            self.ranges[index] = -bound, bound

    def round_up_all(self) -> None:
        digits = DIGITS["any", "output"]
        for index, (low, high) in self.ranges.items():
            self.widths[index] = (high - low) / 255
            self.scales[index] = round_up(self.widths[index], digits)

    def fit_products(self) -> None:
        convolved = self._convolutions_for_one_consumer()
        for operator in self.named("MUL", "BATCH_MATMUL"):
            source, other = operator.inputs
            by_softmax = _is_power_of_two(self.scales.get(other, 0.0))
            if source in convolved and by_softmax:
                self._fit_gated(source, operator.outputs[0])
            else:
                self._fit_product(source, operator.outputs[0])

    def _convolutions_for_one_consumer(self) -> set[int]:
        """Outputs of convolutions that one operator alone consumes: their scale is free."""
        consumed = [index for operator in self.graph.operators for index in operator.inputs]
        outputs = [op.outputs[0] for op in self.named("CONV_2D", "DEPTHWISE_CONV_2D")]
        return {index for index in outputs if consumed.count(index) == 1}

    def _fit_gated(self, source, output) -> None:
        scale = round_up(self.widths[output], DIGITS["MUL by Softmax", "output"])
        multiple = self.widths[source] / scale
        digits = DIGITS["MUL by Softmax", "first input"]
        self.scales[output] = scale
        self.scales[source] = scale * round_up(multiple, digits, odd=True)

    def _fit_product(self, source, output) -> None:
        digits = DIGITS["MUL, BATCH_MATMUL", "output"]
        units = 1.0, self.scales.get(source, 1.0)
        candidates = [unit * round_up(self.widths[output] / unit, digits) for unit in units]
        self.scales[output] = min(candidates)

    def fit_relus(self) -> None:
        for operator in self.named("RELU"):
            source, output = operator.inputs[0], operator.outputs[0]
            decisive = output
            consumer = self.consumers[output]
            if operator_name(self.model, consumer) == "CONCATENATION":  # its scale is the output's
                decisive = consumer.outputs[0]
                self.ranges[output] = self.ranges[decisive]
            scale = round_up(self.widths[decisive], DIGITS["RELU", "output"])
            multiple = self.widths[source] / scale
            self.scales[decisive] = scale
            self.scales[output] = scale
            self.scales[source] = scale * round_up(multiple, DIGITS["RELU", "input"])
            producer = self.producers[source]
            if operator_name(self.model, producer) == "RESIZE_BILINEAR":  # keeps the scale
                before = producer.inputs[0]
                self.ranges[before] = self.ranges[source]
                self.scales[before] = self.scales[source]

    def ranges_of_scales(self) -> dict[int, tuple[float, float]]:
        exact = {}
        for index, (low, _) in self.ranges.items():
            scale = self.scales[index]
            zero_point = min(127, max(-128, round(-128 - low / scale)))
            if index in self.matrices:
                zero_point = 0
            exact[index] = scale * (-128 - zero_point), scale * (127 - zero_point)
        return exact


def _is_power_of_two(value) -> bool:
    mantissa, _ = math.frexp(value)
    return mantissa == 0.5
