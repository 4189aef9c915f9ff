"""What users say about a queue or a stream: names, options and their checks.

A definition is a frozen dataclass whose fields are its options. The configuration, the text form
``name?option=value&option=value`` that MQTT clients use, and later the admin interface all give
names and values of fields; `with_options` checks them, so that a mistake gets the same answer
everywhere: which option, what it may be.
"""

from collections.abc import Iterable
from dataclasses import Field, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar
from urllib.parse import unquote

from ganglion import GanglionError
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.topics import InvalidTopic, check_topic_filter

__all__ = [
    "InvalidDefinition",
    "check_bindings",
    "check_name",
    "check_number",
    "options_from_text",
    "parse_option",
    "split_options",
    "with_options",
]

_NAME_SIZE_MAX = 128
_NOT_IN_NAMES = "/+#?$%"
_NOT_BOUND_TO = ("$queue/", "$stream/", "$share/")
# The limits of the node hold where a filter comes in; one that is recorded may be from before.
_SYNTAX_ONLY = Limits(topic_size_max_bytes=65_535, topic_levels_max=32_768)
_TRUE = {"true", "yes", "on", "1", ""}
_FALSE = {"false", "no", "off", "0"}


class InvalidDefinition(GanglionError):
    """A queue or a stream cannot be like this; the message names the option and what it may be."""


class _Definition(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


_D = TypeVar("_D", bound=_Definition)


def check_name(name: str, what: str) -> None:
    """Raise `InvalidDefinition` unless this is a name that a queue or stream (`what`) can have."""
    if not name:
        raise InvalidDefinition(f"a {what} needs a name")
    if len(name) > _NAME_SIZE_MAX:
        raise InvalidDefinition(f"the name of a {what} has at most {_NAME_SIZE_MAX} characters")
    if not name.isprintable() or any(each in name for each in _NOT_IN_NAMES):
        raise InvalidDefinition(
            f"{name!r} cannot be the name of a {what}: it has one of {' '.join(_NOT_IN_NAMES)} or "
            "a character that cannot be printed"
        )


def check_bindings(bindings: tuple[str, ...], what: str) -> None:
    """Raise `InvalidDefinition` unless a queue or stream (`what`) can be bound to these filters."""
    for topic_filter in bindings:
        if topic_filter.startswith(_NOT_BOUND_TO):
            raise InvalidDefinition(
                f"a {what} cannot be bound to {topic_filter!r}: what is sent to a queue or a "
                "stream goes there alone, and a binding shares nothing"
            )
        try:
            check_topic_filter(topic_filter, _SYNTAX_ONLY)
        except InvalidTopic as error:
            raise InvalidDefinition(f"binding {topic_filter!r}: {error}") from None


def check_number(option: str, value: float, least: float, most: float) -> None:
    """Raise `InvalidDefinition` unless the value of the option is within these bounds."""
    if not least <= value <= most:
        raise InvalidDefinition(f"option {option} is {value:g}; it must be {least:g} to {most:g}")


def split_options(name: str) -> tuple[str, list[tuple[str, str]]]:
    """``name?option=value&flag`` as the name and its options, percent-decoded."""
    name, _, query = name.partition("?")
    options: list[tuple[str, str]] = []
    for part in query.split("&") if query else []:
        option, _, value = part.partition("=")
        options.append((unquote(option), unquote(value)))
    return name, options


def parse_option(kind: type, option: str, text: str) -> Any:
    """The value that the text of an option stands for. Raises `InvalidDefinition`."""
    if kind is bool:
        lowered = text.lower()
        if lowered not in _TRUE and lowered not in _FALSE:
            raise InvalidDefinition(f"option {option} is {text!r}; it must be true or false")
        return lowered in _TRUE
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InvalidDefinition(f"option {option} is {text!r}; it must be {what}") from None


def options_from_text(
    definition: _Definition, options: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Options given as text, by field of the definition. Raises `InvalidDefinition`."""
    kinds: dict[str, type[Any]] = {
        each.name: type(getattr(definition, each.name)) for each in fields(definition)
    }
    found: dict[str, Any] = {}
    for option, text in options:
        field = option.replace("-", "_")
        kind = kinds.get(field)
        if kind is None or field in ("name", "bindings"):
            known = ", ".join(sorted(kinds.keys() - {"name", "bindings"}))
            raise InvalidDefinition(f"there is no option {option!r}; there are {known}")
        found[field] = parse_option(kind, option, text)
    return found


def with_options(definition: _D, options: dict[str, Any]) -> _D:
    """The definition with these fields replaced. Raises `InvalidDefinition`."""
    known = {each.name for each in fields(definition)}
    for option in options:
        if option not in known:
            raise InvalidDefinition(
                f"there is no option {option!r}; there are {', '.join(sorted(known))}"
            )
    return replace(definition, **options)
