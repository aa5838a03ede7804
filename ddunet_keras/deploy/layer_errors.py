"""Where quantization error arises: every operator of an int8 file against the float file's."""

from __future__ import annotations

import difflib

import numpy as np

from ddunet_keras.litert.model import dequantize, operator_name, read_tflite
from ddunet_keras.litert.run import input_feeds, invoke, make_interpreter

ROWS = 15
"""Rows of the table, those that add most error."""


def compare_layers(data, float_data, images) -> list[dict]:
    """The error of every operator's output.

    Both files are run with all their tensors kept. Operators are matched in order by kind and
    shape, so `data` should be the file before its operators are reordered.

    Args:
        data: bytes of the int8 file.
        float_data: bytes of the float32 file of the same graph.
        images: uint8 (n, h, w, 3), a few photos.

    Returns:
        A dict for each operator, the one that adds most error first: operator (index in `data`),
        kind, tensor (name), shape; error, root mean square of the difference in percent of the
        float tensor's range; sqnr_db, power of the signal over power of the error, dB; added, error
        less the largest error of its inputs, percentage points.

    Raises:
        ValueError: fewer than half of the operators have a counterpart.
    """
    model, float_model = read_tflite(data), read_tflite(float_data)
    pairs = _matched(model, float_model)
    (graph,), (float_graph,) = model.subgraphs, float_model.subgraphs
    counterpart = {graph.inputs[0]: float_graph.inputs[0]}
    for number, other in pairs.items():
        output = graph.operators[number].outputs[0]
        counterpart[output] = float_graph.operators[other].outputs[0]
    measured = _measure(data, float_data, counterpart, np.asarray(images))
    errors = {index: found["error"] for index, found in measured.items()}
    for operator in graph.operators:  # what only changes the type or was not matched hands on
        known = [errors[i] for i in operator.inputs if i in errors]
        for index in operator.outputs:
            errors.setdefault(index, max(known, default=0.0))
    rows = []
    for number in pairs:
        operator = graph.operators[number]
        tensor = graph.tensors[operator.outputs[0]]
        found = measured[operator.outputs[0]]
        before = max((errors.get(i, 0.0) for i in operator.inputs), default=0.0)
        rows.append(
            {
                "operator": number,
                "kind": operator_name(model, operator),
                "tensor": (tensor.name or b"").decode(errors="replace"),
                "shape": tensor.shape,
                "error": found["error"],
                "sqnr_db": found["sqnr_db"],
                "added": found["error"] - before,
            }
        )
    return sorted(rows, key=lambda row: -row["added"])


def layers_to_markdown(rows, limit=ROWS) -> str:
    """The first `limit` rows of `compare_layers` as a table."""
    lines = [
        "| operator | kind | shape | error, % of range | added, points | SQNR, dB | tensor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows[:limit]:
        shape = "x".join(map(str, row["shape"]))
        lines.append(
            f"| {row['operator']} | {row['kind']} | {shape} | {row['error']:.2f} "
            f"| {row['added']:+.2f} | {row['sqnr_db']:.1f} | {row['tensor'][-60:]} |"
        )
    return "\n".join(lines) + "\n"


def _matched(model, float_model) -> dict[int, int]:
    """Operators of the int8 file -> those of the float file, by kind and output shape."""
    ours, theirs = _kinds(model), _kinds(float_model)
    matcher = difflib.SequenceMatcher(
        None, [kind for _, kind in ours], [kind for _, kind in theirs], autojunk=False
    )
    pairs = {}
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            number, _ = ours[block.a + offset]
            pairs[number], _ = theirs[block.b + offset]
    if 2 * len(pairs) < len(ours):
        raise ValueError(
            f"the files hold different graphs: {len(pairs)} of {len(ours)} operators match"
        )
    return pairs


def _kinds(model) -> list[tuple]:
    """(number, (kind, output shape)) of the operators that compute."""
    (graph,) = model.subgraphs
    found = []
    for number, operator in enumerate(graph.operators):
        name = operator_name(model, operator)
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            found.append((number, (name, tuple(graph.tensors[operator.outputs[0]].shape))))
    return found


def _measure(data, float_data, counterpart, images) -> dict[int, dict]:
    """Tensor of the int8 file -> error (percent of the range) and sqnr_db."""
    model = read_tflite(data)
    tensors = model.subgraphs[0].tensors
    interpreter = make_interpreter(data, True, keep=True)
    float_interpreter = make_interpreter(float_data, False, keep=True)
    feeds = input_feeds(model, images)
    float_feeds = input_feeds(read_tflite(float_data), images)
    sums = {index: np.zeros(3) for index in counterpart}  # squared error, squares, values
    low = dict.fromkeys(counterpart, np.inf)
    high = dict.fromkeys(counterpart, -np.inf)
    for feed, float_feed in zip(feeds, float_feeds, strict=True):
        invoke(interpreter, feed)
        invoke(float_interpreter, float_feed)
        for index, other in counterpart.items():
            truth = float_interpreter.get_tensor(other).astype(np.float64)
            value = dequantize(tensors[index], interpreter.get_tensor(index))
            squared = np.mean(np.square(value.reshape(truth.shape) - truth))
            sums[index] += squared, np.mean(np.square(truth)), np.mean(truth)
            low[index] = min(low[index], truth.min())
            high[index] = max(high[index], truth.max())
    found = {}
    for index, total in sums.items():
        squared, power, mean = total / len(images)
        signal = max(power - mean**2, 1e-30)
        found[index] = {
            "error": float(100 * np.sqrt(squared) / max(high[index] - low[index], 1e-12)),
            "sqnr_db": float(10 * np.log10(signal / max(squared, 1e-30))),
        }
    return found
