"""Room at the end of RocksDB's log that belongs to the file before anything is written there.

A sync of a file that has grown records its new size too, which a file system does in its journal: a
second write to the disk. RocksDB allocates its log in advance, and leaves its size as it is. So the
size is set ahead here. Measured on ext4: 88 µs in place of 125 for `fdatasync` behind 300 bytes.

What lies behind the last batch is zeros, which RocksDB takes for the end. When it closes a log it
cuts what it has not written. Nothing depends on this room: where there is none a sync takes longer.
"""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["LogRoom"]

_ROOM_BYTES = 8 * 1024 * 1024
"""Less than what RocksDB allocates at once (1.1 times `set_write_buffer_size`): it costs no room on
the disk."""


class LogRoom:
    """Sets the size of the newest log ahead of what is in it. For the thread that writes."""

    def __init__(self, records: Path) -> None:
        """`records` is the directory of RocksDB's files."""
        self._records = records
        self._name = ""
        self._used_bytes = 0  # of the log, about: rather more

    def keep(self, written_bytes: int) -> None:
        """Make room again; so much was written since the last time, whichever log it went to."""
        name = max(
            (each.name for each in os.scandir(self._records) if each.name.endswith(".log")),
            default="",
        )
        if not name:
            return
        with suppress(OSError):  # it has just been replaced, or there is no room
            descriptor = os.open(self._records / name, os.O_RDWR | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                if name == self._name:
                    self._used_bytes += written_bytes
                else:
                    self._name, self._used_bytes = name, size
                target = self._used_bytes + _ROOM_BYTES
                if size < target - _ROOM_BYTES // 2:
                    # Not `ftruncate`: it would cut what RocksDB has written meanwhile.
                    os.posix_fallocate(descriptor, size, target - size)
            finally:
                os.close(descriptor)
