"""How messages are written in the store.

A single message (`encode_message`) is a msgpack array. Messages that wait in a backlog come by the
batch and are written by columns (`encode_entries`): one call packs a thousand of them, and what all
have in common (the topic, mostly) is written once. Times are Unix times, since the monotonic clock
does not survive a restart: `wall_clock_offset_s` is what to add to the latter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from ganglion.broker.core.message import PLAIN_TERMS, Message, MessageProperties, Terms

__all__ = ["Entries", "decode_entries", "decode_message", "encode_entries", "encode_message"]

_pack: Callable[[object], bytes] = msgpack.Packer().pack  # a Packer each time would cost 1 µs
_RETAIN = 4  # beside the QoS in the flags of a message


def _properties_record(properties: MessageProperties | None) -> list[Any] | None:
    if properties is None:
        return None
    return [
        properties.payload_is_text,
        properties.content_type,
        properties.response_topic,
        properties.correlation_data,
        properties.user_properties,
        properties.key,
        properties.message_id,
        properties.priority,
        properties.delay_s,
    ]


def _properties_from_record(record: list[Any] | None) -> MessageProperties | None:
    if record is None:
        return None
    return MessageProperties(
        payload_is_text=record[0],
        content_type=record[1],
        response_topic=record[2],
        correlation_data=record[3],
        user_properties=tuple((name, value) for name, value in record[4]),
        key=record[5],
        message_id=record[6],
        priority=record[7],
        delay_s=record[8],
    )


def encode_message(message: Message, wall_clock_offset_s: float) -> bytes:
    """The message as it is stored by itself."""
    expires_at = message.expires_at
    return _pack(
        (
            message.topic,
            message.payload,
            message.qos | _RETAIN * message.retain,
            None if expires_at is None else expires_at + wall_clock_offset_s,
            _properties_record(message.properties),
        )
    )


def decode_message(record: bytes, wall_clock_offset_s: float) -> Message:
    """Back from `encode_message`."""
    topic, payload, flags, expires, properties = msgpack.unpackb(record)
    expires_at = None if expires is None else expires - wall_clock_offset_s
    return Message(
        topic, payload, flags & 3, flags >= _RETAIN, _properties_from_record(properties), expires_at
    )


def encode_entries(
    messages: Sequence[Message],
    terms: Sequence[Terms],
    time_s: float,
    wall_clock_offset_s: float,
) -> bytes:
    """Messages that wait in one backlog, by columns: time, topics, payloads, the rest.

    `terms` has those of each message. A column whose values are all equal is one value instead of
    a list. A message that is stored once for several backlogs stands there as its number in place
    of topic and payload.
    """
    plain = PLAIN_TERMS[1]
    first = messages[0]
    if (
        len(messages) == 1
        and terms[0] is plain
        and first.properties is None
        and first.shared is None
        and first.expires_at is None
    ):  # what a lone publisher sends, without the loops: they take three times as long
        flags = first.qos | _RETAIN if first.retain else first.qos
        return _pack((time_s, first.topic, [first.payload], flags))
    topics = [message.topic for message in messages]
    payloads: list[bytes | int] = []
    rests: list[Any] = []
    for message, its_terms in zip(messages, terms, strict=True):
        shared = message.shared
        payloads.append(message.payload if shared is None else shared.number)
        # what is true of nearly every message is written as one small number
        flags = message.qos | _RETAIN if message.retain else message.qos
        if its_terms is plain and message.properties is None and message.expires_at is None:
            rests.append(flags)
        elif shared is not None:
            rests.append((flags, None, None, _terms_record(its_terms)))
        else:
            expires_at = message.expires_at
            rests.append(
                (
                    flags,
                    None if expires_at is None else expires_at + wall_clock_offset_s,
                    _properties_record(message.properties),
                    _terms_record(its_terms),
                )
            )
    count = len(messages)
    one_topic = topics.count(topics[0]) == count
    one_rest = type(rests[0]) is int and rests.count(rests[0]) == count
    return _pack(
        (
            time_s,
            topics[0] if one_topic else topics,
            payloads,
            rests[0] if one_rest else rests,
        )
    )


class Entries:
    """What `encode_entries` wrote, by columns."""

    __slots__ = ("groups", "is_plain", "messages", "terms", "time_s")

    def __init__(
        self,
        time_s: float,
        messages: list[Message | None],
        terms: Sequence[Terms],
        groups: Sequence[str | None],
        *,
        is_plain: bool,
    ) -> None:
        self.time_s = time_s
        """When they came, in Unix seconds."""
        self.messages = messages
        """None for one that is stored by itself and was not found."""
        self.terms = terms
        self.groups = groups
        """The shared subscription that each was taken from."""
        self.is_plain = is_plain
        """All messages are there, none expires, and all are on the terms that most have."""

    def __len__(self) -> int:
        return len(self.messages)


def decode_entries(
    value: bytes, wall_clock_offset_s: float, shared: Callable[[int], Message | None]
) -> Entries:
    """Back from `encode_entries`. `shared` finds a message that is stored by itself."""
    columns: tuple[float, Any, list[bytes | int], Any] = msgpack.unpackb(value)
    time_s, topics, payloads, rests = columns
    count = len(payloads)
    one_topic = isinstance(topics, str)
    one_rest = type(rests) is int
    plain = PLAIN_TERMS[1]
    if one_rest and one_topic and int not in set(map(type, payloads)):
        # nearly always: 0.3 µs a message instead of 0.6
        qos, retain = rests & 3, rests >= _RETAIN
        same: list[Message | None] = [
            Message(topics, payload, qos, retain)  # type: ignore[arg-type] # none is a number
            for payload in payloads
        ]
        return Entries(time_s, same, (plain,) * count, (None,) * count, is_plain=True)
    messages: list[Message | None] = []
    all_terms: list[Terms] = []
    groups: list[str | None] = []
    is_plain = True
    for index, payload in enumerate(payloads):
        rest: Any = rests if one_rest else rests[index]
        terms, group = plain, None
        if type(rest) is int:
            expires = properties = None
            flags = rest
        else:
            flags, expires, properties, terms_record = rest
            if terms_record is not None:
                terms, group = _terms(terms_record)
        message: Message | None
        if isinstance(payload, int):
            message = shared(payload)
        else:
            message = Message(
                topics if one_topic else topics[index],
                payload,
                flags & 3,
                flags >= _RETAIN,
                None if properties is None else _properties_from_record(properties),
                None if expires is None else expires - wall_clock_offset_s,
            )
        if message is None or message.expires_at is not None or terms is not plain:
            is_plain = False
        messages.append(message)
        all_terms.append(terms)
        groups.append(group)
    return Entries(time_s, messages, all_terms, groups, is_plain=is_plain)


def _terms_record(terms: Terms) -> tuple[Any, ...] | None:
    if terms is PLAIN_TERMS[1]:
        return None
    group = terms.group
    name = None if group is None else f"$share/{group.name}/{group.topic_filter}"
    return (terms.qos, terms.retain, terms.identifiers, name, terms.attempts)


def _terms(record: tuple[int, bool, list[int], str | None, int]) -> tuple[Terms, str | None]:
    qos, retain, identifiers, group, attempts = record
    if not retain and not identifiers and not attempts:
        return PLAIN_TERMS[qos], group
    return Terms(qos, retain, tuple(identifiers), attempts=attempts), group
