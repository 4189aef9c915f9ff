"""Who a client is: the users file, password verification and SCRAM-SHA-256.

Everything here is synchronous and without I/O: the daemon reads and writes the file and runs the
slow part (`Users.verify`, tens of milliseconds of Argon2 on purpose) in a thread.

The users file has one user a line; blank lines and lines that begin with ``#`` are comments::

    name:argon2-hash
    name:argon2-hash:SCRAM-SHA-256$iterations:salt$stored-key:server-key

The Argon2 hash serves clients that send their password. The optional SCRAM verifier (salt and keys
in base64) serves clients that only prove that they know it (RFC 5802, RFC 7677). Neither contains
the password.

An unknown user costs and looks the same as a known one: its password is verified against a decoy
hash, and its SCRAM exchange runs on a decoy salt that stays the same from attempt to attempt, up
to the failure at the end.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeAlias

from ganglion import GanglionError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

__all__ = [
    "MECHANISMS",
    "AuthenticationFailed",
    "Challenge",
    "Failure",
    "InvalidPassword",
    "InvalidUserName",
    "InvalidUsersFile",
    "Mechanism",
    "PasswordCheck",
    "ScramSha256",
    "ScramSha256Client",
    "Step",
    "Success",
    "UnknownUser",
    "Users",
    "VerificationUnavailable",
    "check_user_name",
    "saslprep",
]


class InvalidUserName(GanglionError):
    """A user name that cannot be one; the message says why."""


class InvalidPassword(GanglionError):
    """A password that cannot be stored; the message says why, without the password."""


class InvalidUsersFile(GanglionError):
    """The users file has a line that cannot be read; the message names file and line."""


class UnknownUser(GanglionError):
    """The user is not in the users file."""


class VerificationUnavailable(GanglionError):
    """A password could not be judged, for example because memory for Argon2 was lacking."""


class AuthenticationFailed(GanglionError):
    """A client's side of an exchange failed: the server broke it or does not know the user."""


def saslprep(text: str) -> str:
    """A user name or password in the one form in which it is compared (SASLprep, RFC 4013).

    Code points that Unicode 3.2 does not know are kept as they are (RFC 3454, 7: a 'query'), so
    that newer characters can be used. Raises ValueError that says which rule the text breaks.
    """
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each
        for each in text
        if not stringprep.in_table_b1(each)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for each in prepared:
        if any(prohibited(each) for prohibited in _PROHIBITED):
            raise ValueError(f"the character U+{ord(each):04X} is not allowed")
    if any(stringprep.in_table_d1(each) for each in prepared):
        # RFC 3454, 6: text from right to left begins and ends so and has nothing else in it.
        if any(stringprep.in_table_d2(each) for each in prepared):
            raise ValueError("it mixes text from left to right with text from right to left")
        if not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])):
            raise ValueError("text from right to left does not begin and end so")
    return prepared


def check_user_name(name: str) -> None:
    """Raise `InvalidUserName` unless `name` can be a user's.

    A name is not empty, has none of ``+``, ``#``, ``/`` (so that it stays within its level of a
    topic pattern) and ``:`` (which separates the fields of the users file), no control
    characters and no white space at its ends, is not ``*``, and is in the form that SASLprep
    gives, so that every mechanism finds the same user.
    """
    if not name:
        raise InvalidUserName("a user name must not be empty")
    if name == "*":
        raise InvalidUserName("the user name '*' means any user in rules")
    for each in name:
        if each in "+#/:" or unicodedata.category(each) in ("Cc", "Cs"):
            raise InvalidUserName(f"the user name {name!r} must not contain {each!r}")
    if name != name.strip():
        raise InvalidUserName(f"the user name {name!r} must not begin or end with white space")
    try:
        prepared = saslprep(name)
    except ValueError as error:
        raise InvalidUserName(f"the user name {name!r} cannot be used: {error}") from None
    if prepared != name:
        raise InvalidUserName(f"the user name {name!r} must be written as {prepared!r}")


