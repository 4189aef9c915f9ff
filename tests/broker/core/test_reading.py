"""What topic filters say about queues and streams."""

import pytest

from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.reading import (
    InvalidSource,
    SourceFilter,
    check_source_topic,
    is_same_start,
    is_source,
    reading_options,
    split_source,
)

Q, S = "$queue/", "$stream/"


@pytest.mark.parametrize(
    ("topic_filter", "wanted", "subscription"),
    [
        ("$queue/a", SourceFilter(Q, "a", (), "", ""), "$queue/a"),
        ("$stream/a", SourceFilter(S, "a", (), "", ""), "$stream/a"),
        ("$queue/a/b/#", SourceFilter(Q, "a", (), "b/#", ""), "$queue/a"),
        ("$queue/a//", SourceFilter(Q, "a", (), "/", ""), "$queue/a"),
        ("$queue/a?x=1&y", SourceFilter(Q, "a", (("x", "1"), ("y", "")), "", ""), "$queue/a"),
        ("$queue/a?x=%2F%26/b?c", SourceFilter(Q, "a", (("x", "/&"),), "b?c", ""), "$queue/a"),
        (
            "$share/g/$stream/a?x=1",
            SourceFilter(S, "a", (("x", "1"),), "", "g"),
            "$share/g/$stream/a",
        ),
        ("$share/g/$queue/a/b", SourceFilter(Q, "a", (), "b", ""), "$queue/a"),
        ("$queue/ä ö", SourceFilter(Q, "ä ö", (), "", ""), "$queue/ä ö"),
    ],
)
def test_a_filter_of_a_source(topic_filter: str, wanted: SourceFilter, subscription: str) -> None:
    """Name, options, binding and group are told apart; the subscription is without what varies."""
    assert split_source(topic_filter) == wanted
    assert wanted.subscription == subscription
    assert is_source(topic_filter)
    assert split_source(subscription) == SourceFilter(
        wanted.prefix, wanted.name, (), "", wanted.group
    )


@pytest.mark.parametrize(
    "topic_filter",
    ["a", "#", "queue/a", "$queue", "$SYS/#", "$share/g/a", "$queues/a", "a/$queue/b"],
)
def test_an_ordinary_filter(topic_filter: str) -> None:
    """Anything else is no source."""
    assert split_source(topic_filter) is None
    assert not is_source(topic_filter)
    check_source_topic(topic_filter)


@pytest.mark.parametrize("name", ["", "a/b", "a?b", "a+", "$a", "50%", "a\tb", "x" * 129])
def test_a_name_that_cannot_be(name: str) -> None:
    """A topic that leads to no possible queue or stream is refused, and the name is in the text."""
    for prefix in (Q, S):
        with pytest.raises(InvalidSource, match=prefix.strip("$/")):
            check_source_topic(prefix + name)


def test_options_of_the_reader() -> None:
    """Those in the filter win over others; what is about the queue is left out."""
    wanted = split_source("$stream/a?after=3&max_records=4&credit=5")
    assert wanted is not None
    found = reading_options(wanted, [("credit", "9"), ("from", "first"), ("trace", "x")])
    assert found == (("after", "3"), ("credit", "5"), ("from", "first"))
    queue = split_source("$queue/a")
    assert queue is not None
    assert reading_options(queue, [("after", "no number"), ("credit", "2")]) == (("credit", "2"),)


@pytest.mark.parametrize("value", ["", "0", "-1", "+1", "1.0", "65536", "\u0663", "1" * 30])
def test_credit_is_a_number(value: str) -> None:
    """Credit is from 1 to as many as there are packet identifiers."""
    wanted = split_source("$queue/a")
    assert wanted is not None
    with pytest.raises(InvalidDefinition, match=r"option credit is .* from 1 to 65535"):
        reading_options(wanted, [("credit", value)])


def test_the_same_start() -> None:
    """Credit says nothing about where to begin."""
    assert is_same_start([("after", "1"), ("credit", "2")], [("after", "1")])
    assert not is_same_start([("after", "1")], [("after", "2")])
    assert not is_same_start([], [("from", "first")])
