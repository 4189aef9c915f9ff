"""Rules as tables: lists or single texts, and every mistake named."""

import pytest

from ganglion.broker.core.access import Rule
from ganglion.broker.daemon.rules import parse_rules


def test_a_table_becomes_a_rule() -> None:
    """Every field of a rule can be written, and a text stands for a list of one."""
    table = {
        "effect": "allow",
        "users": "ada",
        "action": "publish",
        "topics": ["a/%c", "b/%u"],
        "qos": 1,
        "retain": False,
        "address": "10.0.0.0/8",
    }
    rules, wrong = parse_rules([table])
    assert not wrong
    assert rules == [
        Rule(
            effect="allow",
            users=("ada",),
            action="publish",
            topics=("a/%c", "b/%u"),
            qos=1,
            retain=False,
            address=("10.0.0.0/8",),
        )
    ]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"effect": "permit", "topics": "#"}, "rules[1].effect"),
        ({"effect": "allow"}, "rules[1].topics"),
        ({"topics": "#"}, "rules[1].effect"),
        ({"effect": "allow", "topics": [1]}, "rules[1].topics"),
        ({"effect": "allow", "topics": "#", "qos": True}, "rules[1].qos"),
        ({"effect": "allow", "topics": "#", "qos": 3}, "rules[1].qos"),
        ({"effect": "allow", "topics": "#", "retain": 1}, "rules[1].retain"),
        ({"effect": "allow", "topics": "#", "action": "read"}, "rules[1].action"),
        ({"effect": "allow", "topics": "#", "zzz": 1}, "rules[1].zzz"),
        ({"effect": "allow", "topics": "a#"}, "rules[1]"),
        ({"effect": "allow", "topics": "#", "users": "a/b"}, "rules[1]"),
        ({"effect": "allow", "topics": "#", "address": "here"}, "rules[1]"),
    ],
)
def test_a_mistake_is_named_with_its_place(table: dict[str, object], key: str) -> None:
    """What is no rule is told by the number of its table and its field, and makes no rule."""
    rules, wrong = parse_rules([table])
    assert not rules
    assert [place for place, _ in wrong] == [key]


def test_all_mistakes_are_told() -> None:
    """The mistakes of all tables come back together, and right tables still become rules."""
    tables: list[dict[str, object]] = [
        {"effect": "no", "topics": 1},
        {"effect": "allow", "topics": "#"},
        {"topic": "#", "effect": "deny"},
    ]
    rules, wrong = parse_rules(tables)
    assert len(rules) == 1
    assert {place for place, _ in wrong} == {
        "rules[1].effect",
        "rules[1].topics",
        "rules[3].topic",
        "rules[3].topics",
    }
    assert dict(wrong)["rules[3].topic"].endswith("did you mean topics?")
