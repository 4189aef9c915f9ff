"""Hostile browsers and programs on the web listener: refused cheaply, and others unaffected."""

import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.conftest import MIB, round_trip, under_attack
from tests.support import DEADLINE_S, Daemon, RawClient, connect_packet, start_daemon, until

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n"
)
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FLAGS = (
    *("--web", "127.0.0.1:0"),
    *("--limit", "connect_timeout_s=1"),
    *("--limit", "websocket_message_max_bytes=1048576"),
)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon with a web listener that is impatient, and may compress."""
    with start_daemon(*FLAGS, config="web.compression = true") as process:
        yield process


def connect(daemon: Daemon) -> socket.socket:
    """A connection with the web listener."""
    return socket.create_connection(("127.0.0.1", daemon.ports["web"]), DEADLINE_S)


def read_to_end(peer: socket.socket) -> bytes:
    """All that comes until the connection ends, in whatever way."""
    found = b""
    try:
        while data := peer.recv(65_536):
            found += data
    except ConnectionError:
        pass
    return found


def attack(daemon: Daemon, *sent: bytes) -> bytes:
    """Send, as far as it is taken; what comes back until the end."""
    with connect(daemon) as peer:
        try:
            for each in sent:
                peer.sendall(each)
        except ConnectionError:
            pass
        return read_to_end(peer)


def upgrade(daemon: Daemon, *headers: str) -> socket.socket:
    """An open WebSocket."""
    peer = connect(daemon)
    peer.sendall((UPGRADE + "".join(f"{each}\r\n" for each in headers) + "\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = peer.recv(4096)
        assert data, answer
        answer += data
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return peer


def frame(payload: bytes, first: int = 0x82, length: int | None = None) -> bytes:
    """A client's frame, masked with zero."""
    size = len(payload) if length is None else length
    if size < 126:
        header = struct.pack("!BB", first, 0x80 | size)
    elif size < 65_536:
        header = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        header = struct.pack("!BBQ", first, 0x80 | 127, size)
    return header + bytes(4) + payload


def close_code(peer: socket.socket) -> int:
    """The code of the Close with which the server ends."""
    data = read_to_end(peer)
    at = data.rfind(b"\x88")
    assert at >= 0, data[-100:]
    return int.from_bytes(data[at + 2 : at + 4], "big")


def seconds_of_cpu(daemon: Daemon) -> float:
    """What the daemon has used."""
    return daemon.cpu_s()


@pytest.mark.slow
def test_slowloris(daemon: Daemon) -> None:
    """Hundreds of requests that never end are given up after their time, whatever they trickle."""
    with under_attack(daemon) as witness, ExitStack() as stack:
        peers = [stack.enter_context(connect(daemon)) for _ in range(300)]
        began = time.monotonic()
        for peer in peers:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        while time.monotonic() < began + 2:
            round_trip(witness)
            for peer in peers:
                try:
                    peer.sendall(b"X: y\r\n")
                except ConnectionError:
                    pass  # it was given up already
            time.sleep(0.1)
        for peer in peers:
            answer = read_to_end(peer)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408 "), answer


