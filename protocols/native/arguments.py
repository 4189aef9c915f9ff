"""The elements of a frame, checked: a wrong one is answered with what it has to be.

Every function takes the frame, the place of the element and its name; the optional ones have a
default for an element that is left out or nil.
"""

from collections.abc import Mapping
from typing import Any, cast

from ganglion.protocols.native.frames import Frame, bytes_of, is_array, is_map
from ganglion.protocols.native.operations import BATCH_MAX, ID_MAX
from ganglion.protocols.native.properties import is_number
from ganglion.protocols.native.refusals import invalid

__all__ = [
    "Options",
    "data_at",
    "element",
    "numbers_at",
    "options_at",
    "seconds_at",
    "text_at",
    "whole_at",
]


def element(frame: Frame, at: int) -> object:
    """The element, None where it is left out."""
    return frame[at] if at < len(frame) else None


def text_at(frame: Frame, at: int, name: str) -> str:
    """Text, which must be there."""
    value = frame[at] if at < len(frame) else None
    if type(value) is not str or "\0" in value:
        raise invalid(f"{name} must be text")
    return value


def data_at(frame: Frame, at: int, name: str) -> bytes:
    """Bytes, which must be there."""
    value = frame[at] if at < len(frame) else None
    data = value if type(value) is bytes else bytes_of(value)
    if data is None:
        raise invalid(f"{name} must be bytes")
    return data


def whole_at(frame: Frame, at: int, name: str, most: int = ID_MAX) -> int:
    """A whole number from 0 on, which must be there."""
    value = frame[at] if at < len(frame) else None
    if type(value) is not int or not 0 <= value <= most:
        raise invalid(f"{name} must be a whole number from 0 to {most}")
    return value


def seconds_at(frame: Frame, at: int, name: str) -> float | None:
    """A number of seconds, None where it is left out."""
    value = element(frame, at)
    if value is not None and not is_number(value):
        raise invalid(f"{name} must be a number of seconds from 0")
    return cast("float | None", value)


def numbers_at(frame: Frame, at: int, name: str) -> tuple[int, ...]:
    """One whole number or an array of them."""
    value = element(frame, at)
    if type(value) is int:
        return (whole_at(frame, at, name),)
    if is_array(value) and len(value) <= BATCH_MAX and all(type(each) is int for each in value):
        return cast("tuple[int, ...]", value)
    raise invalid(f"{name} must be a whole number, or an array of at most {BATCH_MAX} of them")


def options_at(frame: Frame, at: int) -> "Options":
    """A map by name, empty where it is left out."""
    value = element(frame, at)
    if value is None:
        return _NO_OPTIONS
    if not is_map(value):
        raise invalid("options must be a map")
    return Options(value)


class Options:
    """The members of a map of options. Those that nobody asks for are ignored."""

    __slots__ = ("_members",)

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = members

    def members(self) -> dict[str, Any]:
        """All of them, those that are nil left out."""
        return {name: value for name, value in self._members.items() if value is not None}

    def get(self, name: str) -> object:
        """The member as it is; None: it is left out."""
        return self._members.get(name)

    def text(self, name: str, *choices: str) -> str | None:
        """Text, one of `choices` if there are any."""
        value = self._members.get(name)
        if value is None:
            return None
        if type(value) is not str or "\0" in value:
            raise invalid(f"option {name} must be text")
        if choices and value not in choices:
            raise invalid(f"option {name} is {value!r}; it must be {' or '.join(choices)}")
        return value

    def data(self, name: str) -> bytes | None:
        """Bytes."""
        value = self._members.get(name)
        if value is None:
            return None
        found = bytes_of(value)
        if found is None:
            raise invalid(f"option {name} must be bytes")
        return found

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self._members.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise invalid(f"option {name} must be true or false")
        return value

    def whole(self, name: str, most: int = ID_MAX, least: int = 0) -> int | None:
        """A whole number."""
        value = self._members.get(name)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise invalid(f"option {name} must be a whole number from {least} to {most}")
        return value

    def seconds(self, name: str, most: float = 2.0**53) -> float | None:
        """A number from 0 on."""
        value = self._members.get(name)
        if value is None:
            return None
        if not is_number(value, most):
            raise invalid(f"option {name} must be a number of seconds from 0 to {most:g}")
        return cast("float", value)

    def part(self, name: str) -> float | None:
        """A number from 0 to 1."""
        value = self._members.get(name)
        if value is None:
            return None
        if not is_number(value, 1.0):
            raise invalid(f"option {name} must be a number from 0 to 1")
        return float(cast("float", value))


_NO_OPTIONS = Options({})
