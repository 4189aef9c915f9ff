"""A stream of a million records costs no more memory, and no more time at the start, than one."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganglion.broker.store import Kind
from ganglion.broker.store.rocksdb import RocksStore
from tests.broker.core.stream_surroundings import RocksHouse

RECORDS = 1_000_000
MIB = 1024 * 1024


@pytest.mark.slow
def test_a_million_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart reads none of them, and a follower has one batch of them in memory at a time."""
    house = RocksHouse(tmp_path / "data")
    stream = house.declare(max_records=2 * RECORDS, max_age_s=1000)
    for _ in range(RECORDS // 50_000):
        stream.append([b"x" * 100] * 50_000)
        house.flush()

    given = 0
    scan = RocksStore.scan

    def counted(
        store: RocksStore,
        kind: Kind,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        nonlocal given
        for record in scan(store, kind, start, stop, backwards=backwards):
            given += 1
            yield record

    monkeypatch.setattr(RocksStore, "scan", counted)
    house.restart()
    stream = house.stream()
    assert stream.last == RECORDS
    assert stream.append([b"more"]) == (RECORDS + 1, RECORDS + 1)
    house.flush()
    house.pass_time(2)  # retention has looked
    assert given < 10

    tracemalloc.start()
    try:
        follower, read = stream.follow(0, lambda: None), 0
        while (batch := follower.take_batch(10_000)) is not None:
            read += len(batch.payloads)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == RECORDS + 1
    assert peak_bytes < 4 * MIB
    house.close()
