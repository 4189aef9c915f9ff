"""The end of RocksDB's write-ahead log after a power loss: what is torn, what is damaged.

RocksDB forgives a log that ends within a record (the process was killed while it wrote). It does
not forgive a last record with a wrong checksum, which is what a power loss leaves when the disk
wrote the pages of one `write` in another order; and where a damaged length points beyond the end of
the file, it takes everything behind it for torn. Both would be wrong here: the first would keep a
node from starting although only an unacknowledged batch is lost, the second would lose acknowledged
ones without a word. So we look ourselves.

The rule: every batch is synced before the next one is written, so a tear can only be in the last
batch. If anything behind the first bad record begins another batch, it is damage.

The log is a row of blocks of 32 KiB. A block is a row of records that do not cross its end: CRC-32C
of what follows the length, masked (4 bytes), length of the payload (2), type (1), payload, all
little-endian. A batch is one FULL record, or FIRST, MIDDLE… and LAST.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

__all__ = ["Tear", "cut", "ends_cleanly", "find_tear", "is_torn_list"]

_BLOCK_SIZE = 32_768
_HEADER = Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4
_BEGINNINGS = (_FULL, _FIRST)
_ENDS = (_FULL, _LAST)
_TYPES = frozenset((1, 2, 3, 4))
_MASK_DELTA = 0xA282EAD8
_SECTOR_SIZE = 512
"""What a disk writes as a whole or not at all."""
_NEW_FILE_SIZE_MIN = 24
"""An entry about a new file has more: its number, its size, two keys, four sequence numbers."""


@dataclass(frozen=True, slots=True)
class Tear:
    """Where a log stops being readable."""

    path: Path
    offset: int
    """Where the batch begins that cannot be read, in bytes."""
    size_bytes: int
    """How much was written behind `offset`: up to the last byte that is not zero."""
    is_last: bool
    """Whether no other batch begins behind it: then it is torn, and else damaged."""


def ends_cleanly(path: Path) -> bool:
    """Whether the records of the last block, by their lengths, end where the file ends.

    Or where nothing but zeros follows (`LogRoom`). Reads no more than these and one block. False is
    no verdict yet: `find_tear` gives that.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = size - size % _BLOCK_SIZE
        file.seek(start)
        block = file.read()
        while start and not _has_more(block, 0):
            start -= _BLOCK_SIZE
            file.seek(start)
            block = file.read(_BLOCK_SIZE)
    position = kind = 0
    while position + _HEADER.size <= len(block):
        _, length, next_kind = _HEADER.unpack_from(block, position)
        if next_kind == 0 and length == 0:  # allocated and not written
            return not _has_more(block, position) and (position == 0 or kind in _ENDS)
        kind = next_kind
        position += _HEADER.size + length
    is_last = start + len(block) == size
    return position <= len(block) and (is_last or kind in _ENDS)


def find_tear(path: Path) -> Tear | None:
    """The first batch of the log that cannot be read; None when all can.

    A batch whose end is missing at the end of the file is none: RocksDB forgives it. Where there is
    room behind it (`LogRoom`) it does not.
    """
    log = path.read_bytes()
    begin: int | None = None  # of the batch that the record at `position` belongs to
    end = 0
    for position, kind, is_good in _records(log):
        if begin is None:  # whatever a torn record says of its type
            begin = position
        if not is_good:
            behind = _next_beginning(log, position + 1)
            return Tear(path, begin, _written(log) - begin, behind is None)
        if kind in _ENDS:
            begin = None
        end = position + _HEADER.size + _HEADER.unpack_from(log, position)[1]
    if begin is not None and end < len(log):
        return Tear(path, begin, _written(log) - begin, is_last=True)
    return None


