"""A connection from its first byte to its end: greeting, keep-alive, takeover, drain, hostility."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.broker.core.access import Access, Rule
from ganglion.broker.core.authentication import ScramSha256, Users
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.tokens import InvalidToken
from ganglion.clients.scram import ScramSha256Client
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.operations import Operation as Op
from ganglion.protocols.native.server import NativeSettings
from tests.protocols.native.link import NativeLink


def judge(user: str | None, password: bytes | None, done: Callable[[bool | None], None]) -> None:
    """Everybody's password is ``right``."""
    done(user is not None and password == b"right")


ONLY_USERS = Access([Rule(effect="allow", topics=("#",))], users_exist=True)


class TestHello:
    """The first frame."""

    def test_greeting(self) -> None:
        """It says what was agreed and what holds."""
        link = NativeLink(settings=NativeSettings(addresses=("ganglion://b:7883",)))
        greeting = link.open().hello(client="c", keep_alive_s=7)
        assert greeting["version"] == 1
        assert greeting["client"] == "c"
        assert greeting["keep_alive_s"] == 7
        assert greeting["addresses"] == ["ganglion://b:7883"]
        assert greeting["limits"]["batch_max"] == 1024

    def test_a_client_without_a_name_gets_one(self) -> None:
        """Each its own."""
        link = NativeLink()
        assert link.open().hello()["client"] != link.open().hello()["client"]

    def test_keep_alive_is_capped(self) -> None:
        """By the node's limit, which is told."""
        link = NativeLink(limits=replace(Limits(), keep_alive_max_s=20))
        assert link.open().hello(keep_alive_s=0)["keep_alive_s"] == 20
        assert link.open().hello(keep_alive_s=5)["keep_alive_s"] == 5

    @pytest.mark.parametrize("step", [1, 3, 1000])
    def test_it_comes_in_pieces(self, step: int) -> None:
        """And what follows it in the same bytes is read when it is answered."""
        client = NativeLink().open()
        data = msgpack.packb([32, 1, 1, {"client": "x"}]) + msgpack.packb([14])
        for start in range(0, len(data), step):
            client.send_bytes(data[start : start + step])
        assert [frame[0] for frame in client.take()] == [Op.OK, Op.PONG]

    @pytest.mark.parametrize("frame", [[14], [33, 1, "a", b""], [1, "a", b""], [19, b""]])
    def test_something_else_comes_first(self, frame: list[Any]) -> None:
        """That ends the connection."""
        client = NativeLink().open()
        client.send(frame)
        assert client.goodbye() == Code.PROTOCOL

    def test_a_later_version_is_answered_with_ours(self) -> None:
        """The lower of both is spoken."""
        assert NativeLink().open().call(Op.HELLO, 99)["version"] == 1

    def test_too_low_a_version(self) -> None:
        """The error says which are spoken."""
        client = NativeLink().open()
        client.send([Op.HELLO, 1, 0])
        (frame,) = client.take()
        assert frame[:3] == [Op.ERROR, 1, Code.UNSUPPORTED_VERSION]
        assert frame[4] == {"versions": [1, 1]}
        assert client.is_gone

    @pytest.mark.parametrize(
        "options",
        [
            {"client": 5},
            {"client": "x" * 5000},
            {"keep_alive_s": -1},
            {"keep_alive_s": 70_000},
            {"keep_alive_s": 1.5},
            {"producer": "short"},
            {"user": "u\0"},
            [],
        ],
    )
    def test_what_cannot_be(self, options: Any) -> None:
        """It is refused, and the connection ends."""
        client = NativeLink().open()
        client.send([Op.HELLO, 1, 1, options])
        assert client.take()[-1][:3] == [Op.ERROR, 1, Code.INVALID]
        assert client.is_gone

    def test_what_is_not_known_is_ignored(self) -> None:
        """Options and elements of a later version."""
        client = NativeLink().open()
        client.call(Op.HELLO, 1, {"colour": "red", "features": ["x"]}, "more", [1, 2])

    def test_nobody_speaks(self) -> None:
        """A connection without hello ends after a time."""
        link = NativeLink()
        client = link.open()
        link.advance(Limits().connect_timeout_s + 0.1)
        assert client.goodbye() == Code.PROTOCOL

    def test_too_much_comes_first(self) -> None:
        """Who is not known may send 64 KiB."""
        client = NativeLink().open()
        client.send_bytes(msgpack.packb([32, 1, 1, {"client": "x" * 70_000}]))
        assert client.goodbye() == Code.TOO_LARGE

    def test_twice(self) -> None:
        """A second hello ends the connection."""
        client = NativeLink().connect()
        client.send([Op.HELLO, 9, 1])
        assert client.goodbye() == Code.PROTOCOL


