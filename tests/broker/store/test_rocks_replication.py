"""What the durable store adds to the contract of replication: restarts, damage, interruptions."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from rocksdict import WriteBatch

from ganglion.broker.store import CommitRefused, FeedGone, Kind, StoreDamaged, StoreError
from ganglion.broker.store.rescue import rescue
from ganglion.broker.store.rocksdb import RocksStore
from tests.broker.store.stores import Core, commit, contents, open_rocks

ROOT = Path(__file__).resolve().parents[3]
DAY_S = 86_400.0
MIB = 1024 * 1024
FILES_SIZE = "rocksdb.total-sst-files-size"


@pytest.fixture
def core() -> Iterator[Core]:
    """The core in which commits complete."""
    core = Core()
    yield core
    core.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the store of the test is."""
    return tmp_path / "store"


def commit_numbers(store: RocksStore, core: Core, first: int, last: int) -> None:
    """One commit per number, of about 1 kB."""
    for number in range(first, last + 1):
        commit(store, core, (Kind.BACKLOG, b"%06d" % number, bytes(1000)))


def spoil_feed(store: RocksStore, number: int) -> None:
    """Change a kept commit as a disk that lies would."""
    batch = WriteBatch(raw_mode=True)
    batch.put(number.to_bytes(8, "big"), b"\0\0\0\0spoilt", store._feed._handle)
    store._db.write(batch)


def test_a_feed_goes_on_after_a_restart(directory: Path, core: Core) -> None:
    """What is kept, its bounds and that it is kept survive; trimming goes on where it was."""
    store = open_rocks(directory, core)
    store.attach_feed(50_000, DAY_S)
    commit_numbers(store, core, 1, 80)
    before = store.statistics()
    store.close()
    store = open_rocks(directory, core)
    after = store.statistics()
    assert (after.feed_first, after.feed_bytes) == (before.feed_first, before.feed_bytes)
    assert before.feed_first is not None
    kept = [each.number for each in store.commits_after(before.feed_first - 1)]
    assert kept == [*range(before.feed_first, 81)]
    commit_numbers(store, core, 81, 160)
    assert 40_000 < store.statistics().feed_bytes <= 50_000
    store.close()


@pytest.mark.parametrize("is_attached", [True, False])
def test_attaching_and_detaching_survive_a_restart(
    directory: Path, core: Core, is_attached: bool
) -> None:
    """Also when no commit came in between."""
    store = open_rocks(directory, core)
    if not is_attached:
        store.attach_feed(MIB, DAY_S)
        commit_numbers(store, core, 1, 3)
        store.detach_feed()
    else:
        commit_numbers(store, core, 1, 3)
        store.attach_feed(MIB, DAY_S)
    store.close()
    store = open_rocks(directory, core)
    commit_numbers(store, core, 4, 4)
    if is_attached:
        assert [each.number for each in store.commits_after(3)] == [4]
    else:
        with pytest.raises(FeedGone, match="no feed"):
            store.commits_after(3)
    store.close()


def test_a_damaged_commit_is_not_skipped(directory: Path, core: Core) -> None:
    """Reading the feed ends there, the damage is reported, and `verify` lists it."""
    store = open_rocks(directory, core)
    store.attach_feed(MIB, DAY_S)
    commit_numbers(store, core, 1, 10)
    spoil_feed(store, 6)
    seen: list[int] = []
    reading = store.commits_after(2)
    with pytest.raises(FeedGone, match=r"damaged at or behind commit 6.*snapshot"):
        seen.extend(made.number for made in reading)
    assert seen == [3, 4, 5]
    assert [each.kind for each in core.damages] == [None]
    _, damages = store.verify()
    assert ["commit 6" in each.what for each in damages] == [True]
    store.close()


def test_a_damaged_feed_keeps_no_store_from_opening(directory: Path, core: Core) -> None:
    """The feed begins anew, replicas are told to, and the state of the store is whole."""
    store = open_rocks(directory, core)
    store.attach_feed(MIB, DAY_S)
    commit_numbers(store, core, 1, 10)
    spoil_feed(store, 10)
    store.close()
    store = open_rocks(directory, core)
    assert core.damages
    assert len(contents(store)) == 10
    commit_numbers(store, core, 11, 12)
    assert [each.number for each in store.commits_after(10)] == [11, 12]
    with pytest.raises(FeedGone):
        store.commits_after(9)
    store.close()


def test_an_interrupted_load(directory: Path, core: Core) -> None:
    """The store takes neither commits nor another load, and is refused when it is opened."""
    store = open_rocks(directory, core)

    def records() -> Iterator[tuple[Kind, bytes, bytes]]:
        for number in range(3000):
            yield Kind.BACKLOG, b"%06d" % number, bytes(1000)
        raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError):
        store.load(70, 2, records())
    with pytest.raises(StoreError, match="begin again"):
        store.commit(store.batch(), core.run)
    with pytest.raises(StoreError, match="begin again"):
        store.load(70, 2, iter(()))
    store.close()
    with pytest.raises(StoreError, match=r"being loaded with the state of commit 70"):
        open_rocks(directory, core)
    with pytest.raises(StoreError, match="being loaded"):
        rescue(directory, directory.parent / "saved")


