"""A backup of a busy node, made by a command beside it: all of one moment, and nothing torn.

Publishers send numbers to a queue and a stream, both in one commit; a consumer acknowledges what is
in the queue; a stream with retention lets the store's files come and go. Meanwhile
``ganglion store backup`` runs, again and again. Each backup is verified and then served by a node:
it has what was confirmed before the command began, in order, and the queue fits the stream.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from itertools import count as count_from
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.crash import GONE, Ports, Role, demand
from tests.faults.crash_native import (
    APPEND,
    QUEUE_BROWSE,
    QUEUE_DECLARE,
    READ,
    STREAM_DECLARE,
    STREAM_DESCRIBE,
    NativeClient,
    NativeConsumer,
    Resender,
)
from tests.faults.crash_sessions import numbered
from tests.faults.crash_sources import Work
from tests.support import DEADLINE_S, Daemon, start_daemon, until

BACKUPS = 3
KILLS = 3
SEED = int(os.environ.get("TEST_SEED", "20260103"))
FILLING_BYTES = 256 * 1024
FILLED_BYTES_MAX = 16 * 1024 * 1024
"""Twice what makes the store write a sorted file."""


class Filler:
    """Appends large records to a stream that keeps few of them."""

    name = "filler"
    takes_rest = False

    def __init__(self) -> None:
        self.count = 0

    def is_ready(self) -> bool:
        """It keeps nobody waiting."""
        return True

    def check(self, ports: Ports) -> None:
        """Nothing is to be checked before the load."""

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Append until the connection breaks, or `is_over`."""
        chance = Random(0)
        with NativeClient(ports, self.name) as client:
            client.call(STREAM_DECLARE, "filler", {"max_bytes": FILLED_BYTES_MAX})
            while not is_over():
                client.call(APPEND, "filler", chance.randbytes(FILLING_BYTES))
                self.count += 1


