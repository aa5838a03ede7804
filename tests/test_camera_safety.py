"""Safe or unsafe: limits, delays, all that is unknown; and the text file."""

import datetime
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddunet_keras.camera import safety_file
from ddunet_keras.camera.alpaca import AlpacaConfig
from ddunet_keras.camera.mqtt import MqttConfig
from ddunet_keras.camera.safety import SafetyConfig, SafetyMonitor, SafetyState
from ddunet_keras.camera.safety_file import SafetyFile
from ddunet_keras.files import WriteError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

START = 1_780_000_000.0
CONFIG = {"open_delay": 60, "max_age": 100, "min_confidence": 0.7}


def iso(seconds):
    """An ISO time with an offset from UTC, as a record has it."""
    zone = datetime.timezone(datetime.timedelta(hours=2))
    return datetime.datetime.fromtimestamp(seconds, zone).isoformat()


def frame(now, percent=5.0, **changes):
    """A record of a good frame that was taken now."""
    record = {
        "time": iso(now),
        "usable": True,
        "reason": None,
        "percent": percent,
        "confidence": 0.9,
        "zones": {},
    }
    return {**record, **changes}


class Run:
    """A monitor with a clock of its own."""

    def __init__(self, **settings):
        self.monitor = SafetyMonitor(SafetyConfig(**{**CONFIG, **settings}))
        self.now = START

    def see(self, percent=5.0, after=10, **changes):
        self.now += after
        return self.monitor.update(frame(self.now, percent, **changes), self.now)

    def wait(self, seconds):
        self.now += seconds
        return self.monitor.update(None, self.now)

    def open(self):
        """Clear frames until it is safe."""
        for _ in range(8):
            state = self.see()
        assert state.safe
        return state


def test_unsafe_at_the_start():
    run = Run()
    state = run.monitor.update(None, START)
    assert state == SafetyState(safe=False, reason="no frame yet", since=START)
    assert run.wait(1000) == state


def test_opens_after_the_whole_delay_and_not_before():
    run = Run(open_delay=60)
    states = [run.see(after=10).safe for _ in range(8)]
    assert states == [False] * 6 + [True] * 2


def test_opens_with_a_frame_only():
    run = Run(open_delay=60)
    run.see()
    assert not run.wait(70).safe  # nobody has looked at the sky since
    assert run.see(after=1).safe


def test_since_is_the_time_of_the_change():
    run = Run(open_delay=0)
    assert run.see().since == run.now
    since = run.now
    assert run.see().since == since
    state = run.see(percent=90)
    assert not state.safe and state.since == run.now > since


@pytest.mark.parametrize("percent", [30.1, 40.0, 50.0])
def test_between_the_limits_it_stays_as_it_is(percent):
    run = Run(safe_percent=30, unsafe_percent=50)
    assert not run.see(percent).safe
    run.open()
    assert run.see(percent).safe


def test_the_limits_themselves():
    run = Run(safe_percent=30, unsafe_percent=50, open_delay=0)
    assert not run.see(30.1).safe
    assert run.see(30.0).safe
    assert run.see(50.0).safe
    assert not run.see(50.1).safe


@pytest.mark.parametrize("percent", [35.0, 80.0])
def test_a_frame_that_is_not_clear_starts_the_delay_anew(percent):
    run = Run(open_delay=60)
    for _ in range(6):
        run.see()
    run.see(percent)
    assert [run.see().safe for _ in range(7)] == [False] * 6 + [True]


def test_closes_at_once():
    run = Run(close_delay=0)
    run.open()
    assert not run.see(51).safe


def test_the_closing_delay_counts_clouds_without_interruption():
    run = Run(close_delay=30)
    run.open()
    assert run.see(90).safe
    assert run.see(90).safe
    assert run.see(40).safe  # no longer cloudy: the delay starts anew
    assert run.see(90).safe
    assert run.see(90, after=20).safe
    assert not run.see(90, after=10).safe


def test_the_closing_delay_ends_without_a_frame_too():
    run = Run(close_delay=30)
    run.open()
    run.see(90)
    assert run.wait(29).safe
    assert not run.wait(1).safe


