"""`ddunet horizon`: synthetic skies of one camera behind a drawn foreground of known outline."""

from __future__ import annotations

import re

import numpy as np
import pytest
from marks import slow_case
from PIL import Image, ImageDraw, ImageFont

from ddunet_keras import cli, read_image, synthetic_sky
from ddunet_keras.files import DataError, read_gray, write_image
from ddunet_keras.sky import horizon_mask, write_horizon_array
from ddunet_keras.sky.learned_horizon import LONGER_SIDE, learn_horizon, show_horizon

SHAPE = (288, 384)
TIMES = ("day", "day", "dusk", "night")
FRAMES = 16


@pytest.fixture(scope="module")
def skies():
    """Skies that fill the frame: patches, and the middles of fisheye photos."""
    pictures = []
    for seed in range(FRAMES):
        time = TIMES[seed % 4]
        if seed % 3:
            pictures.append(synthetic_sky(seed, SHAPE, time=time, view="patch")[0])
        else:
            whole = Image.fromarray(synthetic_sky(seed, (400, 400), time=time, view="fisheye")[0])
            middle = whole.crop((120, 120, 280, 280)).resize(SHAPE[::-1])
            pictures.append(np.asarray(middle))
    return pictures


class Camera:
    """Trees, a house, the lens's rim and a time stamp before any sky; `sky` is where it shows."""

    def __init__(self, seed, is_fisheye):
        self.rng = np.random.default_rng(seed)
        height, width = SHAPE
        self.picture = Image.new("RGB", (width, height))
        self.outline = Image.new("L", (width, height))
        self._draw_house()
        for _ in range(3):
            angle = self.rng.uniform(0, 2 * np.pi)
            x = width / 2 + 0.5 * height * np.cos(angle)
            y = height / 2 + 0.5 * height * np.sin(angle)
            if not is_fisheye:
                x = self.rng.uniform(0, width)
                y = height
            self._draw_tree(x, y)
        self.rim = np.zeros(SHAPE, bool)
        if is_fisheye:
            rows, columns = np.indices(SHAPE)
            x = width / 2 + self.rng.uniform(-5, 5)
            self.rim = np.hypot(columns - x, rows - height / 2) > 0.48 * height
        self.stands_before = np.asarray(self.outline) > 0
        self.colors = np.asarray(self.picture) / 255 * self.rng.normal(1, 0.15, (*SHAPE, 1))
        self.font = ImageFont.load_default(12)
        self.sky = ~self.stands_before & ~self.rim
        left, top, right, bottom = self.font.getbbox("2024-12-31 23:59")
        self.sky[top + 4 : bottom + 4, left + 4 : right + 4] = False

    def _draw(self, shape, where, color):
        getattr(ImageDraw.Draw(self.picture), shape)(where, fill=color)
        getattr(ImageDraw.Draw(self.outline), shape)(where, fill=255)

    def _draw_house(self):
        height, width = SHAPE
        left, right = np.array([0.4, 0.6]) * width + self.rng.uniform(-30, 30)
        top = 0.8 * height
        wall = self.rng.integers(60, 220)
        self._draw("rectangle", (left, top, right, height), (wall, wall, wall))
        roof = [(left - 8, top), ((left + right) / 2, top - 24), (right + 8, top)]
        self._draw("polygon", roof, (90, 50, 40))
        self._draw("rectangle", (left + 8, top + 8, left + 24, top + 24), (20, 20, 30))

    def _draw_tree(self, x, y):
        size = self.rng.uniform(20, 40)
        for _ in range(50):
            angle = self.rng.uniform(0, 2 * np.pi)
            away = size * self.rng.random() ** 0.5
            radius = size * self.rng.uniform(0.06, 0.2)
            leaf_x = x + away * np.cos(angle)
            leaf_y = y + away * np.sin(angle)
            box = (leaf_x - radius, leaf_y - radius, leaf_x + radius, leaf_y + radius)
            green = int(self.rng.integers(20, 70))
            self._draw("ellipse", box, (green // 2, green, green // 2))

    def photo(self, sky, time):
        """The sky through this camera; the foreground is lit as the time of day has it."""
        darkest, brightest = {"day": (0.5, 1.2), "dusk": (0.2, 0.5), "night": (0.05, 0.3)}[time]
        light = np.median(sky) * self.rng.uniform(darkest, brightest)
        photo = np.where(self.stands_before[..., None], self.colors * light, sky)
        photo[self.rim] = 3
        photo = photo + self.rng.normal(0, 5 if time == "night" else 2, photo.shape)
        picture = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
        text = "2024-{:02d}-{:02d} {:02d}:{:02d}".format(*self.rng.integers(10, 28, 4))
        ImageDraw.Draw(picture).text((4, 4), text, fill="white", font=self.font)
        return np.asarray(picture)

    def photos(self, skies):
        for index, sky in enumerate(skies):
            yield self.photo(sky, TIMES[index % 4])


@pytest.mark.parametrize(
    "seed, is_fisheye",
    [
        (0, False),
        (1, True),
        slow_case(0, True),
        slow_case(1, False),
        slow_case(2, False),
        slow_case(2, True),
    ],
)
def test_the_sky_is_found_behind_a_foreground(skies, seed, is_fisheye):
    camera = Camera(seed, is_fisheye)
    found = learn_horizon(camera.photos(skies))
    union = (found.mask | camera.sky).sum()
    assert (found.mask & camera.sky).sum() / union >= 0.95
    assert (found.mask & ~camera.sky).sum() <= 0.01 * camera.sky.sum()
    assert found.frames == FRAMES
    assert (found.disc is not None) == is_fisheye


def test_nights_alone_do(skies):
    camera = Camera(3, is_fisheye=True)
    nights = [sky for index, sky in enumerate(skies) if TIMES[index % 4] == "night"]
    mirrored = [sky[:, ::-1] for sky in nights]
    photos = [camera.photo(sky, "night") for sky in nights + mirrored]
    mask = learn_horizon(photos).mask
    assert (mask & camera.sky).sum() / (mask | camera.sky).sum() >= 0.95


def test_large_frames_are_worked_on_small(skies):
    camera = Camera(1, is_fisheye=False)
    photos = list(camera.photos(skies))
    factor = 2 * LONGER_SIDE // max(SHAPE)
    large = (photo.repeat(factor, axis=0).repeat(factor, axis=1) for photo in photos)
    mask = learn_horizon(large).mask
    truth = camera.sky.repeat(factor, axis=0).repeat(factor, axis=1)
    assert mask.shape == truth.shape
    assert (mask & truth).sum() / (mask | truth).sum() >= 0.95


def test_too_few_frames_are_one_line(skies):
    for count in (0, 7):
        with pytest.raises(DataError, match=f"^{count} frames, at least 8"):
            learn_horizon(skies[:count])


def test_frames_of_two_sizes_are_named(skies):
    with pytest.raises(DataError, match="frame 4: 288x384 pixels, those before 384x288"):
        learn_horizon([*skies[:3], skies[3].transpose(1, 0, 2)])


def test_a_still_is_no_series(skies):
    camera = Camera(0, is_fisheye=False)
    with pytest.raises(DataError, match="nothing moves"):
        learn_horizon([camera.photo(skies[0], "day")] * 12)
    with pytest.raises(DataError, match="nothing moves"):
        learn_horizon([np.full((30, 40, 3), level, np.uint8) for level in range(0, 250, 20)])


def test_fixed_edges_everywhere_leave_no_sky():
    squares = np.kron(np.indices((40, 40)).sum(0) % 2, np.ones((6, 6))) * 150 + 50
    frames = [np.repeat(squares[..., None] + k, 3, axis=-1).astype(np.uint8) for k in range(12)]
    with pytest.raises(DataError, match="no sky is left"):
        learn_horizon(frames)


def test_a_frame_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="must be uint8"):
        learn_horizon([np.zeros((8, 8))] * 12)


def test_what_does_not_count_is_shown_in_red():
    frame = np.full((4, 5, 3), 80, np.uint8)
    mask = np.zeros((4, 5), bool)
    mask[1:3] = True
    shown = show_horizon(frame, mask)
    assert (shown[mask] == 80).all()
    assert (shown[~mask, 0] > 150).all() and (shown[~mask, 1:] == 40).all()
    assert (frame == 80).all()


# command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(skies, tmp_path_factory):
    """Files of a camera, one of them broken."""
    folder = tmp_path_factory.mktemp("camera")
    for index, photo in enumerate(Camera(2, is_fisheye=True).photos(skies)):
        Image.fromarray(photo).save(folder / f"{index:02d}.jpg", quality=90)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def run(capsys, *words):
    code = cli.main(["horizon", *map(str, words)])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


def test_the_command_writes_a_mask_and_a_picture(frames, tmp_path, capsys):
    code, out, errors = run(capsys, frames, "--out", tmp_path / "mask.png")
    assert code == 0
    assert len(errors) == 1 and "broken.jpg" in errors[0]
    assert f"{FRAMES} frames" in out[0] and "circle:" in out[1] and "mask.png" in out[2]
    mask = read_gray(tmp_path / "mask.png")
    assert mask.shape == SHAPE and set(np.unique(mask)) == {0, 255}
    photo = read_image(frames / "00.jpg")
    sky = Camera(2, is_fisheye=True).sky
    valid = horizon_mask(tmp_path / "mask.png", photo)
    assert (valid & sky).sum() / (valid | sky).sum() >= 0.95
    assert read_image(tmp_path / "mask_on_frame.jpg").shape == photo.shape


def test_frames_of_a_gray_mosaic_in_folders_of_nights(frames, tmp_path, capsys):
    """As indi-allsky keeps them: a folder for each night."""
    for index, path in enumerate(sorted(frames.glob("[0-9]*.jpg"))):
        photo = read_image(path)
        mosaic = photo[..., 1].copy()
        mosaic[::2, ::2] = photo[::2, ::2, 0]
        mosaic[1::2, 1::2] = photo[1::2, 1::2, 2]
        night = tmp_path / "images" / f"2026060{index % 3 + 1}"
        night.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic).save(night / path.with_suffix(".png").name)
    words = (tmp_path / "images", "--recursive", "--bayer", "rggb")
    code, out, errors = run(capsys, *words, "--out", tmp_path / "mask.png")
    assert (code, errors) == (0, [])
    assert f"{FRAMES} frames" in out[0]
    sky = Camera(2, is_fisheye=True).sky
    valid = read_gray(tmp_path / "mask.png") == 255
    assert (valid & sky).sum() / (valid | sky).sum() >= 0.95
    shown = read_image(tmp_path / "mask_on_frame.jpg").astype(int)
    assert np.ptp(shown[valid], axis=-1).mean() > 5  # in colours
    inside = tmp_path / "images" / "20260601" / "mask.png"
    code, _, errors = run(capsys, *words, "--out", inside)
    assert code == 2 and "frames are read from this folder" in errors[0]