class Users:
    """The users of a node, in the order of their file, with its comments.

    `verify` may run in several threads at once. A reload makes a new object, and with it forgets
    which passwords were verified.
    """

    def __init__(self) -> None:
        self._lines: list[str | _User] = []
        self._users: dict[str, _User] = {}
        self._decoy_iterations: int | None = None
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._refused: OrderedDict[bytes, None] = OrderedDict()

    @classmethod
    def parse(cls, text: str, source: str) -> "Users":
        """The users in the text of a users file.

        `source` names the file in errors. Raises `InvalidUsersFile` for the first line that is
        not a user, or names one a second time.
        """
        users = cls()
        # Not splitlines(): it also splits at characters that no editor counts as a line's end.
        lines = [each.rstrip("\r") for each in text.split("\n")]
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                users._lines.append(line)
                continue
            try:
                user = _parse_user(line)
            except (ValueError, InvalidUserName) as error:
                raise InvalidUsersFile(f"{source}:{number}: {error}") from None
            if user.name in users._users:
                raise InvalidUsersFile(f"{source}:{number}: the user {user.name!r} is given twice")
            users._put(user)
        return users

    def render(self) -> str:
        """The text of the users file, with its comments and in its order."""
        return "".join(f"{each}\n" for each in self._lines)

    def __len__(self) -> int:
        """How many users there are."""
        return len(self._users)

    def __iter__(self) -> Iterator[str]:
        """The names of the users, in the order of the file."""
        return iter(self._users)

    def __contains__(self, name: object) -> bool:
        """Whether there is a user of this name."""
        return name in self._users

    def add(self, name: str, password: str, *, scram: bool = True) -> str:
        """Add a user, or give a user a new password, and return its line of the file.

        With `scram` the line also holds the verifier for SCRAM-SHA-256. Takes tens of
        milliseconds. Raises `InvalidUserName` and `InvalidPassword`.
        """
        check_user_name(name)
        if not password:
            raise InvalidPassword("a password must not be empty")
        try:
            secret = password.encode()
            verifier = _ScramVerifier.make(password) if scram else None
        except ValueError as error:
            # The text of an encoding error would show the password.
            why = "it is not text" if isinstance(error, UnicodeError) else str(error)
            raise InvalidPassword(f"this password cannot be used: {why}") from None
        user = _User(name, _hasher().hash(secret), verifier)
        self._put(user)
        return str(user)

    def remove(self, name: str) -> None:
        """Remove a user and its line. Raises `UnknownUser`."""
        try:
            user = self._users.pop(name)
        except KeyError:
            raise UnknownUser(f"there is no user {name!r}") from None
        self._lines.remove(user)

    def verify(self, name: str, password: bytes) -> bool:
        """Whether this is the user's password: the slow way, with the same work for any name.

        Remembers the answer for `verify_cached`. Raises `VerificationUnavailable`.
        """
        user = self._users.get(name)
        encoded = self._decoy_hash(name) if user is None else user.argon2
        fingerprint = self._fingerprint(name, password)
        right = _verify_argon2(encoded, password) and user is not None
        answers = self._verified if right else self._refused
        answers[fingerprint] = None
        if len(answers) > _ANSWERS_MAX:
            answers.popitem(last=False)
        return right

    def verify_cached(self, name: str, password: bytes) -> bool | None:
        """What `verify` answered for the same name and password, in microseconds.

        None when it was not asked lately: ask `verify`.
        """
        fingerprint = self._fingerprint(name, password)
        if fingerprint in self._verified:
            return True
        return False if fingerprint in self._refused else None

    def needs_rehash(self, name: str) -> bool:
        """Whether the user's hash was made with other Argon2 parameters than `add` uses now.

        Setting the password again renews it. Raises `UnknownUser`.
        """
        user = self._users.get(name)
        if user is None:
            raise UnknownUser(f"there is no user {name!r}")
        return _hasher().check_needs_rehash(user.argon2)

    def scram_verifier(self, name: str) -> "tuple[_ScramVerifier, bool]":
        """The user's SCRAM verifier and True, or a decoy that no proof fits and False.

        The decoy depends on the name alone as long as the first user of the file stays the same,
        over restarts as well, as a real salt does.
        """
        user = self._users.get(name)
        if user is not None and user.scram is not None:
            return user.scram, True
        noise = self._decoy_noise("scram", name)
        keys = self._decoy_noise("keys", name)
        iterations = self._decoy_iterations or _ITERATIONS
        return _ScramVerifier(iterations, noise[:_SALT_SIZE_BYTES], keys, keys), False

    def _put(self, user: "_User") -> None:
        old = self._users.get(user.name)
        if old is None:
            self._lines.append(user)
        else:
            self._lines[self._lines.index(old)] = user
        self._users[user.name] = user
        if self._decoy_iterations is None and user.scram is not None:
            self._decoy_iterations = user.scram.iterations

    def _fingerprint(self, name: str, password: bytes) -> bytes:
        # The stored hash is part of it, so that a new password or a removed user ends it.
        user = self._users.get(name)
        stored = b"" if user is None else user.argon2.encode()
        encoded = name.encode("utf-8", "surrogatepass")
        head = b"%d:%d:" % (len(encoded), len(stored))
        return hmac.digest(self._key, head + encoded + stored + password, "sha256")

    def _decoy_noise(self, use: str, name: str) -> bytes:
        secret = next((str(each) for each in self._users.values()), "").encode()
        # HMAC keys should not be public: what is not known of the first user's line to anybody
        # who knows its password is the salt of its Argon2 hash.
        return hmac.digest(secret, f"{use}:{name}".encode("utf-8", "surrogatepass"), "sha256")

    def _decoy_hash(self, name: str) -> str:
        first = next(iter(self._users.values()), None)
        parameters = _ARGON2_PARAMETERS if first is None else first.argon2.rsplit("$", 2)[0]
        noise = self._decoy_noise("argon2", name)
        salt, digest = (
            base64.b64encode(each).rstrip(b"=").decode() for each in (noise[:16], noise)
        )
        return f"{parameters}${salt}${digest}"


