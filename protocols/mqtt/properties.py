"""The properties of MQTT 5.0 (clause 2.2.2), and the wire types that they and packets are made of.

One table says all about each property: its identifier, its attribute of `Properties`, its wire
type, the packets it may stand in, whether it may stand there twice, and its range. Reading,
writing, comparing and printing are driven by it.

Errors of form come before errors of meaning: a property section is read to its end, and only if
all of it can be read is the first property reported that the protocol does not allow. So the
reason code for broken bytes is always 0x81.

Clause numbers are those of the OASIS MQTT Version 5.0 specification.
"""

from dataclasses import dataclass, fields
from enum import Enum, auto
from typing import Any, Final

from ganglion.protocols.mqtt.packets import PacketType
from ganglion.protocols.mqtt.reasons import (
    MalformedPacket,
    ProtocolViolation,
    Reason,
    Unencodable,
)

__all__ = [
    "PROPERTY_TABLE",
    "WILL",
    "Properties",
    "PropertySpecification",
    "WireType",
    "decode_properties",
    "encode_binary",
    "encode_length",
    "encode_properties",
    "encode_string",
    "read_binary",
    "read_length",
    "read_string",
]

LENGTH_MAX: Final = 268_435_455
"""The largest Variable Byte Integer (clause 1.5.5), and so the largest remaining length."""

WILL: Final = 0
"""Stands for the will properties of a CONNECT where a `PacketType` is asked for: 0 is no packet."""


@dataclass(slots=True, kw_only=True, repr=False)
class Properties:
    """The properties of one packet. What the packet does not have is ``None`` or empty.

    Intervals are in seconds, sizes in bytes. The boolean properties are 0 or 1 as on the wire.
    """

    payload_format_indicator: int | None = None
    message_expiry_interval: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry_interval: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay_interval: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: int | None = None
    subscription_identifier_available: int | None = None
    shared_subscription_available: int | None = None

    def __repr__(self) -> str:
        """Only what is set, in the order of the identifiers."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        shown = (f"{name}={value!r}" for name, value in values if value is not None and value != ())
        return f"Properties({', '.join(shown)})"


class WireType(Enum):
    """How a property's value is written (clause 1.5)."""

    BYTE = auto()
    TWO_BYTE_INTEGER = auto()
    FOUR_BYTE_INTEGER = auto()
    VARIABLE_BYTE_INTEGER = auto()
    STRING = auto()
    STRING_PAIR = auto()
    BINARY = auto()


@dataclass(frozen=True, slots=True)
class PropertySpecification:
    """One row of the table of properties (clause 2.2.2.2)."""

    identifier: int
    attribute: str
    wire_type: WireType
    width: int
    """The bytes that the value takes, 0 when that varies."""
    packets: frozenset[int]
    """The packet types, and `WILL`, that it may stand in."""
    repeatable_in: frozenset[int]
    """Those of ``packets`` that it may stand in more than once."""
    least: int
    most: int
    """The range of a number, both ends included; 0 to 0 for what is no number."""
    out_of_range: Reason
    """The reason code for a number that is out of range."""
    name: str
    """The name in the specification, for error texts."""


_CONNECT = PacketType.CONNECT
_CONNACK = PacketType.CONNACK
_PUBLISH = PacketType.PUBLISH
_SUBSCRIBE = PacketType.SUBSCRIBE
_UNSUBSCRIBE = PacketType.UNSUBSCRIBE
_DISCONNECT = PacketType.DISCONNECT
_AUTH = PacketType.AUTH
_ANSWERS = frozenset(
    {
        _CONNACK,
        PacketType.PUBACK,
        PacketType.PUBREC,
        PacketType.PUBREL,
        PacketType.PUBCOMP,
        PacketType.SUBACK,
        PacketType.UNSUBACK,
        _DISCONNECT,
        _AUTH,
    }
)
_EVERYWHERE = _ANSWERS | {_CONNECT, _PUBLISH, _SUBSCRIBE, _UNSUBSCRIBE, WILL}
_MESSAGE = frozenset({_PUBLISH, WILL})

_WIDTHS: Final = {WireType.BYTE: 1, WireType.TWO_BYTE_INTEGER: 2, WireType.FOUR_BYTE_INTEGER: 4}
_MOST: Final = {
    WireType.BYTE: 1,
    WireType.TWO_BYTE_INTEGER: 0xFFFF,
    WireType.FOUR_BYTE_INTEGER: 0xFFFF_FFFF,
    WireType.VARIABLE_BYTE_INTEGER: LENGTH_MAX,
}


