"""The roles of the crash harness that work with sessions and retained messages.

* publishers send numbered messages, QoS 1 and 2, and again what was not acknowledged;
* subscribers with durable sessions get each publisher's numbers without a gap and in order, those
  of QoS 2 exactly once;
* a retained value is the last acknowledged one, or one that was on its way after it;
* a subscription that was acknowledged is there, and one whose end was acknowledged is not;
* a session is present exactly when its last acknowledged CONNECT made it so;
* the will of a client that was connected when the broker was killed is published after that.
"""

import random
import time
from collections import deque
from collections.abc import Callable

from tests.faults.crash import (
    CONNACK,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    WINDOW,
    Peer,
    Ports,
    acknowledgement,
    demand,
    number_of,
    parse_publish,
    refused,
)
from tests.support import (
    DEADLINE_S,
    RawClient,
    RawPacket,
    connect_packet,
    frame,
    publish_packet,
    subscribe_packet,
    text,
)

__all__ = ["Changer", "Comer", "Publisher", "Retainer", "Subscriber", "WillMaker", "numbered"]


class Publisher(Peer):
    """Publishes numbers in order; after a crash it sends again what was not acknowledged."""

    def __init__(
        self, name: str, version: int, qos: int, topic: str, *, has_message_ids: bool = False
    ) -> None:
        """With `has_message_ids` each number has a message identifier, by which queues know it."""
        super().__init__(name, version)
        self.qos = qos
        self.topic = topic
        self.number = 0
        """The last one that was sent."""
        self.acknowledged = 0
        """Up to which number all are acknowledged."""
        self._unacknowledged: deque[tuple[int, int]] = deque()  # packet identifier, number
        self._released: deque[tuple[int, int]] = deque()  # the same behind PUBREC
        self._has_message_ids = has_message_ids

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Publish on this connection until it breaks, or `is_over` and all is acknowledged."""
        self.join(client)
        for packet_id, number in self._unacknowledged:
            client.send(self._packet(packet_id, number, dup=True))
        for packet_id, _ in self._released:
            client.send(acknowledgement(PUBREL, packet_id))
        while True:
            while not is_over() and len(self._unacknowledged) + len(self._released) < WINDOW:
                self.number += 1
                packet_id = (self.number - 1) % 60_000 + 1
                self._unacknowledged.append((packet_id, self.number))
                client.send(self._packet(packet_id, self.number))
            if not self._unacknowledged and not self._released:
                return
            self._take(client, client.read_packet())

    def _packet(self, packet_id: int, number: int, *, dup: bool = False) -> bytes:
        properties = b""
        if self._has_message_ids:
            properties = b"\x26" + text("x-message-id") + text(f"{self.name}-{number}")
        return publish_packet(
            self.topic,
            b"%s %d" % (self.name.encode(), number),
            qos=self.qos,
            dup=dup,
            packet_id=packet_id,
            version=self.version,
            properties=properties,
        )

    def _take(self, client: RawClient, packet: RawPacket) -> None:
        demand(not refused(packet), f"{self.name}: refused with {packet.raw.hex(' ')}")
        waiting = self._released if packet.kind == PUBCOMP else self._unacknowledged
        expected = PUBREC if self.qos == 2 else PUBACK
        demand(packet.kind in (expected, PUBCOMP), f"{self.name}: got {packet.raw.hex(' ')}")
        demand(waiting, f"{self.name}: an acknowledgement of nothing")
        packet_id, number = waiting.popleft()
        demand(
            packet_id == number_of(packet.body),
            f"{self.name}: acknowledgements are out of order at {number}",
        )
        if packet.kind == PUBREC:
            self._released.append((packet_id, number))
            client.send(acknowledgement(PUBREL, packet_id))
        if packet.kind != PUBCOMP:
            self.acknowledged = number


class Subscriber(Peer):
    """Subscribes to all publishers and acknowledges what comes."""

    takes_rest = True

    def __init__(self, name: str, version: int, publishers: list[Publisher]) -> None:
        super().__init__(name, version)
        self._publishers = {each.topic: each for each in publishers}
        self.last = dict.fromkeys(self._publishers, 0)
        """The highest number that came from each topic."""
        self._is_subscribed = False
        self._held: set[int] = set()  # QoS 2 messages that came and are not released

    def is_ready(self) -> bool:
        """Whether it gets what is published from now on."""
        return self._is_subscribed

    def has_all(self) -> bool:
        """Whether all that was acknowledged to the publishers has come."""
        return all(
            self.last[topic] >= each.acknowledged for topic, each in self._publishers.items()
        )

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Take messages from this connection until it breaks, or `is_over`."""
        self.join(client)
        if not self._is_subscribed:
            client.send(subscribe_packet("load/+", options=2, version=self.version))
            while (packet := client.read_packet()).kind != SUBACK:
                self._take(client, packet)
            self._is_subscribed = True
        ends_at: float | None = None
        while not (is_over() and self.has_all() and not self._held):
            if is_over():
                ends_at = ends_at or time.monotonic() + DEADLINE_S
                missing = {topic: each.acknowledged for topic, each in self._publishers.items()}
                demand(
                    time.monotonic() < ends_at,
                    f"{self.name}: has {self.last} of the acknowledged {missing}",
                )
            try:
                packet = client.read_packet(deadline_s=0.05)
            except AssertionError:
                continue  # nothing has come
            self._take(client, packet)

    def _take(self, client: RawClient, packet: RawPacket) -> None:
        if packet.kind == PUBREL:
            self._held.discard(number_of(packet.body))
            client.send(acknowledgement(PUBCOMP, number_of(packet.body)))
            return
        demand(packet.kind == PUBLISH, f"{self.name}: got {packet.raw.hex(' ')}")
        topic, packet_id, payload = parse_publish(packet, self.version)
        qos = packet.first >> 1 & 3
        demand(qos == self._publishers[topic].qos, f"{self.name}: {topic} came with QoS {qos}")
        if qos == 1:
            self._note(topic, numbered(payload)[1], may_repeat=True)
            client.send(acknowledgement(PUBACK, packet_id))
            return
        if packet_id not in self._held:
            self._note(topic, numbered(payload)[1], may_repeat=False)
            self._held.add(packet_id)
        client.send(acknowledgement(PUBREC, packet_id))

    def _note(self, topic: str, number: int, *, may_repeat: bool) -> None:
        last = self.last[topic]
        if number <= last:
            demand(may_repeat, f"{self.name}: {topic} {number} came twice (last: {last})")
        else:
            demand(number == last + 1, f"{self.name}: {topic} {number} follows {last}")
            self.last[topic] = number


