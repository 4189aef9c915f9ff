"""The streams of a node: declared, bound, changed, deleted and found again."""

import pytest

from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.stream import Stream
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.store import Kind
from tests.broker.core.stream_surroundings import House


@pytest.fixture
def house() -> House:
    """Streams over a store in memory."""
    return House()


def filters(house: House, stream: Stream) -> list[str]:
    """What leads to the stream."""
    return sorted({each for receiver, each in house.bound if receiver is stream})


class TestDefinition:
    """What a stream may be."""

    def test_it_comes_back_from_its_record(self) -> None:
        """All options are stored."""
        definition = StreamDefinition(
            name="s",
            bindings=("a/#", "b"),
            max_age_s=1.5,
            max_bytes=2,
            max_records=3,
            keyed=True,
            compact=True,
            tombstone_keep_s=4.0,
            max_record_bytes=5,
        )
        assert StreamDefinition.from_record(definition.to_record()) == definition

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_age_s", -1),
            ("max_age_s", float("nan")),
            ("max_bytes", -1),
            ("max_records", 2**54),
            ("tombstone_keep_s", float("inf")),
            ("max_record_bytes", 2**32),
        ],
    )
    def test_numbers_are_within_their_range(self, option: str, value: float) -> None:
        """The refusal names the option."""
        with pytest.raises(InvalidDefinition, match=option):
            StreamDefinition(name="s", **{option: value})  # type: ignore[arg-type]  # by name

    @pytest.mark.parametrize("name", ["", "a/b", "a+", "#", "a\nb", "x" * 129])
    def test_names_are_checked(self, name: str) -> None:
        """A stream cannot have any name."""
        with pytest.raises(InvalidDefinition):
            StreamDefinition(name=name)

    def test_a_compacted_stream_is_keyed(self) -> None:
        """It needs the versions of keys to know the last ones."""
        assert StreamDefinition(name="s", compact=True).is_keyed
        assert not StreamDefinition(name="s").is_keyed


def test_a_stream_outlives_a_restart(house: House) -> None:
    """With its definition, its identifier and what leads to it."""
    stream = house.declare(bindings=("a/#",), max_records=5)
    other = house.declare("other")
    house.restart()
    found = house.stream()
    assert found.definition == stream.definition
    assert found.identifier == stream.identifier
    assert filters(house, found) == ["$stream/s", "a/#"]
    assert len(house.streams) == 2
    assert house.declare("third").identifier > other.identifier


def test_declaring_again_changes_nothing(house: House) -> None:
    """The same definition is recorded once."""
    stream = house.declare(bindings=("a",))
    number = house.commits.number
    assert house.declare(bindings=("a",)) is stream
    assert house.commits.number == number


def test_bindings_come_and_go(house: House) -> None:
    """By a new definition and one by one; none twice."""
    stream = house.declare(bindings=("a", "b"))
    house.declare(bindings=("b", "c"))
    assert filters(house, stream) == ["$stream/s", "b", "c"]
    house.streams.bind(stream, "d")
    house.streams.bind(stream, "d")
    house.streams.unbind(stream, "b")
    house.streams.unbind(stream, "never there")
    house.flush()
    assert stream.definition.bindings == ("c", "d")
    house.restart()
    assert filters(house, house.stream()) == ["$stream/s", "c", "d"]


def test_a_stream_with_records_cannot_become_keyed(house: House) -> None:
    """Not even when they are still on their way to the disk."""
    stream = house.declare()
    stream.append([b"x"], keys=["k"])
    for _ in range(2):
        with pytest.raises(InvalidDefinition, match="it can only become keyed by deleting it"):
            house.streams.declare(StreamDefinition(name="s", keyed=True))
        house.flush()
    assert not stream.definition.keyed
    empty = house.declare("empty")
    assert house.declare("empty", compact=True) is empty


def test_a_stream_that_is_keyed_no_more_forgets_its_versions(house: House) -> None:
    """Those that are stored and those that are not yet."""
    stream = house.declare(keyed=True)
    stream.append([b"x"], keys=["a"])
    house.flush()
    stream.append([b"x"], keys=["b"])
    house.declare()
    assert house.stored(Kind.STREAM_KEY) == 0
    house.check(stream)


def test_the_number_of_streams_is_limited(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, and those that are there can be changed."""
    monkeypatch.setattr("ganglion.broker.core.streams._STREAMS_MAX", 1)
    house.declare()
    with pytest.raises(InvalidDefinition, match="there are 1 streams already"):
        house.streams.declare(StreamDefinition(name="other"))
    house.declare(max_records=3)


def test_identifiers_are_not_used_again_while_anything_has_them(house: House) -> None:
    """A stream whose definition is damaged keeps its records out of others' reach."""
    stream = house.declare(keyed=True)
    stream.append([b"x"], keys=["k"])
    stream.group("g")
    house.flush()
    house.faulty.damaged |= {(Kind.STREAM, b"s"), (Kind.STREAM, b"\0s")}
    house.restart()
    assert house.declare("new").identifier > stream.identifier
    assert house.stream("new").groups == {}
    assert house.streams.find("s") is None
