"""A client's state: its subscriptions, what waits for it, what is on the way to it.

A session outlives its connection when its expiry interval is above zero (MQTT 5.0 section 4.1).
While a connection is there it is the session's `Sink`. Messages above QoS 0 get a packet identifier
when they are sent, as many at a time as the window allows (section 4.9), and wait in order behind
it. A session that outlives its connection is durable: what is queued for it waits in a `Backlog` on
disk, and is sent only after the commit.

Besides what is routed to it a session gets what its client takes from queues and streams: each such
`Source` is asked to go on whenever there is room in the window.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ganglion.broker.core.access import Client
from ganglion.broker.core.backlog import Backlog
from ganglion.broker.core.message import PLAIN_TERMS, Delivery, Message, Terms
from ganglion.broker.core.router import Outlet, Subscription
from ganglion.broker.core.statistics import Traffic
from ganglion.broker.core.timers import Timer

if TYPE_CHECKING:
    from ganglion.broker.core.journal import Journal

__all__ = [
    "NEVER_EXPIRES",
    "RELEASED",
    "UNSENDABLE",
    "Refusal",
    "Session",
    "Sink",
    "Source",
    "Will",
]

NEVER_EXPIRES = 0xFFFF_FFFF
"""A session expiry interval that means what it says (MQTT 5.0 section 3.1.2.11.2)."""

RELEASED = None
"""In `Session.inflight`: the QoS 2 message was received (PUBREC); PUBCOMP is awaited."""


class Refusal(NamedTuple):
    """How a client refuses a message that it was given."""

    is_final: bool = False
    """Nobody will be able to do it."""
    delay_s: float | None = None
    """When it may come again, in seconds from now; None: as the queue has it."""
    reason: str = "rejected"
    """Of a final refusal."""


UNSENDABLE = Refusal()
"""The client cannot be sent this message, and was not."""


class Source(Protocol):
    """A queue or a stream that the client of a session reads from."""

    def set_subscription(self, subscription: Subscription) -> None:
        """What is given from now on is on the terms of this subscription."""
        ...

    def pull(self) -> None:
        """There may be room: give the session what is ready, with `Session.give`."""
        ...

    def acknowledged(self, number: int) -> None:
        """The client is done with what was given under this number."""
        ...

    def acknowledged_run(self, numbers: Sequence[int]) -> None:
        """The same of many at a time."""
        ...

    def refused(self, number: int, refusal: Refusal) -> None:
        """The client could not do it, or it could not be sent."""
        ...

    def stop(self) -> None:
        """Give nothing more; what was given may still be acknowledged."""
        ...

    def close(self) -> None:
        """The client is gone: take back what it has not acknowledged."""
        ...


class Sink(Protocol):
    """The connection through which the client of a session is reached."""

    @property
    def congested(self) -> bool:
        """Too much waits to be sent: only what must go should be given to it."""
        ...

    @property
    def carries_requests(self) -> bool:
        """Whether its client sees a message's response topic, and can answer."""
        ...

    def send(self, packet_id: int, message: Message, terms: Terms, duplicate: bool) -> bool:
        """Send the message; False when this client cannot take it and never will."""
        ...

    def send_run(self, packet_id: int, messages: Sequence[Message], terms: Terms) -> bool:
        """Send QoS 1 messages, this packet identifier for the first and the next ones in a row.

        False, and none is sent, when they are not all alike and have to be sent one by one.
        """
        ...

    def send_release(self, packet_id: int) -> None:
        """Send PUBREL for a QoS 2 message."""
        ...

    def outlet(self, form: int) -> tuple[Outlet, Traffic] | None:
        """As `Receiver.outlet`."""
        ...

    def taken_over(self) -> None:
        """Another connection has opened the session: close at once, and leave the session alone."""
        ...

    def access_changed(self) -> None:
        """The rules of access have changed: forget what was allowed."""
        ...

    def expel(self, rule: str) -> None:
        """The client may not be connected any more, by this rule."""
        ...

    def drain(self) -> None:
        """The node stops: say goodbye, flush and close."""
        ...


