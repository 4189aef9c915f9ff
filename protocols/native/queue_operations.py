"""Queues: declaring, looking at, emptying, deleting.

Access to a queue is judged as access to its topic ``$queue/{name}``: looking and consuming need the
right to subscribe to it, whatever changes it both rights.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ganglion.broker.core.definitions import InvalidDefinition, with_options
from ganglion.broker.core.node import NotAllowed
from ganglion.broker.core.queue import QUEUE_PREFIX
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.sources import may_declare
from ganglion.broker.core.topics import check_topic_filter
from ganglion.protocols.native.arguments import Options, options_at, text_at, whole_at
from ganglion.protocols.native.delivering import properties_of
from ganglion.protocols.native.frames import Frame, is_array
from ganglion.protocols.native.operations import BATCH_MAX
from ganglion.protocols.native.refusals import invalid

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = [
    "browse_queue",
    "changed",
    "check_declare",
    "check_read",
    "declare_queue",
    "delete_queue",
    "describe_queue",
    "list_queues",
    "page",
    "pause_queue",
    "purge_queue",
    "redrive_queue",
    "resume_queue",
]

_PAGE_DEFAULT = 100
_PAGE_BYTES_MAX = 1024 * 1024  # of payloads in one answer; one message comes in any case


def check_read(connection: "NativeConnection", topic: str) -> None:
    """Raise `NotAllowed` unless the client may read what this topic leads to."""
    session, node = connection.session, connection.server.node
    assert session is not None
    decision = node.access.subscribe(session.client, topic, 1)
    if not decision.allowed:
        raise NotAllowed(decision)


def check_declare(connection: "NativeConnection", topic: str) -> None:
    """Raise `NotAllowed` unless the client may change what this topic leads to."""
    session, node = connection.session, connection.server.node
    assert session is not None
    decision = may_declare(node.access, session.client, topic, ())
    if not decision.allowed:
        raise NotAllowed(decision)


_D = TypeVar("_D", bound=Any)


def changed(connection: "NativeConnection", definition: _D, options: Options) -> _D:
    """The definition of a queue or stream with what a client wants otherwise.

    Raises `InvalidDefinition`, and `NotAllowed` for a binding that it has no right to.
    """
    session, node = connection.session, connection.server.node
    assert session is not None
    members = options.members()
    kinds: dict[str, type] = {name: type(value) for name, value in asdict(definition).items()}
    for name, value in members.items():
        kind = kinds.get(name)
        if name == "bindings":
            if not is_array(value):
                raise invalid("option bindings must be an array of topic filters")
            for topic_filter in value:
                if not isinstance(topic_filter, str):
                    raise invalid("option bindings must be an array of topic filters")
                check_topic_filter(topic_filter, node.limits)
                decision = node.access.bind(session.client, topic_filter)
                if topic_filter not in definition.bindings and not decision.allowed:
                    raise NotAllowed(decision)
        elif kind is float and type(value) is int:
            members[name] = float(value)
        elif kind is not None and type(value) is not kind:
            raise invalid(f"option {name} must be of the type {_TYPES[kind]}")
    if "name" in members:
        raise InvalidDefinition("option name cannot be changed")
    return with_options(definition, members)


_TYPES = {bool: "bool", int: "int", float: "number", str: "text"}


def page(
    names: Iterable[str], options: Options, may_see: Callable[[str], bool]
) -> tuple[list[str], bool]:
    """The next names in order that a client may see, and whether there are more."""
    after = options.text("after") or ""
    count = options.whole("count", BATCH_MAX) or _PAGE_DEFAULT
    found = (name for name in sorted(names) if name > after and may_see(name))
    shown = list(islice(found, count + 1))
    return shown[:count], len(shown) > count


def declare_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`declare`: make the queue, or change it."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, QUEUE_PREFIX + name)
    queues = connection.server.node.queues
    found = queues.find(name)
    definition = QueueDefinition(name=name) if found is None else found.definition
    definition = changed(connection, definition, options_at(frame, 3))
    dead_letter = definition.dead_letter
    if dead_letter and (found is None or found.definition.dead_letter != dead_letter):
        check_declare(connection, QUEUE_PREFIX + dead_letter)
    queue = queues.declare(definition)
    connection.answer_durably(number, {"definition": asdict(queue.definition)})


def describe_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`describe`: how it is and how it stands."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_read(connection, QUEUE_PREFIX + name)
    queue = connection.server.node.queues.get(name)
    connection.answer(
        number,
        {
            "definition": asdict(queue.definition),
            "statistics": asdict(queue.statistics()),
            "paused": queue.is_paused,
        },
    )


def list_queues(connection: "NativeConnection", frame: Frame) -> None:
    """`list`: those that the client may send to or consume."""
    number = whole_at(frame, 1, "id")
    session, node = connection.session, connection.server.node
    assert session is not None
    client, access = session.client, node.access

    def may_see(name: str) -> bool:
        topic = QUEUE_PREFIX + name
        return (
            access.subscribe(client, topic, 1).allowed
            or access.publish(client, topic, 1, False).allowed
        )

    names, has_more = page((each.name for each in node.queues), options_at(frame, 2), may_see)
    found: list[dict[str, Any]] = []
    for name in names:
        queue = node.queues.get(name)
        found.append(
            {
                "name": name,
                "messages": queue.count,
                "consumers": len(queue.consumers),
                "paused": queue.is_paused,
            }
        )
    connection.answer(number, {"queues": found, "more": has_more})


def delete_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`delete`: with all that is in it."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, QUEUE_PREFIX + name)
    connection.server.node.queues.delete(name)
    connection.answer_durably(number)


def purge_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`purge`: forget what no consumer has."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, QUEUE_PREFIX + name)
    purged = connection.server.node.queues.get(name).purge()
    connection.answer_durably(number, {"purged": purged})


def pause_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`pause`: give nothing out."""
    _set_paused(connection, frame, is_paused=True)


def resume_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`resume`: go on giving out."""
    _set_paused(connection, frame, is_paused=False)


def _set_paused(connection: "NativeConnection", frame: Frame, *, is_paused: bool) -> None:
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, QUEUE_PREFIX + name)
    connection.server.node.queues.set_paused(name, is_paused)
    connection.answer_durably(number)


def browse_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`browse`: look without taking."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    options = options_at(frame, 3)
    check_read(connection, QUEUE_PREFIX + name)
    node = connection.server.node
    queue = node.queues.get(name)
    priority = options.whole("priority", queue.definition.priorities - 1) or 0
    count = options.whole("count", BATCH_MAX) or _PAGE_DEFAULT
    rows: list[tuple[Any, ...]] = []
    has_more, size = False, 0
    for each in queue.browse(options.whole("after") or 0, priority):
        message = each.message
        size += len(message.payload)
        if len(rows) == count or (rows and size > _PAGE_BYTES_MAX):
            has_more = True
            break
        row = (each.number, each.time_s, each.attempts, message.topic, message.payload)
        members = properties_of(message, node.timers.now)
        rows.append((*row, members) if members else row)
    connection.answer(number, {"messages": rows, "more": has_more})


def redrive_queue(connection: "NativeConnection", frame: Frame) -> None:
    """`redrive`: send dead letters back to where they came from."""
    number, name = whole_at(frame, 1, "id"), text_at(frame, 2, "name")
    check_declare(connection, QUEUE_PREFIX + name)
    queue = connection.server.node.queues.get(name)
    redriven = queue.redrive(whole_at(frame, 3, "count", _REDRIVE_MAX))
    connection.answer_durably(number, {"redriven": redriven})


_REDRIVE_MAX = 10_000  # of one request: it is done at once, and holds up everybody else
