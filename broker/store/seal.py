"""The seal on a store that was closed: which files it has, and how large they are.

A file that has lost its end can look like one that was being written when the machine stopped. Of a
store that was closed that excuse is not valid, and the seal tells: it is put when everything is
closed, and looked at and broken before anything is opened. A store without a seal was not closed,
or is a copy that was made in use.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgpack

from ganglion.broker.store.directories import sync_directory
from ganglion.broker.store.rocks_reading import BAD_CHECKSUM, CRC, fits, frame

__all__ = ["BadSeal", "Seal"]

_SEED = 0x5EA1  # of the checksum, and no kind's number
_NAMES = ("*.sst", "*.log", "MANIFEST-*", "CURRENT")


class BadSeal(Exception):
    """The seal itself cannot be read."""


class Seal:
    """The seal of one store, if it has one."""

    def __init__(self, path: Path, files: Path) -> None:
        """It is in `path`, for what is in the directory `files`."""
        self._path = path
        self._files = files

    def mismatch(self) -> str | None:
        """What is not as it was when the store was closed; None: nothing, or there is no seal.

        Raises `BadSeal`.
        """
        try:
            sealed = self._path.read_bytes()
        except OSError:
            return None
        if not fits(_SEED, b"", sealed):
            raise BadSeal(f"of {self._path.name}, {BAD_CHECKSUM}")
        sizes: dict[str, int] = msgpack.unpackb(sealed[CRC.size :])
        found = self._sizes()
        for name, size_bytes in sizes.items():
            if name not in found:
                return f"{name} is missing"
            if found[name] != size_bytes:
                return f"{name} has {found[name]} bytes, and had {size_bytes} when it was closed"
        return None

    def put(self) -> None:
        """Seal the files, durably; in vain if the disk refuses that."""
        sealed = frame(_SEED, b"", msgpack.packb(self._sizes()))
        new = self._path.with_suffix(".new")
        with suppress(OSError):
            with new.open("wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            sync_directory(self._path.parent)

    def remove(self) -> None:
        """The files are in use from here on. Raises OSError; harmless without a seal."""
        with suppress(FileNotFoundError):
            self._path.unlink()
            sync_directory(self._path.parent)

    def _sizes(self) -> dict[str, int]:
        return {
            path.name: path.stat().st_size for each in _NAMES for path in self._files.glob(each)
        }
