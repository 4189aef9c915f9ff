"""Compaction of a stream: the last record of each key stays, tombstones go in the end."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ganglion.broker.core.stream import Stream
from ganglion.broker.store import Kind
from tests.broker.core.stream_surroundings import House, Reader, RocksHouse, sequences


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


def append(house: House, stream: Stream, *commits: Sequence[str | None]) -> None:
    """Append records with these keys, a commit for each group; a key with a dash is a tombstone."""
    for keys in commits:
        stream.append(
            [b"" if each and each.startswith("-") else b"x" for each in keys],
            keys=[each and each.removeprefix("-") for each in keys],
        )
        house.flush()


def begin_step(house: House) -> None:
    """Let time pass until a step of compaction is recorded, and hold its commit."""
    stream = house.stream()
    house.faulty.is_holding = True
    for _ in range(1000):
        if stream.compaction._is_recorded:
            return
        deadline = house.timers.next_deadline()
        assert deadline is not None
        house.timers.run(deadline)
        if not stream.compaction._is_recorded:
            house.flush()
            house.faulty.release()
            house.faulty.is_holding = True
    raise AssertionError("compaction did not begin to rewrite")


def test_the_last_of_each_key_stays(any_house: House) -> None:
    """And every record without a key; sequences and times are as they were."""
    house = any_house
    stream = house.declare(compact=True)
    append(house, stream, "abc", "ab", ["a", None], [None], "c")
    house.pass_time(30)
    assert sequences(stream.read()) == [5, 6, 7, 8, 9]
    append(house, stream, "a", "d")
    house.pass_time(8000)
    assert sequences(stream.read()) == [5, 7, 8, 9, 10, 11]
    assert [stream.version(key) for key in "abcd"] == [10, 5, 9, 11]
    house.check(stream)
    house.restart()
    stream = house.stream()
    assert sequences(stream.read()) == [5, 7, 8, 9, 10, 11]
    house.check(stream)


def test_many_records_in_many_steps(house: House) -> None:
    """A pass goes over the whole stream, however many steps that takes."""
    stream = house.declare(compact=True)
    for number in range(40):
        append(house, stream, [f"k{each}" for each in range(number, number + 500)])
    house.pass_time(60)
    assert stream.statistics().records == 539
    assert len({record.key for record in stream.read(count_max=10_000)}) == 539
    assert all(stream.version(record.key or "") == record.sequence for record in stream.read())
    house.check(stream)


def test_a_step_keeps_others_waiting_for_a_bounded_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is to compact, one call of a timer looks up a few keys."""
    stream = house.declare(compact=True)
    for _ in range(10):
        append(house, stream, [f"k{each}" for each in range(900)])
    looked_up: list[int] = []
    version = stream.version

    def counted(key: str) -> int:
        looked_up[-1] += 1
        return version(key)

    monkeypatch.setattr(stream, "version", counted)
    while stream.statistics().records > 900:
        looked_up.append(0)
        deadline = house.timers.next_deadline()
        assert deadline is not None
        house.timers.run(deadline)
        house.flush()
    assert max(looked_up) == 200
    assert sum(looked_up) <= 9000
    house.check(stream)


def test_small_batches_are_joined(house: House) -> None:
    """A stream of many commits is read by few batches in the end, though nothing of it goes."""
    stream = house.declare(compact=True)
    append(house, stream, *[[f"k{number}"] for number in range(700)])
    house.pass_time(60)
    assert house.stored(Kind.STREAM_BATCH) < 10
    assert stream.statistics().records == 700
    house.check(stream)


def test_nothing_to_do_writes_nothing(house: House) -> None:
    """A pass that finds nothing to take out and little to join leaves the store alone."""
    stream = house.declare(compact=True)
    append(house, stream, [f"k{number}" for number in range(900)])
    house.pass_time(30)
    number = house.commits.number
    house.pass_time(100_000)
    assert house.commits.number == number


