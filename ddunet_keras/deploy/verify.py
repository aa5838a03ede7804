"""Proof that a `.tflite` file computes the same everywhere, and how far that is from the float
model.

Four programs run the same photos: the float model, LiteRT with its reference kernels, LiteRT with
XNNPACK as users run it, and TensorFlow Lite Micro (TFLM), the kernels of a microcontroller. Neither
TensorFlow nor Keras is imported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from ddunet_keras.deploy.config import OUTPUTS
from ddunet_keras.deploy.scoring import (
    AGREEMENTS,
    SCORES,
    labels_of,
    probabilities,
    score_labels,
    unsure_share,
)
from ddunet_keras.litert.child import ChildError, NotInstalledError, in_child
from ddunet_keras.litert.model import DTYPES, first_line, operator_name, read_tflite
from ddunet_keras.litert.run import (
    first_difference,
    input_feeds,
    refused_operator,
    run_litert_in_child,
    run_tflm,
)
from ddunet_keras.litert.soundness import check_int8


@dataclass(frozen=True)
class Limits:
    """What `verify` takes for good.

    Args:
        agreement: least share of pixels in which the masks of the file and of the float model
            agree, percent. Trained networks reach 99; below 97 something is wrong.
        score_drop: most that accuracy and MIoU may fall below the float model's, percentage points.
        xnnpack_difference: most that XNNPACK may differ from the reference kernels in the mean of
            an image, in integers of the quantized output (in 1/256 for float), in `xnnpack_share`
            of the images. XNNPACK rounds each layer otherwise, that adds up, and the dynamic head
            multiplies it: trained networks of 4 and 8 base channels had 0.5 to 3 in the mean, one
            of 168 photos 9.95, and at single pixels, at clouds' edges, up to 84.
        xnnpack_share: percent of the images; with all of them, more photos would make the check
            stricter.
        xnnpack_agreement: least share of pixels in which their masks agree, percent; those networks
            had 99.4.
        exact_images: number of photos for the comparisons bit for bit; reference kernels are slow.
    """

    agreement: float = 97.0
    score_drop: float = 1.0
    xnnpack_difference: float = 8
    xnnpack_share: float = 95
    xnnpack_agreement: float = 98.0
    exact_images: int = 4

    def __post_init__(self):
        if self.exact_images < 1:
            raise ValueError(
                f"`exact_images` must be at least 1. Received: exact_images={self.exact_images!r}"
            )


@dataclass(frozen=True)
class Check:
    """One check of `verify`.

    Attributes:
        name: what was compared.
        passed: True or False, None where it could not be made.
        detail: figures, and where it failed (image, pixel, operator), or what is missing.
        advice: what the user can do about a check that failed.
    """

    name: str
    passed: bool | None
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        checks: the checks, in the order in which they were made.
        scores: as `score_labels` gives them, with agreement_xnnpack and unsure (`unsure_share`);
            empty without a float model.
        arena: bytes that TFLM needs (total, head, tail), or None.
    """

    checks: tuple[Check, ...]
    scores: dict
    arena: dict | None

    @property
    def passed(self) -> bool:
        """Whether no check failed; those that were not run are in `checks`."""
        return not self.failed

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    def to_dict(self) -> dict:
        """Everything as JSON holds it."""
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
        for check in self.checks:
            detail = "; ".join(text for text in (check.detail, check.advice) if text)
            lines.append(f"| {check.name} | {words[check.passed]} | {detail} |")
        if self.scores:
            lines += ["", f"| {self.scores['images']} images | float | file | difference |"]
            lines += ["|---|---|---|---|"]
        for key, title in SCORES.items():
            if key in self.scores:
                row = self.scores[key]
                figures = f"{row['float']:.2f} | {row['file']:.2f} | {row['difference']:+.2f}"
                lines.append(f"| {title} | {figures} |")
        for key, title in AGREEMENTS.items():
            if key in self.scores:
                lines.append(f"| {title} | | {self.scores[key]:.2f} | |")
        return "\n".join(lines) + "\n"


