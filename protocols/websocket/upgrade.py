"""The opening handshake (RFC 6455, section 4.2): whether a request becomes a WebSocket, and how."""

import binascii
from base64 import b64decode
from dataclasses import dataclass

from wsproto.utilities import generate_accept_token

from ganglion import GanglionError
from ganglion.protocols.http.messages import Header, Request, Response
from ganglion.protocols.websocket.deflate import ACCEPTED, is_offered
from ganglion.protocols.websocket.server import Subprotocol, WebSocketServer

__all__ = ["Upgrade", "UpgradeRefused", "judge"]

_KEY_SIZE = 16  # 4.1: the nonce
_VERSION = b"13"


class UpgradeRefused(GanglionError):
    """The request does not become a WebSocket; `response` is what the client is told."""

    def __init__(self, status: int, text: str, *headers: Header) -> None:
        super().__init__(text)
        self.response = Response(status, f"{text}\n".encode(), headers=headers)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What was agreed."""

    name: str
    """Of the subprotocol."""
    subprotocol: Subprotocol
    is_compressed: bool
    headers: tuple[Header, ...]
    """Of the response 101."""


def judge(server: WebSocketServer, request: Request) -> Upgrade:
    """What the server agrees to; raises `UpgradeRefused`. The origin is judged elsewhere."""
    subprotocols = server.paths[request.path]
    if "websocket" not in _tokens(request.header(b"upgrade")) or "upgrade" not in _tokens(
        request.header(b"connection")
    ):
        raise UpgradeRefused(
            426, "this path speaks WebSocket only (RFC 6455)", (b"upgrade", b"websocket")
        )
    if request.method != "GET":
        raise UpgradeRefused(405, "a WebSocket begins with GET (4.1)", (b"allow", b"GET"))
    if request.header(b"sec-websocket-version") != _VERSION:
        raise UpgradeRefused(
            426,
            "Sec-WebSocket-Version must be 13 (4.4)",
            (b"upgrade", b"websocket"),
            (b"sec-websocket-version", _VERSION),
        )
    key = request.header(b"sec-websocket-key")
    if not _is_key(key):
        raise UpgradeRefused(400, "Sec-WebSocket-Key must be 16 bytes in base64 (4.1)")
    offered = _tokens(request.header(b"sec-websocket-protocol"), lower=False)
    name = next((each for each in offered if each in subprotocols), None)
    if name is None:
        known = " or ".join(subprotocols)
        raise UpgradeRefused(400, f"Sec-WebSocket-Protocol must offer {known}")
    headers = [
        (b"upgrade", b"websocket"),
        (b"connection", b"upgrade"),
        (b"sec-websocket-accept", generate_accept_token(key)),
        (b"sec-websocket-protocol", name.encode()),
    ]
    is_compressed = server.compress and is_offered(request.header(b"sec-websocket-extensions"))
    if is_compressed:
        headers.append((b"sec-websocket-extensions", ACCEPTED))
    return Upgrade(name, subprotocols[name], is_compressed, tuple(headers))


def _tokens(value: bytes, *, lower: bool = True) -> list[str]:
    text = value.decode("latin-1")
    return [each.strip() for each in (text.lower() if lower else text).split(",")]


def _is_key(value: bytes) -> bool:
    try:
        return len(b64decode(value, validate=True)) == _KEY_SIZE
    except binascii.Error:
        return False
