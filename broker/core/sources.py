"""Queues and streams as the clients of a node reach them: by topics that begin with ``$``.

A publication to ``$queue/{name}`` or ``$stream/{name}`` is sent there; what makes it if it is not
there. A subscription to such a filter (`reading` says what may stand in one) makes the session of
the client a reader. One session has at most one subscription to a queue, and one to a stream for
each group: what is subscribed anew, with whatever options, takes the place of what was there.

Who may do what: sending needs the right to publish to the topic, reading the right to subscribe to
it. Who makes or changes a queue or stream needs both, and for a binding a right that covers its
filter with nothing denied in it (`Access.bind`).

A subscription stays when its queue or stream is deleted; it goes on as soon as there is one of this
name again.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from ganglion.broker.core.access import Access, Client, Decision
from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.definitions import (
    InvalidDefinition,
    options_from_text,
    with_options,
)
from ganglion.broker.core.queue import QUEUE_PREFIX
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.queues import Queues
from ganglion.broker.core.reading import (
    READING_OPTIONS,
    QueueReader,
    SourceFilter,
    StreamReader,
    is_same_start,
    own_group,
    reading_options,
    split_source,
    start_of,
)
from ganglion.broker.core.router import Bound, Router, Subscription
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.stream import STREAM_PREFIX, Stream
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.streams import Streams

if TYPE_CHECKING:
    from ganglion.broker.core.queue import Queue
    from ganglion.broker.core.sessions import Session

__all__ = ["Sources", "may_declare", "may_send"]

_DOLLAR_RULE = "topics that begin with '$' belong to the node (MQTT 4.7.2)"
_RETAIN_RULE = "queues and streams keep every message: they take no retained ones"
_DECLARE_RULE = (
    "only who may both publish to it and subscribe to it makes or changes a queue or stream"
)
_MADE_RULE = "queues and streams are made by who may both publish and subscribe to them"


def may_send(access: Access, client: Client, topic: str, qos: int, retain: bool) -> Decision:
    """Whether the client may publish to this topic, which begins with ``$``."""
    if not topic.startswith((QUEUE_PREFIX, STREAM_PREFIX)):
        return Decision(False, _DOLLAR_RULE)
    if retain:
        return Decision(False, _RETAIN_RULE)
    return access.publish(client, topic, qos, False)


def may_declare(access: Access, client: Client, topic: str, bindings: tuple[str, ...]) -> Decision:
    """Whether the client may make or change what this topic leads to, and add these bindings."""
    for decision in (
        access.subscribe(client, topic, 1),
        access.publish(client, topic, 1, False),
    ):
        if not decision.allowed:
            return Decision(False, f"{decision.rule}; {_DECLARE_RULE}")
    for topic_filter in bindings:
        decision = access.bind(client, topic_filter)
        if not decision.allowed:
            return decision
    return Decision(True, _MADE_RULE)


class Sources:
    """The queues and streams of a node, and who reads them by subscription."""

    def __init__(
        self,
        shelf: Shelf,
        statistics: Statistics,
        router: Router,
        access: Callable[[], Access],
    ) -> None:
        """Make the queues and streams that are recorded. `access` gives the rules in force."""
        self._router = router
        self._access = access
        # By topic: sessions that are connected and subscribe to it, whether it is there or not
        self._subscriptions: dict[str, dict[tuple[Session, str], Subscription]] = {}
        self.queues = Queues(shelf, statistics, self._bind, self._unbind)
        self.streams = Streams(shelf, statistics, self._bind, self._unbind)

    def find(self, topic: str) -> "Queue | Stream | None":
        """The queue or stream that this topic leads to, if there is one."""
        if topic.startswith(STREAM_PREFIX):
            return self.streams.find(topic.removeprefix(STREAM_PREFIX))
        return self.queues.find(topic.removeprefix(QUEUE_PREFIX))

    # -- who may ---------------------------------------------------------------------------------

    def may_send(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        """Whether the client may publish to this topic, which begins with ``$``."""
        access = self._access()
        decision = may_send(access, client, topic, qos, retain)
        if decision.allowed and self.find(topic) is None:
            decision = may_declare(access, client, topic, ())
        return decision

    # -- making them -----------------------------------------------------------------------------

    def make(self, topic: str) -> None:
        """Make what this topic leads to, with default options. Raises `InvalidDefinition`."""
        if topic.startswith(STREAM_PREFIX):
            self.streams.declare(StreamDefinition(name=topic.removeprefix(STREAM_PREFIX)))
        else:
            self.queues.declare(QueueDefinition(name=topic.removeprefix(QUEUE_PREFIX)))

    def define(self, definitions: Iterable[QueueDefinition | StreamDefinition]) -> list[str]:
        """Let these be there and be as they say; why that cannot be, of those that cannot."""
        wrong: list[str] = []
        for definition in definitions:
            try:
                if isinstance(definition, StreamDefinition):
                    self.streams.declare(definition)
                else:
                    self.queues.declare(definition)
            except InvalidDefinition as error:
                wrong.append(str(error))
        return wrong

    def declare(
        self, client: Client, wanted: SourceFilter, options: tuple[tuple[str, str], ...]
    ) -> Decision:
        """Let the queue or stream that a subscription names be there, and be as that says.

        Those of `options` count that it has, and all in the filter. The decision is whether the
        client may; nothing has changed if not. Raises `InvalidDefinition`.
        """
        found = self.find(wanted.topic)
        definition: StreamDefinition | QueueDefinition
        if found is not None:
            definition = found.definition
        elif wanted.prefix == STREAM_PREFIX:
            definition = StreamDefinition(name=wanted.name)
        else:
            definition = QueueDefinition(name=wanted.name)
        readers = READING_OPTIONS[wanted.prefix]
        known = {each.name for each in fields(definition)} - {"name", "bindings"}
        given = [each for each in options if each[0].replace("-", "_") in known]
        given += [each for each in wanted.options if each[0] not in readers]
        changes = options_from_text(definition, given)
        bindings: tuple[str, ...] = ()
        if wanted.binding and wanted.binding not in definition.bindings:
            bindings = (wanted.binding,)
            changes["bindings"] = (*definition.bindings, wanted.binding)
        changed = with_options(definition, changes)
        if found is not None and changed == definition:
            return Decision(True, _MADE_RULE)
        decision = may_declare(self._access(), client, wanted.topic, bindings)
        if decision.allowed:
            if isinstance(changed, StreamDefinition):
                self.streams.declare(changed)
            else:
                self.queues.declare(changed)
        return decision

    # -- reading them ----------------------------------------------------------------------------

    def subscribe(
        self,
        subscription: Subscription,
        wanted: SourceFilter,
        options: tuple[tuple[str, str], ...],
    ) -> Decision:
        """A session subscribes: whether it may. `read` lets it begin.

        `options` are beside those in its filter. Raises `InvalidDefinition`.
        """
        session = subscription.session
        subscription.options = reading_options(wanted, options)
        decision = self._access().subscribe(session.client, wanted.topic, subscription.qos)
        if decision.allowed:
            decision = self.declare(session.client, wanted, options)
        stream = self.streams.find(wanted.name) if wanted.prefix == STREAM_PREFIX else None
        if decision.allowed and stream is not None:
            earlier = session.subscriptions.get(subscription.topic_filter)
            if earlier is not None and not is_same_start(earlier.options, subscription.options):
                session.remove_source(subscription.topic_filter)  # it begins anew
                self._forget_position(earlier)
            group = wanted.group or (own_group(session) if session.is_durable() else "")
            if group and group not in stream.groups:  # recorded together with the subscription
                stream.group(group, start_of(stream, subscription.options))
        return decision

    def read(self, subscription: Subscription) -> None:
        """Let a connected session read what its subscription names, or go on where it does."""
        session, topic_filter = subscription.session, subscription.topic_filter
        wanted = split_source(topic_filter)
        if wanted is None or session.sink is None:
            return
        self._subscriptions.setdefault(wanted.topic, {})[session, topic_filter] = subscription
        if not self._access().subscribe(session.client, wanted.topic, subscription.qos).allowed:
            return
        source = (session.sources or {}).get(topic_filter)
        if source is None:
            found = self.find(wanted.topic)
            if found is None:
                return
            if isinstance(found, Stream):
                source = StreamReader(subscription, found, self._group_of(found, session, wanted))
            else:
                source = QueueReader(subscription, found)
            session.add_source(topic_filter, source)
        else:
            source.set_subscription(subscription)
        source.pull()

    def _group_of(self, stream: Stream, session: "Session", wanted: SourceFilter) -> str:
        """As whose member a session reads; empty: nobody keeps its position."""
        if wanted.group:
            return wanted.group
        group = own_group(session)
        return group if session.is_durable() or group in stream.groups else ""

    def unsubscribe(self, subscription: Subscription) -> None:
        """A session gets no more; what it has and has not acknowledged it may still."""
        session, topic_filter = subscription.session, subscription.topic_filter
        self._forget(subscription)
        source = session.drop_source(topic_filter)
        if source is not None:
            source.stop()
        self._forget_position(subscription)

    def leave(self, session: "Session") -> None:
        """The connection of a session has ended."""
        for subscription in session.subscriptions.values():
            self._forget(subscription)

    def end(self, subscription: Subscription) -> None:
        """The session of a subscription, which is not connected any more, has ended."""
        self._forget_position(subscription)

    def rules_changed(self, session: "Session") -> None:
        """Take from a connected session what it may not read any more, give what it may."""
        for topic_filter, subscription in session.subscriptions.items():
            wanted = split_source(topic_filter)
            if wanted is None:
                continue
            if self._access().subscribe(session.client, wanted.topic, subscription.qos).allowed:
                self.read(subscription)
            else:
                session.remove_source(topic_filter)

    def _forget(self, subscription: Subscription) -> None:
        wanted = split_source(subscription.topic_filter)
        if wanted is None:
            return
        subscriptions = self._subscriptions.get(wanted.topic, {})
        subscriptions.pop((subscription.session, subscription.topic_filter), None)
        if not subscriptions:
            self._subscriptions.pop(wanted.topic, None)

    def _forget_position(self, subscription: Subscription) -> None:
        """A session does not read a stream any more: nobody needs its own position there."""
        wanted = split_source(subscription.topic_filter)
        if wanted is not None and wanted.prefix == STREAM_PREFIX and not wanted.group:
            stream = self.streams.find(wanted.name)
            group = own_group(subscription.session)
            if stream is not None and group in stream.groups:
                stream.delete_group(group)

    # -- they come and go ------------------------------------------------------------------------

    def _bind(self, receiver: Bound, topic_filter: str) -> None:
        self._router.bind(receiver, topic_filter)
        for subscription in list(self._subscriptions.get(topic_filter, {}).values()):
            self.read(subscription)  # it is (perhaps) there again

    def _unbind(self, receiver: Bound, topic_filter: str) -> None:
        self._router.unbind(receiver, topic_filter)
        if topic_filter in self._subscriptions and self.find(topic_filter) is None:
            for session, key in self._subscriptions[topic_filter]:
                session.drop_source(key)  # which is being deleted