class TestAuthentication:
    """Who a client is."""

    def test_password(self) -> None:
        """The right one."""
        link = NativeLink(access=ONLY_USERS, authenticator=judge)
        assert link.open().hello(user="ada", password=b"right")["user"] == "ada"
        assert link.open().hello(user="ada", password="right")["user"] == "ada"

    @pytest.mark.parametrize(
        "options", [{"user": "ada", "password": b"wrong"}, {"user": "ada"}, {}]
    )
    def test_refused(self, options: dict[str, Any]) -> None:
        """The wrong one, or none, and nothing that follows is done."""
        link = NativeLink(access=ONLY_USERS, authenticator=judge)
        client = link.open()
        client.send([Op.HELLO, 1, 1, options], [Op.PUBLISH, 2, "a", b""])
        (frame,) = client.take()
        assert frame[:3] == [Op.ERROR, 1, Code.NOT_AUTHENTICATED]
        assert client.is_gone
        assert link.node.statistics.publish_received == 0

    def test_a_verdict_that_takes_time(self) -> None:
        """What is sent meanwhile is read afterwards, and the socket is not read on."""
        verdicts: list[Callable[[bool | None], None]] = []
        link = NativeLink(
            access=ONLY_USERS, authenticator=lambda _user, _password, done: verdicts.append(done)
        )
        client = link.open()
        client.send([Op.HELLO, 1, 1, {"user": "ada", "password": b"x"}], [Op.PING])
        paused = client.endpoint.paused
        assert paused
        assert client.take() == []
        verdicts[0](True)
        link.tick()
        paused = client.endpoint.paused
        assert not paused
        assert [frame[0] for frame in client.take()] == [Op.OK, Op.PONG]

    def test_too_many_wait(self) -> None:
        """That is another error than a wrong password."""
        link = NativeLink(access=ONLY_USERS, authenticator=lambda _user, _word, done: done(None))
        client = link.open()
        client.send([Op.HELLO, 1, 1, {"user": "ada", "password": b"x"}])
        assert client.take()[0][2] == Code.BUSY

    def test_scram(self) -> None:
        """The password is proved without being sent, and the node proves that it knows it."""
        users = Users()
        users.add("ada", "secret word")
        link = NativeLink(
            access=ONLY_USERS, mechanisms={"SCRAM-SHA-256": lambda: ScramSha256(users)}
        )
        client, prover = link.open(), ScramSha256Client("ada", "secret word")
        client.send([Op.HELLO, 1, 1, {"mechanism": "SCRAM-SHA-256", "data": prover.first()}])
        ((operation, challenge),) = client.take()
        assert operation == Op.CHALLENGE
        client.send([Op.PROOF, prover.final(challenge)])
        greeting = client.answer(1)[2]
        prover.verify(greeting["data"])
        assert greeting["user"] == "ada"

    @pytest.mark.parametrize(
        ("user", "logged"), [("ada", "another password"), ("nobody", "no such user")]
    )
    def test_scram_that_fails(self, user: str, logged: str) -> None:
        """A wrong password and an unknown user look the same; the log tells them apart."""
        users = Users()
        users.add("ada", "secret word")
        link = NativeLink(
            access=ONLY_USERS, mechanisms={"SCRAM-SHA-256": lambda: ScramSha256(users)}
        )
        client, prover = link.open(), ScramSha256Client(user, "another word")
        client.send([Op.HELLO, 1, 1, {"mechanism": "SCRAM-SHA-256", "data": prover.first()}])
        client.send([Op.PROOF, prover.final(client.take()[0][1])])
        text = "the user name or password is wrong"
        assert client.take()[-1] == [Op.ERROR, 1, Code.NOT_AUTHENTICATED, text]
        assert client.is_gone
        (refusal,) = link.mqtt.log.refusals()
        assert logged in refusal["rule"]

    def test_certificate(self) -> None:
        """Its common name is the user where the node is configured so."""
        link = NativeLink(
            access=ONLY_USERS,
            settings=NativeSettings(certificate_is_user=True),
            authenticator=judge,
        )
        assert link.open(certificate="device-7").hello()["user"] == "device-7"

    def test_token(self) -> None:
        """It says who the client is; a wrong one is refused, whatever else is given."""

        def user_of_token(token: str) -> str:
            if token != "good":
                raise InvalidToken("this is no token")
            return "ada"

        link = NativeLink(access=ONLY_USERS, authenticator=judge)
        link.server.tokens = user_of_token
        assert link.open().hello(token="good")["user"] == "ada"
        client = link.open()
        client.send([Op.HELLO, 1, 1, {"token": "bad", "user": "ada", "password": b"right"}])
        assert client.take()[0][1:4] == [1, Code.NOT_AUTHENTICATED, "this is no token"]

    def test_a_name_of_another_user(self) -> None:
        """A client identifier belongs to the user that is connected with it."""
        link = NativeLink(access=ONLY_USERS, authenticator=judge)
        link.connect("c", user="ada", password=b"right")
        client = link.open()
        client.send([Op.HELLO, 1, 1, {"client": "c", "user": "bob", "password": b"right"}])
        assert client.take()[0][2] == Code.NOT_ALLOWED


