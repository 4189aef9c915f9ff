"""The codec against hex vectors named by clause, and against itself.

The vectors lie in ``vectors/*.json``, in packets' own words: ``packet`` is what the bytes mean,
without what has its default (bytes as ``hex:…``); ``written`` is how the packet is written when
that differs from ``bytes``; ``refused`` is the reason code that the bytes are refused with, and
``about`` a part of the refusal's text. ``version`` may be a list.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.protocols.mqtt.codec import decode, encode, encode_length, read_header
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
from ganglion.protocols.mqtt.properties import PROPERTY_TABLE, WILL, Properties, WireType
from ganglion.protocols.mqtt.reasons import (
    ALLOWED_REASONS,
    MalformedPacket,
    MqttError,
    ProtocolViolation,
    Reason,
    Unencodable,
    UnsupportedVersion,
    connack_return_code,
)

VECTORS = Path(__file__).parent / "vectors"
VERSIONS = (V31, V311, V5)


def vectors(*, refused: bool) -> list[Any]:
    """The packet vectors of all files, one parameter for each version that they hold for."""
    found: list[Any] = []
    for path in sorted(VECTORS.glob("*.json")):
        if path.stem == "header":
            continue
        for vector in json.loads(path.read_text()):
            assert ("packet" in vector) != ("refused" in vector), vector
            if ("refused" in vector) != refused:
                continue
            versions = vector["version"]
            for version in versions if isinstance(versions, list) else [versions]:
                name = f"{path.stem}: {vector['name']} ({vector['clause']}) v{version}"
                found.append(pytest.param(vector, version, id=name))
    return found


def header_vectors() -> list[Any]:
    """The vectors of headers alone."""
    found = json.loads((VECTORS / "header.json").read_text())
    return [pytest.param(each, id=f"{each['name']} ({each['clause']})") for each in found]


def described(value: Any) -> Any:
    """A packet in the words of the vectors."""
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if not dataclasses.is_dataclass(value):
        return value
    said: dict[str, Any] = {"type": type(value).__name__}
    for field in dataclasses.fields(value):
        here = getattr(value, field.name)
        if here != field.default:
            said[field.name] = described(here)
    return said


def decode_whole(data: bytes, version: int) -> Packet:
    """The packet that ``data`` begins with; all of it has to be there."""
    header = read_header(data, 0, version)
    assert header is not None
    first, start, end = header
    assert end <= len(data)
    return decode(first, data, start, end, version)


def decode_in_pieces(data: bytes, version: int) -> Packet:
    """As `decode_whole`, byte by byte as a slow peer sends it: the last byte completes it."""
    for size in range(len(data)):
        header = read_header(data[:size], 0, version)
        if header is not None:
            assert header[0] == data[0]
            assert header[2] > size, "complete before its last byte"
    return decode_whole(data, version)


@pytest.mark.parametrize(("vector", "version"), vectors(refused=False))
def test_reads_and_writes_what_the_clause_describes(vector: dict[str, Any], version: int) -> None:
    """The bytes mean the packet: whole, byte by byte, between others; and are written again."""
    data = bytes.fromhex(vector["bytes"])
    packet = decode_whole(data, version)
    assert described(packet) == vector["packet"]
    assert decode_in_pieces(data, version) == packet
    assert decode_whole(data + data, version) == packet
    assert decode_whole(data + b"\xff" * 8, version) == packet
    before = b"\xff" * 8 + data
    header = read_header(before, 8, version)
    assert header is not None
    assert decode(*header[:1], before, *header[1:], version) == packet
    assert encode(packet, version) == bytes.fromhex(vector.get("written", vector["bytes"]))


@pytest.mark.parametrize(("vector", "version"), vectors(refused=True))
def test_refuses_what_the_clause_forbids(vector: dict[str, Any], version: int) -> None:
    """The bytes are refused with the clause's reason code, whole, in pieces and with more behind.

    The text names the field and the clause.
    """
    data = bytes.fromhex(vector["bytes"])
    for refuse in (decode_whole, decode_in_pieces):
        for behind in (b"", b"\0" * 8, b"\xff" * 8):
            if behind and refuse is decode_in_pieces:
                continue
            with pytest.raises(MqttError) as caught:
                refuse(data + behind, version)
            assert caught.value.reason == int(vector["refused"], 16)
            assert vector["about"] in str(caught.value)
            assert str(caught.value).endswith(")")
            is_malformed = isinstance(caught.value, MalformedPacket)
            assert is_malformed == (caught.value.reason == Reason.MALFORMED_PACKET)


@pytest.mark.parametrize("vector", header_vectors())
def test_reads_headers(vector: dict[str, Any]) -> None:
    """The body's place is known exactly when the remaining length is complete (2.1.4)."""
    data = bytes.fromhex(vector["bytes"])
    version = vector.get("version", V5)
    for size in range(len(data)):
        assert read_header(data[:size], 0, version) is None
    if "refused" in vector:
        with pytest.raises(MalformedPacket, match=vector["about"]):
            read_header(data, 0, version)
        return
    for before in (b"", b"\xff\xff\xff"):
        start = len(before) + len(data)
        found = read_header(before + data + b"\xff", len(before), version)
        assert found == (data[0], start, start + vector["body"])
    if version == V5:
        assert data[1:] == encode_length(vector["body"])


