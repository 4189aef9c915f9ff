"""Disks that fail or have no room: nothing acknowledged is lost, and nobody is told otherwise.

The full disk is a small tmpfs, which takes root to mount. A sync fails by a library in front of the
C library that has the next `fdatasync` fail when a file exists.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from ganglion.broker.store import Kind
from tests.broker.store.stores import Core, contents, open_rocks
from tests.support import Closed, Daemon, RawClient, publish_packet, start_daemon, until

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
EXIT_IO = 74
KILLS = int(os.environ.get("TEST_FULL_DISK_KILLS", "2"))


@pytest.fixture
def core() -> Iterator[Core]:
    """The core in which commits complete."""
    core = Core()
    yield core
    core.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the store of the test is."""
    return tmp_path / "store"


@pytest.fixture
def failing_sync(tmp_path: Path) -> tuple[Path, Path]:
    """A library to load first, and the file whose existence has the next sync fail, once."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "this test needs a C compiler"
    order, library = tmp_path / "fail", tmp_path / "failing.so"
    source = tmp_path / "failing.c"
    source.write_text(
        f"""
        #include <errno.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int fdatasync(int fd) {{
            if (unlink("{order}") == 0) {{ errno = EIO; return -1; }}
            return syscall(SYS_fdatasync, fd);
        }}
        """
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library, order


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    yield from mounted_disk(tmp_path / "disk", 64)


@pytest.fixture
def node_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 MiB: its reserve has room for all that RocksDB has in memory."""
    yield from mounted_disk(tmp_path / "disk", 192)


def mounted_disk(path: Path, size_mib: int) -> Iterator[Path]:
    """A file system in memory, for the time of a test."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode and os.geteuid():
        pytest.skip(reason="only root can mount a small file system")
    assert not mounted.returncode, mounted.stderr
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_failed_write_is_fatal(directory: Path) -> None:
    """A write that fails for another reason than room ends everything, and is not tried again.

    The child process may write no file beyond a size: the system refuses the log's next bytes.
    """
    code = f"""
import pathlib, resource
from ganglion.broker.store import Kind
from tests.broker.store.stores import Core, commit, open_rocks
core = Core()
store = open_rocks(pathlib.Path({str(directory)!r}), core)
commit(store, core, (Kind.SESSION, b"before", b""))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
done = []
for number in range(3):
    batch = store.batch()
    batch.put(Kind.SESSION, b"%d" % number, bytes(200_000))
    store.commit(batch, lambda: done.append(number))
store.close()
core.run()
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
assert not done, done
(message,) = core.fatal
assert "commit 2" in message and {str(directory)!r} in message and "large" in message, message
assert not core.full
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    core = Core()
    store = open_rocks(directory, core)
    assert contents(store) == {(Kind.SESSION, b"before"): b""}
    store.close()


def test_a_failed_sync_is_fatal(directory: Path, failing_sync: tuple[Path, Path]) -> None:
    """A sync that fails once ends everything, although every later one would succeed."""
    library, order = failing_sync
    code = f"""
import pathlib
from ganglion.broker.store import Kind
from tests.broker.store.stores import Core, commit, open_rocks
core = Core()
store = open_rocks(pathlib.Path({str(directory)!r}), core)
commit(store, core, (Kind.SESSION, b"before", b""))
pathlib.Path({str(order)!r}).touch()
done = []
for number in range(3):
    batch = store.batch()
    batch.put(Kind.SESSION, b"%d" % number, b"")
    store.commit(batch, lambda: done.append(number))
store.close()
core.run()
assert not done, done
(message,) = core.fatal
assert "commit 2" in message and "Input/output error" in message, message
assert not pathlib.Path({str(order)!r}).exists()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_full_disk_is_waited_for(small_disk: Path, core: Core) -> None:
    """With no room, commits wait in order; with room again all complete, and nothing is lost."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(54_000_000))
    store = open_rocks(small_disk / "store", core, reserve_bytes=64 * MIB)
    done: list[int] = []
    given = 0

    def give() -> None:
        nonlocal given
        batch = store.batch()
        batch.put(Kind.BACKLOG, b"%06d" % given, random.Random(given).randbytes(100_000))
        store.commit(batch, lambda number=given: done.append(number))  # type: ignore[misc]  # binds
        given += 1

    while not core.full:
        give()
        core.wait(lambda: len(done) == given or core.full)
    assert store.is_full
    assert store.statistics().is_full
    for _ in range(5):
        give()
    before = list(done)
    assert len(before) < given
    ballast.unlink()
    core.wait(lambda: len(done) == given, deadline_s=30)
    assert done == list(range(given))
    assert core.full == [True, False]
    assert not store.statistics().is_full
    assert core.fatal == []
    store.close()
    store = open_rocks(small_disk / "store", core, reserve_bytes=64 * MIB)
    found = dict(store.scan(Kind.BACKLOG))
    assert found == {b"%06d" % n: random.Random(n).randbytes(100_000) for n in range(given)}
    store.close()


