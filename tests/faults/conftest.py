"""What every attack has to leave behind: a broker that serves its other clients, and small.

`under_attack` surrounds an attack with a witness, a client that has done nothing wrong: its QoS 1
round trip works before and after, resident memory grows by no more than stated, and the broker has
logged no error of its own.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.support import BrokerProcess, Daemon, RawClient, publish_packet, start_daemon

__all__ = ["MIB", "Attack", "round_trip"]

MIB = 1024 * 1024

Attack = Callable[..., AbstractContextManager[RawClient]]


def round_trip(witness: RawClient, payload: bytes = b"still there?") -> None:
    """Publish with QoS 1 what the witness itself subscribes to; take it and the PUBACK."""
    witness.send(publish_packet("witness", payload, qos=1, packet_id=7))
    kinds: set[int] = set()
    while kinds != {3, 4}:
        packet = witness.read_packet()
        kinds.add(packet.kind)
        if packet.kind == 3:
            assert packet.body.endswith(payload)
            witness.send(b"\x40\x02" + packet.body[9:11])
        else:
            assert packet.kind == 4, f"the witness got {packet.raw[:40].hex(' ')}"
            assert packet.body[:2] == b"\x00\x07"


@contextmanager
def under_attack(daemon: BrokerProcess, *, growth_bytes: int = 24 * MIB) -> Generator[RawClient]:
    """Attack inside this context; afterwards the daemon must be well. Yields the witness."""
    with RawClient(daemon.ports["mqtt"]) as witness:
        witness.join("witness", keep_alive_s=0)
        witness.subscribe("witness", options=1)
        round_trip(witness)
        before = daemon.memory_bytes()
        yield witness
        round_trip(witness, b"after")
        witness.ping()
        grown = daemon.memory_bytes() - before
        assert grown <= growth_bytes, f"grew by {grown / MIB:.1f} MiB"
        bad = [each for each in daemon.events if each.get("level") in ("error", "critical")]
        assert not bad, bad[:3]
        assert "Traceback" not in daemon.log, daemon.log[-4000:]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon with its default limits."""
    with start_daemon() as process:
        yield process
