"""Any bytes give packets or an `MqttError`, never another exception, in bounded memory.

That is the invariant; `check` is its one definition. A packet that is accepted must, further, be
one that can be written, and what is written must mean the same to a reader.

Cases are numbered, and a case is made from the seed and its number alone, so a failure names all
that reproduces it: ``python -m tests.protocols.mqtt.test_codec_fuzz --seed S --case N``. To search
for long: ``python -m tests.protocols.mqtt.test_codec_fuzz --minutes 60``.
"""

import argparse
import functools
import json
import random
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from ganglion.protocols.mqtt.codec import decode, encode, encode_length, read_header
from ganglion.protocols.mqtt.packets import V5, V31, V311, Connect, Packet, PacketType
from ganglion.protocols.mqtt.properties import PROPERTY_TABLE
from ganglion.protocols.mqtt.reasons import MqttError, ProtocolViolation, Reason

VERSIONS = (V31, V311, V5)
PACKETS = {each.name.capitalize() for each in PacketType}
SIZE_MAX = 2_000
"""Bytes of one case: enough for every field to be long, few enough to try many."""

# Bytes at which something ends: signs, lengths, flags, and what UTF-8 does not like.
EDGES = (0x00, 0x01, 0x02, 0x03, 0x04, 0x7F, 0x80, 0x81, 0xC0, 0xED, 0xF4, 0xFE, 0xFF)


@functools.cache
def corpus() -> tuple[bytes, ...]:
    """The packets of our own vectors: something of every type."""
    found: list[bytes] = []
    for path in sorted((Path(__file__).parent / "vectors").glob("*.json")):
        vectors = json.loads(path.read_text())
        found += [bytes.fromhex(each["bytes"]) for each in vectors if "packet" in each]
    return tuple(found)


