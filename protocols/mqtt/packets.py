"""The MQTT control packets as plain values, the same for MQTT 3.1, 3.1.1 and 5.0.

What only MQTT 5.0 has (reason codes, properties, subscription options) has a default that means
what MQTT 3.x means without it. ``properties`` is ``None`` in MQTT 3.x and when a packet has none.
The classes hold what a packet says and check nothing: `ganglion.protocols.mqtt.codec` reads and
writes them.

Clause numbers are those of the OASIS MQTT Version 5.0 specification unless another is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from ganglion.protocols.mqtt.properties import Properties

__all__ = [
    "V5",
    "V31",
    "V311",
    "Auth",
    "Connack",
    "Connect",
    "Disconnect",
    "Packet",
    "PacketType",
    "Pingreq",
    "Pingresp",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "Suback",
    "Subscribe",
    "SubscriptionRequest",
    "Unsuback",
    "Unsubscribe",
    "Will",
]

V31: Final = 3
"""The protocol level of MQTT 3.1, whose protocol name is MQIsdp."""
V311: Final = 4
"""The protocol level of MQTT 3.1.1."""
V5: Final = 5
"""The protocol level of MQTT 5.0."""


class PacketType(IntEnum):
    """The upper four bits of a packet's first byte (clause 2.1.2). 0 is forbidden."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@dataclass(slots=True)
class Will:
    """The message that the server publishes when a connection ends badly (clause 3.1.2.5)."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None


@dataclass(slots=True)
class Connect:
    """A client asks for a connection (clause 3.1).

    ``clean_start`` is MQTT 3.x's clean session. ``keep_alive_s`` 0 switches keep alive off.
    ``username`` and ``password`` are ``None`` when the packet has none, which is not the same as
    empty.
    """

    version: int
    client_id: str
    clean_start: bool = True
    keep_alive_s: int = 0
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: Properties | None = None


@dataclass(slots=True)
class Connack:
    """The server's answer to `Connect` (clause 3.2).

    ``reason`` is a reason code in MQTT 5.0 and the connect return code (0 to 5) in MQTT 3.x. To
    write one for MQTT 3.x a reason code may be given too, and becomes the nearest return code.
    """

    session_present: bool
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Publish:
    """A message on its way, in either direction (clause 3.3).

    ``packet_id`` is 0 for QoS 0. ``topic`` is empty only beside a topic alias.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Puback:
    """The answer to a QoS 1 `Publish` (clause 3.4)."""

    packet_id: int
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Pubrec:
    """The first answer to a QoS 2 `Publish` (clause 3.5)."""

    packet_id: int
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Pubrel:
    """The answer to `Pubrec` (clause 3.6)."""

    packet_id: int
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Pubcomp:
    """The answer to `Pubrel`, which ends a QoS 2 delivery (clause 3.7)."""

    packet_id: int
    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class SubscriptionRequest:
    """One topic filter of a `Subscribe` with its options (clause 3.8.3.1).

    ``retain_handling``: 0 sends retained messages, 1 only for a new subscription, 2 never.
    """

    topic_filter: str
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


@dataclass(slots=True)
class Subscribe:
    """A client asks for subscriptions (clause 3.8)."""

    packet_id: int
    requests: list[SubscriptionRequest]
    properties: Properties | None = None


@dataclass(slots=True)
class Suback:
    """One reason code for each topic filter of a `Subscribe`, in its order (clause 3.9)."""

    packet_id: int
    reasons: list[int]
    properties: Properties | None = None


@dataclass(slots=True)
class Unsubscribe:
    """A client gives subscriptions up (clause 3.10)."""

    packet_id: int
    topic_filters: list[str]
    properties: Properties | None = None


@dataclass(slots=True)
class Unsuback:
    """One reason code for each filter of an `Unsubscribe` (clause 3.11); none in MQTT 3.x."""

    packet_id: int
    reasons: list[int]
    properties: Properties | None = None


@dataclass(slots=True)
class Pingreq:
    """A client says that it lives (clause 3.12)."""


@dataclass(slots=True)
class Pingresp:
    """The server's answer to `Pingreq` (clause 3.13)."""


@dataclass(slots=True)
class Disconnect:
    """The last packet of a connection (clause 3.14); in MQTT 3.x only a client sends it."""

    reason: int = 0
    properties: Properties | None = None


@dataclass(slots=True)
class Auth:
    """A step of enhanced authentication (clause 3.15); MQTT 5.0 only."""

    reason: int = 0
    properties: Properties | None = None


Packet: TypeAlias = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
