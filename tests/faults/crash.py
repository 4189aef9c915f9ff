"""The crash harness: a daemon that is killed at random moments, and what its peers make of it.

`CrashRun` gives one data directory to one daemon after the other, each of which gets SIGKILL at a
moment drawn from a seed. The peers are `Role`s, each in a thread of its own. A role remembers what
a client remembers (its unacknowledged messages, the identifiers of QoS 2 messages that are not
released) and what it was told by an acknowledgement; after each restart it goes on as MQTT says,
and holds the broker to what was acknowledged.
"""

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.faults.disk import PowerLoss
from tests.support import (
    DEADLINE_S,
    Closed,
    Daemon,
    RawClient,
    RawPacket,
    connect_packet,
    frame,
    start_daemon,
    until,
)

__all__ = [
    "CONNACK",
    "PINGRESP",
    "PUBACK",
    "PUBCOMP",
    "PUBLISH",
    "PUBREC",
    "PUBREL",
    "SUBACK",
    "UNSUBACK",
    "WINDOW",
    "Broken",
    "CrashRun",
    "Peer",
    "Ports",
    "Role",
    "acknowledgement",
    "demand",
    "number_of",
    "parse_publish",
    "refused",
    "user_properties",
]

SETTLE_EVERY = 10
"""After so many kills everything acknowledged has to arrive before the load goes on."""

CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 2, 3, 4, 5, 6, 7
SUBACK, UNSUBACK, PINGRESP = 9, 11, 13
WINDOW = 8
GONE = (Closed, OSError)
"""What a peer meets when the broker is killed."""
Ports = Mapping[str, int]
"""Of the listeners of the broker, by name."""


class Broken(AssertionError):
    """The broker broke a promise."""


def demand(condition: object, promise: str) -> None:
    """Raise `Broken` unless the promise is kept."""
    if not condition:
        raise Broken(promise)


def number_of(body: bytes) -> int:
    """The packet identifier with which a packet's body begins."""
    return int.from_bytes(body[:2], "big")


def acknowledgement(kind: int, packet_id: int) -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP without a reason (MQTT 5, 3.4.2.1)."""
    return frame(kind << 4 | (2 if kind == PUBREL else 0), packet_id.to_bytes(2, "big"))


def refused(packet: RawPacket) -> bool:
    """Whether an acknowledgement of MQTT 5 carries a reason of failure."""
    return len(packet.body) > 2 and packet.body[2] >= 0x80


def parse_publish(packet: RawPacket, version: int) -> tuple[str, int, bytes]:
    """Topic, packet identifier (0 without) and payload of a PUBLISH."""
    topic, packet_id, _, payload = _split_publish(packet, version)
    return topic, packet_id, payload


def user_properties(packet: RawPacket) -> dict[str, str]:
    """The user properties of a PUBLISH of MQTT 5 (3.3.2.3.7), the last one of each name."""
    found: dict[str, str] = {}
    properties = _split_publish(packet, 5)[2]
    while properties:
        kind, properties = properties[0], properties[1:]
        if kind == 0x26:
            name, properties = _split_text(properties)
            value, properties = _split_text(properties)
            found[name.decode()] = value.decode()
        elif kind in (0x03, 0x08, 0x09):
            _, properties = _split_text(properties)
        elif kind == 0x0B:
            while properties[0] & 128:
                properties = properties[1:]
            properties = properties[1:]
        else:
            properties = properties[{0x01: 1, 0x02: 4, 0x23: 2}[kind] :]
    return found


def _split_text(data: bytes) -> tuple[bytes, bytes]:
    end = 2 + number_of(data)
    return data[2:end], data[end:]


def _split_publish(packet: RawPacket, version: int) -> tuple[str, int, bytes, bytes]:
    """Topic, packet identifier, properties and payload."""
    topic, body = _split_text(packet.body)
    packet_id = 0
    properties = b""
    if packet.first & 6:
        packet_id, body = number_of(body), body[2:]
    if version == 5:
        length = shift = index = 0
        while True:
            length |= (body[index] & 127) << shift
            shift, index = shift + 7, index + 1
            if body[index - 1] < 128:
                break
        properties, body = body[index : index + length], body[index + length :]
    return topic.decode(), packet_id, properties, body


class Role(Protocol):
    """One of those that work with the broker while it is killed again and again."""

    name: str
    takes_rest: bool
    """Whether it goes on when the others have ended, until all that they sent has come."""

    def is_ready(self) -> bool:
        """Whether the roles that send may begin, in the first life of the broker."""
        ...

    def check(self, ports: Ports) -> None:
        """Hold the broker to what was promised in its life before. Raises `Broken`."""
        ...

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Work until the connection breaks, or `is_over` and nothing is left to do."""
        ...


