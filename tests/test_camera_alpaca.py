"""The Alpaca SafetyMonitor, asked by the client library alpyca, and by requests that err."""

import http.client
import json
import socket
import threading

import ifaddr
import pytest
from alpaca import discovery, management
from alpaca.exceptions import ActionNotImplementedException, NotImplementedException
from alpaca.safetymonitor import SafetyMonitor

import ddunet_keras
from ddunet_keras.camera.alpaca import MAX_CONNECTIONS, AlpacaConfig, AlpacaServer
from ddunet_keras.camera.safety import SafetyState
from ddunet_keras.files import DataError

SAFE = SafetyState(True, "cloud cover 2.0 %", 0.0)
UNSAFE = SafetyState(False, "cloud cover 90.0 %", 0.0)
DEVICE = "/api/v1/safetymonitor/0/"
LIMIT = 60
"""Seconds that a test waits for an answer; it comes at once."""


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Told(dict):
    """What was told, by topic."""

    def __call__(self, topic, message):
        self[topic] = message


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def server(clock, told):
    config = AlpacaConfig(port=0, discovery_port=0, name="Dome <1>", max_age=60)
    server = AlpacaServer(config, told, clock)
    yield server
    server.close()
    assert not told, "a fault"


@pytest.fixture(scope="module")
def still():
    """A server that no test of this module changes."""
    told = Told()
    server = AlpacaServer(AlpacaConfig(port=0, discovery_port=0, name="Dome <1>"), told)
    yield server
    server.close()
    assert not told, "a fault"


@pytest.fixture
def monitor(server):
    monitor = SafetyMonitor(f"127.0.0.1:{server.port}", 0)
    yield monitor
    monitor.rqs.close()


