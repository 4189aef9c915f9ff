"""Cancellation at each step of each call: nothing is left half done, here or at the node.

Every call of the client is run again and again, cancelled at its first step, at its second, and so
on until it is over before that (`stepping`). After each time nothing of it is left: no call waits,
no channel is open, nothing is to be sent again, the node has no more subscriptions, consumers,
followers and leases than before, and the mesh goes on.
"""

import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
import pytest

from ganglion.clients.errors import ConnectionLost, LeaseLost, NotFound, TimedOut
from ganglion.clients.link import Link
from ganglion.clients.mesh import Mesh, connect
from ganglion.testing import RunningBroker, broker_thread
from tests.clients.backends import eventually, run, stuck
from tests.clients.stepping import WAYS, Way, cancelled_at

CALLS: Final[dict[str, Callable[[Mesh], Coroutine[Any, Any, object]]]] = {}
"""Each by its name. What it needs is there: see `prepared`."""

_PATIENCE_S: Final = 5.0  # what is wrong after so long stays wrong

Call = Callable[[Mesh], Coroutine[Any, Any, object]]


def tried(call: Call) -> Call:
    """One of the calls that are tried."""
    CALLS[call.__name__] = call
    return call


for name, simple in {
    "publish": lambda mesh: mesh.publish("t", b"x"),
    "publish_to_a_queue": lambda mesh: mesh.publish("q/1", b"x"),
    "publish_with_a_timeout": lambda mesh: mesh.publish("t", b"x", timeout_s=5),
    "publish_batch": lambda mesh: mesh.publish_batch("t", [b"x"] * 1030),
    "send": lambda mesh: mesh.send("t", b"x"),
    "flush": lambda mesh: mesh.flush(),
    "request": lambda mesh: mesh.request("echo", b"x"),
    "gather": lambda mesh: mesh.gather("echo", b"x"),
    "queue_send": lambda mesh: mesh.queue("q").send(b"x"),
    "queue_declare": lambda mesh: mesh.queue("q").declare(lease_s=30),
    "queue_describe": lambda mesh: mesh.queue("q").describe(),
    "queue_purge": lambda mesh: mesh.queue("q").purge(),
    "queue_pause": lambda mesh: mesh.queue("p").pause(),
    "queue_resume": lambda mesh: mesh.queue("p").resume(),
    "queue_browse": lambda mesh: mesh.queue("q").browse(),
    "queue_redrive": lambda mesh: mesh.queue("q").redrive(10),
    "queues": lambda mesh: mesh.queues(),
    "append": lambda mesh: mesh.stream("s").append(b"x"),
    "append_batch": lambda mesh: mesh.stream("s").append_batch([b"x"] * 3),
    "read": lambda mesh: mesh.stream("s").read(count=3),
    "version": lambda mesh: mesh.stream("s").version("k"),
    "stream_declare": lambda mesh: mesh.stream("s").declare(max_records=1000),
    "stream_describe": lambda mesh: mesh.stream("s").describe(),
    "streams": lambda mesh: mesh.streams(),
    "group_declare": lambda mesh: mesh.stream("s").group("g").declare(),
    "retained_put": lambda mesh: mesh.retained.put("r", b"x"),
    "retained_get": lambda mesh: mesh.retained.get("r"),
    "retained_list": lambda mesh: mesh.retained.list("#"),
    "retained_delete": lambda mesh: mesh.retained.delete("r"),
    "statistics": lambda mesh: mesh.statistics(),
}.items():
    CALLS[name] = simple


@tried
async def make_and_delete(mesh: Mesh) -> None:
    """A queue, a stream and a group that are made and deleted, in any state."""
    await mesh.queue("new").declare()
    await mesh.stream("new").declare()
    await mesh.stream("new").group("g").declare()
    for each in (mesh.stream("new").group("g"), mesh.stream("new"), mesh.queue("new")):
        with suppress(NotFound):
            await each.delete()


@tried
async def publish_many(mesh: Mesh) -> None:
    """A publisher that waits for room and for its confirmations."""
    async with mesh.publisher(in_flight=2) as publisher:
        for _ in range(5):
            await publisher.publish("q/1", b"x")
        await publisher.flush()


@tried
async def request_that_is_not_answered(mesh: Mesh) -> None:
    """Nobody answers in time."""
    with suppress(TimedOut):
        await mesh.request("never", b"x", timeout_s=0.01)


@tried
async def gather_that_is_not_answered(mesh: Mesh) -> None:
    """Nobody answers in time."""
    assert await mesh.gather("never", b"x", timeout_s=0.01) == []


@tried
async def subscribe(mesh: Mesh) -> None:
    """With credit: three messages of oneself."""
    async with mesh.subscribe("t", buffer=2) as messages:
        for _ in range(3):
            await mesh.publish("t", b"x")
            await anext(messages)


