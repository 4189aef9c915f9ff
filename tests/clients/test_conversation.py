"""The client's side of a connection, sans-I/O: ids, answers, what is no answer, what is no node."""

from typing import Any

import pytest

from ganglion.clients.conversation import Answer, Conversation
from ganglion.clients.errors import ConnectionLost, Refused
from ganglion.protocols.native.frames import pack
from ganglion.protocols.native.operations import Operation


def received(conversation: Conversation, *frames: Any) -> list[Any]:
    """What frames of a node say, whichever way their bytes are cut."""
    found: list[Any] = []
    for byte in b"".join(pack(frame) for frame in frames):
        found += conversation.receive(bytes([byte]))
    return found


def test_requests_are_counted_and_trimmed() -> None:
    """Ids ascend from 1, and elements that are nil at the end are left out."""
    conversation = Conversation()
    assert conversation.hello({}) == (1, pack((32, 1, 1, {})))
    assert conversation.request(Operation.QUEUE_DECLARE, "q", None) == (2, pack((45, 2, "q")))
    assert conversation.request(Operation.PUBLISH, "t", b"", None, None)[0] == 3
    assert conversation.notice(Operation.GOODBYE, None) == pack((16,))


def test_one_confirmation_answers_a_row_of_publishes() -> None:
    """Publishes from first to last that have no answer yet get its counts, others do not."""
    conversation = Conversation()
    ids = [conversation.request(Operation.PUBLISH, "t", b"")[0] for _ in range(4)]
    other, _ = conversation.request(Operation.ACK, 1, 1)
    refused = received(conversation, (12, ids[1], "full", "no room"))
    assert [each.id for each in refused] == [ids[1]]
    with pytest.raises(Refused, match="no room"):
        _ = refused[0].result
    answers = received(conversation, (13, ids[0], ids[2], 1, 2, 0), (11, other))
    assert [(each.id, each.values) for each in answers] == [
        (ids[0], (1, 2, 0)),
        (ids[2], (1, 2, 0)),
        (other, ()),
    ]
    (last,) = received(conversation, (13, ids[3], ids[3], 0, 0, 0))
    assert last.id == ids[3]


def test_a_reply_answers_a_request_and_not_a_gathering() -> None:
    """A gathering gets replies one by one, and ends with an ok."""
    conversation = Conversation()
    single, _ = conversation.request(Operation.REQUEST, "t", b"")
    many, _ = conversation.request(Operation.GATHER, "t", b"")
    answer, reply, end = received(
        conversation, (6, single, b"one"), (6, many, b"two"), (11, many, {"replies": 1})
    )
    assert answer == Answer(single, Operation.REPLY, (b"one",))
    assert reply == (6, many, b"two")
    assert end.result == {"replies": 1}


def test_pings_are_answered_and_other_frames_given_out() -> None:
    """A pong waits to be sent; messages come as they are."""
    conversation = Conversation()
    assert received(conversation, (14,), (1, "t", b"x"), (31, "later")) == [
        (1, "t", b"x"),
        (31, "later"),
    ]
    assert conversation.replies == [pack((15,))]


def test_an_error_that_ends_the_connection_is_raised() -> None:
    """With id 0 and a fatal code; one that answers hello is the answer."""
    conversation = Conversation()
    number, _ = conversation.hello({})
    (answer,) = received(conversation, (12, number, "not_authenticated", "who are you?"))
    assert answer.error is not None
    assert answer.error.code == "not_authenticated"
    with pytest.raises(Refused, match="too slow") as caught:
        received(conversation, (12, 0, "keep_alive", "too slow", {"a": 1}))
    assert caught.value.details == {"a": 1}


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x02\x00\x00", b"\xc1"]
)
def test_what_is_no_node_is_told(data: bytes) -> None:
    """Another protocol on the port is named as such at once."""
    with pytest.raises(ConnectionLost, match="no native listener"):
        list(Conversation().receive(data))


def test_a_broken_frame_is_told() -> None:
    """What is no frame after the greeting says so."""
    conversation = Conversation()
    received(conversation, (11, 1, {}))
    with pytest.raises(ConnectionLost, match="cannot be read"):
        list(conversation.receive(b"\xc1"))
