"""QoS flows of one connection: who is answered what, in which order, within which window."""

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


@VERSIONS
@pytest.mark.parametrize("asked", [0, 1, 2])
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_delivery_is_at_the_lower_qos(version: int, asked: int, sent: int) -> None:
    """A message arrives once, at the lower of its QoS and the subscription's (4.3, 3.8.4-8)."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    assert subscriber.subscribe("a/b", asked) == asked
    publisher = link.connect("publisher", version)
    publisher.complete("a/b", b"payload", sent)
    message = subscriber.expect(Publish)
    assert (message.topic, message.payload) == ("a/b", b"payload")
    assert (message.qos, message.dup, message.retain) == (min(asked, sent), False, False)
    assert subscriber.take() == []


@VERSIONS
def test_qos_1_is_acknowledged_with_its_identifier(version: int) -> None:
    """PUBACK carries the identifier of its PUBLISH, for any identifier (4.3.2)."""
    client = Link().connect("client", version)
    for packet_id in (1, 255, 256, 65_535):
        client.send(Publish("t", b"", 1, packet_id=packet_id))
        assert client.only(Puback).packet_id == packet_id


@VERSIONS
def test_qos_2_from_the_client(version: int) -> None:
    """PUBREC answers PUBLISH, PUBCOMP answers PUBREL, and then the identifier is free (4.3.3)."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    subscriber.subscribe("t", 0)
    client = link.connect("client", version)
    for number in range(2):
        client.send(Publish("t", b"%d" % number, 2, packet_id=7))
        assert client.only(Pubrec).packet_id == 7
        client.send(Pubrel(7))
        assert client.only(Pubcomp).packet_id == 7
    assert [each.payload for each in subscriber.messages()] == [b"0", b"1"]
    assert not client.session.received


@VERSIONS
def test_qos_2_is_routed_once_however_often_it_is_sent(version: int) -> None:
    """Until PUBREL the same identifier is the same message, with DUP or without (4.3.3-10)."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    subscriber.subscribe("t", 2)
    client = link.connect("client", version)
    for dup in (False, True, True):
        client.send(Publish("t", b"x", 2, dup=dup, packet_id=9))
        assert client.only(Pubrec).packet_id == 9
    assert subscriber.payloads() == [b"x"]
    client.send(Pubrel(9), Pubrel(9))
    assert [each.packet_id for each in client.take() if isinstance(each, Pubcomp)] == [9, 9]


@VERSIONS
def test_qos_1_with_dup_is_a_message(version: int) -> None:
    """A QoS 1 PUBLISH with DUP is routed and acknowledged: the first may not have come (4.3.2)."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    subscriber.subscribe("t", 1)
    client = link.connect("client", version)
    client.send(Publish("t", b"x", 1, dup=True, packet_id=3))
    assert client.only(Puback).packet_id == 3
    assert [(each.payload, each.dup) for each in subscriber.messages()] == [(b"x", False)]


@VERSIONS
def test_qos_2_to_the_client(version: int) -> None:
    """PUBREL answers PUBREC with the same identifier; PUBCOMP ends the flow (4.3.3)."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    subscriber.subscribe("t", 2)
    link.connect("publisher", version).complete("t", b"x", 2)
    packet_id = subscriber.only(Publish).packet_id
    subscriber.send(Pubrec(packet_id))
    assert subscriber.only(Pubrel).packet_id == packet_id
    subscriber.send(Pubrec(packet_id))  # repeated: its PUBREL is repeated
    assert subscriber.only(Pubrel).packet_id == packet_id
    subscriber.send(Pubcomp(packet_id))
    assert subscriber.take() == []
    assert not subscriber.session.inflight


def test_pubrec_with_an_error_ends_the_flow() -> None:
    """After PUBREC with a reason of 0x80 or more no PUBREL follows (MQTT 5.0, 4.3.3-4)."""
    link = Link()
    subscriber = link.connect("subscriber")
    subscriber.subscribe("t", 2)
    link.connect("publisher").complete("t", b"x", 2)
    packet_id = subscriber.only(Publish).packet_id
    subscriber.send(Pubrec(packet_id, Reason.UNSPECIFIED_ERROR))
    assert subscriber.take() == []
    assert not subscriber.session.inflight


@VERSIONS
def test_acknowledgements_for_nothing_are_harmless(version: int) -> None:
    """PUBACK, PUBREC and PUBCOMP of unknown identifiers leave the connection as it is (4.4)."""
    client = Link().connect("client", version)
    client.send(Puback(5), Pubcomp(6))
    assert client.take() == []
    client.send(Pubrec(7))
    assert client.only(Pubrel).packet_id == 7
    client.send(Pubrel(8))
    assert client.only(Pubcomp).packet_id == 8
    client.send(Pingreq())
    client.only(Pingresp)


@VERSIONS
@pytest.mark.parametrize(
    ("qos", "wrong"), [(1, Pubrec), (2, Puback), (2, Pubcomp)], ids=["PUBREC", "PUBACK", "PUBCOMP"]
)
def test_acknowledgement_of_another_flow_is_an_error(
    version: int, qos: int, wrong: type[Puback] | type[Pubrec] | type[Pubcomp]
) -> None:
    """An acknowledgement that the flow does not have there ends the connection (4.3.2, 4.3.3)."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    subscriber.subscribe("t", 2)
    link.connect("publisher", version).complete("t", b"x", qos)
    packet_id = subscriber.only(Publish).packet_id
    subscriber.send(wrong(packet_id))
    assert subscriber.is_gone
    if version == V5:
        assert subscriber.goodbye() == Reason.PROTOCOL_ERROR


