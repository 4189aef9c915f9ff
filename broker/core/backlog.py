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
BACKLOG_STATE  backlog → first number that is not settled, next number, messages, bytes, and how
               many of the messages are stored once for several backlogs
=============  ===========================================================================
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from struct import Struct
from weakref import WeakSet

import msgpack

from ganglion.broker.core.commits import Commits
from ganglion.broker.core.message import PLAIN_TERMS, Delivery, Message, Terms
from ganglion.broker.core.payloads import Payloads
from ganglion.broker.core.records import Entries, decode_entries, encode_entries
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Kind, RecordDamaged, Store

__all__ = ["Backlog", "Chunk", "Shelf", "Waiting"]

_ID = Struct(">Q")
_KEY = Struct(">QQ")
_CHUNK_MESSAGES_MAX = 512  # in one record: what is loaded, and rewritten as bits, at a time
_CHUNK_BYTES_MAX = 256 * 1024
_WINDOW_MESSAGES = 2048  # loaded at most, and refilled at half of it
_WINDOW_BYTES = 4 * 1024 * 1024

_State = tuple[int, int, int, int, int]
_NEW: _State = (1, 1, 0, 0, 0)


class Chunk:
    """Messages that are one record of a backlog."""

    __slots__ = (
        "_bits",
        "backlog",
        "count",
        "first",
        "has_bits",
        "is_changed",
        "settled",
        "time_s",
        "waiting",
    )

    def __init__(
        self, backlog: "Backlog", first: int, count: int, time_s: float, bits: int = 0
    ) -> None:
        self.backlog = backlog
        self.first = first
        """Number of its first message."""
        self.count = count
        """How many messages it was written with."""
        self.waiting = count - bits.bit_count()
        """How many of them are not settled."""
        self.settled: list[int] = []
        """The numbers of those that were settled of late. Most chunks are settled as a whole soon:
        a number in a list costs a quarter of a bit that is set among hundreds."""
        self.has_bits = bits != 0
        """Whether the store has bits of it."""
        self.is_changed = False
        self.time_s = time_s
        """When it was written, in Unix seconds."""
        self._bits = bits

    def bits(self) -> int:
        """Which ones are settled; the lowest bit is the first message."""
        for number in self.settled:
            self._bits |= 1 << (number - self.first)
        self.settled = []
        return self._bits


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

    def forget(self, backlog: "Backlog") -> None:
        """Count this backlog no more."""
        self._backlogs.discard(backlog)

    def create(self) -> "Backlog":
        """A new backlog; it is recorded with the first message, or by `Backlog.record`."""
        backlog = Backlog(self, self._next_id, _NEW)
        self._next_id += 1
        return backlog

    def open(self, identifier: int) -> "Backlog":
        """A backlog that was recorded; an empty one where its record is missing or damaged."""
        self.reserve(identifier)
        try:
            state = self.store.get(Kind.BACKLOG_STATE, _ID.pack(identifier))
        except RecordDamaged:
            state = None
        if state is not None:
            return Backlog(self, identifier, msgpack.unpackb(state))
        backlog = Backlog(self, identifier, _NEW)
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
        "_opened_bytes",
        "_opened_terms",
        "_recorded_to",
        "_shared",
        "_taken",
        "_under_way",
        "_window",
        "_window_bytes",
        "admit",
        "count",
        "identifier",
        "is_discarded",
        "is_plain",
        "on_ready",
        "shelf",
        "size_bytes",
    )

    def __init__(self, shelf: Shelf, identifier: int, state: _State) -> None:
        head, self._next_number, self.count, self.size_bytes, self._shared = state
        self.shelf = shelf
        self.identifier = identifier
        self.on_ready: Callable[[], None] = _nothing
        """Called when there is something to take that was not there before."""
        self.admit: Callable[[Message, str | None], Terms | None] | None = None
        """Judges what is loaded; given the shared subscription it was taken from. None drops it;
        other terms than None replace those it was recorded with."""
        self.is_discarded = False
        self.is_plain = True
        """False: something in the window may expire, or has other terms than most."""
        self._loaded_to = head - 1
        self._recorded_to = self._next_number - 1  # what `_committed` has been called for
        # What came since the last flush, which has the last numbers; and what is being committed.
        self._opened: list[Message] = []
        self._opened_terms: list[Terms] = []
        self._opened_bytes = 0
        self._under_way: list[tuple[Chunk, list[Message], list[Terms]]] = []
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

    @property
    def ready(self) -> int:
        """How many messages can be taken without reading from the store."""
        return len(self._window)

    # -- in --------------------------------------------------------------------------------------

    def append(self, message: Message, terms: Terms) -> int:
        """Put the message at the end; it can be taken after the commit. Its number."""
        self._opened.append(message)
        self._opened_terms.append(terms)
        message.durable = True
        if message.properties is None:  # `Message.size_bytes` without a call: 0.1 µs less
            size_bytes = len(message.topic) + len(message.payload)
        else:
            size_bytes = message.size_bytes()
        self.count += 1
        self.size_bytes += size_bytes
        self._opened_bytes += size_bytes
        shelf = self.shelf
        shelf.commits.waiting_bytes += size_bytes
        if message.shared is not None:
            self._shared += 1
            shelf.payloads.use(message)
        if message.expires_at is not None or terms is not _PLAIN:
            self.is_plain = False
        number = self._next_number
        self._next_number = number + 1
        if not self._is_noted:
            self._note()
        return number

    def append_run(self, messages: list[Message], terms: Terms) -> None:
        """Put many at the end, which are of one size, not shared, and do not expire."""
        count = len(messages)
        self._opened.extend(messages)
        self._opened_terms.extend(repeat(terms, count))
        size_bytes = count * messages[0].size_bytes()
        self.count += count
        self.size_bytes += size_bytes
        self._opened_bytes += size_bytes
        self.shelf.commits.waiting_bytes += size_bytes
        if terms is not _PLAIN:
            self.is_plain = False
        self._next_number += count
        if not self._is_noted:
            self._note()

    # -- out -------------------------------------------------------------------------------------

    def take(self) -> Delivery | None:
        """The next message, which is out of the window then but not settled; None: there is none.

        Whoever has taken it calls `settle` in the end, or keeps it for the life of the process.
        """
        self.refill()
        window = self._window
        if not window:
            return None
        delivery = window.popleft()
        self._window_bytes -= len(delivery[0].payload)
        self._taken += 1
        if not window:
            self._window_is_empty()
        return delivery

    def refill(self) -> None:
        """Read what fits into the window; what `is_plain` says holds for all of that."""
        if len(self._window) < _WINDOW_MESSAGES // 2 and self._loaded_to < self._recorded_to:
            self._load()

    def take_many(self, count: int) -> list[Delivery]:
        """The next messages, up to so many, as `take` gives them one by one."""
        self.refill()
        window = self._window
        if count >= len(window):  # all of it, which is nearly always: in one pass
            taken = list(window)
            window.clear()
            self._taken += len(taken)
            self._window_is_empty()
            return taken
        popleft = window.popleft
        taken = [popleft() for _ in range(count)]
        self._taken += count
        self._window_bytes -= sum([len(delivery[0].payload) for delivery in taken])
        return taken

    def _window_is_empty(self) -> None:
        self._window_bytes = 0
        if self._loaded_to == self._next_number - 1:  # nothing on disk, nor on its way there
            self.is_plain = True

    def peek(self) -> Delivery | None:
        """What `take` would return."""
        if not self._window and self._loaded_to < self._recorded_to:
            self._load()
        return self._window[0] if self._window else None

    def settle(self, delivery: Delivery) -> None:
        """The message, which was taken, is done with: it is gone for good after the commit."""
        message, _, number, chunk = delivery
        assert chunk is not None
        self._taken -= 1
        chunk.settled.append(number)
        chunk.waiting -= 1
        self.count -= 1
        if not self.count:
            self.size_bytes = 0
        elif message.properties is None:
            self.size_bytes -= len(message.topic) + len(message.payload)
        else:
            self.size_bytes -= message.size_bytes()
        if message.shared is not None:
            self._shared -= 1
            self.shelf.payloads.release(message)
        if not chunk.is_changed:
            self._note_change(chunk)

    def _note_change(self, chunk: Chunk) -> None:
        chunk.is_changed = True
        self._changed.append(chunk)
        if not self._is_noted:
            self._note()

    def settle_run(self, deliveries: list[Delivery]) -> None:
        """As `settle`, of many: those of a chunk that stand one behind the other in one step."""
        first, count = 0, len(deliveries)
        if count and deliveries[0][3] is deliveries[-1][3]:
            # most are of one commit: which is found out in a fifth of the time
            chunk = deliveries[0][3]
            if [delivery[3] for delivery in deliveries].count(chunk) == count:
                self._settle_run(chunk, deliveries)
                return
        while first < count:
            chunk = deliveries[first][3]
            stop = first + 1
            while stop < count and deliveries[stop][3] is chunk:
                stop += 1
            self._settle_run(chunk, deliveries[first:stop])
            first = stop

    def _settle_run(self, chunk: Chunk | None, deliveries: list[Delivery]) -> None:
        if chunk is None or self._shared:
            for delivery in deliveries:
                self.settle(delivery)
            return
        count = len(deliveries)
        self._taken -= count
        chunk.settled.extend([delivery[2] for delivery in deliveries])
        chunk.waiting -= count
        self.count -= count
        if self.count:
            messages = [delivery[0] for delivery in deliveries]
            self.size_bytes -= sum(
                [
                    len(message.topic) + len(message.payload)
                    if message.properties is None
                    else message.size_bytes()
                    for message in messages
                ]
            )
        else:
            self.size_bytes = 0
        if not chunk.is_changed:
            self._note_change(chunk)

    def _settle_untaken(self, delivery: Delivery) -> None:
        self._taken += 1
        self.settle(delivery)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """These were taken, in this order, and are to be taken again before all others."""
        self._taken -= len(deliveries)
        self.is_plain = False  # or it is for all that is known here
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
                self._settle_untaken(delivery)
        return found

    def purge(self) -> int:
        """Settle everything that has not been taken and is committed; how many messages that was.

        What is on disk only goes by one range; but where messages are stored once for several
        backlogs all of it has to be looked at (about a million a second).
        """
        before = self.count
        for delivery in self._window:
            self._settle_untaken(delivery)
        self._window.clear()
        self._window_is_empty()
        first, last = self._loaded_to + 1, self._recorded_to
        if first <= last:
            self._release_unread()
            self._loaded_to = last
            for kind in (Kind.BACKLOG, Kind.SETTLED):
                self.shelf.commits.delete_range(kind, self._key(first), self._key(last + 1))
            self._recount()
            if not self._is_noted:
                self._note()
        return before - self.count

    def _release_unread(self) -> None:
        """What is on disk only does not use its payloads any more."""
        if self._shared:
            for _, bits, entries in self._read(self._loaded_to + 1, self._recorded_to):
                for index, message in enumerate(entries.messages):
                    if message is not None and not bits >> index & 1:
                        self.shelf.payloads.release(message)

    def _recount(self) -> None:
        """Everything is loaded: count anew what was loaded and what is on its way to the disk."""
        coming = [*self._opened, *(message for _, part, _ in self._under_way for message in part)]
        self.count = len(coming) + sum(chunk.waiting for chunk in self._chunks.values())
        self._shared = sum(message.shared is not None for message in coming)
        self.size_bytes = sum(message.size_bytes() for message in coming)
        if self.count == len(coming):
            return
        for chunk in list(self._chunks.values()):
            for number, _, entries in self._read(chunk.first, chunk.first) if chunk.waiting else ():
                bits = self._chunks[number].bits()
                for index, message in enumerate(entries.messages):
                    if message is not None and not bits >> index & 1:
                        self.size_bytes += message.size_bytes()
                        self._shared += message.shared is not None

    def discard(self) -> None:
        """The backlog itself is no more, with all that is in it.

        Settle first what was taken, or its payload stays if it is stored once for several.
        """
        release = self.shelf.payloads.release
        for message in self._opened:
            release(message)
        for _, messages, _ in self._under_way:
            for message in messages:
                release(message)
        for delivery in self._window:
            release(delivery[0])
        if self.count:
            self._release_unread()
        self._opened, self._opened_terms, self._under_way = [], [], []
        self._window.clear()
        self._window_bytes = self.count = self.size_bytes = self._shared = 0
        self._loaded_to = self._recorded_to  # nothing is loaded any more
        self._changed = []
        self._chunks = {}
        self.is_discarded = True
        self.on_ready = _nothing
        self.shelf.forget(self)
        commits = self.shelf.commits
        start, stop = _ID.pack(self.identifier), _ID.pack(self.identifier + 1)
        for kind in (Kind.BACKLOG, Kind.SETTLED):
            commits.delete_range(kind, start, stop)
        commits.delete(Kind.BACKLOG_STATE, start)
        self._is_noted = True  # and never written again

    def browse(self, after: int = 0) -> Iterator[Waiting]:
        """What waits in numbers above `after`, that which was taken included, as committed."""
        first = self._head()
        for chunk in self._chunks.values():  # the one that `after` is in begins before it
            if chunk.first <= after + 1:
                first = chunk.first
        if after + 1 > self._loaded_to:
            first = max(self._loaded_to + 1, after + 2 - _CHUNK_MESSAGES_MAX)
        for number, bits, entries in self._read(first, self._recorded_to):
            loaded = self._chunks.get(number)
            if loaded is not None:
                bits = loaded.bits()
            elif number <= self._loaded_to:
                continue  # it is settled as a whole, and that is not committed yet
            for index, message in enumerate(entries.messages):
                if number + index > after and message is not None and not bits >> index & 1:
                    yield Waiting(
                        number + index,
                        message,
                        entries.terms[index],
                        entries.groups[index],
                        entries.time_s,
                    )

    def oldest(self) -> float | None:
        """When the oldest message that is not settled came, in Unix seconds; None: it is empty."""
        for chunk in self._chunks.values():
            if chunk.waiting:
                return chunk.time_s
        for _, _, entries in self._read(self._loaded_to + 1, self._recorded_to):
            return entries.time_s
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
                bits = chunk.bits().to_bytes((chunk.count + 7) // 8, "big")
                commits.put(Kind.SETTLED, key, bits)
            else:
                self._chunks.pop(chunk.first, None)
                commits.delete(Kind.BACKLOG, key)
                if chunk.has_bits:
                    commits.delete(Kind.SETTLED, key)
        self._changed = []
        if self._opened:
            self._write_opened()
        state = (self._head(), self._next_number, self.count, self.size_bytes, self._shared)
        commits.put(Kind.BACKLOG_STATE, _ID.pack(self.identifier), _pack(state))

    def _write_opened(self) -> None:
        messages, self._opened = self._opened, []
        terms, self._opened_terms = self._opened_terms, []
        size_bytes, self._opened_bytes = self._opened_bytes, 0
        shelf = self.shelf
        offset_s = shelf.wall_clock_offset_s
        time_s = shelf.timers.now + offset_s
        first = self._next_number - len(messages)
        if len(messages) <= _CHUNK_MESSAGES_MAX and size_bytes <= _CHUNK_BYTES_MAX:
            parts = [(messages, terms)]
        else:
            parts = list(_parts(messages, terms))
        for part, its_terms in parts:
            chunk = Chunk(self, first, len(part), time_s)
            value = encode_entries(part, its_terms, time_s, offset_s)
            shelf.commits.put(Kind.BACKLOG, self._key(first), value)
            self._under_way.append((chunk, part, its_terms))
            first += len(part)
        shelf.commits.after_commit(self._committed)

    def _committed(self) -> None:
        """What is under way, all of one commit, is on disk."""
        window = self._window
        written, self._under_way = self._under_way, []
        for chunk, messages, terms in written:
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
                window.extend(zip(messages, terms, numbers, repeat(chunk), strict=False))
                self._window_bytes += sum([len(message.payload) for message in messages])
        self.on_ready()

    # -- reading ---------------------------------------------------------------------------------

    def _load(self) -> None:
        """Fill the window from the store."""
        window = self._window
        for first, bits, entries in self._read(self._loaded_to + 1, self._recorded_to):
            chunk = Chunk(self, first, len(entries), entries.time_s, bits)
            self._chunks[first] = chunk
            self._loaded_to = first + chunk.count - 1
            if entries.is_plain and not bits and self.admit is None:
                messages = [message for message in entries.messages if message is not None]
                numbers = range(first, first + chunk.count)
                window.extend(zip(messages, entries.terms, numbers, repeat(chunk), strict=False))
                self._window_bytes += sum([len(message.payload) for message in messages])
            else:
                self._load_singly(chunk, bits, entries)
            if len(window) >= _WINDOW_MESSAGES or self._window_bytes >= _WINDOW_BYTES:
                return
        self._loaded_to = self._recorded_to
        coming = self._next_number - 1 - self._recorded_to
        if self.count != coming + sum(chunk.waiting for chunk in self._chunks.values()):
            self._recount()  # some is damaged, and reported: it must not count for good
            self.record()

    def _load_singly(self, chunk: Chunk, bits: int, entries: Entries) -> None:
        window = self._window
        self.is_plain = False
        for index, message in enumerate(entries.messages):
            if bits >> index & 1:
                continue
            terms, group = entries.terms[index], entries.groups[index]
            if message is None:  # its own record is damaged, and reported
                self._settle_untaken((_LOST, terms, chunk.first + index, chunk))
                continue
            delivery: Delivery = (message, terms, chunk.first + index, chunk)
            if self.admit is not None:
                admitted = self.admit(message, group)
                if admitted is None:
                    self._settle_untaken(delivery)
                    continue
                if group is not None:
                    delivery = (message, admitted, chunk.first + index, chunk)
            window.append(delivery)
            self._window_bytes += len(message.payload)

    def _read(self, first: int, last: int) -> Iterator[tuple[int, int, Entries]]:
        """Committed chunks that begin within these numbers: the first one, bits, entries.

        The bits say what was settled before this process.
        """
        if first > last:
            return
        shelf = self.shelf
        records = shelf.store.scan(Kind.BACKLOG, self._key(first), self._key(last + 1))
        settled = self._settled_before()
        for key, value in records:
            number: int = _KEY.unpack(key)[1]
            entries = decode_entries(value, shelf.wall_clock_offset_s, shelf.payloads.load)
            yield number, settled.get(number, 0), entries

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
        first = 0
        for number, bits, entries in self._read(1, _NUMBER_MAX):
            first = first or number
            self._next_number = number + len(entries)
            for index, message in enumerate(entries.messages):
                if not bits >> index & 1:
                    self.count += 1
                    if message is not None:
                        self.size_bytes += message.size_bytes()
                        self._shared += message.shared is not None
        if first:
            self._loaded_to = first - 1
            self._recorded_to = self._next_number - 1
            self._note()


def _parts(
    messages: list[Message], terms: list[Terms]
) -> Iterator[tuple[list[Message], list[Terms]]]:
    """Messages and terms in pieces that are not too large for a chunk."""
    first = size_bytes = 0
    for end, message in enumerate(messages, 1):
        size_bytes += message.size_bytes()
        if end - first == _CHUNK_MESSAGES_MAX or size_bytes >= _CHUNK_BYTES_MAX:
            yield messages[first:end], terms[first:end]
            first, size_bytes = end, 0
    if first < len(messages):
        yield messages[first:], terms[first:]


def _nothing() -> None:
    """What happens when something is ready and nobody waits."""


_pack: Callable[[object], bytes] = msgpack.Packer().pack
_PLAIN = PLAIN_TERMS[1]
_NUMBER_MAX = 2**63
_LOST = Message("", b"")  # stands for a message whose record is missing or damaged
