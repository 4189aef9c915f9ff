"""Messages of a queue that are not due yet.

They are kept apart from the queue's backlog, ordered by the time when they are due, so that any
number of them costs no memory; what has become due enters the backlog at its end. The key of a
record is (backlog id of the delays, due in Unix milliseconds, a number), so the first record is
always the next one that is due.

The store shows only what is committed. What was added since is kept in memory until it is on disk;
and once anything was moved or purged nothing is read until that is committed.
"""

from collections.abc import Callable
from functools import partial
from math import ceil
from struct import Struct

import msgpack

from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.message import PLAIN_TERMS, Message
from ganglion.broker.core.records import decode_entries, encode_entries
from ganglion.broker.core.timers import Timer
from ganglion.broker.store import Kind, RecordDamaged

__all__ = ["Delays"]

_ID = Struct(">Q")
_KEY = Struct(">QQQ")
_MOVED_MAX = 1000  # enter the backlog in one commit; the rest follows after it
_MOVED_BYTES_MAX = 4 * 1024 * 1024
_DELAY_MAX_S = 100 * 366 * 86_400.0  # longer ones, infinity too, would not fit into a key
_TERMS = (PLAIN_TERMS[1],)


class Delays:
    """The delayed messages of one queue."""

    __slots__ = (
        "_added",
        "_enter",
        "_is_discarded",
        "_is_noted",
        "_is_purged",
        "_moved",
        "_next_number",
        "_scan_from",
        "_shared",
        "_shelf",
        "_timer",
        "_timer_at",
        "_under_way",
        "count",
        "identifier",
        "size_bytes",
    )

    def __init__(
        self, shelf: Shelf, identifier: int, enter: Callable[[Message, int], None]
    ) -> None:
        """`identifier` is one that `Shelf` gave to a backlog of its own for these.

        `enter` is given each message when it is due, with how often it was delivered in vain.
        """
        self.identifier = identifier
        self.count = 0
        self.size_bytes = 0
        self._shelf = shelf
        self._enter = enter
        self._next_number = 1
        self._shared = 0  # how many are stored once for several places
        self._is_discarded = False
        self._is_noted = False
        self._added: dict[bytes, Message] = {}  # recorded in the open batch
        self._under_way: dict[bytes, Message] = {}  # being committed
        self._moved: set[bytes] = set()  # gone, and the store does not know it yet
        self._is_purged = False  # all that the store shows is gone
        self._scan_from = _KEY.pack(identifier, 0, 0)  # nothing is before it: no need to look
        self._timer: Timer | None = None
        self._timer_at = 0.0
        try:
            state = shelf.store.get(Kind.BACKLOG_STATE, _ID.pack(identifier))
        except RecordDamaged:
            state = None
        if state is not None:
            self._next_number, self.count, self.size_bytes, self._shared = msgpack.unpackb(state)
        else:
            self._recover()
        self._wait_for_next()

    def add(self, message: Message, due: float, attempts: int) -> None:
        """Keep the message until it is `due` (monotonic, in seconds)."""
        shelf = self._shelf
        now = shelf.timers.now
        message.durable = True
        due = max(now, min(due, now + _DELAY_MAX_S))
        due_ms = max(0, ceil((due + shelf.wall_clock_offset_s) * 1000))
        key = _KEY.pack(self.identifier, due_ms, self._next_number)
        self._next_number += 1
        self._scan_from = min(self._scan_from, key)
        size_bytes = message.size_bytes()
        self.count += 1
        self.size_bytes += size_bytes
        shelf.commits.waiting_bytes += size_bytes
        if message.shared is not None:
            self._shared += 1
            shelf.payloads.use(message)
        entry = encode_entries((message,), _TERMS, 0.0, shelf.wall_clock_offset_s)
        shelf.commits.put(Kind.DELAYED, key, msgpack.packb([attempts, entry]))
        self._added[key] = message
        self._note()

    def purge(self) -> int:
        """Forget them all; how many there were."""
        shelf = self._shelf
        count = self.count
        start, stop = _KEY.pack(self.identifier, 0, 0), _KEY.pack(self.identifier + 1, 0, 0)
        for message in (*self._added.values(), *self._under_way.values()):
            self._release(message)
        if self._shared and not self._is_purged:
            for key, value in shelf.store.scan(Kind.DELAYED, start, stop):
                if key not in self._moved and key not in self._under_way:
                    self._release(self._read(value)[1])
        shelf.commits.delete_range(Kind.DELAYED, start, stop)
        self._added, self._under_way = {}, {}
        self._is_purged = True
        self.count = self.size_bytes = self._shared = 0
        self._note()
        return count

    def discard(self) -> None:
        """The queue is no more."""
        self.purge()
        self.stop()
        self._is_discarded = True
        self._shelf.commits.delete(Kind.BACKLOG_STATE, _ID.pack(self.identifier))

    def stop(self) -> None:
        """No timers any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _recover(self) -> None:
        """There is no record of the state, or a damaged one: find out by reading all of it."""
        stop = _KEY.pack(self.identifier + 1, 0, 0)
        for key, value in self._shelf.store.scan(Kind.DELAYED, self._scan_from, stop):
            self._next_number = max(self._next_number, _KEY.unpack(key)[2] + 1)
            message = self._read(value)[1]
            self.count += 1
            if message is not None:
                self.size_bytes += message.size_bytes()
                self._shared += message.shared is not None

    def _note(self) -> None:
        if not self._is_noted:
            self._is_noted = True
            self._shelf.commits.before_flush(self._write)

    def _write(self) -> None:
        self._is_noted = False
        if self._is_discarded:
            return
        commits = self._shelf.commits
        state = msgpack.packb([self._next_number, self.count, self.size_bytes, self._shared])
        commits.put(Kind.BACKLOG_STATE, _ID.pack(self.identifier), state)
        self._under_way, self._added = self._added, {}
        commits.after_commit(partial(self._committed, bool(self._moved), is_purged=self._is_purged))

    def _committed(self, has_moved: bool, *, is_purged: bool) -> None:
        self._under_way = {}
        if has_moved:
            self._moved.clear()
        if is_purged:
            self._is_purged = False
        self._wait_for_next()

    def _read(self, value: bytes) -> tuple[int, Message | None]:
        attempts, entry = msgpack.unpackb(value)
        shelf = self._shelf
        entries = decode_entries(entry, shelf.wall_clock_offset_s, shelf.payloads.load)
        return attempts, entries.messages[0]

    def _release(self, message: Message | None) -> None:
        if message is not None and message.shared is not None:
            self._shared -= 1
            self._shelf.payloads.release(message)

    # -- what becomes due ------------------------------------------------------------------------

    def _due(self, key: bytes) -> float:
        """When the record of this key is due, on the monotonic clock."""
        due_ms: int = _KEY.unpack(key)[1]
        return due_ms / 1000 - self._shelf.wall_clock_offset_s

    def _wait_until(self, due: float) -> None:
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._shelf.timers.at(due, self._move)

    def _wait_for_next(self) -> None:
        """Set the timer for the first that is recorded."""
        if self._moved or self._is_purged or not self.count:
            return
        stop = _KEY.pack(self.identifier + 1, 0, 0)
        for key, _ in self._shelf.store.scan(Kind.DELAYED, self._scan_from, stop):
            self._wait_until(self._due(key))
            return
        if not self._added and not self._under_way:  # what is missing is damaged, and reported
            self.count = self.size_bytes = self._shared = 0
            self._note()

    def _move(self, now: float) -> None:
        """Let what is due enter the queue."""
        self._timer = None
        if self._moved or self._is_purged:
            return  # `_committed` looks again
        shelf = self._shelf
        stop = _KEY.pack(self.identifier + 1, 0, 0)
        moved_bytes = 0
        for key, value in shelf.store.scan(Kind.DELAYED, self._scan_from, stop):
            if self._due(key) > now:
                break
            attempts, message = self._read(value)
            shelf.commits.delete(Kind.DELAYED, key)
            self._scan_from = key + b"\0"
            self._under_way.pop(key, None)
            self._moved.add(key)
            self.count -= 1
            if message is not None:
                size_bytes = message.size_bytes()
                self.size_bytes -= size_bytes
                moved_bytes += size_bytes
                self._enter(message, attempts)
                self._release(message)
            if len(self._moved) == _MOVED_MAX or moved_bytes >= _MOVED_BYTES_MAX:
                break
        if self._moved:
            self._note()
        else:
            self._wait_for_next()
