"""Request/reply on a virtual clock: who is asked, how requests end, what is withdrawn."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from ganglion.broker.core.access import Client
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message
from ganglion.broker.core.requests import Ending, Outcome, RequestRefused, Requests
from ganglion.broker.core.responders import Request, Responder
from ganglion.broker.core.router import Router, Subscription
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers


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
        assert self.timers.next_deadline() is None


def refused(ask: Callable[[], None]) -> Outcome:
    """With what outcome a request is refused."""
    with pytest.raises(RequestRefused) as caught:
        ask()
    assert str(caught.value)
    return caught.value.outcome


# -- to one --------------------------------------------------------------------------------------


def test_a_request_is_answered() -> None:
    """The responder gets all it needs to answer; the requester its reply, and that it was all."""
    bench = Bench(request_timeout_s=5)
    responder = bench.serve("a")
    bench.ask("mine")
    (request,) = responder.asked
    assert (request.message.topic, request.message.payload) == ("t", b"?")
    assert request.service is not None
    assert request.deadline == 5
    assert len(bench.requests) == 1
    assert bench.reply(responder, b"yes")
    ending = Ending(Outcome.ANSWERED, "", 1, 1)
    assert bench.requester.heard == [("mine", b"yes"), ("mine", ending)]
    assert bench.statistics.requests_received == bench.statistics.replies_received == 1
    assert dict(bench.statistics.requests_ended) == {"answered": 1}
    bench.check_clean()


def test_nobody_to_ask_is_an_error_at_once() -> None:
    """Without a responder nothing is begun, and the refusal says so."""
    bench = Bench()
    bench.serve("a", "other")
    assert refused(bench.ask) is Outcome.NO_RESPONDER
    assert refused(bench.gather) is Outcome.NO_RESPONDER
    assert bench.requester.heard == []
    assert dict(bench.statistics.requests_ended) == {"no-responder": 2}
    bench.check_clean()


def test_an_answer_may_come_before_the_request_returns() -> None:
    """A responder in the same process answers within `take`."""
    bench = Bench()
    responder = bench.serve("a")
    responder.on_take = lambda _request: cast(None, bench.reply(responder))
    bench.ask(1)
    bench.ask(1)
    assert bench.requester.replies(1) == [b"!", b"!"]
    bench.gather(2)
    assert bench.requester.outcome(2) is Outcome.ANSWERED
    bench.check_clean()


def test_the_least_busy_is_asked_and_equals_take_turns() -> None:
    """Whoever has the fewest unanswered requests is next; among equals nobody is preferred."""
    bench = Bench()
    responders = [bench.serve(name) for name in "abc"]
    for tag in range(6):
        bench.ask(tag)
    assert [len(each.asked) for each in responders] == [2, 2, 2]
    bench.reply(responders[1])
    bench.ask("next")
    assert [len(each.asked) for each in responders] == [2, 3, 2]


def test_the_nearest_is_asked_even_if_it_is_busier() -> None:
    """A responder behind a link is asked only when those of this node have no room."""
    bench = Bench()
    far = bench.serve("far")
    far.distance = 2
    nearer = bench.serve("nearer")
    nearer.distance = 1
    near = bench.serve("near")
    near.capacity = 2
    nearer.capacity = 1
    for tag in range(4):
        bench.ask(tag)
    assert [len(each.asked) for each in (near, nearer, far)] == [2, 1, 1]


def test_wildcards_serve_what_they_match() -> None:
    """A service is for a topic filter, by MQTT's rules."""
    bench = Bench()
    responder = bench.serve("a", "device/+/status")
    bench.ask(1, "device/7/status")
    assert [each.message.topic for each in responder.asked] == ["device/7/status"]
    assert refused(lambda: bench.ask(2, "device/7/other")) is Outcome.NO_RESPONDER
    below = bench.serve("b", "$x/#")
    bench.ask(3, "$x/y")
    assert len(below.asked) == 1


