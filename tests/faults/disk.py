"""A disk that loses its power: what is left of a directory, after any moment of a recorded run.

`Recording` has a process run with ``recording.c`` in front of the C library and reads what it did
to the files below a directory. `Disk` replays that up to some moment and knows what a file system
has promised by then: contents that were synced, and names whose directory was synced. Of the rest,
`Disk.lose_power` keeps what a die says, as disks do:

* of the names: those that were changed first, as a journal would, from none to all;
* of a file's contents: none of the writes since its last sync, all, the first ones with the last of
  them torn, or any of the pages that they touched.

`PowerLoss` puts that between the lives of a process: what it left is replaced by what a power loss
at its end could leave.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

__all__ = ["Disk", "Operation", "PowerLoss", "read_recording", "recorder"]

_HEADER = Struct("<c3xiQII")  # what, descriptor, number, size of the first and the second part
_PAGE = 4096
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that changed something, or made it durable."""

    what: str
    """open, close, write, sync, truncate, rename, link, unlink, mkdir: their first letters."""
    descriptor: int
    number: int
    """Of open the flags, of write the offset, of truncate the size."""
    first: bytes
    """A path, or what was written."""
    second: bytes
    """Of rename and link the new path."""


def recorder(directory: Path) -> Path:
    """The library that records, built in this directory."""
    library = directory / "recording.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "these tests need a C compiler"
    source = Path(__file__).with_name("recording.c")
    arguments = [compiler, "-O1", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source)]
    subprocess.run(arguments, check=True)
    return library


def read_recording(path: Path) -> Iterator[Operation]:
    """The operations of a recording, in order."""
    data = memoryview(path.read_bytes())
    position = 0
    while position + _HEADER.size <= len(data):
        what, descriptor, number, first, second = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        end = position + first
        yield Operation(
            what.decode(),
            descriptor,
            number,
            bytes(data[position:end]),
            bytes(data[end : end + second]),
        )
        position = end + second


@dataclass(slots=True)
class _File:
    synced: bytes = b""
    """What the disk has for certain."""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list[tuple[int, bytes | None]])
    """What came since: offset and data; None: cut to that size."""

    def current(self) -> bytes:
        return _applied(self.synced, self.pending)


class Disk:
    """The files below a directory, as they are for certain and as they are for now."""

    def __init__(self, root: Path) -> None:
        """What is there now is on the disk for certain."""
        self._root = os.fsencode(root)
        self._names: dict[bytes, _File | None] = {self._root: None}  # None: a directory
        for path in sorted(root.rglob("*")):
            is_directory = path.is_dir()
            self._names[os.fsencode(path)] = None if is_directory else _File(path.read_bytes())
        self._synced_names = dict(self._names)
        self._pending_names: list[tuple[bytes, bytes, _File | None, bool]] = []
        """Directory, name, what it is, and whether it is there (or gone) from then on."""
        self._descriptors: dict[int, tuple[bytes, _File | None]] = {}

    def contents(self, path: Path) -> bytes:
        """What is in a file for now; nothing if there is none."""
        file = self._names.get(os.fsencode(path))
        return b"" if file is None else file.current()

    def do(self, operation: Operation) -> None:
        """Go on by one operation."""
        first, second = operation.first, operation.second
        match operation.what:
            case "o":
                self._open(operation.descriptor, first, operation.number)
            case "c":
                self._descriptors.pop(operation.descriptor, None)
            case "w":
                self._change(operation.descriptor, (operation.number, first))
            case "t":
                self._change(operation.descriptor, (operation.number, None))
            case "s":
                self._sync(*self._descriptors[operation.descriptor])
            case "m":
                self._name(first, None, is_there=True)
            case "r":
                file = self._names[first]
                assert file is not None, "no directory is renamed here"
                self._name(first, file, is_there=False)
                self._name(second, file, is_there=True)
            case "l":
                self._name(second, self._names[first], is_there=True)
            case "u":
                self._name(first, self._names[first], is_there=False)
            case what:
                raise AssertionError(f"unknown operation {what}")

    def _open(self, descriptor: int, path: bytes, flags: int) -> None:
        if path not in self._names:
            assert flags & os.O_CREAT, path
            self._name(path, _File(), is_there=True)
        file = self._names[path]
        self._descriptors[descriptor] = path, file
        if flags & os.O_TRUNC and file is not None:
            file.pending.append((0, None))

    def _change(self, descriptor: int, change: tuple[int, bytes | None]) -> None:
        file = self._descriptors[descriptor][1]
        assert file is not None
        file.pending.append(change)

    def _name(self, path: bytes, file: _File | None, *, is_there: bool) -> None:
        if is_there:
            self._names[path] = file
        else:
            del self._names[path]
        self._pending_names.append((path.rpartition(b"/")[0], path, file, is_there))

    def _sync(self, path: bytes, file: _File | None) -> None:
        if file is not None:
            file.synced = file.current()
            file.pending.clear()
            return
        left: list[tuple[bytes, bytes, _File | None, bool]] = []
        for change in self._pending_names:
            if change[0] == path:
                _rename(self._synced_names, change)
            else:
                left.append(change)
        self._pending_names = left

    def lose_power(self, chance: random.Random, target: Path) -> str:
        """Write what is left to `target`, which is made; what the die said, for the report."""
        names = dict(self._synced_names)
        pending = self._pending_names
        kept = chance.choice((0, len(pending), chance.randint(0, len(pending))))
        for change in pending[:kept]:
            _rename(names, change)
        said = [f"{kept} of {len(pending)} names"]
        target.mkdir()
        for path in sorted(names):
            file = names[path]
            place = target / os.fsdecode(os.path.relpath(path, self._root))
            if file is None:
                place.mkdir(exist_ok=True)
                continue
            if not place.parent.is_dir():
                continue  # the name of its directory was lost
            mode = chance.choice(("none", "all", "torn", "torn", "pages", "sectors"))
            if file.pending:
                said.append(f"{place.name}: {mode}")
            place.write_bytes(_survivors(file, mode, chance))
        return ", ".join(said)


