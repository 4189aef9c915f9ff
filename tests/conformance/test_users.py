"""What a broker promises to and of users: enhanced authentication, and the rules of access."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.conformance.decoder import decode
from tests.conformance.exchanges import (
    AUTH_DATA,
    AUTH_METHOD,
    WITH_MOSQUITTO,
    read,
    take_message,
)
from tests.support import (
    RawClient,
    connect_packet,
    frame,
    publish_packet,
    start_daemon,
    subscribe_packet,
    text,
    varint,
)

_ITERATIONS = 4096


class _Scram:
    """The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677)."""

    def __init__(self, user: str, password: bytes) -> None:
        self.password = password
        self.nonce = "fyko+d2lbbFgONRv9qkxdawL"
        self.first_bare = f"n={user},r={self.nonce}"
        self.signature = b""

    def first(self) -> bytes:
        return f"n,,{self.first_bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        values = dict(each.split("=", 1) for each in challenge.decode().split(","))
        assert values["r"].startswith(self.nonce)
        assert len(values["r"]) > len(self.nonce)
        salt, rounds = base64.b64decode(values["s"]), int(values["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self.password, salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={values['r']}"
        message = f"{self.first_bare},{challenge.decode()},{without_proof}".encode()
        signed = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signed, strict=True))
        self.signature = hmac.digest(
            hmac.digest(salted, b"Server Key", "sha256"), message, "sha256"
        )
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def proves_itself(self, last: object) -> bool:
        return last == b"v=" + base64.b64encode(self.signature)


def _scram_record(password: bytes) -> str:
    salt = b"salt of the test"
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


@pytest.fixture(scope="module")
def users_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A broker with the users alice (password and SCRAM) and bob, and a few rules."""
    if WITH_MOSQUITTO:
        pytest.skip("Mosquitto has no SCRAM")
    folder: Path = tmp_path_factory.mktemp("users")
    hasher = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    users = folder / "users"
    users.write_text(
        f"alice:{hasher.hash('pencil')}:{_scram_record(b'pencil')}\nbob:{hasher.hash('paper')}\n"
    )
    users.chmod(0o600)
    config = f"""
        [access]
        users = "{users}"
        [[rules]]
        effect = "deny"
        action = "subscribe"
        topics = ["shared/hidden/#"]
        [[rules]]
        effect = "allow"
        action = "all"
        topics = ["shared/#", "own/%u/#", "client/%c/#"]
        [[rules]]
        effect = "allow"
        users = ["alice"]
        action = "publish"
        topics = ["bob's/#"]
    """
    with start_daemon(config=config) as daemon:
        yield daemon.ports["mqtt"]


def _auth(reason: int, data: bytes) -> bytes:
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(data)
    return frame(0xF0, bytes([reason]) + varint(len(properties)) + properties)


