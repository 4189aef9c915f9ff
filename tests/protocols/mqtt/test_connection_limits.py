"""Limits of a client: rates, queues, subscriptions, topics, properties, sessions, pieces."""

import tracemalloc

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link


def _paused(client: FakeClient) -> bool:
    return client.endpoint.paused


class TestRates:
    """`receive_messages_per_s_max` and `receive_bytes_per_s_max`."""

    def test_messages(self) -> None:
        """A client over its rate is not read until it is within it again; nothing is lost."""
        link = Link(limits=Limits(receive_messages_per_s_max=10))
        client = link.connect("client", V311)
        counted = link.node.statistics
        for _ in range(200):
            client.publish("t", b"x")
        assert counted.publish_received < 30
        assert client.endpoint.paused
        received = counted.publish_received
        link.advance(0.05)
        assert counted.publish_received == received
        for _ in range(60):
            link.advance(1)
        assert counted.publish_received == 200
        assert not client.endpoint.paused

    def test_the_long_run(self) -> None:
        """Over a minute a busy client gets through what its rate allows, within a tenth."""
        link = Link(limits=Limits(receive_messages_per_s_max=100))
        client = link.connect("client", V311)
        packet = encode(Publish("t", b"x"), V311)
        for _ in range(600):
            if not client.endpoint.paused:
                client.send_bytes(packet * 20)
            link.advance(0.1)
        assert 5400 <= link.node.statistics.publish_received <= 6600

    def test_bytes(self) -> None:
        """Bytes are counted as they come, parts of packets and pings too."""
        link = Link(limits=Limits(receive_bytes_per_s_max=1000))
        client = link.connect("client", V311)
        client.send_bytes(encode(Publish("t", b"x" * 20_000), V311)[:10_000])
        assert client.endpoint.paused
        link.advance(5)
        assert client.endpoint.paused
        link.advance(6)
        assert not client.endpoint.paused

    def test_a_slow_client_is_not_disturbed(self) -> None:
        """Within the rate there is no pause."""
        link = Link(limits=Limits(receive_messages_per_s_max=10, receive_bytes_per_s_max=1000))
        client = link.connect("client", V311)
        for _ in range(50):
            client.publish("t", b"x")
            assert not client.endpoint.paused
            link.advance(0.2)

    def test_a_pause_is_not_silence(self) -> None:
        """While a client is not read, its keep alive does not run out (3.1.2-22)."""
        link = Link(limits=Limits(receive_bytes_per_s_max=1000))
        client = link.connect("client", keep_alive_s=5)
        client.publish("t", b"x" * 30_000)
        assert _paused(client)
        link.advance(25)
        assert not client.ended()
        link.advance(6)
        assert not _paused(client)
        link.advance(5)
        assert not client.ended()
        link.advance(1)
        assert client.ended()

    def test_a_client_that_goes_during_its_pause(self) -> None:
        """The end of the pause of a closed connection does nothing."""
        link = Link(limits=Limits(receive_messages_per_s_max=1))
        client = link.connect("client", V311)
        for _ in range(5):
            client.publish("t", b"x")
        client.cut()
        assert client.endpoint.paused
        link.advance(100)
        assert client.endpoint.paused


