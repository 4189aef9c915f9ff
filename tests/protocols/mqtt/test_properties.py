"""The table of MQTT 5.0 properties, row by row, and the wire types that they are made of."""

import dataclasses
from typing import Any

import pytest

from ganglion.protocols.mqtt.packets import PacketType
from ganglion.protocols.mqtt.properties import (
    PROPERTY_TABLE,
    WILL,
    Properties,
    PropertySpecification,
    WireType,
    decode_properties,
    encode_binary,
    encode_length,
    encode_properties,
    encode_string,
    read_binary,
    read_length,
    read_string,
)
from ganglion.protocols.mqtt.reasons import (
    MalformedPacket,
    MqttError,
    ProtocolViolation,
    Reason,
    Unencodable,
)

PLACES = (WILL, *PacketType)

EXAMPLES: dict[WireType, tuple[Any, bytes]] = {
    WireType.BYTE: (1, b"\x01"),
    WireType.TWO_BYTE_INTEGER: (0x1234, b"\x12\x34"),
    WireType.FOUR_BYTE_INTEGER: (0x12345678, b"\x12\x34\x56\x78"),
    WireType.VARIABLE_BYTE_INTEGER: ((300,), b"\xac\x02"),
    WireType.STRING: ("\u00e9", b"\x00\x02\xc3\xa9"),
    WireType.STRING_PAIR: ((("a", ""),), b"\x00\x01a\x00\x00"),
    WireType.BINARY: (b"\x00\xff", b"\x00\x02\x00\xff"),
}

# Table 2-4 of the specification, written down a second time: an identifier, and the initials of
# its packets. C CONNECT, c CONNACK, P PUBLISH, W will, a PUBACK to PUBCOMP, S SUBSCRIBE, s SUBACK,
# U UNSUBSCRIBE, u UNSUBACK, D DISCONNECT, A AUTH.
SPECIFICATION = {
    "payload_format_indicator": (1, "PW"),
    "message_expiry_interval": (2, "PW"),
    "content_type": (3, "PW"),
    "response_topic": (8, "PW"),
    "correlation_data": (9, "PW"),
    "subscription_identifiers": (11, "PS"),
    "session_expiry_interval": (17, "CcD"),
    "assigned_client_identifier": (18, "c"),
    "server_keep_alive": (19, "c"),
    "authentication_method": (21, "CcA"),
    "authentication_data": (22, "CcA"),
    "request_problem_information": (23, "C"),
    "will_delay_interval": (24, "W"),
    "request_response_information": (25, "C"),
    "response_information": (26, "c"),
    "server_reference": (28, "cD"),
    "reason_string": (31, "casuDA"),
    "receive_maximum": (33, "Cc"),
    "topic_alias_maximum": (34, "Cc"),
    "topic_alias": (35, "P"),
    "maximum_qos": (36, "c"),
    "retain_available": (37, "c"),
    "user_properties": (38, "CcPWaSsUuDA"),
    "maximum_packet_size": (39, "Cc"),
    "wildcard_subscription_available": (40, "c"),
    "subscription_identifier_available": (41, "c"),
    "shared_subscription_available": (42, "c"),
}
INITIALS: dict[str, tuple[int, ...]] = {
    "C": (PacketType.CONNECT,),
    "c": (PacketType.CONNACK,),
    "P": (PacketType.PUBLISH,),
    "W": (WILL,),
    "a": (PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP),
    "S": (PacketType.SUBSCRIBE,),
    "s": (PacketType.SUBACK,),
    "U": (PacketType.UNSUBSCRIBE,),
    "u": (PacketType.UNSUBACK,),
    "D": (PacketType.DISCONNECT,),
    "A": (PacketType.AUTH,),
}

each_row = pytest.mark.parametrize("row", PROPERTY_TABLE, ids=lambda row: row.attribute)


def section(*parts: bytes) -> bytes:
    """A property section of these parts, with its length."""
    body = b"".join(parts)
    return encode_length(len(body)) + body