class TestTombstones:
    """Last records with an empty payload."""

    def test_a_tombstone_stays_for_a_time(self, any_house: House) -> None:
        """So long that followers see it; then it goes, and the version of its key."""
        house = any_house
        stream = house.declare(compact=True, tombstone_keep_s=1000)
        append(house, stream, "ab", ["-a"])
        house.pass_time(500)
        assert sequences(stream.read()) == [2, 3]
        assert stream.version("a") == 3
        house.pass_time(600)
        assert sequences(stream.read()) == [2]
        assert stream.version("a") == 0
        assert house.stored(Kind.STREAM_KEY) == 1
        stream.append([b"new"], keys=["a"], expected={"a": 0})
        house.pass_time(30)
        assert sequences(stream.read()) == [2, 4]
        house.check(stream)

    def test_after_a_restart(self, house: House) -> None:
        """When it goes is found again by a pass over the stream."""
        stream = house.declare(compact=True, tombstone_keep_s=1000)
        append(house, stream, "ab", ["-a"])
        house.pass_time(500)
        house.restart()
        house.pass_time(1000)
        assert sequences(house.stream().read()) == [2]
        house.check(house.stream())

    def test_one_that_retention_drops(self, any_house: House) -> None:
        """The version of its key goes with it, and would stay for good otherwise."""
        house = any_house
        stream = house.declare(compact=True, tombstone_keep_s=1_000_000, max_records=2)
        append(house, stream, ["-a", "-b", "-c", "d"], ["b"])
        stream.append([b"x", b"x"], keys=["c", "e"])  # committed with the drop
        house.flush()
        house.flush()
        assert sequences(stream.read()) == [6, 7]
        assert [stream.version(key) for key in "abcde"] == [0, 5, 6, 4, 7]
        assert house.stored(Kind.STREAM_KEY) == 4
        append(house, stream, ["-f"], [None] * 3)
        stream.append([b"x"], keys=["f"])  # not committed, and known all the same
        house.flush()
        house.flush()
        assert stream.version("f") == 12
        house.check(stream)

    def test_a_damaged_one_that_retention_drops(self, house: House) -> None:
        """What it was about is not known any more: its version stays."""
        stream = house.declare(compact=True, max_records=2)
        append(house, stream, ["-a"])
        house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(1)))
        append(house, stream, "bc", "de")
        assert sequences(stream.read()) == [4, 5]
        assert stream.version("a") == 1

    def test_a_key_that_comes_back_keeps_its_new_record(self, house: House) -> None:
        """A tombstone that was followed by another record goes as any other."""
        stream = house.declare(compact=True, tombstone_keep_s=1000)
        append(house, stream, "a", ["-a"], "a")
        house.pass_time(2000)
        assert sequences(stream.read()) == [3]
        assert stream.version("a") == 3

    def test_a_shorter_time_counts_at_once(self, house: House) -> None:
        """A definition that keeps tombstones less long applies to those that are there."""
        stream = house.declare(compact=True, tombstone_keep_s=1_000_000)
        append(house, stream, "ab", ["-a"])
        house.pass_time(5000)
        house.declare(compact=True, tombstone_keep_s=60)
        house.pass_time(30)
        assert sequences(stream.read()) == [2]

    def test_the_last_record_of_a_stream(self, house: House) -> None:
        """Ranges in which nothing is left are covered, joined, and read as empty."""
        stream = house.declare(compact=True, tombstone_keep_s=60)
        append(house, stream, *[["a"]] * 5, ["-a"])
        house.pass_time(8000)
        assert stream.read() == []
        assert stream.statistics().records == 0
        assert house.stored(Kind.STREAM_BATCH) == 1
        reader = Reader().follow(stream)
        assert stream.append([b"x"], keys=["b"]) == (7, 7)
        house.flush()
        assert reader.sequences == [7]
        assert reader.source is not None
        assert reader.source.damaged == 0  # type: ignore[union-attr]  # it is a follower
        house.check(stream)


