"""What can go wrong for a client, each with a sentence for a person."""

from collections.abc import Mapping
from typing import Any

from ganglion import GanglionError

__all__ = [
    "AuthenticationFailed",
    "ClientError",
    "ConnectionLost",
    "Refused",
    "TimedOut",
    "Unreachable",
]


class ClientError(GanglionError):
    """Something that a client was asked to do did not succeed."""


class Unreachable(ClientError):
    """No connection came about: nobody listens, the name is unknown, or TLS failed."""


class ConnectionLost(ClientError):
    """The node ended the connection, or spoke something that is not the native protocol."""


class AuthenticationFailed(ClientError):
    """Nobody was let in, and it is us who say so: the node broke the exchange or is not trusted."""


class TimedOut(ClientError):
    """The node did not answer in time."""


class Refused(ClientError):
    """The node answered, and said no.

    ``code`` is the stable code of `docs/protocol.md` section 5, the message the node's sentence,
    and ``details`` what some codes have besides.
    """

    def __init__(self, code: str, text: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.details = dict(details or {})
