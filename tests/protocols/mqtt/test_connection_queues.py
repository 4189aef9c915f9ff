"""Queues over MQTT: ``$queue/{name}`` is published to, subscribed to and acknowledged."""

from typing import Any

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Puback,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, HeldStore, Link
from tests.protocols.mqtt.queue_clients import (
    JOBS,
    VERSIONS,
    declare,
    statistics,
    subscribe,
    taken,
    user,
)


class TestTheWayOfAMessage:
    """In, out, done."""

    @VERSIONS
    def test_what_is_published_waits_for_a_consumer(self, version: int) -> None:
        """Messages of every QoS wait in the queue, in order, until they are acknowledged."""
        link = Link()
        producer = link.connect("producer", version)
        for qos in (0, 1, 2):
            assert producer.complete(JOBS, b"%d" % qos, qos) == 0
        assert statistics(link).messages == 3
        consumer = link.connect("consumer", version)
        assert consumer.subscribe(JOBS, 1) == 1
        first, second, third = taken(consumer)
        assert [first[1], second[1], third[1]] == [b"0", b"1", b"2"]
        consumer.send(Puback(second[0]))
        assert (statistics(link).messages, statistics(link).leased) == (2, 2)
        consumer.send(Puback(first[0]), Puback(third[0]))
        assert (statistics(link).messages, statistics(link).acknowledged) == (0, 3)

    @VERSIONS
    def test_consumers_share(self, version: int) -> None:
        """Each message goes to one of the consumers."""
        link = Link()
        consumers = [link.connect(name, version) for name in ("a", "b", "c")]
        for consumer in consumers:
            consumer.subscribe(JOBS, 1)
        producer = link.connect("producer", version)
        for number in range(9):
            producer.complete(JOBS, b"%d" % number, 1)
        shares = [consumer.payloads() for consumer in consumers]
        assert sorted(each for share in shares for each in share) == [
            b"%d" % number for number in range(9)
        ]
        assert all(shares)

    def test_a_topic_is_bound(self) -> None:
        """What is published to a bound filter waits in the queue, and goes its other ways too."""
        link = Link()
        consumer = link.connect("consumer", V311)
        assert consumer.subscribe("$queue/all/plant/+/temperature", 1) == 1
        watcher = link.connect("watcher")
        watcher.subscribe("plant/#", 0)
        producer = link.connect("producer")
        assert producer.complete("plant/a/temperature", b"21", 1) == Reason.SUCCESS
        assert producer.complete("plant/a/pressure", b"1", 1) == Reason.SUCCESS  # the watcher
        (message,) = consumer.messages()
        assert (message.topic, message.payload) == ("plant/a/temperature", b"21")
        assert len(watcher.messages()) == 2
        assert link.node.queues.get("all").definition.bindings == ("plant/+/temperature",)

    def test_an_acknowledged_message_is_gone_for_good(self) -> None:
        """After a crash what was acknowledged does not come back, and the rest does."""
        link = Link()
        producer = link.connect("producer")
        for payload in (b"1", b"2", b"3"):
            producer.complete(JOBS, payload, 1)
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        given = taken(consumer)
        consumer.send(Puback(given[1][0]))
        link = link.restart()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        assert [payload for _, payload in taken(consumer)] == [b"1", b"3"]

    def test_a_subscription_identifier_comes_along(self) -> None:
        """Messages of a queue carry the identifier of the subscription (3.3.2.3.8)."""
        link = Link()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1, identifier=7)
        link.connect("producer").complete(JOBS, b"x", 1)
        (message,) = consumer.messages()
        assert message.properties == Properties(subscription_identifiers=(7,))

    def test_properties_come_along(self) -> None:
        """What the publisher says about the payload reaches the consumer, key and the rest too."""
        link = Link()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        about = Properties(
            content_type="text/plain",
            response_topic="answers",
            correlation_data=b"7",
            user_properties=(("colour", "red"), ("x-key", "k"), ("x-message-id", "m")),
        )
        assert link.connect("producer").complete(JOBS, b"x", 1, properties=about) == 0
        (message,) = consumer.messages()
        assert message.properties == about

    def test_nothing_is_retained(self) -> None:
        """A retained publication to a queue is refused; MQTT 3 cannot be told, so it is counted."""
        link = Link()
        declare(link)
        client = link.connect("v5")
        assert client.complete(JOBS, b"x", 1, retain=True) == Reason.NOT_AUTHORIZED
        old = link.connect("v3", V311)
        assert old.complete(JOBS, b"x", 1, retain=True) == 0
        assert statistics(link).messages == 0
        assert link.node.statistics.dropped["refused"] == 2
        assert "retained" in link.log.refusals()[-1]["rule"]

    def test_a_name_that_cannot_be(self) -> None:
        """A publication to an impossible queue is refused with 0x90 and the reason."""
        link = Link()
        client = link.connect("client")
        for topic in ("$queue/", "$queue/a/b", "$queue/a?b", f"$queue/{'x' * 129}"):
            client.publish(topic, b"x", 1)
            puback = client.expect(Puback)
            assert puback.reason == Reason.TOPIC_NAME_INVALID, topic
            assert puback.properties is not None
            assert "queue" in (puback.properties.reason_string or "")
        assert len(link.node.queues) == 0

    def test_qos_0_is_settled_by_sending(self) -> None:
        """A consumer at QoS 0 gets each message once; it is gone when it was sent."""
        link = Link()
        consumer = link.connect("consumer")
        assert consumer.subscribe(JOBS, 0) == 0
        link.connect("producer").complete(JOBS, b"x", 1)
        (message,) = consumer.messages()
        assert (message.qos, message.packet_id) == (0, 0)
        assert statistics(link).messages == 0

    def test_qos_0_loses_nothing_to_a_slow_consumer(self) -> None:
        """While the consumer's connection is congested its messages wait in the queue."""
        link = Link()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 0)
        consumer.endpoint.congested = True
        producer = link.connect("producer")
        for number in range(300):
            producer.complete(JOBS, b"%d" % number, 1)
        assert statistics(link).messages == 300
        consumer.relieve()
        assert consumer.payloads() == [b"%d" % number for number in range(300)]
        assert consumer.endpoint.dropped == 0

    def test_qos_2_is_granted_as_1(self) -> None:
        """A queue settles with PUBACK: QoS 2 of a subscription becomes QoS 1."""
        link = Link()
        consumer = link.connect("consumer")
        assert consumer.subscribe(JOBS, 2) == 1
        link.connect("producer").complete(JOBS, b"x", 2)
        (message,) = consumer.messages()
        assert message.qos == 1

    def test_qos_2_in_is_exactly_once(self) -> None:
        """A QoS 2 publication that is sent again before and after a crash is queued once."""
        link = Link()
        durable = Properties(session_expiry_interval=600)
        producer = link.open()
        producer.send(Connect(V5, "producer", clean_start=True, properties=durable))
        producer.expect(Connack)
        producer.send(Publish(JOBS, b"x", 2, packet_id=5))
        producer.send(Publish(JOBS, b"x", 2, dup=True, packet_id=5))
        assert statistics(link).messages == 1
        link = link.restart()
        producer = link.connect("producer", clean_start=False, expiry_s=600, present=True)
        producer.send(Publish(JOBS, b"x", 2, dup=True, packet_id=5))
        producer.expect(Pubrec)
        assert statistics(link).messages == 1
        producer.send(Pubrel(5))
        producer.send(Publish(JOBS, b"y", 2, packet_id=5))
        assert statistics(link).messages == 2

    def test_the_node_commits_first(self) -> None:
        """PUBACK to the producer, SUBACK and delivery to the consumer come after the commit."""
        store = HeldStore()
        link = Link(store=store)
        consumer, producer = link.open(), link.open()
        consumer.send(Connect(V5, "consumer"))
        producer.send(Connect(V5, "producer"))
        consumer.expect(Connack)
        producer.expect(Connack)
        consumer.send(Subscribe(1, [SubscriptionRequest(JOBS, 1)]))
        assert consumer.take() == []
        store.release()
        link.tick()
        consumer.only(Suback)
        for number in (2, 3):  # the slow path, the fast one
            producer.send(Publish(JOBS, b"x", 1, packet_id=number))
            assert (producer.take(), consumer.take()) == ([], [])
            store.release()
            link.tick()
            assert producer.only(Puback).packet_id == number
            assert consumer.only(Publish).payload == b"x"

    @pytest.mark.parametrize("topic", [JOBS, "$stream/log"])
    def test_producers_wait_for_the_disk(self, topic: str) -> None:
        """Over uncommitted_bytes_max a producer is not read until the disk has caught up."""
        store = HeldStore()
        link = Link(store=store, limits=Limits(uncommitted_bytes_max=65_536))
        producer = link.connect("producer")
        declare(link)
        size = link.node.limits.uncommitted_bytes_max // 4 + 1
        for number in range(1, 6):
            producer.send(Publish(topic, bytes(size), 1, packet_id=number))
        paused = [producer.endpoint.paused]
        while store.held:
            store.release()
            link.advance(0.1)
        paused.append(producer.endpoint.paused)
        assert paused == [True, False]
        assert len(producer.take()) == 5


