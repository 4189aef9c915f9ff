"""How the records of a stream are written in the store: by columns, a batch at a time.

A value is a header of fixed size and one msgpack array of columns. The header alone says which
range of sequences the batch covers, how many records it has and of what times, so that retention
and searches decode no records. One call packs a thousand records.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, repeat
from operator import add
from struct import Struct
from typing import Any, NamedTuple, TypeVar

import msgpack

from ganglion.broker.core.message import MessageProperties

__all__ = [
    "Columns",
    "Extent",
    "Record",
    "RecordBatch",
    "decode_batch",
    "encode_batch",
    "read_extent",
]

_BATCH_RECORDS_MAX = 1000  # in one record of the store: what is read and decoded at a time
_BATCH_BYTES_MAX = 1024 * 1024
_HEADER = Struct(">QIdd")  # last of the range, records, times of the first and the last record
_pack: Callable[[object], bytes] = msgpack.Packer().pack  # a Packer each time would cost 1 µs
_T = TypeVar("_T")
_PROPERTIES = tuple(each.name for each in fields(MessageProperties))


class Record(NamedTuple):
    """One record of a stream, as it is read."""

    sequence: int
    time_s: float
    """When it was appended, in Unix seconds."""
    topic: str
    key: str | None
    payload: bytes
    properties: MessageProperties | None


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records that are stored as one value, by columns.

    A column that is one value in place of a list has that value for every record.
    """

    first: int
    """The first sequence of the range that it covers; what is not there was compacted."""
    last: int
    """The last sequence of that range."""
    sequences: Sequence[int]
    times: float | list[float]
    topics: str | list[str]
    payloads: list[bytes]
    keys: list[str | None] | None
    properties: list[MessageProperties | None] | None

    @property
    def last_time_s(self) -> float:
        """When the last record was appended, in Unix seconds."""
        return self.times[-1] if isinstance(self.times, list) else self.times

    def sizes(self, start: int, stop: int) -> list[int]:
        """How large the records at these indexes are: what their publishers chose, in bytes."""
        return _sizes(
            self.payloads[start:stop],
            self.topics[start:stop] if isinstance(self.topics, list) else self.topics,
            None if self.keys is None else self.keys[start:stop],
            None if self.properties is None else self.properties[start:stop],
        )

    def part(self, start: int, stop: int) -> "RecordBatch":
        """The records at these indexes (at least one), by columns too."""
        if start == 0 and stop == len(self.payloads):
            return self
        sequences = self.sequences[start:stop]
        return RecordBatch(
            sequences[0],
            sequences[-1],
            sequences,
            self.times[start:stop] if isinstance(self.times, list) else self.times,
            self.topics[start:stop] if isinstance(self.topics, list) else self.topics,
            self.payloads[start:stop],
            None if self.keys is None else self.keys[start:stop],
            None if self.properties is None else self.properties[start:stop],
        )

    def records(self, start: int = 0, stop: int | None = None) -> list[Record]:
        """An object for each record at these indexes."""
        if stop is None:
            stop = len(self.payloads)
        rest: list[Any] = [
            column[start:stop] if isinstance(column, list) else repeat(column)
            for column in (self.times, self.topics, self.keys, self.payloads, self.properties)
        ]
        # strict is impossible with repeat; the sequences come first and end it
        return list(map(Record._make, zip(self.sequences[start:stop], *rest, strict=False)))


@dataclass(frozen=True, slots=True)
class Extent:
    """What the header of a stored batch says."""

    first: int
    last: int
    """The last sequence of the range that it covers."""
    count: int
    """How many records it has."""
    size_bytes: int
    """As it is stored."""
    time_s: float
    """Of its last record."""