def numbered(payload: bytes) -> tuple[str, int]:
    """The name of the publisher and its number, from what it published."""
    name, _, number = payload.decode().partition(" ")
    return name, int(number)


class Retainer(Peer):
    """Sets and removes retained values, and checks after a restart which are there."""

    TOPICS = tuple(f"retain/{number}" for number in range(12))

    def __init__(self, chance: random.Random) -> None:
        super().__init__("retainer", 4)
        self._chance = chance
        self._acknowledged = dict.fromkeys(self.TOPICS, b"")
        self._on_the_way: dict[str, list[bytes]] = {topic: [] for topic in self.TOPICS}
        self._count = 0

    def check(self, ports: Ports) -> None:
        """Compare what a new subscriber gets with what was acknowledged."""
        with RawClient(ports["mqtt"]) as client:
            client.join("retained-reader")
            client.subscribe("retain/#")
            client.send(b"\xc0\x00")
            found = dict.fromkeys(self.TOPICS, b"")
            while (packet := client.read_packet()).kind != PINGRESP:
                topic, _, payload = parse_publish(packet, 4)
                found[topic] = payload
        for topic, value in found.items():
            allowed = [self._acknowledged[topic], *self._on_the_way[topic]]
            demand(value in allowed, f"{topic} is {value!r}, and should be one of {allowed}")
            self._acknowledged[topic] = value
            self._on_the_way[topic] = []

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Change values until the connection breaks, or `is_over`."""
        client.join(self.name)
        sent: deque[str] = deque()
        while not is_over() or sent:
            while not is_over() and len(sent) < WINDOW:
                self._count += 1
                topic = self._chance.choice(self.TOPICS)
                value = b"" if self._chance.random() < 0.3 else b"value %d" % self._count
                self._on_the_way[topic].append(value)
                sent.append(topic)
                packet_id = self._count % 60_000 + 1
                client.send(publish_packet(topic, value, qos=1, retain=True, packet_id=packet_id))
            if sent:
                client.expect_kind(PUBACK)
                topic = sent.popleft()
                self._acknowledged[topic] = self._on_the_way[topic].pop(0)


class Changer(Peer):
    """Subscribes and unsubscribes, and checks after a restart which subscriptions there are."""

    FILTERS = tuple(f"toggle/{number}" for number in range(10))
    MARK = "toggle-mark"

    def __init__(self, name: str, version: int, chance: random.Random) -> None:
        super().__init__(name, version)
        self._chance = chance
        self._known: dict[str, bool | None] = dict.fromkeys(self.FILTERS, False)
        self._is_marked = False
        self._round = 0

    def check(self, ports: Ports) -> None:
        """Publish to every filter, and compare what comes with what was acknowledged."""
        self._round += 1
        payload = b"%d" % self._round
        port = ports["mqtt"]
        with RawClient(port) as client, RawClient(port) as prober:
            self.join(client)
            if not self._is_marked:
                client.subscribe(self.MARK, version=self.version)
                self._is_marked = True
            prober.join("prober")
            for topic in (*self.FILTERS, self.MARK):
                prober.send(publish_packet(topic, payload))
            found: set[str] = set()
            while self.MARK not in found:
                topic, _, came = parse_publish(client.expect_kind(PUBLISH), self.version)
                if came == payload:
                    found.add(topic)
        for topic, is_known in self._known.items():
            is_there = topic in found
            demand(
                is_known is None or is_known == is_there,
                f"{self.name}: {topic} subscribed: {is_there}, acknowledged: {is_known}",
            )
            self._known[topic] = is_there

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Change subscriptions until the connection breaks, or `is_over`."""
        self.join(client)
        properties = b"\0" if self.version == 5 else b""
        while not is_over():
            topic = self._chance.choice(self.FILTERS)
            wanted = not self._known[topic]
            self._known[topic] = None
            if wanted:
                client.send(subscribe_packet(topic, version=self.version))
            else:
                client.send(frame(0xA2, b"\0\1" + properties + text(topic)))
            client.expect_kind(SUBACK if wanted else UNSUBACK)
            self._known[topic] = wanted


