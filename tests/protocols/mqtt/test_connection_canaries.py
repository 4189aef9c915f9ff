"""Canaries over MQTT: an option of a subscription to a queue, a property of one in a group."""

import pytest

from ganglion.broker.core.canaries import is_for_canaries
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.queue_statistics import QueueStatistics
from ganglion.protocols.mqtt.packets import V311, Suback, Subscribe, SubscriptionRequest
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, Link

SHARE = 0.3
KEYS = [f"order-{number}" for number in range(30)]
FOR_CANARIES = [key.encode() for key in KEYS if is_for_canaries(SHARE, key, 0)]
FOR_OTHERS = [key.encode() for key in KEYS if key.encode() not in FOR_CANARIES]
ALL = [key.encode() for key in KEYS]
JOBS = "$queue/jobs"
GROUP = "$share/g/t"


def user(*properties: tuple[str, str]) -> Properties:
    """User properties."""
    return Properties(user_properties=properties)


def subscribe(client: FakeClient, topic_filter: str, *properties: tuple[str, str]) -> Suback:
    """Subscribe at QoS 1 with user properties."""
    request = SubscriptionRequest(topic_filter, 1)
    client.send(Subscribe(client.next_id(), [request], user(*properties)))
    return client.expect(Suback)


def publish(client: FakeClient, topic: str, qos: int = 1) -> None:
    """A message for each key, which is its payload too."""
    for key in KEYS:
        assert client.complete(topic, key.encode(), qos, properties=user(("x-key", key))) == 0


def statistics(link: Link) -> QueueStatistics:
    """How the queue stands."""
    return link.node.queues.get("jobs").statistics()


class TestQueues:
    """``$queue/{name}`` with the option ``canary``, and ``canary_share`` of the queue."""

    @pytest.fixture
    def link(self) -> Link:
        """With a queue that has a share."""
        link = Link()
        link.node.queues.declare(QueueDefinition(name="jobs", canary_share=SHARE))
        link.tick()
        return link

    def test_the_option_in_the_filter(self, link: Link) -> None:
        """Any client can say it; a flag needs no value."""
        canary, other = link.connect("canary", V311), link.connect("other", V311)
        assert canary.subscribe(f"{JOBS}?canary", 1) == 1
        assert other.subscribe(f"{JOBS}?canary=false", 1) == 1
        assert statistics(link).canaries == 1
        publish(link.connect("producer"), JOBS)
        assert (canary.payloads(), other.payloads()) == (FOR_CANARIES, FOR_OTHERS)

    def test_the_option_as_a_property(self, link: Link) -> None:
        """As all options; and the share can be given beside it, with the right to change it."""
        canary, other = link.connect("canary"), link.connect("other")
        assert subscribe(canary, JOBS, ("canary", "true"), ("canary_share", "1")).reasons == [1]
        other.subscribe(JOBS, 1)
        assert link.node.queues.get("jobs").definition.canary_share == 1
        publish(link.connect("producer"), JOBS)
        assert (canary.payloads(), other.payloads()) == (ALL, [])

    def test_subscribing_again_changes_it(self, link: Link) -> None:
        """In either direction, for what has not been given out."""
        canary, other = link.connect("canary"), link.connect("other")
        canary.subscribe(JOBS, 1)
        other.subscribe(JOBS, 1)
        for option, count in (("?canary", 1), ("", 0), ("?canary=yes", 1)):
            canary.subscribe(JOBS + option, 1)
            assert statistics(link).canaries == count
        publish(link.connect("producer"), JOBS)
        assert (canary.payloads(), other.payloads()) == (FOR_CANARIES, FOR_OTHERS)

    def test_a_session_is_a_canary_when_it_comes_back(self, link: Link) -> None:
        """Its subscription is recorded with its options."""
        canary = link.connect("canary", clean_start=False, expiry_s=600)
        canary.subscribe(f"{JOBS}?canary", 1)
        canary.disconnect()
        link = link.restart()
        link.connect("canary", clean_start=False, expiry_s=600, present=True)
        assert statistics(link).canaries == 1

    def test_a_mistake_is_named(self, link: Link) -> None:
        """It is about the subscription; no consumer comes of it."""
        client = link.connect("client")
        suback = subscribe(client, f"{JOBS}?canary=perhaps")
        assert suback.reasons == [0x83]
        assert suback.properties is not None
        assert "option canary is 'perhaps'" in (suback.properties.reason_string or "")
        assert statistics(link).consumers == 0


class TestGroups:
    """``$share/{group}/{filter}`` with the user property ``canary_share``."""

    @pytest.mark.parametrize("name", ["canary_share", "canary-share"])
    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_a_member_says_the_share(self, name: str, qos: int) -> None:
        """What is published at any QoS is shared by key."""
        link = Link()
        canary, other = link.connect("canary"), link.connect("other")
        assert subscribe(canary, GROUP, (name, str(SHARE))).reasons == [1]
        subscribe(other, GROUP, ("trace", "abc"))
        publish(link.connect("producer"), "t", qos)
        assert (canary.payloads(), other.payloads()) == (FOR_CANARIES, FOR_OTHERS)

    def test_only_members_of_groups_are_canaries(self) -> None:
        """To other subscriptions of the packet the property says nothing."""
        link = Link()
        client = link.connect("client")
        assert subscribe(client, "t", ("canary_share", "much")).reasons == [1]

    def test_a_session_is_a_canary_after_a_restart(self) -> None:
        """Also while it is away: what is for others does not wait for it."""
        link = Link()
        canary = link.connect("canary", clean_start=False, expiry_s=600)
        subscribe(canary, GROUP, ("canary_share", str(SHARE)))
        link = link.restart()
        canary = link.connect("canary", clean_start=False, expiry_s=600, present=True)
        other = link.connect("other")
        other.subscribe(GROUP, 1)
        publish(link.connect("producer"), "t")
        assert (canary.payloads(), other.payloads()) == (FOR_CANARIES, FOR_OTHERS)
        canary.cut()
        publish(link.connect("producer-2"), "t")
        assert other.payloads() == ALL

    def test_what_a_canary_leaves_behind(self) -> None:
        """The others get what it had not acknowledged."""
        link = Link()
        canary, other = link.connect("canary"), link.connect("other")
        subscribe(canary, GROUP, ("canary_share", "1"))
        other.subscribe(GROUP, 1)
        link.connect("producer").complete("t", b"x", 1)
        assert other.payloads() == []
        canary.cut()
        assert other.payloads() == [b"x"]

    @pytest.mark.parametrize("text", ["1.5", "-0.1", "nan", "some", ""])
    def test_a_mistake_is_named(self, text: str) -> None:
        """The reason string says what it may be; there is no subscription."""
        link = Link()
        client = link.connect("client")
        suback = subscribe(client, GROUP, ("canary_share", text))
        assert suback.reasons == [0x83]
        assert suback.properties is not None
        assert "option canary_share is" in (suback.properties.reason_string or "")
        assert link.node.router.subscription_count == 0
