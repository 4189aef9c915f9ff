"""What a broker promises of messages on their way: expiry, QoS 1 and 2, topic aliases."""

import pytest

from tests.conformance.decoder import decode
from tests.conformance.exchanges import (
    MESSAGE_EXPIRY,
    SESSION,
    TOPIC_ALIAS,
    expect_no_message,
    leave,
    let_pass,
    new_name,
    only_here,
    publish,
    read,
    take_message,
)
from tests.support import (
    RawClient,
    publish_packet,
)


@pytest.mark.slow
def test_message_expiry(port: int) -> None:
    """What waited too long does not come; what comes says what time is left (3.3.2-5, -6)."""
    name, topic, kept = new_name("c"), new_name(), new_name()
    with RawClient(port) as client:
        client.join(name, version=5, properties=SESSION)
        client.subscribe(topic, options=1, version=5)
        leave(client)
    publish(port, topic, b"short", properties=b"\x02\x00\x00\x00\x01")
    publish(port, topic, b"long", properties=b"\x02\x00\x00\x00\x64")
    publish(port, topic, b"eternal")
    publish(port, kept, b"short", retain=True, properties=b"\x02\x00\x00\x00\x01")
    publish(port, f"{kept}/long", b"long", retain=True, properties=b"\x02\x00\x00\x00\x64")
    let_pass(2.1)
    with RawClient(port) as client:
        client.join(name, version=5, clean=False, properties=SESSION)
        found = read(client)
        assert found.fields["payload"] == b"long"
        left = dict(found.properties)[MESSAGE_EXPIRY]
        assert isinstance(left, int)
        assert 90 <= left <= 98
        found = read(client)
        assert (found.fields["payload"], found.properties) == (b"eternal", [])
        client.subscribe(f"{kept}/#", version=5)
        found = read(client)
        assert found.fields["payload"] == b"long"
        left = dict(found.properties)[MESSAGE_EXPIRY]
        assert isinstance(left, int)
        assert 90 <= left <= 98
        client.ping()
    publish(port, f"{kept}/long", b"", retain=True)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_redelivery(port: int, version: int) -> None:
    """What was not acknowledged comes again on the next connection, in order (4.4.0-1, 4.6.0-1).

    QoS 1 with DUP and its identifier; QoS 2 likewise before PUBREC, and PUBREL after it.
    """
    name, topic = new_name("c"), new_name()
    expiry = SESSION if version == 5 else b""
    with RawClient(port) as client:
        client.join(name, version=version, clean=False, properties=expiry)
        client.subscribe(topic, options=2, version=version)
        for payload, qos in ((b"one", 1), (b"two", 2), (b"three", 2), (b"four", 1)):
            publish(port, topic, payload, qos)
        first = [decode(client.expect_kind(3).raw, version).fields for _ in range(4)]
        assert [each["payload"] for each in first] == [b"one", b"two", b"three", b"four"]
        assert not any(each["dup"] for each in first)
        identifiers = [each["identifier"] for each in first]
        released = identifiers[1]
        assert isinstance(released, int)
        client.send(b"\x50\x02" + released.to_bytes(2, "big"))
        client.expect_kind(6)
    with RawClient(port) as client:
        answer = client.join(name, version=version, clean=False, properties=expiry)
        assert answer.body[0] == 1 or version == 3
        again = [read(client, version) for _ in range(4)]
        messages = [each.fields for each in again if each.name == "PUBLISH"]
        assert [each["payload"] for each in messages] == [b"one", b"three", b"four"]
        assert all(each["dup"] for each in messages)
        kept = [identifiers[0], *identifiers[2:]]
        assert [each["identifier"] for each in messages] == kept
        assert [each.fields["identifier"] for each in again if each.name == "PUBREL"] == [released]
        client.send(b"\x70\x02" + released.to_bytes(2, "big"))
        client.ping()


@pytest.mark.parametrize("version", [4, 5])
def test_exactly_once(port: int, version: int) -> None:
    """A QoS 2 message that is sent again before PUBREL is delivered once (4.3.3-10 and -11)."""
    name, topic = new_name("c"), new_name()
    expiry = SESSION if version == 5 else b""
    with RawClient(port) as subscriber:
        subscriber.join(new_name("c"), version=version)
        subscriber.subscribe(topic, options=2, version=version)
        with RawClient(port) as client:
            client.join(name, version=version, clean=False, properties=expiry)
            for dup in (False, True):
                packet = publish_packet(topic, b"x", qos=2, dup=dup, packet_id=9, version=version)
                client.send(packet)
                assert client.expect_kind(5).body[:2] == b"\x00\x09"
        with RawClient(port) as client:
            client.join(name, version=version, clean=False, properties=expiry)
            client.send(publish_packet(topic, b"x", qos=2, dup=True, packet_id=9, version=version))
            assert client.expect_kind(5).body[:2] == b"\x00\x09"
            client.send("62 02 00 09")
            assert client.expect_kind(7).body[:2] == b"\x00\x09"
            # After PUBREL the identifier is free: the same bytes are a new message.
            client.send(publish_packet(topic, b"y", qos=2, packet_id=9, version=version))
            client.expect_kind(5)
            client.send("62 02 00 09")
            client.expect_kind(7)
        assert [take_message(subscriber, version)[1] for _ in range(2)] == [b"x", b"y"]
        expect_no_message(subscriber)


