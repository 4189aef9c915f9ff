"""Publishes that wait for their confirmation, over as many connections as it takes.

The `Outbox` holds every publish that the node has not answered, as the frame that was sent, in the
order of its numbers. On a new connection they all go out again, in that order and under the same
numbers, by which the node knows those that it has already ('Sending again' in `docs/protocol.md`).

A `Publisher` has many of them on the way from one task.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, Self, Unpack

import anyio

from ganglion.clients.conversation import Answer
from ganglion.clients.errors import ClientError, Closed
from ganglion.clients.link import Link, raised
from ganglion.clients.messages import MessageOptions, Receipt
from ganglion.protocols.native.operations import Operation

__all__ = ["Outbox", "Outgoing", "Publisher", "Publishes", "published"]

_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of frames that wait for a confirmation; who wants to publish more has to wait."""


class Outgoing:
    """A publish on its way."""

    __slots__ = ("_outbox", "data", "number", "operation", "settled")

    def __init__(self, outbox: "Outbox", operation: Operation, settled: "Settled") -> None:
        self._outbox = outbox
        self.operation = operation
        self.settled = settled
        self.number = 0
        self.data = b""

    def on_answer(self, answer: Answer) -> None:
        """The node took it, or refused it."""
        if not self._outbox.forget(self):
            return
        if answer.error is not None:
            self.settled(self, raised(answer.error))
            return
        counts = answer.values if answer.operation == Operation.CONFIRMED else answer.result
        self.settled(self, Receipt(*counts))

    def on_lost(self, error: ClientError) -> None:
        """The connection is gone: it waits for the next one, unless nobody wants to wait."""
        if not self._outbox.waits and self._outbox.forget(self):
            self.settled(self, error)


Settled = Callable[[Outgoing, Receipt | ClientError], None]
"""Called once with what came of a publish."""


