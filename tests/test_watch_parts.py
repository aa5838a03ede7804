"""What the service that watches a camera is made of: addresses, times, settings, the log."""

import base64
import contextlib
import dataclasses
import http.server
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from watched import SkyModel, encode, frame

from ddunet_keras.camera import sources
from ddunet_keras.camera.config import (
    SECTIONS,
    WatchConfig,
    config_text,
    make_config,
    read_config,
    write_config,
)
from ddunet_keras.camera.log import Log
from ddunet_keras.camera.notices import Notices
from ddunet_keras.camera.records import frame_time, new_record
from ddunet_keras.camera.sources import UrlSource, open_source
from ddunet_keras.camera.watch import Clock, Watch
from ddunet_keras.cli import main
from ddunet_keras.files import DataError, WriteError

IMAGE = np.zeros((2, 2, 3), np.uint8)


# addresses ----------------------------------------------------------------------------------------


class Web(http.server.ThreadingHTTPServer):
    """A camera in the network, which gives `content`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = b""
        self.status = 200
        self.headers = {}
        self.login = None
        self.asked = []


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.login is not None:
            expected = "Basic " + base64.b64encode(self.server.login.encode()).decode()
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(self.server.status)
        headers = {"Content-Length": str(len(self.server.content))} | self.server.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Nothing:
    """A log that has no frame."""

    def is_known(self, key):
        return False


def test_an_address_is_watched_and_its_password_is_nowhere(web, tmp_path, capsys):
    web.login = "me:s3cret:x@"
    address = f"http://me:s3cret%3Ax%40@127.0.0.1:{web.server_port}/snap.jpg?pw=t0ken"
    said = []
    hand = [1000.0]
    clock = Clock(monotonic=lambda: hand[0])
    config = WatchConfig(address, out=tmp_path / "out")
    watch = Watch(config, SkyModel(), Notices(said.append), said.append, clock=clock)
    web.content = frame(1)
    watch.poll()
    watch.poll()  # the camera is slower than we are
    web.content = frame(2)
    watch.poll()
    hand[0] += 601
    watch.poll()  # it gives the same frame for ten minutes
    web.login = "me:another"
    watch.poll()
    web.login, web.content = None, frame(3)
    watch.poll()
    watch.close()
    assert set(web.asked) == {"/snap.jpg?pw=t0ken"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("s3cret", "t0ken"):
        assert secret.encode() not in written
        assert secret not in str(said) + str(capsys.readouterr())
    (log,) = (tmp_path / "out" / "log").glob("*.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["reason"] for row in rows] == [None, None, "frozen", None]
    assert {row["frame"] for row in rows} == {f"http://127.0.0.1:{web.server_port}/snap.jpg"}
    assert rows[0]["time_from"] == "clock"
    faults = [line for line in said if isinstance(line, str)]
    assert [line.partition(":")[0] for line in faults] == ["frames", "source", "source", "frames"]
    assert "answers 401" in faults[1]


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {}, "answers 404"),
        (302, {"Location": "file:///etc/passwd"}, "answers 302"),
        (302, {"Location": "ftp://127.0.0.1/a"}, "no answer"),
        (200, {"Content-Length": "100000"}, "broke off"),
    ],
)
def test_an_address_that_gives_no_frame(web, status, headers, message):
    web.content = b"x" * 500
    web.status = status
    web.headers = headers
    source = UrlSource(f"http://127.0.0.1:{web.server_port}/", Nothing())
    with pytest.raises(DataError, match=message):
        source.poll()


def test_an_address_that_gives_too_much(web, monkeypatch):
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", 100_000)
    web.content = bytes(300_000)
    with pytest.raises(DataError, match="more than 100,000 bytes"):
        UrlSource(f"http://127.0.0.1:{web.server_port}/", Nothing()).poll()


def test_a_camera_that_is_away(web):
    port = web.server_port
    web.server_close()
    with pytest.raises(DataError, match=r"^http://127.0.0.1:\d+/: no answer"):
        UrlSource(f"http://127.0.0.1:{port}/", Nothing()).poll()


@pytest.mark.parametrize("address", ["http://", "https://user:pass@", "http://a b/", "http://a:x/"])
def test_what_is_no_address(address):
    with pytest.raises(DataError) as error:
        open_source(address, Nothing())
    assert "pass" not in str(error.value)


# times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image-20260601223045.jpg", (2026, 6, 1, 22, 30, 45)),  # Allsky
        ("ccd1_20260601_223045.jpg", (2026, 6, 1, 22, 30, 45)),  # indi-allsky
        ("2026-06-01T22.30.45.fits", (2026, 6, 1, 22, 30, 45)),
        ("20260601223045123.png", (2026, 6, 1, 22, 30, 45)),
    ],
)
def test_the_time_in_a_name_is_local(name, expected):
    found = frame_time(None, None, name, 5.0, 9.0)
    assert found == (datetime(*expected).astimezone(), "name")


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        ("20260601T223045Z.jpg", 0),
        ("20260601T223045z.jpg", 0),
        ("20260601T223045123Z.jpg", 0),
        ("2026-06-01T22:30:45.123Z.jpg", 0),  # JavaScript's toISOString
        ("2026-06-01T22-30-45-123Z.jpg", 0),
        ("2026-06-01T22-30-45.123456Z.jpg", 0),
        ("20260601T223045+0000.jpg", 0),
        ("20260601_223045+02:00.jpg", 2),
        ("2026-06-01T22:30:45.5-0330.jpg", -3.5),
    ],
)
def test_the_time_in_a_name_may_have_an_offset(name, hours):
    found, source = frame_time(None, None, name, None, 0.0)
    zone = timezone(timedelta(hours=hours))
    assert (found, source) == (datetime(2026, 6, 1, 22, 30, 45, tzinfo=zone), "name")


@pytest.mark.parametrize("name", ["20260601-223045-0100.jpg", "20260601_223045_0001.jpg"])
def test_a_number_after_the_time_is_no_offset(name):
    assert (
        frame_time(None, None, name, None, 0.0)[0] == datetime(2026, 6, 1, 22, 30, 45).astimezone()
    )


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be changed here")
@pytest.mark.parametrize("source", ["exif", "name"])
def test_the_hour_that_comes_twice_is_told_apart_by_the_file(monkeypatch, source):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for hour, offset in ((0, "+02:00"), (1, "+01:00")):
            changed = datetime(2026, 10, 25, hour, 30, 2, tzinfo=timezone.utc).timestamp()
            taken = ("2026-10-25T02:30:00", "exif") if source == "exif" else (None, None)
            name = "image-20261025023000.jpg"
            for times in ((changed, 0.0), (None, changed)):
                found, _ = frame_time(*taken, name, *times)
                assert found.isoformat() == f"2026-10-25T02:30:00{offset}"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_first_source_of_a_time_counts():
    exif = ("2026-06-01T22:00:00+02:00", "exif")
    name = "20260101_000000.jpg"
    utc = timezone.utc
    assert frame_time(*exif, name, 5.0, 9.0) == (datetime(2026, 6, 1, 20, tzinfo=utc), "exif")
    assert frame_time(*exif, name, 5.0, 9.0, "file") == (datetime.fromtimestamp(5, utc), "file")
    assert frame_time(*exif, name, 5.0, 9.0, "clock") == (datetime.fromtimestamp(9, utc), "clock")
    assert frame_time(None, None, name, 5.0, 9.0, "exif")[1] == "clock"
    assert frame_time(None, None, "99990231_000000.jpg", 5.0, 9.0)[1] == "file"
    assert frame_time(None, None, "20260231_000000.jpg", None, 9.0)[1] == "clock"
    local = ("2026-06-01T22:00:00", "exif")
    assert frame_time(*local, "", None, 0.0)[0] == datetime(2026, 6, 1, 22).astimezone()
    assert frame_time(*local, "", None, 0.0)[0].tzinfo is not None


def test_exif_is_read_from_a_frame(tmp_path):
    exif = Image.Exif()
    exif[0x0132] = "2026:06:01 22:30:45"
    folder = tmp_path / "frames"
    folder.mkdir()
    image = np.asarray(Image.effect_noise((64, 48), 40).convert("RGB"))
    (folder / "a.jpg").write_bytes(encode(image, exif=exif))
    config = WatchConfig(folder, out=tmp_path / "out", max_age=3600)
    noon = datetime(2026, 6, 1, 22, 31).astimezone().timestamp()
    watch = Watch(config, SkyModel(), clock=Clock(now=lambda: noon))
    watch.poll()
    watch.close()
    record = json.loads((tmp_path / "out" / "log" / "2026-06-01.jsonl").read_text())
    assert record["time"].startswith("2026-06-01T22:30:45") and record["time_from"] == "exif"
    assert record["reason"] != "old"


# settings -----------------------------------------------------------------------------------------


def test_the_file_of_defaults_gives_the_defaults(tmp_path):
    write_config(tmp_path / "a.toml", {"watch": {"source": "frames"}})
    values = read_config(tmp_path / "a.toml")
    assert make_config("watch", values) == WatchConfig("frames")
    for name, config_class in SECTIONS.items():
        if name != "watch":
            assert make_config(name, values) == config_class()
            for field in dataclasses.fields(config_class):
                assert f"{field.name} =" in config_text({})
    assert stat.S_IMODE(os.stat(tmp_path / "a.toml").st_mode) == 0o600 or os.name == "nt"
    with pytest.raises(DataError, match="is there already"):
        write_config(tmp_path / "a.toml", {})


def test_what_is_given_comes_back(tmp_path):
    given = {
        "source": 'C:\\sky "1"\u00e9',
        "zone": ("zenith:30", "a b.png"),
        "horizon": "auto",
        "interval": 2.5,
        "backlog": True,
        "bayer": "RGGB",
        "out": tmp_path / "x",
    }
    write_config(tmp_path / "a.toml", {"watch": given, "safety": {"enabled": True}})
    values = read_config(tmp_path / "a.toml")
    assert make_config("watch", values) == WatchConfig(**given)
    assert make_config("safety", values).enabled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[watch", "is not valid TOML"),
        ("source = 1", "stands in no section"),
        ("[camera]", r"\[camera\] is none of"),
        ("[watch]\nsauce = 1", "has no setting sauce"),
        ("[watch]\ninterval = 'x'", "`interval` must be"),
        ("[watch]\nbacklog = 1", "`backlog` must be"),
        ("[mqtt]\npassword = 'x'", "has no setting password"),
    ],
)
def test_a_file_of_settings_that_is_wrong(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_config(tmp_path / "a.toml")
    assert "a.toml" in str(error.value) and "\n" not in str(error.value)


def test_paths_in_the_home_and_a_zone_that_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))  # so Windows calls it
    text = '[watch]\nsource = "~/frames"\nout = "~/watch"\nzone = "~/zone.png"\nmodel = "a~/b"'
    (tmp_path / "a.toml").write_text(text)
    config = make_config("watch", read_config(tmp_path / "a.toml"))
    assert Path(config.source) == tmp_path / "home" / "frames"
    assert config.out == tmp_path / "home" / "watch"
    assert [Path(zone) for zone in config.zone] == [tmp_path / "home" / "zone.png"]
    assert config.model == "a~/b"


def test_the_examples_in_the_file_of_settings_are_valid(tmp_path):
    text = config_text({}).replace("\n# source =", "\nsource =")
    lines = [
        line.removeprefix("# ") if re.match(r"# \w+ = \S", line) else line
        for line in text.splitlines()
    ]
    assert len(lines) == len(text.splitlines())
    (tmp_path / "a.toml").write_text("\n".join(lines))
    values = read_config(tmp_path / "a.toml")
    for section, config_class in SECTIONS.items():
        names = {field.name for field in dataclasses.fields(config_class)}
        assert set(values[section]) == names
    assert make_config("watch", values).zone == ("zenith:30",)
    assert make_config("safety", values).zone == "zenith:30"


def test_options_go_before_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = ["watch", "frames", "--interval", "3", "--zone", "circle:1,2,3"]
    assert main([*first, "--write-config", "a.toml"]) == 0
    second = ["watch", "--config", "a.toml", "--interval", "5", "--backlog"]
    assert main([*second, "--write-config", "b.toml"]) == 0
    config = make_config("watch", read_config("b.toml"))
    assert config == WatchConfig("frames", interval=5, zone=("circle:1,2,3",), backlog=True)
    assert capsys.readouterr().out == "wrote a.toml\nwrote b.toml\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("[alpaca]\nenabled = true", [], "in [safety], too"),
        ("[safety]\nenabled = true", ["--once"], "leave out --once"),
        ("[safety]\nenabled = true\ntext_file = 'away/a.txt'", [], "there is no folder away"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, monkeypatch, capsys, text, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(text)
    assert main(["watch", "frames", "--config", "a.toml", *options]) == 2
    assert message in capsys.readouterr().err


# the log ------------------------------------------------------------------------------------------


def record(number, **known):
    time = datetime(2026, 6, 1, 22, tzinfo=timezone.utc)
    return new_record(time, "clock", str(number), "m", known.get("zones", {})) | known


def test_a_row_that_was_half_written_is_written_once(tmp_path):
    log = Log(tmp_path)
    log.add(record(1), ("", "1"))
    log.flush()
    rows = tmp_path / "log" / "2026-06-01.csv"
    rows.rename(tmp_path / "aside")
    rows.mkdir()  # the line can be written, the row cannot
    log.add(record(2), ("", "2"))
    with pytest.raises(WriteError, match="cannot be written"):
        log.flush()
    log.close()
    rows.rmdir()
    (tmp_path / "aside").rename(rows)
    log = Log(tmp_path)
    assert log.is_known(("", "2"))
    log.add(record(3), ("", "3"))
    log.flush()
    log.close()
    lines = rows.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == ["1", "2", "3"]
    assert [row.split(",")[2] for row in rows.read_text().splitlines()] == ["frame", "1", "2", "3"]


def test_a_stop_right_behind_the_commit_doubles_no_row(tmp_path, monkeypatch):
    log = Log(tmp_path)
    commit = log._commit

    def commit_and_stop(entry):
        commit(entry)
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "_commit", commit_and_stop)
    log.add(record(1), ("", "1"))
    with pytest.raises(KeyboardInterrupt):
        log.flush()
    monkeypatch.undo()
    log.flush()  # as the service does when it ends
    log.close()
    assert len((tmp_path / "log" / "2026-06-01.jsonl").read_text().splitlines()) == 1


def test_half_a_line_after_a_power_cut_is_dropped(tmp_path):
    with contextlib.closing(Log(tmp_path)) as log:
        log.add(record(1))
        log.flush()
    for path in (tmp_path / "log").iterdir():
        with open(path, "a") as file:
            file.write('{"time": "2026')
    with contextlib.closing(Log(tmp_path)) as log:
        log.add(record(2))
        log.flush()
    lines = (tmp_path / "log" / "2026-06-01.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == ["1", "2"]
    assert len((tmp_path / "log" / "2026-06-01.csv").read_text().splitlines()) == 3


def test_other_zones_are_other_columns(tmp_path):
    for number, zones in enumerate([{"a": 1.0}, {"a": 2.0, "b": None}]):
        with contextlib.closing(Log(tmp_path, zones)) as log:
            log.add(record(number, zones=zones))
            log.flush()
    header, first, second = (tmp_path / "log" / "2026-06-01.csv").read_text().splitlines()
    assert "zone a,zone b" in header
    assert first.split(",")[10:12] == ["1.0", ""] and second.split(",")[10:12] == ["2.0", ""]


def test_a_table_that_was_saved_in_another_encoding_is_written_anew(tmp_path):
    with contextlib.closing(Log(tmp_path)) as log:
        log.add(record(1) | {"frame": "j\xf6rg/1"})
        log.flush()
    rows = tmp_path / "log" / "2026-06-01.csv"
    text = rows.read_text(encoding="utf-8")
    rows.write_bytes(text.replace("\n", "\r\n").encode("cp1252"))
    with contextlib.closing(Log(tmp_path)) as log:
        log.add(record(2))
        log.flush()
    assert (
        rows.read_text(encoding="utf-8")
        == text + text.splitlines()[1].replace("j\xf6rg/1", "2") + "\n"
    )


def test_which_of_some_names_the_log_has(tmp_path):
    with contextlib.closing(Log(tmp_path)) as log:
        log.know([("a", str(number)) for number in range(2000)])
        log.add(record(3), ("a", "waiting"))
        asked = [*map(str, range(1990, 2600)), "waiting"]
        known = {*map(str, range(1990, 2000)), "waiting"}
        assert log.known_of("a", asked) == known
        assert log.known_of("b", asked) == log.known_of("a", []) == set()


def test_a_database_that_is_damaged(tmp_path):
    (tmp_path / "watch.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match=r"is damaged; remove it"):
        Log(tmp_path)


# the service in systemd ---------------------------------------------------------------------------


def test_the_systemd_unit_is_accepted():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    tests = os.path.dirname(__file__)
    unit = os.path.join(tests, "..", "tflite", "python", "ddunet-watch.service")
    command = ["systemd-analyze", "verify", "--man=no", os.path.abspath(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
