"""What clients publish: without confirmation, with, and many at once."""

from typing import TYPE_CHECKING, cast

from ganglion import GanglionError
from ganglion.broker.core.message import Message, MessageProperties
from ganglion.broker.core.node import NoRoom, NotAllowed
from ganglion.broker.core.topics import check_topic_name
from ganglion.protocols.native.arguments import data_at, element, text_at, whole_at
from ganglion.protocols.native.confirmations import TAKEN_BEFORE, Counts
from ganglion.protocols.native.frames import Frame, bytes_of, is_array
from ganglion.protocols.native.operations import BATCH_MAX, Code
from ganglion.protocols.native.properties import InvalidProperty, from_map, is_number
from ganglion.protocols.native.refusals import Refused, invalid, refusal_of

if TYPE_CHECKING:
    from ganglion.broker.core.router import Route
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["make_message", "publish", "publish_batch", "publish_durably", "publish_message"]


def publish_message(connection: "NativeConnection", frame: Frame) -> None:
    """`message`: nobody is told what becomes of it."""
    statistics = connection.server.node.statistics
    try:
        message = make_message(
            connection, text_at(frame, 1, "topic"), data_at(frame, 2, "payload"), element(frame, 3)
        )
        _send(connection, message)
    except GanglionError as error:
        refusal = refusal_of(error)
        session = connection.session
        client = session.client if session is not None else None
        topic = element(frame, 1)
        details = {"topic": topic} if isinstance(topic, str) else {}
        connection.server.node.refusals.refuse("publish", client, str(refusal), **details)
        statistics.drop("refused")


def publish(connection: "NativeConnection", frame: Frame) -> None:
    """`publish`: confirmed after the commit where anything of it is durable."""
    number = whole_at(frame, 1, "id")
    producer = connection.producer if number else None
    if producer is not None:
        _check_producer(connection)
        if producer.was_taken(number):
            connection.confirmations.add(number, TAKEN_BEFORE, durable=True)
            return
    try:
        message = make_message(
            connection, text_at(frame, 2, "topic"), data_at(frame, 3, "payload"), element(frame, 4)
        )
        message.qos = 1
        counts = _send(connection, message)
    except GanglionError:
        connection.server.node.statistics.drop("refused")
        if producer is not None:
            producer.refused(number)
        raise
    if producer is not None:
        producer.taken(number, durable=message.durable)
    if number:
        connection.confirmations.add(number, counts, durable=message.durable)


def publish_durably(connection: "NativeConnection", message: Message) -> None:
    """Publish with the answer of another operation."""
    message.qos = 1
    _send(connection, message)


def _check_producer(connection: "NativeConnection") -> None:
    producer = connection.producer
    if producer is not None and producer.owner is not connection:
        raise Refused(Code.SEQUENCE, "another connection has taken over the producer")


def publish_batch(connection: "NativeConnection", frame: Frame) -> None:
    """`publish batch`: all are judged before any is published."""
    number = whole_at(frame, 1, "id")
    producer = connection.producer if number else None
    begin = 0
    if producer is not None:
        _check_producer(connection)
        if producer.was_taken(number):
            connection.answer_durably(number, TAKEN_BEFORE)
            return
        begin = producer.part_taken(number)
    subscribers = queues = streams = 0
    taken, is_durable = begin, False
    try:
        messages = _batch(connection, frame)
        for message in messages[begin:]:
            counts = _publish(connection, message, None)
            subscribers += counts[0] or 0
            queues += counts[1] or 0
            streams += counts[2] or 0
            is_durable = is_durable or message.durable
            taken += 1
    except GanglionError as error:
        connection.server.node.statistics.drop("refused")
        if producer is not None:
            producer.refused(number, taken, durable=is_durable)
        if isinstance(error, NoRoom):
            raise Refused(Code.FULL, str(error), {"index": taken}) from None
        raise
    if producer is not None:
        producer.taken(number, durable=is_durable)
    counts = (subscribers, queues, streams)
    if is_durable:
        connection.answer_durably(number, counts)
    else:
        connection.confirmations.flush()
        connection.answer(number, counts)


