"""Overlapping, no-local and shared subscriptions (MQTT 5.0, 3.8.3.1, 3.3.4 and 4.8.2)."""

from collections import Counter
from typing import Any

import pytest

from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Puback,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


def _identifiers(message: Publish) -> tuple[int, ...]:
    return message.properties.subscription_identifiers if message.properties else ()


class TestOverlapping:
    """Several subscriptions of one session that match the same topic (3.3.4)."""

    @VERSIONS
    def test_one_copy_at_the_highest_qos(self, version: int) -> None:
        """The message comes once, at the highest QoS of those that match (3.3.4-2)."""
        link = Link()
        client = link.connect("client", version)
        for topic_filter, qos in (("a/b", 0), ("a/+", 2), ("#", 1), ("x", 2)):
            client.subscribe(topic_filter, qos)
        link.connect("publisher").complete("a/b", b"x", 2)
        assert [(each.payload, each.qos) for each in client.messages()] == [(b"x", 2)]

    def test_it_has_all_identifiers(self) -> None:
        """The one copy carries the identifiers of all matching subscriptions (3.3.4-3 to -5)."""
        link = Link()
        client = link.connect("client")
        for topic_filter, identifier in (("a/b", 1), ("a/+", 2), ("a/#", 0), ("#", 268_435_455)):
            client.subscribe(topic_filter, 1, identifier=identifier)
        client.subscribe("other", 1, identifier=9)
        link.connect("publisher").complete("a/b", b"x", 1)
        (message,) = client.messages()
        assert sorted(_identifiers(message)) == [1, 2, 268_435_455]

    def test_identifiers_of_queued_messages_outlive_a_restart(self) -> None:
        """A message that waited has the identifiers of when it was published."""
        link = Link()
        client = link.connect("client", expiry_s=60)
        client.subscribe("a/#", 1, identifier=5)
        client.cut()
        link.connect("publisher").complete("a/b", b"x", 1)
        client = link.restart().connect("client", clean_start=False, expiry_s=60)
        (message,) = client.messages()
        assert _identifiers(message) == (5,)

    def test_subscribing_again_replaces(self) -> None:
        """The same filter again replaces QoS, options and identifier (3.8.4-3)."""
        link = Link()
        client = link.connect("client")
        client.subscribe("t", 2, identifier=1)
        client.subscribe("t", 1, identifier=2)
        publisher = link.connect("publisher")
        publisher.complete("t", b"x", 2)
        (message,) = client.messages()
        assert (message.qos, _identifiers(message)) == (1, (2,))
        client.subscribe("t", 0)
        publisher.complete("t", b"x", 2)
        (message,) = client.messages()
        assert (message.qos, _identifiers(message)) == (0, ())
        assert link.node.router.subscription_count == 1

    def test_each_filter_is_answered_in_order(self) -> None:
        """SUBACK and UNSUBACK have one code per filter, in order (3.9.3-1, 3.11.3-1)."""
        client = Link().connect("client")
        filters = ["a", "b/+", "c/#/d", "#", "e+"]
        requests = [SubscriptionRequest(each, number % 3) for number, each in enumerate(filters)]
        client.send(Subscribe(1, requests))
        invalid = Reason.TOPIC_FILTER_INVALID
        assert client.only(Suback).reasons == [0, 1, invalid, 0, invalid]
        client.send(Unsubscribe(2, ["b/+", "nothing", "a", "#/x"]))
        unknown = Reason.NO_SUBSCRIPTION_EXISTED
        assert client.only(Unsuback).reasons == [0, unknown, 0, invalid]

    @VERSIONS
    def test_unsubscribing(self, version: int) -> None:
        """After UNSUBSCRIBE nothing new comes; what is on the way is finished (3.10.4-1 to -3)."""
        link = Link()
        client = link.connect("client", version)
        client.subscribe("t", 2)
        publisher = link.connect("publisher", version)
        publisher.complete("t", b"1", 2)
        message = client.only(Publish)
        client.unsubscribe("t")
        publisher.complete("t", b"2", 2)
        assert client.take() == []
        client.send(Pubrec(message.packet_id))
        client.only(Pubrel)


