"""What the tests of streams share: a node's streams alone, on a virtual clock, over any store.

`House` opens the streams that a store has, lets time pass, commits, crashes and restarts.
`FaultyStore` is a store in memory that holds commits back or gives records out as damaged.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.stream import Stream
from ganglion.broker.core.stream_batches import Record
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.stream_groups import Follower, Member
from ganglion.broker.core.streams import Streams
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Batch, Damage, Kind, RecordDamaged, Store
from ganglion.broker.store.memory import MemoryStore
from tests.broker.store.stores import Core, open_rocks

__all__ = ["UNIX_S", "FaultyStore", "House", "Reader", "RocksHouse", "payloads", "sequences"]

UNIX_S = 1_700_000_000.0
"""The Unix time at which the virtual clock shows 0."""


class FaultyStore(MemoryStore):
    """A store in memory whose commits can be held back, and whose records can be damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.is_holding = False
        """Whether commits wait for `release`."""
        self.held: list[tuple[Batch, Callable[[], None]]] = []
        self.damaged: set[tuple[Kind, bytes]] = set()
        """Kind and key of records whose checksum does not fit."""
        self.reads = 0
        """How many records were given out."""

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Hold the batch, or apply it."""
        if self.is_holding:
            self.held.append((batch, done))
        else:
            super().commit(batch, done)

    def release(self) -> None:
        """Complete what is held, and hold nothing any more."""
        self.is_holding = False
        held, self.held = self.held, []
        for batch, done in held:
            super().commit(batch, done)

    def get(self, kind: Kind, key: bytes) -> bytes | None:
        """The value; raises where it is damaged."""
        if (kind, key) in self.damaged:
            raise RecordDamaged(Damage(kind, key, "damaged by the test"))
        return super().get(kind, key)

    def scan(
        self,
        kind: Kind,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """The records that are not damaged."""
        for key, value in super().scan(kind, start, stop, backwards=backwards):
            if (kind, key) not in self.damaged:
                self.reads += 1
                yield key, value


class House:
    """The streams of a node, without the node."""

    def __init__(self, store: Store | None = None, now: float = 0.0) -> None:
        self.faulty = FaultyStore()
        self.store: Store = self.faulty if store is None else store
        self.bound: list[tuple[object, str]] = []
        self.open(now)

    def open(self, now: float) -> None:
        """Start with what the store has."""
        self.timers = Timers(now)
        self.statistics = Statistics()
        self.commits = Commits(self.store, self.timers, self.statistics)
        self.shelf = Shelf(self.store, self.commits, self.timers, UNIX_S)
        self.bound.clear()
        self.streams = Streams(
            self.shelf,
            self.statistics,
            lambda receiver, topic_filter: self.bound.append((receiver, topic_filter)),
            lambda receiver, topic_filter: self.bound.remove((receiver, topic_filter)),
        )

    def declare(self, name: str = "s", **options: Any) -> Stream:
        """The stream with these options, committed."""
        stream = self.streams.declare(StreamDefinition(name=name, **options))
        self.flush()
        return stream

    def stream(self, name: str = "s") -> Stream:
        """The stream of this name."""
        return self.streams.get(name)

    def flush(self) -> None:
        """Commit what was recorded, as at the end of a tick."""
        self.commits.flush()

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on, with a tick wherever a timer is due."""
        until = self.timers.now + seconds
        while (deadline := self.timers.next_deadline()) is not None and deadline <= until:
            self.timers.run(max(deadline, self.timers.now))
            self.flush()
        self.timers.run(until)
        self.flush()

    def restart(self) -> None:
        """Crash: what is not committed is lost, and the store is opened again."""
        self.faulty.held.clear()
        self.faulty.is_holding = False
        self.open(self.timers.now)

    def stored(self, kind: Kind) -> int:
        """How many records of a kind the store has."""
        return len(list(self.store.scan(kind)))

    def check(self, stream: Stream) -> None:
        """What holds of a stream that is at rest, whatever has happened to it."""
        self.flush()
        batches = list(stream.read_batches())
        expected = stream.first
        for batch in batches:
            assert batch.first == expected
            assert list(batch.sequences) == sorted(set(batch.sequences))
            assert all(batch.first <= each <= batch.last for each in batch.sequences)
            assert len(batch.sequences) == len(batch.payloads)
            expected = batch.last + 1
        assert expected == stream.last + 1
        statistics = stream.statistics()
        assert statistics.records == sum(len(batch.payloads) for batch in batches)
        assert statistics.bytes == sum(len(value) for _, value in stream.stored(1, stream.last))
        times = [record.time_s for batch in batches for record in batch.records()]
        assert times == sorted(times)


class RocksHouse(House):
    """The same over a store on disk."""

    def __init__(self, directory: Path) -> None:
        self.core = Core()
        self.directory = directory
        super().__init__(open_rocks(directory, self.core))

    def flush(self) -> None:
        """Commit what was recorded and wait until it is durable."""
        committed: list[bool] = []
        self.commits.after_commit(lambda: committed.append(True))
        self.commits.flush()
        self.core.wait(lambda: committed)
        while self.commits.is_open:  # effects have recorded more
            committed.clear()
            self.commits.after_commit(lambda: committed.append(True))
            self.commits.flush()
            self.core.wait(lambda: committed)

    def restart(self) -> None:
        """Close the store, without what is not committed, and open it again."""
        self.close()
        self.store = open_rocks(self.directory, self.core)
        self.open(self.timers.now)

    def close(self) -> None:
        """Close the store."""
        self.core.close()
        self.core.run()


class Reader:
    """Somebody who follows a stream, or shares it, and takes all there is whenever woken."""

    def __init__(self, count_max: int = 1000) -> None:
        self.records: list[Record] = []
        self.wakes = 0
        self.source: Follower | Member | None = None
        self._count_max = count_max

    def follow(self, stream: Stream, after: int = 0) -> "Reader":
        """Begin."""
        self.source = stream.follow(after, self.woken)
        self.pull()
        return self

    def join(self, stream: Stream, group: str = "g") -> "Reader":
        """Become a member."""
        self.source = stream.group(group).join(self.woken)
        self.pull()
        return self

    def woken(self) -> None:
        """There is something."""
        self.wakes += 1
        self.pull()

    def pull(self) -> None:
        """Take until there is nothing."""
        assert self.source is not None
        while records := self.source.take(self._count_max):
            self.records += records

    @property
    def sequences(self) -> list[int]:
        """What came, by sequence."""
        return [record.sequence for record in self.records]


def sequences(records: list[Record]) -> list[int]:
    """Of these records."""
    return [record.sequence for record in records]


def payloads(records: list[Record]) -> list[bytes]:
    """Of these records."""
    return [record.payload for record in records]
