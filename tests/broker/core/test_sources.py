"""Queues and streams of a node, as its configuration and its clients make them."""

import pytest

from ganglion.broker.core.access import Client
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.reading import split_source
from ganglion.broker.core.stream import Stream
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.store import Kind
from tests.protocols.mqtt.fake_link import Link

CLIENT = Client("c", None, "127.0.0.1", None)


def test_what_can_be_is_defined_and_the_rest_is_told() -> None:
    """One definition that cannot be keeps no other from being; it stays as it was."""
    link = Link()
    sources = link.node.sources
    assert sources.define((QueueDefinition(name="a"), StreamDefinition(name="s"))) == []
    link.connect("producer").complete("$stream/s", b"x", 1)
    wrong = sources.define(
        [
            QueueDefinition(name="a", priorities=2),
            StreamDefinition(name="s", keyed=True),
            QueueDefinition(name="b", lease_s=5.0, bindings=("t",)),
            StreamDefinition(name="s2"),
        ]
    )
    assert ["priorities" in wrong[0], "keyed" in wrong[1], len(wrong)] == [True, True, 2]
    assert sources.queues.get("a").definition.priorities == 1
    link.tick()
    again = link.restart().node.sources
    assert again.queues.get("b").definition == QueueDefinition(
        name="b", lease_s=5.0, bindings=("t",)
    )
    assert isinstance(again.find("$stream/s2"), Stream)
    assert again.find("$stream/none") is None
    assert again.find("$queue/s2") is None


def test_defining_again_writes_nothing() -> None:
    """A start with the same configuration changes nothing, on disk neither."""
    link = Link()
    definitions = (QueueDefinition(name="a", bindings=("t",)), StreamDefinition(name="s"))
    link.node.sources.define(definitions)
    link.tick()
    assert link.node.sources.define(definitions) == []
    assert not link.node.journal.commits.is_open


def test_declaring_is_all_or_nothing() -> None:
    """Options with a mistake leave neither queue nor binding behind."""
    sources = Link().node.sources
    wanted = split_source("$queue/a?lease_s=5/t")
    assert wanted is not None
    with pytest.raises(InvalidDefinition, match="backoff_s"):
        sources.declare(CLIENT, wanted, (("backoff_s", "-1"),))
    assert sources.find("$queue/a") is None
    assert sources.declare(CLIENT, wanted, ()).allowed
    assert sources.queues.get("a").definition.bindings == ("t",)


def test_a_subscription_is_recorded_with_its_options() -> None:
    """After a restart the session reads on as it said: options, QoS and identifier."""
    link = Link()
    client = link.connect("client", expiry_s=600)
    client.subscribe("$stream/a?from=first&credit=3&max_records=9/t", 1, identifier=5)
    client.subscribe("$queue/b?credit=4", 0)
    client.disconnect()
    subscriptions = link.restart().node.sessions["client"].subscriptions
    assert subscriptions.keys() == {"$stream/a", "$queue/b"}
    stream, queue = subscriptions["$stream/a"], subscriptions["$queue/b"]
    assert (stream.options, stream.qos, stream.identifier) == (
        (("credit", "3"), ("from", "first")),
        1,
        5,
    )
    assert (queue.options, queue.qos) == ((("credit", "4"),), 0)


def test_a_session_that_ends_leaves_nothing() -> None:
    """Subscriptions, positions and readers of an ended session are gone, in the store too."""
    link = Link()
    client = link.connect("client", expiry_s=60)
    client.subscribe("$stream/a", 1)
    client.subscribe("$share/g/$stream/a", 1)
    client.subscribe("$queue/b", 1)
    client.disconnect()
    link.advance(61)
    assert list(link.store.scan(Kind.SUBSCRIPTION)) == []
    assert [key[8:] for key, _ in link.store.scan(Kind.STREAM_GROUP)] == [b"g"]
    assert link.node.streams.get("a").statistics().groups[0].members == 0
    assert link.node.queues.get("b").statistics().consumers == 0


def test_too_many_groups_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that could have no position is told so by SUBACK, not left without records."""
    monkeypatch.setattr("ganglion.broker.core.stream._GROUPS_MAX", 1)
    link = Link()
    assert link.connect("one", expiry_s=60).subscribe("$stream/a", 1) == 1
    other = link.connect("other", expiry_s=60)
    assert other.subscribe("$stream/a", 1) == 0x83
    assert "groups" in link.log.refusals()[-1]["rule"]
    assert other.session.subscriptions == {}
    assert link.connect("transient").subscribe("$stream/a", 1) == 1
