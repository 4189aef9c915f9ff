"""The open batch and its effects: nothing leaves before it is durable."""

from collections.abc import Callable

import pytest

from ganglion.broker.core.commits import Commits
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Batch, Kind
from ganglion.broker.store.memory import MemoryStore


class HeldStore(MemoryStore):
    """A store whose commits complete when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Batch, Callable[[], None]]] = []

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Hold the batch."""
        self.held.append((batch, done))

    def release(self) -> None:
        """Complete the first commit that is held."""
        batch, done = self.held.pop(0)
        super().commit(batch, done)


def test_without_changes_effects_run_at_once() -> None:
    """When nothing is recorded and nothing under way, there is nothing to wait for."""
    commits = Commits(MemoryStore(), Timers(), Statistics())
    seen: list[str] = []
    commits.after_commit(lambda: seen.append("now"))
    assert seen == ["now"]


def test_effects_wait_for_the_commit() -> None:
    """An effect runs when everything recorded before it is durable, not at `flush`."""
    store = HeldStore()
    commits = Commits(store, Timers(), Statistics())
    seen: list[str] = []
    commits.put(Kind.RETAINED, b"k", b"v")
    commits.after_commit(lambda: seen.append("after"))
    assert seen == []
    commits.flush()
    assert seen == []
    assert list(store.scan(Kind.RETAINED)) == []
    store.release()
    assert seen == ["after"]
    assert list(store.scan(Kind.RETAINED)) == [(b"k", b"v")]


def test_effects_behind_a_commit_under_way_wait_for_it() -> None:
    """What is registered with nothing new recorded waits for the last commit under way."""
    store = HeldStore()
    commits = Commits(store, Timers(), Statistics())
    seen: list[str] = []
    commits.put(Kind.RETAINED, b"k", b"v")
    commits.flush()
    commits.after_commit(lambda: seen.append("waits"))
    assert seen == []
    store.release()
    assert seen == ["waits"]


def test_order() -> None:
    """Effects run in the order of registration, over several batches."""
    store = HeldStore()
    commits = Commits(store, Timers(), Statistics())
    seen: list[int] = []
    for number in range(6):
        if number % 2 == 0:
            commits.put(Kind.RETAINED, b"%d" % number, b"")
        commits.after_commit(lambda n=number: seen.append(n))  # type: ignore[misc]  # binds n
        if number % 3 == 2:
            commits.flush()
    while store.held:
        store.release()
        commits.flush()
    assert seen == list(range(6))


def test_changes_during_a_commit_go_together() -> None:
    """What is recorded while a commit is under way makes one batch, however many ticks it took."""
    store = HeldStore()
    commits = Commits(store, Timers(), Statistics())
    for number in range(5):
        commits.put(Kind.RETAINED, b"%d" % number, b"")
        commits.flush()
        assert len(store.held) == 1
    store.release()
    commits.flush()
    store.release()
    assert not store.held
    assert store.commit_number == 2
    assert len(list(store.scan(Kind.RETAINED))) == 5


@pytest.mark.parametrize("held", [False, True])
def test_effects_may_record_and_register(held: bool) -> None:
    """What an effect records is committed too, and what it registers runs behind it."""
    store = HeldStore() if held else MemoryStore()
    commits = Commits(store, Timers(), Statistics())
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        commits.after_commit(lambda: seen.append("behind it"))
        commits.put(Kind.RETAINED, b"two", b"")
        commits.after_commit(lambda: seen.append("after the second"))

    commits.put(Kind.RETAINED, b"one", b"")
    commits.after_commit(first)
    commits.after_commit(lambda: seen.append("second"))
    commits.flush()
    while isinstance(store, HeldStore) and store.held:
        store.release()
        commits.flush()
    assert sorted(key for key, _ in store.scan(Kind.RETAINED)) == [b"one", b"two"]
    assert seen == ["first", "second", "behind it", "after the second"]


def test_flush_without_changes_commits_nothing() -> None:
    """An idle tick costs no commit."""
    store = MemoryStore()
    commits = Commits(store, Timers(), Statistics())
    commits.flush()
    commits.after_commit(lambda: None)
    commits.flush()
    assert store.commit_number == 0


def test_many_changes_are_one_commit() -> None:
    """What a tick records is committed together (group commit)."""
    store = MemoryStore()
    commits = Commits(store, Timers(), Statistics())
    for number in range(100):
        commits.put(Kind.RETAINED, b"%d" % number, b"")
    commits.delete(Kind.RETAINED, b"7")
    commits.flush()
    assert store.commit_number == 1
    assert len(list(store.scan(Kind.RETAINED))) == 99


def test_an_effect_that_fails_costs_only_itself() -> None:
    """The effects behind one that raises run all the same, and the error is not lost."""
    commits = Commits(MemoryStore(), Timers(), Statistics())
    seen: list[str] = []

    def fails() -> None:
        raise RuntimeError("ours")

    commits.put(Kind.RETAINED, b"k", b"v")
    commits.after_commit(fails)
    commits.after_commit(lambda: seen.append("behind"))
    with pytest.raises(RuntimeError, match="ours"):
        commits.flush()
    assert seen == ["behind"]
    commits.put(Kind.RETAINED, b"k", b"w")
    commits.after_commit(lambda: seen.append("later"))
    commits.flush()
    assert seen == ["behind", "later"]


def test_how_long_commits_take_is_measured() -> None:
    """From the first record to its effects, and the part of that in which the store has it."""
    statistics, timers, store = Statistics(), Timers(), HeldStore()
    commits = Commits(store, timers, statistics)
    commits.put(Kind.RETAINED, b"a", b"1")
    timers.run(0.3)
    commits.put(Kind.RETAINED, b"b", b"1")
    commits.flush()
    timers.run(0.4)
    commits.put(Kind.RETAINED, b"c", b"1")  # waits for the first
    commits.flush()
    timers.run(1.0)
    store.release()
    commits.flush()
    timers.run(1.5)
    store.release()
    assert statistics.commit_s.total == pytest.approx(0.7 + 0.5)
    assert statistics.durable_delivery_s.total == pytest.approx(1.0 + 1.1)
    assert sum(statistics.commit_s.counts) == sum(statistics.durable_delivery_s.counts) == 2
