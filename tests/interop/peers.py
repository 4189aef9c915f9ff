"""Foreign MQTT clients behind one interface, so that every test holds for each of them.

`MosquittoTools` are the command-line programs; the libraries run in processes of their own and are
driven by JSON lines (programs/lines.py). Each is used as its users use it; none is patched.
"""

import itertools
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pytest

from tests.interop.programs.lines import decode, encode
from tests.support import DEADLINE_S

__all__ = [
    "PEERS",
    "WEBSOCKET_PEERS",
    "Incoming",
    "MosquittoTools",
    "Peer",
    "ProgramPeer",
    "ProgramSession",
    "Properties",
    "Refused",
    "Server",
    "Session",
    "Will",
]

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_EXPIRY_S = 600


@dataclass(frozen=True, slots=True)
class Server:
    """Where a broker listens, and how a client has to go there."""

    port: int
    host: str = "localhost"
    cafile: str | None = None
    """The authority that signed the broker's certificate; None for plain TCP."""
    certfile: str | None = None
    keyfile: str | None = None
    path: str | None = None
    """Where its WebSockets are, such as ``/mqtt``; None for MQTT over plain TCP or TLS."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker is to publish when the client is lost."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Properties:
    """The properties of a MQTT 5 message that the tests send through a broker."""

    user: tuple[tuple[str, str], ...] = ()
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that a foreign client has received."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties = field(default_factory=Properties)


class Refused(Exception):
    """The broker refused the connection; `code` is its return or reason code."""

    def __init__(self, code: int) -> None:
        """Remember the code."""
        super().__init__(f"refused with {code}")
        self.code = code


class Session(Protocol):
    """A connected and subscribed foreign client. Leaving its context closes it."""

    granted: list[int]
    """The reason codes of the SUBACK, in the order of the filters."""
    present: bool | None
    """Session present as the client saw it; None when the client does not tell."""

    @abstractmethod
    def receive(self, *, deadline_s: float = DEADLINE_S) -> Incoming:
        """The next message. Raises AssertionError when none comes within the deadline."""

    @abstractmethod
    def close(self) -> None:
        """Leave with DISCONNECT."""

    @abstractmethod
    def abort(self) -> None:
        """Lose the connection without DISCONNECT."""

    def __enter__(self) -> Self:
        """Use the session; it is closed at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()


