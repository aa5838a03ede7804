"""From a trained DDUNet to a `.tflite` file that was verified: `convert`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddunet_keras import __version__
from ddunet_keras.files import DataError, atomic_path, read_image, write_json, write_text
from ddunet_keras.images import resize_image, resize_labels


@dataclass(frozen=True)
class Target:
    """What a device asks of a file.

    Attributes:
        head: form of the dynamic head, see `graph.build_graph`.
        io: type of input and output by default.
        planned: whether operators are ordered and the arena is planned for TensorFlow Lite Micro.
        merged: whether columns of narrow maps are merged for XNNPACK.
        metadata: whether the file carries what MediaPipe's ImageSegmenter reads.
        about: for `--help`.
    """

    head: str
    io: str
    planned: bool = False
    merged: bool = False
    metadata: bool = False
    about: str = ""


TARGETS = {
    "tflm": Target("multiply", "int8", planned=True, about="any microcontroller with TFLM"),
    "ethos-u": Target("multiply", "int8", about="input of Arm's Vela compiler"),
    "edgetpu": Target("multiply", "uint8", about="input of Coral's Edge TPU compiler"),
    "android": Target(
        "matmul", "uint8", merged=True, metadata=True, about="MediaPipe's ImageSegmenter"
    ),
    "cpu": Target("matmul", "int8", merged=True, about="LiteRT with XNNPACK: Raspberry Pi, PC"),
}
"""Target -> what it asks for."""

PRECISIONS = ("int8", "float16", "float32")


class ConversionError(DataError):
    """A conversion did not pass its checks, and no file was written.

    Attributes:
        verification: the `verify.Verification` that says which check failed and where.
        layers: the error of each layer as text, or how to get it.
    """

    def __init__(self, message, verification, layers):
        super().__init__(message)
        self.verification = verification
        self.layers = layers


@dataclass(frozen=True)
class Photos:
    """The images of a conversion, at the size of the network, and where they came from.

    Attributes:
        calibration: uint8 (n, height, width, 3), from the training part alone.
        test: uint8 (m, height, width, 3), that the file is verified on.
        masks: uint8 (m, height, width) labels of `test`, or None for photos without masks.
        about: settings, for the report.
        parts: pairs of a dataset and its `Split`, for quantization-aware training; none for photos
            without masks.
    """

    calibration: np.ndarray
    test: np.ndarray
    masks: np.ndarray | None
    about: dict
    parts: tuple = ()


def labelled_photos(dataset, split, size, *, count=200, verify=32, seed=0, also=()) -> Photos:
    """Photos from a data set with masks: `count` to calibrate, from the training part of `split`,
    and `verify` (0 for all) to verify on, from its test part.

    Args:
        also: pairs of a further dataset and its `Split`; up to a quarter of `count` more photos to
            calibrate with, from the training part of each, and to train on with `qat_epochs`.

    Raises:
        DataError: the split does not fit the data set, or an image cannot be read.
    """
    from .quantize import calibration_images

    split.check(dataset)
    names = list(split.test)
    if verify and verify < len(names):
        chosen = np.random.default_rng(seed).choice(len(names), verify, replace=False)
        names = [names[index] for index in sorted(chosen)]
    pairs = [dataset.load(dataset.find(name)) for name in names]
    calibration = [calibration_images(dataset, split, size, count, seed)]
    for other, part in also:
        part.check(other)
        calibration.append(calibration_images(other, part, size, -(-count // 4), seed))
    calibration = np.concatenate(calibration)
    if also:  # mixed evenly, as some steps use the first or every k-th
        calibration = np.random.default_rng(seed).permutation(calibration)
    about = {
        "data": ", ".join([dataset.root.name, *(other.root.name for other, _ in also)]),
        "protocol": split.protocol,
        "split_seed": split.seed,
        "calibrated_on": f"{len(calibration)} training images",
        "verified_on": f"{len(names)} of {len(split.test)} test images",
    }
    test = np.stack([resize_image(image, size) for image, _ in pairs])
    masks = np.stack([resize_labels(labels, size) for _, labels in pairs])
    return Photos(calibration, test, masks, about, ((dataset, split), *also))


def plain_photos(paths, size, *, count=200, verify=32, seed=0) -> Photos:
    """Photos without masks, such as those of a camera: a seeded fifth of them (at most `verify`,
    where that is not 0) is kept from calibration, to verify on.

    Args:
        paths: at least two files.

    Raises:
        DataError: there are fewer, or a photo cannot be read.
    """
    paths = list(paths)
    if len(paths) < 2:
        raise DataError(f"calibration needs at least 2 photos, better 100; received {len(paths)}")
    order = np.random.default_rng(seed).permutation(len(paths))
    held = max(1, len(paths) // 5)
    held = min(held, verify) if verify else held
    images = [resize_image(read_image(paths[i]), size) for i in order[: held + count]]
    about = {
        "data": "photos without masks",
        "calibrated_on": f"{len(images) - held} photos",
        "verified_on": f"{held} other photos",
    }
    return Photos(np.stack(images[held:]), np.stack(images[:held]), None, about)


def convert(
    model,
    photos,
    out,
    *,
    size,
    target="tflm",
    precision="int8",
    io=None,
    output="probability",
    qat_epochs=0,
    prune=None,
    cluster=None,
    ram=None,
    seed=0,
    c_array=None,
    debug=False,
    inspect=True,
    progress=None,
    **about,
) -> dict:
    """Converts, quantizes, fits into memory, verifies, reports and writes.

    Nothing is written unless every check holds: then `out`, and beside it `.json` and `.md` (the
    verification and the report of what the file costs) and `.png` (memory over the operators).

    Args:
        model: a trained `DDUNet`.
        photos: a `Photos` of `size`.
        out: a path that ends in `.tflite`.
        size: (height, width) of the file's input, multiples of 16.
        target: one of `TARGETS`.
        precision: "int8" (everything), or weights in "float16" or "float32".
        io: "int8", "uint8" or "float32", type of input and output; by default the target's.
        output: "probability", "logits" or "mask".
        qat_epochs: epochs of quantization-aware training; 0 for post-training quantization.
        prune: share of the weights set to zero, in (0, 1), in quantization-aware training.
        cluster: number of values that each layer's weights share, likewise.
        ram: KiB that the arena of TFLM may have; `target="tflm"` alone.
        seed: of training and of what is drawn.
        c_array: folder for the file as C sources, or None.
        debug: whether to compare each layer with the float model.
        inspect: whether the report is made with Vela, TFLM and latency (half a minute).
        progress: called with a line of text at each step, or None.
        **about: further settings for the report, such as the model's name.

    Returns:
        What the `.json` holds: file, bytes, sha256, about, verification, report, layers.

    Raises:
        ConversionError: a check did not hold; its `verification` says which and where.
        DataError: `ram` is less than can be reached.
        ValueError: an argument is out of its range.
    """
    from ddunet_keras.litert import columns, run, schedule
    from ddunet_keras.litert import inspect as inspection

    from . import export, quantize, verify
    from .graph import check_graph

    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {tuple(TARGETS)}. Received: target={target!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {PRECISIONS}. Received: {precision!r}")
    wanted = TARGETS[target]
    io = io or (wanted.io if precision == "int8" else "float32")
    out, say = Path(out), progress or (lambda line: None)
    if out.suffix != ".tflite":
        raise ValueError(f"`out` must end in .tflite. Received: {str(out)!r}")
    if wanted.metadata and (io == "int8" or output == "mask"):
        raise DataError(export.MEDIAPIPE)
    if (ram or c_array) and target != "tflm":
        raise ValueError(f"`ram` and `c_array` are for target tflm. Received: target={target!r}")
    if precision != "int8" and (qat_epochs or prune or cluster or ram or io != "float32"):
        raise ValueError(
            f"training, pruning, `ram` and `io` are for int8. Received: precision={precision!r}"
        )
    if (prune or cluster) and not qat_epochs:
        raise ValueError("`prune` and `cluster` act in training: give `qat_epochs` as well")
    if qat_epochs and not photos.parts:
        raise DataError("quantization-aware training needs a data set with masks, not photos alone")

    say("comparing the deploy graph with the model")
    difference = check_graph(model, size, wanted.head)
    form = {"head": wanted.head, "output": output}
    if precision != "int8":
        say(f"converting to {precision}")
        plain = quantize.float_model(model, size, dtype=precision, **form)
    elif qat_epochs:
        say(f"training for {qat_epochs} epochs with quantization, taught by the float model")
        plain = quantize.train_quantized(
            model,
            size,
            photos.calibration,
            photos.parts,
            epochs=qat_epochs,
            io=io,
            prune=prune,
            cluster=cluster,
            seed=seed,
            progress=progress,
            **form,
        )
    else:
        say(f"quantizing, calibrated on {len(photos.calibration)} photos")
        plain = quantize.quantize(model, size, photos.calibration, io=io, **form)
    data = plain
    if wanted.planned and precision == "int8":
        say("ordering the operators and planning the arena")
        data = schedule.optimize(plain, ram=ram)
    if wanted.merged and precision == "int8":
        say("merging columns of narrow maps")
        data = columns.merge_columns(plain)
    if wanted.metadata:
        data = export.add_metadata(data)
    layers = []
    if debug:
        say("comparing each layer with the float model")
        exact = quantize.float_model(model, size, dtype="float32", **form)
        layers, _ = run.in_child(verify.compare_layers, plain, exact, photos.test[:4])
    say(f"verifying on {len(photos.test)} photos")
    checked = verify.verify(
        data,
        photos.test,
        photos.masks,
        float_predictor=model.resized((*size, 3)).predict_probabilities,
        plain=None if data is plain else plain,
        output=output,
        io=io,
    )
    failed = [check for check in checked.checks if check.passed is False]
    if failed:
        where = verify.layers_to_markdown(layers) if debug else "--debug shows each layer's error"
        said = f"{out} was not written; {failed[0].name}: {failed[0].detail}"
        if (unsure := checked.scores.get("unsure", 0)) > 6:
            said += f"; the float model is unsure of {unsure:.0f} % of the pixels (trained ones "
            said += "of 3 %): train it for longer, or convert on photos like those it knows"
        raise ConversionError(said, checked, where)
    say("measuring what it costs")
    report = inspection.inspect_model(
        data, latency=inspect, vela=inspect, tflm=inspect, name=out.name
    )
    result = {
        "file": out.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "ddunet_keras": __version__,
        "about": {
            **about,
            "target": target,
            "size": list(size),
            "precision": precision,
            "io": io,
            "output": output,
            "qat_epochs": qat_epochs,
            "prune": prune,
            "cluster": cluster,
            "ram": ram,
            "seed": seed,
            **photos.about,
            "graph_difference": difference,
        },
        "verification": checked.to_dict(),
        "report": report.to_dict(),
        "layers": layers,
    }
    text = [f"# {out.name}", ", ".join(f"{k} {v}" for k, v in result["about"].items() if v) + "."]
    text += [checked.to_markdown(), report.to_markdown()]
    text += [verify.layers_to_markdown(layers)] if debug else []
    if c_array:
        arena = checked.arena or run.run_tflm(data, photos.test[:1])[1]
        export.write_c_array(data, c_array, arena_bytes=arena["total"])
    write_json(out.with_suffix(".json"), result)
    write_text(out.with_suffix(".md"), "\n\n".join(part.strip() for part in text) + "\n")
    with atomic_path(out.with_suffix(".png")) as temporary:
        report.plot(temporary)
    with atomic_path(out) as temporary:  # last: where it stands, all of it stands
        temporary.write_bytes(data)
    return result
