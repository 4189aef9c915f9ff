"""Consumer groups: members share the records of a stream, and the position is stored."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ganglion.broker.core import stream_groups
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.message import MessageProperties
from ganglion.broker.core.stream import Stream
from ganglion.broker.core.stream_groups import Member
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


def append(house: House, stream: Stream, *commits: int) -> None:
    """Append so many records in each commit."""
    for count in commits:
        stream.append([b"0123456789"] * count)
        house.flush()


def join(stream: Stream, group: str = "g") -> Member:
    """A member that is not interested in being woken."""
    return stream.group(group).join(lambda: None)


def take(member: Member, count: int = 1000) -> list[int]:
    """The sequences of what it gets."""
    return sequences(member.take(count))


def test_each_record_goes_to_one_member(house: House) -> None:
    """In order of the requests, none twice and none left out."""
    stream = house.declare()
    append(house, stream, 5, 5)
    first, second = join(stream), join(stream)
    assert take(first, 3) == [1, 2, 3]
    assert take(second, 4) == [4, 5, 6, 7]
    assert take(first) == [8, 9, 10]
    assert take(first) == take(second) == []


def test_groups_are_independent(house: House) -> None:
    """Each has all records, from its own position on."""
    stream = house.declare()
    append(house, stream, 5)
    stream.group("late", after=3)
    assert take(join(stream, "g")) == [1, 2, 3, 4, 5]
    assert take(join(stream, "late")) == [4, 5]
    assert stream.group("late", after=1) is stream.groups["late"]


def test_acknowledgements_in_any_order(house: House) -> None:
    """The position is that up to which all are acknowledged."""
    stream = house.declare()
    append(house, stream, 6)
    group, member = stream.group("g"), join(stream)
    take(member)
    seen: list[int] = []
    for sequence in (3, 2, 6, 1, 5, 4):
        assert member.acknowledge(sequence)
        seen.append(group.position)
    assert seen == [0, 0, 0, 3, 3, 6]
    assert not member.acknowledge(4)
    assert not member.acknowledge(7)
    assert not join(stream).acknowledge(1)


def test_the_position_outlives_a_restart(any_house: House) -> None:
    """What was acknowledged up to there never comes again; what is behind it does."""
    house = any_house
    stream = house.declare()
    append(house, stream, 6)
    member = join(stream)
    take(member)
    for sequence in (1, 2, 4):
        member.acknowledge(sequence)
    house.flush()
    house.restart()
    stream = house.stream()
    assert stream.group("g").position == 2
    assert take(join(stream)) == [3, 4, 5, 6]
    house.restart()
    assert take(join(house.stream())) == [3, 4, 5, 6]


def test_an_acknowledgement_that_is_not_durable_is_forgotten_by_a_crash(house: House) -> None:
    """The record comes again: at least once."""
    stream = house.declare()
    append(house, stream, 2)
    member = join(stream)
    house.flush()
    take(member)
    house.faulty.is_holding = True
    member.acknowledge(1)
    house.flush()
    house.restart()
    assert take(join(house.stream())) == [1, 2]


def test_a_thousand_acknowledgements_are_one_write(house: House) -> None:
    """The position is recorded once a commit."""
    stream = house.declare()
    append(house, stream, 1000)
    member = join(stream)
    house.flush()
    take(member)
    number = house.commits.number
    for sequence in range(1, 1001):
        member.acknowledge(sequence)
    house.flush()
    assert house.commits.number == number + 1
    assert stream.group("g").position == 1000


def test_what_is_given_back_comes_again_first(house: House) -> None:
    """To any member, in order, before what nobody had yet."""
    stream = house.declare()
    append(house, stream, 6)
    first, second = join(stream), join(stream)
    take(first, 3)
    assert first.give_back(3)
    assert first.give_back(2)
    assert not first.give_back(2)
    assert not first.acknowledge(2)
    assert not second.give_back(1)
    assert take(second) == [2, 3]
    assert take(second) == [4, 5, 6]
    assert second.acknowledge(2)
    assert stream.group("g").position == 0
    first.acknowledge(1)
    assert stream.group("g").position == 2


def test_what_a_leaving_member_had_goes_to_others(house: House) -> None:
    """Those that wait are woken for it."""
    stream = house.declare()
    append(house, stream, 4)
    first = join(stream)
    assert take(first) == [1, 2, 3, 4]
    first.acknowledge(2)
    second = Reader().join(stream)
    assert second.records == []
    first.close()
    first.close()
    assert second.sequences == [1, 3, 4]
    assert take(first) == []
    assert first.is_ended
    assert not first.acknowledge(1)


def test_members_come_and_go(house: House) -> None:
    """The group keeps what was not acknowledged while nobody is there, and its position."""
    stream = house.declare()
    append(house, stream, 4)
    first = join(stream)
    take(first, 3)
    first.acknowledge(1)
    first.close()
    append(house, stream, 2)
    assert stream.group("g").statistics().members == 0
    second = join(stream)
    assert take(second) == [2, 3]
    assert take(second) == [4, 5, 6]
    for sequence in range(2, 7):
        second.acknowledge(sequence)
    assert stream.group("g").position == 6
    assert stream.group("g").statistics().unacknowledged == 0


def test_members_are_woken_by_new_records(house: House) -> None:
    """Each once after an empty take; who takes first gets them."""
    stream = house.declare()
    first, second = Reader().join(stream), Reader().join(stream)
    append(house, stream, 3)
    append(house, stream, 3)
    assert sorted(first.sequences + second.sequences) == [1, 2, 3, 4, 5, 6]
    assert first.wakes == second.wakes == 2


def test_at_most_so_many_bytes(house: House) -> None:
    """Of new records and of those that came back; one comes however large it is."""
    stream = house.declare()
    about = MessageProperties(content_type="x" * 50)
    stream.append([bytes(50)] * 6, properties=[about] * 6)
    house.flush()
    member = join(stream)
    assert sequences(member.take(10, 250)) == [1, 2]
    assert sequences(member.take(10, 20)) == [3]
    for sequence in (1, 2, 3):
        member.give_back(sequence)
    assert sequences(member.take(10, 250)) == [1, 2]
    assert sequences(member.take(10, 20)) == [3]
    assert member.take(0) == []


def test_the_window_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is not acknowledged holds the group up in the end, and wakes it when it is."""
    monkeypatch.setattr(stream_groups, "_GROUP_WINDOW", 10)
    stream = house.declare()
    append(house, stream, 30)
    first = join(stream)
    assert take(first, 4) == [1, 2, 3, 4]
    second = Reader().join(stream)
    assert second.sequences == [5, 6, 7, 8, 9, 10]
    assert second.source is not None
    for sequence in second.sequences:
        second.source.acknowledge(sequence)  # type: ignore[union-attr]  # it is a member
    assert second.wakes == 0
    assert take(first) == []
    first.acknowledge(1)
    assert second.sequences[6:] == [11]
    for sequence in (3, 2):
        first.acknowledge(sequence)
    assert second.sequences[6:] == [11, 12, 13]
    assert take(first) == []