def test_a_websocket_without_connect_is_given_up(daemon: Daemon) -> None:
    """The deadline of MQTT's first packet begins when the WebSocket is open."""
    with under_attack(daemon):
        began = time.monotonic()
        with upgrade(daemon) as peer:
            assert close_code(peer) == 1000
        assert 0.5 < time.monotonic() - began < DEADLINE_S


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 10 * MIB, b"431"),
        (b"GET /" + b"y" * MIB, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X:y\r\n" * 500 + b"\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (
            CHUNKED + b"10000\r\n" + b"x" * 2 * MIB,
            b"400",
        ),
        (CHUNKED + b"1;" + b"x" * MIB, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400"),
        (CHUNKED.replace(b"Host", b"Content-Length: 1\r\nHost"), b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rSet-Cookie: b\r\n\r\n", b"400"),
        (b"GET /%0d%0aSet-Cookie:%20a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
        (bytes(range(256)) * 1000, b"400"),
    ],
)
def test_requests_that_are_too_much_or_no_requests(
    data: bytes, status: bytes, daemon: Daemon
) -> None:
    """One answer, and the end; no header of ours is the client's."""
    with under_attack(daemon, growth_bytes=8 * MIB):
        began = seconds_of_cpu(daemon)
        for _ in range(5):
            answer = attack(daemon, data)
            # A client that goes on sending may lose the answer to a reset.
            assert answer == b"" or answer.startswith(b"HTTP/1.1 " + status), answer[:200]
            assert answer.count(b"HTTP/1.1 ") <= 1
            assert b"set-cookie" not in answer.partition(b"\r\n\r\n")[0].lower()
        assert seconds_of_cpu(daemon) - began < 2


def test_pipelined_requests_leave_others_their_turn(daemon: Daemon) -> None:
    """Ten thousand requests in a row are all answered, and the witness in between."""
    count = 10_000
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with under_attack(daemon, growth_bytes=16 * MIB) as witness, connect(daemon) as peer:
        peer.setblocking(False)
        left, came, answered, slowest = one * count, 0, b"", 0.0
        end = time.monotonic() + 60
        while came < count:
            assert time.monotonic() < end, came
            try:
                left = left[peer.send(left) :] if left else b""
            except BlockingIOError:
                pass
            try:
                answered += peer.recv(1 << 20)
            except BlockingIOError:
                pass
            parts = answered.split(b"HTTP/1.1 200 ")
            came += len(parts) - 2 if len(parts) > 1 else 0
            answered = b"HTTP/1.1 200 " + parts[-1] if len(parts) > 1 else answered
            if came == count - 1 and answered.endswith(b"}\n"):
                came += 1
            began = time.monotonic()
            round_trip(witness)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2


def test_a_reader_that_never_reads(daemon: Daemon) -> None:
    """Pipelined requests for pages stop being answered; memory does not grow with them."""
    one = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with under_attack(daemon, growth_bytes=24 * MIB) as witness, connect(daemon) as peer:
        peer.setblocking(False)
        refused = 0
        while refused < 20:
            try:
                peer.send(one * 1000)
            except BlockingIOError:
                refused += 1
                round_trip(witness)
                time.sleep(0.02)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/js/../../../etc/passwd",
        "/js/..%2f..%2f..%2fetc%2fpasswd",
        "/js/%2e%2e/%2e%2e/app.py",
        "/js//etc/passwd",
        "//etc/passwd",
        "/js/..\\..\\app.py",
        "/js/index.html%00.js",
        "/js/.hidden",
        "file:///etc/passwd",
        "http://x/../../etc/passwd",
    ],
)
def test_path_traversal(path: str, daemon: Daemon) -> None:
    """No path leads out of the files that are shipped."""
    with under_attack(daemon):
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = attack(daemon, request.encode())
        assert answer.split(b" ")[1] in (b"400", b"404"), answer
        assert b"root:" not in answer


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "localhost"),
        ("http://evil.example", "evil.example"),  # DNS rebinding
        ("null", "localhost"),
    ],
)
def test_cross_site_hijack(origin: str, host: str, daemon: Daemon) -> None:
    """A page from elsewhere gets no WebSocket, and the log says whose it was."""
    request = UPGRADE.replace("localhost", host) + f"Origin: {origin}\r\n\r\n"
    request = request.replace("Connection: Upgrade", "Connection: Upgrade, close")
    with under_attack(daemon):
        assert attack(daemon, request.encode()).startswith(b"HTTP/1.1 403 ")
        daemon.wait_event("refused", action="http")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"", length=2 * MIB), 1009),
        (frame(b"", length=2**62), 1009),
        (frame(b"hello", first=0x81), 1003),
        (frame(b"hello", first=0x83), 1002),
        (frame(b"x" * 126, first=0x89), 1002),
        (b"\x82\x05hello", 1002),
        (bytes(range(255, 0, -1)), 1002),
    ],
)
def test_frames_that_break_the_protocol(sent: bytes, code: int, daemon: Daemon) -> None:
    """Told by the code of the Close, before anything of the payload is kept."""
    with under_attack(daemon, growth_bytes=8 * MIB):
        for _ in range(5):
            with upgrade(daemon) as peer:
                peer.sendall(sent)
                assert close_code(peer) == code


def test_a_deflate_bomb(daemon: Daemon) -> None:
    """A gibibyte in a mebibyte is refused before it is inflated."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(deflater.compress(bytes(MIB)) for _ in range(256))
    bomb += deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]
    assert len(bomb) < MIB
    with under_attack(daemon, growth_bytes=24 * MIB):
        began = seconds_of_cpu(daemon)
        for _ in range(5):
            with upgrade(daemon, "Sec-WebSocket-Extensions: permessage-deflate") as peer:
                try:
                    peer.sendall(frame(bomb, first=0xC2))
                except ConnectionError:
                    pass
                read_to_end(peer)  # a reset may destroy the Close: the log has it
        assert seconds_of_cpu(daemon) - began < 2
        assert daemon.wait_event("refused", action="websocket", code=1009)


def test_floods_of_pings_and_empty_frames(daemon: Daemon) -> None:
    """They cost their sender its connection's time, and the witness nothing it would notice."""
    connect_frame = frame(connect_packet("flood"))
    with under_attack(daemon, growth_bytes=16 * MIB) as witness:
        for flood in (
            frame(b"x" * 125, first=0x89) * 200,  # never reads the pongs
            frame(b"") * 2000,
            frame(b"", first=0x02) + frame(b"", first=0x00) * 2000,
        ):
            with upgrade(daemon) as peer:
                peer.sendall(connect_frame)
                peer.settimeout(0.2)
                try:
                    for _ in range(50):
                        peer.sendall(flood)
                        round_trip(witness)
                except (TimeoutError, ConnectionError):
                    pass


def test_connections_that_come_and_go(daemon: Daemon) -> None:
    """At every stage of a request and of a WebSocket: nothing is left behind."""
    stages = [
        b"",
        b"GET / HT",
        UPGRADE.encode(),
        (UPGRADE + "\r\n").encode(),
        (UPGRADE + "\r\n").encode() + frame(connect_packet("churn")),
        (UPGRADE + "\r\n").encode() + frame(connect_packet("churn"))[:9],
        (UPGRADE + "\r\n").encode() + frame(b"", first=0x88),
    ]
    with under_attack(daemon, growth_bytes=16 * MIB):
        descriptors = daemon.descriptors()
        for number in range(700):
            with connect(daemon) as peer:
                peer.sendall(stages[number % len(stages)])
                if number % 2:
                    linger = struct.pack("ii", 1, 0)
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        until(lambda: daemon.descriptors() <= descriptors + 2, what="the descriptors' release")


def test_mqtt_and_tls_on_the_wrong_port(daemon: Daemon) -> None:
    """What is no HTTP is told so, or closed, at once."""
    with under_attack(daemon):
        assert attack(daemon, connect_packet("lost")).startswith(b"HTTP/1.1 400 ")
        hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
        assert attack(daemon, hello)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 408")
        with RawClient(daemon.ports["mqtt"]) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.expect_closed()