class Will:
    """What is published when the connection ends without a goodbye (MQTT 5.0 section 3.1.2.5)."""

    __slots__ = ("delay_s", "expiry_s", "message")

    def __init__(self, message: Message, delay_s: int, expiry_s: int | None = None) -> None:
        self.message = message
        self.delay_s = delay_s
        self.expiry_s = expiry_s
        """Its Message Expiry Interval, which begins when it is published; None: it has none."""


class Session:
    """The state of one client identifier."""

    __slots__ = (
        "_journal",
        "_next_id",
        "backlog",
        "client",
        "connection",
        "expiry_s",
        "inflight",
        "owner",
        "queue",
        "queued_bytes",
        "received",
        "replay",
        "reply_token",
        "resending",
        "sink",
        "sources",
        "subscription_cost",
        "subscriptions",
        "timer",
        "unresolved",
        "will",
        "will_timer",
        "window",
    )

    def __init__(
        self, client: Client, journal: "Journal", expiry_s: int, backlog: Backlog | None = None
    ) -> None:
        self.client = client
        """Who opened it; the client identifier belongs to that user."""
        self.owner: Session | None = None
        """The session of the client that this one stands beside, for a part of what it reads."""
        self.expiry_s = expiry_s
        """How long it outlives its connection, in seconds; 0: not at all."""
        self.connection: Sink | None = None
        """The connection that has the session, from before it greets its client."""
        self.sink: Sink | None = None
        """The same once the client has been greeted, and may be sent to."""
        self.subscriptions: dict[str, Subscription] = {}
        self.subscription_cost = 0
        """What `subscriptions` count against `Limits.subscriptions_per_client_max`."""
        self.window = 1
        """How many messages above QoS 0 may be on the way (the client's Receive Maximum)."""
        self.inflight: dict[int, Delivery | None] = {}
        """Sent and not acknowledged, by packet identifier, in order; or `RELEASED`."""
        self.queue: deque[Delivery] | None = None
        """What waits behind the window, in memory only."""
        self.queued_bytes = 0
        self.backlog: Backlog | None = None
        """What waits behind the window and outlives the connection, that on the way included. A
        session that will end with its connection after all keeps the one that it has."""
        self.unresolved = 0
        """How many of `inflight` were read from the store without their messages."""
        self.sources: dict[str, Source] | None = None
        """The queues and streams that its client reads from, by subscription."""
        self.replay: deque[Delivery] | None = None
        """Retained messages for new subscriptions, on their way at the client's pace."""
        self.received: set[int] | None = None
        """Packet identifiers of QoS 2 messages that came in and are not released (4.3.3)."""
        self.will: Will | None = None
        self.will_timer: Timer | None = None
        self.timer: Timer | None = None
        """When the session expires."""
        self.resending: deque[int] | None = None
        """Identifiers in `inflight` that a new connection has not been sent yet."""
        self.reply_token: str | None = None
        """The level under ``_reply/`` that only this client may read."""
        self._journal = journal
        self._next_id = 0
        if backlog is not None:
            self._keep_in(backlog)

    def is_durable(self) -> bool:
        """Whether it outlives its connection, and so is recorded."""
        return self.expiry_s > 0

    def make_durable(self) -> None:
        """It is to outlive its connection: what waits for it from now on is kept on disk."""
        if self.backlog is None:
            self._keep_in(self._journal.shelf.create())

    def _keep_in(self, backlog: Backlog) -> None:
        self.backlog = backlog
        backlog.on_ready = self.pump

    # -- to the client ---------------------------------------------------------------------------

    def deliver(self, message: Message, terms: Terms) -> None:
        """Send the message on these terms, now or when its turn comes, or drop and count it."""
        sink = self.sink
        if terms.qos == 0:
            if sink is None:
                self._journal.statistics.drop("client is offline")
            else:
                sink.send(0, message, terms, False)
        elif self.backlog is not None:
            if self._has_room_in(self.backlog, message):
                self.backlog.append(message, terms)
        elif (
            sink is not None
            and not self.queue
            and len(self.inflight) < self.window
            and not sink.congested
        ):
            self._send((message, terms, 0, None), sink)
        elif self._has_room_for(message):
            self._append((message, terms, 0, None))

    def outlet(self, form: int) -> tuple[Outlet, Traffic] | None:
        """As `Receiver.outlet`."""
        return self.sink.outlet(form) if self.sink is not None else None

    def readiness(self, qos: int) -> int:
        """As a member of a shared subscription.

        0: takes a message at once; 1: connected but busy; 2: away, it would wait; 3: cannot.
        """
        sink = self.sink
        if sink is None:
            return 2 if qos and self.expiry_s else 3
        if sink.congested or (qos and (self.is_behind or len(self.inflight) >= self.window)):
            return 1
        return 0

    @property
    def is_behind(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(
            self.queue
            or self.replay
            or self.resending
            or (self.backlog is not None and not self.backlog.is_empty)
        )

    def room(self) -> int:
        """How many messages of a source it can send now, behind what waits in itself."""
        sink = self.sink
        if sink is None or sink.congested or self.is_behind:
            return 0
        return self.window - len(self.inflight)

    def give(self, numbers: Sequence[int], messages: Sequence[Message], terms: Terms) -> None:
        """Send messages of a source, which have these numbers there; there is room for them.

        The source is told of those that the client cannot take.
        """
        source, sink = terms.source, self.sink
        assert source is not None
        if sink is None:
            return
        send = sink.send
        refused: list[int] = []  # told afterwards: the source may give more then
        if not terms.qos:
            for number, message in zip(numbers, messages, strict=True):
                if send(0, message, terms, False):
                    source.acknowledged(number)
                else:
                    refused.append(number)
        elif len(messages) < _RUN_MIN or not self._give_run(numbers, messages, terms, sink):
            inflight = self.inflight
            packet_id = self._next_id
            for number, message in zip(numbers, messages, strict=True):
                packet_id = packet_id % 65_535 + 1
                while packet_id in inflight:
                    packet_id = packet_id % 65_535 + 1
                inflight[packet_id] = (message, terms, number, None)
                if not send(packet_id, message, terms, False):
                    del inflight[packet_id]
                    refused.append(number)
            self._next_id = packet_id
        for number in refused:
            source.refused(number, UNSENDABLE)

    def _give_run(
        self, numbers: Sequence[int], messages: Sequence[Message], terms: Terms, sink: Sink
    ) -> bool:
        """Send them all at once, if they are alike: that costs a fifth of one by one."""
        first = self._next_id + 1
        packet_ids = range(first, first + len(messages))
        inflight = self.inflight
        if terms.qos != 1 or packet_ids.stop > 65_536 or not inflight.keys().isdisjoint(packet_ids):
            return False
        if not sink.send_run(first, messages, terms):
            return False
        given = zip(messages, repeat(terms), numbers, repeat(None), strict=False)
        inflight.update(zip(packet_ids, given, strict=True))
        self._next_id = packet_ids[-1]
        return True

    def pump(self) -> None:
        """Send as much of what waits as the window and the connection allow."""
        sink = self.sink
        if sink is None:
            return
        if self.resending:
            self._pump_resending(self.resending, sink)
            if self.resending:
                return
        while True:
            if self.queue:
                self._pump_queue(sink)
            elif self.backlog is not None:
                self._pump_backlog(self.backlog, sink)
            # retained messages keep their order with what waits: they come when that is sent
            if not self.replay or self.queue or sink.congested:
                break
            if self.backlog is not None and not self.backlog.is_empty:
                break
            message, terms, _, _ = self.replay.popleft()
            if self._journal.is_retained(message):
                self.deliver(message, terms)
        sources = self.sources
        if sources and len(self.inflight) < self.window:
            for source in list(sources.values()):
                source.pull()
            if len(sources) > 1:  # another one is first next time
                first = next(iter(sources))
                sources[first] = sources.pop(first)

    def _pump_resending(self, resending: deque[int], sink: Sink) -> None:
        inflight = self.inflight
        while resending and len(inflight) - len(resending) < self.window and not sink.congested:
            packet_id = resending.popleft()
            if packet_id not in inflight:
                continue
            delivery = inflight[packet_id]
            if delivery is None:  # RELEASED
                sink.send_release(packet_id)
            elif not sink.send(packet_id, delivery[0], delivery[1], True):
                self.settle(packet_id, delivery)

    def _pump_queue(self, sink: Sink) -> None:
        queue = self.queue
        now = self._journal.timers.now
        while queue and len(self.inflight) < self.window and not sink.congested:
            delivery = queue.popleft()
            message = delivery[0]
            self._count_queued(-1, -message.size_bytes())
            if message.expires_at is not None and message.expires_at <= now:
                self._journal.statistics.drop("message expired")
            else:
                self._send(delivery, sink)

    def _pump_backlog(self, backlog: Backlog, sink: Sink) -> None:
        now = self._journal.timers.now
        while len(self.inflight) < self.window and not sink.congested:
            delivery = backlog.take()
            if delivery is None:
                return
            message = delivery[0]
            if message.expires_at is not None and message.expires_at <= now:
                backlog.settle(delivery)
                self._journal.statistics.drop("message expired")
            else:
                self._send(delivery, sink)

    def _send(self, delivery: Delivery, sink: Sink) -> bool:
        """Send it under a packet identifier; False when the client cannot take it."""
        inflight = self.inflight
        packet_id = self._next_id + 1
        if packet_id > 65_535:
            packet_id = 1
        while packet_id in inflight:
            packet_id = packet_id % 65_535 + 1
        self._next_id = packet_id
        inflight[packet_id] = delivery
        if delivery[3] is not None and self.expiry_s:
            self._journal.put_in_flight(self, packet_id, delivery)
            if delivery[1].qos == 2:
                # A client that has it must find the same identifier after a crash (4.3.3).
                send = partial(self._send_recorded, packet_id, delivery, sink)
                self._journal.commits.after_commit(send)
                return True
        if sink.send(packet_id, delivery[0], delivery[1], False):
            return True
        self.settle(packet_id, delivery)
        return False

    def _send_recorded(self, packet_id: int, delivery: Delivery, sink: Sink) -> None:
        # with another connection `resume` has sent it
        if (
            self.sink is sink
            and self.inflight.get(packet_id) is delivery
            and not sink.send(packet_id, delivery[0], delivery[1], False)
        ):
            self.settle(packet_id, delivery)

    def _has_room_in(self, backlog: Backlog, message: Message) -> bool:
        limits = self._journal.limits
        waiting = backlog.waiting - self.unresolved
        if waiting > 0 and (
            waiting >= limits.queued_messages_per_session_max
            or backlog.size_bytes + message.size_bytes() > limits.queued_bytes_per_session_max
        ):
            self._journal.statistics.drop("session queue is full")
            return False
        return True

    def _has_room_for(self, message: Message) -> bool:
        limits = self._journal.limits
        if self.queue and (
            len(self.queue) >= limits.queued_messages_per_session_max
            or self.queued_bytes + message.size_bytes() > limits.queued_bytes_per_session_max
        ):
            self._journal.statistics.drop("session queue is full")
            return False
        return True

    def _append(self, delivery: Delivery) -> None:
        if self.queue is None:
            self.queue = deque()
        self.queue.append(delivery)
        self._count_queued(1, delivery[0].size_bytes())

    def _count_queued(self, count: int, size_bytes: int) -> None:
        self.queued_bytes += size_bytes
        statistics = self._journal.statistics
        statistics.queued_messages += count
        statistics.queued_bytes += size_bytes

    def discard_queue(self) -> None:
        """The session ends: nothing waits for it any more, on disk neither."""
        if self.queue:
            self._count_queued(-len(self.queue), -self.queued_bytes)
            self.queue = None
        backlog, self.backlog = self.backlog, None
        if backlog is not None:
            for delivery in self.inflight.values():
                if delivery is not None and delivery[3] is not None:
                    backlog.settle(delivery)
            backlog.discard()

    # -- acknowledgements ------------------------------------------------------------------------

    def acknowledged(self, packet_id: int, refusal: Refusal | None = None) -> bool:
        """PUBACK came, or a PUBREC that refuses: whether such a message was on the way.

        A message of a queue goes back there with a `refusal` (a reason of 0x80 or above).
        """
        delivery = self.inflight.get(packet_id)
        if delivery is None:
            return False
        self.settle(packet_id, delivery, refusal)
        return True

    def received_by_client(self, packet_id: int) -> bool:
        """PUBREC came: whether such a message was on the way. PUBREL is to follow."""
        if packet_id not in self.inflight:
            return False
        delivery = self.inflight[packet_id]
        if delivery is not None:  # not RELEASED yet
            self.inflight[packet_id] = RELEASED
            if delivery[3] is not None:
                delivery[3].backlog.settle(delivery)
                if self.expiry_s:
                    self._journal.put_released(self, packet_id)
        return True

    def completed(self, packet_id: int) -> bool:
        """PUBCOMP came: whether it was awaited."""
        if self.inflight.get(packet_id, self) is not RELEASED:
            return False
        del self.inflight[packet_id]
        if self.expiry_s:
            self._journal.forget_in_flight(self, packet_id)
        return True

    def settle(self, packet_id: int, delivery: Delivery, refusal: Refusal | None = None) -> None:
        """What was sent under this identifier is done with, or refused."""
        del self.inflight[packet_id]
        source = delivery[1].source
        if source is not None:
            if refusal is not None:
                source.refused(delivery[2], refusal)
            else:
                source.acknowledged(delivery[2])
        elif delivery[3] is not None:
            if self.expiry_s:
                self._journal.forget_in_flight(self, packet_id)
            delivery[3].backlog.settle(delivery)

    def settle_run(self, packet_ids: list[int]) -> bool:
        """PUBACKs came for all of these; False, and nothing is done, unless they are all alike.

        That is, given by one source, or on the way in memory only.
        """
        inflight = self.inflight
        count = len(packet_ids)
        # by columns: a third of the time of a look at each
        found = list(filter(None, map(inflight.get, packet_ids)))
        if len(found) != count or len(set(packet_ids)) != count:
            return False
        _, all_terms, numbers, chunks = zip(*found, strict=True)
        terms = all_terms[0]
        if terms.qos != 1 or all_terms.count(terms) != count or chunks.count(None) != count:
            return False
        for packet_id in packet_ids:
            del inflight[packet_id]
        if terms.source is not None:
            terms.source.acknowledged_run(numbers)
        return True

    # -- connections come and go -----------------------------------------------------------------

    def resume(self, sink: Sink) -> None:
        """A new connection has this session: send again what was not acknowledged (4.4.0-1)."""
        self.sink = sink
        self._resolve()
        self.resending = deque(self.inflight) if self.inflight else None
        self.pump()

    def disconnected(self) -> None:
        """Its connection has gone; what it was owed above QoS 0 waits for its return."""
        self.connection = self.sink = None
        self._close_sources()
        replay, self.replay, self.resending = self.replay, None, None
        if replay and self.expiry_s:
            for message, terms, _, _ in replay:
                if terms.qos and self._journal.is_retained(message):
                    self.deliver(message, terms)

    def start_replay(self, deliveries: Iterable[Delivery]) -> None:
        """Send these retained messages at the client's pace."""
        if self.replay is None:
            self.replay = deque()
        self.replay.extend(deliveries)
        self.pump()

    def add_source(self, topic_filter: str, source: Source) -> None:
        """Its client reads from this queue or stream too; the subscription that it comes from."""
        if self.sources is None:
            self.sources = {}
        self.sources[topic_filter] = source

    def remove_source(self, topic_filter: str) -> None:
        """Its client may not read there any more: what it has not acknowledged goes back.

        The packet identifiers are free when the client has acknowledged them: it does not know.
        """
        source = self.drop_source(topic_filter)
        if source is not None:
            source.close()

    def drop_source(self, topic_filter: str) -> Source | None:
        """Forget what this subscription stands for; who calls sees to what was given."""
        return (self.sources or {}).pop(topic_filter, None)

    def _close_sources(self) -> None:
        """The connection is gone, and so is what its client had of queues and streams."""
        sources, self.sources = self.sources, None
        closing = dict.fromkeys((sources or {}).values())
        for packet_id, delivery in list(self.inflight.items()):
            if delivery is not None and (source := delivery[1].source) is not None:
                del self.inflight[packet_id]
                closing[source] = None  # one that was stopped may have something still
        for source in closing:
            source.close()

    # -- from the store --------------------------------------------------------------------------

    def load_in_flight(self, packet_id: int, number: int) -> None:
        """At the start of the node: the message with this number in the backlog was on the way.

        0: it was received, and PUBCOMP is awaited. The messages are read when they are needed.
        """
        if number:
            self.inflight[packet_id] = (_UNREAD, PLAIN_TERMS[1], number, None)
            self.unresolved += 1
        else:
            self.inflight[packet_id] = RELEASED

    def _resolve(self) -> None:
        """Read the messages of what was on the way: the first ones in the backlog."""
        backlog = self.backlog
        if not self.unresolved or backlog is None:
            return
        wanted = {
            delivery[2]: packet_id
            for packet_id, delivery in self.inflight.items()
            if delivery is not None and delivery[0] is _UNREAD
        }
        self.unresolved = 0
        others: list[Delivery] = []
        last = max(wanted)
        while wanted:
            delivery = backlog.take()
            if delivery is None:
                break
            packet_id = wanted.pop(delivery[2], 0)
            if packet_id:
                self.inflight[packet_id] = delivery
            else:
                others.append(delivery)
            if delivery[2] >= last:
                break
        backlog.put_back(others)
        for packet_id in wanted.values():  # damaged
            del self.inflight[packet_id]
            self._journal.forget_in_flight(self, packet_id)

    def take_back(self, wanted: Callable[[Delivery], bool], *, all_of_it: bool) -> list[Delivery]:
        """Remove and return what waits or is on the way and is `wanted`, in order.

        Of what waits on disk only the window is looked at unless `all_of_it`; then what is not
        wanted cannot be sent any more.
        """
        self._resolve()
        taken: list[Delivery] = []
        for packet_id, delivery in list(self.inflight.items()):
            if delivery is not None and delivery[1].source is None and wanted(delivery):
                self.settle(packet_id, delivery)
                taken.append(delivery)
        if self.queue:
            kept: deque[Delivery] = deque()
            for delivery in self.queue:
                if wanted(delivery):
                    taken.append(delivery)
                    self._count_queued(-1, -delivery[0].size_bytes())
                else:
                    kept.append(delivery)
            self.queue = kept
        backlog = self.backlog
        if backlog is not None:
            waiting = backlog.settle_waiting(wanted)
            while all_of_it and (next_one := backlog.take()) is not None:
                if wanted(next_one):
                    waiting.append(next_one)
                backlog.settle(next_one)
            taken += waiting
        return taken


_RUN_MIN = 4  # messages from which on sending them as a run is cheaper
_UNREAD = Message("", b"")  # stands for a message on the way that was not read from the store yet
