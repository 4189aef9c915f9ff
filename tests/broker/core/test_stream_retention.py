"""Retention of a stream: by records, bytes and age, whole batches at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ganglion.broker.core.stream import Stream
from ganglion.broker.store import Kind
from tests.broker.core.stream_surroundings import House, RocksHouse, sequences


@pytest.fixture
def house() -> House:
    """Streams over a store in memory."""
    return House()


@pytest.fixture(params=["memory", "rocks"])
def any_house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """Streams over each of the stores."""
    if request.param == "memory":
        yield House()
        return
    house = RocksHouse(tmp_path / "data")
    yield house
    house.close()


def append(house: House, stream: Stream, *commits: int) -> None:
    """Append so many records in each commit."""
    for count in commits:
        stream.append([b"0123456789"] * count)
        house.flush()


def test_by_records(any_house: House) -> None:
    """At least so many are kept, and at most one batch more; the rest is gone from the store."""
    house = any_house
    stream = house.declare(max_records=10)
    for count in (3, 4, 2, 1, 6, 10, 1, 1, 30, 2):
        before = [batch.first for batch in stream.read_batches()]
        append(house, stream, count)
        kept = list(stream.read_batches())
        records = stream.statistics().records
        assert records >= min(10, stream.last)
        assert records - len(kept[0].payloads) < 10
        assert house.stored(Kind.STREAM_BATCH) == len(kept)
        assert [batch.first for batch in kept[:-1]] == before[len(before) + 1 - len(kept) :]
        house.check(stream)
    house.restart()
    house.check(house.stream())


def test_by_bytes(any_house: House) -> None:
    """At least so many bytes are kept, as they are stored, and at most one batch more."""
    house = any_house
    stream = house.declare(max_bytes=1000)
    for _ in range(30):
        append(house, stream, 7)
        sizes = [len(value) for _, value in stream.stored(1, stream.last)]
        assert stream.statistics().bytes == sum(sizes)
        assert sum(sizes) >= 1000 or stream.first == 1
        assert sum(sizes[1:]) < 1000
    assert stream.first > 1
    house.check(stream)


def test_by_age(any_house: House) -> None:
    """What is too old goes without an append, within a second, up to the last record."""
    house = any_house
    stream = house.declare(max_age_s=100)
    append(house, stream, 3)
    house.pass_time(50)
    append(house, stream, 2)
    house.pass_time(49)
    assert stream.first == 1
    house.pass_time(2)
    assert sequences(stream.read()) == [4, 5]
    house.pass_time(60)
    assert stream.read() == []
    assert stream.statistics().records == stream.statistics().bytes == 0
    assert house.stored(Kind.STREAM_BATCH) == 0
    house.check(stream)
    append(house, stream, 1)
    assert sequences(stream.read()) == [6]


def test_by_age_after_a_restart(house: House) -> None:
    """What became too old while the node was down goes soon after the start."""
    stream = house.declare(max_age_s=100)
    append(house, stream, 3)
    house.timers.run(500.0)
    house.restart()
    assert sequences(house.stream().read()) == [1, 2, 3]
    house.pass_time(2)
    assert house.stream().read() == []
    house.check(house.stream())


def test_looking_at_the_age_costs_nothing_while_nothing_is_due(house: House) -> None:
    """The timer waits for the first batch; it does not look every second."""
    stream = house.declare(max_age_s=10_000)
    append(house, stream, 3)
    house.pass_time(2)
    number = house.commits.number
    house.pass_time(9_000)
    assert house.commits.number == number


def test_many_batches_are_dropped_in_steps(house: House) -> None:
    """More than one commit drops goes in the commits that follow, without an append."""
    stream = house.declare()
    append(house, stream, *[1] * 1000)
    stream = house.declare(max_records=10)
    assert stream.statistics().records == 10
    assert house.stored(Kind.STREAM_BATCH) == 10
    house.check(stream)


@pytest.mark.parametrize("done", [0, 1])
def test_dropping_goes_on_after_a_restart(house: House, done: int) -> None:
    """What was to be dropped when the node stopped is dropped with the first append."""
    stream = house.declare()
    append(house, stream, *[1] * 200)
    house.faulty.is_holding = True
    house.declare(max_records=10)
    if done:
        batch, _ = house.faulty.held.pop()
        house.faulty.is_holding = False
        house.faulty.commit(batch, lambda: None)
    house.restart()
    stream = house.declare(max_records=10)
    append(house, stream, 1)
    assert sequences(stream.read()) == list(range(192, 202))
    house.check(stream)


def test_one_large_commit(house: House) -> None:
    """What comes with one commit is dropped by whole batches, once it is durable."""
    stream = house.declare(max_records=10)
    stream.append([b"x"] * 2500)
    house.flush()
    assert sequences(stream.read()) == list(range(2001, 2501))
    house.check(stream)


def test_what_is_not_durable_yet_is_not_dropped(house: House) -> None:
    """A commit under way counts, but nothing of it goes before it is there."""
    stream = house.declare(max_records=2)
    append(house, stream, 2)
    house.faulty.is_holding = True
    stream.append([b"x"] * 5)
    house.flush()
    stream.append([b"x"] * 5)
    house.faulty.release()
    house.flush()
    assert sequences(stream.read()) == [8, 9, 10, 11, 12]
    house.check(stream)


def test_a_follower_that_was_overtaken_counts_what_it_missed(house: House) -> None:
    """It goes on with the first record that is kept."""
    stream = house.declare(max_records=4)
    append(house, stream, 2, 2)
    follower = stream.follow(0, lambda: None)
    assert sequences(follower.take(1)) == [1]
    follower.rest()
    append(house, stream, 2, 2, 2)
    assert stream.first == 7
    assert sequences(follower.take(10)) == [7, 8, 9, 10]
    assert follower.skipped == 5


def test_a_limit_that_becomes_tighter_counts_at_once(house: House) -> None:
    """Whatever the timer waited for before."""
    stream = house.declare(max_age_s=100_000)
    append(house, stream, 3)
    house.pass_time(50)
    append(house, stream, 3)
    house.pass_time(5)
    house.declare(max_age_s=60)
    assert stream.first == 1
    house.pass_time(7)
    assert stream.first == 4
    house.declare(max_age_s=5)
    assert stream.read() == []


def test_a_limit_that_is_lifted_drops_nothing_any_more(house: House) -> None:
    """Without limits everything stays."""
    stream = house.declare(max_age_s=10, max_records=5)
    append(house, stream, 5)
    house.declare()
    house.pass_time(100)
    append(house, stream, 5)
    assert stream.statistics().records == 10


def test_damage_is_dropped_with_what_follows_it(house: House) -> None:
    """It counts no longer: as much is kept afterwards as without it."""
    stream = house.declare()
    append(house, stream, 5, 20, 5, 5, 5, 5)
    for first in (1, 6):
        house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(first)))
    house.declare(max_records=10)
    assert stream.first == 36
    assert stream.statistics().records == 10
    house.faulty.damaged.clear()
    assert house.stored(Kind.STREAM_BATCH) == 2
    append(house, stream, *[5] * 5)
    assert len(stream.read()) == stream.statistics().records == 10


def test_a_stream_that_is_all_damage_begins_again_exact(house: House) -> None:
    """When all that was lost is behind it, counts are right again."""
    stream = house.declare(max_age_s=10)
    append(house, stream, 5, 5)
    for first in (1, 6):
        house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(first)))
    house.pass_time(20)
    append(house, stream, 3)
    house.pass_time(20)
    assert stream.statistics().records == stream.statistics().bytes == 0
    house.check(stream)
