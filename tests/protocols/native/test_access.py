"""The rules of access hold for every operation, as they do for MQTT."""

from typing import Any

import pytest

from ganglion.broker.core.access import Access, Rule
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.operations import Operation as Op
from tests.protocols.native.link import NativeLink

DENIED = [
    (Op.PUBLISH, ["t", b""]),
    (Op.PUBLISH, ["$queue/q", b""]),
    (Op.PUBLISH, ["$queue/new", b""]),
    (Op.PUBLISH, ["$stream/s", b""]),
    (Op.PUBLISH, ["$SYS/x", b""]),
    (Op.PUBLISH_BATCH, ["t", [b""]]),
    (Op.SUBSCRIBE, ["t"]),
    (Op.SUBSCRIBE, ["t", {"credit": 1}]),
    (Op.SUBSCRIBE, ["t", {"group": "g"}]),
    (Op.SUBSCRIBE, ["_reply/other/x"]),
    (Op.CONSUME, ["q"]),
    (Op.CONSUME, ["new", {"declare": True}]),
    (Op.QUEUE_DECLARE, ["q"]),
    (Op.QUEUE_DECLARE, ["new"]),
    (Op.QUEUE_DESCRIBE, ["q"]),
    (Op.QUEUE_DELETE, ["q"]),
    (Op.QUEUE_PURGE, ["q"]),
    (Op.QUEUE_PAUSE, ["q"]),
    (Op.QUEUE_RESUME, ["q"]),
    (Op.QUEUE_BROWSE, ["q"]),
    (Op.QUEUE_REDRIVE, ["q", 1]),
    (Op.APPEND, ["s", b""]),
    (Op.APPEND_BATCH, ["s", [b""]]),
    (Op.READ, ["s"]),
    (Op.FOLLOW, ["s"]),
    (Op.FOLLOW, ["s", {"group": "g"}]),
    (Op.STREAM_DECLARE, ["s"]),
    (Op.STREAM_DESCRIBE, ["s"]),
    (Op.STREAM_DELETE, ["s"]),
    (Op.GROUP_DECLARE, ["s", "g"]),
    (Op.GROUP_DELETE, ["s", "g"]),
    (Op.STREAM_VERSION, ["s", "k"]),
    (Op.REQUEST, ["t", b""]),
    (Op.GATHER, ["t", b""]),
    (Op.SERVE, ["t"]),
    (Op.RETAINED_GET, ["t"]),
    (Op.RETAINED_PUT, ["t", b"x"]),
    (Op.RETAINED_DELETE, ["t"]),
    (Op.RETAINED_LIST, ["t"]),
    (Op.STATISTICS, []),
]
NEED_NO_RIGHT = {
    *(Op.HELLO, Op.CLOSE, Op.CANCEL),
    *(Op.ACK, Op.NACK, Op.REJECT, Op.EXTEND, Op.ANSWER, Op.FAIL),  # of what was given
    *(Op.QUEUE_LIST, Op.STREAM_LIST),  # they show what may be seen
}


def node_with(*rules: Rule) -> NativeLink:
    """A node with a queue, a stream and a last value, then with these rules."""
    link = NativeLink()
    client = link.connect()
    client.call(Op.QUEUE_DECLARE, "q")
    client.call(Op.STREAM_DECLARE, "s", {"keyed": True})
    client.publish("t", b"x", {"retain": True})
    link.node.reload(access=Access(rules, users_exist=True, anonymous=True))
    return link


def allow(*topics: str, action: Any = "all") -> Rule:
    """Allow these."""
    return Rule(effect="allow", topics=topics, action=action)


def test_every_operation_is_judged() -> None:
    """None was forgotten."""
    requests = {each for each in Op if each >= 32}
    assert {operation for operation, _ in DENIED} | NEED_NO_RIGHT == requests


@pytest.mark.parametrize(("operation", "arguments"), DENIED)
def test_without_rights(operation: int, arguments: list[Any]) -> None:
    """Nothing is allowed to who has no rule, and the refusal is logged and counted."""
    link = node_with()
    client = link.connect("c")
    assert client.refused(operation, *arguments) == Code.NOT_ALLOWED
    assert sum(link.node.refusals.counts.values()) == 1
    assert link.mqtt.log.refusals()[0]["client"] == "c"
    assert client.connection.channels == {}


