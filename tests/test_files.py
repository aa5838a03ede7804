"""files.py: pictures of every kind are read, bad ones named, and writes are whole or nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ddunet_keras import files
from ddunet_keras.files import (
    DataError,
    WriteError,
    atomic_path,
    check_writable,
    list_folder,
    printable,
    read_gray,
    read_json,
    read_text,
    remove_partial_files,
    write_image,
    write_json,
    write_text,
)
from ddunet_keras.sky.reading import read_image


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG", ".ppm"])
def test_lossless_formats_come_back_exactly(tmp_path, picture, suffix):
    assert np.array_equal(read_image(save(tmp_path / f"a{suffix}", picture)), picture)


def test_jpeg_comes_back_nearly(tmp_path):
    array = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    read = read_image(save(tmp_path / "a.jpg", array, quality=95))
    assert read.shape == array.shape
    assert np.abs(read.astype(int) - array).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    white = Image.fromarray(np.full((6, 8, 3), 255, np.uint8))
    white.convert(mode).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.uint8 and read.shape == (6, 8, 3)
    assert read.min() >= 254


def test_palette_photos_are_read_by_colour_and_transparent_is_black(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    image.save(tmp_path / "b.png", transparency=1)
    assert read_image(tmp_path / "b.png").tolist() == [[[10, 20, 30], [0, 0, 0]]]


def test_alpha_is_blended_on_black(tmp_path):
    array = np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)
    array[:2, :, 3] = 255
    read = read_image(save(tmp_path / "a.png", array))
    assert (read[:2] == (200, 100, 50)).all()
    assert (read[2:] == 0).all()


def test_sixteen_bits_keep_the_range(tmp_path):
    array = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = save(tmp_path / "a.png", array)
    assert read_gray(path).tolist() == [[0, 1, 127, 255]]
    assert read_image(path)[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_pictures_from_0_to_1_and_to_255(tmp_path, top):
    array = np.array([[0, 0.5, 1]], np.float32) * np.float32(top)
    read = read_gray(save(tmp_path / "a.tif", array))
    assert read[0, 0] == 0 and read[0, 2] == 255 and read[0, 1] in (127, 128)


def test_float_pictures_with_nan_and_infinity_are_read_without_warning(tmp_path):
    array = np.array([[np.nan, np.inf, -np.inf, 7]], np.float32)
    assert read_gray(save(tmp_path / "a.tif", array)).tolist() == [[0, 255, 0, 7]]


def test_palette_masks_are_read_by_index(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255, 9, 9, 9])
    image.save(tmp_path / "a.png")
    assert read_gray(tmp_path / "a.png").tolist() == [[0, 1, 2]]


def test_bilevel_and_colour_masks_are_0_and_255(tmp_path):
    array = np.array([[0, 255]], np.uint8)
    assert read_gray(save(tmp_path / "a.png", array, "1")).tolist() == [[0, 255]]
    assert read_gray(save(tmp_path / "b.png", array, "RGB")).tolist() == [[0, 255]]
    assert read_gray(save(tmp_path / "c.png", array, "RGBA")).tolist() == [[0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_photo_upright(tmp_path, orientation):
    stored = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(save(tmp_path / "a.png", stored, exif=exif))
    upright = {  # what the EXIF standard says of row 0 and column 0
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    assert np.array_equal(read, upright)


def bad_files(tmp_path, picture):
    whole = save(tmp_path / "whole.jpg", picture).read_bytes()
    png = save(tmp_path / "whole.png", picture).read_bytes()
    contents = {
        "empty": (b"", "empty"),
        "random": (np.random.default_rng(0).bytes(999), "not a readable image"),
        "text": (b"not a picture", "not a readable image"),
        "truncated.jpg": (whole[: len(whole) // 2], "not a readable image"),
        "truncated.png": (png[: len(png) // 2], "not a readable image"),
        "header.png": (png[:20], "not a readable image"),
        "corrupt.png": (png[:60] + bytes(40) + png[100:], "not a readable image"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        yield tmp_path / name, reason
    (tmp_path / "folder.png").mkdir()
    yield tmp_path / "folder.png", "is a folder"
    yield tmp_path / "missing.png", "no such file"


def test_what_cannot_be_read_is_named_in_one_line(tmp_path, picture):
    for path, reason in bad_files(tmp_path, picture):
        for read in (read_image, read_gray):
            with pytest.raises(DataError) as caught:
                read(path)
            message = str(caught.value)
            assert message.startswith(str(path)) and reason in message
            assert "\n" not in message and message.count(str(path)) == 1


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(tmp_path, picture, monkeypatch):
    path = save(tmp_path / "a.png", picture)
    monkeypatch.setattr(files, "MAX_PIXELS", 20 * 30 - 1)
    with pytest.raises(DataError, match="30x20 pixels, at most 599"):
        read_image(path)
    monkeypatch.setattr(files, "MAX_PIXELS", 20 * 30)
    assert read_image(path).shape == (20, 30, 3)


def test_a_small_file_that_claims_to_be_huge_is_refused(tmp_path):
    path = save(tmp_path / "a.ppm", np.zeros((2, 2, 3), np.uint8))
    path.write_bytes(b"P6 60000 60000 255\n" + bytes(12))
    with pytest.raises(DataError, match="pixels"):
        read_image(path)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1), (64, 3, 3)])
def test_write_image_comes_back(tmp_path, shape):
    array = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    write_image(tmp_path / "new" / "a.png", array)
    read = read_gray if len(shape) == 2 else read_image
    assert np.array_equal(read(tmp_path / "new" / "a.png"), array)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_replaces_the_file_with_ordinary_permissions(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "a.tar.gz"
    plain.write_text("")
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.name.endswith(".tar.gz")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 2


def test_json_takes_numpy_paths_and_nan(tmp_path):
    value = {
        "a": np.float32(0.5),
        "b": [np.int64(3), float("nan"), np.float64("inf")],
        3: (tmp_path, None, True, "ü"),
    }
    write_json(tmp_path / "a.json", value)
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == {"a": 0.5, "b": [3, None, None], "3": [str(tmp_path), None, True, "ü"]}


def test_write_image_refuses_what_is_no_picture(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        write_image(tmp_path / "a.png", np.zeros((2, 2, 7), np.float64))
    assert not list(tmp_path.iterdir())


# only regular files are read ----------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, read_gray, read_text, read_json])
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path, put_no_file, read):
    put_no_file(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.png")
    assert str(caught.value).startswith(f"{tmp_path / 'a.png'}: ")


def test_files_over_the_limit_are_not_read(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    for read in (read_image, read_text, read_json):
        with pytest.raises(DataError, match="at most"):
            read(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"x" * 10)
    assert read_text(tmp_path / "b", limit=10) == "x" * 10
    with pytest.raises(DataError, match="at most 9 are read"):
        read_text(tmp_path / "b", limit=9)


def test_text_may_start_with_a_byte_order_mark_and_must_be_utf_8(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffü\r\n".encode())
    assert read_text(tmp_path / "a") == "ü\r\n"
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "b").write_bytes("ü".encode(encoding))
        with pytest.raises(DataError, match="UTF-8"):
            read_text(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "1" * 5000, "{'a': 1}"])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json: not a readable JSON"):
        read_json(tmp_path / "a.json")


def test_a_folder_is_listed_in_order_and_without_hidden_files(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).touch()
    assert list_folder(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(DataError, match="no such folder"):
        list_folder(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be listed"):
        list_folder(tmp_path / "a")


# names of any kind --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sky.jpg", "sky.jpg"),
        ("日本 ü.jpg", "日本 ü.jpg"),
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\udcff", r"\udcff"),
        ("\u2028\u202e", r"\u2028\u202e"),
    ],
)
def test_a_name_is_shown_in_one_line_of_utf_8(text, shown):
    assert printable(text) == shown
    assert str(DataError(f"{text}: no such file")) == f"{shown}: no such file"


def test_text_with_a_name_that_is_no_utf_8_is_written(tmp_path):
    write_text(tmp_path / "a", "ü\udcff")
    assert (tmp_path / "a").read_bytes() == "ü\\udcff".encode()
    write_json(tmp_path / "b", {"name": "\udcff"})  # comes back as it was: it names a file
    assert read_json(tmp_path / "b") == {"name": "\udcff"}


# writing ------------------------------------------------------------------------------------------


def test_where_nothing_can_be_written_the_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    places = ["file/a.txt", "folder", "loop/a.txt", "x" * 300]
    for path in (tmp_path / place for place in places):
        with pytest.raises(WriteError) as caught:
            write_text(path, "text")
        assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    message = r"a\.txt: cannot be written \(No space left"
    with pytest.raises(WriteError, match=message), atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "a.txt")
    (tmp_path / "a.txt").touch()
    check_writable(tmp_path / "a.txt")
    for path in (tmp_path, tmp_path / "a.txt" / "b.txt", tmp_path / "a.txt" / "b" / "c.txt"):
        with pytest.raises(WriteError, match="cannot be written"):
            check_writable(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_partial_files_of_a_killed_process_are_removed_and_no_others(tmp_path):
    """A process is killed while it writes; another and this one go on writing."""
    code = "import sys, time; from ddunet_keras.files import atomic_path\n"
    code += "with atomic_path(sys.argv[1]): print(flush=True); time.sleep(100)"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / name], stdout=subprocess.PIPE)
        for name in ("killed.png", "running.png")
    ]
    try:
        for writer in writers:
            writer.stdout.readline()
        writers[0].kill()
        writers[0].wait()
        (tmp_path / "other.png").touch()
        with atomic_path(tmp_path / "ours.png"):
            assert len(list(tmp_path.glob(".partial-*"))) == 3
            remove_partial_files(tmp_path)
            left = [path.name for path in tmp_path.glob(".partial-*")]
        assert len(left) == 2 and not [name for name in left if f"-{writers[0].pid}-" in name]
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["other.png", "ours.png"]
    remove_partial_files(tmp_path / "none")


def test_partial_files_of_other_machines_are_removed_after_a_day(tmp_path):
    path = tmp_path / ".partial-00000000-1-abc.png"
    path.touch()
    remove_partial_files(tmp_path)
    assert path.exists()
    then = time.time() - files.ABANDONED_AFTER - 1
    os.utime(path, (then, then))
    remove_partial_files(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("closed", ["", "os.close(2)", "os.close(0); os.close(2)"])
def test_silence_ends_with_its_block_whatever_is_open(closed):
    code = f"import os; from ddunet_keras.files import silence\n{closed}\n"
    code += "with silence(1, 2): print('lost'); os.write(1, b'lost')\nprint('kept')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "kept\n")


def test_a_program_in_place_of_a_photo_is_not_run(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", "EPS")
    with pytest.raises(DataError, match="EPS is a program"):
        read_image(tmp_path / "a.jpg")
