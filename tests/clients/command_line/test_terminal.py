"""Client commands on a terminal of their own: prompts for passwords, progress, control keys."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ganglion.clients.command_line.failures import EXIT_INTERRUPTED, EXIT_REFUSED
from tests.support import DEADLINE_S, Daemon, start_daemon

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "ganglion"]
ON_A_TERMINAL = (
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) % 256)"
)
"""A program that gives another one a controlling terminal, and its own input and output to that."""

RULES = '[[rules]]\neffect = "allow"\ntopics = "#"\n'


class Terminal:
    """What is typed on a terminal, and what is to be seen there."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.seen = b""

    def type(self, text: bytes) -> None:
        """Press these keys."""
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def wait_for(self, text: bytes) -> None:
        """Look at the screen until this is there."""
        assert self._process.stdout is not None
        screen = self._process.stdout.fileno()
        while text not in self.seen:
            assert select.select([screen], [], [], DEADLINE_S)[0], self.seen
            data = os.read(screen, 4096)
            assert data, self.seen
            self.seen += data

    def end(self) -> int:
        """Look on until the command has ended: its exit code."""
        rest, _ = self._process.communicate(timeout=30)
        self.seen += rest
        return self._process.returncode


@contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    """Run a command on a terminal."""
    command = [sys.executable, "-c", ON_A_TERMINAL, *COMMAND, *arguments]
    variables = {key: each for key, each in os.environ.items() if not key.startswith("GANGLION_")}
    with subprocess.Popen(
        command,
        env={**variables, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield Terminal(process)
        finally:
            process.kill()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A node that knows ada, whose password was typed twice on a terminal."""
    data = str(tmp_path / "data")
    with terminal("passwd", "add", "ada", "--data", data) as screen:
        screen.wait_for(b"Password for ada: ")
        screen.type(b"sesame\n")
        screen.wait_for(b"Repeat for confirmation: ")
        screen.type(b"sesame\n")
        assert screen.end() == 0
    assert b"sesame" not in screen.seen
    with start_daemon("--native", "127.0.0.1:0", "--data", data, config=RULES) as process:
        yield process


def url_of(daemon: Daemon) -> str:
    """Where the daemon speaks the native protocol."""
    return f"ganglion://127.0.0.1:{daemon.ports['native']}"


def test_a_password_is_asked_for(daemon: Daemon) -> None:
    """It is not shown. A right one lets in, by proof; a wrong one gives 77."""
    command = ["pub", "--url", url_of(daemon), "--user", "ada", "t", "x"]
    for password, code in ((b"sesame", 0), (b"semolina", EXIT_REFUSED)):
        with terminal(*command) as screen:
            screen.wait_for(b"Password for ada: ")
            screen.type(password + b"\n")
            assert screen.end() == code
        assert password not in screen.seen
    assert b"the user name or password is wrong" in screen.seen


def test_a_prompt_can_be_left(daemon: Daemon) -> None:
    """Ctrl-C at the prompt gives 130, and no traceback."""
    with terminal("pub", "--url", url_of(daemon), "--user", "ada", "t", "x") as screen:
        screen.wait_for(b"Password for ada: ")
        screen.type(b"\x03")
        assert screen.end() == EXIT_INTERRUPTED
    assert b"Traceback" not in screen.seen


def test_progress_is_shown_and_cleared(daemon: Daemon) -> None:
    """While much is sent a line says how far it is; what is left is the result alone."""
    command = ["pub", "t", "x", "--url", url_of(daemon), "--user", "ada", "-n", "40"]
    with terminal(*command, "--rate", "25", GANGLION_PASSWORD="sesame") as screen:
        screen.wait_for(b" of 40, ")
        assert screen.end() == 0
    *shown, cleared, result = screen.seen.split(b"\r\x1b[K")
    assert all(re.fullmatch(rb"(sent \d+ of 40, \d+/s)?", each) for each in [*shown, cleared])
    assert result == b"sent 40 messages; nobody gets it\r\n"


def test_what_is_sent_can_be_stopped(daemon: Daemon) -> None:
    """Ctrl-C in the middle of much gives 130, and the line of progress is gone."""
    command = ["pub", "t", "x", "--url", url_of(daemon), "--user", "ada", "-n", "100000"]
    with terminal(*command, "--rate", "20", GANGLION_PASSWORD="sesame") as screen:
        screen.wait_for(b" of 100000, ")
        screen.type(b"\x03")
        assert screen.end() == EXIT_INTERRUPTED
    assert b"Traceback" not in screen.seen
    assert screen.seen.rstrip(b"\r\n^C").endswith(b"\r\x1b[K")


def test_a_context_keeps_a_password_that_was_typed(daemon: Daemon, tmp_path: Path) -> None:
    """It is asked for once; left empty it is asked for each time."""
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    add = ["--url", url_of(daemon), "--user", "ada"]
    for name, typed in (("kept", b"sesame\n"), ("asked", b"\n")):
        with terminal("context", "add", name, *add, **home) as screen:
            screen.wait_for(b"(empty: ask each time): ")
            screen.type(typed)
            assert screen.end() == 0
        assert b"sesame" not in screen.seen
    with terminal("pub", "t", "x", "--context", "kept", **home) as screen:
        assert screen.end() == 0
    assert b"Password" not in screen.seen
    with terminal("pub", "t", "x", "--context", "asked", **home) as screen:
        screen.wait_for(b"Password for ada: ")
        screen.type(b"sesame\n")
        assert screen.end() == 0
