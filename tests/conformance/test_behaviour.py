"""What a broker promises over time, clause by clause, seen from outside.

The vectors show single exchanges; here are sessions, wills, retained messages, expiry, flow and
enhanced authentication, told with bare sockets and the independent decoder. With
``TESTED_BROKER=mosquitto`` the tests run against Mosquitto, which proves them; what it is known to
do in another permitted way is marked.
"""

import base64
import hashlib
import hmac
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.conformance.decoder import Meaning, decode
from tests.support import (
    BrokerProcess,
    RawClient,
    connect_packet,
    frame,
    mosquitto,
    publish_packet,
    start_daemon,
    subscribe_packet,
    text,
    until,
    varint,
)

_WITH_MOSQUITTO = os.environ.get("TESTED_BROKER") == "mosquitto"
only_here = pytest.mark.skipif(_WITH_MOSQUITTO, reason="Mosquitto 2.0.11 does otherwise")

_numbers = count(1)
_SESSION = b"\x11\x00\x00\x02\x58"  # Session Expiry Interval: 600 seconds

_PAYLOAD_FORMAT, _MESSAGE_EXPIRY, _CONTENT_TYPE = 0x01, 0x02, 0x03
_RESPONSE_TOPIC, _CORRELATION, _SUBSCRIPTION_ID = 0x08, 0x09, 0x0B
_ASSIGNED_ID, _SERVER_KEEP_ALIVE, _AUTH_METHOD, _AUTH_DATA = 0x12, 0x13, 0x15, 0x16
_RESPONSE_INFORMATION, _REASON_STRING, _TOPIC_ALIAS, _USER = 0x1A, 0x1F, 0x23, 0x26


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    """The broker that all tests of this module talk to."""
    with mosquitto() if _WITH_MOSQUITTO else start_daemon() as process:
        yield process


@pytest.fixture
def port(broker: BrokerProcess) -> int:
    """Where it speaks MQTT."""
    return broker.ports["mqtt"]


def _name(kind: str = "t") -> str:
    """A topic or client identifier that no other test uses."""
    return f"{kind}{next(_numbers)}"


def _read(client: RawClient, version: int = 5) -> Meaning:
    return decode(client.read_packet().raw, version)


def _message(client: RawClient, version: int = 5) -> tuple[str, bytes, int, bool]:
    """The next message: topic, payload, QoS, retain. Whatever asks for an answer gets it."""
    while True:
        packet = client.read_packet()
        if packet.kind == 6:
            client.send(b"\x70\x02" + packet.body[:2])
            continue
        meaning = decode(packet.raw, version)
        assert meaning.name == "PUBLISH", meaning
        topic, payload = meaning.fields["topic"], meaning.fields["payload"]
        qos, retain = meaning.fields["qos"], meaning.fields["retain"]
        assert isinstance(topic, str)
        assert isinstance(payload, bytes)
        assert isinstance(qos, int)
        if qos:
            identifier = meaning.fields["identifier"]
            assert isinstance(identifier, int)
            client.send(bytes([0x40 if qos == 1 else 0x50, 2]) + identifier.to_bytes(2, "big"))
        return topic, payload, qos, bool(retain)


def _expect_no_message(client: RawClient) -> None:
    """PINGREQ is answered before any other message comes; open QoS 2 flows may end first."""
    client.send(b"\xc0\x00")
    while (packet := client.read_packet()).kind != 13:
        assert packet.kind == 6, f"came {packet.raw[:80].hex(' ')}"
        client.send(b"\x70\x02" + packet.body[:2])


def _acknowledge(body: bytes, first: int) -> bytes:
    return bytes([first, 2]) + body[:2]


