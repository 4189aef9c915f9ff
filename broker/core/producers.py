"""What is remembered of those who publish with confirmation, so that sending again doubles nothing.

A *producer* is a name that a program chose for itself, at random, and keeps while it runs. It
numbers its publishes, upwards, over all its connections. After a lost connection it sends again, in
order, what was not confirmed. So it is enough to remember the highest number that was taken, and
which below it were refused: those are judged anew.

That is recorded in the same commit as what was published durably: a restart of the node doubles
nothing either.
"""

from collections.abc import Iterator
from functools import partial
from typing import Final

import msgpack

from ganglion import GanglionError
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.timers import Timer, Timers
from ganglion.broker.store import Kind, Store

__all__ = ["Producer", "Producers", "TooManyProducers"]

_PRODUCERS_MAX = 100_000  # some 500 bytes each
_REFUSED_MAX = 10_000  # of one producer: more than it has without an answer when a connection ends
_KEPT_S: Final = 3600.0  # after its last connection


class TooManyProducers(GanglionError):
    """As many producers are remembered as there may be."""


class Producer:
    """What is remembered of one producer; `Producers.open` makes it."""

    __slots__ = ("_commits", "_noted_in", "_refused", "_time_s", "key", "last", "owner", "timer")

    def __init__(self, commits: Commits, key: bytes, time_s: float) -> None:
        self.key = key
        """Under which it is recorded."""
        self.last = 0
        """The highest number that was judged."""
        self.owner: object | None = None
        """The connection that it has now."""
        self.timer: Timer | None = None
        """When it is forgotten."""
        self._commits = commits
        self._time_s = time_s  # Unix time of its last connection
        self._refused: dict[int, int] = {}
        self._noted_in = 0

    def was_taken(self, number: int) -> bool:
        """Whether this was taken before, and must not be again."""
        return number <= self.last and number not in self._refused

    def part_taken(self, number: int) -> int:
        """How many messages of a batch that was refused half way were taken."""
        return self._refused.get(number, 0)

    def taken(self, number: int, *, durable: bool) -> None:
        """It is taken now; what it led to is in the open batch if it is `durable`."""
        self._refused.pop(number, None)
        self.last = max(self.last, number)
        if durable and self._noted_in != self._commits.number:
            self._noted_in = self._commits.number
            self._commits.before_flush(self._write)

    def refused(self, number: int, part_taken: int = 0, *, durable: bool = False) -> None:
        """It was refused; of a batch the first so many messages were taken."""
        self.taken(number, durable=durable)
        self._refused[number] = part_taken
        if len(self._refused) > _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]

    def load(self, last: int, refused: list[tuple[int, int]]) -> None:
        """Take over what was recorded."""
        self.last = last
        self._refused = dict(refused)

    def seen(self, time_s: float) -> None:
        """It is or was connected at this Unix time."""
        self._time_s = time_s

    def forget(self) -> None:
        """Record that it is forgotten."""
        self._commits.delete(Kind.PRODUCER, self.key)

    def _write(self) -> None:
        value = [self.last, list(self._refused.items()), self._time_s]
        self._commits.put(Kind.PRODUCER, self.key, msgpack.packb(value))


class Producers:
    """All producers that a node remembers, by user and name."""

    def __init__(
        self, store: Store, commits: Commits, timers: Timers, wall_clock_offset_s: float
    ) -> None:
        """Read what was recorded."""
        self._commits = commits
        self._timers = timers
        self._offset_s = wall_clock_offset_s
        self._producers: dict[bytes, Producer] = {}
        for key, value in store.scan(Kind.PRODUCER):
            last, refused, time_s = msgpack.unpackb(value)
            producer = self._producers[key] = Producer(commits, key, time_s)
            producer.load(last, refused)
            self._forget_at(producer, time_s - wall_clock_offset_s + _KEPT_S)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._producers)

    def __iter__(self) -> Iterator[Producer]:
        return iter(list(self._producers.values()))

    def open(self, user: str | None, name: str, owner: object) -> Producer:
        """The producer of this user, which belongs to `owner` from now on.

        Raises `TooManyProducers`.
        """
        key = msgpack.packb([user, name])
        producer = self._producers.get(key)
        if producer is None:
            if len(self._producers) >= _PRODUCERS_MAX:
                raise TooManyProducers(f"there are {_PRODUCERS_MAX} producers already")
            producer = self._producers[key] = Producer(self._commits, key, self._now_s())
        if producer.timer is not None:
            producer.timer.cancel()
            producer.timer = None
        producer.seen(self._now_s())
        producer.owner = owner
        return producer

    def leave(self, producer: Producer, owner: object) -> None:
        """The connection has ended; harmless when another one has the producer by now."""
        if producer.owner is not owner:
            return
        producer.owner = None
        producer.seen(self._now_s())
        self._forget_at(producer, self._timers.now + _KEPT_S)

    def _forget_at(self, producer: Producer, when: float) -> None:
        producer.timer = self._timers.at(when, partial(self._forget, producer))

    def _forget(self, producer: Producer, _now: float) -> None:
        del self._producers[producer.key]
        producer.forget()

    def _now_s(self) -> float:
        return self._timers.now + self._offset_s
