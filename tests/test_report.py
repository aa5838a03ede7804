"""`ddunet report`: a day's log becomes a page that needs nothing else."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
from datetime import date, datetime, timedelta, timezone
from html.parser import HTMLParser

import numpy as np
import pytest
from made_day import DAY, PLACE, make_records, write_log
from PIL import Image

from ddunet_keras.camera.chart import KEOGRAM_COLUMNS, draw_chart, draw_keogram
from ddunet_keras.camera.day import Day, Measurement, periods, read_day
from ddunet_keras.camera.report import summary, write_report
from ddunet_keras.camera.sun import Place, light, moon_elevation, moon_illumination
from ddunet_keras.cli import main
from ddunet_keras.files import DataError, write_image

NOON = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The elements, the texts and the rows of tables of a page."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self.texts = []
        self.rows = []
        self.in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data.strip()

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def line(minute, percent=50.0, **values):
    """A record of the log, `minute` minutes after noon."""
    time = NOON + timedelta(minutes=minute)
    record = {"time": time.isoformat(), "percent": percent, "usable": percent is not None}
    return record | values


def a_day(tmp_path, *records):
    return read_day(write_log(tmp_path, records))


def report(tmp_path, *records, place=None):
    out = tmp_path / "day.html"
    write_report(a_day(tmp_path, *records), out, place)
    return Page(out)


def test_a_whole_day_is_shown(tmp_path, capsys):
    records = make_records()
    for number, record in enumerate(records):
        record["thumbnail"] = None if number % 50 else "t.jpg"
    write_log(tmp_path, records)
    write_image(tmp_path / "t.jpg", np.full((120, 160, 3), 90, np.uint8))
    out = tmp_path / "day.html"
    words = ["--latitude", str(PLACE[0]), "--longitude", str(PLACE[1])]
    words += ["--png", str(tmp_path / "day.png"), "--day", str(DAY)]
    assert main(["report", str(tmp_path), "--out", str(out), *words]) == 0
    assert f"usable of {len(records)} frames 97 %" in capsys.readouterr().out
    page = Page(out)
    hours = [row for row in page.rows if re.fullmatch(r"\d\d:00", row[0])]
    assert [row[0] for row in hours] == [f"{hour:02d}:00" for hour in range(24)]
    covers = [float(row[1].removesuffix(" %")) for row in hours]
    of_noon = [r["percent"] for r in records if "T13:" in r["time"]]
    assert covers[13] == pytest.approx(np.mean(of_noon), abs=0.06)
    assert hours[5][3] == "8 of 25"  # dew
    assert ["flat colour", "17"] in page.rows
    for text in ("civil twilight", "night", "moon up", "keogram", "roof", "confidence"):
        assert text in page.texts, text
    with Image.open(tmp_path / "day.png") as picture:
        assert picture.width == 1200


def test_the_page_needs_nothing_else(tmp_path):
    write_image(tmp_path / "t.jpg", np.full((60, 80, 3), 90, np.uint8))
    page = report(tmp_path, line(0, thumbnail="t.jpg"), place=Place(*PLACE))
    assert not page.tags("script") and not page.tags("link") and not page.tags("iframe")
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert addresses and all(value.startswith(("data:image/", "#")) for value in addresses)
    (policy,) = [meta for meta in page.tags("meta") if "http-equiv" in meta]
    assert policy["content"].startswith("default-src 'none'")
    (picture,) = page.tags("img")
    data = base64.b64decode(picture["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.size == (80, 60)
    assert picture["alt"] == "overlay at 12:00"


def test_a_report_of_the_same_log_is_the_same(tmp_path):
    records = [line(minute, minute) for minute in range(50)]
    write_report(a_day(tmp_path, *records), tmp_path / "a.html", Place(*PLACE))
    write_report(a_day(tmp_path, *records), tmp_path / "b.html", Place(*PLACE))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_mean_is_one_over_time(tmp_path):
    # 0 % stands for four minutes, 100 % for one, and the last for the median interval, one
    day = a_day(tmp_path, line(0, 0.0), line(4, 100.0), line(5, 100.0), line(6, 100.0))
    assert summary(day)["mean cloud cover"] == f"{100 * 3 / 7:.1f} %"


def test_missing_time_is_in_no_line_and_no_band(tmp_path):
    minutes = [*range(10), *range(30, 40)]
    day = a_day(tmp_path, *(line(minute) for minute in minutes))
    assert summary(day)["without frames"] == "0 h 20 min"
    bands = periods(day, ["same"] * len(minutes))
    assert [(round(60 * a), round(60 * b)) for a, b, _ in bands] == [(720, 730), (750, 760)]
    cover = draw_chart(day).axes[0].lines[0]
    hours, percents = cover.get_data()
    within = (hours > 12 + 10.01 / 60) & (hours < 12 + 29.99 / 60)
    assert not within.any()
    assert np.isnan(percents).sum() == 2  # after the tenth, and after the last


def test_slow_cameras_have_no_gaps_between_their_frames(tmp_path):
    day = a_day(tmp_path, *(line(minute) for minute in range(0, 100, 20)))
    assert summary(day)["without frames"] == "0 h 00 min"


def test_nothing_known_at_all(tmp_path):
    nothing = dict.fromkeys(("percent", "usable", "reason", "confidence", "safe", "thumbnail"))
    page = report(tmp_path, *(line(minute) | nothing for minute in range(5)))
    assert "unknown" in page.texts and "0 %" in page.texts
    assert ["no cloud cover in the log", "5"] in page.rows
    assert "keogram" not in page.texts and "roof" not in page.texts


def test_a_cover_of_an_unusable_frame_does_not_count(tmp_path):
    day = a_day(tmp_path, line(0, 20.0), line(1, 99.0, usable=False, reason="old"))
    assert summary(day)["mean cloud cover"] == "20.0 %"


def test_lines_that_say_nothing_are_counted(tmp_path):
    path = write_log(tmp_path, [line(0)])
    bad = ["[]", "{}", "null", '{"time": 3}', '{"time": "noon"}', json.dumps(line(1, 101))]
    bad += [json.dumps(line(1) | {"usable": "yes"}), json.dumps(line(1, True)), "[" * 5000]
    bad += ['{"time": "0001-01-01T00:00:00", "usable": true']  # cut
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join(bad))
    with open(path, "ab") as file:
        file.write(b"\n\xff\x00\n")
    day = read_day(path)
    assert (len(day.measurements), day.unreadable) == (1, len(bad) + 1)
    write_report(day, tmp_path / "day.html")
    assert "11 lines of the log could not be read." in (tmp_path / "day.html").read_text()


def test_records_in_any_order_are_put_in_order(tmp_path):
    records = [line(minute, float(minute)) for minute in (3, 1, 2, 1)]
    assert a_day(tmp_path, *records).percents.tolist() == [1, 1, 2, 3]


def test_one_day_of_several(tmp_path):
    path = write_log(tmp_path, [line(0), line(24 * 60), line(24 * 60 + 1)])
    assert read_day(path).date == date(2026, 11, 29)
    of_first = read_day(path, date(2026, 11, 28))
    assert (len(of_first.measurements), of_first.other_days) == (1, 2)
    with pytest.raises(DataError, match="no frame of 2020-01-01"):
        read_day(path, date(2020, 1, 1))


def test_a_folder_gives_the_log_of_a_day(tmp_path):
    for name in ("2026-11-27", "2026-11-28"):
        path = write_log(tmp_path, [line(0) | {"time": f"{name}T12:00:00Z"}])
        path.rename(path.with_name(f"{name}.jsonl"))
    assert read_day(tmp_path).date == date(2026, 11, 28)
    assert read_day(tmp_path / "log", date(2026, 11, 27)).date == date(2026, 11, 27)
    with pytest.raises(DataError, match="no log of 2026-11-01"):
        read_day(tmp_path, date(2026, 11, 1))


def test_the_results_of_predict_are_a_log_too(tmp_path):
    records = [
        {
            "image": "a.jpg",
            "taken": "2026-11-28T12:00:00+00:00",
            "cloud_cover": {"percent": 30.0},
            "usable": True,
            "overlay": "a_overlay.jpg",
        },
        {"image": "b.jpg", "error": "b.jpg: empty"},
        "no record",
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(records))
    write_image(tmp_path / "a_overlay.jpg", np.full((600, 800, 3), 90, np.uint8))
    day = read_day(tmp_path)
    assert day.percents.tolist() == [30.0] and day.unreadable == 2
    assert max(day.thumbnail(day.measurements[0]).size) == 160


def test_a_time_in_a_photos_name_goes_before_that_of_its_file(tmp_path):
    copied = {"taken": "2026-11-28T12:00:00+00:00", "usable": True, "cloud_cover": {"percent": 30}}
    records = [
        copied | {"image": "x/indi_20261028_043940.jpg", "taken_from": "file"},
        copied | {"image": "x/indi_20261028_043940.jpg", "taken_from": "exif"},
        copied | {"image": "x/indi_20269999_043940.jpg", "taken_from": "file"},
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(records))
    (named,) = read_day(tmp_path, date(2026, 10, 28)).measurements
    assert named.time == datetime(2026, 10, 28, 4, 39, 40).astimezone()
    assert len(read_day(tmp_path, date(2026, 11, 28)).measurements) == 2


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be changed here")
def test_the_day_of_fits_files_is_the_local_one(tmp_path, monkeypatch):
    taken = ["2026-06-01T12:00:00+00:00", "2026-06-01T20:00:00+00:00", "no time", None]
    records = [
        {"image": "a.fits", "taken": when, "taken_from": "fits", "usable": True}
        | {"cloud_cover": {"percent": 30.0}}
        for when in taken
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(records))
    monkeypatch.setenv("TZ", "Australia/Sydney")
    time.tzset()
    try:
        day = read_day(tmp_path, date(2026, 6, 2))
        assert [m.time.isoformat() for m in day.measurements] == ["2026-06-02T06:00:00+10:00"]
        assert day.unreadable == 2
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_time_without_offset_is_one_of_this_computer(tmp_path):
    day = a_day(tmp_path, line(0) | {"time": "2026-11-28T12:00:00"})
    assert day.measurements[0].time == datetime(2026, 11, 28, 12).astimezone()


def test_the_hour_that_comes_twice_is_kept(tmp_path):
    times = [f"2026-10-25T{hour:02d}:30:00+02:00" for hour in range(3)]
    times += [f"2026-10-25T{hour:02d}:30:00+01:00" for hour in range(2, 24)]
    page = report(tmp_path, *(line(0) | {"time": time} for time in times))
    hours = [row for row in page.rows if re.fullmatch(r"\d\d:00", row[0])]
    assert len(hours) == 25 and all(row[3] == "1 of 1" for row in hours)
    assert any("clocks were changed" in text for text in page.texts)


@pytest.mark.parametrize("bad", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "$x {}"])
def test_names_and_reasons_are_no_markup(tmp_path, bad):
    write_image(tmp_path / "t.jpg", np.full((60, 80, 3), 90, np.uint8))
    unusable = line(1, None, reason=f"unreadable: {bad}", model=bad)
    page = report(tmp_path, line(0, frame=bad, thumbnail="t.jpg"), unusable)
    assert not page.tags("script")
    (picture,) = page.tags("img")
    assert picture["title"] == bad and "onerror" not in picture
    assert [f"unreadable: {bad}", "1"] in page.rows


def test_many_reasons_are_not_all_listed(tmp_path):
    page = report(tmp_path, *(line(k, None, reason=f"unreadable: {k}") for k in range(60)))
    assert ["other", "40"] in page.rows


@pytest.mark.parametrize("name", ["../secret.jpg", "ABSOLUTE", "missing.jpg", "broken.jpg"])
def test_only_pictures_in_the_folder_are_shown(tmp_path, name):
    out = tmp_path / "out"
    day_path = write_log(out, [line(0)])
    write_image(tmp_path / "secret.jpg", np.full((60, 80, 3), 90, np.uint8))
    (out / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    name = str(tmp_path / "secret.jpg") if name == "ABSOLUTE" else name
    write_log(out, [line(0, thumbnail=name)])
    day = read_day(day_path)
    assert day.thumbnail(day.measurements[0]) is None
    write_report(day, out / "day.html")


def test_the_keogram_has_each_overlay_at_its_time(tmp_path):
    records = []
    for hour, value in enumerate((40, 200)):
        write_image(tmp_path / f"{hour}.png", np.full((20, 30, 3), value, np.uint8))
        records += [line(60 * hour + minute, thumbnail=f"{hour}.png") for minute in range(60)]
    keogram = draw_keogram(a_day(tmp_path, *records))
    of_hour = KEOGRAM_COLUMNS // 24
    shown = np.zeros(KEOGRAM_COLUMNS, int)
    shown[12 * of_hour : 13 * of_hour] = 40
    shown[13 * of_hour : 14 * of_hour] = 200
    assert np.array_equal(keogram[..., 0], np.broadcast_to(shown, keogram.shape[:2]))
    assert np.array_equal(keogram[..., 3] > 0, keogram[..., 0] > 0)


@pytest.mark.parametrize("content", ["", "\n\n", "{", "{}\n"])
def test_a_log_without_a_record_is_an_error(tmp_path, capsys, content):
    (tmp_path / "a.jsonl").write_text(content)
    out = tmp_path / "day.html"
    assert main(["report", str(tmp_path / "a.jsonl"), "--out", str(out)]) == 2
    assert "holds no record" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["no.jsonl"], "no such file"),
        (["."], "holds no log"),
        (["a.jsonl", "--latitude", "48"], "belong together"),
        (["a.jsonl", "--latitude", "98", "--longitude", "0"], "degrees north"),
        (["a.jsonl", "--latitude", "nan", "--longitude", "0"], "degrees north"),
        (["a.jsonl", "--day", "yesterday"], "YYYY-MM-DD"),
        (["a.jsonl", "--out", "sub.html"], "is a folder"),
        (["a.jsonl", "--out", "a.jsonl"], "is not a .html file"),
        (["a.jsonl", "--png", "day.jpg"], "is not a .png file"),
    ],
)
def test_mistakes_are_said_in_a_line(tmp_path, capsys, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(line(0)))
    (tmp_path / "sub.html").mkdir()
    try:
        code = main(["report", *words])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr().err
    assert code == 2 and error in captured and captured.count("\n") == 1
    assert not (tmp_path / "day.html").exists()


def test_without_its_packages_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "a.jsonl").write_text(json.dumps(line(0)))
    assert main(["report", str(tmp_path / "a.jsonl")]) == 2
    assert "'.[report]'" in capsys.readouterr().err


def test_without_a_place_astral_is_not_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "astral", None)
    (tmp_path / "a.jsonl").write_text(json.dumps(line(0)))
    assert main(["report", "a.jsonl"]) == 0
    assert main(["report", "a.jsonl", "--latitude", "48", "--longitude", "-11.5"]) == 2
    assert "[report]" in capsys.readouterr().err


@pytest.mark.parametrize(("latitude", "longitude"), [(48.1, 11.6), (-33.9, 151.2), (69.6, 18.9)])
def test_sun_and_moon_stand_where_astropy_says(latitude, longitude):
    units = pytest.importorskip("astropy.units")
    from astropy.coordinates import AltAz, EarthLocation, get_body, get_sun
    from astropy.time import Time
    from astropy.utils import iers

    place = Place(latitude, longitude)
    times = [NOON + timedelta(hours=1000.3 * k) for k in range(8)]
    zone = timezone(timedelta(hours=round(longitude / 15)))
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        location = EarthLocation(lat=latitude * units.deg, lon=longitude * units.deg)
        moments = Time([time.replace(tzinfo=None) for time in times])
        frame = AltAz(obstime=moments, location=location)
        sun = get_sun(moments).transform_to(frame)
        moon = get_body("moon", moments, location).transform_to(frame)
    lit = (1 - np.cos(sun.separation(moon).rad)) / 2
    names = np.array(["night", "astronomical twilight", "nautical twilight", "civil twilight"])
    heights = sun.alt.deg
    expected = [
        "day" if height > -0.833 else names[np.searchsorted([-18, -12, -6], height)]
        for height in heights
    ]
    assert np.abs(heights[:, None] - [-0.833, -6, -12, -18]).min() > 0.03, "too near a limit"
    times = [time.astimezone(zone) for time in times]  # as a log has them
    assert [light(place, time) for time in times] == expected
    assert np.allclose([moon_elevation(place, time) for time in times], moon.alt.deg, atol=1.1)
    assert np.allclose([moon_illumination(place, time) for time in times], lit, atol=0.015)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_shows_it_without_an_error(tmp_path):
    write_image(tmp_path / "t.jpg", np.full((60, 80, 3), 90, np.uint8))
    records = [line(minute, thumbnail="t.jpg") for minute in range(30)]
    write_report(a_day(tmp_path, *records), tmp_path / "day.html", Place(*PLACE))
    shot = tmp_path / "shot.png"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,900"]
    words += [f"--screenshot={shot}", (tmp_path / "day.html").as_uri()]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr
    with Image.open(shot) as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 50


def test_a_frame_alone_and_frames_of_one_second(tmp_path):
    for records in ([line(0)], [line(0), line(0)]):
        day = a_day(tmp_path, *records)
        assert summary(day)["mean cloud cover"] == "50.0 %"
        write_report(day, tmp_path / "day.html", Place(90, 180))


def test_a_day_of_the_library(tmp_path):
    day = Day((Measurement(NOON, 40.0, True),), tmp_path, tmp_path / "a.jsonl")
    assert (day.length, day.offset, day.hours.tolist()) == (24, "UTC+00:00", [12.0])
