"""Archives: the cloud cover of any number of frames, by threads or by a Dask cluster."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddunet_keras.camera.records import UNREADABLE, frame_time
from ddunet_keras.files import DataError, WriteError, printable, remove_partial_files
from ddunet_keras.prediction import PredictOptions, check_results_folder, predict_file
from ddunet_keras.presets import DEFAULT, preset_file
from ddunet_keras.segmenter import Segmenter

if TYPE_CHECKING:
    from distributed import Client

FRAMES_AHEAD = 4
"""Frames for each worker that are handed out before the first of them is waited for."""

DIGEST_DIGITS = 8
"""Hexadecimal digits of a file's SHA-256 in the table."""

PERCENT_DIGITS = 3
SHARE_DIGITS = 5
"""Digits that are kept of percentages, and of shares between 0 and 1."""

_OF_THREAD = threading.local()  # an interpreter runs one photo at a time: each thread has its own


def measure_archive(
    photos: Mapping[str, Path],
    options: PredictOptions | None = None,
    *,
    model: Path | None = None,
    masks: Path | None = None,
    workers: int = 1,
    client: Client | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Measures frames, several at once, and yields a record of each, in the order of `photos`.

    Some frames are worked on ahead, but never many: memory does not grow with the archive. The
    records do not depend on the number of workers, nor on where they run. What is wrong with the
    arguments is said at once, and not with the first record.

    Args:
        photos: name -> path, from `ddunet_keras.prediction.find_photos`.
        options: how they are measured.
        model: a `.tflite` file; the package's own by default.
        masks: folder for masks and overlays, which are named after `photos`; None: none.
        workers: threads, each with an interpreter of its own. Not used with a client.
        client: of a Dask cluster. Its workers see photos, model and `masks` under the same paths.

    Yields:
        time and time_from (as in a record of `ddunet watch`), frame (path), percent, okta,
        valid_fraction, usable, reason, confidence, zones (percent of each, or None), mask (name of
        a file in `masks`, or None), and what `archive_settings` gives. Of a frame that cannot be
        read, usable is False, and the reason begins with "unreadable: ".

    Raises:
        DataError: the model, the horizon or a zone cannot be used, or photos come from `masks`.
        WriteError: a mask cannot be written.
        ValueError: `workers` is not positive.

    Example:

    >>> from ddunet_keras.prediction import find_photos
    >>> root = dd.write_synthetic(tmp / "skies", 3, (48, 64))
    >>> records = measure_archive(find_photos([root / "images"]), workers=2)
    >>> [record["usable"] for record in records]
    [True, True, True]
    """
    options = options or PredictOptions()
    options.check()
    if masks is not None:
        check_results_folder(photos.values(), masks)
        remove_partial_files(masks)
    Segmenter(model, threads=1)  # says here, and not for each frame, what is wrong with it
    if workers < 1:
        raise ValueError(f"`workers` must be a positive integer. Received: workers={workers!r}")
    if client is None:
        executor: Executor = ThreadPoolExecutor(workers)
    else:
        executor = client.get_executor(pure=False)
        workers = max(sum(client.nthreads().values()), 1)
    measure = partial(measure_frame, options=options, model=model, masks=masks)
    settings = archive_settings(options, model)
    return _in_order(executor, measure, photos, FRAMES_AHEAD * workers, settings)


def _in_order(executor, measure, photos, ahead, settings):
    """The records of `photos`, of which so many are worked on ahead."""
    pending: deque[Future] = deque()
    try:
        for name, path in photos.items():
            pending.append(executor.submit(measure, path, name=name))
            if len(pending) > ahead:
                yield pending.popleft().result() | settings
        while pending:
            yield pending.popleft().result() | settings
    finally:
        for future in pending:  # the caller has stopped, or a frame has raised
            future.cancel()
        executor.shutdown(wait=True)


def measure_frame(
    path: Path,
    options: PredictOptions,
    model: Path | None = None,
    masks: Path | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Measures one frame with the interpreter of this thread.

    Args: as `measure_archive`; `name` is that of mask and overlay.

    Returns:
        The frame's record, without the settings.
    """
    segmenter = _segmenter(model)
    record: dict[str, Any] = dict.fromkeys(("time", "time_from"))
    record["frame"] = str(path)
    record |= dict.fromkeys(("percent", "okta", "valid_fraction"))
    record |= {"usable": False, "reason": None, "confidence": None}
    record["zones"] = dict.fromkeys(options.zones)
    record["mask"] = None
    try:
        found = predict_file(segmenter, path, options, masks, name)
    except WriteError:  # the next frame would fare no better
        raise
    except DataError as error:
        why = str(error).removeprefix(f"{printable(path)}: ")
        return record | _time_of(path) | {"reason": f"{UNREADABLE}: {why}"}
    cover = found["cloud_cover"]
    times = _time_of(path, found["taken"], found["taken_from"])
    return record | {
        **times,
        "percent": _rounded(cover["percent"], PERCENT_DIGITS),
        "okta": cover["okta"],
        "valid_fraction": _rounded(cover["valid_fraction"], SHARE_DIGITS),
        "usable": found["usable"],
        "reason": found["reason"],
        "confidence": _rounded(found["confidence"], SHARE_DIGITS),
        "zones": {
            zone: None if part is None else _rounded(part["percent"], PERCENT_DIGITS)
            for zone, part in found["zones"].items()
        },
        "mask": found.get("mask"),
    }


def _time_of(path, taken=None, taken_from=None):
    """When a frame was taken, as `ddunet watch` tells it; unknown if its file is away."""
    try:
        changed = path.stat().st_mtime
    except (OSError, ValueError):
        changed = None
    time, source = frame_time(taken, taken_from, path.name, changed, now=0.0)
    if source == "clock":
        return {"time": None, "time_from": None}
    return {"time": time.isoformat(timespec="seconds"), "time_from": source}


def archive_settings(options: PredictOptions, model: Path | None = None) -> dict[str, Any]:
    """The part of a record that is the same for all frames of an archive.

    Of files, it has the name and the beginning of the SHA-256 of what they hold: another model, or
    a horizon that was mended, may have the same name.

    Example:

    >>> settings = archive_settings(PredictOptions(threshold=0.4))
    >>> settings["model"][:21], settings["threshold"], settings["horizon"]
    ('ddunet_c8_256.tflite ', 0.4, None)
    """
    horizon = options.horizon
    if isinstance(horizon, Path) or (isinstance(horizon, str) and os.path.isfile(horizon)):
        horizon = _name_and_digest(Path(horizon))
    elif horizon is not None and not isinstance(horizon, str):
        horizon = "array"
    return {
        "model": _name_and_digest(model or preset_file(DEFAULT, "tflite")),
        "threshold": options.threshold,
        "horizon": horizon,
    }


def _name_and_digest(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{path.name} {digest[:DIGEST_DIGITS]}"


def _rounded(value, digits):
    return None if value is None else round(float(value), digits)


def _segmenter(model):
    if getattr(_OF_THREAD, "segmenter", None) is None or _OF_THREAD.model != model:
        _OF_THREAD.segmenter = Segmenter(model, threads=1)
        _OF_THREAD.model = model
    return _OF_THREAD.segmenter