class TestQueues:
    """`queued_messages_per_session_max` and `queued_bytes_per_session_max`."""

    @pytest.mark.parametrize("qos", [1, 2])
    def test_messages(self, qos: int) -> None:
        """Over the limit new messages are dropped and counted; what waits is kept, in order."""
        link = Link(limits=Limits(queued_messages_per_session_max=5))
        client = link.connect("client", expiry_s=60)
        client.subscribe("t", qos)
        client.cut()
        publisher = link.connect("publisher")
        for number in range(8):
            publisher.complete("t", b"%d" % number, qos)
        client = link.connect("client", clean_start=False, expiry_s=60)
        assert client.payloads() == [b"%d" % number for number in range(5)]
        assert link.node.statistics.dropped["session queue is full"] == 3

    def test_bytes(self) -> None:
        """The payload bytes that wait are bounded, and the count follows what is sent."""
        link = Link(limits=Limits(queued_bytes_per_session_max=1024))
        client = link.connect("client", expiry_s=60)
        client.subscribe("t", 1)
        client.cut()
        publisher = link.connect("publisher")
        for _ in range(12):
            publisher.complete("t", b"x" * 100, 1)
        backlog = link.node.sessions["client"].backlog
        assert backlog is not None
        assert 1000 <= backlog.size_bytes <= 1024
        client = link.connect("client", clean_start=False, expiry_s=60)
        messages = client.messages()
        assert len(messages) == 10
        for packet in messages:
            client.send(Puback(packet.packet_id))
        assert backlog.size_bytes == 0

    def test_behind_the_window_of_a_transient_session(self) -> None:
        """The queue of a connected client without a stored session has the same limit."""
        link = Link(limits=Limits(queued_messages_per_session_max=3))
        client = link.connect("client", receive_maximum=2)
        client.subscribe("t", 1)
        publisher = link.connect("publisher")
        for number in range(9):
            publisher.complete("t", b"%d" % number, 1)
        assert client.payloads() == [b"0", b"1", b"2", b"3", b"4"]

    def test_qos_0_does_not_wait(self) -> None:
        """QoS 0 messages are not kept for a client that is away; they are counted."""
        link = Link()
        client = link.connect("client", expiry_s=60)
        client.subscribe("t", 1)
        client.cut()
        link.connect("publisher").publish("t", b"x")
        assert link.node.statistics.dropped["client is offline"] == 1
        assert link.connect("client", clean_start=False, expiry_s=60).take() == []


class TestSlowReader:
    """A client that does not take what is sent to it."""

    @pytest.mark.parametrize("expiry_s", [0, 60])
    def test_qos_1_waits_in_its_session(self, expiry_s: int) -> None:
        """Above QoS 0 nothing is written to a congested connection, and nothing is lost."""
        link = Link()
        client = link.connect("client", expiry_s=expiry_s)
        client.subscribe("t", 1)
        client.endpoint.congested = True
        writes = client.endpoint.writes
        publisher = link.connect("publisher")
        for number in range(10):
            publisher.complete("t", b"%d" % number, 1)
        assert client.endpoint.writes == writes
        client.relieve()
        assert client.payloads() == [b"%d" % number for number in range(10)]

    def test_qos_0_is_dropped_and_counted(self) -> None:
        """QoS 0 is offered, so that the endpoint drops and counts it."""
        link = Link()
        client = link.connect("client")
        client.subscribe("t")
        client.endpoint.congested = True
        publisher = link.connect("publisher")
        for _ in range(3):
            publisher.publish("t", b"x")
        assert client.endpoint.dropped == 3
        client.relieve()
        assert client.take() == []

    def test_others_are_not_affected(self) -> None:
        """The other receivers of the same messages get all of them."""
        link = Link()
        slow, fast = link.connect("slow"), link.connect("fast")
        for client in (slow, fast):
            client.subscribe("t", 1)
        slow.endpoint.congested = True
        publisher = link.connect("publisher")
        for _ in range(5):
            publisher.complete("t", b"", 1)
        assert len(fast.messages()) == 5


class TestTopics:
    """`topic_size_max_bytes`, `topic_levels_max` and `subscriptions_per_client_max`."""

    LIMITS = Limits(topic_size_max_bytes=16, topic_levels_max=3, subscriptions_per_client_max=2)

    @pytest.mark.parametrize(
        ("topic", "fits"),
        [
            ("x" * 16, True),
            ("x" * 17, False),
            ("é" * 8, True),
            ("é" * 8 + "x", False),
            ("a/b/c", True),
            ("a/b/c/d", False),
            ("///", False),
            ("//", True),
        ],
    )
    def test_names_and_filters(self, topic: str, fits: bool) -> None:
        """Bytes and levels are counted; over the limit 0x90 or 0x8F, and the client stays."""
        link = Link(limits=self.LIMITS)
        client = link.connect("client")
        publishes = client.complete(topic, b"", 1)
        assert publishes == (Reason.NO_MATCHING_SUBSCRIBERS if fits else Reason.TOPIC_NAME_INVALID)
        assert client.subscribe(topic) == (0 if fits else Reason.TOPIC_FILTER_INVALID)
        shared = client.subscribe(f"$share/group/{topic}")
        assert shared == (0 if fits else Reason.TOPIC_FILTER_INVALID)
        assert not client.is_gone

    def test_subscriptions(self) -> None:
        """More subscriptions than allowed are refused with 0x97; replacing one is no more."""
        link = Link(limits=self.LIMITS)
        client = link.connect("client")
        assert client.subscribe("a") == 0
        assert client.subscribe("b") == 0
        assert client.subscribe("c") == Reason.QUOTA_EXCEEDED
        assert client.subscribe("a", 1) == 1
        client.unsubscribe("a")
        assert client.subscribe("c") == 0
        assert link.node.router.subscription_count == 2

    def test_too_many_filters_in_one_packet(self) -> None:
        """A SUBSCRIBE with more filters than a client may have at all is refused: 0x97."""
        client = Link(limits=self.LIMITS).connect("client")
        client.send(Subscribe(1, [SubscriptionRequest("a", 0)] * 3))
        assert client.goodbye() == Reason.QUOTA_EXCEEDED


