"""What answers where: a table from path and method to a handler.

A handler gets an `Exchange` and responds at once or in a later tick; until then its connection is
not read.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from ganglion.protocols.http.messages import Request, Response

__all__ = ["Exchange", "Handler", "Routes"]


class Exchange(Protocol):
    """One request that wants its response."""

    @property
    def request(self) -> Request:
        """What is asked for."""
        ...

    def respond(self, response: Response) -> None:
        """Answer, once. Ignored when the client has gone."""
        ...


Handler: TypeAlias = Callable[[Exchange], None]


class Routes:
    """The table. Paths are matched whole."""

    def __init__(self) -> None:
        self._handlers: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Let `handler` answer; what answers GET answers HEAD too, without the body."""
        self._handlers.setdefault(path, {})[method] = handler

    def answer(self, exchange: Exchange) -> None:
        """Have the request answered, if only by 404 or 405."""
        request = exchange.request
        methods = self._handlers.get(request.path)
        if methods is None:
            exchange.respond(Response(404, b"there is nothing at this path\n"))
            return
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = {*methods, "HEAD"} if "GET" in methods else set(methods)
            allow = (b"allow", ", ".join(sorted(allowed)).encode())
            exchange.respond(Response(405, b"not with this method\n", headers=(allow,)))
            return
        handler(exchange)
