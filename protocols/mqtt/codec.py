"""Reads and writes MQTT 3.1, 3.1.1 and 5.0 control packets: bytes to values and values to bytes.

Reading takes two steps, so that a connection can refuse a packet by its size and its place before
it has all of it: `read_header` finds out where a packet ends, `decode` makes a value of it. Both
look into the connection's own buffer; nothing is copied but what the packet keeps.

`decode` serves both ends of a connection, so it accepts packets that only a server sends, and a
server checks the packet type first. It checks all that can be seen in one packet alone: reserved
bits, lengths to the byte, UTF-8, packet identifiers, reason codes, properties. It does not check
what topic names and filters mean, nor what came before.

MQTT 3.1 leaves bits undefined that 3.1.1 reserves; there they are ignored, as 3.1 clients may set
them. Clause numbers are those of the OASIS MQTT Version 5.0 specification unless another is named.
"""

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from ganglion.protocols.mqtt.properties import (
    WILL,
    Properties,
    decode_properties,
    encode_binary,
    encode_length,
    encode_properties,
    encode_string,
    read_binary,
    read_string,
)
from ganglion.protocols.mqtt.reasons import (
    ALLOWED_REASONS,
    MalformedPacket,
    ProtocolViolation,
    Reason,
    Unencodable,
    UnsupportedVersion,
    connack_return_code,
)

__all__ = ["decode", "encode", "encode_length", "read_header"]


def read_header(data: bytes, pos: int, version: int = V311) -> tuple[int, int, int] | None:
    """The first byte of the packet at ``pos``, and where its body starts and ends (clause 2.1).

    ``None`` while the remaining length is not complete; the body may still be incomplete when it
    is. Raises `MalformedPacket` when the remaining length goes on after four bytes, and for MQTT
    5.0 when it takes more bytes than it needs (MQTT-1.5.5-1), which MQTT 3.x does not forbid.
    """
    size = len(data)
    if size < pos + 2:
        return None
    byte = data[pos + 1]
    if byte < 0x80:
        start = pos + 2
        return data[pos], start, start + byte
    length = byte & 0x7F
    at = pos + 2
    for shift in (7, 14, 21):
        if at >= size:
            return None
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and version >= V5:
                raise MalformedPacket(
                    "remaining length takes more bytes than needed (MQTT-1.5.5-1)"
                )
            return data[pos], at, at + length
    raise MalformedPacket("remaining length is longer than four bytes (2.1.4)")


def decode(
    first: int,
    data: bytes,
    start: int,
    end: int,
    version: int,
    properties_max: int = 256,
    filters_max: int = 100_000,
) -> Packet:
    """The packet whose first byte is ``first`` and whose whole body is ``data[start:end]``.

    ``version`` is that of the connection; a CONNECT has its own. Raises `MqttError` (clauses in the
    texts): `MalformedPacket`, `ProtocolViolation`, and `UnsupportedVersion` from a CONNECT. More
    than ``properties_max`` properties in a section, or ``filters_max`` topic filters or reason
    codes in a packet, are refused with 0x97: each costs many times the memory that its bytes do.
    """
    kind = first >> 4
    if kind == _PUBLISH:
        return _decode_publish(first, data, start, end, version, properties_max)
    if kind == _PUBACK:
        return _decode_answer(
            PacketType.PUBACK, Puback, first, data, start, end, version, properties_max
        )
    if kind == _PUBREC:
        return _decode_answer(
            PacketType.PUBREC, Pubrec, first, data, start, end, version, properties_max
        )
    if kind == _PUBREL:
        return _decode_answer(
            PacketType.PUBREL, Pubrel, first, data, start, end, version, properties_max
        )
    if kind == _PUBCOMP:
        return _decode_answer(
            PacketType.PUBCOMP, Pubcomp, first, data, start, end, version, properties_max
        )
    if kind == _PINGREQ:
        _check_empty(first, start, end, version, "PINGREQ")
        return Pingreq()
    if kind == _PINGRESP:
        _check_empty(first, start, end, version, "PINGRESP")
        return Pingresp()
    if kind == _CONNECT:
        return _decode_connect(first, data, start, end, properties_max)
    if kind == _CONNACK:
        return _decode_connack(first, data, start, end, version, properties_max)
    if kind == _SUBSCRIBE:
        return _decode_subscribe(first, data, start, end, version, properties_max, filters_max)
    if kind == _SUBACK:
        return _decode_suback(first, data, start, end, version, properties_max, filters_max)
    if kind == _UNSUBSCRIBE:
        return _decode_unsubscribe(first, data, start, end, version, properties_max, filters_max)
    if kind == _UNSUBACK:
        return _decode_unsuback(first, data, start, end, version, properties_max, filters_max)
    if kind == _DISCONNECT:
        if version != V5:
            _check_empty(first, start, end, version, "DISCONNECT")
            return Disconnect()
        _check_flags(first, "DISCONNECT")
        return Disconnect(*_read_reason(data, start, end, PacketType.DISCONNECT, properties_max))
    if kind == _AUTH:
        if version != V5:
            raise ProtocolViolation("packet type 15 is forbidden before MQTT 5.0 (3.1.1: 2.2.1)")
        _check_flags(first, "AUTH")
        return Auth(*_read_reason(data, start, end, PacketType.AUTH, properties_max))
    raise ProtocolViolation(f"packet type {kind} is forbidden (2.1.2)")