def ask(server, method, path, body=None, headers=None):
    """(status, content type, text) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
    try:
        if body is not None:
            headers = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def value(server, path):
    status, content_type, text = ask(server, "GET", path)
    assert status == 200 and content_type.startswith("application/json")
    return json.loads(text)


def test_alpyca_reads_safe_and_unsafe(server, monitor):
    monitor.Connected = True
    assert monitor.IsSafe is False  # nothing was published yet
    server.publish(None, SAFE)
    assert monitor.IsSafe is True
    server.publish({}, UNSAFE)
    assert monitor.IsSafe is False
    server.publish(None, SAFE)
    server.publish(None, None)
    assert monitor.IsSafe is False


def test_unsafe_while_not_connected(server, monitor):
    server.publish(None, SAFE)
    assert monitor.Connected is False and monitor.IsSafe is False
    monitor.Connected = True
    assert monitor.Connected is True and monitor.IsSafe is True
    monitor.Connected = False
    assert monitor.Connected is False and monitor.IsSafe is False


def test_unsafe_when_the_service_is_silent(server, monitor, clock):
    monitor.Connected = True
    server.publish(None, SAFE)
    clock.now += 60
    assert monitor.IsSafe is True
    clock.now += 1
    assert monitor.IsSafe is False
    server.publish(None, SAFE)
    assert monitor.IsSafe is True


def test_connect_and_disconnect_of_platform_7(server, monitor):
    server.publish(None, SAFE)
    monitor.Connect()
    assert monitor.Connecting is False and monitor.Connected is True and monitor.IsSafe is True
    states = {entry["Name"]: entry["Value"] for entry in monitor.DeviceState}
    assert states["IsSafe"] is True and states["TimeStamp"].endswith("Z")
    monitor.Disconnect()
    assert monitor.Connected is False and monitor.IsSafe is False


def test_what_the_device_says_of_itself(monitor):
    assert monitor.Name == "Dome <1>"
    assert monitor.InterfaceVersion == 3
    assert "cloud" in monitor.Description.lower()
    assert ddunet_keras.__version__ in " ".join(monitor.DriverInfo)
    assert ddunet_keras.__version__.startswith(monitor.DriverVersion)
    assert monitor.SupportedActions == []


def test_what_it_does_not_implement(monitor):
    not_there = (NotImplementedException, ActionNotImplementedException)
    with pytest.raises(not_there):
        monitor.Action("open", "now")
    with pytest.raises(not_there):
        monitor.CommandBlind("x", False)
    with pytest.raises(not_there):
        monitor.CommandBool("x", False)
    with pytest.raises(not_there):
        monitor.CommandString("x", False)


def test_management(still):
    address = f"127.0.0.1:{still.port}"
    assert management.apiversions(address) == [1]
    assert set(management.description(address)) == {
        "ServerName",
        "Manufacturer",
        "ManufacturerVersion",
        "Location",
    }
    (device,) = management.configureddevices(address)
    assert device["DeviceName"] == "Dome <1>"
    assert device["DeviceType"] == "SafetyMonitor" and device["DeviceNumber"] == 0
    assert device["UniqueID"]


def test_the_unique_id_stays_and_differs(told):
    def unique_id(name):
        server = AlpacaServer(AlpacaConfig(port=0, discovery=False, name=name), told)
        try:
            return value(server, "/management/v1/configureddevices")["Value"][0]["UniqueID"]
        finally:
            server.close()

    assert unique_id("North") == unique_id("North") != unique_id("South")


def test_transactions(still):
    first = value(still, DEVICE + "issafe?ClientID=7&ClientTransactionID=4294967295")
    second = value(still, DEVICE + "name?clientid=7&CLIENTTRANSACTIONID=12")
    third = value(still, DEVICE + "name")
    fourth = value(still, "/management/apiversions?clienttransactionid=9")
    answers = (first, second, third, fourth)
    assert [answer["ClientTransactionID"] for answer in answers] == [4294967295, 12, 0, 9]
    numbers = [answer["ServerTransactionID"] for answer in answers]
    assert numbers == list(range(numbers[0], numbers[0] + 4)) and numbers[0] > 0
    for answer in answers:
        assert answer["ErrorNumber"] == 0 and answer["ErrorMessage"] == ""


def test_a_put_answers_alike(server):
    body = "Connected=tRuE&ClientID=1&ClientTransactionID=5"
    status, _, text = ask(server, "PUT", DEVICE + "connected", body)
    answer = json.loads(text)
    assert status == 200 and "Value" not in answer
    assert answer["ClientTransactionID"] == 5 and answer["ErrorNumber"] == 0
    _, _, text = ask(server, "PUT", DEVICE + "action", "Action=x&Parameters=&ClientTransactionID=6")
    answer = json.loads(text)
    assert answer["ErrorNumber"] == 0x400 and answer["ErrorMessage"]
    assert answer["ClientTransactionID"] == 6


BAD_REQUESTS = [
    ("GET", DEVICE + "nonsense", None),
    ("GET", DEVICE + "IsSafe", None),  # URLs are lower case
    ("GET", DEVICE, None),
    ("GET", DEVICE + "x/../issafe", None),
    ("GET", "/api/v1/safetymonitor/1/issafe", None),
    ("GET", "/api/v1/safetymonitor/-1/issafe", None),
    ("GET", "/api/v1/telescope/0/issafe", None),
    ("GET", "/api/v2/safetymonitor/0/issafe", None),
    ("GET", "/sky", None),
    ("GET", "/management/v1/nonsense", None),
    ("GET", DEVICE + "issafe?ClientID=-1", None),
    ("GET", DEVICE + "issafe?ClientID=", None),
    ("GET", DEVICE + "issafe?ClientID=%C2%B2", None),  # a superscript two is a digit in Python
    ("GET", DEVICE + "issafe?ClientTransactionID=abc", None),
    ("GET", DEVICE + "issafe?ClientTransactionID=4294967296", None),
    ("GET", DEVICE + "issafe?ClientTransactionID=" + "9" * 5000, None),
    ("GET", DEVICE + "issafe?" + "a=1&" * 30, None),
    ("GET", DEVICE + "connect", None),
    ("PUT", DEVICE + "issafe", "ClientID=1"),
    ("PUT", DEVICE + "connected", ""),
    ("PUT", DEVICE + "connected", "Connected=maybe"),
    ("PUT", DEVICE + "connected", "Connected="),
    ("PUT", DEVICE + "connected", "connected=True"),  # names in a body have the right case
    ("PUT", DEVICE + "connected?Connected=True", ""),
    ("PUT", DEVICE + "connected", "Connected=True&ClientTransactionID=x"),
    ("PUT", DEVICE + "connected", b"\xff\xfe"),
    ("PUT", "/management/apiversions", "ClientID=1"),
]


@pytest.mark.parametrize(
    ("method", "path", "body"), BAD_REQUESTS, ids=[f"{m} {p[:50]}" for m, p, _ in BAD_REQUESTS]
)
def test_a_bad_request_is_status_400_with_a_text(still, method, path, body):
    status, content_type, text = ask(still, method, path, body)
    assert status == 400
    assert content_type.startswith("text/plain")
    assert text and text.isprintable()
    assert value(still, DEVICE + "connected")["Value"] is False


@pytest.mark.parametrize("length", ["-1", "abc", "65537", "99999999999"])
def test_a_false_length_is_refused_before_the_body_is_read(still, length):
    with socket.create_connection(("127.0.0.1", still.port), timeout=LIMIT) as client:
        client.sendall(
            f"PUT {DEVICE}connected HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        assert client.makefile().readline().split()[1] == "400"


def test_setup_pages(still):
    for path in ("/", "/setup", "/setup/v1/safetymonitor/0/setup"):
        status, content_type, text = ask(still, "GET", path)
        assert status == 200 and content_type.startswith("text/html")
        assert "Dome &lt;1&gt;" in text and "Dome <1>" not in text
    assert ask(still, "GET", "/setup/v1/telescope/0/setup")[0] == 403


def test_other_methods_are_refused(still):
    assert ask(still, "POST", DEVICE + "issafe", "")[0] == 501
    assert ask(still, "DELETE", DEVICE + "issafe")[0] == 501


def test_what_is_no_http_does_not_stop_it(still):
    for noise in (b"", b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"A" * 70_000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", still.port), timeout=LIMIT) as client:
            client.sendall(noise)
    assert value(still, DEVICE + "issafe")["Value"] is False


def test_silent_clients_leave_room_in_the_end(still):
    clients = [
        socket.create_connection(("127.0.0.1", still.port), timeout=LIMIT)
        for _ in range(MAX_CONNECTIONS + 5)
    ]
    try:
        hung_up = [client for client in clients[MAX_CONNECTIONS:] if client.recv(1) == b""]
        assert len(hung_up) == 5
    finally:
        for client in clients:
            client.close()
    answered = threading.Event()
    for _ in range(1000):  # until the threads of the others have seen that they are gone
        try:
            value(still, DEVICE + "issafe")
        except (OSError, http.client.HTTPException):
            answered.wait(0.05)
            continue
        answered.set()
        break
    assert answered.is_set()


@pytest.fixture
def loopback_only(monkeypatch):
    """Lets the client search no network but this machine's own."""
    adapters = list(ifaddr.get_adapters())
    (address,) = (ip for adapter in adapters for ip in adapter.ips if ip.ip == "127.0.0.1")

    class Loopback:
        ips = (address,)

    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [Loopback()])


