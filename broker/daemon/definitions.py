"""The ``[[queues]]`` and ``[[streams]]`` tables of a configuration, made into definitions.

A table has the fields of `QueueDefinition` or `StreamDefinition`. Where a field is a list, one text
stands for a list of one. What is wrong in any table is collected, not only the first.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast

from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.daemon.settings import BadValue

__all__ = ["parse_queues", "parse_streams"]

_Definition = TypeVar("_Definition", QueueDefinition, StreamDefinition)
_Tables = Iterable[Mapping[str, object]]
_Wrong = list[tuple[str, str]]


def parse_queues(tables: _Tables) -> tuple[list[QueueDefinition], _Wrong]:
    """The queues that ``tables`` say, and what is wrong with them as pairs of key and rule.

    Tables are counted from 1: the second one's ``lease_s`` is the key ``queues[2].lease_s``. A
    queue comes behind the one that its dead letters go to.
    """
    queues, wrong = _parse(QueueDefinition, "queue", tables)
    by_name = {queue.name: queue for queue in queues}
    in_order: dict[str, QueueDefinition] = {}
    for number, queue in enumerate(queues, 1):
        chain = [queue.name]
        while (target := by_name.get(by_name[chain[-1]].dead_letter)) is not None:
            if target.name in chain:
                way = " → ".join((*chain, target.name))
                wrong.append((f"queues[{number}].dead_letter", f"goes in a circle: {way}"))
                break
            chain.append(target.name)
        in_order.update((name, by_name[name]) for name in reversed(chain))
    return list(in_order.values()), wrong


def parse_streams(tables: _Tables) -> tuple[list[StreamDefinition], _Wrong]:
    """The same for streams."""
    return _parse(StreamDefinition, "stream", tables)


def _parse(kind: type[_Definition], what: str, tables: _Tables) -> tuple[list[_Definition], _Wrong]:
    known: dict[str, Any] = {
        each.name: "" if each.default is MISSING else each.default for each in fields(kind)
    }
    found: list[_Definition] = []
    wrong: _Wrong = []
    names: dict[str, int] = {}
    for number, table in enumerate(tables, 1):
        key = f"{what}s[{number}]"
        values: dict[str, Any] = {}
        before = len(wrong)
        for name, value in table.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
                wrong.append((f"{key}.{name}", f"is not a field of a {what}{hint}"))
                continue
            try:
                values[name] = _value(known[name], value)
            except BadValue as error:
                wrong.append((f"{key}.{name}", str(error)))
        if "name" not in table:
            wrong.append((f"{key}.name", "is missing"))
        elif (first := names.setdefault(str(table["name"]), number)) != number:
            wrong.append((f"{key}.name", f"is that of {what}s[{first}] too"))
        if len(wrong) == before:
            try:
                found.append(kind(**values))
            except InvalidDefinition as error:
                wrong.append((key, f"is not a {what}: {error}"))
    return found, wrong


def _value(default: object, value: object) -> object:
    """The value of a field that has such a default. Raises `BadValue`."""
    match default:
        case bool():
            if isinstance(value, bool):
                return value
            raise BadValue("must be true or false")
        case int():
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            raise BadValue("must be a whole number")
        case float():
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            raise BadValue("must be a number")
        case str():
            if isinstance(value, str):
                return value
            raise BadValue("must be a text")
        case _:
            items = cast("list[object]", value) if isinstance(value, list) else [value]
            if all(isinstance(item, str) for item in items):
                return tuple(cast("list[str]", items))
            raise BadValue("must be a topic filter or a list of topic filters")
