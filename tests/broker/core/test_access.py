"""Who may do what: rules, their order, their patterns and their explanations."""

import re
import tomllib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ganglion.broker.core import access as access_module
from ganglion.broker.core.access import (
    ANONYMOUS,
    UNIX,
    Access,
    Client,
    InvalidRule,
    Request,
    Rule,
    _covers,
    _matches,
    unshared,
)

ANN = Client("ann-1", "ann", "10.1.2.3", None)
BOB = Client("bob-1", "bob", "192.168.0.9", None)
NOBODY = Client("guest-1", None, "127.0.0.1", None)


def allow(*topics: str, **conditions: Any) -> Rule:
    """An allow rule, with the conditions that the test names."""
    return Rule(effect="allow", topics=topics, **conditions)


def deny(*topics: str, **conditions: Any) -> Rule:
    """A deny rule, with the conditions that the test names."""
    return Rule(effect="deny", topics=topics, **conditions)


def guarded(*rules: Rule) -> Access:
    """These rules, on a node that has users."""
    return Access(rules, users_exist=True)


def may_publish(access: Access, client: Client, topic: str) -> bool:
    """Whether a QoS 0 message without RETAIN is allowed."""
    return access.publish(client, topic, 0, False).allowed


# What a pattern matches, by the definition of MQTT 4.7 on the text, written without the module's
# own matching so that the two can be compared.


def defined_to_match(pattern: str, topic: str) -> bool:
    """Whether a pattern matches a topic name, by recursion over the levels."""
    if topic.startswith("$") and pattern[0] in "+#":
        return False

    def rest(wanted: list[str], levels: list[str]) -> bool:
        if not wanted:
            return not levels
        if wanted[0] == "#":
            return True
        return bool(levels) and wanted[0] in ("+", levels[0]) and rest(wanted[1:], levels[1:])

    return rest(pattern.split("/"), topic.split("/"))


LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(LEVELS | st.just("+"), max_size=3),
    st.sampled_from([["#"], ["+"], ["a"], [""]]),
).filter(bool)
UNIVERSE = [
    "/".join(levels)
    for count in range(1, 5)
    for levels in product(["a", "b", "", "$s"], repeat=count)
    if levels != ("",)
]


class TestDefaults:
    """What is decided without a rule."""

    def test_without_users_everything_is_allowed(self) -> None:
        """As long as no users exist, whatever no rule matches is allowed, $-topics included."""
        access = Access()
        assert may_publish(access, NOBODY, "a")
        assert access.subscribe(NOBODY, "$SYS/#", 2).allowed
        assert access.receive(NOBODY, "$SYS/broker/uptime").allowed
        assert access.publish_mask(NOBODY, "a") == 0b111_111

    def test_with_users_nothing_is_allowed_without_a_rule(self) -> None:
        """Once users exist, whatever no rule matches is denied, and the decision says so."""
        access = guarded()
        assert access.users_exist
        decision = access.publish(ANN, "a", 0, False)
        assert not decision.allowed
        assert decision.rule == "no rule matched: denied by default"
        assert not access.subscribe(ANN, "a", 0).allowed
        assert not access.receive(ANN, "a").allowed
        assert access.publish_mask(ANN, "a") == 0

    def test_rules_hold_without_users_too(self) -> None:
        """A deny rule is obeyed on a node without users: only the default differs."""
        access = Access([deny("secret/#")])
        assert not may_publish(access, NOBODY, "secret/x")
        assert access.publish_mask(NOBODY, "secret/x") == 0
        assert may_publish(access, NOBODY, "open")

    def test_open_allows_everything_from_anywhere(self) -> None:
        """`Access.open()` lets anybody connect from any address and do anything."""
        access = Access.open()
        assert access.connect(None, "203.0.113.7").allowed
        assert access.publish_mask(NOBODY, "$SYS/x") == 0b111_111
        assert access.subscribe(NOBODY, "#", 2).allowed