def test_one_responder_with_two_matching_services_is_asked_once() -> None:
    """It is the responder that is asked, not its services."""
    bench = Bench()
    responder = bench.serve("a", "t")
    bench.requests.serve(responder, "+", "g")
    bench.gather(1)
    assert len(responder.asked) == 1
    bench.ask(2)
    assert len(responder.asked) == 2


def test_full_responders_are_an_error_at_once() -> None:
    """When all that answer have no room the requester hears it now, not at its deadline."""
    bench = Bench(requests_per_responder_max=2)
    responder = bench.serve("a")
    bench.ask(1)
    bench.ask(2)
    assert refused(lambda: bench.ask(3)) is Outcome.BUSY
    assert refused(lambda: bench.gather(4)) is Outcome.BUSY
    bench.reply(responder)
    responder.capacity = 1
    assert refused(lambda: bench.ask(5)) is Outcome.BUSY
    responder.capacity = 2
    bench.ask(6)


def test_what_a_responder_can_never_take_goes_to_the_next() -> None:
    """A refusal by `take` costs a look at another one; if none is left the requester hears it."""
    bench = Bench()
    picky = bench.serve("a")
    picky.accepts = False
    other = bench.serve("b")
    for tag in range(4):
        bench.ask(tag)
    assert len(other.asked) == 4
    other.accepts = False
    assert refused(lambda: bench.ask("x")) is Outcome.REFUSED
    for index in range(4):
        bench.reply(other, index=index)
    bench.check_clean()


def test_rules_of_access_decide_who_is_asked() -> None:
    """A responder that may not receive the topic is not asked for it."""
    bench = Bench()
    bench.forbidden.add(("a", "t"))
    bench.serve("a", "+")
    assert refused(bench.ask) is Outcome.NO_RESPONDER
    bench.ask(2, "other")
    bench.forbidden.clear()
    bench.router.invalidate_all()  # as the node does when rules change
    bench.ask(3)


# -- subscribers ---------------------------------------------------------------------------------


def test_subscribers_are_asked_where_nobody_serves() -> None:
    """First those that serve; then shared subscriptions; then subscribers to the topic."""
    bench = Bench()
    plain = bench.subscribe("plain", "t")
    bench.ask(1)
    shared = bench.subscribe("shared", "$share/g/t")
    bench.ask(2)
    serving = bench.serve("serving")
    bench.ask(3)
    assert [len(each.asked) for each in (plain, shared, serving)] == [1, 1, 1]
    assert plain.asked[0].service is None


def test_who_subscribes_to_everything_below_only_listens() -> None:
    """A filter that ends in '#' makes nobody a responder; '+' and the exact topic do."""
    bench = Bench()
    bench.subscribe("log", "#")
    bench.subscribe("log", "a/#")
    assert refused(lambda: bench.ask(1, "a/b")) is Outcome.NO_RESPONDER
    level = bench.subscribe("level", "a/+")
    bench.ask(1, "a/b")
    assert len(level.asked) == 1


def test_who_cannot_reply_is_not_asked() -> None:
    """A session whose protocol has no response topic is no responder."""
    bench = Bench()
    bench.subscribe("old", "t")
    bench.as_responders.clear()
    assert refused(bench.ask) is Outcome.NO_RESPONDER


# -- to many -------------------------------------------------------------------------------------


def test_a_gather_asks_one_of_each_group() -> None:
    """Everybody without a group is asked, and one of each group: services and shared ones alike."""
    bench = Bench()
    alone = [bench.serve(name) for name in "ab"]
    grouped = [bench.serve(name, group="g") for name in "cd"]
    shared = [bench.subscribe(name, "$share/g/t") for name in "ef"]
    plain = [bench.subscribe(name, "t") for name in "gh"]
    bench.gather()
    assert [len(each.asked) for each in alone + plain] == [1, 1, 1, 1]
    assert sum(len(each.asked) for each in grouped) == 1
    assert sum(len(each.asked) for each in shared) == 1
    for each in alone + grouped + shared + plain:
        if each.asked:
            assert bench.requester.heard[-1:] != [(1, Ending(Outcome.ANSWERED, "", 6, 6))]
            bench.reply(each)
    assert bench.requester.heard[-1] == (1, Ending(Outcome.ANSWERED, "", 6, 6))
    bench.check_clean()


