"""QoS 2 is exactly once, wherever the connection or the node breaks (MQTT 5.0, 4.3.3 and 4.4).

A client that keeps to the specification talks through a *wire* that lets a number of packets pass
and then breaks: the packet that was to pass next is lost, and everything behind it. The client
reconnects to its session and goes on. Every packet boundary is tried, once with a connection that
breaks and once with a node that is gone from one moment to the next and starts again on its store.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
)
from tests.protocols.mqtt.fake_link import FakeClient, Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
CRASHES = pytest.mark.parametrize("crash", [False, True], ids=["cut", "crash"])
STEPS_OF_QOS_2 = 4


class Cut(Exception):
    """The wire broke."""


class Wire:
    """Lets `budget` packets pass, in either direction, and then breaks the connection."""

    def __init__(self, client: FakeClient, budget: int) -> None:
        self.client = client
        self.budget = budget

    def send(self, packet: Packet) -> None:
        """A packet from the client."""
        self._spend()
        self.client.send(packet)

    def receive(self) -> Iterator[Packet]:
        """Packets to the client, each as it passes."""
        for packet in self.client.take():
            self._spend()
            yield packet

    def _spend(self) -> None:
        if self.budget == 0:
            self.client.cut()
            raise Cut
        self.budget -= 1


@dataclass
class Sender:
    """A client's side of the messages it sends: what is to be sent again after a break."""

    unfinished: list[Publish | Pubrel] = field(default_factory=list)

    def run(self, wire: Wire, new: list[Publish]) -> None:
        """Resend what is unfinished, then send what is new, until everything is acknowledged."""
        again = list(self.unfinished)
        for packet in again:
            if isinstance(packet, Publish):
                packet.dup = True
            wire.send(packet)
            self._answer(wire)
        while new:
            packet = new.pop(0)
            self.unfinished.append(packet)
            wire.send(packet)
            self._answer(wire)
        assert self.unfinished == []

    def _answer(self, wire: Wire) -> None:
        while answers := list(wire.receive()):
            for answer in answers:
                assert isinstance(answer, Puback | Pubrec | Pubcomp), answer
                index = self._index(answer.packet_id)
                if isinstance(answer, Pubrec):
                    pubrel = Pubrel(answer.packet_id)
                    if index is None:
                        self.unfinished.append(pubrel)
                    else:
                        self.unfinished[index] = pubrel
                    wire.send(pubrel)
                elif index is not None:
                    del self.unfinished[index]

    def _index(self, packet_id: int) -> int | None:
        for index, each in enumerate(self.unfinished):
            if each.packet_id == packet_id:
                return index
        return None


@dataclass
class Receiver:
    """A client's side of the messages it gets: which identifiers are not released yet."""

    held: set[int] = field(default_factory=set)
    delivered: list[bytes] = field(default_factory=list)
    seen: list[tuple[int, bool, bytes]] = field(default_factory=list)
    """Every PUBLISH on the wire: identifier, DUP, payload."""

    def run(self, wire: Wire) -> None:
        """Take messages and go through their flows until nothing more comes."""
        quiet = False
        while not quiet:
            quiet = True
            for packet in wire.receive():
                quiet = False
                match packet:
                    case Publish(qos=2, packet_id=packet_id):
                        self.seen.append((packet_id, packet.dup, packet.payload))
                        if packet_id not in self.held:
                            self.held.add(packet_id)
                            self.delivered.append(packet.payload)
                        wire.send(Pubrec(packet_id))
                    case Pubrel(packet_id=packet_id):
                        self.held.discard(packet_id)
                        wire.send(Pubcomp(packet_id))
                    case _:
                        raise AssertionError(packet)


def _reconnect(
    link: Link, client_id: str, version: int, *, present: bool | None = None
) -> FakeClient:
    expiry_s = 3600 if version == V5 else None
    shown = None if version == V31 else present  # CONNACK of MQTT 3.1 does not say
    return link.connect(client_id, version, clean_start=False, expiry_s=expiry_s, present=shown)


@VERSIONS
@CRASHES
@pytest.mark.parametrize("second", [None, *range(STEPS_OF_QOS_2)])
@pytest.mark.parametrize("first", range(STEPS_OF_QOS_2 + 1))
def test_from_the_client(version: int, first: int, second: int | None, crash: bool) -> None:
    """A message that a client goes on sending is routed exactly once, if cut after any packets."""
    link = Link()
    subscriber = _reconnect(link, "subscriber", version)
    subscriber.subscribe("t", 2)
    subscriber.disconnect()
    sender = Sender()
    new = [Publish("t", b"once", 2, packet_id=11)]
    for budget in (first, second):
        if budget is None:
            continue
        wire = Wire(_reconnect(link, "publisher", version), budget)
        try:
            sender.run(wire, new)
        except Cut:
            pass
        else:
            wire.client.cut()
        if crash:
            link = link.restart()
    sender.run(Wire(_reconnect(link, "publisher", version, present=True), -1), new)
    receiver = Receiver()
    receiver.run(Wire(_reconnect(link, "subscriber", version, present=True), -1))
    assert receiver.delivered == [b"once"]
    assert all(not each.received and not each.inflight for each in link.node.sessions.values())


