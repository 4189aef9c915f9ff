"""Event streams: records that are kept in order, read again and again, and followed live.

A record gets its number, its *sequence*, when it is appended: 1, 2, 3 without gaps. It can be read
once its commit is durable. What is appended within one commit is stored as a few *batches* of up
to 1,000 records or 1 MiB, each one value of columns behind a header, so that neither an append nor
a read costs an operation or an object per record.

=============  ===========================================================================
STREAM         name → [identifier, definition]; name, NUL → [first, next, records, bytes, time]
STREAM_BATCH   identifier, sequence of the first → header, columns
STREAM_KEY     identifier, key → sequence of the last record with that key
STREAM_GROUP   identifier, name → position
=============  ===========================================================================

A batch covers a range of sequences, from its key to the last one that its header names, and the
ranges follow each other without a gap. Compaction takes records out of a range and joins ranges,
but leaves no range uncovered. So a gap between two ranges is damage, and a reader is told of it
(`Follower.damaged`). What was lost in one is counted until retention gets there, and then taken
off by its share of the sequences.

Records committed together have one time, in Unix seconds; it never goes back within a stream,
whatever the wall clock does.

Retention drops whole batches. By records and bytes a batch goes when what is left without it still
reaches the limit: at least so much is kept, and at most one batch more. By age it goes when its
last record is too old. What came with the latest commit counts, but is not dropped before the next.

Only a stream that is declared ``keyed`` (or ``compact``) has the records by key: they cost a
write per key and commit, and could not be made later without reading all of the stream. The
version of a key outlives its record when that is dropped by retention: who read the record still
holds its number, expects it with the next append, and has to be told if somebody else was faster.
With a tombstone (`stream_compaction`) the version goes, for the key is no more.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from struct import Struct
from typing import Final, Literal, NamedTuple

import msgpack

from ganglion import GanglionError
from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.definitions import InvalidDefinition, check_name
from ganglion.broker.core.message import Message, MessageProperties, Terms
from ganglion.broker.core.router import Rejection
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.stream_batches import (
    Columns,
    Extent,
    Record,
    RecordBatch,
    decode_batch,
    encode_batch,
    read_extent,
)
from ganglion.broker.core.stream_compaction import Compaction
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.stream_groups import TAKE_BYTES, Follower, Group, GroupStatistics
from ganglion.broker.core.timers import Timer
from ganglion.broker.store import Kind, RecordDamaged

__all__ = [
    "STREAM_PREFIX",
    "Appended",
    "GroupMissing",
    "RecordTooLarge",
    "Stream",
    "StreamMissing",
    "StreamNotKeyed",
    "StreamState",
    "StreamStatistics",
    "WrongExpectedVersion",
    "state_key",
]

STREAM_PREFIX: Final = "$stream/"
"""A publication to this and the name of a stream is appended to that stream alone."""

_GROUPS_MAX = 1000  # of one stream: they are in memory all the time
_TAIL_BATCHES_MAX = 32  # the last ones, in memory for those who follow live
_TAIL_BYTES_MAX = 2 * 1024 * 1024
_DROPPED_MAX = 64  # batches that one commit drops; the rest follows in the next
_DROPPED_AND_READ_MAX = 2  # where there may be tombstones among their records: 1 ms each
_AGE_LOOK_S = 1.0  # at least between two looks at the age of the first batch

_ID = Struct(">Q")
_KEY = Struct(">QQ")
_pack: Callable[[object], bytes] = msgpack.Packer().pack  # a Packer each time would cost 1 µs

StreamState = tuple[int, int, int, int, float]
"""First sequence that is kept, the next one, records, bytes as stored, time of the last record."""


class StreamMissing(GanglionError):
    """There is no stream of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no stream {name!r}")


class GroupMissing(GanglionError):
    """The stream has no consumer group of this name."""

    def __init__(self, stream: str, name: str) -> None:
        super().__init__(f"stream {stream!r} has no group {name!r}")


