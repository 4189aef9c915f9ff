"""What a client's session reads beside what is routed to it: queues and streams.

A subscription to ``$queue/{name}`` makes the session one of the queue's consumers. More of a filter
than that also says what the queue is to be:

    $queue/{name}[?option=value&…][/{topic filter}]

makes the queue if it is not there, with these options, and binds the topic filter to it. A
subscription of a session that outlives its connection is taken up again when the client is back.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ganglion.broker.core.definitions import InvalidDefinition, split_options
from ganglion.broker.core.message import Message, MessageProperties, Terms
from ganglion.broker.core.queue import QUEUE_PREFIX

if TYPE_CHECKING:
    from ganglion.broker.core.queue import Queue
    from ganglion.broker.core.sessions import Session

__all__ = [
    "DELIVERY_COUNT",
    "STREAM_PREFIX",
    "QueueReader",
    "SourceFilter",
    "is_source",
    "split_source",
]

STREAM_PREFIX = "$stream/"
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

    @property
    def topic(self) -> str:
        """The topic that leads to the queue or stream, by which rules judge access to it."""
        return self.prefix + self.name


def is_source(topic: str) -> bool:
    """Whether a topic or a filter leads to a queue or a stream."""
    return topic.startswith((QUEUE_PREFIX, STREAM_PREFIX))


def split_source(topic_filter: str) -> SourceFilter | None:
    """What such a filter says; None when it is an ordinary one. Raises `InvalidDefinition`."""
    for prefix in (QUEUE_PREFIX, STREAM_PREFIX):
        if topic_filter.startswith(prefix):
            first, _, binding = topic_filter[len(prefix) :].partition("/")
            name, options = split_options(first)
            if topic_filter.endswith("/") and not binding:
                raise InvalidDefinition(f"{topic_filter!r} ends with '/'")
            return SourceFilter(prefix, name, tuple(options), binding)
    return None


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

    def deliver(self, lease: int, message: Message, attempts: int) -> bool:
        """Send it to the client; False when the client cannot take it."""
        if attempts:
            about = message.properties or MessageProperties()
            counted = (*about.user_properties, (DELIVERY_COUNT, str(attempts)))
            about = replace(about, user_properties=counted)
            message = Message(
                message.topic, message.payload, message.qos, False, about, message.expires_at
            )
        terms = self._terms
        if terms.qos:
            self._session.give(message, terms, lease)  # says `refused` if it cannot be sent
            return True
        if self._session.give(message, terms, lease):
            self._consumer.acknowledge(lease)
            return True
        return False
