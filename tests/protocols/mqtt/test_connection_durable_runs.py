"""Runs of QoS 1 packets to a queue, deliveries from it, and runs of their acknowledgements.

They are read and written without looking at each packet. What clients see must not depend on it:
it is what the same packets mean one at a time.
"""

import pytest

from ganglion.broker.core.queue import Queue
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Publish,
)
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, HeldStore, Link

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
TOPIC = "$queue/work"


def _payloads(count: int, size: int = 20) -> list[bytes]:
    return [number.to_bytes(2, "big") + b"." * (size - 2) for number in range(count)]


def _publishes(payloads: list[bytes], version: int, first_id: int = 1) -> bytes:
    return b"".join(
        encode(Publish(TOPIC, payload, 1, packet_id=first_id + place), version)
        for place, payload in enumerate(payloads)
    )


def _pubacks(packet_ids: list[int], version: int) -> bytes:
    return b"".join(encode(Puback(packet_id), version) for packet_id in packet_ids)


def _queue(link: Link) -> Queue:
    queue = link.node.queues.find("work")
    assert queue is not None
    return queue


def _publisher(link: Link, version: int) -> FakeClient:
    """A publisher whose next packets take the fast path, into a queue that is empty."""
    publisher = link.connect("publisher", version)
    assert publisher.complete(TOPIC, b"first", 1) == 0
    _queue(link).purge()
    link.tick()
    return publisher


def _ids(packets: list[Packet]) -> list[int]:
    assert all(isinstance(each, Puback) for each in packets)
    return [each.packet_id for each in packets if isinstance(each, Puback)]


@VERSIONS
@pytest.mark.parametrize("size", [2, 90, 130, 300])
@pytest.mark.parametrize("count", [3, 4, 100])
def test_a_run_is_stored_and_acknowledged_in_order(version: int, size: int, count: int) -> None:
    """Each message is in the queue once, and each packet has its acknowledgement."""
    link = Link()
    publisher = _publisher(link, version)
    payloads = _payloads(count, size)
    publisher.send_bytes(_publishes(payloads, version, 300))
    assert _ids(publisher.take()) == list(range(300, 300 + count))
    assert [each.message.payload for each in _queue(link).browse()] == payloads
    assert _queue(link).statistics().messages == count
    assert {each.message.qos for each in _queue(link).browse()} == {1}


def _commit(link: Link, store: HeldStore) -> None:
    while store.held:
        store.release()
        link.tick()


@VERSIONS
def test_a_run_is_acknowledged_after_the_commit(version: int) -> None:
    """Nothing leaves before it is durable."""
    store = HeldStore()
    link = Link(store=store)
    publisher = link.open(version)
    publisher.send(Connect(version, "publisher"))
    store.release()
    publisher.expect(Connack)
    publisher.send_bytes(_publishes(_payloads(1), version))
    _commit(link, store)
    publisher.take()
    publisher.send_bytes(_publishes(_payloads(10), version, 2))
    assert publisher.take() == []
    _commit(link, store)
    assert _ids(publisher.take()) == list(range(2, 12))


@VERSIONS
@pytest.mark.parametrize("piece", [1, 7, 33, 64, 1000])
def test_how_the_bytes_come_makes_no_difference(version: int, piece: int) -> None:
    """Cut anywhere, packets of several sizes are the same messages, in order."""
    link = Link()
    publisher = _publisher(link, version)
    payloads = _payloads(9) + _payloads(7, 30) + _payloads(1, 40) + _payloads(12, 30)
    data = _publishes(payloads, version)
    for start in range(0, len(data), piece):
        publisher.send_bytes(data[start : start + piece])
    assert _ids(publisher.take()) == list(range(1, len(payloads) + 1))
    assert [each.message.payload for each in _queue(link).browse()] == payloads


