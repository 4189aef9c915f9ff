"""The contract of every store (DESIGN section 5): a new one is added to `STORES`."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.store import Kind, Store
from ganglion.broker.store.memory import MemoryStore

STORES: dict[str, Callable[[], Store]] = {"memory": MemoryStore}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind."""
    return STORES[request.param]()


def _commit(store: Store, *changes: tuple[Kind, bytes, bytes | None]) -> None:
    batch = store.batch()
    for kind, key, value in changes:
        if value is None:
            batch.delete(kind, key)
        else:
            batch.put(kind, key, value)
    done: list[bool] = []
    store.commit(batch, lambda: done.append(True))
    assert done == [True]


def test_an_empty_store_has_nothing(store: Store) -> None:
    """Every kind can be scanned before anything was written."""
    assert all(list(store.scan(kind)) == [] for kind in Kind)


def test_records_come_back_in_order_of_their_keys(store: Store) -> None:
    """A scan is ordered by the bytes of the keys, whatever the order of writing was."""
    keys = [b"b", b"", b"a\0", b"a", b"\xff", b"a\0\0", b"ab"]
    _commit(store, *((Kind.QUEUED, key, b"value of " + key) for key in keys))
    found = list(store.scan(Kind.QUEUED))
    assert found == [(key, b"value of " + key) for key in sorted(keys)]


def test_kinds_are_apart(store: Store) -> None:
    """The same key in two kinds is two records."""
    _commit(store, (Kind.QUEUED, b"k", b"1"), (Kind.RETAINED, b"k", b"2"))
    _commit(store, (Kind.QUEUED, b"k", None))
    assert list(store.scan(Kind.QUEUED)) == []
    assert list(store.scan(Kind.RETAINED)) == [(b"k", b"2")]


def test_the_last_change_of_a_batch_counts(store: Store) -> None:
    """Changes of one batch take effect in order."""
    _commit(
        store,
        (Kind.RETAINED, b"a", b"1"),
        (Kind.RETAINED, b"a", None),
        (Kind.RETAINED, b"b", None),
        (Kind.RETAINED, b"b", b"1"),
        (Kind.RETAINED, b"b", b"2"),
    )
    assert list(store.scan(Kind.RETAINED)) == [(b"b", b"2")]


def test_deleting_what_is_not_there_is_harmless(store: Store) -> None:
    """A delete without a record changes nothing."""
    _commit(store, (Kind.RETAINED, b"a", None))
    assert list(store.scan(Kind.RETAINED)) == []


def test_what_is_not_committed_is_not_there(store: Store) -> None:
    """A batch shows nothing before its commit."""
    batch = store.batch()
    batch.put(Kind.RETAINED, b"a", b"1")
    assert list(store.scan(Kind.RETAINED)) == []


def test_batches_complete_in_order(store: Store) -> None:
    """`done` is called once per batch, in the order of the commits."""
    seen: list[int] = []
    for number in range(10):
        batch = store.batch()
        batch.put(Kind.RETAINED, b"n", b"%d" % number)
        store.commit(batch, lambda n=number: seen.append(n))  # type: ignore[misc]  # binds n
    assert seen == list(range(10))
    assert list(store.scan(Kind.RETAINED)) == [(b"n", b"9")]


def test_a_scan_begun_before_a_commit_can_be_finished(store: Store) -> None:
    """Recovery may write while it reads."""
    _commit(store, *((Kind.QUEUED, b"%d" % number, b"") for number in range(5)))
    found: list[bytes] = []
    for key, _ in store.scan(Kind.QUEUED):
        _commit(store, (Kind.QUEUED, key, None), (Kind.QUEUED, key + b"x", b""))
        found.append(key)
    assert found == [b"0", b"1", b"2", b"3", b"4"]
    assert len(list(store.scan(Kind.QUEUED))) == 5


changes = st.tuples(
    st.sampled_from([Kind.QUEUED, Kind.RETAINED]),
    st.binary(max_size=2),
    st.one_of(st.none(), st.binary(max_size=3)),
)


@pytest.mark.parametrize("name", sorted(STORES))
@given(st.lists(st.lists(changes, max_size=8), max_size=8))
def test_like_a_dict(name: str, batches: list[list[tuple[Kind, bytes, bytes | None]]]) -> None:
    """Any batches leave what they would leave in a sorted dict."""
    store = STORES[name]()
    model: dict[tuple[Kind, bytes], bytes] = {}
    for batch in batches:
        _commit(store, *batch)
        for kind, key, value in batch:
            if value is None:
                model.pop((kind, key), None)
            else:
                model[kind, key] = value
    for kind in (Kind.QUEUED, Kind.RETAINED):
        expected = sorted((key, value) for (of, key), value in model.items() if of is kind)
        assert list(store.scan(kind)) == expected
    store.close()
