"""What is remembered of producers, and for how long."""

import pytest

from ganglion.broker.core import producers as module
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.producers import Producers, TooManyProducers
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Kind
from ganglion.broker.store.memory import MemoryStore

HOUR_S = 3600


class Surroundings:
    """A store, its commits and a clock, and the producers in them."""

    def __init__(self, store: MemoryStore | None = None, now: float = 1000.0) -> None:
        self.store = MemoryStore() if store is None else store
        self.timers = Timers(now)
        self.commits = Commits(self.store, self.timers, Statistics())
        self.producers = Producers(self.store, self.commits, self.timers, 5000.0)

    def again(self, after_s: float = 0.0) -> "Surroundings":
        """The node was started anew."""
        return Surroundings(self.store, self.timers.now + after_s)

    def records(self) -> int:
        """How many are on disk."""
        self.commits.flush()
        return len(list(self.store.scan(Kind.PRODUCER)))


def test_numbers_ascend() -> None:
    """What is not above the last one was taken, unless it was refused."""
    around = Surroundings()
    producer = around.producers.open("ada", "one", around)
    assert not producer.was_taken(5)
    producer.taken(5, durable=False)
    producer.refused(6)
    assert [producer.was_taken(number) for number in (4, 5, 6, 7)] == [True, True, False, False]
    producer.taken(6, durable=False)
    assert producer.was_taken(6)
    assert producer.last == 6


def test_a_batch_refused_half_way() -> None:
    """It is known how much of it was taken, until it is."""
    around = Surroundings()
    producer = around.producers.open(None, "one", around)
    producer.refused(3, 17)
    assert producer.part_taken(3) == 17
    producer.taken(3, durable=False)
    assert producer.part_taken(3) == 0


def test_what_is_durable_is_recorded() -> None:
    """Once a commit, however much came; what is transient is not."""
    around = Surroundings()
    producer = around.producers.open("ada", "one", around)
    producer.taken(1, durable=False)
    assert around.records() == 0
    for number in range(2, 100):
        producer.taken(number, durable=True)
    producer.refused(100, 7, durable=True)
    assert around.records() == 1
    again = around.again().producers.open("ada", "one", around)
    assert again.last == 100
    assert again.part_taken(100) == 7
    assert not again.was_taken(100)


def test_users_have_their_own() -> None:
    """The same name of another user is another producer."""
    around = Surroundings()
    around.producers.open("ada", "one", around).taken(5, durable=True)
    assert around.producers.open("bob", "one", around).last == 0
    assert around.producers.open(None, "one", around).last == 0


@pytest.mark.parametrize("restarts", [False, True])
def test_they_are_forgotten(restarts: bool) -> None:
    """An hour after the last connection, also when that was before a restart."""
    around = Surroundings()
    producer = around.producers.open(None, "one", around)
    producer.taken(1, durable=True)
    around.timers.run(around.timers.now + 2 * HOUR_S)
    assert len(around.producers) == 1  # it is connected
    producer.taken(2, durable=True)
    around.producers.leave(producer, around)
    assert around.records() == 1
    if restarts:
        around = around.again(after_s=10)
    around.timers.run(around.timers.now + HOUR_S - 20)
    assert len(around.producers) == 1
    around.timers.run(around.timers.now + 2 * HOUR_S)
    assert len(around.producers) == 0
    assert around.records() == 0


def test_one_that_comes_back_stays() -> None:
    """The hour begins anew."""
    around = Surroundings()
    producer = around.producers.open(None, "one", around)
    around.producers.leave(producer, around)
    around.timers.run(around.timers.now + HOUR_S / 2)
    assert around.producers.open(None, "one", self_owner := object()) is producer
    around.producers.leave(producer, around)  # an earlier connection: not its any more
    assert producer.owner is self_owner
    around.timers.run(around.timers.now + HOUR_S)
    assert len(around.producers) == 1


def test_they_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there may be is refused; a known one is not."""
    monkeypatch.setattr(module, "_PRODUCERS_MAX", 2)
    around = Surroundings()
    around.producers.open(None, "one", around)
    around.producers.open(None, "two", around)
    around.producers.open(None, "one", around)
    with pytest.raises(TooManyProducers):
        around.producers.open(None, "three", around)


def test_refused_ones_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes, and counts as taken then: a client has had its answer long ago."""
    monkeypatch.setattr(module, "_REFUSED_MAX", 3)
    around = Surroundings()
    producer = around.producers.open(None, "one", around)
    for number in range(1, 6):
        producer.refused(number)
    assert [producer.was_taken(number) for number in range(1, 6)] == [
        True,
        True,
        False,
        False,
        False,
    ]
