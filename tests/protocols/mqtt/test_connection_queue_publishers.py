"""Publishing to queues over MQTT: what is acknowledged when, and what is refused or cannot fit."""

import pytest

from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.protocols.mqtt.packets import (
    V311,
    Puback,
    Publish,
    Pubrec,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import HeldStore, Link
from tests.protocols.mqtt.queue_clients import JOBS, VERSIONS, declare, statistics, taken, user


class TestPublishers:
    """User properties of PUBLISH, and what a publisher is told."""

    def test_priority(self) -> None:
        """x-priority: what is more urgent is given out first."""
        link = Link()
        declare(link, priorities=3)
        producer = link.connect("producer")
        for payload, priority in ((b"low", "0"), (b"high", "2"), (b"middle", "1")):
            producer.complete(JOBS, payload, 1, properties=user(x_priority=priority))
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        assert consumer.payloads() == [b"high", b"middle", b"low"]

    def test_delay(self) -> None:
        """x-delay-s: it is kept back for so long."""
        link = Link()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        link.connect("producer").complete(JOBS, b"x", 1, properties=user(x_delay_s="1.5"))
        link.advance(1.4)
        assert consumer.take() == []
        link.advance(0.1)
        assert consumer.payloads() == [b"x"]

    def test_message_id(self) -> None:
        """x-message-id: within the window it is taken once, and acknowledged each time."""
        link = Link()
        declare(link, deduplication_s=60.0)
        producer = link.connect("producer")
        for _ in range(3):
            assert producer.complete(JOBS, b"x", 1, properties=user(x_message_id="7")) == 0
        assert (statistics(link).messages, statistics(link).duplicates) == (1, 2)

    def test_key(self) -> None:
        """x-key: of one key only one message is out at a time, in order."""
        link = Link()
        declare(link, ordered_by_key=True)
        producer = link.connect("producer")
        for payload in (b"a1", b"a2", b"b1"):
            key = payload[:1].decode()
            producer.complete(JOBS, payload, 1, properties=user(x_key=key))
        one, other = link.connect("one"), link.connect("other")
        one.subscribe(JOBS, 1)
        other.subscribe(JOBS, 1)
        given = taken(one)
        assert [payload for _, payload in given] == [b"a1", b"b1"]
        assert other.take() == []
        one.send(Puback(given[0][0]))
        assert [payload for _, payload in taken(one) + taken(other)] == [b"a2"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x-priority", "high"),
            ("x-priority", "-1"),
            ("x-priority", "256"),
            ("x-delay-s", "soon"),
            ("x-delay-s", "-0.1"),
            ("x-delay-s", "nan"),
            ("x-delay-s", "inf"),
        ],
    )
    def test_a_mistake_is_named(self, name: str, value: str) -> None:
        """PUBACK with 0x83 says which property is wrong; the message goes nowhere."""
        link = Link()
        declare(link)
        client = link.connect("client")
        client.publish(JOBS, b"x", 1, properties=Properties(user_properties=((name, value),)))
        puback = client.expect(Puback)
        assert puback.reason == Reason.IMPLEMENTATION_SPECIFIC_ERROR
        assert puback.properties is not None
        assert f"user property {name} is {value!r}" in (puback.properties.reason_string or "")
        assert statistics(link).messages == 0
        assert not client.ended()

    @pytest.mark.parametrize("qos", [1, 2])
    def test_no_room(self, qos: int) -> None:
        """A full queue refuses with 0x97 and the limit; there is room after an acknowledgement."""
        link = Link()
        declare(link, max_messages=1)
        producer = link.connect("producer")
        producer.complete(JOBS, b"1", qos)
        producer.publish(JOBS, b"2", qos)
        answer = producer.expect(Puback) if qos == 1 else producer.expect(Pubrec)
        assert answer.reason == Reason.QUOTA_EXCEEDED
        assert answer.properties == Properties(reason_string="queue jobs is full: max_messages = 1")
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        assert consumer.payloads() == [b"1"]
        assert producer.complete(JOBS, b"3", qos) == Reason.SUCCESS
        assert consumer.payloads() == [b"3"]

    @pytest.mark.parametrize("qos", [1, 2])
    def test_no_room_for_mqtt_3(self, qos: int) -> None:
        """It gets no acknowledgement and stays connected: its client sends again, and is heard."""
        link = Link()
        declare(link, max_messages=1)
        producer = link.connect("producer", V311, clean_start=False)
        producer.complete(JOBS, b"1", qos)
        producer.send(Publish(JOBS, b"2", qos, packet_id=9))
        assert producer.take() == []
        assert not producer.ended()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        assert consumer.payloads() == [b"1"]
        producer.cut()
        producer = link.connect("producer", V311, clean_start=False, present=True)
        producer.send(Publish(JOBS, b"2", qos, dup=True, packet_id=9))
        assert len(producer.take()) == 1
        assert consumer.payloads() == [b"2"]

    @pytest.mark.parametrize("qos", [1, 2])
    def test_a_message_larger_than_the_queue(self, qos: int) -> None:
        """MQTT 5: 0x97 and the limit, at once and again; nobody else gets it."""
        link = Link()
        declare(link, bindings=("t",), max_bytes=10)
        watcher = link.connect("watcher")
        watcher.subscribe("t", 1)
        producer = link.connect("producer")
        for _ in range(2):
            producer.publish("t", bytes(10), qos)
            answer = producer.expect(Puback) if qos == 1 else producer.expect(Pubrec)
            assert answer.reason == Reason.QUOTA_EXCEEDED
            assert answer.properties == Properties(
                reason_string="a message of 11 bytes is larger than all of queue jobs: "
                "max_bytes = 10"
            )
        assert watcher.payloads() == []

    @pytest.mark.parametrize("qos", [1, 2])
    def test_a_message_larger_than_the_queue_of_mqtt_3(self, qos: int) -> None:
        """It is acknowledged, for waiting is in vain: counted and logged, and others get it."""
        link = Link()
        declare(link, bindings=("t",), max_bytes=10)
        watcher = link.connect("watcher")
        watcher.subscribe("t", 1)
        producer = link.connect("producer", V311, clean_start=False)
        producer.complete("t", bytes(10), qos)
        assert watcher.payloads() == [bytes(10)]
        assert statistics(link).messages == 0
        assert link.node.statistics.dropped == {"queue: larger than max_bytes": 1}
        refusal = link.log.refusals()[-1]
        assert refusal["client"] == "producer"
        assert refusal["topic"] == "t"
        assert "larger than all of queue jobs: max_bytes = 10" in refusal["rule"]
        producer.complete("t", bytes(9), qos)
        assert statistics(link).messages == 1

    def test_a_message_larger_than_the_queue_of_mqtt_3_is_a_dead_letter(self) -> None:
        """With a dead letter queue it is kept there, and acknowledged after that is on disk."""
        store = HeldStore()
        link = Link(store=store)
        declare(link, max_bytes=10, dead_letter="dead")
        store.release()
        producer = link.connect("producer", V311)
        packet_id = producer.publish(JOBS, bytes(20), 1)
        assert producer.take() == []
        store.release()
        assert producer.only(Puback).packet_id == packet_id
        (dead,) = link.node.queues.get("dead").browse()
        assert dead.message.payload == bytes(20)
        assert dead.message.properties is not None
        assert dict(dead.message.properties.user_properties) == {
            "x-dead-letter-queue": "jobs",
            "x-dead-letter-reason": "larger than max_bytes",
            "x-dead-letter-count": "0",
        }

    def test_a_full_queue_refuses_mqtt_3_before_a_large_message_goes_elsewhere(self) -> None:
        """A queue that has no room now keeps the message from all, too large for another or not."""
        link = Link()
        declare(link, bindings=("t",), max_bytes=10)
        link.node.queues.declare(QueueDefinition(name="full", bindings=("t",), max_messages=1))
        link.tick()
        producer = link.connect("producer", V311)
        producer.complete("t", b"1", 1)
        producer.publish("t", bytes(10), 1)
        assert producer.take() == []
        assert link.node.statistics.dropped == {}

    @VERSIONS
    def test_no_room_for_qos_0(self, version: int) -> None:
        """Nobody can be told: it is dropped and counted."""
        link = Link()
        declare(link, max_messages=1)
        producer = link.connect("producer", version)
        for _ in range(3):
            producer.publish(JOBS, b"x", 0)
        assert (statistics(link).messages, statistics(link).refused) == (1, 2)
        assert link.node.statistics.dropped["queue is full"] == 2

    def test_a_full_queue_does_not_keep_qos_0_from_others(self) -> None:
        """What has QoS 0 goes where there is room."""
        link = Link()
        declare(link, bindings=("t",), max_messages=1)
        watcher = link.connect("watcher")
        watcher.subscribe("t", 1)
        producer = link.connect("producer")
        for qos in (1, 0, 1):
            producer.publish("t", b"%d" % qos, qos)
        assert watcher.payloads() == [b"1", b"0"]
        assert statistics(link).messages == 1
