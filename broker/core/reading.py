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

The option ``credit`` says how many messages the client may have unacknowledged, and ``canary`` that
a consumer of a queue is one (`canaries`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from math import isfinite, nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ganglion.broker.core.definitions import (
    InvalidDefinition,
    check_name,
    parse_option,
    split_options,
)
from ganglion.broker.core.message import Message, MessageProperties, Terms
from ganglion.broker.core.queue import QUEUE_PREFIX
from ganglion.broker.core.sessions import UNSENDABLE, Refusal
from ganglion.broker.core.stream import STREAM_PREFIX
from ganglion.broker.core.stream_batches import Record
from ganglion.broker.core.topics import REPLY_PREFIX, split_shared

if TYPE_CHECKING:
    from ganglion.broker.core.queue import Queue
    from ganglion.broker.core.router import Subscription
    from ganglion.broker.core.sessions import Session
    from ganglion.broker.core.stream import Stream
    from ganglion.broker.core.stream_groups import Follower, Member

__all__ = [
    "DELIVERY_COUNT",
    "READING_OPTIONS",
    "SEQUENCE",
    "TIME",
    "InvalidSource",
    "QueueReader",
    "SourceFilter",
    "StreamReader",
    "check_source_topic",
    "is_same_start",
    "is_source",
    "own_group",
    "reading_options",
    "split_source",
    "start_of",
]

READING_OPTIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        QUEUE_PREFIX: frozenset(("credit", "canary")),
        STREAM_PREFIX: frozenset(("credit", "after", "from")),
    }
)
"""Options of a subscription that are about its reader, not about the queue or stream."""
SEQUENCE = "x-sequence"
"""A user property of a record of a stream: its sequence number there."""
TIME = "x-time"
"""The same for when it was appended, in Unix seconds."""
DELIVERY_COUNT = "x-delivery-count"
"""A user property of what is delivered again: how often it was delivered before."""

_QUEUE_REST_S = 1.0
"""How long a consumer gets nothing after a message that it could not be sent: nor could it all the
others like this one, and each of them costs a record."""
_STREAM_REST_S = 0.01
"""The same for a stream, where that costs less and nobody else can take them."""
_CREDIT_MAX = 65_535  # packet identifiers that a client has
_SEQUENCE_DIGITS_MAX = 19
_OWN_GROUPS = "session-"


class InvalidSource(InvalidDefinition):
    """A topic or a filter begins like that of a queue or stream, and cannot be one."""


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
    """The group that shares a stream; empty: none. Those who read a queue share it in any case."""

    @property
    def topic(self) -> str:
        """The topic that leads to the queue or stream, by which rules judge access to it."""
        return self.prefix + self.name

    @property
    def subscription(self) -> str:
        """The filter without what may differ from one SUBSCRIBE to the next."""
        return f"$share/{self.group}/{self.topic}" if self.group else self.topic


def is_source(topic: str) -> bool:
    """Whether a topic or a filter leads to a queue or a stream."""
    if topic.startswith("$share/"):
        shared = split_shared(topic)
        return shared is not None and is_source(shared.topic_filter)
    return topic.startswith((QUEUE_PREFIX, STREAM_PREFIX))


def check_source_topic(topic: str) -> None:
    """Raise `InvalidSource` if a topic name leads to no possible queue or stream though it should.

    Any other topic passes.
    """
    for prefix in (QUEUE_PREFIX, STREAM_PREFIX):
        if topic.startswith(prefix):
            _check_name(topic.removeprefix(prefix), prefix)


def _check_name(name: str, prefix: str) -> None:
    try:
        check_name(name, prefix.strip("$/"))
    except InvalidDefinition as error:
        raise InvalidSource(str(error)) from None


def split_source(topic_filter: str) -> SourceFilter | None:
    """What such a (valid) filter says; None when it is an ordinary one. Raises `InvalidSource`."""
    if topic_filter[:1] != "$":
        return None
    group = ""
    shared = split_shared(topic_filter)
    if shared is not None:
        group, topic_filter = shared.group, shared.topic_filter
    for prefix in (QUEUE_PREFIX, STREAM_PREFIX):
        if topic_filter.startswith(prefix):
            first, slash, binding = topic_filter[len(prefix) :].partition("/")
            name, options = split_options(first)
            _check_name(name, prefix)
            if slash and not binding:
                raise InvalidSource(f"{topic_filter!r} ends with '/'")
            if binding.startswith(("$share/", REPLY_PREFIX)):
                raise InvalidSource(f"{binding!r} cannot be bound")
            if prefix == QUEUE_PREFIX:
                group = ""
            elif group:
                _check_group(group)
            return SourceFilter(prefix, name, tuple(options), binding, group)
    return None


