"""An ASCOM Alpaca SafetyMonitor: tells astronomy programs over HTTP whether it is safe.

The protocol: "ASCOM Alpaca API Reference" and the device and management APIs at
https://ascom-standards.org/api. Interface: ISafetyMonitor version 3. IPv4 only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import html
import ipaddress
import itertools
import json
import platform
import select
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ddunet_keras
from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.camera.safety_file import Notify
from ddunet_keras.files import DataError
from ddunet_keras.settings import (
    FLAG,
    Number,
    Text,
    check_settings,
    document_settings,
    setting,
)

TOPIC = "alpaca"

PORT = Number(int, 0, 65_535, "a port, 0 to 65535")

INTERFACE_VERSION = 3
"""Of ISafetyMonitor: the one of ASCOM Platform 7."""

NOT_IMPLEMENTED = 0x400
"""ASCOM's error number of a method that a device does not have."""

MAX_ID = 2**32 - 1
"""Largest ClientID and transaction number."""

MAX_BODY = 65_536
"""Bytes of a request's body that are read; the longest of the protocol has a hundred or so."""

MAX_FIELDS = 20
"""Parameters that a request may have; the longest of the protocol has five."""

MAX_CONNECTIONS = 32
"""Requests that are answered at the same time; what comes on top is hung up on."""

SOCKET_TIMEOUT = 10.0
"""Seconds that a client may be silent in the middle of a request."""

POLL = 0.2
"""Seconds between two looks whether the server is being closed."""

