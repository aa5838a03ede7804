"""Whether MediaPipe's ImageSegmenter and `Segmenter` agree on a file of `--target android`.

MediaPipe is no dependency; give it an environment of its own:

    python -m venv /tmp/mediapipe && /tmp/mediapipe/bin/pip install mediapipe ai-edge-litert
    PYTHONPATH=. /tmp/mediapipe/bin/python tools/check_mediapipe.py FILE.tflite PHOTO...
"""

import argparse

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from ddunet_keras.files import read_image
from ddunet_keras.images import resize_image
from ddunet_keras.segmenter import Segmenter


def main():
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
                result = theirs.segment(mp.Image(mp.ImageFormat.SRGB, np.ascontiguousarray(image)))
                masks = [
                    mask.numpy_view().reshape(image.shape[:2]) for mask in result.confidence_masks
                ]
                category = result.category_mask.numpy_view().reshape(image.shape[:2])
                found = ours.segment(image)
                if found.num_classes == 2:
                    difference, labels = masks[0] - found.probabilities, masks[0] >= 0.5
                    category = category == 0
                else:
                    difference = np.stack(masks, -1) - found.probabilities
                    labels = np.argmax(masks, axis=0)
                agree = [100 * np.mean(found.labels == mask) for mask in (labels, category)]
                size = "x".join(map(str, image.shape[:2]))
                row = path, size, f"{abs(difference).max():.4f}", *(f"{a:.2f}" for a in agree)
                print(f"| {' | '.join(row)} |", flush=True)
        print("labels:", ", ".join(theirs.labels))


if __name__ == "__main__":
    main()
