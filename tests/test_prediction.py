import json
import os

import numpy as np
import pytest
from PIL import Image

from ddunet_keras.files import DataError, WriteError, read_gray
from ddunet_keras.prediction import count_left_out, find_photos, predict_files
from ddunet_keras.sky import Segmentation, segment
from ddunet_keras.sky.reading import read_image


class Bright:
    """Stands in for a model: bright pixels are cloud."""

    def segment(self, image, threshold=0.5, horizon=None, force=False):
        valid = None
        if horizon is not None:
            valid = np.zeros(image.shape[:2], bool)
            valid[:horizon] = True
        return Segmentation(image, image.mean(axis=-1) / 255, valid, threshold)


class SkyModel:
    """Stands in for a model: takes what the package's own models take."""

    def segment(self, image, threshold=0.5, horizon=None, force=False):
        predictor = lambda photo: photo.mean(axis=-1) / 255  # noqa: E731
        return segment(predictor, image, threshold, horizon, force=True)


def photo(path, value=255, size=(24, 18), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path, **options)
    return path


def test_photos_are_found_once_and_named_apart(tmp_path):
    folder = tmp_path / "photos"
    paths = [photo(folder / name) for name in ("a.jpg", "a.png", "B.PNG", "c.webp")]
    other = photo(tmp_path / "other" / "A.jpg")
    (folder / "notes.txt").write_text("no photo")
    photo(folder / ".hidden.jpg")
    named = find_photos([folder, folder / "a.jpg", str(other)])
    assert sorted(named.values()) == sorted([*paths, other])
    assert len({name.casefold() for name in named}) == len(named)
    assert named["a"] == folder / "a.jpg" and named["A-3"] == other


def test_a_name_that_a_photo_bears_is_not_given_away(tmp_path):
    for name in ("sky.jpg", "sky.png", "sky-2.jpg"):
        photo(tmp_path / name)
    assert len(find_photos([tmp_path])) == 3


def test_what_allsky_makes_of_the_frames_is_no_frame(tmp_path):
    day = tmp_path / "20260601"
    frame = photo(day / "image-20260601220000.jpg")
    photo(day / "keogram" / "keogram-20260601.jpg")
    photo(day / "thumbnails" / frame.name)
    photo(day / "startrails-20260601.jpg")
    assert list(find_photos([tmp_path], recursive=True).values()) == [frame]
    assert count_left_out([tmp_path], recursive=True) == {"keogram or the like": 3}
    # what is named itself is taken
    assert len(find_photos([day / "keogram"], recursive=True)) == 1
    assert len(find_photos([day])) == 2


@pytest.mark.parametrize("files", [(), ("notes.txt",)])
def test_a_folder_without_photos_is_an_error(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="holds no photos"):
        find_photos([tmp_path])


def test_results_lie_beside_one_json(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / "sky.png", 200, (31, 17))])
    out = tmp_path / "out"
    (record,) = predict_files(Bright(), photos, out, threshold=0.7, model="m.keras")
    assert np.array_equal(read_gray(out / record["mask"]), np.full((17, 31), 255))
    assert read_image(out / record["overlay"]).shape == (17, 31, 3)
    assert (record["width"], record["height"], record["model"]) == (31, 17, "m.keras")
    assert record["cloud_cover"]["percent"] == 100 and record["cloud_cover"]["okta"] == 8
    assert record["seconds"] >= 0
    assert json.loads((out / "predictions.json").read_text()) == [record]
    assert sorted(os.listdir(out)) == ["predictions.json", "sky_mask.png", "sky_overlay.jpg"]


def test_without_overlay_and_with_a_horizon(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / "sky.jpg", 0)])
    options = {"overlay": False, "horizon": 9}
    (record,) = predict_files(Bright(), photos, tmp_path / "out", **options)
    assert record["cloud_cover"]["valid_fraction"] == 0.5 and "overlay" not in record
    mask = read_gray(tmp_path / "out" / "sky_mask.png")
    assert (mask[:9] == 0).all() and (mask[9:] == 128).all()


def test_a_turned_photo_gives_an_upright_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photos = find_photos([photo(tmp_path / "in" / "sky.jpg", size=(40, 20), exif=exif)])
    (record,) = predict_files(Bright(), photos, tmp_path / "out")
    assert read_gray(tmp_path / "out" / record["mask"]).shape == (40, 20)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", os.urandom(999), None])
