"""What can go wrong for a client, each with a sentence for a person that says what to do.

Everything that this library raises on purpose is a `ClientError`. A `Refused` is the node's own
word: it has the stable code of `docs/protocol.md` section 5, and a class of its own where programs
act on it.
"""

from collections.abc import Mapping
from typing import Any, Final

from ganglion import GanglionError
from ganglion.protocols.native.operations import Code

__all__ = [
    "AuthenticationFailed",
    "BadOption",
    "CircuitOpen",
    "ClientError",
    "Closed",
    "ConnectionLost",
    "LeaseLost",
    "NoResponders",
    "NotAuthorised",
    "NotDecodable",
    "NotFound",
    "QueueFull",
    "Refused",
    "ResponderFailed",
    "ResponderGone",
    "RespondersBusy",
    "TimedOut",
    "Unreachable",
    "WrongVersion",
]


class ClientError(GanglionError):
    """Something that a client was asked to do did not succeed."""


class BadOption(ClientError, ValueError):
    """An argument cannot be what it is; the message names it and says what it may be."""


class Unreachable(ClientError):
    """No connection came about: nobody listens, the name is unknown, or TLS failed."""


class CircuitOpen(ClientError):
    """A circuit breaker let nothing through; ``wait_s`` is in how many seconds it will again."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class ConnectionLost(ClientError):
    """The connection ended, or spoke something that is not the native protocol.

    Whether what was asked for was done is not known, but for what the message says.
    """


class AuthenticationFailed(ClientError):
    """Nobody was let in, and it is us who say so: the node broke the exchange or is not trusted."""


class Closed(ClientError):
    """The mesh or the channel was closed by this program itself."""


class LeaseLost(ClientError):
    """A job or record is no longer this program's to settle: somebody else gets it, or has it."""


class TimedOut(ClientError):
    """There was no answer in time."""


class NotDecodable(ClientError, ValueError):
    """A payload is not what it was to be decoded to; the message says where it differs."""


class Refused(ClientError):
    """The node answered, and said no.

    ``code`` is the stable code of `docs/protocol.md` section 5, the message the node's sentence,
    and ``details`` what some codes have besides.
    """

    def __init__(self, code: str, text: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.details = dict(details or {})

    @staticmethod
    def of(code: str, text: str, details: Mapping[str, Any] | None = None) -> "Refused":
        """The error of the class that this code has."""
        return _CLASSES.get(code, Refused)(code, text, details)


class NotAuthorised(Refused):
    """The rules of access forbid it, or the node does not believe who this client is."""


class NotFound(Refused):
    """There is no such queue, stream, consumer group or channel."""


class QueueFull(Refused):
    """A queue, or the node's disk, has no room: try again later, or let consumers catch up."""


class WrongVersion(Refused):
    """Somebody else has appended with this key meanwhile: read what is new and try again."""

    @property
    def key(self) -> str:
        """The key whose version was another one."""
        return str(self.details.get("key", ""))

    @property
    def expected(self) -> int:
        """The sequence that the caller took for the last one of the key."""
        return int(self.details.get("expected", 0))

    @property
    def actual(self) -> int:
        """The sequence of the last record with the key; 0: there is none."""
        return int(self.details.get("actual", 0))


class NoResponders(Refused):
    """Nobody serves the topic at this time."""


class RespondersBusy(Refused):
    """Everybody who serves the topic has as many requests as they take: try again later."""


class ResponderFailed(Refused):
    """The responder answered with an error of its own: the message and ``details["code"]``."""


class ResponderGone(Refused):
    """The responder left without an answer: ask again if that does no harm."""


_CLASSES: Final[Mapping[str, type[Refused]]] = {
    Code.NOT_ALLOWED: NotAuthorised,
    Code.NOT_AUTHENTICATED: NotAuthorised,
    Code.NOT_FOUND: NotFound,
    Code.FULL: QueueFull,
    Code.WRONG_VERSION: WrongVersion,
    Code.NO_RESPONDERS: NoResponders,
    Code.RESPONDERS_BUSY: RespondersBusy,
    Code.RESPONDER_FAILED: ResponderFailed,
    Code.RESPONDER_GONE: ResponderGone,
}
