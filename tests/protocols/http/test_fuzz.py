"""Whatever bytes come: whole responses and an end, never an exception, in bounded memory."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.core.limits import Limits
from ganglion.protocols.http.messages import Response
from ganglion.protocols.http.routes import Exchange, Routes
from tests.protocols.web_link import WebLink, request, upgrade_request

LIMITS = Limits(http_header_max_bytes=1024, http_headers_max=10, http_body_max_bytes=200)

PIECES = [
    request("GET", "/now"),
    request("POST", "/now", "Content-Length: 5", body=b"hello"),
    request("POST", "/now", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
    request("GET", "/now", "Expect: 100-continue"),
    upgrade_request("/echo", "text"),
    b"GET ",
    b"/now ",
    b"HTTP/1.1",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"Host: x\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Upgrade: websocket\r\n",
    b"0\r\n\r\n",
    b"x" * 300,
    b"\0",
    b"\xff",
]


def answer(exchange: Exchange) -> None:
    """Say that it came."""
    exchange.respond(Response(200, b"answer"))


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=12).map(b"".join),
    st.integers(0, 2**16),
)
def test_any_bytes(data: bytes, seed: int) -> None:
    """Invariant: every byte that comes back is part of a response; a connection ends once."""
    routes = Routes()
    routes.add("GET", "/now", answer)
    routes.add("POST", "/now", answer)
    link = WebLink(limits=LIMITS, routes=routes)
    peer = link.connect()
    dice = random.Random(seed)
    while data:
        size = dice.choice((1, 3, 50, 1000))
        peer.send(data[:size])
        data = data[size:]
    link.advance(1000)
    came = peer.read()
    if not link.inner:
        assert peer.is_closed()  # by a refusal, or for want of a request
    heads = came.split(b"HTTP/1.1 ")
    assert heads[0] == b""
    for each in heads[1:]:
        assert re.match(rb"(100|101|200|4\d\d|501|505) ", each), each
        if each.startswith(b"101"):
            break
        head, separator, body = each.partition(b"\r\n\r\n")
        assert separator
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        assert len(body) == (int(length[1]) if length else 0)
    peer.lose()
    assert not link.server.connections
