"""What a message in a dead letter queue says of where it was, why it is here, and how it gets back.

It has its topic and payload still, and user properties for the rest.
"""

from dataclasses import replace
from typing import Final

from ganglion.broker.core.message import Message, MessageProperties

__all__ = ["ORIGIN_COUNT", "ORIGIN_QUEUE", "ORIGIN_REASON", "as_before", "as_dead_letter"]

ORIGIN_QUEUE: Final = "x-dead-letter-queue"
"""The queue where it was."""
ORIGIN_REASON: Final = "x-dead-letter-reason"
"""Why it was buried."""
ORIGIN_COUNT: Final = "x-dead-letter-count"
"""How often it was delivered."""
_ORIGIN = (ORIGIN_QUEUE, ORIGIN_REASON, ORIGIN_COUNT)


def as_dead_letter(message: Message, queue: str, reason: str, attempts: int) -> Message:
    """The message as it goes to a dead letter queue.

    It is not late there, and known by no identifier: it may be buried more than once.
    """
    about = message.properties or MessageProperties()
    origin = ((ORIGIN_QUEUE, queue), (ORIGIN_REASON, reason), (ORIGIN_COUNT, str(attempts)))
    about = replace(about, user_properties=_others(about) + origin, delay_s=None, message_id=None)
    return Message(message.topic, message.payload, message.qos, False, about)


def as_before(message: Message) -> tuple[str | None, Message]:
    """The queue that a dead letter came from (None: it is no dead letter), and what it was."""
    about = message.properties or MessageProperties()
    origin = dict(about.user_properties).get(ORIGIN_QUEUE)
    about = replace(about, user_properties=_others(about))
    return origin, Message(message.topic, message.payload, message.qos, False, about)


def _others(about: MessageProperties) -> tuple[tuple[str, str], ...]:
    return tuple(each for each in about.user_properties if each[0] not in _ORIGIN)
