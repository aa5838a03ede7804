"""What says nothing of the sky is not measured; what shows it is."""

import json
import os

import numpy as np
import pytest
from marks import slow_case
from pictures_without_sky import KINDS
from PIL import Image

import ddunet_keras as dd
from ddunet_keras.cli import main
from ddunet_keras.prediction import find_photos, predict_files
from ddunet_keras.sky import (
    REASONS,
    CloudCover,
    Segmentation,
    blacken,
    cover_confidence,
    describe,
    frame_quality,
    segment,
)
from ddunet_keras.sky.quality import grey_light

HEIGHT, WIDTH = 240, 320


def frame(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def sky(seed=0, **options):
    return dd.synthetic_sky(seed, (HEIGHT, WIDTH), **options)[0]


def blue_gradient():
    share = np.linspace(0, 1, HEIGHT)[:, None, None]
    colours = (1 - share) * np.array([40, 90, 170]) + share * np.array([150, 190, 230])
    return np.broadcast_to(np.rint(colours), (HEIGHT, WIDTH, 3)).astype(np.uint8)


def overcast():
    """A grey day: the noise of the sensor, and a little darker in the corners."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    grey = 170 - 25 * (x * x + y * y) + rng.normal(0, 2, (HEIGHT, WIDTH))
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def dark_night():
    """A dark site, nearly black: noise, a little light at the horizon, stars."""
    rng = np.random.default_rng(0)
    glow = np.linspace(0, 9, HEIGHT)[:, None, None]
    image = 4 + glow + rng.normal(0, 2, (HEIGHT, WIDTH, 3))
    rows, columns = rng.integers(0, HEIGHT, 150), rng.integers(0, WIDTH, 150)
    image[rows, columns] += rng.uniform(30, 250, (150, 1))
    return image.clip(0, 255).astype(np.uint8)


def disc_on_black(image):
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    inside = np.hypot(rows - HEIGHT / 2, columns - WIDTH / 2) < 0.47 * HEIGHT
    return image * inside[..., None]


# --- the rules


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (frame(0), "black"),
        (frame(3), "black"),
        (frame(255), "saturated"),
        (frame(252), "saturated"),
        (frame(128), "flat colour"),
        (frame((0, 130, 40)), "flat colour"),
        (disc_on_black(frame(255)), "saturated"),
    ],
)
def test_frames_without_information(image, reason):
    quality = frame_quality(image)
    assert (quality.usable, quality.reason) == (False, reason)
    assert reason in REASONS


def test_a_closed_roof_with_hot_pixels_is_black():
    image = frame(2)
    image[::120, ::120] = 30
    assert frame_quality(image).reason == "black"


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (16, 16), (2000, 30)])
def test_frames_of_any_size(size):
    rng = np.random.default_rng(0)
    for image in (np.zeros((*size, 3), np.uint8), rng.integers(0, 256, (*size, 3), np.uint8)):
        assert frame_quality(image).reason in (None, *REASONS)


def test_only_what_is_valid_counts():
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[:100] = True
    image = sky(3, time="day", view="patch")
    dark = np.where(valid[..., None], 1, image)
    assert frame_quality(dark, valid).reason == "black"
    assert frame_quality(image, np.zeros_like(valid)).reason == "black"
    noise = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    assert frame_quality(np.where(valid[..., None], image, noise), valid).usable
    with pytest.raises(ValueError, match="valid"):
        frame_quality(image, valid[:50])


# --- skies


@pytest.mark.parametrize(
    "image",
    [
        blue_gradient(),
        overcast(),
        dark_night(),
        disc_on_black(blue_gradient()),
        disc_on_black(overcast()),
        disc_on_black(dark_night()),
        np.repeat(blue_gradient()[..., 1:2], 3, axis=-1),
    ],
)
def test_cloudless_overcast_and_dark_skies_are_usable(image):
    assert frame_quality(image).reason is None


@pytest.mark.parametrize("time", ["day", slow_case("dusk"), slow_case("night")])
def test_synthetic_skies_are_usable(time):
    skies = [dd.synthetic_sky(seed, (144, 192), time=time) for seed in range(5000, 5040)]
    reasons = [frame_quality(image, labels != 255).reason for image, labels in skies]
    assert sum(reason is not None for reason in reasons) <= 2, reasons


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "count"), [("swinyseg-base", 30), ("wsiseg-240", 20), ("cameras/dslr", 10)]
)
def test_real_skies_are_usable(shared, folder, count):
    paths = sorted((shared / "data" / folder / "images").iterdir())
    chosen = paths[:: max(len(paths) // count, 1)]
    refused = [path.name for path in chosen if not frame_quality(dd.read_image(path)).usable]
    assert len(refused) <= 0.01 * len(chosen) + 1, refused


def test_what_shows_no_sky_is_refused():
    seed = 10**6  # the classifier was fitted to the first ones
    kept = [
        n for n, draw in KINDS.items() if frame_quality(draw(np.random.default_rng(seed))).usable
    ]
    assert len(KINDS) >= 60
    assert len(kept) <= 0.05 * len(KINDS), kept


def test_descriptions_are_finite():
    rng = np.random.default_rng(0)
    for image in (frame(0), frame(255), rng.integers(0, 256, (40, 40, 3), np.uint8), sky()[:64]):
        numbers = describe(image, np.ones(image.shape[:2], bool))
        assert np.isfinite(list(numbers.values())).all()


# --- what follows from it


def never(image):
    raise AssertionError("a frame that says nothing needs no inference")


def test_an_unusable_frame_is_not_measured():
    result = segment(never, frame(0))
    assert (result.usable, result.reason, result.confidence) == (False, "black", None)
    assert np.isnan(result.cloud_cover.fraction) and result.cloud_cover.okta is None
    assert (result.mask == 128).all() and (result.labels == 255).all()
    assert json.loads(json.dumps(result.to_dict())) == {
        "cloud_cover": {"fraction": None, "percent": None, "okta": None, "valid_fraction": 1.0},
        "usable": False,
        "reason": "black",
        "confidence": None,
    }


def test_force_measures_it_all_the_same():
    result = segment(lambda image: np.full((8, 8), 0.9), frame(0), force=True)
    assert not result.usable and result.reason == "black"
    assert result.cloud_cover.percent == 100 and result.confidence == 0


def test_a_result_needs_probabilities_or_a_reason():
    with pytest.raises(ValueError, match="reason"):
        Segmentation(frame(9), None)


def test_the_network_sees_black_outside_the_horizon():
    image = sky(1, time="day", view="patch")
    valid = np.zeros(image.shape[:2], bool)
    valid[:, 100:] = True
    seen = []

    def predict(photo):
        seen.append(photo.copy())
        return photo.mean(axis=-1) / 255

    first = segment(predict, image, horizon=valid)
    painted = image.copy()
    painted[~valid] = (90, 10, 10)
    second = segment(predict, painted, horizon=valid)
    assert (seen[0][~valid] == 0).all() and (seen[0][valid] == image[valid]).all()
    np.testing.assert_array_equal(*seen)
    assert first.cloud_cover == second.cloud_cover
    np.testing.assert_array_equal(second.image, painted)
    np.testing.assert_array_equal(blacken(image, valid), seen[0])
    np.testing.assert_array_equal(blacken(image[..., ::-1], valid), seen[0][..., ::-1])


# --- confidence


def test_confidence_falls_with_doubt():
    valid = np.ones((16, 16), bool)
    steps = [cover_confidence(np.full((16, 16), p), valid) for p in (0.999, 0.9, 0.7, 0.55)]
    assert steps == sorted(steps, reverse=True)
    assert 0 <= steps[-1] < steps[0] <= 1


def test_confidence_looks_at_valid_pixels_and_at_cloud():
    sure = np.full((16, 16), 0.999)
    mixed = sure.copy()
    mixed[:8] = 0.5
    valid = np.zeros((48, 32), bool)
    valid[24:] = True
    whole = np.ones((16, 16), bool)
    assert cover_confidence(mixed, valid) == cover_confidence(sure, whole)
    classes = np.stack([1 - mixed, 0.5 * mixed, 0.5 * mixed], axis=-1)
    assert cover_confidence(classes, whole) == pytest.approx(cover_confidence(mixed, whole))


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.ones((4, 4))])
def test_without_probabilities_there_is_no_confidence(values):
    values[0, 0] = 1
    assert cover_confidence(values, np.ones((4, 4), bool)) is None
    assert cover_confidence(values / 2, np.zeros((4, 4), bool)) is None


def test_a_bright_frame_without_colours_is_less_sure():
    """By day, a blue sky and a grey cloud look alike to a mono camera; at night it sees as well."""
    photo = blue_gradient()
    photo[::7, ::5] = 255
    grey = np.repeat(photo.mean(axis=-1, keepdims=True), 3, axis=-1).round().astype(np.uint8)
    dark = grey // 5
    lights = [grey_light(image.reshape(-1, 3)) for image in (photo, grey, dark)]
    assert lights == pytest.approx([0, np.median(grey) / 255, np.median(dark) / 255], abs=0.05)
    sure = [
        cover_confidence(np.full((16, 16), 0.9), grey[..., 0] > 0, grey_light=g) for g in lights
    ]
    assert sure[1] < sure[2] < sure[0]


# --- files and the command


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(sky(2, time="day")).save(folder / "good.png")
    Image.fromarray(frame(0)).save(folder / "roof.png")
    return folder


def test_records_say_what_is_unusable_and_old_masks_go(tmp_path, photos):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("roof_mask.png", "roof_overlay.jpg"):
        (out / name).touch()
    good, roof = predict_files(dd.Segmenter(), find_photos([photos]), out)
    assert good["usable"] and good["reason"] is None and 0 <= good["confidence"] <= 1
    assert (roof["usable"], roof["reason"], roof["confidence"]) == (False, "black", None)
    assert roof["cloud_cover"]["percent"] is None
    assert "mask" not in roof and "overlay" not in roof
    written = sorted(path.name for path in out.iterdir())
    assert written == ["good_mask.png", "good_overlay.jpg", "predictions.json"]


def test_the_command_says_so_and_ends_with_3(capsys, tmp_path, photos):
    out = tmp_path / "out"
    assert main(["predict", str(photos), "--out", str(out)]) == 3
    printed = capsys.readouterr().out.splitlines()
    assert "% cloud" in printed[0] and "confidence" in printed[0]
    assert printed[1] == f"{photos / 'roof.png'}: cannot tell: black"
    assert "of 1 photo" in printed[2]

    assert main(["predict", str(photos), "--out", str(out), "--json"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[1])["cloud_cover"]["okta"] is None and "NaN" not in lines[1]

    assert main(["predict", str(photos), "--out", str(out), "--force"]) == 3
    assert "% cloud" in capsys.readouterr().out.splitlines()[1]
    assert (out / "roof_mask.png").is_file()

    assert main(["predict", str(photos / "good.png"), "--out", str(out)]) == 0
    (photos / "broken.png").write_bytes(b"")
    os.utime(photos / "broken.png", (0, 0))  # of a fresh one the command waits for the rest
    assert main(["predict", str(photos), "--out", str(out)]) == 2


def test_a_cover_that_is_not_known_is_null():
    assert CloudCover(float("nan"), 0.5).to_dict()["percent"] is None
