"""The reactor on real sockets, its ticks made by hand: endpoints, limits, faults, listeners."""

import gc
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.broker.net import Endpoint
from ganglion.broker.net import reactor as reactor_module
from ganglion.broker.net.addresses import Address
from ganglion.broker.net.listener import CannotListen
from tests.broker.net.hand_driven import Echo, HandDriven, Talker

MIB = 1 << 20


@pytest.fixture
def hand() -> Iterator[HandDriven]:
    """A reactor."""
    with HandDriven() as driven:
        yield driven


@pytest.fixture
def small_buffer() -> Iterator[HandDriven]:
    """A reactor whose endpoints are congested above 64 KiB."""
    with HandDriven(Limits(output_buffer_max_bytes=65_536)) as driven:
        yield driven


class TestData:
    """Bytes in, bytes out."""

    def test_echo(self, hand: HandDriven) -> None:
        """What a client sends is received, and what is written arrives, for several at once."""
        listener = hand.listen(Echo)
        clients = [hand.connect(listener) for _ in range(20)]
        for number, client in enumerate(clients):
            client.send(b"hello %d" % number)
        for number, client in enumerate(clients):
            expected = b"hello %d" % number
            assert hand.receive(client, len(expected)) == expected
        assert hand.reactor.connection_count == 20
        assert hand.statistics.sockets_opened == 20
        assert hand.statistics.bytes_received == hand.statistics.bytes_sent > 0

    def test_a_megabyte_both_ways(self, hand: HandDriven) -> None:
        """Large data arrives whole and in order."""
        client, protocol = hand.join(hand.listen(Echo))
        data = bytes(range(256)) * 8192
        hand.send(client, data)
        assert hand.receive(client, len(data)) == data
        assert bytes(protocol.received) == data

    def test_output_is_sent_once_per_tick(self, hand: HandDriven) -> None:
        """Many writes of a tick leave together at its end, behind the commit."""
        client, protocol = hand.join(hand.listen())
        for number in range(100):
            protocol.endpoint.write(b"%02d" % number)
        assert protocol.endpoint.buffered == 200
        with pytest.raises(BlockingIOError):
            client.recv(1)
        ended = hand.ticks_ended
        hand.tick()
        assert hand.ticks_ended == ended + 1
        assert protocol.endpoint.buffered == 0
        assert client.recv(1000) == b"".join(b"%02d" % number for number in range(100))

    def test_a_tick_takes_a_bounded_share(
        self, hand: HandDriven, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tick receives four times from an endpoint at most, however much waits there."""
        monkeypatch.setattr(reactor_module, "_RECV_SIZE", 1024)
        client, protocol = hand.join(hand.listen())
        client.send(b"x" * 100_000)
        hand.tick(1.0)
        assert protocol.chunks == [1024] * 4
        hand.until(lambda: len(protocol.received) == 100_000)

    def test_a_firehose_does_not_starve_others(self, hand: HandDriven) -> None:
        """A tick takes at most 256 KiB from an endpoint, and something from all that are ready."""
        listener = hand.listen()
        firehose, greedy = hand.join(listener)
        modest, served = hand.join(listener)
        give_up_at = time.monotonic() + 5
        sent = 0
        while sent < MIB and time.monotonic() < give_up_at:
            try:
                sent += firehose.send(b"x" * 65_536)
            except BlockingIOError:
                break
        assert sent > 300_000, "the kernel takes more than a tick does"
        modest.send(b"hello")
        hand.tick(1.0)
        assert 0 < len(greedy.received) <= 256 * 1024
        hand.until(lambda: bytes(served.received) == b"hello")
        hand.until(lambda: len(greedy.received) == sent)
        assert max(greedy.chunks) <= 65_536

    def test_pause_and_resume(self, hand: HandDriven) -> None:
        """A paused endpoint takes nothing, and all of it once it is resumed."""
        listener = hand.listen()
        client, protocol = hand.join(listener)
        other, other_protocol = hand.join(listener)
        protocol.endpoint.pause_reading()
        protocol.endpoint.pause_reading()
        client.send(b"waits")
        other.send(b"does not")
        hand.until(lambda: other_protocol.received)
        hand.tick()
        assert not protocol.received
        protocol.endpoint.resume_reading()
        protocol.endpoint.resume_reading()
        hand.until(lambda: bytes(protocol.received) == b"waits")

    def test_pausing_while_reading(self, hand: HandDriven) -> None:
        """A protocol that pauses in `receive` gets no more in that tick."""

        class OneChunk(Talker):
            def receive(self, data: bytes, now: float) -> None:
                super().receive(data, now)
                self.endpoint.pause_reading()

        client, protocol = hand.join(hand.listen(OneChunk))
        hand.send(client, b"x" * 200_000)
        hand.until(lambda: protocol.chunks)
        for _ in range(5):
            hand.tick(0.01)
        assert len(protocol.chunks) == 1
        while len(protocol.received) < 200_000:
            protocol.endpoint.resume_reading()
            hand.tick(0.1)


class TestCongestion:
    """Receivers that do not keep up (DESIGN section 4)."""

    def _clog(self, hand: HandDriven) -> tuple[socket.socket, Talker, bytes]:
        client, protocol = hand.join(hand.listen(), receive_buffer=4096)
        data = bytes(range(256)) * (8 * MIB // 256)
        protocol.endpoint.write(data)
        hand.tick()
        assert protocol.endpoint.congested
        return client, protocol, data

    def test_a_slow_reader(self, small_buffer: HandDriven) -> None:
        """What is not taken waits, in order; `writable` tells the end of the congestion, once."""
        client, protocol, data = self._clog(small_buffer)
        protocol.endpoint.write(b"the end")
        buffered = small_buffer.protocols[0].endpoint.buffered
        assert 0 < buffered < len(data) + 7
        assert "writable" not in protocol.events
        assert small_buffer.receive(client, len(data)) == data
        assert small_buffer.receive(client, 7) == b"the end"
        small_buffer.until(lambda: not protocol.endpoint.congested)
        assert protocol.events.count("writable") == 1

    def test_transient_messages_are_dropped_and_counted(self, small_buffer: HandDriven) -> None:
        """`offer` to a congested endpoint drops so many messages and counts them."""
        client, protocol, data = self._clog(small_buffer)
        protocol.endpoint.offer(b"dropped", 7)
        protocol.endpoint.offer(b"dropped", 5)
        assert small_buffer.statistics.dropped["receiver is too slow"] == 12
        assert small_buffer.receive(client, len(data)) == data
        small_buffer.until(lambda: not protocol.endpoint.congested)
        protocol.endpoint.offer(b"taken", 1)
        assert small_buffer.receive(client, 5) == b"taken"

    def test_a_burst_of_one_tick_is_no_congestion(self, small_buffer: HandDriven) -> None:
        """A tick that has more than the limit for a peer that keeps up drops nothing."""
        client, protocol = small_buffer.join(small_buffer.listen())
        for _ in range(20):
            protocol.endpoint.offer(b"x" * 10_000, 1)
        small_buffer.tick()
        assert small_buffer.receive(client, 200_000) == b"x" * 200_000
        assert not small_buffer.statistics.dropped

    def test_memory_is_bounded_by_the_limit(self, small_buffer: HandDriven) -> None:
        """However much is offered, what waits stays near the limit."""
        _, protocol, _ = self._clog(small_buffer)
        before = small_buffer.protocols[0].endpoint.buffered
        for _ in range(1000):
            protocol.endpoint.offer(b"x" * 10_000, 1)
        assert small_buffer.protocols[0].endpoint.buffered == before

    @pytest.mark.slow
    def test_a_reader_that_never_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that takes no byte for `stalled_timeout_s` is cut; the others stay."""
        monkeypatch.setattr(reactor_module, "_SWEEP_EVERY_S", 0.05)
        limits = Limits(output_buffer_max_bytes=65_536, stalled_timeout_s=1)
        with HandDriven(limits) as hand:
            listener = hand.listen(Echo)
            other, _ = hand.join(listener)
            _client, protocol, _ = self._clog(hand)
            started = time.monotonic()
            hand.until(lambda: protocol.reasons)
            assert 0.9 < time.monotonic() - started < 5
            assert protocol.reasons == ["the client does not read what is sent to it"]
            other.send(b"still there")
            assert hand.receive(other, 11) == b"still there"

    @pytest.mark.slow
    def test_a_reader_that_reads_slowly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that goes on taking something is not cut."""
        monkeypatch.setattr(reactor_module, "_SWEEP_EVERY_S", 0.05)
        limits = Limits(output_buffer_max_bytes=65_536, stalled_timeout_s=1)
        with HandDriven(limits) as hand:
            client, protocol, _ = self._clog(hand)
            until = time.monotonic() + 1.6
            while time.monotonic() < until:
                hand.receive(client, 100_000)
                hand.tick(0.02)
            assert protocol.reasons == []

    def test_limits_that_change(self, small_buffer: HandDriven) -> None:
        """New limits hold for connections that are there."""
        _, protocol = small_buffer.join(small_buffer.listen())
        small_buffer.reactor.set_limits(replace(small_buffer.limits, output_buffer_max_bytes=4096))
        protocol.endpoint.write(b"x" * 5000)
        assert protocol.endpoint.congested


class TestEnds:
    """Connections that end, from either side."""

    def test_the_client_closes(self, hand: HandDriven) -> None:
        """End of stream, then lost, each once; nothing of the connection is left."""
        client, protocol = hand.join(hand.listen())
        client.close()
        hand.until(lambda: protocol.reasons)
        assert protocol.events == ["connected", "end of stream", "lost"]
        assert hand.reactor.connection_count == 0
        assert len(hand.reactor.endpoints) == 1, "the listener"
        for _ in range(3):
            hand.tick()
        assert protocol.events.count("lost") == 1

    def test_the_client_resets(self, hand: HandDriven) -> None:
        """A reset is a loss, also while the endpoint is paused."""
        for paused in (False, True):
            client, protocol = hand.join(hand.listen())
            if paused:
                protocol.endpoint.pause_reading()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            hand.until_lost(protocol)
            assert protocol.events[-1] == "lost"

    def test_half_closed_clients_get_the_answer(self, hand: HandDriven) -> None:
        """A client that sends its last word and shuts down its side still reads the answer."""
        client, protocol = hand.join(hand.listen(Echo))
        client.send(b"last word")
        client.shutdown(socket.SHUT_WR)
        assert hand.receive_to_end(client) == b"last word"
        assert protocol.reasons == ["the client closed the connection"]

    def test_close_sends_what_was_written(self, small_buffer: HandDriven) -> None:
        """What was written before `close` arrives, however much; what comes after it does not."""
        client, protocol = small_buffer.join(small_buffer.listen())
        data = b"x" * (8 * MIB)
        protocol.endpoint.write(data)
        protocol.endpoint.close("done")
        protocol.endpoint.close("again")
        protocol.endpoint.write(b"too late")
        protocol.endpoint.offer(b"too late", 1)
        assert small_buffer.receive_to_end(client) == data
        assert protocol.reasons == ["done"]
        assert protocol.events == ["connected", "lost"]

    def test_linger_lets_a_talking_peer_read_why(self, hand: HandDriven) -> None:
        """With linger the last packet arrives although the peer goes on sending."""
        client, protocol = hand.join(hand.listen())
        hand.send(client, b"x" * 500_000)
        protocol.endpoint.pause_reading()
        protocol.endpoint.write(b"go away")
        protocol.endpoint.close("refused", linger=True)
        hand.tick()
        client.send(b"more and more")
        assert hand.receive_to_end(client) == b"go away"
        before = len(protocol.received)
        client.close()
        hand.until(lambda: protocol.reasons)
        assert protocol.reasons == ["refused"]
        assert len(protocol.received) == before, "nobody listens any more"

    def test_linger_behind_a_slow_reader(self, small_buffer: HandDriven) -> None:
        """Linger waits for output that could not be sent at once, and only then for the peer."""
        client, protocol = small_buffer.join(small_buffer.listen(), receive_buffer=4096)
        data = b"x" * (8 * MIB)
        protocol.endpoint.write(data)
        small_buffer.tick()
        client.send(b"unread")
        protocol.endpoint.write(b"the end")
        protocol.endpoint.close("refused", linger=True)
        client.send(b"unread too")
        got = small_buffer.receive(client, len(data))
        assert got == data
        client.send(b"and more")
        # what was written behind the part that was on its way arrives too, then an orderly end
        assert small_buffer.receive_to_end(client) == b"the end"

    def test_linger_ends(self, hand: HandDriven, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that does not close is cut after a while."""
        monkeypatch.setattr(reactor_module, "_SWEEP_EVERY_S", 0.02)
        monkeypatch.setattr(reactor_module, "_LINGER_S", 0.05)
        client, protocol = hand.join(hand.listen())
        protocol.endpoint.close("refused", linger=True)
        hand.until(lambda: protocol.reasons)
        assert protocol.reasons == ["refused"]
        assert hand.reactor.connection_count == 0
        assert client.fileno() >= 0

    def test_a_closing_peer_that_never_reads_is_cut(
        self, small_buffer: HandDriven, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`close` waits for its output a bounded time only."""
        monkeypatch.setattr(reactor_module, "_SWEEP_EVERY_S", 0.02)
        monkeypatch.setattr(reactor_module, "_CLOSE_TIMEOUT_S", 0.05)
        _client, protocol = small_buffer.join(small_buffer.listen(), receive_buffer=4096)
        protocol.endpoint.write(b"x" * (16 * MIB))
        small_buffer.tick()
        protocol.endpoint.close("done")
        small_buffer.until(lambda: protocol.reasons)
        assert protocol.reasons == ["done"]

    def test_a_broken_pipe(self, hand: HandDriven) -> None:
        """Writing to a peer that is gone is a loss, not an error."""
        client, protocol = hand.join(hand.listen())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        for _ in range(3):
            protocol.endpoint.write(b"x" * 1000)
            hand.tick(0.01)
        hand.until(lambda: protocol.reasons)
        assert protocol.events.count("lost") == 1

    def test_closing_the_reactor(self) -> None:
        """`close` ends every connection and tells its protocol."""
        with HandDriven() as hand:
            listener = hand.listen()
            pairs = [hand.join(listener) for _ in range(3)]
        assert all(protocol.reasons == ["the node stops"] for _, protocol in pairs)

    def test_no_descriptors_are_leaked(self) -> None:
        """After many connections and a whole life there are as many descriptors as before."""
        gc.collect()
        before = len(list(Path("/proc/self/fd").iterdir()))
        with HandDriven() as hand:
            listener = hand.listen(Echo)
            for _ in range(50):
                client, protocol = hand.join(listener)
                client.send(b"x")
                hand.receive(client, 1)
                client.close()
                hand.until_lost(protocol)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


class TestLimits:
    """Connections in total and per address."""

    def test_in_total(self) -> None:
        """One over `connections_max` is closed when accepted; a place that is freed is used."""
        with HandDriven(Limits(connections_max=2)) as hand:
            listener = hand.listen(Echo)
            first, protocol = hand.join(listener)
            hand.join(listener)
            third = hand.connect(listener)
            assert hand.receive_to_end(third) == b""
            assert hand.statistics.dropped["connection: limit reached"] == 1
            refusals = [details for event, details in hand.log.events if "refused" in event]
            assert refusals[0]["rule"] == "connections_max = 2 is reached"
            first.close()
            hand.until(lambda: protocol.reasons)
            fourth, _ = hand.join(listener)
            fourth.send(b"x")
            assert hand.receive(fourth, 1) == b"x"

    def test_per_address(self, tmp_path: Path) -> None:
        """Addresses are counted apart; Unix sockets are not counted."""
        with HandDriven(Limits(connections_per_address_max=1)) as hand:
            listener = hand.listen(Echo)
            hand.join(listener)
            assert hand.receive_to_end(hand.connect(listener)) == b""
            other = socket.create_connection(
                (listener.address.host, listener.address.port), source_address=("127.0.0.2", 0)
            )
            hand.until(lambda: len(hand.protocols) == 2)
            assert hand.protocols[1].endpoint.peer == "127.0.0.2"
            other.close()
            unix = hand.listen(Echo, Address(path=str(tmp_path / "s")))
            for _ in range(3):
                hand.join(unix)
            hand.until(lambda: hand.protocols[1].reasons)
            assert hand.reactor._per_address == {"127.0.0.1": 1, "unix": 3}


class TestFaults:
    """A fault in a protocol costs the connection in which it showed."""

    @pytest.mark.parametrize(
        "where", ["connected", "receive", "end_of_stream", "writable", "lost", "receive and lost"]
    )
    def test_exceptions(self, where: str, capsys: pytest.CaptureFixture[str]) -> None:
        """An exception anywhere in a protocol closes its connection; the others are served."""

        class Broken(Talker):
            def connected(self, endpoint: Endpoint, now: float) -> None:
                super().connected(endpoint, now)
                self._fail("connected")

            def receive(self, data: bytes, now: float) -> None:
                super().receive(data, now)
                self._fail("receive")

            def end_of_stream(self) -> None:
                super().end_of_stream()
                self._fail("end_of_stream")

            def writable(self) -> None:
                super().writable()
                self._fail("writable")

            def lost(self, reason: str) -> None:
                super().lost(reason)
                self._fail("lost")

            def _fail(self, here: str) -> None:
                if here in where.split(" and "):
                    raise ZeroDivisionError(here)

        with HandDriven(Limits(output_buffer_max_bytes=4096)) as hand:
            good, _ = hand.join(hand.listen(Echo))
            bad, protocol = hand.join(hand.listen(Broken))
            if where == "writable":
                protocol.endpoint.write(b"x" * 5000)
                hand.receive(bad, 5000)
            elif where != "connected":
                bad.send(b"x")
                hand.until(lambda: protocol.received)
                bad.close()
            hand.until(lambda: protocol.reasons)
            hand.until(lambda: hand.reactor.connection_count == 1)
            assert protocol.events.count("lost") == 1
            good.send(b"fine")
            assert hand.receive(good, 4) == b"fine"
            assert hand.statistics.dropped["connection: internal error"] == 1
            reports = [details for event, details in hand.log.events if event == "internal error"]
            assert "ZeroDivisionError" in reports[0]["traceback"]
        assert "ZeroDivisionError" in capsys.readouterr().err

    def test_timers(self, hand: HandDriven, capsys: pytest.CaptureFixture[str]) -> None:
        """An exception in a timer's callback costs that callback; the others come in the tick."""
        called: list[str] = []

        def broken(_now: float) -> None:
            raise ZeroDivisionError

        hand.timers.at(0, broken)
        hand.timers.at(0, lambda _: called.append("other"))
        hand.tick()
        assert called == ["other"]
        assert hand.statistics.dropped["connection: internal error"] == 1
        assert "ZeroDivisionError" in capsys.readouterr().err

    def test_calls(self, hand: HandDriven, capsys: pytest.CaptureFixture[str]) -> None:
        """An exception in a call from elsewhere costs that call."""
        called: list[str] = []
        hand.reactor.call_soon(lambda: called.append(str(1 // 0)))
        hand.reactor.call_soon(lambda: called.append("other"))
        hand.until(lambda: called)
        assert called == ["other"]
        assert "ZeroDivisionError" in capsys.readouterr().err


class TestListeners:
    """Where a reactor listens."""

    def test_the_chosen_port(self, hand: HandDriven) -> None:
        """Port 0 lets the system choose: the listener says which it is."""
        listener = hand.listen()
        assert listener.address.host == "127.0.0.1"
        assert listener.address.port > 0

    def test_a_port_in_use(self, hand: HandDriven) -> None:
        """An address that cannot be had says which and what to do."""
        listener = hand.listen()
        with pytest.raises(CannotListen, match=r"in use.*stop what uses it"):
            hand.listen(address=listener.address)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
    def test_an_impossible_address(self, hand: HandDriven, host: str) -> None:
        """An address that is not this machine's, or nobody's, is refused with its name."""
        with pytest.raises(CannotListen, match=host):
            hand.listen(address=Address(host, 0))

    def test_reuse_port(self, hand: HandDriven) -> None:
        """With `reuse_port` several reactors may share an address."""
        reactor = hand.reactor
        first = reactor.listen(Address("127.0.0.1", 0), Talker, reuse_port=True)
        second = reactor.listen(first.address, Talker, reuse_port=True)
        assert second.address == first.address

    def test_localhost(self, hand: HandDriven) -> None:
        """``localhost`` is the loopback address."""
        assert hand.listen(address=Address("localhost", 0)).address.host == "127.0.0.1"

    @pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
    def test_ipv6(self, hand: HandDriven) -> None:
        """An IPv6 listener serves IPv6 clients, beside an IPv4 one on the same port."""
        try:
            listener = hand.listen(Echo, Address("::1", 0))
        except CannotListen as error:
            pytest.skip(reason=f"no IPv6 on this machine: {error}")
        for _ in range(50):  # until its port is free for IPv4 too
            try:
                hand.listen(Echo, Address("127.0.0.1", listener.address.port))
                break
            except CannotListen:
                listener = hand.listen(Echo, Address("::1", 0))
        else:
            pytest.fail("no port is free for both")
        client, protocol = hand.join(listener)
        client.send(b"six")
        assert hand.receive(client, 3) == b"six"
        assert protocol.endpoint.peer == "::1"

    def test_stop_listening(self, hand: HandDriven) -> None:
        """After it nobody new gets in, and who is there stays."""
        listener = hand.listen(Echo)
        client, _ = hand.join(listener)
        address = (listener.address.host, listener.address.port)
        hand.reactor.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        client.send(b"x")
        assert hand.receive(client, 1) == b"x"

    def test_a_flood_of_connections(self, hand: HandDriven) -> None:
        """A tick accepts a bounded number: who is there is served meanwhile."""
        listener = hand.listen(Echo)
        client, _ = hand.join(listener)
        flood = [hand.connect(listener) for _ in range(200)]
        client.send(b"x")
        accepted = len(hand.protocols)
        hand.tick(1.0)
        assert 0 < len(hand.protocols) - accepted <= 64
        hand.until(lambda: len(hand.protocols) == 201)
        assert hand.receive(client, 1) == b"x"
        assert len(flood) == 200


class TestUnixSockets:
    """Listeners on a path."""

    def test_echo(self, hand: HandDriven, tmp_path: Path) -> None:
        """A Unix socket serves like TCP; its peer is ``unix``, and the path goes with it."""
        path = tmp_path / "broker.sock"
        listener = hand.listen(Echo, Address(path=str(path)))
        client, protocol = hand.join(listener)
        client.send(b"local")
        assert hand.receive(client, 5) == b"local"
        assert protocol.endpoint.peer == "unix"
        assert path.is_socket()
        hand.reactor.stop_listening()
        assert not path.exists()

    def test_a_stale_socket_is_replaced(self, hand: HandDriven, tmp_path: Path) -> None:
        """The socket of a process that is gone does not keep a new one from starting."""
        path = tmp_path / "stale.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        assert path.is_socket()
        client, _ = hand.join(hand.listen(Echo, Address(path=str(path))))
        client.send(b"x")
        assert hand.receive(client, 1) == b"x"

    def test_a_live_one_is_not(self, hand: HandDriven, tmp_path: Path) -> None:
        """The socket of a process that answers is left alone."""
        path = str(tmp_path / "live.sock")
        listener = hand.listen(Echo, Address(path=path))
        with pytest.raises(CannotListen, match="in use"):
            hand.listen(address=Address(path=path))
        client, _ = hand.join(listener)
        client.send(b"x")
        assert hand.receive(client, 1) == b"x"

    def test_another_file_is_not(self, hand: HandDriven, tmp_path: Path) -> None:
        """A file that is no socket is never removed."""
        path = tmp_path / "precious"
        path.write_text("data")
        with pytest.raises(CannotListen):
            hand.listen(address=Address(path=str(path)))
        assert path.read_text() == "data"

    def test_an_impossible_path(self, hand: HandDriven, tmp_path: Path) -> None:
        """A path that cannot be bound is refused with its name."""
        path = tmp_path / "missing" / "s"
        with pytest.raises(CannotListen, match="missing"):
            hand.listen(address=Address(path=str(path)))


# -- one protocol carries another -----------------------------------------------------------------


def bracketed(parts: list[bytes]) -> bytes:
    """An envelope whose ends and parts a test can see."""
    return b"<" + b"|".join(parts) + b">"


def test_an_envelope_is_put_around_all_that_a_tick_writes(hand: HandDriven) -> None:
    """Once per tick; what was written before stays bare, and bare writes keep their place."""
    client, talker = hand.join(hand.listen())
    endpoint = talker.endpoint
    endpoint.write(b"before")
    endpoint.envelop(bracketed)
    endpoint.write(b"a")
    endpoint.offer(b"b", 1)
    endpoint.write_bare(b"!")
    endpoint.write_bare(b"?")
    endpoint.write(b"c")
    expected = b"before<a|b>!?<c>"
    assert hand.receive(client, len(expected)) == expected
    endpoint.write(b"d")
    assert hand.receive(client, 3) == b"<d>"
    endpoint.write_bare(b"alone")
    assert hand.receive(client, 5) == b"alone"
    assert endpoint.buffered == 0


def test_a_bare_write_without_an_envelope_is_a_write(hand: HandDriven) -> None:
    """There is nothing to be left out."""
    client, talker = hand.join(hand.listen())
    talker.endpoint.write(b"a")
    talker.endpoint.write_bare(b"b")
    assert hand.receive(client, 2) == b"ab"


def test_what_is_written_bare_at_the_end_is_sent(hand: HandDriven) -> None:
    """As the last frame of a WebSocket is; after it nothing is taken."""
    client, talker = hand.join(hand.listen())
    talker.endpoint.envelop(bracketed)
    talker.endpoint.write(b"a")
    talker.endpoint.write_bare(b"goodbye")
    talker.endpoint.close("done")
    talker.endpoint.write_bare(b"more")
    talker.endpoint.write(b"more")
    assert hand.receive_to_end(client) == b"<a>goodbye"
    hand.until_lost(talker)


def test_envelopes_wait_for_a_slow_peer(hand: HandDriven) -> None:
    """A peer that reads nothing gets all of it in order once it reads, and congestion is seen."""
    client, talker = hand.join(hand.listen(), receive_buffer=4096)
    endpoint = talker.endpoint
    endpoint.envelop(bracketed)
    block = b"x" * 1024 * 1024
    blocks = 0
    while not endpoint.congested:
        endpoint.write(block)
        blocks += 1
        hand.tick()
    endpoint.write_bare(b"bare")
    endpoint.write(b"last")
    endpoint.close("done")
    received = hand.receive_to_end(client)
    assert received.endswith(b">bare<last>")
    assert received.count(b"x") == blocks * len(block)
    opened = received.replace(b"x", b"").replace(b"|", b"")
    assert opened.replace(b"<>", b"") == b"bare<last>"


def test_another_protocol_takes_over(hand: HandDriven) -> None:
    """From then on it hears what happens, to the end, and the first one nothing."""
    client, first = hand.join(hand.listen())
    second = Talker()
    first.endpoint.hand_over(second)
    client.send(b"hello")
    hand.until(lambda: second.received)
    client.close()
    hand.until_lost(second)
    assert second.events == ["end of stream", "lost"]
    assert first.events == ["connected"]
    assert not first.received
