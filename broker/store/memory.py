"""A store that forgets with its process: for tests and for nodes that need no durability."""

from collections.abc import Callable, Iterator

from ganglion.broker.store import Batch, Kind, StoreStatistics

__all__ = ["MemoryStore"]


class _MemoryBatch:
    __slots__ = ("operations",)

    def __init__(self) -> None:
        self.operations: list[tuple[Kind, bytes, bytes | None]] = []

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        self.operations.append((kind, key, value))

    def delete(self, kind: Kind, key: bytes) -> None:
        self.operations.append((kind, key, None))


class MemoryStore:
    """Keeps records in dicts; a commit completes before it returns."""

    def __init__(self) -> None:
        self._records: dict[Kind, dict[bytes, bytes]] = {kind: {} for kind in Kind}
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
        for kind, key, value in batch.operations:
            if value is None:
                self._records[kind].pop(key, None)
            else:
                self._records[kind][key] = value
        self.commit_number += 1
        done()

    def get(self, kind: Kind, key: bytes) -> bytes | None:
        """The committed value of a record; None when there is none."""
        return self._records[kind].get(key)

    def scan(self, kind: Kind) -> Iterator[tuple[bytes, bytes]]:
        """Every committed record of a kind as (key, value), in order of the keys."""
        return iter(sorted(self._records[kind].items()))

    def statistics(self) -> StoreStatistics:
        """What the store holds now; records are counted exactly, bytes are those of the data."""
        return StoreStatistics(
            commit_number=self.commit_number,
            epoch=self.epoch,
            records={kind: len(records) for kind, records in self._records.items()},
            size_bytes=sum(
                len(key) + len(value)
                for records in self._records.values()
                for key, value in records.items()
            ),
            is_full=False,
            damaged=0,
        )

    def close(self) -> None:
        """Nothing to let go of."""
