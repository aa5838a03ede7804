"""An ASCOM Alpaca SafetyMonitor: tells astronomy programs over HTTP whether it is safe."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.camera.safety_file import Notify
from ddunet_keras.settings import (
    FLAG,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)

PORT = Number(int, 0, 65_535, "a port, 0 to 65535")


@document_settings
@dataclasses.dataclass(frozen=True)
class AlpacaConfig:
    """Settings of the Alpaca SafetyMonitor."""

    enabled: bool = setting(FLAG, False, help="serve an ASCOM Alpaca SafetyMonitor")
    host: str = setting(
        Text(), "127.0.0.1", help="address to listen at; 0.0.0.0: for the whole network"
    )
    port: int = setting(PORT, 11_111, help="port of the HTTP server; 0: any that is free")
    discovery: bool = setting(FLAG, True, help="answer programs that look for Alpaca devices")
    discovery_port: int = setting(PORT, 32_227, help="port (UDP) of the discovery")
    name: str = setting(Text(), "Sky camera", help="name of the device")
    max_age: float = setting(
        Number(float, 1, 3600, "1 to 3600 seconds"),
        60.0,
        help="seconds without news from the service after which it is unsafe",
    )

    def __post_init__(self) -> None:
        check_settings(self)


class AlpacaServer:
    """Serves whether it is safe until it is closed.

    It is unsafe as well while no program is connected, and when the service has been silent for
    too long.

    Args:
        config: where to listen.
        notify: told of faults under the topic "alpaca".
        clock: seconds that never go back.

    Attributes:
        port: of the HTTP server.
        discovery_port: of the discovery; None where there is none.

    Raises:
        DataError: it cannot listen there, as the port is taken or the address is not this
            machine's.
    """

    port: int
    discovery_port: int | None

    def __init__(
        self, config: AlpacaConfig, notify: Notify, clock: Callable[[], float] = time.monotonic
    ) -> None:
        raise NotImplementedError

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Takes the state over; None is unsafe."""
        raise NotImplementedError

    def close(self) -> None:
        """Is unsafe, and stops serving."""
        raise NotImplementedError
