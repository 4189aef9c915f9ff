"""Requests that MQTT clients make and answer, on a virtual clock: every pair, every loss.

A responder or requester without a session of its own (`Program`) stands for every other protocol.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ganglion.broker.core.access import Access, Client, Rule
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import Message, MessageProperties
from ganglion.broker.core.requests import Ending, Outcome, RequestRefused
from ganglion.broker.core.responders import Request
from ganglion.broker.core.session_requests import is_service, split_service
from ganglion.broker.core.topics import InvalidTopic
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link, RecordingStore


@dataclass(eq=False)
class Program:
    """Asks and answers in the node's own terms, as other protocols do."""

    link: Link
    name: str = "program"
    distance: int = 0
    capacity: int = 10
    asked: list[Request] = field(default_factory=list)
    withdrawals: list[str] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    @property
    def client(self) -> Client:
        """Known by its name."""
        return Client(self.name, None, "127.0.0.1", None)

    def take(self, request: Request) -> bool:
        """Note it."""
        self.asked.append(request)
        return True

    def withdrawn(self, request_id: int, reason: str) -> None:
        """Note it."""
        assert request_id
        self.withdrawals.append(reason)

    def replied(self, tag: Hashable, reply: Message) -> None:
        """Note it."""
        assert tag is not None
        self.replies.append(reply)

    def ended(self, tag: Hashable, ending: Ending) -> None:
        """Note it."""
        assert tag is not None
        self.endings.append(ending)

    def serve(self, topic_filter: str) -> "Program":
        """Answer requests for the filter."""
        self.link.node.requests.serve(self, topic_filter)
        return self

    def ask(self, topic: str, payload: bytes = b"?", **options: Any) -> None:
        """Make a request to one."""
        message = Message(topic, payload, properties=options.pop("properties", None))
        self.link.node.requests.request(self, object(), message, **options)
        self.link.tick()

    def answer(self, payload: bytes, **properties: Any) -> bool:
        """Answer what it was asked last."""
        about = MessageProperties(**properties) if properties else None
        reply = Message("", payload, properties=about)
        taken = self.link.node.requests.reply(self, self.asked[-1].id, reply)
        self.link.tick()
        return taken


def request_properties(reply_to: str, correlation: bytes | None = None, **more: Any) -> Properties:
    """Those of a PUBLISH that is a request."""
    return Properties(response_topic=reply_to, correlation_data=correlation, **more)


def respond(client: FakeClient, request: Publish, payload: bytes, qos: int = 1, **more: Any) -> int:
    """Answer as a MQTT 5 client does: to the response topic, with the correlation data."""
    about = request.properties
    assert about is not None
    assert about.response_topic is not None
    answer = Properties(correlation_data=about.correlation_data, **more)
    return client.complete(about.response_topic, payload, qos, properties=answer)


# -- filters of services -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic_filter", "parts"),
    [
        ("$request/+/pump/7", ("", "pump/7")),
        ("$request/+/pump/+", ("", "pump/+")),
        ("$request/+/#", ("", "#")),
        ("$share/g/$request/+/pump", ("g", "pump")),
        ("$share/g/pump", None),
        ("pump/$request/+/x", None),
    ],
)
def test_filters_of_services(topic_filter: str, parts: tuple[str, str] | None) -> None:
    """What a subscription to requests serves."""
    assert is_service(topic_filter) is (parts is not None)
    assert split_service(topic_filter) == parts


@pytest.mark.parametrize(
    "topic_filter", ["$request/7/pump", "$request/#", "$request/+", "$request/+/$queue/x"]
)
def test_filters_that_serve_nothing(topic_filter: str) -> None:
    """The id is a wildcard, and node topics are not asked for; SUBACK says so."""
    with pytest.raises(InvalidTopic):
        split_service(topic_filter)
    assert Link().connect("c").subscribe(topic_filter) == Reason.NOT_AUTHORIZED


# -- MQTT 5 answers a program --------------------------------------------------------------------


