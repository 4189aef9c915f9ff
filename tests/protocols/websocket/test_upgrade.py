"""The opening handshake: who gets a WebSocket, and what everybody else is told."""

import pytest

from ganglion.broker.net.addresses import Networks
from ganglion.protocols.http.origins import Origins
from tests.protocols.web_link import (
    CLOSE,
    PING,
    PONG,
    WebLink,
    WebPeer,
    byte_by_byte,
    frame,
    request,
    upgrade_request,
)


def test_a_request_becomes_a_websocket() -> None:
    """The answer is RFC 6455's own example, and the inner protocol learns of the connection."""
    link = WebLink()
    peer = link.open("text")
    assert link.inner[0].events == ["connected"]
    assert link.inner[0].endpoint.peer == "127.0.0.1"
    assert link.server.websockets.open == {"text": 1}
    assert not link.server.connections
    peer.lose()
    assert link.inner[0].events == ["connected", "lost: gone"]
    assert link.server.websockets.open == {"text": 0}


def test_a_request_may_come_byte_by_byte_with_frames_behind_it() -> None:
    """What a client sends with its request is read after the upgrade."""
    link = WebLink()
    peer = link.connect()
    peer.send(*byte_by_byte(upgrade_request("/echo", "text") + frame(PING, b"early")))
    assert peer.response().status_code == 101
    assert peer.frames()[0].payload == b"early"
    peer = link.connect()
    peer.send(upgrade_request("/echo", "text") + frame(PING, b"early"))
    assert peer.response().status_code == 101
    assert peer.frames()[0].opcode == PONG


def test_the_first_known_subprotocol_of_the_client_is_taken() -> None:
    """The client names them in the order of its liking (4.1)."""
    link = WebLink()
    peer = link.connect()
    peer.send(upgrade_request("/echo", "strange, binary, text"))
    assert dict(peer.response().headers)[b"sec-websocket-protocol"] == b"binary"


def refused(link: WebLink, data: bytes, peer: WebPeer | None = None) -> tuple[int, str]:
    """The status and the text of a refusal, after which no WebSocket is there."""
    peer = peer or link.connect()
    peer.send(data)
    response, body = peer.exchange()
    assert not link.inner
    return response.status_code, body.decode()


@pytest.mark.parametrize(
    ("old", "new", "status", "word"),
    [
        (b"Upgrade: websocket\r\n", b"", 426, "WebSocket only"),
        (b"Upgrade: websocket", b"Upgrade: h2c", 426, "WebSocket only"),
        (b"Connection: Upgrade", b"Connection: keep-alive", 426, "WebSocket only"),
        (b"GET ", b"POST ", 405, "GET"),
        (b"Version: 13", b"Version: 8", 426, "must be 13"),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426, "must be 13"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZQ==", 400, "16 bytes"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"!", 400, "16 bytes"),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"", 400, "16 bytes"),
        (b"Sec-WebSocket-Protocol: text\r\n", b"", 400, "text or binary"),
        (b"Protocol: text", b"Protocol: mqtt", 400, "text or binary"),
        (b"HTTP/1.1", b"HTTP/1.0", 400, "HTTP/1.1"),
        (b"/echo", b"/other", 404, "nothing"),
    ],
)
def test_what_is_no_handshake_is_refused(old: bytes, new: bytes, status: int, word: str) -> None:
    """Each rule of section 4.2.1 has its answer, and the connection serves HTTP on."""
    link = WebLink()
    data = upgrade_request("/echo", "text")
    assert old in data
    got, text = refused(link, data.replace(old, new))
    assert (got, word in text) == (status, True), text


def test_a_version_that_is_not_known_is_told_which_one_is() -> None:
    """4.4: the server lists what it speaks."""
    link = WebLink()
    peer = link.connect()
    peer.send(upgrade_request("/echo", "text").replace(b"Version: 13", b"Version: 14"))
    assert dict(peer.response().headers)[b"sec-websocket-version"] == b"13"
    peer.send(upgrade_request("/echo", "text"))
    assert peer.response().status_code == 101