class TestInterrupted:
    """What may come between the steps of a pass."""

    def test_by_a_restart(self, house: House) -> None:
        """A step that was not committed has not happened; the next pass does it."""
        stream = house.declare(compact=True)
        append(house, stream, "abc", "abc", "abc")
        begin_step(house)
        house.flush()
        house.restart()
        stream = house.stream()
        assert stream.statistics().records == 9
        house.check(stream)
        house.pass_time(60)
        assert sequences(stream.read()) == [7, 8, 9]
        house.check(stream)

    def test_by_an_append_with_the_same_key_before_the_step(self, house: House) -> None:
        """What is not durable yet counts: the older record goes in the same commit."""
        stream = house.declare(compact=True, tombstone_keep_s=0)
        append(house, stream, "aab", ["-c"])
        house.faulty.is_holding = True
        stream.append([b"x", b"x"], keys=["b", "c"])
        begin_step(house)
        house.flush()
        house.faulty.release()
        house.flush()
        assert sequences(stream.read()) == [2, 5, 6]
        assert [stream.version(key) for key in "abc"] == [2, 5, 6]
        house.check(stream)

    def test_by_an_append_with_the_same_key_after_the_step(self, house: House) -> None:
        """In the commit that takes a tombstone out, a new record of its key has its version."""
        stream = house.declare(compact=True, tombstone_keep_s=0)
        append(house, stream, "ab", ["-a"])
        begin_step(house)
        stream.append([b"x"], keys=["a"])
        house.flush()
        house.faulty.release()
        house.flush()
        assert sequences(stream.read()) == [2, 4]
        assert stream.version("a") == 4
        house.check(stream)
        house.restart()
        assert house.stream().version("a") == 4
        house.check(house.stream())

    def test_by_a_restart_with_such_an_append(self, house: House) -> None:
        """Both are in one commit, so neither is lost without the other."""
        stream = house.declare(compact=True)
        append(house, stream, "ab", "ab")
        self.begin_judging(house)
        house.faulty.is_holding = True
        stream.append([b"x"], keys=["a"])
        while not stream.compaction._is_recorded:
            house.timers.run(house.timers.now + 0.01)
        house.flush()
        house.restart()
        assert sequences(house.stream().read()) == [1, 2, 3, 4]
        assert house.stream().version("a") == 3

    def test_by_retention(self, house: House) -> None:
        """Retention waits for the step, and drops then what is over the limit."""
        stream = house.declare(compact=True, max_records=3)
        append(house, stream, ["a", None], ["a", None], ["b"])
        begin_step(house)
        stream.append([b"x"] * 4, keys=[None] * 4)
        house.flush()
        stream.append([b"x"], keys=[None])
        house.faulty.release()
        house.flush()
        house.check(stream)
        assert sequences(stream.read()) == [6, 7, 8, 9, 10]
        house.pass_time(100)
        house.check(stream)

    def test_by_retention_that_looked_while_it_was_under_way(self, house: House) -> None:
        """Where batches began before the step is not remembered beyond it."""
        stream = house.declare(compact=True, max_age_s=1000)
        append(house, stream, ["a", None], ["a", None], [None])
        begin_step(house)
        house.flush()
        house.timers.run(house.timers.now + 5)
        stream.look_at_limits()
        house.flush()
        house.faulty.release()
        house.flush()
        house.check(stream)
        assert sequences(stream.read()) == [2, 3, 4, 5]
        house.pass_time(1100)
        assert stream.read() == []
        house.check(stream)

    def test_by_retention_between_two_steps(self, house: House) -> None:
        """A pass goes on behind what retention has dropped meanwhile."""
        stream = house.declare(compact=True)
        for _ in range(10):
            append(house, stream, [f"k{each}" for each in range(900)])
        begin_step(house)
        house.flush()
        house.faulty.release()
        house.declare(compact=True, max_records=2000)
        house.check(stream)
        house.pass_time(60)
        house.check(stream)
        assert all(stream.version(record.key or "") == record.sequence for record in stream.read())

    @pytest.mark.parametrize("committed", [False, True])
    def test_by_deletion(self, house: House, committed: bool) -> None:
        """A step neither fails nor brings anything of the stream back."""
        stream = house.declare(compact=True)
        append(house, stream, "ab", "ab")
        begin_step(house)
        if committed:
            house.flush()
        house.streams.delete("s")
        house.flush()
        house.faulty.release()
        house.pass_time(100)
        for kind in (Kind.STREAM, Kind.STREAM_BATCH, Kind.STREAM_KEY):
            assert house.stored(kind) == 0

    def begin_judging(self, house: House) -> None:
        """Let time pass until a step has judged all of its records, and has not recorded that."""
        compaction = house.stream().compaction
        while (step := compaction._step) is None or not (step.tombstones or step.kept.payloads):
            deadline = house.timers.next_deadline()
            assert deadline is not None
            house.timers.run(deadline)
            house.flush()

    def test_by_an_append_while_keys_are_looked_up(self, house: House) -> None:
        """The version of a tombstone's key stays when there is a new record with it by then."""
        stream = house.declare(compact=True, tombstone_keep_s=0)
        append(house, stream, ["a", "b", "c"], ["-a", "-b"])
        self.begin_judging(house)
        stream.append([b"x"], keys=["a"])
        house.pass_time(1)
        assert sequences(stream.read()) == [3, 6]
        assert [stream.version(key) for key in "abc"] == [6, 0, 3]
        house.check(stream)
        house.restart()
        assert [house.stream().version(key) for key in "abc"] == [6, 0, 3]

    def test_by_a_new_definition_while_keys_are_looked_up(self, house: House) -> None:
        """What was judged is given up; retention does not wait for it any more."""
        stream = house.declare(compact=True)
        append(house, stream, ["a", None, None], ["a", None, None], ["a"])
        self.begin_judging(house)
        house.declare(keyed=True, max_records=1)
        append(house, stream, ["a"], ["a"])
        house.pass_time(30)
        assert sequences(stream.read()) == [9]
        house.check(stream)
        house.declare(compact=True)
        append(house, stream, "abab")
        house.pass_time(8000)
        assert sequences(stream.read()) == [12, 13]

    def test_by_a_new_definition(self, house: House) -> None:
        """It stops when the stream is not to be compacted any more, and begins again if it is."""
        stream = house.declare(compact=True)
        append(house, stream, "ab", "ab")
        begin_step(house)
        house.flush()
        house.streams.declare(house.declare(keyed=True).definition)
        house.faulty.release()
        house.flush()
        append(house, stream, "ab")
        house.pass_time(8000)
        assert stream.statistics().records == 4
        house.declare(compact=True)
        house.pass_time(100)
        assert sequences(stream.read()) == [5, 6]
        house.check(stream)

    def test_by_damage(self, house: House) -> None:
        """A batch that cannot be read stays visible as a gap, and what lies around is compacted."""
        stream = house.declare(compact=True)
        append(house, stream, "ab", "ab", "xy", "ab", "ab")
        house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(5)))
        house.pass_time(100)
        reader = Reader().follow(stream)
        assert reader.sequences == [9, 10]
        assert reader.source is not None
        assert reader.source.damaged == 2  # type: ignore[union-attr]  # it is a follower
        house.faulty.damaged.clear()
        assert sequences(stream.read()) == [5, 6, 9, 10]


