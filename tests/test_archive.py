"""`ddunet predict --table`: any number of frames become a table, whatever happens meanwhile."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ddunet_keras as dd
from ddunet_keras.camera.archive import archive_settings, measure_archive
from ddunet_keras.camera.table import COLUMNS, Table
from ddunet_keras.cli import main
from ddunet_keras.cli.console import Progress
from ddunet_keras.files import DataError, WriteError, write_image
from ddunet_keras.prediction import PredictOptions, find_photos, predict_files

COUNT = 9
MODELS = Path(__file__).parents[1] / "tflite" / "models"
SETTINGS = {"model": "m.tflite", "threshold": 0.5, "horizon": None}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Skies, a black frame and two that are no frames."""
    folder = tmp_path_factory.mktemp("frames")
    for seed in range(COUNT):
        image, _ = dd.synthetic_sky(seed, (48, 64))
        write_image(folder / f"{seed}.png", image)
    write_image(folder / "black.png", np.zeros((48, 64, 3), np.uint8))
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:400])
    (folder / "empty.png").write_bytes(b"")
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return folder


def predict(frames, table, *words):
    return main(["predict", str(frames), "--table", str(table), "--workers", "2", *words])


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def a_record(name, **values):
    record = dict.fromkeys(COLUMNS) | {"frame": name, "usable": True, "zones": {}}
    return record | SETTINGS | values


def test_records_say_what_predict_says(frames, tmp_path):
    photos = find_photos([frames])
    options = {"threshold": 0.4, "zones": ("circle:30,20,15",), "horizon": "circle:32,24,24"}
    records = list(measure_archive(photos, PredictOptions(**options), workers=3))
    expected = list(predict_files(dd.Segmenter(), photos, tmp_path / "out", **options))
    assert [record["frame"] for record in records] == [str(path) for path in photos.values()]
    for record, other in zip(records, expected, strict=True):
        assert record["threshold"] == 0.4 and record["horizon"] == "circle:32,24,24"
        if "error" in other:
            assert not record["usable"] and record["reason"].startswith("unreadable: ")
            assert record["frame"] not in record["reason"]
            continue
        cover = other["cloud_cover"]
        assert (record["usable"], record["reason"]) == (other["usable"], other["reason"])
        assert (record["okta"], record["time"]) == (cover["okta"], other["taken"])
        for name, value in (("percent", cover["percent"]), ("confidence", other["confidence"])):
            assert record[name] == (None if value is None else pytest.approx(value, abs=1e-3))
        (zone,) = other["zones"].values()
        expected_zone = None if zone["percent"] is None else pytest.approx(zone["percent"], abs=0.1)
        assert record["zones"]["circle:30,20,15"] == expected_zone


def test_the_number_of_workers_changes_nothing(frames):
    photos = find_photos([frames])
    alone = list(measure_archive(photos, workers=1))
    assert list(measure_archive(photos, workers=4)) == alone
    assert sum(record["usable"] for record in alone) == COUNT


def test_a_table_has_a_row_for_each_frame(frames, tmp_path, capsys):
    table = tmp_path / "new" / "sky.csv"
    assert predict(frames, table, "--zone", "circle:30,20,15") == 0
    rows = read(table)
    assert len(rows) == COUNT + 3 and len({row["frame"] for row in rows}) == len(rows)
    assert list(rows[0]) == [*COLUMNS, "zone circle:30,20,15"]
    assert {row["usable"] for row in rows[:COUNT]} == {"true"}
    reasons = [row["reason"] for row in rows[COUNT:]]
    assert reasons[0] == "black" and reasons[2] == "unreadable: the file is empty"
    assert [row["percent"] for row in rows[COUNT:]] == ["", "", ""]
    assert "9 are usable and 2 could not be read" in capsys.readouterr().out
    assert os.listdir(table.parent) == ["sky.csv"]


def test_masks_come_on_request(frames, tmp_path):
    out = tmp_path / "out"
    assert predict(frames, tmp_path / "a.csv", "--out", str(out)) == 0
    assert not out.exists()
    assert predict(frames, tmp_path / "b.csv", "--out", str(out), "--masks") == 0
    masks = {row["mask"] for row in read(tmp_path / "b.csv")} - {""}
    assert len(masks) == COUNT and masks <= set(os.listdir(out))
    assert len(os.listdir(out)) == 2 * COUNT


