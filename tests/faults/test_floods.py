"""Too much of what is allowed: connections, levels, properties, retained messages, sessions."""

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.conformance.decoder import decode
from tests.faults.conftest import MIB, round_trip, under_attack
from tests.support import (
    Closed,
    Daemon,
    RawClient,
    connect_packet,
    frame,
    publish_packet,
    start_daemon,
    subscribe_packet,
    text,
    until,
    varint,
)


def _is_served(port: int, source: str | None = None) -> bool:
    with RawClient(port, source=source) as client:
        try:
            client.send(connect_packet("probe"))
            return client.read_packet().raw == b"\x20\x02\x00\x00"
        except (Closed, OSError):
            return False


def test_connections_in_total() -> None:
    """Connections above the limit are closed; when there is room again, new ones are served."""
    with (
        start_daemon("--limit", "connections_max=20") as daemon,
        under_attack(daemon),
    ):
        port = daemon.ports["mqtt"]
        with ExitStack() as stack:
            for number in range(19):
                stack.enter_context(RawClient(port)).join(f"flood{number}")
            for _ in range(20):
                assert not _is_served(port)
        until(lambda: _is_served(port), what="a connection after the flood")


def test_connections_of_one_address() -> None:
    """One address cannot take all connections; others are served meanwhile."""
    with (
        start_daemon("--limit", "connections_per_address_max=10") as daemon,
        under_attack(daemon),
    ):
        port = daemon.ports["mqtt"]
        with ExitStack() as stack:
            for number in range(10):
                stack.enter_context(RawClient(port, source="127.0.0.2")).join(f"flood{number}")
            assert not _is_served(port, "127.0.0.2")
            assert _is_served(port, "127.0.0.3")
        until(lambda: _is_served(port, "127.0.0.2"), what="a connection after the flood")


def test_connections_come_and_go(daemon: Daemon) -> None:
    """Thousands of connections that end at every stage leave nothing behind."""
    port = daemon.ports["mqtt"]
    connect = connect_packet("churn", version=5, will=("will", b"x", 0, False))
    with under_attack(daemon, growth_bytes=12 * MIB):
        descriptors = daemon.descriptors()
        for number in range(2000):
            with RawClient(port) as client:
                client.send(connect[: (0, 1, 9, len(connect))[number % 4]])
                if number % 4 == 3:
                    client.expect_kind(2)
                if number % 2:
                    client.reset()
        until(lambda: daemon.descriptors() <= descriptors + 2, what="the descriptors' release")


def test_topic_depth() -> None:
    """Topics and filters of too many levels are refused with 0x90 and 0x8F (3.4.2.1, 3.9.3)."""
    with start_daemon() as daemon, under_attack(daemon):
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("deep", version=5)
            for levels in (129, 1000, 2000):
                bomb = "/".join("a" * levels)
                client.send(subscribe_packet(bomb, version=5))
                assert client.expect_kind(9).body[-1] == 0x8F
                client.send(publish_packet(bomb, b"", qos=1, version=5))
                packet = client.read_packet()
                assert packet.kind == 4
                assert packet.body[2] == 0x90
            client.ping()
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("deep", version=5)
            # QoS 0 has no answer that could refuse it: it is dropped, or ends the connection.
            client.send(publish_packet("/" * 4000, b"", version=5) + b"\xc0\x00")
            packet = client.read_packet()
            assert packet.kind == 13 or (packet.kind, packet.body[0]) == (14, 0x90)


