"""Topic names and topic filters: what is valid, what matches what (MQTT 5.0 section 4.7).

A topic name is a UTF-8 string of levels joined by ``/``. A topic filter is the same with ``+`` for
exactly one level and, as its last level, ``#`` for the parent and everything below it. A filter
that begins with a wildcard does not match a name that begins with ``$`` (4.7.2).

`TopicTree` keeps values by topic name and finds those that a filter matches without looking at the
others: retained messages and cached routes are looked up in one.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ganglion import GanglionError

if TYPE_CHECKING:  # clients match topics, too, and have no limits to import
    from ganglion.broker.core.limits import Limits

__all__ = [
    "REPLY_PREFIX",
    "InvalidTopic",
    "SharedFilter",
    "TopicLimit",
    "TopicTree",
    "check_topic_filter",
    "check_topic_name",
    "has_wildcard",
    "matches",
    "place_bytes",
    "split_shared",
]


REPLY_PREFIX = "_reply/"
"""Below it every client has a topic of its own for replies, which only that client may read."""


class InvalidTopic(GanglionError):
    """A topic name or filter breaks a rule or a limit; the message names it and the clause."""


class TopicLimit(InvalidTopic):
    """A well-formed topic name or filter is over a limit of this node; the message names it."""


class SharedFilter(NamedTuple):
    """The parts of ``$share/{group}/{topic_filter}`` (MQTT 5.0 section 4.8.2)."""

    group: str
    topic_filter: str


def check_topic_name(topic: str, limits: "Limits") -> None:
    """Raise `InvalidTopic` unless messages may be published to `topic`."""
    if not topic:
        raise InvalidTopic("topic name is empty (4.7.3-1)")
    if "+" in topic or "#" in topic:
        raise InvalidTopic("topic name contains a wildcard (3.3.2-2)")
    _check_size(topic, "topic name", limits)


def check_topic_filter(topic_filter: str, limits: "Limits") -> None:
    """Raise `InvalidTopic` unless `topic_filter` (without ``$share/group/``) is well formed."""
    if not topic_filter:
        raise InvalidTopic("topic filter is empty (4.7.3-1)")
    _check_size(topic_filter, "topic filter", limits)
    if "#" in topic_filter:
        hash_at = topic_filter.index("#")
        if hash_at != len(topic_filter) - 1 or (hash_at and topic_filter[hash_at - 1] != "/"):
            raise InvalidTopic("'#' stands alone in the last level of a topic filter (4.7.1-1)")
    if "+" in topic_filter:
        for level in topic_filter.split("/"):
            if "+" in level and level != "+":
                raise InvalidTopic("'+' fills a whole level of a topic filter (4.7.1-2)")


def _check_size(topic: str, what: str, limits: "Limits") -> None:
    if "\0" in topic:
        raise InvalidTopic(f"{what} contains U+0000 (4.7.3-2)")
    size = len(topic) if topic.isascii() else len(topic.encode())
    if size > limits.topic_size_max_bytes:
        raise TopicLimit(
            f"{what} of {size} bytes is over topic_size_max_bytes = {limits.topic_size_max_bytes}"
        )
    levels = topic.count("/") + 1
    if levels > limits.topic_levels_max:
        raise TopicLimit(
            f"{what} of {levels} levels is over topic_levels_max = {limits.topic_levels_max}"
        )


def has_wildcard(topic_filter: str) -> bool:
    """Whether the (valid) filter can match more than the one name that equals it."""
    return "+" in topic_filter or topic_filter.endswith("#")


def split_shared(topic_filter: str) -> SharedFilter | None:
    """The parts of a shared subscription's filter; None when it is not one.

    Raises `InvalidTopic` when it begins with ``$share/`` and breaks 4.8.2-1 or 4.8.2-2.
    """
    if not topic_filter.startswith("$share/"):
        return None
    group, slash, rest = topic_filter[7:].partition("/")
    if not group or "+" in group or "#" in group:
        raise InvalidTopic("share name is empty or contains '+' or '#' (4.8.2-1, 4.8.2-2)")
    if not slash or not rest:
        raise InvalidTopic("a shared subscription has the form $share/group/filter (4.8.2-2)")
    return SharedFilter(group, rest)


def matches(topic_filter: str, topic: str) -> bool:
    """Whether the (valid) filter matches the (valid) topic name."""
    if topic_filter == topic:
        return True
    if topic[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False
    filter_levels = topic_filter.split("/")
    levels = topic.split("/")
    for index, wanted in enumerate(filter_levels):
        if wanted == "#":
            return True
        if index == len(levels) or (wanted != "+" and wanted != levels[index]):
            return False
    return len(filter_levels) == len(levels)


_Value = TypeVar("_Value")


_DEPTH_MAX = 16  # levels that a tree tells apart; topics that go on below are compared whole
_LEVEL_BYTES = 450


def place_bytes(topic: str) -> int:
    """About what the place of a topic in a `TopicTree` takes, if no other topic shares it."""
    return _LEVEL_BYTES * min(topic.count("/") + 1, _DEPTH_MAX)


class _Level(Generic[_Value]):
    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Level[_Value]] | None = None
        # by topic: at most one above the last depth, and there all that go on below it
        self.values: dict[str, _Value] | None = None

    def visible_children(self, depth: int) -> "Iterator[_Level[_Value]]":
        """What a wildcard at this depth matches: not ``$`` in the first level (4.7.2-1)."""
        for name, child in (self.children or {}).items():
            if depth or name[:1] != "$":
                yield child

    def everything(self) -> Iterator[_Value]:
        """The values of this level and all below it."""
        todo: list[_Level[_Value]] = [self]
        while todo:
            level = todo.pop()
            if level.values:
                yield from level.values.values()
            if level.children:
                todo.extend(level.children.values())


class TopicTree(Generic[_Value]):
    """Values by topic name, found by filter in time proportional to what matches."""

    __slots__ = ("_root", "_size")

    def __init__(self) -> None:
        self._root: _Level[_Value] = _Level()
        self._size = 0

    def __len__(self) -> int:
        """How many topics have a value."""
        return self._size

    def set(self, topic: str, value: _Value) -> None:
        """Give `topic` this value, in place of any earlier one."""
        level = self._root
        for name in topic.split("/")[:_DEPTH_MAX]:
            if level.children is None:
                level.children = {}
            below = level.children.get(name)
            if below is None:
                below = level.children[name] = _Level()
            level = below
        if level.values is None:
            level.values = {}
        self._size += topic not in level.values
        level.values[topic] = value

    def get(self, topic: str) -> _Value | None:
        """The value of `topic`, or None."""
        level: _Level[_Value] | None = self._root
        for name in topic.split("/")[:_DEPTH_MAX]:
            if level is None or level.children is None:
                return None
            level = level.children.get(name)
        return level.values.get(topic) if level is not None and level.values else None

    def remove(self, topic: str) -> _Value | None:
        """Forget `topic`; its value comes back, or None when it had none."""
        path: list[tuple[dict[str, _Level[_Value]], str]] = []
        level = self._root
        for name in topic.split("/")[:_DEPTH_MAX]:
            children = level.children
            if children is None or name not in children:
                return None
            path.append((children, name))
            level = children[name]
        if level.values is None or topic not in level.values:
            return None
        value = level.values.pop(topic)
        self._size -= 1
        for children, name in reversed(path):
            below = children[name]
            if below.values or below.children:
                break
            del children[name]
        return value

    def matching(self, topic_filter: str) -> Iterator[_Value]:
        """Every value whose topic the (valid) filter matches. Do not change the tree meanwhile."""
        names = topic_filter.split("/")
        # depth first without recursion: topics may have many levels
        todo: list[tuple[_Level[_Value], int]] = [(self._root, 0)]
        while todo:
            level, depth = todo.pop()
            if depth == _DEPTH_MAX:
                for topic, value in (level.values or {}).items():
                    if matches(topic_filter, topic):
                        yield value
                continue
            name = names[depth] if depth < len(names) else None
            if (name is None or name == "#") and level.values:  # '#' matches the parent (4.7.1.2)
                yield from level.values.values()
            if name is None:
                continue
            if name == "#":
                for child in level.visible_children(depth):
                    yield from child.everything()
            elif name == "+":
                todo.extend((child, depth + 1) for child in level.visible_children(depth))
            elif level.children and name in level.children:
                todo.append((level.children[name], depth + 1))
