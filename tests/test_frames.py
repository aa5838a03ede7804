from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddunet_keras.data.frames import Frame, hold_back, open_frames
from ddunet_keras.files import DataError, write_image


@pytest.fixture
def photos(tmp_path):
    """A folder of four photos."""
    for name in ("a", "b", "c", "d"):
        write_image(tmp_path / f"{name}.png", np.full((20, 30, 3), 90, np.uint8))
    return tmp_path


def test_words_numbers_and_masks(photos):
    rows = "Name;Sky\na.png;Clear\nb;overcast\nc;40 %\nd;partly\n"
    (photos / "frames.csv").write_text(rows)
    frames = open_frames(photos)
    assert [frame.cover for frame in frames.frames] == [0.0, 1.0, 0.4]
    assert frames.left_out == ("1 (d) whose sky is 'partly'",)
    assert [frames.load(frame)[1].max() for frame in frames.frames] == [0, 1, 0]

    mask = np.zeros((20, 30), np.uint8)
    mask[:5] = 255
    write_image(photos / "masks" / "d_mask.png", mask)
    frames = open_frames(photos)
    assert frames.left_out == ()
    assert frames.describe() == (
        "frames: 1 clear, 1 overcast, 1 with a cover of 40 to 40 %, 1 with a mask"
    )
    assert frames.load(frames.frames[-1])[1].mean() == 0.25


def test_frames_without_a_row_are_said(photos):
    (photos / "frames.csv").write_text("image\tcover\na\tclear\nb\t100\n")
    frames = open_frames(photos)
    assert frames.left_out == ("2 (c, d) without a word, number or mask",)


def test_outside_the_horizon_frames_are_black_and_ignored(photos):
    (photos / "frames.csv").write_text("name,sky\na,overcast\n")
    frames = open_frames(photos, horizon="circle:15,10,5")
    image, labels = frames.load(frames.frames[0])
    inside = np.hypot(np.arange(30) - 15, np.arange(20)[:, None] - 10) <= 5
    np.testing.assert_array_equal(labels, np.where(inside, 1, 255))
    np.testing.assert_array_equal(image[..., 0], np.where(inside, 90, 0))


def test_what_is_transparent_is_ignored(photos):
    rgba = np.full((20, 30, 4), 255, np.uint8)
    rgba[:, :10, 3] = 0
    Image.fromarray(rgba).save(photos / "a.png")
    Image.fromarray(rgba).save(photos / "b.png")
    write_image(photos / "masks" / "b.png", np.zeros((20, 30), np.uint8))
    (photos / "frames.csv").write_text("name,sky\na,overcast\n")
    frames = open_frames(photos)
    for frame, label in zip(frames.frames, (1, 0), strict=True):
        image, labels = frames.load(frame)
        assert (labels[:, :10] == 255).all() and (labels[:, 10:] == label).all()
        assert not image[:, :10].any()


def test_fits_frames_have_their_times(tmp_path):
    for name in ("a.fits", "b.fits.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "frames.csv").write_text("name,sky\na.fits,clear\nb.fits.gz,overcast\n")
    (tmp_path / "metadata.csv").write_text("Name,Date\na.fits,20250101\nb.fits.gz,20250102\n")
    dates = [frame.date for frame in open_frames(tmp_path).frames]
    assert dates == ["20250101", "20250102"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "needs a header with the columns name and sky"),
        ("name,weather\na,clear\n", "found name, weather"),
        ("name,sky,sky\na,clear,clear\n", "each once"),
        ("name,sky\n", "has no rows"),
        ("name,sky\na,clear,windy\n", "line 2 has 3 cells"),
        ("name,sky\nz.png,clear\n", "no image 'z.png'"),
        ("name,sky\na,clear\na,overcast\n", "line 3 gives a a second sky"),
        ("name,sky\na,140\n", "expected percent from 0 to 100"),
        ("name,sky\na,nan\n", "expected percent from 0 to 100"),
        ("name,sky\na,-1\n", "expected percent from 0 to 100"),
        ("name,sky\na,0.25\nb,0.5\n", "not fractions"),
        ("name,sky\na,0\nb,1\n", "not fractions"),
        ("name,sky\na,partly\nb,moon\n", "no frame is clear or overcast"),
    ],
)
def test_a_bad_table_is_one_clear_line(photos, table, words):
    (photos / "frames.csv").write_text(table)
    with pytest.raises(DataError) as caught:
        open_frames(photos)
    assert words in str(caught.value)
    assert "frames.csv" in str(caught.value)


def test_a_folder_without_labels_names_the_table(photos):
    with pytest.raises(DataError, match=r"or give words in frames\.csv"):
        open_frames(photos)


def test_two_images_of_one_name_are_refused(photos):
    Image.new("RGB", (30, 20)).save(photos / "a.jpg")
    (photos / "frames.csv").write_text("name,sky\na,clear\n")
    with pytest.raises(DataError, match="keep one"):
        open_frames(photos)


# --- holding back


def named(*names, date=None):
    return [Frame(name, Path(f"{name}.jpg"), cover=0.0, date=date) for name in names]


def test_frames_are_held_back_in_blocks_of_neighbours():
    frames = named(*(f"{index:02d}" for index in range(20)))
    train, held, note = hold_back(frames, 0.25)
    assert [frame.name for frame in (*train, *held)] != [frame.name for frame in frames]
    assert sorted((*train, *held), key=lambda frame: frame.name) == frames
    assert len(held) == 5
    assert "2 of 8 blocks" in note


def test_whole_dates_are_held_back():
    frames = [
        frame for day in range(6) for frame in named(f"{day}a", f"{day}b", date=f"2025010{day + 1}")
    ]
    train, held, note = hold_back(frames, 0.25)
    assert not {frame.date for frame in train} & {frame.date for frame in held}
    assert len(held) in (2, 4)
    assert "of 6 dates" in note


def test_a_night_is_not_divided_at_midnight():
    frames = []
    for day in range(1, 5):
        evening = [(f"2025030{day}", f"{time}00") for time in ("2200", "2230", "2300", "2330")]
        morning = [(f"2025030{day + 1}", f"{time}00") for time in ("0030", "0130")]
        frames += [
            Frame(f"{date}_{time}", Path(f"{date}_{time}.jpg"), cover=0.0, date=date, time=time)
            for date, time in evening + morning
        ]
    _, held, note = hold_back(frames, 0.25)
    assert [frame.name[6:11] for frame in held] == [
        *["01_22", "01_22", "01_23", "01_23", "02_00", "02_01"]
    ]
    assert note.endswith("as 1 of 4 days or nights")


def test_frames_of_two_dates_are_held_back_in_blocks():
    frames = [
        Frame(
            f"{index:02d}",
            Path("a.jpg"),
            cover=0.0,
            date=f"2025030{1 + index // 12}",
            time=f"12{5 * (index % 12):02d}00",
        )
        for index in range(24)
    ]
    assert hold_back(frames, 0.25)[2].endswith("as 2 of 8 blocks in the order of names")


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_of_few_frames_one_is_held_back_or_more(count):
    train, held, _ = hold_back(named(*(str(index) for index in range(count))), 0.25)
    assert len(held) == max(1, round(count / 4))
    assert train


def test_one_frame_is_not_enough():
    with pytest.raises(DataError, match="frames to learn from: 1, needed: 2 or more"):
        hold_back(named("a"), 0.25)
