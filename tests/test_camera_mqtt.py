"""MQTT against a real broker that is stopped and started, and Home Assistant's discovery."""

import dataclasses
import gc
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from paho.mqtt import client as paho

from ddunet_keras.camera.mqtt import MqttConfig, MqttPublisher, discovery_messages
from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.files import DataError

LIMIT = 120
"""Seconds that a test waits for something that comes at once on a machine that is not busy."""

SAFE = SafetyState(True, "cloud cover 12.5 %", 1_780_000_000.0)
UNSAFE = SafetyState(False, "cloud cover 90.0 %", 1_780_000_100.0)
RECORD = {
    "time": "2026-05-28T22:26:40+02:00",
    "time_from": "exif",
    "frame": "frames/a.jpg",
    "percent": 12.5,
    "okta": 1,
    "valid_fraction": 0.75,
    "usable": True,
    "reason": None,
    "confidence": 0.912,
    "zones": {"zenith:30": 3.0},
    "model": "ddunet_c8",
    "seconds": 0.31,
    "safe": True,
    "safe_reason": None,
    "thumbnail": None,
}
UNUSABLE = {**RECORD, "percent": None, "okta": None, "usable": False, "reason": "black"}
FRAME = "ddunet/dome/frame"
STATUS = "ddunet/dome/status"
CLOUD_COVER = "homeassistant/sensor/dome/cloud_cover/config"
SAFETY = "homeassistant/binary_sensor/dome/safety/config"


class Told:
    """What was told, in order, each change once, as the service tells it."""

    def __init__(self):
        self.messages = []
        self.changed = threading.Condition()

    def __call__(self, topic, message):
        assert topic == "mqtt"
        with self.changed:
            if not self.messages or self.messages[-1] != message:
                self.messages.append(message)
            self.changed.notify_all()

    def wait(self, pattern):
        """Until something was told that matches; None: that it is well."""

        def found():
            last = self.messages[-1] if self.messages else ""
            return last is None if pattern is None else last and re.search(pattern, last)

        with self.changed:
            assert self.changed.wait_for(found, LIMIT), self.messages
            return self.messages[-1]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


AMQTT = """
import asyncio, json, sys
from amqtt.broker import Broker

async def main():
    await Broker(json.loads(sys.argv[1])).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def amqtt(port, users=None, tls=None):
    """The command that runs amqtt's broker.

    users: file of users and hashes; without it, everybody is admitted.
    tls: the keys of a second listener that encrypts.
    """
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
    if tls is not None:
        listeners["tls"] = {"type": "tcp", "ssl": True, **tls}
    prefix = "amqtt.plugins.authentication."
    if users is None:
        plugins = {prefix + "AnonymousAuthPlugin": {"allow_anonymous": True}}
    else:
        plugins = {prefix + "FileAuthPlugin": {"password_file": str(users)}}
    settings = {"listeners": listeners, "plugins": plugins}
    return [sys.executable, "-c", AMQTT, json.dumps(settings)]


def mosquitto(port, folder):
    """The command that runs mosquitto, or None where it is not installed."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    return None if program is None else [program, "-c", str(settings)]


class Broker:
    """A broker in a process of its own; what it retained is gone when it is closed."""

    def __init__(self, port, command):
        self.port = port
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                assert self._process.poll() is None, "the broker has ended"
                assert time.monotonic() < deadline, "the broker does not start"
                time.sleep(0.05)

    def close(self):
        self._process.kill()
        self._process.wait()


class Observer:
    """A subscriber that remembers the newest message of each topic."""

    def __init__(self, port):
        self.messages = {}
        self.retained = set()
        self.count = {}
        self.changed = threading.Condition()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_connect = lambda client, *_: client.subscribe("#")
        self.client.on_message = self._on_message
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.reconnect_delay_set(1, 1)
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()
        assert subscribed.wait(LIMIT)

    def _on_message(self, client, userdata, message):
        with self.changed:
            text = message.payload.decode()
            self.messages[message.topic] = json.loads(text) if text.startswith("{") else text
            self.count[message.topic] = self.count.get(message.topic, 0) + 1
            if message.retain:
                self.retained.add(message.topic)
            self.changed.notify_all()

    def wait(self, topic, condition=lambda message: True):
        """The newest message of a topic, once it fulfils the condition."""

        def found():
            return topic in self.messages and condition(self.messages[topic])

        with self.changed:
            assert self.changed.wait_for(found, LIMIT), (topic, self.messages.get(topic))
            return self.messages[topic]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def closing():
    """Closes what is put into it, in the reverse order."""
    things = []
    yield lambda thing: things.append(thing) or thing
    for thing in reversed(things):
        thing.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that signed itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=127.0.0.1"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture(scope="module")
