"""Items that this program owes a word: jobs and records of groups to settle, requests to answer.

An `Owing` is their channel on one connection: it knows what is owed there, in which trace each item
is dealt with, and what to say of one whose block was left without a word. `Owed` makes an item a
context of that kind. What was owed on a connection that is lost is owed no more: `OwedChannel`
forgets what nobody has taken.
"""

from types import TracebackType
from typing import Any, Protocol, TypeVar

from ganglion.clients.channels import Attached, Channel
from ganglion.clients.errors import ClientError
from ganglion.clients.link import Link
from ganglion.clients.messages import Message
from ganglion.clients.tracing import continuing
from ganglion.protocols.native.operations import Operation

__all__ = ["IsOwed", "Owed", "OwedChannel", "Owing"]


class Owing(Attached):
    """A channel on one connection, and what of its items this program owes a word."""

    __slots__ = ("_contexts", "owed")

    def __init__(self, channel: Channel[Any], link: Link, number: int) -> None:
        super().__init__(channel, link, number)
        self.owed: dict[int, None] = {}
        """Handles of what came and has no word yet."""
        self._contexts: dict[int, continuing] = {}

    @property
    def is_busy(self) -> bool:
        """Whether something here has no word yet."""
        return bool(self.owed)

    def retire(self) -> None:
        """Take nothing new, and let what is here be dealt with here."""
        self.link.notify(Operation.CREDIT, self.number, 0)

    def enter(self, handle: int, item: "IsOwed | Message") -> None:
        """A program begins to deal with it: what it sends is part of the same trace."""
        context = continuing(item.headers)
        if context.__enter__() is not None:
            self._contexts[handle] = context

    def leave(self, handle: int) -> None:
        """A program is done with it, and back in the trace that it was in before."""
        context = self._contexts.pop(handle, None)
        if context is not None:
            context.__exit__(None, None, None)

    def say_left(self, handle: int, error: BaseException | None) -> None:
        """Say what its block has not said of it: by how the block was left."""


class IsOwed(Protocol):
    """What `Owed` needs to know of an item."""

    @property
    def at(self) -> Owing:
        """Where it came from."""
        ...

    @property
    def handle(self) -> int:
        """The number by which it is known there."""
        ...

    @property
    def headers(self) -> Any:
        """Of the message, with its trace."""
        ...


_Item = TypeVar("_Item", bound=IsOwed)


class Owed:
    """An item for ``async with``; an exception of the block goes on upwards."""

    __slots__ = ()

    async def __aenter__(self: _Item) -> _Item:  # noqa: PYI019 - Self has no bound
        """Deal with it: what is sent inside carries its correlation and trace on."""
        self.at.enter(self.handle, self)
        return self

    async def __aexit__(
        self: IsOwed,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say by the way it was left what the block has not said: done, failed, no answer."""
        self.at.leave(self.handle)
        self.at.say_left(self.handle, error)


_T = TypeVar("_T", bound=IsOwed)


class OwedChannel(Channel[_T]):
    """A channel of such items."""

    def on_detached(self, at: Attached, error: ClientError) -> None:
        """What nobody has taken goes to somebody else."""
        kept = [item for item in self._buffer if item.at is not at]
        self._buffer.clear()
        self._buffer.extend(kept)
        super().on_detached(at, error)
