"""The store after a power loss at any moment: everything acknowledged, and no half of anything.

A child commits batches that follow from their number, and everything it does to its files is
recorded. From the recording `Disk` makes what a power loss could leave at some moment of the run,
again and again. Each time the store has to open, with the state after a commit that is not before
the last acknowledged one, and to go on from there.

By hand, for hours: ``TEST_POWER_LOSSES=5000 TEST_SEED=7``.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganglion.broker.store import Delete, DeleteRange, Kind, Operation, Put, Store
from tests.broker.store.stores import Core, commit_operations, contents, open_rocks
from tests.faults.disk import Disk, read_recording, recorder
from tests.faults.disk import Operation as Call

LOSSES = int(os.environ.get("TEST_POWER_LOSSES", "60"))
SEED = int(os.environ.get("TEST_SEED", "20260103"))
ROOT = Path(__file__).resolve().parents[2]
FEED_BYTES = 20_000

WORKLOAD = """
import os, pathlib, signal, sys
from tests.broker.store.stores import Core, open_rocks
from tests.faults.test_power_loss import FEED_BYTES, care, operations_of
from ganglion.broker.store.feed import record

directory, first, last, end = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT, 0o600)
core = Core()
store = open_rocks(directory / "store", core)
assert store.commit_number == first - 1, store.commit_number
store.attach_feed(FEED_BYTES, 1e6)
done = first - 1
def acknowledge():
    global done
    done += 1
    os.pwrite(acknowledged, b"%d" % done, 0)
for number in range(first, last + 1):
    batch = store.batch()
    record(batch, operations_of(number))
    store.commit(batch, acknowledge)
    if number % 3 == 0:  # the others are under way together
        core.wait(lambda: done == number)
    if number % 40 == 0:
        core.wait(lambda: done == number)
        store = care(number, store, directory / "store", core)
core.wait(lambda: done == last)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
store.close()
"""


def operations_of(number: int) -> list[Operation]:
    """What commit `number` does: records come, are replaced, and go one by one or by the range."""
    chance = random.Random(number)
    size_bytes = chance.choice((10, 100, 1000, 40_000))
    operations: list[Operation] = [
        Put(Kind.BACKLOG, b"%06d" % number, chance.randbytes(size_bytes)),
        Put(Kind.RETAINED, b"topic/%d" % chance.randrange(20), b"%d" % number),
        Put(Kind.SESSION, b"client", b"%d" % number),
    ]
    if number % 4 == 0:
        operations.append(Delete(Kind.BACKLOG, b"%06d" % (number - 2)))
    if number % 25 == 0:
        operations.append(DeleteRange(Kind.BACKLOG, b"", b"%06d" % (number - 20)))
    return operations


def care(number: int, store: Store, directory: Path, core: Core) -> Store:
    """What makes, merges and removes files between the commits."""
    from ganglion.broker.store.rocksdb import RocksStore  # noqa: PLC0415 - also run by the child

    assert isinstance(store, RocksStore)
    match number // 40 % 3:
        case 0:
            store.compact()
        case 1:
            store._families[Kind.BACKLOG].flush()
        case _:
            store.close()
            return open_rocks(directory, core)
    return store


def model_of(last: int) -> dict[tuple[Kind, bytes], bytes]:
    """What is there after commit `last`."""
    model: dict[tuple[Kind, bytes], bytes] = {}
    for number in range(1, last + 1):
        for operation in operations_of(number):
            match operation:
                case Put(kind, key, value):
                    model[kind, key] = value
                case Delete(kind, key):
                    model.pop((kind, key), None)
                case DeleteRange(kind, start, stop):
                    for of, key in list(model):
                        if of is kind and start <= key < stop:
                            del model[of, key]
    return model


def run(directory: Path, first: int, last: int, end: str, environment: dict[str, str]) -> None:
    """Run the workload in a child process."""
    ended = subprocess.run(
        [sys.executable, "-c", WORKLOAD, str(directory), str(first), str(last), end],
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == (-signal.SIGKILL if end == "kill" else 0), ended.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that records."""
    return recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory if there is one: what is made there is only looked at once."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
        yield Path(directory)


