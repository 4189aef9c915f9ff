"""Connections that break where a test says.

`CuttingProxy` stands between a client and a node, in the client's own loop. Each connection that
comes gets the next `Cut` of its plan, and when there are no more it is left alone. `patient` is a
client that bears it, and `check_empty` what it looks like when nothing is left over.
"""

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import anyio
from anyio.abc import SocketAttribute, SocketStream

from ganglion.clients.mesh import Mesh, connect
from tests.clients.backends import eventually

__all__ = ["Cut", "CuttingProxy", "Direction", "How", "check_empty", "patient"]

How = Literal["close", "reset", "half", "stall", "hole", "trickle"]
Direction = Literal["up", "down"]

_READ_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Cut:
    """What becomes of a connection after so many bytes in one direction."""

    direction: Direction
    """``up``: from the client to the node."""
    after: int
    how: How = "reset"
    """``close`` both sides, ``reset`` them, close only this direction (``half``), let this
    direction ``stall``, let both vanish in a ``hole``, or ``trickle``: byte by byte from there."""


class CuttingProxy:
    """Leads to a node, and cuts connections as planned."""

    def __init__(self, node_port: int, *cuts: Cut, scheme: str = "ganglion") -> None:
        self.port = 0
        self.scheme = scheme
        self.plan = list(cuts)
        """What the connections to come will suffer, the next one first."""
        self.accepted = 0
        """How many connections there were."""
        self.open = 0
        """How many there are."""
        self.passed: Counter[Direction] = Counter()
        """How many bytes went through."""
        self._node_port = node_port
        self._all: set[SocketStream] = set()

    @property
    def url(self) -> str:
        """Where a client connects to."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["CuttingProxy"]:
        """Accept connections for the time of the context."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        self.port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._pass_on)
            yield self
            tasks.cancel_scope.cancel()

    async def cut_all(self) -> None:
        """Reset every connection that there is now."""
        for stream in list(self._all):
            await _reset(stream)

    async def _pass_on(self, client: SocketStream) -> None:
        self.accepted += 1
        cut = self.plan.pop(0) if self.plan else None
        self.open += 1
        try:
            async with client, await anyio.connect_tcp("127.0.0.1", self._node_port) as node:
                self._all |= {client, node}
                try:
                    async with anyio.create_task_group() as tasks:
                        passing = _Passing(tasks.cancel_scope, cut)
                        tasks.start_soon(self._pump, "up", client, node, passing)
                        tasks.start_soon(self._pump, "down", node, client, passing)
                finally:
                    self._all -= {client, node}
        except OSError:
            pass  # the node is not there: the client sees its connection end
        finally:
            self.open -= 1

    async def _pump(
        self, direction: Direction, source: SocketStream, sink: SocketStream, passing: "_Passing"
    ) -> None:
        cut = passing.cut
        left = cut.after if cut is not None and cut.direction == direction else None
        try:
            while left != 0:
                data = await source.receive(_READ_BYTES if left is None else min(left, _READ_BYTES))
                self.passed[direction] += len(data)
                if left is not None:
                    left -= len(data)
                if not passing.is_hole:
                    await sink.send(data)
            assert cut is not None
            await _suffer(cut.how, source, sink, passing)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            passing.scope.cancel()


@dataclass(slots=True)
class _Passing:
    """One connection through the proxy."""

    scope: anyio.CancelScope
    cut: Cut | None
    is_hole: bool = False


async def _suffer(how: How, source: SocketStream, sink: SocketStream, passing: _Passing) -> None:
    """What becomes of a connection that has come to its cut."""
    match how:
        case "close":
            passing.scope.cancel()
        case "reset":
            await _reset(source)
            await _reset(sink)
        case "half":
            await sink.send_eof()
            while True:
                await source.receive(_READ_BYTES)
        case "stall":
            await anyio.sleep_forever()
        case "hole":
            passing.is_hole = True
            while True:
                await source.receive(_READ_BYTES)
        case "trickle":
            while True:
                for byte in await source.receive(_READ_BYTES):
                    await sink.send(bytes((byte,)))


async def _reset(stream: SocketStream) -> None:
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await anyio.aclose_forcefully(stream)


def patient(*urls: str, **options: Any) -> connect:
    """A client that does not give up and does not wait long between attempts."""
    given: dict[str, Any] = {
        "wait_for_node_s": 10.0,
        "backoff_s": 0.001,
        "backoff_max_s": 0.02,
        "answer_timeout_s": 10.0,
        "keep_alive_s": 1,
    }
    return connect(*urls, **{**given, **options})


async def check_empty(mesh: Mesh) -> None:
    """Wait until a client without anything on its way keeps nothing of what was."""
    session = mesh._session

    def is_empty() -> bool:
        link = session.link
        return (
            link is not None
            and not link.calls
            and not link.channels
            and not link._to_flush
            and not link.conversation._singles
            and not link.conversation._publishes
            and not session._channels
            and not session.plain._subscriptions
            and not session.outbox
            and session.outbox._bytes == 0
        )

    await eventually(is_empty)
