"""The service that watches a camera: each new frame once, whatever goes wrong meanwhile."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import watched
from marks import slow_case
from PIL import Image
from watched import SkyModel, black_frame, encode, frame, put

from ddunet_keras.camera import watchdog
from ddunet_keras.camera.config import WatchConfig
from ddunet_keras.camera.notices import Notices
from ddunet_keras.camera.records import FIELDS, describe
from ddunet_keras.camera.safety import SafetyConfig, SafetyMonitor
from ddunet_keras.camera.safety_file import SafetyFile
from ddunet_keras.camera.sources import SETTLED
from ddunet_keras.camera.watch import Clock, Watch
from ddunet_keras.cli import main
from ddunet_keras.files import DataError, read_json

PATIENCE = 120
"""Seconds that a test waits for another process, on a busy machine."""


class Hand:
    """Clocks that are set by hand."""

    def __init__(self):
        self.now = time.time()
        self.monotonic = 1000.0

    def sleep(self, seconds):
        self.now += seconds
        self.monotonic += seconds

    def clock(self):
        return Clock(lambda: self.now, lambda: self.monotonic, self.sleep)


class Camera:
    """A folder, and the service that watches it, which is polled by hand."""

    def __init__(self, folder):
        self.folder = folder / "frames"
        self.folder.mkdir(exist_ok=True)
        self.source = self.folder
        self.out = folder / "out"
        self.hand = Hand()
        self.said = []
        self.watch = None
        self.settings = {}
        self.monitor = None
        self.model = SkyModel()

    def start(self):
        config = WatchConfig(self.source, out=self.out, **self.settings)
        self.watch = Watch(
            config,
            self.model,
            Notices(self.said.append),
            monitor=self.monitor,
            clock=self.hand.clock(),
        )
        return self

    def stop(self):
        if self.watch is not None:
            self.watch.close()
        self.watch = None

    def restart(self):
        self.stop()
        return self.start()

    def put(self, name, content):
        path = put(self.folder / name, content)
        os.utime(path, (self.hand.now, self.hand.now))
        return path

    def poll(self, seconds=1.0):
        self.hand.sleep(seconds)
        self.watch.poll()
        return self

    def rows(self):
        return read_log(self.out)

    def state(self):
        return read_json(self.out / "state.json")


@pytest.fixture
def camera(tmp_path):
    camera = Camera(tmp_path)
    yield camera
    camera.stop()


def read_log(out):
    """All records, after a look at whether the CSV files say the same."""
    records = []
    for path in sorted((out / "log").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        with open(path.with_suffix(".csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["frame"] for row in rows] == [line["frame"] for line in lines]
        for row, line in zip(rows, lines, strict=True):
            assert tuple(line) == FIELDS
            assert row["percent"] == ("" if line["percent"] is None else str(line["percent"]))
            assert line["time"].startswith(path.stem)
        records += lines
    return records


def by_name(records):
    named = {Path(record["frame"]).name: record for record in records}
    assert len(named) == len(records), "a frame has two rows"
    return named


# where the sky is -------------------------------------------------------------------------------


def fisheye(seed):
    """A bright disc of sky in a black frame."""
    height, width = 48, 64
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    sky = 150 + (x - 32)[..., None] + noise
    is_sky = ((x - 31.5) ** 2 + (y - 23.5) ** 2 < 20**2)[..., None]
    return encode(np.where(is_sky, sky, 0).clip(0, 254).astype(np.uint8))


def test_the_disc_that_was_found_serves_frames_in_which_there_is_none(camera):
    camera.settings = {"horizon": "auto"}
    camera.start().poll()
    for name, content in (("a", frame(1)), ("b", fisheye(2)), ("c", frame(3))):
        camera.put(f"{name}.jpg", content)
        camera.poll()
    before, found, after = camera.rows()
    assert (before["disc"], found["disc"], after["disc"]) == (False, True, True)
    assert before["valid_fraction"] == 1
    assert found["valid_fraction"] == pytest.approx(np.pi * 20**2 / (48 * 64), abs=0.05)
    assert after["valid_fraction"] == found["valid_fraction"]
    assert "no disc found" in describe(before) and "no disc found" not in describe(after)


def test_without_a_disc_it_is_never_safe(camera):
    camera.settings = {"horizon": "auto"}
    camera.monitor = SafetyMonitor(SafetyConfig(open_delay=0, min_confidence=0))
    camera.start().poll()
    camera.put("a.jpg", frame(1, brightness=100))
    (record,) = camera.poll().rows()
    assert record["percent"] == 0 and not record["safe"]
    assert "no disc found" in record["safe_reason"]
    camera.settings = {"horizon": None}
    camera.restart().poll()
    camera.put("b.jpg", frame(2, brightness=100))
    assert camera.poll().rows()[-1]["safe"]


# each frame once ----------------------------------------------------------------------------------


def test_a_frame_is_measured_and_recorded(camera):
    camera.settings = {"zone": ["circle:32,12,10"]}
    camera.start().poll()
    camera.put("20260601/night/a.jpg", frame(1))
    (record,) = camera.poll().rows()
    assert record["percent"] == 50 and record["okta"] == 4 and record["valid_fraction"] == 1
    assert record["usable"] and record["reason"] is None and record["safe"] is None
    assert record["zones"] == {"circle:32,12,10": 100}
    assert record["time_from"] == "file" and record["model"] == "ddunet_c8"
    assert (camera.out / record["thumbnail"]).is_file() and (camera.out / "latest.jpg").is_file()
    assert camera.state() == record
    assert len(camera.poll().rows()) == 1


def test_what_is_beside_the_frames_is_left_out(camera):
    camera.start().poll()
    for name in (
        "thumbnails/a.jpg",
        "keogram/k.jpg",
        "x-startrails.jpg",
        ".a.jpg",
        "a.txt",
        "a.mp4",
    ):
        camera.put(name, frame(len(name)))
    assert camera.poll().rows() == []


def test_results_in_the_watched_folder_are_no_frames(camera):
    camera.out = camera.folder / "results"
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    put(camera.out / "mine.jpg", frame(2))
    assert list(by_name(camera.poll().poll().rows())) == ["a.jpg"]


def test_the_first_start_takes_the_newest_frame_alone(camera):
    for number in range(3):
        camera.put(f"{number}.jpg", frame(number))
        camera.hand.sleep(10)
    assert list(by_name(camera.start().poll().rows())) == ["2.jpg"]
    assert len(camera.restart().poll().rows()) == 1


def test_the_backlog_is_measured_behind_what_is_new(camera):
    camera.settings = {"backlog": True}
    for number in range(3):
        camera.put(f"{number}.jpg", frame(number))
        camera.hand.sleep(86_400)
    camera.start().watch.once()
    rows = by_name(camera.rows())
    assert set(rows) == {"0.jpg", "1.jpg", "2.jpg"}
    assert all(row["usable"] for row in rows.values())
    assert not (camera.out / "state.json").exists()  # none is of now


def test_the_newest_frame_counts_even_if_it_is_of_the_backlog(camera):
    camera.settings = {"backlog": True}
    camera.put("0.jpg", frame(0))
    camera.hand.sleep(10)
    camera.put("1.jpg", frame(1)[:900])
    camera.hand.sleep(86_400)
    camera.start()
    assert camera.watch.once()["reason"].startswith("unreadable")


def test_old_frames_that_come_later_wait_behind_what_is_new(camera):
    camera.settings = {"backlog": True}
    camera.start().poll()
    now = camera.hand.now
    for number in range(3):  # a card is copied into the folder
        camera.hand.now = now - 86_400 + number
        camera.put(f"old{number}.jpg", frame(number))
    camera.hand.now = now
    camera.put("new.jpg", frame(9))
    assert list(by_name(camera.poll().rows())) == ["new.jpg"]
    camera.watch.once()
    rows = by_name(camera.rows())
    assert len(rows) == 4 and all(row["usable"] for row in rows.values())


def test_a_frame_whose_end_is_still_empty_is_waited_for(camera):
    bitmap = io.BytesIO()
    Image.open(io.BytesIO(frame(1))).save(bitmap, "BMP")
    content = bitmap.getvalue()
    camera.start().poll()
    camera.put("a.bmp", content[:4000] + bytes(len(content) - 4000))
    assert camera.poll().rows() == []
    camera.put("a.bmp", content)
    (record,) = camera.poll().rows()
    assert record["usable"]
    camera.put("b.bmp", content[:4000] + bytes(len(content) - 4000))  # which it may be, in truth
    assert len(camera.poll().rows()) == 1
    assert len(camera.poll(SETTLED + 1).rows()) == 2


def test_a_frame_that_is_whole_before_its_turn_is_read(camera):
    class SlowModel(SkyModel):
        def segment(self, *arguments, **options):
            camera.hand.sleep(SETTLED)
            if (camera.folder / "c.jpg").stat().st_size < 1000:
                camera.put("c.jpg", whole)
            return super().segment(*arguments, **options)

    whole = frame(3)
    camera.model = SlowModel()
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    camera.put("b.jpg", frame(2))
    camera.put("c.jpg", whole[:900])
    rows = by_name(camera.poll().rows())
    assert all(row["usable"] for row in rows.values()) and len(rows) == 3


def test_a_half_written_frame_is_waited_for(camera):
    camera.start().poll()
    content = frame(1)
    camera.put("a.jpg", content[:900])
    camera.put("b.jpg", b"")
    camera.poll().poll(SETTLED / 2)
    assert camera.rows() == []
    (camera.folder / "a.jpg").write_bytes(content)
    (record,) = camera.poll().rows()
    assert record["usable"] and not camera.said
    (camera.folder / "b.jpg").write_bytes(frame(2))
    assert by_name(camera.poll().rows())["b.jpg"]["usable"]


def test_a_frame_that_stays_broken_is_recorded_and_said_once(camera):
    camera.start().poll()
    for number in range(3):
        camera.put(f"{number}.jpg", frame(number)[:900])
    camera.poll().poll(SETTLED + 1)
    rows = camera.rows()
    assert len(rows) == 3
    for row in rows:
        assert row["reason"].startswith("unreadable: not a readable image")
        assert row["percent"] is row["okta"] is row["valid_fraction"] is None
        assert row["usable"] is False and row["zones"] == {}
    assert camera.said == ["frames: cannot be read; the log says why"]


def test_a_frame_that_is_renamed_is_one(camera):
    camera.start().poll()
    camera.put("part.jpg", frame(1)[:900])
    camera.poll()
    os.replace(camera.folder / "part.jpg", camera.folder / "gone")
    camera.put("a.jpg", frame(1))
    camera.poll().poll(SETTLED + 1)
    assert list(by_name(camera.rows())) == ["a.jpg"]


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "line\nbreak.jpg"])
def test_any_name_is_taken(camera, name):
    camera.start().poll()
    try:
        camera.put(name, frame(1))
    except OSError:
        pytest.skip("this file system has no such names")
    camera.poll().restart().poll()
    assert len(camera.rows()) == 1


# what is no cover ---------------------------------------------------------------------------------


def test_frozen_old_and_black_frames_have_no_cover(camera):
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    camera.poll()
    camera.put("b.jpg", frame(1))
    camera.poll()
    camera.put("c.jpg", black_frame())
    camera.poll()
    camera.put("2001-01-01_120000.jpg", frame(2))
    rows = by_name(camera.poll().rows())
    reasons = {name: row["reason"] for name, row in rows.items()}
    assert reasons == {"a.jpg": None, "b.jpg": "frozen", "c.jpg": "black"} | {
        "2001-01-01_120000.jpg": "old"
    }
    for name in ("b.jpg", "c.jpg", "2001-01-01_120000.jpg"):
        assert rows[name]["percent"] is None and rows[name]["okta"] is None
        assert not rows[name]["usable"]
    assert rows["2001-01-01_120000.jpg"]["time"].startswith("2001-01-01T12:00:00")
    assert camera.said[0].startswith("frames: repeat byte for byte")
    assert camera.said[-1].startswith("frames: are old")


def test_a_frozen_frame_is_recognized_after_a_restart(camera):
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    camera.poll().restart()
    camera.put("b.jpg", frame(1))
    assert by_name(camera.poll().rows())["b.jpg"]["reason"] == "frozen"


def test_a_horizon_that_does_not_fit_is_told(camera):
    camera.settings = {"horizon": "circle:900,900,3"}
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    assert "leaves no sky" in camera.poll().rows()[0]["reason"]


def test_a_camera_that_falls_silent_is_recorded_once(camera):
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    camera.poll().poll(601).poll(601)
    camera.restart().poll(601)
    last, silence = camera.rows()[0], camera.rows()[1:]
    assert last["usable"]
    assert [row["reason"] for row in silence] == ["missing: no new frame"]
    assert camera.state()["percent"] is None
    camera.put("b.jpg", frame(2))
    assert camera.poll().state()["usable"]
    assert camera.said == ["frames: no new frame comes", "frames: no new frame comes"] + [
        "frames: all right again"
    ]


def test_a_folder_that_is_removed_and_restored(camera):
    camera.start().poll()
    camera.put("20260601/a.jpg", frame(1))
    camera.poll()
    aside = camera.folder.with_name("aside")
    os.replace(camera.folder, aside)
    camera.poll().poll().poll()
    assert [row["reason"] for row in camera.rows()[1:]] == ["missing: no such folder"]
    os.replace(aside, camera.folder)
    camera.put("20260601/b.jpg", frame(2))
    rows = camera.poll().poll().rows()
    assert [Path(row["frame"]).name for row in rows] == ["a.jpg", "frames", "b.jpg"]
    assert camera.said == [
        f"source: {camera.folder}: no such folder",
        "source: all right again",
    ]


def test_a_clock_that_is_set_back(camera):
    camera.start().poll()
    camera.put("a.jpg", frame(1))
    camera.poll()
    camera.hand.now -= 7200
    camera.put("b.jpg", frame(2))
    camera.poll()
    camera.put("c.jpg", frame(3)[:900])
    camera.poll().poll(SETTLED + 1)  # it is waited for by the clock that never goes back
    rows = by_name(camera.rows())
    assert rows["b.jpg"]["usable"] and rows["b.jpg"]["time"] < rows["a.jpg"]["time"]
    assert rows["c.jpg"]["reason"].startswith("unreadable")
    assert camera.state() == rows["c.jpg"]


def test_safe_turns_unsafe_without_a_frame(camera):
    config = SafetyConfig(enabled=True, open_delay=0, max_age=60, min_confidence=0)
    camera.monitor = SafetyMonitor(config)
    camera.start().poll()
    camera.watch.tick()
    camera.put("a.jpg", frame(1, brightness=60))
    (row,) = camera.poll().rows()
    assert row["percent"] == 0 and row["safe"] and camera.state()["safe"]
    camera.hand.sleep(61)
    camera.watch.tick()
    assert camera.state()["safe"] is False
    assert [row["safe"] for row in camera.poll().rows()] == [True, False]


def test_the_state_is_unsafe_when_the_service_has_ended(camera):
    config = SafetyConfig(enabled=True, open_delay=0, max_age=60, min_confidence=0)
    camera.monitor = SafetyMonitor(config)
    camera.start().poll()
    camera.put("a.jpg", frame(1, brightness=60))
    camera.poll()
    written = (camera.out / "state.json").read_text()
    assert camera.state()["safe"] is True
    camera.stop()
    assert camera.state()["safe"] is False
    assert camera.state()["safe_reason"] == "the service has ended"
    (camera.out / "state.json").write_text(written)  # as if it had been killed
    camera.monitor = SafetyMonitor(config)
    camera.start()
    assert camera.state()["safe"] is False


def test_a_service_that_hangs_is_unsafe(tmp_path, monkeypatch):
    """In a source that neither answers nor gives up."""
    monkeypatch.setattr(watchdog, "SILENCE", 0.2)
    safety = SafetyConfig(enabled=True, open_delay=0, min_confidence=0)
    file = SafetyFile(tmp_path / "safe.txt", lambda topic, message: None)
    put(tmp_path / "frames" / "a.jpg", frame(1, brightness=60))
    said = []
    watch = Watch(
        WatchConfig(tmp_path / "frames", out=tmp_path / "out", interval=0.5),
        SkyModel(),
        Notices(said.append),
        monitor=SafetyMonitor(safety),
        publishers=[file],
    )
    looks = []

    class Ended(Exception):
        pass

    def hangs():
        looks.append(file.path.read_text().splitlines()[0])
        if len(looks) == 1:
            wait_until(lambda: "CLOSED" in file.path.read_text())
            return []
        raise Ended

    watch.poll()
    assert "OPEN" in file.path.read_text()
    monkeypatch.setattr(watch._source, "poll", hangs)
    with pytest.raises(Ended):
        watch.run()
    watch.close()
    # after it has answered again, the delay before it opens has to pass anew
    assert looks == ["Roof Status: OPEN", "Roof Status: CLOSED"]
    assert said[0] == "service: hangs for more than 0.2 s, which is unsafe"
    assert read_json(tmp_path / "out" / "state.json")["safe"] is False


def wait_until(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("fault", ["folder", "frozen", "black", "broken", "clock", "silent"])
def test_every_fault_is_unsafe(camera, fault):
    config = SafetyConfig(enabled=True, open_delay=0, max_age=60, min_confidence=0)
    camera.monitor = SafetyMonitor(config)
    camera.start().poll()
    camera.put("a.jpg", frame(1, brightness=60))
    camera.poll().watch.tick()
    assert camera.state()["safe"] is True
    delay = 0
    if fault == "folder":
        shutil.rmtree(camera.folder)
    elif fault == "frozen":
        camera.put("b.jpg", frame(1, brightness=60))
    elif fault == "black":
        camera.put("b.jpg", black_frame())
    elif fault == "broken":
        camera.put("b.jpg", frame(2)[:900])
        camera.poll()
        delay = SETTLED
    elif fault == "clock":
        camera.hand.now -= 3600
    else:
        delay = config.max_age
    camera.poll(delay + 1).watch.tick()
    assert camera.state()["safe"] is False
    assert camera.state()["safe_reason"]


def test_thumbnails_of_a_few_days_are_kept(camera):
    camera.settings = {"thumbnail_days": 2}
    camera.start().poll()
    for day in range(4):
        camera.put(f"{day}.jpg", frame(day))
        camera.poll()
        camera.hand.sleep(86_400)
    assert len(list((camera.out / "thumbnails").iterdir())) == 2
    camera.settings = {"thumbnail_days": 0}
    camera.restart()
    camera.put("5.jpg", frame(5))
    assert camera.poll().rows()[-1]["thumbnail"] is None


def test_a_file_that_is_replaced(camera):
    camera.source = camera.folder / "sky.jpg"
    camera.start().poll()
    assert camera.rows()[0]["reason"].startswith("missing")
    camera.put("sky.jpg", frame(1))
    camera.poll().poll().restart().poll()
    camera.put("sky.jpg", frame(2))
    camera.poll()
    camera.put("sky.jpg", frame(3)[:900])
    camera.poll()
    camera.put("sky.jpg", frame(4))
    rows = camera.poll().poll().rows()[1:]
    assert [row["usable"] for row in rows] == [True] * 3


def test_two_services_do_not_share_a_folder(camera):
    camera.start()
    with pytest.raises(DataError, match="another ddunet watch"):
        Watch(WatchConfig(camera.folder, out=camera.out), SkyModel())


# faults of the disk -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("only root of Linux can make a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_no_row(camera, small_disk):
    camera.out = small_disk / "out"
    camera.start().poll()
    camera.put("0.jpg", frame(0))
    camera.poll()
    filling = small_disk / "filling"
    with open(filling, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    for number in range(1, 60):
        camera.put(f"{number}.jpg", frame(number))
        camera.poll()
    said = list(camera.said)
    assert 1 <= len(said) <= 3 and all("cannot be written" in line for line in said)
    filling.unlink()
    camera.put("60.jpg", frame(60))
    rows = by_name(camera.poll().poll().rows())
    assert sorted(rows, key=lambda name: int(name[:-4])) == [f"{n}.jpg" for n in range(61)]
    assert all(row["usable"] for row in rows.values())
    assert camera.state() == rows["60.jpg"]
    assert sum(line.endswith("all right again") for line in camera.said) == len(said)
    camera.stop()  # before it is unmounted


# killed and started again -------------------------------------------------------------------------


class Service:
    """The service in a process of its own."""

    def __init__(self, source, out):
        self.command = [sys.executable, watched.__file__, str(source), str(out)]
        self.out = out
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def end(self, number):
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE)
        return said.decode()

    def count(self):
        return sum(
            len(path.read_bytes().splitlines()) for path in (self.out / "log").glob("*.jsonl")
        )

    def wait_for(self, count):
        until = time.monotonic() + PATIENCE
        while self.count() < count:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < until, f"{self.count()} rows of {count}"
            time.sleep(0.05)


def copy_frames(folder, count):
    """Copies frames as a camera would, some of them oddly; yields the number of each."""
    begin = time.time() - count
    late = []
    for number in range(count):
        # every seventh has a time before that of others that came earlier
        taken = datetime.fromtimestamp(begin + number - (3 if number % 7 == 0 else 0))
        path = folder / f"day{number % 3}" / f"image-{taken:%Y%m%d%H%M%S}-{number}.jpg"
        content = frame(number, size=(48, 32))
        if number % 10 == 3:  # the same as the one before
            put(path, frame(number - 1, size=(48, 32)))
        elif number % 10 == 5:
            put(path, black_frame((48, 32 + number)))  # each is another
        elif number % 10 == 8:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content[: len(content) // 2])
            late.append((path, content))
        else:
            put(path, content)
        if number % 10 == 0:
            for path, content in late:
                path.write_bytes(content)
            late.clear()
        yield number


def check_rows(out, count):
    rows = by_name(read_log(out))
    assert len(rows) == count
    for name, row in rows.items():
        number = int(name.rpartition("-")[2].partition(".")[0])
        reason = {3: "frozen", 5: "black"}.get(number % 10)
        assert row["reason"] == reason, name
        assert row["percent"] == (50 if reason is None else None), name
        assert row["time_from"] == "name"


@pytest.mark.parametrize(("count", "every"), [(42, 20), slow_case(502, 50)])
def test_killed_and_started_again_each_frame_has_its_row(tmp_path, count, every):
    source = tmp_path / "frames"
    source.mkdir()
    service = Service(source, tmp_path / "out")
    service.start()
    for number in copy_frames(source, count):
        if number == 0:
            service.wait_for(1)  # of what is there at its first start it takes the newest alone
        elif number % every == 11:
            service.wait_for(number // 2)  # in the middle
            service.end(signal.SIGKILL)
        elif number > every and number % every == 1:  # the newest frame repeats no other
            service.start()
    service.wait_for(count)
    assert "Traceback" not in service.end(signal.SIGTERM)
    check_rows(service.out, count)


LOG_WRITER = """
import sys
from datetime import datetime, timezone
from ddunet_keras.camera.log import Log
from ddunet_keras.camera.records import new_record
log = Log(sys.argv[1])
print("started", flush=True)
for number in range(int(sys.argv[2])):
    key = ("", str(number))
    if not log.is_known(key):
        time = datetime(2026, 6, 1 + number % 2, tzinfo=timezone.utc)
        log.add(new_record(time, "clock", str(number), "m"), key)
        log.flush()