def test_a_gather_ends_with_enough_answers() -> None:
    """At the wanted count it is over, and the others hear that enough have answered."""
    bench = Bench()
    responders = [bench.serve(name) for name in "abc"]
    bench.gather(count=2)
    bench.reply(responders[0])
    bench.reply(responders[1])
    assert bench.requester.heard[-1] == (1, Ending(Outcome.ANSWERED, "", 3, 2))
    assert [reason for _, reason in responders[2].withdrawals] == ["enough"]
    assert responders[0].withdrawals == []
    bench.check_clean()


def test_a_gather_ends_at_its_deadline_with_what_has_come() -> None:
    """Answers that came stay; the end says how many were asked."""
    bench = Bench()
    responders = [bench.serve(name) for name in "ab"]
    bench.gather(timeout_s=1)
    bench.reply(responders[0])
    bench.timers.run(1.0)
    tag, ending = bench.requester.heard[-1]
    assert isinstance(ending, Ending)
    assert (tag, ending.outcome, ending.asked, ending.answered) == (1, Outcome.DEADLINE, 2, 1)
    assert ending.text
    bench.check_clean()


def test_a_gather_does_not_wait_for_who_left() -> None:
    """All that were asked and stayed is enough; if none has answered it says why."""
    bench = Bench()
    first, second = bench.serve("a"), bench.serve("b")
    bench.gather(1)
    bench.requests.responder_left(first)
    bench.reply(second)
    assert bench.requester.heard[-1] == (1, Ending(Outcome.ANSWERED, "", 2, 1))
    bench.gather(2)
    bench.requests.responder_left(second)
    assert bench.requester.outcome(2) is Outcome.RESPONDER_LEFT
    bench.check_clean()


def test_a_gather_that_would_ask_too_many_asks_nobody() -> None:
    """The limit refuses the whole, and names itself."""
    bench = Bench(gather_max=2)
    responders = [bench.serve(name) for name in "abc"]
    assert refused(bench.gather) is Outcome.LIMIT
    assert all(not each.asked for each in responders)
    bench.check_clean()


def test_a_gather_with_enough_before_all_are_asked() -> None:
    """Answers within `take` may end it early: nobody else is asked."""
    bench = Bench()
    responders = [bench.serve(name) for name in "abc"]
    for each in responders:
        each.on_take = lambda _request, who=each: cast(None, bench.reply(who))  # type: ignore[misc]  # bound per turn
    bench.gather(count=1)
    assert sum(len(each.asked) for each in responders) == 1
    bench.check_clean()


# -- ends ----------------------------------------------------------------------------------------


def test_the_deadline_ends_a_request_and_reaches_the_responder() -> None:
    """The requester hears it once, the responder too, and its late reply is dropped."""
    bench = Bench()
    responder = bench.serve("a")
    bench.ask(timeout_s=2)
    bench.timers.run(1.9)
    assert bench.requester.heard == []
    bench.timers.run(2.0)
    assert bench.requester.outcome(1) is Outcome.DEADLINE
    assert responder.withdrawals == [(responder.asked[0].id, "deadline")]
    assert not bench.reply(responder)
    assert dict(bench.statistics.dropped) == {"reply came late": 1}
    bench.check_clean()


def test_a_timeout_is_cut_to_the_limit() -> None:
    """Nobody waits longer than the node allows."""
    bench = Bench(request_timeout_max_s=3)
    responder = bench.serve("a")
    bench.ask(timeout_s=1e9)
    assert responder.asked[0].deadline == 3


