"""Every bound of a node, in one place, each with its reason.

A limit is a field of `Limits`: its name ends in its unit, its default is sane for a node that
faces the public, and its metadata say what happens at the limit and why it exists. The
configuration's ``[limits]`` table, ``ganglion limits`` and the documentation are made from here.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from ganglion import GanglionError

__all__ = ["InvalidLimit", "Limits", "describe_limits"]


class InvalidLimit(GanglionError):
    """A limit was set to a value that it cannot have; the message names the limit and the range."""


def _limit(default: int | float, least: int | float, most: int | float, why: str) -> Any:
    return field(default=default, metadata={"least": least, "most": most, "why": why})


_MIB = 1024 * 1024
_NO_END = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one node. Immutable: a reload replaces the whole object."""

    connections_max: int = _limit(
        100_000, 1, _NO_END, "each costs a descriptor and memory; more are closed when accepted"
    )
    connections_per_address_max: int = _limit(
        20_000, 1, _NO_END, "one peer cannot use up all connections; more are closed when accepted"
    )
    connect_timeout_s: float = _limit(
        10, 0.1, 3600, "a peer that does not finish TLS and CONNECT in time is closed"
    )
    packet_size_max_bytes: int = _limit(
        16 * _MIB, 1024, 268_435_460, "a larger packet is refused with 0x95 before it is read"
    )
    connect_size_max_bytes: int = _limit(
        64 * 1024, 256, 16 * _MIB, "what a peer may send before it is known, its will included"
    )
    topic_size_max_bytes: int = _limit(
        4096, 16, 65_535, "longer topic names and filters are refused with 0x90 or 0x8F"
    )
    topic_levels_max: int = _limit(
        128, 1, 32_768, "deeper topics cost router memory; refused with 0x90 or 0x8F"
    )
    subscriptions_per_client_max: int = _limit(
        100_000,
        1,
        _NO_END,
        "each costs memory, deep filters with wildcards more; more are refused with 0x97",
    )
    receive_max: int = _limit(
        1024, 1, 65_535, "QoS 1 and 2 messages a client may have unacknowledged; over it 0x93"
    )
    inflight_max: int = _limit(
        128, 1, 65_535, "unacknowledged messages on the way to one client; more wait in its session"
    )
    queued_messages_per_session_max: int = _limit(
        100_000, 1, _NO_END, "messages that wait for one client; more are dropped and counted"
    )
    queued_bytes_per_session_max: int = _limit(
        64 * _MIB,
        1024,
        _NO_END,
        "bytes of messages, properties included, that wait for one client; more are dropped",
    )
    retained_messages_max: int = _limit(
        1_000_000, 0, _NO_END, "a new retained topic over it is refused with 0x97"
    )
    retained_bytes_max: int = _limit(
        256 * _MIB,
        0,
        _NO_END,
        "bytes of retained messages and of their places among topics; over it 0x97",
    )
    receive_messages_per_s_max: int = _limit(
        0, 0, _NO_END, "a faster client is not read until its second is over; 0: no limit"
    )
    receive_bytes_per_s_max: int = _limit(
        0, 0, _NO_END, "a faster client is not read until its second is over; 0: no limit"
    )
    uncommitted_bytes_max: int = _limit(
        32 * _MIB,
        64 * 1024,
        _NO_END,
        "bytes of messages on their way to the disk; over it their publishers are not read",
    )
    requests_max: int = _limit(
        100_000, 1, _NO_END, "requests that wait for answers; more are refused (code limit)"
    )
    requests_per_client_max: int = _limit(
        4096, 1, _NO_END, "requests of one client that wait for answers; more are refused"
    )
    requests_per_responder_max: int = _limit(
        1024, 1, _NO_END, "unanswered requests at one responder; if all have so many: code busy"
    )
    services_per_client_max: int = _limit(
        1024, 1, _NO_END, "topic filters that one client answers requests for; more are refused"
    )
    gather_max: int = _limit(
        1024, 1, _NO_END, "responders that one gather asks; one for more is refused, none is asked"
    )
    repeatable_requests_bytes_max: int = _limit(
        64 * _MIB,
        1024,
        _NO_END,
        "bytes of requests kept for another responder should one leave; more are refused",
    )
    responses_per_request_max: int = _limit(
        8, 1, 65_535, "messages that one request lets a client answer that no rule allows to"
    )
    response_right_s: float = _limit(120, 0.001, 86_400, "how long after a request it may do so")
    request_timeout_s: float = _limit(
        30, 0.001, 86_400, "how long a request waits that does not say it itself"
    )
    request_timeout_max_s: float = _limit(
        3600, 0.001, 86_400, "a request that says it waits longer waits so long"
    )
    keep_alive_max_s: int = _limit(
        0, 0, 65_535, "MQTT 5 clients are told to keep alive at least this often; 0: no cap"
    )
    session_expiry_max_s: int = _limit(
        0xFFFF_FFFF, 0, 0xFFFF_FFFF, "longer expiry is lowered to it; 4294967295: never expires"
    )
    sessions_max: int = _limit(
        1_000_000, 1, _NO_END, "stored sessions; a client that needs a new one over it gets 0x97"
    )
    properties_per_packet_max: int = _limit(
        256, 1, 65_535, "each property costs an object; a packet with more is refused with 0x97"
    )
    topic_alias_max: int = _limit(
        256, 0, 65_535, "topic aliases each way per MQTT 5 connection; each keeps one topic"
    )
    output_buffer_max_bytes: int = _limit(
        4 * _MIB, 4096, _NO_END, "unsent bytes per connection: above, QoS 0 is dropped and counted"
    )
    stalled_timeout_s: float = _limit(
        60, 1, 86_400, "a peer that takes no byte for so long while output waits is closed"
    )
    http_header_max_bytes: int = _limit(
        16 * 1024, 1024, _MIB, "request line and headers of an HTTP request; over it 431"
    )
    http_headers_max: int = _limit(
        100, 8, 10_000, "headers of an HTTP request, each an object; over it 431"
    )
    http_body_max_bytes: int = _limit(
        _MIB, 0, _NO_END, "the body of an HTTP request is held in memory; over it 413"
    )
    http_idle_timeout_s: float = _limit(
        60, 0.1, 86_400, "an HTTP connection that asks for nothing for so long is closed"
    )
    websocket_message_max_bytes: int = _limit(
        32 * _MIB, 1024, _NO_END, "a longer WebSocket frame or text message is refused with 1009"
    )
    websocket_inflated_max_bytes: int = _limit(
        4 * _MIB,
        1024,
        _NO_END,
        "what a compressed WebSocket message, or one read, may inflate to; over it 1009",
    )
    websocket_ping_interval_s: float = _limit(
        30, 0.1, 86_400, "a WebSocket from which nothing came for so long is sent a ping"
    )
    websocket_ping_timeout_s: float = _limit(
        20, 0.1, 86_400, "a WebSocket that does not answer a ping in time is closed with 1008"
    )
    drain_timeout_s: float = _limit(
        5, 0, 3600, "how long a stopping node waits for its peers to take what is queued for them"
    )

    def __post_init__(self) -> None:
        """Check every value against its range (`InvalidLimit` names the first that is out)."""
        for each in fields(self):
            value = getattr(self, each.name)
            least, most = each.metadata["least"], each.metadata["most"]
            if not least <= value <= most:
                raise InvalidLimit(f"limit {each.name} is {value}; it must be {least} to {most}")


def describe_limits(limits: Limits) -> list[tuple[str, int | float, str]]:
    """Name, value and reason of every limit, in the order of declaration."""
    return [
        (each.name, getattr(limits, each.name), each.metadata["why"]) for each in fields(limits)
    ]
