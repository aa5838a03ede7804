"""Throughput of `ddunet predict --table`, against what decoding and the network alone allow.

    python tools/benchmark_archive.py [PHOTOS] [--workers 2]

Rows, each in as many threads as there are workers, with a LiteRT interpreter for each:

- network: the shipped int8 file on decoded photos in memory, made smaller for it.
- decode + network: the same, the photos read from their files. This is the bound.
- decode + segment: with the quality of the frame, confidence and mask at the photo's size.
- archive: `measure_archive` and its table.
- archive, processes: the same on a Dask cluster of as many processes.

The rows are measured in turns, several rounds, and the best round of each counts: other programs
only ever make it slower. The processor's time of a frame (of this process, so not of Dask's) is
beside it, as it suffers less from other programs. The last column is the share of the bound.

What it printed is in docs/archives.md, under "How fast".
"""

from __future__ import annotations

import argparse
import itertools
import math
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
    """name -> (frames a second, processor's milliseconds a frame), of the best round.

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
            records = measure_archive(photos, workers=workers, client=client)
            for record in itertools.islice(records, workers):
                table.write(record)
            yield len(paths) - workers  # the interpreters are there, and as many frames begun
            for record in records:
                table.write(record)

    def at_once(work):
        yield len(paths)  # there is nothing to prepare
        in_threads(work)

    def predict(segmenter, path):
        segmenter.predict_probabilities(read_photo(path).image)

    def segment(segmenter, path):
        segmenter.segment(read_photo(path).image).to_dict()

    with dask_client(LOCAL if with_dask else None, workers) as client:
        rows = {
            "network": lambda: at_once(lambda s, path: s.predict_probabilities(images[path])),
            BOUND: lambda: at_once(predict),
            "decode + segment": lambda: at_once(segment),
            "archive": archive,
        }
        if with_dask:
            rows["archive, processes"] = lambda: archive(client)
        seconds = dict.fromkeys(rows, math.inf)
        busy = dict.fromkeys(rows, math.inf)
        counts = {}
        for _ in range(rounds):
            for name, row in rows.items():
                work = row()
                counts[name] = next(work)
                start = time.perf_counter()
                busy_start = time.process_time()
                next(work, None)
                busy[name] = min(busy[name], time.process_time() - busy_start)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {
        name: (count / seconds[name], 1000 * busy[name] / count) for name, count in counts.items()
    }


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
    print("| what | frames a second | processor, ms a frame | of the bound |")
    print("|---|---|---|---|")
    for name, (rate, busy) in rates.items():
        print(f"| {name} | {rate:.1f} | {busy:.1f} | {100 * rate / rates[BOUND][0]:.0f} % |")


if __name__ == "__main__":
    main()