def made(seed: int, number: int) -> bytes:
    """The bytes of a case."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(60))
    if kind == 1:
        body = rng.randbytes(rng.randrange(60))
        return bytes((rng.randrange(256),)) + encode_length(len(body)) + body
    if kind == 2:
        return _with_properties(rng)
    data = bytearray(rng.choice(corpus()))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        _mutate(rng, data)
    del data[SIZE_MAX:]
    if rng.randrange(4):
        # Most mutations shift the end: without a right length few would come past the header.
        body = bytes(data[2:])
        return bytes(data[:1]) + encode_length(len(body)) + body
    return bytes(data)


def _mutate(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0:
            data[at : at + 1] = bytes((rng.choice(EDGES),))
        case 1:
            data[at : at + 1] = bytes((rng.randrange(256),))
        case 2:
            data[at:at] = rng.randbytes(rng.randrange(8))
        case 3:
            del data[at : at + rng.randrange(8)]
        case 4:
            data[at:at] = rng.choice(corpus())[rng.randrange(6) :]
        case _:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.randrange(60)] * rng.randrange(5)


def _with_properties(rng: random.Random) -> bytes:
    """A packet of MQTT 5.0 with properties that exist, mostly well-formed and in their place."""
    packet_type = rng.choice(tuple(PacketType))
    rows = [row for row in PROPERTY_TABLE if packet_type in row.packets] or PROPERTY_TABLE
    section = bytearray()
    for _ in range(rng.randrange(6)):
        row = rng.choice(rows if rng.randrange(8) else PROPERTY_TABLE)
        section.append(row.identifier)
        if row.width:
            section += rng.choice((0, 1, rng.getrandbits(8 * row.width))).to_bytes(4, "big")[
                -row.width :
            ]
        else:
            text = rng.choice((b"", b"a", b"\xc3\xa9", b"\n", b"a/b", b"\x00", b"\xff"))
            section += len(text).to_bytes(2, "big") + text
            if row.attribute == "user_properties":
                section += b"\x00\x01b"
            elif row.attribute == "subscription_identifiers":
                section[-2 - len(text) :] = encode_length(rng.randrange(300))
    properties = encode_length(len(section)) + bytes(section)
    head, tail = {
        PacketType.CONNECT: (b"\x00\x04MQTT\x05\x06\x00\x0a", b"\x00\x01c\x00\x00\x01t\x00\x00"),
        PacketType.CONNACK: (b"\x00\x00", b""),
        PacketType.PUBLISH: (b"\x00\x01t", b"payload"),
        PacketType.SUBSCRIBE: (b"\x00\x01", b"\x00\x01t\x00"),
        PacketType.SUBACK: (b"\x00\x01", b"\x00"),
        PacketType.UNSUBSCRIBE: (b"\x00\x01", b"\x00\x01t"),
        PacketType.UNSUBACK: (b"\x00\x01", b"\x00"),
        PacketType.DISCONNECT: (b"\x00", b""),
        PacketType.AUTH: (b"\x18", b""),
    }.get(packet_type, (b"\x00\x01\x00", b""))
    flagged = (PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE, PacketType.PUBREL)
    flags = 2 if packet_type in flagged else 0
    body = head + properties + tail
    return bytes((packet_type << 4 | flags,)) + encode_length(len(body)) + body


def check(data: bytes, version: int) -> list[Packet]:
    """Hold the invariant against these bytes; the packets that they gave."""
    given: list[Packet] = []
    pos = 0
    while True:
        try:
            header = read_header(data, pos, version)
            if header is None or header[2] > len(data):
                return given
            first, start, end = header
            assert pos < start <= end, "the body lies behind its header"
            packet = decode(first, data, start, end, version)
        except MqttError as refusal:
            reason = refusal.reason
            break
        if isinstance(packet, Connect):
            version = packet.version
        again = encode(packet, version)
        header = read_header(again, 0, V5)
        assert header is not None
        assert header[2] == len(again)
        assert decode(header[0], again, header[1], len(again), version) == packet
        given.append(packet)
        pos = end
    assert reason in Reason
    assert reason >= Reason.UNSPECIFIED_ERROR
    return given


def fuzz(seed: int, first: int, count: int) -> Counter[str]:
    """Check ``count`` cases from number ``first`` on; how many packets of which type they gave."""
    given: Counter[str] = Counter()
    for number in range(first, first + count):
        data = made(seed, number)
        for version in VERSIONS:
            try:
                given.update(type(packet).__name__ for packet in check(data, version))
            except Exception as error:
                error.add_note(f"--seed {seed} --case {number}: version {version} {data.hex()}")
                raise
    return given


def test_any_bytes_give_packets_or_an_mqtt_error() -> None:
    """The invariant holds for two thousand cases, which give packets of every type."""
    assert set(fuzz(seed=1, first=0, count=2_000)) == PACKETS


@pytest.mark.slow
def test_many_bytes_give_packets_or_an_mqtt_error() -> None:
    """The invariant holds for forty thousand cases of another seed, each type a hundred times."""
    given = fuzz(seed=2, first=0, count=40_000)
    assert {name for name, count in given.items() if count >= 100} == PACKETS


def test_cases_are_reproducible() -> None:
    """A seed and a number make the same bytes again, and others make others."""
    assert made(1, 7) == made(1, 7)
    assert len({made(seed, number) for seed in range(4) for number in range(50)}) > 150


BOMBS = {
    "topic filters": (b"\x82", b"\x00\x01" + b"\x00\x01a\x00" * 250_000, V311),
    "topic filters to unsubscribe": (b"\xa2", b"\x00\x01" + b"\x00\x01a" * 300_000, V311),
    "reason codes": (b"\x90", b"\x00\x01" + b"\x00" * 1_000_000, V311),
    "user properties": (
        b"\x30",
        b"\x00\x01t" + encode_length(1_000_000) + b"\x26\x00\x00\x00\x00" * 200_000,
        V5,
    ),
    "subscription identifiers": (
        b"\x30",
        b"\x00\x01t" + encode_length(1_000_000) + b"\x0b\x01" * 500_000,
        V5,
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_megabyte_of_small_things_costs_little(bomb: str) -> None:
    """A packet made of as many small parts as fit is refused before they take much memory.

    At the limits given here, a thousand parts, it takes less than half of what its bytes do.
    """
    first, body, version = BOMBS[bomb]
    data = first + encode_length(len(body)) + body
    header = read_header(data, 0, version)
    assert header is not None
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation) as caught:
            decode(header[0], data, header[1], header[2], version, 1_000, 1_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == Reason.QUOTA_EXCEEDED
    assert peak_bytes < len(data) * (1.1 if bomb == "reason codes" else 0.5)


def main(arguments: list[str]) -> int:
    """Search by hand, for minutes or for one case."""
    parser = argparse.ArgumentParser(prog="python -m tests.protocols.mqtt.test_codec_fuzz")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="chosen and printed if not given")
    parser.add_argument("--case", type=int, default=None, help="only this case")
    given = parser.parse_args(arguments)
    seed: int = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    if given.case is not None:
        fuzz(seed, given.case, 1)
        sys.stdout.write(f"seed {seed}, case {given.case}: the invariant holds\n")
        return 0
    end = time.monotonic() + given.minutes * 60
    cases = 0
    given_packets: Counter[str] = Counter()
    sys.stdout.write(f"seed {seed}\n")
    while time.monotonic() < end:
        given_packets += fuzz(seed, cases, 10_000)
        cases += 10_000
    sys.stdout.write(f"{cases} cases, {given_packets.total()} packets: the invariant holds\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