@pytest.mark.parametrize(("operation", "arguments"), DENIED)
def test_with_all_rights(operation: int, arguments: list[Any]) -> None:
    """With them none of these is refused for want of a right, but for what is the node's own."""
    link = node_with(allow("#", "$SYS/#", "$queue/#", "$stream/#"))
    client = link.connect()
    code = ""
    number = client.ask(operation, *arguments)
    for frame in client.take():
        if frame[0] == Op.ERROR:
            code = frame[2]
            assert frame[1] == number
    reserved = arguments and arguments[0] in ("$SYS/x", "_reply/other/x")
    assert (code == Code.NOT_ALLOWED) == bool(reserved)


def test_reading_is_not_changing() -> None:
    """Who may subscribe to a queue's topic consumes and looks, and changes nothing."""
    client = node_with(allow("$queue/q", "$stream/s", action="subscribe")).connect()
    client.call(Op.QUEUE_DESCRIBE, "q")
    client.call(Op.QUEUE_BROWSE, "q")
    client.call(Op.READ, "s")
    client.opened(Op.CONSUME, "q")
    client.opened(Op.FOLLOW, "s")
    for operation in (Op.QUEUE_PURGE, Op.QUEUE_DELETE, Op.QUEUE_PAUSE, Op.QUEUE_DECLARE):
        assert client.refused(operation, "q") == Code.NOT_ALLOWED
    assert client.refused(Op.APPEND, "s", b"") == Code.NOT_ALLOWED


def test_lists_show_what_may_be_used() -> None:
    """Others do not learn the names."""
    assert node_with().connect().call(Op.QUEUE_LIST)["queues"] == []
    link = node_with(allow("$queue/q", action="publish"), allow("$stream/s", action="subscribe"))
    client = link.connect()
    assert [each["name"] for each in client.call(Op.QUEUE_LIST)["queues"]] == ["q"]
    assert [each["name"] for each in client.call(Op.STREAM_LIST)["streams"]] == ["s"]


def test_a_binding_needs_its_own_right() -> None:
    """Nobody reads through a queue what they may not subscribe to."""
    link = node_with(Rule(effect="deny", topics=("secret/#",)), allow("#", "$queue/#", "$stream/#"))
    client = link.connect()
    for operation in (Op.QUEUE_DECLARE, Op.STREAM_DECLARE):
        client.call(operation, "x", {"bindings": ["open/#"]})
        assert client.refused(operation, "x", {"bindings": ["secret/a"]}) == Code.NOT_ALLOWED
        assert client.refused(operation, "x", {"bindings": ["#"]}) == Code.NOT_ALLOWED
    assert client.refused(Op.APPEND, "x", b"", None, {"topic": "secret/a"}) == Code.NOT_ALLOWED


def test_a_dead_letter_queue_needs_a_right_too() -> None:
    """Rejecting would otherwise write where one may not."""
    client = node_with(allow("$queue/q")).connect()
    assert client.refused(Op.QUEUE_DECLARE, "q", {"dead_letter": "other"}) == Code.NOT_ALLOWED


def test_last_values_are_filtered() -> None:
    """A list has only what the client may receive."""
    link = NativeLink()
    client = link.connect()
    for topic in ("a/1", "a/2"):
        client.publish(topic, b"x", {"retain": True})
    rules = [Rule(effect="deny", topics=("a/2",)), allow("#")]
    link.node.reload(access=Access(rules, users_exist=True, anonymous=True))
    rows = link.connect().call(Op.RETAINED_LIST, "#")["messages"]
    assert [row[0] for row in rows] == ["a/1"]


def test_rules_that_change_act_on_what_is_open() -> None:
    """Channels end, what waits is dropped, and nothing more comes."""
    link = NativeLink()
    client, other = link.connect(), link.connect()
    client.call(Op.QUEUE_DECLARE, "q")
    client.call(Op.STREAM_DECLARE, "s")
    channels = [
        client.opened(Op.CONSUME, "q"),
        client.opened(Op.FOLLOW, "s"),
        client.opened(Op.FOLLOW, "s", {"group": "g"}),
        client.opened(Op.SERVE, "t"),
    ]
    lane = client.opened(Op.SUBSCRIBE, "t", {"credit": 0})
    client.opened(Op.SUBSCRIBE, "t")
    other.send([1, "t", b"waits"])
    client.take()
    link.node.reload(
        access=Access([allow("t", action="publish")], users_exist=True, anonymous=True)
    )
    frames = client.take()
    assert {(frame[0], frame[1], frame[2]) for frame in frames} == {
        (Op.ENDED, channel, Code.NOT_ALLOWED) for channel in channels
    }
    other.send([1, "t", b"more"])
    client.send([Op.CREDIT, lane, 10])
    assert client.take() == []
    assert link.node.statistics.dropped["not allowed any more"] == 1
    assert not link.node.queues.get("q").consumers
