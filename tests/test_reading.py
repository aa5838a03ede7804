"""What cameras write is read with the right numbers, whatever the format, depth and order."""

import gzip
import io
import json
import os
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image, ImageFilter

import ddunet_keras as dd
from ddunet_keras import cli, files
from ddunet_keras.files import DataError, UnreadableError, write_image
from ddunet_keras.prediction import count_left_out, find_photos, predict_files
from ddunet_keras.sky import horizon_mask
from ddunet_keras.sky.bayer import PATTERNS, debayer, mosaic_contrast, shifted_pattern
from ddunet_keras.sky.reading import ReadOptions, read_image, read_photo
from ddunet_keras.sky.stretch import to_8_bits


@pytest.fixture(scope="module")
def sky():
    """A photo of a partly cloudy sky, (96, 128, 3)."""
    for seed in range(100):
        image, labels = dd.synthetic_sky(seed, (96, 128), time="day", view="patch")
        if 0.4 < labels.mean() < 0.6:
            return image
    raise AssertionError("no such sky")


@pytest.fixture(scope="module")
def gray(sky):
    return np.asarray(Image.fromarray(sky).convert("L"))


@pytest.fixture(scope="module")
def segmenter():
    return dd.Segmenter()


def png16(path, values):
    """Writes 16 bits a channel, gray or RGB, with or without alpha, which Pillow does not."""
    height, width, channels = values.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    path.write_bytes(content)
    return path