"""


def test_a_log_that_is_killed_while_it_writes(tmp_path):
    def start(count):
        return subprocess.Popen(
            [sys.executable, "-c", LOG_WRITER, str(tmp_path), str(count)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    for pause in (0.02, 0.05, 0.08):
        with start(1_000_000) as writer:
            writer.stdout.readline()
            time.sleep(pause)  # any moment will do
            writer.kill()
    # a CSV row may still lack here: the next start writes it
    written = sum(path.read_text().count("\n") for path in (tmp_path / "log").glob("*.jsonl"))
    with start(written + 10) as writer:
        assert writer.wait(PATIENCE) == 0
    numbers = sorted(int(record["frame"]) for record in read_log(tmp_path))
    assert numbers == list(range(len(numbers))) and len(numbers) >= written


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Over 1,500 frames, with a process of its own that measures itself."""
    script = (
        "import sys, watched\n"
        "from pathlib import Path\n"
        "from ddunet_keras.camera.config import WatchConfig\n"
        "from ddunet_keras.camera.watch import Watch\n"
        "def used():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.partition('VmRSS:')[2].split()[0]) / 1024\n"
        "folder = Path(sys.argv[1])\n"
        "(folder / 'frames').mkdir()\n"
        "watch = Watch(WatchConfig(folder / 'frames', out=folder / 'out'), watched.SkyModel())\n"
        "watch.poll()\n"
        "for number in range(1500):\n"
        "    watched.put(folder / f'frames/{number}.jpg', watched.frame(number, size=(320, 240)))\n"
        "    watch.poll()\n"
        "    if number in (500, 1499):\n"
        "        print(used(), flush=True)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    early, late = map(float, done.stdout.split())
    assert late < early + 5 and late < 150, (early, late)


# the command --------------------------------------------------------------------------------------


@pytest.fixture
def tiny_model(tmp_path):
    from tiny_tflite import tiny_tflite

    path = tmp_path / "tiny.tflite"
    path.write_bytes(tiny_tflite())
    return path


def test_once_takes_what_is_new_and_tells_by_its_exit_code(tmp_path, tiny_model, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    command = ["watch", str(folder), "--out", str(tmp_path / "out"), "--model", str(tiny_model)]
    assert main([*command, "--once"]) == 2
    assert "there is no frame yet" in capsys.readouterr().err
    put(folder / "a.jpg", frame(1))
    assert main([*command, "--once"]) == 0
    assert "a.jpg: " in capsys.readouterr().out
    put(folder / "b.jpg", black_frame())
    assert main([*command, "--once"]) == 3
    assert "cannot tell: black" in capsys.readouterr().out
    assert main([*command, "--once"]) == 3
    assert capsys.readouterr().out == ""
    shutil.rmtree(folder)
    assert main([*command, "--once", "--quiet"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "no such folder" in output.err
    assert len(read_log(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "source is missing"),
        (["f", "--interval", "0"], "0.5 to 3600 seconds"),
        (["f", "--horizon", "no.png"], "no such mask picture"),
        (["f", "--zone", "zenith:30"], "needs the disc"),
        (["f", "--model", "no.tflite"], "no.tflite"),
        (["http:///sky.jpg"], "no http"),
        (["f", "--config", "no.toml"], "no such file"),
        (["f.nef"], "raw file"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line(
    tmp_path, tiny_model, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["watch", "--model", str(tiny_model), *options])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("[alpaca]\nenabled = true", "enabled = true in [safety]"),
        ("[safety]\nenabled = true\nzone = 'zenith:30'", "'zenith:30' is not measured"),
        ("[safety]\ntext_file = 'safe.txt'", "text_file needs enabled = true"),
    ],
)
def test_settings_that_do_not_go_together_end_in_one_line(tmp_path, capsys, sections, message):
    path = tmp_path / "watch.toml"
    path.write_text(f"[watch]\nsource = 'frames'\n{sections}\n")
    assert main(["watch", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_sigterm_ends_it_cleanly_and_unsafe(tmp_path, tiny_model):
    put(tmp_path / "frames" / "a.jpg", frame(1, brightness=60))
    (tmp_path / "watch.toml").write_text(
        "[watch]\nsource = 'frames'\n"
        "[safety]\nenabled = true\nopen_delay = 0\nmin_confidence = 0\ntext_file = 'safe.txt'\n"
        "[alpaca]\nenabled = true\nport = 0\ndiscovery = false\n"
    )
    command = [sys.executable, "-m", "ddunet_keras", "watch", "--config", "watch.toml"]
    command += ["--model", str(tiny_model)]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert b"a.jpg: " in process.stdout.readline()
        assert "OPEN" in (tmp_path / "safe.txt").read_text()
        process.terminate()
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    (line,) = error.decode().splitlines()
    assert "watching frames every 5 s" in line and "safe.txt" in line
    assert "CLOSED" in (tmp_path / "safe.txt").read_text()
    (record,) = read_log(tmp_path / "watch")
    assert record["safe"] is True and record["safe_reason"]
