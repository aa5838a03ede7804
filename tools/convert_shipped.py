"""Converts the trained models into the int8 files that ship, in `tflite/models`.

    python tools/convert_shipped.py SWINYSEG WSISEG [--only ddunet_c4_96 ...] [--out DIR]
    python tools/convert_shipped.py SWINYSEG WSISEG --only ddunet_c4_96 --check

SWINYSEG and WSISEG are the folders of the data sets that the models were trained on (the model
card says which images of them); synthetic skies are drawn here, for cameras and nights that those
do not have. `--check` writes nothing and says whether each file that ships is
what today's code makes, byte for byte. On another kind of CPU the last bits of float sums may
differ, and with them single weights.

The file of the default preset is copied to the package by hand, with its SHA-256 in `presets.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ddunet_keras import Split, load_model, make_split, open_dataset, write_synthetic
from ddunet_keras.deploy.calibrate import Photos, labelled_photos
from ddunet_keras.deploy.config import ConversionConfig
from ddunet_keras.deploy.convert import build_stages, convert
from ddunet_keras.presets import WEIGHTS

MODELS = Path(__file__).parents[1] / "tflite" / "models"

FEW_PHOTOS = 48
"""Test photos on which the files of `paper`, and the large ones, are verified, as reference kernels
take a second for each. The others are verified on all of `date`."""

LARGE = 256
"""Side of a large file, pixels."""


@dataclass(frozen=True)
class Shipped:
    """A file that ships.

    Attributes:
        model: name of a folder in `ddunet_keras/weights`.
        side: of the square input, pixels.
        target: of the conversion: from 256 px on they are for LiteRT with XNNPACK.
    """

    model: str
    side: int
    target: str

    @property
    def name(self) -> str:
        return f"{self.model}_{self.side}"

    @property
    def protocol(self) -> str:
        return "paper" if self.model.endswith("_paper") else "date"


SHIPPED = (
    Shipped("ddunet_c4", 96, "tflm"),
    Shipped("ddunet_c4", 128, "tflm"),
    Shipped("ddunet_c4", 256, "cpu"),
    Shipped("ddunet_c4", 304, "cpu"),
    Shipped("ddunet_c8", 96, "tflm"),
    Shipped("ddunet_c8", 128, "tflm"),
    Shipped("ddunet_c8", 256, "cpu"),
    Shipped("ddunet_c8", 304, "cpu"),
    Shipped("ddunet_c4_paper", 96, "tflm"),
    Shipped("ddunet_c8_paper", 304, "cpu"),
)


SKIES = 200
SKIES_SEED = 100
"""Number of synthetic skies, and their seed, which is none of those that were trained on."""


def photos_for(shipped: Shipped, swinyseg: Path, wsiseg: Path, skies: Path) -> Photos:
    """The photos that calibrate a file, and those that it is verified on."""
    dataset = open_dataset(swinyseg)
    split = make_split(dataset, shipped.protocol)
    size = (shipped.side, shipped.side)
    if shipped.protocol == "paper":
        return labelled_photos(dataset, split, size, verify=FEW_PHOTOS)
    halves = Split.load(WEIGHTS / "wsiseg_halves.json")
    verify = FEW_PHOTOS if shipped.side >= LARGE else 0
    synthetic = open_dataset(skies)
    also = [(open_dataset(wsiseg), halves), (synthetic, make_split(synthetic, "date"))]
    return labelled_photos(dataset, split, size, verify=verify, also=also)


def main() -> int:
    names = [shipped.name for shipped in SHIPPED]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("swinyseg", type=Path)
    parser.add_argument("wsiseg", type=Path)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--check", action="store_true", help="write nothing, compare the bytes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return convert_all(options, draw_skies(Path(folder) / "skies"))


def draw_skies(folder: Path) -> Path:
    """Writes the synthetic skies that files are calibrated with."""
    return write_synthetic(folder, SKIES, seed=SKIES_SEED)


def convert_all(options: argparse.Namespace, skies: Path) -> int:
    """Converts or checks the files that were asked for; returns the exit status."""
    different = 0
    for shipped in SHIPPED:
        if shipped.name not in options.only:
            continue
        model = load_model(WEIGHTS / shipped.model / f"{shipped.model}.keras")
        config = ConversionConfig((shipped.side, shipped.side), target=shipped.target)
        photos = photos_for(shipped, options.swinyseg, options.wsiseg, skies)
        if options.check:
            made = build_stages(model, photos.calibration, config).packed
            same = made == (MODELS / f"{shipped.name}.tflite").read_bytes()
            different += not same
            print(f"{shipped.name}: {'the same bytes' if same else 'DIFFERENT'}", flush=True)
        else:
            out = options.out / f"{shipped.name}.tflite"
            about = {"model_file": f"{shipped.model}.keras"}
            result = convert(model, photos, out, config, progress=print, about=about)
            print(f"{shipped.name}: {result['bytes']:,} bytes", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