class TestConnect:
    """Who may connect."""

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", UNIX])
    def test_anonymous_from_this_machine(self, address: str) -> None:
        """Without users an anonymous client connects from loopback and Unix sockets."""
        assert Access().connect(None, address).allowed

    @pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1", "fe80::1%eth0", "0.0.0.0"])
    def test_anonymous_from_elsewhere_is_refused(self, address: str) -> None:
        """From any other address only when the node is insecure on purpose."""
        decision = Access().connect(None, address)
        assert not decision.allowed
        assert "this machine only" in decision.rule
        assert Access(insecure=True).connect(None, address).allowed

    def test_anonymous_is_refused_once_users_exist(self) -> None:
        """Users end anonymous access, insecure or not, unless it is configured."""
        refused = Access(users_exist=True, insecure=True).connect(None, "127.0.0.1")
        assert not refused.allowed
        assert "once users exist" in refused.rule
        assert Access(users_exist=True, anonymous=True).connect(None, "127.0.0.1").allowed
        assert not Access(users_exist=True, anonymous=True).connect(None, "10.0.0.1").allowed

    def test_a_user_connects_from_anywhere(self) -> None:
        """An authenticated user is not bound to this machine."""
        assert guarded().connect("ann", "203.0.113.7").allowed

    @pytest.mark.parametrize("user", ["ann", None])
    def test_an_address_that_is_none_is_refused(self, user: str | None) -> None:
        """An address that cannot be compared with networks refuses everybody."""
        decision = Access.open().connect(user, "somewhere")
        assert not decision.allowed
        assert "'somewhere'" in decision.rule


class TestOrder:
    """The first rule that matches decides."""

    def test_first_match_decides(self) -> None:
        """A rule before a wider one is its exception, and the decision names it."""
        access = guarded(allow("a/open"), deny("a/#"), allow("#"))
        assert may_publish(access, ANN, "a/open")
        decision = access.publish(ANN, "a/x", 0, False)
        assert not decision.allowed
        assert decision.rule == "rule 2 (deny all a/#)"
        assert may_publish(access, ANN, "b")

    def test_order_is_kept_between_wildcard_and_literal_first_levels(self) -> None:
        """A wildcard rule decides before a literal one that stands after it, and the reverse."""
        assert not may_publish(guarded(deny("+/x"), allow("a/#")), ANN, "a/x")
        assert may_publish(guarded(allow("a/#"), deny("+/x")), ANN, "a/x")
        access = guarded(allow("b/#"), deny("+/x"), allow("a/#"))
        assert not may_publish(access, ANN, "a/x")
        assert may_publish(access, ANN, "b/x")

    def test_a_decision_names_the_pattern_as_written(self) -> None:
        """Of several topics in a rule the decision names the one that matched, unfilled."""
        access = guarded(allow("x", "home/%u/#", action="publish"))
        assert access.publish(ANN, "home/ann/y", 0, False).rule == (
            "rule 1 (allow publish home/%u/#)"
        )


