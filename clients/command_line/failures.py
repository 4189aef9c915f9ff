"""How commands fail: in one line on standard error, with an exit code that scripts can rely on.

Exit codes, besides 0 and 2 (the command line cannot be understood), follow ``sysexits.h`` where it
has a word for the case:

=====  ==========================================================================================
1      the answer is no (``check``, ``acl explain``, ``health``, ``store``; there is no such queue,
       stream or context; a command of ``--exec`` failed), or any other error
69     a node or an address is not available: nobody listens, the port is taken, nobody answers
       requests for the topic, or a package of the node is not installed
70     a fault of our own
74     a file, or the output, cannot be read or written
75     there was no answer, not enough messages or no room in time: it may work later
77     the node refused
78     the configuration, or the file of contexts, is not accepted
130    interrupted by Ctrl-C
141    whoever read the output went away
=====  ==========================================================================================
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from ganglion import GanglionError

__all__ = [
    "EXIT_CONFIGURATION",
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_IO",
    "EXIT_NO",
    "EXIT_PIPE",
    "EXIT_REFUSED",
    "EXIT_TIMEOUT",
    "EXIT_UNAVAILABLE",
    "EXIT_USAGE",
    "Failure",
    "exit_code_of",
    "failures",
]

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_INTERNAL = 70
EXIT_IO = 74
EXIT_TIMEOUT = 75
EXIT_REFUSED = 77
EXIT_CONFIGURATION = 78
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

_EXIT_BY_CODE = {
    "not_found": EXIT_NO,
    "wrong_version": EXIT_NO,
    "responder_failed": EXIT_NO,
    "no_responders": EXIT_UNAVAILABLE,
    "responder_gone": EXIT_UNAVAILABLE,
    "taken_over": EXIT_UNAVAILABLE,
    "keep_alive": EXIT_UNAVAILABLE,
    "draining": EXIT_UNAVAILABLE,
    "timed_out": EXIT_TIMEOUT,
    "responders_busy": EXIT_TIMEOUT,
    "full": EXIT_TIMEOUT,
    "busy": EXIT_TIMEOUT,
}
"""What the codes of `docs/protocol.md` section 5 mean to a script; the others are refusals."""


class Failure(click.ClickException):
    """An error that ends the command: one or more lines on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # click reads it from the instance

    def show(self, file: Any = None) -> None:
        """Print the message after the program's name."""
        click.echo(f"ganglion: {self.message}", file=file, err=file is None)


@contextmanager
def failures() -> Generator[None, None, None]:
    """Turn what a client command meets into a `Failure` with its exit code."""
    try:
        yield
    except GanglionError as error:
        raise Failure(str(error), exit_code_of(error)) from error
    except BrokenPipeError:
        raise  # nobody reads the output any more: see `root`
    except OSError as error:  # what the network does is among those above
        where = error.filename or "the input or output"
        raise Failure(f"{where}: {error.strerror or error}", EXIT_IO) from error


def exit_code_of(error: GanglionError) -> int:
    """What this error means to a script."""
    from ganglion.clients.command_line.contexts import ContextError
    from ganglion.clients.errors import BadOption, ConnectionLost, Refused, TimedOut, Unreachable

    match error:
        case Refused():
            return _EXIT_BY_CODE.get(error.code, EXIT_REFUSED)
        case TimedOut():
            return EXIT_TIMEOUT
        case Unreachable() | ConnectionLost():
            return EXIT_UNAVAILABLE
        case BadOption():
            return EXIT_USAGE
        case ContextError():
            return EXIT_CONFIGURATION
        case _:
            return EXIT_NO
