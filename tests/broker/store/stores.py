"""What the tests of the stores share: a core to complete commits in, and changes to commit."""

import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from ganglion.broker.store import Commit, Damage, Delete, Kind, Operation, Put, Store
from ganglion.broker.store.feed import record
from ganglion.broker.store.memory import MemoryStore
from ganglion.broker.store.rocksdb import RocksStore
from tests.support import DEADLINE_S

__all__ = [
    "STORES",
    "Change",
    "Core",
    "apply",
    "commit",
    "commit_operations",
    "contents",
    "open_rocks",
]

Change = tuple[Kind, bytes, bytes | None]
"""Kind, key and value of a record; None deletes it."""


class Core:
    """The thread of the core, which is that of the test, and what the store told it."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.thread = threading.current_thread()
        self.fatal: list[str] = []
        self.damages: list[Damage] = []
        self.full: list[bool] = []
        self.opened: list[RocksStore] = []
        self.time_s = 1_700_000_000.0
        """What the clock of every store shows."""

    def close(self) -> None:
        """Close what a failed test has left open: its thread would keep the process."""
        for store in self.opened:
            store.close()

    def in_core(self, call: Callable[[], None]) -> None:
        """Have the call made when the test waits."""
        self._calls.put(call)

    def wait(self, condition: Callable[[], object], *, deadline_s: float = DEADLINE_S) -> None:
        """Make the calls that come until the condition holds."""
        while not condition():
            try:
                call = self._calls.get(timeout=deadline_s)
            except Empty:
                raise AssertionError(
                    f"the store did not call within {deadline_s} s; fatal: {self.fatal}"
                ) from None
            call()

    def run(self) -> None:
        """Make the calls that have come."""
        while not self._calls.empty():
            self._calls.get()()


def open_rocks(directory: Path, core: Core, *, reserve_bytes: int = 1024 * 1024) -> RocksStore:
    """The store of this directory, connected with the core."""
    store = RocksStore(
        directory,
        in_core=core.in_core,
        fatal=core.fatal.append,
        report=core.damages.append,
        full_changed=core.full.append,
        clock=lambda: core.time_s,
        reserve_bytes=reserve_bytes,
    )
    core.opened.append(store)
    return store


STORES: dict[str, Callable[[Path, Core], Store]] = {
    "memory": lambda _, core: MemoryStore(clock=lambda: core.time_s),
    "rocksdb": open_rocks,
}
"""How an empty store of each sort is made, given a directory that is not there yet."""


def commit(store: Store, core: Core, *changes: Change) -> None:
    """Commit one batch of these changes and wait until it is durable."""
    operations = (
        Delete(kind, key) if value is None else Put(kind, key, value)
        for kind, key, value in changes
    )
    commit_operations(store, core, *operations)


def commit_operations(store: Store, core: Core, *operations: Operation) -> None:
    """Commit one batch of these operations and wait until it is durable."""
    batch = store.batch()
    record(batch, operations)
    done: list[bool] = []
    store.commit(batch, lambda: done.append(True))
    core.wait(lambda: done)
    assert done == [True]


def apply(store: Store, core: Core, made: Commit) -> None:
    """Apply a commit of another store and wait until it is durable."""
    done: list[bool] = []
    store.apply(made, lambda: done.append(True))
    core.wait(lambda: done)
    assert done == [True]


def contents(store: Store) -> dict[tuple[Kind, bytes], bytes]:
    """Every record of a store."""
    return {(kind, key): value for kind in Kind for key, value in store.scan(kind)}