def test_a_subscriber_of_mqtt_5_answers_a_program() -> None:
    """It finds response topic and correlation data, and how long somebody waits."""
    link = Link()
    responder = link.connect("r")
    responder.subscribe("t", 1, identifier=9)
    program = Program(link)
    about = MessageProperties(content_type="text/x", user_properties=(("a", "b"),))
    program.ask("t", b"how much?", timeout_s=7, properties=about)
    request = responder.only(Publish)
    assert (request.topic, request.payload, request.qos) == ("t", b"how much?", 0)
    assert request.properties is not None
    assert request.properties.response_topic is not None
    assert request.properties.response_topic.startswith("$reply/")
    assert request.properties.correlation_data
    assert request.properties.message_expiry_interval == 7
    assert request.properties.content_type == "text/x"
    assert request.properties.user_properties == (("a", "b"),)
    assert request.properties.subscription_identifiers == (9,)
    assert respond(responder, request, b"12", content_type="n") == Reason.SUCCESS
    (reply,) = program.replies
    assert reply.payload == b"12"
    assert reply.properties is not None
    assert reply.properties.content_type == "n"
    assert [each.outcome for each in program.endings] == [Outcome.ANSWERED]
    assert link.node.router.subscription_count == 1


def test_the_correlation_data_of_a_request_is_kept() -> None:
    """A program that has its own hands it through."""
    link = Link()
    responder = link.connect("r")
    responder.subscribe("t")
    Program(link).ask("t", properties=MessageProperties(correlation_data=b"mine"))
    request = responder.only(Publish)
    assert request.properties is not None
    assert request.properties.correlation_data == b"mine"


def test_a_late_answer_of_mqtt_5_is_told_so() -> None:
    """PUBACK has 0x10: nobody waits; it is counted and goes nowhere."""
    link = Link()
    responder = link.connect("r")
    responder.subscribe("t")
    program = Program(link)
    program.ask("t", timeout_s=1)
    request = responder.only(Publish)
    link.advance(1.0)
    assert [each.outcome for each in program.endings] == [Outcome.DEADLINE]
    assert respond(responder, request, b"12") == Reason.NO_MATCHING_SUBSCRIBERS
    assert respond(responder, request, b"12", qos=2) in (0, Reason.NO_MATCHING_SUBSCRIBERS)
    assert link.node.statistics.dropped["reply came late"] == 2
    assert program.replies == []


@pytest.mark.parametrize("number", ["", "x", "0", "-1", "٣", "9" * 5000, "1/2/3"])
def test_answers_to_nothing(number: str) -> None:
    """Whatever stands for the id, nothing happens but that it is counted."""
    link = Link(limits=Limits(topic_size_max_bytes=10_000))
    client = link.connect("c")
    assert client.complete(f"$reply/{number}", b"x", 1) == Reason.NO_MATCHING_SUBSCRIBERS
    assert link.node.statistics.dropped == {"reply to no request": 1}


def test_an_answer_is_taken_only_from_who_was_asked() -> None:
    """Who guesses the id of a request answers nothing."""
    link = Link()
    responder, other = link.connect("r"), link.connect("other")
    responder.subscribe("t")
    program = Program(link)
    program.ask("t")
    request = responder.only(Publish)
    assert respond(other, request, b"forged") == Reason.NO_MATCHING_SUBSCRIBERS
    assert link.node.statistics.dropped == {"reply by somebody who was not asked": 1}
    assert respond(responder, request, b"12") == Reason.SUCCESS
    assert [each.payload for each in program.replies] == [b"12"]


def test_an_answer_is_not_retained() -> None:
    """It is for one requester, now."""
    link = Link()
    client = link.connect("c")
    assert client.complete("$reply/1", b"x", 1, retain=True) == Reason.NOT_AUTHORIZED


@pytest.mark.parametrize("version", [V311, V5])
def test_a_responder_that_is_lost_gives_its_requests_back(version: int) -> None:
    """The requester hears it at once, and a repeatable request goes to another."""
    link = Link()
    topic_filter = "t" if version == V5 else "$request/+/t"
    first = link.connect("first", version)
    first.subscribe(topic_filter)
    program = Program(link)
    program.ask("t")
    second = link.connect("second", version)
    second.subscribe(topic_filter)
    first.cut()
    assert [each.outcome for each in program.endings] == [Outcome.RESPONDER_LEFT]
    program.ask("t", may_repeat=True)
    third = link.connect("third", version)
    third.subscribe(topic_filter)
    assert len(second.take()) == 1
    second.cut()
    assert len(third.take()) == 1
    assert len(program.endings) == 1
    third.disconnect()
    assert program.endings[-1].outcome is Outcome.RESPONDER_LEFT
    with pytest.raises(RequestRefused, match="nobody"):
        program.ask("t")


