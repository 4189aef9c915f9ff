"""Room on the disk that is kept back, so that a full disk can be emptied again.

To delete something takes room as well: in the log first, and in new files until the old ones can
go. So a file of some size lies beside the records, and is cut to nothing when a write has found no
room. Before it comes to that the free room is looked at now and then, because a failed write costs
RocksDB seconds to recover from.

`low_bytes` of room beside the reserve are taken for a full disk, twice that, and the reserve whole
again, for one that has room: what a few deletes give back is not filled up again at once.
"""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["Reserve"]

_FREE_PARTS = 8
"""Of what is free when the reserve is made, it takes no more than one such part."""


class Reserve:
    """The file that is kept back, and what is free beside it."""

    def __init__(self, path: Path, size_max_bytes: int) -> None:
        """Make the file unless it is there; 0 bytes mean that there is to be none.

        Raises OSError when the directory cannot be used.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held = os.fstat(self._descriptor).st_size
        self.size_bytes = min(size_max_bytes, max(held, (self.free_bytes() + held) // _FREE_PARTS))
        """How large the reserve is when it is whole."""
        self.is_held = False
        """Whether the reserve is whole, and not given to the records."""
        self.low_bytes = self.size_bytes // 2
        """How much room beside it is too little."""
        if held > self.size_bytes:
            os.ftruncate(self._descriptor, self.size_bytes)
        self.hold()

    def free_bytes(self) -> int:
        """What the file system has free for this process, beside what is reserved."""
        found = os.fstatvfs(self._descriptor)
        return found.f_bavail * found.f_frsize

    def is_low(self) -> bool:
        """Whether there is so little room that nothing more may be taken in."""
        return self.free_bytes() < self.low_bytes

    def has_room(self) -> bool:
        """Whether there is room for everything again, after the reserve was made whole if need be.

        Where it cannot be made whole, there is not.
        """
        missing = 0 if self.is_held else self.size_bytes
        if self.free_bytes() < missing + 2 * self.low_bytes:
            return False
        return self.is_held or self.hold()

    def hold(self) -> bool:
        """Make the reserve whole; whether that was possible."""
        try:
            if self.size_bytes:
                os.posix_fallocate(self._descriptor, 0, self.size_bytes)
        except OSError:  # no room, or a quota
            self.release()
            return False
        self.is_held = True
        return True

    def release(self) -> None:
        """Give the room to the records."""
        with suppress(OSError):  # a disk that refuses even this has nothing to give
            os.ftruncate(self._descriptor, 0)
        self.is_held = False

    def close(self) -> None:
        """Let go of the file, which stays."""
        os.close(self._descriptor)