def example(row: PropertySpecification) -> tuple[Any, bytes]:
    """A value of this property, and the bytes that say it, identifier included.

    Authentication data needs a method beside it: that is the whole packet's affair.
    """
    value, data = EXAMPLES[row.wire_type]
    return value, bytes((row.identifier,)) + data


def company(row: PropertySpecification) -> tuple[dict[str, Any], bytes]:
    """What has to stand beside this property."""
    if row.attribute == "authentication_data":
        return {"authentication_method": "m"}, b"\x15\x00\x01m"
    return {}, b""


def read(data: bytes, packet: int, count_max: int = 256) -> Properties | None:
    """The properties of a section that has to take up all of ``data``."""
    found, pos = decode_properties(data, 0, len(data), packet, count_max)
    assert pos == len(data)
    return found


def test_table_is_the_specification() -> None:
    """Identifiers, names and places are those of table 2-4 of the specification."""
    assert len(PROPERTY_TABLE) == 27
    assert {row.attribute: (row.identifier, row.packets) for row in PROPERTY_TABLE} == {
        attribute: (
            identifier,
            frozenset(place for initial in places for place in INITIALS[initial]),
        )
        for attribute, (identifier, places) in SPECIFICATION.items()
    }


@each_row
def test_property_is_read_and_written(row: PropertySpecification) -> None:
    """Each property is read where it may stand, also behind and before others, and written so."""
    value, data = example(row)
    beside, data_beside = company(row)
    expected = Properties(**{row.attribute: value}, **beside)
    for place in row.packets:
        whole = section(data_beside, data)
        assert read(whole, place) == expected
        assert encode_properties(expected) == whole
        behind = b"\xff\xff" + whole + b"\xff"
        found = decode_properties(behind, 2, len(behind), place, 256)
        assert found == (expected, len(behind) - 1)


@each_row
def test_property_is_refused_elsewhere(row: PropertySpecification) -> None:
    """A property of other packets is refused, in SUBSCRIBE and UNSUBSCRIBE as malformed."""
    data = section(example(row)[1])
    for place in set(PLACES) - row.packets:
        with pytest.raises(MqttError, match=f"{row.name} is not allowed in ") as caught:
            read(data, place)
        malformed = place in (PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE)
        expected = Reason.MALFORMED_PACKET if malformed else Reason.PROTOCOL_ERROR
        assert caught.value.reason == expected


@each_row
def test_property_that_is_cut_off_is_malformed(row: PropertySpecification) -> None:
    """A value that goes past the section is malformed, even where the property may not stand."""
    data = example(row)[1]
    for place in PLACES:
        for size in range(1, len(data)):
            with pytest.raises(MalformedPacket):
                # What lies behind the section must not be taken for the rest of the value.
                decode_properties(section(data[:size]) + data, 0, 99, place, 256)


@each_row
def test_property_stands_once(row: PropertySpecification) -> None:
    """Only user properties, and subscription identifiers to a client, may be repeated."""
    value, data = example(row)
    beside, data_beside = company(row)
    twice = section(data_beside, data, data)
    for place in row.packets:
        may = row.attribute == "user_properties" or (
            row.attribute == "subscription_identifiers" and place == PacketType.PUBLISH
        )
        if may:
            assert read(twice, place) == Properties(**{row.attribute: value + value}, **beside)
            continue
        with pytest.raises(ProtocolViolation, match=f"{row.name} stands twice") as caught:
            read(twice, place)
        assert caught.value.reason == Reason.PROTOCOL_ERROR


