"""Saving what can be read of a damaged store into a new one.

The new store is loaded as with the snapshot of another one: it is refused when it is opened before
all is there, and its commits go on from the number and the epoch of the damaged one.
"""

from collections.abc import Iterator
from pathlib import Path

from rocksdict import DBRecoveryMode, Rdict

from ganglion.broker.store import Damage, Kind, StoreDamaged, StoreError, StoreMissing
from ganglion.broker.store.lock import DirectoryLock
from ganglion.broker.store.rocks_families import FAMILIES, open_database
from ganglion.broker.store.rocks_metadata import Metadata
from ganglion.broker.store.rocks_reading import Progress, Reading, counted
from ganglion.broker.store.rocksdb import RocksStore

__all__ = ["rescue"]

_FIRST_EPOCH = 1


def rescue(
    damaged: Path, target: Path, progress: Progress | None = None
) -> tuple[dict[Kind, int], list[Damage]]:
    """Copy every good record of a damaged store into a new one in `target`.

    How many records of each kind were saved, and what was found damaged. Parts of the log that
    cannot be read are skipped: later changes to the same records may be missing. The damaged store
    is changed no more than by opening it; nobody else may have it open. `progress` is told now and
    then of a kind and how many were saved. Raises `StoreError` when nothing can be read at all,
    when not all that is good could be saved, or when `target` has a store already.
    """
    if (target / "records").exists():
        raise StoreError(f"there is a store in {target} already")
    if not (damaged / "records").is_dir():
        raise StoreMissing(f"there is no store in {damaged}")
    lock = DirectoryLock(damaged)
    try:
        try:
            source = open_database(
                damaged / "records", recovery=DBRecoveryMode.skip_any_corrupted_record()
            )
        except Exception as error:
            raise StoreError(f"nothing can be read of the store in {damaged}: {error}") from error
        try:
            return _copy(source, damaged, target, progress)
        finally:
            source.close()
    finally:
        lock.release()


def _copy(
    source: Rdict, damaged: Path, target: Path, progress: Progress | None
) -> tuple[dict[Kind, int], list[Damage]]:
    damages: list[Damage] = []
    counts = dict.fromkeys(Kind, 0)

    def records() -> Iterator[tuple[Kind, bytes, bytes]]:
        for kind, name in FAMILIES.items():

            def note(key: bytes, what: str, kind: Kind = kind) -> None:
                damages.append(Damage(kind, key, what))

            reading = Reading(source.get_column_family(name), kind, note)
            for key, value in counted(reading.records(), kind.name.lower(), progress):
                counts[kind] += 1
                yield kind, key, value

    number, epoch = _last_commit(source, damaged, damages)
    failures: list[str] = []
    store = RocksStore(target, in_core=lambda call: call(), fatal=failures.append)
    try:
        store.load(number, epoch, records())
    finally:
        store.close()
    return counts, damages


def _last_commit(source: Rdict, damaged: Path, damages: list[Damage]) -> tuple[int, int]:
    metadata = Metadata(source, damaged)
    try:
        metadata.check()
    except StoreDamaged as error:
        damages.append(Damage(None, b"", str(error)))
    try:
        return metadata.last_commit()
    except StoreDamaged:
        what = "the number of the last commit cannot be read: commits are numbered from 1 again"
        damages.append(Damage(None, b"", what))
        return 0, _FIRST_EPOCH
