"""Queues without a node: a store that can crash, a virtual clock, consumers with a memory.

`World` is what a node does around its queues: it routes, commits at the end of a tick, runs timers.
`World.restart` makes all of it anew from what the store has committed.
"""

from copy import deepcopy
from random import Random
from typing import Any

from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.message import Message, MessageProperties
from ganglion.broker.core.queue import Consumer, Queue
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.queues import Queues
from ganglion.broker.core.router import Router
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Batch, Kind, Store
from ganglion.broker.store.memory import MemoryStore

__all__ = ["Disk", "Refused", "Taker", "World", "text"]

START_S = 1000.0
UNIX_TIME_OFFSET_S = 1_700_000_000.0


class Refused(Exception):
    """A queue had no room for what was published."""


class Disk(MemoryStore):
    """A store whose commits wait for `release` while it is `slow`, and that can crash."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.held: list[tuple[Batch, Any]] = []
        self.operations: list[int] = []
        """How many operations each commit had."""

    def commit(self, batch: Batch, done: Any) -> None:
        """Make it durable, now or on `release`."""
        self.operations.append(len(batch.operations))  # type: ignore[attr-defined] # of memory
        if self.slow:
            self.held.append((batch, done))
        else:
            super().commit(batch, done)

    def release(self) -> None:
        """Complete what is held, and go on without holding."""
        self.slow = False
        while self.held:
            batch, done = self.held.pop(0)
            super().commit(batch, done)

    def after_crash(self) -> "Disk":
        """What another process finds: all that is durable."""
        other = Disk()
        other._records = deepcopy(self._records)
        return other

    def count(self, kind: Kind) -> int:
        """How many records of a kind are durable."""
        return len(list(self.scan(kind)))

    def lose_record(self, kind: Kind, key: bytes) -> None:
        """Let the record with this key be damaged."""
        self._records[kind].delete(key)

    def lose(self, kind: Kind, which: int = 0) -> None:
        """Let a record be damaged: it is not given out any more."""
        key = [key for key, _ in self.scan(kind)][which]
        self._records[kind].delete(key)


class Taker:
    """A consumer's end: it keeps what it gets and settles what it is told to."""

    def __init__(self, queue: Queue, credit: int = 10, *, is_canary: bool = False) -> None:
        self.credit = credit
        self.got: list[tuple[int, Message, int]] = []
        """Lease, message, and how often that was delivered in vain, of all deliveries."""
        self.unsettled: dict[int, Message] = {}
        self.is_ended = False
        self.refuses = False
        self._seen = 0
        self.consumer: Consumer = queue.consume(self, is_canary=is_canary)
        self.consumer.pull()

    def room(self) -> int:
        """As much as it has not settled."""
        return self.credit - len(self.unsettled)

    def deliver(self, leases: range, messages: list[Message], attempts: dict[int, int]) -> None:
        """Keep them, or give them back at once."""
        for lease, message in zip(leases, messages, strict=True):
            self.got.append((lease, message, attempts.get(lease, 0)))
            self.unsettled[lease] = message
        if self.refuses:
            for lease in leases:
                self.nack(lease)

    def ended(self) -> None:
        """The queue is no more."""
        self.is_ended = True

    def new(self) -> list[str]:
        """The payloads that came since the last call."""
        found = [text(message) for _, message, _ in self.got[self._seen :]]
        self._seen = len(self.got)
        return found

    def lease(self, payload: str) -> int:
        """The lease of the unsettled message with this payload."""
        return next(each for each, message in self.unsettled.items() if text(message) == payload)

    def acknowledge(self, *payloads: str) -> None:
        """Settle these, and ask for more."""
        for payload in payloads:
            lease = self.lease(payload)
            del self.unsettled[lease]
            assert self.consumer.acknowledge(lease)
        self.consumer.pull()

    def nack(self, what: str | int, delay_s: float | None = None) -> None:
        """Give one back."""
        lease = self.lease(what) if isinstance(what, str) else what
        self.unsettled.pop(lease)
        assert self.consumer.nack(lease, delay_s)

    def reject(self, payload: str, reason: str = "rejected") -> None:
        """Have one buried."""
        lease = self.lease(payload)
        del self.unsettled[lease]
        assert self.consumer.reject(lease, reason)

    def leave(self) -> None:
        """Go away."""
        self.unsettled = {}
        self.consumer.close()


class World:
    """The queues of a node that is not there."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = Disk() if store is None else store
        self.now = START_S
        self._open()

    def _open(self) -> None:
        self.timers = Timers(self.now)
        self.statistics = Statistics()
        self.commits = Commits(self.store, self.timers, self.statistics)
        self.shelf = Shelf(self.store, self.commits, self.timers, UNIX_TIME_OFFSET_S)
        self.router = Router(_may_receive)
        self.queues = Queues(
            self.shelf, self.statistics, self.router.bind, self.router.unbind, Random(7)
        )

    @property
    def disk(self) -> Disk:
        """The store, where it is one of memory."""
        assert isinstance(self.store, Disk)
        return self.store

    def declare(self, name: str = "q", **options: Any) -> Queue:
        """Make a queue and let that be durable."""
        queue = self.queues.declare(QueueDefinition(name=name, **options))
        self.tick()
        return queue

    def queue(self, name: str = "q") -> Queue:
        """The queue of this name, which must be there."""
        return self.queues.get(name)

    def publish(
        self,
        *payloads: str,
        topic: str = "$queue/q",
        qos: int = 1,
        expires_s: float | None = None,
        **about: Any,
    ) -> None:
        """Publish messages as a node does; they are durable after `tick`. Raises `Refused`."""
        for payload in payloads:
            properties = MessageProperties(**about) if about else None
            expires_at = None if expires_s is None else self.now + expires_s
            message = Message(topic, payload.encode(), qos, False, properties, expires_at)
            route = self.router.route(topic)
            for bound in route.bounded:
                refusal = bound.refusal(message)
                if refusal is not None:
                    raise Refused(refusal.text)
            if route.durable > 1:
                self.shelf.payloads.share(message)
            for target in route.targets:
                target.receiver.deliver(message, target.terms[qos])

    def send(self, *payloads: str, **options: Any) -> None:
        """Publish, and let it be durable."""
        self.publish(*payloads, **options)
        self.tick()

    def tick(self) -> None:
        """The end of a tick."""
        self.commits.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick after every timer."""
        end = self.now + seconds
        while (deadline := self.timers.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.timers.run(self.now)
            self.tick()
        self.now = end
        self.timers.run(end)
        self.tick()

    def restart(self, away_s: float = 0.0) -> None:
        """Begin anew from what is durable, after so many seconds."""
        self.now += away_s
        if isinstance(self.store, Disk):
            self.store = self.store.after_crash()
        self._open()

    def contents(self, name: str = "q", priority: int = 0) -> list[str]:
        """What a look at the queue shows."""
        return [text(each.message) for each in self.queue(name).browse(0, priority)]


def _may_receive(_session: object, _topic: str) -> bool:
    return True


def text(message: Message) -> str:
    """The payload of a message."""
    return message.payload.decode()