def ports(certificate):
    """The ports of a broker for all, without and with TLS; each test has a camera of its own."""
    plain, tls = free_port(), free_port()
    files = {"certfile": str(certificate[0]), "keyfile": str(certificate[1])}
    broker = Broker(plain, amqtt(plain, tls={"bind": f"127.0.0.1:{tls}", **files}))
    yield plain, tls
    broker.close()


@pytest.fixture
def port(ports):
    return ports[0]


def config(port, **settings):
    return MqttConfig(**{"port": port, "device_id": "dome", "name": "Dome", **settings})


@pytest.mark.parametrize("kind", ["amqtt", "mosquitto"])
def test_a_camera_s_life(kind, tmp_path, closing):
    port = free_port()
    command = amqtt(port) if kind == "amqtt" else mosquitto(port, tmp_path)
    if command is None:
        pytest.skip("mosquitto is not installed")
    broker = closing(Broker(port, command))
    told, clock = Told(), Clock()
    observer = closing(Observer(port))
    publisher = closing(MqttPublisher(config(port), told, clock))

    # at the start nothing is known
    assert observer.wait(STATUS)["safe"] is False
    assert observer.wait(FRAME)["percent"] is None
    for topic, message in discovery_messages(config(port)).items():
        assert observer.wait(topic) == message
    told.wait(None)

    publisher.publish(RECORD, SAFE)
    frame = observer.wait(FRAME, lambda message: message["percent"] == 12.5)
    assert frame["confidence_percent"] == 91.2 and frame["valid_percent"] == 75.0
    assert frame["zones"] == {"zenith:30": 3.0} and frame["frame"] == "frames/a.jpg"
    status = observer.wait(STATUS, lambda message: message["safe"])
    assert status == {
        "status": "online",
        "safe": True,
        "reason": "cloud cover 12.5 %",
        "since": "2026-05-28T20:26:40+00:00",
    }
    publisher.publish(UNUSABLE, UNSAFE)
    assert observer.wait(FRAME, lambda message: message["usable"] is False)["percent"] is None
    observer.wait(STATUS, lambda message: not message["safe"])

    # the broker goes, and comes again without what it knew
    broker.close()
    told.wait("broke|cannot be reached")
    publisher.publish(RECORD, UNSAFE)  # while nobody listens
    publisher.publish(RECORD, SAFE)
    observer.messages.clear()
    closing(Broker(port, command))
    told.wait(None)
    assert observer.wait(CLOUD_COVER)["unique_id"] == "dome_cloud_cover"
    observer.wait(FRAME, lambda message: message["percent"] == 12.5)
    observer.wait(STATUS, lambda message: message["safe"])
    # a latecomer gets all of it, as it is retained
    late = closing(Observer(port))
    for topic in (*discovery_messages(config(port)), FRAME, STATUS):
        late.wait(topic)
        assert topic in late.retained

    # Home Assistant starts
    before = observer.count[SAFETY]
    observer.client.publish("homeassistant/status", "online")
    observer.wait(SAFETY, lambda message: observer.count[SAFETY] > before)

    # the camera gives no more frames
    clock.now = 900.0
    publisher.publish(None, SAFE)
    clock.now = 901.0
    publisher.publish(None, SAFE)
    assert observer.wait(FRAME, lambda message: message["percent"] is None)["usable"] is None

    publisher.close()
    status = observer.wait(STATUS, lambda message: message["status"] == "offline")
    assert status["safe"] is False


def test_the_status_has_a_heart_beat_that_does_not_flood(port, closing):
    clock, status, frame = Clock(), "ddunet/beat/status", "ddunet/beat/frame"
    observer = closing(Observer(port))
    publisher = closing(MqttPublisher(config(port, device_id="beat"), Told(), clock))
    observer.wait(status)
    publisher.publish(None, SAFE)
    observer.wait(status, lambda message: message["safe"])
    before = observer.count[status]
    for _ in range(29):
        clock.now += 1
        publisher.publish(None, SAFE)
    clock.now += 1
    publisher.publish(None, SAFE)
    publisher.publish(RECORD, SAFE)
    observer.wait(frame, lambda message: message["percent"] == 12.5)  # sent after all of them
    assert observer.count[status] == before + 1


