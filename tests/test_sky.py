"""Cloud cover, horizons and what is shown: small cases by hand, photos of known geometry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from ddunet_keras.files import IGNORE, DataError, write_image
from ddunet_keras.images import resize_probabilities
from ddunet_keras.sky import (
    CLOUD_COLORS,
    CloudCover,
    Segmentation,
    check_horizon,
    cloud_cover,
    horizon_mask,
)
from ddunet_keras.sky.reading import read_image


def gray(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


def fisheye(height, width, x, y, radius, sky=140, around=4, seed=0):
    """A noisy disc with a bright spot and dark patches on dark surroundings, and where it is."""
    rng = np.random.default_rng(seed)
    inside = np.hypot(np.arange(width) - x, np.arange(height)[:, None] - y) <= radius
    image = np.where(inside[..., None], sky, around) + rng.normal(0, 3, (height, width, 3))
    spot = np.hypot(np.arange(width) - x - radius / 2, np.arange(height)[:, None] - y) < radius / 8
    image[spot] = 255
    patch = np.hypot(np.arange(width) - x, np.arange(height)[:, None] - y - radius / 2) < radius / 5
    image[patch] *= 0.5
    return image.clip(0, 255).astype(np.uint8), inside


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


# cloud cover ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "okta"),
    [
        *((0.0, 0), (1e-9, 1), (0.06, 1), (0.18, 1), (0.19, 2), (0.25, 2), (0.31, 2), (0.32, 3)),
        *((0.4375, 4), (0.5, 4), (0.5625, 5), (0.68, 5), (0.6875, 6), (0.8125, 7), (0.875, 7)),
        *((0.94, 7), (1 - 1e-9, 7), (1.0, 8)),
    ],
)
def test_okta_follows_the_wmo_table(fraction, okta):
    assert CloudCover(fraction, 1.0).okta == okta


def test_okta_is_the_nearest_eighth_between_trace_and_gap():
    for fraction in np.linspace(0.0626, 0.9374, 999):
        nearest = min(range(9), key=lambda eighths: abs(eighths / 8 - fraction))
        assert CloudCover(float(fraction), 1.0).okta == nearest


@pytest.mark.parametrize("seed", range(4))
def test_cloud_cover_equals_counting_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (7, 11))
    valid = rng.random((7, 11)) < 0.7
    sky = cloud = 0
    for label, counts in zip(labels.ravel().tolist(), valid.ravel().tolist(), strict=True):
        if counts and label != 255:
            cloud += label > 0
            sky += label == 0
    cover = cloud_cover(labels, valid)
    assert cover.fraction == pytest.approx(cloud / (sky + cloud), abs=1e-12)
    assert cover.percent == pytest.approx(100 * cloud / (sky + cloud), abs=1e-10)
    assert cover.valid_fraction == pytest.approx((sky + cloud) / 77, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 8)])
@pytest.mark.parametrize(("label", "okta"), [(0, 0), (1, 8), (2, 8)])
def test_uniform_skies(shape, label, okta):
    cover = cloud_cover(np.full(shape, label, np.uint8))
    assert (cover.fraction, cover.okta, cover.valid_fraction) == (float(label > 0), okta, 1.0)


def test_without_a_valid_pixel_the_cover_is_unknown():
    for cover in (
        cloud_cover(np.full((2, 3), IGNORE, np.uint8)),
        cloud_cover(np.ones((2, 3), np.uint8), np.zeros((2, 3), bool)),
        cloud_cover(np.zeros((0, 0), np.uint8)),
    ):
        assert math.isnan(cover.fraction) and math.isnan(cover.percent)
        assert cover.okta is None and cover.valid_fraction == 0.0


def test_covers_are_plain_numbers_whoever_makes_them():
    labels = np.array([[0, 1, 1, IGNORE]], np.uint8)
    covers = [cloud_cover(labels), CloudCover(np.float32(0.5), np.float64(1.0))]
    photo = np.zeros((1, 4, 3), np.uint8)
    covers.append(Segmentation(photo, labels / np.float32(255)).cloud_cover)
    for cover in covers:
        values = [cover.fraction, cover.valid_fraction, cover.percent]
        values += [cover.to_dict()[key] for key in ("fraction", "percent", "valid_fraction")]
        assert {type(value) for value in values} == {float}
        assert type(cover.okta) is int and type(cover.to_dict()["okta"]) is int


@pytest.mark.parametrize("values", [(-0.1, 1), (1.1, 1), (0.5, 2), (float("inf"), 1)])
def test_shares_outside_their_range_are_refused(values):
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\], received"):
        CloudCover(*values)


def test_boolean_labels_are_cloud_or_not():
    assert cloud_cover(np.array([[True, False, False, False]])).fraction == 0.25


def test_cover_as_plain_numbers():
    assert json.loads(json.dumps(cloud_cover(np.array([[0, 1, 1, IGNORE]])).to_dict())) == {
        "fraction": 2 / 3,
        "percent": pytest.approx(200 / 3),
        "okta": 5,
        "valid_fraction": 0.75,
    }


@pytest.mark.parametrize(
    ("labels", "valid", "message"),
    [
        (np.zeros((2, 2)), None, r"received float64 of shape \(2, 2\)"),
        (np.zeros((2, 2, 1), int), None, r"\(2, 2, 1\)"),
        (np.zeros((2, 3), int), np.ones((3, 2), bool), r"shape \(2, 3\), received bool .*\(3, 2\)"),
        (np.zeros((2, 3), int), np.ones((2, 3), int), "received int64"),
    ],
)
def test_labels_and_valid_of_other_kinds_are_refused(labels, valid, message):
    with pytest.raises(ValueError, match=message):
        cloud_cover(labels, valid)


# horizon ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (4, 9)])
@pytest.mark.parametrize("spec", [None, "auto"])
def test_without_horizon_all_is_sky(shape, spec):
    valid = horizon_mask(spec, gray(*shape, 90))
    assert valid.shape == shape and valid.dtype == bool and valid.all()


@pytest.mark.parametrize(
    ("spec", "x", "y", "radius"),
    [
        ("circle:4,3,2.5", 4, 3, 2.5),
        ("circle: 4.5 , -1 , 3", 4.5, -1, 3),
        ("circle:.5,7.,0.9", 0.5, 7, 0.9),
    ],
)
def test_circle(spec, x, y, radius):
    valid = horizon_mask(spec, gray(8, 11))
    for row in range(8):
        for column in range(11):
            assert valid[row, column] == ((column - x) ** 2 + (row - y) ** 2 <= radius**2)


@pytest.mark.parametrize(
    "spec",
    ["circle:", "circle:1,2", "circle:1,2,3,4", "circle:a,b,c", "circle:1,2,0", "circle:1,2,-3"]
    + ["circle:1;2;3", "circle:nan,2,3", "circle:1,2,inf", "circle:1,2,3px"],
)
def test_circle_of_another_form_is_refused(spec):
    with pytest.raises(DataError, match=rf"'{spec}': expected 'circle:x,y,r'"):
        horizon_mask(spec, gray(8, 8))


@pytest.mark.parametrize("spec", ["circle:50,50,3", "circle:2.5,2.5,0.2"])
def test_circle_without_a_pixel_is_refused(spec):
    with pytest.raises(DataError, match=f"'{spec}'.*leaves no sky in a photo of 11x8"):
        horizon_mask(spec, gray(8, 11))


@pytest.mark.parametrize("high", [1, 255])
def test_mask_from_file_or_array(tmp_path, high):
    mask = np.random.default_rng(0).random((6, 10)) < 0.5
    write_image(tmp_path / "mask.png", mask.astype(np.uint8) * np.uint8(high))
    for spec in (tmp_path / "mask.png", str(tmp_path / "mask.png"), mask, mask * float(high)):
        assert np.array_equal(horizon_mask(spec, gray(6, 10)), mask)


@pytest.mark.parametrize("name", ["mask.gif", "mask.png"])
def test_masks_with_a_palette_are_read_by_colour(tmp_path, name):
    sky = np.arange(12).reshape(3, 4) > 5
    mask = Image.fromarray(sky).convert("RGB").quantize(2)
    assert mask.mode == "P" and mask.getpalette()[:3] == [255, 255, 255]  # index 0 is white
    mask.save(tmp_path / name)
    np.testing.assert_array_equal(horizon_mask(tmp_path / name, gray(3, 4)), sky)


def test_jpeg_masks_are_cut_at_half(tmp_path):
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 16:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=70)
    assert overlap(horizon_mask(tmp_path / "mask.jpg", gray(32, 48)), mask > 0) > 0.98


@pytest.mark.parametrize("factor", [2, 3])
def test_mask_of_another_scale_is_resized_to_the_nearest(factor):
    mask = np.random.default_rng(1).random((5, 7)) < 0.5
    large = np.kron(mask, np.ones((factor, factor), bool))
    assert np.array_equal(horizon_mask(mask, gray(5 * factor, 7 * factor)), large)
    assert np.array_equal(horizon_mask(large, gray(5, 7)), mask)


def test_mask_of_other_proportions_is_refused(tmp_path):
    write_image(tmp_path / "mask.png", np.full((10, 6), 255, np.uint8))
    for spec in (tmp_path / "mask.png", np.ones((10, 6))):
        with pytest.raises(DataError, match="6x10 pixels for a photo of 10x6"):
            horizon_mask(spec, gray(6, 10))


def test_files_that_are_no_masks_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "noise.png").write_bytes(np.random.default_rng(0).bytes(500))
    for name in ("empty.png", "noise.png", "absent.png", "."):
        with pytest.raises(DataError, match=str(tmp_path / name)):
            horizon_mask(tmp_path / name, gray(6, 10))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("otto", "'otto': no such mask picture; give one, 'auto' or 'circle:x,y,r'"),
        (3.5, "3.5: expected None"),
        (np.zeros((8, 8)), "leaves no sky"),
        (np.ones((8, 8, 3)), r"received float64 of \(8, 8, 3\)"),
        (np.array([["a"]]), "received <U1"),
    ],
)
def test_other_horizons_are_refused(spec, message):
    with pytest.raises(DataError, match=message):
        horizon_mask(spec, gray(8, 8))


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))])
def test_horizon_of_no_photo_is_refused(image):
    with pytest.raises(ValueError, match="`image` must be uint8 of shape"):
        horizon_mask("auto", image)


@pytest.mark.parametrize(
    ("height", "width", "x", "y", "radius", "sky", "around"),
    [
        (300, 300, 150, 150, 140, 140, 4),
        (300, 400, 190, 155, 130, 140, 4),
        (480, 270, 130, 260, 120, 200, 20),
        (960, 1280, 600, 480, 455, 90, 0),
        (300, 400, 200, 150, 180, 140, 4),
        (300, 300, 150, 150, 140, 30, 4),
    ],
    ids=["centred", "wide", "tall", "large", "cut by the frame", "night"],
)
def test_auto_finds_the_disc(height, width, x, y, radius, sky, around):
    image, inside = fisheye(height, width, x, y, radius, sky, around)
    assert overlap(horizon_mask("auto", image), inside) > 0.95


@pytest.mark.parametrize(
    "image",
    [
        gray(200, 300, 0),
        gray(200, 300, 255),
        np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8),
        fisheye(240, 320, 160, 120, 100, sky=200, around=120)[0],
        fisheye(240, 320, 160, 120, 40, sky=200, around=10)[0],
        np.repeat((np.indices((200, 300)).sum(0) // 40 % 2 * 200)[..., None], 3, 2).astype(
            np.uint8
        ),
    ],
    ids=["black", "white", "noise", "round cloud", "moon", "squares"],
)
def test_auto_keeps_photos_without_a_dark_surround(image):
    assert horizon_mask("auto", image).all()


@pytest.mark.shared
def test_auto_on_real_photos(shared):
    folder = shared / "data/wsiseg-240"
    for path in sorted(folder.glob("images/*.jpg"))[::16]:
        annotated = np.asarray(Image.open(folder / "annotation" / f"{path.stem}.png")) > 0
        assert overlap(horizon_mask("auto", read_image(path)), annotated) > 0.94, path.name
    for path in sorted((shared / "data/swinyseg-base/images").glob("*.jpg"))[::12]:
        assert horizon_mask("auto", read_image(path)).all(), path.name


# segmentation -----------------------------------------------------------------------------------


def test_labels_mask_and_cover_of_two_classes():
    valid = np.array([[True, True, True], [True, True, False]])
    result = Segmentation(
        gray(2, 3, 100), np.array([[0.1, 0.5, 0.49], [0.9, 0.0, 1.0]]), valid, threshold=0.5
    )
    assert result.labels.tolist() == [[0, 1, 0], [1, 0, IGNORE]]
    assert result.mask.tolist() == [[0, 255, 0], [255, 0, 128]]
    assert result.labels.dtype == result.mask.dtype == np.uint8
    assert result.probabilities.dtype == np.float32
    assert result.num_classes == 2
    cover = {
        "fraction": 0.4,
        "percent": 40.0,
        "okta": 3,
        "valid_fraction": pytest.approx(5 / 6),
    }
    known = {"usable": True, "reason": None, "confidence": None}
    assert result.to_dict() == {"cloud_cover": cover} | known


@pytest.mark.parametrize(("threshold", "cloudy"), [(0.0, 3), (0.25, 3), (0.6, 2), (1.0, 1)])
def test_threshold(threshold, cloudy):
    result = Segmentation(gray(1, 3), np.array([[0.25, 0.75, 1.0]]), threshold=threshold)
    assert (result.labels == 1).sum() == cloudy


def test_another_threshold_may_be_set_afterwards():
    result = Segmentation(gray(1, 3), np.array([[0.25, 0.75, 1.0]]))
    assert result.mask.tolist() == [[0, 255, 255]]
    result.threshold = 0.8
    assert result.mask.tolist() == [[0, 0, 255]]


def test_labels_mask_and_cover_of_three_classes():
    truth = np.array([[0, 1, 2, 2], [1, 0, 0, 0]])
    valid = np.array([[True] * 4, [True, True, True, False]])
    result = Segmentation(gray(2, 4), 0.4 * np.eye(3)[truth] + 0.2, valid)
    expected = [[0, 1, 2, 2], [1, 0, 0, IGNORE]]
    assert result.labels.tolist() == result.mask.tolist() == expected
    assert result.num_classes == 3
    assert result.cloud_cover.fraction == pytest.approx(4 / 7)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_of_the_networks_size_are_enlarged(classes):
    rng = np.random.default_rng(0)
    small = rng.random((5, 7)) if classes == 2 else rng.dirichlet(np.ones(3), (5, 7))
    valid = rng.random((70, 50)) < 0.8
    result = Segmentation(gray(70, 50), small, valid, threshold=0.4)
    large = resize_probabilities(small, (70, 50))
    expected = Segmentation(gray(70, 50), large, valid, threshold=0.4)
    assert np.array_equal(result.probabilities, large)
    assert np.array_equal(result.labels, expected.labels)
    assert result.num_classes == classes
    truth = large >= 0.4 if classes == 2 else large.argmax(axis=-1)
    assert np.array_equal(result.labels, np.where(valid, truth, IGNORE))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (40, 25)])
def test_clear_and_overcast_skies_of_any_size(shape, value):
    result = Segmentation(gray(*shape, 100), np.full(shape, value))
    assert result.cloud_cover.okta == int(8 * value)
    overlay = result.overlay()
    assert overlay.shape == (*shape, 3) and overlay.dtype == np.uint8
    assert len(np.unique(overlay.reshape(-1, 3), axis=0)) == 1
    assert (overlay == 100).all() == (value == 0.0)


def test_nothing_valid():
    result = Segmentation(gray(4, 5, 200), np.ones((4, 5)), np.zeros((4, 5), bool))
    assert result.cloud_cover.okta is None
    assert (result.mask == 128).all() and (result.overlay() < 100).all()


@pytest.mark.parametrize("alpha", [0.0, 0.45, 1.0])
def test_overlay_blends_cloud_keeps_sky_and_darkens_the_rest(alpha):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    probabilities, valid = np.zeros((30, 40)), np.ones((30, 40), bool)
    probabilities[:, :20] = 1
    valid[20:] = False
    overlay = Segmentation(image, probabilities, valid).overlay(alpha).astype(float)
    blended = (1 - alpha) * image[:20, :18] + alpha * np.array(CLOUD_COLORS[0])
    assert abs(overlay[:20, :18] - blended).max() <= 1
    assert np.array_equal(overlay[:20, 22:], image[:20, 22:])
    assert (overlay[20:] <= 0.5 * image[20:]).all()


@pytest.mark.parametrize("shape", [(30, 40), (400, 600), (1500, 1100)])
def test_a_line_that_grows_with_the_photo_runs_where_classes_meet(shape):
    width = shape[1]
    probabilities = np.zeros(shape)
    probabilities[:, : width // 2] = 1
    line = (Segmentation(gray(*shape), probabilities).overlay() == 255).all(axis=-1)
    columns = np.flatnonzero(line.any(axis=0))
    assert line[:, columns].all()
    assert len(columns) == columns[-1] - columns[0] + 1
    assert abs(columns.mean() - (width / 2 - 0.5)) <= 0.5
    assert 0.003 <= len(columns) / min(shape) <= 0.04


def test_no_line_along_the_horizon():
    valid = np.zeros((20, 20), bool)
    valid[5:15, 5:15] = True
    overlay = Segmentation(gray(20, 20, 90), np.ones((20, 20)), valid).overlay()
    assert not (overlay == 255).all(axis=-1).any()


@pytest.mark.parametrize("classes", [3, 4, 7])
def test_every_cloud_class_has_a_tint(classes):
    truth = np.repeat(np.arange(classes), 10)[None].repeat(10, axis=0)
    overlay = Segmentation(gray(*truth.shape, 128), np.eye(classes)[truth]).overlay()
    tints = {tuple(overlay[5, 10 * k + 5].tolist()) for k in range(1, min(classes, 5))}
    assert len(tints) == min(classes, 5) - 1
    assert (128, 128, 128) not in tints


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((2, 3, 3))}, "`image` must be uint8"),
        ({"image": np.zeros((2, 3), np.uint8)}, r"Received: uint8 of shape \(2, 3\)"),
        ({"probabilities": np.zeros((2, 3, 1))}, r"expected shape \(h, w\).*received \(2, 3, 1\)"),
        ({"probabilities": np.zeros((0, 3))}, r"received \(0, 3\)"),
        ({"probabilities": np.zeros(6)}, r"received \(6,\)"),
        ({"probabilities": np.full((2, 3), 1.5)}, "received 1.5 to 1.5; apply the sigmoid"),
        ({"probabilities": np.full((2, 3), -3.0)}, "received -3.0"),
        ({"probabilities": np.full((2, 3), np.nan)}, "received nan"),
        ({"valid": np.ones((3, 2), bool)}, "valid: expected booleans"),
        ({"valid": np.ones((2, 3))}, "received float64"),
        ({"threshold": 1.2}, "threshold.*received 1.2"),
        ({"threshold": math.nan}, "threshold.*received nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"image": gray(2, 3), "probabilities": np.zeros((2, 3))}
    with pytest.raises(ValueError, match=message):
        Segmentation(**{**good, **arguments})


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_overlay_opacity_is_checked(alpha):
    with pytest.raises(ValueError, match=f"alpha.*received {alpha}"):
        Segmentation(gray(2, 3), np.zeros((2, 3))).overlay(alpha)


def test_rounding_a_little_over_one_is_clipped():
    result = Segmentation(gray(1, 2), np.float32([[1.0000002, -1e-7]]))
    assert result.probabilities.max() <= 1 and result.probabilities.min() >= 0


def test_a_horizon_mask_that_is_no_file_is_named(tmp_path, put_no_file):
    put_no_file(tmp_path / "mask.png")
    for ask in (check_horizon, lambda spec: horizon_mask(spec, gray(8, 8))):
        with pytest.raises(DataError, match=r"horizon .*mask\.png"):
            ask(str(tmp_path / "mask.png"))


def test_a_horizon_is_checked_without_a_photo(tmp_path):
    write_image(tmp_path / "mask.png", np.full((8, 8), 255, np.uint8))
    for spec in (None, "auto", "circle:4,4,2", tmp_path / "mask.png"):
        check_horizon(spec)
    with pytest.raises(DataError, match="expected 'circle:x,y,r'"):
        check_horizon("circle:4,4")
