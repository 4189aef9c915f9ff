"""Topic aliases: numbers that stand for topics on one MQTT 5.0 connection (section 3.3.2.3.4)."""

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message, Terms
from ganglion.protocols.mqtt.packets import V5
from ganglion.protocols.mqtt.publishing import wire_form
from ganglion.protocols.mqtt.reasons import ProtocolViolation, Reason

__all__ = ["IncomingAliases", "OutgoingAliases"]


class IncomingAliases:
    """The aliases that the client has given to topics."""

    __slots__ = ("_topics",)

    def __init__(self) -> None:
        self._topics: dict[int, str] = {}

    def resolve(self, topic: str, alias: int, limits: Limits) -> str:
        """The topic of a PUBLISH with this alias; a topic that can be published to is remembered.

        Raises `ProtocolViolation` when the alias is above the announced maximum or unknown.
        """
        limit = limits.topic_alias_max
        if alias > limit:
            raise ProtocolViolation(
                f"topic alias {alias} is above Topic Alias Maximum = {limit} (MQTT-3.3.2-9)",
                Reason.TOPIC_ALIAS_INVALID,
            )
        if topic:
            if len(topic) <= limits.topic_size_max_bytes:
                self._topics[alias] = topic
            return topic
        known = self._topics.get(alias)
        if known is None:
            raise ProtocolViolation(f"topic alias {alias} has no topic yet (3.3.2.3.4)")
        return known


class OutgoingAliases:
    """The aliases that the node gives to the first topics the client gets, as many as it takes."""

    __slots__ = ("_aliases", "_maximum")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._aliases: dict[str, int] = {}

    def wire_form(
        self, message: Message, terms: Terms, now: float, size_max: int
    ) -> tuple[bytes, bytes]:
        """What to send for this message; its topic is a number from the second time on.

        Call it only for what will be sent: a client cannot know an alias of a dropped packet.
        """
        aliases = self._aliases
        alias = aliases.get(message.topic, 0)
        if alias:
            return wire_form(message, terms, V5, now, alias, known=True)
        if len(aliases) >= self._maximum:
            return wire_form(message, terms, V5, now)
        alias = len(aliases) + 1
        head, tail = wire_form(message, terms, V5, now, alias)
        if len(head) + 2 + len(tail) <= size_max:  # else it is dropped for its size
            aliases[message.topic] = alias
        return head, tail
