"""Reason codes of MQTT 5.0, where each may stand, and the errors that carry them.

An error of the peer is a `MqttError`: its text says what is wrong with which field by which
clause, its `MqttError.reason` is the reason code to answer with. It is `MalformedPacket` when the
bytes cannot be what the specification describes and `ProtocolViolation` when they can, but may
not be said (clause 1.2 tells the two apart). An error of the caller is `Unencodable`.

Clause numbers are those of the OASIS MQTT Version 5.0 specification unless another is named.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from ganglion import GanglionError
from ganglion.protocols.mqtt.packets import PacketType

__all__ = [
    "ALLOWED_REASONS",
    "MalformedPacket",
    "MqttError",
    "ProtocolViolation",
    "Reason",
    "Unencodable",
    "UnsupportedVersion",
    "connack_return_code",
    "receive_maximum_exceeded",
]


class Reason(IntEnum):
    """Every reason code (clause 2.4). From 0x80 on it is a failure."""

    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    GRANTED_QOS_0 = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL_MESSAGE = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


_PUBLISH_ANSWERS = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})
_RELEASE_ANSWERS = frozenset({0x00, 0x92})

ALLOWED_REASONS: Final[Mapping[PacketType, frozenset[int]]] = MappingProxyType(
    {
        PacketType.CONNACK: frozenset(
            {0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F}
        ),
        PacketType.PUBACK: _PUBLISH_ANSWERS,
        PacketType.PUBREC: _PUBLISH_ANSWERS,
        PacketType.PUBREL: _RELEASE_ANSWERS,
        PacketType.PUBCOMP: _RELEASE_ANSWERS,
        PacketType.SUBACK: frozenset(
            {0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2}
        ),
        PacketType.UNSUBACK: frozenset({0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91}),
        PacketType.DISCONNECT: frozenset(
            {0x00, 0x04, *range(0x80, 0x84), 0x87, 0x89, *range(0x8B, 0x91), *range(0x93, 0xA3)}
        ),
        PacketType.AUTH: frozenset({0x00, 0x18, 0x19}),
    }
)
"""Which reason codes may stand in which packet of MQTT 5.0, whoever sends it (clause 2.4)."""


_RETURN_CODES: Final[Mapping[int, int]] = MappingProxyType(
    {
        Reason.SUCCESS: 0,
        Reason.UNSUPPORTED_PROTOCOL_VERSION: 1,
        Reason.CLIENT_IDENTIFIER_NOT_VALID: 2,
        Reason.BAD_USER_NAME_OR_PASSWORD: 4,
        Reason.BAD_AUTHENTICATION_METHOD: 4,
        Reason.NOT_AUTHORIZED: 5,
        Reason.BANNED: 5,
    }
)


def connack_return_code(reason: Reason) -> int:
    """The connect return code of MQTT 3.x (3.1.1 clause 3.2.2.3) nearest to a reason code.

    What MQTT 3.x has no words for becomes 3, server unavailable.
    """
    return _RETURN_CODES.get(reason, 3)


class MqttError(GanglionError):
    """The peer broke the protocol or a limit. ``reason`` is the reason code to answer with."""

    def __init__(self, text: str, reason: Reason) -> None:
        super().__init__(text)
        self.reason = reason


class MalformedPacket(MqttError):
    """The bytes are not a packet as the specification describes it: reason 0x81."""

    def __init__(self, text: str) -> None:
        super().__init__(text, Reason.MALFORMED_PACKET)


class ProtocolViolation(MqttError):
    """The packet can be read, but the protocol does not allow it: reason 0x82 or a closer one."""

    def __init__(self, text: str, reason: Reason = Reason.PROTOCOL_ERROR) -> None:
        super().__init__(text, reason)


def receive_maximum_exceeded(maximum: int) -> ProtocolViolation:
    """The error of a peer with more than `maximum` unacknowledged messages (MQTT-3.3.4-9)."""
    text = f"more than Receive Maximum = {maximum} messages are unacknowledged (MQTT-3.3.4-9)"
    return ProtocolViolation(text, Reason.RECEIVE_MAXIMUM_EXCEEDED)


class UnsupportedVersion(ProtocolViolation):
    """A CONNECT of another protocol or version: reason 0x84.

    ``level`` is the protocol level that was asked for, or ``None`` when the protocol name is none
    of MQTT's: then the peer may not speak MQTT at all (clauses 3.1.2.1 and 3.1.2.2).
    """

    def __init__(self, text: str, level: int | None) -> None:
        super().__init__(text, Reason.UNSUPPORTED_PROTOCOL_VERSION)
        self.level = level


class Unencodable(GanglionError):
    """The caller asked for a packet that MQTT cannot carry; the text names the field."""