def test_a_broken_photo_stops_no_other(tmp_path, content):
    good = [photo(tmp_path / "in" / f"{name}.png") for name in "ac"]
    broken = tmp_path / "in" / "b.png"
    if content is not None:
        broken.write_bytes(content)
    photos = find_photos([good[0], broken, good[1]])
    records = list(predict_files(Bright(), photos, tmp_path / "out"))
    assert ["error" in record for record in records] == [False, True, False]
    assert str(broken) in records[1]["error"] and "\n" not in records[1]["error"]
    assert not (tmp_path / "out" / "b_mask.png").exists()
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 3


def test_an_interrupted_run_keeps_what_it_has(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / f"{name}.png") for name in "abc"])
    records = predict_files(Bright(), photos, tmp_path / "out")
    first = next(records)
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == [first]


def test_results_do_not_go_among_the_photos(tmp_path):
    photos = find_photos([photo(tmp_path / "sky.png")])
    with pytest.raises(DataError, match="give another"):
        next(predict_files(Bright(), photos, tmp_path))
    assert os.listdir(tmp_path) == ["sky.png"]


def test_a_photo_too_long_for_jpeg_gets_a_png_overlay(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / "wide.png", size=(65_501, 2))])
    (record,) = predict_files(Bright(), photos, tmp_path / "out")
    assert record["overlay"] == "wide_overlay.png"
    assert read_image(tmp_path / "out" / record["overlay"]).shape == (2, 65_501, 3)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"\x1b[31m", b"$x_{$", "ü".encode() * 120])
def test_photos_of_any_name_have_results(tmp_path, name):
    path = tmp_path / "in" / os.fsdecode(name + b".png")
    photo(path)
    out = tmp_path / "out"
    (record,) = predict_files(Bright(), find_photos([path.parent]), out)
    (read,) = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert read == record and read["image"] == str(path)
    for kind in ("mask", "overlay"):
        assert (out / read[kind]).is_file()


def test_long_names_that_differ_at_their_ends_stay_apart(tmp_path):
    paths = [photo(tmp_path / ("x" * 240 + f"{number}.png")) for number in range(3)]
    assert sorted(find_photos([tmp_path]).values()) == paths


def test_what_is_no_file_stops_no_other_photo(tmp_path, put_no_file):
    photo(tmp_path / "in" / "good.png")
    bad = tmp_path / "in" / "bad\n.png"
    kind = put_no_file(bad)
    records = list(predict_files(Bright(), find_photos([tmp_path / "in"]), tmp_path / "out"))
    errors = [record["error"] for record in records if "error" in record]
    assert len(records) - len(errors) == 1
    assert len(errors) == (kind not in ("missing", "folder"))
    assert all("\n" not in error and "bad" in error for error in errors)


def test_where_results_cannot_be_written_no_further_photo_is_read(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / f"{name}.png") for name in "abc"])
    (tmp_path / "out").touch()
    with pytest.raises(WriteError, match="out"):
        next(predict_files(Bright(), photos, tmp_path / "out"))


@pytest.mark.parametrize("horizon", ["circle:1,2", "no/such/mask.png"])
def test_a_wrong_horizon_is_said_once(tmp_path, horizon):
    photos = find_photos([photo(tmp_path / "in" / f"{name}.png") for name in "abc"])
    with pytest.raises(DataError, match=horizon):
        next(predict_files(Bright(), photos, tmp_path / "out", horizon=horizon))
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_in_the_results_is_removed(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / "sky.png")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".partial-old.png").touch()
    os.utime(tmp_path / "out" / ".partial-old.png", (0, 0))
    list(predict_files(Bright(), photos, tmp_path / "out", overlay=False))
    assert sorted(os.listdir(tmp_path / "out")) == ["predictions.json", "sky_mask.png"]


def test_a_horizon_of_an_array_leaves_readable_json(tmp_path):
    photos = find_photos([photo(tmp_path / "in" / "sky.png")])
    model = SkyModel()
    (record,) = predict_files(model, photos, tmp_path / "out", horizon=np.ones((18, 24), bool))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == [record]
