"""The roles of the crash harness that work with queues and streams.

* what was acknowledged to a publisher is in the queue or the stream;
* what a consumer has acknowledged and had confirmed does not come back, and the rest comes in the
  order in which it was published, without a gap;
* sequences of a stream have no gap, and a record never changes.

MQTT has no answer to a PUBACK. A consumer has one confirmed by publishing something durable behind
it: the acknowledgement of that comes after the commit with the PUBACK in it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tests.faults.crash import (
    CONNACK,
    PUBACK,
    PUBLISH,
    SUBACK,
    Broken,
    Peer,
    acknowledgement,
    demand,
    parse_publish,
    refused,
    user_properties,
)
from tests.faults.crash_sessions import Publisher, numbered
from tests.support import (
    DEADLINE_S,
    RawClient,
    RawPacket,
    connect_packet,
    publish_packet,
    subscribe_packet,
)

__all__ = ["Consumer", "Follower", "Sender", "Work"]

MARK_EVERY = 3
"""Acknowledgements between two confirmations."""
HELD_MAX = 12
"""Messages that a consumer has and keeps unacknowledged."""
MARKS = "$stream/marks"


class Taker(Peer):
    """Reads from a queue or a stream, on a session that ends with its connection."""

    takes_rest = True

    def __init__(self, name: str, version: int, topic_filter: str) -> None:
        super().__init__(name, version)
        self._filter = topic_filter
        self._is_subscribed = False

    def is_ready(self) -> bool:
        """Whether what it reads from is there."""
        return self._is_subscribed

    def has_all(self) -> bool:
        """Whether all that was acknowledged to the publishers has come."""
        raise AssertionError(f"{self.name} does not know")

    def take(self, client: RawClient, packet: RawPacket) -> None:
        """Something has come."""
        raise AssertionError(f"{self.name} cannot take anything")

    def rest(self, client: RawClient) -> None:
        """Nothing has come for a while."""

    def topic_filter(self) -> str:
        """What to subscribe to on the next connection."""
        return self._filter

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Read on this connection until it breaks, or `is_over` and everything has come."""
        client.send(connect_packet(self.name, version=self.version, clean=True))
        demand(client.expect_kind(CONNACK).body[1] == 0, f"{self.name}: refused")
        client.send(subscribe_packet(self.topic_filter(), options=1, version=self.version))
        while (packet := client.read_packet()).kind != SUBACK:
            self.take(client, packet)
        demand(packet.body[-1] == 1, f"{self.name}: not granted: {packet.raw.hex(' ')}")
        self._is_subscribed = True
        ends_at: float | None = None
        while not (is_over() and self.has_all()):
            if is_over():
                ends_at = ends_at or time.monotonic() + DEADLINE_S
                demand(time.monotonic() < ends_at, f"{self.name}: has not got everything")
            try:
                packet = client.read_packet(deadline_s=0.05)
            except AssertionError:
                self.rest(client)
                continue
            self.take(client, packet)


class Sender(Protocol):
    """Publishes numbers in order."""

    name: str
    acknowledged: int
    """Up to which number all are acknowledged."""


class Work:
    """What is known of one queue: who publishes to it, and what its consumers have done."""

    def __init__(self, publishers: Sequence[Sender]) -> None:
        self.publishers = {each.name: each for each in publishers}
        self.done: dict[str, set[int]] = {each.name: set() for each in publishers}
        """Numbers by publisher that a consumer has acknowledged."""
        self.confirmed: dict[str, set[int]] = {each.name: set() for each in publishers}
        """Those of them whose acknowledgement was confirmed."""

    def is_done(self) -> bool:
        """Whether all that was acknowledged to the publishers is done."""
        return all(
            self.done[name].issuperset(range(1, each.acknowledged + 1))
            for name, each in self.publishers.items()
        )


