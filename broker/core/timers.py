"""Deadlines on a clock that somebody else owns.

`Timers` is a heap of (time, callback). It never looks at a clock: the reactor (or a test) says what
time it is with `run`, and asks `next_deadline` how long it may sleep. Cancelling is lazy: a
cancelled timer stays in the heap until its time comes or until cancelled ones are the majority.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

__all__ = ["Timer", "Timers"]

_COMPACT_MIN = 1024  # below this many cancelled timers a rebuild of the heap is not worth its time


class Timer:
    """One deadline; keep it to cancel it."""

    __slots__ = ("_timers", "callback")

    def __init__(self, timers: "Timers", callback: Callable[[float], None]) -> None:
        self._timers = timers
        self.callback: Callable[[float], None] | None = callback

    def cancel(self) -> None:
        """Do not call back. Harmless when the time has come already."""
        if self.callback is not None:
            self.callback = None
            self._timers.cancelled += 1


class Timers:
    """All deadlines of a node, in seconds of a monotonic clock."""

    __slots__ = ("_heap", "_order", "cancelled", "now")

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        """The time of the current tick, in seconds; set by `run` or by the reactor."""
        self.cancelled = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = 0

    def __len__(self) -> int:
        """How many timers wait, cancelled ones included."""
        return len(self._heap)

    def at(self, when: float, callback: Callable[[float], None]) -> Timer:
        """Call `callback(now)` once the time is `when` (seconds of the same clock) or later."""
        timer = Timer(self, callback)
        self._order += 1
        heappush(self._heap, (when, self._order, timer))
        if self.cancelled > _COMPACT_MIN and self.cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapify(self._heap)
            self.cancelled = 0
        return timer

    def after(self, delay_s: float, callback: Callable[[float], None]) -> Timer:
        """Call `callback(now)` in `delay_s` seconds."""
        return self.at(self.now + delay_s, callback)

    def next_deadline(self) -> float | None:
        """When `run` has something to do again; None when nothing waits."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heappop(heap)
            self.cancelled -= 1
        return heap[0][0] if heap else None

    def run(self, now: float) -> None:
        """It is `now`: call back every timer whose time has come, in order of time."""
        self.now = now
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heappop(heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self.cancelled -= 1
            else:
                callback(now)
            heap = self._heap  # a callback may have caused a rebuild
