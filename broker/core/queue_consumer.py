"""The consumers of a queue: what each has leased, and until when."""

from collections.abc import Sequence
from itertools import count, repeat
from typing import TYPE_CHECKING, Protocol

from ganglion.broker.core.message import Delivery, Message

if TYPE_CHECKING:
    from ganglion.broker.core.queue import Queue
    from ganglion.broker.core.queue_sides import Side

__all__ = ["LEASE_MAX_S", "Consumer", "ConsumerSink"]

LEASE_MAX_S = 366 * 86_400.0
"""How long a message may be leased or come back late, in seconds."""


class ConsumerSink(Protocol):
    """What takes messages for a consumer."""

    def room(self) -> int:
        """How many messages it takes now. After 0 or less it calls `Consumer.pull` in the end."""
        ...

    def deliver(self, leases: range, messages: list[Message], attempts: dict[int, int]) -> None:
        """Take messages, each under its lease, no more than there was room for.

        `attempts` says of some of the leases how often their message was delivered in vain. What
        it cannot take it gives back.
        """
        ...

    def ended(self) -> None:
        """The queue is no more: nothing comes from it, and nothing that came can be settled."""
        ...


class Consumer:
    """One of those that share the messages of a queue; `Queue.consume` makes it."""

    __slots__ = (
        "_last_deadline",
        "are_in_order",
        "is_canary",
        "leases",
        "queue",
        "side",
        "sink",
    )

    def __init__(
        self, queue: "Queue", sink: ConsumerSink, side: "Side", *, is_canary: bool
    ) -> None:
        self.queue = queue
        self.sink = sink
        self.side = side
        """For whom what it is given is."""
        self.is_canary = is_canary
        self.leases: dict[int, tuple[Delivery, float]] = {}
        """What it has and when each lease runs out (monotonic)."""
        self.are_in_order = True
        """Whether the leases run out in the order in which they stand there."""
        self._last_deadline = 0.0

    def pull(self) -> None:
        """It has room: give it what is ready."""
        self.queue.serve(self)

    def mark(self, *, is_canary: bool) -> None:
        """It is a canary from now on, or is none any more; what it has it keeps."""
        self.queue.mark(self, is_canary=is_canary)

    def lease(self, first: int, deliveries: list[Delivery], deadline: float) -> None:
        """It has these from now on until the deadline, under leases that count up from `first`."""
        leases = zip(count(first), zip(deliveries, repeat(deadline), strict=False), strict=False)
        self.leases.update(leases)
        if deadline < self._last_deadline:
            self.are_in_order = False
        self._last_deadline = deadline

    def acknowledge(self, lease: int) -> bool:
        """It is done with the message; False: the lease had run out (or never was)."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        self.queue.settle(found[0])
        return True

    def acknowledge_run(self, leases: Sequence[int]) -> int:
        """It is done with all of these messages, of which some leases may have run out.

        How many it had.
        """
        pop = self.leases.pop
        found = [pop(lease, None) for lease in leases]
        deliveries = [each[0] for each in found if each is not None]
        self.queue.settle_run(deliveries)
        return len(deliveries)

    def nack(self, lease: int, delay_s: float | None = None) -> bool:
        """It could not do it: return it, after the delay or that of the backoff if None."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        self.queue.give_back(found[0], delay_s, "delivered too often")
        self.queue.serve(self)
        return True

    def reject(self, lease: int, reason: str = "rejected") -> bool:
        """Nobody will be able to do it: bury the message, for this reason."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        self.queue.reject(found[0], reason)
        self.queue.serve(self)
        return True

    def extend(self, lease: int, lease_s: float) -> bool:
        """It needs the message for so many seconds from now on, at most a year."""
        found = self.leases.pop(lease, None)
        if found is None:
            return False
        # `max` gives 0 for what is not a number
        deadline = self.queue.shelf.timers.now + min(max(0.0, lease_s), LEASE_MAX_S)
        self.leases[lease] = (found[0], deadline)
        if deadline < self._last_deadline:
            self.are_in_order = False
        self._last_deadline = deadline
        self.queue.watch_lease(deadline)
        return True

    def take_ended(self, now: float) -> list[Delivery]:
        """The messages whose lease has run out; it has them no more."""
        ended: list[int] = []
        for lease, (_, deadline) in self.leases.items():
            if deadline <= now:
                ended.append(lease)
            elif self.are_in_order:
                break
        deliveries = [self.leases.pop(lease)[0] for lease in ended]
        self.are_in_order = self.are_in_order or not self.leases
        return deliveries

    def next_deadline(self) -> float | None:
        """When the first of its leases runs out; None: it has none."""
        if self.are_in_order:
            return next((deadline for _, deadline in self.leases.values()), None)
        return min((deadline for _, deadline in self.leases.values()), default=None)

    def close(self) -> None:
        """It leaves: what it has not settled is ready again at once, in order."""
        self.queue.remove(self)
