"""The numbers and words of the native protocol: operations, error codes, versions.

Operations below `FIRST_REQUEST` have no answer, and one that the receiver does not know is ignored.
From there on the second element of a frame is the identifier that its answer carries.
"""

from enum import IntEnum, StrEnum
from typing import Final

__all__ = [
    "ALPN_NAME",
    "BATCH_MAX",
    "CHANNELS_MAX",
    "CREDIT_MAX",
    "FATAL",
    "FIRST_REQUEST",
    "ID_MAX",
    "KEEP_ALIVE_DEFAULT_S",
    "PROTOCOL_VERSION",
    "SUBPROTOCOL_JSON",
    "SUBPROTOCOL_MSGPACK",
    "Code",
    "Operation",
]

PROTOCOL_VERSION: Final = 1
ALPN_NAME: Final = "ganglion/1"
SUBPROTOCOL_MSGPACK: Final = "ganglion.msgpack"
SUBPROTOCOL_JSON: Final = "ganglion.json"

FIRST_REQUEST: Final = 32
ID_MAX: Final = 2**53 - 1
"""The highest identifier: every language has a number that holds it exactly."""
BATCH_MAX: Final = 1024
"""Elements of an array that a client sends. With it, what a hostile frame makes a decoder reserve
before it is known to be wrong stays at some MB (512 levels of 1,024 places)."""
CHANNELS_MAX: Final = 1024
"""Channels of one connection: each costs a place in the router, a queue or a stream."""
CREDIT_MAX: Final = 1_000_000
KEEP_ALIVE_DEFAULT_S: Final = 30


class Operation(IntEnum):
    """The first element of a frame (`docs/protocol.md` section 4)."""

    MESSAGE = 1
    DELIVERY = 2
    JOBS = 3
    RECORDS = 4
    CALL = 5
    REPLY = 6
    CANCELLED = 7
    ENDED = 8
    DROPPED = 9
    DRAIN = 10
    OK = 11
    ERROR = 12
    CONFIRMED = 13
    PING = 14
    PONG = 15
    GOODBYE = 16
    CREDIT = 17
    CHALLENGE = 18
    PROOF = 19

    HELLO = 32
    PUBLISH = 33
    PUBLISH_BATCH = 34
    SUBSCRIBE = 35
    CLOSE = 36

    CONSUME = 40
    ACK = 41
    NACK = 42
    REJECT = 43
    EXTEND = 44
    QUEUE_DECLARE = 45
    QUEUE_DESCRIBE = 46
    QUEUE_LIST = 47
    QUEUE_DELETE = 48
    QUEUE_PURGE = 49
    QUEUE_PAUSE = 50
    QUEUE_RESUME = 51
    QUEUE_BROWSE = 52
    QUEUE_REDRIVE = 53

    APPEND = 60
    APPEND_BATCH = 61
    READ = 62
    FOLLOW = 63
    STREAM_DECLARE = 64
    STREAM_DESCRIBE = 65
    STREAM_LIST = 66
    STREAM_DELETE = 67
    GROUP_DECLARE = 68
    GROUP_DELETE = 69
    STREAM_VERSION = 70

    REQUEST = 80
    GATHER = 81
    SERVE = 82
    ANSWER = 83
    FAIL = 84
    CANCEL = 85

    RETAINED_GET = 90
    RETAINED_PUT = 91
    RETAINED_DELETE = 92
    RETAINED_LIST = 93

    STATISTICS = 100


class Code(StrEnum):
    """What an error is, for programs (`docs/protocol.md` section 5)."""

    INVALID = "invalid"
    UNKNOWN_OPERATION = "unknown_operation"
    DUPLICATE_ID = "duplicate_id"
    NOT_ALLOWED = "not_allowed"
    NOT_FOUND = "not_found"
    LIMIT = "limit"
    FULL = "full"
    SEQUENCE = "sequence"
    WRONG_VERSION = "wrong_version"
    NO_RESPONDERS = "no_responders"
    RESPONDERS_BUSY = "responders_busy"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    RESPONDER_FAILED = "responder_failed"
    RESPONDER_GONE = "responder_gone"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    PROTOCOL = "protocol"
    UNSUPPORTED_VERSION = "unsupported_version"
    NOT_AUTHENTICATED = "not_authenticated"
    BUSY = "busy"
    TAKEN_OVER = "taken_over"
    KEEP_ALIVE = "keep_alive"
    DRAINING = "draining"


FATAL: Final = frozenset(
    (
        Code.MALFORMED,
        Code.TOO_LARGE,
        Code.PROTOCOL,
        Code.UNSUPPORTED_VERSION,
        Code.NOT_AUTHENTICATED,
        Code.BUSY,
        Code.TAKEN_OVER,
        Code.KEEP_ALIVE,
        Code.DRAINING,
    )
)
"""Errors after which the connection ends, whatever their identifier."""
