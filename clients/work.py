"""What becomes of the items of a worker, by where they came from.

A `Work` is a handler at its source. Each kind of source has a function that has the handler deal
with one item, and settles or answers it by what came of that: `on_job`, `on_record`, `on_request`
and `on_message`. They raise nothing but cancellation, and then the item is given back.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import anyio

from ganglion.clients.channels import Channel
from ganglion.clients.errors import ClientError, NotDecodable
from ganglion.clients.handlers import Handler, Retry
from ganglion.clients.messages import Message, MessageOptions
from ganglion.clients.queues import Job
from ganglion.clients.requests import Request
from ganglion.clients.streams import GroupFollower, GroupRecord

if TYPE_CHECKING:
    from ganglion.clients.mesh import Mesh

__all__ = ["HandlerStatistics", "Work", "on_job", "on_message", "on_record", "on_request"]

_log = logging.getLogger("ganglion.worker")

_REASON_MAX: Final = 1000
"""Characters of an error that go along with what is set aside: enough to know it by."""

_T = TypeVar("_T", bound=Message)


@dataclass(frozen=True, slots=True)
class HandlerStatistics:
    """What a handler has done so far."""

    handler: str
    source: str
    """Such as ``queue billing``."""
    running: int
    """Calls that run now, pauses before another try among them."""
    done: int
    """Items that are dealt with."""
    retried: int
    """Calls that failed and that another try follows."""
    failed: int
    """Items that are given up: set aside, or answered with an error, or left out."""


class Work(Generic[_T]):
    """A handler at its source."""

    def __init__(
        self,
        handler: Handler,
        source: str,
        concurrency: int,
        open_: "Callable[[Mesh], Channel[_T]]",
        deal: "Callable[[Work[_T], _T], Awaitable[None]]",
    ) -> None:
        self.handler = handler
        self.source = source
        self.concurrency = concurrency
        self.open = open_
        """Makes the channel, which is to be entered."""
        self.deal = deal
        """Has the handler deal with an item."""
        self.running = self.done = self.retried = self.failed = 0

    def begin(self, mesh: "Mesh", channel: Channel[_T], stopping: anyio.Event) -> None:
        """The channel is open; ``stopping`` is set when nothing new is to be begun."""
        self.mesh = mesh
        self.channel = channel
        self.stopping = stopping
        self.turn = anyio.Lock(fast_acquire=True)
        """Held by the one task that waits for the next item."""
        self._threads = anyio.CapacityLimiter(self.concurrency)

    async def result(self, item: _T) -> Any:
        """What the handler makes of it. Raises what the handler raises, and `NotDecodable`."""
        return await self.handler.call(self.handler.arguments(item), self._threads)

    def statistics(self) -> HandlerStatistics:
        """What was done so far."""
        return HandlerStatistics(
            self.handler.name, self.source, self.running, self.done, self.retried, self.failed
        )

    def try_again(self, attempt: int, delay_s: float, error: Exception) -> None:
        """Say that another try follows."""
        self.retried += 1
        _log.warning(
            "%s: %s failed at try %d, again in %.3g s",
            self.source,
            self.handler.name,
            attempt,
            delay_s,
            exc_info=error,
        )

    def give_up(self, attempt: int, error: Exception) -> str:
        """Say that none follows; the reason in a line."""
        self.failed += 1
        reason = _reason(error)
        _log.error(
            "%s: %s failed at try %d, and there is no other: %s",
            self.source,
            self.handler.name,
            attempt,
            reason,
            # A payload that is wrong is no fault of the handler, and is nowhere in its code.
            exc_info=None if isinstance(error, NotDecodable) else error,
        )
        return reason


async def on_job(work: Work[Job], job: Job, *, retry: Retry) -> None:
    """Acknowledge what is done; give back what failed, and in the end reject it."""
    attempt = job.attempts + 1
    try:
        await work.result(job)
    except Exception as error:  # noqa: BLE001 - a handler may raise anything, and the worker lives
        if isinstance(error, NotDecodable) or not retry.allows(attempt, error):
            await job.reject(work.give_up(attempt, error))
        else:
            delay_s = retry.delay_s(attempt)
            work.try_again(attempt, delay_s, error)
            await job.nack(delay_s)
    except BaseException:
        await job.nack(0)
        raise
    else:
        work.done += 1
        await job.ack()


async def on_record(
    work: Work[GroupRecord], record: GroupRecord, *, retry: Retry, dead_letter: str | None
) -> None:
    """Try until it is done or set aside; only then the position of the group goes on."""
    attempt = 1
    try:
        while (error := await _failure(work, record)) is not None:
            if isinstance(error, NotDecodable) or not retry.allows(attempt, error):
                reason = work.give_up(attempt, error)
                if dead_letter is not None:
                    await _set_aside(work, record, dead_letter, reason, attempt)
                break
            delay_s = retry.delay_s(attempt)
            work.try_again(attempt, delay_s, error)
            attempt += 1
            with anyio.move_on_after(delay_s):
                await work.stopping.wait()
            if work.stopping.is_set():
                await record.nack(0)  # another member goes on with it
                return
        else:
            work.done += 1
    except ClientError as problem:
        _log.error("%s: a record cannot be set aside, and comes again: %s", work.source, problem)
        await record.nack(retry.delay_s(attempt))
    except BaseException:
        await record.nack(0)
        raise
    else:
        await record.ack()


async def _failure(work: Work[GroupRecord], record: GroupRecord) -> Exception | None:
    try:
        await work.result(record)
    except Exception as error:  # noqa: BLE001 - as with jobs
        return error
    return None


async def _set_aside(
    work: Work[GroupRecord], record: GroupRecord, queue: str, reason: str, attempts: int
) -> None:
    """Send it to a queue, with what a dead letter of a queue says of itself."""
    assert isinstance(work.channel, GroupFollower)
    headers = {
        **record.headers,
        "x-dead-letter-stream": work.channel.stream,
        "x-dead-letter-group": work.channel.group,
        "x-dead-letter-sequence": str(record.sequence),
        "x-dead-letter-topic": record.topic,
        "x-dead-letter-reason": reason,
        "x-dead-letter-count": str(attempts),
    }
    about: MessageOptions = {"headers": headers}
    if record.key is not None:
        about["key"] = record.key
    if record.content_type is not None:
        about["content_type"] = record.content_type
    await work.mesh.queue(queue).send(record.payload, **about)


async def on_request(work: Work[Request], request: Request) -> None:
    """Answer with what the handler returns, or with its error."""
    try:
        result = await work.result(request)
        if request.is_wanted:
            await request.reply(b"" if result is None else result)
    except NotDecodable as error:
        await request.fail(work.give_up(1, error), "not_decodable")
    except Exception as error:  # noqa: BLE001 - as with jobs
        await request.fail(work.give_up(1, error), "error")
    else:
        work.done += 1


async def on_message(work: Work[Message], message: Message) -> None:
    """Only count it: nobody sends it again."""
    try:
        await work.result(message)
    except Exception as error:  # noqa: BLE001 - as with jobs
        work.give_up(1, error)
    else:
        work.done += 1


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, NotDecodable) else f"{type(error).__name__}: {error}"
    return text[:_REASON_MAX]