class TestOvertaken:
    """Retention that is faster than the group."""

    def test_before_the_records_were_given_out(self, house: House) -> None:
        """The group goes on with what is kept, counts the rest, and its position follows."""
        stream = house.declare(max_records=4)
        append(house, stream, 2)
        group, member = stream.group("g"), join(stream)
        append(house, stream, *[2] * 5)
        assert stream.first == 9
        assert group.statistics().lag == 4
        assert take(member) == [9, 10, 11, 12]
        assert group.statistics().skipped == 8
        member.acknowledge(9)
        assert group.position == 9

    def test_after_they_came_back(self, house: House) -> None:
        """What is gone counts as done, and under its reason."""
        stream = house.declare(max_records=4)
        append(house, stream, 2, 2)
        first = join(stream)
        assert take(first) == [1, 2, 3, 4]
        append(house, stream, *[2] * 2)
        first.close()
        second = join(stream)
        assert stream.first == 5
        assert take(second) == [5, 6, 7, 8]
        assert stream.group("g").position == 4
        assert stream.group("g").statistics().skipped == 4

    def test_while_a_member_has_them(self, house: House) -> None:
        """They can be acknowledged all the same."""
        stream = house.declare(max_records=2)
        append(house, stream, 2)
        member = join(stream)
        take(member)
        append(house, stream, 2, 2)
        assert member.acknowledge(1)
        assert member.acknowledge(2)
        assert stream.group("g").position == 2

    def test_when_nothing_is_left(self, house: House) -> None:
        """The position is the end of the stream, also after a restart."""
        stream = house.declare(max_age_s=5)
        append(house, stream, 2)
        member = join(stream)
        house.pass_time(20)
        assert take(member) == []
        assert stream.group("g").statistics().lag == 0
        house.flush()
        house.restart()
        assert house.stream().group("g").position == 2


