"""What a broker promises to those who subscribe, alone and sharing, and of what it retains."""

import pytest

from tests.conformance.exchanges import (
    CONTENT_TYPE,
    CORRELATION,
    PAYLOAD_FORMAT,
    RESPONSE_TOPIC,
    SUBSCRIPTION_ID,
    USER,
    new_name,
    only_here,
    publish,
    read,
    take_message,
)
from tests.support import (
    RawClient,
    frame,
    publish_packet,
    subscribe_packet,
    text,
)


@only_here
def test_overlapping_subscriptions(port: int) -> None:
    """One copy comes, at the highest QoS, with every identifier (3.3.4-3, 3.3.4-2)."""
    base = new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        for number, (topic_filter, qos) in enumerate(
            ((f"{base}/#", 0), (f"{base}/+", 2), (f"{base}/a", 1))
        ):
            properties = bytes([SUBSCRIPTION_ID, number + 1])
            client.send(
                subscribe_packet(topic_filter, options=qos, version=5, properties=properties)
            )
            client.expect_kind(9)
        publish(port, f"{base}/a", b"x", 2)
        found = read(client)
        assert found.fields["qos"] == 2
        identifiers = [
            value for identifier, value in found.properties if identifier == SUBSCRIPTION_ID
        ]
        assert sorted(map(str, identifiers)) == ["1", "2", "3"]
        client.ping()


def test_subscription_identifier_goes_with_its_subscription(port: int) -> None:
    """A new SUBSCRIBE to the same filter replaces its identifier and options (3.8.4-3)."""
    topic = new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.send(subscribe_packet(topic, options=1, version=5, properties=b"\x0b\x05"))
        client.expect_kind(9)
        client.send(subscribe_packet(topic, options=0, version=5, properties=b"\x0b\xff\x7f"))
        client.expect_kind(9)
        publish(port, topic, b"x")
        found = read(client)
        assert (found.fields["qos"], found.properties) == (0, [(SUBSCRIPTION_ID, 16_383)])
        client.ping()


def test_no_local(port: int) -> None:
    """With No Local a client does not get what it publishes itself (3.8.3-3)."""
    topic = new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.subscribe(topic, options=0b100, version=5)
        client.send(publish_packet(topic, b"mine", version=5))
        client.ping()
        publish(port, topic, b"another's")
        assert take_message(client)[1] == b"another's"


@only_here
def test_no_local_and_shared(port: int) -> None:
    """No Local on a shared subscription is a protocol error (3.8.3-4)."""
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.send(subscribe_packet("$share/g/t", options=0b100, version=5))
        assert read(client).fields["reason"] == 0x82
        client.expect_closed()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_unsubscribe(port: int, version: int) -> None:
    """After UNSUBACK nothing more comes for the filter (3.10.4-2); MQTT 5 tells unknown ones."""
    topic, other = new_name(), new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=version)
        client.subscribe(topic, other, version=version)
        body = b"\x00\x09" + (b"\x00" if version == 5 else b"") + text(topic) + text("never")
        client.send(frame(0xA2, body))
        expected = b"\x00\x09" + (b"\x00\x00\x11" if version == 5 else b"")
        assert client.expect_kind(11).body == expected
        publish(port, topic, b"x")
        publish(port, other, b"y")
        assert take_message(client, version)[1] == b"y"


@pytest.mark.parametrize("version", [4, 5])
def test_byte_order_mark(port: int, version: int) -> None:
    """U+FEFF in a topic is a character like others and not stripped (1.5.4-3)."""
    topic = "\ufeff" + new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=version)
        client.subscribe(topic, topic[1:], version=version)
        client.send(publish_packet(topic, b"x", version=version))
        assert take_message(client, version)[0] == topic
        client.ping()


def test_order_of_topics(port: int) -> None:
    """Messages of one publisher keep their order, over several topics too (4.6.0-5, 4.6.0-6)."""
    base = new_name()
    with RawClient(port) as subscriber, RawClient(port) as publisher:
        subscriber.join(new_name("c"), version=5)
        subscriber.subscribe(f"{base}/#", options=1, version=5)
        publisher.join(new_name("p"), version=5)
        for number in range(1, 201):
            topic = f"{base}/{number % 7}"
            packet = publish_packet(topic, b"%d" % number, qos=1, packet_id=number, version=5)
            publisher.send(packet)
        came = [take_message(subscriber)[1] for _ in range(200)]
        assert came == [b"%d" % number for number in range(1, 201)]


@only_here
def test_shared_message_of_a_member_that_leaves(port: int) -> None:
    """What a member did not acknowledge goes to another when its session ends (4.8.2)."""
    topic = new_name()
    with RawClient(port) as other:
        with RawClient(port) as leaving:
            leaving.join(new_name("c"), version=5)
            leaving.subscribe(f"$share/g/{topic}", options=1, version=5)
            publish(port, topic, b"work")
            assert leaving.expect_kind(3).first == 0x32
            other.join(new_name("c"), version=5)
            other.subscribe(f"$share/g/{topic}", options=1, version=5)
        assert take_message(other)[1] == b"work"
        other.ping()


