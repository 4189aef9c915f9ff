"""What the service manager is told, over a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganglion.broker.daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as the service manager has one; its name is its path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(5)
        yield channel


def received(manager: socket.socket) -> dict[str, str]:
    """The next datagram as names and values."""
    lines = manager.recv(4096).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_the_life_of_a_service_is_told(manager: socket.socket) -> None:
    """Ready, reloading with its time, and stopping arrive in the manager's own words."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 listeners")
    assert received(manager) == {
        "READY": "1",
        "STATUS": "2 listeners",
        "MAINPID": str(os.getpid()),
    }
    notifier.reloading(12.5)
    assert received(manager) == {"RELOADING": "1", "MONOTONIC_USEC": "12500000"}
    notifier.stopping()
    assert received(manager)["STOPPING"] == "1"


def test_an_abstract_socket_is_reached() -> None:
    """A name that begins with @ is one without a file."""
    name = f"ganglion-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("fine")
        assert received(manager)["READY"] == "1"


def test_without_a_manager_nothing_is_sent(manager: socket.socket) -> None:
    """Started by hand, the node sends nothing; a manager that is gone stops nothing."""
    Notifier({}).ready("fine")
    Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"}).ready("fine")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
