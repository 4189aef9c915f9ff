"""Messages of a queue that are not due yet.

They are kept apart from the queue's backlog, ordered by the time when they are due, so that any
number of them costs no memory; what has become due enters the backlog at its end. The key of a
record is (backlog id of the delays, due in Unix milliseconds, a number), so the first record is
always the next one that is due.
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
from ganglion.broker.store import Kind

__all__ = ["Delays"]

_ID = Struct(">Q")
_KEY = Struct(">QQQ")
_MOVED_MAX = 1000  # enter the backlog in one commit; the rest follows after it


class Delays:
    """The delayed messages of one queue."""

    __slots__ = (
        "_enter",
        "_is_moving",
        "_is_noted",
        "_next_number",
        "_scan_from",
        "_shelf",
        "_timer",
        "_timer_at",
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
        self._is_noted = False
        self._is_moving = False
        self._scan_from = _KEY.pack(identifier, 0, 0)  # nothing is before it: no need to look
        self._timer: Timer | None = None
        self._timer_at = 0.0
        state = next(
            (value for _, value in shelf.store.scan(Kind.BACKLOG_STATE, *self._state_range())), None
        )
        if state is not None:
            self._next_number, self.count, self.size_bytes = msgpack.unpackb(state)
        self._wait_for_next()

    def add(self, message: Message, due: float, attempts: int) -> None:
        """Keep the message until it is `due` (monotonic, in seconds)."""
        shelf = self._shelf
        message.durable = True
        due_ms = max(0, ceil((due + shelf.wall_clock_offset_s) * 1000))
        key = _KEY.pack(self.identifier, due_ms, self._next_number)
        self._next_number += 1
        self._scan_from = min(self._scan_from, key)
        self.count += 1
        self.size_bytes += message.size_bytes()
        shelf.payloads.use(message)
        entry = encode_entries([(message, PLAIN_TERMS[1])], 0.0, shelf.wall_clock_offset_s)
        shelf.commits.put(Kind.DELAYED, key, msgpack.packb([attempts, entry]))
        shelf.commits.after_commit(partial(self._wait_until, due))
        self._note()

    def purge(self) -> int:
        """Forget them all; how many there were."""
        commits = self._shelf.commits
        count = self.count
        start, stop = _KEY.pack(self.identifier, 0, 0), _KEY.pack(self.identifier + 1, 0, 0)
        for _, value in self._shelf.store.scan(Kind.DELAYED, start, stop):
            message = self._read(value)[1]
            if message is not None:
                self._shelf.payloads.release(message)
        commits.delete_range(Kind.DELAYED, start, stop)
        self.count = self.size_bytes = 0
        self._note()
        return count

    def discard(self) -> None:
        """The queue is no more."""
        self.purge()
        self.stop()
        self._is_noted = True  # and never written again
        self._shelf.commits.delete(Kind.BACKLOG_STATE, _ID.pack(self.identifier))

    def stop(self) -> None:
        """No timers any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _state_range(self) -> tuple[bytes, bytes]:
        return _ID.pack(self.identifier), _ID.pack(self.identifier + 1)

    def _note(self) -> None:
        if not self._is_noted:
            self._is_noted = True
            self._shelf.commits.before_flush(self._write)

    def _write(self) -> None:
        if self._is_noted:
            self._is_noted = False
            state = msgpack.packb([self._next_number, self.count, self.size_bytes])
            self._shelf.commits.put(Kind.BACKLOG_STATE, _ID.pack(self.identifier), state)

    def _read(self, value: bytes) -> tuple[int, Message | None]:
        attempts, entry = msgpack.unpackb(value)
        shelf = self._shelf
        _, entries = decode_entries(entry, shelf.wall_clock_offset_s, shelf.payloads.load)
        return attempts, entries[0][0]

    # -- what becomes due ------------------------------------------------------------------------

    def _wait_until(self, due: float) -> None:
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._shelf.timers.at(due, self._move)

    def _wait_for_next(self) -> None:
        """Set the timer for the first that is recorded."""
        stop = _KEY.pack(self.identifier + 1, 0, 0)
        for key, _ in self._shelf.store.scan(Kind.DELAYED, self._scan_from, stop):
            self._wait_until(_KEY.unpack(key)[1] / 1000 - self._shelf.wall_clock_offset_s)
            return

    def _move(self, now: float) -> None:
        """Let what is due enter the queue."""
        self._timer = None
        if self._is_moving:
            return  # what is moved now is still in the store: `_moved` looks again
        shelf = self._shelf
        now_ms = int((now + shelf.wall_clock_offset_s) * 1000)
        stop = _KEY.pack(self.identifier, now_ms + 1, 0)
        moved = 0
        for key, value in shelf.store.scan(Kind.DELAYED, self._scan_from, stop):
            attempts, message = self._read(value)
            shelf.commits.delete(Kind.DELAYED, key)
            self._scan_from = key + b"\0"
            self.count -= 1
            if message is not None:
                self.size_bytes -= message.size_bytes()
                self._enter(message, attempts)
                shelf.payloads.release(message)
            moved += 1
            if moved == _MOVED_MAX:
                break
        if not moved:
            self._wait_for_next()
            return
        self._note()
        self._is_moving = True
        shelf.commits.after_commit(self._moved)

    def _moved(self) -> None:
        self._is_moving = False
        self._wait_for_next()
