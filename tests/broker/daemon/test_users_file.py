"""Changing the users file: never half, never readable by others, never by accident."""

import os
import threading
from pathlib import Path

import pytest

from ganglion import GanglionError
from ganglion.broker.core.authentication import InvalidUserName
from ganglion.broker.daemon.users_file import (
    UsersFileError,
    add_user,
    change_password,
    delete_user,
    read_users,
    user_names,
)


@pytest.mark.slow
def test_users_are_added_changed_and_deleted(tmp_path: Path) -> None:
    """What is changed is in the file: new users can log in, deleted ones cannot."""
    path = tmp_path / "new" / "users"
    add_user(path, "ada", lambda: "first")
    add_user(path, "bob", lambda: "secret")
    assert user_names(path) == ["ada", "bob"]
    assert read_users(path).verify("ada", b"first")
    change_password(path, "ada", lambda: "second")
    assert not read_users(path).verify("ada", b"first")
    assert read_users(path).verify("ada", b"second")
    delete_user(path, "bob")
    assert user_names(path) == ["ada"]


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    """The file has mode 0600 and a directory made for it 0700, whatever the umask is."""
    path = tmp_path / "made" / "users"
    old = os.umask(0)
    try:
        add_user(path, "ada", lambda: "x")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    change_password(path, "ada", lambda: "y")
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_password_is_in_the_file(tmp_path: Path) -> None:
    """The file holds hashes only."""
    path = tmp_path / "users"
    add_user(path, "ada", lambda: "correct horse")
    assert b"correct horse" not in path.read_bytes()


def test_comments_survive(tmp_path: Path) -> None:
    """What people have written into the file stays in its place."""
    path = tmp_path / "users"
    add_user(path, "ada", lambda: "x")
    path.write_text(f"# the crew\n{path.read_text()}# the end\n")
    add_user(path, "bob", lambda: "y")
    text = path.read_text()
    assert text.startswith("# the crew\nada:")
    assert "# the end\n" in text


def test_deleting_the_last_user_keeps_the_file(tmp_path: Path) -> None:
    """A node whose last user was deleted must not become open to everybody: the file stays."""
    path = tmp_path / "users"
    add_user(path, "ada", lambda: "x")
    delete_user(path, "ada")
    assert path.is_file()
    assert user_names(path) == []


def test_mistakes_are_told_before_a_password_is_asked(tmp_path: Path) -> None:
    """Nobody types a password for a name that cannot be used; the file stays as it is."""

    def never() -> str:
        raise AssertionError("the password was asked for")

    path = tmp_path / "users"
    with pytest.raises(InvalidUserName):
        add_user(path, "a/b", never)
    assert not path.exists()
    add_user(path, "ada", lambda: "x")
    before = path.read_bytes()
    with pytest.raises(UsersFileError, match="ganglion passwd change ada"):
        add_user(path, "ada", never)
    with pytest.raises(UsersFileError, match="no user bob"):
        change_password(path, "bob", never)
    with pytest.raises(UsersFileError, match="no user bob"):
        delete_user(path, "bob")
    assert path.read_bytes() == before


def test_nothing_is_left_behind_when_a_change_fails(tmp_path: Path) -> None:
    """When the file cannot be replaced, the old one stays and no temporary one is left."""
    path = tmp_path / "users"
    path.mkdir()  # a directory cannot be replaced by a file, not even by root
    with pytest.raises(UsersFileError):
        add_user(path, "ada", lambda: "x")
    assert [each.name for each in tmp_path.iterdir()] == ["users"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    """Where the users file is a link, what it names is replaced, not the link."""
    (tmp_path / "real").mkdir()
    add_user(tmp_path / "real" / "users", "ada", lambda: "x")
    link = tmp_path / "users"
    link.symlink_to(tmp_path / "real" / "users")
    add_user(link, "bob", lambda: "y")
    assert link.is_symlink()
    assert user_names(tmp_path / "real" / "users") == ["ada", "bob"]


@pytest.mark.slow
def test_changes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Several programs that add users at once wait for each other: all their users are there."""
    path = tmp_path / "users"
    names = [f"user{number}" for number in range(6)]
    threads = [
        threading.Thread(target=add_user, args=(path, name, lambda: "secret")) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(user_names(path)) == names


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"ada\n", "users:1"), (b"\xff", "is not UTF-8 (byte 0)"), (None, "cannot read")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    """Whatever is wrong with the file, the error names it."""
    path = tmp_path / "users"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GanglionError) as caught:
        read_users(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
