"""How fast a stream takes records and gives them back: ``python -m bench.streams``.

In one process and without a network: `Stream.append` with a commit log on disk, every commit
synced, one commit under way while the next one fills, as in the node. Then the stored records are
read by columns (`Stream.read_batches`), as those are that are sent on by the batch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from bench.brokers import BenchmarkError
from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.router import Bound
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.stream import Stream
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.streams import Streams
from ganglion.broker.core.timers import Timers
from ganglion.broker.store.rocksdb import RocksStore

__all__ = ["Figures", "measure"]

_APPENDS_WAITING = 16
"""Appends that are not acknowledged, of all publishers together."""
_PAYLOADS = 16  # different ones, so that none is compressed or cached as a whole


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run measured."""

    appended_per_s: float
    """Records that were appended and synced."""
    read_per_s: float
    """Records that were read back, from the files or from the memory of the operating system."""
    commits: int
    """How many commits, and so syncs, that took."""


def measure(
    directory: Path | None = None,
    *,
    records: int = 2_000_000,
    size_bytes: int = 100,
    batch: int = 500,
    rounds: int = 1,
) -> Figures:
    """Append and read so many records; of several rounds the best figure of each kind.

    `batch` records go into each append. The store is made below `directory`, None: where temporary
    files are. Raises `BenchmarkError` when the store fails or records are missing.
    """
    found: list[Figures] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="ganglion-streams-", dir=directory) as place:
            found.append(_round(Path(place), records, size_bytes, batch))
    return Figures(
        max(each.appended_per_s for each in found),
        max(each.read_per_s for each in found),
        min(each.commits for each in found),
    )


def _round(directory: Path, records: int, size_bytes: int, batch: int) -> Figures:
    calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = RocksStore(directory, in_core=calls.put, fatal=lambda what: calls.put(_failure(what)))
    try:
        timers, statistics = Timers(time.monotonic()), Statistics()
        commits = Commits(store, timers, statistics)
        shelf = Shelf(store, commits, timers, time.time() - time.monotonic())
        streams = Streams(shelf, statistics, _unrouted, _unrouted)
        stream = streams.declare(StreamDefinition(name="bench"))
        begin = time.perf_counter()
        _append(stream, commits, calls, records // batch, size_bytes, batch)
        appended_s = time.perf_counter() - begin
        begin = time.perf_counter()
        read = sum([len(each.payloads) for each in stream.read_batches()])
        read_s = time.perf_counter() - begin
    finally:
        store.close()
    if read != stream.last or read < records // batch * batch:
        raise BenchmarkError(f"{read} of {records} records were read back")
    return Figures(stream.last / appended_s, read / read_s, commits.number)


def _append(
    stream: Stream,
    commits: Commits,
    calls: "SimpleQueue[Callable[[], None]]",
    appends: int,
    size_bytes: int,
    batch: int,
) -> None:
    payloads = [
        [b"%0*d" % (size_bytes, number * batch + each) for each in range(batch)]
        for number in range(_PAYLOADS)
    ]
    waiting = 0

    def acknowledge() -> None:
        nonlocal waiting
        waiting -= 1

    sent = 0
    while sent < appends or waiting:
        while sent < appends and waiting < _APPENDS_WAITING:
            stream.append(payloads[sent % _PAYLOADS])
            commits.after_commit(acknowledge)
            sent += 1
            waiting += 1
        commits.flush()
        calls.get()()


def _failure(what: str) -> Callable[[], None]:
    def fail() -> None:
        raise BenchmarkError(what)

    return fail


def _unrouted(_receiver: Bound, _topic_filter: str) -> None:
    """Nothing is routed here."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="bench.streams", description=__doc__)
    parser.add_argument("--records", type=int, default=2_000_000, help="how many in each round")
    parser.add_argument("--size", type=int, default=100, help="bytes of each record")
    parser.add_argument("--batch", type=int, default=500, help="records of each append")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts")
    parser.add_argument("--directory", type=Path, help="where, on the disk that is to be measured")
    options = parser.parse_args(arguments)
    figures = measure(
        options.directory,
        records=options.records,
        size_bytes=options.size,
        batch=options.batch,
        rounds=options.rounds,
    )
    print(f"append  {figures.appended_per_s:12,.0f} records/s, {figures.commits} commits synced")
    print(f"read    {figures.read_per_s:12,.0f} records/s")


if __name__ == "__main__":
    main()