def tiff16(path, values, order="<", planar=1, alpha=None):
    """Writes an uncompressed TIFF of 16 bits a channel, RGB or with a kind of alpha, 1 or 2."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    bits_at = 8 + len(data)
    directory_at = bits_at + 2 * channels
    tags = [  # tag, type (3: 16 bits, 4: 32 bits), count, value
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, planar),
    ]
    if alpha is not None:
        tags.append((338, 3, 1, alpha))
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory_at)
    content += data + struct.pack(f"{order}{channels}H", *[16] * channels)
    content += struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        is_short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH" if is_short else f"{order}I", *[value, 0][: 1 + is_short])
        content += struct.pack(f"{order}HHI", tag, kind, count) + packed
    path.write_bytes(content + bytes(4))
    return path


def write_fits(path, values, **header):
    """Writes (h, w), or (h, w, 3) as planes, with the lowest row first."""
    planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else values
    unit = fits.PrimaryHDU(planes[..., ::-1, :])
    unit.header.update(header)
    unit.writeto(path)
    return path


def nearly(image, expected, tolerance=1):
    assert image.shape == expected.shape and image.dtype == np.uint8
    return np.abs(image.astype(int) - expected).max() <= tolerance


def in_three(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


# depth --------------------------------------------------------------------------------------------

ENCODINGS = {
    "8 in 16": lambda x: x.astype("u2"),
    "10 in 16": lambda x: np.rint(x * (1023 / 255)).astype("u2"),
    "12 in 16": lambda x: np.rint(x * (4095 / 255)).astype("u2"),
    "12 in 16, shifted": lambda x: x.astype("u2") << 4,
    "12 in 16, at the top": lambda x: np.rint(x * (4095 / 255)).astype("u2") << 4,
    "14 in 16": lambda x: np.rint(x * (16383 / 255)).astype("u2"),
    "14 in 16, at the top": lambda x: np.rint(x * (16383 / 255)).astype("u2") << 2,
    "16": lambda x: x.astype("u2") * 257,
    "16, shifted": lambda x: x.astype("u2") << 8,
    "signed": lambda x: np.rint(x * (32767 / 255)).astype("i2"),
    "32": lambda x: x.astype("i4") * 257,
    "float to 1": lambda x: (x / 255).astype("f4"),
    "double to 1": lambda x: x / 255,
    "float to 255": lambda x: x.astype("f4"),
    "float to 65535": lambda x: x * np.float32(257),
}


@pytest.mark.parametrize("dark", [1, 5, 20], ids=["as it is", "dark", "black"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_photo_of_8_bits_comes_back_from_every_encoding(sky, encoding, dark):
    photo = sky // dark
    assert np.array_equal(to_8_bits(ENCODINGS[encoding](photo)), photo)


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_a_photo_that_fills_its_bits_is_scaled(sky, bits):
    white = 2**bits - 1
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, sky.shape)
    fine = np.clip(np.rint((sky + noise) * white / 255), 0, white).astype("u2")
    assert nearly(to_8_bits(fine), sky)


def linear_night(sky, white=65535, offset=0):
    """A linear exposure of the night: 1 % of white, with a few stars."""
    values = offset + 0.01 * white * (sky.mean(axis=-1) / 255) ** 2.2
    values[::31, ::29] = white
    return np.rint(values).astype(np.uint16)


def test_a_linear_exposure_of_the_night_is_brightened(sky):
    night = linear_night(sky)
    shown = to_8_bits(night)
    assert 60 <= np.percentile(shown, 75) <= 68  # a quarter of white
    # in order: no pixel overtakes another
    order = np.argsort(night, axis=None, kind="stable")
    assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()
    # the same whatever is white, and with an offset of the sensor's
    assert nearly(to_8_bits(linear_night(sky, 4095)), shown, 8)
    assert np.abs(to_8_bits(linear_night(sky, offset=200)).astype(int) - shown).mean() < 10


def test_a_frame_of_one_value_is_not_stretched_into_noise():
    noise = np.random.default_rng(0).normal(0, 1, (64, 64))
    for level, sigma in ((30, 1), (1000, 5), (1000, 0), (40_000, 50)):
        frame = np.rint(level + sigma * noise).clip(0, 65535).astype(np.uint16)
        frame[0, 0] = 65535  # a hot pixel
        shown = to_8_bits(frame)[1:]
        assert shown.std() <= 2, level
    covered = np.rint(3 + np.abs(noise)).astype(np.uint16)
    covered[0, 0] = 65535
    assert to_8_bits(covered)[1:].max() == 0


def test_what_is_no_number_is_black_and_infinity_is_white(tmp_path, gray):
    values = gray.astype("f4") / 255
    values[:2], values[2:4], values[4:6] = np.nan, np.inf, -np.inf
    values[6, 0] = 1.5  # a resampled star
    shown = to_8_bits(values)
    assert shown[:2].max() == 0 and shown[2:4].min() == 255 and shown[4:6].max() == 0
    assert nearly(shown[7:], gray[7:])
    Image.fromarray(values).save(tmp_path / "a.tif")
    photo = read_photo(tmp_path / "a.tif")
    assert not photo.valid[:2].any() and photo.valid[2:].all()
    assert to_8_bits(np.full((4, 4), np.nan, "f4")).max() == 0
    assert to_8_bits(np.array([[0, 1e300]])).tolist() == [[0, 255]]


@pytest.mark.parametrize("encoding", ["12 in 16", "14 in 16, at the top", "16", "8 in 16"])
def test_16_bits_in_colour_and_gray_are_read_whole(tmp_path, sky, gray, encoding):
    deep = ENCODINGS[encoding](sky)
    assert np.array_equal(read_image(png16(tmp_path / "a.png", deep)), sky)
    for order in "<>":
        assert np.array_equal(read_image(tiff16(tmp_path / "a.tif", deep, order)), sky)
    deep_gray = ENCODINGS[encoding](gray)
    for name in ("b.png", "b.tif", "c.pgm"):
        Image.fromarray(deep_gray).save(tmp_path / name)
    assert np.array_equal(read_image(tmp_path / "b.png"), in_three(gray))
    assert np.array_equal(read_image(tmp_path / "b.tif"), in_three(gray))


def test_compressed_16_bit_tiff_is_read_whole(tmp_path, sky):
    # libtiff decodes these; Pillow writes none in colour, so gray stands in for the codec
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        deep = ENCODINGS["12 in 16"](sky[..., 0])
        Image.fromarray(deep).save(tmp_path / "a.tif", compression=compression)
        assert np.array_equal(read_image(tmp_path / "a.tif"), in_three(sky[..., 0]))


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bits_with_alpha(tmp_path, sky, channels):
    colors = sky if channels == 4 else sky[..., :1]
    alpha = np.full((*sky.shape[:2], 1), 65535)
    alpha[:10] = 0
    deep = np.concatenate([ENCODINGS["12 in 16"](colors), alpha], axis=-1)
    photo = read_photo(png16(tmp_path / "a.png", deep))
    assert not photo.valid[:10].any() and photo.valid[10:].all()
    assert (photo.image[10:] == colors[10:]).all() and (photo.image[:10] == 0).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_that_were_multiplied_by_alpha(tmp_path, sky, order):
    deep = ENCODINGS["12 in 16"](sky).astype(np.float64)
    alpha = np.full((*sky.shape[:2], 1), 65535.0)
    alpha[:10], alpha[10:20] = 0, 40000
    multiplied = np.concatenate([deep * alpha / 65535, alpha], axis=-1).round().astype(np.uint16)
    photo = read_photo(tiff16(tmp_path / "a.tif", multiplied, order, alpha=1))
    assert not photo.valid[:10].any() and photo.valid[10:].all()
    assert nearly(photo.image[10:], sky[10:]) and (photo.image[:10] == 0).all()


def test_what_pillow_would_misread_is_refused_in_one_line(tmp_path, sky):
    one = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 258, 3, 1, 32) + bytes(4)
    (tmp_path / "float.tif").write_bytes(one)
    for path in (tiff16(tmp_path / "planar.tif", sky, planar=2), tmp_path / "float.tif"):
        with pytest.raises(DataError, match=r"tif: not .*save it as 16-bit TIFF") as caught:
            read_photo(path)
        assert "\n" not in str(caught.value)
    preview = Image.fromarray(sky)
    preview.save(tmp_path / "preview.tif", tiffinfo={254: 1})
    write_image(tmp_path / "a.png", sky)
    (tmp_path / "a.png").rename(tmp_path / "a.CR2")
    for name in ("preview.tif", "a.CR2"):
        with pytest.raises(DataError, match="raw file, which is not read; convert it"):
            read_photo(tmp_path / name)


# FITS ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [*ENCODINGS, "bytes"])
def test_fits_of_every_bitpix(tmp_path, sky, gray, encoding):
    encode = ENCODINGS.get(encoding, np.array)
    path = write_fits(tmp_path / "a.fits", encode(sky))
    assert np.array_equal(read_image(path), sky)
    assert np.array_equal(read_image(write_fits(tmp_path / "b.fit", encode(gray))), in_three(gray))


def test_fits_layouts_orders_and_compression(tmp_path, sky):
    deep = ENCODINGS["12 in 16"](sky)
    pixels = fits.PrimaryHDU(deep[::-1])  # (h, w, 3)
    pixels.writeto(tmp_path / "pixels.fits")
    planes = np.moveaxis(deep, -1, 0)
    fits.PrimaryHDU(planes, fits.Header({"ROWORDER": "TOP-DOWN"})).writeto(tmp_path / "top.fits")
    scaled = fits.PrimaryHDU(planes[:, ::-1].astype("f4"))
    scaled.scale("int16", bscale=0.5, bzero=1000)
    scaled.writeto(tmp_path / "scaled.fits")
    extension = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(planes[:, ::-1])])
    extension.writeto(tmp_path / "extension.fts")
    content = (tmp_path / "pixels.fits").read_bytes()
    (tmp_path / "packed.fits.gz").write_bytes(gzip.compress(content))
    for path in tmp_path.iterdir():
        assert np.array_equal(read_image(path), sky), path.name
    assert np.array_equal(read_photo(content).image, sky)
    tiles = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(deep[::-1, :, 1])])
    tiles.writeto(tmp_path / "tiles.fits.fz")
    assert np.array_equal(read_image(tmp_path / "tiles.fits.fz"), in_three(sky[..., 1]))
    assert find_photos([tmp_path]).keys() >= {"packed", "tiles", "extension"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"NAXIS1": 2_000_000_000}, "pixels, at most"),
        ({"NAXIS1": 100_000, "NAXIS2": 1500}, "most of it is missing"),
        ({"NAXIS1": 3000, "NAXIS2": 1500}, "not a readable FITS"),
        ({"BITPIX": 17}, "not a readable FITS"),
        ({"NAXIS1": -5}, "FITS"),
        ({"NAXIS": 1}, "was expected"),
        ({"NAXIS": 0}, "FITS"),
        ({"BAYERPAT": "CYGM"}, "'CYGM' is none of RGGB, BGGR, GRBG, GBRG; give one"),
    ],
)
def test_bad_fits_are_refused_in_one_line(tmp_path, gray, header, message):
    path = write_fits(tmp_path / "a.fits", gray)
    content = path.read_bytes()
    for key, value in header.items():
        old = content.find(key.ljust(8).encode() + b"=")
        shown = f"'{value}'" if isinstance(value, str) else f"{value:20d}"
        card = f"{key:8}= {shown}".ljust(80).encode()
        end = content.find(b"END" + b" " * 77)
        if old < 0:  # in place of the end, which moves on
            content = content[:end] + card + content[end : end + 80] + content[end + 160 :]
        else:
            content = content[:old] + card + content[old + 80 :]
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_photo(path)
    assert "\n" not in str(caught.value) and str(caught.value).count(str(path)) == 1


def test_truncated_and_endless_fits_are_refused(tmp_path, gray):
    content = write_fits(tmp_path / "a.fits", gray).read_bytes()
    for count in (100, 2880, len(content) // 2):
        with pytest.raises(UnreadableError, match="not a readable FITS"):
            read_photo(content[:count])
        with pytest.raises(UnreadableError, match="not a readable FITS"):
            read_photo(gzip.compress(content)[:-100] if count > 2880 else content[:count])
    (tmp_path / "endless.fits").write_bytes(content[:80] + b"COMMENT ".ljust(80) * 100_000)
    with pytest.raises(DataError, match="header of more than"):
        read_photo(tmp_path / "endless.fits")


def test_without_astropy_fits_are_refused_with_the_way_out(tmp_path, gray, monkeypatch):
    path = write_fits(tmp_path / "a.fits", gray)
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    with pytest.raises(DataError) as caught:
        read_photo(path)
    assert str(caught.value) == f'{path}: FITS needs astropy: pip install "ddunet-keras[fits]"'


# mosaics ------------------------------------------------------------------------------------------


def mosaic_of(sky, pattern):
    """What a sensor with these filters sees."""
    mosaic = np.empty(sky.shape[:2], sky.dtype)
    for index, color in enumerate(pattern):
        place = slice(index // 2, None, 2), slice(index % 2, None, 2)
        mosaic[place] = sky[(*place, "RGB".index(color))]
    return mosaic


@pytest.fixture(scope="module")
def smooth():
    """A photo without fine detail, and bluer than gray: what a mosaic can hold."""
    rows, columns = np.mgrid[:160, :192] / 192
    planes = [90 + 60 * rows, 120 + 50 * columns, 200 - 40 * rows * columns]
    return np.rint(np.stack(planes, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_mosaic_is_recognised_and_resolved(tmp_path, smooth, pattern):
    for name, encode in (("a.png", np.array), ("b.png", ENCODINGS["12 in 16"])):
        Image.fromarray(encode(mosaic_of(smooth, pattern))).save(tmp_path / name)
        with pytest.raises(DataError, match=r"--bayer RGGB \(or BGGR, GRBG, GBRG\)"):
            read_photo(tmp_path / name)
        assert nearly(read_photo(tmp_path / name, ReadOptions(bayer=pattern)).image, smooth, 2)
        as_gray = read_photo(tmp_path / name, ReadOptions(bayer="none")).image
        assert np.array_equal(as_gray, in_three(mosaic_of(smooth, pattern)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_a_mosaic_is_resolved_as_the_file_has_it_and_then_turned(
    tmp_path, smooth, name, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pattern = "GBRG"
    Image.fromarray(mosaic_of(smooth, pattern)).save(tmp_path / name, exif=exif)
    Image.fromarray(smooth).save(tmp_path / f"colour_{name}", exif=exif)
    found = read_photo(tmp_path / name, ReadOptions(bayer=pattern)).image
    assert nearly(found, read_photo(tmp_path / f"colour_{name}").image, 2)


def test_debayer_is_bilinear():
    """Against the definition: the mean of the nearest pixels that have the colour."""
    mosaic = np.random.default_rng(0).integers(0, 4096, (7, 9), np.uint16)
    for pattern in PATTERNS:
        found = debayer(mosaic, pattern)
        for row, column in ((0, 0), (3, 4), (4, 3), (6, 8), (3, 3), (4, 4), (0, 8)):
            for channel, color in enumerate("RGB"):
                near = {}
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        # beyond the border the picture is reflected
                        y = abs(row + down) if row + down < 7 else 12 - row - down
                        x = abs(column + right) if column + right < 9 else 16 - column - right
                        if pattern[2 * (y % 2) + x % 2] == color:
                            near.setdefault(abs(down) + abs(right), []).append(int(mosaic[y, x]))
                expected = np.mean(near[min(near)])
                assert abs(found[row, column, channel] - expected) <= 0.5


def test_bayerpat_of_fits_is_heeded(tmp_path, smooth):
    """BAYERPAT speaks of the rows in the file's order."""
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pattern = shifted_pattern("RGGB", right, down)
        header = {"BAYERPAT": "RGGB", "XBAYROFF": right, "YBAYROFF": down}
        unit = fits.PrimaryHDU(mosaic_of(smooth, pattern), fits.Header(header))
        unit.writeto(tmp_path / "a.fits", overwrite=True)
        assert nearly(read_image(tmp_path / "a.fits"), smooth[::-1], 2)
        unit.header["ROWORDER"] = "TOP-DOWN"
        unit.writeto(tmp_path / "a.fits", overwrite=True)
        assert nearly(read_image(tmp_path / "a.fits"), smooth, 2)


