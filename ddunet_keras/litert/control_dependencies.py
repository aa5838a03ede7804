"""Has LiteRT compute what stands after a Softmax after it.

XNNPACK has no int8 Softmax. LiteRT computes that itself, between two pieces that XNNPACK computes,
and puts into the first piece all that does not need it. So in a network with gates all branches are
computed first, and have left the cache when the Softmax has their weights:

    without      branch 1, branch 2, branch 3     Softmax     products 1, 2, 3 and their sum
    with         what the Softmax needs           Softmax     branch 1, product 1, branch 2, ...
"""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from ddunet_keras.litert.memory import single_subgraph
from ddunet_keras.litert.model import operator_name, set_metadata

CONTROL_DEPENDENCIES = b"model_control_dependencies"
"""Name of the metadata with pairs of operators, the second of which waits for the first."""
FORMAT_VERSION = 1


def wait_for_softmax(model: schema.ModelT) -> None:
    """Adds metadata by which operators wait for every Softmax that stands before them, in place.

    The metadata counts operators, so this comes after all passes that move any. The format is that
    of TensorFlow Lite's `metadata_util.cc`: integers as varints, of which the signed ones are
    doubled (as are all here, none is negative).

    Raises:
        TFLiteError: the model has several subgraphs.
    """
    pairs = []
    softmaxes: set[int] = set()
    needed_for: dict[int, set[int]] = {}  # tensor: Softmaxes that it is computed from
    for number, operator in enumerate(single_subgraph(model).operators):
        needs = set().union(*(needed_for.get(index, set()) for index in operator.inputs))
        pairs += [(softmax, number) for softmax in sorted(softmaxes - needs)]
        if operator_name(model, operator) == "SOFTMAX":
            softmaxes.add(number)
            needs.add(number)
        for index in operator.outputs:
            needed_for[index] = needs
    if not pairs:
        return
    subgraphs = 1
    numbers = [FORMAT_VERSION, subgraphs, len(pairs)]
    numbers += [2 * number for pair in pairs for number in pair]
    set_metadata(model, CONTROL_DEPENDENCIES, b"".join(map(varint, numbers)))


def varint(number: int) -> bytes:
    """A number of at least 0 with seven bits a byte, the lowest first; the eighth says that more
    follow.

    >>> varint(300)
    b'\\xac\\x02'
    """
    found = []
    while number > 127:
        found.append(number % 128 + 128)
        number //= 128
    return bytes([*found, number])