def test_cancellation_reaches_the_responder() -> None:
    """The requester hears nothing more of it, the responder hears of it."""
    bench = Bench()
    responder = bench.serve("a")
    bench.ask()
    assert bench.requests.cancel(bench.requester, 1)
    assert not bench.requests.cancel(bench.requester, 1)
    assert responder.withdrawals == [(responder.asked[0].id, "cancelled")]
    assert not bench.reply(responder)
    assert bench.requester.heard == []
    assert dict(bench.statistics.requests_ended) == {"cancelled": 1}
    bench.check_clean()


def test_a_requester_may_cancel_from_within_a_reply() -> None:
    """A gather is over when its requester has seen what it wanted."""
    bench = Bench()
    first, second = bench.serve("a"), bench.serve("b")
    bench.requester.on_reply = lambda tag: cast(None, bench.requests.cancel(bench.requester, tag))
    bench.gather()
    bench.reply(first)
    assert [reason for _, reason in second.withdrawals] == ["cancelled"]
    assert bench.requester.heard == [(1, b"!")]
    bench.check_clean()


def test_a_requester_that_leaves_cancels_all_it_asked() -> None:
    """Its responders hear of each; requests of others go on."""
    bench = Bench()
    responder = bench.serve("a")
    bench.ask(1)
    bench.gather(2)
    other = FakeRequester()
    bench.requests.request(other, 1, Message("t", b""))
    bench.requests.requester_left(bench.requester)
    assert [reason for _, reason in responder.withdrawals] == ["cancelled", "cancelled"]
    assert len(bench.requests) == 1
    bench.reply(responder)
    assert other.outcome(1) is Outcome.ANSWERED
    bench.check_clean()


def test_a_responder_that_leaves_gives_its_requests_back() -> None:
    """What it had not answered ends with an error at once, and it is asked no more."""
    bench = Bench()
    responder = bench.serve("a")
    bench.ask(1)
    bench.ask(2)
    bench.reply(responder, index=0)
    bench.requests.responder_left(responder)
    assert bench.requester.outcome(1) is Outcome.ANSWERED
    assert bench.requester.outcome(2) is Outcome.RESPONDER_LEFT
    assert responder.withdrawals == []
    assert bench.requests.service_count == 0
    assert refused(lambda: bench.ask(3)) is Outcome.NO_RESPONDER
    bench.check_clean()


def test_a_repeatable_request_goes_to_another_responder() -> None:
    """It is asked for again while there is somebody to ask, with the deadline that it had."""
    bench = Bench()
    first, second = bench.serve("a"), bench.serve("b")
    bench.ask(may_repeat=True, timeout_s=9)
    asked, other = (first, second) if first.asked else (second, first)
    bench.timers.run(1.0)
    bench.requests.responder_left(asked)
    assert [each.deadline for each in other.asked] == [9]
    assert bench.requester.heard == []
    assert bench.statistics.requests_repeated == 1
    bench.requests.responder_left(other)
    assert bench.requester.outcome(1) is Outcome.RESPONDER_LEFT
    bench.check_clean()


def test_a_repeatable_request_ends_when_the_others_are_busy() -> None:
    """There is another responder, but it has no room: the requester hears it at once."""
    bench = Bench(requests_per_responder_max=1)
    first = bench.serve("a")
    bench.ask(1, may_repeat=True)
    second = bench.serve("b")
    bench.ask(2)
    assert len(second.asked) == 1
    bench.requests.responder_left(first)
    assert bench.requester.outcome(1) is Outcome.RESPONDER_LEFT
    _, ending = bench.requester.heard[-1]
    assert isinstance(ending, Ending)
    assert "enough to do" in ending.text


