"""How what consumers of queues and members of groups have been given is settled."""

from typing import TYPE_CHECKING

from ganglion.broker.core.queue_consumer import LEASE_MAX_S
from ganglion.protocols.native.arguments import element, numbers_at, seconds_at, text_at, whole_at
from ganglion.protocols.native.consuming import QueueChannel
from ganglion.protocols.native.following import GroupChannel
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.refusals import Refused, invalid

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["acknowledge", "extend", "nack", "reject"]

_REASON_MAX = 1000  # characters


def acknowledge(connection: "NativeConnection", frame: Frame) -> None:
    """`ack`: done."""
    channel = _settling(connection, frame)
    leases = numbers_at(frame, 3, "leases")
    settled = channel.acknowledge(leases, is_one=type(frame[3]) is int)
    # of a group, one stands for all before it
    _answer(connection, frame, channel, settled, max(settled, len(leases)))


def nack(connection: "NativeConnection", frame: Frame) -> None:
    """`nack`: not done, again."""
    channel = _settling(connection, frame)
    leases = numbers_at(frame, 3, "leases")
    delay_s = seconds_at(frame, 4, "delay_s")
    settled = sum([channel.nack(lease, delay_s) for lease in leases])
    _answer(connection, frame, channel, settled, len(leases))


def reject(connection: "NativeConnection", frame: Frame) -> None:
    """`reject`: nobody can do it."""
    channel = _consumer(connection, frame)
    leases = numbers_at(frame, 3, "leases")
    reason = "rejected" if element(frame, 4) is None else text_at(frame, 4, "reason")
    settled = sum([channel.reject(lease, reason[:_REASON_MAX]) for lease in leases])
    _answer(connection, frame, channel, settled, len(leases))


def extend(connection: "NativeConnection", frame: Frame) -> None:
    """`extend`: needed for longer."""
    channel = _consumer(connection, frame)
    leases = numbers_at(frame, 3, "leases")
    lease_s = seconds_at(frame, 4, "lease_s")
    if lease_s is None or lease_s > LEASE_MAX_S:
        raise invalid(f"lease_s must be a number of seconds from 0 to {LEASE_MAX_S:g}")
    settled = sum([channel.extend(lease, lease_s) for lease in leases])
    _answer(connection, frame, channel, settled, len(leases))


def _settling(connection: "NativeConnection", frame: Frame) -> QueueChannel | GroupChannel:
    number = whole_at(frame, 2, "consumer")
    channel = connection.channel(number)
    if not isinstance(channel, QueueChannel | GroupChannel):
        raise Refused(Code.NOT_FOUND, f"nothing is settled in channel {number}")
    return channel


def _consumer(connection: "NativeConnection", frame: Frame) -> QueueChannel:
    number = whole_at(frame, 2, "consumer")
    channel = connection.channel(number)
    if not isinstance(channel, QueueChannel):
        raise Refused(Code.NOT_FOUND, f"channel {number} is no consumer of a queue")
    return channel


def _answer(
    connection: "NativeConnection",
    frame: Frame,
    channel: QueueChannel | GroupChannel,
    settled: int,
    count: int,
) -> None:
    connection.to_pump[channel] = None
    number = whole_at(frame, 1, "id")
    if number:
        connection.answer_durably(number, {"settled": settled, "gone": count - settled})
