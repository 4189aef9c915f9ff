"""What subscriptions, consumers, followers and services have in common: they outlive connections.

A `Channel` is opened by one request and then gets items until it is closed. The session opens it
again on every new connection; what it is on one connection is an attachment there. A program takes
the items with ``async for``, from as many tasks as it likes.
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from ganglion.clients.conversation import Answer
from ganglion.clients.errors import (
    BadOption,
    ClientError,
    Closed,
    ConnectionLost,
    Refused,
    TimedOut,
)
from ganglion.clients.link import Link
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import CREDIT_MAX, Operation

__all__ = ["Attached", "Channel", "Channels", "check_credit"]

_T = TypeVar("_T")

_TAKEN_AT_ONCE_MAX: Final = 64
"""Items that a task takes before others have a turn: a checkpoint for each would cost 10 µs of the
3 that taking one costs."""
_CLOSE_S: Final = 5.0
"""What closing waits for the node to say that it is done."""


class Channels(Protocol):
    """The session, as channels see it."""

    @property
    def link(self) -> Link | None:
        """The connection that there is."""
        ...

    @property
    def waits(self) -> bool:
        """Whether what is asked for waits for a connection when there is none."""
        ...

    @property
    def answer_timeout_s(self) -> float:
        """How long is waited for an answer."""
        ...

    @property
    def error(self) -> ClientError | None:
        """Why there will be no more connections."""
        ...

    def add(self, channel: "Channel[Any]") -> None:
        """Open it now if there is a connection, and again on each that follows."""
        ...

    def remove(self, channel: "Channel[Any]") -> None:
        """Open it no more."""
        ...


def check_credit(name: str, count: int, *, least: int = 1) -> None:
    """Raise `BadOption` for an option that says how many items may be here, and cannot be that."""
    if not least <= count <= CREDIT_MAX:
        raise BadOption(f"{name} must be from {least} to {CREDIT_MAX:,}, not {count}")


class Attached:
    """A channel on one connection."""

    __slots__ = ("channel", "link", "number")

    def __init__(self, channel: "Channel[Any]", link: Link, number: int) -> None:
        self.channel = channel
        self.link = link
        self.number = number

    def on_frame(self, frame: Frame) -> None:
        """Pass it to the channel; what all channels know is dealt with here."""
        match frame[0]:
            case Operation.DROPPED:
                self.channel.dropped += frame[2]
            case Operation.ENDED:
                self.link.channels.pop(self.number, None)
                self.let_go()
                if self.channel.at is self:  # else it lives on, on another connection
                    self.channel.fail(Refused.of(frame[2], frame[3]))
            case _:
                self.channel.on_frame(frame, self)

    def on_lost(self, error: ClientError) -> None:
        """The connection is gone. The session opens the channel again when there is another."""
        self.let_go()
        self.channel.on_detached(self, error)

    def let_go(self) -> None:
        """What came here can be dealt with no more: the node has ended the channel."""

    def output(self) -> Iterator[bytes]:
        """Nothing is gathered here."""
        return iter(())

    @property
    def is_busy(self) -> bool:
        """Whether something is left here that has to be dealt with on this connection."""
        return False

    def retire(self) -> None:
        """The channel is open on another connection: let nothing new come here."""
        self.link.channels.pop(self.number, None)
        if self.link.error is None:
            self.link.notify(Operation.CLOSE, 0, self.number)


class Channel(Generic[_T]):
    """Items from the node, for ``async for`` inside of ``async with``."""

    operation: Operation
    """What opens it."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._buffer: deque[_T] = deque()
        self._opened = anyio.Event()
        self._is_begun = False
        self._came: anyio.Event | None = None
        self._error: ClientError | None = None
        self._taken = 0
        self.at: Attached | None = None
        """Where it is attached; None: there is no connection, or it is closed."""
        self.dropped: int = 0
        """How many items were lost because nobody took them in time, here or at the node."""

    # -- for programs ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open it: the node has it when this returns.

        Raises what the node refused it with, `TimedOut` or `ConnectionLost`.
        """
        self.begin()
        limit_s = self._channels.answer_timeout_s
        try:
            with anyio.move_on_after(limit_s):
                await self._opened.wait()
        except BaseException:
            self.close()  # whether it is open already or not
            raise
        if not self._opened.is_set():
            self.close()
            self._error = TimedOut(f"no node has opened this within {limit_s:g} s")
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close it, and wait until the node has dealt with it. It is closed even when cancelled."""
        at = self._detach()
        if at is not None:
            with anyio.move_on_after(_CLOSE_S):
                try:
                    await at.link.call(Operation.CLOSE, at.number)
                except ClientError:
                    pass  # the connection or the channel has ended by itself: it is closed
                return

    def __len__(self) -> int:
        """How many items are here that no task has taken."""
        return len(self._buffer)

    def close(self) -> None:
        """Close it, without waiting until the node has dealt with that."""
        at = self._detach()
        if at is not None:
            at.link.notify(Operation.CLOSE, 0, at.number)

    def __aiter__(self) -> AsyncIterator[_T]:
        """Give itself: several tasks may take from it, and each item goes to one."""
        return self

    async def __anext__(self) -> _T:
        """The next item. Raises what ended the channel; at its end by the program it just stops."""
        self._taken += 1
        if not self._taken % _TAKEN_AT_ONCE_MAX:
            await checkpoint()
        while not self._buffer:
            if isinstance(self._error, Closed):
                raise StopAsyncIteration
            await self._item()
        item = self._buffer.popleft()
        self.on_taken()
        return item

    async def get(self, *, timeout_s: float | None = None) -> _T:
        """The next item. Raises `TimedOut`, `Closed`, and what else ended the channel."""
        found = await self.take(1, timeout_s=timeout_s)
        if not found:
            raise TimedOut(f"nothing came within {timeout_s or 0:g} s")
        return found[0]

    async def take(self, count_max: int, *, timeout_s: float | None = None) -> list[_T]:
        """The next item and those that are here behind it, ``count_max`` at most.

        An empty list: none came within ``timeout_s``; left out, it waits as long as it takes.
        Raises `Closed`, and what else ended the channel.
        """
        if count_max < 1:
            raise BadOption(f"count_max must be 1 or more, not {count_max}")
        if not self._buffer:
            with anyio.move_on_after(math.inf if timeout_s is None else timeout_s):
                while not self._buffer:
                    await self._item()
        found: list[_T] = []
        while self._buffer and len(found) < count_max:
            found.append(self._buffer.popleft())
            self.on_taken()
        return found

    async def _item(self) -> None:
        """Wait until something changes. Raises what ended the channel."""
        if self._error is not None:
            raise self._error.with_traceback(None)  # it may be raised again, and would grow
        if not self._is_begun:
            raise BadOption("enter it first: async with ... as items: async for item in items")
        if self._came is None:
            self._came = anyio.Event()
        await self._came.wait()

    # -- for kinds of channels ---------------------------------------------------------------------

    def begin(self) -> None:
        """Open it, now or with the next connection, and wait for nothing.

        Raises `BadOption`, and why there is no connection where none is waited for.
        """
        if self._is_begun:
            raise BadOption("this was entered already: make another one")
        self.check()
        if self._channels.error is not None:
            raise self._channels.error.with_traceback(None)
        if self._channels.link is None and not self._channels.waits:
            raise ConnectionLost("there is no connection at this time")
        self._is_begun = True
        self._channels.add(self)

    @property
    def is_begun(self) -> bool:
        """Whether it was opened once."""
        return self._is_begun

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and has not ended."""
        return self._is_begun and self._error is None

    def check(self) -> None:
        """Raise `BadOption` for options that cannot be."""

    def opening(self) -> tuple[object, ...]:
        """The elements of the request that opens it, behind the id."""
        return ()

    def attachment(self, link: Link, number: int) -> Attached:
        """What it is on this connection."""
        return Attached(self, link, number)

    def on_opened(self, result: Any) -> None:
        """The node has opened it."""

    def on_frame(self, frame: Frame, at: Attached) -> None:
        """Something came for it."""

    def on_detached(self, at: Attached, error: ClientError) -> None:
        """A connection that it was on is gone."""
        if self.at is not at:
            return  # it has moved to another one
        self.at = None
        if not self._channels.waits:
            self.fail(error)

    def on_taken(self) -> None:
        """A program has taken an item."""

    def give(self, item: _T) -> None:
        """An item for the program."""
        self._buffer.append(item)
        if self._came is not None:
            self._came.set()
            self._came = None

    # -- for the session ---------------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """Open it on this connection."""
        opening = _Opening()
        number = link.ask(opening, self.operation, *self.opening())
        opening.at = self.at = link.channels[number] = self.attachment(link, number)

    def opened(self, result: Any) -> None:
        """The node has opened it on the connection that it is attached to."""
        self.on_opened(result)
        self._opened.set()

    def fail(self, error: ClientError) -> None:
        """It has ended: who waits for an item gets this, behind those that are there."""
        if self._error is None:
            self._error = error
        self._channels.remove(self)
        self.at = None
        self._opened.set()
        if self._came is not None:
            self._came.set()
            self._came = None

    def _detach(self) -> Attached | None:
        """End it from our side; the attachment that is to be closed at the node."""
        at, self.at = self.at, None
        self._buffer.clear()
        self.fail(Closed("this was closed"))
        if at is None or at.link.error is not None:
            return None
        at.link.flush(at)
        at.link.channels.pop(at.number, None)
        at.let_go()
        return at


class _Opening:
    """Waits for the node to open a channel."""

    __slots__ = ("at",)

    at: Attached
    """Known as soon as the request has its number."""

    def on_answer(self, answer: Answer) -> None:
        """The node has opened it, or does not want to."""
        at = self.at
        if answer.error is not None:
            at.link.channels.pop(at.number, None)
        if at.channel.at is not at:
            return  # it was closed meanwhile, or is on another connection
        if answer.error is not None:
            at.channel.fail(answer.error)
        else:
            at.channel.opened(answer.result)

    def on_lost(self, error: ClientError) -> None:
        """The attachment is told, too."""