def test_a_repeatable_request_does_not_end_every_responder() -> None:
    """One that ends whoever takes it is given up after a few."""
    bench = Bench()
    for number in range(10):
        bench.serve(str(number))
    bench.ask(may_repeat=True)
    ended = 0
    while len(bench.requests):
        (responder,) = bench.requests._by_responder
        bench.requests.responder_left(responder)
        ended += 1
    assert ended == 4
    assert bench.requester.outcome(1) is Outcome.RESPONDER_LEFT
    bench.check_clean()


def test_a_responder_may_refuse() -> None:
    """The requester hears the reason; another is not asked, for the request was judged."""
    bench = Bench()
    first, second = bench.serve("a"), bench.serve("b")
    bench.ask(may_repeat=True)
    asked = first if first.asked else second
    assert bench.requests.refuse(asked, asked.asked[0].id, "no such order", "E7")
    assert bench.requester.heard == [(1, Ending(Outcome.REFUSED, "no such order", 1, 0, "E7"))]
    assert not bench.requests.refuse(asked, asked.asked[0].id, "again")
    bench.check_clean()


def test_a_service_that_ends_keeps_what_it_was_asked() -> None:
    """No new requests come, what is under way may be answered."""
    bench = Bench()
    responder = FakeResponder("a")
    service = bench.requests.serve(responder, "t")
    assert bench.requests.serve(responder, "t") is service
    bench.ask(1)
    bench.requests.end_service(service)
    bench.requests.end_service(service)
    assert refused(lambda: bench.ask(2)) is Outcome.NO_RESPONDER
    assert bench.reply(responder)


def test_replies_that_nobody_waits_for_are_counted_by_reason() -> None:
    """Somebody else's, a second one and one to nothing reach nobody."""
    bench = Bench()
    responders = [bench.serve(name) for name in "ab"]
    stranger = FakeResponder("c")
    bench.gather()
    request_id = responders[0].asked[0].id
    assert not bench.requests.reply(stranger, request_id, Message("", b""))
    assert bench.reply(responders[0])
    assert not bench.reply(responders[0])
    assert not bench.requests.reply(stranger, request_id + 1000, Message("", b""))
    assert bench.requester.replies(1) == [b"!"]
    assert dict(bench.statistics.dropped) == {
        "reply by somebody who was not asked": 2,
        "reply to no request": 1,
    }


# -- limits --------------------------------------------------------------------------------------


def test_limits_of_pending_requests() -> None:
    """One client, and all together, may have so many under way; an end makes room."""
    bench = Bench(requests_per_client_max=2, requests_max=3)
    responder = bench.serve("a")
    bench.ask(1)
    bench.ask(2)
    assert refused(lambda: bench.ask(3)) is Outcome.LIMIT
    other = FakeRequester()
    bench.requests.request(other, 1, Message("t", b""))
    third = FakeRequester()
    with pytest.raises(RequestRefused, match="requests_max"):
        bench.requests.request(third, 1, Message("t", b""))
    bench.reply(responder, index=0)
    bench.ask(3)


def test_a_tag_is_used_once_at_a_time() -> None:
    """A second request of the same name would get the answers of the first."""
    bench = Bench()
    responder = bench.serve("a")
    bench.ask(1)
    assert refused(lambda: bench.ask(1)) is Outcome.LIMIT
    assert len(responder.asked) == 1
    bench.reply(responder)
    bench.ask(1)


def test_limit_of_what_is_kept_for_repetition() -> None:
    """Repeatable requests are kept while they wait, and only so many bytes of them."""
    bench = Bench(repeatable_requests_bytes_max=2000)
    responder = bench.serve("a")
    message = Message("t", b"x" * 1500)
    bench.requests.request(bench.requester, 1, message, may_repeat=True)
    with pytest.raises(RequestRefused, match="repeatable_requests_bytes_max"):
        bench.requests.request(bench.requester, 2, message, may_repeat=True)
    bench.requests.request(bench.requester, 3, message)
    bench.reply(responder, index=0)
    bench.requests.request(bench.requester, 4, message, may_repeat=True)