class TestConditions:
    """Each condition of a rule."""

    def test_publish_and_subscribe_are_apart(self) -> None:
        """A rule about one action says nothing about the other; 'all' is about both."""
        access = guarded(allow("p", action="publish"), allow("s", action="subscribe"), allow("b"))
        assert may_publish(access, ANN, "p")
        assert not access.subscribe(ANN, "p", 0).allowed
        assert not access.receive(ANN, "p").allowed
        assert access.subscribe(ANN, "s", 0).allowed
        assert access.receive(ANN, "s").allowed
        assert not may_publish(access, ANN, "s")
        assert may_publish(access, ANN, "b")
        assert access.subscribe(ANN, "b", 0).allowed
        assert access.receive(ANN, "b").allowed

    def test_users(self) -> None:
        """A rule is for its users; '*' and no users at all are for everybody."""
        access = guarded(allow("a", users=("ann",)), allow("e", users=("*",)), allow("f"))
        assert may_publish(access, ANN, "a")
        assert not may_publish(access, BOB, "a")
        assert not may_publish(access, NOBODY, "a")
        for client in (ANN, BOB, NOBODY):
            assert may_publish(access, client, "e")
            assert may_publish(access, client, "f")

    def test_anonymous_is_not_a_user(self) -> None:
        """':anonymous' is for clients without a user, not for a user who is called so."""
        access = guarded(allow("guests", users=(ANONYMOUS,)))
        assert may_publish(access, NOBODY, "guests")
        assert not may_publish(access, ANN, "guests")
        impostor = Client("x", ANONYMOUS, "127.0.0.1", None)
        assert not may_publish(access, impostor, "guests")
        star = Client("x", "*", "127.0.0.1", None)
        assert not may_publish(guarded(allow("a", users=("ann",))), star, "a")

    def test_qos_is_the_highest_the_rule_is_about(self) -> None:
        """A request with a higher QoS passes the rule by, for publish, subscribe and receive."""
        access = guarded(allow("a", qos=1))
        for qos, allowed in ((0, True), (1, True), (2, False)):
            assert access.publish(ANN, "a", qos, False).allowed is allowed
            assert access.publish(ANN, "a", qos, True).allowed is allowed
            assert access.subscribe(ANN, "a", qos).allowed is allowed
            assert access.receive(ANN, "a", qos).allowed is allowed

    def test_qos_of_a_deny_rule(self) -> None:
        """'deny with qos 0' forbids QoS 0 and leaves the rest to the next rule."""
        access = guarded(deny("a", qos=0), allow("a"))
        assert [access.publish(ANN, "a", qos, False).allowed for qos in range(3)] == [
            False,
            True,
            True,
        ]

    def test_retain(self) -> None:
        """A rule with retain is about messages with that flag only."""
        access = guarded(deny("a", action="publish", retain=True), allow("a"))
        assert access.publish(ANN, "a", 1, False).allowed
        assert not access.publish(ANN, "a", 1, True).allowed
        assert access.publish_mask(ANN, "a") == 0b000_111
        only = guarded(allow("a", action="publish", retain=True, qos=1))
        assert only.publish_mask(ANN, "a") == 0b011_000

    def test_address(self) -> None:
        """A rule with networks is for clients from them; IPv4 within IPv6 counts as IPv4."""
        access = guarded(allow("a", address=("10.0.0.0/8", "2001:db8::/32", UNIX)))

        def from_address(address: str) -> bool:
            return may_publish(access, Client("c", "ann", address, None), "a")

        assert from_address("10.1.2.3")
        assert from_address("::ffff:10.1.2.3")
        assert from_address("2001:db8::7")
        assert from_address(UNIX)
        assert not from_address("11.0.0.1")
        assert not from_address("2001:db9::7")
        assert not from_address("somewhere")
        assert not may_publish(
            guarded(allow("a", address=("0.0.0.0/0",))), Client("c", "ann", UNIX, None), "a"
        )

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (allow, "topics is empty"),
            (lambda: allow(""), "empty pattern"),
            (lambda: allow("a\0"), "NUL"),
            (lambda: allow("a#"), "'#' must be the whole last level"),
            (lambda: allow("#/a"), "'#' must be the whole last level"),
            (lambda: allow("a+/b"), "'\\+' must be a whole level"),
            (lambda: allow("$share/g/a"), "leave out \\$share"),
            (lambda: allow("a", users=("",)), "possible user name"),
            (lambda: allow("a", users=("a/b",)), "possible user name"),
            (lambda: allow("a", users=(":other",)), "possible user name"),
            (lambda: allow("a", qos=3), "qos is 3"),
            (lambda: allow("a", retain=True), "retain is only"),
            (lambda: allow("a", action="subscribe", retain=False), "retain is only"),
            (lambda: allow("a", action="read"), "action is 'read'"),
            (lambda: Rule(effect=cast("Any", "Deny"), topics=("a",)), "effect is 'Deny'"),
            (lambda: allow("a", address=("10.0.0.1/8",)), "host bits"),
            (lambda: allow("a", address=("home",)), "'home'"),
            (lambda: allow("a", address=("::ffff:10.0.0.0/104",)), "as IPv4"),
        ],
    )
    def test_a_rule_that_cannot_mean_anything_is_refused(
        self, make: Callable[[], Rule], message: str
    ) -> None:
        """A wrong field raises `InvalidRule`, which names the field and what is wrong."""
        with pytest.raises(InvalidRule, match=message):
            make()


