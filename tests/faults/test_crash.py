"""A broker killed at random moments under load, again and again, keeps all that it promised.

Peers of every sort work with one data directory whose daemon gets SIGKILL at moments drawn from a
seed. A peer remembers what a client remembers (its unacknowledged messages, the identifiers of
QoS 2 messages that are not released) and what it was told by an acknowledgement; after each restart
it goes on as MQTT says and holds the broker to what was acknowledged:

* publishers send numbered messages, QoS 1 and 2, and again what was not acknowledged;
* subscribers with durable sessions get each publisher's numbers without a gap and in order, those
  of QoS 2 exactly once;
* a retained value is the last acknowledged one, or one that was on its way after it;
* a subscription that was acknowledged is there, and one whose end was acknowledged is not;
* a session is present exactly when its last acknowledged CONNECT made it so.

By hand, for hours: ``python -m tests.faults.test_crash --kills 5000 --seed 7``.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tests.support import (
    DEADLINE_S,
    Closed,
    Daemon,
    RawClient,
    RawPacket,
    connect_packet,
    frame,
    publish_packet,
    start_daemon,
    subscribe_packet,
    text,
    until,
)

KILLS = int(os.environ.get("TEST_KILLS", "50"))
SEED = int(os.environ.get("TEST_SEED", "20260102"))
SETTLE_EVERY = 10
"""After so many kills everything acknowledged has to arrive before the load goes on."""

CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 2, 3, 4, 5, 6, 7
SUBACK, UNSUBACK, PINGRESP = 9, 11, 13
WINDOW = 8
GONE = (Closed, OSError)
"""What a peer meets when the broker is killed."""


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
    body = packet.body
    end = 2 + number_of(body)
    topic, body = body[2:end].decode(), body[end:]
    packet_id = 0
    if packet.first & 6:
        packet_id, body = number_of(body), body[2:]
    if version == 5:
        length = shift = index = 0
        while True:
            length |= (body[index] & 127) << shift
            shift, index = shift + 7, index + 1
            if body[index - 1] < 128:
                break
        body = body[index + length :]
    return topic, packet_id, body


class Peer:
    """A client with a durable session: it forgets nothing when its connection breaks."""

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.was_greeted = False

    def join(self, client: RawClient) -> None:
        """Connect with the durable session, which is there if it was ever acknowledged."""
        expiry = b"\x11" + (3600).to_bytes(4, "big") if self.version == 5 else b""
        client.send(connect_packet(self.name, version=self.version, clean=False, properties=expiry))
        answer = client.expect_kind(CONNACK)
        demand(answer.body[1] == 0, f"{self.name}: refused with {answer.raw.hex(' ')}")
        demand(answer.body[0] or not self.was_greeted, f"{self.name}: its session is lost")
        self.was_greeted = True


class Publisher(Peer):
    """Publishes numbers in order; after a crash it sends again what was not acknowledged."""

    def __init__(self, name: str, version: int, qos: int) -> None:
        super().__init__(name, version)
        self.qos = qos
        self.number = 0
        """The last one that was sent."""
        self.acknowledged = 0
        """Up to which number all are acknowledged."""
        self._unacknowledged: deque[tuple[int, int]] = deque()  # packet identifier, number
        self._released: deque[tuple[int, int]] = deque()  # the same behind PUBREC

    def run(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Publish on this connection until it breaks, or `is_over` and all is acknowledged."""
        self.join(client)
        for packet_id, number in self._unacknowledged:
            client.send(self._packet(packet_id, number, dup=True))
        for packet_id, _ in self._released:
            client.send(acknowledgement(PUBREL, packet_id))
        while True:
            while not is_over() and len(self._unacknowledged) + len(self._released) < WINDOW:
                self.number += 1
                packet_id = (self.number - 1) % 60_000 + 1
                self._unacknowledged.append((packet_id, self.number))
                client.send(self._packet(packet_id, self.number))
            if not self._unacknowledged and not self._released:
                return
            self._take(client, client.read_packet())

    def _packet(self, packet_id: int, number: int, *, dup: bool = False) -> bytes:
        return publish_packet(
            f"load/{self.name}",
            b"%d" % number,
            qos=self.qos,
            dup=dup,
            packet_id=packet_id,
            version=self.version,
        )

    def _take(self, client: RawClient, packet: RawPacket) -> None:
        demand(not refused(packet), f"{self.name}: refused with {packet.raw.hex(' ')}")
        waiting = self._released if packet.kind == PUBCOMP else self._unacknowledged
        expected = PUBREC if self.qos == 2 else PUBACK
        demand(packet.kind in (expected, PUBCOMP), f"{self.name}: got {packet.raw.hex(' ')}")
        demand(waiting, f"{self.name}: an acknowledgement of nothing")
        packet_id, number = waiting.popleft()
        demand(
            packet_id == number_of(packet.body),
            f"{self.name}: acknowledgements are out of order at {number}",
        )
        if packet.kind == PUBREC:
            self._released.append((packet_id, number))
            client.send(acknowledgement(PUBREL, packet_id))
        if packet.kind != PUBCOMP:
            self.acknowledged = number