class TestReaders:
    """Who reads while compaction goes on."""

    def test_a_follower_gets_every_record_that_stays(self, house: House) -> None:
        """Once and in order, wherever it was when ranges were rewritten."""
        stream = house.declare(compact=True)
        for number in range(30):
            append(house, stream, ["a", f"k{number}", None])
        followers = {place: stream.follow(0, lambda: None) for place in range(0, 90, 7)}
        read = {place: sequences(each.take(place)) for place, each in followers.items()}
        house.pass_time(60)
        assert stream.statistics().records == 61
        for place, follower in followers.items():
            while records := follower.take(4):
                read[place] += sequences(records)
            kept = [each for each in sequences(stream.read()) if each > place]
            assert read[place] == sorted(set(read[place]))
            assert set(kept) <= set(read[place])
            assert follower.damaged == follower.skipped == 0

    def test_what_was_taken_out_is_not_read_from_memory(self, house: House) -> None:
        """The last batches, which are kept for those who follow live, go with it."""
        stream = house.declare(compact=True)
        Reader().follow(stream)
        append(house, stream, "aab")
        house.pass_time(60)
        assert sequences(stream.read()) == [2, 3]
        append(house, stream, "a")
        assert sequences(stream.read()) == [2, 3, 4]

    def test_a_group_forgets_what_was_compacted(self, house: House) -> None:
        """A record that came back and is not there any more counts as done."""
        stream = house.declare(compact=True)
        append(house, stream, "ab")
        first = stream.group("g").join(lambda: None)
        assert sequences(first.take(5)) == [1, 2]
        append(house, stream, "a")
        house.pass_time(60)
        first.close()
        second = stream.group("g").join(lambda: None)
        assert sequences(second.take(5)) == [2]
        assert sequences(second.take(5)) == [3]
        assert stream.group("g").position == 1
        statistics = stream.group("g").statistics()
        assert (statistics.skipped, statistics.damaged) == (0, 0)


def test_a_stream_becomes_compacted_later(house: House) -> None:
    """One that was keyed from the beginning can be compacted at any time."""
    stream = house.declare(keyed=True)
    append(house, stream, "aab")
    house.pass_time(100)
    assert stream.statistics().records == 3
    house.declare(keyed=True, compact=True)
    house.pass_time(100)
    assert sequences(stream.read()) == [2, 3]
    house.check(stream)


def test_a_damaged_version_costs_no_record(house: House) -> None:
    """The last record of a key is found by reading, and stays."""
    stream = house.declare(compact=True)
    append(house, stream, "aab")
    house.faulty.damaged.add((Kind.STREAM_KEY, stream._version_key("a")))
    house.pass_time(100)
    assert sequences(stream.read()) == [2, 3]
    house.check(stream)
