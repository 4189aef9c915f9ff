"""Request/reply of native clients: asking, and answering what others ask.

Each ``serve`` is a responder of its own, with its own credit. What is asked over MQTT is answered
here and the other way round; only the core knows who is what.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ganglion.broker.core.access import Client
from ganglion.broker.core.message import Message
from ganglion.broker.core.node import NotAllowed
from ganglion.broker.core.requests import Ending, Outcome, RequestRefused
from ganglion.broker.core.responders import Request, Service
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.topics import check_topic_filter, check_topic_name
from ganglion.protocols.native.arguments import data_at, element, options_at, text_at, whole_at
from ganglion.protocols.native.delivering import properties_of
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import CREDIT_MAX, Code, Operation
from ganglion.protocols.native.properties import to_map
from ganglion.protocols.native.publishing import make_message
from ganglion.protocols.native.refusals import Refused, invalid

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = [
    "NativeRequester",
    "ServiceChannel",
    "answer",
    "cancel",
    "fail",
    "gather",
    "request",
    "serve",
]

_CREDIT_DEFAULT = 64
_PLAIN_REQUEST = 4  # elements of a request that says nothing but what it asks
_CALL = int(Operation.CALL)
_REPLY = int(Operation.REPLY)
_TEXT_MAX = 1000  # characters of a responder's reason
_CODE_MAX = 100

_CODES = {
    Outcome.NO_RESPONDER: Code.NO_RESPONDERS,
    Outcome.BUSY: Code.RESPONDERS_BUSY,
    Outcome.LIMIT: Code.LIMIT,
    Outcome.DEADLINE: Code.TIMED_OUT,
    Outcome.RESPONDER_LEFT: Code.RESPONDER_GONE,
    Outcome.REFUSED: Code.RESPONDER_FAILED,
    Outcome.NOT_ALLOWED: Code.NOT_ALLOWED,
}


# -- asking ----------------------------------------------------------------------------------------


class NativeRequester:
    """The client of one connection as one that asks."""

    __slots__ = ("_connection", "_gathers")

    def __init__(self, connection: "NativeConnection") -> None:
        self._connection = connection
        self._gathers: dict[int, int | None] = {}
        """Those of its requests that are gathers, and how many answers each wants."""

    def ask(self, frame: Frame, *, is_gather: bool) -> None:
        """Begin a request, or answer why not. The client's number is its tag."""
        connection = self._connection
        node, session = connection.server.node, connection.session
        assert session is not None
        requests = node.requests
        number = whole_at(frame, 1, "id")
        if not number:
            raise invalid("id 0 cannot be that of a request: nobody would hear the answer")
        if requests.has(self, number):
            raise Refused(Code.DUPLICATE_ID, f"request {number} is not answered yet")
        topic, payload = text_at(frame, 2, "topic"), data_at(frame, 3, "payload")
        timeout_s = count = None
        may_repeat = False
        if len(frame) > _PLAIN_REQUEST:
            message = make_message(connection, topic, payload, frame[_PLAIN_REQUEST])
            message.retain = False
            options = options_at(frame, 5)
            timeout_s = options.seconds("timeout_s")
            count = options.whole("count", least=1) if is_gather else None
            may_repeat = options.flag("repeat")
        else:
            message = Message(topic, payload)
        if connection.known_route(topic) is None:
            check_topic_name(topic, node.limits)
            decision = node.may_publish(session.client, topic, 0, False)
            if not decision.allowed:
                raise NotAllowed(decision)
            connection.remember(session, topic)
        try:
            if is_gather:
                self._gathers[number] = count
                requests.gather(self, number, message, timeout_s=timeout_s, count=count)
            else:
                requests.request(self, number, message, timeout_s=timeout_s, may_repeat=may_repeat)
        except RequestRefused as refusal:
            self._gathers.pop(number, None)
            raise Refused(_CODES[refusal.outcome], str(refusal)) from None

    def cancel(self, number: int) -> bool:
        """The client does not want it any more; False: it is over."""
        self._gathers.pop(number, None)
        return self._connection.server.node.requests.cancel(self, number)

    def close(self) -> None:
        """The client has left."""
        self._gathers = {}
        self._connection.server.node.requests.requester_left(self)

    # -- the core calls --------------------------------------------------------------------------

    def replied(self, tag: Hashable, reply: Message) -> None:
        """Pass the answer on."""
        about = reply.properties
        members = None
        if about is not None:  # how it came here is none of the requester's business
            members = to_map(replace(about, response_topic=None, correlation_data=None)) or None
        self._connection.write(_REPLY, tag, reply.payload, members)

    def ended(self, tag: Hashable, ending: Ending) -> None:
        """Say how it ended, where an answer does not say it."""
        outcome, connection, number = ending.outcome, self._connection, cast("int", tag)
        if number in self._gathers:
            count = self._gathers.pop(number)
            if ending.answered or outcome is Outcome.DEADLINE:
                reason = "all"
                if outcome is Outcome.DEADLINE:
                    reason = "deadline"
                elif ending.answered == count:
                    reason = "count"
                connection.answer(number, {"replies": ending.answered, "reason": reason})
                return
        if outcome is not Outcome.ANSWERED:
            details = {"code": ending.code} if ending.code else None
            code = _CODES.get(outcome, Code.CANCELLED)
            connection.error(number, code, ending.text, details)


def request(connection: "NativeConnection", frame: Frame) -> None:
    """`request`: ask one."""
    connection.requester().ask(frame, is_gather=False)


