"""One HTTP/1.1 connection (RFC 9112), sans-I/O: h11 reads and writes, the routes answer.

One request is answered at a time: what a client sends ahead (pipelining) waits, unread once there
is too much of it. A request that becomes a WebSocket ends the life of the `HttpConnection`.

What two programs in a row could read in two ways (request smuggling) is refused, also where h11
would choose: a length beside a transfer coding, a transfer coding from before HTTP/1.1.
"""

import re
from dataclasses import replace
from typing import Final

import h11

from ganglion.broker.core.timers import Timer
from ganglion.broker.net import CarrierEndpoint
from ganglion.protocols.http.forwarded import client_address
from ganglion.protocols.http.messages import Header, Request, Response
from ganglion.protocols.http.server import HttpServer
from ganglion.protocols.websocket.connection import WebSocketConnection
from ganglion.protocols.websocket.upgrade import UpgradeRefused, judge

__all__ = ["HttpConnection"]

_REQUESTS_PER_TURN = 8
"""Requests of one client that are answered in a row: each takes some 0.2 ms, and others wait."""
_TURN_S: Final = 0.001
_REASONS: Final = {  # h11 sends none by itself, and some clients read the line with their own eyes
    100: "Continue",
    101: "Switching Protocols",
    200: "OK",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_HOST = re.compile(rb"[\w.~%:\[\]-]*")
_HEADERS_OF_EVERY_RESPONSE: Final = ((b"x-content-type-options", b"nosniff"),)


class _Refused(Exception):
    """A request that breaks a rule or a limit is answered with this status and no more read."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Exchange:
    """One request on its way to its response (an `Exchange`)."""

    __slots__ = ("_connection", "request")

    def __init__(self, connection: "HttpConnection", request: Request) -> None:
        self._connection = connection
        self.request = request

    def respond(self, response: Response) -> None:
        self._connection.respond(self, response)


class HttpConnection:
    """The protocol side of one connection with an HTTP client (a `Carrier`)."""

    __slots__ = (
        "_body",
        "_deadline",
        "_endpoint",
        "_exchange",
        "_h11",
        "_head",
        "_is_advancing",
        "_is_closed",
        "_is_idle",
        "_is_paused",
        "_server",
        "_timer",
        "_turn",
    )

    _endpoint: CarrierEndpoint

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._h11 = h11.Connection(
            h11.SERVER, max_incomplete_event_size=server.node.limits.http_header_max_bytes
        )
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._exchange: _Exchange | None = None
        self._is_advancing = False
        self._is_closed = False
        self._is_idle = False  # between two requests
        self._is_paused = False
        self._deadline = 0.0  # when the client has to have sent its request
        self._timer: Timer | None = None
        self._turn: Timer | None = None  # when to go on with what is read already

    # -- the endpoint calls ----------------------------------------------------------------------

    def connected(self, endpoint: CarrierEndpoint, now: float) -> None:
        """The connection is there: a request has to follow within a time."""
        self._endpoint = endpoint
        self._server.connections.add(self)
        self._wait_until(now + self._server.node.limits.connect_timeout_s)

    def receive(self, data: bytes, now: float) -> None:
        """These bytes came."""
        if self._is_idle:
            self._is_idle = False
            self._deadline = now + self._server.node.limits.connect_timeout_s
        self._h11.receive_data(data)
        self._advance(now)

    def end_of_stream(self) -> None:
        """The client sends no more; the endpoint closes and tells `lost`."""

    def writable(self) -> None:
        """The client takes more: answer what it sent meanwhile."""
        self._advance(self._server.node.timers.now)

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        self._let_go()

    # -- reading ---------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Read and answer requests, as far as they are there and the client takes the answers."""
        self._is_advancing = True
        try:
            for _ in range(_REQUESTS_PER_TURN):
                if not self._read_request(now):
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
        except _Refused as error:
            self._refuse(error.status, str(error))
        else:
            if self._turn is None and not self._is_closed:
                self._pause()
                self._turn = self._server.node.timers.at(now + _TURN_S, self._take_turn)
        finally:
            self._is_advancing = False

    def _take_turn(self, now: float) -> None:
        self._turn = None
        self._advance(now)

    def _read_request(self, now: float) -> bool:
        """Read one request and have it answered; whether to go on with the next."""
        while not self._is_closed and self._exchange is None and self._turn is None:
            if self._endpoint.congested:
                self._pause()
                return False
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    self._send_status(100, [])
                if self._is_paused:
                    self._is_paused = False
                    self._endpoint.resume_reading()
                return False
            match event:
                case h11.Request():
                    self._check_head(event)
                    self._head = event
                case h11.Data():
                    self._take_body(event.data)
                case h11.EndOfMessage():
                    self._on_request(now)
                    return True
                case _:  # PAUSED: it said that this is its last request
                    return False
        return False

    def _check_head(self, head: h11.Request) -> None:
        limits = self._server.node.limits
        if len(head.headers) > limits.http_headers_max:
            raise _Refused(431, f"over http_headers_max = {limits.http_headers_max} headers")
        if head.http_version not in (b"1.1", b"1.0"):
            raise _Refused(505, "this is HTTP/1.1")
        names = [name for name, _ in head.headers]
        if b"transfer-encoding" in names:
            if b"content-length" in names:
                raise _Refused(400, "both Content-Length and Transfer-Encoding (RFC 9112, 6.1)")
            if head.http_version != b"1.1":
                raise _Refused(400, "Transfer-Encoding before HTTP/1.1 (RFC 9112, 6.1)")
        for name, value in head.headers:
            if name == b"host" and not _HOST.fullmatch(value):
                raise _Refused(400, "Host is no name with a port (RFC 9112, 3.2)")
            if name == b"content-length" and int(value) > limits.http_body_max_bytes:
                raise _Refused(413, f"over http_body_max_bytes = {limits.http_body_max_bytes}")

    def _take_body(self, data: bytes) -> None:
        limit = self._server.node.limits.http_body_max_bytes
        if len(self._body) + len(data) > limit:
            raise _Refused(413, f"over http_body_max_bytes = {limit}")
        self._body += data

    # -- answering -------------------------------------------------------------------------------

    def _on_request(self, now: float) -> None:
        server = self._server
        request = self._make_request()
        self._exchange = exchange = _Exchange(self, request)
        refusal = server.origins.refusal(request)
        if refusal is not None:
            server.node.refusals.refuse("http", None, refusal, address=request.peer)
            exchange.respond(Response(403, f"{refusal}\n".encode()))
        elif request.path in server.websockets.paths:
            self._upgrade(exchange, now)
        else:
            server.routes.answer(exchange)
        if self._exchange is exchange:
            self._pause()  # it will be answered in a later tick

    def _make_request(self) -> Request:
        head, self._head = self._head, None
        assert head is not None
        body = bytes(self._body)
        self._body.clear()
        target = head.target.decode("latin-1")
        if not target.startswith("/"):
            scheme, separator, rest = target.partition("://")
            if not separator or scheme.lower() not in ("http", "https"):
                raise _Refused(400, "the target is neither a path nor a URL (RFC 9112, 3.2)")
            target = "/" + rest.partition("/")[2]
        path, _, query = target.partition("?")
        headers: list[Header] = [(name, value) for name, value in head.headers]
        peer = self._endpoint.peer
        request = Request(
            head.method.decode("latin-1"),
            path,
            query,
            tuple(headers),
            body,
            peer,
            self._endpoint.tls is not None,
        )
        forwarded = request.header(b"x-forwarded-for")
        if forwarded:
            address = client_address(peer, forwarded, self._server.trusted)
            request = replace(request, peer=address)
        return request

    def _upgrade(self, exchange: _Exchange, now: float) -> None:
        server, request = self._server, exchange.request
        try:
            upgrade = judge(server.websockets, request)
        except UpgradeRefused as error:
            server.node.refusals.refuse("websocket", None, str(error), address=request.peer)
            exchange.respond(error.response)
            return
        if self._h11.their_http_version != b"1.1":
            raise _Refused(400, "an upgrade needs HTTP/1.1 (RFC 9110, 7.8)")
        self._send_status(101, list(upgrade.headers))
        server.responses[101] += 1
        early = self._h11.trailing_data[0]
        endpoint = self._endpoint
        self._let_go()
        connection = WebSocketConnection(
            server.websockets,
            endpoint,
            upgrade.name,
            upgrade.subprotocol,
            peer=request.peer,
            is_compressed=upgrade.is_compressed,
            now=now,
        )
        if early:
            connection.receive(early, now)

    def respond(self, exchange: _Exchange, response: Response) -> None:
        """Send the response of this exchange and go on with the next request."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        self._send_response(response, exchange.request.method, is_last=self._server.is_draining)
        if self._h11.our_state is not h11.DONE:
            self._close("the HTTP connection was for one request")
            return
        self._h11.start_next_cycle()
        self._is_idle = not self._h11.trailing_data[0]
        limits = self._server.node.limits
        wait_s = limits.http_idle_timeout_s if self._is_idle else limits.connect_timeout_s
        now = self._server.node.timers.now
        self._wait_until(now + wait_s)
        if self._is_paused and not self._is_advancing:
            self._turn = self._server.node.timers.at(now, self._take_turn)

    def _send_response(self, response: Response, method: str, *, is_last: bool) -> None:
        headers: list[Header] = [(b"date", self._server.date())]
        if response.body or response.status not in (204, 304):
            headers += [
                (b"content-type", response.content_type),
                (b"content-length", b"%d" % len(response.body)),
            ]
        headers += _HEADERS_OF_EVERY_RESPONSE
        headers += response.headers
        if is_last:
            headers.append((b"connection", b"close"))
        self._server.responses[response.status] += 1
        reason = _REASONS.get(response.status, "")
        self._send(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if response.body and method != "HEAD":
            self._send(h11.Data(data=response.body))
        self._send(h11.EndOfMessage())

    def _send_status(self, status: int, headers: list[Header]) -> None:
        """Send what comes before a response, or in place of one."""
        reason = _REASONS[status]
        self._send(h11.InformationalResponse(status_code=status, headers=headers, reason=reason))

    def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            self._endpoint.write(data)

    def _refuse(self, status: int, text: str) -> None:
        """Say what is wrong, where HTTP still allows it, and close: the rest cannot be trusted."""
        peer = self._endpoint.peer
        self._server.node.refusals.refuse("http", None, text, address=peer, status=status)
        self._exchange = None
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_response(Response(status, f"{text}\n".encode()), "GET", is_last=True)
        self._close(text)

    # -- deadlines and the end -------------------------------------------------------------------

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._endpoint.pause_reading()

    def _wait_until(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is None:
            self._timer = self._server.node.timers.at(deadline, self._check)

    def _check(self, now: float) -> None:
        self._timer = None
        if self._exchange is not None or self._turn is not None:
            return  # it is we who are late; the response sets the next deadline
        if now < self._deadline:
            self._wait_until(self._deadline)
        elif self._is_idle:
            self._close("the HTTP connection was idle")
        else:
            self._refuse(408, "no whole request within connect_timeout_s")

    def drain(self) -> None:
        """The node stops."""
        if self._exchange is None:
            self._close("the node stops")

    def _close(self, reason: str) -> None:
        if not self._is_closed:
            self._let_go()
            self._endpoint.close(reason, linger=True)

    def _let_go(self) -> None:
        self._is_closed = True
        self._exchange = None
        self._server.connections.discard(self)
        for timer in (self._timer, self._turn):
            if timer is not None:
                timer.cancel()
        self._timer = self._turn = None
