"""What MQTT 5.0 adds to a connection: aliases, reason strings, request/response, announcements."""

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Disconnect,
    Puback,
    Publish,
    Pubrec,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.protocols.mqtt.server import MqttSettings
from tests.protocols.mqtt.fake_link import FakeClient, Link


class AliasReader:
    """Resolves the aliases that the broker uses, as a client has to (3.3.2.3.4)."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.topics: dict[int, str] = {}
        self.short = 0

    def topic(self, packet: Publish) -> str:
        """The topic of the packet."""
        alias = packet.properties.topic_alias if packet.properties else None
        if alias is None:
            return packet.topic
        assert 1 <= alias <= self.maximum
        if packet.topic:
            self.topics[alias] = packet.topic
        else:
            self.short += 1
        return self.topics[alias]


class TestTopicAliases:
    """Topic aliases both ways (MQTT 5.0, 3.3.2.3.4)."""

    def test_from_the_client(self) -> None:
        """An alias stands for the topic it was set with, until it is set again (3.3.2-12)."""
        link = Link()
        subscriber = link.connect("subscriber")
        subscriber.subscribe("#", 1)
        client = link.connect("client")
        for topic, alias in (("a", 1), ("", 1), ("b", 2), ("", 1), ("", 2), ("c", 1), ("", 1)):
            client.publish(topic, b"", properties=Properties(topic_alias=alias))
        assert [each.topic for each in subscriber.messages()] == ["a", "a", "b", "a", "b", "c", "c"]

    def test_they_belong_to_the_connection(self) -> None:
        """A new connection knows no aliases of an earlier one (3.3.2-7)."""
        link = Link()
        client = link.connect("client", expiry_s=60)
        client.publish("a", b"", properties=Properties(topic_alias=1))
        client.cut()
        client = link.connect("client", clean_start=False, expiry_s=60)
        client.publish("", b"", properties=Properties(topic_alias=1))
        assert client.goodbye() == Reason.PROTOCOL_ERROR

    def test_over_the_announced_maximum(self) -> None:
        """An alias above the announced maximum is answered with 0x94 (3.3.2-9)."""
        link = Link(limits=Limits(topic_alias_max=3))
        client, connack = link.greet("client")
        assert connack.topic_alias_maximum == 3
        client.publish("a", b"", properties=Properties(topic_alias=3))
        client.publish("a", b"", properties=Properties(topic_alias=4))
        assert client.goodbye() == Reason.TOPIC_ALIAS_INVALID

    def test_none_allowed(self) -> None:
        """With `topic_alias_max` 0 none is announced, none taken, and none sent."""
        link = Link(limits=Limits(topic_alias_max=0))
        client, connack = link.greet("client", topic_alias_maximum=10)
        assert connack.topic_alias_maximum is None
        client.subscribe("a")
        link.connect("other").publish("a", b"")
        assert client.only(Publish).properties is None
        client.publish("a", b"", properties=Properties(topic_alias=1))
        assert client.goodbye() == Reason.TOPIC_ALIAS_INVALID

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_to_the_client(self, qos: int) -> None:
        """The first topics get aliases up to the client's maximum, others none (3.3.2-8)."""
        link = Link()
        client = link.connect("client", topic_alias_maximum=2)
        client.subscribe("#", qos)
        publisher = link.connect("publisher")
        topics = ["a", "b", "c", "a", "b", "c", "a"]
        for topic in topics:
            publisher.complete(topic, b"", qos)
        reader = AliasReader(2)
        assert [reader.topic(each) for each in client.messages()] == topics
        assert reader.short == 3

    def test_the_publishers_alias_is_not_forwarded(self) -> None:
        """An alias means nothing on another connection (3.3.2.3.4)."""
        link = Link()
        subscriber = link.connect("subscriber")
        subscriber.subscribe("#")
        link.connect("client").publish("a", b"", properties=Properties(topic_alias=1))
        assert subscriber.only(Publish).properties is None

    def test_dropped_messages_set_no_alias(self) -> None:
        """An alias that the client may not have seen is not used: congestion and size alike."""
        link = Link()
        client = link.connect("client", topic_alias_maximum=5, maximum_packet_size=60)
        client.subscribe("#", 1)
        publisher = link.connect("publisher")
        publisher.publish("a", b"x" * 100)
        publisher.complete("a", b"x" * 100, 1)
        client.endpoint.congested = True
        publisher.publish("a", b"dropped")
        client.relieve()
        publisher.publish("a", b"1")
        publisher.publish("a", b"2")
        reader = AliasReader(5)
        got = [(reader.topic(each), each.payload) for each in client.messages()]
        assert got == [("a", b"1"), ("a", b"2")]

    def test_redelivery(self) -> None:
        """A message that is sent again on a new connection has an alias of that connection."""
        link = Link()
        client = link.connect("client", expiry_s=60, topic_alias_maximum=5)
        client.subscribe("#", 1)
        publisher = link.connect("publisher")
        for _ in range(3):
            publisher.complete("a", b"", 1)
        client.cut()
        client = link.connect("client", clean_start=False, expiry_s=60, topic_alias_maximum=1)
        reader = AliasReader(1)
        assert [reader.topic(each) for each in client.messages()] == ["a"] * 3