def test_a_mask_that_the_table_names_is_not_written_over(frames, tmp_path):
    contents = []
    for camera in ("b", "a"):  # the frame that comes later is listed first
        (tmp_path / "frames" / camera).mkdir(parents=True)
        shutil.copy2(frames / f"{'ab'.index(camera)}.png", tmp_path / "frames" / camera / "sky.png")
        words = ("--recursive", "--masks", "--out", str(tmp_path / "out"), "--resume")
        assert predict(tmp_path / "frames", tmp_path / "sky.csv", *words) == 0
        contents.append((tmp_path / "out" / "sky_mask.png").read_bytes())
    masks = [row["mask"] for row in read(tmp_path / "sky.csv")]
    assert masks == ["sky_mask.png", "sky-2_mask.png"]
    assert contents[0] == contents[1] != (tmp_path / "out" / masks[1]).read_bytes()


def test_a_frame_is_known_however_its_path_is_written(frames, tmp_path, monkeypatch):
    monkeypatch.chdir(frames.parent)
    assert predict(frames.name, tmp_path / "sky.csv") == 0
    before = (tmp_path / "sky.csv").read_bytes()
    for spelling in (frames, f"{frames.name}/../{frames.name}"):
        assert predict(spelling, tmp_path / "sky.csv", "--resume") == 0
    assert (tmp_path / "sky.csv").read_bytes() == before


@pytest.mark.parametrize("option", ["--model", "--horizon"])
def test_another_file_of_the_same_name_is_refused(frames, tmp_path, capsys, option):
    file = tmp_path / ("m.tflite" if option == "--model" else "h.png")

    def write(number):
        if option == "--model":
            shutil.copy(MODELS / f"ddunet_c4_{(96, 128)[number]}.tflite", file)
        else:
            write_image(file, np.full((48, 64), 255, np.uint8) * (np.arange(64) > number))

    write(0)
    assert predict(frames, tmp_path / "sky.csv", option, str(file)) == 0
    assert predict(frames, tmp_path / "sky.csv", option, str(file), "--resume") == 0
    write(1)
    assert predict(frames, tmp_path / "sky.csv", option, str(file), "--resume") == 2
    assert f"was begun with {option[2:]} '{file.name} " in capsys.readouterr().err