class Subscriber(Peer):
    """Subscribes to all publishers and acknowledges what comes."""

    def __init__(self, name: str, version: int, publishers: list[Publisher]) -> None:
        super().__init__(name, version)
        self._publishers = {f"load/{each.name}": each for each in publishers}
        self.last = dict.fromkeys(self._publishers, 0)
        """The highest number that came from each topic."""
        self.is_subscribed = False
        self._held: set[int] = set()  # QoS 2 messages that came and are not released

    def has_all(self) -> bool:
        """Whether all that was acknowledged to the publishers has come."""
        return all(
            self.last[topic] >= each.acknowledged for topic, each in self._publishers.items()
        )

    def run(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Take messages from this connection until it breaks, or `is_over`."""
        self.join(client)
        if not self.is_subscribed:
            client.send(subscribe_packet("load/+", options=2, version=self.version))
            while (packet := client.read_packet()).kind != SUBACK:
                self._take(client, packet)
            self.is_subscribed = True
        ends_at: float | None = None
        while not (is_over() and self.has_all() and not self._held):
            if is_over():
                ends_at = ends_at or time.monotonic() + DEADLINE_S
                missing = {topic: each.acknowledged for topic, each in self._publishers.items()}
                demand(
                    time.monotonic() < ends_at,
                    f"{self.name}: has {self.last} of the acknowledged {missing}",
                )
            try:
                packet = client.read_packet(deadline_s=0.05)
            except AssertionError:
                continue  # nothing has come
            self._take(client, packet)

    def _take(self, client: RawClient, packet: RawPacket) -> None:
        if packet.kind == PUBREL:
            self._held.discard(number_of(packet.body))
            client.send(acknowledgement(PUBCOMP, number_of(packet.body)))
            return
        demand(packet.kind == PUBLISH, f"{self.name}: got {packet.raw.hex(' ')}")
        topic, packet_id, payload = parse_publish(packet, self.version)
        qos = packet.first >> 1 & 3
        demand(qos == self._publishers[topic].qos, f"{self.name}: {topic} came with QoS {qos}")
        if qos == 1:
            self._note(topic, int(payload), may_repeat=True)
            client.send(acknowledgement(PUBACK, packet_id))
            return
        if packet_id not in self._held:
            self._note(topic, int(payload), may_repeat=False)
            self._held.add(packet_id)
        client.send(acknowledgement(PUBREC, packet_id))

    def _note(self, topic: str, number: int, *, may_repeat: bool) -> None:
        last = self.last[topic]
        if number <= last:
            demand(may_repeat, f"{self.name}: {topic} {number} came twice (last: {last})")
        else:
            demand(number == last + 1, f"{self.name}: {topic} {number} follows {last}")
            self.last[topic] = number


class Retainer:
    """Sets and removes retained values, and checks after a restart which are there."""

    TOPICS = tuple(f"retain/{number}" for number in range(12))

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._acknowledged = dict.fromkeys(self.TOPICS, b"")
        self._on_the_way: dict[str, list[bytes]] = {topic: [] for topic in self.TOPICS}
        self._count = 0

    def check(self, port: int) -> None:
        """Compare what a new subscriber gets with what was acknowledged."""
        with RawClient(port) as client:
            client.join("retained-reader")
            client.subscribe("retain/#")
            client.send(b"\xc0\x00")
            found = dict.fromkeys(self.TOPICS, b"")
            while (packet := client.read_packet()).kind != PINGRESP:
                topic, _, payload = parse_publish(packet, 4)
                found[topic] = payload
        for topic, value in found.items():
            allowed = [self._acknowledged[topic], *self._on_the_way[topic]]
            demand(value in allowed, f"{topic} is {value!r}, and should be one of {allowed}")
            self._acknowledged[topic] = value
            self._on_the_way[topic] = []

    def run(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Change values until the connection breaks, or `is_over`."""
        client.join("retainer")
        sent: deque[str] = deque()
        while not is_over() or sent:
            while not is_over() and len(sent) < WINDOW:
                self._count += 1
                topic = self._chance.choice(self.TOPICS)
                value = b"" if self._chance.random() < 0.3 else b"value %d" % self._count
                self._on_the_way[topic].append(value)
                sent.append(topic)
                packet_id = self._count % 60_000 + 1
                client.send(publish_packet(topic, value, qos=1, retain=True, packet_id=packet_id))
            if sent:
                client.expect_kind(PUBACK)
                topic = sent.popleft()
                self._acknowledged[topic] = self._on_the_way[topic].pop(0)


class Changer(Peer):
    """Subscribes and unsubscribes, and checks after a restart which subscriptions there are."""

    FILTERS = tuple(f"toggle/{number}" for number in range(10))
    MARK = "toggle-mark"

    def __init__(self, name: str, version: int, chance: random.Random) -> None:
        super().__init__(name, version)
        self._chance = chance
        self._known: dict[str, bool | None] = dict.fromkeys(self.FILTERS, False)
        self._is_marked = False
        self._round = 0

    def check(self, port: int) -> None:
        """Publish to every filter, and compare what comes with what was acknowledged."""
        self._round += 1
        payload = b"%d" % self._round
        with RawClient(port) as client, RawClient(port) as prober:
            self.join(client)
            if not self._is_marked:
                client.subscribe(self.MARK, version=self.version)
                self._is_marked = True
            prober.join("prober")
            for topic in (*self.FILTERS, self.MARK):
                prober.send(publish_packet(topic, payload))
            found: set[str] = set()
            while self.MARK not in found:
                topic, _, came = parse_publish(client.expect_kind(PUBLISH), self.version)
                if came == payload:
                    found.add(topic)
        for topic, is_known in self._known.items():
            is_there = topic in found
            demand(
                is_known is None or is_known == is_there,
                f"{self.name}: {topic} subscribed: {is_there}, acknowledged: {is_known}",
            )
            self._known[topic] = is_there

    def run(self, client: RawClient, is_over: Callable[[], bool]) -> None:
        """Change subscriptions until the connection breaks, or `is_over`."""
        self.join(client)
        properties = b"\0" if self.version == 5 else b""
        while not is_over():
            topic = self._chance.choice(self.FILTERS)
            wanted = not self._known[topic]
            self._known[topic] = None
            if wanted:
                client.send(subscribe_packet(topic, version=self.version))
            else:
                client.send(frame(0xA2, b"\0\1" + properties + text(topic)))
            client.expect_kind(SUBACK if wanted else UNSUBACK)
            self._known[topic] = wanted


class Comer:
    """Comes under several names, with and without clean session, and knows which must be there."""

    NAMES = tuple(f"comer-{number}" for number in range(8))

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._is_present: dict[str, bool | None] = dict.fromkeys(self.NAMES, False)

    def run(self, port: int, is_over: Callable[[], bool]) -> None:
        """Connect and disconnect until the broker is gone, or `is_over`."""
        while not is_over():
            name = self._chance.choice(self.NAMES)
            with RawClient(port) as client:
                expected, self._is_present[name] = self._is_present[name], None
                clean = self._chance.random() < 0.5
                client.send(connect_packet(name, clean=clean))
                is_there = client.expect_kind(CONNACK).body[0] == 1
                if clean:
                    demand(not is_there, f"{name}: a clean session was there already")
                elif expected is not None:
                    demand(
                        is_there == expected,
                        f"{name}: session present: {is_there}, acknowledged: {expected}",
                    )
                self._is_present[name] = not clean
                client.send(b"\xe0\x00")
                client.read_to_end()


class CrashRun:
    """A data directory, the peers that use it, and a daemon that is killed again and again."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._chance = random.Random(seed)
        self.publishers = [
            Publisher(f"publisher-{version}-{qos}", version, qos)
            for version in (4, 5)
            for qos in (1, 2)
        ]
        self.subscribers = [
            Subscriber(f"subscriber-{version}", version, self.publishers) for version in (4, 5)
        ]
        self._retainer = Retainer(random.Random(seed + 1))
        self._changers = [
            Changer(f"changer-{version}", version, random.Random(seed + version))
            for version in (4, 5)
        ]
        self._comer = Comer(random.Random(seed + 2))
        self._threads: list[threading.Thread] = []
        self._failures: list[str] = []
        self._failed = threading.Event()
        self._is_killed = threading.Event()
        self._load_is_over = threading.Event()
        self._all_is_sent = threading.Event()

    def go(self, kills: int, say: Callable[[str], None]) -> None:
        """Kill the daemon that often under load. Raises `Broken` when a promise was broken."""
        for number in range(1, kills + 1):
            settle = number % SETTLE_EVERY == 0 or number == kills
            if self._chance.random() < 0.3:
                self._kill_while_it_starts()
            with start_daemon("--data", str(self._directory / "data")) as daemon:
                try:
                    self._load(daemon.ports["mqtt"], is_first=number == 1)
                    self._failed.wait(self._chance.uniform(0.0, 0.4))
                    if settle and not self._failed.is_set():
                        self._settle()
                finally:
                    self._is_killed.set()
                    daemon.kill()
                    self._join(self._threads)
                self._judge(number, daemon)
            if settle:
                sent = sum(each.number for each in self.publishers)
                say(f"{number} kills, {sent} messages published")

    def _kill_while_it_starts(self) -> None:
        """Recovery has to bear a kill as well: nobody is told anything, nothing may be lost."""
        command = [sys.executable, "-m", "ganglion", "serve", "--mqtt", "127.0.0.1:0"]
        with subprocess.Popen(
            [*command, "--data", str(self._directory / "data")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                process.wait(self._chance.uniform(0.05, 0.5))
            except subprocess.TimeoutExpired:
                process.kill()

    def _load(self, port: int, *, is_first: bool) -> None:
        """Check what was promised in the life before, with the load of this one beside it."""
        self._threads = []
        for event in (self._is_killed, self._load_is_over, self._all_is_sent):
            event.clear()
        for subscriber in self.subscribers:
            self._start(subscriber.name, port, subscriber.run, self._all_is_sent)
        if is_first:
            until(lambda: all(each.is_subscribed for each in self.subscribers) or self._failures)
        for publisher in self.publishers:
            self._start(publisher.name, port, publisher.run)
        self._retainer.check(port)
        self._start("retainer", port, self._retainer.run)
        for changer in self._changers:
            changer.check(port)
        for changer in self._changers:
            self._start(changer.name, port, changer.run)
        self._start_thread("comer", lambda: self._comer.run(port, self._load_is_over.is_set))

    def _settle(self) -> None:
        """End the load and wait until all that was acknowledged has come."""
        self._load_is_over.set()
        names = {each.name for each in self.subscribers}
        self._join([each for each in self._threads if each.name not in names])
        self._all_is_sent.set()
        self._join(self._threads)

    def _start(
        self,
        name: str,
        port: int,
        run: Callable[[RawClient, Callable[[], bool]], None],
        end: threading.Event | None = None,
    ) -> None:
        is_over = (end or self._load_is_over).is_set

        def connect_and_run() -> None:
            with RawClient(port) as client:
                run(client, is_over)

        self._start_thread(name, connect_and_run)

    def _start_thread(self, name: str, run: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                run()
            except GONE as error:
                if not self._is_killed.is_set():
                    self._fail(f"{name}: the connection ended: {error!r}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the test has to fail by it
                self._fail(f"{name}: {error!r}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
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
        demand(not self._failures, f"kill {number}: {'; '.join(self._failures)}\n{log}")
        bad = [each for each in daemon.events if each.get("level") in ("error", "critical")]
        demand(not bad and "Traceback" not in log, f"kill {number}: the daemon logged\n{log}")


def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path) -> None:
    """After every SIGKILL all that was acknowledged is there, in order, and QoS 2 exactly once."""
    run = CrashRun(tmp_path, SEED)
    try:
        run.go(KILLS, lambda _: None)
    except AssertionError as error:
        raise AssertionError(f"TEST_SEED={SEED}: {error}") from error
    for publisher in run.publishers:
        assert publisher.acknowledged > KILLS, f"{publisher.name} got hardly anything through"
    assert all(subscriber.has_all() for subscriber in run.subscribers)


def main() -> None:
    """Run the harness by hand for as many kills as wished."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="ganglion-crash-") as directory:
        CrashRun(Path(directory), options.seed).go(options.kills, say)


if __name__ == "__main__":
    main()
