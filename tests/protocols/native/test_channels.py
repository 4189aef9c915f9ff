"""Subscriptions with credit and groups, consumers, followers, members of groups."""

from typing import Any

import pytest

from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.operations import Operation as Op
from tests.protocols.mqtt.fake_link import HeldStore
from tests.protocols.native.link import NativeClient, NativeLink


def numbers(frames: list[list[Any]], operation: int = Op.DELIVERY) -> list[int]:
    """The payloads of deliveries."""
    return [int(frame[3]) for frame in frames if frame[0] == operation]


class TestSubscriptions:
    """What a client gets, on which terms."""

    def test_overlapping_plain_ones(self) -> None:
        """One copy for all of them; when one is closed, the others stay."""
        client = NativeLink().connect()
        channels = [client.opened(Op.SUBSCRIBE, each) for each in ("a/#", "a/+", "a/#")]
        client.send([1, "a/b", b"x"])
        assert client.take() == [[1, "a/b", b"x"]]
        client.call(Op.CLOSE, channels[0])
        client.call(Op.CLOSE, channels[1])
        client.send([1, "a/b", b"y"])
        assert client.take() == [[1, "a/b", b"y"]]
        client.call(Op.CLOSE, channels[2])
        client.send([1, "a/b", b"z"])
        assert client.take() == []

    def test_retained_ones_are_for_one_subscription(self) -> None:
        """They come with its number, when it is made, and only if it wants them."""
        link = NativeLink()
        link.connect().publish("a/b", b"x", {"retain": True})
        client = link.connect()
        for options, count in (({}, 1), ({"retained": "none"}, 0), ({"credit": 5}, 1)):
            number = client.ask(Op.SUBSCRIBE, "a/#", options)
            assert client.answer(number) == [
                Op.OK,
                number,
                {"retained": count if options.get("retained") != "none" else 0},
            ]
            expected = [[2, number, "a/b", b"x", {"retained": True}]] if count else []
            assert client.take() == expected

    def test_credit(self) -> None:
        """So many are sent, the rest waits, and the order stays."""
        client = NativeLink().connect()
        channel = client.opened(Op.SUBSCRIBE, "t", {"credit": 3})
        client.send(*[[1, "t", b"%d" % n] for n in range(10)])
        assert numbers(client.take()) == [0, 1, 2]
        client.send([Op.CREDIT, channel, 2])
        assert numbers(client.take()) == [3, 4]
        client.send([Op.CREDIT, channel, 100], [1, "t", b"10"])
        assert numbers(client.take()) == [5, 6, 7, 8, 9, 10]

    @pytest.mark.parametrize(
        ("overflow", "kept"), [("drop_newest", [0, 1, 2]), ("drop_oldest", [7, 8, 9])]
    )
    def test_overflow(self, overflow: str, kept: list[int]) -> None:
        """What is dropped is counted, and told with the next delivery."""
        link = NativeLink()
        client = link.connect()
        options = {"credit": 0, "buffer": 3, "overflow": overflow}
        channel = client.opened(Op.SUBSCRIBE, "t", options)
        client.send(*[[1, "t", b"%d" % n] for n in range(10)])
        assert client.take() == []
        client.send([Op.CREDIT, channel, 10])
        frames = client.take()
        assert frames[0] == [Op.DROPPED, channel, 7]
        assert numbers(frames) == kept
        assert link.node.statistics.dropped["no credit"] == 7

    def test_a_connection_that_is_congested(self) -> None:
        """With credit what comes waits, without it is dropped."""
        link = NativeLink()
        client, other = link.connect(), link.connect()
        client.opened(Op.SUBSCRIBE, "t", {"credit": 5})
        client.opened(Op.SUBSCRIBE, "t")
        client.endpoint.congested = True
        other.send([1, "t", b"1"], [1, "t", b"2"])
        assert client.endpoint.dropped == 2
        client.relieve()
        assert numbers(client.take()) == [1, 2]

    def test_groups(self) -> None:
        """One of the members gets a message: one that has credit."""
        link = NativeLink()
        one, two, three = link.connect(), link.connect(), link.connect()
        one.opened(Op.SUBSCRIBE, "t", {"group": "g", "credit": 0})
        two.opened(Op.SUBSCRIBE, "t", {"group": "g", "credit": 10})
        three.send(*[[1, "t", b"%d" % n] for n in range(4)])
        assert one.take() == []
        assert numbers(two.take()) == [0, 1, 2, 3]

    def test_a_member_that_leaves(self) -> None:
        """What it was not sent goes to another one."""
        link = NativeLink()
        one, other = link.connect(), link.connect()
        one.opened(Op.SUBSCRIBE, "t", {"group": "g", "credit": 0})
        other.send([1, "t", b"1"], [1, "t", b"2"])
        two = link.connect()
        two.opened(Op.SUBSCRIBE, "t", {"group": "g", "credit": 5})
        one.cut()
        assert numbers(two.take()) == [1, 2]

    def test_with_mqtt_in_one_group(self) -> None:
        """A group is that of MQTT's shared subscriptions."""
        link = NativeLink()
        client = link.connect()
        client.opened(Op.SUBSCRIBE, "t", {"group": "g"})
        mqtt = link.mqtt.connect("m")
        mqtt.subscribe("$share/g/t")
        client.send(*[[1, "t", b"%d" % n] for n in range(10)])
        mine = numbers(client.take())
        theirs = [int(each) for each in mqtt.payloads()]
        assert sorted(mine + theirs) == list(range(10))
        assert mine
        assert theirs

    def test_not_its_own(self) -> None:
        """What a client publishes itself does not come back if it does not want that."""
        link = NativeLink()
        client, other = link.connect(), link.connect()
        client.opened(Op.SUBSCRIBE, "t", {"own": False})
        client.send([1, "t", b"1"])
        client.publish("t", b"2")
        other.send([1, "t", b"3"])
        assert numbers(client.take()) == [3]

    @pytest.mark.parametrize(
        ("topic_filter", "options"),
        [
            ("a/#/b", {}),
            ("", {}),
            ("$queue/q", {}),
            ("$stream/s", {}),
            ("$share/g/t", {}),
            ("t", {"group": "a/b"}),
            ("t", {"group": ""}),
            ("t", {"group": "+"}),
            ("t", {"credit": -1}),
            ("t", {"credit": 1_000_001}),
            ("t", {"overflow": "never"}),
            ("t", {"retained": True}),
        ],
    )
    def test_what_cannot_be(self, topic_filter: str, options: dict[str, Any]) -> None:
        """It is refused, and leaves nothing behind."""
        link = NativeLink()
        client = link.connect()
        assert client.refused(Op.SUBSCRIBE, topic_filter, options) == Code.INVALID
        assert link.node.router.subscription_count == 0
        assert client.connection.channels == {}


