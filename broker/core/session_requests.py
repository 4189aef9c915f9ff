"""Requests that clients make and answer by publishing: MQTT's side of request/reply.

**Asking.** A message with a response topic is a request. Like any message it goes to those that
subscribe to its topic, who answer by themselves; and if somebody serves the topic, one of them is
asked for the publisher. The answer is then published to the response topic with the correlation
data of the request, and so is an error, with a user property `ERROR`.

**Answering.** A client whose protocol carries response topics is asked as a subscriber: the topic
is that of the request, the response topic is ``$reply/{id}``. A client of an older protocol sees no
response topic; it subscribes to ``$request/+/{topic filter}`` and gets the id in the topic,
``$request/{id}/{topic}``. Its answer goes to the same with ``$reply`` in place of ``$request``. So
no state is needed to answer, several requests can be under way, and a late answer is taken for no
other request's. Such a subscription is a service: newer clients may have it as well. Requests come
at QoS 0: one that is not answered by whoever has the connection now is not owed to the session.

**Answering where the rules do not say so.** Who gets a request may publish to its response topic
although no rule allows it: so often, and for so long, as limits say. The right is the requester's,
lent: it must be one that may both publish there and read there, so that no request makes somebody
else publish what the requester could not. A rule that denies still denies.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ganglion import GanglionError
from ganglion.broker.core.access import Client
from ganglion.broker.core.message import Message, MessageProperties, Terms
from ganglion.broker.core.requests import Ending, Outcome, RequestRefused
from ganglion.broker.core.responders import Request, Responder, Service
from ganglion.broker.core.topics import REPLY_PREFIX, InvalidTopic, split_shared

if TYPE_CHECKING:
    from ganglion.broker.core.node import Node
    from ganglion.broker.core.router import Subscription
    from ganglion.broker.core.sessions import Session

__all__ = [
    "ANSWER_PREFIX",
    "CODE",
    "ERROR",
    "REPEAT",
    "REQUEST_PREFIX",
    "SessionRequests",
    "is_service",
    "split_service",
]

REQUEST_PREFIX = "$request/"
"""A subscription to it, ``+`` and a topic filter is one to requests."""
ANSWER_PREFIX = "$reply/"
"""What is published below it answers a request, whose id is the next level."""
ERROR = "x-error"
"""A user property of an answer that is none: an `Outcome`, or the responder's own code."""
CODE = "x-code"
"""A user property beside `ERROR`: the code that the responder refused with."""
REPEAT = "x-repeat"
"""A user property of a request: 1, if another may be asked when a responder leaves."""

_TEXT_MAX = 1024  # characters of an error's payload that are passed on as its text
_TOPIC_BYTES_MAX = 65_535  # what a string of MQTT can have
_ANY = 2**31  # a session sets no bound of its own: the node's limit holds
_ID_DIGITS_MAX = 16
_RIGHTS_PER_TOPIC_MAX = 64
"""Pairs of requester and topic that share one response topic and are remembered: an answer is
checked against each of them."""


def is_service(topic_filter: str) -> bool:
    """Whether a subscription to this is one to requests."""
    if topic_filter.startswith("$share/"):
        return topic_filter.split("/", 3)[2:3] == [REQUEST_PREFIX[:-1]]
    return topic_filter.startswith(REQUEST_PREFIX)


def split_service(topic_filter: str) -> tuple[str, str] | None:
    """Group and topic filter that such a subscription serves; None when it is an ordinary one.

    Raises `InvalidTopic`.
    """
    if not is_service(topic_filter):
        return None
    shared = split_shared(topic_filter)
    group, topic_filter = shared or ("", topic_filter)
    level, _, served = topic_filter[len(REQUEST_PREFIX) :].partition("/")
    if level != "+" or not served or served.startswith("$"):
        raise InvalidTopic(
            "requests are subscribed to as $request/+/{topic filter}, of topics without '$'"
        )
    return group, served


class _SessionResponder:
    """The client of a session as one that answers."""

    __slots__ = ("_session", "by_filter", "terms")

    def __init__(self, session: "Session") -> None:
        self._session = session
        self.by_filter: dict[str, Service] = {}
        """Its services by the filters of the subscriptions that they come from."""
        self.terms: dict[Service, Terms] = {}

    @property
    def client(self) -> Client:
        """Whose session it is."""
        return self._session.client

    @property
    def distance(self) -> int:
        """It is a client of this node."""
        return 0

    @property
    def capacity(self) -> int:
        """None while it is away or takes nothing."""
        sink = self._session.sink
        return 0 if sink is None or sink.congested else _ANY

    def take(self, request: Request) -> bool:
        """Send it as a message; False when the client cannot take one so large."""
        sink = self._session.sink
        if sink is None:
            return False
        asked = request.message
        topic, terms = asked.topic, request.terms
        answer_topic = f"{ANSWER_PREFIX}{request.id}"
        if request.service is not None:
            topic = f"{REQUEST_PREFIX}{request.id}/{topic}"
            terms = self.terms[request.service]
            if len(topic.encode()) > _TOPIC_BYTES_MAX:
                return False
        about = asked.properties or _NO_PROPERTIES
        correlation = about.correlation_data
        if correlation is None:  # some clients answer only what has one
            correlation = b"%d" % request.id
        about = replace(about, response_topic=answer_topic, correlation_data=correlation)
        message = Message(topic, asked.payload, 0, False, about, request.deadline)
        return sink.send(0, message, terms, False)

    def withdrawn(self, request_id: int, reason: str) -> None:
        """MQTT has no word for that: its late answer is told that nobody waits for it."""