class Outbox:
    """All publishes without an answer."""

    def __init__(self, publishes_max: int, *, waits: bool) -> None:
        self.waits = waits
        """Whether they wait for the next connection when one is lost."""
        self._publishes_max = publishes_max
        self._pending: dict[int, Outgoing] = {}
        self._bytes = 0
        self._room: anyio.Event | None = None
        self._is_held = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether `room` has to be waited for before there is one more."""
        return (
            len(self._pending) >= self._publishes_max or self._bytes >= _BYTES_MAX or self._is_held
        )

    async def room(self) -> None:
        """Wait until there is room for one more."""
        while self.is_full:
            if self._room is None:
                self._room = anyio.Event()
            await self._room.wait()

    def hold(self) -> None:
        """Let nobody publish more until `release`: who wants to waits in `room`."""
        self._is_held = True

    def release(self) -> None:
        """Go on."""
        self._is_held = False
        self._tell_room()

    def send(self, link: Link, outgoing: Outgoing, *elements: object) -> None:
        """Number it and send it.

        Raises why the link has ended, if it has, and `BadOption` for more than the node takes.
        """
        number, data = link.request(outgoing.operation, *elements)
        outgoing.number, outgoing.data = number, data
        if self._pending:
            link.put(data)
        else:
            link.put_now(data)
        self._pending[number] = outgoing
        self._bytes += len(data)
        link.calls[number] = outgoing

    def send_again(self, link: Link) -> None:
        """Everything that has no answer, on a new connection and before anything else."""
        for number, outgoing in self._pending.items():
            if outgoing.operation == Operation.PUBLISH:
                link.conversation.sent_again(number)
            link.calls[number] = outgoing
            link.put(outgoing.data)

    def forget(self, outgoing: Outgoing) -> bool:
        """It is settled, or nobody wants to know any more; False: it was already."""
        if self._pending.pop(outgoing.number, None) is None:
            return False
        self._bytes -= len(outgoing.data)
        self._tell_room()
        return True

    def fail(self, error: ClientError) -> None:
        """There will be no more connections."""
        for outgoing in list(self._pending.values()):
            if self.forget(outgoing):
                outgoing.settled(outgoing, error)

    def _tell_room(self) -> None:
        if self._room is not None and not self.is_full:
            self._room.set()
            self._room = None


class Publishes(Protocol):
    """The session, as publishers see it."""

    outbox: Outbox

    async def sending(self) -> Link:
        """A connection with room for more to send. Raises why there is none."""
        ...

    def publication(
        self, topic: str, value: object, about: MessageOptions
    ) -> tuple[str, bytes, dict[str, Any] | None]:
        """Topic, payload and properties of a message. Raises `BadOption`."""
        ...


class _Waiting:
    """A task that waits for one publish."""

    __slots__ = ("_done", "_result")

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._result: Receipt | ClientError | None = None

    def settled(self, _outgoing: Outgoing, result: Receipt | ClientError) -> None:
        """What came of it."""
        self._result = result
        self._done.set()

    async def wait(self) -> Receipt:
        """The receipt. Raises why there is none."""
        await self._done.wait()
        result = self._result
        assert result is not None
        if isinstance(result, ClientError):
            raise result.with_traceback(None)  # it may be raised in many tasks, and would grow
        return result


async def published(
    session: Publishes, operation: Operation, elements: tuple[object, ...]
) -> Receipt:
    """Publish and wait for the confirmation; when cancelled it is not sent again."""
    outbox = session.outbox
    link = await session.sending()
    while outbox.is_full:
        await outbox.room()
        link = await session.sending()
    waiting = _Waiting()
    outgoing = Outgoing(outbox, operation, waiting.settled)
    outbox.send(link, outgoing, *elements)
    try:
        return await waiting.wait()
    finally:
        outbox.forget(outgoing)


class Publisher:
    """Publishes with many on the way at a time; leaving waits until all are confirmed.

    The first one that is refused ends it: its error is raised by the next `publish`, or on leaving.
    """

    def __init__(self, session: Publishes, in_flight: int) -> None:
        self._session = session
        self._in_flight = in_flight
        self._open: dict[Outgoing, None] = {}
        self._changed: anyio.Event | None = None
        self._error: ClientError | None = None
        self.confirmed = 0
        """How many were confirmed so far."""

    async def publish(
        self, topic: str, value: object = b"", **about: Unpack[MessageOptions]
    ) -> None:
        """Publish; waits only when as many are on the way as may be.

        Raises the error of an earlier one that was refused; nothing is published then.
        """
        await self.publish_elements(self._session.publication(topic, value, about))

    async def publish_elements(self, elements: tuple[object, ...]) -> None:
        """As `publish`, with topic, payload and properties as they travel."""
        while len(self._open) >= self._in_flight and self._error is None:
            await self._change()
        link = await self._session.sending()
        outbox = self._session.outbox
        while outbox.is_full:
            await outbox.room()
            link = await self._session.sending()
        if self._error is not None:
            raise self._error.with_traceback(None)
        outgoing = Outgoing(outbox, Operation.PUBLISH, self._settled)
        outbox.send(link, outgoing, *elements)
        self._open[outgoing] = None

    async def flush(self) -> None:
        """Wait until everything is confirmed. Raises the error of the first that was refused."""
        while self._open and self._error is None:
            await self._change()
        if self._error is not None:
            raise self._error.with_traceback(None)

    async def __aenter__(self) -> Self:
        """Begin; nothing is waited for until it is left."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for all confirmations; after an error in the body for none, and none goes again."""
        try:
            if error is None:
                await self.flush()
        finally:
            for outgoing in self._open:
                self._session.outbox.forget(outgoing)
            self._open.clear()
            if self._error is None:
                self._error = Closed("this publisher was left")

    def _settled(self, outgoing: "Outgoing", result: Receipt | ClientError) -> None:
        self._open.pop(outgoing, None)
        if isinstance(result, ClientError):
            self._error = self._error or result
        else:
            self.confirmed += 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()
