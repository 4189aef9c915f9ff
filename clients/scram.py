"""The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), sans-I/O.

The password does not cross the wire: the client proves that it knows it, and the node that it has
its keys. Three messages: `ScramSha256Client.first` goes out, what comes is given to `final`, and
what comes after that to `verify`.
"""

import base64
import hmac
import re
from collections.abc import Callable
from typing import ClassVar, Final

from ganglion.broker.core.scram import (
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
from ganglion.clients.errors import AuthenticationFailed

__all__ = ["ScramSha256Client"]

_GS2_HEADER: Final = "n,,"  # no channel binding, no other identity
_DECIMAL = re.compile(r"[1-9][0-9]{0,9}")


class ScramSha256Client:
    """One exchange: `first`, then `final`, then `verify`.

    ``nonce`` makes the client's part of the nonce, for tests. Every method raises
    `AuthenticationFailed` when the node's message breaks the protocol, and so does the constructor
    when user name or password cannot be prepared (SASLprep).
    """

    name: ClassVar[str] = "SCRAM-SHA-256"

    def __init__(self, user: str, password: str, nonce: Callable[[], str] | None = None) -> None:
        try:
            self._user = saslprep(user)
            self._password = saslprep(password)
        except ValueError as error:
            raise AuthenticationFailed(f"user name or password cannot be used: {error}") from None
        self._nonce = random_nonce() if nonce is None else nonce()
        name = self._user.replace("=", "=3D").replace(",", "=2C")
        self._bare = f"n={name},r={self._nonce}"
        self._signature: bytes | None = None

    def first(self) -> bytes:
        """The first message, which names the user."""
        return f"{_GS2_HEADER}{self._bare}".encode()

    def final(self, challenge: bytes) -> bytes:
        """The answer to the node's challenge. Takes milliseconds, by the node's iterations.

        A node that asks for fewer than 4,096 iterations (RFC 7677, 4) or for so many that they
        would keep this client busy is refused.
        """
        try:
            nonce, salt, iterations = _split_challenge(challenge.decode())
        except (UnicodeDecodeError, Malformed) as error:
            raise AuthenticationFailed(f"the node's challenge is malformed: {error}") from None
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise AuthenticationFailed("the node's nonce does not continue the client's")
        if not _DECIMAL.fullmatch(iterations) or not (
            ITERATIONS_MIN <= int(iterations) <= ITERATIONS_MAX
        ):
            raise AuthenticationFailed(
                f"the node asks for {iterations} iterations, "
                f"which must be {ITERATIONS_MIN} to {ITERATIONS_MAX}"
            )
        binding = base64.b64encode(_GS2_HEADER.encode()).decode()
        without_proof = f"c={binding},r={nonce}"
        told = f"{self._bare},{challenge.decode()},{without_proof}".encode()
        salted = salted_password(self._password, salt, int(iterations))
        client_key, stored_key, server_key = derive_keys(salted)
        self._signature = hmac.digest(server_key, told, "sha256")
        proof = xor(client_key, hmac.digest(stored_key, told, "sha256"))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verify(self, final: bytes) -> None:
        """Check that the node knows the user too, by the data of its success.

        Raises `AuthenticationFailed` when it does not: it is not the node it claims to be.
        """
        if self._signature is None:
            raise AuthenticationFailed("the node ended the exchange before it began")
        expected = b"v=" + base64.b64encode(self._signature)
        if not hmac.compare_digest(final.split(b",", 1)[0], expected):
            raise AuthenticationFailed("the node could not prove that it knows the user")


def _split_challenge(message: str) -> tuple[str, bytes, str]:
    """The nonce, the salt and the iterations of the node's first message."""
    fields = message.split(",")
    if len(fields) < 3:
        raise Malformed(f"it is {message!r}")
    return (
        parse_attribute(fields[0], "r"),
        parse_base64(parse_attribute(fields[1], "s"), "salt"),
        parse_attribute(fields[2], "i"),
    )
