"""PUBLISH packets to clients: the wire forms of a message (MQTT 5.0 section 3.3).

A message is encoded once per wire form and shared by all clients that take that form. A form is
what comes before and after the packet identifier, so that QoS 1 and 2 add only two bytes to it.
Only what differs from client to client (topic aliases, subscription identifiers, a remaining expiry
interval) is encoded for one client alone.
"""

from collections.abc import Callable
from math import ceil
from typing import TypeVar

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message, MessageProperties, Terms
from ganglion.broker.core.reading import InvalidSource, check_source_topic
from ganglion.broker.core.topics import InvalidTopic, TopicLimit, check_topic_name
from ganglion.protocols.mqtt.codec import encode_length
from ganglion.protocols.mqtt.packets import V5
from ganglion.protocols.mqtt.properties import Properties, encode_properties
from ganglion.protocols.mqtt.reasons import ProtocolViolation, Reason

__all__ = [
    "DELAY",
    "DELAY_MAX_S",
    "FORM_3",
    "FORM_5",
    "check_publish_properties",
    "check_response_topic",
    "check_topic",
    "message_properties",
    "packet_properties",
    "payload_problem",
    "wire_form",
]

DELAY = "x-delay-s"
"""A user property: for how long a queue keeps the message back, in seconds."""
DELAY_MAX_S = 10 * 366 * 86_400

# The key of an encoding in `Message.forms` is form << 3 | qos << 1 | retain.
FORM_3 = 0
"""The wire form of MQTT 3.1 and 3.1.1."""
FORM_5 = 1
"""The wire form of MQTT 5.0."""


def wire_form(
    message: Message, terms: Terms, version: int, now: float, alias: int = 0, known: bool = False
) -> tuple[bytes, bytes]:
    """What comes before and after the packet identifier; all of it before for QoS 0.

    `alias` is the topic alias to send, 0 for none; with `known` the topic is left out beside it.
    """
    topic = b"" if known else message.topic.encode()
    payload = message.payload
    qos = terms.qos
    if version == V5:
        properties = packet_properties(message, terms, now, alias)
        tail = (encode_properties(properties) if properties is not None else b"\0") + payload
    else:
        tail = payload
    length = 2 + len(topic) + (2 if qos else 0) + len(tail)
    head = b"".join(
        (
            (0x30 | qos << 1 | terms.retain).to_bytes(1, "big"),
            encode_length(length),
            len(topic).to_bytes(2, "big"),
            topic,
        )
    )
    return (head, tail) if qos else (head + tail, b"")


def packet_properties(
    message: Message, terms: Terms, now: float, alias: int = 0
) -> Properties | None:
    """The properties of the PUBLISH; None when it has none."""
    about = message.properties
    expires_at = message.expires_at
    if about is None and expires_at is None and not alias and not terms.identifiers:
        return None
    properties = Properties(subscription_identifiers=terms.identifiers)
    if about is not None:
        if about.payload_is_text is not None:
            properties.payload_format_indicator = int(about.payload_is_text)
        properties.content_type = about.content_type
        properties.response_topic = about.response_topic
        properties.correlation_data = about.correlation_data
        properties.user_properties = about.user_properties + _named_properties(about)
    if expires_at is not None:  # 3.3.2.3.3: the interval received minus the time spent here
        properties.message_expiry_interval = max(0, ceil(expires_at - now))
    if alias:
        properties.topic_alias = alias
    return properties


def check_topic(topic: str, limits: Limits) -> None:
    """Raise `InvalidTopic` unless a client may name this topic in a PUBLISH.

    `TopicLimit` where it is well formed, and not one of this node.
    """
    check_topic_name(topic, limits)
    if topic[:1] == "$":
        try:
            check_source_topic(topic)
        except InvalidSource as error:
            raise TopicLimit(str(error)) from None


def check_publish_properties(properties: Properties, limits: Limits) -> None:
    """Raise `ProtocolViolation` for what a client may not send with a PUBLISH (3.3.2.3)."""
    if len(properties.subscription_identifiers) > 1:
        # MQTT-3.3.4-6 forbids even one; like Mosquitto we ignore that
        raise ProtocolViolation("a client sends no subscription identifiers (3.3.4-6)")
    if properties.response_topic is not None:
        check_response_topic(properties.response_topic, limits)


def check_response_topic(topic: str, limits: Limits) -> None:
    """Raise `ProtocolViolation` unless replies can be published there (3.3.2.3.5)."""
    try:
        check_topic_name(topic, limits)
    except InvalidTopic as error:
        raise ProtocolViolation(f"response topic: {error} (MQTT-3.3.2-14)") from None


def payload_problem(message: Message) -> str:
    """Why the payload is not the text that its publisher says it is (3.3.2.3.2); empty: it is."""
    about = message.properties
    if about is None or not about.payload_is_text:
        return ""
    try:
        message.payload.decode()
    except UnicodeDecodeError as error:
        return f"payload is not UTF-8: {error.reason} at byte {error.start}"
    return ""


def message_properties(properties: Properties) -> MessageProperties | None:
    """What the publisher says about the payload, from the properties of a PUBLISH or a will."""
    indicator = properties.payload_format_indicator
    named = {name: value for name, value in properties.user_properties if name in _NAMED}
    about = MessageProperties(
        payload_is_text=None if indicator is None else bool(indicator),
        content_type=properties.content_type,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
        user_properties=tuple(each for each in properties.user_properties if each[0] not in _NAMED),
        key=named.get(_KEY),
        message_id=named.get(_MESSAGE_ID),
        priority=_number(named, _PRIORITY, int, _PRIORITY_MAX),
        delay_s=_number(named, DELAY, float, DELAY_MAX_S),
    )
    return None if about == _NOTHING else about


_N = TypeVar("_N", int, float)


def _number(named: dict[str, str], name: str, kind: Callable[[str], _N], most: int) -> _N | None:
    text = named.get(name)
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = kind("-1")
    if not 0 <= value <= most:
        raise ProtocolViolation(
            f"user property {name} is {text!r}; it must be a number from 0 to {most}",
            Reason.IMPLEMENTATION_SPECIFIC_ERROR,
        )
    return value


def _named_properties(about: MessageProperties) -> tuple[tuple[str, str], ...]:
    """The user properties that stand for what MQTT has no property for."""
    values = (
        (_KEY, about.key),
        (_MESSAGE_ID, about.message_id),
        (_PRIORITY, about.priority),
        (DELAY, about.delay_s),
    )
    return tuple((name, str(value)) for name, value in values if value is not None)


_KEY, _MESSAGE_ID, _PRIORITY = "x-key", "x-message-id", "x-priority"
_NAMED = frozenset((_KEY, _MESSAGE_ID, _PRIORITY, DELAY))
_PRIORITY_MAX = 255
_NOTHING = MessageProperties()
