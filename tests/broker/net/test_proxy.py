"""PROXY protocol v2: for whom a proxy connects, from trusted addresses and from nowhere else."""

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from ganglion.broker.core.limits import Limits
from ganglion.broker.net.addresses import Networks
from ganglion.broker.net.proxy import InvalidProxyHeader, parse_proxy_header
from ganglion.broker.net.tls import TlsContext
from tests.broker.net.hand_driven import Echo, HandDriven, Talker

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
HERE = Networks(["127.0.0.0/8"])


def header(
    address: str = "192.0.2.7", *, command: int = 0x21, family: int | None = None, more: bytes = b""
) -> bytes:
    """A header for a client at this address and port 5000."""
    is_6 = ":" in address
    packed = socket.inet_pton(socket.AF_INET6 if is_6 else socket.AF_INET, address)
    body = packed + bytes(len(packed)) + struct.pack("!HH", 5000, 1883) + more
    if family is None:
        family = 0x21 if is_6 else 0x11
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body)) + body


@pytest.mark.parametrize(
    ("data", "address"),
    [
        (header(), "192.0.2.7"),
        (header("2001:db8::7"), "2001:db8::7"),
        (header("::ffff:192.0.2.7"), "192.0.2.7"),
        (header(more=b"\x03\0\4abcd" * 10), "192.0.2.7"),
        (header(command=0x20), None),
        (SIGNATURE + b"\x20\0\0\0", None),
    ],
)
def test_header(data: bytes, address: str | None) -> None:
    """The client's address, whatever else the proxy adds; None for the proxy itself."""
    assert parse_proxy_header(data) == address


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "whole"),
        (header()[:-1], "whole"),
        (header() + b"x", "whole"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 1883\r\n", "signature"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "signature"),
        (header(command=0x11), "0x11"),
        (header(command=0x22), "0x22"),
        (header(family=0x12), "not TCP"),  # UDP
        (header(family=0x31), "not TCP"),  # a Unix socket
        (header(family=0), "not TCP"),
        (header(family=0x21), "too short"),
        (SIGNATURE + b"\x21\x11\0\x0b" + bytes(11), "too short"),
        (SIGNATURE + b"\x21\x11\xff\xff" + bytes(65_535), "over 4096"),
    ],
)
def test_what_is_no_header(data: bytes, word: str) -> None:
    """Each with what is wrong."""
    with pytest.raises(InvalidProxyHeader, match=word):
        parse_proxy_header(data)


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda rest: SIGNATURE + rest))
@example(header())
def test_any_bytes(data: bytes) -> None:
    """Invariant: an address, None, or `InvalidProxyHeader`; no other exception."""
    try:
        found = parse_proxy_header(data)
    except InvalidProxyHeader:
        return
    if found is not None:
        socket.inet_pton(socket.AF_INET6 if ":" in found else socket.AF_INET, found)


@pytest.fixture
def hand() -> Iterator[HandDriven]:
    """A reactor that is driven by hand."""
    with HandDriven(Limits(connections_per_address_max=2)) as made:
        yield made


def test_the_peer_is_whom_the_proxy_names(hand: HandDriven) -> None:
    """In whatever pieces the header comes, and what follows it is the protocol's."""
    listener = hand.listen(Echo, trusted=HERE, proxied=True)
    client = hand.connect(listener)
    data = header("192.0.2.7", more=b"\x03\0\4abcd")
    for at in range(len(data)):
        client.send(data[at : at + 1])
        hand.tick(0.005)
        assert not hand.protocols or at == len(data) - 1
    hand.send(client, b"hello")
    assert hand.receive(client, 5) == b"hello"
    assert hand.protocols[0].endpoint.peer == "192.0.2.7"
    whole = hand.connect(listener)
    whole.send(header("192.0.2.8") + b"together")
    assert hand.receive(whole, 8) == b"together"
    assert hand.protocols[1].endpoint.peer == "192.0.2.8"
    assert hand.reactor.connection_count == 2


def test_a_proxy_may_speak_for_itself(hand: HandDriven) -> None:
    """LOCAL: the peer is the proxy."""
    client = hand.connect(hand.listen(Echo, trusted=HERE, proxied=True))
    client.send(SIGNATURE + b"\x20\0\0\0hello")
    assert hand.receive(client, 5) == b"hello"
    assert hand.protocols[0].endpoint.peer == "127.0.0.1"


