"""What only the durable store promises: to survive kills, tears, flipped bits and full disks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocksdict import Options, WriteBatch

from ganglion.broker.store import (
    Damage,
    Kind,
    RecordDamaged,
    StoreDamaged,
    StoreError,
    StoreLocked,
    StoreMissing,
    StoreTooNew,
    UpgradeInterrupted,
)
from ganglion.broker.store.rescue import rescue
from ganglion.broker.store.rocks_metadata import FORMAT_VERSION
from ganglion.broker.store.rocks_reading import frame
from ganglion.broker.store.rocksdb import RocksStore
from tests.broker.store.stores import Change, Core, commit, contents, open_rocks

SEED = int(os.environ.get("TEST_SEED", "20260101"))
"""Of the damage done to files; printed when a test fails."""
FLIPS = int(os.environ.get("TEST_FLIPS", "60"))


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


@pytest.fixture
def store(directory: Path, core: Core) -> Iterator[RocksStore]:
    """An empty store."""
    store = open_rocks(directory, core)
    yield store
    store.close()


def records_of(batch: int) -> list[Change]:
    """What batch `batch` writes: records of several kinds, one replaced, one deleted later on."""
    return [
        (Kind.BACKLOG, b"client\0%06d" % batch, b"message %d " % batch * 20),
        (Kind.BACKLOG, b"client\0%06d" % (batch - 5), None),
        (Kind.RETAINED, b"topic/%d" % (batch % 40), b"value %d " % batch * 10),
        (Kind.SESSION, b"client", b"%d" % batch),
    ]


def model_of(batches: int) -> dict[tuple[Kind, bytes], bytes]:
    """What is there after that many batches."""
    model: dict[tuple[Kind, bytes], bytes] = {}
    for batch in range(1, batches + 1):
        for kind, key, value in records_of(batch):
            if value is None:
                model.pop((kind, key), None)
            else:
                model[kind, key] = value
    return model


def killed_store(directory: Path, batches: int) -> None:
    """A store whose process was killed when `batches` batches were durable: all is in the log."""
    code = f"""
import os, pathlib
from tests.broker.store.stores import Core, commit, open_rocks
from tests.broker.store.test_rocksdb import records_of
core = Core()
store = open_rocks(pathlib.Path({str(directory)!r}), core)
for batch in range(1, {batches} + 1):
    commit(store, core, *records_of(batch))
