"""``$SYS/broker``: the node's figures under the names that Mosquitto gives them."""

import re

from ganglion.protocols.mqtt.packets import V311
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, Link

MOSQUITTO = (
    "version",
    "uptime",
    "clients/total",
    "clients/connected",
    "clients/active",
    "clients/disconnected",
    "clients/inactive",
    "clients/maximum",
    "clients/expired",
    "messages/received",
    "messages/sent",
    "messages/stored",
    "store/messages/count",
    "store/messages/bytes",
    "subscriptions/count",
    "shared_subscriptions/count",
    "publish/messages/received",
    "publish/messages/sent",
    "publish/messages/dropped",
    "publish/bytes/received",
    "publish/bytes/sent",
    "bytes/received",
    "bytes/sent",
    "heap/maximum",
    "retained messages/count",
)
LOADS = (
    "messages/received",
    "messages/sent",
    "bytes/received",
    "bytes/sent",
    "publish/received",
    "publish/sent",
    "sockets",
    "connections",
    "requests",
)


def _figures(client: FakeClient) -> dict[str, str]:
    found = {each.topic: each.payload.decode() for each in client.messages()}
    assert all(topic.startswith("$SYS/broker/") for topic in found)
    return {topic.removeprefix("$SYS/broker/"): value for topic, value in found.items()}


def test_every_name_is_there() -> None:
    """The topics that exporters made for Mosquitto read exist from the start, loads soon after."""
    link = Link(sys_interval_s=10)
    client = link.connect("exporter", V311)
    client.subscribe("$SYS/#")
    first = _figures(client)
    assert set(first) >= set(MOSQUITTO)
    assert first["version"] == "ganglion version test"
    assert first["uptime"] == "0 seconds"
    link.advance(10)
    later = _figures(client)
    assert later["uptime"] == "10 seconds"
    for name in LOADS:
        for minutes in (1, 5, 15):
            assert re.fullmatch(r"\d+\.\d\d", later[f"load/{name}/{minutes}min"])


def test_they_are_right() -> None:
    """The figures are those of the node."""
    link = Link(sys_interval_s=10)
    exporter = link.connect("exporter", V311)
    exporter.subscribe("$SYS/#")
    away = link.connect("away", expiry_s=60)
    away.subscribe("t", 1)
    away.cut()
    link.connect("expired", expiry_s=1).cut()
    member = link.connect("member")
    member.subscribe("$share/g/x")
    publisher = link.connect("publisher")
    for _ in range(3):
        publisher.complete("t", b"x" * 10, 1)
    publisher.publish("kept", b"y", retain=True)
    publisher.publish("t", b"dropped")
    exporter.messages()
    link.advance(10)
    link.advance(10)
    figures = _figures(exporter)
    kept = int(figures["retained messages/count"])
    expected = {
        "clients/total": 4,
        "clients/connected": 3,
        "clients/disconnected": 1,
        "clients/maximum": 3,
        "clients/expired": 1,
        "messages/stored": 3 + kept,
        "subscriptions/count": 3,
        "shared_subscriptions/count": 1,
        "publish/messages/received": 5,
        "publish/messages/dropped": 1,
    }
    last = {**_all(link), **figures}
    assert {name: int(last[name]) for name in expected} == expected


def _all(link: Link) -> dict[str, str]:
    client = link.connect("late", V311)
    client.subscribe("$SYS/#")
    figures = _figures(client)
    client.disconnect()
    return figures


def test_only_changes_are_published() -> None:
    """A figure that did not change is not sent again."""
    link = Link(sys_interval_s=10)
    client = link.connect("exporter", V311)
    client.subscribe("$SYS/broker/clients/#")
    client.messages()
    link.advance(10)
    client.messages()
    link.advance(50)
    assert client.take() == []
    link.connect("another")
    link.advance(10)
    assert set(_figures(client)) == {
        "clients/total",
        "clients/connected",
        "clients/active",
        "clients/maximum",
    }


def test_the_interval() -> None:
    """They are published every so many seconds, and never with 0."""
    link = Link(sys_interval_s=2.5)
    client = link.connect("exporter", V311)
    client.subscribe("$SYS/broker/uptime")
    client.messages()
    seen: list[bytes] = []
    for _ in range(10):
        link.advance(1)
        seen += client.payloads()
    assert seen == [b"2 seconds", b"5 seconds", b"7 seconds", b"10 seconds"]
    silent = Link(sys_interval_s=0)
    assert len(silent.node.retained) == 0
    assert silent.timers.next_deadline() is None


def test_loads_follow_the_rate() -> None:
    """A steady rate of 60 messages a minute is what the 1-minute average comes to."""
    link = Link(sys_interval_s=10)
    client = link.connect("client", V311)
    for _ in range(600):
        client.publish("t", b"x")
        link.advance(1)
    figures = _all(link)
    assert 57 <= float(figures["load/publish/received/1min"]) <= 63
    assert 45 <= float(figures["load/publish/received/5min"]) <= 63
    for _ in range(60):
        link.advance(10)
    assert float(_all(link)["load/publish/received/1min"]) < 1


def test_a_stopped_node_publishes_no_more() -> None:
    """`stop` ends it; again is harmless."""
    link = Link(sys_interval_s=10)
    link.node.sys_topics.stop()
    link.node.sys_topics.stop()
    assert link.timers.next_deadline() is None


def test_queues_and_streams_have_figures() -> None:
    """All together and each; what is deleted leaves no retained message behind."""
    link = Link(sys_interval_s=10.0)
    client = link.connect("client")
    client.subscribe("$queue/jobs", 1)
    client.complete("$stream/log", b"x", 1)
    client.complete("$queue/other", b"123", 1)
    link.advance(10)

    def figure(topic: str) -> bytes | None:
        message = link.node.retained.get(f"$SYS/broker/{topic}")
        return None if message is None else message.payload

    expected = {
        "queues/count": b"2",
        "queues/messages": b"1",
        "queues/bytes": b"15",
        "streams/count": b"1",
        "streams/records": b"1",
        "queue/jobs/messages": b"0",
        "queue/jobs/consumers": b"1",
        "queue/other/messages": b"1",
        "stream/log/records": b"1",
        "stream/log/last": b"1",
    }
    assert {topic: figure(topic) for topic in expected} == expected
    link.node.queues.delete("other")
    link.advance(10)
    assert figure("queues/count") == b"1"
    assert figure("queue/other/messages") is None
    assert figure("queue/jobs/messages") == b"0"


def test_requests_are_counted_by_their_outcome() -> None:
    """How many were made, and how they ended, has a topic for each outcome there was."""
    link = Link(sys_interval_s=10)
    client = link.connect("exporter")
    client.subscribe("$SYS/broker/requests/+")
    client.complete("nobody", qos=1, properties=Properties(response_topic="r"))
    link.connect("device", V311).subscribe("$request/+/t")
    client.complete("t", qos=1, properties=Properties(response_topic="r"))
    client.messages()
    link.advance(10)
    assert _figures(client) == {
        "requests/received": "2",
        "requests/waiting": "1",
        "requests/services": "1",
        "requests/no-responder": "1",
    }
