"""Who gets a message: the subscription trie and the cache of routes.

Exact filters are found in one dict; filters with wildcards in a trie of levels. What a topic leads
to is kept as a `Route`: the sessions with a matching subscription, each once with the terms of all
its matching subscriptions together (MQTT 5.0 section 3.3.4), the queues and streams that are bound
to a matching filter, and the shared subscriptions. A `Route` stays valid until a subscription that
matches its topic comes, changes or goes, or the rules of access change; connections keep routes of
their own and look only at `Route.valid`. Cached routes stand in a `TopicTree`, so that a new filter
invalidates just those that it matches.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

from ganglion.broker.core.canaries import canary_share, is_for_canaries
from ganglion.broker.core.message import PLAIN_TERMS, Message, Terms
from ganglion.broker.core.statistics import Traffic
from ganglion.broker.core.topics import (
    REPLY_PREFIX,
    SharedFilter,
    TopicTree,
    has_wildcard,
    place_bytes,
    split_shared,
)

if TYPE_CHECKING:
    from ganglion.broker.core.responders import Candidates, Service
    from ganglion.broker.core.sessions import Session

__all__ = [
    "Bound",
    "Outlet",
    "Receiver",
    "Rejection",
    "Route",
    "Router",
    "SharedGroup",
    "Subscription",
    "Target",
    "subscription_cost",
]

# What cached routes may take: those of about 50,000 topics of four levels; the oldest goes first.
_ROUTES_BYTES_MAX = 128 * 1024 * 1024
_ROUTE_BYTES = 600  # without its topic and its targets, which belong to the subscriptions


def _route_bytes(topic: str) -> int:
    return _ROUTE_BYTES + 2 * len(topic) + place_bytes(topic)


def subscription_cost(topic_filter: str) -> int:
    """What a filter counts against a limit of subscriptions: more for a deep place in the trie."""
    return 1 + topic_filter.count("/") // 4 if has_wildcard(topic_filter) else 1


class Outlet(Protocol):
    """Where a receiver takes transient messages that are encoded in its wire form already."""

    def offer(self, data: bytes, count: int, /) -> None:
        """Take these `count` messages, or drop and count them if too much waits already."""
        ...


class Receiver(Protocol):
    """What messages are routed to: a session, a queue, a stream."""

    def deliver(self, message: Message, terms: Terms, /) -> None:
        """Send or keep the message on these terms, or drop and count it."""
        ...

    def outlet(self, form: int, /) -> tuple[Outlet, Traffic] | None:
        """Where plain QoS 0 messages in this wire form may go as they are, and are counted.

        None: nowhere.
        """
        ...

    def is_durable(self) -> bool:
        """Whether what it is given above QoS 0 is kept on disk."""
        ...


class Rejection(NamedTuple):
    """Why a queue or stream would not take a message."""

    text: str
    """As a sentence part, with the name of the limit."""
    is_final: bool
    """Whether it never would, however long one waits: the message is too large for it."""


class Bound(Receiver, Protocol):
    """A receiver that belongs to no client: a queue, a stream. It keeps also what has QoS 0."""

    @property
    def kind(self) -> Literal["queue", "stream"]:
        """Which of both it is."""
        ...

    @property
    def may_refuse(self) -> bool:
        """Whether `refusal` has to be asked before a message is delivered."""
        ...

    def refusal(self, message: Message) -> Rejection | None:
        """Why it would not take this message; None: it would."""
        ...

    def deliver_run(self, topic: str, payloads: list[bytes], qos: int) -> None:
        """Take a message for each of these payloads, all of one size, as `deliver` would."""
        ...


class Subscription:
    """One filter of one session with its options (MQTT 5.0 section 3.8.3.1)."""

    __slots__ = (
        "identifier",
        "no_local",
        "options",
        "qos",
        "retain_as_published",
        "session",
        "topic_filter",
    )

    def __init__(
        self,
        session: "Session",
        topic_filter: str,
        qos: int,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        identifier: int = 0,
    ) -> None:
        self.session = session
        self.topic_filter = topic_filter
        """As the client gave it, ``$share/group/`` included."""
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier
        """Subscription identifier; 0: none."""
        self.options: tuple[tuple[str, str], ...] = ()
        """How to read, if it is to a queue or a stream: see `reading`. Of a member of a shared
        subscription: see `canaries`."""


def _terms_by_qos(
    qos: int, identifiers: tuple[int, ...], group: "SharedGroup | None" = None
) -> tuple[Terms, Terms, Terms]:
    if not identifiers and group is None:
        return (PLAIN_TERMS[0], PLAIN_TERMS[min(qos, 1)], PLAIN_TERMS[qos])
    low, middle, high = (Terms(min(qos, of), False, identifiers, group) for of in (0, 1, 2))
    return (low, middle, high)


class Target:
    """One receiver of the messages of a route, with all its matching subscriptions as one."""

    __slots__ = (
        "is_addressed",
        "no_local",
        "own",
        "publisher",
        "receiver",
        "retain_as_published",
        "terms",
    )

    def __init__(self, receiver: Receiver, subscriptions: list[Subscription]) -> None:
        """Without subscriptions it gets every message as it is: it is bound."""
        self.receiver = receiver
        qos = max((each.qos for each in subscriptions), default=2)
        identifiers = tuple(each.identifier for each in subscriptions if each.identifier)
        self.terms = _terms_by_qos(qos, identifiers)
        self.retain_as_published = any(each.retain_as_published for each in subscriptions)
        self.no_local = any(each.no_local for each in subscriptions)
        self.is_addressed = any(each.topic_filter[-1:] != "#" for each in subscriptions)
        """Whether a subscription names the level of the topic, and not just all below another."""
        session = subscriptions[0].session if self.no_local else None
        self.publisher = session if session is None or session.owner is None else session.owner
        """Whose messages do not come by the subscriptions that want none of their own."""
        # 3.8.3.1: what the session published itself comes only by its other subscriptions
        others = [each for each in subscriptions if not each.no_local] if self.no_local else []
        self.own: Target | None = Target(receiver, others) if others else None


_Member = tuple["Session", Subscription, tuple[Terms, Terms, Terms]]
_CANNOT = 3  # the rank of a member that cannot take a message: see `Session.readiness`


class _Side:
    """Members of a shared subscription that take turns."""

    __slots__ = ("members", "next")

    def __init__(self) -> None:
        self.members: list[_Member] = []
        self.next = 0
        """The place of the one whose turn it is."""

    def set(self, members: list[_Member]) -> None:
        """These are the members from now on."""
        self.members = members
        self.next = self.next % len(members) if members else 0

    def choose(
        self,
        message: Message,
        may_receive: Callable[["Session", str], bool],
        leaving: "Session | None",
    ) -> tuple[int, _Member | None]:
        """The member whose turn it is among the readiest, and how ready it is."""
        members = self.members
        count = len(members)
        start = self.next
        best: _Member | None = None
        best_rank = _CANNOT
        qos = message.qos
        for step in range(count):
            member = members[(start + step) % count]
            session = member[0]
            if session is leaving:
                continue
            rank = session.readiness(member[2][qos].qos)
            if rank < best_rank and may_receive(session, message.topic):
                best, best_rank = member, rank
                self.next = (start + step + 1) % count
                if rank == 0:
                    break
        return best_rank, best


class SharedGroup:
    """One shared subscription (MQTT 5.0 section 4.8.2): each message goes to one member.

    A member that says a share is a canary. The largest share of all canaries counts: so it does not
    matter in which order new ones with a larger share take the place of old ones. A share of the
    messages (`canaries`) is for the canaries, the rest for the others, as long as there are both.
    """

    __slots__ = ("_canaries", "_number", "_others", "_share", "members", "name", "topic_filter")

    def __init__(self, name: str, topic_filter: str) -> None:
        self.name = name
        self.topic_filter = topic_filter
        self.members: list[_Member] = []
        self._others = _Side()  # all members while all are canaries or none is
        self._canaries: _Side | None = None
        self._share = 0.0
        self._number = 0  # of the last message without a key

    def set(self, subscription: Subscription) -> None:
        """Add the member, or give it these options."""
        identifiers = (subscription.identifier,) if subscription.identifier else ()
        terms = _terms_by_qos(subscription.qos, identifiers, self)
        member = (subscription.session, subscription, terms)
        for index, (session, _, _) in enumerate(self.members):
            if session is subscription.session:
                self.members[index] = member
                break
        else:
            self.members.append(member)
        self._arrange()

    def remove(self, session: "Session") -> None:
        """The session is no member any more."""
        self.members = [member for member in self.members if member[0] is not session]
        self._arrange()

    def _arrange(self) -> None:
        """Let those be on two sides who have to be."""
        shares = [canary_share(each[1].options) for each in self.members]
        count = len(shares) - shares.count(None)
        if not 0 < count < len(shares):
            self._canaries = None
            self._others.set(self.members)
            return
        if self._canaries is None:
            self._canaries = _Side()
        self._share = max(share for share in shares if share is not None)
        by_share = list(zip(self.members, shares, strict=True))
        self._canaries.set([each for each, share in by_share if share is not None])
        self._others.set([each for each, share in by_share if share is None])

    def terms(self, session: "Session", qos: int) -> Terms | None:
        """On what terms this member gets messages of a QoS; None: it is no member."""
        for member, _, by_qos in self.members:
            if member is session:
                return by_qos[qos]
        return None

    def deliver(
        self,
        message: Message,
        may_receive: Callable[["Session", str], bool],
        leaving: "Session | None" = None,
    ) -> bool:
        """Give the message to one member; False when there is none that may have it.

        Members take turns. First asked are those that can take it now, then those that are
        connected, then those whose durable session waits for them. `leaving` is passed over: what
        it had and was a canary's is for the others now.

        What is for canaries goes to others if no canary can take it now and one of them can. What
        is for the others goes to a canary only if none of them is connected.
        """
        if self._canaries is not None:
            best = self._choose(self._canaries, message, may_receive, leaving)
            if best is None:
                return False
            session, subscription, by_qos = best
        else:
            # Nearly always the first one asked can take it: 0.35 µs, and 0.65 with `choose`
            others = self._others
            members = others.members
            if not members:
                return False
            session, subscription, by_qos = members[others.next]
            if (
                session is not leaving
                and not session.readiness(by_qos[message.qos].qos)
                and may_receive(session, message.topic)
            ):
                others.next = (others.next + 1) % len(members)
            else:
                best = others.choose(message, may_receive, leaving)[1]
                if best is None:
                    return False
                session, subscription, by_qos = best
        terms = by_qos[message.qos]
        if message.retain:
            terms = _retained_terms(subscription, terms)
        session.deliver(message, terms)
        return True

    def choose(
        self, message: Message, may_receive: Callable[["Session", str], bool]
    ) -> "tuple[Session, Terms] | None":
        """The member whose turn it is to get the message, and on what terms; None: there is none.

        As `deliver`, for who has to know before the message is given to anybody.
        """
        if self._canaries is None:
            best = self._others.choose(message, may_receive, None)[1]
        else:
            best = self._choose(self._canaries, message, may_receive, None)
        if best is None:
            return None
        session, subscription, by_qos = best
        terms = by_qos[message.qos]
        return session, _retained_terms(subscription, terms) if message.retain else terms

    def _choose(
        self,
        canaries: _Side,
        message: Message,
        may_receive: Callable[["Session", str], bool],
        leaving: "Session | None",
    ) -> _Member | None:
        first, second, rank_max = self._others, canaries, 1
        if leaving is None and self._is_for_canaries(message):
            first, second, rank_max = canaries, self._others, 0
        rank, best = first.choose(message, may_receive, leaving)
        if rank > rank_max:
            other_rank, other = second.choose(message, may_receive, leaving)
            if other_rank < rank:
                best = other
        return best

    def _is_for_canaries(self, message: Message) -> bool:
        about = message.properties
        key = None if about is None else about.key
        if key is None:
            self._number += 1
        return is_for_canaries(self._share, key, self._number)


def _retained_terms(subscription: Subscription, terms: Terms) -> Terms:
    """The terms of a member for what was published to be retained."""
    if not subscription.retain_as_published:
        return terms
    return Terms(terms.qos, True, terms.identifiers, terms.group)


class Route:
    """What a topic leads to, as of now."""

    __slots__ = (
        "_splits",
        "bounded",
        "candidates",
        "durable",
        "groups",
        "queues",
        "services",
        "streams",
        "taker",
        "targets",
        "topic",
        "valid",
    )

    def __init__(
        self,
        topic: str,
        targets: list[Target],
        groups: list[SharedGroup],
        bound: Collection[Bound],
        services: "Sequence[Service]" = (),
    ) -> None:
        """`bound` are the queues and streams among the targets."""
        self.topic = topic
        self.targets = targets
        self.groups = groups
        self.services = services
        """Who answers requests for the topic, and gets no other messages by that."""
        self.candidates: Candidates | None = None
        """All who can be asked for it, once somebody has asked."""
        kinds = [each.kind for each in bound]
        self.queues = kinds.count("queue")
        """How many of the targets are queues."""
        self.streams = kinds.count("stream")
        """How many of them are streams."""
        self.bounded = [each for each in bound if each.may_refuse]
        """Those of the targets that have to be asked whether they take a message."""
        self.durable = sum(target.receiver.is_durable() for target in targets)
        """How many of the targets kept messages on disk when the route was made."""
        self.taker: Bound | None = None
        """Who gets all of it, and takes every message: it may be given many at a time."""
        self.valid = True
        """False: ask the router again."""
        self._splits: dict[int, tuple[list[Outlet], list[Target], Traffic | None]] | None = None

    def split(self, form: int) -> tuple[list[Outlet], list[Target], Traffic | None]:
        """The targets that take a plain QoS 0 message as it is in this wire form, and the others.

        Also where all that goes to the outlets is counted; None when there are none, or when
        they are of several protocols: `count_sent` counts it then. Kept with the route: whatever
        changes it (a connection comes or goes) invalidates the route.
        """
        splits = self._splits
        if splits is None:
            splits = self._splits = {}
        found = splits.get(form)
        if found is None:
            outlets: list[Outlet] = []
            others: list[Target] = []
            kinds: set[Traffic] = set()
            for target in self.targets:
                outlet = None
                if not target.no_local and not target.terms[0].identifiers:
                    outlet = target.receiver.outlet(form)
                if outlet is None:
                    others.append(target)
                else:
                    outlets.append(outlet[0])
                    kinds.add(outlet[1])
            found = splits[form] = (outlets, others, kinds.pop() if len(kinds) == 1 else None)
        return found

    def count_sent(self, form: int, count: int, size_bytes: int) -> None:
        """Count messages of this size that went to outlets of several protocols."""
        for target in self.targets:
            if not target.no_local and not target.terms[0].identifiers:
                outlet = target.receiver.outlet(form)
                if outlet is not None:
                    outlet[1].sent += count
                    outlet[1].sent_bytes += count * size_bytes

    def addressed_sessions(self) -> "Iterator[tuple[Session, tuple[Terms, Terms, Terms]]]":
        """The sessions that subscribe to just this topic or to others of its level."""
        for target in self.targets:
            if target.is_addressed:
                # only subscriptions of sessions address anything: what is bound has none
                yield cast("Session", target.receiver), target.terms


class _Branch:
    """One level of the trie."""

    __slots__ = ("bound", "children", "groups", "services", "subscriptions")

    def __init__(self) -> None:
        self.bound: list[Bound] | None = None
        self.children: dict[str, _Branch] | None = None
        self.subscriptions: dict[Session, Subscription] | None = None
        self.groups: dict[str, SharedGroup] | None = None
        self.services: list[Service] | None = None

    def is_empty(self) -> bool:
        return not (
            self.children or self.subscriptions or self.groups or self.bound or self.services
        )


class Router:
    """All subscriptions of a node."""

    def __init__(self, may_receive: Callable[["Session", str], bool]) -> None:
        self._may_receive = may_receive
        self._exact: dict[str, _Branch] = {}
        self._root = _Branch()
        self._routes: dict[str, Route] = {}
        self._routes_by_topic: TopicTree[Route] = TopicTree()
        self._routes_bytes = 0
        self.subscription_count = 0
        """Subscriptions of all sessions, shared ones included."""
        self.shared_count = 0
        """Those of them that are members of shared subscriptions."""

    # -- subscriptions ---------------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """Let it take effect, in place of an earlier one of its session with the same filter."""
        shared = split_shared(subscription.topic_filter)
        topic_filter = shared.topic_filter if shared else subscription.topic_filter
        branch = self._branch(topic_filter)
        session = subscription.session
        if session.subscriptions.get(subscription.topic_filter) is None:
            self.subscription_count += 1
            self.shared_count += shared is not None
        if shared:
            if branch.groups is None:
                branch.groups = {}
            group = branch.groups.get(shared.group)
            if group is None:
                group = branch.groups[shared.group] = SharedGroup(shared.group, topic_filter)
            group.set(subscription)
        else:
            if branch.subscriptions is None:
                branch.subscriptions = {}
            branch.subscriptions[session] = subscription
        self.invalidate(topic_filter)

    def remove(self, subscription: Subscription) -> None:
        """Take back what `add` did."""
        shared = split_shared(subscription.topic_filter)
        topic_filter = shared.topic_filter if shared else subscription.topic_filter
        branch = self._branch(topic_filter)
        if shared:
            groups = branch.groups or {}
            group = groups[shared.group]
            group.remove(subscription.session)
            if not group.members:
                del groups[shared.group]
        elif branch.subscriptions:
            branch.subscriptions.pop(subscription.session, None)
        self.subscription_count -= 1
        self.shared_count -= shared is not None
        self._prune(topic_filter)
        self.invalidate(topic_filter)

    def bind(self, receiver: Bound, topic_filter: str) -> None:
        """Lead what is published to the filter also to this receiver; harmless if it does."""
        branch = self._branch(topic_filter)
        if branch.bound is None:
            branch.bound = []
        if receiver not in branch.bound:
            branch.bound.append(receiver)
        self.invalidate(topic_filter)

    def unbind(self, receiver: Bound, topic_filter: str) -> None:
        """Take back what `bind` did; harmless if it did not."""
        branch = self._branch(topic_filter)
        if branch.bound and receiver in branch.bound:
            branch.bound.remove(receiver)
        self._prune(topic_filter)
        self.invalidate(topic_filter)

    def add_service(self, service: "Service") -> None:
        """Let requests for its topic filter find it."""
        branch = self._branch(service.topic_filter)
        if branch.services is None:
            branch.services = []
        branch.services.append(service)
        self.invalidate(service.topic_filter)

    def remove_service(self, service: "Service") -> None:
        """Take back what `add_service` did."""
        branch = self._branch(service.topic_filter)
        if branch.services:
            branch.services.remove(service)
        self._prune(service.topic_filter)
        self.invalidate(service.topic_filter)

    def group(self, shared: SharedFilter) -> SharedGroup | None:
        """The shared subscription of this name and filter, if it has members."""
        if has_wildcard(shared.topic_filter):
            branch = self._root
            for level in shared.topic_filter.split("/"):
                below = (branch.children or {}).get(level)
                if below is None:
                    return None
                branch = below
        else:
            exact = self._exact.get(shared.topic_filter)
            if exact is None:
                return None
            branch = exact
        return (branch.groups or {}).get(shared.group)

    def _branch(self, topic_filter: str) -> _Branch:
        if not has_wildcard(topic_filter):
            found = self._exact.get(topic_filter)
            if found is None:
                found = self._exact[topic_filter] = _Branch()
            return found
        branch = self._root
        for level in topic_filter.split("/"):
            if branch.children is None:
                branch.children = {}
            below = branch.children.get(level)
            if below is None:
                below = branch.children[level] = _Branch()
            branch = below
        return branch

    def _prune(self, topic_filter: str) -> None:
        if not has_wildcard(topic_filter):
            if self._exact[topic_filter].is_empty():
                del self._exact[topic_filter]
            return
        path: list[tuple[dict[str, _Branch], str]] = []
        branch = self._root
        for level in topic_filter.split("/"):
            children = branch.children
            if children is None or level not in children:
                return
            path.append((children, level))
            branch = children[level]
        for children, level in reversed(path):
            if not children[level].is_empty():
                break
            del children[level]

    # -- routes ----------------------------------------------------------------------------------

    def route(self, topic: str) -> Route:
        """Where messages of this (valid) topic go; valid at least until the next change."""
        route = self._routes.get(topic)
        if route is None:
            self._routes_bytes += _route_bytes(topic)
            while self._routes_bytes > _ROUTES_BYTES_MAX and self._routes:
                self._forget(self._routes[next(iter(self._routes))])
            route = self._routes[topic] = self._make_route(topic)
            self._routes_by_topic.set(topic, route)
        return route

    def invalidate(self, topic_filter: str) -> None:
        """Forget the routes of every topic that this filter (without ``$share``) matches."""
        if not has_wildcard(topic_filter):
            route = self._routes.get(topic_filter)
            if route is not None:
                self._forget(route)
            return
        for route in list(self._routes_by_topic.matching(topic_filter)):
            self._forget(route)

    def invalidate_session(self, session: "Session") -> None:
        """Forget the routes that lead to this session: it came, went or changed its ways."""
        for subscription in session.subscriptions.values():
            shared = split_shared(subscription.topic_filter)
            self.invalidate(shared.topic_filter if shared else subscription.topic_filter)

    def invalidate_all(self) -> None:
        """Forget every route, for the rules of access have changed."""
        for route in self._routes.values():
            route.valid = False
        self._routes.clear()
        self._routes_by_topic = TopicTree()
        self._routes_bytes = 0

    def _forget(self, route: Route) -> None:
        route.valid = False
        del self._routes[route.topic]
        self._routes_bytes -= _route_bytes(route.topic)
        self._routes_by_topic.remove(route.topic)

    def _make_route(self, topic: str) -> Route:
        by_session: dict[Session, list[Subscription]] = {}
        groups: list[SharedGroup] = []
        services: list[Service] = []
        bound: dict[Bound, None] = {}  # one that is bound more than once gets a message once
        may_be_kept = not topic.startswith(REPLY_PREFIX)
        for branch in self._branches(topic):
            if branch.bound and may_be_kept:
                bound.update(dict.fromkeys(branch.bound))
            if branch.groups:
                groups.extend(branch.groups.values())
            if branch.services:
                services.extend(branch.services)
            if branch.subscriptions:
                for session, subscription in branch.subscriptions.items():
                    found = by_session.get(session)
                    if found is None:
                        by_session[session] = [subscription]
                    else:
                        found.append(subscription)
        targets = [
            Target(session, subscriptions)
            for session, subscriptions in by_session.items()
            if self._may_receive(session, topic)
        ]
        targets.extend(Target(receiver, []) for receiver in bound)
        route = Route(topic, targets, groups, bound, services)
        if len(targets) == len(bound) == 1 and not groups and not route.bounded:
            route.taker = next(iter(bound))
        return route

    def _branches(self, topic: str) -> Iterator[_Branch]:
        """Every branch whose filter matches the topic."""
        exact = self._exact.get(topic)
        if exact is not None:
            yield exact
        names = topic.split("/")
        depth_max = len(names)
        todo: list[tuple[_Branch, int]] = [(self._root, 0)]
        while todo:
            branch, depth = todo.pop()
            children = branch.children
            if depth == depth_max:
                yield branch
                if children and "#" in children:  # '#' matches its parent too (4.7.1.2)
                    yield children["#"]
                continue
            if not children:
                continue
            below = children.get(names[depth])
            if below is not None:
                todo.append((below, depth + 1))
            if depth == 0 and topic[:1] == "$":
                continue  # 4.7.2-1
            below = children.get("+")
            if below is not None:
                todo.append((below, depth + 1))
            below = children.get("#")
            if below is not None:
                yield below