def test_gray_photos_are_no_mosaics(sky, gray):
    """With JPEG's artefacts, noise, enlarged or made smaller by leaving out pixels."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(gray).resize((256, 192), Image.Resampling.BICUBIC)
    assert mosaic_contrast(np.asarray(picture)) < 0.01
    for scale in (200, 300, 500):
        resized = picture.resize((scale, scale * 3 // 4), Image.Resampling.NEAREST)
        assert mosaic_contrast(np.asarray(resized)) < 0.02
    for sigma in (3, 10, 25):
        noisy = np.asarray(picture) + rng.normal(0, sigma, (192, 256))
        assert mosaic_contrast(noisy.clip(0, 255).astype(np.uint8)) < 0.03
    for quality in (20, 60, 95):
        buffer = io.BytesIO()
        picture.filter(ImageFilter.SHARPEN).save(buffer, "JPEG", quality=quality)
        assert mosaic_contrast(np.asarray(Image.open(buffer))) < 0.01


def test_a_pattern_is_refused_where_there_are_colours(tmp_path, sky):
    write_image(tmp_path / "a.png", sky)
    with pytest.raises(DataError, match="has colours"):
        read_photo(tmp_path / "a.png", ReadOptions(bayer="RGGB"))
    with pytest.raises(ValueError, match="received 'RGB'"):
        ReadOptions(bayer="RGB")
    with pytest.raises(ValueError, match="received 'gbr'"):
        ReadOptions(channel_order="gbr")


# alpha, order, time -------------------------------------------------------------------------------


def test_transparent_is_not_sky(tmp_path, sky, segmenter):
    alpha = np.full((*sky.shape[:2], 1), 255, np.uint8)
    alpha[:32] = 0
    Image.fromarray(np.concatenate([sky, alpha], axis=-1)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert not photo.valid[:32].any() and photo.valid[32:].all()
    assert (photo.image[:32] == 0).all() and np.array_equal(photo.image[32:], sky[32:])
    (record,) = predict_files(segmenter, find_photos([tmp_path / "a.png"]), tmp_path / "out")
    expected = segmenter.segment(photo.image, horizon=photo.valid).to_dict()["cloud_cover"]
    assert record["cloud_cover"] == expected and record["horizon"] is None
    assert expected["valid_fraction"] == pytest.approx(2 / 3)
    # an opaque alpha channel says nothing
    Image.fromarray(sky).convert("RGBA").save(tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png").valid is None
    Image.new("RGBA", (4, 4)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match="transparent all over"):
        read_photo(tmp_path / "c.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_is_not_sky_in_horizon_masks(tmp_path, mode):
    mask = Image.new("RGBA", (40, 30), (255, 255, 255, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 40, 10))  # trees were rubbed out
    mask.paste((0, 0, 0, 255), (0, 20, 40, 30))  # and others painted black
    mask.convert(mode).save(tmp_path / "mask.png")
    valid = horizon_mask(str(tmp_path / "mask.png"), np.zeros((30, 40, 3), np.uint8))
    assert valid[10:20].all() and not valid[:10].any() and not valid[20:].any()


def test_red_and_blue_are_exchanged(tmp_path, sky):
    write_image(tmp_path / "in" / "a.png", sky[..., ::-1])
    photo = read_photo(tmp_path / "in" / "a.png", ReadOptions(channel_order="bgr"))
    assert np.array_equal(photo.image, sky)
    write_image(tmp_path / "in" / "b.png", sky)
    covers = []
    for name, options in (("a", ["--channel-order", "bgr"]), ("b", [])):
        out = str(tmp_path / name)
        assert (
            cli.main(["predict", str(tmp_path / "in" / f"{name}.png"), "--out", out] + options) == 0
        )
        covers.append(json.loads((tmp_path / name / "predictions.json").read_text())[0])
    assert covers[0]["cloud_cover"] == covers[1]["cloud_cover"]


def test_when_a_photo_was_taken(tmp_path, gray):
    exif = Image.Exif()
    exif[0x0132] = "2024:05:02 08:00:00"
    details = exif.get_ifd(0x8769)
    details[0x9003] = "2024:05:01 22:13:05"
    details[0x9011] = "+02:00"
    Image.fromarray(gray).save(tmp_path / "a.jpg", exif=exif)
    photo = read_photo(tmp_path / "a.jpg")
    assert (photo.taken, photo.taken_from) == ("2024-05-01T22:13:05+02:00", "exif")
    details.clear()
    for text, expected in (
        ("2024:05:02 08:00:00", "2024-05-02T08:00:00"),
        ("0000:00:00 00:00:00", None),
        ("2024:02:31 08:00:00", None),
        ("\x1b[31m", None),
    ):
        exif[0x0132] = text
        Image.fromarray(gray).save(tmp_path / "b.jpg", exif=exif)
        os.utime(tmp_path / "b.jpg", (0, 86_400 * 365))
        photo = read_photo(tmp_path / "b.jpg")
        if expected is None:
            assert photo.taken_from == "file" and photo.taken[:4] in ("1970", "1971")
        else:
            assert (photo.taken, photo.taken_from) == (expected, "exif")
    write_fits(tmp_path / "c.fits", gray, **{"DATE-OBS": "2024-05-01T22:13:05.25"})
    photo = read_photo(tmp_path / "c.fits")
    assert (photo.taken, photo.taken_from) == ("2024-05-01T22:13:05+00:00", "fits")
    content = write_fits(tmp_path / "d.fits", gray, **{"DATE-OBS": "yesterday"}).read_bytes()
    assert read_photo(tmp_path / "d.fits").taken_from == "file"
    photo = read_photo(content)
    assert (photo.taken, photo.taken_from) == (None, None)


# files that are not whole -------------------------------------------------------------------------


def jpeg_of(sky, **options):
    buffer = io.BytesIO()
    Image.fromarray(sky).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_jpeg_that_lacks_its_end_is_whole(tmp_path, sky, options):
    content = jpeg_of(sky, **options)
    assert content.endswith(b"\xff\xd9")
    (tmp_path / "a.jpg").write_bytes(content[:-2])
    (tmp_path / "b.jpg").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "b.jpg"))
    assert np.array_equal(read_photo(content[:-1]).image, read_image(tmp_path / "b.jpg"))
    after_half_an_escape = content.rindex(b"\xff\x00") + 1
    for count in (-12, -40, -400, len(content) // 2, after_half_an_escape):
        with pytest.raises(UnreadableError, match="not a readable image"):
            read_photo(content[:count])


def test_a_file_that_is_being_written_is_tried_again(tmp_path, sky):
    content = jpeg_of(sky)
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError):
        read_photo(path)  # at once
    writer = threading.Timer(0.3, path.write_bytes, [content])
    writer.start()
    assert read_photo(path, ReadOptions(wait=True)).image.shape == sky.shape
    writer.join()


def test_an_old_broken_file_is_not_waited_for(tmp_path, sky):
    paths = [tmp_path / f"{number}.jpg" for number in range(20)]
    for path in paths:
        path.write_bytes(jpeg_of(sky)[:500])
        os.utime(path, (time.time() - 60, time.time() - 60))
    start = time.monotonic()
    for path in paths:
        with pytest.raises(UnreadableError):
            read_photo(path, ReadOptions(wait=True))
    assert time.monotonic() - start < 2


# the command line ---------------------------------------------------------------------------------


class Pipe(io.TextIOWrapper):
    """Stands in for stdin."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))