def test_a_packet_that_is_cut_short_is_malformed() -> None:
    """A CONNECT whose body ends early at any byte is malformed, never read past its end."""
    will = Will("t", b"p", properties=Properties(content_type="a"))
    properties = Properties(receive_maximum=7)
    whole = encode(Connect(V5, "c", True, 9, "u", b"p", will, properties), V5)
    assert len(whole) > 30
    for end in range(2, len(whole)):
        with pytest.raises(MalformedPacket):
            decode(whole[0], whole, 2, end, V5)
    decode(whole[0], whole, 2, len(whole), V5)


def test_names_the_version_that_is_not_supported() -> None:
    """An unknown level is told apart from an unknown protocol, as only the first is answered."""
    with pytest.raises(UnsupportedVersion) as level:
        decode_whole(bytes.fromhex("100C 0004 4D515454 06 02 0000 0000"), V311)
    assert level.value.level == 6
    with pytest.raises(UnsupportedVersion) as name:
        decode_whole(bytes.fromhex("100C 0004 68747470 04 02 0000 0000"), V311)
    assert name.value.level is None


@pytest.mark.parametrize("version", VERSIONS)
def test_bounds_what_a_packet_may_cost(version: int) -> None:
    """More topic filters, codes or properties than the limit are refused with 0x97.

    One byte on the wire can cost a hundred in memory.
    """
    subscribe = encode(Subscribe(1, [SubscriptionRequest("t", 0)] * 3), version)
    unsubscribe = encode(Unsubscribe(1, ["t"] * 3), version)
    suback = encode(Suback(1, [0] * 3), version)
    for data in (subscribe, unsubscribe, suback):
        decode(data[0], data, 2, len(data), version, filters_max=3)
        with pytest.raises(ProtocolViolation) as caught:
            decode(data[0], data, 2, len(data), version, filters_max=2)
        assert caught.value.reason == Reason.QUOTA_EXCEEDED
    if version == V5:
        data = encode(Publish("t", b"", properties=Properties(user_properties=(("", ""),) * 3)), V5)
        decode(data[0], data, 2, len(data), V5, properties_max=3)
        with pytest.raises(ProtocolViolation) as caught:
            decode(data[0], data, 2, len(data), V5, properties_max=2)
        assert caught.value.reason == Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.SUCCESS, 0),
        (Reason.UNSUPPORTED_PROTOCOL_VERSION, 1),
        (Reason.CLIENT_IDENTIFIER_NOT_VALID, 2),
        (Reason.SERVER_BUSY, 3),
        (Reason.QUOTA_EXCEEDED, 3),
        (Reason.BAD_USER_NAME_OR_PASSWORD, 4),
        (Reason.NOT_AUTHORIZED, 5),
        (Reason.BANNED, 5),
    ],
)
def test_older_clients_get_a_return_code(reason: Reason, code: int) -> None:
    """CONNACK for MQTT 3.x has the return code nearest to the reason (3.1.1: 3.2.2.3)."""
    assert connack_return_code(reason) == code
    assert encode(Connack(False, reason), V311) == bytes((0x20, 2, 0, code))
    assert encode(Connack(False, code), V31) == bytes((0x20, 2, 0, code))