def test_limit_of_services() -> None:
    """One client answers for so many filters."""
    bench = Bench(services_per_client_max=2)
    responder = bench.serve("a", "x")
    bench.requests.serve(responder, "y")
    with pytest.raises(RequestRefused, match="services_per_client_max"):
        bench.requests.serve(responder, "z")
    assert bench.requests.service_count == 2


# -- against a model -----------------------------------------------------------------------------

_TOPICS = ("a", "b", "a/b")
_FILTERS = ("a", "b", "a/b", "+", "#", "a/+")
_MATCHES = {
    "a": {"a", "+", "#"},
    "b": {"b", "+", "#"},
    "a/b": {"a/b", "#", "a/+"},
}
_CAPACITY = 3


@dataclass(eq=False)
class Asked:
    """What the model knows of a request."""

    tag: int
    topic: str
    wanted: int | None
    is_gather: bool
    may_repeat: bool
    deadline: float
    requester: FakeRequester
    replies: list[bytes] = field(default_factory=list)
    attempts: int = 1


class RequestsMachine(RuleBasedStateMachine):
    """Requests beside a simple model: who could be asked, what must have ended and how."""

    responders = Bundle("responders")

    @initialize(target=responders, distances=st.tuples(*[st.integers(0, 1)] * 3))
    def start(self, distances: tuple[int, int, int]) -> MultipleResults[FakeResponder]:
        """Three responders are there, in a group and outside of one."""
        self.bench = Bench(requests_per_client_max=6, request_timeout_max_s=50)
        self.now = 0.0
        self.tags = 0
        self.requesters = [FakeRequester(), FakeRequester()]
        self.open: dict[int, Asked] = {}
        self.services: dict[FakeResponder, set[tuple[str, str]]] = {}
        self.has: dict[FakeResponder, dict[int, int]] = {}
        """By responder: id to tag of what it was asked and has not answered."""
        self.ids_over: list[tuple[FakeResponder, int]] = []
        found = [self.come(distance) for distance in distances]
        for responder, topic_filter, group in zip(found, ("a", "+", "#"), "hgg", strict=True):
            self.serve(responder, topic_filter, group)
            self.serve(responder, "+", "g")
        return multiple(*found)

    @rule(target=responders, distance=st.integers(0, 2))
    def another(self, distance: int) -> FakeResponder:
        """One more comes."""
        return self.come(distance)

    def come(self, distance: int) -> FakeResponder:
        """A responder comes, and serves nothing yet."""
        responder = FakeResponder(f"r{len(self.services)}", distance, _CAPACITY)
        self.services[responder] = set()
        self.has[responder] = {}
        return responder

    @rule(responder=responders, topic_filter=st.sampled_from(_FILTERS), group=st.sampled_from("gh"))
    def serve(self, responder: FakeResponder, topic_filter: str, group: str) -> None:
        """It serves a filter in a group."""
        self.bench.requests.serve(responder, topic_filter, "" if group == "h" else group)
        self.services[responder].add((topic_filter, "" if group == "h" else group))

    @rule(responder=responders)
    def leave(self, responder: FakeResponder) -> None:
        """It leaves: what it had goes elsewhere or ends. It may come again."""
        had = dict(self.has[responder])
        self.services[responder].clear()
        self.has[responder].clear()
        self.bench.requests.responder_left(responder)
        for request_id, tag in had.items():
            self.ids_over.append((responder, request_id))
            asked = self.open[tag]
            self._learn()
            if any(tag in each.values() for each in self.has.values()):
                asked.attempts += 1
                assert asked.is_gather or asked.may_repeat
                continue  # another has it, or others of the gather
            outcome = asked.requester.outcome(tag)
            if asked.replies:
                assert asked.is_gather
                assert outcome is Outcome.ANSWERED
            else:
                assert outcome is Outcome.RESPONDER_LEFT
                if asked.may_repeat and asked.attempts < 4 and len(had) == 1:
                    matching = self._matching(asked.topic)
                    assert not any(map(self._has_room, matching)), "it could have been repeated"
            del self.open[tag]

    @rule(
        topic=st.sampled_from(_TOPICS),
        who=st.integers(0, 1),
        timeout_s=st.integers(1, 60),
        may_repeat=st.booleans(),
    )
    def request(self, topic: str, who: int, timeout_s: int, may_repeat: bool) -> None:
        """One asks one: the best by distance and load has it."""
        requester = self.requesters[who]
        tag = self._next_tag()
        expected = [each for each in self._matching(topic) if self._has_room(each)]
        error = self._expected_error(requester, topic, any_room=bool(expected))
        message = Message(topic, b"")
        ranks = {each: (each.distance, len(self.has[each])) for each in expected}
        ask = partial(
            self.bench.requests.request,
            *(requester, tag, message),
            timeout_s=timeout_s,
            may_repeat=may_repeat,
        )
        if error is not None:
            assert refused(ask) is error
            return
        ask()
        deadline = self.now + min(timeout_s, 50)
        self.open[tag] = Asked(tag, topic, 1, False, may_repeat, deadline, requester)
        new = self._learn()
        assert len(new) == 1
        assert ranks[new[0]] == min(ranks.values())

    @rule(
        topic=st.sampled_from(_TOPICS),
        who=st.integers(0, 1),
        timeout_s=st.integers(1, 60),
        count=st.none() | st.integers(1, 3),
    )
    def gather(self, topic: str, who: int, timeout_s: int, count: int | None) -> None:
        """One asks many: whoever has no group and room, and at most one by each group."""
        requester = self.requesters[who]
        tag = self._next_tag()
        matching = self._matching(topic)
        room = [each for each in matching if self._has_room(each)]
        error = self._expected_error(requester, topic, any_room=bool(room))
        alone = {
            each
            for each in room
            if any(f in _MATCHES[topic] and not group for f, group in self.services[each])
        }
        groups = {
            (f, group)
            for each in room
            for f, group in self.services[each]
            if f in _MATCHES[topic] and group
        }
        ask = partial(
            self.bench.requests.gather,
            *(requester, tag, Message(topic, b"")),
            timeout_s=timeout_s,
            count=count,
        )
        if error is not None:
            assert refused(ask) is error
            return
        ask()
        deadline = self.now + min(timeout_s, 50)
        self.open[tag] = Asked(tag, topic, count, True, False, deadline, requester)
        new = self._learn()
        assert len(new) == len(set(new)), "nobody is asked twice"
        assert alone <= set(new) <= set(room)
        assert len(new) <= len(alone) + len(groups)

    @precondition(lambda self: any(self.has.values()))
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        """Somebody answers what it was asked."""
        responder = data.draw(st.sampled_from([each for each in self.has if self.has[each]]))
        request_id = data.draw(st.sampled_from(sorted(self.has[responder])))
        tag = self.has[responder].pop(request_id)
        asked = self.open[tag]
        assert self.bench.requests.reply(responder, request_id, Message("", b"%d" % request_id))
        self.ids_over.append((responder, request_id))
        asked.replies.append(b"%d" % request_id)
        assert asked.requester.replies(tag) == asked.replies
        waits = any(tag in each.values() for each in self.has.values())
        if not waits or (asked.wanted is not None and len(asked.replies) >= asked.wanted):
            self._over(tag, Outcome.ANSWERED, "enough")

    @precondition(lambda self: bool(self.ids_over))
    @rule(data=st.data())
    def reply_late(self, data: st.DataObject) -> None:
        """An answer to what one has no part in any more changes nothing but a counter."""
        responder, request_id = data.draw(st.sampled_from(self.ids_over[-5:]))
        if request_id in self.has[responder]:
            return  # it came back to the same one
        before = sum(self.bench.statistics.dropped.values())
        assert not self.bench.requests.reply(responder, request_id, Message("", b"late"))
        assert sum(self.bench.statistics.dropped.values()) == before + 1

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A requester does not want an answer any more."""
        tag = data.draw(st.sampled_from(sorted(self.open)))
        assert self.bench.requests.cancel(self.open[tag].requester, tag)
        self._over(tag, None, "cancelled")

    @rule(who=st.integers(0, 1))
    def requester_leaves(self, who: int) -> None:
        """A requester goes: all that it asked is cancelled."""
        requester = self.requesters[who]
        self.bench.requests.requester_left(requester)
        for tag in [tag for tag, asked in self.open.items() if asked.requester is requester]:
            self._over(tag, None, "cancelled")

    @rule(elapsed_s=st.integers(1, 30))
    def wait(self, elapsed_s: int) -> None:
        """Time goes by: exactly what is due ends."""
        self.now += elapsed_s
        self.bench.timers.run(self.now)
        for tag, asked in list(self.open.items()):
            if asked.deadline <= self.now:
                self._over(tag, Outcome.DEADLINE, "deadline")

    @invariant()
    def nothing_else_is_pending(self) -> None:
        """What is open here is open there, and nothing ended unnoticed."""
        assert len(self.bench.requests) == len(self.open)
        ended = [
            tag
            for requester in self.requesters
            for tag, what in requester.heard
            if isinstance(what, Ending)
        ]
        assert len(ended) == len(set(ended))
        assert not set(ended) & set(self.open)
        counted = self.bench.statistics
        assert counted.requests_received == len(self.open) + sum(counted.requests_ended.values())
        waiting = sorted(tag for each in self.has.values() for tag in each.values())
        assert sorted(set(waiting)) == sorted(self.open)

    def teardown(self) -> None:
        """When all have left nothing remains."""
        if hasattr(self, "bench"):
            for requester in self.requesters:
                self.bench.requests.requester_left(requester)
            for responder in self.services:
                self.bench.requests.responder_left(responder)
            self.bench.check_clean()
            assert self.bench.requests.service_count == 0

    def _over(self, tag: int, outcome: Outcome | None, withdrawn: str) -> None:
        """It has ended: everybody who still had it has heard so."""
        asked = self.open.pop(tag)
        if outcome is not None:
            assert asked.requester.outcome(tag) is outcome
        for responder, has in self.has.items():
            for request_id in [each for each, which in has.items() if which == tag]:
                assert (request_id, withdrawn) in responder.withdrawals
                del has[request_id]
                self.ids_over.append((responder, request_id))

    def _learn(self) -> list[FakeResponder]:
        """Note who was asked since the last time."""
        new: list[FakeResponder] = []
        for responder, has in self.has.items():
            for request in responder.asked:
                pending = self.bench.requests._pending.get(request.id)
                if pending is not None:
                    has[request.id] = cast(int, pending.tag)
                    new.append(responder)
            responder.asked.clear()
        return new

    def _next_tag(self) -> int:
        self.tags += 1
        return self.tags

    def _matching(self, topic: str) -> list[FakeResponder]:
        return [
            each
            for each, services in self.services.items()
            if any(topic_filter in _MATCHES[topic] for topic_filter, _ in services)
        ]

    def _has_room(self, responder: FakeResponder) -> bool:
        return len(self.has[responder]) < _CAPACITY

    def _expected_error(
        self, requester: FakeRequester, topic: str, *, any_room: bool
    ) -> Outcome | None:
        if sum(each.requester is requester for each in self.open.values()) >= 6:
            return Outcome.LIMIT
        if not self._matching(topic):
            return Outcome.NO_RESPONDER
        return None if any_room else Outcome.BUSY


TestRequestsAgainstModel = RequestsMachine.TestCase
TestRequestsAgainstModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_fakes_are_responders() -> None:
    """What the tests ask has the interface that they stand for."""
    responder: Responder = FakeResponder("a")
    assert responder.capacity > 0
