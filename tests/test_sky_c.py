"""`tflite/micro/sky.c`, which runs on microcontrollers, against NumPy, Pillow and `dd.sky`."""

import ctypes
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from c_sources import MICRO, SANITIZE, STRICT, needs_gcc, run
from PIL import Image

from ddunet_keras.data.datasets import open_dataset
from ddunet_keras.data.splits import Split
from ddunet_keras.files import IGNORE
from ddunet_keras.presets import WEIGHTS
from ddunet_keras.segmenter import Segmenter
from ddunet_keras.sky import blacken, cloud_cover
from ddunet_keras.sky.quality import find_flaw

pytestmark = needs_gcc

RGB888, RGB565_BIG_ENDIAN, RGB565_LITTLE_ENDIAN = range(3)
FORMATS = (RGB888, RGB565_BIG_ENDIAN, RGB565_LITTLE_ENDIAN)
DRIVER = Path(__file__).parent / "data" / "sky_frames.c"


# --- a frame becomes the input


@pytest.fixture(scope="module")
def shrink(tmp_path_factory):
    """Runs frames through sky.c, built with sanitizers: `shrink([(format, pixels, size), ...])`."""
    program = tmp_path_factory.mktemp("shrink") / "shrink"
    run("gcc", "-std=c99", *STRICT, *SANITIZE, "-I", MICRO, DRIVER, MICRO / "sky.c", "-o", program)

    def run_all(frames):
        sent = bytearray()
        for kind, frame, (width, height) in frames:
            rows, columns = frame.shape[:2]
            sent += struct.pack("=5I", kind, columns, rows, width, height) + frame.tobytes()
        values = np.frombuffer(run(program, input=bytes(sent)).stdout, np.int8)
        results = []
        for _, _, (width, height) in frames:
            taken, values = np.split(values, [3 * width * height])
            results.append(taken.reshape(height, width, 3).astype(int) + 128)
        assert not values.size
        return results

    return run_all


def packed565(image, kind):
    """uint16 (h, w) of uint8 (h, w, 3), its bytes in the order of the format."""
    red, green, blue = np.moveaxis(image.astype(np.uint16), -1, 0)
    word = red >> 3 << 11 | green >> 2 << 5 | blue >> 3
    return word.astype(">u2" if kind == RGB565_BIG_ENDIAN else "<u2")


def spread565(image):
    """uint8 (h, w, 3) with the 5, 6 and 5 upper bits spread over 0 to 255."""
    levels = np.array([31, 63, 31])
    upper = image >> np.array([3, 2, 3])
    return np.floor(upper * 255 / levels + 0.5).astype(np.uint8)


def member(boxes, pixels):
    """Boolean (boxes, pixels): which pixel's middle a box covers; or of which a box's middle is."""
    box = np.arange(boxes)[:, None]
    pixel = np.arange(pixels)
    if pixels < boxes:
        return pixel == (2 * box + 1) * pixels // (2 * boxes)
    middle = (2 * pixel + 1) * boxes  # and the box from 2 box pixels to 2 (box + 1) pixels
    return (2 * box * pixels < middle) & (middle <= 2 * (box + 1) * pixels)


def box_means(image, size):
    """Means over boxes in exact arithmetic, rounded half up."""
    rows = member(size[1], image.shape[0]).astype(float)
    columns = member(size[0], image.shape[1]).astype(float)
    sums = np.stack([rows @ channel @ columns.T for channel in np.moveaxis(image, -1, 0)], -1)
    count = (rows.sum(axis=1)[:, None] * columns.sum(axis=1))[..., None]
    return ((2 * sums + count) // (2 * count)).astype(int)  # integers below 2^53 are exact


def pillow_means(image, size):
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)).astype(int)


def is_tie(boxes, pixels):
    """Whether an edge lies on a pixel's middle, and so at the mercy of Pillow's rounding."""
    box = np.arange(boxes)
    if pixels < boxes:
        edges = (2 * box + 1) * pixels % (2 * boxes) == 0
    else:
        edges = 2 * box * pixels % (2 * boxes) == boxes
    has_exact_scale = pixels * 1024 % boxes == 0
    return edges.any() and not has_exact_scale


def random_frame(rng, largest):
    """A format, its pixels, the input's size, and the photo that they show."""
    columns, rows, width, height = (int(side) for side in rng.integers(1, largest + 1, 4))
    image = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    kind = int(rng.integers(len(FORMATS)))
    if kind == RGB888:
        return kind, image, (width, height), image
    return kind, packed565(image, kind), (width, height), spread565(image)