class TestRefusing:
    """PUBACK with a reason of 0x80 and above."""

    def _one(self, **options: Any) -> tuple[Link, FakeClient, int]:
        link = Link()
        declare(link, **options)
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        link.connect("producer").complete(JOBS, b"x", 1)
        ((packet_id, _),) = taken(consumer)
        return link, consumer, packet_id

    def test_it_comes_again_later(self) -> None:
        """A refused message rests for the queue's backoff, and says how often it was tried."""
        link, consumer, packet_id = self._one(backoff_s=10.0)
        consumer.send(Puback(packet_id, Reason.UNSPECIFIED_ERROR))
        assert taken(consumer) == []
        link.advance(10)
        (message,) = consumer.messages()
        assert message.payload == b"x"
        assert message.properties == user(x_delivery_count="1")

    def test_the_consumer_says_when(self) -> None:
        """With the user property x-delay-s it comes back after that time."""
        link, consumer, packet_id = self._one(backoff_s=1.0)
        consumer.send(Puback(packet_id, Reason.IMPLEMENTATION_SPECIFIC_ERROR, user(x_delay_s="60")))
        link.advance(59)
        assert taken(consumer) == []
        link.advance(1)
        assert consumer.payloads() == [b"x"]

    @pytest.mark.parametrize("text", ["soon", "-1", "1e99", "nan"])
    def test_a_delay_that_is_none(self, text: str) -> None:
        """A delay that cannot be is as none: the backoff counts, nothing is lost."""
        link, consumer, packet_id = self._one(backoff_s=10.0)
        consumer.send(Puback(packet_id, Reason.UNSPECIFIED_ERROR, user(x_delay_s=text)))
        assert taken(consumer) == []
        link.advance(10)
        assert consumer.payloads() == [b"x"]

    def test_nobody_can_do_it(self) -> None:
        """PUBACK with 0x99 sends it to the dead letter queue, with the reason string."""
        link, consumer, packet_id = self._one(dead_letter="dead")
        reason = Properties(reason_string="not JSON")
        consumer.send(Puback(packet_id, Reason.PAYLOAD_FORMAT_INVALID, reason))
        assert (statistics(link).messages, statistics(link, "dead").messages) == (0, 1)
        doctor = link.connect("doctor")
        doctor.subscribe("$queue/dead", 1)
        (message,) = doctor.messages()
        assert message.topic == JOBS
        assert message.properties == user(
            x_dead_letter_queue="jobs", x_dead_letter_reason="not JSON", x_dead_letter_count="1"
        )

    def test_in_vain_too_often(self) -> None:
        """After max_deliveries refusals it is a dead letter."""
        link, consumer, packet_id = self._one(
            max_deliveries=3, backoff_s=1.0, backoff_max_s=1.0, dead_letter="dead"
        )
        for _ in range(2):
            consumer.send(Puback(packet_id, Reason.UNSPECIFIED_ERROR))
            link.advance(1)
            ((packet_id, _),) = taken(consumer)
        consumer.send(Puback(packet_id, Reason.UNSPECIFIED_ERROR))
        assert (statistics(link).messages, statistics(link, "dead").messages) == (0, 1)

    def test_no_time_left(self) -> None:
        """When its lease has run out another consumer gets it; a late PUBACK changes nothing."""
        link, consumer, packet_id = self._one(lease_s=30.0, backoff_s=0.0)
        other = link.connect("other")
        other.subscribe(f"{JOBS}?credit=1", 1)
        link.advance(30)
        ((other_id, payload),) = taken(other) or taken(consumer)
        assert payload == b"x"
        consumer.send(Puback(packet_id))
        assert statistics(link).messages == 1
        other.send(Puback(other_id))
        assert statistics(link).messages == 0

    def test_too_large_for_this_consumer(self) -> None:
        """What is over the client's Maximum Packet Size goes back, and it gets nothing for 1 s."""
        link = Link()
        declare(link, backoff_s=0.0)
        small = link.connect("small", maximum_packet_size=100)
        small.subscribe(f"{JOBS}?credit=1", 1)
        producer = link.connect("producer")
        producer.complete(JOBS, bytes(200), 1)
        producer.complete(JOBS, b"x", 1)
        link.advance(2.5)
        assert small.take() == []
        assert statistics(link).delivered == 3
        large = link.connect("large")
        large.subscribe(JOBS, 1)
        assert large.payloads() == [bytes(200), b"x"]


