"""A store that forgets with its process: for tests and for nodes that need no durability."""

from bisect import bisect_left
from collections.abc import Callable, Iterator

from ganglion.broker.store import Batch, Kind, StoreStatistics

__all__ = ["MemoryStore"]


class _MemoryBatch:
    __slots__ = ("operations",)

    def __init__(self) -> None:
        # kind, key, value; or kind, start, None, stop
        self.operations: list[tuple[Kind, bytes, bytes | None, bytes]] = []

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        self.operations.append((kind, key, value, b""))

    def delete(self, kind: Kind, key: bytes) -> None:
        self.operations.append((kind, key, None, key + b"\0"))

    def delete_range(self, kind: Kind, start: bytes, stop: bytes) -> None:
        self.operations.append((kind, start, None, stop))


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

    def delete_range(self, start: bytes, stop: bytes) -> None:
        if stop == start + b"\0":  # one key
            if self._by_key.pop(start, None) is not None:
                self._keys = None
            return
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

    def __init__(self) -> None:
        self._records = {kind: _Records() for kind in Kind}
        self.commit_number = 0
        """How many batches have been committed."""
        self.epoch = 1
        """It never changes: nobody can take over what is not kept."""

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
        for kind, key, value, stop in batch.operations:
            if value is None:
                self._records[kind].delete_range(key, stop)
            else:
                self._records[kind].put(key, value)
        self.commit_number += 1
        done()

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
        )

    def close(self) -> None:
        """Nothing to let go of."""
