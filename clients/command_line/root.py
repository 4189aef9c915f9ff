"""The command ``ganglion``: which commands there are, and in which module each of them is.

Of third-party packages it imports click alone. A command is imported when it runs or shows its own
help, so that none pays for another; what ``ganglion --help`` says of it stands in the table here.
The commands of the node are known by name only: this package never imports the broker, and where a
client alone is installed they say what is missing.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from ganglion import BrokerNotInstalled, __version__
from ganglion.clients.command_line.failures import (
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    EXIT_UNAVAILABLE,
    Failure,
)

__all__ = ["cli", "main", "version"]

_HERE: Final = "ganglion.clients.command_line"
_NODE: Final = "ganglion.broker.daemon.cli"

_COMMANDS: Final = {
    "acl": (_NODE, "Look at who may do what."),
    "check": (_NODE, "Validate a configuration and say where each value comes from."),
    "context": (
        f"{_HERE}.context_commands",
        "Name nodes, and choose the one that commands talk to.",
    ),
    "health": (
        _NODE,
        "Exit with 0 when a broker answers, and with 1 when it does not (for container checks).",
    ),
    "limits": (
        _NODE,
        "Show every limit: its value, where the value comes from, and why the limit exists.",
    ),
    "passwd": (_NODE, "Add, change, delete and list users."),
    "pub": (f"{_HERE}.messaging", "Publish PAYLOAD to TOPIC."),
    "queue": (
        f"{_HERE}.queues",
        "Make queues, look at them, send to them and consume from them.",
    ),
    "request": (
        f"{_HERE}.requests",
        "Send PAYLOAD as a request to who serves TOPIC, and print the reply.",
    ),
    "serve": (_NODE, "Run the broker until it is told to stop."),
    "serve-reply": (
        f"{_HERE}.requests",
        "Answer requests for TOPIC (a topic or a filter) with PAYLOAD, or with a command's output.",
    ),
    "store": (_NODE, "Look at, check, copy and compact the store of a node."),
    "stream": (
        f"{_HERE}.streams",
        "Make streams, look at them, append to them, read and follow them.",
    ),
    "sub": (f"{_HERE}.messaging", "Subscribe to topic filters and print what arrives."),
    "token": (
        _NODE,
        "Print a token that lets user NAME in, in place of the password, for a time.",
    ),
    "version": (f"{_HERE}.root", "Print the version."),
}
"""Where each command is, in an attribute of its name, and the first sentence of its help."""


def main() -> NoReturn:
    """Run the command line of this process and end the process with its exit code."""
    _open_what_is_closed()
    try:
        sys.exit(cli.main(prog_name="ganglion", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)


def _open_what_is_closed() -> None:
    """Give the process the standard files that it was started without (``>&-``).

    Else the next file or socket would take their place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, stream)


class _Commands(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None when there is none."""
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command = getattr(import_module(module), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what there is from the table, without importing any of it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named.

        Output that nobody reads any more ends it without a word, as it ends other filters. Raises
        `Failure` when it is one of the node's and a package of the node is not installed.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Python flushes standard output once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(EXIT_PIPE) from None
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            if name is None or _COMMANDS[name][0] != _NODE:
                raise
            raise Failure(str(BrokerNotInstalled(error.name)), EXIT_UNAVAILABLE) from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="ganglion %(version)s")
def cli() -> None:
    """Ganglion: a lightweight message broker and event mesh."""


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"ganglion {__version__}")
