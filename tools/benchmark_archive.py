"""Throughput of `ddunet predict --table`, against what decoding and the network alone allow.

    python tools/benchmark_archive.py [PHOTOS] [--workers 2]

Rows, each in as many threads as there are workers, with a LiteRT interpreter for each:

- network: the shipped int8 file on decoded photos in memory, made smaller for it.
- decode + network: the same, the photos read from their files. This is the bound.
- decode + segment: with the quality of the frame, confidence and mask at the photo's size.
- archive: `measure_archive` and its table.
- archive, processes: the same on a Dask cluster of as many processes.

The rows are measured in turns, several rounds, and the best round of each counts: other programs
only ever make it slower. The last column is the share of the bound.

What it printed is in docs/camera.md, under "Archives".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ddunet_keras import Segmenter, read_photo, synthetic_sky
from ddunet_keras.camera.archive import archive_settings, measure_archive
from ddunet_keras.camera.table import Table
from ddunet_keras.cli.archive import LOCAL, dask_client
from ddunet_keras.files import write_image
from ddunet_keras.prediction import PredictOptions, find_photos

SIZE = (960, 1280)
SKIES = 8
"""Photos that are made where none are given: about a megapixel each."""

BOUND = "decode + network"


def measure(photos, workers, rounds, repeats, with_dask):
    """name -> frames a second, of the best round.

    Args:
        photos: name -> path; each is worked on `repeats` times a round.
    """
    photos = {f"{name}-{k}": path for k in range(repeats) for name, path in photos.items()}
    paths = list(photos.values())
    images = {path: read_photo(path).image for path in set(paths)}
    segmenters = [Segmenter(threads=1) for _ in range(workers)]

    def in_threads(work):
        def part(worker):
            for path in paths[worker::workers]:
                work(segmenters[worker], path)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(part, range(workers)))

    def archive(client=None):
        with (
            tempfile.TemporaryDirectory() as folder,
            Table(Path(folder, "table.csv"), archive_settings(PredictOptions())) as table,
        ):
            for record in measure_archive(photos, workers=workers, client=client):
                table.write(record)

    with dask_client(LOCAL if with_dask else None, workers) as client:
        rows = {
            "network": lambda: in_threads(lambda s, p: s.predict_probabilities(images[p])),
            BOUND: lambda: in_threads(lambda s, p: s.predict_probabilities(read_photo(p).image)),
            "decode + segment": lambda: in_threads(
                lambda s, p: s.segment(read_photo(p).image).cloud_cover
            ),
            "archive": archive,
        }
        if with_dask:
            rows["archive, processes"] = lambda: archive(client)
        rates = dict.fromkeys(rows, 0.0)
        for _ in range(rounds):
            for name, work in rows.items():
                start = time.perf_counter()
                work()
                rates[name] = max(rates[name], len(paths) / (time.perf_counter() - start))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="?", type=Path, help="folder (default: synthetic skies)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-dask", dest="dask", action="store_false")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.photos is None:
            for seed in range(SKIES):
                image, _ = synthetic_sky(seed, SIZE, view="fisheye")
                write_image(Path(folder, f"{seed}.jpg"), image)
        photos = find_photos([arguments.photos or folder])
        rates = measure(
            photos, arguments.workers, arguments.rounds, arguments.repeats, arguments.dask
        )
    print("| what | frames a second | of the bound |")
    print("|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {100 * rate / rates[BOUND]:.0f} % |")


if __name__ == "__main__":
    main()
