"""The command itself: what is in its table, what it imports, and a client without the node."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ganglion.clients.command_line import root
from ganglion.clients.command_line.failures import EXIT_UNAVAILABLE

WITHOUT_NODE = (
    "import sys\n"
    "for name in ('argon2', 'prometheus_client', 'rocksdict', 'structlog', 'trio'):\n"
    "    sys.modules[name] = None\n"
    "from ganglion.clients.command_line.root import main\n"
    "main()"
)
"""The command, run as if a client alone were installed."""


def run_without_node(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as if the packages of the node were not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_NODE, *arguments],
        input="a password\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(root._COMMANDS))
def test_the_table_says_what_the_commands_say(name: str) -> None:
    """Each command is where the table says, has its name, and begins its help with its summary."""
    command = root.cli.get_command(click.Context(root.cli), name)
    assert command is not None
    assert command.name == name
    assert command.help is not None
    assert " ".join(command.help.split("\n\n")[0].split()) == root._COMMANDS[name][1]


def test_help_names_every_command_and_imports_none() -> None:
    """`ganglion --help` has a line for each command, and pays for click alone."""
    code = (
        "import sys; from ganglion.clients.command_line.root import cli; "
        "cli(['--help'], standalone_mode=False); "
        "print(*[n for n in sys.modules if n.startswith('ganglion')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert set(root._COMMANDS) <= set(listed)
    client = "ganglion.clients"
    mine = ["", ".command_line", ".command_line.failures", ".command_line.root"]
    assert set(done.stderr.split()) == {"ganglion", *(f"{client}{each}" for each in mine)}


def test_an_unknown_command_is_a_usage_error() -> None:
    """A name that is not in the table gives 2, and is named."""
    done = CliRunner().invoke(root.cli, ["pubb"])
    assert done.exit_code == 2
    assert "pubb" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "module"),
    [("serve", "trio"), ("store info", "rocksdict"), ("passwd add ada", "argon2")],
)
def test_a_command_of_the_node_says_what_is_missing(
    arguments: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a client alone is installed one sentence names the package and what to do; code 69."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    done = run_without_node(*arguments.split())
    assert done.returncode == EXIT_UNAVAILABLE
    assert done.stderr == (
        f"ganglion: a node needs the package {module}, which is not installed: "
        "pip install 'ganglion[broker]'\n"
    )


def test_help_of_a_command_of_the_node_needs_no_package_of_it() -> None:
    """What a command of the node does can be read where a client alone is installed."""
    done = run_without_node("serve", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--native" in done.stdout


def test_what_a_client_command_misses_is_not_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged installation of the client is not explained by a missing node."""
    monkeypatch.setitem(sys.modules, "ganglion.clients.command_line.contexts", None)
    done = CliRunner().invoke(root.cli, ["context", "list"])
    assert isinstance(done.exception, ModuleNotFoundError)
