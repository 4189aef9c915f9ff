"""The way to a node: TCP, TLS, a Unix socket or a WebSocket, under trio and asyncio alike.

A `Transport` moves bytes of the native protocol, and says `ConnectionLost` whatever broke.
"""

import ssl
from typing import Final, cast

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.errors import ConnectionLost, Unreachable
from ganglion.clients.websocket import WebSocketWrapping
from ganglion.protocols.native.operations import ALPN_NAME

__all__ = ["Transport", "open_transport"]

_READ_MAX_BYTES: Final = 262_144
"""Taken at once: what the node sends at once at most."""

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError)


class Transport:
    """An open way to a node."""

    def __init__(self, stream: ByteStream, wrapping: WebSocketWrapping | None) -> None:
        self._stream = stream
        self._wrapping = wrapping
        self._sending = anyio.Lock()  # a WebSocket is also sent to by who receives

    async def receive(self) -> bytes:
        """What comes next; at least one byte. Raises `ConnectionLost`."""
        while True:
            try:
                data = await self._stream.receive(_READ_MAX_BYTES)
            except anyio.EndOfStream:
                raise ConnectionLost("the node closed the connection") from None
            except _BROKEN as error:
                raise _lost(error) from None
            if self._wrapping is None:
                return data
            data, answer = self._wrapping.unwrap(data)
            if answer:
                await self._send(answer)
            if data:
                return data

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises `ConnectionLost`."""
        if self._wrapping is None:
            try:
                await self._stream.send(data)
            except _BROKEN as error:
                raise _lost(error) from None
        else:
            await self._send(self._wrapping.wrap(data))

    async def upgrade(self, address: NodeAddress) -> None:
        """Begin to speak WebSocket. Raises `ConnectionLost` when the node does not want to."""
        if self._wrapping is None:
            return
        await self._send(self._wrapping.upgrade(address))
        while not self._wrapping.is_open:
            try:
                data = await self._stream.receive(_READ_MAX_BYTES)
            except anyio.EndOfStream:
                raise ConnectionLost("the node closed the connection") from None
            except _BROKEN as error:
                raise _lost(error) from None
            self._wrapping.unwrap(data)  # the node says nothing before hello

    async def aclose(self) -> None:
        """Close it, politely where that takes no time. It is closed even when cancelled."""
        if self._wrapping is not None:
            try:
                await self._send(self._wrapping.close())
            except ConnectionLost:
                pass  # it has ended already
        await anyio.aclose_forcefully(self._stream)

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            try:
                await self._stream.send(data)
            except _BROKEN as error:
                raise _lost(error) from None


async def open_transport(address: NodeAddress, tls: ssl.SSLContext | None) -> Transport:
    """Connect. Raises `Unreachable`; and `ConnectionLost` when a WebSocket is refused."""
    try:
        stream = await _open_stream(address, tls)
    except (OSError, UnicodeError) as error:  # a name that cannot be one is the latter
        raise Unreachable(f"cannot connect to {address}: {_words(error)}") from None
    except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise Unreachable(f"cannot connect to {address}: {_words(error)}") from None
    transport = Transport(stream, WebSocketWrapping() if address.is_web else None)
    try:
        await transport.upgrade(address)
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    return transport


async def _open_stream(address: NodeAddress, tls: ssl.SSLContext | None) -> ByteStream:
    if address.scheme == "unix":
        return await anyio.connect_unix(address.path)
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
