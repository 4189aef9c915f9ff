"""Request/reply: between native clients, and with MQTT clients on either side."""

from typing import Any

import pytest

from ganglion.protocols.mqtt.packets import Publish
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.operations import Operation as Op
from tests.protocols.native.link import NativeClient, NativeLink


def calls(client: NativeClient) -> list[list[Any]]:
    """The calls that came, from their numbers on."""
    return [frame[2:] for frame in client.take() if frame[0] == Op.CALL]


class TestRequests:
    """One asks, one answers."""

    def test_answer(self) -> None:
        """The responder sees the request, the requester the answer."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        service = server.opened(Op.SERVE, "sum/+")
        number = asker.ask(Op.REQUEST, "sum/2", b"1+1", {"headers": {"a": "b"}}, {"timeout_s": 5})
        ((call, topic, payload, properties),) = calls(server)
        assert (topic, payload) == ("sum/2", b"1+1")
        assert properties == {"headers": {"a": "b"}, "expires_s": 5}
        assert server.call(Op.ANSWER, service, call, b"2", {"content_type": "n"}) == {"taken": True}
        assert asker.take() == [[Op.REPLY, number, b"2", {"content_type": "n"}]]
        assert server.call(Op.ANSWER, service, call, b"2") == {"taken": False}

    def test_nobody(self) -> None:
        """That is told at once."""
        assert NativeLink().connect().refused(Op.REQUEST, "a", b"") == Code.NO_RESPONDERS

    def test_failure(self) -> None:
        """The responder's own words and code."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        service = server.opened(Op.SERVE, "a")
        number = asker.ask(Op.REQUEST, "a", b"")
        ((call, *_),) = calls(server)
        server.call(Op.FAIL, service, call, "no such thing", "E404")
        assert asker.take() == [
            [Op.ERROR, number, Code.RESPONDER_FAILED, "no such thing", {"code": "E404"}]
        ]

    def test_deadline(self) -> None:
        """The requester is told, the responder too, and a late answer goes nowhere."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        service = server.opened(Op.SERVE, "a")
        asker.ask(Op.REQUEST, "a", b"", None, {"timeout_s": 2})
        ((call, *_),) = calls(server)
        link.advance(2.1)
        assert asker.take()[0][2] == Code.TIMED_OUT
        assert server.take() == [[Op.CANCELLED, service, call, "deadline"]]
        assert server.call(Op.ANSWER, service, call, b"") == {"taken": False}
        assert link.node.statistics.dropped["reply came late"] == 1

    def test_cancel(self) -> None:
        """The responder is told; nothing comes any more."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        service = server.opened(Op.SERVE, "a")
        number = asker.ask(Op.REQUEST, "a", b"")
        ((call, *_),) = calls(server)
        asker.call(Op.CANCEL, number)
        assert server.take() == [[Op.CANCELLED, service, call, "cancelled"]]
        assert asker.refused(Op.CANCEL, number) == Code.NOT_FOUND
        link.advance(60)
        assert asker.take() == []

    def test_the_requester_leaves(self) -> None:
        """The responder is told."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        service = server.opened(Op.SERVE, "a")
        asker.ask(Op.REQUEST, "a", b"")
        ((call, *_),) = calls(server)
        asker.cut()
        assert server.take() == [[Op.CANCELLED, service, call, "cancelled"]]

    @pytest.mark.parametrize("may_repeat", [False, True])
    def test_the_responder_leaves(self, may_repeat: bool) -> None:
        """The request ends, or goes to another one where that does no harm."""
        link = NativeLink()
        asker, one, two = link.connect(), link.connect(), link.connect()
        one.opened(Op.SERVE, "a")
        asker.ask(Op.REQUEST, "a", b"x", None, {"repeat": may_repeat})
        two.opened(Op.SERVE, "a")
        assert len(calls(one)) == 1
        one.cut()
        assert len(calls(two)) == (1 if may_repeat else 0)
        frames = asker.take()
        assert [frame[2] for frame in frames] == ([] if may_repeat else [Code.RESPONDER_GONE])

    def test_credit(self) -> None:
        """A responder takes so many at a time; with none it is not asked."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        service = server.opened(Op.SERVE, "a", {"credit": 1})
        asker.ask(Op.REQUEST, "a", b"")
        assert asker.refused(Op.REQUEST, "a", b"") == Code.RESPONDERS_BUSY
        server.send([Op.CREDIT, service, 5])
        asker.ask(Op.REQUEST, "a", b"")
        assert len(calls(server)) == 2

    def test_the_same_number_twice(self) -> None:
        """A request that is not answered keeps its number; 0 is none."""
        link = NativeLink()
        asker, server = link.connect(), link.connect()
        server.opened(Op.SERVE, "a")
        asker.send([Op.REQUEST, 9, "a", b""], [Op.REQUEST, 9, "a", b""], [Op.REQUEST, 0, "a", b""])
        assert [frame[1:3] for frame in asker.take()] == [[9, Code.DUPLICATE_ID], [0, Code.INVALID]]

    @pytest.mark.parametrize("topic_filter", ["$SYS/#", "a/#/b", "", "$share/g/a"])
    def test_what_cannot_be_served(self, topic_filter: str) -> None:
        """It is refused."""
        client = NativeLink().connect()
        assert client.refused(Op.SERVE, topic_filter) == Code.INVALID


