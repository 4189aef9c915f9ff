"""What a client's session reads beside what is routed to it: queues and streams.

A subscription to ``$queue/{name}`` makes the session one of the queue's consumers. More of a filter
than that also says what the queue is to be:

    $queue/{name}[?option=value&…][/{topic filter}]

makes the queue if it is not there, with these options, and binds the topic filter to it. A
subscription of a session that outlives its connection is taken up again when the client is back.

``$stream/{name}[?option=value&…][/{topic filter}]`` reads a stream, from what comes next on; with
the option ``after`` from behind a sequence, with ``from`` from a time on (Unix seconds, ISO 8601,
or ``first``). ``$share/{group}/$stream/…`` reads as a member of a group, which keeps a position. So
does a session that outlives its connection, as a group of its own.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from ganglion.broker.core.definitions import InvalidDefinition, split_options
from ganglion.broker.core.message import Message, MessageProperties, Terms
from ganglion.broker.core.queue import QUEUE_PREFIX
from ganglion.broker.core.stream import STREAM_PREFIX
from ganglion.broker.core.stream_batches import Record
from ganglion.broker.core.topics import split_shared

if TYPE_CHECKING:
    from ganglion.broker.core.queue import Queue
    from ganglion.broker.core.sessions import Session
    from ganglion.broker.core.stream import Stream
    from ganglion.broker.core.stream_groups import Follower, Member

__all__ = [
    "DELIVERY_COUNT",
    "SEQUENCE",
    "START_OPTIONS",
    "TIME",
    "QueueReader",
    "SourceFilter",
    "StreamReader",
    "check_start",
    "is_source",
    "own_group",
    "split_source",
    "start_of",
]

START_OPTIONS = frozenset(("after", "from"))
"""Options of a subscription to a stream: where to begin."""
SEQUENCE = "x-sequence"
"""A user property of a record of a stream: its sequence number there."""
TIME = "x-time"
"""The same for when it was appended, in Unix seconds."""
DELIVERY_COUNT = "x-delivery-count"
"""A user property of what is delivered again: how often it was delivered before."""


@dataclass(frozen=True, slots=True)
class SourceFilter:
    """A topic filter that stands for a queue or a stream."""

    prefix: str
    """`QUEUE_PREFIX` or `STREAM_PREFIX`."""
    name: str
    options: tuple[tuple[str, str], ...]
    binding: str
    """The topic filter to bind; empty: none."""
    group: str
    """The name of the shared subscription; empty: none."""

    @property
    def topic(self) -> str:
        """The topic that leads to the queue or stream, by which rules judge access to it."""
        return self.prefix + self.name


def is_source(topic: str) -> bool:
    """Whether a topic or a filter leads to a queue or a stream."""
    if topic.startswith("$share/"):
        shared = split_shared(topic)
        return shared is not None and is_source(shared.topic_filter)
    return topic.startswith((QUEUE_PREFIX, STREAM_PREFIX))


def split_source(topic_filter: str) -> SourceFilter | None:
    """What such a filter says; None when it is an ordinary one. Raises `InvalidDefinition`."""
    group = ""
    shared = split_shared(topic_filter) if topic_filter.startswith("$share/") else None
    if shared is not None:
        group, topic_filter = shared.group, shared.topic_filter
    for prefix in (QUEUE_PREFIX, STREAM_PREFIX):
        if topic_filter.startswith(prefix):
            first, _, binding = topic_filter[len(prefix) :].partition("/")
            name, options = split_options(first)
            if topic_filter.endswith("/") and not binding:
                raise InvalidDefinition(f"{topic_filter!r} ends with '/'")
            return SourceFilter(prefix, name, tuple(options), binding, group)
    return None


def own_group(client_id: str) -> str:
    """The group that keeps the position of one session that outlives its connection."""
    return f"session-{sha256(client_id.encode()).hexdigest()[:32]}"


def check_start(options: dict[str, str]) -> None:
    """Raise `InvalidDefinition` where the options ``after`` and ``from`` say nothing sensible."""
    after = options.get("after", "0")
    if not after.isdecimal() or not after.isascii() or len(after) > _SEQUENCE_DIGITS_MAX:
        raise InvalidDefinition(f"option after is {after!r}; it must be a sequence number")
    if options.get("from", "now") not in ("now", "first"):
        _time_s(options["from"])


def start_of(stream: "Stream", options: dict[str, str]) -> int | None:
    """After which sequence to begin, by the options ``after`` and ``from``; None: with what comes.

    Raises `InvalidDefinition`.
    """
    check_start(options)
    after, begin = options.get("after"), options.get("from", "now")
    if after is not None:
        return int(after)
    if begin == "now":
        return None
    return 0 if begin == "first" else stream.position_at(_time_s(begin))


def _time_s(text: str) -> float:
    """Unix time, in seconds."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidDefinition(
            f"option from is {text!r}; it must be a time (Unix seconds or ISO 8601), 'first' or "
            "'now'"
        ) from None