def test_damage_counts_as_done(house: House) -> None:
    """A record that cannot be read does not hold the group up, new or when it came back."""
    stream = house.declare()
    append(house, stream, 2, 2, 2, 1)
    house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(1)))
    first = join(stream)
    assert take(first) == [3, 4, 5, 6, 7]
    house.faulty.damaged.add((Kind.STREAM_BATCH, stream._key(5)))
    first.close()
    second = join(stream)
    assert take(second) == [3, 4, 7]
    for sequence in (3, 4):
        second.acknowledge(sequence)
    assert stream.group("g").position == 6
    assert stream.group("g").statistics().damaged == 4


class TestDeletion:
    """What becomes of members."""

    def test_of_the_group(self, any_house: House) -> None:
        """Members that wait are woken and ended; the position is gone, the stream stays."""
        house = any_house
        stream = house.declare()
        append(house, stream, 3)
        waiting, busy = Reader().join(stream), join(stream)
        append(house, stream, 1)
        stream.delete_group("g")
        house.flush()
        assert waiting.source is not None
        assert waiting.source.is_ended
        assert waiting.wakes == 2
        assert busy.is_ended
        assert take(busy) == []
        assert not busy.acknowledge(1)
        busy.close()
        assert house.stored(Kind.STREAM_GROUP) == 0
        assert stream.statistics().followers == 0
        house.restart()
        assert house.stream().groups == {}
        assert take(join(house.stream())) == [1, 2, 3, 4]

    def test_with_an_acknowledgement_in_the_same_commit(self, house: House) -> None:
        """A position that was to be recorded does not bring the group back."""
        stream = house.declare()
        append(house, stream, 1)
        member = join(stream)
        take(member)
        member.acknowledge(1)
        stream.delete_group("g")
        house.flush()
        assert house.stored(Kind.STREAM_GROUP) == 0

    def test_and_a_new_one_in_the_same_commit(self, house: House) -> None:
        """A group of the same name has the position that it is given."""
        stream = house.declare()
        append(house, stream, 5)
        stream.group("g", 1)
        house.flush()
        stream.delete_group("g")
        stream.group("g", 3)
        house.flush()
        house.restart()
        assert take(join(house.stream())) == [4, 5]


def test_a_follower_of_a_group_that_rests_has_nothing_in_memory(house: House) -> None:
    """Without members a group keeps numbers only."""
    stream = house.declare()
    append(house, stream, 5)
    member = join(stream)
    take(member, 2)
    group = stream.group("g")
    assert group._follower is not None
    assert group._follower._batch is not None
    member.close()
    assert group._follower._batch is None


def test_how_a_group_stands(house: House) -> None:
    """Position, lag, members and what is out are in the statistics of the stream."""
    stream = house.declare()
    append(house, stream, 5)
    member = join(stream)
    take(member, 3)
    member.acknowledge(1)
    (statistics,) = stream.statistics().groups
    assert (statistics.name, statistics.position, statistics.lag) == ("g", 1, 4)
    assert (statistics.members, statistics.unacknowledged) == (1, 2)


def test_names_and_number_of_groups_are_limited(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that cannot be is refused with the reason."""
    monkeypatch.setattr("ganglion.broker.core.stream._GROUPS_MAX", 2)
    stream = house.declare()
    with pytest.raises(InvalidDefinition, match="name of a group"):
        stream.group("a/b")
    stream.group("a")
    stream.group("b")
    with pytest.raises(InvalidDefinition, match="stream s has 2 groups already"):
        stream.group("c")
