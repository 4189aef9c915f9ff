"""The durable store: RocksDB, embedded (rocksdict), with one thread that writes and syncs.

The core's thread records operations straight into a batch in C++ memory. The storage thread makes
one call per batch, `Rdict.write` with `sync`, which writes and syncs the log without holding the
GIL; then it hands the completion to the core. Every record carries a CRC-32 of its kind, key and
value in front of its value, checked whenever it is read: RocksDB's own checksums are per block of
some 4 KiB, and only ours can say which record of a bad block is still good.

A store is a directory: ``LOCK`` (`DirectoryLock`) and ``records/``, RocksDB's own. There is one
column family per kind, and one for what the store knows of itself:

==========  ======================================================================================
format      version of all that is described here (4 bytes)
commit      number and epoch of the last batch (8 bytes each), written in that batch
upgrading   present while records are rewritten for another version
==========  ======================================================================================

What goes wrong is told apart by what can be done about it. No room on the disk: the batch waits,
and everything behind it. Any other failure to write or sync ends the process: what is on disk is
unknown from there on, and trying again would make a lost write look like a durable one. Damaged
records are reported and left out.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from struct import Struct
from threading import Event, Thread
from typing import Any, cast
from zlib import crc32

from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    Checkpoint,
    ColumnFamily,
    CompactOptions,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from ganglion.broker.store import (
    Batch,
    Damage,
    Kind,
    RecordDamaged,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreStatistics,
    StoreTooNew,
    UpgradeInterrupted,
)
from ganglion.broker.store.lock import DirectoryLock
from ganglion.broker.store.rocks_log import Tear, cut, ends_cleanly, find_tear

__all__ = ["FORMAT_VERSION", "RocksStore", "rescue"]

FORMAT_VERSION = 2
"""Of the records and their keys; raised when a store of the one before has to be rewritten."""

_MIB = 1024 * 1024
_METADATA = "metadata"
_METADATA_SEED = 0  # of the checksum; a kind's number is that of its records
_FORMAT_KEY = b"format"
_COMMIT_KEY = b"commit"
_UPGRADING_KEY = b"upgrading"
_CRC = Struct(">I")
_VERSION = Struct(">I")
_COMMIT = Struct(">QQ")
_CRC_SIZE = _CRC.size

_FAMILIES = {
    Kind.SESSION: "sessions",
    Kind.SUBSCRIPTION: "subscriptions",
    Kind.BACKLOG: "backlog",
    Kind.IN_FLIGHT: "in_flight",
    Kind.RECEIVED: "received",
    Kind.RETAINED: "retained",
    Kind.SETTLED: "settled",
    Kind.BACKLOG_STATE: "backlog_state",
    Kind.PAYLOAD: "payload",
    Kind.PAYLOAD_USES: "payload_uses",
    Kind.WILL: "will",
    Kind.QUEUE: "queue",
    Kind.RETURNED: "returned",
    Kind.DELAYED: "delayed",
    Kind.DEDUPLICATION: "deduplication",
    Kind.STREAM: "stream",
    Kind.STREAM_BATCH: "stream_batch",
    Kind.STREAM_KEY: "stream_key",
    Kind.STREAM_GROUP: "stream_group",
}
assert len(_FAMILIES) == len(Kind)
# Records that come and go with every message: what is deleted must not slow down a later scan.
_SHORT_LIVED = frozenset(
    (
        Kind.BACKLOG,
        Kind.IN_FLIGHT,
        Kind.RECEIVED,
        Kind.SETTLED,
        Kind.PAYLOAD,
        Kind.PAYLOAD_USES,
        Kind.RETURNED,
        Kind.DELAYED,
        Kind.DEDUPLICATION,
    )
)

_RETRY_EVERY_S = 0.5  # RocksDB notices within seconds by itself that there is room again
_NO_ROOM = ("No space left on device", "Disk quota exceeded")
_CORRUPT = "Corruption"
_BAD_CHECKSUM = "the checksum does not fit"
_RESCUE_BATCH_SIZE = 1000
_ADVICE_DAMAGED = (
    "restore a backup, or save what can be read with 'ganglion store rescue DIR'; "
    "docs/durability.md says more"
)


def _framed(seed: int, key: bytes, value: bytes) -> bytes:
    return _CRC.pack(crc32(value, crc32(key, seed))) + value


def _fits(seed: int, key: bytes, framed: bytes) -> bool:
    """Whether the checksum in front of the value is that of the kind, the key and the value."""
    value = memoryview(framed)[_CRC_SIZE:]
    return framed[:_CRC_SIZE] == _CRC.pack(crc32(value, crc32(key, seed)))


class _RocksBatch:
    """Operations in C++ memory, and once more here: a failed write consumes the former."""

    __slots__ = ("_delete", "_delete_range", "_handles", "_put", "operations", "writes")

    def __init__(self, handles: dict[Kind, ColumnFamily]) -> None:
        self.writes = WriteBatch(raw_mode=True)
        # Flat, three entries per operation: a tuple each would cost the garbage collector more
        # than the operation itself. Kind, key, framed value or None; of a range: kind, start, and
        # the place behind it in a list of its own.
        self.operations: list[Any] = []
        self._handles = handles
        self._put = self.writes.put
        self._delete = self.writes.delete
        self._delete_range = self.writes.delete_range

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        framed = _CRC.pack(crc32(value, crc32(key, kind))) + value
        self._put(key, framed, self._handles[kind])
        self.operations += (kind, key, framed)

    def delete(self, kind: Kind, key: bytes) -> None:
        self._delete(key, self._handles[kind])
        self.operations += (kind, key, None)

    def delete_range(self, kind: Kind, start: bytes, stop: bytes) -> None:
        self._delete_range(start, stop, self._handles[kind])
        self.operations += (kind, start, [stop])

    def again(self) -> WriteBatch:
        """The same operations, to be written once more."""
        writes = WriteBatch(raw_mode=True)
        operations = iter(self.operations)
        for kind, key, framed in zip(operations, operations, operations, strict=True):
            if framed is None:
                writes.delete(key, self._handles[kind])
            elif isinstance(framed, list):
                writes.delete_range(key, framed[0], self._handles[kind])
            else:
                writes.put(key, framed, self._handles[kind])
        return writes


class RocksStore:
    """A `Store` in a directory.

    Everything but the writing happens in the thread that calls, which is the core's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        in_core: Callable[[Callable[[], None]], None],
        fatal: Callable[[str], None],
        report: Callable[[Damage], None] | None = None,
        full_changed: Callable[[bool], None] | None = None,
        create: bool = True,
    ) -> None:
        """Open the store, or make an empty one where there is none if `create`.

        `in_core` takes a call from any thread and has it made in the thread of the core, in order.
        `fatal` is called, in the storage thread, when a write or its sync has failed: the process
        must end, since nothing will be durable from there on. `report` is told of damage, in the
        thread that reads. `full_changed` is called in the core when the disk is full and when
        there is room again.

        Raises `StoreLocked`, `StoreMissing`, `StoreTooNew`, `UpgradeInterrupted`, `StoreDamaged`,
        or another `StoreError` when the files cannot be used.
        """
        self.directory = directory
        self.is_full = False
        """Whether a batch waits for room on the disk."""
        self._in_core = in_core
        self._fatal = fatal
        self._report = report
        self._full_changed = full_changed
        self._damaged = 0
        self._families: dict[Kind, Rdict] = {}
        self._handles: dict[Kind, ColumnFamily] = {}
        self._sync = WriteOptions()
        self._sync.sync = True
        self._closing = Event()
        self._failed = False
        self._work: SimpleQueue[tuple[_RocksBatch, int, Callable[[], None]] | None] = SimpleQueue()
        records = directory / "records"
        if not create and not (records / "CURRENT").exists():
            raise StoreMissing(f"there is no store in {directory}")
        try:
            _make_directory(directory)
            self._lock = DirectoryLock(directory)
        except OSError as error:
            raise StoreError(
                f"the store in {directory} cannot be used: {error.strerror or error}"
            ) from error
        try:
            self._db = self._open(records)
            try:
                self._attach()
            except BaseException:
                self._detach()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._thread = Thread(target=self._run, name="ganglion-storage", daemon=True)
        self._thread.start()

    # -- writing ---------------------------------------------------------------------------------

    def batch(self) -> Batch:
        """A new, empty batch. It is committed once."""
        return _RocksBatch(self._handles)

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Make the batch durable, then have `done` called in the core."""
        assert isinstance(batch, _RocksBatch)
        self._next_number += 1
        framed = _framed(_METADATA_SEED, _COMMIT_KEY, _COMMIT.pack(self._next_number, self.epoch))
        batch.writes.put(_COMMIT_KEY, framed, self._metadata_handle)
        self._work.put((batch, self._next_number, done))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self._failed:
                continue  # never acknowledged: what comes after a hole is not durable
            batch, number, done = work
            if self._write(batch, number):
                self.commit_number = number
                self._in_core(done)
            else:
                self._failed = True

    def _write(self, batch: _RocksBatch, number: int) -> bool:
        """Write and sync the batch, waiting for room if need be; whether it is durable."""
        writes = batch.writes
        while True:
            try:
                self._db.write(writes, self._sync)
            except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more precise
                message = str(error)
                if not any(text in message for text in _NO_ROOM):
                    self._fatal(
                        f"the store in {self.directory} could not write commit {number}: {message}"
                    )
                    return False
            else:
                self._set_full(False)
                return True
            self._set_full(True)
            if self._closing.wait(_RETRY_EVERY_S):
                return False
            writes = batch.again()
            framed = _framed(_METADATA_SEED, _COMMIT_KEY, _COMMIT.pack(number, self.epoch))
            writes.put(_COMMIT_KEY, framed, self._metadata_handle)

    def _set_full(self, is_full: bool) -> None:
        if is_full != self.is_full:
            self.is_full = is_full
            if self._full_changed is not None:
                self._in_core(partial(self._full_changed, is_full))

    # -- reading ---------------------------------------------------------------------------------

    def get(self, kind: Kind, key: bytes) -> bytes | None:
        """The committed value of a record; None when there is none. Raises `RecordDamaged`."""
        try:
            framed = cast("bytes | None", self._families[kind].get(key))
        except Exception as error:
            raise RecordDamaged(self._note(kind, key, str(error))) from error
        if framed is None:
            return None
        if not _fits(kind, key, framed):
            raise RecordDamaged(self._note(kind, key, _BAD_CHECKSUM))
        return framed[_CRC_SIZE:]

    def scan(
        self,
        kind: Kind,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Committed records of a kind as (key, value), in order of the keys, or in reverse."""
        note = partial(self._note, kind)
        reading = _Reading(self._families[kind], kind, note, start, stop, backwards=backwards)
        return reading.records()

    def _note(self, kind: Kind | None, key: bytes, what: str) -> Damage:
        self._damaged += 1
        damage = Damage(kind, key, what)
        if self._report is not None:
            self._report(damage)
        return damage

    def verify(self) -> tuple[dict[Kind, int], list[Damage]]:
        """Read everything: how many good records there are of each kind, and all damage."""
        found: list[Damage] = []
        report, self._report = self._report, found.append
        try:
            return {kind: sum(1 for _ in self.scan(kind)) for kind in Kind}, found
        finally:
            self._report = report

    def statistics(self) -> StoreStatistics:
        """What the store holds now; the numbers of records are RocksDB's estimates."""
        return StoreStatistics(
            commit_number=self.commit_number,
            epoch=self.epoch,
            records={
                kind: family.property_int_value("rocksdb.estimate-num-keys") or 0
                for kind, family in self._families.items()
            },
            size_bytes=_size_on_disk(self.directory / "records"),
            is_full=self.is_full,
            damaged=self._damaged,
        )

    # -- care ------------------------------------------------------------------------------------

    def backup(self, directory: Path) -> None:
        """Make a copy that is a store of its own in `directory`, of one moment, while in use.

        On the same file system it is made of hard links and takes no time or room at first. Raises
        `StoreError` when there is something already, or when the copy cannot be made.
        """
        target = directory / "records"
        if target.exists():
            raise StoreError(f"there is a store in {directory} already")
        try:
            _make_directory(directory)
            Checkpoint(self._db).create_checkpoint(str(target))
            _sync_directory(directory)
        except Exception as error:
            raise StoreError(f"no backup was made in {directory}: {error}") from error

    def compact(self) -> None:
        """Rewrite all files without what has been deleted or replaced. Raises `StoreError`."""
        options = CompactOptions()
        # Also what no longer has anything to be merged with: it may consist of deletions.
        options.set_bottommost_level_compaction(BottommostLevelCompaction.force_optimized())
        try:
            for family in self._families.values():
                family.flush()
                family.compact_range(None, None, options)
        except Exception as error:
            raise StoreError(f"the store in {self.directory} was not compacted: {error}") from error

    def close(self) -> None:
        """Finish the commits under way and let go of the files.

        A commit that waits for room on the disk is given up: it has not been acknowledged.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._work.put(None)
        self._thread.join()
        self._detach()
        self._lock.release()

    # -- opening ---------------------------------------------------------------------------------

    def _open(self, records: Path) -> Rdict:
        """Open RocksDB, and cut a torn end of its log."""
        logs = sorted(records.glob("*.log"))
        if not (records / "CURRENT").exists() and (
            any(records.glob("*.sst")) or any(log.stat().st_size for log in logs)
        ):
            raise self._damage("the file CURRENT is missing")
        self._check_manifests(records, logs)
        mended = False
        if not all(ends_cleanly(log) for log in logs):
            mended = self._mend(logs)
        try:
            try:
                return _open_rocksdb(records)
            except Exception as error:
                if mended or _CORRUPT not in str(error) or not self._mend(logs):
                    raise
                return _open_rocksdb(records)
        except StoreError:
            raise
        except Exception as error:
            message = str(error)
            if _CORRUPT in message:
                raise self._damage(message) from error
            raise StoreError(f"cannot open the store in {self.directory}: {message}") from error

    def _check_manifests(self, records: Path, logs: list[Path]) -> None:
        """Look at the end of the lists of sorted files, which have the form of a log.

        RocksDB takes a damaged end for a torn one, forgets what it said, and removes the sorted
        files that it does not know. It is torn only while what it lists is in the log as well.
        """
        for manifest in records.glob("MANIFEST-*"):
            if ends_cleanly(manifest) or (tear := find_tear(manifest)) is None:
                continue
            if not tear.is_last or not any(log.stat().st_size for log in logs):
                raise self._damage(f"{tear.path.name} cannot be read at byte {tear.offset}")
            self._note(None, b"", _describe(tear))

    def _mend(self, logs: list[Path]) -> bool:
        """Cut the torn batch off the end of the last log; whether there was one.

        Raises `StoreDamaged` when acknowledged batches would go with it.
        """
        tears = [tear for log in logs if (tear := find_tear(log)) is not None]
        if not tears:
            return False
        tear = tears[0]
        written = [log for log in logs if log.stat().st_size]
        if not tear.is_last or tear.path != written[-1]:
            raise self._damage(
                f"{tear.path.name} cannot be read at byte {tear.offset}, with other commits behind"
            )
        self._note(None, b"", _describe(tear))
        cut(tear)
        return True

    def _attach(self) -> None:
        """Take hold of the column families; check, or write, what the store knows of itself."""
        self._metadata = self._db.get_column_family(_METADATA)
        self._metadata_handle = self._db.get_column_family_handle(_METADATA)
        version = self._metadata_value(_FORMAT_KEY)
        if version is not None and (found := _VERSION.unpack(version)[0]) > FORMAT_VERSION:
            raise StoreTooNew(
                f"the store in {self.directory} has format {found}; this version of Ganglion "
                f"knows formats up to {FORMAT_VERSION}: use the newer version again, or another "
                "data directory"
            )
        if version is not None and found < FORMAT_VERSION:
            raise StoreError(
                f"the store in {self.directory} has format {found}, of a version that was never "
                f"released; this one needs format {FORMAT_VERSION}: use another data directory"
            )
        if upgrading := self._metadata_value(_UPGRADING_KEY):
            raise UpgradeInterrupted(
                f"the store in {self.directory} was being upgraded "
                f"({upgrading.decode('ascii', 'replace')}) when the process ended: restore the "
                "backup that was made before the upgrade"
            )
        for kind, name in _FAMILIES.items():
            self._families[kind] = self._db.get_column_family(name)
            self._handles[kind] = self._db.get_column_family_handle(name)
        if version is None:
            self._begin()
        commit = self._metadata_value(_COMMIT_KEY)
        if commit is None:
            raise self._damage("the number of the last commit is missing")
        self.commit_number, self.epoch = cast("tuple[int, int]", _COMMIT.unpack(commit))
        self._next_number = self.commit_number

    def _begin(self) -> None:
        """Make an empty store of these files, which have to be new."""
        if any(_has_records(family) for family in self._families.values()):
            raise self._damage("the version of its format is missing")
        batch = WriteBatch(raw_mode=True)
        for key, value in (
            (_FORMAT_KEY, _VERSION.pack(FORMAT_VERSION)),
            (_COMMIT_KEY, _COMMIT.pack(0, 1)),
        ):
            batch.put(key, _framed(_METADATA_SEED, key, value), self._metadata_handle)
        try:
            self._db.write(batch, self._sync)
        except Exception as error:
            raise StoreError(f"cannot make a store in {self.directory}: {error}") from error

    def _metadata_value(self, key: bytes) -> bytes | None:
        try:
            framed = cast("bytes | None", self._metadata.get(key))
        except Exception as error:
            raise self._damage(str(error)) from error
        if framed is None:
            return None
        if not _fits(_METADATA_SEED, key, framed):
            raise self._damage(f"the checksum of its {key.decode()} does not fit")
        return framed[_CRC_SIZE:]

    def _damage(self, what: str) -> StoreDamaged:
        return StoreDamaged(f"the store in {self.directory} is damaged: {what}; {_ADVICE_DAMAGED}")

    def _detach(self) -> None:
        """Let go of everything that keeps RocksDB open."""
        self._families.clear()
        self._handles.clear()
        for name in ("_metadata", "_metadata_handle"):
            with suppress(AttributeError):
                delattr(self, name)
        # What it could not write to a sorted file on a failing disk is in the log.
        with suppress(Exception):
            self._db.close()
        del self._db


class _Reading:
    """One pass over a column family as it was when the pass began, around what cannot be read.

    RocksDB ends an iteration at a block whose checksum does not fit just as it does at the end of
    all records; only the status tells. From there on the pass does without RocksDB's checksums,
    because ours can tell good records of such a block from bad ones, and it skips what is so broken
    that no records can be found in it.
    """

    def __init__(
        self,
        family: Rdict,
        seed: int,
        note: Callable[[bytes, str], object],
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> None:
        """Begin; `note` is told of damage: the key, or the one before it, and what was found.

        A pass `backwards` ends where it meets a block that cannot be read.
        """
        self._family = family
        self._seed = seed
        self._note = note
        self._start, self._stop, self._backwards = start, stop, backwards
        # An iterator is a view of one moment. (A `Snapshot` of rocksdict 0.3.29 is not.)
        options = self._options(verify=True)
        # It heeds an upper bound, and a lower one only when it begins there.
        items = family.items(
            backwards=backwards, from_key=None if backwards else start, read_opt=options
        )
        self._items = cast("Iterator[tuple[bytes, bytes]]", items)
        self._end = family.iter(options)

    def _options(self, *, verify: bool) -> ReadOptions:
        options = _read_options(verify=verify)
        if self._stop is not None:
            options.set_iterate_upper_bound(self._stop)
        return options

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the good records, in order of the keys."""
        seed, pack = self._seed, _CRC.pack
        last: bytes | None = None
        for last, framed in self._items:
            if last < self._start:  # backwards
                return
            value = framed[_CRC_SIZE:]
            if framed[:_CRC_SIZE] == pack(crc32(value, crc32(last, seed))):
                yield last, value
            else:
                self._note(last, _BAD_CHECKSUM)
        if self._backwards:
            if last is None:
                self._end.seek_to_last()
            else:
                self._end.seek_for_prev(last)
                if self._end.valid():
                    self._end.prev()
        else:
            _seek_behind(self._end, last, self._start)
        what = _status(self._end)
        if what is not None:
            self._note(last or b"", what)
            if not self._backwards:
                yield from self._records_behind(last)

    def _records_behind(self, last: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The same without RocksDB's checksums: slower."""
        options = self._options(verify=False)
        iterator = self._family.iter(options)
        _seek_behind(iterator, last, self._start)
        while True:
            while iterator.valid():
                key, framed = cast("tuple[bytes, bytes]", (iterator.key(), iterator.value()))
                if _fits(self._seed, key, framed):
                    last = key
                    yield key, framed[_CRC_SIZE:]
                else:
                    self._note(key, _BAD_CHECKSUM)
                iterator.next()
            what = _status(iterator)
            if what is None:
                return
            self._note(last or b"", what)
            readable = self._beyond(last or b"", options)
            if readable is None:
                return
            iterator.seek(readable)
            last = max(readable, cast("bytes", iterator.key()))  # to get on in any case

    def _beyond(self, start: bytes, options: ReadOptions) -> bytes | None:
        """The first place behind `start` from where one can read again; None: there is none.

        Found by halving, with keys taken as fractions: a seek fails up to the end of the broken
        part and works behind it.
        """
        iterator = self._family.iter(options)
        iterator.seek_to_last()
        if not iterator.valid() or cast("bytes", iterator.key()) <= start:
            return None
        readable = cast("bytes", iterator.key())
        size = max(len(start), len(readable)) + 1
        low = int.from_bytes(start.ljust(size, b"\0"), "big")
        high = int.from_bytes(readable.ljust(size, b"\0"), "big")
        while high - low > 1:
            middle = (low + high) // 2
            place = middle.to_bytes(size, "big")
            iterator.seek(place)
            if iterator.valid():
                high, readable = middle, place
            else:
                low = middle
        return readable


def rescue(damaged: Path, target: Path) -> tuple[dict[Kind, int], list[Damage]]:
    """Copy every good record of a damaged store into a new one in `target`.

    How many records of each kind were saved, and what was found damaged. Parts of the log that
    cannot be read are skipped: later changes to the same records may be missing. The damaged store
    is changed no more than by opening it; nobody else may have it open. Raises `StoreError` when
    nothing can be read at all, or `target` has a store already.
    """
    if (target / "records").exists():
        raise StoreError(f"there is a store in {target} already")
    if not (damaged / "records").is_dir():
        raise StoreMissing(f"there is no store in {damaged}")
    lock = DirectoryLock(damaged)
    try:
        source = _open_rocksdb(
            damaged / "records", recovery=DBRecoveryMode.skip_any_corrupted_record()
        )
    except Exception as error:
        lock.release()
        raise StoreError(f"nothing can be read of the store in {damaged}: {error}") from error
    failures: list[str] = []
    store = RocksStore(target, in_core=lambda call: call(), fatal=failures.append)
    counts: dict[Kind, int] = {}
    damages: list[Damage] = []
    try:
        for kind, name in _FAMILIES.items():
            counts[kind] = _rescue_kind(source.get_column_family(name), kind, store, damages)
    finally:
        store.close()
        source.close()
        del source
        lock.release()
    if failures or store.is_full:
        raise StoreError(f"not all was saved to {target}: {(failures or ['the disk is full'])[0]}")
    return counts, damages


def _rescue_kind(family: Rdict, kind: Kind, store: RocksStore, damages: list[Damage]) -> int:
    def note(key: bytes, what: str) -> None:
        damages.append(Damage(kind, key, what))

    batch, count = store.batch(), 0
    for key, value in _Reading(family, kind, note).records():
        batch.put(kind, key, value)
        count += 1
        if count % _RESCUE_BATCH_SIZE == 0:
            store.commit(batch, _nothing)
            batch = store.batch()
    store.commit(batch, _nothing)
    return count


def _nothing() -> None:
    """What is to be done after a commit that nobody waits for."""


def _open_rocksdb(records: Path, recovery: DBRecoveryMode | None = None) -> Rdict:
    """Open the database with all column families that it has or should have."""
    recovery = DBRecoveryMode.tolerate_corrupted_tail_records() if recovery is None else recovery
    cache = Cache(8 * _MIB)
    names = {_METADATA, *_FAMILIES.values()}
    if (records / "CURRENT").exists():
        names |= set(Rdict.list_cf(str(records))) - {"default"}
    short_lived = {_FAMILIES[kind] for kind in _SHORT_LIVED}
    options = _options(cache, recovery, is_short_lived=False)
    families = {
        name: _options(cache, recovery, is_short_lived=name in short_lived) for name in names
    }
    return Rdict(str(records), options, families)


def _options(cache: Cache, recovery: DBRecoveryMode, *, is_short_lived: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(recovery)
    options.set_paranoid_checks(True)
    # Messages are compressed already, or small: it would cost the storage thread's processor time.
    options.set_compression_type(DBCompressionType.none())
    # Memory: what is not yet in a sorted file, over all kinds, and blocks that were read.
    options.set_write_buffer_size(8 * _MIB)
    options.set_db_write_buffer_size(24 * _MIB)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    options.set_block_based_table_factory(table)
    options.set_max_open_files(256)
    # How much log there is bounds how long a start after a crash takes.
    options.set_max_total_wal_size(64 * _MIB)
    options.set_bytes_per_sync(_MIB)  # sorted files reach the disk evenly, not all at once
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MIB)
    options.set_max_manifest_file_size(4 * _MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    if is_short_lived:
        options.add_compact_on_deletion_collector_factory(8192, 4096, 0.5)
    return options


def _read_options(*, verify: bool) -> ReadOptions:
    options = ReadOptions()
    options.set_total_order_seek(True)
    options.set_verify_checksums(verify)
    # Nothing that was read without its checksum may stay in the cache, and a scan is read once.
    cast("Any", options).fill_cache(False)  # the stub of rocksdict forgets the argument
    return options


def _seek_behind(iterator: RdictIter, key: bytes | None, start: bytes) -> None:
    """Go to the first record behind `key`, or to the first from `start` on."""
    if key is None:
        iterator.seek(start)
        return
    iterator.seek(key)
    if iterator.valid() and iterator.key() == key:
        iterator.next()


def _has_records(family: Rdict) -> bool:
    """Whether there is anything to read, be it good or bad."""
    iterator = family.iter(_read_options(verify=True))
    iterator.seek_to_first()
    return iterator.valid() or _status(iterator) is not None


def _status(iterator: RdictIter) -> str | None:
    try:
        iterator.status()
    except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more precise
        return str(error)
    return None


def _describe(tear: Tear) -> str:
    return (
        f"the last {tear.size_bytes} bytes of {tear.path.name} are torn and were cut off: "
        "it was being written when the machine stopped"
    )


def _make_directory(directory: Path) -> None:
    """Make the directory and those above it, durably."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_on_disk(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # RocksDB removes files at any time
                total += entry.stat().st_blocks * 512
    return total
