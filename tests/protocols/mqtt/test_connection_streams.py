"""Streams over MQTT: ``$stream/{name}`` is appended to by PUBLISH and followed by SUBSCRIBE."""

from typing import Any

import pytest

from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.stream_groups import GroupStatistics
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Puback,
    Publish,
    Pubrec,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import (
    START_S,
    UNIX_TIME_OFFSET_S,
    FakeClient,
    HeldStore,
    Link,
)

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
LOG = "$stream/log"
NOW_S = UNIX_TIME_OFFSET_S + START_S


def append(link: Link, *payloads: bytes) -> None:
    """Append records by publishing, each in a commit of its own."""
    producer = link.connect("producer")
    for payload in payloads:
        assert producer.complete(LOG, payload, 1) == 0


def numbered(first: int, last: int) -> list[bytes]:
    """Payloads that say which record they are."""
    return [b"%d" % number for number in range(first, last + 1)]


def taken(client: FakeClient) -> list[tuple[int, bytes]]:
    """Packet identifier and payload of what has come; nothing is acknowledged."""
    packets = client.take()
    assert all(isinstance(each, Publish) for each in packets), packets
    return [(each.packet_id, each.payload) for each in packets if isinstance(each, Publish)]


def follow(client: FakeClient, topic_filter: str = LOG, **options: str) -> Suback:
    """Subscribe at QoS 1 with these user properties, and take the answer."""
    about = Properties(user_properties=tuple(options.items())) if options else None
    client.send(Subscribe(client.next_id(), [SubscriptionRequest(topic_filter, 1)], about))
    return client.expect(Suback)


def groups(link: Link) -> tuple[GroupStatistics, ...]:
    """The groups of the stream."""
    return link.node.streams.get("log").statistics().groups


class TestAppending:
    """What is published is a record."""

    @VERSIONS
    def test_publications_are_records(self, version: int) -> None:
        """Messages of every QoS are appended in order, and acknowledged after the commit."""
        link = Link()
        producer = link.connect("producer", version)
        for qos in (0, 1, 2):
            assert producer.complete(LOG, b"%d" % qos, qos) == 0
        records = link.node.streams.get("log").read()
        assert [(each.sequence, each.payload) for each in records] == [
            (1, b"0"),
            (2, b"1"),
            (3, b"2"),
        ]

    def test_a_topic_is_bound(self) -> None:
        """What is published to a bound filter is appended, with its topic and properties."""
        link = Link()
        follower = link.connect("follower")
        assert follow(follower, f"{LOG}/plant/#").reasons == [1]
        about = Properties(content_type="text/plain", user_properties=(("x-key", "a"),))
        link.connect("producer").complete("plant/a", b"21", 1, properties=about)
        (message,) = follower.messages()
        assert (message.topic, message.payload) == ("plant/a", b"21")
        assert message.properties is not None
        assert message.properties.content_type == "text/plain"
        assert dict(message.properties.user_properties) == {
            "x-key": "a",
            "x-sequence": "1",
            "x-time": f"{NOW_S:.3f}",
        }

    def test_the_node_commits_first(self) -> None:
        """PUBACK, and delivery to those who follow live, come after the commit."""
        store = HeldStore()
        link = Link(store=store)
        follower, producer = link.open(), link.open()
        follower.send(Connect(V5, "follower"))
        producer.send(Connect(V5, "producer"))
        follower.expect(Connack)
        producer.expect(Connack)
        follower.send(Subscribe(1, [SubscriptionRequest(LOG, 1)]))
        assert follower.take() == []
        store.release()
        link.tick()
        follower.only(Suback)
        for number in (2, 3):  # the slow path, the fast one
            producer.send(Publish(LOG, b"x", 1, packet_id=number))
            assert (producer.take(), follower.take()) == ([], [])
            store.release()
            link.tick()
            assert producer.only(Puback).packet_id == number
            assert follower.only(Publish).payload == b"x"

    def test_qos_2_is_exactly_once(self) -> None:
        """A QoS 2 publication that is sent again after a crash is one record."""
        link = Link()
        producer = link.connect("producer", expiry_s=600)
        producer.send(Publish(LOG, b"x", 2, packet_id=5))
        link = link.restart()
        producer = link.connect("producer", clean_start=False, expiry_s=600, present=True)
        producer.send(Publish(LOG, b"x", 2, dup=True, packet_id=5))
        producer.expect(Pubrec)
        assert link.node.streams.get("log").last == 1

    def test_nothing_is_retained(self) -> None:
        """A retained publication to a stream is refused."""
        link = Link()
        assert link.connect("c").complete(LOG, b"x", 1, retain=True) == Reason.NOT_AUTHORIZED
        assert len(link.node.streams) == 0

    def test_too_large(self) -> None:
        """A payload over max_record_bytes is refused with 0x97 and the limit."""
        link = Link()
        link.node.streams.declare(StreamDefinition(name="log", max_record_bytes=10))
        producer = link.connect("producer")
        producer.publish(LOG, bytes(11), 1)
        puback = producer.expect(Puback)
        assert puback.reason == Reason.QUOTA_EXCEEDED
        assert puback.properties is not None
        assert "max_record_bytes" in (puback.properties.reason_string or "")
        assert producer.complete(LOG, bytes(10), 1) == Reason.SUCCESS

    @pytest.mark.parametrize("qos", [1, 2])
    def test_too_large_of_mqtt_3(self, qos: int) -> None:
        """It is acknowledged, for waiting is in vain: counted and logged, and others get it."""
        link = Link()
        link.node.streams.declare(
            StreamDefinition(name="log", bindings=("t",), max_record_bytes=10)
        )
        watcher = link.connect("watcher")
        watcher.subscribe("t", 1)
        link.connect("producer", V311).complete("t", bytes(11), qos)
        assert watcher.payloads() == [bytes(11)]
        assert link.node.streams.get("log").last == 0
        assert link.node.statistics.dropped == {"stream: record too large": 1}
        assert "max_record_bytes of stream log, 10" in link.log.refusals()[-1]["rule"]


