"""The header with which a proxy says for whom it connects: PROXY protocol, version 2.

https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt. It stands before everything else, TLS
included, so `ProxyHeader` has the socket until the header is read and not one byte more: it asks
for exactly what is missing. Only who is trusted gets that far, and then has to send one (section
2.2: a receiver must not guess).
"""

import socket
from collections.abc import Callable
from typing import Final

from ganglion import GanglionError
from ganglion.broker.net.addresses import canonical_ip

__all__ = ["InvalidProxyHeader", "ProxyHeader", "parse_proxy_header"]

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_SIZE: Final = 16  # signature, version and command, family, length (2.2)
_SIZE_MAX: Final = 4096  # bytes; addresses take 216 at most, the rest are what proxies like to add
_LOCAL: Final = 0x20  # version 2, the proxy speaks for itself (a health check)
_PROXY: Final = 0x21
_ADDRESS_SIZES: Final = {0x11: 4, 0x21: 16}  # TCP over IPv4 and IPv6: the size of one address
_PORTS_SIZE: Final = 4


class InvalidProxyHeader(GanglionError):
    """What came is no header that can be used; the message says what is wrong."""


def _length(fixed: bytes) -> int:
    """The size in bytes of what follows the fixed part."""
    if not fixed.startswith(_SIGNATURE):
        raise InvalidProxyHeader("it does not begin with the signature of PROXY protocol version 2")
    if fixed[12] not in (_LOCAL, _PROXY):
        raise InvalidProxyHeader(f"version and command are 0x{fixed[12]:02x}, not 0x20 or 0x21")
    length = int.from_bytes(fixed[14:16], "big")
    if length > _SIZE_MAX - _FIXED_SIZE:
        raise InvalidProxyHeader(f"it has {length + _FIXED_SIZE} bytes, over {_SIZE_MAX}")
    return length


def parse_proxy_header(data: bytes) -> str | None:
    """The address of the client in a whole header; None where the proxy speaks for itself.

    Raises `InvalidProxyHeader`, also when `data` is not exactly one header.
    """
    if len(data) < _FIXED_SIZE or len(data) != _FIXED_SIZE + _length(data):
        raise InvalidProxyHeader("it is not whole")
    if data[12] == _LOCAL:
        return None
    size = _ADDRESS_SIZES.get(data[13])
    if size is None:
        raise InvalidProxyHeader(f"family and transport are 0x{data[13]:02x}, not TCP over IP")
    if len(data) < _FIXED_SIZE + 2 * size + _PORTS_SIZE:
        raise InvalidProxyHeader("it is too short for its addresses")
    return canonical_ip(data[_FIXED_SIZE : _FIXED_SIZE + size])


class ProxyHeader:
    """A connection whose header has not come yet."""

    __slots__ = ("_connection", "_data", "_done", "_failed", "_size")

    def __init__(
        self,
        connection: socket.socket,
        done: Callable[[str | None, float], None],
        failed: Callable[[str], None],
    ) -> None:
        """`done` is called with the address that the header has, and the time."""
        self._connection = connection
        self._done = done
        self._failed = failed
        self._data = b""
        self._size = _FIXED_SIZE

    def on_readable(self, now: float) -> None:
        """Take as much of the header as there is."""
        try:
            while len(self._data) < self._size:
                data = self._connection.recv(self._size - len(self._data))
                if not data:
                    self._failed("the connection ended before the PROXY header")
                    return
                self._data += data
                if len(self._data) == _FIXED_SIZE:
                    self._size = _FIXED_SIZE + _length(self._data)
            address = parse_proxy_header(self._data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(f"cannot receive: {error.strerror}")
            return
        except InvalidProxyHeader as error:
            self._failed(f"PROXY header: {error}")
            return
        self._done(address, now)

    def on_writable(self) -> None:
        """Never happens: it is not watched for it."""

    def lose(self, reason: str) -> None:
        """The connection broke, or is not wanted any more."""
        self._failed(reason)
