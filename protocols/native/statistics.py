"""What a node tells of itself to clients that may subscribe to ``$SYS/#``."""

from typing import TYPE_CHECKING

from ganglion.broker.core.node import NotAllowed
from ganglion.protocols.native.arguments import whole_at
from ganglion.protocols.native.frames import Frame

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["tell_statistics"]


def tell_statistics(connection: "NativeConnection", frame: Frame) -> None:
    """`statistics`: counters since the start, and gauges."""
    number = whole_at(frame, 1, "id")
    session, node = connection.session, connection.server.node
    assert session is not None
    decision = node.may_subscribe(session, "$SYS/#", 0)
    if not decision.allowed:
        raise NotAllowed(decision)
    counted = node.statistics
    result = {
        "connections": node.connected,
        "sessions": len(node.sessions),
        "subscriptions": node.router.subscription_count,
        "messages_received": counted.publish_received,
        "messages_sent": counted.publish_sent,
        "bytes_received": counted.bytes_received,
        "bytes_sent": counted.bytes_sent,
        "queues": len(node.queues),
        "streams": len(node.streams),
        "retained": len(node.retained),
        "dropped": dict(counted.dropped),
    }
    connection.answer(number, result)