class Peer:
    """A client with a durable session: it forgets nothing when its connection breaks."""

    takes_rest = False

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.was_greeted = False

    def is_ready(self) -> bool:
        """It keeps nobody waiting."""
        return True

    def check(self, ports: Ports) -> None:
        """Nothing is to be checked before the load."""

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Connect, and go on where the last connection broke."""
        with RawClient(ports["mqtt"]) as client:
            self.work(client, is_over)

    def work(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Work on this connection until it breaks, or `is_over` and nothing is left to do."""
        raise AssertionError(f"{self.name} has no work")

    def join(self, client: RawClient) -> None:
        """Connect with the durable session, which is there if it was ever acknowledged."""
        expiry = b"\x11" + (3600).to_bytes(4, "big") if self.version == 5 else b""
        client.send(connect_packet(self.name, version=self.version, clean=False, properties=expiry))
        answer = client.expect_kind(CONNACK)
        demand(answer.body[1] == 0, f"{self.name}: refused with {answer.raw.hex(' ')}")
        demand(answer.body[0] or not self.was_greeted, f"{self.name}: its session is lost")
        self.was_greeted = True


class CrashRun:
    """A data directory, the roles that use it, and a daemon that is killed again and again."""

    def __init__(
        self, directory: Path, seed: int, roles: Sequence[Role], recorder: Path | None = None
    ) -> None:
        """With a `recorder` (see `disk`) each kill is a power loss."""
        self._data = directory / "data"
        self._power: PowerLoss | None = None
        self._what_is_left = ""
        if recorder is not None:
            self._data.mkdir()
            self._power = PowerLoss(recorder, self._data, random.Random(seed))
        self._chance = random.Random(seed)
        self._roles = roles
        self._threads: list[threading.Thread] = []
        self._failures: list[str] = []
        self._failed = threading.Event()
        self._is_killed = threading.Event()
        self._load_is_over = threading.Event()
        self._all_is_sent = threading.Event()

    def go(self, kills: int, say: Callable[[int], object]) -> None:
        """Kill the daemon that often under load; `say` is told the number of kills now and then.

        Raises `Broken` when a promise was broken.
        """
        for number in range(1, kills + 1):
            settle = number % SETTLE_EVERY == 0 or number == kills
            if self._chance.random() < 0.3:
                self._kill_while_it_starts()
            flags = ("--native", "127.0.0.1:0", "--data", str(self._data))
            if self._power is not None:
                self._power.begin()
            environment = {} if self._power is None else self._power.environment
            with start_daemon(*flags, env=environment) as daemon:
                try:
                    self._load(daemon.ports, is_first=number == 1)
                    self._failed.wait(self._chance.uniform(0.0, 0.4))
                    if settle and not self._failed.is_set():
                        self._settle()
                finally:
                    self._is_killed.set()
                    daemon.kill()
                    self._join(self._threads)
                self._judge(number, daemon)
            if self._power is not None:
                self._what_is_left = self._power.lose()
            if settle:
                say(number)

    def _kill_while_it_starts(self) -> None:
        """Recovery has to bear a kill as well: nobody is told anything, nothing may be lost."""
        command = [sys.executable, "-m", "ganglion", "serve", "--mqtt", "127.0.0.1:0"]
        with subprocess.Popen(
            [*command, "--data", str(self._data)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                process.wait(self._chance.uniform(0.05, 0.5))
            except subprocess.TimeoutExpired:
                process.kill()

    def _load(self, ports: Ports, *, is_first: bool) -> None:
        """Check what was promised in the life before, and begin the load of this one."""
        self._threads = []
        for event in (self._is_killed, self._load_is_over, self._all_is_sent):
            event.clear()
        takers = [role for role in self._roles if role.takes_rest]
        for role in takers:
            self._start(role, ports)
        if is_first:
            until(lambda: all(role.is_ready() for role in takers) or self._failures)
        others = [role for role in self._roles if not role.takes_rest]
        for role in others:
            role.check(ports)
        for role in others:
            self._start(role, ports)

    def _settle(self) -> None:
        """End the load and wait until all that was acknowledged has come."""
        self._load_is_over.set()
        names = {role.name for role in self._roles if role.takes_rest}
        self._join([each for each in self._threads if each.name not in names])
        self._all_is_sent.set()
        self._join(self._threads)

    def _start(self, role: Role, ports: Ports) -> None:
        is_over = (self._all_is_sent if role.takes_rest else self._load_is_over).is_set

        def guarded() -> None:
            try:
                role.run(ports, is_over)
            except GONE as error:
                if not self._is_killed.is_set():
                    self._fail(f"{role.name}: the connection ended: {error!r}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the test has to fail by it
                self._fail(f"{role.name}: {error!r}")

        thread = threading.Thread(target=guarded, name=role.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _fail(self, what: str) -> None:
        self._failures.append(what)
        self._failed.set()

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(DEADLINE_S * 3)
            demand(not thread.is_alive(), f"{thread.name} hangs")

    def _judge(self, number: int, daemon: Daemon) -> None:
        log = daemon.log[-4000:]
        left = self._what_is_left and f" (before it the power loss left: {self._what_is_left})"
        demand(not self._failures, f"kill {number}{left}: {'; '.join(self._failures)}\n{log}")
        bad = [each for each in daemon.events if each.get("level") in ("error", "critical")]
        demand(not bad and "Traceback" not in log, f"kill {number}: the daemon logged\n{log}")
