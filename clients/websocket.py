"""The client's side of a WebSocket, sans-I/O: frames of the native protocol in binary messages.

wsproto knows the protocol (RFC 6455); `WebSocketWrapping` says what of it a client of a node needs:
an upgrade with the subprotocol ``ganglion.msgpack``, binary messages, answers to pings, the end.
"""

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import ProtocolError

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.errors import ConnectionLost
from ganglion.protocols.native.operations import SUBPROTOCOL_MSGPACK

__all__ = ["WebSocketWrapping"]


class WebSocketWrapping:
    """Bytes of the native protocol to bytes of a WebSocket and back."""

    def __init__(self) -> None:
        self._socket = WSConnection(ConnectionType.CLIENT)
        self.is_open = False
        """Whether the node has agreed to speak WebSocket; nothing may be wrapped before."""

    def upgrade(self, address: NodeAddress) -> bytes:
        """The request to begin with."""
        host = f"[{address.host}]" if ":" in address.host else address.host
        return self._socket.send(
            Request(
                host=f"{host}:{address.port}",
                target=address.path,
                subprotocols=[SUBPROTOCOL_MSGPACK],
            )
        )

    def wrap(self, data: bytes) -> bytes:
        """One message with these bytes. Raises `ConnectionLost` when the node has ended it."""
        try:
            return self._socket.send(BytesMessage(data))
        except ProtocolError as error:
            raise ConnectionLost(f"the node ended the WebSocket: {error}") from None

    def unwrap(self, data: bytes) -> tuple[bytes, bytes]:
        """Bytes came: what of the native protocol is in them, and what is to be sent now.

        Raises `ConnectionLost` when the node refuses the upgrade, ends the WebSocket or breaks
        its rules.
        """
        content, answers = b"", b""
        try:
            self._socket.receive_data(data)
            for event in self._socket.events():
                match event:
                    case AcceptConnection(subprotocol=subprotocol):
                        if subprotocol != SUBPROTOCOL_MSGPACK:
                            raise ConnectionLost("this WebSocket does not lead to a node")
                        self.is_open = True
                    case BytesMessage():
                        content += bytes(event.data)
                    case Ping():
                        answers += self._socket.send(event.response())
                    case RejectConnection():
                        raise ConnectionLost(f"the upgrade was refused: HTTP {event.status_code}")
                    case CloseConnection():
                        if not content:
                            reason = event.reason or f"code {event.code}"
                            raise ConnectionLost(f"the node ended the WebSocket: {reason}")
                    case RejectData() | Message():
                        raise ConnectionLost("this WebSocket does not lead to a node")
                    case _:
                        pass
        except ProtocolError as error:
            raise ConnectionLost(f"this is no WebSocket: {error}") from None
        return content, answers

    def close(self) -> bytes:
        """The end of it, from our side; nothing where it has ended already."""
        if not self.is_open:
            return b""
        try:
            return self._socket.send(CloseConnection(code=1000))
        except ProtocolError:
            return b""
