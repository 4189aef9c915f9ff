"""What a node counts."""

import itertools

import pytest

from ganglion.broker.core.statistics import PROTOCOLS, SECONDS, Histogram, Statistics


def test_everything_begins_at_zero() -> None:
    """A new node has counted nothing."""
    statistics = Statistics()
    by_reason = {"dropped", "requests_ended"}
    for name in Statistics.__slots__:
        value = getattr(statistics, name)
        if isinstance(value, Histogram):
            assert sum(value.counts) == value.total == 0
        elif name == "traffic":
            assert tuple(value) == PROTOCOLS
        else:
            assert value == ({} if name in by_reason else 0)
    assert statistics.packets_sent == statistics.publish_bytes_sent == 0
    assert statistics.publish_received == statistics.publish_bytes_received == 0


def test_drops_are_counted_by_reason() -> None:
    """Nothing is dropped without being counted under a reason (DESIGN rule 7)."""
    statistics = Statistics()
    statistics.drop("slow")
    statistics.drop("slow", 4)
    statistics.drop("late")
    assert statistics.dropped == {"slow": 5, "late": 1}


def test_packets_sent_are_messages_and_others() -> None:
    """Every packet that is sent is in one of two counters."""
    statistics = Statistics()
    statistics.traffic["mqtt"].sent += 1
    statistics.traffic["native"].sent += 2
    statistics.other_packets_sent += 4
    assert statistics.packets_sent == 7


def test_a_histogram_counts_by_cell() -> None:
    """A value is in the first cell whose bound it does not exceed; all others are in the last."""
    histogram = Histogram((1.0, 2.0, 5.0))
    for value in (0.0, 1.0, 1.1, 5.0, 5.1, 100.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 2]
    assert histogram.total == 112.2


def test_times_have_cells_from_microseconds_to_seconds() -> None:
    """The bounds rise, by at most two and a half."""
    assert SECONDS[0] == pytest.approx(1e-5)
    assert SECONDS[-1] == 5
    assert all(1 < b / a < 2.6 for a, b in itertools.pairwise(SECONDS))