def test_a_full_disk_does_not_keep_a_store_open(small_disk: Path, core: Core) -> None:
    """`close` gives up the commit that waits for room, which nobody was told to be durable."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(54_000_000))
    store = open_rocks(small_disk / "store", core, reserve_bytes=64 * MIB)
    done: list[int] = []
    for number in range(40):
        batch = store.batch()
        batch.put(Kind.BACKLOG, b"%06d" % number, random.Random(number).randbytes(1_000_000))
        store.commit(batch, lambda n=number: done.append(n))  # type: ignore[misc]  # binds n
    until(lambda: store.is_full, what="the disk is full")
    store.close()
    core.run()
    assert 0 < len(done) < 40
    ballast.unlink()
    store = open_rocks(small_disk / "store", core, reserve_bytes=64 * MIB)
    assert [int(key) for key, _ in store.scan(Kind.BACKLOG)] == done
    store.close()


KILLED_WHILE_FULL = """
import os, pathlib, random, sys
from ganglion.broker.store import Kind
from tests.broker.store.stores import Core, open_rocks
directory, size_bytes, first = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
core = Core()
store = open_rocks(directory, core, reserve_bytes=4 * 2**20)
out = os.open(sys.argv[4], os.O_WRONLY)
for number in range(first, first + 100_000):
    batch = store.batch()
    batch.put(Kind.BACKLOG, b"%08d" % number, random.Random(number).randbytes(size_bytes))
    if store.is_full and number % 3:  # what deletes goes on, and makes some room
        batch.delete(Kind.BACKLOG, b"%08d" % (number - 50))
    def acknowledge(number=number):
        os.write(out, b"%d\\n" % number)
    waiting = []
    store.commit(batch, lambda: (acknowledge(), waiting.append(True)))
    core.wait(lambda: waiting, deadline_s=600)
