"""Segments photo files: finds them, names their results, writes mask, overlay and one JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ddunet_keras.files import DataError, read_image, write_image, write_json

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the files in a folder that are taken for photos."""


def find_photos(inputs) -> dict[str, Path]:
    """The photos among files and folders, each once, by the name that its results shall bear.

    That name is the file's own without ending. Where several have the same, the later ones get
    `-2`, `-3`...; names that differ in case alone count as the same, as some file systems do.

    Args:
        inputs: paths of files, taken as they are, and of folders, whose files with one of
            `SUFFIXES` are taken in the order of their names.

    Raises:
        DataError: a folder holds no photo.

    Example:

    >>> find_photos(["day/sky.jpg", "night/sky.jpg"])  # doctest: +SKIP
    {'sky': PosixPath('day/sky.jpg'), 'sky-2': PosixPath('night/sky.jpg')}
    """
    paths, named, taken = {}, {}, set()
    for path in map(Path, inputs):
        found = [path]
        if path.is_dir():
            found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES]
            found = [p for p in found if not p.name.startswith(".")]
            if not found:
                raise DataError(f"{path}: holds no photos ({' '.join(SUFFIXES)})")
        paths |= {p.resolve(): p for p in found if p.resolve() not in paths}
    for path in paths.values():
        name, count = path.stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        named[name] = path
    return named


def predict_files(
    model, photos, out, /, *, threshold=0.5, horizon=None, overlay=True, **about
) -> Iterator[dict]:
    """Segments photos one by one and yields what it found in each.

    In `out` it writes `NAME_mask.png` at the photo's own size (`Segmentation.mask`),
    `NAME_overlay.jpg`, and at the end, or when the caller stops early, `predictions.json` with
    everything that was yielded.

    Args:
        model: has `segment(image, threshold=, horizon=)`, as `DDUNet` does.
        photos: name -> path, from `find_photos`.
        out: a folder, made if missing. What it holds of the same name is replaced.
        threshold, horizon: as in `DDUNet.segment`.
        overlay: whether to write overlays.
        **about: added to each record, such as the model's name.

    Yields:
        A dict for each photo, in order: image (path), mask and overlay (names of files in `out`),
        height, width, cloud_cover (`Segmentation.to_dict`: fraction, percent, okta,
        valid_fraction, classes), threshold, horizon and seconds (to read and segment the photo).
        For a photo that cannot be used: image and error. The others go on.

    Raises:
        DataError: `out` is a folder that photos come from: results must not become inputs.

    Example:

    >>> records = predict_files(model, find_photos(["photos"]), "clouds")  # doctest: +SKIP
    >>> [record["cloud_cover"]["percent"] for record in records]  # doctest: +SKIP
    [43.7, 98.1]
    """
    out = Path(out)
    if out.resolve() in {path.resolve().parent for path in photos.values()}:
        raise DataError(f"{out}: photos are read from this folder; give another for the results")
    records = []
    settings = {"threshold": threshold, "horizon": horizon}
    try:
        for name, path in photos.items():
            record = {"image": str(path)}
            try:
                record |= _predict_file(model, path, out, name, settings, overlay) | about
            except DataError as error:
                about_file = str(path) in str(error)
                record["error"] = str(error) if about_file else f"{path}: {error}"
            records.append(record)
            yield record
    finally:
        write_json(out / "predictions.json", records)


def _predict_file(model, path, out, name, settings, overlay):
    """One photo's results; a function of its own, so that its arrays go before the next photo."""
    start = time.perf_counter()
    result = model.segment(read_image(path), **settings)
    seconds = time.perf_counter() - start
    height, width = result.image.shape[:2]
    record = {"mask": f"{name}_mask.png"}
    write_image(out / record["mask"], result.mask)
    cover = result.to_dict()
    if overlay:
        record["overlay"] = f"{name}_overlay.jpg"
        picture = result.overlay()
        del result  # a large photo's memory, before its overlay is compressed
        write_image(out / record["overlay"], picture)
    return record | {
        "height": height,
        "width": width,
        "cloud_cover": cover,
        **settings,
        "seconds": round(seconds, 4),
    }
