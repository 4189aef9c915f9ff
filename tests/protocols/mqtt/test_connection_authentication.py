"""Who the client is: passwords, certificates, and enhanced authentication (MQTT 5.0, 4.12)."""

from collections.abc import Callable

import pytest
from argon2 import PasswordHasher

from ganglion.broker.core.access import Access
from ganglion.broker.core.authentication import ScramSha256, Users
from ganglion.clients.scram import ScramSha256Client
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Publish,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.protocols.mqtt.server import MqttSettings
from tests.protocols.mqtt.fake_link import FakeClient, Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
WRONG = {V31: 4, V311: 4, V5: Reason.BAD_USER_NAME_OR_PASSWORD}
FORBIDDEN = {V31: 5, V311: 5, V5: Reason.NOT_AUTHORIZED}
METHOD = "SCRAM-SHA-256"


class SlowAuthenticator:
    """Knows one user; gives its verdicts when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bool | None, Callable[[bool | None], None]]] = []
        self.busy = False

    def __call__(
        self, user: str | None, password: bytes | None, done: Callable[[bool | None], None]
    ) -> None:
        """Remember the question."""
        verdict = None if self.busy else (user, password) == ("ada", b"secret")
        self.waiting.append((verdict, done))

    def decide(self) -> None:
        """Give every verdict."""
        waiting, self.waiting = self.waiting, []
        for verdict, done in waiting:
            done(verdict)


@pytest.fixture
def slow() -> SlowAuthenticator:
    """An authenticator that takes its time."""
    return SlowAuthenticator()


def _let_everybody_in(
    user: str | None,  # noqa: ARG001 - the names are those of `Authenticator`
    password: bytes | None,  # noqa: ARG001 - as above
    done: Callable[[bool | None], None],
) -> None:
    done(True)


def _link(slow: SlowAuthenticator, *, anonymous: bool = False) -> Link:
    access = Access(users_exist=False, anonymous=anonymous)
    return Link(access=access, authenticator=slow)


class TestPasswords:
    """User name and password (MQTT 5.0, 3.1.3.5, 3.1.3.6 and 4.12)."""

    @VERSIONS
    def test_right(self, slow: SlowAuthenticator, version: int) -> None:
        """CONNACK comes with the verdict, and the session is the user's."""
        link = _link(slow)
        client = link.open(version)
        client.send(Connect(version, "a", username="ada", password=b"secret"))
        assert client.take() == []
        slow.decide()
        link.tick()
        assert client.only(Connack).reason == 0
        assert link.node.sessions["a"].client.user == "ada"

    @VERSIONS
    @pytest.mark.parametrize(
        ("user", "password"), [("ada", b"wrong"), ("eve", b"secret"), ("ada", None), ("", b"")]
    )
    def test_wrong(
        self, slow: SlowAuthenticator, version: int, user: str, password: bytes | None
    ) -> None:
        """A wrong name or password is refused alike, and nothing of the client is kept."""
        link = _link(slow)
        client = link.open(version)
        client.send(Connect(version, "a", username=user, password=password))
        slow.decide()
        link.tick()
        assert client.only(Connack).reason == WRONG[version]
        assert client.is_gone
        assert link.node.sessions == {}
        assert link.log.refusals()[-1]["action"] == "authenticate"
        assert link.log.refusals()[-1]["user"] == user

    def test_too_many_wait(self, slow: SlowAuthenticator) -> None:
        """A client that finds the verifier busy is told to try again: 0x89."""
        slow.busy = True
        link = _link(slow)
        client = link.open()
        client.send(Connect(V5, "a", username="ada", password=b"secret"))
        slow.decide()
        link.tick()
        assert client.only(Connack).reason == Reason.SERVER_BUSY

    def test_what_was_sent_meanwhile_is_read_afterwards(self, slow: SlowAuthenticator) -> None:
        """Packets behind CONNECT wait for the verdict, are bounded, and lose nothing (3.1.4-5)."""
        link = _link(slow)
        client = link.open()
        connect = Connect(V5, "a", username="ada", password=b"secret")
        client.send(connect, Subscribe(1, [SubscriptionRequest("t", 0)]), Publish("t", b"1"))
        client.send(Publish("t", b"2"))
        client.send(Pingreq())
        assert client.endpoint.paused
        slow.decide()
        link.tick()
        kinds = [type(each).__name__ for each in client.take()]
        assert kinds == ["Connack", "Suback", "Publish", "Publish", "Pingresp"]
        assert not client.endpoint.paused

    @pytest.mark.parametrize("rest", [b"\x30\xff\xff\xff\xff\xff", b"\x82\x00"])
    def test_garbage_meanwhile(self, slow: SlowAuthenticator, rest: bytes) -> None:
        """Broken bytes behind CONNECT end the connection after the verdict, not before."""
        link = _link(slow)
        client = link.open()
        data = bytes.fromhex("10 1B 00 04 4D 51 54 54 05 C2 00 00 00 00 01 61 00 03 61 64 61 00 06")
        client.send_bytes(data + b"secret" + rest)
        assert not client.is_gone
        slow.decide()
        link.tick()
        client.expect(Connack)
        assert client.goodbye() == Reason.MALFORMED_PACKET

    def test_a_client_that_leaves_meanwhile(self, slow: SlowAuthenticator) -> None:
        """A verdict about a connection that has gone changes nothing."""
        link = _link(slow)
        client = link.open()
        client.send(Connect(V5, "a", username="ada", password=b"secret"))
        client.cut()
        slow.decide()
        link.tick()
        assert link.node.sessions == {}

    def test_no_verdict_in_time(self, slow: SlowAuthenticator) -> None:
        """A verdict that takes longer than `connect_timeout_s` comes too late."""
        link = _link(slow)
        client = link.open()
        client.send(Connect(V5, "a", username="ada", password=b"secret"))
        link.advance(11)
        assert client.is_gone
        slow.decide()
        assert link.node.sessions == {}

    def test_a_name_that_nobody_verifies(self) -> None:
        """Without an authenticator a user name says nothing: the client is anonymous."""
        link = Link()
        link.connect("a", username="root", password=b"x")
        assert link.node.sessions["a"].client.user is None