class TestComingAndGoing:
    """Sessions, connections, subscriptions."""

    def _working(self, **connect: Any) -> tuple[Link, FakeClient, list[tuple[int, bytes]]]:
        """A consumer that has two messages and has not acknowledged them."""
        link = Link()
        consumer = link.connect("consumer", **connect)
        consumer.subscribe(JOBS, 1)
        producer = link.connect("producer")
        for payload in (b"1", b"2"):
            producer.complete(JOBS, payload, 1)
        given = taken(consumer)
        assert [payload for _, payload in given] == [b"1", b"2"]
        return link, consumer, given

    def test_leaving_returns_what_was_not_acknowledged(self) -> None:
        """Another consumer gets it at once, in order."""
        link, consumer, given = self._working()
        other = link.connect("other")
        other.subscribe(JOBS, 1)
        consumer.send(Puback(given[0][0]))
        assert other.payloads() == []
        consumer.cut()
        assert other.payloads() == [b"2"]
        assert statistics(link).messages == 0

    def test_a_taken_over_connection(self) -> None:
        """The new connection of the same client gets what the old one had, under new leases."""
        link, old, _ = self._working(expiry_s=600)
        new = link.connect("consumer", clean_start=False, expiry_s=600, present=True)
        assert old.is_gone
        assert new.payloads() == [b"1", b"2"]
        assert statistics(link).messages == 0

    def test_a_clean_start_ends_the_subscription(self) -> None:
        """What it had is back in the queue; nothing comes without a new SUBSCRIBE."""
        link, _, _ = self._working(expiry_s=600)
        new = link.connect("consumer", expiry_s=600, present=False)
        assert new.take() == []
        assert (statistics(link).messages, statistics(link).consumers) == (2, 0)

    @VERSIONS
    def test_a_durable_subscription_goes_on(self, version: int) -> None:
        """After a restart a returning client consumes on, with its credit and identifier."""
        link = Link()
        durable: dict[str, Any] = {"expiry_s": 600} if version == V5 else {}
        consumer = link.connect("consumer", version, clean_start=False, **durable)
        consumer.subscribe(f"{JOBS}?credit=2", 1)
        consumer.disconnect()
        link = link.restart()
        assert statistics(link).consumers == 0
        producer = link.connect("producer")
        for payload in (b"1", b"2", b"3"):
            producer.complete(JOBS, payload, 1)
        consumer = link.connect("consumer", version, clean_start=False, present=True, **durable)
        assert [payload for _, payload in taken(consumer)] == [b"1", b"2"]

    def test_unsubscribing_lets_it_finish(self) -> None:
        """After UNSUBSCRIBE nothing new comes; what is being worked on can be acknowledged."""
        link, consumer, given = self._working()
        consumer.unsubscribe(JOBS)
        link.connect("third").complete(JOBS, b"3", 1)
        assert consumer.take() == []
        consumer.send(Puback(given[0][0]))
        assert statistics(link).consumers == 1
        consumer.send(Puback(given[1][0]))
        assert (statistics(link).messages, statistics(link).consumers) == (1, 0)

    def test_unsubscribing_and_leaving(self) -> None:
        """Who unsubscribes and then leaves gives back what was not acknowledged."""
        link, consumer, given = self._working()
        consumer.unsubscribe(JOBS)
        consumer.send(Puback(given[0][0]))
        consumer.cut()
        assert (statistics(link).consumers, statistics(link).leased) == (0, 0)
        other = link.connect("other")
        other.subscribe(JOBS, 1)
        assert other.payloads() == [b"2"]

    def test_an_unsubscribed_consumer_is_not_the_active_one(self) -> None:
        """When its last lease has run out, the next consumer is the single active one."""
        link = Link()
        declare(link, single_active_consumer=True, lease_s=30.0, backoff_s=0.0)
        first, second = link.connect("first"), link.connect("second")
        first.subscribe(JOBS, 1)
        second.subscribe(JOBS, 1)
        link.connect("producer").complete(JOBS, b"x", 1)
        assert [payload for _, payload in taken(first)] == [b"x"]
        first.unsubscribe(JOBS)
        assert second.take() == []
        link.advance(31)
        assert second.payloads() == [b"x"]

    def test_subscribing_again_sends_nothing_twice(self) -> None:
        """The same filter, or another one of the same queue, replaces the subscription."""
        link, consumer, given = self._working()
        consumer.subscribe(JOBS, 1, identifier=3)
        consumer.subscribe("$queue/jobs/extra/#", 1, identifier=4)
        assert consumer.take() == []
        assert (statistics(link).consumers, statistics(link).leased) == (1, 2)
        link.connect("third").complete(JOBS, b"3", 1)
        ((third_id, _),) = taken(consumer)
        for packet_id in (given[0][0], given[1][0], third_id):
            consumer.send(Puback(packet_id))
        assert statistics(link).messages == 0

    def test_options_are_not_needed_to_unsubscribe(self) -> None:
        """UNSUBSCRIBE names the queue, with or without what was said beside it."""
        link = Link()
        client = link.connect("client")
        client.subscribe("$queue/jobs?lease_s=5/t", 1)
        client.unsubscribe("$queue/jobs")
        client.subscribe("$queue/jobs", 1)
        client.unsubscribe("$queue/jobs?lease_s=5/t")
        assert statistics(link).consumers == 0
        assert link.node.queues.get("jobs").definition.bindings == ("t",)

    def test_a_shared_subscription_is_a_consumer(self) -> None:
        """``$share/group/$queue/name`` is ``$queue/name``: its consumers share in any case."""
        link = Link()
        consumer = link.connect("consumer")
        assert consumer.subscribe(f"$share/group/{JOBS}", 1) == 1
        link.connect("producer").complete(JOBS, b"x", 1)
        assert consumer.payloads() == [b"x"]
        consumer.unsubscribe(f"$share/group/{JOBS}")
        assert statistics(link).consumers == 0

    def test_a_queue_is_deleted(self) -> None:
        """Its consumers stay connected, and go on when there is a queue of this name again."""
        link, consumer, given = self._working()
        link.node.queues.delete("jobs")
        link.tick()
        consumer.send(Puback(given[0][0]))
        assert consumer.take() == []
        link.connect("third").complete(JOBS, b"3", 1)
        assert [payload for _, payload in taken(consumer)] == [b"3"]
        assert statistics(link).consumers == 1
        consumer.send(Puback(given[1][0]))
        assert statistics(link).messages == 1

    def test_other_consumers_of_a_deleted_queue_get_nothing_of_it(self) -> None:
        """What its consumers had is deleted too, not handed around or buried."""
        link = Link()
        declare(link, max_deliveries=1, dead_letter="dead")
        consumers = [link.connect(name) for name in ("a", "b")]
        for consumer in consumers:
            consumer.subscribe(f"{JOBS}?credit=1", 1)
        producer = link.connect("producer")
        for number in range(4):
            producer.complete(JOBS, b"%d" % number, 1)
        assert [len(taken(consumer)) for consumer in consumers] == [1, 1]
        link.node.queues.delete("jobs")
        link.tick()
        assert [taken(consumer) for consumer in consumers] == [[], []]
        assert statistics(link, "dead").messages == 0

    def test_a_gone_client_does_not_come_back_with_the_queue(self) -> None:
        """Only connected subscribers begin to consume when the queue is there."""
        link = Link()
        client = link.connect("client", expiry_s=600)
        client.subscribe(JOBS, 1)
        client.disconnect()
        link.node.queues.delete("jobs")
        declare(link)
        assert statistics(link).consumers == 0
        client = link.connect("client", clean_start=False, expiry_s=600, present=True)
        assert statistics(link).consumers == 1

    def test_a_will_goes_to_a_queue(self) -> None:
        """The last words of a client wait in the queue like any message."""
        link = Link()
        link.connect("client", will=Will(JOBS, b"gone", 1, retain=False)).cut()
        consumer = link.connect("consumer")
        consumer.subscribe(JOBS, 1)
        assert consumer.payloads() == [b"gone"]

    def test_a_will_that_there_is_no_room_for(self) -> None:
        """A will for a full or impossible queue is dropped, counted and in the log."""
        link = Link()
        declare(link, max_messages=1)
        link.connect("producer").complete(JOBS, b"x", 1)
        link.connect("one", will=Will(JOBS, b"gone", 1, retain=False)).cut()
        assert "max_messages" in link.log.refusals()[-1]["rule"]
        link.connect("two", will=Will("$queue/a/b", b"gone", 1, retain=False)).cut()
        assert "'a/b'" in link.log.refusals()[-1]["rule"]
        assert link.node.statistics.dropped["refused"] == 2

    def test_a_will_that_is_larger_than_a_queue(self) -> None:
        """Who bound the queue costs nobody else the will: it goes to the other receivers."""
        link = Link()
        declare(link, bindings=("t",), max_bytes=10)
        watcher = link.connect("watcher")
        watcher.subscribe("t", 1)
        link.connect("client", will=Will("t", bytes(10), 1, retain=False)).cut()
        assert watcher.payloads() == [bytes(10)]
        assert "max_bytes = 10" in link.log.refusals()[-1]["rule"]
        assert link.node.statistics.dropped == {"queue: larger than max_bytes": 1}


