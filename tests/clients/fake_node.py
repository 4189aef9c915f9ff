"""A node that does what a test says, frame by frame.

Each connection that comes is given to the next script; the last one is for all that follow. A
script speaks with a client through a `Talk`, and the connection ends when the script does.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream

from ganglion.protocols.native.frames import OPEN_LIMITS, Frame, FrameReader, pack
from ganglion.protocols.native.operations import Code, Operation

__all__ = ["FakeNode", "Script", "Talk", "greet", "refuse"]

_READ_BYTES: Final = 65_536


class Talk:
    """A connection, as the node sees it."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        # anyio's under asyncio reads ahead without bound until it has been waited for once.
        transport: Any = getattr(stream, "_transport", None)
        if transport is not None:
            transport.pause_reading()
        self._reader = FrameReader(OPEN_LIMITS)
        self.hello: dict[str, Any] = {}
        """The options that the client said hello with."""

    async def frame(self, *operations: Operation) -> Frame:
        """The next frame of the client; with operations the next one of those."""
        while True:
            frame = self._reader.next()
            if frame is None:
                self._reader.feed(await self._stream.receive(_READ_BYTES))
            elif not operations or frame[0] in operations:
                return frame

    async def send(self, *frames: tuple[object, ...]) -> None:
        """Send these frames at once."""
        await self._stream.send(b"".join(pack(each) for each in frames))

    async def greeted(self, *behind: tuple[object, ...], **greeting: object) -> None:
        """Let the client in; with frames right behind the greeting."""
        _, number, _, self.hello = await self.frame(Operation.HELLO)
        about = {"keep_alive_s": 0, "addresses": (), **greeting}
        await self.send((int(Operation.OK), number, about), *behind)

    async def until_gone(self) -> list[Frame]:
        """Read until the client closes the connection, and close its channels; what came."""
        frames: list[Frame] = []
        try:
            while True:
                frame = await self.frame()
                frames.append(frame)
                if frame[0] == Operation.CLOSE and frame[1]:
                    await self.send((int(Operation.OK), frame[1]))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return frames


Script = Callable[[Talk], Awaitable[None]]


async def greet(talk: Talk) -> None:
    """Let the client in, and say nothing more."""
    await talk.greeted()
    await talk.until_gone()


def refuse(code: Code, text: str = "no") -> Script:
    """Do not let the client in."""

    async def script(talk: Talk) -> None:
        _, number, *_ = await talk.frame(Operation.HELLO)
        await talk.send((int(Operation.ERROR), number, str(code), text))

    return script


class FakeNode:
    """A listener with a script for each connection."""

    def __init__(self, *scripts: Script) -> None:
        self.port = 0
        self.talks: list[Talk] = []
        """All connections that there were, the first one first."""
        self._scripts = list(scripts)
        self._scope = anyio.CancelScope()

    @property
    def url(self) -> str:
        """Where a client connects to."""
        return f"ganglion://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["FakeNode"]:
        """Accept connections for the time of the context."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        self.port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, listener)
            yield self
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """End it with all its connections, before its time."""
        self._scope.cancel()

    async def _listen(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            with self._scope:
                await listener.serve(self._serve)

    async def _serve(self, stream: SocketStream) -> None:
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        talk = Talk(stream)
        self.talks.append(talk)
        async with stream:
            try:
                await script(talk)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the client has left before the script was over
