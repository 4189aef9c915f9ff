"""What the black-box tests stand on: brokers as processes, and a raw MQTT peer.

`start_daemon` runs Ganglion as its users do, `mosquitto` runs the reference broker with which the
tests themselves are proven. `RawClient` is a blocking peer that sends exactly the bytes it is told
to. Nothing here uses Ganglion's own code, so that a bug there cannot hide itself; and nothing
waits for luck: each wait names what it waits for and has a deadline.
"""

import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

__all__ = [
    "BrokerProcess",
    "Closed",
    "Daemon",
    "RawClient",
    "RawPacket",
    "connect_packet",
    "frame",
    "free_port",
    "mosquitto",
    "publish_packet",
    "start_daemon",
    "subscribe_packet",
    "text",
    "until",
    "varint",
]

DEADLINE_S = float(os.environ.get("TEST_DEADLINE_S", "10"))
"""How long a test waits for something that should happen at once, on a busy machine."""

_T = TypeVar("_T")


class Closed(Exception):
    """The broker closed the connection while the test waited for a packet."""


def until(condition: Callable[[], _T], *, deadline_s: float = DEADLINE_S, what: str = "") -> _T:
    """Ask `condition` again and again until it gives something true; return that.

    For conditions of the operating system that cannot be awaited (memory, descriptors). Raises
    AssertionError naming `what` after `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not reached within {deadline_s} s: {what or condition}")
        time.sleep(0.01)
    return result


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class BrokerProcess:
    """A broker in a process of its own, with its standard error collected line by line."""

    def __init__(
        self, command: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start `command` in `directory`; `env` is added to the environment of the tests."""
        self.directory = directory
        self.ports: dict[str, int] = {}
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._output = (directory / "stdout.txt").open("wb")
        self._process = subprocess.Popen(
            list(command),
            cwd=directory,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.PIPE,
        )
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the process has written to standard error so far."""
        return "\n".join(self.lines)

    def _read(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            event: dict[str, Any] | None = None
            if line.startswith("{"):
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    event = None
            with self._news:
                self.lines.append(line)
                if event is not None:
                    self.events.append(event)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_line(self, pattern: str, *, deadline_s: float = DEADLINE_S) -> str:
        """Wait for a line of standard error that `pattern` (a regular expression) is found in."""
        found = re.compile(pattern)

        def look() -> str | None:
            return next((line for line in self.lines if found.search(line)), None)

        return self._wait(look, f"a line like {pattern!r}", deadline_s)

    def wait_event(
        self, name: str, *, after: int = 0, deadline_s: float = DEADLINE_S, **values: object
    ) -> dict[str, Any]:
        """Wait for the log event `name` with `values`, beyond the first `after` events."""

        def look() -> dict[str, Any] | None:
            for event in self.events[after:]:
                if event.get("event") == name and values.items() <= event.items():
                    return event
            return None

        return self._wait(look, f"the event {name!r} with {values}", deadline_s)

    def _wait(self, look: Callable[[], _T | None], what: str, deadline_s: float) -> _T:
        end = time.monotonic() + deadline_s
        with self._news:
            while (found := look()) is None:
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    state = "the process ended" if self._ended else f"{deadline_s} s went by"
                    raise AssertionError(f"{state} without {what}; its log:\n{self.log[-4000:]}")
                self._news.wait(left)
        return found

    def memory_bytes(self) -> int:
        """Resident memory of the process, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found, f"process {self.pid} has no memory any more; its log:\n{self.log[-4000:]}"
        return int(found[1]) * 1024

    def cpu_s(self) -> float:
        """Processor time that the process has used, in seconds (user and system)."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """How many file descriptors the process has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def limit_descriptors(self, most: int) -> None:
        """Let the running process have at most `most` file descriptors (RLIMIT_NOFILE)."""
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (most, most))

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    def wait(self, *, deadline_s: float = 20.0) -> int:
        """Wait for the process to end; return its exit code."""
        try:
            code = self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the process still runs after {deadline_s} s; its log:\n{self.log[-4000:]}"
            ) from None
        self._reader.join(deadline_s)
        return code

    def stop(self, *, deadline_s: float = 20.0) -> int:
        """Ask the process to end (SIGTERM), wait until it has; return its exit code."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait(deadline_s=deadline_s)

    def kill(self) -> None:
        """End the process at once (SIGKILL), as a power cut would."""
        if self.running:
            self._process.kill()
        self.wait()

    def close(self) -> None:
        """Release what the test holds of the process; it is killed when it will not stop."""
        try:
            self.stop()
        finally:
            if self.running:
                self.kill()
            stream = self._process.stderr
            assert stream is not None
            stream.close()
            self._output.close()


class Daemon(BrokerProcess):
    """A Ganglion daemon. `ports` maps each listener's name ("mqtt", "mqtts") to its port."""

    @property
    def config_path(self) -> Path:
        """The configuration file that the daemon was started with."""
        return self.directory / "ganglion.toml"

    def reload(self) -> None:
        """Ask the daemon to read its configuration again (SIGHUP); does not wait for it."""
        self.signal(signal.SIGHUP)

    def wait_ready(self) -> None:
        """Wait until the daemon says that it serves; learn its ports."""
        self.wait_event("ready")
        for event in self.events:
            if event.get("event") == "listening":
                port = str(event["address"]).rpartition(":")[2]
                if port.isdigit():
                    self.ports.setdefault(str(event["listener"]), int(port))