class TestLife:
    """What happens to a connection that is open."""

    def test_pings_are_answered(self) -> None:
        """At once."""
        client = NativeLink().connect()
        client.send([Op.PING])
        assert client.take() == [[Op.PONG]]

    def test_silence(self) -> None:
        """The node asks after keep_alive_s and gives up after 1.5 times as long."""
        link = NativeLink()
        client = link.connect(keep_alive_s=10)
        link.advance(9.9)
        assert client.take() == []
        link.advance(0.2)
        assert client.take() == [[Op.PING]]
        link.advance(5)
        assert client.goodbye() == Code.KEEP_ALIVE

    def test_a_sign_of_life(self) -> None:
        """Any frame will do."""
        link = NativeLink()
        client = link.connect(keep_alive_s=10)
        for _ in range(5):
            link.advance(9)
            client.send([Op.PONG])
        assert client.take() == []
        assert not client.is_gone

    def test_takeover(self) -> None:
        """One connection has a client identifier at a time."""
        link = NativeLink()
        first = link.connect("c")
        channel = first.opened(Op.SUBSCRIBE, "#", {"credit": 1})
        assert channel
        second = link.connect("c")
        assert first.goodbye() == Code.TAKEN_OVER
        assert not second.is_gone
        assert link.node.router.subscription_count == 0

    def test_goodbye(self) -> None:
        """What came before it is done."""
        link = NativeLink()
        client = link.connect()
        client.send([Op.RETAINED_PUT, 5, "t", b"x"], [Op.GOODBYE, "done"], [Op.PING])
        assert client.take() == [[Op.OK, 5]]
        assert client.is_gone
        assert client.endpoint.closing == "done"

    def test_drain(self) -> None:
        """The client is told where to go, and has time to settle what it has."""
        link = NativeLink(settings=NativeSettings(addresses=("ganglion://b:7883",)))
        client = link.connect()
        link.node.drain()
        ((operation, notice),) = client.take()
        assert operation == Op.DRAIN
        assert notice["addresses"] == ["ganglion://b:7883"]
        assert notice["within_s"] == Limits().drain_timeout_s
        client.publish("t", b"still works")
        client.send([Op.GOODBYE])
        assert client.is_gone

    def test_drain_while_it_is_greeted(self) -> None:
        """Who had not said hello when the node began to stop is told as soon as it is connected."""
        link = NativeLink()
        client = link.open()
        link.node.drain()
        client.hello()
        assert [frame[0] for frame in client.take()] == [Op.DRAIN]

    def test_a_user_that_is_gone(self) -> None:
        """A reload ends the connection of a user that does not exist any more."""
        link = NativeLink(access=ONLY_USERS, authenticator=judge)
        client = link.connect(user="ada", password=b"right")
        link.node.reload(access=ONLY_USERS, users=set())
        link.tick()
        assert client.goodbye() == Code.NOT_AUTHENTICATED

    def test_the_end_leaves_nothing(self) -> None:
        """Subscriptions, consumers, followers, services and requests are gone with it."""
        link = NativeLink()
        client = link.connect(producer="p" * 16)
        client.call(Op.QUEUE_DECLARE, "q")
        client.call(Op.STREAM_DECLARE, "s")
        client.opened(Op.SUBSCRIBE, "a")
        client.opened(Op.SUBSCRIBE, "a", {"group": "g", "credit": 1})
        client.opened(Op.CONSUME, "q")
        client.opened(Op.FOLLOW, "s")
        client.opened(Op.FOLLOW, "s", {"group": "g"})
        client.opened(Op.SERVE, "r")
        client.ask(Op.REQUEST, "r", b"")
        client.cut()
        node = link.node
        assert node.router.subscription_count == 0
        assert not node.queues.get("q").consumers
        assert node.streams.get("s").statistics().groups[0].members == 0
        assert len(node.requests) == node.requests.service_count == 0
        assert len(node.sessions) == 0
        (producer,) = link.server.producers
        assert producer.owner is None


