"""What a WebSocket connection does for the protocol that it carries."""

import pytest

from ganglion.broker.core.limits import Limits
from tests.protocols.web_link import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    WebLink,
    byte_by_byte,
    frame,
)


def test_what_is_written_in_a_tick_shares_a_binary_message() -> None:
    """One frame, one send, however many writes; control frames keep their place."""
    link = WebLink()
    peer = link.open("binary")
    endpoint = link.inner[0].endpoint
    before = peer.endpoint.sends
    endpoint.write(b"one")
    endpoint.offer(b"two", 1)
    endpoint.write(b"three")
    link.tick()
    assert peer.frames() == [Frame(BINARY, b"onetwothree")]
    assert peer.endpoint.sends == before + 1
    endpoint.write(b"four")
    peer.send(frame(PING, b"x") + frame(BINARY, b"five"))
    assert peer.frames() == [Frame(BINARY, b"four"), Frame(PONG, b"x"), Frame(BINARY, b"five")]


def test_shared_messages_have_a_size_that_clients_take() -> None:
    """A message is at most 64 KiB, unless one write is larger; no write is cut in two."""
    link = WebLink()
    peer = link.open("binary")
    writes = [b"a" * 40_000, b"b" * 40_000, b"c" * 10, b"d" * 200_000, b"e", b"f"]
    for each in writes:
        link.inner[0].endpoint.write(each)
    link.tick()
    assert [each.payload for each in peer.frames()] == [
        writes[0],
        writes[1] + writes[2],
        writes[3],
        writes[4] + writes[5],
    ]


def test_each_write_is_a_text_message() -> None:
    """A text subprotocol says where its messages end."""
    link = WebLink()
    peer = link.open("text")
    link.inner[0].endpoint.write(b"one")
    link.inner[0].endpoint.write("zwö".encode())
    link.tick()
    assert peer.frames() == [Frame(TEXT, b"one"), Frame(TEXT, "zwö".encode())]


def test_text_messages_are_received_whole_and_one_by_one() -> None:
    """In one read or in many pieces: a call for each."""
    link = WebLink()
    peer = link.open("text")
    peer.send(
        frame(TEXT, b"one")
        + frame(TEXT, b"two")
        + frame(TEXT, b"th", fin=False)
        + frame(CONTINUATION, b"ree")
        + frame(TEXT, b"four")
    )
    assert link.inner[0].received == [b"one", b"two", b"three", b"four"]


def test_binary_messages_are_a_stream() -> None:
    """Messages of one read are received as one; parts are passed on before their frame is whole."""
    link = WebLink()
    peer = link.open("binary")
    peer.send(frame(BINARY, b"one") + frame(BINARY, b"two") + frame(BINARY, b"three")[:8])
    assert link.inner[0].received == [b"onetwoth"]
    peer.send(frame(BINARY, b"three")[8:] + frame(BINARY, b"x" * 300))
    assert link.inner[0].received[1:] == [b"ree" + b"x" * 300]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_the_wrong_kind_of_message_is_refused(opcode: int, fin: bool) -> None:
    """1003 (7.4.1), and what came before it counts."""
    right, wrong = (BINARY, TEXT) if opcode == TEXT else (TEXT, BINARY)
    link = WebLink()
    peer = link.open("binary" if right == BINARY else "text")
    peer.send(frame(right, b"good") + frame(wrong, b"bad", fin=fin) + frame(right, b"late"))
    assert link.inner[0].received == [b"good"]
    frames = peer.frames()
    assert [each.opcode for each in frames] == [right, CLOSE]
    assert frames[-1].code == 1003
    assert "messages" in link.refusals()[0]


def test_unmasked_frames_are_refused() -> None:
    """5.1: a server fails the connection of a client that does not mask."""
    for subprotocol, opcode in (("binary", BINARY), ("text", TEXT)):
        link = WebLink()
        peer = link.open(subprotocol)
        peer.send(frame(opcode, b"hello", mask=None))
        assert link.inner[0].received == []
        assert peer.frames()[0].code == 1002


