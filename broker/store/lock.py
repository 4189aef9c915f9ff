"""The lock on a store's directory: two processes that write the same files would destroy them.

It is `flock` on a file that stays where it is; the kernel lets go of it when its process ends,
however that happens. The file holds the process id for the one who is turned away.
"""

import fcntl
import os
from pathlib import Path

from ganglion.broker.store import StoreLocked

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """The exclusive right to use a directory, until `release`."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises `StoreLocked`, which names the directory and the process that has it; OSError when
        the file cannot be opened.
        """
        self._file = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise StoreLocked(
                f"the store in {directory} is in use by process {holder or '(unknown)'}; "
                "stop it, or choose another data directory"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the directory. Harmless the second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
