"""What surrounds the broker fails: descriptors, TLS peers, signals, configuration files."""

import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from argon2 import PasswordHasher

from tests.faults.conftest import MIB, round_trip, under_attack
from tests.support import (
    Closed,
    Daemon,
    RawClient,
    connect_packet,
    publish_packet,
    start_daemon,
    subscribe_packet,
    until,
)


def _hash(password: str) -> str:
    return PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(password)


# Descriptors


def test_no_descriptors_left(daemon: Daemon) -> None:
    """Out of descriptors the broker waits without spinning, and accepts again when it has some."""
    port = daemon.ports["mqtt"]
    with under_attack(daemon) as witness:
        daemon.limit_descriptors(daemon.descriptors() + 5)
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(RawClient(port))
            waiting = [stack.enter_context(RawClient(port)) for _ in range(20)]
            for client in waiting:
                client.send(connect_packet("waiting"))
            used, begin = daemon.cpu_s(), time.monotonic()
            while time.monotonic() - begin < 1.5:
                round_trip(witness)
                time.sleep(0.1)  # the measured period has to pass, nothing is waited for
            share = (daemon.cpu_s() - used) / (time.monotonic() - begin)
            assert share < 0.3, f"used {share:.0%} of a processor while it could not accept"
        with RawClient(port) as late:
            late.join("late")
            late.ping()


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority for this module."""
    return trustme.CA()


@pytest.fixture
def tls_daemon(authority: trustme.CA, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with a TLS listener and a short deadline for TLS and CONNECT."""
    issued = authority.issue_cert("localhost")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    config = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
    flags = ("--mqtt", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--limit", "connect_timeout_s=1")
    with start_daemon(*flags, config=config) as process:
        yield process


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.cert_pem.bytes().decode("ascii"))


def _is_served_by_tls(daemon: Daemon, authority: trustme.CA) -> None:
    context = _trusting(authority)
    with RawClient(daemon.ports["mqtts"], tls=context) as client:
        client.join("tls")
        client.ping()


def test_handshake_that_never_ends(tls_daemon: Daemon, authority: trustme.CA) -> None:
    """Peers that stop in the middle of the handshake are closed at the deadline."""
    outgoing = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    first_flight = outgoing.read()
    with under_attack(tls_daemon):
        clients = [RawClient(tls_daemon.ports["mqtts"]) for _ in range(60)]
        try:
            for number, client in enumerate(clients):
                client.send(first_flight[: (0, 5, 100, len(first_flight))[number % 4]])
            _is_served_by_tls(tls_daemon, authority)
            for client in clients:
                _expect_end(client)
        finally:
            for client in clients:
                client.close()
        _is_served_by_tls(tls_daemon, authority)


def _expect_end(client: RawClient) -> None:
    """The bare socket must end; what TLS says before it is not looked at."""
    client.socket.settimeout(5)
    try:
        while client.socket.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        pytest.fail("a handshake that does not end is still open after 5 s")