class TestWhereToBegin:
    """after and from."""

    @pytest.mark.parametrize(
        ("options", "first"),
        [
            ({}, 7),
            ({"from": "now"}, 7),
            ({"from": "first"}, 1),
            ({"after": "0"}, 1),
            ({"after": "4"}, 5),
            ({"after": "6"}, 7),
            ({"after": "1000"}, 7),
            ({"from": f"{NOW_S + 20:.0f}"}, 3),
            ({"from": f"{NOW_S + 20.5}"}, 4),
            ({"from": "2023-11-14T22:30:20Z"}, 3),
            ({"from": "2023-11-14T22:30:20"}, 3),
            ({"from": "2023-11-15T00:30:20+02:00"}, 3),
            ({"from": "0"}, 1),
            ({"from": "4000000000"}, 7),
            ({"from": "first", "after": "5"}, 6),
        ],
    )
    def test_user_properties_say_where(self, options: dict[str, str], first: int) -> None:
        """From behind a sequence, from a time on, from the first, or from what comes next."""
        assert NOW_S + 20 == 1_700_001_020  # 2023-11-14T22:30:20Z
        link = Link()
        for number in range(1, 7):  # record n came at NOW_S + 10 * (n - 1)
            append(link, b"%d" % number)
            link.advance(10)
        follower = link.connect("follower", receive_maximum=100)
        assert follow(follower, **options).reasons == [1]
        append(link, b"7")
        assert follower.payloads() == numbered(first, 7)

    @VERSIONS
    def test_the_filter_says_where(self, version: int) -> None:
        """The same options stand in a filter, for clients of every version."""
        link = Link()
        append(link, *numbered(1, 4))
        follower = link.connect("follower", version)
        assert follower.subscribe(f"{LOG}?after=2", 1) == 1
        assert follower.payloads() == [b"3", b"4"]
        other = link.connect("other", version)
        assert other.subscribe(f"{LOG}?from=2023-11-14T23:00:00%2B02:00", 0) == 0
        assert other.payloads() == numbered(1, 4)

    @pytest.mark.parametrize(
        ("topic_filter", "reason", "text"),
        [
            ("$stream/", 0x8F, "a stream needs a name"),
            ("$stream/a?after=x", 0x83, "option after is 'x'"),
            ("$stream/a?after=-1", 0x83, "option after is '-1'"),
            ("$stream/a?after=12345678901234567890", 0x83, "option after is"),
            ("$stream/a?from=yesterday", 0x83, "option from is 'yesterday'"),
            ("$stream/a?from=inf", 0x83, "option from is 'inf'"),
            ("$stream/a?credit=0", 0x83, "option credit is '0'"),
            ("$stream/a?max_age=5", 0x83, "no option 'max_age'"),
            ("$stream/a?max_records=x", 0x83, "option max_records is 'x'"),
            ("$share/a?b/$stream/a", 0x8F, "'a?b' cannot be the name of a group"),
            ("$share/session-1/$stream/a", 0x8F, "it is that of a session"),
        ],
    )
    def test_a_mistake_is_named(self, topic_filter: str, reason: int, text: str) -> None:
        """SUBACK refuses with the option and what it may be; no stream is made."""
        link = Link()
        suback = follow(link.connect("client"), topic_filter)
        assert suback.reasons == [reason]
        assert suback.properties is not None
        assert text in (suback.properties.reason_string or "")
        assert len(link.node.streams) == 0

    def test_options_of_a_stream(self) -> None:
        """Every option of a stream can be given in the filter, or as a user property."""
        link = Link()
        options = "max_age_s=60&max_bytes=9&max_records=8&compact&tombstone_keep_s=5"
        suback = follow(
            link.connect("c"), f"{LOG}?{options}&after=0/t/#", keyed="yes", max_record_bytes="7"
        )
        assert suback.reasons == [1]
        assert link.node.streams.get("log").definition == StreamDefinition(
            name="log",
            bindings=("t/#",),
            max_age_s=60.0,
            max_bytes=9,
            max_records=8,
            keyed=True,
            compact=True,
            tombstone_keep_s=5.0,
            max_record_bytes=7,
        )


