"""Who gets a message: the router against a brute-force model, and the validity of its routes."""

from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ganglion.broker.core import router as router_module
from ganglion.broker.core.canaries import is_for_canaries
from ganglion.broker.core.message import PLAIN_TERMS, Message, MessageProperties, Terms
from ganglion.broker.core.router import Outlet, Route, Router, SharedGroup, Subscription, Target
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.statistics import Traffic
from ganglion.broker.core.topics import SharedFilter, matches, split_shared


class ListOutlet:
    """An outlet that counts."""

    def __init__(self) -> None:
        self.taken = 0

    def offer(self, data: bytes, count: int) -> None:
        """Take the messages."""
        assert data
        self.taken += count


@dataclass(eq=False)
class FakeSession:
    """What the router needs of a session."""

    name: str
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    outlets: dict[int, ListOutlet] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    rank: int = 0
    owner: None = None
    delivered: list[tuple[Message, Terms]] = field(default_factory=list)

    def is_durable(self) -> bool:
        """It keeps nothing."""
        return False

    def outlet(self, form: int) -> tuple[Outlet, Traffic] | None:
        """Where plain messages of the form go, and are counted."""
        outlet = self.outlets.get(form)
        return None if outlet is None else (outlet, self.traffic)

    def readiness(self, qos: int) -> int:
        """As a member of a group."""
        assert 0 <= qos <= 2
        return self.rank

    def deliver(self, message: Message, terms: Terms) -> None:
        """Take the message."""
        self.delivered.append((message, terms))


def _session(name: str) -> tuple[FakeSession, Session]:
    fake = FakeSession(name)
    return fake, cast(Session, fake)


def _everybody(_session: Session, _topic: str) -> bool:
    return True


def subscribe(
    router: Router,
    fake: FakeSession,
    topic_filter: str,
    qos: int = 0,
    *,
    no_local: bool = False,
    retain_as_published: bool = False,
    identifier: int = 0,
) -> Subscription:
    """Do what the node does to subscribe a session."""
    subscription = Subscription(
        cast(Session, fake),
        topic_filter,
        qos,
        no_local=no_local,
        retain_as_published=retain_as_published,
        identifier=identifier,
    )
    router.add(subscription)
    fake.subscriptions[topic_filter] = subscription
    return subscription


def unsubscribe(router: Router, fake: FakeSession, topic_filter: str) -> None:
    """Do what the node does to end a subscription."""
    router.remove(fake.subscriptions[topic_filter])
    del fake.subscriptions[topic_filter]


TargetView = tuple[str, tuple[Terms, ...], bool, bool, "tuple[object, ...] | None"]


def _view(target: Target) -> TargetView:
    name = cast(FakeSession, target.receiver).name
    terms = tuple(
        Terms(each.qos, each.retain, tuple(sorted(each.identifiers)), each.group)
        for each in target.terms
    )
    own = _view(target.own) if target.own is not None else None
    return (name, terms, target.no_local, target.retain_as_published, own)


def view(route: Route) -> tuple[list[TargetView], list[tuple[str, str]]]:
    """What a route says, in a form that can be compared."""
    groups = [(group.name, group.topic_filter) for group in route.groups]
    return sorted(map(_view, route.targets), key=str), sorted(groups)