def check(directory: Path, acknowledged: int, last: int, what: str) -> int:
    """The store opens, has the state after some commit from `acknowledged` on, and goes on."""
    core = Core()
    try:
        store = open_rocks(directory, core)
        number = store.commit_number
        assert acknowledged <= number <= last, f"{what}: {number}, acknowledged {acknowledged}"
        assert contents(store) == model_of(number), f"{what}: not the state after {number}"
        first = store.statistics().feed_first
        if first is not None:
            for made in store.commits_after(first - 1):
                assert made.operations == tuple(operations_of(made.number)), what
        commit_operations(store, core, *operations_of(number + 1))
        store.close()
        store = open_rocks(directory, core)
        assert contents(store) == model_of(number + 1), f"{what}: {number + 1} went wrong"
        store.close()
    except Exception as error:
        raise AssertionError(f"{what}: {error}") from error
    finally:
        core.close()
    assert not core.fatal, what
    assert all(each.kind is None and "torn" in each.what for each in core.damages), what
    return number


def lose_power_often(
    disk: Disk, root: Path, calls: list[Call], last: int, memory: Path
) -> tuple[int, int]:
    """Check what is left at moments all over the recording.

    How often the store had just what was acknowledged, and how often commits beyond that.
    """
    chance = random.Random(SEED)
    moments = sorted(chance.randrange(len(calls)) for _ in range(LOSSES // 2))
    exact = further = done = 0
    for moment in moments:
        for call in calls[done:moment]:
            disk.do(call)
        done = moment
        acknowledged = int(disk.contents(root / "acknowledged") or b"0")
        said = disk.lose_power(chance, memory / "left")
        what = f"TEST_SEED={SEED}, call {moment} of {len(calls)} ({said})"
        number = check(memory / "left" / "store", acknowledged, last, what)
        exact, further = exact + (number == acknowledged), further + (number > acknowledged)
        shutil.rmtree(memory / "left")
    return exact, further


def recorded_run(
    directory: Path, root: Path, first: int, last: int, library: Path
) -> tuple[Disk, list[Call]]:
    """The disk before a run, and what the run did to it."""
    disk, recording = Disk(root), directory / "recording"
    environment = {
        "LD_PRELOAD": str(library),
        "RECORD_BELOW": str(root),
        "RECORD_TO": str(recording),
    }
    run(root, first, last, "close", environment)
    return disk, list(read_recording(recording))


def test_power_lost_at_any_moment(tmp_path: Path, library: Path, memory: Path) -> None:
    """From the first call of a new store on, over commits, new files, merges and reopening."""
    root = tmp_path / "data"
    root.mkdir()
    disk, calls = recorded_run(tmp_path, root, 1, 170, library)
    assert {each.what for each in calls} >= set("oswrum")
    exact, further = lose_power_often(disk, root, calls, 170, memory)
    assert min(exact, further) > 0, (exact, further)
    for call in calls:
        disk.do(call)
    assert (disk.contents(root / "acknowledged")) == b"170"


def test_power_lost_while_recovering(tmp_path: Path, library: Path, memory: Path) -> None:
    """A store that was killed and torn, and loses power again while it is opened and mended."""
    root = tmp_path / "data"
    root.mkdir()
    run(root, 1, 60, "kill", {})
    log = max(each for each in (root / "store/records").glob("*.log") if each.stat().st_size)
    os.truncate(log, len(log.read_bytes().rstrip(b"\0")) - 7)
    (root / "acknowledged").write_bytes(b"59")
    disk, calls = recorded_run(tmp_path, root, 60, 75, library)
    exact, further = lose_power_often(disk, root, calls, 75, memory)
    assert min(exact, further) > 0, (exact, further)
