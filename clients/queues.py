"""Durable queues: consuming with credit, settling, and looking after them.

A `Consumer` gives `Job`s. Each is settled once: acknowledged, given back (nack) or rejected;
leaving ``async with job:`` does it. Acknowledgements are gathered and go out together with what
else is sent, without waiting: that is at least once, as everywhere with queues, and
``ack(confirmed=True)`` waits until it is on disk. When a connection is lost the node gives what was
not settled to somebody else.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypedDict, Unpack

from msgspec import Struct, field

from ganglion.clients.channels import Attached, Channel, Channels, check_credit
from ganglion.clients.codecs import Codec
from ganglion.clients.errors import ClientError, ConnectionLost, LeaseLost, NotFound
from ganglion.clients.link import Link
from ganglion.clients.messages import Message, MessageOptions, Receipt
from ganglion.clients.owed import Owed, OwedChannel, Owing
from ganglion.clients.session import Session
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import BATCH_MAX, Operation

__all__ = [
    "Consumer",
    "Job",
    "Queue",
    "QueueDescription",
    "QueueOptions",
    "Settling",
    "StoredMessage",
]

_NOTHING: Final[dict[str, Any]] = {}


class Settling(Owing):
    """A channel whose items are leased and have to be settled, on one connection."""

    __slots__ = ("_acks",)

    def __init__(self, channel: Channel[Any], link: Link, number: int) -> None:
        super().__init__(channel, link, number)
        self._acks: list[int] = []

    def output(self) -> Iterator[bytes]:
        """The acknowledgements since the last time."""
        acks, self._acks = self._acks, []
        for start in range(0, len(acks), BATCH_MAX):
            leases = acks[start : start + BATCH_MAX]
            yield self.link.conversation.notice(Operation.ACK, 0, self.number, leases)

    def let_go(self) -> None:
        """Nothing that was leased here can be settled any more."""
        self.owed.clear()
        self._acks.clear()

    @property
    def is_busy(self) -> bool:
        """Whether something is leased here that is not settled."""
        return bool(self.owed or self._acks)

    def holds(self, lease: int) -> bool:
        """Whether this can be settled."""
        return lease in self.owed

    def settle_soon(self, operation: Operation, lease: int, *elements: object) -> None:
        """Settle once, with the next that is sent; a lease that is gone is nobody's fault."""
        if self.owed.pop(lease, self) is not None:
            return
        if operation == Operation.ACK:
            self._acks.append(lease)
            self.link.flush_later(self)
        else:
            self.link.notify(operation, 0, self.number, lease, *elements)

    async def settle(
        self, operation: Operation, lease: int, *elements: object, confirmed: bool
    ) -> None:
        """Settle once; with ``confirmed`` waits until it is on disk, and raises `LeaseLost`."""
        if not confirmed:
            self.settle_soon(operation, lease, *elements)
            return
        if self.owed.pop(lease, self) is not None:
            raise LeaseLost("this was settled already, or its connection was lost")
        self.link.flush(self)
        try:
            # A list, for one record of a stream by itself would stand for all before it, too.
            answer = await self.link.call(operation, self.number, [lease], *elements)
        except ClientError as error:
            raise LeaseLost(f"whether this is settled is not known: {error}") from error
        if answer and answer[0] and answer[0].get("gone"):
            raise LeaseLost("the lease had run out: somebody else gets it, or has it")

    async def extend(self, lease: int, lease_s: float) -> None:
        """Keep it for so long from now on. Raises `LeaseLost`."""
        if lease not in self.owed:
            raise LeaseLost("this was settled already, or its connection was lost")
        try:
            (result, *_) = await self.link.call(Operation.EXTEND, self.number, lease, lease_s)
        except (ConnectionLost, NotFound) as error:
            raise LeaseLost(f"somebody else gets it, or has it: {error}") from error
        if result.get("gone"):
            self.owed.pop(lease, None)
            raise LeaseLost("the lease had run out: somebody else gets it, or has it")

    def say_left(self, handle: int, error: BaseException | None) -> None:
        """Settle what its block has not: by how the block was left."""
        if error is None:
            self.settle_soon(Operation.ACK, handle)
        elif isinstance(error, Exception):
            self.settle_soon(Operation.NACK, handle)
        else:  # cancelled: it is no fault of the message, somebody else may have it at once
            self.settle_soon(Operation.NACK, handle, 0)