class TestQueues:
    """Consumers."""

    def consumer(self, link: NativeLink, credit: int) -> tuple[NativeClient, int]:
        """A consumer of the queue, which is made."""
        client = link.connect()
        return client, client.opened(Op.CONSUME, "q", {"credit": credit, "declare": True})

    def jobs(self, client: NativeClient) -> list[list[Any]]:
        """The jobs that came."""
        return [job for frame in client.take() if frame[0] == Op.JOBS for job in frame[2]]

    def test_credit(self) -> None:
        """As many as may be unsettled; each that is settled makes room for another."""
        link = NativeLink()
        client, channel = self.consumer(link, 2)
        client.send(*[[Op.PUBLISH, 0, "$queue/q", b"%d" % n] for n in range(5)])
        first = self.jobs(client)
        assert [job[2] for job in first] == [b"0", b"1"]
        client.send([Op.ACK, 0, channel, first[0][0]])
        assert [job[2] for job in self.jobs(client)] == [b"2"]
        client.send([Op.CREDIT, channel, 0], [Op.ACK, 0, channel, first[1][0]])
        assert self.jobs(client) == []
        client.send([Op.CREDIT, channel, 10])
        assert [job[2] for job in self.jobs(client)] == [b"3", b"4"]

    def test_nack_reject_extend(self) -> None:
        """Each does what it says."""
        link = NativeLink()
        client, channel = self.consumer(link, 10)
        client.call(Op.QUEUE_DECLARE, "q", {"dead_letter": "dead", "lease_s": 30.0})
        client.send(*[[Op.PUBLISH, 0, "$queue/q", b"%d" % n] for n in range(3)])
        (one, two, three) = self.jobs(client)
        assert client.call(Op.NACK, channel, one[0], 5) == {"settled": 1, "gone": 0}
        assert client.call(Op.REJECT, channel, [two[0]], "broken") == {"settled": 1, "gone": 0}
        assert client.call(Op.EXTEND, channel, three[0], 100) == {"settled": 1, "gone": 0}
        link.advance(5.1)
        ((_, _, payload, _, attempts),) = self.jobs(client)
        assert (payload, attempts) == (b"0", 1)
        (dead,) = client.call(Op.QUEUE_BROWSE, "dead")["messages"]
        assert dead[5]["headers"]["x-dead-letter-reason"] == "broken"
        link.advance(60)  # the lease that was extended has not run out
        assert client.call(Op.ACK, channel, three[0]) == {"settled": 1, "gone": 0}
        assert client.call(Op.ACK, channel, three[0]) == {"settled": 0, "gone": 1}

    def test_leases_in_any_order(self) -> None:
        """Twice the same counts once."""
        link = NativeLink()
        client, channel = self.consumer(link, 10)
        client.send(*[[Op.PUBLISH, 0, "$queue/q", b"%d" % n] for n in range(6)])
        leases = [job[0] for job in self.jobs(client)]
        order = [leases[4], leases[1], leases[1], leases[0], leases[5]]
        assert client.call(Op.ACK, channel, order) == {"settled": 4, "gone": 1}
        assert client.call(Op.QUEUE_DESCRIBE, "q")["statistics"]["messages"] == 2

    def test_the_answer_waits_for_the_disk(self) -> None:
        """An ack that is answered is not forgotten."""
        store = HeldStore()
        link = NativeLink(store=store)
        client = link.connect()
        client.send([Op.CONSUME, 5, "q", {"credit": 5, "declare": True}])
        store.release()
        client.send([Op.PUBLISH, 6, "$queue/q", b"x"])
        store.release()
        ((lease, *_),) = self.jobs(client)
        client.send([Op.ACK, 7, 5, lease])
        assert client.take() == []
        store.release()
        assert client.take() == [[Op.OK, 7, {"settled": 1, "gone": 0}]]

    def test_a_consumer_that_leaves(self) -> None:
        """Another one gets what it had."""
        link = NativeLink()
        one, _ = self.consumer(link, 5)
        one.send([Op.PUBLISH, 0, "$queue/q", b"x"])
        assert len(self.jobs(one)) == 1
        two, _ = self.consumer(link, 5)
        one.cut()
        assert [job[2] for job in self.jobs(two)] == [b"x"]

    def test_the_queue_is_deleted(self) -> None:
        """Its consumers are told."""
        link = NativeLink()
        client, channel = self.consumer(link, 5)
        link.connect().call(Op.QUEUE_DELETE, "q")
        assert client.take() == [[Op.ENDED, channel, Code.NOT_FOUND, "queue 'q' was deleted"]]
        assert client.refused(Op.ACK, channel, 1) == Code.NOT_FOUND
        assert client.refused(Op.CONSUME, "q") == Code.NOT_FOUND

    def test_administration(self) -> None:
        """Purge, pause, resume, browse, redrive, list."""
        link = NativeLink()
        client, channel = self.consumer(link, 5)
        client.call(Op.QUEUE_DECLARE, "q", {"dead_letter": "dead"})
        client.call(Op.QUEUE_PAUSE, "q")
        client.publish("$queue/q", b"1", {"key": "k"})
        assert self.jobs(client) == []
        assert client.call(Op.QUEUE_DESCRIBE, "q")["paused"] is True
        (row,) = client.call(Op.QUEUE_BROWSE, "q", {"count": 5})["messages"]
        assert row[2:] == [0, "$queue/q", b"1", {"key": "k"}]
        client.call(Op.QUEUE_RESUME, "q")
        ((lease, *_),) = self.jobs(client)
        client.call(Op.REJECT, channel, lease)
        assert client.call(Op.QUEUE_REDRIVE, "dead", 10) == {"redriven": 1}
        client.take()
        assert client.call(Op.QUEUE_PURGE, "dead") == {"purged": 0}
        listed = client.call(Op.QUEUE_LIST, {"count": 1})
        assert [each["name"] for each in listed["queues"]] == ["dead"]
        assert listed["more"] is True
        rest = client.call(Op.QUEUE_LIST, {"after": "dead"})
        assert [each["name"] for each in rest["queues"]] == ["q"]

    def test_from_mqtt(self) -> None:
        """What an MQTT client sends is consumed here, and the other way round."""
        link = NativeLink()
        client, channel = self.consumer(link, 5)
        mqtt = link.mqtt.connect("m")
        assert mqtt.complete("$queue/q", b"from mqtt", 1) == 0
        link.tick()
        ((lease, topic, payload),) = self.jobs(client)
        assert (topic, payload) == ("$queue/q", b"from mqtt")
        client.call(Op.ACK, channel, lease)
        client.call(Op.CLOSE, channel)
        mqtt.subscribe("$queue/q", 1)
        client.publish("$queue/q", b"from native")
        assert mqtt.payloads() == [b"from native"]


