"""A command of the user for each message: ``--exec``.

The payload is its standard input. ``MESSAGE_TOPIC``, ``MESSAGE_KEY`` and the like tell the rest.
While it runs, the connection is looked after.
"""

import os
import subprocess
import time
from collections.abc import Callable

from ganglion.clients.command_line.rendering import Received

__all__ = ["run_command"]

_PATIENCE_S = 0.25  # between two looks at the connection: a lease may be as short as a second
_SHELL = "/bin/sh"


def run_command(
    command: str, message: Received, attend: Callable[[float], None], *, capture: bool
) -> tuple[int, bytes]:
    """Run a command of the shell; its exit code, and its output where that is to be captured."""
    variables = {"MESSAGE_TOPIC": message.topic}
    for name, value in {**message.about, **message.properties}.items():
        if isinstance(value, str | int | float):
            variables[f"MESSAGE_{name.upper()}"] = str(value)
    environment = os.environ | {
        name: value for name, value in variables.items() if "\0" not in value
    }
    with subprocess.Popen(  # noqa: S603 - it is the user's own command, from the user's own hand
        [_SHELL, "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if capture else None,
        env=environment,
    ) as process:
        given: bytes | None = message.payload
        while True:
            try:
                output, _ = process.communicate(given, timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                given = None  # it has it, or gets the rest of it
                attend(time.monotonic())
            else:
                return process.returncode, output or b""
