"""Batches of records as they are stored: nothing is lost on the way, none grows too large."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.broker.core import stream_batches
from ganglion.broker.core.message import MessageProperties
from ganglion.broker.core.stream_batches import (
    Columns,
    Record,
    RecordBatch,
    decode_batch,
    encode_batch,
    read_extent,
)

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_properties = st.builds(
    MessageProperties,
    payload_is_text=st.none() | st.booleans(),
    content_type=st.none() | _text,
    response_topic=st.none() | _text,
    correlation_data=st.none() | st.binary(max_size=8),
    user_properties=st.lists(st.tuples(_text, _text), max_size=3).map(tuple),
    key=st.none() | _text,
    message_id=st.none() | _text,
    priority=st.none() | st.integers(0, 9),
    delay_s=st.none() | st.floats(0, 1e6),
)
_records = st.lists(
    st.tuples(
        st.integers(1, 3),  # how far the sequence goes on
        st.sampled_from([0.0, 0.5]),  # how far the time does
        st.sampled_from(["a/b", "a/c"]),
        st.none() | _text,
        st.binary(max_size=20),
        st.none() | _properties,
    ),
    max_size=12,
)


def filled(*payloads: bytes, topic: str = "t") -> Columns:
    """Columns of records that have nothing but a payload."""
    columns = Columns()
    columns.payloads += payloads
    columns.topics += [topic] * len(payloads)
    columns.keys += [None] * len(payloads)
    columns.properties += [None] * len(payloads)
    return columns


def check_cover(batches: Sequence[RecordBatch], first: int, last: int) -> None:
    """The ranges follow each other from first to last."""
    for batch in batches:
        assert batch.first == first
        assert batch.last >= batch.first
        first = batch.last + 1
    assert first == last + 1


@settings(max_examples=25)
@given(_records, st.integers(0, 3))
def test_records_come_back_as_they_were_stored(
    drawn: list[tuple[int, float, str, str | None, bytes, MessageProperties | None]], behind: int
) -> None:
    """Whatever is missing between them, records keep sequence, time and all else."""
    columns, records = Columns(), list[Record]()
    sequence, time_s = 10, 1000.0
    for step, pause_s, topic, key, payload, properties in drawn:
        sequence, time_s = sequence + step, time_s + pause_s
        records.append(Record(sequence, time_s, topic, key, payload, properties))
        columns.append(records[-1])
    last = sequence + behind + (not drawn)
    batches = list(columns.batches(11, last, 5.0))
    check_cover(batches, 11, last)
    read: list[Record] = []
    for batch in batches:
        value = encode_batch(batch)
        decoded = decode_batch(batch.first, value)
        read += decoded.records()
        extent = read_extent(batch.first, value)
        assert (extent.first, extent.last) == (batch.first, batch.last)
        assert extent.count == len(decoded.payloads)
        assert extent.size_bytes == len(value)
        assert extent.time_s == decoded.last_time_s
    assert read == records


def test_new_records_take_the_numbers_and_the_time_of_the_range() -> None:
    """Columns without sequences have those of the range, and none of them is stored."""
    (batch,) = filled(b"a", b"b").batches(7, 8, 3.0)
    assert batch == RecordBatch(7, 8, range(7, 9), 3.0, "t", [b"a", b"b"], None, None)
    assert decode_batch(7, encode_batch(batch)) == batch


def test_a_range_without_records_is_covered() -> None:
    """Where compaction has taken all, a batch without records says so."""
    (batch,) = Columns().batches(3, 9, 4.0)
    decoded = decode_batch(3, encode_batch(batch))
    assert (decoded.first, decoded.last, decoded.records()) == (3, 9, [])
    assert read_extent(3, encode_batch(batch)).time_s == 4.0


def test_joined_ranges_that_miss_nothing_store_no_sequences() -> None:
    """What compaction only joins is stored as if it had been appended together."""
    columns = Columns()
    for sequence in range(3, 6):
        columns.append(Record(sequence, 1.0, "t", None, b"", None))
    (batch,) = columns.batches(3, 5, 1.0)
    assert batch.sequences == range(3, 6)
    assert batch.times == 1.0


def test_a_batch_has_at_most_so_many_records() -> None:
    """More than 1,000 records make several batches."""
    batches = list(filled(*[b""] * 2500).batches(1, 2500, 1.0))
    assert [len(batch.payloads) for batch in batches] == [1000, 1000, 500]
    check_cover(batches, 1, 2500)


def test_a_batch_has_at_most_so_many_bytes() -> None:
    """Everything that a publisher chose counts; one record alone may be larger."""
    half = stream_batches._BATCH_BYTES_MAX // 2
    by_payload = filled(*[bytes(half)] * 5)
    by_topic = filled(*[b""] * 5, topic="t")
    by_topic.topics[:] = [str(number) * half for number in range(5)]
    by_key = filled(*[b""] * 5)
    by_key.keys[:] = ["k" * half] * 5
    by_properties = filled(*[b""] * 5)
    by_properties.properties[:] = [MessageProperties(content_type="c" * half)] * 5
    for columns in (by_payload, by_topic, by_key, by_properties):
        batches = list(columns.batches(1, 5, 1.0))
        assert [len(batch.payloads) for batch in batches] == [2, 2, 1]
        check_cover(batches, 1, 5)
    alone = list(filled(b"", bytes(3 * half), b"").batches(1, 3, 1.0))
    assert [len(batch.payloads) for batch in alone] == [1, 1, 1]


def test_a_part_of_a_batch_has_its_columns() -> None:
    """What is cut out of a batch has the records at those indexes."""
    columns = Columns()
    for sequence in (3, 5, 8, 9):
        about = MessageProperties(content_type=str(sequence))
        columns.append(Record(sequence, sequence / 2, f"t{sequence}", f"k{sequence}", b"", about))
    (batch,) = columns.batches(1, 10, 1.0)
    part = batch.part(1, 3)
    assert (part.first, part.last) == (5, 8)
    assert part.records() == batch.records(1, 3)
    assert batch.part(0, 4) is batch


def test_properties_that_are_new_since_have_their_default() -> None:
    """A record that an earlier version stored, with fewer properties, can still be read."""
    earlier = [True, "text", None, None, [["a", "b"]]]
    assert stream_batches._properties(earlier) == MessageProperties(
        payload_is_text=True, content_type="text", user_properties=(("a", "b"),)
    )