class TestNamesInPatterns:
    """%c and %u."""

    def test_filled_in_per_client(self) -> None:
        """%c is the client identifier and %u the user name, as a level or a part of one."""
        access = guarded(allow("devices/%c/#", "home/%u", "dev-%c-of-%u/x"))
        assert may_publish(access, ANN, "devices/ann-1/t")
        assert not may_publish(access, ANN, "devices/bob-1/t")
        assert may_publish(access, BOB, "devices/bob-1/t")
        assert may_publish(access, ANN, "home/ann")
        assert may_publish(access, ANN, "dev-ann-1-of-ann/x")
        assert not may_publish(access, ANN, "devices/%c/t")

    def test_names_are_filled_in_once(self) -> None:
        """A placeholder in a name is only text: it is not filled in again."""
        tricky = Client("x", "%c", "127.0.0.1", None)
        access = guarded(allow("home/%u/#"))
        assert may_publish(access, tricky, "home/%c/t")
        assert not may_publish(access, tricky, "home/x/t")

    @pytest.mark.parametrize("name", ["", "+", "#", "a/b", "a/#", "a+", "/", "#a"])
    def test_a_name_cannot_widen_a_pattern(self, name: str) -> None:
        """A name that is empty or has a wildcard or a separator makes its pattern match nothing."""
        client = Client(name, name or None, "127.0.0.1", None)
        access = guarded(allow("c/%c/#", "u/%u/#", "c-%c", "%u"))
        for topic in ("c/x", f"c/{name}/x", "c/a/b/x", "c//x", "u/x", f"u/{name}", "c-", "x"):
            assert access.publish_mask(client, topic) == 0
            assert not access.receive(client, topic).allowed
        for topic_filter in ("c/#", f"c/{name}/#", f"u/{name}/#", "#", "+", "c-", "c-+"):
            assert not access.subscribe(client, topic_filter, 0).allowed

    def test_a_name_cannot_reach_system_topics(self) -> None:
        """A client that calls itself $SYS does not turn '%c/#' into '$SYS/#'."""
        client = Client("$SYS", "$SYS", "127.0.0.1", None)
        access = guarded(allow("%c/#", "%u/#"))
        assert not access.receive(client, "$SYS/broker/uptime").allowed
        assert not access.subscribe(client, "$SYS/#", 0).allowed
        own = guarded(allow("$SYS/clients/%c/#"))
        assert own.receive(client, "$SYS/clients/$SYS/x").allowed

    @given(name=st.text("ab$/+#%", max_size=3), topic=TOPICS)
    @example(name="a", topic="a/b")
    def test_a_client_stays_in_its_own_level(self, name: str, topic: str) -> None:
        """Whatever a client is called, '%c/#' opens no topic whose first level is not its name."""
        client = Client(name, None, "127.0.0.1", None)
        if guarded(allow("%c/#")).receive(client, topic).allowed:
            assert topic.partition("/")[0] == name

    def test_more_clients_than_are_kept_picked_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The cache of clients is bounded, and a client that fell out of it is judged the same."""
        monkeypatch.setattr(access_module, "_VIEWS_MAX", 8)
        access = guarded(allow("%c/x"))
        clients = [Client(f"c{number}", None, UNIX, None) for number in range(10)]
        for client in clients:
            assert access.publish_mask(client, f"{client.client_id}/x")
        assert len(access._views) == 8
        assert access.publish_mask(clients[0], "c0/x") == 0b111_111
        assert access.publish_mask(clients[0], "c1/x") == 0


class TestPatterns:
    """Matching topics and covering filters."""

    @given(pattern=FILTERS, topic=TOPICS)
    @example(pattern="a/#", topic="a")
    @example(pattern="#", topic="$s")
    @example(pattern="+/a", topic="$s/a")
    @example(pattern="$s/#", topic="$s/a")
    @example(pattern="a/+", topic="a/")
    @example(pattern="/#", topic="/")
    def test_a_pattern_matches_as_defined(self, pattern: str, topic: str) -> None:
        """Rules match topics as MQTT 4.7 defines it for filters, $-topics included."""
        expected = defined_to_match(pattern, topic)
        access = guarded(allow(pattern))
        assert access.receive(ANN, topic).allowed is expected
        assert access.publish_mask(ANN, topic) == (0b111_111 if expected else 0)

    @given(pattern=FILTERS, topic_filter=FILTERS)
    @example(pattern="+/#", topic_filter="#")
    @example(pattern="+/+/#", topic_filter="#")
    @example(pattern="+/+/#", topic_filter="/#")
    @example(pattern="a/+/#", topic_filter="a/#")
    @example(pattern="a/#", topic_filter="a")
    @example(pattern="#", topic_filter="$s/#")
    @example(pattern="+/+", topic_filter="a/#")
    def test_a_pattern_covers_what_it_matches_all_of(self, pattern: str, topic_filter: str) -> None:
        """A rule matches a subscription exactly when it matches every topic of the filter."""
        expected = all(
            defined_to_match(pattern, topic)
            for topic in UNIVERSE
            if defined_to_match(topic_filter, topic)
        )
        assert guarded(allow(pattern)).subscribe(ANN, topic_filter, 0).allowed is expected

    def test_matching_by_level(self) -> None:
        """The two comparisons by level, without the rule about '$'."""
        assert _matches(("a", "+", "#"), ["a", "b"])
        assert not _matches(("a", "+", "#"), ["a"])
        assert _covers(("a", "#"), ["a", "+", "#"])
        assert not _covers(("a", "+"), ["a", "#"])

    def test_everything_does_not_include_system_topics(self) -> None:
        """'allow #' opens neither $SYS nor other $-topics; a rule that names them does."""
        access = guarded(allow("#"))
        assert not access.subscribe(ANN, "$SYS/#", 0).allowed
        assert not access.receive(ANN, "$SYS/broker/uptime").allowed
        assert access.subscribe(ANN, "#", 0).allowed
        access = guarded(allow("$SYS/broker/#", action="subscribe"))
        assert access.subscribe(ANN, "$SYS/broker/+", 0).allowed
        assert not access.subscribe(ANN, "$SYS/#", 0).allowed


class TestSubscribe:
    """Filters that rules only partly match."""

    def test_an_allow_rule_must_cover_the_filter(self) -> None:
        """A subscription wider than what is allowed is refused."""
        access = guarded(allow("a/b/#"))
        assert access.subscribe(ANN, "a/b/#", 0).allowed
        assert access.subscribe(ANN, "a/b", 0).allowed
        assert not access.subscribe(ANN, "a/#", 0).allowed
        assert not access.subscribe(ANN, "a/+", 0).allowed

    def test_a_partly_denied_filter_is_settled_by_topic(self) -> None:
        """A deny rule within the filter lets the subscription pass and its own topics not."""
        access = guarded(deny("a/secret/#"), allow("a/#"))
        assert access.subscribe(ANN, "a/#", 0).allowed
        assert access.receive(ANN, "a/x").allowed
        assert not access.receive(ANN, "a/secret/x").allowed
        assert not access.subscribe(ANN, "a/secret/+", 0).allowed

    @given(
        topic_filter=FILTERS,
        choice=st.integers(0, len(UNIVERSE)),
        effects=st.lists(st.tuples(st.booleans(), FILTERS), max_size=4),
    )
    def test_receive_never_contradicts_a_refusal(
        self, topic_filter: str, choice: int, effects: list[tuple[bool, str]]
    ) -> None:
        """A deny rule that covers a filter, standing first, denies all topics of the filter."""
        topics = [topic for topic in UNIVERSE if defined_to_match(topic_filter, topic)]
        topic = topics[choice % len(topics)]
        rules = [(allow if allowed else deny)(pattern) for allowed, pattern in effects]
        access = guarded(deny(topic_filter), *rules)
        assert not access.subscribe(ANN, topic_filter, 0).allowed
        assert not access.receive(ANN, topic).allowed

    def test_shared_subscriptions_are_judged_by_their_filter(self) -> None:
        """$share/group/filter needs what the filter needs, whatever the group is called."""
        access = guarded(allow("jobs/#"))
        assert access.subscribe(ANN, "$share/workers/jobs/#", 1).allowed
        assert not access.subscribe(ANN, "$share/jobs/other", 1).allowed
        assert not access.subscribe(ANN, "$share/jobs/#", 1).allowed

    @pytest.mark.parametrize(
        ("given_filter", "judged"),
        [
            ("$share/g/a/b", "a/b"),
            ("$share/g//a", "/a"),
            ("$share/g/$SYS/#", "$SYS/#"),
            ("$share/g", "$share/g"),
            ("$share/g/", "$share/g/"),
            ("$shared/g/a", "$shared/g/a"),
            ("a/$share/g", "a/$share/g"),
        ],
    )
    def test_unshared(self, given_filter: str, judged: str) -> None:
        """`unshared` takes off the group, and leaves alone what is no shared subscription."""
        assert unshared(given_filter) == judged


RULES = st.builds(
    lambda effect, topics, action, users, qos, retain, address: Rule(
        effect=effect,
        topics=tuple(topics),
        action=action,
        users=tuple(users),
        qos=qos,
        retain=retain if action == "publish" else None,
        address=tuple(address),
    ),
    st.sampled_from(["allow", "deny"]),
    st.lists(FILTERS | st.sampled_from(["%c/#", "a/%u", "+/%c"]), min_size=1, max_size=3),
    st.sampled_from(["publish", "subscribe", "all"]),
    st.lists(st.sampled_from(["*", ":anonymous", "a", "ann"]), max_size=2),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, False, True]),
    st.lists(st.sampled_from(["10.0.0.0/8", "unix", "::/0"]), max_size=2),
)
CLIENTS = st.builds(
    Client,
    st.sampled_from(["", "a", "b", "a/b", "$s"]),
    st.sampled_from([None, "a", "ann"]),
    st.sampled_from(["10.1.1.1", "127.0.0.1", "unix", "::1"]),
    st.none(),
)


class TestBind:
    """What a queue or a stream may keep for a client."""

    def _bind(self, topic_filter: str, *rules: Rule) -> bool:
        client = Client("c", "u", "127.0.0.1", None)
        return Access(rules, users_exist=True).bind(client, topic_filter).allowed

    @pytest.mark.parametrize(
        ("pattern", "topic_filter", "overlap"),
        [
            ("a", "a", True),
            ("a", "b", False),
            ("a", "+", True),
            ("a/#", "a", True),
            ("a/#", "+/b/c", True),
            ("a/b", "a", False),
            ("a/b", "a/#", True),
            ("a/+/c", "+/b/c", True),
            ("a/+/c", "+/b/d", False),
            ("+/b", "a/#", True),
            ("#", "a/b", True),
            ("a/b/c", "a/b/+/d", False),
            ("a/b/#", "a/b/+/d", True),
            ("$SYS/#", "#", False),
            ("#", "$SYS/#", False),
            ("$SYS/#", "$SYS/a", True),
        ],
    )
    def test_a_rule_that_denies_a_part_denies_all(
        self, pattern: str, topic_filter: str, overlap: bool
    ) -> None:
        """Before what allows it, whatever a deny rule and the filter both match matters."""
        first = topic_filter.split("/", maxsplit=1)[0]
        everything = Rule(effect="allow", topics=("#", f"{first}/#" if first != "#" else "x"))
        before = Rule(effect="deny", topics=(pattern,))
        assert self._bind(topic_filter, everything)
        assert self._bind(topic_filter, before, everything) == (not overlap)
        assert self._bind(topic_filter, everything, before)

    def test_what_is_not_covered_is_denied(self) -> None:
        """An allow rule has to cover the whole filter; rules about publishing say nothing."""
        assert not self._bind("a/#", Rule(effect="allow", topics=("a/+",)))
        assert not self._bind("a", Rule(effect="allow", topics=("a",), action="publish"))
        assert self._bind("a/b", Rule(effect="allow", topics=("a/+",), action="subscribe"))
        assert not self._bind("a", Rule(effect="allow", topics=("a",), qos=0))
        assert Access.open().bind(Client("c", None, "127.0.0.1", None), "#").allowed


class TestExplain:
    """Explanations."""

    def test_every_rule_says_why(self) -> None:
        """Every rule in order with its reason, then the decision."""
        access = guarded(
            allow("a", action="subscribe"),
            allow("a", users=("bob", ANONYMOUS)),
            allow("a", address=("192.168.0.0/16",)),
            allow("home/%c"),
            allow("b/#", "c"),
            allow("a", qos=0),
            deny("a", action="publish", retain=True),
            allow("a", action="publish"),
            deny("#"),
        )
        client = Client("", "ann", "10.0.0.1", None)
        assert access.explain(client, "publish", "a", qos=1) == [
            "rule 1 (allow subscribe a): no match: it is about subscribe, not publish",
            "rule 2 (allow all a): no match: it is for bob, :anonymous, not user 'ann'",
            "rule 3 (allow all a): no match: it is for 192.168.0.0/16, not 10.0.0.1",
            (
                "rule 4 (allow all home/%c): no match: "
                "home/%c matches nothing because the client identifier is empty"
            ),
            "rule 5 (allow all b/# c): no match: b/#, c does not match a",
            "rule 6 (allow all a): no match: it is about QoS up to 0 only",
            "rule 7 (deny publish a): no match: it is about messages with RETAIN only",
            "rule 8 (allow publish a): matches and decides",
            "rule 9 (deny all #): matches too, but rule 8 decided before",
            "allowed: rule 8 (allow publish a)",
        ]

    def test_a_subscription_and_the_default(self) -> None:
        """For a subscription it is about covering, and the default is a decision too."""
        access = guarded(allow("jobs/a/#"))
        assert access.explain(NOBODY, "subscribe", "$share/g/jobs/#", qos=1) == [
            "rule 1 (allow all jobs/a/#): no match: jobs/a/# does not cover jobs/#",
            "denied: no rule matched: denied by default",
        ]

    @given(
        rules=st.lists(RULES, max_size=5),
        client=CLIENTS,
        action=st.sampled_from(["publish", "subscribe", "receive"]),
        topic=TOPICS,
        topic_filter=FILTERS,
        qos=st.integers(0, 2),
        retain=st.booleans(),
        users_exist=st.booleans(),
    )
    def test_the_explanation_is_what_happens(
        self,
        rules: list[Rule],
        client: Client,
        action: Request,
        topic: str,
        topic_filter: str,
        qos: int,
        retain: bool,
        users_exist: bool,
    ) -> None:
        """The explained decision is the one made, and `publish_mask` agrees with `publish`."""
        access = Access(rules, users_exist)
        asked = topic_filter if action == "subscribe" else topic
        if action == "publish":
            decision = access.publish(client, topic, qos, retain)
            bit = 1 << (qos + 3 * retain)
            assert bool(access.publish_mask(client, topic) & bit) is decision.allowed
        elif action == "subscribe":
            decision = access.subscribe(client, topic_filter, qos)
        else:
            decision = access.receive(client, topic, qos)
        lines = access.explain(client, action, asked, qos, retain)
        assert len(lines) == len(rules) + 1
        assert lines[-1] == f"{'allowed' if decision.allowed else 'denied'}: {decision.rule}"
        deciding = [line for line in lines if line.endswith("matches and decides")]
        assert len(deciding) == (0 if decision.rule.startswith("no rule") else 1)


class TestGuide:
    """The examples of docs/access.md."""

    GUIDE = (Path(__file__).parents[3] / "docs" / "access.md").read_text(encoding="utf-8")

    def access(self) -> Access:
        """The rules of the guide."""
        text = re.findall(r"```toml\n(.*?)```", self.GUIDE, re.DOTALL)[0]
        tables: list[dict[str, Any]] = tomllib.loads(text)["rules"]
        for table in tables:
            for name in {"topics", "users", "address"} & table.keys():
                table[name] = tuple(table[name])
        return guarded(*(Rule(**table) for table in tables))

    def test_the_rules_do_what_their_comments_say(self) -> None:
        """The guide's example gives its operators, devices and readers what it promises them."""
        access = self.access()
        meter = Client("m", "meter-17", "192.0.2.1", None)
        office = Client("o", "eve", "10.20.3.4", None)
        assert may_publish(access, ANN, "commands/x")
        assert access.receive(ANN, "$SYS/broker/uptime").allowed
        assert not may_publish(access, meter, "commands/x")
        assert access.publish_mask(meter, "devices/meter-17/power") == 0b011_011
        assert not may_publish(access, meter, "devices/meter-18/power")
        assert access.subscribe(meter, "devices/meter-17/inbox/#", 2).allowed
        assert not access.subscribe(meter, "devices/meter-17/#", 0).allowed
        assert access.publish_mask(meter, "public/x") == 0b000_111
        assert access.subscribe(office, "#", 1).allowed
        assert access.receive(office, "public/x").allowed
        assert not access.receive(office, "commands/x").allowed
        assert not access.receive(office, "$SYS/broker/uptime").allowed

    def test_the_explanation_is_the_one_shown(self) -> None:
        """The explanation printed in the guide is, line by line, what the node says."""
        shown = self.GUIDE.partition("$ ganglion acl explain")[2].partition("```")[0].splitlines()
        client = Client("", "meter-17", "127.0.0.1", None)
        access = self.access()
        assert shown[1] == f"connect: allowed: {access.connect('meter-17', '127.0.0.1').rule}"
        assert shown[2:] == access.explain(client, "publish", "devices/meter-17/power", 2)
