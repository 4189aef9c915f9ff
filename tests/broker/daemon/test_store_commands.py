"""``ganglion store``: what it says of a store, and what it makes of it."""

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganglion.broker.daemon.store_commands import (
    backup_store,
    rescue_store,
    store_info,
    verify_store,
)
from ganglion.broker.store import Kind, StoreError
from ganglion.clients.command_line.failures import Failure
from ganglion.clients.command_line.root import cli
from tests.broker.store.stores import Core, commit, contents, open_rocks


@pytest.fixture
def core() -> Iterator[Core]:
    """The core in which commits complete."""
    core = Core()
    yield core
    core.close()


@pytest.fixture
def data(tmp_path: Path, core: Core) -> Path:
    """A data directory whose store has two commits."""
    store = open_rocks(tmp_path / "data" / "store", core)
    commit(store, core, *((Kind.BACKLOG, b"%d" % number, b"message") for number in range(30)))
    commit(store, core, (Kind.RETAINED, b"topic", b"value"), (Kind.BACKLOG, b"0", None))
    store.close()
    return tmp_path / "data"


def run(*arguments: object) -> Result:
    """Run a command as `main` does, but return its result; a failure is its own exception."""
    return CliRunner().invoke(cli, [str(each) for each in arguments], standalone_mode=False)


def failure(*arguments: object) -> tuple[int, str]:
    """Exit code and message of a command that fails."""
    error = run(*arguments).exception
    assert isinstance(error, Failure)
    return error.exit_code, error.message


def test_info(data: Path) -> None:
    """It tells commit number, epoch, size and records, for people and for programs."""
    info = json.loads(run("store", "info", "--json", "--data", data).stdout)
    assert info["directory"] == str(data / "store")
    assert (info["commit_number"], info["epoch"]) == (2, 1)
    assert info["size_bytes"] > 1000
    assert set(info["records"]) == {kind.name.lower() for kind in Kind}
    assert info["records"]["retained"] == 1
    assert (info["feed_first"], info["feed_bytes"]) == (None, 0)
    lines = dict(
        line.split(None, 1) for line in run("store", "info", "--data", data).stdout.splitlines()
    )
    assert lines["commit_number"] == "2"
    assert lines["records.retained"] == "1"


def test_verify_of_a_good_store(data: Path) -> None:
    """It counts exactly and says that all is well."""
    result = run("store", "verify", "--data", data)
    assert not result.return_value
    lines = result.stdout.splitlines()
    assert "backlog: 29 good records" in lines
    assert lines[-1] == "Every checksum fits."


def test_progress(data: Path, tmp_path: Path) -> None:
    """Reading everything tells of each kind how many records there were."""
    for call in (verify_store, partial(rescue_store, target=tmp_path / "saved")):
        told: dict[str, int] = {}
        call(data, progress=told.__setitem__)
        assert set(told) == {kind.name.lower() for kind in Kind}
        assert (told["backlog"], told["retained"], told["session"]) == (29, 1, 0)


def test_verify_and_rescue_of_a_damaged_store(data: Path, tmp_path: Path, core: Core) -> None:
    """Damage is listed with kind and key and is exit code 1; what is good can be saved."""
    path = max(
        (data / "store/records").glob("*.sst"), key=lambda each: each.read_bytes().count(b"message")
    )
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"message")] ^= 1
    path.write_bytes(damaged)
    for command in (["verify"], ["rescue", tmp_path / "saved"]):
        result = run("store", *command, "--data", data)
        assert result.return_value == 1 or result.exit_code == 1
        assert "damaged: backlog b'1': the checksum does not fit" in result.stdout.splitlines()
    store = open_rocks(tmp_path / "saved" / "store", core)
    assert len(contents(store)) == 29
    assert (Kind.BACKLOG, b"1") not in contents(store)
    store.close()
    code, message = failure("store", "rescue", tmp_path / "saved", "--data", data)
    assert (code, "already" in message) == (1, True)


def test_backup_is_a_data_directory(data: Path, tmp_path: Path, core: Core) -> None:
    """A node can start from what `backup` made; a second backup does not go over the first."""
    result = run("store", "backup", tmp_path / "backup", "--data", data)
    assert "commit 2" in result.stdout
    assert run("store", "verify", "--data", tmp_path / "backup").stdout.endswith("checksum fits.\n")
    store = open_rocks(tmp_path / "backup" / "store", core)
    assert store.get(Kind.RETAINED, b"topic") == b"value"
    store.close()
    code, message = failure("store", "backup", tmp_path / "backup", "--data", data)
    assert (code, "already" in message) == (1, True)