@VERSIONS
@CRASHES
@pytest.mark.parametrize("second", [None, *range(STEPS_OF_QOS_2)])
@pytest.mark.parametrize("first", range(STEPS_OF_QOS_2 + 1))
def test_to_the_client(version: int, first: int, second: int | None, crash: bool) -> None:
    """A message reaches its subscriber exactly once, if cut after any packets of the flow."""
    link = Link()
    client = _reconnect(link, "subscriber", version)
    client.subscribe("t", 2)
    client.disconnect()
    link.connect("publisher", version).complete("t", b"once", 2)
    receiver = Receiver()
    for budget in (first, second, -1):
        if budget is None:
            continue
        wire = Wire(_reconnect(link, "subscriber", version, present=True), budget)
        try:
            receiver.run(wire)
        except Cut:
            pass
        else:
            wire.client.cut()
        if crash:
            link = link.restart()
    assert receiver.delivered == [b"once"]
    assert receiver.held == set()
    assert len({packet_id for packet_id, _, _ in receiver.seen}) == 1, "its identifier stays"
    session = link.node.sessions["subscriber"]
    assert not session.inflight
    assert not session.queue


@VERSIONS
@CRASHES
@pytest.mark.parametrize("budget", range(0, 20, 3))
def test_many_at_once(version: int, budget: int, crash: bool) -> None:
    """Several messages keep their order and stay exactly once on a connection that often breaks."""
    link = Link()
    client = _reconnect(link, "subscriber", version)
    client.subscribe("t", 2)
    client.cut()
    publisher = link.connect("publisher", version)
    wanted = [b"%d" % number for number in range(8)]
    for payload in wanted:
        publisher.complete("t", payload, 2)
    receiver = Receiver()
    for allowed in (budget, budget, -1):
        wire = Wire(_reconnect(link, "subscriber", version, present=True), allowed)
        try:
            receiver.run(wire)
        except Cut:
            if crash:
                link = link.restart()
    assert receiver.delivered == wanted


@VERSIONS
@CRASHES
def test_redelivery(version: int, crash: bool) -> None:
    """What was not acknowledged comes again: same identifiers, same order, DUP set (4.4-1)."""
    link = Link()
    client = _reconnect(link, "subscriber", version)
    client.send(
        Subscribe(1, [SubscriptionRequest("one", 1), SubscriptionRequest("two", 2)]),
    )
    client.take()
    publisher = link.connect("publisher", version)
    for number in range(6):
        publisher.complete("two" if number % 2 else "one", b"%d" % number, 1 + number % 2)
    sent = [each for each in client.take() if isinstance(each, Publish)]
    assert [each.dup for each in sent] == [False] * 6
    client.send(Puback(sent[2].packet_id), Pubrec(sent[3].packet_id))
    client.expect(Pubrel)
    client.cut()
    if crash:
        link = link.restart()
    client = _reconnect(link, "subscriber", version, present=True)
    packets = client.take()
    again = [each for each in packets if isinstance(each, Publish)]
    assert all(each.dup for each in again)
    first = [(each.packet_id, each.topic, each.payload) for each in sent]
    del first[2:4]
    assert [(each.packet_id, each.topic, each.payload) for each in again] == first
    released = [each.packet_id for each in packets if isinstance(each, Pubrel)]
    assert released == [sent[3].packet_id]


@CRASHES
def test_redelivery_after_the_identifiers_wrapped_around(crash: bool) -> None:
    """The order of redelivery is that of sending, not that of the identifiers (4.6-1)."""
    link = Link()
    client = _reconnect(link, "subscriber", V5)
    client.subscribe("t", 1)
    client.session._next_id = 65_533
    publisher = link.connect("publisher")
    for number in range(4):
        publisher.complete("t", b"%d" % number, 1)
    assert [each.packet_id for each in client.take() if isinstance(each, Publish)] == [
        65_534,
        65_535,
        1,
        2,
    ]
    client.cut()
    if crash:
        link = link.restart()
    client = _reconnect(link, "subscriber", V5, present=True)
    assert client.payloads() == [b"0", b"1", b"2", b"3"]


def test_redelivery_keeps_to_the_receive_maximum() -> None:
    """A client that comes back with a smaller Receive Maximum is sent no more at once (3.3.4-9)."""
    link = Link()
    client = _reconnect(link, "subscriber", V5)
    client.subscribe("t", 1)
    publisher = link.connect("publisher")
    wanted = [b"%d" % number for number in range(10)]
    for payload in wanted:
        publisher.complete("t", payload, 1)
    assert len(client.take()) == 10
    client.cut()
    client = link.connect("subscriber", clean_start=False, expiry_s=3600, receive_maximum=3)
    publisher.complete("t", b"new", 1)
    first = [each for each in client.take() if isinstance(each, Publish)]
    assert [each.payload for each in first] == wanted[:3]
    client.send(Puback(first[0].packet_id))
    fourth = client.only(Publish)
    assert (fourth.payload, fourth.dup) == (b"3", True)
    client.send(*(Puback(each.packet_id) for each in (*first[1:], fourth)))
    assert client.payloads() == [*wanted[4:], b"new"]


def test_redelivery_waits_for_a_slow_reader() -> None:
    """A client that does not read is not sent all of its window again at once."""
    link = Link()
    client = _reconnect(link, "subscriber", V5)
    client.subscribe("t", 1)
    publisher = link.connect("publisher")
    for number in range(5):
        publisher.complete("t", b"%d" % number, 1)
    client.cut()
    link.server.node.flush()
    client = link.open()
    client.endpoint.congested = True
    client.send_bytes(
        bytes.fromhex("10 1C 00 04 4D 51 54 54 05 00 00 00 05 11 00 00 0E 10 00 0A") + b"subscriber"
    )
    client.take()
    assert client.take() == []
    client.relieve()
    assert client.payloads() == [b"0", b"1", b"2", b"3", b"4"]
