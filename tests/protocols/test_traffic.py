"""Messages are counted for the protocol by which they come and go, however they are sent."""

from collections.abc import Callable
from typing import Any

import pytest

from ganglion.broker.core.statistics import PROTOCOLS
from ganglion.protocols.mqtt.connection import MqttConnection
from ganglion.protocols.mqtt.packets import V311
from ganglion.protocols.native.connection import NativeConnection
from ganglion.protocols.native.operations import Operation as Op
from tests.protocols.native.link import NativeLink


def figures(link: NativeLink) -> dict[str, tuple[int, int]]:
    """How many messages came and went, of the protocols that had any."""
    counted = link.node.statistics.traffic
    found = {name: (each.received, each.sent) for name, each in counted.items()}
    for name, each in counted.items():
        assert (each.received_bytes > 0) == (each.received > 0), name
        assert (each.sent_bytes > 0) == (each.sent > 0), name
    return {name: each for name, each in found.items() if any(each)}


def test_each_connection_counts_for_its_protocol() -> None:
    """Over a socket, within a WebSocket, and as JSON, which there is only there."""
    link = NativeLink()
    connections: list[tuple[MqttConnection | NativeConnection, str]] = [
        (MqttConnection(link.mqtt.server), "mqtt"),
        (MqttConnection(link.mqtt.server, is_web=True), "mqtt-websocket"),
        (NativeConnection(link.server), "native"),
        (NativeConnection(link.server, is_web=True), "native-websocket"),
        (NativeConnection(link.server, is_web=True, is_json=True), "native-json"),
    ]
    traffic = link.node.statistics.traffic
    assert [each.traffic for each, _ in connections] == [traffic[name] for _, name in connections]
    assert {name for _, name in connections} == set(traffic)


def with_everybody() -> tuple[NativeLink, list[Any]]:
    """Two clients of MQTT 3.1.1, one within a WebSocket, and three native ones; all subscribed."""
    link = NativeLink()
    mqtt, web_mqtt = link.mqtt.connect("m", V311), link.mqtt.connect("w", V311)
    web_mqtt.connection.traffic = link.node.statistics.traffic["mqtt-websocket"]
    native, web_native = link.connect(), link.connect()
    web_native.connection.traffic = link.node.statistics.traffic["native-websocket"]
    by_json = link.connect(is_json=True)
    for each in (mqtt, web_mqtt):
        each.subscribe("t")
    for other in (native, web_native, by_json):
        other.call(Op.SUBSCRIBE, "t")
    return link, [mqtt, web_mqtt, native, web_native, by_json]


@pytest.mark.parametrize(
    ("sender", "name", "publish"),
    [
        (0, "mqtt", lambda client: client.publish("t", b"x")),
        (0, "mqtt", lambda client: client.publish("t", b"x", 1)),
        (0, "mqtt", lambda client: client.publish("t", b"x", retain=True)),
        (1, "mqtt-websocket", lambda client: client.publish("t", b"x")),
        (2, "native", lambda client: client.send([Op.MESSAGE, "t", b"x"])),
        (2, "native", lambda client: client.publish("t", b"x")),
        (2, "native", lambda client: client.send([Op.MESSAGE, "t", b"x", {"key": "k"}])),
        (2, "native", lambda client: client.call(Op.PUBLISH_BATCH, "t", [b"x"])),
        (3, "native-websocket", lambda client: client.send([Op.MESSAGE, "t", b"x"])),
        (4, "native-json", lambda client: client.send([Op.MESSAGE, "t", "x"])),
    ],
)
def test_a_message_to_everybody(sender: int, name: str, publish: Callable[[Any], object]) -> None:
    """It is counted once where it came, and once for each receiver where that one is."""
    link, clients = with_everybody()
    for _ in range(3):  # the first one makes the route, those behind it take the fast path
        publish(clients[sender])
    expected = dict.fromkeys(PROTOCOLS, (0, 3))
    expected[name] = (3, 3)
    assert figures(link) == expected


def test_runs() -> None:
    """Messages that are passed on as one slice count as many as they are."""
    link, (mqtt, _, native, *_) = with_everybody()
    native.send(*([Op.MESSAGE, "t", b"x"] for _ in range(5)))
    native.send(*([Op.MESSAGE, "t", b"x"] for _ in range(5)))
    assert figures(link)["native"] == (10, 10)
    assert figures(link)["mqtt-websocket"] == (0, 10)
    packet = b"\x30\x04\x00\x01tx"
    mqtt.send_bytes(packet * 5)
    mqtt.send_bytes(packet * 5)
    assert figures(link)["mqtt"] == (10, 20)
    assert figures(link)["native-json"] == (0, 20)


def test_queues_streams_and_credit() -> None:
    """Jobs, records and deliveries on credit are messages as well."""
    link = NativeLink()
    client = link.connect()
    client.call(Op.QUEUE_DECLARE, "q")
    client.call(Op.STREAM_DECLARE, "s")
    client.opened(Op.CONSUME, "q", {"credit": 10})
    client.opened(Op.FOLLOW, "s", {"credit": 10})
    client.opened(Op.SUBSCRIBE, "c", {"credit": 10})
    client.publish("$queue/q", b"x")
    client.call(Op.APPEND_BATCH, "s", [b"x", b"y"])
    client.publish("c", b"x")
    assert figures(link) == {"native": (4, 4)}
