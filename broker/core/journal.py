"""What is recorded of sessions and retained messages, and how it is read back at the start.

Every durable change of the core goes through one method here, which records it in the open batch
(`Commits`). `read_sessions` and `read_retained` turn the committed records back into objects. Times
are recorded as seconds of the wall clock, since the monotonic clock does not survive a restart.
"""

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

import msgpack

from ganglion.broker.core.access import Client
from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Delivery, Message
from ganglion.broker.core.records import decode_message, encode_message
from ganglion.broker.core.retained import Retained
from ganglion.broker.core.router import Subscription
from ganglion.broker.core.sessions import Will
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Kind, Store

if TYPE_CHECKING:
    from ganglion.broker.core.sessions import Session

__all__ = ["Journal"]

_NUMBER = Struct(">Q")
_PACKET_ID = Struct(">H")
_END_OF_CLIENT_ID = b"\0"  # no MQTT string contains U+0000 (1.5.4-2)


class Journal:
    """Records changes; carries what every session needs of its node."""

    def __init__(
        self,
        store: Store,
        timers: Timers,
        limits: Limits,
        statistics: Statistics,
        wall_clock_offset_s: float,
    ) -> None:
        self.commits = Commits(store, timers, statistics)
        self.shelf = Shelf(store, self.commits, timers, wall_clock_offset_s)
        self.timers = timers
        self.limits = limits
        self.statistics = statistics
        self.retained = Retained()
        self._store = store
        self._offset_s = wall_clock_offset_s

    # -- sessions --------------------------------------------------------------------------------

    def put_session(self, session: "Session", ends_at: float | None) -> None:
        """Record the session; it expires at `ends_at` (monotonic), None while it is connected."""
        client = session.client
        ends = None if ends_at is None else ends_at + self._offset_s
        backlog = session.backlog.identifier if session.backlog is not None else 0
        value = [client.user, client.address, client.certificate, session.expiry_s, ends, backlog]
        self.commits.put(Kind.SESSION, client.client_id.encode(), msgpack.packb(value))

    def forget_session(self, session: "Session") -> None:
        """Record that the session and all that belongs to it are gone."""
        name = session.client.client_id.encode()
        delete = self.commits.delete
        delete(Kind.SESSION, name)
        delete(Kind.WILL, name)
        prefix = name + _END_OF_CLIENT_ID
        for topic_filter in session.subscriptions:
            delete(Kind.SUBSCRIPTION, prefix + topic_filter.encode())
        for packet_id in session.inflight:
            delete(Kind.IN_FLIGHT, prefix + _PACKET_ID.pack(packet_id))
        for packet_id in session.received or ():
            delete(Kind.RECEIVED, prefix + _PACKET_ID.pack(packet_id))

    def put_will(self, session: "Session", send_at: float | None) -> None:
        """Record the session's will, to be sent at `send_at`, None while it is connected.

        Without a will: that there is none.
        """
        name = session.client.client_id.encode()
        will = session.will
        if will is None:
            self.commits.delete(Kind.WILL, name)
            return
        sent = None if send_at is None else send_at + self._offset_s
        message = encode_message(will.message, self._offset_s)
        value = msgpack.packb([message, will.delay_s, will.expiry_s, sent])
        self.commits.put(Kind.WILL, name, value)

    def put_subscription(self, subscription: Subscription) -> None:
        """Record the subscription of a durable session."""
        value = [
            subscription.qos,
            subscription.no_local,
            subscription.retain_as_published,
            subscription.identifier,
            subscription.options,
        ]
        key = _prefix(subscription.session) + subscription.topic_filter.encode()
        self.commits.put(Kind.SUBSCRIPTION, key, msgpack.packb(value))

    def forget_subscription(self, subscription: Subscription) -> None:
        """Record that it is gone."""
        key = _prefix(subscription.session) + subscription.topic_filter.encode()
        self.commits.delete(Kind.SUBSCRIPTION, key)

    # -- messages on the way ---------------------------------------------------------------------

    def put_in_flight(self, session: "Session", packet_id: int, delivery: Delivery) -> None:
        """Record under which packet identifier a recorded message was sent."""
        key = _prefix(session) + _PACKET_ID.pack(packet_id)
        self.commits.put(Kind.IN_FLIGHT, key, _NUMBER.pack(delivery[2]))

    def put_released(self, session: "Session", packet_id: int) -> None:
        """Record that a QoS 2 message was received by the client and PUBCOMP is awaited."""
        key = _prefix(session) + _PACKET_ID.pack(packet_id)
        self.commits.put(Kind.IN_FLIGHT, key, _NUMBER.pack(0))

    def forget_in_flight(self, session: "Session", packet_id: int) -> None:
        """Record that the packet identifier is free again."""
        self.commits.delete(Kind.IN_FLIGHT, _prefix(session) + _PACKET_ID.pack(packet_id))

    def put_received(self, session: "Session", packet_id: int) -> None:
        """Record that a QoS 2 message came in under this packet identifier."""
        self.commits.put(Kind.RECEIVED, _prefix(session) + _PACKET_ID.pack(packet_id), b"")

    def forget_received(self, session: "Session", packet_id: int) -> None:
        """Record that the client released the packet identifier."""
        self.commits.delete(Kind.RECEIVED, _prefix(session) + _PACKET_ID.pack(packet_id))

    # -- retained messages -----------------------------------------------------------------------

    def retain(self, message: Message) -> None:
        """Keep the message as the last value of its topic, or keep none if its payload is empty.

        Values under ``$`` are the node's own and made anew at every start: they are not recorded.
        """
        topic = message.topic
        recorded = topic[:1] != "$"
        if message.payload:
            self.retained.set(message)
            if recorded:
                message.durable = True
                record = encode_message(message, self._offset_s)
                self.commits.put(Kind.RETAINED, topic.encode(), record)
        elif self.retained.remove(topic) and recorded:
            message.durable = True
            self.commits.delete(Kind.RETAINED, topic.encode())

    def forget_retained(self, topic: str) -> None:
        """Drop a retained message that has expired."""
        if self.retained.remove(topic) and topic[:1] != "$":
            self.commits.delete(Kind.RETAINED, topic.encode())

    def is_retained(self, message: Message) -> bool:
        """Whether this very message is still the last value of its topic and not expired."""
        if message.expires_at is not None and message.expires_at <= self.timers.now:
            return False
        return self.retained.get(message.topic) is message

    # -- reading back ----------------------------------------------------------------------------

    def read_retained(self) -> None:
        """Fill `retained` from the store."""
        for _, value in self._store.scan(Kind.RETAINED):
            self.retained.set(decode_message(value, self._offset_s))

    def read_sessions(self) -> Iterator[tuple[Client, int, float | None, int]]:
        """Every recorded session: client, expiry, when it ends (monotonic), its backlog."""
        for key, value in self._store.scan(Kind.SESSION):
            user, address, certificate, expiry_s, ends, backlog = msgpack.unpackb(value)
            client = Client(key.decode(), user, address, certificate)
            ends_at = None if ends is None else ends - self._offset_s
            yield client, expiry_s, ends_at, backlog

    def read_wills(self) -> Iterator[tuple[str, Will, float | None]]:
        """Every recorded will: client identifier, will, when it is to be sent (monotonic)."""
        for key, value in self._store.scan(Kind.WILL):
            message, delay_s, expiry_s, sent = msgpack.unpackb(value)
            will = Will(decode_message(message, self._offset_s), delay_s, expiry_s)
            yield key.decode(), will, None if sent is None else sent - self._offset_s

    def read_subscriptions(self) -> Iterator[tuple[str, str, list[Any]]]:
        """Every recorded subscription: client identifier, filter, its options in order."""
        for key, value in self._store.scan(Kind.SUBSCRIPTION):
            name, _, topic_filter = key.partition(_END_OF_CLIENT_ID)
            yield name.decode(), topic_filter.decode(), msgpack.unpackb(value)

    def read_packet_ids(self, kind: Kind) -> Iterator[tuple[str, int, int]]:
        """Client identifier, packet identifier and number of `IN_FLIGHT` or `RECEIVED` records."""
        for key, value in self._store.scan(kind):
            name, _, packet_id = key.partition(_END_OF_CLIENT_ID)
            number = _NUMBER.unpack(value)[0] if value else 0
            yield name.decode(), _PACKET_ID.unpack(packet_id)[0], number


def _prefix(session: "Session") -> bytes:
    return session.client.client_id.encode() + _END_OF_CLIENT_ID
