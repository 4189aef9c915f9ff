"""A queue's window of deduplication: which message identifiers it has seen lately.

A publisher that repeats a message after a lost acknowledgement gives it the same identifier; within
the window the queue takes it once. What was seen is recorded in the same commit as the message, so
that both are there after a crash or neither is. The identifiers of one commit are one record, and
one record goes when all of its window has passed.
"""

from collections import deque
from struct import Struct

import msgpack

from ganglion.broker.core.backlog import Shelf
from ganglion.broker.store import Kind

__all__ = ["IDENTIFIERS_MAX", "Deduplication"]

_KEY = Struct(">QQ")
IDENTIFIERS_MAX = 1_000_000
"""What is remembered at most, some 200 bytes of memory each; then the oldest are forgotten."""


class Deduplication:
    """What one queue has seen within its window."""

    __slots__ = (
        "_forgotten_to",
        "_identifier",
        "_is_noted",
        "_next_number",
        "_opened",
        "_rows",
        "_seen",
        "_shelf",
        "_written_from",
    )

    def __init__(self, shelf: Shelf, identifier: int) -> None:
        """Read what was recorded under this identifier of the queue."""
        self._shelf = shelf
        self._identifier = identifier
        self._seen: set[str] = set()
        self._rows: deque[tuple[float, int, list[str]]] = deque()  # seen at, number of the record
        self._opened: list[str] = []  # not recorded yet
        self._next_number = 1
        self._written_from = 0  # the first record that the store has
        self._forgotten_to = 0  # the last one that it has to lose
        self._is_noted = False
        records = shelf.store.scan(Kind.DEDUPLICATION, self._key(0), _KEY.pack(identifier + 1, 0))
        for key, value in records:
            number: int = _KEY.unpack(key)[1]
            seen_s, message_ids = msgpack.unpackb(value)
            self._seen.update(message_ids)
            self._rows.append((seen_s - shelf.wall_clock_offset_s, number, message_ids))
            self._written_from = self._written_from or number
            self._next_number = number + 1

    def has(self, message_id: str, window_s: float) -> bool:
        """Whether it was seen within the last `window_s` seconds."""
        self._forget(self._shelf.timers.now - window_s)
        return message_id in self._seen

    def add(self, message_id: str) -> None:
        """It is seen now, for the first time."""
        self._seen.add(message_id)
        self._opened.append(message_id)
        self._note()

    def _key(self, number: int) -> bytes:
        return _KEY.pack(self._identifier, number)

    def _note(self) -> None:
        if not self._is_noted:
            self._is_noted = True
            self._shelf.commits.before_flush(self._write)

    def _write(self) -> None:
        self._is_noted = False
        shelf = self._shelf
        if self._forgotten_to:
            start, stop = self._key(self._written_from), self._key(self._forgotten_to + 1)
            shelf.commits.delete_range(Kind.DEDUPLICATION, start, stop)
            self._written_from, self._forgotten_to = self._forgotten_to + 1, 0
        if self._opened:
            message_ids, self._opened = self._opened, []
            now, number = shelf.timers.now, self._next_number
            self._next_number += 1
            value = msgpack.packb([now + shelf.wall_clock_offset_s, message_ids])
            shelf.commits.put(Kind.DEDUPLICATION, self._key(number), value)
            self._rows.append((now, number, message_ids))

    def _forget(self, until: float) -> None:
        rows = self._rows
        while rows and (rows[0][0] < until or len(self._seen) >= IDENTIFIERS_MAX):
            _, self._forgotten_to, message_ids = rows.popleft()
            self._seen.difference_update(message_ids)
            self._note()

    def discard(self) -> None:
        """The queue is no more, or remembers nothing any more."""
        self._opened = []
        self._forgotten_to = 0
        self._shelf.commits.delete_range(
            Kind.DEDUPLICATION, self._key(0), _KEY.pack(self._identifier + 1, 0)
        )
