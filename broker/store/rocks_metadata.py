"""What a store knows of itself: the version of its format, its last commit, what is under way.

It is a column family of a few records, with checksums like all others:

==========  ======================================================================================
format      version of all that is described in `rocksdb` (4 bytes)
commit      number and epoch of the last batch (8 bytes each), written in that batch
upgrading   present while records are rewritten for another version
loading     present while the snapshot of another store is taken over
feed        bounds of the replication feed and what it keeps; absent while none is attached
==========  ======================================================================================
"""

from pathlib import Path
from struct import Struct
from typing import cast

from rocksdict import ColumnFamily, Rdict

from ganglion.broker.store import StoreDamaged, StoreError, StoreTooNew, UpgradeInterrupted
from ganglion.broker.store.rocks_families import METADATA
from ganglion.broker.store.rocks_reading import BAD_CHECKSUM, CRC, fits, frame

__all__ = ["ADVICE_DAMAGED", "FORMAT_VERSION", "Metadata", "damage"]

FORMAT_VERSION = 2
"""Of the records and their keys; raised when a store of the one before has to be rewritten."""

ADVICE_DAMAGED = (
    "restore a backup, or save what can be read with 'ganglion store rescue DIR'; "
    "docs/durability.md says more"
)
"""What can be done about files that are damaged."""

_SEED = 0  # of the checksums, and no kind's number
_FORMAT = b"format"
_COMMIT = b"commit"
_UPGRADING = b"upgrading"
_LOADING = b"loading"
_FEED = b"feed"
_VERSION = Struct(">I")
_NUMBER_AND_EPOCH = Struct(">QQ")

Own = tuple[ColumnFamily, bytes, bytes | None]
"""A change of what is known: column family, key, and framed value; None removes it."""


def damage(directory: Path, what: str) -> StoreDamaged:
    """The error that says what is damaged in the store of that directory, and what to do."""
    return StoreDamaged(f"the store in {directory} is damaged: {what}; {ADVICE_DAMAGED}")


class Metadata:
    """Reading and changing what a store knows of itself."""

    def __init__(self, database: Rdict, directory: Path) -> None:
        """Of this database, which is that of the store in `directory`."""
        self._family = database.get_column_family(METADATA)
        self._handle = database.get_column_family_handle(METADATA)
        self._directory = directory

    def check(self) -> bool:
        """Whether there is a store at all, and not only its empty files.

        Raises `StoreTooNew`, `UpgradeInterrupted`, `StoreDamaged`, or another `StoreError` when it
        is none that can be worked with.
        """
        version = self._value(_FORMAT)
        found: int = FORMAT_VERSION if version is None else _VERSION.unpack(version)[0]
        if found > FORMAT_VERSION:
            raise StoreTooNew(
                f"the store in {self._directory} has format {found}; this version of Ganglion "
                f"knows formats up to {FORMAT_VERSION}: use the newer version again, or another "
                "data directory"
            )
        if found < FORMAT_VERSION:
            raise StoreError(
                f"the store in {self._directory} has format {found}, of a version that was never "
                f"released; this one needs format {FORMAT_VERSION}: use another data directory"
            )
        if upgrading := self._value(_UPGRADING):
            raise UpgradeInterrupted(
                f"the store in {self._directory} was being upgraded "
                f"({upgrading.decode('ascii', 'replace')}) when the process ended: restore the "
                "backup that was made before the upgrade"
            )
        if loading := self._value(_LOADING):
            raise StoreError(
                f"the store in {self._directory} was being loaded with the state of commit "
                f"{loading.decode('ascii', 'replace')} when the process ended: remove the "
                "directory and load it again"
            )
        return version is not None

    def last_commit(self) -> tuple[int, int]:
        """Number and epoch of the last commit. Raises `StoreDamaged`."""
        commit = self._value(_COMMIT)
        if commit is None:
            raise damage(self._directory, "the number of the last commit is missing")
        return cast("tuple[int, int]", _NUMBER_AND_EPOCH.unpack(commit))

    def feed(self) -> bytes | None:
        """The state of the replication feed; None: there is none. Raises `StoreDamaged`."""
        return self._value(_FEED)

    def with_format(self) -> Own:
        """The store has the format of this version."""
        return self._own(_FORMAT, _VERSION.pack(FORMAT_VERSION))

    def with_commit(self, number: int, epoch: int) -> Own:
        """This is the last commit."""
        return self._own(_COMMIT, _NUMBER_AND_EPOCH.pack(number, epoch))

    def with_loading(self, number: int | None) -> Own:
        """The state of that commit is being loaded; None: no longer."""
        return self._own(_LOADING, None if number is None else b"%d" % number)

    def with_feed(self, state: bytes | None) -> Own:
        """This is the state of the feed."""
        return self._own(_FEED, state)

    def _own(self, key: bytes, value: bytes | None) -> Own:
        return self._handle, key, None if value is None else frame(_SEED, key, value)

    def _value(self, key: bytes) -> bytes | None:
        try:
            framed = cast("bytes | None", self._family.get(key))
        except Exception as error:
            raise damage(self._directory, str(error)) from error
        if framed is None:
            return None
        if not fits(_SEED, key, framed):
            raise damage(self._directory, f"of its {key.decode()}, {BAD_CHECKSUM}")
        return framed[CRC.size :]