class TestNoLocal:
    """Messages that a client published itself (3.8.3.1-3)."""

    def test_they_do_not_come_back(self) -> None:
        """With no-local only what others publish arrives, at any QoS (3.8.3-3)."""
        link = Link()
        client, other = link.connect("client"), link.connect("other")
        client.subscribe("t", 2, no_local=True)
        for qos in (0, 1, 2):
            client.complete("t", b"own", qos)
            other.complete("t", b"other", qos)
        assert client.payloads() == [b"other"] * 3

    def test_other_subscriptions_of_the_session_still_match(self) -> None:
        """An overlapping filter without no-local brings them, on its own terms (3.8.3-3, 3.3.4)."""
        link = Link()
        client, other = link.connect("client"), link.connect("other")
        client.subscribe("t/1", 2, no_local=True, identifier=1)
        client.subscribe("t/+", 1, identifier=2)
        for publisher in (client, other):
            publisher.publish("t/1", b"", 2)
        client.expect(Pubrec)
        own, foreign = client.messages()
        assert (own.qos, _identifiers(own)) == (1, (2,))
        assert foreign.qos == 2
        assert sorted(_identifiers(foreign)) == [1, 2]

    def test_the_client_counts_not_the_connection(self) -> None:
        """A client that reconnects is the same: its will does not come back to it either."""
        link = Link()
        client = link.connect("client", expiry_s=60)
        client.subscribe("t", 1, no_local=True)
        client.cut()
        client = link.connect("client", clean_start=False, expiry_s=60)
        client.complete("t", b"x", 1)
        assert client.take() == []

    def test_not_on_shared_subscriptions(self) -> None:
        """No-local on a shared subscription is a protocol error (3.8.3-4)."""
        client = Link().connect("client")
        client.send(Subscribe(1, [SubscriptionRequest("$share/g/t", 0, no_local=True)]))
        assert client.goodbye() == Reason.PROTOCOL_ERROR


class Group:
    """Members of ``$share/g/t`` and somebody who publishes."""

    def __init__(self, count: int, qos: int = 1, *, version: int = V5, **options: Any) -> None:
        self.link = Link()
        self.qos = qos
        self.members = [
            self.link.connect(f"m{number}", version, **options) for number in range(count)
        ]
        for member in self.members:
            assert member.subscribe("$share/g/t", qos) == qos
        self.publisher = self.link.connect("publisher")

    def publish(self, count: int, qos: int | None = None) -> None:
        """Publish so many messages, numbered."""
        for number in range(count):
            self.publisher.complete("t", b"%d" % number, self.qos if qos is None else qos)


def _unacknowledged(client: FakeClient) -> list[bytes]:
    return [each.payload for each in client.take() if isinstance(each, Publish)]