@pytest.mark.parametrize(
    "garbage",
    [connect_packet("plain"), b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" * 50],
    ids=["plain MQTT", "HTTP", "zeros", "broken records"],
)
def test_garbage_on_the_tls_port(tls_daemon: Daemon, authority: trustme.CA, garbage: bytes) -> None:
    """Who does not speak TLS is closed, and the others are served."""
    with under_attack(tls_daemon):
        for _ in range(20):
            with RawClient(tls_daemon.ports["mqtts"]) as client:
                client.send(garbage)
                _expect_end(client)
        _is_served_by_tls(tls_daemon, authority)


def test_tls_peer_that_breaks_off(tls_daemon: Daemon, authority: trustme.CA) -> None:
    """TLS connections that end without a word at any time leave nothing behind."""
    context = _trusting(authority)
    with under_attack(tls_daemon):
        descriptors = tls_daemon.descriptors()
        for number in range(60):
            with RawClient(tls_daemon.ports["mqtts"], tls=context) as client:
                if number % 3:
                    client.join(f"breaking{number}")
                if number % 3 == 2:
                    client.send(publish_packet("t", bytes(50_000))[:20_000])
                client.reset()
        until(lambda: tls_daemon.descriptors() <= descriptors + 2, what="their release")
        _is_served_by_tls(tls_daemon, authority)


# Another user's client identifier


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "away"])
def test_takeover_by_another_user(version: int, connected: bool, tmp_path: Path) -> None:
    """A client identifier belongs to the user who opened its session: nobody else gets it."""
    users = tmp_path / "users"
    users.write_text(f"alice:{_hash('a')}\nmallory:{_hash('m')}\n")
    users.chmod(0o600)
    config = f"""
        [access]
        users = "{users}"
        anonymous = true
        [[rules]]
        effect = "allow"
        action = "all"
        topics = ["#"]
    """
    expiry = b"\x11\x00\x00\x02\x58" if version == 5 else b""
    with start_daemon(config=config) as daemon, under_attack(daemon):
        port = daemon.ports["mqtt"]
        with RawClient(port) as alice, RawClient(port) as mallory, RawClient(port) as sender:
            login = {"version": version, "clean": False, "properties": expiry}
            alice.join("device", user="alice", password=b"a", **login)  # type: ignore[arg-type]  # keywords of several types
            alice.subscribe("secret", options=1, version=version)
            if not connected:
                alice.send("e0 00")
                alice.expect_closed()
            sender.join("sender", user="alice", password=b"a")
            if not connected:
                sender.send(publish_packet("secret", b"for alice", qos=1))
                sender.expect_kind(4)
            mallory.send(
                connect_packet(
                    "device",
                    version=version,
                    clean=False,
                    user="mallory",
                    password=b"m",
                    properties=expiry,
                )
            )
            packets = mallory.read_to_end()
            assert [packet.kind for packet in packets] == [2]
            assert packets[0].body[0] == 0
            assert packets[0].body[1] in ({0x85, 0x87} if version == 5 else {2, 5})
            if connected:
                alice.ping()
                return
            with RawClient(port) as again:
                answer = again.join("device", user="alice", password=b"a", **login)  # type: ignore[arg-type]  # keywords of several types
                assert answer.body[0] == 1, "the session of alice is gone"
                assert b"for alice" in again.expect_kind(3).body


# Signals