def test_pubrel_of_nothing(port: int) -> None:
    """PUBREL for an unknown identifier is answered all the same: it may be a second one (3.7.2.1).

    The vectors want reason code 0 there, the specification offers 0x92 as well.
    """
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.send("62 02 00 63")
        found = read(client)
        assert found.name == "PUBCOMP"
        assert found.fields["reason"] in (0, 0x92)
        client.ping()


@only_here
def test_maximum_packet_size(port: int) -> None:
    """What is larger than a client takes is not sent to it, as if it were done (3.1.2-24, -25)."""
    topic = new_name()
    with RawClient(port) as small, RawClient(port) as large:
        small.join(new_name("c"), version=5, properties=b"\x27\x00\x00\x00\x64\x21\x00\x01")
        large.join(new_name("c"), version=5)
        for client in (small, large):
            client.subscribe(topic, options=1, version=5)
        publish(port, topic, bytes(100))
        publish(port, topic, b"fits")
        assert take_message(small)[1] == b"fits"
        assert [take_message(large)[1] for _ in range(2)] == [bytes(100), b"fits"]


def test_queued_for_the_absent(port: int) -> None:
    """QoS 1 and 2 wait for an absent client with a session, and survive a clean start not."""
    name, topic = new_name("c"), new_name()
    with RawClient(port) as client:
        client.join(name, version=5, properties=SESSION)
        client.subscribe(topic, options=2, version=5)
        leave(client)
    publish(port, topic, b"one", 1)
    publish(port, topic, b"two", 2)
    with RawClient(port) as client:
        client.join(name, version=5, clean=False, properties=SESSION)
        assert [take_message(client)[1:3] for _ in range(2)] == [(b"one", 1), (b"two", 2)]
        client.send(b"\xe0\x00")
        assert {packet.kind for packet in client.read_to_end()} <= {6}  # PUBREL for the second
    publish(port, topic, b"three", 1)
    with RawClient(port) as client:
        assert client.join(name, version=5, clean=True).body[0] == 0
        client.ping()


def test_topic_alias_of_the_client(port: int) -> None:
    """An alias stands for the topic it was set to last, on this connection (3.3.2-8 to -12)."""
    topics = [new_name(), new_name()]
    with RawClient(port) as client, RawClient(port) as subscriber:
        subscriber.join(new_name("c"), version=5)
        subscriber.subscribe(*topics, version=5)
        client.join(new_name("c"), version=5)
        for topic, payload in (
            (topics[0], b"1"),
            ("", b"2"),
            (topics[1], b"3"),
            ("", b"4"),
            (topics[0], b"5"),
        ):
            properties = b"\x23\x00\x01" if payload != b"5" else b""
            client.send(publish_packet(topic, payload, version=5, properties=properties))
        came = [read(subscriber) for _ in range(5)]
        assert [each.fields["topic"] for each in came] == [
            topics[0],
            topics[0],
            topics[1],
            topics[1],
            topics[0],
        ]
        assert all(each.properties == [] for each in came)
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.send(publish_packet("", b"", version=5, properties=b"\x23\x00\x01"))
        assert read(client).fields["reason"] == 0x82
        client.expect_closed()


@only_here
def test_topic_alias_of_the_server(port: int) -> None:
    """A client that allows aliases gets them from the first message on, as many as it allows."""
    topics = [new_name(), new_name(), new_name()]
    with RawClient(port) as client:
        client.join(new_name("c"), version=5, properties=b"\x22\x00\x02")
        client.subscribe(*topics, version=5)
        seen: dict[object, object] = {}
        shortened = 0
        for number in range(12):
            publish(port, topics[number % 3], b"%d" % number)
            found = read(client)
            alias = dict(found.properties).get(TOPIC_ALIAS)
            assert alias in (None, 1, 2)
            if found.fields["topic"]:
                if alias is not None:
                    seen[alias] = found.fields["topic"]
                assert found.fields["topic"] == topics[number % 3]
                assert number > 1 or alias is not None
            else:
                assert seen[alias] == topics[number % 3]
                shortened += 1
        assert shortened > 0
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.subscribe(topics[0], version=5)
        publish(port, topics[0], b"x")
        assert read(client).properties == []
