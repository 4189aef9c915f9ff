"""Reading records of a column family: their checksums, and ways around what cannot be read.

A record's value stands behind a CRC-32 of its seed, its key and the value. The seed is the number
of its kind (or of what else is stored), so that a good value in a wrong place is found as well.
"""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, cast
from zlib import crc32

from rocksdict import Rdict, RdictIter, ReadOptions

__all__ = [
    "BAD_CHECKSUM",
    "CRC",
    "Progress",
    "Reading",
    "counted",
    "fits",
    "frame",
    "has_records",
]

CRC = Struct(">I")
BAD_CHECKSUM = "the checksum does not fit"
_BEYOND = b"\xff" * 16  # no key of any kind begins so: they are numbers, or names in UTF-8


_PROGRESS_EVERY = 65_536  # records: several times a second

Progress = Callable[[str, int], None]
"""Is told what is being read, by name, and how many of it were read up to now."""


def counted(
    records: Iterator[tuple[bytes, bytes]], name: str, progress: Progress | None
) -> Iterator[tuple[bytes, bytes]]:
    """The records, with `progress` told of them: now and then, and of all at the end."""
    count = 0
    for count, record in enumerate(records, 1):
        yield record
        if progress is not None and count % _PROGRESS_EVERY == 0:
            progress(name, count)
    if progress is not None:
        progress(name, count)


def frame(seed: int, key: bytes, value: bytes) -> bytes:
    """The value behind its checksum, as it is stored."""
    return CRC.pack(crc32(value, crc32(key, seed))) + value


def fits(seed: int, key: bytes, record: bytes) -> bool:
    """Whether the checksum in front of the value is that of the kind, the key and the value."""
    value = memoryview(record)[CRC.size :]
    return record[: CRC.size] == CRC.pack(crc32(value, crc32(key, seed)))


