"""Requesters and responders that remember what they heard, on a virtual clock."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from ganglion.broker.core.access import Client
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message
from ganglion.broker.core.requests import Ending, Outcome, RequestRefused, Requests
from ganglion.broker.core.responders import Request
from ganglion.broker.core.router import Router, Subscription
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers

__all__ = ["Bench", "FakeRequester", "FakeResponder", "refused"]


@dataclass(eq=False)
class FakeResponder:
    """Takes requests and does nothing with them by itself."""

    name: str
    distance: int = 0
    capacity: int = 100
    accepts: bool = True
    on_take: Callable[[Request], None] = lambda _request: None
    asked: list[Request] = field(default_factory=list)
    withdrawals: list[tuple[int, str]] = field(default_factory=list)

    @property
    def client(self) -> Client:
        """Known by its name."""
        return Client(self.name, None, "unix", None)

    def take(self, request: Request) -> bool:
        """Note it."""
        if self.accepts:
            self.asked.append(request)
            self.on_take(request)
        return self.accepts

    def withdrawn(self, request_id: int, reason: str) -> None:
        """Note it."""
        self.withdrawals.append((request_id, reason))


@dataclass(eq=False)
class FakeRequester:
    """Notes what it hears, in order."""

    heard: list[tuple[Hashable, bytes | Ending]] = field(default_factory=list)
    on_reply: Callable[[Hashable], None] = lambda _tag: None

    def replied(self, tag: Hashable, reply: Message) -> None:
        """A reply came."""
        self.heard.append((tag, reply.payload))
        self.on_reply(tag)

    def ended(self, tag: Hashable, ending: Ending) -> None:
        """The end."""
        self.heard.append((tag, ending))

    def outcome(self, tag: Hashable) -> Outcome:
        """How the request ended: exactly once."""
        (ending,) = [
            what for which, what in self.heard if which == tag and isinstance(what, Ending)
        ]
        return ending.outcome

    def replies(self, tag: Hashable) -> list[bytes]:
        """What was answered."""
        return [what for which, what in self.heard if which == tag and isinstance(what, bytes)]


@dataclass(eq=False)
class FakeSession:
    """What routing and requests need of a session."""

    client: Client
    subscriptions: dict[str, Subscription] = field(default_factory=dict)

    def is_durable(self) -> bool:
        """It keeps nothing."""
        return False


class Bench:
    """Requests with everything around them."""

    def __init__(self, **limits: Any) -> None:
        self.timers = Timers()
        self.statistics = Statistics()
        self.forbidden: set[tuple[str, str]] = set()
        """Pairs of a client and a topic that it may not receive."""
        self.as_responders: dict[str, FakeResponder] = {}
        """Sessions whose clients can reply, by client identifier."""
        self.router = Router(lambda session, topic: self.may_receive(session.client, topic))
        self.requests = Requests(
            router=self.router,
            timers=self.timers,
            limits=replace(Limits(), **limits),
            statistics=self.statistics,
            may_receive=self.may_receive,
            as_responder=lambda session: self.as_responders.get(session.client.client_id),
        )
        self.requester = FakeRequester()

    def may_receive(self, client: Client, topic: str) -> bool:
        """Whether nothing forbids it."""
        return (client.client_id, topic) not in self.forbidden

    def serve(self, name: str, topic_filter: str = "t", group: str = "") -> FakeResponder:
        """A new responder with one service."""
        responder = FakeResponder(name)
        self.requests.serve(responder, topic_filter, group)
        return responder

    def subscribe(self, name: str, topic_filter: str) -> FakeResponder:
        """A session whose client can reply, with a subscription."""
        session = FakeSession(Client(name, None, "unix", None))
        subscription = Subscription(cast(Session, session), topic_filter, 0)
        self.router.add(subscription)
        session.subscriptions[topic_filter] = subscription
        return self.as_responders.setdefault(name, FakeResponder(name))

    def ask(self, tag: Hashable = 1, topic: str = "t", **options: Any) -> None:
        """A request to one."""
        self.requests.request(self.requester, tag, Message(topic, b"?"), **options)

    def gather(self, tag: Hashable = 1, topic: str = "t", **options: Any) -> None:
        """A request to many."""
        self.requests.gather(self.requester, tag, Message(topic, b"?"), **options)

    def reply(self, responder: FakeResponder, payload: bytes = b"!", index: int = -1) -> bool:
        """The responder answers one of what it was asked."""
        request = responder.asked[index]
        return self.requests.reply(responder, request.id, Message("", payload))

    def check_clean(self) -> None:
        """Nothing is left of any request."""
        requests = self.requests
        assert len(requests) == 0
        assert not requests._by_requester
        assert not requests._by_responder
        assert requests._kept_bytes == 0
        left = self.timers.next_deadline()
        if left is not None:  # that of the last that waited, which waits no more
            self.timers.run(left)
        assert self.timers.next_deadline() is None


def refused(ask: Callable[[], None]) -> Outcome:
    """With what outcome a request is refused."""
    with pytest.raises(RequestRefused) as caught:
        ask()
    assert str(caught.value)
    return caught.value.outcome


# -- to one --------------------------------------------------------------------------------------