class TestStreams:
    """Followers and members of groups."""

    def begin(self, count: int = 5) -> tuple[NativeLink, NativeClient]:
        """A stream with so many records."""
        link = NativeLink()
        client = link.connect()
        client.call(Op.STREAM_DECLARE, "s", {"bindings": ["a/#"], "keyed": True})
        client.call(Op.APPEND_BATCH, "s", [b"%d" % n for n in range(1, count + 1)])
        return link, client

    def records(self, client: NativeClient) -> list[tuple[int, bytes]]:
        """Sequence and payload of the records that came."""
        found: list[tuple[int, bytes]] = []
        for frame in client.take():
            if frame[0] == Op.RECORDS:
                first, payloads = frame[2], frame[5]
                sequences = (
                    first if isinstance(first, list) else range(first, first + len(payloads))
                )
                found += zip(sequences, payloads, strict=True)
        return found

    def test_read_in_pages(self) -> None:
        """As many as wanted, from where it is wanted."""
        _, client = self.begin(25)
        after, found = 0, []
        while True:
            columns = client.call(Op.READ, "s", {"after": after, "count": 10})["records"]
            if not columns[3]:
                break
            found += columns[3]
            after = columns[0] + len(columns[3]) - 1
        assert found == [b"%d" % n for n in range(1, 26)]
        columns = client.call(Op.READ, "s", {"bytes": 3})["records"]
        assert columns[3] == [b"1", b"2", b"3"]

    def test_columns(self) -> None:
        """What differs is an array, what does not one value; keys stand by themselves."""
        _, client = self.begin(1)
        client.send([1, "a/b", b"x", {"key": "k", "headers": {"h": "v"}}])
        client.call(Op.APPEND, "s", b"y", {"content_type": "t"}, {"topic": "a/c"})
        columns = client.call(Op.READ, "s")["records"]
        assert columns[0] == 1
        assert columns[2:] == [
            ["$stream/s", "a/b", "a/c"],
            [b"1", b"x", b"y"],
            [None, "k", None],
            [None, {"headers": {"h": "v"}}, {"content_type": "t"}],
        ]
        assert client.call(Op.READ, "s", {"key": "k"})["records"][0] == 2

    def test_follow(self) -> None:
        """What is there and what comes, once, in order; credit adds up."""
        link, client = self.begin(5)
        follower = link.connect()
        channel = follower.opened(Op.FOLLOW, "s", {"after": 2, "credit": 2})
        assert self.records(follower) == [(3, b"3"), (4, b"4")]
        client.call(Op.APPEND, "s", b"6")
        assert self.records(follower) == []
        follower.send([Op.CREDIT, channel, 5])
        assert self.records(follower) == [(5, b"5"), (6, b"6")]
        client.send([1, "a/x", b"7"])
        link.tick()
        assert self.records(follower) == [(7, b"7")]

    def test_where_to_begin(self) -> None:
        """With what comes, behind a sequence, or from a time on."""
        link, client = self.begin(2)
        link.advance(100)
        now_s = link.now + link.node.journal.shelf.wall_clock_offset_s
        client.call(Op.APPEND, "s", b"3")
        for options, expected in (
            ({}, [4]),
            ({"after": 0}, [1, 2, 3, 4]),
            ({"from_s": now_s - 50}, [3, 4]),
        ):
            follower = link.connect()
            follower.opened(Op.FOLLOW, "s", options)
            if options == {}:
                client.call(Op.APPEND, "s", b"4")
            assert [each[0] for each in self.records(follower)] == expected

    def test_a_congested_follower(self) -> None:
        """It is left alone until it reads again, and misses nothing."""
        link, client = self.begin(0)
        follower = link.connect()
        follower.opened(Op.FOLLOW, "s")
        follower.endpoint.congested = True
        for n in range(3):
            client.call(Op.APPEND, "s", b"%d" % n)
        assert self.records(follower) == []
        follower.relieve()
        assert len(self.records(follower)) == 3

    def test_groups(self) -> None:
        """Members share the records; a position is kept over a restart."""
        link, _ = self.begin(6)
        one, two = link.connect(), link.connect()
        options = {"group": "g", "after": 0, "credit": 3}
        first = one.opened(Op.FOLLOW, "s", options)
        second = two.opened(Op.FOLLOW, "s", options)
        mine, theirs = self.records(one), self.records(two)
        assert [each[0] for each in mine] == [1, 2, 3]
        assert [each[0] for each in theirs] == [4, 5, 6]
        assert one.call(Op.ACK, first, 2) == {"settled": 2, "gone": 0}  # and those before it
        assert two.call(Op.NACK, second, [5]) == {"settled": 1, "gone": 0}
        assert one.refused(Op.REJECT, first, 3) == Code.NOT_FOUND
        again = link.restart().connect()
        again.opened(Op.FOLLOW, "s", {**options, "credit": 10})
        assert [each[0] for each in self.records(again)] == [3, 4, 5, 6]

    def test_a_member_that_leaves(self) -> None:
        """Others get what it had."""
        link, _ = self.begin(3)
        one, two = link.connect(), link.connect()
        one.opened(Op.FOLLOW, "s", {"group": "g", "after": 0})
        two.opened(Op.FOLLOW, "s", {"group": "g", "after": 0})
        assert len(self.records(one)) == 3
        one.cut()
        assert [each[0] for each in self.records(two)] == [1, 2, 3]

    def test_expected_versions(self) -> None:
        """Of two that saw the same, one appends."""
        link, client = self.begin(0)
        other = link.connect()
        expected = {"expected": {"k": 0}}
        client.call(Op.APPEND, "s", b"1", {"key": "k"}, expected)
        answer = other.answer(other.ask(Op.APPEND, "s", b"2", {"key": "k"}, expected))
        assert answer[2] == Code.WRONG_VERSION
        assert answer[4] == {"key": "k", "expected": 0, "actual": 1}
        assert client.call(Op.STREAM_VERSION, "s", "k") == {"version": 1}
        batch = {"keys": ["k", "l"], "expected": {"k": 1, "l": 0}}
        assert other.call(Op.APPEND_BATCH, "s", [b"3", b"4"], None, batch) == {
            "first": 2,
            "last": 3,
        }

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (["nowhere", b"x"], Code.NOT_FOUND),
            (["s", 5], Code.INVALID),
            (["s", b"x", {"key": 5}], Code.INVALID),
            (["s", b"x", None, {"topic": "a/#"}], Code.INVALID),
            (["s", b"x", None, {"topic": "$SYS/x"}], Code.NOT_ALLOWED),
            (["s", b"x", None, {"expected": {"k": -1}}], Code.INVALID),
            (["s", b"x", None, {"expected": 5}], Code.INVALID),
        ],
    )
    def test_appends_that_cannot_be(self, arguments: list[Any], code: Code) -> None:
        """Nothing is appended."""
        _, client = self.begin(0)
        assert client.refused(Op.APPEND, *arguments) == code
        assert client.call(Op.STREAM_DESCRIBE, "s")["statistics"]["last"] == 0

    def test_groups_are_managed(self) -> None:
        """Made at a position, listed, deleted; their members are told."""
        link, client = self.begin(3)
        assert client.call(Op.GROUP_DECLARE, "s", "g", {"after": 1}) == {"position": 1}
        (group,) = client.call(Op.STREAM_DESCRIBE, "s")["statistics"]["groups"]
        assert (group["name"], group["lag"]) == ("g", 2)
        member = link.connect()
        channels = [
            member.opened(Op.FOLLOW, "s", {"group": "g", "credit": credit}) for credit in (10, 0)
        ]
        member.take()
        client.call(Op.GROUP_DELETE, "s", "g")
        assert member.take() == [
            [Op.ENDED, channel, Code.NOT_FOUND, "the group was deleted"] for channel in channels
        ]
        assert client.refused(Op.GROUP_DELETE, "s", "g") == Code.NOT_FOUND

    @pytest.mark.parametrize("options", [{}, {"group": "g"}], ids=["alone", "in a group"])
    def test_the_stream_is_deleted(self, options: dict[str, Any]) -> None:
        """A follower is told at once: one that has come to the end, has no credit, or is slow."""
        link, client = self.begin(3)
        others = [link.connect() for _ in range(3)]
        channels = [
            each.opened(Op.FOLLOW, "s", {"after": 0, "credit": credit, **options})
            for each, credit in zip(others, (10, 0, 10), strict=True)
        ]
        for each in others:
            each.take()
        others[2].endpoint.congested = True
        client.call(Op.STREAM_DELETE, "s")
        for each, channel in zip(others, channels, strict=True):
            assert each.take() == [[Op.ENDED, channel, Code.NOT_FOUND, "stream 's' was deleted"]]
            each.relieve()
            each.send([Op.CREDIT, channel, 5])
            assert each.take() == []

    def test_mqtt(self) -> None:
        """An MQTT client reads what is appended here, and appends what is followed here."""
        link, client = self.begin(0)
        mqtt = link.mqtt.connect("m")
        mqtt.subscribe("$stream/s", 1)
        follower = link.connect()
        follower.opened(Op.FOLLOW, "s")
        client.call(Op.APPEND, "s", b"native")
        assert mqtt.payloads() == [b"native"]
        mqtt.complete("$stream/s", b"mqtt", 1)
        link.tick()
        assert [each[1] for each in self.records(follower)] == [b"native", b"mqtt"]
