"""Scores on cameras: masks and words, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ddunet_keras.camera_scores import cameras_markdown, open_camera, score_camera
from ddunet_keras.files import DataError, write_image
from ddunet_keras.sky import Segmentation


class Bright:
    """Stands in for a model: bright pixels are cloud; black photos are unusable."""

    def segment(self, image, threshold=0.5, horizon=None, *, force=False):
        brightness = image.mean(axis=-1) / 255
        return Segmentation(image, brightness, reason=None if image.any() else "black")


def gray(*rows):
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1)


@pytest.fixture
def with_masks(tmp_path):
    folder = tmp_path / "dome"
    frames = {
        "a": (gray([10, 200], [10, 200]), [[0, 255], [255, 255]]),
        "b": (gray([200, 200], [200, 200]), [[0, 255], [128, 128]]),
        "c": (gray([0, 0], [0, 0]), [[255, 255], [255, 255]]),
    }
    for name, (image, mask) in frames.items():
        write_image(folder / "images" / f"{name}.png", image)
        write_image(folder / "masks" / f"{name}.png", np.array(mask, np.uint8))
    return folder


@pytest.fixture
def with_words(tmp_path):
    folder = tmp_path / "words"
    covers = {"one": 10, "two": 20, "three": 90, "four": 50, "five": 0}
    for name, percent in covers.items():
        image = np.full((10, 10, 3), 20, np.uint8)
        image.reshape(100, 3)[:percent] = 250
        write_image(folder / "images" / f"{name}.png", image if name != "five" else image * 0)
    lines = ["Name,Sky", "one,clear", "two,clear", "three,Overcast", "four,moon", "five,clear"]
    (folder / "frames.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_scores_with_masks_are_means_over_usable_frames(with_masks):
    scores = score_camera(Bright(), open_camera(with_masks))
    assert scores["camera"] == "dome"
    assert (scores["frames"], scores["usable"]) == (3, pytest.approx(2 / 3))
    assert scores["accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    # a: sky 1/2, cloud 2/3; b: sky 0, cloud 1/2
    assert scores["miou"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 4) / 2)
    # covers: 50 for 75 %, 100 for 50 %
    assert scores["cover_error"] == pytest.approx((25 + 50) / 2)
    assert scores["cover_bias"] == pytest.approx((-25 + 50) / 2)


def test_words_judge_the_cover(with_words):
    scores = score_camera(Bright(), open_camera(with_words))
    assert (scores["frames"], scores["usable"]) == (5, pytest.approx(4 / 5))
    clear, moon, overcast = (scores["words"][word] for word in ("clear", "moon", "overcast"))
    assert clear == {"frames": 3, "usable": 2, "right": 1, "lowest": 0.1, "highest": 0.2}
    assert overcast == {"frames": 1, "usable": 1, "right": 1, "lowest": 0.9, "highest": 0.9}
    assert moon == {"frames": 1, "usable": 1, "right": None, "lowest": 0.5, "highest": 0.5}


def test_a_camera_without_a_usable_frame_has_no_scores(with_masks):
    for path in (with_masks / "images").iterdir():
        write_image(path, gray([0, 0], [0, 0]))
    scores = score_camera(Bright(), open_camera(with_masks))
    assert scores["usable"] == 0 and scores["accuracy"] is None
    about = {"model": "c8", "size": [96, 96], "dtype": "int8"}
    assert "| n/a | n/a | n/a | n/a |" in cameras_markdown([about | scores])


def test_tables(with_masks, with_words):
    about = {"model": "ddunet_c8", "size": [96, 128], "dtype": "int8"}
    rows = [about | score_camera(Bright(), open_camera(path)) for path in (with_masks, with_words)]
    text = cameras_markdown(rows)
    assert "| dome | ddunet_c8 | 96x128 | int8 | 3 | 66.7 | 62.5 | 41.7 | 37.5 | +12.5 |" in text
    assert "| clear | overcast | moon |" in text
    assert "| 80.0 | 1 of 2; 10 to 20 % | 1 of 1; 90 to 90 % | -; 50 to 50 % |" in text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "found nothing"),
        ("file,word\none,clear\n", "found file, word"),
        ("name,sky\none,clear\none,moon\n", "line 3"),
        ("name,sky\none,\n", "line 2"),
        ("name,sky\n", "has no frame"),
        ("name,sky\none,clear\nsix,clear\n", "names no file in images/: six"),
        ("name,sky\none,clear\n", "has no line for five"),
    ],
)
def test_tables_that_cannot_be_used_are_named(with_words, table, message):
    (with_words / "frames.csv").write_text(table)
    with pytest.raises(DataError, match=f"frames.csv.*{message}"):
        open_camera(with_words)


def test_a_folder_of_neither_kind_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        open_camera(tmp_path / "nowhere")
