"""Values to payloads and back: bytes, text, JSON, MessagePack, or what a program brings along.

Bytes and text go as they are. Everything else goes as JSON, or as MessagePack with `MSGPACK`:
whatever msgspec can write, which is dicts, lists, numbers, dates, UUIDs, enums, dataclasses, attrs
classes and msgspec structs. The content type travels with the message, so that a receiver needs to
know none of this: it decodes by it, and to a type when it names one.
"""

from typing import Any, Final, Protocol, TypeVar, cast, overload

import msgspec

from ganglion.clients.errors import BadOption, NotDecodable

__all__ = ["JSON", "MSGPACK", "Codec", "ValueCodec", "decoded"]

_T = TypeVar("_T")

_JSON_TYPE: Final = "application/json"
_MSGPACK_TYPE: Final = "application/msgpack"


class Codec(Protocol):
    """What a program brings along to write and read values in a way of its own."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        """The payload, and its content type; None: nothing is said of it."""
        ...

    def decode(self, payload: bytes, content_type: str | None, wanted: Any) -> Any:
        """The value; ``wanted`` is the type that the reader asked for, `Any` when none.

        Raise ValueError when the payload is not that.
        """
        ...


class ValueCodec:
    """The codec of everybody who has none: see the head of this module."""

    def __init__(self, *, prefers_msgpack: bool = False) -> None:
        self._content_type = _MSGPACK_TYPE if prefers_msgpack else _JSON_TYPE
        self._write = msgspec.msgpack.encode if prefers_msgpack else msgspec.json.encode

    def encode(self, value: object) -> tuple[bytes, str | None]:
        """The payload and its content type. Raises `BadOption` for what cannot be written."""
        if isinstance(value, bytes):
            return value, None
        if isinstance(value, str):
            return value.encode(), None
        if isinstance(value, (bytearray, memoryview)):
            return bytes(cast("bytearray", value)), None
        try:
            return self._write(value), self._content_type
        except (TypeError, ValueError, RecursionError) as error:
            raise BadOption(f"a payload cannot be a {type(value).__name__}: {error}") from None

    def decode(self, payload: bytes, content_type: str | None, wanted: Any) -> Any:
        """The value by its content type, and checked against the type that is wanted."""
        if wanted is bytes:
            return payload
        if wanted is str:
            return payload.decode()
        kind = (content_type or "").partition(";")[0].strip().lower()
        if kind in (_MSGPACK_TYPE, "application/x-msgpack"):
            return msgspec.msgpack.decode(payload, type=wanted)
        if wanted is not Any or kind == _JSON_TYPE or kind.endswith("+json"):
            return msgspec.json.decode(payload, type=wanted)
        return payload.decode() if kind.startswith("text/") else payload


JSON: Final[Codec] = ValueCodec()
"""Values as JSON; the default."""
MSGPACK: Final[Codec] = ValueCodec(prefers_msgpack=True)
"""Values as MessagePack: smaller, and faster for programs."""


@overload
def decoded(
    codec: Codec, payload: bytes, content_type: str | None, wanted: type[_T], what: str
) -> _T: ...
@overload
def decoded(
    codec: Codec, payload: bytes, content_type: str | None, wanted: Any, what: str
) -> Any: ...
def decoded(codec: Codec, payload: bytes, content_type: str | None, wanted: Any, what: str) -> Any:
    """What a payload says. Raises `NotDecodable`, which names ``what`` it is the payload of."""
    try:
        return codec.decode(payload, content_type, wanted)
    except (ValueError, TypeError, RecursionError) as error:  # msgspec's are ValueErrors
        name = "" if wanted is Any else f" as {getattr(wanted, '__name__', wanted)}"
        raise NotDecodable(f"cannot read the payload of {what}{name}: {error}") from error
