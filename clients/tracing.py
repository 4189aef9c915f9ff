"""What a message is part of, carried along from what is received to what is sent.

Two things travel in headers: ``correlation-id``, which names the whole of a business process, and
the W3C trace context (``traceparent``, ``tracestate``), which names a place in a distributed trace.
While a program deals with a message (inside of ``async with job:``, of a handler of a worker, or of
`continuing`) everything that it sends carries both on, as a child of what it came from.

The current one lives in a context variable: each task and thread has its own.
"""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

__all__ = ["TraceContext", "continuing", "current_trace", "outgoing_headers"]

_TRACE_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where we are: of a trace, and of a business process."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits: what is done now, the parent of all that it sends."""
    flags: str = "01"
    state: str | None = None
    """``tracestate`` of others, which is passed on as it came."""
    correlation_id: str | None = None

    @classmethod
    def new(cls, correlation_id: str | None = None) -> Self:
        """The root of a trace that begins here."""
        return cls(os.urandom(16).hex(), os.urandom(8).hex(), correlation_id=correlation_id)

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Self | None:
        """What the headers of a message say (W3C Trace Context 3.2); None: nothing.

        A ``traceparent`` that cannot be read counts as none, as the recommendation says.
        """
        correlation_id = headers.get("correlation-id")
        found = _TRACE_PARENT.fullmatch(headers.get("traceparent", ""))
        usable = (
            found is not None
            and found[1] != "ff"
            and not (found[1] == "00" and len(found[0]) != 55)
            and found[2].strip("0")
            and found[3].strip("0")
        )
        if found is None or not usable:
            return None if correlation_id is None else cls.new(correlation_id)
        return cls(found[2], found[3], found[4], headers.get("tracestate"), correlation_id)

    def child(self) -> Self:
        """A new place below this one."""
        return replace(self, span_id=os.urandom(8).hex())

    def headers(self) -> dict[str, str]:
        """As a message carries it."""
        found = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags}"}
        if self.state:
            found["tracestate"] = self.state
        if self.correlation_id is not None:
            found["correlation-id"] = self.correlation_id
        return found


_current: Final[ContextVar[TraceContext | None]] = ContextVar("ganglion_trace", default=None)


def current_trace() -> TraceContext | None:
    """Where we are; None: nothing is known of it."""
    return _current.get()


def outgoing_headers() -> dict[str, str] | None:
    """The headers for what is sent now; None: there are none."""
    current = _current.get()
    return None if current is None else current.headers()


class continuing:  # noqa: N801 - used as a function: `with continuing(message.headers):`
    """A context in which what is sent continues what these headers are part of.

    Without any in them the surrounding context stays as it is; with ``begin`` a trace begins here.
    """

    __slots__ = ("_begin", "_headers", "_token")

    def __init__(self, headers: Mapping[str, str], *, begin: bool = False) -> None:
        self._headers = headers
        self._begin = begin
        self._token: Token[TraceContext | None] | None = None

    def __enter__(self) -> TraceContext | None:
        """Give the context that holds inside: a child of what the headers name."""
        parent = TraceContext.from_headers(self._headers) if self._headers else None
        if parent is None and not self._begin:
            return _current.get()
        inner = TraceContext.new() if parent is None else parent.child()
        self._token = _current.set(inner)
        return inner

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Go back to what was before."""
        if self._token is not None:
            _current.reset(self._token)
