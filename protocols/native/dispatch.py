"""Which function does what an operation says: a table, and the operations of the connection itself.

An operation of a client is a function that takes the connection and the frame. It raises what is
wrong, which `NativeConnection` answers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ganglion.protocols.native.arguments import whole_at
from ganglion.protocols.native.consuming import consume
from ganglion.protocols.native.following import follow, read
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import CREDIT_MAX, Code, Operation
from ganglion.protocols.native.publishing import publish, publish_batch, publish_message
from ganglion.protocols.native.queue_operations import (
    browse_queue,
    declare_queue,
    delete_queue,
    describe_queue,
    list_queues,
    pause_queue,
    purge_queue,
    redrive_queue,
    resume_queue,
)
from ganglion.protocols.native.requesting import answer, cancel, fail, gather, request, serve
from ganglion.protocols.native.retained_operations import (
    delete_retained,
    get_retained,
    list_retained,
    put_retained,
)
from ganglion.protocols.native.settling import acknowledge, extend, nack, reject
from ganglion.protocols.native.statistics import tell_statistics
from ganglion.protocols.native.stream_operations import (
    append,
    append_batch,
    declare_group,
    declare_stream,
    delete_group,
    delete_stream,
    describe_stream,
    list_streams,
    tell_version,
)
from ganglion.protocols.native.subscriptions import subscribe, unsubscribe

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["NAMES", "OPERATIONS"]

_REASON_MAX = 1000  # characters


def _on_ping(connection: "NativeConnection", _frame: Frame) -> None:
    connection.write(Operation.PONG)


def _on_pong(_connection: "NativeConnection", _frame: Frame) -> None:
    """It came: that is all it says."""


def _on_goodbye(connection: "NativeConnection", frame: Frame) -> None:
    reason = frame[1] if len(frame) > 1 and isinstance(frame[1], str) else "the client said goodbye"
    connection.confirmations.flush()
    connection.leave(reason[:_REASON_MAX])


def _on_credit(connection: "NativeConnection", frame: Frame) -> None:
    number = whole_at(frame, 1, "channel")
    count = whole_at(frame, 2, "count", CREDIT_MAX)
    channel = connection.channels.get(number)
    if channel is not None:  # it may have ended meanwhile
        channel.add_credit(count)


def _on_close(connection: "NativeConnection", frame: Frame) -> None:
    number = whole_at(frame, 1, "id")
    channel = whole_at(frame, 2, "channel")
    if channel in connection.plain:
        unsubscribe(connection, channel)
    else:
        connection.channel(channel).close()
        del connection.channels[channel]
    connection.answer_durably(number)


def _on_late_hello(connection: "NativeConnection", _frame: Frame) -> None:
    connection.fail(Code.PROTOCOL, "hello and proof come before the answer to hello")


OPERATIONS: Final[dict[int, Callable[["NativeConnection", Frame], None]]] = {
    Operation.MESSAGE: publish_message,
    Operation.PING: _on_ping,
    Operation.PONG: _on_pong,
    Operation.GOODBYE: _on_goodbye,
    Operation.CREDIT: _on_credit,
    Operation.PROOF: _on_late_hello,
    Operation.HELLO: _on_late_hello,
    Operation.PUBLISH: publish,
    Operation.PUBLISH_BATCH: publish_batch,
    Operation.SUBSCRIBE: subscribe,
    Operation.CLOSE: _on_close,
    Operation.CONSUME: consume,
    Operation.ACK: acknowledge,
    Operation.NACK: nack,
    Operation.REJECT: reject,
    Operation.EXTEND: extend,
    Operation.QUEUE_DECLARE: declare_queue,
    Operation.QUEUE_DESCRIBE: describe_queue,
    Operation.QUEUE_LIST: list_queues,
    Operation.QUEUE_DELETE: delete_queue,
    Operation.QUEUE_PURGE: purge_queue,
    Operation.QUEUE_PAUSE: pause_queue,
    Operation.QUEUE_RESUME: resume_queue,
    Operation.QUEUE_BROWSE: browse_queue,
    Operation.QUEUE_REDRIVE: redrive_queue,
    Operation.APPEND: append,
    Operation.APPEND_BATCH: append_batch,
    Operation.READ: read,
    Operation.FOLLOW: follow,
    Operation.STREAM_DECLARE: declare_stream,
    Operation.STREAM_DESCRIBE: describe_stream,
    Operation.STREAM_LIST: list_streams,
    Operation.STREAM_DELETE: delete_stream,
    Operation.GROUP_DECLARE: declare_group,
    Operation.GROUP_DELETE: delete_group,
    Operation.STREAM_VERSION: tell_version,
    Operation.REQUEST: request,
    Operation.GATHER: gather,
    Operation.SERVE: serve,
    Operation.ANSWER: answer,
    Operation.FAIL: fail,
    Operation.CANCEL: cancel,
    Operation.RETAINED_GET: get_retained,
    Operation.RETAINED_PUT: put_retained,
    Operation.RETAINED_DELETE: delete_retained,
    Operation.RETAINED_LIST: list_retained,
    Operation.STATISTICS: tell_statistics,
}
NAMES: Final = {int(each): each.name.lower().replace("_", " ") for each in Operation}
"""The operations by number, as the log names them."""
