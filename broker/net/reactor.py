"""The reactor: one trio task that serves every connection of the node.

It owns an epoll of all sockets and waits on that epoll's own descriptor with trio, so that trio's
other tasks (start, stop, admin, storage) live beside it. A *tick* takes what is ready, runs the
timers that are due, lets the core commit, and sends once to every endpoint that has output. While
there is work the inner epoll is polled again at once, and trio gets its turn after a bounded time:
a turn of trio costs 7 to 20 µs, a poll 0.3 µs.

A deadline in the `Timers` wakes the reactor through an event descriptor in the same epoll, written
by a small trio task that sleeps until then: a cancel scope around every wait would cost 15 µs.
"""

import os
import select
import socket
import ssl
import sys
import traceback
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import trio

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.refusals import Log
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.net import Carrier, Protocol
from ganglion.broker.net.addresses import Address, Networks, plain_ip
from ganglion.broker.net.listener import Listener, open_listening_socket
from ganglion.broker.net.proxy import ProxyHeader
from ganglion.broker.net.tls import TlsContext, TlsLayer

__all__ = ["LINGER_S", "Reactor", "SocketEndpoint"]

# One recv allocates what it asks for: up to 64 KiB costs the same as a small one, 256 KiB five
# times as much. A recv that comes back full is repeated, so a tick takes at most 256 KiB from an
# endpoint.
_RECV_SIZE = 65_536
_RECVS_PER_TICK = 4
_EVENTS_PER_POLL = 1024
_TRIO_TURN_EVERY_S = 0.002
# A lone peer that streams without being answered is given time to write more (as network cards
# moderate their interrupts): else it pays for waking us, and we for a tick, with every message.
# Measured 1→1 with one message per write: 178k/s without, 460k to 590k/s with the pause.
_MEASURED_TICKS = 16  # one of so many: measuring costs 0.4 µs, and a tick begins at 5 µs
_STREAM_AFTER_TICKS = 32
_STREAM_PAUSE_S = 0.0001
LINGER_S = 0.001
"""What a process that is nothing but a node passes as `Reactor.linger_s`.

The way through trio costs 20 to 30 µs each time the reactor falls asleep. At 5,000 messages per
second, one every 200 µs, that is most of the latency.
"""
_SWEEP_EVERY_S = 1.0  # how exactly deadlines of slow readers are kept
_LINGER_S = 2.0  # for a refused peer to read why
_CLOSE_TIMEOUT_S = 5.0  # for a closing connection to take its last bytes

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class SocketEndpoint:
    """One accepted connection (an `Endpoint`)."""

    __slots__ = (
        "_closing",
        "_envelope",
        "_gone",
        "_interest",
        "_is_connected",
        "_is_lingering",
        "_layer",
        "_output",
        "_paused",
        "_protocol",
        "_reactor",
        "_recv",
        "_socket",
        "_unsent",
        "_wait_until",
        "answered",
        "buffered",
        "congested",
        "fd",
        "limit",
        "listener",
        "peer",
    )

    def __init__(
        self,
        reactor: "Reactor",
        connection: socket.socket,
        peer: str,
        protocol: Protocol | Carrier,
        layer: TlsLayer | None,
        listener: Listener,
    ) -> None:
        self._reactor = reactor
        self.listener = listener
        self._socket = connection
        self._recv = connection.recv
        self._protocol = protocol
        self._layer = layer
        self._output: list[bytes] = []
        self._envelope: _Envelope | None = None
        self._unsent: bytes | memoryview = b""  # on its way, encrypted already
        self._interest = _IN
        self._paused = False
        self._closing: str | None = None  # why, once `close` was called
        self._gone = False
        self._is_connected = layer is None  # whether the protocol knows of the connection
        self._is_lingering = False
        self._wait_until = 0.0  # when a peer that takes nothing, or lingers, is given up
        self.fd = connection.fileno()
        self.peer = peer
        self.limit = reactor.limits.output_buffer_max_bytes
        self.buffered = 0
        """Bytes that wait to be sent."""
        self.congested = False
        self.answered = False
        """Whether anything was sent to it since `_StreamWatch` last looked."""

    @property
    def tls(self) -> TlsLayer | None:
        """None without TLS."""
        return self._layer

    # -- output ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send at the end of the tick."""
        if self._closing is not None:
            return
        output = self._output
        if not output:
            self._reactor.dirty.append(self)
        output.append(data)
        self.buffered += len(data)
        if self.buffered > self.limit:
            self.congested = True

    def offer(self, data: bytes, count: int) -> None:
        """Send transient messages, or drop and count them."""
        if self.congested:
            if not self._unsent and self._output:
                self.flush()  # this tick had more than the limit for it: the peer may well keep up
            if self.congested:
                self._reactor.statistics.drop("receiver is too slow", count)
                return
        output = self._output
        if not output:
            if self._closing is not None:
                return
            self._reactor.dirty.append(self)
        output.append(data)
        self.buffered += len(data)
        if self.buffered > self.limit:
            self.congested = True

    def envelop(self, wrap: Callable[[list[bytes]], bytes]) -> None:
        """From now on send, once per tick, what `wrap` makes of all that was written in it."""
        self._envelope = _Envelope(wrap, self._output)
        self._output = []

    def write_bare(self, data: bytes) -> None:
        """Like `write`, in order with it, and without the envelope."""
        envelope = self._envelope
        if envelope is None:
            self.write(data)
        elif self._closing is None:
            if not self._output and not envelope.ready:
                self._reactor.dirty.append(self)
            if self._output:
                envelope.ready.append(envelope.wrap(self._output))
                self._output.clear()
            envelope.ready.append(data)
            self.buffered += len(data)
            if self.buffered > self.limit:
                self.congested = True

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        output, envelope = self._output, self._envelope
        if self._unsent or self._gone:
            return
        if output or (envelope is not None and envelope.ready):
            if envelope is not None:
                data = envelope.take(output)
            else:
                data = output[0] if len(output) == 1 else b"".join(output)
            output.clear()
            self.answered = True
            self._reactor.statistics.bytes_sent += len(data)
            self.listener.bytes_sent += len(data)
            if self._layer is not None:
                data = self._encrypt(data)
        elif self._layer is not None:
            data = self._layer.send(b"")
        else:
            data = b""
        if data:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self.lose(f"cannot send: {error.strerror}")
                return
            if sent < len(data):
                self._unsent = memoryview(data)[sent:]
                self.buffered = len(self._unsent)
                self._wait_for(self._reactor.stalled_timeout())
                self._watch(self._interest | _OUT)
                return
        self.buffered = 0
        self._all_sent()

    def _encrypt(self, data: bytes) -> bytes:
        assert self._layer is not None
        try:
            return self._layer.send(data)
        except ssl.SSLError as error:
            self.lose(f"TLS: {error.reason}")
            return b""

    def _all_sent(self) -> None:
        if self._closing is not None:
            self._finish()
        elif self.congested:
            self.congested = False
            self._protocol.writable()

    def on_writable(self) -> None:
        """The socket takes more."""
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lose(f"cannot send: {error.strerror}")
            return
        self._unsent = self._unsent[sent:]
        self.buffered -= sent
        if self._unsent:
            self._wait_for(self._reactor.stalled_timeout())
            return
        self._unsent = b""
        self._reactor.waiting.discard(self)
        self._watch(self._interest & ~_OUT)
        self.flush()

    # -- input -----------------------------------------------------------------------------------

    def on_readable(self, now: float) -> None:
        """Take what has come, up to the share of one tick."""
        for _ in range(_RECVS_PER_TICK):
            try:
                data = self._recv(_RECV_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.lose(f"cannot receive: {error.strerror}")
                return
            if self._closing is not None:
                if not data:
                    self.lose(self._closing)
                    return
                continue  # lingering: the peer has not heard yet that nobody listens
            if not data:
                if self._is_connected:
                    self._protocol.end_of_stream()
                self.close("the client closed the connection")
                return
            if self._layer is not None:
                self._receive_tls(self._layer, data, now)
            else:
                self._reactor.statistics.bytes_received += len(data)
                self.listener.bytes_received += len(data)
                self._protocol.receive(data, now)
            if len(data) < _RECV_SIZE or self._paused or self._gone:
                return

    def _receive_tls(self, layer: TlsLayer, data: bytes, now: float) -> None:
        was_established = layer.is_established
        try:
            plain, ended = layer.receive(data)
        except ssl.SSLError as error:
            self._reactor.dirty.append(self)  # an alert may wait in the layer
            self.close(f"TLS: {error.reason or error}", linger=True)
            return
        if not was_established:
            self._reactor.dirty.append(self)
            if layer.is_established:
                self._is_connected = True
                self._protocol.connected(self, now)
        if plain:
            self._reactor.statistics.bytes_received += len(plain)
            self.listener.bytes_received += len(plain)
            self._protocol.receive(plain, now)
        if ended and self._closing is None:
            if self._is_connected:
                self._protocol.end_of_stream()
            self.close("the client ended TLS")

    def hand_over(self, protocol: Protocol) -> None:
        """From now on this protocol is told what happens here."""
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Take no more from the peer until `resume_reading`."""
        if not self._paused:
            self._paused = True
            self._watch(self._interest & ~_IN)

    def resume_reading(self) -> None:
        """Take input again."""
        if self._paused:
            self._paused = False
            self._watch(self._interest | _IN)

    # -- the end ---------------------------------------------------------------------------------

    def close(self, reason: str, *, linger: bool = False) -> None:
        """Send what waits and close."""
        if self._closing is not None:
            return
        self._closing = reason
        self._wait_until = 0.0
        if linger:
            self._is_lingering = True
            self._wait_for(_LINGER_S)
            if self._paused:
                self.resume_reading()
        else:
            self.pause_reading()
            if self._unsent:
                self._wait_for(_CLOSE_TIMEOUT_S)
        self._reactor.dirty.append(self)

    def _finish(self) -> None:
        """Everything is sent and nothing more is to be said."""
        assert self._closing is not None
        if self._layer is not None and self._layer.is_established:
            try:
                self._socket.send(self._layer.close())
            except OSError:
                pass  # it is a courtesy
        if self._is_lingering:
            try:
                self._socket.shutdown(socket.SHUT_WR)
                self._reactor.wait_for(self)
                return
            except OSError:
                pass  # the peer has gone already
        self.lose(self._closing)

    def lose(self, reason: str) -> None:
        """The connection is gone, or is cut now."""
        if self._gone:
            return
        self._gone = True
        self._closing = self._closing or reason
        self._output.clear()
        self._envelope = None
        self._unsent = b""
        self.congested = False
        self._reactor.forget(self)
        self._socket.close()
        if self._is_connected:
            self._protocol.lost(self._closing)

    def is_overdue(self, now: float) -> bool:
        """Whether the peer has taken nothing for too long."""
        return now >= self._wait_until

    def give_up(self) -> None:
        """Cut the connection of a peer that takes nothing."""
        self.lose(self._closing or "the client does not read what is sent to it")

    def _wait_for(self, seconds: float) -> None:
        if self._closing is not None:
            if not self._wait_until:
                self._wait_until = self._reactor.timers.now + min(seconds, _CLOSE_TIMEOUT_S)
        else:
            self._wait_until = self._reactor.timers.now + seconds
        self._reactor.wait_for(self)

    def _watch(self, interest: int) -> None:
        if interest != self._interest and not self._gone:
            self._interest = interest
            self._reactor.epoll.modify(self.fd, interest)


class _Envelope:
    """What goes around all that is written in one tick (`CarrierEndpoint.envelop`)."""

    __slots__ = ("ready", "wrap")

    def __init__(self, wrap: Callable[[list[bytes]], bytes], ready: list[bytes]) -> None:
        self.wrap = wrap
        self.ready = ready
        """What goes out before it as it is."""

    def take(self, output: list[bytes]) -> bytes:
        """What to send now."""
        if not self.ready:
            return self.wrap(output)
        if output:
            self.ready.append(self.wrap(output))
        data = b"".join(self.ready)
        self.ready.clear()
        return data


class _StreamWatch:
    """Notices when tick after tick brings input from one endpoint alone, to which nothing is sent.

    Whoever waits for answers is not slowed down: not that peer, by definition, and not another,
    whose input starts the count again.
    """

    __slots__ = ("_endpoints", "_fd", "_ticks")

    def __init__(self, endpoints: "dict[int, SocketEndpoint | ProxyHeader | Listener]") -> None:
        self._endpoints = endpoints
        self._fd = -1
        self._ticks = 0

    def is_there(self, events: list[tuple[int, int]]) -> bool:
        """Whether, after a tick with these events, a stream has lasted long enough to pause."""
        fd = events[0][0] if len(events) == 1 else -1
        endpoint = self._endpoints.get(fd)
        if fd == self._fd and isinstance(endpoint, SocketEndpoint) and not endpoint.answered:
            self._ticks += 1
            return self._ticks > _STREAM_AFTER_TICKS
        if isinstance(endpoint, SocketEndpoint):
            endpoint.answered = False
        self._fd = fd
        self._ticks = 0
        return False


class Reactor:
    """Serves connections until cancelled."""

    def __init__(
        self,
        timers: Timers,
        limits: Limits,
        statistics: Statistics,
        log: Log,
        end_of_tick: Callable[[], None],
        *,
        linger_s: float = 0.0,
    ) -> None:
        """`end_of_tick` is called once per tick, before output is sent (the node's commit).

        After work the reactor waits `linger_s` in its own epoll for more before it goes back to
        trio, whose other tasks wait as long. A process that is nothing but a node lingers
        (see `LINGER_S`); one that shares the thread with other work must not.
        """
        self.timers = timers
        self.limits = limits
        self.statistics = statistics
        self.log = log
        self.epoll = select.epoll()
        self.dirty: list[SocketEndpoint] = []
        """Endpoints that have output, or are to be closed, at the end of this tick."""
        self.waiting: set[SocketEndpoint] = set()
        """Endpoints whose peers have to take something before a deadline."""
        self.endpoints: dict[int, SocketEndpoint | ProxyHeader | Listener] = {}
        self.connection_count = 0
        self._end_of_tick = end_of_tick
        self._linger_s = linger_s
        self._per_address: dict[str, int] = {}
        self.listeners: list[Listener] = []
        self._is_sweeping = False
        self._ticks = 0
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Edge-triggered: each write wakes us once, and it is never read, which saves a system call.
        self.epoll.register(self._alarm, _IN | select.EPOLLET)
        self._alarm_at = float("inf")
        self._alarm_scope: trio.CancelScope | None = None
        self._calls: deque[Callable[[], None]] = deque()  # appended to by any thread
        self._all_gone = trio.Event()
        timers.now = monotonic()

    # -- listeners and connections ---------------------------------------------------------------

    def listen(
        self,
        address: Address,
        make_protocol: Callable[[], Protocol | Carrier],
        *,
        tls: TlsContext | None = None,
        trusted: Networks | None = None,
        proxied: bool = False,
        name: str = "",
        reuse_port: bool = False,
    ) -> Listener:
        """Open a listener; it accepts as soon as `run` runs. Raises `CannotListen`.

        `trusted` proxies have many clients, so `connections_per_address_max` is not for them. When
        the listener is `proxied` they begin with a PROXY header that says for whom they connect.
        """
        listening = open_listening_socket(address, reuse_port=reuse_port)
        if address.path is None:
            host, port = listening.getsockname()[:2]
            address = Address(host, port)
        listener = Listener(
            self, listening, address, make_protocol, tls, trusted, proxied=proxied, name=name
        )
        self.endpoints[listener.fd] = listener
        self.listeners.append(listener)
        return listener

    def adopt(
        self,
        connection: socket.socket,
        name: Any,  # what accept says of the peer: a tuple, or text for a Unix socket
        listener: Listener,
        now: float,
    ) -> None:
        """Serve an accepted connection, unless a limit forbids it."""
        connection.setblocking(False)
        if connection.family == socket.AF_UNIX:
            peer = "unix"
        else:
            peer = plain_ip(str(name[0]))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.statistics.sockets_opened += 1
        if not listener.proxied or peer not in listener.trusted:
            self._serve(connection, peer, listener, now)
        elif self.connection_count >= self.limits.connections_max:
            self._refuse(connection, peer, f"connections_max = {self.limits.connections_max}")
        else:
            self._await_header(connection, peer, listener, now)

    def _await_header(
        self, connection: socket.socket, proxy: str, listener: Listener, now: float
    ) -> None:
        fd = connection.fileno()

        def forget() -> bool:
            if self.endpoints.get(fd) is not header:
                return False
            timer.cancel()
            del self.endpoints[fd]
            self.epoll.unregister(fd)
            self.connection_count -= 1
            return True

        def done(client: str | None, now: float) -> None:
            if forget():
                self._serve(connection, client or proxy, listener, now)

        def failed(reason: str) -> None:
            if forget():
                self.statistics.drop("connection: no PROXY header")
                self.log.debug("connection refused", address=proxy, rule=reason)
                connection.close()
                self._tell_when_all_are_gone()

        header = ProxyHeader(connection, done, failed)
        self.endpoints[fd] = header
        self.epoll.register(fd, _IN)
        self.connection_count += 1
        timeout_s = self.limits.connect_timeout_s
        timer = self.timers.at(now + timeout_s, lambda _: failed("no PROXY header in time"))

    def _refuse(self, connection: socket.socket, peer: str, limit: str) -> None:
        self.statistics.drop("connection: limit reached")
        self.log.debug("connection refused", address=peer, rule=f"{limit} is reached")
        connection.close()

    def _serve(self, connection: socket.socket, peer: str, listener: Listener, now: float) -> None:
        same = self._per_address.get(peer, 0)
        limits = self.limits
        if self.connection_count >= limits.connections_max:
            self._refuse(connection, peer, f"connections_max = {limits.connections_max}")
            return
        if same >= limits.connections_per_address_max and not (
            peer == "unix" or peer in listener.trusted
        ):
            limit = limits.connections_per_address_max
            self._refuse(connection, peer, f"connections_per_address_max = {limit}")
            return
        tls = listener.tls
        protocol = listener.make_protocol()
        self._per_address[peer] = same + 1
        self.connection_count += 1
        layer = TlsLayer(tls.context) if tls is not None else None
        endpoint = SocketEndpoint(self, connection, peer, protocol, layer, listener)
        listener.connections += 1
        listener.connections_opened += 1
        self.endpoints[endpoint.fd] = endpoint
        self.epoll.register(endpoint.fd, _IN)
        if layer is None:
            try:
                protocol.connected(endpoint, now)
            except Exception:  # noqa: BLE001 - a fault of ours costs one connection
                self._contain(endpoint)
        else:
            self.timers.at(
                now + self.limits.connect_timeout_s, lambda _: self._check_handshake(endpoint)
            )

    def _check_handshake(self, endpoint: SocketEndpoint) -> None:
        layer = endpoint.tls
        if layer is not None and not layer.is_established:
            self.statistics.drop("connection: no TLS handshake in time")
            endpoint.lose("no TLS handshake in time")

    def forget(self, endpoint: SocketEndpoint) -> None:
        """The endpoint is about to close its socket."""
        self.epoll.unregister(endpoint.fd)
        del self.endpoints[endpoint.fd]
        self.waiting.discard(endpoint)
        endpoint.listener.connections -= 1
        self.connection_count -= 1
        left = self._per_address[endpoint.peer] - 1
        if left:
            self._per_address[endpoint.peer] = left
        else:
            del self._per_address[endpoint.peer]
        self._tell_when_all_are_gone()

    def _tell_when_all_are_gone(self) -> None:
        if self.connection_count == 0:
            self._all_gone.set()

    def set_limits(self, limits: Limits) -> None:
        """Use these limits from now on, for connections that are there too."""
        self.limits = limits
        for endpoint in self.endpoints.values():
            if isinstance(endpoint, SocketEndpoint):
                endpoint.limit = limits.output_buffer_max_bytes

    # -- deadlines of slow peers -----------------------------------------------------------------

    def stalled_timeout(self) -> float:
        """How long a peer may take nothing, in seconds."""
        return self.limits.stalled_timeout_s

    def wait_for(self, endpoint: SocketEndpoint) -> None:
        """Give the endpoint up when its deadline passes."""
        self.waiting.add(endpoint)
        if not self._is_sweeping:
            self._is_sweeping = True
            self.timers.after(_SWEEP_EVERY_S, self._sweep)

    def _sweep(self, now: float) -> None:
        for endpoint in [each for each in self.waiting if each.is_overdue(now)]:
            endpoint.give_up()
        self._is_sweeping = bool(self.waiting)
        if self._is_sweeping:
            self.timers.at(now + _SWEEP_EVERY_S, self._sweep)

    # -- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sleep_until_deadlines)
            try:
                while True:
                    self._set_alarm()
                    await trio.lowlevel.wait_readable(self.epoll.fileno())
                    await self._work()
            finally:
                nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        """Run ticks as long as there is something to do, with turns for trio's other tasks."""
        poll = self.epoll.poll
        turn_at = monotonic() + _TRIO_TURN_EVERY_S
        stream = _StreamWatch(self.endpoints)
        while True:
            events = poll(0 if self.dirty else self._linger_s, _EVENTS_PER_POLL)
            if not events and not self.dirty:
                return
            now = monotonic()
            self._ticks += 1
            if self._ticks % _MEASURED_TICKS:
                self.tick(events, now)
            else:
                self._measure_tick(events, now)
            if stream.is_there(events):
                sleep(_STREAM_PAUSE_S)  # noqa: ASYNC251 - trio's own timers are too coarse for it
            if now >= turn_at:
                self._set_alarm()
                await trio.lowlevel.checkpoint()
                turn_at = monotonic() + _TRIO_TURN_EVERY_S

    def _measure_tick(self, events: list[tuple[int, int]], now: float) -> None:
        statistics = self.statistics
        sent = statistics.publish_sent
        self.tick(events, now)
        took_s = monotonic() - now
        statistics.tick_s.observe(took_s)
        if statistics.publish_sent != sent:
            statistics.delivery_s.observe(took_s)

    def tick(self, events: list[tuple[int, int]], now: float) -> None:
        """Handle these events of the inner epoll and whatever is due; send what there is."""
        timers = self.timers
        timers.now = now
        endpoints = self.endpoints
        for fd, event in events:
            endpoint = endpoints.get(fd)
            if endpoint is None:
                continue  # the alarm, or it was closed earlier in this tick
            try:
                if event & _IN:
                    endpoint.on_readable(now)
                elif event & _GONE:
                    endpoint.lose("the connection broke")
                if event & _OUT:
                    endpoint.on_writable()
            except Exception:  # noqa: BLE001 - a fault of ours costs one connection
                self._contain(endpoint)
        deadline = timers.next_deadline()
        while deadline is not None and deadline <= now:
            try:
                timers.run(now)
            except Exception:  # noqa: BLE001 - a fault of ours costs one callback
                self._contain(None)
            deadline = timers.next_deadline()
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:  # noqa: BLE001 - as above
                self._contain(None)
        # What is to be sent goes first: a send lets the storage thread have the interpreter, if it
        # has something to do, and then waits to get it back.
        self._send()
        try:
            self._end_of_tick()
        except Exception:  # noqa: BLE001 - as above
            self._contain(None)
        self._send()

    def _send(self) -> None:
        while self.dirty:
            dirty, self.dirty = self.dirty, []
            for endpoint in dirty:
                try:
                    endpoint.flush()
                except Exception:  # noqa: BLE001 - a fault of ours costs one connection
                    self._contain(endpoint)

    def _contain(self, endpoint: SocketEndpoint | ProxyHeader | Listener | None) -> None:
        """A fault in our own code costs the connection in which it showed, not the node."""
        self.statistics.drop("connection: internal error")
        self.log.warning("internal error", traceback=traceback.format_exc(), advice="report it")
        if "pytest" in sys.modules:
            traceback.print_exc()
        if isinstance(endpoint, SocketEndpoint | ProxyHeader):
            try:
                endpoint.lose("internal error")
            except Exception:  # noqa: BLE001 - it is closed already: only its protocol failed again
                self.log.warning("internal error", traceback=traceback.format_exc())

    def _set_alarm(self) -> None:
        deadline = self.timers.next_deadline()
        if deadline is not None and deadline < self._alarm_at and self._alarm_scope is not None:
            self._alarm_at = deadline
            self._alarm_scope.deadline = trio.current_time() + max(0.0, deadline - monotonic())

    async def _sleep_until_deadlines(self) -> None:
        while True:
            with trio.CancelScope() as self._alarm_scope:
                self._set_alarm()
                await trio.sleep_forever()
            self._alarm_at = float("inf")
            os.eventfd_write(self._alarm, 1)

    # -- the end ---------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for listener in self.listeners:
            self.endpoints.pop(listener.fd, None)
            listener.close()
        self.listeners.clear()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every connection has closed, at most so long; whether all have."""
        self._all_gone = trio.Event()
        if self.connection_count:
            os.eventfd_write(self._alarm, 1)
            with trio.move_on_after(timeout_s):
                await self._all_gone.wait()
        return self.connection_count == 0

    def call_soon(self, call: Callable[[], None]) -> None:
        """Make this call in the next tick, which comes at once. May be called from any thread."""
        self._calls.append(call)
        os.eventfd_write(self._alarm, 1)

    def close(self) -> None:
        """Close everything at once."""
        self.stop_listening()
        for endpoint in list(self.endpoints.values()):
            endpoint.lose("the node stops")
        self.epoll.close()
        os.close(self._alarm)
