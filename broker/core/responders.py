"""Who can answer requests: services, and subscribers whose protocol carries a response topic.

A *responder* is a client that answers: it may serve many topic filters. It is asked for a topic
because it serves a filter that matches (a `Service`), or, where nobody serves the topic, because it
subscribes to it. A subscription that ends in ``#`` only listens: it takes in whatever is below, and
makes nobody a responder.

`Candidates` are all that can be asked for one topic. They are made once per route and kept with it;
whatever changes them (a service, a subscription, a connection, the rules) invalidates the route.
"""

from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from msgspec import Struct

from ganglion.broker.core.access import Client
from ganglion.broker.core.message import PLAIN_TERMS, Terms

if TYPE_CHECKING:
    from ganglion.broker.core.message import Message
    from ganglion.broker.core.router import Route
    from ganglion.broker.core.sessions import Session

__all__ = ["Candidate", "Candidates", "Request", "Responder", "Service"]

_CHOICES_MAX = 64
"""How many that have room are compared before the best of them is asked: among thousands the least
busy of 64 is idle enough, and a request costs no look at them all."""


class Responder(Protocol):
    """A client, or a link to another node, that answers requests. Compared by identity."""

    @property
    def client(self) -> Client:
        """Who it is: the rules of access judge what it is asked."""
        ...

    @property
    def distance(self) -> int:
        """How far away it is: 0 for a client of this node, more for what is behind a link."""
        ...

    @property
    def capacity(self) -> int:
        """How many unanswered requests it takes at once; 0 while it can take none."""
        ...

    def take(self, request: "Request") -> bool:
        """Ask it; False when it can never take this one (too large, say). It may answer within."""
        ...

    def withdrawn(self, request_id: int, reason: str) -> None:
        """Nobody waits for its answer to this request any more; `reason` is an `Outcome`."""
        ...


class Service:
    """That a responder answers requests for a topic filter."""

    __slots__ = ("group", "responder", "topic_filter")

    def __init__(self, responder: Responder, topic_filter: str, group: str) -> None:
        self.responder = responder
        self.topic_filter = topic_filter
        self.group = group
        """Of those in one group with the same filter a gather asks one; empty: it is asked."""


class Request(Struct, eq=False):
    """What one responder is asked. A `Struct`, as `Message` is one: there is one for each."""

    id: int
    """Names it in the answer; unique on this node, below 2^53, never used again."""
    message: "Message"
    deadline: float
    """When nobody waits any more, in seconds of the node's monotonic clock."""
    service: Service | None
    """By which of its services the responder is asked; None: as a subscriber."""
    terms: Terms
    """On what terms a subscriber gets it; plain ones for a service."""


Candidate: TypeAlias = tuple[Responder, Service | None, Terms]
"""Who can be asked, by which service, on what terms."""


class Candidates:
    """All that can be asked for one topic."""

    __slots__ = ("_turn", "groups", "tiers")

    def __init__(
        self,
        route: "Route",
        may_receive: Callable[[Client, str], bool],
        as_responder: Callable[["Session"], Responder | None],
    ) -> None:
        """`as_responder` is a session as a responder, or None where its client cannot reply."""
        topic = route.topic
        self._turn = 0
        groups: dict[object, list[Candidate]] = {}
        serving: list[Candidate] = []
        for service in route.services:
            responder = service.responder
            if may_receive(responder.client, topic):
                key = (service.topic_filter, service.group) if service.group else service
                serving.append((responder, service, PLAIN_TERMS[0]))
                groups.setdefault(key, []).append(serving[-1])
        sharing: list[Candidate] = []
        for group in route.groups:
            for session, _, terms in group.members:
                found = as_responder(session)
                if found is not None and may_receive(session.client, topic):
                    sharing.append((found, None, terms[0]))
                    groups.setdefault(group, []).append(sharing[-1])
        listening: list[Candidate] = []
        for session, terms in route.addressed_sessions():
            found = as_responder(session)
            if found is not None:
                listening.append((found, None, terms[0]))
                groups[found] = listening[-1:]
        self.tiers = [_once(tier) for tier in (serving, sharing, listening) if tier]
        """For a request to one: who is in a later tier is asked only where the earlier are empty.
        Those that serve, members of shared subscriptions, other subscribers."""
        self.groups = list(groups.values())
        """For a gather: it asks one of each."""

    def choose(
        self,
        candidates: list[Candidate],
        load: Callable[[Responder], int],
        passed_over: Container[Responder] = (),
    ) -> Candidate | None:
        """The nearest of these, and of those the least busy; None when none of them has room.

        `load` is how many requests a responder has not answered. Equals take turns.
        """
        count = len(candidates)
        if count == 1:
            responder = candidates[0][0]
            has_room = load(responder) < responder.capacity and responder not in passed_over
            return candidates[0] if has_room else None
        start = self._turn
        best: Candidate | None = None
        best_rank = (0, 0)
        compared = 0
        for step in range(count):
            candidate = candidates[(start + step) % count]
            responder = candidate[0]
            busy = load(responder)
            if busy >= responder.capacity or responder in passed_over:
                continue
            rank = (responder.distance, busy)
            if best is None or rank < best_rank:
                best, best_rank = candidate, rank
                self._turn = (start + step + 1) % count
                if rank == (0, 0):
                    break
            compared += 1
            if compared == _CHOICES_MAX:
                break
        return best


def _once(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each responder once, by the first of its services that matches."""
    found: dict[Responder, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate[0], candidate)
    return list(found.values())
