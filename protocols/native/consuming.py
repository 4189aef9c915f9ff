"""Consumers of queues."""

from typing import TYPE_CHECKING, Any

from ganglion.broker.core.message import Message
from ganglion.broker.core.queue import QUEUE_PREFIX, Consumer, Queue
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.protocols.native.arguments import options_at, text_at, whole_at
from ganglion.protocols.native.delivering import properties_of
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import CREDIT_MAX, Code, Operation
from ganglion.protocols.native.queue_operations import check_declare, check_read

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["QueueChannel", "consume"]

_AT_ONCE = 256  # messages in one frame: a client that gets congested meanwhile leaves the rest
_JOBS = int(Operation.JOBS)


def consume(connection: "NativeConnection", frame: Frame) -> None:
    """`consume`: become a consumer of a queue."""
    number = whole_at(frame, 1, "id")
    name = text_at(frame, 2, "queue")
    options = options_at(frame, 3)
    credit = options.whole("credit", CREDIT_MAX)
    is_canary = options.flag("canary")
    connection.check_channel(number)
    node = connection.server.node
    check_read(connection, QUEUE_PREFIX + name)
    queue = node.queues.find(name)
    if queue is None and options.flag("declare"):
        check_declare(connection, QUEUE_PREFIX + name)
        queue = node.queues.declare(QueueDefinition(name=name))
    if queue is None:
        queue = node.queues.get(name)
    credit = 1 if credit is None else credit
    channel = QueueChannel(connection, number, queue, credit, is_canary=is_canary)
    connection.channels[number] = channel
    commits = node.journal.commits
    if number:
        connection.answer_durably(number, {"queue": name})
    commits.after_commit(channel.pump)  # the answer comes first


class QueueChannel:
    """One consumer: the sink of the queue, and a channel."""

    __slots__ = ("_connection", "_consumer", "_credit", "_is_open", "_number", "queue")

    def __init__(
        self,
        connection: "NativeConnection",
        number: int,
        queue: Queue,
        credit: int,
        *,
        is_canary: bool,
    ) -> None:
        self._connection = connection
        self._number = number
        self._credit = credit
        self._is_open = False  # until the client has the answer to its request
        self.queue = queue
        self._consumer: Consumer = queue.consume(self, is_canary=is_canary)

    # -- the queue calls -------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages the client takes now."""
        if not self._is_open or self._connection.endpoint.congested:
            return 0
        return min(self._credit - len(self._consumer.leases), _AT_ONCE)

    def deliver(self, leases: range, messages: list[Message], attempts: dict[int, int]) -> None:
        """Send them."""
        connection = self._connection
        node = connection.server.node
        now = node.timers.now
        given = zip(leases, messages, strict=True)
        jobs: list[tuple[Any, ...]]
        if attempts or any(each.properties or each.expires_at is not None for each in messages):
            jobs = [_job(lease, each, attempts.get(lease, 0), now) for lease, each in given]
        else:
            jobs = [(lease, each.topic, each.payload) for lease, each in given]
        connection.traffic.sent += len(jobs)
        data = connection.encode((_JOBS, self._number, jobs))
        connection.traffic.sent_bytes += len(data)
        connection.endpoint.write(data)

    def ended(self) -> None:
        """The queue was deleted."""
        self._connection.ended(
            self._number, Code.NOT_FOUND, f"queue {self.queue.name!r} was deleted"
        )

    # -- the channel -----------------------------------------------------------------------------

    def add_credit(self, count: int) -> None:
        """The client takes so many unsettled messages from now on."""
        self._credit = count
        self.pump()

    def pump(self) -> None:
        """There may be room."""
        self._is_open = True
        self._consumer.pull()

    def recheck(self) -> None:
        """The rules have changed."""
        connection = self._connection
        session = connection.session
        if session is not None:
            topic = QUEUE_PREFIX + self.queue.name
            decision = connection.server.node.access.subscribe(session.client, topic, 1)
            if not decision.allowed:
                self._consumer.close()
                connection.ended(self._number, Code.NOT_ALLOWED, decision.rule)

    def close(self) -> None:
        """The client has left: others get what it has not settled."""
        self._consumer.close()

    # -- settling --------------------------------------------------------------------------------

    def acknowledge(self, leases: tuple[int, ...], *, is_one: bool) -> int:
        """They are done."""
        return self._consumer.acknowledge_run(leases)

    def nack(self, lease: int, delay_s: float | None) -> bool:
        """Return it, after the delay or that of the backoff if None."""
        return self._consumer.nack(lease, delay_s)

    def reject(self, lease: int, reason: str) -> bool:
        """Bury it."""
        return self._consumer.reject(lease, reason)

    def extend(self, lease: int, lease_s: float) -> bool:
        """It is needed for so long from now on."""
        return self._consumer.extend(lease, lease_s)


def _job(lease: int, message: Message, attempts: int, now: float) -> tuple[Any, ...]:
    members = properties_of(message, now)
    members.pop("delay_s", None)  # it is over
    if attempts:
        return (lease, message.topic, message.payload, members or None, attempts)
    if members:
        return (lease, message.topic, message.payload, members)
    return (lease, message.topic, message.payload)
