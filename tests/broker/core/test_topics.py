"""Topic names and filters: what is valid and what matches what (MQTT 5.0, 4.7)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.topics import (
    InvalidTopic,
    SharedFilter,
    TopicLimit,
    TopicTree,
    check_topic_filter,
    check_topic_name,
    has_wildcard,
    matches,
    split_shared,
)

LIMITS = Limits(topic_size_max_bytes=64, topic_levels_max=24)

names_of_levels = st.sampled_from(["", "a", "b", "$x", "é"])
topics = st.lists(names_of_levels, min_size=1, max_size=6).map("/".join).filter(bool)
deep_topics = st.builds(
    lambda stem, count, end: "/".join([stem] * count + [end]),
    st.sampled_from(["a", "b"]),
    st.integers(12, 20),
    st.sampled_from(["", "a", "x", "x/y"]),
)
plain_filters = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.one_of(names_of_levels, st.just("+")), max_size=5),
    st.sampled_from([["#"], ["+"], ["a"], ["a", ""]]),
)
deep_filters = st.builds(
    lambda stem, count, end: "/".join([stem] * count + [end]),
    st.sampled_from(["a", "+"]),
    st.integers(12, 20),
    st.sampled_from(["#", "+", "a", "x/#", "x/+", "+/y"]),
)
any_topic = st.one_of(topics, topics, deep_topics)
any_filter = st.one_of(plain_filters, plain_filters, deep_filters, topics)


def defined_to_match(topic_filter: str, topic: str) -> bool:
    """Matching by the definition of 4.7, level by level, written without the module's own."""
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    return _levels_match(topic_filter.split("/"), topic.split("/"))


def _levels_match(wanted: list[str], levels: list[str]) -> bool:
    if not wanted:
        return not levels
    if wanted[0] == "#":
        return True
    if not levels:
        return False
    return wanted[0] in ("+", levels[0]) and _levels_match(wanted[1:], levels[1:])


@pytest.mark.parametrize("topic", ["a", "/", "//", " ", "a b/c", "$SYS/x", "é/☃", "x" * 64])
def test_valid_names(topic: str) -> None:
    """Any text without wildcards and U+0000 is a topic name, empty levels too (4.7.1, 4.7.3)."""
    check_topic_name(topic, LIMITS)


@pytest.mark.parametrize("topic", ["", "+", "#", "a/+", "a/#/b", "a+", "\0", "a/\0"])
def test_invalid_names(topic: str) -> None:
    """Empty names, wildcards and U+0000 are refused (4.7.1-1, 4.7.3-1, 4.7.3-2, 3.3.2-2)."""
    with pytest.raises(InvalidTopic):
        check_topic_name(topic, LIMITS)


@pytest.mark.parametrize("topic_filter", ["#", "+", "a/#", "/#", "+/+", "+/a/#", "/", "a", "$x/+"])
def test_valid_filters(topic_filter: str) -> None:
    """Wildcards fill whole levels, `#` the last one (4.7.1.2, 4.7.1.3)."""
    check_topic_filter(topic_filter, LIMITS)


@pytest.mark.parametrize(
    "topic_filter", ["", "#/", "#/a", "a#", "a/b#", "##", "a+", "+a", "a/+b/c", "++", "a\0", "#+"]
)
def test_invalid_filters(topic_filter: str) -> None:
    """Anything else is refused (4.7.1-1, 4.7.1-2, 4.7.3-1, 4.7.3-2)."""
    with pytest.raises(InvalidTopic):
        check_topic_filter(topic_filter, LIMITS)