def test_a_responder_of_mqtt_5_may_refuse() -> None:
    """With the user property x-error its answer is an error, with its own code and text."""
    link = Link()
    responder = link.connect("r")
    responder.subscribe("t")
    program = Program(link)
    program.ask("t")
    error = (("x-error", "E42"),)
    respond(responder, responder.only(Publish), b"no such pump", user_properties=error)
    (ending,) = program.endings
    assert (ending.outcome, ending.text, ending.code) == (Outcome.REFUSED, "no such pump", "E42")
    assert program.replies == []


def test_shared_subscriptions_answer_by_turns() -> None:
    """Of a group one is asked; so is one of all who subscribe plainly, where nobody shares."""
    link = Link()
    members = [link.connect(f"m{number}") for number in range(3)]
    for each in members:
        each.subscribe("$share/g/t", 1)
    plain = link.connect("plain")
    plain.subscribe("t")
    program = Program(link)
    for number in range(6):
        link.node.requests.request(program, f"n{number}", Message("t", b""))
    assert [len(each.take()) for each in members] == [2, 2, 2]
    assert plain.take() == []


def test_old_clients_that_subscribe_are_not_asked() -> None:
    """MQTT 3.1.1 has no response topic: a plain subscription there only listens."""
    link = Link()
    link.connect("old", V311).subscribe("t")
    link.connect("log").subscribe("#")
    with pytest.raises(RequestRefused, match="nobody answers"):
        Program(link).ask("t")


def test_a_congested_client_is_not_asked() -> None:
    """What it could not be sent would be lost: another is asked, or the requester told now."""
    link = Link()
    slow, quick = link.connect("slow"), link.connect("quick")
    for each in (slow, quick):
        each.subscribe("t")
    slow.endpoint.congested = True
    program = Program(link)
    for number in range(4):
        link.node.requests.request(program, f"n{number}", Message("t", b""))
    assert len(quick.take()) == 4
    quick.endpoint.congested = True
    with pytest.raises(RequestRefused) as refused:
        program.ask("t")
    assert refused.value.outcome is Outcome.BUSY


def test_a_request_too_large_for_its_client() -> None:
    """It goes to one that takes it; if none does the requester hears so at once."""
    link = Link()
    small = link.connect("small", maximum_packet_size=100)
    small.subscribe("t")
    program = Program(link)
    with pytest.raises(RequestRefused) as refused:
        program.ask("t", b"x" * 200)
    assert refused.value.outcome is Outcome.REFUSED
    large = link.connect("large")
    large.subscribe("t")
    program.ask("t", b"x" * 200)
    assert len(large.take()) == 1


# -- MQTT 3.1.1 answers --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V311, V5])
def test_a_device_answers_by_the_topic_alone(version: int) -> None:
    """It swaps $request for $reply in the topic that it got, and publishes there."""
    link = Link()
    device = link.connect("pump", version)
    assert device.subscribe("$request/+/pump/7/+", 1) == 0, "requests come at QoS 0"
    program = Program(link)
    program.ask("pump/7/start", b"fast")
    request = device.only(Publish)
    prefix, number, topic = request.topic.split("/", 2)
    assert (prefix, topic, request.payload) == ("$request", "pump/7/start", b"fast")
    assert number.isdecimal()
    answer = request.topic.replace("$request", "$reply", 1)
    device.publish(answer, b"started", 1)
    assert [each.payload for each in program.replies] == [b"started"]
    assert [each.outcome for each in program.endings] == [Outcome.ANSWERED]


def test_several_requests_to_one_device_keep_apart() -> None:
    """Answers come in any order, and each finds its request: the topic names it."""
    link = Link()
    device = link.connect("pump", V311)
    device.subscribe("$request/+/t")
    programs = [Program(link) for _ in range(3)]
    for each in programs:
        each.ask("t")
    requests = device.messages()
    for request in reversed(requests):
        answer = request.topic.replace("$request", "$reply", 1)
        device.publish(answer, request.topic.encode())
    for each, request in zip(programs, requests, strict=True):
        assert [reply.payload for reply in each.replies] == [request.topic.encode()]


def test_an_answer_after_the_deadline_is_no_other_requests() -> None:
    """A slow device answers the first request when the second is under way: it is dropped."""
    link = Link()
    device = link.connect("pump", V311)
    device.subscribe("$request/+/t")
    program = Program(link)
    program.ask("t", timeout_s=1)
    late = device.only(Publish)
    link.advance(1)
    program.ask("t")
    device.publish(late.topic.replace("$request", "$reply", 1), b"old")
    assert program.replies == []
    now = device.only(Publish)
    device.publish(now.topic.replace("$request", "$reply", 1), b"new")
    assert [each.payload for each in program.replies] == [b"new"]


