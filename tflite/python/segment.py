"""Clouds in a photo with a `.tflite` file of ddunet_keras: mask and cloud cover, in one script.

    pip install ai-edge-litert numpy pillow
    python segment.py ddunet.tflite sky.jpg mask.png --horizon horizon.png

On a Coral board or with a USB accelerator, give a file that the Edge TPU's compiler wrote: the
library libedgetpu is then loaded. `tflite_runtime` works in place of `ai_edge_litert`.

A frame that is black, saturated or of one colour has no cloud cover: the script says so, writes no
mask and ends with exit status 3. `ddunet predict` also recognizes what shows no sky at all.
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

# what a frame without information is; `ddunet_keras/sky/quality.py` has the same limits
BLACK_LEVEL = 4  # a pixel above it has light
DARK_LEVEL = 16  # a pixel above it is no black surrounding
SATURATED_LEVEL = 250  # a pixel is saturated if all of its channels reach it
FLAT_DEVIATION = 1  # largest difference from the mean in a picture of one colour
FEW = 1 / 1000  # share of the pixels
BRIGHT_PART = 1 / 4  # least share of bright pixels in a frame that may be saturated
SATURATED_PART = 19 / 20  # share of the bright pixels that are saturated in a saturated frame


class CannotTell(Exception):
    """A photo says nothing of the sky."""


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


def shrink(interpreter, photo, valid):
    """A Pillow picture and its valid pixels at the network's size: uint8 (h, w, 3), bool (h, w).

    What is not valid is black: the network was trained to see it so.
    """
    (source,) = interpreter.get_input_details()
    _, height, width, _ = source["shape"]
    black = Image.new("RGB", photo.size)
    photo = Image.composite(photo.convert("RGB"), black, Image.fromarray(valid))
    narrow = photo.resize((width, photo.height), Image.Resampling.BILINEAR)  # columns first
    small = narrow.resize((width, height), Image.Resampling.BILINEAR)
    small_valid = Image.fromarray(valid).resize((width, height), Image.Resampling.NEAREST)
    return np.array(small), np.asarray(small_valid)


def why_unusable(pixels, valid):
    """Why a picture says nothing of the sky: a word, or None if it may say something.

    Args:
        pixels: uint8 (h, w, 3).
        valid: boolean (h, w), True where the picture shows sky.
    """
    colours = pixels[valid]
    if len(colours) == 0 or np.mean(colours.max(axis=1) > BLACK_LEVEL) < FEW:
        return "black"
    bright = np.mean(colours.max(axis=1) > DARK_LEVEL)
    saturated = np.mean(colours.min(axis=1) >= SATURATED_LEVEL)
    if bright >= BRIGHT_PART and saturated >= SATURATED_PART * bright:
        return "saturated"
    mean = np.floor(colours.mean(axis=0) + 0.5)
    if np.mean(abs(colours - mean).max(axis=1) > FLAT_DEVIATION) < FEW:
        return "flat colour"
    return None


def run(interpreter, pixels):
    """Runs the network on uint8 (h, w, 3) of its size; returns float32 (h, w, channels)."""
    (source,) = interpreter.get_input_details()
    (result,) = interpreter.get_output_details()
    pixels = pixels.astype(np.int16)[None]
    if source["dtype"] != np.uint8:
        pixels = pixels - 128
    interpreter.set_tensor(source["index"], pixels.astype(source["dtype"]))
    interpreter.invoke()
    values = interpreter.get_tensor(result["index"])[0].astype(np.float32)
    scale, zero_point = result["quantization"]
    if scale:  # 0 in a float file
        values = (values - zero_point) * scale
    return values


def segment(interpreter, photo, threshold=0.5, valid=None):
    """Finds the clouds in a Pillow picture.

    Args:
        valid: boolean (h, w), True where the photo shows sky; everywhere by default.

    Returns:
        (h, w) at the photo's size. With two classes boolean, True where cloud is. With more uint8,
        the most probable class: 0 is sky, all others are cloud. Outside `valid` it is no result.

    Raises:
        CannotTell: the photo is black, saturated or of one colour.
    """
    if valid is None:
        valid = np.ones(photo.size[::-1], bool)
    pixels, small_valid = shrink(interpreter, photo, valid)
    reason = why_unusable(pixels, small_valid)
    if reason is not None:
        raise CannotTell(reason)
    probabilities = run(interpreter, pixels)
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
    parser.add_argument("mask", nargs="?", help="PNG to write: 0 sky, 255 cloud, 128 not valid")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability from which a pixel is cloud"
    )
    parser.add_argument("--horizon", help="picture of the photo's size, white where it shows sky")
    arguments = parser.parse_args()
    photo = ImageOps.exif_transpose(Image.open(arguments.photo))
    if photo.mode[0] in "IF":  # Pillow would cut it off at 255
        raise SystemExit(f"{arguments.photo}: more than 8 bits; `ddunet predict` takes it")
    valid = np.asarray(photo.convert("RGBA").getchannel("A")) >= 128
    if arguments.horizon:
        horizon = np.asarray(Image.open(arguments.horizon).convert("L")) >= 128
        if horizon.shape != valid.shape:
            raise SystemExit(f"{arguments.horizon}: must have the photo's size, {photo.size}")
        valid &= horizon
    try:
        clouds = segment(load(arguments.model), photo, arguments.threshold, valid)
    except CannotTell as reason:
        print(f"{arguments.photo}: cannot tell: {reason}")
        return 3
    print(f"{arguments.photo}: {100 * np.mean(clouds[valid] > 0):.1f} % cloud")
    if arguments.mask:
        if clouds.dtype == bool:
            clouds = clouds * np.uint8(255)
        clouds[~valid] = 128
        Image.fromarray(clouds).save(arguments.mask)
    return 0


if __name__ == "__main__":
    sys.exit(main())
