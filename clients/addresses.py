"""Where a node is: the URLs that clients take, and whom to trust there."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from ganglion.clients.errors import BadOption, ClientError

__all__ = ["NodeAddress", "tls_context"]

_PORTS = {"ganglion": 7883, "ganglions": 7884, "ws": 80, "wss": 443}
_WEB_PATH = "/ws"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """A place where a node speaks the native protocol."""

    scheme: str
    """``ganglion``, ``ganglions``, ``ws``, ``wss`` or ``unix``."""
    host: str = ""
    port: int = 0
    path: str = ""
    """Of a Unix socket, or of the WebSocket on the web listener."""
    user: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``ganglion://``, ``ganglions://``, ``ws://``, ``wss://`` or ``unix:/path``.

        ``host[:port]`` alone means ``ganglion://``. Raises `BadOption` for anything else.
        A password has no place in it: a URL ends up in lists of processes, histories and logs.
        """
        if url.startswith("unix:"):
            return cls(scheme="unix", path="/" + url.removeprefix("unix:").lstrip("/"))
        try:
            parts = urlsplit(url if "://" in url else f"ganglion://{url}")
            port = parts.port
        except ValueError as error:
            raise BadOption(f"{url!r} is not a URL: {error}") from None
        scheme = parts.scheme
        if scheme not in _PORTS or not parts.hostname:
            hint = "; MQTT has its own clients" if scheme in ("mqtt", "mqtts") else ""
            raise BadOption(
                f"{url!r} must be ganglion://HOST:PORT, ganglions:// (TLS), ws://HOST:PORT/ws, "
                f"wss:// or unix:/PATH{hint}"
            )
        if parts.password is not None:
            raise BadOption(
                "a password does not belong into a URL: use GANGLION_PASSWORD, a password file or "
                "a context (ganglion context add)"
            )
        is_web = scheme in ("ws", "wss")
        if parts.query or parts.fragment or (parts.path.strip("/") and not is_web):
            raise BadOption(f"{url!r} must end with the port; a topic is given by itself")
        return cls(
            scheme=scheme,
            host=parts.hostname,
            port=_PORTS[scheme] if port is None else port,
            path=(parts.path.rstrip("/") or _WEB_PATH) if is_web else "",
            user=None if parts.username is None else unquote(parts.username),
        )

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("ganglions", "wss")

    @property
    def is_private(self) -> bool:
        """Whether nobody else can listen: encrypted, or within this machine."""
        if self.is_tls or self.scheme == "unix" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name: what it leads to may change

    @property
    def is_web(self) -> bool:
        """Whether frames travel in a WebSocket."""
        return self.scheme in ("ws", "wss")

    def __str__(self) -> str:
        """The URL without the user."""
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def tls_context(
    *,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """How to talk TLS: whom to trust (the system's authorities without ``ca``), and who we are.

    Raises `ClientError` when a file cannot be used. ``verify`` off trusts everyone.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(each) for each in (ca, certificate, key) if each is not None)
        raise ClientError(f"cannot use {files}: {error.strerror or error}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
