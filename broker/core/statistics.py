"""What a node counts: counters, which only grow, and gauges of what no single object owns."""

from collections import defaultdict

__all__ = ["Statistics"]


class Statistics:
    """Counters of one node since its start. Plain attributes, for the data path adds to them."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "clients_expired",
        "clients_maximum",
        "connections_opened",
        "dropped",
        "other_packets_sent",
        "packets_received",
        "publish_bytes_received",
        "publish_bytes_sent",
        "publish_received",
        "publish_sent",
        "queued_bytes",
        "queued_messages",
        "replies_received",
        "requests_ended",
        "requests_received",
        "requests_repeated",
        "sockets_opened",
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
        self.publish_received = 0
        """Messages that clients published."""
        self.publish_sent = 0
        """Messages given to connections of clients."""
        self.publish_bytes_received = 0
        """Bytes of the packets of `publish_received`."""
        self.publish_bytes_sent = 0
        """Bytes of the packets of `publish_sent`."""
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

    @property
    def packets_sent(self) -> int:
        """Protocol packets of every kind."""
        return self.publish_sent + self.other_packets_sent

    def drop(self, reason: str, count: int = 1) -> None:
        """Count messages that go no further under the reason."""
        self.dropped[reason] += count
