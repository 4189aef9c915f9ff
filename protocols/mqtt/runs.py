"""Runs: packets of one form, one behind the other, read and written without looking at each.

A publisher with a window sends many PUBLISH packets that differ only in packet identifier and
payload, and a consumer answers with as many PUBACKs. In a run all packets have the same size, so
that slices with a step take out, or put in, the identifiers of all of them at once. For a message
through a durable queue that leaves a quarter of the processor time that packet by packet takes.
"""

import sys
from array import array
from collections.abc import Sequence

from ganglion.broker.core.message import Message, Terms
from ganglion.broker.core.router import Route
from ganglion.protocols.mqtt.acknowledgements import Acknowledgements
from ganglion.protocols.mqtt.packets import V5
from ganglion.protocols.mqtt.publishing import wire_form

__all__ = ["encode_run", "packet_ids_of_acknowledgements", "publish_run"]

_RUN_MIN = 4  # messages from which on a run is cheaper than one by one

_PUBACK = b"\x40\2"
_PUBACK_SIZE = 4
_SWAP = sys.byteorder == "little"


def publish_run(
    route: Route,
    data: bytes,
    place: tuple[int, int, int, int],
    room: int,
    acknowledgements: Acknowledgements,
) -> int:
    """Give the taker of the route the QoS 1 messages of the run that begins here; how many.

    `place` is of the first: where it begins, its packet identifier, its payload, where it ends.
    Where a run is too short to be cheaper, or longer than `room`, it is the first one alone. 0, and
    nothing was done, when they have to be looked at one by one.
    """
    pos, identifier_at, payload_at, end = place
    step = end - pos
    head = data[pos:identifier_at]
    last = len(data) - step
    stop = end
    while stop <= last and data.startswith(head, stop):
        stop += step
    count = (stop - pos) // step
    taker = route.taker
    if taker is None or not room:
        return 0
    if not _RUN_MIN <= count <= room:
        taker.deliver_run(route.topic, [data[payload_at:end]], 1)
        acknowledgements.recorded(_PUBACK + data[identifier_at : identifier_at + 2])
        return 1
    if payload_at > identifier_at + 2 and any(data[identifier_at + 2 : stop : step]):
        return 0  # some have properties (3.3.2.3)
    high, low = data[identifier_at:stop:step], data[identifier_at + 1 : stop : step]
    if b"\0" in low and any(not one and not other for one, other in zip(high, low, strict=True)):
        return 0  # one has no packet identifier
    size = end - payload_at
    first = payload_at
    taker.deliver_run(route.topic, [data[at : at + size] for at in range(first, stop, step)], 1)
    acks = bytearray(_PUBACK * (2 * count))
    acks[2::_PUBACK_SIZE] = high
    acks[3::_PUBACK_SIZE] = low
    acknowledgements.recorded(bytes(acks), count)
    return count


def packet_ids_of_acknowledgements(data: bytes, pos: int) -> list[int]:
    """The packet identifiers of the PUBACKs without reason that stand here, one by one."""
    stop, last = pos, len(data) - _PUBACK_SIZE
    while stop <= last and data.startswith(_PUBACK, stop):
        stop += _PUBACK_SIZE
    words = array("H", data[pos:stop])
    if _SWAP:
        words.byteswap()
    return words[1::2].tolist()


def encode_run(
    messages: Sequence[Message], packet_id: int, terms: Terms, version: int
) -> bytes | None:
    """QoS 1 PUBLISH packets with packet identifiers from this one on; None: they are not alike."""
    first = messages[0]
    payloads = [message.payload for message in messages]
    topics = [message.topic for message in messages]
    count = len(messages)
    if topics.count(first.topic) != count or len(set(map(len, payloads))) != 1:
        return None
    if version == V5 and any(each.properties or each.expires_at for each in messages):
        return None
    head, tail = wire_form(first, terms, version, 0.0)
    before = head + b"\0\0" + tail[: len(tail) - len(first.payload)]
    packets = bytearray(before + before.join(payloads))
    identifiers = array("H", range(packet_id, packet_id + count))
    if _SWAP:
        identifiers.byteswap()
    raw = identifiers.tobytes()
    step = len(before) + len(first.payload)
    packets[len(head) :: step] = raw[0::2]
    packets[len(head) + 1 :: step] = raw[1::2]
    return bytes(packets)