class TestForwarding:
    """Properties of a message (MQTT 5.0, 3.3.2.3)."""

    ABOUT = Properties(
        payload_format_indicator=1,
        content_type="application/x",
        response_topic="answers/1",
        correlation_data=bytes(range(256)),
        user_properties=(("k", "1"), ("", ""), ("k", "1"), ("é", "\N{SNOWMAN}")),
    )

    @pytest.mark.parametrize("qos", [0, 1, 2])
    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("restart", [False, True])
    def test_unaltered(self, qos: int, waits: bool, restart: bool) -> None:
        """They arrive as they came, live, queued and after a restart (3.3.2-4, -15 to -20)."""
        link = Link()
        client = link.connect("client", expiry_s=60)
        client.subscribe("t", 2)
        if waits:
            client.cut()
        retain = waits and not qos
        publisher = link.connect("publisher")
        publisher.complete("t", b"x", qos, retain=retain, properties=self.ABOUT)
        if waits:
            if restart:
                link = link.restart()
            client = link.connect("client", clean_start=False, expiry_s=60)
            if retain:
                client.subscribe("t", 2)
        (message,) = client.messages()
        assert message.properties == self.ABOUT
        assert message.payload == b"x"

    def test_zero_is_not_absence(self) -> None:
        """A Payload Format Indicator of 0 is forwarded, not left out."""
        link = Link()
        client = link.connect("client")
        client.subscribe("t")
        about = Properties(payload_format_indicator=0)
        link.connect("publisher").publish("t", b"\xff", properties=about)
        assert client.only(Publish).properties == about

    def test_old_versions_get_none(self) -> None:
        """MQTT 3.1.1 has no properties: payload and topic arrive all the same."""
        link = Link()
        client = link.connect("client", V311)
        client.subscribe("t")
        link.connect("publisher").publish("t", b"x", properties=self.ABOUT)
        message = client.only(Publish)
        assert (message.payload, message.properties) == (b"x", None)

    @pytest.mark.parametrize("topic", ["a/+", "#", "x" * 5000])
    def test_a_bad_response_topic(self, topic: str) -> None:
        """A response topic with wildcards or over the limit is a protocol error (3.3.2-14)."""
        client = Link().connect("client")
        client.publish("t", b"", properties=Properties(response_topic=topic))
        assert client.goodbye() == Reason.PROTOCOL_ERROR

    def test_subscription_identifiers_from_a_client_go_nowhere(self) -> None:
        """An identifier that a publisher sends does not reach subscribers (3.3.4-6)."""
        link = Link()
        subscriber = link.connect("subscriber")
        subscriber.subscribe("t")
        client = link.connect("client")
        client.publish("t", b"", properties=Properties(subscription_identifiers=(5,)))
        for message in subscriber.messages():
            assert message.properties is None


class TestReasonStrings:
    """Reason strings and Request Problem Information (MQTT 5.0, 3.1.2.11.7)."""

    LIMITS = Limits(topic_levels_max=2)

    def _reason_strings(self, client: FakeClient) -> list[str | None]:
        client.publish("too/deep/topic", b"", 1)
        client.publish("too/deep/topic", b"", 2)
        client.send(Subscribe(50, [SubscriptionRequest("a/b/c", 0)]))
        answers = (client.expect(Puback), client.expect(Pubrec), client.expect(Suback))
        return [each.properties.reason_string if each.properties else None for each in answers]

    def test_refusals_say_why(self) -> None:
        """Unless asked not to, refusals name the limit or the rule (3.4.2.2.2 and others)."""
        client = Link(limits=self.LIMITS).connect("client")
        for text in self._reason_strings(client):
            assert text is not None
            assert "topic_levels_max = 2" in text

    def test_not_if_the_client_does_not_want_them(self) -> None:
        """With Request Problem Information 0 only CONNACK and DISCONNECT have them (3.1.2-29)."""
        client = Link(limits=self.LIMITS).connect("client", request_problem_information=0)
        assert self._reason_strings(client) == [None] * 3

    def test_not_if_the_client_could_not_take_them(self) -> None:
        """No reason string makes a packet larger than the client allows (3.4.2-2)."""
        client = Link(limits=self.LIMITS).connect("client", maximum_packet_size=60)
        assert self._reason_strings(client) == [None] * 3

    def test_disconnect_says_why(self) -> None:
        """DISCONNECT names the clause that was broken (3.14.2.2.3)."""
        link = Link()
        client = link.connect("client")
        client.send_bytes(b"\x36\x05\x00\x01t\x00\x01")
        last = client.only(Disconnect)
        assert last.reason == Reason.MALFORMED_PACKET
        assert last.properties is not None
        assert last.properties.reason_string is not None
        assert "3.3.1-4" in last.properties.reason_string

    def test_they_are_bounded(self) -> None:
        """A reason string about ever so many filters is cut, and the packet can be written."""
        client = Link(limits=self.LIMITS).connect("client")
        requests = [SubscriptionRequest("x/y/z", 0)] * 5000
        client.send(Subscribe(1, requests))
        suback = client.only(Suback)
        assert suback.reasons == [Reason.TOPIC_FILTER_INVALID] * 5000
        assert suback.properties is not None
        assert suback.properties.reason_string is not None
        assert len(suback.properties.reason_string) <= 1024


