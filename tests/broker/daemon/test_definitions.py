"""Queues and streams as tables: every field, and every mistake named."""

from dataclasses import fields

import pytest

from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.daemon.definitions import parse_queues, parse_streams


def test_a_table_becomes_a_queue() -> None:
    """Every field of a queue can be written, and a text stands for a list of one."""
    table = {
        "name": "jobs",
        "bindings": "plant/#",
        "lease_s": 5,
        "max_deliveries": 3,
        "backoff_s": 0.5,
        "backoff_max_s": 9,
        "dead_letter": "dead",
        "ttl_s": 60,
        "priorities": 4,
        "ordered_by_key": True,
        "single_active_consumer": False,
        "max_messages": 7,
        "max_bytes": 1000,
        "overflow": "drop-oldest",
        "deduplication_s": 30.5,
        "canary_share": 1,
    }
    assert {each.name for each in fields(QueueDefinition)} <= table.keys()
    queues, wrong = parse_queues([table])
    assert not wrong
    assert queues == [QueueDefinition(**{**table, "bindings": ("plant/#",)})]  # type: ignore[arg-type]  # checked


def test_a_table_becomes_a_stream() -> None:
    """Every field of a stream can be written."""
    table = {
        "name": "log",
        "bindings": ["a/#", "b"],
        "max_age_s": 60,
        "max_bytes": 9,
        "max_records": 8,
        "keyed": True,
        "compact": True,
        "tombstone_keep_s": 5.5,
        "max_record_bytes": 7,
    }
    assert {each.name for each in fields(StreamDefinition)} <= table.keys()
    streams, wrong = parse_streams([table])
    assert not wrong
    assert streams == [StreamDefinition(**{**table, "bindings": ("a/#", "b")})]  # type: ignore[arg-type]  # checked


@pytest.mark.parametrize(
    ("table", "key", "text"),
    [
        ({}, "queues[1].name", "is missing"),
        ({"name": "a", "lease": 5}, "queues[1].lease", "did you mean lease_s?"),
        ({"name": "a", "colour": 5}, "queues[1].colour", "there are name, bindings, lease_s"),
        ({"name": 5}, "queues[1].name", "must be a text"),
        ({"name": "a", "lease_s": "5"}, "queues[1].lease_s", "must be a number"),
        ({"name": "a", "lease_s": True}, "queues[1].lease_s", "must be a number"),
        ({"name": "a", "priorities": 1.5}, "queues[1].priorities", "must be a whole number"),
        ({"name": "a", "ordered_by_key": 1}, "queues[1].ordered_by_key", "must be true or false"),
        ({"name": "a", "bindings": 5}, "queues[1].bindings", "must be a topic filter or a list"),
        ({"name": "a/b"}, "queues[1]", "is not a queue: 'a/b' cannot be the name"),
        ({"name": "a", "lease_s": 0}, "queues[1]", "option lease_s is 0; it must be"),
        ({"name": "a", "bindings": ["a/#/b"]}, "queues[1]", "'a/#/b'"),
        ({"name": "a", "bindings": ["$queue/b"]}, "queues[1]", "'$queue/b'"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, object], key: str, text: str) -> None:
    """Each mistake has the number of its table, its field, and what it may be."""
    queues, wrong = parse_queues([table])
    assert queues == []
    ((where, what),) = wrong
    assert where == key
    assert text in what


def test_everything_wrong_is_told_at_once() -> None:
    """Nobody has to mend one mistake to see the next."""
    _, wrong = parse_streams([{"name": "a", "keyed": 1, "max": 2}, {"max_bytes": "3"}])
    assert [key for key, _ in wrong] == [
        "streams[1].keyed",
        "streams[1].max",
        "streams[2].max_bytes",
        "streams[2].name",
    ]


def test_a_name_stands_once() -> None:
    """Two tables cannot say two things about one queue."""
    _, wrong = parse_queues([{"name": "a"}, {"name": "b"}, {"name": "a"}])
    assert wrong == [("queues[3].name", "is that of queues[1] too")]


def test_dead_letter_queues_come_first() -> None:
    """A queue is made before the one whose dead letters it gets: with its own options."""
    queues, wrong = parse_queues(
        [
            {"name": "a", "dead_letter": "b"},
            {"name": "b", "dead_letter": "c", "priorities": 2},
            {"name": "d"},
            {"name": "c", "priorities": 3},
        ]
    )
    assert not wrong
    assert [queue.name for queue in queues] == ["c", "b", "a", "d"]


def test_dead_letters_do_not_go_in_a_circle() -> None:
    """A circle is found in the file, before anything is made."""
    _, wrong = parse_queues([{"name": "a", "dead_letter": "b"}, {"name": "b", "dead_letter": "a"}])
    assert ("queues[1].dead_letter", "goes in a circle: a → b → a") in wrong