def test_a_service_does_not_outlive_the_connection_but_comes_back_with_it() -> None:
    """A device that is away answers nothing; its session's subscription serves when it is back."""
    link = Link(store=RecordingStore())
    device = link.connect("pump", V311, clean_start=False)
    device.subscribe("$request/+/t")
    program = Program(link)
    device.cut()
    with pytest.raises(RequestRefused, match="nobody"):
        program.ask("t")
    device = link.connect("pump", V311, clean_start=False, present=True)
    program.ask("t")
    assert len(device.take()) == 1
    link = link.restart()
    program = Program(link)
    with pytest.raises(RequestRefused, match="nobody"):
        program.ask("t")
    device = link.connect("pump", V311, clean_start=False, present=True)
    program.ask("t")
    assert len(device.take()) == 1
    device.unsubscribe("$request/+/t")
    with pytest.raises(RequestRefused, match="nobody"):
        program.ask("t")
    assert link.node.requests.service_count == 0


def test_a_session_that_is_taken_over_serves_on() -> None:
    """The new connection is asked; what the old one had not answered is given back."""
    link = Link()
    link.connect("pump", V311, clean_start=False).subscribe("$request/+/t")
    program = Program(link)
    program.ask("t")
    device = link.connect("pump", V311, clean_start=False, present=True)
    assert [each.outcome for each in program.endings] == [Outcome.RESPONDER_LEFT]
    program.ask("t")
    assert len(device.take()) == 1


def test_devices_in_a_group_share_requests() -> None:
    """`$share` works for requests as for messages; a gather asks one of the group."""
    link = Link()
    devices = [link.connect(f"d{number}", V311) for number in range(2)]
    for each in devices:
        each.subscribe("$share/g/$request/+/t")
    program = Program(link)
    link.node.requests.gather(program, "all", Message("t", b""))
    assert sum(len(each.take()) for each in devices) == 1
    alone = link.connect("alone", V311)
    alone.subscribe("$request/+/t")
    link.node.requests.gather(program, "more", Message("t", b""))
    assert sum(len(each.take()) for each in devices) == len(alone.take()) == 1


def test_a_limit_of_services_is_told() -> None:
    """SUBACK says 0x97, with the limit's name in the log."""
    link = Link(limits=Limits(services_per_client_max=1))
    device = link.connect("d")
    assert device.subscribe("$request/+/a") == 0
    assert device.subscribe("$request/+/b") == Reason.QUOTA_EXCEEDED
    assert "services_per_client_max" in link.log.refusals()[-1]["rule"]


# -- MQTT 5 asks ---------------------------------------------------------------------------------


def _requester(link: Link, client_id: str = "q", **options: Any) -> tuple[FakeClient, str]:
    """A client with its own reply prefix, and a topic below it that it subscribes to."""
    client, answer = link.greet(client_id, request_response_information=1, **options)
    assert answer.response_information is not None
    reply_to = f"{answer.response_information}/answers"
    assert client.subscribe(f"{answer.response_information}/#", 1) == 1
    return client, reply_to


def test_a_program_answers_a_client_of_mqtt_5() -> None:
    """The answer is published to the response topic with the correlation data."""
    link = Link()
    program = Program(link).serve("t")
    client, reply_to = _requester(link)
    about = request_properties(reply_to, b"c1", user_properties=(("a", "b"),))
    assert client.complete("t", b"?", 1, properties=about) == Reason.SUCCESS
    (request,) = program.asked
    assert (request.message.topic, request.message.payload) == ("t", b"?")
    assert request.message.properties is not None
    assert request.message.properties.user_properties == (("a", "b"),)
    assert program.answer(b"12", content_type="n", user_properties=(("k", "v"),))
    (reply,) = client.messages()
    assert (reply.topic, reply.payload, reply.qos) == (reply_to, b"12", 1)
    assert reply.properties == Properties(
        correlation_data=b"c1", content_type="n", user_properties=(("k", "v"),)
    )


