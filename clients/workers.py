"""Workers: small services of functions, one for each queue, stream, topic or kind of request.

    worker = ganglion.Worker(concurrency=16)

    @worker.queue("billing")
    async def bill(order: Order) -> None: ...

    @worker.request("pricing/quote", group="pricing")
    async def quote(query: Query) -> Price: ...

    async with ganglion.connect("ganglion://localhost:7883") as mesh:
        await worker.run(mesh)

For each handler there are as many tasks as may run at a time. They take turns at waiting for the
next item, so that one item wakes one task. A handler that raises is logged (logger
``ganglion.worker``) and never ends the worker; what becomes of its item depends on where that came
from, and is said at `Worker.queue` and the others.

The worker ends when it is told to, by `Worker.stop` or a signal: it takes nothing new, lets what
runs end within the grace, and gives back the rest.
"""

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from ganglion.clients.errors import BadOption, ClientError
from ganglion.clients.handlers import Face, Handler, Retry
from ganglion.clients.messages import Message
from ganglion.clients.queues import Consumer, Job
from ganglion.clients.requests import Request
from ganglion.clients.signals import heed_signals
from ganglion.clients.streams import GroupRecord
from ganglion.clients.tracing import continuing
from ganglion.clients.work import HandlerStatistics, Work, on_job, on_message, on_record, on_request

if TYPE_CHECKING:
    from ganglion.clients.mesh import Mesh

__all__ = ["Worker", "WorkerStatistics"]

