"""What a program sends and gets: small frozen objects.

`Message` is what came from a topic, a queue, a stream or as an answer; `MessageOptions` are what
may be said of one that is sent, under the names of `docs/protocol.md`; a `Receipt` is what the node
says of one that it took. `properties_of` makes the map that travels.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, TypeVar, overload

from msgspec import Struct

from ganglion.clients.codecs import JSON, Codec, decoded
from ganglion.clients.errors import BadOption
from ganglion.clients.tracing import outgoing_headers
from ganglion.protocols.native.frames import ELEMENTS_MAX, Frame

__all__ = [
    "MEMBERS_MAX",
    "Message",
    "MessageOptions",
    "Receipt",
    "Record",
    "column",
    "is_large",
    "properties_in",
    "properties_of",
]

_T = TypeVar("_T")

_NOTHING: Final[Mapping[str, Any]] = {}


class MessageOptions(TypedDict, total=False):
    """What may be said of a message that is sent."""

    key: str
    """What it is about: order in queues and streams, compaction, versions."""
    headers: Mapping[str, str]
    """For the application."""
    content_type: str
    """In place of the one that the codec says."""
    expires_s: float
    """Seconds after which nobody needs it."""
    delay_s: float
    """Seconds for which queues keep it back."""
    priority: int
    """0 to 255; for queues with priorities, higher first."""
    message_id: str
    """The publisher's name for it: a queue with deduplication takes it once."""
    reply_to: str
    """Topic for replies."""
    correlation: bytes
    """For replies."""
    retain: bool
    """Keep it as the topic's last value. An empty payload deletes that."""


MEMBERS_MAX: Final = 256
"""Of any map that a client sends: ``properties_max`` in section 6 of `docs/protocol.md`."""

_OPTIONS: Final = frozenset(MessageOptions.__annotations__)


def properties_of(about: MessageOptions, content_type: str | None) -> dict[str, Any] | None:
    """The map that travels with a message; None: there is nothing to say.

    Raises `BadOption` for a name that is none, which a node would ignore without a word, and for
    more headers than a map may have members: a node ends the connection for that.
    """
    traced = outgoing_headers()
    if not about and content_type is None and traced is None:
        return None
    if not about.keys() <= _OPTIONS:
        unknown = ", ".join(sorted(about.keys() - _OPTIONS))
        raise BadOption(f"there is no option {unknown}; there are {', '.join(sorted(_OPTIONS))}")
    properties: dict[str, Any] = {k: v for k, v in about.items() if v is not None}
    if content_type is not None:
        properties.setdefault("content_type", content_type)
    if traced is not None:
        properties["headers"] = {**traced, **properties.get("headers", _NOTHING)}
    if len(properties.get("headers", _NOTHING)) > MEMBERS_MAX:
        raise BadOption(f"there are over {MEMBERS_MAX} headers: put more into the payload")
    return properties or None


def column(properties: Sequence[_T]) -> _T | Sequence[_T]:
    """The properties of many messages as they travel: one for all where they are the same."""
    first = properties[0]
    return first if all(each == first for each in properties) else properties


def is_large(messages: int, about: MessageOptions) -> bool:
    """Whether so many with properties of their own may be more than a frame can have."""
    members = len(_OPTIONS) + len(about.get("headers") or _NOTHING) + 8
    return messages * members > ELEMENTS_MAX


def properties_in(frame: Frame, place: int) -> Mapping[str, Any]:
    """The properties that a frame has in this place, where it may also end."""
    return (frame[place] or _NOTHING) if len(frame) > place else _NOTHING


class Message(Struct, frozen=True):
    """Something that was published, appended, asked or answered."""

    topic: str
    payload: bytes
    properties: Mapping[str, Any] = _NOTHING
    """As they travelled: see `docs/protocol.md`. Those of use to programs are attributes here."""
    codec: Codec = JSON

    @overload
    def decode(self) -> Any: ...
    @overload
    def decode(self, wanted: type[_T]) -> _T: ...
    def decode(self, wanted: Any = Any) -> Any:
        """The value that was sent; with a type, checked against it and made into it.

        Without a type and without a content type the payload itself. Raises `NotDecodable`.
        """
        return decoded(
            self.codec, self.payload, self.properties.get("content_type"), wanted, self.topic
        )

    @property
    def text(self) -> str:
        """The payload as text; bytes that are not UTF-8 become U+FFFD."""
        return self.payload.decode(errors="replace")

    def json(self) -> Any:
        """The JSON value of the payload, whatever its content type. Raises `NotDecodable`."""
        return decoded(JSON, self.payload, "application/json", Any, self.topic)

    @property
    def key(self) -> str | None:
        """What it is about."""
        return self.properties.get("key")

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the application. The last one of those that repeat: `properties` has all."""
        return dict(self.properties.get("headers", _NOTHING))

    @property
    def content_type(self) -> str | None:
        """What the payload is."""
        return self.properties.get("content_type")

    @property
    def message_id(self) -> str | None:
        """The publisher's name for it."""
        return self.properties.get("message_id")

    @property
    def expires_s(self) -> float | None:
        """Seconds that it was still of use for when the node sent it."""
        return self.properties.get("expires_s")

    @property
    def reply_to(self) -> str | None:
        """The topic for replies."""
        return self.properties.get("reply_to")

    @property
    def correlation(self) -> bytes | None:
        """For replies."""
        return self.properties.get("correlation")

    @property
    def retained(self) -> bool:
        """Whether it is a last value that the node had kept, and not new."""
        return self.properties.get("retained") is True

    def __repr__(self) -> str:
        """Topic, the beginning of the payload, and what else is known."""
        payload = self.payload if len(self.payload) <= 60 else self.payload[:57] + b"..."
        about = f", {dict(self.properties)!r}" if self.properties else ""
        return f"{type(self).__name__}({self.topic!r}, {payload!r}{about})"


class Record(Message, frozen=True):
    """A message in a stream."""

    sequence: int = 0
    """Its place in the stream: 1, 2, 3, …"""
    time_s: float = 0.0
    """When it was appended, Unix time in seconds."""

    @property
    def time(self) -> datetime:
        """When it was appended, in UTC."""
        return datetime.fromtimestamp(self.time_s, UTC)


class Receipt(Struct, frozen=True):
    """A message was taken, and is on disk where one of its targets is durable.

    The counts are None where the message had been taken before a connection was lost.
    """

    subscribers: int | None
    """Subscriptions that it was for. A group counts as one, and so do all of a client that drop."""
    queues: int | None
    streams: int | None