def test_a_service_that_hangs_is_not_announced_as_safe(port, closing):
    clock, status, frame = Clock(), "ddunet/hangs/status", "ddunet/hangs/frame"
    observer = closing(Observer(port))
    publisher = closing(MqttPublisher(config(port, device_id="hangs"), Told(), clock))
    observer.wait(status)
    publisher.publish(RECORD, SAFE)
    observer.wait(status, lambda message: message["safe"])
    observer.wait(frame, lambda message: message["percent"] == 12.5)
    clock.now = 901.0  # and nobody has called `publish` since
    observer.client.publish("homeassistant/status", "online")
    observer.wait(status, lambda message: not message["safe"])
    observer.wait(frame, lambda message: message["percent"] is None)


def test_the_last_will_is_offline_and_unsafe(port, closing):
    """A service that is killed cannot say so; the broker does."""
    observer = closing(Observer(port))
    program = (
        "import sys, time\n"
        "from ddunet_keras.camera.mqtt import MqttConfig, MqttPublisher\n"
        "from ddunet_keras.camera.safety import SafetyState\n"
        f"config = MqttConfig(port={port}, device_id='killed')\n"
        "publisher = MqttPublisher(config, lambda topic, message: None)\n"
        "publisher.publish(None, SafetyState(True, 'clear', 0.0))\n"
        "time.sleep(600)\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program])
    try:
        observer.wait("ddunet/killed/status", lambda message: message["safe"])
    finally:
        service.kill()
        service.wait()
    status = observer.wait("ddunet/killed/status", lambda message: message["status"] == "offline")
    assert status["safe"] is False


def test_without_safety_none_is_announced(port, closing):
    safety = "homeassistant/binary_sensor/alone/safety/config"
    observer = closing(Observer(port))
    observer.client.publish(safety, '{"name": "of an earlier setup"}', retain=True)
    observer.wait(safety)
    settings = config(port, device_id="alone")
    publisher = closing(MqttPublisher(settings, Told(), with_safety=False))
    publisher.publish(RECORD, None)
    assert observer.wait("ddunet/alone/status")["safe"] is None
    observer.wait(safety, lambda message: message == "")  # removes it
    observer.wait("homeassistant/sensor/alone/cloud_cover/config")


@pytest.fixture(scope="module")
def guarded_port(tmp_path_factory):
    """The port of a broker that admits the user camera with the password "right"."""
    hasher = pytest.importorskip("pwdlib.hashers.argon2").Argon2Hasher()  # amqtt brings it
    users = tmp_path_factory.mktemp("broker") / "users"
    users.write_text(f"camera:{hasher.hash('right')}\n")
    number = free_port()
    broker = Broker(number, amqtt(number, users=users))
    yield number
    broker.close()


def test_a_wrong_password_is_said_once(guarded_port, tmp_path, closing):
    told = Told()
    path = tmp_path / "password"
    path.write_text("not-it\n")
    settings = config(guarded_port, username="camera", password_file=path)
    publisher = closing(MqttPublisher(settings, told))
    message = told.wait("refuses")
    assert f"127.0.0.1:{guarded_port}" in message and "not-it" not in message
    # it tries again after a second, and says no more
    for _ in range(10):
        publisher.publish(RECORD, SAFE)
        time.sleep(0.2)
    assert told.messages == [message]


@pytest.mark.parametrize("source", ["file", "environment"])
def test_the_right_password(source, guarded_port, tmp_path, monkeypatch, closing):
    path = tmp_path / "password"
    path.write_text("right\nwhat follows is a comment\n")
    monkeypatch.setenv("DDUNET_TEST_PASSWORD", "right")
    settings = {
        "file": {"password_file": path},
        "environment": {"password_env": "DDUNET_TEST_PASSWORD"},
    }[source]
    told = Told()
    closing(MqttPublisher(config(guarded_port, username="camera", **settings), told))
    told.wait(None)


def test_tls(ports, certificate, closing):
    told = Told()
    settings = config(ports[1], tls=True, ca_file=certificate[0], device_id="encrypted")
    closing(MqttPublisher(settings, told))
    told.wait(None)


# paho leaves the socket of a failed handshake to be collected
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unknown_certificate_is_refused(ports):
    told = Told()
    publisher = MqttPublisher(config(ports[1], tls=True), told)
    assert "certificate" in told.wait("cannot be reached")
    publisher.close()
    gc.collect()


def test_nobody_listens(closing):
    told = Told()
    started = time.monotonic()
    publisher = MqttPublisher(config(free_port()), told)
    message = told.wait("cannot be reached")
    assert re.search("refused", message, re.IGNORECASE)
    for _ in range(1000):
        publisher.publish(RECORD, SAFE)
    publisher.close()
    publisher.close()  # once more does no harm
    assert told.messages == [message]
    assert time.monotonic() - started < LIMIT


# --- Home Assistant ------------------------------------------------------------------------------

TEXT, NUMBER, LIST = str, int, list
COMMON_KEYS = {
    "availability_template": TEXT,
    "availability_topic": TEXT,
    "device": dict,
    "device_class": TEXT,
    "enabled_by_default": bool,
    "entity_category": TEXT,
    "expire_after": NUMBER,
    "force_update": bool,
    "icon": TEXT,
    "json_attributes_template": TEXT,
    "json_attributes_topic": TEXT,
    "name": TEXT,
    "origin": dict,
    "payload_available": TEXT,
    "payload_not_available": TEXT,
    "qos": NUMBER,
    "state_topic": TEXT,
    "unique_id": TEXT,
    "value_template": TEXT,
}
KEYS = {
    "sensor": {
        **COMMON_KEYS,
        "state_class": TEXT,
        "suggested_display_precision": NUMBER,
        "unit_of_measurement": TEXT,
    },
    "binary_sensor": {
        **COMMON_KEYS,
        "off_delay": NUMBER,
        "payload_off": TEXT,
        "payload_on": TEXT,
    },
}
"""Keys of a discovery message, from home-assistant.io/integrations/sensor.mqtt and
binary_sensor.mqtt; only those of which this project could have use."""

REQUIRED = {"state_topic", "unique_id", "device"}
"""`device` only works with `unique_id`."""

DEVICE_KEYS = {
    "configuration_url",
    "connections",
    "hw_version",
    "identifiers",
    "manufacturer",
    "model",
    "model_id",
    "name",
    "serial_number",
    "suggested_area",
    "sw_version",
    "via_device",
}
ORIGIN_KEYS = {"name", "sw_version", "support_url"}
DEVICE_CLASSES = {"sensor": {"duration"}, "binary_sensor": {"problem", "safety"}}
"""Those of the documented ones that this project uses."""

DURATION_UNITS = {"d", "h", "min", "s", "ms"}


def check_discovery(topic, message):
    """Whether a discovery message is as Home Assistant documents it."""
    match = re.fullmatch(
        r"homeassistant/(sensor|binary_sensor)/([\w-]+)/([\w-]+)/config", topic, re.ASCII
    )
    assert match, topic
    keys = KEYS[match[1]]
    assert set(message) <= set(keys), set(message) - set(keys)
    assert set(message) >= REQUIRED
    for key, value in message.items():
        assert type(value) is keys[key], key
        assert "_topic" not in key or not re.search("[#+]", value)
    assert message.get("entity_category", "diagnostic") == "diagnostic"  # "config" is not for these
    assert message.get("state_class", "measurement") in (
        "measurement",
        "total",
        "total_increasing",
    )
    if "device_class" in message:
        assert message["device_class"] in DEVICE_CLASSES[match[1]]
    if message.get("device_class") == "duration":
        assert message["unit_of_measurement"] in DURATION_UNITS
    assert set(message["device"]) <= DEVICE_KEYS and message["device"]["identifiers"]
    assert set(message["origin"]) <= ORIGIN_KEYS and message["origin"]["name"]
    assert re.fullmatch(r"mdi:[a-z-]+", message.get("icon", "mdi:x"))


def test_discovery_messages_are_as_documented():
    messages = discovery_messages(config(1883))
    for topic, message in messages.items():
        check_discovery(topic, json.loads(json.dumps(message)))
    assert len({message["unique_id"] for message in messages.values()}) == len(messages) == 7
    units = {message["name"]: message.get("unit_of_measurement") for message in messages.values()}
    assert units["Cloud cover"] == "%" and units["Cloud cover in okta"] == "okta"
    devices = {json.dumps(message["device"]) for message in messages.values()}
    assert len(devices) == 1


@pytest.mark.parametrize(
    "change",
    [{"colour": "red"}, {"expire_after": "900"}, {"state_topic": "a/#"}, {"device": {"name": "x"}}],
    ids=str,
)
def test_the_check_of_discovery_can_fail(change):
    message = discovery_messages(config(1883))[CLOUD_COVER]
    with pytest.raises((AssertionError, KeyError)):
        check_discovery(CLOUD_COVER, {**message, **change})


def shown(record, state, with_safety=True):
    """What Home Assistant shows: key -> rendered value; "None" is unknown."""
    jinja2 = pytest.importorskip("jinja2", reason="Home Assistant's templates are Jinja's")
    sent = {}

    class Connection(paho.Client):
        def publish(self, topic, payload=None, **options):
            assert options["retain"]
            sent[topic] = payload
            return super().publish(topic, payload, **options)

        def connect_async(self, *arguments, **options):
            pass

        def loop_start(self):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paho, "Client", Connection)
        publisher = MqttPublisher(config(1883), Told(), with_safety=with_safety)
        publisher.publish(record, state)
    rendered = {}
    for topic, message in discovery_messages(config(1883)).items():
        value_json = json.loads(sent[message["state_topic"]])
        text = jinja2.Template(message["value_template"]).render(value_json=value_json)
        rendered[topic.split("/")[3]] = text
        status = jinja2.Template(message["availability_template"])
        assert status.render(value_json=json.loads(sent[STATUS])) == "online"
    return rendered