class PasswordCheck(Protocol):
    """Verifies passwords, now or later, without blocking."""

    def __call__(
        self, user: str | None, password: bytes | None, done: Callable[[bool | None], None]
    ) -> None:
        """Call `done` with the verdict, at once or in a later tick, in the thread of the node.

        None: too many wait for theirs, the client may try again later.
        """
        ...


class Mechanism(Protocol):
    """The server's side of one authentication exchange; the protocol carries the bytes."""

    name: ClassVar[str]
    """The registered name, for example ``SCRAM-SHA-256``."""

    def step(self, data: bytes) -> "Step":
        """Take what the client sent and say how the exchange goes on. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Challenge:
    """The exchange goes on: send `data` and wait for the client's answer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Success:
    """The client is `user`. `data` proves to it that this server knows it: send it too."""

    user: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """The exchange has failed.

    `reason` is for the log and may tell more than the client should know; `user` is the name that
    the client claimed, when it got so far. `data` may be sent where the protocol has room for it
    (RFC 5802, 7, server-error-value); it is the same for unknown users and wrong passwords.
    """

    reason: str
    user: str | None
    data: bytes


Step: TypeAlias = Challenge | Success | Failure


class ScramSha256:
    """The server's side of SCRAM-SHA-256 without channel binding (RFC 5802, RFC 7677).

    `nonce` makes the server's part of the nonce: printable ASCII without a comma; for tests. The
    exchange is: client-first, `Challenge`, client-final, `Success` or `Failure`.
    """

    name: ClassVar[str] = "SCRAM-SHA-256"

    def __init__(self, users: Users, nonce: Callable[[], str] | None = None) -> None:
        self._users = users
        self._nonce = _random_nonce if nonce is None else nonce
        self._user: str | None = None
        self._exchange: _Exchange | None = None
        self._over = False

    def step(self, data: bytes) -> Step:
        """Take the client's next message. Any bytes give an answer, never an exception."""
        if self._over:
            return self._fail("the exchange is over already")
        if len(data) > _MESSAGE_SIZE_MAX_BYTES:
            return self._fail(
                f"a message of {len(data)} bytes is longer than {_MESSAGE_SIZE_MAX_BYTES}"
            )
        try:
            if self._exchange is None:
                return self._challenge(data.decode())
            return self._finish(self._exchange, data.decode())
        except UnicodeDecodeError:
            return self._fail("the message is not UTF-8", "invalid-encoding")
        except _Malformed as error:
            return self._fail(str(error), error.code)

    def _challenge(self, message: str) -> Challenge:
        binding, authorization, bare = _split_gs2(message)
        fields = bare.split(",")
        if fields[0].startswith("m="):
            raise _Malformed("the client demands an extension", "extensions-not-supported")
        if len(fields) < 2:
            raise _Malformed("the first message lacks the nonce")
        user = _decode_name(_value(fields[0], "n"), "user name")
        nonce = _value(fields[1], "r")
        if not _NONCE.fullmatch(nonce):
            raise _Malformed("the nonce is empty or not printable ASCII")
        _check_extensions(fields[2:])
        self._user = user
        if authorization and _decode_name(authorization, "authorization identity") != user:
            raise _Malformed("the client asks to act as another user")
        verifier, known = self._users.scram_verifier(user)
        nonce += self._nonce()
        salt = base64.b64encode(verifier.salt).decode()
        first = f"r={nonce},s={salt},i={verifier.iterations}"
        self._exchange = _Exchange(binding, nonce, f"{bare},{first}", verifier, known)
        return Challenge(first.encode())

    def _finish(self, exchange: "_Exchange", message: str) -> Step:
        without_proof, separator, proof_text = message.rpartition(",p=")
        fields = without_proof.split(",")
        if not separator or len(fields) < 2:
            raise _Malformed("the final message lacks the nonce or the proof")
        if _decode_base64(_value(fields[0], "c"), "channel binding") != exchange.binding.encode():
            raise _Malformed(
                "the channel binding differs from the first message", "channel-bindings-dont-match"
            )
        if not hmac.compare_digest(_value(fields[1], "r").encode(), exchange.nonce.encode()):
            raise _Malformed("the nonce differs from the challenge's")
        _check_extensions(fields[2:])
        proof = _decode_base64(proof_text, "proof")
        if len(proof) != _DIGEST_SIZE_BYTES:
            raise _Malformed(f"the proof has {len(proof)} bytes instead of {_DIGEST_SIZE_BYTES}")
        told = f"{exchange.told},{without_proof}".encode()
        verifier = exchange.verifier
        client_key = _xor(proof, hmac.digest(verifier.stored_key, told, "sha256"))
        fits = hmac.compare_digest(hashlib.sha256(client_key).digest(), verifier.stored_key)
        if self._user is None or not (fits and exchange.known):
            return self._fail(self._why_refused(exchange), "invalid-proof")
        self._over = True
        signature = hmac.digest(verifier.server_key, told, "sha256")
        return Success(self._user, b"v=" + base64.b64encode(signature))

    def _why_refused(self, exchange: "_Exchange") -> str:
        if exchange.known:
            return "the proof is wrong: it was made with another password"
        if self._user in self._users:
            return "the user has no SCRAM verifier: set the password again"
        return "there is no such user"

    def _fail(self, reason: str, code: str = "other-error") -> Failure:
        self._over = True
        return Failure(reason, self._user, f"e={code}".encode())


