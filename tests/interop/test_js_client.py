"""`ganglion.js` against a node: in Node 22, each case of ``node/client_cases.mjs`` by itself."""

import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.support import DEADLINE_S, Daemon, free_port, start_daemon

NODE = Path(__file__).resolve().parent / "node"
PROGRAM = NODE / "node_modules" / ".bin" / "node"
CASES = (
    "matching",
    "messages",
    "callbacks",
    "retained",
    "flow",
    "requests",
    "queues",
    "canaries",
    "streams",
    "takenOver",
)


def run_case(name: str, url: str, on_line: Callable[[str], None] | None = None) -> None:
    """Run a case to its end; `on_line` does what a line that it prints asks for."""
    with subprocess.Popen(
        [PROGRAM, "client_cases.mjs", name, url],
        cwd=NODE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        printed: list[str] = []
        for line in process.stdout:
            printed.append(line.strip())
            if printed[-1] == "passed":
                break
            assert on_line is not None, printed
            on_line(printed[-1])
            process.stdin.write("\n")
            process.stdin.flush()
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, errors
        assert printed[-1:] == ["passed"], errors


@contextmanager
def web_node(data: Path, port: int = 0, config: str | None = None) -> Generator[Daemon]:
    """A node with a web listener."""
    flags = ("--web", f"127.0.0.1:{port}", "--data", str(data))
    with start_daemon(*flags, config=config) as daemon:
        yield daemon


def address(daemon: Daemon) -> str:
    """Where the native protocol is, over WebSocket."""
    return f"ws://127.0.0.1:{daemon.ports['web']}/ws"


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    """The client does what its case says."""
    with web_node(tmp_path) as daemon:
        run_case(name, address(daemon))


def test_refused(tmp_path: Path) -> None:
    """A wrong password, nobody there and a wrong address are said as what they are."""
    users = tmp_path / "users"
    users.write_text(f"alice:{PasswordHasher(1, 8, 1).hash('right')}\n")
    users.chmod(0o600)
    with web_node(tmp_path / "data", config=f'[access]\nusers = "{users}"\n') as daemon:
        run_case("refused", address(daemon))


def test_fails_at_once(tmp_path: Path) -> None:
    """Who does not want to connect again is told at once."""
    with web_node(tmp_path) as daemon:
        run_case("failsAtOnce", address(daemon), lambda _: daemon.kill())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reconnects", "exactlyOnce"])
def test_goes_on_after_a_kill(name: str, tmp_path: Path) -> None:
    """After SIGKILL and a restart all goes on where it was, and nothing confirmed is doubled."""
    port = free_port()
    node = web_node(tmp_path, port)
    daemon = node.__enter__()

    def on_line(line: str) -> None:
        nonlocal node, daemon
        if "kill" in line:
            daemon.kill()
            node.__exit__(None, None, None)
        if "start" in line:
            node = web_node(tmp_path, port)
            daemon = node.__enter__()

    try:
        run_case(name, f"ws://127.0.0.1:{port}/ws", on_line)
    finally:
        node.__exit__(None, None, None)