def test_shared_and_plain(port: int) -> None:
    """A plain subscription gets its copy beside the shared one, of the same client too (4.8.2)."""
    topic = new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.subscribe(f"$share/g/{topic}", topic, f"$share/h/{topic}", options=0, version=5)
        publish(port, topic, b"x")
        assert [take_message(client)[1] for _ in range(3)] == [b"x"] * 3
        client.ping()


@only_here
def test_no_retained_for_shared(port: int) -> None:
    """A new shared subscription gets no retained messages (3.3.1.3)."""
    topic = new_name()
    publish(port, topic, b"kept", retain=True)
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.subscribe(f"$share/g/{topic}", version=5)
        client.ping()
    publish(port, topic, b"", retain=True)


@only_here
def test_busy_member(port: int) -> None:
    """A member whose window is full is passed over for one that can take more (4.8.2)."""
    topic = new_name()
    with RawClient(port) as busy, RawClient(port) as ready, RawClient(port) as publisher:
        busy.join(new_name("c"), version=5, properties=b"\x21\x00\x01")
        ready.join(new_name("c"), version=5)
        for member in (busy, ready):
            member.subscribe(f"$share/g/{topic}", options=1, version=5)
        publisher.join(new_name("p"), version=5)
        for number in range(1, 11):
            publisher.send(
                publish_packet(topic, b"%d" % number, qos=1, packet_id=number, version=5)
            )
            publisher.expect_kind(4)
        stuck = busy.expect_kind(3)
        assert stuck.first == 0x32
        assert len({take_message(ready)[1] for _ in range(9)}) == 9
        busy.ping()
        ready.ping()


@pytest.mark.parametrize(
    ("handling", "expected"),
    [(0, [b"kept", b"kept"]), (1, [b"kept"]), (2, [])],
    ids=["always", "new subscription", "never"],
)
def test_retain_handling(port: int, handling: int, expected: list[bytes]) -> None:
    """Retain Handling says when a SUBSCRIBE brings retained messages (3.3.1-9 to 3.3.1-11)."""
    topic = new_name()
    publish(port, topic, b"kept", retain=True)
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        came: list[bytes] = []
        for _ in range(2):
            client.subscribe(topic, options=handling << 4, version=5)
            client.send(b"\xc0\x00")
            while (packet := client.read_packet()).kind == 3:
                came.append(packet.body[-4:])
            assert packet.kind == 13
        assert came == expected


@pytest.mark.parametrize("as_published", [False, True])
def test_retain_as_published(port: int, as_published: bool) -> None:
    """Live messages lose the retain flag, unless the subscription wants it (3.3.1-12, 3.3.1-13)."""
    topic = new_name()
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.subscribe(topic, options=8 if as_published else 0, version=5)
        publish(port, topic, b"x", retain=True)
        publish(port, topic, b"y")
        publish(port, topic, b"", retain=True)
        assert take_message(client) == (topic, b"x", 0, as_published)
        assert take_message(client) == (topic, b"y", 0, False)
        assert take_message(client) == (topic, b"", 0, as_published)


def test_retained_with_properties(port: int) -> None:
    """A retained message keeps its properties and QoS (3.3.2-4 and following)."""
    topic = new_name()
    properties = (
        b"\x01\x01\x03"
        + text("text/plain")
        + b"\x08"
        + text("answer")
        + b"\x09"
        + text(b"\x00\xff")
        + b"\x26"
        + text("b")
        + text("1")
        + b"\x26"
        + text("a")
        + text("2")
    )
    publish(port, topic, "wört".encode(), 2, retain=True, properties=properties)
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.subscribe(topic, options=1, version=5)
        found = read(client)
        assert found.fields["qos"] == 1
        assert found.fields["retain"] is True
        assert sorted(found.properties, key=lambda each: each[0] == USER) == [
            (PAYLOAD_FORMAT, 1),
            (CONTENT_TYPE, "text/plain"),
            (RESPONSE_TOPIC, "answer"),
            (CORRELATION, b"\x00\xff"),
            (USER, ("b", "1")),
            (USER, ("a", "2")),
        ]
    publish(port, topic, b"", retain=True)


def test_many_retained(port: int) -> None:
    """A wildcard brings every matching retained message once, whatever their number."""
    base = new_name()
    with RawClient(port) as publisher, RawClient(port) as client:
        publisher.join(new_name("p"))
        for number in range(500):
            publisher.send(publish_packet(f"{base}/{number % 50}/{number}", b"x", retain=True))
        publisher.ping()
        client.join(new_name("c"))
        client.subscribe(f"{base}/7/+", f"{base}/+/8", f"{base}/499", options=1)
        topics = sorted(take_message(client, 4)[0] for _ in range(11))
        expected = [f"{base}/7/{each}" for each in range(7, 500, 50)] + [f"{base}/8/8"]
        assert topics == sorted(expected)
        client.ping()
        for number in range(500):
            publisher.send(publish_packet(f"{base}/{number % 50}/{number}", b"", retain=True))
        publisher.ping()
    with RawClient(port) as client:
        client.join(new_name("c"))
        client.subscribe(f"{base}/#")
        client.ping()