def test_older_clients_get_one_code_for_every_refused_subscription() -> None:
    """SUBACK before MQTT 5.0 knows only 0x80 (3.1.1: 3.9.3); and no properties go out there."""
    packet = Suback(1, [0, 1, 2, 0x80, 0x87, 0xA2], Properties(reason_string="no"))
    assert encode(packet, V311) == bytes.fromhex("9008 0001 00 01 02 80 80 80")
    assert encode(packet, V31) == encode(packet, V311)


def test_older_clients_get_no_properties() -> None:
    """A message published with MQTT 5.0 reaches MQTT 3.x as its topic and payload."""
    packet = Publish("t", b"p", 1, False, False, 1, Properties(content_type="a"))
    assert encode(packet, V311) == bytes.fromhex("3206 0001 74 0001 70")
    assert encode(Puback(1, 0x87, Properties(reason_string="no")), V311) == b"\x40\2\0\1"


@pytest.mark.parametrize(
    ("packet", "version", "about"),
    [
        (Publish("t" * 65_536, b""), V311, "topic name"),
        (Publish("\ud800", b""), V311, "surrogate"),
        (Publish("\0", b""), V311, "U+0000"),
        (Publish("t", b"", 3, packet_id=1), V311, "QoS"),
        (Publish("t", b"", 1), V311, "packet identifier"),
        (Puback(65_536), V5, "packet identifier"),
        (Puback(1, 0x92), V5, "reason code"),
        (Connect(V311, "c", password=b"p"), V311, "user name"),
        (Connect(6, "c"), V5, "protocol level"),
        (Connect(V5, "c", keep_alive_s=65_536), V5, "keep alive"),
        (Connect(V5, "c", username="u", password=b"p" * 65_536), V5, "password"),
        (Connect(V5, "c", will=Will("t", b"p", qos=3)), V5, "QoS"),
        (Connack(False, 0x91), V5, "reason code"),
        (Subscribe(1, []), V5, "topic filter"),
        (Subscribe(1, [SubscriptionRequest("t", 0, retain_handling=3)]), V5, "retain handling"),
        (Suback(1, []), V311, "SUBACK"),
        (Suback(1, [0x11]), V5, "SUBACK"),
        (Suback(1, [3]), V311, "SUBACK"),
        (Unsubscribe(1, []), V5, "topic filter"),
        (Unsuback(1, []), V5, "UNSUBACK"),
        (Disconnect(0x91), V5, "reason code"),
        (Auth(), V311, "AUTH"),
        (Auth(0x80), V5, "reason code"),
    ],
)
def test_writes_nothing_that_the_peer_would_refuse(
    packet: Packet, version: int, about: str
) -> None:
    """A packet that MQTT cannot carry is the caller's error, and the text names the field."""
    with pytest.raises(Unencodable, match=re.escape(about)):
        encode(packet, version)


# Table 2-6 of the specification, by reason code as there: c CONNACK, a PUBACK and PUBREC, r PUBREL
# and PUBCOMP, s SUBACK, u UNSUBACK, D DISCONNECT, A AUTH.
PLACES = {
    0x00: "carsuDA",
    0x01: "s",
    0x02: "s",
    0x04: "D",
    0x10: "a",
    0x11: "u",
    0x18: "A",
    0x19: "A",
    0x80: "casuD",
    0x81: "cD",
    0x82: "cD",
    0x83: "casuD",
    0x84: "c",
    0x85: "c",
    0x86: "c",
    0x87: "casuD",
    0x88: "c",
    0x89: "cD",
    0x8A: "c",
    0x8B: "D",
    0x8C: "cD",
    0x8D: "D",
    0x8E: "D",
    0x8F: "suD",
    0x90: "caD",
    0x91: "asu",
    0x92: "r",
    0x93: "D",
    0x94: "D",
    0x95: "cD",
    0x96: "D",
    0x97: "casD",
    0x98: "D",
    0x99: "caD",
    0x9A: "cD",
    0x9B: "cD",
    0x9C: "cD",
    0x9D: "cD",
    0x9E: "sD",
    0x9F: "cD",
    0xA0: "D",
    0xA1: "sD",
    0xA2: "sD",
}
PLACE_INITIALS = {
    PacketType.CONNACK: "c",
    PacketType.PUBACK: "a",
    PacketType.PUBREC: "a",
    PacketType.PUBREL: "r",
    PacketType.PUBCOMP: "r",
    PacketType.SUBACK: "s",
    PacketType.UNSUBACK: "u",
    PacketType.DISCONNECT: "D",
    PacketType.AUTH: "A",
}


