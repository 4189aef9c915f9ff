"""Subscriptions of native clients: plain ones, and lanes.

A *plain* subscription belongs to the session of the connection: what it matches comes once for all
plain ones of the client, in the frame that the publisher sent. One with a group, with credit, or
without the client's own messages is a *lane*: a receiver of its own, with deliveries of its own.

To the core a lane is a session of which the node keeps no record. With credit, what exceeds it
waits here, so many messages at most; then the newest or the oldest is dropped and counted, and the
client is told how many.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ganglion.broker.core.canaries import CANARY_SHARE
from ganglion.broker.core.message import Delivery, Message, Terms
from ganglion.broker.core.node import LimitReached
from ganglion.broker.core.reading import is_source
from ganglion.broker.core.router import Subscription
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.topics import check_topic_filter, split_shared
from ganglion.protocols.native.arguments import options_at, text_at, whole_at
from ganglion.protocols.native.delivering import delivery, message_frame
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import CREDIT_MAX, Operation
from ganglion.protocols.native.refusals import invalid

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["Lane", "subscribe", "unsubscribe"]

_BUFFER_DEFAULT = 1000  # messages: a second of a busy topic
_SHARE = "$share/"


def subscribe(connection: "NativeConnection", frame: Frame) -> None:
    """`subscribe`: plain, or as a lane."""
    number = whole_at(frame, 1, "id")
    topic_filter = text_at(frame, 2, "filter")
    options = options_at(frame, 3)
    wants_retained = options.text("retained", "send", "none") != "none"
    group = options.text("group")
    credit = options.whole("credit", CREDIT_MAX)
    buffer = options.whole("buffer", CREDIT_MAX)
    drops_oldest = options.text("overflow", "drop_newest", "drop_oldest") == "drop_oldest"
    own = options.flag("own", default=True)
    if group is not None and not own:
        raise invalid("option own is of no use in a group")
    share = options.part(CANARY_SHARE)
    if share is not None and group is None:
        raise invalid(f"option {CANARY_SHARE} is of a member of a group: it needs option group")
    connection.check_channel(number)
    node, session = connection.server.node, connection.session
    assert session is not None
    if is_source(topic_filter):
        raise invalid("a queue is consumed and a stream is followed, not subscribed to")
    if topic_filter.startswith(_SHARE):
        raise invalid("a group is an option of subscribe, not part of the filter")
    check_topic_filter(topic_filter, node.limits)
    limit = node.limits.subscriptions_per_client_max
    if len(connection.plain) + len(connection.channels) >= limit:
        raise LimitReached(f"subscriptions_per_client_max = {limit} is reached")
    if group is None and credit is None and own:
        _subscribe_plainly(connection, session, number, topic_filter, wants_retained)
        return
    if group is not None:
        if "/" in group or split_shared(f"{_SHARE}{group}/{topic_filter}") is None:
            raise invalid("option group must be a name without / + and #")
        topic_filter = f"{_SHARE}{group}/{topic_filter}"
    lane = Lane(connection, session, number, credit)
    lane.keep(min(_BUFFER_DEFAULT if buffer is None else buffer, limit), drops_oldest)
    subscription = Subscription(lane.session, topic_filter, 0, no_local=not own)
    node.subscribe(subscription, () if share is None else ((CANARY_SHARE, repr(share)),))
    connection.channels[number] = lane
    retained: list[Delivery] = []
    if wants_retained and group is None:
        retained = node.retained_for(subscription)
    connection.answer(number, {"retained": len(retained)})
    if retained:
        lane.session.start_replay(retained)


def _subscribe_plainly(
    connection: "NativeConnection",
    session: Session,
    number: int,
    topic_filter: str,
    wants_retained: bool,
) -> None:
    node = connection.server.node
    if topic_filter not in session.subscriptions:
        node.subscribe(Subscription(session, topic_filter, 0))
    connection.plain[number] = topic_filter
    retained: list[Delivery] = []
    if wants_retained:
        # they are for this subscription alone, and so carry its number
        retained = node.retained_for(Subscription(session, topic_filter, 0, identifier=number))
    connection.answer(number, {"retained": len(retained)})
    if retained:
        session.start_replay(retained)


def unsubscribe(connection: "NativeConnection", number: int) -> None:
    """End a plain subscription; another one may have the same filter."""
    topic_filter = connection.plain.pop(number)
    session = connection.session
    if session is not None and topic_filter not in connection.plain.values():
        connection.server.node.unsubscribe(session, topic_filter)


class Lane:
    """One subscription with deliveries of its own: the `Sink` of a session, and a channel."""

    __slots__ = (
        "_buffer_max",
        "_buffered_bytes",
        "_connection",
        "_credit",
        "_dropped",
        "_drops_oldest",
        "_number",
        "_waiting",
        "session",
    )

    def __init__(
        self, connection: "NativeConnection", owner: Session, number: int, credit: int | None
    ) -> None:
        self._connection = connection
        self._number = number
        self._credit = credit  # None: as fast as the connection takes them
        self._buffer_max = 0
        self._drops_oldest = False
        self._waiting: deque[tuple[Message, Terms]] = deque()
        self._buffered_bytes = 0
        self._dropped = 0
        self.session = Session(owner.client, connection.server.node.journal, 0)
        """What stands for it in the core."""
        self.session.reply_token = owner.reply_token
        self.session.owner = owner
        self.session.connection = self.session.sink = self

    def keep(self, count: int, drops_oldest: bool) -> None:
        """Let so many messages wait for credit."""
        self._buffer_max = count
        self._drops_oldest = drops_oldest

    # -- the session sends (Sink) ----------------------------------------------------------------

    @property
    def carries_requests(self) -> bool:
        """As its connection."""
        return False

    @property
    def congested(self) -> bool:
        """Whether a message would have to wait."""
        return self._credit == 0 or bool(self._waiting) or self._connection.endpoint.congested

    def send(self, packet_id: int, message: Message, terms: Terms, duplicate: bool) -> bool:
        """Send the message, let it wait for credit, or drop and count it."""
        if self._credit is None:
            self._connection.endpoint.offer(self._encode(message, terms), 1)
        elif self._credit > 0 and not self._waiting and not self._connection.endpoint.congested:
            self._send(message, terms)
        else:
            self._wait(message, terms)
        return True

    def _send(self, message: Message, terms: Terms) -> None:
        assert self._credit is not None
        self._credit -= 1
        connection = self._connection
        if self._dropped:
            connection.write(Operation.DROPPED, self._number, self._dropped)
            self._dropped = 0
        connection.endpoint.write(self._encode(message, terms))

    def _encode(self, message: Message, terms: Terms) -> bytes:
        connection = self._connection
        node = connection.server.node
        data = message_frame(message, connection.form, node.timers.now, retained=terms.retain)
        data = delivery(data, connection.form, self._number)
        connection.traffic.sent += 1
        connection.traffic.sent_bytes += len(data)
        return data

    def _wait(self, message: Message, terms: Terms) -> None:
        waiting = self._waiting
        size = message.size_bytes()
        limit = self._connection.server.node.limits.queued_bytes_per_session_max
        while waiting and (len(waiting) >= self._buffer_max or self._buffered_bytes + size > limit):
            self._drop()
            if not self._drops_oldest:
                return
            self._buffered_bytes -= waiting.popleft()[0].size_bytes()
        if not self._buffer_max:
            self._drop()
            return
        waiting.append((message, terms))
        self._buffered_bytes += size

    def _drop(self) -> None:
        self._dropped += 1
        self._connection.server.node.statistics.drop("no credit")

    def outlet(self, form: int) -> None:
        """Nothing goes as it is."""

    def send_run(self, packet_id: int, messages: Sequence[Message], terms: Terms) -> bool:
        """Nothing has a packet identifier here."""
        return False

    def send_release(self, packet_id: int) -> None:
        """There is no QoS 2 here."""

    def taken_over(self) -> None:
        """The session has no name that another connection could ask for."""

    def access_changed(self) -> None:
        """The connection is told, and calls `recheck`."""

    def expel(self, rule: str) -> None:
        """The connection is told."""

    def drain(self) -> None:
        """The connection is told."""

    # -- the channel -----------------------------------------------------------------------------

    def add_credit(self, count: int) -> None:
        """The client takes so many messages more."""
        if self._credit is None:
            raise invalid("the subscription has no credit")
        self._credit = min(self._credit + count, CREDIT_MAX)
        self.pump()

    def pump(self) -> None:
        """Send what waits, as far as credit and the connection allow."""
        waiting = self._waiting
        endpoint = self._connection.endpoint
        timers = self._connection.server.node.timers
        while waiting and self._credit and not endpoint.congested:
            message, terms = waiting.popleft()
            self._buffered_bytes -= message.size_bytes()
            if message.expires_at is not None and message.expires_at <= timers.now:
                self._connection.server.node.statistics.drop("message expired")
            else:
                self._send(message, terms)
        self.session.pump()

    def recheck(self) -> None:
        """Drop what waits and may not be received any more."""
        node = self._connection.server.node
        kept: deque[tuple[Message, Terms]] = deque()
        for message, terms in self._waiting:
            if node.may_receive(self.session, message.topic):
                kept.append((message, terms))
            else:
                self._buffered_bytes -= message.size_bytes()
                node.statistics.drop("not allowed any more")
        self._waiting = kept

    def close(self) -> None:
        """The client has left: others in its group get what it was not sent."""
        node = self._connection.server.node
        for topic_filter in list(self.session.subscriptions):
            node.unsubscribe(self.session, topic_filter)
        waiting, self._waiting = self._waiting, deque()
        self.session.connection = self.session.sink = None
        for message, terms in waiting:
            if terms.group is not None:
                node.give_to_another(message, terms, self.session)