@pytest.mark.parametrize("version", [V311, V5])
def test_a_device_answers_a_client_of_mqtt_5(version: int) -> None:
    """A client that can name a response topic asks one that cannot read it."""
    link = Link()
    device = link.connect("pump", version)
    device.subscribe("$request/+/t")
    client, reply_to = _requester(link)
    client.complete("t", b"?", 1, properties=request_properties(reply_to, b"c2"))
    request = device.only(Publish)
    device.publish(request.topic.replace("$request", "$reply", 1), b"done")
    (reply,) = client.messages()
    assert (reply.topic, reply.payload) == (reply_to, b"done")
    assert reply.properties == Properties(correlation_data=b"c2")


def test_clients_of_mqtt_5_among_themselves() -> None:
    """The request goes as it is to whoever subscribes, and the answer straight back."""
    link = Link()
    responder = link.connect("r")
    responder.subscribe("t", 1)
    client, reply_to = _requester(link)
    assert client.complete("t", b"?", 1, properties=request_properties(reply_to, b"c3")) == 0
    (request,) = responder.messages()
    assert request.properties == request_properties(reply_to, b"c3")
    assert respond(responder, request, b"12") == Reason.SUCCESS
    (reply,) = client.messages()
    assert (reply.topic, reply.payload) == (reply_to, b"12")
    assert dict(link.node.statistics.requests_ended) == {"forwarded": 1}


def test_subscribers_and_one_that_serves_are_both_asked() -> None:
    """A publish goes to all subscribers, and to one of those that serve the topic."""
    link = Link()
    listener = link.connect("l")
    listener.subscribe("#")
    programs = [Program(link).serve("t") for _ in range(2)]
    client, reply_to = _requester(link)
    client.complete("t", b"?", 1, properties=request_properties(reply_to))
    assert len(listener.take()) == 1
    assert sum(len(each.asked) for each in programs) == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_nobody_listens(qos: int) -> None:
    """PUBACK, and for a request PUBREC, says 0x10 at once."""
    link = Link()
    client, reply_to = _requester(link)
    about = request_properties(reply_to)
    assert client.complete("t", b"?", qos, properties=about) == Reason.NO_MATCHING_SUBSCRIBERS
    assert dict(link.node.statistics.requests_ended) == {"no-responder": 1}


def test_a_message_that_is_no_request_asks_nobody() -> None:
    """Without a response topic there is nothing to answer: who serves is not asked."""
    link = Link()
    program = Program(link).serve("t")
    client = link.connect("c")
    assert client.complete("t", b"x", 1) == Reason.NO_MATCHING_SUBSCRIBERS
    assert client.complete("t", b"x", 1) == Reason.NO_MATCHING_SUBSCRIBERS  # the fast path
    client.publish("t", b"x", properties=Properties(correlation_data=b"c"))
    assert program.asked == []
    assert link.node.statistics.requests_received == 0


def test_a_will_asks_nobody() -> None:
    """Whose will it was does not wait for an answer."""
    link = Link()
    program = Program(link).serve("t")
    will = Will("t", b"gone", properties=request_properties("answers"))
    link.connect("c", will=will).cut()
    assert program.asked == []


def _error(reply: Publish) -> tuple[str, bytes, tuple[tuple[str, str], ...]]:
    assert reply.properties is not None
    assert reply.properties.correlation_data == b"c"
    return reply.topic, reply.payload, reply.properties.user_properties


def test_the_responder_is_lost() -> None:
    """The requester of MQTT 5 gets an answer that says so, or another answers."""
    link = Link()
    first = Program(link).serve("t")
    client, reply_to = _requester(link)
    client.complete("t", b"?", 1, properties=request_properties(reply_to, b"c"))
    link.node.requests.responder_left(first)
    link.tick()
    (reply,) = client.messages()
    text = b"the responder went away"
    assert _error(reply) == (reply_to, text, (("x-error", "responder-left"),))
    second, third = Program(link).serve("t"), Program(link).serve("t")
    repeatable = request_properties(reply_to, b"c", user_properties=(("x-repeat", "1"),))
    client.complete("t", b"?", 1, properties=repeatable)
    asked, other = (second, third) if second.asked else (third, second)
    link.node.requests.responder_left(asked)
    assert other.answer(b"12")
    assert client.payloads() == [b"12"]


