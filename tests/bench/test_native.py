"""The measurement of the native protocol: every figure is there, and means what it says."""

from pathlib import Path

import pytest

from bench import load
from bench.brokers import start
from bench.native import measure

pytestmark = [pytest.mark.interop, pytest.mark.slow]


@pytest.mark.parametrize("size", ["16", "200", "300", "70000"])
@pytest.mark.parametrize(
    "words", [(), ("--qos", "1"), ("--qos", "1", "--queues")], ids=["plain", "confirmed", "queues"]
)
def test_every_delivery_is_counted_once(tmp_path: Path, size: str, words: tuple[str, ...]) -> None:
    """Payloads of each form of length; nothing is lost, doubled or out of order."""
    options = ["--native", "--pubs", "3", "--subs", "3", "--topics", "3", "--size", size, *words]
    with start("ganglion", tmp_path / "broker") as broker:
        run = load.run(broker, options, duration_s=0.3, warmup_s=0.05)
    assert run.delivered_per_s > 0
    assert (run.disordered, run.refused) == (0, 0)
    assert run.lost == 0


def test_every_figure(tmp_path: Path) -> None:
    """None is nothing."""
    with start("ganglion", tmp_path / "broker") as broker:
        figures = measure(broker, runs=1, seconds=0.2)
    assert len(figures) == 9
    assert all(each.native > 0 for each in figures)