def test_reason_codes_stand_where_the_specification_puts_them() -> None:
    """Every reason code exists and may stand in exactly the packets of clause 2.4."""
    assert {each.value for each in Reason} == set(PLACES)
    assert set(ALLOWED_REASONS) == set(PLACE_INITIALS)
    for packet_type, initial in PLACE_INITIALS.items():
        expected = {reason for reason, places in PLACES.items() if initial in places}
        assert ALLOWED_REASONS[packet_type] == expected, packet_type.name


# Round trips: whatever the caller can say, the peer reads as it was said.

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
FILLED_NAMES = NAMES.filter(bool)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1), max_size=20)
PAYLOADS = st.binary(max_size=300)
PACKET_IDS = st.integers(1, 0xFFFF)
QOS = st.integers(0, 2)

VALUES: dict[WireType, st.SearchStrategy[Any]] = {
    WireType.STRING: TEXTS,
    WireType.BINARY: st.binary(max_size=20),
    WireType.STRING_PAIR: st.tuples(TEXTS, TEXTS),
}


def properties_of(packet: int) -> st.SearchStrategy[Properties | None]:
    """Any properties that may stand in this packet."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for row in PROPERTY_TABLE:
        if packet not in row.packets:
            continue
        value = VALUES.get(row.wire_type, st.integers(row.least, row.most))
        if row.wire_type in (WireType.STRING_PAIR, WireType.VARIABLE_BYTE_INTEGER):
            most = 3 if packet in row.repeatable_in else 1
            fields[row.attribute] = st.lists(value, max_size=most).map(tuple)
        else:
            fields[row.attribute] = st.none() | value
    any_of_them = st.builds(Properties, **fields).filter(
        lambda found: found.authentication_data is None or found.authentication_method is not None
    )
    return st.none() | any_of_them.filter(lambda found: found != Properties())


def reasons_of(packet_type: PacketType) -> st.SearchStrategy[int]:
    """Any reason code that may stand in this packet."""
    return st.sampled_from(sorted(ALLOWED_REASONS[packet_type]))


def wills(version: int) -> st.SearchStrategy[Will]:
    """Any will."""
    properties = properties_of(WILL) if version == V5 else st.none()
    return st.builds(Will, FILLED_NAMES, PAYLOADS, QOS, st.booleans(), properties)


def connects(version: int) -> st.SearchStrategy[Connect]:
    """Any CONNECT."""
    return st.builds(
        Connect,
        st.just(version),
        NAMES,
        st.booleans(),
        st.integers(0, 0xFFFF),
        st.none() | NAMES,
        st.none() | PAYLOADS,
        st.none() | wills(version),
        properties_of(PacketType.CONNECT) if version == V5 else st.none(),
    ).filter(lambda found: version == V5 or found.password is None or found.username is not None)


def publishes(version: int) -> st.SearchStrategy[Publish]:
    """Any PUBLISH."""

    def made(qos: int) -> st.SearchStrategy[Publish]:
        return st.builds(
            Publish,
            FILLED_NAMES,
            PAYLOADS,
            st.just(qos),
            st.booleans(),
            st.booleans() if qos else st.just(value=False),
            PACKET_IDS if qos else st.just(0),
            properties_of(PacketType.PUBLISH) if version == V5 else st.none(),
        )

    return QOS.flatmap(made)


def packets_of(packet_type: PacketType, version: int) -> st.SearchStrategy[Packet]:
    """Any packet of this type and version."""
    if packet_type is PacketType.CONNECT:
        return connects(version)
    if packet_type is PacketType.PUBLISH:
        return publishes(version)
    is_5 = version == V5
    properties = properties_of(packet_type) if is_5 else st.none()
    if packet_type is PacketType.CONNACK:
        accepting = st.builds(
            Connack, st.booleans() if version != V31 else st.just(False), st.just(0), properties
        )
        reasons = reasons_of(packet_type) if is_5 else st.integers(0, 5)
        return accepting | st.builds(Connack, st.just(False), reasons, properties)
    if packet_type is PacketType.SUBSCRIBE:
        options = (st.booleans(), st.booleans(), QOS) if is_5 else ()
        requests = st.builds(SubscriptionRequest, FILLED_NAMES, QOS, *options)
        return st.builds(
            Subscribe, PACKET_IDS, st.lists(requests, min_size=1, max_size=5), properties
        )
    if packet_type is PacketType.UNSUBSCRIBE:
        filters = st.lists(FILLED_NAMES, min_size=1, max_size=5)
        return st.builds(Unsubscribe, PACKET_IDS, filters, properties)
    if packet_type is PacketType.SUBACK:
        codes = reasons_of(packet_type) if is_5 else st.sampled_from([0, 1, 2, 0x80])
        return st.builds(Suback, PACKET_IDS, st.lists(codes, min_size=1), properties)
    if packet_type is PacketType.UNSUBACK:
        no_codes: st.SearchStrategy[list[int]] = st.just([])
        all_codes = st.lists(reasons_of(packet_type), min_size=1) if is_5 else no_codes
        return st.builds(Unsuback, PACKET_IDS, all_codes, properties)
    if packet_type is PacketType.PINGREQ:
        return st.builds(Pingreq)
    if packet_type is PacketType.PINGRESP:
        return st.builds(Pingresp)
    codes_or_0 = reasons_of(packet_type) if is_5 else st.just(0)
    if packet_type is PacketType.DISCONNECT:
        return st.builds(Disconnect, codes_or_0, properties)
    if packet_type is PacketType.AUTH:
        return st.builds(Auth, codes_or_0, properties)
    answers: dict[PacketType, Callable[..., Packet]] = {
        PacketType.PUBACK: Puback,
        PacketType.PUBREC: Pubrec,
        PacketType.PUBREL: Pubrel,
        PacketType.PUBCOMP: Pubcomp,
    }
    return st.builds(answers[packet_type], PACKET_IDS, codes_or_0, properties)


KINDS = [
    (packet_type, version)
    for packet_type in PacketType
    for version in VERSIONS
    if version == V5 or packet_type is not PacketType.AUTH
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packet_type", "version"), KINDS, ids=[f"{kind.name} v{version}" for kind, version in KINDS]
)
@given(st.data())
def test_what_is_written_is_read_as_it_was_said(
    packet_type: PacketType, version: int, data: st.DataObject
) -> None:
    """Any packet that can be written is read back equal, and takes up exactly its own bytes."""
    packet = data.draw(packets_of(packet_type, version))
    written = encode(packet, version)
    assert written[0] >> 4 == packet_type
    header = read_header(written, 0, V5)
    assert header is not None
    assert header[2] == len(written)
    assert decode_whole(written + b"\xff", version) == packet


@given(st.integers(0, 268_435_455))
def test_lengths_are_read_as_they_are_written(length: int) -> None:
    """Every remaining length comes back, in the bytes that clause 1.5.5 gives it."""
    written = encode_length(length)
    assert len(written) == 1 + (length > 127) + (length > 16_383) + (length > 2_097_151)
    start = 1 + len(written)
    assert read_header(b"\x30" + written, 0, V5) == (0x30, start, start + length)


@pytest.mark.parametrize("length", [-1, 268_435_456])
def test_longer_packets_cannot_be_written(length: int) -> None:
    """A remaining length beyond four bytes is refused (1.5.5)."""
    with pytest.raises(Unencodable, match=str(length)):
        encode_length(length)
