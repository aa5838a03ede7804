# A sky camera on an OpenMV: cloud cover on the terminal, the mask drawn on the frame.
#
# Copy ddunet_c4_96.tflite (or another file of target tflm) to the camera's drive, open this script
# in OpenMV IDE and run it. It needs firmware with the modules csi and ml. See docs/boards.md.

import time

import csi
import image
import ml

MODEL = "ddunet_c4_96.tflite"
SECONDS = 10  # between two frames
MASK_ALPHA = 96  # how much of the mask is seen on the frame, 0 to 255

# Limits on pixel values, 0 to 255, and on shares; the same as in tflite/micro/sky.c
BLACK_LEVEL = 4  # a pixel above it has light
DARK_LEVEL = 16  # a pixel above it is no black surrounding
SATURATED_LEVEL = 250  # a pixel is saturated if all of its channels reach it
FLAT_DEVIATION = 1  # largest difference from the mean in a picture of one colour
FEW = 1 / 1000  # "few" is a smaller share of the pixels
BRIGHT_PART = 1 / 4  # least share of bright pixels in a saturated frame
NOT_SATURATED = 1 / 20  # largest share of the bright pixels that are not saturated in it


def pixels_of(small):
    """The (red, green, blue) of an image, one after another."""
    for y in range(small.height()):
        for x in range(small.width()):
            yield small.get_pixel(x, y)


def find_flaw(small):
    """Why a frame says nothing of the sky: a word, or None."""
    count = small.width() * small.height()
    lit = bright = saturated = 0
    sums = [0, 0, 0]
    for pixel in pixels_of(small):
        lit += max(pixel) > BLACK_LEVEL
        bright += max(pixel) > DARK_LEVEL
        saturated += min(pixel) >= SATURATED_LEVEL
        for channel in range(3):
            sums[channel] += pixel[channel]
    if lit < FEW * count:
        return "black"
    if bright >= BRIGHT_PART * count and bright - saturated <= NOT_SATURATED * bright:
        return "saturated"
    mean = [(2 * total + count) // (2 * count) for total in sums]
    differ = 0
    for pixel in pixels_of(small):
        differ += max(abs(pixel[c] - mean[c]) for c in range(3)) > FLAT_DEVIATION
    if differ < FEW * count:
        return "flat colour"
    return None


def okta_of(cloudy, count):
    """Cloud cover in eighths: 0 only without any cloud, 8 only without any gap."""
    okta = (16 * cloudy + count) // (2 * count)
    if cloudy > 0:
        okta = max(okta, 1)
    if cloudy < count:
        okta = min(okta, 7)
    return okta


def look(frame, model, small, mask):
    """Draws a frame's mask on it and tells its cloud cover."""
    # averages, where ml's own shrinking would skip pixels and cut the sides off
    small.draw_image(frame, 0, 0, hint=image.AREA | image.SCALE_ASPECT_IGNORE)
    flaw = find_flaw(small)
    if flaw is not None:
        print("cannot tell:", flaw)
        return
    probabilities = model.predict([small])[0].flatten()
    shades = mask.bytearray()
    cloudy = 0
    for i, probability in enumerate(probabilities):
        is_cloud = probability >= 0.5
        shades[i] = 255 if is_cloud else 0
        cloudy += is_cloud
    frame.draw_image(mask, 0, 0, alpha=MASK_ALPHA, hint=image.SCALE_ASPECT_IGNORE)
    count = len(shades)
    permille = (2000 * cloudy + count) // (2 * count)
    okta = okta_of(cloudy, count)
    print(f"cloud cover {permille // 10}.{permille % 10} %, {okta} okta")


def main():
    model = ml.Model(MODEL)
    _, height, width, _ = model.input_shape[0]
    if model.input_dtype[0] != "b" or tuple(model.output_shape[0]) != (1, height, width, 1):
        raise ValueError(MODEL + ": not a file of two classes with int8 input")
    small = image.Image(width, height, image.RGB565)
    mask = image.Image(width, height, image.GRAYSCALE)

    camera = csi.CSI()
    camera.reset()
    camera.pixformat(csi.RGB565)
    camera.framesize(csi.QVGA)
    camera.snapshot(time=2000)  # until exposure and white balance are right
    while True:
        look(camera.snapshot(), model, small, mask)
        camera.flush()  # shows the frame in the IDE
        time.sleep(SECONDS)


main()
