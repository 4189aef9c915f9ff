"""Many messages over one connection: a window of unanswered ones, a rate, progress."""

import time
from collections.abc import Callable, Iterator
from itertools import islice

from ganglion import GanglionError
from ganglion.clients.command_line.connection import BlockingClient
from ganglion.clients.command_line.failures import Failure, exit_code_of
from ganglion.clients.command_line.rendering import Progress
from ganglion.clients.conversation import Answer
from ganglion.protocols.native.operations import BATCH_MAX

__all__ = ["batches_of", "repeat", "send_all"]

_WINDOW = 1024  # unanswered at a time: enough that commits carry many, small beside their payloads
_BATCH_WINDOW = 8  # the same for batches: what is in them may be as much as a frame holds
_BATCH_BYTES = 1024 * 1024  # of payloads in a batch: far below what a frame may have
_BATCHES_PER_S = 20.0  # with a rate: so often at least something is sent


def send_all(
    client: BlockingClient,
    batches: Iterator[list[bytes]],
    send: Callable[[list[bytes]], object],
    on_answer: Callable[[Answer], int],
    *,
    rate_per_s: float | None,
    total: int | None,
) -> int:
    """Send all messages and wait for all answers; say how many there were.

    ``send`` sends a batch. ``on_answer`` says how many messages an answer is for, or raises.
    ``rate_per_s`` bounds how many are sent in a second, ``total`` is how many there will be, if
    that is known. The first refusal ends it; where there were several messages the error says how
    many of them were taken all the same.
    """
    progress = Progress("sent", total)
    begun_s = time.monotonic()
    count = taken = 0
    try:
        for batch in batches:
            if rate_per_s:
                due_s = begun_s + count / rate_per_s
                while time.monotonic() < due_s:
                    client.attend(due_s)
            send(batch)
            count += len(batch)
            for answer in client.answers(_WINDOW if len(batch) == 1 else _BATCH_WINDOW):
                taken += on_answer(answer)
            progress.advance(count)
        for answer in client.answers():
            taken += on_answer(answer)
    except GanglionError as error:
        progress.end()
        if count <= 1:
            raise
        taken += _taken_behind(client, on_answer)
        text = f"{error}; {taken:,} of {count:,} sent messages were taken"
        raise Failure(text, exit_code_of(error)) from error
    finally:
        progress.end()
    return count


def _taken_behind(client: BlockingClient, on_answer: Callable[[Answer], int]) -> int:
    """How many were taken of those that were on their way when one was refused."""
    taken = 0
    answers = client.answers()
    while True:
        try:
            taken += on_answer(next(answers))
        except StopIteration:
            return taken
        except GanglionError:
            if not client.is_connected:
                return taken
            answers = client.answers()


def batches_of(groups: Iterator[list[bytes]], rate_per_s: float | None) -> Iterator[list[bytes]]:
    """What is there at once, in pieces that a frame holds, and that keep to a rate."""
    most = BATCH_MAX
    if rate_per_s is not None:
        most = max(1, min(most, int(rate_per_s / _BATCHES_PER_S)))
    for group in groups:
        rest = iter(group)
        while batch := _one_batch(rest, most):
            yield batch


def _one_batch(rest: Iterator[bytes], most: int) -> list[bytes]:
    batch: list[bytes] = []
    size = 0
    for payload in islice(rest, most):
        batch.append(payload)
        size += len(payload)
        if size >= _BATCH_BYTES:
            break
    return batch


def repeat(groups: Iterator[list[bytes]], count: int) -> Iterator[list[bytes]]:
    """All payloads one by one, and again all of them, ``count`` times."""
    if count == 1:
        for group in groups:
            yield from ([payload] for payload in group)
        return
    held = [payload for group in groups for payload in group]
    for _ in range(count):
        yield from ([payload] for payload in held)
