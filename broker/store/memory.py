"""A store that forgets with its process: for tests and for nodes that need no durability."""

from collections.abc import Callable, Iterator

from ganglion.broker.store import Batch, Kind

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

    def scan(self, kind: Kind) -> Iterator[tuple[bytes, bytes]]:
        """Every committed record of a kind as (key, value), in order of the keys."""
        yield from sorted(self._records[kind].items())

    def close(self) -> None:
        """Nothing to let go of."""
