"""Retained messages and message expiry, as clients see them (MQTT 5.0, 3.3.1.3 and 3.3.2.3.3)."""

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


def _with_retained(*messages: tuple[str, bytes], qos: int = 1) -> Link:
    link = Link()
    publisher = link.connect("publisher")
    for topic, payload in messages:
        publisher.complete(topic, payload, qos, retain=True)
    return link


class TestNewSubscriptions:
    """What a new subscription gets (MQTT 5.0, 3.8.3.1 and 3.8.4)."""

    @VERSIONS
    @pytest.mark.parametrize("kept", [0, 1, 2])
    @pytest.mark.parametrize("asked", [0, 1, 2])
    def test_the_last_message_of_each_topic(self, version: int, kept: int, asked: int) -> None:
        """Each matching topic's last message comes with RETAIN 1, at the lower QoS (3.3.1-6)."""
        link = _with_retained(("a/1", b"old"), ("a/1", b"new"), ("a/2", b"x"), ("b", b""), qos=kept)
        client = link.connect("client", version)
        client.subscribe("a/#", asked)
        messages = client.messages()
        assert sorted((each.topic, each.payload) for each in messages) == [
            ("a/1", b"new"),
            ("a/2", b"x"),
        ]
        assert all(each.retain and each.qos == min(kept, asked) for each in messages)

    @VERSIONS
    def test_live_messages_are_not_flagged(self, version: int) -> None:
        """A subscription that was there gets the message with RETAIN 0 (3.3.1-9, -12)."""
        link = Link()
        client = link.connect("client", version)
        client.subscribe("t")
        link.connect("publisher").publish("t", b"x", retain=True)
        assert [each.retain for each in client.messages()] == [False]

    @VERSIONS
    def test_an_empty_payload_clears(self, version: int) -> None:
        """An empty retained message removes the last one and is not kept itself (3.3.1-6, -7)."""
        link = _with_retained(("t", b"x"))
        watcher = link.connect("watcher", version)
        watcher.subscribe("t", retain_handling=2 if version == V5 else 0)
        watcher.messages()
        link.connect("again").publish("t", b"", retain=True)
        assert [(each.payload, each.retain) for each in watcher.messages()] == [(b"", False)]
        late = link.connect("late", version)
        late.subscribe("t")
        assert late.take() == []
        assert len(link.node.retained) == 0

    @VERSIONS
    def test_a_repeated_subscription_gets_them_again(self, version: int) -> None:
        """Subscribing again with the same filter sends the retained messages again (3.8.4-3)."""
        link = _with_retained(("t", b"x"))
        client = link.connect("client", version)
        for _ in range(3):
            client.subscribe("t")
            assert client.payloads() == [b"x"]

    @pytest.mark.parametrize(
        ("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)], ids=str
    )
    def test_retain_handling(self, handling: int, first: int, again: int) -> None:
        """0 sends always, 1 only to a new subscription, 2 never (3.3.1-9 to 3.3.1-11)."""
        link = _with_retained(("t", b"x"))
        client = link.connect("client")
        for expected in (first, again, again):
            client.subscribe("t", retain_handling=handling)
            assert len(client.messages()) == expected
        client.unsubscribe("t")
        client.subscribe("t", retain_handling=handling)
        assert len(client.messages()) == first

    def test_retain_handling_of_a_session_that_was_there(self) -> None:
        """A subscription of the stored session is not new: handling 1 sends nothing (3.3.1-10)."""
        link = _with_retained(("t", b"x"))
        client = link.connect("client", expiry_s=60)
        client.subscribe("t", retain_handling=1)
        assert len(client.messages()) == 1
        client.cut()
        client = link.connect("client", clean_start=False, expiry_s=60)
        client.subscribe("t", retain_handling=1)
        assert client.take() == []

    def test_shared_subscriptions_get_none(self) -> None:
        """No retained messages are sent to a shared subscription (4.8.2)."""
        link = _with_retained(("t", b"x"))
        client = link.connect("client")
        client.subscribe("$share/g/t")
        assert client.take() == []

    def test_several_filters_of_one_packet(self) -> None:
        """Each subscription gets its own, with its own identifier, behind SUBACK (3.8.4)."""
        link = _with_retained(("t", b"x"))
        client = link.connect("client")
        requests = [SubscriptionRequest("t", 0), SubscriptionRequest("#", 1)]
        client.send(Subscribe(1, requests, Properties(subscription_identifiers=(7,))))
        client.expect(Suback)
        messages = client.messages()
        assert [each.qos for each in messages] == [0, 1]
        for each in messages:
            assert each.properties == Properties(subscription_identifiers=(7,))

    def test_wildcards_do_not_show_the_nodes_own(self) -> None:
        """`#` and `+/…` find no retained topics that begin with ``$`` (4.7.2-1)."""
        link = Link(sys_interval_s=10)
        client = link.connect("client")
        client.subscribe("#")
        client.subscribe("+/broker/version")
        assert client.take() == []
        client.subscribe("$SYS/broker/version")
        assert client.payloads() == [b"ganglion version test"]

    @pytest.mark.parametrize("sent", [False, True])
    @pytest.mark.parametrize("wished", [False, True])
    def test_retain_as_published(self, wished: bool, sent: bool) -> None:
        """RETAIN is forwarded as it came if the subscription wishes so (3.3.1-12, -13)."""
        link = Link()
        client = link.connect("client")
        client.subscribe("t", 1, retain_as_published=wished)
        publisher = link.connect("publisher")
        publisher.complete("t", b"x", 1, retain=sent)
        assert [each.retain for each in client.messages()] == [wished and sent]

    def test_retain_as_published_of_a_session_that_was_away(self) -> None:
        """The flag is kept with the queued message, and across a restart (3.3.1-13)."""
        link = Link()
        for name, wished in (("yes", True), ("no", False)):
            client = link.connect(name, expiry_s=60)
            client.subscribe("t", 1, retain_as_published=wished)
            client.cut()
        link.connect("publisher").complete("t", b"x", 1, retain=True)
        link = link.restart()
        for name, wished in (("yes", True), ("no", False)):
            client = link.connect(name, clean_start=False, expiry_s=60)
            assert [each.retain for each in client.messages()] == [wished]


class TestPace:
    """Retained messages for a client that cannot take all of them at once."""

    def test_the_window_holds(self) -> None:
        """No more than Receive Maximum are on the way, and all arrive in the end (3.3.4-9)."""
        link = _with_retained(*((f"t/{number}", b"x") for number in range(20)))
        client = link.connect("client", receive_maximum=3)
        client.subscribe("t/#", 1)
        packets = client.take()
        assert len(packets) == 3
        for packet in packets:
            assert isinstance(packet, Publish)
            client.send_bytes(b"\x40\x02" + packet.packet_id.to_bytes(2, "big"))
        assert len(client.messages()) == 17

    @pytest.mark.parametrize("expiry_s", [0, 60])
    @pytest.mark.parametrize("qos", [0, 1])
    def test_a_slow_reader_gets_all_of_them(self, qos: int, expiry_s: int) -> None:
        """While the client does not read, nothing is dropped: it goes on when it reads again."""
        link = _with_retained(*((f"t/{number}", b"x") for number in range(20)), qos=qos)
        client = link.connect("client", expiry_s=expiry_s)
        client.endpoint.congested = True
        client.subscribe("t/#", qos)
        assert client.take() == []
        client.relieve()
        assert len(client.messages()) == 20
        assert client.endpoint.dropped == 0

    def test_what_waits_for_a_durable_client_waits_for_its_return(self) -> None:
        """The rest above QoS 0 comes after a reconnect: the subscription is there already (4.1)."""
        link = _with_retained(*((f"t/{number}", b"x") for number in range(20)))
        client = link.connect("client", expiry_s=60)
        client.endpoint.congested = True
        client.subscribe("t/#", 1)
        client.cut()
        client = link.connect("client", clean_start=False, expiry_s=60, present=True)
        assert sorted(each.topic for each in client.messages()) == sorted(
            f"t/{number}" for number in range(20)
        )

    def test_what_changed_meanwhile_is_not_sent_twice(self) -> None:
        """A retained message that was replaced while it waited is not sent in its old form."""
        link = _with_retained(("t/1", b"old"), ("t/2", b"old"), ("t/3", b"old"))
        client = link.connect("client")
        client.endpoint.congested = True
        client.subscribe("t/#", 1)
        publisher = link.connect("again")
        publisher.complete("t/1", b"", 1, retain=True)
        publisher.complete("t/2", b"new", 1, retain=True)
        client.relieve()
        got = [(each.topic, each.payload, each.retain) for each in client.messages()]
        assert sorted(got) == [
            ("t/1", b"", False),
            ("t/2", b"new", False),
            ("t/3", b"old", True),
        ]


class TestMessageExpiry:
    """Message Expiry Interval (MQTT 5.0, 3.3.2.3.3)."""

    def _publish(self, link: Link, interval_s: int, *, retain: bool = False) -> None:
        about = Properties(message_expiry_interval=interval_s)
        link.connect("publisher").complete("t", b"x", 1, retain=retain, properties=about)

    def test_it_is_forwarded(self) -> None:
        """A message that did not wait has the whole interval left (3.3.2-6)."""
        link = Link()
        client = link.connect("client")
        client.subscribe("t", 1)
        self._publish(link, 60)
        (message,) = client.messages()
        assert message.properties == Properties(message_expiry_interval=60)

    @pytest.mark.parametrize("restart", [False, True])
    def test_queued_messages_have_what_is_left(self, restart: bool) -> None:
        """The interval that is sent is what came minus the time spent waiting (3.3.2-6)."""
        link = Link()
        client = link.connect("client", expiry_s=1000)
        client.subscribe("t", 1)
        client.cut()
        self._publish(link, 60)
        link.advance(20)
        if restart:
            link = link.restart(down_s=20)
        else:
            link.advance(20)
        client = link.connect("client", clean_start=False, expiry_s=1000)
        (message,) = client.messages()
        assert message.properties == Properties(message_expiry_interval=20)

    @pytest.mark.parametrize("restart", [False, True])
    def test_queued_messages_expire(self, restart: bool) -> None:
        """What has passed its interval is not sent any more (3.3.2-5)."""
        link = Link()
        client = link.connect("client", expiry_s=1000)
        client.subscribe("t", 1)
        client.cut()
        self._publish(link, 60)
        link.connect("other").complete("t", b"stays", 1)
        if restart:
            link = link.restart(down_s=61)
        else:
            link.advance(61)
        client = link.connect("client", clean_start=False, expiry_s=1000)
        assert client.payloads() == [b"stays"]
        assert link.node.statistics.dropped["message expired"] == 1

    def test_behind_the_window_too(self) -> None:
        """A message that waits for the window of a connected client expires as well (3.3.2-5)."""
        link = Link()
        client = link.connect("client", receive_maximum=1)
        client.subscribe("t", 1)
        link.connect("other").complete("t", b"blocks", 1)
        self._publish(link, 60)
        link.advance(61)
        assert client.payloads() == [b"blocks"]

    def test_what_was_begun_is_finished(self) -> None:
        """A message that is on the way is sent again although it has expired (3.3.2-5, 4.4)."""
        link = Link()
        client = link.connect("client", expiry_s=1000)
        client.subscribe("t", 1)
        self._publish(link, 60)
        assert len(client.take()) == 1
        client.cut()
        link.advance(61)
        client = link.connect("client", clean_start=False, expiry_s=1000)
        (message,) = client.messages()
        assert message.dup

    @pytest.mark.parametrize("restart", [False, True])
    def test_retained_messages_expire(self, restart: bool) -> None:
        """A retained message has what is left of its interval, then it is gone (3.3.2-5, -6)."""
        link = Link()
        self._publish(link, 60, retain=True)
        link.advance(45)
        if restart:
            link = link.restart()
        client = link.connect("client")
        client.subscribe("t", 1)
        (message,) = client.messages()
        assert message.properties == Properties(message_expiry_interval=15)
        link.advance(15)
        client.subscribe("t", 1)
        assert client.take() == []
        assert len(link.node.retained) == 0
        assert len(link.restart().node.retained) == 0

    def test_old_versions_get_the_message_without_it(self) -> None:
        """MQTT 3.1.1 has no interval to forward; the message still expires (3.3.2.3.3)."""
        link = Link()
        client = link.connect("client", V311, clean_start=False)
        client.subscribe("t", 1)
        self._publish(link, 60)
        (message,) = client.messages()
        assert message.properties is None
        client.cut()
        self._publish(link, 60)
        link.advance(61)
        assert link.connect("client", V311, clean_start=False).take() == []


class TestLimits:
    """How much is retained (`retained_messages_max`, `retained_bytes_max`)."""

    def test_over_it_a_new_topic_is_refused(self) -> None:
        """A new topic over the limit gets 0x97 and nothing is delivered; old ones change freely."""
        link = Link(limits=Limits(retained_messages_max=2), sys_interval_s=10)
        watcher = link.connect("watcher")
        watcher.subscribe("#")
        client = link.connect("client")
        for topic in ("a", "b"):
            assert client.complete(topic, b"1", 1, retain=True) == Reason.SUCCESS
        assert client.complete("c", b"refused", 1, retain=True) == Reason.QUOTA_EXCEEDED
        assert client.complete("c", b"refused", 2, retain=True) == Reason.QUOTA_EXCEEDED
        assert client.complete("a", b"2", 1, retain=True) == Reason.SUCCESS
        assert client.complete("b", b"", 1, retain=True) == Reason.SUCCESS
        assert client.complete("c", b"3", 1, retain=True) == Reason.SUCCESS
        assert watcher.payloads() == [b"1", b"1", b"2", b"", b"3"]
        assert link.log.refusals()[0]["action"] == "retain"

    def test_bytes(self) -> None:
        """The bytes of all retained messages stay within the limit; less room is always given."""
        link = Link(limits=Limits(retained_bytes_max=10_000))
        client = link.connect("client")
        kept, refused = Reason.NO_MATCHING_SUBSCRIBERS, Reason.QUOTA_EXCEEDED
        assert client.complete("a", b"x" * 6000, 1, retain=True) == kept
        assert client.complete("b", b"x" * 4000, 1, retain=True) == refused
        assert client.complete("b", b"x" * 3000, 1, retain=True) == kept
        assert client.complete("a", b"x" * 7000, 1, retain=True) == refused
        assert client.complete("a", b"x" * 1000, 1, retain=True) == kept
        assert 4000 <= link.node.retained.size_bytes <= 10_000
        for topic in ("a", "b"):
            assert client.complete(topic, b"", 1, retain=True) == kept
        assert link.node.retained.size_bytes == 0

    def test_mqtt_3_is_acknowledged_all_the_same(self) -> None:
        """MQTT 3.x cannot say no: the refused message is acknowledged and dropped, and counted."""
        link = Link(limits=Limits(retained_messages_max=0))
        client = link.connect("client", V311)
        client.complete("a", b"x", 1, retain=True)
        client.complete("a", b"x", 2, retain=True)
        assert len(link.node.retained) == 0
        assert link.node.statistics.dropped["refused"] == 2