class TestGather:
    """One asks, many answer."""

    def servers(self, link: NativeLink, count: int) -> list[tuple[NativeClient, int]]:
        """So many responders without a group."""
        found: list[tuple[NativeClient, int]] = []
        for _ in range(count):
            client = link.connect()
            found.append((client, client.opened(Op.SERVE, "a")))
        return found

    def answer(self, server: NativeClient, service: int, payload: bytes) -> None:
        """Answer the one call that came."""
        ((call, *_),) = calls(server)
        server.send([Op.ANSWER, 0, service, call, payload])

    def test_all(self) -> None:
        """It ends when all have answered."""
        link = NativeLink()
        asker = link.connect()
        servers = self.servers(link, 3)
        number = asker.ask(Op.GATHER, "a", b"")
        for index, (server, service) in enumerate(servers):
            self.answer(server, service, b"%d" % index)
        assert asker.take() == [
            *[[Op.REPLY, number, b"%d" % n] for n in range(3)],
            [Op.OK, number, {"replies": 3, "reason": "all"}],
        ]

    def test_enough(self) -> None:
        """It ends with as many as wanted; the others are told."""
        link = NativeLink()
        asker = link.connect()
        servers = self.servers(link, 3)
        number = asker.ask(Op.GATHER, "a", b"", None, {"count": 2})
        for server, service in servers[:2]:
            self.answer(server, service, b"")
        assert asker.take()[-1] == [Op.OK, number, {"replies": 2, "reason": "count"}]
        assert servers[2][0].take()[-1][0] == Op.CANCELLED

    def test_deadline(self) -> None:
        """It ends with what came in time, though that be nothing."""
        link = NativeLink()
        asker = link.connect()
        self.servers(link, 2)
        number = asker.ask(Op.GATHER, "a", b"", None, {"timeout_s": 1})
        link.advance(1.1)
        assert asker.take() == [[Op.OK, number, {"replies": 0, "reason": "deadline"}]]

    def test_groups(self) -> None:
        """One of each group is asked."""
        link = NativeLink()
        asker = link.connect()
        servers = [link.connect() for _ in range(3)]
        for server in servers:
            server.opened(Op.SERVE, "a", {"group": "g"})
        asker.ask(Op.GATHER, "a", b"")
        assert sum(len(calls(server)) for server in servers) == 1

    def test_nobody(self) -> None:
        """That is told at once."""
        assert NativeLink().connect().refused(Op.GATHER, "a", b"") == Code.NO_RESPONDERS


class TestMqtt:
    """Across the protocols."""

    def test_a_native_client_asks(self) -> None:
        """An MQTT client that subscribes to the topic answers to the response topic."""
        link = NativeLink()
        mqtt, asker = link.mqtt.connect("m"), link.connect()
        mqtt.subscribe("a")
        number = asker.ask(Op.REQUEST, "a", b"question")
        link.mqtt.tick()
        request = mqtt.only(Publish)
        assert request.payload == b"question"
        about = request.properties
        assert about is not None
        assert about.response_topic is not None
        answer = Properties(correlation_data=about.correlation_data)
        mqtt.publish(about.response_topic, b"answer", properties=answer)
        link.tick()
        assert asker.take() == [[Op.REPLY, number, b"answer"]]

    def test_a_native_client_answers(self) -> None:
        """An MQTT client asks with a response topic and gets the answer there."""
        link = NativeLink()
        mqtt, server = link.mqtt.connect("m"), link.connect()
        service = server.opened(Op.SERVE, "a")
        mqtt.subscribe("mine")
        mqtt.publish(
            "a", b"question", 1, properties=Properties(response_topic="mine", correlation_data=b"7")
        )
        link.tick()
        ((call, topic, payload, properties),) = calls(server)
        assert (topic, payload) == ("a", b"question")
        assert "reply_to" not in properties
        server.send([Op.ANSWER, 0, service, call, b"answer"])
        link.mqtt.tick()
        reply = next(each for each in mqtt.take() if isinstance(each, Publish))
        assert (reply.topic, reply.payload) == ("mine", b"answer")
        assert reply.properties is not None
        assert reply.properties.correlation_data == b"7"
