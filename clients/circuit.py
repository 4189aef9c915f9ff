"""A circuit breaker: requests to somebody who is down fail at once, and not each in its own time.

It is closed while all is well. Too many failures open it: requests then fail at once with
`CircuitOpen`, so that callers need not wait and the other side is left alone. After the cool-down
it is half open: one request is let through as a probe, and its end closes or opens it again.

`_TRANSITIONS` is the whole of that. What belongs to an earlier state says nothing about this one: a
request that was asked before the circuit opened may fail after it was closed again, and counts for
nothing then.
"""

import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from ganglion.clients.errors import (
    BadOption,
    CircuitOpen,
    ConnectionLost,
    NoResponders,
    ResponderGone,
    RespondersBusy,
    TimedOut,
)

__all__ = ["FAILURES", "Attempt", "CircuitBreaker", "CircuitState", "CircuitStatistics"]

_SLICES: Final = 10
"""Parts of the window that are counted apart: it moves on by a tenth at a time."""

FAILURES: Final[tuple[type[Exception], ...]] = (
    NoResponders,
    TimedOut,
    RespondersBusy,
    ResponderGone,
    ConnectionLost,
)
"""What says that the other side is down. A `ResponderFailed` is an answer: it is up."""


class CircuitState(enum.Enum):
    """What a breaker does with the next request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class _Event(enum.Enum):
    TOO_MANY_FAILURES = enum.auto()
    COOLED_DOWN = enum.auto()
    PROBE_SUCCEEDED = enum.auto()
    PROBE_FAILED = enum.auto()


_TRANSITIONS: Final = {
    (CircuitState.CLOSED, _Event.TOO_MANY_FAILURES): CircuitState.OPEN,
    (CircuitState.OPEN, _Event.COOLED_DOWN): CircuitState.HALF_OPEN,
    (CircuitState.HALF_OPEN, _Event.PROBE_SUCCEEDED): CircuitState.CLOSED,
    (CircuitState.HALF_OPEN, _Event.PROBE_FAILED): CircuitState.OPEN,
}


@dataclass(frozen=True, slots=True)
class CircuitStatistics:
    """What a breaker has seen so far."""

    state: CircuitState
    succeeded: int
    failed: int
    refused: int
    """Requests that failed at once because the circuit was open."""
    opened: int
    """How often it was opened."""


class CircuitBreaker:
    """For requests to one other side: ``mesh.request("pricing/quote", body, breaker=breaker)``.

    One breaker may be shared by all tasks of a program, and by its threads in the synchronous face.
    """

    def __init__(
        self,
        *,
        failures_in_a_row: int | None = 5,
        failure_share: float | None = None,
        window_s: float = 30.0,
        requests_min: int = 10,
        cool_down_s: float = 10.0,
        failures: tuple[type[Exception], ...] = FAILURES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Choose when it opens, and for how long.

        ``failures_in_a_row``: after so many without a success in between; None: however many.
        ``failure_share``: when more than this share (0 to 1) of the requests that ended within
        ``window_s`` have failed, if there were at least ``requests_min``; None: whatever the share.
        ``cool_down_s``: seconds until a probe is let through. ``failures``: the errors that count;
        any other end of a request is a success. ``clock``: seconds that only go forward.
        Raises `BadOption`.
        """
        if failures_in_a_row is None and failure_share is None:
            raise BadOption("a breaker needs failures_in_a_row or failure_share: it would not open")
        if failures_in_a_row is not None and failures_in_a_row < 1:
            raise BadOption(f"failures_in_a_row must be 1 or more, not {failures_in_a_row}")
        if failure_share is not None and not 0 <= failure_share < 1:
            raise BadOption(f"failure_share must be from 0 to below 1, not {failure_share:g}")
        if requests_min < 1:
            raise BadOption(f"requests_min must be 1 or more, not {requests_min}")
        for name, value in (("window_s", window_s), ("cool_down_s", cool_down_s)):
            if not value > 0:
                raise BadOption(f"{name} must be above 0, not {value:g}")
        self._failures_in_a_row = failures_in_a_row
        self._failure_share = failure_share
        self._slice_s = window_s / _SLICES
        self._requests_min = requests_min
        self._cool_down_s = cool_down_s
        self._failures = failures
        self._clock = clock
        self._state = CircuitState.CLOSED
        self._period = 0  # counts changes of state: tells to which an attempt belongs
        self._row = 0
        self._window: deque[_Slice] = deque()
        self._opened_s = 0.0
        self._is_probing = False
        self._succeeded = self._failed = self._refused = self._opened = 0

    @property
    def state(self) -> CircuitState:
        """What it does with the next request."""
        if self._state is CircuitState.OPEN and self._wait_s() <= 0:
            self._go(_Event.COOLED_DOWN)
        return self._state

    def statistics(self) -> CircuitStatistics:
        """What it has seen so far."""
        return CircuitStatistics(
            self.state, self._succeeded, self._failed, self._refused, self._opened
        )

    def attempt(self) -> "Attempt":
        """A context manager around one request; how it is left is what counts.

        Entering it raises `CircuitOpen`.
        """
        return Attempt(self)

    def admit(self) -> int:
        """Let a request through, for `ended`. Raises `CircuitOpen`."""
        state = self.state
        if state is CircuitState.OPEN:
            self._refused += 1
            wait_s = self._wait_s()
            raise CircuitOpen(
                f"there were too many failures: the next attempt is in {wait_s:.3g} s", wait_s
            )
        if state is CircuitState.HALF_OPEN:
            if self._is_probing:
                self._refused += 1
                raise CircuitOpen("there were too many failures: an attempt is under way", 0.0)
            self._is_probing = True
        return self._period

    def ended(self, period: int, error: BaseException | None) -> None:
        """What became of a request that was let through."""
        if error is not None and not isinstance(error, Exception):
            if period == self._period:
                self._is_probing = False  # cancelled: it says nothing, the next one is the probe
            return
        has_failed = isinstance(error, self._failures)
        if has_failed:
            self._failed += 1
        else:
            self._succeeded += 1
        if period != self._period:
            return
        if self._state is CircuitState.HALF_OPEN:
            self._go(_Event.PROBE_FAILED if has_failed else _Event.PROBE_SUCCEEDED)
        elif self._is_too_much(has_failed):
            self._go(_Event.TOO_MANY_FAILURES)

    def _go(self, event: _Event) -> None:
        self._state = _TRANSITIONS[self._state, event]
        self._period += 1
        self._is_probing = False
        self._row = 0
        self._window.clear()
        if self._state is CircuitState.OPEN:
            self._opened += 1
            self._opened_s = self._clock()

    def _wait_s(self) -> float:
        return self._opened_s + self._cool_down_s - self._clock()

    def _is_too_much(self, has_failed: bool) -> bool:
        """Count an end of a request while the circuit is closed."""
        self._row = self._row + 1 if has_failed else 0
        if self._failures_in_a_row is not None and self._row >= self._failures_in_a_row:
            return True
        if self._failure_share is None:
            return False
        number = int(self._clock() / self._slice_s)
        window = self._window
        if not window or window[-1].number != number:
            window.append(_Slice(number))
        while window[0].number <= number - _SLICES:
            window.popleft()
        window[-1].requests += 1
        window[-1].failures += has_failed
        requests = sum(each.requests for each in window)
        failures = sum(each.failures for each in window)
        is_much = requests >= self._requests_min and failures > self._failure_share * requests
        return has_failed and is_much


class _Slice:
    """A tenth of the window."""

    __slots__ = ("failures", "number", "requests")

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests = 0
        self.failures = 0


class Attempt:
    """One request through a breaker."""

    __slots__ = ("_breaker", "_period")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._period = -1

    def __enter__(self) -> None:
        """Ask for it. Raises `CircuitOpen`."""
        self._period = self._breaker.admit()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Count how it ended."""
        self._breaker.ended(self._period, error)
