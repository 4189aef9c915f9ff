"""A small blocking client over one socket (TCP, TLS, Unix or WebSocket), for commands.

It is a `Conversation` with a socket and a clock. Every wait has a deadline, in seconds. There is no
background thread: pings are answered and sent while the client waits for something, and a command
that waits for something else calls `BlockingClient.attend` in between.
"""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from ganglion import __version__
from ganglion.clients.addresses import NodeAddress
from ganglion.clients.conversation import Answer, Conversation
from ganglion.clients.errors import ConnectionLost, Refused, TimedOut, Unreachable
from ganglion.clients.login import Login
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import ALPN_NAME, Code, Operation

if TYPE_CHECKING:
    from ganglion.clients.websocket import WebSocketWrapping

__all__ = ["BlockingClient"]

_READ_SIZE_BYTES = 262_144
_ANSWER_TIMEOUT_S = 10.0
_INBOX_BYTES_MAX = 64 * 1024 * 1024
"""Messages that came while something else was waited for; jobs and records have a credit."""
_PATIENCE_MAX_S = 3600.0  # of one wait: a socket's timeout has an upper bound
_MESSAGE_BYTES = 512  # what one takes up beside its payload, about


class BlockingClient:
    """One connection to a node. Use it as a context manager: leaving says goodbye."""

    def __init__(
        self,
        address: NodeAddress,
        *,
        options: Mapping[str, Any],
        login: Login | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = _ANSWER_TIMEOUT_S,
    ) -> None:
        """Connect and wait for the greeting, at most ``timeout_s`` seconds in all.

        ``options`` are those of hello, ``login`` is the password if there is one. ``timeout_s`` is
        also how long each later answer may take. Raises `Unreachable`, `Refused`,
        `ConnectionLost`, `TimedOut` or `AuthenticationFailed`.
        """
        self._timeout_s = timeout_s
        self._keep_alive_s = 0.0
        self._answers: dict[int, Answer] = {}
        self._called: int | None = None
        self._open: set[int] = set()
        self._ready: deque[Answer] = deque()
        self._inbox: deque[Frame] = deque()
        self._inbox_bytes = 0
        self._missed = 0
        self._frame_max_bytes = 0
        self.is_draining = False
        """Whether the node stops: it waits for us to settle what we have, and to leave."""
        self.is_connected = False
        """Whether there has been a greeting, and the connection is there."""
        self.greeting: dict[str, Any] = {}
        wished = {"agent": f"ganglion-cli/{__version__}", **options}
        deadline = time.monotonic() + timeout_s
        try:
            self._connect(address, tls, wished, login, deadline)
        except Refused as refused:
            if login is None or not login.may_go_on(refused):
                raise
            self._connect(address, tls, wished, login, deadline)
        self._keep_alive_s = float(self.greeting.get("keep_alive_s") or 0)
        self._frame_max_bytes = self.greeting["limits"]["frame_max_bytes"]
        self.is_connected = True

    def __enter__(self) -> Self:
        """Give the connected client itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Say goodbye and close."""
        self.close()

    def call(self, operation: Operation, *elements: object, timeout_s: float | None = None) -> Any:
        """Ask and wait for the answer: the value of an ``ok``, the elements of anything else.

        Raises `Refused`, and `TimedOut` after ``timeout_s`` seconds (those of the client, left
        out).
        """
        number, data = self._conversation.request(operation, *elements)
        self._send(data)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return self._wait_for(number, time.monotonic() + limit_s)

    def start(self, operation: Operation, *elements: object) -> int:
        """Ask without waiting, and give the id; the answer is among `answers`."""
        number, data = self._conversation.request(operation, *elements)
        self._open.add(number)
        self._send(data)
        return number

    def notify(self, operation: Operation, *elements: object) -> None:
        """Send what has no answer."""
        self._send(self._conversation.notice(operation, *elements))

    def answers(self, keep: int = 0) -> Iterator[Answer]:
        """Answers to what `start` sent, until only ``keep`` are missing; it is silence that ends.

        Raises `TimedOut` when the node says nothing for the time of an answer.
        """
        while self._ready or len(self._open) > keep:
            if self._ready:
                yield self._ready.popleft()
            else:
                self._advance(time.monotonic() + self._timeout_s)

    def frames(self, deadline: float | None = None) -> Iterator[Frame]:
        """What comes and is no answer, until ``deadline`` (of `time.monotonic`) or for ever.

        Messages that had to be dropped while something else was waited for are told of as the node
        tells of its own: by a ``dropped``, of no subscription. Raises `ConnectionLost` when the
        node stops, once all that came is given and answered.
        """
        while True:
            while self._inbox:
                yield self._inbox.popleft()
            self._inbox_bytes = 0
            if self._missed:
                missed, self._missed = self._missed, 0
                yield (Operation.DROPPED, 0, missed)
            self._check_draining()
            try:
                self._advance(deadline)
            except TimedOut:
                if deadline is not None and time.monotonic() >= deadline and not self._inbox:
                    return
                if deadline is None:
                    raise

    def is_open(self, number: int) -> bool:
        """Whether what `start` gave this id for has no answer yet."""
        return number in self._open

    @property
    def has_more(self) -> bool:
        """Whether `frames` has something to give at once."""
        return bool(self._inbox)

    def attend(self, until: float, wake: int | None = None) -> None:
        """Look after the connection: until something came, or this time of `time.monotonic`.

        ``wake`` is a descriptor that ends it, too, when it becomes readable. Without one, raises
        `ConnectionLost` when the node stops and nothing is unanswered.
        """
        if wake is None:
            self._check_draining()
        with suppress(TimedOut):
            self._advance(max(until, time.monotonic() + 0.001), wake)

    def _check_draining(self) -> None:
        if self.is_draining and not self._open:
            raise ConnectionLost("the node stops")

    def ping(self) -> None:
        """Wait until the node has read all that was sent before."""
        self.notify(Operation.PING)
        for frame in self.frames(time.monotonic() + self._timeout_s):
            if frame[0] == Operation.PONG:
                return
        raise TimedOut(f"the node did not answer within {self._timeout_s:g} s")

    def close(self) -> None:
        """Say goodbye and close the socket. Harmless when repeated."""
        try:
            self.notify(Operation.GOODBYE)
            if self._wrapping is not None:
                self._socket.sendall(self._wrapping.close())
            self._socket.shutdown(socket.SHUT_WR)
        except (ConnectionLost, TimedOut, OSError):
            pass  # the connection has ended already, which is what was wanted
        finally:
            self._socket.close()

    def _connect(
        self,
        address: NodeAddress,
        tls: ssl.SSLContext | None,
        wished: dict[str, Any],
        login: Login | None,
        deadline: float,
    ) -> None:
        self._conversation = Conversation(login)
        self._wrapping: WebSocketWrapping | None = None
        if address.is_web:
            from ganglion.clients import websocket

            self._wrapping = websocket.WebSocketWrapping()
        self._socket = _open(address, tls, max(0.001, deadline - time.monotonic()))
        self._sent_s = self._heard_s = time.monotonic()
        try:
            self._upgrade(address, deadline)
            number, data = self._conversation.hello(wished)
            self._send(data)
            self.greeting = self._wait_for(number, deadline)
        except BaseException:
            self._socket.close()
            raise

    def _upgrade(self, address: NodeAddress, deadline: float) -> None:
        wrapping = self._wrapping
        if wrapping is None:
            return
        self._send_raw(wrapping.upgrade(address))
        while not wrapping.is_open:
            self._advance(deadline)

    def _wait_for(self, number: int, deadline: float) -> Any:
        self._called = number
        try:
            while number not in self._answers:
                self._advance(deadline)
        finally:
            self._called = None
        answer = self._answers.pop(number)
        if answer.error is None and answer.operation != Operation.OK:
            return answer.values
        return answer.result

    def _advance(self, deadline: float | None, wake: int | None = None) -> None:
        """Wait for bytes until ``deadline``, and deal with all that is complete then."""
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimedOut(f"the node did not answer within {self._timeout_s:g} s")
        wake_s = deadline
        if self._keep_alive_s:
            if now - self._heard_s >= 1.5 * self._keep_alive_s:
                raise ConnectionLost("the node no longer answers")
            # Both sides ping after keep_alive_s of silence: ours is early, for we may be late.
            ping_s = max(self._sent_s, self._heard_s) + self._keep_alive_s / 2
            if now >= ping_s:
                self.notify(Operation.PING)
                ping_s = now + self._keep_alive_s / 2
            wake_s = ping_s if wake_s is None else min(wake_s, ping_s)
        left_s = _PATIENCE_MAX_S if wake_s is None else max(wake_s - now, 0.001)
        left_s = min(left_s, _PATIENCE_MAX_S)
        if wake is not None and not self._has_decrypted():
            ours = self._socket.fileno()
            readable, _, _ = select.select([ours, wake], [], [], left_s)
            if ours not in readable:
                return
        self._socket.settimeout(left_s)
        try:
            data = self._socket.recv(_READ_SIZE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            self.is_connected = False
            raise ConnectionLost(f"connection lost: {error.strerror or error}") from None
        if not data:
            self.is_connected = False
            raise ConnectionLost("the node closed the connection")
        self._heard_s = time.monotonic()
        self._take(data)

    def _has_decrypted(self) -> bool:
        """Whether TLS holds bytes already, of which the descriptor says nothing."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _take(self, data: bytes) -> None:
        if self._wrapping is not None:
            data, reply = self._wrapping.unwrap(data)
            if reply:
                self._send_raw(reply)
        for each in self._conversation.receive(data):
            if not isinstance(each, Answer):
                self._on_frame(each)
            elif each.id == self._called:
                self._answers[each.id] = each
            elif each.id in self._open:
                self._open.discard(each.id)
                self._ready.append(each)
            elif each.id == 0 and each.error is not None:
                raise each.error
        replies, self._conversation.replies = self._conversation.replies, []
        for reply in replies:
            self._send(reply)

    def _on_frame(self, frame: Frame) -> None:
        match frame[0]:
            case Operation.GOODBYE:
                reason = frame[1] if len(frame) > 1 else "goodbye"
                self.is_connected = False
                raise ConnectionLost(f"the node ended the connection: {reason}")
            case Operation.DRAIN:
                self.is_draining = True
            case Operation.ENDED:
                raise Refused(frame[2], frame[3])  # a command has one channel of a kind
            case Operation.MESSAGE | Operation.DELIVERY:
                payload = frame[2 if frame[0] == Operation.MESSAGE else 3]
                if self._inbox_bytes > _INBOX_BYTES_MAX:
                    self._missed += 1
                    return
                self._inbox_bytes += _MESSAGE_BYTES + len(payload)
                self._inbox.append(frame)
            case _:
                self._inbox.append(frame)

    def _send(self, data: bytes) -> None:
        if len(data) > self._frame_max_bytes > 0:
            raise Refused.of(
                Code.TOO_LARGE,
                f"the message is too large: its frame has {len(data):,} bytes, and the node takes "
                f"at most frame_max_bytes = {self._frame_max_bytes:,}",
            )
        self._send_raw(data if self._wrapping is None else self._wrapping.wrap(data))

    def _send_raw(self, data: bytes) -> None:
        self._socket.settimeout(self._timeout_s)
        left = memoryview(data)
        try:
            while left:  # not `sendall`: its timeout would be for all of it
                left = left[self._socket.send(left) :]
        except TimeoutError:
            raise TimedOut("the node takes no more bytes") from None
        except OSError as error:
            self.is_connected = False
            raise ConnectionLost(f"connection lost: {error.strerror or error}") from None
        self._sent_s = time.monotonic()


def _open(address: NodeAddress, tls: ssl.SSLContext | None, timeout_s: float) -> socket.socket:
    try:
        if address.scheme == "unix":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout_s)
            try:
                connection.connect(address.path)
            except BaseException:
                connection.close()
                raise
            return connection
        connection = socket.create_connection((address.host, address.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return connection
        if not address.is_web:
            tls.set_alpn_protocols([ALPN_NAME])
        try:
            return tls.wrap_socket(connection, server_hostname=address.host)
        except BaseException:
            connection.close()
            raise
    except TimeoutError:
        raise Unreachable(f"cannot connect to {address}: no answer in {timeout_s:g} s") from None
    except OSError as error:
        words = getattr(error, "verify_message", "") or error.strerror or str(error)
        raise Unreachable(f"cannot connect to {address}: {words}") from None
