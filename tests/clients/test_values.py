"""Values: what each codec makes of what, what cannot be read, what messages tell of themselves."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from ganglion.clients.codecs import JSON, MSGPACK, Codec
from ganglion.clients.errors import BadOption, NotDecodable
from ganglion.clients.mesh import connect
from ganglion.clients.messages import Message, Record
from ganglion.testing import RunningBroker
from tests.clients.backends import under_each


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: int


class Place(msgspec.Struct):
    """A struct."""

    name: str
    at: Point


PLACE = Place("here", Point(1, 2))


def carried(codec: Codec, value: object) -> Message:
    """A message with this value, as a receiver gets it."""
    payload, content_type = codec.encode(value)
    properties = {} if content_type is None else {"content_type": content_type}
    return Message("t", payload, properties, codec)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize("value", [None, True, 7, 1.5, [1, "a"], {"a": [None]}, {}])
def test_plain_values_come_back_without_a_type(codec: Codec, value: object) -> None:
    """The content type says how to read them."""
    assert carried(codec, value).decode() == value


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "value", [Point(1, 2), PLACE, datetime(2026, 1, 2, tzinfo=UTC), {"a": Point(0, 0)}], ids=repr
)
def test_typed_values_come_back_with_their_type(codec: Codec, value: Any) -> None:
    """Dataclasses, structs and what msgspec knows."""
    kind: Any = dict[str, Point] if isinstance(value, dict) else type(value)
    assert carried(codec, value).decode(kind) == value


def test_bytes_and_text_go_as_they_are() -> None:
    """By any codec, and without a content type."""
    for codec in (JSON, MSGPACK):
        for value in (b"\xff", bytearray(b"\xff"), memoryview(b"\xff")):
            assert codec.encode(value) == (b"\xff", None)
        assert codec.encode("é") == ("é".encode(), None)
    message = carried(JSON, "é")
    assert message.decode() == "é".encode()
    assert message.decode(str) == message.text == "é"
    assert message.decode(bytes) == message.payload
    assert Message("t", b"\xff").text == "\ufffd"
    assert Message("t", b"x", {"content_type": "text/plain; charset=utf-8"}).decode() == "x"
    assert Message("t", b"[1]").json() == [1]


@pytest.mark.parametrize(
    ("payload", "content_type", "wanted", "words"),
    [
        (b'{"x":1}', "application/json", Point, "cannot read the payload of t as Point: .*`y`"),
        (b"{", "application/json", Any, "cannot read the payload of t: "),
        (b"\xc1", "application/msgpack", Any, "cannot read the payload of t: "),
        (b"\xff", None, str, "cannot read the payload of t as str: "),
        (b"[" * 100_000, "application/json", Any, "cannot read the payload of t: "),
        (b"\x91" * 100_000, "application/msgpack", Any, "cannot read the payload of t: "),
    ],
    ids=["field", "json", "msgpack", "text", "deep json", "deep msgpack"],
)
def test_what_cannot_be_read_is_told(
    payload: bytes, content_type: str | None, wanted: Any, words: str
) -> None:
    """The message names the topic, the type, and where the payload differs."""
    with pytest.raises(NotDecodable, match=words):
        Message("t", payload, {"content_type": content_type}).decode(wanted)


def test_what_cannot_be_written_is_told() -> None:
    """With its type."""
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    for value in (object(), {1j: 2}, deep):
        with pytest.raises(BadOption, match="a payload cannot be a"):
            JSON.encode(value)


class Shouting:
    """A codec of one's own, which also sees bytes."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        """Bytes in capitals."""
        assert isinstance(value, bytes)
        return value.upper(), "text/loud"

    def decode(self, payload: bytes, content_type: str | None, wanted: Any) -> Any:
        """In small letters; what is not loud cannot be read."""
        if content_type != "text/loud":
            raise ValueError("too quiet")
        return payload.lower()


@under_each
async def test_a_codec_of_ones_own(broker: RunningBroker) -> None:
    """It writes and reads everything; a ValueError of it is `NotDecodable`."""
    async with (
        connect(broker.native_url, codec=Shouting()) as mesh,
        connect(broker.native_url) as other,
        mesh.subscribe("t") as messages,
    ):
        await mesh.publish("t", b"abc")
        message = await anext(messages)
        assert (message.payload, message.decode()) == (b"ABC", b"abc")
        await other.publish("t", b"abc")
        with pytest.raises(NotDecodable, match="too quiet"):
            (await anext(messages)).decode()


def test_a_message_shows_itself() -> None:
    """Shortened, with what is known; it cannot be changed."""
    message = Message("t", b"x" * 100, {"key": "k"})
    assert repr(message) == f"Message('t', {b'x' * 57 + b'...'!r}, {{'key': 'k'}})"
    with pytest.raises(AttributeError):
        message.topic = "u"  # type: ignore[misc]  # that it cannot be is what is tried
    assert message == Message("t", b"x" * 100, {"key": "k"})
    record = Record("t", b"", sequence=3, time_s=0.0)
    assert record.time == datetime(1970, 1, 1, tzinfo=UTC)
    pairs = {"headers": (("a", "1"), ("a", "2"))}
    assert Message("t", b"", pairs).headers == {"a": "2"}
