"""One connection to one node: what is asked over it, what is answered, what opens channels on it.

A `Link` is made by `Link.open`, which greets the node, and lives while `run` does: three tasks that
read, write and keep alive. Everything else here is synchronous. A frame to send is put into a list,
and the writer sends what is in the list at once, so that frames that a program makes without
waiting in between share a system call. Two tables say where what comes goes: `Answered` by the
number of a request, `Attachment` by the number of a channel.

When the connection ends, for whatever reason, everybody in the two tables is told, once.
"""

import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

import anyio

from ganglion import __version__
from ganglion.clients.addresses import NodeAddress
from ganglion.clients.conversation import Answer, Conversation
from ganglion.clients.errors import (
    BadOption,
    ClientError,
    Closed,
    ConnectionLost,
    Refused,
    TimedOut,
)
from ganglion.clients.login import Login
from ganglion.clients.transport import Transport, open_transport, running_clock
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import Code, Operation

__all__ = ["Answered", "Attachment", "Call", "Link", "raised"]

_OUTPUT_HIGH_BYTES: Final = 1024 * 1024
"""Above this much that waits to be sent, who wants to send more has to wait."""
_GOODBYE_S: Final = 2.0
"""What a connection that is closed may still take to send what it has."""
_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError, AssertionError)
"""What a frame leads to that is not what `docs/protocol.md` says."""


class Answered(Protocol):
    """Somebody who waits for an answer."""

    def on_answer(self, answer: Answer) -> None:
        """This is it."""
        ...

    def on_lost(self, error: ClientError) -> None:
        """There will be none, for the connection is gone."""
        ...


class Attachment(Protocol):
    """A channel as it is on one connection."""

    def on_frame(self, frame: Frame) -> None:
        """Something came for it."""
        ...

    def on_lost(self, error: ClientError) -> None:
        """The connection is gone, and the channel on it."""
        ...

    def output(self) -> Iterator[bytes]:
        """Frames of what was gathered since the last time, when `Link.flush_later` was called."""
        ...


class Call:
    """A request that a task waits for."""

    __slots__ = ("_answer", "_done", "_error", "_on_part")

    def __init__(self, on_part: Callable[[Frame], None] | None = None) -> None:
        self._done = anyio.Event()
        self._answer: Answer | None = None
        self._error: ClientError | None = None
        self._on_part = on_part

    def on_answer(self, answer: Answer) -> None:
        """What it waited for."""
        self._answer = answer
        self._done.set()

    def on_lost(self, error: ClientError) -> None:
        """There will be no answer."""
        self._error = error
        self._done.set()

    def on_frame(self, frame: Frame) -> None:
        """One of several replies."""
        if self._on_part is not None:
            self._on_part(frame)

    def output(self) -> Iterator[bytes]:
        """A call sends nothing but itself."""
        return iter(())

    async def wait(self) -> tuple[Any, ...]:
        """The elements of the answer. Raises what it was refused with, or `ConnectionLost`."""
        await self._done.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)  # many tasks may raise it, and it would grow
        answer = self._answer
        assert answer is not None
        if answer.error is not None:
            raise raised(answer.error)
        return answer.values


def raised(refused: Refused) -> ClientError:
    """The error that a program gets: a deadline that the node kept is like any other."""
    return TimedOut(str(refused)) if refused.code == Code.TIMED_OUT else refused


