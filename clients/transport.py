"""The way to a node: TCP, TLS, a Unix socket or a WebSocket, under trio and asyncio alike.

A `Transport` moves bytes of the native protocol, and says `ConnectionLost` whatever broke. TCP and
Unix sockets are used as they are: without anyio's streams a round trip takes a third less, and
bytes can be sent without waiting (`Transport.send_now`). TLS and WebSocket go through anyio's
streams.
"""

import os
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.errors import ConnectionLost, Unreachable
from ganglion.protocols.native.operations import ALPN_NAME

if TYPE_CHECKING:
    from ganglion.clients.websocket import WebSocketWrapping

__all__ = ["Transport", "open_transport", "running_clock"]

_READ_MAX_BYTES: Final = 65_536  # more is slower: Python reserves all of it for each read

_CLOSED: Final = "the node closed the connection"
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError)


class Transport(Protocol):
    """An open way to a node. One task receives, one sends."""

    async def receive(self) -> bytes:
        """What comes next; at least one byte. Raises `ConnectionLost`."""
        ...

    async def pump(self, on_data: Callable[[bytes], None]) -> None:
        """Call this with all that comes, for ever.

        Raises `ConnectionLost`, and what the function raises.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises `ConnectionLost`."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send what goes without waiting; how many bytes. Not while `send` is under way."""
        ...

    async def aclose(self) -> None:
        """Close it, politely where that takes no time. It is closed even when cancelled."""
        ...


async def open_transport(address: NodeAddress, tls: ssl.SSLContext | None) -> Transport:
    """Connect. Raises `Unreachable`; and `ConnectionLost` when a WebSocket is refused."""
    try:
        if not address.is_tls and not address.is_web:
            return _SocketTransport(await _connected_socket(address))
        stream = await _open_stream(address, tls)
    except (OSError, UnicodeError) as error:  # a name that cannot be one is the latter
        raise Unreachable(f"cannot connect to {address}: {_words(error)}") from None
    except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise Unreachable(f"cannot connect to {address}: {_words(error)}") from None
    transport = _StreamTransport(stream, _wrapping() if address.is_web else None)
    try:
        await transport.upgrade(address)
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    return transport


def running_clock() -> Callable[[], float]:
    """The clock of the running loop, in seconds; it may be asked outside of tasks, too."""
    if not _is_asyncio():
        return anyio.current_time
    import asyncio  # noqa: PLC0415 - 20 ms that programs under trio do not pay

    return asyncio.get_running_loop().time


def _is_asyncio() -> bool:
    return anyio.get_cancelled_exc_class().__module__.startswith("asyncio")