@pytest.mark.parametrize(
    ("payload", "length_size"), [(b"short", 2), (b"short", 8), (b"x" * 200, 8), (b"", 2)]
)
def test_superfluous_bytes_of_length_are_refused(payload: bytes, length_size: int) -> None:
    """5.2: the length has the least bytes that it needs."""
    for subprotocol, opcode in (("binary", BINARY), ("text", TEXT)):
        link = WebLink()
        peer = link.open(subprotocol)
        peer.send(frame(opcode, payload, length_size=length_size))
        assert link.inner[0].received == []
        assert peer.frames()[0].code == 1002


def test_every_mask_and_length_is_undone() -> None:
    """Payloads come out as they went in, with any mask, at each length about the borders."""
    link = WebLink()
    peer = link.open("binary")
    expected = b""
    for size in (0, 1, 2, 3, 4, 5, 7, 8, 124, 125, 126, 127, 128, 255, 256, 65_535, 65_536):
        for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x03\x04", b"\0\0\0\1"):
            payload = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
            expected += payload
            peer.send(frame(BINARY, payload, mask=mask))
    assert b"".join(link.inner[0].received) == expected


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2_000_000, 2**31, 2**62])
def test_a_frame_over_the_limit_is_refused_by_its_header(length: int) -> None:
    """1009 before any of its payload has come."""
    for subprotocol, opcode in (("binary", BINARY), ("text", TEXT)):
        link = WebLink(limits=Limits(websocket_message_max_bytes=1_000_000))
        peer = link.open(subprotocol)
        peer.send(*byte_by_byte(frame(opcode, length=length)))
        assert peer.frames()[0].code == 1009
        assert "max_bytes = " in link.refusals()[0]


def test_text_fragments_count_together() -> None:
    """A text message is held in memory until it is whole, so all of it has a limit."""
    link = WebLink(limits=Limits(websocket_message_max_bytes=1024))
    peer = link.open("text")
    peer.send(frame(TEXT, b"x" * 1024), frame(TEXT, b"x" * 600, fin=False))
    peer.send(frame(CONTINUATION, b"x" * 424, fin=False), frame(CONTINUATION, b"x"))
    assert link.inner[0].received == [b"x" * 1024]
    assert peer.frames()[-1].code == 1009


def test_the_first_text_message_is_small() -> None:
    """Who has not said yet who they are costs no more than connect_size_max_bytes."""
    link = WebLink(limits=Limits(connect_size_max_bytes=300))
    peer = link.open("text")
    peer.send(frame(TEXT, b"x" * 301))
    assert peer.frames()[-1].code == 1009
    peer = link.open("text")
    peer.send(frame(TEXT, b"x" * 300), frame(TEXT, b"x" * 3000))
    assert link.inner[1].received == [b"x" * 300, b"x" * 3000]


def test_pings_of_a_client_that_reads_nothing_are_not_answered() -> None:
    """What it does not take does not pile up."""
    link = WebLink()
    peer = link.open("text")
    peer.endpoint.congested = True
    peer.send(frame(PING, b"x") * 100)
    assert peer.frames() == []
    peer.endpoint.congested = False
    peer.send(frame(PING, b"y"))
    assert peer.frames() == [Frame(PONG, b"y")]


def test_an_idle_connection_keeps_no_decoder() -> None:
    """After every whole message, of whatever kind, wsproto's decoder is gone again."""
    link = WebLink()
    peer = link.open("text")
    connection = peer.endpoint.protocol
    for data in (
        frame(PING, b"x"),
        frame(PONG),
        frame(TEXT, b"x"),
        frame(TEXT, b"x", fin=False) + frame(CONTINUATION),
    ):
        peer.send(*byte_by_byte(data))
        assert connection._decoder is None
        peer.send(data)
        assert connection._decoder is None


# -- keep-alive -----------------------------------------------------------------------------------

KEEP = Limits(websocket_ping_interval_s=30, websocket_ping_timeout_s=20)


def test_a_silent_client_is_pinged_and_closed_when_it_does_not_answer() -> None:
    """The ping comes after the interval, the end after the timeout, and the carried one knows."""
    link = WebLink(limits=KEEP)
    peer = link.open("text")
    link.advance(29)
    assert peer.frames() == []
    link.advance(1)
    assert peer.frames() == [Frame(PING, b"")]
    link.advance(19)
    assert not peer.is_closed()
    link.advance(1)
    (close,) = peer.frames()
    assert close.code == 1008
    assert b"websocket_ping_timeout_s = 20" in close.payload
    assert link.inner[0].events[-1].startswith("lost: no pong")


