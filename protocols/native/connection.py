"""One native connection, sans-I/O: bytes in, bytes and calls of the node out.

States: greeting (`Greeting` has it until ``hello`` is answered), open, closed. A connection is the
`Sink` of a session that lives as long as it does; what its client opened beside plain subscriptions
are its *channels*. Every way to an end goes through `end`.

The data path. A run of `message` frames of equal topic and length without properties is passed on
as the one slice of the input that it is, as in MQTT: the frame that came is the frame that goes.
All other frames are read by `FrameReader`, and each operation is a function in the table of
`dispatch`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ganglion import GanglionError
from ganglion.broker.core.message import Message, Terms
from ganglion.broker.core.reading import is_source
from ganglion.broker.core.router import Outlet, Route
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.statistics import Traffic
from ganglion.broker.core.timers import Timer
from ganglion.broker.net import Endpoint
from ganglion.protocols.native.arguments import whole_at
from ganglion.protocols.native.confirmations import Confirmations
from ganglion.protocols.native.delivering import (
    FORM_JSON,
    FORM_MSGPACK,
    delivery,
    encoder_of,
    message_frame,
)
from ganglion.protocols.native.dispatch import NAMES, OPERATIONS
from ganglion.protocols.native.frames import Frame, FrameError, FrameReader, unpack_json
from ganglion.protocols.native.greeting import Greeting
from ganglion.protocols.native.operations import (
    CHANNELS_MAX,
    FIRST_REQUEST,
    PROTOCOL_VERSION,
    Code,
    Operation,
)
from ganglion.protocols.native.refusals import Refused, invalid, refusal_of
from ganglion.protocols.native.requesting import NativeRequester
from ganglion.protocols.native.runs import FIRST_OF_PUBLISH, publish_run
from ganglion.protocols.native.server import NativeServer
from ganglion.protocols.rates import Intake

if TYPE_CHECKING:
    from ganglion.broker.core.producers import Producer

__all__ = ["Channel", "NativeConnection"]

_ROUTES_MAX = 1024  # topics whose authorisation a connection remembers; all are forgotten beyond
_TOPIC_SIZE_MAX = 256  # bytes of such a topic: so a connection keeps half a MB at most
_EVERY_QOS = 0b000111  # a publish mask that allows every QoS without retain
_NO_ROUTES: dict[bytes, Route] = {}  # stands for none yet

_MESSAGE = int(Operation.MESSAGE)
_PUBLISH = int(Operation.PUBLISH)
_OK = int(Operation.OK)
_ERROR = int(Operation.ERROR)
_FIRST_OF_RUN = 0x93  # an array of three elements: a message without properties
_ERROR_TEXT_MAX = 1000


class Channel(Protocol):
    """What a client has opened, and gets frames of its own from."""

    def add_credit(self, count: int) -> None:
        """The client takes more (or so many: that depends on what it is)."""
        ...

    def pump(self) -> None:
        """There may be room: send what waits."""
        ...

    def recheck(self) -> None:
        """The rules of access have changed: end what is not allowed any more."""
        ...

    def close(self) -> None:
        """The client has left."""
        ...


class NativeConnection:
    """The protocol side of one connection with a native client."""

    __slots__ = (
        "_greeting",
        "_intake",
        "_reader",
        "_requester",
        "_routes",
        "_timer",
        "channels",
        "confirmations",
        "encode",
        "endpoint",
        "form",
        "is_closed",
        "is_leaving",
        "keep_alive_s",
        "last_received",
        "plain",
        "producer",
        "server",
        "session",
        "to_pump",
        "traffic",
    )

    endpoint: Endpoint
    confirmations: Confirmations

    def __init__(
        self, server: NativeServer, *, is_web: bool = False, is_json: bool = False
    ) -> None:
        """``is_web``: it is within a WebSocket, where alone there may be JSON (``is_json``)."""
        self.server = server
        name = "native-json" if is_json else "native-websocket" if is_web else "native"
        self.traffic = server.node.statistics.traffic[name]
        self.form = FORM_JSON if is_json else FORM_MSGPACK
        self.encode: Callable[[Frame], bytes] = encoder_of(self.form)
        self.session: Session | None = None
        """None before the greeting and after the end."""
        self.is_closed = False
        self.is_leaving = False
        """The client has said goodbye: what it sends is not read any more."""
        self.keep_alive_s = 0
        self.last_received = 0.0
        self.producer: Producer | None = None
        self.channels: dict[int, Channel] = {}
        self.plain: dict[int, str] = {}
        """Filters of plain subscriptions, by channel."""
        self.to_pump: dict[Channel, None] = {}
        """Channels that may have room since something in this read was settled."""
        self._greeting: Greeting | None = Greeting(self)
        self._routes: dict[bytes, Route] = _NO_ROUTES
        self._reader: FrameReader | None = None  # that holds the beginning of a frame
        self._intake: Intake | None = None
        self._requester: NativeRequester | None = None
        self._timer: Timer | None = None

    # -- the endpoint calls ----------------------------------------------------------------------

    def connected(self, endpoint: Endpoint, now: float) -> None:
        """The connection is there: ``hello`` has to follow within a time."""
        self.endpoint = endpoint
        node = self.server.node
        self.confirmations = Confirmations(self, node.journal.commits)
        self.last_received = now
        timeout_s = node.limits.connect_timeout_s
        self._timer = node.timers.at(now + timeout_s, self._no_hello)

    def receive(self, data: bytes, now: float) -> None:
        """These bytes came: of MessagePack any, of JSON one text message or more."""
        self.last_received = now
        if self._greeting is not None:
            data = self._greeting.receive(data)
        session = self.session
        if session is None or not data or self.is_leaving:
            return
        node = self.server.node
        limits, commits = node.limits, node.journal.commits
        recorded = commits.waiting_bytes
        received = self.traffic.received
        try:
            if self.form == FORM_MSGPACK:
                self._read(session, data)
            else:
                for frame in unpack_json(data, self.server.limits(is_json=True)):
                    if not self.is_closed and not self.is_leaving:
                        self._on_frame(frame)
        except FrameError as error:
            self.confirmations.flush()
            self.fail(error.code, str(error))
            return
        self.confirmations.flush()
        if self.to_pump:
            channels, self.to_pump = self.to_pump, {}
            for channel in channels:
                channel.pump()
        if recorded < commits.waiting_bytes > limits.uncommitted_bytes_max:
            self._hold().wait_for_disk()
        if limits.receive_messages_per_s_max or limits.receive_bytes_per_s_max:
            received = self.traffic.received - received
            self._hold().keep_rate(received, len(data), now)

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
        for channel in list(self.channels.values()):
            channel.pump()

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        self.end(reason)

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, session: Session, data: bytes) -> None:
        """Read every whole frame; the beginning of one more is kept. Raises `FrameError`."""
        node = self.server.node
        statistics, traffic = node.statistics, self.traffic
        routes: dict[bytes, Route] | None = None  # not looked for yet
        form = self.form
        size = len(data)
        reader, self._reader = self._reader, None
        before = 0  # what the reader had before this data
        is_fed = False
        pos = 0
        packets = 0
        if reader is not None:
            before = reader.fed
            reader.feed(data)
            is_fed = True
        while not self.is_closed and not self.is_leaving:
            if reader is None or reader.end - before == pos:  # at the beginning of a frame
                if pos >= size:
                    break
                first, second = data[pos], data[pos + 1] if pos + 1 < size else 0
                if first == _FIRST_OF_RUN and second == _MESSAGE and size - pos > 4:
                    # A message without properties, by index; as in `MqttConnection`.
                    if routes is None:
                        routes = self._routes if not node.is_full else _NO_ROUTES
                    kind = data[pos + 2]
                    if 0xA0 <= kind < 0xC0:  # fixstr
                        start = pos + 3
                        at = start + (kind & 0x1F)
                    elif kind == 0xD9:  # str 8
                        start = pos + 4
                        at = start + data[pos + 3]
                    else:
                        start = at = size
                    if at + 2 < size and data[at] == 0xC4:  # bin 8
                        payload_at = at + 2
                        end = payload_at + data[at + 1]
                    elif at + 3 < size and data[at] == 0xC5:  # bin 16
                        payload_at = at + 3
                        end = payload_at + (data[at + 1] << 8 | data[at + 2])
                    else:
                        payload_at = end = size + 1
                    route = routes.get(data[start:at]) if end <= size else None
                    if route is not None and not route.valid:
                        route = self._renew(route)
                    if route is not None:
                        # frames with the same topic and length after this one
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
                            for begin in range(0, stop - pos, step):
                                frame = run[begin : begin + step]
                                message = Message(route.topic, frame[payload_at - pos :])
                                message.forms = {form << 3: (frame, b"")}
                                node.forward(message, others, route.groups, session)
                        packets += count
                        traffic.received += count
                        traffic.received_bytes += stop - pos
                        if tally is not None:
                            sent = count * len(outlets)
                            tally.sent += sent
                            tally.sent_bytes += sent * step
                        elif outlets:
                            route.count_sent(form, count, step)
                        if is_fed and reader is not None:
                            reader.read_bytes(stop - pos)
                            reader.skipped(stop - pos)
                        pos = stop
                        continue
                if first == FIRST_OF_PUBLISH and second == _PUBLISH and not node.is_full:
                    stop = publish_run(self, data, pos, self.known_route_by_key)
                    if stop != pos:
                        packets += 1
                        if is_fed and reader is not None:
                            reader.read_bytes(stop - pos)
                            reader.skipped(stop - pos)
                        pos = stop
                        continue
            if not is_fed:
                reader = self.server.lend_reader()
                before = reader.fed - pos
                reader.feed(memoryview(data)[pos:] if pos else data)
                is_fed = True
            assert reader is not None
            next_frame = reader.next()
            if next_frame is None:
                break
            packets += 1
            pos = reader.end - before
            self._on_frame(next_frame)
            routes = None  # that may have changed them
        statistics.packets_received += packets
        if reader is not None:
            if reader.end == reader.fed:
                self.server.take_back(reader)
            elif not self.is_closed and not self.is_leaving:
                self._reader = reader

    def _on_frame(self, frame: Frame) -> None:
        """Do what a frame says, and answer it if it is refused."""
        operation: int = frame[0]
        try:
            handler = OPERATIONS.get(operation)
            if handler is not None:
                handler(self, frame)
            elif operation >= FIRST_REQUEST:
                whole_at(frame, 1, "id")
                raise Refused(
                    Code.UNKNOWN_OPERATION,
                    f"there is no operation {operation} in version {PROTOCOL_VERSION}",
                )
        except FrameError:
            raise
        except GanglionError as error:
            self._refuse(frame, refusal_of(error))

    def _refuse(self, frame: Frame, refusal: Refused) -> None:
        operation: int = frame[0]
        number = frame[1] if operation >= FIRST_REQUEST and len(frame) > 1 else 0
        if type(number) is not int or number < 0:
            number = 0
        if refusal.code in (Code.NOT_ALLOWED, Code.LIMIT, Code.FULL):
            session = self.session
            client = session.client if session is not None else None
            action = NAMES.get(operation, str(operation))
            self.server.node.refusals.refuse(action, client, str(refusal), code=refusal.code)
        if operation >= FIRST_REQUEST:
            self.error(number, refusal.code, str(refusal), refusal.details)

    def renew(self, topic: bytes, route: Route) -> Route | None:
        """The route of the same topic as it is now; the client still may publish there.

        None: it has to be judged anew.
        """
        renewed = self.server.node.router.route(route.topic)
        if renewed.bounded or (is_source(route.topic) and not renewed.targets):
            del self._routes[topic]
            return None
        self._routes[topic] = renewed
        return renewed

    def _renew(self, route: Route) -> Route | None:
        return self.renew(route.topic.encode(), route)

    def known_route(self, topic: str) -> Route | None:
        """The route of a topic that this client may publish to with every QoS, if it is known."""
        return self.known_route_by_key(topic.encode())

    def known_route_by_key(self, key: bytes) -> Route | None:
        """The same for the topic in UTF-8."""
        route = self._routes.get(key)
        if route is not None and not route.valid:
            return self.renew(key, route)
        return route

    def remember(self, session: Session, topic: str) -> None:
        """From now on messages for this topic take the fast path, if they all may."""
        node, key = self.server.node, topic.encode()
        if key in self._routes or len(key) > _TOPIC_SIZE_MAX:
            return
        allowed = node.publish_mask(session.client, topic)
        if allowed & _EVERY_QOS == _EVERY_QOS:
            if self._routes is _NO_ROUTES or len(self._routes) >= _ROUTES_MAX:
                self._routes = {}
            route = node.router.route(topic)
            if not route.bounded:
                self._routes[key] = route

    # -- writing ---------------------------------------------------------------------------------

    def write(self, *frame: Any) -> None:
        """Send a frame of these elements; None at its end is left out."""
        while frame[-1] is None:
            frame = frame[:-1]
        self.endpoint.write(self.encode(frame))
        self.server.node.statistics.other_packets_sent += 1

    def answer(self, number: int, result: object = None) -> None:
        """Answer a request, unless its client wants none."""
        if number:
            self.write(_OK, number, result)

    def answer_durably(self, number: int, result: object = None) -> None:
        """Answer a request once everything recorded so far is on disk."""
        if number:
            commits = self.server.node.journal.commits
            commits.after_commit(partial(self.answer, number, result))

    def error(
        self, number: int, code: Code, text: str, details: dict[str, Any] | None = None
    ) -> None:
        """Tell the client that a request is refused, or, with number 0, something else wrong."""
        self.write(_ERROR, number, str(code), text[:_ERROR_TEXT_MAX], details)

    # -- channels --------------------------------------------------------------------------------

    def channel(self, number: int) -> Channel:
        """The open channel of this number. Raises `Refused`."""
        channel = self.channels.get(number)
        if channel is None:
            raise Refused(Code.NOT_FOUND, f"there is no channel {number}")
        return channel

    def requester(self) -> NativeRequester:
        """The client as one that asks."""
        if self._requester is None:
            self._requester = NativeRequester(self)
        return self._requester

    def check_channel(self, number: int) -> None:
        """Raise `Refused` unless a channel of this number may be opened."""
        if not number:
            raise invalid("id 0 cannot be that of a channel")
        if number in self.channels or number in self.plain:
            raise Refused(Code.DUPLICATE_ID, f"channel {number} is open")
        if len(self.channels) >= CHANNELS_MAX:
            raise Refused(Code.LIMIT, f"{CHANNELS_MAX} channels are open")

    def ended(self, number: int, code: Code, text: str) -> None:
        """A channel has ended by itself."""
        if self.channels.pop(number, None) is not None:
            self.write(Operation.ENDED, number, str(code), text)

    # -- open ------------------------------------------------------------------------------------

    def start(self, session: Session, greeting: Frame, keep_alive_s: int) -> None:
        """The session is open and that is durable: answer ``hello``, and read on."""
        if self.is_closed:
            return
        self.session = session
        held = self._greeting.rest() if self._greeting is not None else b""
        self._greeting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.keep_alive_s = keep_alive_s
        node = self.server.node
        self._watch(node.timers.now)
        node.statistics.connections_opened += 1
        self.write(*greeting)
        node.start_session(session, self)
        self.endpoint.resume_reading()
        if held:
            self.receive(held, self.last_received)

    def _watch(self, since: float) -> None:
        if self.keep_alive_s:
            deadline = since + self.keep_alive_s
            self._timer = self.server.node.timers.at(deadline, self._check_keep_alive)

    def _check_keep_alive(self, now: float) -> None:
        if self.session is None:
            return
        if self._intake is not None and self._intake.is_held:
            self.last_received = now  # it is we who do not listen
        silent_s = now - self.last_received
        if silent_s >= 1.5 * self.keep_alive_s:
            text = f"nothing came within 1.5 times keep_alive_s = {self.keep_alive_s}"
            self.fail(Code.KEEP_ALIVE, text)
        elif silent_s >= self.keep_alive_s:
            self.write(Operation.PING)
            self._watch(self.last_received + 0.5 * self.keep_alive_s)
        else:
            self._watch(self.last_received)

    def _no_hello(self, _now: float) -> None:
        if self._greeting is not None:
            self._greeting.time_out()

    # -- the session sends (Sink) ----------------------------------------------------------------

    @property
    def carries_requests(self) -> bool:
        """A native client that answers requests says so, with ``serve``."""
        return False

    @property
    def congested(self) -> bool:
        """Too much waits to be sent."""
        return self.endpoint.congested

    def outlet(self, form: int) -> tuple[Outlet, Traffic] | None:
        """Where messages in this wire form go as they are."""
        return (self.endpoint, self.traffic) if form == self.form else None

    def send(self, packet_id: int, message: Message, terms: Terms, duplicate: bool) -> bool:
        """Send a message for the plain subscriptions, or a retained one for one of them."""
        now = self.server.node.timers.now
        data = message_frame(message, self.form, now, retained=terms.retain)
        if terms.identifiers:
            data = delivery(data, self.form, terms.identifiers[0])
        self.traffic.sent += 1
        self.traffic.sent_bytes += len(data)
        self.endpoint.offer(data, 1)
        return True

    def send_run(self, packet_id: int, messages: Sequence[Message], terms: Terms) -> bool:
        """Nothing has a packet identifier here."""
        return False

    def send_release(self, packet_id: int) -> None:
        """There is no QoS 2 here."""

    def taken_over(self) -> None:
        """Another connection has the client identifier."""
        self.session = None
        self.fail(Code.TAKEN_OVER, "another connection has this client identifier")

    def expel(self, rule: str) -> None:
        """The client may not be connected any more."""
        self.fail(Code.NOT_AUTHENTICATED, rule)

    def access_changed(self) -> None:
        """The rules of access have changed: forget what was allowed."""
        self._routes = _NO_ROUTES
        for channel in list(self.channels.values()):
            channel.recheck()

    def drain(self) -> None:
        """The node stops: tell the client to go elsewhere, and when it must have gone."""
        if self.session is None:
            return  # it is told so when it has been greeted
        notice = {
            "reason": "the node stops",
            "within_s": self.server.node.limits.drain_timeout_s,
            "addresses": list(self.server.settings.addresses),
        }
        self.write(Operation.DRAIN, notice)

    def leave(self, reason: str) -> None:
        """The client has said goodbye: it is still owed the answers that wait for a commit."""
        self.is_leaving = True
        self.server.node.journal.commits.after_commit(partial(self.end, reason))

    # -- the end ---------------------------------------------------------------------------------

    def fail(self, code: Code, text: str) -> None:
        """The client broke the protocol or a limit: tell it why and close."""
        if self.is_closed:
            return
        session = self.session
        client = session.client if session is not None else None
        self.server.node.refusals.refuse(
            "go on", client, text, reason=str(code), address=self.endpoint.peer
        )
        self.error(0, code, text)
        self.end(text, linger=True)

    def end(self, reason: str, *, linger: bool = False) -> None:
        """Close the connection, from whichever side."""
        if self.is_closed:
            return
        self.is_closed = True
        greeting, self._greeting = self._greeting, None
        session, self.session = self.session, None
        if session is None and greeting is not None:
            session = greeting.session
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reader = None
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.close()
        self.to_pump = {}
        if self._requester is not None:
            self._requester.close()
        if self.producer is not None:
            self.server.producers.leave(self.producer, self)
        self.endpoint.close(reason, linger=linger or greeting is not None)
        if session is not None:
            self.server.node.close_session(session, self, publish_will=False)