class _SocketTransport:
    """A socket by itself."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def receive(self) -> bytes:
        while True:
            try:
                await anyio.wait_readable(self._socket)
                data = self._socket.recv(_READ_MAX_BYTES)
            except BlockingIOError:
                continue
            except _BROKEN as error:
                raise _lost(error) from None
            if not data:
                raise ConnectionLost(_CLOSED)
            return data

    async def pump(self, on_data: Callable[[bytes], None]) -> None:
        if _is_asyncio():
            await self._pump_under_asyncio(on_data)
        while True:
            on_data(await self.receive())

    async def _pump_under_asyncio(self, on_data: Callable[[bytes], None]) -> None:
        """Without a task in between: that would take one more turn of the loop for each answer."""
        import asyncio  # noqa: PLC0415 - 20 ms that programs under trio do not pay

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def on_readable() -> None:
            try:
                data = self._socket.recv(_READ_MAX_BYTES)
                if data:
                    on_data(data)
                elif not ended.done():
                    ended.set_exception(ConnectionLost(_CLOSED))
            except BlockingIOError:
                return
            except Exception as error:  # noqa: BLE001 - it is raised to who pumps
                if not ended.done():
                    ended.set_exception(_lost(error) if isinstance(error, OSError) else error)
            if ended.done():
                loop.remove_reader(self._socket)

        try:
            loop.add_reader(self._socket, on_readable)
        except RuntimeError:
            return  # Windows has loops that cannot watch a socket: `receive` is for them
        try:
            await ended
        finally:
            loop.remove_reader(self._socket)

    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise _lost(error) from None

    async def _writable(self) -> None:
        try:
            await anyio.wait_writable(self._socket)
        except _BROKEN as error:
            raise _lost(error) from None

    def send_now(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except OSError:
            return 0  # no room; or it is broken, which `send` will say

    async def aclose(self) -> None:
        anyio.notify_closing(self._socket)
        self._socket.close()


class _StreamTransport:
    """A stream of anyio, with or without a WebSocket in it."""

    def __init__(self, stream: ByteStream, wrapping: "WebSocketWrapping | None") -> None:
        self._stream = stream
        self._wrapping = wrapping
        self._sending = anyio.Lock()  # a WebSocket is also sent to by who receives

    async def receive(self) -> bytes:
        while True:
            data = await self._received()
            if self._wrapping is None:
                return data
            data, answer = self._wrapping.unwrap(data)
            if answer:
                await self._send(answer)
            if data:
                return data

    async def pump(self, on_data: Callable[[bytes], None]) -> None:
        while True:
            on_data(await self.receive())

    async def send(self, data: bytes) -> None:
        await self._send(data if self._wrapping is None else self._wrapping.wrap(data))

    def send_now(self, data: bytes) -> int:
        return 0

    async def upgrade(self, address: NodeAddress) -> None:
        """Begin to speak WebSocket. Raises `ConnectionLost` when the node does not want to."""
        if self._wrapping is None:
            return
        await self._send(self._wrapping.upgrade(address))
        while not self._wrapping.is_open:
            self._wrapping.unwrap(await self._received())  # the node says nothing before hello

    async def aclose(self) -> None:
        try:
            if self._wrapping is not None:
                await self._send(self._wrapping.close())
        except ConnectionLost:
            pass  # it has ended already
        finally:
            await anyio.aclose_forcefully(self._stream)

    async def _received(self) -> bytes:
        try:
            return await self._stream.receive(_READ_MAX_BYTES)
        except anyio.EndOfStream:
            raise ConnectionLost(_CLOSED) from None
        except _BROKEN as error:
            raise _lost(error) from None

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            try:
                await self._stream.send(data)
            except anyio.EndOfStream:  # TLS finds that out when it sends, too
                raise ConnectionLost(_CLOSED) from None
            except _BROKEN as error:
                raise _lost(error) from None


def _wrapping() -> "WebSocketWrapping":
    from ganglion.clients.websocket import (  # noqa: PLC0415 - 30 ms that only WebSockets pay
        WebSocketWrapping,
    )

    return WebSocketWrapping()


async def _connected_socket(address: NodeAddress) -> socket.socket:
    """A socket that is connected, by the first of the host's addresses that answers."""
    places: list[tuple[int, object]]
    if address.scheme == "unix":
        places = [(socket.AF_UNIX, address.path)]
    else:
        found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        places = [(family, place) for family, _, _, _, place in found]
    problem: OSError | None = None
    for family, place in places:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            await _connect(made, place)
            if family != socket.AF_UNIX:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            problem = problem or error
        except BaseException:
            made.close()
            raise
    raise problem or OSError(f"{address.host} has no address")


async def _connect(made: socket.socket, place: object) -> None:
    try:
        made.connect(cast("str", place))  # typeshed: what a family takes is its own affair
    except BlockingIOError:
        await anyio.wait_writable(made)
        number = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number)) from None


async def _open_stream(address: NodeAddress, tls: ssl.SSLContext | None) -> ByteStream:
    stream = await anyio.connect_tcp(address.host, address.port)
    if not address.is_tls:
        return stream
    context = ssl.create_default_context() if tls is None else tls
    if not address.is_web:
        context.set_alpn_protocols([ALPN_NAME])
    try:
        return await TLSStream.wrap(
            stream, hostname=address.host, ssl_context=context, standard_compatible=False
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


def _lost(error: Exception) -> ConnectionLost:
    return ConnectionLost(f"connection lost: {_words(error)}")


def _words(error: BaseException) -> str:
    """What the system says of it; anyio wraps its errors, and groups them by address."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return _words(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    words = getattr(error, "verify_message", "") or getattr(error, "strerror", None) or str(error)
    return words or "the other side closed the connection"