class TestThePace:
    """As fast as the reader."""

    @pytest.mark.parametrize("credit", ["receive maximum", "option"])
    def test_credit(self, credit: str) -> None:
        """No more are on the way than the client wants; they come in order, without a gap."""
        link = Link()
        append(link, *numbered(1, 40))
        if credit == "option":
            follower = link.connect("follower")
            follow(follower, f"{LOG}?credit=3&after=0")
        else:
            follower = link.connect("follower", receive_maximum=3)
            follow(follower, after="0")
        came: list[bytes] = []
        while given := taken(follower):
            assert len(given) <= 3
            came += [payload for _, payload in given]
            if len(came) == 3:
                append(link, *numbered(41, 50))
            follower.send(*[Puback(packet_id) for packet_id, _ in given])
        assert came == numbered(1, 50)

    def test_qos_0_waits_for_a_slow_reader(self) -> None:
        """Without acknowledgements the connection sets the pace: nothing is dropped."""
        link = Link()
        append(link, *numbered(1, 150))
        follower = link.connect("follower")
        assert follower.subscribe(f"{LOG}?after=0", 0) == 0
        assert len(taken(follower)) == 150
        follower.endpoint.congested = True
        append(link, *numbered(151, 400))
        assert follower.take() == []
        follower.relieve()
        assert [payload for _, payload in taken(follower)] == numbered(151, 400)
        assert follower.endpoint.dropped == 0

    def test_large_records_all_come(self) -> None:
        """More bytes than are read at a time keep coming, with QoS 0 too."""
        link = Link()
        append(link, *[bytes(400_000) for _ in range(8)])
        follower = link.connect("follower")
        follower.subscribe(f"{LOG}?after=0", 0)
        assert len(taken(follower)) == 8

    def test_what_is_too_large_for_the_client_is_left_out(self) -> None:
        """A record over its Maximum Packet Size is skipped and counted; the others come."""
        link = Link()
        append(link, b"1", bytes(500), b"3", *[bytes(500) for _ in range(300)], b"304")
        follower = link.connect("follower", maximum_packet_size=200)
        follow(follower, after="0")
        came = follower.payloads()
        for _ in range(10):
            link.advance(0.1)
            came += follower.payloads()
        assert came == [b"1", b"3", b"304"]
        drops = link.node.statistics.dropped["larger than the client's Maximum Packet Size"]
        assert drops == 301


