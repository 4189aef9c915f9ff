"""A full disk, as clients see it: what has to be durable is refused, and nothing is lost."""

import pytest

from ganglion.protocols.mqtt.packets import V5, V311, Puback, Publish, Pubrec
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link, RecordingStore


class FillingStore(RecordingStore):
    """A store whose disk is full when the test says so."""

    full = False

    @property
    def is_full(self) -> bool:
        """As told."""
        return self.full


def _link() -> tuple[Link, FillingStore, FakeClient]:
    store = FillingStore()
    link = Link(store=store)
    away = link.connect("away", expiry_s=600)
    away.subscribe("kept", 2)
    away.disconnect()
    return link, store, link.connect("publisher", V5)


def _answer(publisher: FakeClient, qos: int) -> int:
    if qos == 1:
        return publisher.expect(Puback).reason
    return publisher.expect(Pubrec).reason


@pytest.mark.parametrize("qos", [1, 2])
def test_durable_messages_are_refused(qos: int) -> None:
    """MQTT 5.0 clients get 0x97, stay connected, and succeed once there is room."""
    link, store, publisher = _link()
    assert publisher.complete("kept", b"before", qos) == Reason.SUCCESS
    store.full = True
    publisher.send(Publish("kept", b"refused", qos, packet_id=77))
    assert _answer(publisher, qos) == Reason.QUOTA_EXCEEDED
    assert not publisher.ended()
    store.full = False
    assert publisher.complete("kept", b"after", qos) == Reason.SUCCESS
    away = link.connect("away", clean_start=False, expiry_s=600, present=True)
    assert away.payloads() == [b"before", b"after"]


@pytest.mark.parametrize("qos", [1, 2])
def test_mqtt_3_gets_no_acknowledgement(qos: int) -> None:
    """MQTT 3 cannot be told no: without an acknowledgement its client keeps the message."""
    link, store, _ = _link()
    publisher = link.connect("old", V311)
    store.full = True
    publisher.send(Publish("kept", b"x", qos, packet_id=7))
    assert publisher.take() == []
    assert not publisher.ended()
    store.full = False
    publisher.send(Publish("kept", b"x", qos, dup=True, packet_id=7))
    assert _answer(publisher, qos) == 0
    away = link.connect("away", clean_start=False, expiry_s=600, present=True)
    assert away.payloads() == [b"x"]


def test_transient_messages_pass() -> None:
    """What nobody durable wants goes its way on a full disk, and retained messages do not."""
    link, store, publisher = _link()
    here = link.connect("here")
    here.subscribe("live", 1)
    store.full = True
    for _ in range(3):
        assert publisher.complete("live", b"x", 1) == Reason.SUCCESS
    assert here.payloads() == [b"x"] * 3
    publisher.send(Publish("live", b"x", 1, retain=True, packet_id=9))
    assert publisher.expect(Puback).reason == Reason.QUOTA_EXCEEDED


def test_what_the_node_says_of_itself_passes() -> None:
    """Values under ``$`` are made anew at every start, and need no room."""
    link, store, _ = _link()
    here = link.connect("here")
    here.subscribe("$SYS/x", 0)
    store.full = True
    link.node.publish_own("$SYS/x", b"value", retain=True)
    assert here.payloads() == [b"value"]


def test_queues_and_streams_take_nothing() -> None:
    """What would wait in a queue or stream is refused; consumers go on, and so does the rest."""
    store = FillingStore()
    link = Link(store=store)
    producer, consumer = link.connect("producer"), link.connect("consumer")
    consumer.subscribe("$queue/jobs/t", 1)
    consumer.subscribe("$stream/log/t", 1)
    watcher = link.connect("watcher")
    watcher.subscribe("t", 1)
    producer.complete("$queue/jobs", b"before", 1)
    store.full = True
    for topic in ("$queue/jobs", "$stream/log", "t"):
        producer.publish(topic, b"refused", 1)
        assert producer.expect(Puback).reason == Reason.QUOTA_EXCEEDED
    assert watcher.take() == []
    producer.publish("t", b"qos 0", 0)
    assert watcher.payloads() == [b"qos 0"]
    assert link.node.statistics.dropped["the disk is full"] == 2
    assert consumer.payloads() == [b"before"]
    store.full = False
    assert producer.complete("t", b"after", 1) == Reason.SUCCESS
    assert consumer.payloads() == [b"after", b"after"]