class Job(Owed, Message, frozen=True, eq=False, kw_only=True):
    """A message of a queue, leased to this program until it is settled."""

    lease: int
    attempts: int = 0
    """How often it was delivered in vain before."""
    at: Settling = field()

    @property
    def handle(self) -> int:
        """The lease."""
        return self.lease

    @property
    def is_held(self) -> bool:
        """Whether it can still be settled: it was not, and its connection lives."""
        return self.at.holds(self.lease)

    async def ack(self, *, confirmed: bool = False) -> None:
        """It is done. ``confirmed`` waits until that is on disk, and raises `LeaseLost`."""
        await self.at.settle(Operation.ACK, self.lease, confirmed=confirmed)

    async def nack(self, delay_s: float | None = None, *, confirmed: bool = False) -> None:
        """It is not done: again after the delay, or without one after the queue's backoff."""
        await self.at.settle(Operation.NACK, self.lease, delay_s, confirmed=confirmed)

    async def reject(self, reason: str = "", *, confirmed: bool = False) -> None:
        """Nobody can do it: to the dead letter queue, with this reason."""
        await self.at.settle(Operation.REJECT, self.lease, reason or None, confirmed=confirmed)

    async def extend(self, lease_s: float) -> None:
        """It takes longer: so many seconds from now on. Raises `LeaseLost`."""
        await self.at.extend(self.lease, lease_s)


class Consumer(OwedChannel[Job]):
    """Jobs of a queue."""

    operation = Operation.CONSUME

    def __init__(
        self,
        channels: Channels,
        codec: Codec,
        queue: str,
        *,
        prefetch: int,
        declare: bool,
        canary: bool,
    ) -> None:
        super().__init__(channels)
        self.queue = queue
        self._codec = codec
        self._prefetch = prefetch
        self._declare = declare
        self._canary = canary

    @property
    def prefetch(self) -> int:
        """How many unsettled jobs this consumer may have at a time."""
        return self._prefetch

    def set_prefetch(self, prefetch: int) -> None:
        """Change that; 0: nothing more for now. What is here stays here."""
        check_credit("prefetch", prefetch, least=0)
        self._prefetch = prefetch
        if self.at is not None:
            self.at.link.notify(Operation.CREDIT, self.at.number, prefetch)

    def check(self) -> None:
        """It has room for at least one."""
        check_credit("prefetch", self._prefetch)

    def opening(self) -> tuple[object, ...]:
        """Queue and options."""
        options: dict[str, Any] = {"credit": self._prefetch}
        if self._declare:
            options["declare"] = True
        if self._canary:
            options["canary"] = True
        return (self.queue, options)

    def attachment(self, link: Link, number: int) -> Attached:
        """Leases are of one connection."""
        return Settling(self, link, number)

    def on_frame(self, frame: Frame, at: Attached) -> None:
        """Jobs came."""
        assert isinstance(at, Settling)
        owed, codec = at.owed, self._codec
        for lease, topic, payload, *more in frame[2]:
            owed[lease] = None
            about = more[0] if more and more[0] else _NOTHING
            attempts = more[1] if len(more) > 1 and more[1] else 0
            self.give(Job(topic, payload, about, codec, lease=lease, attempts=attempts, at=at))


class QueueOptions(TypedDict, total=False):
    """What a queue can be; each is explained in `docs/queues.md`."""

    bindings: list[str]
    """Topic filters whose messages it gets."""
    lease_s: float
    max_deliveries: int
    backoff_s: float
    backoff_max_s: float
    dead_letter: str
    ttl_s: float
    priorities: int
    ordered_by_key: bool
    single_active_consumer: bool
    max_messages: int
    max_bytes: int
    overflow: str
    deduplication_s: float
    canary_share: float


