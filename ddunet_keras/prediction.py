"""Segments photo files: finds them, names their results, writes mask, overlay and one JSON."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddunet_keras.files import (
    DataError,
    StrPath,
    WriteError,
    as_json,
    list_folder,
    printable,
    remove_partial_files,
    source_name,
    write_image,
    write_json,
)
from ddunet_keras.sky import Horizon, Segmentation, check_horizon, check_zone, find_horizon
from ddunet_keras.sky.reading import ReadOptions, read_photo

PACKED = ("", ".gz", ".fz")
FITS_SUFFIXES = tuple(f".{fits}{packed}" for fits in ("fit", "fits", "fts") for packed in PACKED)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", *FITS_SUFFIXES)
"""Endings of the files in a folder that are taken for photos."""

NOT_FRAMES = ("thumbnail", "keogram", "keolapse", "startrail", "timelapse", "panorama", "latest")
"""Words in the names of folders and files that Allsky and indi-allsky keep beside the frames."""

STDIN = "-"
"""What stands for the photo on stdin among the inputs; its results are called "stdin"."""

JPEG_MAX_SIDE = 65_500
"""Longest side, pixels, that libjpeg writes; the overlay of a larger photo is a PNG."""

MAX_NAME_BYTES = 200
"""Longest name of results: file systems take 255 bytes, and `-2_overlay.jpg` is added to it."""


@dataclass(frozen=True)
class PredictOptions:
    """How photos are measured.

    Attributes:
        threshold, horizon, force: as in `DDUNet.segment`.
        zones: parts of the sky whose cover is told beside that of the whole, as in
            `Segmentation.zone_cover`.
        overlay: whether to write overlays beside masks.
        reading: how the photos are read.
    """

    threshold: float = 0.5
    horizon: Any = None
    force: bool = False
    zones: Sequence[str] = ()
    overlay: bool = True
    reading: ReadOptions | None = None

    def check(self) -> None:
        """Tells before the first photo what cannot be made sense of.

        Raises:
            DataError: the horizon's mask cannot be read, or a zone cannot be placed.
        """
        check_horizon(self.horizon)
        for zone in self.zones:
            check_zone(zone, self.horizon)


class Model(Protocol):
    """What segments a photo: `DDUNet`, `Segmenter`, or anything with this method."""

    def segment(
        self, image: np.ndarray, threshold: float, horizon: Any, *, force: bool
    ) -> Segmentation:
        """Finds the clouds in uint8 (h, w, 3); see `ddunet_keras.sky.segment`."""


def find_photos(
    inputs: Iterable[StrPath], recursive: bool = False, out: StrPath | None = None
) -> dict[str, Path]:
    """The photos among files and folders, each once, by the name that its results shall bear.

    That name is the file's own without ending. Where several have the same, the later ones get
    `-2`, `-3`...; names that differ in case alone count as the same, as some file systems do. Names
    beyond `MAX_NAME_BYTES` are cut.

    Args:
        inputs: paths of files, taken as they are, and of folders, whose files with one of
            `SUFFIXES` are taken in the order of their names; `STDIN` is taken for a file.
        recursive: whether to look into the folders in folders, too, but for what `is_no_frame`.
        out: a folder in which that does not look: for the results.

    Raises:
        DataError: a folder holds no photo or cannot be listed.

    Example:

    >>> photos = find_photos(["day/sky.jpg", "night/sky.jpg"])
    >>> {name: path.as_posix() for name, path in photos.items()}
    {'sky': 'day/sky.jpg', 'sky-2': 'night/sky.jpg'}
    """
    by_real_path: dict[str, Path] = {}
    for path in map(Path, inputs):
        is_folder = str(path) != STDIN and os.path.isdir(path)
        for photo in _photos_in(path, recursive, out) if is_folder else [path]:
            by_real_path.setdefault(os.path.realpath(photo), photo)

    photos: dict[str, Path] = {}
    taken: set[str] = set()
    for path in by_real_path.values():
        stem = "stdin" if str(path) == STDIN else _stem(path)
        while len(os.fsencode(stem)) > MAX_NAME_BYTES:
            stem = stem[:-1]
        photos[free_name(stem, taken)] = path
    return photos


def free_name(name: str, taken: set[str]) -> str:
    """The name, or if it is taken, with `-2`, `-3`...; adds it to `taken`, which has no capitals.

    Example:

    >>> free_name("Sky", {"sky", "sky-2"})
    'Sky-3'
    """
    free = name
    count = 1
    while free.casefold() in taken:
        count += 1
        free = f"{name}-{count}"
    taken.add(free.casefold())
    return free


def is_no_frame(name: str) -> bool:
    """Whether a file or folder is, by its name, what a camera's software makes of the frames.

    Example:

    >>> is_no_frame("Keogram-20260601.jpg"), is_no_frame("image-20260601220000.jpg")
    (True, False)
    """
    return any(word in name.lower() for word in NOT_FRAMES)


def count_left_out(
    inputs: Iterable[StrPath], recursive: bool = False, out: StrPath | None = None
) -> dict[str, int]:
    """How many files of folders `find_photos` leaves out, by ending; most frequent first.

    Without `recursive`, the folders in folders are counted as "folder", and with it what
    `is_no_frame`, as "keogram or the like". Hidden files are not counted.

    Example:

    >>> for name in ("sky.jpg", "notes.txt", "log.txt"):
    ...     _ = (tmp / name).write_bytes(b"")
    >>> count_left_out([tmp])
    {'.txt': 2}
    """
    counts: Counter[str] = Counter()
    for folder in {Path(os.path.realpath(path)) for path in inputs if os.path.isdir(path)}:
        for path in _walk(folder, recursive, out):
            if _is_beside_frames(path, folder, recursive):
                counts["keogram or the like"] += 1
            elif os.path.isdir(path):
                counts["folder"] += 1
            elif not _is_photo(path):
                counts[path.suffix.lower() or "no ending"] += 1
    return dict(counts.most_common())


def _is_beside_frames(path, folder, recursive):
    """Whether something in `folder` is no frame; in one that was named for such files, all are."""
    return recursive and is_no_frame(path.name) and not is_no_frame(folder.name)


def _is_photo(path):
    return path.name.lower().endswith(SUFFIXES)


def _stem(path):
    """A file's name without ending; `sky.fits.gz` has two."""
    for suffix in FITS_SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def _walk(folder: Path, recursive: bool, out: StrPath | None) -> Iterator[Path]:
    """The files of a folder in the order of their names, and the folders that are not entered.

    Links to folders are not followed: they may lead in circles.
    """
    for path in list_folder(folder):
        is_entered = recursive and os.path.isdir(path) and not is_no_frame(path.name)
        if not is_entered or os.path.islink(path):
            yield path
        elif out is None or os.path.realpath(path) != os.path.realpath(out):
            yield from _walk(path, recursive, out)


