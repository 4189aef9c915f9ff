"""Request/reply on a virtual clock: who is asked, how requests end, what is withdrawn."""

from collections.abc import Hashable
from typing import cast

import pytest

from ganglion.broker.core.message import Message
from ganglion.broker.core.requests import Ending, Outcome, RequestRefused
from ganglion.broker.core.responders import Responder
from tests.broker.core.request_peers import Bench, FakeRequester, FakeResponder, refused


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


def test_each_request_ends_at_its_own_deadline() -> None:
    """Whatever the timeouts of those before it, and whether these have ended meanwhile."""
    bench = Bench()
    responder = bench.serve("a")
    for tag, timeout_s in enumerate((5, 5, 2, 9, 3)):
        bench.ask(tag, timeout_s=timeout_s)
    over: list[int] = []
    for now in range(1, 10):
        bench.timers.run(now)
        over += [now] * (len(bench.requester.heard) - len(over))
    assert over == [2, 3, 5, 5, 9]
    assert [tag for tag, _ in bench.requester.heard] == [2, 4, 0, 1, 3]
    bench.ask("long", timeout_s=30)
    assert bench.reply(responder)
    bench.ask("short", timeout_s=1)
    bench.timers.run(10)
    assert bench.requester.outcome("short") is Outcome.DEADLINE
    bench.check_clean()


def test_a_fault_at_a_deadline_keeps_no_other_from_its_end() -> None:
    """A requester that fails to hear of its end leaves the timer of the others in place."""
    bench = Bench()
    bench.serve("a")
    faulty = FakeRequester()

    def fail(tag: Hashable, ending: Ending) -> None:
        raise RuntimeError(tag, ending)

    faulty.ended = fail  # type: ignore[method-assign]  # the one that fails
    bench.requests.request(faulty, 1, Message("t", b"?"), timeout_s=1)
    bench.ask(timeout_s=1)
    with pytest.raises(RuntimeError):
        bench.timers.run(1)
    bench.timers.run(1)
    assert bench.requester.outcome(1) is Outcome.DEADLINE
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


def test_fakes_are_responders() -> None:
    """What the tests ask has the interface that they stand for."""
    responder: Responder = FakeResponder("a")
    assert responder.capacity > 0