class TestPositions:
    """Who has read how far."""

    @VERSIONS
    def test_a_durable_session_goes_on(self, version: int) -> None:
        """After a restart it continues behind what it has acknowledged, without SUBSCRIBE."""
        link = Link()
        append(link, *numbered(1, 5))
        durable: dict[str, Any] = {"expiry_s": 600} if version == V5 else {}
        follower = link.connect("follower", version, clean_start=False, **durable)
        follower.subscribe(f"{LOG}?from=first&credit=4", 1)
        given = taken(follower)
        assert len(given) == 4
        follower.send(Puback(given[0][0]), Puback(given[1][0]))
        link = link.restart()
        append(link, b"6")
        follower = link.connect("follower", version, clean_start=False, present=True, **durable)
        assert [payload for _, payload in taken(follower)] == numbered(3, 6)

    def test_a_crash_after_suback_loses_nothing(self) -> None:
        """The position is recorded with the subscription: what comes after SUBACK will come."""
        store = HeldStore()
        link = Link(store=store)
        follower = link.open()
        follower.send(Connect(V5, "follower", properties=Properties(session_expiry_interval=600)))
        store.release()
        link.tick()
        follower.send(Subscribe(1, [SubscriptionRequest(LOG, 1)]))
        store.release(1)
        follower.expect(Suback)
        link = link.restart()
        append(link, b"1")
        follower = link.connect("follower", clean_start=False, expiry_s=600, present=True)
        assert follower.payloads() == [b"1"]

    def test_subscribing_again_goes_on(self) -> None:
        """The same SUBSCRIBE at every connect changes nothing; another place to begin does."""
        link = Link()
        append(link, *numbered(1, 3))
        follower = link.connect("follower", expiry_s=600)
        follow(follower, **{"from": "first"})
        assert follower.payloads() == numbered(1, 3)
        follower.cut()
        append(link, b"4")
        follower = link.connect("follower", clean_start=False, expiry_s=600)
        assert [payload for _, payload in taken(follower)] == [b"4"]
        follow(follower, **{"from": "first"})
        assert follower.take() == []
        follow(follower, after="1")
        assert [payload for _, payload in taken(follower)] == numbered(2, 4)

    def test_unsubscribing_forgets_the_position(self) -> None:
        """Who subscribes again after UNSUBSCRIBE begins where it says."""
        link = Link()
        append(link, *numbered(1, 2))
        follower = link.connect("follower", expiry_s=600)
        follow(follower, after="0")
        assert follower.payloads() == numbered(1, 2)
        assert len(groups(link)) == 1
        follower.unsubscribe(LOG)
        assert groups(link) == ()
        follow(follower, after="0")
        assert follower.payloads() == numbered(1, 2)

    def test_the_end_of_a_session_forgets_the_position(self) -> None:
        """Nothing of a session that has expired is left at the stream."""
        link = Link()
        follower = link.connect("follower", expiry_s=60)
        follow(follower, after="0")
        follower.cut()
        assert len(groups(link)) == 1
        link.advance(61)
        assert groups(link) == ()

    def test_a_transient_session_has_no_position(self) -> None:
        """A session that ends with its connection leaves nothing behind."""
        link = Link()
        follower = link.connect("follower")
        follow(follower, after="0")
        assert groups(link) == ()
        follower.cut()
        assert link.node.streams.get("log").statistics().followers == 0

    def test_a_stream_is_deleted(self) -> None:
        """Its followers stay connected, and read on when there is a stream of this name again."""
        link = Link()
        append(link, *numbered(1, 3))
        followers = [link.connect("transient"), link.connect("durable", expiry_s=600)]
        for follower in followers:
            follow(follower, after="0")
            assert follower.payloads() == numbered(1, 3)
        link.node.streams.delete("log")
        link.tick()
        append(link, b"new")
        for follower in followers:
            assert follower.payloads() == [b"new"]