def test_an_edited_mask_is_not_overwritten(frames, tmp_path, capsys):
    (tmp_path / "mask.png").write_bytes(b"edited")
    code, _, errors = run(capsys, frames, "--out", tmp_path / "mask.png")
    assert code == 2 and len(errors) == 1 and "may have been edited" in errors[0]
    assert (tmp_path / "mask.png").read_bytes() == b"edited"


def test_wrong_uses_are_one_line_and_write_nothing(frames, tmp_path, capsys):
    small = tmp_path / "small.png"
    write_image(small, np.zeros((24, 32, 3), np.uint8))
    few = sorted(frames.glob("0*.jpg"))[:3]
    for words, expected in (
        ([few[0], small, "--out", tmp_path / "mask.png"], "small.png: 32x24 pixels"),
        ([*few, "--out", tmp_path / "mask.png"], "3 frames, at least 8"),
        ([frames, "--out", tmp_path / "mask.jpg"], "the mask is a .png"),
        ([frames, "--out", frames / "mask.png"], "give another for the mask"),
        ([tmp_path / "nowhere.png", "--out", tmp_path / "mask.png"], "nowhere.png"),
    ):
        code, _, errors = run(capsys, *words)
        assert code == 2 and expected in " ".join(errors), errors
    assert list(tmp_path.iterdir()) == [small]
    assert not list(frames.glob("*.png"))


