"""SIGTERM and SIGINT for all workers of a program, of which one at a time listens.

Event loops have one handler for each signal: who asks for it last has it alone, and who leaves
takes it from everybody. So the workers of a loop stand in a line. The first one listens and tells
all of them; when it ends, the next one listens.
"""

import signal
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import RunVar

__all__ = ["SIGNALS", "heed_signals"]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What tells a worker to stop."""


class _Line:
    """The workers of a loop that heed signals."""

    def __init__(self) -> None:
        self.first = anyio.Lock()
        """Held by the one that listens."""
        self.heeds: list[Callable[[signal.Signals], None]] = []


_line: Final = RunVar[_Line]("ganglion_signals")


async def heed_signals(
    heed: Callable[[signal.Signals], None], *, task_status: TaskStatus[None]
) -> None:
    """Call this with each signal, until cancelled. For the main thread only.

    For ``tasks.start`` it has started when no signal is missed any more.
    """
    line = _line.get(None)
    if line is None:
        line = _Line()
        _line.set(line)
    line.heeds.append(heed)
    try:
        is_heard = line.first.locked()
        if is_heard:
            task_status.started()
        async with line.first:
            with anyio.open_signal_receiver(*SIGNALS) as signals:
                if not is_heard:
                    task_status.started()
                async for each in signals:
                    for one in list(line.heeds):
                        one(each)
    finally:
        line.heeds.remove(heed)
