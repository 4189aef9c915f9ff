"""The reading of RocksDB's log: what is whole, what is torn at its end, what is damaged within."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganglion.broker.store import Kind
from ganglion.broker.store.rocks_log import _crc32c, cut, ends_cleanly, find_tear
from tests.broker.store.stores import Core, commit, open_rocks

SIZES = (100, 100, 100_000, 100, 32_768, 32_740, 50, 70_000)
"""Of the values in the log of these tests, one batch each: some cross several blocks."""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A copy of the log of a store in use, with a batch for each of `SIZES`."""
    core = Core()
    store = open_rocks(tmp_path / "store", core)
    for number, size in enumerate(SIZES):
        commit(store, core, (Kind.BACKLOG, b"%d" % number, random.Random(number).randbytes(size)))
    (path,) = (tmp_path / "store" / "records").glob("*.log")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes().rstrip(b"\0"))  # without the room behind it
    yield copy
    core.close()


def value_offset(log: Path, number: int) -> int:
    """Where in the log the value of a batch begins."""
    return log.read_bytes().index(random.Random(number).randbytes(SIZES[number])[:40])


def overwrite(log: Path, offset: int, data: bytes) -> None:
    """Change bytes of the log in place."""
    with log.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_checksum() -> None:
    """CRC-32C of the check string, and of RFC 3720's 32 zero bytes (appendix B.4)."""
    assert _crc32c(b"123456789") == 0xE306_9283
    assert _crc32c(bytes(32)) == 0x8A91_36AA


def test_a_whole_log(log: Path) -> None:
    """A log that was written to its end has no tear, with space allocated behind it or without."""
    assert ends_cleanly(log)
    assert find_tear(log) is None
    with log.open("ab") as file:
        file.write(bytes(10_000))
    assert ends_cleanly(log)
    assert find_tear(log) is None


@pytest.mark.parametrize("number", [2, 4, 5, 7])
def test_a_large_batch_with_a_hole(log: Path, number: int) -> None:
    """A hole in the last batch is a tear from that batch's beginning; in another it is damage."""
    offset = value_offset(log, number) + min(40_000, SIZES[number] // 2)
    overwrite(log, offset, bytes(512))
    tear = find_tear(log)
    assert tear is not None
    assert tear.is_last == (number == 7)
    assert value_offset(log, number) - 100 < tear.offset < value_offset(log, number)
    assert tear.offset + tear.size_bytes == log.stat().st_size


@pytest.mark.parametrize("size_bytes", [1, 7, 40, 5000])
def test_a_last_batch_without_its_beginning(log: Path, size_bytes: int) -> None:
    """Where the first page of a batch is missing and later ones are there, no other one is cut."""
    whole = log.read_bytes()
    overwrite(log, value_offset(log, 7) + 100, bytes(512))
    tear = find_tear(log)
    assert tear is not None
    log.write_bytes(whole)
    overwrite(log, tear.offset, bytes(size_bytes))
    assert find_tear(log) == tear


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_last_batch_without_its_end_before_room(log: Path, blocks: int) -> None:
    """Where room lies behind the log, RocksDB does not forgive a missing end: it is a tear."""
    whole = log.read_bytes()
    end = len(whole) // 32_768 * 32_768 - (blocks - 1) * 32_768
    log.write_bytes(whole[:end])
    assert find_tear(log) is None  # at the end of the file it is forgiven
    log.write_bytes(whole[:end] + bytes(100_000))
    assert not ends_cleanly(log)
    tear = find_tear(log)
    assert tear is not None
    assert tear.is_last
    assert value_offset(log, 7) - 100 < tear.offset < value_offset(log, 7)
    assert tear.offset + tear.size_bytes == end


def test_a_cut_log_is_whole(log: Path) -> None:
    """What `cut` leaves ends with the batch before, and reads without a tear."""
    overwrite(log, value_offset(log, 7) + 100, bytes(512))
    tear = find_tear(log)
    assert tear is not None
    cut(tear)
    assert log.stat().st_size == tear.offset
    assert find_tear(log) is None
    assert ends_cleanly(log)
    assert random.Random(6).randbytes(SIZES[6]) in log.read_bytes()


def test_a_length_beyond_the_end(log: Path) -> None:
    """A damaged length that makes the rest look torn is told from a real tear."""
    whole = log.read_bytes()
    overwrite(log, value_offset(log, 4) + 10, bytes(512))
    tear = find_tear(log)
    assert tear is not None
    log.write_bytes(whole[: tear.offset])  # batches 0 to 3, of which 2 reaches into the last block
    begin = tear.offset // 32_768 * 32_768
    assert ends_cleanly(log)
    overwrite(log, begin + 5, b"\x7f")  # high byte of the length of the block's first record
    assert not ends_cleanly(log)
    tear = find_tear(log)
    assert tear is not None
    assert not tear.is_last
