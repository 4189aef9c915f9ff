"""What the web listener offers, put together: health, metrics, files for browsers, WebSockets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable

from ganglion import __version__
from ganglion.broker.core.node import Node
from ganglion.broker.daemon.metrics import Metrics, Sources
from ganglion.broker.net import Protocol
from ganglion.broker.net.addresses import Networks
from ganglion.broker.net.reactor import Reactor
from ganglion.broker.store import Store
from ganglion.protocols.http.health import serve_health
from ganglion.protocols.http.origins import Origins
from ganglion.protocols.http.routes import Routes
from ganglion.protocols.http.server import HttpServer
from ganglion.protocols.http.static import serve_files
from ganglion.protocols.native.connection import NativeConnection
from ganglion.protocols.native.operations import SUBPROTOCOL_JSON, SUBPROTOCOL_MSGPACK
from ganglion.protocols.native.server import NativeServer
from ganglion.protocols.websocket.server import Subprotocol, WebSocketServer

__all__ = ["WebSettings", "make_web"]

_START_PAGE = "/index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """What is asked of the web listener."""

    origins: Sequence[str] = ()
    """See `Origins`."""
    compression: bool = False
    """Whether WebSockets may be compressed."""


def make_web(
    node: Node,
    reactor: Reactor,
    store: Store,
    settings: WebSettings,
    *,
    make_mqtt: Callable[[], Protocol],
    native: NativeServer,
    reasons: Callable[[], Sequence[str]],
    trusted: Networks,
    wall_clock_offset_s: float,
) -> HttpServer:
    """The server of web listeners; `reasons` says why the node is not ready, `/readyz` asks."""
    mqtt = Subprotocol(make_mqtt)
    paths: Mapping[str, Mapping[str, Subprotocol]] = {
        "/mqtt": {"mqtt": mqtt, "mqttv3.1": mqtt},
        "/ws": {
            SUBPROTOCOL_MSGPACK: Subprotocol(partial(NativeConnection, native, is_web=True)),
            SUBPROTOCOL_JSON: Subprotocol(
                partial(NativeConnection, native, is_web=True, is_json=True), is_text=True
            ),
        },
    }
    websockets = WebSocketServer(node, paths, compress=settings.compression)
    routes = Routes()
    serve_health(routes, reasons)
    serve_files(routes, dict(_browser_files()))
    server = HttpServer(
        node,
        routes,
        websockets,
        origins=Origins(settings.origins),
        trusted=trusted,
        wall_clock_offset_s=wall_clock_offset_s,
    )
    metrics = Metrics(Sources(node, reactor, store, server, __version__, wall_clock_offset_s))
    routes.add("GET", "/metrics", metrics.answer)
    return server


def _browser_files() -> Iterator[tuple[str, bytes]]:
    """What `clients/js` has, below ``/js/``, and its start page, which is the node's."""
    for path, content in _walk(files("ganglion.clients") / "js", "/js/"):
        yield _START_PAGE if path == f"/js{_START_PAGE}" else path, content


def _walk(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            yield from _walk(entry, f"{path}{entry.name}/")
        elif not entry.name.startswith("."):
            yield path + entry.name, entry.read_bytes()
