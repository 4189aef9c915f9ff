"""Runs of equal QoS 0 packets, which are forwarded as the bytes that came.

The fast path takes neighbouring packets of equal topic and length together. What clients see must
not depend on it: every test here compares with what each packet means by itself.
"""

import itertools

import pytest

from ganglion.broker.core.access import Access, Rule
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import V5, V31, V311, Publish
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


def _run(version: int, payloads: list[bytes], topic: str = "t/1") -> bytes:
    return b"".join(encode(Publish(topic, payload), version) for payload in payloads)


class Receivers:
    """Subscribers of every kind to ``t/+``, and a publisher that has used ``t/1`` before."""

    def __init__(self, version: int) -> None:
        self.link = Link()
        connect = self.link.connect
        self.plain = {
            "3.1": connect("3.1", V31),
            "3.1.1": connect("3.1.1", V311),
            "5": connect("5"),
            "aliases": connect("aliases", topic_alias_maximum=5),
            "small": connect("small", maximum_packet_size=200),
        }
        for client in self.plain.values():
            client.subscribe("t/+", 1)
        self.identified = connect("identified")
        self.identified.subscribe("t/#", 0, identifier=3)
        self.shared = [connect(f"s{number}", V311) for number in range(2)]
        for client in self.shared:
            client.subscribe("$share/g/t/1", 0)
        self.publisher = connect("publisher", version)
        if version == V5:
            self.publisher.subscribe("t/1", 0, no_local=True)
        self.publisher.publish("t/1", b"first")
        self.check([b"first"])

    def check(self, payloads: list[bytes]) -> None:
        """Every receiver has got these messages, each in its own form, and nothing else."""
        for name, client in self.plain.items():
            messages = client.messages()
            fitting = [each for each in payloads if name != "small" or len(each) < 180]
            assert [each.payload for each in messages] == fitting, name
            assert all((each.qos, each.retain) == (0, False) for each in messages)
            if name != "aliases":
                assert {each.topic for each in messages} <= {"t/1"}
        messages = self.identified.messages()
        assert [each.payload for each in messages] == payloads
        expected = Properties(subscription_identifiers=(3,))
        assert all(each.properties == expected for each in messages)
        shared = sorted(payload for client in self.shared for payload in client.payloads())
        assert shared == sorted(payloads)
        assert self.publisher.take() == []


@VERSIONS
@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("size", [0, 1, 3, 100, 121, 122, 123, 200, 20_000])
def test_equal_packets(version: int, count: int, size: int) -> None:
    """A run reaches every kind of receiver as so many messages, in order."""
    receivers = Receivers(version)
    payloads = [bytes((number % 256,)) * size for number in range(count)]
    receivers.publisher.send_bytes(_run(version, payloads))
    receivers.check(payloads)


@VERSIONS
def test_split_at_every_byte(version: int) -> None:
    """A run may be cut by the network anywhere, also in the middle of a header."""
    payloads = [b"a1", b"a2", b"a3"]
    data = _run(version, payloads)
    receivers = Receivers(version)
    for at in range(1, len(data)):
        receivers.publisher.send_bytes(data[:at])
        receivers.publisher.send_bytes(data[at:])
        receivers.check(payloads)


@VERSIONS
def test_byte_by_byte(version: int) -> None:
    """A run may come one byte at a time."""
    payloads = [b"a1", b"a2", b"a3"]
    receivers = Receivers(version)
    for byte in _run(version, payloads):
        receivers.publisher.send_bytes(bytes((byte,)))
    receivers.check(payloads)


@VERSIONS
def test_neighbours_that_only_look_alike(version: int) -> None:
    """Packets of other topics, lengths, QoS or flags between them keep their own meaning."""
    receivers = Receivers(version)
    every = receivers.link.connect("every", version)
    every.subscribe("#", 2)
    packets = [
        Publish("t/1", b"aa"),
        Publish("t/1", b"bb"),
        Publish("t/2", b"cc"),
        Publish("t/1", b"ddd"),
        Publish("t/1", b"ee", 1, packet_id=9),
        Publish("t/1", b"ff", retain=True),
        Publish("t/1", b"gg"),
        Publish("t/12", b"h"),
        Publish("t/1", b"ii"),
    ]
    receivers.publisher.publish("t/2", b"")
    receivers.publisher.publish("t/12", b"")
    every.messages()
    data = b"".join(encode(each, version) for each in packets)
    receivers.publisher.send_bytes(data)
    got = [(each.topic, each.payload, each.qos, each.retain) for each in every.messages()]
    assert got == [(each.topic, each.payload, each.qos, False) for each in packets]


@VERSIONS
def test_payloads_that_look_like_packets(version: int) -> None:
    """A payload that contains the header of its own packet does not make it longer or shorter."""
    receivers = Receivers(version)
    inner = encode(Publish("t/1", b"x"), version)
    payloads = [inner * 2, inner * 2, inner + b"\x00" * len(inner)]
    receivers.publisher.send_bytes(_run(version, payloads))
    receivers.check(payloads)


