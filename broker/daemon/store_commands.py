"""``ganglion store``: look at, check, copy and compact the store of a node.

Each function works on a data directory, whose store is in ``store`` below it, and gives back what
there is to say. A node that runs has its store locked: what only reads then works on a copy of the
files as of that moment (`rocks_copy`), and for what changes the store the error names the process.
"""

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from ganglion.broker.store import Damage, Kind, Snapshot, StoreError, StoreLocked
from ganglion.broker.store.rescue import rescue
from ganglion.broker.store.rocks_copy import copied
from ganglion.broker.store.rocks_reading import Progress, counted
from ganglion.broker.store.rocksdb import RocksStore

__all__ = ["backup_store", "compact_store", "rescue_store", "store_info", "verify_store"]

_STORE = "store"
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def store_info(data: Path) -> dict[str, Any]:
    """What the store holds, by name; the numbers of records are estimates. Raises `StoreError`."""
    with _readable(data) as (store, _):
        statistics = store.statistics()
    return {
        "directory": str(data / _STORE),
        "commit_number": statistics.commit_number,
        "epoch": statistics.epoch,
        "size_bytes": statistics.size_bytes,
        "feed_first": statistics.feed_first,
        "feed_bytes": statistics.feed_bytes,
        "records": _by_name(statistics.records),
    }


def verify_store(data: Path, progress: Progress | None = None) -> tuple[list[str], bool]:
    """Read every record: one line per damage and one per kind; whether all is good.

    `progress` is told now and then of a kind and how many of its records were read. Raises
    `StoreError` when the store cannot be opened at all.
    """
    found: list[Damage] = []
    with _readable(data, found) as (store, _):
        counts, damages = store.verify(progress)
    found += damages
    lines = [_line(damage) for damage in found]
    lines += (f"{name}: {count} good records" for name, count in _by_name(counts).items())
    lines.append(f"{len(found)} damaged" if found else "Every checksum fits.")
    return lines, not found


def backup_store(data: Path, target: Path, progress: Progress | None = None) -> str:
    """Copy the store, so that `target` is a data directory to start from.

    Of a node that runs every record is read, and `progress` told of it as for `verify_store`.
    Raises `StoreError`; what was made by then is refused when it is opened.
    """
    with _readable(data) as (store, is_copy):
        if is_copy:
            _load(store, target / _STORE, progress)
        else:
            store.backup(target / _STORE)
        number = store.statistics().commit_number
    return f"{target} has all up to commit {number}: start from it with --data {target}"


def _load(store: RocksStore, target: Path, progress: Progress | None) -> None:
    if (target / "records").exists():
        raise StoreError(f"there is a store in {target} already")
    backup = RocksStore(target, in_core=lambda call: call(), fatal=_say, reserve_bytes=0)
    try:
        with store.snapshot() as snapshot:
            backup.load(snapshot.number, snapshot.epoch, _records(snapshot, progress))
    finally:
        backup.close()


def _records(snapshot: Snapshot, progress: Progress | None) -> Iterator[tuple[Kind, bytes, bytes]]:
    for kind, records in groupby(snapshot.records, key=itemgetter(0)):
        pairs = ((key, value) for _, key, value in records)
        for key, value in counted(pairs, kind.name.lower(), progress):
            yield kind, key, value


def compact_store(data: Path) -> str:
    """Give back the room of what was deleted or replaced. Raises `StoreError`."""
    with _opened(data) as store:
        before = store.statistics().size_bytes
        store.compact()
    with _opened(data) as store:
        after = store.statistics().size_bytes
    return f"{_size(before)} before, {_size(after)} now"


def rescue_store(
    data: Path, target: Path, progress: Progress | None = None
) -> tuple[list[str], bool]:
    """Save the good records of a damaged store into a new data directory `target`.

    One line per damage and one per kind, and whether all was good; `progress` as for
    `verify_store`. Raises `StoreError` when
    nothing can be saved.
    """
    counts, damages = rescue(data / _STORE, target / _STORE, progress)
    lines = [_line(damage) for damage in damages]
    lines += (f"{name}: {count} records saved" for name, count in _by_name(counts).items())
    return lines, not damages


@contextmanager
def _readable(
    data: Path, found: list[Damage] | None = None
) -> Generator[tuple[RocksStore, bool], None, None]:
    """The store itself, or a copy when another process has it; and which of the two it is."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(_opened(data, found)), False
        except StoreLocked:
            report = None if found is None else found.append
            opened = stack.enter_context(copied(data / _STORE, report)), True
        yield opened


@contextmanager
def _opened(data: Path, found: list[Damage] | None = None) -> Generator[RocksStore, None, None]:
    store = RocksStore(
        data / _STORE,
        in_core=lambda call: call(),
        fatal=_say,  # commands commit nothing, but RocksStore has to be told
        report=None if found is None else found.append,
        create=False,
    )
    try:
        yield store
    finally:
        store.close()


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _by_name(records: Mapping[Kind, int]) -> dict[str, int]:
    return {kind.name.lower(): count for kind, count in records.items()}


def _line(damage: Damage) -> str:
    where = f"{damage.kind.name.lower()} {damage.key!r}: " if damage.kind is not None else ""
    return f"damaged: {where}{damage.what}"


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), _UNITS[0]
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == _UNITS[0] else f"{size:.1f} {unit}"
