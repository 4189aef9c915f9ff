"""Copies of a store in use: of one moment, whatever becomes of its files meanwhile."""

import threading
from pathlib import Path

import pytest

from ganglion.broker.store import Kind, StoreLocked
from ganglion.broker.store.rocks_copy import copied
from tests.broker.store.stores import Core, commit, contents, open_rocks


@pytest.mark.slow
def test_files_may_come_and_go(tmp_path: Path) -> None:
    """While files are written, merged and deleted all the time, a copy is one whole commit."""
    core = Core()
    store = open_rocks(tmp_path / "store", core)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            number = store.commit_number + 1
            number_text = b"%d" % number
            kinds = (Kind.SESSION, Kind.WILL, Kind.BACKLOG)
            commit(store, core, *((kind, b"last", number_text) for kind in kinds))
            if number % 5 == 0:
                store.compact()
                stopping.wait(0.1)  # files keep still for longer than a copy takes, now and then

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            before = store.commit_number
            with copied(tmp_path / "store") as copy:
                assert copy.commit_number >= before
                found = contents(copy)
                assert set(found.values()) <= {b"%d" % copy.commit_number}
                assert len(found) in (0, 3)
                assert len(found) == 3 or copy.commit_number == 0
    finally:
        stopping.set()
        thread.join()
        core.close()
    assert not core.fatal


def test_the_copy_stays_as_it_is(tmp_path: Path) -> None:
    """What is committed and deleted after the copy was made is none of it; leftovers go."""
    core = Core()
    store = open_rocks(tmp_path / "store", core)
    commit(store, core, (Kind.SESSION, b"a", b"1"))
    left = tmp_path / "store/copy/store/records/000001.log"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"left by a killed command")
    with copied(tmp_path / "store") as copy:
        commit(store, core, (Kind.SESSION, b"a", None), (Kind.SESSION, b"b", b"2"))
        store.compact()
        assert contents(copy) == {(Kind.SESSION, b"a"): b"1"}
        with pytest.raises(StoreLocked), copied(tmp_path / "store"):
            pass
    assert contents(store) == {(Kind.SESSION, b"b"): b"2"}
    assert not (tmp_path / "store/copy/store").exists()
    core.close()
