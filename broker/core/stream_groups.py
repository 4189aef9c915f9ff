"""Those who read a stream on: each for itself (`Follower`), or sharing its records (`Group`)."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from struct import Struct
from typing import TYPE_CHECKING

import msgpack

from ganglion.broker.core.stream_batches import Record, RecordBatch
from ganglion.broker.store import Kind

if TYPE_CHECKING:
    from ganglion.broker.core.stream import Stream

__all__ = ["TAKE_BYTES", "Follower", "Group", "GroupStatistics", "Member"]

TAKE_BYTES = 1024 * 1024
"""Bytes of records that are read at once where nothing else is said."""

_GROUP_WINDOW = 65_536  # records between a group's position and the furthest one it gave out
_ID = Struct(">Q")
_pack: Callable[[object], bytes] = msgpack.Packer().pack  # a Packer each time would cost 1 µs


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """How a consumer group stands."""

    name: str
    position: int
    """Everything up to this sequence is acknowledged."""
    lag: int
    """How many sequences the stream is ahead of it."""
    members: int
    unacknowledged: int
    """Records that were given out, and are with a member or wait for another one."""
    skipped: int
    """How many sequences retention dropped before the group had read them, since the start."""
    damaged: int
    """How many it could not read, since the start; the store has reported which."""


class Follower:
    """A position in a stream that somebody reads on from, at a pace of their own.

    From the store, or from the memory of the stream where it has caught up; both give the same
    batches, so nothing is missed or given twice in between. It has at most one batch in memory.
    """

    __slots__ = ("_batch", "_wake", "damaged", "is_ended", "position", "skipped", "stream")

    def __init__(self, stream: "Stream", after: int, wake: Callable[[], None]) -> None:
        self.stream = stream
        self.position = max(0, after)
        """The sequence that was read last."""
        self.skipped = 0
        """How many sequences had been dropped by retention before they were read."""
        self.damaged = 0
        """How many sequences could not be read; the store has reported which."""
        self.is_ended = False
        """Whether it was closed, or the stream deleted: nothing comes any more."""
        self._wake = wake
        self._batch: RecordBatch | None = None

    def take(self, count_max: int, bytes_max: int = TAKE_BYTES) -> list[Record]:
        """The next committed records: at most so many, and so many bytes (`RecordBatch.sizes`).

        The first one comes also if it alone has more bytes. Fewer than that says nothing: take
        again until there are none. Then `wake` is called once as soon as there are; and in any
        case when it is ended by the stream.
        """
        taken: list[Record] = []
        if self.is_ended or count_max <= 0:
            return taken
        while count_max > 0:
            part = self._next_part(count_max, bytes_max, is_first=not taken)
            if part is None:
                break
            batch, start, stop, size_bytes = part
            taken += batch.records(start, stop)
            count_max -= stop - start
            bytes_max -= size_bytes
        if not taken:
            self._wait()
        return taken

    def take_batch(self, count_max: int, bytes_max: int = TAKE_BYTES) -> RecordBatch | None:
        """As `take`, but by columns, and not more than what is stored together.

        The fast way to follow: nothing is made per record.
        """
        if self.is_ended or count_max <= 0:
            return None
        part = self._next_part(count_max, bytes_max, is_first=True)
        if part is None:
            self._wait()
            return None
        return part[0].part(part[1], part[2])

    def _next_part(
        self, count_max: int, bytes_max: int, *, is_first: bool
    ) -> tuple[RecordBatch, int, int, int] | None:
        """A batch, where in it to begin and to end, and the bytes of that; None: nothing (fits)."""
        while True:
            batch = self._batch
            if batch is None or not batch.first <= self.position + 1 <= batch.last:
                batch = self._batch = self._next_batch()
                if batch is None:
                    return None
            start = bisect_right(batch.sequences, self.position)
            stop = min(start + count_max, len(batch.payloads))
            sizes = list(accumulate(batch.sizes(start, stop)))
            fit = bisect_right(sizes, bytes_max)
            if not fit and sizes:
                if not is_first:
                    return None
                fit = 1
            if start + fit == len(batch.payloads):
                self.position = batch.last
            else:
                self.position = batch.sequences[start + fit - 1]
            if fit:
                return batch, start, start + fit, sizes[fit - 1]

    def _wait(self) -> None:
        self._batch = None  # one that waits needs no memory
        self.stream.wait(self)

    def wake(self) -> None:
        """There is something to take."""
        self._wake()

    def rest(self) -> None:
        """Keep nothing in memory until the next `take`."""
        self._batch = None

    def close(self) -> None:
        """Read no further. Harmless the second time."""
        self.is_ended = True
        self._batch = None
        self.stream.leave(self)

    def _next_batch(self) -> RecordBatch | None:
        stream = self.stream
        if self.position < stream.first - 1:
            self.skipped += stream.first - 1 - self.position
            self.position = stream.first - 1
        if self.position >= stream.last:
            return None
        batch = stream.batch_after(self.position)
        readable_to = stream.last if batch is None else batch.first - 1
        if readable_to > self.position:
            self.damaged += readable_to - self.position
            self.position = readable_to
        return batch


class Member:
    """One of those that share the records of a group; `Group.join` makes it."""

    __slots__ = ("group", "is_waiting", "wake")

    def __init__(self, group: "Group", wake: Callable[[], None]) -> None:
        self.group = group
        self.wake = wake
        self.is_waiting = False

    @property
    def is_ended(self) -> bool:
        """Whether it has left, or the group or its stream was deleted: nothing comes any more."""
        return self not in self.group.members

    def take(self, count_max: int, bytes_max: int = TAKE_BYTES) -> list[Record]:
        """The next records that no member has, those that came back first; as `Follower.take`."""
        return self.group.take(self, count_max, bytes_max)

    def acknowledge(self, sequence: int) -> bool:
        """It is done with the record; False: it does not have it."""
        return self.group.settle(self, sequence)

    def give_back(self, sequence: int) -> bool:
        """It could not do it: let any member take the record again; False: it does not have it."""
        return self.group.give_back(self, sequence)

    def close(self) -> None:
        """It leaves: others get what it has not acknowledged, in order."""
        self.group.leave(self)


class Group:
    """Members that share the records of a stream, and the position up to which all are done.

    The position is stored; which records behind it are acknowledged too is in memory only: after
    a restart those are given out again.
    """

    def __init__(self, stream: "Stream", name: str, position: int) -> None:
        self.stream = stream
        self.name = name
        self.position = max(0, position)
        """Everything up to this sequence is acknowledged, or cannot be read any more."""
        self.members: dict[Member, None] = {}
        self._follower: Follower | None = None
        self._holders: dict[int, Member | None] = {}  # who has what was given out; None: returned
        self._given: deque[int] = deque()  # what was given out, in order, acknowledged ones too
        self._returned: list[int] = []  # a heap
        self._batch: RecordBatch | None = None  # that a returned record was found in
        self._is_noted = False
        self._skipped = self._damaged = 0  # of what came back
        self.is_deleted = False

    def statistics(self) -> GroupStatistics:
        """How it stands."""
        stream, follower = self.stream, self._follower
        return GroupStatistics(
            self.name,
            self.position,
            max(0, stream.last - max(self.position, stream.first - 1)),
            len(self.members),
            len(self._holders),
            self._skipped + (0 if follower is None else follower.skipped),
            self._damaged + (0 if follower is None else follower.damaged),
        )

    def join(self, wake: Callable[[], None]) -> Member:
        """A new member. `wake` is called once when there is something after an empty `take`."""
        if self._follower is None:
            self._follower = self.stream.follow(self.position, self._wake_members)
        member = Member(self, wake)
        self.members[member] = None
        return member

    def take(self, member: Member, count_max: int, bytes_max: int) -> list[Record]:
        """What the member gets next: what came back, or else what nobody had yet."""
        follower = self._follower
        if member not in self.members or follower is None or count_max <= 0:
            return []
        taken = self._take_returned(count_max, bytes_max)
        if not taken:
            room = min(count_max, _GROUP_WINDOW - len(self._given))
            taken = follower.take(room, bytes_max)
            self._given.extend([record.sequence for record in taken])
            if not taken:
                self._advance()  # what it has passed over could not be read
        for record in taken:
            self._holders[record.sequence] = member
        member.is_waiting = not taken
        return taken

    def settle(self, member: Member, sequence: int) -> bool:
        """The member is done with the record; False: it does not have it."""
        if self._holders.get(sequence) is not member:
            return False
        self._forget(sequence)
        return True

    def give_back(self, member: Member, sequence: int) -> bool:
        """The member could not do it; False: it does not have it."""
        if self._holders.get(sequence) is not member:
            return False
        self._holders[sequence] = None
        heappush(self._returned, sequence)
        self._wake_members()
        return True

    def leave(self, member: Member) -> None:
        """The member is none any more; harmless when it is not."""
        if member not in self.members:
            return
        del self.members[member]
        for sequence, holder in self._holders.items():
            if holder is member:
                self._holders[sequence] = None
                heappush(self._returned, sequence)
        if not self.members:
            self._batch = None
            if self._follower is not None:
                self._follower.rest()
        elif self._returned:
            self._wake_members()

    def discard(self) -> None:
        """The group is no more; its members are woken, to find that they are ended."""
        self.is_deleted = True
        if self._follower is not None:
            self._follower.close()
        self.stream.shelf.commits.delete(Kind.STREAM_GROUP, self._key())
        members, self.members = self.members, {}
        self._holders.clear()
        self._batch = None
        for member in members:
            member.is_waiting = False
            member.wake()

    def note(self) -> None:
        """Record the position with the open batch."""
        if not self._is_noted:
            self._is_noted = True
            self.stream.shelf.commits.before_flush(self._write)

    def _take_returned(self, count_max: int, bytes_max: int) -> list[Record]:
        taken: list[Record] = []
        while self._returned and len(taken) < count_max:
            sequence = self._returned[0]
            found = self._find(sequence)
            if found is None:
                heappop(self._returned)
                self._forget(sequence)
                continue
            batch, index = found
            size_bytes = batch.sizes(index, index + 1)[0]
            if taken and size_bytes > bytes_max:
                break
            heappop(self._returned)
            bytes_max -= size_bytes
            taken += batch.records(index, index + 1)
        return taken

    def _forget(self, sequence: int) -> None:
        """Nobody needs the record any more."""
        del self._holders[sequence]
        given, holders = self._given, self._holders
        was_full = len(given) >= _GROUP_WINDOW
        while given and given[0] not in holders:
            given.popleft()
        self._advance()
        if was_full and len(given) < _GROUP_WINDOW:
            self._wake_members()

    def _advance(self) -> None:
        """Note how far everything is acknowledged."""
        assert self._follower is not None
        position = self._given[0] - 1 if self._given else self._follower.position
        if position > self.position:
            self.position = position
            self.note()

    def _find(self, sequence: int) -> tuple[RecordBatch, int] | None:
        """In which batch, and where there, a record is; None: it cannot be read any more."""
        if sequence < self.stream.first:
            self._skipped += 1
            return None
        batch = self._batch
        if batch is None or not batch.first <= sequence <= batch.last:
            batch = self._batch = self.stream.batch_after(sequence - 1)
        if batch is None or sequence < batch.first:
            self._damaged += 1
            return None
        index = bisect_left(batch.sequences, sequence)
        if index == len(batch.sequences) or batch.sequences[index] != sequence:
            return None  # compaction was faster: there is a later one with its key
        return batch, index

    def _wake_members(self) -> None:
        for member in list(self.members):
            if member.is_waiting:
                member.is_waiting = False
                member.wake()

    def _key(self) -> bytes:
        return _ID.pack(self.stream.identifier) + self.name.encode()

    def _write(self) -> None:
        self._is_noted = False
        if not self.is_deleted and not self.stream.is_deleted:
            position = _pack(self.position)
            self.stream.shelf.commits.put(Kind.STREAM_GROUP, self._key(), position)
