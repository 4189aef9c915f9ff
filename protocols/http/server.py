"""What all HTTP connections of a node share, and what is done with them together."""

from collections import defaultdict
from email.utils import formatdate
from typing import TYPE_CHECKING

from ganglion.broker.core.node import Node
from ganglion.broker.net.addresses import Networks
from ganglion.protocols.http.origins import Origins
from ganglion.protocols.http.routes import Routes
from ganglion.protocols.websocket.server import WebSocketServer

if TYPE_CHECKING:
    from ganglion.protocols.http.connection import HttpConnection

__all__ = ["HttpServer"]


class HttpServer:
    """Makes the protocol side of connections. Attributes may be replaced at any time (reload)."""

    def __init__(
        self,
        node: Node,
        routes: Routes,
        websockets: WebSocketServer,
        *,
        origins: Origins | None = None,
        trusted: Networks | None = None,
        wall_clock_offset_s: float = 0.0,
    ) -> None:
        """`trusted` proxies may say whom they speak for.

        `wall_clock_offset_s` is what to add to the node's monotonic time to get Unix time.
        """
        self.node = node
        self.routes = routes
        self.websockets = websockets
        self.origins = origins or Origins()
        self.trusted = trusted or Networks()
        self.connections: set[HttpConnection] = set()
        """Those that are open and no WebSocket."""
        self.responses: defaultdict[int, int] = defaultdict(int)
        """How many were given, by status."""
        self.is_draining = False
        self._wall_clock_offset_s = wall_clock_offset_s
        self._date_of = -1
        self._date = b""

    def date(self) -> bytes:
        """The time of day as the header Date has it (RFC 9110, 6.6.1)."""
        second = int(self.node.timers.now + self._wall_clock_offset_s)
        if second != self._date_of:
            self._date_of = second
            self._date = formatdate(second, usegmt=True).encode()
        return self._date

    def drain(self) -> None:
        """Close what is idle now, and every other connection after its response."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()
