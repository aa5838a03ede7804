"""Publishes cloud cover and safety by MQTT, in the way that Home Assistant finds by itself."""

# ruff: noqa: RUF009  `setting` makes a field of a dataclass

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddunet_keras.camera.alpaca import PORT
from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.camera.safety_file import Notify
from ddunet_keras.settings import (
    FLAG,
    PATH,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)

IDENTIFIER = Text("letters, digits, _ and -", r"[A-Za-z0-9_-]{1,64}")


@document_settings
@dataclasses.dataclass(frozen=True)
class MqttConfig:
    """Settings of the connection to an MQTT broker. No password stands in it."""

    enabled: bool = setting(FLAG, False, help="publish by MQTT, for Home Assistant")
    host: str = setting(Text(), "127.0.0.1", help="the broker's name or address")
    port: int | None = setting(PORT, None, help="the broker's port; 1883, or 8883 with TLS")
    username: str | None = setting(Text(), None, help="user of the broker")
    password_file: Path | None = setting(
        PATH, None, help="file that has the password in its first line", metavar="FILE"
    )
    password_env: str | None = setting(
        Text(), None, help="environment variable that has the password", metavar="NAME"
    )
    tls: bool = setting(FLAG, False, help="encrypt, and check the broker's certificate")
    ca_file: Path | None = setting(
        PATH, None, help="certificate that signed the broker's; else those of the system"
    )
    device_id: str = setting(
        IDENTIFIER, "sky_camera", help="identifies the camera: another for each on one broker"
    )
    name: str = setting(Text(), "Sky camera", help="the camera's name in Home Assistant")
    discovery_prefix: str = setting(
        Text(), "homeassistant", help="start of the topics where Home Assistant looks for devices"
    )
    expire_after: int = setting(
        Number(int, 60, 86_400, "60 to 86400 seconds"),
        900,
        help="seconds without a new frame after which the cloud cover is unknown",
    )

    def __post_init__(self) -> None:
        check_settings(self)


class MqttPublisher:
    """Publishes until it is closed; connects, and connects again, in a thread of its own.

    Args:
        config: the broker.
        notify: told of faults under the topic "mqtt".
        clock: seconds that never go back.

    Raises:
        DataError: the password or certificate file cannot be read, or the environment variable is
            not set.
        ModuleNotFoundError: paho-mqtt is not installed.
    """

    def __init__(
        self, config: MqttConfig, notify: Notify, clock: Callable[[], float] = time.monotonic
    ) -> None:
        raise NotImplementedError

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Publishes a frame's record, if there is one, and the state. Never waits or raises."""
        raise NotImplementedError

    def close(self) -> None:
        """Publishes that it is unsafe and offline, and ends the connection."""
        raise NotImplementedError
