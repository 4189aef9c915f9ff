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

What is given out comes in this order: a higher priority first, among equals in the order in which
the messages came to the queue. What comes back at once (a consumer left, a nack with delay 0) has
its old place. What comes back after a delay, and what was sent with one, goes to the end of its
priority when it is due. Only with ``ordered_by_key`` a message with a key keeps its place over a
delay too, and those with the same key wait behind it: of one key one message at a time is with a
consumer, those of a priority in the order in which they came, whatever happens to leases, consumers
and the node (`key_order`).

While some of its consumers are canaries and others are not, each message is for one of these two
sides (`queue_sides`).

A queue that is ordered by key, or has two sides, reads on past messages that have to wait, up to a
bound; then the others wait too. What there is to bury at once (messages expire, a limit is lowered)
is buried in steps, one for each commit.

Times are monotonic while the node runs; across a restart delays and ages go by the wall clock. How
long a message may live counts from when it was ready first.
"""

from collections.abc import Callable, Iterator
from math import ceil
from random import Random
from typing import Final, Literal

from ganglion.broker.core.attempts import Attempts, Place
from ganglion.broker.core.backlog import Backlog, Shelf
from ganglion.broker.core.dead_letters import as_before, as_dead_letter
from ganglion.broker.core.deduplication import Deduplication
from ganglion.broker.core.delays import Delays
from ganglion.broker.core.key_order import key_of
from ganglion.broker.core.message import PLAIN_TERMS, Delivery, Message, Terms
from ganglion.broker.core.queue_consumer import LEASE_MAX_S, Consumer, ConsumerSink
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.queue_sides import Side, Sides
from ganglion.broker.core.queue_statistics import Browsed, QueueStatistics
from ganglion.broker.core.router import Rejection
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timer

__all__ = [
    "QUEUE_PREFIX",
    "REDRIVEN_MAX",
    "Browsed",
    "Consumer",
    "ConsumerSink",
    "Queue",
    "QueueStatistics",
]

QUEUE_PREFIX: Final = "$queue/"
"""A publication to this and the name of a queue goes to that queue alone."""

REDRIVEN_MAX = 10_000
"""Dead letters that one call sends back at most."""
_REDRIVEN_BYTES_MAX = 16 * 1024 * 1024

_PASSED_OVER_MAX = 2048  # dead letters that have no way back, in one call
_BURIED_AT_ONCE_MAX = 10_000  # more than come in one commit, or a queue would outgrow its limits
_BURIED_BYTES_AT_ONCE_MAX = 64 * 1024 * 1024
_REFUSED_DELAY_S = 1.0  # rest of a consumer that gives back what it is given


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
        make: Callable[[str], "Queue | None"],
        random: Random,
    ) -> None:
        """`find` gives another queue by its name, `make` also makes it, for dead letters."""
        self.definition = definition
        self.shelf = shelf
        self.consumers: dict[Consumer, None] = {}
        """In the order in which they came."""
        self.is_paused = False
        self._statistics = statistics
        self._find = find
        self._make = make
        self._random = random
        self._lanes = lanes  # by priority, the lowest first
        for lane in lanes:
            lane.on_ready = self._ready
        self._attempts = Attempts(shelf, [lane.identifier for lane in lanes])
        self._delays = Delays(shelf, delays_id, self._due)
        self._deduplication: Deduplication | None = None
        self._sides = Sides(
            lanes,
            shelf.timers,
            self.consumers,
            self._attempts_of,
            lambda: not self.is_paused,
            self.dispatch,
        )
        self._others, self._canaries = self._sides.both
        self._next_lease = 1
        self._is_dispatching = False
        self._is_called = False  # to dispatch, while it does
        self._buried_at_once = self._buried_bytes_at_once = 0
        self._is_going_on = False  # with burying, after the commit
        self._lease_timer: Timer | None = None
        self._lease_timer_at = 0.0
        self._expiry_timer: Timer | None = None
        self._expiry_timer_at = 0.0
        self._published = self._delivered = self._acknowledged = self._returns = 0
        self._buried = self._duplicates = self._refused = self._delivered_to_canaries = 0
        self.configure(definition)

    def configure(self, definition: QueueDefinition) -> None:
        """The options have changed (or are set for the first time)."""
        self.definition = definition
        has_limit = definition.max_messages > 0 or definition.max_bytes > 0
        self.may_refuse = has_limit and definition.overflow == "reject"
        """Whether a publisher has to ask `refusal` first."""
        self._has_limit = has_limit
        self._takes_all = (
            not has_limit and definition.priorities == 1 and not definition.deduplication_s
        )
        self._gives_all = (
            definition.priorities == 1 and not definition.ttl_s and not definition.ordered_by_key
        )
        if not definition.deduplication_s:
            if self._deduplication is not None:
                self._deduplication.discard()
                self._deduplication = None
        elif self._deduplication is None:
            self._deduplication = Deduplication(self.shelf, self._delays.identifier)
        self._sides.configure(definition)
        self._is_ordered = definition.ordered_by_key

    def start(self) -> None:
        """It is defined, or otherwise than before, and all queues are there: begin to work."""
        self._ready()

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
            delayed=self._delays.count + self._sides.resting_count,
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
            canaries=self._sides.canary_count,
            waiting_for_canaries=self._canaries.count,
            delivered_to_canaries=self._delivered_to_canaries,
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
        if self._takes_all and message.properties is None:
            self._published += 1
            self._lanes[0].append(message, _PLAIN)
        else:
            self._take_in(message)

    def deliver_run(self, topic: str, payloads: list[bytes], qos: int) -> None:
        """Take many messages of one size without properties."""
        messages = [Message(topic, payload, qos) for payload in payloads]
        if self._takes_all:
            self._published += len(messages)
            self._lanes[0].append_run(messages, _PLAIN)
        else:
            for message in messages:
                self._take_in(message)

    @property
    def kind(self) -> Literal["queue"]:
        """What it is."""
        return "queue"

    def outlet(self, _form: int) -> None:
        """It takes nothing as it is."""

    def is_durable(self) -> bool:
        """What it is given waits on disk."""
        return True

    def refusal(self, message: Message) -> Rejection | None:
        """Why the queue would not take this message; None: it would."""
        if self._is_duplicate(message):
            return None  # it is there already
        if self._is_too_large(message):
            text = (
                f"a message of {message.size_bytes()} bytes is larger than all of queue "
                f"{self.name}: max_bytes = {self.definition.max_bytes}"
            )
            return Rejection(text, is_final=True)
        text = self._overflows(message)
        return Rejection(text, is_final=False) if text else None

    def _is_too_large(self, message: Message) -> bool:
        """Whether it would not even fit if there was nothing else in the queue."""
        return 0 < self.definition.max_bytes < message.size_bytes()

    def _is_duplicate(self, message: Message) -> bool:
        about = message.properties
        return (
            self._deduplication is not None
            and about is not None
            and about.message_id is not None
            and self._deduplication.has(about.message_id, self.definition.deduplication_s)
        )

    def _overflows(self, message: Message) -> str:
        """Which limit the queue would be over with it; empty: none."""
        definition = self.definition
        if definition.max_messages and self.count >= definition.max_messages:
            return f"queue {self.name} is full: max_messages = {definition.max_messages}"
        if definition.max_bytes:
            size_bytes = message.size_bytes()
            if self.size_bytes + size_bytes > definition.max_bytes:
                return (
                    f"queue {self.name} has no room for {size_bytes} bytes: "
                    f"max_bytes = {definition.max_bytes}"
                )
        return ""

    def _take_in(self, message: Message) -> None:
        about = message.properties
        if self._is_duplicate(message):
            self._duplicates += 1
            self._statistics.drop("duplicate")
            return
        if self._has_limit and self._overflows(message) and not self._fits_after_all(message):
            return
        if self._deduplication is not None and about is not None and about.message_id is not None:
            self._deduplication.add(about.message_id)
        self._published += 1
        if about is not None and about.delay_s is not None and about.delay_s > 0:
            self._delays.add(message, self.shelf.timers.now + about.delay_s, 0)
        else:
            self._lane_of(message).append(message, _PLAIN)

    def _fits_after_all(self, message: Message) -> bool:
        """Make room for it; where that cannot be, the message itself is dropped or buried."""
        definition = self.definition
        if definition.overflow == "reject":
            if self._is_too_large(message):  # and its publisher cannot be told
                self._buried += 1
                self._send_dead_letter(message, _TOO_LARGE, 0)
                return False
            self._refused += 1
            self._statistics.drop("queue is full")
            return False
        about, delays = message.properties, self._delays
        # What is delayed cannot make room; nor could anything for what is larger than the limit.
        kept = delays.size_bytes if about is not None and about.delay_s else 0
        is_hopeless = definition.max_bytes and kept + message.size_bytes() > definition.max_bytes
        if about is not None and about.delay_s and definition.max_messages:
            is_hopeless = is_hopeless or delays.count >= definition.max_messages
        if not is_hopeless:
            self._make_room(message)
            return True
        self._buried += 1
        if definition.overflow == "dead-letter":
            self._send_dead_letter(message, "max length", 0)
        else:
            self._statistics.drop("queue is full")
        return False

    def _lane_of(self, message: Message) -> Backlog:
        lanes, about = self._lanes, message.properties
        if about is None or not about.priority:
            return lanes[0]
        return lanes[min(about.priority, len(lanes) - 1)]

    def _make_room(self, message: Message | None = None) -> None:
        """Drop or bury the oldest ready messages until this one fits, or until all fit."""
        definition = self.definition
        if not self._has_limit or definition.overflow == "reject":
            return
        while not self._is_going_on:
            if message is not None:
                if not self._overflows(message):
                    return
            elif not (
                (definition.max_messages and self.count > definition.max_messages)
                or (definition.max_bytes and self.size_bytes > definition.max_bytes)
            ):
                return
            oldest = self._sides.first(range(len(self._lanes)))
            if oldest is None:
                return  # the rest is with consumers, or on its way to the disk: see `_ready`
            self._count_buried(oldest[0].size_bytes())
            if definition.overflow == "dead-letter":
                self.bury(oldest, "max length")
            else:
                self._forget(oldest)
                self._sides.release_key(oldest)
                self._buried += 1
                self._statistics.drop("queue is full: the oldest goes")

    # -- out -------------------------------------------------------------------------------------

    def consume(self, sink: ConsumerSink, *, is_canary: bool = False) -> Consumer:
        """A new consumer, which gets its share from now on."""
        consumer = Consumer(self, sink, self._others, is_canary=is_canary)
        self.consumers[consumer] = None
        self._sides.joined(consumer)
        return consumer

    def mark(self, consumer: Consumer, *, is_canary: bool) -> None:
        """A consumer is a canary from now on, or is none any more."""
        if consumer in self.consumers:
            self._sides.mark(consumer, is_canary=is_canary)
            self.dispatch()

    def remove(self, consumer: Consumer) -> None:
        """The consumer has left. Harmless the second time."""
        if consumer not in self.consumers:
            return
        del self.consumers[consumer]
        self._sides.left(consumer)
        leases, consumer.leases = consumer.leases, {}
        for delivery, _ in leases.values():
            self.give_back(delivery, 0.0, "delivered too often")
        self.dispatch()

    def _ready(self) -> None:
        """There is something in a lane that was not there before."""
        if self._others.waiting or self._canaries.waiting:
            self.dispatch()
        if self._has_limit:
            self._make_room()
        self._watch_expiry()

    def serve(self, consumer: Consumer) -> None:
        """It may have room: give it what is ready when its turn comes."""
        if consumer in self.consumers:
            consumer.side.waiting[consumer] = None
            if self._is_dry():
                return  # as after most acknowledgements: what comes is dispatched when it comes
            self.dispatch()
            self._watch_expiry()

    def _is_dry(self) -> bool:
        """Whether there is nothing to give to anybody."""
        return not self._sides.count and all(lane.is_empty for lane in self._lanes)

    def dispatch(self) -> None:
        """Give what is ready to the consumers, in turn, as far as they have room."""
        if self._is_dispatching:
            self._is_called = True
            return
        if self.is_paused:
            return
        self._is_dispatching = True
        try:
            while True:
                has_changed = self._serve_side(self._others)
                if not self._sides.is_split:
                    break
                # What either side read and is for the other one was set aside
                if not self._serve_side(self._canaries) | has_changed:
                    break
        finally:
            self._is_dispatching = False

    def _serve_side(self, side: Side) -> bool:
        """Give its consumers what is for them; whether that changed anything."""
        waiting = side.waiting
        has_changed = False
        turns = share = 0
        while (consumer := self._whose_turn(side)) is not None:
            if not turns:
                turns, share = len(waiting) + 1, self._share_of(side)
            turns -= 1
            room = consumer.sink.room()
            if room <= 0:
                has_changed = True
                continue  # it pulls when it has room again
            if side is self._canaries:
                self._sides.end_stall()
            self._is_called = False
            most, returns = min(room, share), self._returns
            given = self._give(consumer, most)
            has_changed = has_changed or given > 0
            if self._returns != returns:  # it would get the same again at once, and for ever
                consumer.side.waiting.pop(consumer, None)
                self._serve_later(consumer)
            elif consumer in self.consumers:
                consumer.side.waiting[consumer] = None
                if not given:  # it is its turn still
                    consumer.side.waiting.move_to_end(consumer, last=False)
            is_dry = not given or (given < most and not self._has_more(side))
            if is_dry and not self._is_called:
                break
        return has_changed

    def _serve_later(self, consumer: Consumer) -> None:
        self.shelf.timers.after(_REFUSED_DELAY_S, lambda _now: self.serve(consumer))

    def _whose_turn(self, side: Side) -> Consumer | None:
        waiting = side.waiting
        if self.definition.single_active_consumer:
            first = next(iter(self.consumers), None)
            if first is None or first not in waiting:
                return None
            del waiting[first]
            return first
        return waiting.popitem(last=False)[0] if waiting else None

    def _has_more(self, side: Side) -> bool:
        return side.count > 0 or not all(lane.is_empty for lane in self._lanes)

    def _share_of(self, side: Side) -> int:
        """How much of what is ready each consumer gets until it is its turn again."""
        count = len(side.waiting) + 1
        if count == 1 or self.definition.single_active_consumer:
            return _ALL
        ready = sum([lane.ready for lane in self._lanes])
        if self._sides.is_split:
            share = self._sides.share
            ready = ceil(ready * (share if side is self._canaries else 1.0 - share))
        return max(1, -(-(side.count + ready) // count))

    def _give(self, consumer: Consumer, most: int) -> int:
        """Lease it up to so many messages; how many it were."""
        now = self.shelf.timers.now
        lane = self._lanes[0]
        lane.refill()
        side = consumer.side
        is_plain = (
            self._gives_all
            and lane.is_plain
            and not side.count
            and not self._attempts
            and not self._sides.is_split
        )
        deliveries = lane.take_many(most) if is_plain else self._take_singly(side, now, most)
        if not deliveries:
            return 0
        first = self._next_lease
        self._next_lease = first + len(deliveries)
        deadline = now + self.definition.lease_s
        consumer.lease(first, deliveries, deadline)
        self._delivered += len(deliveries)
        if consumer.is_canary:
            self._delivered_to_canaries += len(deliveries)
        self.watch_lease(deadline)
        attempts: dict[int, int] = {}
        if not is_plain:
            for lease, delivery in enumerate(deliveries, first):
                if how_often := self._attempts_of(delivery):
                    attempts[lease] = how_often
        leases = range(first, self._next_lease)
        consumer.sink.deliver(leases, [each[0] for each in deliveries], attempts)
        return len(deliveries)

    def _take_singly(self, side: Side, now: float, most: int) -> list[Delivery]:
        found: list[Delivery] = []
        while len(found) < most and (delivery := self._next(side, now)) is not None:
            found.append(delivery)
        return found

    def _next(self, side: Side, now: float) -> Delivery | None:
        """Take the next message that may be given out to a side now."""
        while not self._is_going_on:
            delivery = self._sides.take(side)
            if delivery is None:
                return None
            if self._expires_at(delivery) <= now:
                self._expire(delivery)
                continue
            if self._is_ordered:
                if not self._sides.claim(delivery):
                    continue
                rests_until = self._attempts.rests_until(_place(delivery))
                if rests_until > now and key_of(delivery) is not None:
                    self._sides.rest(delivery, rests_until)  # it came back before a restart
                    continue
            return delivery
        return None

    # -- the ends of a lease ---------------------------------------------------------------------

    def settle(self, delivery: Delivery) -> None:
        """A consumer is done with it."""
        self._acknowledged += 1
        if self._is_ordered or self._attempts:
            self._forget(delivery)
            self._sides.release_key(delivery)
            if self._sides.count:
                self.dispatch()
        else:
            chunk = delivery[3]
            assert chunk is not None
            chunk.backlog.settle(delivery)

    def settle_run(self, deliveries: list[Delivery]) -> None:
        """A consumer is done with all of these."""
        if self._is_ordered or self._attempts or len(self._lanes) > 1:
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
        if self._attempts:
            self._attempts.forget(_place(delivery))

    def give_back(self, delivery: Delivery, delay_s: float | None, reason: str) -> None:
        """A consumer could not do it. `delay_s` None: the delay of the backoff.

        Whoever gives back what he has to dispatches then.
        """
        definition = self.definition
        attempts = self._attempts_of(delivery) + 1
        self._returns += 1
        if definition.max_deliveries and attempts >= definition.max_deliveries:
            self.bury(delivery, reason, attempts)
        else:
            if delay_s is None:
                delay_s = self._backoff_s(attempts)
            if delay_s > 0:
                self._give_back_later(delivery, min(delay_s, LEASE_MAX_S), attempts)
            else:
                self._attempts.note(_place(delivery), attempts, 0.0)
                self._sides.give_back(delivery)

    def _give_back_later(self, delivery: Delivery, delay_s: float, attempts: int) -> None:
        due = self.shelf.timers.now + delay_s
        if self._is_ordered and key_of(delivery) is not None:
            self._attempts.note(_place(delivery), attempts, due)
            self._sides.rest(delivery, due)  # it holds its key: what comes after it has to wait
            return
        message = delivery[0]
        if self.definition.ttl_s:  # its age goes on where it gets a new number
            expires_at = self._expires_at(delivery)
            about = message.properties
            message = Message(message.topic, message.payload, message.qos, False, about, expires_at)
        self._delays.add(message, due, attempts)
        self._forget(delivery)
        self._sides.release_key(delivery)

    def reject(self, delivery: Delivery, reason: str) -> None:
        """A consumer says that nobody will be able to do it."""
        self.bury(delivery, reason, self._attempts_of(delivery) + 1)

    def _backoff_s(self, attempts: int) -> float:
        """Doubled by each attempt; spread, for what failed together should not come together."""
        definition = self.definition
        most = min(definition.backoff_max_s, definition.backoff_s * 2.0 ** min(attempts - 1, 60))
        return most * (0.5 + 0.5 * self._random.random())

    def bury(self, delivery: Delivery, reason: str, attempts: int | None = None) -> None:
        """Nobody is to get it any more: move it to the dead letter queue, if there is one."""
        if attempts is None:
            attempts = self._attempts_of(delivery)
        self._buried += 1
        self._send_dead_letter(delivery[0], reason, attempts)
        self._forget(delivery)
        self._sides.release_key(delivery)

    def _send_dead_letter(self, message: Message, reason: str, attempts: int) -> None:
        name = self.definition.dead_letter
        target = self._make(name) if name else None
        if target is None:
            self._statistics.drop(f"queue: {reason}" if reason in _REASONS else "queue: rejected")
            return
        target.deliver(as_dead_letter(message, self.name, reason, attempts), _PLAIN)

    def _count_buried(self, size_bytes: int) -> None:
        """Something was found expired or over a limit: the step is full with so much of it.

        Then nothing is taken singly, and no room is made, before the commit.
        """
        self._buried_at_once += 1
        self._buried_bytes_at_once += size_bytes
        if (
            self._buried_at_once >= _BURIED_AT_ONCE_MAX
            or self._buried_bytes_at_once >= _BURIED_BYTES_AT_ONCE_MAX
        ) and not self._is_going_on:
            self._is_going_on = True
            self.shelf.commits.after_commit(self._go_on)

    def _go_on(self) -> None:
        self._buried_at_once = self._buried_bytes_at_once = 0
        self._is_going_on = False
        self._ready()

    def _attempts_of(self, delivery: Delivery) -> int:
        """How often it was delivered in vain."""
        noted = self._attempts.get(_place(delivery)) if self._attempts else 0
        return noted or delivery[1].attempts

    def _due(self, message: Message, attempts: int) -> None:
        """A delayed message is due."""
        self._lane_of(message).append(message, Terms(1, attempts=attempts) if attempts else _PLAIN)

    # -- leases run out --------------------------------------------------------------------------

    def watch_lease(self, deadline: float) -> None:
        """A lease runs out then."""
        if self._lease_timer is not None:
            if self._lease_timer_at <= deadline:
                return
            self._lease_timer.cancel()
        self._lease_timer_at = deadline
        self._lease_timer = self.shelf.timers.at(deadline, self._end_leases)

    def _end_leases(self, now: float) -> None:
        self._lease_timer = None
        for consumer in list(self.consumers):
            ended = consumer.take_ended(now)
            for delivery in ended:
                self.give_back(delivery, None, "lease ran out too often")
            if ended:  # it may have room now, but others come first
                consumer.side.waiting[consumer] = None
                consumer.side.waiting.move_to_end(consumer)
        deadlines = [each.next_deadline() for each in self.consumers]
        first = min((each for each in deadlines if each is not None), default=None)
        if first is not None:
            self.watch_lease(first)
        self.dispatch()

    # -- messages expire -------------------------------------------------------------------------

    def _expires_at(self, delivery: Delivery) -> float:
        """When the message is too old, on the monotonic clock; infinity: never."""
        message, _, _, chunk = delivery
        expires_at = _NEVER if message.expires_at is None else message.expires_at
        ttl_s = self.definition.ttl_s
        if ttl_s:
            assert chunk is not None
            old_at = chunk.time_s + ttl_s - self.shelf.wall_clock_offset_s
            expires_at = min(expires_at, old_at)
        return expires_at

    def _watch_expiry(self) -> None:
        """Look after the first messages of each priority: they expire although nobody asks."""
        if self._gives_all and self._lanes[0].is_plain and not self._sides.count:
            return  # nothing expires
        first = _NEVER
        for priority, lane in enumerate(self._lanes):
            heads = [side.peek(priority) for side in self._sides.both]
            if self.definition.ttl_s or not lane.is_plain:
                heads.append(lane.peek())
            first = min([first, *(self._expires_at(head) for head in heads if head is not None)])
        if first == _NEVER:
            return
        if self._expiry_timer is not None:
            if self._expiry_timer_at <= first:
                return
            self._expiry_timer.cancel()
        self._expiry_timer_at = first
        self._expiry_timer = self.shelf.timers.at(first, self._bury_expired)

    def _bury_expired(self, now: float) -> None:
        self._expiry_timer = None
        for priority, lane in enumerate(self._lanes):
            for side in self._sides.both:
                while (head := side.peek(priority)) is not None and self._is_to_go(head, now):
                    self._expire(side.pop(priority) or head)
            while (head := lane.peek()) is not None and self._is_to_go(head, now):
                self._expire(lane.take() or head)
        if not self._is_going_on:  # else `_go_on` looks again
            self._watch_expiry()
            self.dispatch()

    def _is_to_go(self, delivery: Delivery, now: float) -> bool:
        return self._expires_at(delivery) <= now and not self._is_going_on

    def _expire(self, delivery: Delivery) -> None:
        self._count_buried(delivery[0].size_bytes())
        self.bury(delivery, "expired")

    # -- care ------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Give nothing out until `resume`; what comes is taken."""
        self.is_paused = True

    def resume(self) -> None:
        """Go on giving out."""
        self.is_paused = False
        self.dispatch()

    def purge(self) -> int:
        """Forget everything that is on disk and not with a consumer; how many messages that was."""
        gone = self._delays.purge()
        held = self._sides.take_all()
        for delivery in held:
            self._forget(delivery)
            self._sides.release_key(delivery)  # of one that rested
        gone += len(held) + sum([lane.purge() for lane in self._lanes])
        leased = {
            _place(delivery)
            for consumer in self.consumers
            for delivery, _ in consumer.leases.values()
        }
        self._attempts.forget_others(leased)
        self._statistics.drop("queue: purged", gone)
        return gone

    def browse(self, after: int = 0, priority: int = 0) -> Iterator[Browsed]:
        """What is in one priority's lane in numbers above `after`, as committed, leased or not."""
        lane = self._lanes[priority]
        for waiting in lane.browse(after):
            attempts = self._attempts.get((lane.identifier, waiting.number))
            attempts = attempts or waiting.terms.attempts
            yield Browsed(waiting.number, waiting.message, waiting.time_s, attempts)

    def redrive(self, count: int) -> int:
        """Send up to so many dead letters back to where they came from; how many went.

        No more go in one call than one commit should carry (`REDRIVEN_MAX`): call again until none
        goes. Those whose queue is not known any more, or has no room, stay in their order; only so
        many of them are passed over in a call.
        """
        gone = size_bytes = 0
        kept: list[Delivery] = []
        self._sides.let_go()
        highest_first = range(len(self._lanes) - 1, -1, -1)
        while gone < min(count, REDRIVEN_MAX) and size_bytes < _REDRIVEN_BYTES_MAX:
            delivery = self._sides.first(highest_first) if len(kept) < _PASSED_OVER_MAX else None
            if delivery is None:
                break
            if self._send_back(delivery[0]):
                size_bytes += delivery[0].size_bytes()
                self._forget(delivery)
                self._sides.release_key(delivery)
                gone += 1
            else:
                kept.append(delivery)
        self._sides.put_back(kept)
        self.dispatch()
        return gone

    def _send_back(self, message: Message) -> bool:
        """Send a dead letter to the queue that it came from; whether that takes it."""
        origin, before = as_before(message)
        target = self._find(origin) if origin is not None else None
        if target is None or target is self or target.refusal(message) is not None:
            return False
        target.deliver(before, _PLAIN)
        return True

    def discard(self) -> None:
        """The queue is no more, with all that is in it."""
        self._statistics.drop("queue: deleted", self.count)
        consumers = list(self.consumers)
        self.consumers.clear()
        for side in self._sides.both:
            side.waiting.clear()
        for consumer in consumers:
            leases, consumer.leases = consumer.leases, {}
            for delivery, _ in leases.values():
                self._forget(delivery)
        self.purge()
        self.stop()
        if self._deduplication is not None:
            self._deduplication.discard()
        self._delays.discard()
        for lane in self._lanes:
            lane.discard()
        for consumer in consumers:
            consumer.sink.ended()

    def stop(self) -> None:
        """No timers any more."""
        for timer in (self._lease_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()
        self._lease_timer = self._expiry_timer = None
        self._delays.stop()
        self._sides.stop()


_PLAIN = PLAIN_TERMS[1]
_NEVER = float("inf")
_ALL = 2**62
_TOO_LARGE = "larger than max_bytes"
_REASONS = (
    "expired",
    "max length",
    _TOO_LARGE,
    "delivered too often",
    "lease ran out too often",
)


def _place(delivery: Delivery) -> Place:
    """Where it is recorded: the backlog and the number there."""
    chunk = delivery[3]
    assert chunk is not None
    return chunk.backlog.identifier, delivery[2]