def gather(connection: "NativeConnection", frame: Frame) -> None:
    """`gather`: ask all."""
    connection.requester().ask(frame, is_gather=True)


def cancel(connection: "NativeConnection", frame: Frame) -> None:
    """`cancel`: the answer is not wanted any more."""
    number, asked = whole_at(frame, 1, "id"), whole_at(frame, 2, "request")
    if not connection.requester().cancel(asked):
        raise Refused(Code.NOT_FOUND, f"request {asked} is over, or never was")
    connection.answer(number)


# -- answering -------------------------------------------------------------------------------------


def serve(connection: "NativeConnection", frame: Frame) -> None:
    """`serve`: be asked for the topics that a filter matches."""
    number = whole_at(frame, 1, "id")
    topic_filter = text_at(frame, 2, "filter")
    options = options_at(frame, 3)
    group = options.text("group") or ""
    credit = options.whole("credit", CREDIT_MAX)
    connection.check_channel(number)
    node, session = connection.server.node, connection.session
    assert session is not None
    check_topic_filter(topic_filter, node.limits)
    if topic_filter.startswith("$"):
        raise invalid("requests are served for topics that do not begin with '$'")
    decision = node.may_subscribe(session, topic_filter, 0)
    if not decision.allowed:
        raise NotAllowed(decision)
    channel = ServiceChannel(
        connection, session, number, topic_filter, _CREDIT_DEFAULT if credit is None else credit
    )
    try:
        channel.open(group)
    except RequestRefused as refusal:
        raise Refused(_CODES[refusal.outcome], str(refusal)) from None
    connection.channels[number] = channel
    connection.answer(number)


class ServiceChannel:
    """One ``serve`` of a client: a responder, and a channel."""

    __slots__ = ("_client", "_connection", "_credit", "_number", "_service", "_topic_filter")

    def __init__(
        self,
        connection: "NativeConnection",
        session: Session,
        number: int,
        topic_filter: str,
        credit: int,
    ) -> None:
        self._connection = connection
        self._client = session.client
        self._number = number
        self._topic_filter = topic_filter
        self._credit = credit
        self._service: Service | None = None

    def open(self, group: str) -> None:
        """Be asked from now on. Raises `RequestRefused`."""
        self._service = self._connection.server.node.requests.serve(self, self._topic_filter, group)

    # -- the core calls (Responder) --------------------------------------------------------------

    @property
    def client(self) -> Client:
        """Whose it is."""
        return self._client

    @property
    def distance(self) -> int:
        """It is a client of this node."""
        return 0

    @property
    def capacity(self) -> int:
        """How many it takes at once."""
        return 0 if self._connection.endpoint.congested else self._credit

    def take(self, request: Request) -> bool:
        """Ask the client."""
        connection, message = self._connection, request.message
        now = connection.server.node.timers.now
        members = properties_of(message, now)
        if members:
            members.pop("reply_to", None)  # the answer goes back as it came: by the node
        # whole milliseconds; `round` would take as long as all else that is done here
        members["expires_s"] = max(0, int((request.deadline - now) * 1000 + 0.5)) / 1000
        connection.write(_CALL, self._number, request.id, message.topic, message.payload, members)
        return True

    def withdrawn(self, request_id: int, reason: str) -> None:
        """Nobody waits any more."""
        self._connection.write(Operation.CANCELLED, self._number, request_id, str(reason))

    # -- the channel -----------------------------------------------------------------------------

    def add_credit(self, count: int) -> None:
        """So many calls at a time from now on."""
        self._credit = count

    def pump(self) -> None:
        """Requests do not wait for a responder."""

    def recheck(self) -> None:
        """The rules have changed."""
        connection = self._connection
        session = connection.session
        if session is not None:
            decision = connection.server.node.may_subscribe(session, self._topic_filter, 0)
            if not decision.allowed:
                self.close()
                connection.ended(self._number, Code.NOT_ALLOWED, decision.rule)

    def close(self) -> None:
        """The client has left: what it was asked it answers no more."""
        self._connection.server.node.requests.responder_left(self)

    # -- the client answers ----------------------------------------------------------------------

    def answer(self, call: int, reply: Message) -> bool:
        """Whether somebody waited for it."""
        return self._connection.server.node.requests.reply(self, call, reply)

    def fail(self, call: int, text: str, code: str) -> bool:
        """Whether somebody waited for it."""
        return self._connection.server.node.requests.refuse(self, call, text, code)


def answer(connection: "NativeConnection", frame: Frame) -> None:
    """`answer`: the reply to a call."""
    number, channel = whole_at(frame, 1, "id"), _service(connection, frame)
    call = whole_at(frame, 3, "call")
    reply = make_message(connection, "", data_at(frame, 4, "payload"), element(frame, 5))
    connection.answer(number, {"taken": channel.answer(call, reply)})


def fail(connection: "NativeConnection", frame: Frame) -> None:
    """`fail`: why there is no reply."""
    number, channel = whole_at(frame, 1, "id"), _service(connection, frame)
    call, text = whole_at(frame, 3, "call"), text_at(frame, 4, "text")
    code = "" if element(frame, 5) is None else text_at(frame, 5, "code")
    taken = channel.fail(call, text[:_TEXT_MAX], code[:_CODE_MAX])
    connection.answer(number, {"taken": taken})


def _service(connection: "NativeConnection", frame: Frame) -> ServiceChannel:
    number = whole_at(frame, 2, "service")
    channel = connection.channel(number)
    if not isinstance(channel, ServiceChannel):
        raise Refused(Code.NOT_FOUND, f"channel {number} serves nothing")
    return channel
