"""Listening sockets: how they are opened, and who is accepted there."""

import select
import socket
from collections.abc import Callable
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from pathlib import Path
from typing import TYPE_CHECKING

from ganglion import GanglionError
from ganglion.broker.net import Carrier, Protocol
from ganglion.broker.net.addresses import Address, Networks
from ganglion.broker.net.tls import TlsContext

if TYPE_CHECKING:
    from ganglion.broker.net.reactor import Reactor

__all__ = ["CannotListen", "Listener", "open_listening_socket"]

_ACCEPTS_PER_TICK = 64  # a flood of connections leaves time for those that are there
_BACKLOG = 4096
_ACCEPT_AGAIN_S = 0.5  # after the process ran out of descriptors
_ADVICE = {
    EADDRINUSE: "stop what uses it, or choose another address",
    EACCES: "choose a port above 1023, or give the process CAP_NET_BIND_SERVICE",
    EADDRNOTAVAIL: "choose an address of this machine",
}
_OUT_OF_RESOURCES = frozenset((EMFILE, ENFILE, ENOBUFS, ENOMEM))

_IN = select.EPOLLIN


class CannotListen(GanglionError):
    """A listener could not be opened; the message names the address and what to do."""


class Listener:
    """One listening socket. `address` is where it really listens (a chosen port instead of 0)."""

    def __init__(
        self,
        reactor: "Reactor",
        listening: socket.socket,
        address: Address,
        make_protocol: Callable[[], Protocol | Carrier],
        tls: TlsContext | None,
        trusted: Networks | None = None,
        *,
        proxied: bool = False,
        name: str = "",
    ) -> None:
        self.address = address
        self.make_protocol = make_protocol
        self.tls = tls
        self.trusted = trusted or Networks()
        self.proxied = proxied
        self.name = name
        """What its figures are called by: the scheme of what is spoken there."""
        self.connections = 0
        """Open ones that were accepted here."""
        self.connections_opened = 0
        self.bytes_received = 0
        """As in `Statistics`, of these connections."""
        self.bytes_sent = 0
        self._reactor = reactor
        self._socket = listening
        self._is_accepting = False
        self.resume()

    @property
    def fd(self) -> int:
        """The descriptor of the listening socket."""
        return self._socket.fileno()

    def resume(self) -> None:
        """Accept connections (again)."""
        if not self._is_accepting and self._socket.fileno() >= 0:
            self._is_accepting = True
            self._reactor.epoll.register(self._socket.fileno(), _IN)

    def _pause(self, now: float) -> None:
        self._is_accepting = False
        self._reactor.epoll.unregister(self._socket.fileno())
        self._reactor.timers.at(now + _ACCEPT_AGAIN_S, lambda _: self.resume())

    def on_readable(self, now: float) -> None:
        """Accept what waits, up to the share of one tick."""
        for _ in range(_ACCEPTS_PER_TICK):
            try:
                connection, name = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # A level-triggered epoll would report the listener without end.
                    self._reactor.log.warning(
                        "cannot accept connections",
                        error=error.strerror,
                        advice="raise the limit of open files (ulimit -n, LimitNOFILE)",
                    )
                    self._reactor.statistics.drop("connection: out of descriptors")
                    self._pause(now)
                    return
                continue  # this connection was gone before it was accepted
            self._reactor.adopt(connection, name, self, now)

    def on_writable(self) -> None:
        """Never happens: a listener is not watched for it."""

    def lose(self, reason: str) -> None:
        """The listening socket broke."""
        self._reactor.log.warning("listener broke", address=str(self.address), reason=reason)
        self.close()

    def close(self) -> None:
        """Accept no more."""
        if self._is_accepting:
            self._is_accepting = False
            self._reactor.epoll.unregister(self._socket.fileno())
        self._socket.close()
        if self.address.path is not None:
            try:
                Path(self.address.path).unlink()
            except OSError:
                pass  # somebody else removed it


def open_listening_socket(address: Address, *, reuse_port: bool) -> socket.socket:
    """A socket that listens on this address. Raises `CannotListen`."""
    try:
        return _open(address, reuse_port=reuse_port)
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another address")
        raise CannotListen(
            f"cannot listen on {address}: {error.strerror or error}; {advice}"
        ) from error


def _open(address: Address, *, reuse_port: bool) -> socket.socket:
    if address.path is not None:
        _remove_stale_socket(address.path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: str | tuple[str, int] = address.path
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        if address.host == "localhost":
            target = ("127.0.0.1", address.port)
        else:
            resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            family, _, _, _, name = resolved[0]
            target = (str(name[0]), int(name[1]))
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.setblocking(False)
        listening.bind(target)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _remove_stale_socket(path: str) -> None:
    """Remove the socket of a process that is gone; one that answers is left alone."""
    try:
        if not Path(path).is_socket():
            return  # bind will say what is wrong
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError:
            pass
