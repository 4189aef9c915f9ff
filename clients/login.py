"""How a client with a password says who it is, sans-I/O: prove first, and send only in private.

A `Login` lasts for as many connections as it takes. The first one offers SCRAM-SHA-256, in which
the password does not cross the wire. A node that refuses that may have no keys for the user (or no
such mechanism): a wrong password looks the same, on purpose. So the client connects once more and
sends the password as it is, but only where nobody can listen: over TLS, to this machine, or through
a Unix socket. Elsewhere the refusal stands, and says what to do. ::

    login = Login(address, "ada", b"secret")
    conversation = Conversation(login)  # it answers the challenge and checks the node's signature
    ...                                 # hello was refused with `Refused`:
    if not login.may_go_on(refused):    # raises it with more words where that helps
        raise refused
    ...                                 # connect again, with the same login

A client that connects again later uses the same object: it remembers which way the node took.
"""

from collections.abc import Mapping
from typing import Any

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.errors import AuthenticationFailed, Refused
from ganglion.clients.scram import ScramSha256Client
from ganglion.protocols.native.operations import Code

__all__ = ["Login"]


class Login:
    """A user, a password, and the way in which the node is told of it."""

    def __init__(self, address: NodeAddress, user: str, password: bytes) -> None:
        self._address = address
        self._user = user
        self._password = password
        self._exchange: ScramSha256Client | None = None
        self._proves = True

    def options(self) -> dict[str, Any]:
        """Options of ``hello`` for a new connection.

        Raises `AuthenticationFailed` when the password cannot be proved, for its characters, and
        may not be sent.
        """
        self._exchange = None
        if self._proves:
            try:
                exchange = ScramSha256Client(self._user, self._password.decode())
            except (AuthenticationFailed, UnicodeDecodeError):
                if not self._address.is_private:
                    raise AuthenticationFailed(
                        f"the password of {self._user} has characters that SCRAM-SHA-256 does not "
                        f"allow, and it is not sent as it is: {self._address} is not encrypted; "
                        f"use {_ENCRYPTED}"
                    ) from None
                self._proves = False
            else:
                self._exchange = exchange
                return {"mechanism": exchange.name, "data": exchange.first()}
        return {"user": self._user, "password": self._password}

    def proof(self, challenge: bytes) -> bytes:
        """The answer to a challenge. Takes milliseconds. Raises `AuthenticationFailed`."""
        if self._exchange is None:
            raise AuthenticationFailed("the node wants a proof of what was not claimed")
        return self._exchange.final(challenge)

    def check(self, greeting: Mapping[str, Any]) -> None:
        """Hear that the node is content; raises `AuthenticationFailed` unless it may be trusted."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            data = greeting.get("data")
            exchange.verify(data if isinstance(data, bytes) else b"")

    def may_go_on(self, refused: Refused) -> bool:
        """Whether to connect again after this refusal of ``hello``: the next way may be taken.

        Raises `Refused` where there was one more way, and it is not safe.
        """
        if refused.code != Code.NOT_AUTHENTICATED or not self._proves:
            return False
        if not self._address.is_private:
            raise Refused.of(
                refused.code,
                f"{refused}; if it is right, the node has no SCRAM-SHA-256 keys for {self._user}: "
                f"make them ('ganglion passwd change {self._user}'), or use {_ENCRYPTED}; the "
                f"password was not sent as it is, for {self._address} is not encrypted",
                refused.details,
            )
        self._proves = False
        return True


_ENCRYPTED = "ganglions:// or wss://"