UNKNOWN = {
    "unusable": {"usable": False, "percent": None, "reason": "black"},
    "usable is null": {"usable": None},
    "usable is a word": {"usable": "yes"},
    "percent null": {"percent": None},
    "percent is not a number": {"percent": float("nan")},
    "percent is infinite": {"percent": float("inf")},
    "percent is negative": {"percent": -1.0},
    "percent above 100": {"percent": 100.5},
    "percent is text": {"percent": "5"},
    "percent is true": {"percent": True},
    "no disc found": {"disc": False},
    "confidence low": {"confidence": 0.69},
    "confidence null": {"confidence": None},
    "confidence is not a number": {"confidence": float("nan")},
    "confidence above 1": {"confidence": 90},
    "time null": {"time": None},
    "time is no time": {"time": "yesterday"},
    "time without an offset": {"time": "2026-05-28T22:26:50"},
    "time is a number": {"time": START},
    "frame too old": {"time": iso(START)},
    "frame from the future": {"time": iso(START + 1000)},
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_the_unknown_is_unsafe_at_once_in_spite_of_a_closing_delay(change):
    run = Run(close_delay=1000)
    run.open()
    run.now = START + 101 - 10  # so that START is too old
    assert run.see().safe
    state = run.monitor.update(frame(run.now, **change), run.now)
    assert not state.safe and state.reason
    # and the whole opening delay has to pass again
    assert [run.see().safe for _ in range(7)] == [False] * 6 + [True]


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_the_unknown_does_not_open(change):
    run = Run(open_delay=0)
    run.now = START + 101
    assert not run.monitor.update(frame(run.now, **change), run.now).safe


def test_an_empty_record_is_unknown():
    run = Run(open_delay=0)
    assert not run.monitor.update({}, START).safe


def test_the_reason_of_a_fault_stays_until_the_next_frame():
    run = Run()
    state = run.see(usable=False, reason="black")
    assert state.reason == "unusable frame: black"
    assert run.wait(5).reason == "unusable frame: black"


def test_a_reason_is_one_line():
    state = Run().see(usable=False, reason="unreadable: a\nb.jpg\x1b[2J")
    assert state.reason.isprintable()


def test_no_frame_is_unsafe_after_the_age():
    run = Run(max_age=100)
    run.open()
    assert run.wait(100).safe
    assert not run.wait(1).safe
    assert [run.see().safe for _ in range(7)] == [False] * 6 + [True]


def test_a_gap_between_frames_counts_though_nobody_asked_meanwhile():
    run = Run(max_age=100, open_delay=60)
    run.see()
    assert not run.see(after=101).safe  # more than the delay later, but not without interruption


def test_the_age_is_that_of_the_frame_not_of_its_arrival():
    run = Run(max_age=100, open_delay=0)
    run.now += 50
    assert run.monitor.update(frame(START), run.now).safe
    assert run.wait(50).safe
    assert not run.wait(1).safe


def test_a_fast_camera_clock_makes_no_frame_younger():
    run = Run(max_age=100, open_delay=0)
    assert run.monitor.update(frame(START + 90), START).safe
    assert not run.wait(101).safe


def test_frames_out_of_order_are_unsafe():
    run = Run(open_delay=0)
    assert run.see().safe
    assert not run.monitor.update(frame(run.now - 5), run.now + 1).safe


def test_the_clock_goes_back():
    run = Run(open_delay=60)
    run.open()
    state = run.wait(-3600)
    assert not state.safe and state.reason == "the clock went back"
    assert [run.see().safe for _ in range(7)] == [False] * 6 + [True]


def test_a_frame_at_the_moment_in_which_the_clock_goes_back_does_not_open():
    run = Run(open_delay=0)
    run.see()
    assert not run.see(after=-3600).safe
    assert run.see().safe


def test_a_step_as_time_services_make_it_is_no_fault():
    run = Run()
    run.open()
    assert run.wait(-0.5).safe


def test_a_clock_that_is_set_forward_makes_no_delay_shorter():
    monitor = SafetyMonitor(SafetyConfig(**CONFIG))
    set_forward = [0, 0, 0, 80, 80, 80, 80, 80]
    states = [
        monitor.update(frame(now), now, 10.0 * tick).safe
        for tick, ahead in enumerate(set_forward)
        for now in [START + 10 * tick + ahead]
    ]
    assert states == [False] * 6 + [True] * 2


def test_a_clock_that_jumps_ahead_is_unsafe():
    run = Run()
    run.open()
    assert not run.wait(3600).safe


def test_a_zone_counts_alone():
    run = Run(zone="zenith:30", open_delay=0)
    assert run.see(percent=90, zones={"zenith:30": 5.0}).safe
    state = run.see(percent=5, zones={"zenith:30": 90.0})
    assert not state.safe and "zenith:30" in state.reason
    assert not run.see(percent=5, zones={"zenith:30": None}).safe
    assert not run.see(percent=5, zones={}).safe
    assert not run.see(percent=5, zones=None).safe


def reference(config, events):
    """Safe or not after each event, from all that came before: the rules, not the monitor's code.

    events: (now, percent) in order, percent None for a frame that says nothing; all is in time.
    """
    safe = False
    for index, (now, percent) in enumerate(events):
        if percent is None:
            safe = False
        elif percent > config.unsafe_percent:
            cloudy_since = now
            for before, value in reversed(events[: index + 1]):
                if value is None or value <= config.unsafe_percent:
                    break
                cloudy_since = before
            safe = safe and now - cloudy_since < config.close_delay
        elif percent <= config.safe_percent:
            clear_since = now
            for before, value in reversed(events[: index + 1]):
                if value is None or value > config.safe_percent:
                    break
                clear_since = before
            safe = safe or now - clear_since >= config.open_delay
        yield safe


def test_random_frames_against_the_rules():
    draw = random.Random(7)
    seen = set()
    for _ in range(100):
        config = SafetyConfig(
            open_delay=draw.choice([0, 20, 60]), close_delay=draw.choice([0, 25]), max_age=100
        )
        monitor = SafetyMonitor(config)
        now = START
        events = []
        states = []
        for _ in range(60):
            now += draw.choice([5, 10, 20])
            percent = draw.choice([2.0, 3.0, 4.0, 5.0, 40.0, 80.0, None])
            events.append((now, percent))
            states.append(monitor.update(frame(now, percent), now).safe)
        assert states == list(reference(config, events))
        seen |= set(states)
    assert seen == {True, False}


BAD_SETTINGS = [
    {"safe_percent": 101},
    {"safe_percent": "30"},
    {"safe_percent": 60, "unsafe_percent": 50},
    {"open_delay": -1},
    {"max_age": 0},
    {"max_age": float("nan")},
    {"min_confidence": 70},
    {"zone": ""},
    {"enabled": "yes"},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="Received"):
        SafetyConfig(**settings)


def test_the_documented_settings_exist():
    text = (Path(__file__).parents[1] / "docs" / "camera.md").read_text(encoding="utf-8")
    classes = {"safety": SafetyConfig, "alpaca": AlpacaConfig, "mqtt": MqttConfig}
    seen = set()
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        sections = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE))
        for section in sections.keys() & classes:
            assert classes[section](**sections[section]).enabled
            seen |= {(section, key) for key in sections[section]}
    assert {("safety", "zone"), ("safety", "text_file"), ("mqtt", "tls")} <= seen