@pytest.mark.parametrize("topic", ["x" * 65, "é" * 33, "/" * 24])
def test_limits(topic: str) -> None:
    """Bytes and levels over the limits are told apart from what is malformed, by name."""
    with pytest.raises(TopicLimit, match=r"topic_(size|levels)_max"):
        check_topic_name(topic, LIMITS)
    with pytest.raises(TopicLimit, match=r"topic_(size|levels)_max"):
        check_topic_filter(topic, LIMITS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", None),
        ("$share", None),
        ("$shared/g/t", None),
        ("$share/g/t", SharedFilter("g", "t")),
        ("$share/g//", SharedFilter("g", "/")),
        ("$share/g/$SYS/#", SharedFilter("g", "$SYS/#")),
        ("$share/$share/$share/x", SharedFilter("$share", "$share/x")),
    ],
)
def test_shared_filters(text: str, expected: SharedFilter | None) -> None:
    """``$share/{group}/{filter}`` is taken apart; other text is no shared filter (4.8.2)."""
    assert split_shared(text) == expected


@pytest.mark.parametrize("text", ["$share/", "$share/g", "$share/g/", "$share//t", "$share/a+/t"])
def test_malformed_shared_filters(text: str) -> None:
    """What begins like one and is none is refused (4.8.2-1, 4.8.2-2)."""
    with pytest.raises(InvalidTopic):
        split_shared(text)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        # the examples of the specification (4.7.1.2, 4.7.1.3, 4.7.2)
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/x", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        # and others
        ("#", "/", True),
        ("a/#", "ab", False),
        ("A", "a", False),
        ("a/+/#", "a", False),
        ("a/+/#", "a/b", True),
        ("a/#", "a/$x", True),
        ("+/$x", "a/$x", True),
    ],
)
def test_matching(topic_filter: str, topic: str, expected: bool) -> None:
    """Matching is that of the specification (4.7.1, 4.7.2), and case counts (4.7.3)."""
    assert matches(topic_filter, topic) is expected
    assert defined_to_match(topic_filter, topic) is expected


@given(any_filter, any_topic)
def test_matching_is_as_defined(topic_filter: str, topic: str) -> None:
    """For any filter and topic the answer is that of the definition."""
    assert matches(topic_filter, topic) == defined_to_match(topic_filter, topic)


@given(any_filter)
def test_a_filter_without_wildcards_matches_itself_alone(topic_filter: str) -> None:
    """`has_wildcard` tells whether a filter can match another name than its own."""
    if has_wildcard(topic_filter):
        assert "+" in topic_filter or "#" in topic_filter
    else:
        assert matches(topic_filter, topic_filter)
        assert not matches(topic_filter, topic_filter + "/x")


class TreeMachine(RuleBasedStateMachine):
    """A `TopicTree` beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.tree: TopicTree[int] = TopicTree()
        self.model: dict[str, int] = {}

    @rule(topic=any_topic, value=st.integers(0, 3))
    def set(self, topic: str, value: int) -> None:
        """Set a value, new or in place of another."""
        self.tree.set(topic, value)
        self.model[topic] = value

    @rule(topic=any_topic)
    def remove(self, topic: str) -> None:
        """Remove a value, if there is one."""
        assert self.tree.remove(topic) == self.model.pop(topic, None)

    @rule(index=st.integers(0, 1000))
    def remove_one_that_is_there(self, index: int) -> None:
        """Remove a value that is there."""
        if self.model:
            topic = sorted(self.model)[index % len(self.model)]
            assert self.tree.remove(topic) == self.model.pop(topic)

    @rule(topic_filter=any_filter)
    def find(self, topic_filter: str) -> None:
        """What a filter finds is what it is defined to match."""
        expected = [
            value for topic, value in self.model.items() if defined_to_match(topic_filter, topic)
        ]
        assert sorted(self.tree.matching(topic_filter)) == sorted(expected)

    @rule(topic=any_topic)
    def get(self, topic: str) -> None:
        """The value of one topic."""
        assert self.tree.get(topic) == self.model.get(topic)

    @invariant()
    def nothing_is_left_behind(self) -> None:
        """The size is right, and an empty tree has no levels."""
        assert len(self.tree) == len(self.model)
        if not self.model:
            assert not self.tree._root.children


TestTree = pytest.mark.slow(TreeMachine.TestCase)
TestTree.settings = settings(max_examples=60, stateful_step_count=40)