class _Asked:
    """What a session asked for, until it is answered: the tag of its request."""

    __slots__ = ("correlation_data", "qos", "response_topic")

    def __init__(self, response_topic: str, correlation_data: bytes | None, qos: int) -> None:
        self.response_topic = response_topic
        self.correlation_data = correlation_data
        self.qos = qos


class _SessionRequester:
    """The client of a session as one that asks: what it hears is published."""

    __slots__ = ("_node",)

    def __init__(self, node: "Node") -> None:
        self._node = node

    def replied(self, tag: Hashable, reply: Message) -> None:
        """Publish it to the response topic."""
        self._publish(cast(_Asked, tag), reply.payload, reply.properties or _NO_PROPERTIES)

    def ended(self, tag: Hashable, ending: Ending) -> None:
        """Without an answer: publish why."""
        if ending.outcome is not Outcome.ANSWERED:
            user_properties = [(ERROR, str(ending.outcome))]
            if ending.code:
                user_properties.append((CODE, ending.code))
            about = MessageProperties(payload_is_text=True, user_properties=tuple(user_properties))
            self._publish(cast(_Asked, tag), ending.text.encode(), about)

    def _publish(self, asked: _Asked, payload: bytes, about: MessageProperties) -> None:
        about = replace(about, response_topic=None, correlation_data=asked.correlation_data)
        message = Message(asked.response_topic, payload, asked.qos, False, about)
        try:
            count = self._node.publish(message)
        except GanglionError as error:
            self._node.statistics.drop("reply could not be kept")
            self._node.log.warning("a reply is lost", topic=message.topic, reason=str(error))
            return
        if not count:
            self._node.statistics.drop("nobody subscribes to the response topic")


class _Right:
    """That whoever gets messages of one topic may answer to another."""

    __slots__ = ("expires_at", "remaining", "request_topic", "requester", "response_topic")

    def __init__(self, requester: "Session", request_topic: str, response_topic: str) -> None:
        self.requester = requester
        self.request_topic = request_topic
        self.response_topic = response_topic
        self.expires_at = 0.0
        self.remaining = 0