class Reading:
    """One pass over a column family as it was when the pass began, around what cannot be read.

    RocksDB ends an iteration at a block whose checksum does not fit just as it does at the end of
    all records; only the status tells. From there on the pass does without RocksDB's checksums,
    because ours can tell good records of such a block from bad ones, and it skips what is so broken
    that no records can be found in it.
    """

    def __init__(
        self,
        family: Rdict,
        seed: int,
        note: Callable[[bytes, str], object],
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        backwards: bool = False,
    ) -> None:
        """Begin; `note` is told of damage: the key, or the one met before, and what was found."""
        self._family = family
        self._seed = seed
        self._note = note
        self._start, self._stop, self._backwards = start, stop, backwards
        # An iterator is a view of one moment. (A `Snapshot` of rocksdict 0.3.29 is not.)
        options = self._options(verify=True)
        self._end = family.iter(options)
        if not backwards:
            items = family.items(from_key=start, read_opt=options)
            self._items = cast("Iterator[tuple[bytes, bytes]]", items)

    def _options(self, *, verify: bool) -> ReadOptions:
        options = ReadOptions()
        options.set_total_order_seek(True)
        options.set_verify_checksums(verify)
        # Nothing read without its checksum may stay in the cache, and a scan is read once.
        cast("Any", options).fill_cache(False)  # the stub of rocksdict forgets the argument
        # There is no lower bound: `set_iterate_lower_bound` of rocksdict 0.3.29 sets the upper one.
        if self._stop is not None:
            options.set_iterate_upper_bound(self._stop)
        return options

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the good records, in the order that was asked for."""
        return self._reversed() if self._backwards else self._forwards()

    def _forwards(self) -> Iterator[tuple[bytes, bytes]]:
        seed, pack, size = self._seed, CRC.pack, CRC.size
        last: bytes | None = None
        for last, record in self._items:
            value = record[size:]
            if record[:size] == pack(crc32(value, crc32(last, seed))):
                yield last, value
            else:
                self._note(last, BAD_CHECKSUM)
        _seek_behind(self._end, last, self._start)
        what = _status(self._end)
        if what is not None:
            self._note(last or b"", what)
            yield from self._records_behind(last)

    def _reversed(self) -> Iterator[tuple[bytes, bytes]]:
        iterator = self._end
        iterator.seek(self._start)
        first: bytes | None = None
        last: bytes | None = None
        if iterator.valid():
            # Not one step beyond the first one: before it may lie any number of deleted records.
            first = cast("bytes", iterator.key())
            iterator.seek_to_last()
            while iterator.valid():
                last, record = cast("tuple[bytes, bytes]", (iterator.key(), iterator.value()))
                if fits(self._seed, last, record):
                    yield last, record[CRC.size :]
                else:
                    self._note(last, BAD_CHECKSUM)
                if last == first:
                    return
                iterator.prev()
        what = _status(iterator)
        if what is not None:
            self._note(self._start if last is None else last, what)
            yield from self._records_before(last, first)

    def _records_before(
        self, last: bytes | None, first: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """The same without RocksDB's checksums: slower. `first` is where it ends, if known."""
        iterator = self._family.iter(self._options(verify=False))
        if last is None:
            iterator.seek_to_last()
        else:
            _seek_before(iterator, last)
        while True:
            while iterator.valid():
                key, framed = cast("tuple[bytes, bytes]", (iterator.key(), iterator.value()))
                if key < self._start:
                    return
                last = key
                if fits(self._seed, key, framed):
                    yield key, framed[CRC.size :]
                else:
                    self._note(key, BAD_CHECKSUM)
                if key == first:
                    return
                iterator.prev()
            what = _status(iterator)
            if what is None:
                return
            self._note(self._start if last is None else last, what)
            last = self._readable_before(iterator, last)
            if last is None:
                return
            iterator.seek_for_prev(last)

    def _readable_before(self, iterator: RdictIter, last: bytes | None) -> bytes | None:
        """The last place before `last` from where one can read backwards; None: there is none."""
        end = (self._stop or _BEYOND) if last is None else last
        size = max(len(self._start), len(end)) + 1
        low = int.from_bytes(self._start.ljust(size, b"\0"), "big")
        high = int.from_bytes(end.ljust(size, b"\0"), "big")
        readable: bytes | None = None
        while high - low > 1:
            middle = (low + high) // 2
            place = middle.to_bytes(size, "big")
            iterator.seek_for_prev(place)
            if _status(iterator) is None:
                low, readable = middle, place
            else:
                high = middle
        return readable

    def _records_behind(self, last: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The same without RocksDB's checksums: slower."""
        options = self._options(verify=False)
        iterator = self._family.iter(options)
        _seek_behind(iterator, last, self._start)
        while True:
            while iterator.valid():
                key, framed = cast("tuple[bytes, bytes]", (iterator.key(), iterator.value()))
                if fits(self._seed, key, framed):
                    last = key
                    yield key, framed[CRC.size :]
                else:
                    self._note(key, BAD_CHECKSUM)
                iterator.next()
            what = _status(iterator)
            if what is None:
                return
            self._note(last or b"", what)
            readable = self._beyond(last or b"", options)
            if readable is None:
                return
            iterator.seek(readable)
            last = max(readable, cast("bytes", iterator.key()))  # to get on in any case

    def _beyond(self, start: bytes, options: ReadOptions) -> bytes | None:
        """The first place behind `start` from where one can read again; None: there is none.

        Found by halving, with keys taken as fractions: a seek fails up to the end of the broken
        part and works behind it.
        """
        iterator = self._family.iter(options)
        iterator.seek_to_last()
        if not iterator.valid() or cast("bytes", iterator.key()) <= start:
            return None
        readable = cast("bytes", iterator.key())
        size = max(len(start), len(readable)) + 1
        low = int.from_bytes(start.ljust(size, b"\0"), "big")
        high = int.from_bytes(readable.ljust(size, b"\0"), "big")
        while high - low > 1:
            middle = (low + high) // 2
            place = middle.to_bytes(size, "big")
            iterator.seek(place)
            if iterator.valid():
                high, readable = middle, place
            else:
                low = middle
        return readable


def _seek_behind(iterator: RdictIter, key: bytes | None, start: bytes) -> None:
    """Go to the first record behind `key`, or to the first from `start` on."""
    if key is None:
        iterator.seek(start)
        return
    iterator.seek(key)
    if iterator.valid() and iterator.key() == key:
        iterator.next()


def _seek_before(iterator: RdictIter, key: bytes) -> None:
    """Go to the last record before `key`."""
    iterator.seek_for_prev(key)
    if iterator.valid() and iterator.key() == key:
        iterator.prev()


def has_records(family: Rdict) -> bool:
    """Whether there is anything to read, be it good or bad."""
    iterator = family.iter(ReadOptions())
    iterator.seek_to_first()
    return iterator.valid() or _status(iterator) is not None


def _status(iterator: RdictIter) -> str | None:
    try:
        iterator.status()
    except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more precise
        return str(error)
    return None