MECHANISMS: Final[dict[str, Callable[[Users], Mechanism]]] = {ScramSha256.name: ScramSha256}
"""The mechanisms by their registered names; MQTT 5.0 carries the name in 3.1.2.11.9."""


class ScramSha256Client:
    """The client's side of SCRAM-SHA-256: `first`, then `final`, then `verify`.

    `nonce` makes the client's part of the nonce, for tests. Every method raises
    `AuthenticationFailed` when the server's message breaks the protocol.
    """

    name: ClassVar[str] = "SCRAM-SHA-256"

    def __init__(self, user: str, password: str, nonce: Callable[[], str] | None = None) -> None:
        try:
            self._user = saslprep(user)
            self._password = saslprep(password)
        except ValueError as error:
            raise AuthenticationFailed(f"user name or password cannot be used: {error}") from None
        self._nonce = _random_nonce() if nonce is None else nonce()
        name = self._user.replace("=", "=3D").replace(",", "=2C")
        self._bare = f"n={name},r={self._nonce}"
        self._signature: bytes | None = None

    def first(self) -> bytes:
        """The first message, which names the user."""
        return f"{_GS2_HEADER}{self._bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        """The answer to the server's challenge. Takes milliseconds, by the server's iterations.

        A server that asks for fewer than 4,096 iterations (RFC 7677, 4) or for so many that they
        would keep this client busy is refused.
        """
        try:
            nonce, salt, iterations = _split_challenge(challenge.decode())
        except (UnicodeDecodeError, _Malformed) as error:
            raise AuthenticationFailed(f"the server's challenge is malformed: {error}") from None
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise AuthenticationFailed("the server's nonce does not continue the client's")
        if not _DECIMAL.fullmatch(iterations) or not (
            _ITERATIONS_MIN <= int(iterations) <= _ITERATIONS_MAX
        ):
            raise AuthenticationFailed(
                f"the server asks for {iterations} iterations, "
                f"which must be {_ITERATIONS_MIN} to {_ITERATIONS_MAX}"
            )
        binding = base64.b64encode(_GS2_HEADER.encode()).decode()
        without_proof = f"c={binding},r={nonce}"
        told = f"{self._bare},{challenge.decode()},{without_proof}".encode()
        salted = _salted(self._password, salt, int(iterations))
        client_key, stored_key, server_key = _derive_keys(salted)
        self._signature = hmac.digest(server_key, told, "sha256")
        proof = _xor(client_key, hmac.digest(stored_key, told, "sha256"))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verify(self, final: bytes) -> None:
        """Check that the server knows the user too, by the data of its success.

        Raises `AuthenticationFailed` when it does not: it is not the server it claims to be.
        """
        if self._signature is None:
            raise AuthenticationFailed("the server ended the exchange before it began")
        expected = b"v=" + base64.b64encode(self._signature)
        if not hmac.compare_digest(final.split(b",", 1)[0], expected):
            raise AuthenticationFailed("the server could not prove that it knows the user")


_ANSWERS_MAX = 16_384
"""Verified and, apart from them, refused passwords that are remembered: a device that connects
again costs microseconds instead of an Argon2 run, right or wrong. Past it the oldest goes."""

_MESSAGE_SIZE_MAX_BYTES = 8192
"""The longest message of a SCRAM client; a real one has about a hundred bytes."""

_ITERATIONS = 15_000  # of new verifiers: a small device still computes them in about a second
_ITERATIONS_MIN = 4096  # RFC 7677, 4
_ITERATIONS_MAX = 1_000_000  # about a third of a second of a client's time
_SALT_SIZE_BYTES = 16
_DIGEST_SIZE_BYTES = hashlib.sha256().digest_size
_GS2_HEADER = "n,,"  # no channel binding, no other identity

# The least that OWASP recommends for Argon2id. argon2-cffi's defaults were measured at 220 ms of
# processor time where this takes 30 ms: a fleet that reconnects to a restarted node waits for it.
_ARGON2_PASSES = 2
_ARGON2_MEMORY_KIB = 19 * 1024
_ARGON2_LANES = 1
_ARGON2_PARAMETERS = f"$argon2id$v=19$m={_ARGON2_MEMORY_KIB},t={_ARGON2_PASSES},p={_ARGON2_LANES}"
_ARGON2 = re.compile(
    r"\$argon2(?:id|i|d)\$v=19\$m=[0-9]{1,9},t=[0-9]{1,9},p=[0-9]{1,4}\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+"
)
_SCRAM = re.compile(r"SCRAM-SHA-256\$([0-9]{1,7}):([^$:]*)\$([^$:]*):([^$:]*)")
_NONCE = re.compile(r"[!-+\--~]+")  # RFC 5802, 7: printable, but no comma
_DECIMAL = re.compile(r"[1-9][0-9]{0,9}")
_STRAY_EQUALS = re.compile(r"=(?!2C|3D)")  # RFC 5802, 5.1: ',' and '=' are =2C and =3D
_EXTENSION = re.compile(r"[A-Za-z]=[^\0]+")

_PROHIBITED: tuple[Callable[[str], bool], ...] = (  # RFC 4013, 2.3
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


@dataclass(frozen=True, slots=True)
class _ScramVerifier:
    """What the server knows of a password (RFC 5802, 3): it checks a proof and cannot make one."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def make(cls, password: str) -> "_ScramVerifier":
        prepared = saslprep(password)
        if not prepared:
            raise ValueError("it has only characters that SASLprep takes away")
        salt = secrets.token_bytes(_SALT_SIZE_BYTES)
        _, stored, server = _derive_keys(_salted(prepared, salt, _ITERATIONS))
        return cls(_ITERATIONS, salt, stored, server)

    @classmethod
    def parse(cls, text: str) -> "_ScramVerifier":
        found = _SCRAM.fullmatch(text)
        if found is None:
            raise ValueError(
                "the SCRAM part is not SCRAM-SHA-256$iterations:salt$stored-key:server-key"
            )
        iterations = int(found[1])
        if not _ITERATIONS_MIN <= iterations <= _ITERATIONS_MAX:
            raise ValueError(
                f"the SCRAM part has {iterations} iterations; "
                f"it must have {_ITERATIONS_MIN} to {_ITERATIONS_MAX}"
            )
        salt, stored, server = (
            _decode_base64(found[index], what)
            for index, what in ((2, "SCRAM salt"), (3, "SCRAM stored key"), (4, "SCRAM server key"))
        )
        if not salt:
            raise ValueError("the SCRAM salt is empty")
        if len(stored) != _DIGEST_SIZE_BYTES or len(server) != _DIGEST_SIZE_BYTES:
            raise ValueError(f"a SCRAM key does not have {_DIGEST_SIZE_BYTES} bytes")
        return cls(iterations, salt, stored, server)

    def __str__(self) -> str:
        salt, stored, server = (
            base64.b64encode(each).decode()
            for each in (self.salt, self.stored_key, self.server_key)
        )
        return f"{ScramSha256.name}${self.iterations}:{salt}${stored}:{server}"


