"""The synchronous face: the mesh for scripts, threads, and views of Django or Flask.

Behind each object here is the one of the asynchronous face, and everything is done by that, in the
event loop of a `LoopThread`. A method that is called and waited for is named, and has parameters
and result of the method behind it by its type (`called`); `opened` does the same for those that
give a channel. Written out is only what is different: what has no result is posted, not waited for,
and items come over in batches (`Items`).

All of it may be used by any number of threads at a time.
"""

import functools
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from msgspec import field

from ganglion.clients import mesh as asynchronous
from ganglion.clients import publishing, queues, requests, retained, streams, subscriptions, workers
from ganglion.clients.errors import BadOption, ClientError, Closed, TimedOut
from ganglion.clients.handlers import Face as HandlerFace
from ganglion.clients.loop_thread import LoopThread
from ganglion.clients.messages import Message, MessageOptions, Record
from ganglion.clients.owed import IsOwed
from ganglion.clients.session import StateChange
from ganglion.clients.signals import SIGNALS
from ganglion.protocols.native.operations import Operation

__all__ = [
    "Connection",
    "Consumer",
    "Face",
    "Follower",
    "GroupFollower",
    "GroupRecord",
    "Items",
    "Job",
    "Mesh",
    "Publisher",
    "Queue",
    "Request",
    "Retained",
    "Service",
    "States",
    "Stream",
    "StreamGroup",
    "Subscription",
    "Taking",
    "Worker",
    "called",
    "connect",
    "opened",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Behind = TypeVar("_Behind")

_TAKEN_AT_ONCE_MAX: Final = 256
"""Items that come over at a time: enough that the 150 µs for it are little for each of them."""
_WAITING_MAX: Final = 1000
"""Publishes of a `Publisher` that wait to come over before its thread has to wait."""


# -- how the faces are made ------------------------------------------------------------------------


class Face(Generic[_Behind]):
    """An object of this face, and the one of the asynchronous face that does the work."""

    __slots__ = ("behind", "loop")

    def __init__(self, loop: LoopThread, behind: _Behind) -> None:
        self.loop = loop
        self.behind = behind


class called(Generic[_P, _T]):  # noqa: N801 - used as a decorator would be: publish = called(...)
    """A method of the object behind, waited for: the same parameters, and its result."""

    def __init__(self, method: Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__wrapped__ = method

    @overload
    def __get__(self, face: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, face: Face[Any], owner: type[Any]) -> Callable[_P, _T]: ...
    def __get__(self, face: Face[Any] | None, owner: type[Any]) -> Self | Callable[_P, _T]:
        """The method, bound."""
        if face is None:
            return self
        return functools.partial(self._call, face)

    def _call(self, face: Face[Any], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return face.loop.call(self._method, face.behind, *args, **kwargs)


class opened(Generic[_P, _T]):  # noqa: N801 - as above
    """A method of the object behind that makes a channel, to be entered by ``with``."""

    def __init__(
        self,
        method: Callable[Concatenate[Any, _P], "Taking"],
        kind: Callable[[LoopThread, Callable[[], Any]], _T],
    ) -> None:
        self._method = method
        self._kind = kind
        self.__doc__ = method.__doc__
        self.__wrapped__ = method

    @overload
    def __get__(self, face: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, face: Face[Any], owner: type[Any]) -> Callable[_P, _T]: ...
    def __get__(self, face: Face[Any] | None, owner: type[Any]) -> Self | Callable[_P, _T]:
        """The method, bound."""
        if face is None:
            return self
        return functools.partial(self._open, face)

    def _open(self, face: Face[Any], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        # The channel is made in the loop, where its events belong.
        make = functools.partial(self._method, face.behind, *args, **kwargs)
        return self._kind(face.loop, make)


class Taking(Protocol):
    """A channel of the asynchronous face."""

    async def __aenter__(self) -> Self:
        """Open it."""
        ...

    async def aclose(self) -> None:
        """Close it."""
        ...

    async def take(self, count_max: int, *, timeout_s: float | None = None) -> list[Any]:
        """The next item and those that are here behind it."""
        ...


# -- what comes ------------------------------------------------------------------------------------


class Items(Generic[_T]):
    """Items of a channel, for ``for`` inside of ``with``, in any number of threads.

    They come over from the loop in batches, which all threads share; one thread at a time waits for
    the next batch.
    """

    def __init__(self, loop: LoopThread, make: Callable[[], Any]) -> None:
        self.loop = loop
        self._make = make
        self._behind: Any = None
        self._here: deque[Any] = deque()
        self._changed = threading.Condition()
        self._is_fetching = False

    def __enter__(self) -> Self:
        """Open it. Raises what the node refused it with, and `BadOption`."""
        if self._behind is not None:
            raise BadOption("this was entered already: make another one")
        self.loop.call(self._open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it, and end the loops of all threads over it."""
        with self._changed:
            self._here.clear()
        try:
            self.loop.call(self._behind.aclose)
        except Closed:
            pass  # the mesh was closed before, and this with it

    def __iter__(self) -> Iterator[_T]:
        """Give itself: several threads may take from it, and each item goes to one."""
        return self

    def __next__(self) -> _T:
        """The next item. Raises what ended the channel; at its end by the program it just stops."""
        try:
            return self.get()
        except Closed:
            raise StopIteration from None

    def get(self, *, timeout_s: float | None = None) -> _T:
        """The next item. Raises `TimedOut`, `Closed`, and what else ended the channel."""
        found = self.take(1, timeout_s=timeout_s)
        if not found:
            raise TimedOut(f"nothing came within {timeout_s or 0:g} s")
        return found[0]

    def take(self, count_max: int, *, timeout_s: float | None = None) -> list[_T]:
        """The next item and those that are here behind it, ``count_max`` at most.

        An empty list: none came within ``timeout_s``; left out, it waits as long as it takes.
        Raises `Closed`, and what else ended the channel.
        """
        if count_max < 1:
            raise BadOption(f"count_max must be 1 or more, not {count_max}")
        if self._behind is None:
            raise BadOption("enter it first: with ... as items: for item in items")
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if end_s is None else max(end_s - time.monotonic(), 0.0)
            with self._changed:
                found = self._taken(count_max)
                if found:
                    return found
                if self._is_fetching:
                    if left_s == 0:
                        return []
                    self._changed.wait(left_s)
                    continue
                self._is_fetching = True
            try:
                has_come = self.loop.call(self._fetch, left_s)
            finally:
                with self._changed:
                    self._is_fetching = False
                    self._changed.notify_all()
            if not has_come:
                return []

    def _taken(self, count_max: int) -> list[_T]:
        found: list[_T] = []
        while self._here and len(found) < count_max:
            item = self._here.popleft()
            if self._is_current(item):
                self._on_taken(item)
                found.append(self._face(item))
        return found

    async def _open(self) -> None:
        behind = self._make()
        await behind.__aenter__()
        self._behind = behind

    async def _fetch(self, timeout_s: float | None) -> bool:
        # Put where all threads find them, and not returned: the one that asked may be interrupted.
        found = await self._behind.take(_TAKEN_AT_ONCE_MAX, timeout_s=timeout_s)
        self._here.extend(found)
        return bool(found)

    # -- for kinds of items ------------------------------------------------------------------------

    def _is_current(self, item: Any) -> bool:
        """Whether a program can still do something with it."""
        return True

    def _on_taken(self, item: Any) -> None:
        """A program gets it."""

    def _face(self, item: Any) -> Any:
        """What a program gets."""
        return item


class Subscription(Items[Message]):
    """Messages of the topics that a filter matches."""

    @property
    def dropped(self) -> int:
        """How many messages were lost because nobody took them in time, here or at the node."""
        return cast("subscriptions.Subscription", self._behind).dropped


class _IsOwed(IsOwed, Protocol):
    """What `_Owed` needs to know of an item."""

    @property
    def loop(self) -> LoopThread:
        """Where what is said of it is sent."""
        ...


_Item = TypeVar("_Item", bound=_IsOwed)


class _Owed:
    """An item for ``with``, as `ganglion.clients.owed.Owed` is for ``async with``."""

    __slots__ = ()

    def __enter__(self: _Item) -> _Item:  # noqa: PYI019 - Self has no bound
        """Deal with it: what this thread sends inside carries its correlation and trace on."""
        self.at.enter(self.handle, self)
        return self

    def __exit__(
        self: _IsOwed,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say by the way it was left what the block has not said: done, failed, no answer."""
        self.at.leave(self.handle)
        self.loop.post(self.at.say_left, self.handle, error)


class Job(_Owed, Message, frozen=True, eq=False, kw_only=True):
    """A message of a queue, leased to this program until it is settled."""

    loop: LoopThread = field()
    job: queues.Job = field()

    @classmethod
    def of(cls, loop: LoopThread, job: queues.Job) -> Self:
        """The face of a job."""
        return cls(job.topic, job.payload, job.properties, job.codec, loop=loop, job=job)

    @property
    def at(self) -> queues.Settling:
        """Where it came from."""
        return self.job.at

    @property
    def handle(self) -> int:
        """The number by which it is known there."""
        return self.job.handle

    @property
    def attempts(self) -> int:
        """How often it was delivered in vain before."""
        return self.job.attempts

    @property
    def is_held(self) -> bool:
        """Whether it can still be settled: it was not, and its connection lives."""
        return self.job.is_held

    def ack(self, *, confirmed: bool = False) -> None:
        """It is done. ``confirmed`` waits until that is on disk, and raises `LeaseLost`."""
        self._settle(Operation.ACK, confirmed=confirmed)

    def nack(self, delay_s: float | None = None, *, confirmed: bool = False) -> None:
        """It is not done: again after the delay, or without one after the queue's backoff."""
        self._settle(Operation.NACK, delay_s, confirmed=confirmed)

    def reject(self, reason: str = "", *, confirmed: bool = False) -> None:
        """Nobody can do it: to the dead letter queue, with this reason."""
        self._settle(Operation.REJECT, reason or None, confirmed=confirmed)

    def extend(self, lease_s: float) -> None:
        """It takes longer: so many seconds from now on. Raises `LeaseLost`."""
        self.loop.call(self.job.extend, lease_s)

    def _settle(self, operation: Operation, *elements: object, confirmed: bool) -> None:
        _settle(self.loop, self.at, operation, self.handle, *elements, confirmed=confirmed)


class GroupRecord(_Owed, Record, frozen=True, eq=False, kw_only=True):
    """A record that came to a member of a consumer group, which has to settle it."""

    loop: LoopThread = field()
    at: queues.Settling = field()

    @classmethod
    def of(cls, loop: LoopThread, record: streams.GroupRecord) -> Self:
        """The face of a record."""
        return cls(
            record.topic,
            record.payload,
            record.properties,
            record.codec,
            record.sequence,
            record.time_s,
            loop=loop,
            at=record.at,
        )

    @property
    def handle(self) -> int:
        """The number by which it is known where it came from."""
        return self.sequence

    def ack(self, *, confirmed: bool = False) -> None:
        """It is dealt with; the position of the group moves when all before it are, too."""
        _settle(self.loop, self.at, Operation.ACK, self.sequence, confirmed=confirmed)

    def nack(self, delay_s: float | None = None, *, confirmed: bool = False) -> None:
        """It is not: another member, or this one, gets it again."""
        _settle(self.loop, self.at, Operation.NACK, self.sequence, delay_s, confirmed=confirmed)


def _settle(
    loop: LoopThread,
    at: queues.Settling,
    operation: Operation,
    lease: int,
    *elements: object,
    confirmed: bool,
) -> None:
    if confirmed:
        loop.call(at.settle, operation, lease, *elements, confirmed=True)
    else:
        loop.post(at.settle_soon, operation, lease, *elements)


class Request(_Owed, Message, frozen=True, eq=False, kw_only=True):
    """A request that waits for an answer of this program."""

    loop: LoopThread = field()
    request: requests.Request = field()

    @classmethod
    def of(cls, loop: LoopThread, request: requests.Request) -> Self:
        """The face of a request."""
        return cls(
            request.topic,
            request.payload,
            request.properties,
            request.codec,
            loop=loop,
            request=request,
        )

    @property
    def at(self) -> requests.Serving:
        """Where it came from."""
        return self.request.at

    @property
    def handle(self) -> int:
        """The number by which it is known there."""
        return self.request.handle

    @property
    def is_wanted(self) -> bool:
        """Whether it has no answer yet and somebody waits for one."""
        return self.request.is_wanted

    def reply(self, value: object = b"", **about: Unpack[MessageOptions]) -> bool:
        """Answer; False: nobody waits for it any more. Does not wait for the network."""
        return self.loop.call(self.request.reply, value, **about)

    def fail(self, text: str, code: str | None = None) -> bool:
        """Say why there is no answer: who asks gets `ResponderFailed` with these."""
        return self.loop.call(self.request.fail, text, code)


class Consumer(Items[Job]):
    """Jobs of a queue."""

    @property
    def prefetch(self) -> int:
        """How many unsettled jobs this consumer may have at a time."""
        return cast("queues.Consumer", self._behind).prefetch

    def set_prefetch(self, prefetch: int) -> None:
        """Change that; 0: nothing more for now. What is here stays here."""
        self.loop.call(self._set_prefetch, prefetch)

    async def _set_prefetch(self, prefetch: int) -> None:
        self._behind.set_prefetch(prefetch)

    def _is_current(self, item: queues.Job) -> bool:
        return item.is_held

    def _face(self, item: queues.Job) -> Job:
        return Job.of(self.loop, item)


class GroupFollower(Items[GroupRecord]):
    """A member of a consumer group of a stream."""

    def _is_current(self, item: streams.GroupRecord) -> bool:
        return item.at.holds(item.sequence)

    def _face(self, item: streams.GroupRecord) -> GroupRecord:
        return GroupRecord.of(self.loop, item)


class Follower(Items[Record]):
    """Records of a stream, those that are there and then those that are appended."""

    position: int | None = None
    """The sequence of the last record that was taken; None: of none yet."""

    def _on_taken(self, item: Record) -> None:
        self.position = item.sequence


class Service(Items[Request]):
    """Requests for the topics that a filter matches."""

    def _is_current(self, item: requests.Request) -> bool:
        return item.is_wanted

    def _face(self, item: requests.Request) -> Request:
        return Request.of(self.loop, item)


class States(Face[asynchronous.States]):
    """Changes of state, for ``for``; it ends when the mesh is closed."""

    def __iter__(self) -> Iterator[StateChange]:
        """Give itself."""
        return self

    def __next__(self) -> StateChange:
        """The next change."""
        try:
            return self.loop.call(self._next)
        except (Closed, StopAsyncIteration):
            raise StopIteration from None

    async def _next(self) -> StateChange:
        return await self.behind.__anext__()


# -- what goes -------------------------------------------------------------------------------------


class Publisher:
    """Publishes with many on the way at a time; leaving waits until all are confirmed.

    The first one that is refused ends it: its error is raised by the next `publish`, or on leaving.
    A publish is put where the loop finds it, and comes over together with those behind it.
    """

    def __init__(
        self, loop: LoopThread, session: publishing.Publishes, behind: publishing.Publisher
    ) -> None:
        self._loop = loop
        self._session = session
        self._behind = behind
        self._waiting: deque[tuple[object, ...]] = deque()
        self._changed = threading.Condition()
        self._feeding: Future[None] | None = None
        self._error: ClientError | None = None

    @property
    def confirmed(self) -> int:
        """How many were confirmed so far."""
        return self._behind.confirmed

    def publish(self, topic: str, value: object = b"", **about: Unpack[MessageOptions]) -> None:
        """Publish; waits only when as many are on the way as may be.

        Raises the error of an earlier one that was refused; nothing is published then.
        """
        elements = self._session.publication(topic, value, about)
        with self._changed:
            while len(self._waiting) >= _WAITING_MAX and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error.with_traceback(None)
            self._waiting.append(elements)
            if self._feeding is None:
                self._feeding = self._loop.start(self._feed)

    def flush(self) -> None:
        """Wait until everything is confirmed. Raises the error of the first that was refused."""
        with self._changed:
            while self._feeding is not None:
                self._changed.wait()
        self._loop.call(self._behind.flush)

    def __enter__(self) -> Self:
        """Nothing is waited for."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for all confirmations; after an error in the body for none, and none goes again."""
        try:
            if error is None:
                self.flush()
        finally:
            with self._changed:
                self._waiting.clear()
                if self._feeding is not None:
                    self._feeding.cancel()
                self._error = self._error or Closed("this publisher was left")
            self._loop.call(self._behind.__aexit__, Closed, self._error, None)

    async def _feed(self) -> None:
        try:
            while True:
                with self._changed:
                    found = list(self._waiting)
                    self._waiting.clear()
                    self._changed.notify_all()
                    if not found:
                        self._feeding = None
                        return
                for elements in found:
                    await self._behind.publish_elements(elements)
        except ClientError as error:
            self._end(error)
        except BaseException:
            self._end(Closed("the mesh was closed meanwhile"))
            raise

    def _end(self, error: ClientError) -> None:
        with self._changed:
            self._error = self._error or error
            self._feeding = None
            self._changed.notify_all()


class Retained(Face[retained.Retained]):
    """The last values of a node."""

    get = called(retained.Retained.get)
    put = called(retained.Retained.put)
    delete = called(retained.Retained.delete)
    list = called(retained.Retained.list)


class Queue(Face[queues.Queue]):
    """A durable queue of the node, by name."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.behind.name

    consume = opened(queues.Queue.consume, Consumer)
    send = called(queues.Queue.send)
    declare = called(queues.Queue.declare)
    describe = called(queues.Queue.describe)
    delete = called(queues.Queue.delete)
    purge = called(queues.Queue.purge)
    pause = called(queues.Queue.pause)
    resume = called(queues.Queue.resume)
    browse = called(queues.Queue.browse)
    redrive = called(queues.Queue.redrive)


class StreamGroup(Face[streams.StreamGroup]):
    """A consumer group of a stream: each record goes to one of its members."""

    follow = opened(streams.StreamGroup.follow, GroupFollower)
    declare = called(streams.StreamGroup.declare)
    delete = called(streams.StreamGroup.delete)


class Stream(Face[streams.Stream]):
    """An event stream of the node, by name."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.behind.name

    append = called(streams.Stream.append)
    append_batch = called(streams.Stream.append_batch)
    read = called(streams.Stream.read)
    follow = opened(streams.Stream.follow, Follower)
    version = called(streams.Stream.version)
    declare = called(streams.Stream.declare)
    describe = called(streams.Stream.describe)
    delete = called(streams.Stream.delete)

    def group(self, name: str) -> StreamGroup:
        """A consumer group of it."""
        return StreamGroup(self.loop, self.behind.group(name))


class Worker(Face[workers.Worker]):
    """A small service of functions, which run in threads: see `ganglion.Worker`."""

    def __init__(self, loop: LoopThread, behind: workers.Worker) -> None:
        super().__init__(loop, behind)
        self.queue = behind.queue
        self.stream = behind.stream
        self.request = behind.request
        self.topic = behind.topic
        self.statistics = behind.statistics

    def run(self) -> None:
        """Work until `stop`, or until SIGTERM or SIGINT where this is the main thread.

        A second signal ends the grace at once. Raises what `ganglion.Worker.run` raises.
        """
        with _signals(self._on_signal):
            self.loop.call(self.behind.run)

    def stop(self) -> None:
        """Take nothing new, and end `run` when what runs has ended. From any thread."""
        self.loop.post(self.behind.stop)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.statistics().is_stopping:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.stop()


@contextmanager
def _signals(
    handler: Callable[[int, FrameType | None], None],
) -> Generator[None, None, None]:
    """SIGTERM and SIGINT call this inside, where this thread is the one that may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in SIGNALS}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, earlier)


class Mesh(Face[asynchronous.Mesh]):
    """What a program does with a node, and with the mesh behind it. `connect` makes it."""

    def __init__(self, loop: LoopThread, behind: asynchronous.Mesh) -> None:
        super().__init__(loop, behind)
        self.retained = Retained(loop, behind.retained)
        """Last values of topics."""

    publish = called(asynchronous.Mesh.publish)
    publish_batch = called(asynchronous.Mesh.publish_batch)
    subscribe = opened(asynchronous.Mesh.subscribe, Subscription)
    request = called(asynchronous.Mesh.request)
    gather = called(asynchronous.Mesh.gather)
    serve = opened(asynchronous.Mesh.serve, Service)
    queues = called(asynchronous.Mesh.queues)
    streams = called(asynchronous.Mesh.streams)
    statistics = called(asynchronous.Mesh.statistics)
    flush = called(asynchronous.Mesh.flush)

    def send(self, topic: str, value: object = b"", **about: Unpack[MessageOptions]) -> None:
        """Publish without a confirmation: fast, and lost if the connection is.

        Waits only while a lot waits to be sent. Without a connection the message is dropped and
        counted in `dropped`.
        """
        session = self.behind.session
        link = session.link
        if link is None or link.is_full:
            self.loop.call(self.behind.send, topic, value, **about)
        else:
            self.loop.post(self._send, session.publication(topic, value, about))

    def _send(self, elements: tuple[object, ...]) -> None:
        session = self.behind.session
        if session.link is None:
            session.dropped += 1
        else:
            session.link.notify(Operation.MESSAGE, *elements)

    @property
    def dropped(self) -> int:
        """How many messages `send` has dropped because there was no connection."""
        return self.behind.dropped

    def publisher(self, *, in_flight: int = 1000) -> Publisher:
        """Publish with many confirmations on the way, and know that all came.

        ::

            with mesh.publisher() as publisher:
                for order in orders:
                    publisher.publish("orders/created", order)
        """
        behind = self.behind.publisher(in_flight=in_flight)
        return Publisher(self.loop, self.behind.session, behind)

    def queue(self, name: str) -> Queue:
        """A durable queue, by name."""
        return Queue(self.loop, self.behind.queue(name))

    def stream(self, name: str) -> Stream:
        """An event stream, by name."""
        return Stream(self.loop, self.behind.stream(name))

    def worker(
        self, *, concurrency: int = 16, grace_s: float = 30.0, begin_traces: bool = False
    ) -> Worker:
        """A small service of plain functions, to be run with ``worker.run()``.

        They run in threads, ``concurrency`` at a time for each. A parameter for the item itself is
        annotated with the class of this face: ``ganglion.sync.Job``.
        """
        faces: dict[type[Message], HandlerFace] = {
            Job: functools.partial(Job.of, self.loop),
            GroupRecord: functools.partial(GroupRecord.of, self.loop),
            Request: functools.partial(Request.of, self.loop),
        }
        behind = workers.Worker(
            self.behind,
            concurrency=concurrency,
            grace_s=grace_s,
            begin_traces=begin_traces,
            faces=faces,
        )
        return Worker(self.loop, behind)

    @property
    def state(self) -> StateChange:
        """Whether there is a connection, to which node, or why not."""
        return self.behind.state

    @property
    def greeting(self) -> Mapping[str, Any]:
        """What the node said of itself: its name, software, limits, and who we are to it."""
        return self.behind.greeting

    def states(self) -> States:
        """Changes of the connection from now on, for ``for``."""
        return States(self.loop, self.loop.call(_states, self.behind))


async def _states(mesh: asynchronous.Mesh) -> asynchronous.States:
    return mesh.states()


class Connection:
    """A context manager that connects to a node, in a thread of its own."""

    def __init__(self, connecting: asynchronous.connect) -> None:
        self._connecting = connecting
        self._loop = LoopThread()

    def __enter__(self) -> Mesh:
        """Connect. Raises `Unreachable`, `NotAuthorised`, `Refused` or `ConnectionLost`."""
        with ExitStack() as stack:
            stack.enter_context(self._loop)
            mesh = Mesh(self._loop, self._loop.enter(self._connecting))
            stack.pop_all()
        return mesh

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Send what waits and say goodbye; what other threads wait for ends with `Closed`."""
        self._loop.__exit__(kind, error, traceback)


def _connecting(connect: Callable[_P, asynchronous.connect]) -> Callable[_P, Connection]:
    @functools.wraps(connect, assigned=("__doc__",), updated=())
    def connecting(*args: _P.args, **kwargs: _P.kwargs) -> Connection:
        return Connection(connect(*args, **kwargs))

    return connecting


connect = _connecting(asynchronous.connect)
"""Connect to a node, as `ganglion.connect` and with its parameters: ``with connect() as mesh:``."""