DISCOVERY_QUERY = b"alpacadiscovery1"
LOOPBACK_BROADCAST = "127.255.255.255"


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

    Example:

    >>> import json, urllib.request
    >>> from ddunet_keras.camera.alpaca import AlpacaConfig, AlpacaServer
    >>> config = AlpacaConfig(port=0, discovery=False)
    >>> server = AlpacaServer(config, lambda topic, message: None)
    >>> url = f"http://127.0.0.1:{server.port}/api/v1/safetymonitor/0/issafe"
    >>> json.load(urllib.request.urlopen(url))["Value"]
    False
    >>> server.close()
    """

    def __init__(
        self, config: AlpacaConfig, notify: Notify, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device = _Device(config, clock)
        try:
            self._http = _Server((config.host, config.port), self._device, notify)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"Alpaca: cannot listen at {config.host}, port {config.port} ({reason})"
            ) from None
        self.port: int = self._http.server_address[1]
        self.discovery_port: int | None = None
        self._discovery: _Discovery | None = None
        if config.discovery:
            try:
                self._discovery = _Discovery(config.host, config.discovery_port, self.port)
                self.discovery_port = self._discovery.port
            except OSError as error:
                notify(TOPIC, f"no discovery at port {config.discovery_port} ({error.strerror})")
        threading.Thread(
            target=self._http.serve_forever, args=(POLL,), name=TOPIC, daemon=True
        ).start()

    def publish(self, record: Mapping[str, Any] | None, state: SafetyState | None) -> None:
        """Takes the state over; None is unsafe."""
        self._device.take(state)

    def close(self) -> None:
        """Is unsafe, and stops serving."""
        self._device.take(None)
        if self._discovery is not None:
            self._discovery.close()
        self._http.shutdown()
        self._http.server_close()


class _Device:
    """What the methods of the SafetyMonitor answer. Several threads ask."""

    def __init__(self, config: AlpacaConfig, clock: Callable[[], float]) -> None:
        self.name = config.name
        # the same after each start, another for each camera
        self.unique_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{platform.node()}/{config.name}"))
        self._max_age = config.max_age
        self._clock = clock
        self._news = (False, clock())  # whether it is safe, and when that was said
        self.connected = False
        self._transactions = itertools.count(1)
        self._lock = threading.Lock()

    def take(self, state: SafetyState | None) -> None:
        self._news = (state is not None and state.safe, self._clock())

    def next_transaction(self) -> int:
        with self._lock:
            return next(self._transactions) % (MAX_ID + 1)

    def is_safe(self) -> bool:
        safe, at = self._news
        return self.connected and safe and self._clock() - at <= self._max_age

    def state(self) -> list[dict[str, Any]]:
        now = datetime.datetime.now(datetime.timezone.utc)
        return [
            {"Name": "IsSafe", "Value": self.is_safe()},
            {"Name": "TimeStamp", "Value": now.strftime("%Y-%m-%dT%H:%M:%SZ")},
        ]


_DESCRIPTION = "Cloud cover of a sky camera, by ddunet_keras"

_READ: dict[str, Callable[[_Device], Any]] = {
    "connected": lambda device: device.connected,
    "connecting": lambda device: False,
    "description": lambda device: _DESCRIPTION,
    "devicestate": lambda device: device.state(),
    "driverinfo": lambda device: f"ddunet_keras {ddunet_keras.__version__}",
    "driverversion": lambda device: ".".join(ddunet_keras.__version__.split(".")[:2]),
    "interfaceversion": lambda device: INTERFACE_VERSION,
    "issafe": lambda device: device.is_safe(),
    "name": lambda device: device.name,
    "supportedactions": lambda device: [],
}
"""Method of a GET -> its value."""

_WITHOUT_FUNCTION = ("action", "commandblind", "commandbool", "commandstring")
"""Methods that every device knows and this one does not implement."""

_MANAGEMENT: dict[str, Callable[[_Device], Any]] = {
    "/management/apiversions": lambda device: [1],
    "/management/v1/description": lambda device: {
        "ServerName": _DESCRIPTION,
        "Manufacturer": "ddunet_keras",
        "ManufacturerVersion": ddunet_keras.__version__,
        "Location": "",
    },
    "/management/v1/configureddevices": lambda device: [
        {
            "DeviceName": device.name,
            "DeviceType": "SafetyMonitor",
            "DeviceNumber": 0,
            "UniqueID": device.unique_id,
        }
    ],
}
"""Path -> its value."""

_DEVICE_PATH = "/api/v1/safetymonitor/0/"
_SETUP_PATHS = ("/", "/setup", "/setup/v1/safetymonitor/0/setup")


class _BadRequest(Exception):
    """The request cannot be understood; the message says why."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    timeout = SOCKET_TIMEOUT
    protocol_version = "HTTP/1.1"  # some clients ask whether they may send the body
    server_version = "ddunet_keras"
    sys_version = ""

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path in _SETUP_PATHS:
            self._send(200, "text/html", _setup_page(self.server.device))
        elif url.path.startswith("/setup"):
            self._send(403, "text/html", "<!DOCTYPE html><p>There is no such page.</p>")
        else:
            self._answer(url.path, url.query, self._read)

    def do_PUT(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", "0"))
            if not 0 <= length <= MAX_BODY:
                raise ValueError
            body = self.rfile.read(length).decode("utf-8")
        except ValueError:
            self._send(400, "text/plain", f"the body must be UTF-8 of at most {MAX_BODY} bytes")
            return
        self._answer(urllib.parse.urlsplit(self.path).path, body, self._write)

    def _read(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        device = self.server.device
        if path in _MANAGEMENT:
            return {"Value": _MANAGEMENT[path](device)}
        method = _method(path)
        if method not in _READ:
            raise _BadRequest(f"GET {path!r}: there is no such method")
        return {"Value": _READ[method](device)}

    def _write(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        device = self.server.device
        method = _method(path)
        if method in _WITHOUT_FUNCTION:
            return {"ErrorNumber": NOT_IMPLEMENTED, "ErrorMessage": f"{method}: not implemented"}
        if method in ("connect", "disconnect"):
            device.connected = method == "connect"
        elif method == "connected":
            device.connected = _flag(parameters, "Connected")
        else:
            raise _BadRequest(f"PUT {path!r}: there is no such method")
        return {}

    def _answer(
        self,
        path: str,
        encoded: str,
        act: Callable[[str, Mapping[str, str]], dict[str, Any]],
    ) -> None:
        """Sends what `act` gives, with what belongs to every answer, or why it cannot."""
        device = self.server.device
        try:
            parameters = _parameters(encoded, any_case=self.command == "GET")
            _client_number(parameters, "ClientID")
            transaction = _client_number(parameters, "ClientTransactionID")
            result = act(path, parameters)
        except _BadRequest as error:
            self._send(400, "text/plain", str(error))
            return
        answer = {
            "ClientTransactionID": transaction,
            "ServerTransactionID": device.next_transaction(),
            "ErrorNumber": 0,
            "ErrorMessage": "",
        }
        self._send(200, "application/json", json.dumps({**answer, **result}))

    def _send(self, status: int, content_type: str, text: str) -> None:
        content = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")  # no thread waits for another request
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Prints nothing: the library does not."""


class _Server(ThreadingHTTPServer):
    """An HTTP server with a bound on what it does at a time."""

    def __init__(self, address: tuple[str, int], device: _Device, notify: Notify) -> None:
        self.device = device
        self._notify = notify
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Binds without asking the name service, as HTTPServer does: that may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a client that hung up is no fault
            self._notify(TOPIC, f"a request could not be answered ({error!r})")


class _Discovery:
    """Answers programs on the network that look for Alpaca devices."""

    def __init__(self, host: str, port: int, http_port: int) -> None:
        self._reply = json.dumps({"AlpacaPort": http_port}).encode()
        self._sockets = _discovery_sockets(host, port)
        self.port: int = self._sockets[0].getsockname()[1]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"{TOPIC} discovery", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed.is_set():
            for ready in select.select(self._sockets, [], [], POLL)[0]:
                with contextlib.suppress(OSError):  # a sender that is gone
                    query, sender = ready.recvfrom(len(DISCOVERY_QUERY))
                    if query == DISCOVERY_QUERY:
                        self._sockets[0].sendto(self._reply, sender)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for each in self._sockets:
            each.close()


def _discovery_sockets(host: str, port: int) -> list[socket.socket]:
    """Where queries arrive; answers leave from the first.

    A query is a broadcast. Where the server is for this machine alone, only broadcasts of its
    loopback are heard, for which Linux wants a socket of their own.
    """
    if not _is_loopback(host):
        return [_udp_socket("", port)]
    sockets = [_udp_socket(host, port)]
    with contextlib.suppress(OSError):
        sockets.append(_udp_socket(LOOPBACK_BROADCAST, sockets[0].getsockname()[1]))
    return sockets


def _udp_socket(host: str, port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other devices listen there, too
        udp.bind((host, port))
    except OSError:
        udp.close()
        raise
    return udp


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _method(path: str) -> str:
    """The method's name in a path of the device API."""
    if not path.startswith(_DEVICE_PATH):
        raise _BadRequest(f"{path!r}: there is no such device; this one is {_DEVICE_PATH}")
    return path.removeprefix(_DEVICE_PATH)


def _parameters(encoded: str, any_case: bool) -> dict[str, str]:
    """The parameters of a query or body; in a query, their names may have any case."""
    try:
        pairs = urllib.parse.parse_qsl(encoded, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise _BadRequest(f"more than {MAX_FIELDS} parameters") from None
    if not any_case:
        return dict(pairs)
    names = {name.lower(): name for name in ("ClientID", "ClientTransactionID")}
    return {names.get(name.lower(), name): value for name, value in pairs}


def _client_number(parameters: Mapping[str, str], name: str) -> int:
    """A number that the client gave itself or its request; 0 if it gave none."""
    text = parameters.get(name, "0")
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID:
        return int(text)
    raise _BadRequest(f"{name} must be an integer from 0 to {MAX_ID}. Received: {text!r}")


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    """A parameter that is true or false, in any case."""
    text = parameters.get(name, "")
    if text.lower() not in ("true", "false"):
        raise _BadRequest(f"{name} must be True or False. Received: {text!r}")
    return text.lower() == "true"


def _setup_page(device: _Device) -> str:
    """The page on which other devices are configured."""
    word = "safe" if device.is_safe() else "unsafe, or no program is connected"
    return f"""<!DOCTYPE html>
<html lang="en">
<title>{html.escape(device.name)}</title>
<h1>{html.escape(device.name)}</h1>
<p>{_DESCRIPTION} {ddunet_keras.__version__}. Now: {word}.</p>
<p>It is configured in the file that <code>ddunet watch</code> reads.</p>
</html>
"""
