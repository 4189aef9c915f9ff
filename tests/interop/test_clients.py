"""Unmodified foreign clients do with the broker what their users do with them.

Every test runs with every client, in each protocol version that it speaks, over TCP and over TLS.
"""

import itertools

import pytest

from tests.interop.conftest import PASSWORD, USER, WITH_MOSQUITTO, Certificates
from tests.interop.peers import (
    PEERS,
    Incoming,
    Peer,
    Properties,
    Refused,
    Server,
    Session,
    Will,
    require,
)
from tests.support import BrokerProcess

_VERSION_NAMES = {3: "3.1", 4: "3.1.1", 5: "5.0"}
_numbers = itertools.count(1)


def _clients(*versions: int) -> list[object]:
    return [
        pytest.param(name, version, id=f"{name}-{_VERSION_NAMES[version]}")
        for name, (_, spoken) in PEERS.items()
        for version in spoken
        if version in (versions or (3, 4, 5))
    ]


every_client = pytest.mark.parametrize(("name", "version"), _clients())
every_client_of_5 = pytest.mark.parametrize(("name", "version"), _clients(5))


def _peer(name: str) -> Peer:
    require(name)
    return PEERS[name][0]


def _topic(*levels: str) -> str:
    """A topic that no other test uses."""
    return "/".join(("interop", f"t{next(_numbers)}", *levels))


def _client_id() -> str:
    """A client identifier that no other test uses, short enough for MQTT 3.1."""
    return f"interop{next(_numbers)}"


