"""Refusals are counted always and logged at a bounded rate."""

from typing import Any

from ganglion.broker.core.access import Client
from ganglion.broker.core.refusals import Refusals
from ganglion.broker.core.timers import Timers


class ListLog:
    """A log that keeps its warnings."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, /, **details: Any) -> None:
        """Not expected."""
        raise AssertionError((event, details))

    info = debug

    def warning(self, event: str, /, **details: Any) -> None:
        """Keep it."""
        self.warnings.append((event, details))


def test_a_refusal_says_who_what_and_why() -> None:
    """The log has client, user, address, action, topic and the rule (DESIGN rule 7)."""
    log = ListLog()
    refusals = Refusals(log, Timers(5.0))
    client = Client("c1", "ada", "192.0.2.7", None)
    refusals.refuse("publish", client, "rule 3 (deny publish x)", topic="x")
    assert log.warnings == [
        (
            "refused",
            {
                "action": "publish",
                "rule": "rule 3 (deny publish x)",
                "topic": "x",
                "client": "c1",
                "user": "ada",
                "address": "192.0.2.7",
            },
        )
    ]
    assert refusals.counts == {"publish": 1}


def test_nobody_in_particular() -> None:
    """A refusal before anybody is known has what the caller knows."""
    log = ListLog()
    Refusals(log, Timers()).refuse("connect", None, "too large", address="192.0.2.7")
    (_, details), *rest = log.warnings
    assert rest == []
    assert details == {"action": "connect", "rule": "too large", "address": "192.0.2.7"}


def test_a_flood_is_counted_and_summed_up() -> None:
    """Over the rate nothing is logged; the next second says how many lines are missing."""
    log, timers = ListLog(), Timers(100.0)
    refusals = Refusals(log, timers)
    for _ in range(500):
        refusals.refuse("publish", None, "no")
    assert len(log.warnings) == 20
    timers.run(101.0)
    refusals.refuse("subscribe", None, "no")
    assert log.warnings[20:] == [
        ("refusals not logged", {"count": 480}),
        ("refused", {"action": "subscribe", "rule": "no"}),
    ]
    assert refusals.counts == {"publish": 500, "subscribe": 1}
    timers.run(102.0)
    refusals.refuse("publish", None, "no")
    assert len(log.warnings) == 23
