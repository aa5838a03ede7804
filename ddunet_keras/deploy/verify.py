"""Proof that a `.tflite` file computes the same everywhere, and how far that is from the float
model.

Four programs run the same photos: the float model, LiteRT with its reference kernels, LiteRT with
XNNPACK as users run it, and TensorFlow Lite Micro (TFLM), the kernels of a microcontroller.
Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass

import numpy as np

from ddunet_keras.files import IGNORE, first_line
from ddunet_keras.litert.model import DTYPES, dequantize, operator_name, read_tflite
from ddunet_keras.litert.run import (
    ChildError,
    NotInstalledError,
    first_difference,
    in_child,
    input_feeds,
    invoke,
    make_interpreter,
    refused_operator,
    run_litert_in_child,
    run_tflm,
)
from ddunet_keras.metrics import cloud_cover_errors, confusion, scores
from ddunet_keras.segmenter import as_probabilities
from ddunet_keras.sky import cloud_cover

OUTPUTS = ("probability", "logits", "mask")
"""What a deployed file may answer with."""

# percent of the images; with all of them, more photos would make the check stricter
_XNNPACK_SHARE = 95


# === Checks ===


@dataclass(frozen=True)
class Check:
    """One check of `verify`.

    Attributes:
        name: what was compared.
        passed: True or False, None where it could not be made.
        detail: figures, and where it failed (image, pixel, operator), or what is missing.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        checks: the checks, in the order in which they were made.
        scores: images; agreement, percent of pixels in which the masks of the file and of the float
            model agree, agreement_by_image and agreement_xnnpack; accuracy, miou (where there are
            masks, means over images) and cloud_cover, percent, each {"float", "file",
            "difference"}; cloud_cover also has mean_absolute_difference, percentage points; unsure,
            percent of pixels in which the float model's two likeliest classes are within 0.2: 3 for
            trained networks. Empty without a float model.
        arena: bytes that TFLM needs (total, head, tail), or None.
    """

    checks: tuple[Check, ...]
    scores: dict
    arena: dict | None

    @property
    def passed(self) -> bool:
        """Whether no check failed; those that were not run are in `checks`."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict:
        """Everything as plain values."""
        return {
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "scores": self.scores,
            "arena": self.arena,
        }

    def to_markdown(self) -> str:
        """Two small tables."""
        words = {True: "passed", False: "FAILED", None: "not run"}
        lines = ["| check | result | |", "|---|---|---|"]
        lines += [f"| {c.name} | {words[c.passed]} | {c.detail} |" for c in self.checks]
        if self.scores:
            lines += ["", f"| {self.scores['images']} images | float | file | difference |"]
            lines += ["|---|---|---|---|"]
            for key, title in _SCORES.items():
                if key in self.scores:
                    row = self.scores[key]
                    lines.append(
                        f"| {title} | {row['float']:.2f} | {row['file']:.2f} "
                        f"| {row['difference']:+.2f} |"
                    )
            for key, title in _AGREEMENTS.items():
                if key in self.scores:
                    lines.append(f"| {title} | | {self.scores[key]:.2f} | |")
        return "\n".join(lines) + "\n"


_AGREEMENTS = {
    "agreement": "masks that agree, %",
    "agreement_xnnpack": "masks that agree, XNNPACK, %",
}
_SCORES = {"accuracy": "accuracy, %", "miou": "MIoU, %", "cloud_cover": "cloud cover, %"}