class SessionRequests:
    """Requests of one node that sessions make and answer."""

    def __init__(self, node: "Node", may_receive: Callable[["Session", str], bool]) -> None:
        self._node = node
        self._may_receive = may_receive
        self._responders: dict[Session, _SessionResponder] = {}
        self._requesters: dict[Session, _SessionRequester] = {}
        self._rights: dict[Session, dict[tuple[str, str], _Right]] = {}
        self._rights_by_topic: dict[str, dict[tuple[Session, str], _Right]] = {}

    # -- answering -------------------------------------------------------------------------------

    def subscriber(self, session: "Session") -> Responder | None:
        """A session that subscribes as one to be asked; None where its client sees no requests."""
        sink = session.sink
        return self._responder(session) if sink is not None and sink.carries_requests else None

    def serve(self, session: "Session", subscription: "Subscription") -> None:
        """Let a connected session answer what its subscription says. Raises `RequestRefused`."""
        wanted = split_service(subscription.topic_filter)
        assert wanted is not None
        group, served = wanted
        responder = self._responder(session)
        service = self._node.requests.serve(responder, served, group)
        responder.by_filter[subscription.topic_filter] = service
        identifiers = (subscription.identifier,) if subscription.identifier else ()
        responder.terms[service] = Terms(0, identifiers=identifiers)

    def end_service(self, session: "Session", topic_filter: str) -> None:
        """It has unsubscribed; what it was asked it may still answer."""
        responder = self._responders.get(session)
        service = responder.by_filter.pop(topic_filter, None) if responder is not None else None
        if responder is not None and service is not None:
            del responder.terms[service]
            self._node.requests.end_service(service)

    def answer(self, session: "Session", message: Message) -> bool:
        """The client published below `ANSWER_PREFIX`: whether somebody waited for that."""
        number = message.topic[len(ANSWER_PREFIX) :].partition("/")[0]
        is_number = number.isascii() and number.isdecimal() and len(number) <= _ID_DIGITS_MAX
        request_id = int(number) if is_number else 0
        responder, requests = self._responder(session), self._node.requests
        about = message.properties
        for name, value in about.user_properties if about is not None else ():
            if name == ERROR:
                text = message.payload.decode(errors="replace")[:_TEXT_MAX]
                return requests.refuse(responder, request_id, text, value)
        return requests.reply(responder, request_id, message)

    def _responder(self, session: "Session") -> _SessionResponder:
        found = self._responders.get(session)
        if found is None:
            found = self._responders[session] = _SessionResponder(session)
        return found

    # -- asking ----------------------------------------------------------------------------------

    def ask(self, session: "Session", message: Message, delivered: int) -> int:
        """Ask one who serves the topic of a message that has a response topic: how many were.

        The message was published and went to so many as `delivered`. Raises `RequestRefused`.
        """
        node, about = self._node, message.properties
        assert about is not None
        response_topic = about.response_topic
        assert response_topic is not None
        if session.connection is None:
            return 0  # a will: nobody waits for an answer
        refusal = self._refusal(session, response_topic, message.qos)
        if not refusal:
            self._lend(session, message.topic, response_topic)
        if not node.router.route(message.topic).services:
            node.statistics.requests_received += 1
            outcome = Outcome.FORWARDED if delivered else Outcome.NO_RESPONDER
            node.statistics.requests_ended[outcome] += 1
            return 0
        if refusal:
            raise RequestRefused(Outcome.NOT_ALLOWED, refusal)
        requester = self._requesters.get(session)
        if requester is None:
            requester = self._requesters[session] = _SessionRequester(node)
        timeout_s = None if message.expires_at is None else message.expires_at - node.timers.now
        node.requests.request(
            requester,
            _Asked(response_topic, about.correlation_data, message.qos),
            message,
            timeout_s=timeout_s,
            may_repeat=(REPEAT, "1") in about.user_properties,
        )
        return 1

    def _refusal(self, session: "Session", response_topic: str, qos: int) -> str:
        """Why nobody may publish there for this requester; empty: they may."""
        decision = self._node.may_publish(session.client, response_topic, qos, retain=False)
        if not decision.allowed:
            return f"response topic {response_topic!r}: the requester may not publish there: " + (
                decision.rule
            )
        if not self._may_receive(session, response_topic):
            return f"response topic {response_topic!r}: the requester may not read there"
        return ""

    # -- the right to answer ---------------------------------------------------------------------

    def may_answer(self, session: "Session", message: Message) -> bool:
        """Whether the client may publish this because it answers: that uses up a part of a right.

        To be asked where the rules did not allow it.
        """
        rights = self._rights_by_topic.get(message.topic)
        if rights is None or message.retain:
            return False
        node = self._node
        decision = node.access.publish(session.client, message.topic, message.qos, retain=False)
        if decision is not node.access.default:
            return False
        for right in list(rights.values()):
            if right.expires_at <= node.timers.now:
                self._forget(right)
            elif self._is_subscribed(session, right.request_topic):
                right.remaining -= 1
                if not right.remaining:
                    self._forget(right)
                return True
        return False

    def _is_subscribed(self, session: "Session", topic: str) -> bool:
        route = self._node.router.route(topic)
        return any(target.receiver is session for target in route.targets) or any(
            member[0] is session for group in route.groups for member in group.members
        )

    def _lend(self, session: "Session", request_topic: str, response_topic: str) -> None:
        node = self._node
        if node.access.default.allowed or response_topic.startswith(REPLY_PREFIX):
            return  # nobody needs it
        limits = node.limits
        right = self._rights.get(session, {}).get((response_topic, request_topic))
        if right is None:
            own = self._rights.get(session, {})
            if len(own) >= limits.requests_per_client_max:
                self._forget(next(iter(own.values())))
            by_topic = self._rights_by_topic.get(response_topic, {})
            if len(by_topic) >= _RIGHTS_PER_TOPIC_MAX:
                self._forget(next(iter(by_topic.values())))
            right = _Right(session, request_topic, response_topic)
            self._rights.setdefault(session, {})[response_topic, request_topic] = right
            self._rights_by_topic.setdefault(response_topic, {})[session, request_topic] = right
        each = limits.responses_per_request_max
        right.remaining = min(right.remaining + each, each * limits.requests_per_client_max)
        right.expires_at = node.timers.now + limits.response_right_s

    def _forget(self, right: _Right) -> None:
        own = self._rights[right.requester]
        del own[right.response_topic, right.request_topic]
        if not own:
            del self._rights[right.requester]
        by_topic = self._rights_by_topic[right.response_topic]
        del by_topic[right.requester, right.request_topic]
        if not by_topic:
            del self._rights_by_topic[right.response_topic]

    # -- comings and goings ----------------------------------------------------------------------

    def disconnected(self, session: "Session") -> None:
        """It answers no more: what it was asked it gives back, and its services end."""
        responder = self._responders.pop(session, None)
        if responder is not None:
            self._node.requests.responder_left(responder)

    def ended(self, session: "Session") -> None:
        """The session is over: nobody reads what it asked for."""
        requester = self._requesters.pop(session, None)
        if requester is not None:
            self._node.requests.requester_left(requester)
        for right in list(self._rights.get(session, {}).values()):
            self._forget(right)

    def access_changed(self) -> None:
        """Other rules: what was lent by the old ones is not any more."""
        self._rights.clear()
        self._rights_by_topic.clear()


_NO_PROPERTIES = MessageProperties()
