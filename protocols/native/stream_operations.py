"""Streams: appending to them, declaring, looking at, deleting, and their groups."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from ganglion import GanglionError
from ganglion.broker.core.message import MessageProperties
from ganglion.broker.core.node import DiskFull, NotAllowed
from ganglion.broker.core.stream import STREAM_PREFIX, Stream
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.topics import check_topic_name
from ganglion.protocols.native.arguments import (
    Options,
    data_at,
    element,
    options_at,
    text_at,
    whole_at,
)
from ganglion.protocols.native.frames import Frame, bytes_of, is_array, is_map
from ganglion.protocols.native.operations import BATCH_MAX
from ganglion.protocols.native.properties import from_map
from ganglion.protocols.native.queue_operations import changed, check_declare, check_read, page
from ganglion.protocols.native.refusals import invalid

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = [
    "append",
    "append_batch",
    "declare_group",
    "declare_stream",
    "delete_group",
    "delete_stream",
    "describe_stream",
    "list_streams",
    "tell_version",
]


def append(connection: "NativeConnection", frame: Frame) -> None:
    """`append`: one record."""
    payload = data_at(frame, 3, "payload")
    members = element(frame, 4)
    about = None if members is None else from_map(members)
    keys = None if about is None or about.key is None else [about.key]
    _append(connection, frame, [payload], keys, None if about is None else [about])


def append_batch(connection: "NativeConnection", frame: Frame) -> None:
    """`append batch`: many records, by columns, all or none."""
    column = element(frame, 3)
    if not is_array(column) or len(column) > BATCH_MAX:
        raise invalid(f"payloads must be an array of at most {BATCH_MAX}")
    payloads: list[Any] = list(column)
    count = len(payloads)
    if set(map(type, payloads)) != {bytes}:
        payloads = [bytes_of(each) for each in payloads]
        if None in payloads:
            raise invalid("payloads must be an array of bytes")
    members = element(frame, 4)
    properties: list[MessageProperties | None] | None = None
    if is_array(members):
        if len(members) != count:
            raise invalid(f"there are {count} payloads, and not as many properties")
        properties = [None if each is None else from_map(each) for each in members]
    elif members is not None:
        properties = [from_map(members)] * count
    keys: list[str | None] | None = None
    given = options_at(frame, 5).get("keys")
    if given is not None:
        if not is_array(given) or not all(each is None or isinstance(each, str) for each in given):
            raise invalid("option keys must be an array of text or nil")
        keys = list(cast("tuple[str | None, ...]", given))
        if len(keys) != count:
            raise invalid(f"there are {count} payloads, and not as many keys")
    elif properties is not None and any(each is not None and each.key for each in properties):
        keys = [None if each is None else each.key for each in properties]
    _append(connection, frame, payloads, keys, properties)


def _append(
    connection: "NativeConnection",
    frame: Frame,
    payloads: list[bytes],
    keys: list[str] | list[str | None] | None,
    properties: list[MessageProperties] | list[MessageProperties | None] | None,
) -> None:
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "stream")
    options = options_at(frame, 5)
    topic = options.text("topic")
    node = connection.server.node
    stream = _stream_for_append(connection, name, options, topic)
    if node.is_full:
        raise DiskFull("the disk is full: what has to be durable is not taken")
    appended = stream.append(
        payloads, topic=topic, keys=keys, properties=properties, expected=_expected(options)
    )
    size = sum(map(len, payloads))
    node.journal.commits.waiting_bytes += size
    connection.traffic.received += len(payloads)
    connection.traffic.received_bytes += size
    if number:
        connection.answer_durably(number, {"first": appended.first, "last": appended.last})


def _stream_for_append(
    connection: "NativeConnection", name: str, options: Options, topic: str | None
) -> Stream:
    """The stream, if the client may append to it with this topic."""
    session, node = connection.session, connection.server.node
    assert session is not None
    path = STREAM_PREFIX + name
    access = node.access
    decision = access.publish(session.client, path, 1, False)
    if decision.allowed and topic is not None and topic != path:
        check_topic_name(topic, node.limits)
        decision = node.may_publish(session.client, topic, 1, False)
    if not decision.allowed:
        raise NotAllowed(decision)
    stream = node.streams.find(name)
    if stream is None and options.flag("declare"):
        check_declare(connection, path)
        stream = node.streams.declare(StreamDefinition(name=name))
    return node.streams.get(name) if stream is None else stream


def _expected(options: Options) -> dict[str, int] | None:
    given = options.get("expected")
    if given is None:
        return None
    if is_map(given) and all(type(each) is int and each >= 0 for each in given.values()):
        return cast("dict[str, int]", given)
    raise invalid("option expected must be a map of text to whole numbers from 0")


def declare_stream(connection: "NativeConnection", frame: Frame) -> None:
    """`declare`: make the stream, or change it."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, STREAM_PREFIX + name)
    streams = connection.server.node.streams
    found = streams.find(name)
    definition = StreamDefinition(name=name) if found is None else found.definition
    stream = streams.declare(changed(connection, definition, options_at(frame, 3)))
    connection.answer_durably(number, {"definition": asdict(stream.definition)})


def describe_stream(connection: "NativeConnection", frame: Frame) -> None:
    """`describe`: how it is and how it stands."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_read(connection, STREAM_PREFIX + name)
    stream = connection.server.node.streams.get(name)
    result = {"definition": asdict(stream.definition), "statistics": asdict(stream.statistics())}
    connection.answer(number, result)


def list_streams(connection: "NativeConnection", frame: Frame) -> None:
    """`list`: those that the client may append to or read."""
    number = whole_at(frame, 1, "id")
    session, node = connection.session, connection.server.node
    assert session is not None
    client, access = session.client, node.access

    def may_see(name: str) -> bool:
        topic = STREAM_PREFIX + name
        return (
            access.subscribe(client, topic, 1).allowed
            or access.publish(client, topic, 1, False).allowed
        )

    names, has_more = page((each.name for each in node.streams), options_at(frame, 2), may_see)
    found: list[dict[str, Any]] = []
    for name in names:
        stream = node.streams.get(name)
        found.append(
            {
                "name": name,
                "first": stream.first,
                "last": stream.last,
                "records": stream.statistics().records,
            }
        )
    connection.answer(number, {"streams": found, "more": has_more})


def delete_stream(connection: "NativeConnection", frame: Frame) -> None:
    """`delete`: with all that is in it."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, STREAM_PREFIX + name)
    connection.server.node.streams.delete(name)
    connection.answer_durably(number)


def declare_group(connection: "NativeConnection", frame: Frame) -> None:
    """`group`: make a consumer group that is not there."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, STREAM_PREFIX + name)
    stream = connection.server.node.streams.get(name)
    after = options_at(frame, 4).whole("after")
    group = stream.group(text_at(frame, 3, "group"), stream.last if after is None else after)
    connection.answer_durably(number, {"position": group.position})


def delete_group(connection: "NativeConnection", frame: Frame) -> None:
    """`delete group`: forget it and its position."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, STREAM_PREFIX + name)
    connection.server.node.streams.get(name).delete_group(text_at(frame, 3, "group"))
    connection.answer_durably(number)


def tell_version(connection: "NativeConnection", frame: Frame) -> None:
    """`version`: of a key."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_read(connection, STREAM_PREFIX + name)
    stream = connection.server.node.streams.get(name)
    try:
        version = stream.version(text_at(frame, 3, "key"))
    except GanglionError as error:
        raise invalid(str(error)) from None
    connection.answer(number, {"version": version})