def _let_pass(seconds: float) -> None:
    """Until so much time has passed: here the clock is the thing that is waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)


def _publish(port: int, topic: str, payload: bytes, qos: int = 1, **options: object) -> None:
    """Publish by a client of its own, and see the message accepted."""
    with RawClient(port) as client:
        client.join(_name("p"), version=5)
        client.send(publish_packet(topic, payload, qos=qos, version=5, **options))  # type: ignore[arg-type]  # passed on as it is
        if qos == 2:
            client.send(_acknowledge(client.expect_kind(5).body, 0x62))
            client.expect_kind(7)
        elif qos:
            client.expect_kind(4)
        client.ping()


def _leave(client: RawClient) -> None:
    client.send(b"\xe0\x00")
    client.expect_closed()


# Connecting


def test_assigned_client_identifier(port: int) -> None:
    """A client without identifier is told the one it gets, and no two get the same (3.2.2-16)."""
    with RawClient(port) as one, RawClient(port) as other:
        names: set[object] = set()
        for client in (one, other):
            answer = decode(client.join("", version=5).raw, 5)
            names.add(dict(answer.properties)[_ASSIGNED_ID])
        assert len(names) == 2
        assert all(names)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_session_present(port: int, version: int) -> None:
    """Session Present says if there was a session; a clean start ends it (3.1.2-4, 3.2.2-3).

    Before MQTT 5 a session that began clean ends with its connection, and 3.1 does not tell.
    """
    name, topic = _name("c"), _name()
    expiry = _SESSION if version == 5 else b""
    present: list[int] = []
    for clean in (True, False, False, True, False):
        with RawClient(port) as client:
            answer = client.join(name, version=version, clean=clean, properties=expiry)
            present.append(answer.body[0])
            if not clean:
                client.subscribe(topic, version=version)
            _leave(client)
    assert present == {3: [0, 0, 0, 0, 0], 4: [0, 0, 1, 0, 0], 5: [0, 1, 1, 0, 1]}[version]


def test_session_without_expiry(port: int) -> None:
    """Without Session Expiry Interval the session ends with the connection (3.1.2.11.2)."""
    name = _name("c")
    for _ in range(2):
        with RawClient(port) as client:
            assert client.join(name, version=5, clean=False).body[0] == 0
            _leave(client)


@pytest.mark.slow
def test_session_expires(port: int) -> None:
    """A session ends its interval after the connection (3.1.2-23)."""
    name = _name("c")
    with RawClient(port) as client:
        client.join(name, version=5, properties=b"\x11\x00\x00\x00\x01")
    _let_pass(0.3)
    with RawClient(port) as client:
        answer = client.join(name, version=5, clean=False, properties=b"\x11\x00\x00\x00\x01")
        assert answer.body[0] == 1
    _let_pass(2.2)
    with RawClient(port) as client:
        assert client.join(name, version=5, clean=False).body[0] == 0


def test_disconnect_ends_the_session(port: int) -> None:
    """DISCONNECT may change the expiry of a session, to its immediate end too (3.14.2.2.2)."""
    name = _name("c")
    with RawClient(port) as client:
        client.join(name, version=5, properties=_SESSION)
        client.send(frame(0xE0, b"\x00\x05\x11\x00\x00\x00\x00"))
        client.expect_closed()
    with RawClient(port) as client:
        assert client.join(name, version=5, clean=False).body[0] == 0


def test_disconnect_cannot_begin_a_session(port: int) -> None:
    """It is an error to ask for an expiry where CONNECT had none (3.14.2-2)."""
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.send(frame(0xE0, b"\x00\x05" + _SESSION))
        assert _read(client).fields["reason"] == 0x82
        client.expect_closed()


def test_unknown_authentication_method(port: int) -> None:
    """A method that the server does not offer is refused with 0x8C (4.12.0-1)."""
    with RawClient(port) as client:
        properties = b"\x15" + text("MAGIC")
        client.send(connect_packet(_name("c"), version=5, properties=properties))
        assert client.expect_kind(2).body[1] == 0x8C
        client.expect_closed()


@only_here
def test_response_information(port: int) -> None:
    """A client that asks learns a prefix for response topics that is its own (3.1.2.11.7)."""
    with RawClient(port) as one, RawClient(port) as other, RawClient(port) as silent:
        prefixes = {
            str(
                dict(
                    decode(
                        each.join(_name("c"), version=5, properties=b"\x19\x01").raw, 5
                    ).properties
                )[_RESPONSE_INFORMATION]
            )
            for each in (one, other)
        }
        assert len(prefixes) == 2
        assert not any("+" in each or "#" in each for each in prefixes)
        answer = decode(silent.join(_name("c"), version=5).raw, 5)
        assert _RESPONSE_INFORMATION not in dict(answer.properties)


@only_here
def test_problem_information(port: int) -> None:
    """A client that does not want it gets no reason strings in acknowledgements (3.1.2-29)."""
    with RawClient(port) as client:
        client.join(_name("c"), version=5, properties=b"\x17\x00")
        deep = "/".join("a" * 1000)
        client.send(publish_packet(deep, b"", qos=1, version=5))
        refused = _read(client)
        assert refused.fields["reason"] == 0x90
        client.send(subscribe_packet(deep, version=5))
        assert refused.properties == _read(client).properties == []
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.send(publish_packet(deep, b"", qos=1, version=5))
        assert "levels" in str(dict(_read(client).properties)[_REASON_STRING])


@pytest.mark.slow
@only_here
def test_keep_alive_cap() -> None:
    """A cap on the keep alive is told, and holds instead of what the client wished (3.2.2-21)."""
    with start_daemon("--limit", "keep_alive_max_s=1") as daemon:
        for wished in (0, 600):
            with RawClient(daemon.ports["mqtt"]) as client:
                answer = decode(client.join("c", version=5, keep_alive_s=wished).raw, 5)
                assert dict(answer.properties)[_SERVER_KEEP_ALIVE] == 1
                assert _read(client).fields["reason"] == 0x8D
                client.expect_closed()


# Subscriptions and delivery


@only_here
def test_overlapping_subscriptions(port: int) -> None:
    """One copy comes, at the highest QoS, with every identifier (3.3.4-3, 3.3.4-2)."""
    base = _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        for number, (topic_filter, qos) in enumerate(
            ((f"{base}/#", 0), (f"{base}/+", 2), (f"{base}/a", 1))
        ):
            properties = bytes([_SUBSCRIPTION_ID, number + 1])
            client.send(
                subscribe_packet(topic_filter, options=qos, version=5, properties=properties)
            )
            client.expect_kind(9)
        _publish(port, f"{base}/a", b"x", 2)
        found = _read(client)
        assert found.fields["qos"] == 2
        identifiers = [
            value for identifier, value in found.properties if identifier == _SUBSCRIPTION_ID
        ]
        assert sorted(map(str, identifiers)) == ["1", "2", "3"]
        client.ping()


def test_subscription_identifier_goes_with_its_subscription(port: int) -> None:
    """A new SUBSCRIBE to the same filter replaces its identifier and options (3.8.4-3)."""
    topic = _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.send(subscribe_packet(topic, options=1, version=5, properties=b"\x0b\x05"))
        client.expect_kind(9)
        client.send(subscribe_packet(topic, options=0, version=5, properties=b"\x0b\xff\x7f"))
        client.expect_kind(9)
        _publish(port, topic, b"x")
        found = _read(client)
        assert (found.fields["qos"], found.properties) == (0, [(_SUBSCRIPTION_ID, 16_383)])
        client.ping()


def test_no_local(port: int) -> None:
    """With No Local a client does not get what it publishes itself (3.8.3-3)."""
    topic = _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.subscribe(topic, options=0b100, version=5)
        client.send(publish_packet(topic, b"mine", version=5))
        client.ping()
        _publish(port, topic, b"another's")
        assert _message(client)[1] == b"another's"


@only_here
def test_no_local_and_shared(port: int) -> None:
    """No Local on a shared subscription is a protocol error (3.8.3-4)."""
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.send(subscribe_packet("$share/g/t", options=0b100, version=5))
        assert _read(client).fields["reason"] == 0x82
        client.expect_closed()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_unsubscribe(port: int, version: int) -> None:
    """After UNSUBACK nothing more comes for the filter (3.10.4-2); MQTT 5 tells unknown ones."""
    topic, other = _name(), _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=version)
        client.subscribe(topic, other, version=version)
        body = b"\x00\x09" + (b"\x00" if version == 5 else b"") + text(topic) + text("never")
        client.send(frame(0xA2, body))
        expected = b"\x00\x09" + (b"\x00\x00\x11" if version == 5 else b"")
        assert client.expect_kind(11).body == expected
        _publish(port, topic, b"x")
        _publish(port, other, b"y")
        assert _message(client, version)[1] == b"y"


@pytest.mark.parametrize("version", [4, 5])
def test_byte_order_mark(port: int, version: int) -> None:
    """U+FEFF in a topic is a character like others and not stripped (1.5.4-3)."""
    topic = "\ufeff" + _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=version)
        client.subscribe(topic, topic[1:], version=version)
        client.send(publish_packet(topic, b"x", version=version))
        assert _message(client, version)[0] == topic
        client.ping()


def test_order_of_topics(port: int) -> None:
    """Messages of one publisher keep their order, over several topics too (4.6.0-5, 4.6.0-6)."""
    base = _name()
    with RawClient(port) as subscriber, RawClient(port) as publisher:
        subscriber.join(_name("c"), version=5)
        subscriber.subscribe(f"{base}/#", options=1, version=5)
        publisher.join(_name("p"), version=5)
        for number in range(1, 201):
            topic = f"{base}/{number % 7}"
            packet = publish_packet(topic, b"%d" % number, qos=1, packet_id=number, version=5)
            publisher.send(packet)
        came = [_message(subscriber)[1] for _ in range(200)]
        assert came == [b"%d" % number for number in range(1, 201)]


# Shared subscriptions


@only_here
def test_shared_message_of_a_member_that_leaves(port: int) -> None:
    """What a member did not acknowledge goes to another when its session ends (4.8.2)."""
    topic = _name()
    with RawClient(port) as other:
        with RawClient(port) as leaving:
            leaving.join(_name("c"), version=5)
            leaving.subscribe(f"$share/g/{topic}", options=1, version=5)
            _publish(port, topic, b"work")
            assert leaving.expect_kind(3).first == 0x32
            other.join(_name("c"), version=5)
            other.subscribe(f"$share/g/{topic}", options=1, version=5)
        assert _message(other)[1] == b"work"
        other.ping()


def test_shared_and_plain(port: int) -> None:
    """A plain subscription gets its copy beside the shared one, of the same client too (4.8.2)."""
    topic = _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.subscribe(f"$share/g/{topic}", topic, f"$share/h/{topic}", options=0, version=5)
        _publish(port, topic, b"x")
        assert [_message(client)[1] for _ in range(3)] == [b"x"] * 3
        client.ping()


@only_here
def test_no_retained_for_shared(port: int) -> None:
    """A new shared subscription gets no retained messages (3.3.1.3)."""
    topic = _name()
    _publish(port, topic, b"kept", retain=True)
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.subscribe(f"$share/g/{topic}", version=5)
        client.ping()
    _publish(port, topic, b"", retain=True)


@only_here
def test_busy_member(port: int) -> None:
    """A member whose window is full is passed over for one that can take more (4.8.2)."""
    topic = _name()
    with RawClient(port) as busy, RawClient(port) as ready, RawClient(port) as publisher:
        busy.join(_name("c"), version=5, properties=b"\x21\x00\x01")
        ready.join(_name("c"), version=5)
        for member in (busy, ready):
            member.subscribe(f"$share/g/{topic}", options=1, version=5)
        publisher.join(_name("p"), version=5)
        for number in range(1, 11):
            publisher.send(
                publish_packet(topic, b"%d" % number, qos=1, packet_id=number, version=5)
            )
            publisher.expect_kind(4)
        stuck = busy.expect_kind(3)
        assert stuck.first == 0x32
        assert len({_message(ready)[1] for _ in range(9)}) == 9
        busy.ping()
        ready.ping()


# Retained messages


@pytest.mark.parametrize(
    ("handling", "expected"),
    [(0, [b"kept", b"kept"]), (1, [b"kept"]), (2, [])],
    ids=["always", "new subscription", "never"],
)
def test_retain_handling(port: int, handling: int, expected: list[bytes]) -> None:
    """Retain Handling says when a SUBSCRIBE brings retained messages (3.3.1-9 to 3.3.1-11)."""
    topic = _name()
    _publish(port, topic, b"kept", retain=True)
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
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
    topic = _name()
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.subscribe(topic, options=8 if as_published else 0, version=5)
        _publish(port, topic, b"x", retain=True)
        _publish(port, topic, b"y")
        _publish(port, topic, b"", retain=True)
        assert _message(client) == (topic, b"x", 0, as_published)
        assert _message(client) == (topic, b"y", 0, False)
        assert _message(client) == (topic, b"", 0, as_published)


def test_retained_with_properties(port: int) -> None:
    """A retained message keeps its properties and QoS (3.3.2-4 and following)."""
    topic = _name()
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
    _publish(port, topic, "wört".encode(), 2, retain=True, properties=properties)
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.subscribe(topic, options=1, version=5)
        found = _read(client)
        assert found.fields["qos"] == 1
        assert found.fields["retain"] is True
        assert sorted(found.properties, key=lambda each: each[0] == _USER) == [
            (_PAYLOAD_FORMAT, 1),
            (_CONTENT_TYPE, "text/plain"),
            (_RESPONSE_TOPIC, "answer"),
            (_CORRELATION, b"\x00\xff"),
            (_USER, ("b", "1")),
            (_USER, ("a", "2")),
        ]
    _publish(port, topic, b"", retain=True)


def test_many_retained(port: int) -> None:
    """A wildcard brings every matching retained message once, whatever their number."""
    base = _name()
    with RawClient(port) as publisher, RawClient(port) as client:
        publisher.join(_name("p"))
        for number in range(500):
            publisher.send(publish_packet(f"{base}/{number % 50}/{number}", b"x", retain=True))
        publisher.ping()
        client.join(_name("c"))
        client.subscribe(f"{base}/7/+", f"{base}/+/8", f"{base}/499", options=1)
        topics = sorted(_message(client, 4)[0] for _ in range(11))
        expected = [f"{base}/7/{each}" for each in range(7, 500, 50)] + [f"{base}/8/8"]
        assert topics == sorted(expected)
        client.ping()
        for number in range(500):
            publisher.send(publish_packet(f"{base}/{number % 50}/{number}", b"", retain=True))
        publisher.ping()
    with RawClient(port) as client:
        client.join(_name("c"))
        client.subscribe(f"{base}/#")
        client.ping()


# Message expiry


@pytest.mark.slow
def test_message_expiry(port: int) -> None:
    """What waited too long does not come; what comes says what time is left (3.3.2-5, -6)."""
    name, topic, kept = _name("c"), _name(), _name()
    with RawClient(port) as client:
        client.join(name, version=5, properties=_SESSION)
        client.subscribe(topic, options=1, version=5)
        _leave(client)
    _publish(port, topic, b"short", properties=b"\x02\x00\x00\x00\x01")
    _publish(port, topic, b"long", properties=b"\x02\x00\x00\x00\x64")
    _publish(port, topic, b"eternal")
    _publish(port, kept, b"short", retain=True, properties=b"\x02\x00\x00\x00\x01")
    _publish(port, f"{kept}/long", b"long", retain=True, properties=b"\x02\x00\x00\x00\x64")
    _let_pass(2.1)
    with RawClient(port) as client:
        client.join(name, version=5, clean=False, properties=_SESSION)
        found = _read(client)
        assert found.fields["payload"] == b"long"
        left = dict(found.properties)[_MESSAGE_EXPIRY]
        assert isinstance(left, int)
        assert 90 <= left <= 98
        found = _read(client)
        assert (found.fields["payload"], found.properties) == (b"eternal", [])
        client.subscribe(f"{kept}/#", version=5)
        found = _read(client)
        assert found.fields["payload"] == b"long"
        left = dict(found.properties)[_MESSAGE_EXPIRY]
        assert isinstance(left, int)
        assert 90 <= left <= 98
        client.ping()
    _publish(port, f"{kept}/long", b"", retain=True)


# QoS


@pytest.mark.parametrize("version", [3, 4, 5])
def test_redelivery(port: int, version: int) -> None:
    """What was not acknowledged comes again on the next connection, in order (4.4.0-1, 4.6.0-1).

    QoS 1 with DUP and its identifier; QoS 2 likewise before PUBREC, and PUBREL after it.
    """
    name, topic = _name("c"), _name()
    expiry = _SESSION if version == 5 else b""
    with RawClient(port) as client:
        client.join(name, version=version, clean=False, properties=expiry)
        client.subscribe(topic, options=2, version=version)
        for payload, qos in ((b"one", 1), (b"two", 2), (b"three", 2), (b"four", 1)):
            _publish(port, topic, payload, qos)
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
        again = [_read(client, version) for _ in range(4)]
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
    name, topic = _name("c"), _name()
    expiry = _SESSION if version == 5 else b""
    with RawClient(port) as subscriber:
        subscriber.join(_name("c"), version=version)
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
        assert [_message(subscriber, version)[1] for _ in range(2)] == [b"x", b"y"]
        _expect_no_message(subscriber)


def test_pubrel_of_nothing(port: int) -> None:
    """PUBREL for an unknown identifier is answered all the same: it may be a second one (3.7.2.1).

    The vectors want reason code 0 there, the specification offers 0x92 as well.
    """
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.send("62 02 00 63")
        found = _read(client)
        assert found.name == "PUBCOMP"
        assert found.fields["reason"] in (0, 0x92)
        client.ping()


@only_here
def test_maximum_packet_size(port: int) -> None:
    """What is larger than a client takes is not sent to it, as if it were done (3.1.2-24, -25)."""
    topic = _name()
    with RawClient(port) as small, RawClient(port) as large:
        small.join(_name("c"), version=5, properties=b"\x27\x00\x00\x00\x64\x21\x00\x01")
        large.join(_name("c"), version=5)
        for client in (small, large):
            client.subscribe(topic, options=1, version=5)
        _publish(port, topic, bytes(100))
        _publish(port, topic, b"fits")
        assert _message(small)[1] == b"fits"
        assert [_message(large)[1] for _ in range(2)] == [bytes(100), b"fits"]


def test_queued_for_the_absent(port: int) -> None:
    """QoS 1 and 2 wait for an absent client with a session, and survive a clean start not."""
    name, topic = _name("c"), _name()
    with RawClient(port) as client:
        client.join(name, version=5, properties=_SESSION)
        client.subscribe(topic, options=2, version=5)
        _leave(client)
    _publish(port, topic, b"one", 1)
    _publish(port, topic, b"two", 2)
    with RawClient(port) as client:
        client.join(name, version=5, clean=False, properties=_SESSION)
        assert [_message(client)[1:3] for _ in range(2)] == [(b"one", 1), (b"two", 2)]
        client.send(b"\xe0\x00")
        assert {packet.kind for packet in client.read_to_end()} <= {6}  # PUBREL for the second
    _publish(port, topic, b"three", 1)
    with RawClient(port) as client:
        assert client.join(name, version=5, clean=True).body[0] == 0
        client.ping()


# Topic aliases


def test_topic_alias_of_the_client(port: int) -> None:
    """An alias stands for the topic it was set to last, on this connection (3.3.2-8 to -12)."""
    topics = [_name(), _name()]
    with RawClient(port) as client, RawClient(port) as subscriber:
        subscriber.join(_name("c"), version=5)
        subscriber.subscribe(*topics, version=5)
        client.join(_name("c"), version=5)
        for topic, payload in (
            (topics[0], b"1"),
            ("", b"2"),
            (topics[1], b"3"),
            ("", b"4"),
            (topics[0], b"5"),
        ):
            properties = b"\x23\x00\x01" if payload != b"5" else b""
            client.send(publish_packet(topic, payload, version=5, properties=properties))
        came = [_read(subscriber) for _ in range(5)]
        assert [each.fields["topic"] for each in came] == [
            topics[0],
            topics[0],
            topics[1],
            topics[1],
            topics[0],
        ]
        assert all(each.properties == [] for each in came)
    with RawClient(port) as client:
        client.join(_name("c"), version=5)
        client.send(publish_packet("", b"", version=5, properties=b"\x23\x00\x01"))
        assert _read(client).fields["reason"] == 0x82
        client.expect_closed()


@only_here
def test_topic_alias_of_the_server(port: int) -> None:
    """A client that allows aliases gets them from the first message on, as many as it allows."""
    topics = [_name(), _name(), _name()]
    with RawClient(port) as client:
        client.join(_name("c"), version=5, properties=b"\x22\x00\x02")
        client.subscribe(*topics, version=5)
        seen: dict[object, object] = {}
        shortened = 0
        for number in range(12):
            _publish(port, topics[number % 3], b"%d" % number)
            found = _read(client)
            alias = dict(found.properties).get(_TOPIC_ALIAS)
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
        client.join(_name("c"), version=5)
        client.subscribe(topics[0], version=5)
        _publish(port, topics[0], b"x")
        assert _read(client).properties == []


# Wills


def _with_will(
    port: int, topic: str, *, delay_s: int = 0, expiry_s: int = 0, name: str = ""
) -> RawClient:
    client = RawClient(port)
    client.join(
        name or _name("c"),
        version=5,
        clean=False,
        will=(topic, b"gone", 1, False),
        will_properties=b"\x18" + delay_s.to_bytes(4, "big") if delay_s else b"",
        properties=b"\x11" + expiry_s.to_bytes(4, "big") if expiry_s else b"",
    )
    return client


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("", id="lost"),
        pytest.param("e0 01 04", id="DISCONNECT 0x04"),
        pytest.param("c1 00", id="malformed", marks=only_here),
        pytest.param("30 02 00 00", id="protocol error"),
        pytest.param("e0 05 81 03 1f 00 00", id="DISCONNECT 0x81", marks=only_here),
    ],
)
def test_will(port: int, end: str) -> None:
    """Every end but a normal DISCONNECT publishes the will (3.1.2-8, 3.14.4-3)."""
    topic = _name()
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, options=2, version=5)
        client = _with_will(port, topic)
        if end:
            client.send(end)
            client.read_to_end()
        client.close()
        assert _message(observer) == (topic, b"gone", 1, False)


def test_no_will(port: int) -> None:
    """A normal DISCONNECT removes the will (3.1.2-10)."""
    topic = _name()
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, options=2, version=5)
        with _with_will(port, topic) as client:
            _leave(client)
        _publish(port, topic, b"after")
        assert _message(observer)[1] == b"after"


def test_will_at_takeover(port: int) -> None:
    """The will of a connection that is taken over is published (3.1.4-3), unless it may wait."""
    topic, name = _name(), _name("c")
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, options=2, version=5)
        with _with_will(port, topic, name=name), RawClient(port) as new:
            new.join(name, version=5)
            assert _message(observer)[1] == b"gone"


@pytest.mark.slow
def test_will_delay(port: int) -> None:
    """A will waits for its delay, and goes out then (3.1.3.2.2)."""
    topic = _name()
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, version=5)
        begin = time.monotonic()
        _with_will(port, topic, delay_s=2, expiry_s=60).close()
        observer.ping()
        assert _message(observer)[1] == b"gone"
        assert 1.5 < time.monotonic() - begin < 5


@pytest.mark.slow
def test_will_delay_and_return(port: int) -> None:
    """A client that returns to its session within the delay has no will published (3.1.3-9)."""
    topic, name = _name(), _name("c")
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, version=5)
        _with_will(port, topic, delay_s=1, expiry_s=60, name=name).close()
        with RawClient(port) as client:
            client.join(name, version=5, clean=False, properties=_SESSION)
            _let_pass(2.2)
            observer.ping()


@pytest.mark.slow
@only_here
def test_will_delay_and_end_of_session(port: int) -> None:
    """The end of the session publishes the will, when that comes before the delay (3.1.2-8)."""
    topic, name = _name(), _name("c")
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, version=5)
        begin = time.monotonic()
        _with_will(port, topic, delay_s=60, expiry_s=1).close()
        assert _message(observer)[1] == b"gone"
        assert time.monotonic() - begin < 5
        # A clean start ends a session too, at once.
        _with_will(port, topic, delay_s=60, expiry_s=60, name=name).close()
        with RawClient(port) as client:
            client.join(name, version=5, clean=True)
            assert _message(observer)[1] == b"gone"


def test_properties_of_a_will(port: int) -> None:
    """The properties of a will are those of the message (3.1.3.2)."""
    topic = _name()
    properties = b"\x01\x01\x03" + text("text/x") + b"\x26" + text("k") + text("v")
    with RawClient(port) as observer:
        observer.join(_name("c"), version=5)
        observer.subscribe(topic, version=5)
        with RawClient(port) as client:
            will = (topic, b"gone", 0, False)
            client.join(_name("c"), version=5, will=will, will_properties=properties)
        found = _read(observer)
        assert sorted(found.properties) == [
            (_PAYLOAD_FORMAT, 1),
            (_CONTENT_TYPE, "text/x"),
            (_USER, ("k", "v")),
        ]


# $SYS


def test_sys_topics(port: int) -> None:
    """The broker's figures are there under the names that Mosquitto uses, retained."""
    names = {
        "$SYS/broker/version",
        "$SYS/broker/uptime",
        "$SYS/broker/clients/connected",
        "$SYS/broker/clients/total",
        "$SYS/broker/clients/maximum",
        "$SYS/broker/messages/received",
        "$SYS/broker/messages/sent",
        "$SYS/broker/bytes/received",
        "$SYS/broker/bytes/sent",
        "$SYS/broker/subscriptions/count",
        "$SYS/broker/retained messages/count",
        "$SYS/broker/publish/messages/received",
        "$SYS/broker/publish/messages/sent",
        "$SYS/broker/publish/messages/dropped",
        "$SYS/broker/store/messages/count",
        "$SYS/broker/store/messages/bytes",
        "$SYS/broker/load/messages/received/1min",
        "$SYS/broker/load/connections/15min",
    }
    seen: set[str] = set()

    def look() -> bool:
        with RawClient(port) as client:
            client.join(_name("c"))
            client.subscribe("$SYS/#")
            client.send(b"\xc0\x00")
            while (packet := client.read_packet()).kind == 3:
                seen.add(packet.body[2 : 2 + int.from_bytes(packet.body[:2], "big")].decode())
        return seen >= names

    try:
        until(look, deadline_s=25)
    except AssertionError:
        pytest.fail(f"missing: {sorted(names - seen)}")


