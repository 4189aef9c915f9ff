"""Ganglion: a lightweight message broker and event mesh.

What a Python program uses of it: the client and its errors. Every name is imported from its module
when it is first asked for, so that ``import ganglion`` costs next to nothing, a program pays for
what it uses, and no part of the package pays for another. The version and the base of all errors,
which every part shares, are here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers; a test compares them with the table
    import ganglion.sync as sync  # noqa: PLR0402 - a module of the package, not a name of one
    from ganglion.clients.addresses import tls_context
    from ganglion.clients.circuit import CircuitBreaker, CircuitState, CircuitStatistics
    from ganglion.clients.codecs import JSON, MSGPACK, Codec, ValueCodec
    from ganglion.clients.errors import (
        AuthenticationFailed,
        BadOption,
        CircuitOpen,
        ClientError,
        Closed,
        ConnectionLost,
        LeaseLost,
        NoResponders,
        NotAuthorised,
        NotDecodable,
        NotFound,
        QueueFull,
        Refused,
        ResponderFailed,
        ResponderGone,
        RespondersBusy,
        TimedOut,
        Unreachable,
        WrongVersion,
    )
    from ganglion.clients.handlers import Retry
    from ganglion.clients.mesh import Mesh, States, connect
    from ganglion.clients.messages import Message, MessageOptions, Receipt, Record
    from ganglion.clients.publishing import Publisher
    from ganglion.clients.queues import (
        Consumer,
        Job,
        Queue,
        QueueDescription,
        QueueOptions,
        StoredMessage,
    )
    from ganglion.clients.requests import Request, Service
    from ganglion.clients.retained import Retained
    from ganglion.clients.session import Secret, State, StateChange
    from ganglion.clients.streams import (
        Appended,
        Follower,
        GroupFollower,
        GroupRecord,
        Stream,
        StreamDescription,
        StreamGroup,
        StreamOptions,
    )
    from ganglion.clients.subscriptions import Overflow, Subscription
    from ganglion.clients.tracing import TraceContext, continuing, current_trace
    from ganglion.clients.work import HandlerStatistics
    from ganglion.clients.workers import Worker, WorkerStatistics

__all__ = [
    "JSON",
    "MSGPACK",
    "Appended",
    "AuthenticationFailed",
    "BadOption",
    "BrokerNotInstalled",
    "CircuitBreaker",
    "CircuitOpen",
    "CircuitState",
    "CircuitStatistics",
    "ClientError",
    "Closed",
    "Codec",
    "ConnectionLost",
    "Consumer",
    "Follower",
    "GanglionError",
    "GroupFollower",
    "GroupRecord",
    "HandlerStatistics",
    "Job",
    "LeaseLost",
    "Mesh",
    "Message",
    "MessageOptions",
    "NoResponders",
    "NotAuthorised",
    "NotDecodable",
    "NotFound",
    "Overflow",
    "Publisher",
    "Queue",
    "QueueDescription",
    "QueueFull",
    "QueueOptions",
    "Receipt",
    "Record",
    "Refused",
    "Request",
    "ResponderFailed",
    "ResponderGone",
    "RespondersBusy",
    "Retained",
    "Retry",
    "Secret",
    "Service",
    "State",
    "StateChange",
    "States",
    "StoredMessage",
    "Stream",
    "StreamDescription",
    "StreamGroup",
    "StreamOptions",
    "Subscription",
    "TimedOut",
    "TraceContext",
    "Unreachable",
    "ValueCodec",
    "Worker",
    "WorkerStatistics",
    "WrongVersion",
    "__version__",
    "connect",
    "continuing",
    "current_trace",
    "sync",
    "tls_context",
]

__version__ = "0.1.0"

_NAMES = {
    "ganglion.clients.addresses": ("tls_context",),
    "ganglion.clients.circuit": (
        "CircuitBreaker",
        "CircuitState",
        "CircuitStatistics",
    ),
    "ganglion.clients.codecs": (
        "JSON",
        "MSGPACK",
        "Codec",
        "ValueCodec",
    ),
    "ganglion.clients.errors": (
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
    ),
    "ganglion.clients.handlers": ("Retry",),
    "ganglion.clients.mesh": (
        "Mesh",
        "States",
        "connect",
    ),
    "ganglion.clients.messages": (
        "Message",
        "MessageOptions",
        "Receipt",
        "Record",
    ),
    "ganglion.clients.publishing": ("Publisher",),
    "ganglion.clients.queues": (
        "Consumer",
        "Job",
        "Queue",
        "QueueDescription",
        "QueueOptions",
        "StoredMessage",
    ),
    "ganglion.clients.requests": (
        "Request",
        "Service",
    ),
    "ganglion.clients.retained": ("Retained",),
    "ganglion.clients.session": (
        "Secret",
        "State",
        "StateChange",
    ),
    "ganglion.clients.streams": (
        "Appended",
        "Follower",
        "GroupFollower",
        "GroupRecord",
        "Stream",
        "StreamDescription",
        "StreamGroup",
        "StreamOptions",
    ),
    "ganglion.clients.subscriptions": (
        "Overflow",
        "Subscription",
    ),
    "ganglion.clients.tracing": (
        "TraceContext",
        "continuing",
        "current_trace",
    ),
    "ganglion.clients.work": ("HandlerStatistics",),
    "ganglion.clients.workers": (
        "Worker",
        "WorkerStatistics",
    ),
}
"""Which public names are in which module."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names}


class GanglionError(Exception):
    """The base of every error that Ganglion raises on purpose."""


class BrokerNotInstalled(GanglionError, ModuleNotFoundError):
    """A node was wanted, and a package that a node needs is not installed."""

    def __init__(self, module: str | None) -> None:
        super().__init__(
            f"a node needs the package {module}, which is not installed: "
            "pip install 'ganglion[broker]'",
            name=module,
        )


if not TYPE_CHECKING:  # a type checker that saw this would let every wrong name pass

    def __getattr__(name: str) -> Any:
        """Import a public name; from then on it is an ordinary attribute of this module."""
        from importlib import import_module  # noqa: PLC0415 - only programs of users come here

        if name == "sync":
            return import_module("ganglion.sync")
        if name not in _MODULES:
            raise AttributeError(f"module 'ganglion' has no attribute {name!r}", name=name)
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The names of this module, with those that were not asked for yet."""
    return sorted({*globals(), *_MODULES})
