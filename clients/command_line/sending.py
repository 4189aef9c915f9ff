"""Many messages over one connection: a window of unanswered ones, a rate, progress."""

import time
from collections.abc import Callable, Iterator

from ganglion.clients.command_line.connection import BlockingClient
from ganglion.clients.command_line.rendering import Progress
from ganglion.clients.conversation import Answer

__all__ = ["repeat", "send_all"]

_WINDOW = 1024  # unanswered at a time: enough that commits carry many, small beside their payloads


def send_all(
    client: BlockingClient,
    payloads: Iterator[bytes],
    send: Callable[[bytes], object],
    on_answer: Callable[[Answer], None],
    *,
    rate_per_s: float | None,
    total: int | None,
) -> int:
    """Send every payload and wait for all answers; say how many there were.

    ``send`` sends one. ``rate_per_s`` bounds how many of them are sent in a second, ``total`` is
    how many there will be, if that is known.
    """
    progress = Progress("sent", total)
    begun_s = time.monotonic()
    count = 0
    try:
        for payload in payloads:
            if rate_per_s:
                due_s = begun_s + count / rate_per_s
                while time.monotonic() < due_s:
                    client.attend(due_s)
            send(payload)
            count += 1
            for answer in client.answers(_WINDOW):
                on_answer(answer)
            progress.advance(count)
        for answer in client.answers():
            on_answer(answer)
    finally:
        progress.end()
    return count


def repeat(payloads: Iterator[bytes], count: int) -> Iterator[bytes]:
    """All payloads, and again all of them, ``count`` times."""
    if count == 1:
        yield from payloads
        return
    held = list(payloads)
    for _ in range(count):
        yield from held