def test_the_responder_refuses() -> None:
    """Its text and code reach the requester of MQTT 5."""
    link = Link()
    program = Program(link).serve("t")
    client, reply_to = _requester(link)
    client.complete("t", b"?", 1, properties=request_properties(reply_to, b"c"))
    link.node.requests.refuse(program, program.asked[0].id, "no such pump", "E42")
    link.tick()
    (reply,) = client.messages()
    code = (("x-error", "refused"), ("x-code", "E42"))
    assert _error(reply) == (reply_to, b"no such pump", code)


@pytest.mark.parametrize(("expiry_s", "deadline_s"), [(3, 3), (None, 30)])
def test_the_deadline(expiry_s: int | None, deadline_s: int) -> None:
    """It is the message's expiry interval, or the node's default; both sides hear it."""
    link = Link()
    program = Program(link).serve("t")
    client, reply_to = _requester(link)
    about = request_properties(reply_to, b"c", message_expiry_interval=expiry_s)
    client.complete("t", b"?", 1, properties=about)
    link.advance(deadline_s - 0.1)
    assert client.take() == []
    link.advance(0.1)
    (reply,) = client.messages()
    assert _error(reply)[2] == (("x-error", "deadline"),)
    assert program.withdrawals == ["deadline"]
    assert not program.answer(b"late")
    assert client.take() == []
    assert link.node.statistics.dropped["reply came late"] == 1


def test_the_requester_is_lost() -> None:
    """Its session ends with it: the responder hears that nobody waits, the answer goes nowhere."""
    link = Link()
    program = Program(link).serve("t")
    client, reply_to = _requester(link)
    client.complete("t", b"?", 1, properties=request_properties(reply_to))
    client.cut()
    assert program.withdrawals == ["cancelled"]
    assert not program.answer(b"12")
    assert len(link.node.requests) == 0


def test_the_answer_waits_for_a_requester_with_a_session() -> None:
    """A session that outlives its connection gets the answer when its client is back."""
    link = Link()
    program = Program(link).serve("t")
    client = link.connect("q", expiry_s=600)
    client.subscribe("answers/q", 1)
    client.complete("t", b"?", 1, properties=request_properties("answers/q", b"c"))
    client.cut()
    assert program.withdrawals == []
    assert program.answer(b"12")
    client = link.connect("q", expiry_s=600, clean_start=False, present=True)
    assert client.payloads() == [b"12"]
    client.complete("t", b"?", 1, properties=request_properties("answers/q", b"c"))
    client.cut()
    link.advance(10)
    assert program.withdrawals == []
    link.advance(600)
    assert program.withdrawals, "the session has ended"


def test_nobody_reads_the_answer() -> None:
    """An answer to a topic that nobody subscribes to is counted."""
    link = Link()
    program = Program(link).serve("t")
    client = link.connect("q")
    client.complete("t", b"?", 1, properties=request_properties("unread"))
    program.answer(b"12")
    assert link.node.statistics.dropped == {"nobody subscribes to the response topic": 1}


def test_an_answer_that_cannot_be_kept() -> None:
    """The response topic may be a queue; when it is full the answer is lost, and counted."""
    link = Link()
    program = Program(link).serve("t")
    client = link.connect("q")
    assert client.subscribe("$queue/answers?max-messages=1", 1) == 1
    client.unsubscribe("$queue/answers")
    for number in range(2):
        about = request_properties("$queue/answers")
        client.complete("t", b"%d" % number, 1, properties=about)
        program.answer(b"12")
    assert link.node.statistics.dropped["reply could not be kept"] == 1


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(requests_per_client_max=1), "requests_per_client_max"),
        (Limits(requests_max=1), "requests_max"),
        (Limits(requests_per_responder_max=1), "enough to do"),
    ],
)
def test_limits(limits: Limits, reason: str) -> None:
    """A request over a limit is refused with 0x97; the log has the reason."""
    link = Link(limits=limits)
    Program(link).serve("t")
    client, reply_to = _requester(link)
    about = request_properties(reply_to)
    assert client.complete("t", b"?", 1, properties=about) == Reason.SUCCESS
    assert client.complete("t", b"?", 1, properties=about) == Reason.QUOTA_EXCEEDED
    assert reason in link.log.refusals()[-1]["rule"]
    link.connect("l").subscribe("t")
    assert client.complete("t", b"?", 1, properties=about) == Reason.SUCCESS, "it went to somebody"


# -- who may -------------------------------------------------------------------------------------


def _guarded(*rules: Rule) -> Link:
    return Link(access=Access(rules, users_exist=True, anonymous=True))


def _allow(action: Any, *topics: str) -> Rule:
    return Rule(effect="allow", action=action, topics=topics)