def check_means(shrink, frames):
    """All equal the exact means, and Pillow's within one step; returns how many Pillow decides."""
    found = shrink([frame[:3] for frame in frames])
    decided = 0
    for (kind, _, size, image), values in zip(frames, found, strict=True):
        near = 0 if kind == RGB888 else 1  # 5 and 6 bits are spread by shifts
        assert abs(values - box_means(image, size)).max() <= near
        if not is_tie(size[0], image.shape[1]) and not is_tie(size[1], image.shape[0]):
            decided += 1
            assert abs(values - pillow_means(image, size)).max() <= 1 + near
    return decided


def test_a_thousand_frames_of_any_size_shrink_as_pillow_shrinks_them(shrink):
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, largest=32) for _ in range(2000)]
    assert check_means(shrink, frames) > 1000


@pytest.mark.slow
def test_large_frames_shrink_as_pillow_shrinks_them(shrink):
    rng = np.random.default_rng(1)
    assert check_means(shrink, [random_frame(rng, largest=500) for _ in range(40)]) > 10


CAMERAS = [(320, 240), (160, 120), (300, 300), (640, 480)]


@pytest.mark.parametrize("side", [96, 128, 304])
@pytest.mark.parametrize("camera", CAMERAS)
def test_frames_of_cameras_shrink_as_pillow_shrinks_them(shrink, camera, side):
    image = np.random.default_rng(side).integers(0, 256, (*camera[::-1], 3), np.uint8)
    has_tie = camera == (160, 120) and side == 304
    assert check_means(shrink, [(RGB888, image, (side, side), image)]) == (not has_tie)


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_integer_factors_are_pillows_reduce_within_one_step(shrink, factor):
    image = np.random.default_rng(factor).integers(0, 256, (12 * factor, 9 * factor, 3), np.uint8)
    (values,) = shrink([(RGB888, image, (9, 12))])
    reduced = np.asarray(Image.fromarray(image).reduce(factor)).astype(int)
    assert abs(values - reduced).max() <= 1


# --- the library, called from Python


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    library = tmp_path_factory.mktemp("sky") / "sky.so"
    source = MICRO / "sky.c"
    run("gcc", "-std=c99", *STRICT, "-O2", "-shared", "-fPIC", source, "-o", library)
    return ctypes.CDLL(str(library))


class Input(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p)]
    _fields_ += [("width", ctypes.c_uint32), ("height", ctypes.c_uint32)]
    _fields_ += [("sums", ctypes.c_void_p), ("format", ctypes.c_int)]
    _fields_ += [(name, ctypes.c_uint32) for name in ("frame_width", "frame_height")]
    _fields_ += [(name, ctypes.c_uint32) for name in ("frame_row", "row")]


class Cover(ctypes.Structure):
    _fields_ = [("valid", ctypes.c_uint32), ("cloudy", ctypes.c_uint32)]
    _fields_ += [("permille", ctypes.c_int32), ("okta", ctypes.c_int32)]


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)  # which keeps the array


def size(*values):
    return [ctypes.c_size_t(value) for value in values]


def packed(valid):
    """A horizon as sky.c takes it."""
    return pointer(np.packbits(valid))


def sky_input(values):
    """Where a frame becomes the input `values`, int8 (h, w, 3)."""
    height, width = values.shape[:2]
    sums = np.empty(3 * max(width, 1), np.uint32)
    about = Input(pointer(values).value, width, height, pointer(sums).value)
    about.arrays = values, sums  # lest they are freed
    return about


