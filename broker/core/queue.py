"""Durable queues: what is sent to one waits, on disk, until one of its consumers has settled it.

A queue is a receiver of the router: topic filters are bound to it, and ``$queue/{name}`` leads to
it alone. Its messages wait in a `Backlog` for each priority; those that are not due yet wait in
`Delays`. `Queue.dispatch` leases what is ready to its consumers, as much as each has room for. A
lease ends in one of these ways:

=============  =============================================================================
acknowledged   the message is gone
returned       nack, a lease that ran out, a consumer that left: it is ready again, after a delay
               that grows with every attempt (not when a consumer left: that says nothing about
               the message); with ``max_deliveries`` it is buried in the end
rejected       it is buried: it goes to the dead letter queue; without one it is gone, and counted
=============  =============================================================================

How often a message was delivered in vain is recorded when it comes back, not when it goes out: a
delivery costs no write. After a restart nothing is leased.

Times are monotonic while the node runs; across a restart delays and ages go by the wall clock.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import repeat
from random import Random
from struct import Struct
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgpack

from ganglion.broker.core.backlog import Backlog, Shelf
from ganglion.broker.core.deduplication import Deduplication
from ganglion.broker.core.delays import Delays
from ganglion.broker.core.message import PLAIN_TERMS, Delivery, Message, MessageProperties, Terms
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timer
from ganglion.broker.store import Kind

if TYPE_CHECKING:
    from ganglion.broker.core.router import Outlet

__all__ = [
    "QUEUE_PREFIX",
    "Browsed",
    "Consumer",
    "ConsumerSink",
    "Queue",
    "QueueStatistics",
]

QUEUE_PREFIX: Final = "$queue/"
"""A publication to this and the name of a queue goes to that queue alone."""

ORIGIN_QUEUE: Final = "x-dead-letter-queue"
"""User properties of a message in a dead letter queue: where it was, why it is here, …"""
ORIGIN_REASON: Final = "x-dead-letter-reason"
ORIGIN_COUNT: Final = "x-dead-letter-count"
_ORIGIN = (ORIGIN_QUEUE, ORIGIN_REASON, ORIGIN_COUNT)

_SHARE = 64  # messages that one consumer gets before the next one's turn
_SET_ASIDE_MAX = 2048  # messages in memory that wait for others with their key

_ATTEMPTS_KEY = Struct(">QQ")


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """How a queue stands, and what has happened since the start of the node."""

    messages: int
    """All that is in it: ready, leased and delayed."""
    bytes: int
    leased: int
    """With consumers, not settled."""
    delayed: int
    """Not due yet."""
    consumers: int
    is_paused: bool
    oldest_s: float | None
    """How long the oldest message has been there, in seconds; None: it is empty."""
    published: int
    delivered: int
    acknowledged: int
    returned: int
    buried: int
    """Rejected, expired, overflowing, or delivered in vain too often."""
    duplicates: int
    refused: int
    """Messages that it had no room for."""


@dataclass(frozen=True, slots=True)
class Browsed:
    """One message of a queue, as a look at it shows."""

    number: int
    message: Message
    time_s: float
    """When it came, in Unix seconds."""
    attempts: int
    """How often it was delivered in vain."""


class ConsumerSink(Protocol):
    """What takes messages for a consumer."""

    def room(self) -> int:
        """How many messages it takes now."""
        ...

    def deliver(self, leases: list[tuple[int, Message]], attempts: dict[int, int]) -> None:
        """Take messages, each under a lease, no more than there was room for.

        `attempts` says of some of the leases how often their message was delivered in vain. What
        it cannot take it gives back.
        """
        ...

    def ended(self) -> None:
        """The queue is no more: nothing comes from it, and nothing that came can be settled."""
        ...


class Consumer:
    """One of those that share the messages of a queue; `Queue.consume` makes it."""

    __slots__ = ("has_extended", "leases", "queue", "sink")

    def __init__(self, queue: "Queue", sink: ConsumerSink) -> None:
        self.queue = queue
        self.sink = sink
        self.leases: dict[int, tuple[Delivery, float]] = {}
        """What it has and when each lease runs out (monotonic), in order of delivery."""
        self.has_extended = False
        """Whether a lease was extended: they do not run out in order then."""

    def pull(self) -> None:
        """It has room: give it what is ready."""
        self.queue.serve(self)

    def acknowledge(self, lease: int) -> bool:
        """It is done with the message; False: the lease had run out (or never was)."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        self.queue.settle(found[0])
        return True

    def acknowledge_run(self, leases: list[int]) -> None:
        """It is done with all of these messages, of which some leases may have run out."""
        pop = self.leases.pop
        found = [pop(lease, None) for lease in leases]
        self.queue.settle_run([each[0] for each in found if each is not None])

    def nack(self, lease: int, delay_s: float | None = None) -> bool:
        """It could not do it: return it, after the delay or that of the backoff if None."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        self.queue.give_back(found[0], delay_s, "delivered too often")
        return True

    def reject(self, lease: int, reason: str = "rejected") -> bool:
        """Nobody will be able to do it: bury the message, for this reason."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        self.queue.bury(found[0], reason)
        return True

    def extend(self, lease: int, lease_s: float) -> bool:
        """It needs the message for so many seconds from now on."""
        found = self.leases.get(lease)
        if found is None:
            return False
        self.has_extended = True
        self.leases[lease] = (found[0], self.queue.shelf.timers.now + lease_s)
        self.queue.watch_leases()
        return True

    def close(self) -> None:
        """It leaves: what it has not settled is ready again at once, in order."""
        self.queue.remove(self)


