"""A session by itself: its window, its queue, what is sent again, what is given back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ganglion.broker.core.access import Client
from ganglion.broker.core.journal import Journal
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import PLAIN_TERMS, Message, Terms
from ganglion.broker.core.router import Outlet
from ganglion.broker.core.sessions import RELEASED, Session
from ganglion.broker.core.statistics import Statistics, Traffic
from ganglion.broker.core.timers import Timers
from ganglion.broker.store.memory import MemoryStore

LIMITS = Limits(queued_messages_per_session_max=10)


@dataclass(eq=False)
class FakeSink:
    """A connection that keeps what it is given."""

    congested: bool = False
    carries_requests: bool = True
    sent: list[tuple[int, bytes, int, bool]] = field(default_factory=list)
    """Packet identifier, payload, QoS, DUP."""
    released: list[int] = field(default_factory=list)
    too_large: bytes | None = None
    nowhere: tuple[Outlet, Traffic] | None = None

    def send(self, packet_id: int, message: Message, terms: Terms, duplicate: bool) -> bool:
        """Send the message."""
        if message.payload == self.too_large:
            return False
        self.sent.append((packet_id, message.payload, terms.qos, duplicate))
        return True

    def send_run(self, packet_id: int, messages: Sequence[Message], terms: Terms) -> bool:
        """Send them, unless one is too large."""
        if any(message.payload == self.too_large for message in messages):
            return False
        for place, message in enumerate(messages):
            self.sent.append((packet_id + place, message.payload, terms.qos, False))
        return True

    def send_release(self, packet_id: int) -> None:
        """Send PUBREL."""
        self.released.append(packet_id)

    def outlet(self, form: int) -> tuple[Outlet, Traffic] | None:
        """Nowhere."""
        assert form >= 0
        return self.nowhere

    def taken_over(self) -> None:
        """Not in these tests."""
        raise AssertionError

    access_changed = drain = taken_over

    def expel(self, rule: str) -> None:
        """Not in these tests."""
        raise AssertionError(rule)


class Fixture:
    """A session with its journal."""

    def __init__(self, expiry_s: int = 0, window: int = 4, limits: Limits = LIMITS) -> None:
        self.timers = Timers()
        self.statistics = Statistics()
        self.store = MemoryStore()
        self.journal = Journal(self.store, self.timers, limits, self.statistics, 0.0)
        self.session = Session(Client("c", None, "127.0.0.1", None), self.journal, expiry_s)
        self.session.window = window
        if expiry_s:
            self.session.make_durable()
        self.sink = FakeSink()

    def recorded(self) -> list[bytes]:
        """The payloads that a restart would find, in order."""
        assert self.session.backlog is not None
        return [each.message.payload for each in self.session.backlog.browse()]

    def connect(self) -> None:
        """A new connection has the session."""
        self.sink = FakeSink()
        self.session.resume(self.sink)

    def deliver(self, *payloads: bytes, qos: int = 1) -> None:
        """Messages for the session, and the end of the tick."""
        for payload in payloads:
            self.session.deliver(Message("t", payload, qos), PLAIN_TERMS[qos])
        self.journal.commits.flush()

    def payloads(self) -> list[bytes]:
        """What was sent."""
        return [payload for _, payload, _, _ in self.sink.sent]


@pytest.mark.parametrize("expiry_s", [0, 60])
def test_the_window(expiry_s: int) -> None:
    """So many are on the way; the next goes when one is acknowledged, in order (4.9)."""
    fixture = Fixture(expiry_s, window=2)
    fixture.connect()
    fixture.deliver(b"1", b"2", b"3", b"4")
    assert fixture.payloads() == [b"1", b"2"]
    session = fixture.session
    assert session.acknowledged(fixture.sink.sent[0][0])
    session.pump()
    assert fixture.payloads() == [b"1", b"2", b"3"]
    assert not session.acknowledged(999)
    assert not session.completed(fixture.sink.sent[1][0])


def test_what_is_too_large_is_skipped() -> None:
    """A message that the client can never take frees its place at once (3.1.2-25)."""
    fixture = Fixture(window=1)
    fixture.connect()
    fixture.sink.too_large = b"big"
    fixture.deliver(b"big", b"1", b"big", b"2")
    assert fixture.payloads() == [b"1"]
    fixture.session.acknowledged(fixture.sink.sent[0][0])
    fixture.session.pump()
    assert fixture.payloads() == [b"1", b"2"]


def test_readiness() -> None:
    """Ready, busy by window, queue or congestion, away, or unable (4.8.2)."""
    fixture = Fixture(expiry_s=60, window=1)
    session = fixture.session
    assert [session.readiness(qos) for qos in (0, 1, 2)] == [3, 2, 2]
    fixture.connect()
    assert [session.readiness(qos) for qos in (0, 1, 2)] == [0, 0, 0]
    fixture.deliver(b"1")
    assert [session.readiness(qos) for qos in (0, 1, 2)] == [0, 1, 1]
    fixture.sink.congested = True
    assert [session.readiness(qos) for qos in (0, 1, 2)] == [1, 1, 1]
    transient = Fixture(expiry_s=0).session
    assert [transient.readiness(qos) for qos in (0, 1, 2)] == [3, 3, 3]


def test_take_back() -> None:
    """What is wanted is removed, in order, from the way and from the queue; the rest stays."""
    fixture = Fixture(expiry_s=60, window=2)
    fixture.connect()
    fixture.deliver(b"a1", b"b1", b"a2", b"b2")
    taken = fixture.session.take_back(
        lambda delivery: delivery[0].payload.startswith(b"a"), all_of_it=False
    )
    assert [each[0].payload for each in taken] == [b"a1", b"a2"]
    fixture.session.pump()
    assert fixture.payloads() == [b"a1", b"b1", b"b2"]
    fixture.journal.commits.flush()
    assert fixture.recorded() == [b"b1", b"b2"]


def test_released_messages_are_not_given_back() -> None:
    """After PUBREC the client has the message: only PUBCOMP ends it (4.3.3)."""
    fixture = Fixture(expiry_s=60)
    fixture.connect()
    fixture.deliver(b"x", qos=2)
    packet_id = fixture.sink.sent[0][0]
    assert fixture.session.received_by_client(packet_id)
    assert fixture.session.take_back(lambda _: True, all_of_it=True) == []
    assert fixture.session.inflight == {packet_id: RELEASED}
    assert fixture.session.completed(packet_id)


class SessionMachine(RuleBasedStateMachine):
    """A durable session with a client that acknowledges when it likes and comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.fixture = Fixture(expiry_s=60)
        self.published = 0
        self.expected: list[bytes] = []
        """Accepted QoS 2 messages, in order."""
        self.delivered: list[bytes] = []
        """What the client took, each once."""
        self.held: set[int] = set()
        self.seen = 0
        self.released_seen = 0
        self.unanswered: list[int] = []
        self.to_complete: list[int] = []

    @initialize(window=st.integers(1, 4))
    def begin(self, window: int) -> None:
        """The first connection."""
        self.fixture.session.window = window

    @property
    def connected(self) -> bool:
        """Whether a connection has the session."""
        return self.fixture.session.sink is not None

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        """Messages arrive."""
        for _ in range(count):
            self.published += 1
            payload = b"%d" % self.published
            before = self.fixture.statistics.dropped["session queue is full"]
            self.fixture.deliver(payload, qos=2)
            if self.fixture.statistics.dropped["session queue is full"] == before:
                self.expected.append(payload)

    @rule(window=st.integers(1, 4))
    @precondition(lambda self: not self.connected)
    def connect(self, window: int) -> None:
        """The client comes back, perhaps with another window."""
        self.fixture.session.window = window
        self.seen = self.released_seen = 0
        self.unanswered = []
        self.to_complete = []
        self.fixture.connect()
        self.fixture.journal.commits.flush()

    @rule()
    @precondition(lambda self: self.connected)
    def disconnect(self) -> None:
        """The connection breaks."""
        self.fixture.session.disconnected()

    @rule()
    @precondition(lambda self: self.connected)
    def stop_or_go_on_reading(self) -> None:
        """The client stops reading, or reads again."""
        self.fixture.sink.congested = not self.fixture.sink.congested
        if not self.fixture.sink.congested:
            self.fixture.session.pump()
            self.fixture.journal.commits.flush()

    def _read(self) -> Iterator[None]:
        sink = self.fixture.sink
        for packet_id, payload, _, _ in sink.sent[self.seen :]:
            if packet_id not in self.held:
                self.held.add(packet_id)
                self.delivered.append(payload)
            self.unanswered.append(packet_id)
        self.seen = len(sink.sent)
        self.to_complete += sink.released[self.released_seen :]
        self.released_seen = len(sink.released)
        yield

    @rule(count=st.integers(1, 5))
    @precondition(lambda self: self.connected)
    def acknowledge(self, count: int) -> None:
        """PUBREC for some of what came, in order."""
        list(self._read())
        for packet_id in self.unanswered[:count]:
            assert self.fixture.session.received_by_client(packet_id)
            self.to_complete.append(packet_id)
        del self.unanswered[:count]
        self.fixture.session.pump()
        self.fixture.journal.commits.flush()

    @rule(count=st.integers(1, 5))
    @precondition(lambda self: self.connected)
    def complete(self, count: int) -> None:
        """PUBCOMP for some of what was released."""
        list(self._read())
        for packet_id in self.to_complete[:count]:
            self.held.discard(packet_id)
            assert self.fixture.session.completed(packet_id)
        del self.to_complete[:count]
        self.fixture.session.pump()
        self.fixture.journal.commits.flush()

    @invariant()
    def exactly_once_in_order(self) -> None:
        """The client has a beginning of what was accepted, each message once."""
        list(self._read())
        assert self.delivered == self.expected[: len(self.delivered)]

    @invariant()
    def nothing_is_lost(self) -> None:
        """What was accepted and not delivered is in the session; the figures are right."""
        session = self.fixture.session
        on_the_way = [each[0].payload for each in session.inflight.values() if each is not None]
        waiting = [each for each in self.fixture.recorded() if each not in on_the_way]
        assert len(waiting) <= LIMITS.queued_messages_per_session_max
        missing = self.expected[len(self.delivered) :]
        assert [each for each in on_the_way + waiting if each in missing] == missing

    @invariant()
    def the_window_holds(self) -> None:
        """No more is on the wire of this connection than the window allows."""
        if self.connected:
            open_flows = set(self.unanswered) | set(self.to_complete)
            assert len(open_flows) <= self.fixture.session.window

    @invariant()
    def records_are_those_of_the_session(self) -> None:
        """What is recorded is what is there, and nothing else."""
        session = self.fixture.session
        self.fixture.journal.commits.flush()
        on_the_way = [each[2] for each in session.inflight.values() if each is not None]
        assert session.backlog is not None
        numbers = [each.number for each in session.backlog.browse()]
        assert numbers == sorted(set(numbers))
        assert set(on_the_way) <= set(numbers)
        assert session.backlog.count == len(numbers)


TestAnySession = pytest.mark.slow(SessionMachine.TestCase)
TestAnySession.settings = settings(max_examples=80, stateful_step_count=50)
