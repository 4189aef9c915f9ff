"""The ``[[rules]]`` tables of a configuration, made into access rules.

A table has the fields of `ganglion.broker.core.access.Rule`. Where the rule has a list, one text
stands for a list of one. What is wrong in any table is collected, not only the first.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from ganglion.broker.core.access import InvalidRule, Rule
from ganglion.broker.daemon.settings import BadValue

__all__ = ["parse_rules"]


def parse_rules(tables: Iterable[Mapping[str, object]]) -> tuple[list[Rule], list[tuple[str, str]]]:
    """The rules that ``tables`` say, and what is wrong with them as pairs of key and rule.

    Rules are counted from 1, as in the decisions that name them: the second table's effect is
    the key ``rules[2].effect``.
    """
    rules: list[Rule] = []
    wrong: list[tuple[str, str]] = []
    for number, table in enumerate(tables, 1):
        key = f"rules[{number}]"
        values: dict[str, Any] = {}
        before = len(wrong)
        for name, value in table.items():
            if name not in _FIELDS:
                near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(_FIELDS)}"
                wrong.append((f"{key}.{name}", f"is not a field of a rule{hint}"))
                continue
            try:
                values[name] = _FIELDS[name](value)
            except BadValue as error:
                wrong.append((f"{key}.{name}", str(error)))
        missing = [name for name in ("effect", "topics") if name not in table]
        wrong += [(f"{key}.{name}", "is missing") for name in missing]
        if len(wrong) == before:
            try:
                rules.append(Rule(**values))
            except InvalidRule as error:
                wrong.append((key, f"is not a rule: {error}"))
    return rules, wrong


def _texts(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise BadValue("must be a text or a list of texts")
    return tuple(cast("list[str]", items))


def _word(*words: str) -> Callable[[object], str]:
    def field(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise BadValue(f"must be one of {', '.join(words)}")

    return field


def _qos(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2:
        return value
    raise BadValue("must be 0, 1 or 2: the highest QoS that the rule is about")


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise BadValue("must be true or false")


_FIELDS: Mapping[str, Callable[[object], object]] = {
    "effect": _word("allow", "deny"),
    "users": _texts,
    "action": _word("publish", "subscribe", "all"),
    "topics": _texts,
    "qos": _qos,
    "retain": _boolean,
    "address": _texts,
}
