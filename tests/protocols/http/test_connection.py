"""HTTP/1.1: requests in whatever pieces, answers in order, deadlines, limits, refusals."""

from collections.abc import Callable

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.broker.net.addresses import Networks
from ganglion.protocols.http.messages import Response
from ganglion.protocols.http.routes import Exchange, Routes
from tests.protocols.mqtt.fake_link import FakeTls
from tests.protocols.web_link import WebLink, WebPeer, byte_by_byte, request, whole


class Desk:
    """Routes that keep their exchanges: ``/now`` answers at once, ``/later`` when the test says."""

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self.routes = Routes()
        self.routes.add("GET", "/now", self.now)
        self.routes.add("POST", "/now", self.now)
        self.routes.add("GET", "/later", self.seen.append)
        self.routes.add("GET", "/large", self.large)

    def now(self, exchange: Exchange) -> None:
        """Say what was asked."""
        self.seen.append(exchange)
        asked = exchange.request
        exchange.respond(Response(200, f"{asked.method} {asked.query}".encode() + asked.body))

    def large(self, exchange: Exchange) -> None:
        """Say much."""
        self.seen.append(exchange)
        exchange.respond(Response(200, bytes(100_000)))


@pytest.fixture
def desk() -> Desk:
    """A new desk."""
    return Desk()


@pytest.fixture
def link(desk: Desk) -> WebLink:
    """A server with that desk and short deadlines."""
    limits = Limits(
        connect_timeout_s=10,
        http_idle_timeout_s=60,
        http_header_max_bytes=2048,
        http_headers_max=20,
        http_body_max_bytes=1000,
    )
    return WebLink(limits=limits, routes=desk.routes, trusted=Networks(["10.0.0.0/8"]))


def answers(peer: WebPeer, count: int) -> list[tuple[int, bytes]]:
    """So many responses with their bodies, and nothing behind them."""
    found = [peer.exchange() for _ in range(count)]
    assert peer.frames() == []
    return [(response.status_code, body) for response, body in found]


every_feed = pytest.mark.parametrize("feed", [whole, byte_by_byte])


@every_feed
def test_a_request_is_answered(
    feed: Callable[[bytes], list[bytes]], link: WebLink, desk: Desk
) -> None:
    """The route sees what was asked; the response has what every response has."""
    peer = link.connect("192.0.2.7", FakeTls())
    peer.send(*feed(request("GET", "/now?a=1&b=%20", "X-One: 1", "x-one: 2")))
    response, body = peer.exchange()
    assert response.status_code == 200
    assert body == b"GET a=1&b=%20"
    headers = dict(response.headers)
    assert headers[b"content-length"] == b"13"
    assert headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"date"] == b"Thu, 01 Jan 1970 00:16:40 GMT"
    asked = desk.seen[0].request
    assert (asked.path, asked.peer, asked.is_secure) == ("/now", "192.0.2.7", True)
    assert asked.header(b"x-one") == b"1, 2"
    assert asked.header(b"x-two") == b""
    assert link.server.responses == {200: 1}


