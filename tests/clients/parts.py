"""What a program does with the client, in parts that check by themselves what was promised.

Each part uses some of the calls over `mesh`, whose connection may break at any time and come back;
`other` is a client whose connection does not. A part ends when each call has ended in success, or
in an error that its docstring names and after which it was tried again; when what was confirmed is
there exactly once; when followers have seen each record once and in order; and when channels that
lost their connection work again. The parts do not disturb each other: `every_call` is all of them
at once.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, Protocol, Self, TypeVar

import anyio

from ganglion.clients.channels import Channel
from ganglion.clients.errors import (
    ConnectionLost,
    LeaseLost,
    NoResponders,
    NotFound,
    ResponderGone,
    TimedOut,
    WrongVersion,
)
from ganglion.clients.mesh import Mesh
from ganglion.clients.queues import Queue
from ganglion.clients.streams import Stream
from tests.clients.backends import eventually

__all__ = ["PARTS", "Part", "every_call"]

_T = TypeVar("_T")


async def publish(mesh: Mesh, other: Mesh, name: str) -> None:
    """Confirmed publishes: each is in the queue and in the stream once, in order."""
    async with _kept(other, name) as kept:
        for payload in (b"1", b"2"):
            receipt = await mesh.publish(f"{name}/x", payload, key="k", headers={"a": "b"})
            assert (receipt.queues, receipt.streams) in ((1, 1), (None, None))
        await mesh.send(f"{name}-elsewhere", b"perhaps")
        await kept.check(b"1", b"2")


async def publish_in_a_row(mesh: Mesh, other: Mesh, name: str) -> None:
    """A pipeline of publishes: all are confirmed, and each is there once, in order."""
    payloads = [b"%d" % number for number in range(8)]
    async with _kept(other, name) as kept:
        async with mesh.publisher(in_flight=3) as publisher:
            for payload in payloads:
                await publisher.publish(f"{name}/x", payload)
        assert publisher.confirmed == len(payloads)
        await kept.check(*payloads)


async def publish_batches(mesh: Mesh, other: Mesh, name: str) -> None:
    """Batches: each message is there once, in order, and so is what was sent to a queue alone."""
    async with _kept(other, name) as kept:
        await mesh.publish_batch(f"{name}/x", [b"1", b"2", b"3"])
        await mesh.publish_batch([f"{name}/y", f"{name}/z"], [b"4", b"5"])
        await kept.check(b"1", b"2", b"3", b"4", b"5")
        await mesh.queue(name).send(b"6")
        assert [each.payload for each in await other.queue(name).browse(after=None)][-1] == b"6"


async def subscribe(mesh: Mesh, other: Mesh, name: str) -> None:
    """Subscriptions come back, and nothing comes to one of them twice."""
    heard: dict[str, list[bytes]] = {}

    async def hear(key: str, subscription: Channel[Any]) -> None:
        async for message in subscription:
            heard[key].append(message.payload)

    async with AsyncExitStack() as stack:
        given: Mapping[str, Any] = {
            "credit": mesh.subscribe(f"{name}/#", buffer=2),
            "plain": mesh.subscribe(f"{name}/+", overflow="drop_oldest"),
            "group": mesh.subscribe(f"{name}/#", group="some"),
        }
        for key, subscription in given.items():
            await stack.enter_async_context(subscription)
            heard[key] = []
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for key, subscription in given.items():
            tasks.start_soon(hear, key, subscription)
        number = 0
        while number < 3 or not all(b"%d" % number in each for each in heard.values()):
            # Until it comes to all of them at once: what is lost on the way is lost.
            number += 1
            await other.publish(f"{name}/x", b"%d" % number)
            with anyio.move_on_after(0.1):
                await eventually(partial(_in_all, b"%d" % number, heard))
        tasks.cancel_scope.cancel()
    for each in heard.values():
        assert each == sorted(set(each), key=int), f"not once and in order: {each}"


async def consume(mesh: Mesh, other: Mesh, name: str) -> None:
    """Consumers resume: each job is dealt with, in every way there is, and none is left."""
    queue = other.queue(name)
    await queue.declare(backoff_s=0.01)
    sent = [b"%d" % number for number in range(7)]
    await other.publish_batch(f"$queue/{name}", sent)
    taken: list[bytes] = []

    async def work(jobs: Channel[Any]) -> None:
        async for job in jobs:
            taken.append(job.payload)
            try:
                match len(taken):
                    case 1:
                        await job.nack(0)
                    case 2:
                        await job.reject("not today")
                    case 3:
                        await job.extend(30)
                        await job.ack(confirmed=True)
                    case 4:
                        await job.reject("nor tomorrow", confirmed=True)
                    case 5:
                        await job.nack(0, confirmed=True)
                    case _:
                        async with job:
                            pass
            except LeaseLost:
                pass  # the connection was lost: it comes again

    async with (
        mesh.queue(name).consume(prefetch=3) as jobs,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(work, jobs)
        left = 1
        while left:
            left = (await queue.describe()).statistics["messages"]
        tasks.cancel_scope.cancel()
    assert set(taken) == set(sent)
    await queue.delete()


async def append(mesh: Mesh, other: Mesh, name: str) -> None:
    """With an expected version each append is done once, however often it is tried."""
    stream = mesh.stream(name)
    await other.stream(name).declare(keyed=True)
    assert await _append(stream, 0, b"1") == 1
    assert await _append(stream, 1, b"2", b"3", b"4") == 4
    assert await stream.version("k") == 4
    records = await stream.read(after=0)
    assert [(each.sequence, each.payload) for each in records] == [
        (1, b"1"),
        (2, b"2"),
        (3, b"3"),
        (4, b"4"),
    ]
    await other.stream(name).delete()


async def follow(mesh: Mesh, other: Mesh, name: str) -> None:
    """A follower sees each record once, in order, from before it came and from after."""
    stream = other.stream(name)
    await stream.declare()
    await stream.append_batch([b"1", b"2", b"3"])
    followed: list[int] = []
    async with mesh.stream(name).follow(after=0, buffer=4) as records:
        async for record in records:
            followed.append(record.sequence)
            if record.sequence in (2, 3, 6):
                await stream.append_batch([b"more", b"more"])
            if record.sequence == 9:
                break
    assert followed == list(range(1, 10))
    await stream.delete()


async def follow_as_a_group(mesh: Mesh, other: Mesh, name: str) -> None:
    """A member of a group gets every record until it is settled, and the position moves."""
    stream = other.stream(name)
    await stream.declare()
    await mesh.stream(name).group("g").declare(after=0)
    await stream.append_batch([b"%d" % number for number in range(6)])
    seen: set[int] = set()

    async def share(records: Channel[Any]) -> None:
        async for record in records:
            seen.add(record.sequence)
            try:
                match record.sequence:
                    case 2:
                        await record.ack(confirmed=True)
                    case 4 if len(seen) < 6:
                        await record.nack(0)
                    case _:
                        async with record:
                            pass
            except LeaseLost:
                pass  # it comes again

    async with (
        mesh.stream(name).group("g").follow(prefetch=3) as records,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(share, records)
        lag = 1
        while lag:
            lag = (await stream.describe()).statistics["groups"][0]["lag"]
        tasks.cancel_scope.cancel()
    assert seen == set(range(1, 7))
    await stream.delete()


async def ask(mesh: Mesh, other: Mesh, name: str) -> None:
    """Who asks gets an answer or a documented error, and a service comes back."""

    async def answer(service: Channel[Any]) -> None:
        async for request in service:
            async with request:
                await request.reply(request.payload.upper())

    async with (
        mesh.serve(f"{name}/+", group="all") as service,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(answer, service)
        topic = f"{name}/x"
        for repeat in (False, True):
            reply = await _again(
                partial(mesh.request, topic, b"q", timeout_s=5, repeat=repeat),
                (ConnectionLost, NoResponders, ResponderGone, TimedOut),
            )
            assert reply.payload == b"Q"
        reply = await _again(lambda: other.request(topic, b"other"), (NoResponders, ResponderGone))
        assert reply.payload == b"OTHER"
        replies = await _again(
            lambda: mesh.gather(topic, b"all", timeout_s=5, at_most=1),
            (ConnectionLost, NoResponders),
            until=bool,  # the responder that was asked may have left without a word
        )
        assert [each.payload for each in replies] == [b"ALL"]
        tasks.cancel_scope.cancel()


async def keep_last_values(mesh: Mesh, other: Mesh, name: str) -> None:
    """Last values are put, read and deleted, over as many connections as it takes."""
    retained = mesh.retained
    await retained.put(f"{name}/a", b"1")
    await retained.put(f"{name}/b", b"2")
    assert [each.payload for each in await other.retained.list(f"{name}/#")] == [b"1", b"2"]
    assert [each.payload for each in await retained.list(f"{name}/#")] == [b"1", b"2"]
    found = await retained.get(f"{name}/a")
    assert found is not None
    assert found.payload == b"1"
    await retained.delete(f"{name}/a")
    await retained.delete(f"{name}/b")
    assert await retained.get(f"{name}/a") is None


async def look_after(mesh: Mesh, other: Mesh, name: str) -> None:
    """What looks after queues and streams does so, or says that nobody knows whether it did."""
    queue, stream = mesh.queue(name), mesh.stream(name)
    definition = (await queue.declare(bindings=[f"{name}/#"], lease_s=30)).definition
    assert definition["bindings"] == (f"{name}/#",)
    await stream.declare(max_records=10)
    await queue.pause()
    assert (await queue.describe()).paused
    await queue.resume()
    await other.queue(name).send(b"1")
    assert [each.payload for each in await queue.browse()] == [b"1"]
    assert await _again(queue.purge, (ConnectionLost,)) in (0, 1)
    assert await _again(lambda: queue.redrive(1), (ConnectionLost,)) == 0
    assert name in {each["name"] for each in await mesh.queues()}
    assert name in {each["name"] for each in await mesh.streams()}
    assert (await stream.describe()).statistics["records"] == 0
    assert await stream.group("g").declare() == 0
    assert "connections" in await mesh.statistics()
    await _again(mesh.flush, (ConnectionLost,))
    for delete in (stream.group("g").delete, stream.delete, queue.delete):
        await _gone(delete)


class Part(Protocol):
    """A part: it uses `mesh`, and checks with `other`, under names that begin with `name`."""

    @property
    def __name__(self) -> str: ...

    async def __call__(self, mesh: Mesh, other: Mesh, name: str, /) -> None:
        """Do it, and check what was promised."""
        ...


PARTS: Final[Mapping[str, Part]] = {
    each.__name__: each
    for each in (
        publish,
        publish_in_a_row,
        publish_batches,
        subscribe,
        consume,
        append,
        follow,
        follow_as_a_group,
        ask,
        keep_last_values,
        look_after,
    )
}
"""All parts by their names."""


async def every_call(mesh: Mesh, other: Mesh, name: str) -> None:
    """All parts at once over one connection."""
    async with anyio.create_task_group() as tasks:
        for key, part in PARTS.items():
            tasks.start_soon(part, mesh, other, f"{name}-{key}")


def _in_all(payload: bytes, heard: Mapping[str, list[bytes]]) -> bool:
    return all(payload in each for each in heard.values())


class _kept:  # noqa: N801 - used as a function: `async with _kept(...) as kept:`
    """A queue and a stream that keep what is published to topics below a name."""

    def __init__(self, other: Mesh, name: str) -> None:
        self._name = name
        self._queue: Queue = other.queue(name)
        self._stream: Stream = other.stream(name)

    async def __aenter__(self) -> Self:
        await self._queue.declare(bindings=[f"{self._name}/#"])
        await self._stream.declare(bindings=[f"{self._name}/#"])
        return self

    async def check(self, *payloads: bytes) -> None:
        """Each of these is there once, in this order, and nothing else."""
        assert [each.payload for each in await self._queue.browse()] == list(payloads)
        assert [each.payload for each in await self._stream.read(after=0)] == list(payloads)

    async def __aexit__(self, *_error: object) -> None:
        await self._queue.delete()
        await self._stream.delete()


async def _append(stream: Stream, expected: int, *payloads: bytes) -> int:
    """Append with an expected version until that is done; the sequence of the last one."""
    was_lost = False
    while True:
        try:
            if len(payloads) == 1:
                return await stream.append(payloads[0], key="k", expected=expected)
            appended = await stream.append_batch(
                payloads, keys=["k"] * len(payloads), expected={"k": expected}
            )
            assert appended.first == expected + 1
            return appended.last
        except ConnectionLost:
            was_lost = True
        except WrongVersion as error:
            if not was_lost:
                raise  # nobody else appends
            return error.actual


async def _again(
    call: Callable[[], Awaitable[_T]],
    errors: tuple[type[Exception], ...],
    *,
    until: Callable[[_T], bool] = lambda _: True,
) -> _T:
    """Call until it succeeds. These errors are documented, and none goes on without end."""
    for _ in range(200):
        try:
            result = await call()
        except errors:
            await anyio.sleep(0.001)
        else:
            if until(result):
                return result
    raise AssertionError("it fails again and again")


async def _gone(delete: Callable[[], Awaitable[None]]) -> None:
    """Delete what is not deleted twice: after a lost connection it may be gone already."""
    was_lost = False
    while True:
        try:
            await delete()
        except ConnectionLost:
            was_lost = True
        except NotFound:
            if not was_lost:
                raise  # nobody else deletes it
            return
        else:
            return
