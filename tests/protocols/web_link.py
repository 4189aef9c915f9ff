"""A web listener and clients on fake links: no sockets, no threads, a virtual clock, no sleeping.

`WebLink` is an `HttpServer` with whatever it serves. `WebPeer` is the other end of one connection:
it sends the bytes that the test wants sent, in the pieces that it wants, and reads responses with
h11 and frames with a reader of its own, which shares no code with what it judges.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h11

from ganglion.broker.core.access import Access
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.node import Node
from ganglion.broker.core.timers import Timers
from ganglion.broker.net import Endpoint, Protocol
from ganglion.broker.net.addresses import Networks
from ganglion.broker.store.memory import MemoryStore
from ganglion.protocols.http.connection import HttpConnection
from ganglion.protocols.http.origins import Origins
from ganglion.protocols.http.routes import Routes
from ganglion.protocols.http.server import HttpServer
from ganglion.protocols.websocket.server import Subprotocol, WebSocketServer
from tests.protocols.mqtt.fake_link import FakeTls, RecordingLog

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Echo",
    "FakeCarrier",
    "Frame",
    "WebLink",
    "WebPeer",
    "byte_by_byte",
    "frame",
    "request",
    "upgrade_request",
    "whole",
]

START_S = 1000.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def whole(data: bytes) -> list[bytes]:
    """All of it at once."""
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    """Each byte by itself."""
    return [data[at : at + 1] for at in range(len(data))]


def request(method: str = "GET", target: str = "/", *headers: str, body: bytes = b"") -> bytes:
    """A request of HTTP/1.1 with a Host and these headers."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost:8080", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def upgrade_request(path: str, subprotocol: str, *headers: str) -> bytes:
    """A request that becomes a WebSocket."""
    return request(
        "GET",
        path,
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {subprotocol}",
        *headers,
    )


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x37\xfa\x21\x3d",
    length: int | None = None,
    length_size: int | None = None,
) -> bytes:
    """A client's frame. `length` is announced in place of the true one, in `length_size` bytes."""
    size = len(payload) if length is None else length
    if length_size is None:
        length_size = 0 if size <= 125 else 2 if size <= 0xFFFF else 8
    first = fin << 7 | rsv << 4 | opcode
    second = {0: size, 2: 126, 8: 127}[length_size] | (0x80 if mask is not None else 0)
    header = bytes((first, second)) + (size.to_bytes(length_size, "big") if length_size else b"")
    if mask is None:
        return header + payload
    key = mask * (len(payload) // 4 + 1)
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(key[: len(payload)], "little")
    return header + mask + masked.to_bytes(len(payload), "little")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that the server sent."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def code(self) -> int:
        """The code of a Close; 1005 when it has none."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2], "big") if self.payload else 1005


class FakeCarrier:
    """The server's side of a fake link (a `CarrierEndpoint`)."""

    def __init__(self, protocol: Any, peer: str, tls: FakeTls | None) -> None:
        self.protocol = protocol
        self.peer = peer
        self.tls = tls
        self.congested = False
        self.paused = False
        self.closing: str | None = None
        self.lingers = False
        self.output = bytearray()
        """What was sent and the test has not read yet."""
        self.sends = 0
        self._parts: list[bytes] = []
        self._wrap: Callable[[list[bytes]], bytes] = b"".join

    def write(self, data: bytes) -> None:
        """Send at the end of the tick."""
        if self.closing is None:
            self._parts.append(data)

    def offer(self, data: bytes, count: int) -> None:
        """Send, or drop."""
        if not self.congested:
            self.write(data)

    def write_bare(self, data: bytes) -> None:
        """Send without the envelope, in order."""
        if self.closing is None:
            self._seal()
            self.output += data

    def envelop(self, wrap: Callable[[list[bytes]], bytes]) -> None:
        """Wrap what is written from now on."""
        self._seal()
        self._wrap = wrap

    def hand_over(self, protocol: Protocol) -> None:
        """Let another protocol have the connection."""
        self.protocol = protocol

    def _seal(self) -> None:
        if self._parts:
            self.output += self._wrap(self._parts)
            self._parts = []

    def flush(self) -> None:
        """The tick ends."""
        if self._parts:
            self.sends += 1
        self._seal()

    def close(self, reason: str, *, linger: bool = False) -> None:
        """Close at the end of the tick."""
        if self.closing is None:
            self.flush()
            self.closing = reason
            self.lingers = linger

    def pause_reading(self) -> None:
        """Take no more."""
        self.paused = True

    def resume_reading(self) -> None:
        """Take input again."""
        self.paused = False


class Echo:
    """An inner protocol that sends back what it gets, and keeps what happens to it."""

    endpoint: Endpoint

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.events: list[str] = []

    def connected(self, endpoint: Endpoint, now: float) -> None:
        """Keep the endpoint."""
        self.endpoint = endpoint
        self.events.append("connected")

    def receive(self, data: bytes, now: float) -> None:
        """Send it back."""
        self.received.append(data)
        self.endpoint.write(data)

    def end_of_stream(self) -> None:
        """Note it."""
        self.events.append("end of stream")

    def writable(self) -> None:
        """Note it."""
        self.events.append("writable")

    def lost(self, reason: str) -> None:
        """Note it."""
        self.events.append(f"lost: {reason}")


class WebLink:
    """A server on fake links."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        routes: Routes | None = None,
        paths: Mapping[str, Mapping[str, Subprotocol]] | None = None,
        compress: bool = False,
        origins: Origins | None = None,
        trusted: Networks | None = None,
    ) -> None:
        self.log = RecordingLog()
        self.timers = Timers(START_S)
        self.node = Node(
            limits=Limits() if limits is None else limits,
            access=Access.open(),
            store=MemoryStore(),
            timers=self.timers,
            log=self.log,
            sys_interval_s=0,
        )
        self.inner: list[Echo] = []
        """The inner protocols of WebSockets on the path ``/echo``, in order."""
        echo = {
            "text": Subprotocol(self._make_echo, is_text=True),
            "binary": Subprotocol(self._make_echo),
        }
        websockets = WebSocketServer(self.node, {"/echo": echo, **(paths or {})}, compress=compress)
        self.server = HttpServer(
            self.node,
            Routes() if routes is None else routes,
            websockets,
            origins=origins,
            trusted=trusted,
        )
        self._peers: list[WebPeer] = []

    def _make_echo(self) -> Echo:
        self.inner.append(Echo())
        return self.inner[-1]

    def connect(self, peer: str = "127.0.0.1", tls: FakeTls | None = None) -> "WebPeer":
        """A new connection."""
        protocol = HttpConnection(self.server)
        made = WebPeer(self, FakeCarrier(protocol, peer, tls))
        self._peers.append(made)
        protocol.connected(made.endpoint, self.timers.now)
        return made

    def open(self, subprotocol: str = "text", *headers: str, path: str = "/echo") -> "WebPeer":
        """A new connection that has become a WebSocket."""
        peer = self.connect()
        peer.send(upgrade_request(path, subprotocol, *headers))
        response = peer.response()
        assert response.status_code == 101, response
        assert dict(response.headers)[b"sec-websocket-accept"] == ACCEPT
        assert dict(response.headers)[b"sec-websocket-protocol"] == subprotocol.encode()
        return peer

    def advance(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        end = self.timers.now + seconds
        while (deadline := self.timers.next_deadline()) is not None and deadline <= end:
            self.timers.run(deadline)
            self.tick()
        self.timers.run(end)
        self.tick()

    def tick(self) -> None:
        """The end of a tick: what waits is committed and sent."""
        self.node.flush()
        for peer in self._peers:
            peer.endpoint.flush()

    def refusals(self) -> list[str]:
        """The rules by which something was refused, in order."""
        return [str(details["rule"]) for details in self.log.refusals()]


class WebPeer:
    """A client's end of one connection."""

    def __init__(self, link: WebLink, endpoint: FakeCarrier) -> None:
        self._link = link
        self.endpoint = endpoint
        self._unread = b""

    def send(self, *pieces: bytes) -> None:
        """Send, each piece in a tick of its own; what comes after the server closed is lost."""
        for piece in pieces:
            if self.endpoint.closing is None:
                self.endpoint.protocol.receive(piece, self._link.timers.now)
            self._link.tick()

    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self.endpoint.closing is not None

    def is_paused(self) -> bool:
        """Whether the server does not read the connection."""
        return self.endpoint.paused

    def lose(self, reason: str = "gone") -> None:
        """The connection breaks, or the closed one ends."""
        self.endpoint.protocol.lost(reason)
        self._link.tick()

    def read(self) -> bytes:
        """What came since the last read."""
        data = bytes(self.endpoint.output)
        self.endpoint.output.clear()
        return data

    def response(self, method: str = "GET") -> h11.Response | h11.InformationalResponse:
        """The next response, without its body; use `exchange` where that matters."""
        return self.exchange(method)[0]

    def exchange(
        self, method: str = "GET"
    ) -> tuple[h11.Response | h11.InformationalResponse, bytes]:
        """The next response and its body."""
        headers = [("host", "localhost")]
        client = h11.Connection(h11.CLIENT)
        upgrade = [("upgrade", "websocket"), ("connection", "upgrade")]
        client.send(h11.Request(method=method, target="/", headers=headers + upgrade))
        client.send(h11.EndOfMessage())
        client.receive_data(self._unread + self.read())
        self._unread = b""
        body = b""
        response: h11.Response | h11.InformationalResponse | None = None
        while True:
            event = client.next_event()
            match event:
                case h11.InformationalResponse():
                    if event.status_code == 101:
                        self._unread = client.trailing_data[0]
                        return event, b""
                case h11.Response():
                    response = event
                case h11.Data():
                    body += event.data
                case h11.EndOfMessage():
                    assert response is not None
                    self._unread = client.trailing_data[0]
                    return response, body
                case _:
                    raise AssertionError(f"no whole response: {event}")

    def frames(self) -> list[Frame]:
        """The frames that came; all of them are whole and none is masked (5.1)."""
        data, self._unread = self._unread + self.read(), b""
        found: list[Frame] = []
        pos = 0
        while pos < len(data):
            first, length = data[pos], data[pos + 1]
            assert length < 0x80, "a server's frame is masked"
            pos += 2
            if length >= 126:
                size = 2 if length == 126 else 8
                length = int.from_bytes(data[pos : pos + size], "big")
                assert length > (125 if size == 2 else 0xFFFF), "superfluous bytes of length"
                pos += size
            payload = data[pos : pos + length]
            assert len(payload) == length, "a frame is not whole"
            found.append(Frame(first & 15, payload, bool(first & 0x80), first >> 4 & 7))
            pos += length
        return found
