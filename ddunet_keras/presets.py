"""The trained models that come with the package. No Keras is imported here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddunet_keras.files import DataError

WEIGHTS = Path(__file__).parent / "weights"
"""A folder a model: NAME/NAME.keras, run.json, split.json, curves.png; README.md is their card."""

PRESETS: dict[str, dict[str, str]] = {
    "ddunet_c8": {
        "description": "full, 8 channels, 0.33 M parameters: day, night and whole-sky photos",
        "weights": "ddunet_c8/ddunet_c8.keras",
        "sha256": "12a5b34fa6eadc6933ca1544424ed37827175092b13180107eb84d4445974a20",
        "tflite": "ddunet_c8/ddunet_c8_256.tflite",
        "tflite_sha256": "babfdc26615f991b445fca91bdebe87f42011928b9131ba77f9bd8f996ce3c6b",
    },
    "ddunet_c4": {
        "description": "full, 4 channels, 0.09 M parameters: the same for small devices",
        "weights": "ddunet_c4/ddunet_c4.keras",
        "sha256": "fd1578a6dc50888c08e2c17ed37f05702bd877a9da73a5a4c595f1f528008c37",
    },
}
"""Name -> what it is, and its files below `WEIGHTS`. They are for non-commercial use: their data,
SWIMSEG, is CC BY-NC 4.0."""

DEFAULT = "ddunet_c8"
"""The preset whose `.tflite` file `ddunet predict` uses where no model is named."""


def preset_file(name: str, kind: str = "weights") -> Path:
    """The file of a preset, checked against its SHA-256.

    Args:
        name: one of `PRESETS`.
        kind: "weights" (a `.keras` file) or "tflite".

    Raises:
        ValueError: there is no such preset, or it has no such file.
        DataError: the file is missing or damaged: the installation is.
    """
    if name not in PRESETS:
        raise ValueError(f"`name` must be one of {tuple(PRESETS)}. Received: name={name!r}")
    preset = PRESETS[name]
    if kind not in preset:
        raise ValueError(f"preset {name!r} has no file of kind {kind!r}")
    path = WEIGHTS / preset[kind]
    wanted = preset["sha256" if kind == "weights" else f"{kind}_sha256"]
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        what = "damaged" if path.is_file() else "missing"
        raise DataError(f"{path}: the preset's file is {what}; install ddunet-keras again")
    return path
