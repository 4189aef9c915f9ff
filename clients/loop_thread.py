"""An event loop in a thread of its own, for threads that have none.

anyio's blocking portal runs it. Two ways lead into it. `LoopThread.call` waits for the result of an
asynchronous function; when the waiting thread is interrupted, the function is cancelled. What has
no result is put there with `LoopThread.post`, in the order of the calls, and costs a twentieth of
that: many posts share one wake-up of the loop.

A call takes 150 µs, nearly all of it for two threads to take turns. `BlockingPortal.call` takes
230 µs, since it waits for the loop twice (anyio 4.16); so calls are started by the loop itself.

A child of `os.fork` has none of its parent's threads: there every use raises `Closed`.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from anyio.from_thread import start_blocking_portal

from ganglion.clients.errors import Closed

__all__ = ["LoopThread"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_POSTED_MAX: Final = 1000
"""Posts that the loop may be behind before a thread has to wait for it."""


class LoopThread:
    """The loop and the thread. It runs inside of the context."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._process = 0
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False

    def __enter__(self) -> Self:
        """Start it."""
        portal = self._stack.enter_context(start_blocking_portal(name="ganglion"))
        self._loop, self._thread = portal.call(_here)
        self._process = os.getpid()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it. In a child of `os.fork` there is nothing to stop."""
        if self._process == os.getpid():
            self._loop = None
            self._stack.close()

    def call(
        self,
        function: Callable[_P, Coroutine[Any, Any, _T]],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run this in the loop, in the context of this thread, and wait for its result.

        What was posted before has its turn before it. Raises `Closed`.
        """
        future: Future[_T] = asyncio.run_coroutine_threadsafe(
            function(*args, **kwargs), self._running()
        )
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted wait; of a function that has ended it is nothing
            raise

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have the loop call this soon. It must not raise. Raises `Closed`."""
        loop = self._running()
        if len(self._posted) >= _POSTED_MAX:
            self.call(_nothing)
        self._posted.append((function, args))
        # The loop takes the mark away before it looks: what is put after that wakes it again.
        if not self._is_woken:
            self._is_woken = True
            loop.call_soon_threadsafe(self._run_posted)

    def _run_posted(self) -> None:
        self._is_woken = False
        while self._posted:
            function, args = self._posted.popleft()
            function(*args)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise Closed("the mesh is closed")
        if self._process != os.getpid():
            raise Closed(
                "this process was forked from the one that connected, and has no thread of it: "
                "connect in the child"
            )
        if self._thread == threading.get_ident():
            raise Closed("this is the thread of the event loop: it cannot wait for itself")
        return self._loop


async def _here() -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()


async def _nothing() -> None:
    """Only that the loop has come so far."""