def _batch(connection: "NativeConnection", frame: Frame) -> list[Message]:
    """The messages of a batch, judged. Raises `Refused` with the index of what is wrong."""
    payloads = element(frame, 3)
    topics, properties = element(frame, 2), element(frame, 4)
    if not is_array(payloads) or len(payloads) > BATCH_MAX:
        raise invalid(f"payloads must be an array of at most {BATCH_MAX}")
    count = len(payloads)
    for name, each in (("topics", topics), ("properties", properties)):
        if is_array(each) and len(each) != count:
            raise invalid(f"there are {count} payloads, and not as many {name}")
    messages: list[Message] = []
    node = connection.server.node
    judged: set[tuple[str, bool]] = set()
    for index in range(count):
        try:
            topic = topics[index] if is_array(topics) else topics
            about = properties[index] if is_array(properties) else properties
            if not isinstance(topic, str) or "\0" in topic:
                raise invalid("topic must be text")
            payload = bytes_of(payloads[index])
            if payload is None:
                raise invalid("payload must be bytes")
            message = make_message(connection, topic, payload, about)
            message.qos = 1
            if (topic, message.retain) not in judged:
                _judge(connection, message)
                judged.add((topic, message.retain))
            node.check_size(message, node.router.route(topic))
        except GanglionError as error:
            refusal = refusal_of(error)
            raise Refused(refusal.code, str(refusal), {"index": index}) from None
        messages.append(message)
    return messages


def make_message(
    connection: "NativeConnection", topic: str, payload: bytes, members: object
) -> Message:
    """The message that a frame describes, not judged yet. Raises `InvalidProperty`."""
    if members is None:
        return Message(topic, payload)
    about: MessageProperties | None = from_map(members)
    if about is not None and about.response_topic is not None:
        check_topic_name(about.response_topic, connection.server.node.limits)
    found = cast("dict[str, object]", members)
    expires_at = None
    expires_s = found.get("expires_s")
    if expires_s is not None:
        if not is_number(expires_s):
            raise InvalidProperty("property expires_s must be a number of seconds from 0")
        expires_at = connection.server.node.timers.now + cast("float", expires_s)
    retain = found.get("retain")
    if retain is not None and type(retain) is not bool:
        raise InvalidProperty("property retain must be true or false")
    return Message(topic, payload, 0, bool(retain), about, expires_at)


def _send(connection: "NativeConnection", message: Message) -> Counts:
    """Judge the message and publish it: how many targets of each kind it had."""
    about = message.properties
    route = None
    # what has a response topic may be a request, and the node has to look for who serves it
    if not message.retain and (about is None or about.response_topic is None):
        route = connection.known_route(message.topic)
    if route is None:
        _judge(connection, message)
    counts = _publish(connection, message, route)
    if route is None and connection.session is not None:
        connection.remember(connection.session, message.topic)
    return counts


def _judge(connection: "NativeConnection", message: Message) -> None:
    """Raise `NotAllowed` or `InvalidTopic` unless the client may publish this."""
    session, node = connection.session, connection.server.node
    assert session is not None
    check_topic_name(message.topic, node.limits)
    decision = node.may_publish(session.client, message.topic, message.qos, message.retain)
    if not decision.allowed and not node.session_requests.may_answer(session, message):
        raise NotAllowed(decision)


def _publish(
    connection: "NativeConnection", message: Message, route: "Route | None"
) -> tuple[int, int, int]:
    node = connection.server.node
    traffic = connection.traffic
    traffic.received += 1
    traffic.received_bytes += len(message.topic) + len(message.payload)
    count = node.publish(message, route, connection.session)
    if route is None or not route.valid:
        route = node.router.route(message.topic)
    return count - route.queues - route.streams, route.queues, route.streams