class Link:
    """A connection that the node has greeted."""

    def __init__(
        self, address: NodeAddress, transport: Transport, conversation: Conversation, ended: "OnEnd"
    ) -> None:
        self.address = address
        self.greeting: dict[str, Any] = {}
        self.conversation = conversation
        self.calls: dict[int, Answered] = {}
        self.channels: dict[int, Attachment] = {}
        self.on_message: Callable[[Frame], None] = _ignore
        """Called with each `message` (1), which is for all plain subscriptions together."""
        self.on_drain: Callable[[dict[str, Any]], None] = _ignore
        """Called when the node says that it will stop."""
        self.error: ClientError | None = None
        """Why it ended; None while it lives."""
        self.batch_max = 1024
        self.frame_max_bytes = 16 * 1024 * 1024
        self._transport = transport
        self._ended = ended
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._to_flush: dict[Attachment, None] = {}
        self._is_idle = False  # whether the writer waits for something to send
        self._wake = anyio.Event()
        self._progress: anyio.Event | None = None
        self._keep_alive_s = 0.0
        self._pings: deque[Answered | None] = deque()
        self._now = running_clock()
        self._heard_s = self._sent_s = self._now()
        self._scope = anyio.CancelScope()

    @classmethod
    async def open(
        cls,
        address: NodeAddress,
        *,
        tls: ssl.SSLContext | None,
        options: dict[str, Any],
        ids: Iterator[int],
        login: Login | None,
        ended: "OnEnd",
    ) -> "Link":
        """Connect and wait for the greeting. ``options`` are those of hello.

        ``login`` has the password if there is one. Raises `Unreachable`, `ConnectionLost`,
        `Refused` or `AuthenticationFailed`.
        """
        transport = await open_transport(address, tls)
        try:
            link = cls(address, transport, Conversation(login, ids=ids), ended)
            await link._greet(options)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_GOODBYE_S):
                await transport.aclose()
            raise
        return link

    # -- what is sent ------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Send this soon. What is put on a link that has ended is gone with it."""
        self._output.append(data)
        self._output_bytes += len(data)
        if self._is_idle:
            self._wake_writer()

    def put_message(self, topic: str, payload: bytes, properties: dict[str, Any] | None) -> None:
        """Send soon what has no answer, and is sent by the hundred thousand.

        Raises `BadOption` for more than the node takes.
        """
        data = self.conversation.message(topic, payload, properties)
        if len(data) > self.frame_max_bytes:
            raise self._too_large(data)
        self._output.append(data)
        self._output_bytes += len(data)
        if self._is_idle:
            self._wake_writer()

    def put_now(self, data: bytes) -> None:
        """Send this at once where that is possible.

        For what somebody waits for while nothing else is under way: it saves the turn of the
        writer, a fifth of a round trip. Where much is under way `put` shares a system call.
        """
        if self._is_idle and not self._output and not self._to_flush:
            sent = self._transport.send_now(data)
            if sent == len(data):
                return
            data = data[sent:]
        self.put(data)

    def notify(self, operation: Operation, *elements: object) -> None:
        """Send soon what has no answer. Raises `BadOption` for more than the node takes."""
        self.put_frame(self.conversation.notice(operation, *elements))

    def put_frame(self, data: bytes, *, is_waited_for: bool = False) -> None:
        """Send a frame, by `put_now` when somebody waits for it.

        Raises `BadOption` for more than the node takes.
        """
        if len(data) > self.frame_max_bytes:
            raise self._too_large(data)
        if is_waited_for:
            self.put_now(data)
        else:
            self.put(data)

    def request(self, operation: Operation, *elements: object) -> tuple[int, bytes]:
        """The id of a request and its frame, for `put`.

        Raises why the link has ended, if it has, and `BadOption` for more than the node takes: it
        would end the connection for that.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)  # it may be raised many times, and would grow
        number, data = self.conversation.request(operation, *elements)
        if len(data) > self.frame_max_bytes:
            self.conversation.forget(number)
            raise self._too_large(data)
        return number, data

    def ask(self, answered: Answered, operation: Operation, *elements: object) -> int:
        """Send a request soon; its id. Raises what `request` raises."""
        number, data = self.request(operation, *elements)
        self._flush_all()  # what was settled before is settled where the node looks now
        if self.calls:
            self.put(data)
        else:
            self.put_now(data)
        self.calls[number] = answered
        return number

    async def call(
        self, operation: Operation, *elements: object, cancel: bool = False
    ) -> tuple[Any, ...]:
        """Ask and wait. With ``cancel`` the node is told when the caller is cancelled."""
        waiting = Call()
        number = self.ask(waiting, operation, *elements)
        try:
            return await waiting.wait()
        finally:
            self.give_up(number, cancel=cancel)

    def give_up(self, number: int, *, cancel: bool) -> None:
        """Nobody waits for this any more, if it has no answer; with ``cancel`` the node is told."""
        if self.calls.pop(number, None) is None or self.error is not None:
            return
        self.conversation.forget(number)
        if cancel:
            self.notify(Operation.CANCEL, 0, number)

    async def ping(self) -> None:
        """Wait until the node has read all that was sent before. Raises `ConnectionLost`."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        waiting = Call()
        self._ping(waiting)
        await waiting.wait()

    def _ping(self, waiting: Answered | None) -> None:
        self._pings.append(waiting)
        self._flush_all()
        self.notify(Operation.PING)

    def flush_later(self, attachment: Attachment) -> None:
        """Take its `output` when something is sent next, which is soon."""
        self._to_flush[attachment] = None
        if self._is_idle:
            self._wake_writer()

    def flush(self, attachment: Attachment) -> None:
        """Take its output now, so that what is put next comes behind it."""
        self._to_flush.pop(attachment, None)
        for data in attachment.output():
            self.put(data)

    def _flush_all(self) -> None:
        while self._to_flush:
            self.flush(next(iter(self._to_flush)))

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be sent that who has more should call `room` first."""
        return self._output_bytes > _OUTPUT_HIGH_BYTES

    async def room(self) -> None:
        """Wait until there is room for more to send, or the link has ended."""
        while self.is_full and self.error is None:
            await self.progress()

    async def progress(self) -> None:
        """Wait until something was sent or received, or the link has ended."""
        if self._progress is None:
            self._progress = anyio.Event()
        await self._progress.wait()

    # -- its life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until the connection ends or `close` is called. Raises nothing but cancellation."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for each in (self._read, self._write, self._keep_alive):
                        tasks.start_soon(self._until_lost, each)
        finally:
            self._end(Closed("the connection was closed by this program"))  # if it lives still
            with anyio.CancelScope(shield=True), anyio.move_on_after(_GOODBYE_S):
                await self._transport.aclose()

    def retire(self) -> None:
        """Another link is used for what is new, and what comes for no channel comes there."""
        self.on_message = self.on_drain = _ignore

    async def close(self, error: ClientError) -> None:
        """Send what waits, say goodbye, and end: with this error for who still waits here."""
        if self.error is None:
            self._flush_all()
            self.notify(Operation.GOODBYE)
            with anyio.move_on_after(_GOODBYE_S):
                while self._output_bytes and self.error is None:
                    await self.progress()
        self._end(error)

    def _end(self, error: ClientError) -> None:
        if self.error is not None:
            return
        # The node refused the connection, and not what was asked: that was perhaps done.
        lost = error
        if isinstance(error, Refused):
            lost = ConnectionLost(f"the node ended the connection: {error}")
        self.error = lost
        self._scope.cancel()
        self._progressed()
        calls, self.calls = self.calls, {}
        channels, self.channels = self.channels, {}
        for call in (*calls.values(), *(each for each in self._pings if each is not None)):
            call.on_lost(lost)
        for channel in channels.values():
            channel.on_lost(lost)
        self._ended(self, error)

    async def _until_lost(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except ClientError as error:
            self._end(error)

    def _too_large(self, data: bytes) -> BadOption:
        size, limit = f"{len(data):,}", f"{self.frame_max_bytes:,}"
        return BadOption(
            f"this is too large: {size} bytes in one frame, and the node takes {limit} "
            "(frame_max_bytes); send it in parts"
        )

    async def _greet(self, options: dict[str, Any]) -> None:
        agent = {"agent": f"ganglion-python/{__version__}"}
        number, data = self.conversation.hello({**agent, **options})
        await self._transport.send(data)
        while True:
            for each in self.conversation.receive(await self._transport.receive()):
                if not isinstance(each, Answer):
                    continue
                if each.id == number:
                    self._on_greeting(each.result)
                    return
                if each.error is not None:
                    raise each.error
            for reply in self.conversation.replies:
                await self._transport.send(reply)
            self.conversation.replies.clear()

    def _on_greeting(self, greeting: Any) -> None:
        try:
            self.greeting = dict(greeting)
            self._keep_alive_s = float(self.greeting.get("keep_alive_s") or 0)
            limits: dict[str, Any] = dict(self.greeting.get("limits") or {})
            self.batch_max = int(limits.get("batch_max") or self.batch_max)
            self.frame_max_bytes = int(limits.get("frame_max_bytes") or self.frame_max_bytes)
        except (TypeError, ValueError) as error:
            raise ConnectionLost(f"the node's greeting cannot be read: {error}") from None
        self._heard_s = self._sent_s = self._now()

    async def _read(self) -> None:
        self._receive(b"")  # what came in one read with the greeting is in the conversation
        await self._transport.pump(self._receive)

    def _receive(self, data: bytes) -> None:
        self._heard_s = self._now()
        try:
            self._take(data)
        except _UNREADABLE as error:
            raise ConnectionLost(f"the node sent what cannot be read: {error!r}") from error
        self._progressed()

    def _take(self, data: bytes) -> None:
        for each in self.conversation.receive(data):
            if isinstance(each, tuple):
                if each[0] == Operation.MESSAGE:
                    self.on_message(each)
                else:
                    self._on_frame(each)
            else:
                self._on_answer(each)
        if self.conversation.replies:
            for reply in self.conversation.replies:
                self.put(reply)
            self.conversation.replies.clear()

    def _progressed(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _on_answer(self, answer: Answer) -> None:
        waiting = self.calls.pop(answer.id, None)
        if waiting is not None:
            waiting.on_answer(answer)

    def _on_frame(self, frame: Frame) -> None:
        match frame[0]:
            case Operation.GOODBYE:
                reason = frame[1] if len(frame) > 1 else "goodbye"
                raise ConnectionLost(f"the node ended the connection: {reason}")
            case Operation.DRAIN:
                self.on_drain(frame[1] if len(frame) > 1 and frame[1] else {})
            case Operation.PONG:
                waiting = self._pings.popleft() if self._pings else None
                if waiting is not None:
                    waiting.on_answer(Answer(0, Operation.PONG, ()))
            case _ if len(frame) > 1:
                channel = self.channels.get(frame[1])
                if channel is not None:  # what was on its way when it was closed goes nowhere
                    channel.on_frame(frame)
            case _:
                pass

    async def _write(self) -> None:
        while True:
            if not self._output and not self._to_flush:
                self._is_idle = True
                await self._wake.wait()
                self._wake = anyio.Event()
            while self._output or self._to_flush:
                self._flush_all()
                data, self._output = b"".join(self._output), []
                if data:
                    await self._transport.send(data)
                    self._output_bytes -= len(data)
                    self._sent_s = self._now()
                self._progressed()

    def _wake_writer(self) -> None:
        self._is_idle = False
        self._wake.set()

    async def _keep_alive(self) -> None:
        interval_s = self._keep_alive_s
        while interval_s:
            now = self._now()
            if now - self._heard_s >= 1.5 * interval_s:
                raise ConnectionLost("the node no longer answers")
            # Both sides ping after keep_alive_s of silence: ours is early, for we may be late. Who
            # only sends hears nothing, and who only hears is not heard.
            ping_s = min(self._heard_s, self._sent_s) + interval_s / 2
            if now >= ping_s:
                self._ping(None)
                ping_s = now + interval_s / 2
            await anyio.sleep_until(min(ping_s, self._heard_s + 1.5 * interval_s))


OnEnd = Callable[[Link, ClientError], None]
"""Called once when a link has ended, with the reason."""


def _ignore(_frame: object) -> None:
    """Nobody is there for it yet."""
