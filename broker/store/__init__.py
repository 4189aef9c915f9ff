"""Where durable state is kept: an ordered key-value store that takes atomic, numbered batches.

The core sees only this interface. It records what changes in a `Batch`, hands the batch over with
`Store.commit`, and lets nothing leave (acknowledgements, deliveries) before the store has called
back.

A store never gives out a record whose checksum does not fit. Such a record is `Damage`: `Store.get`
raises, `Store.scan` reports it and goes on with the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ganglion import GanglionError

__all__ = [
    "Batch",
    "Commit",
    "CommitRefused",
    "Damage",
    "Delete",
    "DeleteRange",
    "FeedGone",
    "Kind",
    "Operation",
    "Put",
    "RecordDamaged",
    "Snapshot",
    "Store",
    "StoreDamaged",
    "StoreError",
    "StoreLocked",
    "StoreMissing",
    "StoreStatistics",
    "StoreTooNew",
    "UpgradeInterrupted",
]


class Kind(IntEnum):
    """What a record is: records of one kind are ordered by key and scanned together.

    The numbers are part of what is stored: a kind keeps its own for good.
    """

    SESSION = 1
    """client id → who opened the session and how long it outlives its connection"""
    SUBSCRIPTION = 2
    """client id, filter → options"""
    BACKLOG = 3
    """backlog, number of the first → messages that wait in order (`core.backlog`)"""
    IN_FLIGHT = 4
    """client id, packet identifier → number of the queued message and how far it came"""
    RECEIVED = 5
    """client id, packet identifier → a QoS 2 message that came in and is not released"""
    RETAINED = 6
    """topic → message"""
    SETTLED = 7
    """backlog, number of the first → which messages of that `BACKLOG` record are settled"""
    BACKLOG_STATE = 8
    """backlog → where it begins and ends, how much waits in it"""
    PAYLOAD = 9
    """number → a message that waits in several backlogs, stored once"""
    PAYLOAD_USES = 10
    """number → in how many backlogs it still waits"""
    WILL = 11
    """client id → what is published if the client goes without a goodbye"""
    QUEUE = 12
    """queue name → its definition"""
    RETURNED = 13
    """backlog, number → how often a message was delivered in vain, and until when it rests"""
    DELAYED = 14
    """queue, time, number → a message that is not due yet"""
    DEDUPLICATION = 15
    """queue, number → a message identifier that was seen, and when"""
    STREAM = 16
    """stream name → its definition and state"""
    STREAM_BATCH = 17
    """stream, sequence of the first → records that were appended together"""
    STREAM_KEY = 18
    """stream, key → sequence of the last record with that key"""
    STREAM_GROUP = 19
    """stream, group → the position up to which its members have read"""
    PRODUCER = 20
    """user, producer → the highest identifier of what was taken from it, and when"""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in the store that cannot be trusted, and is not served."""

    kind: Kind | None
    """Of the record; None when it is not a record (the log)."""
    key: bytes
    """Of the record, or of the last good one before a part that cannot be read."""
    what: str
    """What was found, as a sentence part for the log."""


class StoreError(GanglionError):
    """The store cannot be used; the message says which one, why, and what to do."""


class StoreLocked(StoreError):
    """Another process has the store."""


class StoreMissing(StoreError):
    """There is no store where one was expected."""


class StoreTooNew(StoreError):
    """A later version of Ganglion wrote the store in a format that this one does not know."""


class UpgradeInterrupted(StoreError):
    """A change of the store's format was begun and not finished."""


class StoreDamaged(StoreError):
    """The files are damaged in a way that the store cannot work around by itself."""