class Queue:
    """One queue; `Queues.declare` makes it."""

    def __init__(
        self,
        definition: QueueDefinition,
        shelf: Shelf,
        lanes: list[Backlog],
        delays_id: int,
        statistics: Statistics,
        find: Callable[[str], "Queue | None"],
        random: Random,
    ) -> None:
        """`find` gives another queue by its name, for dead letters and what is redriven."""
        self.definition = definition
        self.shelf = shelf
        self.consumers: list[Consumer] = []
        self.is_paused = False
        self._statistics = statistics
        self._find = find
        self._random = random
        self._lanes = lanes  # by priority, the lowest first
        for lane in lanes:
            lane.on_ready = self._ready
        self._attempts: dict[tuple[int, int], int] = {}
        self._rests: dict[tuple[int, int], float] = {}
        self._read_attempts()
        self._delays = Delays(shelf, delays_id, self._due)
        self._deduplication: Deduplication | None = None
        # Given back and ready again, before everything of their priority that is in a lane.
        self._returned: list[tuple[int, int, Delivery]] = []
        self._locked: set[str] = set()  # keys of which a message is leased or rests
        self._aside: dict[str, deque[Delivery]] = {}  # taken from their lane, and their key locked
        self._aside_count = 0
        self._resting: dict[Timer, Delivery] = {}
        self._next_lease = 1
        self._turn = 0
        self._is_dispatching = False
        self._lease_timer: Timer | None = None
        self._lease_timer_at = 0.0
        self._published = self._delivered = self._acknowledged = self._returns = 0
        self._buried = self._duplicates = self._refused = 0
        self.configure(definition)

    def configure(self, definition: QueueDefinition) -> None:
        """The options have changed (or are set for the first time)."""
        self.definition = definition
        has_limit = definition.max_messages > 0 or definition.max_bytes > 0
        self.may_refuse = has_limit and definition.overflow == "reject"
        """Whether a publisher has to ask `refusal` first."""
        self._is_plain = (
            not has_limit and definition.priorities == 1 and not definition.deduplication_s
        )
        if definition.deduplication_s and self._deduplication is None:
            shelf = self.shelf
            self._deduplication = Deduplication(
                shelf.store,
                shelf.commits,
                shelf.timers,
                shelf.wall_clock_offset_s,
                self._delays.identifier,
            )

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    def statistics(self) -> QueueStatistics:
        """How it stands."""
        times = [time_s for lane in self._lanes if (time_s := lane.oldest()) is not None]
        now_s = self.shelf.timers.now + self.shelf.wall_clock_offset_s
        return QueueStatistics(
            messages=self.count,
            bytes=self.size_bytes,
            leased=sum(len(consumer.leases) for consumer in self.consumers),
            delayed=self._delays.count + len(self._resting),
            consumers=len(self.consumers),
            is_paused=self.is_paused,
            oldest_s=max(0.0, now_s - min(times)) if times else None,
            published=self._published,
            delivered=self._delivered,
            acknowledged=self._acknowledged,
            returned=self._returns,
            buried=self._buried,
            duplicates=self._duplicates,
            refused=self._refused,
        )

    @property
    def count(self) -> int:
        """How many messages are in it, leased and delayed ones included."""
        return sum([lane.count for lane in self._lanes]) + self._delays.count

    @property
    def size_bytes(self) -> int:
        """What their publishers chose the size of."""
        return sum([lane.size_bytes for lane in self._lanes]) + self._delays.size_bytes

    def identifiers(self) -> tuple[list[int], int]:
        """Under which the store has its lanes, the lowest priority first, and its delays."""
        return [lane.identifier for lane in self._lanes], self._delays.identifier

    # -- as a receiver of the router -------------------------------------------------------------

    def deliver(self, message: Message, _terms: Terms) -> None:
        """Take the message; it is ready after the commit. One that there is no room for is dropped.

        Ask `refusal` first where the publisher can be told.
        """
        message.durable = True
        if self._is_plain and message.properties is None:
            self._published += 1
            self._lanes[0].append(message, _PLAIN)
        else:
            self._take_in(message)

    def deliver_run(self, topic: str, payloads: list[bytes], qos: int) -> None:
        """Take many messages of one size without properties."""
        messages = [Message(topic, payload, qos) for payload in payloads]
        if self._is_plain:
            self._published += len(messages)
            self._lanes[0].append_run(messages, _PLAIN)
        else:
            for message in messages:
                self._take_in(message)

    @property
    def kind(self) -> Literal["queue"]:
        """What it is."""
        return "queue"

    def outlet(self, _form: int) -> "Outlet | None":
        """It takes nothing as it is."""
        return None

    def is_durable(self) -> bool:
        """What it is given waits on disk."""
        return True

    def refusal(self, message: Message) -> str | None:
        """Why the queue would not take this message; None: it would."""
        about = message.properties
        if (
            self._deduplication is not None
            and about is not None
            and about.message_id is not None
            and self._deduplication.has(about.message_id, self.definition.deduplication_s)
        ):
            return None  # it is there already
        return self._overflows(message)

    def _overflows(self, message: Message) -> str | None:
        definition = self.definition
        if definition.max_messages and self.count >= definition.max_messages:
            return f"queue {self.name} is full: max_messages = {definition.max_messages}"
        if (
            definition.max_bytes
            and self.count
            and self.size_bytes + message.size_bytes() > definition.max_bytes
        ):
            return f"queue {self.name} is full: max_bytes = {definition.max_bytes}"
        return None

    def _take_in(self, message: Message) -> None:
        definition, about = self.definition, message.properties
        if (
            self._deduplication is not None
            and about is not None
            and about.message_id is not None
            and not self._deduplication.is_new(about.message_id, definition.deduplication_s)
        ):
            self._duplicates += 1
            self._statistics.drop("duplicate")
            return
        if self._overflows(message):
            if definition.overflow == "reject":
                self._refused += 1
                self._statistics.drop("queue is full")
                return
            self._make_room(message)
        self._published += 1
        if about is not None and about.delay_s:
            self._delays.add(message, self.shelf.timers.now + about.delay_s, 0)
        else:
            self._lane_of(message).append(message, _PLAIN)

    def _lane_of(self, message: Message) -> Backlog:
        lanes, about = self._lanes, message.properties
        if about is None or not about.priority:
            return lanes[0]
        return lanes[min(about.priority, len(lanes) - 1)]

    def _make_room(self, message: Message | None = None) -> None:
        """Drop or bury the oldest ready messages until this one fits, or until all fit."""
        definition = self.definition
        while True:
            if message is not None:
                if not self._overflows(message):
                    return
            elif not (
                (definition.max_messages and self.count > definition.max_messages)
                or (definition.max_bytes and self.size_bytes > definition.max_bytes)
            ):
                return
            oldest = self._next_lowest()
            if oldest is None:
                return  # the rest is with consumers, or on its way to the disk: see `_ready`
            if definition.overflow == "dead-letter":
                self.bury(oldest, "max length")
            else:
                self._forget(oldest)
                self._buried += 1
                self._statistics.drop("queue is full: the oldest goes")

    def _next_lowest(self) -> Delivery | None:
        """The oldest ready message of the lowest priority."""
        for priority, lane in enumerate(self._lanes):
            if self._returned and any(-each[0] == priority for each in self._returned):
                lowest = min(each for each in self._returned if -each[0] == priority)
                self._returned.remove(lowest)
                self._returned.sort()
                return lowest[2]
            delivery = lane.take()
            if delivery is not None:
                return delivery
        return None

    # -- out -------------------------------------------------------------------------------------

    def consume(self, sink: ConsumerSink) -> Consumer:
        """A new consumer, which gets its share from now on."""
        consumer = Consumer(self, sink)
        self.consumers.append(consumer)
        return consumer

    def remove(self, consumer: Consumer) -> None:
        """The consumer has left. Harmless the second time."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        leases, consumer.leases = consumer.leases, {}
        for delivery, _ in leases.values():
            self.give_back(delivery, 0.0, "delivered too often", dispatch=False)
        self.dispatch()

    def _ready(self) -> None:
        """There is something in a lane that was not there before."""
        if not self._is_plain and not self.may_refuse:
            self._make_room()
        if self.consumers:
            self.dispatch()

    def dispatch(self) -> None:
        """Give what is ready to the consumers, in turn, as far as they have room."""
        if self._is_dispatching or self.is_paused or not self.consumers:
            return
        if self.definition.single_active_consumer or len(self.consumers) == 1:
            self.serve(self.consumers[0])
            return
        self._is_dispatching = True
        try:
            idle = 0
            while idle < len(self.consumers):
                self._turn = (self._turn + 1) % len(self.consumers)
                consumer = self.consumers[self._turn]
                room = min(consumer.sink.room(), _SHARE)
                if room <= 0:
                    idle += 1
                    continue
                idle = 0
                if not self._give(consumer, room):
                    return
        finally:
            self._is_dispatching = False

    def serve(self, consumer: Consumer) -> None:
        """Give this consumer what is ready, as far as it has room."""
        if self.is_paused:
            return
        if self.definition.single_active_consumer and self.consumers[0] is not consumer:
            return
        while (room := consumer.sink.room()) > 0 and self._give(consumer, room):
            pass

    def _give(self, consumer: Consumer, room: int) -> bool:
        """Lease up to so many messages; whether there may be more."""
        now = self.shelf.timers.now
        deadline = now + self.definition.lease_s
        deliveries = self._next_ones(now, room)
        if not deliveries:
            return False
        leases = range(self._next_lease, self._next_lease + len(deliveries))
        self._next_lease = leases.stop
        consumer.leases.update(zip(leases, zip(deliveries, repeat(deadline)), strict=False))
        given = list(zip(leases, [delivery[0] for delivery in deliveries], strict=True))
        attempts: dict[int, int] = {}
        if self._attempts:
            for lease, delivery in zip(leases, deliveries, strict=True):
                if count := self._attempts.get(_place(delivery)):
                    attempts[lease] = count
        self._delivered += len(given)
        if self._lease_timer is None:
            self._watch_until(deadline)
        consumer.sink.deliver(given, attempts)
        return len(given) == room

    def _next_ones(self, now: float, count: int) -> list[Delivery]:
        """Take up to so many messages that may be given out now."""
        if (
            self._is_plain
            and not self._returned
            and not self._rests
            and not self.definition.ttl_s
            and not self.definition.ordered_by_key
        ):
            taken = self._lanes[0].take_many(count)
            if all(delivery[0].expires_at is None for delivery in taken):
                return taken
            self._lanes[0].put_back(taken)
        found: list[Delivery] = []
        while len(found) < count and (delivery := self._next(now)) is not None:
            found.append(delivery)
        return found

    def _next(self, now: float) -> Delivery | None:
        """Take the next message that may be given out now."""
        definition = self.definition
        while True:
            delivery = self._take()
            if delivery is None:
                return None
            message, _, _, chunk = delivery
            assert chunk is not None
            if (message.expires_at is not None and message.expires_at <= now) or (
                definition.ttl_s
                and chunk.time_s + definition.ttl_s <= now + self.shelf.wall_clock_offset_s
            ):
                self.bury(delivery, "expired")
                continue
            if self._rests and self._still_rests(delivery, now):
                continue
            about = message.properties
            if definition.ordered_by_key and about is not None and about.key is not None:
                if about.key in self._locked:
                    self._aside.setdefault(about.key, deque()).append(delivery)
                    self._aside_count += 1
                    continue
                self._locked.add(about.key)
            return delivery

    def _take(self) -> Delivery | None:
        returned = self._returned
        if not returned:
            if self._aside_count >= _SET_ASIDE_MAX:
                return None  # so many wait for one key: the others have to wait too
            for lane in reversed(self._lanes):
                delivery = lane.take()
                if delivery is not None:
                    return delivery
            return None
        priority = -returned[0][0]
        if self._aside_count < _SET_ASIDE_MAX:
            for lane in reversed(self._lanes[priority + 1 :]):
                delivery = lane.take()
                if delivery is not None:
                    return delivery
        return heappop(returned)[2]

    # -- the ends of a lease ---------------------------------------------------------------------

    def settle(self, delivery: Delivery) -> None:
        """A consumer is done with it."""
        self._acknowledged += 1
        self._forget(delivery)
        if self._locked:
            self._unlock(delivery)

    def settle_run(self, deliveries: list[Delivery]) -> None:
        """A consumer is done with all of these."""
        if self._attempts or self._locked or len(self._lanes) > 1:
            for delivery in deliveries:
                self.settle(delivery)
        else:
            self._acknowledged += len(deliveries)
            self._lanes[0].settle_run(deliveries)

    def _forget(self, delivery: Delivery) -> None:
        """It is in the queue no more."""
        chunk = delivery[3]
        assert chunk is not None
        chunk.backlog.settle(delivery)
        if self._attempts and (place := _place(delivery)) in self._attempts:
            del self._attempts[place]
            self.shelf.commits.delete(Kind.RETURNED, _ATTEMPTS_KEY.pack(*place))

    def give_back(
        self, delivery: Delivery, delay_s: float | None, reason: str, *, dispatch: bool = True
    ) -> None:
        """A consumer could not do it. `delay_s` None: the delay of the backoff."""
        definition = self.definition
        place = _place(delivery)
        attempts = self._attempts.get(place, 0) + 1
        self._returns += 1
        if definition.max_deliveries and attempts >= definition.max_deliveries:
            self.bury(delivery, reason, attempts)
            return
        if delay_s is None:
            delay_s = self._backoff_s(attempts)
        message = delivery[0]
        about = message.properties
        is_ordered = definition.ordered_by_key and about is not None and about.key is not None
        if delay_s > 0 and not is_ordered:
            self._delays.add(message, self.shelf.timers.now + delay_s, attempts)
            self._forget(delivery)
            return
        now = self.shelf.timers.now
        due = now + delay_s if delay_s > 0 else 0.0
        self._note_attempts(place, attempts, due)
        if due:  # its key stays locked: what comes after it has to wait
            self._rest(delivery, due)
            return
        if self._locked:
            self._release_key(delivery)
        self._make_ready(delivery)
        if dispatch:
            self.dispatch()

    def _make_ready(self, delivery: Delivery) -> None:
        chunk = delivery[3]
        assert chunk is not None
        priority = self._lanes.index(chunk.backlog) if len(self._lanes) > 1 else 0
        heappush(self._returned, (-priority, delivery[2], delivery))

    def _backoff_s(self, attempts: int) -> float:
        """Doubled by each attempt; spread, for what failed together should not come together."""
        definition = self.definition
        most = min(definition.backoff_max_s, definition.backoff_s * 2.0 ** min(attempts - 1, 60))
        return most * (0.5 + 0.5 * self._random.random())

    def bury(self, delivery: Delivery, reason: str, attempts: int | None = None) -> None:
        """Nobody is to get it any more: move it to the dead letter queue, if there is one."""
        if attempts is None:
            attempts = self._attempts.get(_place(delivery), 0)
        self._buried += 1
        self._send_dead_letter(delivery[0], reason, attempts)
        self._forget(delivery)
        if self._locked:
            self._unlock(delivery)

    def _send_dead_letter(self, message: Message, reason: str, attempts: int) -> None:
        name = self.definition.dead_letter
        target = self._find(name) if name else None
        if target is None:
            self._statistics.drop(f"queue: {reason}" if reason in _REASONS else "queue: rejected")
            return
        about = message.properties or MessageProperties()
        others = tuple(each for each in about.user_properties if each[0] not in _ORIGIN)
        origin = (
            (ORIGIN_QUEUE, self.name),
            (ORIGIN_REASON, reason),
            (ORIGIN_COUNT, str(attempts)),
        )
        about = replace(about, user_properties=others + origin, delay_s=None, message_id=None)
        target.deliver(Message(message.topic, message.payload, message.qos, False, about), _PLAIN)

    # -- keys ------------------------------------------------------------------------------------

    def _release_key(self, delivery: Delivery) -> None:
        about = delivery[0].properties
        if about is not None and about.key is not None:
            self._locked.discard(about.key)

    def _unlock(self, delivery: Delivery) -> None:
        """The next message with the same key may be given out."""
        about = delivery[0].properties
        if about is None or about.key is None or about.key not in self._locked:
            return
        self._locked.discard(about.key)
        waiting = self._aside.get(about.key)
        if waiting:
            self._aside_count -= 1
            self._make_ready(waiting.popleft())
            if not waiting:
                del self._aside[about.key]
            self.dispatch()

    def _rest(self, delivery: Delivery, due: float) -> None:
        timer = self.shelf.timers.at(due, lambda _now: self._rested(timer))
        self._resting[timer] = delivery

    def _rested(self, timer: Timer) -> None:
        delivery = self._resting.pop(timer)
        self._release_key(delivery)
        self._make_ready(delivery)
        self.dispatch()

    def _still_rests(self, delivery: Delivery, now: float) -> bool:
        """Whether it came back before a restart and is not due yet: then it is set aside."""
        due = self._rests.pop(_place(delivery), 0.0)
        if due <= now:
            return False
        about = delivery[0].properties
        if about is not None and about.key is not None:
            self._locked.add(about.key)
        self._rest(delivery, due)
        return True

    # -- attempts --------------------------------------------------------------------------------

    def _note_attempts(self, place: tuple[int, int], attempts: int, due: float) -> None:
        self._attempts[place] = attempts
        rests_until = due + self.shelf.wall_clock_offset_s if due else 0.0
        self.shelf.commits.put(
            Kind.RETURNED, _ATTEMPTS_KEY.pack(*place), msgpack.packb([attempts, rests_until])
        )

    def _read_attempts(self) -> None:
        for lane in self._lanes:
            start = _ATTEMPTS_KEY.pack(lane.identifier, 0)
            stop = _ATTEMPTS_KEY.pack(lane.identifier + 1, 0)
            for key, value in self.shelf.store.scan(Kind.RETURNED, start, stop):
                identifier, number = _ATTEMPTS_KEY.unpack(key)
                attempts, rests_until = msgpack.unpackb(value)
                self._attempts[identifier, number] = attempts
                if rests_until:
                    due = rests_until - self.shelf.wall_clock_offset_s
                    self._rests[identifier, number] = due

    def _due(self, message: Message, attempts: int) -> None:
        """A delayed message is due."""
        lane = self._lane_of(message)
        number = lane.append(message, _PLAIN)
        if attempts:
            self._note_attempts((lane.identifier, number), attempts, 0.0)

    # -- leases run out --------------------------------------------------------------------------

    def watch_leases(self) -> None:
        """Look after the lease that runs out next."""
        deadlines = [
            deadline
            for consumer in self.consumers
            for deadline in (
                (each[1] for each in consumer.leases.values())
                if consumer.has_extended
                else [each[1] for each in list(consumer.leases.values())[:1]]
            )
        ]
        if deadlines:
            self._watch_until(min(deadlines))

    def _watch_until(self, deadline: float) -> None:
        if self._lease_timer is not None:
            if self._lease_timer_at <= deadline:
                return
            self._lease_timer.cancel()
        self._lease_timer_at = deadline
        self._lease_timer = self.shelf.timers.at(deadline, self._end_leases)

    def _end_leases(self, now: float) -> None:
        self._lease_timer = None
        for consumer in self.consumers:
            ended: list[int] = []
            for lease, (_, deadline) in consumer.leases.items():
                if deadline <= now:
                    ended.append(lease)
                elif not consumer.has_extended:
                    break
            for lease in ended:
                delivery, _ = consumer.leases.pop(lease)
                self.give_back(delivery, None, "lease ran out too often", dispatch=False)
            if not consumer.leases:
                consumer.has_extended = False
        self.watch_leases()
        self.dispatch()

    # -- care ------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Give nothing out until `resume`; what comes is taken."""
        self.is_paused = True

    def resume(self) -> None:
        """Go on giving out."""
        self.is_paused = False
        self.dispatch()

    def purge(self) -> int:
        """Forget everything that is not with a consumer; how many messages that was."""
        gone = self._delays.purge()
        for _, _, delivery in self._returned:
            self._forget(delivery)
        for waiting in self._aside.values():
            for delivery in waiting:
                self._forget(delivery)
            gone += len(waiting)
        for timer, delivery in self._resting.items():
            timer.cancel()
            self._forget(delivery)
            self._release_key(delivery)
        gone += len(self._returned) + len(self._resting)
        self._returned = []
        self._aside, self._aside_count, self._resting = {}, 0, {}
        return gone + sum(lane.purge() for lane in self._lanes)

    def browse(self, after: int = 0, priority: int = 0) -> Iterator[Browsed]:
        """What is in one priority's lane in numbers above `after`, as committed, leased or not."""
        lane = self._lanes[priority]
        for waiting in lane.browse(after):
            attempts = self._attempts.get((lane.identifier, waiting.number), 0)
            yield Browsed(waiting.number, waiting.message, waiting.time_s, attempts)

    def redrive(self, count: int) -> int:
        """Send up to so many dead letters back to where they came from; how many went.

        A message whose queue is not known any more stays, and is looked at last.
        """
        gone = 0
        kept: list[Delivery] = []
        now = self.shelf.timers.now
        while gone < count and len(kept) < _SET_ASIDE_MAX:
            delivery = self._next(now)
            if delivery is None:
                break
            message = delivery[0]
            about = message.properties or MessageProperties()
            origin = dict(about.user_properties).get(ORIGIN_QUEUE)
            target = self._find(origin) if origin is not None else None
            if target is None or target is self or target.refusal(message) is not None:
                kept.append(delivery)
                continue
            others = tuple(each for each in about.user_properties if each[0] not in _ORIGIN)
            about = replace(about, user_properties=others)
            target.deliver(
                Message(message.topic, message.payload, message.qos, False, about), _PLAIN
            )
            self._forget(delivery)
            if self._locked:
                self._unlock(delivery)
            gone += 1
        for delivery in kept:
            self._release_key(delivery)
            self._make_ready(delivery)
        return gone

    def discard(self) -> None:
        """The queue is no more, with all that is in it."""
        for consumer in self.consumers:
            for delivery, _ in consumer.leases.values():
                self._forget(delivery)
            consumer.leases = {}
        self.purge()
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            consumer.sink.ended()
        self.stop()
        if self._deduplication is not None:
            self._deduplication.discard()
        self._delays.discard()
        for lane in self._lanes:
            self.shelf.commits.delete_range(
                Kind.RETURNED,
                _ATTEMPTS_KEY.pack(lane.identifier, 0),
                _ATTEMPTS_KEY.pack(lane.identifier + 1, 0),
            )
            lane.discard()

    def stop(self) -> None:
        """No timers any more."""
        if self._lease_timer is not None:
            self._lease_timer.cancel()
            self._lease_timer = None
        self._delays.stop()


_PLAIN = PLAIN_TERMS[1]
_REASONS = ("expired", "max length", "delivered too often", "lease ran out too often")


def _place(delivery: Delivery) -> tuple[int, int]:
    """Where it is recorded: the backlog and the number there."""
    chunk = delivery[3]
    assert chunk is not None
    return chunk.backlog.identifier, delivery[2]
