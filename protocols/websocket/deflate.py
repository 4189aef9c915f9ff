"""permessage-deflate (RFC 7692), bounded before anything is inflated.

wsproto's own extension inflates whatever comes: 64 KiB of input can become 64 MiB. This one stops
at a limit, for each message and for all that is read at once. Neither side keeps its window from
one message to the next (7.1.1): a window costs 300 KiB a connection.
"""

import zlib
from typing import Final, Protocol

from wsproto.extensions import Extension
from wsproto.frame_protocol import (
    CloseReason,
    FrameDecoder,
    FrameProtocol,
    Opcode,
    RsvBits,
)

from ganglion.protocols.websocket.frames import BINARY, TEXT, frame_header

__all__ = ["ACCEPTED", "Inflate", "deflated_binary", "deflated_text", "is_offered"]

ACCEPTED: Final = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
"""What a server answers to an offer that `is_offered` accepts."""

_TAIL = b"\0\0\xff\xff"  # what ends a message, and is not sent (7.2.1)
_AFTER_FINAL_BLOCK = (b"\0" + _TAIL, _TAIL)  # nothing else: each block would cost a new inflater
_WORTH_IT_BYTES = 256  # what is smaller is sent as it is: deflating costs 20 µs and wins little
_LEVEL = 1  # a broker's time is worth more than the last 5% of the size
_RSV1_BIT = 0x40
_NO_BITS = RsvBits(False, False, False)
_RSV1 = RsvBits(True, False, False)
_WINDOW_BITS = {str(bits) for bits in range(8, 16)}


def is_offered(extensions: bytes) -> bool:
    """Whether one of the offers in the header Sec-WebSocket-Extensions can be accepted (7.1)."""
    for offer in extensions.decode("latin-1").split(","):
        name, *parameters = (each.strip() for each in offer.split(";"))
        if name.lower() == "permessage-deflate" and _is_acceptable(parameters):
            return True
    return False


def _is_acceptable(parameters: list[str]) -> bool:
    seen: set[str] = set()
    for parameter in parameters:
        name, equals, value = (each.strip() for each in parameter.partition("="))
        if name in seen:
            return False
        seen.add(name)
        value = value.strip('"')
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                if equals:
                    return False
            case "client_max_window_bits":
                # It would hold only if we asked for it: our own window takes every size.
                if equals and value not in _WINDOW_BITS:
                    return False
            case "server_max_window_bits":
                # A smaller window than 15 would have to be kept (7.1.2.1): such an offer is passed
                # over, which every client that makes one has to be ready for.
                if value != "15":
                    return False
            case _:
                return False
    return True


class _Inflater(Protocol):
    """What `zlib.decompressobj` makes."""

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class Inflate(Extension):
    """Inflates messages that come compressed, as far as `left` allows (an extension of wsproto)."""

    name = "permessage-deflate"

    def __init__(self, limit: int) -> None:
        """`limit` in bytes is for each message, and for all that is read at once."""
        self._limit = limit
        self._left_of_message = limit
        self._left_of_read = limit
        self._inflater: _Inflater | None = None
        self._is_data = False

    def renew(self) -> None:
        """More was read: it may become as large as the limit again."""
        self._left_of_read = self._limit

    def enabled(self) -> bool:
        """It is there because it was agreed."""
        return True

    def offer(self) -> bool:
        """A server offers nothing."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """RSV1 is for the first frame of a compressed message, and no other (6)."""
        self._is_data = not opcode.iscontrol()
        if rsv.rsv1:
            if opcode not in (Opcode.TEXT, Opcode.BINARY):
                return CloseReason.PROTOCOL_ERROR
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            self._left_of_message = self._limit
            return _RSV1
        return _NO_BITS

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Inflate a piece of a payload."""
        if self._inflater is None or not self._is_data:
            return data
        return self._inflate(self._inflater, data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """A frame has ended, and perhaps its message."""
        inflater = self._inflater
        if inflater is None or not self._is_data or not fin:
            return None
        self._inflater = None
        return self._inflate(inflater, _TAIL)

    def _inflate(self, inflater: _Inflater, data: bytes) -> bytes | CloseReason:
        left = min(self._left_of_message, self._left_of_read)
        try:
            inflated = inflater.decompress(data, left + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        if len(inflated) > left:
            return CloseReason.MESSAGE_TOO_BIG
        self._left_of_message -= len(inflated)
        self._left_of_read -= len(inflated)
        if not any(each.startswith(inflater.unused_data) for each in _AFTER_FINAL_BLOCK):
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return inflated


def deflated_binary(parts: list[bytes]) -> bytes:
    """One binary message for these parts, compressed where that is worth it."""
    return _message(BINARY, b"".join(parts))


def deflated_text(parts: list[bytes]) -> bytes:
    """One text message for each part, compressed where that is worth it."""
    return b"".join([_message(TEXT, part) for part in parts])


def _message(first: int, data: bytes) -> bytes:
    if len(data) >= _WORTH_IT_BYTES:
        deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH)
        if len(packed) < len(data):
            packed = packed[: -len(_TAIL)]
            return frame_header(first | _RSV1_BIT, len(packed)) + packed
    return frame_header(first, len(data)) + data