# the mask as C source -----------------------------------------------------------------------------


def read_c_array(path):
    """Boolean (h, w) of what `--c-array` wrote."""
    text = path.read_text()
    width, height = (
        int(re.search(rf"#define DDUNET_HORIZON_{side} (\d+)", text)[1])
        for side in ("WIDTH", "HEIGHT")
    )
    data = bytes(int(byte, 16) for byte in re.findall(r"0x(..),", text))
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    assert f"[{len(data)}]" in text and len(data) == -(-width * height // 8)
    return bits[: width * height].reshape(height, width).astype(bool)


def test_an_edited_mask_becomes_a_c_array_of_the_networks_size(tmp_path, capsys):
    rng = np.random.default_rng(0)
    small = rng.random((24, 17)) < 0.5
    write_image(tmp_path / "mask.png", np.kron(small, np.full((6, 8), 255)).astype(np.uint8))
    words = ["--mask", tmp_path / "mask.png", "--c-array", tmp_path / "firmware"]
    code, out, errors = run(capsys, *words, "--size", "24,17")
    assert (code, errors) == (0, []) and "one bit for each of 17x24 pixels" in out[-1]
    header = tmp_path / "firmware" / "ddunet_horizon.h"
    np.testing.assert_array_equal(read_c_array(header), small)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mask.png"]


def test_frames_give_mask_and_c_array_at_once(frames, tmp_path, capsys):
    words = [frames, "--out", tmp_path / "mask.png", "--c-array", tmp_path, "--size", 96]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "ddunet_horizon.h" in out[-1]
    mask = Image.fromarray(read_gray(tmp_path / "mask.png"))
    shares = np.asarray(mask.resize((96, 96), Image.Resampling.BOX))
    np.testing.assert_array_equal(read_c_array(tmp_path / "ddunet_horizon.h"), shares >= 128)


def test_wrong_uses_of_the_c_array(frames, tmp_path, capsys):
    mask = tmp_path / "mask.png"
    write_image(mask, np.full((24, 32), 255, np.uint8))
    thin = np.zeros((64, 64), np.uint8)
    thin[0, 0] = 255
    write_image(tmp_path / "thin.png", thin)
    array = ["--c-array", tmp_path / "firmware"]
    for words, expected in (
        ([], "give frames, or with --mask"),
        ([frames, "--mask", mask, *array, "--size", 96], "give frames, or with --mask"),
        (["--mask", mask], "--mask is for --c-array"),
        (["--mask", mask, *array], "go together"),
        (["--mask", mask, "--size", 96], "go together"),
        (["--mask", tmp_path / "none.png", *array, "--size", 96], "none.png"),
        (["--mask", tmp_path / "thin.png", *array, "--size", 16], "leaves no sky"),
        (["--mask", mask, "--c-array", mask, "--size", 96], "no folder"),
    ):
        code, _, errors = run(capsys, *words)
        assert code == 2 and len(errors) == 1 and expected in errors[0], errors
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "--mask", mask, *array, "--size", 5)
    assert "16 or more" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png", "thin.png"]


@pytest.mark.parametrize("valid", [None, np.ones((4, 4)), np.ones((4, 4, 3), bool)])
def test_only_masks_become_c_arrays(tmp_path, valid):
    with pytest.raises(ValueError, match="must be boolean"):
        write_horizon_array(tmp_path / "horizon.h", valid, (16, 16))
    assert not list(tmp_path.iterdir())


# real cameras -------------------------------------------------------------------------------------


@pytest.mark.shared
def test_on_a_real_whole_sky_camera(shared):
    data = shared / "data/wsiseg-240"
    frames = sorted((data / "images").glob("*.jpg"))[::10]
    mask = learn_horizon(read_image(path) for path in frames).mask
    annotated = np.zeros(mask.shape, bool)
    for path in frames:
        annotated |= read_gray(data / "annotation" / f"{path.stem}.png") > 0
    assert (mask & annotated).sum() / (mask | annotated).sum() > 0.94
