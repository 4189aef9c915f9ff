"""Those who read a stream on: each for itself (`Follower`), or sharing its records (`Group`)."""

from bisect import bisect_left, bisect_right
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
"""Bytes of payloads that are read at once where nothing else is said."""

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


class Follower:
    """A position in a stream that somebody reads on from, at a pace of their own.

    From the store, or from the memory of the stream where it has caught up; both give the same
    batches, so nothing is missed or given twice in between. It has at most one batch in memory.
    """

    __slots__ = ("_batch", "_wake", "damaged", "is_ended", "position", "skipped", "stream")

    def __init__(self, stream: "Stream", after: int, wake: Callable[[], None]) -> None:
        self.stream = stream
        self.position = after
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
        """The next committed records: at most so many, and so many bytes of payloads.

        The first one comes also if it alone has more bytes. When there are none, `wake` is called
        once as soon as there are (or it is ended).
        """
        taken: list[Record] = []
        if self.is_ended or count_max <= 0:
            return taken
        while count_max > 0:
            batch = self._batch
            if batch is None or not batch.first <= self.position + 1 <= batch.last:
                batch = self._batch = self._next_batch()
                if batch is None:
                    break
            start = bisect_right(batch.sequences, self.position)
            stop = min(start + count_max, len(batch.payloads))
            sizes = list(accumulate(map(len, batch.payloads[start:stop])))
            fit = bisect_right(sizes, bytes_max)
            if not fit and sizes:
                if taken:
                    break
                fit = 1
            if start + fit == len(batch.payloads):
                self.position = batch.last
            else:
                self.position = batch.sequences[start + fit - 1]
            if fit:
                taken += batch.records(start, start + fit)
                count_max -= fit
                bytes_max -= sizes[fit - 1]
        if not taken:
            self._batch = None  # one that waits needs no memory
            self.stream.wait(self)
        return taken

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

    def take(self, count_max: int, bytes_max: int = TAKE_BYTES) -> list[Record]:
        """The next records that no member has; as `Follower.take`."""
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
        self.position = position
        """Everything up to this sequence is acknowledged."""
        self.members: list[Member] = []
        self._follower: Follower | None = None
        self._holders: dict[int, Member | None] = {}  # who has what was given out; None: returned
        self._given: list[int] = []  # a heap of what was given out, acknowledged ones too
        self._returned: list[int] = []  # a heap
        self._batch: RecordBatch | None = None  # that a returned record was found in
        self._is_noted = False
        self.is_deleted = False

    def statistics(self) -> GroupStatistics:
        """How it stands."""
        lag = max(0, self.stream.last - self.position)
        return GroupStatistics(self.name, self.position, lag, len(self.members), len(self._holders))

    def join(self, wake: Callable[[], None]) -> Member:
        """A new member. `wake` is called once when there is something after an empty `take`."""
        if self._follower is None:
            self._follower = self.stream.follow(self.position, self._wake_members)
        member = Member(self, wake)
        self.members.append(member)
        return member

    def take(self, member: Member, count_max: int, bytes_max: int) -> list[Record]:
        """What the member gets next: first what was returned."""
        taken: list[Record] = []
        follower = self._follower
        if member not in self.members or follower is None or follower.is_ended or count_max <= 0:
            return taken
        while self._returned and len(taken) < count_max:
            record = self._find(self._returned[0])
            if record is None:  # retention or compaction was faster
                self._forget(heappop(self._returned))
                continue
            if taken and len(record.payload) > bytes_max:
                return taken
            heappop(self._returned)
            bytes_max -= len(record.payload)
            self._holders[record.sequence] = member
            taken.append(record)
        room = min(count_max - len(taken), _GROUP_WINDOW - len(self._given))
        if room > 0 and (bytes_max > 0 or not taken):
            fresh = follower.take(room, bytes_max)
            for record in fresh:
                self._holders[record.sequence] = member
                heappush(self._given, record.sequence)
            taken += fresh
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
        self.members.remove(member)
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
        """The group is no more."""
        self.is_deleted = True
        if self._follower is not None:
            self._follower.close()
        self.stream.shelf.commits.delete(Kind.STREAM_GROUP, self._key())
        self._wake_members()

    def note(self) -> None:
        """Record the position with the open batch."""
        if not self._is_noted:
            self._is_noted = True
            self.stream.shelf.commits.before_flush(self._write)

    def _forget(self, sequence: int) -> None:
        del self._holders[sequence]
        given = self._given
        was_full = len(given) >= _GROUP_WINDOW
        while given and given[0] not in self._holders:
            heappop(given)
        assert self._follower is not None
        position = given[0] - 1 if given else self._follower.position
        if position > self.position:
            self.position = position
            self.note()
        if was_full and len(given) < _GROUP_WINDOW:
            self._wake_members()

    def _find(self, sequence: int) -> Record | None:
        batch = self._batch
        if batch is None or not batch.first <= sequence <= batch.last:
            batch = self._batch = self.stream.batch_after(sequence - 1)
        if batch is None or sequence < self.stream.first:
            return None
        index = bisect_left(batch.sequences, sequence)
        if index == len(batch.sequences) or batch.sequences[index] != sequence:
            return None
        return batch.records(index, index + 1)[0]

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