@pytest.mark.parametrize("trusted", [Networks(), Networks(["192.0.2.0/24"])])
def test_others_are_not_believed(trusted: Networks, hand: HandDriven) -> None:
    """To a peer that is not trusted a header is nothing but its first bytes."""
    client = hand.connect(hand.listen(Echo, trusted=trusted, proxied=True))
    client.send(header())
    assert hand.receive(client, len(header())) == header()
    assert hand.protocols[0].endpoint.peer == "127.0.0.1"


def test_without_being_asked_for_there_is_no_header(hand: HandDriven) -> None:
    """A trusted address alone is not enough: a receiver must not guess (2.2)."""
    client = hand.connect(hand.listen(Echo, trusted=HERE))
    client.send(header())
    assert hand.receive(client, len(header())) == header()


@pytest.mark.parametrize("sent", [b"\x10\x10\0\4MQTT\4\2\0\x3c\0\4test", header(command=0x31)])
def test_a_trusted_address_has_to_send_one(sent: bytes, hand: HandDriven) -> None:
    """What is no header ends the connection before any protocol is made, counted."""
    client = hand.connect(hand.listen(trusted=HERE, proxied=True))
    client.send(sent)
    hand.until(lambda: hand.statistics.dropped["connection: no PROXY header"])
    assert hand.protocols == []
    assert hand.reactor.connection_count == 0
    assert "PROXY header" in str(hand.log.events[-1])


def test_an_end_before_the_header(hand: HandDriven) -> None:
    """The connection is forgotten."""
    client = hand.connect(hand.listen(trusted=HERE, proxied=True))
    client.send(header()[:20])
    hand.until(lambda: hand.reactor.connection_count)
    client.close()
    hand.until(lambda: not hand.reactor.connection_count)
    assert hand.protocols == []


def test_a_header_has_a_deadline(hand: HandDriven) -> None:
    """That of the first packet."""
    client = hand.connect(hand.listen(trusted=HERE, proxied=True))
    client.send(header()[:20])
    hand.until(lambda: hand.reactor.connection_count)
    hand.timers.run(hand.timers.now + hand.limits.connect_timeout_s - 0.1)
    assert hand.reactor.connection_count == 1
    hand.timers.run(hand.timers.now + 1)
    assert hand.reactor.connection_count == 0


def test_limits_are_for_the_clients_behind_a_proxy(hand: HandDriven) -> None:
    """The limit per address counts them, and not the proxy."""
    listener = hand.listen(Echo, trusted=HERE, proxied=True)
    for address in ("192.0.2.7", "192.0.2.7", "192.0.2.8"):
        client = hand.connect(listener)
        client.send(header(address) + b"x")
        assert hand.receive(client, 1) == b"x"
    fourth = hand.connect(listener)
    fourth.send(header("192.0.2.7"))
    hand.until(lambda: hand.statistics.dropped["connection: limit reached"])
    assert hand.reactor.connection_count == 3


def test_a_trusted_proxy_may_have_many_connections(hand: HandDriven) -> None:
    """Without a header they all come from its one address."""
    listener = hand.listen(Echo, trusted=HERE)
    clients = [hand.join(listener)[0] for _ in range(5)]
    assert len(clients) == hand.reactor.connection_count == 5


def test_connections_without_a_header_yet_count(hand: HandDriven) -> None:
    """Against connections_max, as all others do."""
    hand.reactor.set_limits(Limits(connections_max=1))
    listener = hand.listen(trusted=HERE, proxied=True)
    hand.connect(listener)
    hand.connect(listener)
    hand.until(lambda: hand.statistics.dropped["connection: limit reached"])
    assert hand.reactor.connection_count == 1


def test_the_header_stands_before_tls(hand: HandDriven, tmp_path: Path) -> None:
    """As load balancers send it that pass TLS on."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    tls = TlsContext.load(tmp_path / "server.pem")
    client = hand.connect(hand.listen(Talker, tls=tls, trusted=HERE, proxied=True))
    client.send(header())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    secured = context.wrap_socket(
        client, server_hostname="localhost", do_handshake_on_connect=False
    )

    def shaken() -> bool:
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    hand.until(shaken)
    hand.until(lambda: hand.protocols and hand.protocols[0].events)
    assert hand.protocols[0].endpoint.peer == "192.0.2.7"
    secured.close()