@VERSIONS
def test_acknowledgements_come_in_order(version: int) -> None:
    """PUBACKs in the order of QoS 1 PUBLISHes, PUBRECs in that of QoS 2 ones (4.6-2, 4.6-3)."""
    link = Link()
    durable = link.connect("durable", version, clean_start=version == V5, expiry_s=None)
    durable.subscribe("kept/#", 1)
    client = link.connect("client", version)
    packets: list[Publish] = []
    for number in range(1, 41):
        topic = "kept/x" if number % 3 else "lost"  # some wait for a commit, others do not
        packets.append(Publish(topic, b"", 1 + number % 2, packet_id=number))
    client.send(*packets)
    answers = client.take()
    assert [each.packet_id for each in answers if isinstance(each, Puback)] == [
        each.packet_id for each in packets if each.qos == 1
    ]
    assert [each.packet_id for each in answers if isinstance(each, Pubrec)] == [
        each.packet_id for each in packets if each.qos == 2
    ]


def test_messages_keep_their_order() -> None:
    """Messages of one publisher, topic and QoS arrive in the order of sending (4.6-5)."""
    link = Link()
    subscriber = link.connect("subscriber", receive_maximum=3)
    subscriber.subscribe("t", 1)
    publisher = link.connect("publisher")
    for number in range(50):
        publisher.complete("t", b"%d" % number, 1)
    assert subscriber.payloads() == [b"%d" % number for number in range(50)]


def test_nobody_listens() -> None:
    """A QoS 1 or 2 message without a subscriber is told so with 0x10 (MQTT 5.0, 3.4.2.1)."""
    link = Link()
    client = link.connect("client")
    assert client.complete("t", b"", 1) == Reason.NO_MATCHING_SUBSCRIBERS
    assert client.complete("t", b"", 1) == Reason.NO_MATCHING_SUBSCRIBERS  # the fast path too
    link.connect("subscriber").subscribe("t", 0)
    assert client.complete("t", b"", 1) == Reason.SUCCESS


@VERSIONS
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_packets_in_pieces(version: int, chunk: int) -> None:
    """Packets may come in chunks of any size: what they mean is the same."""
    link = Link()
    subscriber = link.connect("subscriber", version)
    subscriber.subscribe("#", 2)
    client = link.connect("client", version)
    packets = (
        Subscribe(1, [SubscriptionRequest("none", 0)]),
        Publish("a", b"x" * 200, 0),
        Publish("a", b"y" * 200, 0),
        Publish("b", b"z" * 20_000, 1, packet_id=2),
        Publish("b", b"w", 2, packet_id=3),
        Pubrel(3),
        Pingreq(),
    )
    data = b"".join(encode(packet, version) for packet in packets)
    for at in range(0, len(data), chunk):
        client.send_bytes(data[at : at + chunk])
    kinds = [type(each) for each in client.take()]
    assert kinds == [Suback, Puback, Pubrec, Pubcomp, Pingresp]
    assert subscriber.payloads() == [b"x" * 200, b"y" * 200, b"z" * 20_000, b"w"]