@contextmanager
def start_daemon(
    *flags: str, config: str | None = None, env: Mapping[str, str] | None = None
) -> Generator[Daemon]:
    """Run ``ganglion serve`` in a temporary directory for the time of the context.

    `flags` go behind ``serve``; without a listener among them MQTT is served on a free port of
    127.0.0.1. `config` is the text of the configuration file. Raises AssertionError with the
    daemon's log when it does not become ready, or does not end on SIGTERM.
    """
    with tempfile.TemporaryDirectory(prefix="ganglion-test-") as name:
        directory = Path(name)
        command = [sys.executable, "-m", "ganglion", "serve", *flags]
        if not {each.partition("=")[0] for each in flags} & {"--mqtt", "--mqtts"}:
            command += ["--mqtt", "127.0.0.1:0"]
        if "--data" not in flags:
            command += ["--data", str(directory / "data")]
        if config is not None:
            (directory / "ganglion.toml").write_text(config)
            command += ["--config", str(directory / "ganglion.toml")]
        daemon = Daemon(
            command, directory, {"XDG_STATE_HOME": name, "NO_COLOR": "1", **(env or {})}
        )
        try:
            daemon.wait_ready()
            yield daemon
        finally:
            daemon.close()


@contextmanager
def mosquitto(
    config: str = "", *, listeners: Mapping[str, str] | None = None
) -> Generator[BrokerProcess]:
    """Run Eclipse Mosquitto for the time of the context, to prove the tests themselves.

    `listeners` maps a name, the key in `ports`, to the options of that listener (lines of
    mosquitto.conf); without it there is one, "mqtt", open to everybody. `config` is added to the
    general options.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mosquitto-test-")))
        directory.chmod(0o755)
        ports = {name: free_port() for name in (listeners or {"mqtt": ""})}
        lines = ["per_listener_settings true", "persistence false", "log_dest stderr", config]
        if os.geteuid() == 0:
            lines.append("user root")  # it would drop to a user who cannot read a test's files
        for name, port in ports.items():
            options = (listeners or {"mqtt": "allow_anonymous true"})[name]
            lines += [f"listener {port} 127.0.0.1", options]
        (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        binary = "/usr/sbin/mosquitto" if Path("/usr/sbin/mosquitto").exists() else "mosquitto"
        broker = BrokerProcess([binary, "-c", str(directory / "mosquitto.conf")], directory)
        stack.callback(broker.close)
        broker.ports = ports
        broker.wait_line(r"mosquitto version \S+ running")
        yield broker


# What a client puts on the wire, built here and not by the codec under test.


def varint(value: int) -> bytes:
    """A variable byte integer (MQTT 5, 1.5.5)."""
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def text(value: str | bytes) -> bytes:
    """A UTF-8 string or binary data behind its two-byte length (MQTT 5, 1.5.4 and 1.5.6)."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def frame(first_byte: int, body: bytes) -> bytes:
    """A control packet: its first byte, the remaining length, `body` (MQTT 5, 2.1.1)."""
    return bytes([first_byte]) + varint(len(body)) + body


