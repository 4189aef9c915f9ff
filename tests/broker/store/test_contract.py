"""The contract of every store (DESIGN section 5): a new one is added to `stores.STORES`.

The feed and what replicas do with it have a module of their own, `test_replication`.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.broker.store import Delete, DeleteRange, Kind, Operation, Put, Store
from tests.broker.store.stores import STORES, Core, commit, commit_operations


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


def test_an_empty_store_has_nothing(store: Store) -> None:
    """Every kind can be scanned and asked for before anything was written."""
    assert all(list(store.scan(kind)) == [] for kind in Kind)
    assert all(store.get(kind, b"key") is None for kind in Kind)


def test_records_come_back_in_order_of_their_keys(store: Store, core: Core) -> None:
    """A scan is ordered by the bytes of the keys, whatever the order of writing was."""
    keys = [b"b", b"", b"a\0", b"a", b"\xff", b"a\0\0", b"ab"]
    commit(store, core, *((Kind.BACKLOG, key, b"value of " + key) for key in keys))
    found = list(store.scan(Kind.BACKLOG))
    assert found == [(key, b"value of " + key) for key in sorted(keys)]


def test_a_record_can_be_asked_for(store: Store, core: Core) -> None:
    """`get` gives the committed value, an empty one too, and None for what is not there."""
    commit(store, core, (Kind.RETAINED, b"a", b"1"), (Kind.RETAINED, b"", b""))
    assert store.get(Kind.RETAINED, b"a") == b"1"
    assert store.get(Kind.RETAINED, b"") == b""
    assert store.get(Kind.RETAINED, b"b") is None
    assert store.get(Kind.SESSION, b"a") is None
    commit(store, core, (Kind.RETAINED, b"a", None))
    assert store.get(Kind.RETAINED, b"a") is None


def test_kinds_are_apart(store: Store, core: Core) -> None:
    """The same key in each kind is a record of its own."""
    commit(store, core, *((kind, b"k", kind.name.encode()) for kind in Kind))
    commit(store, core, (Kind.BACKLOG, b"k", None))
    for kind in Kind:
        expected = [] if kind is Kind.BACKLOG else [(b"k", kind.name.encode())]
        assert list(store.scan(kind)) == expected


def test_large_records(store: Store, core: Core) -> None:
    """Keys and values of the largest topics and packets come back whole."""
    key, value = b"k" * 65_535, bytes(range(256)) * 65_536
    commit(store, core, (Kind.RETAINED, key, value))
    assert store.get(Kind.RETAINED, key) == value


def test_the_last_change_of_a_batch_counts(store: Store, core: Core) -> None:
    """Changes of one batch take effect in order."""
    commit(
        store,
        core,
        (Kind.RETAINED, b"a", b"1"),
        (Kind.RETAINED, b"a", None),
        (Kind.RETAINED, b"b", None),
        (Kind.RETAINED, b"b", b"1"),
        (Kind.RETAINED, b"b", b"2"),
    )
    assert list(store.scan(Kind.RETAINED)) == [(b"b", b"2")]


def test_deleting_what_is_not_there_is_harmless(store: Store, core: Core) -> None:
    """A delete without a record changes nothing."""
    commit(store, core, (Kind.RETAINED, b"a", None))
    assert list(store.scan(Kind.RETAINED)) == []


def test_what_is_not_committed_is_not_there(store: Store) -> None:
    """A batch shows nothing before its commit."""
    batch = store.batch()
    batch.put(Kind.RETAINED, b"a", b"1")
    assert list(store.scan(Kind.RETAINED)) == []
    assert store.get(Kind.RETAINED, b"a") is None


def test_batches_complete_in_order(store: Store, core: Core) -> None:
    """`done` is called once per batch, in the order of the commits, with what is durable then."""
    seen: list[tuple[int, int, bool]] = []

    def complete(number: int) -> None:
        value = store.get(Kind.RETAINED, b"n")
        is_durable = value is not None and int(value) >= number
        seen.append((number, store.statistics().commit_number, is_durable))

    for number in range(1, 101):
        batch = store.batch()
        batch.put(Kind.RETAINED, b"n", b"%d" % number)
        store.commit(batch, lambda n=number: complete(n))  # type: ignore[misc]  # binds n
    core.wait(lambda: len(seen) == 100)
    assert [number for number, _, _ in seen] == list(range(1, 101))
    assert all(number <= committed for number, committed, _ in seen)
    assert all(is_durable for _, _, is_durable in seen)
    assert list(store.scan(Kind.RETAINED)) == [(b"n", b"100")]


def test_a_scan_begun_before_a_commit_can_be_finished(store: Store, core: Core) -> None:
    """A scan shows the moment of its call; recovery may write while it reads."""
    commit(store, core, *((Kind.BACKLOG, b"%d" % number, b"") for number in range(5)))
    scan = store.scan(Kind.BACKLOG)
    commit(store, core, (Kind.BACKLOG, b"9", b""))
    found: list[bytes] = []
    for key, _ in scan:
        commit(store, core, (Kind.BACKLOG, key, None), (Kind.BACKLOG, key + b"x", b""))
        found.append(key)
    assert found == [b"0", b"1", b"2", b"3", b"4"]
    assert len(list(store.scan(Kind.BACKLOG))) == 6


def test_statistics(store: Store, core: Core) -> None:
    """Batches are counted, an empty one too; records, bytes and the epoch are told."""
    before = store.statistics()
    assert before.commit_number == 0
    assert before.epoch == 1
    assert not before.is_full
    assert not store.is_full
    commit(store, core, (Kind.BACKLOG, b"a", bytes(100_000)), (Kind.BACKLOG, b"b", b""))
    commit(store, core, (Kind.SESSION, b"c", b""))
    commit(store, core)
    after = store.statistics()
    assert after.commit_number == 3
    assert after.records == {kind: {Kind.BACKLOG: 2, Kind.SESSION: 1}.get(kind, 0) for kind in Kind}
    assert after.size_bytes >= before.size_bytes + 50_000
    assert after.damaged == 0


def test_close_finishes_what_is_under_way(store: Store, core: Core) -> None:
    """Every commit given before `close` completes; closing twice is harmless."""
    seen: list[int] = []
    for number in range(20):
        batch = store.batch()
        batch.put(Kind.RETAINED, b"%d" % number, b"")
        store.commit(batch, lambda n=number: seen.append(n))  # type: ignore[misc]  # binds n
    store.close()
    core.run()
    assert seen == list(range(20))
    store.close()


def test_a_scan_has_bounds(store: Store, core: Core) -> None:
    """`start` is the first key that may be found, `stop` is beyond them, in both directions."""
    keys = [b"a\0\1", b"a\0\2", b"b", b"b\0", b"c"]
    commit(store, core, *((Kind.BACKLOG, key, b"v" + key) for key in keys))
    for start in (b"", *keys, b"a", b"bb", b"d"):
        for stop in (None, *keys, b"bb", b"d"):
            within = [key for key in keys if start <= key and (stop is None or key < stop)]
            found = [key for key, _ in store.scan(Kind.BACKLOG, start, stop)]
            assert found == within, (start, stop)
            backwards = store.scan(Kind.BACKLOG, start, stop, backwards=True)
            assert [key for key, _ in backwards] == within[::-1], (start, stop)


def test_a_range_is_deleted(store: Store, core: Core) -> None:
    """Everything from the start up to the stop goes, and what the batch puts there later stays."""
    keys = [b"%03d" % number for number in range(200)]
    commit(
        store, core, *((Kind.BACKLOG, key, b"") for key in keys), (Kind.RETAINED, b"100", b"other")
    )
    commit_operations(
        store,
        core,
        Put(Kind.BACKLOG, b"050", b"before"),
        DeleteRange(Kind.BACKLOG, b"010", b"190"),
        Put(Kind.BACKLOG, b"100", b"after"),
    )
    left = [key for key, _ in store.scan(Kind.BACKLOG)]
    assert left == [*keys[:10], b"100", *keys[190:]]
    assert store.get(Kind.BACKLOG, b"050") is None
    assert store.get(Kind.BACKLOG, b"100") == b"after"
    assert store.get(Kind.RETAINED, b"100") == b"other"


def test_ranges_that_hold_nothing_are_harmless(store: Store, core: Core) -> None:
    """An empty range, one that ends before it begins and one without records delete nothing."""
    commit(store, core, *((Kind.BACKLOG, key, b"") for key in (b"a", b"b", b"c")))
    commit_operations(
        store,
        core,
        DeleteRange(Kind.BACKLOG, b"b", b"b"),
        DeleteRange(Kind.BACKLOG, b"c", b"a"),
        DeleteRange(Kind.BACKLOG, b"b\0", b"c"),
        DeleteRange(Kind.RETAINED, b"", b"z"),
        Put(Kind.BACKLOG, b"d", b""),
    )
    assert [key for key, _ in store.scan(Kind.BACKLOG)] == [b"a", b"b", b"c", b"d"]
    assert list(store.scan(Kind.BACKLOG, b"c", b"a")) == []
    assert list(store.scan(Kind.BACKLOG, b"c", b"a", backwards=True)) == []


def test_a_scan_backwards_shows_the_moment_of_its_call(store: Store, core: Core) -> None:
    """Also in this direction commits go on while it is read."""
    commit(store, core, *((Kind.BACKLOG, b"%d" % number, b"") for number in range(5)))
    scan = store.scan(Kind.BACKLOG, b"1", b"4", backwards=True)
    commit_operations(store, core, DeleteRange(Kind.BACKLOG, b"0", b"3"))
    commit(store, core, (Kind.BACKLOG, b"30", b""))
    assert [key for key, _ in scan] == [b"3", b"2", b"1"]
    left = [key for key, _ in store.scan(Kind.BACKLOG, backwards=True)]
    assert left == [b"4", b"30", b"3"]


kinds = st.sampled_from([Kind.BACKLOG, Kind.RETAINED])
keys = st.binary(max_size=2)
operations = st.one_of(
    st.builds(Put, kinds, keys, st.binary(max_size=3)),
    st.builds(Delete, kinds, keys),
    st.builds(DeleteRange, kinds, keys, keys),
)


def take_effect(model: dict[tuple[Kind, bytes], bytes], operation: Operation) -> None:
    """Do to the model what the operation does to a store."""
    match operation:
        case Put(kind, key, value):
            model[kind, key] = value
        case Delete(kind, key):
            model.pop((kind, key), None)
        case DeleteRange(kind, start, stop):
            for each in [(of, key) for of, key in model if of is kind and start <= key < stop]:
                del model[each]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STORES))
@given(st.lists(st.lists(operations, max_size=8), max_size=8), keys, st.one_of(st.none(), keys))
@settings(max_examples=60)
def test_like_a_dict(
    name: str, batches: list[list[Operation]], start: bytes, stop: bytes | None
) -> None:
    """Any batches leave what they would leave in a sorted dict, read in either direction."""
    core = Core()
    model: dict[tuple[Kind, bytes], bytes] = {}
    with tempfile.TemporaryDirectory() as directory:
        store = STORES[name](Path(directory), core)
        for batch in batches:
            commit_operations(store, core, *batch)
            for operation in batch:
                take_effect(model, operation)
            for kind in (Kind.BACKLOG, Kind.RETAINED):
                expected = sorted((key, value) for (of, key), value in model.items() if of is kind)
                assert list(store.scan(kind)) == expected
                within = [
                    each
                    for each in expected
                    if start <= each[0] and (stop is None or each[0] < stop)
                ]
                assert list(store.scan(kind, start, stop)) == within
                assert list(store.scan(kind, start, stop, backwards=True)) == within[::-1]
                assert store.get(kind, start) == model.get((kind, start))
        assert store.statistics().commit_number == len(batches)
        store.close()
