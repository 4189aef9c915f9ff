"""The replication feed: which of the last commits are kept, and how one is written down.

While a feed is attached every commit is kept as one record, in the same transaction. What is kept
has bounds, bytes and age, and is trimmed from its old end by segments: runs of commits of about
1/32 of the bounds, so that what has to be remembered of millions of commits is a short list. The
list is stored whenever it changes; of the last, open segment only the first number counts then, and
`Feed.add` is called again for its commits when the store is opened.

A record is a msgpack array: epoch, time of the commit (Unix time in seconds), and the operations,
three entries each, flat: kind, key, and value; of a deletion nil; of a deleted range [stop].
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from ganglion.broker.store import (
    Batch,
    Commit,
    CommitRefused,
    Delete,
    DeleteRange,
    FeedGone,
    Kind,
    Operation,
    Put,
)

__all__ = [
    "Feed",
    "check_applicable",
    "check_kept",
    "decode_commit",
    "encode_commit",
    "in_order",
    "record",
    "time_of",
]

_SEGMENTS = 32
"""In how many steps what is kept is trimmed: more of them trim more often, and less at a time."""


@dataclass(slots=True)
class _Segment:
    first: int
    size_bytes: int
    begun_s: float
    ended_s: float


class Feed:
    """The bounds of what is kept, and what that is."""

    __slots__ = ("_segments", "_size_bytes", "age_max_s", "bytes_max")

    def __init__(self, bytes_max: int, age_max_s: float) -> None:
        """Keep up to `bytes_max` bytes of commits that are up to `age_max_s` seconds old."""
        self.bytes_max = bytes_max
        self.age_max_s = age_max_s
        self._segments: deque[_Segment] = deque()
        self._size_bytes = 0

    @classmethod
    def decode(cls, state: bytes) -> "Feed":
        """The feed of `encode`, without the commits of its last segment: `add` these."""
        bytes_max, age_max_s, segments = msgpack.unpackb(state)
        feed = cls(bytes_max, age_max_s)
        feed._segments = deque(_Segment(*each) for each in segments)
        if feed._segments:
            feed._segments[-1].size_bytes = 0
        feed._size_bytes = sum(each.size_bytes for each in feed._segments)
        return feed

    def encode(self) -> bytes:
        """Bounds and segments, to be stored whenever `add` says so."""
        segments = [(s.first, s.size_bytes, s.begun_s, s.ended_s) for s in self._segments]
        return msgpack.packb((self.bytes_max, self.age_max_s, segments))

    @property
    def first(self) -> int | None:
        """The number of the first commit that is kept; None when there is none."""
        return self._segments[0].first if self._segments else None

    @property
    def size_bytes(self) -> int:
        """What is kept takes up, in bytes."""
        return self._size_bytes

    @property
    def open_first(self) -> int | None:
        """The number of the first commit of the last segment; None when there is none."""
        return self._segments[-1].first if self._segments else None

    def add(self, number: int, size_bytes: int, time_s: float) -> bool:
        """Keep this commit, the next one; whether the segments are others now.

        Then `encode` has to be stored, and all before `first` is no longer kept.
        """
        segments = self._segments
        last = segments[-1] if segments else None
        changed = last is None or (
            last.size_bytes * _SEGMENTS >= self.bytes_max
            or (time_s - last.begun_s) * _SEGMENTS >= self.age_max_s
        )
        if changed:
            segments.append(_Segment(number, 0, time_s, time_s))
        open_segment = segments[-1]
        open_segment.size_bytes += size_bytes
        open_segment.ended_s = time_s
        self._size_bytes += size_bytes
        while segments and (
            self._size_bytes > self.bytes_max or segments[0].ended_s < time_s - self.age_max_s
        ):
            self._size_bytes -= segments.popleft().size_bytes
            changed = True
        return changed


def encode_commit(epoch: int, time_s: float, operations: list[Any]) -> bytes:
    """The record of a commit with these flat operations."""
    return msgpack.packb((epoch, time_s, operations))


def decode_commit(number: int, encoded: bytes, checksum_size: int) -> Commit:
    """The commit of a record, whose values begin with checksums of that size."""
    epoch, _, flat = cast("tuple[int, float, list[Any]]", msgpack.unpackb(encoded))
    operations: list[Operation] = []
    entries = iter(flat)
    for kind, key, value in zip(entries, entries, entries, strict=True):
        if value is None:
            operations.append(Delete(Kind(kind), key))
        elif isinstance(value, bytes):
            operations.append(Put(Kind(kind), key, value[checksum_size:]))
        else:
            operations.append(DeleteRange(Kind(kind), key, value[0]))
    return Commit(number, epoch, tuple(operations))


def time_of(encoded: bytes) -> float:
    """When the commit of a record was made, as Unix time in seconds."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(encoded))
    unpacker.feed(encoded)
    unpacker.read_array_header()
    unpacker.skip()
    return float(unpacker.unpack())


def record(batch: Batch, operations: Iterable[Operation]) -> None:
    """Record the operations of a commit in a batch."""
    for operation in operations:
        match operation:
            case Put(kind, key, value):
                batch.put(kind, key, value)
            case Delete(kind, key):
                batch.delete(kind, key)
            case DeleteRange(kind, start, stop):
                batch.delete_range(kind, start, stop)


def check_kept(feed: Feed | None, number: int, last: int) -> None:
    """Raise `FeedGone` unless every commit after `number` is kept; `last` was the last one."""
    if feed is None:
        raise FeedGone("no feed is attached: attach one, and begin with a snapshot")
    if number > last:
        raise FeedGone(
            f"commit {number} has not been made here, the last one is {last}: "
            "the histories differ, begin with a snapshot"
        )
    first = feed.first or last + 1
    if number + 1 < first:
        raise FeedGone(
            f"commit {number + 1} is not kept any more, the first one is {first}: "
            "begin with a snapshot, or raise the bounds of the feed"
        )


def check_applicable(commit: Commit, number: int, epoch: int) -> None:
    """Raise `CommitRefused` unless the commit follows the one with that number and epoch."""
    if commit.epoch < epoch:
        raise CommitRefused(
            f"commit {commit.number} has epoch {commit.epoch} and this store {epoch}: "
            "who sent it has been replaced by another node and must not go on"
        )
    if commit.number != number + 1:
        raise CommitRefused(
            f"commit {commit.number} does not follow commit {number}, the last one of this store: "
            f"apply the commits after {number}"
        )


def in_order(commits: Iterable[Commit], after: int) -> Iterator[Commit]:
    """The commits; raises `FeedGone` where one is missing."""
    for number, commit in enumerate(commits, after + 1):
        if commit.number != number:
            raise FeedGone(f"commit {number} is missing in the feed: begin with a snapshot")
        yield commit