@tried
async def subscribe_dropping(mesh: Mesh) -> None:
    """Plain, with a last value that comes first."""
    async with mesh.subscribe("kept", overflow="drop_oldest") as messages:
        await anext(messages)


@tried
async def subscribe_in_a_group(mesh: Mesh) -> None:
    """As a member of a group."""
    async with mesh.subscribe("t", group="g") as messages:
        await mesh.publish("t", b"x")
        await anext(messages)


@tried
async def wait_for_a_message(mesh: Mesh) -> None:
    """None comes."""
    async with mesh.subscribe("nothing") as messages:
        with anyio.move_on_after(0.01):
            await anext(messages)


@tried
async def serve(mesh: Mesh) -> None:
    """A request to oneself, answered."""

    async def ask() -> None:
        await mesh.request("own", b"x")

    async with mesh.serve("own", group="g") as requests, anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        async with await anext(requests) as request:
            await request.reply(b"y")


@tried
async def serve_and_fail(mesh: Mesh) -> None:
    """A request to oneself that fails, and another that is never taken."""
    async with mesh.serve("own") as requests, anyio.create_task_group() as tasks:
        tasks.start_soon(_failing, mesh)
        request = await anext(requests)
        await request.fail("no", "code")
        await request.unwanted()
        tasks.start_soon(_failing, mesh)


async def _failing(mesh: Mesh) -> None:
    with suppress(Exception):
        await mesh.request("own", b"x", timeout_s=0.01)


@tried
async def consume(mesh: Mesh) -> None:
    """A job, dealt with in its context."""
    await mesh.queue("q").send(b"x")
    async with mesh.queue("q").consume() as jobs, await anext(jobs) as job:
        await job.extend(30)
        await mesh.publish("done", b"x")


@tried
async def consume_confirmed(mesh: Mesh) -> None:
    """Each way to settle, confirmed."""
    queue = mesh.queue("q")
    await mesh.publish_batch("q/1", [b"x"] * 3)
    async with queue.consume(prefetch=1) as jobs:
        await (await anext(jobs)).ack(confirmed=True)
        await (await anext(jobs)).reject("why", confirmed=True)
        job = await anext(jobs)
        await job.nack(0, confirmed=True)
        with suppress(LeaseLost):
            await job.ack(confirmed=True)


@tried
async def consume_and_pause(mesh: Mesh) -> None:
    """A consumer whose prefetch changes while jobs are under way."""
    await mesh.publish_batch("q/1", [b"x"] * 20)
    async with mesh.queue("q").consume(prefetch=5, declare=True) as jobs:
        await (await anext(jobs)).ack()
        jobs.set_prefetch(0)
        await mesh.flush()
        jobs.set_prefetch(2)
        await (await anext(jobs)).nack()


@tried
async def follow(mesh: Mesh) -> None:
    """Records that are there."""
    async with mesh.stream("s").follow(after=0, buffer=2) as records:
        for _ in range(3):
            await anext(records)


@tried
async def follow_and_leave(mesh: Mesh) -> None:
    """Without a context: nobody says that it is over."""
    async for _ in mesh.stream("s").follow(after=0):
        break
    with anyio.move_on_after(0.01):
        async for _ in mesh.stream("s").follow():
            pass


@tried
async def follow_in_a_group(mesh: Mesh) -> None:
    """As a member, which settles what it gets."""
    group = mesh.stream("s").group("members")
    async with group.follow(prefetch=2) as records:
        async with await anext(records):
            pass
        await (await anext(records)).nack(0, confirmed=True)
        await (await anext(records)).ack(confirmed=True)


async def prepared(mesh: Mesh) -> None:
    """What the calls need: queues, a stream with records, and a last value."""
    await mesh.queue("q").declare(bindings=["q/#"])
    await mesh.queue("p").declare()
    await mesh.stream("s").declare(keyed=True)
    await mesh.stream("s").append_batch([b"x"] * 300)
    group = mesh.stream("s").group("members")
    await group.declare(after=0)
    async with group.follow():
        pass  # from its first member on the group is a follower itself
    await mesh.retained.put("kept", b"x")


async def at_the_node(watcher: Mesh) -> dict[str, Any]:
    """What the node has of its clients."""
    statistics = await watcher.statistics()
    queue = (await watcher.queue("q").describe()).statistics
    stream = (await watcher.stream("s").describe()).statistics
    return {
        **{name: statistics[name] for name in ("connections", "sessions", "subscriptions")},
        **{name: queue[name] for name in ("consumers", "leased")},
        "followers": stream["followers"],
        "members": [group["members"] for group in stream["groups"] if group["name"] == "members"],
    }


