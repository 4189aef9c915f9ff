"""The last value of every topic that has one (MQTT 5.0 section 3.3.1.3)."""

from collections.abc import Iterator

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message
from ganglion.broker.core.topics import TopicTree, has_wildcard, place_bytes

__all__ = ["Retained"]


class Retained:
    """Retained messages by topic, within `retained_messages_max` and `retained_bytes_max`."""

    def __init__(self) -> None:
        self._messages: dict[str, Message] = {}
        self._by_topic: TopicTree[Message] = TopicTree()
        self.size_bytes = 0
        """What all of them count against `retained_bytes_max`: their sizes and their places."""
        self._own_count = 0
        self._own_bytes = 0  # of topics that begin with `$`: the node's own are not limited

    def __len__(self) -> int:
        """How many topics have a retained message."""
        return len(self._messages)

    def get(self, topic: str) -> Message | None:
        """The retained message of the topic, expired or not."""
        return self._messages.get(topic)

    def has_room_for(self, message: Message, limits: Limits) -> bool:
        """Whether the limits allow `set(message)`; clearing a topic is always possible."""
        old = self._messages.get(message.topic)
        if not message.payload or message.topic[:1] == "$":
            return True
        count = len(self._messages) - self._own_count
        if old is None and count >= limits.retained_messages_max:
            return False
        growth = _cost(message) - (_cost(old) if old else 0)
        size_bytes = self.size_bytes - self._own_bytes
        return growth <= 0 or size_bytes + growth <= limits.retained_bytes_max

    def set(self, message: Message) -> None:
        """Keep the message for its topic in place of an earlier one."""
        topic = message.topic
        old = self._messages.get(topic)
        if old is not None:
            self._count(old, -1)
        self._messages[topic] = message
        self._by_topic.set(topic, message)
        self._count(message, 1)

    def remove(self, topic: str) -> bool:
        """Keep nothing for the topic any more; whether there was anything."""
        old = self._messages.pop(topic, None)
        if old is None:
            return False
        self._by_topic.remove(topic)
        self._count(old, -1)
        return True

    def _count(self, message: Message, sign: int) -> None:
        size_bytes = sign * _cost(message)
        self.size_bytes += size_bytes
        if message.topic[:1] == "$":
            self._own_count += sign
            self._own_bytes += size_bytes

    def matching(self, topic_filter: str) -> Iterator[Message]:
        """Every retained message that the (valid) filter matches."""
        if has_wildcard(topic_filter):
            yield from self._by_topic.matching(topic_filter)
        else:
            message = self._messages.get(topic_filter)
            if message is not None:
                yield message

    def __iter__(self) -> Iterator[Message]:
        """All of them."""
        return iter(self._messages.values())


def _cost(message: Message) -> int:
    return message.size_bytes() + place_bytes(message.topic)
