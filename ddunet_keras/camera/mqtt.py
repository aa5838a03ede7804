"""Publishes cloud cover and safety by MQTT, in the way that Home Assistant finds by itself.

Home Assistant's documentation: https://www.home-assistant.io/integrations/mqtt (discovery),
`sensor.mqtt`, `binary_sensor.mqtt`. The client is paho-mqtt (extra `mqtt`), MQTT 3.1.1.
"""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ddunet_keras
from ddunet_keras.camera.alpaca import PORT
from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.camera.safety_file import Notify
from ddunet_keras.files import DataError, as_json, first_line, read_text
from ddunet_keras.settings import (
    FLAG,
    PATH,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

TOPIC = "mqtt"

PLAIN_PORT = 1883
TLS_PORT = 8883
"""The ports that are registered for MQTT, and for MQTT over TLS."""

KEEPALIVE = 30
"""Seconds without a message after which the client shows the broker that it is alive."""

RETRY_FIRST = 1
RETRY_LONGEST = 120
"""Seconds before it connects again: at first, and, doubled each time, at most."""

HEARTBEAT = 30.0
"""Seconds after which the status is published again, though it is the same."""

STATUS_EXPIRES = 4 * int(HEARTBEAT)
"""Seconds without a status after which Home Assistant takes the safety for unavailable."""

GOODBYE = 2.0
"""Seconds that the last message may take."""

_LABEL = r"[A-Za-z0-9_:%-]{1,63}"
BROKER_NAME = Text("a name or an address", rf"{_LABEL}(\.{_LABEL})*")
TOPIC_NAME = Text("a topic of letters, digits, _, - and /", r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
IDENTIFIER = Text("letters, digits, _ and -", r"[A-Za-z0-9_-]{1,64}")


@document_settings
@dataclasses.dataclass(frozen=True)
class MqttConfig:
    """Settings of the connection to an MQTT broker. No password stands in it."""

    enabled: bool = setting(FLAG, False, help="publish by MQTT, for Home Assistant")
    host: str = setting(BROKER_NAME, "127.0.0.1", help="the broker's name or address")
    port: int | None = setting(
        PORT, None, help="the broker's port; 1883, or 8883 with TLS", example=1883
    )
    username: str | None = setting(Text(), None, help="user of the broker", example="camera")
    password_file: Path | None = setting(
        PATH,
        None,
        help="file that has the password in its first line",
        metavar="FILE",
        example="/etc/ddunet/mqtt_password",
    )
    password_env: str | None = setting(
        Text(),
        None,
        help="environment variable that has the password",
        metavar="NAME",
        example="MQTT_PASSWORD",
    )
    tls: bool = setting(FLAG, False, help="encrypt, and check the broker's certificate")
    ca_file: Path | None = setting(
        PATH,
        None,
        help="certificate that signed the broker's; else those of the system",
        example="/etc/ddunet/ca.pem",
    )
    device_id: str = setting(
        IDENTIFIER, "sky_camera", help="identifies the camera: another for each on one broker"
    )
    name: str = setting(Text(), "Sky camera", help="the camera's name in Home Assistant")
    discovery_prefix: str = setting(
        TOPIC_NAME,
        "homeassistant",
        help="start of the topics where Home Assistant looks for devices",
    )
    expire_after: int = setting(
        Number(int, 60, 86_400, "60 to 86400 seconds"),
        900,
        help="seconds without a new frame after which the cloud cover is unknown",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.password_file is not None and self.password_env is not None:
            raise ValueError(
                "give `password_file` or `password_env`, not both. Received: "
                f"password_file={str(self.password_file)!r}, password_env={self.password_env!r}"
            )
        has_password = self.password_file is not None or self.password_env is not None
        if has_password and self.username is None:
            raise ValueError("a password needs a `username`. Received: username=None")
        if self.ca_file is not None and not self.tls:
            raise ValueError("`ca_file` needs `tls`. Received: tls=False")

    @property
    def broker(self) -> str:
        """The broker as messages name it: host and port."""
        return f"{self.host}:{self.broker_port}"

    @property
    def broker_port(self) -> int:
        """The broker's port, given or registered."""
        registered = TLS_PORT if self.tls else PLAIN_PORT
        return registered if self.port is None else self.port

    @property
    def frame_topic(self) -> str:
        """Where each frame's record is published."""
        return f"ddunet/{self.device_id}/frame"

    @property
    def status_topic(self) -> str:
        """Where it is published whether the service is there, and whether it is safe."""
        return f"ddunet/{self.device_id}/status"


@dataclasses.dataclass(frozen=True)
class _Entity:
    """Something that Home Assistant shows.

    Args:
        component: "sensor" or "binary_sensor".
        key: identifies it within the device.
        name: what Home Assistant calls it.
        template: its value from the message; "None" is unknown.
        details: further keys of its discovery message.
        of_status: its values are in the status, not in the frame.
    """

    component: str
    key: str
    name: str
    template: str
    details: Mapping[str, Any]
    of_status: bool = False


_MEASURED = {"state_class": "measurement"}
_DIAGNOSTIC = {"entity_category": "diagnostic"}

# JSON's null is Python's None in a template, which renders as "None"
_ENTITIES = (
    _Entity(
        "sensor",
        "cloud_cover",
        "Cloud cover",
        "{{ value_json.percent }}",
        {
            **_MEASURED,
            "unit_of_measurement": "%",
            "suggested_display_precision": 0,
            "icon": "mdi:weather-partly-cloudy",
        },
    ),
    _Entity(
        "sensor",
        "okta",
        "Cloud cover in okta",
        "{{ value_json.okta }}",
        {**_MEASURED, "unit_of_measurement": "okta", "icon": "mdi:weather-cloudy"},
    ),
    _Entity(
        "sensor",
        "confidence",
        "Confidence",
        "{{ value_json.confidence_percent }}",
        {**_MEASURED, **_DIAGNOSTIC, "unit_of_measurement": "%", "icon": "mdi:help-circle-outline"},
    ),
    _Entity(
        "sensor",
        "valid_sky",
        "Valid sky",
        "{{ value_json.valid_percent }}",
        {**_MEASURED, **_DIAGNOSTIC, "unit_of_measurement": "%", "icon": "mdi:image-filter-hdr"},
    ),
    _Entity(
        "sensor",
        "seconds",
        "Time for a frame",
        "{{ value_json.seconds }}",
        {
            **_MEASURED,
            **_DIAGNOSTIC,
            "unit_of_measurement": "s",
            "device_class": "duration",
            "suggested_display_precision": 2,
        },
    ),
    # of device class "problem", on is a problem
    _Entity(
        "binary_sensor",
        "frame_problem",
        "Frame",
        "{{ 'None' if value_json.usable is none else 'OFF' if value_json.usable else 'ON' }}",
        {**_DIAGNOSTIC, "device_class": "problem"},
    ),
    # of device class "safety", on is unsafe
    _Entity(
        "binary_sensor",
        "safety",
        "Safety",
        "{{ 'OFF' if value_json.safe == true else 'ON' }}",
        {"device_class": "safety"},
        of_status=True,
    ),
)

_FRAME_KEYS = (
    "time",
    "frame",
    "percent",
    "okta",
    "valid_fraction",
    "disc",
    "usable",
    "reason",
    "confidence",
    "zones",
    "model",
    "seconds",
)
"""What of a record is published."""


class MqttPublisher:
    """Publishes until it is closed; connects, and connects again, in a thread of its own.

    All messages are retained, so that a program which comes later has the newest at once. What
    could not be sent is not kept: after each connection, the discovery messages and the newest
    state are sent anew. If the connection breaks, the broker itself publishes that the camera is
    offline and unsafe (last will).

    Args:
        config: the broker.
        notify: told of faults under the topic "mqtt".
        clock: seconds that never go back.
        with_safety: announce the safety, too. Without it, `publish` is given no state.

    Raises:
        DataError: the password or certificate file cannot be read, the environment variable is not
            set, or paho-mqtt is not installed.

    Example:

    >>> from ddunet_keras.camera.mqtt import MqttConfig, MqttPublisher
    >>> config = MqttConfig(port=1)  # nobody listens there; it will be tried again and again
    >>> publisher = MqttPublisher(config, lambda topic, message: None)
    >>> publisher.publish({"percent": 12.5, "okta": 1, "usable": True}, None)
    >>> publisher.close()
    """

    def __init__(
        self,
        config: MqttConfig,
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
        with_safety: bool = True,
    ) -> None:
        self._config = config
        self._notify = notify
        self._clock = clock
        self._with_safety = with_safety
        self._lock = threading.RLock()  # callbacks come from the client's thread
        self._frame = _frame_message({})
        self._frame_at: float | None = None  # when the newest frame came; None: it has expired
        self._status = _status_message("online", None, with_safety)
        self._status_at = -HEARTBEAT
        self._was_connected = False
        self._client = self._make_client()
        self._client.connect_async(config.host, config.broker_port, KEEPALIVE)
        self._client.loop_start()

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Publishes a frame's record, if there is one, and the state. Never waits or raises."""
        with self._lock:
            now = self._clock()
            if record is not None:
                self._frame = _frame_message(record)
                self._frame_at = now
                self._send(self._config.frame_topic, self._frame)
            elif self._frame_expires(now):
                self._send(self._config.frame_topic, self._frame)
            status = _status_message("online", state, self._with_safety)
            if status != self._status or now - self._status_at >= HEARTBEAT:
                self._status = status
                self._status_at = now
                self._send(self._config.status_topic, status)

    def _frame_expires(self, now: float) -> bool:
        """Whether the newest frame has become too old; what was known from it is then unknown."""
        if self._frame_at is None or now - self._frame_at <= self._config.expire_after:
            return False
        self._frame = _frame_message({})
        self._frame_at = None
        return True

    def close(self) -> None:
        """Publishes that it is unsafe and offline, and ends the connection."""
        if self._client.is_connected():
            offline = _status_message("offline", None, self._with_safety)
            message = self._send(self._config.status_topic, offline)
            with contextlib.suppress(RuntimeError, ValueError):  # it was not sent: the will is
                message.wait_for_publish(GOODBYE)
        self._client.disconnect()
        self._client.loop_stop()

    def _make_client(self) -> Client:
        try:
            from paho.mqtt import client as mqtt
        except ModuleNotFoundError:
            raise DataError('MQTT needs paho-mqtt: pip install "ddunet-keras[mqtt]"') from None
        config = self._config
        # with the same name after a break, the broker ends the old connection, and its will with it
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"ddunet_{config.device_id}"
        )
        client.suppress_exceptions = True  # one in a callback would end the client's thread
        client.reconnect_delay_set(RETRY_FIRST, RETRY_LONGEST)
        offline = _status_message("offline", None, self._with_safety)
        client.will_set(config.status_topic, offline, retain=True)
        if config.username is not None:
            client.username_pw_set(config.username, _password(config))
        if config.tls:
            client.tls_set_context(_tls_context(config))
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _send(self, topic: str, text: str) -> MQTTMessageInfo:
        """Publishes, if there is a connection.

        Without acknowledgement (QoS 0): the client would send again later what was not
        acknowledged, and an old "safe" could follow a newer "unsafe".
        """
        return self._client.publish(topic, text, qos=0, retain=True)

    def _announce(self) -> None:
        """Sends the discovery messages and the newest state, which may be no longer known."""
        with self._lock:
            now = self._clock()
            self._frame_expires(now)
            if now - self._status_at > STATUS_EXPIRES:
                self._status = _status_message("online", None, self._with_safety)
            for topic, message in discovery_messages(self._config, self._with_safety).items():
                self._send(topic, json.dumps(message) if message else "")
            self._send(self._config.frame_topic, self._frame)
            self._send(self._config.status_topic, self._status)

    def _on_connect(self, client, userdata, flags, reason, properties):
        if reason.is_failure:
            hint = "; see `username` and the password" if self._config.username else ""
            self._notify(TOPIC, f"{self._config.broker} refuses the connection ({reason}){hint}")
            return
        self._was_connected = True
        self._notify(TOPIC, None)
        client.subscribe(f"{self._config.discovery_prefix}/status")
        self._announce()

    def _on_connect_fail(self, client, userdata):
        error = sys.exc_info()[1]  # it is called where the error is being handled
        reason = "no reason given" if error is None else _reason(error)
        self._notify(TOPIC, f"{self._config.broker} cannot be reached ({reason})")

    def _on_disconnect(self, client, userdata, flags, reason, properties):
        if self._was_connected and reason.is_failure:
            self._notify(TOPIC, f"the connection to {self._config.broker} broke")
        self._was_connected = False

    def _on_message(self, client, userdata, message):
        if message.payload == b"online":  # Home Assistant has started
            self._announce()


def discovery_messages(
    config: MqttConfig, with_safety: bool = True
) -> dict[str, dict[str, Any] | None]:
    """What tells Home Assistant which sensors there are: topic -> message.

    None in place of a message removes what an earlier one announced.

    Example:

    >>> from ddunet_keras.camera.mqtt import MqttConfig, discovery_messages
    >>> messages = discovery_messages(MqttConfig(device_id="dome"))
    >>> messages["homeassistant/sensor/dome/cloud_cover/config"]["unique_id"]
    'dome_cloud_cover'
    """
    messages: dict[str, dict[str, Any] | None] = {}
    for entity in _ENTITIES:
        topic = f"{config.discovery_prefix}/{entity.component}/{config.device_id}/{entity.key}"
        left_out = entity.of_status and not with_safety
        messages[f"{topic}/config"] = None if left_out else _discovery_message(config, entity)
    return messages


def _discovery_message(config: MqttConfig, entity: _Entity) -> dict[str, Any]:
    state_topic = config.status_topic if entity.of_status else config.frame_topic
    version = ddunet_keras.__version__
    return {
        "name": entity.name,
        "unique_id": f"{config.device_id}_{entity.key}",
        "state_topic": state_topic,
        "value_template": entity.template,
        "json_attributes_topic": state_topic,
        "expire_after": STATUS_EXPIRES if entity.of_status else config.expire_after,
        "availability_topic": config.status_topic,
        "availability_template": "{{ value_json.status }}",
        "device": {
            "identifiers": [config.device_id],
            "name": config.name,
            "manufacturer": "ddunet_keras",
            "model": "DDUNet sky camera",
            "sw_version": version,
        },
        "origin": {"name": "ddunet_keras", "sw_version": version},
        **entity.details,
    }


def _frame_message(record: Mapping[str, Any]) -> str:
    """A frame's record as JSON; of an empty one, all is null."""
    message = {key: record.get(key) for key in _FRAME_KEYS}
    message["confidence_percent"] = _percent(message["confidence"])
    message["valid_percent"] = _percent(message["valid_fraction"])
    return json.dumps(as_json(message))


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 1)


def _status_message(status: str, state: SafetyState | None, with_safety: bool) -> str:
    """The status as JSON: "online" or "offline", and whether it is safe (null: nobody decides)."""
    safe = state is not None and state.safe
    message: dict[str, Any] = {"status": status, "safe": safe if with_safety else None}
    message["reason"] = None if state is None else state.reason
    message["since"] = None if state is None else _utc(state.since)
    return json.dumps(message)


def _utc(seconds: float) -> str:
    time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return time.isoformat(timespec="seconds")


def _password(config: MqttConfig) -> str | None:
    """The password from where the settings say it is."""
    if config.password_file is not None:
        lines = read_text(config.password_file).splitlines()
        if not lines or not lines[0]:
            raise DataError(f"{config.password_file}: there is no password in the first line")
        return lines[0]
    if config.password_env is not None:
        password = os.environ.get(config.password_env)
        if not password:
            raise DataError(f"the environment variable {config.password_env} is not set or empty")
        return password
    return None


def _tls_context(config: MqttConfig) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:  # of which ssl.SSLError is one
        raise DataError(f"{config.ca_file}: is no certificate ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
