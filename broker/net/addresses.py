"""Where a listener listens (``host:port``, ``[ipv6]:port``, ``unix:/path``), and who is where."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ganglion import GanglionError

__all__ = ["Address", "InvalidAddress", "Networks", "canonical_ip", "plain_ip"]


class InvalidAddress(GanglionError):
    """The text names no address to listen on; the message says what is expected."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str, default_port: int) -> "Address":
        """Read ``host:port``, ``host``, ``[ipv6]:port``, ``:port``, ``port`` or ``unix:/path``.

        Without a host it is the loopback address 127.0.0.1: to listen wider is always said
        explicitly (``0.0.0.0`` or ``[::]``). Port 0 lets the system choose. Raises
        `InvalidAddress`.
        """
        text = text.strip()
        if text.startswith("unix:"):
            if not text[5:]:
                raise InvalidAddress("unix: needs the path of a socket, such as unix:/run/ganglion")
            return cls(path=text[5:])
        if text.isdecimal():
            return cls("127.0.0.1", _port(text, text))
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise InvalidAddress(f"{text!r} is not [ipv6]:port")
            port = rest[1:]
        elif text.count(":") > 1:
            host, port = text, ""
        else:
            host, _, port = text.partition(":")
        if ":" in host or text.startswith("["):
            try:
                ip_address(host)
            except ValueError as error:
                raise InvalidAddress(f"{text!r}: {error}") from None
        return cls(host or "127.0.0.1", _port(port, text) if port else default_port)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """The form that `parse` reads."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Networks:
    """Some addresses of peers: IP networks, and perhaps those of Unix sockets."""

    __slots__ = ("_has_unix", "_networks")

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Each name is an address, a network such as ``10.0.0.0/8``, or ``unix``.

        Raises `InvalidAddress`.
        """
        self._has_unix = False
        self._networks: list[IPv4Network | IPv6Network] = []
        for name in names:
            if name == "unix":
                self._has_unix = True
                continue
            try:
                self._networks.append(ip_network(name))
            except ValueError as error:
                raise InvalidAddress(f"{error}; write it as 10.1.2.3, 10.0.0.0/8 or unix") from None

    def __contains__(self, peer: str) -> bool:
        """Whether the peer (`Endpoint.peer`) is at one of them."""
        if peer == "unix":
            return self._has_unix
        if not self._networks:
            return False
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _port(port: str, text: str) -> int:
    if not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise InvalidAddress(f"{text!r}: the port must be a number from 0 to 65535")
    return int(port)


def canonical_ip(address: str | bytes) -> str:
    """An IP address, as text or packed, as `Endpoint.peer` has it. Raises ValueError for others."""
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)


def plain_ip(host: str) -> str:
    """An IPv4 address that came through an IPv6 socket as the IPv4 address that it is."""
    return host.removeprefix("::ffff:")