class TestAnonymous:
    """Clients without a name (DESIGN section 6)."""

    @VERSIONS
    def test_once_users_exist(self, version: int) -> None:
        """Once users exist a client without a name is refused, also from loopback."""
        link = Link(access=Access(users_exist=True))
        client = link.connect("a", version, expected=FORBIDDEN[version])
        assert client.is_gone
        assert link.log.refusals()[-1]["action"] == "connect"

    @pytest.mark.parametrize(
        ("peer", "allowed"),
        [("127.0.0.1", True), ("::1", True), ("unix", True), ("192.0.2.1", False)],
    )
    def test_from_where(self, peer: str, allowed: bool) -> None:
        """Without users whoever is on this machine may connect, nobody else."""
        link = Link(access=Access())
        link.connect("a", peer=peer, expected=0 if allowed else Reason.NOT_AUTHORIZED)


class TestCertificates:
    """The name in a client's verified certificate as its user name."""

    def test_as_user(self, slow: SlowAuthenticator) -> None:
        """With `certificate_is_user` no password is asked for, and CONNECT cannot change it."""
        link = Link(
            settings=MqttSettings(certificate_is_user=True),
            authenticator=slow,
            access=Access(users_exist=True),
        )
        link.connect("a", certificate="sensor-1", username="root", password=b"x")
        client = link.node.sessions["a"].client
        assert (client.user, client.certificate) == ("sensor-1", "sensor-1")
        assert slow.waiting == []

    def test_beside_a_password(self, slow: SlowAuthenticator) -> None:
        """Without it the certificate's name is known and the password decides."""
        link = _link(slow)
        client = link.open(certificate="sensor-1")
        client.send(Connect(V5, "a", username="ada", password=b"secret"))
        slow.decide()
        link.tick()
        client.expect(Connack)
        known = link.node.sessions["a"].client
        assert (known.user, known.certificate) == ("ada", "sensor-1")


