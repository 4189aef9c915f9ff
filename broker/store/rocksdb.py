"""The durable store: RocksDB, embedded (rocksdict), with one thread that writes and syncs.

The core's thread records operations straight into a batch in C++ memory. The storage thread makes
one call per batch, `Rdict.write` with `sync`, which writes and syncs the log without holding the
GIL; then it hands the completion to the core. Every record carries a CRC-32 of its kind, key and
value in front of its value, checked whenever it is read: RocksDB's own checksums are per block of
some 4 KiB, and only ours can say which record of a bad block is still good.

A store is a directory: ``LOCK`` (`DirectoryLock`), ``reserve`` (`Reserve`), ``seal`` while it is
closed (`Seal`), and ``records/``, RocksDB's own. There is one column family per kind, one for the
replication feed (`RocksFeed`), and one for what the store knows of itself (`Metadata`).

What goes wrong is told apart by what can be done about it. Little room on the disk: the store says
that it is full, and goes on writing, what deletes above all. No room: the reserve is given up; when
that is used up too the batch waits, and everything behind it. Any other failure to write or sync
ends the process: what is on disk is unknown from there on, and trying again would make a lost write
look like a durable one. Damaged records are reported and left out.
"""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, cast
from zlib import crc32

from rocksdict import (
    BottommostLevelCompaction,
    Checkpoint,
    ColumnFamily,
    CompactOptions,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from ganglion.broker.store import (
    Batch,
    Commit,
    CommitRefused,
    Damage,
    Kind,
    RecordDamaged,
    Snapshot,
    StoreError,
    StoreMissing,
    StoreStatistics,
)
from ganglion.broker.store.directories import make_directory, sync_directory
from ganglion.broker.store.feed import check_applicable, record
from ganglion.broker.store.lock import DirectoryLock
from ganglion.broker.store.log_room import LogRoom
from ganglion.broker.store.reserve import Reserve
from ganglion.broker.store.rocks_families import FAMILIES, FEED, open_database
from ganglion.broker.store.rocks_feed import OwnOperations, RocksFeed
from ganglion.broker.store.rocks_log import Tear, cut, ends_cleanly, find_tear, is_torn_list
from ganglion.broker.store.rocks_metadata import ADVICE_DAMAGED, Metadata, damage
from ganglion.broker.store.rocks_reading import (
    BAD_CHECKSUM,
    CRC,
    Progress,
    Reading,
    counted,
    fits,
    has_records,
)
from ganglion.broker.store.seal import BadSeal, Seal

__all__ = ["RocksStore"]

_RETRY_EVERY_S = 0.5  # RocksDB notices within seconds by itself that there is room again
_LOOK_EVERY_S = 1.0
"""How often the free room is looked at: while there are commits, and while the disk is full."""
_RESERVE_BYTES = 64 * 1024 * 1024
_NO_ROOM = ("No space left on device", "Disk quota exceeded")
_CORRUPT = "Corruption"
_LOAD_BATCH_BYTES = 1024 * 1024
_Work = tuple["_RocksBatch", int, int, Callable[[], None]]
"""A batch; number and epoch of the last commit when it is durable; what is then to be done."""


class _RocksBatch:
    """Operations in C++ memory, and once more here: a failed write consumes the former."""

    __slots__ = ("_delete", "_delete_range", "_handles", "_put", "operations", "own", "writes")

    def __init__(self, handles: dict[Kind, ColumnFamily]) -> None:
        self.writes = WriteBatch(raw_mode=True)
        # Flat, three entries per operation: a tuple each would cost the garbage collector more
        # than the operation itself. Kind, key, framed value or None; of a range: kind, start, and
        # the place behind it in a list of its own.
        self.operations: list[Any] = []
        self.own: OwnOperations = []
        """What the store itself adds when the batch is committed."""
        self._handles = handles
        self._put = self.writes.put
        self._delete = self.writes.delete
        self._delete_range = self.writes.delete_range

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        framed = CRC.pack(crc32(value, crc32(key, kind))) + value
        self._put(key, framed, self._handles[kind])
        self.operations += (kind, key, framed)

    def delete(self, kind: Kind, key: bytes) -> None:
        self._delete(key, self._handles[kind])
        self.operations += (kind, key, None)

    def delete_range(self, kind: Kind, start: bytes, stop: bytes) -> None:
        if start >= stop:
            return  # RocksDB would refuse the whole batch
        self._delete_range(start, stop, self._handles[kind])
        self.operations += (kind, start, [stop])

    def seal(self, own: OwnOperations) -> None:
        """Add what the store itself writes with this batch."""
        self.own = own
        _write_own(self.writes, own)

    def again(self) -> WriteBatch:
        """The same operations, to be written once more."""
        writes = WriteBatch(raw_mode=True)
        operations = iter(self.operations)
        for kind, key, framed in zip(operations, operations, operations, strict=True):
            _write(writes, self._handles[kind], key, framed)
        _write_own(writes, self.own)
        return writes


def _write_own(writes: WriteBatch, own: OwnOperations) -> None:
    for handle, key, framed in own:
        _write(writes, handle, key, framed)


def _write(
    writes: WriteBatch, handle: ColumnFamily, key: bytes, framed: bytes | list[bytes] | None
) -> None:
    if framed is None:
        writes.delete(key, handle)
    elif isinstance(framed, bytes):
        writes.put(key, framed, handle)
    else:
        writes.delete_range(key, framed[0], handle)


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
        reserve_bytes: int = _RESERVE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the store, or make an empty one where there is none if `create`.

        `in_core` takes a call from any thread and has it made in the thread of the core, in order.
        `fatal` is called, in the storage thread, when a write or its sync has failed: the process
        must end, since nothing will be durable from there on. `report` is told of damage, in the
        thread that reads. `full_changed` is called in the core when `is_full` changes.
        `reserve_bytes` of the disk are kept back for times when it is full, at most 1/8 of what is
        free; 0 does without. `clock` gives the Unix time in seconds by which the feed ages.

        Raises `StoreLocked`, `StoreMissing`, `StoreTooNew`, `UpgradeInterrupted`, `StoreDamaged`,
        or another `StoreError` when the files cannot be used.
        """
        self.directory = directory
        self.is_full = False
        """Whether there is too little room on the disk: nothing new is to be taken in.

        From when the free room is less than half of the reserve, or a write found none, until the
        reserve is whole and as much room as it takes is free beside it.
        """
        self._clock = clock
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
        self._writing = Lock()
        """Held while a batch is written: `snapshot` reads all kinds as of one commit."""
        self._looked_s = 0.0  # when the free room was looked at, by the monotonic clock
        self._written_bytes = 0  # since then
        self._deleted: set[Kind] = set()  # of what records were deleted on a full disk
        self._is_half_loaded = False
        self._given_number, self._given_epoch = 0, 0
        """Of the last commit that was given, which may not be durable yet."""
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        records = directory / "records"
        self._seal = Seal(directory / "seal", records)
        self._log_room = LogRoom(records)
        if not create and not (records / "CURRENT").exists():
            raise StoreMissing(f"there is no store in {directory}")
        try:
            # By us, because RocksDB does not sync its name: what is synced inside went with it.
            make_directory(records)
            self._lock = DirectoryLock(directory)
        except OSError as error:
            raise StoreError(
                f"the store in {directory} cannot be used: {error.strerror or error}"
            ) from error
        try:
            self._reserve = Reserve(directory / "reserve", reserve_bytes)
            try:
                self._db = self._open(records)
                try:
                    self._attach()
                except BaseException:
                    self._detach()
                    raise
            except BaseException:
                self._reserve.close()
                raise
        except OSError as error:
            self._lock.release()
            raise StoreError(
                f"cannot open the store in {directory}: {error.strerror or error}"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        self._thread = Thread(target=self._run, name="ganglion-storage", daemon=True)
        self.is_full = not self._reserve.is_held
        self._thread.start()

    # -- writing ---------------------------------------------------------------------------------

    def batch(self) -> Batch:
        """A new, empty batch. It is committed once."""
        return _RocksBatch(self._handles)

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Make the batch durable, then have `done` called in the core."""
        assert isinstance(batch, _RocksBatch)
        self._check_loaded()
        self._given_number += 1
        own: OwnOperations = []
        if self._feed.is_attached:
            own, changed = self._feed.keep(self._given_number, self._given_epoch, batch.operations)
            if changed:
                own.append(self._metadata.with_feed(self._feed.encode()))
        own.append(self._metadata.with_commit(self._given_number, self._given_epoch))
        self._hand_over(batch, own, done)

    def _hand_over(self, batch: _RocksBatch, own: OwnOperations, done: Callable[[], None]) -> None:
        batch.seal(own)
        self._work.put((batch, self._given_number, self._given_epoch, done))

    def _check_loaded(self) -> None:
        if self._is_half_loaded:
            raise StoreError(
                f"the snapshot was not loaded into {self.directory} as a whole: "
                "begin again with a new directory"
            )

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_LOOK_EVERY_S if self.is_full else None)
            except Empty:
                self._look_at_room()
                continue
            if work is None:
                return
            batch, number, epoch, done = work
            if self._failed:
                pass  # never acknowledged: what comes after a hole is not durable
            elif self._write(batch, number, epoch):
                self._in_core(done)
                self._account(batch)
            else:
                self._failed = True
            batch.own.clear()  # who still has the batch does not keep the database open by it

    def _write(self, batch: _RocksBatch, number: int, epoch: int) -> bool:
        """Write and sync the batch, waiting for room if need be; whether it is durable."""
        writes = batch.writes
        self._written_bytes += writes.size_in_bytes()
        while True:
            try:
                with self._writing:
                    self._db.write(writes, self._sync)
                    self.commit_number, self.epoch = number, epoch
            except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more precise
                message = str(error)
                if not any(text in message for text in _NO_ROOM):
                    self._fatal(
                        f"the store in {self.directory} could not write commit {number}: {message}"
                        + (f"; {ADVICE_DAMAGED}" if _CORRUPT in message else "")
                    )
                    return False
            else:
                return True
            self._reserve.release()
            self._set_full(True)
            if self._closing.wait(_RETRY_EVERY_S):
                return False
            writes = batch.again()

    def _account(self, batch: _RocksBatch) -> None:
        """Look at the free room if it is time to, after this batch."""
        if self.is_full:
            operations = batch.operations
            self._deleted.update(
                operations[place]
                for place in range(0, len(operations), 3)
                if type(operations[place + 2]) is not bytes
            )
        if (
            time.monotonic() - self._looked_s >= _LOOK_EVERY_S
            or self._written_bytes * 4 >= self._reserve.low_bytes > 0
        ):
            self._look_at_room()

    def _look_at_room(self) -> None:
        """Say whether the disk is full; while it is, have deleted records give up their room.

        While it is not, there is room in the log.
        """
        written_bytes = self._written_bytes
        self._looked_s, self._written_bytes = time.monotonic(), 0
        if not self.is_full:
            self._set_full(self._reserve.is_low())
            if not self.is_full:
                self._log_room.keep(written_bytes)
            return
        for kind in tuple(self._deleted):
            # What is deleted is known in memory only until so much was written that it goes to a
            # file, where RocksDB sees that older files are better rewritten: on a full disk nobody
            # writes so much.
            with suppress(Exception):  # no room for that either, up to now: again later
                self._families[kind].flush()
                self._deleted.discard(kind)
        self._set_full(not self._reserve.has_room())

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
            # Another record of the same block may be the damaged one: a scan tells.
            for _, value in self.scan(kind, key, key + b"\0"):
                return value
            raise RecordDamaged(self._note(kind, key, str(error))) from error
        if framed is None:
            return None
        if not fits(kind, key, framed):
            raise RecordDamaged(self._note(kind, key, BAD_CHECKSUM))
        return framed[CRC.size :]

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
        reading = Reading(self._families[kind], kind, note, start, stop, backwards=backwards)
        return reading.records()

    def _note(self, kind: Kind | None, key: bytes, what: str) -> Damage:
        self._damaged += 1
        damage = Damage(kind, key, what)
        if self._report is not None:
            self._report(damage)
        return damage

    def verify(self, progress: Progress | None = None) -> tuple[dict[Kind, int], list[Damage]]:
        """Read everything: how many good records there are of each kind, and all damage.

        `progress` is told now and then of a kind and how many were read.
        """
        found: list[Damage] = []
        report, self._report = self._report, found.append
        try:
            counts = {
                kind: sum(1 for _ in counted(self.scan(kind), kind.name.lower(), progress))
                for kind in Kind
            }
            self._feed.verify()
        finally:
            self._report = report
        return counts, found

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
            feed_first=self._feed.first,
            feed_bytes=self._feed.size_bytes,
        )

    # -- replication -----------------------------------------------------------------------------

    def attach_feed(self, bytes_max: int, age_max_s: float) -> None:
        """Keep the commits from the next one on, or change the bounds of those that are kept."""
        self._feed.attach(bytes_max, age_max_s)
        self._save_feed([])

    def detach_feed(self) -> None:
        """Keep no commits, and forget those that are kept."""
        if self._feed.is_attached:
            self._save_feed(self._feed.detach())

    def _save_feed(self, own: OwnOperations) -> None:
        """Have the state of the feed written, in order with the commits but as none of them."""
        own.append(self._metadata.with_feed(self._feed.encode()))
        self._hand_over(_RocksBatch(self._handles), own, _nothing)

    def commits_after(self, number: int) -> Iterator[Commit]:
        """The durable commits behind that one, in order, without a gap. Raises `FeedGone`."""
        return self._feed.after(number, self._given_number)

    @contextmanager
    def snapshot(self) -> Generator[Snapshot, None, None]:
        """Everything as of one commit, while others go on."""
        with self._writing:
            number, epoch = self._metadata.last_commit()
            readings = {
                kind: Reading(family, kind, partial(self._refuse, kind))
                for kind, family in self._families.items()
            }
        records = (
            (kind, key, value)
            for kind, reading in readings.items()
            for key, value in reading.records()
        )
        try:
            yield Snapshot(number, epoch, records)
        finally:
            records.close()
            readings.clear()  # they hold on to files

    def _refuse(self, kind: Kind, key: bytes, what: str) -> None:
        self._note(kind, key, what)
        raise damage(self.directory, f"{what}: {kind.name} {key!r}")

    def load(self, number: int, epoch: int, records: Iterable[tuple[Kind, bytes, bytes]]) -> None:
        """Take over a snapshot into this store, durably.

        Raises `CommitRefused` when there is anything in it, `StoreError` when it cannot be written.
        """
        self._check_loaded()
        if self._given_number or any(has_records(family) for family in self._families.values()):
            raise CommitRefused(
                f"the store in {self.directory} is not empty: load a snapshot into a new directory"
            )
        self._is_half_loaded = True
        with self._writing:
            begin = WriteBatch(raw_mode=True)
            _write_own(begin, [self._metadata.with_loading(number)])
            self._write_loaded(begin, self._sync)
            batch = _RocksBatch(self._handles)
            for kind, key, value in records:
                batch.put(kind, key, value)
                if batch.writes.size_in_bytes() >= _LOAD_BATCH_BYTES:
                    self._write_loaded(batch.writes, WriteOptions())
                    batch = _RocksBatch(self._handles)
            self._write_loaded(batch.writes, self._sync)
            end = WriteBatch(raw_mode=True)
            commit = self._metadata.with_commit(number, epoch)
            _write_own(end, [commit, self._metadata.with_loading(None)])
            self._write_loaded(end, self._sync)
        self._is_half_loaded = False
        self._given_number, self._given_epoch = self.commit_number, self.epoch = number, epoch

    def _write_loaded(self, writes: WriteBatch, options: WriteOptions) -> None:
        try:
            self._db.write(writes, options)
        except Exception as error:
            raise StoreError(
                f"the snapshot was not loaded into {self.directory}: {error}; "
                "begin again with a new directory"
            ) from error

    def apply(self, commit: Commit, done: Callable[[], None]) -> None:
        """Make a commit of another store durable. Raises `CommitRefused` if it is not the next."""
        check_applicable(commit, self._given_number, self._given_epoch)
        batch = self.batch()
        record(batch, commit.operations)
        self._given_epoch = commit.epoch
        self.commit(batch, done)

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
            make_directory(directory)
            Checkpoint(self._db).create_checkpoint(str(target))
            sync_directory(directory)
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
        self._reserve.close()
        if self._detach() and not self._failed:
            self._seal.put()
        self._lock.release()

    # -- opening ---------------------------------------------------------------------------------

    def _open(self, records: Path) -> Rdict:
        """Open RocksDB, and cut a torn end of its log."""
        try:
            if what := self._seal.mismatch():
                raise damage(self.directory, what)
        except BadSeal as error:
            self._note(None, b"", str(error))
        self._seal.remove()
        logs = sorted(records.glob("*.log"))
        if not (records / "CURRENT").exists() and (
            any(records.glob("*.sst")) or any(log.stat().st_size for log in logs)
        ):
            raise damage(self.directory, "the file CURRENT is missing")
        manifest = _current_manifest(records)
        mended = False
        if not all(ends_cleanly(each) for each in (*manifest, *logs)):
            mended = self._mend(manifest, logs)
        try:
            try:
                return open_database(records)
            except Exception as error:
                message = str(error)
                if any(text in message for text in _NO_ROOM) and self._reserve.is_held:
                    self._reserve.release()  # what is in the log has to go to sorted files
                elif mended or _CORRUPT not in message or not self._mend(manifest, logs):
                    raise
                return open_database(records)
        except StoreError:
            raise
        except Exception as error:
            message = str(error)
            if _CORRUPT in message:
                raise damage(self.directory, message) from error
            raise StoreError(f"cannot open the store in {self.directory}: {message}") from error

    def _mend(self, manifest: list[Path], logs: list[Path]) -> bool:
        """Cut what is torn off the end of the list of sorted files, and of the last log.

        Whether there was anything. Raises `StoreDamaged` when what was acknowledged would go with
        it.
        """
        written = [log for log in logs if log.stat().st_size]
        tears = [tear for path in (*manifest, *logs) if (tear := find_tear(path)) is not None]
        for tear in tears:
            if tear.path in logs:
                is_torn = tear.is_last and tear.path == written[-1]
            else:
                # What the entry said is in the log as well, or it said nothing of new files.
                is_torn = is_torn_list(tear) and (bool(written) or not _has_files_since(tear.path))
            if not is_torn:
                raise damage(
                    self.directory,
                    f"{tear.path.name} cannot be read at byte {tear.offset}, and what was durable "
                    "would go with what lies behind",
                )
        for tear in tears:
            self._note(None, b"", _describe(tear))
            cut(tear)
        return bool(tears)

    def _attach(self) -> None:
        """Take hold of the column families; check, or write, what the store knows of itself."""
        self._metadata = Metadata(self._db, self.directory)
        is_begun = self._metadata.check()
        for kind, name in FAMILIES.items():
            self._families[kind] = self._db.get_column_family(name)
            self._handles[kind] = self._db.get_column_family_handle(name)
        if not is_begun:
            self._begin()
        else:
            self._begin_log()
        self.commit_number, self.epoch = self._metadata.last_commit()
        self._given_number, self._given_epoch = self.commit_number, self.epoch
        self._feed = RocksFeed(
            self._db.get_column_family(FEED),
            self._db.get_column_family_handle(FEED),
            self._metadata.feed(),
            self._clock,
            partial(self._note, None, b""),
        )

    def _begin_log(self) -> None:
        """Have something in the log from the start: see `_mend`."""
        writes = WriteBatch(raw_mode=True)
        _write_own(writes, [self._metadata.with_commit(*self._metadata.last_commit())])
        with suppress(
            Exception
        ):  # a full disk is no reason not to start; the next commit says more
            self._db.write(writes, self._sync)

    def _begin(self) -> None:
        """Make an empty store of these files, which have to be new."""
        if any(has_records(family) for family in self._families.values()):
            raise damage(self.directory, "the version of its format is missing")
        batch = WriteBatch(raw_mode=True)
        _write_own(batch, [self._metadata.with_format(), self._metadata.with_commit(0, 1)])
        try:
            self._db.write(batch, self._sync)
        except Exception as error:
            raise StoreError(f"cannot make a store in {self.directory}: {error}") from error

    def _detach(self) -> bool:
        """Let go of everything that keeps RocksDB open; whether that went well."""
        self._families.clear()
        self._handles.clear()
        for name in ("_metadata", "_feed"):
            with suppress(AttributeError):
                delattr(self, name)
        try:
            self._db.close()
        except Exception:  # noqa: BLE001 - what could not go to a sorted file is in the log
            return False
        finally:
            del self._db
        return True


def _nothing() -> None:
    """What is to be done after a commit that nobody waits for."""


def _current_manifest(records: Path) -> list[Path]:
    """The list of sorted files that RocksDB will read, if there is one; it has a log's form."""
    try:
        name = (records / "CURRENT").read_bytes().strip().decode("ascii", "replace")
    except OSError:
        return []
    path = records / name
    return [path] if name.startswith("MANIFEST-") and path.is_file() else []


def _has_files_since(manifest: Path) -> bool:
    """Whether a sorted file was made since the list of sorted files was begun.

    If not, then no entry at the end of the list can speak of one: without it nothing is lost. If
    so, then only the log has what such a file has.
    """
    number = int(manifest.name.removeprefix("MANIFEST-"))
    return any(int(each.stem) > number for each in manifest.parent.glob("*.sst"))


def _describe(tear: Tear) -> str:
    return (
        f"the last {tear.size_bytes} bytes of {tear.path.name} are torn and were cut off: "
        "it was being written when the machine stopped"
    )


def _size_on_disk(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # RocksDB removes files at any time
                total += entry.stat().st_blocks * 512
    return total
