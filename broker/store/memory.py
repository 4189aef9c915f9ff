"""A store that forgets with its process: for tests and for nodes that need no durability."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from ganglion.broker.store import (
    Batch,
    Commit,
    CommitRefused,
    Delete,
    DeleteRange,
    Kind,
    Operation,
    Put,
    Snapshot,
    StoreStatistics,
)
from ganglion.broker.store.feed import Feed, check_applicable, check_kept, record

__all__ = ["MemoryStore"]


class _MemoryBatch:
    __slots__ = ("operations",)

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        self.operations.append(Put(kind, key, value))

    def delete(self, kind: Kind, key: bytes) -> None:
        self.operations.append(Delete(kind, key))

    def delete_range(self, kind: Kind, start: bytes, stop: bytes) -> None:
        if start < stop:
            self.operations.append(DeleteRange(kind, start, stop))


class _Records:
    """The records of one kind: a dict, and its keys in order, sorted when they are asked for."""

    __slots__ = ("_by_key", "_keys")

    def __init__(self) -> None:
        self._by_key: dict[bytes, bytes] = {}
        self._keys: list[bytes] | None = []

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: bytes) -> bytes | None:
        return self._by_key.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        keys = self._keys
        if keys is not None and key not in self._by_key:
            if not keys or key > keys[-1]:
                keys.append(key)
            else:
                self._keys = None
        self._by_key[key] = value

    def delete(self, key: bytes) -> None:
        if self._by_key.pop(key, None) is not None and self._keys is not None:
            del self._keys[bisect_left(self._keys, key)]

    def delete_range(self, start: bytes, stop: bytes) -> None:
        keys = self._sorted()
        first, last = bisect_left(keys, start), bisect_left(keys, stop)
        for key in keys[first:last]:
            del self._by_key[key]
        del keys[first:last]

    def between(self, start: bytes, stop: bytes | None) -> list[tuple[bytes, bytes]]:
        keys = self._sorted()
        last = len(keys) if stop is None else bisect_left(keys, stop)
        return [(key, self._by_key[key]) for key in keys[bisect_left(keys, start) : last]]

    def _sorted(self) -> list[bytes]:
        if self._keys is None:
            self._keys = sorted(self._by_key)
        return self._keys


class MemoryStore:
    """Keeps records in dicts; a commit completes before it returns."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """An empty store; `clock` gives the Unix time in seconds, by which the feed ages."""
        self._records = {kind: _Records() for kind in Kind}
        self.commit_number = 0
        """The number of the last batch that was committed."""
        self.epoch = 1
        """Of the last commit."""
        self._clock = clock
        self._feed: Feed | None = None
        self._kept: deque[Commit] = deque()

    @property
    def is_full(self) -> bool:
        """Never: what does not fit into memory ends the process."""
        return False

    def batch(self) -> Batch:
        """A new, empty batch."""
        return _MemoryBatch()

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Apply the batch and call `done`."""
        assert isinstance(batch, _MemoryBatch)
        self.commit_number += 1
        for operation in batch.operations:
            records = self._records[operation.kind]
            match operation:
                case Put(_, key, value):
                    records.put(key, value)
                case Delete(_, key):
                    records.delete(key)
                case DeleteRange(_, start, stop):
                    records.delete_range(start, stop)
        if self._feed is not None:
            self._keep(self._feed, Commit(self.commit_number, self.epoch, tuple(batch.operations)))
        done()

    def _keep(self, feed: Feed, commit: Commit) -> None:
        size = sum(_size(operation) for operation in commit.operations)
        self._kept.append(commit)
        feed.add(commit.number, size, self._clock())
        first = feed.first or commit.number + 1
        while self._kept and self._kept[0].number < first:
            self._kept.popleft()

    def get(self, kind: Kind, key: bytes) -> bytes | None:
        """The committed value of a record; None when there is none."""
        return self._records[kind].get(key)

    def scan(
        self,
        kind: Kind,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Committed records of a kind as (key, value), in order of the keys, or in reverse."""
        found = self._records[kind].between(start, stop)
        return reversed(found) if backwards else iter(found)

    def attach_feed(self, bytes_max: int, age_max_s: float) -> None:
        """Keep the commits from the next one on, or change the bounds of those that are kept."""
        if self._feed is None:
            self._feed = Feed(bytes_max, age_max_s)
        else:
            self._feed.bytes_max, self._feed.age_max_s = bytes_max, age_max_s

    def detach_feed(self) -> None:
        """Keep no commits."""
        self._feed = None
        self._kept.clear()

    def commits_after(self, number: int) -> Iterator[Commit]:
        """The commits behind that one, in order and without a gap. Raises `FeedGone`."""
        check_kept(self._feed, number, self.commit_number)
        return iter([commit for commit in self._kept if commit.number > number])

    @contextmanager
    def snapshot(self) -> Generator[Snapshot, None, None]:
        """Everything at the last commit."""
        found = [
            (kind, key, value)
            for kind, records in self._records.items()
            for key, value in records.between(b"", None)
        ]
        yield Snapshot(self.commit_number, self.epoch, iter(found))

    def load(self, number: int, epoch: int, records: Iterable[tuple[Kind, bytes, bytes]]) -> None:
        """Take over a snapshot. Raises `CommitRefused` when there is anything in this store."""
        if self.commit_number or any(map(len, self._records.values())):
            raise CommitRefused("a snapshot can only be loaded into an empty store")
        for kind, key, value in list(records):  # all of them, or none if one cannot be had
            self._records[kind].put(key, value)
        self.commit_number, self.epoch = number, epoch

    def apply(self, commit: Commit, done: Callable[[], None]) -> None:
        """Make a commit of another store. Raises `CommitRefused` unless it is the next one."""
        check_applicable(commit, self.commit_number, self.epoch)
        batch = self.batch()
        record(batch, commit.operations)
        self.epoch = commit.epoch
        self.commit(batch, done)

    def statistics(self) -> StoreStatistics:
        """What the store holds now; records are counted exactly, bytes are those of the data."""
        return StoreStatistics(
            commit_number=self.commit_number,
            epoch=self.epoch,
            records={kind: len(records) for kind, records in self._records.items()},
            size_bytes=sum(
                len(key) + len(value)
                for records in self._records.values()
                for key, value in records.between(b"", None)
            ),
            is_full=False,
            damaged=0,
            feed_first=None if self._feed is None else self._feed.first,
            feed_bytes=0 if self._feed is None else self._feed.size_bytes,
        )

    def close(self) -> None:
        """Nothing to let go of."""


def _size(operation: Operation) -> int:
    match operation:
        case Put(_, key, value):
            return len(key) + len(value)
        case Delete(_, key):
            return len(key)
        case DeleteRange(_, start, stop):
            return len(start) + len(stop)