_log = logging.getLogger("ganglion.worker")

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker does."""

    is_running: bool
    is_stopping: bool
    """Whether it takes nothing new any more."""
    handlers: tuple[HandlerStatistics, ...]


class Worker:
    """Handlers, and what runs them. `Mesh.worker` makes one for a mesh."""

    def __init__(
        self,
        mesh: "Mesh | None" = None,
        *,
        concurrency: int = 16,
        grace_s: float = 30.0,
        begin_traces: bool = False,
        faces: Mapping[type[Message], Face] | None = None,
    ) -> None:
        """Without a mesh it can be made, and given handlers, where there is no connection yet.

        ``concurrency``: how many calls of each handler run at a time, where the handler does not
        say otherwise. ``grace_s``: how long what runs may take to end when the worker is stopped.
        ``begin_traces``: an item that belongs to no trace begins one. ``faces``: further types that
        parameters of handlers may have; the synchronous face has its own. Raises `BadOption`.
        """
        if not grace_s >= 0:
            raise BadOption(f"grace_s must be 0 or more, not {grace_s:g}")
        self._mesh = mesh
        self._concurrency = _counted("concurrency", concurrency)
        self._grace_s = grace_s
        self._begins = begin_traces
        self._faces = faces or {}
        self._works: list[Work[Any]] = []
        self._stopping: anyio.Event | None = None
        self._idle: set[anyio.CancelScope] = set()
        self._error: ClientError | None = None

    # -- handlers ----------------------------------------------------------------------------------

    def queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        prefetch: int | None = None,
        declare: bool = False,
        canary: bool = False,
        retry: Retry | None = None,
    ) -> Callable[[_Function], _Function]:
        """A handler for the jobs of a queue.

        A job is acknowledged when the handler returns, unless it has settled it. When it raises,
        the job comes again after the pause of ``retry`` (`Retry` without options if left out), to
        whichever worker; after the last try, or with a payload that is not what the handler wants,
        it is rejected: to the dead letter queue, with the error as the reason. ``prefetch``: jobs
        that may be here, twice as many as may run if left out. ``declare`` and ``canary`` are those
        of `Queue.consume`.
        """
        running = self._running(concurrency)
        count = _counted("prefetch", running * 2 if prefetch is None else prefetch)
        return self._handler(
            lambda handler: Work(
                handler,
                f"queue {name}",
                running,
                lambda mesh: mesh.queue(name).consume(
                    prefetch=count, declare=declare, canary=canary
                ),
                partial(on_job, retry=retry or Retry()),
            ),
            Job,
        )

    def stream(
        self,
        name: str,
        *,
        group: str,
        concurrency: int | None = None,
        prefetch: int | None = None,
        retry: Retry | None = None,
        dead_letter: str | None = None,
    ) -> Callable[[_Function], _Function]:
        """A handler for the records of a stream, as a member of a consumer group.

        When it raises, the same record is tried again here after the pause of ``retry``, and the
        position of the group waits for it. After the last try, or with a payload that is not what
        the handler wants, the record goes to the queue ``dead_letter``; without one it is left out,
        which is logged. ``concurrency=1`` deals with records in their order.
        """
        running = self._running(concurrency)
        count = _counted("prefetch", running * 2 if prefetch is None else prefetch)
        return self._handler(
            lambda handler: Work(
                handler,
                f"stream {name}",
                running,
                lambda mesh: mesh.stream(name).group(group).follow(prefetch=count),
                partial(on_record, retry=retry or Retry(), dead_letter=dead_letter),
            ),
            GroupRecord,
        )

    def request(
        self,
        topic_filter: str,
        *,
        group: str | None = None,
        concurrency: int | None = None,
        backlog: int = 64,
    ) -> Callable[[_Function], _Function]:
        """A handler for requests: what it returns is the reply, None an empty one.

        When it raises, or the payload is not what it wants, who asks gets `ResponderFailed`. It may
        answer by itself. ``backlog``: how many requests may wait here beside those that run; with
        more than that who asks is told that this responder is busy.
        """
        running = self._running(concurrency)
        count = running + _counted("backlog", backlog)
        return self._handler(
            lambda handler: Work(
                handler,
                f"request {topic_filter}",
                running,
                lambda mesh: mesh.serve(topic_filter, group=group, concurrency=count),
                on_request,
            ),
            Request,
        )

    def topic(
        self,
        topic_filter: str,
        *,
        group: str | None = None,
        concurrency: int | None = None,
        buffer: int = 1000,
        retained: bool = True,
    ) -> Callable[[_Function], _Function]:
        """A handler for messages of topics; one that raises is only logged: nobody sends it again.

        ``group``, ``buffer`` and ``retained`` are those of `Mesh.subscribe`.
        """
        running = self._running(concurrency)
        return self._handler(
            lambda handler: Work(
                handler,
                f"topic {topic_filter}",
                running,
                lambda mesh: mesh.subscribe(
                    topic_filter, group=group, buffer=buffer, retained=retained
                ),
                on_message,
            ),
            Message,
        )

    def _running(self, concurrency: int | None) -> int:
        return self._concurrency if concurrency is None else _counted("concurrency", concurrency)

    def _handler(
        self, make: Callable[[Handler], Work[Any]], kind: type[Message]
    ) -> Callable[[_Function], _Function]:
        def add(function: _Function) -> _Function:
            if self._stopping is not None:
                raise BadOption("this worker runs already: give it its handlers before that")
            self._works.append(make(Handler(function, kind, self._faces)))
            return function

        return add

    # -- its life ----------------------------------------------------------------------------------

    async def run(
        self, mesh: "Mesh | None" = None, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Work until `stop`, or until SIGTERM or SIGINT where this is the main thread.

        A second signal ends the grace at once. For ``tasks.start(worker.run)`` it has started when
        everything is subscribed. Raises `BadOption`, and what ended a source for good, such as
        `NotFound` for a queue that was deleted.
        """
        mesh = mesh or self._mesh
        if mesh is None:
            raise BadOption("run needs a mesh: worker.run(mesh)")
        if not self._works:
            raise BadOption("this worker has no handlers")
        if self._stopping is not None:
            raise BadOption("this worker runs already")
        self._stopping, self._error = anyio.Event(), None
        try:
            async with AsyncExitStack() as stack:
                for work in self._works:
                    channel = await stack.enter_async_context(work.open(mesh))
                    work.begin(mesh, channel, self._stopping)
                await self._work(self._stopping, task_status)
        finally:
            self._stopping = None
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Take nothing new, and end `run` when what runs has ended. Harmless when repeated."""
        if self._stopping is not None:
            self._stopping.set()

    def statistics(self) -> WorkerStatistics:
        """What its handlers have done so far."""
        stopping = self._stopping
        return WorkerStatistics(
            stopping is not None,
            stopping is not None and stopping.is_set(),
            tuple(each.statistics() for each in self._works),
        )

    async def _work(self, stopping: anyio.Event, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as around:
            async with anyio.create_task_group() as handling:
                around.start_soon(self._end, stopping, handling.cancel_scope)
                if threading.current_thread() is threading.main_thread():
                    heed = partial(self._heed, stopping, handling.cancel_scope)
                    await around.start(heed_signals, heed)
                task_status.started()
                for work in self._works:
                    for _ in range(work.concurrency):
                        handling.start_soon(self._deal, work, stopping)
            around.cancel_scope.cancel()

    async def _deal(self, work: Work[Any], stopping: anyio.Event) -> None:
        """One of the tasks of a handler: one item after the other."""
        while not stopping.is_set():
            try:
                item = await self._next(work)
            except ClientError as error:
                _log.error("%s has ended: %s", work.source, error)
                self._error = self._error or error
                stopping.set()
                return
            if item is None:
                return
            work.running += 1
            try:
                with continuing(item.headers, begin=self._begins):
                    await work.deal(work, item)
            finally:
                work.running -= 1

    async def _next(self, work: Work[Any]) -> Any:
        """The next item; None: the channel was closed, or the worker stops."""
        assert work.channel is not None
        with anyio.CancelScope() as idle:
            self._idle.add(idle)
            try:
                async with work.turn:
                    return await anext(work.channel, None)
            finally:
                self._idle.discard(idle)
        return None

    async def _end(self, stopping: anyio.Event, running: anyio.CancelScope) -> None:
        """When the worker is told to stop: nothing new, the grace, and the end of the rest."""
        await stopping.wait()
        for work in self._works:
            channel = work.channel
            if isinstance(channel, Consumer):
                channel.set_prefetch(0)
            elif channel.at is not None:
                channel.at.retire()
        for idle in list(self._idle):
            idle.cancel()
        await anyio.sleep(self._grace_s)
        for work in self._works:
            if work.running:
                _log.warning(
                    "%s: %d still ran after %g s and are given back",
                    work.source,
                    work.running,
                    self._grace_s,
                )
        running.cancel()

    def _heed(
        self, stopping: anyio.Event, running: anyio.CancelScope, each: signal.Signals
    ) -> None:
        """A signal came: nothing new, or at the second one nothing more."""
        if stopping.is_set():
            _log.warning("%s again: what runs is given back", each.name)
            running.cancel()
        else:
            _log.info("%s: no new work, and an end when what runs is done", each.name)
            stopping.set()


def _counted(name: str, value: int) -> int:
    if value < 1:
        raise BadOption(f"{name} must be 1 or more, not {value}")
    return value
