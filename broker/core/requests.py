"""Request/reply: a request goes to one responder or to many, and always comes to an end.

`Requests` knows who has asked, who has been asked, and what was not answered yet. A requester names
each of its requests by a tag of its own choice; a responder is given an id to answer by. A request
ends once, in one of the ways that `Outcome` lists, and its requester is told. What was asked and
need not be answered any more is withdrawn from the responder: at the deadline, on cancellation,
when the requester leaves, when a gather has enough. A reply to what has ended is dropped and
counted.

* A request to **one** goes to the nearest responder, and of those to the least busy. If that one
  leaves or cannot take it, the request ends, or goes to another where it says it may be repeated.
* A **gather** asks one of each group, and every responder without a group. It ends when as many as
  wanted have answered, when all that were asked have answered or left, or at its deadline.

Nobody to ask is an immediate error (`RequestRefused`), and so is a limit. Everything is in memory:
a request does not outlive the node or its requester.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import StrEnum
from functools import partial
from secrets import randbits
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field

from ganglion import GanglionError
from ganglion.broker.core.access import Client
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message
from ganglion.broker.core.responders import Candidate, Candidates, Request, Responder, Service
from ganglion.broker.core.router import Router
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timer, Timers

if TYPE_CHECKING:
    from ganglion.broker.core.sessions import Session

__all__ = ["Ending", "Outcome", "RequestRefused", "Requester", "Requests"]

_ID_BITS = 50
"""Ids begin anywhere below 2^50 and count up: they stay below 2^53, which JSON numbers carry, and
an answer to the node's earlier life names none of this one's requests."""

_ATTEMPTS_MAX = 4
"""How many responders a repeatable request is given to, one after another: one that ends those who
take it must not end them all."""


class Outcome(StrEnum):
    """How a request ended. The values are stable codes, the same in every protocol."""

    ANSWERED = "answered"
    """The reply came; for a gather as many as wanted, or from all that were asked and stayed."""
    NO_RESPONDER = "no-responder"
    """Nobody answers requests for this topic."""
    BUSY = "busy"
    """There are responders, and none of them has room."""
    LIMIT = "limit"
    """A limit of the node is reached."""
    NOT_ALLOWED = "not-allowed"
    """The rules of access forbid what the request needs."""
    DEADLINE = "deadline"
    """The time is over. A gather may have answers."""
    RESPONDER_LEFT = "responder-left"
    """Whoever was asked went away without an answer."""
    REFUSED = "refused"
    """The responder does not answer, and says so, or cannot take a request like this."""
    CANCELLED = "cancelled"
    """The requester did not want it any more, or left. It is not told."""
    FORWARDED = "forwarded"
    """Only for statistics: it went to subscribers, who answer by themselves."""
    ENOUGH = "enough"
    """Only for a responder: the others have answered a gather already."""


class RequestRefused(GanglionError):
    """A request was not begun; `outcome` is the code of the reason, the text the reason."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Ending(Struct, frozen=True):
    """How a request ended, for its requester."""

    outcome: Outcome
    text: str
    """The reason as a sentence part; empty when it is answered."""
    asked: int
    """How many responders were asked."""
    answered: int
    """How many of them have answered."""
    code: str = ""
    """The responder's own code for why it refused; empty: it gave none."""


class Requester(Protocol):
    """Who asks. Compared by identity; what it may have under way at once is limited."""

    def replied(self, tag: Hashable, reply: Message) -> None:
        """A responder has answered. `reply` has the payload and properties; its topic is empty."""
        ...

    def ended(self, tag: Hashable, ending: Ending) -> None:
        """The request is over, once: nothing comes for this tag any more."""
        ...


