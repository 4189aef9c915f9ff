"""A queue's window of deduplication: which message identifiers it has seen lately.

A publisher that repeats a message after a lost acknowledgement gives it the same identifier; within
the window the queue takes it once. What was seen is recorded in the same commit as the message.
"""

from collections import deque
from struct import Struct

import msgpack

from ganglion.broker.core.commits import Commits
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Kind, Store

__all__ = ["IDENTIFIERS_MAX", "Deduplication"]

_KEY = Struct(">QQ")
IDENTIFIERS_MAX = 1_000_000
"""What is remembered at most, some 200 bytes of memory each; then the oldest are forgotten."""


class Deduplication:
    """What one queue has seen within its window."""

    __slots__ = (
        "_commits",
        "_identifier",
        "_next_number",
        "_offset_s",
        "_seen",
        "_timers",
        "_times",
    )

    def __init__(
        self,
        store: Store,
        commits: Commits,
        timers: Timers,
        wall_clock_offset_s: float,
        identifier: int,
    ) -> None:
        """Read what was recorded under this identifier of the queue."""
        self._commits = commits
        self._timers = timers
        self._offset_s = wall_clock_offset_s
        self._identifier = identifier
        self._seen: set[str] = set()
        self._times: deque[tuple[float, int, str]] = deque()  # seen at, number of the record, id
        self._next_number = 1
        for key, value in store.scan(
            Kind.DEDUPLICATION, _KEY.pack(identifier, 0), _KEY.pack(identifier + 1, 0)
        ):
            self._next_number = _KEY.unpack(key)[1] + 1
            message_id, seen = msgpack.unpackb(value)
            self._seen.add(message_id)
            self._times.append((seen - wall_clock_offset_s, self._next_number - 1, message_id))

    def has(self, message_id: str, window_s: float) -> bool:
        """Whether it was seen within the last `window_s` seconds."""
        self._forget(self._timers.now - window_s)
        return message_id in self._seen

    def is_new(self, message_id: str, window_s: float) -> bool:
        """Whether it was not seen within the last `window_s` seconds; from now on it has been."""
        now = self._timers.now
        self._forget(now - window_s)
        if message_id in self._seen:
            return False
        key = _KEY.pack(self._identifier, self._next_number)
        self._commits.put(
            Kind.DEDUPLICATION, key, msgpack.packb([message_id, now + self._offset_s])
        )
        self._seen.add(message_id)
        self._times.append((now, self._next_number, message_id))
        self._next_number += 1
        return True

    def _forget(self, until: float) -> None:
        times = self._times
        first = last = 0
        while times and (times[0][0] < until or len(times) >= IDENTIFIERS_MAX):
            _, last, message_id = times.popleft()
            first = first or last
            self._seen.discard(message_id)
        if first:
            self._commits.delete_range(
                Kind.DEDUPLICATION,
                _KEY.pack(self._identifier, first),
                _KEY.pack(self._identifier, last + 1),
            )

    def discard(self) -> None:
        """The queue is no more."""
        self._commits.delete_range(
            Kind.DEDUPLICATION, _KEY.pack(self._identifier, 0), _KEY.pack(self._identifier + 1, 0)
        )