os.kill(os.getpid(), 9)
"""
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=root)
    assert ended.returncode == -signal.SIGKILL


def the_log(directory: Path) -> Path:
    """The write-ahead log of a killed store, which has one."""
    (log,) = (each for each in (directory / "records").glob("*.log") if each.stat().st_size)
    return log


def written(log: Path) -> int:
    """How many bytes were written to a log: behind them is room, which is zeros."""
    return len(log.read_bytes().rstrip(b"\0"))


# -- restart -------------------------------------------------------------------------------------


def test_everything_is_there_after_reopening(directory: Path, core: Core) -> None:
    """Records, commit numbers and the epoch go on where they were when the store was closed."""
    for start in (0, 30, 60):
        store = open_rocks(directory, core)
        assert store.statistics().commit_number == start
        assert store.statistics().epoch == 1
        for batch in range(start + 1, start + 31):
            commit(store, core, *records_of(batch))
        store.close()
    store = open_rocks(directory, core)
    assert contents(store) == model_of(90)
    assert store.statistics().commit_number == 90
    store.close()
    assert core.damages == []
    assert core.fatal == []


@pytest.mark.slow
def test_everything_durable_is_there_after_a_kill(directory: Path, core: Core) -> None:
    """What had completed when the process was killed is there, up to the last batch."""
    killed_store(directory, 100)
    store = open_rocks(directory, core)
    assert contents(store) == model_of(100)
    assert store.statistics().commit_number == 100
    store.close()
    assert core.damages == []


def test_the_log_has_room_until_it_is_closed(directory: Path, core: Core) -> None:
    """Its size is ahead of what is in it, from the first commit on and in every log after it."""
    store = open_rocks(directory, core)
    for number in range(3):
        commit(store, core, (Kind.BACKLOG, b"%d" % number, bytes(100)))
        store._looked_s = 0.0  # as if a second had passed
        commit(store, core, (Kind.SESSION, b"client", b"x"))
        commit(store, core, (Kind.SESSION, b"client", b"y"))  # the one before is accounted for
        log = max((directory / "records").glob("*.log"))
        assert log.stat().st_size >= 4 * 1024 * 1024
        assert 0 < written(log) < 10_000
        store._families[Kind.BACKLOG].flush()
        store.compact()
    store.close()
    assert all(written(each) == each.stat().st_size for each in directory.rglob("*.log"))
    store = open_rocks(directory, core)
    assert len(contents(store)) == 4
    assert core.damages == []
    store.close()


def test_commits_complete_in_the_core(store: RocksStore, core: Core) -> None:
    """Completion reaches the core through `in_core`, which the storage thread calls."""
    threads: list[threading.Thread] = []
    in_core = store._in_core

    def note_thread(call: Callable[[], None]) -> None:
        threads.append(threading.current_thread())
        in_core(call)

    store._in_core = note_thread
    done: list[threading.Thread] = []
    store.commit(store.batch(), lambda: done.append(threading.current_thread()))
    core.wait(lambda: done)
    assert done == [core.thread]
    assert [each.name for each in threads] == ["ganglion-storage"]


# -- the end of the log --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("room_bytes", [0, 100_000])
def test_a_log_cut_anywhere_ends_with_a_whole_batch(tmp_path: Path, room_bytes: int) -> None:
    """A log that ends within a batch loses that batch and no other: no part of it is applied.

    Whether it ends there or goes on with room.
    """
    killed_store(tmp_path / "killed", 40)
    size = written(the_log(tmp_path / "killed"))
    chance = random.Random(SEED)
    seen: set[int] = set()
    for number in range(25):
        core, directory = Core(), tmp_path / str(number)
        shutil.copytree(tmp_path / "killed", directory)
        left = size - number if number < 10 else chance.randrange(size // 4, size)
        os.truncate(the_log(directory), left)
        os.truncate(the_log(directory), left + room_bytes)
        store = open_rocks(directory, core)
        batches = store.statistics().commit_number
        assert contents(store) == model_of(batches), f"seed {SEED}, {left} of {size} bytes"
        seen.add(batches)
        store.close()
    assert {39, 40} <= seen


@pytest.mark.slow
@pytest.mark.parametrize("size_bytes", [1, 30, 200])
def test_a_last_batch_with_holes_is_cut(tmp_path: Path, core: Core, size_bytes: int) -> None:
    """Pages of the last batch that a power loss kept from the disk do not keep a node down.

    The batch was never acknowledged; it goes as a whole, and that is reported.
    """
    directory = tmp_path / "store"
    killed_store(directory, 40)
    log = the_log(directory)
    with log.open("r+b") as file:
        file.seek(written(log) - 250)
        file.write(bytes(size_bytes) if size_bytes > 1 else b"\xff")
    store = open_rocks(directory, core)
    assert contents(store) == model_of(39)
    assert store.statistics().commit_number == 39
    commit(store, core, *records_of(40))
    store.close()
    (damage,) = core.damages
    assert damage.kind is None
    assert log.name in damage.what
    store = open_rocks(directory, core)
    assert contents(store) == model_of(40)
    store.close()


@pytest.mark.slow
def test_damage_within_the_log_is_not_taken_for_its_end(tmp_path: Path) -> None:
    """A bit that flipped in the log before other batches is an error that names log and place.

    Whichever bit it is: those of lengths would make all that follows look torn.
    """
    killed_store(tmp_path / "killed", 40)
    original = the_log(tmp_path / "killed").read_bytes()
    (tmp_path / "store").mkdir()
    chance = random.Random(SEED)
    header_of_last_block_record = original.rindex(b"client\x00000039") - 120
    size = written(the_log(tmp_path / "killed"))
    offsets = [chance.randrange(size * 9 // 10) for _ in range(20)]
    offsets += range(header_of_last_block_record, header_of_last_block_record + 60, 4)
    for offset in offsets:
        core, directory = Core(), tmp_path / "store"
        shutil.rmtree(directory)
        shutil.copytree(tmp_path / "killed", directory)
        damaged = bytearray(original)
        damaged[offset] ^= 1 << chance.randrange(8)
        the_log(directory).write_bytes(damaged)
        with pytest.raises(StoreDamaged, match=r"\.log .*at byte \d+.*rescue") as caught:
            open_rocks(directory, core).close()
        assert str(directory) in str(caught.value), f"seed {SEED}, offset {offset}"


# -- damaged files -------------------------------------------------------------------------------


@pytest.mark.slow
def test_flipped_bits_are_found_wherever_they_are(tmp_path: Path) -> None:
    """A flipped bit in any file never leads to data that was not committed.

    Either the store does not open and says why, or what is not as it was is reported.
    """
    original = tmp_path / "original"
    core = Core()
    store = open_rocks(original, core)
    history: dict[tuple[Kind, bytes], set[bytes]] = {}
    for batch in range(1, 201):
        commit(store, core, *records_of(batch))
        for kind, key, value in records_of(batch):
            if value is not None:
                history.setdefault((kind, key), set()).add(value)
    store.close()
    expected = model_of(200)
    chance = random.Random(SEED)
    files = sorted(path for path in (original / "records").iterdir() if path.stat().st_size)
    outcomes = {"refused": 0, "reported": 0, "unharmed": 0}
    for number in range(FLIPS):
        core, directory = Core(), tmp_path / "damaged"
        shutil.copytree(original, directory)
        path = directory / "records" / chance.choice(files).name
        data = bytearray(path.read_bytes())
        offset = chance.randrange(len(data))
        data[offset] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        what = f"seed {SEED}, number {number}: {path.name} at {offset}"
        try:
            store = open_rocks(directory, core)
        except StoreError:
            outcomes["refused"] += 1
        else:
            found = contents(store)
            assert all(value in history[key] for key, value in found.items()), what
            assert found == expected or core.damages, what
            outcomes["reported" if core.damages else "unharmed"] += 1
            store.close()
        shutil.rmtree(directory)
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.slow
def test_truncated_files_are_found(tmp_path: Path) -> None:
    """A file of records that has lost its end is never read as if it were whole."""
    original = tmp_path / "original"
    core = Core()
    store = open_rocks(original, core)
    for batch in range(1, 201):
        commit(store, core, *records_of(batch))
    store.close()
    chance = random.Random(SEED)
    for path in sorted((original / "records").glob("*.sst")):
        for size in (0, chance.randrange(path.stat().st_size), path.stat().st_size - 1):
            directory = tmp_path / "damaged"
            shutil.copytree(original, directory)
            os.truncate(directory / "records" / path.name, size)
            with pytest.raises(StoreDamaged, match=path.name):
                open_rocks(directory, core).close()
            shutil.rmtree(directory)
    for name in ("CURRENT", path.name):
        shutil.copytree(original, directory)
        (directory / "records" / name).unlink()
        with pytest.raises(StoreDamaged, match=name):
            open_rocks(directory, core).close()
        shutil.rmtree(directory)


def spoil(store: RocksStore, kind: Kind, key: bytes, value: bytes) -> None:
    """Put a record into the store as a disk that lies would: RocksDB finds nothing wrong."""
    batch = WriteBatch(raw_mode=True)
    batch.put(key, value, store._handles[kind])
    store._db.write(batch)


def test_a_record_that_does_not_fit_its_checksum(store: RocksStore, core: Core) -> None:
    """It is left out of a scan, reported with kind and key, counted, and refused by `get`."""
    commit(store, core, *((Kind.RETAINED, key, b"value") for key in (b"a", b"b", b"c")))
    spoil(store, Kind.RETAINED, b"b", b"\0\0\0\0other")
    spoil(store, Kind.BACKLOG, b"short", b"\0")
    assert list(store.scan(Kind.RETAINED)) == [(b"a", b"value"), (b"c", b"value")]
    assert [(each.kind, each.key) for each in core.damages] == [(Kind.RETAINED, b"b")]
    with pytest.raises(RecordDamaged, match="RETAINED b'b'"):
        store.get(Kind.RETAINED, b"b")
    with pytest.raises(RecordDamaged, match="BACKLOG b'short'"):
        store.get(Kind.BACKLOG, b"short")
    assert store.get(Kind.RETAINED, b"a") == b"value"
    assert store.statistics().damaged == 3


def test_a_record_of_another_key_or_kind_does_not_fit(store: RocksStore, core: Core) -> None:
    """The checksum is that of kind, key and value: a good value in the wrong place is found."""
    commit(store, core, (Kind.RETAINED, b"a", b"value"))
    framed = store._families[Kind.RETAINED].get(b"a")
    assert isinstance(framed, bytes)
    spoil(store, Kind.RETAINED, b"b", framed)
    spoil(store, Kind.BACKLOG, b"a", framed)
    with pytest.raises(RecordDamaged):
        store.get(Kind.RETAINED, b"b")
    with pytest.raises(RecordDamaged):
        store.get(Kind.BACKLOG, b"a")


def test_verify_lists_all_damage(store: RocksStore, core: Core) -> None:
    """`verify` counts the good records of each kind and lists the others, each once per call."""
    commit(store, core, *((Kind.BACKLOG, b"%d" % number, b"") for number in range(50)))
    assert store.verify() == ({kind: 50 * (kind is Kind.BACKLOG) for kind in Kind}, [])
    spoil(store, Kind.BACKLOG, b"7", b"\0\0\0\0")
    spoil(store, Kind.SESSION, b"s", b"")
    for _ in range(2):
        counts, damages = store.verify()
        assert counts[Kind.BACKLOG] == 49
        what = "the checksum does not fit"
        assert damages == [Damage(Kind.SESSION, b"s", what), Damage(Kind.BACKLOG, b"7", what)]


def damaged_block(directory: Path, core: Core, damage: Callable[[bytearray], None]) -> None:
    """A closed store with 2,000 queued messages in one file, which `damage` is then done to."""
    store = open_rocks(directory, core)
    commit(store, core, *((Kind.BACKLOG, b"%05d" % n, b"message %05d" % n) for n in range(2000)))
    store.close()
    path = max((directory / "records").glob("*.sst"), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)


def test_the_rest_of_a_damaged_block_is_read(directory: Path, core: Core) -> None:
    """One flipped bit costs one record, not the block of many in which it is."""

    def damage(data: bytearray) -> None:
        data[data.index(b"message 01234") + 10] ^= 4

    damaged_block(directory, core, damage)
    store = open_rocks(directory, core)
    found = dict(store.scan(Kind.BACKLOG))
    assert sorted(found) == [b"%05d" % n for n in range(2000) if n != 1234]
    assert all(value == b"message " + key for key, value in found.items())
    assert (Kind.BACKLOG, b"01234") in [(each.kind, each.key) for each in core.damages]
    with pytest.raises(RecordDamaged, match="01234"):
        store.get(Kind.BACKLOG, b"01234")
    assert store.get(Kind.BACKLOG, b"00001") == b"message 00001"
    store.close()


def test_what_lies_behind_a_broken_block_is_read(directory: Path, core: Core) -> None:
    """Where a block's structure is lost, its records are, and those behind it are not."""

    def damage(data: bytearray) -> None:
        start = data.index(b"message 01234")
        data[start : start + 700] = b"\xff" * 700

    damaged_block(directory, core, damage)
    store = open_rocks(directory, core)
    found = dict(store.scan(Kind.BACKLOG))
    assert 1750 < len(found) < 1999
    assert {b"00000", b"01999", b"01100", b"01500"} <= set(found)
    assert all(value == b"message " + key for key, value in found.items())
    assert core.damages
    store.close()