def test_drain(daemon: Daemon) -> None:
    """SIGTERM: what is queued is delivered, then MQTT 5 clients are told 0x8B, then the end."""
    chunk = bytes(16_384)
    with (
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as subscriber,
        RawClient(daemon.ports["mqtt"]) as old_style,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        subscriber.join("subscriber", version=5)
        subscriber.subscribe("t", version=5)
        old_style.join("old", version=4)
        publisher.join("publisher", version=5)
        for number in range(150):
            publisher.send(publish_packet("t", b"%03d" % number + chunk, version=5))
        publisher.ping()
        daemon.signal(signal.SIGTERM)
        daemon.wait_event("draining")
        with pytest.raises((OSError, Closed)), RawClient(daemon.ports["mqtt"]) as late:
            late.join("late")
        packets = subscriber.read_to_end()
        received = [int(packet.body[4:7]) for packet in packets if packet.kind == 3]
        assert received == list(range(150))
        assert packets[-1].kind == 14
        assert packets[-1].body[0] == 0x8B
        farewell = publisher.read_to_end()
        assert [packet.kind for packet in farewell] == [14]
        assert farewell[0].body[0] == 0x8B
        assert old_style.read_to_end() == []
        assert daemon.wait(deadline_s=10) == 0


def test_drain_is_bounded() -> None:
    """A peer that does not read cannot keep the broker from ending at the drain timeout."""
    with (
        start_daemon("--limit", "drain_timeout_s=1") as daemon,
        RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as stuck,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        stuck.join("stuck", version=5)
        stuck.subscribe("t", version=5)
        publisher.join("publisher", version=5)
        for _ in range(400):
            publisher.send(publish_packet("t", bytes(16_384), version=5))
        publisher.ping()
        begin = time.monotonic()
        assert daemon.stop(deadline_s=10) == 0
        assert time.monotonic() - begin < 4


def test_drain_without_anybody(daemon: Daemon) -> None:
    """Without clients the broker ends at once."""
    begin = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begin < 2


def test_second_signal_during_drain() -> None:
    """A second SIGTERM while the broker drains does it no harm."""
    with start_daemon("--limit", "drain_timeout_s=2") as daemon:
        with (
            RawClient(daemon.ports["mqtt"], receive_buffer_bytes=4096) as stuck,
            RawClient(daemon.ports["mqtt"]) as publisher,
        ):
            stuck.join("stuck", version=5)
            stuck.subscribe("t", version=5)
            publisher.join("publisher")
            for _ in range(400):
                publisher.send(publish_packet("t", bytes(16_384)))
            publisher.ping()
            daemon.signal(signal.SIGTERM)
            daemon.wait_event("draining")
            daemon.signal(signal.SIGTERM)
            daemon.wait(deadline_s=10)
        assert "Traceback" not in daemon.log


def _rules(denied: str) -> str:
    return f"""
        [[rules]]
        effect = "deny"
        action = "publish"
        topics = ["{denied}"]
    """


def _is_denied(daemon: Daemon, topic: str) -> bool:
    with RawClient(daemon.ports["mqtt"]) as client:
        client.join("probe", version=5)
        client.send(publish_packet(topic, b"", qos=1, version=5))
        body = client.expect_kind(4).body
        return len(body) > 2 and body[2] == 0x87


@pytest.mark.parametrize(
    "broken",
    ["this is no TOML [", "[access]\nuzers = 'x'\n", "[limits]\nconnections_max = -1\n"],
    ids=["no TOML", "unknown key", "impossible value"],
)
def test_reload_of_a_broken_file(broken: str) -> None:
    """SIGHUP with a broken configuration keeps the old one whole; a sound one takes effect."""
    with start_daemon(config=_rules("old/#")) as daemon:
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("connected", version=5)
            assert _is_denied(daemon, "old/a")
            daemon.config_path.write_text(broken + _rules("new/#"))
            daemon.reload()
            daemon.wait_event("reload refused")
            assert _is_denied(daemon, "old/a")
            assert not _is_denied(daemon, "new/a")
            client.ping()
            daemon.config_path.write_text(_rules("new/#"))
            daemon.reload()
            daemon.wait_event("reloaded")
            assert not _is_denied(daemon, "old/a")
            assert _is_denied(daemon, "new/a")
            # It acts on who is connected already, too.
            client.send(publish_packet("new/a", b"", qos=1, version=5))
            assert client.expect_kind(4).body[2] == 0x87
        assert "Traceback" not in daemon.log


def test_reload_of_a_broken_users_file(tmp_path: Path) -> None:
    """A users file that cannot be read on SIGHUP keeps the users that were there."""
    users = tmp_path / "users"
    users.write_text(f"alice:{_hash('a')}\n")
    users.chmod(0o600)
    config = f"""
        [access]
        users = "{users}"
        [[rules]]
        effect = "allow"
        action = "all"
        topics = ["#"]
    """
    with start_daemon(config=config) as daemon:
        users.write_text("alice without a hash\n")
        daemon.reload()
        daemon.wait_event("reload refused")
        with RawClient(daemon.ports["mqtt"]) as client:
            client.join("alice", user="alice", password=b"a")
        with RawClient(daemon.ports["mqtt"]) as client:
            client.send(connect_packet("alice", version=5, user="alice", password=b"wrong"))
            assert client.expect_kind(2).body[1] == 0x86


def test_reload_takes_rights_away() -> None:
    """After a reload, what a client may no longer receive does not come any more."""
    with (
        start_daemon(config=_rules("nothing")) as daemon,
        RawClient(daemon.ports["mqtt"]) as subscriber,
        RawClient(daemon.ports["mqtt"]) as publisher,
    ):
        subscriber.join("subscriber")
        subscriber.subscribe("secret/#", "open/#")
        publisher.join("publisher")
        publisher.send(publish_packet("secret/a", b"before"))
        subscriber.expect(publish_packet("secret/a", b"before"))
        daemon.config_path.write_text(
            _rules("nothing").replace('"publish"', '"subscribe"').replace("nothing", "secret/#")
        )
        daemon.reload()
        daemon.wait_event("reloaded")
        publisher.send(publish_packet("secret/a", b"after") + publish_packet("open/a", b"x"))
        subscriber.expect(publish_packet("open/a", b"x"))
        with RawClient(daemon.ports["mqtt"]) as late:
            late.join("late", version=5)
            late.send(subscribe_packet("secret/a", version=5))
            assert late.expect_kind(9).body[-1] == 0x87


def test_port_in_use() -> None:
    """A port that is taken ends the start with one line that names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError) as failure, start_daemon("--mqtt", f"127.0.0.1:{port}"):
            pytest.fail("it started on a port that is taken")
        assert str(port) in str(failure.value)
        assert "Traceback" not in str(failure.value)


def test_idle_connections_are_cheap(daemon: Daemon) -> None:
    """A thousand idle clients cost a few kilobytes each, and leave nothing when they go."""
    with under_attack(daemon, growth_bytes=12 * MIB):
        descriptors = daemon.descriptors()
        with ExitStack() as stack:
            for number in range(1000):
                stack.enter_context(RawClient(daemon.ports["mqtt"])).join(f"idle{number}")
        until(lambda: daemon.descriptors() <= descriptors + 2, what="their release")