@every_client
@pytest.mark.parametrize("subscribed", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_round_trip(
    name: str, version: int, server: Server, published: int, subscribed: int
) -> None:
    """A message arrives once, unaltered, with the lower of both QoS (MQTT 5, 3.8.4-8)."""
    peer, topic = _peer(name), _topic()
    with peer.open(server, _client_id(), [(topic, subscribed)], version=version) as session:
        assert session.granted == [subscribed]
        peer.publish(server, topic, b"round \x00\xff trip", version=version, qos=published)
        lower = min(published, subscribed)
        assert session.receive() == Incoming(topic, b"round \x00\xff trip", lower, False)
        peer.publish(server, topic, b"next", version=version, qos=published)
        assert session.receive() == Incoming(topic, b"next", lower, False)


@every_client
def test_order(name: str, version: int, server: Server) -> None:
    """Messages of one publisher on one topic arrive in order (MQTT 5, 4.6)."""
    peer, topic = _peer(name), _topic()
    with peer.open(server, _client_id(), [(topic, 1)], version=version) as session:
        for number in range(5):
            peer.publish(server, topic, b"%d" % number, version=version, qos=1)
        assert [session.receive().payload for _ in range(5)] == [b"%d" % each for each in range(5)]


@every_client
def test_retained(name: str, version: int, server: Server) -> None:
    """A later subscriber gets the retained message, marked so; an empty one removes it."""
    peer, topic = _peer(name), _topic()
    peer.publish(server, topic, b"first", version=version, qos=1, retain=True)
    peer.publish(server, topic, b"kept", version=version, qos=1, retain=True)
    with peer.open(server, _client_id(), [(topic, 1)], version=version) as session:
        assert session.receive() == Incoming(topic, b"kept", 1, True)
    peer.publish(server, topic, b"", version=version, qos=1, retain=True)
    with peer.open(server, _client_id(), [(topic, 1)], version=version) as session:
        peer.publish(server, topic, b"live", version=version, qos=1)
        assert session.receive() == Incoming(topic, b"live", 1, False)


@every_client
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_will(name: str, version: int, server: Server, qos: int) -> None:
    """The will is published when the client is lost (MQTT 5, 3.1.2.5)."""
    peer, topic = _peer(name), _topic("will")
    with peer.open(server, _client_id(), [(topic, 2)], version=version) as witness:
        will = Will(topic, b"lost", qos)
        session = peer.open(server, _client_id(), version=version, will=will)
        session.abort()
        assert witness.receive() == Incoming(topic, b"lost", qos, False)


@every_client
def test_will_and_disconnect(name: str, version: int, server: Server) -> None:
    """A client that leaves with DISCONNECT leaves no will (MQTT 5, 3.14.4-3), unless it asks.

    mosquitto_sub asks for it: in MQTT 5 it leaves with reason code 0x04 (3.14.2.1).
    """
    peer, topic = _peer(name), _topic("will")
    with peer.open(server, _client_id(), [(topic, 2)], version=version) as witness:
        peer.open(server, _client_id(), version=version, will=Will(topic, b"lost")).close()
        if (name, version) == ("mosquitto", 5):
            assert witness.receive().payload == b"lost"
        peer.publish(server, topic, b"after", version=version)
        assert witness.receive().payload == b"after"


@every_client
def test_retained_will(name: str, version: int, server: Server) -> None:
    """A will with the retain flag is there for later subscribers (MQTT 5, 3.1.2.7)."""
    peer, topic = _peer(name), _topic("will")
    with peer.open(server, _client_id(), [(topic, 1)], version=version) as witness:
        will = Will(topic, b"gone", 1, retain=True)
        peer.open(server, _client_id(), version=version, will=will).abort()
        assert witness.receive().payload == b"gone"
    with peer.open(server, _client_id(), [(topic, 1)], version=version) as late:
        assert late.receive() == Incoming(topic, b"gone", 1, True)
    peer.publish(server, topic, b"", version=version, retain=True, qos=1)


@every_client
def test_offline_queue(name: str, version: int, server: Server) -> None:
    """What comes while a client with a session is away waits for it, in order (MQTT 5, 4.1)."""
    peer, topic, client_id = _peer(name), _topic(), _client_id()
    first = peer.open(server, client_id, [(topic, 2)], version=version, clean=False)
    assert first.present in (None, False)
    first.close()
    for number, qos in enumerate((1, 2, 1, 2)):
        peer.publish(server, topic, b"%d" % number, version=version, qos=qos)
    # mosquitto_sub cannot connect without subscribing again, which changes nothing here.
    again = [(topic, 2)] if name == "mosquitto" else []
    with peer.open(server, client_id, again, version=version, clean=False) as second:
        assert second.present is not False or version == 3
        came = [second.receive() for _ in range(4)]
        # A library hands over a QoS 2 message at its PUBREL, so the order shows in each QoS alone.
        assert [each.payload for each in came if each.qos == 1] == [b"0", b"2"]
        assert [each.payload for each in came if each.qos == 2] == [b"1", b"3"]
        peer.publish(server, topic, b"live", version=version, qos=1)
        assert second.receive().payload == b"live"
    # A clean start forgets the session (3.1.2-4).
    with peer.open(server, client_id, version=version, clean=True) as third:
        assert third.present in (None, False)


@every_client_of_5
def test_shared_subscription(name: str, version: int, server: Server) -> None:
    """Each message for a shared subscription goes to one member, and no member starves (4.8.2)."""
    peer, topic, end = _peer(name), _topic(), _topic("end")
    filters = [(f"$share/group/{topic}", 1), (end, 1)]
    with (
        peer.open(server, _client_id(), filters, version=version) as one,
        peer.open(server, _client_id(), filters, version=version) as other,
    ):
        sent = [b"%d" % number for number in range(8)]
        for payload in sent:
            peer.publish(server, topic, payload, version=version, qos=1)
        peer.publish(server, end, b"", version=version, qos=1)
        shares = [_up_to(end, member) for member in (one, other)]
        assert sorted(shares[0] + shares[1]) == sent
        assert all(shares)
        assert all(share == sorted(share) for share in shares)


def _up_to(end: str, session: Session) -> list[bytes]:
    """The payloads that a session receives before a message on the topic `end`."""
    payloads: list[bytes] = []
    while (message := session.receive()).topic != end:
        payloads.append(message.payload)
    return payloads


@every_client_of_5
def test_request_and_response(name: str, version: int, server: Server) -> None:
    """Properties of a request arrive unaltered and in order, and its response finds back (4.10)."""
    peer, topic, answers = _peer(name), _topic("request"), _topic("answers")
    sent = Properties(
        user=(("trace", "a-1"), ("trace", "a-2"), ("zone", "wörld")),
        response_topic=answers,
        correlation=b"number-7",
        content_type="text/plain",
    )
    with (
        peer.open(server, _client_id(), [(topic, 1)], version=version) as responder,
        peer.open(server, _client_id(), [(answers, 1)], version=version) as requester,
    ):
        peer.publish(server, topic, b"how much?", version=version, qos=1, properties=sent)
        request = responder.receive()
        assert request == Incoming(topic, b"how much?", 1, False, sent)
        assert request.properties.response_topic is not None
        peer.publish(
            server,
            request.properties.response_topic,
            b"42",
            version=version,
            qos=1,
            properties=Properties(correlation=request.properties.correlation),
        )
        assert requester.receive().properties.correlation == b"number-7"


@every_client
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_large_payload(name: str, version: int, server: Server, qos: int) -> None:
    """A message of one mebibyte goes through whole."""
    peer, topic = _peer(name), _topic()
    payload = bytes(range(256)) * 4096
    with peer.open(server, _client_id(), [(topic, qos)], version=version) as session:
        peer.publish(server, topic, payload, version=version, qos=qos)
        came = session.receive(deadline_s=20)
        assert came.payload == payload
        assert came.qos == qos


@every_client
def test_unicode(name: str, version: int, server: Server) -> None:
    """Topics are any UTF-8, of up to four bytes for a character (MQTT 5, 1.5.4)."""
    peer, topic = _peer(name), _topic("größe", "温度", "𝛑", "with blank")
    with peer.open(server, _client_id(), [(topic, 1)], version=version) as session:
        peer.publish(server, topic, "36,6 °C 🌡".encode(), version=version, qos=1)
        assert session.receive() == Incoming(topic, "36,6 °C 🌡".encode(), 1, False)


@every_client
def test_wildcards(name: str, version: int, server: Server) -> None:
    """``+`` matches one level and ``#`` all that follow, the parent too (MQTT 5, 4.7.1)."""
    peer, base = _peer(name), _topic()
    with (
        peer.open(server, _client_id(), [(f"{base}/+/c", 0)], version=version) as one_level,
        peer.open(server, _client_id(), [(f"{base}/#", 0)], version=version) as all_levels,
    ):
        for topic in (base, f"{base}/b", f"{base}/b/c", f"{base}/b/c/d", f"{base}//c"):
            peer.publish(server, topic, b"x", version=version)
        matching = [f"{base}/b/c", f"{base}//c"]
        assert [one_level.receive().topic for _ in matching] == matching
        everything = [base, f"{base}/b", f"{base}/b/c", f"{base}/b/c/d", f"{base}//c"]
        assert [all_levels.receive().topic for _ in everything] == everything


@every_client
def test_password(name: str, version: int, users_server: Server) -> None:
    """Who knows the password comes in and works."""
    peer, topic = _peer(name), _topic()
    with peer.open(
        users_server, _client_id(), [(topic, 1)], version=version, user=USER, password=PASSWORD
    ) as session:
        assert session.granted == [1]
        peer.publish(
            users_server, topic, b"mine", version=version, qos=1, user=USER, password=PASSWORD
        )
        assert session.receive().payload == b"mine"


@every_client
@pytest.mark.parametrize(
    ("user", "password"),
    [(USER, "wrong"), ("mallory", PASSWORD), (None, None)],
    ids=["wrong password", "unknown user", "nobody"],
)
def test_refusal(
    name: str, version: int, users_server: Server, user: str | None, password: str | None
) -> None:
    """Who does not say who he is, or cannot prove it, is refused with the code for that.

    That is 0x86 for a wrong password and 0x87 for nobody in MQTT 5 (3.2.2.2), 4 and 5 before
    (3.1.1, 3.2.2.3). Paho translates the old codes into the new ones. An unknown user is not told
    from a wrong password. Mosquitto says 'not authorized' to all of them.
    """
    peer = _peer(name)
    with pytest.raises(Refused) as refusal:
        peer.open(
            users_server,
            _client_id(),
            [("interop", 0)],
            version=version,
            user=user,
            password=password,
        )
    nobody = {5, 0x87} if version != 5 else {0x87}
    wrong = {4, 0x86} if version != 5 else {0x86}
    assert refusal.value.code in (nobody if user is None or WITH_MOSQUITTO else wrong)


@every_client
def test_client_certificate(
    name: str, version: int, certificates_broker: BrokerProcess, certificates: Certificates
) -> None:
    """A client with a certificate that the broker trusts comes in; without one it does not."""
    peer, topic = _peer(name), _topic()
    with_certificate = Server(
        certificates_broker.ports["mqtts"],
        cafile=str(certificates.authority),
        certfile=str(certificates.client),
        keyfile=str(certificates.client_key),
    )
    with peer.open(with_certificate, _client_id(), [(topic, 1)], version=version) as session:
        peer.publish(with_certificate, topic, b"proven", version=version, qos=1)
        assert session.receive().payload == b"proven"
    without = Server(certificates_broker.ports["mqtts"], cafile=str(certificates.authority))
    with pytest.raises((AssertionError, Refused)):
        peer.open(without, _client_id(), [(topic, 1)], version=version)