@pytest.mark.slow
def test_a_kill_during_a_load(directory: Path, core: Core) -> None:
    """The same for a process that ends in the middle of it."""
    code = f"""
import os, pathlib, signal
from ganglion.broker.store import Kind
from tests.broker.store.stores import Core, open_rocks
def records():
    for number in range(4000):
        yield Kind.BACKLOG, b"%06d" % number, bytes(1000)
    os.kill(os.getpid(), signal.SIGKILL)
open_rocks(pathlib.Path({str(directory)!r}), Core()).load(70, 2, records())
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(StoreError, match=r"being loaded with the state of commit 70"):
        open_rocks(directory, core)


def test_a_damaged_record_ends_a_snapshot(directory: Path, core: Core) -> None:
    """A copy without it would pass for whole."""
    store = open_rocks(directory, core)
    commit_numbers(store, core, 1, 5)
    batch = WriteBatch(raw_mode=True)
    batch.put(b"000003", b"\0\0\0\0other", store._handles[Kind.BACKLOG])
    store._db.write(batch)
    with store.snapshot() as snapshot, pytest.raises(StoreDamaged, match="000003"):
        list(snapshot.records)
    store.close()


def test_a_rescued_store_keeps_its_number_and_epoch(directory: Path, core: Core) -> None:
    """Commits go on from there, and a snapshot is not loaded over it."""
    store = open_rocks(directory, core)
    store.load(41, 7, iter([(Kind.SESSION, b"s", b"value")]))
    store.close()
    rescue(directory, directory.parent / "saved")
    saved = open_rocks(directory.parent / "saved", core)
    assert (saved.commit_number, saved.epoch) == (41, 7)
    assert contents(saved) == {(Kind.SESSION, b"s"): b"value"}
    with pytest.raises(CommitRefused):
        saved.load(50, 7, iter(()))
    saved.close()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size_bytes", [1, 700])
def test_reading_backwards_past_damage(
    directory: Path, core: Core, place: float, size_bytes: int
) -> None:
    """It gives what reading forwards gives, in reverse: numbers are taken from the last record."""
    store = open_rocks(directory, core)
    keys = [b"%05d" % number for number in range(2000)]
    commit(store, core, *((Kind.BACKLOG, key, b"message " + key) for key in keys))
    store.close()
    path = max((directory / "records").glob("*.sst"), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    start = data.index(b"message %05d" % int(2000 * place))
    data[start : start + size_bytes] = bytes(
        each ^ 0xFF for each in data[start : start + size_bytes]
    )
    path.write_bytes(data)
    store = open_rocks(directory, core)
    forwards = list(store.scan(Kind.BACKLOG))
    reported = len(core.damages)
    backwards = list(store.scan(Kind.BACKLOG, backwards=True))
    assert len(core.damages) > reported > 0
    assert {key for key, _ in forwards} <= set(keys)
    assert all(value == b"message " + key for key, value in [*forwards, *backwards])
    assert backwards == sorted(backwards, reverse=True)
    assert len(backwards) > 1750
    if size_bytes == 1:
        assert backwards == forwards[::-1]
    assert backwards[0][0] == b"01999"
    assert backwards[-1][0] == b"00000"
    if size_bytes == 1:  # a neighbour of the damage in the same block can be asked for as well
        assert all(store.get(Kind.BACKLOG, key) == value for key, value in forwards[::10])
    store.close()


@pytest.mark.slow
def test_a_closed_store_is_not_cut_short(directory: Path, core: Core) -> None:
    """Of a store that was closed, a file that lost its end at any place, or all, is an error."""
    store = open_rocks(directory, core)
    commit_numbers(store, core, 1, 50)
    store.close()
    for path in sorted((directory / "records").iterdir()):
        if not path.name.startswith(("MANIFEST", "CURRENT")) and path.suffix != ".sst":
            continue
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 3, len(whole) - 16, len(whole) - 1):
            os.truncate(path, max(size, 0))
            with pytest.raises(StoreDamaged, match=path.name):
                open_rocks(directory, core)
            path.write_bytes(whole)
        path.unlink()
        with pytest.raises(StoreDamaged, match=path.name):
            open_rocks(directory, core)
        path.write_bytes(whole)
    store = open_rocks(directory, core)
    assert len(contents(store)) == 50
    store.close()


def test_a_damaged_seal_is_reported(directory: Path, core: Core) -> None:
    """It says nothing of the records: the store opens."""
    store = open_rocks(directory, core)
    commit_numbers(store, core, 1, 5)
    store.close()
    (directory / "seal").write_bytes(b"spoilt")
    store = open_rocks(directory, core)
    assert ["seal" in each.what for each in core.damages] == [True]
    assert len(contents(store)) == 5
    assert not (directory / "seal").exists()
    store.close()


@pytest.mark.slow
def test_room_of_what_is_consumed_comes_back(directory: Path, core: Core) -> None:
    """Of 200 MB that go through a queue, consumed by ranges, files keep no more than a part.

    No commit waits for that: each is durable within seconds, on a busy machine too.
    """
    store = open_rocks(directory, core)
    value = os.urandom(100_000)
    sizes: list[int] = []
    for number in range(1, 2001):
        batch = store.batch()
        batch.put(Kind.BACKLOG, b"%06d" % number, value)
        if number % 100 == 0:
            batch.delete_range(Kind.BACKLOG, b"", b"%06d" % (number - 50))
        done: list[bool] = []
        store.commit(batch, partial(done.append, True))
        core.wait(partial(len, done))
        if number % 100 == 0:
            sizes.append(store._families[Kind.BACKLOG].property_int_value(FILES_SIZE) or 0)
    store.close()
    assert max(sizes) < 80 * MIB, sizes
    assert core.fatal == []