@every_feed
@pytest.mark.parametrize(
    "body",
    [
        ("Content-Length: 5", b"hello"),
        ("Transfer-Encoding: chunked", b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"),
    ],
)
def test_a_body_is_read(
    feed: Callable[[bytes], list[bytes]], body: tuple[str, bytes], link: WebLink
) -> None:
    """With a length or in chunks, and what follows is the next request."""
    peer = link.connect()
    one = request("POST", "/now", body[0], body=body[1])
    peer.send(*feed(one + one + request("GET", "/now")))
    assert answers(peer, 3) == [(200, b"POST hello"), (200, b"POST hello"), (200, b"GET ")]


def test_a_client_that_waits_to_send_its_body_is_told_to(link: WebLink) -> None:
    """Expect: 100-continue (RFC 9110, 10.1.1)."""
    peer = link.connect()
    peer.send(request("POST", "/now", "Content-Length: 5", "Expect: 100-continue"))
    assert peer.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.send(b"hello")
    assert answers(peer, 1) == [(200, b"POST hello")]


def test_head_has_no_body(link: WebLink) -> None:
    """HEAD is answered like GET, without the body."""
    peer = link.connect()
    peer.send(request("HEAD", "/now") + request("HEAD", "/none") + request("GET", "/now"))
    response, body = peer.exchange("HEAD")
    assert (response.status_code, body) == (200, b"")
    assert dict(response.headers)[b"content-length"] == b"5"
    assert peer.exchange("HEAD")[0].status_code == 404
    assert peer.exchange()[1] == b"GET "


def test_what_is_not_there(link: WebLink) -> None:
    """404 for a path, 405 with the methods that there are."""
    peer = link.connect()
    peer.send(request("GET", "/nothing"), request("DELETE", "/now"))
    assert peer.exchange()[0].status_code == 404
    response, _ = peer.exchange()
    assert response.status_code == 405
    assert dict(response.headers)[b"allow"] == b"GET, HEAD, POST"


def test_a_target_may_be_a_url(link: WebLink) -> None:
    """RFC 9112, 3.2.2; what is neither path nor URL is refused."""
    peer = link.connect()
    peer.send(request("GET", "http://somewhere:99/now?x"))
    assert answers(peer, 1) == [(200, b"GET x")]
    peer.send(request("GET", "ftp://somewhere/now"))
    assert peer.exchange()[0].status_code == 400
    assert peer.is_closed()


@pytest.mark.parametrize(
    ("version", "header", "closes"),
    [
        ("1.1", "Connection: keep-alive", False),
        ("1.1", "Connection: close", True),
        ("1.0", "X: y", True),
        ("1.0", "Connection: keep-alive", True),  # h11 keeps none of 1.0 alive
    ],
)
def test_a_connection_lives_as_long_as_the_client_wants(
    version: str, header: str, closes: bool, link: WebLink
) -> None:
    """RFC 9112, 9.3."""
    peer = link.connect()
    data = request("GET", "/now", header).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    peer.send(data)
    assert answers(peer, 1) == [(200, b"GET ")]
    assert peer.is_closed() == closes
    if closes:
        assert not link.server.connections


# -- pipelining, and answers that take their time -------------------------------------------------


def test_pipelined_requests_are_answered_in_order(link: WebLink) -> None:
    """All of them, but only some in one tick: others have their turn between."""
    peer = link.connect()
    peer.send(b"".join(request("GET", f"/now?{number}") for number in range(100)))
    in_first_tick = peer.endpoint.output.count(b"HTTP/1.1 200")
    assert 1 <= in_first_tick < 20
    assert peer.is_paused()
    link.advance(1)
    assert answers(peer, 100) == [(200, b"GET %d" % number) for number in range(100)]
    assert not peer.is_paused()


def test_an_answer_may_come_later(link: WebLink, desk: Desk) -> None:
    """The connection is not read until then, what was read already waits, and no deadline runs."""
    peer = link.connect()
    peer.send(request("GET", "/later") + request("GET", "/now?next"))
    assert peer.read() == b""
    assert peer.is_paused()
    link.advance(1000)
    desk.seen[0].respond(Response(200, b"late"))
    link.advance(0)
    assert answers(peer, 2) == [(200, b"late"), (200, b"GET next")]
    assert not peer.is_paused()
    desk.seen[0].respond(Response(200, b"twice"))
    link.tick()
    assert peer.read() == b""


def test_an_answer_for_who_has_gone_is_ignored(link: WebLink, desk: Desk) -> None:
    """The route need not know."""
    peer = link.connect()
    peer.send(request("GET", "/later"))
    peer.lose()
    desk.seen[0].respond(Response(200, b"late"))
    link.advance(100)
    assert peer.read() == b""


def test_a_client_that_does_not_read_is_not_answered_on(link: WebLink, desk: Desk) -> None:
    """While too much waits for it, its requests wait too."""
    peer = link.connect()
    peer.endpoint.congested = True
    peer.send(request("GET", "/large") * 3)
    assert desk.seen == []
    assert peer.is_paused()
    peer.endpoint.congested = False
    peer.endpoint.protocol.writable()
    link.tick()
    assert [status for status, _ in answers(peer, 3)] == [200, 200, 200]
    assert not peer.is_paused()


# -- limits and deadlines -------------------------------------------------------------------------


def refused(link: WebLink, peer: WebPeer, status: int, word: str) -> None:
    """The peer was told why, the connection is closed gently, and the refusal is in the log."""
    response, body = peer.exchange()
    assert response.status_code == status, body
    assert dict(response.headers)[b"connection"] == b"close"
    assert word in body.decode()
    assert peer.is_closed()
    assert peer.endpoint.lingers
    assert word in link.refusals()[-1]
    assert not link.server.connections


def test_large_headers_are_refused(link: WebLink) -> None:
    """431 as soon as they are over http_header_max_bytes, however they come."""
    peer = link.connect()
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2100)
    refused(link, peer, 431, "")
    peer = link.connect()
    peer.send(*byte_by_byte(b"GET /" + b"y" * 2100))
    refused(link, peer, 431, "")


