"""A WebSocket connection that carries another protocol, from the upgrade to the close handshake.

`WebSocketConnection` takes the endpoint over from HTTP. Its inner protocol gets an `Endpoint` of
its own that knows nothing of frames: what is written goes straight to the real one, whose envelope
puts a frame around all of a tick at once. So a delivery costs what it costs over TCP, however many
others get it too.

Whole messages in one frame are read by `frames`, everything else by wsproto, a frame at a time. Its
decoder exists only while there is something for it, so an idle connection does not carry one.
"""

from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason, FrameProtocol

from ganglion.broker.core.timers import Timer
from ganglion.broker.net import CarrierEndpoint, Endpoint, Protocol, TlsInfo
from ganglion.protocols.websocket.deflate import Inflate, deflated_binary, deflated_text
from ganglion.protocols.websocket.frames import (
    BINARY,
    TEXT,
    binary_frames,
    frame_size,
    read_whole_frames,
    text_frames,
)
from ganglion.protocols.websocket.server import Subprotocol, WebSocketServer

__all__ = ["WebSocketConnection"]

_PING: Final = b"\x89\0"
_OPCODE: Final = 0x0F
_CONTROL = FrameProtocol(False, [])  # writes control frames; it keeps nothing from one to the next

_Failure = tuple[CloseReason, str]


class _InnerEndpoint:
    """What the inner protocol writes to (an `Endpoint`)."""

    __slots__ = ("_connection", "_endpoint", "is_held", "offer", "peer", "write")

    def __init__(
        self, connection: "WebSocketConnection", endpoint: CarrierEndpoint, peer: str
    ) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self.peer = peer
        self.write = endpoint.write
        self.offer = endpoint.offer
        self.is_held = False

    @property
    def congested(self) -> bool:
        return self._endpoint.congested

    @property
    def tls(self) -> TlsInfo | None:
        return self._endpoint.tls

    def close(self, reason: str, *, linger: bool = False) -> None:
        self._connection.close(CloseReason.NORMAL_CLOSURE, reason)

    def pause_reading(self) -> None:
        self.is_held = True
        self._endpoint.pause_reading()

    def resume_reading(self) -> None:
        self.is_held = False
        self._connection.read_again()
        self._endpoint.resume_reading()


