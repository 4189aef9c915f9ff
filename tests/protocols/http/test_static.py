"""Files for browsers: each at its path with its type, and nothing else at any path."""

import pytest

from ganglion.protocols.http.routes import Routes
from ganglion.protocols.http.static import serve_files
from tests.protocols.web_link import WebLink, request

FILES = {
    "/index.html": b"<!doctype html>",
    "/js/ganglion.js": b"export {}",
    "/js/ganglion.d.ts": b"export {}",
    "/js/page.css": b"body {}",
    "/js/logo.svg": b"<svg/>",
    "/js/strange.bin": bytes(range(256)),
}


@pytest.fixture
def link() -> WebLink:
    """A server of these files."""
    routes = Routes()
    serve_files(routes, FILES)
    return WebLink(routes=routes)


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/", b"text/html; charset=utf-8", FILES["/index.html"]),
        ("/js/ganglion.js", b"text/javascript; charset=utf-8", FILES["/js/ganglion.js"]),
        ("/js/ganglion.d.ts", b"text/plain; charset=utf-8", FILES["/js/ganglion.d.ts"]),
        ("/js/page.css", b"text/css; charset=utf-8", FILES["/js/page.css"]),
        ("/js/logo.svg", b"image/svg+xml", FILES["/js/logo.svg"]),
        ("/js/strange.bin", b"application/octet-stream", FILES["/js/strange.bin"]),
    ],
)
def test_a_file_has_its_type(path: str, kind: bytes, content: bytes, link: WebLink) -> None:
    """A browser executes a module only with the right type; pages have a content policy."""
    peer = link.connect()
    peer.send(request("GET", path))
    response, body = peer.exchange()
    headers = dict(response.headers)
    assert (response.status_code, body) == (200, content)
    assert headers[b"content-type"] == kind
    assert headers[b"cache-control"] == b"no-cache"
    assert (b"content-security-policy" in headers) == (path == "/")


@pytest.mark.parametrize(
    "path",
    [
        "/js",
        "/js/",
        "/index.html/",
        "/js/../index.html",
        "/js/..%2findex.html",
        "/js/%2e%2e/index.html",
        "/..",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/js/..\\..\\etc\\passwd",
        "/js/ganglion.js/",
        "/js/ganglion.js%00.html",
        "/js/./ganglion.js",
        "//js/ganglion.js",
        "/JS/ganglion.js",
    ],
)
def test_no_other_path_leads_anywhere(path: str, link: WebLink) -> None:
    """A path is looked up as it is written; whatever it may mean elsewhere, here is nothing."""
    peer = link.connect()
    peer.send(request("GET", path))
    assert peer.exchange()[0].status_code == 404


def test_what_has_not_changed_is_not_sent_again(link: WebLink) -> None:
    """If-None-Match with the file's ETag (RFC 9110, 13.1.2)."""
    peer = link.connect()
    peer.send(request("GET", "/js/ganglion.js"))
    etag = dict(peer.exchange()[0].headers)[b"etag"].decode()
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        peer.send(request("GET", "/js/ganglion.js", f"If-None-Match: {known}"))
        response, body = peer.exchange()
        assert (response.status_code, body) == (304, b"")
        assert dict(response.headers)[b"etag"] == etag.encode()
    for other in ('"other"', etag.strip('"'), "W/"):
        peer.send(request("GET", "/js/ganglion.js", f"If-None-Match: {other}"))
        assert peer.exchange()[0].status_code == 200


def test_files_are_read_only(link: WebLink) -> None:
    """No other method does anything."""
    peer = link.connect()
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        peer.send(request(method, "/js/ganglion.js"))
        assert peer.exchange(method)[0].status_code == 405
