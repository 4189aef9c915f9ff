"""The benchmark of what is kept: its verdicts, and its programs on Ganglion alone, in small."""

from pathlib import Path

import msgpack
import pytest

from bench import load
from bench.backlog import fill, measure_backlog
from bench.brokers import start
from bench.durable import SCENARIOS, Figure, Plan, at_least, at_most, render
from ganglion.broker.store import Kind
from ganglion.broker.store.rocksdb import RocksStore


def test_a_rate_is_held_against_another() -> None:
    """The ratio decides; where the other was not measured there is no verdict."""
    assert at_least("q", 100.0, 10, "X", 10.0) == Figure(
        "q", ">= 10x X", "100 /s", "10 /s", 10.0, True
    )
    assert at_least("q", 99.0, 10, "X", 10.0).reached is False
    assert at_least("q", 99.0, 10, "X", None).reached is None
    assert at_least("q", 99.0, 10, "X", 0.0).reached is None


def test_what_there_may_be_at_most() -> None:
    """The bound itself is allowed."""
    assert at_most("m", 300.0, 300, "MB").reached is True
    assert at_most("m", 300.1, 300, "MB").reached is False


def test_the_table_shows_every_figure() -> None:
    """One line each, with its verdict."""
    lines = render(
        [Figure("a", ">= 1 /s", "2 /s", "", None, True), Figure("b", "", "1", "2", 0.5, False)]
    ).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[2].rstrip("| ").endswith("yes")
    assert "0.50" in lines[3]
    assert lines[3].rstrip("| ").endswith("NO")


def test_a_filled_store_has_the_messages(tmp_path: Path) -> None:
    """As many as were asked for, also when the last commit is not full."""
    fill(tmp_path / "store", 10_007)
    store = RocksStore(
        tmp_path / "store", in_core=lambda call: call(), fatal=pytest.fail, create=False
    )
    counts = [msgpack.unpackb(value)[2] for _, value in store.scan(Kind.BACKLOG_STATE)]
    store.close()
    assert sum(counts) == 10_007


@pytest.mark.interop
@pytest.mark.slow
def test_a_queue_gives_out_what_it_was_given(tmp_path: Path) -> None:
    """Every message once, in order for each publisher and consumer, and acknowledged."""
    words = ["--queues", "--qos", "1", "--pubs", "3", "--subs", "2", "--window", "50"]
    with start("ganglion", tmp_path / "broker") as broker:
        run = load.run(broker, words, duration_s=0.3, warmup_s=0.05)
    assert run.delivered_per_s > 0
    assert 0 < run.ack_p50_us <= run.ack_p99_us
    assert (run.lost, run.disordered, run.refused) == (0, 0, 0)


@pytest.mark.interop
@pytest.mark.slow
def test_a_backlog_is_found_and_consumed(tmp_path: Path) -> None:
    """What one process filled, a daemon gives out in order."""
    found = measure_backlog(tmp_path, 2_000)
    assert found.first_s > 0
    assert found.memory_bytes > 0
    assert found.consumed_per_s > 0
    assert found.faults == 0


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.parametrize("name", ["queue", "beside", "latency", "sessions"])
def test_scenarios_run(tmp_path: Path, name: str) -> None:
    """Each gives figures, whatever they are on a busy machine."""
    plan = Plan(brokers=("ganglion",), rounds=1, duration_s=0.2, backlog=1000, base=False)
    figures = SCENARIOS[name](plan, tmp_path)
    assert figures
    for each in figures:
        assert each.value
        if each.goal == "one a message":
            assert each.reached