def test_properties_within_a_run_are_seen() -> None:
    """MQTT 5: a packet of equal size with properties is no packet of the run."""
    link = Link()
    publisher = _publisher(link, V5)
    about = Properties(content_type="t")  # 4 bytes
    packets = [
        Publish(TOPIC, b"0123456789", 1, packet_id=1),
        Publish(TOPIC, b"0123456789", 1, packet_id=2),
        Publish(TOPIC, b"012345", 1, packet_id=3, properties=about),
        Publish(TOPIC, b"0123456789", 1, packet_id=4),
        Publish(TOPIC, b"0123456789", 1, packet_id=5),
    ]
    assert len({len(encode(each, V5)) for each in packets}) == 1
    publisher.send(*packets)
    assert _ids(publisher.take()) == [1, 2, 3, 4, 5]
    found = [each.message for each in _queue(link).browse()]
    assert [each.payload for each in found] == [each.payload for each in packets]
    assert [each.properties is not None for each in found] == [False, False, True, False, False]


@VERSIONS
def test_packet_identifier_0_within_a_run_is_an_error(version: int) -> None:
    """2.2.1: what stands before it is taken, the connection is closed."""
    link = Link()
    publisher = _publisher(link, version)
    data = bytearray(_publishes(_payloads(6), version, 0x0100))
    step = len(data) // 6
    place = 3 * step + data.index(TOPIC.encode()) + len(TOPIC)
    data[place : place + 2] = b"\0\0"
    publisher.send_bytes(bytes(data))
    assert publisher.is_gone
    assert _queue(link).statistics().messages == 3


def test_more_than_the_receive_maximum_in_one_read_is_an_error() -> None:
    """MQTT 5 (3.3.4-9): the run is not taken beyond what the client was told."""
    link = Link()
    most = link.node.limits.receive_max
    publisher = _publisher(link, V5)
    publisher.send_bytes(_publishes(_payloads(most + 1), V5))
    assert any(isinstance(each, Disconnect) and each.reason == 0x93 for each in publisher.take())
    assert _queue(link).statistics().messages == most


@VERSIONS
def test_a_queue_that_may_refuse_is_asked_for_each_message(version: int) -> None:
    """A run does not go past a limit of the queue."""
    link = Link()
    consumer = link.connect("consumer", version)
    consumer.subscribe("$queue/work?max_messages=5", 1)
    consumer.unsubscribe("$queue/work?max_messages=5")
    publisher = link.connect("publisher", version)
    publisher.send_bytes(_publishes(_payloads(1), version))
    publisher.send_bytes(_publishes(_payloads(9), version, 2))
    assert _queue(link).statistics().messages == 5


class Consuming:
    """A consumer that was sent a number of messages, and has not acknowledged any."""

    def __init__(self, version: int, payloads: list[bytes]) -> None:
        self.version = version
        self.link = Link()
        self.publisher = _publisher(self.link, V311)
        self.publisher.send_bytes(_publishes(payloads, V311))
        self.consumer = self.link.connect("consumer", version)
        self.consumer.subscribe(TOPIC, 1)
        self.got = [each for each in self.consumer.take() if isinstance(each, Publish)]
        self.ids = [each.packet_id for each in self.got]

    def acknowledge(self, packet_ids: list[int]) -> None:
        """Say that these are done, in one write."""
        self.consumer.send_bytes(_pubacks(packet_ids, self.version))

    def left(self) -> int:
        """How many messages the queue has."""
        return _queue(self.link).statistics().messages


@VERSIONS
def test_what_is_delivered_as_a_run_is_what_was_published(version: int) -> None:
    """Every message once, in order, each under a packet identifier of its own."""
    payloads = _payloads(100)
    consuming = Consuming(version, payloads)
    assert [each.payload for each in consuming.got] == payloads
    assert {(each.topic, each.qos, each.dup) for each in consuming.got} == {(TOPIC, 1, False)}
    assert len(set(consuming.ids)) == 100
    assert 0 not in consuming.ids