@dataclass(frozen=True, slots=True)
class _User:
    """One line of the users file."""

    name: str
    argon2: str = field(repr=False)
    scram: _ScramVerifier | None

    def __str__(self) -> str:
        return f"{self.name}:{self.argon2}" + ("" if self.scram is None else f":{self.scram}")


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What the server remembers between the client's two messages."""

    binding: str
    nonce: str
    told: str  # the AuthMessage of RFC 5802, 3, as far as it has come
    verifier: _ScramVerifier
    known: bool


class _Malformed(ValueError):
    """A message that breaks the protocol, with the server-error-value for it."""

    def __init__(self, reason: str, code: str = "other-error") -> None:
        super().__init__(reason)
        self.code = code


def _parse_user(line: str) -> _User:
    name, separator, rest = line.partition(":")
    if not separator:
        raise ValueError("the line is not 'name:argon2-hash'")
    check_user_name(name)
    encoded, separator, scram = rest.partition(":")
    if not _ARGON2.fullmatch(encoded):
        raise ValueError(f"the user {name!r} has no Argon2 hash; 'ganglion passwd' makes one")
    return _User(name, encoded, _ScramVerifier.parse(scram) if separator else None)


def _hasher() -> "PasswordHasher":
    from argon2 import PasswordHasher  # noqa: PLC0415  a start without users does not pay for it

    return PasswordHasher(
        time_cost=_ARGON2_PASSES, memory_cost=_ARGON2_MEMORY_KIB, parallelism=_ARGON2_LANES
    )