"""


@pytest.mark.parametrize("size_bytes", [700_000])
def test_kills_on_a_full_disk(
    small_disk: Path, tmp_path: Path, core: Core, size_bytes: int
) -> None:
    """A store that is killed while it waits for room, or is given some, has all that it said."""
    chance = random.Random(size_bytes)
    ballast, told = small_disk / "ballast", tmp_path / "told"
    last = 0
    for _ in range(KILLS):
        ballast.write_bytes(bytes(45_000_000))
        told.write_bytes(b"")
        arguments = [str(small_disk / "store"), str(size_bytes), str(last + 1), str(told)]
        command = [sys.executable, "-c", KILLED_WHILE_FULL, *arguments]
        with subprocess.Popen(command, cwd=ROOT) as child:
            try:
                until(lambda: _free_bytes(small_disk) < 4 * MIB, what="the disk is full")
                if chance.random() < 0.5:
                    os.truncate(ballast, ballast.stat().st_size - 4_000_000)  # some room
                ends = time.monotonic() + chance.random() * 1.5
                while time.monotonic() < ends and child.poll() is None:
                    time.sleep(0.01)  # any moment will do
            finally:
                child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        ballast.unlink()
        numbers = [int(each) for each in told.read_text().split()]
        store = open_rocks(small_disk / "store", core)
        found = dict(store.scan(Kind.BACKLOG))
        assert numbers[-1] - last == len(numbers)
        last = max(int(key) for key in found)
        assert last - numbers[-1] in (0, 1), "what was not acknowledged is one commit at most"
        assert all(b"%08d" % number in found for number in numbers[-40:])
        assert all(
            value == random.Random(int(key)).randbytes(size_bytes) for key, value in found.items()
        )
        batch = store.batch()
        batch.delete_range(Kind.BACKLOG, b"", b"%08d" % last)
        store.commit(batch, lambda: None)
        store.compact()
        store.close()
    assert core.fatal == []
    assert all(each.kind is None for each in core.damages)


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


# -- the whole node ------------------------------------------------------------------------------


class Publisher:
    """Publishes numbers with QoS 1 over MQTT 5 and notes what became of each."""

    def __init__(self, daemon: Daemon) -> None:
        self.client = RawClient(daemon.ports["mqtt"])
        self.number = 0
        self.acknowledged: list[int] = []
        self.refused: list[int] = []

    def __enter__(self) -> Self:
        """Connect."""
        self.client.join("publisher", version=5)
        return self

    def __exit__(self, *_: object) -> None:
        """Break off."""
        self.client.close()

    def publish(self) -> bool:
        """Publish the next number, 200 kB of it; whether it was taken, and not refused by 0x97."""
        self.number += 1
        payload = b"%06d" % self.number + bytes(200_000)
        packet = publish_packet("load", payload, qos=1, packet_id=1, version=5)
        self.client.send(packet)
        answer = self.client.expect_kind(4, deadline_s=30)
        reason = answer.body[2] if len(answer.body) > 2 else 0
        assert reason in (0, 0x97), answer.raw.hex(" ")
        (self.refused if reason else self.acknowledged).append(self.number)
        return not reason

    def fill(self) -> None:
        """Publish until there is no room."""
        while self.publish():
            assert self.number < 2000, "the disk should be full by now"


HOUR = b"\x11" + (3600).to_bytes(4, "big")


def on(disk: Path) -> list[str]:
    """The flags of a node with its data there; of what waits for a client nothing is dropped."""
    return ["--data", str(disk / "data"), "--limit", "queued_bytes_per_session_max=1000000000"]


def join_consumer(daemon: Daemon) -> RawClient:
    """The client whose durable session gets what is published."""
    client = RawClient(daemon.ports["mqtt"])
    client.join("consumer", version=5, clean=False, properties=HOUR)
    return client


def take(consumer: RawClient) -> int:
    """The next number that comes, acknowledged."""
    body = consumer.expect_kind(3, deadline_s=30).body
    consumer.send(b"\x40\x02" + body[6:8])
    return int(body[9:15])


def test_a_full_disk_refuses_publishers_and_recovers_alone(node_disk: Path) -> None:
    """Durable publishers get 0x97, nobody is closed, consuming makes room, nothing is lost."""
    with start_daemon(*on(node_disk)) as daemon:
        (node_disk / "others").write_bytes(bytes(100 * MIB))
        with join_consumer(daemon) as consumer:
            consumer.subscribe("load", options=1, version=5)
        with Publisher(daemon) as publisher, RawClient(daemon.ports["mqtt"]) as other:
            other.join("other", version=5)
            other.subscribe("live", version=5)
            publisher.fill()
            daemon.wait_event("the disk is full")
            assert publisher.acknowledged
            assert len(publisher.acknowledged) + 1 == publisher.number
            assert not any(publisher.publish() for _ in range(5)), "it is still full"
            # Who needs nothing durable is served as ever.
            other.send(publish_packet("live", b"x", version=5))
            assert other.expect_kind(3).body.endswith(b"x")
            # Consuming makes room, although nothing else gives any back.
            came: list[int] = []
            with join_consumer(daemon) as back:
                while len(came) < len(publisher.acknowledged):
                    came.append(take(back))
                assert came == publisher.acknowledged
                until(publisher.publish, what="there is room again", deadline_s=30)
                daemon.wait_event("the disk has room again")
                assert take(back) == publisher.number
            other.ping()
            publisher.client.ping()
        assert "Traceback" not in daemon.log
    assert publisher.number > len(publisher.acknowledged) > 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_ends_on_a_full_disk(node_disk: Path, end: signal.Signals) -> None:
    """It can be stopped or killed in any state of the disk, and has all that it acknowledged."""
    ballast = node_disk / "ballast"
    with start_daemon(*on(node_disk)) as daemon:
        (node_disk / "others").write_bytes(bytes(100 * MIB))
        with join_consumer(daemon) as consumer:
            consumer.subscribe("load", options=1, version=5)
        with Publisher(daemon) as publisher:
            publisher.fill()
            # What is free now is taken by others, also what the node has kept back for itself.
            with suppress(OSError):
                ballast.write_bytes(bytes(_free_bytes(node_disk)))
            daemon.signal(end)
            assert daemon.wait(deadline_s=15) in (0, -signal.SIGKILL)
    ballast.unlink()
    with (
        start_daemon(*on(node_disk)) as daemon,
        join_consumer(daemon) as consumer,
    ):
        assert [take(consumer) for _ in publisher.acknowledged] == publisher.acknowledged
        assert "Traceback" not in daemon.log


def test_a_node_ends_with_a_failed_sync(tmp_path: Path, failing_sync: tuple[Path, Path]) -> None:
    """It says what failed and ends; nothing is acknowledged from there on, all before is there."""
    library, order = failing_sync
    data = ["--data", str(tmp_path / "data")]
    with start_daemon(*data, env={"LD_PRELOAD": str(library)}) as daemon:
        with join_consumer(daemon) as consumer:
            consumer.subscribe("load", options=1, version=5)
        with Publisher(daemon) as publisher:
            assert all(publisher.publish() for _ in range(20))
            order.touch()
            with pytest.raises((Closed, OSError)):
                publisher.publish()
        assert daemon.wait() == EXIT_IO
        event = daemon.wait_event("the store failed")
        assert "could not write commit" in event["problem"]
        assert "Input/output error" in event["problem"]
    with start_daemon(*data) as daemon, join_consumer(daemon) as consumer:
        assert [take(consumer) for _ in publisher.acknowledged] == publisher.acknowledged