def encode(packet: Packet, version: int) -> bytes:
    """The whole packet as bytes for a connection of this version; a `Connect` has its own.

    What MQTT 3.x does not have, properties above all, is left out there. Raises `Unencodable` when
    a field does not fit, or the packet does not exist in this version.
    """
    match packet:
        case Publish():
            return _encode_publish(packet, version)
        case Puback():
            return _encode_answer(0x40, packet, PacketType.PUBACK, version)
        case Pubrec():
            return _encode_answer(0x50, packet, PacketType.PUBREC, version)
        case Pubrel():
            return _encode_answer(0x62, packet, PacketType.PUBREL, version)
        case Pubcomp():
            return _encode_answer(0x70, packet, PacketType.PUBCOMP, version)
        case Pingreq():
            return b"\xc0\0"
        case Pingresp():
            return b"\xd0\0"
        case Connect():
            return _encode_connect(packet)
        case Connack():
            return _encode_connack(packet, version)
        case Subscribe():
            return _encode_subscribe(packet, version)
        case Suback():
            return _encode_suback(packet, version)
        case Unsubscribe():
            return _encode_unsubscribe(packet, version)
        case Unsuback():
            return _encode_unsuback(packet, version)
        case Disconnect():
            if version != V5 or (not packet.reason and packet.properties is None):
                return b"\xe0\0"
            return _with_header(0xE0, _reason_section(packet, PacketType.DISCONNECT))
        case Auth():
            if version != V5:
                raise Unencodable("there is no AUTH before MQTT 5.0 (3.1.1: 2.2.1)")
            if not packet.reason and packet.properties is None:
                return b"\xf0\0"
            reason = _ONE_BYTE[_checked_reason(packet.reason, PacketType.AUTH)]
            return _with_header(0xF0, reason + encode_properties(packet.properties))


_Answer: TypeAlias = Puback | Pubrec | Pubrel | Pubcomp


# Plain integers: comparing with the members themselves takes 0.13 us longer, each.
_CONNECT: Final = PacketType.CONNECT.value
_CONNACK: Final = PacketType.CONNACK.value
_PUBLISH: Final = PacketType.PUBLISH.value
_PUBACK: Final = PacketType.PUBACK.value
_PUBREC: Final = PacketType.PUBREC.value
_PUBREL: Final = PacketType.PUBREL.value
_PUBCOMP: Final = PacketType.PUBCOMP.value
_SUBSCRIBE: Final = PacketType.SUBSCRIBE.value
_SUBACK: Final = PacketType.SUBACK.value
_UNSUBSCRIBE: Final = PacketType.UNSUBSCRIBE.value
_UNSUBACK: Final = PacketType.UNSUBACK.value
_PINGREQ: Final = PacketType.PINGREQ.value
_PINGRESP: Final = PacketType.PINGRESP.value
_DISCONNECT: Final = PacketType.DISCONNECT.value
_AUTH: Final = PacketType.AUTH.value

# Reading. Each function below reads the body of one packet type.