class Columns:
    """Records that are not encoded yet."""

    __slots__ = ("keys", "payloads", "properties", "sequences", "times", "topics")

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.payloads: list[bytes] = []
        self.keys: list[str | None] = []
        self.properties: list[MessageProperties | None] = []
        self.sequences: list[int] = []  # only where they were stored before
        self.times: list[float] = []  # as above

    def append(self, record: Record) -> None:
        """Add a record that was stored before, with its sequence and its time."""
        self.topics.append(record.topic)
        self.payloads.append(record.payload)
        self.keys.append(record.key)
        self.properties.append(record.properties)
        self.sequences.append(record.sequence)
        self.times.append(record.time_s)

    def batches(self, first: int, last: int, time_s: float) -> Iterator[RecordBatch]:
        """The records in batches that are not too large and together cover the range.

        Without sequences and times of their own they have those of the range, and this time.
        """
        total = len(self.payloads)
        start = 0
        while True:
            stop = start + _BATCH_RECORDS_MAX
            payloads, topics = self.payloads[start:stop], _one(self.topics[start:stop])
            keys, properties = _any(self.keys[start:stop]), _any(self.properties[start:stop])
            sizes = _sizes(payloads, topics, keys, properties)
            if sum(sizes) > _BATCH_BYTES_MAX:
                fit = max(1, bisect_right(list(accumulate(sizes)), _BATCH_BYTES_MAX))
                for column in (payloads, topics, keys, properties):
                    if isinstance(column, list):
                        del column[fit:]
            stop = start + len(payloads)
            if stop >= total:
                until = last
            elif self.sequences:
                until = self.sequences[stop] - 1
            else:
                until = first + stop - start - 1
            sequences: Sequence[int] = self.sequences[start:stop]
            if stop - start == until - first + 1:
                sequences = range(first, until + 1)  # none is missing
            times = _one(self.times[start:stop]) if self.times else time_s
            yield RecordBatch(first, until, sequences, times, topics, payloads, keys, properties)
            first, start = until + 1, stop
            if start >= total:
                return


def _one(column: list[_T]) -> list[_T] | _T:
    """The value that all have, if they have one."""
    return column[0] if column and column.count(column[0]) == len(column) else column


def _any(column: list[_T | None]) -> list[_T | None] | None:
    """None if they all are."""
    return None if column.count(None) == len(column) else column


def _sizes(
    payloads: list[bytes],
    topics: str | list[str],
    keys: list[str | None] | None,
    properties: list[MessageProperties | None] | None,
) -> list[int]:
    sizes = list(map(len, payloads))
    if isinstance(topics, list):
        sizes = list(map(add, sizes, map(len, topics)))
    if keys is not None:
        sizes = [size + len(key or "") for size, key in zip(sizes, keys, strict=True)]
    if properties is not None:
        sizes = [
            size if each is None else size + each.size_bytes()
            for size, each in zip(sizes, properties, strict=True)
        ]
    return sizes


def encode_batch(batch: RecordBatch) -> bytes:
    """The batch as it is stored; its first sequence is in the key."""
    times, sequences = batch.times, batch.sequences
    time_s, last_time_s = (times[0], times[-1]) if isinstance(times, list) else (times, times)
    properties = None
    if batch.properties is not None:
        properties = [
            None if each is None else [getattr(each, name) for name in _PROPERTIES]
            for each in batch.properties
        ]
    columns = (
        times if isinstance(times, list) else None,
        batch.topics,
        batch.payloads,
        batch.keys,
        properties,
        None if isinstance(sequences, range) else list(sequences),
    )
    return _HEADER.pack(batch.last, len(batch.payloads), time_s, last_time_s) + _pack(columns)


def _properties(record: list[Any] | None) -> MessageProperties | None:
    if record is None:
        return None
    values = dict(zip(_PROPERTIES, record, strict=False))  # one that is new since has its default
    values["user_properties"] = tuple((name, value) for name, value in values["user_properties"])
    return MessageProperties(**values)


def decode_batch(first: int, value: bytes) -> RecordBatch:
    """Back from `encode_batch`."""
    last, _, time_s, _ = _HEADER.unpack_from(value)
    times, topics, payloads, keys, properties, sequences = msgpack.unpackb(
        memoryview(value)[_HEADER.size :]
    )
    return RecordBatch(
        first,
        last,
        range(first, last + 1) if sequences is None else sequences,
        time_s if times is None else times,
        topics,
        payloads,
        keys,
        properties and [_properties(each) for each in properties],
    )


def read_extent(first: int, value: bytes) -> Extent:
    """What the header of a stored batch says; nothing else is decoded."""
    last, count, _, time_s = _HEADER.unpack_from(value)
    return Extent(first, last, count, len(value), time_s)