def test_parquet_holds_what_csv_holds(frames, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    zone = ("--zone", "circle:30,20,15")
    assert predict(frames, tmp_path / "sky.csv", *zone) == 0
    assert predict(frames, tmp_path / "sky.parquet", *zone) == 0
    rows = parquet.read_table(tmp_path / "sky.parquet").to_pylist()
    as_text = {None: "", True: "true", False: "false"}
    shown = [
        {k: as_text[v] if v is None or isinstance(v, bool) else str(v) for k, v in row.items()}
        for row in rows
    ]
    assert shown == read(tmp_path / "sky.csv")
    assert isinstance(rows[0]["percent"], float) and isinstance(rows[0]["okta"], int)
    assert sorted(os.listdir(tmp_path)) == ["sky.csv", "sky.parquet"]


@pytest.mark.parametrize("cut", [0, 1, 60, 200, 333, 700, 10**6])
@pytest.mark.parametrize("noise", [b"", b"\0" * 70_000, b'2026-11-29,"half'])
def test_a_journal_that_was_cut_anywhere_is_gone_on_with(frames, tmp_path, cut, noise):
    whole = tmp_path / "whole.csv"
    names = [f"{index}.jpg" for index in range(12)]
    with Table(whole, SETTINGS) as table:
        for name in names:
            table.write(a_record(name, percent=12.5))
    path = tmp_path / "sky.csv"
    journal = tmp_path / "sky.csv.journal"
    journal.write_bytes(whole.read_bytes()[:cut] + noise)
    with Table(path, SETTINGS, resume=True) as table:
        left = [name for name in names if name not in table.frames]
        for name in left:
            table.write(a_record(name, percent=12.5))
    assert path.read_bytes() == whole.read_bytes()
    assert not journal.exists()


@pytest.mark.parametrize("name", ["sky.csv", "sky.parquet"])
def test_new_frames_are_added_to_a_finished_table(frames, tmp_path, capsys, name):
    pytest.importorskip("pyarrow")
    some = tmp_path / "frames"
    some.mkdir()
    everything = sorted(frames.iterdir())
    for path in everything[:5]:
        shutil.copy2(path, some)
    assert predict(some, tmp_path / name) == 0
    for path in everything[5:]:
        shutil.copy2(path, some)
    assert predict(some, tmp_path / name) == 2  # it is there
    assert "--resume" in capsys.readouterr().err
    assert predict(some, tmp_path / name, "--resume") == 0
    assert "5 of 12 frames are in the table already" in capsys.readouterr().err
    assert predict(some, tmp_path / f"at_once_{name}") == 0
    assert (tmp_path / name).read_bytes() == (tmp_path / f"at_once_{name}").read_bytes()


def test_an_error_leaves_the_journal(tmp_path):
    with pytest.raises(KeyboardInterrupt), Table(tmp_path / "a.csv", SETTINGS) as table:
        table.write(a_record("a.jpg"))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.csv.journal"]
    assert Table(tmp_path / "a.csv", SETTINGS, resume=True).frames == {"a.jpg"}
    with pytest.raises(DataError, match="journal: is there"):
        Table(tmp_path / "a.csv", SETTINGS)


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_is_said_and_the_journal_can_be_gone_on_with(tmp_path):
    import resource

    table = Table(tmp_path / "a.csv", SETTINGS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(WriteError, match=r"a\.csv\.journal"), table:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
        try:
            for index in range(100):
                table.write(a_record(f"{index}.jpg"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 1 < len(Table(tmp_path / "a.csv", SETTINGS, resume=True).frames) < 20


@pytest.mark.parametrize("change", [{"threshold": 0.6}, {"model": "n.tflite"}, {"horizon": "auto"}])
def test_a_table_has_one_kind_of_settings(tmp_path, change):
    with Table(tmp_path / "a.csv", SETTINGS) as table:
        table.write(a_record("a.jpg"))
    before = (tmp_path / "a.csv").read_bytes()
    with pytest.raises(DataError, match=f"with {next(iter(change))}"):
        Table(tmp_path / "a.csv", SETTINGS | change, resume=True)
    with pytest.raises(DataError, match="other columns"):
        Table(tmp_path / "a.csv", SETTINGS, zones=["zenith:30"], resume=True)
    assert os.listdir(tmp_path) == ["a.csv"] and (tmp_path / "a.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xff\xfe\n\n"),
        ("a.csv", b"a,b\n1,2\n"),
        ("a.csv", ",".join(COLUMNS).encode() + b"\n1,2\n" + b"," * 12 + b"\n"),
        ("a.parquet", b"PAR1"),
        ("a.parquet", b"text"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, name, content):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        Table(tmp_path / name, SETTINGS, resume=True)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == content


def test_the_time_is_in_the_name_or_else_that_of_the_file(frames, tmp_path):
    for name in ("image-20260601223045.png", "sky.png", "20260601_223045_cut.png"):
        shutil.copy2(frames / ("cut.png" if "cut" in name else "0.png"), tmp_path / name)
    records = {
        record["frame"]: record for record in measure_archive(find_photos([tmp_path]), workers=1)
    }
    by_name = {os.path.basename(path): record for path, record in records.items()}
    for name in ("image-20260601223045.png", "20260601_223045_cut.png"):
        assert by_name[name]["time"].startswith("2026-06-01T22:30:45")
        assert by_name[name]["time_from"] == "name"
    assert by_name["sky.png"]["time_from"] == "file"
    (away,) = measure_archive({"away": tmp_path / "away.png"}, workers=1)
    assert away["time"] is None and away["reason"] == "unreadable: no such file"


@pytest.mark.parametrize("name", ["a\nb.png", 'a"b,.png', "ü\udcff.png", "=1+1.png"])
def test_a_row_is_a_line_whatever_a_file_is_called(frames, tmp_path, name):
    folder = tmp_path / "frames"
    folder.mkdir()
    shutil.copy(frames / "0.png", folder / "0.png")
    try:
        shutil.copy(frames / "1.png", folder / name)
    except OSError:
        pytest.skip("not a name here")
    for _ in range(2):
        assert predict(folder, tmp_path / "a.csv", "--resume") == 0
        assert len((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--resume"], "--resume is for --table"),
        (["--workers", "2"], "--workers is for --table"),
        (["--table", "a.txt"], "a .csv or a .parquet"),
        (["--table", "a.csv", "--model", "m.keras"], "needs a .tflite file"),
        (["--table", "a.csv", "--model", "m.tflite"], "m.tflite"),
        (["--table", "a.csv", "--horizon", "circle:1"], "circle:1"),
        (["--table", "a.csv", "--zone", "zenith:30"], "zenith:30"),
        (["--table", "a.csv", "--threads", "2"], "--workers"),
        (["--table", "a.csv", "--masks", "--out", "FRAMES"], "give another"),
        (["--table", "a.csv", "--workers", "0"], "positive"),
        (["--table", "FRAMES"], "a .csv or a .parquet"),
        (["--table", "a.csv", "--dask", "nowhere://x"], "no Dask scheduler there"),
    ],
)
def test_mistakes_are_said_in_a_line(frames, tmp_path, capsys, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    words = [str(frames) if word == "FRAMES" else word for word in words]
    try:
        code = main(["predict", str(frames), *words])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr().err
    assert code == 2 and error in captured and captured.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_stopping_early_stops_the_workers(frames):
    records = measure_archive(find_photos([frames]), workers=2)
    next(records)
    records.close()
    with pytest.raises(StopIteration):
        next(records)


def test_records_are_printed_on_request(frames, tmp_path, capsys):
    assert predict(frames, tmp_path / "a.csv", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == [row["frame"] for row in read(tmp_path / "a.csv")]


def test_progress_is_shown_each_second_at_a_terminal(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(1000, "frames")
    for done in range(1, 1001):
        now[0] += 0.05
        progress.show(done)
    shown = capsys.readouterr().err
    assert 48 <= shown.count("\r") <= 51 and shown.endswith("\n")
    assert "1,000 of 1,000 frames, 20.0 a second, 0 s left" in shown


def test_dask_gives_the_same_bytes(frames, tmp_path):
    distributed = pytest.importorskip("distributed")
    photos = find_photos([frames])
    settings = archive_settings(PredictOptions())
    with Table(tmp_path / "a.csv", settings) as table:
        for record in measure_archive(photos, workers=2):
            table.write(record)
    client = distributed.Client(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None
    )
    with client, Table(tmp_path / "b.csv", settings) as table:
        for record in measure_archive(photos, client=client):
            table.write(record)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.slow
def test_dask_in_processes_gives_the_same_bytes(frames, tmp_path, capsys):
    pytest.importorskip("distributed")
    assert predict(frames, tmp_path / "a.csv") == 0
    assert predict(frames, tmp_path / "b.csv", "--dask", "local") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_is_gone_on_with(frames, tmp_path):
    many = tmp_path / "frames"
    many.mkdir()
    for index in range(40):
        for name in ("0.png", "1.png", "empty.png"):
            shutil.copy2(frames / name, many / f"{index:02d}_{name}")
    table = tmp_path / "sky.csv"
    journal = tmp_path / "sky.csv.journal"
    words = [sys.executable, "-m", "ddunet_keras", "predict", str(many), "--table", str(table)]
    process = subprocess.Popen([*words, "--workers", "2"])
    deadline = time.monotonic() + 300
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if table.exists():
        pytest.skip("it was faster than the signal")
    kept = journal.read_bytes().count(b"\n") - 1
    assert predict(many, table, "--resume") == 0
    rows = read(table)
    assert 0 < kept < len(rows) == 120
    assert [row["frame"] for row in rows] == [str(path) for path in sorted(many.iterdir())]