def _row(
    identifier: int,
    attribute: str,
    wire_type: WireType,
    packets: set[int] | frozenset[int],
    *,
    least: int = 0,
    out_of_range: Reason = Reason.PROTOCOL_ERROR,
    repeatable_in: frozenset[int] = frozenset(),
) -> PropertySpecification:
    return PropertySpecification(
        identifier=identifier,
        attribute=attribute,
        wire_type=wire_type,
        width=_WIDTHS.get(wire_type, 0),
        packets=frozenset(packets),
        repeatable_in=repeatable_in,
        least=least,
        most=_MOST.get(wire_type, 0),
        out_of_range=out_of_range,
        name=attribute.replace("_", " ").replace("identifiers", "identifier"),
    )


PROPERTY_TABLE: Final = (
    _row(0x01, "payload_format_indicator", WireType.BYTE, _MESSAGE),
    _row(0x02, "message_expiry_interval", WireType.FOUR_BYTE_INTEGER, _MESSAGE),
    _row(0x03, "content_type", WireType.STRING, _MESSAGE),
    _row(0x08, "response_topic", WireType.STRING, _MESSAGE),
    _row(0x09, "correlation_data", WireType.BINARY, _MESSAGE),
    _row(
        0x0B,
        "subscription_identifiers",
        WireType.VARIABLE_BYTE_INTEGER,
        {_PUBLISH, _SUBSCRIBE},
        least=1,
        out_of_range=Reason.MALFORMED_PACKET,
        repeatable_in=frozenset({_PUBLISH}),
    ),
    _row(
        0x11,
        "session_expiry_interval",
        WireType.FOUR_BYTE_INTEGER,
        {_CONNECT, _CONNACK, _DISCONNECT},
    ),
    _row(0x12, "assigned_client_identifier", WireType.STRING, {_CONNACK}),
    _row(0x13, "server_keep_alive", WireType.TWO_BYTE_INTEGER, {_CONNACK}),
    _row(0x15, "authentication_method", WireType.STRING, {_CONNECT, _CONNACK, _AUTH}),
    _row(0x16, "authentication_data", WireType.BINARY, {_CONNECT, _CONNACK, _AUTH}),
    _row(0x17, "request_problem_information", WireType.BYTE, {_CONNECT}),
    _row(0x18, "will_delay_interval", WireType.FOUR_BYTE_INTEGER, {WILL}),
    _row(0x19, "request_response_information", WireType.BYTE, {_CONNECT}),
    _row(0x1A, "response_information", WireType.STRING, {_CONNACK}),
    _row(0x1C, "server_reference", WireType.STRING, {_CONNACK, _DISCONNECT}),
    _row(0x1F, "reason_string", WireType.STRING, _ANSWERS),
    _row(0x21, "receive_maximum", WireType.TWO_BYTE_INTEGER, {_CONNECT, _CONNACK}, least=1),
    _row(0x22, "topic_alias_maximum", WireType.TWO_BYTE_INTEGER, {_CONNECT, _CONNACK}),
    _row(
        0x23,
        "topic_alias",
        WireType.TWO_BYTE_INTEGER,
        {_PUBLISH},
        least=1,
        out_of_range=Reason.TOPIC_ALIAS_INVALID,
    ),
    _row(0x24, "maximum_qos", WireType.BYTE, {_CONNACK}),
    _row(0x25, "retain_available", WireType.BYTE, {_CONNACK}),
    _row(0x26, "user_properties", WireType.STRING_PAIR, _EVERYWHERE, repeatable_in=_EVERYWHERE),
    _row(0x27, "maximum_packet_size", WireType.FOUR_BYTE_INTEGER, {_CONNECT, _CONNACK}, least=1),
    _row(0x28, "wildcard_subscription_available", WireType.BYTE, {_CONNACK}),
    _row(0x29, "subscription_identifier_available", WireType.BYTE, {_CONNACK}),
    _row(0x2A, "shared_subscription_available", WireType.BYTE, {_CONNACK}),
)
"""Every property, in the order of the identifiers, which is the order they are written in."""

assert [row.attribute for row in PROPERTY_TABLE] == [each.name for each in fields(Properties)]

_BY_IDENTIFIER: Final[list[PropertySpecification | None]] = [None] * 0x80
for _each in PROPERTY_TABLE:
    _BY_IDENTIFIER[_each.identifier] = _each

# Members as plain names: looking `WireType.STRING` up takes 0.06 us longer, each time.
_STRING: Final = WireType.STRING
_STRING_PAIR: Final = WireType.STRING_PAIR
_BINARY: Final = WireType.BINARY

_MALFORMED_WHERE_NOT_ALLOWED: Final = frozenset({_SUBSCRIBE, _UNSUBSCRIBE})
"""Packets in which a property of other packets counts as malformed, elsewhere as a protocol error.

Clause 2.2.2.2 asks for 0x81 everywhere. Brokers in use answer 0x82 but for these two packets, and
the packet exchanges that this broker is tested with expect that.
"""