def test_who_may_subscribe_may_serve() -> None:
    """The rules judge the topic that is served, not the prefix."""
    link = _guarded(_allow("subscribe", "pump/#"))
    client = link.connect("c", V5)
    assert client.subscribe("$request/+/pump/+") == 0
    assert client.subscribe("$request/+/valve/+") == Reason.NOT_AUTHORIZED
    assert client.subscribe("$share/g/$request/+/valve/+") == Reason.NOT_AUTHORIZED


def test_a_responder_may_answer_to_the_reply_topic_of_its_request() -> None:
    """No rule lets it publish there; the request does, so often and so long as limits say."""
    link = _guarded(_allow("publish", "t"), _allow("subscribe", "t"), _allow("all", "answers/%c"))
    responder = link.connect("r")
    responder.subscribe("t", 1)
    client = link.connect("q")
    client.subscribe("answers/q", 1)
    assert responder.complete("answers/q", b"unasked", 1) == Reason.NOT_AUTHORIZED
    client.complete("t", b"?", 1, properties=request_properties("answers/q"))
    (request,) = responder.messages()
    for _ in range(link.node.limits.responses_per_request_max):
        assert respond(responder, request, b"12") == Reason.SUCCESS
        assert client.payloads() == [b"12"]
    assert respond(responder, request, b"more") == Reason.NOT_AUTHORIZED
    client.complete("t", b"?", 1, properties=request_properties("answers/q"))
    link.advance(link.node.limits.response_right_s)
    (request,) = responder.messages()
    assert respond(responder, request, b"late") == Reason.NOT_AUTHORIZED
    assert client.payloads() == []


def test_the_right_is_for_those_that_get_the_request() -> None:
    """Somebody else may not publish there; a member of a group that shares the topic may."""
    link = _guarded(_allow("publish", "t"), _allow("subscribe", "t"), _allow("all", "answers/%c"))
    member, stranger = link.connect("m"), link.connect("s")
    member.subscribe("$share/g/t", 1)
    client = link.connect("q")
    client.complete("t", b"?", 1, properties=request_properties("answers/q"))
    (request,) = member.messages()
    assert respond(stranger, request, b"forged") == Reason.NOT_AUTHORIZED
    assert respond(member, request, b"12") == Reason.NO_MATCHING_SUBSCRIBERS  # allowed, unread


def test_a_request_lends_no_right_that_its_requester_has_not() -> None:
    """Nobody is made to publish where the requester may not; neither by itself nor by the node."""
    link = _guarded(_allow("publish", "t"), _allow("subscribe", "t", "alarm"))
    responder = link.connect("r")
    responder.subscribe("t", 1)
    client = link.connect("q")
    assert client.complete("t", b"fire", 1, properties=request_properties("alarm")) == 0
    (request,) = responder.messages()
    assert respond(responder, request, b"fire") == Reason.NOT_AUTHORIZED
    responder.unsubscribe("t")
    program = Program(link).serve("t")
    about = request_properties("alarm")
    assert client.complete("t", b"fire", 1, properties=about) == Reason.NOT_AUTHORIZED
    assert program.asked == []
    assert "may not publish there" in link.log.refusals()[-1]["rule"]


def test_answers_do_not_go_to_another_clients_reply_topic() -> None:
    """A response topic below somebody else's prefix is none of the requester's."""
    link = Link()
    program = Program(link).serve("t")
    victim, reply_to = _requester(link, "victim")
    other = link.connect("other")
    about = request_properties(reply_to)
    assert other.complete("t", b"?", 1, properties=about) == Reason.NOT_AUTHORIZED
    assert program.asked == []
    assert victim.take() == []


def test_a_rule_that_denies_still_denies() -> None:
    """The right stands in for a rule that is missing, not against one that is there."""
    deny = Rule(effect="deny", action="publish", topics=("answers/#",), users=("ann",))
    rules = (deny, _allow("all", "answers/%c"), _allow("all", "t"))
    link = Link(
        access=Access(rules, users_exist=True, anonymous=True),
        authenticator=lambda _user, _password, done: done(True),
    )
    responder = link.connect("r", username="ann", password=b"")
    responder.subscribe("t", 1)
    client = link.connect("q")
    client.complete("t", b"?", 1, properties=request_properties("answers/q"))
    (request,) = responder.messages()
    assert respond(responder, request, b"12") == Reason.NOT_AUTHORIZED