class TestCredit:
    """How much a consumer gets at a time."""

    @pytest.mark.parametrize("receive_maximum", [1, 3])
    def test_receive_maximum_is_credit(self, receive_maximum: int) -> None:
        """So many messages are on the way; each PUBACK lets the next one come."""
        link = Link()
        consumer = link.connect("consumer", receive_maximum=receive_maximum)
        consumer.subscribe(JOBS, 1)
        producer = link.connect("producer")
        for number in range(6):
            producer.complete(JOBS, b"%d" % number, 1)
        given = taken(consumer)
        assert len(given) == receive_maximum
        consumer.send(Puback(given[0][0]))
        assert [payload for _, payload in taken(consumer)] == [b"%d" % receive_maximum]

    @VERSIONS
    def test_credit_is_an_option(self, version: int) -> None:
        """``?credit=`` is for clients that cannot say it otherwise, and for one queue of many."""
        link = Link()
        consumer = link.connect("consumer", version)
        consumer.subscribe(f"{JOBS}?credit=2", 1)
        producer = link.connect("producer")
        for number in range(5):
            producer.complete(JOBS, b"%d" % number, 1)
        given = taken(consumer)
        assert len(given) == 2
        consumer.send(Puback(given[0][0]), Puback(given[1][0]))
        assert len(taken(consumer)) == 2
        consumer.subscribe(f"{JOBS}?credit=3", 1)
        assert len(taken(consumer)) == 1

    def test_a_lease_that_ran_out_is_credit_again(self) -> None:
        """An MQTT 3 client that leaves what it cannot do unacknowledged gets other work."""
        link = Link()
        declare(link, lease_s=30.0, backoff_s=1000.0)
        consumer = link.connect("consumer", V311)
        consumer.subscribe(f"{JOBS}?credit=1", 1)
        producer = link.connect("producer")
        producer.complete(JOBS, b"1", 1)
        producer.complete(JOBS, b"2", 1)
        assert [payload for _, payload in taken(consumer)] == [b"1"]
        link.advance(30)
        assert [payload for _, payload in taken(consumer)] == [b"2"]

    def test_no_queue_starves_another(self) -> None:
        """Two queues of one client take turns at the room that it has."""
        link = Link()
        producer = link.connect("producer")
        for number in range(10):
            producer.complete("$queue/a", b"a%d" % number, 1)
            producer.complete("$queue/b", b"b%d" % number, 1)
        consumer = link.connect("consumer", receive_maximum=1)
        consumer.subscribe("$queue/a", 1)
        consumer.subscribe("$queue/b", 1)
        came: list[bytes] = []
        for _ in range(10):
            ((packet_id, payload),) = taken(consumer)
            came.append(payload[:1])
            consumer.send(Puback(packet_id))
        assert 4 <= came.count(b"a") <= 6


