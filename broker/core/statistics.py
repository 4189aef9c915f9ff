"""What a node counts: counters, which only grow, and gauges of what no single object owns."""

from bisect import bisect_left
from collections import defaultdict
from typing import Final

__all__ = ["PROTOCOLS", "SECONDS", "Histogram", "Statistics", "Traffic"]

PROTOCOLS: Final = ("mqtt", "mqtt-websocket", "native", "native-websocket", "native-json")
"""What messages come and go by, each with a `Traffic` of its own; the last is WebSocket, too."""

SECONDS: Final = tuple(
    factor * 10.0**power for power in range(-5, 1) for factor in (1, 2.5, 5)
)  # from 10 µs to 5 s
"""Upper bounds of the cells of a histogram of times."""


class Histogram:
    """How often a measured value fell into which cell."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By cell: each up to and with its bound, the last one above all of them."""
        self.total = 0.0
        """The sum of all values."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Traffic:
    """Messages of one protocol, counted at the place where they come and go."""

    __slots__ = ("received", "received_bytes", "sent", "sent_bytes")

    def __init__(self) -> None:
        self.received = 0
        """Messages that clients published."""
        self.received_bytes = 0
        """Bytes of their packets or frames."""
        self.sent = 0
        """Messages given to connections of clients."""
        self.sent_bytes = 0


class Statistics:
    """Counters of one node since its start. Plain attributes, for the data path adds to them."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "clients_expired",
        "clients_maximum",
        "commit_s",
        "connections_opened",
        "delivery_s",
        "dropped",
        "durable_delivery_s",
        "other_packets_sent",
        "packets_received",
        "queued_bytes",
        "queued_messages",
        "replies_received",
        "requests_ended",
        "requests_received",
        "requests_repeated",
        "sockets_opened",
        "tick_s",
        "traffic",
    )

    def __init__(self) -> None:
        self.bytes_received = 0
        """Bytes taken from sockets, TLS removed."""
        self.bytes_sent = 0
        """Bytes given to sockets, before TLS."""
        self.packets_received = 0
        """Protocol packets of every kind."""
        self.other_packets_sent = 0
        """Protocol packets that carry no message."""
        self.traffic = {name: Traffic() for name in PROTOCOLS}
        """Messages, by protocol."""
        self.connections_opened = 0
        """Clients that completed CONNECT."""
        self.queued_messages = 0
        """How many messages wait in sessions now."""
        self.queued_bytes = 0
        """Their bytes, as they count against limits."""
        self.sockets_opened = 0
        """Accepted connections, whatever came of them."""
        self.clients_maximum = 0
        """The most clients connected at once."""
        self.clients_expired = 0
        """Sessions that ended because their expiry interval passed."""
        self.requests_received = 0
        """Requests that were asked for, those refused at once included."""
        self.requests_ended: defaultdict[str, int] = defaultdict(int)
        """How they ended, by the code of the outcome."""
        self.requests_repeated = 0
        """How often one went to another responder because the one asked before had left."""
        self.replies_received = 0
        """Answers that somebody waited for; others are among `dropped`."""
        self.dropped: defaultdict[str, int] = defaultdict(int)
        """Messages that did not reach a receiver, by reason."""

        self.tick_s = Histogram()
        """Ticks of the reactor, from the input to the last byte sent; a sample of them."""
        self.delivery_s = Histogram()
        """Those of them that delivered messages, none of which took longer to get through."""
        self.commit_s = Histogram()
        """Commits, from when the store has them until they are durable, to the length of a tick."""
        self.durable_delivery_s = Histogram()
        """Commits, from when the first change was recorded until what waited for it goes out."""

    @property
    def publish_received(self) -> int:
        """Messages that clients published, over all protocols."""
        return sum(each.received for each in self.traffic.values())

    @property
    def publish_sent(self) -> int:
        """Messages given to connections of clients, over all protocols."""
        return sum(each.sent for each in self.traffic.values())

    @property
    def publish_bytes_received(self) -> int:
        """Bytes of the packets of `publish_received`."""
        return sum(each.received_bytes for each in self.traffic.values())

    @property
    def publish_bytes_sent(self) -> int:
        """Bytes of the packets of `publish_sent`."""
        return sum(each.sent_bytes for each in self.traffic.values())

    @property
    def packets_sent(self) -> int:
        """Protocol packets of every kind."""
        return self.publish_sent + self.other_packets_sent

    def drop(self, reason: str, count: int = 1) -> None:
        """Count messages that go no further under the reason."""
        self.dropped[reason] += count
