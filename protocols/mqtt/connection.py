"""One MQTT connection, sans-I/O: bytes in, bytes and calls of the node out.

States: waiting for CONNECT (`Greeting` has it until CONNACK is sent), connected, closed. A
connection is the `Sink` of its session. Every way to an end goes through `_end`, which tells the
node once whether the will is to be sent.

The data path. PUBLISH without properties and the acknowledgements are parsed here by index,
everything else by `codec.decode`. A run of QoS 0 packets of equal topic and length is passed on as
the one slice of the input that it is: for a receiver of the same wire form the packet that came is
the packet that goes. So the cost is per run and receiver, not per message (measured 1→1, 64 B: 1.1M
msg/s where each packet parsed by itself gave 480k).
"""

from collections.abc import Sequence
from functools import partial

from ganglion.broker.core.message import Message, Terms
from ganglion.broker.core.node import LimitReached, NoRoom, NotAllowed
from ganglion.broker.core.reading import is_source
from ganglion.broker.core.router import Outlet, Route, Subscription
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.statistics import Traffic
from ganglion.broker.core.timers import Timer
from ganglion.broker.core.topics import InvalidTopic, TopicLimit
from ganglion.broker.net import Endpoint
from ganglion.protocols.mqtt.acknowledgements import Acknowledgements, on_acknowledgement
from ganglion.protocols.mqtt.aliases import IncomingAliases, OutgoingAliases
from ganglion.protocols.mqtt.codec import decode, encode, read_header
from ganglion.protocols.mqtt.greeting import (
    Authentication,
    Greeting,
    read_greeting_header,
    reauthenticate,
)
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Auth,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.publishing import (
    FORM_3,
    FORM_5,
    check_publish_properties,
    check_topic,
    message_properties,
    payload_problem,
    wire_form,
)
from ganglion.protocols.mqtt.reasons import (
    ALLOWED_REASONS,
    MalformedPacket,
    MqttError,
    ProtocolViolation,
    Reason,
    receive_maximum_exceeded,
)
from ganglion.protocols.mqtt.runs import encode_run, packet_ids_of_acknowledgements, publish_run
from ganglion.protocols.mqtt.server import MqttServer
from ganglion.protocols.mqtt.subscribing import subscribe, unsubscribe
from ganglion.protocols.rates import Intake

__all__ = ["MqttConnection"]

_ROUTES_MAX = 1024  # topics whose authorisation a connection remembers; all are forgotten beyond
_TOPIC_SIZE_MAX = 256  # bytes of such a topic: so a connection keeps half a MB at most
_EVERY_QOS = 0b000111  # a publish mask that allows every QoS without retain
_NO_LIMIT = 2**31
_CHUNK_MIN = 4096  # bytes; what came before is copied for a smaller one

_NO_ROUTES: dict[bytes, Route] = {}  # stands for none yet: most connections never publish
_FAST_ACKS = frozenset((0x40, 0x50, 0x62, 0x70))  # PUBACK, PUBREC, PUBREL, PUBCOMP
_FROM_SERVER = frozenset(
    (PacketType.CONNACK, PacketType.SUBACK, PacketType.UNSUBACK, PacketType.PINGRESP)
)


