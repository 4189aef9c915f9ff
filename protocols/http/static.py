"""Files for browsers: what is shipped is in memory, and nothing else can be asked for.

A path is looked up in the table of routes as it came, so no way of writing one leads to a file that
is not in it.
"""

from collections.abc import Mapping
from functools import partial
from hashlib import sha256

from ganglion.protocols.http.messages import Header, Response
from ganglion.protocols.http.routes import Exchange, Routes

__all__ = ["serve_files"]

_TYPES = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "ico": b"image/vnd.microsoft.icon",
    "js": b"text/javascript; charset=utf-8",
    "json": b"application/json",
    "map": b"application/json",
    "md": b"text/markdown; charset=utf-8",
    "mjs": b"text/javascript; charset=utf-8",
    "png": b"image/png",
    "svg": b"image/svg+xml",
    "ts": b"text/plain; charset=utf-8",
    "txt": b"text/plain; charset=utf-8",
}
_CONTENT_POLICY = (
    # scripts and styles only from files of this node; it may connect to other nodes
    b"default-src 'self'; connect-src 'self' http: https: ws: wss:; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'"
)
_ETAG_DIGITS = 32


def serve_files(routes: Routes, files: Mapping[str, bytes]) -> None:
    """Let each file be read at its path, such as ``/js/ganglion.js``.

    A file that is called ``index.html`` is at the path of its folder.
    """
    for path, content in files.items():
        kind = _TYPES.get(path.rpartition(".")[2], b"application/octet-stream")
        etag = f'"{sha256(content).hexdigest()[:_ETAG_DIGITS]}"'.encode()
        headers: tuple[Header, ...] = ((b"etag", etag), (b"cache-control", b"no-cache"))
        if kind.startswith(b"text/html"):
            headers += ((b"content-security-policy", _CONTENT_POLICY),)
        whole = Response(200, content, kind, headers)
        path = path.removesuffix("index.html")
        routes.add("GET", path, partial(_answer, etag, whole, Response(304, headers=headers)))


def _answer(etag: bytes, whole: Response, unchanged: Response, exchange: Exchange) -> None:
    known = [each.strip() for each in exchange.request.header(b"if-none-match").split(b",")]
    is_known = b"*" in known or any(each.removeprefix(b"W/") == etag for each in known)
    exchange.respond(unchanged if is_known else whole)