def _photos_in(folder, recursive, out):
    photos = [
        path
        for path in _walk(folder, recursive, out)
        if _is_photo(path)
        and not os.path.isdir(path)
        and not _is_beside_frames(path, folder, recursive)
    ]
    if not photos:
        raise DataError(f"{folder}: holds no photos ({' '.join(SUFFIXES)})")
    return photos


def predict_files(
    model: Model,
    photos: Mapping[str, Path | bytes],
    out: StrPath,
    /,
    *,
    threshold: float = 0.5,
    horizon: Any = None,
    force: bool = False,
    zones: Sequence[str] = (),
    overlay: bool = True,
    reading: ReadOptions | None = None,
    **about: Any,
) -> Generator[dict[str, Any], None, None]:
    """Segments photos one by one and yields what it found in each.

    In `out` it writes `NAME_mask.png` at the photo's own size (`Segmentation.mask`),
    `NAME_overlay.jpg` (`.png` for a photo with a side beyond `JPEG_MAX_SIDE`), and at the end, or
    when the caller stops early, `predictions.json` with everything that was yielded. First it
    removes the partial files that killed processes left there.

    Args:
        model: has `segment(image, threshold=, horizon=, force=)`, as `DDUNet` does.
        photos: name -> path, from `find_photos`, or the content of a file.
        out: a folder, made if missing. What it holds of the same name is replaced.
        threshold, horizon, force: as in `DDUNet.segment`.
        zones: parts of the sky whose cover is told beside that of the whole, as in
            `Segmentation.zone_cover`.
        overlay: whether to write overlays.
        reading: how the photos are read.
        **about: added to each record, such as the model's name.

    Yields:
        A dict for each photo, in order: image (path, or `STDIN`), taken and taken_from (as
        `ddunet_keras.sky.reading.Photo`), mask and overlay (names of files in `out`),
        height, width, cloud_cover (fraction, percent, okta, valid_fraction), usable, reason,
        confidence (as in `Segmentation`), zones (the cover of each zone; None where "auto" found no
        disc to place it in), threshold, horizon, disc (centre and radii, pixels; None where there
        is none or "auto" found none) and seconds (to read and segment the photo).
        For a photo that says nothing of the sky, usable is False, the numbers of its cloud cover
        are None, and it has neither mask nor overlay, unless `force` is given.
        For a photo that cannot be read: image and error. The others go on.

    Raises:
        DataError: `out` is a folder that photos come from (results must not become inputs), or it
            cannot be written to, or the horizon's mask cannot be read, or a zone cannot be placed.

    Example:

    >>> write = dd.write_synthetic(tmp / "skies", 2, (48, 64))
    >>> photos = find_photos([tmp / "skies" / "images"])
    >>> records = list(predict_files(dd.Segmenter(), photos, tmp / "clouds"))
    >>> [(record["mask"], record["height"], record["width"]) for record in records]
    [('0000_mask.png', 48, 64), ('0001_mask.png', 48, 64)]
    """
    out = Path(out)
    check_results_folder(photos.values(), out)
    options = PredictOptions(threshold, horizon, force, zones, overlay, reading)
    options.check()
    remove_partial_files(out)
    records = []
    try:
        for name, source in photos.items():
            record: dict[str, Any] = {"image": STDIN if isinstance(source, bytes) else str(source)}
            try:
                record |= predict_file(model, source, options, out, name) | about
            except WriteError:  # the next photo would fare no better
                raise
            except DataError as error:
                path = source_name(source)
                names_the_file = printable(path) in str(error)
                record["error"] = str(error) if names_the_file else printable(f"{path}: {error}")
            records.append(record)
            yield record
    finally:
        write_json(out / "predictions.json", records)


