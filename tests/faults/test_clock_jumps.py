"""The wall clock jumps: while a node runs nothing depends on it, over a restart only what has to.

A daemon runs with libfaketime in front of its wall clock (not of its monotonic one), and the tests
set that clock forward and back by hours.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.crash import PUBLISH, acknowledgement, parse_publish, user_properties
from tests.support import Daemon, RawClient, RawPacket, publish_packet, start_daemon, text

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
HOUR_S = 3600
EXPIRY_OF_AN_HOUR = HOUR_S.to_bytes(4, "big")


class Clock:
    """The wall clock of the daemons that are started with it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
        }

    def set(self, hours: int) -> None:
        """Put it so many hours before or after the true time."""
        self._file.write_text(f"{hours * HOUR_S:+d}\n")


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A clock that a test can set."""
    assert LIBRARIES, "apt install faketime"
    return Clock(tmp_path)


@pytest.fixture
def node(tmp_path: Path, clock: Clock) -> Iterator[Daemon]:
    """A daemon with that clock."""
    with start_daemon("--data", str(tmp_path / "data"), env=clock.environment) as daemon:
        yield daemon


def user_property(name: str, value: str) -> bytes:
    """A user property of MQTT 5 (3.3.2.3.7)."""
    return b"\x26" + text(name) + text(value)


def publish(client: RawClient, topic: str, payload: bytes, properties: bytes = b"") -> None:
    """Publish with QoS 1 and take the acknowledgement."""
    client.send(
        publish_packet(topic, payload, qos=1, packet_id=7, version=5, properties=properties)
    )
    answer = client.expect_kind(4)
    assert answer.body[2:3] in (b"", b"\x00"), f"refused: {answer.raw.hex(' ')}"


def expect_nothing(client: RawClient) -> None:
    """Several ticks of the node go by, and nothing comes."""
    for _ in range(20):
        client.ping()


def take(client: RawClient) -> RawPacket:
    """The next message, acknowledged."""
    packet = client.expect_kind(PUBLISH)
    client.send(acknowledgement(4, parse_publish(packet, 5)[1]))
    return packet


def test_leases_and_delays_are_monotonic(node: Daemon, clock: Clock) -> None:
    """A lease of an hour does not end by a jump of two, and a delay of a moment is no longer."""
    port = node.ports["mqtt"]
    with RawClient(port) as holder, RawClient(port) as other:
        holder.join("holder", version=5)
        holder.subscribe("$queue/work?lease_s=3600", options=1, version=5)
        publish(holder, "$queue/other", b"")
        other.join("other", version=5)
        publish(other, "$queue/work", b"leased")
        assert parse_publish(holder.expect_kind(PUBLISH), 5)[2] == b"leased"
        other.subscribe("$queue/work", options=1, version=5)
        clock.set(2)
        expect_nothing(other)
        clock.set(-2)
        expect_nothing(other)
        publish(other, "$queue/later", b"soon", user_property("x-delay-s", "0.2"))
        publish(other, "$queue/later", b"in an hour", user_property("x-delay-s", "3600"))
        other.subscribe("$queue/later", options=1, version=5)
        assert parse_publish(take(other), 5)[2] == b"soon"
        clock.set(2)
        expect_nothing(other)


def test_sessions_and_expiry_are_monotonic(node: Daemon, clock: Clock) -> None:
    """A session and a message that last an hour are there after a jump of two."""
    port = node.ports["mqtt"]
    with RawClient(port) as client:
        client.join("sleeper", version=5, clean=False, properties=b"\x11" + EXPIRY_OF_AN_HOUR)
        client.subscribe("news", options=1, version=5)
    with RawClient(port) as publisher:
        publisher.join("publisher", version=5)
        publish(publisher, "news", b"of an hour", b"\x02" + EXPIRY_OF_AN_HOUR)
        clock.set(2)
        publisher.ping()
    with RawClient(port) as client:
        answer = client.join("sleeper", version=5, clean=False)
        assert answer.body[0] == 1, "the session is gone"
        assert parse_publish(take(client), 5)[2] == b"of an hour"


def test_times_of_a_stream_never_go_back(tmp_path: Path, clock: Clock) -> None:
    """Records that come after the clock was set back, and a restart, are not older than others."""
    sequences: list[int] = []
    times: list[float] = []
    for hours in (2, -2):
        clock.set(hours)
        with (
            start_daemon("--data", str(tmp_path / "data"), env=clock.environment) as daemon,
            RawClient(daemon.ports["mqtt"]) as client,
        ):
            client.join("client", version=5)
            client.subscribe("$stream/log", options=1, version=5)
            for jump in (hours, hours + 1, hours - 1):
                clock.set(jump)
                publish(client, "$stream/log", b"")
                found = user_properties(take(client))
                sequences.append(int(found["x-sequence"]))
                times.append(float(found["x-time"]))
    assert sequences == [1, 2, 3, 4, 5, 6]
    assert times == sorted(times)


def test_a_restart_goes_by_the_wall_clock(tmp_path: Path, clock: Clock) -> None:
    """What was to last an hour is over after a restart two hours later by the clock."""
    data = ("--data", str(tmp_path / "data"))
    with (
        start_daemon(*data, env=clock.environment) as daemon,
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        client.join("client", version=5)
        publish(client, "$queue/later", b"in an hour", user_property("x-delay-s", "3600"))
        publish(client, "$queue/later", b"for an hour", b"\x02" + EXPIRY_OF_AN_HOUR)
        with RawClient(daemon.ports["mqtt"]) as sleeper:
            expiry = b"\x11" + EXPIRY_OF_AN_HOUR
            sleeper.join("sleeper", version=5, clean=False, properties=expiry)
            sleeper.send(b"\xe0\x00")
            sleeper.expect_closed()
    clock.set(2)
    with (
        start_daemon(*data, env=clock.environment) as daemon,
        RawClient(daemon.ports["mqtt"]) as client,
    ):
        assert client.join("sleeper", version=5, clean=False).body[0] == 0
        client.subscribe("$queue/later", options=1, version=5)
        assert parse_publish(take(client), 5)[2] == b"in an hour"
        expect_nothing(client)