def _decode_connect(first: int, data: bytes, start: int, end: int, properties_max: int) -> Connect:
    version, pos = _read_version(data, start, end)
    if first & 0x0F and version != V31:
        raise MalformedPacket("CONNECT has reserved flags set (MQTT-2.1.3-1)")
    if pos + 3 > end:
        raise MalformedPacket("CONNECT ends before its keep alive (3.1.2)")
    flags = data[pos]
    keep_alive_s = data[pos + 1] << 8 | data[pos + 2]
    pos += 3
    _check_connect_flags(flags, version)
    properties: Properties | None = None
    if version == V5:
        properties, pos = decode_properties(data, pos, end, PacketType.CONNECT, properties_max)
    client_id, pos = _read_plain_string(data, pos, end, "client identifier")
    will: Will | None = None
    if flags & 0x04:
        if flags & 0x18 == 0x18:
            raise MalformedPacket("will QoS is 3 (MQTT-3.1.2-12)")
        will_properties: Properties | None = None
        if version == V5:
            will_properties, pos = decode_properties(data, pos, end, WILL, properties_max)
        topic, pos = _read_plain_string(data, pos, end, "will topic")
        if not topic:
            raise MalformedPacket("will topic is empty (MQTT-4.7.3-1)")
        payload, pos = read_binary(data, pos, end, "will payload")
        will = Will(topic, payload, flags >> 3 & 3, bool(flags & 0x20), will_properties)
    # In MQTT 3.1 the remaining length has precedence over these two flags (3.1 clause 3.1).
    username: str | None = None
    if flags & 0x80 and not (version == V31 and pos == end):
        username, pos = _read_plain_string(data, pos, end, "user name")
    password: bytes | None = None
    if flags & 0x40 and not (version == V31 and pos == end):
        password, pos = read_binary(data, pos, end, "password")
    if pos != end:
        raise MalformedPacket("CONNECT is longer than its fields (2.1.4)")
    return Connect(
        version,
        client_id,
        bool(flags & 0x02),
        keep_alive_s,
        username,
        password,
        will,
        properties,
    )