def is_torn_list(tear: Tear) -> bool:
    """Whether a list of sorted files, which has the form of a log, was being written there.

    RocksDB writes a few entries at once and then syncs them: behind the torn one there may be whole
    ones about logs, which are short. One that can speak of a new file is another matter. And where
    a bit has flipped, all around it is what it was: of a torn entry a sector is empty, or the end
    is missing.
    """
    log = tear.path.read_bytes()
    end = behind = _next_beginning(log, tear.offset + 1)
    while behind is not None:
        _, length, _ = _HEADER.unpack_from(log, behind)
        if length >= _NEW_FILE_SIZE_MIN:
            return False
        behind = _next_beginning(log, behind + _HEADER.size + length)
    if end is None:
        end = len(log)
        if _is_cut_short(log, tear.offset):
            return True
    start = tear.offset
    while start < end:
        sector_end = min(start - start % _SECTOR_SIZE + _SECTOR_SIZE, end)
        if not any(log[start:sector_end]):
            return True
        start = sector_end
    return False


def _is_cut_short(log: bytes, position: int) -> bool:
    """Whether the record should go on behind the end, and its length is not what is wrong."""
    if position + _HEADER.size > len(log):
        return True
    checksum, length, kind = _HEADER.unpack_from(log, position)
    room = len(log) - position - _HEADER.size
    return length > room and not _is_record(log, position, checksum, room, kind)


def cut(tear: Tear) -> None:
    """Remove the torn batch from the end of the log, durably."""
    with tear.path.open("r+b") as file:
        file.truncate(tear.offset)
        os.fsync(file.fileno())


def _records(log: bytes) -> Iterator[tuple[int, int, bool]]:
    """Offset, type and goodness of each record, up to the first that is not good."""
    position = 0
    while position + _HEADER.size <= len(log):
        room = _BLOCK_SIZE - position % _BLOCK_SIZE
        if room < _HEADER.size:  # the end of a block too small for a record
            position += room
            continue
        checksum, length, kind = _HEADER.unpack_from(log, position)
        if not checksum and not length and not kind:
            if _has_more(log, position):
                yield position, kind, False
            return
        if not _is_record(log, position, checksum, length, kind):
            yield position, kind, False
            return
        yield position, kind, True
        position += _HEADER.size + length
    if _has_more(log, position):
        yield position, 0, False


def _written(log: bytes) -> int:
    return len(log.rstrip(b"\0"))


def _has_more(log: bytes, position: int) -> bool:
    """Whether there is anything but zeros from there on."""
    return log.count(0, position) < len(log) - position


def _next_beginning(log: bytes, start: int) -> int | None:
    """Where, at or behind `start`, a batch begins that can be read.

    In the block of `start` no length can be trusted, so every place is looked at. In later blocks
    it is enough to follow the records from the block's beginning.
    """
    end_of_block = start - start % _BLOCK_SIZE + _BLOCK_SIZE
    for position in range(start, min(end_of_block, len(log)) - _HEADER.size):
        if log[position + 6] in _BEGINNINGS:  # the type: the cheapest to look at
            checksum, length, kind = _HEADER.unpack_from(log, position)
            if length and _is_record(log, position, checksum, length, kind):
                return position
    for block in range(end_of_block, len(log), _BLOCK_SIZE):
        position = block
        while position % _BLOCK_SIZE + _HEADER.size <= _BLOCK_SIZE and position < len(log):
            if position + _HEADER.size > len(log):
                break
            checksum, length, kind = _HEADER.unpack_from(log, position)
            if not length or not _is_record(log, position, checksum, length, kind):
                break
            if kind in _BEGINNINGS:
                return position
            position += _HEADER.size + length
            if position % _BLOCK_SIZE == 0:
                break
    return None


def _is_record(log: bytes, position: int, checksum: int, length: int, kind: int) -> bool:
    end = position + _HEADER.size + length
    if kind not in _TYPES or end > len(log):
        return False
    if position % _BLOCK_SIZE + _HEADER.size + length > _BLOCK_SIZE:
        return False
    found = _crc32c(log[position + 6 : end])
    return ((found >> 15 | found << 17) + _MASK_DELTA) & 0xFFFF_FFFF == checksum


def _make_table() -> tuple[int, ...]:
    table: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _make_table()


def _crc32c(data: bytes) -> int:
    """The Castagnoli CRC (RFC 3720, appendix B.4)."""
    crc = 0xFFFF_FFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFF_FFFF
