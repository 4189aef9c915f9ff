"""Who may send to, read and make queues and streams, by the rules of access."""

import pytest

from ganglion.broker.core.access import Access, Rule
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.protocols.mqtt.packets import V311, Puback, Suback, Subscribe, SubscriptionRequest
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link

NOT_AUTHORIZED = Reason.NOT_AUTHORIZED
KINDS = pytest.mark.parametrize("kind", ["$queue", "$stream"])


def allow(action: str, *topics: str) -> Rule:
    """A rule that allows."""
    return Rule(effect="allow", action=action, topics=topics)  # type: ignore[arg-type]  # a literal


def deny(action: str, *topics: str) -> Rule:
    """A rule that denies."""
    return Rule(effect="deny", action=action, topics=topics)  # type: ignore[arg-type]  # a literal


def link_with(*rules: Rule) -> Link:
    """A node where nothing is allowed but by these rules."""
    return Link(access=Access(rules, users_exist=True, anonymous=True))


def refusal(client: FakeClient, topic_filter: str) -> str:
    """Why a subscription is not authorized."""
    client.send(Subscribe(client.next_id(), [SubscriptionRequest(topic_filter, 1)]))
    suback = client.expect(Suback)
    assert suback.reasons == [NOT_AUTHORIZED]
    assert suback.properties is not None
    return suback.properties.reason_string or ""


@KINDS
def test_sending_and_reading_are_two_rights(kind: str) -> None:
    """Publishing to the topic needs that right alone, subscribing the other."""
    link = link_with(allow("publish", f"{kind}/in"), allow("subscribe", f"{kind}/out"))
    link.node.queues.declare(QueueDefinition(name="in"))
    link.node.queues.declare(QueueDefinition(name="out"))
    link.node.sources.make("$stream/in")
    link.node.sources.make("$stream/out")
    client = link.connect("client")
    assert client.complete(f"{kind}/in", b"x", 1) == 0
    assert client.complete(f"{kind}/out", b"x", 1) == NOT_AUTHORIZED
    assert client.subscribe(f"{kind}/out", 1) == 1
    assert "denied by default" in refusal(client, f"{kind}/in")


@KINDS
def test_a_wildcard_rule_is_not_for_queues(kind: str) -> None:
    """``#`` opens no queue and no stream, ``$queue/#`` all queues."""
    link = link_with(allow("all", "#"))
    client = link.connect("client")
    assert client.complete(f"{kind}/a", b"x", 1) == NOT_AUTHORIZED
    assert "default" in refusal(client, f"{kind}/a")
    link.node.reload(access=Access([allow("all", f"{kind}/#")], users_exist=True, anonymous=True))
    assert client.complete(f"{kind}/a", b"x", 1) == 0
    assert client.subscribe(f"{kind}/a", 1) == 1


@KINDS
@pytest.mark.parametrize("action", ["publish", "subscribe"])
def test_making_one_needs_both_rights(kind: str, action: str) -> None:
    """Who has only one of the rights cannot make a queue by a typing error."""
    link = link_with(allow(action, f"{kind}/#"))
    client = link.connect("client")
    if action == "publish":
        client.publish(f"{kind}/a", b"x", 1)
        puback = client.expect(Puback)
        assert puback.reason == NOT_AUTHORIZED
        assert puback.properties is not None
        text = puback.properties.reason_string or ""
    else:
        text = refusal(client, f"{kind}/a")
    assert "only who may both publish to it and subscribe to it" in text
    assert link.node.sources.find(f"{kind}/a") is None


@KINDS
def test_a_consumer_changes_nothing(kind: str) -> None:
    """Options other than those that it has, and bindings, need both rights."""
    option = "lease_s=9" if kind == "$queue" else "max_records=9"
    same = "lease_s=60" if kind == "$queue" else "max_records=0"
    link = link_with(allow("subscribe", f"{kind}/a", "t"))
    link.node.sources.make(f"{kind}/a")
    client = link.connect("client")
    assert "only who may both" in refusal(client, f"{kind}/a?{option}")
    assert "only who may both" in refusal(client, f"{kind}/a/t")
    assert client.subscribe(f"{kind}/a?{same}&credit=5", 1) == 1