class TestConnections:
    """What a connection may cost before and after CONNECT."""

    def test_sessions(self) -> None:
        """A client that would need one session more is refused with 0x97; others come back."""
        link = Link(limits=Limits(sessions_max=2))
        link.connect("a", expiry_s=60).cut()
        link.connect("b")
        link.connect("c", expected=Reason.QUOTA_EXCEEDED)
        link.connect("c", V311, expected=3)
        link.connect("a", clean_start=True, expiry_s=0).cut()
        link.connect("c")

    def test_properties(self) -> None:
        """A packet with too many properties is refused with 0x97, CONNECT too."""
        link = Link(limits=Limits(properties_per_packet_max=3))
        client = link.connect("client")
        many = Properties(user_properties=(("k", "v"),) * 4)
        few = Properties(user_properties=(("k", "v"),) * 3)
        assert client.complete("t", b"", 1, properties=few) == Reason.NO_MATCHING_SUBSCRIBERS
        client.publish("t", b"", properties=many)
        assert client.goodbye() == Reason.QUOTA_EXCEEDED
        link.connect("other", user_properties=many.user_properties, expected=Reason.QUOTA_EXCEEDED)

    def test_a_packet_in_tiny_pieces_costs_its_bytes(self) -> None:
        """Half of a large packet, sent two bytes at a time, costs little more than its bytes."""
        link = Link()
        client = link.connect("client", V311)
        data = encode(Publish("t", b"x" * 400_000), V311)[:200_000]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for at in range(0, len(data), 2):
                client.connection.receive(data[at : at + 2], link.now)
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert used < 2 * len(data)

    def test_a_large_packet_in_pieces_arrives(self) -> None:
        """Whatever the sizes of the pieces are, the packet is put together as it was."""
        link = Link()
        subscriber = link.connect("subscriber")
        subscriber.subscribe("t", 1)
        client = link.connect("client")
        payload = bytes(range(256)) * 400
        data = encode(Publish("t", payload, 1, packet_id=1), V5) + encode(Pingreq(), V5)
        at, size = 0, 1
        while at < len(data):
            client.send_bytes(data[at : at + size])
            at, size = at + size, size * 3 % 10_007
        assert [type(each) for each in client.take()] == [Puback, Pingresp]
        assert subscriber.payloads() == [payload]

    def test_remembered_topics_are_bounded(self) -> None:
        """A publisher of ever new topics does not make its connection grow without end."""
        link = Link()
        client = link.connect("client", V311)
        for number in range(3000):
            client.publish(f"t/{number}", b"")
        assert len(client.connection._routes) <= 1024


class TestRefusalsInTheLog:
    """Refusals are logged at a bounded rate, and all are counted."""

    def test_a_flood(self) -> None:
        """A client that is refused a thousand times fills neither log nor disk."""
        link = Link()
        client = link.connect("client")
        for _ in range(1000):
            client.publish("$SYS/x", b"")
        assert link.node.refusals.counts["publish"] == 1000
        assert len(link.log.refusals()) == 20
        link.advance(1)
        client.publish("$SYS/x", b"")
        assert ("refusals not logged", {"count": 980}) in link.log.events


def test_connect_for_somebody_else_is_bounded() -> None:
    """Many CONNECTs that are refused leave nothing behind."""
    link = Link(limits=Limits(sessions_max=1))
    link.connect("only")
    for number in range(100):
        client = link.open()
        client.send(Connect(V5, f"c{number}"))
        assert client.only(Connack).reason == Reason.QUOTA_EXCEEDED
    assert list(link.node.sessions) == ["only"]
    assert len(link.timers) < 1200
    assert len(link._clients) == 1
