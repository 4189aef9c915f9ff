"""A message: what was published, the same whatever protocol brought it or takes it away.

A `Message` does not change once it is routed, so that all its receivers share it and every wire
form is encoded once (`Message.forms` belongs to the protocols and is keyed by them). What differs
from one subscription to another (the QoS, the retain flag, subscription identifiers) is in its
`Terms`, made once per route; a delivery is the pair of both.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from ganglion.broker.core.backlog import Chunk
    from ganglion.broker.core.router import SharedGroup
    from ganglion.broker.core.sessions import Source

__all__ = ["PLAIN_TERMS", "Delivery", "Message", "MessageProperties", "SharedPayload", "Terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageProperties:
    """What a publisher says about the payload; forwarded unaltered (MQTT 5.0 section 3.3.2.3)."""

    payload_is_text: bool | None = None
    """Payload Format Indicator: True for UTF-8 text, False for bytes, None when not said."""
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    key: str | None = None
    """What it is about: a queue or stream that is ordered by key keeps order among equal keys."""
    message_id: str | None = None
    """Its publisher's name for it: a queue with a deduplication window takes it once."""
    priority: int | None = None
    """From 0; a queue with priorities gives out what has a higher one first."""
    delay_s: float | None = None
    """A queue keeps it back for so long, in seconds."""

    def size_bytes(self) -> int:
        """What they count against limits in bytes: all that the publisher chose the size of."""
        size = len(self.key or "") + len(self.message_id or "")
        for text in (self.content_type, self.response_topic, self.correlation_data):
            size += len(text or "")
        for name, value in self.user_properties:
            size += _USER_PROPERTY_BYTES + len(name) + len(value)
        return size


class SharedPayload:
    """What is known of a message that is stored once for several backlogs (`Payloads`)."""

    __slots__ = ("is_changed", "is_recorded", "number", "uses")

    def __init__(self, number: int) -> None:
        self.number = number
        self.uses = 0
        """In how many backlogs it waits."""
        self.is_recorded = False
        self.is_changed = False
        """Whether `uses` differs from what was recorded last."""


class Message(Struct, weakref=True, eq=False):
    """An application message on its way through the node. Immutable once routed.

    A `Struct` is made in a fifth of the time that an ordinary `__init__` takes.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: MessageProperties | None = None
    expires_at: float | None = None
    """When it is of no use any more, in seconds of the node's monotonic clock; None: never."""
    durable: bool = False
    """Whether routing put it anywhere that has to be committed before it is acknowledged."""
    shared: SharedPayload | None = None
    """Set when it is stored once for several backlogs."""
    forms: dict[int, tuple[bytes, bytes]] | None = None
    """Encodings by wire form: the bytes before and after a packet identifier."""

    def size_bytes(self) -> int:
        """What it counts against limits in bytes: all that its publisher chose the size of."""
        size = len(self.topic) + len(self.payload)
        if self.properties is not None:
            size += self.properties.size_bytes()
        return size


_USER_PROPERTY_BYTES = 160  # a tuple and two strings, empty


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms one kind of receiver gets messages: what its subscriptions asked for."""

    qos: int
    retain: bool = False
    identifiers: tuple[int, ...] = ()
    """Identifiers of all its matching subscriptions (MQTT 5.0 section 3.3.2.3.8)."""
    group: "SharedGroup | None" = None
    """The shared subscription a message was taken from; it goes back there if not acknowledged."""
    source: "Source | None" = None
    """The queue or stream it was taken from, which is told how it was acknowledged."""
    attempts: int = 0
    """How often a queue delivered it in vain before it came to the place where it is now."""


PLAIN_TERMS = (Terms(0), Terms(1), Terms(2))
"""By QoS, what nearly every receiver has: shared, so that a delivery costs no object of its own."""

Delivery = tuple[Message, Terms, int, "Chunk | None"]
"""A message on its way to one receiver, its number there, and the part of the receiver's backlog
that it is recorded in; 0 and None when it has no record."""
