"""The contract of every store towards replicas: the feed, snapshots, and taking both over.

Whatever happens, a replica ends with the state of its source or is told to begin again: it never
misses a commit without a word.
"""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.broker.store import (
    Commit,
    CommitRefused,
    Delete,
    DeleteRange,
    FeedGone,
    Kind,
    Operation,
    Put,
    Store,
)
from tests.broker.store.stores import STORES, Core, apply, commit, commit_operations, contents

MIB = 1024 * 1024
DAY_S = 86_400.0


@pytest.fixture
def core() -> Iterator[Core]:
    """The core in which commits complete."""
    core = Core()
    yield core
    core.close()


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path, core: Core) -> Iterator[Store]:
    """An empty store of each sort."""
    store = STORES[request.param](tmp_path / "store", core)
    yield store
    store.close()
    assert core.fatal == []
    assert core.damages == []


@pytest.fixture(params=sorted(STORES))
def replica(request: pytest.FixtureRequest, tmp_path: Path, core: Core) -> Iterator[Store]:
    """Another empty store, of each sort."""
    store = STORES[request.param](tmp_path / "replica", core)
    yield store
    store.close()


def put(number: int, size_bytes: int = 10) -> Put:
    """One record of a given size."""
    return Put(Kind.BACKLOG, b"%06d" % number, bytes(size_bytes))


def numbers(store: Store, after: int) -> list[int]:
    """The numbers of the commits that are kept behind that one."""
    return [each.number for each in store.commits_after(after)]


def take_over(source: Store, replica: Store) -> None:
    """Load the replica with a snapshot of the source."""
    with source.snapshot() as snapshot:
        replica.load(snapshot.number, snapshot.epoch, snapshot.records)


# -- the feed ------------------------------------------------------------------------------------


def test_commits_come_back_as_they_were_made(store: Store, core: Core) -> None:
    """Every operation in its order, whatever it is; numbered without a gap, with the epoch."""
    made: list[list[Operation]] = [
        [
            Put(Kind.RETAINED, b"a", b"1"),
            Delete(Kind.RETAINED, b"a"),
            Put(Kind.RETAINED, b"a", b""),
        ],
        [],
        [
            DeleteRange(Kind.BACKLOG, b"", b"\xff" * 8),
            Put(Kind.BACKLOG, b"\xff", bytes(range(256))),
        ],
        [Put(kind, b"", b"value") for kind in Kind],
        [Delete(Kind.SESSION, b"not there")],
    ]
    store.attach_feed(MIB, DAY_S)
    for operations in made:
        commit_operations(store, core, *operations)
    expected = [Commit(n, 1, tuple(operations)) for n, operations in enumerate(made, 1)]
    for after in range(6):
        assert list(store.commits_after(after)) == expected[after:]


def test_the_feed_begins_with_the_next_commit(store: Store, core: Core) -> None:
    """What was committed before it was attached is not there, and asking for it says so."""
    commit_operations(store, core, put(1))
    store.attach_feed(MIB, DAY_S)
    assert numbers(store, 1) == []
    with pytest.raises(FeedGone, match="commit 1 is not kept"):
        store.commits_after(0)
    commit_operations(store, core, put(2))
    assert numbers(store, 1) == [2]
    assert store.statistics().feed_first == 2
    with pytest.raises(FeedGone, match="commit 1 is not kept any more, the first one is 2"):
        store.commits_after(0)


def test_without_a_feed_there_are_no_commits(store: Store, core: Core) -> None:
    """Neither before one is attached nor after it was detached; detaching twice is harmless."""
    commit_operations(store, core, put(1))
    with pytest.raises(FeedGone, match="no feed is attached"):
        store.commits_after(1)
    store.attach_feed(MIB, DAY_S)
    commit_operations(store, core, put(2))
    assert numbers(store, 1) == [2]
    store.detach_feed()
    store.detach_feed()
    with pytest.raises(FeedGone, match="no feed is attached"):
        store.commits_after(2)
    commit_operations(store, core, put(3))
    statistics = store.statistics()
    assert (statistics.feed_first, statistics.feed_bytes) == (None, 0)


def test_a_feed_attached_again_begins_anew(store: Store, core: Core) -> None:
    """Between two feeds there may be commits that nobody kept: those of the first are gone."""
    store.attach_feed(MIB, DAY_S)
    commit_operations(store, core, put(1))
    store.detach_feed()
    commit_operations(store, core, put(2))
    store.attach_feed(MIB, DAY_S)
    commit_operations(store, core, put(3))
    assert numbers(store, 2) == [3]
    for gone in (0, 1):
        with pytest.raises(FeedGone):
            store.commits_after(gone)


