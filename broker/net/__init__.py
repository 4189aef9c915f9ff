"""The reactor: sockets, TLS, listeners. The only place that touches sockets on the data path.

This module has the two interfaces between the reactor and a protocol, so that protocols need not
import the rest.
"""

from collections.abc import Callable
from typing import Protocol as Interface

__all__ = ["Carrier", "CarrierEndpoint", "Endpoint", "Protocol", "TlsInfo"]


class TlsInfo(Interface):
    """What TLS says about a peer."""

    @property
    def version(self) -> str:
        """Such as ``TLSv1.3``."""
        ...

    @property
    def certificate_name(self) -> str | None:
        """The common name of the client's verified certificate; None when it showed none."""
        ...


class Endpoint(Interface):
    """One connection, as its protocol sees it."""

    @property
    def congested(self) -> bool:
        """More than `Limits.output_buffer_max_bytes` waits; `Protocol.writable` tells the end."""
        ...

    @property
    def peer(self) -> str:
        """The address of the other side: an IP address as text, or ``unix``."""
        ...

    @property
    def tls(self) -> TlsInfo | None:
        """None without TLS."""
        ...

    def write(self, data: bytes, /) -> None:
        """Send at the end of the tick; never blocks, never drops. Ignored after `close`."""
        ...

    def offer(self, data: bytes, count: int, /) -> None:
        """Like `write` for `count` transient messages, dropped and counted if congested."""
        ...

    def close(self, reason: str, *, linger: bool = False) -> None:
        """Send what waits and close; `reason` is for the log.

        With `linger` the peer is given time to read what was said although it may still be sending
        (a close with unread input would reset the connection and destroy the last packet).
        """
        ...

    def pause_reading(self) -> None:
        """Take no more from the peer until `resume_reading`."""
        ...

    def resume_reading(self) -> None:
        """Take input again."""
        ...


class CarrierEndpoint(Endpoint, Interface):
    """An endpoint on which one protocol can carry another, as WebSocket carries MQTT.

    What is written with `write` and `offer` goes through the envelope, so that a delivery to many
    receivers costs no more than it does without one: the envelope is made once per tick.
    """

    def envelop(self, wrap: Callable[[list[bytes]], bytes]) -> None:
        """From now on send, once per tick, what `wrap` makes of all that was written in it."""
        ...

    def write_bare(self, data: bytes, /) -> None:
        """Like `write`, in order with it, and without the envelope."""
        ...

    def hand_over(self, protocol: "Protocol") -> None:
        """From now on this protocol is told what happens here. Its `connected` is not called."""
        ...


class Protocol(Interface):
    """The sans-I/O side of a connection. `now` is in seconds of the reactor's monotonic clock."""

    def connected(self, endpoint: Endpoint, now: float) -> None:
        """The connection is there, TLS included."""
        ...

    def receive(self, data: bytes, now: float) -> None:
        """These bytes came."""
        ...

    def end_of_stream(self) -> None:
        """The peer sends no more."""
        ...

    def writable(self) -> None:
        """`Endpoint.congested` has ended."""
        ...

    def lost(self, reason: str) -> None:
        """The connection is gone. Called once, also after `Endpoint.close`."""
        ...


class Carrier(Interface):
    """A `Protocol` that needs more of its endpoint, for it carries others."""

    def connected(self, endpoint: CarrierEndpoint, now: float) -> None:
        """See `Protocol.connected`."""
        ...

    def receive(self, data: bytes, now: float) -> None:
        """See `Protocol.receive`."""
        ...

    def end_of_stream(self) -> None:
        """See `Protocol.end_of_stream`."""
        ...

    def writable(self) -> None:
        """See `Protocol.writable`."""
        ...

    def lost(self, reason: str) -> None:
        """See `Protocol.lost`."""
        ...