@each_row
def test_property_keeps_its_range(row: PropertySpecification) -> None:
    """Both ends of a number's range are read and written; what is outside of it is neither."""
    if not row.most:
        assert row.wire_type in (WireType.STRING, WireType.STRING_PAIR, WireType.BINARY)
        return
    place = next(iter(row.packets))

    def with_number(number: int) -> Properties:
        value: Any = (number,) if row.wire_type is WireType.VARIABLE_BYTE_INTEGER else number
        return Properties(**{row.attribute: value})

    for inside in (row.least, row.most):
        properties = with_number(inside)
        assert read(encode_properties(properties), place) == properties
    for outside in (row.least - 1, row.most + 1):
        with pytest.raises(Unencodable, match=row.name):
            encode_properties(with_number(outside))
        on_the_wire = row.wire_type is WireType.BYTE or outside == 0
        if outside < 0 or not on_the_wire:
            continue
        data = bytes((row.identifier,)) + outside.to_bytes(row.width or 1, "big")
        with pytest.raises(MqttError, match=row.name) as caught:
            read(section(data), place)
        assert caught.value.reason == row.out_of_range


def test_ranges_are_those_of_the_specification() -> None:
    """0 is refused where clauses 3.1.2.11, 3.3.2.3.4 and 3.8.2.1.2 refuse it; bytes are 0 or 1."""
    assert {row.attribute: row.out_of_range for row in PROPERTY_TABLE if row.least} == {
        "receive_maximum": Reason.PROTOCOL_ERROR,
        "maximum_packet_size": Reason.PROTOCOL_ERROR,
        "topic_alias": Reason.TOPIC_ALIAS_INVALID,
        "subscription_identifiers": Reason.MALFORMED_PACKET,
    }
    for row in PROPERTY_TABLE:
        if row.wire_type is WireType.BYTE:
            assert row.most == 1


@pytest.mark.parametrize(
    "identifier", sorted(set(range(256)) - {row.identifier for row in PROPERTY_TABLE})
)
def test_unknown_properties_are_malformed(identifier: int) -> None:
    """An identifier that does not exist is malformed in every packet (2.2.2.2)."""
    for place in PLACES:
        with pytest.raises(MalformedPacket, match=f"0x{identifier:02X}"):
            read(section(bytes((identifier, 1, 0, 0, 0))), place)


def test_no_properties_are_none() -> None:
    """A section of length zero is read as None, and None is written as one."""
    assert decode_properties(b"\x00\x01\x00", 0, 3, PacketType.PUBLISH, 256) == (None, 1)
    assert encode_properties(None) == b"\x00"
    assert encode_properties(Properties()) == b"\x00"


@pytest.mark.parametrize("data", [b"", b"\x02\x01", b"\x80", b"\xff\xff\xff\xff\x7f", b"\x80\x00"])
def test_property_length_is_checked(data: bytes) -> None:
    """A property length that is missing, too large, too long or padded is malformed (2.2.2.1)."""
    with pytest.raises(MalformedPacket, match="property length"):
        decode_properties(data + b"\x01\x01", 0, len(data), PacketType.PUBLISH, 256)


def test_properties_are_counted() -> None:
    """As many properties as the limit are read; one more is refused with 0x97."""
    user_property = b"\x26\x00\x00\x00\x00"
    found = read(section(user_property * 8), PacketType.PUBLISH, 8)
    assert found == Properties(user_properties=(("", ""),) * 8)
    with pytest.raises(ProtocolViolation, match="more than 8 properties") as caught:
        read(section(user_property * 9), PacketType.PUBLISH, 8)
    assert caught.value.reason == Reason.QUOTA_EXCEEDED


def test_order_of_user_properties_is_kept() -> None:
    """User properties come in their order, with the same name more than once (3.3.2.3.7)."""
    pairs = (("b", "1"), ("a", "2"), ("b", "1"), ("", "line\nbreak"))
    properties = Properties(user_properties=pairs, content_type="text")
    assert read(encode_properties(properties), PacketType.PUBLISH) == properties


def test_broken_bytes_come_before_forbidden_ones() -> None:
    """A section that cannot be read to its end is malformed, whatever else is wrong with it."""
    forbidden, twice = b"\x24\x00", b"\x03\x00\x01a\x03\x00\x01b"
    for wrong in (forbidden, twice, b"\x01\x02"):
        with pytest.raises(ProtocolViolation):
            read(section(wrong), PacketType.PUBLISH)
        with pytest.raises(MalformedPacket, match="0x7F"):
            read(section(wrong, b"\x7f"), PacketType.PUBLISH)