def test_commits_that_were_never_made_are_another_history(store: Store, core: Core) -> None:
    """Who has more commits than the source has followed another one."""
    store.attach_feed(MIB, DAY_S)
    commit_operations(store, core, put(1))
    with pytest.raises(FeedGone, match="commit 2 has not been made here, the last one is 1"):
        store.commits_after(2)


def test_the_feed_is_bounded_by_bytes(store: Store, core: Core) -> None:
    """Never more than the bound is kept, and not much less; what goes are the oldest."""
    bytes_max, size_bytes = 64_000, 1000
    store.attach_feed(bytes_max, DAY_S)
    for number in range(1, 201):
        commit_operations(store, core, put(number, size_bytes))
        statistics = store.statistics()
        assert statistics.feed_first is not None
        assert statistics.feed_bytes <= bytes_max
        kept = number - statistics.feed_first + 1
        assert kept * size_bytes <= statistics.feed_bytes
        if number > 64:
            assert statistics.feed_bytes >= bytes_max * 30 // 32 - 2 * size_bytes
        assert numbers(store, statistics.feed_first - 1) == [
            *range(statistics.feed_first, number + 1)
        ]
    with pytest.raises(FeedGone, match="raise the bounds"):
        store.commits_after(135)


def test_the_feed_is_bounded_by_age(store: Store, core: Core) -> None:
    """What is older than the bound goes with the next commit; younger ones stay."""
    store.attach_feed(MIB, 320.0)
    for number in range(1, 101):
        commit_operations(store, core, put(number))
        core.time_s += 10.0
        first = store.statistics().feed_first
        assert first is not None
        assert max(1, number - 34) <= first <= max(1, number - 31)
    core.time_s += 1000.0
    assert numbers(store, 98) == [99, 100], "without a commit nothing goes"
    commit_operations(store, core, put(101))
    assert numbers(store, 100) == [101]
    with pytest.raises(FeedGone):
        store.commits_after(99)


def test_a_commit_larger_than_the_bound_is_not_kept(store: Store, core: Core) -> None:
    """It and what came before is gone, and the feed goes on behind it."""
    store.attach_feed(10_000, DAY_S)
    commit_operations(store, core, put(1))
    commit_operations(store, core, put(2, 20_000))
    assert store.statistics().feed_first is None
    assert numbers(store, 2) == []
    for gone in (0, 1):
        with pytest.raises(FeedGone):
            store.commits_after(gone)
    commit_operations(store, core, put(3))
    assert numbers(store, 2) == [3]


def test_bounds_can_be_changed(store: Store, core: Core) -> None:
    """Attaching again keeps what is kept; narrower bounds take effect with the next commit."""
    store.attach_feed(MIB, DAY_S)
    for number in range(1, 51):
        commit_operations(store, core, put(number, 1000))
    store.attach_feed(2 * MIB, DAY_S)
    assert numbers(store, 0) == [*range(1, 51)]
    store.attach_feed(2500, DAY_S)
    commit_operations(store, core, put(51, 1000))
    statistics = store.statistics()
    assert statistics.feed_bytes <= 2500
    assert numbers(store, 50) == [51] or statistics.feed_first is None
    with pytest.raises(FeedGone):
        store.commits_after(0)


def test_reading_is_not_cut_short_by_later_commits(store: Store, core: Core) -> None:
    """Who has begun to read goes on to what was the last, although it is trimmed meanwhile."""
    store.attach_feed(20_000, DAY_S)
    for number in range(1, 16):
        commit_operations(store, core, put(number, 1000))
    reading = store.commits_after(0)
    assert next(reading).number == 1
    for number in range(16, 80):
        commit_operations(store, core, put(number, 1000))
    assert [each.number for each in reading] == [*range(2, 16)]


def test_clock_that_jumps(store: Store, core: Core) -> None:
    """A clock set back keeps commits longer, one set forward less long; none goes missing."""
    store.attach_feed(MIB, 1000.0)
    for number, jump_s in enumerate((0.0, -500_000.0, 3.0, 900_000.0, -900_000.0, 1.0), 1):
        core.time_s += jump_s
        commit_operations(store, core, put(number))
        first = store.statistics().feed_first
        assert first is not None
        assert numbers(store, first - 1) == [*range(first, number + 1)]


# -- snapshots -----------------------------------------------------------------------------------


