"""permessage-deflate: categories 12 and 13 of the Autobahn suite, and bombs.

The suite sends a thousand messages in each case, of five files or with seven offers, in eighteen
sizes and cuts. Here each case has three, of data that is of the same kind as the file, and the
client's side is zlib itself.
"""

import zlib
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.core.limits import Limits
from tests.protocols.web_link import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebLink,
    WebPeer,
    byte_by_byte,
    frame,
    upgrade_request,
)

NAME = "permessage-deflate"
NO_CONTEXT = "server_no_context_takeover"
OFFER = f"Sec-WebSocket-Extensions: {NAME}"
RSV1 = 4
TAIL = b"\0\0\xff\xff"


def deflated(data: bytes, level: int = 9) -> bytes:
    """What a client sends for a message (RFC 7692, 7.2.1)."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15)
    packed = deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH)
    assert packed.endswith(TAIL)
    return packed[:-4]


def inflated(data: bytes) -> bytes:
    """What a message has in it (7.2.2); it needs nothing of the one before."""
    return zlib.decompressobj(-15).decompress(data + TAIL)


def opened(subprotocol: str = "text", offer: str = OFFER, **limits: int) -> tuple[WebLink, WebPeer]:
    """A connection on which compression was agreed."""
    given_limits = Limits(connect_size_max_bytes=1 << 20, **limits)
    link = WebLink(compress=True, limits=given_limits)
    peer = link.connect()
    peer.send(upgrade_request("/echo", subprotocol, offer))
    response = peer.response()
    assert response.status_code == 101
    agreed = dict(response.headers)[b"sec-websocket-extensions"]
    assert agreed.split(b"; ")[0] == b"permessage-deflate"
    return link, peer


SIZES = [
    *((16, 0), (64, 0), (256, 0), (1024, 0), (4096, 0), (8192, 0), (16_384, 0), (32_768, 0)),
    *((65_536, 0), (131_072, 0), (8192, 256), (16_384, 256), (32_768, 256), (65_536, 256)),
    *((131_072, 256), (131_072, 1024), (131_072, 4096), (131_072, 32_768)),
]
"""Of a message, and of the pieces in which it is sent; 0: as one frame."""


def noise(size: int) -> bytes:
    """Bytes that cannot be compressed."""
    return b"".join(sha256(b"%d" % number).digest() for number in range(size // 32 + 1))[:size]


every_size = pytest.mark.parametrize(
    "number",
    [pytest.param(each, marks=[pytest.mark.slow] if each == 15 else []) for each in range(1, 19)],
)

KINDS: dict[str, tuple[str, bytes]] = {
    "12.1": ("text", b"".join(b'{"id": %d, "tags": ["a", "b"]}, ' % each for each in range(9000))),
    "12.2": ("binary", bytes((row ^ column) & 0xFF for row in range(512) for column in range(512))),
    "12.3": ("binary", b"Habe nun, ach! Philosophie, Juristerei und Medizin. " * 5000),
    "12.4": ("text", "<li class='día'>größer &amp; schöner</li>\n".encode() * 6000),
    "12.5": ("binary", (b"stream\n" + noise(2000) + b"\nendstream\n") * 130),
}
"""A subprotocol and data like JSON, a picture, a long text, a page and a PDF."""


def offered(*parameters: str) -> str:
    """What the suite's client offers: what it accepts, and what it asks for."""
    return "; ".join([NAME, "client_no_context_takeover", "client_max_window_bits", *parameters])


OFFERS = {
    "13.1": (offered(), True),
    "13.2": (offered(NO_CONTEXT), True),
    "13.3": (offered("server_max_window_bits=9"), False),
    "13.4": (offered("server_max_window_bits=15"), True),
    "13.5": (offered(NO_CONTEXT, "server_max_window_bits=9"), False),
    "13.6": (offered(NO_CONTEXT, "server_max_window_bits=15"), True),
    "13.7": (
        f"{offered(NO_CONTEXT, 'server_max_window_bits=9')}, {offered(NO_CONTEXT)}, {offered()}",
        True,
    ),
}
"""Offers of the suite, and whether they are agreed; small windows are not, which it allows."""