def probabilities(data, raw, output="probability") -> np.ndarray:
    """What a file's raw outputs mean.

    Args:
        data: bytes of the file.
        raw: (n, h, w, c) from `run_litert` or `run_tflm`.
        output: "probability", "logits" or "mask".

    Returns:
        float32 (n, h, w), the probability of cloud, or (n, h, w, c) of each class; of a mask
        int (n, h, w), class indices.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}; received {output!r}")
    if output == "mask":
        return raw[..., 0].astype(np.int64)
    graph = read_tflite(data).subgraphs[0]
    return as_probabilities(dequantize(graph.tensors[graph.outputs[0]], raw), output)


def _labels(values, threshold=0.5):
    if values.dtype.kind == "i":
        return values
    return values.argmax(-1) if values.ndim == 4 else (values >= threshold).astype(np.int64)


def _place(first, second):
    """Where two stacks of outputs differ most."""
    apart = np.abs(first.astype(np.float64) - second.astype(np.float64))
    image, *pixel = (int(k) for k in np.unravel_index(apart.argmax(), apart.shape))
    at = (image, *pixel)
    return (
        f"{np.count_nonzero(apart)} of {apart.size} values differ, most at image {image}, pixel "
        f"{tuple(pixel[:2])}: {first[at]} against {second[at]}"
    )


def _equal(name, first, second, said, where=lambda: ""):
    if first.shape != second.shape or first.dtype != second.dtype:
        detail = f"{first.dtype} {first.shape} against {second.dtype} {second.shape}"
        return Check(name, False, detail)
    if np.array_equal(first, second):
        return Check(name, True, said)
    return Check(name, False, _place(first, second) + where())


def _check_tflm(data, images, expected):
    """TFLM against the reference kernels: (check, arena)."""
    name = "TFLM equals the reference kernels"
    feeds = input_feeds(read_tflite(data), images)
    try:
        outputs, arena = run_tflm(data, images)
    except NotInstalledError as error:
        return Check(name, None, f"not run: {error}"), None
    except ChildError as error:
        return Check(name, False, f"TFLM does not run the file: {error}"), None

    def where():
        image = next(i for i in range(len(feeds)) if not np.array_equal(outputs[i], expected[i]))
        try:
            return f"; first in {first_difference(data, feeds[image])}"
        except ChildError as error:
            return f"; the operator could not be found ({error})"

    said = f"{outputs.size} values of {len(feeds)} images, bit for bit; arena {arena['total']} B"
    return _equal(name, outputs, expected, said, where), arena


def _check_xnnpack(data, images, reference, output, steps, agreement):
    name = "XNNPACK is near the reference kernels"
    try:
        outputs = run_litert_in_child(data, images, False)
    except ChildError as error:
        try:
            operator, _ = in_child(refused_operator, data)
        except ChildError as second:
            operator = f"operator could not be found ({first_line(second)})"
        return Check(name, False, f"{first_line(error)}; first {operator}"), None
    ours, theirs = (_labels(probabilities(data, raw, output)) for raw in (reference, outputs))
    same = 100 * float(np.mean(ours == theirs))
    said = f"{same:.2f} % of the pixels agree (at least {agreement:g} %)"
    passed = same >= agreement
    if output != "mask":
        apart = np.abs(outputs.astype(np.float64) - reference.astype(np.float64))
        apart = apart.mean(tuple(range(1, apart.ndim)))
        limit, unit = (steps, " steps") if outputs.dtype.kind in "iu" else (steps / 256, "")
        within = 100 * float(np.mean(apart <= limit))
        passed &= within >= _XNNPACK_SHARE
        said += (
            f"; mean difference at most {limit:g}{unit} in {within:.1f} % of the images (at least "
            f"{_XNNPACK_SHARE} %), most in image {apart.argmax()}: {apart.max():.3g}"
        )
    if not passed:
        said += f"; {_place(outputs, reference)}"
    return Check(name, passed, said), theirs


def _score(float_labels, file_labels, masks, classes):
    """Scores of both label stacks, percent."""
    valid = np.ones(float_labels.shape, bool) if masks is None else masks != IGNORE
    same = float_labels == file_labels
    found = {
        "images": len(same),
        "agreement": 100 * float(same.mean()),
        "agreement_by_image": [100 * float(image.mean()) for image in same],
    }
    both = {"float": float_labels, "file": file_labels}
    if masks is not None:
        for key in ("accuracy", "miou"):
            found[key] = {}
        for kind, labels in both.items():
            counts = [confusion(p, t, classes) for p, t in zip(labels, masks, strict=True)]
            mean = scores(counts)["image_mean"]
            for key in ("accuracy", "miou"):
                found[key][kind] = 100 * mean[key]
    cover = {
        kind: np.array(
            [cloud_cover(p, v).fraction for p, v in zip(labels, valid, strict=True) if v.any()]
        )
        for kind, labels in both.items()
    }
    found["cloud_cover"] = {kind: 100 * float(values.mean()) for kind, values in cover.items()}
    for key in found.keys() & _SCORES.keys():
        found[key]["difference"] = found[key]["file"] - found[key]["float"]
    errors = cloud_cover_errors(cover["file"], cover["float"])
    found["cloud_cover"]["mean_absolute_difference"] = errors["mean_absolute_error"]
    return found


def _check_float(found, agreement, drop):
    worst = int(np.argmin(found["agreement_by_image"]))
    yield Check(
        "the masks agree with the float model's",
        found["agreement"] >= agreement,
        f"{found['agreement']:.2f} % of the pixels (at least {agreement} %); least in image "
        f"{worst}: {found['agreement_by_image'][worst]:.2f} %",
    )
    for key in ("accuracy", "miou"):
        if key in found:
            row = found[key]
            yield Check(
                f"{key} holds",
                row["difference"] >= -drop,
                f"{row['float']:.2f} % in float, {row['file']:.2f} % here, {row['difference']:+.2f}"
                f" points (at least {-drop:+g})",
            )


def verify(
    data,
    images,
    masks=None,
    *,
    float_predictor=None,
    plain=None,
    output="probability",
    io="int8",
    agreement=97.0,
    score_drop=1.0,
    xnnpack_steps=8,
    xnnpack_agreement=98.0,
    exact_images=4,
) -> Verification:
    """Checks a converted file on photos: the same on every kernel, and near the float model.

    A file whose maps are float32 (or whose weights are float16) is compared with the float model
    and with XNNPACK alone: bit-equality between kernels is for integers.

    Args:
        data: bytes of the `.tflite` file.
        images: uint8 (n, h, w, 3), photos at the size of the file's input.
        masks: uint8 (n, h, w), class indices and 255 where nothing counts; without them there are
            no accuracy and no MIoU.
        float_predictor: called with one photo, uint8 (h, w, 3), it returns its probabilities
            (h, w) or (h, w, classes), as `DDUNet.predict_probabilities` does.
        plain: bytes of the file before its operators were reordered and its memory planned, or
            columns merged: the outputs must be bit-equal.
        output: what the file answers with, "probability", "logits" or "mask".
        io: "int8", "uint8" or "float32", what its input and output should be.
        agreement: least share of pixels in which the masks of the file and of the float model
            agree, percent. Trained networks reach 99; below 97 something is wrong.
        score_drop: most that accuracy and MIoU may fall below the float model's, percentage points.
        xnnpack_steps: most that XNNPACK may differ from the reference kernels in the mean of an
            image, in steps of the quantized output (1/256 of it for float), in 95 % of the images.
            XNNPACK rounds each layer otherwise, that adds up, and the dynamic head multiplies it:
            trained networks of 4 and 8 base channels had 0.5 to 3 in the mean, one of 168 photos
            9.95, and at single pixels, at clouds' edges, up to 84.
        xnnpack_agreement: least share of pixels in which their masks agree, percent; those networks
            had 99.4.
        exact_images: number of photos for the comparisons bit for bit; reference kernels are slow.

    Returns:
        `Verification`.

    Raises:
        ValueError: images or probabilities do not fit the file, or an argument is out of its range.
        DataError: `data` or `plain` is no `.tflite` file.
    """
    model = read_tflite(data)
    graph = model.subgraphs[0]
    images = np.asarray(images)
    if images.dtype != np.uint8 or not len(images) or exact_images < 1:
        raise ValueError(
            f"images must be uint8 and at least one, received {images.dtype} of shape "
            f"{images.shape}; exact_images at least 1, received {exact_images}"
        )
    if masks is not None and np.shape(masks) != images.shape[:3]:
        raise ValueError(f"masks must be {images.shape[:3]}; received {np.shape(masks)}")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}; received {output!r}")
    few = images[:exact_images]
    quantized = any(
        operator_name(model, operator).endswith("CONV_2D")
        and DTYPES.get(graph.tensors[operator.outputs[0]].type) in (np.int8, np.uint8)
        for operator in graph.operators
    )
    checks, arena = [], None
    if quantized:
        from .quantize import check_int8

        try:
            check_int8(data, io)
            checks.append(Check("integers alone", True, f"{len(graph.operators)} operators"))
        except ValueError as error:
            checks.append(Check("integers alone", False, first_line(error)))
    try:
        reference = run_litert_in_child(data, images, True)
    except ChildError as error:
        checks.append(Check("LiteRT runs the file", False, first_line(error)))
        return Verification(tuple(checks), {}, None)
    if plain is not None:
        name = "rewriting the file changes nothing"
        said = f"{reference[: len(few)].size} values, bit for bit"
        before = run_litert_in_child(plain, few, True)
        checks.append(_equal(name, reference[: len(few)], before, said))
    if quantized:
        check, arena = _check_tflm(data, few, reference[: len(few)])
        checks.append(check)
    limits = xnnpack_steps, xnnpack_agreement
    check, xnnpack = _check_xnnpack(data, images, reference, output, *limits)
    checks.append(check)
    found = {}
    if float_predictor is not None:
        stack = np.stack([np.asarray(float_predictor(image)) for image in images])
        if stack.shape[:3] != images.shape[:3] or stack.ndim > 4:
            raise ValueError(
                f"float_predictor must return {images.shape[1:3]} or {images.shape[1:3]} and "
                f"classes; received {stack.shape[1:]}"
            )
        truth = None if masks is None else np.asarray(masks)
        classes = 2 if stack.ndim == 3 else stack.shape[-1]
        ours = _labels(probabilities(data, reference, output))
        found = _score(_labels(stack), ours, truth, classes)
        if xnnpack is not None:
            found["agreement_xnnpack"] = 100 * float(np.mean(xnnpack == _labels(stack)))
        two = stack.ndim == 3
        margin = abs(2 * stack - 1) if two else np.diff(np.partition(stack, -2)[..., -2:])
        found["unsure"] = 100 * float(np.mean(margin < 0.2))
        checks += _check_float(found, agreement, score_drop)
    return Verification(tuple(checks), found, arena)


# === Layer by layer ===


def compare_layers(data, float_data, images) -> list[dict]:
    """Where the quantization error arises: every operator's output against the float file's.

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
    graph, float_graph = model.subgraphs[0], float_model.subgraphs[0]

    def keys(of):
        listed = [
            (
                i,
                (
                    operator_name(of, operator),
                    tuple(of.subgraphs[0].tensors[operator.outputs[0]].shape),
                ),
            )
            for i, operator in enumerate(of.subgraphs[0].operators)
        ]
        return [entry for entry in listed if entry[1][0] not in ("QUANTIZE", "DEQUANTIZE")]

    ours, theirs = keys(model), keys(float_model)
    matcher = difflib.SequenceMatcher(
        None, [key for _, key in ours], [key for _, key in theirs], autojunk=False
    )
    pairs = {
        ours[a + k][0]: theirs[b + k][0]
        for a, b, size in matcher.get_matching_blocks()
        for k in range(size)
    }
    if 2 * len(pairs) < len(ours):
        raise ValueError(
            f"the files hold different graphs: {len(pairs)} of {len(ours)} operators match"
        )
    tensors = {
        graph.operators[i].outputs[0]: float_graph.operators[j].outputs[0] for i, j in pairs.items()
    }
    tensors[graph.inputs[0]] = float_graph.inputs[0]
    interpreters = (
        make_interpreter(data, True, keep=True),
        make_interpreter(float_data, False, keep=True),
    )
    images = np.asarray(images)
    both = input_feeds(model, images), input_feeds(float_model, images)
    sums = {index: np.zeros(3) for index in tensors}  # squared error, squares, sum
    spans = dict.fromkeys(tensors, (np.inf, -np.inf))
    for feeds in zip(*both, strict=True):
        for interpreter, feed in zip(interpreters, feeds, strict=True):
            invoke(interpreter, feed)
        for index, other in tensors.items():
            truth = interpreters[1].get_tensor(other).astype(np.float64)
            value = dequantize(graph.tensors[index], interpreters[0].get_tensor(index))
            error = np.mean(np.square(value.reshape(truth.shape) - truth))
            sums[index] += (error, np.mean(np.square(truth)), np.mean(truth))
            low, high = spans[index]
            spans[index] = min(low, truth.min()), max(high, truth.max())
    errors = {}
    for index, (squared, _, _) in sums.items():
        low, high = spans[index]
        errors[index] = 100 * np.sqrt(squared / len(images)) / max(high - low, 1e-12)
    for operator in graph.operators:  # what only changes the type or was not matched hands on
        known = [errors[i] for i in operator.inputs if i in errors]
        for index in operator.outputs:
            errors.setdefault(index, max(known, default=0.0))
    rows = []
    for number in pairs:
        operator = graph.operators[number]
        index = operator.outputs[0]
        squared, power, mean = sums[index] / len(images)
        signal_power = max(power - mean**2, 1e-30)
        rows.append(
            {
                "operator": number,
                "kind": operator_name(model, operator),
                "tensor": (graph.tensors[index].name or b"").decode(errors="replace"),
                "shape": graph.tensors[index].shape,
                "error": float(errors[index]),
                "sqnr_db": float(10 * np.log10(signal_power / max(squared, 1e-30))),
                "added": float(
                    errors[index] - max((errors.get(i, 0.0) for i in operator.inputs), default=0.0)
                ),
            }
        )
    return sorted(rows, key=lambda row: -row["added"])


def layers_to_markdown(rows, limit=15) -> str:
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