class Consumer(Taker):
    """Takes what is in a queue, acknowledges it, and has that confirmed now and then."""

    def __init__(
        self, name: str, version: int, topic_filter: str, work: Work, *, is_alone: bool
    ) -> None:
        """`is_alone`: there is no other consumer, so order can be checked."""
        super().__init__(name, version, topic_filter)
        self._work = work
        self._is_alone = is_alone
        self._unconfirmed: list[tuple[str, int]] = []
        self._marks: list[int] = []  # how many of `_unconfirmed` each mark confirms
        self._held: list[tuple[str, int, int]] = []  # publisher, number, packet identifier
        self._last: dict[str, int] = {}  # on this connection

    def has_all(self) -> bool:
        """Whether everything is done, by whichever consumer."""
        return self._work.is_done()

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Consume on this connection; what was not confirmed on the last one may come again."""
        self._unconfirmed, self._marks, self._held, self._last = [], [], [], {}
        super().work(client, is_over)

    def take(self, client: RawClient, packet: RawPacket) -> None:
        """A message, or the acknowledgement of a mark."""
        if packet.kind == PUBACK:
            demand(not refused(packet), f"{self.name}: mark refused: {packet.raw.hex(' ')}")
            count = self._marks.pop(0)
            for name, number in self._unconfirmed[:count]:
                self._work.confirmed[name].add(number)
            del self._unconfirmed[:count]
            return
        demand(packet.kind == PUBLISH, f"{self.name}: got {packet.raw.hex(' ')}")
        _, packet_id, payload = parse_publish(packet, self.version)
        name, number = numbered(payload)
        demand(
            number not in self._work.confirmed[name],
            f"{self.name}: {name} {number} came back, and its acknowledgement was confirmed",
        )
        if self._is_alone:
            self._check_order(name, number)
        if number % 5 == 0:  # acknowledged late, so that what is around it is settled before it
            self._held.append((name, number, packet_id))
            if len(self._held) > HELD_MAX:
                self._acknowledge(client, *self._held.pop(0))
        else:
            self._acknowledge(client, name, number, packet_id)

    def rest(self, client: RawClient) -> None:
        """Nothing has come for a while: acknowledge what was kept."""
        while self._held:
            self._acknowledge(client, *self._held.pop(0))

    def _acknowledge(self, client: RawClient, name: str, number: int, packet_id: int) -> None:
        client.send(acknowledgement(PUBACK, packet_id))
        self._work.done[name].add(number)
        self._unconfirmed.append((name, number))
        since = len(self._unconfirmed) - sum(self._marks)
        if since >= MARK_EVERY:
            self._marks.append(since)
            mark = publish_packet(MARKS, b"", qos=1, packet_id=9, version=self.version)
            client.send(mark)

    def _check_order(self, name: str, number: int) -> None:
        last = self._last.get(name, 0)
        demand(number > last, f"{self.name}: {name} {number} follows {last}")
        missing = set(range(last + 1, number)) - self._work.done[name]
        demand(not missing, f"{self.name}: {name} {number} came, and {missing} never did")
        self._last[name] = number


class Follower(Taker):
    """Follows a stream from where it came to."""

    def __init__(self, name: str, stream: str, binding: str, publishers: list[Publisher]) -> None:
        super().__init__(name, 5, f"$stream/{stream}?after={{after}}/{binding}")
        self._publishers = {each.name: each for each in publishers}
        self._last = dict.fromkeys(self._publishers, 0)
        self._sequence = 0
        self._records: dict[int, bytes] = {}

    def topic_filter(self) -> str:
        """From where it came to, and one in three times from the beginning again."""
        if len(self._records) % 3 == 0:
            self._sequence = 0
            self._last = dict.fromkeys(self._publishers, 0)
        return self._filter.format(after=self._sequence)

    def has_all(self) -> bool:
        """Whether all that was acknowledged to the publishers has come."""
        return all(self._last[name] >= each.acknowledged for name, each in self._publishers.items())

    def take(self, client: RawClient, packet: RawPacket) -> None:
        """A record."""
        demand(packet.kind == PUBLISH, f"{self.name}: got {packet.raw.hex(' ')}")
        _, packet_id, payload = parse_publish(packet, self.version)
        sequence = int(user_properties(packet)["x-sequence"])
        if sequence != self._sequence + 1:
            raise Broken(f"{self.name}: sequence {sequence} follows {self._sequence}")
        before = self._records.setdefault(sequence, payload)
        demand(before == payload, f"{self.name}: {sequence} was {before!r} and is {payload!r}")
        self._sequence = sequence
        name, number = numbered(payload)
        last = self._last[name]
        is_next = number == last + 1
        is_again = number <= last and self._publishers[name].qos == 1
        demand(is_next or is_again, f"{self.name}: {name} {number} follows {last}")
        self._last[name] = max(last, number)
        client.send(acknowledgement(PUBACK, packet_id))
