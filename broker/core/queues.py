"""The queues of a node: which there are, and what is bound to them.

A definition is recorded under the queue's name, with the identifiers under which the store has its
messages. What a queue does with them is in `queue`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import msgpack

from ganglion import GanglionError
from ganglion.broker.core.backlog import Backlog, Shelf
from ganglion.broker.core.definition_records import DefinitionRecords
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.queue import QUEUE_PREFIX, Queue
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.router import Bound
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.store import Kind

__all__ = ["QueueMissing", "Queues"]

_QUEUES_MAX = 100_000  # each costs some KB of memory and a place in the router
_DEAD_LETTER_CHAIN_MAX = 8


class QueueMissing(GanglionError):
    """There is no queue of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no queue {name!r}")


class Queues:
    """All queues of a node, by name."""

    def __init__(
        self,
        shelf: Shelf,
        statistics: Statistics,
        bind: Callable[[Bound, str], None],
        unbind: Callable[[Bound, str], None],
        random: Random | None = None,
    ) -> None:
        """Make the queues that are recorded. `bind` has the router lead a filter to a receiver."""
        self._shelf = shelf
        self._statistics = statistics
        self._bind = bind
        self._unbind = unbind
        self._random = Random() if random is None else random  # noqa: S311 - it spreads delays
        self._queues: dict[str, Queue] = {}
        self._records = DefinitionRecords(shelf.commits, Kind.QUEUE)
        for name, value in self._records.load(dict(shelf.store.scan(Kind.QUEUE))).items():
            record, lanes, delays_id, is_paused = msgpack.unpackb(value)
            definition = QueueDefinition.from_record(record)
            shelf.reserve(delays_id)
            queue = self._open(definition, [shelf.open(lane) for lane in lanes], delays_id)
            queue.is_paused = is_paused
            assert name == queue.name
        for queue in self:
            queue.start()

    def __iter__(self) -> Iterator[Queue]:
        return iter(list(self._queues.values()))

    def __len__(self) -> int:
        return len(self._queues)

    def identifiers(self) -> set[int]:
        """Under which the store has what is in the queues."""
        found: set[int] = set()
        for queue in self._queues.values():
            lanes, delays_id = queue.identifiers()
            found.update(lanes, (delays_id,))
        return found

    def find(self, name: str) -> Queue | None:
        """The queue of this name, if there is one."""
        return self._queues.get(name)

    def get(self, name: str) -> Queue:
        """The queue of this name. Raises `QueueMissing`."""
        queue = self._queues.get(name)
        if queue is None:
            raise QueueMissing(name)
        return queue

    def declare(self, definition: QueueDefinition) -> Queue:
        """The queue, made if it is not there, and as the definition says from now on.

        Raises `InvalidDefinition`, also where an existing queue cannot become like this.
        """
        self._check_chain(definition)
        queue = self._queues.get(definition.name)
        if queue is None:
            new = 1 + bool(definition.dead_letter and definition.dead_letter not in self._queues)
            if len(self._queues) + new > _QUEUES_MAX:
                raise InvalidDefinition(f"there are {_QUEUES_MAX} queues at most")
            lanes = [self._shelf.create() for _ in range(definition.priorities)]
            queue = self._open(definition, lanes, self._shelf.create().identifier)
            for lane in lanes:
                lane.record()
            self._record(queue)
        elif queue.definition != definition:
            if queue.definition.priorities != definition.priorities:
                raise InvalidDefinition(
                    f"queue {queue.name} has {queue.definition.priorities} priorities; that can "
                    "only be changed by deleting it"
                )
            for topic_filter in queue.definition.bindings:
                if topic_filter not in definition.bindings:
                    self._unbind(queue, topic_filter)
            queue.configure(definition)
            self._bind_all(queue, definition)  # routes say whether to ask the queue for room
            self._record(queue)
            queue.start()
        if definition.dead_letter and definition.dead_letter not in self._queues:
            self.declare(QueueDefinition(name=definition.dead_letter))
        return queue

    def bind(self, queue: Queue, topic_filter: str) -> None:
        """Let what is published there wait in the queue too; harmless if it does."""
        if topic_filter not in queue.definition.bindings:
            bindings = (*queue.definition.bindings, topic_filter)
            self.declare(replace(queue.definition, bindings=bindings))

    def unbind(self, queue: Queue, topic_filter: str) -> None:
        """Take a binding back; harmless if there is none."""
        bindings = tuple(each for each in queue.definition.bindings if each != topic_filter)
        self.declare(replace(queue.definition, bindings=bindings))

    def delete(self, name: str) -> None:
        """Delete the queue and everything in it. Raises `QueueMissing`."""
        queue = self.get(name)
        del self._queues[name]
        for topic_filter in (*queue.definition.bindings, QUEUE_PREFIX + name):
            self._unbind(queue, topic_filter)
        queue.discard()
        self._records.delete(name)

    def set_paused(self, name: str, is_paused: bool) -> None:
        """Stop or resume giving out what is in the queue, also over a restart."""
        queue = self.get(name)
        if is_paused:
            queue.pause()
        else:
            queue.resume()
        self._record(queue)

    def _open(self, definition: QueueDefinition, lanes: list[Backlog], delays_id: int) -> Queue:
        queue = Queue(
            definition,
            self._shelf,
            lanes,
            delays_id,
            self._statistics,
            self.find,
            self._find_or_make,
            self._random,
        )
        self._queues[definition.name] = queue
        self._bind_all(queue, definition)
        return queue

    def _find_or_make(self, name: str) -> Queue | None:
        """The queue for dead letters, which somebody may have deleted; None: it cannot be made."""
        try:
            return self._queues.get(name) or self.declare(QueueDefinition(name=name))
        except InvalidDefinition:
            return None

    def _bind_all(self, queue: Queue, definition: QueueDefinition) -> None:
        for topic_filter in (*definition.bindings, QUEUE_PREFIX + definition.name):
            self._bind(queue, topic_filter)

    def _record(self, queue: Queue) -> None:
        lanes, delays_id = queue.identifiers()
        value = msgpack.packb([queue.definition.to_record(), lanes, delays_id, queue.is_paused])
        self._records.put(queue.name, value)

    def _check_chain(self, definition: QueueDefinition) -> None:
        """Raise `InvalidDefinition` where dead letters would come back."""
        chain = [definition.name]
        name = definition.dead_letter
        while name:
            chain.append(name)
            if name == definition.name or len(chain) > _DEAD_LETTER_CHAIN_MAX:
                raise InvalidDefinition(
                    f"dead letters would go in a circle or too far: {' → '.join(chain)}"
                )
            following = self._queues.get(name)
            name = following.definition.dead_letter if following is not None else ""