def test_a_frame_may_lie_in_the_memory_of_the_input(sky):
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expected = frame.astype(int) - 128
    values = frame.view(np.int8)
    about = sky_input(values)
    assert sky.sky_input_frame(ctypes.byref(about), RGB888, 30, 20, pointer(frame)) == 1
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("kind", [RGB565_BIG_ENDIAN, RGB565_LITTLE_ENDIAN])
def test_every_colour_of_rgb565(sky, kind):
    frame = np.arange(65536).reshape(256, 256).astype(">u2" if kind == 1 else "<u2")
    red, green, blue = frame >> 11, frame >> 5 & 63, frame & 31
    spread = [np.floor(red * 255 / 31 + 0.5), np.floor(green * 255 / 63 + 0.5)]
    spread += [np.floor(blue * 255 / 31 + 0.5)]
    values = np.empty((256, 256, 3), np.int8)
    about = sky_input(values)
    assert sky.sky_input_frame(ctypes.byref(about), kind, 256, 256, pointer(frame)) == 1
    pixels = values.astype(int) + 128
    assert abs(pixels - np.stack(spread, -1)).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_the_largest_sums_do_not_overflow(sky):
    """One white box of SKY_MAX_PIXELS."""
    row = np.full(3 * 4096, 255, np.uint8)
    values = np.zeros((1, 1, 3), np.int8)
    about = sky_input(values)
    assert sky.sky_input_begin(ctypes.byref(about), RGB888, 4096, 4096) == 1
    for _ in range(4096):
        sky.sky_input_row(ctypes.byref(about), pointer(row))
    assert values.tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        ((0, 10), (4, 4)),
        ((10, 0), (4, 4)),
        ((32768, 1), (4, 4)),
        ((1, 32768), (4, 4)),
        ((4097, 4096), (4, 4)),
        ((32767, 32767), (4, 4)),
        ((2**32 - 1, 2**32 - 1), (4, 4)),
        ((10, 10), (0, 4)),
    ],
)
def test_a_frame_of_another_size_is_refused(sky, frame, shape):
    values = np.full((*shape, 3), 7, np.int8)
    about = sky_input(values)
    width, height = (ctypes.c_uint32(side) for side in frame)
    assert sky.sky_input_begin(ctypes.byref(about), RGB888, width, height) == 0
    sky.sky_input_row(ctypes.byref(about), None)  # takes no rows
    assert not sky.sky_input_complete(ctypes.byref(about))
    assert (values == 7).all()


def test_rows_are_counted(sky):
    """What comes after the last row is not looked at, and a new frame begins anew."""
    row = np.full(3 * 8, 200, np.uint8)
    values = np.zeros((4, 4, 3), np.int8)
    about = sky_input(values)
    for _ in range(2):
        assert sky.sky_input_begin(ctypes.byref(about), RGB888, 8, 6) == 1
        values[:] = 0
        for _ in range(6):
            assert not sky.sky_input_complete(ctypes.byref(about))
            sky.sky_input_row(ctypes.byref(about), pointer(row))
        assert sky.sky_input_complete(ctypes.byref(about))
        sky.sky_input_row(ctypes.byref(about), None)
        assert (values == 72).all()


# --- what the network sees, and what becomes of its output


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threshold", [-128, -100, 0, 60, 127])
def test_mask_and_cover(sky, channels, threshold, with_valid):
    random = np.random.default_rng(threshold + 200)
    output = random.integers(-128, 128, (24, 32, channels)).astype(np.int8)
    valid = random.random((24, 32)) < 0.7 if with_valid else np.ones((24, 32), bool)
    labels = output.argmax(-1) if channels > 1 else output[..., 0] >= threshold
    counted = cloud_cover(np.where(valid, labels, IGNORE).astype(np.uint8))
    shown = np.where(valid, labels if channels > 1 else labels * 255, 128)
    mask = output.view(np.uint8)  # in its memory
    cover = Cover()
    sky.sky_segment(
        pointer(output),
        *size(24 * 32, channels),
        ctypes.c_int8(threshold),
        packed(valid) if with_valid else None,
        pointer(mask),
        ctypes.byref(cover),
    )
    np.testing.assert_array_equal(mask.ravel()[: 24 * 32].reshape(24, 32), shown)
    assert cover.valid == valid.sum()
    assert cover.cloudy / cover.valid == counted.fraction
    assert cover.permille == math.floor(1000 * counted.fraction + 0.5)
    assert cover.okta == counted.okta


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.3, 0.97, 1])
@pytest.mark.parametrize("colours", [(0, 3), (3, 200), (255, 20), (128, 129), (128, 131)])
def test_frames_without_information(sky, colours, share, with_valid):
    """The same rules as in `ddunet_keras.sky`."""
    random = np.random.default_rng(int(1000 * share))
    pixels = np.full((64, 48, 3), colours[0], np.uint8)
    pixels[random.random((64, 48)) < share] = colours[1]
    pixels[0, 0] = random.integers(0, 256, 3)
    valid = random.random((64, 48)) < 0.7 if with_valid else np.ones((64, 48), bool)
    frame = (pixels.astype(int) - 128).astype(np.int8)
    sky.sky_quality_name.restype = ctypes.c_char_p
    where = packed(valid) if with_valid else None
    found = sky.sky_quality_name(sky.sky_check(pointer(frame), *size(64 * 48), where)).decode()
    assert found == (find_flaw(pixels[valid]) or "usable")


