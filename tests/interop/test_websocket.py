"""Unmodified foreign clients speak MQTT over WebSocket, over TCP and over TLS."""

import itertools

import pytest

from tests.interop.conftest import PASSWORD, USER, WITH_MOSQUITTO
from tests.interop.peers import (
    PEERS,
    WEBSOCKET_PEERS,
    Incoming,
    Peer,
    Refused,
    Server,
    Will,
    require,
)
from tests.support import BrokerProcess

_VERSION_NAMES = {3: "3.1", 4: "3.1.1", 5: "5.0"}
_numbers = itertools.count(1)

every_client = pytest.mark.parametrize(
    ("name", "version"),
    [
        pytest.param(name, version, id=f"{name}-{_VERSION_NAMES[version]}")
        for name in WEBSOCKET_PEERS
        for version in PEERS[name][1]
    ],
)


def _peer(name: str) -> Peer:
    require(name)
    return PEERS[name][0]


def _topic() -> str:
    """A topic that no other test uses."""
    return f"interop/websocket/t{next(_numbers)}"


def _client_id() -> str:
    """A client identifier that no other test uses, short enough for MQTT 3.1."""
    return f"websocket{next(_numbers)}"


@every_client
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_round_trip(name: str, version: int, qos: int, web_server: Server) -> None:
    """Messages arrive once, unaltered and in order, at each QoS."""
    peer, topic = _peer(name), _topic()
    with peer.open(web_server, _client_id(), [(topic, qos)], version=version) as session:
        assert session.granted == [qos]
        for payload in (b"round \x00\xff trip", b"", b"next"):
            peer.publish(web_server, topic, payload, version=version, qos=qos)
            assert session.receive() == Incoming(topic, payload, qos, False)


@every_client
@pytest.mark.parametrize("size", [100, 125, 126, 65_500, 65_536, 1024 * 1024])
def test_sizes(name: str, version: int, size: int, web_server: Server) -> None:
    """About the borders of the frames' lengths, and a message of many reads."""
    if WITH_MOSQUITTO and size > 65_536:
        pytest.skip("Mosquitto 2.0.11 delivers no such message over WebSocket")
    peer, topic = _peer(name), _topic()
    payload = (bytes(range(251)) * (size // 251 + 1))[:size]
    with peer.open(web_server, _client_id(), [(topic, 1)], version=version) as session:
        peer.publish(web_server, topic, payload, version=version, qos=1)
        assert session.receive().payload == payload


@every_client
def test_beside_tcp(name: str, version: int, web_server: Server, server: Server) -> None:
    """A message goes from WebSocket to TCP and back: it is one broker."""
    peer, topic = _peer(name), _topic()
    with (
        peer.open(web_server, _client_id(), [(topic, 1)], version=version) as web,
        peer.open(server, _client_id(), [(topic, 1)], version=version) as plain,
    ):
        peer.publish(web_server, topic, b"from the web", version=version, qos=1)
        peer.publish(server, topic, b"to the web", version=version, qos=1)
        for session in (web, plain):
            received = [session.receive().payload for _ in range(2)]
            assert received == [b"from the web", b"to the web"]


@every_client
def test_will(name: str, version: int, web_server: Server) -> None:
    """A WebSocket that is lost without DISCONNECT leaves a will; one with it leaves none."""
    peer, topic = _peer(name), _topic()
    with peer.open(web_server, _client_id(), [(topic, 1)], version=version) as witness:
        peer.open(web_server, _client_id(), version=version, will=Will(topic, b"no")).close()
        peer.open(web_server, _client_id(), version=version, will=Will(topic, b"lost")).abort()
        assert witness.receive().payload == b"lost"


@every_client
def test_a_session_goes_on(name: str, version: int, web_server: Server) -> None:
    """What came meanwhile waits for a client that returns."""
    peer, topic, client_id = _peer(name), _topic(), _client_id()
    peer.open(web_server, client_id, [(topic, 1)], version=version, clean=False).close()
    for number in range(20):
        peer.publish(web_server, topic, b"%d" % number, version=version, qos=1)
    with peer.open(web_server, client_id, version=version, clean=False) as session:
        assert [session.receive().payload for _ in range(20)] == [b"%d" % n for n in range(20)]
    peer.open(web_server, client_id, version=version, clean=True).close()


@every_client
def test_password(name: str, version: int, users_broker: BrokerProcess) -> None:
    """Users are those of the broker: the right password is let in, the wrong one is refused."""
    peer, topic = _peer(name), "interop/websocket/password"
    server = Server(users_broker.ports["web"], host="127.0.0.1", path="/mqtt")
    with peer.open(
        server, _client_id(), [(topic, 1)], version=version, user=USER, password=PASSWORD
    ) as session:
        peer.publish(server, topic, b"known", version=version, qos=1, user=USER, password=PASSWORD)
        assert session.receive().payload == b"known"
    with pytest.raises(Refused):
        peer.open(server, _client_id(), version=version, user=USER, password="wrong")