def test_any_answer_keeps_a_client() -> None:
    """A pong, or whatever else comes, shows that somebody is there."""
    link = WebLink(limits=KEEP)
    peer = link.open("text")
    for answer in (frame(PONG), frame(TEXT, b"x"), frame(PONG, b"unsolicited")):
        link.advance(35)
        assert [each.opcode for each in peer.frames()] == [PING]
        peer.send(answer)
        peer.frames()
        link.advance(20)
        assert not peer.is_closed()
        peer.frames()
        peer.send(frame(PONG))


def test_a_client_that_speaks_is_not_pinged() -> None:
    """The interval counts from what came last."""
    link = WebLink(limits=KEEP)
    peer = link.open("binary")
    for _ in range(10):
        link.advance(29)
        peer.send(frame(PONG))
    assert peer.frames() == []


def test_a_client_that_is_not_read_is_not_blamed() -> None:
    """While the carried protocol pauses, silence is the server's own doing."""
    link = WebLink(limits=KEEP)
    peer = link.open("text")
    link.inner[0].endpoint.pause_reading()
    assert peer.is_paused()
    link.advance(200)
    assert not peer.is_closed()
    link.inner[0].endpoint.resume_reading()
    assert not peer.is_paused()
    peer.frames()
    link.advance(29)
    assert peer.frames() == []


# -- the end --------------------------------------------------------------------------------------


def test_the_carried_protocol_closes_with_a_handshake() -> None:
    """What it wrote goes first, then Close with the reason; it hears of the end once."""
    link = WebLink()
    peer = link.open("text")
    link.inner[0].endpoint.write(b"farewell")
    link.inner[0].endpoint.close("that was all")
    link.inner[0].endpoint.write(b"too late")
    link.tick()
    message, close = peer.frames()
    assert message.payload == b"farewell"
    assert (close.code, close.payload[2:]) == (1000, b"that was all")
    assert peer.endpoint.lingers
    peer.lose("it has ended")
    assert link.inner[0].events == ["connected", "lost: it has ended"]


def test_a_long_reason_is_cut_where_a_character_ends() -> None:
    """A control frame has 125 bytes (5.5), and its reason is UTF-8."""
    link = WebLink()
    peer = link.open("text")
    link.inner[0].endpoint.close("ä" * 100)
    (close,) = peer.frames()
    assert len(close.payload) <= 125
    assert close.payload[2:].decode() == "ä" * 61


def test_the_client_closes() -> None:
    """The answer has its code; the carried protocol hears at once, and once."""
    link = WebLink()
    peer = link.open("text")
    peer.send(frame(TEXT, b"last words") + frame(CLOSE, b"\x03\xe9going") + frame(TEXT, b"late"))
    assert link.inner[0].received == [b"last words"]
    assert [each.opcode for each in peer.frames()] == [TEXT, CLOSE]
    assert link.inner[0].events[1:] == [
        "lost: the client closed the WebSocket with code 1001 going"
    ]
    peer.lose()
    assert len(link.inner[0].events) == 2
    assert link.refusals() == []


def test_a_connection_that_breaks_tells_the_carried_protocol() -> None:
    """Without a Close, too, and the end of the stream before it."""
    link = WebLink()
    peer = link.open("text")
    peer.endpoint.protocol.end_of_stream()
    peer.lose("broken")
    assert link.inner[0].events == ["connected", "end of stream", "lost: broken"]
    link.advance(1000)  # no timer is left that would ping
    assert peer.frames() == []


def test_room_for_more_is_passed_on() -> None:
    """The carried protocol learns that congestion has ended, and sees it itself."""
    link = WebLink()
    peer = link.open("text")
    peer.endpoint.congested = True
    assert link.inner[0].endpoint.congested
    peer.endpoint.congested = False
    peer.endpoint.protocol.writable()
    assert link.inner[0].events[-1] == "writable"
    assert link.inner[0].endpoint.tls is None
