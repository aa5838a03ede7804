"""data/datasets.py: every public layout as published, any folder, and all that can be wrong."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddunet_keras.data.datasets import (
    LAYOUTS,
    Dataset,
    Mixture,
    Sample,
    open_dataset,
    swinyseg_augment,
)
from ddunet_keras.files import IGNORE, DataError

HEIGHT, WIDTH = 12, 20


def photo(seed=0, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(seed).integers(1, 256, (*size, 3), np.uint8)


def halves(*values, size=(HEIGHT, WIDTH)):
    """A mask of vertical stripes, one for each value."""
    columns = np.arange(size[1]) * len(values) // size[1]
    return np.broadcast_to(np.array(values, np.uint8)[columns], size).copy()


def save(path, array, image_format=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, image_format, **options)


def make(root, layout):
    """A tiny dataset in the layout as published."""
    if layout == "swinyseg":
        for name in ("d0001", "d0002", "n0001", "d0001_1", "n0001_5"):
            save(root / f"images/{name}.jpg", photo())
            save(root / f"GTmaps/{name}.png", halves(0, 255))
        rows = ["Name,Date,Time", "d0001.jpg,20131023,111406", "d0002.jpg,20131023,93443"]
        (root / "metadata.csv").write_text("\r\n".join([*rows, "n0001.jpg,20160110,012003\r\n"]))
    elif layout == "swimseg":
        for name in ("0001", "0002", "1013"):
            save(root / f"images/{name}.png", photo())
            save(root / f"GTmaps/{name}_GT.png", halves(0, 255))
        rows = ["Number,Date,Time,Azimuth", "1,2013-10-23,11:14:06,1.5", "0002,20131023,111406,2"]
        (root / "metadata.csv").write_text("\n".join(rows))
    elif layout == "swinseg":
        for name in ("001", "115"):
            save(root / f"images/{name}.jpg", photo())
            save(root / f"GTmaps/{name}_GT.jpg", halves(0, 255), quality=60)
        (root / "metadata.txt").write_text("Number\tDate\tTime\n001\t20160110\t012003\n")
    elif layout == "hyta":
        for name, size in (("B1", (9, 16)), ("B2", (16, 9))):
            save(root / f"images/{name}.jpg", photo(size=size))
            save(root / f"2GT/{name}_GT.jpg", halves(0, 255, size=size), quality=60)
            save(root / f"3GT/{name}_3GT.png", halves(0, 126, 255, size=size))
    elif layout == "wsiseg":
        for name in ("ASC100-1006_001", "ASC100-1006_400"):
            save(root / "whole sky images" / name, photo(), "PNG")
            save(root / "annotation" / name, halves(0, 100, 255), "PNG")
    else:
        for name in ("monday", "2020.01.02"):
            save(root / f"photos/{name}.JPG", photo(), "JPEG")
            save(root / f"Labels/{name}.png", halves(0, 128, 255))
    return root


@pytest.fixture
def folder(tmp_path):
    """A folder of two images with masks, of no public layout."""
    for name in ("a", "b"):
        save(tmp_path / f"images/{name}.png", photo())
        save(tmp_path / f"masks/{name}.png", halves(0, 255))
    return tmp_path


def refuse(path, *parts, **options):
    """The message of the error that opening and verifying raise: one line with all of `parts`."""
    with pytest.raises(DataError) as caught:
        open_dataset(path, **options).verify()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [False, True])
def test_layouts_are_found_by_looking_and_by_name(tmp_path, layout, named):
    dataset = open_dataset(make(tmp_path, layout), layout if named else None)
    assert isinstance(dataset, Dataset) and dataset.layout == layout
    assert dataset.num_classes == 2
    assert [sample.name for sample in dataset] == sorted(sample.name for sample in dataset)
    assert len(dataset) == len(dataset.samples) == len({sample.name for sample in dataset})
    seen = []
    dataset.verify(lambda done, total: seen.append((done, total)))
    assert seen == [(index + 1, len(dataset)) for index in range(len(dataset))]
    for sample in dataset:
        image, labels = dataset.load(sample)
        assert image.dtype == labels.dtype == np.uint8
        assert image.shape == (*labels.shape, 3)
        assert labels[0, 0] == (IGNORE if layout == "wsiseg" else 0)
        assert labels[-1, -1] == 1


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "swinyseg",
            {"d0001": ("20131023", "111406", False), "n0001": ("20160110", "012003", True)},
        ),
        ("swimseg", {"0001": ("20131023", "11:14:06", False), "1013": (None, None, False)}),
        ("swinseg", {"001": ("20160110", "012003", True), "115": (None, None, True)}),
        ("hyta", {"B1": (None, None, None)}),
        ("wsiseg", {"ASC100-1006_001": (None, None, False)}),
        ("folder", {"2020.01.02": (None, None, None)}),
    ],
)
def test_captures_and_night(tmp_path, layout, expected):
    dataset = open_dataset(make(tmp_path, layout))
    for name, capture in expected.items():
        sample = dataset.find(name)
        assert (sample.date, sample.time, sample.night) == capture


def test_a_time_that_lost_its_zero_is_the_same_time(tmp_path):
    assert open_dataset(make(tmp_path, "swinyseg")).find("d0002").time == "093443"


def test_swinyseg_augmentations_on_disk_know_their_source(tmp_path):
    dataset = open_dataset(make(tmp_path, "swinyseg"))
    sample = dataset.find("n0001_5")
    assert sample in dataset.samples and sample.augmentation is None
    assert sample.source == "n0001" and dataset.find("n0001").source == "n0001"
    assert (sample.date, sample.night) == ("20160110", True)
    assert np.array_equal(dataset.load(sample)[1], halves(0, 1))


def test_swinyseg_augmentations_not_on_disk_are_made(tmp_path):
    dataset = open_dataset(make(tmp_path, "swinyseg"))
    sample = dataset.find("d0002_3")
    assert sample not in dataset.samples
    assert (sample.name, sample.source, sample.augmentation) == ("d0002_3", "d0002", 3)
    assert (sample.image, sample.date) == (dataset.find("d0002").image, "20131023")
    image, labels = dataset.load(sample)
    expected = swinyseg_augment(*dataset.load(dataset.find("d0002")), "d0002_3")
    assert np.array_equal(image, expected[0]) and np.array_equal(labels, expected[1])


@pytest.mark.parametrize(
    "name", ["d0003", "d0003_1", "d0001_6", "d0001_0", "d0001_1_1", "../images/d0001", "", None, 7]
)
def test_names_that_are_not_there_are_refused(tmp_path, name):
    dataset = open_dataset(make(tmp_path, "swinyseg"))
    with pytest.raises(DataError, match="no image named"):
        dataset.find(name)


def test_an_unknown_name_comes_with_the_nearest(folder):
    save(folder / "images/monday.png", photo())
    save(folder / "masks/monday.png", halves(0, 255))
    with pytest.raises(DataError, match="'munday' among 3; nearest: monday"):
        open_dataset(folder).find("munday")


def test_only_swinyseg_has_augmentations(folder):
    save(folder / "images/a_1.png", photo())
    save(folder / "masks/a_1.png", halves(0, 255))
    dataset = open_dataset(folder)
    assert dataset.find("a_1").source == "a_1"
    with pytest.raises(DataError):
        dataset.find("a_2")


def test_a_sample_is_its_own_source_unless_told(tmp_path):
    assert Sample("x", tmp_path, tmp_path).source == "x"
    assert Sample("x_1", tmp_path, tmp_path, source="x").source == "x"


def test_lists_of_names(tmp_path):
    make(tmp_path, "swinyseg")
    assert open_dataset(tmp_path).lists == {}
    (tmp_path / "train.txt").write_bytes(
        b"\xef\xbb\xbfd0001_4\r\nd0002.jpg\r\n\r\n ../../etc/x \r\n"
    )
    (tmp_path / "val.txt").write_text("d0001")
    dataset = open_dataset(tmp_path)
    assert dataset.lists == {"train": ("d0001_4", "d0002", "../../etc/x"), "val": ("d0001",)}
    with pytest.raises(DataError, match="no image named"):
        dataset.find("../../etc/x")


def test_lists_that_are_no_text(tmp_path):
    make(tmp_path, "swinyseg")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    refuse(tmp_path, "train.txt", "UTF-8")


@pytest.mark.parametrize("part", ["train", "val"])
def test_lists_that_are_no_file(tmp_path, put_no_file, part):
    make(tmp_path, "swinyseg")
    kind = put_no_file(tmp_path / f"{part}.txt")
    if kind == "missing":
        assert open_dataset(tmp_path).lists == {}
    else:
        refuse(tmp_path, f"{part}.txt")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_images_and_masks_that_are_no_file(folder, put_no_file, part):
    kind = put_no_file(folder / part / "b.png")
    alone = {"images": "masks without an image", "masks": "images without a mask"}[part]
    refuse(folder, alone if kind in ("missing", "folder") else folder / part / "b.png")


@pytest.mark.parametrize("name", ["a\nb", "\udcff", "\x1b[31m", "$x$", "日本", "y" * 240])
def test_names_of_any_kind(folder, name):
    save(folder / f"images/{name}.png", photo())
    save(folder / f"masks/{name}.png", halves(0, 255))
    dataset = open_dataset(folder)
    dataset.verify()
    assert dataset.find(name).name == name
    (folder / f"masks/{name}.png").write_bytes(b"no picture")
    message = refuse(folder, "masks", "not a readable image")
    assert message.isprintable()


def test_a_mixture_finds_each_sample_in_its_own_data_set(tmp_path):
    make(tmp_path / "a", "swinyseg")
    make(tmp_path / "b", "wsiseg")
    patches, skies = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    mixture = Mixture(patches, skies)
    for index, dataset in enumerate((patches, skies)):
        sample = dataset.samples[0]
        for ours, own in zip(
            mixture.load(mixture.find((index, sample.name))), dataset.load(sample), strict=True
        ):
            np.testing.assert_array_equal(ours, own)
    with pytest.raises(DataError, match="no image named"):
        mixture.find((1, patches.samples[0].name))


def test_hyta_has_thin_and_thick_cloud(tmp_path):
    dataset = open_dataset(make(tmp_path, "hyta"), num_classes=3)
    assert np.array_equal(dataset.load(dataset.find("B2"))[1], halves(0, 1, 2, size=(16, 9)))
    save(tmp_path / "3GT/B1_3GT.png", halves(0, 126, 200, size=(9, 16)))
    assert np.unique(dataset.load(dataset.find("B1"))[1]).tolist() == [0, 1, 2]


def test_whole_sky_images_with_and_without_ending(tmp_path):
    expected = halves(IGNORE, 0, 1)
    bare = open_dataset(make(tmp_path / "bare", "wsiseg"))
    save(tmp_path / "named/images/ASC100-1006_001.jpg", photo())
    save(tmp_path / "named/annotation/ASC100-1006_001.png", halves(0, 100, 255))
    named = open_dataset(tmp_path / "named")
    for dataset in (bare, named):
        assert dataset.layout == "wsiseg"
        assert np.array_equal(dataset.load(dataset.find("ASC100-1006_001"))[1], expected)


@pytest.mark.parametrize("images", ["images", "image", "imgs", "Photos"])
@pytest.mark.parametrize("masks", ["masks", "mask", "GTmaps", "labels", "annotation", "GT"])
@pytest.mark.parametrize("ending", ["", "_GT", "_mask", "_Label"])
def test_any_folder_of_images_and_masks(tmp_path, images, masks, ending):
    save(tmp_path / images / "b_mask.png", photo(1))  # an image may be named like a mask
    save(tmp_path / images / "a.JPEG", photo(2))
    save(tmp_path / masks / f"b_mask{ending}.PNG", halves(0, 1))
    save(tmp_path / masks / f"a{ending}.tif", halves(0, 255))
    (tmp_path / images / ".DS_Store").write_bytes(b"x")
    (tmp_path / images / "Thumbs.db").write_bytes(b"x")
    (tmp_path / masks / "._a.png").write_bytes(b"x")
    (tmp_path / masks / "notes.txt").write_bytes(b"x")
    dataset = open_dataset(tmp_path)
    dataset.verify()
    assert (dataset.layout, [sample.name for sample in dataset]) == ("folder", ["a", "b_mask"])
    assert np.array_equal(dataset.load(dataset.find("b_mask"))[0], photo(1))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0, 1), (0, 1)),
        ((0, 255), (0, 1)),
        ((0, 128, 255), (0, IGNORE, 1)),
        ((0, 128, 1), (0, IGNORE, 1)),
        ((0,), (0,)),
        ((1,), (1,)),
        ((255,), (1,)),
        ((128,), (IGNORE,)),
    ],
)
def test_two_class_masks(folder, values, labels):
    save(folder / "masks/a.png", halves(*values))
    dataset = open_dataset(folder)
    assert np.array_equal(dataset.load(dataset.find("a"))[1], halves(*labels))


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "I;16", "I", "P"])
def test_masks_of_other_modes(folder, mode):
    mask = halves(0, 255)
    if mode == "P":
        image = Image.fromarray(halves(0, 1), "P")
        image.putpalette([90, 90, 90, 3, 3, 3])
    elif mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(mask).convert(mode)
    (folder / "masks/a.png").unlink()
    image.save(folder / "masks/a.tif")
    dataset = open_dataset(folder)
    assert np.array_equal(dataset.load(dataset.find("a"))[1], halves(0, 1))


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize("values", [(255, 0), (255, 255), (0, 0), (255, 128)])
def test_masks_that_were_saved_with_few_colours_go_by_colour(folder, values, suffix):
    mask = Image.fromarray(halves(*values)).convert("RGB").quantize(3)
    (folder / "masks/a.png").unlink()
    mask.save(folder / f"masks/a{suffix}")
    dataset = open_dataset(folder)
    labels = halves(*({0: 0, 128: IGNORE, 255: 1}[value] for value in values))
    assert np.array_equal(dataset.load(dataset.find("a"))[1], labels)


@pytest.mark.parametrize("colours", [(0, 255, 128), (0, 128, 255), (255, 0, 128)])
def test_three_classes_with_a_palette_are_indices_whatever_their_colours(folder, colours):
    mask = Image.fromarray(halves(0, 2), "P")
    mask.putpalette([channel for colour in colours for channel in (colour,) * 3])
    mask.save(folder / "masks/a.png")
    dataset = open_dataset(folder, num_classes=3)
    assert np.array_equal(dataset.load(dataset.find("a"))[1], halves(0, 2))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("values", [(0, 1), (0, 2), (1, 2), (0, 255)])
def test_masks_of_wide_types_have_the_values_that_they_hold(folder, kind, values):
    (folder / "masks/a.png").unlink()
    Image.fromarray(halves(*values).astype(kind)).save(folder / "masks/a.tif")
    dataset = open_dataset(folder, num_classes=3)
    assert np.array_equal(dataset.load(dataset.find("a"))[1], halves(*values))
    if max(values) != 2:
        dataset = open_dataset(folder)
        assert np.array_equal(dataset.load(dataset.find("a"))[1], halves(0, 1))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_jpeg_masks_are_split_at_128_whatever_their_ending(folder, name):
    (folder / "masks/a.png").unlink()
    stripes = np.repeat(np.array([[0, 120, 255, 136]], np.uint8), [9, 1, 9, 1], axis=1)
    save(folder / "masks" / name, np.repeat(stripes, HEIGHT, axis=0), "JPEG", quality=100)
    dataset = open_dataset(folder)
    assert dataset.load(dataset.find("a"))[1][0].tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("num_classes", [3, 4, 255])
def test_more_classes_are_indices(folder, num_classes):
    values = (0, 1, num_classes - 1, 255)
    for name in ("a", "b"):
        save(folder / f"masks/{name}.png", halves(*values))
    dataset = open_dataset(folder, num_classes=num_classes)
    assert dataset.num_classes == num_classes
    assert np.array_equal(dataset.load(dataset.find("a"))[1], halves(*values))


def test_more_classes_refuse_what_is_no_index(folder):
    save(folder / "masks/a.png", halves(0, 1, 3))
    refuse(folder, "a.png", "3 (0, 1, 3)", "4 (0, 1, 2, 255)", num_classes=3)
    (folder / "masks/a.png").unlink()
    save(folder / "masks/a.jpg", halves(0, 0))
    refuse(folder, "a.jpg", "JPEG", "PNG", num_classes=3)


@pytest.mark.parametrize(
    "values", [(0, 1, 255), (0, 7), (0, 100, 255), (254, 0), (2,), tuple(range(0, 256, 16))]
)
def test_masks_with_unexpected_values(folder, values):
    save(folder / "masks/b.png", halves(*values))
    refuse(folder, "masks/b.png", ", ".join(map(str, sorted(values)[:5])), "a mask here has")


def test_a_photo_is_no_mask_even_where_grays_are_admitted(tmp_path):
    make(tmp_path, "swinyseg")
    save(tmp_path / "GTmaps/d0002.png", photo())
    refuse(tmp_path, "d0002.png", "a mask here has")
    make(tmp_path, "swinyseg")
    save(tmp_path / "GTmaps/d0001.png", halves(0, 1))
    refuse(tmp_path, "d0001.png", "(0, 1)", "(0, 255)")


def test_a_jpeg_mask_of_zeros_and_ones_is_not_taken_for_clear_sky(folder):
    (folder / "masks/a.png").unlink()
    save(folder / "masks/a.jpg", halves(0, 2), quality=100)
    refuse(folder, "a.jpg", "a mask here has")


def test_no_such_folder_a_file_and_an_empty_folder(tmp_path):
    refuse(tmp_path / "none", tmp_path / "none", "no such folder")
    (tmp_path / "file.zip").write_bytes(b"x")
    refuse(tmp_path / "file.zip", "file.zip", "is a file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty", "the folder is empty")
    (tmp_path / "empty/.DS_Store").write_bytes(b"x")
    refuse(tmp_path / "empty", "the folder is empty")


@pytest.mark.parametrize("layout", ["SWINySEG", "cityscapes", "", 3])
def test_an_unknown_layout(folder, layout):
    refuse(folder, repr(layout), *LAYOUTS, layout=layout)


@pytest.mark.parametrize(
    ("layout", "num_classes", "known"),
    [
        ("swinyseg", 3, "has 2"),
        ("swimseg", 1, "has 2"),
        ("wsiseg", 0, "has 2"),
        ("hyta", 4, "has 2 or 3"),
        ("folder", 1, "has 2 to 255"),
        ("folder", 256, "has 2 to 255"),
        ("folder", True, "has 2 to 255"),
        ("folder", 2.0, "has 2 to 255"),
        ("folder", "2", "has 2 to 255"),
        ("folder", None, "has 2 to 255"),
    ],
)
def test_a_number_of_classes_that_a_layout_lacks(tmp_path, layout, num_classes, known):
    make(tmp_path, layout)
    refuse(tmp_path, f"num_classes={num_classes!r}", known, num_classes=num_classes)


def test_a_folder_of_no_layout_says_what_is_there_and_what_is_known(tmp_path):
    for index in range(7):
        save(tmp_path / f"deep/sky{index}.png", photo())
    refuse(tmp_path / "deep", "found 7 (sky0.png", "...", *LAYOUTS)
    refuse(tmp_path, "found 1 (deep)", "images/NAME.jpg + masks/NAME.png")


def test_the_folder_above_or_below_is_suggested(tmp_path):
    make(tmp_path / "unpacked/swimseg", "swimseg")
    refuse(tmp_path / "unpacked", "did you mean", tmp_path / "unpacked/swimseg")
    refuse(tmp_path / "unpacked/swimseg/images", "did you mean", tmp_path / "unpacked/swimseg")


def test_a_named_layout_that_is_not_there(tmp_path):
    make(tmp_path, "swimseg")
    refuse(tmp_path, "2gt", "3GT/B1_3GT.png", layout="hyta")
    refuse(tmp_path, "0001", "d0001.jpg", "layout='folder'", layout="swinyseg")


def test_one_stray_image_does_not_make_another_layout_of_it(tmp_path):
    make(tmp_path, "swinyseg")
    save(tmp_path / "images/holiday.jpg", photo())
    save(tmp_path / "GTmaps/holiday.png", halves(0, 255))
    refuse(tmp_path, "1 (holiday)", "swinyseg", "layout='folder'")
    assert len(open_dataset(tmp_path, "folder")) == 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_without_a_mask_and_a_mask_without_an_image(tmp_path, layout):
    make(tmp_path, layout)
    dataset = open_dataset(tmp_path)
    first, last = dataset.samples[0], dataset.samples[-1]
    content = first.mask.read_bytes()
    first.mask.unlink()
    refuse(tmp_path, "images without a mask: 1", first.name)
    first.mask.write_bytes(content)
    last.image.unlink()
    refuse(tmp_path, "masks without an image: 1", last.name)


def test_many_images_without_a_mask_are_counted(folder):
    for index in range(30):
        save(folder / f"images/x{index:02}.png", photo())
    message = refuse(folder, "30 (x00, x01", "...")
    assert len(message) < 300


def test_two_files_of_one_name(folder):
    save(folder / "images/a.JPG", photo(), "JPEG")
    refuse(folder, "a.JPG", "a.png", "share a name")
    (folder / "images/a.JPG").unlink()
    save(folder / "masks/a_mask.png", halves(0, 255))
    refuse(folder, "a.png", "a_mask.png", "masks of a;")


def test_two_folders_of_masks(folder):
    save(folder / "labels/a.png", halves(0, 255))
    refuse(folder, "labels, masks", "which one")


def test_folders_without_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    refuse(tmp_path, "images", "holds no images")
    save(tmp_path / "images/a.png", photo())
    (tmp_path / "masks/a.npy").write_bytes(b"x")
    refuse(tmp_path, "masks", "holds no images")


def test_sizes_that_disagree(folder):
    save(folder / "masks/b.png", halves(0, 255, size=(HEIGHT, WIDTH - 1)))
    message = refuse(folder, "masks/b.png", "19x12", "20x12", "must agree")
    assert "EXIF" not in message


def test_an_exif_rotated_photo(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "images/a.png", photo(), exif=exif)
    refuse(folder, "masks/a.png", "20x12", "12x20", "EXIF")
    save(folder / "masks/a.png", np.rot90(halves(0, 255), -1))
    dataset = open_dataset(folder)
    image, labels = dataset.load(dataset.find("a"))
    assert np.array_equal(image, np.rot90(photo(), -1))
    assert np.array_equal(labels, np.rot90(halves(0, 1), -1))


@pytest.mark.parametrize(
    "content", [b"", b"no picture", bytes(range(256)) * 9, b"\x89PNG\r\n\x1a\n"]
)
@pytest.mark.parametrize("part", ["images", "masks"])
def test_unreadable_files_are_named(folder, part, content):
    (folder / part / "b.png").write_bytes(content)
    open_dataset(folder)  # looks at the structure alone
    refuse(folder, folder / part / "b.png")


def test_verify_counts_what_else_is_wrong(folder):
    for name in ("a", "b"):
        save(folder / f"masks/{name}.png", halves(3, 4))
    refuse(folder, "masks/a.png", "and 1 more of 2 images")


def metadata(folder, content, name="metadata.csv"):
    if isinstance(content, str):
        content = content.encode()
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        "Name,Date,Time\na.png,20200102,030405\n",
        "name;time;date;more\r\n\r\na;30405;2020/01/02;x\r\n;;;\r\n",
        "NAME\tDate \t Time\na\t 2020-01-02 \t 030405 ",
        '\ufeffImage,Date,Time\n"a",20200102,030405\nelsewhere,20210101,1\na,20200102,30405',
        "Photo,Date,Time\na,2020.01.02,030405",
        "Number,Name,Date,Time\n1,a,20200102,030405",
    ],
)
def test_metadata_of_a_folder(folder, content):
    dataset = open_dataset(metadata(folder, content))
    assert (dataset.find("a").date, dataset.find("a").time) == ("20200102", "030405")
    assert (dataset.find("b").date, dataset.find("b").time) == (None, None)


def test_metadata_without_time(folder):
    sample = open_dataset(metadata(folder, "Name,Date\na,20200102")).find("a")
    assert (sample.date, sample.time) == ("20200102", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "needs a header"),
        ("Name,Date,Time\n", "names none of the 2 images"),
        ("a,20200102,030405\nb,20200102,030405", "needs a header"),
        ("Name,Date,Time\nx,20200102,030405", "names none of the 2 images"),
        ("Name,Date,Time\na,20200102", "line 2 has 2 cells, the header 3"),
        ("Name,Date,Time\na,yesterday,1", "line 2: date 'yesterday', expected YYYYMMDD"),
        ("Name,Date,Time\na,20201301,1", "'20201301'"),
        ("Name,Date,Time\na,2020112,1", "'2020112'"),
        ("Name,Date,Time\na,2020-01-02 03:04,1", "expected YYYYMMDD"),
        ("Name,Date,Time\na,20200102,1\na,20200103,1", "line 3 gives a a second date"),
        ("Name,Date,Name\na,20200102,b", "each once"),
        ('Name,Date,Time\n"a,20200102,1', "not a readable table"),
        (b"\xff\xfe\x00N", "UTF-8"),
        (np.random.default_rng(0).bytes(500), "metadata.csv"),
    ],
)
def test_broken_metadata(folder, content, reason):
    refuse(metadata(folder, content), "metadata.csv", reason)


def test_two_metadata_files(folder):
    metadata(folder, "Name,Date\na,20200102", "metadata.txt")
    refuse(metadata(folder, "Name,Date\na,20200102"), "metadata.csv and metadata.txt", "keep one")


def test_huge_metadata_is_refused(folder):
    with open(folder / "metadata.csv", "wb") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    refuse(folder, "metadata.csv", "at most")


def test_metadata_that_is_no_file_is_named(folder, put_no_file):
    kind = put_no_file(folder / "metadata.csv")
    if kind == "missing":
        assert open_dataset(folder).find("a").date is None
    else:
        refuse(folder, "metadata.csv")


def test_metadata_with_old_line_ends_and_line_breaks_in_cells(folder):
    dataset = open_dataset(metadata(folder, 'Name,Date\ra,20200102\r"x\ny",20200103\r'))
    assert dataset.find("a").date == "20200102"
    refuse(metadata(folder, 'Name,Date\n"x\ny",20200102\na,2020'), "line 4: date '2020'")


def test_metadata_of_a_name_with_control_characters(folder):
    rows = 'Name,Date\n"\x1b[31m\n",20200102\n"\x1b[31m\n",20200103\n'
    refuse(metadata(folder, rows), r"gives \x1b[31m a second date")


def test_digits_that_only_python_takes_for_digits_are_no_date(folder):
    refuse(metadata(folder, "Name,Date\na,2020010\N{FULLWIDTH DIGIT TWO}"), "expected YYYYMMDD")


def augmentations(count=40, size=(30, 50)):
    """(labels, image) of many augmentations of one picture whose channels repeat its labels."""
    labels = np.zeros(size, np.uint8)
    labels[: size[0] // 2] = 1
    image = np.repeat(labels[..., None] * np.uint8(200) + np.uint8(20), 3, axis=-1)
    for index in range(count):
        yield swinyseg_augment(image, labels, f"d0001_{index}")


def test_augmentation_moves_image_and_labels_together():
    for image, labels in augmentations():
        assert image.shape == (30, 50, 3) and labels.shape == (30, 50)
        assert image.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1}
        assert image.min() >= 20 and image.max() <= 220  # no black corners
        clear = np.abs(image[..., 0] - 120.0) > 60  # elsewhere the pixel straddles the edge
        assert np.array_equal((image[..., 0] > 120)[clear], labels[clear] == 1)
        assert clear.mean() > 0.9


def test_augmentation_is_drawn_from_the_name_alone():
    labels = np.indices((24, 24)).sum(0).astype(np.uint8)
    image = np.repeat(labels[..., None], 3, axis=-1)
    first = swinyseg_augment(image, labels, "d0001_1")
    np.random.default_rng(5).random(3)
    again = swinyseg_augment(image.copy(), labels.copy(), "d0001_1")
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    others = [swinyseg_augment(image, labels, f"d0001_{k}")[1] for k in range(2, 6)]
    assert len({first[1].tobytes(), *(other.tobytes() for other in others)}) == 5


def test_augmentation_is_the_same_in_every_process():
    code = (
        "import numpy as np, zlib; from ddunet_keras.data.datasets import swinyseg_augment as f;"
        "y = (np.arange(4096, dtype=np.uint32) * 97 % 251).astype(np.uint8).reshape(64, 64);"
        "print(zlib.crc32(f(np.stack([y] * 3, -1), y, 'd0001_1')[1].tobytes()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and outputs.pop().strip().isdigit()


def test_augmentation_stays_within_the_published_ranges():
    """Recovers each affine map from a picture of coordinates, and takes it apart."""
    size = 201
    y, x = np.mgrid[:size, :size].astype(np.uint8)
    flips, angles, zooms, shifts, shears = [], [], [], [], []
    for index in range(120):
        image, _ = swinyseg_augment(np.stack([x, y, x], -1), x, f"n{index}")
        window = image[60:141, 60:141, :2].astype(float)  # far from the repeated border
        step_x = (window[:, -1] - window[:, 0]).mean(0) / 80
        step_y = (window[-1] - window[0]).mean(0) / 80
        matrix = np.stack([step_x, step_y], 1)
        # turn @ slant @ zoom @ flip: the first column is the turned and flipped x axis
        flip_x = math.copysign(1, matrix[0, 0])
        angle = math.atan2(matrix[1, 0] * flip_x, matrix[0, 0] * flip_x)
        back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        upright = back @ matrix
        flips.append((flip_x, math.copysign(1, upright[1, 1])))
        angles.append(math.degrees(angle))
        zooms += [abs(upright[0, 0]), abs(upright[1, 1])]
        shears.append(math.degrees(math.atan(upright[0, 1] / upright[1, 1])))
        shifts += list((window[40, 40] - 100) / size)
    assert len(set(flips)) == 4
    for values, low, high, slack in (
        (angles, -20, 20, 0.5),
        (zooms, 0.8, 1, 0.01),
        (shears, -10, 10, 0.5),
        (shifts, -0.1, 0.1, 0.01),
    ):
        assert low - slack <= min(values) and max(values) <= high + slack
        assert min(values) < low + 0.15 * (high - low) and max(values) > high - 0.15 * (high - low)


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (90, 3)])
def test_augmentation_of_odd_shapes_has_no_black(size):
    for image, labels in augmentations(size=size):
        assert image.shape == (*size, 3) and labels.shape == size
        assert image.min() >= 20


def test_augmentation_keeps_ignored_pixels_ignored():
    labels = halves(0, 1, IGNORE, size=(40, 60))
    for index in range(20):
        assert set(np.unique(swinyseg_augment(photo(size=(40, 60)), labels, str(index))[1])) <= {
            0,
            1,
            IGNORE,
        }


def test_augmentation_refuses_other_shapes_and_types():
    with pytest.raises(ValueError, match=r"uint8 \(12, 20, 3\) and uint8 \(20, 12\)"):
        swinyseg_augment(photo(), halves(0, size=(WIDTH, HEIGHT)), "a")
    with pytest.raises(ValueError, match="float64"):
        swinyseg_augment(photo() / 255, halves(0), "a")


def test_import_needs_no_tensorflow():
    code = "import sys, ddunet_keras.data.splits; print({'tensorflow', 'keras'} & set(sys.modules))"
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("swinyseg-base", "swinyseg", 1128), ("wsiseg-240", "wsiseg", 240)],
)
def test_the_real_sets(shared, name, layout, count):
    dataset = open_dataset(shared / "data" / name)
    assert (dataset.layout, len(dataset)) == (layout, count)
    for sample in dataset.samples[::50]:
        labels = dataset.load(sample)[1]
        assert set(np.unique(labels)) <= {0, 1, IGNORE} and (labels != IGNORE).any()
    if layout == "swinyseg":
        assert sum(sample.night for sample in dataset) == 115
        assert len({sample.date for sample in dataset}) == 17 + 38
        assert {part: len(names) for part, names in dataset.lists.items()} == {
            "train": 6091,
            "val": 677,
        }
        assert all(dataset.find(name) for names in dataset.lists.values() for name in names)