class RecordDamaged(StoreError):
    """The record that was asked for does not fit its checksum; `damage` says which it is."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(f"{damage.what}: {damage.kind and damage.kind.name} {damage.key!r}")
        self.damage = damage


class FeedGone(StoreError):
    """The commits that were asked for are not kept (any more): begin again with a snapshot."""


class CommitRefused(StoreError):
    """The commit does not go on where this store is; the message says which one would."""


@dataclass(frozen=True, slots=True)
class Put:
    """The record is set."""

    kind: Kind
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """The record is removed."""

    kind: Kind
    key: bytes


@dataclass(frozen=True, slots=True)
class DeleteRange:
    """Every record from `start` up to but without `stop` is removed."""

    kind: Kind
    start: bytes
    stop: bytes


Operation = Put | Delete | DeleteRange


@dataclass(frozen=True, slots=True)
class Commit:
    """A batch that is durable, to be applied to another store."""

    number: int
    epoch: int
    operations: tuple[Operation, ...]
    """In the order in which they take effect."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a store held after one commit."""

    number: int
    """Of that commit."""
    epoch: int
    records: Iterator[tuple[Kind, bytes, bytes]]
    """Kind, key and value of every record, once, ordered. Raises `StoreDamaged` at a damaged one,
    since a copy without it would pass for whole."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What a store holds at one moment."""

    commit_number: int
    """The number of the last durable batch; it goes on after a restart."""
    epoch: int
    """Raised when another node takes over: of two histories the one with the higher epoch counts.
    """
    records: Mapping[Kind, int]
    """How many records there are of each kind; an estimate where counting would mean reading."""
    size_bytes: int
    """What the store takes up, on disk or in memory."""
    is_full: bool
    """Whether there is too little room on the disk (`Store.is_full`)."""
    damaged: int
    """How often damage was met since the start."""
    feed_first: int | None
    """The number of the first commit that is kept for `Store.commits_after`; None: there is none.
    """
    feed_bytes: int
    """What the kept commits take up, about."""


class Batch(Protocol):
    """Changes that take effect together or not at all."""

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        """Set the record, in place of an earlier one with this key."""
        ...

    def delete(self, kind: Kind, key: bytes) -> None:
        """Remove the record; harmless when there is none."""
        ...

    def delete_range(self, kind: Kind, start: bytes, stop: bytes) -> None:
        """Remove every record from `start` up to but without `stop`, however many there are."""
        ...


class Store(Protocol):
    """An ordered key-value store with atomic batches."""

    @property
    def is_full(self) -> bool:
        """Whether there is too little room on the disk: nothing new is to be taken in until then.

        Commits are written all the while as long as they fit, out of a reserve when there is
        nothing else, so that what deletes can make room. Beyond that they wait.
        """
        ...

    def batch(self) -> Batch:
        """A new, empty batch. It is committed once."""
        ...

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Make the batch durable, then call `done` in the thread of the core.

        Batches are numbered and complete in the order in which they are given. `done` may be
        called before this returns.
        """
        ...

    def get(self, kind: Kind, key: bytes) -> bytes | None:
        """The committed value of a record; None when there is none. Raises `RecordDamaged`."""
        ...

    def scan(
        self,
        kind: Kind,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Committed records of a kind as (key, value), in order of the keys, or in reverse.

        `start` is the first key that may be among them, `stop` the first beyond them, both also
        when `backwards`. What is committed after the call is not among them. Damaged records are
        left out, counted and reported.
        """
        ...

    def attach_feed(self, bytes_max: int, age_max_s: float) -> None:
        """Keep the commits from the next one on for `commits_after`, until `detach_feed`.

        At most `bytes_max` bytes of them and none older than `age_max_s` seconds, give or take
        1/32; what is older than either goes with the commits that follow. Kept commits, and that
        they are kept, survive a restart; after a kill, that they are kept is certain once a later
        commit is durable. When a feed is attached already its bounds are changed.
        """
        ...

    def detach_feed(self) -> None:
        """Keep no commits, and forget those that are kept. Harmless without a feed."""
        ...

    def commits_after(self, number: int) -> Iterator[Commit]:
        """The durable commits behind that one, in order and without a gap, up to now.

        Raises `FeedGone`, at once or on the way, when one of them is not kept (any more).
        """
        ...

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Everything at one commit, while commits go on. It holds up the room of what is deleted.

        It may wait for one sync of the disk before it begins.
        """
        ...

    def load(self, number: int, epoch: int, records: Iterable[tuple[Kind, bytes, bytes]]) -> None:
        """Take over the snapshot of another store into this one, which has to be empty and idle.

        It is durable when this returns; the next commit is `number` + 1. Interrupted, it leaves a
        store that takes no commit and is refused when it is opened. Raises `CommitRefused` when
        this store is not empty, `StoreError` when it cannot be written, or what `records` raises.
        """
        ...

    def apply(self, commit: Commit, done: Callable[[], None]) -> None:
        """Make a commit of another store durable under its number and epoch, then call `done`.

        Raises `CommitRefused` unless it is the next one, and its epoch none of the past.
        """
        ...

    def statistics(self) -> StoreStatistics:
        """What the store holds now."""
        ...

    def close(self) -> None:
        """Finish the commits under way and let go of the files. Harmless the second time."""
        ...