def test_many_headers_are_refused(link: WebLink) -> None:
    """431 over http_headers_max."""
    peer = link.connect()
    peer.send(request("GET", "/now", *(f"X-{number}: y" for number in range(20))))
    refused(link, peer, 431, "http_headers_max = 20")


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 1001", b""),
        ("Content-Length: 99999999999999999999", b""),
        ("Transfer-Encoding: chunked", b"3E9\r\n" + b"x" * 1001),
        ("Transfer-Encoding: chunked", b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512),
    ],
)
def test_large_bodies_are_refused(header: str, body: bytes, link: WebLink, desk: Desk) -> None:
    """413: by its announced length before it comes, or when it has become too long."""
    peer = link.connect()
    peer.send(request("POST", "/now", header, body=body))
    refused(link, peer, 413, "http_body_max_bytes = 1000")
    assert desk.seen == []


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_slow_request_is_given_up(sent: bytes, link: WebLink) -> None:
    """Nothing extends the deadline of the first request but its end (slowloris)."""
    peer = link.connect()
    if sent:
        peer.send(sent)
    for _ in range(9):
        link.advance(1)
        if sent.endswith(b"\n"):
            peer.send(b"X: y\r\n")
    assert not peer.is_closed()
    link.advance(1)
    refused(link, peer, 408, "connect_timeout_s")


def test_a_slow_body_is_given_up(link: WebLink) -> None:
    """The deadline is that of the whole request."""
    peer = link.connect()
    peer.send(request("POST", "/now", "Content-Length: 500", body=b"x"))
    for _ in range(9):
        link.advance(1)
        peer.send(b"x")
    assert not peer.is_closed()
    link.advance(1)
    refused(link, peer, 408, "connect_timeout_s")


def test_an_idle_connection_is_closed(link: WebLink) -> None:
    """Between requests there is more time, and no error when it is over."""
    peer = link.connect()
    for _ in range(3):
        link.advance(9)
        peer.send(request("GET", "/now"))
        assert answers(peer, 1) == [(200, b"GET ")]
        link.advance(50)
    assert not peer.is_closed()
    link.advance(10)
    assert peer.is_closed()
    assert peer.read() == b""
    assert link.refusals() == []


def test_the_next_request_has_its_own_deadline(link: WebLink) -> None:
    """It counts from its first byte."""
    peer = link.connect()
    peer.send(request("GET", "/now"))
    answers(peer, 1)
    link.advance(50)
    peer.send(b"GET /now HT")
    link.advance(9)
    assert not peer.is_closed()
    link.advance(1)
    refused(link, peer, 408, "connect_timeout_s")


# -- what could be read in two ways ---------------------------------------------------------------


