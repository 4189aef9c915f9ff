"""What of a queue may be given out next, and to whom: to its canaries, or to other consumers.

A queue has one *side*, on which all consumers are, as long as all are canaries or none is. With
both kinds it has two. What is ready on a side stands before all that is in the lanes: what came
back, and what the other side has read and cannot have. So each goes on at its own pace, up to a
bound.

For the canaries is the share of the queue's definition (`canaries`) of what was never delivered in
vain. What a canary could not do, or did not settle, is for the others: a canary that is broken
costs each message one delivery, whatever it does.

The others do not wait for canaries in vain:

* when too much is set aside for canaries that have no room, each message more takes the place of
  the oldest, which goes to the others;
* when something has waited for a canary as long as a lease lasts, all of it goes to the others, and
  so does what comes, until a canary has room again (they are *stalled* until then).

Where the queue is ordered by key, what is set aside with two sides holds its key, as if it was
given out: else what has the same key could overtake it on the other side.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from ganglion.broker.core.backlog import Backlog
from ganglion.broker.core.canaries import is_for_canaries
from ganglion.broker.core.key_order import KeyOrder, key_of
from ganglion.broker.core.message import Delivery
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.timers import Timer, Timers

if TYPE_CHECKING:
    from ganglion.broker.core.queue_consumer import Consumer

__all__ = ["Side", "Sides"]

_HELD_MAX = 2048  # messages in memory that rest, or wait for others with their key
_HELD_BYTES_MAX = 16 * 1024 * 1024
_ASIDE_MAX = 1024  # messages in memory for one side while the other one reads on
_ASIDE_BYTES_MAX = 8 * 1024 * 1024


class Side:
    """Consumers, and what is ready for them before everything that is in the lanes."""

    __slots__ = ("_ready", "count", "size_bytes", "waiting")

    def __init__(self, priorities: int) -> None:
        self.waiting: OrderedDict[Consumer, None] = OrderedDict()
        """Those that may have room, by turn."""
        self.count = 0
        """How many messages are ready."""
        self.size_bytes = 0
        """What they count in bytes."""
        # By priority: what is ready, by number in its lane, and since when it is
        self._ready: list[list[tuple[int, Delivery, float]]] = [[] for _ in range(priorities)]

    @property
    def is_full(self) -> bool:
        """Whether so much is ready that the other side must not read on."""
        return self.count >= _ASIDE_MAX or self.size_bytes >= _ASIDE_BYTES_MAX

    def push(self, priority: int, delivery: Delivery, now: float) -> None:
        """The message is ready, in its old place."""
        heappush(self._ready[priority], (delivery[2], delivery, now))
        self.count += 1
        self.size_bytes += delivery[0].size_bytes()

    def pop(self, priority: int) -> Delivery | None:
        """Take the first of a priority; None: nothing is ready there."""
        ready = self._ready[priority]
        if not ready:
            return None
        delivery = heappop(ready)[1]
        self.count -= 1
        self.size_bytes -= delivery[0].size_bytes()
        return delivery

    def peek(self, priority: int) -> Delivery | None:
        """What `pop` would return."""
        ready = self._ready[priority]
        return ready[0][1] if ready else None

    def take_all(self) -> list[tuple[int, Delivery]]:
        """Take everything, each with its priority."""
        found = [
            (priority, delivery)
            for priority, ready in enumerate(self._ready)
            for _, delivery, _ in ready
        ]
        self._ready = [[] for _ in self._ready]
        self.count = self.size_bytes = 0
        return found

    def since(self) -> float | None:
        """Since when something has been ready; None: nothing is."""
        return min((since for ready in self._ready for _, _, since in ready), default=None)


class Sides:
    """What is ready in one queue, and both sides of its consumers."""

    __slots__ = (
        "_attempts_of",
        "_consumers",
        "_dispatch",
        "_highest_first",
        "_is_giving",
        "_is_ordered",
        "_is_stalled",
        "_keys",
        "_lanes",
        "_may_split",
        "_priorities",
        "_resting",
        "_share",
        "_timer",
        "_timers",
        "_wait_s",
        "both",
        "canaries",
        "canary_count",
        "is_split",
        "others",
    )

    def __init__(
        self,
        lanes: list[Backlog],
        timers: Timers,
        consumers: "Collection[Consumer]",
        attempts_of: Callable[[Delivery], int],
        is_giving: Callable[[], bool],
        dispatch: Callable[[], None],
    ) -> None:
        """`lanes` and `consumers` are those of the queue, as they are at any time.

        `attempts_of` says how often a message was delivered in vain, `is_giving` whether the queue
        gives anything out; `dispatch` gives out what is ready.
        """
        self.others = Side(len(lanes))
        """Those that are no canaries; all, where there is only one side."""
        self.canaries = Side(len(lanes))
        self.both = (self.others, self.canaries)
        self.is_split = False
        """Whether there are two sides."""
        self.canary_count = 0
        """How many consumers are canaries."""
        self._lanes = lanes
        self._highest_first = lanes[::-1]
        self._priorities = {lane.identifier: priority for priority, lane in enumerate(lanes)}
        self._timers = timers
        self._consumers = consumers
        self._attempts_of = attempts_of
        self._is_giving = is_giving
        self._dispatch = dispatch
        self._is_ordered = self._may_split = self._is_stalled = False
        self._share = self._wait_s = 0.0
        self._keys = KeyOrder()
        self._resting: dict[Timer, Delivery] = {}
        self._timer: Timer | None = None

    def configure(self, definition: QueueDefinition) -> None:
        """The options have changed (or are set for the first time)."""
        self._is_ordered = definition.ordered_by_key
        if not self._is_ordered:
            self.let_go()
            self._keys.forget_holders()
        self._share = definition.canary_share
        self._may_split = not definition.single_active_consumer
        self._wait_s = definition.lease_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._arrange()
        self._sort()

    @property
    def count(self) -> int:
        """How many messages are ready on either side."""
        return self.others.count + self.canaries.count

    @property
    def resting_count(self) -> int:
        """How many messages rest and keep their place meanwhile."""
        return len(self._resting)

    @property
    def share(self) -> float:
        """Which part of what is in the lanes is for canaries, more or less."""
        return self._share if self.is_split and not self._is_stalled else 0.0

    # -- consumers -------------------------------------------------------------------------------

    def joined(self, consumer: "Consumer") -> None:
        """There is one more, which may have room."""
        self.canary_count += consumer.is_canary
        self._place(consumer)
        self._arrange()
        consumer.side.waiting[consumer] = None

    def left(self, consumer: "Consumer") -> None:
        """One is not there any more."""
        self.canary_count -= consumer.is_canary
        consumer.side.waiting.pop(consumer, None)
        self._arrange()

    def mark(self, consumer: "Consumer", *, is_canary: bool) -> None:
        """It is a canary from now on, or is none any more."""
        if consumer.is_canary != is_canary:
            self.left(consumer)
            consumer.is_canary = is_canary
            self.joined(consumer)

    def _place(self, consumer: "Consumer") -> None:
        is_apart = self.is_split and consumer.is_canary
        consumer.side = self.canaries if is_apart else self.others

    def _arrange(self) -> None:
        """Have as many sides as there should be."""
        is_split = self._may_split and 0 < self.canary_count < len(self._consumers)
        if is_split == self.is_split:
            return
        self.is_split, self._is_stalled = is_split, False
        waiting = [*self.others.waiting, *self.canaries.waiting]
        for side in self.both:
            side.waiting.clear()
        for consumer in self._consumers:
            self._place(consumer)
        for consumer in waiting:
            consumer.side.waiting[consumer] = None
        self._sort()

    # -- out -------------------------------------------------------------------------------------

    def take(self, side: Side) -> Delivery | None:
        """The first of what is for a side: of the highest priority, there what is ready already."""
        keys = self._keys
        may_read = (
            keys.count + len(self._resting) < _HELD_MAX and keys.size_bytes < _HELD_BYTES_MAX
        )  # so much waits for keys: what is behind it has to wait as well
        if not side.count and not self.is_split:  # nearly always: half of the time of what follows
            if may_read:
                for lane in self._highest_first:
                    if (delivery := lane.take()) is not None:
                        return delivery
            return None
        for priority in reversed(range(len(self._lanes))):
            if side.count and (delivery := side.pop(priority)) is not None:
                return delivery
            if may_read:
                lane = self._lanes[priority]
                delivery = self._read_on(side, priority) if self.is_split else lane.take()
                if delivery is not None:
                    return delivery
        return None

    def _read_on(self, side: Side, priority: int) -> Delivery | None:
        """The next message of a lane for this side; set aside what is for the other one."""
        keys, canaries = self._keys, self.canaries
        while True:
            if side is canaries:
                may_read = not self.others.is_full
            else:  # with canaries that may have room it is their turn first
                may_read = not (canaries.is_full and canaries.waiting)
            if not may_read or keys.count >= _HELD_MAX:
                return None
            delivery = self._lanes[priority].take()
            if delivery is None:
                return None
            of_side = self._side_of(delivery)
            if of_side is side:
                return delivery
            if not self._is_ordered or keys.claim(delivery, priority):
                self._push(of_side, priority, delivery)
                if of_side is canaries and canaries.is_full and not canaries.waiting:
                    return canaries.pop(priority)

    def first(self, priorities: Iterable[int]) -> Delivery | None:
        """The oldest ready message of the first of these priorities that has any, for any side."""
        for priority in priorities:
            heads = [
                (head[2], side) for side in self.both if (head := side.peek(priority)) is not None
            ]
            if heads:
                return min(heads, key=lambda each: each[0])[1].pop(priority)
            delivery = self._lanes[priority].take()
            if delivery is not None:
                return delivery
        return None

    def take_all(self) -> list[Delivery]:
        """Take everything that is ready, waits for its key or rests."""
        found = self._keys.take_aside() + self.others.take_all() + self.canaries.take_all()
        resting, self._resting = self._resting, {}
        for timer in resting:
            timer.cancel()
        return [delivery for _, delivery in found] + list(resting.values())

    def end_stall(self) -> None:
        """A canary has room."""
        self._is_stalled = False

    # -- back ------------------------------------------------------------------------------------

    def give_back(self, delivery: Delivery) -> None:
        """What was given out is ready again, in its old place."""
        self._make_ready(self._priority_of(delivery), delivery)
        if not self.is_split:
            self.release_key(delivery)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """The same of what was taken with `first`, without order among keys."""
        for delivery in deliveries:
            self._push(self.others, self._priority_of(delivery), delivery)
        self._sort()

    def let_go(self) -> None:
        """What waits for its key is ready, without order among keys."""
        for priority, delivery in self._keys.take_aside():
            self._push(self.others, priority, delivery)

    def rest(self, delivery: Delivery, due: float) -> None:
        """It is ready again when it is due (monotonic), in its old place, and holds its key."""
        timer = self._timers.at(due, lambda _now: self._rested(timer))
        self._resting[timer] = delivery

    def _rested(self, timer: Timer) -> None:
        self.give_back(self._resting.pop(timer))
        self._dispatch()

    def claim(self, delivery: Delivery) -> bool:
        """Whether no other message with its key is out; it holds its key from now on, or waits."""
        return self._keys.claim(delivery, self._priority_of(delivery))

    def release_key(self, delivery: Delivery) -> None:
        """It is out of the way: the next message with its key may be given out."""
        if self._is_ordered:
            following = self._keys.release(delivery)
            if following is not None:
                self._make_ready(*following)

    def _make_ready(self, priority: int, delivery: Delivery) -> None:
        must_hold = self._is_ordered and self.is_split
        if not must_hold or self._keys.claim(delivery, priority):
            self._push(self._side_of(delivery), priority, delivery)

    def _sort(self) -> None:
        """What is ready may be for others than before, or has to hold its key."""
        ready = self.others.take_all() + self.canaries.take_all()
        for priority, delivery in sorted(ready, key=lambda each: (-each[0], each[1][2])):
            self._make_ready(priority, delivery)

    def _push(self, side: Side, priority: int, delivery: Delivery) -> None:
        side.push(priority, delivery, self._timers.now)
        if side is self.canaries and self._timer is None:
            self._timer = self._timers.after(self._wait_s, self._look)

    def _side_of(self, delivery: Delivery) -> Side:
        if (
            self.is_split
            and not self._is_stalled
            and not self._attempts_of(delivery)
            and is_for_canaries(self._share, key_of(delivery), delivery[2])
        ):
            return self.canaries
        return self.others

    def _priority_of(self, delivery: Delivery) -> int:
        chunk = delivery[3]
        assert chunk is not None
        return self._priorities[chunk.backlog.identifier]

    # -- canaries without room -------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """See whether something has waited for a canary too long."""
        self._timer = None
        since = self.canaries.since()
        if since is None:
            return
        if not self._is_giving():  # that is not the canaries' fault
            self._timer = self._timers.at(now + self._wait_s, self._look)
        elif since + self._wait_s > now:
            self._timer = self._timers.at(since + self._wait_s, self._look)
        else:
            self._is_stalled = True
            for priority, delivery in self.canaries.take_all():
                self.others.push(priority, delivery, now)
            self._dispatch()

    def stop(self) -> None:
        """No timers any more."""
        for timer in (self._timer, *self._resting):
            if timer is not None:
                timer.cancel()
        self._timer = None