class TestRequestResponse:
    """Response information and private reply topics (MQTT 5.0, 3.1.2.11.6, 3.2.2.3.14, 4.10)."""

    def test_only_if_asked(self) -> None:
        """Response Information is sent to whoever asked for it, a prefix of its own (3.1.2-28)."""
        link = Link()
        _, silent = link.greet("silent")
        assert silent.response_information is None
        _, first = link.greet("first", request_response_information=1)
        _, second = link.greet("second", request_response_information=1)
        assert first.response_information
        assert second.response_information
        assert first.response_information != second.response_information

    def test_a_request_is_answered(self) -> None:
        """A responder answers to the topic that the request names; only the requester reads it."""
        link = Link()
        client, connack = link.greet("client", request_response_information=1)
        prefix = connack.response_information
        assert prefix is not None
        reply_to = f"{prefix}/1"
        assert client.subscribe(f"{prefix}/#", 1) == 1
        spy = link.connect("spy")
        for topic_filter in (
            "#",
            "+/#",
            "_reply/#",
            f"{prefix}/#",
            reply_to,
            f"$share/g/{prefix}/#",
        ):
            spy.subscribe(topic_filter)
        server = link.connect("server")
        server.subscribe("service", 1)
        about = Properties(response_topic=reply_to, correlation_data=b"7")
        client.publish("service", b"request", 1, properties=about)
        client.expect(Puback)
        (request,) = server.messages()
        assert request.properties == about
        server.complete(reply_to, b"reply", 1, properties=Properties(correlation_data=b"7"))
        (reply,) = client.messages()
        assert reply.payload == b"reply"
        assert reply.properties == Properties(correlation_data=b"7")
        assert [each.topic for each in spy.messages()] == ["service"]

    @pytest.mark.parametrize("topic_filter", ["_reply/#", "_reply/+", "_reply/", "_reply/guess/1"])
    def test_nobody_else_may_subscribe(self, topic_filter: str) -> None:
        """A filter for the reply topics of others is refused with 0x87."""
        link = Link()
        link.greet("client", request_response_information=1)
        assert link.connect("spy").subscribe(topic_filter) == Reason.NOT_AUTHORIZED

    def test_the_prefix_stays_with_the_session(self) -> None:
        """A client that comes back to its session has the same prefix."""
        link = Link()
        options = {"request_response_information": 1, "session_expiry_interval": 60}
        client, first = link.greet("client", **options)
        client.cut()
        _, second = link.greet("client", clean_start=False, **options)
        assert first.response_information == second.response_information

    def test_replies_are_not_retained(self) -> None:
        """A retained message on a reply topic is refused."""
        link = Link()
        client = link.connect("client")
        assert client.complete("_reply/x/1", b"", 1, retain=True) == Reason.NOT_AUTHORIZED