_SEQUENCE_DIGITS_MAX = 19


class QueueReader:
    """The consumer of a queue that a session is; the `Source` of one and the sink of the other."""

    __slots__ = ("_consumer", "_session", "_terms")

    def __init__(self, session: "Session", queue: "Queue", qos: int, identifier: int) -> None:
        """With QoS 0 a message counts as done when it is sent."""
        self._session = session
        self._terms = Terms(qos, False, (identifier,) if identifier else (), None, self)
        self._consumer = queue.consume(self)

    # -- the session calls -----------------------------------------------------------------------

    def pull(self) -> None:
        """There may be room."""
        self._consumer.pull()

    def acknowledged(self, number: int) -> None:
        """The client is done with it."""
        self._consumer.acknowledge(number)

    def refused(self, number: int) -> None:
        """The client could not do it."""
        self._consumer.nack(number)

    def close(self) -> None:
        """The client is gone."""
        self._consumer.close()

    # -- the queue calls -------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages the session takes now."""
        return self._session.room()

    def deliver(self, leases: list[tuple[int, Message]], attempts: dict[int, int]) -> None:
        """Send them to the client."""
        if attempts:
            leases = [
                (lease, _counted(message, attempts[lease]) if lease in attempts else message)
                for lease, message in leases
            ]
        self._session.give(leases, self._terms)


def _counted(message: Message, attempts: int) -> Message:
    about = message.properties or MessageProperties()
    counted = (*about.user_properties, (DELIVERY_COUNT, str(attempts)))
    about = replace(about, user_properties=counted)
    return Message(message.topic, message.payload, message.qos, False, about, message.expires_at)


class StreamReader:
    """The reader of a stream that a session is: as a member of a group, or a mere follower."""

    __slots__ = ("_member", "_session", "_source", "_terms")

    def __init__(
        self,
        session: "Session",
        stream: "Stream",
        qos: int,
        identifier: int,
        *,
        group: str,
        after: int | None,
    ) -> None:
        """Read behind `after`, None: what comes. An empty `group`: nobody keeps the position."""
        self._session = session
        self._terms = Terms(qos, False, (identifier,) if identifier else (), None, self)
        self._member: Member | None = None
        last = stream.last
        self._source: Follower | Member
        if group:
            if group not in stream.groups:
                stream.group(group, last if after is None else after)
            self._source = self._member = stream.group(group).join(session.pump)
        else:
            self._source = stream.follow(last if after is None else after, session.pump)

    def pull(self) -> None:
        """There may be room."""
        session = self._session
        while (room := session.room()) > 0:
            records = self._source.take(min(room, _AT_ONCE))
            session.give([(each.sequence, _message(each)) for each in records], self._terms)
            if len(records) < min(room, _AT_ONCE):
                return

    def acknowledged(self, number: int) -> None:
        """The client is done with it."""
        if self._member is not None:
            self._member.acknowledge(number)

    def refused(self, number: int) -> None:
        """The client does not want it: that is as good as read, or it would come for ever."""
        self.acknowledged(number)

    def close(self) -> None:
        """The client is gone."""
        self._source.close()


_AT_ONCE = 100  # records taken at a time: a client that gets congested leaves the rest


def _message(record: Record) -> Message:
    about = record.properties or MessageProperties()
    numbered = (
        *about.user_properties,
        (SEQUENCE, str(record.sequence)),
        (TIME, f"{record.time_s:.3f}"),
    )
    about = replace(about, user_properties=numbered)
    return Message(record.topic, record.payload, 1, False, about)