class StreamNotKeyed(GanglionError):
    """Versions of keys were asked for, and the stream does not keep them."""

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"stream {stream!r} does not keep versions of keys; declare it with option keyed"
        )


class RecordTooLarge(GanglionError):
    """A record is larger than the stream takes; nothing was appended."""

    def __init__(self, stream: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"a record of {size_bytes} bytes is over max_record_bytes of stream {stream!r}, "
            f"{limit_bytes}"
        )


class WrongExpectedVersion(GanglionError):
    """Somebody else appended with this key meanwhile; nothing was appended now."""

    def __init__(self, key: str, expected: int, actual: int) -> None:
        super().__init__(
            f"the last record with key {key!r} is {actual}, and {expected} was expected; "
            "read what is new and try again"
        )
        self.key = key
        self.expected = expected
        self.actual = actual
        """Sequence of the last record with that key, committed or about to be; 0: there is none."""


class Appended(NamedTuple):
    """Which sequences an append got; durable only after the commit (`Commits.after_commit`)."""

    first: int
    last: int
    """One less than `first` when nothing was given."""


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """How a stream stands."""

    first: int
    """The first sequence that is kept; one more than `last` when there is none."""
    last: int
    """The last sequence that is committed; 0: there was none yet."""
    records: int
    bytes: int
    """As they are stored."""
    followers: int
    """Groups that have had members are among them."""
    groups: tuple[GroupStatistics, ...] = field(default=())