@VERSIONS
def test_subscriptions_change_within_a_chunk(version: int) -> None:
    """A SUBSCRIBE between two runs of one chunk acts on the second only (3.8.4)."""
    link = Link()
    client = link.connect("client", version)
    client.publish("t/1", b"")
    subscribe = b"\x82" + (b"\x09\x00\x07\x00" if version == V5 else b"\x08\x00\x07")
    subscribe += b"\x00\x03t/1\x00"
    client.send_bytes(_run(version, [b"1", b"2"]) + subscribe + _run(version, [b"3", b"4"]))
    got = [each.payload for each in client.take() if isinstance(each, Publish)]
    assert got == [b"3", b"4"]


def test_the_bytes_are_passed_on_whole() -> None:
    """To a receiver of the same version a run is one write, however many messages it has."""
    link = Link()
    subscriber = link.connect("subscriber", V311)
    subscriber.subscribe("t/1")
    publisher = link.connect("publisher", V311)
    publisher.publish("t/1", b"xx")
    subscriber.messages()
    before = subscriber.endpoint.writes
    publisher.send_bytes(_run(V311, [b"%02d" % number for number in range(100)]))
    assert subscriber.endpoint.writes == before + 1
    assert len(subscriber.messages()) == 100


def test_a_congested_receiver_drops_and_counts_all_of_a_run() -> None:
    """What is dropped is counted in messages, not in runs."""
    link = Link()
    subscriber = link.connect("subscriber", V311)
    subscriber.subscribe("t/1")
    publisher = link.connect("publisher", V311)
    publisher.publish("t/1", b"xx")
    subscriber.endpoint.congested = True
    publisher.send_bytes(_run(V311, [b"%02d" % number for number in range(100)]))
    assert subscriber.endpoint.dropped == 100


@VERSIONS
def test_figures(version: int) -> None:
    """Runs count as the messages and bytes that they are, both ways."""
    link = Link()
    subscribers = [link.connect(f"s{number}", version) for number in range(3)]
    for client in subscribers:
        client.subscribe("t/1")
    publisher = link.connect("publisher", version)
    publisher.publish("t/1", b"xx")
    counted = link.node.statistics
    received, sent = counted.publish_received, counted.publish_sent
    bytes_received, bytes_sent = counted.publish_bytes_received, counted.publish_bytes_sent
    packets = counted.packets_received
    data = _run(version, [b"%02d" % number for number in range(50)])
    publisher.send_bytes(data)
    assert counted.publish_received - received == 50
    assert counted.packets_received - packets == 50
    assert counted.publish_sent - sent == 150
    assert counted.publish_bytes_received - bytes_received == len(data)
    assert counted.publish_bytes_sent - bytes_sent == 3 * len(data)


def test_padded_lengths_are_not_passed_on() -> None:
    """MQTT 3.1.1 does not forbid a remaining length with superfluous bytes: nobody else sees it."""
    link = Link()
    subscriber = link.connect("subscriber", V311)
    subscriber.subscribe("t", 2)
    publisher = link.connect("publisher", V311)
    for qos in (0, 1, 2):
        publisher.complete("t", b"x", qos)
    subscriber.messages()
    padded = (
        b"\x30\x84\x00\x00\x01tx",
        b"\x30\x84\x00\x00\x01ty",
        b"\x32\x86\x80\x00\x00\x01t\x00\x05z",
        b"\x34\x86\x00\x00\x01t\x00\x06w",
    )
    publisher.send_bytes(b"".join(padded))
    output = bytes(subscriber.endpoint.output)
    assert output[:12] == b"\x30\x04\x00\x01tx\x30\x04\x00\x01ty"
    assert [each.payload for each in subscriber.messages()] == [b"x", b"y", b"z", b"w"]
    assert b"\x84\x00" not in output
    assert b"\x86" not in output


@VERSIONS
def test_receivers_that_come_and_go(version: int) -> None:
    """A route that was used sees every change of its receivers at once."""
    link = Link()
    publisher = link.connect("publisher", version)
    clients: list[FakeClient] = []
    for number, topic_filter in enumerate(itertools.islice(itertools.cycle(["t/1", "t/+"]), 8)):
        client = link.connect(f"c{number}", version, clean_start=False)
        client.subscribe(topic_filter)
        clients.append(client)
        publisher.send_bytes(_run(version, [b"a", b"b"]))
        assert all(each.payloads() == [b"a", b"b"] for each in clients)
    while clients:
        clients.pop(0).cut()
        publisher.send_bytes(_run(version, [b"a", b"b"]))
        assert all(each.payloads() == [b"a", b"b"] for each in clients)
    back = link.connect("c0", version, clean_start=False)
    if version != V5:
        publisher.send_bytes(_run(version, [b"a", b"b"]))
        assert back.payloads() == [b"a", b"b"]


def test_a_publisher_that_may_not_any_more() -> None:
    """When the rules change, a topic that took the fast path is judged anew."""
    link = Link()
    subscriber = link.connect("subscriber", V311)
    subscriber.subscribe("t/1")
    publisher = link.connect("publisher", V311)
    publisher.send_bytes(_run(V311, [b"a", b"b"]))
    assert subscriber.payloads() == [b"a", b"b"]
    rules = [Rule(effect="deny", topics=("t/#",), action="publish")]
    link.node.reload(access=Access(rules))
    publisher.send_bytes(_run(V311, [b"a", b"b"]))
    assert subscriber.take() == []
    assert link.node.statistics.dropped["refused"] == 2
