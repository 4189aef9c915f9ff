"""The node as programs see it that are not MQTT connections."""

import pytest

from ganglion.broker.core.access import Access, Client, Rule
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import MessageProperties
from ganglion.broker.core.node import REPLY_PREFIX, LimitReached, NotAllowed
from ganglion.broker.core.router import Subscription
from ganglion.broker.store import Kind
from ganglion.protocols.mqtt.packets import V311, Publish
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import Link, RecordingStore

CLIENT = Client("c", None, "127.0.0.1", None)


def test_publish_own() -> None:
    """The node publishes in its own name, past all rules, also under ``$``."""
    link = Link(access=Access([Rule(effect="deny", topics=("t",), action="publish")]))
    client = link.connect("client")
    client.subscribe("t", 1)
    client.subscribe("$mine/#", 1)
    about = MessageProperties(content_type="c")
    assert link.node.publish_own("t", b"1", qos=1, properties=about) == 1
    assert link.node.publish_own("$mine/x", b"2", retain=True) == 1
    assert link.node.publish_own("nobody", b"3") == 0
    link.tick()
    first, second = client.messages()
    assert (first.payload, first.qos, first.properties) == (b"1", 1, Properties(content_type="c"))
    assert (second.payload, second.retain) == (b"2", False)
    assert link.node.retained.get("$mine/x") is not None


@pytest.mark.parametrize("topic", ["a", f"{REPLY_PREFIX}x", "$SYS/x", "denied", "partly"])
def test_the_mask_is_what_may_publish_says(topic: str) -> None:
    """`publish_mask` has the bit of each QoS and RETAIN that `may_publish` allows."""
    rules = [
        Rule(effect="deny", topics=("denied",)),
        Rule(effect="deny", topics=("partly",), action="publish", retain=True),
        Rule(effect="deny", topics=("partly",), action="publish", qos=2),
    ]
    node = Link(access=Access(rules)).node
    mask = node.publish_mask(CLIENT, topic)
    for qos in (0, 1, 2):
        for retain in (False, True):
            allowed = node.may_publish(CLIENT, topic, qos, retain).allowed
            assert bool(mask & 1 << qos + 3 * retain) == allowed


def test_subscribing_raises() -> None:
    """What is not allowed or over a limit says by which rule or limit."""
    link = Link(access=Access([Rule(effect="deny", topics=("x/#",), action="subscribe")]))
    client = link.connect("client")
    with pytest.raises(NotAllowed, match="rule 1") as refused:
        link.node.subscribe(Subscription(client.session, "x/1", 0))
    assert not refused.value.decision.allowed
    with pytest.raises(NotAllowed):
        link.node.subscribe(Subscription(client.session, f"{REPLY_PREFIX}#", 0))
    assert link.node.router.subscription_count == 0


def test_deep_wildcards_count_more() -> None:
    """The limit of subscriptions is one of memory: what is given back can be used again."""
    link = Link(limits=Limits(subscriptions_per_client_max=20))
    client = link.connect("client")
    deep = "+/" * 100 + "x"
    with pytest.raises(LimitReached, match="subscriptions_per_client_max"):
        link.node.subscribe(Subscription(client.session, deep, 0))
    for _ in range(3):
        for number in range(20):
            assert not link.node.subscribe(Subscription(client.session, f"t/{number}", 0))
        with pytest.raises(LimitReached):
            link.node.subscribe(Subscription(client.session, "one more", 0))
        assert link.node.subscribe(Subscription(client.session, "t/1", 1))
        for number in range(20):
            assert link.node.unsubscribe(client.session, f"t/{number}")
        assert not link.node.unsubscribe(client.session, "t/1")


def test_connected_and_maximum() -> None:
    """How many sessions are connected, and the most that ever were."""
    link = Link()
    clients = [link.connect(f"c{number}", V311) for number in range(5)]
    for client in clients[:3]:
        client.cut()
    link.connect("c4", V311)
    assert link.node.connected == 2
    assert link.node.statistics.clients_maximum == 5
    assert link.node.statistics.connections_opened == 6


def test_close_commits_what_is_left() -> None:
    """After `close` the store has everything, and no timer of the node's own is left."""
    link = Link(sys_interval_s=10)
    client = link.connect("a", expiry_s=60)
    session = client.session
    link.node.subscribe(Subscription(session, "t", 1))
    link.node.close()
    assert "t" in link.restart().node.sessions["a"].subscriptions
    count = link.node.statistics.publish_sent
    link.advance(100)
    assert link.node.statistics.publish_sent == count
    assert link.node.retained.get("$SYS/broker/uptime") is not None


def test_a_reply_topic_of_nobody() -> None:
    """Without a token nobody reads below the reply prefix, whatever the rules allow."""
    link = Link()
    client = link.connect("client")
    client.subscribe("#")
    link.node.publish_own(f"{REPLY_PREFIX}guess/x", b"secret")
    link.tick()
    assert client.take() == []


@pytest.mark.parametrize("lost", [Kind.SESSION, Kind.BACKLOG])
def test_damaged_records_cost_only_what_they_were_about(lost: Kind) -> None:
    """When the store leaves a damaged record out, the rest is there, and the log says it."""
    link = Link()
    for name in ("hit", "spared"):
        client = link.connect(name, expiry_s=600, receive_maximum=1)
        client.subscribe("t", 1)
        client.send(Publish("x", b"", 2, packet_id=5))
        client.take()
    publisher = link.connect("publisher")
    for number in range(3):
        publisher.complete("t", b"%d" % number, 1)
    assert isinstance(link.store, RecordingStore)
    store = link.store.copy()
    batch = store.batch()
    backlog = link.node.sessions["hit"].backlog
    assert backlog is not None
    of_hit = (b"hit", backlog.identifier.to_bytes(8, "big"))
    for key, _ in list(store.scan(lost)):
        if key.startswith(of_hit):
            batch.delete(lost, key)
    store.commit(batch, lambda: None)
    again = Link(store=store)
    spared = again.connect("spared", clean_start=False, expiry_s=600, present=True)
    assert spared.payloads() == [b"0", b"1", b"2"]
    hit = again.connect("hit", clean_start=False, expiry_s=600, present=lost is not Kind.SESSION)
    assert hit.payloads() == []
