"""Rules of access on connections: what is refused, to whom it is said, and what a reload does."""

from dataclasses import replace

import pytest

from ganglion.broker.core.access import Access, Rule
from ganglion.protocols.mqtt.packets import V5, V31, V311, Publish, Suback, Subscribe
from ganglion.protocols.mqtt.packets import SubscriptionRequest as Request
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


def _allow(*topics: str, action: str = "all", **more: object) -> Rule:
    return Rule(effect="allow", topics=topics, action=action, **more)  # type: ignore[arg-type]  # fields


def _deny(*topics: str, action: str = "all", **more: object) -> Rule:
    return Rule(effect="deny", topics=topics, action=action, **more)  # type: ignore[arg-type]  # fields


def _rules(*rules: Rule) -> Access:
    """These rules, and nothing else is allowed; clients need no name."""
    return Access(rules, users_exist=True, anonymous=True)


class TestPublish:
    """PUBLISH that no rule allows (MQTT 5.0, 3.4.2.1, 3.5.2.1; DESIGN rule 7)."""

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_refused(self, qos: int) -> None:
        """It is not delivered, answered with 0x87, counted, and logged with client and rule."""
        link = Link(access=_rules(_deny("secret/#", action="publish"), _allow("#")))
        watcher = link.connect("watcher")
        watcher.subscribe("#", 2)
        client = link.connect("client")
        for _ in range(2):
            reason = client.complete("secret/x", b"", qos)
            assert reason == (Reason.NOT_AUTHORIZED if qos else 0)
        assert client.complete("public", b"", qos) == 0
        assert [each.topic for each in watcher.messages()] == ["public"]
        refusals = link.log.refusals()
        assert len(refusals) == 2
        assert refusals[0]["action"] == "publish"
        assert refusals[0]["client"] == "client"
        assert refusals[0]["topic"] == "secret/x"
        assert "rule 1" in refusals[0]["rule"]
        assert link.node.refusals.counts["publish"] == 2
        assert link.node.statistics.dropped["refused"] == 2

    @pytest.mark.parametrize("version", [V31, V311])
    @pytest.mark.parametrize("qos", [1, 2])
    def test_mqtt_3_cannot_be_told(self, version: int, qos: int) -> None:
        """MQTT 3.x has no reason codes: the message is acknowledged and dropped (3.1.1, 3.3.5)."""
        link = Link(access=_rules(_allow("#", action="subscribe")))
        watcher = link.connect("watcher")
        watcher.subscribe("#", 2)
        client = link.connect("client", version)
        client.complete("t", b"", qos)
        client.complete("t", b"", qos)
        assert watcher.take() == []
        assert not client.is_gone

    @VERSIONS
    def test_by_qos_and_retain(self, version: int) -> None:
        """Rules about QoS or RETAIN hold for each message, however often the topic was used."""
        link = Link(
            access=_rules(
                _allow("t", action="publish", qos=0, retain=False), _allow("#", action="subscribe")
            )
        )
        watcher = link.connect("watcher")
        watcher.subscribe("t", 2)
        client = link.connect("client", version)
        for _ in range(3):
            client.publish("t", b"allowed")
            client.complete("t", b"qos", 1)
            client.complete("t", b"qos", 2)
            client.publish("t", b"retained", retain=True)
        assert watcher.payloads() == [b"allowed"] * 3
        assert len(link.node.retained) == 0

    def test_refused_retained_messages_are_not_kept(self) -> None:
        """What may not be published is not retained, nor does it clear what is."""
        link = Link()
        client = link.connect("client")
        client.publish("theirs", b"x", retain=True)
        link.node.reload(
            access=_rules(
                _allow("#", action="publish", retain=False),
                _allow("mine", action="publish", retain=True),
            )
        )
        client.publish("theirs", b"y", retain=True)
        client.publish("theirs", b"", retain=True)
        client.publish("mine", b"x", retain=True)
        kept = sorted((each.topic, each.payload) for each in link.node.retained)
        assert kept == [("mine", b"x"), ("theirs", b"x")]
        assert link.node.refusals.counts["publish"] == 2

    @VERSIONS
    @pytest.mark.parametrize("qos", [0, 1, 2])
    @pytest.mark.parametrize("topic", ["$SYS/broker/uptime", "$share/g/t", "$", "$x"])
    def test_dollar_topics(self, version: int, qos: int, topic: str) -> None:
        """Topics that begin with ``$`` are the node's: nobody else publishes there (4.7.2-1)."""
        link = Link()
        watcher = link.connect("watcher")
        watcher.subscribe("$SYS/#", 2)
        watcher.subscribe("$x", 2)
        client = link.connect("client", version)
        client.complete(topic, b"forged", qos)
        client.complete(topic, b"forged", qos, retain=True)
        assert watcher.take() == []
        assert len(link.node.retained) == 0
        assert link.node.refusals.counts["publish"] == 2