class PowerLoss:
    """A directory that loses its power at the end of each life of the process that works there."""

    def __init__(self, library: Path, directory: Path, chance: random.Random) -> None:
        """`library` is the `recorder`; beside the directory there is to be nothing else."""
        self._directory = directory
        self._recording = directory.with_name(f"{directory.name}.recording")
        self._chance = chance
        self._disk = Disk(directory)
        self.environment = {
            "LD_PRELOAD": str(library),
            "RECORD_BELOW": str(directory),
            "RECORD_TO": str(self._recording),
        }
        """What to run the process with."""

    def begin(self) -> None:
        """A life begins: what is there is on the disk for certain."""
        self._recording.unlink(missing_ok=True)
        self._disk = Disk(self._directory)

    def lose(self) -> str:
        """The process was killed: leave what the disk has; what that is, for the report."""
        for operation in read_recording(self._recording):
            self._disk.do(operation)
        left = self._directory.with_name(f"{self._directory.name}.left")
        said = self._disk.lose_power(self._chance, left)
        shutil.rmtree(self._directory)
        left.rename(self._directory)
        return said


def _rename(
    names: dict[bytes, _File | None], change: tuple[bytes, bytes, _File | None, bool]
) -> None:
    _, path, file, is_there = change
    if is_there:
        names[path] = file
    else:
        names.pop(path, None)


def _survivors(file: _File, mode: str, chance: random.Random) -> bytes:
    """What a power loss leaves in the file."""
    pending = file.pending
    match mode:
        case "none":
            return file.synced
        case "all":
            return file.current()
        case "torn":
            if not pending:
                return file.synced
            count = chance.randrange(len(pending))
            offset, data = pending[count]
            torn = pending[:count]
            if data is not None:
                torn.append((offset, data[: chance.randrange(len(data) + 1)]))
            return _applied(file.synced, torn)
        case _:
            unit = _PAGE if mode == "pages" else _SECTOR
            old, new = file.synced, file.current()
            survived = bytearray(new)
            for start in range(0, len(new), unit):
                before = old[start : start + unit]
                if new[start : start + unit] != before and chance.random() < 0.5:
                    survived[start : start + unit] = before.ljust(unit, b"\0")
            return bytes(survived[: len(new)])


def _applied(contents: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    result = bytearray(contents)
    for offset, data in changes:
        if data is None:
            del result[offset:]
            result.extend(bytes(offset - len(result)))
        else:
            result.extend(bytes(max(0, offset - len(result))))
            result[offset : offset + len(data)] = data
    return bytes(result)