@VERSIONS
def test_messages_that_differ_are_delivered_as_well(version: int) -> None:
    """Sizes that differ, and properties between plain messages."""
    payloads = [*_payloads(5), *_payloads(5, 30)]
    consuming = Consuming(version, payloads)
    assert [each.payload for each in consuming.got] == payloads
    sender = consuming.link.connect("sender")
    for number in range(6):
        about = Properties(content_type="t") if number % 2 else None
        sender.publish(TOPIC, b"x%d" % number, 1, properties=about)
    got = [each for each in consuming.consumer.take() if isinstance(each, Publish)]
    assert [each.payload for each in got] == [b"x%d" % number for number in range(6)]
    if version == V5:
        kinds = [each.properties and each.properties.content_type for each in got]
        assert kinds == [None, "t"] * 3


@VERSIONS
@pytest.mark.parametrize("order", ["straight", "backwards", "every other"])
def test_acknowledgements_of_a_run_settle_each_message(version: int, order: str) -> None:
    """Whatever their order, what is acknowledged is gone, and the rest is not."""
    consuming = Consuming(version, _payloads(100))
    ids = consuming.ids
    if order == "backwards":
        ids = ids[::-1]
    elif order == "every other":
        ids = ids[::2] + ids[1::2]
    consuming.acknowledge(ids[:60])
    assert consuming.left() == 40
    kept = {each.packet_id: each.payload for each in consuming.got}
    wanted = sorted(kept[packet_id] for packet_id in ids[60:])
    assert sorted(each.message.payload for each in _queue(consuming.link).browse()) == wanted
    consuming.acknowledge(ids[60:])
    assert consuming.left() == 0
    assert not consuming.consumer.session.inflight


@VERSIONS
def test_unknown_and_repeated_acknowledgements_within_a_run(version: int) -> None:
    """They change nothing, and those around them count (4.3.2)."""
    consuming = Consuming(version, _payloads(10))
    ids = consuming.ids
    consuming.acknowledge([*ids[:3], 60_000, *ids[2:5], ids[0], *ids[5:8]])
    assert consuming.left() == 2
    assert not consuming.consumer.is_gone


@VERSIONS
def test_acknowledgements_of_two_sources_in_one_run(version: int) -> None:
    """What came from two queues is settled in each of them."""
    consuming = Consuming(version, _payloads(10))
    consuming.consumer.subscribe("$queue/other", 1)
    for number in range(6):
        consuming.publisher.publish("$queue/other", b"%d" % number, 1)
    others = [each.packet_id for each in consuming.consumer.take() if isinstance(each, Publish)]
    mixed = [each for pair in zip(others, consuming.ids, strict=False) for each in pair]
    consuming.acknowledge(mixed)
    assert consuming.left() == 4
    other = consuming.link.node.queues.find("other")
    assert other is not None
    assert other.statistics().messages == 0


@VERSIONS
def test_packet_identifiers_wrap_within_many_runs(version: int) -> None:
    """Over 65,535 messages every identifier is from 1 to 65,535 and free when it is used."""
    link = Link()
    publisher = _publisher(link, V311)
    consumer = link.connect("consumer", version)
    consumer.subscribe(TOPIC, 1)
    consumer.session._next_id = 65_500
    payloads = _payloads(100)
    publisher.send_bytes(_publishes(payloads, V311))
    got = [each for each in consumer.take() if isinstance(each, Publish)]
    assert [each.payload for each in got] == payloads
    ids = [each.packet_id for each in got]
    assert ids[0] == 65_501
    assert 1 in ids
    assert len(set(ids)) == 100
    consumer.send_bytes(_pubacks(ids, version))
    assert _queue(link).statistics().messages == 0


@VERSIONS
def test_a_small_packet_limit_keeps_the_slow_way(version: int) -> None:
    """MQTT 5: what is larger than the client takes is refused alone."""
    link = Link()
    publisher = _publisher(link, version)
    publisher.send_bytes(_publishes(_payloads(5), version))
    publisher.send_bytes(_publishes(_payloads(1, 400), version, 6))
    consumer = link.connect("small", maximum_packet_size=200)
    consumer.subscribe(TOPIC, 1)
    assert consumer.payloads() == _payloads(5)