def test_a_snapshot_has_everything_once_and_in_order(store: Store, core: Core) -> None:
    """Each record of each kind, with number and epoch of the commit it shows."""
    for number in range(30):
        commit_operations(
            store, core, *(Put(kind, b"%02d" % number, kind.name.encode()) for kind in Kind)
        )
    with store.snapshot() as snapshot:
        assert (snapshot.number, snapshot.epoch) == (30, 1)
        records = list(snapshot.records)
    assert records == sorted(records)
    assert {(kind, key): value for kind, key, value in records} == contents(store)
    assert len(records) == 30 * len(Kind)


def test_a_snapshot_of_nothing(store: Store) -> None:
    """An empty store can be shown too."""
    with store.snapshot() as snapshot:
        assert (snapshot.number, list(snapshot.records)) == (0, [])


def test_a_snapshot_shows_one_commit_while_others_go_on(store: Store, core: Core) -> None:
    """Whatever is set, removed or added after it began, before and while it is read."""
    chance = random.Random(4)
    for number in range(100):
        commit_operations(store, core, *(Put(kind, b"%03d" % number, b"old") for kind in Kind))
    expected = contents(store)
    with store.snapshot() as snapshot:
        commit_operations(
            store,
            core,
            *(DeleteRange(kind, b"010", b"050") for kind in Kind),
            *(Put(kind, b"060", b"new") for kind in Kind),
        )
        found: dict[tuple[Kind, bytes], bytes] = {}
        for kind, key, value in snapshot.records:
            found[kind, key] = value
            if len(found) % 50 == 0:
                other = chance.choice(list(Kind))
                commit_operations(
                    store,
                    core,
                    Put(other, b"%03d" % (len(found) % 100), b"new"),
                    Put(other, b"200", b""),
                )
        assert snapshot.number == 100
    assert found == expected


# -- taking over ---------------------------------------------------------------------------------


def test_a_snapshot_and_the_commits_after_it_make_the_same_store(
    store: Store, replica: Store, core: Core
) -> None:
    """The replica has the same records, number and epoch, between any two sorts of store."""
    chance = random.Random(3)
    store.attach_feed(MIB, DAY_S)

    def change(times: int) -> None:
        for _ in range(times):
            key = b"%02d" % chance.randrange(40)
            commit_operations(
                store,
                core,
                Put(chance.choice([*Kind]), key, chance.randbytes(20)),
                Delete(chance.choice([*Kind]), key),
                DeleteRange(chance.choice([*Kind]), key, b"%02d" % chance.randrange(40)),
            )

    change(100)
    with store.snapshot() as snapshot:
        change(20)
        replica.load(snapshot.number, snapshot.epoch, snapshot.records)
        change(20)
    for made in store.commits_after(100):
        apply(replica, core, made)
    assert contents(replica) == contents(store)
    last, original = replica.statistics(), store.statistics()
    assert (last.commit_number, last.epoch) == (original.commit_number, original.epoch) == (140, 1)


def test_a_replica_can_feed_another(store: Store, replica: Store, core: Core) -> None:
    """What it applied is kept in its own feed, number and epoch and all."""
    store.attach_feed(MIB, DAY_S)
    replica.attach_feed(MIB, DAY_S)
    for number in range(1, 11):
        commit_operations(store, core, put(number))
    for made in store.commits_after(0):
        apply(replica, core, made)
    assert list(replica.commits_after(0)) == list(store.commits_after(0))


def test_a_loaded_store_goes_on_from_there(store: Store, core: Core) -> None:
    """Its next commit is the one after the snapshot, in the snapshot's epoch."""
    store.attach_feed(MIB, DAY_S)
    store.load(41, 7, iter([(Kind.SESSION, b"s", b"value")]))
    statistics = store.statistics()
    assert (statistics.commit_number, statistics.epoch) == (41, 7)
    assert contents(store) == {(Kind.SESSION, b"s"): b"value"}
    commit(store, core, (Kind.SESSION, b"t", b""))
    assert list(store.commits_after(41)) == [Commit(42, 7, (Put(Kind.SESSION, b"t", b""),))]
    with pytest.raises(FeedGone):
        store.commits_after(40)
    with store.snapshot() as snapshot:
        assert (snapshot.number, snapshot.epoch) == (42, 7)


