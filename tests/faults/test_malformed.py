"""Packets that are wrong, too large, unfinished or out of place."""

import random

import pytest

from tests.faults.conftest import MIB, round_trip, under_attack
from tests.support import (
    Daemon,
    RawClient,
    connect_packet,
    frame,
    publish_packet,
    start_daemon,
    subscribe_packet,
    text,
    varint,
)

_VALID: dict[int, list[bytes]] = {
    version: [
        connect_packet("again", version=version),
        publish_packet("a/b", b"payload", version=version),
        publish_packet("a/b", b"payload", qos=1, version=version),
        publish_packet("a/b", b"payload", qos=2, packet_id=2, version=version),
        bytes.fromhex("40020001"),
        bytes.fromhex("50020001"),
        bytes.fromhex("62020002"),
        bytes.fromhex("70020001"),
        subscribe_packet("a/#", "b/+", options=1, version=version),
        frame(0xA2, b"\x00\x03" + (b"\x00" if version == 5 else b"") + text("a/#")),
        bytes.fromhex("c000"),
        bytes.fromhex("e000"),
        bytes.fromhex("f000"),
    ]
    for version in (4, 5)
}


@pytest.mark.parametrize("first", range(0x20, 0x100, 0x10), ids=hex)
def test_first_packet_is_not_connect(daemon: Daemon, first: int) -> None:
    """Whatever comes before CONNECT closes the connection, without an answer (MQTT-3.1.0-1)."""
    with under_attack(daemon):
        for length in (0, 2, 100):
            with RawClient(daemon.ports["mqtt"]) as client:
                client.send(frame(first, bytes(length)))
                client.expect_closed()


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("first", [0x30, 0x40, 0x50, 0x62, 0x70, 0x82, 0xA2, 0xE0, 0xF0], ids=hex)
def test_oversize_packet(daemon: Daemon, version: int, first: int) -> None:
    """A packet above the limit is refused at its header, with 0x95 in MQTT 5 (3.1.2-24)."""
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        client.join("oversize", version=version)
        client.send(bytes([first]) + varint(17 * MIB) + bytes(100))
        packets = client.read_to_end()
        if version == 5:
            assert [packet.kind for packet in packets] == [14]
            # Packets whose length alone is impossible may be called malformed instead.
            allowed = {0x95} if first in (0x30, 0x82, 0xA2) else {0x95, 0x81, 0x82}
            assert packets[0].body[0] in allowed
        else:
            assert not packets


def test_oversize_connect(daemon: Daemon) -> None:
    """Who is not known yet may send 64 KiB and no more: a larger CONNECT is not even read."""
    with under_attack(daemon, growth_bytes=8 * MIB):
        for length in (65_600, MIB, 200 * MIB, 268_435_455):
            with RawClient(daemon.ports["mqtt"]) as client:
                client.send(b"\x10" + varint(length) + text("MQTT") + b"\x05\x02\x00\x3c")
                packets = client.read_to_end()
                assert all(packet.kind == 2 and packet.body[1] >= 0x80 for packet in packets)


@pytest.mark.parametrize("version", [4, 5])
def test_mutated_packets(daemon: Daemon, version: int) -> None:
    """Valid packets of every kind with bytes changed, dropped or added do no harm.

    Whatever they have become, the connection ends with the stream. The seed is fixed, so a failure
    repeats itself.
    """
    chance = random.Random(version)
    with under_attack(daemon):
        for _ in range(600):
            packet = bytearray(chance.choice(_VALID[version]))
            for _ in range(chance.randint(1, 3)):
                where = chance.randrange(len(packet) + 1)
                change = chance.randrange(3)
                if change == 0 and where < len(packet):
                    packet[where] = chance.randrange(256)
                elif change == 1:
                    packet.insert(where, chance.randrange(256))
                elif len(packet) > 1:
                    del packet[where % len(packet)]
            with RawClient(daemon.ports["mqtt"]) as client:
                client.join("mutant", version=version)
                client.send(bytes(packet))
                # A change can promise more than was sent: the end of the stream settles that.
                client.end_output()
                client.read_to_end()


def test_garbage(daemon: Daemon) -> None:
    """Random bytes, from somebody who speaks another protocol or none, do no harm."""
    chance = random.Random(1883)
    greetings = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ]
    with under_attack(daemon):
        for number in range(200):
            data = greetings[number] if number < 3 else chance.randbytes(chance.randint(1, 2000))
            with RawClient(daemon.ports["mqtt"]) as client:
                client.send(data)


def test_half_a_connect() -> None:
    """Who does not finish CONNECT within the deadline is closed, however he dawdles."""
    whole = connect_packet("half", version=5)
    with (
        start_daemon("--limit", "connect_timeout_s=1") as daemon,
        under_attack(daemon, growth_bytes=8 * MIB),
    ):
        clients = [RawClient(daemon.ports["mqtt"]) for _ in range(100)]
        try:
            for number, client in enumerate(clients):
                client.send(whole[: number % len(whole)])
            for client in clients:
                client.expect_closed(deadline_s=5)
        finally:
            for client in clients:
                client.close()


def test_half_a_publish(daemon: Daemon) -> None:
    """Half a packet is no sign of life: keep alive closes the peer and its will goes out.

    That is at one and a half times the keep alive (MQTT-3.1.2-22).
    """
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as observer:
        observer.join("observer")
        observer.subscribe("will")
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("half", keep_alive_s=1, will=("will", b"gone", 0, False))
            client.send(publish_packet("t", bytes(1000))[:500])
            client.expect_closed(deadline_s=5)
            observer.expect(publish_packet("will", b"gone"))


def test_declared_but_not_sent(daemon: Daemon) -> None:
    """Memory is spent on what has come, not on what a header promises."""
    with under_attack(daemon, growth_bytes=16 * MIB):
        clients = [RawClient(daemon.ports["mqtt"]) for _ in range(200)]
        try:
            for number, client in enumerate(clients):
                client.join(f"promise{number}", keep_alive_s=0)
                client.send(b"\x30" + varint(16_000_000) + text("t") + bytes(1024))
            for client in clients:
                assert client.socket.fileno() >= 0
            grown_with_all = daemon.memory_bytes()
            assert grown_with_all < 400 * MIB
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_slow_writer(daemon: Daemon, version: int) -> None:
    """A peer that sends byte by byte is served like any other."""
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        for each in connect_packet("slow", version=version):
            client.send(bytes([each]))
        assert client.expect_kind(2).body[1] == 0
        for each in subscribe_packet("slow", options=0, version=version):
            client.send(bytes([each]))
        client.expect_kind(9)
        published = publish_packet("slow", b"at last", version=version)
        for each in published:
            client.send(bytes([each]))
        client.expect(published)


def test_everything_at_once(daemon: Daemon) -> None:
    """CONNECT and what follows may come in one segment, before CONNACK was sent (4.9)."""
    with under_attack(daemon) as witness, RawClient(daemon.ports["mqtt"]) as client:
        client.send(
            connect_packet("eager")
            + subscribe_packet("eager", options=1)
            + publish_packet("eager", b"x", qos=1)
            + b"\xc0\x00"
        )
        assert client.read_packet().kind == 2
        assert sorted(client.read_packet().kind for _ in range(4)) == [3, 4, 9, 13]
        round_trip(witness)
