"""A stream: appended with numbers that have no gap, read from anywhere, followed live."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ganglion.broker.core import stream as stream_module
from ganglion.broker.core import stream_batches
from ganglion.broker.core.message import PLAIN_TERMS, Message, MessageProperties
from ganglion.broker.core.stream import (
    GroupMissing,
    RecordTooLarge,
    Stream,
    StreamMissing,
    StreamNotKeyed,
    WrongExpectedVersion,
    state_key,
)
from ganglion.broker.store import Kind
from tests.broker.core.stream_surroundings import (
    UNIX_S,
    FaultyStore,
    House,
    Reader,
    RocksHouse,
    payloads,
    sequences,
)


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


def append(house: House, stream: Stream, *commits: int, size: int = 1) -> None:
    """Append numbered records, so many in each commit, a second apart."""
    for count in commits:
        first = stream.statistics().last + 1
        stream.append([b"%0*d" % (size, first + number) for number in range(count)])
        house.flush()
        house.timers.run(house.timers.now + 1)


def damage_batch(house: House, stream: Stream, first: int) -> None:
    """The batch that begins there does not fit its checksum any more."""
    house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(first)))


class TestAppend:
    """Numbers, versions and refusals."""

    def test_sequences_have_no_gap(self, any_house: House) -> None:
        """Over appends, commits, refusals and a restart, each record has the next number."""
        house = any_house
        stream = house.declare(keyed=True, max_record_bytes=5)
        assert stream.append([b"a", b"b"]) == (1, 2)
        assert stream.append([b"c"]) == (3, 3)
        with pytest.raises(RecordTooLarge):
            stream.append([b"fits", b"too large"])
        with pytest.raises(WrongExpectedVersion):
            stream.append([b"d"], keys=["k"], expected={"k": 9})
        house.flush()
        assert stream.append([]) == (4, 3)
        assert stream.append([b"d"]) == (4, 4)
        house.flush()
        house.restart()
        stream = house.stream()
        assert stream.append([b"e"]) == (5, 5)
        house.flush()
        assert sequences(stream.read()) == [1, 2, 3, 4, 5]
        assert payloads(stream.read()) == [b"a", b"b", b"c", b"d", b"e"]
        house.check(stream)

    def test_what_was_not_committed_gives_its_number_back(self, house: House) -> None:
        """A crash takes what is not durable, and its sequences are given again."""
        stream = house.declare()
        append(house, stream, 2)
        house.faulty.is_holding = True
        stream.append([b"lost"])
        house.flush()
        stream.append([b"lost too"])
        house.restart()
        stream = house.stream()
        assert stream.append([b"kept"]) == (3, 3)
        house.flush()
        assert payloads(stream.read()) == [b"1", b"2", b"kept"]

    def test_nothing_is_read_before_it_is_durable(self, house: House) -> None:
        """Neither a read nor a follower gets what is on its way to the disk."""
        stream = house.declare()
        reader = Reader().follow(stream)
        house.faulty.is_holding = True
        stream.append([b"a"])
        house.flush()
        assert stream.read() == []
        assert reader.records == []
        assert stream.last == 0
        house.faulty.release()
        assert payloads(stream.read()) == payloads(reader.records) == [b"a"]

    def test_all_columns_come_back(self, any_house: House) -> None:
        """Topic, keys, properties and the time of a record are as they were given."""
        house = any_house
        stream = house.declare()
        about = MessageProperties(content_type="text", user_properties=(("a", "b"),))
        house.timers.run(5.0)
        stream.append([b"a", b"b"], topic="x/y", keys=["k", None], properties=[about, None])
        stream.append([b"c"])
        house.flush()
        house.restart()
        assert [tuple(record) for record in house.stream().read()] == [
            (1, UNIX_S + 5, "x/y", "k", b"a", about),
            (2, UNIX_S + 5, "x/y", None, b"b", None),
            (3, UNIX_S + 5, "$stream/s", None, b"c", None),
        ]

    def test_columns_have_one_length(self, house: House) -> None:
        """A column that does not fit the payloads is a mistake of the caller."""
        stream = house.declare()
        with pytest.raises(ValueError, match="2 payloads and a column of 1"):
            stream.append([b"a", b"b"], keys=["k"])
        with pytest.raises(ValueError, match="1 payloads and a column of 0"):
            stream.append([b"a"], properties=[])
        assert stream.is_untouched

    def test_a_refused_record_takes_all_with_it(self, house: House) -> None:
        """An append is all or none, and its refusal names the limit."""
        stream = house.declare(max_record_bytes=2)
        with pytest.raises(RecordTooLarge, match="3 bytes is over max_record_bytes of stream 's'"):
            stream.append([b"a", b"abc"])
        house.flush()
        assert stream.read() == []

    def test_what_is_committed_together_is_one_record_of_the_store(self, house: House) -> None:
        """Appends of one commit are stored as few batches, not as records of their own."""
        stream = house.declare()
        for _ in range(5):
            stream.append([b"a"] * 100)
        house.flush()
        assert house.stored(Kind.STREAM_BATCH) == 1
        stream.append([b"a"] * 2500)
        house.flush()
        assert house.stored(Kind.STREAM_BATCH) == 1 + 3
        house.check(stream)

    def test_what_waits_for_the_disk_counts(self, house: House) -> None:
        """Bytes that are not durable yet hold their publishers back, as those of queues do."""
        stream = house.declare(bindings=("t",))
        house.faulty.is_holding = True
        stream.append(
            [bytes(100), bytes(50)],
            topic="abc",
            keys=["key", None],
            properties=[None, MessageProperties(content_type="text")],
        )
        assert house.commits.waiting_bytes == 150 + 2 * 3 + 3 + 4
        stream.deliver(Message("ab", bytes(10)), PLAIN_TERMS[0])
        assert house.commits.waiting_bytes == 163 + 12
        house.flush()
        house.faulty.release()
        assert house.commits.waiting_bytes == 0

    def test_time_never_goes_back(self, house: House) -> None:
        """A clock that was set back lets the time of records stand still."""
        stream = house.declare()
        house.timers.run(10.0)
        append(house, stream, 1)
        house.timers = None  # type: ignore[assignment]  # not used any more
        house.open(3.0)
        stream = house.stream()
        append(house, stream, 1)
        assert [record.time_s for record in stream.read()] == [UNIX_S + 10, UNIX_S + 10]


class TestVersions:
    """Appends that expect a version of a key."""

    def test_the_version_of_a_key_is_its_last_sequence(self, any_house: House) -> None:
        """Committed, and after a restart too; 0 where there is none."""
        house = any_house
        stream = house.declare(keyed=True)
        stream.append([b"1", b"2", b"3"], keys=["a", "b", "a"])
        house.flush()
        house.restart()
        stream = house.stream()
        assert [stream.version(key) for key in ("a", "b", "c")] == [3, 2, 0]

    def test_an_append_with_the_expected_version(self, house: House) -> None:
        """It succeeds with the right one, for a new key 0, and says what is right if it is not."""
        stream = house.declare(keyed=True)
        stream.append([b"1"], keys=["a"], expected={"a": 0})
        house.flush()
        with pytest.raises(WrongExpectedVersion, match="key 'a' is 1, and 0 was") as caught:
            stream.append([b"2"], keys=["a"], expected={"a": 0})
        assert (caught.value.key, caught.value.expected, caught.value.actual) == ("a", 0, 1)
        assert stream.append([b"2"], keys=["a"], expected={"a": 1}) == (2, 2)

    def test_within_one_commit_each_append_sees_those_before(self, house: House) -> None:
        """Two clients that expect the same version in the same tick: the second is refused."""
        stream = house.declare(keyed=True)
        stream.append([b"1"], keys=["a"], expected={"a": 0})
        with pytest.raises(WrongExpectedVersion):
            stream.append([b"other"], keys=["a"], expected={"a": 0})
        stream.append([b"2"], keys=["a"], expected={"a": 1})
        house.flush()
        assert payloads(stream.read()) == [b"1", b"2"]

    def test_an_append_that_is_not_durable_yet_counts(self, house: House) -> None:
        """While its commit is under way, and while the next one is open, its version is known."""
        stream = house.declare(keyed=True)
        house.faulty.is_holding = True
        stream.append([b"1"], keys=["a"])
        house.flush()
        assert stream.version("a") == 1
        stream.append([b"2"], keys=["a"], expected={"a": 1})
        stream.append([b"x"], keys=["b"], expected={"b": 0})
        assert (stream.version("a"), stream.version("b")) == (2, 3)
        house.faulty.release()
        house.flush()
        assert (stream.version("a"), stream.version("b")) == (2, 3)
        assert stream._versions == stream._versions_under_way == {}

    def test_versions_of_several_keys_at_once(self, house: House) -> None:
        """All must be right, also of keys that get no record."""
        stream = house.declare(keyed=True)
        stream.append([b"1", b"2"], keys=["a", "b"])
        with pytest.raises(WrongExpectedVersion, match="'b'"):
            stream.append([b"3"], keys=["a"], expected={"a": 1, "b": 1})
        stream.append([b"3"], keys=["a"], expected={"a": 1, "b": 2})

    def test_messages_that_are_routed_have_versions_too(self, house: House) -> None:
        """A key that a message has in its properties is that of the record."""
        stream = house.declare(keyed=True, bindings=("t",))
        stream.deliver(Message("t", b"x", properties=MessageProperties(key="k")), PLAIN_TERMS[0])
        assert stream.version("k") == 1
        house.flush()
        assert stream.version("k") == 1

    def test_a_stream_that_keeps_no_versions_says_so(self, house: House) -> None:
        """Expecting a version, or asking for one, is refused there."""
        stream = house.declare()
        with pytest.raises(StreamNotKeyed, match="declare it with option keyed"):
            stream.append([b"1"], keys=["a"], expected={"a": 0})
        with pytest.raises(StreamNotKeyed):
            stream.version("a")

    def test_a_damaged_version_is_found_by_reading(self, house: House) -> None:
        """The record of a version that cannot be read costs time, not the right answer."""
        stream = house.declare(keyed=True)
        stream.append([b"1", b"2", b"3"], keys=["a", "b", "a"])
        house.flush()
        stream.append([b"4"], keys=[None])
        house.flush()
        house.faulty.damaged.add((Kind.STREAM_KEY, stream._version_key("a")))
        house.faulty.damaged.add((Kind.STREAM_KEY, stream._version_key("c")))
        assert stream.version("a") == 3
        assert stream.version("c") == 0


class TestRouted:
    """A stream as what messages are routed to."""

    def test_a_message_is_appended_as_it_is(self, house: House) -> None:
        """Topic, payload and properties; the message knows that it has to be committed."""
        stream = house.declare()
        about = MessageProperties(content_type="text")
        message = Message("a/b", b"x", properties=about)
        stream.deliver(message, PLAIN_TERMS[0])
        assert message.durable
        house.flush()
        (record,) = stream.read()
        assert record[2:] == ("a/b", None, b"x", about)

    def test_a_run_of_messages(self, house: House) -> None:
        """Messages of one topic are appended together, with or without room for their size."""
        stream = house.declare(max_record_bytes=3)
        stream.deliver_run("a/b", [b"1", b"2", b"3"], 1)
        stream.deliver_run("a/b", [b"1234", b"5678"], 1)
        assert house.commits.waiting_bytes == 12
        house.flush()
        assert [(record.topic, record.payload) for record in stream.read()] == [
            ("a/b", b"1"),
            ("a/b", b"2"),
            ("a/b", b"3"),
        ]
        assert house.statistics.dropped["stream: record too large"] == 2

    def test_a_message_that_is_too_large_is_refused_or_counted(self, house: House) -> None:
        """`refusal` says why; what is delivered all the same is dropped under a reason."""
        stream = house.declare(max_record_bytes=3)
        assert stream.may_refuse
        assert stream.refusal(Message("t", b"abc")) is None
        why = stream.refusal(Message("t", b"abcd"))
        assert why == ("the payload is over max_record_bytes of stream s, 3", True)
        stream.deliver(Message("t", b"abcd"), PLAIN_TERMS[0])
        house.flush()
        assert stream.read() == []
        assert house.statistics.dropped["stream: record too large"] == 1

    def test_without_the_limit_nothing_is_refused(self, house: House) -> None:
        """Publishers need not ask."""
        stream = house.declare()
        assert not stream.may_refuse
        assert stream.refusal(Message("t", bytes(1_000_000))) is None


class TestRead:
    """Reading what is stored."""

    def test_read_after(self, any_house: House) -> None:
        """From behind any sequence, also from within a batch and beyond the end."""
        house = any_house
        stream = house.declare()
        append(house, stream, 3, 1, 5, 2)
        for after in range(-1, 13):
            expected = list(range(max(after, 0) + 1, 12))
            assert sequences(stream.read(after)) == expected
            batches = list(stream.read_batches(after))
            read = [each for batch in batches for each in batch.sequences if each > after]
            assert read == expected

    def test_read_at_most_so_many_records_and_bytes(self, house: House) -> None:
        """Over the borders of batches; one record comes however large it is."""
        stream = house.declare()
        append(house, stream, 3, 3, 3, size=10)
        assert sequences(stream.read(1, count_max=4)) == [2, 3, 4, 5]
        assert sequences(stream.read(1, bytes_max=40)) == [2, 3, 4, 5]
        assert sequences(stream.read(1, bytes_max=49)) == [2, 3, 4, 5]
        assert sequences(stream.read(1, bytes_max=1)) == [2]
        assert stream.read(1, count_max=0) == []

    def test_properties_count_against_the_bytes(self, house: House) -> None:
        """A reader is not flooded by records whose bulk is not the payload."""
        stream = house.declare()
        about = MessageProperties(content_type="x" * 100)
        stream.append([b""] * 5, properties=[about] * 5)
        house.flush()
        assert len(stream.read(bytes_max=200)) == 2

    def test_reads_by_batches_while_ranges_are_joined(self, house: House) -> None:
        """Compaction that comes between two steps of a read takes nothing from it."""
        stream = house.declare(compact=True)
        append(house, stream, 10, 10, 10, 10)
        batches = stream.read_batches()
        read = list(next(batches).sequences)
        house.pass_time(60)
        assert house.stored(Kind.STREAM_BATCH) == 1
        read += [each for batch in batches for each in batch.sequences if each > read[-1]]
        assert read == list(range(1, 41))

    def test_read_a_key(self, house: House) -> None:
        """All records with the key, behind a sequence, from keyed streams and others."""
        for keyed in (False, True):
            stream = house.declare(f"s{keyed}", keyed=keyed)
            for number in range(6):
                stream.append([b"%d" % number] * 3, keys=["a", "b" if number < 3 else None, "c"])
                house.flush()
            assert sequences(list(stream.read_key("b"))) == [2, 5, 8]
            assert sequences(list(stream.read_key("b", after=2))) == [5, 8]
            assert list(stream.read_key("d")) == []
            assert [record.key for record in stream.read_key("a", 9)] == ["a"] * 3

    def test_a_keyed_stream_is_read_only_to_the_last_of_the_key(self, house: House) -> None:
        """Batches behind the last record with the key are not read for it."""
        stream = house.declare(keyed=True)
        stream.append([b"x"], keys=["a"])
        house.flush()
        append(house, stream, *[1] * 50)
        house.faulty.reads = 0
        assert sequences(list(stream.read_key("a"))) == [1]
        assert house.faulty.reads < 5

    def test_read_from_a_time(self, any_house: House) -> None:
        """Exactly what came then or later, at any time before, between and behind commits."""
        house = any_house
        stream = house.declare()
        append(house, stream, 3, 1, 5, 2)  # at 0, 1, 2 and 3 s
        ends = {-1.0: 0, 0.0: 0, 0.5: 3, 1.0: 3, 1.5: 4, 2.0: 4, 2.5: 9, 3.0: 9, 3.5: 11, 9.0: 11}
        for time_s, after in ends.items():
            assert stream.position_at(UNIX_S + time_s) == after, time_s

    def test_read_from_a_time_within_joined_ranges(self, house: House) -> None:
        """Records that compaction has joined keep their times, and are found by them."""
        stream = house.declare(compact=True)
        append(house, stream, 3, 1, 5, 2)
        house.pass_time(60)
        assert house.stored(Kind.STREAM_BATCH) == 1
        append(house, stream, 1)
        for time_s, after in {0.0: 0, 0.5: 3, 1.0: 3, 1.5: 4, 2.5: 9, 3.0: 9, 3.5: 11}.items():
            assert stream.position_at(UNIX_S + time_s) == after, time_s

    def test_read_from_a_time_beside_damage(self, house: House) -> None:
        """What cannot be read is passed over; what can is found."""
        stream = house.declare()
        append(house, stream, 3, 1, 5, 2)
        damage_batch(house, stream, 4)
        damage_batch(house, stream, 5)
        found = {time_s: stream.position_at(UNIX_S + time_s) for time_s in (0.0, 0.5, 2.5, 3.0)}
        assert found[0.0] == 0
        for time_s in (0.5, 2.5, 3.0):
            assert sequences(stream.read(found[time_s])) == [10, 11]

    def test_an_empty_stream_is_read_as_one(self, house: House) -> None:
        """Nothing comes, and no error."""
        stream = house.declare()
        assert stream.read() == []
        assert list(stream.read_batches()) == []
        assert stream.position_at(UNIX_S) == 0


class TestFollow:
    """Reading on, stored and live."""

    def test_no_gap_and_no_duplicate_from_stored_to_live(self, any_house: House) -> None:
        """Followers from anywhere, at any pace, get every record once and in order."""
        house = any_house
        stream = house.declare()
        append(house, stream, 5, 2)
        readers = {
            (after, pace): Reader(pace).follow(stream, after)
            for after in (0, 3, 5, 7)
            for pace in (1, 2, 1000)
        }
        append(house, stream, 1, 3, *[1] * 40, 7)
        for (after, _), reader in readers.items():
            assert reader.sequences == list(range(after + 1, stream.last + 1))

    def test_a_slow_follower_falls_out_of_the_tail_and_back(self, house: House) -> None:
        """Who is too far behind for the memory of the stream reads from the store."""
        stream = house.declare()
        slow, read = stream.follow(0, lambda: None), list[int]()
        for number in range(200):
            append(house, stream, 1 + number % 3)
            if number % 5 == 0:
                read += sequences(slow.take(3))
        while records := slow.take(7):
            read += sequences(records)
        assert read == list(range(1, stream.last + 1))
        append(house, stream, 1)
        assert sequences(slow.take(7)) == [stream.last]

    def test_a_follower_is_woken_once(self, house: House) -> None:
        """After an empty take, by the next commit, and not again before the next empty take."""
        stream = house.declare()
        wakes: list[int] = []
        follower = stream.follow(0, lambda: wakes.append(1))
        append(house, stream, 1)
        assert wakes == []
        assert follower.take(10)
        assert not follower.take(10)
        append(house, stream, 1, 1)
        assert wakes == [1]
        assert sequences(follower.take(10)) == [2, 3]

    def test_a_follower_ahead_of_the_stream_waits(self, house: House) -> None:
        """One that begins behind what is there gets what comes behind its position."""
        stream = house.declare()
        reader = Reader().follow(stream, 3)
        append(house, stream, 1, 1, 3)
        assert reader.sequences == [4, 5]

    def test_a_position_below_zero_is_the_beginning(self, house: House) -> None:
        """Nothing counts as skipped that never was."""
        stream = house.declare()
        append(house, stream, 1)
        follower = stream.follow(-5, lambda: None)
        assert sequences(follower.take(5)) == [1]
        assert follower.skipped == 0

    def test_one_that_fails_to_wake_costs_the_others_no_more_than_a_commit(
        self, house: House
    ) -> None:
        """An error of one follower does not leave the others asleep for good."""
        stream = house.declare()

        def fail() -> None:
            raise RuntimeError("this follower is broken")

        broken = stream.follow(0, fail)
        broken.take(1)
        reader = Reader().follow(stream)
        stream.append([b"a"])
        with pytest.raises(RuntimeError, match="is broken"):
            house.flush()
        stream.append([b"b"])
        house.flush()
        assert payloads(reader.records) == [b"a", b"b"]

    def test_a_follower_may_close_others_when_it_is_woken(self, house: House) -> None:
        """Whoever is closed while the stream wakes its followers gets nothing any more."""
        stream = house.declare()
        second = stream.follow(0, lambda: taken.append(second.take(1)))
        taken: list[object] = []
        first = stream.follow(0, second.close)
        assert not first.take(1)
        assert not second.take(1)
        append(house, stream, 1)
        assert not any(taken)

    def test_a_closed_follower_leaves_nothing(self, house: House) -> None:
        """It is not woken, gets nothing, and the stream forgets it."""
        stream = house.declare()
        reader = Reader().follow(stream)
        assert reader.source is not None
        assert stream.statistics().followers == 1
        reader.source.close()
        reader.source.close()
        append(house, stream, 1)
        assert reader.wakes == 0
        assert stream.statistics().followers == 0
        assert reader.source.take(5) == []

    def test_follow_by_columns(self, house: House) -> None:
        """`take_batch` gives the same records, and wakes as `take` does."""
        stream = house.declare()
        append(house, stream, 3, 2)
        wakes: list[int] = []
        follower = stream.follow(1, lambda: wakes.append(1))
        first, second = follower.take_batch(1), follower.take_batch(10)
        assert first is not None
        assert second is not None
        assert (list(first.sequences), list(second.sequences)) == ([2], [3])
        third = follower.take_batch(10)
        assert third is not None
        assert third.payloads == [b"4", b"5"]
        assert follower.take_batch(10) is None
        assert follower.take_batch(0) is None
        append(house, stream, 1)
        assert wakes == [1]

    def test_a_follower_has_one_batch_in_memory(self, house: House) -> None:
        """The next one replaces it, and one that waits or rests has none."""
        stream = house.declare()
        append(house, stream, 3, 3)
        follower = stream.follow(0, lambda: None)
        in_memory: list[int | None] = []

        def look() -> None:
            in_memory.append(None if follower._batch is None else follower._batch.first)

        follower.take(2)
        look()
        follower.take(3)
        look()
        follower.rest()
        look()
        assert sequences(follower.take(5)) == [6]
        look()
        assert not follower.take(5)
        look()
        assert in_memory == [1, 4, None, None, None]

    def test_the_tail_is_bounded(self, house: House) -> None:
        """By batches and by bytes, and there is none without followers."""
        stream = house.declare()
        append(house, stream, 5)
        assert not stream._tail
        follower = stream.follow(0, lambda: None)
        append(house, stream, *[1] * 100)
        assert len(stream._tail) == stream_module._TAIL_BATCHES_MAX
        half = stream_batches._BATCH_BYTES_MAX // 2
        for _ in range(8):
            append(house, stream, 4, size=half)
            sizes = [size_bytes for _, size_bytes in stream._tail]
            assert sum(sizes) == stream._tail_bytes <= stream_module._TAIL_BYTES_MAX
        follower.close()
        assert not stream._tail
        assert stream._tail_bytes == 0

    def test_damage_is_passed_over_and_counted(self, house: House) -> None:
        """A batch that cannot be read costs its records only, at the beginning and at the end."""
        stream = house.declare()
        append(house, stream, 2, 3, 2, 2)
        damage_batch(house, stream, 1)
        damage_batch(house, stream, 3)
        reader = Reader().follow(stream)
        assert reader.sequences == [6, 7, 8, 9]
        assert reader.source is not None
        assert reader.source.damaged == 5  # type: ignore[union-attr]  # it is a follower
        assert [batch.first for batch in stream.read_batches()] == [6, 8]
        damage_batch(house, stream, 8)
        assert sequences(stream.read()) == [6, 7]
        append(house, stream, 1)
        assert sequences(stream.read()) == [6, 7, 10]
        assert sequences(stream.read(4)) == [6, 7, 10]
        assert reader.sequences == [6, 7, 8, 9, 10]


class TestDeletion:
    """What goes with a stream."""

    def test_everything_goes(self, any_house: House) -> None:
        """Records, versions, groups and definition are gone from the store, and others' stay."""
        house = any_house
        other = house.declare("other", keyed=True)
        other.append([b"x"], keys=["k"])
        other.group("g")
        stream = house.declare(keyed=True)
        stream.append([b"a"] * 5, keys=["k"] * 5)
        stream.group("g")
        house.flush()
        house.streams.delete("s")
        house.flush()
        kinds = (Kind.STREAM, Kind.STREAM_BATCH, Kind.STREAM_KEY, Kind.STREAM_GROUP)
        assert [house.stored(kind) for kind in kinds] == [3, 1, 1, 1]  # a definition is there twice
        house.restart()
        assert house.streams.find("s") is None
        assert [each.name for each in house.streams] == ["other"]

    def test_who_waits_is_woken_and_ended(self, house: House) -> None:
        """Followers and members learn that nothing comes any more."""
        stream = house.declare()
        follower, member = Reader().follow(stream), Reader().join(stream)
        house.streams.delete("s")
        house.flush()
        assert (follower.wakes, member.wakes) == (1, 1)
        for reader in (follower, member):
            assert reader.source is not None
            assert reader.source.is_ended
            assert reader.source.take(5) == []
            reader.source.close()

    def test_a_deleted_stream_gives_and_takes_nothing(self, house: House) -> None:
        """Not even before the deletion is durable."""
        stream = house.declare()
        append(house, stream, 3)
        reading = stream.follow(0, lambda: None)
        reading.take(1)
        stream.append([b"in the same commit"])
        house.streams.delete("s")
        assert reading.take(5) == []
        assert stream.read() == []
        assert list(stream.read_batches()) == []
        for call in (
            partial(stream.append, [b"x"]),
            partial(stream.follow, 0, house.flush),
            partial(stream.group, "g"),
        ):
            with pytest.raises(StreamMissing, match="no stream 's'"):
                call()
        house.flush()
        assert house.stored(Kind.STREAM_BATCH) == 0

    def test_while_a_commit_is_under_way(self, house: House) -> None:
        """What was on its way to the disk goes with the stream."""
        stream = house.declare()
        reader = Reader().follow(stream)
        house.faulty.is_holding = True
        stream.append([b"a"])
        house.flush()
        house.streams.delete("s")
        house.faulty.release()
        house.flush()
        assert reader.records == []
        assert house.stored(Kind.STREAM_BATCH) == 0

    def test_a_new_stream_of_the_same_name_is_a_new_one(self, house: House) -> None:
        """Also within the same commit: it begins at 1, without the groups and keys of the old."""
        stream = house.declare(keyed=True)
        stream.append([b"old"], keys=["k"])
        stream.group("g", 1)
        house.flush()
        stream.append([b"old too"], keys=["k"])
        house.streams.delete("s")
        stream = house.streams.declare(stream.definition)
        assert stream.append([b"new"]) == (1, 1)
        house.flush()
        for _ in range(2):
            assert payloads(stream.read()) == [b"new"]
            assert stream.version("k") == 0
            assert stream.groups == {}
            house.check(stream)
            house.restart()
            stream = house.stream()

    def test_its_timers_stop(self, house: House) -> None:
        """Nothing of a deleted stream comes back with the time."""
        stream = house.declare(compact=True, max_age_s=5)
        append(house, stream, 3)
        house.streams.delete("s")
        house.flush()
        number = house.commits.number
        house.pass_time(7200)
        assert house.commits.number == number

    def test_a_stream_that_is_not_there(self, house: House) -> None:
        """Asking for it, or for a group that is not there, says so."""
        with pytest.raises(StreamMissing):
            house.streams.get("s")
        with pytest.raises(StreamMissing):
            house.streams.delete("s")
        with pytest.raises(GroupMissing, match="stream 's' has no group 'g'"):
            house.declare().delete_group("g")


