"""An event loop in a thread of its own, for threads that have none.

anyio's blocking portal runs it. Two ways lead into it. `LoopThread.call` waits for the result of an
asynchronous function; when the waiting thread is interrupted, the function is cancelled. What has
no result is put there with `LoopThread.post`, in the order of the calls, and costs a twentieth of
that: many posts share one wake-up of the loop.

A call takes 150 µs, nearly all of it for two threads to take turns. `BlockingPortal.call` takes
230 µs, since it waits for the loop twice (anyio 4.16); so calls are started by the loop itself.

The portal is started here, and not by `start_blocking_portal`, for a program may end without
leaving the context: that one's generator would then wait for its thread for ever, in a child of a
fork, too.

A child of `os.fork` has none of its parent's threads: there every use raises `Closed`.
"""

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, ExitStack
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

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
        self._portal: BlockingPortal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="ganglion", daemon=True)
        self._process = 0
        self._started: set[Future[Any]] = set()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False

    def __enter__(self) -> Self:
        """Start it."""
        self._process = os.getpid()
        ready = self._ready = Future[BlockingPortal]()
        self._thread.start()
        self._portal = ready.result()
        self._loop = self._portal.call(_running_loop)
        # At the end of a program that never leaves it: a daemon's thread would be stopped anywhere.
        atexit.register(self.__exit__, None, None, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave what was entered, and stop. In a child of `os.fork` there is nothing to stop."""
        portal, self._portal, self._loop = self._portal, None, None
        if portal is None or self._process != os.getpid():
            return
        atexit.unregister(self.__exit__)
        try:
            self._stack.__exit__(kind, error, traceback)
        finally:
            portal.call(portal.stop, True)
            self._thread.join()
            for future in list(self._started):
                future.cancel()  # of other threads, which came too late for the loop to see them

    def _run(self) -> None:
        anyio.run(self._serve, backend="asyncio")

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._ready.set_result(portal)
            await portal.sleep_until_stopped()

    def enter(self, context: AbstractAsyncContextManager[_T]) -> _T:
        """Enter it in the loop; it is left when this thread is stopped."""
        assert self._portal is not None
        return self._stack.enter_context(self._portal.wrap_async_context_manager(context))

    def start(
        self,
        function: Callable[_P, Coroutine[Any, Any, _T]],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Future[_T]:
        """Run this in the loop, in the context of this thread; cancelling it is possible.

        What was posted before has its turn before it. Raises `Closed`.
        """
        loop = self._running()
        coroutine = function(*args, **kwargs)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:
            coroutine.close()
            raise Closed("the mesh is closed") from None
        self._started.add(future)
        future.add_done_callback(self._started.discard)
        return future

    def call(
        self,
        function: Callable[_P, Coroutine[Any, Any, _T]],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """As `start`, and wait for the result; an interrupted wait cancels it."""
        future = self.start(function, *args, **kwargs)
        try:
            return future.result()
        except CancelledError:
            raise Closed("the mesh was closed meanwhile") from None
        except BaseException:
            future.cancel()  # for one that has ended by itself this is nothing
            raise

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have the loop call this soon; it must not raise. Raises `Closed`."""
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
        if self._thread.ident == threading.get_ident():
            raise Closed("this is the thread of the event loop: it cannot wait for itself")
        return self._loop


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def _nothing() -> None:
    """Only that the loop has come so far."""
