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
import hashlib
import hmac
import re
import secrets
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeAlias

from ganglion import GanglionError
from ganglion.broker.core.scram import (
    DIGEST_SIZE_BYTES,
    ITERATIONS_MAX,
    ITERATIONS_MIN,
    Malformed,
    derive_keys,
    parse_attribute,
    parse_base64,
    random_nonce,
    salted_password,
    saslprep,
    xor,
)

if TYPE_CHECKING:
    from argon2 import PasswordHasher

__all__ = [
    "MECHANISMS",
    "WRONG_CREDENTIALS",
    "Challenge",
    "Failure",
    "InvalidPassword",
    "InvalidUserName",
    "InvalidUsersFile",
    "Mechanism",
    "PasswordCheck",
    "ScramSha256",
    "Step",
    "Success",
    "UnknownUser",
    "Users",
    "VerificationUnavailable",
    "check_user_name",
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

    `reason` is for the log alone: it tells unknown users from wrong passwords, and a client is told
    `WRONG_CREDENTIALS` for both. `user` is the name that the client claimed, when it got so far.
    `data` may be sent where the protocol has room for it (RFC 5802, 7, server-error-value).
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
        self._nonce = random_nonce if nonce is None else nonce
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
        except Malformed as error:
            return self._fail(str(error), error.code)

    def _challenge(self, message: str) -> Challenge:
        binding, authorization, bare = _split_gs2(message)
        fields = bare.split(",")
        if fields[0].startswith("m="):
            raise Malformed("the client demands an extension", "extensions-not-supported")
        if len(fields) < 2:
            raise Malformed("the first message lacks the nonce")
        user = _decode_name(parse_attribute(fields[0], "n"), "user name")
        nonce = parse_attribute(fields[1], "r")
        if not _NONCE.fullmatch(nonce):
            raise Malformed("the nonce is empty or not printable ASCII")
        _check_extensions(fields[2:])
        self._user = user
        if authorization and _decode_name(authorization, "authorization identity") != user:
            raise Malformed("the client asks to act as another user")
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
            raise Malformed("the final message lacks the nonce or the proof")
        binding = parse_base64(parse_attribute(fields[0], "c"), "channel binding")
        if binding != exchange.binding.encode():
            raise Malformed(
                "the channel binding differs from the first message", "channel-bindings-dont-match"
            )
        nonce = parse_attribute(fields[1], "r")
        if not hmac.compare_digest(nonce.encode(), exchange.nonce.encode()):
            raise Malformed("the nonce differs from the challenge's")
        _check_extensions(fields[2:])
        proof = parse_base64(proof_text, "proof")
        if len(proof) != DIGEST_SIZE_BYTES:
            raise Malformed(f"the proof has {len(proof)} bytes instead of {DIGEST_SIZE_BYTES}")
        told = f"{exchange.told},{without_proof}".encode()
        verifier = exchange.verifier
        client_key = xor(proof, hmac.digest(verifier.stored_key, told, "sha256"))
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


WRONG_CREDENTIALS: Final = "the user name or password is wrong"
"""What a client is told of every failure: which names there are is nobody's business."""

MECHANISMS: Final[dict[str, Callable[[Users], Mechanism]]] = {ScramSha256.name: ScramSha256}
"""The mechanisms by their registered names; MQTT 5.0 carries the name in 3.1.2.11.9."""


_ANSWERS_MAX = 16_384
"""Verified and, apart from them, refused passwords that are remembered: a device that connects
again costs microseconds instead of an Argon2 run, right or wrong. Past it the oldest goes."""

_MESSAGE_SIZE_MAX_BYTES = 8192
"""The longest message of a SCRAM client; a real one has about a hundred bytes."""

_ITERATIONS = 15_000  # of new verifiers: a small device still computes them in about a second
_SALT_SIZE_BYTES = 16

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
_STRAY_EQUALS = re.compile(r"=(?!2C|3D)")  # RFC 5802, 5.1: ',' and '=' are =2C and =3D
_EXTENSION = re.compile(r"[A-Za-z]=[^\0]+")


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
        _, stored, server = derive_keys(salted_password(prepared, salt, _ITERATIONS))
        return cls(_ITERATIONS, salt, stored, server)

    @classmethod
    def parse(cls, text: str) -> "_ScramVerifier":
        found = _SCRAM.fullmatch(text)
        if found is None:
            raise ValueError(
                "the SCRAM part is not SCRAM-SHA-256$iterations:salt$stored-key:server-key"
            )
        iterations = int(found[1])
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise ValueError(
                f"the SCRAM part has {iterations} iterations; "
                f"it must have {ITERATIONS_MIN} to {ITERATIONS_MAX}"
            )
        salt, stored, server = (
            parse_base64(found[index], what)
            for index, what in ((2, "SCRAM salt"), (3, "SCRAM stored key"), (4, "SCRAM server key"))
        )
        if not salt:
            raise ValueError("the SCRAM salt is empty")
        if len(stored) != DIGEST_SIZE_BYTES or len(server) != DIGEST_SIZE_BYTES:
            raise ValueError(f"a SCRAM key does not have {DIGEST_SIZE_BYTES} bytes")
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
        raise Malformed("the first message is too short")
    flag, authorization, bare = parts
    if flag.startswith("p="):
        raise Malformed("the client demands channel binding", "channel-binding-not-supported")
    if flag not in ("n", "y"):
        raise Malformed("the first message does not begin with n, y or p=")
    identity = parse_attribute(authorization, "a") if authorization else ""
    return f"{flag},{authorization},", identity, bare


def _check_extensions(attributes: list[str]) -> None:
    # RFC 5802, 5.1: optional extensions are ignored, but must be well formed.
    for each in attributes:
        if not _EXTENSION.fullmatch(each):
            raise Malformed("an extension is not an attribute")


def _decode_name(text: str, what: str) -> str:
    if _STRAY_EQUALS.search(text):
        raise Malformed(f"the {what} has a stray '='", "invalid-username-encoding")
    try:
        name = saslprep(text.replace("=2C", ",").replace("=3D", "="))
    except ValueError as error:
        raise Malformed(
            f"the {what} cannot be used: {error}", "invalid-username-encoding"
        ) from None
    if not name:
        raise Malformed(f"the {what} is empty", "invalid-username-encoding")
    return name