# Enhanced authentication

_ITERATIONS = 4096


class _Scram:
    """The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677)."""

    def __init__(self, user: str, password: bytes) -> None:
        self.password = password
        self.nonce = "fyko+d2lbbFgONRv9qkxdawL"
        self.first_bare = f"n={user},r={self.nonce}"
        self.signature = b""

    def first(self) -> bytes:
        return f"n,,{self.first_bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        values = dict(each.split("=", 1) for each in challenge.decode().split(","))
        assert values["r"].startswith(self.nonce)
        assert len(values["r"]) > len(self.nonce)
        salt, rounds = base64.b64decode(values["s"]), int(values["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self.password, salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={values['r']}"
        message = f"{self.first_bare},{challenge.decode()},{without_proof}".encode()
        signed = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signed, strict=True))
        self.signature = hmac.digest(
            hmac.digest(salted, b"Server Key", "sha256"), message, "sha256"
        )
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def proves_itself(self, last: object) -> bool:
        return last == b"v=" + base64.b64encode(self.signature)


def _scram_record(password: bytes) -> str:
    salt = b"salt of the test"
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


@pytest.fixture(scope="module")
def users_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A broker with the users alice (password and SCRAM) and bob, and a few rules."""
    if _WITH_MOSQUITTO:
        pytest.skip("Mosquitto has no SCRAM")
    folder: Path = tmp_path_factory.mktemp("users")
    hasher = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    users = folder / "users"
    users.write_text(
        f"alice:{hasher.hash('pencil')}:{_scram_record(b'pencil')}\nbob:{hasher.hash('paper')}\n"
    )
    users.chmod(0o600)
    config = f"""
        [access]
        users = "{users}"
        [[rules]]
        effect = "deny"
        action = "subscribe"
        topics = ["shared/hidden/#"]
        [[rules]]
        effect = "allow"
        action = "all"
        topics = ["shared/#", "own/%u/#", "client/%c/#"]
        [[rules]]
        effect = "allow"
        users = ["alice"]
        action = "publish"
        topics = ["bob's/#"]
    """
    with start_daemon(config=config) as daemon:
        yield daemon.ports["mqtt"]


def _auth(reason: int, data: bytes) -> bytes:
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(data)
    return frame(0xF0, bytes([reason]) + varint(len(properties)) + properties)


def test_scram(users_port: int) -> None:
    """Both sides prove that they know the password, at CONNECT and again later (4.12)."""
    scram = _Scram("alice", b"pencil")
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(scram.first())
    with RawClient(users_port) as client:
        client.send(connect_packet("scram", version=5, properties=properties))
        challenge = _read(client)
        assert (challenge.name, challenge.fields["reason"]) == ("AUTH", 0x18)
        found = dict(challenge.properties)
        assert found[_AUTH_METHOD] == "SCRAM-SHA-256"
        client.send(_auth(0x18, scram.final(bytes(found[_AUTH_DATA]))))  # type: ignore[call-overload]  # it is bytes
        answer = _read(client)
        assert (answer.name, answer.fields["reason"]) == ("CONNACK", 0)
        assert dict(answer.properties)[_AUTH_METHOD] == "SCRAM-SHA-256"
        assert scram.proves_itself(dict(answer.properties)[_AUTH_DATA])
        client.send(publish_packet("own/alice/a", b"", qos=1, version=5))
        assert decode(client.expect_kind(4).raw, 5).fields["reason"] in (0, 0x10)

        again = _Scram("alice", b"pencil")
        client.send(_auth(0x19, again.first()))
        challenge = _read(client)
        assert (challenge.name, challenge.fields["reason"]) == ("AUTH", 0x18)
        data = dict(challenge.properties)[_AUTH_DATA]
        client.send(_auth(0x18, again.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        done = _read(client)
        assert (done.name, done.fields["reason"]) == ("AUTH", 0)
        assert again.proves_itself(dict(done.properties)[_AUTH_DATA])
        client.ping()


@pytest.mark.parametrize(
    ("user", "password"), [("alice", b"wrong"), ("bob", b"paper"), ("nobody", b"x")]
)
def test_scram_refusal(users_port: int, user: str, password: bytes) -> None:
    """A wrong proof is refused; who has no record is not told from who is wrong (4.12.0-4)."""
    scram = _Scram(user, password)
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(scram.first())
    with RawClient(users_port) as client:
        client.send(connect_packet("scram", version=5, properties=properties))
        challenge = _read(client)
        assert challenge.name == "AUTH"
        data = dict(challenge.properties)[_AUTH_DATA]
        client.send(_auth(0x18, scram.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        answer = _read(client)
        assert answer.name == "CONNACK"
        assert answer.fields["reason"] in (0x86, 0x87)
        client.expect_closed()


def test_reauthentication_that_fails(users_port: int) -> None:
    """Re-authentication with a wrong proof ends the connection (4.12.1-2)."""
    scram = _Scram("alice", b"pencil")
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(scram.first())
    with RawClient(users_port) as client:
        client.send(connect_packet("scram", version=5, properties=properties))
        data = dict(_read(client).properties)[_AUTH_DATA]
        client.send(_auth(0x18, scram.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        assert _read(client).fields["reason"] == 0
        wrong = _Scram("alice", b"wrong")
        client.send(_auth(0x19, wrong.first()))
        data = dict(_read(client).properties)[_AUTH_DATA]
        client.send(_auth(0x18, wrong.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        last = _read(client)
        assert last.name == "DISCONNECT"
        assert last.fields["reason"] in (0x86, 0x87)
        client.expect_closed()


def test_auth_without_method(users_port: int) -> None:
    """AUTH from a client that has not begun with a method is an error (4.12.0-6)."""
    with RawClient(users_port) as client:
        client.join("bob", version=5, user="bob", password=b"paper")
        client.send(_auth(0x19, b"n,,n=bob,r=x"))
        assert _read(client).fields["reason"] == 0x82
        client.expect_closed()


# Access


def test_refused_publish(users_port: int) -> None:
    """A PUBLISH that no rule allows is refused with 0x87 and reaches nobody (3.3.5-2)."""
    with RawClient(users_port) as bob, RawClient(users_port) as alice:
        bob.join("b", version=5, user="bob", password=b"paper")
        alice.join("a", version=5, user="alice", password=b"pencil")
        alice.subscribe("own/alice/#", version=5)
        bob.send(publish_packet("own/alice/a", b"", qos=1, version=5))
        assert decode(bob.expect_kind(4).raw, 5).fields["reason"] == 0x87
        bob.send(publish_packet("own/alice/a", b"", qos=2, packet_id=2, version=5))
        assert decode(bob.expect_kind(5).raw, 5).fields["reason"] == 0x87
        bob.send(publish_packet("own/alice/a", b"", version=5))
        bob.ping()
        alice.ping()


def test_refused_subscription(users_port: int) -> None:
    """Each filter of a SUBSCRIBE is judged by itself: 0x87, in MQTT 3.1.1 0x80 (3.9.3)."""
    for version, refused in ((5, 0x87), (4, 0x80), (3, 0x80)):
        with RawClient(users_port) as bob:
            bob.join("b", version=version, user="bob", password=b"paper")
            filters = ("shared/a", "own/alice/a", "#", "own/bob/+", "client/b/#", "client/+/x")
            bob.send(subscribe_packet(*filters, options=1, version=version))
            assert list(bob.expect_kind(9).body[-6:]) == [1, refused, refused, 1, 1, refused]


def test_refused_delivery(users_port: int) -> None:
    """A filter that is allowed does not bring topics that are denied, retained or live."""
    with RawClient(users_port) as alice:
        alice.join("a", user="alice", password=b"pencil")
        alice.send(publish_packet("shared/hidden/kept", b"x", retain=True))
        alice.ping()
        alice.subscribe("shared/#")
        alice.send(publish_packet("shared/hidden/a", b"x"))
        alice.send(publish_packet("shared/seen", b"x"))
        assert _message(alice, 4)[0] == "shared/seen"
        alice.ping()


def test_refused_will(users_port: int) -> None:
    """A will that its client may not publish does not come (3.1.2.5)."""
    with RawClient(users_port) as alice:
        alice.join("a", version=5, user="alice", password=b"pencil")
        alice.subscribe("own/alice/#", "shared/end", version=5)
        with RawClient(users_port) as bob:
            will = ("own/alice/will", b"x", 0, False)
            bob.send(connect_packet("b", version=5, user="bob", password=b"paper", will=will))
            answer = bob.expect_kind(2)
            assert answer.body[1] in (0, 0x87)
        alice.send(publish_packet("shared/end", b"", version=5))
        assert _message(alice)[0] == "shared/end"


@pytest.mark.parametrize("client_id", ["+", "#", "a/b", "+/x"])
def test_identifier_with_wildcards(users_port: int, client_id: str) -> None:
    """A client identifier cannot widen the pattern that it is put into."""
    with RawClient(users_port) as bob:
        bob.join(client_id, version=5, user="bob", password=b"paper")
        bob.send(subscribe_packet("client/#", f"client/{client_id}/x", "client/+/x", version=5))
        assert set(bob.expect_kind(9).body[-3:]) <= {0x87, 0x8F}
        bob.send(publish_packet("client/victim/x", b"", qos=1, version=5))
        assert decode(bob.expect_kind(4).raw, 5).fields["reason"] == 0x87