class TestReceiveMaximum:
    """The window of unacknowledged messages, both ways (MQTT 5.0, 3.1.2.11.3, 3.2.2.3.3, 4.9)."""

    @pytest.mark.parametrize("qos", [1, 2])
    def test_the_broker_keeps_to_the_client(self, qos: int) -> None:
        """No more than Receive Maximum messages are on the way; each end lets one go (3.3.4-9)."""
        link = Link()
        subscriber = link.connect("subscriber", receive_maximum=3)
        subscriber.subscribe("t", qos)
        publisher = link.connect("publisher")
        for number in range(10):
            publisher.complete("t", b"%d" % number, qos)
        first = [each for each in subscriber.take() if isinstance(each, Publish)]
        assert [each.payload for each in first] == [b"0", b"1", b"2"]
        if qos == 1:
            subscriber.send(Puback(first[1].packet_id))
        else:
            subscriber.send(Pubrec(first[1].packet_id))
            subscriber.only(Pubrel)  # PUBREC frees nothing
            subscriber.send(Pubcomp(first[1].packet_id))
        assert subscriber.only(Publish).payload == b"3"

    def test_qos_0_needs_no_window(self) -> None:
        """QoS 0 messages go on while the window is full (4.9)."""
        link = Link()
        subscriber = link.connect("subscriber", receive_maximum=1)
        subscriber.subscribe("t", 1)
        publisher = link.connect("publisher")
        publisher.complete("t", b"1", 1)
        publisher.complete("t", b"2", 1)
        publisher.publish("t", b"0")
        payloads = [each.payload for each in subscriber.take() if isinstance(each, Publish)]
        assert payloads == [b"1", b"0"]

    def test_the_node_caps_it(self) -> None:
        """A client that allows more gets at most `inflight_max` at once."""
        link = Link(limits=Limits(inflight_max=2))
        subscriber = link.connect("subscriber", V311)
        subscriber.subscribe("t", 1)
        publisher = link.connect("publisher")
        for _ in range(5):
            publisher.complete("t", b"", 1)
        assert len(subscriber.take()) == 2

    def test_a_client_over_it_is_disconnected(self) -> None:
        """More QoS 2 messages than announced without PUBREL: DISCONNECT 0x93 (3.3.4-7, 3.3.4-8)."""
        link = Link(limits=Limits(receive_max=3))
        client, connack = link.greet("client")
        assert connack.receive_maximum == 3
        for packet_id in (1, 2, 3):
            client.send(Publish("t", b"", 2, packet_id=packet_id))
            client.only(Pubrec)
        client.send(Publish("t", b"", 2, dup=True, packet_id=3))  # the same again is not one more
        client.only(Pubrec)
        client.send(Pubrel(1), Publish("t", b"", 2, packet_id=1))
        assert [type(each) for each in client.take()] == [Pubcomp, Pubrec]
        client.send(Publish("t", b"", 2, packet_id=4))
        assert client.goodbye() == Reason.RECEIVE_MAXIMUM_EXCEEDED

    def test_refused_messages_free_their_place(self) -> None:
        """A PUBREC of 0x80 or more ends the flow: its identifier counts no more (4.3.3)."""
        link = Link(limits=Limits(receive_max=2, topic_levels_max=2))
        client = link.connect("client")
        for packet_id in range(1, 10):
            client.send(Publish("too/deep/topic", b"", 2, packet_id=packet_id))
            assert client.only(Pubrec).reason == Reason.TOPIC_NAME_INVALID


def _in_flight(client: FakeClient) -> list[int]:
    return list(client.session.inflight)


def test_identifiers_in_use_are_not_given_again() -> None:
    """Identifiers go round from 65,535 to 1 and skip those that are in use (2.2.1-4)."""
    link = Link()
    subscriber = link.connect("subscriber")
    subscriber.subscribe("t", 1)
    publisher = link.connect("publisher")
    publisher.publish("t", b"kept", 1)
    assert subscriber.only(Publish).packet_id == 1
    subscriber.session._next_id = 65_534
    for expected in (65_535, 2):
        publisher.publish("t", b"", 1)
        assert subscriber.only(Publish).packet_id == expected
    assert _in_flight(subscriber) == [1, 65_535, 2]


class TestMaximumPacketSize:
    """Packets that are too large for the other side (MQTT 5.0, 3.1.2.11.4, 3.2.2.3.6)."""

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_the_broker_keeps_to_the_client(self, qos: int) -> None:
        """What is larger than the client's maximum is dropped as if delivered (3.1.2-24, -25)."""
        link = Link()
        subscriber = link.connect("subscriber", maximum_packet_size=100)
        subscriber.subscribe("t", qos)
        publisher = link.connect("publisher")
        publisher.complete("t", b"x" * 100, qos)
        publisher.complete("t", b"small", qos)
        assert subscriber.payloads() == [b"small"]
        assert not subscriber.session.inflight
        dropped = link.node.statistics.dropped
        assert dropped["larger than the client's Maximum Packet Size"] == 1

    def test_the_exact_size_fits(self) -> None:
        """A packet of exactly the maximum is sent, one byte more is not (3.1.2-24)."""
        link = Link()
        fitting = encode(Publish("t", b"x" * 60), V5)
        subscriber = link.connect("subscriber", maximum_packet_size=len(fitting))
        subscriber.subscribe("t")
        publisher = link.connect("publisher")
        publisher.publish("t", b"x" * 61)
        publisher.publish("t", b"x" * 60)
        assert subscriber.payloads() == [b"x" * 60]

    def test_a_connack_that_does_not_fit_ends_the_connection(self) -> None:
        """If even CONNACK is too large, nothing is sent (3.2.2-19 ff.) and the session goes."""
        link = Link()
        client = link.open()
        connect = bytes.fromhex("10 14 00 04 4D 51 54 54 05 02 00 00 05 27 00 00 00 05 00 02 69 64")
        client.send_bytes(connect)
        assert client.is_gone
        assert client.take() == []
        assert link.node.connected == 0
        assert link.node.sessions == {}

    def test_a_client_over_the_nodes_maximum(self) -> None:
        """A packet over the announced maximum is refused with 0x95 before it is read (3.2.2-15)."""
        link = Link(limits=Limits(packet_size_max_bytes=1024))
        client, connack = link.greet("client")
        assert connack.maximum_packet_size == 1024
        header = encode(Publish("t", b"x" * 2000), V5)[:3]
        client.send_bytes(header)
        assert client.goodbye() == Reason.PACKET_TOO_LARGE