class TestShared:
    """Shared subscriptions (4.8.2)."""

    @VERSIONS
    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_balance(self, version: int, qos: int) -> None:
        """Each message goes to exactly one member, and all members get their share (4.8.2)."""
        group = Group(4, qos, version=version)
        group.publish(40)
        shares = [member.payloads() for member in group.members]
        assert [len(each) for each in shares] == [10] * 4
        counts = Counter(payload for share in shares for payload in share)
        assert counts == {b"%d" % number: 1 for number in range(40)}

    def test_groups_and_plain_subscriptions_are_independent(self) -> None:
        """Every group gets its copy, and a plain subscription of a member another (4.8.2)."""
        link = Link()
        both = link.connect("both")
        both.subscribe("$share/g/t", 1, identifier=1)
        both.subscribe("t", 1, identifier=2)
        other = link.connect("other")
        other.subscribe("$share/h/t", 1)
        other.subscribe("$share/g/other", 1)
        link.connect("publisher").complete("t", b"x", 1)
        assert sorted(_identifiers(each) for each in both.messages()) == [(1,), (2,)]
        assert len(other.messages()) == 1

    def test_wildcards(self) -> None:
        """The filter of a group may have wildcards; `#` finds no ``$`` topics (4.8.2, 4.7.2)."""
        link = Link(sys_interval_s=10)
        client = link.connect("client")
        client.subscribe("$share/g/#", 1)
        link.connect("publisher").complete("a/b", b"x", 1)
        link.advance(10)
        assert client.payloads() == [b"x"]

    def test_a_busy_member_is_passed_over(self) -> None:
        """A member whose window is full gets nothing while another one can take it."""
        group = Group(2, receive_maximum=2)
        slow, fast = group.members
        for _ in range(10):
            group.publish(1)
            fast.messages()
        assert len(_unacknowledged(slow)) == 2
        assert not slow.session.queue

    def test_a_congested_member_is_passed_over(self) -> None:
        """A member that does not read gets nothing while another one can take it."""
        group = Group(2, 0)
        slow, fast = group.members
        slow.endpoint.congested = True
        group.publish(10)
        assert slow.endpoint.dropped == 0
        assert len(fast.messages()) == 10

    def test_an_absent_member_is_passed_over(self) -> None:
        """A stored session without a connection gets nothing while a member is connected."""
        group = Group(2, expiry_s=60)
        away, here = group.members
        away.cut()
        group.publish(5)
        assert len(here.messages()) == 5
        here.cut()
        group.publish(4)
        backlogs = [session.backlog for session in group.link.node.sessions.values()]
        waiting = [0 if backlog is None else backlog.count for backlog in backlogs]
        assert sum(waiting) == 4

    def test_nobody_is_there(self) -> None:
        """A QoS 0 message that no member can take is dropped, and counted."""
        group = Group(1, expiry_s=60)
        group.members[0].cut()
        group.publish(3, qos=0)
        reason = "no member of the shared subscription can take it"
        assert group.link.node.statistics.dropped[reason] == 3

    @pytest.mark.parametrize("expiry_s", [0, 60])
    def test_qos_1_goes_to_another_member(self, expiry_s: int) -> None:
        """What a member has not acknowledged when it goes, another one gets (4.8.2-4)."""
        group = Group(2, 1, expiry_s=expiry_s)
        leaving, staying = group.members
        group.publish(6)
        staying.messages()
        got = [each for each in leaving.take() if isinstance(each, Publish)]
        leaving.send(Puback(got[0].packet_id))
        leaving.cut()
        assert staying.payloads() == [each.payload for each in got[1:]]
        if expiry_s:
            back = group.link.connect("m0", clean_start=False, expiry_s=expiry_s, present=True)
            assert back.take() == []

    def test_qos_1_waits_if_there_is_no_other_member(self) -> None:
        """Alone in its group, a member that comes back gets it again itself."""
        group = Group(1, 1, expiry_s=60)
        group.publish(2)
        group.members[0].cut()
        back = group.link.connect("m0", clean_start=False, expiry_s=60)
        assert [each.dup for each in back.messages()] == [True, True]

    def test_qos_1_goes_to_another_member_when_unsent(self) -> None:
        """What waited behind the window of the leaving member goes to others too."""
        group = Group(1, 1, receive_maximum=1)
        group.publish(5)
        late = group.link.connect("late")
        late.subscribe("$share/g/t", 1)
        group.members[0].cut()
        assert late.payloads() == [b"%d" % number for number in range(5)]

    def test_qos_2_does_not(self) -> None:
        """A QoS 2 message that was begun with a member is finished with it (4.8.2-5)."""
        group = Group(2, 2, expiry_s=60)
        leaving, staying = group.members
        group.publish(4)
        staying.messages()
        assert len(_unacknowledged(leaving)) == 2
        leaving.cut()
        assert staying.take() == []
        back = group.link.connect("m0", clean_start=False, expiry_s=60)
        assert len(back.messages()) == 2

    def test_qos_2_is_not_given_away_at_the_sessions_end(self) -> None:
        """If the session of that member ends, the message is discarded (4.8.2-5)."""
        group = Group(2, 2)
        leaving, staying = group.members
        group.publish(4)
        staying.messages()
        leaving.cut()
        assert staying.take() == []

    def test_across_a_restart(self) -> None:
        """The group of a message that waits is known after a restart: it may still move."""
        link = Link()
        first = link.connect("first", expiry_s=60)
        first.subscribe("$share/g/t/#", 1)
        link.connect("publisher").complete("t/1", b"x", 1)
        link = link.restart()
        second = link.connect("second")
        second.subscribe("$share/g/t/#", 1)
        link.connect("first", clean_start=True).cut()
        assert second.payloads() == [b"x"]

    def test_unsubscribing_leaves_the_group(self) -> None:
        """Who unsubscribes gets nothing more; the last one ends the group (3.10.4-1, 4.8.2)."""
        group = Group(2)
        group.members[0].unsubscribe("$share/g/t")
        group.publish(3)
        assert group.members[0].take() == []
        assert len(group.members[1].messages()) == 3
        assert group.link.node.router.shared_count == 1
        group.members[1].unsubscribe("$share/g/t")
        assert group.link.node.router.shared_count == 0
        assert group.link.node.router.subscription_count == 0

    @pytest.mark.parametrize("topic_filter", ["$share/g", "$share//t", "$share/a+b/t", "$share/g/"])
    def test_a_malformed_one(self, topic_filter: str) -> None:
        """A share name is neither empty nor has wildcards, and a filter follows (4.8.2-1, -2)."""
        client = Link().connect("client")
        client.send(Subscribe(1, [SubscriptionRequest(topic_filter, 0)]))
        assert client.goodbye() == Reason.PROTOCOL_ERROR

    def test_options_of_each_member(self) -> None:
        """Each member gets messages on its own terms: QoS, identifier, retain as published."""
        link = Link()
        members = [link.connect(f"m{number}") for number in range(2)]
        members[0].subscribe("$share/g/t", 0, identifier=4)
        members[1].subscribe("$share/g/t", 2, retain_as_published=True)
        publisher = link.connect("publisher")
        for _ in range(2):
            publisher.complete("t", b"x", 1, retain=True)
        (first,), (second,) = (member.messages() for member in members)
        assert (first.qos, first.retain, _identifiers(first)) == (0, False, (4,))
        assert (second.qos, second.retain, _identifiers(second)) == (1, True, ())

    def test_properties_are_forwarded(self) -> None:
        """A shared subscriber sees what the publisher said, unaltered (3.3.2.3)."""
        group = Group(1)
        about = Properties(content_type="c", user_properties=(("k", "v"), ("k", "w")))
        group.publisher.complete("t", b"x", 1, properties=about)
        (message,) = group.members[0].messages()
        assert message.properties == about