WRONG_ARGUMENTS: list[list[Any]] = [
    [],
    [None],
    [True, False],
    [1, 2, 3, 4],
    ["x"],
    ["x", 5, 5, 5, 5],
    [-1, -1],
    [{}, [], {}],
    ["a\0", b""],
    ["x", [[]], [[]], [[]]],
    [2**60, "x"],
]


class TestOrder:
    """Unknown operations, wrong arguments, channels."""

    def test_an_unknown_request(self) -> None:
        """It is answered, and nothing else happens."""
        client = NativeLink().connect()
        assert client.refused(111, "x") == Code.UNKNOWN_OPERATION
        client.send([31, "x"], [30], [-5], [1000, 7])
        assert [frame[1:3] for frame in client.take()] == [[7, Code.UNKNOWN_OPERATION]]

    def test_an_id_of_0_wants_no_answer(self) -> None:
        """But an error is told."""
        client = NativeLink().connect()
        client.send([Op.RETAINED_PUT, 0, "t", b"x"], [Op.PUBLISH, 0, "t", b"x"])
        assert client.take() == []
        client.send([Op.RETAINED_GET, 0, 5])
        assert client.take()[0][:3] == [Op.ERROR, 0, Code.INVALID]

    @pytest.mark.parametrize("operation", [each for each in Op if each >= 33])
    def test_wrong_arguments(self, operation: int) -> None:
        """Each is answered in words or done; nothing else happens to the connection."""
        client = NativeLink().connect()
        for number in (-1, 3, 1.5, None, "3"):
            for arguments in WRONG_ARGUMENTS:
                client.send([operation, number, *arguments])
                for frame in client.take():
                    if frame[0] == Op.ERROR:
                        assert frame[1] == (3 if number == 3 else 0)
                        assert frame[3]
        client.send([Op.PING])
        assert client.take()[-1] == [Op.PONG]

    @pytest.mark.parametrize(
        ("operation", "arguments"),
        [
            (Op.SUBSCRIBE, ["a"]),
            (Op.SUBSCRIBE, ["a", {"credit": 5}]),
            (Op.CONSUME, ["q", {"declare": True}]),
            (Op.SERVE, ["a"]),
        ],
    )
    def test_a_channel_is_opened_once(self, operation: int, arguments: list[Any]) -> None:
        """Its number is taken until it is closed."""
        client = NativeLink().connect()
        client.send([operation, 5, *arguments])
        client.send([operation, 5, *arguments])
        assert [frame[:3] for frame in client.take() if frame[0] == Op.ERROR] == [
            [Op.ERROR, 5, Code.DUPLICATE_ID]
        ]
        client.send([Op.CLOSE, 6, 5], [operation, 5, *arguments])
        assert not [frame for frame in client.take() if frame[0] == Op.ERROR]

    def test_channels_are_limited(self) -> None:
        """One more than allowed is refused."""
        client = NativeLink().connect()
        client.send(
            *[[Op.SUBSCRIBE, number, f"t{number}", {"credit": 1}] for number in range(1, 1026)]
        )
        frames = client.take()
        assert frames[-1][:3] == [Op.ERROR, 1025, Code.LIMIT]
        assert len(frames) == 1025

    def test_nothing_to_close(self) -> None:
        """A channel that is not there."""
        assert NativeLink().connect().refused(Op.CLOSE, 99) == Code.NOT_FOUND

    def test_credit_for_what_has_ended(self) -> None:
        """It may have been on the way: nothing happens."""
        client = NativeLink().connect()
        client.send([Op.CREDIT, 99, 5], [Op.PING])
        assert client.take() == [[Op.PONG]]


