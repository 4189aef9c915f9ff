"""The properties of a message as the native protocol has them: a map by name.

A member that is not known is ignored, as is one that is nil. Clients use this too.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, Final, cast

from ganglion import GanglionError
from ganglion.broker.core.message import MessageProperties
from ganglion.protocols.native.frames import bytes_of, is_array, is_map

__all__ = ["HEADERS_MAX", "InvalidProperty", "from_map", "is_number", "to_map"]

HEADERS_MAX: Final = 256
"""Of one message, as everywhere in the node (`Limits.properties_per_packet_max`)."""

_SECONDS_MAX = 10 * 366 * 86_400.0  # ten years: what is meant to be longer is a mistake
_PRIORITY_MAX = 255


class InvalidProperty(GanglionError):
    """A property has a value that it cannot have; the message names it."""


def to_map(about: MessageProperties | None, *, without_key: bool = False) -> dict[str, Any]:
    """The members for what is known of a message; empty if there is nothing."""
    if about is None:
        return {}
    members: dict[str, Any] = {}
    if about.key is not None and not without_key:
        members["key"] = about.key
    if about.user_properties:
        headers = dict(about.user_properties)
        repeats = len(headers) < len(about.user_properties)
        members["headers"] = list(about.user_properties) if repeats else headers
    if about.content_type is not None:
        members["content_type"] = about.content_type
    if about.payload_is_text is not None:
        members["text"] = about.payload_is_text
    if about.delay_s is not None:
        members["delay_s"] = about.delay_s
    if about.priority is not None:
        members["priority"] = about.priority
    if about.message_id is not None:
        members["message_id"] = about.message_id
    if about.response_topic is not None:
        members["reply_to"] = about.response_topic
    if about.correlation_data is not None:
        members["correlation"] = about.correlation_data
    return members


def from_map(members: object) -> MessageProperties | None:
    """What the members say of a message; None: nothing. Raises `InvalidProperty`."""
    if not is_map(members):
        raise InvalidProperty("properties must be a map")
    found: dict[str, Any] = {}
    for name, value in members.items():
        known = _KNOWN.get(name)
        if known is not None and value is not None:
            field, check = known
            found[field] = check(name, value)
    return MessageProperties(**found) if found else None


def is_number(value: object, most: float = _SECONDS_MAX) -> bool:
    """Whether this is a finite number from 0 on."""
    if type(value) is not int and type(value) is not float:
        return False
    return isfinite(value) and 0 <= value <= most


def _text(name: str, value: object) -> str:
    if type(value) is not str or "\0" in value:
        raise InvalidProperty(f"property {name} must be text")
    return value


def _flag(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise InvalidProperty(f"property {name} must be true or false")
    return value


def _seconds(name: str, value: object) -> float:
    if not is_number(value):
        raise InvalidProperty(f"property {name} must be a number of seconds from 0")
    return cast("float", value)


def _priority(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= _PRIORITY_MAX:
        raise InvalidProperty(f"property {name} must be a whole number from 0 to {_PRIORITY_MAX}")
    return value


def _bytes(name: str, value: object) -> bytes:
    found = bytes_of(value)
    if found is None:
        raise InvalidProperty(f"property {name} must be bytes")
    return found


def _headers(name: str, value: object) -> tuple[tuple[str, str], ...]:
    pairs: Sequence[object]
    if is_map(value):
        pairs = list(value.items())
    elif is_array(value):
        pairs = value
    else:
        raise InvalidProperty(f"property {name} must be a map, or an array of pairs")
    if len(pairs) > HEADERS_MAX:
        raise InvalidProperty(f"property {name} has over {HEADERS_MAX} members")
    found: list[tuple[str, str]] = []
    for pair in pairs:
        both = pair if is_array(pair) else ()
        if len(both) != 2:
            raise InvalidProperty(f"property {name} must have pairs of name and value")
        found.append((_text(name, both[0]), _text(name, both[1])))
    return tuple(found)


_KNOWN: Final[dict[str, tuple[str, Callable[[str, object], object]]]] = {
    "key": ("key", _text),
    "headers": ("user_properties", _headers),
    "content_type": ("content_type", _text),
    "text": ("payload_is_text", _flag),
    "delay_s": ("delay_s", _seconds),
    "priority": ("priority", _priority),
    "message_id": ("message_id", _text),
    "reply_to": ("response_topic", _text),
    "correlation": ("correlation_data", _bytes),
}