def test_alpyca_discovers_it(still, monkeypatch, loopback_only):
    monkeypatch.setattr(discovery, "port", still.discovery_port)
    assert discovery.search_ipv4(numquery=1, timeout=1) == [f"127.0.0.1:{still.port}"]


def query(port, content):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.sendto(content, ("127.0.0.1", port))
        client.sendto(b"alpacadiscovery1", ("127.0.0.1", port))
        return client.recv(1024)


@pytest.mark.parametrize("content", [b"", b"alpacadiscovery2", b"x" * 5000, b"\xff"])
def test_discovery_answers_its_query_alone(still, content):
    # the first answer is to the second datagram: after it, nothing more comes
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.bind(("127.0.0.1", 0))
        for datagram in (content, b"alpacadiscovery1"):
            client.sendto(datagram, ("127.0.0.1", still.discovery_port))
        assert json.loads(client.recv(1024)) == {"AlpacaPort": still.port}
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1024)


def test_two_devices_share_the_discovery_port(still, told):
    config = AlpacaConfig(port=0, discovery_port=still.discovery_port, name="Other")
    other = AlpacaServer(config, told)
    try:
        assert other.discovery_port == still.discovery_port
    finally:
        other.close()


def test_it_listens_at_loopback_unless_told():
    assert AlpacaConfig().host == "127.0.0.1" and AlpacaConfig().enabled is False


def test_for_the_whole_network(told):
    server = AlpacaServer(AlpacaConfig(host="0.0.0.0", port=0, discovery_port=0), told)
    try:
        assert value(server, DEVICE + "issafe")["Value"] is False
        assert json.loads(query(server.discovery_port, b"?")) == {"AlpacaPort": server.port}
    finally:
        server.close()


def test_a_port_that_is_taken_is_one_line(still, told):
    with pytest.raises(DataError, match=f"port {still.port}") as error:
        AlpacaServer(AlpacaConfig(port=still.port, discovery=False), told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "host.invalid", "\xff.example"])
def test_an_address_that_is_not_this_machine_s_is_one_line(host, told):
    with pytest.raises(DataError, match="cannot listen"):
        AlpacaServer(AlpacaConfig(host=host, port=0, discovery=False), told)


def test_without_a_port_for_discovery_it_serves_all_the_same(told):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))  # and does not share it
        config = AlpacaConfig(port=0, discovery_port=taken.getsockname()[1])
        server = AlpacaServer(config, told)
        try:
            assert server.discovery_port is None
            assert "discovery" in told["alpaca"]
            assert value(server, DEVICE + "issafe")["Value"] is False
        finally:
            server.close()


def test_the_port_is_free_again_after_close(told):
    server = AlpacaServer(AlpacaConfig(port=0, discovery=False), told)
    value(server, DEVICE + "issafe")
    server.close()
    with pytest.raises(OSError):
        ask(server, "GET", DEVICE + "issafe")
    again = AlpacaServer(AlpacaConfig(port=server.port, discovery=False), told)
    again.close()


BAD_SETTINGS = [{"port": 65536}, {"port": "80"}, {"host": ""}, {"name": "a\nb"}, {"max_age": 0}]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="Received"):
        AlpacaConfig(**settings)
