"""What `ddunet adapt` brings: adapts on one half of a camera's frames, scores the other.

    python tools/measure_adaptation.py FRAMES OTHERS --minutes 10
    python tools/measure_adaptation.py FRAMES OTHERS --minutes 10 --covers

FRAMES and OTHERS are folders that `open_dataset` reads. The halves are every second frame in the
order of the names, and both are tried. OTHERS, of another camera, shows what was forgotten. With
--covers, adapt is told no masks but the covers that they give: clear, overcast, or a number.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from ddunet_keras import adapt, evaluate, load_model, open_dataset
from ddunet_keras.adaptation import MODEL_FILE
from ddunet_keras.cli.options import model_file
from ddunet_keras.evaluation import markdown_table
from ddunet_keras.files import IGNORE, write_text

NEARLY = 0.02
"""Cover up to which a frame is called clear, and from 1 minus which overcast."""


def write_half(root, dataset, names, covers):
    """A folder that `ddunet adapt` reads, with these frames alone."""
    lines = ["name,sky"]
    for name in names:
        sample = dataset.find(name)
        for path, folder in ((sample.image, "images"), (sample.mask, "masks")):
            if folder == "images" or not covers:
                (root / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / folder)
        _, labels = dataset.load(sample)
        lines.append(f"{name},{word(labels[labels != IGNORE].mean())}")
    if covers:
        write_text(root / "frames.csv", "\n".join(lines) + "\n")


def word(cover):
    """What a person would say of a cover: tens of percent, or a word."""
    if cover <= NEARLY:
        return "clear"
    if cover >= 1 - NEARLY:
        return "overcast"
    return f"{10 * round(10 * cover)}"


def score(path, dataset, names, size):
    """Accuracy, MIoU (percent) and cover error (points)."""
    model = load_model(path).resized((*size, 3))
    overall = evaluate(model.predict_probabilities, dataset, names).overall
    means = overall["image_mean"]
    cover_error = overall["cloud_cover"]["mean_absolute_error"]
    return 100 * means["accuracy"], 100 * means["miou"], cover_error


def measure(options):
    """Rows of a table: what was scored, and the scores before and after."""
    camera = open_dataset(options.frames)
    others = open_dataset(options.others)
    names = [sample.name for sample in camera]
    rows = []
    for first in (0, 1):
        own = names[first::2]
        rest = names[1 - first :: 2]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_half(root / "frames", camera, own, options.covers)
            run = adapt(
                options.model,
                root / "frames",
                root / "run",
                held_back=0,
                minutes=options.minutes,
                progress=print,
            )
            scored = (
                (f"other half of {camera.root.name}, {len(rest)} frames", camera, rest),
                (f"{others.root.name}", others, [sample.name for sample in others]),
            )
            for title, dataset, chosen in scored:
                for when, path in (("before", options.model), ("after", root / "run" / MODEL_FILE)):
                    scores = score(path, dataset, chosen, (options.size, options.size))
                    figures = [f"{value:.1f}" for value in scores]
                    rows.append([f"{title}, {when}", run["steps"], *figures])
            print("\n".join(table(rows)), flush=True)
    return rows


def table(rows):
    return markdown_table(("scored on", "steps", "accuracy", "MIoU", "cover error"), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, help="frames of a camera, with masks")
    parser.add_argument("others", type=Path, help="photos of another camera, with masks")
    parser.add_argument("--model", type=model_file, default="ddunet_c8", help="to start from")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--size", type=int, default=256, help="side of the network when scored")
    parser.add_argument("--covers", action="store_true", help="words and numbers, no masks")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