def test_only_an_empty_store_can_be_loaded(store: Store, core: Core) -> None:
    """One that has commits is refused, also when they have left nothing; it stays as it was."""
    commit(store, core, (Kind.SESSION, b"s", b"value"))
    with pytest.raises(CommitRefused, match="empty"):
        store.load(5, 1, iter(()))
    commit(store, core, (Kind.SESSION, b"s", None))
    with pytest.raises(CommitRefused, match="empty"):
        store.load(5, 1, iter([(Kind.SESSION, b"other", b"")]))
    assert contents(store) == {}
    assert store.statistics().commit_number == 2


def test_a_loaded_store_is_not_loaded_again(store: Store) -> None:
    """A second snapshot is refused, whether the first had records or not."""
    store.load(5, 1, iter(()))
    with pytest.raises(CommitRefused, match="empty"):
        store.load(6, 1, iter(()))


def test_commits_are_applied_in_order(store: Store, core: Core) -> None:
    """One that is not the next is refused, says which is, and leaves everything as it was."""
    apply(store, core, Commit(1, 1, (put(1),)))
    for number in (0, 1, 3, 100):
        with pytest.raises(CommitRefused, match=rf"commit {number} does not follow commit 1"):
            store.apply(Commit(number, 1, (put(2),)), lambda: pytest.fail("it was refused"))
    apply(store, core, Commit(2, 1, ()))
    assert store.statistics().commit_number == 2
    assert [key for key, _ in store.scan(Kind.BACKLOG)] == [b"000001"]


def test_an_epoch_of_the_past_is_refused(store: Store, core: Core) -> None:
    """Who was replaced cannot go on; a higher epoch is taken over, and later commits have it."""
    store.attach_feed(MIB, DAY_S)
    apply(store, core, Commit(1, 1, (put(1),)))
    apply(store, core, Commit(2, 4, (put(2),)))
    assert store.statistics().epoch == 4
    with pytest.raises(CommitRefused, match=r"commit 3 has epoch 3 and this store 4.*replaced"):
        store.apply(Commit(3, 3, (put(3),)), lambda: pytest.fail("it was refused"))
    commit_operations(store, core, put(3))
    assert [each.epoch for each in store.commits_after(0)] == [1, 4, 4]
    with store.snapshot() as snapshot:
        assert snapshot.epoch == 4


def test_commits_and_applied_ones_complete_in_order(store: Store, core: Core) -> None:
    """Several can be given before the first is durable; each builds on the one given before."""
    seen: list[int] = []
    for number in range(1, 41):
        if number % 3:
            made = Commit(number, 1 + number // 10, (put(number),))
            store.apply(made, lambda n=number: seen.append(n))  # type: ignore[misc]  # binds n
        else:
            batch = store.batch()
            batch.put(Kind.BACKLOG, b"%06d" % number, b"")
            store.commit(batch, lambda n=number: seen.append(n))  # type: ignore[misc]  # binds n
    core.wait(lambda: len(seen) == 40)
    assert seen == [*range(1, 41)]
    statistics = store.statistics()
    assert (statistics.commit_number, statistics.epoch) == (40, 5)


kinds = st.sampled_from([Kind.BACKLOG, Kind.SESSION])
keys = st.binary(max_size=1)
operations = st.one_of(
    st.builds(Put, kinds, keys, st.binary(max_size=3)),
    st.builds(Delete, kinds, keys),
    st.builds(DeleteRange, kinds, keys, keys),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STORES))
@given(
    st.lists(st.lists(operations, max_size=5), max_size=12),
    st.integers(0, 12),
    st.integers(100, 600),
)
@settings(max_examples=40)
def test_a_replica_is_the_same_or_told_to_begin_again(
    name: str, batches: list[list[Operation]], snapshot_at: int, bytes_max: int
) -> None:
    """With a snapshot taken at any commit and a feed of any size, nothing is ever missed."""
    core = Core()
    with tempfile.TemporaryDirectory() as directory:
        source = STORES[name](Path(directory) / "source", core)
        replica = STORES["memory"](Path(directory) / "replica", core)
        source.attach_feed(bytes_max, DAY_S)
        for number in range(len(batches) + 1):
            if number == min(snapshot_at, len(batches)):
                take_over(source, replica)
            if number < len(batches):
                commit_operations(source, core, *batches[number])
        try:
            for made in source.commits_after(replica.statistics().commit_number):
                apply(replica, core, made)
        except FeedGone:
            first = source.statistics().feed_first
            assert first is None or first > min(snapshot_at, len(batches)) + 1
        else:
            assert contents(replica) == contents(source)
            assert replica.statistics().commit_number == len(batches)
        source.close()