def test_pixels_outside_the_horizon_become_black(sky):
    random = np.random.default_rng(0)
    frame = random.integers(-128, 128, (20, 30, 3)).astype(np.int8)
    valid = random.random((20, 30)) < 0.5
    expected = blacken((frame.astype(int) + 128).astype(np.uint8), valid).astype(int) - 128
    unchanged = frame.copy()
    sky.sky_blacken(pointer(unchanged), *size(600), None)
    np.testing.assert_array_equal(unchanged, frame)
    sky.sky_blacken(pointer(frame), *size(600), packed(valid))
    np.testing.assert_array_equal(frame, expected)


def test_okta_of_every_share(sky):
    for total in (8, 16, 17, 1000):
        mask = np.empty(total, np.uint8)
        for cloudy in range(total + 1):
            output = np.where(np.arange(total) < cloudy, 1, -1).astype(np.int8)
            cover = Cover()
            arguments = ctypes.c_int8(0), None, pointer(mask), ctypes.byref(cover)
            sky.sky_segment(pointer(output), *size(total, 1), *arguments)
            assert cover.okta == cloud_cover(output[None] > 0).okta
    arguments = ctypes.c_int8(0), None, pointer(mask), ctypes.byref(cover)
    sky.sky_segment(pointer(output), *size(0, 1), *arguments)
    assert (cover.okta, cover.permille) == (-1, -1)


@pytest.mark.parametrize("pixels", [0, 1, 7, 8, 9, 16, 600])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_mask_packs_to_one_bit_a_pixel(sky, pixels, in_place):
    mask = np.random.default_rng(pixels).choice(np.array([0, 1, 2, 128, 255], np.uint8), pixels)
    expected = np.packbits((mask > 0) & (mask != 128))
    space = mask if in_place else np.empty(len(expected), np.uint8)
    sky.sky_pack(pointer(mask), *size(pixels), pointer(space))
    np.testing.assert_array_equal(space[: len(expected)], expected)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (4294967295, 4294967295)])
def test_a_mask_is_a_pgm_file(sky, tmp_path, shape):
    height, width = shape
    header = ctypes.create_string_buffer(29)  # SKY_PGM_HEADER
    sky.sky_pgm_header.restype = ctypes.c_size_t
    length = sky.sky_pgm_header(ctypes.c_uint32(width), ctypes.c_uint32(height), header)
    assert header.raw[:length] == f"P5\n{width} {height}\n255\n".encode()
    assert length <= 29
    if width < 10:
        mask = np.random.default_rng(0).choice(np.array([0, 128, 255], np.uint8), shape)
        (tmp_path / "mask.pgm").write_bytes(header.raw[:length] + mask.tobytes())
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.pgm")), mask)


# --- real photos


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["ddunet_c4_96", "ddunet_c8_128"])
@pytest.mark.parametrize("kind", [RGB888, RGB565_BIG_ENDIAN])
def test_photos_score_as_they_do_in_python(shrink, shared, kind, name):
    """The `date` test photos as frames of 320x240: accuracy at most .2 points below, and MIoU,
    which moves twice as far, .4."""
    dataset = open_dataset(shared / "data" / "swinyseg-base")
    split = Split.load(WEIGHTS / name.rpartition("_")[0] / "split.json")
    segmenter = Segmenter(MICRO.parent / "models" / f"{name}.tflite", threads=1)
    height, width, _ = segmenter.image_shape
    frames, seen, clouds = [], [], []
    for sample in map(dataset.find, split.test):
        photo, mask = dataset.load(sample)
        resized = Image.fromarray(photo).resize((320, 240), Image.Resampling.BILINEAR)
        frame = np.asarray(resized)
        sent = frame if kind == RGB888 else packed565(frame, kind)
        frames.append((kind, sent, (width, height)))
        seen.append(frame if kind == RGB888 else spread565(frame))
        clouds.append(mask == 1)
    inputs = [values.astype(np.uint8) for values in shrink(frames)]
    on_board, in_python = (
        100 * np.mean([score(segmenter, *pair) for pair in zip(images, clouds, strict=True)], 0)
        for images in (inputs, seen)
    )
    print(f"{name}, format {kind}: {on_board.round(2)}, in Python {in_python.round(2)}")
    assert len(frames) == 168
    assert (on_board > in_python - [0.2, 0.4]).all()


def score(segmenter, image, cloud):
    """Accuracy and MIoU of one photo at the size of its mask."""
    probabilities = Image.fromarray(segmenter.predict_probabilities(image))
    height, width = cloud.shape
    found = np.asarray(probabilities.resize((width, height), Image.Resampling.BILINEAR)) >= 0.5
    ious = [
        (found & cloud).sum() / max((found | cloud).sum(), 1),
        (~found & ~cloud).sum() / max((~found | ~cloud).sum(), 1),
    ]
    return (found == cloud).mean(), np.mean(ious)
