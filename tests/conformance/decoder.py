"""A second opinion on MQTT packets: what a broker sent, decoded apart from Ganglion's codec.

It knows the packets that a server sends, in the forms of MQTT 3.1, 3.1.1 and 5.0, and compares
them by meaning: the reason and the identifiers must be the expected ones, while a reason string or
another property that the specification leaves to the server may be added.
"""

from dataclasses import dataclass, field

__all__ = ["Meaning", "NotDecodable", "decode", "difference"]

type_names = {
    2: "CONNACK",
    3: "PUBLISH",
    4: "PUBACK",
    5: "PUBREC",
    6: "PUBREL",
    7: "PUBCOMP",
    9: "SUBACK",
    11: "UNSUBACK",
    13: "PINGRESP",
    14: "DISCONNECT",
    15: "AUTH",
}

# Identifier: (kind of value, packets of a server that may carry it); MQTT 5, table 2-4.
_ACKNOWLEDGEMENTS = "PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK"
_PROPERTIES: dict[int, tuple[str, str]] = {
    0x01: ("byte", "PUBLISH"),
    0x02: ("four", "PUBLISH"),
    0x03: ("text", "PUBLISH"),
    0x08: ("text", "PUBLISH"),
    0x09: ("data", "PUBLISH"),
    0x0B: ("varint", "PUBLISH"),
    0x11: ("four", "CONNACK"),
    0x12: ("text", "CONNACK"),
    0x13: ("two", "CONNACK"),
    0x15: ("text", "CONNACK AUTH"),
    0x16: ("data", "CONNACK AUTH"),
    0x1A: ("text", "CONNACK"),
    0x1C: ("text", "CONNACK DISCONNECT"),
    0x1F: ("text", f"CONNACK {_ACKNOWLEDGEMENTS} DISCONNECT AUTH"),
    0x21: ("two", "CONNACK"),
    0x22: ("two", "CONNACK"),
    0x23: ("two", "PUBLISH"),
    0x24: ("byte", "CONNACK"),
    0x25: ("byte", "CONNACK"),
    0x26: ("pair", f"CONNACK PUBLISH {_ACKNOWLEDGEMENTS} DISCONNECT AUTH"),
    0x27: ("four", "CONNACK"),
    0x28: ("byte", "CONNACK"),
    0x29: ("byte", "CONNACK"),
    0x2A: ("byte", "CONNACK"),
}
_REPEATABLE = {0x0B, 0x26}


class NotDecodable(Exception):
    """The bytes are no packet that a server may send."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a packet says: its name, its fields, its properties in order."""

    name: str
    fields: dict[str, object]
    properties: list[tuple[int, object]] = field(default_factory=list[tuple[int, object]])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise NotDecodable(f"{count} bytes wanted, {len(self.data)} left")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def varint(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.number(1)
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    raise NotDecodable("variable byte integer is longer than it has to be")
                return value
        raise NotDecodable("variable byte integer of more than four bytes")

    def bytes(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise NotDecodable(f"not UTF-8: {error}") from None

    def end(self) -> None:
        if self.data:
            raise NotDecodable(f"{len(self.data)} bytes too many: {self.data.hex(' ')}")

    def value(self, kind: str) -> object:
        if kind == "pair":
            return self.text(), self.text()
        return {
            "byte": lambda: self.number(1),
            "two": lambda: self.number(2),
            "four": lambda: self.number(4),
            "varint": self.varint,
            "text": self.text,
            "data": self.bytes,
        }[kind]()

    def properties(self, name: str) -> list[tuple[int, object]]:
        part = _Reader(self.take(self.varint()))
        found: list[tuple[int, object]] = []
        while part.data:
            identifier = part.varint()
            kind, packets = _PROPERTIES.get(identifier, ("", ""))
            if name not in packets.split():
                raise NotDecodable(f"property 0x{identifier:02X} may not be in {name}")
            if identifier not in _REPEATABLE and any(identifier == seen for seen, _ in found):
                raise NotDecodable(f"property 0x{identifier:02X} twice")
            found.append((identifier, part.value(kind)))
        return found


def decode(packet: bytes, version: int) -> Meaning:
    """Decode one whole packet of protocol `version` 3, 4 or 5.

    Raises `NotDecodable` for all that a server may not send.
    """
    reader = _Reader(packet)
    first = reader.number(1)
    if reader.varint() != len(reader.data):
        raise NotDecodable(f"remaining length is not that of {packet.hex(' ')}")
    name = type_names.get(first >> 4)
    if name is None:
        raise NotDecodable(f"a server does not send packet type {first >> 4}")
    if name == "PUBLISH":
        return _publish(first & 15, reader, version)
    if first & 15 != (2 if name == "PUBREL" else 0):
        raise NotDecodable(f"flags {first & 15} in {name}")
    fields: dict[str, object] = {}
    properties: list[tuple[int, object]] = []
    if name == "CONNACK":
        flags = reader.number(1)
        if flags > 1:
            raise NotDecodable(f"CONNACK flags {flags}")
        fields = {"session present": bool(flags), "reason": reader.number(1)}
        # A refusal may be in the form of another version than the client asked for.
        if reader.data:
            properties = reader.properties(name)
            fields["form"] = 5
        else:
            fields["form"] = 3
    elif name in ("PUBACK", "PUBREC", "PUBREL", "PUBCOMP"):
        fields = {"identifier": reader.number(2), "reason": 0}
        if version == 5 and reader.data:
            fields["reason"] = reader.number(1)
            properties = reader.properties(name) if reader.data else []
    elif name in ("SUBACK", "UNSUBACK"):
        fields = {"identifier": reader.number(2)}
        properties = reader.properties(name) if version == 5 else []
        fields["reasons"] = list(reader.take(len(reader.data)))
    elif name in ("DISCONNECT", "AUTH"):
        if version != 5:
            raise NotDecodable(f"a server does not send {name} before MQTT 5")
        fields = {"reason": reader.number(1) if reader.data else 0}
        properties = reader.properties(name) if reader.data else []
    reader.end()
    return Meaning(name, fields, properties)


def _publish(flags: int, reader: _Reader, version: int) -> Meaning:
    qos = flags >> 1 & 3
    if qos == 3:
        raise NotDecodable("PUBLISH with QoS 3")
    fields: dict[str, object] = {"dup": bool(flags & 8), "qos": qos, "retain": bool(flags & 1)}
    fields["topic"] = reader.text()
    if qos:
        fields["identifier"] = reader.number(2)
    properties = reader.properties("PUBLISH") if version == 5 else []
    fields["payload"] = reader.take(len(reader.data))
    return Meaning("PUBLISH", fields, properties)


def difference(expected: Meaning, actual: Meaning) -> str:
    """What distinguishes `actual` from `expected` in meaning; empty when nothing does."""
    if expected.name != actual.name or expected.fields != actual.fields:
        return f"expected {expected}, came {actual}"
    # PUBLISH is forwarded unaltered (MQTT 5, 3.3.2.3); elsewhere the server adds what it likes,
    # and of CONNACK's properties the vectors hold Mosquitto's own.
    if expected.name == "PUBLISH" and expected.properties != actual.properties:
        return f"expected properties {expected.properties}, came {actual.properties}"
    return ""
