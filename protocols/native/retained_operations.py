"""Last values of topics: getting, putting, deleting, listing."""

from typing import TYPE_CHECKING, Any

from ganglion.broker.core.message import Message
from ganglion.broker.core.node import NotAllowed
from ganglion.broker.core.topics import check_topic_filter, check_topic_name
from ganglion.protocols.native.arguments import data_at, element, options_at, text_at, whole_at
from ganglion.protocols.native.delivering import properties_of
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import BATCH_MAX
from ganglion.protocols.native.publishing import make_message, publish_durably
from ganglion.protocols.native.refusals import invalid

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["delete_retained", "get_retained", "list_retained", "put_retained"]

_PAGE_DEFAULT = 100
_PAGE_BYTES_MAX = 1024 * 1024  # of payloads in one answer; one message comes in any case


def get_retained(connection: "NativeConnection", frame: Frame) -> None:
    """`get`: the last value of one topic."""
    number, topic = whole_at(frame, 1, "id"), text_at(frame, 2, "topic")
    node = connection.server.node
    check_topic_name(topic, node.limits)
    _check_may_subscribe(connection, topic)
    message = node.retained.get(topic)
    if message is None or _is_over(connection, message):
        connection.answer(number)
        return
    members = properties_of(message, node.timers.now)
    connection.answer(number, (message.payload, members) if members else (message.payload,))


def put_retained(connection: "NativeConnection", frame: Frame) -> None:
    """`put`: publish and keep."""
    number, topic = whole_at(frame, 1, "id"), text_at(frame, 2, "topic")
    payload = data_at(frame, 3, "payload")
    if not payload:
        raise invalid("payload must not be empty: that deletes a last value")
    message = make_message(connection, topic, payload, element(frame, 4))
    message.retain = True
    publish_durably(connection, message)
    connection.answer_durably(number)


def delete_retained(connection: "NativeConnection", frame: Frame) -> None:
    """`delete`: there is none any more."""
    number, topic = whole_at(frame, 1, "id"), text_at(frame, 2, "topic")
    publish_durably(connection, Message(topic, b"", 1, retain=True))
    connection.answer_durably(number)


def list_retained(connection: "NativeConnection", frame: Frame) -> None:
    """`list`: by topic."""
    number, topic_filter = whole_at(frame, 1, "id"), text_at(frame, 2, "filter")
    options = options_at(frame, 3)
    session, node = connection.session, connection.server.node
    assert session is not None
    check_topic_filter(topic_filter, node.limits)
    _check_may_subscribe(connection, topic_filter)
    after = options.text("after") or ""
    count = options.whole("count", BATCH_MAX) or _PAGE_DEFAULT
    found = sorted(
        [
            message
            for message in node.retained.matching(topic_filter)
            if message.topic > after
            and not _is_over(connection, message)
            and node.may_receive(session, message.topic)
        ],
        key=lambda message: message.topic,
    )
    rows: list[tuple[Any, ...]] = []
    size = 0
    for message in found:
        size += len(message.payload)
        if len(rows) == count or (rows and size > _PAGE_BYTES_MAX):
            break
        members = properties_of(message, node.timers.now)
        row = (message.topic, message.payload)
        rows.append((*row, members) if members else row)
    connection.answer(number, {"messages": rows, "more": len(found) > len(rows)})


def _is_over(connection: "NativeConnection", message: Message) -> bool:
    expires_at = message.expires_at
    return expires_at is not None and expires_at <= connection.server.node.timers.now


def _check_may_subscribe(connection: "NativeConnection", topic_filter: str) -> None:
    session = connection.session
    assert session is not None
    decision = connection.server.node.may_subscribe(session, topic_filter, 0)
    if not decision.allowed:
        raise NotAllowed(decision)