class TestOwner:
    """A client identifier belongs to the user that opened its session."""

    def _connect(self, link: Link, user: str | None, *, clean_start: bool = False) -> int:
        client = link.open()
        about = Properties(session_expiry_interval=60)
        password = None if user is None else b"x"
        client.send(Connect(V5, "a", clean_start, 0, user, password, None, about))
        return client.expect(Connack).reason

    @pytest.mark.parametrize("connected", [False, True])
    @pytest.mark.parametrize("clean_start", [False, True])
    @pytest.mark.parametrize(
        ("owner", "other"), [("ada", "eve"), ("ada", None), (None, "eve"), ("ada", "Ada")]
    )
    def test_nobody_else_gets_it(
        self, owner: str | None, other: str | None, clean_start: bool, connected: bool
    ) -> None:
        """Another user is refused with 0x87, also by clean start; the owner is not disturbed."""
        link = Link(authenticator=_let_everybody_in)
        assert self._connect(link, owner) == 0
        session = link.node.sessions["a"]
        if not connected:
            assert session.connection is not None
            link.node.close_session(session, session.connection, publish_will=False)
        assert self._connect(link, other, clean_start=clean_start) == Reason.NOT_AUTHORIZED
        assert link.node.sessions["a"] is session
        assert (session.connection is not None) == connected
        assert "another user" in link.log.refusals()[-1]["rule"]
        assert self._connect(link, owner) == 0

    def test_across_a_restart(self) -> None:
        """The owner is recorded with the session."""
        link = Link(authenticator=_let_everybody_in)
        assert self._connect(link, "ada") == 0
        again = link.restart()
        again.server.authenticator = _let_everybody_in
        assert self._connect(again, "eve") == Reason.NOT_AUTHORIZED
        assert self._connect(again, "ada") == 0

    def test_when_the_session_has_ended(self) -> None:
        """An identifier without a session is free."""
        link = Link(authenticator=_let_everybody_in)
        assert self._connect(link, "ada") == 0
        session = link.node.sessions["a"]
        assert session.connection is not None
        link.node.close_session(session, session.connection, publish_will=False)
        link.advance(61)
        assert self._connect(link, "eve") == 0


@pytest.fixture(scope="module")
def users() -> Users:
    """Two users with keys for SCRAM."""
    users = Users()
    for name in ("ada", "eve"):
        users.add(name, f"{name}'s password")
    return users


class Scram:
    """A client that authenticates with SCRAM-SHA-256."""

    def __init__(self, users: Users, user: str = "ada", password: str = "ada's password") -> None:
        self.link = Link(
            mechanisms={METHOD: lambda: ScramSha256(users)}, access=Access(users_exist=True)
        )
        self.user = user
        self.password = password
        self.client = self.link.open()

    def begin(self, *, method: str = METHOD, data: bytes | None = None) -> ScramSha256Client:
        """Send CONNECT with the first message."""
        scram = ScramSha256Client(self.user, self.password)
        first = scram.first() if data is None else data
        about = Properties(authentication_method=method, authentication_data=first)
        self.client.send(Connect(V5, "a", properties=about))
        return scram

    def answer(self, scram: ScramSha256Client) -> None:
        """Answer the challenge."""
        challenge = self.client.only(Auth)
        assert challenge.reason == Reason.CONTINUE_AUTHENTICATION
        self.send_auth(scram.final(_data(challenge.properties)))

    def send_auth(
        self, data: bytes, reason: int = Reason.CONTINUE_AUTHENTICATION, method: str = METHOD
    ) -> None:
        """Send AUTH."""
        about = Properties(authentication_method=method, authentication_data=data)
        self.client.send(Auth(reason, about))

    def connect(self) -> None:
        """The whole exchange, with its success."""
        scram = self.begin()
        self.answer(scram)
        connack = self.client.only(Connack)
        assert connack.reason == 0
        scram.verify(_data(connack.properties))


def _data(properties: Properties | None) -> bytes:
    assert properties is not None
    assert properties.authentication_method == METHOD
    assert properties.authentication_data is not None
    return properties.authentication_data