class _Pending(Struct, eq=False):
    """A request that has not ended. A `Struct`, as `Message` is one: there is one for each."""

    id: int
    requester: Requester
    tag: Hashable
    deadline: float
    waiting: dict[Responder, None] = field(default_factory=dict[Responder, None])
    """Who was asked and has not answered."""
    asked: int = 0
    answered: int = 0
    wanted: int | None = 1
    """How many answers are enough; None: from all that were asked."""
    attempts_left: int = 0
    message: Message | None = None
    """Kept where the request may be repeated."""
    kept_bytes: int = 0
    is_asking: bool = True
    """Others may still be asked: that nobody is waited for does not end it."""
    is_over: bool = False
    timer: Timer | None = None
    """Where it does not end in its turn (`Requests._row`)."""


class Requests:
    """The requests of one node and those who answer them."""

    def __init__(
        self,
        *,
        router: Router,
        timers: Timers,
        limits: Limits,
        statistics: Statistics,
        may_receive: Callable[[Client, str], bool],
        as_responder: Callable[["Session"], Responder | None],
    ) -> None:
        """`may_receive` judges what a responder may be asked.

        `as_responder` gives a session that subscribes as a responder, None if it can be none.
        """
        self.limits = limits
        """Replaced at a reload."""
        self._router = router
        self._timers = timers
        self._statistics = statistics
        self._may_receive = may_receive
        self._as_responder = as_responder
        self._first_id = self._next_id = randbits(_ID_BITS) + 1
        self._pending: dict[int, _Pending] = {}
        self._row: OrderedDict[int, _Pending] = OrderedDict()
        """Those whose deadlines come one after the other, as those of equal timeouts do: one timer
        is enough for them all. A timer for each was a tenth of the cost of a request."""
        self._row_end = 0.0  # the deadline of the last that joined the row
        self._row_timer: Timer | None = None  # for its first, or one that has ended since
        self._by_requester: dict[Requester, dict[Hashable, _Pending]] = {}
        self._by_responder: dict[Responder, dict[int, _Pending]] = {}
        self._services: dict[Responder, dict[tuple[str, str], Service]] = {}
        self._kept_bytes = 0
        self.service_count = 0
        """How many services there are."""

    def __len__(self) -> int:
        """How many requests wait for answers."""
        return len(self._pending)

    # -- responders ------------------------------------------------------------------------------

    def serve(self, responder: Responder, topic_filter: str, group: str = "") -> Service:
        """From now on this responder may be asked for topics that the (valid) filter matches.

        The caller has judged that it may. Twice the same is one service. Raises `RequestRefused`.
        """
        services = self._services.get(responder, {})
        found = services.get((topic_filter, group))
        if found is not None:
            return found
        limit = self.limits.services_per_client_max
        if len(services) >= limit:
            raise RequestRefused(Outcome.LIMIT, f"services_per_client_max = {limit} is reached")
        service = services[topic_filter, group] = Service(responder, topic_filter, group)
        self._services[responder] = services
        self._router.add_service(service)
        self.service_count += 1
        return service

    def end_service(self, service: Service) -> None:
        """Ask it no more by this service; what it was asked it may still answer."""
        services = self._services.get(service.responder, {})
        if services.get((service.topic_filter, service.group)) is not service:
            return
        del services[service.topic_filter, service.group]
        if not services:
            del self._services[service.responder]
        self._router.remove_service(service)
        self.service_count -= 1

    def responder_left(self, responder: Responder) -> None:
        """It is gone with its services: what it has not answered it answers no more."""
        for service in list(self._services.get(responder, {}).values()):
            self.end_service(service)
        for pending in list(self._by_responder.get(responder, {}).values()):
            if not pending.is_over:  # the end of another one may have brought that
                self._unassign(pending, responder)
                text = "the responder went away"
                self._not_answered(pending, responder, Outcome.RESPONDER_LEFT, text)

    def reply(self, responder: Responder, request_id: int, reply: Message) -> bool:
        """The responder answers; False when nobody waits for that: it is dropped and counted."""
        pending = self._pending.get(request_id)
        if pending is None or responder not in pending.waiting:
            self._drop_reply(request_id, is_pending=pending is not None)
            return False
        self._unassign(pending, responder)
        pending.answered += 1
        self._statistics.replies_received += 1
        pending.requester.replied(pending.tag, reply)
        if not pending.is_over:  # the requester may have cancelled it
            self._end_if_complete(pending)
        return True

    def refuse(self, responder: Responder, request_id: int, text: str, code: str = "") -> bool:
        """The responder will not answer this; False when nobody waits for that.

        `text` is the reason for people, `code` the same for programs, in the responder's own terms.
        """
        pending = self._pending.get(request_id)
        if pending is None or responder not in pending.waiting:
            self._drop_reply(request_id, is_pending=pending is not None)
            return False
        self._unassign(pending, responder)
        pending.attempts_left = 0  # it has judged the request: it need not be judged again
        self._not_answered(pending, responder, Outcome.REFUSED, text, code)
        return True

    def _drop_reply(self, request_id: int, *, is_pending: bool) -> None:
        if is_pending:
            reason = "reply by somebody who was not asked"
        elif self._first_id <= request_id < self._next_id:
            reason = "reply came late"
        else:
            reason = "reply to no request"
        self._statistics.drop(reason)

    # -- requesters ------------------------------------------------------------------------------

    def request(
        self,
        requester: Requester,
        tag: Hashable,
        message: Message,
        *,
        timeout_s: float | None = None,
        may_repeat: bool = False,
    ) -> None:
        """Ask one responder; the caller has judged that the requester may publish to the topic.

        `tag` is the requester's name for it; the answer may come before this returns. `timeout_s`
        is cut to a limit; None: the default. With `may_repeat` it goes to another responder if the
        first leaves. Raises `RequestRefused` if it cannot be begun.
        """
        pending = self._begin(requester, tag, message, timeout_s)
        try:
            candidates = self._candidates(message.topic)
            if may_repeat:
                self._keep(pending, message)
            self._ask_one(pending, candidates, message, {})
        except RequestRefused as refusal:
            self._forget(pending, refusal.outcome)
            raise

    def gather(
        self,
        requester: Requester,
        tag: Hashable,
        message: Message,
        *,
        timeout_s: float | None = None,
        count: int | None = None,
    ) -> None:
        """Ask one of each group, and all without a group.

        It ends with `count` answers, if that is given. The rest is as for `request`.
        """
        pending = self._begin(requester, tag, message, timeout_s)
        pending.wanted = count
        try:
            candidates = self._candidates(message.topic)
            self._check_gather(candidates)
            asked: dict[Responder, None] = {}
            for group in candidates.groups:
                found = candidates.choose(group, self._load, asked)
                if found is not None and not pending.is_over:
                    asked[found[0]] = None
                    self._ask(pending, found, message)
            if not pending.asked:
                raise _busy(message.topic)
        except RequestRefused as refusal:
            self._forget(pending, refusal.outcome)
            raise
        pending.is_asking = False
        if not pending.is_over:
            self._end_if_complete(pending)

    def has(self, requester: Requester, tag: Hashable) -> bool:
        """Whether a request that the requester named so has not ended."""
        own = self._by_requester.get(requester)
        return own is not None and tag in own

    def cancel(self, requester: Requester, tag: Hashable) -> bool:
        """The requester does not want it any more and hears no more of it; False: it is over."""
        pending = self._by_requester.get(requester, {}).get(tag)
        if pending is None:
            return False
        self._forget(pending, Outcome.CANCELLED)
        return True

    def requester_left(self, requester: Requester) -> None:
        """Nobody is there any more to hear the answers: all its requests are cancelled."""
        for pending in list(self._by_requester.get(requester, {}).values()):
            self._forget(pending, Outcome.CANCELLED)

    # -- the course of a request -----------------------------------------------------------------

    def _begin(
        self, requester: Requester, tag: Hashable, message: Message, timeout_s: float | None
    ) -> _Pending:
        """Register a request, if limits allow it."""
        limits = self.limits
        self._statistics.requests_received += 1
        own = self._by_requester.get(requester)
        text = ""
        if own is not None and tag in own:
            text = f"a request {tag!r} of this client has not ended yet"
        elif own is not None and len(own) >= limits.requests_per_client_max:
            text = f"requests_per_client_max = {limits.requests_per_client_max} is reached"
        elif len(self._pending) >= limits.requests_max:
            text = f"requests_max = {limits.requests_max} is reached"
        if text:
            self._statistics.requests_ended[Outcome.LIMIT] += 1
            raise RequestRefused(Outcome.LIMIT, text)
        timeout_s = limits.request_timeout_s if timeout_s is None else timeout_s
        deadline = self._timers.now + min(timeout_s, limits.request_timeout_max_s)
        request_id = self._next_id
        self._next_id += 1
        pending = self._pending[request_id] = _Pending(request_id, requester, tag, deadline)
        self._watch(pending, deadline)
        if own is None:
            own = self._by_requester[requester] = {}
        own[tag] = pending
        return pending

    def _watch(self, pending: _Pending, deadline: float) -> None:
        """End it at its deadline."""
        row = self._row
        if deadline < self._row_end:
            if row:
                pending.timer = self._timers.at(deadline, partial(self._time_over, pending))
                return
            if self._row_timer is not None:  # for one that has ended: it would be too late now
                self._row_timer.cancel()
                self._row_timer = None
        row[pending.id] = pending
        self._row_end = deadline
        if self._row_timer is None:
            self._row_timer = self._timers.at(deadline, self._first_is_over)

    def _candidates(self, topic: str) -> Candidates:
        route = self._router.route(topic)
        candidates = route.candidates
        if candidates is None:
            candidates = Candidates(route, self._may_receive, self._as_responder)
            route.candidates = candidates
        if not candidates.tiers:
            raise RequestRefused(Outcome.NO_RESPONDER, f"nobody answers requests for {topic!r}")
        return candidates

    def _check_gather(self, candidates: Candidates) -> None:
        count, limit = len(candidates.groups), self.limits.gather_max
        if count > limit:
            raise RequestRefused(
                Outcome.LIMIT, f"{count} would be asked, which is over gather_max = {limit}"
            )

    def _keep(self, pending: _Pending, message: Message) -> None:
        size = message.size_bytes()
        limit = self.limits.repeatable_requests_bytes_max
        if self._kept_bytes + size > limit:
            raise RequestRefused(
                Outcome.LIMIT, f"repeatable_requests_bytes_max = {limit} is reached"
            )
        pending.message = message
        pending.kept_bytes = size
        pending.attempts_left = _ATTEMPTS_MAX - 1
        self._kept_bytes += size

    def _ask_one(
        self,
        pending: _Pending,
        candidates: Candidates,
        message: Message,
        passed_over: dict[Responder, None],
    ) -> None:
        """Ask the best that can take it; raises `RequestRefused` if none can."""
        tiers = candidates.tiers
        if passed_over:
            tiers = [each for each in tiers if any(one[0] not in passed_over for one in each)]
            if not tiers:
                topic = message.topic
                raise RequestRefused(
                    Outcome.NO_RESPONDER, f"nobody else answers requests for {topic!r}"
                )
        tier = tiers[0]
        pending.is_asking = True
        while (found := candidates.choose(tier, self._load, passed_over)) is not None:
            if self._ask(pending, found, message):
                pending.is_asking = False
                return
            passed_over[found[0]] = None
        pending.is_asking = False
        if all(one[0] in passed_over for one in tier):
            raise RequestRefused(Outcome.REFUSED, "no responder can take a request like this")
        raise _busy(message.topic)

    def _load(self, responder: Responder) -> int:
        """How much it has to do: as if endless where the limit is reached."""
        unanswered = self._by_responder.get(responder)
        if unanswered is None:
            return 0
        count = len(unanswered)
        return count if count < self.limits.requests_per_responder_max else _NO_ROOM

    def _ask(self, pending: _Pending, candidate: Candidate, message: Message) -> bool:
        """Give the request to this responder; False when it can take none like it."""
        responder, service, terms = candidate
        unanswered = self._by_responder.get(responder)
        if unanswered is None:
            unanswered = self._by_responder[responder] = {}
        unanswered[pending.id] = pending
        pending.waiting[responder] = None
        pending.asked += 1
        if responder.take(Request(pending.id, message, pending.deadline, service, terms)):
            return True
        if responder in pending.waiting:
            self._unassign(pending, responder)
            pending.asked -= 1
        return False

    def _unassign(self, pending: _Pending, responder: Responder) -> None:
        """It has no part in the request any more."""
        del pending.waiting[responder]
        unanswered = self._by_responder[responder]
        del unanswered[pending.id]
        if not unanswered:
            del self._by_responder[responder]

    def _not_answered(
        self, pending: _Pending, responder: Responder, outcome: Outcome, text: str, code: str = ""
    ) -> None:
        """One that was asked will not answer: ask another, or let it end if that was the last."""
        message = pending.message
        if pending.attempts_left and message is not None:
            pending.attempts_left -= 1
            try:
                self._ask_one(pending, self._candidates(message.topic), message, {responder: None})
            except RequestRefused as refusal:
                text = f"{text}, and {refusal}"
            else:
                self._statistics.requests_repeated += 1
                return
        self._end_if_complete(pending, outcome, text, code)

    def _end_if_complete(
        self,
        pending: _Pending,
        outcome: Outcome = Outcome.ANSWERED,
        text: str = "",
        code: str = "",
    ) -> None:
        """End it if there are enough answers, or no more can come: without any, as `outcome`."""
        if pending.wanted is not None and pending.answered >= pending.wanted:
            self._end(pending, Outcome.ANSWERED, "")
        elif not pending.waiting and not pending.is_asking:
            if pending.answered:
                outcome, text, code = Outcome.ANSWERED, "", ""
            self._end(pending, outcome, text, code)

    def _first_is_over(self, now: float) -> None:
        """The time of the first of the row is over, if it has not ended before."""
        self._row_timer = None
        row = self._row
        over = None
        if row and next(iter(row.values())).deadline <= now:
            over = row.popitem(last=False)[1]
        if row:
            deadline = next(iter(row.values())).deadline
            self._row_timer = self._timers.at(deadline, self._first_is_over)
        if over is not None:
            self._time_over(over, now)

    def _time_over(self, pending: _Pending, _now: float) -> None:
        pending.timer = None
        self._end(pending, Outcome.DEADLINE, "there was no answer in time")

    def _end(self, pending: _Pending, outcome: Outcome, text: str, code: str = "") -> None:
        self._forget(pending, outcome)
        ending = Ending(outcome, text, pending.asked, pending.answered, code)
        pending.requester.ended(pending.tag, ending)

    def _forget(self, pending: _Pending, outcome: Outcome) -> None:
        """It is over: who was asked and has not answered need not any more."""
        pending.is_over = True
        self._statistics.requests_ended[outcome] += 1
        if pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        else:
            self._row.pop(pending.id, None)
        self._kept_bytes -= pending.kept_bytes
        pending.message = None
        pending.attempts_left = 0
        del self._pending[pending.id]
        own = self._by_requester[pending.requester]
        del own[pending.tag]
        if not own:
            del self._by_requester[pending.requester]
        if pending.waiting:
            reason = Outcome.ENOUGH if outcome is Outcome.ANSWERED else outcome
            for responder in list(pending.waiting):
                self._unassign(pending, responder)
                responder.withdrawn(pending.id, reason)


_NO_ROOM = 2**62  # above every capacity


def _busy(topic: str) -> RequestRefused:
    return RequestRefused(Outcome.BUSY, f"all who answer requests for {topic!r} have enough to do")