def test_scram(users_port: int) -> None:
    """Both sides prove that they know the password, at CONNECT and again later (4.12)."""
    scram = _Scram("alice", b"pencil")
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(scram.first())
    with RawClient(users_port) as client:
        client.send(connect_packet("scram", version=5, properties=properties))
        challenge = read(client)
        assert (challenge.name, challenge.fields["reason"]) == ("AUTH", 0x18)
        found = dict(challenge.properties)
        assert found[AUTH_METHOD] == "SCRAM-SHA-256"
        client.send(_auth(0x18, scram.final(bytes(found[AUTH_DATA]))))  # type: ignore[call-overload]  # it is bytes
        answer = read(client)
        assert (answer.name, answer.fields["reason"]) == ("CONNACK", 0)
        assert dict(answer.properties)[AUTH_METHOD] == "SCRAM-SHA-256"
        assert scram.proves_itself(dict(answer.properties)[AUTH_DATA])
        client.send(publish_packet("own/alice/a", b"", qos=1, version=5))
        assert decode(client.expect_kind(4).raw, 5).fields["reason"] in (0, 0x10)

        again = _Scram("alice", b"pencil")
        client.send(_auth(0x19, again.first()))
        challenge = read(client)
        assert (challenge.name, challenge.fields["reason"]) == ("AUTH", 0x18)
        data = dict(challenge.properties)[AUTH_DATA]
        client.send(_auth(0x18, again.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        done = read(client)
        assert (done.name, done.fields["reason"]) == ("AUTH", 0)
        assert again.proves_itself(dict(done.properties)[AUTH_DATA])
        client.ping()


@pytest.mark.parametrize(
    ("user", "password"), [("alice", b"wrong"), ("bob", b"paper"), ("nobody", b"x")]
)
def test_scram_refusal(users_port: int, user: str, password: bytes) -> None:
    """A wrong proof is refused; who has no record is not told from who is wrong (4.12.0-4)."""
    scram = _Scram(user, password)
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(scram.first())
    with RawClient(users_port) as client:
        client.send(connect_packet("scram", version=5, properties=properties))
        challenge = read(client)
        assert challenge.name == "AUTH"
        data = dict(challenge.properties)[AUTH_DATA]
        client.send(_auth(0x18, scram.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        answer = read(client)
        assert answer.name == "CONNACK"
        assert answer.fields["reason"] in (0x86, 0x87)
        client.expect_closed()


def test_reauthentication_that_fails(users_port: int) -> None:
    """Re-authentication with a wrong proof ends the connection (4.12.1-2)."""
    scram = _Scram("alice", b"pencil")
    properties = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(scram.first())
    with RawClient(users_port) as client:
        client.send(connect_packet("scram", version=5, properties=properties))
        data = dict(read(client).properties)[AUTH_DATA]
        client.send(_auth(0x18, scram.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        assert read(client).fields["reason"] == 0
        wrong = _Scram("alice", b"wrong")
        client.send(_auth(0x19, wrong.first()))
        data = dict(read(client).properties)[AUTH_DATA]
        client.send(_auth(0x18, wrong.final(bytes(data))))  # type: ignore[call-overload]  # it is bytes
        last = read(client)
        assert last.name == "DISCONNECT"
        assert last.fields["reason"] in (0x86, 0x87)
        client.expect_closed()


def test_auth_without_method(users_port: int) -> None:
    """AUTH from a client that has not begun with a method is an error (4.12.0-6)."""
    with RawClient(users_port) as client:
        client.join("bob", version=5, user="bob", password=b"paper")
        client.send(_auth(0x19, b"n,,n=bob,r=x"))
        assert read(client).fields["reason"] == 0x82
        client.expect_closed()


def test_refused_publish(users_port: int) -> None:
    """A PUBLISH that no rule allows is refused with 0x87 and reaches nobody (3.3.5-2)."""
    with RawClient(users_port) as bob, RawClient(users_port) as alice:
        bob.join("b", version=5, user="bob", password=b"paper")
        alice.join("a", version=5, user="alice", password=b"pencil")
        alice.subscribe("own/alice/#", version=5)
        bob.send(publish_packet("own/alice/a", b"", qos=1, version=5))
        assert decode(bob.expect_kind(4).raw, 5).fields["reason"] == 0x87
        bob.send(publish_packet("own/alice/a", b"", qos=2, packet_id=2, version=5))
        assert decode(bob.expect_kind(5).raw, 5).fields["reason"] == 0x87
        bob.send(publish_packet("own/alice/a", b"", version=5))
        bob.ping()
        alice.ping()


def test_refused_subscription(users_port: int) -> None:
    """Each filter of a SUBSCRIBE is judged by itself: 0x87, in MQTT 3.1.1 0x80 (3.9.3)."""
    for version, refused in ((5, 0x87), (4, 0x80), (3, 0x80)):
        with RawClient(users_port) as bob:
            bob.join("b", version=version, user="bob", password=b"paper")
            filters = ("shared/a", "own/alice/a", "#", "own/bob/+", "client/b/#", "client/+/x")
            bob.send(subscribe_packet(*filters, options=1, version=version))
            assert list(bob.expect_kind(9).body[-6:]) == [1, refused, refused, 1, 1, refused]


def test_refused_delivery(users_port: int) -> None:
    """A filter that is allowed does not bring topics that are denied, retained or live."""
    with RawClient(users_port) as alice:
        alice.join("a", user="alice", password=b"pencil")
        alice.send(publish_packet("shared/hidden/kept", b"x", retain=True))
        alice.ping()
        alice.subscribe("shared/#")
        alice.send(publish_packet("shared/hidden/a", b"x"))
        alice.send(publish_packet("shared/seen", b"x"))
        assert take_message(alice, 4)[0] == "shared/seen"
        alice.ping()


def test_refused_will(users_port: int) -> None:
    """A will that its client may not publish does not come (3.1.2.5)."""
    with RawClient(users_port) as alice:
        alice.join("a", version=5, user="alice", password=b"pencil")
        alice.subscribe("own/alice/#", "shared/end", version=5)
        with RawClient(users_port) as bob:
            will = ("own/alice/will", b"x", 0, False)
            bob.send(connect_packet("b", version=5, user="bob", password=b"paper", will=will))
            answer = bob.expect_kind(2)
            assert answer.body[1] in (0, 0x87)
        alice.send(publish_packet("shared/end", b"", version=5))
        assert take_message(alice)[0] == "shared/end"


@pytest.mark.parametrize("client_id", ["+", "#", "a/b", "+/x"])
def test_identifier_with_wildcards(users_port: int, client_id: str) -> None:
    """A client identifier cannot widen the pattern that it is put into."""
    with RawClient(users_port) as bob:
        bob.join(client_id, version=5, user="bob", password=b"paper")
        bob.send(subscribe_packet("client/#", f"client/{client_id}/x", "client/+/x", version=5))
        assert set(bob.expect_kind(9).body[-3:]) <= {0x87, 0x8F}
        bob.send(publish_packet("client/victim/x", b"", qos=1, version=5))
        assert decode(bob.expect_kind(4).raw, 5).fields["reason"] == 0x87