def encode_length(length: int) -> bytes:
    """A Variable Byte Integer (clause 1.5.5), in the fewest bytes that hold it.

    Raises `Unencodable` when ``length`` is not 0 to 268,435,455.
    """
    if 0 <= length < 0x80:
        return _ONE_BYTE[length]
    if not 0 <= length <= LENGTH_MAX:
        raise Unencodable(f"a length of {length} is not within 0 to {LENGTH_MAX} (1.5.5)")
    encoded = bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


_ONE_BYTE: Final = tuple(bytes((each,)) for each in range(0x80))


def encode_string(text: str, field: str) -> bytes:
    """A UTF-8 Encoded String with its length prefix (clause 1.5.4).

    Raises `Unencodable`, naming ``field``, when it is longer than 65,535 bytes or has U+0000 or a
    surrogate.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise Unencodable(f"{field} has a surrogate (MQTT-1.5.4-1)") from None
    if b"\0" in encoded:
        raise Unencodable(f"{field} has U+0000 (MQTT-1.5.4-2)")
    return encode_binary(encoded, field)


def encode_binary(data: bytes, field: str) -> bytes:
    """Binary Data with its length prefix (clause 1.5.6).

    Raises `Unencodable`, naming ``field``, when it is longer than 65,535 bytes.
    """
    if len(data) > 0xFFFF:
        raise Unencodable(f"{field} has {len(data)} bytes, more than 65,535 (1.5.4, 1.5.6)")
    return len(data).to_bytes(2, "big") + data


def read_length(data: bytes, pos: int, end: int, field: str) -> tuple[int, int]:
    """A Variable Byte Integer (clause 1.5.5) and the position after it.

    Raises `MalformedPacket`, naming ``field``, when it goes past ``end``, is longer than four bytes
    or takes more bytes than it needs (MQTT-1.5.5-1).
    """
    if pos < end and (byte := data[pos]) < 0x80:
        return byte, pos + 1
    value = 0
    for shift in (0, 7, 14, 21):
        if pos >= end:
            raise MalformedPacket(f"{field} goes past the end of its packet (1.5.5)")
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0:
                raise MalformedPacket(f"{field} takes more bytes than needed (MQTT-1.5.5-1)")
            return value, pos
    raise MalformedPacket(f"{field} is longer than four bytes (1.5.5)")


def read_string(data: bytes, pos: int, end: int, field: str) -> tuple[str, int]:
    """A UTF-8 Encoded String (clause 1.5.4) and the position after it.

    Control characters and non-characters, which the clause lets a receiver refuse, are accepted.
    Raises `MalformedPacket`, naming ``field``, when it goes past ``end``, is ill-formed UTF-8
    (MQTT-1.5.4-1) or has U+0000 (MQTT-1.5.4-2).
    """
    start = pos + 2
    if start > end:
        raise MalformedPacket(f"{field} is missing (1.5.4)")
    stop = start + (data[pos] << 8 | data[pos + 1])
    if stop > end:
        raise MalformedPacket(f"{field} goes past the end of its packet (1.5.4)")
    try:
        text = data[start:stop].decode()
    except UnicodeDecodeError:
        raise MalformedPacket(f"{field} is ill-formed UTF-8 (MQTT-1.5.4-1)") from None
    if "\0" in text:
        raise MalformedPacket(f"{field} has U+0000 (MQTT-1.5.4-2)")
    return text, stop


def read_binary(data: bytes, pos: int, end: int, field: str) -> tuple[bytes, int]:
    """Binary Data (clause 1.5.6) and the position after it.

    Raises `MalformedPacket`, naming ``field``, when it goes past ``end``.
    """
    start = pos + 2
    if start > end:
        raise MalformedPacket(f"{field} is missing (1.5.6)")
    stop = start + (data[pos] << 8 | data[pos + 1])
    if stop > end:
        raise MalformedPacket(f"{field} goes past the end of its packet (1.5.6)")
    return data[start:stop], stop


def decode_properties(
    data: bytes, pos: int, end: int, packet: int, count_max: int
) -> tuple[Properties | None, int]:
    """The property section that begins at ``pos`` with its length, and the position after it.

    ``end`` is where the packet ends, ``packet`` its `PacketType`, or `WILL`. ``None`` stands for a
    section of length zero. Raises `MalformedPacket` for an identifier that does not exist, a value
    that is cut off or a section that is, and `ProtocolViolation` for a property that may not stand
    in this packet or twice, a number out of its range, and, with reason 0x97, more than
    ``count_max`` properties.
    """
    if pos < end and data[pos] == 0:
        return None, pos + 1
    length, pos = read_length(data, pos, end, "property length")
    end_of_packet, end = end, pos + length
    if end > end_of_packet:
        raise MalformedPacket("property length goes past the end of its packet (2.2.2.1)")
    values: dict[str, Any] = {}
    user_properties: list[tuple[str, str]] = []
    subscription_identifiers: list[int] = []
    objection: tuple[Reason, str] | None = None
    count = 0
    while pos < end:
        count += 1
        if count > count_max:
            raise ProtocolViolation(
                f"more than {count_max} properties, the limit of this node", Reason.QUOTA_EXCEEDED
            )
        identifier = data[pos]
        # Every identifier that exists is one byte long: a longer one is unknown, or padded.
        row = _BY_IDENTIFIER[identifier] if identifier < 0x80 else None
        if row is None:
            raise MalformedPacket(
                f"property identifier 0x{identifier:02X} does not exist (2.2.2.2)"
            )
        pos += 1
        value: Any
        wire_type, attribute = row.wire_type, row.attribute
        if width := row.width:
            stop = pos + width
            if stop > end:
                raise MalformedPacket(f"{row.name} is cut off (2.2.2.2)")
            value = int.from_bytes(data[pos:stop], "big")
            pos = stop
        elif wire_type is _STRING:
            value, pos = read_string(data, pos, end, row.name)
        elif wire_type is _STRING_PAIR:
            name, pos = read_string(data, pos, end, "user property name")
            text, pos = read_string(data, pos, end, "user property value")
            user_properties.append((name, text))
            value = user_properties
        elif wire_type is _BINARY:
            value, pos = read_binary(data, pos, end, row.name)
        else:
            value, pos = read_length(data, pos, end, row.name)
            subscription_identifiers.append(value)
        if objection is None:
            objection = _objection(row, value, packet, values)
        values[attribute] = value
    if (
        objection is None
        and "authentication_data" in values
        and "authentication_method" not in values
    ):
        objection = (
            Reason.PROTOCOL_ERROR,
            "authentication data without an authentication method (3.1.2.11.10)",
        )
    if objection is not None:
        reason, text = objection
        if reason is Reason.MALFORMED_PACKET:
            raise MalformedPacket(text)
        raise ProtocolViolation(text, reason)
    if user_properties:
        values["user_properties"] = tuple(user_properties)
    if subscription_identifiers:
        values["subscription_identifiers"] = tuple(subscription_identifiers)
    return Properties(**values), pos


def _objection(
    row: PropertySpecification, value: Any, packet: int, before: dict[str, Any]
) -> tuple[Reason, str] | None:
    """What the protocol has against this property here, if anything."""
    if packet not in row.packets:
        reason = (
            Reason.MALFORMED_PACKET
            if packet in _MALFORMED_WHERE_NOT_ALLOWED
            else Reason.PROTOCOL_ERROR
        )
        place = PacketType(packet).name if packet != WILL else "will properties"
        return reason, f"{row.name} is not allowed in {place} (2.2.2.2)"
    if row.attribute in before and packet not in row.repeatable_in:
        return Reason.PROTOCOL_ERROR, f"{row.name} stands twice in one packet (2.2.2.2)"
    if row.most and not row.least <= value <= row.most:
        return row.out_of_range, (
            f"{row.name} is {value}, not within {row.least} to {row.most} (2.2.2.2)"
        )
    return None


def encode_properties(properties: Properties | None) -> bytes:
    """A property section with its length (clause 2.2.2); one zero byte for ``None``.

    Whether the properties may stand in the packet they are for is the caller's knowledge. Raises
    `Unencodable`, naming the property, for a value that does not fit.
    """
    if properties is None:
        return b"\0"
    parts: list[bytes] = []
    for row in PROPERTY_TABLE:
        value = getattr(properties, row.attribute)
        if value is None:
            continue
        identifier, wire_type = _ONE_BYTE[row.identifier], row.wire_type
        if width := row.width:
            _check_range(row, value)
            parts += (identifier, value.to_bytes(width, "big"))
        elif wire_type is _STRING:
            parts += (identifier, encode_string(value, row.name))
        elif wire_type is _STRING_PAIR:
            for name, text in value:
                parts += (
                    identifier,
                    encode_string(name, "user property name"),
                    encode_string(text, "user property value"),
                )
        elif wire_type is _BINARY:
            parts += (identifier, encode_binary(value, row.name))
        else:
            for each in value:
                _check_range(row, each)
                parts += (identifier, encode_length(each))
    body = b"".join(parts)
    return encode_length(len(body)) + body


def _check_range(row: PropertySpecification, value: int) -> None:
    if not row.least <= value <= row.most:
        raise Unencodable(f"{row.name} is {value}, not within {row.least} to {row.most} (2.2.2.2)")