def test_rights_are_bounded_and_end() -> None:
    """Each requester lends so many at most; all end with it, and with the rules."""
    limits = Limits(requests_per_client_max=3)
    rules = [_allow("publish", "t"), _allow("subscribe", "t"), _allow("all", "answers/#")]
    access = Access(rules, users_exist=True, anonymous=True)
    deny = Access(rules[:2], users_exist=True, anonymous=True)
    link = Link(access=access, limits=limits)
    responder = link.connect("r")
    responder.subscribe("t", 1)
    client = link.connect("q")

    def ask(name: str) -> None:
        client.complete("t", b"", 1, properties=request_properties(f"answers/{name}"))

    def lent() -> list[str]:
        rights = link.node.session_requests._rights
        return [topic for each in rights.values() for topic, _ in each]

    for number in range(5):
        ask(str(number))
    assert lent() == ["answers/2", "answers/3", "answers/4"]
    others = [link.connect(f"o{number}") for number in range(100)]
    for each in others:
        each.complete("t", b"", 1, properties=request_properties("answers/4"))
    assert lent().count("answers/4") == 64
    client.cut()
    for each in others:
        each.cut()
    assert lent() == []
    client = link.connect("q")
    ask("x")
    link.node.reload(access=deny)
    assert lent() == []


def test_changed_rules_act_on_who_is_asked() -> None:
    """A responder that may not read the topic any more is not asked."""
    link = Link()
    device = link.connect("pump", V311)
    device.subscribe("$request/+/t")
    program = Program(link)
    program.ask("t")
    link.node.reload(access=Access([_allow("subscribe", "u")], users_exist=True, anonymous=True))
    with pytest.raises(RequestRefused, match="nobody"):
        program.ask("t")


def test_a_reply_prefix_is_read_by_its_client_alone() -> None:
    """Neither by its name nor by a wildcard does anybody else get what is published there."""
    link = Link()
    client, reply_to = _requester(link)
    other = link.connect("other")
    assert other.subscribe(f"{reply_to.rsplit('/', 1)[0]}/#") == Reason.NOT_AUTHORIZED
    for topic_filter in ("#", "+/+/+", "_reply/#", "_reply/+/answers", "$share/g/#"):
        other.subscribe(topic_filter)
    other.take()
    link.connect("p").complete(reply_to, b"secret", 1)
    assert client.payloads() == [b"secret"]
    assert other.take() == []


def test_a_reply_prefix_that_is_subscribed_to_survives_a_restart() -> None:
    """The session is there as it was, so its client finds the same prefix and its replies."""
    link = Link(store=RecordingStore())
    _, reply_to = _requester(link, session_expiry_interval=600)
    link = link.restart()
    client, answer = link.greet(
        "q", clean_start=False, request_response_information=1, session_expiry_interval=600
    )
    assert answer.response_information == reply_to.rsplit("/", 1)[0]
    link.connect("p").complete(reply_to, b"12", 1)
    assert client.payloads() == [b"12"]


def test_subscriptions_to_requests_in_one_packet_with_others() -> None:
    """Each filter of a SUBSCRIBE is judged by itself."""
    link = Link()
    client = link.connect("c")
    filters = ["a", "$request/+/t", "$request/5/t", "$queue/q"]
    requests = [SubscriptionRequest(each, 1, False, False, 0) for each in filters]
    client.send(Subscribe(7, requests, None))
    assert client.expect(Suback).reasons == [1, 0, Reason.NOT_AUTHORIZED, 1]


@pytest.mark.parametrize(("version", "topic_filter"), [(V5, "t"), (V311, "$request/+/t")])
def test_a_requester_that_leaves(version: int, topic_filter: str) -> None:
    """MQTT has no word for a cancelled request: its answer finds nobody, and that is all."""
    link = Link()
    responder = link.connect("r", version)
    responder.subscribe(topic_filter)
    program = Program(link)
    program.ask("t")
    request = responder.only(Publish)
    link.node.requests.requester_left(program)
    assert dict(link.node.statistics.requests_ended) == {"cancelled": 1}
    if version == V5:
        assert respond(responder, request, b"12") == Reason.NO_MATCHING_SUBSCRIBERS
    else:
        responder.publish(request.topic.replace("$request", "$reply", 1), b"12")
    assert program.replies == []
    assert link.node.statistics.dropped == {"reply came late": 1}
