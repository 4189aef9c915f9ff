"""What a node counts."""

from ganglion.broker.core.statistics import Statistics


def test_everything_begins_at_zero() -> None:
    """A new node has counted nothing."""
    statistics = Statistics()
    by_reason = {"dropped", "requests_ended"}
    for name in Statistics.__slots__:
        assert getattr(statistics, name) == ({} if name in by_reason else 0)
    assert statistics.packets_sent == 0


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
    statistics.publish_sent += 3
    statistics.other_packets_sent += 4
    assert statistics.packets_sent == 7
