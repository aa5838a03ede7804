"""Clouds in a photo with a `.tflite` file of ddunet_keras: mask and cloud cover, in one script.

    pip install ai-edge-litert numpy pillow
    python segment.py ddunet.tflite sky.jpg mask.png

On a Coral board or with a USB accelerator, give a file that the Edge TPU's compiler wrote: the
library libedgetpu is then loaded. `tflite_runtime` works in place of `ai_edge_litert`.
"""

import argparse
import sys

import numpy as np
from PIL import Image, ImageOps

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate
except ImportError:
    from tflite_runtime.interpreter import Interpreter, load_delegate

EDGE_TPU_LIBRARIES = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}
EDGE_TPU_LIBRARY = "libedgetpu.so.1"  # on Linux
EDGE_TPU_MARK = b"edgetpu-custom-op"  # operator in every file that the Edge TPU's compiler wrote


def load(path):
    """An interpreter, on the Edge TPU if the file was compiled for it."""
    with open(path, "rb") as file:
        content = file.read()
    delegates = []
    if EDGE_TPU_MARK in content:
        library = EDGE_TPU_LIBRARIES.get(sys.platform, EDGE_TPU_LIBRARY)
        try:
            delegates = [load_delegate(library)]
        except (OSError, ValueError) as error:
            raise SystemExit(f"{path} needs a Coral Edge TPU and its runtime: {error}") from None
    interpreter = Interpreter(model_content=content, experimental_delegates=delegates)
    interpreter.allocate_tensors()
    return interpreter


def run(interpreter, photo):
    """Runs the network on a Pillow picture; returns float32 (height, width, channels)."""
    (source,) = interpreter.get_input_details()
    (result,) = interpreter.get_output_details()
    _, height, width, _ = source["shape"]
    small = photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.int16)[None]
    if source["dtype"] != np.uint8:
        pixels = pixels - 128
    interpreter.set_tensor(source["index"], pixels.astype(source["dtype"]))
    interpreter.invoke()
    values = interpreter.get_tensor(result["index"])[0].astype(np.float32)
    scale, zero_point = result["quantization"]
    if scale:  # 0 in a float file
        values = (values - zero_point) * scale
    return values


def segment(interpreter, photo, threshold=0.5):
    """Finds the clouds in a Pillow picture.

    Returns:
        (h, w) at the photo's size. With two classes boolean, True where cloud is. With more uint8,
        the most probable class: 0 is sky, all others are cloud.
    """
    probabilities = run(interpreter, photo)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise SystemExit(
            "the file's output is no probability: convert it with --output probability"
        )
    channels = [
        np.asarray(Image.fromarray(channel).resize(photo.size, Image.Resampling.BILINEAR))
        for channel in np.moveaxis(probabilities, -1, 0).copy()
    ]
    if len(channels) == 1:
        return channels[0] >= threshold
    return np.argmax(channels, axis=0).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description="Clouds in a photo: mask and cloud cover.")
    parser.add_argument("model", help=".tflite file")
    parser.add_argument("photo")
    parser.add_argument("mask", nargs="?", help="PNG to write: 0 sky, 255 cloud, or the classes")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability from which a pixel is cloud"
    )
    arguments = parser.parse_args()
    photo = ImageOps.exif_transpose(Image.open(arguments.photo))
    clouds = segment(load(arguments.model), photo, arguments.threshold)
    print(f"{arguments.photo}: {100 * np.mean(clouds > 0):.1f} % cloud")
    if arguments.mask:
        if clouds.dtype == bool:
            clouds = clouds * np.uint8(255)
        Image.fromarray(clouds).save(arguments.mask)


if __name__ == "__main__":
    main()