class TestHostility:
    """Bytes that are no frames cost their sender the connection, and nobody else anything."""

    @pytest.mark.parametrize(
        "data",
        [b"\xc1", b"\x01", b"\x90", b"\x91" * 3000, b"\x92\x01\xa1\xff", b"\xdd\xff\xff\xff\xff"],
    )
    def test_garbage(self, data: bytes) -> None:
        """Whether alone or behind good frames, which are done."""
        link = NativeLink()
        other = link.connect()
        other.opened(Op.SUBSCRIBE, "t")
        client = link.connect()
        client.send_bytes(msgpack.packb([1, "t", b"good"]) + data)
        assert client.goodbye() in (Code.MALFORMED, Code.TOO_LARGE)
        assert other.take() == [[Op.MESSAGE, "t", b"good"]]

    def test_text_that_is_no_json(self) -> None:
        """The same over JSON."""
        client = NativeLink().connect(is_json=True)
        client.send_bytes(b"[14]\n[14,")
        assert client.goodbye() == Code.MALFORMED

    def test_a_frame_over_the_limit(self) -> None:
        """It is refused before all of it has come."""
        link = NativeLink(limits=replace(Limits(), packet_size_max_bytes=1_000_000))
        client = link.connect()
        head = b"\x93\x01\xa1t\xc6\x7f\xff\xff\xff"
        client.send_bytes(head)
        for _ in range(100):
            if client.is_gone:
                break
            client.send_bytes(bytes(100_000))
        assert client.goodbye() == Code.TOO_LARGE

    def test_a_large_frame_in_pieces(self) -> None:
        """One below the limit comes through, however it is cut."""
        client = NativeLink().connect()
        client.opened(Op.SUBSCRIBE, "t")
        payload = bytes(range(256)) * 4000
        data = msgpack.packb([1, "t", payload])
        for start in range(0, len(data), 65_536):
            client.send_bytes(data[start : start + 65_536])
        assert client.take() == [[Op.MESSAGE, "t", payload]]

    @pytest.mark.slow
    @given(st.lists(st.binary(max_size=60), max_size=6))
    @settings(max_examples=200)
    def test_any_bytes(self, pieces: list[bytes]) -> None:
        """A connection goes on or ends with an error; another client notices nothing."""
        link = NativeLink()
        client, other = link.connect(), link.connect()
        for piece in pieces:
            if not client.is_gone:
                client.send_bytes(piece)
        if client.is_gone:
            frames = client.take()
            assert frames[-1][0] == Op.ERROR or client.endpoint.closing
        assert other.publish("t", b"x") is not None

    _value = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-2, 70)
        | st.sampled_from(["a", "q", "$queue/q", "a/+", "#", "drop_oldest", ""])
        | st.binary(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "credit",
                        "group",
                        "key",
                        "keys",
                        "expected",
                        "headers",
                        "after",
                        "declare",
                        "retain",
                        "expires_s",
                        "bindings",
                        "priorities",
                        "topic",
                        "count",
                        "delay_s",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )

    @pytest.mark.slow
    @given(
        st.lists(
            st.tuples(
                st.integers(1, 19) | st.integers(33, 100),
                st.integers(0, 12),
                st.lists(_value, max_size=4),
            ),
            max_size=12,
        ),
        st.booleans(),
    )
    @settings(max_examples=300, deadline=None)
    def test_any_frames(self, frames: list[tuple[int, int, list[Any]]], is_json: bool) -> None:
        """Whatever a client says is answered in the protocol; the node lives."""
        link = NativeLink()
        client = link.connect(is_json=is_json)
        for operation, number, arguments in frames:
            if client.is_gone:
                break
            if is_json:
                client.send_bytes(json.dumps([operation, number, *plain(arguments)]).encode())
            else:
                client.send([operation, number, *arguments])
        link.advance(61)
        for frame in client.take():
            assert frame[0] in set(Op)
        other = link.connect()
        assert other.publish("t", b"x") is not None


def plain(value: Any) -> Any:
    """The same without bytes."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value