@pytest.mark.parametrize("name", ["open_delay", "max_age", "min_confidence", "safe_percent"])
def test_documented_defaults_are_the_defaults(name):
    text = (Path(__file__).parents[1] / "docs" / "camera.md").read_text(encoding="utf-8")
    (value,) = re.findall(rf"^{name} = ([\d.]+) ", text, re.MULTILINE)
    assert float(value) == getattr(SafetyConfig(), name)


# --- the text file -------------------------------------------------------------------------------

SAFE = SafetyState(True, "cloud cover 2.0 %", START)
UNSAFE = SafetyState(False, "cloud cover 90.0 %", START)


class Told(dict):
    """What was told, by topic."""

    def __call__(self, topic, message):
        self[topic] = message


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def documented_rule(path, event, preamble, trigger):
    """A rule of the Generic File SafetyMonitor as its page describes it: the whole file is searched
    for the preamble, and the trigger decides. True: the rule applies."""
    text = path.read_text(encoding="ascii")
    return preamble in text and trigger in text.partition(preamble)[2]


def says(path):
    """The two rules of docs/camera.md, of which exactly one applies."""
    safe = documented_rule(path, "Safe", "Roof Status:", "OPEN")
    unsafe = documented_rule(path, "Unsafe", "Roof Status:", "CLOSED")
    assert safe != unsafe
    return safe