def predict(capsys, *arguments):
    code = cli.main(["predict", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_a_photo_comes_from_stdin(capsys, tmp_path, monkeypatch, sky):
    write_image(tmp_path / "sky.png", sky)
    content = (tmp_path / "sky.png").read_bytes()
    monkeypatch.setattr("sys.stdin", Pipe(content))
    code, printed, err = predict(capsys, "-", tmp_path / "sky.png", "--out", tmp_path / "out")
    assert (code, err) == (0, "") and printed.startswith("-: ")
    piped, read = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert piped["cloud_cover"] == read["cloud_cover"] and piped["mask"] == "stdin_mask.png"
    assert piped["taken"] is None and read["taken_from"] == "file"


@pytest.mark.parametrize("content", [b"", b"no photo", None])
def test_what_is_no_photo_on_stdin_is_said_in_one_line(capsys, tmp_path, monkeypatch, content):
    monkeypatch.setattr("sys.stdin", None if content is None else Pipe(content))
    code, _, err = predict(capsys, "-", "--out", tmp_path / "out")
    assert code == 2 and err.startswith("ddunet: error: ") and err.count("\n") == 1
    assert "stdin" in err


def test_folders_in_folders_and_what_is_left_out(capsys, tmp_path, sky):
    root = tmp_path / "photos"
    for name in ("a.png", "2024/05/b.png", "out/mask.png"):
        write_image(root / name, sky)
    for name in ("notes.txt", "2024/log.TXT", "2024/night.mp4", "README"):
        (root / name).touch()
    (root / "2024" / "circle").symlink_to(root)
    assert sorted(find_photos([root])) == ["a"]
    assert count_left_out([root]) == {"folder": 2, "no ending": 1, ".txt": 1}
    options = ("--recursive", "--out", root / "out")
    code, printed, err = predict(capsys, root, *options)
    assert (code, err) == (0, "")
    last = printed.splitlines()[-1]
    assert last.startswith("left out 5 of other kinds: 2 .txt, ") and "1 .mp4" in last
    names = [record["image"] for record in json.loads((root / "out/predictions.json").read_text())]
    assert names == [str(root / "2024/05/b.png"), str(root / "a.png")]
    code, printed, err = predict(capsys, root, "--json", "--out", tmp_path / "other")
    assert err.startswith("ddunet: note: left out 4") and "--recursive" in err
    assert [json.loads(line)["taken_from"] for line in printed.splitlines()] == ["file"]


def test_the_same_photo_gives_the_same_cover_in_every_file(tmp_path, sky, segmenter):
    """Done when: at most one point of cloud cover between encodings."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, sky.shape)
    for name, encode in ENCODINGS.items():
        write_fits(tmp_path / f"{name}.fits", encode(sky))
        if encode(sky).dtype == np.uint16:
            png16(tmp_path / f"{name}.png", encode(sky))
            tiff16(tmp_path / f"{name}.tif", encode(sky))
    for bits in (12, 14, 16):  # values between those of 8 bits
        white = 2**bits - 1
        fine = np.clip(np.rint((sky + noise) * white / 255), 0, white).astype("u2")
        png16(tmp_path / f"fine {bits}.png", fine)
        write_fits(tmp_path / f"fine {bits}.fits", fine)
        write_fits(tmp_path / f"fine float {bits}.fits", (fine / white).astype("f4"))
    write_image(tmp_path / "8.png", sky)
    (tmp_path / "cut.jpg").write_bytes(jpeg_of(sky, subsampling=0)[:-2])
    expected = segmenter.segment(sky).cloud_cover.percent
    assert 5 < expected < 95
    known = {}
    for path in sorted(tmp_path.iterdir()):
        image = read_image(path)
        key = image.tobytes()  # most are equal to the last bit
        if key not in known:
            known[key] = segmenter.segment(image).cloud_cover.percent
        assert known[key] == pytest.approx(expected, abs=1), path.name
    assert len(list(tmp_path.iterdir())) > 40


def test_limits_hold_for_all_readers(tmp_path, sky, monkeypatch):
    monkeypatch.setattr(files, "MAX_PIXELS", 96 * 128 - 1)
    for path in (
        png16(tmp_path / "a.png", ENCODINGS["16"](sky)),
        tiff16(tmp_path / "a.tif", ENCODINGS["16"](sky)),
        write_fits(tmp_path / "a.fits", sky),
    ):
        with pytest.raises(DataError, match="128x96 pixels, at most"):
            read_photo(path)
