"""Request/reply against a simple model: who could be asked, what must have ended and how."""

from dataclasses import dataclass, field
from functools import partial
from typing import cast

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

from ganglion.broker.core.message import Message
from ganglion.broker.core.requests import Ending, Outcome
from tests.broker.core.request_peers import Bench, FakeRequester, FakeResponder, refused

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