def test_the_file_says_what_the_state_is(tmp_path):
    path = tmp_path / "new" / "safety.txt"
    file = SafetyFile(path, Told())
    assert not says(path)  # at the start
    file.publish(None, SAFE)
    assert says(path)
    file.publish({}, UNSAFE)
    assert not says(path)
    file.publish(None, SAFE)
    file.publish(None, None)
    assert not says(path)
    file.publish(None, SAFE)
    file.close()
    assert not says(path)
    assert re.fullmatch(
        r"Roof Status: CLOSED\nTime: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", path.read_text()
    )
    assert os.listdir(path.parent) == ["safety.txt"]


def test_an_old_open_is_closed_at_the_start(tmp_path):
    path = tmp_path / "safety.txt"
    SafetyFile(path, Told()).publish(None, SAFE)  # and the service is killed
    SafetyFile(path, Told())
    assert not says(path)


def test_the_file_is_written_anew_now_and_then_but_not_each_time(tmp_path):
    clock = Clock()
    path = tmp_path / "safety.txt"
    file = SafetyFile(path, Told(), clock)
    inode = path.stat().st_ino
    for clock.now in (5.0, 10.0, 29.0):
        file.publish(None, UNSAFE)
        assert path.stat().st_ino == inode
    path.write_text("")
    clock.now = 31.0
    file.publish(None, UNSAFE)
    assert not says(path)


def test_a_full_disk_closes_in_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "safety.txt"
    told = Told()
    file = SafetyFile(path, told)
    file.publish(None, SAFE)

    def full(path, text):
        raise WriteError(f"{path}: cannot be written (no space left on device)")

    monkeypatch.setattr(safety_file, "write_text", full)
    file.publish(None, UNSAFE)
    assert not says(path)
    assert "no space left" in told["safety file"]
    file.publish(None, SAFE)
    assert not says(path)  # OPEN is never written so

    monkeypatch.undo()
    file.publish(None, SAFE)
    assert says(path)
    assert told["safety file"] is None


def test_a_file_that_cannot_be_written_over_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "safety.txt"
    file = SafetyFile(path, Told())
    path.unlink()
    path.symlink_to("/dev/full")  # writing there fails as on a full disk

    def full(path, text):
        raise WriteError(f"{path}: cannot be written")

    monkeypatch.setattr(safety_file, "write_text", full)
    file.close()
    assert not os.path.lexists(path)


def test_a_folder_in_its_place_is_told_and_does_not_raise(tmp_path):
    told = []
    path = tmp_path / "safety.txt"
    path.mkdir()
    file = SafetyFile(path, lambda topic, message: told.append(message))
    file.publish(None, UNSAFE)
    file.publish(None, None)
    file.close()
    (message,) = set(told)  # one fault is one message
    assert str(path) in message and "may say OPEN" in message


def test_a_disk_that_is_really_full(tmp_path):
    size = os.sysconf("SC_PAGE_SIZE")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * size}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        path = tmp_path / "safety.txt"
        told = Told()
        file = SafetyFile(path, told)
        file.publish(None, SAFE)
        with open(tmp_path / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(size))
        file.publish(None, UNSAFE)
        assert not says(path)
        assert told["safety file"]
        (tmp_path / "filler").unlink()
        file.publish(None, SAFE)
        assert says(path)
        assert told["safety file"] is None
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
