"""What "auto" says it found, and the cover of a part of the sky: small cases by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ddunet_keras import cli
from ddunet_keras.files import DataError, write_image
from ddunet_keras.prediction import find_photos, predict_files
from ddunet_keras.sky import (
    Disc,
    Segmentation,
    check_zone,
    find_horizon,
    horizon_mask,
    segment,
    zone_mask,
)

CIRCLE = "circle:60,40,36"


def brightness(photo):
    return photo.mean(axis=-1) / 255


class SkyModel:
    """Stands in for a model: bright pixels are cloud."""

    def segment(self, image, threshold=0.5, horizon=None, *, force=True):
        return segment(brightness, image, threshold, horizon, force=True)


def fisheye(height=240, width=320, x=150, y=118, radius=100, level=150):
    rng = np.random.default_rng(0)
    distance = np.hypot(np.arange(width) - x, np.arange(height)[:, None] - y)
    image = np.where((distance <= radius)[..., None], level, 4) + rng.normal(0, 2, (1, 1, 3))
    return image.clip(0, 255).astype(np.uint8)


# what was found -----------------------------------------------------------------------------------


def test_auto_tells_the_disc_in_pixels_of_the_photo():
    disc = find_horizon("auto", fisheye()).disc
    assert (disc.x, disc.y) == pytest.approx((150, 118), abs=2)
    assert (disc.radius_x, disc.radius_y) == pytest.approx((99, 99), abs=2.5)


@pytest.mark.parametrize("level", [0, 90, 255])
def test_auto_tells_that_there_is_no_disc(level):
    image = np.full((30, 40, 3), level, np.uint8)
    valid, disc = find_horizon("auto", image)
    assert disc is None and valid.all()
    assert SkyModel().segment(image, horizon="auto").disc is None


def test_a_given_circle_is_the_disc_and_other_horizons_have_none():
    image = np.zeros((80, 120, 3), np.uint8)
    assert find_horizon(CIRCLE, image).disc == Disc(60, 40, 36, 36)
    for spec in (None, np.ones((80, 120), bool)):
        assert find_horizon(spec, image).disc is None


def test_horizon_mask_is_the_valid_part():
    image = fisheye()
    for spec in (None, "auto", "circle:150,118,50"):
        assert np.array_equal(horizon_mask(spec, image), find_horizon(spec, image).valid)


def test_a_disc_is_an_ellipse():
    disc = Disc(x=5.5, y=3, radius_x=4, radius_y=2)
    for share in (0.5, 1.0):
        mask = disc.mask((7, 12), share)
        for row in range(7):
            for column in range(12):
                squared = ((column - 5.5) / 4) ** 2 + ((row - 3) / 2) ** 2
                assert mask[row, column] == (squared <= share**2)


# zones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [10, 30, 45.5, 90])
def test_zenith_is_a_circle_by_the_equidistant_projection(degrees):
    zone = zone_mask(f"zenith:{degrees}", (80, 120), Disc(60, 40, 36, 36))
    for row in range(80):
        for column in range(120):
            angle = 90 * np.hypot(column - 60, row - 40) / 36
            assert zone[row, column] == (angle <= degrees)


def test_circles_and_masks_are_zones(tmp_path):
    image = np.zeros((80, 120, 3), np.uint8)
    drawn = np.random.default_rng(0).random((80, 120)) < 0.3
    write_image(tmp_path / "zone.png", drawn.astype(np.uint8) * np.uint8(255))
    for spec in (str(tmp_path / "zone.png"), tmp_path / "zone.png", drawn):
        assert np.array_equal(zone_mask(spec, (80, 120)), drawn)
    assert np.array_equal(zone_mask(CIRCLE, (80, 120)), horizon_mask(CIRCLE, image))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zenith:", "expected 'zenith:DEGREES'"),
        ("zenith:0", "over 0 and at most 90"),
        ("zenith:91", "over 0 and at most 90"),
        ("zenith:-5", "expected 'zenith:DEGREES'"),
        ("zenith:nan", "expected 'zenith:DEGREES'"),
        ("circle:1,2", "zone 'circle:1,2': expected 'circle:x,y,r'"),
        ("circle:500,2,3", "zone 'circle:500,2,3': leaves no sky"),
        ("north", "zone 'north': no such mask picture; give one, 'zenith:DEGREES'"),
        (3, "zone 3: expected 'zenith:DEGREES'"),
        (np.ones((4, 4)), "zone array: 4x4 pixels"),
    ],
)
def test_other_zones_are_refused(spec, message):
    with pytest.raises(DataError, match=message):
        zone_mask(spec, (80, 120), Disc(60, 40, 36, 36))


@pytest.mark.parametrize("horizon", [None, "mask.png", np.ones((8, 8), bool)])
def test_zenith_without_a_disc_says_what_it_needs(horizon):
    with pytest.raises(DataError, match=r"needs the disc of a fisheye: a horizon 'circle"):
        check_zone("zenith:30", horizon)
    with pytest.raises(DataError, match="needs the disc of a fisheye"):
        zone_mask("zenith:30", (8, 8), None)


def test_the_cover_of_a_zone_counts_its_valid_pixels():
    rng = np.random.default_rng(1)
    probabilities = rng.random((6, 9))
    valid = rng.random((6, 9)) < 0.7
    zone = rng.random((6, 9)) < 0.5
    result = Segmentation(np.zeros((6, 9, 3), np.uint8), probabilities, valid)
    cloud = sky = 0
    for p, v, z in zip(probabilities.flat, valid.flat, zone.flat, strict=True):
        cloud += v and z and p >= 0.5
        sky += v and z and p < 0.5
    cover = result.zone_cover(zone)
    assert cover.fraction == pytest.approx(cloud / (cloud + sky))
    assert cover.valid_fraction == pytest.approx((cloud + sky) / 54)
    with pytest.raises(DataError, match="there is none"):
        result.zone_cover("zenith:30")


def cloudy_zenith():
    """Cloud within 30 degrees of the zenith of `CIRCLE`, sky without."""
    distance = np.hypot(np.arange(120) - 60, np.arange(80)[:, None] - 40)
    return np.repeat(np.where(distance <= 12, 250, 50).astype(np.uint8)[..., None], 3, axis=-1)


def test_records_have_the_zones(tmp_path):
    write_image(tmp_path / "in" / "sky.png", cloudy_zenith())
    photos = find_photos([tmp_path / "in"])
    zones = ["zenith:30", "zenith:90", "circle:110,70,5"]
    options = {"horizon": CIRCLE, "zones": zones, "overlay": False}
    (record,) = predict_files(SkyModel(), photos, tmp_path / "out", **options)
    assert list(record["zones"]) == zones
    assert record["zones"]["zenith:30"]["percent"] == 100
    assert record["zones"]["zenith:90"] == record["cloud_cover"]
    assert record["cloud_cover"]["fraction"] == pytest.approx(1 / 9, abs=0.01)
    outside = {"fraction": None, "percent": None, "okta": None, "valid_fraction": 0.0}
    assert record["zones"]["circle:110,70,5"] == outside
    assert record["disc"] == {"x": 60.0, "y": 40.0, "radius_x": 36.0, "radius_y": 36.0}
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == [record]


def test_a_photo_without_a_disc_keeps_the_cover_of_the_whole(tmp_path):
    write_image(tmp_path / "in" / "sky.png", np.full((30, 40, 3), 250, np.uint8))
    photos = find_photos([tmp_path / "in"])
    options = {"horizon": "auto", "zones": ["zenith:30"], "overlay": False}
    (record,) = predict_files(SkyModel(), photos, tmp_path / "out", **options)
    assert record["cloud_cover"]["percent"] == 100
    assert record["disc"] is None and record["zones"] == {"zenith:30": None}


def test_a_transparent_part_counts_in_no_zone(tmp_path):
    alpha = np.full((80, 120, 1), 255, np.uint8)
    alpha[:40] = 0
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(np.concatenate([cloudy_zenith(), alpha], axis=-1))
    picture.save(tmp_path / "in" / "sky.png")
    photos = find_photos([tmp_path / "in"])
    options = {"horizon": CIRCLE, "zones": ["zenith:30"], "overlay": False}
    (record,) = predict_files(SkyModel(), photos, tmp_path / "out", **options)
    assert record["disc"]["radius_x"] == 36
    half = Disc(60, 40, 36, 36).mask((80, 120), 1 / 3)[40:].sum() / (80 * 120)
    assert record["zones"]["zenith:30"]["valid_fraction"] == pytest.approx(half)
    assert record["zones"]["zenith:30"]["percent"] == 100


@pytest.mark.parametrize("zone", ["zenith:30", "no/such.png", "circle:1"])
def test_a_wrong_zone_is_said_once(tmp_path, zone):
    write_image(tmp_path / "in" / "sky.png", cloudy_zenith())
    photos = find_photos([tmp_path / "in"])
    with pytest.raises(DataError, match=f"zone '{zone}'"):
        next(predict_files(SkyModel(), photos, tmp_path / "out", zones=[zone]))
    assert not (tmp_path / "out").exists()


def test_the_printed_line_tells_zones_and_a_missing_disc(tmp_path, capsys):
    write_image(tmp_path / "round.png", fisheye())
    write_image(tmp_path / "flat.png", np.full((60, 80, 3), 120, np.uint8))
    options = ["--horizon", "auto", "--zone", "zenith:30", "--zone", "circle:40,30,9", "--force"]
    paths = [str(tmp_path / name) for name in ("round.png", "flat.png")]
    cli.main(["predict", *paths, "--out", str(tmp_path / "out"), "--no-overlay", *options])
    lines = capsys.readouterr().out.splitlines()
    assert "zenith:30" in lines[0] and "circle:40,30,9" in lines[0]
    assert "no disc found" not in lines[0]
    assert "zenith:30 unknown" in lines[1] and "no disc found" in lines[1]