class MqttConnection:
    """The protocol side of one connection with an MQTT client."""

    __slots__ = (
        "_aliases_in",
        "_aliases_out",
        "_chunks",
        "_chunks_size",
        "_form",
        "_greeting",
        "_intake",
        "_needed",
        "_routes",
        "_timer",
        "acknowledgements",
        "answer",
        "authentication",
        "endpoint",
        "is_closed",
        "keep_alive_s",
        "last_received",
        "packet_size_max",
        "problem_information",
        "server",
        "session",
        "session_expiry_s",
        "traffic",
        "version",
    )

    endpoint: Endpoint
    acknowledgements: Acknowledgements

    def __init__(self, server: MqttServer, *, is_web: bool = False) -> None:
        self.server = server
        self.traffic = server.node.statistics.traffic["mqtt-websocket" if is_web else "mqtt"]
        self.session: Session | None = None
        """None before CONNACK and after the end."""
        self.version = V311
        self.is_closed = False
        self.keep_alive_s = 0
        self.last_received = 0.0
        self.packet_size_max = _NO_LIMIT
        """The client's Maximum Packet Size (3.1.2.11.4)."""
        self.problem_information = True
        """Whether the client wants reason strings (3.1.2.11.7)."""
        self.session_expiry_s = 0
        """What the client asked for in CONNECT."""
        self.authentication: Authentication | None = None
        self.answer: Properties | None = None
        """Properties that CONNACK will have."""
        self._greeting: Greeting | None = Greeting(self)
        self._form = FORM_3
        self._routes: dict[bytes, Route] = _NO_ROUTES
        self._aliases_in: IncomingAliases | None = None
        self._aliases_out: OutgoingAliases | None = None
        self._intake: Intake | None = None
        self._timer: Timer | None = None
        self._chunks: list[bytes] | None = None  # the beginning of a packet
        self._chunks_size = 0
        self._needed = 0

    # -- the endpoint calls ----------------------------------------------------------------------

    def connected(self, endpoint: Endpoint, now: float) -> None:
        """The connection is there: CONNECT has to follow within a time (3.1.4)."""
        self.endpoint = endpoint
        node = self.server.node
        self.acknowledgements = Acknowledgements(endpoint, node.journal.commits, node.statistics)
        self.last_received = now
        timeout_s = self.server.node.limits.connect_timeout_s
        self._timer = self.server.node.timers.at(now + timeout_s, self._no_connect)

    def receive(self, data: bytes, now: float) -> None:
        """These bytes came."""
        self.last_received = now
        chunks = self._chunks
        if chunks is not None:
            if len(chunks[-1]) < _CHUNK_MIN:  # many tiny ones would cost many times their bytes
                chunks[-1] += data
            else:
                chunks.append(data)
            self._chunks_size += len(data)
            if self._chunks_size < self._needed or self.is_waiting:
                return
            data = b"".join(chunks)
            self._chunks = None
        pos = self._read_greeting(self._greeting, data) if self._greeting is not None else 0
        session = self.session
        if session is not None:
            node = self.server.node
            limits, commits = node.limits, node.journal.commits
            recorded, received = commits.waiting_bytes, self.traffic.received
            pos = self._read_packets(session, data, pos)
            if recorded < commits.waiting_bytes > limits.uncommitted_bytes_max:
                self._hold().wait_for_disk()
            if limits.receive_messages_per_s_max or limits.receive_bytes_per_s_max:
                received = self.traffic.received - received
                self._hold().keep_rate(received, len(data), now)
        if pos < len(data) and not self.is_closed:
            self._keep(data, pos)

    def _hold(self) -> Intake:
        if self._intake is None:
            self._intake = Intake(self.server.node, self.endpoint, self._read_on)
        return self._intake

    def _read_on(self) -> None:
        if not self.is_closed:
            self.last_received = self.server.node.timers.now
            self.endpoint.resume_reading()

    def end_of_stream(self) -> None:
        """The client sends no more; the endpoint closes and tells `lost`."""

    def writable(self) -> None:
        """The client takes more: send what waits for it."""
        if self.session is not None:
            self.session.pump()

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        self.end(reason, publish_will=True)

    # -- reading ---------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Whether the greeting waits for something, and nothing may be read meanwhile."""
        return self._greeting is not None and self._greeting.is_waiting

    def resume(self) -> None:
        """What the greeting waited for has come: go on with what was received meanwhile."""
        if self.is_closed or self.is_waiting:
            return
        self.endpoint.resume_reading()
        if self._chunks is not None:
            self._needed = 0
            self.receive(b"", self.last_received)

    def _keep(self, data: bytes, pos: int) -> None:
        """Keep the beginning of a packet until the rest is there."""
        rest = data[pos:]
        self._chunks = [rest]
        self._chunks_size = len(rest)
        self._needed = len(rest) + 1
        if not self.is_waiting:
            header = read_header(rest, 0, self.version)  # it was read before: it is well formed
            if header is not None:
                self._needed = header[2]

    def _read_greeting(self, greeting: Greeting, data: bytes) -> int:
        """Read packets until the client is connected; the position after them."""
        pos, size = 0, len(data)
        limit = self.server.node.limits.connect_size_max_bytes
        while pos < size and not self.is_closed and self._greeting is greeting:
            if greeting.is_waiting:
                self.endpoint.pause_reading()
                break
            try:
                header = read_greeting_header(data, pos, self.version, limit)
            except MqttError as error:
                self.refuse_greeting(str(error))
                return size
            if header is None or header[2] > size:
                break
            greeting.on_packet(header[0], data, header[1], header[2])
            pos = header[2]
        return pos

    def refuse_greeting(self, text: str) -> None:
        """Close without an answer: there was no CONNECT that could be answered."""
        self.server.node.refusals.refuse("connect", None, text, address=self.endpoint.peer)
        self.end(text, publish_will=False)

    def _read_packets(self, session: Session, data: bytes, pos: int) -> int:
        """Read every whole packet from `pos` on; the position after them."""
        node = self.server.node
        limit = node.limits.packet_size_max_bytes
        unacknowledged_max = node.limits.receive_max if self.version == V5 else _NO_LIMIT
        unacknowledged = 0  # QoS 1 messages of this read: their PUBACKs are sent after it
        packets = singly_to = 0  # `singly_to`: up to where PUBACKs are handled one by one
        publish = node.publish
        acknowledgements = self.acknowledgements
        statistics, traffic = node.statistics, self.traffic
        routes = self._routes if not node.is_full else _NO_ROUTES
        form = self._form
        is_v5 = form == FORM_5
        size = len(data)
        acks: list[bytes] = []
        error: MqttError | None = None
        try:
            while pos + 1 < size:
                first = data[pos]
                start = pos + 2
                end = start + data[pos + 1]
                if end - start > 127:
                    if pos + 2 < size and 0 < data[pos + 2] < 0x80:  # the most common by far
                        start = pos + 3
                        end = start + (data[pos + 1] & 0x7F | data[pos + 2] << 7)
                    else:
                        header = read_header(data, pos, self.version)
                        if header is None:
                            break
                        _, start, end = header
                    if end - pos > limit:
                        raise ProtocolViolation(
                            f"the packet is over packet_size_max_bytes = {limit}",
                            Reason.PACKET_TOO_LARGE,
                        )
                    if end - start < 1 << 7 * (start - pos - 2):
                        first |= 0x100  # a length with superfluous bytes: not to be passed on
                if end > size:
                    break
                packets += 1

                if first == 0x30 and end - start > 3:  # PUBLISH, QoS 0
                    at = start + 2 + (data[start] << 8 | data[start + 1])
                    payload_at = at + is_v5
                    if payload_at <= end and not (is_v5 and data[at]):
                        route = routes.get(data[start + 2 : at])
                        if route is not None and not route.valid:
                            route = self._renew(route)
                        if route is not None:
                            # packets with the same header, topic and length after this one
                            step = end - pos
                            stop = end
                            if size - end >= step:
                                prefix = data[pos:payload_at]
                                last = size - step
                                while stop <= last and data.startswith(prefix, stop):
                                    stop += step
                            run = data[pos:stop]
                            count = (stop - pos) // step
                            outlets, others, tally = route.split(form)
                            for outlet in outlets:
                                outlet.offer(run, count)
                            if others or route.groups:
                                for at in range(0, stop - pos, step):
                                    packet = run[at : at + step]
                                    message = Message(route.topic, packet[payload_at - pos :])
                                    message.forms = {form << 3: (packet, b"")}
                                    node.forward(message, others, route.groups, session)
                            packets += count - 1
                            traffic.received += count
                            traffic.received_bytes += stop - pos
                            if tally is not None:
                                sent = count * len(outlets)
                                tally.sent += sent
                                tally.sent_bytes += sent * step
                            elif outlets:
                                route.count_sent(form, count, step)
                            pos = stop
                            continue

                elif first in (0x32, 0x34) and end - start > 5:  # QoS 1 or 2, no DUP
                    at = start + 2 + (data[start] << 8 | data[start + 1])
                    payload_at = at + 2 + is_v5
                    if payload_at <= end and not (is_v5 and data[at + 2]):
                        route = routes.get(data[start + 2 : at])
                        packet_id = data[at : at + 2]
                        if route is not None and not route.valid:
                            route = self._renew(route)
                        if route is not None and packet_id != b"\0\0":
                            if first == 0x32 and route.taker is not None:
                                room = unacknowledged_max - unacknowledged
                                place = (pos, at, payload_at, end)
                                if count := publish_run(route, data, place, room, acknowledgements):
                                    unacknowledged += count
                                    packets += count - 1
                                    traffic.received += count
                                    traffic.received_bytes += count * (end - pos)
                                    pos += count * (end - pos)
                                    continue
                            traffic.received += 1
                            traffic.received_bytes += end - pos
                            if first == 0x32:
                                unacknowledged += 1
                                if unacknowledged > unacknowledged_max:
                                    raise receive_maximum_exceeded(unacknowledged_max)
                                message = Message(route.topic, data[payload_at:end], 1)
                                ack = b"\x40\2" + packet_id
                            else:
                                message = Message(route.topic, data[payload_at:end], 2)
                                ack = b"\x50\2" + packet_id
                                if not self._is_new(session, int.from_bytes(packet_id, "big")):
                                    acknowledgements.send(
                                        ack, durable=session.is_durable(), at_once=acks
                                    )
                                    pos = end
                                    continue
                            tail = data[at + 2 : end]
                            message.forms = {form << 3 | first & 6: (data[pos:at], tail)}
                            count = publish(message, route, session)
                            if is_v5 and not count and first == 0x32:
                                ack = b"\x40\3" + packet_id + b"\x10"  # nobody wants it
                            if message.durable:  # something of this commit was recorded now
                                acknowledgements.recorded(ack)
                            elif acknowledgements.waiting or (first == 0x34 and session.expiry_s):
                                acknowledgements.send(ack, durable=True, at_once=acks)
                            else:
                                acks.append(ack)
                            pos = end
                            continue

                elif first in _FAST_ACKS and end - start == 2:
                    if first == 0x40 and pos >= singly_to and data.startswith(b"\x40\2", end):
                        packet_ids = packet_ids_of_acknowledgements(data, pos)
                        singly_to = pos + len(packet_ids) * (end - pos)
                        if session.settle_run(packet_ids):
                            packets += len(packet_ids) - 1
                            pos = singly_to
                            continue
                    packet_id = data[start:end]
                    if self.on_ack(session, first, packet_id, acks):
                        pos = end
                        continue

                elif first == 0xC0 and end == start:
                    acks.append(b"\xd0\0")
                    pos = end
                    continue

                if acks:
                    self.endpoint.write(b"".join(acks))
                    statistics.other_packets_sent += len(acks)
                    acks.clear()
                if first & 0xF6 == 0x32:
                    unacknowledged += 1
                    if unacknowledged > unacknowledged_max:
                        raise receive_maximum_exceeded(unacknowledged_max)
                self._dispatch(session, first & 0xFF, data, start, end)
                pos = end
                if self.session is None:
                    pos = size
                    break
                routes = self._routes if not node.is_full else _NO_ROUTES
        except MqttError as caught:
            error = caught
        if acks:
            self.endpoint.write(b"".join(acks))
            statistics.other_packets_sent += len(acks)
        statistics.packets_received += packets
        if error is not None:
            self._fail(error)
            return size
        if session.sources or session.is_behind:
            session.pump()
        return pos

    def _renew(self, route: Route) -> Route | None:
        """The route of the same topic as it is now; the client still may publish there.

        None: it has to take the slow path, where somebody can refuse.
        """
        renewed = self.server.node.router.route(route.topic)
        if renewed.bounded or (is_source(route.topic) and not renewed.targets):
            del self._routes[route.topic.encode()]
            return None
        self._routes[route.topic.encode()] = renewed
        return renewed

    # -- QoS 1 and 2 flows -----------------------------------------------------------------------

    def _is_new(self, session: Session, packet_id: int) -> bool:
        """Note a QoS 2 message; False when it came before and is not released yet (4.3.3)."""
        received = session.received
        if received is None:
            received = session.received = set()
        if packet_id in received:
            return False
        if self.version == V5 and len(received) >= self.server.node.limits.receive_max:
            raise receive_maximum_exceeded(len(received))
        received.add(packet_id)
        if session.is_durable():
            self.server.node.journal.put_received(session, packet_id)
        return True

    def on_ack(
        self, session: Session, first: int, packet_id: bytes, acks: list[bytes] | None
    ) -> bool:
        """An acknowledgement of two bytes; False when the slow path has to say what is wrong."""
        number = packet_id[0] << 8 | packet_id[1]
        if not number:
            return False
        if first == 0x40:  # PUBACK
            delivery = session.inflight.get(number)
            if delivery is None or delivery[1].qos != 1:
                return False
            session.settle(number, delivery)
        elif first == 0x50:  # PUBREC
            delivery = session.inflight.get(number)
            if delivery is not None and delivery[1].qos != 2:
                return False
            # an unknown identifier is answered alike: the client may repeat what we have forgotten
            session.received_by_client(number)
            answer, noted = b"\x62\2" + packet_id, session.is_durable()
            self.acknowledgements.send(answer, durable=noted, at_once=acks)
        elif first == 0x62:  # PUBREL
            self._release(session, number)
            answer, noted = b"\x70\2" + packet_id, session.is_durable()
            self.acknowledgements.send(answer, durable=noted, at_once=acks)
        else:  # PUBCOMP
            return session.completed(number)
        return True

    # -- all other packets -----------------------------------------------------------------------

    def _dispatch(self, session: Session, first: int, data: bytes, start: int, end: int) -> None:
        kind = first >> 4
        if kind in _FROM_SERVER:
            if first & 0x0F and kind in (PacketType.SUBACK, PacketType.UNSUBACK):
                raise MalformedPacket(f"packet type {kind} has reserved flags set (MQTT-2.1.3-1)")
            raise ProtocolViolation(f"packet type {kind} is not for clients (2.1.2)")
        if kind == PacketType.CONNECT:
            raise ProtocolViolation("a second CONNECT (MQTT-3.1.0-2)")
        if kind == PacketType.AUTH and self.authentication is None:
            raise ProtocolViolation("AUTH without a method in CONNECT (MQTT-4.12.0-6)")
        limits = self.server.node.limits
        packet = decode(
            first,
            data,
            start,
            end,
            self.version,
            limits.properties_per_packet_max,
            limits.subscriptions_per_client_max,
        )
        match packet:
            case Publish():
                self._on_publish(session, packet, end - start)
            case Puback() | Pubrec() | Pubrel() | Pubcomp():
                on_acknowledgement(self, session, packet)
            case Subscribe():
                self._on_subscribe(session, packet)
            case Unsubscribe():
                self._on_unsubscribe(session, packet)
            case Pingreq():
                self.endpoint.write(b"\xd0\0")
            case Disconnect():
                self._on_disconnect(packet)
            case Auth():
                self._on_auth(session, packet)
            case _:
                raise ProtocolViolation(f"packet type {kind} is not for clients (2.1.2)")

    def _write(self, packet: Packet) -> None:
        self.endpoint.write(encode(packet, self.version))
        self.server.node.statistics.other_packets_sent += 1

    # -- PUBLISH from the client -----------------------------------------------------------------

    def _on_publish(self, session: Session, packet: Publish, size_bytes: int) -> None:
        node, settings = self.server.node, self.server.settings
        self.traffic.received += 1
        self.traffic.received_bytes += size_bytes
        qos, retain, properties = packet.qos, packet.retain, packet.properties
        topic = packet.topic
        about = expires_at = None
        reason, text = Reason.SUCCESS, ""
        if properties is not None:
            check_publish_properties(properties, node.limits)
            if properties.topic_alias is not None:
                if self._aliases_in is None:
                    self._aliases_in = IncomingAliases()
                topic = self._aliases_in.resolve(topic, properties.topic_alias, node.limits)
            try:
                about = message_properties(properties)
            except ProtocolViolation as error:
                reason, text = error.reason, str(error)
                node.refusals.refuse("publish", session.client, text, topic=topic)
            if properties.message_expiry_interval is not None:
                expires_at = node.timers.now + properties.message_expiry_interval
        if qos > settings.maximum_qos:
            raise ProtocolViolation(
                f"QoS {qos} is above the Maximum QoS {settings.maximum_qos} (MQTT-3.2.2-11)",
                Reason.QOS_NOT_SUPPORTED,
            )
        if retain and not settings.retain_available:
            raise ProtocolViolation("retain is not available", Reason.RETAIN_NOT_SUPPORTED)
        try:
            check_topic(topic, node.limits)
        except TopicLimit as error:
            reason, text = Reason.TOPIC_NAME_INVALID, str(error)
            node.refusals.refuse("publish", session.client, text)
        except InvalidTopic as error:
            raise MalformedPacket(str(error)) from None
        if qos == 2 and not self._is_new(session, packet.packet_id):
            self._answer_publish(packet, Reason.SUCCESS, durable=session.is_durable())
            return
        message = Message(topic, packet.payload, qos, retain, about, expires_at)
        if reason is Reason.SUCCESS:
            reason, text = self._judge(session, message)
        count = 0
        if reason is Reason.SUCCESS:
            try:
                count = node.publish(message, publisher=session, is_told=self.version == V5)
                self._remember(session, topic)
            except NotAllowed as error:
                reason, text = Reason.NOT_AUTHORIZED, str(error)
            except LimitReached as error:
                reason, text = Reason.QUOTA_EXCEEDED, str(error)
                action = "retain" if retain else "publish"
                node.refusals.refuse(action, session.client, text, topic=topic)
                if isinstance(error, NoRoom) and self.version != V5 and qos:
                    # MQTT 3 cannot say no: the client keeps what is not acknowledged
                    self._release(session, packet.packet_id)
                    return
        if reason is not Reason.SUCCESS:
            node.statistics.drop("refused")
        elif not count and (qos == 1 or (about is not None and about.response_topic is not None)):
            reason = Reason.NO_MATCHING_SUBSCRIBERS
        if qos:
            durable = message.durable or (qos == 2 and session.is_durable())
            self._answer_publish(packet, reason, durable=durable, text=text)

    def _judge(self, session: Session, message: Message) -> tuple[Reason, str]:
        """Whether the message may be published: a reason code, and why not."""
        node, client, topic = self.server.node, session.client, message.topic
        route = self._routes.get(topic.encode())
        if message.retain or route is None or not route.valid:
            decision = node.may_publish(client, topic, message.qos, message.retain)
            if not decision.allowed and not node.session_requests.may_answer(session, message):
                node.refusals.refuse("publish", client, decision.rule, topic=topic)
                return Reason.NOT_AUTHORIZED, decision.rule
        text = payload_problem(message) if self.server.settings.check_payload_format else ""
        if text:
            node.refusals.refuse("publish", client, text, topic=topic)
            return Reason.PAYLOAD_FORMAT_INVALID, text
        return Reason.SUCCESS, ""

    def _remember(self, session: Session, topic: str) -> None:
        """From now on packets for this topic take the fast path, if they all may."""
        node, key = self.server.node, topic.encode()
        if key in self._routes or len(key) > _TOPIC_SIZE_MAX:
            return
        allowed = node.publish_mask(session.client, topic)
        if allowed & _EVERY_QOS == _EVERY_QOS and self.server.settings.maximum_qos == 2:
            if self._routes is _NO_ROUTES or len(self._routes) >= _ROUTES_MAX:
                self._routes = {}
            route = node.router.route(topic)
            if not route.bounded:
                self._routes[key] = route

    def _answer_publish(
        self, packet: Publish, reason: Reason, *, durable: bool, text: str = ""
    ) -> None:
        """Send PUBACK or PUBREC; MQTT 3.x has no way to say no (4.3.2, 4.3.3)."""
        properties = self.reason_string(text) if text else None
        answer: Puback | Pubrec
        if packet.qos == 1:
            answer = Puback(packet.packet_id, reason, properties)
        else:
            answer = Pubrec(packet.packet_id, reason, properties)
            session = self.session
            if reason >= Reason.UNSPECIFIED_ERROR and self.version == V5 and session is not None:
                self._release(session, packet.packet_id)  # it ends here, without PUBREL (4.3.3)
        self.acknowledgements.send(encode(answer, self.version), durable=durable)

    def _release(self, session: Session, packet_id: int) -> None:
        """A QoS 2 message with this identifier would be a new one."""
        if session.received is not None and packet_id in session.received:
            session.received.discard(packet_id)
            if session.is_durable():
                self.server.node.journal.forget_received(session, packet_id)

    # -- SUBSCRIBE and UNSUBSCRIBE ---------------------------------------------------------------

    def _on_subscribe(self, session: Session, packet: Subscribe) -> None:
        reasons, texts, with_retained = subscribe(self.server, session, packet)
        properties = self.reason_string("; ".join(texts))
        answer = encode(Suback(packet.packet_id, reasons, properties), self.version)
        is_durable = session.is_durable() or any(
            is_source(request.topic_filter) for request in packet.requests
        )
        self.acknowledgements.send(answer, durable=is_durable)
        if self.acknowledgements.waiting:  # SUBACK comes first
            send = partial(self._send_retained, with_retained)
            self.server.node.journal.commits.after_commit(send)
        else:
            self._send_retained(with_retained)

    def _send_retained(self, subscriptions: list[Subscription]) -> None:
        if not self.is_closed:
            for subscription in subscriptions:
                self.server.node.send_retained(subscription)

    def _on_unsubscribe(self, session: Session, packet: Unsubscribe) -> None:
        reasons = unsubscribe(self.server, session, packet)
        answer = encode(Unsuback(packet.packet_id, reasons), self.version)
        self.acknowledgements.send(answer, durable=session.is_durable())

    # -- AUTH and DISCONNECT ---------------------------------------------------------------------

    def _on_auth(self, session: Session, packet: Auth) -> None:
        assert self.authentication is not None  # _dispatch has seen to it
        self._write(reauthenticate(self.server, session, self.authentication, packet))

    def _on_disconnect(self, packet: Disconnect) -> None:
        expiry_s = packet.properties.session_expiry_interval if packet.properties else None
        if expiry_s and not self.session_expiry_s:
            raise ProtocolViolation(
                "DISCONNECT sets a session expiry where CONNECT had none (3.14.2.2.2)"
            )
        publish_will = packet.reason != Reason.NORMAL_DISCONNECTION
        self.end("the client disconnected", publish_will=publish_will, expiry_s=expiry_s)

    # -- connected -------------------------------------------------------------------------------

    def start(self, session: Session, connack: bytes, expiry_s: int, alias_maximum: int) -> None:
        """The session is open and that is durable: send CONNACK and then what waits."""
        if self.is_closed:
            return
        if len(connack) > self.packet_size_max:
            self.end("CONNACK is larger than the client's Maximum Packet Size", publish_will=False)
            return
        self.session = session
        self.session_expiry_s = expiry_s
        self._greeting = None
        if self.version == V5:
            self._form = FORM_5
        alias_maximum = min(alias_maximum, self.server.node.limits.topic_alias_max)
        if alias_maximum:
            self._aliases_out = OutgoingAliases(alias_maximum)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watch_keep_alive()
        statistics = self.server.node.statistics
        statistics.connections_opened += 1
        statistics.other_packets_sent += 1
        self.endpoint.write(connack)
        self.server.node.start_session(session, self)
        self.resume()

    def _watch_keep_alive(self) -> None:
        if self.keep_alive_s:
            deadline = self.last_received + 1.5 * self.keep_alive_s  # MQTT-3.1.2-22
            self._timer = self.server.node.timers.at(deadline, self._check_keep_alive)

    def _check_keep_alive(self, now: float) -> None:
        if self.session is None:
            return
        if self._intake is not None and self._intake.is_held:
            self.last_received = now  # it is we who do not listen
        if now < self.last_received + 1.5 * self.keep_alive_s:
            self._watch_keep_alive()
        else:
            self._fail(
                ProtocolViolation(
                    f"nothing came within 1.5 times the keep alive of {self.keep_alive_s} s",
                    Reason.KEEP_ALIVE_TIMEOUT,
                )
            )

    def _no_connect(self, _now: float) -> None:
        if self._greeting is not None:
            self._greeting.time_out()

    # -- the session sends (Sink) ----------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Too much waits to be sent."""
        return self.endpoint.congested

    @property
    def carries_requests(self) -> bool:
        """Whether the client sees response topics (3.3.2.3.5)."""
        return self.version == V5

    def outlet(self, form: int) -> tuple[Outlet, Traffic] | None:
        """Where plain QoS 0 packets of this wire form go as they are."""
        if form != self._form or self._aliases_out is not None or self.packet_size_max != _NO_LIMIT:
            return None
        return self.endpoint, self.traffic

    def send(self, packet_id: int, message: Message, terms: Terms, duplicate: bool) -> bool:
        """Send a PUBLISH; False when it is larger than the client's Maximum Packet Size."""
        qos = terms.qos
        form = self._form
        endpoint = self.endpoint
        if terms.identifiers or self._aliases_out or (form and message.expires_at is not None):
            parts = self._encode_alone(message, terms)
        else:
            key = form << 3 | qos << 1 | terms.retain
            forms = message.forms
            if forms is None:
                forms = message.forms = {}
            known = forms.get(key)
            parts = known or wire_form(message, terms, self.version, 0.0)
            if known is None and not terms.retain:  # a retained message would keep it for good
                forms[key] = parts
        if qos:
            data = parts[0] + packet_id.to_bytes(2, "big") + parts[1]
            if duplicate:
                data = bytes((data[0] | 0x08,)) + data[1:]
        else:
            data = parts[0]
        if len(data) > self.packet_size_max:
            self.server.node.statistics.drop("larger than the client's Maximum Packet Size")
            return False
        traffic = self.traffic
        traffic.sent += 1
        traffic.sent_bytes += len(data)
        if qos or terms.source is not None:  # a queue's message is not dropped like others
            endpoint.write(data)
        else:
            endpoint.offer(data, 1)
        return True

    def send_run(self, packet_id: int, messages: Sequence[Message], terms: Terms) -> bool:
        """Send QoS 1 messages under consecutive packet identifiers, if they are all alike."""
        if self._aliases_out is not None or self.packet_size_max != _NO_LIMIT:
            return False
        data = encode_run(messages, packet_id, terms, self.version)
        if data is None:
            return False
        self.traffic.sent += len(messages)
        self.traffic.sent_bytes += len(data)
        self.endpoint.write(data)
        return True

    def _encode_alone(self, message: Message, terms: Terms) -> tuple[bytes, bytes]:
        """The wire form for this client only."""
        now = self.server.node.timers.now
        aliases = self._aliases_out
        # a congested endpoint may drop it: no alias must be introduced with it
        if aliases is None or (terms.qos == 0 and self.endpoint.congested):
            return wire_form(message, terms, self.version, now)
        return aliases.wire_form(message, terms, now, self.packet_size_max)

    def send_release(self, packet_id: int) -> None:
        """Send PUBREL for a QoS 2 message."""
        self._write(Pubrel(packet_id))

    def taken_over(self) -> None:
        """Another connection has opened the session (MQTT-3.1.4-3)."""
        self.session = None
        self._say_goodbye(Reason.SESSION_TAKEN_OVER, "another connection has this identifier")

    def expel(self, rule: str) -> None:
        """The client may not be connected any more."""
        self._fail(ProtocolViolation(rule, Reason.NOT_AUTHORIZED))

    def access_changed(self) -> None:
        """The rules of access have changed: forget what was allowed."""
        self._routes = _NO_ROUTES

    def drain(self) -> None:
        """The node stops."""
        self._say_goodbye(Reason.SERVER_SHUTTING_DOWN, "the node stops")

    # -- the end ---------------------------------------------------------------------------------

    def _fail(self, error: MqttError) -> None:
        """The client broke the protocol or a limit: tell it why, where MQTT 5.0 can, and close."""
        session = self.session
        client = session.client if session is not None else None
        self.server.node.refusals.refuse(
            "go on", client, str(error), reason=error.reason.name, address=self.endpoint.peer
        )
        self._say_goodbye(error.reason, str(error))

    def _say_goodbye(self, reason: Reason, text: str) -> None:
        # not before CONNACK (MQTT-3.14.0-1)
        if self.version == V5 and not self.is_closed and self._greeting is None:
            if reason not in ALLOWED_REASONS[PacketType.DISCONNECT]:
                reason = Reason.UNSPECIFIED_ERROR
            self._write(Disconnect(reason, self.reason_string(text)))
        self.end(text, publish_will=True, linger=True)

    def end(
        self,
        reason: str,
        *,
        publish_will: bool,
        expiry_s: int | None = None,
        linger: bool = False,
    ) -> None:
        """Close the connection, from whichever side; the session is told once."""
        if self.is_closed:
            return
        self.is_closed = True
        greeting, self._greeting = self._greeting, None
        session, self.session = self.session, None
        if session is None and greeting is not None:
            session = greeting.session
        self._chunks = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.endpoint.close(reason, linger=linger or greeting is not None)
        if session is not None:
            self.server.node.close_session(
                session, self, publish_will=publish_will, expiry_s=expiry_s
            )

    def reason_string(self, text: str) -> Properties | None:
        """A reason string, unless the client wants none or could not take it (3.1.2.11.7)."""
        if self.version != V5 or not self.problem_information or not text:
            return None
        if len(text) * 4 + 64 > self.packet_size_max:
            return None
        return Properties(reason_string=text[:_REASON_STRING_MAX])


_REASON_STRING_MAX = 1024
