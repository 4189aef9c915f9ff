"""A reactor whose ticks a test makes by hand, and protocols to put on it.

`HandDriven` has real sockets and no trio: `until` polls and ticks till something is true. What
needs trio (deadlines, draining) is tested with `Reactor.run`.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.net import Endpoint, Protocol
from ganglion.broker.net.addresses import Address, Networks
from ganglion.broker.net.listener import Listener
from ganglion.broker.net.reactor import Reactor
from ganglion.broker.net.tls import TlsContext

__all__ = ["Echo", "HandDriven", "RecordingLog", "Talker"]

PATIENCE_S = 10.0
"""After so long a condition that has not come true is a failure."""


class RecordingLog:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, /, **details: Any) -> None:
        """Keep the event."""
        self.events.append((event, details))

    info = debug
    warning = debug


class Talker:
    """A protocol that keeps what happens to it and does nothing by itself."""

    endpoint: Endpoint

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.chunks: list[int] = []
        self.reasons: list[str] = []

    def connected(self, endpoint: Endpoint, now: float) -> None:
        """Keep the endpoint."""
        assert now > 0
        self.endpoint = endpoint
        self.events.append("connected")

    def receive(self, data: bytes, now: float) -> None:
        """Keep the bytes."""
        assert now > 0
        assert data
        self.received += data
        self.chunks.append(len(data))

    def end_of_stream(self) -> None:
        """Note it."""
        self.events.append("end of stream")

    def writable(self) -> None:
        """Note it."""
        assert not self.endpoint.congested
        self.events.append("writable")

    def lost(self, reason: str) -> None:
        """Note it."""
        self.reasons.append(reason)
        self.events.append("lost")


class Echo(Talker):
    """A protocol that sends back what it gets."""

    def receive(self, data: bytes, now: float) -> None:
        """Send it back."""
        super().receive(data, now)
        self.endpoint.write(data)


class HandDriven:
    """A reactor with listeners on free ports of this machine. A context manager."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self.timers = Timers()
        self.statistics = Statistics()
        self.log = RecordingLog()
        self.ticks_ended = 0
        self.reactor = Reactor(
            self.timers, self.limits, self.statistics, self.log, self._end_of_tick
        )
        self.protocols: list[Any] = []
        """What was made for each accepted connection."""
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self.reactor.close()

    def _end_of_tick(self) -> None:
        self.ticks_ended += 1

    def listen(
        self,
        make: Callable[[], Protocol] = Talker,
        address: Address | None = None,
        *,
        tls: TlsContext | None = None,
        trusted: Networks | None = None,
        proxied: bool = False,
    ) -> Listener:
        """Open a listener whose protocols are kept in `protocols`."""

        def make_and_keep() -> Protocol:
            protocol = make()
            self.protocols.append(protocol)
            return protocol

        address = address or Address("127.0.0.1", 0)
        return self.reactor.listen(
            address, make_and_keep, tls=tls, trusted=trusted, proxied=proxied
        )

    def connect(self, listener: Listener, *, receive_buffer: int | None = None) -> socket.socket:
        """A client's socket, which never blocks."""
        address = listener.address
        if address.path is not None:
            client = socket.socket(socket.AF_UNIX)
            target: Any = address.path
        else:
            client = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
            target = (address.host, address.port)
        self._opened.callback(client.close)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(target)
        client.setblocking(False)
        return client

    def join(self, listener: Listener, **options: Any) -> tuple[socket.socket, Any]:
        """A client's socket and the protocol of its connection."""
        count = len(self.protocols)
        client = self.connect(listener, **options)
        self.until(lambda: len(self.protocols) > count)
        return client, self.protocols[-1]

    def tick(self, wait_s: float = 0.0) -> None:
        """One tick with what is ready."""
        self.reactor.tick(self.reactor.epoll.poll(wait_s), time.monotonic())

    def until(self, condition: Callable[[], object]) -> None:
        """Make ticks until the condition is true."""
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up_at, "it did not come true"
            self.tick(0.005)

    def until_lost(self, protocol: Talker) -> None:
        """Make ticks until the protocol has lost its connection."""
        self.until(lambda: protocol.reasons)

    def receive(self, client: socket.socket, size: int) -> bytes:
        """Exactly so many bytes for the client, with ticks as long as it takes."""
        return b"".join(self._receive(client, size))

    def _receive(self, client: socket.socket, size: int) -> Iterator[bytes]:
        give_up_at = time.monotonic() + PATIENCE_S
        while size:
            assert time.monotonic() < give_up_at, f"{size} bytes did not come"
            try:
                data = client.recv(min(size, 1 << 20))
            except BlockingIOError:
                self.tick(0.005)
                continue
            assert data, f"the connection ended {size} bytes early"
            size -= len(data)
            yield data

    def receive_to_end(self, client: socket.socket) -> bytes:
        """What comes until the connection ends in good order."""
        found = bytearray()
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < give_up_at, "the connection did not end"
            try:
                data = client.recv(1 << 20)
            except BlockingIOError:
                self.tick(0.005)
                continue
            if not data:
                return bytes(found)
            found += data

    def send(self, client: socket.socket, data: bytes) -> None:
        """Send all of it, with ticks as long as it takes."""
        give_up_at = time.monotonic() + PATIENCE_S
        rest = memoryview(data)
        while rest:
            assert time.monotonic() < give_up_at, "it cannot be sent"
            try:
                rest = rest[client.send(rest) :]
            except BlockingIOError:
                self.tick(0.005)