class TestOptions:
    """What a filter and user properties say about the queue."""

    @VERSIONS
    def test_options_stand_in_the_filter(self, version: int) -> None:
        """Every option of a queue can be given in the first filter that names it."""
        link = Link()
        options = (
            "lease_s=5&max_deliveries=3&backoff_s=0.5&backoff-max-s=9&dead_letter=dead&ttl_s=60"
            "&priorities=4&ordered_by_key&single_active_consumer=no&max_messages=7&max_bytes=1000"
            "&overflow=drop-oldest&deduplication_s=30&credit=4"
        )
        assert link.connect("c", version).subscribe(f"{JOBS}?{options}/a/+", 1) == 1
        assert link.node.queues.get("jobs").definition == QueueDefinition(
            name="jobs",
            bindings=("a/+",),
            lease_s=5.0,
            max_deliveries=3,
            backoff_s=0.5,
            backoff_max_s=9.0,
            dead_letter="dead",
            ttl_s=60.0,
            priorities=4,
            ordered_by_key=True,
            max_messages=7,
            max_bytes=1000,
            overflow="drop-oldest",
            deduplication_s=30.0,
        )
        assert link.node.queues.find("dead") is not None

    def test_options_are_user_properties(self) -> None:
        """User properties of SUBSCRIBE do the same; those that are no option say nothing."""
        link = Link()
        client = link.connect("client")
        about = user(lease_s="5", max_deliveries="3", trace="abc", name="no", bindings="no")
        assert subscribe(client, f"{JOBS}?max_deliveries=4", about).reasons == [1]
        definition = link.node.queues.get("jobs").definition
        assert definition == QueueDefinition(name="jobs", lease_s=5.0, max_deliveries=4)

    def test_what_is_not_said_stays(self) -> None:
        """Later subscriptions change the options that they name, and add bindings."""
        link = Link()
        client = link.connect("client")
        client.subscribe(f"{JOBS}?lease_s=5/a", 1)
        client.subscribe(f"{JOBS}?max_messages=9/b", 1)
        client.subscribe(JOBS, 1)
        assert link.node.queues.get("jobs").definition == QueueDefinition(
            name="jobs", bindings=("a", "b"), lease_s=5.0, max_messages=9
        )

    @pytest.mark.parametrize(
        ("topic_filter", "reason", "text"),
        [
            ("$queue/", 0x8F, "a queue needs a name"),
            ("$queue/+", 0x8F, "'+' cannot be the name of a queue"),
            ("$queue/#", 0x8F, "'#' cannot be the name of a queue"),
            ("$queue/a/", 0x8F, "ends with '/'"),
            ("$queue/a/$share/g/t", 0x8F, "cannot be bound"),
            ("$queue/a/_reply/#", 0x8F, "cannot be bound"),
            ("$queue/a?lease=5", 0x83, "no option 'lease'"),
            ("$queue/a?name=b", 0x83, "no option 'name'"),
            ("$queue/a?after=3", 0x83, "no option 'after'"),
            ("$queue/a?lease_s=x", 0x83, "option lease_s is 'x'"),
            ("$queue/a?lease_s=0", 0x83, "option lease_s is 0; it must be"),
            ("$queue/a?lease_s=nan", 0x83, "option lease_s is nan; it must be"),
            ("$queue/a?max_messages=1.5", 0x83, "option max_messages is '1.5'"),
            ("$queue/a?ordered_by_key=maybe", 0x83, "option ordered_by_key is 'maybe'"),
            ("$queue/a?overflow=explode", 0x83, "option overflow is 'explode'"),
            ("$queue/a?dead_letter=a", 0x83, "option dead_letter names the queue itself"),
            ("$queue/a?credit=0", 0x83, "option credit is '0'"),
            ("$queue/a?credit=many", 0x83, "option credit is 'many'"),
        ],
    )
    def test_a_mistake_is_named(self, topic_filter: str, reason: int, text: str) -> None:
        """SUBACK refuses with the option and what it may be; no queue is made."""
        link = Link()
        client = link.connect("client")
        suback = subscribe(client, topic_filter)
        assert suback.reasons == [reason]
        assert suback.properties is not None
        assert text in (suback.properties.reason_string or "")
        assert len(link.node.queues) == 0
        assert link.node.refusals.counts["subscribe"] == 1

    def test_mqtt_3_gets_0x80(self) -> None:
        """MQTT 3.1.1 has one code for every mistake; the log has the reason."""
        link = Link()
        assert link.connect("old", V311).subscribe("$queue/a?lease=5", 1) == 0x80
        assert "'lease'" in link.log.refusals()[-1]["rule"]

    def test_priorities_cannot_change(self) -> None:
        """An option that an existing queue cannot take is refused, and nothing has changed."""
        link = Link()
        declare(link)
        client = link.connect("client")
        assert subscribe(client, f"{JOBS}?priorities=3&lease_s=1").reasons == [0x83]
        assert link.node.queues.get("jobs").definition == QueueDefinition(name="jobs")
        assert statistics(link).consumers == 0
