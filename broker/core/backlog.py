"""What waits, durably and in order: the part of a session or a queue that is on disk.

A backlog is a row of messages with numbers that count up. Those that arrive within one commit are
one record, a *chunk*; which messages of a chunk are settled is one bit each in a record beside it,
and a chunk that is settled as a whole is gone. So neither a message nor its acknowledgement costs
an operation of the store of its own: a thousand of either cost one.

Only a *window* of the backlog is in memory: the next messages that may be given out. While the
window reaches to the end of the backlog, what is new goes into it after its commit; else it stays
on disk until its turn comes. Ten million messages so cost the memory of the window.

=============  ===========================================================================
BACKLOG        backlog, number of the first → the messages (`records.encode_entries`)
SETTLED        backlog, number of the first → bits, the lowest for the first message
BACKLOG_STATE  backlog → first number that is not settled, next number, messages, bytes
=============  ===========================================================================
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from struct import Struct
from weakref import WeakSet

import msgpack

from ganglion.broker.core.commits import Commits
from ganglion.broker.core.message import Delivery, Message, Terms
from ganglion.broker.core.payloads import Payloads
from ganglion.broker.core.records import Entry, decode_entries, encode_entries
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Kind, Store

__all__ = ["Backlog", "Chunk", "Shelf", "Waiting"]

_ID = Struct(">Q")
_KEY = Struct(">QQ")
_CHUNK_MESSAGES_MAX = 512  # in one record: what is loaded, and rewritten as bits, at a time
_CHUNK_BYTES_MAX = 256 * 1024
_WINDOW_MESSAGES = 2048  # loaded at most, and refilled at half of it
_WINDOW_BYTES = 4 * 1024 * 1024


class Chunk:
    """Messages that are one record of a backlog."""

    __slots__ = ("backlog", "bits", "count", "first", "has_bits", "is_changed", "time_s", "waiting")

    def __init__(self, backlog: "Backlog", first: int, count: int, time_s: float) -> None:
        self.backlog = backlog
        self.first = first
        """Number of its first message."""
        self.count = count
        """How many messages it was written with."""
        self.waiting = count
        """How many of them are not settled."""
        self.bits = 0
        """Which ones are settled; the lowest bit is the first message."""
        self.has_bits = False
        """Whether the store has such bits."""
        self.is_changed = False
        self.time_s = time_s
        """When it was written, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message of a backlog, as a look at it shows."""

    number: int
    message: Message
    terms: Terms
    shared: str | None
    """The shared subscription that it was taken from."""
    time_s: float
    """When it came, in Unix seconds."""


class Shelf:
    """All backlogs of a node, and what they have in common."""

    def __init__(
        self,
        store: Store,
        commits: Commits,
        timers: Timers,
        wall_clock_offset_s: float,
    ) -> None:
        self.store = store
        self.commits = commits
        self.timers = timers
        self.wall_clock_offset_s = wall_clock_offset_s
        self.payloads = Payloads(store, commits, wall_clock_offset_s)
        self._backlogs: WeakSet[Backlog] = WeakSet()
        self._next_id = 1
        for key, _ in store.scan(Kind.BACKLOG_STATE, backwards=True):
            self._next_id = _ID.unpack(key)[0] + 1
            break

    def count(self) -> int:
        """How many messages are in all backlogs."""
        return sum(backlog.count for backlog in self._backlogs)

    def size_bytes(self) -> int:
        """What the messages of all backlogs count in bytes."""
        return sum(backlog.size_bytes for backlog in self._backlogs)

    def discard_others(self, used: set[int]) -> None:
        """Forget the backlogs that are recorded and not among these: nobody can find them.

        They are left by sessions that were to end with a connection that the node did not survive.
        """
        for key, _ in self.store.scan(Kind.BACKLOG_STATE):
            identifier: int = _ID.unpack(key)[0]
            if identifier not in used:
                self.open(identifier).discard()

    def reserve(self, identifier: int) -> None:
        """This one is in use."""
        self._next_id = max(self._next_id, identifier + 1)

    def note(self, backlog: "Backlog") -> None:
        """Count this backlog too."""
        self._backlogs.add(backlog)

    def create(self) -> "Backlog":
        """A new backlog; it is recorded with the first message, or by `Backlog.record`."""
        backlog = Backlog(self, self._next_id, (1, 1, 0, 0))
        self._next_id += 1
        return backlog

    def open(self, identifier: int) -> "Backlog":
        """A backlog that was recorded; an empty one where its record is missing or damaged."""
        states = self.store.scan(Kind.BACKLOG_STATE, _ID.pack(identifier), _ID.pack(identifier + 1))
        value = next((value for _, value in states), None)
        self.reserve(identifier)
        if value is not None:
            return Backlog(self, identifier, msgpack.unpackb(value))
        backlog = Backlog(self, identifier, (1, 1, 0, 0))
        backlog.recover()
        return backlog


class Backlog:
    """One row of messages that wait; `Shelf` makes them."""

    __slots__ = (
        "__weakref__",
        "_bits_of",
        "_changed",
        "_chunks",
        "_is_noted",
        "_loaded_to",
        "_next_number",
        "_opened",
        "_recorded_to",
        "_taken",
        "_window",
        "_window_bytes",
        "admit",
        "count",
        "identifier",
        "is_discarded",
        "on_ready",
        "shelf",
        "size_bytes",
    )

    def __init__(self, shelf: Shelf, identifier: int, state: tuple[int, int, int, int]) -> None:
        head, self._next_number, self.count, self.size_bytes = state
        self.shelf = shelf
        self.identifier = identifier
        self.on_ready: Callable[[], None] = _nothing
        """Called when there is something to take that was not there before."""
        self.admit: Callable[[Message, str | None], Terms | None] | None = None
        """Judges what is loaded; given the shared subscription it was taken from. None drops it;
        other terms than None replace those it was recorded with."""
        self.is_discarded = False
        self._loaded_to = head - 1
        self._recorded_to = self._next_number - 1  # what `_committed` has been called for
        self._opened: list[Entry] = []  # came since the last flush; they have the last numbers
        self._window: deque[Delivery] = deque()
        self._window_bytes = 0
        self._taken = 0
        self._chunks: dict[int, Chunk] = {}  # loaded and not settled, in order of their numbers
        self._changed: list[Chunk] = []
        self._is_noted = False
        shelf.note(self)
        self._bits_of: dict[int, int] | None = None  # settled before this process; read when needed

    def __len__(self) -> int:
        """How many messages are not settled, those that were taken included."""
        return self.count

    @property
    def waiting(self) -> int:
        """How many messages are not settled and have not been taken."""
        return self.count - self._taken

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be taken now, nor loaded."""
        return not self._window and self._loaded_to >= self._recorded_to

    # -- in --------------------------------------------------------------------------------------

    def append(self, message: Message, terms: Terms) -> int:
        """Put the message at the end; it can be taken after the commit. Its number."""
        self._opened.append((message, terms))
        message.durable = True
        size_bytes = message.size_bytes()
        self.count += 1
        self.size_bytes += size_bytes
        shelf = self.shelf
        shelf.commits.waiting_bytes += size_bytes
        if message.shared is not None:
            shelf.payloads.use(message)
        number = self._next_number
        self._next_number += 1
        if not self._is_noted:
            self._note()
        return number

    def append_run(self, messages: list[Message], terms: Terms) -> None:
        """Put many at the end, which are of one size and not shared."""
        self._opened.extend(zip(messages, repeat(terms)))
        count = len(messages)
        size_bytes = count * messages[0].size_bytes()
        self.count += count
        self.size_bytes += size_bytes
        self.shelf.commits.waiting_bytes += size_bytes
        self._next_number += count
        if not self._is_noted:
            self._note()

    # -- out -------------------------------------------------------------------------------------

    def take(self) -> Delivery | None:
        """The next message, which is out of the window then but not settled; None: there is none.

        Whoever has taken it calls `settle` in the end, or keeps it for the life of the process.
        """
        window = self._window
        if len(window) < _WINDOW_MESSAGES // 2 and self._loaded_to < self._recorded_to:
            self._load()
        if not window:
            return None
        delivery = window.popleft()
        self._window_bytes -= len(delivery[0].payload)
        self._taken += 1
        return delivery

    def take_many(self, count: int) -> list[Delivery]:
        """The next messages, up to so many, as `take` gives them one by one."""
        window = self._window
        if len(window) < _WINDOW_MESSAGES // 2 and self._loaded_to < self._recorded_to:
            self._load()
        count = min(count, len(window))
        popleft = window.popleft
        taken = [popleft() for _ in range(count)]
        self._taken += count
        self._window_bytes -= sum([len(delivery[0].payload) for delivery in taken])
        return taken

    def peek(self) -> Delivery | None:
        """What `take` would return."""
        if not self._window and self._loaded_to < self._recorded_to:
            self._load()
        return self._window[0] if self._window else None

    def settle(self, delivery: Delivery) -> None:
        """The message, which was taken, is done with: it is gone for good after the commit."""
        self._taken -= 1
        self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        message, _, number, chunk = delivery
        assert chunk is not None
        chunk.bits |= 1 << (number - chunk.first)
        chunk.waiting -= 1
        self.count -= 1
        self.size_bytes = self.size_bytes - message.size_bytes() if self.count else 0
        if message.shared is not None:
            self.shelf.payloads.release(message)
        self._note_change(chunk)

    def _note_change(self, chunk: Chunk) -> None:
        if not chunk.is_changed:
            chunk.is_changed = True
            self._changed.append(chunk)
            if not self._is_noted:
                self._note()

    def settle_run(self, deliveries: list[Delivery]) -> None:
        """As `settle`, of many: those of a chunk in one step if they stand one behind the other."""
        first, count = 0, len(deliveries)
        while first < count:
            chunk = deliveries[first][3]
            stop = first + 1
            while stop < count and deliveries[stop][3] is chunk:
                stop += 1
            self._settle_run(chunk, deliveries[first:stop])
            first = stop

    def _settle_run(self, chunk: Chunk | None, deliveries: list[Delivery]) -> None:
        count, number = len(deliveries), deliveries[0][2]
        messages = [delivery[0] for delivery in deliveries]
        if (
            chunk is None
            or [delivery[2] for delivery in deliveries] != list(range(number, number + count))
            or any(message.shared for message in messages)
        ):
            for delivery in deliveries:
                self.settle(delivery)
            return
        self._taken -= count
        chunk.bits |= ((1 << count) - 1) << (number - chunk.first)
        chunk.waiting -= count
        self.count -= count
        size_bytes = sum(
            [
                len(message.topic) + len(message.payload)
                if message.properties is None
                else message.size_bytes()
                for message in messages
            ]
        )
        self.size_bytes = self.size_bytes - size_bytes if self.count else 0
        self._note_change(chunk)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """These were taken, in this order, and are to be taken again before all others."""
        self._taken -= len(deliveries)
        self._window.extendleft(reversed(deliveries))
        self._window_bytes += sum([len(delivery[0].payload) for delivery in deliveries])

    def settle_waiting(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Settle what is in the window and unwanted; what that was."""
        found = [delivery for delivery in self._window if unwanted(delivery)]
        if found:
            numbers = {delivery[2] for delivery in found}
            self._window = deque(each for each in self._window if each[2] not in numbers)
            for delivery in found:
                self._window_bytes -= len(delivery[0].payload)
                self._settle(delivery)
        return found

    def purge(self) -> int:
        """Settle everything that has not been taken and is committed; how many messages that was.

        What is on disk only goes by one range; but each message that is stored once for several
        backlogs has to be looked at (about a million a second).
        """
        before = self.count
        for delivery in self._window:
            self._settle(delivery)
        self._window.clear()
        self._window_bytes = 0
        first, last = self._loaded_to + 1, self._recorded_to
        if first <= last:
            count, size_bytes = 0, 0
            for _, _, _, entries in self._read(first, last):
                for entry in entries:
                    message = entry[0]
                    count += 1
                    size_bytes += message.size_bytes()
                    self.shelf.payloads.release(message)
            self.count -= count
            self.size_bytes -= size_bytes
            self._loaded_to = last
            for kind in (Kind.BACKLOG, Kind.SETTLED):
                self.shelf.commits.delete_range(kind, self._key(first), self._key(last + 1))
            if not self._is_noted:
                self._note()
        return before - self.count

    def discard(self) -> None:
        """The backlog itself is no more, with all that is in it.

        Settle first what was taken, or its payload stays if it is stored once for several.
        """
        for message, _ in self._opened:
            self.shelf.payloads.release(message)
        for delivery in self._window:
            self.shelf.payloads.release(delivery[0])
        if self._loaded_to < self._recorded_to and self.count:
            for _, _, _, entries in self._read(self._loaded_to + 1, self._recorded_to):
                for message, _, _ in entries:
                    self.shelf.payloads.release(message)
        self._opened = []
        self._window.clear()
        self._window_bytes = self.count = self.size_bytes = 0
        self._loaded_to = self._recorded_to  # nothing is loaded any more
        self._changed = []
        self._chunks = {}
        self.is_discarded = True
        self.on_ready = _nothing
        commits = self.shelf.commits
        start, stop = _ID.pack(self.identifier), _ID.pack(self.identifier + 1)
        for kind in (Kind.BACKLOG, Kind.SETTLED):
            commits.delete_range(kind, start, stop)
        commits.delete(Kind.BACKLOG_STATE, start)
        self._is_noted = True  # and never written again

    def browse(self, after: int = 0) -> Iterator[Waiting]:
        """What waits in numbers above `after`, that which was taken included, as committed."""
        first = max(after + 1, self._head())
        for number, time_s, chunk, entries in self._read(first, self._recorded_to):
            bits = self._chunks[number].bits if number in self._chunks else chunk
            for index, (message, terms, shared) in enumerate(entries):
                if number + index > after and not bits >> index & 1:
                    yield Waiting(number + index, message, terms, shared, time_s)

    def oldest(self) -> float | None:
        """When the oldest message that is not settled came, in Unix seconds; None: it is empty."""
        for chunk in self._chunks.values():
            return chunk.time_s
        for _, time_s, _, _ in self._read(self._head(), self._recorded_to):
            return time_s
        return None

    # -- writing ---------------------------------------------------------------------------------

    def record(self) -> None:
        """Record the backlog even if nothing is in it yet."""
        if not self._is_noted:
            self._note()

    def _note(self) -> None:
        self._is_noted = True
        self.shelf.commits.before_flush(self._write)

    def _key(self, number: int) -> bytes:
        return _KEY.pack(self.identifier, number)

    def _head(self) -> int:
        """The first number that may not be settled."""
        for first in self._chunks:
            return first
        return self._loaded_to + 1

    def _write(self) -> None:
        """The open batch is being closed: record what has come and what is settled."""
        commits = self.shelf.commits
        if self.is_discarded:
            return
        self._is_noted = False
        for chunk in self._changed:
            chunk.is_changed = False
            key = self._key(chunk.first)
            if chunk.waiting:
                chunk.has_bits = True
                bits = chunk.bits.to_bytes((chunk.count + 7) // 8, "big")
                commits.put(Kind.SETTLED, key, bits)
            else:
                self._chunks.pop(chunk.first, None)
                commits.delete(Kind.BACKLOG, key)
                if chunk.has_bits:
                    commits.delete(Kind.SETTLED, key)
        self._changed = []
        if self._opened:
            self._write_opened()
        state = (self._head(), self._next_number, self.count, self.size_bytes)
        commits.put(Kind.BACKLOG_STATE, _ID.pack(self.identifier), msgpack.packb(state))

    def _write_opened(self) -> None:
        entries, self._opened = self._opened, []
        shelf = self.shelf
        offset_s = shelf.wall_clock_offset_s
        time_s = shelf.timers.now + offset_s
        first = self._next_number - len(entries)
        written: list[tuple[Chunk, list[Entry]]] = []
        for part in _parts(entries):
            chunk = Chunk(self, first, len(part), time_s)
            shelf.commits.put(
                Kind.BACKLOG, self._key(first), encode_entries(part, time_s, offset_s)
            )
            written.append((chunk, part))
            first += len(part)
        shelf.commits.after_commit(partial(self._committed, written))

    def _committed(self, written: list[tuple[Chunk, list[Entry]]]) -> None:
        if self.is_discarded:
            for _, entries in written:
                for message, _ in entries:
                    self.shelf.payloads.release(message)
            return
        window = self._window
        for chunk, entries in written:
            first = chunk.first
            self._recorded_to = first + chunk.count - 1
            if (
                self._loaded_to == first - 1
                and len(window) < _WINDOW_MESSAGES
                and self._window_bytes < _WINDOW_BYTES
            ):
                self._loaded_to = self._recorded_to
                self._chunks[first] = chunk
                numbers = range(first, first + chunk.count)
                messages, terms = zip(*entries, strict=True)
                window.extend(zip(messages, terms, numbers, repeat(chunk), strict=False))
                self._window_bytes += sum([len(message.payload) for message in messages])
        self.on_ready()

    # -- reading ---------------------------------------------------------------------------------

    def _load(self) -> None:
        """Fill the window from the store."""
        window = self._window
        for first, time_s, bits, entries in self._read(self._loaded_to + 1, self._recorded_to):
            chunk = Chunk(self, first, len(entries), time_s)
            chunk.bits, chunk.has_bits = bits, bits != 0
            self._chunks[first] = chunk
            self._loaded_to = first + chunk.count - 1
            chunk.waiting = chunk.count - bits.bit_count()
            for index, (message, terms, group) in enumerate(entries):
                if bits >> index & 1:
                    continue
                delivery: Delivery = (message, terms, first + index, chunk)
                if message is _LOST:
                    self._settle(delivery)
                    continue
                if self.admit is not None:
                    admitted = self.admit(message, group)
                    if admitted is None:
                        self._settle(delivery)
                        continue
                    if group is not None:
                        delivery = (message, admitted, first + index, chunk)
                window.append(delivery)
                self._window_bytes += len(message.payload)
            if len(window) >= _WINDOW_MESSAGES or self._window_bytes >= _WINDOW_BYTES:
                return
        self._loaded_to = self._recorded_to
        # What is missing is damaged, and reported; it must not count for good.
        on_the_way = self._next_number - 1 - self._recorded_to
        self.count = sum(chunk.waiting for chunk in self._chunks.values()) + on_the_way

    def _read(
        self, first: int, last: int
    ) -> Iterator[tuple[int, float, int, list[tuple[Message, Terms, str | None]]]]:
        """Committed chunks within these numbers: first number, time, settled bits, entries."""
        shelf = self.shelf
        records = shelf.store.scan(Kind.BACKLOG, self._key(first), self._key(last + 1))
        settled = self._settled_before()
        for key, value in records:
            number: int = _KEY.unpack(key)[1]
            time_s, entries = decode_entries(value, shelf.wall_clock_offset_s, shelf.payloads.load)
            found = [(message or _LOST, terms, group) for message, terms, group in entries]
            yield number, time_s, settled.get(number, 0), found

    def _settled_before(self) -> dict[int, int]:
        """What was settled of chunks before this process began; those it loads, it keeps itself."""
        if self._bits_of is None:
            self._bits_of = {
                _KEY.unpack(key)[1]: int.from_bytes(value, "big")
                for key, value in self.shelf.store.scan(
                    Kind.SETTLED, self._key(0), _KEY.pack(self.identifier + 1, 0)
                )
            }
        return self._bits_of

    def recover(self) -> None:
        """The record of its state is damaged: find out by reading all of it."""
        settled = self._settled_before()
        stop = _KEY.pack(self.identifier + 1, 0)
        first = 0
        for key, value in self.shelf.store.scan(Kind.BACKLOG, self._key(0), stop):
            number: int = _KEY.unpack(key)[1]
            _, entries = decode_entries(
                value, self.shelf.wall_clock_offset_s, self.shelf.payloads.load
            )
            bits = settled.get(number, 0)
            first = first or number
            self._next_number = number + len(entries)
            for index, (message, _, _) in enumerate(entries):
                if not bits >> index & 1:
                    self.count += 1
                    self.size_bytes += 0 if message is None else message.size_bytes()
        if first:
            self._loaded_to = first - 1
            self._recorded_to = self._next_number - 1
            self._note()


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    """The entries in pieces that are not too large for a chunk."""
    part: list[Entry] = []
    size_bytes = 0
    if sum([len(message.payload) for message, _ in entries]) <= _CHUNK_BYTES_MAX:
        for first in range(0, len(entries), _CHUNK_MESSAGES_MAX):
            yield entries[first : first + _CHUNK_MESSAGES_MAX]
        return
    for entry in entries:
        part.append(entry)
        size_bytes += len(entry[0].payload)
        if len(part) == _CHUNK_MESSAGES_MAX or size_bytes >= _CHUNK_BYTES_MAX:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part


def _nothing() -> None:
    """What happens when something is ready and nobody waits."""


_LOST = Message("", b"")  # stands for a message whose record is missing or damaged
