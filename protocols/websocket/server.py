"""What all WebSocket connections of a node share: which paths there are and what they carry."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ganglion.broker.core.node import Node
from ganglion.broker.net import Protocol

__all__ = ["Subprotocol", "WebSocketServer"]


@dataclass(frozen=True, slots=True)
class Subprotocol:
    """What a subprotocol (RFC 6455, 1.9) carries."""

    make: Callable[[], Protocol]
    """Makes the inner protocol of a connection."""
    is_text: bool = False
    """Whether it speaks in text messages: each call of `receive` then has one whole message, UTF-8,
    and each `write` sends one. Else messages are binary and where they end means nothing: `receive`
    gets a stream of bytes, and what is written in one tick may share a message."""


class WebSocketServer:
    """Makes WebSocket connections."""

    def __init__(
        self, node: Node, paths: Mapping[str, Mapping[str, Subprotocol]], *, compress: bool = False
    ) -> None:
        """`paths` has the subprotocols of each path by name; `compress` permits deflate."""
        self.node = node
        self.paths = paths
        self.compress = compress
        self.open: defaultdict[str, int] = defaultdict(int)
        """How many connections there are now, by subprotocol."""