def test_rescue_saves_what_is_good(tmp_path: Path, core: Core) -> None:
    """The good records of a damaged store become a new store; the others are listed."""

    def damage(data: bytearray) -> None:
        data[data.index(b"message 01234") + 10] ^= 4

    damaged_block(tmp_path / "store", core, damage)
    counts, damages = rescue(tmp_path / "store", tmp_path / "saved")
    assert counts == {kind: 1999 * (kind is Kind.BACKLOG) for kind in Kind}
    assert (Kind.BACKLOG, b"01234") in [(each.kind, each.key) for each in damages]
    store = open_rocks(tmp_path / "saved", core)
    assert store.verify() == (counts, [])
    store.close()
    with pytest.raises(StoreError, match="already"):
        rescue(tmp_path / "store", tmp_path / "saved")
    with pytest.raises(StoreMissing, match="no store"):
        rescue(tmp_path / "nowhere", tmp_path / "other")


@pytest.mark.slow
def test_rescue_reads_around_damage_in_the_log(tmp_path: Path, core: Core) -> None:
    """Of a log damaged in its middle, what lies before and 32 KiB behind the damage is saved."""
    killed_store(tmp_path / "store", 300)
    log = the_log(tmp_path / "store")
    data = bytearray(log.read_bytes())
    data[data.index(b"message 100 ") + 3] ^= 4
    log.write_bytes(data)
    with pytest.raises(StoreDamaged):
        open_rocks(tmp_path / "store", core)
    counts, _ = rescue(tmp_path / "store", tmp_path / "saved")
    store = open_rocks(tmp_path / "saved", core)
    found, model = contents(store), model_of(300)
    assert sum(counts.values()) == len(found)
    assert model.items() <= found.items()
    # deletions were lost as well: what they deleted is there again
    assert {key for kind, key in found.keys() - model.keys() if kind is not Kind.BACKLOG} == set()
    store.close()


