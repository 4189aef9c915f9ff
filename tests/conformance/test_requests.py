"""Request/reply from outside: every pair of protocols, and what becomes of it when one is lost.

Between two clients of MQTT 5 a request is a message like any other and the broker stands between
them only with their response topic: what it cannot know there is marked.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.conformance.request_parties import (
    ANSWERERS,
    ASKERS,
    Answerer,
    Asker,
    Heard,
    Mqtt5Asker,
    NativeAnswerer,
    NativeAsker,
    dropped_replies,
)
from tests.support import BrokerProcess, RawClient, publish_packet, start_daemon, text, until

_numbers = count(1)

every_pair = pytest.mark.parametrize(
    ("asks", "answers"), [(asks, answers) for asks in ASKERS for answers in ANSWERERS]
)
every_pair_that_the_broker_keeps = pytest.mark.parametrize(
    ("asks", "answers"),
    [
        (asks, answers)
        for asks in ASKERS
        for answers in ANSWERERS
        if (asks, answers) != ("MQTT 5", "MQTT 5")  # they answer each other by themselves
    ],
)


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    """The broker that all tests of this module talk to."""
    with start_daemon("--native", "127.0.0.1:0") as process:
        yield process


class Pair:
    """A requester and a responder for a topic of their own."""

    def __init__(self, broker: BrokerProcess, stack: ExitStack, asks: str, answers: str) -> None:
        self.asks = asks
        self.answers = answers
        self.topic = f"pair{next(_numbers)}/price"
        self._broker = broker
        self._stack = stack
        self.asker = self.ask_too()
        self.answerer = self.serve()

    def ask_too(self) -> Asker:
        """One more requester like the first."""
        asker = ASKERS[self.asks](self._broker)
        self._stack.callback(asker.close)
        return asker

    def serve(self) -> Answerer:
        """One more responder like the first."""
        answerer = ANSWERERS[self.answers](self._broker, self.topic)
        self._stack.callback(answerer.close)
        return answerer


MakePair = Callable[[str, str], Pair]


@pytest.fixture
def make_pair(broker: BrokerProcess) -> Iterator[MakePair]:
    """Makes pairs by the protocols of requester and responder, and closes them at the end."""
    with ExitStack() as stack:
        yield partial(Pair, broker, stack)


@every_pair
def test_a_request_is_answered(make_pair: MakePair, asks: str, answers: str) -> None:
    """Topic and payload arrive as they were, and the answer comes back to its request."""
    pair = make_pair(asks, answers)
    for payload in (b"", b"how much? \x00\xff", b"x" * 100_000):
        name = pair.asker.ask(pair.topic, payload)
        call = pair.answerer.take()
        assert (call.topic, call.payload) == (pair.topic, payload)
        assert pair.answerer.answer(call, payload[::-1])
        assert pair.asker.hear() == Heard(name, payload[::-1])
    pair.asker.expect_nothing()
    pair.answerer.expect_nothing()


@every_pair
def test_answers_find_their_requests(make_pair: MakePair, asks: str, answers: str) -> None:
    """Many are under way at once; whatever the order of answers, none is taken for another's."""
    pair = make_pair(asks, answers)
    names = {pair.asker.ask(pair.topic, b"%d" % number): number for number in range(50)}
    calls = [pair.answerer.take() for _ in range(50)]
    for call in calls[::-1]:
        assert pair.answerer.answer(call, b"answer to " + call.payload)
    heard = {each.name: each.payload for each in (pair.asker.hear() for _ in names)}
    assert heard == {name: b"answer to %d" % number for name, number in names.items()}


@every_pair
def test_nobody_answers(make_pair: MakePair, asks: str, answers: str) -> None:
    """It is an error at once, before anybody served the topic and after the last has gone."""
    pair = make_pair(asks, answers)
    name = pair.asker.ask(f"{pair.topic}/other", b"?")
    assert pair.asker.hear() == Heard(name, error="no-responder")
    pair.answerer.lose()

    def is_told() -> bool:
        name = pair.asker.ask(pair.topic, b"?", timeout_s=600)
        if isinstance(pair.asker, Mqtt5Asker) and answers == "MQTT 5":
            heard = pair.asker.told_at_once()  # between them PUBACK is all there is
        else:
            heard = pair.asker.hear()
        if heard == Heard(name, error="no-responder"):
            return True
        assert heard in (None, Heard(name, error="responder-left"))
        return False

    until(is_told)  # that the connection is lost has to arrive