class Stream:
    """One stream; `Streams.declare` makes it."""

    def __init__(
        self,
        definition: StreamDefinition,
        identifier: int,
        shelf: Shelf,
        statistics: Statistics,
        state: StreamState,
    ) -> None:
        self.definition = definition
        self.identifier = identifier
        self.shelf = shelf
        self.groups: dict[str, Group] = {}
        self.is_deleted = False
        self.first, self._next, self.count, self._size_bytes, self._time_s = state
        """`first` is the first sequence that is kept; `count` how many records that are."""
        self.last = self._next - 1
        """The last sequence that is committed."""
        self._statistics = statistics
        self._topic = STREAM_PREFIX + definition.name
        self._open = Columns()
        self._is_noted = self._is_changed = False
        # Versions of keys that the store does not have yet: of the open batch, and under way
        self._versions: dict[str, int] = {}
        self._versions_under_way: dict[str, int] = {}
        self._head: Extent | None = None  # the first batch, as far as it was looked at
        self._followers: dict[Follower, None] = {}
        self._waiting: dict[Follower, None] = {}
        # The last batches and their sizes as stored, for those who follow live
        self._tail: deque[tuple[RecordBatch, int]] = deque()
        self._tail_bytes = 0
        self._age_timer: Timer | None = None
        self.compaction = Compaction(self)
        self.watch()

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever appended, not even what is not committed yet."""
        return self._next == 1

    def statistics(self) -> StreamStatistics:
        """How it stands."""
        return StreamStatistics(
            self.first,
            self.last,
            self.count,
            self._size_bytes,
            len(self._followers),
            tuple(group.statistics() for group in self.groups.values()),
        )

    # -- appending -------------------------------------------------------------------------------

    def append(
        self,
        payloads: Sequence[bytes],
        *,
        topic: str | None = None,
        keys: Sequence[str | None] | None = None,
        properties: Sequence[MessageProperties | None] | None = None,
        expected: Mapping[str, int] | None = None,
    ) -> Appended:
        """Append records, all or none; `keys` and `properties` are columns beside the payloads.

        `topic` is ``$stream/{name}`` if None. `expected` names for keys the sequence of the last
        record with that key, 0 where there must be none. Raises `WrongExpectedVersion`,
        `RecordTooLarge`, `StreamNotKeyed`, `StreamMissing`; nothing is appended then.
        """
        count = len(payloads)
        for column in (keys, properties):
            if column is not None and len(column) != count:
                raise ValueError(f"{count} payloads and a column of {len(column)}")
        if self.is_deleted:
            raise StreamMissing(self.name)
        limit = self.definition.max_record_bytes
        if limit and count:
            size_bytes = max(map(len, payloads))
            if size_bytes > limit:
                raise RecordTooLarge(self.name, size_bytes, limit)
        for key, version in (expected or {}).items():
            actual = self.version(key)
            if actual != version:
                raise WrongExpectedVersion(key, version, actual)
        first = self._next
        if not count:
            return Appended(first, first - 1)
        self._extend(payloads, self._topic if topic is None else topic, keys, properties)
        if keys is not None and self.definition.is_keyed:
            for sequence, each in enumerate(keys, first):
                if each is not None:
                    self._versions[each] = sequence
        return Appended(first, first + count - 1)

    def _extend(
        self,
        payloads: Sequence[bytes],
        topic: str,
        keys: Sequence[str | None] | None,
        properties: Sequence[MessageProperties | None] | None,
    ) -> None:
        count = len(payloads)
        size_bytes = sum(map(len, payloads)) + count * len(topic)
        if keys is not None:
            size_bytes += sum([len(each or "") for each in keys])
        if properties is not None:
            size_bytes += sum([each.size_bytes() for each in properties if each is not None])
        self.shelf.commits.waiting_bytes += size_bytes
        columns = self._open
        columns.payloads.extend(payloads)
        columns.topics.extend(repeat(topic, count))
        columns.keys.extend(repeat(None, count) if keys is None else keys)
        columns.properties.extend(repeat(None, count) if properties is None else properties)
        self._next += count
        if not self._is_noted:
            self._note()

    def version(self, key: str) -> int:
        """Sequence of the last record with the key, committed or about to be; 0: there is none.

        Raises `StreamNotKeyed`.
        """
        if not self.definition.is_keyed:
            raise StreamNotKeyed(self.name)
        found = self._versions.get(key) or self._versions_under_way.get(key)
        if found is not None:
            return found
        try:
            value = self.shelf.store.get(Kind.STREAM_KEY, self._version_key(key))
        except RecordDamaged:
            return self._version_by_reading(key)
        return 0 if value is None else _ID.unpack(value)[0]

    def deliver(self, message: Message, _terms: Terms) -> None:
        """Append the message; one that is too large is dropped (ask `refusal` first).

        Its time to live does not count here: retention says how long records stay.
        """
        if self.refusal(message) is not None:
            self._statistics.drop("stream: record too large")
            return
        message.durable = True
        self.shelf.commits.waiting_bytes += message.size_bytes()
        columns = self._open
        about = message.properties
        key = None if about is None else about.key
        columns.payloads.append(message.payload)
        columns.topics.append(message.topic)
        columns.keys.append(key)
        columns.properties.append(about)
        if key is not None and self.definition.is_keyed:
            self._versions[key] = self._next
        self._next += 1
        if not self._is_noted:
            self._note()

    def deliver_run(self, topic: str, payloads: list[bytes], qos: int) -> None:
        """Append many messages of one size without properties."""
        if self.refusal(Message(topic, payloads[0], qos)) is not None:
            self._statistics.drop("stream: record too large", len(payloads))
            return
        self._extend(payloads, topic, None, None)

    @property
    def kind(self) -> Literal["stream"]:
        """What it is."""
        return "stream"

    def outlet(self, _form: int) -> None:
        """It takes nothing as it is."""

    def is_durable(self) -> bool:
        """What it is given is kept on disk."""
        return True

    @property
    def may_refuse(self) -> bool:
        """Whether a publisher has to ask `refusal` first."""
        return self.definition.max_record_bytes > 0

    def refusal(self, message: Message) -> Rejection | None:
        """Why the stream will never take this message; None: it would."""
        limit = self.definition.max_record_bytes
        if limit and len(message.payload) > limit:
            text = f"the payload is over max_record_bytes of stream {self.name}, {limit}"
            return Rejection(text, is_final=True)
        return None

    # -- reading ---------------------------------------------------------------------------------

    def read_batches(self, after: int = 0) -> Iterator[RecordBatch]:
        """Committed batches behind `after`, by columns; the first may begin before.

        The fast way to read much: nothing is made per record.
        """
        position, last = after, self.last
        while (position := max(position, self.first - 1)) < last:
            batch = self.batch_after(position)
            if batch is None:
                return
            yield batch
            position = batch.last
            for first, value in self.stored(position + 1, last):
                if first != position + 1:
                    # Damage lies between, or compaction has joined ranges since the last look.
                    break
                batch = decode_batch(first, value)
                yield batch
                position = batch.last

    def read(
        self, after: int = 0, count_max: int = 1000, bytes_max: int = TAKE_BYTES
    ) -> list[Record]:
        """Committed records behind `after`, limited as in `Follower.take`."""
        return Follower(self, after, _nothing).take(count_max, bytes_max)

    def read_key(self, key: str, after: int = 0) -> Iterator[Record]:
        """Committed records with the key, behind `after`.

        All batches behind `after` are read for it, one at a time as the iterator goes on, up to the
        last one with the key where the stream is keyed.
        """
        until = self.version(key) if self.definition.is_keyed else self.last
        for batch in self.read_batches(after) if until > after else ():
            if batch.keys is not None and key in batch.keys:
                for index, each in enumerate(batch.keys):
                    if each == key and batch.sequences[index] > after:
                        yield batch.records(index, index + 1)[0]
            if batch.last >= until:
                return

    def position_at(self, time_s: float) -> int:
        """After which sequence to read what came at this Unix time or later.

        A binary search that reads one batch for each of its steps.
        """
        low, high = self.first, self.last + 1
        while low < high:  # what is before low came earlier; what begins at high did not
            middle = (low + high) // 2
            found = self._floor(middle)
            extent = None if found is None else read_extent(*found)
            if extent is None:
                low = middle + 1  # nothing readable there
            elif extent.time_s < time_s:
                low = max(extent.last, middle) + 1  # behind the range may be damage
            else:
                high = max(low, extent.first)
        batch = self.batch_after(low - 1)
        if batch is None or batch.first > low or not isinstance(batch.times, list):
            return low - 1
        index = bisect_left(batch.times, time_s)
        return max(low, batch.sequences[index]) - 1 if index < len(batch.times) else batch.last

    def follow(self, after: int, wake: Callable[[], None]) -> Follower:
        """Read on from here, what is to come too. See `Follower.take` for `wake`.

        Raises `StreamMissing` when it was deleted.
        """
        if self.is_deleted:
            raise StreamMissing(self.name)
        follower = Follower(self, after, wake)
        self._followers[follower] = None
        return follower

    def wait(self, follower: Follower) -> None:
        """The follower has come to the end: wake it when there is more."""
        if follower in self._followers:
            self._waiting[follower] = None

    def leave(self, follower: Follower) -> None:
        """The follower reads no further."""
        self._followers.pop(follower, None)
        self._waiting.pop(follower, None)
        if not self._followers:
            self._clear_tail()

    def batch_after(self, position: int) -> RecordBatch | None:
        """The committed batch with the next sequence that can be read; None: there is none."""
        for batch, _ in reversed(self._tail):
            if batch.first <= position + 1:
                if batch.last > position:
                    return batch
                break
        found: tuple[int, bytes] | None = None
        if position < self.last:
            # Who reads on is at the end of a range. Without a scan small batches take half as long.
            with suppress(RecordDamaged):  # the scan goes around it
                value = self.shelf.store.get(Kind.STREAM_BATCH, self._key(position + 1))
                found = None if value is None else (position + 1, value)
        if found is None:
            found = self._floor(position + 1)
            if found is None or read_extent(*found).last <= position:
                found = next(self.stored(position + 1, self.last), None)
        return None if found is None else decode_batch(*found)

    def group(self, name: str, after: int = 0) -> Group:
        """The group, made with this position if it is not there.

        Raises `InvalidDefinition`, and `StreamMissing` when the stream was deleted.
        """
        if self.is_deleted:
            raise StreamMissing(self.name)
        group = self.groups.get(name)
        if group is None:
            check_name(name, "group")
            if len(self.groups) >= _GROUPS_MAX:
                raise InvalidDefinition(f"stream {self.name} has {_GROUPS_MAX} groups already")
            group = self.groups[name] = Group(self, name, after)
            group.note()
        return group

    def delete_group(self, name: str) -> None:
        """Forget the group and its position. Raises `GroupMissing`."""
        group = self.groups.pop(name, None)
        if group is None:
            raise GroupMissing(self.name, name)
        group.discard()

    def stored(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """The committed batches that begin within these sequences: first sequence, as stored."""
        for key, value in self.shelf.store.scan(
            Kind.STREAM_BATCH, self._key(first), self._key(last + 1)
        ):
            yield _KEY.unpack(key)[1], value

    def _floor(self, sequence: int) -> tuple[int, bytes] | None:
        """The stored batch that begins there, or the last one that begins before."""
        stop = min(sequence, self.last) + 1
        for key, value in self.shelf.store.scan(
            Kind.STREAM_BATCH, self._key(self.first), self._key(stop), backwards=True
        ):
            return _KEY.unpack(key)[1], value
        return None

    def _version_by_reading(self, key: str) -> int:
        stop = self._key(self.last + 1)
        stored = self.shelf.store.scan(
            Kind.STREAM_BATCH, self._key(self.first), stop, backwards=True
        )
        for record_key, value in stored:
            batch = decode_batch(_KEY.unpack(record_key)[1], value)
            for index in reversed(range(len(batch.keys or ()))):
                if batch.keys and batch.keys[index] == key:
                    return batch.sequences[index]
        return 0

    # -- writing ---------------------------------------------------------------------------------

    def configure(self, definition: StreamDefinition) -> None:
        """The options have changed."""
        was, self.definition = self.definition, definition
        if was.is_keyed and not definition.is_keyed:
            self._versions = {}
            self.shelf.commits.delete_range(Kind.STREAM_KEY, *self._all())
        self.stop()  # what the timers wait for may come earlier now
        if (was.compact, was.tombstone_keep_s) != (definition.compact, definition.tombstone_keep_s):
            self.compaction.begin_anew()
        self._note()
        self.watch()

    def discard(self) -> None:
        """The stream is no more, with all that is in it."""
        self.is_deleted = True
        commits = self.shelf.commits
        for kind in (Kind.STREAM_BATCH, Kind.STREAM_KEY, Kind.STREAM_GROUP):
            commits.delete_range(kind, *self._all())
        commits.delete(Kind.STREAM, state_key(self.name))
        self.stop()
        self._open = Columns()
        self.first, self.last = self._next, self._next - 1  # nothing can be read any more
        self.count = self._size_bytes = 0
        for group in list(self.groups.values()):
            group.discard()
        followers = list(self._followers)
        for follower in followers:
            follower.close()
        for follower in followers:
            follower.wake()  # also one that waits for credit, not for records

    def stop(self) -> None:
        """No timers any more."""
        if self._age_timer is not None:
            self._age_timer.cancel()
            self._age_timer = None
        self.compaction.stop()

    def watch(self) -> None:
        """Set the timers that retention and compaction need."""
        timers = self.shelf.timers
        if self.definition.max_age_s and self._age_timer is None and self.first < self._next:
            wait_s = _AGE_LOOK_S
            if self._head is not None:
                now_s = timers.now + self.shelf.wall_clock_offset_s
                wait_s = max(wait_s, self._head.time_s + self.definition.max_age_s - now_s)
            self._age_timer = timers.after(wait_s, self._look_at_age)
        self.compaction.watch()

    def replaced(self, records: int, size_bytes: int) -> None:
        """Compaction has recorded batches with so many fewer records and bytes (or more)."""
        self.count -= records
        self._size_bytes -= size_bytes
        self._head = None
        self.note_state()

    def rewritten(self, last: int) -> None:
        """What compaction has recorded up to this sequence is durable."""
        if self._tail and self._tail[0][0].first <= last:
            self._clear_tail()  # it has what was taken out
        self.look_at_limits()

    def forget_versions(self, keys: Iterable[str]) -> None:
        """Record that there is no record with these keys any more, nor a version of them."""
        for key in keys:
            self.shelf.commits.delete(Kind.STREAM_KEY, self._version_key(key))

    def note_state(self) -> None:
        """Record the state with the open batch, even if nothing was appended."""
        self._is_changed = True
        self._note()

    def _look_at_age(self, _now: float) -> None:
        self._age_timer = None
        self._note()
        self.shelf.commits.after_commit(self.watch)

    def _note(self) -> None:
        if not self._is_noted:
            self._is_noted = True
            self.shelf.commits.before_flush(self._write)

    def _all(self) -> tuple[bytes, bytes]:
        """From where to where the store has what belongs to the stream, of any kind."""
        return _ID.pack(self.identifier), _ID.pack(self.identifier + 1)

    def _key(self, sequence: int) -> bytes:
        return _KEY.pack(self.identifier, sequence)

    def _version_key(self, key: str) -> bytes:
        return _ID.pack(self.identifier) + key.encode()

    def _write(self) -> None:
        """The open batch is being closed: record what has come and how the stream stands."""
        self._is_noted = False
        if self.is_deleted:
            return
        if self._open.payloads:
            self._write_open()
        self._drop()
        if self._is_changed:
            self._is_changed = False
            state: StreamState = (
                self.first,
                self._next,
                self.count,
                self._size_bytes,
                self._time_s,
            )
            self.shelf.commits.put(Kind.STREAM, state_key(self.name), _pack(state))

    def _write_open(self) -> None:
        commits = self.shelf.commits
        columns, self._open = self._open, Columns()
        now_s = self.shelf.timers.now + self.shelf.wall_clock_offset_s
        self._time_s = max(self._time_s, now_s)
        last = self._next - 1
        batches: list[tuple[RecordBatch, int]] = []
        for batch in columns.batches(last - len(columns.payloads) + 1, last, self._time_s):
            value = encode_batch(batch)
            commits.put(Kind.STREAM_BATCH, self._key(batch.first), value)
            self._size_bytes += len(value)
            if self._followers:
                batches.append((batch, len(value)))
        self.count += len(columns.payloads)
        self._is_changed = True
        versions, self._versions = self._versions, {}
        for key, sequence in versions.items():
            commits.put(Kind.STREAM_KEY, self._version_key(key), _ID.pack(sequence))
        self._versions_under_way = versions  # one commit at a time: those before are in the store
        commits.after_commit(partial(self._committed, last, batches))

    def _committed(self, last: int, batches: list[tuple[RecordBatch, int]]) -> None:
        if self.is_deleted:
            return
        self.last = last
        self._versions_under_way = {}
        if not batches:  # the first of them must follow the last one of the tail
            self._clear_tail()
        tail = self._tail
        tail.extend(batches)
        self._tail_bytes += sum([size_bytes for _, size_bytes in batches])
        while len(tail) > _TAIL_BATCHES_MAX or (
            self._tail_bytes > _TAIL_BYTES_MAX and len(tail) > 1
        ):
            self._tail_bytes -= tail.popleft()[1]
        self.watch()
        self.look_at_limits()
        waiting, self._waiting = self._waiting, {}
        try:
            while waiting:
                follower = next(iter(waiting))
                del waiting[follower]
                follower.wake()
        finally:
            self._waiting |= waiting  # one that fails costs the others no more than a commit

    def _clear_tail(self) -> None:
        self._tail.clear()
        self._tail_bytes = 0

    # -- retention -------------------------------------------------------------------------------

    def look_at_limits(self) -> None:
        """Drop the first batches with the open commit if the stream is over one of its limits."""
        head = None if self.is_deleted else self._first_batch()
        if head is not None and self._is_over(head):
            self._note()

    def _drop(self) -> None:
        """Record that the first batches are gone, while the stream is over one of its limits."""
        commits = self.shelf.commits
        first = self.first
        has_tombstones = self.definition.compact
        for _ in range(_DROPPED_AND_READ_MAX if has_tombstones else _DROPPED_MAX):
            head = self._first_batch()
            if head is None or not self._is_over(head):
                break
            if head.first > self.first:  # with what is damaged before it
                start, stop = self._key(self.first), self._key(head.first)
                commits.delete_range(Kind.STREAM_BATCH, start, stop)
            if has_tombstones:
                self._forget_tombstones(head.first)
            # Not a range for one key: many ranges would slow down every later scan.
            commits.delete(Kind.STREAM_BATCH, self._key(head.first))
            self.count, self._size_bytes = self._without(head)
            self.first = head.last + 1
            self._head = None
        if self.first > first:
            self._is_changed = True
            commits.after_commit(self.look_at_limits)

    def _forget_tombstones(self, first: int) -> None:
        """This batch is being dropped: compaction will not meet the tombstones in it any more."""
        try:
            value = self.shelf.store.get(Kind.STREAM_BATCH, self._key(first))
        except RecordDamaged:
            return
        batch = None if value is None else decode_batch(first, value)
        if batch is None or batch.keys is None:
            return
        rows = zip(batch.sequences, batch.keys, batch.payloads, strict=True)
        self.forget_versions(
            key
            for sequence, key, payload in rows
            if key is not None and not payload and self.version(key) == sequence
        )

    def _without(self, head: Extent) -> tuple[int, int]:
        """How many records and bytes there are without the first batch.

        Damage before it counts by its share of the sequences: exactly what was lost, where nothing
        was compacted.
        """
        if head.last + 1 == self._next:
            return 0, 0
        lost = (head.first - self.first) / (self._next - self.first)
        count = self.count - round(self.count * lost) - head.count
        size_bytes = self._size_bytes - round(self._size_bytes * lost) - head.size_bytes
        return max(0, count), max(0, size_bytes)

    def _is_over(self, head: Extent) -> bool:
        """Whether the first batch is more than the limits want kept."""
        definition = self.definition
        count, size_bytes = self._without(head)
        now_s = self.shelf.timers.now + self.shelf.wall_clock_offset_s
        return bool(
            (definition.max_records and count >= definition.max_records)
            or (definition.max_bytes and size_bytes >= definition.max_bytes)
            or (definition.max_age_s and head.time_s + definition.max_age_s <= now_s)
        )

    def _first_batch(self) -> Extent | None:
        """The first batch that is committed and may be dropped; None: there is none.

        There is none either where nothing limits the stream, and while compaction has other
        batches on their way to the disk.
        """
        definition = self.definition
        if self.compaction.is_rewriting or not (
            definition.max_records or definition.max_bytes or definition.max_age_s
        ):
            return None
        if self._head is None:
            found = next(self.stored(self.first, self.last), None)
            self._head = None if found is None else read_extent(*found)
        return self._head

    # -- start -----------------------------------------------------------------------------------

    def recover(self) -> None:
        """The record of its state is damaged: find out by reading all batches and versions.

        Numbers that a batch or a version remembers are not given again.
        """
        store = self.shelf.store
        first = 0
        for key, value in store.scan(Kind.STREAM_BATCH, *self._all()):
            extent = read_extent(_KEY.unpack(key)[1], value)
            first = first or extent.first
            self._next = extent.last + 1
            self.count += extent.count
            self._size_bytes += extent.size_bytes
            self._time_s = max(self._time_s, extent.time_s)
        for _, value in store.scan(Kind.STREAM_KEY, *self._all()):
            self._next = max(self._next, _ID.unpack(value)[0] + 1)
        self.last = self._next - 1
        self.first = first or self._next
        self.note_state()
        self.watch()


def state_key(name: str) -> bytes:
    """Under which the store has the state of the stream, beside its definition."""
    return name.encode() + b"\0"


def _nothing() -> None:
    """Who reads once need not be woken."""
