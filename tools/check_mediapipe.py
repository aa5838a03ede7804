"""Whether MediaPipe's ImageSegmenter and `Segmenter` give the same masks with an Android file.

MediaPipe is no dependency of this project. Give it an environment of its own:

    python -m venv mediapipe-env
    mediapipe-env/bin/pip install mediapipe .
    mediapipe-env/bin/python tools/check_mediapipe.py FILE.tflite PHOTO...

FILE comes from `ddunet convert --target android`. It prints a row for each photo, once at the
network's size and once as it is: the largest difference of a probability, and the share of pixels
at which the masks from the confidences, and the category mask, agree with ours. At the network's
size they are equal. A photo as it is differs, since MediaPipe shrinks it without averaging.
"""

from __future__ import annotations

import argparse

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from ddunet_keras import Segmenter, read_image
from ddunet_keras.images import resize_image


def compare(ours: Segmenter, theirs: vision.ImageSegmenter, image: np.ndarray) -> list[str]:
    """Cells of a row: largest difference, agreement of the masks, of the category mask."""
    frame = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(image))
    result = theirs.segment(frame)
    height_width = image.shape[:2]
    confidences = [mask.numpy_view().reshape(height_width) for mask in result.confidence_masks]
    category = result.category_mask.numpy_view().reshape(height_width)
    found = ours.segment(image)
    if found.num_classes == 2:
        difference = confidences[0] - found.probabilities
        labels = confidences[0] >= 0.5
        category = category == 0  # MediaPipe's category mask has 0 for cloud
    else:
        difference = np.stack(confidences, axis=-1) - found.probabilities
        labels = np.argmax(confidences, axis=0)
    agreements = [100 * np.mean(found.labels == mask) for mask in (labels, category)]
    return [f"{np.abs(difference).max():.4f}", *(f"{value:.2f}" for value in agreements)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help=".tflite with metadata")
    parser.add_argument("photos", nargs="+")
    arguments = parser.parse_args()
    ours = Segmenter(arguments.file)
    options = vision.ImageSegmenterOptions(
        base_options=BaseOptions(model_asset_path=arguments.file),
        output_confidence_masks=True,
        output_category_mask=True,
    )
    print("| photo | size | largest difference of probability | masks agree, % | category, % |")
    print("|---|---|---|---|---|")
    with vision.ImageSegmenter.create_from_options(options) as theirs:
        for path in arguments.photos:
            photo = read_image(path)
            for image in (resize_image(photo, ours.image_shape[:2]), photo):
                size = "x".join(map(str, image.shape[:2]))
                cells = [path, size, *compare(ours, theirs, image)]
                print(f"| {' | '.join(cells)} |", flush=True)
        print("labels:", ", ".join(theirs.labels))


if __name__ == "__main__":
    main()
