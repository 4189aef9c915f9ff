"""Where durable state is kept: an ordered key-value store that takes atomic, numbered batches.

The core sees only this interface. It records what changes in a `Batch`, hands the batch over with
`Store.commit`, and lets nothing leave (acknowledgements, deliveries) before the store has called
back.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Protocol

__all__ = ["Batch", "Kind", "Store"]


class Kind(IntEnum):
    """What a record is: records of one kind are ordered by key and scanned together."""

    SESSION = 1
    """client id → who opened the session and how long it outlives its connection"""
    SUBSCRIPTION = 2
    """client id, filter → options"""
    QUEUED = 3
    """client id, number → a message that its client has not acknowledged"""
    IN_FLIGHT = 4
    """client id, packet identifier → number of the queued message and how far it came"""
    RECEIVED = 5
    """client id, packet identifier → a QoS 2 message that came in and is not released"""
    RETAINED = 6
    """topic → message"""


class Batch(Protocol):
    """Changes that take effect together or not at all."""

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        """Set the record, in place of an earlier one with this key."""
        ...

    def delete(self, kind: Kind, key: bytes) -> None:
        """Remove the record; harmless when there is none."""
        ...


class Store(Protocol):
    """An ordered key-value store with atomic batches."""

    def batch(self) -> Batch:
        """A new, empty batch."""
        ...

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Make the batch durable, then call `done` in the thread of the core.

        Batches complete in the order in which they are given.
        """
        ...

    def scan(self, kind: Kind) -> Iterator[tuple[bytes, bytes]]:
        """Every committed record of a kind as (key, value), in order of the keys."""
        ...

    def close(self) -> None:
        """Finish the commits under way and let go of the files."""
        ...