class TestSubscribe:
    """SUBSCRIBE that no rule allows (MQTT 5.0, 3.9.3)."""

    @VERSIONS
    def test_refused(self, version: int) -> None:
        """Each filter is judged by itself: 0x87 (0x80 in MQTT 3.x) for those that are refused."""
        link = Link(access=_rules(_deny("secret/#"), _allow("#")))
        client = link.connect("client", version)
        filters = ("secret/x", "public", "secret/#", "$share/g/secret/a")
        client.send(Subscribe(1, [Request(each, 1) for each in filters]))
        refused = Reason.NOT_AUTHORIZED if version == V5 else 0x80
        assert client.only(Suback).reasons == [refused, 1, refused, refused]
        link.connect("other").complete("public", b"", 1)
        assert len(client.messages()) == 1
        assert [each["topic"] for each in link.log.refusals()] == [
            "secret/x",
            "secret/#",
            "$share/g/secret/a",
        ]

    def test_a_wider_filter_brings_nothing_forbidden(self) -> None:
        """A filter that overlaps what is denied is granted; the denied topics do not arrive."""
        link = Link(access=_rules(_deny("secret/#", action="subscribe"), _allow("#")))
        publisher = link.connect("publisher")
        publisher.publish("secret/kept", b"x", retain=True)
        publisher.publish("public/kept", b"x", retain=True)
        client = link.connect("client")
        assert client.subscribe("#", 1) == 1
        client.subscribe("$share/g/#", 1)
        for topic in ("secret/x", "public/x"):
            publisher.complete(topic, b"", 1)
        assert sorted({each.topic for each in client.messages()}) == ["public/kept", "public/x"]

    def test_own_topics(self) -> None:
        """``%c`` stands for the client identifier, as one whole level."""
        link = Link(access=_rules(_allow("devices/%c/#")))
        a, b = link.connect("a"), link.connect("b")
        assert a.subscribe("devices/a/#", 1) == 1
        assert a.subscribe("devices/b/#", 1) == Reason.NOT_AUTHORIZED
        assert a.subscribe("devices/+/x", 1) == Reason.NOT_AUTHORIZED
        assert b.complete("devices/a/x", b"", 1) == Reason.NOT_AUTHORIZED
        assert a.complete("devices/a/x", b"", 1) == 0

    @pytest.mark.parametrize("name", ["+", "#", "a/b", "+/x", "/"])
    def test_a_name_cannot_widen_a_pattern(self, name: str) -> None:
        """A client identifier with a wildcard or ``/`` matches no pattern with ``%c``."""
        link = Link(access=_rules(_allow("devices/%c/#")))
        client = link.connect(name)
        for topic_filter in ("devices/a/#", f"devices/{name}/x", "devices/#"):
            assert client.subscribe(topic_filter) in (
                Reason.NOT_AUTHORIZED,
                Reason.TOPIC_FILTER_INVALID,
            )