# -- one process, one format ---------------------------------------------------------------------


def test_a_store_in_use_is_locked(store: RocksStore, directory: Path, core: Core) -> None:
    """A second one is turned away with the directory and the process that has it."""
    with pytest.raises(StoreLocked, match=rf"{directory}.* process {os.getpid()};"):
        open_rocks(directory, core)
    store.close()
    open_rocks(directory, core).close()


@pytest.mark.slow
def test_the_lock_ends_with_its_process(directory: Path, core: Core) -> None:
    """The lock of a process that was killed keeps nobody out."""
    killed_store(directory, 1)
    assert (directory / "LOCK").exists()
    open_rocks(directory, core).close()


def test_a_failed_open_leaves_no_lock(directory: Path, core: Core) -> None:
    """A store that could not be opened can be opened once its fault is gone."""
    open_rocks(directory, core).close()
    current = directory / "records" / "CURRENT"
    name = current.read_bytes()
    current.write_bytes(b"MANIFEST-999999\n")
    for _ in range(2):
        with pytest.raises(StoreError, match=str(directory)):
            open_rocks(directory, core)
    current.write_bytes(name)
    open_rocks(directory, core).close()


def put_metadata(store: RocksStore, key: bytes, value: bytes) -> None:
    """Change what the store knows of itself."""
    batch = WriteBatch(raw_mode=True)
    batch.put(key, frame(0, key, value), store._metadata._handle)
    store._db.write(batch)