@every_pair_that_the_broker_keeps
def test_the_responder_is_lost(make_pair: MakePair, asks: str, answers: str) -> None:
    """What it had not answered is an error at once; other requests go on."""
    pair = make_pair(asks, answers)
    first = pair.asker.ask(pair.topic, b"1")
    second = pair.asker.ask(pair.topic, b"2")
    pair.answerer.answer(pair.answerer.take(), b"one")
    assert pair.asker.hear() == Heard(first, b"one")
    pair.answerer.take()
    pair.answerer.lose()
    assert pair.asker.hear() == Heard(second, error="responder-left")
    pair.asker.expect_nothing()


@every_pair_that_the_broker_keeps
def test_another_responder_takes_over(make_pair: MakePair, asks: str, answers: str) -> None:
    """A request that may be repeated goes to another when its responder is lost."""
    pair = make_pair(asks, answers)
    name = pair.asker.ask(pair.topic, b"?", may_repeat=True)
    pair.answerer.take()
    other = pair.serve()
    pair.answerer.lose()
    call = other.take()
    assert call.payload == b"?"
    other.answer(call, b"here")
    assert pair.asker.hear() == Heard(name, b"here")


@every_pair_that_the_broker_keeps
def test_responders_share_the_work(make_pair: MakePair, asks: str, answers: str) -> None:
    """Each request goes to one of them, to the one with the fewest unanswered requests."""
    pair = make_pair(asks, answers)
    responders = [pair.answerer, pair.serve(), pair.serve()]
    for _ in range(6):
        pair.asker.ask(pair.topic, b"?")
    calls = [[each.take(), each.take()] for each in responders]
    for each in responders:
        each.expect_nothing()
    for call in calls[1]:
        responders[1].answer(call, b"!")
        pair.asker.hear()
    for _ in range(2):
        pair.asker.ask(pair.topic, b"?")
    responders[1].take()
    responders[1].take()


@pytest.mark.slow
@every_pair_that_the_broker_keeps
def test_the_deadline(broker: BrokerProcess, make_pair: MakePair, asks: str, answers: str) -> None:
    """It is an error when the time is over; the late answer is no other request's, and counted."""
    pair = make_pair(asks, answers)
    late = pair.asker.ask(pair.topic, b"1", timeout_s=1)
    call = pair.answerer.take()
    assert pair.asker.hear() == Heard(late, error="deadline")
    now = pair.asker.ask(pair.topic, b"2")
    dropped = dropped_replies(broker)
    pair.answerer.answer(call, b"late")
    pair.asker.expect_nothing()
    until(lambda: dropped_replies(broker) == dropped + 1, what="the count of the late answer")
    pair.answerer.answer(pair.answerer.take(), b"in time")
    assert pair.asker.hear() == Heard(now, b"in time")


@every_pair
def test_the_requester_is_lost(make_pair: MakePair, asks: str, answers: str) -> None:
    """Its responder is told so when it answers, where its protocol can; it serves on."""
    pair = make_pair(asks, answers)
    pair.asker.ask(pair.topic, b"1")
    call = pair.answerer.take()
    pair.asker.lose()
    if answers != "MQTT 3.1.1":
        until(lambda: not pair.answerer.answer(call, b"one"))  # the loss has to arrive
    else:
        pair.answerer.answer(call, b"one")
    again = pair.ask_too()
    name = again.ask(pair.topic, b"2")
    pair.answerer.answer(pair.answerer.take(), b"two")
    assert again.hear() == Heard(name, b"two")
    again.expect_nothing()


@pytest.mark.slow
@pytest.mark.parametrize("asks", ASKERS)
def test_a_responder_hears_that_nobody_waits(make_pair: MakePair, asks: str) -> None:
    """The deadline and the loss of the requester reach who serves by the native protocol."""
    pair = make_pair(asks, "native")
    assert isinstance(pair.answerer, NativeAnswerer)
    pair.asker.ask(pair.topic, b"?", timeout_s=1)
    pair.answerer.take()
    assert pair.answerer.withdrawn() == "deadline"
    pair.asker.ask(pair.topic, b"?")
    pair.answerer.take()
    pair.asker.lose()
    assert pair.answerer.withdrawn() == "cancelled"


