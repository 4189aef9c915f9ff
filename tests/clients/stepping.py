"""Cancelling a call at its n-th step, for each n until it has none left.

A step is where a coroutine hands over to its loop, which is where a cancellation can meet it: what
the coroutine yields is counted on the way to the loop. There are four ways to be cancelled. A
cancel scope is anyio's, and trio's own. ``task`` is ``task.cancel()`` of asyncio, which comes once
and not again. ``late`` is the same at the worst time: what was waited for is there, and the task
has not run yet.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Literal

import anyio

__all__ = ["WAYS", "Way", "cancelled_at"]

Way = Literal["scope", "task", "late"]
WAYS: Final[tuple[tuple[str, Way], ...]] = (
    ("trio", "scope"),
    ("asyncio", "scope"),
    ("asyncio", "task"),
    ("asyncio", "late"),
)
"""Backends, and the ways to be cancelled there."""


class _Stepped:
    """A coroutine whose steps are counted; at one of them something is done."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, object], step: int, cancel: Callable[[Any], None]
    ) -> None:
        self._coroutine = coroutine
        self._left = step
        self._cancel = cancel

    def __await__(self) -> Generator[Any, Any, object]:
        value: Any = None
        thrown: BaseException | None = None
        while True:
            try:
                if thrown is None:
                    wanted = self._coroutine.send(value)
                else:
                    wanted = self._coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                thrown = None  # it holds this frame, and this frame must not hold it
            self._left -= 1
            if not self._left:
                self._cancel(wanted)
            try:
                value = yield wanted
            except BaseException as error:  # noqa: BLE001 - all of them are the coroutine's
                thrown = error


async def cancelled_at(
    step: int, way: Way, call: Callable[[], Coroutine[Any, Any, object]]
) -> bool:
    """Run this and cancel it at a step; False: it was over before."""
    if way == "scope":
        with anyio.CancelScope() as scope:
            await _Stepped(call(), step, lambda _: scope.cancel())
        return scope.cancel_called
    return await _in_a_task(step, way, call)


async def _in_a_task(step: int, way: Way, call: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    came = False

    def cancel(wanted: object) -> None:
        nonlocal came
        came = True
        if way == "late" and isinstance(wanted, asyncio.Future):
            wanted.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()

    async def main() -> None:
        await _Stepped(call(), step, cancel)

    task = asyncio.create_task(main())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return came
