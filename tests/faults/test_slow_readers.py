"""Peers that do not take what is meant for them."""

import time
from contextlib import ExitStack

import pytest

from tests.faults.conftest import MIB, round_trip, under_attack
from tests.support import Closed, Daemon, RawClient, publish_packet, start_daemon

_CHUNK = bytes(16_384)


def _publish_until_stuck(publisher: RawClient, topic: str, total_bytes: int, qos: int = 0) -> None:
    """Publish so much that no buffer of the kernel holds it for a peer that does not read."""
    for number in range(total_bytes // len(_CHUNK)):
        publisher.send(publish_packet(topic, _CHUNK, qos=qos, packet_id=number % 60_000 + 1))
        if qos:
            publisher.expect_kind(4)
    publisher.ping(deadline_s=30)


def test_slow_reader_at_qos_0(daemon: Daemon) -> None:
    """For a peer that does not read, QoS 0 is dropped above the limit; others get all of it."""
    with (
        under_attack(daemon, growth_bytes=24 * MIB) as witness,
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as slow,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        slow.join("slow", keep_alive_s=0)
        slow.subscribe("flood")
        publisher.join("publisher")
        _publish_until_stuck(publisher, "flood", 64 * MIB)
        round_trip(witness)
        # It is still a client: when it reads again it gets what was kept, and then what is new.
        came = 0
        slow.send(b"\xc0\x00")
        while slow.read_packet().kind != 13:
            came += 1
        assert 0 < came < 64 * MIB // len(_CHUNK)
        publisher.send(publish_packet("flood", b"fresh"))
        slow.expect(publish_packet("flood", b"fresh"))


def test_slow_reader_at_qos_1() -> None:
    """For a peer that does not read, QoS 1 waits in its session up to the limit of that."""
    with (
        start_daemon("--limit", "queued_bytes_per_session_max=4000000") as daemon,
        under_attack(daemon, growth_bytes=24 * MIB) as witness,
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as slow,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        slow.join("slow", keep_alive_s=0)
        slow.subscribe("flood", options=1)
        publisher.join("publisher")
        _publish_until_stuck(publisher, "flood", 48 * MIB, qos=1)
        round_trip(witness)


def test_many_slow_readers() -> None:
    """Each costs its own output buffer and no more: messages are shared between them."""
    with (
        start_daemon("--limit", "output_buffer_max_bytes=65536") as daemon,
        under_attack(daemon, growth_bytes=48 * MIB) as witness,
        ExitStack() as stack,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        for number in range(100):
            slow = RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096)
            stack.enter_context(slow)
            slow.join(f"slow{number}", keep_alive_s=0)
            slow.subscribe("flood")
        publisher.join("publisher")
        _publish_until_stuck(publisher, "flood", 16 * MIB)
        round_trip(witness)


def test_stalled_peer_is_closed() -> None:
    """A peer that takes no byte for the stalled timeout while output waits is closed."""
    with (
        start_daemon("--limit", "stalled_timeout_s=1") as daemon,
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as observer,
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as stalled,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        observer.join("observer")
        observer.subscribe("will")
        stalled.join("stalled", keep_alive_s=0, will=("will", b"gone", 0, False))
        stalled.subscribe("flood")
        publisher.join("publisher")
        _publish_until_stuck(publisher, "flood", 16 * MIB)
        observer.expect(publish_packet("will", b"gone"))


def test_peer_that_sends_but_never_reads(daemon: Daemon) -> None:
    """Answers to a peer that only sends do not pile up: it is no longer read, or closed."""
    with (
        under_attack(daemon, growth_bytes=24 * MIB),
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as client,
    ):
        client.join("deaf", version=5)
        client.socket.settimeout(1)
        flood = b"\xc0\x00" * 32_768
        try:
            for _ in range(400):
                client.send(flood)
        except (TimeoutError, ConnectionError):
            pass  # it is not read any more, or was closed: both protect the broker
        finally:
            client.socket.settimeout(10)


def test_echo_to_itself(daemon: Daemon) -> None:
    """A peer that publishes to itself and does not read cannot fill the broker."""
    with (
        under_attack(daemon, growth_bytes=24 * MIB),
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as client,
    ):
        client.join("echo", keep_alive_s=0)
        client.subscribe("echo")
        packet = publish_packet("echo", _CHUNK)
        for _ in range(2000):
            client.send(packet)
        client.send(b"\xc0\x00")
        while client.read_packet().kind != 13:
            pass


@pytest.mark.parametrize("version", [4, 5])
def test_takeover_of_a_stuck_connection(daemon: Daemon, version: int) -> None:
    """A new connection gets its session at once, although the old one does not read.

    The old one is closed (MQTT-3.1.4-3), and does not hold up the new one for the time that its
    output would need.
    """
    with (
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as old,
        RawClient(daemon.ports["mqtt"]) as publisher,
        RawClient(daemon.ports["mqtt"]) as new,
    ):
        old.join("same", version=version, clean=False, keep_alive_s=0)
        old.subscribe("flood", version=version)
        publisher.join("publisher")
        _publish_until_stuck(publisher, "flood", 16 * MIB)
        begin = time.monotonic()
        new.join("same", version=version, keep_alive_s=0)
        assert time.monotonic() - begin < 2
        new.subscribe("fresh", version=version)
        publisher.send(publish_packet("fresh", b"x"))
        new.expect_kind(3)
        # What was on its way to the old one may still come, the end must.
        old.read_to_end()


def test_takeover_of_a_healthy_connection(daemon: Daemon) -> None:
    """A MQTT 5 client that is taken over learns why: 0x8E (3.1.4-3)."""
    with (
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as old,
        RawClient(daemon.ports["mqtt"]) as new,
    ):
        old.join("same", version=5)
        new.join("same", version=5)
        assert old.expect_kind(14).body[0] == 0x8E
        old.expect_closed()
        new.ping()


def test_takeover_war(daemon: Daemon) -> None:
    """Two clients that take the same identifier from each other hundreds of times do no harm."""
    with under_attack(daemon, growth_bytes=8 * MIB):
        before = RawClient(daemon.ports["mqtt"])
        before.join("same", version=5)
        for _ in range(300):
            after = RawClient(daemon.ports["mqtt"])
            after.join("same", version=5)
            before.read_to_end()
            before.close()
            before = after
        before.ping()
        before.close()


def test_acknowledgements_never_come(daemon: Daemon) -> None:
    """A subscriber that reads but never acknowledges gets a window's worth and no more (4.9)."""
    with (
        under_attack(daemon),
        RawClient(daemon.ports["mqtt"]) as silent,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        silent.join("silent", version=5, properties=b"\x21\x00\x0a")
        silent.subscribe("t", options=1, version=5)
        publisher.join("publisher")
        for number in range(1, 101):
            publisher.send(publish_packet("t", b"x", qos=1, packet_id=number))
            publisher.expect_kind(4)
        for _ in range(10):
            assert silent.expect_kind(3).first == 0x32
        silent.ping()
        silent.send("40 02 00 01")
        assert silent.expect_kind(3).first == 0x32
        silent.ping()


def test_reset_while_it_is_written_to(daemon: Daemon) -> None:
    """Peers that break off in the middle of their output leave no trace."""
    with under_attack(daemon), RawClient(daemon.ports["mqtt"]) as publisher:
        publisher.join("publisher")
        descriptors = daemon.descriptors()
        for number in range(30):
            client = RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096)
            client.join(f"breaking{number}")
            client.subscribe("flood")
            for _ in range(20):
                publisher.send(publish_packet("flood", _CHUNK))
            client.reset()
        try:
            publisher.ping()
        except Closed:
            pytest.fail("the publisher was closed for the fault of others")
        assert daemon.descriptors() <= descriptors + 30
