"""A definition that rots on disk: it is reported and listed, and costs as little as can be.

A queue or stream is found by its definition. That is recorded twice, so one flipped bit costs
nothing; when both are lost the others go on, and a rescued store is one without it.
"""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.crash_native import (
    CONFIRMED,
    OK,
    PUBLISH,
    QUEUE_BROWSE,
    QUEUE_DECLARE,
    READ,
    STREAM_DECLARE,
    NativeClient,
)
from tests.support import Daemon, start_daemon

COUNT = 20
KEYS = [r"b'\x00damaged'", "b'damaged'"]
"""Those of a definition."""
DECLARE = {"queue": QUEUE_DECLARE, "stream": STREAM_DECLARE}


@contextmanager
def node(data: Path) -> Generator[tuple[Daemon, NativeClient]]:
    """A node with this data directory and a client of it."""
    with (
        start_daemon("--native", "127.0.0.1:0", "--data", str(data)) as daemon,
        NativeClient(daemon.ports, "client") as client,
    ):
        yield daemon, client


def publish(client: NativeClient, topic: str) -> None:
    """Publish numbers, and see them confirmed."""
    for number in range(COUNT):
        answer = client.answer(client.ask(PUBLISH, topic, b"%d" % number))
        assert answer[0] == CONFIRMED, answer


def contents(client: NativeClient, kind: str, name: str) -> list[bytes] | str:
    """The payloads in a queue or stream; or the code of the error."""
    if kind == "queue":
        answer = client.answer(client.ask(QUEUE_BROWSE, name, {"count": 1000}))
        found = [row[4] for row in answer[2]["messages"]] if answer[0] == OK else answer[2]
    else:
        answer = client.answer(client.ask(READ, name))
        found = answer[2]["records"][3] if answer[0] == OK else answer[2]
    assert isinstance(found, list | str)
    return found


def store(command: str, *arguments: Path, data: Path) -> tuple[int, list[str]]:
    """Exit code and lines of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "ganglion", "store", command, *arguments, "--data", data],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def flip(data: Path, mark: bytes, count: int) -> None:
    """Flip a bit behind each of the first so many places where the mark is stored."""
    flipped = 0
    for path in sorted((data / "store/records").glob("*.sst")):
        found = bytearray(path.read_bytes())
        place = found.find(mark)
        while place >= 0 and flipped < count:
            found[place + len(mark) - 1] ^= 4
            flipped += 1
            place = found.find(mark, place + 1)
        path.write_bytes(found)
    assert flipped == count


def damaged_keys(lines: list[str], kind: str) -> list[str]:
    """The keys of this kind that `verify` lists, beside what RocksDB says of their block."""
    found: list[str] = []
    for line in lines:
        if line.startswith("damaged: ") and "block checksum" not in line:
            where, _, what = line.removeprefix(f"damaged: {kind} ").partition(": ")
            assert what == "the checksum does not fit", line
            found.append(where)
    return found


def numbers() -> list[bytes]:
    """What was published."""
    return [b"%d" % number for number in range(COUNT)]


@pytest.fixture(params=["queue", "stream"])
def kind(request: pytest.FixtureRequest) -> str:
    """What has the definition that is damaged."""
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path, kind: str) -> Path:
    """A data directory in which everything has a definition, and messages."""
    with node(tmp_path / "data") as (_, client):
        for each, declare in DECLARE.items():
            client.call(declare, "damaged", {"bindings": [f"bound/{each}/#"]})
            client.call(declare, "other", {"bindings": ["other"]})
        publish(client, f"bound/{kind}")
        publish(client, "other")
    return tmp_path / "data"


def check_others(client: NativeClient, kind: str) -> None:
    """All but what is damaged is there, and takes what is published."""
    for each, name in (("queue", "other"), ("stream", "other")):
        assert contents(client, each, name) == numbers()
    other_kind = "queue" if kind == "stream" else "stream"
    publish(client, f"bound/{other_kind}")
    assert contents(client, other_kind, "damaged") == numbers()


def test_one_damaged_record_of_a_definition_costs_nothing(
    data: Path, tmp_path: Path, kind: str
) -> None:
    """It is reported with kind and key, `verify` lists it, and the next start mends it."""
    flip(data, f"bound/{kind}/#".encode(), 1)
    code, lines = store("verify", data=data)
    assert code != 0
    (key,) = damaged_keys(lines, kind)
    assert key in KEYS
    with node(data) as (daemon, client):
        assert any(
            event["kind"] == kind and event["key"].endswith("damaged'")
            for event in daemon.events
            if event["event"] == "damaged record"
        )
        assert contents(client, kind, "damaged") == numbers()
        publish(client, f"bound/{kind}")
        assert contents(client, kind, "damaged") == 2 * numbers()
        check_others(client, kind)
    assert damaged_keys(store("verify", data=data)[1], kind) == []
    store("rescue", tmp_path / "rescued", data=data)  # of the block, which still has the bad bit
    assert store("verify", data=tmp_path / "rescued")[0] == 0
    with node(tmp_path / "rescued") as (_, client):
        assert contents(client, kind, "damaged") == 2 * numbers()


def test_a_lost_definition_costs_only_what_it_led_to(data: Path, tmp_path: Path, kind: str) -> None:
    """The rest goes on; a rescued store is good, and has all the rest."""
    flip(data, f"bound/{kind}/#".encode(), 2)
    code, lines = store("verify", data=data)
    assert code != 0
    assert sorted(damaged_keys(lines, kind)) == KEYS
    with node(data) as (daemon, client):
        daemon.wait_event("damaged record", kind=kind)
        assert contents(client, kind, "damaged") == "not_found"
        check_others(client, kind)
    store("rescue", tmp_path / "rescued", data=data)
    assert store("verify", data=tmp_path / "rescued")[0] == 0
    with node(tmp_path / "rescued") as (daemon, client):
        assert contents(client, kind, "damaged") == "not_found"
        for each in DECLARE:
            assert contents(client, each, "other") == numbers()
        client.call(DECLARE[kind], "damaged", {"bindings": [f"bound/{kind}/#"]})
        publish(client, f"bound/{kind}")
        assert contents(client, kind, "damaged") == numbers()
        bad = [each for each in daemon.events if each["level"] in ("error", "critical")]
        assert not bad