class QueueDescription(Struct, frozen=True):
    """What a queue is and how it does."""

    definition: Mapping[str, Any]
    """Its options, as in `QueueOptions`."""
    statistics: Mapping[str, Any]
    """Counters and gauges, see `docs/queues.md`."""
    paused: bool = False


class StoredMessage(Message, frozen=True, kw_only=True):
    """A message that lies in a queue, looked at without taking it."""

    number: int
    """Its place in the queue."""
    time_s: float
    """When it came, Unix time in seconds."""
    attempts: int = 0


class Queue:
    """A durable queue of the node, by name. Making this object asks nothing of the node."""

    def __init__(self, session: Session, name: str) -> None:
        self.name = name
        self._session = session

    def consume(
        self, *, prefetch: int = 10, declare: bool = False, canary: bool = False
    ) -> Consumer:
        """Jobs of it: ``async with queue.consume() as jobs: async for job in jobs: ...``.

        ``prefetch`` is how many unsettled jobs this program may have at a time. ``declare`` makes
        the queue with default options if it is not there; otherwise that is `NotFound`. A
        ``canary`` gets the queue's ``canary_share`` of the messages.
        """
        return Consumer(
            self._session,
            self._session.settings.codec,
            self.name,
            prefetch=prefetch,
            declare=declare,
            canary=canary,
        )

    async def send(
        self,
        value: object = b"",
        *,
        timeout_s: float | None = None,
        **about: Unpack[MessageOptions],
    ) -> Receipt:
        """Put a message into it, whatever its bindings are. Returns when it is on disk.

        Raises `QueueFull`, `NotAuthorised`, and what `Mesh.publish` raises.
        """
        return await self._session.publish(f"$queue/{self.name}", value, timeout_s, about)

    async def declare(self, **options: Unpack[QueueOptions]) -> QueueDescription:
        """Make it, or change those of its options that are given."""
        result = await self._session.ask_again(Operation.QUEUE_DECLARE, self.name, options or None)
        return QueueDescription(result["definition"], {})

    async def describe(self) -> QueueDescription:
        """What it is and how it does. Raises `NotFound`."""
        result = await self._session.ask_again(Operation.QUEUE_DESCRIBE, self.name)
        return QueueDescription(result["definition"], result["statistics"], result["paused"])

    async def delete(self) -> None:
        """Delete it with all that is in it. Raises `NotFound`."""
        await self._session.ask(Operation.QUEUE_DELETE, self.name)

    async def purge(self) -> int:
        """Forget all messages that no consumer has; how many."""
        return int((await self._session.ask(Operation.QUEUE_PURGE, self.name))["purged"])

    async def pause(self) -> None:
        """Give out nothing until `resume`, over restarts of the node too."""
        await self._session.ask_again(Operation.QUEUE_PAUSE, self.name)

    async def resume(self) -> None:
        """Go on giving out."""
        await self._session.ask_again(Operation.QUEUE_RESUME, self.name)

    async def browse(
        self, *, after: int | None = None, priority: int | None = None, count: int = 100
    ) -> list[StoredMessage]:
        """Look at messages without taking them, behind the number ``after``."""
        wanted = {"after": after, "priority": priority, "count": count}
        options = {name: value for name, value in wanted.items() if value is not None}
        result = await self._session.ask_again(Operation.QUEUE_BROWSE, self.name, options)
        codec = self._session.settings.codec
        return [
            StoredMessage(
                topic,
                payload,
                more[0] if more and more[0] else _NOTHING,
                codec,
                number=number,
                time_s=time_s,
                attempts=attempts,
            )
            for number, time_s, attempts, topic, payload, *more in result["messages"]
        ]

    async def redrive(self, count: int) -> int:
        """Send so many dead letters back to the queues that they came from; how many went."""
        result = await self._session.ask(Operation.QUEUE_REDRIVE, self.name, count)
        return int(result["redriven"])