def here(mesh: Mesh) -> dict[str, Any]:
    """What a client has under way."""
    session = mesh._session
    link = session.link
    assert link is not None
    return {
        "calls": len(link.calls),
        "channels": dict(link.channels),
        "pings": len(link._pings),
        "to flush": dict(link._to_flush),
        "requests": set(link.conversation._singles),
        "publishes": dict(link.conversation._publishes),
        "outbox": (len(session.outbox), session.outbox._bytes),
        "opened": dict(session._channels),
        "plain": dict(session.plain._subscriptions),
        "watchers": len(session._watchers),
    }


async def becomes(look: Callable[[], Coroutine[Any, Any, object]], wanted: object) -> None:
    """Wait until what is seen is as it was before."""
    found: object = None
    with anyio.move_on_after(_PATIENCE_S):
        while (found := await look()) != wanted:  # noqa: ASYNC110 - what a node has sets no event
            await anyio.sleep(0.001)
    assert found == wanted


async def echo(mesh: Mesh, ready: anyio.Event) -> None:
    """Answer ``echo``; of ``never`` wait until the answer is not wanted any more."""

    async def never() -> None:
        async with mesh.serve("never") as requests:
            async for request in requests:
                await request.unwanted()

    async with anyio.create_task_group() as tasks, mesh.serve("echo") as requests:
        tasks.start_soon(never)
        await mesh.flush()
        ready.set()
        async for request in requests:
            await request.reply(request.payload)


in_each_way = pytest.mark.parametrize(("backend", "way"), WAYS, ids=str)


@pytest.mark.slow
@in_each_way
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_cancelled_call_leaves_nothing(
    broker: RunningBroker, backend: str, way: Way, call: Call
) -> None:
    """At whichever step it is cancelled."""

    async def main() -> None:
        async with (
            connect(broker.native_url) as watcher,
            connect(broker.native_url) as mesh,
            anyio.create_task_group() as tasks,
        ):
            await prepared(watcher)
            ready = anyio.Event()
            tasks.start_soon(echo, watcher, ready)
            await ready.wait()
            before, ours = await at_the_node(watcher), here(mesh)
            steps = 1
            while await cancelled_at(steps, way, lambda: call(mesh)):
                await mesh.flush()

                async def now() -> object:
                    if here(mesh) != ours:
                        gc.collect()  # the error of the cancellation may hold what nobody has
                    return here(mesh)

                await becomes(now, ours)
                await becomes(lambda: at_the_node(watcher), before)
                await mesh.publish("alive", b"x")
                steps += 1
            assert steps > 1 or call is CALLS["send"]
            tasks.cancel_scope.cancel()

    run(backend, main)


@pytest.mark.slow
@in_each_way
@pytest.mark.parametrize("scheme", ["ganglion", "ws"])
def test_a_cancelled_connect_leaves_no_connection(scheme: str, backend: str, way: Way) -> None:
    """At whichever step of connecting, of what is done then, and of leaving it is cancelled."""

    async def main() -> None:
        url = f"{scheme}{broker.web_url.removeprefix('http')}/ws" if scheme == "ws" else own_url

        async def connects() -> None:
            async with connect(url, user="ada", password="secret", client="one") as mesh:
                await mesh.send("t", b"x")
                await mesh.publish("t", b"x")

        async with connect(own_url, user="ada", password="secret") as watcher:

            async def connections() -> object:
                return (await watcher.statistics())["connections"]

            steps = 1
            while await cancelled_at(steps, way, connects):
                await becomes(connections, 1)
                steps += 1
            assert steps > 5

    rules = [{"effect": "allow", "topics": ["#", "$SYS/#"]}]
    with broker_thread(web=True, users={"ada": "secret"}, rules=rules) as broker:
        own_url = broker.native_url
        run(backend, main)


def is_another(mesh: Mesh, link: Link) -> bool:
    """Whether a mesh has another connection than this one."""
    return mesh._session.link not in (None, link)


@in_each_way
def test_a_cancelled_publish_is_not_sent_again(
    broker: RunningBroker, backend: str, way: Way
) -> None:
    """Nobody waits for its confirmation any more: the next connection begins without it."""

    async def main() -> None:
        async with connect(broker.native_url, backoff_s=0.001) as mesh:
            queue = mesh.queue("q")
            await queue.declare(bindings=["t"])
            calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
                lambda: mesh.publish("t", b"cancelled"),
                lambda: mesh.publish_batch("t", [b"cancelled"] * 2),
                lambda: queue.send(b"cancelled"),
            ]
            for call in calls:
                await mesh.flush()
                first = mesh._session.link
                assert first is not None
                with stuck(mesh):
                    # It waits for an answer at its first step, and it is not even sent.
                    assert await cancelled_at(1, "scope" if way == "late" else way, call)
                    first._end(ConnectionLost("cut"))
                    await eventually(partial(is_another, mesh, first))
                assert len(mesh._session.outbox) == 0
                await mesh.publish("t", b"later")
            assert [each.payload for each in await queue.browse()] == [b"later"] * 3

    run(backend, main)