def _verify_argon2(encoded: str, password: bytes) -> bool:
    from argon2 import exceptions  # noqa: PLC0415  as in _hasher

    try:
        return _hasher().verify(encoded, password)
    except exceptions.VerifyMismatchError:
        return False
    except (exceptions.InvalidHashError, exceptions.VerificationError) as error:
        raise VerificationUnavailable(f"Argon2 could not verify a password: {error}") from error


def _split_gs2(message: str) -> tuple[str, str, str]:
    """The header of the first message, the authorization identity in it, and the rest."""
    parts = message.split(",", 2)
    if len(parts) < 3:
        raise _Malformed("the first message is too short")
    flag, authorization, bare = parts
    if flag.startswith("p="):
        raise _Malformed("the client demands channel binding", "channel-binding-not-supported")
    if flag not in ("n", "y"):
        raise _Malformed("the first message does not begin with n, y or p=")
    identity = _value(authorization, "a") if authorization else ""
    return f"{flag},{authorization},", identity, bare


def _split_challenge(message: str) -> tuple[str, bytes, str]:
    """The nonce, the salt and the iterations of the server's first message."""
    fields = message.split(",")
    if len(fields) < 3:
        raise _Malformed(f"it is {message!r}")
    return (
        _value(fields[0], "r"),
        _decode_base64(_value(fields[1], "s"), "salt"),
        _value(fields[2], "i"),
    )


