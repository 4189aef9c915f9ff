"""Whose pages may talk to this node: a browser says where a page comes from in the header Origin.

Without this check any page that somebody visits could open a WebSocket to a node on their machine
or in their network (cross-site WebSocket hijacking): browsers do not hold WebSockets to the
same-origin policy. Programs send no Origin, and what they may do is a matter of their password.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from ganglion.protocols.http.messages import Request

__all__ = ["Origins"]

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """The origins that are allowed beside the node's own."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        """Each is an origin such as ``https://shop.example.com``; ``*`` allows all."""
        self._allowed = frozenset(each.lower().rstrip("/") for each in allowed)

    def refusal(self, request: Request) -> str | None:
        """Why the page that the request comes from may not make it; None when it may."""
        origin = request.header(b"origin").decode("latin-1").lower()
        if not origin or "*" in self._allowed or origin in self._allowed:
            return None
        scheme, _, authority = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        host = request.header(b"host").decode("latin-1").lower()
        if port is None or authority.removesuffix(port) != host.removesuffix(port):
            return f"the origin {origin[:200]!r} is not this node's own, nor in web.origins"
        if _is_loopback(request.peer) and not _is_address_or_localhost(host):
            # A name can be made to lead here (DNS rebinding): to a browser it is the page's own.
            return (
                f"the page's name {host[:200]!r} leads to this machine, but may be anybody's: "
                "name its origin in web.origins, or a proxy in proxy.trusted"
            )
        return None


def _is_loopback(peer: str) -> bool:
    try:
        return ip_address(peer).is_loopback
    except ValueError:
        return False


def _is_address_or_localhost(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
