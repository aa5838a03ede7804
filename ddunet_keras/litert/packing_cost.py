"""What an operator costs with columns packed, and how many to pack (`ddunet_keras.litert.packing`).

The costs were fitted to XNNPACK's times on one thread of an x86 with AVX512-VNNI. Their unit is the
product of one value with the weights of 16 filters, about 0.07 ns, and they are those of one pixel
of the unpacked feature map. On Arm the choices made by them save instructions, too:
`tools/benchmark_arm.py` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LANES = 16
"""Filters of a convolution, or channels of a depthwise one, that a kernel computes at a time."""
CHANNEL_GROUP = 8
"""Channels that a convolution reads at a time: it pads fewer to as many."""
POSITION_COST = 40
"""A convolution at one position, beside its products."""
DEPTHWISE_POSITION_COST = 15
"""A depthwise 3x3 convolution at one position."""
DEPTHWISE_LANES_COST = 105
"""And for each 16 channels there."""
COPY_COST = 0.7
"""A byte that is copied together with its neighbours, as within rows."""
COPIES_SIDE_BY_SIDE = 5
"""Copies of each byte that a depthwise convolution by side-by-side copies costs: one to pad, three
that lie side by side, and as much again for the rest as one."""
CHUNK_COST = 40.0
"""Each part of a concatenation of channels: XNNPACK copies the pixels one by one."""
COLUMN_COUNTS = (2, 4, 8, 16)
"""Numbers of columns that are tried: more than 16 fill no further lane."""
WORTHWHILE = 0.9
"""Share of the old cost that the new one must not exceed: the costs are too rough for less."""


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below a value."""
    return -(-value // multiple) * multiple


def packed_kernel_width(columns: int, width: int) -> int:
    """How many packed columns the kernel reads whose taps spanned `width` columns.

    >>> packed_kernel_width(4, 3)  # 4 outputs of 3 taps each span 6 columns
    2
    """
    return round_up(columns + width - 1, columns) // columns


def convolution_cost(columns: int, kernel: Sequence[int], filters: int) -> float:
    """Cost of a convolution, with so many columns packed, whose kernel is (h, w, channels)."""
    h, w, channels = kernel
    products = h * packed_kernel_width(columns, w) * round_up(columns * channels, CHANNEL_GROUP)
    cost = (products + POSITION_COST) * round_up(columns * filters, LANES) / LANES / columns
    needs_padding = w > 1 and columns > 1
    return cost + COPY_COST * channels if needs_padding else cost


def depthwise_cost(columns: int, dilation: int, channels: int) -> float:
    """Cost of a depthwise 3x3 convolution with so many columns packed."""
    lanes = round_up(columns * channels, LANES) / LANES
    cost = (DEPTHWISE_POSITION_COST + DEPTHWISE_LANES_COST * lanes) / columns
    needs_copies = dilation % columns != 0
    return cost + COPIES_SIDE_BY_SIDE * COPY_COST * channels if needs_copies else cost


def cheapest(width: int, cost: Callable[[int], float]) -> tuple[int, float]:
    """The number of columns that is cheapest to pack, and its cost.

    Args:
        width: columns of the feature map, which the number divides.
        cost: cost of the operator with so many columns packed.

    >>> cheapest(6, lambda columns: 10 / columns)
    (2, 5.0)
    """
    costs = {columns: cost(columns) for columns in (1, *COLUMN_COUNTS) if width % columns == 0}
    best = min(costs, key=costs.__getitem__)
    if costs[best] > WORTHWHILE * costs[1]:
        best = 1
    return best, costs[best]