class TestAnnouncements:
    """What a node does not offer, CONNACK says, and using it is refused (MQTT 5.0, 3.2.2.3)."""

    def test_everything_is_available(self) -> None:
        """By default nothing is restricted: absent means available (3.2.2.3)."""
        _, connack = Link().greet("client")
        assert connack == Properties(
            receive_maximum=Limits().receive_max,
            maximum_packet_size=Limits().packet_size_max_bytes,
            topic_alias_maximum=Limits().topic_alias_max,
        )

    @pytest.mark.parametrize("maximum", [0, 1])
    def test_maximum_qos(self, maximum: int) -> None:
        """A lower maximum is announced, granted, and enforced with 0x9B (3.2.2-9 to 3.2.2-12)."""
        link = Link(settings=MqttSettings(maximum_qos=maximum))
        client, connack = link.greet("client")
        assert connack.maximum_qos == maximum
        assert client.subscribe("t", 2) == maximum
        client.complete("t", b"x", maximum)
        assert client.only(Publish).qos == maximum
        client.publish("t", b"", maximum + 1)
        assert client.goodbye() == Reason.QOS_NOT_SUPPORTED
        will = Will("t", b"", maximum + 1)
        link.connect("a", will=will, expected=Reason.QOS_NOT_SUPPORTED)

    def test_retain(self) -> None:
        """Without retain 0 is announced and RETAIN is refused with 0x9A (3.2.2-13, -14)."""
        link = Link(settings=MqttSettings(retain_available=False))
        client, connack = link.greet("client")
        assert connack.retain_available == 0
        client.publish("t", b"", retain=True)
        assert client.goodbye() == Reason.RETAIN_NOT_SUPPORTED
        will = Will("t", b"", 0, True)
        link.connect("a", will=will, expected=Reason.RETAIN_NOT_SUPPORTED)

    def test_wildcards(self) -> None:
        """Without wildcards 0 is announced and such filters get 0xA2 (3.2.2.3.11)."""
        link = Link(settings=MqttSettings(wildcard_subscriptions=False))
        client, connack = link.greet("client")
        assert connack.wildcard_subscription_available == 0
        expected = Reason.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED
        assert client.subscribe("a/+") == expected
        assert client.subscribe("$share/g/#") == expected
        assert client.subscribe("a/b") == 0

    def test_subscription_identifiers(self) -> None:
        """Without identifiers 0 is announced and using one is answered 0xA1 (3.2.2.3.12)."""
        link = Link(settings=MqttSettings(subscription_identifiers=False))
        client, connack = link.greet("client")
        assert connack.subscription_identifier_available == 0
        about = Properties(subscription_identifiers=(1,))
        client.send(Subscribe(1, [SubscriptionRequest("t", 0)], about))
        assert client.goodbye() == Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED

    def test_shared_subscriptions(self) -> None:
        """Without shared subscriptions 0 is announced and they get 0x9E (3.2.2.3.13)."""
        link = Link(settings=MqttSettings(shared_subscriptions=False))
        client, connack = link.greet("client")
        assert connack.shared_subscription_available == 0
        assert client.subscribe("$share/g/t") == Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
        assert client.subscribe("t") == 0


class TestPayloadFormat:
    """Payload Format Indicator 1, checked on request (MQTT 5.0, 3.3.2.3.2)."""

    def test_checked(self) -> None:
        """A payload that is said to be text and is not is refused with 0x99, and not delivered."""
        link = Link(settings=MqttSettings(check_payload_format=True))
        subscriber = link.connect("subscriber")
        subscriber.subscribe("t", 1)
        client = link.connect("client")
        text, binary = (
            Properties(payload_format_indicator=1),
            Properties(payload_format_indicator=0),
        )
        invalid = Reason.PAYLOAD_FORMAT_INVALID
        assert client.complete("t", b"\xff", 1, properties=text) == invalid
        assert client.complete("t", b"\xff", 2, properties=text) == invalid
        assert client.complete("t", b"\xff", 1, properties=binary) == 0
        assert client.complete("t", "é".encode(), 1, properties=text) == 0
        assert client.complete("t", b"\xfe", 1) == 0
        assert subscriber.payloads() == [b"\xff", "é".encode(), b"\xfe"]
        will = Will("t", b"\xff", 0, False, text)
        link.connect("a", will=will, expected=invalid)

    def test_not_checked(self) -> None:
        """By default the indicator is only forwarded."""
        link = Link()
        client = link.connect("client")
        about = Properties(payload_format_indicator=1)
        assert client.complete("t", b"\xff", 1, properties=about) == Reason.NO_MATCHING_SUBSCRIBERS


def test_connack_of_an_old_version_has_no_properties() -> None:
    """MQTT 3.1.1 gets two bytes, whatever the node would announce (3.1.1, 3.2)."""
    link = Link(settings=MqttSettings(maximum_qos=0))
    client = link.open(V311)
    client.send(Connect(V311, "a"))
    assert bytes(client.endpoint.output) == encode(Connack(False), V311) == b"\x20\x02\x00\x00"


def test_connect_properties_that_contradict() -> None:
    """Authentication data without a method is a protocol error (3.1.2.11.10)."""
    client = Link().open()
    about = Properties(authentication_data=b"x")
    client.send(Connect(V5, "a", properties=about))
    assert client.only(Connack).reason == Reason.PROTOCOL_ERROR
    assert client.is_gone