class TestRecovery:
    """A stream whose own record is damaged."""

    @staticmethod
    def lose_state(house: House) -> Stream:
        """The record of the stream's state is damaged; the node starts again."""
        house.faulty.damaged.add((Kind.STREAM, state_key("s")))
        house.restart()
        house.flush()
        house.faulty.damaged.clear()
        return house.stream()

    def test_the_state_is_found_by_reading(self, house: House) -> None:
        """First, last, count and bytes are what they were, and the next number is the next."""
        stream = house.declare(max_records=4)
        append(house, stream, 3, 2, 2, 3)
        before = stream.statistics()
        assert before.first > 1
        stream = self.lose_state(house)
        assert stream.statistics() == before
        append(house, stream, 1)
        assert stream.last == 11
        house.restart()
        house.check(house.stream())

    def test_after_compaction(self, house: House) -> None:
        """Ranges without records count as read."""
        stream = house.declare(compact=True)
        for _ in range(10):
            stream.append([b"x", b"y"], keys=["a", "b"])
            house.flush()
        stream.append([b"x", b"y"], keys=["a", "b"])
        house.flush()
        house.pass_time(60)
        before = stream.statistics()
        assert before.records == 2
        stream = self.lose_state(house)
        assert stream.statistics() == before
        house.check(stream)

    def test_numbers_of_versions_are_not_given_again(self, house: House) -> None:
        """Where no batch is left, the versions tell how far the sequence went."""
        stream = house.declare(keyed=True, max_age_s=5)
        stream.append([b"x"] * 7, keys=["k"] * 7)
        house.flush()
        house.pass_time(20)
        assert stream.statistics().records == 0
        stream = self.lose_state(house)
        assert (stream.first, stream.last) == (8, 7)
        assert stream.append([b"y"]) == (8, 8)
        house.check(stream)

    def test_an_empty_stream(self, house: House) -> None:
        """One that has nothing begins at 1."""
        house.declare()
        stream = self.lose_state(house)
        assert stream.append([b"y"]) == (1, 1)
        house.check(stream)

    def test_retention_goes_on(self, house: House) -> None:
        """The timers of a recovered stream run without an append."""
        stream = house.declare(max_age_s=100)
        append(house, stream, 3)
        stream = self.lose_state(house)
        house.pass_time(200)
        assert stream.statistics().records == 0

    @pytest.mark.parametrize("key", [b"s", b"\0s"], ids=["the first", "the second"])
    def test_a_definition_is_recorded_twice(self, house: House, key: bytes) -> None:
        """One of the two is damaged: the stream is as it was, and both are good again."""
        before = house.declare(max_records=100, keyed=True)
        before.append([b"a", b"b"], keys=["k", None])
        house.flush()
        house.faulty.damaged.add((Kind.STREAM, key))
        house.restart()
        house.flush()
        house.faulty.damaged.clear()  # it was written anew
        stream = house.stream()
        assert stream.definition == before.definition
        assert stream.statistics() == before.statistics()
        assert stream.version("k") == 1
        house.faulty.damaged.add((Kind.STREAM, b"s" if key != b"s" else b"\0s"))
        house.restart()
        house.check(house.stream())

    def test_a_stream_whose_definition_is_lost_costs_only_itself(self, house: House) -> None:
        """The others are there, and its numbers of records are not taken for another stream's."""
        stream = house.declare()
        append(house, stream, 3)
        house.faulty.damaged |= {(Kind.STREAM, b"s"), (Kind.STREAM, b"\0s")}
        house.restart()
        assert house.streams.find("s") is None
        other = house.declare("other")
        assert other.identifier > stream.identifier
        assert other.read() == []

    def test_what_nobody_can_find_is_forgotten_on_demand(self, house: House) -> None:
        """Of streams whose definitions are gone for good nothing is kept; the others stay whole."""
        names = ("first", "lost", "middle", "lost too", "last", "lost last")
        for name in names:
            stream = house.declare(name, keyed=True)
            stream.append([b"x"] * 3, keys=["k"] * 3)
            stream.group("g")
            house.flush()
        batch = house.store.batch()
        for name in names:
            if name.startswith("lost"):
                batch.delete(Kind.STREAM, name.encode())
                batch.delete(Kind.STREAM, b"\0" + name.encode())
        house.store.commit(batch, lambda: None)
        house.restart()
        house.streams.discard_others()
        house.flush()
        kinds = (Kind.STREAM, Kind.STREAM_BATCH, Kind.STREAM_KEY, Kind.STREAM_GROUP)
        assert [house.stored(kind) for kind in kinds] == [9, 3, 3, 3]
        house.restart()
        for stream in house.streams:
            house.check(stream)
            assert (stream.version("k"), stream.last, list(stream.groups)) == (3, 3, ["g"])


def test_a_restart_reads_no_records(house: House) -> None:
    """A start costs the same however much a stream holds."""
    stream = house.declare(keyed=True, max_records=100_000)
    append(house, stream, *[10] * 300)
    faulty = house.store
    assert isinstance(faulty, FaultyStore)
    faulty.reads = 0
    house.restart()
    assert house.stream().last == 3000
    assert faulty.reads < 10