def test_what_home_assistant_shows():
    assert shown(RECORD, SAFE) == {
        "cloud_cover": "12.5",
        "okta": "1",
        "confidence": "91.2",
        "valid_sky": "75.0",
        "seconds": "0.31",
        "frame_problem": "OFF",
        "safety": "OFF",  # in Home Assistant's class "safety", off is safe
    }


def test_null_is_unknown_in_home_assistant():
    values = shown({**UNUSABLE, "confidence": None, "seconds": float("nan")}, UNSAFE)
    assert values == {
        "cloud_cover": "None",
        "okta": "None",
        "confidence": "None",
        "valid_sky": "75.0",
        "seconds": "None",
        "frame_problem": "ON",
        "safety": "ON",
    }
    values = shown({}, None)
    assert values.pop("safety") == "ON"
    assert set(values.values()) == {"None"}


# --- settings ------------------------------------------------------------------------------------

BAD_SETTINGS = [
    {"host": ""},
    {"host": "a b"},
    {"host": "a..b"},
    {"host": "mqtt://broker"},
    {"port": 70000},
    {"device_id": "my camera"},
    {"device_id": "a/b"},
    {"device_id": "#"},
    {"discovery_prefix": "home/#"},
    {"discovery_prefix": "/home"},
    {"name": "a\nb"},
    {"expire_after": 0},
    {"password_file": "secret"},
    {"username": "a", "password_file": "secret", "password_env": "SECRET"},
    {"ca_file": "ca.pem"},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="Received"):
        MqttConfig(**settings)


def test_ports():
    assert MqttConfig().broker == "127.0.0.1:1883"
    assert MqttConfig(host="broker.example", tls=True).broker == "broker.example:8883"
    assert MqttConfig(host="fe80::1", port=5).broker_port == 5


def test_a_password_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    monkeypatch.delenv("DDUNET_TEST_PASSWORD", raising=False)
    for settings in (
        {"password_file": tmp_path / "missing"},
        {"password_file": empty},
        {"password_file": binary},
        {"password_env": "DDUNET_TEST_PASSWORD"},
    ):
        with pytest.raises(DataError) as error:
            MqttPublisher(config(1, username="a", **settings), Told())
        assert "\n" not in str(error.value)


def test_a_certificate_that_cannot_be_read_is_one_line(tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for ca_file in (broken, tmp_path / "missing.pem"):
        with pytest.raises(DataError, match=ca_file.name) as error:
            MqttPublisher(config(1, tls=True, ca_file=ca_file), Told())
        assert "\n" not in str(error.value)


def test_without_paho_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(DataError, match=r"ddunet-keras\[mqtt\]"):
        MqttPublisher(config(1), Told())


def test_no_password_in_the_settings():
    assert "password" not in {field.name for field in dataclasses.fields(MqttConfig)}
