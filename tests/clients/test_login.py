"""Which way a password takes: proved wherever the node can, sent only where nobody can listen.

The client's `Conversation` and the node's connection are joined by hand: no sockets.
"""

from collections.abc import Mapping
from typing import Any

import msgpack
import pytest

from ganglion.broker.core.access import Access, Rule
from ganglion.broker.core.authentication import ScramSha256, Users
from ganglion.clients.addresses import NodeAddress
from ganglion.clients.conversation import Answer, Conversation
from ganglion.clients.errors import AuthenticationFailed, Refused
from ganglion.clients.login import Login
from ganglion.protocols.native.frames import pack
from ganglion.protocols.native.operations import Code, Operation
from tests.protocols.native.link import NativeLink

ONLY_USERS = Access([Rule(effect="allow", topics=("#",))], users_exist=True)
PRIVATE = "ganglions://broker.example.com"
PUBLIC = "ganglion://broker.example.com"


class Node:
    """A node that lets ada in, and what crossed the wire to it."""

    def __init__(self, *, has_keys: bool = True, password: str = "secret") -> None:
        users = Users()
        users.add("ada", password, scram=has_keys)
        self.link = NativeLink(
            access=ONLY_USERS,
            authenticator=lambda user, word, done: done(
                user == "ada" and word == password.encode()
            ),
            mechanisms={"SCRAM-SHA-256": lambda: ScramSha256(users)},
        )
        self.wire = b""

    def greet(self, login: Login) -> Mapping[str, Any]:
        """Connect once: the greeting, or what it was refused with."""
        conversation, client = Conversation(login), self.link.open()
        number, data = conversation.hello({"client": "c"})
        to_send = [data]
        while to_send:
            self.wire += b"".join(to_send)
            client.send_bytes(b"".join(to_send))
            answers = list(conversation.receive(b"".join(map(msgpack.packb, client.take()))))
            to_send, conversation.replies = conversation.replies, []
            for answer in answers:
                assert isinstance(answer, Answer)
                assert answer.id == number
                greeting: dict[str, Any] = answer.result
                return greeting
        raise AssertionError("the node said nothing")

    def connect(self, login: Login) -> Mapping[str, Any]:
        """Connect as often as the login wants to."""
        try:
            return self.greet(login)
        except Refused as refused:
            if not login.may_go_on(refused):
                raise
            return self.greet(login)


def login_at(url: str, password: bytes = b"secret") -> Login:
    """The login of ada."""
    return Login(NodeAddress.parse(url), "ada", password)


@pytest.mark.parametrize("url", [PUBLIC, PRIVATE])
def test_the_password_is_proved(url: str) -> None:
    """With keys at the node the password crosses no wire, encrypted or not, however often."""
    node, login = Node(), login_at(url)
    for _ in range(2):
        assert node.connect(login)["user"] == "ada"
    assert b"secret" not in node.wire


def test_without_keys_it_is_sent_in_private() -> None:
    """The second connection sends it; those that follow do so at once."""
    node, login = Node(has_keys=False), login_at(PRIVATE)
    assert node.connect(login)["user"] == "ada"
    assert node.wire.count(b"secret") == 1
    assert node.greet(login)["user"] == "ada"


def test_without_keys_it_is_not_sent_where_others_listen() -> None:
    """The refusal says what can be done, and the password stays here."""
    node = Node(has_keys=False)
    with pytest.raises(Refused, match="ganglion passwd change ada") as caught:
        node.connect(login_at(PUBLIC))
    assert caught.value.code == Code.NOT_AUTHENTICATED
    assert "ganglions://" in str(caught.value)
    assert b"secret" not in node.wire


@pytest.mark.parametrize("url", [PUBLIC, PRIVATE])
def test_a_wrong_password(url: str) -> None:
    """It is refused, whichever way."""
    with pytest.raises(Refused, match="the user name or password is wrong"):
        Node().connect(login_at(url, b"wrong"))


@pytest.mark.parametrize("password", [b"\xff\xfe", b"a\x07b"])
def test_a_password_that_cannot_be_proved(password: bytes) -> None:
    """Bytes that are no text, or none that SASLprep allows, are sent in private or not at all."""
    assert login_at(PRIVATE, password).options() == {"user": "ada", "password": password}
    with pytest.raises(AuthenticationFailed, match="not encrypted"):
        login_at(PUBLIC, password).options()


def test_other_refusals_stand() -> None:
    """A node that is full, or stops, is not asked another way."""
    assert not login_at(PUBLIC).may_go_on(Refused(Code.LIMIT, "full"))
    assert not login_at(PRIVATE).may_go_on(Refused(Code.BUSY, "busy"))


@pytest.mark.parametrize(
    "answer",
    [
        {"user": "ada"},
        {"user": "ada", "data": b"v=AAAA"},
        {"user": "ada", "data": None},
    ],
)
def test_a_node_that_proves_nothing_is_left(answer: dict[str, Any]) -> None:
    """Who only pretends to be the node, and lets everybody in, gets no messages."""
    conversation = Conversation(login_at(PUBLIC))
    number, _ = conversation.hello({})
    with pytest.raises(AuthenticationFailed):
        list(conversation.receive(pack((Operation.OK, number, answer))))


def test_a_challenge_that_nobody_asked_for() -> None:
    """When the password was sent there is nothing to prove."""
    login = login_at(PRIVATE)
    login.options()
    assert login.may_go_on(Refused(Code.NOT_AUTHENTICATED, "no"))
    conversation = Conversation(login)
    conversation.hello({})
    with pytest.raises(AuthenticationFailed, match="not claimed"):
        list(conversation.receive(pack((Operation.CHALLENGE, b"r=x,s=eA==,i=4096"))))


@pytest.mark.parametrize(
    ("url", "is_private"),
    [
        ("ganglion://127.0.0.1", True),
        ("ganglion://127.8.8.8:1", True),
        ("ganglion://[::1]:7883", True),
        ("ws://localhost:8080", True),
        ("unix:/run/ganglion", True),
        ("ganglions://10.0.0.1", True),
        ("wss://broker.example.com", True),
        ("ganglion://10.0.0.1", False),
        ("ganglion://[fe80::1]", False),
        ("ws://broker.example.com", False),
        ("localhost.example.com", False),
    ],
)
def test_where_nobody_can_listen(url: str, is_private: bool) -> None:
    """Encrypted, or within this machine."""
    assert NodeAddress.parse(url).is_private == is_private