def _read_version(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """The version that a CONNECT asks for, and the position after it (clauses 3.1.2.1, 3.1.2.2)."""
    name, pos = read_binary(data, pos, end, "protocol name")
    if pos >= end:
        raise MalformedPacket("CONNECT ends before its protocol level (3.1.2.2)")
    level = data[pos]
    if name == b"MQTT":
        if level in (V311, V5):
            return level, pos + 1
    elif name == b"MQIsdp":
        if level == V31:
            return level, pos + 1
    else:
        raise UnsupportedVersion(f"protocol name {name[:16]!r} is not MQTT (MQTT-3.1.2-1)", None)
    raise UnsupportedVersion(f"{name.decode()} has no protocol level {level} (MQTT-3.1.2-2)", level)


def _check_connect_flags(flags: int, version: int) -> None:
    if version != V5 and flags & 0xC0 == 0x40:
        raise MalformedPacket("password without user name (3.1.1: MQTT-3.1.2-22)")
    if version == V31:
        return
    if flags & 0x01:
        raise MalformedPacket("CONNECT has its reserved connect flag set (MQTT-3.1.2-3)")
    if not flags & 0x04 and flags & 0x38:
        raise MalformedPacket("will QoS or will retain without will flag (MQTT-3.1.2-11, -13)")


def _decode_connack(
    first: int, data: bytes, start: int, end: int, version: int, properties_max: int
) -> Connack:
    if version != V31:
        _check_flags(first, "CONNACK")
    if end - start < 2:
        raise MalformedPacket("CONNACK is shorter than 2 bytes (3.2.2)")
    flags, reason = data[start], data[start + 1]
    pos = start + 2
    if version == V31:
        flags = 0
    elif flags & 0xFE:
        raise MalformedPacket("CONNACK has reserved acknowledge flags set (3.2.2.1)")
    properties: Properties | None = None
    if version != V5:
        if reason > 5:
            raise ProtocolViolation(f"CONNACK return code {reason} is reserved (3.1.1: 3.2.2.3)")
    elif pos == end and reason == 1:
        # A server that knows only MQTT 3.x refuses MQTT 5.0 in its own form.
        reason = Reason.UNSUPPORTED_PROTOCOL_VERSION.value
    else:
        _check_reason(reason, PacketType.CONNACK)
        properties, pos = decode_properties(data, pos, end, PacketType.CONNACK, properties_max)
    if pos != end:
        raise MalformedPacket("CONNACK is longer than its fields (2.1.4)")
    if flags and reason:
        raise ProtocolViolation("CONNACK refuses with session present (MQTT-3.2.2-6)")
    return Connack(bool(flags), reason, properties)


def _decode_publish(
    first: int, data: bytes, start: int, end: int, version: int, properties_max: int
) -> Publish:
    qos = first >> 1 & 3
    if qos == 3:
        raise MalformedPacket("PUBLISH has QoS 3 (MQTT-3.3.1-4)")
    if first & 0x08 and not qos and version != V31:
        raise MalformedPacket("PUBLISH has DUP with QoS 0 (MQTT-3.3.1-2)")
    topic, pos = _read_plain_string(data, start, end, "topic name")
    packet_id = 0
    if qos:
        packet_id, pos = _read_packet_id(data, pos, end, "PUBLISH")
    properties: Properties | None = None
    if version == V5:
        properties, pos = decode_properties(data, pos, end, PacketType.PUBLISH, properties_max)
    if not topic and (properties is None or properties.topic_alias is None):
        raise MalformedPacket("topic name is empty, without a topic alias (3.3.2.1)")
    dup = qos > 0 and bool(first & 0x08)
    return Publish(topic, data[pos:end], qos, bool(first & 1), dup, packet_id, properties)


def _decode_answer(
    packet_type: PacketType,
    make: Callable[[int, int, Properties | None], _Answer],
    first: int,
    data: bytes,
    start: int,
    end: int,
    version: int,
    properties_max: int,
) -> _Answer:
    """PUBACK, PUBREC, PUBREL and PUBCOMP, which all look alike (clauses 3.4 to 3.7)."""
    name = packet_type.name
    _check_answer_flags(first, 0x02 if packet_type is PacketType.PUBREL else 0, name, version)
    packet_id, pos = _read_packet_id(data, start, end, name)
    if pos == end:
        return make(packet_id, 0, None)
    if version != V5:
        raise MalformedPacket(f"{name} is longer than 2 bytes (3.1.1: 2.2.3)")
    return make(packet_id, *_read_reason(data, pos, end, packet_type, properties_max))


def _decode_subscribe(
    first: int,
    data: bytes,
    start: int,
    end: int,
    version: int,
    properties_max: int,
    filters_max: int,
) -> Subscribe:
    _check_answer_flags(first, 0x02, "SUBSCRIBE", version)
    packet_id, pos = _read_packet_id(data, start, end, "SUBSCRIBE")
    properties: Properties | None = None
    reserved = 0xFC
    if version == V5:
        properties, pos = decode_properties(data, pos, end, PacketType.SUBSCRIBE, properties_max)
        reserved = 0xC0
    requests: list[SubscriptionRequest] = []
    while pos < end:
        if len(requests) >= filters_max:
            raise _too_many("SUBSCRIBE", "topic filters", filters_max)
        topic_filter, pos = _read_filter(data, pos, end)
        if pos >= end:
            raise MalformedPacket("SUBSCRIBE ends before the options of its last filter (3.8.3)")
        options = data[pos]
        pos += 1
        if version == V31:
            options &= 0x03
        if options & reserved:
            raise MalformedPacket("subscription options have reserved bits set (MQTT-3.8.3-5)")
        if options & 0x03 == 0x03:
            raise MalformedPacket("subscription options have QoS 3 (3.8.3.1)")
        if options & 0x30 == 0x30:
            raise MalformedPacket("subscription options have retain handling 3 (3.8.3.1)")
        requests.append(
            SubscriptionRequest(
                topic_filter,
                options & 3,
                bool(options & 0x04),
                bool(options & 0x08),
                options >> 4,
            )
        )
    if not requests:
        raise MalformedPacket("SUBSCRIBE has no topic filter (MQTT-3.8.3-2)")
    return Subscribe(packet_id, requests, properties)


def _decode_unsubscribe(
    first: int,
    data: bytes,
    start: int,
    end: int,
    version: int,
    properties_max: int,
    filters_max: int,
) -> Unsubscribe:
    _check_answer_flags(first, 0x02, "UNSUBSCRIBE", version)
    packet_id, pos = _read_packet_id(data, start, end, "UNSUBSCRIBE")
    properties: Properties | None = None
    if version == V5:
        properties, pos = decode_properties(data, pos, end, PacketType.UNSUBSCRIBE, properties_max)
    topic_filters: list[str] = []
    while pos < end:
        if len(topic_filters) >= filters_max:
            raise _too_many("UNSUBSCRIBE", "topic filters", filters_max)
        topic_filter, pos = _read_filter(data, pos, end)
        topic_filters.append(topic_filter)
    if not topic_filters:
        raise MalformedPacket("UNSUBSCRIBE has no topic filter (MQTT-3.10.3-2)")
    return Unsubscribe(packet_id, topic_filters, properties)


def _decode_suback(
    first: int,
    data: bytes,
    start: int,
    end: int,
    version: int,
    properties_max: int,
    filters_max: int,
) -> Suback:
    if version != V31:
        _check_flags(first, "SUBACK")
    packet_id, pos = _read_packet_id(data, start, end, "SUBACK")
    properties: Properties | None = None
    if version == V5:
        properties, pos = decode_properties(data, pos, end, PacketType.SUBACK, properties_max)
    reasons = data[pos:end]
    if not reasons:
        raise MalformedPacket("SUBACK has no reason code (3.9.3)")
    if len(reasons) > filters_max:
        raise _too_many("SUBACK", "reason codes", filters_max)
    allowed = ALLOWED_REASONS[PacketType.SUBACK] if version == V5 else _SUBACK_RETURN_CODES
    if not allowed.issuperset(reasons):
        raise ProtocolViolation("SUBACK has a code that does not exist there (3.9.3)")
    return Suback(packet_id, list(reasons), properties)


def _decode_unsuback(
    first: int,
    data: bytes,
    start: int,
    end: int,
    version: int,
    properties_max: int,
    filters_max: int,
) -> Unsuback:
    if version != V31:
        _check_flags(first, "UNSUBACK")
    packet_id, pos = _read_packet_id(data, start, end, "UNSUBACK")
    if version != V5:
        if pos != end:
            raise MalformedPacket("UNSUBACK is longer than 2 bytes (3.1.1: 3.11)")
        return Unsuback(packet_id, [], None)
    properties, pos = decode_properties(data, pos, end, PacketType.UNSUBACK, properties_max)
    reasons = data[pos:end]
    if not reasons:
        raise MalformedPacket("UNSUBACK has no reason code (3.11.3)")
    if len(reasons) > filters_max:
        raise _too_many("UNSUBACK", "reason codes", filters_max)
    if not ALLOWED_REASONS[PacketType.UNSUBACK].issuperset(reasons):
        raise ProtocolViolation("UNSUBACK has a code that does not exist there (3.11.3)")
    return Unsuback(packet_id, list(reasons), properties)


def _read_reason(
    data: bytes, pos: int, end: int, packet_type: PacketType, properties_max: int
) -> tuple[int, Properties | None]:
    """The end of a packet: a reason code and properties, either of which may be left out."""
    if pos == end:
        return 0, None
    reason = data[pos]
    _check_reason(reason, packet_type)
    pos += 1
    if pos == end:
        return reason, None
    properties, pos = decode_properties(data, pos, end, packet_type, properties_max)
    if pos != end:
        raise MalformedPacket(f"{packet_type.name} is longer than its fields (2.1.4)")
    return reason, properties


_SUBACK_RETURN_CODES: Final = frozenset({0x00, 0x01, 0x02, 0x80})

# Clause 1.5.4 lets a receiver refuse these. They are refused in what names a client, a user or a
# topic, as they serve there only to deceive whoever reads a log; texts may have them.
_find_control_character: Final = re.compile("[\x01-\x1f\x7f-\x9f]").search


def _read_plain_string(data: bytes, pos: int, end: int, field: str) -> tuple[str, int]:
    """A string without control characters, and the position after it."""
    text, pos = read_string(data, pos, end, field)
    # All control characters are unprintable, and asking that first saves 0.1 us.
    if not text.isprintable() and _find_control_character(text):
        raise MalformedPacket(f"{field} has a control character (1.5.4)")
    return text, pos


def _read_filter(data: bytes, pos: int, end: int) -> tuple[str, int]:
    topic_filter, pos = _read_plain_string(data, pos, end, "topic filter")
    if not topic_filter:
        raise MalformedPacket("topic filter is empty (MQTT-4.7.3-1)")
    return topic_filter, pos


def _read_packet_id(data: bytes, pos: int, end: int, name: str) -> tuple[int, int]:
    if pos + 2 > end:
        raise MalformedPacket(f"{name} ends before its packet identifier (2.2.1)")
    packet_id = data[pos] << 8 | data[pos + 1]
    if not packet_id:
        raise ProtocolViolation(f"{name} has packet identifier 0 (MQTT-2.2.1-3)")
    return packet_id, pos + 2


def _check_flags(first: int, name: str) -> None:
    if first & 0x0F:
        raise MalformedPacket(f"{name} has reserved flags set (MQTT-2.1.3-1)")


def _check_answer_flags(first: int, expected: int, name: str, version: int) -> None:
    """Flags of a packet with a packet identifier: MQTT 3.1 has a DUP flag there, and unused bits.

    What MQTT 3.1 does define is QoS 1 in PUBREL, SUBSCRIBE and UNSUBSCRIBE.
    """
    flags = first & 0x0F
    if flags != expected and not (version == V31 and flags & expected == expected):
        raise MalformedPacket(f"{name} has flags {flags}, not {expected} (MQTT-2.1.3-1)")


def _check_empty(first: int, start: int, end: int, version: int, name: str) -> None:
    if version != V31:
        _check_flags(first, name)
    if start != end:
        raise MalformedPacket(f"{name} has a body (2.1.4)")


def _check_reason(reason: int, packet_type: PacketType) -> None:
    if reason not in ALLOWED_REASONS[packet_type]:
        raise ProtocolViolation(
            f"reason code 0x{reason:02X} does not exist in {packet_type.name} (2.4)"
        )


def _too_many(name: str, what: str, most: int) -> ProtocolViolation:
    return ProtocolViolation(
        f"{name} has more than {most} {what}, the limit of this node", Reason.QUOTA_EXCEEDED
    )


# Writing. Each function below writes one packet type, header included.


def _encode_connect(packet: Connect) -> bytes:
    version = packet.version
    if version not in (V31, V311, V5):
        raise Unencodable(f"there is no MQTT with protocol level {version} (3.1.2.2)")
    if not 0 <= packet.keep_alive_s <= 0xFFFF:
        raise Unencodable(f"keep alive is {packet.keep_alive_s} s, not 0 to 65,535 (3.1.2.10)")
    if version != V5 and packet.password is not None and packet.username is None:
        raise Unencodable("password without user name (3.1.1: MQTT-3.1.2-22)")
    flags = 0x02 if packet.clean_start else 0
    parts = [encode_string(packet.client_id, "client identifier")]
    if (will := packet.will) is not None:
        flags |= 0x04 | _checked_qos(will.qos) << 3 | (0x20 if will.retain else 0)
        if version == V5:
            parts.append(encode_properties(will.properties))
        parts.append(encode_string(will.topic, "will topic"))
        parts.append(encode_binary(will.payload, "will payload"))
    if packet.username is not None:
        flags |= 0x80
        parts.append(encode_string(packet.username, "user name"))
    if packet.password is not None:
        flags |= 0x40
        parts.append(encode_binary(packet.password, "password"))
    name = b"\0\6MQIsdp" if version == V31 else b"\0\4MQTT"
    keep_alive = packet.keep_alive_s.to_bytes(2, "big")
    properties = encode_properties(packet.properties) if version == V5 else b""
    return _with_header(
        0x10, name + bytes((version, flags)) + keep_alive + properties + b"".join(parts)
    )


def _encode_connack(packet: Connack, version: int) -> bytes:
    session_present, reason = packet.session_present, packet.reason
    if version == V5:
        body = bytes((session_present, _checked_reason(reason, PacketType.CONNACK)))
        return _with_header(0x20, body + encode_properties(packet.properties))
    if reason > 5:
        reason = connack_return_code(Reason(reason))
    # MQTT 3.1 knows no session present flag.
    return bytes((0x20, 2, session_present and version != V31, reason))


def _encode_publish(packet: Publish, version: int) -> bytes:
    qos = _checked_qos(packet.qos)
    first = 0x30 | qos << 1 | packet.retain
    head = encode_string(packet.topic, "topic name")
    if qos:
        first |= packet.dup << 3
        head += _packet_id(packet.packet_id)
    if version == V5:
        head += encode_properties(packet.properties)
    payload = packet.payload
    return b"".join((_ONE_BYTE[first], encode_length(len(head) + len(payload)), head, payload))


def _encode_answer(first: int, packet: _Answer, packet_type: PacketType, version: int) -> bytes:
    packet_id = _packet_id(packet.packet_id)
    if version != V5 or (not packet.reason and packet.properties is None):
        return _ONE_BYTE[first] + b"\2" + packet_id
    return _with_header(first, packet_id + _reason_section(packet, packet_type))


def _encode_subscribe(packet: Subscribe, version: int) -> bytes:
    parts = [_packet_id(packet.packet_id)]
    if version == V5:
        parts.append(encode_properties(packet.properties))
    if not packet.requests:
        raise Unencodable("SUBSCRIBE needs a topic filter (MQTT-3.8.3-2)")
    for request in packet.requests:
        options = _checked_qos(request.qos)
        if version == V5:
            if not 0 <= request.retain_handling <= 2:
                raise Unencodable(f"retain handling is {request.retain_handling} (3.8.3.1)")
            options |= request.no_local << 2 | request.retain_as_published << 3
            options |= request.retain_handling << 4
        parts.append(encode_string(request.topic_filter, "topic filter"))
        parts.append(_ONE_BYTE[options])
    return _with_header(0x82, b"".join(parts))


def _encode_suback(packet: Suback, version: int) -> bytes:
    if version == V5:
        allowed = ALLOWED_REASONS[PacketType.SUBACK]
        reasons, properties = packet.reasons, encode_properties(packet.properties)
    else:
        allowed = _SUBACK_RETURN_CODES
        reasons, properties = [min(each, 0x80) for each in packet.reasons], b""
    if not reasons or not allowed.issuperset(reasons):
        raise Unencodable(f"SUBACK cannot have the reason codes {reasons} (3.9.3)")
    return _with_header(0x90, _packet_id(packet.packet_id) + properties + bytes(reasons))


def _encode_unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    parts = [_packet_id(packet.packet_id)]
    if version == V5:
        parts.append(encode_properties(packet.properties))
    if not packet.topic_filters:
        raise Unencodable("UNSUBSCRIBE needs a topic filter (MQTT-3.10.3-2)")
    parts += (encode_string(each, "topic filter") for each in packet.topic_filters)
    return _with_header(0xA2, b"".join(parts))


def _encode_unsuback(packet: Unsuback, version: int) -> bytes:
    packet_id = _packet_id(packet.packet_id)
    if version != V5:
        return b"\xb0\2" + packet_id
    reasons = packet.reasons
    if not reasons or not ALLOWED_REASONS[PacketType.UNSUBACK].issuperset(reasons):
        raise Unencodable(f"UNSUBACK cannot have the reason codes {reasons} (3.11.3)")
    return _with_header(0xB0, packet_id + encode_properties(packet.properties) + bytes(reasons))


_ONE_BYTE: Final = tuple(bytes((each,)) for each in range(256))


def _with_header(first: int, body: bytes) -> bytes:
    return _ONE_BYTE[first] + encode_length(len(body)) + body


def _packet_id(packet_id: int) -> bytes:
    if not 1 <= packet_id <= 0xFFFF:
        raise Unencodable(f"packet identifier is {packet_id}, not 1 to 65,535 (2.2.1)")
    return packet_id.to_bytes(2, "big")


def _checked_qos(qos: int) -> int:
    if not 0 <= qos <= 2:
        raise Unencodable(f"QoS is {qos}, not 0 to 2 (4.3)")
    return qos


def _checked_reason(reason: int, packet_type: PacketType) -> int:
    if reason not in ALLOWED_REASONS[packet_type]:
        raise Unencodable(f"reason code 0x{reason:02X} does not exist in {packet_type.name} (2.4)")
    return reason


def _reason_section(packet: _Answer | Disconnect, packet_type: PacketType) -> bytes:
    """A reason code, and the properties if there are any: their length may be left out."""
    reason = _ONE_BYTE[_checked_reason(packet.reason, packet_type)]
    return reason if packet.properties is None else reason + encode_properties(packet.properties)