class WillMaker(Peer):
    """Has a will on every connection, which somebody with a durable session waits for."""

    TOPIC = "will/will-maker"

    def __init__(self) -> None:
        super().__init__("will-maker", 5)
        self._heir = Peer("heir", 5)
        self._number = 0
        self._is_owed: bool | None = False
        """Whether the will of the last connection has to come; None: it may."""

    def check(self, ports: Ports) -> None:
        """The will of the last life comes, if the broker has said that it has it."""
        with RawClient(ports["mqtt"]) as client:
            is_first = not self._heir.was_greeted
            self._heir.join(client)
            if is_first:
                client.subscribe(self.TOPIC, options=1, version=5)
            client.send(b"\xc0\x00")
            is_answered = came = False
            while not is_answered or (self._is_owed and not came):
                packet = client.read_packet()
                if packet.kind == PINGRESP:
                    is_answered = True
                    continue
                _, packet_id, payload = parse_publish(packet, 5)
                number = numbered(payload)[1]
                demand(number == self._number, f"will {number} came, not {self._number}")
                demand(self._is_owed is not False, f"will {number} came, and was taken back")
                client.send(acknowledgement(PUBACK, packet_id))
                came = True
            # What was acknowledged here may come again, and must not be taken for the next one.
            client.send(publish_packet("will/mark", b"", qos=2, packet_id=1, version=5))
            while client.read_packet().kind != PUBREC:
                pass

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Be connected until the broker is gone, or `is_over`; then leave with a word."""
        self._number += 1
        self._is_owed = None
        client.send(
            connect_packet(
                self.name,
                version=5,
                clean=False,
                will=(self.TOPIC, b"will-maker %d" % self._number, 1, False),
                properties=b"\x11" + (3600).to_bytes(4, "big"),
            )
        )
        demand(client.expect_kind(CONNACK).body[1] == 0, f"{self.name}: refused")
        self._is_owed = True
        while not is_over():
            client.ping()
            time.sleep(0.01)
        self._is_owed = None
        client.send(b"\xe0\x00")
        client.read_to_end()


class Comer(Peer):
    """Comes under several names, with and without clean session, and knows which must be there."""

    NAMES = tuple(f"comer-{number}" for number in range(8))

    def __init__(self, chance: random.Random) -> None:
        super().__init__("comer", 4)
        self._chance = chance
        self._is_present: dict[str, bool | None] = dict.fromkeys(self.NAMES, False)

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Connect and disconnect until the broker is gone, or `is_over`."""
        while not is_over():
            name = self._chance.choice(self.NAMES)
            with RawClient(ports["mqtt"]) as client:
                expected, self._is_present[name] = self._is_present[name], None
                clean = self._chance.random() < 0.5
                client.send(connect_packet(name, clean=clean))
                is_there = client.expect_kind(CONNACK).body[0] == 1
                if clean:
                    demand(not is_there, f"{name}: a clean session was there already")
                elif expected is not None:
                    demand(
                        is_there == expected,
                        f"{name}: session present: {is_there}, acknowledged: {expected}",
                    )
                self._is_present[name] = not clean
                client.send(b"\xe0\x00")
                client.read_to_end()