def test_compact(data: Path, core: Core) -> None:
    """It says how large the store was and is, and leaves every record."""
    result = run("store", "compact", "--data", data)
    assert " before, " in result.stdout
    store = open_rocks(data / "store", core)
    assert len(contents(store)) == 30
    store.close()


@pytest.mark.parametrize("command", [["compact"], ["rescue"]])
def test_a_store_in_use(data: Path, tmp_path: Path, core: Core, command: list[str]) -> None:
    """While a node runs nothing is changed: its process is named."""
    target = [str(tmp_path / "target")] if command[0] == "rescue" else []
    store = open_rocks(data / "store", core)
    code, message = failure("store", *command, *target, "--data", data)
    assert code == 69
    assert f"process {os.getpid()}" in message
    assert not (tmp_path / "target").exists()
    store.close()


@pytest.mark.slow
def test_commands_while_commits_go_on(data: Path, tmp_path: Path, core: Core) -> None:
    """What is read of a store in use is one commit, and none from before the command."""
    store = open_rocks(data / "store", core)
    stopping = threading.Event()
    numbers = [store.commit_number]

    def work() -> None:
        while not stopping.is_set():
            numbers.append(numbers[-1] + 1)
            batch = store.batch()
            for kind in (Kind.SESSION, Kind.WILL):
                batch.put(kind, b"last", b"%d" % numbers[-1])
                batch.put(kind, b"%d" % numbers[-1], bytes(1000))
            store.commit(batch, lambda: None)
            core.wait(lambda: store.commit_number == numbers[-1])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for round_number in range(3):
            before = store.commit_number
            assert verify_store(data)[1]
            assert store_info(data)["commit_number"] >= before
            told: dict[str, int] = {}
            target = tmp_path / f"backup{round_number}"
            before = store.commit_number
            backup_store(data, target, told.__setitem__)
            assert told["session"] > 0
            backup = open_rocks(target / "store", core)
            number = backup.commit_number
            assert before <= number
            assert backup.get(Kind.RETAINED, b"topic") == b"value"
            for kind in (Kind.SESSION, Kind.WILL):
                keys = {key for key, _ in backup.scan(kind)}
                assert keys == {b"last", *(b"%d" % each for each in range(3, number + 1))} or (
                    number == 2 and not keys
                )
                assert backup.get(kind, b"last") == (b"%d" % number if number > 2 else None)
            backup.close()
    finally:
        stopping.set()
        thread.join()
    assert not core.fatal
    assert not core.damages
    assert not (data / "store/copy/store").exists()
    assert len(list(store.scan(Kind.WILL))) == store.commit_number - 2 + 1
    store.close()


def test_an_unfinished_backup_is_refused(data: Path, tmp_path: Path, core: Core) -> None:
    """A backup of a node that is interrupted does not pass for a store."""
    store = open_rocks(data / "store", core)

    def interrupt(what: str, count: int) -> None:
        raise KeyboardInterrupt(what, count)

    with pytest.raises(KeyboardInterrupt):
        backup_store(data, tmp_path / "backup", interrupt)
    with pytest.raises(StoreError, match="was being loaded"):
        open_rocks(tmp_path / "backup" / "store", core)
    with pytest.raises(StoreError, match="already"):
        backup_store(data, tmp_path / "backup")
    assert not (data / "store/copy/store").exists()
    store.close()


def test_a_backup_with_damage_is_refused(data: Path, tmp_path: Path, core: Core) -> None:
    """Of a node whose store has a damaged record no backup is made; the error says what to do."""
    path = max(
        (data / "store/records").glob("*.sst"), key=lambda each: each.read_bytes().count(b"message")
    )
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"message")] ^= 1
    path.write_bytes(damaged)
    store = open_rocks(data / "store", core)
    assert not verify_store(data)[1]
    code, message = failure("store", "backup", tmp_path / "backup", "--data", data)
    assert code != 0
    assert f"the store in {data / 'store'} is damaged" in message
    assert "rescue" in message
    with pytest.raises(StoreError, match="was being loaded"):
        open_rocks(tmp_path / "backup" / "store", core)
    store.close()


@pytest.mark.parametrize("command", [["info"], ["verify"], ["compact"], ["backup"], ["rescue"]])
def test_no_store(tmp_path: Path, command: list[str]) -> None:
    """Where there is no store, none is made."""
    target = [str(tmp_path / "target")] if command[0] in ("backup", "rescue") else []
    code, message = failure("store", *command, *target, "--data", tmp_path / "none")
    assert (code, "no store" in message) == (1, True)
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "target").exists()