@every_feed
@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/now", "Content-Length: 5", "Transfer-Encoding: chunked"),
        request("POST", "/now", "Transfer-Encoding: chunked", "Content-Length: 5"),
        request("POST", "/now", "Content-Length: 5", "Content-Length: 6"),
        request("POST", "/now", "Content-Length: 5, 6"),
        request("POST", "/now", "Content-Length: +5"),
        request("POST", "/now", "Content-Length: 0x5"),
        request("POST", "/now", "Content-Length: -1"),
        request("POST", "/now", "Content-Length: 5 5"),
        request("POST", "/now", "Content-Length: "),
        request("POST", "/now", "Transfer-Encoding: gzip, chunked"),
        request("POST", "/now", "Transfer-Encoding: xchunked"),
        request("POST", "/now", "Transfer-Encoding: identity"),
        request("POST", "/now", "Transfer-Encoding : chunked"),
        request("POST", "/now", "Transfer-Encoding\t: chunked"),
        request("POST", "/now", " Transfer-Encoding: chunked"),
        request("POST", "/now", "X: a\rTransfer-Encoding: chunked"),
        request("POST", "/now", "X: a\0b"),
        request("GET", "/now", "X: a\x0bb"),
        request("GET", "/now", "Bad Name: x"),
        request("GET", "/now", ": x"),
        request("GET", "/now", "Host: other"),
        b"GET /now HTTP/1.1\r\n\r\n",  # no Host
        b"GET /now HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  /now HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /now\tHTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /now HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /no w HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /now HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /now\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"G\xc3\x84T /now HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"\x10\x10\0\4MQTT\4\2\0\x3c\0\4test",
        b"POST /now HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_ambiguous_requests_are_refused(
    data: bytes, feed: Callable[[bytes], list[bytes]], link: WebLink, desk: Desk
) -> None:
    """4xx or 501, the connection ends, and no route sees any of it, nor what follows."""
    peer = link.connect()
    peer.send(*feed(data + request("GET", "/now?smuggled") + b"\r\n\r\n"))
    if not peer.is_closed():  # a byte that cannot begin a request, before a line's end
        link.advance(11)
    response, _ = peer.exchange()
    assert response.status_code in (400, 405, 408, 501, 505), response
    assert peer.is_closed()
    assert desk.seen == []
    assert len(link.refusals()) == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"G\r\n",
        b"FFFFFFFFFFFFFFFFFFFFFFFFF\r\nx",
        b"5;" + b"x" * 3000,
    ],
)
def test_broken_chunks_are_refused(chunks: bytes, link: WebLink, desk: Desk) -> None:
    """A body whose end is in doubt ends the connection."""
    peer = link.connect()
    peer.send(request("POST", "/now", "Transfer-Encoding: chunked", body=chunks))
    if peer.is_closed():
        response, _ = peer.exchange()
        assert response.status_code in (400, 413, 431)
        assert desk.seen == []
    else:  # blanks behind a length are allowed for (RFC 9112, 7.1.1)
        assert answers(peer, 1) == [(200, b"POST hello")]
        assert chunks.startswith(b"5 ")


def test_only_trusted_proxies_say_whom_they_speak_for(link: WebLink, desk: Desk) -> None:
    """X-Forwarded-For counts from trusted addresses."""
    for peer, address in (("10.1.1.1", "192.0.2.7"), ("192.0.2.1", "192.0.2.1")):
        client = link.connect(peer)
        client.send(request("GET", "/now", "X-Forwarded-For: 192.0.2.7"))
        assert desk.seen[-1].request.peer == address


# -- the end --------------------------------------------------------------------------------------


def test_a_stopping_node_closes_idle_connections_and_finishes_answers(
    link: WebLink, desk: Desk
) -> None:
    """Who waits for an answer gets it, and is told that it was the last one."""
    idle, waiting = link.connect(), link.connect()
    waiting.send(request("GET", "/later") + request("GET", "/now"))
    link.server.drain()
    assert idle.is_closed()
    assert not waiting.is_closed()
    desk.seen[0].respond(Response(200, b"late"))
    link.advance(0)
    response, body = waiting.exchange()
    assert body == b"late"
    assert dict(response.headers)[b"connection"] == b"close"
    assert waiting.is_closed()
    assert len(desk.seen) == 1
    assert not link.server.connections


def test_a_lost_connection_leaves_nothing(link: WebLink) -> None:
    """No timer, no place in the server's list."""
    peer = link.connect()
    peer.send(b"GET /now")
    peer.endpoint.protocol.end_of_stream()
    peer.lose()
    link.advance(1000)
    assert peer.read() == b""
    assert not link.server.connections