class WebSocketConnection:
    """The protocol side of one connection after its upgrade (a `Protocol`)."""

    __slots__ = (
        "_decoder",
        "_endpoint",
        "_first",
        "_has_spoken",
        "_header",
        "_inflate",
        "_inner",
        "_inner_endpoint",
        "_is_closed",
        "_is_fragmented",
        "_is_pinged",
        "_is_told",
        "_last_received",
        "_message",
        "_name",
        "_owed",
        "_server",
        "_timer",
    )

    def __init__(
        self,
        server: WebSocketServer,
        endpoint: CarrierEndpoint,
        name: str,
        subprotocol: Subprotocol,
        *,
        peer: str,
        is_compressed: bool,
        now: float,
    ) -> None:
        """Take over the endpoint, on which the upgrade was accepted.

        `name` is that of the subprotocol, `peer` the address of the client, which may be behind a
        proxy; `is_compressed` says whether permessage-deflate was agreed.
        """
        self._server = server
        self._endpoint = endpoint
        self._name = name
        self._first = TEXT if subprotocol.is_text else BINARY
        self._decoder: Connection | None = None
        self._inflate: Inflate | None = None
        self._header = b""  # the beginning of a frame whose length is not known yet
        self._owed = 0  # bytes of the decoder's frame that have not come yet
        self._is_fragmented = False
        self._message = bytearray()  # the fragments of a text message so far
        self._has_spoken = False
        self._is_closed = False
        self._is_told = False  # whether the inner protocol knows of the end
        self._is_pinged = False
        self._last_received = now
        self._timer: Timer | None = None
        wrap = text_frames if subprotocol.is_text else binary_frames
        if is_compressed:
            self._inflate = Inflate(server.node.limits.websocket_inflated_max_bytes)
            wrap = deflated_text if subprotocol.is_text else deflated_binary
        server.open[name] += 1
        endpoint.envelop(wrap)
        endpoint.hand_over(self)
        self._watch()
        self._inner: Protocol = subprotocol.make()
        self._inner_endpoint = _InnerEndpoint(self, endpoint, peer)
        self._inner.connected(self._inner_endpoint, now)

    # -- the endpoint calls ----------------------------------------------------------------------

    def connected(self, endpoint: Endpoint, now: float) -> None:
        """The connection was there before its upgrade."""

    def receive(self, data: bytes, now: float) -> None:
        """These bytes came."""
        self._last_received = now
        self._is_pinged = False
        if self._header:
            data = self._header + data
            self._header = b""
        if self._inflate is not None:
            self._inflate.renew()
        size = len(data)
        pos = 0
        payloads: list[bytes] = []
        failure: _Failure | None = None
        while pos < size and failure is None and not self._is_closed:
            if self._decoder is None and (self._has_spoken or self._first == BINARY):
                pos = read_whole_frames(data, pos, self._first, payloads.append)
                if pos == size:
                    break
            if not self._owed:
                sizes = frame_size(data, pos)
                if sizes is None:
                    self._header = data[pos:]
                    break
                failure = self._wrong_kind(data[pos]) or self._too_long(sizes[1])
                if failure is not None:
                    break
                self._owed = sum(sizes)
            end = min(pos + self._owed, size)
            self._owed -= end - pos
            failure = self._decode(data[pos:end], payloads)
            pos = end
        if payloads:
            self._pass_on(payloads, now)
        if failure is not None:
            self._fail(*failure)

    def end_of_stream(self) -> None:
        """The client sends no more."""
        if not self._is_told:
            self._inner.end_of_stream()

    def writable(self) -> None:
        """The client takes more."""
        if not self._is_told:
            self._inner.writable()

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        self._is_closed = True
        self._server.open[self._name] -= 1
        self._stop_watching()
        self._tell(reason)

    # -- reading ---------------------------------------------------------------------------------

    def _wrong_kind(self, first: int) -> _Failure | None:
        """Judge a frame by the kind of message that it begins."""
        kind, other = ("binary", TEXT) if self._first == BINARY else ("text", BINARY)
        if self._is_fragmented or first & _OPCODE != other & _OPCODE:
            return None
        return CloseReason.UNSUPPORTED_DATA, f"{self._name} speaks in {kind} messages"

    def _too_long(self, size: int) -> _Failure | None:
        """Judge a frame by the length that it announces, before it has come."""
        limits = self._server.node.limits
        name = "websocket_message_max_bytes"
        limit = limits.websocket_message_max_bytes
        if self._first == TEXT:
            size += len(self._message)
            if not self._has_spoken and limits.connect_size_max_bytes < limit:
                name, limit = "connect_size_max_bytes", limits.connect_size_max_bytes
        if size <= limit:
            return None
        return CloseReason.MESSAGE_TOO_BIG, f"the message is over {name} = {limit}"

    def _decode(self, data: bytes, payloads: list[bytes]) -> _Failure | None:
        """Let wsproto read a frame, or a piece of one."""
        decoder = self._decoder
        if decoder is None:
            inflate = self._inflate
            extensions = [] if inflate is None else [inflate]
            decoder = self._decoder = Connection(ConnectionType.SERVER, [*extensions])
        decoder.receive_data(data)
        failure: _Failure | None = None
        for event in decoder.events():
            match event:
                case BytesMessage():
                    self._is_fragmented = not event.message_finished
                    payloads.append(bytes(event.data))
                case TextMessage():
                    failure = self._take_text(event, payloads)
                case Ping():
                    if not self._endpoint.congested:  # 5.5.3: what is late need not be answered
                        self._endpoint.write_bare(bytes(_CONTROL.pong(bytes(event.payload))))
                case CloseConnection():
                    return self._on_close(event, payloads, decoder.state)
                case _:  # Pong: that something came is all that counts
                    pass
            if failure is not None:
                return failure
        if not self._owed and not self._is_fragmented:
            self._decoder = None
        return None

    def _take_text(self, event: TextMessage, payloads: list[bytes]) -> _Failure | None:
        self._message += event.data.encode()
        self._is_fragmented = not event.message_finished
        if event.message_finished:
            payloads.append(bytes(self._message))
            self._message.clear()
            self._has_spoken = True
        return self._too_long(0)

    def _on_close(
        self, event: CloseConnection, payloads: list[bytes], state: ConnectionState
    ) -> _Failure | None:
        reason = event.reason or ""
        if state is not ConnectionState.REMOTE_CLOSING:  # wsproto's way to say what is wrong
            return CloseReason(event.code), reason
        if payloads:
            self._pass_on(payloads, self._last_received)
            payloads.clear()
        text = f"the client closed the WebSocket with code {int(event.code)} {reason}".rstrip()
        self._end(event.code, "", text)  # 5.5.1: the answer has the same code
        self._tell(text)
        return None

    def _pass_on(self, payloads: list[bytes], now: float) -> None:
        inner = self._inner
        if self._first == BINARY:
            inner.receive(payloads[0] if len(payloads) == 1 else b"".join(payloads), now)
            return
        for payload in payloads:
            if self._is_closed:
                break
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                text = f"a text message is not UTF-8: {error.reason}"
                self._fail(CloseReason.INVALID_FRAME_PAYLOAD_DATA, text)
                break
            inner.receive(payload, now)

    # -- keep-alive ------------------------------------------------------------------------------

    def read_again(self) -> None:
        """The client was not read for a while: its silence meanwhile was ours."""
        self._last_received = self._server.node.timers.now

    def _watch(self) -> None:
        node = self._server.node
        due_at = self._last_received + node.limits.websocket_ping_interval_s
        self._timer = node.timers.at(due_at, self._check)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, now: float) -> None:
        limits = self._server.node.limits
        if self._inner_endpoint.is_held:
            self._last_received = now
            self._is_pinged = False
        if self._is_pinged:
            limit = limits.websocket_ping_timeout_s
            self._fail(
                CloseReason.POLICY_VIOLATION, f"no pong within websocket_ping_timeout_s = {limit}"
            )
        elif now < self._last_received + limits.websocket_ping_interval_s:
            self._watch()
        else:
            self._is_pinged = True
            self._endpoint.write_bare(_PING)
            timers = self._server.node.timers
            self._timer = timers.at(now + limits.websocket_ping_timeout_s, self._check)

    # -- the end ---------------------------------------------------------------------------------

    def close(self, code: CloseReason, reason: str) -> None:
        """The inner protocol, or the node, ends the connection."""
        self._end(code, reason, reason)

    def _fail(self, code: CloseReason, text: str) -> None:
        """The client broke the protocol or a limit: tell it why, and close (7.1.7)."""
        if not self._is_closed:
            peer = self._inner_endpoint.peer
            self._server.node.refusals.refuse(
                "websocket", None, text, address=peer, code=int(code), subprotocol=self._name
            )
            self._end(code, text, text)
            self._tell(text)

    def _end(self, code: int, said: str, reason: str) -> None:
        """Send Close and nothing more; the client has a moment to take it and to answer (7.1.1)."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_watching()
        self._decoder = None
        self._message.clear()
        self._endpoint.write_bare(bytes(_CONTROL.close(code, said or None)))
        self._endpoint.close(reason, linger=True)

    def _tell(self, reason: str) -> None:
        """The inner protocol learns of the end, once."""
        if not self._is_told:
            self._is_told = True
            self._inner.lost(reason)