def _properties(version: int, properties: bytes) -> bytes:
    return varint(len(properties)) + properties if version == 5 else b""


def connect_packet(
    client_id: str,
    *,
    version: int = 4,
    clean: bool = True,
    keep_alive_s: int = 60,
    user: str | None = None,
    password: bytes | None = None,
    will: tuple[str, bytes, int, bool] | None = None,
    properties: bytes = b"",
    will_properties: bytes = b"",
) -> bytes:
    """CONNECT for protocol `version` 3, 4 or 5; `will` is topic, payload, QoS and retain."""
    flags = 2 if clean else 0
    payload = text(client_id)
    if will is not None:
        topic, message, qos, retain = will
        flags |= 4 | qos << 3 | (32 if retain else 0)
        payload += _properties(version, will_properties) + text(topic) + text(message)
    if user is not None:
        flags |= 128
        payload += text(user)
    if password is not None:
        flags |= 64
        payload += text(password)
    head = text("MQIsdp" if version == 3 else "MQTT") + bytes([version, flags])
    head += keep_alive_s.to_bytes(2, "big") + _properties(version, properties)
    return frame(0x10, head + payload)


def publish_packet(
    topic: str,
    payload: bytes,
    *,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 1,
    version: int = 4,
    properties: bytes = b"",
) -> bytes:
    """PUBLISH; `packet_id` counts only with a QoS above 0."""
    first = 0x30 | (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    identifier = packet_id.to_bytes(2, "big") if qos else b""
    return frame(first, text(topic) + identifier + _properties(version, properties) + payload)


def subscribe_packet(
    *filters: str, options: int = 0, packet_id: int = 1, version: int = 4, properties: bytes = b""
) -> bytes:
    """SUBSCRIBE to all `filters` with the same options byte, which is the QoS in MQTT 3."""
    entries = b"".join(text(each) + bytes([options]) for each in filters)
    return frame(0x82, packet_id.to_bytes(2, "big") + _properties(version, properties) + entries)


@dataclass(frozen=True, slots=True)
class RawPacket:
    """A packet as it came: its first byte and its body behind the remaining length."""

    first: int
    body: bytes

    @property
    def kind(self) -> int:
        """The packet's type, the upper half of its first byte (2 CONNACK, 3 PUBLISH, …)."""
        return self.first >> 4

    @property
    def raw(self) -> bytes:
        """The packet as bytes."""
        return frame(self.first, self.body)


class RawClient:
    """A blocking MQTT peer over a bare socket: it does what a test says, and nothing more."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        receive_buffer_bytes: int | None = None,
        source: str | None = None,
    ) -> None:
        """Open the connection, from the address `source` when it matters.

        `receive_buffer_bytes` keeps the kernel's part of what this peer does not read small.
        """
        raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            if receive_buffer_bytes is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            if source is not None:
                raw.bind((source, 0))
            raw.settimeout(DEADLINE_S)
            raw.connect((host, port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = raw if tls is None else tls.wrap_socket(raw, server_hostname="localhost")
        except BaseException:
            raw.close()
            raise
        self._input = bytearray()

    def __enter__(self) -> Self:
        """Use the connection; it is closed without DISCONNECT at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection without DISCONNECT."""
        self.socket.close()

    def end_output(self) -> None:
        """Tell the broker that nothing more will come, and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection: the broker gets a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data: bytes | str) -> None:
        """Send bytes, or what a text of hexadecimal digits (blanks allowed) stands for."""
        self.socket.sendall(bytes.fromhex(data) if isinstance(data, str) else data)

    def _fill(self, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise AssertionError(
                f"nothing came in time; so far: {bytes(self._input[:200]).hex(' ')}"
            )
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(262_144)
        except TimeoutError:
            return
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        finally:
            self.socket.settimeout(DEADLINE_S)
        if not data:
            rest = bytes(self._input[:200]).hex(" ")
            raise Closed(f"closed by the broker after {rest or 'no byte more'}")
        self._input += data

    def read_packet(self, *, deadline_s: float = DEADLINE_S) -> RawPacket:
        """The next packet. Raises `Closed` at the end of the stream, AssertionError in time."""
        end = time.monotonic() + deadline_s
        while True:
            packet = self._take()
            if packet is not None:
                return packet
            self._fill(end)

    def _take(self) -> RawPacket | None:
        length = shift = 0
        for index in range(1, min(len(self._input), 5)):
            length |= (self._input[index] & 127) << shift
            shift += 7
            if self._input[index] < 128:
                whole = index + 1 + length
                if len(self._input) < whole:
                    return None
                packet = RawPacket(self._input[0], bytes(self._input[index + 1 : whole]))
                del self._input[:whole]
                return packet
        assert len(self._input) < 5, f"no remaining length: {bytes(self._input[:8]).hex(' ')}"
        return None

    def expect(self, expected: bytes | str, *, deadline_s: float = DEADLINE_S) -> RawPacket:
        """The next packet must be exactly these bytes (or hexadecimal digits)."""
        wanted = bytes.fromhex(expected) if isinstance(expected, str) else expected
        packet = self.read_packet(deadline_s=deadline_s)
        assert packet.raw == wanted, f"came {packet.raw.hex(' ')}, expected {wanted.hex(' ')}"
        return packet

    def expect_kind(self, kind: int, *, deadline_s: float = DEADLINE_S) -> RawPacket:
        """The next packet must be of this type (2 CONNACK, 3 PUBLISH, 4 PUBACK, …)."""
        packet = self.read_packet(deadline_s=deadline_s)
        assert packet.kind == kind, f"came {packet.raw[:80].hex(' ')}, expected type {kind}"
        return packet

    def read_to_end(self, *, deadline_s: float = DEADLINE_S) -> list[RawPacket]:
        """The packets up to the end of the stream, which must come within the deadline."""
        packets: list[RawPacket] = []
        end = time.monotonic() + deadline_s
        while True:
            try:
                packets.append(self.read_packet(deadline_s=end - time.monotonic()))
            except Closed:
                return packets

    def expect_closed(self, *, deadline_s: float = DEADLINE_S) -> None:
        """The broker must close the connection, and send nothing before it."""
        packets = self.read_to_end(deadline_s=deadline_s)
        assert not packets, f"came before the end: {[each.raw[:40].hex(' ') for each in packets]}"

    def join(
        self,
        client_id: str,
        *,
        version: int = 4,
        clean: bool = True,
        keep_alive_s: int = 60,
        user: str | None = None,
        password: bytes | None = None,
        will: tuple[str, bytes, int, bool] | None = None,
        properties: bytes = b"",
        will_properties: bytes = b"",
    ) -> RawPacket:
        """Send CONNECT and take the CONNACK, which must accept; return the CONNACK."""
        self.send(
            connect_packet(
                client_id,
                version=version,
                clean=clean,
                keep_alive_s=keep_alive_s,
                user=user,
                password=password,
                will=will,
                properties=properties,
                will_properties=will_properties,
            )
        )
        answer = self.expect_kind(2)
        assert answer.body[1] == 0, f"refused: {answer.raw.hex(' ')}"
        return answer

    def subscribe(self, *filters: str, options: int = 0, version: int = 4) -> None:
        """Subscribe to all `filters`, which must be granted."""
        self.send(subscribe_packet(*filters, options=options, packet_id=0xFFF0, version=version))
        answer = self.expect_kind(9)
        codes = answer.body[-len(filters) :]
        assert max(codes) < 0x80, f"not granted: {answer.raw.hex(' ')}"

    def ping(self, *, deadline_s: float = DEADLINE_S) -> None:
        """PINGREQ must be answered, by the very next packet."""
        self.send(b"\xc0\x00")
        self.expect(b"\xd0\x00", deadline_s=deadline_s)
