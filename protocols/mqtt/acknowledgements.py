"""Acknowledgements: the order of the node's own, and what those of clients say.

What is acknowledged may be durable only later; what is acknowledged behind it must not overtake
(MQTT 5.0 section 4.6).
All that wait for the same commit are sent as one: an effect for each made a tenth of what a durable
message costs.
"""

from functools import partial
from typing import TYPE_CHECKING

from ganglion.broker.core.commits import Commits
from ganglion.broker.core.sessions import Refusal, Session
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.net import Endpoint
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import Puback, Pubcomp, Pubrec, Pubrel
from ganglion.protocols.mqtt.publishing import DELAY, DELAY_MAX_S
from ganglion.protocols.mqtt.reasons import ProtocolViolation, Reason

if TYPE_CHECKING:
    from ganglion.protocols.mqtt.connection import MqttConnection

__all__ = ["Acknowledgements", "on_acknowledgement", "refusal"]


def refusal(packet: Puback) -> Refusal | None:
    """How a PUBACK refuses the message that it answers; None: it accepts it.

    With 0x99 (Payload format invalid) nobody can make anything of the message, with any other
    reason from 0x80 on it may come again, after the delay that the user property `DELAY` says.
    """
    if packet.reason < Reason.UNSPECIFIED_ERROR:
        return None
    properties = packet.properties
    if packet.reason == Reason.PAYLOAD_FORMAT_INVALID:
        text = properties.reason_string if properties is not None else None
        return Refusal(is_final=True, reason=text or "rejected")
    for name, value in properties.user_properties if properties is not None else ():
        if name == DELAY:
            try:
                delay_s = float(value)
            except ValueError:
                break
            if 0 <= delay_s <= DELAY_MAX_S:
                return Refusal(delay_s=delay_s)
    return Refusal()


class Acknowledgements:
    """What one connection has to acknowledge."""

    __slots__ = ("_commit", "_commits", "_endpoint", "_of_commit", "_statistics", "waiting")

    def __init__(self, endpoint: Endpoint, commits: Commits, statistics: Statistics) -> None:
        self.waiting = 0
        """How many effects of commits to come will send acknowledgements."""
        self._endpoint = endpoint
        self._commits = commits
        self._statistics = statistics
        self._commit = 0  # which `_of_commit` waits for; 0: nothing more is to be added to it
        self._of_commit: list[bytes] = []

    def recorded(self, ack: bytes, count: int = 1) -> None:
        """Send it after the commit in which what it acknowledges has just been recorded.

        `count` is how many acknowledgements these bytes are.
        """
        self._statistics.other_packets_sent += count - 1  # one is counted when it is sent
        commit = self._commits.number
        if self._commit == commit:
            self._of_commit.append(ack)
            return
        # Nothing is recorded when it had come before: then there may be no open commit to wait for.
        self._commit = commit if self._commits.is_open else 0
        self._of_commit = [ack]
        self._wait(self._of_commit)

    def send(self, ack: bytes, *, durable: bool, at_once: list[bytes] | None = None) -> None:
        """Send it, after what waits, and if it is `durable` after what was recorded so far.

        One that can be sent now is put to `at_once` if the caller has such a list.
        """
        if durable or self.waiting:
            self._commit = 0  # what comes behind this one in the same commit is sent behind it
            self._wait([ack])
        elif at_once is not None:
            at_once.append(ack)
        else:
            self._endpoint.write(ack)
            self._statistics.other_packets_sent += 1

    def _wait(self, acks: list[bytes]) -> None:
        self.waiting += 1
        self._commits.after_commit(partial(self._send, acks))

    def _send(self, acks: list[bytes]) -> None:
        self.waiting -= 1
        self._endpoint.write(b"".join(acks))  # nothing happens when it is closed
        self._statistics.other_packets_sent += len(acks)


def on_acknowledgement(
    connection: "MqttConnection", session: Session, packet: Puback | Pubrec | Pubrel | Pubcomp
) -> None:
    """An acknowledgement with a reason or properties, or one that fits nothing."""
    number = packet.packet_id
    delivery = session.inflight.get(number)
    match packet:
        case Puback():
            if number in session.inflight and (delivery is None or delivery[1].qos != 1):
                raise ProtocolViolation("PUBACK answers a QoS 2 message (4.3.3)")
            session.acknowledged(number, refusal(packet))
        case Pubrec():
            if delivery is not None and delivery[1].qos != 2:
                raise ProtocolViolation("PUBREC answers a QoS 1 message (4.3.2)")
            if packet.reason >= Reason.UNSPECIFIED_ERROR:
                session.acknowledged(number)
            else:
                session.received_by_client(number)
                answer = encode(Pubrel(number), connection.version)
                connection.acknowledgements.send(answer, durable=session.is_durable())
        case Pubrel():
            connection.on_ack(session, 0x62, number.to_bytes(2, "big"), None)
        case Pubcomp():
            if delivery is not None:
                raise ProtocolViolation("PUBCOMP comes before PUBREC (4.3.3)")
            session.completed(number)
