"""Whatever bytes come: messages and one Close, never an exception, in bounded memory.

The frames of real clients are made by wsproto, whose server is also asked what it makes of the same
bytes: ours reads whole messages by itself, and the two have to agree.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from ganglion.broker.core.limits import Limits
from tests.protocols.web_link import BINARY, CLOSE, PONG, TEXT, WebLink, frame

LIMITS = Limits(websocket_message_max_bytes=2000, connect_size_max_bytes=2000)

frames = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=200) | st.text(max_size=60).map(str.encode),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 0, 1, 4]),
    mask=st.sampled_from([b"\1\2\3\4", b"\0\0\0\0", b"\xff\0\xff\0", None]),
)
mild_frames = st.builds(
    frame,
    st.sampled_from([0, 1, 1, 1, 2, 9, 10]),
    st.text(max_size=200).map(str.encode),
    fin=st.sampled_from([True, True, False]),
    mask=st.binary(min_size=4, max_size=4),
)


def cut(data: bytes, seed: int) -> list[bytes]:
    """The data in pieces of any sizes."""
    dice = random.Random(seed)
    pieces: list[bytes] = []
    while data:
        size = dice.choice((1, 2, 5, 40, 1000))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def judge_by_wsproto(data: bytes) -> tuple[list[Event], int | None]:
    """What wsproto's server makes of these bytes: its events, and the code of the end."""
    server = Connection(ConnectionType.SERVER)
    server.receive_data(data)
    events: list[Event] = []
    for event in server.events():
        if isinstance(event, CloseConnection):
            return events, int(event.code)
        events.append(event)
    return events, None


@pytest.mark.slow
@given(
    st.lists(frames | mild_frames, max_size=12).map(b"".join) | st.binary(max_size=300),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_any_bytes(data: bytes, is_text: bool, seed: int) -> None:
    """Invariant: no exception; at most one Close, and it is the last; nothing is kept beyond it."""
    link = WebLink(limits=LIMITS)
    peer = link.open("text" if is_text else "binary")
    peer.send(*cut(data, seed))
    came = peer.frames()
    closes = [number for number, each in enumerate(came) if each.opcode == CLOSE]
    assert len(closes) == peer.is_closed()
    if closes:
        assert closes == [len(came) - 1]
    for each in came:
        assert each.opcode in (TEXT if is_text else BINARY, PONG, CLOSE)
    assert len(link.inner[0].received) <= len(data)
    peer.lose()
    assert [each.startswith("lost") for each in link.inner[0].events].count(True) == 1


@pytest.mark.slow
@given(
    st.lists(frames | mild_frames | mild_frames, max_size=15).map(b"".join),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_it_agrees_with_wsproto(data: bytes, is_text: bool, seed: int) -> None:
    """The same messages, the same pongs, and an end where wsproto has one, for the same reason."""
    events, code = judge_by_wsproto(data)
    kind = TextMessage if is_text else BytesMessage
    wrong = BytesMessage if is_text else TextMessage
    for number, event in enumerate(events):
        if isinstance(event, wrong):  # ours ends here
            events, code = events[:number], 1003
            break
    link = WebLink(limits=LIMITS)
    peer = link.open("text" if is_text else "binary")
    peer.send(*cut(data, seed))
    came = peer.frames()
    pings = [bytes(each.payload) for each in events if isinstance(each, Ping)]
    assert [each.payload for each in came if each.opcode == PONG] == pings
    if is_text:
        messages: list[str] = [""]
        for event in events:
            if isinstance(event, TextMessage):
                messages[-1] += event.data
                if event.message_finished:
                    messages.append("")
        assert link.inner[0].received == [each.encode() for each in messages[:-1]]
    else:
        content = b"".join(bytes(each.data) for each in events if isinstance(each, BytesMessage))
        assert b"".join(link.inner[0].received) == content
    assert all(isinstance(each, kind | Ping | Pong) for each in events)
    ours = [each.code for each in came if each.opcode == CLOSE]
    if code is None:
        assert ours == []
    elif ours == [1003]:
        assert code in (1002, 1003, 1007)  # wsproto may see first that the text is no UTF-8
    else:
        assert ours == [code]
