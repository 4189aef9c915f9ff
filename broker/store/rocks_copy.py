"""A copy of a store that another process has open, as of one moment, without that one's help.

RocksDB's sorted files never change: they are linked, so that they stay when they are deleted. Its
log and its list of sorted files only grow at the end, so that a copy has what was there when it
began, and perhaps more. What makes one moment of them is their order:

1. The list is read. What it does not have in sorted files is in logs that are there.
2. Sorted files are linked and logs are copied, those that one look at the directory found. A log
   behind which there is another is complete: together they end at one place.
3. The list is looked at again. RocksDB writes into it before it deletes a file, so that when it is
   as it was nothing was missed. Otherwise all is done again.

A commit is one record of the log; the last one, when it is there in part, counts as not begun.
(A secondary instance of RocksDB reads the list and then the logs without the third step: with a log
deleted in between, commits are missing from the middle.)
"""

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ganglion.broker.store import Damage, StoreError, StoreMissing
from ganglion.broker.store.lock import DirectoryLock
from ganglion.broker.store.rocks_log import ends_cleanly
from ganglion.broker.store.rocksdb import RocksStore

__all__ = ["copied"]

_ATTEMPTS_MAX = 100
"""The list changes with every 8 MiB or so that are written, and an attempt takes milliseconds."""


@contextmanager
def copied(
    directory: Path, report: Callable[[Damage], None] | None = None
) -> Generator[RocksStore, None, None]:
    """The store in `directory`, in use by others, as of now: in a copy, gone at the end.

    The copy is in ``copy`` below the directory; what an interrupted one has left there goes with
    the next. `report` is told of damage. Raises `StoreLocked` while there is another copy, and
    `StoreError` like `RocksStore`, or when the files do not keep still long enough.
    """
    copy = directory / "copy"
    failures: list[str] = []
    try:
        copy.mkdir(mode=0o700, exist_ok=True)
        lock = DirectoryLock(copy)
    except OSError as error:
        raise StoreError(f"cannot copy the store in {directory}: {error}") from error
    here = copy / "store"
    try:
        _clear(here)
        _take(directory / "records", here / "records")
        try:
            store = RocksStore(
                here,
                in_core=lambda call: call(),
                fatal=failures.append,  # nobody commits to it
                report=report,
                create=False,
                reserve_bytes=0,
            )
            try:
                yield store
            finally:
                store.close()
        except StoreError as error:
            # It is the store that is damaged, or too new, and not only its copy.
            raise type(error)(str(error).replace(str(here), str(directory))) from error
    except OSError as error:
        raise StoreError(f"cannot copy the store in {directory}: {error}") from error
    finally:
        with suppress(OSError):
            _clear(here)
        lock.release()


def _clear(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _take(records: Path, target: Path) -> None:
    """Copy the files of a RocksDB that is in use. Raises `StoreError`, OSError."""
    target.mkdir(mode=0o700, parents=True)
    for _ in range(_ATTEMPTS_MAX):
        with suppress(FileNotFoundError):  # the list was just replaced, or a log was deleted
            if _take_once(records, target):
                return
    if not (records / "CURRENT").exists():
        raise StoreMissing(f"there is no store in {records.parent}")
    raise StoreError(
        f"the files of the store in {records.parent} changed during each of {_ATTEMPTS_MAX} "
        "attempts to copy them: try again, or stop its node"
    )


def _take_once(records: Path, target: Path) -> bool:
    """Try it once; whether the copy is of one moment."""
    current = (records / "CURRENT").read_bytes()
    listing = records / current.decode("ascii", "replace").strip()
    listed = listing.read_bytes()
    for old in (*target.glob("*.log"), *target.glob("MANIFEST-*")):
        old.unlink()
    names = sorted(each.name for each in records.iterdir())
    for name in names:
        if name.endswith(".sst"):
            with suppress(FileNotFoundError):  # step 3 tells whether it is needed
                _link(records / name, target / name)
    logs = [name for name in names if name.endswith(".log")]
    for name in logs:
        shutil.copyfile(records / name, target / name)
    if (records / "CURRENT").read_bytes() != current or listing.stat().st_size != len(listed):
        return False
    (target / listing.name).write_bytes(listed)
    (target / "CURRENT").write_bytes(current)
    # Caught within an entry, a copy cannot be told from what a torn write has left.
    return all(ends_cleanly(target / name) for name in (listing.name, *logs[-1:]))


def _link(source: Path, target: Path) -> None:
    """Link a sorted file, or copy it where there are no links."""
    size_bytes = source.stat().st_size
    if target.exists():
        if target.stat().st_size == size_bytes:
            return
        target.unlink()  # it was copied while it was being written
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
