"""Publishing: runs, confirmations, sending again, batches."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.broker.core.access import Access, Rule
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.operations import Operation as Op
from tests.protocols.mqtt.fake_link import HeldStore
from tests.protocols.native.link import NativeClient, NativeLink

NAME = "a producer of its own"


def receiver(link: NativeLink, topic_filter: str = "#") -> NativeClient:
    """A client with a plain subscription."""
    client = link.connect()
    client.opened(Op.SUBSCRIBE, topic_filter)
    return client


class TestMessages:
    """Without confirmation."""

    @pytest.mark.parametrize("size", [0, 1, 3, 100, 255, 256, 300, 65_535, 65_536, 70_000])
    @pytest.mark.parametrize("topic", ["t", "t" * 31, "t" * 32, "t" * 255, "t" * 256, "ä/ö"])
    def test_of_every_size(self, topic: str, size: int) -> None:
        """The frame that came is the frame that goes, the first time and by the fast path."""
        link = NativeLink()
        one, other = link.connect(), receiver(link)
        frame = msgpack.packb([1, topic, bytes(size)])
        for _ in range(2):
            one.send_bytes(frame * 3)
            assert bytes(other.endpoint.output) == frame * 3
            other.endpoint.output.clear()

    @pytest.mark.slow
    @given(
        st.lists(
            st.tuples(st.sampled_from(["a", "b/c", "x" * 40]), st.integers(0, 3), st.booleans()),
            max_size=30,
        ),
        st.integers(1, 50),
    )
    @settings(deadline=None)
    def test_however_they_are_cut(self, wanted: list[tuple[str, int, bool]], step: int) -> None:
        """Runs and single ones, with other frames in between: all arrive, in order, once."""
        link = NativeLink()
        one, other = link.connect(), receiver(link)
        one.send([1, "a", b""], [1, "b/c", b""])
        other.take()
        data, expected = b"", []
        for number, (topic, size, confirmed) in enumerate(wanted):
            payload = bytes(size) + bytes([number])
            expected.append([1, topic, payload])
            frame: list[Any] = [1, topic, payload]
            if confirmed:
                frame = [Op.PUBLISH, number + 1, topic, payload]
            data += msgpack.packb(frame)
        for start in range(0, len(data), step):
            one.send_bytes(data[start : start + step])
        assert other.take() == expected
        confirmed_ids = {
            number
            for frame in one.take()
            for number in range(frame[1], frame[2] + 1)
            if number <= len(wanted) and wanted[number - 1][2]
        }
        assert confirmed_ids == {number for number, each in enumerate(wanted, 1) if each[2]}

    def test_one_that_is_not_allowed(self) -> None:
        """It is dropped and counted; the publisher is told nothing."""
        link = NativeLink()
        one, other = link.connect(), receiver(link, "$SYS/#")
        one.send([1, "$SYS/x", b""], [1, "a/#", b""], [1, "", b""], [1, 5, b""], [1], [1, "a", 5])
        assert one.take() == []
        assert other.take() == []
        assert link.node.statistics.dropped["refused"] == 6

    def test_rules_that_change(self) -> None:
        """A topic that was allowed on the fast path is not any more."""
        link = NativeLink()
        one, other = link.connect(), receiver(link)
        one.send([1, "a", b"1"], [1, "a", b"2"])
        denied = Access(
            [
                Rule(effect="deny", topics=("a",), action="publish"),
                Rule(effect="allow", topics=("#",)),
            ],
            users_exist=False,
        )
        link.node.reload(access=denied)
        one.send([1, "a", b"3"], [Op.PUBLISH, 9, "a", b"4"])
        assert [frame[2] for frame in other.take()] == [b"1", b"2"]
        assert one.take()[0][2] == Code.NOT_ALLOWED

    def test_properties(self) -> None:
        """They arrive as they were sent; what is not known is left out."""
        link = NativeLink()
        one, other = link.connect(), receiver(link)
        properties = {
            "key": "k",
            "headers": {"a": "1", "b": "2"},
            "content_type": "text/plain",
            "text": True,
            "delay_s": 5,
            "priority": 3,
            "message_id": "m",
            "reply_to": "r",
            "correlation": b"\xff",
        }
        one.send([1, "a", b"x", {**properties, "unknown": 1, "key": "k"}])
        assert other.take() == [[1, "a", b"x", properties]]
        repeated = [["a", "1"], ["a", "2"]]
        one.send([1, "a", b"x", {"headers": repeated}])
        assert other.take() == [[1, "a", b"x", {"headers": repeated}]]

    def test_time_to_live(self) -> None:
        """What is left of it is told, and what is over is not sent."""
        link = NativeLink()
        one, other = link.connect(), link.connect()
        channel = other.opened(Op.SUBSCRIBE, "a", {"credit": 0})
        one.send([1, "a", b"1", {"expires_s": 10}], [1, "a", b"2", {"expires_s": 3}])
        link.advance(4)
        other.send([Op.CREDIT, channel, 5])
        assert other.take() == [[2, channel, "a", b"1", {"expires_s": 6}]]

    @pytest.mark.parametrize(
        "properties",
        [
            5,
            {"key": 5},
            {"headers": 5},
            {"headers": [["a"]]},
            {"headers": {"a": 1}},
            {"text": 1},
            {"delay_s": -1},
            {"delay_s": float("inf")},
            {"delay_s": float("nan")},
            {"priority": 256},
            {"priority": 1.5},
            {"correlation": 5},
            {"expires_s": "x"},
            {"retain": 1},
            {"reply_to": "a/#"},
        ],
    )
    def test_wrong_properties(self, properties: Any) -> None:
        """The error names what is wrong."""
        client = NativeLink().connect()
        assert client.refused(Op.PUBLISH, "a", b"", properties) == Code.INVALID


class TestConfirmation:
    """With confirmation."""

    def test_counts(self) -> None:
        """They say how many targets there were of which kind."""
        link = NativeLink()
        client = link.connect()
        client.call(Op.QUEUE_DECLARE, "q", {"bindings": ["a/#"]})
        client.call(Op.QUEUE_DECLARE, "r", {"bindings": ["a/b"]})
        client.call(Op.STREAM_DECLARE, "s", {"bindings": ["+/b"]})
        receiver(link)
        link.connect().opened(Op.SUBSCRIBE, "a/b", {"group": "g"})
        for _ in range(2):
            assert client.publish("a/b", b"") == [2, 2, 1]
        assert client.publish("b", b"") == [1, 0, 0]

    def test_many_are_one(self) -> None:
        """What has the same outcome is confirmed as a range."""
        client = NativeLink().connect()
        client.publish("t", b"")
        client.send(*[[Op.PUBLISH, number, "t", b"x"] for number in range(10, 60)])
        assert client.take() == [[Op.CONFIRMED, 10, 59, 0, 0, 0]]

    @pytest.mark.parametrize("first", [1, 100, 120, 250, 65_500, 2**32 - 20, 2**53 - 60])
    def test_a_run_into_a_queue(self, first: int) -> None:
        """Identifiers of every width, all in the queue and all confirmed."""
        client = NativeLink().connect()
        client.call(Op.QUEUE_DECLARE, "q")
        client.publish("$queue/q", b"")
        client.send(*[[Op.PUBLISH, first + n, "$queue/q", bytes([n])] for n in range(50)])
        runs = client.take()
        assert all(frame[3:] == [0, 1, 0] for frame in runs)
        assert [n for frame in runs for n in range(frame[1], frame[2] + 1)] == list(
            range(first, first + 50)
        )
        rows = client.call(Op.QUEUE_BROWSE, "q")["messages"]
        assert [row[4] for row in rows] == [b"", *[bytes([n]) for n in range(50)]]

    def test_identifiers_that_do_not_ascend(self) -> None:
        """Without a producer any order will do, and each is confirmed once."""
        client = NativeLink().connect()
        client.publish("t", b"")
        numbers = [9, 10, 5, 6, 7, 3, 3000, 20]
        client.send(*[[Op.PUBLISH, number, "t", b"x"] for number in numbers])
        found = [
            n for frame in client.take() for n in range(frame[1], frame[2] + 1) if n in numbers
        ]
        assert sorted(set(found)) == sorted(numbers)

    def test_after_the_commit(self) -> None:
        """What is durable is confirmed when it is on disk, and what follows does not overtake."""
        store = HeldStore()
        link = NativeLink(store=store)
        client = link.connect()
        client.ask(Op.QUEUE_DECLARE, "q", {"bindings": ["durable"]})
        store.release()
        client.take()
        client.send([Op.PUBLISH, 10, "durable", b""], [Op.PUBLISH, 11, "transient", b""])
        client.send([Op.PUBLISH, 12, "transient", b""], [Op.PUBLISH, 13, "durable", b""])
        assert client.take() == []
        store.release(1)
        assert client.take() == [[13, 10, 10, 0, 1, 0], [13, 11, 12, 0, 0, 0]]
        link.tick()
        store.release()
        assert client.take() == [[13, 13, 13, 0, 1, 0]]
        client.send([Op.PUBLISH, 14, "transient", b""])
        assert client.take() == [[13, 14, 14, 0, 0, 0]]

    def test_a_full_queue(self) -> None:
        """The publisher is told to come back later."""
        client = NativeLink().connect()
        client.call(Op.QUEUE_DECLARE, "q", {"max_messages": 1, "bindings": ["a"]})
        client.publish("a", b"")
        assert client.refused(Op.PUBLISH, "a", b"") == Code.FULL

    def test_a_message_larger_than_a_queue_or_a_record(self) -> None:
        """Later is no better: it is told the limit, and nothing of a batch was published."""
        link = NativeLink()
        client = link.connect()
        client.call(Op.QUEUE_DECLARE, "q", {"max_bytes": 10, "bindings": ["a"]})
        client.call(Op.STREAM_DECLARE, "s", {"max_record_bytes": 3, "bindings": ["b"]})
        for topic, payload in (("a", bytes(10)), ("b", bytes(4))):
            assert client.refused(Op.PUBLISH, topic, payload) == Code.LIMIT
            number = client.ask(Op.PUBLISH_BATCH, topic, [b"", payload, b""])
            answer = client.answer(number)
            assert answer[:3] == [Op.ERROR, number, Code.LIMIT]
            assert "_bytes" in answer[3]
            assert answer[4] == {"index": 1}
        assert link.node.queues.get("q").count == link.node.streams.get("s").last == 0


class TestSendingAgain:
    """After a connection was lost."""

    def queue(self, link: NativeLink) -> list[bytes]:
        """What is in the queue."""
        rows = link.connect().call(Op.QUEUE_BROWSE, "q")["messages"]
        return [row[4] for row in rows]

    def begin(self) -> tuple[NativeLink, NativeClient]:
        """A queue, and a client with a producer."""
        link = NativeLink()
        link.connect().call(Op.QUEUE_DECLARE, "q", {"bindings": ["a"]})
        return link, link.connect(producer=NAME)

    @pytest.mark.parametrize("restarts", [False, True])
    @pytest.mark.parametrize("is_known", [False, True], ids=["new topic", "known topic"])
    def test_nothing_is_doubled(self, restarts: bool, is_known: bool) -> None:
        """What was taken is confirmed without counts, the rest is published, once and in order."""
        link, client = self.begin()
        before = []
        if is_known:
            client.send([Op.PUBLISH, 1, "a", b"0"])
            before = [b"0"]
        client.send(*[[Op.PUBLISH, n, "a", b"%d" % n] for n in (11, 12, 13)])
        client.cut()
        if restarts:
            link = link.restart()
        client = link.open()
        assert client.hello(producer=NAME)["sequence"] == 13
        client.send(*[[Op.PUBLISH, n, "a", b"%d" % n] for n in (11, 12, 13, 14, 15)])
        assert client.take() == [
            [Op.CONFIRMED, 11, 13, None, None, None],
            [Op.CONFIRMED, 14, 15, 0, 1, 0],
        ]
        assert self.queue(link) == [*before, b"11", b"12", b"13", b"14", b"15"]

    def test_what_was_refused_is_judged_anew(self) -> None:
        """A lost refusal must not become a confirmation."""
        link, client = self.begin()
        link.node.queues.declare(QueueDefinition(name="q", bindings=("a",), max_messages=1))
        client.send([Op.PUBLISH, 1, "a", b"1"], [Op.PUBLISH, 2, "a", b"2"])
        client.send([Op.PUBLISH, 3, "b", b"3"])
        client.cut()
        link.node.queues.declare(QueueDefinition(name="q", bindings=("a",)))
        client = link.connect(producer=NAME)
        client.send(
            *[[Op.PUBLISH, n, topic, b"%d" % n] for n, topic in ((1, "a"), (2, "a"), (3, "b"))]
        )
        assert client.take() == [
            [13, 1, 1, None, None, None],
            [13, 2, 2, 0, 1, 0],
            [13, 3, 3, None, None, None],
        ]
        assert self.queue(link) == [b"1", b"2"]

    def test_a_batch_that_was_taken_in_part(self) -> None:
        """It goes on behind what was taken."""
        link, client = self.begin()
        link.node.queues.declare(QueueDefinition(name="q", bindings=("a",), max_messages=2))
        client.send([Op.PUBLISH_BATCH, 1, "a", [b"1", b"2", b"3"]])
        ((_, _, code, _, details),) = client.take()
        assert (code, details) == (Code.FULL, {"index": 2})
        client.cut()
        link.node.queues.declare(QueueDefinition(name="q", bindings=("a",)))
        client = link.connect(producer=NAME)
        for expected in ([0, 1, 0], [None, None, None]):
            client.send([Op.PUBLISH_BATCH, 1, "a", [b"1", b"2", b"3"]])
            assert client.take() == [[Op.OK, 1, expected]]
        assert self.queue(link) == [b"1", b"2", b"3"]

    def test_two_connections(self) -> None:
        """The later one has the producer; the earlier one is told."""
        link, first = self.begin()
        second = link.connect(producer=NAME)
        first.send([Op.PUBLISH, 1, "a", b"x"], [Op.PUBLISH_BATCH, 2, "a", [b"x"]])
        assert [frame[2] for frame in first.take()] == [Code.SEQUENCE, Code.SEQUENCE]
        second.send([Op.PUBLISH, 1, "a", b"y"])
        assert second.take() == [[13, 1, 1, 0, 1, 0]]

    def test_other_producers(self) -> None:
        """Each has numbers of its own."""
        link, client = self.begin()
        other = link.connect(producer=NAME + "!")
        for each in (client, other):
            each.send([Op.PUBLISH, 1, "a", b"x"])
        assert len(self.queue(link)) == 2

    def test_after_an_hour(self) -> None:
        """A producer that did not come back is forgotten, on disk too."""
        link, client = self.begin()
        client.send([Op.PUBLISH, 5, "a", b"x"])
        client.cut()
        link.advance(3601)
        assert len(link.server.producers) == 0
        assert len(link.restart().server.producers) == 0


class TestBatch:
    """Many messages in one frame."""

    def test_columns(self) -> None:
        """Topics and properties as one or as many."""
        link = NativeLink()
        client, other = link.connect(), receiver(link)
        counts = client.call(Op.PUBLISH_BATCH, ["a", "b"], [b"1", b"2"], [None, {"key": "k"}])
        assert counts == [2, 0, 0]
        client.call(Op.PUBLISH_BATCH, "c", [b"3", b"4"], {"text": True})
        assert other.take() == [
            [1, "a", b"1"],
            [1, "b", b"2", {"key": "k"}],
            [1, "c", b"3", {"text": True}],
            [1, "c", b"4", {"text": True}],
        ]

    @pytest.mark.parametrize(
        ("arguments", "index"),
        [
            (["a", [b"1", 5]], 1),
            ([["a", "$SYS/x"], [b"1", b"2"]], 1),
            ([["a", "b/#"], [b"1", b"2"]], 1),
            (["a", [b"1", b"2"], [None, {"key": 5}]], 1),
            ([5, [b"1"]], 0),
        ],
    )
    def test_one_that_is_wrong(self, arguments: list[Any], index: int) -> None:
        """It is named, and nothing of the batch is published."""
        link = NativeLink()
        client, other = link.connect(), receiver(link)
        answer = client.answer(client.ask(Op.PUBLISH_BATCH, *arguments))
        assert answer[0] == Op.ERROR
        assert answer[4] == {"index": index}
        assert other.take() == []

    @pytest.mark.parametrize(
        "arguments",
        [["a"], ["a", b"x"], [["a"], [b"1", b"2"]], ["a", [b"1"], [None, None]]],
    )
    def test_columns_that_do_not_fit(self, arguments: list[Any]) -> None:
        """They are refused as a whole."""
        assert NativeLink().connect().refused(Op.PUBLISH_BATCH, *arguments) == Code.INVALID

    def test_an_empty_one(self) -> None:
        """It has no targets."""
        assert NativeLink().connect().call(Op.PUBLISH_BATCH, "a", []) == [0, 0, 0]


class TestMqtt:
    """Messages between both protocols."""

    def test_to_mqtt(self) -> None:
        """Confirmed ones have QoS 1, the others QoS 0; properties are those of MQTT 5."""
        link = NativeLink()
        mqtt, client = link.mqtt.connect("m"), link.connect()
        mqtt.subscribe("#", 2)
        client.send([1, "a", b"1", {"headers": {"x": "y"}, "key": "k"}])
        client.publish("b", b"2", {"retain": True})
        one, two = mqtt.messages()
        assert (one.topic, one.payload, one.qos) == ("a", b"1", 0)
        assert one.properties is not None
        assert one.properties.user_properties == (("x", "y"), ("x-key", "k"))
        assert (two.topic, two.payload, two.qos) == ("b", b"2", 1)

    def test_from_mqtt(self) -> None:
        """Plain ones share one encoding; retained ones are told to be."""
        link = NativeLink()
        mqtt = link.mqtt.connect("m")
        mqtt.publish("r", b"kept", retain=True)
        clients = [receiver(link) for _ in range(3)]
        for client in clients:
            assert client.take() == [[2, 2, "r", b"kept", {"retained": True}]]
        for qos in (0, 1, 2):
            mqtt.complete("a", b"%d" % qos, qos)
        for client in clients:
            assert [frame[:3] for frame in client.take()] == [
                [1, "a", b"0"],
                [1, "a", b"1"],
                [1, "a", b"2"],
            ]