def test_authentication_data_needs_a_method() -> None:
    """Authentication data without a method is a protocol error, in any order with one it is not."""
    method, data = b"\x15\x00\x01m", b"\x16\x00\x01d"
    for place in (PacketType.CONNECT, PacketType.CONNACK, PacketType.AUTH):
        with pytest.raises(ProtocolViolation, match="without an authentication method"):
            read(section(data), place)
        expected = Properties(authentication_method="m", authentication_data=b"d")
        assert read(section(data, method), place) == expected
        assert read(section(method, data), place) == expected


def test_properties_are_slotted_keyword_values() -> None:
    """A misspelt property is an error, equality is by value, and repr shows only what is set."""
    properties = Properties(topic_alias=3, user_properties=(("a", "b"),))
    assert properties == Properties(user_properties=(("a", "b"),), topic_alias=3)
    assert properties != Properties(topic_alias=3)
    assert repr(properties) == "Properties(topic_alias=3, user_properties=(('a', 'b'),))"
    assert repr(Properties(content_type="")) == "Properties(content_type='')"
    assert repr(Properties()) == "Properties()"
    with pytest.raises(AttributeError):
        properties.topic_alais = 1  # type: ignore[attr-defined]  # the misspelling is the test
    for field in dataclasses.fields(Properties):
        assert field.kw_only
        assert field.default in (None, ())


@pytest.mark.parametrize(
    ("data", "about"),
    [
        (b"", "missing"),
        (b"\x00", "missing"),
        (b"\x00\x02a", "past the end"),
        (b"\x00\x01\xff", "ill-formed"),
        (b"\x00\x03\xed\xa0\x80", "ill-formed"),
        (b"\x00\x03\xed\xbf\xbf", "ill-formed"),
        (b"\x00\x02\xc0\x80", "ill-formed"),
        (b"\x00\x04\xf4\x90\x80\x80", "ill-formed"),
        (b"\x00\x01\x00", r"U\+0000"),
    ],
)
def test_strings_are_well_formed(data: bytes, about: str) -> None:
    """A string is complete, well-formed UTF-8 without U+0000; what is behind it does not help."""
    with pytest.raises(MalformedPacket, match=about):
        read_string(data + b"\x80\x80", 0, len(data), "field")


def test_longest_fields_fit() -> None:
    """65,535 bytes are read and written, one more is the caller's error (1.5.4, 1.5.6)."""
    longest = encode_string("\u00e9" * 32_767 + "e", "field")
    assert read_string(longest, 0, len(longest), "field") == ("\u00e9" * 32_767 + "e", 65_537)
    longest = encode_binary(b"\xff" * 65_535, "field")
    assert read_binary(longest, 0, len(longest), "field") == (b"\xff" * 65_535, 65_537)
    with pytest.raises(Unencodable, match="field has 65536 bytes"):
        encode_string("\u00e9" * 32_768, "field")
    with pytest.raises(Unencodable, match="field has 65536 bytes"):
        encode_binary(b"\xff" * 65_536, "field")


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"\x00", 0), (b"\x7f", 127), (b"\x80\x01", 128), (b"\xff\xff\xff\x7f", 268_435_455)],
)
def test_variable_byte_integers_have_one_form(data: bytes, value: int) -> None:
    """Each number has one encoding; it is cut off, padded or lengthened in vain (1.5.5)."""
    assert read_length(data, 0, len(data), "field") == (value, len(data))
    assert encode_length(value) == data
    for end in range(len(data)):
        with pytest.raises(MalformedPacket, match="past the end"):
            read_length(data, 0, end, "field")
    padded = data[:-1] + bytes((data[-1] | 0x80, 0))
    about = "needed" if len(padded) <= 4 else "four bytes"
    with pytest.raises(MalformedPacket, match=about):
        read_length(padded, 0, len(padded), "field")