levels = st.sampled_from(["a", "b", "", "$s"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
filters = st.builds(
    lambda before, end: "/".join([*before, *end]),
    st.lists(st.one_of(levels, st.just("+")), max_size=3),
    st.sampled_from([["#"], ["+"], ["a"], ["b", ""]]),
)
all_filters = st.one_of(
    filters,
    topics,
    st.builds(lambda group, rest: f"$share/{group}/{rest}", st.sampled_from("gh"), filters),
)


class RouterMachine(RuleBasedStateMachine):
    """A router beside the list of its subscriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.forbidden: set[tuple[str, str]] = set()
        self.router = Router(self.may_receive)
        self.sessions = [FakeSession(f"s{number}") for number in range(4)]
        self.kept: list[Route] = []

    def may_receive(self, session: Session, topic: str) -> bool:
        """Access by a set of exceptions."""
        return (cast(FakeSession, session).name, topic) not in self.forbidden

    @rule(
        index=st.integers(0, 3),
        topic_filter=all_filters,
        qos=st.integers(0, 2),
        no_local=st.booleans(),
        retain_as_published=st.booleans(),
        identifier=st.integers(0, 2),
    )
    def subscribe(
        self,
        index: int,
        topic_filter: str,
        qos: int,
        no_local: bool,
        retain_as_published: bool,
        identifier: int,
    ) -> None:
        """Subscribe, or replace a subscription."""
        shared = topic_filter.startswith("$share/")
        subscribe(
            self.router,
            self.sessions[index],
            topic_filter,
            qos,
            no_local=no_local and not shared,
            retain_as_published=retain_as_published,
            identifier=identifier,
        )

    @rule(index=st.integers(0, 3), choice=st.integers(0, 100))
    def unsubscribe(self, index: int, choice: int) -> None:
        """End a subscription that is there."""
        session = self.sessions[index]
        if session.subscriptions:
            found = sorted(session.subscriptions)
            unsubscribe(self.router, session, found[choice % len(found)])

    @rule(index=st.integers(0, 3))
    def come_or_go(self, index: int) -> None:
        """A session's connection changes: its routes are invalidated."""
        session = self.sessions[index]
        if session.outlets:
            session.outlets = {}
        else:
            session.outlets = {index % 2: ListOutlet()}
        self.router.invalidate_session(cast(Session, session))

    @rule(index=st.integers(0, 3), topic=topics)
    def change_the_rules(self, index: int, topic: str) -> None:
        """Rules of access change: all routes are invalidated."""
        self.forbidden ^= {(f"s{index}", topic)}
        self.router.invalidate_all()

    @rule(topic=topics)
    def publish(self, topic: str) -> None:
        """Ask for a route, compare it with the definition, and keep it as a connection does."""
        route = self.router.route(topic)
        assert route.valid
        assert view(route) == self.expected(topic)
        route.split(0)
        route.split(1)
        self.kept.append(route)

    def expected(self, topic: str) -> tuple[list[TargetView], list[tuple[str, str]]]:
        """What the route of a topic has to be, by looking at every subscription."""
        targets: list[TargetView] = []
        groups: set[tuple[str, str]] = set()
        for session in self.sessions:
            found: list[Subscription] = []
            for subscription in session.subscriptions.values():
                shared = split_shared(subscription.topic_filter)
                if shared is not None:
                    if matches(shared.topic_filter, topic):
                        groups.add((shared.group, shared.topic_filter))
                elif matches(subscription.topic_filter, topic):
                    found.append(subscription)
            if found and self.may_receive(cast(Session, session), topic):
                targets.append(_expected_target(session.name, found))
        return sorted(targets, key=str), sorted(groups)

    @invariant()
    def valid_routes_are_right(self) -> None:
        """A route that says it is valid is what a new one would be, wherever it is kept."""
        self.kept = [route for route in self.kept if route.valid]
        for route in self.kept:
            assert view(route) == self.expected(route.topic)
            for form in (0, 1):
                fresh = Route(route.topic, route.targets, route.groups, [])
                assert route.split(form) == fresh.split(form)

    @invariant()
    def counts_are_right(self) -> None:
        """The figures are those of the subscriptions, and nothing is left of those that ended."""
        found = [each for session in self.sessions for each in session.subscriptions]
        assert self.router.subscription_count == len(found)
        assert self.router.shared_count == sum(each.startswith("$share/") for each in found)
        if not found:
            assert not self.router._exact
            assert not self.router._root.children


def _expected_target(name: str, found: list[Subscription]) -> TargetView:
    qos = max(each.qos for each in found)
    identifiers = tuple(sorted(each.identifier for each in found if each.identifier))
    no_local = any(each.no_local for each in found)
    others = [each for each in found if not each.no_local]
    return (
        name,
        tuple(Terms(min(qos, of), False, identifiers) for of in (0, 1, 2)),
        no_local,
        any(each.retain_as_published for each in found),
        _expected_target(name, others) if no_local and others else None,
    )


TestRouter = pytest.mark.slow(RouterMachine.TestCase)
TestRouter.settings = settings(max_examples=80, stateful_step_count=40)


class TestRoutes:
    """Cached routes (DESIGN section 3)."""

    def test_a_topic_is_looked_up_once(self) -> None:
        """The same topic has the same route until something about it changes."""
        router = Router(_everybody)
        route = router.route("a/b")
        assert router.route("a/b") is route

    @pytest.mark.parametrize("topic_filter", ["a/b", "a/+", "a/b/#", "#", "$share/g/a/b"])
    def test_a_change_invalidates_what_it_matches(self, topic_filter: str) -> None:
        """A subscription that comes, changes or goes invalidates matching routes and no others."""
        router = Router(_everybody)
        fake, _ = _session("s")
        for act in ("come", "change", "go"):
            route, other = router.route("a/b"), router.route("other")
            if topic_filter == "#":
                other.valid = False
            if act == "go":
                unsubscribe(router, fake, topic_filter)
            else:
                subscribe(router, fake, topic_filter, 1 if act == "change" else 0)
            assert not route.valid
            assert other.valid == (topic_filter != "#")

    def test_they_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The oldest routes are forgotten, and are not valid any more for who still has them."""
        room_for_30 = 30 * router_module._route_bytes("t/100")
        monkeypatch.setattr(router_module, "_ROUTES_BYTES_MAX", room_for_30)
        router = Router(_everybody)
        routes = [router.route(f"t/{number}") for number in range(200)]
        valid = [route.valid for route in routes]
        assert sum(valid) == 30
        assert valid == sorted(valid), "the oldest go first"
        assert len(router._routes) == len(router._routes_by_topic) == sum(valid)

    def test_a_huge_topic_is_routed_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A topic that costs more than all routes may is routed, and displaces the others."""
        monkeypatch.setattr(router_module, "_ROUTES_BYTES_MAX", router_module._route_bytes("a"))
        router = Router(_everybody)
        fake, _ = _session("s")
        subscribe(router, fake, "#")
        for _ in range(3):
            assert len(router.route("x" + "/x" * 100).targets) == 1
            assert len(router.route("a").targets) == 1

    def test_the_cost_of_forgotten_routes_is_given_back(self) -> None:
        """Routes that come and go for ever leave room for others."""
        router = Router(_everybody)
        fake, _ = _session("s")
        for number in range(300):
            router.route(f"a/{number}")
            subscribe(router, fake, "a/#")
        assert router._routes_bytes == 0
        router.route("a")
        router.invalidate_all()
        assert router._routes_bytes == 0


class TestSplit:
    """Who takes a run of packets as it is (Route.split)."""

    def test_only_plain_receivers_of_the_same_form(self) -> None:
        """Identifiers, no-local and other wire forms need their own packets."""
        router = Router(_everybody)
        fakes = [_session(name)[0] for name in ("plain", "other form", "identifier", "no local")]
        for fake in fakes:
            fake.outlets = {0: ListOutlet()}
        fakes[1].outlets = {1: ListOutlet()}
        subscribe(router, fakes[0], "t", 2)
        subscribe(router, fakes[1], "t")
        subscribe(router, fakes[2], "t", identifier=1)
        subscribe(router, fakes[3], "t", no_local=True)
        outlets, others, tally = router.route("t").split(0)
        assert tally is fakes[0].traffic
        assert outlets == [fakes[0].outlets[0]]
        assert {cast(FakeSession, each.receiver).name for each in others} == {
            "other form",
            "identifier",
            "no local",
        }
        outlets, others, tally = router.route("t").split(1)
        assert outlets == [fakes[1].outlets[1]]
        assert tally is fakes[1].traffic
        assert len(others) == 3
        assert router.route("t").split(2)[::2] == ([], None)

    def test_what_goes_out_by_several_protocols_is_counted_for_each(self) -> None:
        """Sessions whose outlets are counted together need no look at each of them."""
        router = Router(_everybody)
        fakes = [_session(name)[0] for name in ("socket", "websocket", "another", "counted alone")]
        for fake in fakes:
            fake.outlets = {0: ListOutlet()}
        fakes[2].traffic = fakes[0].traffic
        subscribe(router, fakes[0], "t")
        subscribe(router, fakes[2], "t")
        assert router.route("t").split(0)[2] is fakes[0].traffic
        subscribe(router, fakes[1], "t")
        subscribe(router, fakes[3], "t", no_local=True)
        route = router.route("t")
        assert len(route.split(0)[0]) == 3
        assert route.split(0)[2] is None
        route.count_sent(0, 5, 100)
        assert [(each.traffic.sent, each.traffic.sent_bytes) for each in fakes] == [
            (10, 1000),
            (5, 500),
            (10, 1000),
            (0, 0),
        ]


class TestSharedGroup:
    """One message, one member (MQTT 5.0, 4.8.2)."""

    def _group(self, count: int) -> tuple[SharedGroup, list[FakeSession]]:
        router = Router(_everybody)
        fakes = [_session(f"m{number}")[0] for number in range(count)]
        for fake in fakes:
            subscribe(router, fake, "$share/g/t", 1)
        group = router.group(SharedFilter("g", "t"))
        assert group is not None
        return group, fakes

    def _deliver(self, group: SharedGroup, leaving: FakeSession | None = None) -> bool:
        message = Message("t", b"", 1)
        return group.deliver(message, _everybody, cast("Session | None", leaving))

    def test_members_take_turns(self) -> None:
        """All that can take a message get as many."""
        group, fakes = self._group(3)
        for _ in range(30):
            assert self._deliver(group)
        assert [len(fake.delivered) for fake in fakes] == [10, 10, 10]

    def test_the_readiest_first(self) -> None:
        """Ready before busy before away; who cannot gets nothing."""
        group, fakes = self._group(4)
        for fake, rank in zip(fakes, (3, 2, 1, 0), strict=True):
            fake.rank = rank
        for expected in (3, 2, 1):
            assert self._deliver(group)
            assert len(fakes[expected].delivered) == 1
            fakes[expected].rank = 3
        assert not self._deliver(group)

    def test_busy_members_take_turns_too(self) -> None:
        """When all are busy, the messages are still shared out."""
        group, fakes = self._group(2)
        for fake in fakes:
            fake.rank = 1
        for _ in range(10):
            assert self._deliver(group)
        assert [len(fake.delivered) for fake in fakes] == [5, 5]

    def test_a_leaving_member_is_passed_over(self) -> None:
        """What a leaving member gives back does not come back to it."""
        group, fakes = self._group(2)
        for _ in range(4):
            assert self._deliver(group, leaving=fakes[0])
        assert [len(fake.delivered) for fake in fakes] == [0, 4]
        alone, (only,) = self._group(1)
        assert not self._deliver(alone, leaving=only)

    def test_who_may_not_receive_is_passed_over(self) -> None:
        """Access is asked for the member and the topic."""
        group, fakes = self._group(2)
        for _ in range(4):
            message = Message("t", b"", 1)
            assert group.deliver(message, lambda session, _: cast(object, session) is fakes[1])
        assert [len(fake.delivered) for fake in fakes] == [0, 4]

    def test_groups_by_name_and_filter(self) -> None:
        """`group` finds a shared subscription with or without wildcards, while it has members."""
        router = Router(_everybody)
        fake, _ = _session("s")
        for topic_filter in ("t", "a/+/#"):
            assert router.group(SharedFilter("g", topic_filter)) is None
            subscribe(router, fake, f"$share/g/{topic_filter}")
            group = router.group(SharedFilter("g", topic_filter))
            assert group is not None
            assert (group.name, group.topic_filter) == ("g", topic_filter)
            assert router.group(SharedFilter("h", topic_filter)) is None
            unsubscribe(router, fake, f"$share/g/{topic_filter}")
            assert router.group(SharedFilter("g", topic_filter)) is None


class TestCanariesInAGroup:
    """Members that say a share get that part of the messages."""

    KEYS = tuple(f"k{number}" for number in range(40))

    def _group(
        self, *shares: float | None
    ) -> tuple[Router, SharedGroup, list[FakeSession], list[Subscription]]:
        router = Router(_everybody)
        fakes = [_session(f"m{number}")[0] for number in range(len(shares))]
        subscriptions: list[Subscription] = []
        for fake, share in zip(fakes, shares, strict=True):
            subscription = Subscription(cast(Session, fake), "$share/g/t", 1)
            if share is not None:
                subscription.options = (("canary_share", str(share)),)
            router.add(subscription)
            fake.subscriptions["$share/g/t"] = subscription
            subscriptions.append(subscription)
        group = router.group(SharedFilter("g", "t"))
        assert group is not None
        return router, group, fakes, subscriptions

    def _send(self, group: SharedGroup, *keys: str | None, leaving: object = None) -> None:
        for key in keys:
            about = None if key is None else MessageProperties(key=key)
            message = Message("t", (key or "").encode(), 1, properties=about)
            assert group.deliver(message, _everybody, cast("Session | None", leaving))

    def _got(self, fake: FakeSession) -> list[str]:
        found, fake.delivered = fake.delivered, []
        return [message.payload.decode() for message, _ in found]

    def _chosen(self, share: float) -> list[str]:
        return [key for key in self.KEYS if is_for_canaries(share, key, 0)]

    def test_keys_go_to_their_side(self) -> None:
        """Each to the same one every time."""
        _, group, (other, canary), _ = self._group(None, 0.3)
        chosen = self._chosen(0.3)
        for _ in range(3):
            self._send(group, *self.KEYS)
            assert self._got(canary) == chosen
            assert self._got(other) == [key for key in self.KEYS if key not in chosen]

    def test_without_keys_the_share_is_kept(self) -> None:
        """And the members of each side take turns."""
        _, group, fakes, _ = self._group(None, None, None, 0.1, 0.1)
        self._send(group, *[None] * 3000)
        assert [len(self._got(fake)) for fake in fakes] == pytest.approx(
            [900, 900, 900, 150, 150], abs=2
        )

    def test_the_largest_share_counts(self) -> None:
        """Whoever comes first; when it goes, the next largest."""
        router, group, fakes, subscriptions = self._group(0.2, None, 0.6)
        self._send(group, *self.KEYS)
        assert sorted(self._got(fakes[0]) + self._got(fakes[2])) == sorted(self._chosen(0.6))
        router.remove(subscriptions[2])
        self._send(group, *self.KEYS)
        assert self._got(fakes[0]) == self._chosen(0.2)

    def test_a_member_changes_its_share(self) -> None:
        """By subscribing again; without one it is a canary no more."""
        router, group, (canary, other), (subscription, _) = self._group(0.2, None)
        for options, expected in (
            ((("canary_share", "0.6"),), self._chosen(0.6)),
            ((("canary_share", "0"),), []),
        ):
            subscription.options = options
            router.add(subscription)
            self._send(group, *self.KEYS)
            assert self._got(canary) == expected
        subscription.options = ()
        router.add(subscription)
        self._got(other)
        self._send(group, *self.KEYS)
        assert len(self._got(other)) == len(self._got(canary)) == len(self.KEYS) // 2

    @pytest.mark.parametrize("share", [None, 0.1])
    def test_members_of_one_kind_share_everything(self, share: float | None) -> None:
        """There is nobody to leave the rest to."""
        _, group, fakes, _ = self._group(share, share)
        self._send(group, *self.KEYS)
        assert [len(self._got(fake)) for fake in fakes] == [20, 20]

    def test_what_is_for_canaries_goes_where_it_can_be_taken(self) -> None:
        """To a canary while one can take it at once; else to others that can; else it waits."""
        _, group, (other, canary), _ = self._group(None, 1.0)
        for ranks, expected in (
            ((0, 0), canary),
            ((0, 1), other),  # busy
            ((1, 1), canary),
            ((1, 2), other),  # away
            ((2, 2), canary),
            ((2, 3), other),
        ):
            other.rank, canary.rank = ranks
            self._send(group, "k")
            assert self._got(expected) == ["k"], ranks

    def test_what_is_for_others_goes_to_canaries_only_if_none_is_there(self) -> None:
        """A share is no more than it says because the others are busy."""
        _, group, (other, canary), _ = self._group(None, 0.0)
        for ranks, expected in (
            ((0, 0), other),
            ((1, 0), other),
            ((2, 0), canary),
            ((2, 1), canary),
            ((2, 2), other),
            ((3, 2), canary),
        ):
            other.rank, canary.rank = ranks
            self._send(group, "k")
            assert self._got(expected) == ["k"], ranks

    def test_what_a_canary_leaves_behind_is_for_the_others(self) -> None:
        """It failed there once; without others it is for another canary."""
        router, group, (other, canary, second), (subscription, _, _) = self._group(None, 1.0, 1.0)
        self._send(group, "k", leaving=canary)
        assert self._got(other) == ["k"]
        router.remove(subscription)
        self._send(group, "k", leaving=canary)
        assert self._got(second) == ["k"]


def test_plain_terms_are_shared() -> None:
    """A delivery to a receiver without identifiers costs no object of its own."""
    router = Router(_everybody)
    for number in range(3):
        subscribe(router, _session(f"s{number}")[0], "t", number)
    for target in router.route("t").targets:
        assert all(terms is PLAIN_TERMS[terms.qos] for terms in target.terms)
