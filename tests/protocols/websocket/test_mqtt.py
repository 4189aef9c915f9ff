"""MQTT inside: packets split and joined across frames in any way, and the end of either."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.core.node import Node
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.connection import MqttConnection
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from ganglion.protocols.mqtt.server import MqttServer
from ganglion.protocols.websocket.server import Subprotocol
from tests.protocols.web_link import BINARY, CLOSE, TEXT, WebLink, WebPeer, byte_by_byte, frame


def make_link() -> WebLink:
    """A web listener with MQTT at its place."""
    node: list[Node] = []

    def make() -> MqttConnection:
        return MqttConnection(MqttServer(node[0]))

    mqtt = Subprotocol(make)
    link = WebLink(paths={"/mqtt": {"mqtt": mqtt, "mqttv3.1": mqtt}})
    node.append(link.node)
    return link


def packets(version: int) -> bytes:
    """CONNECT, SUBSCRIBE to all of t, three messages there, PINGREQ."""
    said: list[Packet] = [
        Connect(client_id="c", version=version, keep_alive_s=60),
        Subscribe(1, [SubscriptionRequest("t/#", 1)]),
        Publish("t/1", b"first"),
        Publish("t/2", b"x" * 300, qos=1, packet_id=2),
        Publish("t/3", b""),
        Pingreq(),
    ]
    return b"".join(encode(each, version) for each in said)


def received(peer: WebPeer) -> bytes:
    """What the binary messages of the server have in them, all in a row."""
    frames = peer.frames()
    assert {each.opcode for each in frames} <= {BINARY}
    return b"".join(each.payload for each in frames)


def expected(version: int) -> bytes:
    """The answer to `packets` in one frame, which is checked by its parts."""
    link = make_link()
    peer = link.open("mqtt", path="/mqtt")
    peer.send(frame(BINARY, packets(version)))
    answer = received(peer)
    assert b"first" in answer
    assert b"x" * 300 in answer
    assert answer.endswith(b"\xd0\0")
    return answer


ANSWERS = {version: expected(version) for version in (V311, V5)}


@pytest.mark.parametrize("subprotocol", ["mqtt", "mqttv3.1"])
@pytest.mark.parametrize("version", [V311, V5])
def test_a_byte_in_each_frame(version: int, subprotocol: str) -> None:
    """The finest way to cut."""
    peer = make_link().open(subprotocol, path="/mqtt")
    for byte in byte_by_byte(packets(version)):
        peer.send(frame(BINARY, byte))
    assert received(peer) == ANSWERS[version]


def test_all_in_one_frame_byte_by_byte() -> None:
    """A frame that the network cuts, where packets are."""
    peer = make_link().open("mqtt", path="/mqtt")
    peer.send(*byte_by_byte(frame(BINARY, packets(V5))))
    assert received(peer) == ANSWERS[V5]


@pytest.mark.slow
@given(
    cuts=st.lists(st.integers(1, 120), min_size=1, max_size=40),
    network=st.integers(1, 200),
    fragment=st.booleans(),
)
def test_cut_anyhow(cuts: list[int], network: int, fragment: bool) -> None:
    """Invariant: whatever cuts frames and reads make, the answer is the same."""
    data, sent, pos, number = packets(V311), b"", 0, 0
    while pos < len(data):
        size = cuts[number % len(cuts)]
        last = pos + size >= len(data)
        piece = data[pos : pos + size]
        if fragment:  # one message of many fragments
            sent += frame(0 if number else BINARY, piece, fin=last)
        else:
            sent += frame(BINARY, piece)
        pos += size
        number += 1
    peer = make_link().open("mqtt", path="/mqtt")
    peer.send(*[sent[at : at + network] for at in range(0, len(sent), network)])
    assert received(peer) == ANSWERS[V311]


def test_text_is_refused() -> None:
    """MQTT 5.0, 6: 1003, and the connection is lost as any other is."""
    link = make_link()
    peer = link.open("mqtt", path="/mqtt")
    peer.send(frame(BINARY, packets(V5)))
    peer.frames()
    assert link.node.connected == 1
    peer.send(frame(TEXT, b"\xd0\0"))
    assert [each.code for each in peer.frames()] == [1003]
    assert link.node.connected == 0


def ended_by_disconnect(peer: WebPeer) -> None:
    """The client says goodbye in MQTT."""
    peer.send(frame(BINARY, encode(Disconnect(), V311)))


def ended_by_close(peer: WebPeer) -> None:
    """The client closes the WebSocket and says nothing in MQTT."""
    peer.send(frame(CLOSE, b"\x03\xe8"))


def ended_by_loss(peer: WebPeer) -> None:
    """The connection breaks."""
    peer.lose()


@pytest.mark.parametrize(
    ("end", "has_will"),
    [(ended_by_disconnect, False), (ended_by_close, True), (ended_by_loss, True)],
)
def test_the_will(end: Callable[[WebPeer], None], has_will: bool) -> None:
    """Only DISCONNECT takes it back (3.14.4-3): a WebSocket that is closed says nothing in MQTT."""
    link = make_link()
    witness = link.open("mqtt", path="/mqtt")
    witness.send(frame(BINARY, packets(V311)))
    witness.frames()
    peer = link.open("mqtt", path="/mqtt")
    connect = Connect(client_id="d", version=V311, will=Will("t/will", b"lost", 0, False))
    peer.send(frame(BINARY, encode(connect, V311)))
    end(peer)
    assert (b"lost" in received(witness)) == has_will


def test_the_broker_says_why_it_closes() -> None:
    """DISCONNECT with the reason in MQTT 5, then Close; nothing after it."""
    link = make_link()
    peer = link.open("mqtt", path="/mqtt")
    peer.send(frame(BINARY, packets(V5)))
    peer.frames()
    link.node.drain()
    link.tick()
    goodbye, close = peer.frames()
    assert goodbye.payload[:1] == b"\xe0"
    assert goodbye.payload[2] == 0x8B
    assert (close.code, close.payload[2:]) == (1000, b"the node stops")


def test_fan_out_shares_the_packet() -> None:
    """Each of many receivers gets one frame with the packets as they came."""
    link = make_link()
    receivers = [link.open("mqtt", path="/mqtt") for _ in range(5)]
    for number, each in enumerate(receivers):
        connect = Connect(client_id=f"r{number}", version=V311)
        subscribe = Subscribe(1, [SubscriptionRequest("s", 0)])
        each.send(frame(BINARY, encode(connect, V311) + encode(subscribe, V311)))
        each.frames()
    sender = link.open("mqtt", path="/mqtt")
    sender.send(frame(BINARY, encode(Connect(client_id="s", version=V311), V311)))
    packet = encode(Publish("s", b"payload"), V311)
    sender.send(frame(BINARY, packet))  # the first one finds the way
    for each in receivers:
        each.frames()
    sender.send(frame(BINARY, packet) * 20)
    for each in receivers:
        (only,) = each.frames()
        assert only.payload == packet * 20