class Load:
    """All that goes on at the node, each role in a thread of its own."""

    def __init__(self, seed: int) -> None:
        self.publishers = [
            Resender(f"resender-{number}", f"sent/{number}", Random(seed + number))
            for number in (1, 2)
        ]
        self.work = Work(self.publishers)
        self.filler = Filler()
        self._roles: list[Role] = [
            *self.publishers,
            NativeConsumer("consumer", "sent", ["sent/+"], self.work),
            self.filler,
        ]
        self._over = threading.Event()
        self._is_killed = False
        self._failures: list[str] = []

    @contextmanager
    def going_on(self, daemon: Daemon) -> Generator[None]:
        """For the time of the context; a node that is killed ends it too."""
        with NativeClient(daemon.ports, "maker") as client:
            for declare in (QUEUE_DECLARE, STREAM_DECLARE):
                client.call(declare, "sent", {"bindings": ["sent/+"]})
        self._over.clear()
        threads = [
            threading.Thread(target=self._run, args=(role, daemon.ports), daemon=True)
            for role in self._roles
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(3 * DEADLINE_S)
        assert not self._failures

    def kill(self, daemon: Daemon) -> None:
        """Kill the node: from now on connections may break."""
        self._is_killed = True
        daemon.kill()

    def _run(self, role: Role, ports: Ports) -> None:
        try:
            role.run(ports, self._over.is_set)
        except GONE as error:
            if not self._is_killed:
                self._failures.append(f"{role.name}: {error!r}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test has to fail by it
            self._failures.append(f"{role.name}: {error!r}")

    def goes_on(self) -> None:
        """Wait until more was confirmed to everybody."""

        def counts() -> tuple[int, ...]:
            return (*(each.acknowledged for each in self.publishers), self.filler.count)

        enough = tuple(count + 20 for count in counts())
        until(
            lambda: self._failures or all(a >= b for a, b in zip(counts(), enough, strict=True)),
            deadline_s=6 * DEADLINE_S,  # the filler's megabytes have to be synced
            what="progress of everybody",
        )


class Promise:
    """What a backup has to hold that is made from now on until `ended`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._published = {each.name: each.acknowledged for each in load.publishers}
        self._gone = {name: set(numbers) for name, numbers in load.work.confirmed.items()}
        self._done: dict[str, set[int]] = {}

    def ended(self) -> None:
        """What is settled from now on is not settled in the backup."""
        self._done = {name: set(numbers) for name, numbers in self._load.work.done.items()}

    def check(self, directory: Path) -> None:
        """Serve the backup, and compare what is in it. Raises `Broken`."""
        verified = ganglion("store", "verify", "--data", str(directory))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        with start_daemon("--native", "127.0.0.1:0", "--data", str(directory)) as daemon:
            with NativeClient(daemon.ports, "reader") as client:
                records = stream_records(client)
                waiting = queue_messages(client)
                filled = client.call(STREAM_DESCRIBE, "filler")["statistics"]
            bad = [each for each in daemon.events if each["level"] in ("error", "critical")]
            assert not bad
        demand(filled["last"] - filled["first"] + 1 == filled["records"], f"{filled}")
        for publisher in self._load.publishers:
            name = publisher.name
            numbers = [number for each, number in records if each == name]
            last = len(numbers)
            demand(numbers == list(range(1, last + 1)), f"{name}: the stream has a gap or a double")
            demand(last >= self._published[name], f"{name}: {self._published[name]}, not {last}")
            queued = [number for each, number in waiting if each == name]
            demand(queued == sorted(set(queued)), f"{name}: the queue is out of order")
            demand(set(queued) <= set(numbers), f"{name}: the queue is ahead of the stream")
            back = self._gone[name].intersection(queued)
            demand(not back, f"{name}: {back} were settled before the backup began")
            lost = set(numbers) - set(queued) - self._done[name]
            demand(not lost, f"{name}: {lost} are in the stream, and not in the queue")


def stream_records(client: NativeClient) -> list[tuple[str, int]]:
    """All records of the stream, whose sequences have no gap."""
    found: list[tuple[str, int]] = []
    while True:
        result = client.call(READ, "sent", {"after": len(found)})
        first, _, _, payloads, *_ = result["records"]
        if not payloads:
            demand(result["last"] == len(found), f"{result['last']} records, not {len(found)}")
            return found
        demand(first == len(found) + 1, f"sequence {first} follows {len(found)}")
        found += map(numbered, payloads)


def queue_messages(client: NativeClient) -> list[tuple[str, int]]:
    """All messages of the queue."""
    found: list[tuple[str, int]] = []
    page: dict[str, Any] = {"more": True}
    after = 0
    while page["more"]:
        page = client.call(QUEUE_BROWSE, "sent", {"after": after, "count": 1000})
        for number, _, _, _, payload, *_ in page["messages"]:
            found.append(numbered(payload))
            after = number
    return found


def command(*arguments: str) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-m", "ganglion", *arguments]


def ganglion(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=6 * DEADLINE_S, check=False
    )


def backup(data: Path, target: Path) -> list[str]:
    """The command line of a backup."""
    return command("store", "backup", str(target), "--data", str(data))


def test_backups_of_a_busy_node(tmp_path: Path) -> None:
    """Each has all that was confirmed before it began, of one moment, and is a good store."""
    load = Load(1)
    data = tmp_path / "data"
    promises: list[Promise] = []
    with (
        start_daemon("--native", "127.0.0.1:0", "--data", str(data)) as daemon,
        load.going_on(daemon),
    ):
        for number in range(BACKUPS):
            load.goes_on()
            promise = Promise(load)
            result = ganglion("store", "backup", str(tmp_path / f"{number}"), "--data", str(data))
            promise.ended()
            promises.append(promise)
            assert result.returncode == 0, result.stderr
        load.goes_on()
    for number, promise in enumerate(promises):
        promise.check(tmp_path / f"{number}")
    assert not (data / "store/copy/store").exists()


def test_backups_of_a_node_that_is_killed(tmp_path: Path) -> None:
    """A backup under way is whole all the same, or it fails with a word; the node starts again."""
    chance = Random(SEED)
    load = Load(SEED)
    data = tmp_path / "data"
    whole = 0
    for number in range(KILLS):
        target = tmp_path / f"{number}"
        with start_daemon("--native", "127.0.0.1:0", "--data", str(data)) as daemon:
            with load.going_on(daemon):
                load.goes_on()
                promise = Promise(load)
                with subprocess.Popen(
                    backup(data, target),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                ) as process:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(chance.uniform(0.3, 1.5))
                    load.kill(daemon)
                    _, errors = process.communicate(timeout=6 * DEADLINE_S)
            promise.ended()
        if process.returncode == 0:
            promise.check(target)
            whole += 1
        else:
            assert errors.startswith("ganglion: "), errors
            assert "Traceback" not in errors
    assert whole > 0, "no backup came to its end"


def interrupted(data: Path, target: Path) -> bool:
    """Kill a backup when it has begun to write; False: it had ended by then."""
    with subprocess.Popen(backup(data, target), stderr=subprocess.DEVNULL) as process:
        until(lambda: (target / "store/records").exists() or process.poll() is not None)
        process.kill()
    return process.returncode != 0


def test_a_backup_that_is_killed_is_refused(tmp_path: Path) -> None:
    """What it made is no store, the node does not notice, and the next backup clears up."""
    load = Load(SEED)
    data = tmp_path / "data"
    with (
        start_daemon("--native", "127.0.0.1:0", "--data", str(data)) as daemon,
        load.going_on(daemon),
    ):
        load.goes_on()
        targets = (tmp_path / f"{number}" for number in count_from())
        target = next(each for each in targets if interrupted(data, each))
        refused = ganglion("store", "verify", "--data", str(target))
        assert refused.returncode != 0, refused.stdout
        promise = Promise(load)
        result = ganglion("store", "backup", str(tmp_path / "last"), "--data", str(data))
        promise.ended()
        assert result.returncode == 0, result.stderr
        assert not (data / "store/copy/store").exists()
        load.goes_on()
    promise.check(tmp_path / "last")