@KINDS
def test_a_binding_needs_its_own_right(kind: str) -> None:
    """What is bound the client must be allowed to subscribe to."""
    link = link_with(allow("all", f"{kind}/#"), allow("subscribe", "open/#"))
    client = link.connect("client")
    assert "default" in refusal(client, f"{kind}/a/secret/#")
    assert "default" in refusal(client, f"{kind}/a/#")
    assert link.node.sources.find(f"{kind}/a") is None
    assert client.subscribe(f"{kind}/a/open/+", 1) == 1


@KINDS
def test_a_binding_does_not_get_around_a_deny(kind: str) -> None:
    """Messages in a queue are not judged again: a filter with a denied part is not bound."""
    link = link_with(
        deny("subscribe", "secret/#"), allow("subscribe", "#"), allow("all", f"{kind}/#")
    )
    client = link.connect("client")
    assert client.subscribe("#", 1) == 1  # each message is judged when it is delivered
    for binding in ("#", "+/x", "secret/x", "secret"):
        assert "rule 1" in refusal(client, f"{kind}/a/{binding}")
    assert client.subscribe(f"{kind}/a/public/#", 1) == 1


@KINDS
def test_replies_are_not_kept(kind: str) -> None:
    """Nobody reads the replies to others by binding a filter that matches them."""
    link = Link()
    client = link.connect("client")
    client.subscribe(f"{kind}/all/#", 1)
    client.subscribe(f"{kind}/all/+/token/#", 1)
    assert client.complete("_reply/token/1", b"x", 1) == Reason.NO_MATCHING_SUBSCRIBERS
    assert client.complete("other/token/1", b"x", 1) == Reason.SUCCESS


@KINDS
def test_rules_change_while_reading(kind: str) -> None:
    """Who may not read any more gets nothing more, and goes on when it may again."""
    link = link_with(allow("all", f"{kind}/#"))
    reader = link.connect("reader")
    reader.subscribe(f"{kind}/a", 1)
    producer = link.connect("producer")
    producer.complete(f"{kind}/a", b"1", 1)
    first = reader.take()
    assert len(first) == 1
    link.node.reload(
        access=Access([allow("publish", f"{kind}/#")], users_exist=True, anonymous=True)
    )
    producer.complete(f"{kind}/a", b"2", 1)
    assert reader.take() == []
    reader.send(Puback(1))  # too late: it had been taken back
    link.node.reload(access=Access([allow("all", f"{kind}/#")], users_exist=True, anonymous=True))
    link.tick()
    producer.complete(f"{kind}/a", b"3", 1)
    came = reader.payloads()
    assert came == ([b"1", b"2", b"3"] if kind == "$queue" else [b"3"])


def test_the_last_right_goes_with_the_queue() -> None:
    """A producer that could not make the queue does not make it anew by what it sends next."""
    link = link_with(allow("publish", "$queue/a"))
    link.node.queues.declare(QueueDefinition(name="a"))
    producer = link.connect("producer")
    for _ in range(2):
        assert producer.complete("$queue/a", b"x", 1) == 0
    link.node.queues.delete("a")
    link.tick()
    for _ in range(2):
        assert producer.complete("$queue/a", b"x", 1) == NOT_AUTHORIZED
        assert producer.complete("$queue/a", b"x", 2) == NOT_AUTHORIZED
    assert len(link.node.queues) == 0


def test_other_dollar_topics_stay_closed() -> None:
    """Clients publish to no other topic that begins with ``$``."""
    client = Link().connect("client")
    for topic in ("$SYS/x", "$queues/x", "$queue", "$share/g/$queue/a", "$stream"):
        assert client.complete(topic, b"x", 1) == NOT_AUTHORIZED


def test_mqtt_3_is_not_told() -> None:
    """A refused message of an MQTT 3 client is acknowledged, dropped, counted and logged."""
    link = link_with()
    client = link.connect("old", V311)
    assert client.complete("$queue/a", b"x", 1) == 0
    assert client.subscribe("$queue/a", 1) == 0x80
    assert link.node.statistics.dropped["refused"] == 1
    assert [each["action"] for each in link.log.refusals()] == ["publish", "subscribe"]