def test_deepest_topics_cost_little(daemon: Daemon) -> None:
    """What the broker remembers of topics that it has seen is bounded, however deep they are."""
    with (
        under_attack(daemon, growth_bytes=64 * MIB),
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("deep")
        for number in range(6000):
            client.send(publish_packet("/".join([str(number)] * 128), b""))
        client.ping()


def test_wildcard_bomb(daemon: Daemon) -> None:
    """Filters whose every level is a name or ``+`` all match at once, and others are served."""
    levels = 11
    filters = [
        "/".join("+" if number >> level & 1 else "a" for level in range(levels))
        for number in range(1 << levels)
    ]
    topic = "/".join("a" * levels)
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        client.join("bomb")
        for start in range(0, len(filters), 256):
            client.subscribe(*filters[start : start + 256])
        with RawClient(daemon.ports["mqtt"]) as publisher:
            publisher.join("publisher")
            for _ in range(20):
                publisher.send(publish_packet(topic, b"x"))
            publisher.ping()
        for _ in range(20):
            client.expect(publish_packet(topic, b"x"))


def _user_properties(count: int) -> bytes:
    return (b"\x26" + text("n") + text("v")) * count


def test_property_flood(daemon: Daemon) -> None:
    """More properties than the limit are refused with 0x97, in PUBLISH and CONNECT alike."""
    with under_attack(daemon):
        for count in (257, 20_000, 500_000):
            with RawClient(daemon.ports["mqtt"]) as client:
                client.join("properties", version=5)
                client.send(publish_packet("t", b"", version=5, properties=_user_properties(count)))
                packets = client.read_to_end()
                assert [packet.kind for packet in packets] == [14]
                assert packets[0].body[0] == 0x97
        with RawClient(daemon.ports["mqtt"]) as client:
            properties = _user_properties(257)
            client.send(connect_packet("properties", version=5, properties=properties))
            packets = client.read_to_end()
            assert [packet.kind for packet in packets] in ([], [2])
            assert all(packet.body[1] == 0x97 for packet in packets)


def test_as_many_properties_as_allowed(daemon: Daemon) -> None:
    """The limit itself is allowed, and all properties arrive in their order (3.3.2-18)."""
    properties = b"".join(b"\x26" + text("n") + text(str(number)) for number in range(256))
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        client.join("properties", version=5)
        client.subscribe("t", version=5)
        packet = publish_packet("t", b"x", version=5, properties=properties)
        client.send(packet)
        client.expect(packet)


def test_retained_flood() -> None:
    """Retained messages above their limit are refused with 0x97; those that are there stay."""
    with (
        start_daemon("--limit", "retained_messages_max=50") as daemon,
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("retainer", version=5)
        answers: list[int] = []
        for number in range(200):
            topic = f"kept/{number}"
            client.send(publish_packet(topic, b"x", qos=1, retain=True, version=5))
            body = client.expect_kind(4).body
            answers.append(body[2] if len(body) > 2 else 0)
        assert all(code < 0x80 for code in answers[:50])
        assert set(answers[50:]) == {0x97}
        # A topic that is kept already may change, and removing one makes room for another.
        client.send(publish_packet("kept/0", b"y", qos=1, retain=True, version=5))
        assert client.expect_kind(4).body[2:3] in (b"", b"\x00", b"\x10")
        client.send(publish_packet("kept/1", b"", qos=1, retain=True, version=5))
        client.expect_kind(4)
        client.send(publish_packet("kept/new", b"z", qos=1, retain=True, version=5))
        assert client.expect_kind(4).body[2:3] in (b"", b"\x00", b"\x10")
        with RawClient(daemon.ports["mqtt"]) as reader:
            reader.join("reader")
            reader.subscribe("kept/#")
            topics = {reader.expect_kind(3).body[2:-1] for _ in range(50)}
            assert len(topics) == 50
            reader.ping()


def test_retained_bytes() -> None:
    """The bytes of retained messages have a limit of their own."""
    with (
        start_daemon("--limit", "retained_bytes_max=1000000") as daemon,
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("retainer", version=5)
        accepted = 0
        for number in range(200):
            packet = publish_packet(f"kept/{number}", bytes(100_000), qos=1, retain=True, version=5)
            client.send(packet)
            body = client.expect_kind(4).body
            if len(body) <= 2 or body[2] < 0x80:
                accepted += 1
            else:
                assert body[2] == 0x97
        assert 9 <= accepted <= 10


def test_subscription_flood() -> None:
    """A client gets as many subscriptions as the limit says; more are refused with 0x97."""
    with (
        start_daemon("--limit", "subscriptions_per_client_max=100") as daemon,
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("subscriber", version=5)
        codes = b""
        for first in range(0, 150, 15):
            filters = (f"f/{each}" for each in range(first, first + 15))
            client.send(subscribe_packet(*filters, version=5))
            codes += client.expect_kind(9).body[-15:]
        assert codes == bytes(100) + b"\x97" * 50
        # One that is there already may be renewed.
        client.send(subscribe_packet("f/0", options=1, version=5))
        assert client.expect_kind(9).body[-1] == 1


def test_session_flood() -> None:
    """Sessions that outlive their connections have a limit; a client over it is told 0x97."""
    expiry = b"\x11" + (3600).to_bytes(4, "big")
    with (
        start_daemon("--limit", "sessions_max=20") as daemon,
        under_attack(daemon),
    ):
        codes: list[int] = []
        for number in range(40):
            with RawClient(daemon.ports["mqtt"]) as client:
                client.send(connect_packet(f"s{number}", version=5, clean=False, properties=expiry))
                codes.append(client.expect_kind(2).body[1])
        accepted = codes.count(0)
        assert codes == [0] * accepted + [0x97] * (40 - accepted)
        assert 15 <= accepted <= 20
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("s0", version=5, clean=False, properties=expiry)


@pytest.mark.parametrize("qos", [1, 2])
def test_receive_maximum(daemon: Daemon, qos: int) -> None:
    """A client may have as many messages open as announced; over it, it gets 0x93 (3.3.4-9).

    QoS 2 messages stay open until PUBREL. QoS 1 messages are acknowledged as they come, so that the
    broker may, and need not, notice that one more was sent before the first PUBACK.
    """
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        answer = client.join("sender", version=5)
        announced = 1024
        assert (0x21, announced) in decode(answer.raw, 5).properties
        flood = [
            publish_packet("t", b"", qos=qos, packet_id=number, version=5)
            for number in range(1, announced + 2)
        ]
        client.send(b"".join(flood[:-1]))
        for _ in flood[:-1]:
            client.expect_kind(4 if qos == 1 else 5)
        client.ping()
        if qos == 2:
            client.send(flood[-1])
            assert client.expect_kind(14).body[0] == 0x93
            client.expect_closed()


def _large_properties(size_bytes: int) -> bytes:
    return (b"\x26" + text("n") + text("v" * 50_000)) * (size_bytes // 50_000)


def test_retained_properties() -> None:
    """Properties are part of what a retained message costs: they count towards its limit."""
    with (
        start_daemon("--limit", "retained_bytes_max=8000000") as daemon,
        under_attack(daemon, growth_bytes=48 * MIB),
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("retainer", version=5)
        properties = _large_properties(1_000_000)
        for number in range(60):
            packet = publish_packet(
                f"kept/{number}", b"x", qos=1, retain=True, version=5, properties=properties
            )
            client.send(packet)
            client.expect_kind(4)


def test_retained_topics() -> None:
    """So are topics: retained messages of one byte under long, deep topics are bounded too."""
    with (
        start_daemon("--limit", "retained_bytes_max=1000000") as daemon,
        under_attack(daemon, growth_bytes=48 * MIB),
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("retainer")
        for number in range(3000):
            topic = "/".join([f"{number:030}"] * 128)
            client.send(publish_packet(topic, b"x", retain=True))
        client.ping()


def test_queued_properties() -> None:
    """Properties count towards what waits for a session, as payloads do."""
    with (
        start_daemon("--limit", "queued_bytes_per_session_max=8000000") as daemon,
        under_attack(daemon, growth_bytes=48 * MIB),
        RawClient(daemon.ports["mqtt"]) as sender,
    ):
        with RawClient(daemon.ports["mqtt"]) as away:
            away.join("away", version=5, clean=False, properties=b"\x11\x00\x00\x02\x58")
            away.subscribe("t", options=1, version=5)
        sender.join("sender", version=5)
        properties = _large_properties(1_000_000)
        for _ in range(60):
            sender.send(publish_packet("t", b"x", qos=1, version=5, properties=properties))
            sender.expect_kind(4)


@pytest.mark.parametrize("version", [4, 5])
def test_dollar_topics(daemon: Daemon, version: int) -> None:
    """Nobody can publish as if he were the broker, and wildcards do not show $-topics (4.7.2-1)."""
    with (
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as everything,
        RawClient(daemon.ports["mqtt"]) as system,
    ):
        everything.join("everything")
        everything.subscribe("#", "+/broker/fake")
        system.join("system")
        system.subscribe("$SYS/broker/fake", "$SYS/fake/#")
        for topic in ("$SYS/broker/fake", "$SYS/fake/a", "$SYS", "$share/group/t", "$other/t"):
            with RawClient(daemon.ports["mqtt"]) as client:
                client.join("liar", version=version)
                client.send(publish_packet(topic, b"lie", qos=1, retain=True, version=version))
                try:
                    packet = client.read_packet()
                except Closed:
                    continue
                if version == 5 and topic.startswith("$SYS"):
                    assert packet.kind in (4, 14)
                    code = packet.body[2] if packet.kind == 4 else packet.body[0]
                    assert code in (0x87, 0x90), f"{topic}: {packet.raw.hex(' ')}"
        system.ping()
        everything.ping()
        with RawClient(daemon.ports["mqtt"]) as later:
            later.join("later")
            later.subscribe("$SYS/broker/fake", "$SYS/fake/#", "$SYS/broker/version")
            assert later.expect_kind(3).body[2:].startswith(b"$SYS/broker/version")
            later.ping()


def test_topic_alias_flood(daemon: Daemon) -> None:
    """An alias above the announced maximum ends the connection with 0x94 (3.3.2-9)."""
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        client.join("aliases", version=5)
        for alias in range(1, 257):
            properties = b"\x23" + alias.to_bytes(2, "big")
            client.send(publish_packet("a" * 4000, b"", version=5, properties=properties))
        client.ping()
        client.send(publish_packet("a", b"", version=5, properties=b"\x23\x01\x01"))
        packets = client.read_to_end()
        assert [packet.kind for packet in packets] == [14]
        assert packets[0].body[0] == 0x94


def test_rate() -> None:
    """A client that sends more than its rate is not read until its second is over.

    Nothing of it is lost, and a client that keeps to the rate does not notice.
    """
    with (
        start_daemon("--limit", "receive_messages_per_s_max=400") as daemon,
        under_attack(daemon) as witness,
        RawClient(daemon.ports["mqtt"]) as observer,
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        observer.join("observer")
        observer.subscribe("fast")
        client.join("fast")
        begin = time.monotonic()
        for first in (0, 400, 800):
            batch = range(first, first + 400)
            client.send(b"".join(publish_packet("fast", b"%04d" % each) for each in batch))
            for each in batch:
                assert observer.expect_kind(3).body[-4:] == b"%04d" % each
            round_trip(witness)
        assert time.monotonic() - begin > 0.9


def test_many_pings(daemon: Daemon) -> None:
    """A megabyte of empty packets in one write is read as fast as it comes, and answered."""
    with under_attack(daemon, growth_bytes=32 * MIB), RawClient(daemon.ports["mqtt"]) as client:
        client.join("pings")
        client.send(b"\xc0\x00" * 50_000)
        for _ in range(50_000):
            client.expect_kind(13)


def test_unsubscribe_flood(daemon: Daemon) -> None:
    """Thousands of filters in one UNSUBSCRIBE get as many codes (3.11.3)."""
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as client:
        client.join("unsubscriber", version=5)
        filters = b"".join(text(f"f/{each}") for each in range(10_000))
        client.send(frame(0xA2, b"\x00\x01" + varint(0) + filters))
        assert client.expect_kind(11).body[3:] == b"\x11" * 10_000


@pytest.mark.parametrize("qos", [0, 1])
def test_refusals_do_not_flood_the_log(qos: int) -> None:
    """Each refusal is counted, but the log tells of no more than it can hold."""
    config = """
        [[rules]]
        effect = "deny"
        action = "publish"
        topics = ["denied/#"]
    """
    with start_daemon(config=config) as daemon, under_attack(daemon):
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("denied", version=5)
            for number in range(5000):
                topic = f"denied/{number}"
                client.send(publish_packet(topic, b"", qos=qos, packet_id=1, version=5))
                if qos:
                    assert client.expect_kind(4).body[2] == 0x87
            client.ping(deadline_s=30)
        assert any("denied/" in line for line in daemon.lines)
        assert len(daemon.lines) < 500


def test_garbage_does_not_flood_the_log(daemon: Daemon) -> None:
    """Connections that end in protocol errors are no way to fill the disk either."""
    with under_attack(daemon):
        for _ in range(2000):
            with RawClient(daemon.ports["mqtt"]) as client:
                client.send(b"\x00\x00")
                client.expect_closed()
        assert len(daemon.lines) < 500


@contextmanager
def _with_alice(folder: Path, *flags: str) -> Generator[Daemon]:
    """A daemon with a user whose hash is as dear as that of ``ganglion passwd``."""
    users = folder / "users"
    users.write_text(f"alice:{PasswordHasher().hash('right')}\n")
    users.chmod(0o600)
    config = f"""
        [access]
        users = "{users}"
        anonymous = true
        [[rules]]
        effect = "allow"
        action = "all"
        topics = ["#"]
    """
    with start_daemon(*flags, config=config) as daemon:
        yield daemon


def test_password_flood(tmp_path: Path) -> None:
    """Passwords are slow to verify; who sends many wrong ones does not hold up the others.

    Refusals may also say that the server is busy (0x89) or the client over its quota (0x97).
    """
    with (
        _with_alice(tmp_path, "--limit", "connect_timeout_s=60") as daemon,
        under_attack(daemon, growth_bytes=200 * MIB) as witness,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(RawClient(daemon.ports["mqtt"])) for _ in range(40)]
        for number, client in enumerate(clients):
            password = b"wrong%d" % number
            client.send(connect_packet(f"c{number}", version=5, user="alice", password=password))
        begin = time.monotonic()
        for _ in range(5):
            round_trip(witness)
        assert time.monotonic() - begin < 5
        for client in clients:
            assert client.expect_kind(2, deadline_s=60).body[1] in (0x86, 0x89, 0x97)
            client.expect_closed()
        with RawClient(daemon.ports["mqtt"]) as alice:
            alice.join("alice", version=5, user="alice", password=b"right")


def test_password_flood_beyond_the_deadline(tmp_path: Path) -> None:
    """Whose password was not verified in time learns that the server is busy (0x88, 0x89).

    He has sent CONNECT in time, so the answer that he waits for is CONNACK (3.1.4-4).
    """
    with (
        _with_alice(tmp_path, "--limit", "connect_timeout_s=1") as daemon,
        under_attack(daemon, growth_bytes=200 * MIB),
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(RawClient(daemon.ports["mqtt"])) for _ in range(60)]
        for number, client in enumerate(clients):
            password = b"wrong%d" % number
            client.send(connect_packet(f"c{number}", version=5, user="alice", password=password))
        codes = {client.expect_kind(2, deadline_s=60).body[1] for client in clients}
        assert codes <= {0x86, 0x88, 0x89, 0x97}
        assert codes != {0x86}