def check_results_folder(photos: Iterable[Path | bytes], out: Path) -> None:
    """Refuses a folder that photos come from: results must not become inputs.

    Raises:
        DataError: it is one.
    """
    paths = [os.path.realpath(photo) for photo in photos if not isinstance(photo, bytes)]
    if os.path.realpath(out) in {os.path.dirname(path) for path in paths}:
        raise DataError(f"{out}: photos are read from this folder; give another for the results")


def predict_file(
    model: Model,
    source: Path | bytes,
    options: PredictOptions,
    out: Path | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Segments one photo; a function of its own, so that its arrays go before the next one.

    Args:
        model, options: as in `predict_files`.
        source: a path, or the content of a file.
        out: where mask and overlay go; None: they are not written.
        name: of mask and overlay.

    Returns:
        What `predict_files` yields, without `image`.

    Raises:
        DataError: the photo cannot be read.
        WriteError: `out` cannot be written to.
    """
    start = time.perf_counter()
    photo = read_photo(source, options.reading)
    horizon = options.horizon
    if photo.valid is not None:
        valid, disc = find_horizon(horizon, photo.image)
        horizon = Horizon(valid & photo.valid, disc)
    result = model.segment(photo.image, options.threshold, horizon, force=options.force)
    seconds = time.perf_counter() - start
    height, width = result.image.shape[:2]
    is_array = isinstance(options.horizon, np.ndarray)
    about = {
        "taken": photo.taken,
        "taken_from": photo.taken_from,
        "height": height,
        "width": width,
        **result.to_dict(),
        "zones": {zone: _zone_cover(result, zone) for zone in options.zones},
        "threshold": options.threshold,
        "horizon": "array" if is_array else options.horizon,
        "disc": None if result.disc is None else result.disc.to_dict(),
        "seconds": round(seconds, 4),
    }
    if out is None:
        return about
    del photo  # a large photo's memory
    suffix = ".jpg" if max(height, width) <= JPEG_MAX_SIDE else ".png"
    names = {"mask": f"{name}_mask.png", "overlay": f"{name}_overlay{suffix}"}
    if not result.measured:
        for stale in names.values():  # of another photo of this name
            (out / stale).unlink(missing_ok=True)
        return about
    write_image(out / names["mask"], result.mask)
    if not options.overlay:
        return {"mask": names["mask"]} | about
    picture = result.overlay()
    del result  # a large photo's memory, before its overlay is compressed
    write_image(out / names["overlay"], picture)
    return names | about


def _zone_cover(result, zone):
    """Cover of a zone as a dict, None where "auto" found no disc in this photo to place it in."""
    if zone.startswith("zenith:") and result.disc is None:
        return None  # a dark night is no reason to lose the cover of the whole sky
    return as_json(result.zone_cover(zone).to_dict())
