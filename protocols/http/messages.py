"""Requests and responses, as routes see them."""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Header", "Request", "Response"]

Header: TypeAlias = tuple[bytes, bytes]
"""Name, in lower case, and value."""


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request."""

    method: str
    path: str
    """As it came: what is percent-encoded still is."""
    query: str
    """What stands behind the question mark, as it came."""
    headers: tuple[Header, ...]
    body: bytes
    peer: str
    """The address of the client; behind a trusted proxy, what that says of it."""
    is_secure: bool
    """Whether it came over TLS to this node."""

    def header(self, name: bytes) -> bytes:
        """The value of a header; of several joined as a list (RFC 9110, 5.3); empty without."""
        return b", ".join(value for each, value in self.headers if each == name)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer."""

    status: int
    body: bytes = b""
    content_type: bytes = b"text/plain; charset=utf-8"
    headers: tuple[Header, ...] = ()
    """Beside those that every response has (`HttpConnection`)."""
