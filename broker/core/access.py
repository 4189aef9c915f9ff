"""Who may do what: ordered rules, judged once for all protocols, that can explain themselves.

An `Access` is an immutable set of ordered rules. The first rule that matches a request decides
it; when none does, everything is allowed as long as no users exist, and nothing once they do. A
change of users or rules makes a new `Access`, so whoever caches its answers can compare objects.

A rule matches when all of its conditions do:

* **users**: a listed name, ``*`` (everybody, anonymous clients included; the same as an empty
  list) or ``:anonymous`` (clients without a user). A user name cannot contain ``:``, and a client
  that came with such a name all the same is still not the anonymous one.
* **action**: ``publish``, ``subscribe`` (also judges each delivery) or ``all``.
* **topics**: patterns in the syntax of topic filters in which ``%c`` and ``%u`` stand for the
  client identifier and the user name, anywhere in a level. A value that is empty, or contains
  ``+``, ``#`` or ``/``, or would turn the pattern into one for ``$``-topics, makes the pattern
  match nothing: no name that a client chooses can widen a pattern.
* **qos**: the highest QoS that the rule is about. A request with a higher QoS passes it by, so
  'allow up to QoS 1' is an allow rule with ``qos = 1`` and no further rule that allows more.
* **retain**: publications whose RETAIN flag is the same; only for rules about publishing.
* **address**: networks in CIDR notation, or ``unix`` for clients of a Unix socket.

A topic that begins with ``$`` is matched only by a pattern that begins with the same first level
(MQTT-4.7.2-1): ``#`` opens neither ``$SYS`` nor any other ``$``-topic, which needs a rule of its
own. A subscription is judged by its whole filter: a pattern matches when it covers the filter,
that is, when it matches every topic that the filter matches. A pattern that only overlaps with the
filter decides nothing yet; `Access.receive` settles each topic when it is delivered.

How it is fast: for each client the rules about it are picked once, with the names filled in (a
bounded cache); what remains per request is a run over a few strings.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Literal, NamedTuple, TypeAlias

from ganglion import GanglionError

__all__ = [
    "ANONYMOUS",
    "ANYBODY",
    "UNIX",
    "Access",
    "Action",
    "Client",
    "Decision",
    "Effect",
    "InvalidRule",
    "Request",
    "Rule",
    "unshared",
]

ANYBODY: Final = "*"
"""In the users of a rule: every client, with a user or without."""

ANONYMOUS: Final = ":anonymous"
"""In the users of a rule: clients without a user. No user name contains a colon."""

UNIX: Final = "unix"
"""The address of a client that came through a Unix socket, and of rules about such clients."""

Effect: TypeAlias = Literal["allow", "deny"]
Action: TypeAlias = Literal["publish", "subscribe", "all"]
Request: TypeAlias = Literal["publish", "subscribe", "receive"]


class InvalidRule(GanglionError):
    """A rule that cannot mean anything; the message names the field and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks.

    `user` is the authenticated user, or None for an anonymous client. `address` is the text of an
    IP address, or ``unix``. `certificate` is the subject of a verified client certificate; rules
    do not look at it.
    """

    client_id: str
    user: str | None
    address: str
    certificate: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a request. `rule` is a part of a sentence that names what decided it."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, as it is written in the configuration; the module's text gives the meaning.

    Raises `InvalidRule` when a field has a value that it cannot have.
    """

    effect: Effect
    topics: tuple[str, ...]
    action: Action = "all"
    users: tuple[str, ...] = ()
    qos: int | None = None
    retain: bool | None = None
    address: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field, so that a rule that exists also compiles."""
        if self.effect not in ("allow", "deny"):
            raise InvalidRule(f"effect is {self.effect!r}; it must be 'allow' or 'deny'")
        if self.action not in ("publish", "subscribe", "all"):
            raise InvalidRule(
                f"action is {self.action!r}; it must be 'publish', 'subscribe' or 'all'"
            )
        if not self.topics:
            raise InvalidRule("topics is empty; a rule needs at least one topic pattern")
        for pattern in self.topics:
            _check_pattern(pattern)
        for user in self.users:
            if user not in (ANYBODY, ANONYMOUS) and (not user or set(user) & set("+#/:")):
                raise InvalidRule(
                    f"users contains {user!r}, which is neither a possible user name "
                    f"nor {ANYBODY!r} nor {ANONYMOUS!r}"
                )
        if self.qos not in (None, 0, 1, 2):
            raise InvalidRule(f"qos is {self.qos}; it must be 0, 1 or 2")
        if self.retain is not None and self.action != "publish":
            raise InvalidRule(f"retain is only for rules about 'publish', not {self.action!r}")
        for network in self.address:
            _parse_network(network)


def unshared(topic_filter: str) -> str:
    """The filter of a shared subscription without ``$share/group/`` (MQTT 5.0, 4.8.2).

    Any other filter, and one that only begins like a shared subscription, comes back unchanged.
    """
    if topic_filter.startswith("$share/"):
        _, separator, rest = topic_filter[len("$share/") :].partition("/")
        if separator and rest:
            return rest
    return topic_filter


class Access:
    """The rules in force. It never changes; a reload makes a new one.

    `users_exist` switches the default from 'everything is allowed' to 'nothing is'. `anonymous`
    lets clients without a user connect although users exist. `insecure` lets clients without a
    user connect from any address instead of this machine only.
    """

    __slots__ = ("_anonymous", "_default", "_insecure", "_rules", "_users_exist", "_views")

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        users_exist: bool = False,
        anonymous: bool = False,
        insecure: bool = False,
    ) -> None:
        self._rules = tuple(_CompiledRule(number, each) for number, each in enumerate(rules, 1))
        self._users_exist = users_exist
        self._anonymous = anonymous
        self._insecure = insecure
        self._default = _DENIED_BY_DEFAULT if users_exist else _ALLOWED_BY_DEFAULT
        self._views: OrderedDict[Client, _View] = OrderedDict()

    @classmethod
    def open(cls) -> "Access":
        """An access that allows everything to everybody, for embedding and tests."""
        return cls(users_exist=False, anonymous=True, insecure=True)

    @property
    def users_exist(self) -> bool:
        """Whether users exist, so that a request that no rule matches is denied."""
        return self._users_exist

    @property
    def default(self) -> Decision:
        """What a request comes to that no rule matches."""
        return self._default

    def connect(self, user: str | None, address: str) -> Decision:
        """Whether an authenticated user, or an anonymous client (None), may connect from there."""
        parsed = _parse_address(address)
        if parsed is None:
            return Decision(False, f"the address {address!r} is not an IP address")
        if user is not None:
            return _AUTHENTICATED
        if self._users_exist and not self._anonymous:
            return _ANONYMOUS_DENIED
        if self._insecure:
            return _ANONYMOUS_ANYWHERE
        if parsed == UNIX or parsed.is_loopback:
            return _ANONYMOUS_LOCAL
        return _ANONYMOUS_REMOTE

    def publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        """Whether the client may publish to this topic name with this QoS and RETAIN flag."""
        bit = 1 << (qos + 3 * retain)
        for entry in _matching(self._view(client).publish, topic):
            if entry.mask & bit:
                return entry.decision
        return self._default

    def publish_mask(self, client: Client, topic: str) -> int:
        """All answers of `publish` for one topic name at once.

        Bit ``qos + 3 * retain`` is set when that combination is allowed.
        """
        allowed = 0
        undecided = _EVERY_COMBINATION
        for entry in _matching(self._view(client).publish, topic):
            if entry.decision.allowed:
                allowed |= entry.mask & undecided
            undecided &= ~entry.mask
            if not undecided:
                return allowed
        return allowed | undecided if self._default.allowed else allowed

    def subscribe(self, client: Client, topic_filter: str, qos: int) -> Decision:
        """Whether the client may subscribe to this topic filter with this QoS.

        A shared subscription is judged by its filter. When the answer is no, a lower QoS may
        still be allowed: ask again.
        """
        bit = 1 << qos
        for entry in _covering(self._view(client).subscribe, unshared(topic_filter)):
            if entry.mask & bit:
                return entry.decision
        return self._default

    def bind(self, client: Client, topic_filter: str) -> Decision:
        """Whether the client may have a queue or a stream keep what is published to the filter.

        Who reads there later is not judged by the topic of each message. So a rule that denies
        subscribing to any part of the filter denies all of it, before one that allows it.
        """
        levels = topic_filter.split("/")
        for entry in self._view(client).subscribe.all:
            if not entry.mask & _QOS_1:  # at which queues and streams are read
                continue
            fits = _covers if entry.decision.allowed else _overlap
            if _see_each_other(entry.levels, levels) and fits(entry.levels, levels):
                return entry.decision
        return self._default

    def receive(self, client: Client, topic: str, qos: int = 0) -> Decision:
        """Whether a message with this topic name may be delivered to the client at this QoS.

        The rules about 'subscribe', judged for the one topic. It settles what `subscribe` left
        open: a rule that denies a part of what the filter matches.
        """
        bit = 1 << qos
        for entry in _matching(self._view(client).subscribe, topic):
            if entry.mask & bit:
                return entry.decision
        return self._default

    def explain(
        self, client: Client, action: Request, topic: str, qos: int = 0, retain: bool = False
    ) -> list[str]:
        """Every rule in order and why it matches or not, then the decision: lines for a person.

        `topic` is a topic filter for 'subscribe' and a topic name otherwise. `retain` counts only
        for 'publish'.
        """
        retain = retain and action == "publish"
        lines: list[str] = []
        decided: str | None = None
        decision = self._default
        for each in self._rules:
            mismatch, found = each.judge(client, action, topic, qos, retain)
            if found is None:
                lines.append(f"{each.text}: no match: {mismatch}")
            elif decided is None:
                decided, decision = f"rule {each.number}", found
                lines.append(f"{each.text}: matches and decides")
            else:
                lines.append(f"{each.text}: matches too, but {decided} decided before")
        lines.append(f"{'allowed' if decision.allowed else 'denied'}: {decision.rule}")
        return lines

    def _view(self, client: Client) -> "_View":
        view = self._views.get(client)
        if view is None:
            address = _parse_address(client.address)
            view = _View(
                [
                    each
                    for each in self._rules
                    if each.is_about_user(client.user) and each.is_about_address(address)
                ],
                client,
            )
            self._views[client] = view
            if len(self._views) > _VIEWS_MAX:
                self._views.popitem(last=False)
        return view


_VIEWS_MAX = 16_384
"""Clients whose rules are kept picked out; each costs about a kilobyte, a new one some ten
microseconds. Past it the oldest is forgotten and made again when it is needed."""

_EVERY_COMBINATION = 0b111_111
_QOS_1 = 0b000_010
_ALLOWED_BY_DEFAULT = Decision(True, "no rule matched: allowed because no users exist")
_DENIED_BY_DEFAULT = Decision(False, "no rule matched: denied by default")
_AUTHENTICATED = Decision(True, "authenticated users may connect")
_ANONYMOUS_LOCAL = Decision(True, "anonymous clients may connect from this machine")
_ANONYMOUS_ANYWHERE = Decision(True, "anonymous clients may connect from anywhere (insecure)")
_ANONYMOUS_REMOTE = Decision(False, "anonymous clients may connect from this machine only")
_ANONYMOUS_DENIED = Decision(False, "anonymous clients may not connect once users exist")

_Network: TypeAlias = IPv4Network | IPv6Network | Literal["unix"]
_Address: TypeAlias = IPv4Address | IPv6Address | Literal["unix"]
_Levels: TypeAlias = tuple[str, ...]

_PLACEHOLDER = re.compile("(%[cu])")


# How a pattern is compared; the two cheap kinds need no levels.
_EXACT: Final = 0  # no wildcard: one string comparison
_SUBTREE: Final = 1  # the only wildcard is a final '#': a prefix and a string comparison
_BY_LEVEL: Final = 2  # anything else


class _Entry(NamedTuple):
    """One pattern of one rule, for one client or for all."""

    kind: int
    exact: str  # of a subtree the parent level, which '#' matches as well (MQTT 4.7.1.2)
    prefix: str  # the text before the first wildcard, with which every topic but `exact` begins
    levels: _Levels
    mask: int  # of bits qos + 3 * retain
    decision: Decision


class _View:
    """The rules about one client, per action."""

    __slots__ = ("publish", "subscribe")

    def __init__(self, rules: Iterable["_CompiledRule"], client: Client) -> None:
        publish: list[_Entry] = []
        subscribe: list[_Entry] = []
        for each in rules:
            entries = list(each.entries(client))
            if each.rule.action != "subscribe":
                publish.extend(entries)
            if each.rule.action != "publish":
                subscribe.extend(entries)
        self.publish = _Entries(publish)
        self.subscribe = _Entries(subscribe)


class _Entries:
    """Entries in order, found by the first level of what they are asked about.

    Most rules are about one first level, so that a request meets few of them: an answer out of 20
    rules takes 1 to 3 microseconds, where a run over all of them takes 5.
    """

    __slots__ = ("_by_level", "_wildcards", "all")

    def __init__(self, entries: Iterable[_Entry]) -> None:
        self.all = tuple(entries)
        wildcards: list[_Entry] = []
        by_level: dict[str, list[_Entry]] = {}
        for entry in self.all:
            level = entry.levels[0]
            if level in ("+", "#"):
                wildcards.append(entry)
                for name, found in by_level.items():
                    if not name.startswith("$"):
                        found.append(entry)
            elif level in by_level:
                by_level[level].append(entry)
            else:
                by_level[level] = [entry] if level.startswith("$") else [*wildcards, entry]
        self._by_level = by_level
        self._wildcards = wildcards

    def about(self, topic: str) -> list[_Entry]:
        """The entries that can match a topic name, or cover a topic filter, in order."""
        level = topic.partition("/")[0]
        found = self._by_level.get(level)
        if found is not None:
            return found
        return [] if level.startswith("$") else self._wildcards


class _Pattern:
    """A topic pattern of a rule: an entry when it is the same for all clients, or its pieces."""

    __slots__ = ("_decision", "_entry", "_mask", "_pieces")

    def __init__(self, text: str, mask: int, decision: Decision) -> None:
        self._mask = mask
        self._decision = decision
        # Text and placeholders alternate. They are filled in in one pass, so that a '%c' in a
        # user name stays what it is.
        self._pieces = _PLACEHOLDER.split(text)
        self._entry = _entry(text, mask, decision) if len(self._pieces) == 1 else None

    def entry(self, client: Client) -> _Entry | str:
        """The entry for this client, or the reason why the pattern matches nothing for it."""
        if self._entry is not None:
            return self._entry
        filled = self._pieces.copy()
        for index in range(1, len(filled), 2):
            if filled[index] == "%c":
                name, value = "client identifier", client.client_id
            else:
                name, value = "user name", client.user or ""
            if not value:
                return f"the {name} is empty"
            if "/" in value or "+" in value or "#" in value:
                return f"the {name} {value!r} contains '+', '#' or '/'"
            filled[index] = value
        text = "".join(filled)
        if text.startswith("$") and not self._pieces[0].startswith("$"):
            return f"it must not become the $-pattern {text!r}"
        return _entry(text, self._mask, self._decision)


class _CompiledRule:
    """A rule with everything parsed that does not depend on the client."""

    __slots__ = ("_anybody", "_mask", "_names", "_networks", "_patterns", "number", "rule", "text")

    def __init__(self, number: int, rule: Rule) -> None:
        self.number = number
        self.rule = rule
        self.text = f"rule {number} ({rule.effect} {rule.action} {' '.join(rule.topics)})"
        self._anybody = not rule.users or ANYBODY in rule.users
        self._names = frozenset(rule.users) - {ANYBODY, ANONYMOUS}
        self._networks = tuple(_parse_network(each) for each in rule.address)
        self._mask = sum(
            1 << (qos + 3 * retain)
            for qos in range(3 if rule.qos is None else rule.qos + 1)
            for retain in (False, True)
            if rule.retain in (None, retain)
        )
        allowed = rule.effect == "allow"
        self._patterns = tuple(
            _Pattern(
                each,
                self._mask,
                Decision(allowed, f"rule {number} ({rule.effect} {rule.action} {each})"),
            )
            for each in rule.topics
        )

    def is_about_user(self, user: str | None) -> bool:
        if self._anybody:
            return True
        return ANONYMOUS in self.rule.users if user is None else user in self._names

    def is_about_address(self, address: _Address | None) -> bool:
        if not self._networks:
            return True
        if address is None or address == UNIX:
            return address in self._networks
        return any(not isinstance(each, str) and address in each for each in self._networks)

    def entries(self, client: Client) -> Iterator[_Entry]:
        for pattern in self._patterns:
            entry = pattern.entry(client)
            if not isinstance(entry, str):
                yield entry

    def judge(
        self, client: Client, action: Request, topic: str, qos: int, retain: bool
    ) -> tuple[str, Decision | None]:
        """What the rule decides about a request, or None with the reason why it does not match."""
        rule = self.rule
        if rule.action not in ("all", "publish" if action == "publish" else "subscribe"):
            return f"it is about {rule.action}, not {action}", None
        if not self.is_about_user(client.user):
            who = "an anonymous client" if client.user is None else f"user {client.user!r}"
            return f"it is for {', '.join(rule.users)}, not {who}", None
        if not self.is_about_address(_parse_address(client.address)):
            return f"it is for {', '.join(rule.address)}, not {client.address}", None
        entries: list[_Entry] = []
        reasons: list[str] = []
        for text, pattern in zip(rule.topics, self._patterns, strict=True):
            entry = pattern.entry(client)
            if isinstance(entry, str):
                reasons.append(f"{text} matches nothing because {entry}")
            else:
                entries.append(entry)
        if action == "subscribe":
            topic = unshared(topic)
            hit = next(_covering(_Entries(entries), topic), None)
        else:
            hit = next(_matching(_Entries(entries), topic), None)
        if hit is None:
            if entries:
                verb = "cover" if action == "subscribe" else "match"
                shown = ", ".join("/".join(each.levels) for each in entries)
                reasons.append(f"{shown} does not {verb} {topic}")
            return "; ".join(reasons), None
        if hit.mask & 1 << (qos + 3 * retain):
            return "", hit.decision
        if rule.qos is not None and qos > rule.qos:
            return f"it is about QoS up to {rule.qos} only", None
        return f"it is about messages {'with' if rule.retain else 'without'} RETAIN only", None


def _matching(entries: _Entries, topic: str) -> Iterator[_Entry]:
    """The entries that match a topic name, in order."""
    levels: list[str] | None = None
    for entry in entries.about(topic):
        kind, exact, prefix, pattern, _, _ = entry
        if kind == _EXACT:
            if topic == exact:
                yield entry
        elif kind == _SUBTREE:
            if topic.startswith(prefix) or topic == exact:
                yield entry
        elif topic.startswith(prefix):
            if levels is None:
                levels = topic.split("/")
            if _matches(pattern, levels):
                yield entry


def _covering(entries: _Entries, topic_filter: str) -> Iterator[_Entry]:
    """The entries that cover a topic filter, in order."""
    levels = topic_filter.split("/")
    for entry in entries.about(topic_filter):
        if _covers(entry.levels, levels):
            yield entry


def _matches(pattern: _Levels, topic: list[str]) -> bool:
    """Whether a pattern matches a topic name, apart from the rule about '$' (MQTT 4.7.1)."""
    if pattern[-1] == "#":
        pattern = pattern[:-1]
        if len(topic) < len(pattern):
            return False
    elif len(topic) != len(pattern):
        return False
    # zip ends with the pattern: '#' stands for anything more.
    return all(wanted in ("+", level) for wanted, level in zip(pattern, topic, strict=False))


def _covers(pattern: _Levels, topic_filter: list[str]) -> bool:
    """Whether a pattern matches every topic that a filter matches, apart from the rule about '$'.

    A filter's final '#' also matches its parent level, so nothing but a '#' in the same place
    covers it; only '#' and '/#' have no parent that is a topic, and are covered also by a pattern
    with a '+' before its '#'.
    """
    if topic_filter == ["#"]:
        return pattern in (("#",), ("+", "#"))
    if topic_filter == ["", "#"] and pattern[1:] == ("+", "#"):
        return pattern[0] in ("", "+")
    for index, wanted in enumerate(pattern):
        if wanted == "#":
            return True
        if index == len(topic_filter):
            return False
        level = topic_filter[index]
        if level == "#" or wanted not in ("+", level):
            return False
    return len(pattern) == len(topic_filter)


def _overlap(pattern: _Levels, topic_filter: list[str]) -> bool:
    """Whether there are topics that a pattern and a filter both match, apart from '$'."""
    for one, other in zip(pattern, topic_filter, strict=False):
        if "#" in (one, other):
            return True
        if one != other and "+" not in (one, other):
            return False
    common = min(len(pattern), len(topic_filter))
    rest = [*pattern[common:], *topic_filter[common:]]
    return not rest or rest == ["#"]  # which matches its parent too (4.7.1.2)


def _see_each_other(pattern: _Levels, topic_filter: list[str]) -> bool:
    """False where one begins with a wildcard and the other with '$' (MQTT-4.7.2-1)."""
    first, second = pattern[0], topic_filter[0]
    return not (
        (first.startswith("$") and second in ("+", "#"))
        or (second.startswith("$") and first in ("+", "#"))
    )


def _entry(text: str, mask: int, decision: Decision) -> _Entry:
    levels = tuple(text.split("/"))
    if "+" in levels:
        return _Entry(_BY_LEVEL, text, text[: text.index("+")], levels, mask, decision)
    if levels[-1] == "#":
        # A bare '#' has no parent: every topic begins with its empty prefix.
        prefix = text[:-1]
        return _Entry(_SUBTREE, prefix.removesuffix("/"), prefix, levels, mask, decision)
    return _Entry(_EXACT, text, text, levels, mask, decision)


def _check_pattern(pattern: str) -> None:
    if not pattern:
        raise InvalidRule("topics contains an empty pattern")
    if "\0" in pattern:
        raise InvalidRule(f"topics contains {pattern!r}: a topic has no NUL character")
    levels = pattern.split("/")
    if levels[0] == "$share":
        raise InvalidRule(
            f"topics contains {pattern!r}: a shared subscription is judged by its filter; "
            "leave out $share and the group"
        )
    for index, level in enumerate(levels):
        if "+" in level and level != "+":
            raise InvalidRule(f"topics contains {pattern!r}: '+' must be a whole level")
        if "#" in level and (level != "#" or index != len(levels) - 1):
            raise InvalidRule(f"topics contains {pattern!r}: '#' must be the whole last level")


def _parse_network(text: str) -> _Network:
    if text == UNIX:
        return UNIX
    try:
        network = ip_network(text)
    except ValueError as error:
        raise InvalidRule(f"address contains {text!r}: {error}") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise InvalidRule(f"address contains {text!r}: write IPv4 networks as IPv4")
    return network


def _parse_address(text: str) -> _Address | None:
    """The address, an IPv4 address mapped into IPv6 as IPv4; None when it is not one."""
    if text == UNIX:
        return UNIX
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