def test_cancellation_reaches_the_responder(make_pair: MakePair) -> None:
    """A requester that does not want the answer any more says so, and its responder hears it."""
    pair = make_pair("native", "native")
    assert isinstance(pair.asker, NativeAsker)
    assert isinstance(pair.answerer, NativeAnswerer)
    name = pair.asker.ask(pair.topic, b"?")
    call = pair.answerer.take()
    pair.asker.cancel(name)
    assert pair.answerer.withdrawn() == "cancelled"
    assert not pair.answerer.answer(call, b"too late")
    pair.asker.expect_nothing()


def test_a_gather_asks_every_protocol(broker: BrokerProcess, make_pair: MakePair) -> None:
    """Responders of all protocols answer one request; who is lost meanwhile is not waited for."""
    pair = make_pair("native", "native")
    assert isinstance(pair.asker, NativeAsker)
    responders = {"native": pair.answerer}
    with ExitStack() as stack:
        for protocol, serve in ANSWERERS.items():
            if protocol not in responders:
                responders[protocol] = serve(broker, pair.topic)
                stack.callback(responders[protocol].close)
        lost = pair.serve()
        name = pair.asker.gather(pair.topic, b"who is there?")
        for protocol, responder in responders.items():
            call = responder.take()
            responder.answer(call, protocol.encode())
        lost.take()
        lost.lose()
        answers, result = pair.asker.gathered(name)
        assert sorted(answers) == sorted(each.encode() for each in responders)
        assert result == {"replies": len(responders), "reason": "all"}
        name = pair.asker.gather(pair.topic, b"two will do", count=2)
        for protocol, responder in list(responders.items())[:2]:
            responder.answer(responder.take(), protocol.encode())
        answers, result = pair.asker.gathered(name)
        assert (len(answers), result) == (2, {"replies": 2, "reason": "count"})


def test_a_device_answers_only_what_it_was_asked(
    broker: BrokerProcess, make_pair: MakePair
) -> None:
    """A third client that knows the topic for the answer changes nothing."""
    pair = make_pair("MQTT 5", "MQTT 3.1.1")
    name = pair.asker.ask(pair.topic, b"?")
    call = pair.answerer.take()
    assert isinstance(call.reply_to, str)
    with RawClient(broker.ports["mqtt"]) as other:
        other.join(f"other{next(_numbers)}", version=5)
        other.send(publish_packet(call.reply_to, b"forged", qos=1, version=5))
        assert other.expect_kind(4).body[2:3] == b"\x10"
    pair.answerer.answer(call, b"real")
    assert pair.asker.hear() == Heard(name, b"real")


@pytest.mark.slow
def test_the_answer_of_a_client_without_rules_of_its_own(tmp_path: Path) -> None:
    """Denied by default, a responder may answer to the response topic of the request it got."""
    hasher = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    users = tmp_path / "users"
    users.write_text(f"somebody:{hasher.hash('secret')}\n")
    users.chmod(0o600)
    config = f"""
        [access]
        users = "{users}"
        anonymous = true
        [[rules]]
        effect = "allow"
        action = "publish"
        topics = ["price", "answers/%c"]
        [[rules]]
        effect = "allow"
        action = "subscribe"
        topics = ["price", "answers/%c"]
        """
    with start_daemon(config=config) as guarded:
        port = guarded.ports["mqtt"]
        with RawClient(port) as asker, RawClient(port) as answerer:
            asker.join("asker", version=5)
            asker.subscribe("answers/asker", version=5)
            answerer.join("answerer", version=5)
            answerer.subscribe("price", version=5)

            def answer() -> int:
                answerer.send(publish_packet("answers/asker", b"12", qos=1, version=5))
                return (answerer.expect_kind(4).body + b"\0")[2]

            assert answer() == 0x87
            properties = b"\x08" + text("answers/asker")
            asker.send(publish_packet("price", b"?", qos=1, version=5, properties=properties))
            asker.expect_kind(4)
            answerer.expect_kind(3)
            assert answer() == 0
            assert asker.expect_kind(3).body.endswith(b"12")
