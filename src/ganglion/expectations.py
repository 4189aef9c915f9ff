"""Expecting messages in tests: `ganglion.testing.expect`.

An expectation is subscribed to everything, not only to what it waits for: when that does not come,
the error lists what came instead.
"""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, overload

from ganglion import sync
from ganglion.broker.core.topics import matches
from ganglion.clients.mesh import Mesh
from ganglion.clients.messages import Message

__all__ = ["AsyncExpectation", "Expectation", "expect"]

_INSTEAD_MAX: Final = 10
"""Messages that an error lists: the last ones."""
_BUFFER: Final = 10_000  # more than a test publishes before it looks


@overload
def expect(
    mesh: Mesh,
    topic_filter: str,
    *,
    where: Callable[[Message], bool] | None = None,
    within_s: float = 2.0,
) -> "AsyncExpectation": ...
@overload
def expect(
    mesh: sync.Mesh,
    topic_filter: str,
    *,
    where: Callable[[Message], bool] | None = None,
    within_s: float = 2.0,
) -> "Expectation": ...
def expect(
    mesh: Mesh | sync.Mesh,
    topic_filter: str,
    *,
    where: Callable[[Message], bool] | None = None,
    within_s: float = 2.0,
) -> "AsyncExpectation | Expectation":
    """Expect a message on a topic while a block runs, or soon after it.

    ::

        async with expect(mesh, "orders/created") as created:
            await mesh.publish("orders/created", {"order": 7})
        assert created.message.decode() == {"order": 7}

    With a mesh of ``ganglion.sync`` it is ``with``. ``where`` says which message of the topic is
    meant. When none has come ``within_s`` seconds after the block, leaving raises AssertionError,
    which lists what came instead.
    """
    sought = _Sought(topic_filter, where, within_s)
    if isinstance(mesh, Mesh):
        return AsyncExpectation(mesh, sought)
    return Expectation(mesh, sought)


class _Sought:
    """What is expected, and what came."""

    def __init__(
        self, topic_filter: str, where: Callable[[Message], bool] | None, within_s: float
    ) -> None:
        self.filter = topic_filter
        self.where = where
        self.within_s = within_s
        self.subscribed = topic_filter if topic_filter.startswith("$") else "#"  # 4.7.2: not "$"
        self.found: Message | None = None
        self._instead: deque[Message] = deque(maxlen=_INSTEAD_MAX)
        self._others = 0

    def look(self, messages: list[Message]) -> None:
        """These came."""
        for message in messages:
            is_sought = matches(self.filter, message.topic) and (
                self.where is None or self.where(message)
            )
            if is_sought and self.found is None:
                self.found = message
            elif not is_sought:
                self._others += 1
                self._instead.append(message)

    def missing(self) -> AssertionError:
        """Why a test fails."""
        what = f"no message came on {self.filter}"
        if self.where is not None:
            what += " that is as it should be"
        lines = [f"{what} within {self.within_s:g} s; instead came"]
        if self._others > len(self._instead):
            lines.append(f"  ({self._others - len(self._instead)} more)")
        lines += [f"  {each!r}" for each in self._instead] or ["  nothing"]
        return AssertionError("\n".join(lines))

    @property
    def message(self) -> Message:
        """What came."""
        assert self.found is not None, "leave the block of the expectation first"
        return self.found


class AsyncExpectation:
    """An expectation for ``async with``."""

    def __init__(self, mesh: Mesh, sought: _Sought) -> None:
        self._sought = sought
        self._messages = mesh.subscribe(sought.subscribed, buffer=_BUFFER, retained=False)

    @property
    def message(self) -> Message:
        """The message, once the block is left."""
        return self._sought.message

    async def __aenter__(self) -> Self:
        """From now on nothing is missed."""
        await self._messages.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for it, unless the block has failed. Raises AssertionError."""
        sought = self._sought
        end_s = time.monotonic() + sought.within_s
        try:
            while error is None and sought.found is None:
                left_s = max(end_s - time.monotonic(), 0.0)
                came = await self._messages.take(_BUFFER, timeout_s=left_s)
                if not came:
                    raise sought.missing()
                sought.look(came)
        finally:
            await self._messages.aclose()


class Expectation:
    """An expectation for ``with``."""

    def __init__(self, mesh: sync.Mesh, sought: _Sought) -> None:
        self._sought = sought
        self._messages = mesh.subscribe(sought.subscribed, buffer=_BUFFER, retained=False)

    @property
    def message(self) -> Message:
        """The message, once the block is left."""
        return self._sought.message

    def __enter__(self) -> Self:
        """From now on nothing is missed."""
        self._messages.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for it, unless the block has failed. Raises AssertionError."""
        sought = self._sought
        end_s = time.monotonic() + sought.within_s
        try:
            while error is None and sought.found is None:
                left_s = max(end_s - time.monotonic(), 0.0)
                came = self._messages.take(_BUFFER, timeout_s=left_s)
                if not came:
                    raise sought.missing()
                sought.look(came)
        finally:
            self._messages.close()