def _value(attribute: str, letter: str) -> str:
    if not attribute.startswith(f"{letter}="):
        raise _Malformed(f"the attribute {letter}= is not where it belongs")
    return attribute[2:]


def _check_extensions(attributes: list[str]) -> None:
    # RFC 5802, 5.1: optional extensions are ignored, but must be well formed.
    for each in attributes:
        if not _EXTENSION.fullmatch(each):
            raise _Malformed("an extension is not an attribute")


def _decode_name(text: str, what: str) -> str:
    if _STRAY_EQUALS.search(text):
        raise _Malformed(f"the {what} has a stray '='", "invalid-username-encoding")
    try:
        name = saslprep(text.replace("=2C", ",").replace("=3D", "="))
    except ValueError as error:
        raise _Malformed(
            f"the {what} cannot be used: {error}", "invalid-username-encoding"
        ) from None
    if not name:
        raise _Malformed(f"the {what} is empty", "invalid-username-encoding")
    return name


def _decode_base64(text: str, what: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise _Malformed(f"the {what} is not base64", "invalid-encoding") from None
    if base64.b64encode(decoded) != encoded:  # RFC 4648, 3.5: one value, one spelling
        raise _Malformed(f"the {what} is not base64", "invalid-encoding")
    return decoded


def _salted(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def _derive_keys(salted: bytes) -> tuple[bytes, bytes, bytes]:
    """The client key, the stored key and the server key (RFC 5802, 3)."""
    client = hmac.digest(salted, b"Client Key", "sha256")
    return client, hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=True))


def _random_nonce() -> str:
    return secrets.token_urlsafe(24)