class TestScram:
    """SCRAM-SHA-256 in AUTH packets (MQTT 5.0, 4.12; RFC 5802)."""

    def test_success(self, users: Users) -> None:
        """The server proves itself in CONNACK, and the client is the user (4.12.0-2 to -5)."""
        exchange = Scram(users)
        exchange.connect()
        assert exchange.link.node.sessions["a"].client.user == "ada"
        exchange.client.send(Pingreq())
        exchange.client.only(Pingresp)

    @pytest.mark.parametrize(
        ("user", "password", "logged"),
        [("ada", "wrong", "another password"), ("nobody", "ada's password", "no such user")],
    )
    def test_failure(self, users: Users, user: str, password: str, logged: str) -> None:
        """A wrong password and an unknown user end alike, behind a challenge (4.12.0-4).

        Only the log tells them apart.
        """
        exchange = Scram(users, user, password)
        exchange.answer(exchange.begin())
        connack = exchange.client.only(Connack)
        assert connack.reason == Reason.NOT_AUTHORIZED
        assert connack.properties is not None
        assert connack.properties.reason_string == "the user name or password is wrong"
        assert exchange.client.is_gone
        assert exchange.link.node.sessions == {}
        (refusal,) = exchange.link.log.refusals()
        assert logged in refusal["rule"]

    def test_an_unknown_method(self, users: Users) -> None:
        """A method that the node does not have is refused with 0x8C (4.12.0-1)."""
        exchange = Scram(users)
        exchange.begin(method="KERBEROS")
        assert exchange.client.only(Connack).reason == Reason.BAD_AUTHENTICATION_METHOD

    @pytest.mark.parametrize("data", [b"", b"\xff", b"n,,n=ada", b"n,,n=ada,r=" + b"x" * 9999])
    def test_garbage(self, users: Users, data: bytes) -> None:
        """Any bytes are answered with a refusal or a challenge, never with silence."""
        exchange = Scram(users)
        exchange.begin(data=data)
        packet = exchange.client.take()[0]
        assert isinstance(packet, Auth | Connack)

    def test_other_packets_meanwhile(self, users: Users) -> None:
        """Until CONNACK only AUTH may come (4.12, 3.1.2-30)."""
        exchange = Scram(users)
        exchange.begin()
        exchange.client.only(Auth)
        exchange.client.send(Publish("t", b""))
        assert exchange.client.is_gone
        assert exchange.link.node.sessions == {}

    def test_leaving_meanwhile(self, users: Users) -> None:
        """DISCONNECT ends an exchange that is not finished (4.12)."""
        exchange = Scram(users)
        exchange.begin()
        exchange.client.only(Auth)
        exchange.client.send(Disconnect())
        assert exchange.client.is_gone
        assert exchange.client.take() == []

    @pytest.mark.parametrize(
        ("reason", "method"),
        [
            (Reason.SUCCESS, METHOD),
            (Reason.REAUTHENTICATE, METHOD),
            (Reason.CONTINUE_AUTHENTICATION, "PLAIN"),
        ],
    )
    def test_wrong_steps(self, users: Users, reason: int, method: str) -> None:
        """AUTH with another reason or method is a protocol error (4.12.0-3, 4.12.0-5)."""
        exchange = Scram(users)
        exchange.begin()
        exchange.client.only(Auth)
        exchange.send_auth(b"", reason, method)
        assert exchange.client.only(Connack).reason == Reason.PROTOCOL_ERROR

    def test_the_deadline_holds(self, users: Users) -> None:
        """An exchange that is not finished in time ends like a missing CONNECT."""
        exchange = Scram(users)
        exchange.begin()
        exchange.client.only(Auth)
        exchange.link.advance(11)
        assert exchange.client.is_gone

    def test_without_a_method_in_connect(self, users: Users) -> None:
        """AUTH on a connection that began without a method is a protocol error (4.12.0-6)."""
        link = Link(mechanisms={METHOD: lambda: ScramSha256(users)})
        client = link.connect("a")
        client.send(Auth(Reason.REAUTHENTICATE, Properties(authentication_method=METHOD)))
        assert client.goodbye() == Reason.PROTOCOL_ERROR