def verify(
    data,
    images,
    masks=None,
    *,
    float_predictor=None,
    unpacked=None,
    output="probability",
    io="int8",
    limits=None,
) -> Verification:
    """Checks a converted file on photos: the same on every kernel, and near the float model.

    A file whose feature maps are float32 (or whose weights are float16) is compared with the float
    model and with XNNPACK alone: bit-equality between kernels is for integers.

    Args:
        data: bytes of the `.tflite` file.
        images: uint8 (n, h, w, 3), photos at the size of the file's input.
        masks: uint8 (n, h, w), class indices and 255 where nothing counts; without them there are
            no accuracy and no MIoU.
        float_predictor: called with one photo, uint8 (h, w, 3), it returns its probabilities
            (h, w) or (h, w, classes), as `DDUNet.predict_probabilities` does.
        unpacked: bytes of the file before its operators were rewritten: the outputs must be
            bit-equal.
        output: what the file answers with, "probability", "logits" or "mask".
        io: "int8", "uint8" or "float32", what its input and output should be.
        limits: a `Limits`; its defaults where None.

    Raises:
        ValueError: images or probabilities do not fit the file, or an argument is out of its range.
        TFLiteError: `data` or `unpacked` is no `.tflite` file.
    """
    images = np.asarray(images)
    _check_arguments(images, masks, output)
    limits = limits or Limits()
    few = images[: limits.exact_images]
    model = read_tflite(data)
    quantized = _is_quantized(model)
    checks = [_check_integers(model, io)] if quantized else []
    try:
        reference = run_litert_in_child(data, images, True)
    except ChildError as error:
        checks.append(Check("LiteRT runs the file", False, first_line(error)))
        return Verification(tuple(checks), {}, None)
    arena = None
    if unpacked is not None:
        before = run_litert_in_child(unpacked, few, True)
        name = "rewriting the file changes nothing"
        checks.append(_equal(name, reference[: len(few)], before))
    if quantized:
        check, arena = _check_tflm(data, few, reference[: len(few)])
        checks.append(check)
    check, xnnpack = _check_xnnpack(data, images, reference, output, limits)
    checks.append(check)
    found: dict = {}
    if float_predictor is not None:
        floats = _float_values(float_predictor, images)
        labels = labels_of(probabilities(data, reference, output))
        classes = 2 if floats.ndim == 3 else floats.shape[-1]
        truth = None if masks is None else np.asarray(masks)
        found = score_labels(labels_of(floats), labels, truth, classes)
        if xnnpack is not None:
            found["agreement_xnnpack"] = 100 * float(np.mean(xnnpack == labels_of(floats)))
        found["unsure"] = unsure_share(floats)
        checks += _check_scores(found, limits)
    return Verification(tuple(checks), found, arena)