def test_a_newer_format_is_refused(directory: Path, core: Core) -> None:
    """A store of a later version is left alone, with a message that says what to do."""
    store = open_rocks(directory, core)
    put_metadata(store, b"format", (FORMAT_VERSION + 1).to_bytes(4, "big"))
    store.close()
    match = rf"{directory} has format {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}"
    with pytest.raises(StoreTooNew, match=match):
        open_rocks(directory, core)


def test_kinds_of_a_later_version_do_not_hide_the_reason(directory: Path, core: Core) -> None:
    """A newer store is recognised as such also when it has kinds that this version has not."""
    store = open_rocks(directory, core)
    store._db.create_column_family("queues", Options(raw_mode=True)).close()
    put_metadata(store, b"format", (FORMAT_VERSION + 1).to_bytes(4, "big"))
    store.close()
    with pytest.raises(StoreTooNew):
        open_rocks(directory, core)


def test_an_interrupted_upgrade_is_found(directory: Path, core: Core) -> None:
    """A store whose rewriting was begun and not finished is not opened as either format."""
    store = open_rocks(directory, core)
    put_metadata(store, b"upgrading", b"1 to 2")
    store.close()
    with pytest.raises(UpgradeInterrupted, match="1 to 2"):
        open_rocks(directory, core)


