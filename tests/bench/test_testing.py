"""The measurement of brokers for tests: each kind is started, and its time is more than nothing."""

from bench.testing import STARTS, measure


def test_every_start() -> None:
    """As often as was asked for."""
    times = measure(2)
    assert list(times) == list(STARTS)
    assert all(len(each) == 2 and min(each) > 0 for each in times.values())