def _check_arguments(images, masks, output):
    if images.dtype != np.uint8 or not len(images):
        raise ValueError(
            "images must be uint8 and at least one. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    if masks is not None and np.shape(masks) != images.shape[:3]:
        raise ValueError(f"masks must be {images.shape[:3]}. Received: {np.shape(masks)}")
    if output not in OUTPUTS:
        raise ValueError(f"`output` must be one of {OUTPUTS}. Received: output={output!r}")


def _is_quantized(model) -> bool:
    """Whether a convolution of the file computes with 8-bit integers."""
    (graph,) = model.subgraphs
    for operator in graph.operators:
        if operator_name(model, operator).endswith("CONV_2D"):
            dtype = DTYPES.get(graph.tensors[operator.outputs[0]].type)
            if dtype in (np.int8, np.uint8):
                return True
    return False


def _float_values(predictor, images) -> np.ndarray:
    values = np.stack([np.asarray(predictor(image)) for image in images])
    if values.shape[:3] != images.shape[:3] or values.ndim > 4:
        raise ValueError(
            f"float_predictor must return {images.shape[1:3]} or {images.shape[1:3]} and classes. "
            f"Received: {values.shape[1:]}"
        )
    return values


# === The checks ===


def _check_integers(model, io) -> Check:
    name = "integers alone"
    try:
        check_int8(model, io)
    except ValueError as error:
        return Check(name, False, first_line(error))
    return Check(name, True, f"{len(model.subgraphs[0].operators)} operators")


def _equal(name, first, second, said=None, where=lambda: "") -> Check:
    """A check that two stacks of outputs are the same, bit for bit."""
    if first.shape != second.shape or first.dtype != second.dtype:
        detail = f"{first.dtype} {first.shape} against {second.dtype} {second.shape}"
        return Check(name, False, detail)
    if np.array_equal(first, second):
        return Check(name, True, said or f"{first.size} values, bit for bit")
    return Check(name, False, _largest_difference(first, second) + where())


def _largest_difference(first, second) -> str:
    """Where two stacks of outputs differ most."""
    apart = np.abs(first.astype(np.float64) - second.astype(np.float64))
    place = tuple(int(k) for k in np.unravel_index(apart.argmax(), apart.shape))
    image, *pixel = place
    return (
        f"{np.count_nonzero(apart)} of {apart.size} values differ, most at image {image}, pixel "
        f"{tuple(pixel[:2])}: {first[place]} against {second[place]}"
    )


def _check_tflm(data, images, expected):
    """TFLM against the reference kernels: (check, arena)."""
    name = "TFLM equals the reference kernels"
    try:
        outputs, arena = run_tflm(data, images)
    except NotInstalledError as error:
        return Check(name, None, f"not run: {error}"), None
    except ChildError as error:
        return Check(name, False, f"TFLM does not run the file: {error}"), None

    def where():
        different = [not np.array_equal(a, b) for a, b in zip(outputs, expected, strict=True)]
        feed = input_feeds(read_tflite(data), images)[different.index(True)]
        try:
            return f"; first in {first_difference(data, feed)}"
        except ChildError as error:
            return f"; the operator could not be found ({error})"

    said = f"{outputs.size} values of {len(images)} images, bit for bit; arena {arena['total']} B"
    return _equal(name, outputs, expected, said, where), arena


def _check_xnnpack(data, images, reference, output, limits):
    """XNNPACK against the reference kernels: (check, labels by XNNPACK)."""
    name = "XNNPACK is near the reference kernels"
    try:
        outputs = run_litert_in_child(data, images, False)
    except ChildError as error:
        return Check(name, False, f"{first_line(error)}; first {_refused(data)}"), None
    theirs = labels_of(probabilities(data, outputs, output))
    ours = labels_of(probabilities(data, reference, output))
    same = 100 * float(np.mean(ours == theirs))
    passed = same >= limits.xnnpack_agreement
    said = f"{same:.2f} % of the pixels agree (at least {limits.xnnpack_agreement:g} %)"
    if output != "mask":
        near, detail = _near(outputs, reference, limits)
        passed &= near
        said += f"; {detail}"
    if passed:
        return Check(name, True, said), theirs
    advice = "a model that is unsure of many pixels shows it most: train it for longer"
    return Check(name, False, f"{said}; {_largest_difference(outputs, reference)}", advice), theirs


def _refused(data) -> str:
    try:
        return in_child(refused_operator, data)[0]
    except ChildError as error:
        return f"operator could not be found ({first_line(error)})"


def _near(outputs, reference, limits):
    """Whether two stacks of outputs are near in the mean of an image, and the figures."""
    apart = np.abs(outputs.astype(np.float64) - reference.astype(np.float64))
    apart = apart.mean(tuple(range(1, apart.ndim)))
    integers = outputs.dtype.kind in "iu"
    limit = limits.xnnpack_difference if integers else limits.xnnpack_difference / 256
    within = 100 * float(np.mean(apart <= limit))
    detail = (
        f"mean difference at most {limit:g}{' integers' if integers else ''} in {within:.1f} % of "
        f"the images (at least {limits.xnnpack_share:g} %), most in image {apart.argmax()}: "
        f"{apart.max():.3g}"
    )
    return within >= limits.xnnpack_share, detail


def _check_scores(found, limits):
    """The checks against the float model."""
    advice = (
        f"the float model is unsure of {found['unsure']:.0f} % of the pixels (trained ones of 3 to "
        "5 %): train it for longer, or convert on photos like those that it knows"
    )
    worst = int(np.argmin(found["agreement_by_image"]))
    yield Check(
        "the masks agree with the float model's",
        found["agreement"] >= limits.agreement,
        f"{found['agreement']:.2f} % of the pixels (at least {limits.agreement:g} %); least in "
        f"image {worst}: {found['agreement_by_image'][worst]:.2f} %",
        "" if found["agreement"] >= limits.agreement else advice,
    )
    for key in ("accuracy", "miou"):
        if key not in found:
            continue
        row = found[key]
        passed = row["difference"] >= -limits.score_drop
        yield Check(
            f"{key} holds",
            passed,
            f"{row['float']:.2f} % in float, {row['file']:.2f} % here, {row['difference']:+.2f} "
            f"points (at least {-limits.score_drop:+g})",
            "" if passed else advice,
        )