def _check_group(group: str) -> None:
    try:
        check_name(group, "group")
    except InvalidDefinition as error:
        raise InvalidSource(str(error)) from None
    if group.startswith(_OWN_GROUPS):
        raise InvalidSource(f"{group!r} cannot be the name of a group: it is that of a session")


def own_group(session: "Session") -> str:
    """The group that keeps the position of one session that outlives its connection."""
    return f"{_OWN_GROUPS}{sha256(session.client.client_id.encode()).hexdigest()[:32]}"


def reading_options(
    wanted: SourceFilter, others: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """The options about the reader: those in its filter, over `others`, in order of their names.

    Raises `InvalidDefinition` where one says nothing sensible.
    """
    known = READING_OPTIONS[wanted.prefix]
    options = {name: value for name, value in (*others, *wanted.options) if name in known}
    _check_number("credit", options.get("credit", "1"), 1, _CREDIT_MAX)
    parse_option(bool, "canary", options.get("canary", ""))
    if "after" in options:
        _check_number("after", options["after"], 0, 10**_SEQUENCE_DIGITS_MAX - 1)
    if options.get("from", "now") not in ("now", "first"):
        _time_s(options["from"])
    return tuple(sorted(options.items()))


def _check_number(option: str, text: str, least: int, most: int) -> None:
    is_number = text.isascii() and text.isdecimal() and len(text) <= _SEQUENCE_DIGITS_MAX
    if not is_number or not least <= int(text) <= most:
        raise InvalidDefinition(
            f"option {option} is {text!r}; it must be a whole number from {least} to {most}"
        )


def is_same_start(options: Iterable[tuple[str, str]], others: Iterable[tuple[str, str]]) -> bool:
    """Whether two subscriptions to a stream ask for the same place to begin."""
    first, second = dict(options), dict(others)
    return all(first.get(name) == second.get(name) for name in ("after", "from"))


def start_of(stream: "Stream", options: Iterable[tuple[str, str]]) -> int:
    """After which sequence to begin, by the options ``after`` and ``from``.

    Where the stream has not come so far yet, with what comes next.
    """
    given = dict(options)
    after, begin = given.get("after"), given.get("from", "now")
    if after is not None:
        return min(int(after), stream.last)
    if begin == "now":
        return stream.last
    return 0 if begin == "first" else stream.position_at(_time_s(begin))


def _time_s(text: str) -> float:
    """Unix time, in seconds; text without a time zone is UTC."""
    try:
        time_s = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            time_s = nan
        else:
            time_s = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not isfinite(time_s):
        raise InvalidDefinition(
            f"option from is {text!r}; it must be a time (Unix seconds or ISO 8601), 'first' or "
            "'now'"
        )
    return time_s


class QueueReader:
    """The consumer of a queue that a session is; the `Source` of one and the sink of the other."""

    __slots__ = (
        "_consumer",
        "_credit",
        "_is_resting",
        "_is_stopped",
        "_session",
        "_terms",
        "_timers",
    )

    def __init__(self, subscription: "Subscription", queue: "Queue") -> None:
        """With QoS 0 a message counts as done when it is sent."""
        self._session = subscription.session
        self._timers = queue.shelf.timers
        self._is_stopped = self._is_resting = False
        self._consumer = queue.consume(self, is_canary=_is_canary(subscription))
        self.set_subscription(subscription)

    # -- the session calls -----------------------------------------------------------------------

    def set_subscription(self, subscription: "Subscription") -> None:
        """What is delivered from now on is on these terms."""
        self._terms = _terms(subscription, self)
        self._credit = _credit(subscription)
        self._consumer.mark(is_canary=_is_canary(subscription))

    def pull(self) -> None:
        """There may be room."""
        self._consumer.pull()

    def acknowledged(self, number: int) -> None:
        """The client is done with it."""
        self._consumer.acknowledge(number)
        if self._is_stopped:
            self.stop()

    def acknowledged_run(self, numbers: Sequence[int]) -> None:
        """The client is done with all of these."""
        self._consumer.acknowledge_run(numbers)
        if self._is_stopped:
            self.stop()

    def refused(self, number: int, refusal: Refusal) -> None:
        """The client could not do it."""
        if refusal is UNSENDABLE and not self._is_resting:
            self._is_resting = True
            self._timers.after(_QUEUE_REST_S, self._rested)
        if refusal.is_final:
            self._consumer.reject(number, refusal.reason)
        else:
            self._consumer.nack(number, refusal.delay_s)
        if self._is_stopped:
            self.stop()

    def stop(self) -> None:
        """The client wants no more, but may acknowledge what it has."""
        self._is_stopped = True
        if not self._consumer.leases:
            self.close()

    def close(self) -> None:
        """The client is gone."""
        self._is_stopped = True
        self._consumer.close()

    def _rested(self, _now: float) -> None:
        self._is_resting = False
        if not self._is_stopped:
            self.pull()

    # -- the queue calls -------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages the session takes now."""
        if self._is_stopped:
            self.stop()  # perhaps the last ones have run out
            return 0
        if self._is_resting:
            return 0
        # what is not acknowledged when its lease runs out is not its own any more
        return min(self._session.room(), self._credit - len(self._consumer.leases))

    def deliver(self, leases: range, messages: list[Message], attempts: dict[int, int]) -> None:
        """Send them to the client."""
        if attempts:
            messages = [
                _counted(message, attempts[lease]) if lease in attempts else message
                for lease, message in zip(leases, messages, strict=True)
            ]
        self._session.give(leases, messages, self._terms)

    def ended(self) -> None:
        """The queue was deleted; the client goes on waiting, for it may be made again."""


def _counted(message: Message, attempts: int) -> Message:
    about = message.properties or MessageProperties()
    counted = (*about.user_properties, (DELIVERY_COUNT, str(attempts)))
    about = replace(about, user_properties=counted)
    return Message(message.topic, message.payload, message.qos, False, about, message.expires_at)


class StreamReader:
    """The reader of a stream that a session is: as a member of a group, or a mere follower."""

    __slots__ = (
        "_credit",
        "_is_resting",
        "_is_stopped",
        "_member",
        "_session",
        "_source",
        "_terms",
        "_timers",
        "_unacknowledged",
    )

    def __init__(self, subscription: "Subscription", stream: "Stream", group: str) -> None:
        """Read on where the group is; without a group where the subscription says."""
        self._session = session = subscription.session
        self._timers = stream.shelf.timers
        self._unacknowledged = 0
        self._is_stopped = self._is_resting = False
        self.set_subscription(subscription)
        self._member: Member | None = None
        self._source: Follower | Member
        if group:
            found = stream.groups.get(group) or stream.group(
                group, start_of(stream, subscription.options)
            )
            self._source = self._member = found.join(session.pump)
        else:
            self._source = stream.follow(start_of(stream, subscription.options), session.pump)

    def set_subscription(self, subscription: "Subscription") -> None:
        """What is delivered from now on is on these terms."""
        self._terms = _terms(subscription, self)
        self._credit = _credit(subscription)

    def pull(self) -> None:
        """There may be room."""
        session = self._session
        while not self._is_stopped and not self._is_resting:
            room = min(session.room(), self._credit - self._unacknowledged, _AT_ONCE)
            if room <= 0:
                return
            records = self._source.take(room)
            if not records:
                return  # the session is woken when there are
            self._unacknowledged += len(records)
            numbers = [each.sequence for each in records]
            session.give(numbers, list(map(_message, records)), self._terms)

    def acknowledged(self, number: int) -> None:
        """The client is done with it."""
        self._unacknowledged -= 1
        if self._member is not None:
            self._member.acknowledge(number)
            if self._is_stopped and self._unacknowledged <= 0:
                self.close()

    def acknowledged_run(self, numbers: Sequence[int]) -> None:
        """The client is done with all of these."""
        for number in numbers:
            self.acknowledged(number)

    def refused(self, number: int, refusal: Refusal) -> None:
        """The client does not want it: that is as good as read, or it would come for ever."""
        if refusal is UNSENDABLE and not self._is_resting:
            self._is_resting = True
            self._timers.after(_STREAM_REST_S, self._rested)
        self.acknowledged(number)

    def stop(self) -> None:
        """The client wants no more, but may acknowledge what it has."""
        self._is_stopped = True
        if self._member is None or self._unacknowledged <= 0:
            self.close()

    def close(self) -> None:
        """The client is gone."""
        self._is_stopped = True
        self._source.close()

    def _rested(self, _now: float) -> None:
        self._is_resting = False
        if not self._is_stopped:
            self.pull()


_AT_ONCE = 100  # records taken at a time: a client that gets congested leaves the rest


def _terms(subscription: "Subscription", source: QueueReader | StreamReader) -> Terms:
    identifiers = (subscription.identifier,) if subscription.identifier else ()
    return Terms(subscription.qos, False, identifiers, None, source)


def _credit(subscription: "Subscription") -> int:
    for option, value in subscription.options:
        if option == "credit":
            return int(value)
    return _CREDIT_MAX


def _is_canary(subscription: "Subscription") -> bool:
    return any(
        option == "canary" and parse_option(bool, option, value)
        for option, value in subscription.options
    )


def _message(record: Record) -> Message:
    about = record.properties or MessageProperties()
    numbered = (
        *about.user_properties,
        (SEQUENCE, str(record.sequence)),
        (TIME, f"{record.time_s:.3f}"),
    )
    about = replace(about, user_properties=numbered)
    return Message(record.topic, record.payload, 1, False, about)