@pytest.mark.parametrize("key", [b"format", b"commit"])
def test_damaged_metadata_is_found(directory: Path, core: Core, key: bytes) -> None:
    """What the store knows of itself has checksums as well, and is never made anew over records."""
    store = open_rocks(directory, core)
    commit(store, core, (Kind.SESSION, b"s", b""))
    value = store._metadata._family.get(key)
    assert isinstance(value, bytes)
    batch = WriteBatch(raw_mode=True)
    batch.put(key, value[:-1] + b"\x99", store._metadata._handle)
    store._db.write(batch)
    store.close()
    with pytest.raises(StoreDamaged, match=key.decode()):
        open_rocks(directory, core)
    store = open_rocks(directory.parent / "other", core)
    commit(store, core, (Kind.SESSION, b"s", b""))
    batch = WriteBatch(raw_mode=True)
    batch.delete(key, store._metadata._handle)
    store._db.write(batch)
    store.close()
    with pytest.raises(StoreDamaged, match="is missing"):
        open_rocks(directory.parent / "other", core)


def test_where_no_store_can_be(tmp_path: Path, core: Core) -> None:
    """A path that cannot be a store is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=str(tmp_path / "file")):
        open_rocks(tmp_path / "file" / "store", core)
    with pytest.raises(StoreMissing, match="no store"):
        RocksStore(tmp_path / "none", in_core=core.in_core, fatal=print, create=False)
    assert not (tmp_path / "none").exists()


# -- care ----------------------------------------------------------------------------------------


def test_a_backup_is_a_store(store: RocksStore, core: Core, tmp_path: Path) -> None:
    """A backup made in use has the commits up to its moment, and none that come later."""
    for batch in range(1, 51):
        commit(store, core, *records_of(batch))
    store.backup(tmp_path / "backups" / "today")
    for batch in range(51, 101):
        commit(store, core, *records_of(batch))
    store.compact()
    backup = open_rocks(tmp_path / "backups" / "today", core)
    assert contents(backup) == model_of(50)
    assert backup.statistics().commit_number == 50
    backup.close()
    assert contents(store) == model_of(100)
    with pytest.raises(StoreError, match="already"):
        store.backup(tmp_path / "backups" / "today")


def test_compaction_gives_room_back(store: RocksStore, core: Core) -> None:
    """After `compact`, deleted records take no room; the others are all there."""
    keys = [b"%d" % number for number in range(300)]
    commit(store, core, (Kind.RETAINED, b"stays", b"value"))
    commit(store, core, *((Kind.BACKLOG, key, os.urandom(10_000)) for key in keys))
    commit(store, core, *((Kind.BACKLOG, key, None) for key in keys))
    store.compact()
    live = store._families[Kind.BACKLOG].property_int_value("rocksdb.total-sst-files-size")
    assert live == 0
    assert contents(store) == {(Kind.RETAINED, b"stays"): b"value"}
