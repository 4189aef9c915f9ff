"""The last value of every topic that has one."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message, MessageProperties
from ganglion.broker.core.retained import Retained
from ganglion.broker.core.topics import matches

topics = st.lists(st.sampled_from(["a", "b", "", "$SYS"]), min_size=1, max_size=4).map("/".join)
real_topics = topics.filter(bool)
filters = st.builds(
    lambda before, end: "/".join([*before, *end]),
    st.lists(st.sampled_from(["a", "", "+", "$SYS"]), max_size=3),
    st.sampled_from([["#"], ["+"], ["a"], ["b"]]),
)
LIMITS = Limits(retained_messages_max=4, retained_bytes_max=8000)


class RetainedMachine(RuleBasedStateMachine):
    """Retained messages beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.retained = Retained()
        self.model: dict[str, Message] = {}

    @rule(topic=real_topics, size=st.sampled_from([1, 10, 2000, 7000]))
    def set(self, topic: str, size: int) -> None:
        """Keep a message if there is room; the node's own always have it."""
        message = Message(topic, b"x" * size, retain=True)
        room = self.retained.has_room_for(message, LIMITS)
        if topic.startswith("$"):
            assert room
        old = self.model.get(topic)
        if old is not None and len(message.payload) <= len(old.payload):
            assert room, "replacing by what is not larger is always possible"
        if old is None and self.count() >= LIMITS.retained_messages_max:
            assert room == topic.startswith("$")
        if room:
            self.retained.set(message)
            self.model[topic] = message

    def count(self) -> int:
        """How many are not the node's own."""
        return sum(not topic.startswith("$") for topic in self.model)

    @rule(topic=real_topics)
    def remove(self, topic: str) -> None:
        """Clear a topic; that needs no room."""
        assert self.retained.has_room_for(Message(topic, b"", retain=True), LIMITS)
        assert self.retained.remove(topic) == (self.model.pop(topic, None) is not None)

    @rule(topic_filter=filters)
    def find(self, topic_filter: str) -> None:
        """A filter finds every message whose topic it matches, once."""
        found = {message.topic: message for message in self.retained.matching(topic_filter)}
        assert found == {
            topic: message for topic, message in self.model.items() if matches(topic_filter, topic)
        }

    @invariant()
    def figures_are_right(self) -> None:
        """Number, contents and sizes are those of what is kept, within the limits."""
        assert len(self.retained) == len(self.model)
        assert {message.topic: message for message in self.retained} == self.model
        for topic, message in self.model.items():
            assert self.retained.get(topic) is message
        assert self.count() <= LIMITS.retained_messages_max
        others = [message for topic, message in self.model.items() if not topic.startswith("$")]
        assert sum(len(each.payload) for each in others) <= LIMITS.retained_bytes_max
        if not self.model:
            assert self.retained.size_bytes == 0
            assert self.retained._own_count == 0
            assert self.retained._own_bytes == 0


TestRetained = pytest.mark.slow(RetainedMachine.TestCase)
TestRetained.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_limit_that_was_lowered() -> None:
    """Over a limit that was lowered, what takes no more room than before is still taken."""
    retained = Retained()
    for topic in ("a", "b"):
        retained.set(Message(topic, b"x" * 5000, 0, True))
    assert retained.has_room_for(Message("a", b"x" * 4999, 0, True), LIMITS)
    assert retained.has_room_for(Message("a", b"y" * 5000, 0, True), LIMITS)
    assert not retained.has_room_for(Message("a", b"x" * 5001, 0, True), LIMITS)


def test_what_its_publisher_chose_the_size_of_counts() -> None:
    """Topics and properties count against the bytes like the payload."""
    limits = Limits(retained_bytes_max=10_000)
    big = MessageProperties(user_properties=(("k", "v" * 10_000),))
    assert not Retained().has_room_for(Message("t", b"x", 0, True, big), limits)
    big = MessageProperties(correlation_data=b"x" * 10_000)
    assert not Retained().has_room_for(Message("t", b"x", 0, True, big), limits)
    assert not Retained().has_room_for(Message("t/" * 5000, b"x", 0, True), limits)
    assert Retained().has_room_for(Message("t", b"x", 0, True), limits)