class TestReload:
    """New rules and users act on what is connected, subscribed, retained and on the way."""

    def test_subscriptions(self) -> None:
        """A subscription that is not allowed any more brings nothing; allowed again, it does."""
        link = Link()
        client = link.connect("client")
        client.subscribe("t/#", 1)
        publisher = link.connect("publisher")
        link.node.reload(access=Access([_deny("t/x", action="subscribe")]))
        publisher.complete("t/x", b"1", 1)
        publisher.complete("t/y", b"2", 1)
        link.node.reload(access=Access())
        publisher.complete("t/x", b"3", 1)
        assert client.payloads() == [b"2", b"3"]

    @pytest.mark.parametrize("connected", [False, True])
    def test_what_waits_and_what_is_on_the_way(self, connected: bool) -> None:
        """Messages that may not be received any more are dropped, in flight and queued."""
        link = Link()
        client = link.connect("client", expiry_s=60, receive_maximum=4)
        client.subscribe("#", 2)
        publisher = link.connect("publisher")
        for number in range(6):
            publisher.complete("secret", b"%d" % number, 1 + number % 2)
            publisher.complete("public", b"%d" % number, 1 + number % 2)
        assert len(client.take()) == 4
        if not connected:
            client.cut()
        link.node.reload(access=Access([_deny("secret", action="subscribe")]))
        link.tick()
        client.cut()
        client = link.connect("client", clean_start=False, expiry_s=60, receive_maximum=4)
        got = [(each.topic, each.payload) for each in client.messages()]
        assert got == [("public", b"%d" % number) for number in range(6)]
        assert link.node.refusals.counts["receive"] == 6
        assert link.node.statistics.dropped["not allowed any more"] == 6
        assert link.restart().node.sessions["client"].queue is None

    def test_retained_messages_on_their_way(self) -> None:
        """Retained messages that still wait for a slow reader are judged by the new rules."""
        link = Link()
        publisher = link.connect("publisher")
        for topic in ("secret", "public"):
            publisher.publish(topic, b"x", retain=True)
        client = link.connect("client")
        client.endpoint.congested = True
        client.subscribe("#")
        link.node.reload(access=Access([_deny("secret", action="subscribe")]))
        client.relieve()
        assert [each.topic for each in client.messages()] == ["public"]

    @VERSIONS
    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_publishing(self, version: int, qos: int) -> None:
        """What a connection was allowed to publish before is judged anew."""
        link = Link()
        watcher = link.connect("watcher")
        watcher.subscribe("t", 2)
        client = link.connect("client", version)
        for _ in range(2):
            client.complete("t", b"before", qos)
        link.node.reload(access=Access([_deny("t", action="publish")]))
        for _ in range(2):
            client.complete("t", b"after", qos)
        assert watcher.payloads() == [b"before"] * 2

    def test_users_that_are_gone(self) -> None:
        """A client whose user was removed is disconnected with 0x87; the others stay."""
        link = Link(authenticator=lambda _user, _password, done: done(True))
        gone = link.connect("gone", username="eve", password=b"x")
        stays = link.connect("stays", username="ada", password=b"x")
        named = link.connect("named", certificate="sensor")
        link.node.reload(access=Access(users_exist=True, anonymous=True), users={"ada"})
        link.tick()
        assert gone.goodbye() == Reason.NOT_AUTHORIZED
        assert not stays.is_gone
        assert not named.is_gone

    def test_anonymous_clients_when_users_appear(self) -> None:
        """Once users exist, clients without a name are disconnected."""
        link = Link()
        client, old = link.connect("a"), link.connect("b", V311)
        link.node.reload(access=Access(users_exist=True), users=set())
        link.tick()
        assert client.goodbye() == Reason.NOT_AUTHORIZED
        assert old.is_gone

    def test_limits_alone(self) -> None:
        """New limits hold for connections that are there; nobody is disconnected."""
        link = Link()
        client = link.connect("client")
        link.node.reload(limits=replace(link.node.limits, topic_levels_max=2))
        assert client.complete("a/b/c", b"", 1) == Reason.TOPIC_NAME_INVALID
        assert not client.is_gone


def test_a_message_on_its_way_is_finished() -> None:
    """QoS 2 messages that were received already are released as if nothing had happened."""
    link = Link()
    client = link.connect("client")
    client.subscribe("t", 2)
    link.connect("publisher").complete("t", b"", 2)
    message = client.only(Publish)
    client.send_bytes(b"\x50\x02" + message.packet_id.to_bytes(2, "big"))
    assert bytes(client.endpoint.output)[0] == 0x62
    client.take()
    link.node.reload(access=Access([_deny("t", action="subscribe")]))
    client.send_bytes(b"\x70\x02" + message.packet_id.to_bytes(2, "big"))
    assert not client.is_gone
    assert not client.session.inflight
