"""What is refused, and as what the client is told: the one place that maps errors to codes."""

from typing import Any

from ganglion import GanglionError
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.node import LimitReached, NoRoom, NotAllowed
from ganglion.broker.core.producers import TooManyProducers
from ganglion.broker.core.queues import QueueMissing
from ganglion.broker.core.stream import (
    GroupMissing,
    RecordTooLarge,
    StreamMissing,
    StreamNotKeyed,
    WrongExpectedVersion,
)
from ganglion.broker.core.tokens import InvalidToken
from ganglion.broker.core.topics import InvalidTopic
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.properties import InvalidProperty

__all__ = ["Refused", "invalid", "refusal_of"]


class Refused(GanglionError):
    """A request is answered with this error."""

    def __init__(self, code: Code, text: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.details = details


def invalid(text: str) -> Refused:
    """A frame has something in a place where that cannot be."""
    return Refused(Code.INVALID, text)


_CODES: tuple[tuple[type[GanglionError], Code], ...] = (
    (NotAllowed, Code.NOT_ALLOWED),
    (NoRoom, Code.FULL),
    (LimitReached, Code.LIMIT),
    (TooManyProducers, Code.LIMIT),
    (QueueMissing, Code.NOT_FOUND),
    (StreamMissing, Code.NOT_FOUND),
    (GroupMissing, Code.NOT_FOUND),
    (InvalidDefinition, Code.INVALID),
    (InvalidTopic, Code.INVALID),
    (InvalidProperty, Code.INVALID),
    (StreamNotKeyed, Code.INVALID),
    (RecordTooLarge, Code.INVALID),
    (InvalidToken, Code.NOT_AUTHENTICATED),
)


def refusal_of(error: GanglionError) -> Refused:
    """The error that the client is told; raises `error` where it is none of its doing."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, WrongExpectedVersion):
        details = {"key": error.key, "expected": error.expected, "actual": error.actual}
        return Refused(Code.WRONG_VERSION, str(error), details)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Refused(code, str(error))
    raise error