class Peer(Protocol):
    """A foreign client program or library."""

    name: str

    @abstractmethod
    def open(
        self,
        server: Server,
        client_id: str,
        filters: Sequence[tuple[str, int]] = (),
        *,
        version: int,
        clean: bool = True,
        will: Will | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> Session:
        """Connect, and subscribe to `filters` (topic filter and QoS). Raises `Refused`."""

    @abstractmethod
    def publish(
        self,
        server: Server,
        topic: str,
        payload: bytes,
        *,
        version: int,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        """Connect, publish, wait for what the QoS promises, disconnect. Raises `Refused`."""

    @abstractmethod
    def shut(self) -> None:
        """End the peer's process, if it has one."""


_client_numbers = itertools.count(1)


def _queued(messages: "queue.SimpleQueue[Incoming]", deadline_s: float, who: str) -> Incoming:
    try:
        return messages.get(timeout=deadline_s)
    except queue.Empty:
        raise AssertionError(f"{who} received nothing within {deadline_s} s") from None


# mosquitto_pub and mosquitto_sub

_MARK = "message:"
_FORMAT = _MARK + "%q\t%r\t%x\t%C\t%R\t%D\t%P\t%t"


def _connection_options(
    server: Server, client_id: str, version: int, user: str | None, password: str | None
) -> list[str]:
    name = {3: "mqttv31", 4: "mqttv311", 5: "mqttv5"}[version]
    options = ["-V", name, "-h", server.host, "-p", str(server.port), "-i", client_id]
    if server.cafile:
        options += ["--cafile", server.cafile]
    if server.certfile and server.keyfile:
        options += ["--cert", server.certfile, "--key", server.keyfile]
    if user is not None:
        options += ["-u", user]
    if password is not None:
        options += ["-P", password]
    return options


def _refusal_in(output: str) -> int | None:
    """The code of a refusing CONNACK in what a Mosquitto program prints with ``-d``."""
    for line in output.splitlines():
        if "received CONNACK (" in line:
            code = int(line.rpartition("(")[2].rstrip(")"))
            return code or None
    return None


class _SubProcess(Session):
    """A running mosquitto_sub."""

    def __init__(self, command: list[str], filters: int) -> None:
        self.granted = []
        self.present = None
        self._messages: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._output: list[str] = []
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        self._subscribed = threading.Event()
        self._filters = filters
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._subscribed.wait(DEADLINE_S) or len(self.granted) != filters:
            self.abort()
            output = "\n".join(self._output)
            if (code := _refusal_in(output)) is not None:
                raise Refused(code)
            raise AssertionError(f"mosquitto_sub did not subscribe; it said:\n{output}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode().rstrip("\n")
            if line.startswith(_MARK):
                self._messages.put(_parse_line(line.removeprefix(_MARK)))
                continue
            self._output.append(line)
            if line.startswith("Subscribed (mid: "):
                self.granted = [int(each) for each in line.partition("): ")[2].split(", ")]
                self._subscribed.set()
        self._subscribed.set()

    def receive(self, *, deadline_s: float = DEADLINE_S) -> Incoming:
        return _queued(self._messages, deadline_s, "mosquitto_sub")

    def _end(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def close(self) -> None:
        self._end(signal.SIGTERM)

    def abort(self) -> None:
        self._end(signal.SIGKILL)


def _parse_line(line: str) -> Incoming:
    qos, retain, payload, content_type, response_topic, correlation, user, topic = line.split("\t")
    pairs = tuple(
        (name, value) for name, _, value in (each.partition(":") for each in user.split())
    )
    return Incoming(
        topic,
        bytes.fromhex(payload),
        int(qos),
        retain == "1",
        Properties(
            pairs,
            response_topic or None,
            correlation.encode() if correlation else None,
            content_type or None,
        ),
    )


class MosquittoTools(Peer):
    """mosquitto_pub and mosquitto_sub, one process for each session and each publish."""

    name = "mosquitto"

    def open(
        self,
        server: Server,
        client_id: str,
        filters: Sequence[tuple[str, int]] = (),
        *,
        version: int,
        clean: bool = True,
        will: Will | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> Session:
        """Run mosquitto_sub, which gives all its filters the QoS of the first one."""
        filters = filters or [("nothing/of/interest", 0)]
        # In a pipe it keeps back what it says of its subscription; stdbuf makes it speak by lines.
        command = ["stdbuf", "-oL", "mosquitto_sub", "-d", "-F", _FORMAT]
        command += _connection_options(server, client_id, version, user, password)
        command += ["-q", str(max(qos for _, qos in filters))]
        for topic, _ in filters:
            command += ["-t", topic]
        if not clean:
            command += ["-c"] + (["-x", str(_EXPIRY_S)] if version == 5 else [])
        if will is not None:
            command += ["--will-topic", will.topic, "--will-payload", will.payload.decode()]
            command += ["--will-qos", str(will.qos)] + (["--will-retain"] if will.retain else [])
        return _SubProcess(command, len(filters))

    def publish(
        self,
        server: Server,
        topic: str,
        payload: bytes,
        *,
        version: int,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        """Run mosquitto_pub with the payload on its standard input."""
        client_id = f"pub{next(_client_numbers)}"
        command = ["mosquitto_pub", "-d", "-t", topic, "-q", str(qos)]
        command += _connection_options(server, client_id, version, user, password)
        command += ["-r"] if retain else []
        command += ["-s"] if payload else ["-n"]
        for name, value in _as_options(properties or Properties()):
            command += ["-D", "publish", name, *value]
        done = subprocess.run(
            command, input=payload, capture_output=True, timeout=DEADLINE_S, check=False
        )
        output = (done.stdout + done.stderr).decode()
        if (code := _refusal_in(output)) is not None:
            raise Refused(code)
        assert done.returncode == 0, f"mosquitto_pub ended with {done.returncode}:\n{output}"

    def shut(self) -> None:
        """There is no process beside those of the sessions."""


def _as_options(properties: Properties) -> list[tuple[str, list[str]]]:
    options = [("user-property", list(pair)) for pair in properties.user]
    if properties.response_topic is not None:
        options.append(("response-topic", [properties.response_topic]))
    if properties.correlation is not None:
        options.append(("correlation-data", [properties.correlation.decode()]))
    if properties.content_type is not None:
        options.append(("content-type", [properties.content_type]))
    return options


# Libraries in processes of their own


def _to_lines(properties: Properties) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    if properties.user:
        wanted["user"] = properties.user
    if properties.response_topic is not None:
        wanted["response_topic"] = properties.response_topic
    if properties.correlation is not None:
        wanted["correlation"] = encode(properties.correlation)
    if properties.content_type is not None:
        wanted["content_type"] = properties.content_type
    return wanted


def _from_lines(found: Mapping[str, Any]) -> Properties:
    correlation = found.get("correlation")
    return Properties(
        tuple((name, value) for name, value in found.get("user", [])),
        found.get("response_topic"),
        None if correlation is None else decode(correlation),
        found.get("content_type"),
    )


class ProgramSession(Session):
    """A connection of a library, which can also publish."""

    def __init__(self, peer: "ProgramPeer", name: str) -> None:
        """Remember whose it is, and what it is called there."""
        self.peer = peer
        self.name = name
        self.granted = []
        self.present = None
        self.messages: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self.open = True

    def receive(self, *, deadline_s: float = DEADLINE_S) -> Incoming:
        """The next message."""
        return _queued(self.messages, deadline_s, self.peer.name)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Publish, and wait for what the QoS promises."""
        self.peer.call(
            "publish",
            self.name,
            topic=topic,
            payload=encode(payload),
            qos=qos,
            retain=retain,
            properties=_to_lines(properties or Properties()),
        )

    def close(self) -> None:
        """Leave with DISCONNECT."""
        self._leave("close")

    def abort(self) -> None:
        """Lose the connection without DISCONNECT."""
        self._leave("abort")

    def _leave(self, operation: str) -> None:
        if self.open:
            self.open = False
            self.peer.call(operation, self.name)
            self.peer.sessions.pop(self.name, None)


class ProgramPeer(Peer):
    """A library in a process, driven by JSON lines. The process starts with the first session."""

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        """Remember how the process is started."""
        self.name = name
        self.sessions: dict[str, ProgramSession] = {}
        self._command = list(command)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
            self._reader.start()
        return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            line = json.loads(raw)
            if "id" in line:
                self._answers.put(line)
            elif (session := self.sessions.get(line["session"])) is not None:
                session.messages.put(
                    Incoming(
                        line["topic"],
                        decode(line["payload"]),
                        line["qos"],
                        line["retain"],
                        _from_lines(line["properties"]),
                    )
                )
        self._answers.put(None)

    def call(self, operation: str, session: str, **values: object) -> dict[str, Any]:
        """Have the process do one operation and return its result. Raises `Refused`."""
        process = self._start()
        assert process.stdin is not None
        number = next(self._numbers)
        request = {"id": number, "op": operation, "session": session, **values}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer: dict[str, Any] | None = {}
        while answer is not None and answer.get("id") != number:
            try:
                answer = self._answers.get(timeout=2 * DEADLINE_S)
            except queue.Empty:
                raise AssertionError(f"{self.name} does not answer {operation}") from None
        assert answer is not None, f"{self.name} ended during {operation}"
        if "refused" in answer:
            raise Refused(answer["refused"])
        assert "result" in answer, f"{self.name} failed to {operation}:\n{answer.get('failed')}"
        result: dict[str, Any] = answer["result"]
        return result

    def open(
        self,
        server: Server,
        client_id: str,
        filters: Sequence[tuple[str, int]] = (),
        *,
        version: int,
        clean: bool = True,
        will: Will | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> ProgramSession:
        """Open a connection of the library."""
        session = ProgramSession(self, f"s{next(_client_numbers)}")
        self.sessions[session.name] = session
        try:
            result = self.call(
                "open",
                session.name,
                host=server.host,
                port=server.port,
                cafile=server.cafile,
                certfile=server.certfile,
                keyfile=server.keyfile,
                path=server.path,
                version=version,
                client_id=client_id,
                clean=clean,
                expiry_s=0 if clean else _EXPIRY_S,
                user=user,
                password=password,
                will=None
                if will is None
                else {
                    "topic": will.topic,
                    "payload": encode(will.payload),
                    "qos": will.qos,
                    "retain": will.retain,
                },
                filters=list(filters),
            )
        except BaseException:
            self.sessions.pop(session.name)
            raise
        session.granted = list(result["granted"])
        session.present = result["present"]
        return session

    def publish(
        self,
        server: Server,
        topic: str,
        payload: bytes,
        *,
        version: int,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        """Publish by a connection of its own."""
        client_id = f"pub{next(_client_numbers)}"
        with self.open(server, client_id, version=version, user=user, password=password) as session:
            session.publish(topic, payload, qos=qos, retain=retain, properties=properties)

    def shut(self) -> None:
        """End the process by ending its input."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join(DEADLINE_S)
            self._process.stdout.close()
            self._process = None


def _python(name: str) -> ProgramPeer:
    module = f"tests.interop.programs.{name}_peer"
    return ProgramPeer(name, [sys.executable, "-m", module], _ROOT)


PEERS: dict[str, tuple[Peer, tuple[int, ...]]] = {
    "mosquitto": (MosquittoTools(), (3, 4, 5)),
    "paho": (_python("paho"), (3, 4, 5)),
    "aiomqtt": (_python("aiomqtt"), (3, 4, 5)),
    "amqtt": (_python("amqtt"), (4,)),
    "mqttjs": (ProgramPeer("mqttjs", ["node", "peer.mjs"], _HERE / "node"), (3, 4, 5)),
}
"""Every foreign client with the protocol versions it speaks (3: MQTT 3.1, 4: 3.1.1, 5: 5.0)."""


WEBSOCKET_PEERS = ("paho", "aiomqtt", "mqttjs")
"""Those that speak MQTT over WebSocket, too."""


def require(name: str) -> None:
    """Skip the test when the program is not installed; CI installs all of them."""
    program = {"mosquitto": "mosquitto_pub", "mqttjs": "node"}.get(name)
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if name == "mqttjs" and not (_HERE / "node" / "node_modules" / "mqtt").is_dir():
        pytest.skip("tests/interop/node: npm install has not been run")