def echoed(peer: WebPeer, opcode: int, data: bytes, size: int, cut: int) -> None:
    """Send three messages from these data, compressed piece by piece, and compare the echo."""
    for number in range(3):
        message = (data[number * size :] + data * (size // len(data) + 1))[:size]
        if opcode == TEXT:  # a piece of a text may begin and end within a character
            message = message.decode(errors="ignore").encode().ljust(size, b" ")
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        pieces = [message[at : at + (cut or size)] for at in range(0, size, cut or size)]
        frames = [deflater.compress(piece) for piece in pieces]  # some of them are empty
        frames[-1] += deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]
        last = len(frames) - 1
        for at, payload in enumerate(frames):
            kind, rsv = (opcode, RSV1) if not at else (CONTINUATION, 0)
            peer.send(frame(kind, payload, fin=at == last, rsv=rsv))
        back = [each for each in peer.frames() if each.opcode == opcode]
        assert b"".join(inflated(e.payload) if e.rsv else e.payload for e in back) == message


@every_size
@pytest.mark.parametrize("section", KINDS)
def test_12_what_is_echoed_is_what_was_sent(section: str, number: int) -> None:
    """12.1.1 to 12.5.18: data of each kind, in messages of each size and cut."""
    subprotocol, data = KINDS[section]
    _, peer = opened(subprotocol)
    echoed(peer, TEXT if subprotocol == "text" else BINARY, data, *SIZES[number - 1])


@every_size
@pytest.mark.parametrize("section", [each for each, (_, is_agreed) in OFFERS.items() if is_agreed])
def test_13_echo_after_each_offer(section: str, number: int) -> None:
    """13.1.1 to 13.7.18, where the offer is agreed; the others are in `test_13_offers`."""
    _, peer = opened("text", f"Sec-WebSocket-Extensions: {OFFERS[section][0]}")
    echoed(peer, TEXT, KINDS["12.1"][1], *SIZES[number - 1])


def test_what_is_compressed_becomes_small() -> None:
    """The server's messages are compressed, too."""
    _, peer = opened("text")
    text = (b"the quick brown fox; " * 4000)[:65_536]
    peer.send(frame(TEXT, deflated(text), rsv=RSV1))
    (back,) = peer.frames()
    assert back.rsv == RSV1
    assert len(back.payload) < len(text) / 20


@pytest.mark.parametrize(
    ("offer", "is_agreed"),
    [
        *[pytest.param(*offer, id=section) for section, offer in OFFERS.items()],
        pytest.param('permessage-deflate; client_max_window_bits="12"', True, id="quoted"),
        pytest.param("x-webkit-deflate-frame", False, id="another"),
        pytest.param("x-strange; a=b, permessage-deflate", True, id="beside another"),
        pytest.param("permessage-deflate; strange", False, id="unknown parameter"),
        pytest.param(
            "permessage-deflate; server_no_context_takeover=1", False, id="value where none is"
        ),
        pytest.param(
            "permessage-deflate; client_max_window_bits; client_max_window_bits", False, id="twice"
        ),
        pytest.param(
            "permessage-deflate; client_max_window_bits=16", False, id="bits out of range"
        ),
        pytest.param("permessage-deflate; client_max_window_bits=7", False, id="bits out of range"),
        pytest.param("permessage-deflate; client_max_window_bits=09", False, id="bits with a zero"),
        pytest.param("permessage-deflate; server_max_window_bits=abc", False, id="no number"),
        pytest.param("permessage-deflate; server_max_window_bits", False, id="no value"),
        pytest.param("", False, id="empty"),
        pytest.param(",;,;;=,", False, id="commas"),
    ],
)
def test_13_offers(offer: str, is_agreed: bool) -> None:
    """What can be kept is agreed, every other offer passed over; the connection opens anyway."""
    link = WebLink(compress=True)
    peer = link.connect()
    peer.send(upgrade_request("/echo", "text", f"Sec-WebSocket-Extensions: {offer}"))
    response = peer.response()
    assert response.status_code == 101
    agreed = dict(response.headers).get(b"sec-websocket-extensions")
    assert (agreed is not None) == is_agreed
    if agreed is not None:
        assert agreed == (
            b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        )
    peer.send(frame(TEXT, deflated(b"hello"), rsv=RSV1))
    (echo,) = peer.frames()
    assert (echo.payload == b"hello") == is_agreed
    if not is_agreed:
        assert echo.code == 1002


def test_compression_is_off_unless_it_is_wanted() -> None:
    """No offer is accepted by default."""
    link = WebLink()
    peer = link.connect()
    peer.send(upgrade_request("/echo", "text", OFFER))
    assert b"sec-websocket-extensions" not in dict(peer.response().headers)


def test_plain_and_compressed_messages_take_turns() -> None:
    """Each message says for itself; small ones are sent as they are."""
    link, peer = opened()
    peer.send(
        frame(TEXT, b"plain")
        + frame(TEXT, deflated(b"packed"), rsv=RSV1)
        + frame(TEXT, b"", rsv=0)
        + frame(TEXT, deflated(b""), rsv=RSV1)
        + frame(PING, b"x")
        + frame(TEXT, b"x" * 1000)
    )
    assert link.inner[0].received == [b"plain", b"packed", b"", b"", b"x" * 1000]
    frames = peer.frames()
    assert frames[-1].rsv == RSV1
    assert inflated(frames[-1].payload) == b"x" * 1000
    assert {each.rsv for each in frames[:-1]} == {0}


def test_noise_is_not_compressed() -> None:
    """What would become longer goes as it is."""
    _, peer = opened("binary")
    peer.send(frame(BINARY, noise(1920)))
    (echo,) = peer.frames()
    assert (echo.rsv, echo.payload) == (0, noise(1920))


@pytest.mark.parametrize(
    "sent",
    [
        frame(PING, b"x", rsv=RSV1),
        frame(TEXT, deflated(b"abc")[:2], rsv=RSV1, fin=False)
        + frame(CONTINUATION, deflated(b"abc")[2:], rsv=RSV1),
        frame(TEXT, b"abc", rsv=RSV1 | 2),
    ],
)
def test_the_bit_elsewhere_is_refused(sent: bytes) -> None:
    """RSV1 is for the first frame of a message (6)."""
    _, peer = opened()
    peer.send(*byte_by_byte(sent))
    assert [each.code for each in peer.frames()] == [1002]


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x06garbage", b"\x01\x05\x00\x00\x00"])
def test_what_cannot_be_inflated_is_refused(payload: bytes) -> None:
    """1007 (7.2.2: fail the connection)."""
    _, peer = opened()
    peer.send(frame(TEXT, payload, rsv=RSV1), frame(TEXT, b"late"))
    assert [each.code for each in peer.frames()] == [1007]


def test_a_final_block_may_end_a_message() -> None:
    """7.2.3.4: BFINAL set, and a zero byte behind it; anything more is no message."""
    link, peer = opened()
    final = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = final.compress(b"Hello") + final.flush()
    peer.send(frame(TEXT, packed + b"\0", rsv=RSV1), *byte_by_byte(frame(TEXT, packed, rsv=RSV1)))
    assert link.inner[0].received == [b"Hello", b"Hello"]
    peer.send(frame(TEXT, packed + packed, rsv=RSV1))
    assert peer.frames()[-1].code == 1007


# -- bombs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", ["text", "binary"])
@pytest.mark.parametrize("cut", [1 << 20, 1000, 1])
def test_a_bomb_is_refused_before_it_goes_off(subprotocol: str, cut: int) -> None:
    """16 MiB in 16 KiB: 1009, and never more in memory than the limit."""
    limit = 100_000
    link, peer = opened(subprotocol, websocket_inflated_max_bytes=limit)
    bomb = frame(TEXT if subprotocol == "text" else BINARY, deflated(bytes(16 << 20)), rsv=RSV1)
    peer.send(*[bomb[at : at + cut] for at in range(0, 600, cut)])
    assert peer.frames()[-1].code == 1009
    assert sum(map(len, link.inner[0].received)) <= limit
    assert "max_bytes" in link.refusals()[-1] or "error in extension" in link.refusals()[-1]


def test_many_small_bombs_in_one_read_count_together() -> None:
    """The limit is also for what comes at once, or a read would cost a thousand times its size."""
    link, peer = opened("binary", websocket_inflated_max_bytes=100_000)
    small = frame(BINARY, deflated(bytes(60_000)), rsv=RSV1)
    peer.send(small, small, small)
    assert sum(map(len, link.inner[0].received)) == 180_000
    peer.send(small + small)
    assert peer.frames()[-1].code == 1009


def test_bombs_within_a_message_count_together() -> None:
    """Fragments do not begin anew."""
    link, peer = opened("text", websocket_inflated_max_bytes=100_000)
    packed = deflated(b"x" * 101_000)
    half = len(packed) // 2
    peer.send(frame(TEXT, packed[:half], fin=False, rsv=RSV1), frame(CONTINUATION, packed[half:]))
    assert peer.frames()[-1].code == 1009
    assert link.inner[0].received == []


@pytest.mark.slow
@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_compressed_bytes(payload: bytes, cut: int) -> None:
    """Invariant: a message, or one Close; never an exception, never more than the limit."""
    link, peer = opened("binary", websocket_inflated_max_bytes=5000)
    data = frame(BINARY, payload, rsv=RSV1) + frame(PING, b"alive")
    peer.send(*[data[at : at + cut] for at in range(0, len(data), cut)])
    frames = peer.frames()
    assert sum(map(len, link.inner[0].received)) <= 5000
    if peer.is_closed():
        assert frames[-1].code in (1007, 1009)
    else:
        assert [each.payload for each in frames if each.opcode == PONG] == [b"alive"]
    assert [each.opcode for each in frames].count(CLOSE) == peer.is_closed()
