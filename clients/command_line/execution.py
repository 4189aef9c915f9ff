"""A command of the user for each message: ``--exec``.

The payload is its standard input. ``MESSAGE_TOPIC``, ``MESSAGE_KEY`` and the like tell the rest.
Each runs beside the connection, which is looked after meanwhile: a thread waits for each of them,
and wakes who waits for `Commands.fileno` when it has ended.
"""

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from ganglion.clients.command_line.rendering import Received

__all__ = ["Commands", "Ended"]

_SHELL = "/bin/sh"


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    key: int
    """What `Commands.start` was given to know it by."""
    code: int
    """Its exit code, 128 and more after a signal, as a shell has it."""
    output: bytes
    """What it printed, where that is captured."""


class Commands:
    """Runs a command for several messages at a time. Leaving it as a context stops what runs."""

    def __init__(self, command: str, most: int, *, capture: bool) -> None:
        """Run ``command``, at most ``most`` times at once; ``capture`` its output."""
        self._command = command
        self._most = most
        self._capture = capture
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._ended: deque[Ended] = deque()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop what runs, with all that it has started."""
        for process in list(self._running.values()):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for thread in self._threads:
            thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def __len__(self) -> int:
        """How many run, or have ended and were not asked for yet."""
        return len(self._running)

    def __contains__(self, key: int) -> bool:
        """Whether it is one of them."""
        return key in self._running

    @property
    def is_full(self) -> bool:
        """Whether as many run as may."""
        return len(self._running) >= self._most

    def fileno(self) -> int:
        """What becomes readable when one has ended."""
        return self._reading

    def start(self, key: int, message: Received) -> None:
        """Run the command for a message. Raises OSError when no process can be made."""
        variables = {"MESSAGE_TOPIC": message.topic}
        for name, value in {**message.about, **message.properties}.items():
            if isinstance(value, str | int | float):
                variables[f"MESSAGE_{name.upper()}"] = str(value)
        process = subprocess.Popen(  # noqa: S603 - it is the user's own command, from his hand
            [_SHELL, "-c", self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if self._capture else None,
            process_group=0,  # so that it can be stopped together with what it starts
            env=os.environ | {name: each for name, each in variables.items() if "\0" not in each},
        )
        self._running[key] = process
        self._threads = [each for each in self._threads if each.is_alive()]
        thread = threading.Thread(target=self._wait, args=(key, process, message.payload))
        self._threads.append(thread)
        thread.start()

    def ended(self) -> Iterator[Ended]:
        """Those that have ended since the last call."""
        try:
            os.read(self._reading, 4096)
        except BlockingIOError:
            return
        while self._ended:
            ended = self._ended.popleft()
            del self._running[ended.key]
            yield ended

    def _wait(self, key: int, process: "subprocess.Popen[bytes]", payload: bytes) -> None:
        with process:
            output, _ = process.communicate(payload)
        code = process.returncode
        self._ended.append(Ended(key, code if code >= 0 else 128 - code, output or b""))
        os.write(self._writing, b".")
