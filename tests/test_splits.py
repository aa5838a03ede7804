"""data/splits.py: the protocols divide as they say, repeat, and survive a file."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from ddunet_keras.data.datasets import Dataset, Sample, open_dataset
from ddunet_keras.data.splits import PROTOCOLS, Split, make_split, trained_on
from ddunet_keras.files import DataError

PARTS = ("train", "val", "test")


def dataset_of(tmp_path, captures, layout="swinyseg", augmentations=0, lists=None):
    """A dataset of no files; `captures` are (date, time, night, number of images)."""
    samples, index = [], itertools.count(1)
    for date, time, night, count in captures:
        for _ in range(count):
            source = f"{'n' if night else 'd'}{next(index):04}"
            for k in range(augmentations + 1):
                name = f"{source}_{k}" if k else source
                path = tmp_path / name
                samples.append(Sample(name, path, path, date, time, night, source=source))
    return Dataset(layout, tmp_path, tuple(samples), 2, lists or {})


def sky(tmp_path, **options):
    """20 uneven day dates of 2 captures, 15 night dates of 1; the largest date holds a quarter."""
    days = [(f"201401{d + 1:02}", f"1200{t:02}", False, 1 + d) for d in range(20) for t in (0, 1)]
    days += [("20140201", "120000", False, 140)]
    nights = [(f"201501{d + 1:02}", "010000", True, 1 + d % 3) for d in range(15)]
    return dataset_of(tmp_path, days + nights, **options)


def parts(split):
    return {part: getattr(split, part) for part in PARTS}


def groups(dataset, names, protocol):
    samples = map(dataset.find, names)
    return {(s.date, s.time if protocol == "capture" else None) for s in samples}


def test_what_a_model_was_trained_on_is_read_beside_it(tmp_path):
    captures = [("20140101", "120000", False, 9)]
    dataset = dataset_of(tmp_path / "data", captures, augmentations=1)
    assert trained_on(tmp_path, dataset) is None
    split = Split("custom", 0, ("d0001_1", "d0002"), (), ("d0003",), layout="swinyseg")
    split.save(tmp_path / "split.json")
    assert trained_on(tmp_path, dataset) == {"d0001", "d0002"}
    also = [{"layout": "swinyseg", "images": ["d0004"]}, {"layout": "hyta", "images": ["B1"]}]
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"also": also}}))
    assert trained_on(tmp_path, dataset) == {"d0001", "d0002", "d0004"}
    assert trained_on(tmp_path, replace(dataset, layout="wsiseg")) == set()
    # of another data set of this layout, and of this one with photos that were removed since
    replace(split, train=("d7777",)).save(tmp_path / "split.json")
    assert trained_on(tmp_path, dataset) == {"d0004"}
    replace(split, train=("d0001", "d0002", "d7777")).save(tmp_path / "split.json")
    assert trained_on(tmp_path, dataset) == {"d0001", "d0002", "d0004"}
    (tmp_path / "run.json").write_text("[1")
    with pytest.raises(DataError, match="not a readable"):
        trained_on(tmp_path, dataset)


def test_validation_images_may_be_trained_on_and_the_test_part_stays(tmp_path):
    dataset = sky(tmp_path)
    split = make_split(dataset, "date")
    whole = split.with_validation()
    whole.check(dataset)
    assert (set(whole.train), whole.val) == ({*split.train, *split.val}, ())
    assert (whole.test, whole.protocol, whole.seed) == (split.test, "date", 0)
    assert "validation images, too" in whole.note


@pytest.mark.parametrize("protocol", ["capture", "date"])
@pytest.mark.parametrize("seed", range(5))
def test_captures_and_dates_are_kept_apart_in_the_right_shares(tmp_path, protocol, seed):
    dataset = sky(tmp_path)
    split = make_split(dataset, protocol, seed)
    assert sorted(itertools.chain(*parts(split).values())) == sorted(s.name for s in dataset)
    for one, other in itertools.combinations(PARTS, 2):
        mine, theirs = (groups(dataset, getattr(split, p), protocol) for p in (one, other))
        assert not mine & theirs
    for night in (False, True):
        stratum = [s.name for s in dataset if s.night is night]
        for part, share in (("train", 0.75), ("val", 0.1), ("test", 0.15)):
            chosen = set(stratum) & set(getattr(split, part))
            assert abs(len(chosen) / len(stratum) - share) < 0.05
            assert len(groups(dataset, chosen, "date")) >= 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_seed_repeats_and_another_differs(tmp_path, protocol):
    dataset = sky(tmp_path)
    assert make_split(dataset, protocol, 3) == make_split(sky(tmp_path), protocol, 3)
    assert len({make_split(dataset, protocol, seed).test for seed in range(4)}) == 4


def test_date_is_the_default_with_seed_0(tmp_path):
    dataset = sky(tmp_path)
    assert make_split(dataset) == make_split(dataset, "date", 0)


@pytest.mark.parametrize("protocol", ["capture", "date"])
def test_augmentations_follow_their_source_into_train_only(tmp_path, protocol):
    plain, full = sky(tmp_path), sky(tmp_path, augmentations=5)
    split = make_split(full, protocol)
    assert all("_" not in name for name in split.val + split.test)
    sources = {name for name in split.train if "_" not in name}
    assert set(split.train) == {f"{s}_{k}" if k else s for s in sources for k in range(6)}
    assert (split.val, split.test) == tuple(parts(make_split(plain, protocol)).values())[1:]


def test_a_date_whose_originals_are_gone_is_for_training(tmp_path):
    dataset = sky(tmp_path, augmentations=1)
    gone = {s.name for s in dataset if s.date == "20140103" and s.source == s.name}
    rest = tuple(s for s in dataset if s.name not in gone)
    split = make_split(replace(dataset, samples=rest), "date")
    assert {f"{name}_1" for name in gone} <= set(split.train)


def test_three_dates_are_enough_and_two_are_not(tmp_path):
    dates = [(f"2014010{d}", "120000", False, 4) for d in (1, 2, 3)]
    split = make_split(dataset_of(tmp_path, dates), "date")
    assert [len(names) for names in parts(split).values()] == [4, 4, 4]
    with pytest.raises(DataError, match="needs three dates, found 2; use capture or paper"):
        make_split(dataset_of(tmp_path, dates[:2]), "date")
    with pytest.raises(DataError, match="needs three captures, found 2; use paper"):
        make_split(dataset_of(tmp_path, dates[:2]), "capture")


def test_few_nights_are_divided_with_the_days(tmp_path):
    days = [(f"201401{d:02}", "120000", False, 5) for d in range(1, 21)]
    dataset = dataset_of(tmp_path, [*days, ("20150101", "010000", True, 5)])
    about = make_split(dataset, "date").describe(dataset)
    assert sum(about[part]["night"] for part in PARTS) == 5
    assert all(about[part]["day"] >= 10 for part in PARTS)


def test_a_date_of_day_and_night_stays_whole(tmp_path):
    captures = [
        (f"201401{d:02}", time, time < "06", 3)
        for d in range(1, 21)
        for time in ("120000", "010000")
    ]
    dataset = dataset_of(tmp_path, captures)
    about = make_split(dataset, "date").describe(dataset)
    assert all(about[part]["day"] == about[part]["night"] for part in PARTS)
    assert sum(len(about[part]["dates"]) for part in PARTS) == 20


@pytest.mark.parametrize("protocol", ["capture", "date"])
def test_without_dates_the_way_out_is_named(tmp_path, protocol):
    dataset = dataset_of(tmp_path, [(None, None, None, 3), ("20140101", None, None, 9)], "folder")
    with pytest.raises(DataError, match=r"3 of 12 images have none; .*'paper'"):
        make_split(dataset, protocol)
    assert len(make_split(dataset, "paper").test) == 1


def test_paper_takes_the_lists_of_the_dataset(tmp_path):
    lists = {"train": ("d0001", "d0002_4", "d0003"), "val": ("d0002", "d0001_1")}
    dataset = dataset_of(tmp_path, [(None, None, False, 5)], lists=lists)
    split = make_split(dataset, "paper", 7)
    assert parts(split) == {"train": lists["train"], "val": (), "test": lists["val"]}
    assert "no selection on the test images" in split.note
    assert make_split(dataset, "paper", 1).test == split.test


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"train": ("d0001",)}, "one is there, the other is not"),
        ({"train": ("d0001",), "val": ("d0001",)}, "1 names stand twice, the first is 'd0001'"),
        ({"train": ("d0001",), "val": ("d0009",)}, "no image named 'd0009'"),
        ({"train": ("d0001",), "val": ("../d0002",)}, "no image named '../d0002'"),
        ({"train": ("d0001",), "val": ()}, "test is empty"),
        ({"train": (), "val": ("d0001",)}, "train is empty"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lists, reason):
    dataset = dataset_of(tmp_path, [(None, None, False, 5)], lists=lists)
    with pytest.raises(DataError, match=reason):
        make_split(dataset, "paper")


@pytest.mark.parametrize(("count", "augmentations", "tested"), [(2, 0, 1), (50, 0, 5), (50, 5, 30)])
def test_paper_without_lists_is_nine_to_one_over_images(tmp_path, count, augmentations, tested):
    captures = [(None, None, False, count)]
    dataset = dataset_of(tmp_path, captures, augmentations=augmentations)
    split = make_split(dataset, "paper")
    assert len(split.test) == tested and split.val == ()
    assert sorted(split.train + split.test) == sorted(s.name for s in dataset)


def test_paper_leaks_as_published(tmp_path):
    dataset = dataset_of(tmp_path, [(None, None, False, 50)], augmentations=5)
    split = make_split(dataset, "paper")
    sources = [{dataset.find(name).source for name in names} for names in (split.train, split.test)]
    assert sources[1] <= sources[0]


def test_one_image_cannot_be_divided(tmp_path):
    with pytest.raises(DataError, match="1 image cannot be divided"):
        make_split(dataset_of(tmp_path, [(None, None, False, 1)]), "paper")


@pytest.mark.parametrize("protocol", ["random", "Date", "", None, 3])
def test_an_unknown_protocol(tmp_path, protocol):
    with pytest.raises(DataError, match="choose from paper, capture, date"):
        make_split(sky(tmp_path), protocol)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_seed_that_is_none(tmp_path, seed):
    with pytest.raises(DataError, match="seed="):
        make_split(sky(tmp_path), "date", seed)


def test_describe_counts(tmp_path):
    dataset = dataset_of(
        tmp_path,
        [("20140101", "12", False, 2), ("20140101", "13", False, 1), ("20150101", "01", True, 1)],
        augmentations=1,
    )
    split = Split("custom", 0, ("d0001", "d0001_1", "d0002"), (), ("d0003", "n0004"))
    assert split.describe(dataset) == {
        "train": {
            "images": 3,
            "sources": 2,
            "captures": 1,
            "dates": ["20140101"],
            "day": 3,
            "night": 0,
        },
        "val": {"images": 0, "sources": 0, "captures": 0, "dates": [], "day": 0, "night": 0},
        "test": {
            "images": 2,
            "sources": 2,
            "captures": 2,
            "dates": ["20140101", "20150101"],
            "day": 1,
            "night": 1,
        },
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_split_survives_a_file(tmp_path, protocol):
    dataset = sky(tmp_path)
    split = make_split(dataset, protocol, 11)
    split.save(tmp_path / "new" / "split.json")
    loaded = Split.load(str(tmp_path / "new" / "split.json"))
    assert loaded == split and loaded.layout == "swinyseg" and loaded.seed == 11
    loaded.check(dataset)


def test_check_names_what_does_not_fit(tmp_path):
    dataset = sky(tmp_path)
    split = make_split(dataset, "date")
    with pytest.raises(DataError, match="made for layout 'swinyseg', this is 'folder'"):
        split.check(replace(dataset, layout="folder"))
    with pytest.raises(DataError, match="no image named 'x'"):
        replace(split, val=("x",)).check(dataset)
    with pytest.raises(DataError, match=r"date .* in train and in val"):
        replace(split, val=split.train[:1], train=split.train[1:]).check(dataset)
    replace(split, val=split.train[:1], train=split.train[1:], protocol="custom").check(dataset)


def content(**changes):
    whole = {
        "version": 1,
        "protocol": "date",
        "seed": 0,
        "train": ["a"],
        "val": [],
        "test": ["b"],
        "layout": "folder",
        "note": "",
    }
    return json.dumps({key: value for key, value in (whole | changes).items() if value != "gone"})


def test_the_whole_content_is_a_split(tmp_path):
    (tmp_path / "split.json").write_text(content())
    assert Split.load(tmp_path / "split.json") == Split("date", 0, ("a",), (), ("b",), "folder")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a readable JSON"),
        ("{", "not a readable JSON"),
        ("[" * 100_000, "not a readable JSON"),
        ("[]", "not a split"),
        ("null", "not a split"),
        ("{}", "not a split; it must have the fields layout, note, protocol"),
        (content(test="gone"), "not a split"),
        (content(extra=1), "not a split"),
        (content(version=2), "another version"),
        (content(protocol="random"), "protocol='random'"),
        (content(protocol=["date"]), "protocol="),
        (content(seed=-1), "seed=-1"),
        (content(seed=1.5), "seed=1.5"),
        (content(train="ab"), "train must be a list of names"),
        (content(train={"a": 1}), "train must be a list of names"),
        (content(val=[1]), "val must be a list of names"),
        (content(test=[]), "test is empty"),
        (content(train=["a", "a"]), "stand twice"),
        (content(val=["a"]), "stand twice"),
        (content(note=3), "note must be text"),
        (content(layout=None), "layout must be text"),
    ],
)
def test_files_that_are_no_split(tmp_path, text, reason):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Split.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and reason in message and "\n" not in message


def test_missing_binary_and_huge_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Split.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder"):
        Split.load(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="not a readable UTF-8"):
        Split.load(tmp_path / "a.json")
    with open(tmp_path / "b.json", "wb") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    with pytest.raises(DataError, match="at most"):
        Split.load(tmp_path / "b.json")


@pytest.mark.shared
@pytest.mark.parametrize("seed", range(5))
def test_swinyseg_has_several_dates_in_every_part(shared, seed):
    dataset = open_dataset(shared / "data" / "swinyseg-base")
    about = make_split(dataset, "date", seed).describe(dataset)
    totals = {"day": 1013, "night": 115}
    for part, share in (("val", 0.10), ("test", 0.15)):
        for time, total in totals.items():
            assert abs(about[part][time] / total - share) < 0.01
        assert len([date for date in about[part]["dates"] if date < "2016"]) >= 2


@pytest.mark.shared
def test_swinyseg_published_lists(shared):
    dataset = open_dataset(shared / "data" / "swinyseg-base")
    split = make_split(dataset, "paper")
    assert (len(split.train), len(split.val), len(split.test)) == (6091, 0, 677)
    trained = {dataset.find(name).source for name in split.train}
    assert all(dataset.find(name).source in trained for name in split.test)


def test_a_split_or_run_that_is_no_file_is_named(tmp_path, put_no_file):
    dataset = dataset_of(tmp_path / "data", [("20140101", "120000", False, 9)])
    kind = put_no_file(tmp_path / "split.json")
    with pytest.raises(DataError, match=r"split\.json"):
        Split.load(tmp_path / "split.json")
    if kind == "missing":
        assert trained_on(tmp_path, dataset) is None
    else:
        with pytest.raises(DataError, match=r"split\.json"):
            trained_on(tmp_path, dataset)


@pytest.mark.parametrize("also", [5, [5], [{}], [{"layout": "swinyseg", "images": 5}], "x", None])
def test_a_run_of_another_content_is_named(tmp_path, also):
    dataset = dataset_of(tmp_path / "data", [("20140101", "120000", False, 9)])
    Split("custom", 0, ("d0001",), (), ("d0003",)).save(tmp_path / "split.json")
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"also": also}}))
    with pytest.raises(DataError, match=r"run\.json"):
        trained_on(tmp_path, dataset)


def test_names_that_are_no_names_in_a_run_are_of_another_data_set(tmp_path):
    dataset = dataset_of(tmp_path / "data", [("20140101", "120000", False, 9)])
    Split("custom", 0, ("d0001",), (), ("d0003",)).save(tmp_path / "split.json")
    also = [{"layout": "swinyseg", "images": [{}, 7]}]
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"also": also}}))
    assert trained_on(tmp_path, dataset) == {"d0001"}


def test_a_split_keeps_names_of_any_kind(tmp_path):
    split = Split("custom", 0, ("a\nb", "\udcff"), (), ("$x$",))
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