@pytest.mark.parametrize(
    ("host", "origin", "peer", "is_allowed"),
    [
        ("localhost:8080", None, "127.0.0.1", True),
        ("localhost:8080", "http://localhost:8080", "127.0.0.1", True),
        ("localhost:8080", "HTTP://LOCALHOST:8080", "127.0.0.1", True),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1", True),
        ("[::1]:8080", "http://[::1]:8080", "::1", True),
        ("app.localhost:8080", "http://app.localhost:8080", "127.0.0.1", True),
        ("localhost:8080", "http://evil.example", "127.0.0.1", False),
        ("localhost:8080", "http://localhost:9090", "127.0.0.1", False),
        ("localhost:8080", "http://localhost", "127.0.0.1", False),
        ("localhost:8080", "null", "127.0.0.1", False),
        ("localhost:8080", "file://", "127.0.0.1", False),
        ("localhost:8080", "http://localhost:8080.evil.example", "127.0.0.1", False),
        ("localhost:8080", "http://localhost:8080@evil.example", "127.0.0.1", False),
        # a name that its owner lets lead to this machine (DNS rebinding)
        ("evil.example:8080", "http://evil.example:8080", "127.0.0.1", False),
        ("evil.example:8080", "http://evil.example:8080", "::1", False),
        # from elsewhere such a name is the node's own
        ("broker.example", "https://broker.example", "192.0.2.7", True),
        ("broker.example:443", "https://broker.example", "192.0.2.7", True),
        ("broker.example", "http://broker.example:80", "192.0.2.7", True),
        ("broker.example", "https://shop.example", "192.0.2.7", True),
        ("broker.example", "https://shop.example.evil.example", "192.0.2.7", False),
        ("broker.example", "http://shop.example", "192.0.2.7", False),
    ],
)
def test_origin(host: str, origin: str | None, peer: str, is_allowed: bool) -> None:
    """Pages of the node itself and of configured origins may connect, and what is no browser."""
    link = WebLink(origins=Origins(["https://shop.example"]))
    data = upgrade_request("/echo", "text").replace(b"localhost:8080", host.encode())
    if origin is not None:
        data = data.replace(b"\r\n\r\n", f"\r\nOrigin: {origin}\r\n\r\n".encode())
    client = link.connect(peer)
    client.send(data)
    response, body = client.exchange()
    assert response.status_code == (101 if is_allowed else 403)
    if not is_allowed:
        assert not link.inner
        assert link.refusals() == [body.decode().strip()]


def test_every_origin_can_be_allowed() -> None:
    """``*`` is said explicitly, and then holds for names that lead here, too."""
    link = WebLink(origins=Origins(["*"]))
    peer = link.connect()
    peer.send(upgrade_request("/echo", "text", "Origin: https://evil.example"))
    assert peer.response().status_code == 101


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "203.0.113.9, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7:55555", "192.0.2.7"),
        ("10.0.0.1", "[2001:db8::7]:55555", "2001:db8::7"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1, nonsense, 10.0.0.2", "10.0.0.2"),
        ("unix", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.1", "127.0.0.1", "192.0.2.1"),  # nobody trusts it
        ("10.0.0.1", "127.0.0.1" + ", 10.0.0.2" * 40, "10.0.0.2"),
    ],
)
def test_forwarded_address(peer: str, forwarded: str, address: str) -> None:
    """A trusted proxy says for whom it speaks; what a client says of itself counts for nothing."""
    link = WebLink(trusted=Networks(["10.0.0.0/8", "unix"]))
    client = link.connect(peer)
    client.send(upgrade_request("/echo", "text", f"X-Forwarded-For: {forwarded}"))
    assert client.response().status_code == 101
    assert link.inner[0].endpoint.peer == address


def test_requests_before_the_upgrade_are_answered() -> None:
    """A connection may serve HTTP first, and what follows a refused upgrade is HTTP."""
    link = WebLink()
    peer = link.connect()
    peer.send(request("GET", "/none") + upgrade_request("/echo", "nothing of ours"))
    assert peer.response().status_code == 404
    assert peer.response().status_code == 400
    peer.send(upgrade_request("/echo", "text"), frame(CLOSE))
    assert peer.response().status_code == 101
    assert peer.frames()[0].opcode == CLOSE