class TestGroups:
    """``$share/{group}/$stream/{name}``."""

    def test_members_share(self) -> None:
        """Each record goes to one member of a group; another group gets all of them."""
        link = Link()
        append(link, *numbered(1, 6))
        members = [link.connect(name, receive_maximum=2) for name in ("a", "b")]
        for member in members:
            assert follow(member, f"$share/one/{LOG}", after="0").reasons == [1]
        other = link.connect("other")
        follow(other, f"$share/two/{LOG}?after=4")
        assert [len(taken(member)) for member in members] == [2, 2]
        assert other.payloads() == numbered(5, 6)
        assert {(each.name, each.position) for each in groups(link)} == {("one", 0), ("two", 6)}

    def test_the_position_outlives_members_and_node(self) -> None:
        """Members come and go: the group reads on where it was, wherever a new one would begin."""
        link = Link()
        append(link, *numbered(1, 4))
        member = link.connect("member", receive_maximum=3)
        follow(member, f"$share/one/{LOG}", after="0")
        given = taken(member)
        member.send(Puback(given[0][0]))
        member.cut()
        link = link.restart()
        member = link.connect("another")
        follow(member, f"$share/one/{LOG}", after="0")
        assert [payload for _, payload in taken(member)] == numbered(2, 4)

    def test_leaving_gives_to_others(self) -> None:
        """What a member had and did not acknowledge goes to another one, in order."""
        link = Link()
        append(link, *numbered(1, 4))
        one, other = link.connect("one", receive_maximum=2), link.connect("other")
        follow(one, f"$share/g/{LOG}", after="0")
        given = taken(one)
        follow(other, f"$share/g/{LOG}")
        assert other.payloads() == numbered(3, 4)
        one.send(Puback(given[0][0]))
        one.disconnect()
        assert other.payloads() == [b"2"]

    def test_unsubscribing_lets_it_finish(self) -> None:
        """A member that unsubscribes may still acknowledge what it has."""
        link = Link()
        append(link, *numbered(1, 2))
        one, other = link.connect("one", receive_maximum=2), link.connect("other")
        follow(one, f"$share/g/{LOG}", after="0")
        given = taken(one)
        follow(other, f"$share/g/{LOG}")
        one.unsubscribe(f"$share/g/{LOG}")
        append(link, b"3")
        assert other.payloads() == [b"3"]
        one.send(*[Puback(packet_id) for packet_id, _ in given])
        (group,) = groups(link)
        assert (group.position, group.members) == (3, 1)

    def test_a_refusal_skips(self) -> None:
        """A record that a reader refuses is as good as read: streams do not repeat."""
        link = Link()
        append(link, *numbered(1, 2))
        member = link.connect("member", receive_maximum=1)
        follow(member, f"$share/g/{LOG}", after="0")
        ((packet_id, _),) = taken(member)
        member.send(Puback(packet_id, Reason.UNSPECIFIED_ERROR))
        assert [payload for _, payload in taken(member)] == [b"2"]

    def test_one_session_in_several_ways(self) -> None:
        """A session may read a stream by itself and in groups at the same time."""
        link = Link()
        client = link.connect("client", expiry_s=600)
        for topic_filter in (LOG, f"$share/g/{LOG}", f"$share/h/{LOG}"):
            follow(client, topic_filter)
        append(link, b"x")
        assert client.payloads() == [b"x"] * 3
        client.unsubscribe(f"$share/g/{LOG}")
        append(link, b"y")
        assert client.payloads() == [b"y"] * 2