class TestReauthentication:
    """AUTH 0x19 on a connection (MQTT 5.0, 4.12.1)."""

    def _again(self, exchange: Scram, user: str, password: str) -> ScramSha256Client:
        scram = ScramSha256Client(user, password)
        exchange.send_auth(scram.first(), Reason.REAUTHENTICATE)
        exchange.answer(scram)
        return scram

    def test_success(self, users: Users) -> None:
        """It ends with AUTH 0x00; the connection goes on meanwhile and afterwards (4.12.1-1)."""
        exchange = Scram(users)
        exchange.connect()
        client = exchange.client
        for _ in range(2):
            scram = ScramSha256Client("ada", "ada's password")
            exchange.send_auth(scram.first(), Reason.REAUTHENTICATE)
            client.send(Pingreq())
            challenge = client.expect(Auth)
            client.only(Pingresp)
            exchange.send_auth(scram.final(_data(challenge.properties)))
            success = client.only(Auth)
            assert success.reason == Reason.SUCCESS
            scram.verify(_data(success.properties))

    def test_failure(self, users: Users) -> None:
        """A failure ends the connection with DISCONNECT (4.12.1-2)."""
        exchange = Scram(users)
        exchange.connect()
        self._again(exchange, "ada", "wrong")
        assert exchange.client.goodbye() == Reason.NOT_AUTHORIZED
        assert "another password" in exchange.link.log.refusals()[0]["rule"]

    def test_an_unknown_user(self, users: Users) -> None:
        """What names there are cannot be found out in this way either."""
        exchange = Scram(users)
        exchange.connect()
        self._again(exchange, "nobody", "wrong")
        last = exchange.client.take()[-1]
        assert isinstance(last, Disconnect)
        assert last.properties is not None
        assert last.properties.reason_string == "the user name or password is wrong"
        assert "no such user" in exchange.link.log.refusals()[0]["rule"]

    def test_as_another_user(self, users: Users) -> None:
        """Nobody becomes somebody else on a connection: 0x87."""
        exchange = Scram(users)
        exchange.connect()
        self._again(exchange, "eve", "eve's password")
        assert exchange.client.goodbye() == Reason.NOT_AUTHORIZED

    def test_with_another_method(self, users: Users) -> None:
        """The method is that of CONNECT (4.12.1-1)."""
        exchange = Scram(users)
        exchange.connect()
        exchange.send_auth(b"", Reason.REAUTHENTICATE, "PLAIN")
        assert exchange.client.goodbye() == Reason.PROTOCOL_ERROR

    def test_a_step_that_nobody_asked_for(self, users: Users) -> None:
        """AUTH 0x18 without an exchange under way does not authenticate anybody."""
        exchange = Scram(users)
        exchange.connect()
        exchange.send_auth(b"c=biws,r=x,p=y")
        assert exchange.client.is_gone

    def test_after_the_user_is_gone(self, users: Users) -> None:
        """A user that was removed meanwhile cannot re-authenticate."""
        mine = Users.parse(users.render(), "users")
        exchange = Scram(mine)
        exchange.connect()
        mine.remove("ada")
        self._again(exchange, "ada", "ada's password")
        assert exchange.client.goodbye() == Reason.NOT_AUTHORIZED


def test_hashes_of_real_users_work() -> None:
    """The users file's argon2 hashes and the greeting fit together."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    users = Users.parse(f"ada:{hasher.hash('secret')}", "users")

    def authenticator(
        user: str | None, password: bytes | None, done: Callable[[bool | None], None]
    ) -> None:
        done(users.verify(user or "", password or b""))

    link = Link(authenticator=authenticator, access=Access(users_exist=True))
    link.connect("a", username="ada", password=b"secret")
    wrong = Reason.BAD_USER_NAME_OR_PASSWORD
    client: FakeClient = link.connect("b", username="ada", password=b"Secret", expected=wrong)
    assert client.is_gone
