"""What an orchestrator asks: is the process alive, and may it be sent clients."""

import json
from collections.abc import Callable, Sequence

from ganglion.protocols.http.messages import Response
from ganglion.protocols.http.routes import Exchange, Routes

__all__ = ["serve_health"]

_NOT_CACHED = ((b"cache-control", b"no-store"),)


def serve_health(routes: Routes, reasons: Callable[[], Sequence[str]]) -> None:
    """Answer ``/livez`` and ``/readyz``; `reasons` says why the node is not ready."""

    def live(exchange: Exchange) -> None:
        # that the reactor came to answer is the answer
        exchange.respond(_json(200, {"alive": True}))

    def ready(exchange: Exchange) -> None:
        found = list(reasons())
        exchange.respond(_json(503 if found else 200, {"ready": not found, "reasons": found}))

    routes.add("GET", "/livez", live)
    routes.add("GET", "/readyz", ready)


def _json(status: int, value: object) -> Response:
    body = json.dumps(value).encode() + b"\n"
    return Response(status, body, b"application/json", _NOT_CACHED)
