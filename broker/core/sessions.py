"""A client's state: its subscriptions, what waits for it, what is on the way to it.

A session outlives its connection when its expiry interval is above zero (MQTT 5.0 section 4.1).
While a connection is there it is the session's `Sink`. Messages above QoS 0 get a packet identifier
when they are sent, as many at a time as the window allows (section 4.9), and wait in order behind
it. A session that outlives its connection is durable: what is queued for it is recorded, and sent
only after the commit.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ganglion.broker.core.access import Client
from ganglion.broker.core.message import Delivery, Message, Terms
from ganglion.broker.core.router import Outlet, Subscription
from ganglion.broker.core.timers import Timer

if TYPE_CHECKING:
    from ganglion.broker.core.journal import Journal

__all__ = ["NEVER_EXPIRES", "RELEASED", "Session", "Sink", "Will"]

NEVER_EXPIRES = 0xFFFF_FFFF
"""A session expiry interval that means what it says (MQTT 5.0 section 3.1.2.11.2)."""

RELEASED = None
"""In `Session.inflight`: the QoS 2 message was received (PUBREC); PUBCOMP is awaited."""


class Sink(Protocol):
    """The connection through which the client of a session is reached."""

    @property
    def congested(self) -> bool:
        """Too much waits to be sent: only what must go should be given to it."""
        ...

    def send(self, packet_id: int, message: Message, terms: Terms, duplicate: bool) -> bool:
        """Send the message; False when this client cannot take it and never will."""
        ...

    def send_release(self, packet_id: int) -> None:
        """Send PUBREL for a QoS 2 message."""
        ...

    def outlet(self, form: int) -> Outlet | None:
        """Where plain QoS 0 messages in this wire form may go as they are; None: nowhere."""
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
        "client",
        "committed_number",
        "connection",
        "expiry_s",
        "inflight",
        "queue",
        "queued_bytes",
        "received",
        "recorded_number",
        "replay",
        "reply_token",
        "resending",
        "sink",
        "subscription_cost",
        "subscriptions",
        "timer",
        "will",
        "will_timer",
        "window",
    )

    def __init__(self, client: Client, journal: "Journal", expiry_s: int) -> None:
        self.client = client
        """Who opened it; the client identifier belongs to that user."""
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
        """What waits behind the window."""
        self.queued_bytes = 0
        self.recorded_number = 0
        """The number of the newest message that was recorded for it."""
        self.committed_number = 0
        """The number up to which those records are durable."""
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

    def is_durable(self) -> bool:
        """Whether it outlives its connection, and so is recorded."""
        return self.expiry_s > 0

    # -- to the client ---------------------------------------------------------------------------

    def deliver(self, message: Message, terms: Terms) -> None:
        """Send the message on these terms, now or when its turn comes, or drop and count it."""
        sink = self.sink
        if terms.qos == 0:
            if sink is None:
                self._journal.statistics.drop("client is offline")
            else:
                sink.send(0, message, terms, False)
        elif self.expiry_s:
            if self._has_room_for(message):
                self._queue_durably(message, terms)
        elif (
            sink is not None
            and not self.queue
            and len(self.inflight) < self.window
            and not sink.congested
        ):
            self._send((message, terms, 0), sink)
        elif self._has_room_for(message):
            self._append((message, terms, 0))

    def outlet(self, form: int) -> Outlet | None:
        """Where plain QoS 0 messages in this wire form may go as they are."""
        return self.sink.outlet(form) if self.sink is not None else None

    def readiness(self, qos: int) -> int:
        """As a member of a shared subscription.

        0: takes a message at once; 1: connected but busy; 2: away, it would wait; 3: cannot.
        """
        sink = self.sink
        if sink is None:
            return 2 if qos and self.expiry_s else 3
        if sink.congested or (qos and (self.queue or len(self.inflight) >= self.window)):
            return 1
        return 0

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
            # retained messages keep their order with the queue: they wait until it is empty
            if self.queue or not self.replay or sink.congested:
                return
            message, terms, _ = self.replay.popleft()
            if self._journal.is_retained(message):
                self.deliver(message, terms)

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
                self._settle(packet_id, delivery)

    def _pump_queue(self, sink: Sink) -> None:
        queue = self.queue
        now = self._journal.timers.now
        while (
            queue
            and len(self.inflight) < self.window
            and not sink.congested
            and queue[0][2] <= self.committed_number
        ):
            delivery = queue.popleft()
            message = delivery[0]
            self._count_queued(-1, -message.size_bytes())
            if message.expires_at is not None and message.expires_at <= now:
                if delivery[2]:
                    self._journal.forget_queued(self, delivery[2])
                self._journal.statistics.drop("message expired")
            else:
                self._send(delivery, sink)

    def _send(self, delivery: Delivery, sink: Sink) -> None:
        inflight = self.inflight
        packet_id = self._next_id + 1
        if packet_id > 65_535:
            packet_id = 1
        while packet_id in inflight:
            packet_id = packet_id % 65_535 + 1
        self._next_id = packet_id
        inflight[packet_id] = delivery
        if delivery[2]:
            self._journal.put_in_flight(self, packet_id, delivery)
            if delivery[1].qos == 2:
                # A client that has it must find the same identifier after a crash (4.3.3).
                send = partial(self._send_recorded, packet_id, delivery, sink)
                self._journal.commits.after_commit(send)
                return
        if not sink.send(packet_id, delivery[0], delivery[1], False):
            self._settle(packet_id, delivery)

    def _send_recorded(self, packet_id: int, delivery: Delivery, sink: Sink) -> None:
        # with another connection `resume` has sent it
        if (
            self.sink is sink
            and self.inflight.get(packet_id) is delivery
            and not sink.send(packet_id, delivery[0], delivery[1], False)
        ):
            self._settle(packet_id, delivery)

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
        """The session ends: nothing waits for it any more."""
        if self.queue:
            self._count_queued(-len(self.queue), -self.queued_bytes)
            self.queue = None

    def _queue_durably(self, message: Message, terms: Terms) -> None:
        self.recorded_number += 1
        delivery = (message, terms, self.recorded_number)
        message.durable = True
        self._journal.put_queued(self, delivery)
        sink = self.sink
        if (
            terms.qos == 2
            and sink is not None
            and not self.queue
            and not self.resending
            and len(self.inflight) < self.window
            and not sink.congested
        ):
            self._send(delivery, sink)  # its identifier is in the same commit
        else:
            self._append(delivery)

    def committed(self, number: int) -> None:
        """What was recorded for it up to this number is durable and may be sent."""
        self.committed_number = number
        self.pump()

    # -- acknowledgements ------------------------------------------------------------------------

    def acknowledged(self, packet_id: int) -> bool:
        """PUBACK came (or a PUBREC that refuses): whether such a message was on the way."""
        delivery = self.inflight.get(packet_id)
        if delivery is None:
            return False
        self._settle(packet_id, delivery)
        return True

    def received_by_client(self, packet_id: int) -> bool:
        """PUBREC came: whether such a message was on the way. PUBREL is to follow."""
        if packet_id not in self.inflight:
            return False
        delivery = self.inflight[packet_id]
        if delivery is not None:  # not RELEASED yet
            self.inflight[packet_id] = RELEASED
            if delivery[2]:
                self._journal.forget_queued(self, delivery[2])
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

    def _settle(self, packet_id: int, delivery: Delivery) -> None:
        del self.inflight[packet_id]
        if delivery[2]:
            self._journal.forget_in_flight(self, packet_id)
            self._journal.forget_queued(self, delivery[2])

    # -- connections come and go -----------------------------------------------------------------

    def resume(self, sink: Sink) -> None:
        """A new connection has this session: send again what was not acknowledged (4.4.0-1)."""
        self.sink = sink
        self.resending = deque(self.inflight) if self.inflight else None
        self.pump()

    def forget_numbers(self) -> None:
        """It is no longer durable: what is on the way or waits has no record any more."""
        for packet_id, delivery in self.inflight.items():
            if delivery is not None:
                self.inflight[packet_id] = (delivery[0], delivery[1], 0)
        if self.queue:
            self.queue = deque((message, terms, 0) for message, terms, _ in self.queue)

    def disconnected(self) -> None:
        """Its connection has gone; what it was owed above QoS 0 waits for its return."""
        self.connection = self.sink = None
        replay, self.replay, self.resending = self.replay, None, None
        if replay and self.expiry_s:
            for message, terms, _ in replay:
                if terms.qos and self._journal.is_retained(message):
                    self.deliver(message, terms)

    def start_replay(self, deliveries: Iterable[Delivery]) -> None:
        """Send these retained messages at the client's pace."""
        if self.replay is None:
            self.replay = deque()
        self.replay.extend(deliveries)
        self.pump()

    def load_in_flight(self, packet_id: int, delivery: Delivery | None) -> None:
        """At the start of the node: this was on the way."""
        self.inflight[packet_id] = delivery
        if delivery is not None:
            self._note_recorded(delivery[2])

    def load_queued(self, delivery: Delivery) -> None:
        """At the start of the node: this waits, behind what was loaded before."""
        self._append(delivery)
        self._note_recorded(delivery[2])

    def _note_recorded(self, number: int) -> None:
        self.recorded_number = self.committed_number = max(self.recorded_number, number)

    def take_back(self, wanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return what waits or is on the way and is `wanted`, in order."""
        taken: list[Delivery] = []
        for packet_id, delivery in list(self.inflight.items()):
            if delivery is not None and wanted(delivery):
                self._settle(packet_id, delivery)
                taken.append(delivery)
        if self.queue:
            kept: deque[Delivery] = deque()
            for delivery in self.queue:
                if wanted(delivery):
                    taken.append(delivery)
                    self._count_queued(-1, -delivery[0].size_bytes())
                    if delivery[2]:
                        self._journal.forget_queued(self, delivery[2])
                else:
                    kept.append(delivery)
            self.queue = kept
        return taken
