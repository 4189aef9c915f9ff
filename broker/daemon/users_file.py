"""Reading and changing the file with the users.

A change is atomic: the new content is written beside the file with mode 0600, synced, and renamed
over it, so that a broker that reloads at any moment reads the old file or the new one, never a
half of one. Changes by several programs wait for each other (an advisory lock on the directory).
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ganglion import GanglionError
from ganglion.broker.core.authentication import Users, check_user_name

__all__ = [
    "UsersFileError",
    "add_user",
    "change_password",
    "delete_user",
    "read_users",
    "user_names",
]

_SIZE_MAX_BYTES = 256 * 1024 * 1024  # half a million users; more is a wrong file


class UsersFileError(GanglionError):
    """The file cannot be read or written, or a user is there already, or is not there."""


def read_users(path: Path) -> Users:
    """The users in a file. Raises `UsersFileError` or `InvalidUsersFile`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_SIZE_MAX_BYTES + 1)
    except OSError as error:
        raise UsersFileError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _SIZE_MAX_BYTES:
        raise UsersFileError(f"{path} is too large to be a file of users")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsersFileError(f"{path} is not UTF-8 (byte {error.start})") from None
    return Users.parse(text, str(path))


def user_names(path: Path) -> list[str]:
    """The names of all users, in the order of the file."""
    return list(read_users(path))


def add_user(path: Path, name: str, password: Callable[[], str]) -> None:
    """Add a user; the file and its directory are made when they are not there.

    ``password`` is asked only when the name can be added. Raises `UsersFileError` when there is
    such a user already, `InvalidUserName` and `InvalidPassword`.
    """
    check_user_name(name)
    if path.exists() and name in read_users(path):
        raise UsersFileError(f"there is a user {name} already (ganglion passwd change {name})")
    secret = password()
    _make_directory(path.parent)
    with _locked(path.parent):
        users = read_users(path) if path.exists() else Users()
        if name in users:
            raise UsersFileError(f"there is a user {name} already")
        users.add(name, secret)
        _replace(path, users.render())


def change_password(path: Path, name: str, password: Callable[[], str]) -> None:
    """Give a user another password. Raises `UsersFileError` when there is no such user."""
    _require(read_users(path), path, name)
    secret = password()
    with _locked(path.parent):
        users = read_users(path)
        _require(users, path, name)
        users.add(name, secret)
        _replace(path, users.render())


def delete_user(path: Path, name: str) -> None:
    """Delete a user. Raises `UsersFileError` when there is no such user.

    The file stays when its last user is deleted: nobody may connect then, rather than anybody.
    """
    with _locked(path.parent):
        users = read_users(path)
        _require(users, path, name)
        users.remove(name)
        _replace(path, users.render())


def _require(users: Users, path: Path, name: str) -> None:
    if name not in users:
        raise UsersFileError(f"there is no user {name} in {path}")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsersFileError(f"cannot make {directory}: {error.strerror}") from None


@contextmanager
def _locked(directory: Path) -> Generator[None, None, None]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsersFileError(f"cannot open {directory}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    path = path.resolve()  # through a symbolic link: the link stays, what it names is replaced
    temporary: str | None = None
    try:
        # mkstemp makes the file with mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            _keep_owner(path, descriptor)
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
        temporary = None
        _sync_directory(path.parent)
    except OSError as error:
        raise UsersFileError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                Path(temporary).unlink()


def _keep_owner(path: Path, descriptor: int) -> None:
    """Let root change the file of a broker that runs as another user, who must still read it."""
    if os.geteuid() == 0:
        status = (path if path.exists() else path.parent).stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
